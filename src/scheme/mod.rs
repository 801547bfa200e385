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
//! 1. That of the tree, which each request holds, shared. A snapshot holds it alone.
//! 2. The nodes of a change of names or attributes, see `changes`: so a change meets the state that
//!    was checked. A request that only opens, reads, writes or asks does not wait for it.
//! 3. The lock of a file that a client writes to or maps, see `mmap`.
//! 4. The record locks of clients (`Tree::locks`). Under this lock a request looks its handle up
//!    and takes a share of a quota. It may also drop the handle's last reference.
//! 5. The locks of the engine.
//! 6. Leaves: a thread takes no other lock under one. They are those of the table of handles, the
//!    mutable parts of a handle, the bound sockets, the handles with mappings, and the quotas.

mod access;
mod attributes;
mod changes;
mod control;
mod counted;
mod data;
mod decode;
mod handle;
mod kinds;
mod locks;
mod mmap;
mod names;
mod open;
mod path;
mod quota;
mod region;
mod snapshot;
mod sockets;
mod tree;

use std::sync::Arc;

use crate::errno::{EOPNOTSUPP, EPERM, Result};
use libredox::Fd;
use redox_scheme::scheme::SchemeSync;
use redox_scheme::{CallRequest, CallerCtx, OpenResult, SendFdRequest, Socket};
use syscall::data::{Stat, StatVfs, StdFsCallMeta, TimeSpec};
use syscall::dirent::DirentBuf;
use syscall::flag::{EventFlags, MapFlags, MunmapFlags, StdFsCallKind};
use syscall::schemev2::NewFdFlags;

pub use self::control::About;
pub use self::decode::{answer, give, is_connect};
pub use self::sockets::{path_of, token_of};

use self::access::Caller;
use self::control::Channel;
use self::counted::Counted;
use self::handle::SchemeHandle;
use self::tree::Tree;

use crate::layer::Layer;
use crate::overlay::Overlay;
use crate::sync::{ReadGuard, Shared};

/// An overlay that clients reach as `/scheme/NAME`. A clone serves the same scheme in another
/// thread.
pub struct OverlayScheme<L: Layer> {
    /// Each request holds this lock, shared. A snapshot puts another overlay into the tree.
    tree: Arc<Shared<Tree<L>>>,
    /// None: there is no channel.
    channel: Option<Arc<Channel>>,
    /// Counts the requests of this clone, if there is a channel.
    counted: Option<Counted>,
}

impl<L: Layer> Clone for OverlayScheme<L> {
    fn clone(&self) -> Self {
        let counted = self.channel.as_ref().map(|channel| Counted::new(channel.requests.part()));
        Self { tree: self.tree.clone(), channel: self.channel.clone(), counted }
    }
}

impl<L: Layer> OverlayScheme<L> {
    /// Makes a scheme for `overlay`. It will be registered as `name`: the paths in its answers
    /// begin with that, and it resolves symlinks that name it.
    pub fn new(overlay: Arc<Overlay<L>>, name: String) -> Self {
        Self { tree: Arc::new(Shared::new(Tree::new(overlay, name))), channel: None, counted: None }
    }

    /// Sets whether a link to a file fails with EPERM for callers that neither own it nor could
    /// change it. The default is true.
    pub fn protect_hardlinks(self, protected_hardlinks: bool) -> Self {
        self.tree.write().protected_hardlinks = protected_hardlinks;
        self
    }

    /// Returns the overlay that clients see now.
    pub fn overlay(&self) -> Arc<Overlay<L>> {
        self.tree().overlay.clone()
    }

