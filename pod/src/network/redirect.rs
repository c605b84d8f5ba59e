//! All that arrives at one interface leaves by another: a filter in tc's ingress
//! hook that matches every packet, with the action `mirred egress redirect`.
//!
//! The hook may belong to somebody else already (a network policy in BPF): then
//! it is shared, and the filter stands behind theirs.
//!
//! Of what a DHCP server sends to its client, the namespace keeps a copy: whoever got the
//! interface's address by it (CNI's dhcp plugin) has to renew the lease.

use futures::TryStreamExt;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterMatchAll, TcFilterMatchAllOption, TcFilterU32,
    TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};
use rtnetlink::{Error, Handle};
use rustix::io::Errno;

use super::NetworkError;
use super::netlink::{errno, failed};

/// The filter's place among others of the hook: behind those that are added
/// without a priority, which get 49152 and less. It is also what the filter is
/// known by.
const PRIORITY: u16 = 0xfa00;

/// The place of the filter that copies, before it.
const COPY_PRIORITY: u16 = PRIORITY - 1;

/// `ETH_P_IP` and `ETH_P_ALL` as a filter's header wants them, in network byte order.
const IPV4: u16 = 0x0800_u16.to_be();
const ALL_PROTOCOLS: u16 = 3u16.to_be();

/// The hook for arriving packets, of the queueing disciplines `ingress` and `clsact`.
const INGRESS_HOOK: TcHandle = TcHandle {
    major: 0xffff,
    minor: TcHandle::MIN_INGRESS,
};

/// A redirect in place.
#[derive(Debug)]
pub(super) struct Redirect {
    interface: String,
    index: i32,
    /// The interface had no hook before.
    owns_hook: bool,
}

impl Redirect {
    /// Redirects what arrives at `from` to `to`, each an index and a name. One
    /// that a killed pod left behind is replaced.
    pub(super) async fn new(
        netlink: &Handle,
        from: (u32, &str),
        to: (u32, &str),
    ) -> Result<Self, NetworkError> {
        let what = || format!("redirect packets from {} to {}", from.1, to.1);
        let index = signed(from.0, what())?;
        let owns_hook = make_hook(netlink, index).await.map_err(failed(what()))?;
        let redirect = Self {
            interface: from.1.into(),
            index,
            owns_hook,
        };
        if let Err(error) = add_filter(netlink, index, to.0).await {
            // The first error says more than one of the tidying would.
            let _ = redirect.remove(netlink).await;
            return Err(failed(what())(error));
        }
        Ok(redirect)
    }

    /// Leaves to the namespace a copy of what comes for a DHCP client, if the kernel can tell it.
    pub(super) async fn copy_dhcp(&self, netlink: &Handle, to: u32) {
        let selector = dhcp_client_selector();
        let options = vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![copy(to)])),
        ];
        let message = filter(self.index, COPY_PRIORITY, IPV4);
        if let Err(error) = request_filter(netlink, message, TcFilterU32::KIND, options).await {
            log::debug!("no lease of {} can be renewed: {error}", self.interface);
        }
    }

    /// Takes the redirect away, or finds that it is gone with its interface.
    pub(super) async fn remove(self, netlink: &Handle) -> Result<(), NetworkError> {
        let result = match remove_filters(netlink, self.index).await {
            Ok(_) if self.owns_hook => remove_hook(netlink, self.index).await,
            result => result.map(drop),
        };
        result.map_err(failed(format!("stop redirecting from {}", self.interface)))
    }
}

/// Removes the filter of a killed pod from an interface, given by index and name: its tap is
/// gone. Says whether there was one.
pub(super) async fn remove_stale(
    netlink: &Handle,
    from: (u32, &str),
) -> Result<bool, NetworkError> {
    let index = signed(from.0, "look for a filter")?;
    // The kernel tells no interface where there is none any more.
    let is_stale = |filter: &TcMessage| {
        TcHandle::from(filter.header.info).major == PRIORITY
            && targets_of(filter).any(|target| target == 0)
    };
    if !filters(netlink, index).await?.iter().any(is_stale) {
        return Ok(false);
    }
    let stale = Redirect {
        interface: from.1.into(),
        index,
        owns_hook: false,
    };
    stale.remove(netlink).await?;
    let unhooked = match has_filters(netlink, index).await {
        Ok(false) => remove_hook(netlink, index).await,
        result => result.map(drop),
    };
    unhooked.map_err(failed(format!("stop redirecting from {}", from.1)))?;
    Ok(true)
}

/// An interface's index as traffic control has it, for doing `what`.
fn signed(index: u32, what: impl Into<String>) -> Result<i32, NetworkError> {
    i32::try_from(index)
        .map_err(|_| Errno::INVAL)
        .map_err(NetworkError::kernel(what))
}

/// The interfaces that what arrives at this one is redirected to, by whomever.
pub(super) async fn targets(netlink: &Handle, index: u32) -> Result<Vec<u32>, NetworkError> {
    let filters = filters(netlink, signed(index, LIST)?).await?;
    Ok(filters.iter().flat_map(targets_of).collect())
}

const LIST: &str = "list the filters of an interface";

async fn filters(netlink: &Handle, index: i32) -> Result<Vec<TcMessage>, NetworkError> {
    let mut filters = netlink.traffic_filter(index);
    let filters = filters.get().ingress().execute().try_collect().await;
    filters.map_err(failed(LIST))
}

fn targets_of(filter: &TcMessage) -> impl Iterator<Item = u32> {
    let options = filter
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
    options.flatten().flat_map(actions).filter_map(target)
}

