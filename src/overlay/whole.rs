//! Work on whole layers, for the tools of layers: what a commit needs beyond the requests of a
//! front end.
//!
//! The tools use an overlay like a front end, so every change of a layer is in its own format. The
//! methods here do what no program asks an overlay for: they make an upper layer independent of its
//! work directory, bring data in from other layers, turn redirects, and empty the upper layer.

use std::ffi::{OsStr, OsString};
use std::iter;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::errno::{EEXIST, EIO, ENOENT, EOPNOTSUPP, EXDEV, Error};

use super::Overlay;
use super::attr::Location;
use super::file::Handle;
use super::names::{Slot, Upper};
use super::node::{LayerEntry, Node};
use super::progress::PIECE as COPY_PIECE;
use super::removal::{PIECE, remove_tree};
use super::stack::LayerDir;
use crate::format::{self, kernel};
use crate::layer::{Access, Kind, Layer, Object, Result, Time, some_entries, write_all};

/// A directory of an upper layer with a redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirected {
    /// Its path.
    pub at: PathBuf,
    /// The path in the lower layers that it merges with.
    pub to: PathBuf,
    /// Whether the lower layers have a directory there.
    pub merges: bool,
}

impl<L: Layer> Overlay<L> {
    /// Makes the upper layer whole: it shows the same without its work directory, and no file in it
    /// needs data of the layers below. Completes partial copies and metacopies. Gives each copy
    /// the names that only the index leads to.
    ///
    /// # Errors
    ///
    /// - EIO: a partial copy or a metacopy lacks its data below.
    ///
    /// Others of the layers.
    pub fn make_whole(&self) -> Result<()> {
        let (_, work) = self.upper()?;
        self.complete_all()?;
        if self.partials.lost.load(Ordering::Relaxed) {
            return Err(Error::new(EIO));
        }
        let (linked, metacopies) = (work.index().has_copies(), self.format().features().metacopies);
        if !linked && !metacopies {
            return Ok(());
        }
        self.each_dir(&self.root, &mut |_, dir| {
            let mut inside = Vec::new();
            self.each_shown(dir, &mut |name, kind| {
                let (in_upper, ino) = self.shown_place(dir, name)?;
                match (kind, in_upper) {
                    (Kind::Dir, true) => inside.push(name.clone()),
                    (Kind::Dir, false) if linked => inside.push(name.clone()),
                    (Kind::File, true) if metacopies => {
                        let node = self.lookup(dir, name)?;
                        {
                            let _content = node.content.lock();
                            self.bring_data(&node, u64::MAX)?;
                        }
                        self.release(node);
                    }
                    (Kind::Dir, false) | (_, true) => {}
                    (_, false) if ino.is_some_and(|ino| !work.index().may_be_copied(ino)) => {}
                    (_, false) => self.link_from_copy(dir, name)?,
                }
                Ok(())
            })?;
            Ok(inside)
        })
    }

    /// Calls `each` with the visible names of a directory and their kinds, in runs that follow each
    /// other. It may use the overlay.
    ///
    /// # Errors
    ///
    /// - ENOTDIR: the object is no directory.
    ///
    /// Those of `each`. Others of the layers.
    pub fn each_shown(&self, dir: &Arc<Node<L>>, each: &mut dyn FnMut(&Arc<OsStr>, Kind) -> Result<()>) -> Result<()> {
        let mut next = Some(OsString::new());
        while let Some(from) = next {
            let (names, behind) = self.shown_from(dir, &from)?;
            names.iter().try_for_each(|(name, kind)| each(name, *kind))?;
            next = behind;
        }
        Ok(())
    }

    /// Returns the visible names of a directory from `from` on, with their kinds: all, or those of
    /// a run. Also returns the name at which the next run begins, if there may be more.
    ///
    /// # Errors
    ///
    /// - ENOTDIR: the object is no directory.
    ///
    /// Others of the layers.
    #[expect(clippy::type_complexity, reason = "a list of pairs and a name")]
    pub fn shown_from(&self, dir: &Arc<Node<L>>, from: &OsStr) -> Result<(Vec<(Arc<OsStr>, Kind)>, Option<OsString>)> {
        self.each_slot(dir, from, |slot| Some((slot.name.clone(), slot.visible()?.kind)))
    }

