//! A layer on Linux, through the `*at` system calls. It needs Linux 5.8.
//!
//! Directories are O_PATH descriptors. They cost the filesystem no call, need no read permission,
//! and follow a rename of the directory. Other mounts inside a layer are excluded in one of two
//! ways:
//!
//! - A layer is a private clone of its mount, which has no mounts inside. It is read-only if the
//!   layer is. Each step is one `*at` call. The upper layer and a work directory beside it share
//!   one clone of a directory above both. The kernel refuses a rename between two clones even on
//!   one filesystem (`do_renameat2` in fs/namei.c).
//! - Where the clone is not permitted, the directory is opened as it is. There the kernel may cross
//!   a mount only at an entry. So a step that needs the entry itself opens it first with
//!   RESOLVE_NO_XDEV. That stops before it asks the mounted filesystem anything, which may be this
//!   overlay, waiting for this very step. A directory with a mount on it is *covered*: it has no
//!   entries and takes none (ENOENT). A covered file has the attributes of an empty one. A covered
//!   object has no extended attributes and no time of birth. Changing or opening one is EBUSY.
//!
//! Lock order: a layer has one lock, of the descriptor that holds it. A thread takes it last but
//! for those of `locks`, and runs no callback under it.

mod calls;
mod convert;
mod identity;
pub mod locks;
mod raw;
mod record;
mod through;
mod xattr;

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::errno::{EBUSY, EEXIST, EFBIG, EINVAL, EIO, ENODATA, ENOENT, ENOTDIR, EOPNOTSUPP, EPERM, EXDEV};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, IFlags, Mode, OFlags, RenameFlags, SeekFrom, StatxFlags, Timestamps,
    Uid,
};
use rustix::io::{Errno, retry_on_intr};

use super::{
    Access, Allocation, Capabilities, DirEntry, Error, Kind, Layer, Object, Owner, RenameMode, Result, Stat, StatFs,
    Time, XattrMode, acl, copy_through_memory,
};
pub use calls::{IOCTLS, SYSTEM_CALLS};
use convert::{birth_of, error, kind_of, mode_of, stat_of, stat_of_statx, timespec};
use identity::ActingAs;
use locks::LayerLock;
use record::Records;

/// A directory tree of a Linux filesystem.
pub struct LinuxLayer {
    /// The root, as an O_PATH descriptor.
    root: OwnedFd,
    /// The path at which it was opened.
    path: PathBuf,
    /// Whether the root is a clone of its mount, without mounts inside.
    cloned: bool,
    /// Whether it was opened for writing.
    writable: bool,
    capabilities: Capabilities,
    /// The ids of the daemon.
    own: Owner,
    /// Whether the daemon can create objects for any owner.
    acts_as_others: bool,
    /// The records of owners that could not be set.
    records: Records,
    /// The value of [`Layer::epoch`], read while files outside the layer can be opened.
    epoch: Option<u128>,
    /// The locks that hold the layer.
    held: Mutex<Held>,
}

/// The open root of a layer, which another process may take over.
#[derive(Debug)]
pub struct OpenRoot {
    /// The directory, as an O_PATH descriptor.
    pub directory: OwnedFd,
    /// Whether it is in a private clone of its mount.
    pub cloned: bool,
}

impl OpenRoot {
    /// Opens it once more.
    ///
    /// # Errors
    ///
    /// - EMFILE: too many descriptors are open.
    pub fn again(&self) -> Result<Self> {
        let directory = rustix::io::fcntl_dupfd_cloexec(&self.directory, 0).map_err(error)?;
        Ok(Self { directory, cloned: self.cloned })
    }
}

/// A directory of a [`LinuxLayer`].
pub struct Dir(DirState);

enum DirState {
    /// A descriptor. The flag says whether it is open for reading, and unread.
    Open(OwnedFd, AtomicBool),
    /// A directory with a mount on it, and the attributes that it shows.
    Covered(Stat),
}

/// An open file of a [`LinuxLayer`].
pub struct File {
    fd: OwnedFd,
    /// See [`Layer::attr_of_new`].
    new: Option<Box<Stat>>,
    /// Whether it is a new file, to which data can be written past the page cache.
    takes_direct: bool,
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for File {
    /// A file that was there before.
    fn from(fd: OwnedFd) -> Self {
        Self { fd, new: None, takes_direct: false }
    }
}

/// An object in the form that a system call needs: a descriptor, a name below it, and flags.
struct Target<'a> {
    fd: TargetFd<'a>,
    name: &'a OsStr,
    flags: AtFlags,
}

enum TargetFd<'a> {
    Borrowed(BorrowedFd<'a>),
    Own(OwnedFd),
}

impl LinuxLayer {
    /// Opens the directory `path` as a layer. Follows symlinks in `path`.
    ///
    /// For writing, it sets the umask of the process to 0, so that new objects get the requested
    /// modes. If the daemon is root with CAP_SETPCAP, threads that create objects for other owners
    /// keep SECBIT_NO_SETUID_FIXUP set.
    ///
    /// # Errors
    ///
    /// Those of open(2): ENOENT, ENOTDIR, EACCES and others.
    pub fn open(path: &Path, for_writing: bool) -> Result<LinuxLayer> {
        Self::open_after(None, path, for_writing)
    }

    /// Opens another layer for reading. What this one knows about the process is not asked again.
    ///
    /// # Errors
    ///
    /// Those of [`LinuxLayer::open`].
    pub fn open_another(&self, path: &Path) -> Result<LinuxLayer> {
        Self::open_after(Some(self), path, false)
    }

