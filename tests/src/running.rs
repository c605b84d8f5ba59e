//! Programs, started and watched.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::patience;

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output, unless the test has taken that.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl Ended {
    /// The exit status, 128+n for a signal as in a shell.
    #[must_use]
    pub fn code(&self) -> i32 {
        let signal = self.status.signal().map(|signal| 128 + signal);
        self.status.code().or(signal).unwrap_or(-1)
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails unless this was the exit status.
    ///
    /// # Panics
    /// When it was another; all that was said is shown.
    #[must_use]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(self.code() == code, "not status {code}: {self}");
        self
    }

    /// Fails unless standard output has this line.
    ///
    /// # Panics
    /// When it has not.
    pub fn assert_line(&self, line: &str) {
        let text = self.text();
        assert!(
            text.lines().any(|other| other == line),
            "no line {line:?}: {self}"
        );
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stdout = if self.stdout.len() > 8192 {
            format!("({} bytes)", self.stdout.len())
        } else {
            self.text()
        };
        write!(
            f,
            "{}\n--- stdout\n{stdout}\n--- stderr\n{}\n---",
            self.status, self.stderr
        )
    }
}

/// A program that runs. It is killed when it is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<Collector>,
    stderr: Collector,
}

impl Running {
    /// Runs a command without input until it has ended.
    #[must_use]
    pub fn to_the_end(mut command: Command) -> Ended {
        command.stdin(Stdio::null());
        Self::start(command).wait()
    }

    /// Starts a command; what it prints is collected. What it reads is the
    /// command's to say.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a program in PATH");
        Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(Collector::new),
            stderr: Collector::new(child.stderr.take().unwrap()),
            child,
        }
    }

    /// Starts a command whose output the test reads itself.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_unread(mut command: Command) -> (Self, impl Read + use<>) {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a program in PATH");
        let stdout = child.stdout.take().unwrap();
        let running = Self {
            stdin: None,
            stdout: None,
            stderr: Collector::new(child.stderr.take().unwrap()),
            child,
        };
        (running, stdout)
    }

    /// Its process identifier.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a line with this text was printed to standard output.
    ///
    /// # Panics
    /// When it was not, in time or before the end.
    pub fn wait_for(&mut self, text: &str) {
        let start = Instant::now();
        loop {
            // Before the look at what was said: nothing comes after the end.
            let ended = self.child.try_wait().unwrap();
            let said = self.said();
            if said.contains(text) {
                return;
            }
            assert!(
                ended.is_none() && start.elapsed() < patience(),
                "no {text:?} (ended: {ended:?})\n--- stdout\n{said}\n--- stderr\n{}",
                self.stderr.text()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What it has printed to standard output until now.
    #[must_use]
    pub fn said(&self) -> String {
        self.stdout
            .as_ref()
            .map(Collector::text)
            .unwrap_or_default()
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// When it reads no more.
    ///
    /// # Panics
    /// When standard input was closed.
    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stdin.as_mut().expect("an open input").write_all(bytes)
    }

    /// Ends its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Waits until it has ended; input that is open is ended first.
    ///
    /// # Panics
    /// When it does not end in time.
    #[must_use]
    pub fn wait(mut self) -> Ended {
        self.stdin = None;
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                start.elapsed() < patience(),
                "it does not end\n--- stdout\n{}\n--- stderr\n{}",
                self.said(),
                self.stderr.text()
            );
            std::thread::sleep(Duration::from_millis(20));
        };
        Ended {
            status,
            stdout: self
                .stdout
                .as_mut()
                .map(Collector::finish)
                .unwrap_or_default(),
            stderr: String::from_utf8_lossy(&self.stderr.finish()).into_owned(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to a process that must be there.
///
/// # Panics
/// When it is not.
pub fn kill(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Reads to the end, on a thread of its own.
#[derive(Debug)]
struct Collector {
    bytes: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    fn new(mut source: impl Read + Send + 'static) -> Self {
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        let collected = bytes.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(len @ 1..) = source.read(&mut buffer) {
                collected.lock().unwrap().extend_from_slice(&buffer[..len]);
            }
        });
        Self {
            bytes,
            thread: Some(thread),
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// All there was. Call it when the writer has ended.
    fn finish(&mut self) -> Vec<u8> {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        std::mem::take(&mut self.bytes.lock().unwrap())
    }
}
