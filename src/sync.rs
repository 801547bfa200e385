//! The two locks of the project: those of `std`, without poisoning. With `--cfg shuttle` they are those of the crate shuttle, which decides at
//! each who is next, so that a test can try thousands of orders (`scripts/schedules`).
//!
//! No thread panics while it holds one by anything that a request or a layer decides; if a bug makes one panic all the same, the
//! others go on, since the state that a lock guards says only what the layers hold, and every change of it follows the layer's.

#[cfg(not(shuttle))]
use std::sync as locks;
use std::sync::PoisonError;

use locks::{Mutex, RwLock};
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
