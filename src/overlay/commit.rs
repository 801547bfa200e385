//! The journal of a commit: a file in the work directory, and a feature of the record.
//!
//! The feature keeps every other overlay out until the commit has ended. The journal comes before
//! it and goes before it. So a layer with the feature and without a journal has nothing left to
//! commit. The program that commits decides what the journal contains.

use std::ffi::OsStr;

use crate::errno::ENOENT;

use super::Overlay;
use super::features::{Feature, Features};
use super::record::RECORD;
use super::removal::{PIECE, remove_tree};
use super::work::replace_file;
use crate::format;
use crate::layer::{Access, Kind, Layer, Object, Result, Time, read_start, some_entries};

/// The name of the journal in the work directory.
pub const JOURNAL: &str = "commit";
/// The name of the journal while it is written anew.
const NEW_JOURNAL: &str = "tmp.commit";

impl<L: Layer> Overlay<L> {
    /// Whether a commit of the upper layer, or into it, has begun and not ended.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    ///
    /// Others of the upper layer.
    pub fn is_committing(&self) -> Result<bool> {
        Ok(self.upper()?.1.has(Feature::Commit))
    }

    /// Returns the journal of a commit, if there is one.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    ///
    /// Others of the upper layer.
    pub fn journal(&self) -> Result<Option<Vec<u8>>> {
        let (upper, work) = self.upper()?;
        let file = match upper.open_file(&*self.stack.open(work.dir())?, OsStr::new(JOURNAL), Access::Read) {
            Err(error) if error.errno == ENOENT => return Ok(None),
            file => file?,
        };
        let size = upper.stat(Object::File(&file))?.size;
        read_start(upper, &file, size as usize).map(Some)
    }

    /// Replaces the journal in one step, if there is one to write, and marks the layer. The journal
    /// comes in pieces. Both are on the disk at the return, also in a volatile overlay. From then
    /// on each mount of the upper layer is refused until [`Overlay::end_commit`].
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    ///
    /// Others of the upper layer.
    pub fn begin_commit(&self, journal: Option<&mut dyn Iterator<Item = Vec<u8>>>) -> Result<()> {
        let (upper, work) = self.upper()?;
        let dir = self.stack.open(work.dir())?;
        if let Some(journal) = journal {
            replace_file(upper, &dir, (OsStr::new(NEW_JOURNAL), OsStr::new(JOURNAL)), journal, true)?;
            upper.sync_dir(&dir)?;
        }
        self.need(Feature::Commit)?;
        upper.sync(&upper.open_file(&dir, OsStr::new(RECORD), Access::ReadWrite)?)?;
        upper.sync_dir(&dir)
    }

    /// Removes the journal, then the mark of the layer.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    ///
    /// Others of the upper layer.
    pub fn end_commit(&self) -> Result<()> {
        let (upper, work) = self.upper()?;
        let dir = self.stack.open(work.dir())?;
        match upper.unlink(&dir, OsStr::new(JOURNAL)) {
            Err(error) if error.errno != ENOENT => return Err(error),
            _ => upper.sync_dir(&dir)?,
        }
        work.need_no_more(&self.stack, Features::default().with(Feature::Commit))
    }

    /// Empties the work directory of a target, with the facts for a next mount, and removes it if
    /// it is inside the layer, whose root gets these times. Index entries of copies stay, with
    /// the directory: they may be the only names of data. Then unlocks the layers. The overlay
    /// must not be used after that.
    ///
    /// # Errors
    ///
    /// Those of the upper layer.
    pub fn leave_no_work(&self, (atime, mtime): (Time, Time)) -> Result<()> {
        let (upper, work) = self.upper()?;
        if work.index().has_copies() {
            work.need_no_more(&self.stack, Features::default().with(Feature::Commit))?;
            return self.retire();
        }
        self.clear_work()?;
        if let Some(root) = self.stack.upper_root().filter(|_| work.is_inside()) {
            remove_tree(&self.stack, root, OsStr::new(format::WORK), Kind::Dir)?;
            upper.set_times(Object::Dir(&*self.stack.open(root)?), atime, mtime)?;
        }
        work.release(&self.stack)
    }

    /// Empties the work directory of an emptied upper layer, the journal and the mark last. Then
    /// unlocks the layers. The overlay must not be used after that.
    ///
    /// # Errors
    ///
    /// Those of the upper layer.
    pub fn leave_empty(&self) -> Result<()> {
        self.clear_work()?;
        self.upper()?.1.release(&self.stack)
    }

    fn clear_work(&self) -> Result<()> {
        let (upper, work) = self.upper()?;
        self.give_up();
        let dir = self.stack.open(work.dir())?;
        loop {
            let mut entries = some_entries(upper, &dir, PIECE)?;
            let is_all = entries.len() < PIECE;
            // The mark of a commit is in the record, so that goes last.
            entries.sort_by_key(|(name, _)| (name == RECORD, name == JOURNAL));
            entries.retain(|(name, _)| is_all || name != RECORD && name != JOURNAL);
            for (name, kind) in entries {
                if name == JOURNAL {
                    upper.sync_all()?;
                }
                remove_tree(&self.stack, work.dir(), &name, kind)?;
            }
            if is_all {
                return Ok(());
            }
        }
    }
}
