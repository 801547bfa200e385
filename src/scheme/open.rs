//! `openat` and `dup`: from a path and flags to a handle. With O_CREAT the object is made.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::errno::{EEXIST, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ENXIO, EPERM, EXDEV, Error, Result};
use syscall::flag::{
    MODE_CHR, MODE_DIR, MODE_FIFO, MODE_FILE, MODE_SOCK, MODE_SYMLINK, MODE_TYPE, O_ACCMODE, O_APPEND, O_CREAT,
    O_DIRECTORY, O_EXCL, O_FCNTL_MASK, O_NOFOLLOW, O_RDONLY, O_STAT, O_SYMLINK, O_TRUNC, O_WRONLY,
};

use super::access::{Caller, READ, WRITE};
use super::changes::{ChangeGuard, Numbers};
use super::handle::{EntryOf, Open, PendingNode, SchemeHandle};
use super::path::{End, Last, PATH_MAX, Resolved, Walked};
use super::tree::Tree;
use crate::layer::{Kind, Layer};
use crate::overlay::ownership::SET_ID;
use crate::overlay::{self, Node};
use crate::sync::Lock;

/// The type bits of a block device in a mode.
pub const MODE_BLOCK: u16 = 0x6000;

/// The object that an open with O_CREAT makes if the name is free.
#[derive(Clone, Copy, PartialEq, Eq)]
enum New {
    File,
    Dir,
    Symlink,
    /// A FIFO or a socket.
    Special(Kind),
    /// A device node. The client writes its number to the new handle.
    Device(Kind),
}

impl New {
    /// Reads the kind from the flags: O_DIRECTORY and O_SYMLINK, else the type bits of the mode in
    /// the low 16 bits.
    ///
    /// # Errors
    ///
    /// - EPERM: a device, unless the handle is open for writing only. Its number is written there.
    /// - EPERM: a directory by the type bits, as mknod asks for one.
    /// - EINVAL: the flags contradict each other, or name no kind.
    fn parse(flags: usize) -> Result<Self> {
        let kind = flags as u16 & MODE_TYPE;
        if flags & O_DIRECTORY != 0 {
            return if kind == 0 || kind == MODE_DIR { Ok(Self::Dir) } else { Err(Error::new(EINVAL)) };
        }
        if flags & O_SYMLINK != 0 {
            return if kind == 0 || kind == MODE_SYMLINK { Ok(Self::Symlink) } else { Err(Error::new(EINVAL)) };
        }
        match kind {
            0 | MODE_FILE => Ok(Self::File),
            MODE_FIFO => Ok(Self::Special(Kind::Fifo)),
            MODE_SOCK => Ok(Self::Special(Kind::Socket)),
            MODE_CHR if access(flags) == O_WRONLY => Ok(Self::Device(Kind::CharDev)),
            MODE_BLOCK if access(flags) == O_WRONLY => Ok(Self::Device(Kind::BlockDev)),
            MODE_CHR | MODE_BLOCK | MODE_DIR => Err(Error::new(EPERM)),
            _ => Err(Error::new(EINVAL)),
        }
    }

    /// Whether an existing name is an error even without O_EXCL.
    fn is_exclusive(self) -> bool {
        matches!(self, Self::Symlink | Self::Special(_) | Self::Device(_))
    }
}

/// Returns the effective access mode: O_STAT asks for none, with any other flags.
fn access(flags: usize) -> usize {
    if flags & O_STAT != 0 { 0 } else { flags & O_ACCMODE }
}

/// Checks that an object of this kind can be opened with these flags, by any caller.
///
/// # Errors
///
/// - EINVAL: O_SYMLINK does not suit the kind, or asks for writing.
/// - EISDIR: a directory cannot be written.
/// - ELOOP: the object is a symlink, and the flags do not ask for the symlink itself.
/// - ENOTDIR: O_DIRECTORY asks for a directory, and the object is none.
/// - ENXIO: the flags ask for the data of a FIFO or a device.
fn check_flags(kind: Kind, flags: usize) -> Result<()> {
    let (access, is_itself) = (access(flags), flags & O_SYMLINK != 0);
    let writes = access & O_WRONLY != 0;
    let refused = match kind {
        Kind::Dir if is_itself => Some(EINVAL),
        Kind::Dir => (writes || flags & O_TRUNC != 0).then_some(EISDIR),
        _ if flags & O_DIRECTORY != 0 => Some(ENOTDIR),
        Kind::Symlink if !is_itself && flags & (O_STAT | O_NOFOLLOW) != O_STAT | O_NOFOLLOW => Some(ELOOP),
        Kind::Symlink => writes.then_some(EINVAL),
        // The number of a device node is read as the target of a symlink is.
        Kind::CharDev | Kind::BlockDev if is_itself => writes.then_some(EINVAL),
        _ if is_itself => Some(EINVAL),
        // relibc's connect opens a socket with an access mode.
        Kind::File | Kind::Socket => None,
        // Their data do not pass a filesystem: the system that holds them transfers these.
        Kind::Fifo | Kind::CharDev | Kind::BlockDev => (access != 0).then_some(ENXIO),
    };
    refused.map_or(Ok(()), |errno| Err(Error::new(errno)))
}

