//! What a process inherits from whoever starts it, and what a daemon that serves others makes of
//! it: limits, signals, the umask, descriptors.
//!
//! Closed standard streams are opened again by the standard library before `main`, as `/dev/null`,
//! so no other descriptor has their numbers.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limits that are as high as the system allows: one daemon serves all that the users of a
/// mount do.
const RAISED: [Resource; 6] =
    [Resource::Nofile, Resource::Fsize, Resource::As, Resource::Data, Resource::Cpu, Resource::Nproc];

/// Closes the descriptors that were inherited, so that whoever waits for their end does not wait
/// for the daemon: all but the standard streams and those that an argument names, as `/dev/fd/3`
/// does.
///
/// # Safety
/// Nobody in this process may have opened anything yet.
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

/// Where it fails, as before Linux 5.9, they stay open.
fn close_range(first: u32, last: u32) {
    if first <= last {
        // SAFETY: takes numbers. What is closed is nobody's, as the caller of close_descriptors
        // says.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// The numbers behind each `/fd/` in an argument, but for the standard streams.
fn named_descriptors(argument: &OsStr) -> Vec<u32> {
    let text = argument.to_string_lossy();
    let digits = text.split("/fd/").skip(1).map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    digits.filter_map(|digits| digits?.parse().ok()).filter(|number| (3..u32::MAX).contains(number)).collect()
}

/// Puts a file in the place of the standard streams.
pub fn replace_streams(file: &File) -> io::Result<()> {
    for stream in 0..3 {
        // SAFETY: the first descriptor is open, the second is one of the three streams, which std
        // only refers to by number.
        if unsafe { libc::dup2(file.as_raw_fd(), stream) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Raises the limits as far as that is allowed. To be called before other threads or processes are
/// started, which one of them counts.
pub fn raise_limits() {
    for resource in RAISED {
        let Rlimit { maximum, .. } = getrlimit(resource);
        // Where that fails, the limit is what it was.
        let _ = setrlimit(resource, Rlimit { current: maximum, maximum });
    }
}

/// Makes of what was inherited what a mount needs. To be called by the process that serves, before
/// it starts others. Answers whether there is a limit of the size of files, so that some writes are
/// EFBIG.
pub fn prepare() -> bool {
    for (signal, action) in [
        // Who goes over the limit of a file's size is told by EFBIG, and over that of time by the
        // end.
        (libc::SIGXFSZ, libc::SIG_IGN),
        (libc::SIGXCPU, libc::SIG_IGN),
        // The helpers that are started are waited for.
        (libc::SIGCHLD, libc::SIG_DFL),
    ] {
        // SAFETY: the signals exist, and the actions are no functions.
        if unsafe { libc::signal(signal, action) } == libc::SIG_ERR {
            log::warn!("what signal {signal} does cannot be changed: {}", io::Error::last_os_error());
        }
    }
    // Those that end the mount are kept back in this thread and all that it starts, for the one
    // that waits for them. No other is. SAFETY: the set is whole, and the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &end_signals(), std::ptr::null_mut()) };
    // SAFETY: takes a number. The mode of a new object is what the front end makes of it.
    unsafe { libc::umask(0) };
    getrlimit(Resource::Fsize).current.is_some()
}

/// The signals that end the mount. Who started it with SIGHUP ignored, as nohup does, wants it to
/// outlive a terminal.
pub fn end_signals() -> libc::sigset_t {
    // SAFETY: sigemptyset makes a set of any memory of that size, and sigaddset adds signals that
    // exist.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGINT, libc::SIGTERM] {
            libc::sigaddset(&mut set, signal);
        }
        if !is_ignored(libc::SIGHUP) {
            libc::sigaddset(&mut set, libc::SIGHUP);
        }
        set
    }
}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: the structure is written by the call, which changes nothing.
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
        assert_eq!(named("/dev/fd/0"), []);
        assert_eq!(named("/dev/fd/99999999999"), []);
    }
}
