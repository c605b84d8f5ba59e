//! Making files in the name of the guest's process.
//!
//! The guest's kernel has checked what that process may do, by its own idea of
//! users, groups, capabilities and ACLs. So what is asked for is done, and only
//! what the new file gets from its maker needs the caller: owner, group, whether
//! it keeps its set-group-id bit, and the mode that default ACLs and the umask
//! leave of it. That takes a thread whose credentials and umask are its own.

use std::io;

use rustix::fs::Mode;
use rustix::process::{getegid, geteuid, umask};
use rustix::thread::{
    CapabilitySet, Gid, Uid, UnshareFlags, capabilities, set_capabilities, set_thread_res_gid,
    set_thread_res_uid, unshare_unsafe,
};

/// Gives the calling thread a umask of its own, before it is under its filter.
///
/// # Errors
/// What `unshare(2)` answers.
pub(in super::super) fn prepare_thread() -> io::Result<()> {
    // SAFETY: a working directory, root and umask of this thread's own; memory
    // and descriptors stay shared.
    unsafe { unshare_unsafe(UnshareFlags::FS) }?;
    umask(Mode::empty());
    Ok(())
}

/// A process of the guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) umask: u32,
}

impl Caller {
    /// Makes something in the caller's name, wherever the guest's kernel lets it.
    pub(super) fn make<T>(self, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.act(CapabilitySet::DAC_OVERRIDE, make)
    }

    /// Does something that the guest's kernel has not checked, with the rights
    /// that the caller's user and group have.
    pub(super) fn try_to<T>(self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.act(CapabilitySet::empty(), act)
    }

    fn act<T>(self, keep: CapabilitySet, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        umask(Mode::from_raw_mode(self.umask & 0o777));
        let _group = AsGroup::become_it(self.gid)?;
        let _user = AsUser::become_it(self.uid, keep)?;
        act()
    }
}

struct AsGroup(Gid);

impl AsGroup {
    fn become_it(gid: u32) -> io::Result<Option<Self>> {
        let own = getegid();
        if own.as_raw() == gid {
            return Ok(None);
        }
        if gid == u32::MAX {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        set_thread_res_gid(None, Gid::from_raw(gid), None)?;
        Ok(Some(Self(own)))
    }
}

impl Drop for AsGroup {
    fn drop(&mut self) {
        return_or_abort(set_thread_res_gid(None, self.0, None));
    }
}

struct AsUser(Uid);

impl AsUser {
    fn become_it(uid: u32, keep: CapabilitySet) -> io::Result<Option<Self>> {
        let own = geteuid();
        if own.as_raw() == uid {
            return Ok(None);
        }
        if uid == u32::MAX {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // The real user stays root: then the capabilities stay permitted and
        // come back with the effective user.
        set_thread_res_uid(None, Uid::from_raw(uid), None)?;
        let guard = Self(own);
        let mut sets = capabilities(None)?;
        sets.effective = sets.permitted & keep;
        set_capabilities(None, sets)?;
        Ok(Some(guard))
    }
}

impl Drop for AsUser {
    fn drop(&mut self) {
        return_or_abort(set_thread_res_uid(None, self.0, None));
    }
}

/// A thread with another's credentials would serve all others with them.
fn return_or_abort(result: rustix::io::Result<()>) {
    if let Err(error) = result {
        log::error!("fs: cannot return to the monitor's own credentials: {error}");
        std::process::abort();
    }
}
