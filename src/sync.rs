//! The two locks of the engine and the scheme, and the condition for which a thread may wait: those
//! of `std`, without poisoning. Who finds one taken passes the turn on ([`crate::turn`]) before he
//! waits.
//!
//! A [`Lock`] is an `RwLock` too: on Redox that is left without a system call, while `Mutex`, which
//! is relibc's, makes one each time.
//!
//! With `--cfg shuttle` they are those of the crate shuttle, which decides at each which thread is
//! next, so that a test can try thousands of orders (`scripts/schedules`).
//!
//! The backends `layer/linux` and `layer/redox` have a lock of `std`, which the test does not see:
//! what holds the layer for one daemon. Under it they make system calls alone, so it adds no order.
//!
//! No thread panics while it holds one by anything that a request or a layer decides; if a bug
//! makes one panic all the same, the others go on, since the state that a lock guards says only
//! what the layers hold, and every change of it follows the layer's.

#[cfg(not(shuttle))]
use std::sync as locks;
use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};

use locks::RwLock;
#[cfg(feature = "scheme")]
use locks::{Condvar, Mutex, MutexGuard};
#[cfg(shuttle)]
use shuttle::sync as locks;

use crate::turn;

/// What a [`Lock`] guards, while it is locked.
pub use locks::RwLockWriteGuard as Guard;
/// What a [`Shared`] guards, while it is locked by many or by one.
pub use locks::{RwLockReadGuard as ReadGuard, RwLockWriteGuard as WriteGuard};

/// A lock for one.
pub struct Lock<T>(RwLock<T>);

impl<T> Lock<T> {
    pub fn new(value: T) -> Self {
        Lock(RwLock::new(value))
    }

    pub fn lock(&self) -> Guard<'_, T> {
        patiently(self.0.try_write(), || self.0.write())
    }
}

impl<T: Default> Default for Lock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// A lock for many that read or one that writes.
pub struct Shared<T>(RwLock<T>);

impl<T> Shared<T> {
    pub fn new(value: T) -> Self {
        Shared(RwLock::new(value))
    }

    pub fn read(&self) -> ReadGuard<'_, T> {
        patiently(self.0.try_read(), || self.0.read())
    }

    pub fn write(&self) -> WriteGuard<'_, T> {
        patiently(self.0.try_write(), || self.0.write())
    }
}

/// A lock for one, who may wait until others have changed what it guards.
#[cfg(feature = "scheme")]
pub struct Condition<T> {
    value: Mutex<T>,
    changed: Condvar,
}

#[cfg(feature = "scheme")]
impl<T> Condition<T> {
    pub fn new(value: T) -> Self {
        Condition { value: Mutex::new(value), changed: Condvar::new() }
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        patiently(self.value.try_lock(), || self.value.lock())
    }

    /// Locks as soon as what is guarded meets `wanted`.
    pub fn lock_when(&self, wanted: impl Fn(&T) -> bool) -> MutexGuard<'_, T> {
        let mut guard = self.lock();
        while !wanted(&guard) {
            turn::pass();
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        guard
    }

    /// Wakes all that wait, to look again.
    pub fn notify_all(&self) {
        self.changed.notify_all();
    }
}

/// A guard that was tried for, or is waited for.
fn patiently<G>(tried: TryLockResult<G>, wait: impl FnOnce() -> LockResult<G>) -> G {
    match tried {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => {
            turn::pass();
            wait().unwrap_or_else(PoisonError::into_inner)
        }
    }
}
