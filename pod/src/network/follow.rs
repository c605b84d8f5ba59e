//! What changes in a pod's network namespace while the pod runs, told as the guest is to
//! follow it.
//!
//! The kernel takes routes, and some addresses, away from an interface that goes down, and
//! does not bring them back. A guest whose interface did not go down must not lose them, so
//! what goes missing that way is kept until the namespace says otherwise.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use nacre_protocol::agent::{Address, Interface, Neighbour, PolicyRule, Route};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::counters::{self, Counters, Questions};
use super::describe::{self, Link};
use super::namespace::Namespace;
use super::{NetworkError, rules, tap};

/// What the kernel tells of that may concern a guest.
const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
];

const LISTEN: &str = "listen to changes of the network";

/// How long changes are gathered before the guest hears of them: plugins make several at once.
const GATHERING: Duration = Duration::from_millis(100);

/// When what could not be described is looked at again.
const RETRY: Duration = Duration::from_secs(5);

/// An interface that a guest has.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    pub(super) index: u32,
    /// The tap that was made for it.
    pub(super) tap: Option<u32>,
    /// As the guest was told of it.
    pub(super) interface: Interface,
}

/// What may change of the network that a guest was given, to be followed once it runs.
#[derive(Debug)]
pub struct Changes {
    pub(super) namespace: Arc<Namespace>,
    pub(super) attached: Vec<Attached>,
    pub(super) rules: Vec<PolicyRule>,
}

/// A guest's network as it is now to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct GuestView {
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) rules: Vec<PolicyRule>,
}

impl Changes {
    /// Starts to watch the namespace, on a thread of its own that ends when the views are
    /// dropped. They always hold the last one; the first is what the guest has. The thread
    /// reads the interfaces' counters, too, when it is asked for them.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`] when there is no thread.
    pub(crate) fn watch(self) -> Result<(watch::Receiver<GuestView>, Counters), NetworkError> {
        let Self {
            namespace,
            attached,
            rules,
        } = self;
        let guest = Guest::new(attached, rules);
        let (sender, receiver) = watch::channel(guest.view());
        let (counters, questions) = counters::channel();
        namespace.stay(async move |netlink| run(&netlink, guest, &sender, questions).await)?;
        Ok((receiver, counters))
    }
}

async fn run(
    netlink: &Handle,
    mut guest: Guest,
    sender: &watch::Sender<GuestView>,
    mut questions: Questions,
) -> Result<(), NetworkError> {
    let (connection, _, mut events) =
        rtnetlink::new_multicast_connection(&GROUPS).map_err(NetworkError::kernel(LISTEN))?;
    tokio::spawn(connection);
    loop {
        // First of all, something may have changed since the pod's start.
        let looked = guest.look(netlink).await;
        if let Err(error) = &looked {
            log::warn!("a change of the pod's network does not reach the guest: {error}");
        }
        let due = looked.is_err().then(|| Instant::now() + RETRY);
        let view = guest.view();
        sender.send_if_modified(|told| {
            let differs = *told != view;
            *told = view;
            differs
        });
        loop {
            tokio::select! {
                changed = change(&mut events, &mut guest, due) => break changed?,
                Some(question) = questions.recv() => {
                    question.answer(netlink, &guest.attached()).await;
                }
                () = sender.closed() => return Ok(()),
            }
        }
        let gathered = sleep(GATHERING);
        tokio::pin!(gathered);
        loop {
            tokio::select! {
                Some((message, _)) = events.next() => {
                    guest.note(&message);
                }
                () = &mut gathered => break,
            }
        }
    }
}

/// Waits for a change that may concern the guest, but not longer than until `due`.
async fn change<A>(
    events: &mut (impl Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, A)> + Unpin),
    guest: &mut Guest,
    due: Option<Instant>,
) -> Result<(), NetworkError> {
    let noted = async {
        while let Some((message, _)) = events.next().await {
            if guest.note(&message) {
                return Ok(());
            }
        }
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        Err(closed).map_err(NetworkError::kernel(LISTEN))
    };
    match due {
        Some(due) => timeout_at(due, noted).await.unwrap_or(Ok(())),
        None => noted.await,
    }
}

/// What is known of a guest's network.
struct Guest {
    interfaces: Vec<Followed>,
    rules: Vec<PolicyRule>,
    /// Interfaces that are none of the guest's, by index; unknown before the first look.
    others: Option<HashSet<u32>>,
}

/// An interface of the guest.
struct Followed {
    attached: Attached,
    /// What the guest has of it though the namespace does not: it went missing with the
    /// interface. The other fields mean nothing.
    kept: Interface,
    /// It was down, or not there, since the last look.
    was_down: bool,
}

