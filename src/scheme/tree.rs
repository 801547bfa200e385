//! The tree that a scheme shows, with all that belongs to its clients.

use std::sync::Arc;

use super::access::Caller;
use super::changes::{ChangeGuard, Changes};
use super::handle::{SchemeHandle, Subject, Table};
use super::locks::Locks;
use super::mmap::Mappings;
use super::path::{self, Last, Walked};
use super::sockets::Sockets;
use crate::errno::{EACCES, EBADF, EROFS, Error, Result};
use crate::layer::Layer;
use crate::overlay::ownership::without_set_id;
use crate::overlay::{Node, Overlay};
use crate::sync::Lock;

/// An overlay, and its clients.
pub struct Tree<L: Layer> {
    pub(super) overlay: Arc<Overlay<L>>,
    /// The name of the scheme.
    pub(super) name: String,
    pub(super) handles: Table<L>,
    pub(super) mappings: Mappings<L>,
    pub(super) sockets: Sockets<L>,
    /// The changes of names and attributes in progress.
    pub(super) changes: Changes,
    /// The locks of clients on files.
    pub(super) locks: Lock<Locks>,
    /// See [`Caller::require_link`].
    pub(super) protected_hardlinks: bool,
}

impl<L: Layer> Tree<L> {
    pub(super) fn new(overlay: Arc<Overlay<L>>, name: String) -> Self {
        Self {
            overlay,
            name,
            handles: Table::new(),
            mappings: Mappings::new(),
            sockets: Sockets::new(),
            changes: Changes::new(),
            locks: Lock::new(Locks::new()),
            protected_hardlinks: true,
        }
    }

    /// Releases the locks that the process `pid` holds through a handle.
    pub(super) fn detach(&self, id: usize, pid: usize) {
        if let Ok(Subject { node, .. }) = self.handles.subject(id) {
            self.locks.lock().detach(id, node, pid);
        }
    }

    /// Closes a handle.
    pub(super) fn close(&self, id: usize) {
        let subject = self.handles.subject(id);
        // First, so that a request that still uses the handle finds it gone, or its result is found
        // here.
        self.handles.remove(id);
        if let Ok(subject) = subject {
            self.locks.lock().close(id, subject.node);
            self.unmap_all(id, subject);
        }
    }

    /// Walks a path. It is relative to the directory handle `dir` unless it begins with `/`.
    pub(super) fn walk(&self, dir: usize, path: &str, last: Last, caller: Caller) -> Result<Walked<L>> {
        let start = match self.handles.get(dir)? {
            SchemeHandle::Open(open) if !path.starts_with('/') => open.node().clone(),
            SchemeHandle::Open(_) | SchemeHandle::Scheme => self.overlay.root().clone(),
            SchemeHandle::PendingNode(_) | SchemeHandle::Elsewhere(_) => return Err(Error::new(EBADF)),
        };
        self.walk_from(&start, path, last, caller)
    }

    pub(super) fn walk_from(&self, start: &Arc<Node<L>>, path: &str, last: Last, caller: Caller) -> Result<Walked<L>> {
        path::walk(&self.overlay, &self.name, start, path, last, caller)
    }

    /// Returns the opener of a handle, for requests that do not name the caller.
    ///
    /// # Errors
    ///
    /// - EACCES: the handle is that of the scheme, which no client opened.
    pub(super) fn opener(&self, id: usize) -> Result<Caller> {
        match self.handles.get(id)? {
            SchemeHandle::Scheme => Err(Error::new(EACCES)),
            _ => Ok(self.handles.open(id)?.opener),
        }
    }

    /// Checks that the tree is writable.
    ///
    /// # Errors
    ///
    /// - EROFS: the tree is read-only.
    pub(super) fn require_writable(&self) -> Result<()> {
        if self.overlay.is_read_only() { Err(Error::new(EROFS)) } else { Ok(()) }
    }

    /// Copies a file up before a change of its attributes, or of `names`, if the change needs that.
    /// The caller has checked access. Other changes do not wait for the copy: the guard is dropped
    /// before. None: a copy was made, and the caller must check everything again.
    pub(super) fn copied_ahead<'c>(
        &self,
        guard: ChangeGuard<'c>,
        node: &Arc<Node<L>>,
        names: bool,
    ) -> Result<Option<ChangeGuard<'c>>> {
        if !self.overlay.will_copy(node, names) {
            return Ok(Some(guard));
        }
        drop(guard);
        self.overlay.prepare_change(node, names).map(|()| None)
    }

    /// Drops the set-id bits of an object before a caller without privileges changes its content.
    pub(super) fn drop_set_id(&self, node: &Arc<Node<L>>, caller: Caller) -> Result<()> {
        if caller.is_root() {
            return Ok(());
        }
        let found = self.overlay.stat_for_access(node)?;
        if without_set_id(&found, caller.gid) == found.mode {
            return Ok(());
        }
        let guard = self.changes.of_one(node);
        self.drop_set_id_within(node, caller, &guard)
    }

    /// Drops set-id bits as [`Tree::drop_set_id`] does, within a change of the object.
    pub(super) fn drop_set_id_within(&self, node: &Arc<Node<L>>, caller: Caller, _: &ChangeGuard<'_>) -> Result<()> {
        if caller.is_root() {
            return Ok(());
        }
        let found = self.overlay.stat_for_access(node)?;
        let dropped = without_set_id(&found, caller.gid);
        if dropped == found.mode { Ok(()) } else { self.overlay.set_mode(node, dropped) }
    }
}
