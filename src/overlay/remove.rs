//! Removal of names: unlink and rmdir, and the state of an object that lost a name.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{EACCES, EIO, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, Error};

use super::Overlay;
use super::attr::Location;
use super::node::{Dir, LinkCount, Node, ObjectName, OpenFile, State, StateGuard, Stored};
use super::stack::LayerDir;
use super::work::discard;
use crate::format::plan::{Seen, Step};
use crate::layer::{Access, Kind, Layer, Result};

impl<L: Layer> Overlay<L> {
    /// Removes a name of an object other than a directory.
    ///
    /// # Errors
    ///
    /// - ENOENT: the name does not exist.
    /// - EISDIR: the object is a directory.
    /// - EPERM: the object or `dir` is immutable or append-only.
    /// - EROFS: there is no upper layer.
    pub fn unlink(&self, dir: &Arc<Node<L>>, name: &OsStr) -> Result<()> {
        self.remove(dir, name, false)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    ///
    /// - ENOENT: the name does not exist.
    /// - ENOTDIR: the object is no directory.
    /// - ENOTEMPTY: the directory has entries.
    /// - EPERM: the directory or `dir` is immutable or append-only.
    /// - EROFS: there is no upper layer.
    pub fn remove_dir(&self, dir: &Arc<Node<L>>, name: &OsStr) -> Result<()> {
        self.remove(dir, name, true)
    }

    fn remove(&self, parent: &Arc<Node<L>>, name: &OsStr, is_dir: bool) -> Result<()> {
        loop {
            let child = self.lookup(parent, name)?;
            match (child.kind(), is_dir) {
                (Kind::Dir, false) => return Err(Error::new(EISDIR)),
                (Kind::Dir, true) | (_, false) => {}
                (_, true) => return Err(Error::new(ENOTDIR)),
            }
            // As in the kernel, EPERM comes before ENOTEMPTY.
            self.check_entries(parent, Some(&child))?;
            if is_dir {
                self.check_empty(parent, name, &child)?;
            }
            let to = self.upper_dir(parent)?;
            self.bring_held_data(&child)?;
            let _content = child.content.lock();
            let _tree = self.tree.read();
            let mut dir = parent.dir()?;
            // If the lookup lost a race, another thread changed the name. Retry.
            match self.load(parent, &mut dir, name)? {
                Some(now) if Arc::ptr_eq(&now, &child) => {}
                Some(_) => continue,
                None => return Err(Error::new(ENOENT)),
            }
            return self.remove_locked(parent, &mut dir, &to, name, &child);
        }
    }

    /// Returns ENOTEMPTY if the directory `node` has entries, and is still the entry `name` of
    /// `parent`.
    fn check_empty(&self, parent: &Arc<Node<L>>, name: &OsStr, node: &Arc<Node<L>>) -> Result<()> {
        let _tree = self.tree.read();
        let mut above = parent.dir()?;
        let is_there = self.load(parent, &mut above, name)?.is_some_and(|now| Arc::ptr_eq(&now, node));
        if !is_there || self.shows_nothing(node, &mut *node.dir()?)? { Ok(()) } else { Err(Error::new(ENOTEMPTY)) }
    }

    /// Makes a step before the removal of the name. `content` is that of a
    /// directory.
    fn prepare_removal(
        &self,
        parent: &Arc<Node<L>>,
        dir: &mut Dir<L>,
        (to, name): (&LayerDir<L>, &OsStr),
        (child, content): (&Arc<Node<L>>, Option<&mut Dir<L>>),
        step: Step,
    ) -> Result<()> {
        match (step, content) {
            (Step::Whiteout(_), _) => {
                self.add_whiteout(to, name)?;
                self.read_dir_at(parent, dir, name)?.entry(name).whiteout = true;
                dir.unsynced = true;
                Ok(())
            }
            (Step::SyncNames(_), _) => self.sync_names(dir),
            (Step::Clear { opaque_first }, Some(content)) => self.clear(child, content, opaque_first),
            (Step::Clear { .. }, None) => Ok(()),
        }
    }

    fn remove_locked(
        &self,
        parent: &Arc<Node<L>>,
        dir: &mut Dir<L>,
        to: &LayerDir<L>,
        name: &OsStr,
        child: &Arc<Node<L>>,
    ) -> Result<()> {
        let (upper, _) = self.upper()?;
        let mut content = match child.kind() {
            Kind::Dir => Some(child.dir()?),
            _ => None,
        };
        if let Some(content) = &mut content
            && !self.shows_nothing(child, content)?
        {
            return Err(Error::new(ENOTEMPTY));
        }
        let pinned = self.keep_open_on_unlink(child)?;
        let slot = self.read_dir_at(parent, dir, name)?.get(name).ok_or(Error::new(EIO))?;
        let plan = self.format().remove(slot.facts(), child.kind() == Kind::Dir);
        for step in plan.first {
            self.prepare_removal(parent, dir, (to, name), (child, content.as_deref_mut()), step)?;
        }
        if plan.seen == Seen::Whiteout {
            self.add_whiteout(to, name)?;
        }
        let open = self.stack.open(to)?;
        let slot = self.read_dir_at(parent, dir, name)?.get_mut(name).ok_or(Error::new(EIO))?;
        // The lock lasts until the new place is known, so no thread asks for the object by its old
        // name.
        let state = child.state.lock();
        match (plan.seen, child.kind()) {
            (Seen::Whiteout, _) => {}
            (Seen::Remove, Kind::Dir) => upper.remove_dir(&open, name)?,
            (Seen::Remove, _) => upper.unlink(&open, name)?,
            (Seen::Replace, kind) => self.replace_by_whiteout(&open, name, kind)?,
        }
        slot.whiteout |= plan.seen != Seen::Remove;
        self.lost_name(child, state, parent, name, pinned);
        slot.upper = None;
        slot.child = None;
        if let Some(names) = &mut dir.names {
            names.tidy(name);
        }
        if let Some(content) = &mut content {
            content.removed = true;
        }
        drop(content);
        self.touch(parent, &mut parent.state.lock());
        Ok(())
    }

    /// Prepares an object for the loss of a name, so that its handles stay usable if that is its
    /// last. Returns the open file that [`Overlay::lost_name`] needs for that. A lower layer keeps
    /// its object.
    ///
    /// The caller must hold the lock of the directory, and one reference to the node.
    pub(super) fn keep_open_on_unlink(&self, node: &Arc<Node<L>>) -> Result<Option<Arc<OpenFile<L>>>> {
        let mut state = node.state.lock();
        // Two strong references: the directory's, which is locked, and the caller's. So no other
        // thread has found the node, and none can.
        let is_found = Arc::strong_count(node) > 2;
        if state.is_unasked() && !is_found {
            let unused = state.take_changed();
            drop(state);
            drop(unused);
            return Ok(None);
        }
        let attr = self.known_attr(node, &mut state)?;
        // The number is assigned while the layer has the object. Later a new object may have the
        // layer's number.
        let ino = *state.ino.get_or_insert_with(|| self.number(&attr));
        let is_last = node.kind() == Kind::Dir || state.links.count(attr.nlink) <= 1;
        if state.upper && is_last {
            // This comes before the layer can reuse the number. While other names are left, it
            // cannot.
            self.inodes.unlinked(node, ino);
        }
        // A thread that found the object by its last name may be about to open it.
        let held = state.upper && (state.handles > 0 || is_found && state.places.len() == 1);
        let unused = if held { self.take_limited(&mut state) } else { state.take_changed() };
        drop(state);
        drop(unused);
        match node.kind() {
            Kind::File if held => {
                let open = self.file_within(node, Access::ReadWrite).or_else(|error| match error.errno {
                    // The handles may still read it.
                    EACCES => self.file_within(node, Access::Read),
                    _ => Err(error),
                });
                open.map(Some)
            }
            Kind::Symlink if held => {
                self.read_link_within(node)?;
                self.open_attributes(node)
            }
            _ if held => self.open_attributes(node),
            _ => Ok(None),
        }
    }

    /// Takes the open file if it cannot set attributes. Without a name the object has no other way.
    fn take_limited(&self, state: &mut State<L>) -> Option<Arc<OpenFile<L>>> {
        state.file.take_if(|open| !self.stack.layer(&open.dir).may_set_attributes(&open.file))
    }

    /// Opens an object for its attributes alone. Returns None if the layer has no extended ones:
    /// the state of the node has the others. The caller must lock the tree.
    fn open_attributes(&self, node: &Arc<Node<L>>) -> Result<Option<Arc<OpenFile<L>>>> {
        match self.location(&node.state.lock()) {
            Location::Entry(dir, name) => self.open_entry(&dir, &name),
            _ => Ok(None),
        }
    }

    /// Does the same for the entry `name` of a directory of a layer.
    pub(super) fn open_entry(&self, dir: &Arc<LayerDir<L>>, name: &OsStr) -> Result<Option<Arc<OpenFile<L>>>> {
        let (layer, access) = (self.stack.layer(dir), Access::Attributes);
        if !layer.capabilities().xattrs {
            return Ok(None);
        }
        let file = layer.open_file(&*self.stack.open(dir)?, name, access)?;
        Ok(Some(Arc::new(OpenFile { file, access, dir: dir.clone(), from_lower: None })))
    }

    /// Updates an object that lost the name `name` in `parent`. The caller locked its state before
    /// the loss. `pinned` comes from [`Overlay::keep_open_on_unlink`].
    pub(super) fn lost_name(
        &self,
        node: &Arc<Node<L>>,
        mut state: StateGuard<'_, L>,
        parent: &Arc<Node<L>>,
        name: &OsStr,
        pinned: Option<Arc<OpenFile<L>>>,
    ) {
        let is_lost = |place: &ObjectName<L>| Arc::ptr_eq(&place.parent, parent) && *place.name == *name;
        let lost = state.places.iter().position(is_lost).map(|index| state.places.remove(index));
        if pinned.is_some() && state.places.is_empty() && state.opened(Access::ReadWrite).is_none() {
            state.file = pinned;
        }
        if state.upper {
            self.redate(node, &mut state);
        }
        if state.lose_link(node.kind()) > 0 {
            if let (Some(origin), Some(lost)) = (state.origin(), &lost)
                && !self.stack.is_upper(&lost.dir)
            {
                self.hid_name(origin);
            }
            // An earlier mount may have hidden those.
            if !state.upper && state.places.is_empty() {
                state.stored.lose_name(lost);
            }
            return;
        }
        // redoxfs goes on to count the last name while the object is open. Without attributes, only
        // the layer knows whether there are other names.
        if !state.upper || state.attr.is_some() {
            state.links = LinkCount::NONE;
        }
        if !state.upper {
            state.stored.lose_name(lost);
        }
        self.lost_last_name(node, state);
    }

    /// Drops the facts about an object that lost its last name.
    fn lost_last_name(&self, node: &Arc<Node<L>>, mut state: StateGuard<'_, L>) {
        if let Some(attr) = state.attr {
            self.inodes.forget_link(attr.dev, attr.ino);
        }
        self.discard_copy(node, &mut state);
        if let (Some(attr), Some(ino), true) = (state.attr, state.ino, state.upper) {
            self.inodes.removed(ino, &attr);
            self.lost_copy(ino, attr.dev, attr.ino, state.origin());
        }
        let ino = state.ino;
        drop(state);
        if let Some(ino) = ino {
            self.inodes.unlinked(node, ino);
        }
    }

    /// Removes the parts that the upper layer has of an object, beside the names that it lost.
    fn discard_copy(&self, node: &Arc<Node<L>>, state: &mut State<L>) {
        match std::mem::replace(&mut state.stored, Stored::Named) {
            Stored::Partial(partial) => {
                // Also if the copy cannot be removed.
                state.links = LinkCount::NONE;
                self.discard_partial(node, &partial);
            }
            // The entry of a frozen layer stays there.
            stored @ Stored::Indexed(_) if !state.upper => state.stored = stored,
            stored @ (Stored::Indexed(_) | Stored::Unnamed(_)) => {
                if let (Ok((upper, work)), Some(name), Some(_)) = (self.upper(), stored.work_name(), &state.attr) {
                    match self.stack.open(work.dir()) {
                        Ok(open) => discard(upper, &open, name),
                        Err(error) => {
                            log::warn!("cannot remove {name:?} from the work directory, the next mount does: {error}");
                        }
                    }
                }
            }
            other => state.stored = other,
        }
    }
}
