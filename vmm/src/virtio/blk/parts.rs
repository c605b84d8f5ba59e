//! Cuts the buffers of a request where its header, data and status meet: a driver may put
//! the borders of its descriptors anywhere (virtio 1.2, section 2.7.4).

use vm_memory::VolatileSlice;

/// Takes `bytes` from the front away, or all if there are fewer.
pub(super) fn skip(parts: &mut Vec<VolatileSlice<'_>>, mut bytes: usize) {
    let mut whole = 0;
    for part in parts.iter_mut() {
        if bytes < part.len() {
            // Within the part, so there is such a rest.
            if let Ok(rest) = part.offset(bytes) {
                *part = rest;
            }
            break;
        }
        bytes -= part.len();
        whole += 1;
    }
    parts.drain(..whole);
}

/// Takes the last byte away and returns it; `None` if there is none.
pub(super) fn take_last<'m>(parts: &mut Vec<VolatileSlice<'m>>) -> Option<VolatileSlice<'m>> {
    let last = parts.pop()?;
    let border = last.len().checked_sub(1)?;
    if border > 0 {
        parts.push(last.subslice(0, border).ok()?);
    }
    last.offset(border).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts of these lengths in one buffer, whose bytes count up.
    fn with_parts(lengths: &[usize], test: impl FnOnce(&mut Vec<VolatileSlice<'_>>)) {
        let total = lengths.iter().sum::<usize>();
        let mut bytes: Vec<u8> = (0..total).map(|byte| u8::try_from(byte).unwrap()).collect();
        let whole = VolatileSlice::from(bytes.as_mut_slice());
        let mut start = 0;
        let mut parts = Vec::new();
        for length in lengths {
            parts.push(whole.subslice(start, *length).unwrap());
            start += length;
        }
        test(&mut parts);
    }

    fn bytes(parts: &[VolatileSlice<'_>]) -> Vec<u8> {
        let of = |part: &VolatileSlice<'_>| {
            let mut bytes = vec![0; part.len()];
            part.copy_to(&mut bytes[..]);
            bytes
        };
        parts.iter().flat_map(of).collect()
    }

    #[test]
    fn a_front_ends_within_a_part_or_with_it() {
        for (skipped, left) in [(0, 6), (1, 5), (2, 4), (3, 3), (6, 0), (9, 0)] {
            with_parts(&[2, 3, 1], |parts| {
                skip(parts, skipped);
                let expected: Vec<u8> = (6 - left..6).collect();
                assert_eq!(bytes(parts), expected);
            });
        }
    }

    #[test]
    fn the_last_byte_may_be_a_part_of_its_own() {
        for lengths in [&[3][..], &[2, 1], &[1, 1, 1]] {
            with_parts(lengths, |parts| {
                assert_eq!(bytes(&[take_last(parts).unwrap()]), [2]);
                assert_eq!(bytes(parts), [0, 1]);
            });
        }
        with_parts(&[], |parts| assert!(take_last(parts).is_none()));
    }
}
