//! The ids with which a process of root acts for a moment. On Redox each change of an id is a
//! request to the manager of processes.

use std::io;

use crate::layer::Owner;

/// Calls `act` with other effective ids, and takes the user of root again. The group stays, so that
/// the next call for it costs less; [`leave_group`] ends that. The process must have one thread.
///
/// # Errors
///
/// - EPERM: the process does not belong to root.
pub fn act_as<T>(owner: Owner, act: impl FnOnce() -> T) -> io::Result<T> {
    // SAFETY: the call touches no memory.
    if unsafe { libc::getegid() } as u32 != owner.gid {
        set_group(owner.gid)?;
    }
    let acted = set_user(owner.uid).map(|()| act());
    set_user(0)?;
    acted
}

/// Takes the group of root again.
///
/// # Errors
///
/// - EPERM: the process does not belong to root.
pub fn leave_group() -> io::Result<()> {
    set_group(0)
}

fn set_user(uid: u32) -> io::Result<()> {
    // SAFETY: the call touches no memory.
    answer(unsafe { libc::seteuid(uid as libc::uid_t) })
}

fn set_group(gid: u32) -> io::Result<()> {
    // SAFETY: the call touches no memory.
    answer(unsafe { libc::setegid(gid as libc::gid_t) })
}

fn answer(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
