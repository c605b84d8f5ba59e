//! Block devices of the host that a specification hands to its container: which they are, and
//! what becomes of them in the guest.
//!
//! There are two ways to name one: in `linux.devices`, as engines do for a volume of
//! `volumeMode: Block`, and as the source of a mount whose type is a file system of disks. A
//! device that is merely listed is not handed over, since engines list all of the host's for a
//! privileged container: a rule of `linux.resources.devices` must name its number, as engines
//! write one for each device that somebody has asked for.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDeviceCgroup, LinuxDeviceType, Mount, Spec};
use serde_json::Value;

use super::refuse::find;
use super::{Refusal, mounts};
use crate::agent::GuestDisk;
use crate::host::HostDisk;

/// File systems of disks that the guest's kernel has.
pub(super) const FILE_SYSTEMS: &[&str] = &["ext2", "ext3", "ext4"];

const NO_USERS: &str = "a container with a user namespace cannot be given block devices";

/// Where a specification names a disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    /// This one of `linux.devices`.
    Device(usize),
    /// The source of this one of `mounts`.
    Mount(usize),
}

/// A disk of a specification.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(super) place: Place,
    host: HostDisk,
}

impl Disk {
    /// The host's device.
    pub(crate) fn host(&self) -> &HostDisk {
        &self.host
    }

    /// Whether nothing of the host may have it mounted meanwhile: two kernels that write one
    /// file system destroy it.
    pub(crate) fn is_alone(&self) -> bool {
        matches!(self.place, Place::Mount(_)) && !self.host.is_read_only()
    }
}

/// What the rules say of a block device that one of them names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Access {
    write: bool,
}

/// What the last rule that names the number says, less what wider ones after it deny; `None`
/// without such a rule, or when the container may not read.
pub(super) fn access(spec: &Value, major: i64, minor: i64) -> Option<Access> {
    let rules: Vec<_> = find(spec, "linux.resources.devices[*]")
        .map(|(_, rule)| Rule(rule))
        .collect();
    let named = rules.iter().rposition(|rule| rule.names(major, minor))?;
    let (named, later) = rules.get(named..)?.split_first()?;
    let allows = |letter| {
        named.is_allowed()
            && named.has(letter)
            && !later
                .iter()
                .any(|rule| !rule.is_allowed() && rule.has(letter) && rule.covers(major, minor))
    };
    allows('r').then(|| Access { write: allows('w') })
}

/// A rule of `linux.resources.devices`.
struct Rule<'a>(&'a Value);

impl Rule<'_> {
    /// Whether it is of that block device and of no other.
    fn names(&self, major: i64, minor: i64) -> bool {
        self.kind() == Some("b")
            && self.number("major") == Some(major)
            && self.number("minor") == Some(minor)
    }

    /// Whether that block device is among those it is of: what it does not say is any.
    fn covers(&self, major: i64, minor: i64) -> bool {
        let is = |key, number| self.number(key).is_none_or(|given| given == number);
        matches!(self.kind(), None | Some("a" | "b")) && is("major", major) && is("minor", minor)
    }

    fn kind(&self) -> Option<&str> {
        self.0.get("type").and_then(Value::as_str)
    }

    /// A major or minor; none is written as -1, too.
    fn number(&self, key: &str) -> Option<i64> {
        let number = self.0.get(key).and_then(Value::as_i64);
        number.filter(|number| *number >= 0)
    }

    fn is_allowed(&self) -> bool {
        self.0.get("allow") == Some(&Value::Bool(true))
    }

    fn has(&self, letter: char) -> bool {
        let letters = self.0.get("access").and_then(Value::as_str);
        letters.unwrap_or("rwm").contains(letter)
    }
}

/// Whether a mount is of a file system that is on a disk.
pub(super) fn is_disk(mount: &Mount) -> bool {
    let kind = mount.typ().as_deref().unwrap_or_default();
    FILE_SYSTEMS.contains(&kind) && !mounts::is_bind(mount)
}