    fn open_after(earlier: Option<&Self>, path: &Path, for_writing: bool) -> Result<LinuxLayer> {
        let plain = open_top(CWD, path)?;
        match raw::private_clone(path, for_writing) {
            Ok(root) => Self::with_root(earlier, path, (root, true), for_writing),
            Err(_) => Self::with_root(earlier, path, (plain, false), for_writing),
        }
    }

    /// Opens two directories for writing, with renames between them.
    ///
    /// # Errors
    ///
    /// Those of [`LinuxLayer::open`].
    pub fn open_pair(path: &Path, other: &Path) -> Result<(LinuxLayer, LinuxLayer)> {
        let mut layers = Self::open_together(&[path, other])?.into_iter();
        layers.next().zip(layers.next()).ok_or(Error::new(EIO))
    }

    /// Does the same as [`LinuxLayer::open_pair`], for any number of directories.
    ///
    /// # Errors
    ///
    /// Those of [`LinuxLayer::open`].
    pub fn open_together(paths: &[&Path]) -> Result<Vec<LinuxLayer>> {
        let (cloned, roots) = open_roots(paths)?;
        paths.iter().zip(roots).map(|(path, root)| Self::with_root(None, path, (root, cloned), true)).collect()
    }

    /// Opens directories for writing, with renames and links between them. Returns None if they are
    /// not on one mount, or if directories that were opened alone are as good.
    ///
    /// # Errors
    ///
    /// Those of [`LinuxLayer::open`].
    pub fn open_group(paths: &[PathBuf]) -> Result<Option<Vec<LinuxLayer>>> {
        let (cloned, roots) = open_roots(paths)?;
        if !cloned {
            return Ok(None);
        }
        paths
            .iter()
            .zip(roots)
            .map(|(path, root)| Self::with_root(None, path, (root, cloned), true).map(Some))
            .collect()
    }

    /// Makes the layer of a directory that [`LinuxLayer::root_again`] of another process opened at
    /// `path`.
    ///
    /// # Errors
    ///
    /// Those of [`LinuxLayer::open`].
    pub fn with_opened(path: &Path, root: OpenRoot, for_writing: bool) -> Result<LinuxLayer> {
        Self::with_root(None, path, (root.directory, root.cloned), for_writing)
    }

    /// Opens the root once more, for a process that takes the layer over.
    ///
    /// # Errors
    ///
    /// - EMFILE: too many descriptors are open.
    pub fn root_again(&self) -> Result<OpenRoot> {
        let directory = rustix::io::fcntl_dupfd_cloexec(&self.root, 0).map_err(error)?;
        Ok(OpenRoot { directory, cloned: self.cloned })
    }

    /// Makes the layer of an open root, and whether that is a clone of its mount. `earlier` is
    /// another layer of this process.
    fn with_root(
        earlier: Option<&Self>,
        path: &Path,
        (root, cloned): (OwnedFd, bool),
        for_writing: bool,
    ) -> Result<LinuxLayer> {
        if stat_of(&rustix::fs::fstat(&root).map_err(error)?)?.kind != Kind::Dir {
            return Err(Error::new(ENOTDIR));
        }
        if for_writing {
            rustix::process::umask(Mode::empty());
        }
        let own = earlier.map_or_else(own_ids, |earlier| earlier.own);
        let records = match earlier {
            Some(earlier) => earlier.records.of_another(root.as_fd(), for_writing),
            None => Records::new(root.as_fd(), own, for_writing),
        };
        let capabilities = Capabilities { owner_records: records.writes(), ..capabilities(&root, for_writing)? };
        Ok(LinuxLayer {
            // A server knows the user that creates, but not the rights of the daemon. So it would
            // refuse another user in a directory of root.
            acts_as_others: for_writing && !capabilities.shared && own.uid == 0 && identity::can_act(),
            capabilities,
            records,
            root,
            path: path.to_owned(),
            cloned,
            writable: for_writing,
            own,
            epoch: earlier.map_or_else(boot, |earlier| earlier.epoch),
            held: Mutex::default(),
        })
    }

    /// Returns how to reach an object without following a symlink.
    ///
    /// # Errors
    ///
    /// - EXDEV: the object has a mount on it.
    fn target<'a>(&self, object: Object<'a, Self>) -> Result<Target<'a>> {
        let (dir, name) = match object {
            Object::Dir(dir) => return Ok(Target::itself(TargetFd::Borrowed(dir.fd()?))),
            Object::File(file) => return Ok(Target::itself(TargetFd::Borrowed(file.fd.as_fd()))),
            Object::Entry(dir, name) => (dir.fd()?, single(name)?),
        };
        if self.cloned {
            return Ok(Target { fd: TargetFd::Borrowed(dir), name, flags: AtFlags::SYMLINK_NOFOLLOW });
        }
        let entry = raw::open_at(dir, name, OFlags::PATH, Mode::empty()).map_err(error)?;
        Ok(Target::itself(TargetFd::Own(entry)))
    }

    /// Does the same as [`LinuxLayer::target`], for a change.
    ///
    /// # Errors
    ///
    /// - EBUSY: the object is covered.
    fn change<'a>(&self, object: Object<'a, Self>) -> Result<Target<'a>> {
        if let Object::Dir(Dir(DirState::Covered(_))) = object {
            return Err(Error::new(EBUSY));
        }
        self.target(object).map_err(covered_is_busy)
    }

    /// Runs a call that creates an object for `owner`.
    ///
    /// # Errors
    ///
    /// - EPERM: the layer cannot create objects for `owner`.
    fn acting_as<T>(&self, owner: Owner, call: impl FnOnce() -> rustix::io::Result<T>) -> Result<T> {
        if !self.creates_as(owner) {
            return Err(Error::new(EPERM));
        }
        let _acting = match owner == self.own {
            true => None,
            false => Some(ActingAs::new(owner, self.own).map_err(error)?),
        };
        call().map_err(error)
    }

    /// Makes sure that a new object has the requested owner and mode, or else removes it. Returns
    /// its attributes if it had them from the start.
    ///
    /// It may lack them in these cases:
    ///
    /// - The directory has a default ACL, or passes on its group.
    /// - mkdir(2) ignored set-id bits.
    /// - The daemon lacks a capability.
    ///
    /// Another process that may rename in the directory can put a file of root in the place of the
    /// new object, to become its owner. So the method corrects only one object, through its
    /// descriptor. If that belongs to another user than its creator, the method returns EPERM.
    fn ensure_owner_and_mode(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        asked: (Owner, Option<u32>),
    ) -> Result<Option<Stat>> {
        let entry = Target { fd: TargetFd::Borrowed(dir), name, flags: AtFlags::SYMLINK_NOFOLLOW };
        let found = entry.stat()?;
        if is_right(&found, asked) {
            return Ok(Some(found));
        }
        let mended = raw::open_at(dir, name, OFlags::PATH, Mode::empty()).map_err(error).and_then(|made| {
            let found = stat_of(&rustix::fs::fstat(&made).map_err(error)?)?;
            mend(dir, made.as_fd(), &found, asked)
        });
        mended.map(|_| None).or_else(|error| undo(dir, name, found.kind).and(Err(error)))
    }
}

