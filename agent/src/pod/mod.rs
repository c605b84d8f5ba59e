//! What the containers of the pod share: made ready once, before the first.

mod clock;
pub(crate) mod cpus;
mod entropy;
mod hostname;
mod network;
mod resolv;

pub use network::loopback_up;

use nacre_protocol::agent::SetUpPodRequest;
use tokio::sync::Mutex;

use crate::error::Error;

/// The guest as a pod. One setup at a time: a second call finds all of it done.
#[derive(Default)]
pub(crate) struct Pod {
    setting_up: Mutex<()>,
}

impl Pod {
    /// Does what is asked for and not yet so.
    pub(crate) async fn set_up(&self, request: &SetUpPodRequest) -> Result<(), Error> {
        let _one_at_a_time = self.setting_up.lock().await;
        clock::set(request.realtime_ns)?;
        entropy::add(&request.entropy)?;
        hostname::set(&request.hostname)?;
        resolv::write(&request.resolv_conf)?;
        cpus::bring_online(request.cpus)?;
        network::configure(request).await
    }
}
