//! The pod's network: what the host's CNI made, made again in the guest.

mod apply;
mod plan;
mod rules;

pub use apply::loopback_up;

use nacre_protocol::agent::SetUpPodRequest;

use crate::error::Error;

/// Configures the network of a request; what is so already stays.
pub(super) async fn configure(request: &SetUpPodRequest) -> Result<(), Error> {
    let links = plan::read(&request.interfaces)?;
    let rules = rules::read(&request.policy_rules)?;
    apply::apply(&links, &rules).await
}