/// The attributes of a [`Stat`].
const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// Filesystems that `libc` has no number for (include/uapi/linux/magic.h).
const CIFS_SUPER_MAGIC: u64 = 0xff53_4d42;
const SMB2_SUPER_MAGIC: u64 = 0xfe53_4d42;
const CEPH_SUPER_MAGIC: u64 = 0x00c3_6400;
const V9FS_MAGIC: u64 = 0x0102_1997;

/// Returns the abilities of a layer's filesystem.
fn capabilities(root: &OwnedFd, for_writing: bool) -> Result<Capabilities> {
    // No call tells whether a filesystem can exchange, short of an exchange: the kernel looks the
    // names up first. So this list has those that can. For others "no" is the safe answer. Each
    // FUSE filesystem answers for itself, with EINVAL if it cannot.
    const EXCHANGE: [u64; 7] = [
        libc::EXT4_SUPER_MAGIC as u64,
        libc::XFS_SUPER_MAGIC as u64,
        libc::BTRFS_SUPER_MAGIC as u64,
        libc::TMPFS_MAGIC as u64,
        libc::F2FS_SUPER_MAGIC as u64,
        libc::BCACHEFS_SUPER_MAGIC as u64,
        libc::FUSE_SUPER_MAGIC as u64,
    ];
    // flock(2) of a directory never reaches the server of these: the kernel keeps it to itself.
    const SHARED: [u64; 8] = [
        libc::FUSE_SUPER_MAGIC as u64,
        libc::NFS_SUPER_MAGIC as u64,
        libc::SMB_SUPER_MAGIC as u64,
        CIFS_SUPER_MAGIC,
        SMB2_SUPER_MAGIC,
        CEPH_SUPER_MAGIC,
        V9FS_MAGIC,
        libc::AFS_SUPER_MAGIC as u64,
    ];
    let filesystem = rustix::fs::fstatfs(root).map_err(error)?.f_type as u64;
    let keeps_order = for_writing && through::keeps_order(root);
    Ok(Capabilities {
        exchange: for_writing && EXCHANGE.contains(&filesystem),
        dirs_follow_rename: true,
        whole_objects: true,
        xattrs: true,
        sparse: true,
        write_through: keeps_order,
        // A tmpfs does not survive a crash of the system.
        ordered: keeps_order || filesystem == libc::TMPFS_MAGIC as u64,
        owner_records: false,
        shared: SHARED.contains(&filesystem),
    })
}

impl Dir {
    /// Returns the descriptor.
    ///
    /// # Errors
    ///
    /// - ENOENT: the directory is covered, and behaves like a removed one.
    fn fd(&self) -> Result<BorrowedFd<'_>> {
        match &self.0 {
            DirState::Open(fd, _) => Ok(fd.as_fd()),
            DirState::Covered(_) => Err(Error::new(ENOENT)),
        }
    }
}

impl<'a> Target<'a> {
    fn itself(fd: TargetFd<'a>) -> Self {
        Target { fd, name: OsStr::new(""), flags: AtFlags::EMPTY_PATH }
    }

    fn stat(&self) -> Result<Stat> {
        let found = rustix::fs::statx(self, self.name, self.flags, WANTED).map_err(error)?;
        stat_of_statx(&found)
    }
}

impl AsFd for Target<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            TargetFd::Borrowed(fd) => *fd,
            TargetFd::Own(fd) => fd.as_fd(),
        }
    }
}

/// How long this host may show what another host has changed meanwhile: FUSE filesystems let the
/// kernel keep names and attributes for a second.
const CACHED: Duration = Duration::from_millis(1100);

/// The locks that hold a layer.
#[derive(Default)]
struct Held {
    /// That of its root.
    root: Option<LayerLock>,
    /// That of a file in it.
    file: Option<LayerLock>,
}

