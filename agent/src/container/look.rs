//! What the processes of a container are, for a person who looks at them.
//!
//! A command line is in the memory of its process, which can keep a reader waiting for as long
//! as it likes. So a helper reads them.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};

use nacre_protocol::agent::ProcessDetails;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::time::{ClockId, Timespec, clock_gettime};
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;
use super::helper_process::{HelperProcess, Role};
use super::id::Id;
use super::report::{Failure, LookRequest, Report, receive, send};
use super::{Container, Guest, stdio};
use crate::error::{Doing, Error};

/// Processes that are looked at.
const MAX_PROCESSES: usize = 4096;

/// Bytes of one file of a process, and of its command line.
const MAX_FILE: u64 = 4096;

/// Bytes of all command lines.
const MAX_COMMANDS: usize = 1 << 20;

/// Bytes of what a helper has seen.
const MAX_SEEN: u64 = 8 << 20;

/// Nanoseconds of a tick, in which `/proc` counts.
const TICK: i64 = 10_000_000;

/// Milliseconds of a tick.
const TICK_MS: u64 = 10;

const SECOND: i64 = 1_000_000_000;

/// A process as a helper has seen it.
#[derive(Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
struct Seen {
    pid: u32,
    parent: u32,
    uid: u32,
    state: String,
    terminal: u32,
    cpu_ms: u64,
    started_at_ns: i64,
    size: u64,
    resident: u64,
    name: String,
    arguments: String,
}

impl Container {
    /// Its processes and what they are; those that end meanwhile are left out.
    pub(crate) async fn look(&self, guest: &Guest) -> Result<Vec<ProcessDetails>, Error> {
        let helper = HelperProcess::spawn(guest, Role::Look, stdio::nothing()?)?;
        let request = LookRequest {
            id: self.id.as_str().to_owned(),
        };
        let seen = read_seen(File::from(helper.look(&request).await?));
        let seen = seen.doing("cannot read what a helper has seen")?;
        Ok(seen.into_iter().map(details).collect())
    }
}

