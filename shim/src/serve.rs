//! The shim of a pod: serves until its lifetime is over.
//!
//! There is one thread, the main one: the monitor ends with the thread that
//! started it, and a thread of its own for each shim would be memory for each
//! pod. The mount namespace, too, is that thread's.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use nacre_pod::host::{HostError, PrivateMounts, enter_private_mounts};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::cli::Cli;
use crate::events;
use crate::guest::Guest;
use crate::handover::{Handover, HandoverError};
use crate::lifetime::Lifetime;
use crate::logger;
use crate::pod::PodGuest;
use crate::sandbox::Sandbox;
use crate::sandbox_service;
use crate::service;
use crate::socket;
use crate::tasks::Tasks;

/// How long the last answers and the last events may take.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
const LAST_EVENTS: Duration = Duration::from_secs(5);

/// Why a shim does not serve.
#[derive(Debug, Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Handover(#[from] HandoverError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("cannot serve: {0}")]
    System(#[from] io::Error),
    #[error("cannot serve: {0}")]
    Ttrpc(#[from] ttrpc::Error),
}

/// Serves the pod `cli.id`.
pub(crate) fn run(cli: &Cli) -> Result<(), ServeError> {
    let handover = Handover::receive()?;
    logger::start(cli.debug, &cli.namespace, &cli.id);
    let served = take_listener()
        .map_err(ServeError::from)
        .and_then(|listener| {
            let mounts = enter_private_mounts()?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(4)
                .build()?;
            let served = runtime.block_on(serve(cli, &handover, mounts, listener));
            // A thread that writes to a file that hangs is not waited for.
            runtime.shutdown_background();
            served
        });
    if let Err(error) = &served {
        // The log is all that containerd sees of it.
        log::error!("{error}");
        socket::remove(&socket::path(&handover.address));
    }
    served
}

/// The listening socket that was handed over as standard input.
fn take_listener() -> io::Result<UnixListener> {
    let socket = rustix::io::dup(rustix::stdio::stdin())?;
    let null = File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    Ok(socket.into())
}

async fn serve(
    cli: &Cli,
    handover: &Handover,
    mounts: PrivateMounts,
    listener: UnixListener,
) -> Result<(), ServeError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (publisher, delivery) = events::publisher(&cli.namespace, &handover.ttrpc_address);
    let guest: Arc<dyn Guest> = Arc::new(PodGuest::new(mounts, handover.config.clone()));
    let lifetime = Arc::new(Lifetime::new(socket::path(&handover.address)));
    let tasks = Tasks::new(guest.clone(), publisher, &cli.namespace, lifetime.clone());
    let sandbox = Sandbox::new(&cli.id, guest.clone(), tasks.clone(), lifetime.clone());
    let mut server = Server::new()
        .add_listener(Listener::try_from(listener)?)
        .register_service(service::services(&tasks))
        .register_service(sandbox_service::services(&sandbox));
    server.start().await?;
    log::info!("serving at {}", handover.address);

    let signal = tokio::select! {
        () = lifetime.over() => None,
        _ = terminate.recv() => Some("SIGTERM"),
        _ = interrupt.recv() => Some("SIGINT"),
    };
    if let Some(signal) = signal {
        log::warn!("{signal}: the pod ends");
        lifetime.end(&*guest).await;
        // Their last events are for containerd.
        let _ = tokio::time::timeout(LAST_ANSWERS, tasks.stopped()).await;
    }
    if tokio::time::timeout(LAST_ANSWERS, server.shutdown())
        .await
        .is_err()
    {
        log::debug!("a connection stays open");
    }
    delivery.finish(LAST_EVENTS).await;
    log::info!("gone");
    Ok(())
}
