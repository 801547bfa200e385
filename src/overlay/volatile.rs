//! The mark of an upper layer that an overlay writes without syncs. If the overlay ends without
//! removing the mark, it is unknown which changes are on the disk.
//!
//! The mark is a directory in the work directory, at the same path as that of the kernel's
//! overlayfs. So each of the two refuses a layer that the other has marked.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{EEXIST, ENOENT, ENOTDIR};

use super::removal::remove_tree;
use super::stack::{LayerDir, Stack};
use crate::layer::{Error, Kind, Layer, Object, Result};

/// The path of the mark in the work directory.
pub const MARK: &str = "work/incompat/volatile";

/// Whether the work directory `work` of the layer `upper` has the mark.
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

/// Removes the mark, and the directories above it.
pub fn unmark<L: Layer>(stack: &Stack<L>, work: &Arc<LayerDir<L>>) -> Result<()> {
    let top = MARK.split('/').next().unwrap_or(MARK);
    remove_tree(stack, work, OsStr::new(top), Kind::Dir)
}

/// Puts the mark into a work directory that has none, and syncs it.
pub fn mark<L: Layer>(upper: &L, work: &L::Dir) -> Result<()> {
    let mut above: Option<L::Dir> = None;
    for name in MARK.split('/') {
        let dir = above.as_ref().unwrap_or(work);
        match upper.create_dir(dir, OsStr::new(name), 0o700, upper.identity()) {
            // An earlier call may have removed or made only a part of the path.
            Err(error) if error.errno != EEXIST => return Err(error),
            _ => {}
        }
        upper.sync_dir(dir)?;
        above = Some(upper.open_dir(dir, OsStr::new(name))?);
    }
    Ok(())
}
