//! Brings links, addresses, routes and neighbours into the guest's kernel.

use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::plan::{Link, LinkRoute, Mac, Prefix};
use crate::error::{Doing, Error};

/// Index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

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

/// Makes every link as planned.
pub(super) async fn apply(links: &[Link]) -> Result<(), Error> {
    if links.is_empty() {
        return Ok(());
    }
    let handle = connect()?;
    let devices: Vec<_> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|error| Error::internal("cannot list the network devices", error))?;
    for link in links {
        let device = find(&devices, link.mac).ok_or_else(|| {
            let mac = link.mac.map(|byte| format!("{byte:02x}")).join(":");
            Error::FailedPrecondition(format!("no network device has the MAC address {mac}"))
        })?;
        let made = Device {
            handle: &handle,
            index: device.header.index,
        };
        made.configure(link, name_of(device))
            .await
            .map_err(|error| Error::internal(&format!("cannot configure {}", link.name), error))?;
    }
    Ok(())
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
}

impl Device<'_> {
    async fn configure(&self, link: &Link, current_name: &str) -> Result<(), rtnetlink::Error> {
        if current_name != link.name {
            // A device that is up keeps its name.
            self.set(self.change().down()).await?;
            self.set(self.change().name(link.name.clone())).await?;
        }
        if link.mtu != 0 {
            self.set(self.change().mtu(link.mtu)).await?;
        }
        self.set(self.change().up()).await?;
        for address in &link.addresses {
            self.add_address(*address).await?;
        }
        for (address, mac) in &link.neighbours {
            self.add_neighbour(*address, *mac).await?;
        }
        for route in &link.routes {
            self.add_route(route).await?;
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

    async fn add_address(&self, prefix: Prefix) -> Result<(), rtnetlink::Error> {
        let mut request = self
            .handle
            .address()
            .add(self.index, prefix.address, prefix.length)
            .replace();
        if prefix.address.is_ipv6() {
            // The host's CNI has made sure that nobody else has the address.
            let flags = AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Permanent);
            request.message_mut().attributes.push(flags);
        }
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
    builder.build()
}