    /// Locks the tree for a request. A thread holds this lock once at most.
    fn tree(&self) -> ReadGuard<'_, Tree<L>> {
        self.tree.read()
    }

    /// Releases the locks that the process `pid` holds through a handle. The kernel sends this when
    /// it closes a descriptor of the process.
    pub fn detach(&self, id: usize, pid: usize) {
        self.tree().detach(id, pid);
    }

    /// Whether a handle has mappings, so that its close may take long.
    pub fn has_mapped(&self, id: usize) -> bool {
        self.tree().has_mapped(id)
    }

    /// Writes the clients' writes to memory to the files. Logs an error of one file, and goes on
    /// with the others.
    pub fn write_back(&self) {
        let tree = self.tree();
        // The error is in the log.
        let _ = tree.mappings.write_all_back(&tree.overlay);
    }

    /// Takes the socket that a client sends to a directory.
    ///
    /// # Errors
    ///
    /// - ENOTDIR: the handle is no directory.
    /// - EINVAL: the request does not have exactly one descriptor.
    pub fn sent(&self, socket: &Socket, request: &SendFdRequest) -> Result<Arc<Fd>> {
        self.tree().sent(socket, request)
    }

    /// Gives the socket of a request, from [`Self::sent`], the last name of its path.
    ///
    /// # Errors
    ///
    /// - EADDRINUSE: the name is taken.
    /// - ENFILE: too many sockets are bound.
    /// - EINVAL: the path has no such name, or is of this scheme.
    /// - EACCES: the caller may not make a name in the directory.
    /// - EROFS: the tree is read-only.
    /// - Any other errno of the creation of a node.
    pub fn bind(&self, request: &SendFdRequest, socket: Arc<Fd>, path: &[u8]) -> Result<usize> {
        self.tree().bind(request, socket, path)
    }

    /// Returns the user and the socket of a call that asks for a token ([`is_connect`]). A handle
    /// that is open for writing has the right to connect.
    ///
    /// # Errors
    ///
    /// - EACCES: the handle is not open for writing.
    /// - ECONNREFUSED: the object is no socket, or was not bound here.
    pub fn bound(&self, call: &CallRequest) -> Result<(u32, Arc<Fd>)> {
        self.tree().bound(call)
    }
}

/// Makes the answer for a new handle. The kernel keeps the offset of each.
fn opened(number: usize) -> OpenResult {
    OpenResult::ThisScheme { number, flags: NewFdFlags::POSITIONED }
}

impl<L: Layer> SchemeSync for OverlayScheme<L> {
    fn scheme_root(&mut self) -> syscall::Result<usize> {
        let tree = self.tree();
        Ok(tree.handles.insert(SchemeHandle::Scheme, tree.handles.room(0)?))
    }

    fn openat(
        &mut self,
        dir: usize,
        path: &str,
        flags: usize,
        _fcntl_flags: u32,
        ctx: &CallerCtx,
    ) -> syscall::Result<OpenResult> {
        Ok(self.tree().open_at(dir, path, flags, Caller::of(ctx)).map(opened)?)
    }

    fn unlinkat(&mut self, dir: usize, path: &str, flags: usize, ctx: &CallerCtx) -> syscall::Result<()> {
        Ok(self.tree().unlink_at(dir, path, flags, Caller::of(ctx))?)
    }

    fn inode(&self, id: usize) -> syscall::Result<usize> {
        // Not the st_ino that clients see: this number is unique over the whole mount.
        Ok(self.tree().handles.open(id)?.node().id() as usize)
    }

    fn dup(&mut self, id: usize, request: &[u8], _ctx: &CallerCtx) -> syscall::Result<OpenResult> {
        Ok(self.tree().duplicate(id, request).map(opened)?)
    }

    fn read(
        &mut self,
        id: usize,
        buf: &mut [u8],
        offset: u64,
        _fcntl_flags: u32,
        _ctx: &CallerCtx,
    ) -> syscall::Result<usize> {
        Ok(self.tree().read_at(id, buf, offset)?)
    }

    fn write(
        &mut self,
        id: usize,
        buf: &[u8],
        offset: u64,
        fcntl_flags: u32,
        ctx: &CallerCtx,
    ) -> syscall::Result<usize> {
        Ok(self.tree().write_to(id, buf, offset, fcntl_flags, Caller::of(ctx))?)
    }

    fn fsize(&mut self, id: usize, _ctx: &CallerCtx) -> syscall::Result<u64> {
        Ok(self.tree().size(id)?)
    }

    fn fchmod(&mut self, id: usize, mode: u16, _ctx: &CallerCtx) -> syscall::Result<()> {
        Ok(self.tree().set_mode(id, u32::from(mode))?)
    }

    fn fchown(&mut self, id: usize, uid: u32, gid: u32, _ctx: &CallerCtx) -> syscall::Result<()> {
        Ok(self.tree().set_owner(id, uid, gid)?)
    }

