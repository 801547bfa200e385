//! The requests of redoxfs and of ramfs, as their daemons of August 2026 answer them.
//!
//! These behaviours matter to an overlay with a layer there:
//!
//! - An open directory is a node for its attributes, but a path for opens in it. So after a rename
//!   such an open finds the object that has the old path now.
//! - A listing is taken at the open, and only an open for reading takes one.
//! - A rename moves the entry with the name of the open, whichever object has it now.
//! - A link does not check whether its name is taken.
//! - `fsync` of a directory fails with EBADF.
//!
//! ramfs differs: only the descriptor of its root opens anything. It has no rename, link, symlink,
//! removal or lock. A listing has no kinds, and fails with EINVAL unless the buffer holds all of
//! it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libredox::Fd;
use redox_scheme::scheme::SchemeSync;
use redox_scheme::{CallerCtx, OpenResult, SendFdRequest, Socket};
use syscall::data::{Stat, StatVfs, TimeSpec};
use syscall::dirent::{DirEntry, DirentBuf, DirentKind};
use syscall::error::{
    EACCES, EBADF, EEXIST, EINVAL, EIO, EISDIR, ENOENT, ENOSYS, ENOTDIR, EOPNOTSUPP, EPERM, Error, Result,
};
use syscall::flag::{
    AT_REMOVEDIR, EventFlags, F_GETFL, F_SETFL, FobtainFdFlags, MODE_DIR, MODE_FILE, MODE_SYMLINK, MODE_TYPE,
    O_ACCMODE, O_APPEND, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDONLY, O_RDWR, O_STAT, O_SYMLINK, O_TRUNC,
    O_WRONLY,
};
use syscall::schemev2::NewFdFlags;

use super::requests::{Counter, Request};
use super::tree::{BLOCK, Found, Node, READ, Tree, User, WRITE, canonical, permissions};
use crate::kernel::PATH_MAX;

/// The simulated filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Redoxfs,
    Ramfs,
}

/// The state of the daemon.
pub struct Scheme {
    pub name: String,
    pub kind: Kind,
    pub tree: Arc<Mutex<Tree>>,
    pub counter: Counter,
    handles: BTreeMap<usize, DiskHandle>,
    next: usize,
    /// The sockets with a name here, by the numbers of their nodes.
    sockets: BTreeMap<u32, Fd>,
}

enum DiskHandle {
    /// The directory of absolute paths.
    Root,
    Object(Object),
}

/// An open object.
struct Object {
    /// The path from the top directory: that of the open, or of the last rename or link through
    /// this descriptor.
    path: String,
    parent: Option<u32>,
    node: u32,
    flags: usize,
    uid: u32,
    /// The names in a directory, and their nodes.
    listing: Option<Vec<(String, u32)>>,
}

impl Object {
    fn check_access(&self, wanted: usize) -> Result<()> {
        let access = self.flags & O_ACCMODE;
        if access == O_RDWR || access == wanted { Ok(()) } else { Err(Error::new(EBADF)) }
    }
}

impl Scheme {
    pub fn new(name: String, kind: Kind, tree: Arc<Mutex<Tree>>, counter: Counter) -> Self {
        Self { name, kind, tree, counter, handles: BTreeMap::new(), next: 1, sockets: BTreeMap::new() }
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&mut self, handle: DiskHandle) -> usize {
        let id = self.next;
        self.next += 1;
        self.handles.insert(id, handle);
        id
    }

    fn object(&self, id: usize) -> Result<&Object> {
        match self.handles.get(&id) {
            Some(DiskHandle::Object(object)) => Ok(object),
            Some(DiskHandle::Root) | None => Err(Error::new(EBADF)),
        }
    }

    /// Returns the path of a request, from the top directory.
    fn path(&self, dir: usize, path: &str) -> Result<String> {
        match self.handles.get(&dir).ok_or(Error::new(EBADF))? {
            DiskHandle::Root => Ok(canonical(path)),
            DiskHandle::Object(_) if path.starts_with('/') => Ok(canonical(path)),
            DiskHandle::Object(object) if self.kind == Kind::Ramfs && !object.path.is_empty() => {
                Err(Error::new(EACCES))
            }
            DiskHandle::Object(object) => Ok(canonical(&format!("{}/{path}", object.path))),
        }
    }

