//! Process 1 of the command's namespace: starts the command, and waits for it.
//!
//! It collects every process that ends there. When the command has ended, the others are killed.
//! Then all that the kernel holds back is written to the overlays. If the process outside is gone,
//! it ends at once, and the kernel kills all others.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::c_int;
use overlayfs::process::{Side, fork, mask_signals};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process};

use super::signals::Signals;
use super::{CANNOT_RUN, FAILED, NOT_FOUND, rights, say};
use crate::inherited;
use crate::line::Line;

/// The message that the command has stopped, to the process outside.
pub const STOPPED: u8 = 1;
/// The message that the command is about to start; to process 1, that its ids are mapped.
pub const STARTS: u8 = 2;
/// The message with the offset of the standard input at the end, if process 1 replaced it.
pub const OFFSET: u8 = 3;

/// Makes the end of the process outside that of this one, and waits until the ids are mapped.
///
/// # Errors
///
/// - A sentence: the process outside has ended.
pub fn follow_outside(outside: &Line) -> Result<(), String> {
    let failed = |error: io::Error| format!("The command cannot be bound to its caller: {error}.");
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| failed(error.into()))?;
    outside.receive().map_err(failed)?.ok_or("The process outside has ended.")?;
    // The command has the same user, and must not look into this process.
    let hidden = rustix::process::DumpableBehavior::NotDumpable;
    rustix::process::set_dumpable_behavior(hidden).map_err(|error| failed(error.into()))
}

/// Runs a command to its end, and returns its exit status. `roots` are the overlays, `input` is the
/// file that took the place of the standard input.
///
/// # Safety
///
/// The process must have one thread.
pub unsafe fn run(command: &Start<'_>, outside: &Line, roots: &[OwnedFd], input: Option<&File>) -> u8 {
    let started = || {
        let signals = Signals::block(&[libc::SIGCHLD])?;
        outside.send(&[STARTS], None)?;
        // SAFETY: as the caller promises.
        match unsafe { fork()? } {
            Side::Child => {
                let code = command.start();
                // SAFETY: takes a number and does not return. The parent's work at its end is not
                // this child's.
                unsafe { libc::_exit(c_int::from(code)) }
            }
            Side::Parent(child) => Ok((signals, child)),
        }
    };
    let (signals, child) = match started() {
        Ok(started) => started,
        Err(error @ io::Error { .. }) => {
            say(&format!("The command cannot be started: {error}."));
            return FAILED;
        }
    };
    let status = Pid::from_raw(child).map(|child| wait(child, &signals, outside));
    kill_all();
    if let Some(offset) = input.and_then(|input| rustix::fs::tell(input).ok()) {
        // Without it, the caller reads on where the command began.
        let _ = outside.send(&[&[OFFSET][..], &offset.to_ne_bytes()].concat(), None);
    }
    roots.iter().for_each(write_back);
    status.unwrap_or(Ok(FAILED)).unwrap_or(FAILED)
}

/// A command before its start.
pub struct Start<'s> {
    /// The program and its arguments.
    pub words: &'s [OsString],
    /// The signals that it has blocked.
    pub blocked: libc::sigset_t,
}

impl Start<'_> {
    /// Becomes the command. Returns the exit status if that fails.
    fn start(&self) -> u8 {
        let Some((program, arguments)) = self.words.split_first() else { return FAILED };
        if let Err(error) = rights::drop() {
            say(&format!("The rights of the command cannot be limited: {error}."));
            return FAILED;
        }
        inherited::keep_named_pipes(self.words);
        mask_signals(libc::SIG_SETMASK, &self.blocked);
        let error = Command::new(program).args(arguments).exec();
        say(&format!("Cannot run {}: {error}.", program.display()));
        if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN }
    }
}

/// Waits for the end of the command, and passes signals on.
fn wait(child: Pid, signals: &Signals, outside: &Line) -> io::Result<u8> {
    loop {
        let ready = wait_for([signals.as_fd(), outside.as_fd()])?;
        if ready[0] {
            signals.next()?;
            if let Some(status) = collect(child, outside)? {
                return Ok(status);
            }
        }
        if ready[1] {
            let Some(message) = outside.receive()? else { return Ok(FAILED) };
            let signal = message.bytes.first().and_then(|signal| Signal::from_named_raw(c_int::from(*signal)));
            if let Some(signal) = signal {
                // It is not collected, so its number is its own.
                let _ = kill_process(child, signal);
            }
        }
    }
}

/// Waits until one of these can be read, and returns which.
///
/// # Errors
///
/// Those of poll(2).
pub fn wait_for<const N: usize>(these: [BorrowedFd<'_>; N]) -> io::Result<[bool; N]> {
    let mut fds = these.each_ref().map(|one| PollFd::new(one, PollFlags::IN));
    loop {
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            waited => {
                waited?;
                return Ok(fds.each_ref().map(|one| !one.revents().is_empty()));
            }
        }
    }
}

/// Collects processes that have ended. Returns the exit status of the command, if it is one of
/// them.
fn collect(child: Pid, outside: &Line) -> io::Result<Option<u8>> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            Ok(None) | Err(Errno::CHILD) => return Ok(None),
            Ok(Some((pid, status))) if pid == child => {
                if status.stopped() {
                    outside.send(&[STOPPED], None)?;
                } else {
                    return Ok(Some(exit_status(status)));
                }
            }
            other => drop(other?),
        }
    }
}

/// Returns the exit status by which a shell would tell how a process ended.
pub fn exit_status(status: WaitStatus) -> u8 {
    let by_signal = status.terminating_signal().map(|signal| 128 + signal);
    status.exit_status().or(by_signal).and_then(|status| u8::try_from(status).ok()).unwrap_or(FAILED)
}

/// Kills all other processes of the namespace, and collects them.
fn kill_all() {
    // SAFETY: takes numbers. In this namespace -1 stands for the others in it.
    unsafe { libc::kill(-1, libc::SIGKILL) };
    while !matches!(rustix::process::wait(WaitOptions::empty()), Err(Errno::CHILD)) {}
}

/// Writes what the kernel holds back to an overlay.
fn write_back(root: &OwnedFd) {
    if let Err(error) = rustix::fs::syncfs(root) {
        say(&format!("Not all changes could be written: {error}."));
    }
}
