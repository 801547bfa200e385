//! The two locks of the engine and the scheme, and the condition for which a thread with a lock may wait: those of `std`, without poisoning. With
//! `--cfg shuttle` they are those of the crate shuttle, which decides at each which thread is next, so that a test can try thousands of orders
//! (`scripts/schedules`).
//!
//! The backends `layer/linux` and `layer/redox` have a lock of `std`, which the test does not see: what holds the layer for one daemon. Under it
//! they make system calls alone, so it adds no order.
//!
//! No thread panics while it holds one by anything that a request or a layer decides; if a bug makes one panic all the same, the
//! others go on, since the state that a lock guards says only what the layers hold, and every change of it follows the layer's.

#[cfg(not(shuttle))]
use std::sync as locks;
use std::sync::PoisonError;

use locks::{Condvar, Mutex, RwLock};
#[cfg(shuttle)]
use shuttle::sync as locks;

/// What a [`Lock`] guards, while it is locked.
pub use locks::MutexGuard as Guard;
/// What a [`Shared`] guards, while it is locked by many or by one.
pub use locks::{RwLockReadGuard as ReadGuard, RwLockWriteGuard as WriteGuard};

/// A lock for one.
pub struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub fn new(value: T) -> Self {
        Lock(Mutex::new(value))
    }

    pub fn lock(&self) -> Guard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Default> Default for Lock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// Something that those who have a [`Lock`] may wait for.
pub struct Condition(Condvar);

impl Condition {
    pub fn new() -> Self {
        Condition(Condvar::new())
    }

    /// Unlocks until somebody notifies, or for a while: it is to be looked again.
    pub fn wait<'g, T>(&self, guard: Guard<'g, T>) -> Guard<'g, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes all that wait.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// A lock for many that read or one that writes.
pub struct Shared<T>(RwLock<T>);

impl<T> Shared<T> {
    pub fn new(value: T) -> Self {
        Shared(RwLock::new(value))
    }

    pub fn read(&self) -> ReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self) -> WriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
