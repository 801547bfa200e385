//! The two locks of the engine and the scheme, and a condition to wait for. They are those of `std`
//! without poisoning. A thread that finds a lock taken passes the turn on ([`crate::turn`]) before
//! it waits.
//!
//! A [`Lock`] is an `RwLock` too. On Redox its unlock makes no system call, while relibc's `Mutex`
//! makes one each time.
//!
//! With `--cfg shuttle` the locks are those of the crate shuttle. At each lock it decides which
//! thread is next, so that a test can try thousands of orders (`scripts/schedules`).
//!
//! The test does not see three other locks. Each is a leaf, so it adds no order:
//!
//! - the lock of a backend over the descriptor that holds its layer;
//! - the lock of a turn ([`crate::turn`]);
//! - the locks of `layer/counted`.
//!
//! No thread panics under a lock because of a request or a layer. If a bug makes one panic, the
//! other threads go on. The data under a lock only repeats what the layers have, and each change of
//! it follows that of the layer.

#[cfg(not(shuttle))]
use std::sync as locks;
use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};

use locks::RwLock;
#[cfg(feature = "scheme")]
use locks::{Condvar, Mutex, MutexGuard};
#[cfg(shuttle)]
use shuttle::sync as locks;

use crate::turn;

/// The data of a [`Lock`], while it is locked.
pub use locks::RwLockWriteGuard as Guard;
/// The data of a [`Shared`], while it is locked by several threads or by one.
pub use locks::{RwLockReadGuard as ReadGuard, RwLockWriteGuard as WriteGuard};

/// A lock for one thread.
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

/// A lock for several readers or one writer.
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

/// A lock for one thread, which may wait until other threads have changed the data.
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

    /// Locks as soon as the data meets `wanted`.
    pub fn lock_when(&self, wanted: impl Fn(&T) -> bool) -> MutexGuard<'_, T> {
        let mut guard = self.lock();
        while !wanted(&guard) {
            turn::pass();
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        guard
    }

    /// Wakes all waiting threads, so that they look again.
    pub fn notify_all(&self) {
        self.changed.notify_all();
    }
}

/// Returns a guard, at once if `tried` has one, else after a wait.
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