impl Guest {
    fn new(attached: Vec<Attached>, rules: Vec<PolicyRule>) -> Self {
        let followed = |attached| Followed {
            attached,
            kept: Interface::default(),
            was_down: false,
        };
        Self {
            interfaces: attached.into_iter().map(followed).collect(),
            rules,
            others: None,
        }
    }

    /// Its interfaces.
    fn attached(&self) -> Vec<&Attached> {
        let interfaces = self.interfaces.iter();
        interfaces.map(|followed| &followed.attached).collect()
    }

    fn view(&self) -> GuestView {
        let interfaces = self.interfaces.iter();
        GuestView {
            interfaces: interfaces
                .map(|followed| followed.attached.interface.clone())
                .collect(),
            rules: self.rules.clone(),
        }
    }

    /// Remembers what a look at the namespace will not show any more, and says whether one is
    /// due.
    fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        let (index, is_down) = match &message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                (link.header.index, true)
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => (
                link.header.index,
                !link.header.flags.contains(LinkFlags::Up),
            ),
            NetlinkPayload::InnerMessage(_) => return true,
            // Messages were lost: an interface may have been down.
            _ => {
                for followed in &mut self.interfaces {
                    followed.was_down = true;
                }
                return true;
            }
        };
        for followed in &mut self.interfaces {
            // Its tap changes at the guest's will, with each queue that is attached.
            if followed.attached.tap == Some(index) {
                return false;
            }
            followed.was_down |= is_down && followed.attached.index == index;
        }
        true
    }

    /// Takes over what the namespace has now.
    async fn look(&mut self, netlink: &Handle) -> Result<(), NetworkError> {
        let indices: Vec<_> = self.interfaces.iter().map(|it| it.attached.index).collect();
        let taps: Vec<_> = self
            .interfaces
            .iter()
            .filter_map(|followed| followed.attached.tap)
            .collect();
        let (links, others) = describe::again(netlink, &indices).await?;
        self.tell_of_others(others, &taps);
        let names: Vec<_> = self
            .interfaces
            .iter()
            .map(|followed| followed.attached.interface.name.clone())
            .collect();
        let rules = rules::of(netlink, &names).await?;
        self.rules = rules::instead_of(&self.rules, rules);
        for followed in &mut self.interfaces {
            let index = followed.attached.index;
            let Some(link) = links.iter().find(|link| link.index == index) else {
                followed.was_down = true;
                continue;
            };
            if let Some(tap) = followed.attached.tap
                && u32::from(link.mtu) != followed.attached.interface.mtu
            {
                tap::set_mtu(netlink, tap, link.mtu).await?;
            }
            followed.update(link);
        }
        Ok(())
    }

    /// Says once of each interface that has come too late.
    fn tell_of_others(&mut self, others: Vec<(u32, String)>, taps: &[u32]) {
        let others = others
            .into_iter()
            .filter(|(index, _)| !taps.contains(index));
        let others: Vec<_> = others.collect();
        if let Some(known) = &self.others {
            for (_, name) in others.iter().filter(|(index, _)| !known.contains(index)) {
                log::warn!(
                    "network interface {name} is not given to the guest: it came after the pod's \
                     start"
                );
            }
        }
        self.others = Some(others.into_iter().map(|(index, _)| index).collect());
    }
}

impl Followed {
    fn update(&mut self, link: &Link) {
        let now = &link.interface;
        let before = &self.attached.interface;
        // What was kept is among what the guest had.
        let candidates = if std::mem::take(&mut self.was_down) {
            before
        } else {
            &self.kept
        };
        self.kept = Interface {
            addresses: missing(&candidates.addresses, &now.addresses, same_address),
            routes: missing(&candidates.routes, &now.routes, same_route),
            neighbours: missing(&candidates.neighbours, &now.neighbours, same_neighbour),
            ..Interface::default()
        };
        let kept = &self.kept;
        self.attached.interface = Interface {
            // By these the guest knows its device.
            name: before.name.clone(),
            mac: before.mac.clone(),
            addresses: [&now.addresses[..], &kept.addresses].concat(),
            routes: [&now.routes[..], &kept.routes].concat(),
            neighbours: [&now.neighbours[..], &kept.neighbours].concat(),
            ..now.clone()
        };
    }
}

/// Those of `before` that have no successor among `now`.
fn missing<T: Clone>(before: &[T], now: &[T], same: fn(&T, &T) -> bool) -> Vec<T> {
    before
        .iter()
        .filter(|old| !now.iter().any(|new| same(old, new)))
        .cloned()
        .collect()
}

fn same_address(left: &Address, right: &Address) -> bool {
    left.address == right.address
}

/// By what the kernel tells routes apart.
fn same_route(left: &Route, right: &Route) -> bool {
    (&left.destination, left.metric, left.table) == (&right.destination, right.metric, right.table)
}

