//! The front end on Redox: an overlay as a scheme.
//!
//! A request names an open handle and perhaps a path. This folder finds the objects of the merged
//! tree (`path`), checks access (`access`), and calls the engine. Each method of [`SchemeSync`]
//! below only passes its request to the file of its subject: `open`, `names`, `data`, `attributes`,
//! `mmap`, `sockets`.
//!
//! Several threads serve one scheme, each with a clone of [`OverlayScheme`]. They take the locks in
//! this order:
//!
//! 1. The nodes of a change of names or attributes, see `changes`: so a change meets the state that
//!    was checked. A request that only opens, reads, writes or asks does not wait for it.
//! 2. The lock of a file that a client writes to or maps, see `mmap`.
//! 3. The record locks of clients (`OverlayScheme::locks`). Under this lock a request looks its
//!    handle up and takes a share of a quota. It may also drop the handle's last reference.
//! 4. The locks of the engine.
//! 5. Leaves: a thread takes no other lock under one. They are those of the table of handles, the
//!    mutable parts of a handle, the bound sockets, the handles with mappings, and the quotas.

mod access;
mod attributes;
mod changes;
mod data;
mod decode;
mod handle;
mod locks;
mod mmap;
mod names;
mod open;
mod path;
mod quota;
mod region;
mod sockets;

use std::sync::Arc;

use crate::errno::{EACCES, EBADF, EOPNOTSUPP, EPERM, EROFS, Error, Result};
use redox_scheme::scheme::SchemeSync;
use redox_scheme::{CallerCtx, OpenResult};
use syscall::data::{Stat, StatVfs, StdFsCallMeta, TimeSpec};
use syscall::dirent::DirentBuf;
use syscall::flag::{EventFlags, MapFlags, MunmapFlags, StdFsCallKind};
use syscall::schemev2::NewFdFlags;

pub use self::decode::{answer, give, is_connect};
pub use self::sockets::{path_of, token_of};

use self::access::Caller;
use self::changes::{ChangeGuard, Changes};
use self::handle::{SchemeHandle, Table};
use self::locks::Locks;
use self::mmap::Mappings;
use self::path::{Last, Walked};
use self::sockets::Sockets;
use crate::layer::Layer;
use crate::overlay::ownership::without_set_id;
use crate::overlay::{Node, Overlay};
use crate::sync::Lock;

/// An overlay that clients reach as `/scheme/NAME`. A clone serves the same scheme in another
/// thread.
pub struct OverlayScheme<L: Layer> {
    overlay: Arc<Overlay<L>>,
    /// NAME.
    name: Arc<str>,
    handles: Arc<Table<L>>,
    mappings: Arc<Mappings<L>>,
    sockets: Arc<Sockets<L>>,
    /// The changes of names and attributes in progress.
    changes: Arc<Changes>,
    /// The locks of clients on files.
    locks: Arc<Lock<Locks>>,
    /// See [`Caller::require_link`].
    protected_hardlinks: bool,
}

impl<L: Layer> Clone for OverlayScheme<L> {
    fn clone(&self) -> Self {
        Self {
            overlay: self.overlay.clone(),
            name: self.name.clone(),
            handles: self.handles.clone(),
            mappings: self.mappings.clone(),
            sockets: self.sockets.clone(),
            changes: self.changes.clone(),
            locks: self.locks.clone(),
            protected_hardlinks: self.protected_hardlinks,
        }
    }
}

impl<L: Layer> OverlayScheme<L> {
    /// Makes a scheme for `overlay`. It will be registered as `name`: the paths in its answers
    /// begin with that, and it resolves symlinks that name it.
    pub fn new(overlay: Arc<Overlay<L>>, name: String) -> Self {
        Self {
            overlay,
            name: name.into(),
            handles: Arc::new(Table::new()),
            mappings: Arc::new(Mappings::new()),
            sockets: Arc::new(Sockets::new()),
            changes: Arc::new(Changes::new()),
            locks: Arc::new(Lock::new(Locks::new())),
            protected_hardlinks: true,
        }
    }

    /// Sets whether a link to a file fails with EPERM for callers that neither own it nor could
    /// change it. The default is true.
    pub fn protect_hardlinks(self, protected_hardlinks: bool) -> Self {
        Self { protected_hardlinks, ..self }
    }

    /// Releases the locks that the process `pid` holds through a handle. The kernel sends this when
    /// it closes a descriptor of the process.
    pub fn detach(&self, id: usize, pid: usize) {
        if let Ok(open) = self.handles.open(id) {
            self.locks.lock().detach(id, open.node().id(), pid);
        }
    }

