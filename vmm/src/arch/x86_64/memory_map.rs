//! How guest memory lies around the devices' hole.

use vm_memory::GuestAddress;

use super::layout::{HOLE_END, HOLE_START};

/// A range of guest physical memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MemoryRange {
    /// First address.
    pub start: GuestAddress,
    /// Length in bytes, at least 1.
    pub len: u64,
}

/// Splits `bytes` of memory into what is below and what is above the hole.
#[must_use]
pub fn ranges(bytes: u64) -> Vec<MemoryRange> {
    let low = bytes.min(HOLE_START);
    let low_range = MemoryRange {
        start: GuestAddress(0),
        len: low,
    };
    let high_range = MemoryRange {
        start: GuestAddress(HOLE_END),
        len: bytes - low,
    };
    [low_range, high_range]
        .into_iter()
        .filter(|range| range.len > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn little_memory_is_one_range() {
        assert_eq!(
            ranges(GIB),
            [MemoryRange {
                start: GuestAddress(0),
                len: GIB
            }]
        );
        assert_eq!(ranges(3 * GIB).len(), 1);
    }

    #[test]
    fn much_memory_goes_on_above_the_hole_and_none_is_lost() {
        let all = ranges(8 * GIB);
        assert_eq!(
            all[1],
            MemoryRange {
                start: GuestAddress(4 * GIB),
                len: 5 * GIB
            }
        );
        assert_eq!(all.iter().map(|range| range.len).sum::<u64>(), 8 * GIB);
    }
}
