//! Sets of signals.

use std::mem::MaybeUninit;
use std::ptr;

use libc::{c_int, sigset_t};

/// Makes a set of signals.
pub fn signal_set(signals: impl IntoIterator<Item = c_int>) -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset makes a set of any memory of that size. sigaddset changes the set, or
    // nothing if there is no such signal.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// Changes the blocked signals of this thread, and of those that it starts. `how` is SIG_BLOCK,
/// SIG_UNBLOCK or SIG_SETMASK.
pub fn mask_signals(how: c_int, set: &sigset_t) {
    // SAFETY: the set is whole, and the call does not write the old one.
    unsafe { libc::pthread_sigmask(how, set, ptr::null_mut()) };
}

/// Returns the blocked signals of this thread.
pub fn blocked_signals() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: without a new set the call changes nothing, and writes the set.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), set.as_mut_ptr());
        set.assume_init()
    }
}
