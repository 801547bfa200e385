//! Cancellation of requests that take long.
//!
//! A front end serves each request under a [`Cancel`], and cancels it when the caller has given up.
//! Code that copies data checks it between pieces, and returns ECANCELED like any other error: the
//! unfinished copy is discarded.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::errno::{ECANCELED, Error};

use crate::layer::Result;

thread_local! {
    /// The cancel flag of the request that this thread serves.
    static CURRENT: RefCell<Option<Cancel>> = const { RefCell::new(None) };
}

/// Tells the thread that serves a request that the caller no longer waits. Clones belong to the
/// same request.
#[derive(Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Ends the request early, with ECANCELED, if it takes long.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Calls `work`, which is all that this thread does for the request.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        /// Runs also if `work` panics.
        struct End;
        impl Drop for End {
            fn drop(&mut self) {
                CURRENT.set(None);
            }
        }
        CURRENT.set(Some(self.clone()));
        let _end = End;
        work()
    }
}

/// Checks the request that this thread serves.
///
/// # Errors
///
/// - ECANCELED: the request was cancelled.
pub fn check() -> Result<()> {
    let is_cancelled = CURRENT.with_borrow(|current| current.as_ref().is_some_and(|it| it.0.load(Ordering::Relaxed)));
    if is_cancelled { Err(Error::new(ECANCELED)) } else { Ok(()) }
}
