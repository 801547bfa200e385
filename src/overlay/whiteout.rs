//! Writes deletions, opaque marks and redirects to the upper layer.
//!
//! The format decides their form and the order of the steps
//! ([`UpperFormat`](crate::format::UpperFormat)). This file makes the steps.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::errno::{E2BIG, EIO, ENOENT, ENOSPC, ERANGE, EXDEV, Error};

use super::Overlay;
use super::features::Feature;
use super::node::{Dir, Node};
use super::stack::LayerDir;
use super::trust::Way;
use super::work::{discard, discard_dir, rename_built};
use crate::format::plan::Onto;
use crate::format::{DirMark, WhiteoutMark};
use crate::layer::{Kind, Layer, Object, RenameMode, Result, XattrMode, ensure_file, entries, write_all};

impl<L: Layer> Overlay<L> {
    /// Whether a name can neither be created nor looked up.
    pub(super) fn is_reserved(&self, name: &OsStr) -> bool {
        self.format().is_reserved(name)
    }

    /// Whether a directory that lower layers have can be renamed.
    pub(super) fn can_redirect(&self) -> bool {
        !self.settings.no_redirects && self.format().features().redirects
    }

    /// Creates the whiteout of `name`. A whiteout in place of the name needs that name to be free.
    pub(super) fn add_whiteout(&self, dir: &LayerDir<L>, name: &OsStr) -> Result<()> {
        let (upper, work) = self.upper()?;
        match self.format().whiteout(name, self.name_max) {
            WhiteoutMark::Beside(marker) => work.place_file(&self.stack, dir, &marker.name, &marker.content),
            WhiteoutMark::InPlace => {
                let open = self.stack.open(dir)?;
                upper.create_node(&open, name, Kind::CharDev, 0, 0, upper.identity()).map(drop)
            }
        }
    }

    /// Removes the whiteout of `name`.
    pub(super) fn remove_whiteout(&self, dir: &LayerDir<L>, name: &OsStr) -> Result<()> {
        let (upper, _) = self.upper()?;
        let open = self.stack.open(dir)?;
        let removed = match self.format().whiteout(name, self.name_max) {
            WhiteoutMark::Beside(marker) => upper.unlink(&open, &marker.name),
            WhiteoutMark::InPlace => upper.unlink(&open, name),
        };
        match removed {
            Err(error) if error.errno != ENOENT => Err(error),
            _ => Ok(()),
        }
    }

    /// Puts a mark of the whole layer into its root: an empty file. The times of the root stay.
    pub(super) fn mark_top(&self, name: &str) -> Result<()> {
        let (upper, _) = self.upper()?;
        let top = self.stack.upper_root().ok_or(Error::new(EIO))?;
        let _dir = self.root.dir()?;
        self.keeping_times(&self.root, top, |dir| ensure_file(upper, dir, OsStr::new(name)))
    }

    /// Syncs `dir` before the visible step of an operation, if marks or whiteouts were put into it.
    /// So a crash after that step cannot lose them.
    pub(super) fn sync_names(&self, dir: &mut Dir<L>) -> Result<()> {
        if !dir.unsynced {
            return Ok(());
        }
        self.sync_step(&*self.known_upper(dir)?)?;
        dir.unsynced = false;
        Ok(())
    }

    /// Does the same as [`Overlay::sync_names`], for a directory of the upper layer that just got
    /// an entry.
    pub(super) fn sync_step(&self, dir: &LayerDir<L>) -> Result<()> {
        let (upper, work) = self.upper()?;
        if upper.capabilities().ordered || work.is_volatile() {
            return Ok(());
        }
        upper.sync_dir(&*self.stack.open(dir)?)
    }

    /// Puts a whiteout in the place of an object in one step, in a format where it has the name
    /// itself. A directory must be empty.
    pub(super) fn replace_by_whiteout(&self, dir: &L::Dir, name: &OsStr, kind: Kind) -> Result<()> {
        let (upper, work) = self.upper()?;
        let (open, temp) = (self.stack.open(work.dir())?, work.name());
        upper.create_node(&open, &temp, Kind::CharDev, 0, 0, upper.identity())?;
        let mode = if kind == Kind::Dir { RenameMode::Exchange } else { RenameMode::Replace };
        if let Err(error) = upper.rename(&open, &temp, dir, name, mode) {
            discard(upper, &open, &temp);
            return Err(error);
        }
        if kind == Kind::Dir {
            discard_dir(upper, &open, &temp);
        }
        Ok(())
    }