    fn fcntl(&mut self, id: usize, command: usize, argument: usize, _ctx: &CallerCtx) -> syscall::Result<usize> {
        Ok(self.tree().control(id, command, argument)?)
    }

    fn fevent(&mut self, id: usize, _flags: EventFlags, _ctx: &CallerCtx) -> syscall::Result<EventFlags> {
        self.tree().handles.open(id)?;
        // As in redoxfs, there is nothing to wait for: select counts the file as ready.
        Err(syscall::Error::new(EPERM))
    }

    fn flink(&mut self, id: usize, path: &str, ctx: &CallerCtx) -> syscall::Result<usize> {
        Ok(self.tree().link_handle(id, path, Caller::of(ctx)).map(|()| 0)?)
    }

    fn flinkat(&mut self, id: usize, dir: usize, path: &str, flags: u32, _ctx: &CallerCtx) -> syscall::Result<usize> {
        Ok(self.tree().link_at(id, dir, path, flags).map(|()| 0)?)
    }

    fn fpath(&mut self, id: usize, buf: &mut [u8], _ctx: &CallerCtx) -> syscall::Result<usize> {
        Ok(self.tree().path(id, buf)?)
    }

    fn frename(&mut self, id: usize, path: &str, ctx: &CallerCtx) -> syscall::Result<usize> {
        Ok(self.tree().rename_handle(id, path, Caller::of(ctx)).map(|()| 0)?)
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
        Ok(self.tree().rename_at(dir, path, new_dir, new_path, flags).map(|()| 0)?)
    }

    fn fstat(&mut self, id: usize, stat: &mut Stat, _ctx: &CallerCtx) -> syscall::Result<()> {
        *stat = self.tree().stat(id)?;
        Ok(())
    }

    fn fstatvfs(&mut self, id: usize, stat: &mut StatVfs, _ctx: &CallerCtx) -> syscall::Result<()> {
        *stat = self.tree().stat_fs(id)?;
        Ok(())
    }

    fn fsync(&mut self, id: usize, _ctx: &CallerCtx) -> syscall::Result<()> {
        Ok(self.tree().sync(id)?)
    }

    fn ftruncate(&mut self, id: usize, size: u64, _ctx: &CallerCtx) -> syscall::Result<()> {
        Ok(self.tree().truncate(id, size)?)
    }

    fn futimens(&mut self, id: usize, times: &[TimeSpec], _ctx: &CallerCtx) -> syscall::Result<()> {
        Ok(self.tree().set_times(id, times)?)
    }

    /// The trait names the first id the target. relibc's `redox_relpathat_v0` and ramfs make it the
    /// directory, and so does this code.
    fn relpathat(&mut self, dir: usize, id: usize, buf: &mut [u8], _ctx: &CallerCtx) -> syscall::Result<usize> {
        Ok(self.tree().relative_path(dir, id, buf)?)
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
                Ok(self.tree().set_owner(id, ids as u32, (ids >> 32) as u32).map(|()| 0)?)
            }
            _ => Err(syscall::Error::new(EOPNOTSUPP)),
        }
    }

    /// The channel. See [`crate::control`].
    fn call(&mut self, id: usize, payload: &mut [u8], metadata: &[u64], _ctx: &CallerCtx) -> syscall::Result<usize> {
        Ok(self.call_channel(id, payload, metadata)?)
    }

    fn getdents<'buf>(
        &mut self,
        id: usize,
        buf: DirentBuf<&'buf mut [u8]>,
        after: u64,
    ) -> syscall::Result<DirentBuf<&'buf mut [u8]>> {
        Ok(self.tree().list(id, buf, after)?)
    }

    fn mmap_prep(
        &mut self,
        id: usize,
        offset: u64,
        size: usize,
        flags: MapFlags,
        _ctx: &CallerCtx,
    ) -> syscall::Result<usize> {
        Ok(self.tree().map(id, offset, size, flags)?)
    }

    fn munmap(
        &mut self,
        id: usize,
        offset: u64,
        size: usize,
        _flags: MunmapFlags,
        _ctx: &CallerCtx,
    ) -> syscall::Result<()> {
        Ok(self.tree().unmap(id, offset, size)?)
    }

    fn on_close(&mut self, id: usize) {
        self.tree().close(id);
    }
}