/// Opens the disks of a specification that was accepted; `value` is the same as it was read.
pub(super) fn open(dir: &Path, spec: &Spec, value: &Value) -> Result<Vec<Disk>, Refusal> {
    let devices = find(value, "linux.devices[*]").enumerate();
    let devices = devices.filter_map(|(index, (field, device))| {
        let number = |key| device.get(key).and_then(Value::as_i64).unwrap_or(0);
        if device.get("type").and_then(Value::as_str) != Some("b") {
            return None;
        }
        let access = access(value, number("major"), number("minor"))?;
        Some(open_device(
            index,
            field,
            (number("major"), number("minor")),
            access,
        ))
    });
    let all_mounts = spec.mounts().iter().flatten().enumerate();
    let disks: Vec<_> = devices
        .chain(
            all_mounts
                .filter(|(_, mount)| is_disk(mount))
                .map(|(index, mount)| open_mount(dir, index, mount)),
        )
        .collect::<Result<_, _>>()?;
    let has_users = find(value, "linux.namespaces[*].type").any(|(_, kind)| kind == "user");
    match disks.first() {
        Some(disk) if has_users => Err(Refusal::new(field_of(disk.place), NO_USERS)),
        _ => Ok(disks),
    }
}

fn field_of(place: Place) -> String {
    match place {
        Place::Device(index) => format!("linux.devices[{index}]"),
        Place::Mount(index) => format!("mounts[{index}].source"),
    }
}

fn open_device(
    index: usize,
    field: String,
    (major, minor): (i64, i64),
    access: Access,
) -> Result<Disk, Refusal> {
    let number = |number: i64| u32::try_from(number).ok();
    let (Some(major), Some(minor)) = (number(major), number(minor)) else {
        return Err(Refusal::new(
            field,
            "major and minor must be device numbers",
        ));
    };
    let host = HostDisk::open_number(major, minor, !access.write)
        .map_err(|error| Refusal::new(field, error.to_string()))?;
    Ok(Disk {
        place: Place::Device(index),
        host,
    })
}

fn open_mount(dir: &Path, index: usize, mount: &Mount) -> Result<Disk, Refusal> {
    let field = format!("mounts[{index}].source");
    let Some(source) = mount.source() else {
        return Err(Refusal::new(field, "missing"));
    };
    let host = HostDisk::open_path(&dir.join(source), mounts::is_read_only(mount))
        .map_err(|error| Refusal::new(field, error.to_string()))?;
    Ok(Disk {
        place: Place::Mount(index),
        host,
    })
}

/// Disks by where the specification names them, as the guest has them.
#[derive(Debug, Default)]
pub(super) struct InGuest<'a>(Vec<(&'a Disk, &'a GuestDisk)>);

impl<'a> InGuest<'a> {
    /// Of each disk, in the same order, what the guest has it as.
    pub(super) fn new(disks: &'a [Disk], guest: &'a [GuestDisk]) -> Self {
        Self(disks.iter().zip(guest).collect())
    }

    /// Whether that place of the specification is of a disk that the guest has; if so, its
    /// number there.
    pub(super) fn number_of_device(&self, index: usize) -> Option<(i64, i64)> {
        let mut disks = self.0.iter();
        let (_, guest) = disks.find(|(disk, _)| disk.place == Place::Device(index))?;
        Some((guest.major.into(), guest.minor.into()))
    }

    /// Gives mounts of disks the guest's sources.
    pub(super) fn set_sources(&self, mounts: &mut [Mount]) {
        for (disk, guest) in &self.0 {
            if let Place::Mount(index) = disk.place
                && let Some(mount) = mounts.get_mut(index)
            {
                mount.set_source(Some(PathBuf::from("/dev").join(&guest.name)));
            }
        }
    }

    /// Rules that name block devices of the host name the guest's instead, or nothing there:
    /// what has the same number in the guest is another device.
    pub(super) fn set_rules(&self, linux: &mut Linux) {
        let resources = linux.resources_mut().as_mut();
        let rules = resources.and_then(|resources| resources.devices_mut().as_mut());
        if let Some(rules) = rules {
            let given = std::mem::take(rules).into_iter();
            *rules = given.filter_map(|rule| self.in_guest(rule)).collect();
        }
    }