fn same_neighbour(left: &Neighbour, right: &Neighbour) -> bool {
    left.address == right.address
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::NetlinkHeader;
    use rtnetlink::packet_route::link::LinkMessage;

    use super::*;

    fn interface(addresses: &[&str], routes: &[(&str, &str)]) -> Interface {
        let address = |address: &&str| Address {
            address: (*address).into(),
            ..Address::default()
        };
        let route = |(destination, gateway): &(&str, &str)| Route {
            destination: (*destination).into(),
            gateway: (*gateway).into(),
            ..Route::default()
        };
        Interface {
            name: "eth0".into(),
            mac: vec![2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses: addresses.iter().map(address).collect(),
            routes: routes.iter().map(route).collect(),
            ..Interface::default()
        }
    }

    fn link(interface: Interface) -> Link {
        Link {
            index: 2,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            is_tap: false,
            interface,
        }
    }

    fn followed() -> Followed {
        let attached = Attached {
            index: 2,
            tap: None,
            interface: interface(&["10.0.0.2/24"], &[("0.0.0.0/0", "10.0.0.1")]),
        };
        let mut guest = Guest::new(vec![attached], Vec::new());
        guest.interfaces.remove(0)
    }

    /// What the guest has after the namespace has this.
    fn after(followed: &mut Followed, now: Interface) -> Interface {
        followed.update(&link(now));
        followed.attached.interface.clone()
    }

    #[test]
    fn what_comes_and_goes_while_the_interface_is_up_is_followed() {
        let mut followed = followed();
        let more = interface(
            &["10.0.0.2/24", "10.0.0.3/24"],
            &[("10.9.0.0/16", "10.0.0.9")],
        );
        assert_eq!(after(&mut followed, more.clone()), more);
        let nothing = interface(&[], &[]);
        assert_eq!(after(&mut followed, nothing.clone()), nothing);
    }

    #[test]
    fn what_goes_with_the_interface_stays_until_the_namespace_has_it_again() {
        let mut followed = followed();
        let start = followed.attached.interface.clone();
        followed.was_down = true;
        let bare = interface(&["10.0.0.2/24"], &[]);
        assert_eq!(after(&mut followed, bare.clone()), start);
        // Something else changes.
        let other = interface(&["10.0.0.2/24"], &[("10.9.0.0/16", "10.0.0.9")]);
        let with_default = [("10.9.0.0/16", "10.0.0.9"), ("0.0.0.0/0", "10.0.0.1")];
        let expected = interface(&["10.0.0.2/24"], &with_default);
        assert_eq!(after(&mut followed, other), expected);
        // It is back, and from now on it can be taken away.
        assert_eq!(after(&mut followed, start.clone()), start);
        assert_eq!(after(&mut followed, bare.clone()), bare);
    }

    #[test]
    fn a_guest_that_switches_its_queues_causes_no_look() {
        let attached = Attached {
            index: 2,
            tap: Some(3),
            interface: interface(&[], &[]),
        };
        let mut guest = Guest::new(vec![attached], Vec::new());
        let mut changed = |index, flags| {
            let mut link = LinkMessage::default();
            link.header.index = index;
            link.header.flags = flags;
            let message = RouteNetlinkMessage::NewLink(link);
            guest.note(&NetlinkMessage::from(message))
        };
        assert!(!changed(3, LinkFlags::Up));
        assert!(changed(2, LinkFlags::Up));
        assert!(changed(2, LinkFlags::empty()));
        assert!(guest.interfaces[0].was_down);
    }

    #[test]
    fn lost_messages_may_have_been_about_any_interface() {
        let attached = followed().attached;
        let mut guest = Guest::new(vec![attached], Vec::new());
        let lost = NetlinkPayload::Overrun(Vec::new());
        assert!(guest.note(&NetlinkMessage::new(NetlinkHeader::default(), lost)));
        assert!(guest.interfaces[0].was_down);
    }

    #[test]
    fn what_was_kept_gives_way_to_its_successor() {
        let mut followed = followed();
        followed.was_down = true;
        let other = interface(&["10.0.0.2/24"], &[("0.0.0.0/0", "10.0.0.254")]);
        assert_eq!(after(&mut followed, other.clone()), other);
    }

    #[test]
    fn the_guest_keeps_the_name_and_mac_of_its_device() {
        let mut followed = followed();
        let mut renamed = followed.attached.interface.clone();
        renamed.name = "net9".into();
        renamed.mac = vec![2, 0, 0, 0, 0, 9];
        renamed.mtu = 1400;
        let now = after(&mut followed, renamed);
        assert_eq!((now.name.as_str(), now.mtu), ("eth0", 1400));
        assert_eq!(now.mac, [2, 0, 0, 0, 0, 1]);
    }
}
