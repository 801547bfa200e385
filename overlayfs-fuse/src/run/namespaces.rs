//! The namespaces of the command, and the ids in them.
//!
//! The first process in them is process 1 there ([`super::init`]). Its user is the caller, with the
//! same id, or shown as root. All of root's ids show as they are.

use std::fs;
use std::io;
use std::path::Path;

use overlayfs::process::Side;
use rustix::process::{Pid, getegid, geteuid};

/// Starts a copy of this process in new namespaces: users, mounts, processes, shared memory, and
/// the network if `no_net`.
///
/// # Errors
///
/// - ENOSPC, EPERM: the system permits the user no such namespace.
/// - EAGAIN: there are too many processes.
///
/// # Safety
///
/// The process must have one thread.
pub unsafe fn enter(no_net: bool) -> io::Result<Side> {
    let always = libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;
    let flags = always | if no_net { libc::CLONE_NEWNET } else { 0 };
    // SAFETY: the structure has only numbers, for which zero is a value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: the structure has its size. Without a stack and CLONE_VM the call works like fork(2),
    // and the process has one thread, as the caller promises.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        child => Ok(Side::Parent(child as libc::pid_t)),
    }
}

/// The user and the group that the command sees as its own.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    /// Whether the caller is root, so that all ids show as they are.
    pub all: bool,
    /// The ids of the caller.
    outside: (u32, u32),
    /// The same in the namespace.
    inside: (u32, u32),
}

impl Ids {
    /// Returns the ids for this process. `root` shows the caller as root.
    pub fn new(root: bool) -> Self {
        let outside = (geteuid().as_raw(), getegid().as_raw());
        Self { all: geteuid().is_root(), outside, inside: if root { (0, 0) } else { outside } }
    }

    /// Returns the mount options with which an overlay shows every object as one of the caller. In
    /// the namespace others have no id, and an object without an owner cannot be changed.
    pub fn mount_options(&self) -> String {
        let ((uid, gid), (shown_uid, shown_gid)) = (self.outside, self.inside);
        match self.all {
            true => String::new(),
            false => format!(
                "uidmapping={uid}:{shown_uid}:1,gidmapping={gid}:{shown_gid}:1,squash_to_uid={shown_uid},\
                 squash_to_gid={shown_gid}"
            ),
        }
    }

    /// Maps the ids in the namespace of a process.
    ///
    /// # Errors
    ///
    /// - EPERM: the system permits it not.
    pub fn map(&self, process: Pid) -> io::Result<()> {
        let of = Path::new("/proc").join(process.as_raw_nonzero().to_string());
        let same =
            |map: &str| Ok::<_, io::Error>(to_themselves(&fs::read_to_string(Path::new("/proc/self").join(map))?));
        let [uids, gids] = match self.all {
            true => [same("uid_map")?, same("gid_map")?],
            false => {
                fs::write(of.join("setgroups"), "deny")?;
                let one = |inside, outside| format!("{inside} {outside} 1\n");
                [one(self.inside.0, self.outside.0), one(self.inside.1, self.outside.1)]
            }
        };
        fs::write(of.join("uid_map"), uids)?;
        fs::write(of.join("gid_map"), gids)
    }
}

/// Returns a map that has each id of another one as itself.
fn to_themselves(map: &str) -> String {
    let lines = map.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (first, length) = (words.next()?, words.nth(1)?);
        Some(format!("{first} {first} {length}\n"))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_root_has_each_id_as_itself() {
        assert_eq!(to_themselves("         0          0 4294967295\n"), "0 0 4294967295\n");
        assert_eq!(to_themselves("0 1000 1\n1 100000 65536\n"), "0 0 1\n1 1 65536\n");
    }
}
