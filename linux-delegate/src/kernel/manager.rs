//! The manager of namespaces: the process that every path, registration and new namespace is asked
//! of.
//!
//! On Redox before July 2026 it serves one request after another, and opens a path itself for
//! whoever asks, so it waits for the answer of the scheme that the path names. A daemon that asks
//! it for something while it waits for that daemon hangs, and so does everybody else's next path.
//! Tests have it wait so with [`let_it_wait`]; otherwise it is as on later systems, where it waits
//! for nobody.
//!
//! Lock order: a turn comes before all locks of the kernel.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::lock;

static WAITS: AtomicBool = AtomicBool::new(false);

/// Requests get numbers as they come and are served in their order. Whose turn it is, and the
/// number for the next one that comes.
static TURNS: Mutex<(u64, u64)> = Mutex::new((0, 0));
static NEXT: Condvar = Condvar::new();

/// From now on the manager of this process waits for the schemes that it asks.
pub fn let_it_wait() {
    WAITS.store(true, Ordering::Relaxed);
}

/// Has the manager do something.
pub(crate) fn ask<T>(request: impl FnOnce() -> T) -> T {
    let _turn = WAITS.load(Ordering::Relaxed).then(Turn::take);
    request()
}

/// The manager deals with one request.
struct Turn;

impl Turn {
    /// Waits until the requests that came before are dealt with.
    fn take() -> Self {
        let mut turns = lock(&TURNS);
        let own = turns.1;
        turns.1 += 1;
        while turns.0 != own {
            turns = NEXT.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&TURNS).0 += 1;
        NEXT.notify_all();
    }
}