impl Layer for LinuxLayer {
    type Dir = Dir;
    type File = File;

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn root(&self) -> Result<Dir> {
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.root, 0).map_err(error)?;
        Ok(Dir(DirState::Open(fd, AtomicBool::new(false))))
    }

    fn below(&self, dir: &Dir, path: &Path, for_writing: bool) -> Result<Self> {
        let root = rustix::io::fcntl_dupfd_cloexec(dir.fd()?, 0).map_err(error)?;
        let records = self.records.of_another(root.as_fd(), for_writing);
        Ok(LinuxLayer {
            capabilities: Capabilities { owner_records: records.writes(), ..self.capabilities },
            records,
            path: path.to_owned(),
            root,
            cloned: self.cloned,
            // Its clone is that of this layer.
            writable: self.writable,
            own: self.own,
            acts_as_others: self.acts_as_others,
            epoch: self.epoch,
            held: Mutex::default(),
        })
    }

    fn hold(&self) -> Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.root.is_none() {
            held.root = Some(LayerLock::new(raw::reopen_dir(self.root.as_fd()).map_err(error)?)?);
        }
        Ok(())
    }

    fn hold_by(&self, dir: &Dir, name: &OsStr) -> Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.file.is_some() {
            return Ok(());
        }
        // NFS wants a file that is open for writing.
        let open = |flags, mode| raw::open_at(dir.fd()?, single(name)?, OFlags::RDWR | flags, mode).map_err(error);
        match open(OFlags::empty(), Mode::empty()) {
            Ok(file) => {
                held.file = Some(LayerLock::new(file)?);
                thread::sleep(CACHED);
            }
            Err(missing) if missing.errno == ENOENT => {
                held.file = Some(LayerLock::new(open(OFlags::CREATE, Mode::RUSR | Mode::WUSR)?)?);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn release(&self) -> Result<()> {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Held::default();
        Ok(())
    }

    fn stat_fs(&self) -> Result<StatFs> {
        let stat = rustix::fs::fstatvfs(&self.root).map_err(error)?;
        Ok(StatFs {
            block_size: stat.f_frsize as u32,
            blocks: stat.f_blocks,
            blocks_free: stat.f_bfree,
            blocks_available: stat.f_bavail,
            files: stat.f_files,
            files_free: stat.f_ffree,
            name_max: stat.f_namemax as u32,
        })
    }

    fn open_dir(&self, dir: &Dir, name: &OsStr) -> Result<Dir> {
        let parent = dir.fd()?;
        let name = single(name)?;
        // Most directories are read once, soon, and then need no second descriptor.
        let (opened, unread) = match raw::open_unseen(parent, name, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::ACCESS) => (raw::open_at(parent, name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()), false),
            opened => (opened, true),
        };
        match opened {
            Ok(fd) => Ok(Dir(DirState::Open(fd, AtomicBool::new(unread)))),
            Err(Errno::XDEV) => match covered(parent, name)? {
                stat if stat.kind == Kind::Dir => Ok(Dir(DirState::Covered(stat))),
                _ => Err(Error::new(ENOTDIR)),
            },
            Err(other) => Err(error(other)),
        }
    }

    fn list(&self, dir: &Dir, each: &mut dyn FnMut(DirEntry<'_>)) -> Result<()> {
        let DirState::Open(fd, unread) = &dir.0 else { return Ok(()) };
        let reopened = match unread.swap(false, Ordering::Relaxed) {
            true => {
                // btrfs lists the entries of the moment when the directory was opened, or seeked
                // in.
                rustix::fs::seek(fd, SeekFrom::Start(0)).map_err(error)?;
                None
            }
            false => Some(raw::reopen_dir(fd.as_fd()).map_err(error)?),
        };
        let mut result = Ok(());
        raw::entries(reopened.as_ref().unwrap_or(fd).as_fd(), |entry| {
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let kind = match kind_of(entry.file_type()) {
                Some(kind) => Ok(kind),
                None => self.stat(Object::Entry(dir, name)).map(|stat| stat.kind),
            };
            match kind {
                Ok(kind) => each(DirEntry { name, ino: entry.ino(), kind }),
                // Another thread removed the entry meanwhile.
                Err(missing) if missing.errno == ENOENT => {}
                Err(other) => result = Err(other),
            }
            result.is_ok()
        })
        .map_err(error)?;
        result
    }

    fn stat(&self, object: Object<'_, Self>) -> Result<Stat> {
        if let Object::Dir(Dir(DirState::Covered(stat))) = object {
            return Ok(*stat);
        }
        match (self.target(object), object) {
            (Ok(target), _) => {
                let stat = target.stat()?;
                Ok(match self.record(object, &stat) {
                    Some((Owner { uid, gid }, mode)) => Stat { uid, gid, mode, ..stat },
                    None => stat,
                })
            }
            (Err(crossing), Object::Entry(dir, name)) if is_crossing(crossing) => covered(dir.fd()?, name),
            (Err(other), _) => Err(other),
        }
    }

    fn set_owner(&self, object: Object<'_, Self>, owner: Owner) -> Result<()> {
        let target = self.change(object)?;
        if let Some((own, (_, mode))) = self.recorded(object, &target)? {
            return self.set_record(object, &own, owner, mode);
        }
        match change_owner(target.as_fd(), target.name, target.flags, owner) {
            Err(error) if self.records.takes(error) => {
                let own = target.stat()?;
                self.set_record(object, &own, owner, own.mode)
            }
            changed => changed,
        }
    }

    fn set_mode(&self, object: Object<'_, Self>, mode: u32) -> Result<()> {
        let target = self.change(object)?;
        if let Some((own, (owner, _))) = self.recorded(object, &target)? {
            return self.set_record(object, &own, owner, mode);
        }
        raw::change_mode(target.as_fd(), target.name, target.flags, mode_of(mode)).map_err(error)
    }

    fn set_times(&self, object: Object<'_, Self>, atime: Time, mtime: Time) -> Result<()> {
        let times = Timestamps { last_access: timespec(atime)?, last_modification: timespec(mtime)? };
        let target = self.change(object)?;
        rustix::fs::utimensat(&target, target.name, &times, target.flags).map_err(error)
    }

    fn birth(&self, object: Object<'_, Self>) -> Result<Option<Time>> {
        unless_covered(object, Ok(None), || {
            let target = self.change(object)?;
            let found = rustix::fs::statx(&target, target.name, target.flags, StatxFlags::BTIME).map_err(error)?;
            Ok(birth_of(&found))
        })
    }

    fn xattr(&self, object: Object<'_, Self>, name: &OsStr) -> Result<Vec<u8>> {
        let none = Err(Error::new(ENODATA));
        unless_covered(object, none, || self.with_xattrs(object, |place| xattr::get(place, name)))
    }

    fn set_xattr(&self, object: Object<'_, Self>, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        self.with_xattrs(object, |place| xattr::set(place, name, value, mode))?;
        // The ACL has changed the object's own mode.
        if name == acl::ACCESS
            && let Some((own, (owner, mode))) = self.recorded(object, &self.target(object)?)?
        {
            self.set_record(object, &own, owner, mode & 0o7000 | own.mode & 0o777)?;
        }
        Ok(())
    }

    fn remove_xattr(&self, object: Object<'_, Self>, name: &OsStr) -> Result<()> {
        self.with_xattrs(object, |place| xattr::remove(place, name))
    }

    fn xattrs(&self, object: Object<'_, Self>) -> Result<Vec<OsString>> {
        unless_covered(object, Ok(Vec::new()), || self.with_xattrs(object, xattr::list))
    }

    fn flags(&self, object: Object<'_, Self>) -> Result<u32> {
        self.with_open(object, |fd| rustix::fs::ioctl_getflags(fd).map(|flags| flags.bits()))
    }

    fn set_flags(&self, object: Object<'_, Self>, flags: u32) -> Result<()> {
        self.with_open(object, |fd| rustix::fs::ioctl_setflags(fd, IFlags::from_bits_retain(flags)))
    }

    /// Opens a regular file.
    ///
    /// # Errors
    ///
    /// - EINVAL: `name` is no regular file.
    /// - ELOOP: `name` is a symlink.
    fn open_file(&self, dir: &Dir, name: &OsStr, access: Access) -> Result<File> {
        let (dir, name) = (dir.fd()?, single(name)?);
        // Without O_NONBLOCK, the open of a FIFO would wait for its other end.
        let common = OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match access {
            Access::Read => raw::open_unseen(dir, name, common | OFlags::RDONLY),
            Access::ReadWrite => raw::open_at(dir, name, common | OFlags::RDWR, Mode::empty()),
            Access::Append => raw::open_at(dir, name, common | OFlags::RDWR | OFlags::APPEND, Mode::empty()),
            Access::Attributes => raw::open_at(dir, name, OFlags::PATH, Mode::empty()),
        };
        let fd = fd.map_err(error).map_err(covered_is_busy)?;
        match stat_of(&rustix::fs::fstat(&fd).map_err(error)?)?.kind {
            Kind::File => Ok(File::from(fd)),
            _ if access == Access::Attributes => Ok(File::from(fd)),
            _ => Err(Error::new(EINVAL)),
        }
    }

    fn identity(&self) -> Owner {
        self.own
    }

    /// True for the daemon's own ids. If the daemon is root with CAP_SETPCAP, CAP_SETUID and
    /// CAP_SETGID, true for all ids of its user namespace.
    fn creates_as(&self, owner: Owner) -> bool {
        owner == self.own || (self.acts_as_others && self.records.has_ids(owner))
    }

    fn create_file(&self, dir: &Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<File> {
        let (dir, name) = (dir.fd()?, single(name)?);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
        let fd = self.acting_as(owner, || raw::open_at(dir, name, flags, mode_of(mode)))?;
        let made = (|| {
            let wanted = WANTED | StatxFlags::DIOALIGN;
            let found = rustix::fs::statx(&fd, "", AtFlags::EMPTY_PATH, wanted).map_err(error)?;
            let is_mended = mend(dir, fd.as_fd(), &stat_of_statx(&found)?, (owner, Some(mode)))?;
            let new = if is_mended { None } else { Some(Box::new(stat_of_statx(&found)?)) };
            Ok((new, self.capabilities.write_through && through::takes_direct(&found)))
        })();
        let (new, takes_direct) = made.or_else(|error| undo(dir, name, Kind::File).and(Err(error)))?;
        Ok(File { fd, new, takes_direct })
    }

    fn attr_of_new(&self, file: &File) -> Option<Stat> {
        file.new.as_deref().copied()
    }

    fn create_empty(&self, dir: &Dir, name: &OsStr) -> Result<()> {
        let (dir, name) = (dir.fd()?, single(name)?);
        rustix::fs::mknodat(dir, name, FileType::RegularFile, mode_of(0o600), 0).map_err(error)
    }

    fn create_dir(&self, dir: &Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<Option<Stat>> {
        let (dir, name) = (dir.fd()?, single(name)?);
        self.acting_as(owner, || rustix::fs::mkdirat(dir, name, mode_of(mode)))?;
        self.ensure_owner_and_mode(dir, name, (owner, Some(mode)))
    }

    fn create_symlink(&self, dir: &Dir, name: &OsStr, target: &OsStr, owner: Owner) -> Result<Option<Stat>> {
        let (dir, name) = (dir.fd()?, single(name)?);
        self.acting_as(owner, || rustix::fs::symlinkat(target, dir, name))?;
        self.ensure_owner_and_mode(dir, name, (owner, None))
    }

    /// Creates a special object.
    ///
    /// # Errors
    ///
    /// - EINVAL: `kind` is none.
    fn create_node(
        &self,
        dir: &Dir,
        name: &OsStr,
        kind: Kind,
        mode: u32,
        rdev: u64,
        owner: Owner,
    ) -> Result<Option<Stat>> {
        let (dir, name) = (dir.fd()?, single(name)?);
        let file_type = match kind {
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            Kind::CharDev => FileType::CharacterDevice,
            Kind::BlockDev => FileType::BlockDevice,
            Kind::File | Kind::Dir | Kind::Symlink => return Err(Error::new(EINVAL)),
        };
        self.acting_as(owner, || rustix::fs::mknodat(dir, name, file_type, mode_of(mode), rdev))?;
        self.ensure_owner_and_mode(dir, name, (owner, Some(mode)))
    }

    fn read_link(&self, dir: &Dir, name: &OsStr) -> Result<OsString> {
        let target = rustix::fs::readlinkat(dir.fd()?, single(name)?, Vec::new()).map_err(error)?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    fn link(&self, object: Object<'_, Self>, new_dir: &Dir, new_name: &OsStr) -> Result<()> {
        let (fd, name, flags) = match object {
            Object::Dir(_) => return Err(Error::new(EPERM)),
            Object::Entry(dir, name) => (dir.fd()?, single(name)?, AtFlags::empty()),
            Object::File(file) => (file.fd.as_fd(), OsStr::new(""), AtFlags::EMPTY_PATH),
        };
        rustix::fs::linkat(fd, name, new_dir.fd()?, single(new_name)?, flags).map_err(error)
    }

    fn unlink(&self, dir: &Dir, name: &OsStr) -> Result<()> {
        rustix::fs::unlinkat(dir.fd()?, single(name)?, AtFlags::empty()).map_err(error)
    }

    fn remove_dir(&self, dir: &Dir, name: &OsStr) -> Result<()> {
        rustix::fs::unlinkat(dir.fd()?, single(name)?, AtFlags::REMOVEDIR).map_err(error)
    }

    fn rename(&self, dir: &Dir, name: &OsStr, new_dir: &Dir, new_name: &OsStr, mode: RenameMode) -> Result<()> {
        let flags = match mode {
            RenameMode::Replace => RenameFlags::empty(),
            RenameMode::NoReplace => RenameFlags::NOREPLACE,
            RenameMode::Exchange => RenameFlags::EXCHANGE,
            RenameMode::Whiteout => RenameFlags::WHITEOUT,
        };
        let (from, to) = ((dir.fd()?, single(name)?), (new_dir.fd()?, single(new_name)?));
        let rename = |flags| rustix::fs::renameat_with(from.0, from.1, to.0, to.1, flags);
        match rename(flags) {
            // Many filesystems of other hosts have no flags. Only this daemon makes names here.
            Err(Errno::INVAL | Errno::NOSYS) if mode == RenameMode::NoReplace => {
                match rustix::fs::statat(to.0, to.1, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(_) => Err(Error::new(EEXIST)),
                    Err(Errno::NOENT) => rename(RenameFlags::empty()).map_err(error),
                    Err(errno) => Err(error(errno)),
                }
            }
            renamed => renamed.map_err(error),
        }
    }

    fn read_at(&self, file: &File, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let rest = &mut buf[done..];
            match retry_on_intr(|| rustix::io::pread(&file.fd, &mut *rest, offset + done as u64)).map_err(error)? {
                0 => break,
                count => done += count,
            }
        }
        Ok(done)
    }

    fn write_at(&self, file: &File, buf: &[u8], offset: u64) -> Result<usize> {
        match retry_on_intr(|| rustix::io::pwrite(&file.fd, buf, offset)).map_err(error)? {
            0 if !buf.is_empty() => Err(Error::new(EIO)),
            count => Ok(count),
        }
    }

    fn write_through(&self, file: &File, buf: &[u8], offset: u64) -> Result<()> {
        match file.takes_direct {
            true => through::write(&file.fd, buf, offset),
            false => Err(Error::new(EOPNOTSUPP)),
        }
    }

    fn truncate(&self, file: &File, size: u64) -> Result<()> {
        if size > i64::MAX as u64 {
            return Err(Error::new(EFBIG));
        }
        retry_on_intr(|| rustix::fs::ftruncate(&file.fd, size)).map_err(error)
    }

    fn sync(&self, file: &File) -> Result<()> {
        retry_on_intr(|| rustix::fs::fsync(&file.fd)).map_err(error)
    }

    fn sync_dir(&self, dir: &Dir) -> Result<()> {
        let open = raw::reopen_dir(dir.fd()?).map_err(error)?;
        retry_on_intr(|| rustix::fs::fsync(&open)).map_err(error)
    }

    fn next_data(&self, file: &File, from: u64) -> Result<Option<Range<u64>>> {
        // No method uses the offset that the seeks leave: all reads and writes have their own.
        let seek = |position| match rustix::fs::seek(&file.fd, position) {
            Ok(offset) => Ok(Some(offset)),
            Err(Errno::NXIO) => Ok(None),
            Err(other) => Err(error(other)),
        };
        if from > i64::MAX as u64 {
            return Ok(None);
        }
        let Some(start) = seek(SeekFrom::Data(from))? else {
            return Ok(None);
        };
        // None here if the file was truncated in between.
        Ok(seek(SeekFrom::Hole(start))?.map(|end| start..end))
    }

    fn copy_range(&self, from: &File, range: Range<u64>, to: &File, offset: u64) -> Result<u64> {
        let length = range.end.saturating_sub(range.start);
        let mut copied = 0;
        while copied < length {
            let (mut source, mut target) = (range.start + copied, offset + copied);
            let rest = usize::try_from(length - copied).unwrap_or(usize::MAX);
            let copy = retry_on_intr(|| {
                rustix::fs::copy_file_range(&from.fd, Some(&mut source), &to.fd, Some(&mut target), rest)
            });
            match copy {
                Ok(0) => break,
                Ok(count) => copied += count as u64,
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                    let (source, target) = (range.start + copied, offset + copied);
                    return Ok(copied + copy_through_memory(self, from, source..range.end, to, target)?);
                }
                Err(other) => return Err(error(other)),
            }
        }
        Ok(copied)
    }

    fn share_data(&self, from: &File, to: &File) -> Result<()> {
        rustix::fs::ioctl_ficlone(&to.fd, &from.fd).map_err(|error| match error {
            Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS => Error::new(EOPNOTSUPP),
            other => convert::error(other),
        })
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn epoch(&self) -> Option<u128> {
        self.epoch
    }

    fn descriptor<'a>(&self, file: &'a File) -> Option<BorrowedFd<'a>> {
        // Only a clone that is read-only keeps the access time.
        (self.cloned && !self.writable).then(|| file.fd.as_fd())
    }

    fn allocate(&self, file: &File, how: Allocation, range: Range<u64>) -> Result<()> {
        let flags = match how {
            Allocation::Reserve { keep_size: false } => FallocateFlags::empty(),
            Allocation::Reserve { keep_size: true } => FallocateFlags::KEEP_SIZE,
            Allocation::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Allocation::Zero { keep_size: false } => FallocateFlags::ZERO_RANGE,
            Allocation::Zero { keep_size: true } => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            Allocation::Collapse => FallocateFlags::COLLAPSE_RANGE,
            Allocation::Insert => FallocateFlags::INSERT_RANGE,
            Allocation::Unshare => FallocateFlags::UNSHARE_RANGE,
        };
        let length = range.end.saturating_sub(range.start);
        retry_on_intr(|| rustix::fs::fallocate(&file.fd, flags, range.start, length)).map_err(error)
    }

    fn sync_all(&self) -> Result<()> {
        let root = raw::reopen_dir(self.root.as_fd()).map_err(error)?;
        rustix::fs::syncfs(&root).map_err(error)
    }
}

impl LinuxLayer {
    /// Makes a call on a file or directory that is open for reading.
    ///
    /// # Errors
    ///
    /// - EBUSY: the object is covered.
    /// - EOPNOTSUPP: the filesystem has no such call.
    fn with_open<T>(
        &self,
        object: Object<'_, Self>,
        call: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let opened = match object {
            Object::File(file) => match call(file.fd.as_fd()) {
                // A directory that is open by O_PATH.
                Err(Errno::BADF) => raw::reopen_dir(file.fd.as_fd()),
                result => return result.map_err(no_such_call),
            },
            Object::Dir(dir) => raw::reopen_dir(dir.fd()?),
            Object::Entry(dir, name) => {
                raw::open_unseen(dir.fd()?, single(name)?, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
            }
        };
        call(opened.map_err(error).map_err(covered_is_busy)?.as_fd()).map_err(no_such_call)
    }

    /// Returns the recorded owner and mode of an object that has the attributes `own`.
    fn record(&self, object: Object<'_, Self>, own: &Stat) -> Option<(Owner, u32)> {
        if !self.records.may_be_on(own) {
            return None;
        }
        self.with_xattrs(object, |place| Ok(self.records.read(place))).ok().flatten()
    }

    /// Does the same as [`LinuxLayer::record`] before a change, and returns the object's own
    /// attributes too. Makes no call in a layer without records.
    fn recorded(&self, object: Object<'_, Self>, target: &Target<'_>) -> Result<Option<(Stat, (Owner, u32))>> {
        if !self.records.are_any() {
            return Ok(None);
        }
        let own = target.stat()?;
        Ok(self.record(object, &own).map(|record| (own, record)))
    }

    fn set_record(&self, object: Object<'_, Self>, own: &Stat, owner: Owner, mode: u32) -> Result<()> {
        if owner.uid == u32::MAX || owner.gid == u32::MAX {
            return Err(Error::new(EINVAL));
        }
        self.with_xattrs(object, |place| self.records.write(self.root.as_fd(), place, own, owner, mode & 0o7777))
    }

    /// Makes a call on the extended attributes of an object.
    ///
    /// # Errors
    ///
    /// - EBUSY: the object is covered.
    fn with_xattrs<T>(
        &self,
        object: Object<'_, Self>,
        call: impl FnOnce(xattr::XattrTarget<'_>) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let place = match object {
            Object::File(file) => xattr::XattrTarget::File(file.fd.as_fd()),
            Object::Dir(dir) => xattr::XattrTarget::Entry(dir.fd()?, OsStr::new(".")),
            Object::Entry(dir, name) if self.cloned => xattr::XattrTarget::Entry(dir.fd()?, single(name)?),
            Object::Entry(..) => {
                let entry = self.change(object)?;
                return call(xattr::XattrTarget::Itself(entry.as_fd())).map_err(error);
            }
        };
        call(place).map_err(error)
    }
}

/// Returns the ids of this process.
fn own_ids() -> Owner {
    Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

/// Returns the number of this start of the system, or None if it is unknown.
fn boot() -> Option<u128> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    u128::from_str_radix(&id.trim().replace('-', ""), 16).ok()
}

/// Opens the root of a layer as an O_PATH descriptor.
fn open_top(above: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(above, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(error)
}

/// Opens directories as O_PATH descriptors, if possible in one clone of a directory above all. Also
/// returns whether they are in it.
fn open_roots(paths: &[impl AsRef<Path>]) -> Result<(bool, Vec<OwnedFd>)> {
    let plain = paths.iter().map(|path| open_top(CWD, path.as_ref())).collect::<Result<Vec<_>>>()?;
    Ok(match shared_clone(paths, &plain) {
        Some(roots) => (true, roots),
        None => (false, plain),
    })
}

/// Opens directories, which `plain` are, in one clone of a directory above all. Returns None if
/// there is no such clone: it is not permitted, or they are not on one mount.
fn shared_clone(paths: &[impl AsRef<Path>], plain: &[OwnedFd]) -> Option<Vec<OwnedFd>> {
    let paths = paths.iter().map(|path| path.as_ref().canonicalize().ok()).collect::<Option<Vec<_>>>()?;
    let is_above = |above: &&Path| paths.iter().all(|path| path.starts_with(above));
    let above = paths.first()?.ancestors().find(is_above)?;
    let clone = raw::private_clone(above, true).ok()?;
    let mut roots = Vec::new();
    for (path, plain) in paths.iter().zip(plain) {
        let below = path.strip_prefix(above).ok()?;
        let root = open_top(clone.as_fd(), if below.as_os_str().is_empty() { Path::new(".") } else { below }).ok()?;
        let (found, wanted) = (rustix::fs::fstat(&root).ok()?, rustix::fs::fstat(plain).ok()?);
        if (found.st_dev, found.st_ino) != (wanted.st_dev, wanted.st_ino) {
            return None;
        }
        roots.push(root);
    }
    Some(roots)
}

/// Returns the name if it is a single component.
///
/// # Errors
///
/// - EINVAL: it is not.
fn single(name: &OsStr) -> Result<&OsStr> {
    let bytes = name.as_bytes();
    if matches!(bytes, b"" | b"." | b"..") || bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(Error::new(EINVAL));
    }
    Ok(name)
}

/// Returns the attributes of an entry with a mount on it. Number and kind are those in the
/// directory's listing, owner and times those of the directory. It has no content.
fn covered(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Stat> {
    let mut found = None;
    let open = raw::reopen_dir(dir).map_err(error)?;
    raw::entries(open.as_fd(), |entry| {
        if entry.file_name().to_bytes() == name.as_bytes() {
            // If listings have no kinds, it is most likely a directory.
            found = Some((entry.ino(), kind_of(entry.file_type()).unwrap_or(Kind::Dir)));
        }
        found.is_none()
    })
    .map_err(error)?;
    let (ino, kind) = found.ok_or(Error::new(ENOENT))?;
    let parent = stat_of(&rustix::fs::statat(dir, "", AtFlags::EMPTY_PATH).map_err(error)?)?;
    let (mode, nlink) = if kind == Kind::Dir { (0o555, 2) } else { (0o444, 1) };
    Ok(Stat { ino, kind, mode, nlink, rdev: 0, size: 0, blocks: 0, ..parent })
}

/// Whether a new object has the requested owner and mode.
fn is_right(made: &Stat, (owner, mode): (Owner, Option<u32>)) -> bool {
    (made.uid, made.gid) == (owner.uid, owner.gid) && mode.is_none_or(|mode| made.mode == mode & 0o7777)
}

/// Removes a new object that cannot get its owner or mode.
fn undo(dir: BorrowedFd<'_>, name: &OsStr, kind: Kind) -> Result<()> {
    let flags = if kind == Kind::Dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    rustix::fs::unlinkat(dir, name, flags).map_err(error)
}

/// Gives a new object in `dir` the requested owner and mode, if they differ from those that it was
/// `made` with. Returns whether they did.
///
/// # Errors
///
/// - EPERM: the object belongs to another user.
fn mend(dir: BorrowedFd<'_>, object: BorrowedFd<'_>, made: &Stat, (owner, mode): (Owner, Option<u32>)) -> Result<bool> {
    let itself = OsStr::new("");
    if is_right(made, (owner, mode)) {
        return Ok(false);
    }
    if made.uid != owner.uid {
        return Err(Error::new(EPERM));
    }
    let owned = made.gid == owner.gid;
    if !owned {
        change_owner(object, itself, AtFlags::EMPTY_PATH, owner)?;
    }
    // A change of the owner drops set-id bits.
    let Some(asked) = mode.map(|mode| mode & 0o7777) else { return Ok(true) };
    // The permissions from a default ACL are right.
    let right = if hands_down_acl(dir) { made.mode & 0o777 | asked & 0o7000 } else { asked };
    if !owned || made.mode != right {
        raw::change_mode(object, itself, AtFlags::EMPTY_PATH, mode_of(right)).map_err(error)?;
    }
    Ok(true)
}

/// Whether a directory has a default ACL.
fn hands_down_acl(dir: BorrowedFd<'_>) -> bool {
    xattr::get(xattr::XattrTarget::Entry(dir, OsStr::new(".")), OsStr::new(acl::DEFAULT)).is_ok()
}

/// Sets owner and group.
///
/// # Errors
///
/// - EINVAL: an id is the one that stands for "no change".
fn change_owner(fd: BorrowedFd<'_>, name: &OsStr, flags: AtFlags, owner: Owner) -> Result<()> {
    if owner.uid == u32::MAX || owner.gid == u32::MAX {
        return Err(Error::new(EINVAL));
    }
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    rustix::fs::chownat(fd, name, Some(uid), Some(gid), flags).map_err(error)
}

fn no_such_call(errno: Errno) -> Error {
    if errno == Errno::NOTTY { Error::new(EOPNOTSUPP) } else { error(errno) }
}

/// Whether an entry could not be reached because of a mount on it.
fn is_crossing(error: Error) -> bool {
    error.errno == EXDEV
}

/// Reads something of an object. A covered one has `covered` in its place.
fn unless_covered<T>(
    object: Object<'_, LinuxLayer>,
    covered: Result<T>,
    read: impl FnOnce() -> Result<T>,
) -> Result<T> {
    if let Object::Dir(Dir(DirState::Covered(_))) = object {
        return covered;
    }
    match read() {
        Err(busy) if busy.errno == EBUSY => covered,
        read => read,
    }
}

fn covered_is_busy(error: Error) -> Error {
    if is_crossing(error) { Error::new(EBUSY) } else { error }
}
