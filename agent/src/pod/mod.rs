//! What the containers of the pod share: made ready once, before the first.

mod clock;
pub(crate) mod cpus;
pub(crate) mod disks;
mod entropy;
mod files;
mod hostname;
mod network;
pub(crate) mod port;

pub use network::loopback_up;

use nacre_protocol::agent::{SetUpPodRequest, UpdateNetworkRequest};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use self::network::Network;
use crate::container::set_sysctls;
use crate::error::Error;

/// The guest as a pod. One change at a time: a second set-up finds all of it done.
#[derive(Default)]
pub(crate) struct Pod {
    network: Mutex<Network>,
    /// Held while CPUs come and go.
    cpus: Mutex<()>,
}

impl Pod {
    /// Does what is asked for and not yet so.
    pub(crate) async fn set_up(&self, request: &SetUpPodRequest) -> Result<(), Error> {
        let mut network = self.network.lock().await;
        clock::set(request.realtime_ns)?;
        entropy::add(&request.entropy)?;
        hostname::set(&request.hostname)?;
        files::write(request)?;
        cpus::bring_online(request.cpus)?;
        network
            .configure(&request.interfaces, &request.policy_rules)
            .await?;
        // Last: some are of an interface.
        set_sysctls(&request.sysctls)
    }

    /// Makes the network what it is now to be.
    pub(crate) async fn update_network(&self, request: &UpdateNetworkRequest) -> Result<(), Error> {
        let mut network = self.network.lock().await;
        network
            .configure(&request.interfaces, &request.policy_rules)
            .await
    }

    /// Has as many CPUs online as are asked for. That takes a while for each, in which other
    /// calls are served.
    pub(crate) async fn set_cpus(&self, wanted: u32) -> Result<(), Error> {
        let _one_at_a_time = self.cpus.lock().await;
        let done = spawn_blocking(move || cpus::set_online(wanted)).await;
        done.map_err(|panic| Error::internal("the agent failed", panic))?
    }
}
