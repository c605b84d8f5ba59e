//! `state` and `list`: what there is.

use std::io::{self, Write};

use super::cli::{ListArgs, ListFormat};
use super::error::OciError;
use super::state::{Report, Root};

/// Prints the state of a container.
pub(crate) fn state(root: &Root, id: &str) -> Result<(), OciError> {
    let report = root.open(id)?.record()?.report("");
    let text = serde_json::to_string_pretty(&report).map_err(io::Error::from);
    print(&text.map_err(OciError::system("state"))?)
}

/// Prints a list of all containers.
pub(crate) fn list(root: &Root, args: &ListArgs) -> Result<(), OciError> {
    let owner = owner(root);
    let records = root.records()?;
    let reports: Vec<_> = records.iter().map(|record| record.report(&owner)).collect();
    if args.quiet {
        let ids = reports.iter().map(|report| format!("{}\n", report.id));
        return print(&ids.collect::<String>());
    }
    match args.format {
        ListFormat::Json => {
            let text = serde_json::to_string(&reports).map_err(io::Error::from);
            print(&text.map_err(OciError::system("list"))?)
        }
        ListFormat::Table => print(&table(&reports)),
    }
}

/// Whose containers they are, by name where root is concerned.
fn owner(root: &Root) -> String {
    match root.owner() {
        Some(0) => "root".to_owned(),
        Some(uid) => format!("#{uid}"),
        None => String::new(),
    }
}

/// Columns as wide as their widest cell, at least as in runc's table.
fn table(reports: &[Report]) -> String {
    const NARROWEST: usize = 12;
    const GAP: usize = 3;
    let titles = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = reports.iter().map(|report| {
        [
            report.id.clone(),
            report.pid.to_string(),
            report.status.to_string(),
            report.bundle.display().to_string(),
            report.created.clone(),
            report.owner.clone(),
        ]
    });
    let rows: Vec<_> = std::iter::once(titles).chain(rows).collect();
    let widths = [0, 1, 2, 3, 4].map(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count() + GAP);
        cells.max().unwrap_or(0).max(NARROWEST)
    });
    let mut text = String::new();
    for row in rows {
        for (cell, width) in row.iter().zip(widths) {
            text.push_str(&format!("{cell:width$}"));
        }
        text.push_str(&row[5]);
        text.push('\n');
    }
    text
}

/// Writes to standard output.
pub(crate) fn print(text: &str) -> Result<(), OciError> {
    let mut output = io::stdout().lock();
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .map_err(OciError::system("standard output"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_runcs() {
        let expected = "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n";
        assert_eq!(table(&[]), expected);
    }
}