    fn open(&mut self, mut path: String, flags: usize, user: User) -> Result<Object> {
        let mut tree = self.tree();
        let mut found = tree.find(&path, user)?;
        let of_link = flags & O_SYMLINK != 0 || flags & (O_STAT | O_NOFOLLOW) == O_STAT | O_NOFOLLOW;
        if let Some(id) = found.node {
            if flags & (O_CREAT | O_EXCL) == O_CREAT | O_EXCL {
                return Err(Error::new(EEXIST));
            }
            if tree.node(id)?.is_symlink() && !of_link {
                (path, found) = tree.find_target(&path, user)?;
                if found.node.is_none() && flags & O_CREAT == 0 {
                    return Err(Error::new(ENOENT));
                }
            }
        }
        let Found { parent, name, node } = found;
        let created = node.is_none();
        let node = match node {
            Some(id) => id,
            None => self.create(&mut tree, parent, &name, flags, user)?,
        };
        let mut listing = None;
        if !created {
            let found = tree.node(node)?;
            check_open(found, flags, user, self.kind)?;
            if found.is_dir() && flags & O_ACCMODE == O_RDONLY {
                let entries = found.entries()?.iter();
                listing = Some(entries.flat_map(|(name, ids)| ids.iter().map(|id| (name.clone(), *id))).collect());
            }
            if !found.is_dir() && flags & O_TRUNC != 0 {
                tree.truncate(node, 0)?;
            }
        }
        tree.opened(node);
        drop(tree);
        Ok(Object { path, parent, node, flags, uid: user.uid, listing })
    }

    fn create(&self, tree: &mut Tree, parent: Option<u32>, name: &str, flags: usize, user: User) -> Result<u32> {
        if flags & O_CREAT == 0 {
            return Err(Error::new(ENOENT));
        }
        let parent = parent.ok_or(Error::new(EPERM))?;
        if !tree.node(parent)?.permits(user, WRITE) {
            return Err(Error::new(EACCES));
        }
        let kind = match flags {
            _ if flags & O_DIRECTORY != 0 => MODE_DIR,
            _ if flags & O_SYMLINK != 0 && self.kind == Kind::Redoxfs => MODE_SYMLINK,
            _ if flags & O_SYMLINK != 0 => return Err(Error::new(EINVAL)),
            _ => MODE_FILE,
        };
        tree.create(parent, name, kind | permissions(flags as u16), user)
    }
}

/// Checks that an existing object may be opened in this way.
fn check_open(node: &Node, flags: usize, user: User, kind: Kind) -> Result<()> {
    let access = flags & O_ACCMODE;
    let check = |what| if node.permits(user, what) { Ok(()) } else { Err(Error::new(EACCES)) };
    if node.is_dir() {
        return match access {
            O_RDONLY => check(READ),
            _ if access & O_WRONLY != 0 => Err(Error::new(EISDIR)),
            _ if kind == Kind::Ramfs && flags & (O_STAT | O_DIRECTORY) == 0 => Err(Error::new(EISDIR)),
            _ => Ok(()),
        };
    }
    if !node.is_symlink() && flags & O_SYMLINK != 0 {
        return Err(Error::new(EINVAL));
    }
    if flags & O_DIRECTORY != 0 {
        return Err(Error::new(ENOTDIR));
    }
    if access == O_RDONLY || access == O_RDWR {
        check(READ)?;
    }
    if access == O_WRONLY || access == O_RDWR || flags & O_TRUNC != 0 {
        check(WRITE)?;
    }
    Ok(())
}

fn user(ctx: &CallerCtx) -> User {
    User { uid: ctx.uid, gid: ctx.gid }
}

impl SchemeSync for Scheme {
    fn scheme_root(&mut self) -> Result<usize> {
        Ok(self.add(DiskHandle::Root))
    }

    fn openat(&mut self, dir: usize, path: &str, flags: usize, _: u32, ctx: &CallerCtx) -> Result<OpenResult> {
        self.counter.add(Request::Open)?;
        let path = self.path(dir, path)?;
        let object = self.open(path, flags, user(ctx))?;
        let number = self.add(DiskHandle::Object(object));
        Ok(OpenResult::ThisScheme { number, flags: NewFdFlags::POSITIONED })
    }