fn read_seen(mut file: File) -> io::Result<Vec<Seen>> {
    let mut json = Vec::new();
    file.rewind()?;
    file.take(MAX_SEEN).read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

fn details(seen: Seen) -> ProcessDetails {
    ProcessDetails {
        pid: seen.pid,
        parent: seen.parent,
        uid: seen.uid,
        state: seen.state,
        terminal: seen.terminal,
        cpu_ms: seen.cpu_ms,
        started_at_ns: seen.started_at_ns,
        size: seen.size,
        resident: seen.resident,
        name: seen.name,
        arguments: seen.arguments,
        ..ProcessDetails::default()
    }
}

/// The helper's side: looks at the processes of the container that is asked for on the socket
/// `control`.
///
/// # Errors
/// When the agent cannot be talked to.
pub(super) fn run(control: &OwnedFd) -> io::Result<()> {
    let (request, _) = receive::<LookRequest>(control)?;
    match look_at(&request.id) {
        Ok(file) => send(control, &Report::Seen, &[file.as_fd()]),
        Err(failure) => send(control, &Report::Failed(failure), &[]),
    }
}

fn look_at(id: &str) -> Result<File, Failure> {
    let id = Id::parse(id, "container_id").map_err(Failure::invalid)?;
    let pids = Cgroup::of(&id).processes(MAX_PROCESSES);
    let mut left = MAX_COMMANDS;
    let boot = boot_time();
    let seen: Vec<_> = pids
        .map_err(Failure::internal)?
        .into_iter()
        .filter_map(|pid| look_at_process(pid, boot, &mut left))
        .collect();
    write_seen(&seen).map_err(Failure::internal)
}

fn write_seen(seen: &[Seen]) -> io::Result<File> {
    let mut file = File::from(memfd_create("processes", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(seen)?)?;
    Ok(file)
}

/// When the guest's kernel began to count, nanoseconds since the epoch.
fn boot_time() -> i64 {
    let nanoseconds = |time: Timespec| {
        time.tv_sec
            .saturating_mul(SECOND)
            .saturating_add(time.tv_nsec)
    };
    let now = |clock| nanoseconds(clock_gettime(clock));
    now(ClockId::Realtime).saturating_sub(now(ClockId::Boottime))
}

/// `None` for a process that has ended. Takes what its command line has from `left`.
fn look_at_process(pid: u32, boot: i64, left: &mut usize) -> Option<Seen> {
    let read = |name: &str| read_file(&format!("/proc/{pid}/{name}")).ok();
    let mut seen = Seen {
        pid,
        ..Seen::default()
    };
    add_stat(&mut seen, &String::from_utf8_lossy(&read("stat")?), boot)?;
    add_status(&mut seen, &String::from_utf8_lossy(&read("status")?));
    let mut command = read("cmdline").unwrap_or_default();
    command.truncate(*left);
    *left = left.saturating_sub(command.len());
    seen.arguments = one_text(&command);
    Some(seen)
}

fn read_file(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(MAX_FILE)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Arguments with a space between them.
fn one_text(command: &[u8]) -> String {
    let text: Vec<u8> = command
        .iter()
        .map(|byte| if *byte == 0 { b' ' } else { *byte })
        .collect();
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

/// proc(5): `pid (name) state ppid pgrp session tty_nr …`; the name may have anything in it.
fn add_stat(seen: &mut Seen, stat: &str, boot: i64) -> Option<()> {
    let (before, rest) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    name.clone_into(&mut seen.name);
    (*fields.first()?).clone_into(&mut seen.state);
    seen.parent = u32::try_from(number(1)?).ok()?;
    seen.terminal = fields.get(4)?.parse::<i32>().ok()?.cast_unsigned();
    let ticks = number(11)?.saturating_add(number(12)?);
    seen.cpu_ms = ticks.saturating_mul(TICK_MS);
    let started = i64::try_from(number(19)?).ok()?;
    seen.started_at_ns = boot.saturating_add(started.saturating_mul(TICK));
    Some(())
}

fn add_status(seen: &mut Seen, status: &str) {
    for line in status.lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let mut words = value.split_whitespace();
        match name {
            // The second one is that by which the kernel decides.
            "Uid" => seen.uid = words.nth(1).and_then(|uid| uid.parse().ok()).unwrap_or(0),
            "VmSize" => seen.size = kibibytes(words.next()),
            "VmRSS" => seen.resident = kibibytes(words.next()),
            _ => {}
        }
    }
}

fn kibibytes(number: Option<&str>) -> u64 {
    let number = number.and_then(|number| number.parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_what_the_kernel_says() {
        let mut seen = Seen::default();
        let stat = "42 (a) b (c) S 7 42 42 34817 42 4194304 1 0 0 0 250 50 0 0 20 0 1 0 1234 5 6";
        add_stat(&mut seen, stat, 5 * SECOND).unwrap();
        let status = "Name:\ta\nUid:\t1\t1000\t1\t1\nVmSize:\t  8 kB\nVmRSS:\t  4 kB\n";
        add_status(&mut seen, status);
        let expected = Seen {
            pid: 0,
            parent: 7,
            uid: 1000,
            state: "S".to_owned(),
            terminal: 34817,
            cpu_ms: 3000,
            started_at_ns: 17_340_000_000,
            size: 8192,
            resident: 4096,
            name: "a) b (c".to_owned(),
            arguments: String::new(),
        };
        assert_eq!(seen, expected);
        for nonsense in ["", "42", "42 (x)", "42 (x) S", "42 (x) S a b c d"] {
            assert_eq!(add_stat(&mut seen, nonsense, 0), None, "{nonsense}");
        }
    }

    #[test]
    fn command_lines_share_a_bound() {
        let own = std::process::id();
        let mut left = 3;
        let seen = look_at_process(own, boot_time(), &mut left).unwrap();
        assert_eq!((seen.pid, seen.arguments.len(), left), (own, 3, 0));
        assert!(seen.started_at_ns > 0 && seen.resident > 0);
        assert_eq!(look_at_process(0, 0, &mut left), None);
        assert_eq!(one_text(b"sleep\x001000\0"), "sleep 1000");
        let file = write_seen(&[seen]).unwrap();
        assert_eq!(read_seen(file).unwrap().len(), 1);
    }
}
