//! Listings of merged directories.

use std::ffi::OsStr;

use syscall::error::{EIO, Error};

use super::Overlay;
use super::file::Handle;
use super::node::Dir;
use super::stack::LayerDir;
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
        let mut after = after;
        loop {
            let mut unseen = None;
            let Dir { names: Some(names), .. } = &*dir else {
                return Err(Error::new(EIO));
            };
            for (offset, slot) in names.after(after) {
                let Some(visible) = slot.visible() else { continue };
                let from = dir.shown(slot).ok_or(Error::new(EIO))?;
                let known = match (&slot.child, visible.ino) {
                    (Some(child), _) => Some(self.ino(child)?),
                    (None, ino) => ino.and_then(|ino| self.listed_ino(from, ino)),
                };
                let Some(ino) = known else {
                    unseen = Some(slot.name.clone());
                    break;
                };
                if !each(DirEntry { name: &slot.name, ino, kind: visible.kind, offset }) {
                    return Ok(());
                }
                after = offset;
            }
            // What the layer's number does not tell by itself is looked at; then the listing goes on.
            match unseen {
                Some(name) => self.load(node, &mut dir, &name)?,
                None => return Ok(()),
            };
        }
    }

    /// The inode number of an object that nobody looked at, which the layer's directory `dir` lists with `ino`. None if it has to be looked
    /// at: it may be a copy of an earlier mount, or a name of one.
    fn listed_ino(&self, dir: &LayerDir<L>, ino: u64) -> Option<u64> {
        let below = !self.stack.is_upper(dir);
        if below && self.work.as_ref().is_some_and(|work| work.index().may_be_copied(ino)) {
            return None;
        }
        self.inodes.listed(self.stack.marked_device(dir), ino)
    }
}
