//! Attributes: returned from memory if they are current, and set on the upper layer.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use crate::errno::{EINVAL, ENOENT, EOPNOTSUPP, Error};

use super::Overlay;
use super::copy_up::For;
use super::node::{Node, OpenFile, State, Stored};
use super::ownership::SET_ID;
use super::stack::LayerDir;
use crate::layer::{Kind, Layer, Object, Owner, Result, Stat, Time};

/// The place of a node's object at this moment.
pub(super) enum Location<L: Layer> {
    Root(Arc<LayerDir<L>>),
    Entry(Arc<LayerDir<L>>, Arc<OsStr>),
    /// An unlinked object that is open in the upper layer.
    File(Arc<OpenFile<L>>),
    /// An unlinked object that is not open. Only the node's state is left of it.
    Nowhere,
}

/// A change of attributes.
#[derive(Clone, Copy)]
enum Change {
    Mode(u32),
    Owner(Owner),
    Times(Time, Time),
}

impl<L: Layer> Overlay<L> {
    /// Returns the attributes that callers see. The inode number is the overlay's. The link count
    /// is 0 after the last name is unlinked, and 1 for a directory that merges several.
    ///
    /// # Errors
    ///
    /// Those of [`Layer::stat`].
    pub fn stat(&self, node: &Arc<Node<L>>) -> Result<Stat> {
        {
            let mut state = node.state.lock();
            if let Some(attr) = state.fresh_attr_to_show() {
                return Ok(self.shown(&mut state, attr));
            }
        }
        let _tree = self.tree.read();
        self.stat_within(node)
    }

    /// Returns atime and mtime at a moment when no thread changes the content. A change that keeps
    /// the times puts them back at its end.
    ///
    /// # Errors
    ///
    /// Those of [`Layer::stat`].
    pub fn times_at_rest(&self, node: &Arc<Node<L>>) -> Result<(Time, Time)> {
        let _content = node.content.lock();
        let _tree = self.tree.read();
        self.times_within(node).map(|stat| (stat.atime, stat.mtime))
    }

    /// Does the same as [`Overlay::stat`] if the caller holds the tree.
    pub(super) fn stat_within(&self, node: &Arc<Node<L>>) -> Result<Stat> {
        let mut state = node.state.lock();
        let attr = match state.fresh_attr_to_show() {
            Some(attr) => attr,
            None => self.refresh(node, &mut state)?,
        };
        Ok(self.shown(&mut state, attr))
    }

    /// Does the same as [`Overlay::stat_within`], but only the times need be current.
    pub(super) fn times_within(&self, node: &Arc<Node<L>>) -> Result<Stat> {
        {
            let mut state = node.state.lock();
            if let Some(attr) = state.attr_of_fresh_times() {
                return Ok(self.shown(&mut state, attr));
            }
        }
        self.stat_within(node)
    }

    fn shown(&self, state: &mut State<L>, attr: Stat) -> Stat {
        let ino = *state.ino.get_or_insert_with(|| self.number(&attr));
        let (atime, mtime) = (self.times.kept(attr.atime), self.times.kept(attr.mtime));
        let ctime = state.ctime.unwrap_or_else(|| self.ctimes.shown(ino, attr.ctime));
        Stat { ino, dev: self.device, nlink: state.links.count(attr.nlink), atime, mtime, ctime, ..attr }
    }

    /// Attributes for permission checks: kind, owner and mode are current; times and counts may be
    /// stale. So a new or removed entry makes no later check ask the layer.
    ///
    /// # Errors
    ///
    /// Those of [`Layer::stat`].
    pub fn stat_for_access(&self, node: &Arc<Node<L>>) -> Result<Stat> {
        self.layer_attr(node)
    }

    /// Returns the inode number alone. The caller holds the tree.
    pub(super) fn ino(&self, node: &Arc<Node<L>>) -> Result<u64> {
        let known = node.state.lock().ino;
        known.map_or_else(|| self.stat_within(node).map(|attr| attr.ino), Ok)
    }

    /// Returns the attributes that the layer has. Times and blocks may be out of date.
    pub(super) fn layer_attr(&self, node: &Arc<Node<L>>) -> Result<Stat> {
        if let Some(attr) = node.state.lock().attr {
            return Ok(attr);
        }
        let _tree = self.tree.read();
        self.refresh(node, &mut node.state.lock())
    }