    /// Walks a path. It is relative to the directory handle `dir` unless it begins with `/`.
    fn walk(&self, dir: usize, path: &str, last: Last, caller: Caller) -> Result<Walked<L>> {
        let start = match self.handles.get(dir)? {
            SchemeHandle::Open(open) if !path.starts_with('/') => open.node().clone(),
            SchemeHandle::Open(_) | SchemeHandle::Scheme => self.overlay.root().clone(),
            SchemeHandle::PendingNode(_) | SchemeHandle::Elsewhere(_) => return Err(Error::new(EBADF)),
        };
        self.walk_from(&start, path, last, caller)
    }

    fn walk_from(&self, start: &Arc<Node<L>>, path: &str, last: Last, caller: Caller) -> Result<Walked<L>> {
        path::walk(&self.overlay, &self.name, start, path, last, caller)
    }

    /// Returns the opener of a handle, for requests that do not name the caller.
    ///
    /// # Errors
    ///
    /// - EACCES: the handle is that of the scheme, which no client opened.
    fn opener(&self, id: usize) -> Result<Caller> {
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
    fn require_writable(&self) -> Result<()> {
        if self.overlay.is_read_only() { Err(Error::new(EROFS)) } else { Ok(()) }
    }

    /// Copies a file up before a change of its attributes, or of `names`, if the change needs that.
    /// The caller has checked access. Other changes do not wait for the copy: the guard is dropped
    /// before. None: a copy was made, and the caller must check everything again.
    fn copied_ahead<'c>(
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
    fn drop_set_id(&self, node: &Arc<Node<L>>, caller: Caller) -> Result<()> {
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

    /// Drops set-id bits as [`OverlayScheme::drop_set_id`] does, within a change of the object.
    fn drop_set_id_within(&self, node: &Arc<Node<L>>, caller: Caller, _: &ChangeGuard<'_>) -> Result<()> {
        if caller.is_root() {
            return Ok(());
        }
        let found = self.overlay.stat_for_access(node)?;
        let dropped = without_set_id(&found, caller.gid);
        if dropped == found.mode { Ok(()) } else { self.overlay.set_mode(node, dropped) }
    }
}

/// Makes the answer for a new handle. The kernel keeps the offset of each.
fn opened(number: usize) -> OpenResult {
    OpenResult::ThisScheme { number, flags: NewFdFlags::POSITIONED }
}

impl<L: Layer> SchemeSync for OverlayScheme<L> {
    fn scheme_root(&mut self) -> syscall::Result<usize> {
        Ok(self.handles.insert(SchemeHandle::Scheme, self.handles.room(0)?))
    }

    fn openat(
        &mut self,
        dir: usize,
        path: &str,
        flags: usize,
        _fcntl_flags: u32,
        ctx: &CallerCtx,
    ) -> syscall::Result<OpenResult> {
        Ok(self.open_at(dir, path, flags, Caller::of(ctx)).map(opened)?)
    }

    fn unlinkat(&mut self, dir: usize, path: &str, flags: usize, ctx: &CallerCtx) -> syscall::Result<()> {
        Ok(self.unlink_at(dir, path, flags, Caller::of(ctx))?)
    }

    fn inode(&self, id: usize) -> syscall::Result<usize> {
        // Not the st_ino that clients see: this number is unique over the whole mount.
        Ok(self.handles.open(id)?.node().id() as usize)
    }

    fn dup(&mut self, id: usize, request: &[u8], _ctx: &CallerCtx) -> syscall::Result<OpenResult> {
        Ok(self.duplicate(id, request).map(opened)?)
    }

    fn read(
        &mut self,
        id: usize,
        buf: &mut [u8],
        offset: u64,
        _fcntl_flags: u32,
        _ctx: &CallerCtx,
    ) -> syscall::Result<usize> {
        Ok(self.read_at(id, buf, offset)?)
    }

    fn write(
        &mut self,
        id: usize,
        buf: &[u8],
        offset: u64,
        fcntl_flags: u32,
        ctx: &CallerCtx,
    ) -> syscall::Result<usize> {
        Ok(self.write_to(id, buf, offset, fcntl_flags, Caller::of(ctx))?)
    }

    fn fsize(&mut self, id: usize, _ctx: &CallerCtx) -> syscall::Result<u64> {
        Ok(self.size(id)?)
    }

    fn fchmod(&mut self, id: usize, mode: u16, _ctx: &CallerCtx) -> syscall::Result<()> {
        Ok(self.set_mode(id, u32::from(mode))?)
    }

    fn fchown(&mut self, id: usize, uid: u32, gid: u32, _ctx: &CallerCtx) -> syscall::Result<()> {
        Ok(self.set_owner(id, uid, gid)?)
    }

    fn fcntl(&mut self, id: usize, command: usize, argument: usize, _ctx: &CallerCtx) -> syscall::Result<usize> {
        Ok(self.control(id, command, argument)?)
    }

    fn fevent(&mut self, id: usize, _flags: EventFlags, _ctx: &CallerCtx) -> syscall::Result<EventFlags> {
        self.handles.open(id)?;
        // As in redoxfs, there is nothing to wait for: select counts the file as ready.
        Err(syscall::Error::new(EPERM))
    }

    fn flink(&mut self, id: usize, path: &str, ctx: &CallerCtx) -> syscall::Result<usize> {
        Ok(self.link_handle(id, path, Caller::of(ctx)).map(|()| 0)?)
    }

    fn flinkat(&mut self, id: usize, dir: usize, path: &str, flags: u32, _ctx: &CallerCtx) -> syscall::Result<usize> {
        Ok(self.link_at(id, dir, path, flags).map(|()| 0)?)
    }

    fn fpath(&mut self, id: usize, buf: &mut [u8], _ctx: &CallerCtx) -> syscall::Result<usize> {
        Ok(self.path(id, buf)?)
    }

    fn frename(&mut self, id: usize, path: &str, ctx: &CallerCtx) -> syscall::Result<usize> {
        Ok(self.rename_handle(id, path, Caller::of(ctx)).map(|()| 0)?)
    }

    fn frenameat(
        &mut self,
        dir: usize,
        path: &str,
        new_dir: usize,
        new_path: &str,
        flags: u32,
        _ctx: &CallerCtx,
    ) -> syscall::Result<usize> {
        Ok(self.rename_at(dir, path, new_dir, new_path, flags).map(|()| 0)?)
    }

    fn fstat(&mut self, id: usize, stat: &mut Stat, _ctx: &CallerCtx) -> syscall::Result<()> {
        *stat = self.stat(id)?;
        Ok(())
    }

    fn fstatvfs(&mut self, id: usize, stat: &mut StatVfs, _ctx: &CallerCtx) -> syscall::Result<()> {
        *stat = self.stat_fs(id)?;
        Ok(())
    }

    fn fsync(&mut self, id: usize, _ctx: &CallerCtx) -> syscall::Result<()> {
        Ok(self.sync(id)?)
    }

    fn ftruncate(&mut self, id: usize, size: u64, _ctx: &CallerCtx) -> syscall::Result<()> {
        Ok(self.truncate(id, size)?)
    }

    fn futimens(&mut self, id: usize, times: &[TimeSpec], _ctx: &CallerCtx) -> syscall::Result<()> {
        Ok(self.set_times(id, times)?)
    }

    /// The trait names the first id the target. relibc's `redox_relpathat_v0` and ramfs make it the
    /// directory, and so does this code.
    fn relpathat(&mut self, dir: usize, id: usize, buf: &mut [u8], _ctx: &CallerCtx) -> syscall::Result<usize> {
        Ok(self.relative_path(dir, id, buf)?)
    }

    /// The one request that the crate leaves to schemes: fchown, with both ids in the first
    /// argument. The high half is the group's.
    fn std_fs_call(
        &mut self,
        id: usize,
        kind: StdFsCallKind,
        _payload: &mut [u8],
        metadata: StdFsCallMeta,
        _ctx: &CallerCtx,
    ) -> syscall::Result<usize> {
        match kind {
            StdFsCallKind::Fchown => {
                let ids = metadata.arg1;
                Ok(self.set_owner(id, ids as u32, (ids >> 32) as u32).map(|()| 0)?)
            }
            _ => Err(syscall::Error::new(EOPNOTSUPP)),
        }
    }

    fn getdents<'buf>(
        &mut self,
        id: usize,
        buf: DirentBuf<&'buf mut [u8]>,
        after: u64,
    ) -> syscall::Result<DirentBuf<&'buf mut [u8]>> {
        Ok(self.list(id, buf, after)?)
    }

    fn mmap_prep(
        &mut self,
        id: usize,
        offset: u64,
        size: usize,
        flags: MapFlags,
        _ctx: &CallerCtx,
    ) -> syscall::Result<usize> {
        Ok(self.map(id, offset, size, flags)?)
    }

    fn munmap(
        &mut self,
        id: usize,
        offset: u64,
        size: usize,
        _flags: MunmapFlags,
        _ctx: &CallerCtx,
    ) -> syscall::Result<()> {
        Ok(self.unmap(id, offset, size)?)
    }

    fn on_close(&mut self, id: usize) {
        let open = self.handles.open(id);
        // First, so that a request that still uses the handle finds it gone, or its result is found
        // here.
        self.handles.remove(id);
        if let Ok(open) = open {
            self.locks.lock().close(id, open.node().id());
            self.unmap_all(id, &open);
        }
    }
}
