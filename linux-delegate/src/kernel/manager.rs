//! The manager of namespaces: one process that gets every path, registration and new namespace.
//!
//! On Redox before July 2026 it serves one request after another. It opens a path itself for its
//! client, so it waits for the answer of the scheme in the path. A daemon that sends it a request
//! at that time hangs, and so does the next path of every other process. [`let_it_wait`] simulates
//! that for tests. Otherwise it is as on later systems, where it waits for no scheme.
//!
//! Lock order: a turn comes before all locks of the kernel.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::lock;

static WAITS: AtomicBool = AtomicBool::new(false);

/// The number of the request in service, and that of the next one. Requests get numbers in their
/// order.
static TURNS: Mutex<(u64, u64)> = Mutex::new((0, 0));
static NEXT: Condvar = Condvar::new();

/// Makes the manager of this process wait for schemes from now on.
pub fn let_it_wait() {
    WAITS.store(true, Ordering::Relaxed);
}

/// Makes a request to the manager.
pub(crate) fn ask<T>(request: impl FnOnce() -> T) -> T {
    let _turn = WAITS.load(Ordering::Relaxed).then(Turn::take);
    request()
}

/// The service of one request.
struct Turn;

impl Turn {
    /// Waits until all earlier requests are served.
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