    /// Returns what `of` returns for the names of a directory from `from` on, in all layers: for
    /// all, or those of a run. Also returns the name at which the next run begins.
    pub(super) fn each_slot<T>(
        &self,
        dir: &Arc<Node<L>>,
        from: &OsStr,
        of: impl FnMut(&Slot<L>) -> Option<T>,
    ) -> Result<(Vec<T>, Option<OsString>)> {
        let _tree = self.tree.read();
        let mut content = dir.dir()?;
        let names = self.read_dir_from(dir, &mut content, from)?;
        let found = names.of_run(from).filter_map(of).collect();
        Ok((found, names.run().to.clone()))
    }

    /// Returns whether the upper layer has a visible name, and the inode number of its layer.
    pub(super) fn shown_place(&self, dir: &Arc<Node<L>>, name: &OsStr) -> Result<(bool, Option<u64>)> {
        let _tree = self.tree.read();
        let mut content = dir.dir()?;
        let slot = self.read_dir_at(dir, &mut content, name)?.get(name).ok_or(Error::new(ENOENT))?;
        Ok((slot.upper.is_some(), slot.visible().and_then(|shown| shown.ino)))
    }

    /// Gives a copy the name `name` in the upper layer, if that name shows the copy by the index
    /// alone.
    pub(super) fn link_from_copy(&self, parent: &Arc<Node<L>>, name: &OsStr) -> Result<()> {
        let node = self.lookup(parent, name)?;
        let is_in_work = node.state.lock().stored.work_name().is_some();
        if is_in_work {
            let to = self.upper_dir(parent)?;
            let _content = node.content.lock();
            let _tree = self.tree.read();
            self.link_name(&mut *parent.dir()?, (parent, name), &to, &node)?;
        }
        self.release(node);
        Ok(())
    }

    /// Fills an empty file with the data of a file of another overlay, which may be this one. The
    /// two share the data where the filesystem can do that; holes stay. The new file has the size
    /// of the other. Calls `copied` with the number of bytes after each piece.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    /// - ENOSPC: the upper layer has not enough space.
    /// - EIO: the other file has only metadata, and no layer below has its data.
    ///
    /// An error of `copied`. Others of the layers.
    pub fn fill_from(
        &self,
        handle: &Handle<L>,
        other: &Overlay<L>,
        from: &Arc<Node<L>>,
        copied: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let (upper, _) = self.upper()?;
        self.use_file(handle);
        let size = other.layer_attr(from)?.size;
        let (from, to) = (other.file(from, Access::Read)?, self.file(handle.node(), Access::ReadWrite)?);
        let _content = handle.node().content.lock();
        self.begin_change(handle.node());
        let filled = (|| {
            match upper.share_data(&from.file, &to.file) {
                _ if from.from_lower.is_some() => {}
                Err(error) if matches!(error.errno, EOPNOTSUPP | EXDEV) => {}
                shared => return shared.and_then(|()| copied(size)),
            }
            let mut at = 0;
            while at < size
                && let Some(data) = other.next_data_open(&from, at)?
                && data.start < size
            {
                at = data.end.min(size).min(data.start + COPY_PIECE);
                if from.from_lower.is_some() {
                    let mut bytes = vec![0; (at - data.start) as usize];
                    let read = other.read_open(&from, &mut bytes, data.start)?;
                    write_all(upper, &to.file, &bytes[..read], data.start)?;
                } else {
                    upper.copy_range(&from.file, data.start..at, &to.file, data.start)?;
                }
                copied(at - data.start)?;
            }
            upper.truncate(&to.file, size)
        })();
        self.end_change_of_size(handle.node());
        filled
    }

