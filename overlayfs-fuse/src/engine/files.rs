//! The files that programs read and write. A bounded number stays open, since the kernel does not
//! tell which files programs have open.
//!
//! The lock is a leaf.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use overlayfs::layer::Layer;
use overlayfs::overlay::Handle;

/// How many files stay open at most.
const OPEN_FILES: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// The files used last, by the kernel's number.
pub struct Files<L: Layer>(Mutex<LruCache<u64, Arc<Handle<L>>>>);

impl<L: Layer> Files<L> {
    pub fn new() -> Self {
        Self(Mutex::new(LruCache::new(OPEN_FILES)))
    }

    fn cache(&self) -> MutexGuard<'_, LruCache<u64, Arc<Handle<L>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the file with that number. `open` opens it if the cache does not have it.
    pub fn get(&self, number: u64, open: impl FnOnce() -> Handle<L>) -> Arc<Handle<L>> {
        if let Some(file) = self.cache().get(&number) {
            return file.clone();
        }
        let file = Arc::new(open());
        self.keep(number, file.clone());
        file
    }

    /// Adds a file that is open already.
    pub fn keep(&self, number: u64, file: Arc<Handle<L>>) {
        // The evicted file closes after the lock is free again.
        let _closed = self.cache().push(number, file);
    }

    /// How many files are open.
    pub fn count(&self) -> usize {
        self.cache().len()
    }

    /// Closes a file.
    pub fn close(&self, number: u64) {
        let _closed = self.cache().pop(&number);
    }

    /// Closes all files, to free their descriptors.
    pub fn close_all(&self) {
        let mut closed = LruCache::new(OPEN_FILES);
        std::mem::swap(&mut *self.cache(), &mut closed);
    }
}
