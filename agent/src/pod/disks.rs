//! Disks that come and go while the pod runs.
//!
//! The kernel looks at each place of a device once, when it boots. One without a device is left
//! without a driver; it can be bound to one later, as often as one likes. Binding reads the
//! disk, so it is done where nothing else waits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nacre_protocol::agent::AttachDiskResponse;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Doing, Error};

const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";
const DEVICES: &str = "/sys/bus/platform/devices";

/// How long a disk may stay mounted after its last container's end: the kernel unmounts what
/// was a container's behind its back.
const UNMOUNTING: Duration = Duration::from_secs(2);
const POLLING: Duration = Duration::from_millis(10);

/// Has the driver look at the device with this number.
pub(crate) async fn attach(device: u32) -> Result<AttachDiskResponse, Error> {
    blocking(move || {
        let place = Place::new(device);
        fs::write(format!("{DRIVER}/bind"), &place.name).map_err(|error| {
            Error::FailedPrecondition(format!("device {device} is no disk: {error}"))
        })?;
        let found = place.disk().and_then(|disk| match disk {
            Some(disk) => disk.describe(),
            None => Err(Error::FailedPrecondition(format!(
                "device {device}: its driver makes no disk of it"
            ))),
        });
        if found.is_err()
            && let Err(error) = place.unbind()
        {
            log::warn!("{error}");
        }
        found
    })
    .await
}

/// Has the driver let go of the device with this number.
pub(crate) async fn detach(device: u32) -> Result<(), Error> {
    blocking(move || {
        let place = Place::new(device);
        if let Some(disk) = place.disk()? {
            disk.wait_until_unused();
        }
        place.unbind()
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|panic| Error::internal("the agent failed", panic))?
}

/// Where a device may be, as the kernel calls it.
struct Place {
    name: String,
    path: PathBuf,
}

impl Place {
    fn new(device: u32) -> Self {
        let name = format!("virtio-mmio.{device}");
        let path = Path::new(DEVICES).join(&name);
        Self { name, path }
    }

    fn unbind(&self) -> Result<(), Error> {
        if !self.path.join("driver").exists() {
            return Ok(());
        }
        fs::write(format!("{DRIVER}/unbind"), &self.name)
            .doing(&format!("cannot detach {}", self.name))
    }

    /// The disk that the driver has made of the device.
    fn disk(&self) -> Result<Option<Disk>, Error> {
        let doing = "cannot look for the disk";
        let virtio = match first_in(&self.path, |name| name.starts_with("virtio")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            found => found.doing(doing)?,
        };
        let Some(virtio) = virtio else {
            return Ok(None);
        };
        match first_in(&virtio.join("block"), |_| true) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => Ok(found.doing(doing)?.map(|path| Disk { path })),
        }
    }
}

fn first_in(dir: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&wanted) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// A block device, by its directory below `/sys`.
struct Disk {
    path: PathBuf,
}

impl Disk {
    fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    fn describe(&self) -> Result<AttachDiskResponse, Error> {
        let number = fs::read_to_string(self.path.join("dev")).doing("cannot read the number")?;
        let (major, minor) = parse_number(&number)
            .ok_or_else(|| Error::Internal(format!("{number:?} is no number of a device")))?;
        Ok(AttachDiskResponse {
            name: self.name(),
            major,
            minor,
            ..AttachDiskResponse::default()
        })
    }

    /// Waits until nothing has the disk mounted, for a moment.
    fn wait_until_unused(&self) {
        let node = Path::new("/dev").join(self.name());
        let deadline = Instant::now() + UNMOUNTING;
        // A mounted one cannot be had alone.
        let alone = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        while matches!(
            rustix::fs::open(&node, alone, Mode::empty()),
            Err(Errno::BUSY)
        ) {
            if Instant::now() > deadline {
                log::warn!("{} is detached while it is mounted", node.display());
                return;
            }
            std::thread::sleep(POLLING);
        }
    }
}

fn parse_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_devices_are_read() {
        assert_eq!(parse_number("254:16\n"), Some((254, 16)));
        for text in ["", "254", "254:", ":16", "a:b", "1:2:3"] {
            assert_eq!(parse_number(text), None, "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_device_that_is_not_there_is_neither_attached_nor_in_the_way() {
        let error = attach(u32::MAX).await.unwrap_err();
        assert!(matches!(error, Error::FailedPrecondition(_)), "{error}");
        detach(u32::MAX).await.unwrap();
    }

    #[test]
    fn a_disk_is_found_where_its_driver_has_put_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place {
            name: "virtio-mmio.7".to_owned(),
            path: dir.path().to_owned(),
        };
        assert!(place.disk().unwrap().is_none());
        fs::create_dir_all(dir.path().join("virtio3")).unwrap();
        assert!(place.disk().unwrap().is_none());
        let vdb = dir.path().join("virtio3/block/vdb");
        fs::create_dir_all(&vdb).unwrap();
        fs::write(vdb.join("dev"), "254:16\n").unwrap();
        let found = place.disk().unwrap().unwrap().describe().unwrap();
        assert_eq!(
            (found.name.as_str(), found.major, found.minor),
            ("vdb", 254, 16)
        );
    }
}
