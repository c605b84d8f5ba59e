//! `delete`: cleans up after a shim that containerd has no connection to.
//!
//! containerd calls it for every container, also when all is well: then the shim
//! has ended, or serves the pod's other containers, and knows nothing of this one
//! any more. So a shim that answers is asked to delete the container; one that
//! does not is ended, if it was started for this container, and what it may have
//! left is taken away.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use containerd_shim_protos::api::{
    DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest, WaitRequest,
};
use containerd_shim_protos::shim_async::TaskClient;
use nacre_pod::cgroup::HostCgroup;
use protobuf::Message;
use protobuf::well_known_types::timestamp::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use thiserror::Error;
use ttrpc::Code;
use ttrpc::context;

use crate::bundle_files;
use crate::cli::Cli;
use crate::rootfs;
use crate::socket;

/// How long a shim may take for an answer, and to end by itself. containerd
/// waits five seconds for all of it.
const ANSWER: Duration = Duration::from_millis(1500);
const LAST_BREATH: Duration = Duration::from_millis(1500);

/// The status of a container that ended with its shim.
const KILLED: u32 = 137;

/// Why nothing can be said of the container.
#[derive(Debug, Error)]
pub(crate) enum DeleteError {
    #[error("cannot {what}: {source}")]
    System {
        what: &'static str,
        source: io::Error,
    },
    #[error("cannot answer: {0}")]
    Answer(#[from] protobuf::Error),
}

impl DeleteError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// Cleans up and prints how the container ended.
pub(crate) fn run(cli: &Cli) -> Result<(), DeleteError> {
    let bundle = match &cli.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().map_err(DeleteError::system("find the bundle"))?,
    };
    let response = clean_up(&cli.id, &bundle)?;
    let bytes = response.write_to_bytes()?;
    io::stdout()
        .write_all(&bytes)
        .map_err(DeleteError::system("answer"))
}

fn clean_up(id: &str, bundle: &Path) -> Result<DeleteResponse, DeleteError> {
    let socket = address(bundle).map(|address| socket::path(&address));
    let shim = Shim::of(bundle);
    let asked = match &socket {
        Some(socket) => ask(socket, id, shim.is_some())?,
        None => Answer::None,
    };
    if let (Answer::None, Some(shim)) = (&asked, shim) {
        shim.end(id);
        if let Some(socket) = &socket {
            if let Some(key) = socket::key(socket) {
                nacre_pod::status::remove(key);
            }
            socket::remove(socket);
        }
        remove_cgroup(bundle);
    }
    rootfs::unmount_all(bundle);
    Ok(match asked {
        Answer::Deleted(response) => response,
        Answer::None | Answer::Gone => killed(),
    })
}

/// The address of the pod's shim: as `start` or as containerd 2 has written it.
fn address(bundle: &Path) -> Option<String> {
    if let Some(address) = bundle_files::read(&bundle.join(bundle_files::ADDRESS)) {
        return Some(address);
    }
    let text = bundle_files::read(&bundle.join("bootstrap.json"))?;
    let result: Value = serde_json::from_str(&text).ok()?;
    result.get("address")?.as_str().map(str::to_owned)
}

fn killed() -> DeleteResponse {
    DeleteResponse {
        exit_status: KILLED,
        exited_at: Some(Timestamp::from(SystemTime::now())).into(),
        ..Default::default()
    }
}

/// What a shim says of a container.
enum Answer {
    /// There is no shim that answers.
    None,
    /// It knows nothing of the container.
    Gone,
    /// It has deleted the container.
    Deleted(DeleteResponse),
}

fn ask(socket: &Path, id: &str, ends: bool) -> Result<Answer, DeleteError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DeleteError::system("ask the shim"))?;
    let answer = runtime.block_on(async {
        let asked = ask_to_delete(socket, id, ends);
        tokio::time::timeout(ANSWER, asked).await
    });
    Ok(answer.unwrap_or(Answer::None))
}

async fn ask_to_delete(socket: &Path, id: &str, ends: bool) -> Answer {
    let Ok(stream) = tokio::net::UnixStream::connect(socket).await else {
        return Answer::None;
    };
    let client = TaskClient::new(ttrpc::asynchronous::Client::new(stream.into()));
    let patience = || context::with_duration(ANSWER);
    let kill = KillRequest {
        id: id.to_owned(),
        signal: 9,
        all: true,
        ..Default::default()
    };
    // It may have ended already, or was never there: what follows tells.
    let _ = client.kill(patience(), &kill).await;
    let wait = WaitRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    let _ = client.wait(patience(), &wait).await;
    let delete = DeleteRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    let answer = match client.delete(patience(), &delete).await {
        Ok(response) => Answer::Deleted(response),
        Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::NOT_FOUND => Answer::Gone,
        Err(_) => return Answer::None,
    };
    if ends {
        let shutdown = ShutdownRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        // It stays when it has other containers.
        let _ = client.shutdown(patience(), &shutdown).await;
    }
    answer
}

