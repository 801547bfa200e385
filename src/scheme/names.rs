//! Operations on names: unlink, rename, link.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use crate::errno::{EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM, Error, Result};
use syscall::flag::AT_REMOVEDIR;

use super::access::{Caller, SEARCH, WRITE};
use super::changes::ChangeGuard;
use super::handle::{EntryOf, Open};
use super::path::{End, Last, Resolved, Walked};
use super::tree::Tree;
use crate::layer::{Kind, Layer, RenameMode};
use crate::overlay::Node;

/// The flags of renameat2, with the same values on every system that has them.
const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;

impl<L: Layer> Tree<L> {
    /// Removes a name: that of an empty directory with AT_REMOVEDIR, else that of any other object.
    ///
    /// # Errors
    ///
    /// - EINVAL: the flags have other bits.
    pub(super) fn unlink_at(&self, dir: usize, path: &str, flags: usize, caller: Caller) -> Result<()> {
        if flags & !AT_REMOVEDIR != 0 {
            return Err(Error::new(EINVAL));
        }
        let remove_dir = flags & AT_REMOVEDIR != 0;
        let (_guard, place) = self.changes.of(|| {
            let place = self.walk(dir, path, Last::Name, caller)?.here()?;
            let nodes = place.nodes();
            Ok((place, nodes))
        })?;
        let is_top = place.dir.id() == self.overlay.root().id();
        let name = match &place.end {
            End::Name(name) => OsStr::new(name),
            End::Start if !is_top => return Err(Error::new(ENOENT)),
            _ if !remove_dir => return Err(Error::new(EISDIR)),
            End::Dot => return Err(Error::new(EINVAL)),
            End::DotDot => return Err(Error::new(ENOTEMPTY)),
            End::Start => return Err(Error::new(EBUSY)),
        };
        let node = place.node.as_ref().ok_or(Error::new(ENOENT))?;
        self.require_writable()?;
        caller.require_removal(&self.overlay.stat_for_access(&place.dir)?, || self.overlay.stat_for_access(node))?;
        match (remove_dir, node.kind()) {
            (true, Kind::Dir) => self.overlay.remove_dir(&place.dir, name),
            (true, _) => Err(Error::new(ENOTDIR)),
            (false, Kind::Dir) => Err(Error::new(EISDIR)),
            (false, _) if place.slash => Err(Error::new(ENOTDIR)),
            (false, Kind::Socket) => {
                self.overlay.unlink(&place.dir, name)?;
                self.unbind(node);
                Ok(())
            }
            (false, _) => {
                // For an object in use, the engine asks the layer for attributes.
                drop(place.node);
                self.overlay.unlink(&place.dir, name)
            }
        }
    }

    /// Renames the object of a handle to a path from the top of the tree. From then on the handle
    /// has the new name.
    pub(super) fn rename_handle(&self, id: usize, path: &str, caller: Caller) -> Result<()> {
        let open = self.handles.open(id)?;
        if open.node().id() == self.overlay.root().id() {
            return Err(Error::new(EBUSY));
        }
        loop {
            let (guard, (name, old, new)) = self.changes.of(|| {
                let (dir, name) = self.current_entry(&open, caller)?.ok_or(Error::new(ENOENT))?;
                let old = Resolved { end: End::Start, node: Some(Arc::clone(open.node())), dir, slash: false };
                let new = self.walk_from(self.overlay.root(), path, Last::Name, caller)?.here()?;
                let nodes = old.nodes().into_iter().chain(new.nodes()).collect();
                Ok(((name, old, new), nodes))
            })?;
            let entry = new_entry(&new);
            if self.rename(guard, (&old, &name, caller), (&new, caller), RenameMode::Replace)? {
                *open.entry.lock() = entry;
                return Ok(());
            }
        }
    }

    /// Renames a path to another, each relative to a directory handle. The request does not name
    /// the caller, so the openers of the two handles count, each for its side.
    ///
    /// # Errors
    ///
    /// - EINVAL: the flags are none of renameat2.
    pub(super) fn rename_at(&self, dir: usize, path: &str, new_dir: usize, new_path: &str, flags: u32) -> Result<()> {
        let mode = match flags {
            0 => RenameMode::Replace,
            RENAME_NOREPLACE => RenameMode::NoReplace,
            RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return Err(Error::new(EINVAL)),
        };
        let (caller, new_caller) = (self.opener(dir)?, self.opener(new_dir)?);
        loop {
            let (guard, (old, new)) = self.changes.of(|| {
                let old = self.walk(dir, path, Last::Name, caller)?.here()?;
                let new = self.walk(new_dir, new_path, Last::Name, new_caller)?.here()?;
                let nodes = old.nodes().into_iter().chain(new.nodes()).collect();
                Ok(((old, new), nodes))
            })?;
            let End::Name(name) = &old.end else {
                return Err(Error::new(EBUSY));
            };
            if self.rename(guard, (&old, OsStr::new(name), caller), (&new, new_caller), mode)? {
                return Ok(());
            }
        }
    }

