//! `ps` of a pod that containerd has started.

use std::io::ErrorKind;

use nacre_pod::status::{self, ProcessReport};
use nacre_pod::text;

use super::cli::Patience;
use super::table::columns;
use super::{PodsError, find, print};
use crate::launch;
use crate::oci::cli::ListFormat;

/// Prints the processes of the pod that is meant by `word`; `false` if there is none that the
/// caller may see.
pub(crate) fn processes(word: &str, format: ListFormat) -> Result<bool, PodsError> {
    let pod = match find::one(word) {
        Err(PodsError::Missing(_)) => return Ok(false),
        // Pods are root's, containers of this command line are not.
        Err(PodsError::List { source }) if source.kind() == ErrorKind::PermissionDenied => {
            return Ok(false);
        }
        found => found?,
    };
    let runtime = launch::runtime().map_err(PodsError::Runtime)?;
    let limit = Patience::default().limit();
    let processes: Vec<ProcessReport> =
        runtime.block_on(find::ask_json(&pod, status::PROCESSES, limit))?;
    match format {
        ListFormat::Table => print(&table(&processes))?,
        ListFormat::Json => print(&format!("{}\n", serde_json::json!(processes)))?,
    }
    Ok(true)
}

fn table(processes: &[ProcessReport]) -> String {
    let mut rows = vec![["PID", "CONTAINER", "NAME", "EXEC"].map(str::to_owned)];
    let or_none = |text: &Option<String>| match text {
        Some(text) => text::one_line(text),
        None => "-".to_owned(),
    };
    rows.extend(processes.iter().map(|process| {
        [
            process.pid.to_string(),
            text::one_line(&process.container),
            or_none(&process.name),
            or_none(&process.exec),
        ]
    }));
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_is_told_with_its_container() {
        let process = ProcessReport {
            container: "c1".into(),
            name: Some("main".into()),
            pid: 42,
            exec: None,
        };
        let table = table(&[process]);
        let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["42", "c1", "main", "-"]);
    }
}
