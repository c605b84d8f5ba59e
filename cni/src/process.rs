//! A plugin's process, which is trusted with nothing but its own work: it gets a clean
//! environment, three pipes and no other descriptor, a bounded time, and a bounded
//! number of bytes to say something.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, read, write};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, kill_process_group, pidfd_open,
    set_parent_process_death_signal,
};

/// Most bytes of standard output; a result is far smaller.
pub(crate) const MAX_STDOUT: usize = 1 << 20;
/// Bytes of standard error that are kept; the rest is read and dropped.
const MAX_STDERR: usize = 16 << 10;
/// Bytes read at a time; a pipe holds 64 KiB.
const CHUNK: usize = 64 << 10;
/// Chunks that are read after a plugin's end, when a child of its may still write.
const CHUNKS_AFTER_END: usize = 32;
/// How long a killed process may take to end. One that the kernel holds is left alone.
const KILL_TIME: Duration = Duration::from_secs(2);
/// How long a plugin's file may be open for writing, as it is during an upgrade.
const BUSY_TIME: Duration = Duration::from_secs(2);
/// Between two looks at such a file.
const BUSY_STEP: Duration = Duration::from_millis(10);

/// What a process said, and how it ended.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Why there is nothing of the kind.
pub(crate) enum Unfinished {
    /// It could not be executed.
    NotStarted(io::Error),
    /// It took longer than the deadline, and was killed.
    TimedOut { stderr: Vec<u8> },
    /// It wrote more than [`MAX_STDOUT`], and was killed.
    TooMuchOutput,
    /// A system call failed; it was killed.
    Failed(io::Error),
}

impl From<Errno> for Unfinished {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno.into())
    }
}

/// Executes `program` with `input` on its standard input and waits for its end.
pub(crate) fn run(
    program: &Path,
    environment: &[(&str, OsString)],
    input: &[u8],
    deadline: Duration,
) -> Result<Finished, Unfinished> {
    let child = start(program, environment).map_err(Unfinished::NotStarted)?;
    let mut process = Process::new(child)?;
    process.serve(input, Instant::now() + deadline)?;
    process.finish()
}

fn start(program: &Path, environment: &[(&str, OsString)]) -> io::Result<Child> {
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs(environment.iter().map(|(key, value)| (key, value)))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Of its own, so that it can be killed with its children.
        .process_group(0);
    let parent = getpid();
    // SAFETY: between fork and exec, the closure makes system calls and nothing else:
    // no allocation, no lock.
    unsafe {
        command.pre_exec(move || {
            close_descriptors_on_exec()?;
            die_with(parent)
        });
    }
    let until = Instant::now() + BUSY_TIME;
    loop {
        match command.spawn() {
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < until =>
            {
                thread::sleep(BUSY_STEP);
            }
            other => return other,
        }
    }
}

/// Descriptors that another part of the program opened without `O_CLOEXEC`.
fn close_descriptors_on_exec() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: marks descriptors of this process to be closed by exec; it takes no
    // pointer and closes nothing yet.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A plugin that outlived its runtime would go on making what a later `DEL` has already
/// removed. The signal comes when the thread ends that started the plugin; that one
/// waits for it.
fn die_with(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() == Some(parent) {
        Ok(())
    } else {
        Err(io::ErrorKind::Interrupted.into())
    }
}

/// A running plugin; dropping it kills it.
struct Process {
    child: Child,
    group: Pid,
    pidfd: OwnedFd,
    stdin: Option<OwnedFd>,
    stdout: Output,
    stderr: Output,
    ended: bool,
}

/// One of the pipes that a plugin writes to.
struct Output {
    pipe: Option<OwnedFd>,
    bytes: Vec<u8>,
    keep: usize,
    overflowed: bool,
}

