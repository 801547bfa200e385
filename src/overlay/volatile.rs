//! The mark of an upper layer that an overlay writes without syncing anything: if that ends without
//! taking the mark away, nobody knows what of it is on the disk.
//!
//! The mark is a directory in the work directory, at the path where the kernel's overlayfs has it,
//! so that each refuses what the other has marked.

use std::ffi::OsStr;

use crate::errno::{EEXIST, ENOENT, ENOTDIR};

use crate::layer::{Error, Kind, Layer, Object, Result, remove_all};

/// The path of the mark in the work directory.
pub const MARK: &str = "work/incompat/volatile";

/// Whether there is a mark in the work directory `work` of the layer `upper`.
pub fn is_marked<L: Layer>(upper: &L, work: &L::Dir) -> Result<bool> {
    let mut above: Option<L::Dir> = None;
    for name in MARK.split('/') {
        match upper.open_dir(above.as_ref().unwrap_or(work), OsStr::new(name)) {
            Ok(dir) => above = Some(dir),
            Err(error) if is_missing(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    match upper.stat(Object::Dir(above.as_ref().unwrap_or(work))) {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_missing(error: &Error) -> bool {
    matches!(error.errno, ENOENT | ENOTDIR)
}

/// Takes the mark away, and the directories above it.
pub fn unmark<L: Layer>(upper: &L, work: &L::Dir) -> Result<()> {
    let top = MARK.split('/').next().unwrap_or(MARK);
    remove_all(upper, work, OsStr::new(top), Kind::Dir)
}

/// Puts the mark into a work directory that has none, and on the disk.
pub fn mark<L: Layer>(upper: &L, work: &L::Dir) -> Result<()> {
    let mut above: Option<L::Dir> = None;
    for name in MARK.split('/') {
        let dir = above.as_ref().unwrap_or(work);
        match upper.create_dir(dir, OsStr::new(name), 0o700, upper.identity()) {
            // It is there when a mark could be taken away or put in part.
            Err(error) if error.errno != EEXIST => return Err(error),
            _ => {}
        }
        upper.sync_dir(dir)?;
        above = Some(upper.open_dir(dir, OsStr::new(name))?);
    }
    Ok(())
}
