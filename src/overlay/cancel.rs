//! Whether whoever asked for something that takes long still wants it.
//!
//! A front end serves each request under a [`Cancel`], and tells that when the caller has given up.
//! What copies data looks at it between pieces, and ends with ECANCELED as with any other error:
//! what was built is discarded.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::errno::{ECANCELED, Error};

use crate::layer::Result;

thread_local! {
    /// That of the request which this thread serves.
    static CURRENT: RefCell<Option<Cancel>> = const { RefCell::new(None) };
}

/// Says to the thread that serves a request that nobody wants the answer any more. Clones belong to
/// the same request.
#[derive(Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Ends the request early, with ECANCELED, if it takes long.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Does `work`, which is all that this thread does for the request.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        /// Also if the work panics.
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

/// ECANCELED if the request that this thread serves was cancelled.
pub fn check() -> Result<()> {
    let is_cancelled = CURRENT.with_borrow(|current| current.as_ref().is_some_and(|it| it.0.load(Ordering::Relaxed)));
    if is_cancelled { Err(Error::new(ECANCELED)) } else { Ok(()) }
}
