//! The state that a process inherits from its parent, and how the daemon changes it: limits,
//! signals, the umask, descriptors.
//!
//! The standard library opens closed standard streams as `/dev/null` before `main`. So no other
//! descriptor has their numbers.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;

use overlayfs::process::{mask_signals, signal_set};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limits that the daemon raises as far as the system allows. One daemon serves all users of a
/// mount.
const RAISED: [Resource; 6] =
    [Resource::Nofile, Resource::Fsize, Resource::As, Resource::Data, Resource::Cpu, Resource::Nproc];

/// Closes the inherited descriptors, so that a process that waits for their end does not wait for
/// the daemon. The standard streams stay open, and those that an argument names, such as
/// `/dev/fd/3`.
///
/// # Safety
///
/// Nothing in this process may have opened a descriptor yet.
pub unsafe fn close_descriptors(arguments: &[OsString]) {
    let mut first = 3;
    for named in arguments.iter().flat_map(|argument| named_descriptors(argument)).collect::<BTreeSet<_>>() {
        if named >= first {
            close_range(first, named - 1);
            first = named + 1;
        }
    }
    close_range(first, u32::MAX);
}

/// Marks the descriptors that these arguments name, except pipes, to be closed by execve(2).
pub fn keep_named_pipes(arguments: &[OsString]) {
    for number in arguments.iter().flat_map(|argument| named_descriptors(argument)) {
        // SAFETY: both calls take a number and change no memory. A number without a descriptor is an
        // error of the call.
        unsafe {
            let mut stat = std::mem::zeroed::<libc::stat>();
            if libc::fstat(number as i32, &mut stat) == 0 && stat.st_mode & libc::S_IFMT != libc::S_IFIFO {
                libc::fcntl(number as i32, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
    }
}

/// If the call fails, as before Linux 5.9, the descriptors stay open.
fn close_range(first: u32, last: u32) {
    if first <= last {
        // SAFETY: takes numbers. Nothing owns these descriptors, as the contract of
        // close_descriptors demands.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Returns the numbers behind each `/fd/` in an argument, without the standard streams.
fn named_descriptors(argument: &OsStr) -> Vec<u32> {
    let text = argument.to_string_lossy();
    let digits = text.split("/fd/").skip(1).map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    digits.filter_map(|digits| digits?.parse().ok()).filter(|number| (3..u32::MAX).contains(number)).collect()
}

/// Raises the limits as far as the system allows. The caller does so before it starts threads or
/// processes, which one of the limits counts.
pub fn raise_limits() {
    for resource in RAISED {
        let Rlimit { maximum, .. } = getrlimit(resource);
        // If that fails, the limit stays.
        let _ = setrlimit(resource, Rlimit { current: maximum, maximum });
    }
}

/// Sets signals and the umask as a mount needs them. The process that serves calls this before it
/// starts others. Returns whether the size of files is limited, so that some writes fail with
/// EFBIG.
pub fn prepare() -> bool {
    for (signal, action) in [
        // A write over the limit of a file's size fails with EFBIG then. Over the soft limit of
        // CPU time the process goes on, until the hard limit ends it.
        (libc::SIGXFSZ, libc::SIG_IGN),
        (libc::SIGXCPU, libc::SIG_IGN),
        // The process waits for the helpers that it starts.
        (libc::SIGCHLD, libc::SIG_DFL),
    ] {
        // SAFETY: the signals exist, and the actions are no functions.
        if unsafe { libc::signal(signal, action) } == libc::SIG_ERR {
            log::warn!("the action of signal {signal} cannot be set: {}", io::Error::last_os_error());
        }
    }
    // This thread and all that it starts block the signals that end the mount, for the one thread
    // that waits for them. They block no others.
    mask_signals(libc::SIG_SETMASK, &end_signals());
    // SAFETY: takes a number. The front end applies the umask of the caller itself.
    unsafe { libc::umask(0) };
    getrlimit(Resource::Fsize).current.is_some()
}

/// Returns the signals that end the mount. A parent that ignores SIGHUP, as nohup does, wants the
/// mount to outlive a terminal.
pub fn end_signals() -> libc::sigset_t {
    let always = [libc::SIGINT, libc::SIGTERM];
    signal_set(always.into_iter().chain((!is_ignored(libc::SIGHUP)).then_some(libc::SIGHUP)))
}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: the call only writes the structure.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_that_are_named_are_found() {
        let named = |text: &str| named_descriptors(OsStr::new(text));
        assert_eq!(named("lowerdir=/dev/fd/3:/proc/self/fd/12/dir,upperdir=/fd/x"), [3, 12]);
        assert_eq!(named("/dev/fd/0"), [0; 0]);
        assert_eq!(named("/dev/fd/99999999999"), [0; 0]);
    }
}
