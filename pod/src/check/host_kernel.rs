//! System calls of the host's kernel that are newer than some kernels in use.
//! They are tried, because a version says nothing about a container's seccomp
//! filter or about what a distribution has taken over from later.

use std::os::fd::AsFd;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, OpenTreeFlags, fsconfig_set_string, fsopen, open_tree};
use rustix::system::uname;

use super::Finding;

const WHAT: &str = "host kernel";

/// What is tried and the kernel's answer.
type Call = (&'static str, Result<(), Errno>);

pub(super) fn check() -> Finding {
    judge(&calls(), &uname().release().to_string_lossy())
}

/// Makes each call in a way that changes nothing.
fn calls() -> [Call; 8] {
    [
        ("openat2", open_root()),
        ("open_tree", open_root_tree()),
        ("fsopen", fsopen_proc(None)),
        ("procfs with subset=pid", fsopen_proc(Some("pid"))),
        ("move_mount", is_known(libc::SYS_move_mount)),
        ("mount_setattr", is_known(libc::SYS_mount_setattr)),
        ("clone3", is_known(libc::SYS_clone3)),
        ("close_range with CLOSE_RANGE_CLOEXEC", close_nothing()),
    ]
}

fn open_root() -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat2(CWD, "/", flags, Mode::empty(), ResolveFlags::IN_ROOT).map(drop)
}

fn open_root_tree() -> Result<(), Errno> {
    open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLOEXEC).map(drop)
}

fn fsopen_proc(subset: Option<&str>) -> Result<(), Errno> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    match subset {
        Some(subset) => fsconfig_set_string(context.as_fd(), "subset", subset),
        None => Ok(()),
    }
}

/// Null pointers and sizes of nothing: a kernel that knows the call refuses it.
fn is_known(number: libc::c_long) -> Result<(), Errno> {
    // SAFETY: the kernel takes no address from these arguments but null.
    let result = unsafe { libc::syscall(number, 0, 0, 0, 0, 0) };
    match answer(result) {
        Err(Errno::NOSYS) => Err(Errno::NOSYS),
        _ => Ok(()),
    }
}

fn close_nothing() -> Result<(), Errno> {
    let nothing = libc::c_uint::MAX;
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: no descriptor has a number that high.
    let result = unsafe { libc::syscall(libc::SYS_close_range, nothing, nothing, flags) };
    answer(result)
}

fn answer(result: libc::c_long) -> Result<(), Errno> {
    if result < 0 {
        let error = std::io::Error::last_os_error();
        Err(Errno::from_io_error(&error).unwrap_or(Errno::NOSYS))
    } else {
        Ok(())
    }
}

/// A refusal for want of privilege shows that the call is there; an invalid
/// argument is a flag or a parameter that the kernel does not know.
fn is_missing(answer: Result<(), Errno>) -> bool {
    matches!(answer, Err(Errno::NOSYS | Errno::INVAL))
}

fn judge(calls: &[Call], release: &str) -> Finding {
    let missing: Vec<_> = calls
        .iter()
        .filter(|(_, answer)| is_missing(*answer))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return Finding::ok(WHAT, format!("Linux {release} has the system calls"));
    }
    Finding::fail(
        WHAT,
        format!("Linux {release} does not offer {}", missing.join(", ")),
        "use Linux 5.12 or newer, outside of a container with a seccomp filter",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let calls = [
            ("old", Ok(())),
            ("forbidden", Err(Errno::PERM)),
            ("new", Err(Errno::NOSYS)),
            ("newer flag", Err(Errno::INVAL)),
        ];
        let finding = judge(&calls, "5.4.0");
        assert_eq!(finding.verdict, Verdict::Fail);
        assert_eq!(finding.detail, "Linux 5.4.0 does not offer new, newer flag");
        assert_eq!(judge(&calls[..2], "6.1.0").verdict, Verdict::Ok);
    }

    #[test]
    fn a_call_that_no_kernel_has_is_found_missing() {
        assert_eq!(is_known(100_000), Err(Errno::NOSYS));
        assert_eq!(is_known(libc::SYS_clone3), Ok(()));
    }
}
