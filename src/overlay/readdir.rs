//! Listings of merged directories.

use std::ffi::OsStr;

use syscall::error::{EIO, Error};

use super::Overlay;
use super::file::Handle;
use super::node::Dir;
use crate::layer::{Kind, Layer, Result};

/// One entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    pub name: &'a OsStr,
    /// As [`Overlay::stat`] has it.
    pub ino: u64,
    pub kind: Kind,
    /// Where the listing goes on behind this entry.
    pub offset: u64,
}

impl<L: Layer> Overlay<L> {
    /// Lists an open directory from behind the offset `after`, 0 being its start, until `each` answers false. `.` and `..` are not among
    /// the entries, and offsets 1 and 2 are never given.
    ///
    /// An entry that exists throughout is met exactly once, whatever else is created and removed between two calls. `each` must not
    /// call the overlay. ENOTDIR.
    pub fn list(&self, handle: &Handle<L>, after: u64, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let node = handle.node();
        self.forget_some();
        let _tree = self.tree.read();
        let mut dir = node.dir()?;
        if dir.removed {
            return Ok(());
        }
        self.read_dir(node, &mut dir)?;
        let Dir { names: Some(names), .. } = &*dir else {
            return Err(Error::new(EIO));
        };
        for (offset, slot) in names.after(after) {
            let Some(visible) = slot.visible() else { continue };
            let ino = match (&slot.child, visible.ino) {
                (Some(child), _) => self.ino(child)?,
                (None, Some(ino)) => {
                    self.inodes.visible(self.stack.marked_device(dir.shown(slot).ok_or(Error::new(EIO))?), ino)
                }
                (None, None) => return Err(Error::new(EIO)),
            };
            if !each(DirEntry { name: &slot.name, ino, kind: visible.kind, offset }) {
                break;
            }
        }
        Ok(())
    }
}