    /// Gives a file of a layer of another overlay a further name, in a directory of the upper
    /// layer. Both names are of one file then. The name must be free in every layer, without a
    /// whiteout.
    ///
    /// # Errors
    ///
    /// - EXDEV: the two layers are not on one filesystem, or the file has attributes that mean
    ///   something only in its own layer.
    /// - EEXIST: the name is not free.
    /// - EROFS: there is no upper layer.
    ///
    /// Others of [`Layer::link`].
    pub fn link_from(
        &self,
        (dir, name): (&Arc<Node<L>>, &OsStr),
        (other, from): (&Overlay<L>, &Arc<Node<L>>),
    ) -> Result<()> {
        let (upper, _) = self.upper()?;
        let Location::Entry(from_dir, from_name) = other.location(&from.state.lock()) else {
            return Err(Error::new(EXDEV));
        };
        let to = self.upper_dir(dir)?;
        let _tree = self.tree.read();
        let mut content = dir.dir()?;
        if self.check_free(dir, &mut content, name)? {
            return Err(Error::new(EEXIST));
        }
        let source = other.stack.open(&from_dir)?;
        let object = Object::Entry(&*source, &from_name);
        let attributes = format::attribute::names(other.stack.layer(&from_dir), object)?;
        if !attributes.iter().all(|name| format::attribute::is_plain(name)) {
            return Err(Error::new(EXDEV));
        }
        upper.link(object, &*self.stack.open(&to)?, name)?;
        let slot = self.read_dir_at(dir, &mut content, name)?.entry(name);
        slot.upper = Some(Upper { kind: from.kind(), ino: None });
        self.known.add_name();
        self.touch(dir, &mut dir.state.lock());
        Ok(())
    }

    /// Whether an object and one of another overlay are the same object of a filesystem.
    ///
    /// # Errors
    ///
    /// Those of [`Layer::stat`].
    pub fn is_same_object(&self, node: &Arc<Node<L>>, (other, theirs): (&Overlay<L>, &Arc<Node<L>>)) -> Result<bool> {
        let (ours, theirs) = (self.identity(node)?, other.identity(theirs)?);
        Ok(ours.is_some() && ours == theirs)
    }

    /// Returns the ranges of a regular file of `size` bytes whose data may differ from those of a
    /// file of another overlay with the same size. The two show the same data elsewhere, since they
    /// take them from one file: a partial copy and a file with only metadata from their original.
    ///
    /// # Errors
    ///
    /// Those of [`Layer::stat`] and [`Layer::xattrs`].
    pub fn unshared(
        &self,
        node: &Arc<Node<L>>,
        (other, theirs): (&Overlay<L>, &Arc<Node<L>>),
        size: u64,
    ) -> Result<impl Iterator<Item = Range<u64>> + use<L>> {
        let partial = node.state.lock().stored.partial().cloned();
        let source = partial.as_ref().map_or_else(|| self.entry_of(node), |partial| Some(partial.source().clone()));
        let is_theirs_whole = theirs.state.lock().stored.partial().is_none();
        let data = if is_theirs_whole { self.data_of(source)? } else { None };
        let is_shared = data.is_some() && data == other.data_of(other.entry_of(theirs))?;
        let partial = partial.filter(|_| is_shared);
        let mut at = if is_shared && partial.is_none() { size } else { 0 };
        Ok(iter::from_fn(move || {
            while at < size {
                let (is_below, end) = partial.as_ref().map_or((false, size), |partial| partial.run(at, size));
                let run = at..end.min(size);
                at = run.end;
                if !is_below {
                    return Some(run);
                }
            }
            None
        }))
    }

    /// Returns the entry of an object, if it has one.
    fn entry_of(&self, node: &Arc<Node<L>>) -> Option<LayerEntry<L>> {
        match self.location(&node.state.lock()) {
            Location::Entry(dir, name) => Some((dir, name)),
            _ => None,
        }
    }

