//! The pod's network: what the host's CNI made, made again in the guest.

mod apply;
mod plan;

pub use apply::loopback_up;

use nacre_protocol::agent::Interface;

use crate::error::Error;

/// Configures the interfaces of a request; what is so already stays.
pub(super) async fn configure(interfaces: &[Interface]) -> Result<(), Error> {
    let links = plan::read(interfaces)?;
    apply::apply(&links).await
}