    fn unlinkat(&mut self, dir: usize, path: &str, flags: usize, ctx: &CallerCtx) -> Result<()> {
        self.counter.add(Request::Unlink)?;
        if self.kind == Kind::Ramfs {
            return Err(Error::new(ENOSYS));
        }
        let (path, user) = (self.path(dir, path)?, user(ctx));
        let mut tree = self.tree();
        let Found { parent, name, node } = tree.find(&path, user)?;
        let child = tree.node(node.ok_or(Error::new(ENOENT))?)?;
        let parent = parent.ok_or(Error::new(EPERM))?;
        if !tree.node(parent)?.permits(user, WRITE) {
            return Err(Error::new(EACCES));
        }
        match (flags & AT_REMOVEDIR != 0, child.is_dir()) {
            (true, false) => Err(Error::new(ENOTDIR)),
            (false, true) => Err(Error::new(EISDIR)),
            (true, true) if !child.permits(user, WRITE) => Err(Error::new(EACCES)),
            (false, false) if !child.is_owner(user.uid) => Err(Error::new(EACCES)),
            _ => tree.remove(parent, &name),
        }?;
        drop(tree);
        self.release_sockets();
        Ok(())
    }

    /// Returns the number for locks.
    fn inode(&self, id: usize) -> Result<usize> {
        if self.kind == Kind::Ramfs {
            return Err(Error::new(EOPNOTSUPP));
        }
        Ok(self.object(id)?.node as usize)
    }

    fn read(&mut self, id: usize, buf: &mut [u8], offset: u64, _: u32, _: &CallerCtx) -> Result<usize> {
        self.counter.add(Request::Read)?;
        let object = self.object(id)?;
        if self.tree().node(object.node)?.is_dir() {
            return Err(Error::new(EISDIR));
        }
        object.check_access(O_RDONLY)?;
        self.tree().read(object.node, offset, buf)
    }

    fn write(&mut self, id: usize, buf: &[u8], offset: u64, _: u32, _: &CallerCtx) -> Result<usize> {
        let is_short = self.counter.add(Request::Write)?;
        let buf = if is_short { &buf[..buf.len().div_ceil(2)] } else { buf };
        let object = self.object(id)?;
        let mut tree = self.tree();
        let node = tree.node(object.node)?;
        if node.is_dir() {
            return Err(Error::new(EBADF));
        }
        object.check_access(O_WRONLY)?;
        let offset = if object.flags & O_APPEND != 0 { node.size() } else { offset };
        tree.write(object.node, offset, buf)
    }

    fn fsize(&mut self, id: usize, _: &CallerCtx) -> Result<u64> {
        self.counter.add(Request::Size)?;
        let object = self.object(id)?;
        Ok(self.tree().node(object.node)?.size())
    }

    fn fchmod(&mut self, id: usize, mode: u16, _: &CallerCtx) -> Result<()> {
        self.counter.add(Request::Chmod)?;
        let object = self.object(id)?;
        let mut tree = self.tree();
        let node = tree.node_mut(object.node)?;
        if !node.is_owner(object.uid) {
            return Err(Error::new(EPERM));
        }
        node.mode = node.mode & MODE_TYPE | permissions(mode);
        Ok(())
    }

    fn fchown(&mut self, id: usize, uid: u32, gid: u32, _: &CallerCtx) -> Result<()> {
        self.counter.add(Request::Chown)?;
        let object = self.object(id)?;
        let mut tree = self.tree();
        let node = tree.node_mut(object.node)?;
        if !node.is_owner(object.uid) {
            return Err(Error::new(EPERM));
        }
        if uid != u32::MAX {
            node.uid = uid;
        }
        if gid != u32::MAX {
            node.gid = gid;
        }
        Ok(())
    }

    fn fcntl(&mut self, id: usize, cmd: usize, arg: usize, _: &CallerCtx) -> Result<usize> {
        self.counter.add(Request::Control)?;
        let Some(DiskHandle::Object(object)) = self.handles.get_mut(&id) else {
            return Err(Error::new(EBADF));
        };
        match cmd {
            F_GETFL => Ok(object.flags),
            F_SETFL => {
                object.flags = object.flags & O_ACCMODE | arg & !O_ACCMODE;
                Ok(0)
            }
            _ => Err(Error::new(EINVAL)),
        }
    }

