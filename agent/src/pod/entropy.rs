//! Random bytes of the host for the guest's generator.

use std::fs::File;
use std::os::fd::AsRawFd;

use crate::error::{Doing, Error};

/// Bytes taken at once; the generator needs 32.
const MAX_BYTES: usize = 512;

/// `struct rand_pool_info`, linux/random.h.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    byte_count: i32,
    bytes: [u8; MAX_BYTES],
}

mod ioctl {
    // RNDADDENTROPY of linux/random.h; its size is that of two integers,
    // whatever follows them.
    nix::ioctl_write_ptr!(add_entropy, b'R', 0x03, [i32; 2]);
}

/// Adds bytes to the generator and credits all of them.
pub(super) fn add(bytes: &[u8]) -> Result<(), Error> {
    if bytes.is_empty() {
        return Ok(());
    }
    let info = pool_info(bytes)?;
    let random = File::options()
        .write(true)
        .open("/dev/random")
        .doing("cannot open /dev/random")?;
    // SAFETY: the kernel reads two integers and then as many bytes as the
    // second says, all of them inside `info`.
    unsafe { ioctl::add_entropy(random.as_raw_fd(), std::ptr::from_ref(&info).cast()) }
        .doing("cannot add entropy")?;
    Ok(())
}

fn pool_info(entropy: &[u8]) -> Result<PoolInfo, Error> {
    let mut bytes = [0; MAX_BYTES];
    let Some(place) = bytes.get_mut(..entropy.len()) else {
        let message = format!("entropy: more than {MAX_BYTES} bytes");
        return Err(Error::InvalidArgument(message));
    };
    place.copy_from_slice(entropy);
    let byte_count = i32::try_from(entropy.len()).unwrap_or(0);
    Ok(PoolInfo {
        entropy_bits: byte_count * 8,
        byte_count,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_credited_with_its_bits() {
        let info = pool_info(&[7; 64]).unwrap();
        assert_eq!((info.entropy_bits, info.byte_count), (512, 64));
        assert_eq!(info.bytes[..65], [[7; 64].as_slice(), &[0]].concat());
    }

    #[test]
    fn more_than_the_buffer_is_refused() {
        pool_info(&[0; MAX_BYTES]).unwrap();
        assert!(matches!(
            pool_info(&[0; MAX_BYTES + 1]),
            Err(Error::InvalidArgument(_))
        ));
    }
}
