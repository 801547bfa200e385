//! The end of threads that work until they are told to stop.

use std::sync::atomic::{AtomicBool, Ordering};

/// Tells threads to stop when it is dropped. A test that fails inside a scope drops it too, so the
/// scope does not wait for them for ever.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
