//! A process of the host that stands for one that was executed in a container: it passes
//! signals and terminal sizes on, and exits with the other one's status.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as BlockingStream;

use tokio::net::UnixStream;

use super::channel::{self, Caller};
use super::console;
use super::error::OciError;
use super::exec::Order;
use super::state::{Home, Root};
use super::wire::{self, Answer, Exec, Follow, Request};
use crate::signals::{Arrived, Signals, StopSignal};
use crate::terminal::Terminal;

/// The connection of a process that has been executed.
#[derive(Debug)]
pub(crate) struct Attendant {
    stream: UnixStream,
}

impl Attendant {
    /// Has the container's keeper execute a process on these descriptors.
    pub(crate) async fn execute(home: &Home, exec: &Exec) -> Result<Self, OciError> {
        let stdio = (io::stdin(), io::stdout(), io::stderr());
        let asked = || {
            let stream = home.connect()?;
            let stdio = [stdio.0.as_fd(), stdio.1.as_fd(), stdio.2.as_fd()];
            wire::send(&stream, &Request::Exec(exec.clone()), &stdio)?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        };
        // Nobody listens for a container that has just ended.
        let mut stream = asked().map_err(|_| OciError::ExecStopped)?;
        match wire::receive_async(&mut stream).await {
            Ok(Some(Answer::Executed)) => Ok(Self { stream }),
            answer => Err(failure(answer)),
        }
    }

    /// Waits for the end of the process; answers with its status.
    pub(crate) async fn until_its_end(
        self,
        mut signals: Signals,
        terminal: Option<&Terminal>,
    ) -> Result<u8, OciError> {
        let (mut from, mut to) = self.stream.into_split();
        let end = wire::receive_async(&mut from);
        tokio::pin!(end);
        loop {
            let arrived = tokio::select! {
                end = &mut end => return match end {
                    Ok(Some(Answer::Exited(status))) => Ok(status),
                    answer => Err(failure(answer)),
                },
                arrived = signals.next() => arrived,
            };
            let follow = match arrived {
                Arrived::Forward(signal) => Some(Follow::Signal(signal.unsigned_abs())),
                Arrived::Window => terminal
                    .and_then(|terminal| terminal.size().ok())
                    .map(|size| Follow::Resize(size.columns, size.rows)),
            };
            if let Some(follow) = follow
                && let Err(error) = wire::send_async(&mut to, &follow).await
            {
                log::debug!("{arrived:?}: {error}");
            }
        }
    }
}

/// An answer that is no good one.
fn failure(answer: io::Result<Option<Answer>>) -> OciError {
    match answer {
        Ok(Some(Answer::Failed(error))) => OciError::Other(error),
        Ok(Some(_)) => OciError::Nonsense,
        Ok(None) => OciError::Other("the container's keeper has ended".into()),
        Err(error) => OciError::system("the container's keeper")(error),
    }
}

/// The process that attends to one that was executed by `exec --detach`.
pub(crate) fn attend(root: &Root, id: &str) -> Result<u8, OciError> {
    let (order, channel): (Order, BlockingStream) = channel::take()?;
    let attended = attend_to(root, id, order, &channel);
    attended.inspect_err(|error| channel::fail(&channel, error))
}

fn attend_to(
    root: &Root,
    id: &str,
    order: Order,
    channel: &BlockingStream,
) -> Result<u8, OciError> {
    // Signals of the caller's terminal are not the process's.
    rustix::process::setsid().map_err(OciError::system("cannot start a session"))?;
    let home = root.open(id)?;
    let mut caller = Caller::new(channel.try_clone().map_err(OciError::system("channel"))?);
    let mut exec = order.exec;
    let terminal = match &order.console_socket {
        None => None,
        Some(socket) => {
            console::open(socket, None)?;
            let found = Terminal::find();
            Some(found.map_err(|error| OciError::Other(error.to_string()))?)
        }
    };
    if let Some(Ok(size)) = terminal.as_ref().map(Terminal::size) {
        exec.terminal = Some((size.columns, size.rows));
    }
    let runtime = crate::launch::runtime().map_err(OciError::system("cannot start"))?;
    let status = runtime.block_on(async {
        let signals = Signals::new(StopSignal::default())
            .map_err(OciError::system("cannot take over signals"))?;
        let attendant = Attendant::execute(&home, &exec).await?;
        // Without its caller it ends, and with it what it attends to.
        caller.done().await?;
        attendant.until_its_end(signals, terminal.as_ref()).await
    });
    runtime.shutdown_background();
    status
}