    /// Moves an object that is complete as `temp` in the work directory to its place, in one step.
    /// `file` is the object itself if it is an open regular file.
    pub(super) fn put(
        &self,
        (temp, file): (&OsStr, Option<&L::File>),
        dir: &L::Dir,
        name: &OsStr,
        onto: Onto,
    ) -> Result<()> {
        let (upper, work) = self.upper()?;
        let open = self.stack.open(work.dir())?;
        let rename = |mode| rename_built(upper, file, (&open, temp), (dir, name), mode);
        match onto {
            Onto::Free => rename(RenameMode::NoReplace),
            Onto::Whiteout => rename(RenameMode::Replace),
            Onto::Swapped => {
                rename(RenameMode::Exchange)?;
                discard(upper, &open, temp);
                Ok(())
            }
        }
    }

    /// Records a feature before its first mark. The marks of the kernel's format need no record:
    /// the kernel writes them without one, so each reader of the format knows them.
    pub(super) fn need_mark(&self, mark: &DirMark, feature: Feature) -> Result<()> {
        match mark {
            DirMark::File { .. } => self.need(feature),
            DirMark::Attribute { .. } => Ok(()),
        }
    }

    /// Gives a directory under construction a mark.
    pub(super) fn build_mark(&self, work: &L::Dir, temp: &OsStr, mark: DirMark) -> Result<()> {
        let (upper, _) = self.upper()?;
        match mark {
            DirMark::File { name, content } => {
                let made = upper.open_dir(work, temp)?;
                let file = upper.create_file(&made, OsStr::new(name), 0o600, upper.identity())?;
                write_all(upper, &file, &content, 0)
            }
            DirMark::Attribute { name, value } => {
                upper.set_xattr(Object::Entry(work, temp), &name, &value, XattrMode::Set)
            }
        }
    }

    /// Gives a directory the opaque mark, unless it has it.
    pub(super) fn set_opaque(&self, dir: &mut Dir<L>) -> Result<()> {
        if dir.opaque {
            return Ok(());
        }
        self.mark_dir(&*self.known_upper(dir)?, self.format().opaque())?;
        (dir.opaque, dir.unsynced) = (true, true);
        Ok(())
    }

    /// Gives a directory a redirect to this path.
    ///
    /// # Errors
    ///
    /// - EXDEV: the path does not fit into an attribute.
    pub(super) fn set_redirect(&self, dir: &mut Dir<L>, path: PathBuf) -> Result<()> {
        let mark = self.format().redirect(&path);
        self.need_mark(&mark, Feature::Redirects)?;
        let is_attribute = matches!(mark, DirMark::Attribute { .. });
        self.mark_dir(&*self.known_upper(dir)?, mark).map_err(|error| match error.errno {
            ENOSPC | ERANGE | E2BIG if is_attribute => Error::new(EXDEV),
            _ => error,
        })?;
        (dir.redirect, dir.unsynced) = (Some(Way { path, author: None }), true);
        Ok(())
    }

    fn mark_dir(&self, dir: &LayerDir<L>, mark: DirMark) -> Result<()> {
        let (upper, work) = self.upper()?;
        match mark {
            DirMark::File { name, content } => work.place_file(&self.stack, dir, OsStr::new(name), &content),
            DirMark::Attribute { name, value } => {
                upper.set_xattr(Object::Dir(&*self.stack.open(dir)?), &name, &value, XattrMode::Set)
            }
        }
    }

    /// Removes the marks and whiteouts in a directory of the upper layer that shows nothing. The
    /// order is such that those that are left let nothing show.
    ///
    /// Such a directory has a whiteout beside it, or no lower layer has its name. Else
    /// `opaque_first` says to make it opaque first. The handles of the directory show the times
    /// from before.
    pub(super) fn clear(&self, node: &Arc<Node<L>>, dir: &mut Dir<L>, opaque_first: bool) -> Result<()> {
        let (upper, _) = self.upper()?;
        let format = self.format();
        let whiteouts = dir.names.as_ref().is_none_or(|names| names.has_whiteouts() || !names.run().is_whole());
        let marked = format.features().reserved_names && (dir.opaque || dir.redirect.is_some() || dir.foreign);
        if !whiteouts && !marked {
            return Ok(());
        }
        let own = self.known_upper(dir)?;
        let open = self.stack.open(&own)?;
        let mut markers = entries(upper, &open)?;
        markers.sort_by_key(|(name, _)| format.clear_order(name));
        if markers.is_empty() {
            return Ok(());
        }
        let mut remove = |open: &L::Dir| {
            if opaque_first && !dir.lowers.is_empty() {
                self.set_opaque(dir)?;
            }
            // From here on the table may differ from the layer if a step fails. So the next use
            // reads the directory anew. It merges with nothing.
            dir.names = None;
            dir.lowers.clear();
            markers.iter().try_for_each(|(name, _)| upper.unlink(open, name))
        };
        let is_open = node.state.lock().handles > 0;
        if is_open { self.keeping_times(node, &own, remove) } else { remove(&open) }
    }
}
