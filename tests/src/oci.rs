//! An OCI runtime's command line, of `vm-run` or of runc.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Ended, TestBundle, patience, wait_until};

/// A runtime with containers of its own. Dropping it deletes them.
#[derive(Debug)]
pub struct OciRuntime {
    program: &'static str,
    dir: TempDir,
}

impl OciRuntime {
    /// `vm-run`.
    #[must_use]
    pub fn vm_run() -> Self {
        Self::new("vm-run")
    }

    /// runc, to compare with.
    #[must_use]
    pub fn runc() -> Self {
        Self::new("runc")
    }

    fn new(program: &'static str) -> Self {
        let dir = tempfile::Builder::new().prefix("nacre-test-").tempdir();
        Self {
            program,
            dir: dir.expect("a directory for the runtime"),
        }
    }

    /// Name of its program.
    #[must_use]
    pub fn program(&self) -> &'static str {
        self.program
    }

    /// A file of the test's own, which goes with the runtime.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory of its containers' states.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// A command line of it, without input.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command.arg("--root").arg(self.root()).args(args);
        command.stdin(Stdio::null());
        command
    }

    /// Carries a command line out until it ends. A container that it makes keeps its
    /// output, which goes to a file therefore; see [`OciRuntime::output`].
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn call(&self, args: &[&str]) -> Ended {
        self.end(self.command(args))
    }

    /// As [`OciRuntime::call`], of a command.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn end(&self, command: Command) -> Ended {
        let before = self.said();
        let child = self.spawn(command);
        let mut ended = wait(child);
        let (stdout, stderr) = self.said();
        ended.stdout = stdout[before.0.len()..].to_vec();
        ended.stderr = String::from_utf8_lossy(&stderr[before.1.len()..]).into_owned();
        ended
    }

    /// Starts a command whose output goes to the same files.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&self, mut command: Command) -> Child {
        let append = |name| {
            let mut options = File::options();
            let file = options.append(true).create(true).open(self.path(name));
            Stdio::from(file.unwrap())
        };
        command.stdout(append("stdout")).stderr(append("stderr"));
        command.spawn().expect("a program in PATH")
    }

    /// Waits for the end of a program that was started by [`OciRuntime::spawn`]; what it
    /// has said is among all that was said.
    ///
    /// # Panics
    /// When it does not come in time.
    #[must_use]
    pub fn wait(&self, child: Child) -> Ended {
        let mut ended = wait(child);
        let (stdout, stderr) = self.said();
        ended.stdout = stdout;
        ended.stderr = String::from_utf8_lossy(&stderr).into_owned();
        ended
    }

    /// All that it and its containers have printed to standard output.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.said().0).into_owned()
    }

    fn said(&self) -> (Vec<u8>, Vec<u8>) {
        let read = |name| fs::read(self.path(name)).unwrap_or_default();
        (read("stdout"), read("stderr"))
    }

    /// Creates a container that must come about.
    pub fn create(&self, id: &str, bundle: &TestBundle) {
        bundle.write();
        let dir = path(bundle.path());
        let _ = self.call(&["create", "--bundle", dir, id]).expect_code(0);
    }

    /// Creates and starts a container that must come about.
    pub fn run_detached(&self, id: &str, bundle: &TestBundle) {
        self.create(id, bundle);
        let _ = self.call(&["start", id]).expect_code(0);
    }

    /// The state of a container, null when there is none.
    ///
    /// # Panics
    /// When the answer is no JSON.
    #[must_use]
    pub fn state(&self, id: &str) -> Value {
        let ended = self.call(&["state", id]);
        if ended.code() == 0 {
            serde_json::from_slice(&ended.stdout).expect("the state as JSON")
        } else {
            Value::Null
        }
    }

    /// Status of a container, empty when there is none.
    #[must_use]
    pub fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap_or("").to_owned()
    }

    /// Process identifier of a container.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn pid(&self, id: &str) -> u32 {
        let pid = self.state(id)["pid"].as_u64().expect("a number");
        u32::try_from(pid).unwrap()
    }

    /// Waits until a container has this status.
    pub fn wait_for_status(&self, id: &str, status: &str) {
        wait_until(&format!("{id} is {status}"), || self.status(id) == status);
    }

    /// Waits until containers have printed this.
    pub fn wait_for_output(&self, text: &str) {
        wait_until(&format!("{text:?} was printed"), || {
            self.output().contains(text)
        });
    }
}

impl Drop for OciRuntime {
    fn drop(&mut self) {
        for id in crate::proc::names(&self.root()) {
            let _ = self.command(&["delete", "--force", &id]).status();
        }
    }
}

fn wait(mut child: Child) -> Ended {
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(start.elapsed() < patience(), "it does not end");
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    Ended {
        status,
        stdout: Vec::new(),
        stderr: String::new(),
    }
}

/// A path as an argument.
///
/// # Panics
/// When it is no text.
#[must_use]
pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a bundle to its end under `vm-run` and under runc, in this order.
///
/// # Panics
/// When one does not end in time.
#[must_use]
pub fn run_both(bundle: &TestBundle) -> [Ended; 2] {
    bundle.write();
    [OciRuntime::vm_run(), OciRuntime::runc()]
        .map(|runtime| runtime.call(&["run", "--bundle", path(bundle.path()), "x"]))
}

/// The outer side of a terminal that a runtime has made.
#[derive(Debug)]
pub struct Console {
    side: File,
    screen: std::sync::Arc<std::sync::Mutex<(Vec<u8>, bool)>>,
}

impl Console {
    /// Takes it from a runtime that connects to a console socket.
    ///
    /// # Panics
    /// When none comes.
    #[must_use]
    pub fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 64];
        let mut name = [IoSliceMut::new(&mut name)];
        recvmsg(&stream, &mut name, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
        let side = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let side = File::from(side.expect("a descriptor"));
        let screen = std::sync::Arc::<std::sync::Mutex<(Vec<u8>, bool)>>::default();
        let (shown, mut output) = (screen.clone(), side.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = output.read(&mut buffer) {
                shown.lock().unwrap().0.extend_from_slice(&buffer[..len]);
            }
            shown.lock().unwrap().1 = true;
        });
        Self { side, screen }
    }

    /// Presses keys.
    ///
    /// # Panics
    /// When nobody has the terminal any more.
    pub fn press(&mut self, keys: &str) {
        self.side.write_all(keys.as_bytes()).unwrap();
    }

    /// Changes the size of the window.
    ///
    /// # Panics
    /// When nobody has the terminal any more.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&self.side, size).unwrap();
    }

    /// All that was shown until now.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap().0).into_owned()
    }

    /// Waits until this was shown.
    pub fn wait_for(&self, text: &str) {
        wait_until(&format!("{text:?} is shown"), || {
            self.screen().contains(text)
        });
    }

    /// Waits until nobody has the other side any more.
    pub fn wait_for_end(&self) {
        wait_until("the terminal is hung up", || self.screen.lock().unwrap().1);
    }
}
