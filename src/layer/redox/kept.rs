//! The object that a layer used last by its path.
//!
//! A lookup of a path takes redoxfs most of the time of a short request. So the layer keeps the
//! descriptor of the directory whose attributes it asked for or set last, or of the object that it
//! renamed last. The next call for the same path needs no lookup.
//!
//! A change of a name at or above the path ends that. The engine makes no call below a directory
//! while it renames that directory. So no call finds an object by the path that it had before.

use std::sync::{Arc, Mutex, PoisonError};

use super::Far;

/// An open object with its path from the root of the system. The lock is a leaf.
#[derive(Default)]
pub struct Kept(Mutex<Option<(String, Arc<Far>)>>);

impl Kept {
    /// Returns the object if it has this path.
    pub fn get(&self, path: &str) -> Option<Arc<Far>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().filter(|(of, _)| of == path).map(|(_, object)| object.clone())
    }

    /// Keeps an object in the place of another one.
    pub fn set(&self, path: String, object: Arc<Far>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((path, object));
    }

    /// Closes the object if it is, or is below, the object with this path.
    pub fn forget(&self, path: &str) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, _)) = &*kept
            && of.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        {
            *kept = None;
        }
    }
}