    /// Does the same as [`Overlay::layer_attr`] if the caller holds tree and state.
    pub(super) fn known_attr(&self, node: &Arc<Node<L>>, state: &mut State<L>) -> Result<Stat> {
        state.attr.map_or_else(|| self.refresh(node, state), Ok)
    }

    /// Asks the layer for the attributes. The caller holds the tree, so no rename changes the way
    /// to the object.
    pub(super) fn refresh(&self, node: &Arc<Node<L>>, state: &mut State<L>) -> Result<Stat> {
        let fresh = match self.location(state) {
            Location::Root(dir) => {
                let open = self.stack.open(&dir)?;
                self.stack.mark(&dir, self.stack.layer(&dir).stat(Object::Dir(&*open))?)
            }
            Location::Entry(dir, name) => match state.file.as_ref().filter(|open| state.is_open(open, &dir)) {
                // An open file needs no lookup.
                Some(open) => self.stack.mark(&dir, self.stack.layer(&dir).stat(Object::File(&open.file))?),
                None => self.stack.stat(&dir, &name)?,
            },
            Location::File(open) => {
                self.stack.mark(&open.dir, self.stack.layer(&open.dir).stat(Object::File(&open.file))?)
            }
            Location::Nowhere => match state.attr {
                Some(attr) => attr,
                None => return Err(Error::new(ENOENT)),
            },
        };
        let seen = state.refresh(fresh);
        drop(state.take_changed());
        self.keep_ctime(node, state, &fresh);
        Ok(seen)
    }

    /// Returns the place where a layer has the object.
    pub(super) fn location(&self, state: &State<L>) -> Location<L> {
        match (&state.stored, state.places.first(), &state.file) {
            (Stored::Indexed(entry), ..) => Location::Entry(entry.0.clone(), entry.1.clone()),
            (Stored::Unnamed(name), ..) => match &self.work {
                Some(work) => Location::Entry(work.dir().clone(), name.clone()),
                None => Location::Nowhere,
            },
            (Stored::Partial(partial), ..) => Location::Entry(partial.dir.clone(), partial.name.clone()),
            (_, Some(place), _) => Location::Entry(place.dir.clone(), place.name.clone()),
            (_, None, Some(open)) => Location::File(open.clone()),
            (Stored::Top, None, None) => {
                match self.stack.upper_root().filter(|_| state.upper).or(self.stack.lower_roots().first()) {
                    Some(root) => Location::Root(root.clone()),
                    None => Location::Nowhere,
                }
            }
            (Stored::Orphan(entry), None, None) => Location::Entry(entry.0.clone(), entry.1.clone()),
            (Stored::Named, None, None) => Location::Nowhere,
        }
    }

    /// Returns the target of a symlink.
    ///
    /// # Errors
    ///
    /// - EINVAL: `node` is no symlink.
    pub fn read_link(&self, node: &Arc<Node<L>>) -> Result<OsString> {
        if node.kind() != Kind::Symlink {
            return Err(Error::new(EINVAL));
        }
        if let Some(target) = &node.state.lock().target {
            return Ok(target.to_os_string());
        }
        let _tree = self.tree.read();
        self.read_link_within(node)
    }

    /// Does the same as [`Overlay::read_link`], for a symlink, if the caller holds the tree.
    pub(super) fn read_link_within(&self, node: &Arc<Node<L>>) -> Result<OsString> {
        let mut state = node.state.lock();
        if let Some(target) = &state.target {
            return Ok(target.to_os_string());
        }
        let Location::Entry(dir, name) = self.location(&state) else {
            return Err(Error::new(ENOENT));
        };
        let target = self.stack.layer(&dir).read_link(&*self.stack.open(&dir)?, &name)?;
        state.target = Some(target.as_os_str().into());
        Ok(target)
    }

    /// Sets the permission, set-id and sticky bits.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    /// - EPERM: the object is immutable or append-only.
    /// - EOPNOTSUPP: `node` is a symlink.
    pub fn set_mode(&self, node: &Arc<Node<L>>, mode: u32) -> Result<()> {
        self.upper()?;
        if node.kind() == Kind::Symlink {
            return Err(Error::new(EOPNOTSUPP));
        }
        self.change(node, Change::Mode(mode & 0o7777))
    }