impl Process {
    fn new(mut child: Child) -> Result<Self, Unfinished> {
        let group = Pid::from_child(&child);
        let mut pipes = || -> rustix::io::Result<_> {
            let pipes = (
                child.stdin.take().map(OwnedFd::from),
                child.stdout.take().map(OwnedFd::from),
                child.stderr.take().map(OwnedFd::from),
            );
            for pipe in [&pipes.0, &pipes.1, &pipes.2].into_iter().flatten() {
                ioctl_fionbio(pipe, true)?;
            }
            Ok((pipes, pidfd_open(group, PidfdFlags::empty())?))
        };
        match pipes() {
            Ok(((stdin, stdout, stderr), pidfd)) => Ok(Self {
                child,
                group,
                pidfd,
                stdin,
                stdout: Output::new(stdout, MAX_STDOUT),
                stderr: Output::new(stderr, MAX_STDERR),
                ended: false,
            }),
            Err(errno) => {
                let _ = kill_process_group(group, Signal::KILL);
                let _ = child.wait();
                Err(errno.into())
            }
        }
    }

    /// Moves bytes until the process ends.
    fn serve(&mut self, mut input: &[u8], deadline: Instant) -> Result<(), Unfinished> {
        loop {
            if input.is_empty() {
                self.stdin = None;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let stderr = std::mem::take(&mut self.stderr.bytes);
                return Err(Unfinished::TimedOut { stderr });
            }
            if self.wait_for_something(left)? {
                self.ended = true;
                return Ok(());
            }
            self.feed(&mut input);
            self.stdout.read_chunk()?;
            self.stderr.read_chunk()?;
            if self.stdout.overflowed {
                return Err(Unfinished::TooMuchOutput);
            }
        }
    }

    /// Whether the process has ended; else there is something to read or write, or
    /// the time is up.
    fn wait_for_something(&self, at_most: Duration) -> Result<bool, Unfinished> {
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        if let Some(stdin) = &self.stdin {
            fds.push(PollFd::new(stdin, PollFlags::OUT));
        }
        for output in [&self.stdout, &self.stderr] {
            if let Some(pipe) = &output.pipe {
                fds.push(PollFd::new(pipe, PollFlags::IN));
            }
        }
        let timeout = Timespec::try_from(at_most).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(!fds[0].revents().is_empty()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes what the pipe takes. A plugin need not read its configuration.
    fn feed(&mut self, input: &mut &[u8]) {
        let Some(stdin) = &self.stdin else { return };
        match write(stdin, input) {
            Ok(count) => *input = &input[count..],
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => *input = &[],
        }
    }

    /// Takes what the ended process left in its pipes. A child that it left behind may
    /// hold them open, so the end of the stream is not waited for.
    fn finish(mut self) -> Result<Finished, Unfinished> {
        let status = self.child.wait().map_err(Unfinished::Failed)?;
        for output in [&mut self.stdout, &mut self.stderr] {
            for _ in 0..CHUNKS_AFTER_END {
                if !output.read_chunk()? {
                    break;
                }
            }
        }
        if self.stdout.overflowed {
            return Err(Unfinished::TooMuchOutput);
        }
        Ok(Finished {
            status,
            stdout: std::mem::take(&mut self.stdout.bytes),
            stderr: std::mem::take(&mut self.stderr.bytes),
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // It has not been waited for, so that its id is still its own.
        let _ = kill_process_group(self.group, Signal::KILL);
        if ends_within(self.pidfd.as_fd(), KILL_TIME) {
            let _ = self.child.wait();
        }
    }
}

fn ends_within(pidfd: BorrowedFd<'_>, time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], timeout.as_ref()) {
            Err(Errno::INTR) => {}
            result => return result.is_ok_and(|count| count > 0),
        }
    }
}

impl Output {
    fn new(pipe: Option<OwnedFd>, keep: usize) -> Self {
        Self {
            pipe,
            bytes: Vec::new(),
            keep,
            overflowed: false,
        }
    }

    /// Reads once, without waiting; false when there was nothing.
    fn read_chunk(&mut self) -> Result<bool, Unfinished> {
        let Some(pipe) = &self.pipe else {
            return Ok(false);
        };
        let mut chunk = [0; CHUNK];
        match read(pipe, &mut chunk) {
            Ok(0) => {
                self.pipe = None;
                Ok(false)
            }
            Ok(count) => {
                let room = self.keep - self.bytes.len();
                self.overflowed |= count > room;
                self.bytes.extend_from_slice(&chunk[..count.min(room)]);
                Ok(true)
            }
            Err(Errno::AGAIN) => Ok(false),
            Err(Errno::INTR) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
#[path = "process_test.rs"]
mod tests;
