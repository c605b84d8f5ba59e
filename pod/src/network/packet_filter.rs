//! Rules of nftables and iptables inside a pod's namespace.
//!
//! What is redirected between an interface and its tap passes the namespace's packet
//! filter in neither direction, also not its `ingress` and `egress` hooks: the redirect
//! comes before the one, and the kernel skips the other for what was redirected. A policy
//! that somebody has put there (a service mesh's plugin, say) would silently not hold for
//! the guest. Rules on the host's side of the pod's interface do hold.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use super::NetworkError;

/// `NFNL_SUBSYS_NFTABLES` of linux/netfilter/nfnetlink.h, as part of a message's type.
const NFTABLES: u16 = 10 << 8;

/// A question of linux/netfilter/nf_tables.h, and what its answers look like.
struct Question {
    /// `NFT_MSG_GET…`.
    get: u16,
    /// `NFT_MSG_NEW…`.
    new: u16,
    /// Attribute with the table's name.
    table: u16,
    /// Attribute with the chain's name.
    chain: u16,
}

const CHAINS: Question = Question {
    get: NFTABLES | 4,
    new: NFTABLES | 3,
    table: 1,
    chain: 3,
};

const RULES: Question = Question {
    get: NFTABLES | 7,
    new: NFTABLES | 6,
    table: 1,
    chain: 2,
};

/// `NFTA_CHAIN_POLICY`: a number in network byte order, 0 for a packet that is dropped.
const CHAIN_POLICY: u16 = 5;

/// Bytes of the kernel's answers at a time; it fills up to 32 KiB.
const BUFFER: usize = 64 << 10;

/// Bytes of `struct nlmsghdr`, and of `struct nfgenmsg` behind it.
const HEADER: usize = 16;
const GENERIC: usize = 4;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;

/// Lists of the tables that the older iptables keep beside nftables. Who has asked for
/// one has one, for its rules or for none.
const LEGACY: [&str; 2] = [
    "/proc/thread-self/net/ip_tables_names",
    "/proc/thread-self/net/ip6_tables_names",
];

/// Refuses the namespace of the calling thread if it filters packets.
pub(super) fn refuse_rules() -> Result<(), NetworkError> {
    let refused = |what: String| {
        Err(NetworkError::Unsupported(format!(
            "the namespace has {what}, which packets of the guest would not pass; put them on \
             the host's side"
        )))
    };
    let place = first_rule().map_err(NetworkError::kernel("list the namespace's nftables"))?;
    if let Some(place) = place {
        return refused(format!("rules of nftables ({place})"));
    }
    for list in LEGACY {
        // Without the module there is no list.
        let tables = fs::read_to_string(list).unwrap_or_default();
        if let Some(table) = tables.lines().next() {
            return refused(format!("rules of the legacy iptables (table {table})"));
        }
    }
    Ok(())
}

/// Where the first rule is, or the first chain that drops what has none.
fn first_rule() -> io::Result<Option<String>> {
    let Some(socket) = open()? else {
        return Ok(None);
    };
    if let Some(rule) = ask(&socket, &RULES, |_| true)? {
        return Ok(Some(rule));
    }
    ask(&socket, &CHAINS, |attributes| {
        attribute(attributes, CHAIN_POLICY) == Some(&[0; 4])
    })
}

/// None on a kernel without netfilter.
fn open() -> io::Result<Option<OwnedFd>> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(NETFILTER),
    );
    match socket {
        Err(Errno::PROTONOSUPPORT) => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// Table and chain of the first answer that `counts`, out of all.
fn ask(
    socket: impl AsFd,
    question: &Question,
    counts: impl Fn(&[u8]) -> bool,
) -> io::Result<Option<String>> {
    let length = u32::try_from(HEADER + GENERIC).unwrap_or_default();
    let mut request = length.to_ne_bytes().to_vec();
    request.extend(question.get.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence and port, and all families of protocols.
    request.resize(HEADER + GENERIC, 0);
    send(&socket, &request, SendFlags::empty())?;
    let mut first = None;
    let mut buffer = vec![0; BUFFER];
    loop {
        let (len, _) = recv(&socket, &mut *buffer, RecvFlags::empty())?;
        let mut rest = &buffer[..len];
        if rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while let Some((kind, body, next)) = message(rest) {
            rest = next;
            match kind {
                NLMSG_DONE => return Ok(first),
                NLMSG_ERROR => return failure(body).map(|()| None),
                kind if kind == question.new && first.is_none() => {
                    let attributes = body.get(GENERIC..).unwrap_or_default();
                    if counts(attributes) {
                        first = Some(place(question, attributes));
                    }
                }
                _ => {}
            }
        }
    }
}

/// A kernel that does not know nftables has no rules.
fn failure(body: &[u8]) -> io::Result<()> {
    let code = body.first_chunk().copied().map_or(0, i32::from_ne_bytes);
    let errno = Errno::from_raw_os_error(code.wrapping_neg());
    match errno {
        Errno::INVAL | Errno::OPNOTSUPP => Ok(()),
        errno => Err(errno.into()),
    }
}

fn place(question: &Question, attributes: &[u8]) -> String {
    let name = |kind| {
        let name = attribute(attributes, kind).unwrap_or_default();
        String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned()
    };
    format!(
        "table {}, chain {}",
        name(question.table),
        name(question.chain)
    )
}

/// Type and body of the first message, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?);
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let (body, rest) = record(bytes, usize::try_from(length).ok()?, HEADER)?;
    Some((kind, body, rest))
}

/// The value of an attribute.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    /// Bytes of `struct nlattr`; its type has flags in the highest two bits.
    const HEADER: usize = 4;
    const TYPE: u16 = 0x3fff;
    loop {
        let length = u16::from_ne_bytes(*bytes.first_chunk()?);
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let (value, rest) = record(bytes, length.into(), HEADER)?;
        if kind & TYPE == wanted {
            return Some(value);
        }
        bytes = rest;
    }
}

/// What is behind the header of a record of this length, and what follows the record:
/// they begin at multiples of four bytes.
fn record(bytes: &[u8], length: usize, header: usize) -> Option<(&[u8], &[u8])> {
    let body = bytes.get(header..length)?;
    let next = length.next_multiple_of(4).min(bytes.len());
    Some((body, &bytes[next..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute_bytes(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_rule_is_told_by_its_table_and_chain() {
        let attributes = [attribute_bytes(1, b"nat\0"), attribute_bytes(2, b"in\0")].concat();
        assert_eq!(place(&RULES, &attributes), "table nat, chain in");
        assert_eq!(attribute(&attributes, 3), None);
        let policy = attribute_bytes(CHAIN_POLICY, &[0, 0, 0, 1]);
        assert_eq!(attribute(&policy, CHAIN_POLICY), Some(&[0, 0, 0, 1][..]));
    }

    #[test]
    fn a_record_that_is_cut_off_is_none() {
        let bytes = attribute_bytes(1, b"nat\0");
        for len in 0..bytes.len() {
            assert_eq!(attribute(&bytes[..len], 1), None, "{len}");
            assert!(message(&bytes[..len]).is_none(), "{len}");
        }
        // A length of less than its own header.
        assert_eq!(attribute(&[0; 8], 1), None);
    }

    #[test]
    fn a_namespace_without_rules_is_not_refused() {
        // Asks the kernel; rules of the machine that the test runs on may be there.
        if let Some(rule) = first_rule().unwrap() {
            assert!(rule.starts_with("table "), "{rule}");
        }
    }
}
