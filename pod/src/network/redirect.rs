//! All that arrives at one interface leaves by another: a filter in tc's ingress
//! hook that matches every packet, with the action `mirred egress redirect`.
//!
//! The hook may belong to somebody else already (a network policy in BPF): then
//! it is shared, and the filter stands behind theirs.

use futures::TryStreamExt;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterMatchAll, TcFilterMatchAllOption, TcFilterU32,
    TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Selector,
    TcU32SelectorFlags,
};
use rtnetlink::{Error, Handle};
use rustix::io::Errno;

use super::NetworkError;
use super::netlink::{errno, failed};

/// The filter's place among others of the hook: behind those that are added
/// without a priority, which get 49152 and less. It is also what the filter is
/// known by.
const PRIORITY: u16 = 0xfa00;

/// `ETH_P_ALL` as the filter's header wants it, in network byte order.
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

    /// Takes the redirect away, or finds that it is gone with its interface.
    pub(super) async fn remove(self, netlink: &Handle) -> Result<(), NetworkError> {
        let result = match remove_filter(netlink, self.index).await {
            Ok(_) if self.owns_hook => remove_hook(netlink, self.index).await,
            result => result.map(drop),
        };
        result.map_err(failed(format!("stop redirecting from {}", self.interface)))
    }
}

/// An interface's index as traffic control has it, for doing `what`.
fn signed(index: u32, what: impl Into<String>) -> Result<i32, NetworkError> {
    i32::try_from(index)
        .map_err(|_| Errno::INVAL)
        .map_err(NetworkError::kernel(what))
}

/// The interfaces that what arrives at this one is redirected to, by whomever.
pub(super) async fn targets(netlink: &Handle, index: u32) -> Result<Vec<u32>, NetworkError> {
    const WHAT: &str = "list the filters of an interface";
    let mut filters = netlink.traffic_filter(signed(index, WHAT)?);
    let filters: Vec<TcMessage> = filters
        .get()
        .ingress()
        .execute()
        .try_collect()
        .await
        .map_err(failed(WHAT))?;
    let options = filters
        .iter()
        .flat_map(|filter| &filter.attributes)
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
    Ok(options
        .flatten()
        .flat_map(actions)
        .filter_map(target)
        .collect())
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
            Ok(remove_filter(netlink, index).await? && !has_filters(netlink, index).await?)
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
    let mirror = || vec![mirror(to)];
    let matchall = TcOption::MatchAll(TcFilterMatchAllOption::Action(mirror()));
    let options = vec![matchall];
    let result = request_filter(netlink, from, TcFilterMatchAll::KIND, options).await;
    match result {
        Err(error) if errno(&error) == Some(Errno::NOENT) => {
            let mut selector = TcU32Selector::default();
            // Without a key it matches everything, however short.
            selector.flags = TcU32SelectorFlags::Terminal;
            let options = vec![
                TcOption::U32(TcFilterU32Option::Selector(selector)),
                TcOption::U32(TcFilterU32Option::Action(mirror())),
            ];
            request_filter(netlink, from, TcFilterU32::KIND, options).await
        }
        result => result,
    }
}

async fn request_filter(
    netlink: &Handle,
    index: i32,
    kind: &str,
    options: Vec<TcOption>,
) -> Result<(), Error> {
    let mut message = filter(index, ALL_PROTOCOLS);
    message.attributes = vec![
        TcAttribute::Kind(kind.into()),
        TcAttribute::Options(options),
    ];
    let message = RouteNetlinkMessage::NewTrafficFilter(message);
    request(netlink, message, NLM_F_CREATE | NLM_F_EXCL).await
}

/// Says whether there was one.
async fn remove_filter(netlink: &Handle, index: i32) -> Result<bool, Error> {
    let message = RouteNetlinkMessage::DelTrafficFilter(filter(index, 0));
    gone_is_fine(request(netlink, message, 0).await)
}

async fn has_filters(netlink: &Handle, index: i32) -> Result<bool, Error> {
    let mut filters = netlink.traffic_filter(index);
    let mut filters = std::pin::pin!(filters.get().ingress().execute());
    let found = filters.try_next().await?.is_some();
    // The rest of the answer must be taken off the socket.
    while filters.try_next().await?.is_some() {}
    Ok(found)
}

/// The pod's filter at this interface; protocol 0 stands for whichever it has.
fn filter(index: i32, protocol: u16) -> TcMessage {
    let mut message = TcMessage::with_index(index);
    message.header.parent = INGRESS_HOOK;
    message.header.info = TcHandle {
        major: PRIORITY,
        minor: protocol,
    }
    .into();
    message
}

fn mirror(to: u32) -> TcAction {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
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
