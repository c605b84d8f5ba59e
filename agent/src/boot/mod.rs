//! From the kernel's first call of `/init` to an agent that serves.
//!
//! Every step here is waited for by the first container, so there are few.

pub(crate) mod limits;
mod mounts;
mod power;
mod root;
mod stdio;

use std::path::PathBuf;

use nacre_protocol::{AGENT_PORT, READY_PORT, STREAM_PORT};

pub use power::reboot;

use crate::error::{Doing, Error};
use crate::service::{Serve, serve};
use crate::transport::{Listener, Socket};
use crate::{log, pod};

/// Prepares the guest, serves the host, and comes back when the guest is to go
/// down.
///
/// # Errors
/// When a step fails without which no container can run.
pub fn run() -> Result<(), Error> {
    mounts::early()?;
    stdio::to_null()?;
    log::to_kernel().doing("cannot open /dev/kmsg")?;
    std::panic::set_hook(Box::new(|panic| ::log::error!("{panic}")));
    root::make_movable()?;
    mounts::rest()?;
    root::seal()?;
    protect_from_oom()?;
    limits::lift()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing("cannot start the runtime")?;
    runtime.block_on(serve_host(program()?))
}

/// The agent's own program, as the kernel was told to start it.
fn program() -> Result<PathBuf, Error> {
    let name = std::env::args_os().next();
    name.map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .ok_or_else(|| Error::Internal("the kernel started the agent without a path".to_owned()))
}

/// The pod is of no use without its agent.
fn protect_from_oom() -> Result<(), Error> {
    std::fs::write("/proc/self/oom_score_adj", "-1000").doing("/proc/self/oom_score_adj")
}

async fn serve_host(binary: PathBuf) -> Result<(), Error> {
    pod::loopback_up().await?;
    let service = serve(Serve {
        control: Listener::vsock(AGENT_PORT).doing("cannot listen for calls")?,
        streams: Listener::vsock(STREAM_PORT).doing("cannot listen for streams")?,
        binary,
    })
    .await
    .map_err(|error| Error::internal("cannot serve", error))?;
    let ready = Socket::connect_host(READY_PORT).doing("cannot tell the host to be ready")?;
    tokio::select! {
        () = service.shut_down() => {}
        () = host_gone(&ready) => ::log::warn!("the host is gone"),
    }
    Ok(())
}

/// Returns when the host has closed the connection, on which it sends nothing.
async fn host_gone(ready: &Socket) {
    let mut byte = [0];
    while ready.receive(&mut byte).await.is_ok_and(|count| count > 0) {}
}