    fn in_guest(&self, mut rule: LinuxDeviceCgroup) -> Option<LinuxDeviceCgroup> {
        let (Some(LinuxDeviceType::B), Some(major @ 0..)) = (rule.typ(), rule.major()) else {
            return Some(rule);
        };
        let minor = rule.minor()?;
        let (_, guest) = self.0.iter().find(|(disk, _)| {
            let (host_major, host_minor) = disk.host.number();
            (major, minor) == (host_major.into(), host_minor.into())
        })?;
        rule.set_major(Some(guest.major.into()));
        rule.set_minor(Some(guest.minor.into()));
        Some(rule)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(rules: &Value) -> Value {
        json!({ "linux": { "resources": { "devices": rules } } })
    }

    #[test]
    fn only_a_rule_with_the_number_hands_a_device_over_as_far_as_nothing_later_denies() {
        let name = |allow: bool, access: &str| json!({ "allow": allow, "type": "b", "major": 7, "minor": 1, "access": access });
        let any = json!({ "allow": true, "access": "rwm" });
        let of_kind = json!({ "allow": true, "type": "b", "access": "rwm" });
        let of_driver = json!({ "allow": true, "type": "b", "major": 7, "access": "rwm" });
        let any_denied = json!({ "allow": false, "access": "rwm" });
        let driver_denied = |access: &str| json!({ "allow": false, "type": "b", "major": 7, "minor": -1, "access": access });
        let other_denied = json!({ "allow": false, "type": "b", "major": 8, "access": "rwm" });
        let other = json!({ "allow": true, "type": "c", "major": 7, "minor": 1, "access": "rwm" });
        let read = Some(Access { write: false });
        let write = Some(Access { write: true });
        for (given, expected) in [
            (json!([]), None),
            (json!([any]), None),
            (json!([of_kind]), None),
            (json!([of_driver]), None),
            (json!([other]), None),
            (json!([name(true, "rwm")]), write),
            (json!([name(true, "rw"), any]), write),
            (json!([name(true, "r")]), read),
            (json!([name(true, "rm")]), read),
            (json!([name(true, "wm")]), None),
            (json!([name(false, "rwm")]), None),
            (json!([name(true, "rwm"), name(false, "rwm")]), None),
            (json!([name(false, "rwm"), name(true, "rm")]), read),
            (json!([any_denied, name(true, "rwm")]), write),
            (json!([name(true, "rwm"), any_denied]), None),
            (json!([name(true, "rwm"), driver_denied("rwm")]), None),
            (json!([name(true, "rwm"), driver_denied("w")]), read),
            (json!([name(true, "rwm"), driver_denied("m")]), write),
            (json!([name(true, "rwm"), other_denied]), write),
        ] {
            assert_eq!(access(&rules(&given), 7, 1), expected, "{given}");
            assert_eq!(access(&rules(&given), 7, 2), None, "{given}");
        }
    }

    fn disk(place: Place, minor: u32, read_only: bool) -> Disk {
        Disk {
            place,
            host: HostDisk::imagined(7, minor, read_only),
        }
    }

    fn guest(name: &str, minor: u32) -> GuestDisk {
        GuestDisk {
            name: name.to_owned(),
            major: 254,
            minor,
        }
    }

    #[test]
    fn rules_that_name_devices_of_the_host_name_the_guests_or_are_left_out() {
        let disks = [
            disk(Place::Device(0), 1, false),
            disk(Place::Mount(4), 2, true),
            disk(Place::Mount(5), 3, false),
        ];
        let guest = [guest("vda", 0), guest("vdb", 16), guest("vdc", 32)];
        let in_guest = InGuest::new(&disks, &guest);
        let given = json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "b", "major": 7, "minor": 1, "access": "rm" },
            { "allow": true, "type": "b", "major": 254, "minor": 16, "access": "rwm" },
            { "allow": true, "type": "b", "major": 254, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
        ]);
        let mut linux = Linux::default();
        linux.set_resources(serde_json::from_value(json!({ "devices": given })).unwrap());
        in_guest.set_rules(&mut linux);
        let rules = serde_json::to_value(linux.resources().as_ref().unwrap().devices()).unwrap();
        assert_eq!(
            rules,
            json!([
                { "allow": false, "access": "rwm" },
                { "allow": true, "type": "b", "major": 254, "minor": 0, "access": "rm" },
                { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
            ])
        );
        assert_eq!(in_guest.number_of_device(0), Some((254, 0)));
        assert_eq!(in_guest.number_of_device(4), None);
    }

    #[test]
    fn a_mount_of_a_disk_has_the_guests_source_and_the_disk_alone_if_it_writes() {
        let (read, write) = (
            disk(Place::Mount(0), 1, true),
            disk(Place::Mount(1), 2, false),
        );
        assert!(!read.is_alone() && write.is_alone());
        assert!(!disk(Place::Device(0), 1, false).is_alone());
        let mut mounts = vec![Mount::default(), Mount::default()];
        let disks = [read, write];
        InGuest::new(&disks, &[guest("vda", 0), guest("vdb", 16)]).set_sources(&mut mounts);
        let sources: Vec<_> = mounts.iter().map(|mount| mount.source().clone()).collect();
        assert_eq!(sources, [Some("/dev/vda".into()), Some("/dev/vdb".into())]);
    }
}