    fn fevent(&mut self, id: usize, _: EventFlags, _: &CallerCtx) -> Result<EventFlags> {
        self.object(id)?;
        Err(Error::new(EPERM))
    }

    fn fpath(&mut self, id: usize, buf: &mut [u8], _: &CallerCtx) -> Result<usize> {
        self.counter.add(Request::Path)?;
        let path = match &*self.object(id)?.path {
            "" => format!("/scheme/{}", self.name),
            path => format!("/scheme/{}/{path}", self.name),
        };
        buf.get_mut(..path.len()).ok_or(Error::new(EIO))?.copy_from_slice(path.as_bytes());
        Ok(path.len())
    }

    fn flink(&mut self, id: usize, path: &str, ctx: &CallerCtx) -> Result<usize> {
        self.counter.add(Request::Link)?;
        self.move_or_link(id, path, ctx, |tree, object, (_, new_parent, name)| {
            tree.enter(new_parent, &name, object.node)
        })
    }

    fn frename(&mut self, id: usize, path: &str, ctx: &CallerCtx) -> Result<usize> {
        self.counter.add(Request::Rename)?;
        self.move_or_link(id, path, ctx, |tree, object, (parent, new_parent, name)| {
            let old = object.path.rsplit('/').next().unwrap_or_default();
            tree.rename(parent, old, new_parent, &name)
        })
    }

    fn fstat(&mut self, id: usize, stat: &mut Stat, _: &CallerCtx) -> Result<()> {
        self.counter.add(Request::Stat)?;
        let object = self.object(id)?;
        let tree = self.tree();
        let node = tree.node(object.node)?;
        *stat = Stat {
            st_dev: 0,
            st_ino: object.node.into(),
            st_mode: node.mode,
            // The removal of the last name is not in the count before the object is freed.
            st_nlink: node.links.max(1),
            st_uid: node.uid,
            st_gid: node.gid,
            st_size: node.size(),
            st_blksize: 512,
            st_blocks: node.size().div_ceil(BLOCK) * (BLOCK / 512),
            st_mtime: node.mtime.0,
            st_mtime_nsec: node.mtime.1,
            st_atime: node.atime.0,
            st_atime_nsec: node.atime.1,
            st_ctime: node.ctime.0,
            st_ctime_nsec: node.ctime.1,
        };
        Ok(())
    }

    fn fstatvfs(&mut self, id: usize, stat: &mut StatVfs, _: &CallerCtx) -> Result<()> {
        self.counter.add(Request::StatFs)?;
        self.object(id)?;
        let (blocks, free) = self.tree().space();
        *stat = StatVfs { f_bsize: BLOCK as u32, f_blocks: blocks, f_bfree: free, f_bavail: free };
        Ok(())
    }

    fn fsync(&mut self, id: usize, _: &CallerCtx) -> Result<()> {
        self.counter.add(Request::Sync)?;
        let object = self.object(id)?;
        if self.kind == Kind::Redoxfs && self.tree().node(object.node)?.is_dir() {
            return Err(Error::new(EBADF));
        }
        Ok(())
    }

    fn ftruncate(&mut self, id: usize, len: u64, _: &CallerCtx) -> Result<()> {
        self.counter.add(Request::Truncate)?;
        let object = self.object(id)?;
        let mut tree = self.tree();
        if tree.node(object.node)?.is_dir() {
            return Err(Error::new(EBADF));
        }
        object.check_access(O_WRONLY)?;
        tree.truncate(object.node, len)
    }

    fn futimens(&mut self, id: usize, times: &[TimeSpec], _: &CallerCtx) -> Result<()> {
        self.counter.add(Request::Times)?;
        let object = self.object(id)?;
        let mut tree = self.tree();
        let node = tree.node_mut(object.node)?;
        if !node.is_owner(object.uid) {
            return Err(Error::new(EPERM));
        }
        if let [atime, mtime] = times {
            let time = |time: &TimeSpec| (time.tv_sec.cast_unsigned(), time.tv_nsec.cast_unsigned());
            (node.atime, node.mtime) = (time(atime), time(mtime));
        }
        Ok(())
    }