fn actions(option: &TcOption) -> &[TcAction] {
    match option {
        TcOption::MatchAll(TcFilterMatchAllOption::Action(actions))
        | TcOption::U32(TcFilterU32Option::Action(actions)) => actions,
        _ => &[],
    }
}

fn target(action: &TcAction) -> Option<u32> {
    let options = action
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcActionAttribute::Options(options) => Some(options),
            _ => None,
        })?;
    options.iter().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => Some(mirror.ifindex),
        _ => None,
    })
}

/// Makes the ingress hook and says whether it is the pod's own: a hook in which a
/// killed pod's filter was the only one was its own, too.
async fn make_hook(netlink: &Handle, index: i32) -> Result<bool, Error> {
    match netlink.qdisc().add(index).ingress().execute().await {
        Err(error) if errno(&error) == Some(Errno::EXIST) => {
            Ok(remove_filters(netlink, index).await? && !has_filters(netlink, index).await?)
        }
        result => result.map(|()| true),
    }
}

async fn remove_hook(netlink: &Handle, index: i32) -> Result<(), Error> {
    let mut request = netlink.qdisc().del(index);
    let message = request.message_mut();
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = TcHandle {
        major: 0xffff,
        minor: 0,
    };
    // Not `clsact`, which somebody else must have made.
    message.attributes.push(TcAttribute::Kind("ingress".into()));
    gone_is_fine(request.execute().await).map(drop)
}

/// Adds the filter with whichever classifier this kernel has.
async fn add_filter(netlink: &Handle, from: i32, to: u32) -> Result<(), Error> {
    let message = || filter(from, PRIORITY, ALL_PROTOCOLS);
    let action = || vec![redirect(to)];
    let matchall = TcOption::MatchAll(TcFilterMatchAllOption::Action(action()));
    let options = vec![matchall];
    let result = request_filter(netlink, message(), TcFilterMatchAll::KIND, options).await;
    match result {
        Err(error) if errno(&error) == Some(Errno::NOENT) => {
            let mut selector = TcU32Selector::default();
            // Without a key it matches everything, however short.
            selector.flags = TcU32SelectorFlags::Terminal;
            let options = vec![
                TcOption::U32(TcFilterU32Option::Selector(selector)),
                TcOption::U32(TcFilterU32Option::Action(action())),
            ];
            request_filter(netlink, message(), TcFilterU32::KIND, options).await
        }
        result => result,
    }
}

async fn request_filter(
    netlink: &Handle,
    mut message: TcMessage,
    kind: &str,
    options: Vec<TcOption>,
) -> Result<(), Error> {
    message.attributes = vec![
        TcAttribute::Kind(kind.into()),
        TcAttribute::Options(options),
    ];
    let message = RouteNetlinkMessage::NewTrafficFilter(message);
    request(netlink, message, NLM_F_CREATE | NLM_F_EXCL).await
}

/// What a DHCP server sends to its client: IPv4, UDP (byte 9 of the header), and behind a header
/// without options the destination port 68 (bytes 22 and 23).
fn dhcp_client_selector() -> TcU32Selector {
    let key = |off, mask, val| {
        let mut key = TcU32Key::default();
        (key.off, key.mask, key.val) = (off, mask, val);
        key
    };
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.keys = vec![key(8, 0x00ff_0000, 17 << 16), key(20, 0x0000_ffff, 68)];
    selector.nkeys = 2;
    selector
}

/// Says whether there was one.
async fn remove_filters(netlink: &Handle, index: i32) -> Result<bool, Error> {
    let mut found = false;
    for priority in [COPY_PRIORITY, PRIORITY] {
        let message = RouteNetlinkMessage::DelTrafficFilter(filter(index, priority, 0));
        found |= gone_is_fine(request(netlink, message, 0).await)?;
    }
    Ok(found)
}

async fn has_filters(netlink: &Handle, index: i32) -> Result<bool, Error> {
    let mut filters = netlink.traffic_filter(index);
    let mut filters = std::pin::pin!(filters.get().ingress().execute());
    let found = filters.try_next().await?.is_some();
    // The rest of the answer must be taken off the socket.
    while filters.try_next().await?.is_some() {}
    Ok(found)
}

/// A filter of the pod's at this interface; protocol 0 stands for whichever it has.
fn filter(index: i32, priority: u16, protocol: u16) -> TcMessage {
    let mut message = TcMessage::with_index(index);
    message.header.parent = INGRESS_HOOK;
    message.header.info = TcHandle {
        major: priority,
        minor: protocol,
    }
    .into();
    message
}

/// The packet leaves by `to` and goes no further here.
fn redirect(to: u32) -> TcAction {
    mirred(to, TcMirrorActionType::EgressRedir, TcActionType::Stolen)
}

/// A copy of the packet leaves by `to`.
fn copy(to: u32) -> TcAction {
    mirred(to, TcMirrorActionType::EgressMirror, TcActionType::Ok)
}

fn mirred(to: u32, what: TcMirrorActionType, then: TcActionType) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = then;
    mirror.eaction = what;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.into()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    action
}

async fn request(netlink: &Handle, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut replies = netlink.clone().request(message)?;
    while let Some(reply) = futures::StreamExt::next(&mut replies).await {
        if let NetlinkPayload::Error(error) = reply.payload {
            return Err(Error::NetlinkError(error));
        }
    }
    Ok(())
}

/// Says whether there was something to remove.
fn gone_is_fine(result: Result<(), Error>) -> Result<bool, Error> {
    match result {
        Ok(()) => Ok(true),
        // No interface, no filter, no hook (or not `ingress`).
        Err(error)
            if [Errno::NODEV, Errno::NOENT, Errno::INVAL]
                .iter()
                .any(|gone| errno(&error) == Some(*gone)) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
