//! Work on whole layers, for the tools of layers: what a commit needs beyond the requests of a
//! front end.
//!
//! The tools use an overlay like a front end, so every change of a layer is in its own format. The
//! methods here do what no program asks an overlay for: they make an upper layer independent of its
//! work directory, bring data in from other layers, turn redirects, and empty the upper layer.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::errno::{EIO, ENOENT, EOPNOTSUPP, EPERM, EXDEV, Error};

use super::Overlay;
use super::attr::Location;
use super::file::Handle;
use super::names::Upper;
use super::node::Node;
use super::progress::PIECE;
use super::stack::LayerDir;
use crate::format::{self, kernel};
use crate::layer::{Access, Kind, Layer, Object, Result, Time, entries, write_all};

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
        let mut dirs = vec![self.root.clone()];
        while let Some(dir) = dirs.pop() {
            for (name, kind) in self.shown_names(&dir)? {
                let (in_upper, ino) = self.shown_place(&dir, &name)?;
                match (kind, in_upper) {
                    (Kind::Dir, true) => dirs.push(self.lookup(&dir, &name)?),
                    (Kind::Dir, false) if linked => dirs.push(self.lookup(&dir, &name)?),
                    (Kind::File, true) if metacopies => {
                        let node = self.lookup(&dir, &name)?;
                        let _content = node.content.lock();
                        self.bring_data(&node, u64::MAX)?;
                    }
                    (Kind::Dir, false) | (_, true) => {}
                    (_, false) if ino.is_some_and(|ino| !work.index().may_be_copied(ino)) => {}
                    (_, false) => self.link_from_copy(&dir, &name)?,
                }
            }
        }
        Ok(())
    }

    /// Returns the visible names of a directory, with their kinds.
    pub(super) fn shown_names(&self, dir: &Arc<Node<L>>) -> Result<Vec<(Arc<OsStr>, Kind)>> {
        let _tree = self.tree.read();
        let mut content = dir.dir()?;
        let names = self.read_dir(dir, &mut content)?;
        Ok(names.slots_mut().filter_map(|slot| Some((slot.name.clone(), slot.visible()?.kind))).collect())
    }

    /// Returns whether the upper layer has a visible name, and the inode number of its layer.
    pub(super) fn shown_place(&self, dir: &Arc<Node<L>>, name: &OsStr) -> Result<(bool, Option<u64>)> {
        let _tree = self.tree.read();
        let mut content = dir.dir()?;
        let slot = self.read_dir(dir, &mut content)?.get(name).ok_or(Error::new(ENOENT))?;
        Ok((slot.upper.is_some(), slot.visible().and_then(|shown| shown.ino)))
    }

    /// Gives a copy the name `name` in the upper layer, if that name shows the copy by the index
    /// alone.
    pub(super) fn link_from_copy(&self, parent: &Arc<Node<L>>, name: &OsStr) -> Result<()> {
        let node = self.lookup(parent, name)?;
        if node.state.lock().stored.work_name().is_none() {
            return Ok(());
        }
        let to = self.upper_dir(parent)?;
        let _content = node.content.lock();
        let _tree = self.tree.read();
        self.link_name(&mut *parent.dir()?, (parent, name), &to, &node)
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
                at = data.end.min(size).min(data.start + PIECE);
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
    /// layer. Both names are of one file then. The name must be free in every layer.
    ///
    /// # Errors
    ///
    /// - EXDEV: the two layers are not on one filesystem.
    /// - EROFS: there is no upper layer.
    ///
    /// Others of [`Layer::link`].
    pub fn link_from(&self, dir: &Arc<Node<L>>, name: &OsStr, other: &Overlay<L>, from: &Arc<Node<L>>) -> Result<()> {
        let (upper, _) = self.upper()?;
        let Location::Entry(from_dir, from_name) = other.location(&from.state.lock()) else {
            return Err(Error::new(EXDEV));
        };
        let to = self.upper_dir(dir)?;
        let _tree = self.tree.read();
        let mut content = dir.dir()?;
        self.check_free(dir, &mut content, name)?;
        let source = other.stack.open(&from_dir)?;
        upper.link(Object::Entry(&*source, &from_name), &*self.stack.open(&to)?, name)?;
        let slot = self.read_dir(dir, &mut content)?.entry(name);
        slot.upper = Some(Upper { kind: from.kind(), ino: None });
        self.known.add_name();
        self.touch(dir, &mut dir.state.lock());
        Ok(())
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
        let mut dirs = vec![(PathBuf::new(), self.root.clone())];
        while let Some((path, node)) = dirs.pop() {
            let mut inside = Vec::new();
            {
                let _tree = self.tree.read();
                let mut dir = node.dir()?;
                let names = self.read_dir(&node, &mut dir)?;
                let is_upper_dir = |upper: &Upper| upper.kind == Kind::Dir;
                inside.extend(
                    names
                        .slots_mut()
                        .filter(|slot| slot.upper.as_ref().is_some_and(is_upper_dir))
                        .map(|slot| slot.name.clone()),
                );
                if let Some(way) = dir.redirect.as_ref().filter(|way| !dir.opaque && way.path != path) {
                    found.push(Redirected { at: path.clone(), to: way.path.clone(), merges: !dir.lowers.is_empty() });
                }
            }
            for name in inside {
                dirs.push((path.join(&*name), self.lookup(&node, &name)?));
            }
        }
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
            self.read_dir(node, &mut dir)?;
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
        Ok(entries(upper, &*self.stack.open(root)?)?.iter().all(|(name, _)| name == format::WORK))
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
        for (name, kind) in entries(upper, &open)? {
            if name != format::WORK {
                self.remove_tree(root, &name, kind)?;
            }
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

    /// Removes an entry of a directory of the upper layer with its content. It works without
    /// recursion, since a tree may be deep.
    fn remove_tree(&self, dir: &Arc<LayerDir<L>>, name: &OsStr, kind: Kind) -> Result<()> {
        let (upper, _) = self.upper()?;
        if kind != Kind::Dir {
            return self.remove_fixed(&*self.stack.open(dir)?, name);
        }
        let mut dirs = vec![self.stack.child(dir, name)];
        while let Some(dir) = dirs.last().cloned() {
            let open = self.stack.open(&dir)?;
            let count = dirs.len();
            for (name, kind) in entries(upper, &open)? {
                match kind {
                    Kind::Dir => dirs.push(self.stack.child(&dir, &name)),
                    _ => self.remove_fixed(&open, &name)?,
                }
            }
            if dirs.len() == count
                && let Some((above, name)) = self.stack.parent(&dir)
            {
                upper.remove_dir(&*self.stack.open(&above)?, &name)?;
                dirs.pop();
            }
        }
        Ok(())
    }

    /// Unlinks an entry, also one that its flags forbid to unlink.
    pub(super) fn remove_fixed(&self, dir: &L::Dir, name: &OsStr) -> Result<()> {
        let (upper, _) = self.upper()?;
        match upper.unlink(dir, name) {
            Err(error) if error.errno == EPERM && upper.stat(Object::Entry(dir, name))?.fixed.is_any() => {
                upper.set_flags(Object::Entry(dir, name), 0)?;
                upper.unlink(dir, name)
            }
            removed => removed,
        }
    }
}
