//! The unmount on a signal. The first thread of the mount does it without a wait: umount waits for
//! other threads.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::inherited;
use crate::mount::Unmounter;
use crate::session::Outside;

/// The signals that unmount. A program that still uses the mount keeps its files. The session ends
/// with the last of them.
pub struct Signals {
    /// Readable when one has come (signalfd(2)).
    come: OwnedFd,
    unmounter: Unmounter,
    step: Cell<Step>,
}

/// How far an unmount by a signal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    NoSignal,
    Asked,
    Unmounted,
}

impl Signals {
    /// Waits for the signals that the process blocks for that.
    ///
    /// # Errors
    ///
    /// - EMFILE, ENFILE: too many files are open.
    pub fn new(unmounter: Unmounter) -> io::Result<Self> {
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the set is whole.
        let come = match unsafe { libc::signalfd(-1, &inherited::end_signals(), flags) } {
            -1 => return Err(io::Error::last_os_error()),
            // SAFETY: the call has opened it.
            come => unsafe { OwnedFd::from_raw_fd(come) },
        };
        Ok(Self { come, unmounter, step: Cell::new(Step::NoSignal) })
    }

    /// Unmounts at once, after an error.
    ///
    /// # Errors
    ///
    /// As [`Unmounter::unmount`].
    pub fn unmount(&self) -> io::Result<()> {
        self.unmounter.unmount()
    }

    /// Notes the result of a step.
    fn has_become(&self, done: io::Result<()>, step: Step) {
        let reached = done.inspect_err(|error| log::error!("The mount cannot be unmounted: {error}."));
        self.step.set(reached.map_or(Step::NoSignal, |()| step));
    }
}

impl Outside for Signals {
    fn awaited(&self) -> Vec<BorrowedFd<'_>> {
        match self.step.get() {
            Step::NoSignal => vec![self.come.as_fd()],
            Step::Asked => vec![self.unmounter.as_fd()],
            Step::Unmounted => Vec::new(),
        }
    }

    fn look(&self) {
        let mut signal = [0; size_of::<libc::signalfd_siginfo>()];
        match self.step.get() {
            Step::NoSignal if rustix::io::read(&self.come, &mut signal).is_ok() => {
                self.has_become(self.unmounter.ask(), Step::Asked);
            }
            Step::Asked if is_readable(&self.unmounter) => {
                self.has_become(self.unmounter.answer(), Step::Unmounted);
            }
            _ => {}
        }
    }
}

fn is_readable(line: &Unmounter) -> bool {
    poll(&mut [PollFd::new(line, PollFlags::IN)], Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}
