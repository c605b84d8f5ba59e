//! The namespaces that a monitor is put into.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::Finding;

const WHAT: &str = "namespaces";
const LIMIT: &str = "/proc/sys/user/max_user_namespaces";

const OF_A_MONITOR: UnshareFlags = UnshareFlags::NEWUSER
    .union(UnshareFlags::NEWNS)
    .union(UnshareFlags::NEWNET)
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWUTS)
    .union(UnshareFlags::NEWPID)
    .union(UnshareFlags::NEWCGROUP);

pub(super) fn check() -> Finding {
    let limit = fs::read_to_string(LIMIT).ok();
    judge(try_all(), limit.as_deref())
}

/// Enters all of them in a child that ends before it executes anything.
fn try_all() -> io::Result<()> {
    const WORKED: Errno = Errno::CANCELED;
    let mut command = Command::new("/proc/self/exe");
    // SAFETY: the child has one thread and makes one system call, which touches
    // neither memory nor descriptors; its answer takes the place of an exec's.
    unsafe {
        command.pre_exec(|| {
            unshare_unsafe(OF_A_MONITOR)?;
            Err(WORKED.into())
        });
    }
    match command.spawn() {
        Err(error) if Errno::from_io_error(&error) == Some(WORKED) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("a child went on that was told to stop")),
    }
}

fn judge(result: io::Result<()>, limit: Option<&str>) -> Finding {
    let Err(error) = result else {
        return Finding::ok(WHAT, "a monitor can have its own of each kind");
    };
    let is_off = limit.is_none_or(|limit| limit.trim() == "0");
    let advice = match Errno::from_io_error(&error) {
        _ if limit.is_none() => "use a kernel with CONFIG_USER_NS".into(),
        _ if is_off => format!("echo 15000 > {LIMIT}"),
        Some(Errno::NOSPC | Errno::USERS) => format!("raise {LIMIT}, too many are in use"),
        Some(Errno::PERM | Errno::ACCESS) => {
            "a security module or the container that this runs in forbids user namespaces: allow \
             them (for AppArmor: kernel.apparmor_restrict_unprivileged_userns=0)"
                .into()
        }
        _ => "see the kernel's log (dmesg)".to_owned(),
    };
    Finding::fail(
        WHAT,
        format!("a monitor cannot have its own: {error}"),
        advice,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_decides_what_to_do() {
        let advice = |errno: Errno, limit| judge(Err(errno.into()), limit).advice;
        assert!(advice(Errno::NOSPC, Some("0\n")).starts_with("echo"));
        assert!(advice(Errno::NOSPC, Some("100\n")).starts_with("raise"));
        assert!(advice(Errno::PERM, Some("100\n")).contains("AppArmor"));
        assert!(advice(Errno::INVAL, None).contains("CONFIG_USER_NS"));
    }

    #[test]
    fn the_caller_stays_in_its_own_namespaces() {
        let before = fs::read_link("/proc/thread-self/ns/net").unwrap();
        check();
        assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), before);
    }
}