    /// Returns the filesystem of the file that has the data of a regular file, and its number
    /// there.
    fn data_of(&self, entry: Option<LayerEntry<L>>) -> Result<Option<(u64, u64)>> {
        let found = entry.map(|(dir, name)| self.find_all_data(dir, &name)).transpose()?.flatten();
        let number = |(dir, name): (Arc<LayerDir<L>>, OsString)| {
            self.stack.layer(&dir).stat(Object::Entry(&*self.stack.open(&dir)?, &name)).map(|stat| (stat.dev, stat.ino))
        };
        found.map(number).transpose()
    }

    /// Returns the filesystem of an object, and its number there. None if no layer has a name of
    /// it.
    fn identity(&self, node: &Arc<Node<L>>) -> Result<Option<(u64, u64)>> {
        let attr = self.layer_attr(node)?;
        Ok(match self.location(&node.state.lock()) {
            // The mark is its own inverse.
            Location::Entry(dir, _) | Location::Root(dir) => Some((self.stack.mark(&dir, attr).dev, attr.ino)),
            Location::File(_) | Location::Nowhere => None,
        })
    }

    /// Returns the index of the layer that has the object, from the topmost. None if only an open
    /// file is left of it.
    pub fn layer_of(&self, node: &Arc<Node<L>>) -> Option<usize> {
        match self.location(&node.state.lock()) {
            Location::Entry(dir, _) | Location::Root(dir) => Some(dir.index()),
            _ => None,
        }
    }

    /// Returns the directories of the upper layer that merge with another path than their own, each
    /// before those in it.
    ///
    /// # Errors
    ///
    /// Those of the layers.
    pub fn redirects(&self) -> Result<Vec<Redirected>> {
        let mut found = Vec::new();
        self.each_dir(&self.root, &mut |path, node| {
            let is_upper_dir = |slot: &Slot<L>| slot.upper.is_some_and(|upper| upper.kind == Kind::Dir);
            let (mut inside, mut next) = (Vec::new(), Some(OsString::new()));
            while let Some(from) = next {
                let (dirs, behind) =
                    self.each_slot(node, &from, |slot| is_upper_dir(slot).then(|| slot.name.clone()))?;
                inside.extend(dirs);
                next = behind;
            }
            let _tree = self.tree.read();
            let dir = node.dir()?;
            if let Some(way) = dir.redirect.as_ref().filter(|way| !dir.opaque && way.path != path) {
                found.push(Redirected { at: path.to_owned(), to: way.path.clone(), merges: !dir.lowers.is_empty() });
            }
            Ok(inside)
        })?;
        Ok(found)
    }

    /// Returns the path of an object of the upper layer whose name would be a mark in a lower
    /// layer. Only the kernel's format has such names. Leaves out what `skips` returns true
    /// for.
    ///
    /// # Errors
    ///
    /// Those of the layers.
    pub fn mark_like(&self, skips: &dyn Fn(&Path) -> bool) -> Result<Option<PathBuf>> {
        let mut found = None;
        if self.format().features().reserved_names {
            return Ok(found);
        }
        self.each_dir(&self.root, &mut |path, dir| {
            let mut inside = Vec::new();
            if found.is_some() {
                return Ok(inside);
            }
            self.each_shown(dir, &mut |name, kind| {
                let (in_upper, _) = self.shown_place(dir, name)?;
                let at = path.join(&**name);
                if !in_upper || skips(&at) {
                    return Ok(());
                }
                inside.extend((kind == Kind::Dir).then(|| name.clone()));
                if format::is_reserved(name) {
                    found.get_or_insert(at);
                }
                Ok(())
            })?;
            Ok(inside)
        })?;
        Ok(found)
    }

    /// Whether a directory merges with this path of the lower layers, by a redirect or by its name.
    ///
    /// # Errors
    ///
    /// - ENOTDIR: the object is no directory.
    ///
    /// Others of the layers.
    pub fn merges_with(&self, node: &Arc<Node<L>>, path: &Path) -> Result<bool> {
        let _tree = self.tree.read();
        {
            let mut dir = node.dir()?;
            self.read_some(node, &mut dir)?;
            if dir.lowers.is_empty() {
                return Ok(false);
            }
        }
        Ok(self.lower_path(node)? == path)
    }

