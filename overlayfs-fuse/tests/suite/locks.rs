//! The locks of the layers.

use std::fs::{File, TryLockError};
use std::path::Path;

/// Whether no process holds a directory, or a file of a work directory.
pub fn is_free(held: &Path) -> bool {
    match File::open(held).unwrap().try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(error)) => panic!("{error}"),
    }
}
