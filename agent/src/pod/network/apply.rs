//! Brings links, addresses, routes, neighbours and rules into the guest's kernel.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteScope};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use thiserror::Error as ThisError;

use super::plan::{Link, LinkAddress, LinkIpv6, LinkRoute, Mac, Metric};
use super::rules::{self, Rule};
use super::{channels, outdated};
use crate::error::{Doing, Error};
use crate::pod::cpus;

/// Index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// `IN6_ADDR_GEN_MODE_NONE` of linux/if_link.h.
const ADDR_GEN_MODE_NONE: u8 = 1;

/// Why an interface is not as planned.
#[derive(Debug, ThisError)]
enum ConfigureError {
    #[error("{0}")]
    Kernel(#[from] rtnetlink::Error),
    #[error("{}: {source}", path.display())]
    Parameter { path: PathBuf, source: io::Error },
    #[error("the number of its queues: {0}")]
    Channels(io::Error),
}

/// Brings up `lo`.
///
/// # Errors
/// When the kernel has no network.
pub async fn loopback_up() -> Result<(), Error> {
    let handle = connect()?;
    let up = LinkUnspec::new_with_index(LOOPBACK).up().build();
    handle
        .link()
        .set(up)
        .execute()
        .await
        .map_err(|error| Error::internal("cannot bring up lo", error))
}

fn connect() -> Result<Handle, Error> {
    let (connection, handle, _) =
        rtnetlink::new_connection().doing("cannot talk to the kernel's network")?;
    // Ends when the handle is dropped.
    tokio::spawn(connection);
    Ok(handle)
}

/// Removes what was `made` and is not planned any more, makes every link as planned, and then
/// the rules.
///
/// An address that goes can take others of its network, and routes, with it; so it goes first.
pub(super) async fn apply(
    (made, made_rules): (&[Link], &[Rule]),
    (links, rules): (&[Link], &[Rule]),
) -> Result<(), Error> {
    if links.is_empty() && rules.is_empty() {
        return Ok(());
    }
    let handle = connect()?;
    let cpus = cpus::online()?;
    let devices: Vec<_> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|error| Error::internal("cannot list the network devices", error))?;
    for link in outdated::between(made, links) {
        // Without the device there is nothing of it either.
        let Some(device) = find(&devices, link.mac) else {
            continue;
        };
        let device = Device {
            handle: &handle,
            index: device.header.index,
            cpus,
        };
        device
            .remove(&link)
            .await
            .map_err(|source| Error::internal(&format!("cannot change {}", link.name), source))?;
    }
    for link in links {
        let device = find(&devices, link.mac).ok_or_else(|| {
            let mac = link.mac.map(|byte| format!("{byte:02x}")).join(":");
            Error::FailedPrecondition(format!("no network device has the MAC address {mac}"))
        })?;
        let before = made.iter().find(|before| before.mac == link.mac);
        let changed = Device {
            handle: &handle,
            index: device.header.index,
            cpus,
        };
        changed
            .configure(before, link, name_of(device))
            .await
            .map_err(|source| {
                Error::internal(&format!("cannot configure {}", link.name), source)
            })?;
    }
    rules::apply(&handle, made_rules, rules).await
}

fn find(devices: &[LinkMessage], mac: Mac) -> Option<&LinkMessage> {
    devices.iter().find(|device| {
        device.attributes.iter().any(
            |attribute| matches!(attribute, LinkAttribute::Address(address) if *address == mac),
        )
    })
}

fn name_of(device: &LinkMessage) -> &str {
    let name = device
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        });
    name.unwrap_or_default()
}

struct Device<'a> {
    handle: &'a Handle,
    index: u32,
    /// CPUs that run.
    cpus: u32,
}

