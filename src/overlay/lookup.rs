//! Lookup: from a name to a node.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::errno::{EINVAL, EIO, ENAMETOOLONG, ENOENT, ENOTDIR, ESTALE, Error};
use smallvec::smallvec;

use super::Overlay;
use super::node::{Dir, LinkCount, Node, ObjectName, State, Stored};
use super::stack::LayerDir;
use crate::layer::{Kind, Layer, Result, Stat};

impl<L: Layer> Overlay<L> {
    /// Returns the object `name` of `dir`. Uses the name as it is: `.` and `..` belong to the front
    /// end.
    ///
    /// # Errors
    ///
    /// - ENOENT: the name does not exist or is reserved, or the directory was removed.
    /// - ENOTDIR: `dir` is no directory.
    /// - ENAMETOOLONG: the name is too long.
    /// - ESTALE: another program changed the layer meanwhile.
    pub fn lookup(&self, dir: &Arc<Node<L>>, name: &OsStr) -> Result<Arc<Node<L>>> {
        self.forget_some();
        let _tree = self.tree.read();
        self.find(dir, name)
    }

    /// Returns the object `name` of a directory, if there is one.
    ///
    /// # Errors
    ///
    /// Those of [`Overlay::lookup`], but not ENOENT.
    pub fn seek(&self, dir: &Arc<Node<L>>, name: &OsStr) -> Result<Option<Arc<Node<L>>>> {
        match self.lookup(dir, name) {
            Err(error) if error.errno == ENOENT => Ok(None),
            found => found.map(Some),
        }
    }

    /// Does the same as [`Overlay::lookup`] if the caller holds the tree.
    pub(super) fn find(&self, parent: &Arc<Node<L>>, name: &OsStr) -> Result<Arc<Node<L>>> {
        self.find_in(parent, &mut *parent.dir()?, name)
    }

    /// Does the same as [`Overlay::find`] if the caller holds the directory's lock.
    pub(super) fn find_in(&self, parent: &Arc<Node<L>>, dir: &mut Dir<L>, name: &OsStr) -> Result<Arc<Node<L>>> {
        if name.len() > self.name_max {
            return Err(Error::new(ENAMETOOLONG));
        }
        if dir.removed || self.is_reserved(name) {
            return Err(Error::new(ENOENT));
        }
        self.load(parent, dir, name)?.ok_or(Error::new(ENOENT))
    }

    /// Checks that a new object may have the name `name` in `parent`.
    ///
    /// # Errors
    ///
    /// - ENOTDIR: `parent` is no directory.
    /// - EINVAL: the name is reserved.
    /// - ENAMETOOLONG: the name is too long.
    pub(super) fn check_new_name(&self, parent: &Arc<Node<L>>, name: &OsStr) -> Result<()> {
        if parent.kind() != Kind::Dir {
            Err(Error::new(ENOTDIR))
        } else if name.len() > self.name_max {
            Err(Error::new(ENAMETOOLONG))
        } else if self.is_reserved(name) {
            Err(Error::new(EINVAL))
        } else {
            Ok(())
        }
    }

    /// Returns the node of a visible name, or None if there is none.
    pub(super) fn load(&self, parent: &Arc<Node<L>>, dir: &mut Dir<L>, name: &OsStr) -> Result<Option<Arc<Node<L>>>> {
        let was_read = dir.names.is_some();
        self.read_dir_at(parent, dir, name)?;
        let Dir { lowers, names: Some(names), .. } = &*dir else {
            return Err(Error::new(EIO));
        };
        let found = names.get(name).and_then(|slot| Some((slot, slot.visible()?)));
        self.counters.looked_up(was_read && found.is_none_or(|(slot, _)| slot.child.is_some()));
        let Some((slot, visible)) = found else {
            return Ok(None);
        };
        if let Some(child) = &slot.child {
            return Ok(Some(child.clone()));
        }
        let from = dir.shown(slot).ok_or(Error::new(EIO))?.clone();
        if slot.part {
            // A copy that the mount only reads is not kept when its node is evicted.
            let (child, stays) = match (&dir.upper, lowers.first()) {
                (Some(upper), _) => (self.load_partial(parent, upper, &from, name)?, false),
                (None, Some(top)) => (self.show_partial(parent, top, &from, name)?, true),
                (None, None) => return Err(Error::new(EIO)),
            };
            if let Some(slot) = self.read_dir_at(parent, dir, name)?.get_mut(name) {
                (slot.part, slot.child) = (stays && child.is_some(), child.clone());
            }
            child.iter().for_each(|child| self.met(child));
            return if child.is_some() { Ok(child) } else { self.load(parent, dir, name) };
        }
        let attr = self.stack.stat(&from, name)?;
        if attr.kind != visible.kind {
            // Another program changes the layer meanwhile.
            return Err(Error::new(ESTALE));
        }
        let merging = slot.merging().filter_map(|dir| lowers.get(dir as usize));
        let merging: Vec<_> = merging.map(|dir| self.stack.child(dir, name)).collect();

        let place = ObjectName { parent: parent.clone(), name: slot.name.clone(), dir: from.clone() };
        let child = match attr.kind {
            Kind::Dir => self.new_dir(place, attr, merging)?,
            // Also for the last name that is left: the object may be in use by a name that is
            // removed.
            _ if attr.nlink > 1 || self.inodes.held(&attr).is_some() => self.new_linked(place, attr)?,
            kind => {
                let state = self.new_state(place.clone(), attr)?;
                Node::new(self.id_at(&place, state.ino), kind, state, None)
            }
        };
        if let Some(slot) = self.read_dir_at(parent, dir, name)?.get_mut(name) {
            slot.child = Some(child.clone());
        }
        self.met(&child);
        Ok(Some(child))
    }

