//! Mount options as text, as `mount(8)` and containerd write them.

use rustix::mount::MountFlags;

/// Options by their kind.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Options {
    /// Those that the kernel knows for every file system.
    pub(crate) flags: MountFlags,
    /// Those of the file system itself.
    pub(crate) data: Vec<String>,
}

/// Options that set a flag, and their opposites.
const FLAGS: &[(&str, &str, MountFlags)] = &[
    ("ro", "rw", MountFlags::RDONLY),
    ("nosuid", "suid", MountFlags::NOSUID),
    ("nodev", "dev", MountFlags::NODEV),
    ("noexec", "exec", MountFlags::NOEXEC),
    ("sync", "async", MountFlags::SYNCHRONOUS),
    ("dirsync", "", MountFlags::DIRSYNC),
    ("mand", "nomand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
    ("noatime", "atime", MountFlags::NOATIME),
    ("nodiratime", "diratime", MountFlags::NODIRATIME),
    ("relatime", "norelatime", MountFlags::RELATIME),
    ("strictatime", "nostrictatime", MountFlags::STRICTATIME),
    ("bind", "", MountFlags::BIND),
];

/// What the kernel cannot do by itself.
const REFUSED: &[(&str, &str)] = &[
    ("loop", "loop devices are not set up here"),
    ("uidmap=", "ID-mapped roots are not supported"),
    ("gidmap=", "ID-mapped roots are not supported"),
];

impl Options {
    /// Sorts `options`; the last of two that contradict each other counts.
    ///
    /// # Errors
    /// One line about the first that cannot be honoured.
    pub(crate) fn parse(options: &[String]) -> Result<Self, String> {
        let mut parsed = Self {
            flags: MountFlags::empty(),
            data: Vec::new(),
        };
        for option in options {
            let refused = |(name, _): &&(&str, &str)| match name.strip_suffix('=') {
                Some(_) => option.starts_with(name),
                None => option == name,
            };
            if let Some((_, reason)) = REFUSED.iter().find(refused) {
                return Err(format!("option {option:?}: {reason}"));
            }
            parsed.add(option);
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) {
        if matches!(option, "" | "defaults") {
            return;
        }
        if option == "rbind" {
            self.flags |= MountFlags::BIND | MountFlags::REC;
            return;
        }
        for (sets, clears, flag) in FLAGS {
            if option == *sets {
                self.flags |= *flag;
                return;
            }
            if option == *clears {
                self.flags -= *flag;
                return;
            }
        }
        self.data.push(option.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Options {
        let options: Vec<_> = text.split(',').map(str::to_owned).collect();
        Options::parse(&options).unwrap()
    }

    #[test]
    fn flags_and_the_file_systems_own_are_told_apart() {
        let options = parse("rbind,ro,nodev,lowerdir=/a:/b,index=off,defaults");
        assert_eq!(
            options.flags,
            MountFlags::BIND | MountFlags::REC | MountFlags::RDONLY | MountFlags::NODEV
        );
        assert_eq!(options.data, ["lowerdir=/a:/b", "index=off"]);
    }

    #[test]
    fn the_last_one_counts() {
        assert_eq!(parse("ro,rw").flags, MountFlags::empty());
        assert_eq!(parse("rw,ro").flags, MountFlags::RDONLY);
    }

    #[test]
    fn what_needs_more_than_the_kernel_is_refused() {
        for option in ["loop", "uidmap=0:1:2"] {
            let error = Options::parse(&[option.to_owned()]).unwrap_err();
            assert!(error.contains(option), "{error}");
        }
    }
}