impl Device<'_> {
    /// Makes the device as planned. Of a link that was made `before`, what has not changed is
    /// left as somebody in the guest may have changed it.
    async fn configure(
        &self,
        before: Option<&Link>,
        link: &Link,
        current_name: &str,
    ) -> Result<(), ConfigureError> {
        if current_name != link.name {
            // A device that is up keeps its name.
            self.set(self.change().down()).await?;
            self.set(self.change().name(link.name.clone())).await?;
        }
        let is_as_before = before.is_some_and(|it| (it.mtu, it.ipv6) == (link.mtu, link.ipv6));
        if !is_as_before {
            if link.mtu != 0 {
                self.set(self.change().mtu(link.mtu)).await?;
            }
            // Also after another MTU: a small one takes IPv6 away.
            Self::set_ipv6(link)?;
        }
        if before.is_none() {
            if self.cpus > 1 {
                channels::use_for(&link.name, self.cpus).map_err(ConfigureError::Channels)?;
            }
            self.set(self.change().up()).await?;
        }
        for address in &link.addresses {
            self.add_address(address).await?;
        }
        for (address, mac) in &link.neighbours {
            self.add_neighbour(*address, *mac).await?;
        }
        for route in &link.routes {
            self.add_route(route).await?;
        }
        Ok(())
    }

    /// Removes addresses, neighbours and routes; what is not there any more is gone.
    async fn remove(&self, link: &Link) -> Result<(), rtnetlink::Error> {
        for route in &link.routes {
            let message = route_message(route, self.index);
            gone(self.handle.route().del(message).execute().await)?;
        }
        for (address, _) in &link.neighbours {
            let mut request = self.handle.neighbours().add(self.index, *address);
            let message = std::mem::take(request.message_mut());
            gone(self.handle.neighbours().del(message).execute().await)?;
        }
        for address in &link.addresses {
            let prefix = address.prefix;
            let mut request = self
                .handle
                .address()
                .add(self.index, prefix.address, prefix.length);
            let message = std::mem::take(request.message_mut());
            gone(self.handle.address().del(message).execute().await)?;
        }
        Ok(())
    }

    fn change(&self) -> rtnetlink::LinkMessageBuilder<LinkUnspec> {
        LinkUnspec::new_with_index(self.index)
    }

    async fn set(
        &self,
        change: rtnetlink::LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), rtnetlink::Error> {
        self.handle.link().set(change.build()).execute().await
    }

    /// Says what the kernel is to do of IPv6 by itself, before it can.
    fn set_ipv6(link: &Link) -> Result<(), ConfigureError> {
        let parameters = Path::new("/proc/sys/net/ipv6/conf").join(&link.name);
        // A small MTU leaves it none.
        if !parameters.exists() {
            return Ok(());
        }
        let LinkIpv6 {
            disabled,
            accept_ra,
            autoconf,
        } = link.ipv6;
        for (name, value) in [
            ("accept_ra", accept_ra),
            ("autoconf", autoconf.into()),
            // The link-local address is among the others.
            ("addr_gen_mode", ADDR_GEN_MODE_NONE),
            ("disable_ipv6", disabled.into()),
        ] {
            let path = parameters.join(name);
            std::fs::write(&path, value.to_string())
                .map_err(|source| ConfigureError::Parameter { path, source })?;
        }
        Ok(())
    }

    async fn add_address(&self, address: &LinkAddress) -> Result<(), rtnetlink::Error> {
        let prefix = address.prefix;
        let mut request = self
            .handle
            .address()
            .add(self.index, prefix.address, prefix.length)
            .replace();
        let mut flags = AddressFlags::Permanent;
        if address.no_prefix_route {
            flags |= AddressFlags::Noprefixroute;
        }
        if prefix.address.is_ipv6() && !address.tentative {
            // The host's CNI has made sure that nobody else has the address.
            flags |= AddressFlags::Nodad;
        }
        let flags = AddressAttribute::Flags(flags);
        request.message_mut().attributes.push(flags);
        request.execute().await
    }

    async fn add_neighbour(&self, address: IpAddr, mac: Mac) -> Result<(), rtnetlink::Error> {
        self.handle
            .neighbours()
            .add(self.index, address)
            .link_layer_address(&mac)
            .state(NeighbourState::Permanent)
            .replace()
            .execute()
            .await
    }

    async fn add_route(&self, route: &LinkRoute) -> Result<(), rtnetlink::Error> {
        let message = route_message(route, self.index);
        self.handle.route().add(message).replace().execute().await
    }
}

/// The result of removing something that may not be there.
fn gone(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message))
            if matches!(
                message.to_io().raw_os_error(),
                Some(libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL)
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

fn route_message(route: &LinkRoute, index: u32) -> RouteMessage {
    let length = route.destination.length;
    let scope = RouteScope::from(route.scope);
    // Families were checked to agree when the plan was read.
    let mut message = match route.destination.address {
        IpAddr::V4(destination) => {
            let mut builder = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(destination, length);
            if let Some(IpAddr::V4(gateway)) = route.gateway {
                builder = builder.gateway(gateway);
            }
            if let Some(IpAddr::V4(source)) = route.source {
                builder = builder.pref_source(source);
            }
            finish(builder, route, index)
        }
        IpAddr::V6(destination) => {
            let mut builder = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(destination, length);
            if let Some(IpAddr::V6(gateway)) = route.gateway {
                builder = builder.gateway(gateway);
            }
            if let Some(IpAddr::V6(source)) = route.source {
                builder = builder.pref_source(source);
            }
            finish(builder, route, index)
        }
    };
    message.header.scope = scope;
    message
}

fn finish<T>(builder: RouteMessageBuilder<T>, route: &LinkRoute, index: u32) -> RouteMessage {
    let mut builder = builder.output_interface(index);
    if route.metric != 0 {
        builder = builder.priority(route.metric);
    }
    if route.onlink {
        builder = builder.onlink();
    }
    if route.table != 0 {
        builder = builder.table_id(route.table);
    }
    let mut message = builder.build();
    let metrics = route.metrics.iter().map(metric).collect::<Vec<_>>();
    if !metrics.is_empty() {
        message.attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

fn metric((kind, value): &Metric) -> RouteMetric {
    RouteMetric::Other(DefaultNla::new(*kind, value.to_ne_bytes().into()))
}
