//! The locks of the layers.

use std::fs::{File, TryLockError};
use std::path::Path;

/// Whether no process holds a directory.
pub fn is_free(dir: &Path) -> bool {
    let dir = File::open(dir).unwrap();
    match dir.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(error)) => panic!("{error}"),
    }
}