    fn getdents<'buf>(
        &mut self,
        id: usize,
        mut buf: DirentBuf<&'buf mut [u8]>,
        after: u64,
    ) -> Result<DirentBuf<&'buf mut [u8]>> {
        self.counter.add(Request::List)?;
        let object = self.object(id)?;
        let tree = self.tree();
        if !tree.node(object.node)?.is_dir() {
            return Err(Error::new(ENOTDIR));
        }
        let listing = object.listing.as_ref().ok_or(Error::new(EBADF))?;
        let after = usize::try_from(after).map_err(|_| Error::new(EINVAL))?;
        for (index, (name, id)) in listing.iter().enumerate().skip(after) {
            // A removed entry is left out.
            let Ok(node) = tree.node(*id) else { continue };
            let kind = match node.mode & MODE_TYPE {
                _ if self.kind == Kind::Ramfs => DirentKind::Unspecified,
                MODE_DIR => DirentKind::Directory,
                MODE_FILE => DirentKind::Regular,
                MODE_SYMLINK => DirentKind::Symlink,
                // redoxfs does not list a kind for a socket either.
                _ => DirentKind::Unspecified,
            };
            match buf.entry(DirEntry { inode: (*id).into(), next_opaque_id: index as u64 + 1, name, kind }) {
                Err(_) if self.kind == Kind::Redoxfs && index > after => break,
                result => result?,
            }
        }
        Ok(buf)
    }

    fn on_close(&mut self, id: usize) {
        self.counter.count(Request::Close);
        if let Some(DiskHandle::Object(object)) = self.handles.remove(&id) {
            self.tree().closed(object.node);
        }
    }
}

impl Scheme {
    /// Gives a socket, which a client sent to a directory, the last name of its path there.
    pub fn name_socket(&mut self, socket: &Socket, request: &SendFdRequest) -> Result<usize> {
        self.counter.add(Request::Socket)?;
        let (dir, caller) = (self.object(request.id())?.node, request.caller());
        let mut number = usize::MAX;
        request.obtain_fd(socket, FobtainFdFlags::empty(), std::slice::from_mut(&mut number))?;
        let sent = Fd::new(number);
        let user = User { uid: caller.uid, gid: caller.gid };
        if !self.tree().node(dir)?.is_dir() {
            return Err(Error::new(ENOTDIR));
        }
        if !self.tree().node(dir)?.permits(user, WRITE) {
            return Err(Error::new(EACCES));
        }
        let mut path = [0; PATH_MAX];
        let length = sent.fpath(&mut path)?;
        let path = path.get(..length).and_then(|path| str::from_utf8(path).ok()).ok_or(Error::new(EINVAL))?;
        let name = path.rsplit('/').next().filter(|name| !name.is_empty()).ok_or(Error::new(EINVAL))?;
        let kind = sent.stat()?.st_mode as u16 & MODE_TYPE;
        let node = self.tree().create(dir, name, kind | 0o777, user)?;
        self.sockets.insert(node, sent);
        Ok(number)
    }

    /// Calls `act` with the directory of the object's open, the directory of the new path, and its
    /// name. Then the object has that path.
    fn move_or_link(
        &mut self,
        id: usize,
        path: &str,
        ctx: &CallerCtx,
        act: impl FnOnce(&mut Tree, &Object, (u32, u32, String)) -> Result<()>,
    ) -> Result<usize> {
        if self.kind == Kind::Ramfs {
            return Err(Error::new(ENOSYS));
        }
        let shared = self.tree.clone();
        let mut tree = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(DiskHandle::Object(object)) = self.handles.get_mut(&id) else {
            return Err(Error::new(EBADF));
        };
        let path = canonical(path);
        let places = tree.check_new_link(object.node, object.parent, &path, user(ctx))?;
        act(&mut tree, object, places)?;
        object.path = path;
        drop(tree);
        self.release_sockets();
        Ok(0)
    }

    /// Closes sockets that have lost their names.
    fn release_sockets(&mut self) {
        let has_name = |tree: &Tree, id: &u32| tree.node(*id).is_ok_and(|node| node.links > 0);
        let gone: Vec<u32> = {
            let tree = self.tree();
            self.sockets.keys().filter(|id| !has_name(&tree, id)).copied().collect()
        };
        for id in gone {
            self.sockets.remove(&id);
        }
    }
}
