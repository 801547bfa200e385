//! Signals as data: they are blocked, and a descriptor tells which came.

use std::fs::File;
use std::io::{self, Read};
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};

use libc::{c_int, signalfd_siginfo, sigset_t};
use overlayfs::process::{blocked_signals, mask_signals, signal_set};

/// A descriptor that tells which of the blocked signals came.
pub struct Signals {
    file: File,
    /// The signals that were blocked before.
    before: sigset_t,
}

/// A signal that came.
#[derive(Clone, Copy, Debug)]
pub struct Came {
    /// Its number.
    pub signal: c_int,
    /// Whether the kernel sent it: for a terminal, to all processes of its foreground group.
    pub from_kernel: bool,
}

impl Signals {
    /// Blocks these signals in this thread.
    ///
    /// # Errors
    ///
    /// - EMFILE, ENFILE: too many files are open.
    pub fn block(signals: &[c_int]) -> io::Result<Self> {
        let (set, before) = (signal_set(signals.iter().copied()), blocked_signals());
        mask_signals(libc::SIG_BLOCK, &set);
        // SAFETY: the call reads the set, and returns a new descriptor or -1.
        let descriptor = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, so nothing else owns it.
        Ok(Self { file: unsafe { File::from_raw_fd(descriptor) }, before })
    }

    /// Returns the signals that were blocked before.
    pub fn before(&self) -> sigset_t {
        self.before
    }

    /// Lets the signals have their usual effect again, except those that came.
    pub fn unblock(self) {
        let flags = rustix::fs::OFlags::NONBLOCK;
        if rustix::fs::fcntl_setfl(&self.file, flags).is_ok() {
            while self.next().is_ok() {}
        }
        mask_signals(libc::SIG_SETMASK, &self.before);
    }

    /// Waits for the next signal.
    ///
    /// # Errors
    ///
    /// Those of read(2).
    pub fn next(&self) -> io::Result<Came> {
        let mut bytes = [0; size_of::<signalfd_siginfo>()];
        (&self.file).read_exact(&mut bytes)?;
        let number = |at: usize| bytes[at..].first_chunk().map_or(0, |number| i32::from_ne_bytes(*number));
        let code = number(offset_of!(signalfd_siginfo, ssi_code));
        let signal = number(offset_of!(signalfd_siginfo, ssi_signo));
        Ok(Came { signal, from_kernel: code == libc::SI_KERNEL })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