    /// Makes the state of the object that is the entry `place` of a layer with these attributes.
    fn new_state(&self, place: ObjectName<L>, attr: Stat) -> Result<State<L>> {
        self.resolve_claim(&place.dir, &place.name, &attr)?;
        let in_upper = self.stack.is_upper(&place.dir);
        let ino = self.number(&attr);
        Ok(State { ino: Some(ino), ..State::at(place, in_upper, Some(attr)) })
    }

    /// Makes the node of a directory that merges with these lower ones, or is the first of them.
    fn new_dir(&self, place: ObjectName<L>, attr: Stat, merging: Vec<Arc<LayerDir<L>>>) -> Result<Arc<Node<L>>> {
        let mut state = self.new_state(place.clone(), attr)?;
        if merging.len() + usize::from(state.upper) != 1 {
            state.links = LinkCount::Merged;
        }
        let content = match (state.upper, merging.is_empty()) {
            (false, true) => Dir::empty(None),
            (false, false) => Dir::unread(None, merging),
            (true, _) => Dir::unread(Some(self.stack.child(&place.dir, &place.name)), merging),
        };
        Ok(Node::new(self.id_at(&place, state.ino), Kind::Dir, state, Some(content)))
    }

    /// Returns the node of an object with several names in its layer. Another name may have made it
    /// known.
    fn new_linked(&self, place: ObjectName<L>, attr: Stat) -> Result<Arc<Node<L>>> {
        let node = match self.inodes.held(&attr) {
            Some(node) => node,
            None => {
                let linked = self.linked(&place.dir, attr)?;
                let index_entry = linked.index_entry.map(|entry| self.in_work(entry)).transpose()?;
                let mut state = match &index_entry {
                    Some((dir, name)) => {
                        let in_index = ObjectName { dir: dir.clone(), name: name.clone(), ..place.clone() };
                        State { places: smallvec![place.clone()], ..self.new_state(in_index, linked.attr)? }
                    }
                    None => self.new_state(place.clone(), attr)?,
                };
                state.stored = index_entry.map_or(Stored::Named, |entry| Stored::Indexed(Box::new(entry)));
                state.origin = linked.origin.map(Box::new);
                state.links = linked.links;
                let id = self.id_at(&place, state.ino);
                self.inodes.same(&linked.attr, Node::new(id, attr.kind, state, None))
            }
        };
        let mut state = node.state.lock();
        if state.place_mut(&place.parent, &place.name).is_none() {
            state.places.push(place);
        }
        // A stack that shows a lower directory at two places shows more names than it has links.
        if let LinkCount::Counted(count) = state.links {
            state.links = LinkCount::Counted(count.max(state.places.len() as u32));
        }
        drop(state);
        Ok(node)
    }

    /// Returns one of the object's names and the directory that has it. None for the root, and for
    /// an object without a known name.
    pub fn parent(&self, node: &Arc<Node<L>>) -> Option<(Arc<Node<L>>, Arc<OsStr>)> {
        let state = node.state.lock();
        state.places.first().map(|place| (place.parent.clone(), place.name.clone()))
    }

    /// Returns the path from the root by one of the object's names, empty for the root. None if no
    /// name is left.
    pub fn path(&self, node: &Arc<Node<L>>) -> Option<PathBuf> {
        let _tree = self.tree.read();
        let mut names = Vec::new();
        let mut node = node.clone();
        while !self.is_root(&node) {
            let (parent, name) = self.parent(&node)?;
            names.push(name);
            node = parent;
        }
        Some(names.iter().rev().map(|name| &**name).collect())
    }
}