    /// Whether a directory can be renamed: the format has redirects, or no lower layer has it.
    ///
    /// # Errors
    ///
    /// Those of the layers.
    pub fn can_move(&self, node: &Arc<Node<L>>) -> Result<bool> {
        let _tree = self.tree.read();
        match self.check_movable(node) {
            Err(error) if error.errno == EXDEV => Ok(false),
            checked => checked.map(|()| true),
        }
    }

    /// Makes a directory of the upper layer merge with this path of the lower layers, whatever its
    /// own name is, and gives it these times. The path may be none of the lower layers that the
    /// overlay knows.
    ///
    /// # Errors
    ///
    /// - EXDEV: the format has no redirects, or the path does not fit into a mark.
    ///
    /// Others of the upper layer.
    pub fn redirect(&self, node: &Arc<Node<L>>, path: &Path, (atime, mtime): (Time, Time)) -> Result<()> {
        if !self.format().features().redirects {
            return Err(Error::new(EXDEV));
        }
        let own = self.upper_dir(node)?;
        {
            let _tree = self.tree.write();
            let mut dir = node.dir()?;
            self.set_redirect(&mut dir, path.to_owned())?;
            self.sync_names(&mut dir)?;
        }
        self.upper()?.0.set_times(Object::Dir(&*self.stack.open(&own)?), atime, mtime)
    }

    /// Forgets the numbers and the other names of copies, of which there may be a million. After
    /// that only directories may be looked up. For an upper layer that is whole, and about to
    /// lose its changes.
    #[cfg(feature = "layer-tools")]
    pub fn forget_copies(&self) {
        self.inodes.forget_copies();
        if let Some(index) = self.copies() {
            index.forget_copies();
        }
    }

    /// Syncs everything that was written to the upper layer, also in a volatile overlay.
    ///
    /// # Errors
    ///
    /// Those of [`Layer::sync_all`].
    pub fn sync_upper(&self) -> Result<()> {
        self.upper()?.0.sync_all()
    }

    /// Whether the upper layer has no entry but its work directory.
    ///
    /// # Errors
    ///
    /// Those of the upper layer.
    pub fn is_upper_empty(&self) -> Result<bool> {
        let (upper, _) = self.upper()?;
        let root = self.stack.upper_root().ok_or(Error::new(EIO))?;
        Ok(some_entries(upper, &*self.stack.open(root)?, 2)?.iter().all(|(name, _)| name == format::WORK))
    }

    /// Removes everything from the upper layer but its root, the attributes of the root, and its
    /// work directory. The root gets these times. The overlay must not be used after that.
    ///
    /// # Errors
    ///
    /// Those of the upper layer.
    pub fn empty_upper(&self, (atime, mtime): (Time, Time)) -> Result<()> {
        let (upper, _) = self.upper()?;
        let root = self.stack.upper_root().ok_or(Error::new(EIO))?;
        let open = self.stack.open(root)?;
        loop {
            let mut entries = some_entries(upper, &open, PIECE)?;
            entries.retain(|(name, _)| name != format::WORK);
            if entries.is_empty() {
                break;
            }
            entries.into_iter().try_for_each(|(name, kind)| remove_tree(&self.stack, root, &name, kind))?;
        }
        self.unmark_root(&open)?;
        upper.set_times(Object::Dir(&*open), atime, mtime)
    }

    /// Removes the marks of the root that are attributes, but not that of the format.
    fn unmark_root(&self, root: &L::Dir) -> Result<()> {
        let (upper, _) = self.upper()?;
        if !self.format().features().attribute_marks {
            return Ok(());
        }
        for name in format::attribute::names(upper, Object::Dir(root))? {
            if kernel::limits_merge(&name) {
                upper.remove_xattr(Object::Dir(root), &name)?;
            }
        }
        Ok(())
    }
}