/// Returns the rights that an open with these flags needs.
fn rights_needed(kind: Kind, flags: usize) -> u32 {
    let access = access(flags);
    let writes = access & O_WRONLY != 0 || kind == Kind::File && flags & O_TRUNC != 0;
    let wanted = if access & O_RDONLY != 0 { READ } else { 0 } | if writes { WRITE } else { 0 };
    match kind {
        Kind::Dir | Kind::File | Kind::Socket => wanted,
        Kind::Symlink | Kind::Fifo | Kind::CharDev | Kind::BlockDev => 0,
    }
}

impl<L: Layer> Tree<L> {
    /// Opens `path`, which is relative to the directory handle `dir` unless it begins with `/`.
    /// Returns the id of the new handle. The empty path names the object of the handle, of any
    /// kind; the new caller's access is checked again.
    pub(super) fn open_at(&self, dir: usize, path: &str, flags: usize, caller: Caller) -> Result<usize> {
        let room = self.handles.room(caller.uid)?;
        let handle = self.open_path(dir, path, flags, caller)?;
        Ok(self.handles.insert(handle, room))
    }

    fn open_path(&self, dir: usize, path: &str, flags: usize, caller: Caller) -> Result<SchemeHandle<L>> {
        let new = if flags & O_CREAT != 0 { Some(New::parse(flags)?) } else { None };
        let exclusive = new.is_some_and(|new| flags & O_EXCL != 0 || new.is_exclusive());
        let last = if exclusive {
            Last::Name
        } else if flags & (O_NOFOLLOW | O_SYMLINK) != 0 {
            Last::Keep
        } else {
            Last::Follow
        };

        let (guard, walked) = self.changes.of(|| {
            let walked = self.walk(dir, path, last, caller)?;
            let nodes = match &walked {
                Walked::Here(Resolved { node: Some(node), .. }) if flags & O_TRUNC != 0 => {
                    Numbers::from_slice(&[node.id()])
                }
                Walked::Here(Resolved { node: None, dir, .. }) if new.is_some() => Numbers::from_slice(&[dir.id()]),
                _ => Numbers::new(),
            };
            Ok((walked, nodes))
        })?;
        let place = match walked {
            Walked::Here(place) => place,
            // After EXDEV, relibc opens the path with O_SYMLINK to learn the path in the other
            // scheme.
            Walked::Elsewhere(path) if flags & O_SYMLINK != 0 && new.is_none() => {
                return Ok(SchemeHandle::Elsewhere(path.into()));
            }
            Walked::Elsewhere(_) => return Err(Error::new(EXDEV)),
        };
        match (&place.node, new) {
            (Some(_), Some(_)) if exclusive => Err(Error::new(EEXIST)),
            (Some(node), Some(New::File)) if node.kind() == Kind::Dir => Err(Error::new(EISDIR)),
            (Some(node), _) => {
                let entry = match place.end {
                    End::Name(name) => Some((place.dir, OsString::from(name))),
                    End::Start if path.is_empty() => {
                        self.handles.open(dir).ok().and_then(|open| open.entry.lock().clone())
                    }
                    End::Dot | End::DotDot | End::Start => None,
                };
                self.open_existing(node, entry, flags, caller, &guard)
            }
            (None, Some(new)) => self.open_new(place, new, flags, caller),
            (None, None) => Err(Error::new(ENOENT)),
        }
    }

    fn open_existing(
        &self,
        node: &Arc<Node<L>>,
        entry: EntryOf<L>,
        flags: usize,
        caller: Caller,
        guard: &ChangeGuard<'_>,
    ) -> Result<SchemeHandle<L>> {
        check_flags(node.kind(), flags)?;
        let truncates = flags & O_TRUNC != 0;
        let rights = rights_needed(node.kind(), flags);
        if node.kind() == Kind::File && rights & WRITE != 0 {
            self.require_writable()?;
        }
        if rights != 0 {
            caller.require(&self.overlay.stat_for_access(node)?, rights)?;
        }
        let file = self.overlay.open(node);
        if node.kind() == Kind::File && truncates {
            self.drop_set_id_within(node, caller, guard)?;
            // The client is about to write to it.
            self.overlay.use_file(&file);
            self.mappings.truncate(&self.overlay, node, 0)?;
        } else if node.kind() == Kind::File && rights & WRITE != 0 {
            self.overlay.open_for_writing(&file, flags & O_APPEND != 0)?;
        }
        Ok(open_object(file, entry, flags, caller))
    }