    /// Sets owner and group, and keeps the mode. The front end decides about set-id bits.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    /// - EPERM: the object is immutable or append-only, or the layer refuses the owner.
    pub fn set_owner(&self, node: &Arc<Node<L>>, owner: Owner) -> Result<()> {
        self.ensure_copied_up(node, For::Change)?;
        let _content = node.content.lock();
        let before = self.stat(node)?;
        self.apply(node, Change::Owner(owner))?;
        // The filesystem may clear set-id bits itself, which POSIX permits. If they cannot be set
        // again, the change of the owner still counts.
        if before.kind != Kind::Symlink && before.mode & SET_ID != 0 {
            let kept = self.stat(node).and_then(|after| match after.mode == before.mode {
                true => Ok(()),
                false => self.apply(node, Change::Mode(before.mode)),
            });
            if let Err(error) = kept {
                let path = self.path(node).unwrap_or_default();
                log::warn!(
                    "a change of the owner removed the set-id bits of {}, and they cannot be set again: {error}",
                    path.display()
                );
            }
        }
        Ok(())
    }

    /// Sets atime and mtime, rounded to times that the upper layer can store ([`Overlay::times`]).
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    /// - EPERM: the object is immutable or append-only.
    pub fn set_times(&self, node: &Arc<Node<L>>, atime: Time, mtime: Time) -> Result<()> {
        self.change(node, Change::Times(self.times.kept(atime), self.times.kept(mtime)))
    }

    fn change(&self, node: &Arc<Node<L>>, change: Change) -> Result<()> {
        self.ensure_copied_up(node, For::Change)?;
        let _content = node.content.lock();
        let partial = node.state.lock().stored.partial().cloned();
        if let Some(partial) = partial {
            self.save_again(node, &partial)?;
        }
        self.apply(node, change)
    }

    /// Copies the object up, if it still has a place.
    pub(super) fn ensure_copied_up(&self, node: &Arc<Node<L>>, why: For) -> Result<()> {
        self.upper()?;
        if matches!(self.location(&node.state.lock()), Location::Nowhere) {
            return Ok(());
        }
        self.begin_copy_up(node, u64::MAX, why).map(drop)
    }

    fn apply(&self, node: &Arc<Node<L>>, change: Change) -> Result<()> {
        let (layer, _) = self.upper()?;
        if let Change::Owner(owner) = change {
            self.prepare_owner(owner)?;
        }
        let _tree = self.tree.read();
        let mut state = node.state.lock();
        let set = |object: Object<'_, L>| match change {
            Change::Mode(mode) => layer.set_mode(object, mode),
            Change::Owner(owner) => layer.set_owner(object, owner),
            Change::Times(atime, mtime) => layer.set_times(object, atime, mtime),
        };
        let location = self.location(&state);
        match &location {
            Location::Root(dir) => set(Object::Dir(&*self.stack.open(dir)?))?,
            Location::Entry(dir, name) => set(Object::Entry(&*self.stack.open(dir)?, name))?,
            Location::File(open) => set(Object::File(&open.file))?,
            Location::Nowhere => {}
        }
        if let Some(attr) = &mut state.attr {
            match change {
                Change::Mode(mode) => attr.mode = mode,
                Change::Owner(Owner { uid, gid }) => (attr.uid, attr.gid) = (uid, gid),
                Change::Times(atime, mtime) => (attr.atime, attr.mtime) = (atime, mtime),
            }
        }
        if let Change::Times(atime, mtime) = change {
            state.freshness.set_times(atime, mtime);
        }
        // A change of the owner may remove set-id bits and file capabilities, and may be recorded.
        let is_known = !matches!(change, Change::Owner(_))
            || state.lacks_capability
                && !layer.capabilities().owner_records
                && state.attr.is_some_and(|attr| attr.mode & SET_ID == 0);
        match location {
            Location::Nowhere => {}
            _ if is_known => self.redate(node, &mut state),
            _ => {
                self.touch(node, &mut state);
                state.attr = None;
            }
        }
        Ok(())
    }
}
