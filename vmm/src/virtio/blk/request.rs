//! One request of the driver: header, data and status (virtio 1.2, section 5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use vm_memory::VolatileSlice;

use super::disk::{Disk, SECTOR};
use super::parts::{skip, take_last};
use super::{MAX_DATA, MAX_DESCRIPTORS};
use crate::virtio::queue::{Chain, QueueError};

/// Bytes of a header: type, nothing, first sector.
const HEADER: usize = 16;
const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Why a request is answered with an error.
enum Failure {
    /// The driver asks for what it was not offered.
    Unsupported,
    /// The driver asks for what there is not, or may not have.
    Refused,
    /// The host's device failed.
    Host(std::io::Error),
}

impl Failure {
    fn status(&self) -> u32 {
        match self {
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
            Self::Refused | Self::Host(_) => VIRTIO_BLK_S_IOERR,
        }
    }
}

/// Serves a request; returns how many bytes of the chain's buffers are written. `write_through`
/// has each write be on the device before its answer.
///
/// # Errors
/// [`QueueError`] for a chain that has no header or no room for an answer.
pub(super) fn serve(
    disk: &Disk,
    write_through: bool,
    chain: &Chain<'_>,
) -> Result<u32, QueueError> {
    if chain.readable().len() + chain.writable().len() > MAX_DESCRIPTORS {
        return Err(QueueError::Malformed("a request in too many buffers"));
    }
    let mut header = [0; HEADER];
    if chain.read(&mut header)? < HEADER {
        return Err(QueueError::Malformed("a request without a header"));
    }
    let mut output = chain.readable_slices()?;
    skip(&mut output, HEADER);
    let mut input = chain.writable_slices()?;
    let status = take_last(&mut input).ok_or(QueueError::Malformed(
        "a request without room for its status",
    ))?;

    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let done = match u32::from_le_bytes([a, b, c, d]) {
        VIRTIO_BLK_T_IN => read(disk, sector, input),
        VIRTIO_BLK_T_OUT => write(disk, write_through, sector, output),
        VIRTIO_BLK_T_FLUSH => disk.flush().map(|()| 0).map_err(Failure::Host),
        VIRTIO_BLK_T_GET_ID => Ok(get_id(disk, &input)),
        _ => Err(Failure::Unsupported),
    };
    let (code, written) = match done {
        Ok(written) => (VIRTIO_BLK_S_OK, written),
        Err(failure) => {
            if let Failure::Host(error) = &failure {
                log::warn!("blk: the host's device failed: {error}");
            }
            (failure.status(), 0)
        }
    };
    status.copy_from(&code.to_le_bytes()[..1]);
    Ok(written + 1)
}

fn read(disk: &Disk, sector: u64, parts: Vec<VolatileSlice<'_>>) -> Result<u32, Failure> {
    let (offset, len) = place(disk, sector, &parts)?;
    disk.read(offset, parts).map_err(Failure::Host)?;
    Ok(len)
}

fn write(
    disk: &Disk,
    write_through: bool,
    sector: u64,
    parts: Vec<VolatileSlice<'_>>,
) -> Result<u32, Failure> {
    let (offset, _) = place(disk, sector, &parts)?;
    if disk.is_read_only() {
        return Err(Failure::Refused);
    }
    disk.write(offset, parts).map_err(Failure::Host)?;
    if write_through {
        disk.flush().map_err(Failure::Host)?;
    }
    Ok(0)
}

/// Where data begins on the device and how long it is, in bytes; all of it is on the device.
fn place(disk: &Disk, sector: u64, parts: &[VolatileSlice<'_>]) -> Result<(u64, u32), Failure> {
    let len = parts.iter().map(|part| part.len() as u64).sum::<u64>();
    let end = sector
        .checked_add(len / SECTOR)
        .filter(|end| *end <= disk.sectors() && len.is_multiple_of(SECTOR))
        .ok_or(Failure::Refused)?;
    let len = u32::try_from(len).ok().filter(|len| *len <= MAX_DATA);
    let len = len.ok_or(Failure::Refused)?;
    Ok((end * SECTOR - u64::from(len), len))
}

/// The serial number, filled up with zeroes, as far as there is room.
fn get_id(disk: &Disk, parts: &[VolatileSlice<'_>]) -> u32 {
    let mut id = [0; ID_BYTES];
    for (byte, value) in id.iter_mut().zip(disk.serial()) {
        *byte = *value;
    }
    let mut done = 0;
    for part in parts {
        let len = part.len().min(ID_BYTES - done);
        part.copy_from(&id[done..done + len]);
        done += len;
    }
    u32::try_from(done).unwrap_or(0)
}

#[cfg(test)]
#[path = "request_test.rs"]
mod tests;
