//! The process of a daemon, on Redox and on Linux.
//!
//! This file forks, waits for a child, and leaves the caller of the daemon. `streams` replaces the
//! standard streams, `signals` blocks signals, `ids` lets the process act with other ids, and
//! `descriptors` passes descriptors to another process.

#[cfg(feature = "scheme")]
pub mod descriptors;
mod ids;
mod signals;
mod streams;

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::process::ExitCode;

pub use ids::{act_as, leave_group};
pub use signals::{blocked_signals, mask_signals, signal_set};
pub use streams::Streams;

/// The process in which [`fork`] returns.
pub enum Side {
    /// The copy.
    Child,
    /// The caller's process, with the number of the child.
    Parent(libc::pid_t),
}

/// Starts a copy of this process.
///
/// # Errors
///
/// - EAGAIN: there are too many processes.
/// - ENOMEM: memory is short.
///
/// # Safety
///
/// The process must have one thread.
pub unsafe fn fork() -> io::Result<Side> {
    // SAFETY: the process has one thread, as the caller promises, so the child has a copy of all.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        child => Ok(Side::Parent(child)),
    }
}

/// Waits for the end of a child, and returns its exit code.
pub fn wait_for(child: libc::pid_t) -> ExitCode {
    let mut status = 0;
    loop {
        // SAFETY: the status outlives the call.
        if unsafe { libc::waitpid(child, &raw mut status, 0) } == child {
            break;
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return ExitCode::FAILURE;
        }
    }
    if libc::WIFEXITED(status) { ExitCode::from(libc::WEXITSTATUS(status) as u8) } else { ExitCode::FAILURE }
}

/// The process in which [`detach`] returns.
pub enum Detached {
    /// The child, in a session of its own.
    Daemon(Ready),
    /// The caller's process, which ends with this code. The daemon is ready, or has failed after a
    /// message on standard error.
    Caller(ExitCode),
}

/// The daemon's way to tell its caller that it is ready.
pub struct Ready(PipeWriter);

impl Ready {
    /// Makes the caller's process end with success.
    ///
    /// # Errors
    ///
    /// - EPIPE: the caller is gone.
    pub fn tell(mut self) -> io::Result<()> {
        self.0.write_all(&[1])
    }
}

/// Goes on in a child in the background. The caller's process waits until the child is ready or
/// ends.
///
/// # Errors
///
/// - The errors of [`fork`].
/// - EMFILE, ENFILE: too many files are open.
///
/// # Safety
///
/// The process must have one thread.
pub unsafe fn detach() -> io::Result<Detached> {
    let (is_ready, ready) = io::pipe()?;
    // SAFETY: as the caller promises.
    match unsafe { fork()? } {
        Side::Child => {
            // SAFETY: the call touches no memory. It fails only for a leader of a process group,
            // which a child is not.
            unsafe { libc::setsid() };
            Ok(Detached::Daemon(Ready(ready)))
        }
        Side::Parent(child) => {
            drop(ready);
            Ok(Detached::Caller(wait_until_ready(is_ready, child)))
        }
    }
}

/// Waits for the daemon. The pipe ends without a byte if the daemon fails before it is ready. Then
/// it still writes why.
fn wait_until_ready(mut is_ready: PipeReader, daemon: libc::pid_t) -> ExitCode {
    if is_ready.read_exact(&mut [0]).is_ok() {
        return ExitCode::SUCCESS;
    }
    wait_for(daemon);
    ExitCode::FAILURE
}
