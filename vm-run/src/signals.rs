//! Signals to `vm-run` are meant for the container.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that are passed on. Left out are those of faults, which the kernel would raise again
/// and again where they are handled (SIGBUS, SIGFPE, SIGILL, SIGSEGV), that tell this process
/// of its own files and children (SIGPIPE, SIGCHLD), that stop it (job control), and SIGWINCH,
/// which becomes a terminal's new size.
const FORWARDED: &[i32] = &[
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGSTKFLT,
    libc::SIGCONT,
    libc::SIGURG,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSYS,
];

/// Signals by which somebody wants this process to end.
const TERMINATING: &[i32] = &[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// The signal by which a container wants to be stopped. SIGTERM means it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StopSignal(Option<i32>);

impl StopSignal {
    /// Another than SIGTERM, if there is one.
    pub(crate) fn new(number: Option<i32>) -> Self {
        Self(number)
    }

    /// What the container is to be sent for a signal that has arrived.
    pub(crate) fn meant(self, signal: i32) -> i32 {
        match self.0 {
            Some(stop) if signal == libc::SIGTERM => stop,
            _ => signal,
        }
    }
}

/// The signals that have arrived.
#[derive(Debug)]
pub(crate) struct Signals {
    stop_signal: StopSignal,
    forwarded: Vec<(i32, Signal)>,
    window: Signal,
}

/// One that has arrived.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Arrived {
    /// For the container.
    Forward(i32),
    /// The terminal has another size.
    Window,
}

impl Arrived {
    /// The signal, if it is one by which somebody wants this process to end.
    pub(crate) fn terminating(self) -> Option<i32> {
        match self {
            Self::Forward(signal) if TERMINATING.contains(&signal) => Some(signal),
            _ => None,
        }
    }
}

impl Signals {
    /// Takes over all of them, for good; the container wants to be stopped by `stop_signal`.
    pub(crate) fn new(stop_signal: StopSignal) -> io::Result<Self> {
        // Real-time signals serve as stop signals, for systemd among others.
        let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
        let all = FORWARDED.iter().copied().chain(real_time);
        let forwarded = all
            .map(|number| Ok((number, signal(SignalKind::from_raw(number))?)))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            stop_signal,
            forwarded,
            window: signal(SignalKind::window_change())?,
        })
    }

    /// By what the container wants to be stopped.
    pub(crate) fn stop_signal(&self) -> StopSignal {
        self.stop_signal
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> Arrived {
        std::future::poll_fn(|context| {
            if self.window.poll_recv(context).is_ready() {
                return std::task::Poll::Ready(Arrived::Window);
            }
            for (number, signal) in &mut self.forwarded {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(Arrived::Forward(*number));
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// Waits for one by which somebody wants this process to end.
    pub(crate) async fn terminating(&mut self) -> i32 {
        loop {
            if let Some(signal) = self.next().await.terminating() {
                return signal;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_signal_to_stop_is_another_one() {
        let stop = StopSignal::new(Some(libc::SIGQUIT));
        assert_eq!(stop.meant(libc::SIGTERM), libc::SIGQUIT);
        assert_eq!(stop.meant(libc::SIGINT), libc::SIGINT);
        assert_eq!(StopSignal::default().meant(libc::SIGTERM), libc::SIGTERM);
    }

    #[tokio::test]
    async fn signals_arrive_by_their_number() {
        let mut signals = Signals::new(StopSignal::default()).unwrap();
        for number in [
            libc::SIGUSR1,
            libc::SIGTRAP,
            libc::SIGSTKFLT,
            libc::SIGURG,
            libc::SIGXCPU,
            libc::SIGXFSZ,
            libc::SIGSYS,
            libc::SIGABRT,
            libc::SIGRTMIN() + 3,
        ] {
            // SAFETY: the signal is handled; raising it changes no memory.
            unsafe { libc::raise(number) };
            assert_eq!(signals.next().await, Arrived::Forward(number));
        }
        // SAFETY: as above.
        unsafe { libc::raise(libc::SIGWINCH) };
        assert_eq!(signals.next().await, Arrived::Window);
        // SAFETY: as above.
        unsafe {
            libc::raise(libc::SIGUSR2);
            libc::raise(libc::SIGTERM);
        }
        assert_eq!(signals.terminating().await, libc::SIGTERM);
    }
}