/// The shim that was started for a bundle.
struct Shim {
    pid: Pid,
}

impl Shim {
    fn of(bundle: &Path) -> Option<Self> {
        let pid = bundle_files::read(&bundle.join(bundle_files::PID))?;
        let pid = Pid::from_raw(pid.parse().ok()?)?;
        Some(Self { pid })
    }

    /// Waits a moment for its end, and then sees to it, if it is the one of the container `id`.
    /// The monitor ends with it.
    fn end(&self, id: &str) {
        let Ok(pidfd) = pidfd_open(self.pid, PidfdFlags::empty()) else {
            return;
        };
        // With the descriptor held, the number cannot become another's.
        if !self.is_a_shim() || !self.serves(id) {
            return;
        }
        if !has_ended(&pidfd, LAST_BREATH) {
            // An error means that it has just ended.
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            has_ended(&pidfd, LAST_BREATH);
        }
    }

    /// Whether the process was started for this container: the number may have become that of
    /// another pod's shim.
    fn serves(&self, id: &str) -> bool {
        let path = format!("/proc/{}/cmdline", self.pid.as_raw_nonzero());
        std::fs::read(path).is_ok_and(|words| says_id(&words, id))
    }

    /// Whether the process is this very program, and no later one of the number.
    fn is_a_shim(&self) -> bool {
        let program = |pid: &str| -> Option<PathBuf> {
            let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
            // Of a program that was replaced since, only the name is left.
            let name = path.file_name()?.to_str()?.to_owned();
            Some(name.trim_end_matches(" (deleted)").into())
        };
        let theirs = program(&self.pid.as_raw_nonzero().to_string());
        theirs.is_some() && theirs == program("self")
    }
}

/// Whether a command line, as /proc has it, is one of the shim of a container.
fn says_id(words: &[u8], id: &str) -> bool {
    let words: Vec<_> = words.split(|byte| *byte == 0).collect();
    words
        .windows(2)
        .any(|pair| pair == [&b"-id"[..], id.as_bytes()])
}

fn has_ended(pidfd: &impl std::os::fd::AsFd, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else {
            return false;
        };
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.is_ok_and(|ready| ready > 0),
        }
    }
}

/// Removes the pod's cgroup of the host, which outlives a shim that was killed.
fn remove_cgroup(bundle: &Path) {
    let spec = std::fs::read(bundle.join("config.json")).ok();
    let spec: Option<Value> = spec.and_then(|text| serde_json::from_slice(&text).ok());
    let path = spec
        .as_ref()
        .and_then(|spec| spec.pointer("/linux/cgroupsPath"))
        .and_then(Value::as_str);
    if let Some(path) = path.filter(|path| !path.is_empty()) {
        HostCgroup::remove(Path::new(path));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    fn bundle(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    #[test]
    fn the_shims_address_is_found_as_either_has_written_it() {
        let ours = bundle(&[(bundle_files::ADDRESS, "unix:///a")]);
        assert_eq!(address(ours.path()).as_deref(), Some("unix:///a"));
        let theirs = bundle(&[("bootstrap.json", r#"{"version":3,"address":"unix:///b"}"#)]);
        assert_eq!(address(theirs.path()).as_deref(), Some("unix:///b"));
        assert_eq!(address(bundle(&[]).path()), None);
    }

    #[test]
    fn a_container_of_a_dead_shim_was_killed() {
        let dir = bundle(&[]);
        let socket = dir.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let address = format!("unix://{}", socket.display());
        std::fs::write(dir.path().join(bundle_files::ADDRESS), address).unwrap();
        // A process that ended long ago, and none at all.
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        std::fs::write(dir.path().join(bundle_files::PID), child.id().to_string()).unwrap();
        let response = clean_up("c1", dir.path()).unwrap();
        assert_eq!(response.exit_status, 137);
        assert!(response.exited_at.seconds > 0);
        assert!(!socket.exists());
    }

    #[test]
    fn a_shim_is_known_by_the_container_that_it_was_started_for() {
        let words = b"/usr/bin/shim\0-namespace\0c1\0-id\0c2\0-address\0/a\0";
        assert!(says_id(words, "c2"));
        assert!(!says_id(words, "c1"));
        assert!(!says_id(words, "c"));
        assert!(!says_id(b"", ""));
    }

    #[test]
    fn a_process_that_is_no_shim_is_left_alone() {
        let mut child = Command::new("sleep")
            .arg("60")
            .process_group(0)
            .spawn()
            .unwrap();
        let pid = child.id().to_string();
        let dir = bundle(&[(bundle_files::PID, &pid)]);
        clean_up("c1", dir.path()).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
