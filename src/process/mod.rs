//! What a daemon does with its own process, on Redox and on Linux: it forks, leaves its caller
//! behind (here), leaves its standard streams (`streams`), and holds signals back (`signals`).

mod signals;
mod streams;

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::process::ExitCode;

pub use signals::{mask_signals, signal_set};
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
/// EAGAIN, ENOMEM.
///
/// # Safety
/// The process must have one thread.
pub unsafe fn fork() -> io::Result<Side> {
    // SAFETY: as promised by the caller, the child has all that this process has.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        child => Ok(Side::Parent(child)),
    }
}

/// The process in which [`detach`] returns.
pub enum Detached {
    /// The child, in a session of its own.
    Daemon(Ready),
    /// The caller's process, which ends with this code: the daemon is ready, or has failed and said
    /// on standard error why.
    Caller(ExitCode),
}

/// The daemon's way to tell its caller that it is ready.
pub struct Ready(PipeWriter);

impl Ready {
    /// The caller's process ends with success.
    ///
    /// # Errors
    /// EPIPE: the caller is gone.
    pub fn tell(mut self) -> io::Result<()> {
        self.0.write_all(&[1])
    }
}

/// Goes on in a child in the background. The caller's process waits until the child is ready or
/// ends.
///
/// # Errors
/// Those of [`fork`]; EMFILE, ENFILE.
///
/// # Safety
/// The process must have one thread.
pub unsafe fn detach() -> io::Result<Detached> {
    let (is_ready, ready) = io::pipe()?;
    // SAFETY: as promised by the caller.
    match unsafe { fork()? } {
        Side::Child => {
            // SAFETY: it touches no memory. It fails only for a leader of a process group, which a
            // child is not.
            unsafe { libc::setsid() };
            Ok(Detached::Daemon(Ready(ready)))
        }
        Side::Parent(_) => {
            drop(ready);
            Ok(Detached::Caller(wait_until_ready(is_ready)))
        }
    }
}

/// The pipe ends without a byte if the daemon ends before it is ready.
fn wait_until_ready(mut is_ready: PipeReader) -> ExitCode {
    match is_ready.read_exact(&mut [0]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