    /// Renames. Returns false if the caller must check everything again.
    fn rename(
        &self,
        guard: ChangeGuard<'_>,
        (old, name, caller): (&Resolved<L>, &OsStr, Caller),
        (new, new_caller): (&Resolved<L>, Caller),
        mode: RenameMode,
    ) -> Result<bool> {
        let End::Name(new_name) = &new.end else {
            return Err(Error::new(if mode == RenameMode::NoReplace { EEXIST } else { EBUSY }));
        };
        let node = old.node.as_ref().ok_or(Error::new(ENOENT))?;
        match (mode, &new.node) {
            (RenameMode::NoReplace, Some(_)) => return Err(Error::new(EEXIST)),
            (RenameMode::Exchange, None) => return Err(Error::new(ENOENT)),
            _ => {}
        }
        let is_dir = |node: &Arc<Node<L>>| node.kind() == Kind::Dir;
        let other_is_dir = mode == RenameMode::Exchange && new.node.as_ref().is_some_and(is_dir);
        if (old.slash && !is_dir(node)) || (new.slash && !is_dir(node) && !other_is_dir) {
            return Err(Error::new(ENOTDIR));
        }
        self.require_writable()?;

        let moves = old.dir.id() != new.dir.id();
        caller.require_removal(&self.overlay.stat_for_access(&old.dir)?, || self.overlay.stat_for_access(node))?;
        // A directory that gets another parent changes itself: its `..` changes.
        if moves && is_dir(node) {
            caller.require(&self.overlay.stat_for_access(node)?, WRITE)?;
        }
        let new_dir = self.overlay.stat_for_access(&new.dir)?;
        match &new.node {
            Some(target) => {
                new_caller.require_removal(&new_dir, || self.overlay.stat_for_access(target))?;
                if moves && other_is_dir {
                    new_caller.require(&self.overlay.stat_for_access(target)?, WRITE)?;
                }
            }
            None => new_caller.require_entries(&new_dir)?,
        }
        let Some(_guard) = self.copied_ahead(guard, node, true)? else { return Ok(false) };
        self.overlay.rename(&old.dir, name, &new.dir, OsStr::new(new_name), mode)?;
        if let Some(replaced) = &new.node {
            self.unbind(replaced);
        }
        Ok(true)
    }

    /// Gives the object of a handle a second name, at a path from the top of the tree.
    pub(super) fn link_handle(&self, id: usize, path: &str, caller: Caller) -> Result<()> {
        let open = self.handles.open(id)?;
        loop {
            let find = || self.walk_from(self.overlay.root(), path, Last::Name, caller);
            if self.link(&open, find, caller)? {
                return Ok(());
            }
        }
    }

    /// Gives the object of a handle a second name, at a path relative to a directory handle. The
    /// opener of that handle counts as the caller.
    ///
    /// # Errors
    ///
    /// - EINVAL: there are flags; none exist yet.
    pub(super) fn link_at(&self, id: usize, dir: usize, path: &str, flags: u32) -> Result<()> {
        if flags != 0 {
            return Err(Error::new(EINVAL));
        }
        let open = self.handles.open(id)?;
        let caller = self.opener(dir)?;
        loop {
            if self.link(&open, || self.walk(dir, path, Last::Name, caller), caller)? {
                return Ok(());
            }
        }
    }

    /// Links. Returns false if the caller must check everything again.
    fn link(&self, open: &Open<L>, find: impl Fn() -> Result<Walked<L>>, caller: Caller) -> Result<bool> {
        let (guard, new) = self.changes.of(|| {
            let new = find()?.here()?;
            let mut nodes = new.nodes();
            nodes.push(open.node().id());
            Ok((new, nodes))
        })?;
        let (End::Name(name), None) = (&new.end, &new.node) else {
            return Err(Error::new(EEXIST));
        };
        if new.slash {
            return Err(Error::new(ENOENT));
        }
        self.require_writable()?;
        if self.protected_hardlinks {
            caller.require_link(&self.overlay.stat_for_access(open.node())?)?;
        }
        caller.require_entries(&self.overlay.stat_for_access(&new.dir)?)?;
        if open.node().kind() == Kind::Dir {
            return Err(Error::new(EPERM));
        }
        let Some(_guard) = self.copied_ahead(guard, open.node(), true)? else { return Ok(false) };
        self.overlay.link(open.node(), &new.dir, OsStr::new(name)).map(|()| true)
    }

    /// Returns the entry of a handle: the one through which it was opened if that still names the
    /// object, else another of its names. None: the top of the tree, or an object without a name.
    ///
    /// # Errors
    ///
    /// - EACCES: the entry is another name, and the caller may not search all directories above it.
    ///   So the caller could not have reached it.
    pub(super) fn current_entry(&self, open: &Open<L>, caller: Caller) -> Result<EntryOf<L>> {
        let entry = open.entry.lock().clone();
        if let Some((dir, name)) = &entry
            && self.overlay.lookup(dir, name).is_ok_and(|node| node.id() == open.node().id())
        {
            return Ok(entry);
        }
        let other = self.overlay.parent(open.node());
        let mut above = other.as_ref().map(|(dir, _)| dir.clone());
        while let Some(dir) = above {
            caller.require(&self.overlay.stat_for_access(&dir)?, SEARCH)?;
            above = self.overlay.parent(&dir).map(|(parent, _)| parent);
        }
        Ok(other.map(|(dir, name)| (dir, name.to_os_string())))
    }
}

fn new_entry<L: Layer>(place: &Resolved<L>) -> EntryOf<L> {
    match &place.end {
        End::Name(name) => Some((Arc::clone(&place.dir), OsString::from(name))),
        End::Dot | End::DotDot | End::Start => None,
    }
}
