//! `metrics`: one scrape of all pods.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nacre_pod::status;

use super::cli::MetricsArgs;
use super::{PodsError, find, print};

pub(super) async fn metrics(args: &MetricsArgs) -> Result<(), PodsError> {
    let pods = match &args.pod {
        Some(word) => vec![find::one(word)?],
        None => find::all()?,
    };
    let mut told = Vec::new();
    for (identity, report) in find::reports(pods, args.patience.limit()).await {
        if let Err(error) = &report {
            log::debug!("{error}");
        }
        told.push((identity, report.ok()));
    }
    let text = status::exposition(&told);
    match &args.output {
        Some(file) => write(file, &text).map_err(|source| PodsError::Write {
            what: file.display().to_string(),
            source,
        }),
        None => print(&text),
    }
}

/// Writes a file of which nobody sees the half.
fn write(file: &Path, text: &str) -> io::Result<()> {
    let mut new = file.as_os_str().to_owned();
    // The collector reads files that end in `.prom`.
    new.push(format!(".{}", std::process::id()));
    // The directory may be another user's, whose links are not followed.
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o644);
    let mut output = options.open(&new)?;
    output
        .write_all(text.as_bytes())
        .and_then(|()| fs::rename(&new, file))
        .inspect_err(|_| drop(fs::remove_file(&new)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nacre.prom");
        write(&file, "a").unwrap();
        write(&file, "b").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "b");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let victim = dir.path().join("victim");
        let link = format!("nacre.prom.{}", std::process::id());
        std::os::unix::fs::symlink(&victim, dir.path().join(link)).unwrap();
        write(&file, "c").unwrap_err();
        assert!(!victim.exists());
        write(&dir.path().join("none/x"), "b").unwrap_err();
    }
}