    fn open_new(&self, place: Resolved<L>, new: New, flags: usize, caller: Caller) -> Result<SchemeHandle<L>> {
        let Resolved { dir, end: End::Name(name), slash, .. } = place else {
            return Err(Error::new(ENOENT));
        };
        if slash && new != New::Dir {
            return Err(Error::new(if new == New::File { EISDIR } else { ENOENT }));
        }
        if new == New::Dir && access(flags) & O_WRONLY != 0 {
            return Err(Error::new(EISDIR));
        }
        self.require_writable()?;
        let dir_stat = self.overlay.stat_for_access(&dir)?;
        caller.require_entries(&dir_stat)?;

        let name = OsString::from(name);
        let mode = (flags & 0o7777) as u32;
        let file = match new {
            New::Symlink => {
                let pending = PendingNode { dir, name, maker: caller, kind: Kind::Symlink, mode: 0o777 };
                return Ok(SchemeHandle::PendingNode(Arc::new(pending)));
            }
            New::Device(_) if !caller.is_root() => return Err(Error::new(EPERM)),
            New::Device(kind) => {
                return Ok(SchemeHandle::PendingNode(Arc::new(PendingNode { dir, name, maker: caller, kind, mode })));
            }
            New::File => {
                let (owner, mode) = caller.newborn(&dir_stat, Kind::File, mode);
                self.overlay.create_file(&dir, &name, mode, owner)?
            }
            New::Dir => {
                let (owner, mode) = caller.newborn(&dir_stat, Kind::Dir, mode & !SET_ID);
                self.overlay.open(&self.overlay.create_dir(&dir, &name, mode, owner)?)
            }
            New::Special(kind) => {
                let (owner, mode) = caller.newborn(&dir_stat, kind, mode);
                self.overlay.open(&self.overlay.create_node(&dir, &name, kind, mode, 0, owner)?)
            }
        };
        Ok(open_object(file, Some((dir, name)), flags, caller))
    }

    /// Makes the symlink or device node for which the handle was opened. From then on the handle is
    /// an ordinary one. The open has checked access.
    ///
    /// `content` is the target of a symlink, or the number of a device: eight bytes in the
    /// machine's order.
    ///
    /// # Errors
    ///
    /// - EEXIST: another request has taken the name since the open.
    /// - ENOENT: the target is empty.
    /// - EINVAL: the target contains NUL, or the number has another length.
    /// - ENAMETOOLONG: no path can hold the target.
    pub(super) fn create_pending(&self, id: usize, pending: &PendingNode<L>, content: &[u8]) -> Result<usize> {
        let PendingNode { dir, name, maker, kind, mode } = pending;
        let _guard = self.changes.of_one(dir);
        let (owner, mode) = maker.newborn(&self.overlay.stat_for_access(dir)?, *kind, *mode);
        let node = match kind {
            Kind::Symlink => {
                let target = check_target(content)?;
                self.overlay.create_symlink(dir, name, target, owner)?
            }
            _ => {
                let number = content.try_into().map(u64::from_ne_bytes).map_err(|_| Error::new(EINVAL))?;
                self.overlay.create_node(dir, name, *kind, mode, number, owner)?
            }
        };
        let entry = Some((dir.clone(), name.clone()));
        let made = open_object(self.overlay.open(&node), entry, O_WRONLY, *maker);
        self.handles.replace(id, made);
        Ok(content.len())
    }

    /// Opens the object of a handle again, in the same way.
    ///
    /// # Errors
    ///
    /// - EINVAL: the request is not empty.
    pub(super) fn duplicate(&self, id: usize, request: &[u8]) -> Result<usize> {
        let open = self.handles.open(id)?;
        if !request.is_empty() {
            return Err(Error::new(EINVAL));
        }
        let copy = Open {
            file: self.overlay.open(open.node()),
            opener: open.opener,
            flags: AtomicUsize::new(open.flags.load(Ordering::Relaxed)),
            readable: open.readable,
            writable: open.writable,
            entry: Lock::new(open.entry.lock().clone()),
        };
        Ok(self.handles.insert(SchemeHandle::Open(Arc::new(copy)), self.handles.room(open.opener.uid)?))
    }
}

fn check_target(target: &[u8]) -> Result<&OsStr> {
    if target.is_empty() {
        return Err(Error::new(ENOENT));
    }
    if target.len() >= PATH_MAX {
        return Err(Error::new(ENAMETOOLONG));
    }
    if target.contains(&0) {
        return Err(Error::new(EINVAL));
    }
    Ok(OsStr::from_bytes(target))
}

/// Makes the handle for an object with checked access, or for a new one.
fn open_object<L: Layer>(file: overlay::Handle<L>, entry: EntryOf<L>, flags: usize, opener: Caller) -> SchemeHandle<L> {
    let access = match file.node().kind() {
        Kind::File | Kind::Dir | Kind::Symlink | Kind::Socket => access(flags),
        Kind::CharDev | Kind::BlockDev if flags & O_SYMLINK != 0 => access(flags),
        Kind::Fifo | Kind::CharDev | Kind::BlockDev => 0,
    };
    SchemeHandle::Open(Arc::new(Open {
        file,
        opener,
        flags: AtomicUsize::new(flags & (O_ACCMODE | O_FCNTL_MASK)),
        readable: access & O_RDONLY != 0,
        writable: access & O_WRONLY != 0,
        entry: Lock::new(entry),
    }))
}
