//! The two locks of the engine and the scheme, and a condition to wait for. The locks are those of
//! `std` without poisoning. A thread that finds a lock taken passes the turn on ([`crate::turn`])
//! before it waits.
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
#[cfg(shuttle)]
use shuttle::sync as locks;
#[cfg(all(shuttle, feature = "scheme"))]
use shuttle::thread::{self, Thread};
#[cfg(all(not(shuttle), feature = "scheme"))]
use std::thread::{self, Thread};

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

/// Data for one thread at a time, which may wait until other threads have changed it. Without a
/// wait it costs no more than a [`Lock`].
#[cfg(feature = "scheme")]
pub struct Condition<T>(Lock<Awaited<T>>);

#[cfg(feature = "scheme")]
struct Awaited<T> {
    value: T,
    waiting: Vec<Thread>,
}

#[cfg(feature = "scheme")]
impl<T> Condition<T> {
    pub fn new(value: T) -> Self {
        Condition(Lock::new(Awaited { value, waiting: Vec::new() }))
    }

    /// Calls `act` as soon as the data meets `wanted`.
    pub fn when<R>(&self, wanted: impl Fn(&T) -> bool, act: impl FnOnce(&mut T) -> R) -> R {
        loop {
            let mut awaited = self.0.lock();
            if wanted(&awaited.value) {
                return act(&mut awaited.value);
            }
            let this = thread::current();
            if awaited.waiting.iter().all(|thread| thread.id() != this.id()) {
                awaited.waiting.push(this);
            }
            drop(awaited);
            turn::pass();
            thread::park();
        }
    }

    /// Calls `act`, and wakes all waiting threads, so that they look again.
    pub fn change(&self, act: impl FnOnce(&mut T)) {
        let mut awaited = self.0.lock();
        act(&mut awaited.value);
        let waiting = std::mem::take(&mut awaited.waiting);
        drop(awaited);
        waiting.iter().for_each(Thread::unpark);
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
