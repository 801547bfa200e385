//! Listings of merged directories.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{EIO, Error};

use super::Overlay;
use super::file::Handle;
use super::names::Slot;
use super::node::Dir;
use super::stack::LayerDir;
use crate::layer::{Kind, Layer, Result};

/// The number of listed entries that cost a layer about as much as one lookup. If one in this many
/// names is new, and its number is needed, the engine lists the layer's directory again.
const ENTRIES_PER_LOOKUP: usize = 8;

/// One entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Its name.
    pub name: &'a OsStr,
    /// The inode number that [`Overlay::stat`] returns.
    pub ino: u64,
    /// The kind of its object.
    pub kind: Kind,
    /// The offset from which the listing continues behind this entry.
    pub offset: u64,
}

/// The point at which a listing stopped.
enum Listed {
    /// The end, or the point where the caller stopped it.
    All,
    /// An object that this mount made, with a number that is not known yet.
    UntilNew,
    /// This name: the layer's number alone does not tell which object it is.
    Until(Arc<OsStr>),
}

impl<L: Layer> Overlay<L> {
    /// Lists an open directory from behind the offset `after` (0 is the start) until `each` returns
    /// false. The entries do not include `.` and `..`. No entry has offset 1 or 2.
    ///
    /// Each entry that stays is listed exactly once, whatever comes and goes between two calls.
    /// `each` must not call the overlay.
    ///
    /// # Errors
    ///
    /// - ENOTDIR: the handle is of no directory.
    pub fn list(&self, handle: &Handle<L>, after: u64, each: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let node = handle.node();
        self.forget_some();
        let _tree = self.tree.read();
        let mut dir = node.dir()?;
        if dir.removed {
            return Ok(());
        }
        self.read_dir(node, &mut dir)?;
        let (mut after, mut numbered) = (after, false);
        loop {
            match self.list_known(&dir, &mut after, numbered, each)? {
                Listed::All => return Ok(()),
                Listed::UntilNew => {
                    self.number_new(&mut dir)?;
                    numbered = true;
                }
                Listed::Until(name) => drop(self.load(node, &mut dir, &name)?),
            }
        }
    }

    /// Returns the number of names in an open directory, with those of markers.
    ///
    /// # Errors
    ///
    /// - ENOTDIR: the handle is of no directory.
    pub fn count_names(&self, handle: &Handle<L>) -> Result<usize> {
        let node = handle.node();
        let _tree = self.tree.read();
        let mut dir = node.dir()?;
        if dir.removed { Ok(0) } else { Ok(self.read_dir(node, &mut dir)?.len()) }
    }

    /// Lists the entries behind `after` while their numbers are known. `numbered` says whether the
    /// numbers of new objects were looked up before.
    fn list_known(
        &self,
        dir: &Dir<L>,
        after: &mut u64,
        numbered: bool,
        each: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<Listed> {
        let names = dir.names.as_ref().ok_or(Error::new(EIO))?;
        for (offset, slot) in names.after(*after) {
            let Some(visible) = slot.visible() else { continue };
            let from = dir.shown(slot).ok_or(Error::new(EIO))?;
            let by_layer = || visible.ino.and_then(|ino| self.listed_ino(from, ino));
            let ino = match &slot.child {
                None => match by_layer() {
                    Some(ino) => ino,
                    None => return Ok(Listed::Until(slot.name.clone())),
                },
                Some(child) if is_new(slot) => match by_layer() {
                    Some(ino) => ino,
                    None if !numbered => return Ok(Listed::UntilNew),
                    None => self.ino(child)?,
                },
                Some(child) => self.ino(child)?,
            };
            if !each(DirEntry { name: &slot.name, ino, kind: visible.kind, offset }) {
                break;
            }
            *after = offset;
        }
        Ok(Listed::All)
    }

    /// Gets the layer's numbers of objects that were made in a directory and not asked since, if
    /// they are many.
    fn number_new(&self, dir: &mut Dir<L>) -> Result<()> {
        let Dir { names: Some(names), upper: Some(upper), .. } = dir else {
            return Ok(());
        };
        let new = names.after(0).filter(|(_, slot)| is_new(slot)).count();
        if new * ENTRIES_PER_LOOKUP < names.len() {
            return Ok(());
        }
        let open = self.stack.open(upper)?;
        self.stack.layer(upper).list(&open, &mut |entry| {
            if let Some(slot) = names.get_mut(entry.name).filter(|slot| is_new(slot))
                && let Some(known) = &mut slot.upper
            {
                known.ino = Some(entry.ino);
            }
        })
    }

    /// Returns the inode number of an object without a node, which the layer's directory `dir`
    /// lists with `ino`. None if it needs a lookup: it may be a copy of an earlier mount, or a name
    /// of one.
    fn listed_ino(&self, dir: &LayerDir<L>, ino: u64) -> Option<u64> {
        let below = !self.is_in_upper_layer(dir);
        if below && self.copies().is_some_and(|index| index.may_be_copied(ino)) {
            return None;
        }
        self.inodes.listed(self.stack.marked_device(dir), ino)
    }
}

/// Whether this mount made the object, and no request has asked for it since.
fn is_new<L: Layer>(slot: &Slot<L>) -> bool {
    slot.child.as_ref().is_some_and(|child| child.state.lock().is_unasked())
}
