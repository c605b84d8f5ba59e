//! What the device offers, and what a driver's choice means for the tap.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// The `status` field of a link that is up.
pub(super) const LINK_UP: u16 = 1;
const _: () = assert!(LINK_UP as u32 == VIRTIO_NET_S_LINK_UP);

const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// Needs nothing of the host.
const ALWAYS: u64 = bit(VIRTIO_NET_F_MAC) | bit(VIRTIO_NET_F_STATUS) | bit(VIRTIO_NET_F_MRG_RXBUF);

/// What the guest may leave to us, and what we may leave to the guest, when the
/// tap has these flags of `TUNSETOFFLOAD`.
const OFFLOADS: [(u32, u64); 5] = [
    (
        libc::TUN_F_CSUM,
        bit(VIRTIO_NET_F_CSUM) | bit(VIRTIO_NET_F_GUEST_CSUM),
    ),
    (
        libc::TUN_F_TSO4,
        bit(VIRTIO_NET_F_HOST_TSO4) | bit(VIRTIO_NET_F_GUEST_TSO4),
    ),
    (
        libc::TUN_F_TSO6,
        bit(VIRTIO_NET_F_HOST_TSO6) | bit(VIRTIO_NET_F_GUEST_TSO6),
    ),
    (
        libc::TUN_F_TSO_ECN,
        bit(VIRTIO_NET_F_HOST_ECN) | bit(VIRTIO_NET_F_GUEST_ECN),
    ),
    (
        USO,
        bit(VIRTIO_NET_F_HOST_USO) | bit(VIRTIO_NET_F_GUEST_USO4) | bit(VIRTIO_NET_F_GUEST_USO6),
    ),
];

/// UDP segmentation; the kernel takes both flags or none.
const USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;
/// Segmentation of TCP, with what it needs.
const TSO: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

/// Sets of tap offloads to try, best first: Linux before 6.2 has no USO.
pub(super) const CANDIDATES: [u32; 3] = [TSO | USO, TSO, libc::TUN_F_CSUM];

/// The features to offer on a tap with these offloads.
pub(super) fn offered(tap_offloads: u32) -> u64 {
    OFFLOADS
        .iter()
        .filter(|(flags, _)| tap_offloads & flags == *flags)
        .fold(ALWAYS, |features, (_, more)| features | more)
}

/// The features of a device with several pairs of queues; with one pair there is
/// nothing to control.
pub(super) const SEVERAL_PAIRS: u64 = bit(VIRTIO_NET_F_CTRL_VQ) | bit(VIRTIO_NET_F_MQ);

/// Features that vhost-net takes part in.
const BY_VHOST: u64 = bit(VIRTIO_F_VERSION_1)
    | bit(VIRTIO_RING_F_EVENT_IDX)
    | bit(VIRTIO_RING_F_INDIRECT_DESC)
    | bit(VIRTIO_NET_F_MRG_RXBUF);
/// Features of the transport, which a driver may accept whatever the device says.
pub(super) const NEEDED_OF_VHOST: u64 = BY_VHOST & !bit(VIRTIO_NET_F_MRG_RXBUF);

/// All features that can be offered when vhost-net has `features`.
pub(super) fn offered_by_vhost(features: u64) -> u64 {
    features | !BY_VHOST
}

/// What of the driver's choice vhost-net is to be told.
pub(super) fn told_to_vhost(accepted: u64) -> u64 {
    accepted & BY_VHOST
}

/// Whether one frame may be spread over several chains.
pub(super) fn mergeable(accepted: u64) -> bool {
    accepted & bit(VIRTIO_NET_F_MRG_RXBUF) != 0
}

/// Whether the driver knows of all pairs of queues, and not of the first alone.
pub(super) fn several_pairs(accepted: u64) -> bool {
    accepted & bit(VIRTIO_NET_F_MQ) != 0
}

/// Whether the driver has a control queue.
pub(super) fn controls(accepted: u64) -> bool {
    accepted & bit(VIRTIO_NET_F_CTRL_VQ) != 0
}

/// Offloads that the tap is to have: what it may leave to the guest.
pub(super) fn tap_offloads(accepted: u64) -> u32 {
    let wants = |feature| accepted & bit(feature) != 0;
    if !wants(VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let mut flags = libc::TUN_F_CSUM;
    let tso4 = wants(VIRTIO_NET_F_GUEST_TSO4);
    let tso6 = wants(VIRTIO_NET_F_GUEST_TSO6);
    if tso4 {
        flags |= libc::TUN_F_TSO4;
    }
    if tso6 {
        flags |= libc::TUN_F_TSO6;
    }
    if wants(VIRTIO_NET_F_GUEST_ECN) && (tso4 || tso6) {
        flags |= libc::TUN_F_TSO_ECN;
    }
    if wants(VIRTIO_NET_F_GUEST_USO4) && wants(VIRTIO_NET_F_GUEST_USO6) {
        flags |= USO;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_without_offloads_leaves_only_what_needs_none() {
        assert_eq!(offered(0), ALWAYS);
        assert_eq!(tap_offloads(offered(0)), 0);
    }

    #[test]
    fn every_candidate_survives_the_way_to_the_driver_and_back() {
        for candidate in CANDIDATES {
            assert_eq!(tap_offloads(offered(candidate)), candidate);
        }
    }

    #[test]
    fn segmentation_is_not_asked_of_a_driver_without_checksums() {
        let accepted = offered(TSO) & !bit(VIRTIO_NET_F_GUEST_CSUM);
        assert_eq!(tap_offloads(accepted), 0);
    }

    #[test]
    fn vhost_limits_only_what_it_takes_part_in() {
        let without_merging = NEEDED_OF_VHOST;
        let offered = offered(TSO) & offered_by_vhost(without_merging);
        assert!(!mergeable(offered));
        assert_eq!(tap_offloads(offered), TSO);
    }
}
