//! The shim of a pod: serves until its lifetime is over.
//!
//! There is one thread, the main one: the monitor ends with the thread that
//! started it, and a thread of its own for each shim would be memory for each
//! pod. The mount namespace, too, is that thread's.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nacre_pod::host::{HostError, PrivateMounts, RuntimeNamespaces, enter_private_mounts};
use nacre_pod::status::{Entry, Identity};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::cli::Cli;
use crate::events;
use crate::guest::Guest;
use crate::handover::{Handover, HandoverError};
use crate::launch;
use crate::lifetime::Lifetime;
use crate::logger;
use crate::pod::PodGuest;
use crate::sandbox::Sandbox;
use crate::sandbox_service;
use crate::service;
use crate::socket;
use crate::status::Status;
use crate::tasks::Tasks;

/// How long the last answers and the last events may take.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
const LAST_EVENTS: Duration = Duration::from_secs(5);

/// How many file systems may hang, and logs of containers on them, before the rest waits.
const BLOCKING_THREADS: usize = 16;

/// Why a shim does not serve.
#[derive(Debug, Error)]
pub(crate) enum ServeError {
    #[error(transparent)]
    Handover(#[from] HandoverError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("\"start\" has ended without handing over the pod's socket")]
    Abandoned,
    #[error("cannot serve: {0}")]
    System(#[from] io::Error),
    #[error("cannot serve: {0}")]
    Ttrpc(#[from] ttrpc::Error),
}

/// Serves the pod `cli.id`.
pub(crate) fn run(cli: &Cli) -> Result<(), ServeError> {
    let handover = Handover::receive()?;
    logger::start(cli.debug, &cli.namespace, &cli.id);
    let socket = socket::path(&handover.address);
    let served = serve_what_is_given(cli, &handover);
    if let Err(error) = &served {
        // The log is all that containerd sees of it.
        log::error!("{error}");
        if let ServeError::Abandoned = error {
            socket::remove_dead(&socket);
        } else {
            if let Some(key) = socket::key(&socket) {
                nacre_pod::status::remove(key);
            }
            socket::remove(&socket);
        }
    }
    served
}

fn serve_what_is_given(cli: &Cli, handover: &Handover) -> Result<(), ServeError> {
    let host = Arc::new(RuntimeNamespaces::remember()?);
    let mounts = enter_private_mounts()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    let listener = take_listener()?.ok_or(ServeError::Abandoned)?;
    let served = runtime.block_on(serve(cli, handover, (mounts, host), listener));
    // A thread that writes to a file that hangs is not waited for.
    runtime.shutdown_background();
    served
}

/// The listening socket, which `start` hands over on standard input.
fn take_listener() -> io::Result<Option<UnixListener>> {
    let listener = launch::take(rustix::stdio::stdin())?;
    let null = File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(listener)
}

/// Makes the pod's entry, by which operators find it. A pod without one works all the same.
fn enter(cli: &Cli, socket: &Path) -> Option<(Arc<Entry>, tokio::net::UnixListener)> {
    let identity = Identity {
        id: cli.id.clone(),
        containerd_namespace: cli.namespace.clone(),
        shim_pid: std::process::id(),
        ..Identity::default()
    };
    let claimed = Entry::claim(socket::key(socket)?, identity);
    let (entry, listener) = claimed.map_err(|error| no_entry(&error)).ok()?;
    match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => Some((Arc::new(entry), listener)),
        Err(error) => {
            entry.remove();
            no_entry(&error);
            None
        }
    }
}

fn no_entry(error: &io::Error) {
    log::warn!(
        "operators will not see this pod: {}: {error}",
        nacre_pod::status::PODS
    );
}

async fn serve(
    cli: &Cli,
    handover: &Handover,
    (mounts, host): (PrivateMounts, Arc<RuntimeNamespaces>),
    listener: UnixListener,
) -> Result<(), ServeError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (publisher, delivery) = events::publisher(&cli.namespace, &handover.ttrpc_address);
    let socket = socket::path(&handover.address);
    let (entry, operators) = enter(cli, &socket).unzip();
    let config = handover.config.clone();
    let guest: Arc<dyn Guest> = Arc::new(PodGuest::new(mounts, host, config, entry.clone()));
    let lifetime = Arc::new(Lifetime::new(socket).with_entry(entry));
    let tasks = Tasks::new(guest.clone(), publisher, &cli.namespace, lifetime.clone());
    let sandbox = Sandbox::new(&cli.id, guest.clone(), tasks.clone(), lifetime.clone());
    let mut server = Server::new()
        .add_listener(Listener::try_from(listener)?)
        .register_service(service::services(&tasks))
        .register_service(sandbox_service::services(&sandbox));
    server.start().await?;
    if let Some(operators) = operators {
        let status = Status::new(guest.clone(), tasks.clone());
        let answer = move |path| status.clone().answer(path);
        tokio::spawn(nacre_pod::status::serve(operators, answer));
    }
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
