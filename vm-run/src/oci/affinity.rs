//! On which CPUs of the host a container runs that has been created already: the threads of its
//! keeper and of the monitor, of which the guest's CPUs are some.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use nacre_pod::spec::HostCpus;
use rustix::process::Pid;

/// Looks at the threads, of which those that are confined may just start others.
const LOOKS: usize = 100;

/// Confines all threads of a process and of those that it has started.
pub(super) fn confine(process: u32, cpus: &HostCpus) -> io::Result<()> {
    let mut confined = BTreeSet::new();
    for _ in 0..LOOKS {
        let all: BTreeSet<_> = threads(Path::new("/proc"), process)?;
        if all.is_subset(&confined) {
            return Ok(());
        }
        for thread in all.difference(&confined) {
            match Pid::from_raw(thread.cast_signed()).map(|pid| cpus.confine_thread(pid)) {
                // It has just ended.
                Some(Err(error)) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Some(Err(error)) => return Err(error),
                Some(Ok(())) | None => {}
            }
        }
        confined.extend(all);
    }
    Err(io::Error::other("it starts threads without end"))
}

fn threads(proc: &Path, process: u32) -> io::Result<BTreeSet<u32>> {
    let mut threads = BTreeSet::new();
    let mut processes = vec![process];
    while let Some(process) = processes.pop() {
        for thread in numbers(&proc.join(format!("{process}/task"))) {
            if threads.insert(thread) {
                let thread = proc.join(format!("{process}/task/{thread}"));
                processes.extend(children_of(&thread)?);
            }
        }
    }
    Ok(threads)
}

fn numbers(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The children of a thread, none when it has just ended.
fn children_of(thread: &Path) -> io::Result<Vec<u32>> {
    match fs::read_to_string(thread.join("children")) {
        Ok(text) => Ok(text
            .split_whitespace()
            .flat_map(str::parse::<u32>)
            .collect()),
        Err(_) if !thread.exists() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_those_of_a_process_and_of_its_children() {
        let proc = tempfile::tempdir().unwrap();
        let thread = |process: u32, thread: u32, children: &str| {
            let directory = proc.path().join(format!("{process}/task/{thread}"));
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("children"), children).unwrap();
        };
        thread(7, 7, "");
        thread(7, 8, "20 30 ");
        thread(20, 20, "40 ");
        thread(20, 21, "");
        thread(40, 40, "");
        thread(50, 50, "");
        let found = threads(proc.path(), 7).unwrap();
        assert_eq!(found, BTreeSet::from([7, 8, 20, 21, 40]));
    }
}
