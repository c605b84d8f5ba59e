//! The PID namespace that containers of a pod may share.
//!
//! A namespace lives as long as its first process. That is a container's when the
//! host makes one `POD_INIT`, as the pause container of engines is, and else a
//! process of the agent's that does nothing ([`parked`]).

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacre_protocol::agent::{self as request, PidNamespace};

use super::helper_process::{HelperProcess, Role};
use super::process::Process;
use super::report::ParkRequest;
use super::{Guest, stdio, verdict};
use crate::error::{Doing, Error};

/// A PID namespace, as a descriptor.
pub(super) type Namespace = Arc<OwnedFd>;

/// Who holds the pod's PID namespace.
#[derive(Default)]
enum Holder {
    #[default]
    Nobody,
    /// A container that is being created.
    Coming,
    Container(Namespace, Arc<Process>),
    Parked(Namespace, Process),
}

/// The pod's PID namespace, which is made when a container first asks for it.
#[derive(Default)]
pub(crate) struct PodPidNamespace {
    holder: Mutex<Holder>,
    /// Held while a process is being parked.
    parking: tokio::sync::Mutex<()>,
}

/// The PID namespace of a container that is being created.
pub(super) enum Choice {
    /// One of its own, as its specification must say.
    Own,
    /// This one.
    Join(Namespace),
    /// A new one that becomes the pod's.
    Hold(Held),
}

/// Makes a container the holder of the pod's PID namespace, until it is dropped.
pub(super) struct Held(Arc<PodPidNamespace>);

impl Choice {
    /// The namespace that a request asks for.
    pub(super) async fn make(
        guest: &Guest,
        request: &request::CreateContainerRequest,
    ) -> Result<Self, Error> {
        let pod = &guest.pid_namespace;
        match request.pid_namespace.enum_value() {
            Ok(PidNamespace::OWN) => Ok(Self::Own),
            Ok(PidNamespace::POD) => pod.join(guest).await.map(Self::Join),
            Ok(PidNamespace::POD_INIT) => PodPidNamespace::hold(pod).await.map(Self::Hold),
            Err(number) => {
                let message = format!("pid_namespace: {number} has no meaning");
                Err(Error::InvalidArgument(message))
            }
        }
    }
}

impl Choice {
    /// What the container's builder is to join.
    pub(super) fn joined(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Join(namespace) => Some(namespace.as_fd()),
            Self::Own | Self::Hold(_) => None,
        }
    }

    /// What the container keeps for as long as it is known.
    pub(super) fn held(self) -> Option<Held> {
        match self {
            Self::Hold(held) => Some(held),
            Self::Own | Self::Join(_) => None,
        }
    }
}

impl PodPidNamespace {
    fn lock(&self) -> MutexGuard<'_, Holder> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod's namespace; a process is parked for it when nobody holds one.
    async fn join(&self, guest: &Guest) -> Result<Namespace, Error> {
        let _parking = self.parking.lock().await;
        match &*self.lock() {
            Holder::Container(_, init) if init.exit().is_some() => {
                let message = "the container that holds the pod's PID namespace has stopped";
                return Err(Error::FailedPrecondition(message.to_owned()));
            }
            Holder::Coming => {
                let message = "the pod's PID namespace is being made by another container";
                return Err(Error::FailedPrecondition(message.to_owned()));
            }
            Holder::Container(namespace, _) => return Ok(namespace.clone()),
            Holder::Parked(namespace, process) if process.exit().is_none() => {
                return Ok(namespace.clone());
            }
            Holder::Parked(..) | Holder::Nobody => {}
        }
        let (namespace, process) = park(guest).await?;
        *self.lock() = Holder::Parked(namespace.clone(), process);
        Ok(namespace)
    }

    /// Keeps the place for a container that is to be the holder.
    async fn hold(pod: &Arc<Self>) -> Result<Held, Error> {
        let _parking = pod.parking.lock().await;
        let mut holder = pod.lock();
        match &*holder {
            Holder::Nobody => {}
            Holder::Parked(_, process) if process.exit().is_some() => {}
            _ => {
                let message = "pid_namespace: the pod has a PID namespace already";
                return Err(Error::FailedPrecondition(message.to_owned()));
            }
        }
        *holder = Holder::Coming;
        Ok(Held(Arc::clone(pod)))
    }
}

impl Held {
    /// Makes the namespace of a container's first process the pod's.
    pub(super) fn settle(&self, init: &Arc<Process>) -> Result<(), Error> {
        let namespace = namespace_of(init)?;
        *self.0.lock() = Holder::Container(namespace, Arc::clone(init));
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.lock() = Holder::Nobody;
    }
}

fn namespace_of(process: &Process) -> Result<Namespace, Error> {
    let file = format!("/proc/{}/ns/pid", process.pid());
    let file = File::open(file).doing("cannot open the pod's PID namespace")?;
    Ok(Arc::new(file.into()))
}

/// Has a process parked in a PID namespace of its own.
async fn park(guest: &Guest) -> Result<(Namespace, Process), Error> {
    let helper = HelperProcess::spawn(guest, Role::Park, stdio::nothing()?)?;
    let built = helper.build(&ParkRequest {}, &[]).await?;
    let (process, verdict) = built.adopt(helper, stdio::Kept::Nothing, None)?;
    verdict::read(verdict).await?;
    Ok((namespace_of(&process)?, process))
}
