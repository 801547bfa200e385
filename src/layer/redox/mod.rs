//! A layer on Redox, through calls that are relative to a descriptor.
//!
//! While the daemon serves, it is in the null namespace, where no path from the root of the system
//! can be opened. So after [`RedoxLayer::open`] every call goes to the scheme of the layer, through
//! a descriptor of the root directory or of the object itself. relibc's own `unlinkat`, `renameat`
//! and `linkat` resolve their paths in the namespace. The kernel's calls below them do not, so the
//! backend uses those (`calls`).
//!
//! The backend is written for redoxfs, which knows a directory by its path, also through an open
//! descriptor. So a [`Dir`] is a path: after a rename it is the directory that has the path then.
//! Another process may put a symlink in the place of a directory or file of a mounted layer; the
//! backend would follow it. So a user that can write to a layer's directory is trusted on Redox.
//!
//! An object of another user is made by the `maker`. The object that was used last stays open
//! (`kept`).
//!
//! Lock order: a thread takes the locks of this directory last, and holds one of them at most.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::errno::{
    EACCES, EBADF, EEXIST, EFBIG, EINVAL, EIO, ENAMETOOLONG, ENOENT, ENOTDIR, EOPNOTSUPP, EOVERFLOW, EPERM, EPIPE,
    EROFS,
};
use libredox::Fd;
use libredox::data::TimeSpec;
use syscall::data::StdFsCallMeta;
use syscall::dirent::{DirentHeader, DirentKind};
use syscall::flag::{
    AT_REMOVEDIR, CallFlags, MODE_CHR, MODE_DIR, MODE_FIFO, MODE_FILE, MODE_PERM, MODE_SOCK, MODE_SYMLINK, MODE_TYPE,
    O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDONLY, O_RDWR, O_STAT, O_SYMLINK, O_WRONLY, StdFsCallKind,
};

use super::{
    Access, Allocation, Capabilities, DirEntry, Error, Fixed, Kind, Layer, Object, Owner, RenameMode, Result, Stat,
    StatFs, Time, XattrMode, copy_through_memory, write_all,
};

use crate::turn;
use kept::Kept;

mod calls;
mod kept;
pub mod maker;

/// Close on exec: a flag of relibc, beside those of the kernel.
const O_CLOEXEC: usize = 0x0100_0000;
/// The type bits of a block device in a mode. relibc knows them, the kernel does not.
const MODE_BLOCK: u16 = 0x6000;
/// The permission bits that redoxfs gives a socket.
const SOCKET_MODE: u16 = 0o777;
/// The flags that open an object of any kind for its attributes or for a rename.
const ITSELF: usize = O_STAT | O_NOFOLLOW;
/// The size of the buffer of a listing, in bytes, and the maximum to which it grows.
const LIST_BUFFER: usize = 64 * 1024;
const LIST_BUFFER_MAX: usize = LIST_BUFFER << 8;
/// The longest path that the kernel takes, in bytes.
const PATH_MAX: usize = 4096;
/// The longest name that redoxfs stores, in bytes. Its statvfs does not tell.
const NAME_MAX: u32 = 252;
/// In the arguments of a lock: the lock excludes all others.
const EXCLUSIVE: u64 = 1 << 63;

/// The first byte of the range with the locks that hold layers.
const HELD_FROM: u64 = 1 << 61;

/// A directory tree of a Redox scheme.
pub struct RedoxLayer {
    top: Arc<Top>,
    /// Stands for the scheme in [`Stat::dev`], where redoxfs writes 0.
    dev: u64,
    /// The maximum length of a name, in bytes.
    name_max: u32,
    /// The ids of the daemon.
    own: Owner,
    /// Whether changes are permitted.
    writable: bool,
    /// The descriptor with the lock that holds the layer. No other call uses it. After another call
    /// on a locked descriptor, the kernel no longer tells the scheme when the descriptor is closed.
    held: Mutex<Option<Fd>>,
    /// Spares the lookup of a path that is used again.
    kept: Kept,
}

/// The root directory of a layer.
struct Top {
    /// Open for its attributes, and as the directory at which paths are opened, where that is
    /// possible.
    fd: Far,
    /// Some schemes open paths only at their root: that root, and the path of the layer from there.
    root: Option<(Arc<Far>, String)>,
    /// Begins with `/scheme/NAME`, and has no slash at the end.
    path: String,
}

/// A directory of a [`RedoxLayer`]. It has its layer's root directory too, since the work directory
/// may be a layer of its own on the upper layer's filesystem.
pub struct Dir {
    top: Arc<Top>,
    /// Relative to the root directory, and empty for that itself.
    path: String,
}

/// The place of an entry of a directory.
struct PathInTop<'a> {
    top: &'a Top,
    /// Relative to the root directory, and never empty.
    path: String,
}

/// An open regular file of a [`RedoxLayer`].
pub struct File {
    far: Far,
    /// The scheme decides by the opener who may change the attributes through a descriptor.
    is_own: bool,
}

/// A descriptor of a scheme, so of another process.
struct Far(Fd);

impl Far {
    /// Returns the descriptor for a call, during which this thread waits for that process.
    fn call(&self) -> &Fd {
        turn::offer();
        &self.0
    }
}

impl File {
    fn of(fd: Fd) -> Self {
        Self { far: Far(fd), is_own: true }
    }
}

impl RedoxLayer {
    /// Opens the directory `path` as a layer. Follows symlinks in `path`. A layer that is not
    /// opened for writing returns EROFS for every change. The daemon must call this before it
    /// enters the null namespace.
    ///
    /// # Errors
    ///
    /// - EINVAL: the path is not UTF-8.
    ///
    /// Others as open(2): ENOENT, ENOTDIR, EACCES.
    pub fn open(path: &Path, for_writing: bool) -> Result<RedoxLayer> {
        let fd = open(text(path.as_os_str())?)?;
        if kind_of(mode_bits(&fd.stat()?))? != Kind::Dir {
            return Err(Error::new(ENOTDIR));
        }
        let mut buffer = [0; PATH_MAX];
        let length = fd.fpath(&mut buffer)?;
        let path = std::str::from_utf8(&buffer[..length]).map_err(|_| Error::new(EINVAL))?.trim_end_matches('/');
        let inside = path.strip_prefix("/scheme/").ok_or(Error::new(EINVAL))?;
        let (scheme, inside) = inside.split_once('/').unwrap_or((inside, ""));
        // ramfs opens nothing at a directory other than its root.
        let root = match fd.openat("", flag_bits(ITSELF | O_DIRECTORY | O_CLOEXEC), 0) {
            Err(error) if error.errno() == EACCES => {
                Some((Arc::new(Far(open(&format!("/scheme/{scheme}/"))?)), inside.to_owned()))
            }
            opened => opened.map(|_| None)?,
        };
        let mut hasher = DefaultHasher::new();
        hasher.write(scheme.as_bytes());
        Ok(RedoxLayer {
            // Device numbers leave the high bits free.
            dev: hasher.finish() >> 16,
            name_max: fd.statvfs().map_or(NAME_MAX, |found| name_max(&found)),
            own: Owner { uid: id(libredox::call::geteuid()?)?, gid: id(libredox::call::getegid()?)? },
            top: Arc::new(Top { path: path.to_owned(), fd: Far(fd), root }),
            writable: for_writing,
            held: Mutex::new(None),
            kept: Kept::default(),
        })
    }

    /// Opens two directories for writing, with renames between them.
    ///
    /// # Errors
    ///
    /// Those of [`RedoxLayer::open`].
    pub fn open_pair(path: &Path, other: &Path) -> Result<(RedoxLayer, RedoxLayer)> {
        Ok((Self::open(path, true)?, Self::open(other, true)?))
    }

    /// Opens another layer for reading.
    ///
    /// # Errors
    ///
    /// Those of [`RedoxLayer::open`].
    pub fn open_another(&self, path: &Path) -> Result<RedoxLayer> {
        Self::open(path, false)
    }

    /// Does the same as [`RedoxLayer::open_pair`], for any number of directories.
    ///
    /// # Errors
    ///
    /// Those of [`RedoxLayer::open`].
    pub fn open_together(paths: &[&Path]) -> Result<Vec<RedoxLayer>> {
        paths.iter().map(|path| Self::open(path, true)).collect()
    }

    /// Opens directories for writing, with renames and links between them.
    ///
    /// # Errors
    ///
    /// Those of [`RedoxLayer::open`].
    pub fn open_group(paths: &[PathBuf]) -> Result<Option<Vec<RedoxLayer>>> {
        paths.iter().map(|path| Self::open(path, true).map(Some)).collect()
    }

    /// Returns the place of an entry that a call changes.
    ///
    /// # Errors
    ///
    /// - EROFS: the layer is not open for writing.
    /// - ENAMETOOLONG: the name is too long.
    fn changing<'a>(&self, dir: &'a Dir, name: &OsStr) -> Result<PathInTop<'a>> {
        self.check_writable()?;
        // redoxfs would return EINVAL.
        if name.len() > self.name_max as usize {
            return Err(Error::new(ENAMETOOLONG));
        }
        let place = dir.entry(name)?;
        self.kept.forget(&place.absolute());
        Ok(place)
    }

    /// Calls `act` with a descriptor of the object itself.
    fn on<T>(&self, object: Object<'_, Self>, act: impl FnOnce(&Fd) -> Result<T>) -> Result<T> {
        match object {
            Object::File(file) => act(file.far.call()),
            Object::Dir(dir) if dir.path.is_empty() => act(dir.top.fd.call()),
            Object::Dir(dir) => {
                let path = dir.absolute();
                let object = match self.kept.get(&path) {
                    Some(object) => object,
                    None => {
                        let object = Arc::new(Far(dir.top.open_at(&dir.path, ITSELF | O_DIRECTORY)?));
                        self.kept.set(path, object.clone());
                        object
                    }
                };
                act(object.call())
            }
            Object::Entry(dir, name) => {
                let place = dir.entry(name)?;
                match self.kept.get(&place.absolute()) {
                    Some(object) => act(object.call()),
                    None => act(&place.open(ITSELF)?),
                }
            }
        }
    }

    fn check_writable(&self) -> Result<()> {
        if self.writable { Ok(()) } else { Err(Error::new(EROFS)) }
    }

    /// Makes a change through a descriptor of the object itself.
    fn change(&self, object: Object<'_, Self>, act: impl FnOnce(&Fd) -> Result<()>) -> Result<()> {
        self.check_writable()?;
        self.on(object, act)
    }
}

impl Top {
    /// Opens a path that is relative to this directory.
    fn open_at(&self, path: &str, flags: usize) -> Result<Fd> {
        let (fd, path) = self.at(path);
        Ok(fd.openat(&path, flag_bits(flags | O_CLOEXEC), 0)?)
    }

    /// Returns the descriptor at which to open a path of the layer, and the path from there.
    fn at<'a>(&'a self, path: &'a str) -> (&'a Fd, Cow<'a, str>) {
        match &self.root {
            None => (self.fd.call(), path.into()),
            Some((root, inside)) => (root.call(), format!("{inside}/{path}").into()),
        }
    }
}

impl Dir {
    /// Returns the place of an entry.
    ///
    /// # Errors
    ///
    /// - EINVAL: the name is not a single component, or not UTF-8.
    fn entry(&self, name: &OsStr) -> Result<PathInTop<'_>> {
        let name = text(name)?;
        if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
            return Err(Error::new(EINVAL));
        }
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}/{name}", self.path) };
        Ok(PathInTop { top: &self.top, path })
    }
}

impl Dir {
    /// Returns the path from the root of the system.
    fn absolute(&self) -> String {
        format!("{}/{}", self.top.path, self.path)
    }

    /// Sends a descriptor to this directory. The caller's own stays open.
    fn send(&self, descriptor: usize) -> Result<()> {
        let dir = self.top.open_at(&self.path, ITSELF | O_DIRECTORY)?;
        dir.call_wo(&descriptor.to_ne_bytes(), CallFlags::FD | CallFlags::FD_CLONE, &[])?;
        Ok(())
    }
}

impl PathInTop<'_> {
    fn open(&self, flags: usize) -> Result<Fd> {
        self.top.open_at(&self.path, flags)
    }

    /// Creates an object of the kind in `flags`.
    ///
    /// # Errors
    ///
    /// - EEXIST: the name exists.
    fn create(&self, flags: usize, mode: u32) -> Result<Fd> {
        // The scheme takes the mode from the low bits of the flags.
        self.open(flags | O_CREAT | O_EXCL | usize::from(permissions(mode)))
    }

    /// Creates an object for another owner, which also opens it.
    ///
    /// # Errors
    ///
    /// - EEXIST: the name exists.
    /// - EACCES: the owner cannot change the directory.
    fn create_as(&self, flags: usize, mode: u32, owner: Owner) -> Result<Fd> {
        let (fd, path) = self.top.at(&self.path);
        let bits = flags | O_CREAT | O_EXCL | O_CLOEXEC | usize::from(permissions(mode));
        match calls::make_as(fd, &path, bits, owner) {
            Err(error) if error.errno == EPIPE => {
                // Whatever has the free name now, the maker made it before its end.
                let kind = if flags & O_DIRECTORY == 0 { 0 } else { AT_REMOVEDIR };
                match self.remove(kind) {
                    Err(error) if error.errno != ENOENT => Err(error),
                    _ => Err(Error::new(EACCES)),
                }
            }
            made => made,
        }
    }

    /// Checks that the name is free.
    ///
    /// # Errors
    ///
    /// - EEXIST: it is not.
    fn check_absent(&self) -> Result<()> {
        match self.open(ITSELF) {
            Ok(_) => Err(Error::new(EEXIST)),
            Err(error) if error.errno == ENOENT => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes the entry.
    fn remove(&self, flags: usize) -> Result<()> {
        let (fd, path) = self.top.at(&self.path);
        calls::unlink_at(fd, &path, flags)
    }

    /// Returns the path in the form of `frename` and `flink`: from the root of the system. The
    /// kernel drops the scheme and resolves nothing.
    fn absolute(&self) -> String {
        format!("{}/{}", self.top.path, self.path)
    }
}

impl Layer for RedoxLayer {
    type Dir = Dir;
    type File = File;

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            exchange: false,
            dirs_follow_rename: false,
            whole_objects: false,
            xattrs: false,
            sparse: false,
            write_through: false,
            // redoxfs never overwrites a tree. So the disk has the complete state of one moment.
            ordered: true,
            owner_records: false,
            shared: false,
        }
    }

    fn root(&self) -> Result<Dir> {
        Ok(Dir { top: self.top.clone(), path: String::new() })
    }

    fn below(&self, dir: &Dir, _: &Path, for_writing: bool) -> Result<Self> {
        let Top { root, path, .. } = &*dir.top;
        let join = |above: &str| if dir.path.is_empty() { above.to_owned() } else { format!("{above}/{}", dir.path) };
        let root = root.as_ref().map(|(root, inside)| (root.clone(), join(inside)));
        let fd = Far(dir.top.open_at(&dir.path, ITSELF | O_DIRECTORY)?);
        Ok(RedoxLayer {
            top: Arc::new(Top { fd, root, path: join(path) }),
            dev: self.dev,
            name_max: self.name_max,
            own: self.own,
            writable: for_writing,
            held: Mutex::new(None),
            kept: Kept::default(),
        })
    }

    /// Locks the layer.
    ///
    /// # Errors
    ///
    /// - EWOULDBLOCK: another daemon holds the lock.
    /// - EOPNOTSUPP: the scheme has no locks.
    fn hold(&self) -> Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_some() {
            return Ok(());
        }
        let fd = self.top.open_at("", ITSELF | O_DIRECTORY)?;
        // This lock belongs to the process, not to the descriptor. The kernel tells the scheme to
        // drop that kind when the descriptor is closed, also by the death of the process. The lock
        // excludes only other processes, and each daemon is one.
        //
        // In redoxfs all files share one lock table (redox-scheme 0.11), and a lock of one byte
        // excludes nothing. So each layer has two bytes of its own, far behind the bytes that
        // programs lock.
        let place = HELD_FROM + 2 * (fd.stat()?.st_ino % (HELD_FROM / 2));
        let lock = StdFsCallMeta::new(StdFsCallKind::Lock, place, 2 | EXCLUSIVE);
        libredox::call::call_rw(fd.raw(), &mut [], CallFlags::STD_FS, &lock)?;
        *held = Some(fd);
        Ok(())
    }

    fn hold_by(&self, _dir: &Dir, _name: &OsStr) -> Result<()> {
        Err(Error::new(EOPNOTSUPP))
    }

    fn release(&self) -> Result<()> {
        // The lock ends with its descriptor.
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(())
    }

    fn stat_fs(&self) -> Result<StatFs> {
        let found = match self.top.fd.call().statvfs() {
            Ok(found) => found,
            // A scheme that cannot tell takes no changes either.
            Err(error) if error.errno() == EOPNOTSUPP => {
                return Ok(StatFs { name_max: self.name_max, ..StatFs::default() });
            }
            Err(error) => return Err(error.into()),
        };
        Ok(StatFs {
            block_size: u32::try_from(found.f_bsize).map_err(|_| Error::new(EOVERFLOW))?,
            blocks: found.f_blocks,
            blocks_free: found.f_bfree,
            blocks_available: found.f_bavail,
            files: found.f_files,
            files_free: found.f_ffree,
            name_max: self.name_max,
        })
    }

    fn open_dir(&self, dir: &Dir, name: &OsStr) -> Result<Dir> {
        // The first use shows whether it exists: a path is no descriptor.
        Ok(Dir { top: dir.top.clone(), path: dir.entry(name)?.path })
    }

    fn list(&self, dir: &Dir, each: &mut dyn FnMut(DirEntry<'_>)) -> Result<()> {
        turn::pass();
        // redoxfs takes the listing when it opens the directory, and only for reading.
        let fd = dir.top.open_at(&dir.path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)?;
        let mut buffer = vec![0; LIST_BUFFER];
        let mut after = 0;
        loop {
            let filled = match libredox::call::getdents(fd.raw(), &mut buffer, after) {
                // ramfs needs space for all remaining entries.
                Err(error) if error.errno() == EINVAL && buffer.len() < LIST_BUFFER_MAX => {
                    buffer.resize(buffer.len() * 4, 0);
                    continue;
                }
                filled => filled?,
            };
            let mut records = buffer.get(..filled).ok_or(Error::new(EIO))?;
            if records.is_empty() {
                return Ok(());
            }
            while !records.is_empty() {
                let (header, name) = take_record(&mut records)?;
                after = header.next_opaque_id;
                if matches!(name.as_bytes(), b"." | b"..") {
                    continue;
                }
                let kind = match kind_of_entry(&header) {
                    Some(kind) => kind,
                    None => match self.stat(Object::Entry(dir, name)) {
                        Ok(stat) => stat.kind,
                        Err(error) if error.errno == ENOENT => continue,
                        Err(error) => return Err(error),
                    },
                };
                each(DirEntry { name, ino: header.inode, kind });
            }
        }
    }

    fn stat(&self, object: Object<'_, Self>) -> Result<Stat> {
        self.on(object, |fd| stat_of(&fd.stat()?, self.dev))
    }

    fn set_owner(&self, object: Object<'_, Self>, owner: Owner) -> Result<()> {
        self.change(object, |fd| Ok(fd.chown(owner.uid, owner.gid)?))
    }

    fn set_mode(&self, object: Object<'_, Self>, mode: u32) -> Result<()> {
        self.change(object, |fd| {
            // redoxfs would change the mode of a symlink.
            if matches!(object, Object::Entry(..)) && kind_of(mode_bits(&fd.stat()?))? == Kind::Symlink {
                return Err(Error::new(EOPNOTSUPP));
            }
            Ok(fd.chmod(permissions(mode))?)
        })
    }

    fn set_times(&self, object: Object<'_, Self>, atime: Time, mtime: Time) -> Result<()> {
        let times = [atime, mtime].map(|time| TimeSpec { tv_sec: time.sec, tv_nsec: time.nsec.into() });
        self.change(object, |fd| Ok(libredox::call::futimens(fd.raw(), &times)?))
    }

    fn birth(&self, _: Object<'_, Self>) -> Result<Option<Time>> {
        Ok(None)
    }

    /// Returns EOPNOTSUPP, as the three methods below do: Redox has no extended attributes.
    fn xattr(&self, _: Object<'_, Self>, _: &OsStr) -> Result<Vec<u8>> {
        Err(Error::new(EOPNOTSUPP))
    }

    fn set_xattr(&self, _: Object<'_, Self>, _: &OsStr, _: &[u8], _: XattrMode) -> Result<()> {
        Err(Error::new(EOPNOTSUPP))
    }

    fn remove_xattr(&self, _: Object<'_, Self>, _: &OsStr) -> Result<()> {
        Err(Error::new(EOPNOTSUPP))
    }

    fn xattrs(&self, _: Object<'_, Self>) -> Result<Vec<OsString>> {
        Err(Error::new(EOPNOTSUPP))
    }

    /// Returns EOPNOTSUPP, as the method below does: Redox has no such flags.
    fn flags(&self, _: Object<'_, Self>) -> Result<u32> {
        Err(Error::new(EOPNOTSUPP))
    }

    fn set_flags(&self, _: Object<'_, Self>, _: u32) -> Result<()> {
        Err(Error::new(EOPNOTSUPP))
    }

    fn open_file(&self, dir: &Dir, name: &OsStr, access: Access) -> Result<File> {
        let (place, flags) = match access {
            Access::Read => (dir.entry(name)?, O_RDONLY),
            Access::ReadWrite | Access::Append => (self.changing(dir, name)?, O_RDWR),
            Access::Attributes => return Err(Error::new(EOPNOTSUPP)),
        };
        Ok(File::of(place.open(flags | O_NOFOLLOW)?))
    }

    fn may_set_attributes(&self, file: &File) -> bool {
        file.is_own
    }

    fn identity(&self) -> Owner {
        self.own
    }

    /// True for the daemon's own ids: the scheme makes the caller the owner.
    fn creates_as(&self, owner: Owner) -> bool {
        owner == self.own
    }

    fn tries_to_create_as(&self, owner: Owner) -> bool {
        owner == self.own || calls::can_make_as()
    }

    fn create_file(&self, dir: &Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<File> {
        let place = self.changing(dir, name)?;
        if owner == self.own {
            return Ok(File::of(place.create(O_RDWR, mode)?));
        }
        Ok(File { is_own: false, ..File::of(place.create_as(O_RDWR, mode, owner)?) })
    }

    fn create_dir(&self, dir: &Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<Option<Stat>> {
        let place = self.changing(dir, name)?;
        if owner == self.own {
            place.create(O_DIRECTORY, mode)?;
        } else {
            place.create_as(O_DIRECTORY, mode, owner)?;
        }
        Ok(None)
    }

    /// Redox has no single step for this: a crash in between leaves a symlink with an empty target.
    fn create_symlink(&self, dir: &Dir, name: &OsStr, target: &OsStr, _owner: Owner) -> Result<Option<Stat>> {
        let link = File::of(self.changing(dir, name)?.create(O_SYMLINK | O_WRONLY, 0o777)?);
        let written = write_all(self, &link, target.as_bytes(), 0);
        written.or_else(|error| self.unlink(dir, name).and(Err(error)))?;
        Ok(None)
    }

    /// Makes a socket from its descriptor, which redoxfs must receive (`FileScheme::on_sendfd`).
    /// redoxfs takes the name from the end of the socket's path. For another name, the method makes
    /// the socket in a directory of its own and renames it.
    ///
    /// # Errors
    ///
    /// - EOPNOTSUPP: `kind` is another one, or there is no descriptor. openat, the only other call
    ///   that creates objects, makes regular files, directories and symlinks. The results of
    ///   relibc's mkfifo and mknod are regular files.
    fn create_node(&self, dir: &Dir, name: &OsStr, kind: Kind, mode: u32, rdev: u64, _: Owner) -> Result<Option<Stat>> {
        self.check_writable()?;
        let number = usize::try_from(rdev).ok().filter(|number| kind == Kind::Socket && *number != 0);
        let socket = number.ok_or(Error::new(EOPNOTSUPP))?;
        self.changing(dir, name)?.check_absent()?;
        let mut path = [0; PATH_MAX];
        let length = libredox::call::fpath(socket, &mut path)?;
        let own = path[..length].rsplit(|byte| *byte == b'/').next().map(OsStr::from_bytes).unwrap_or_default();
        if own == name {
            dir.send(socket)?;
        } else {
            let mut shelter = name.to_owned();
            shelter.push(".d");
            self.create_dir(dir, &shelter, 0o700, self.own)?;
            let sheltered = self.open_dir(dir, &shelter)?;
            let made = sheltered.send(socket).and_then(|()| {
                let renamed = self.rename(&sheltered, own, dir, name, RenameMode::NoReplace);
                renamed.or_else(|error| self.unlink(&sheltered, own).and(Err(error)))
            });
            self.remove_dir(dir, &shelter).and(made)?;
        }
        if permissions(mode) != SOCKET_MODE {
            self.set_mode(Object::Entry(dir, name), mode)?;
        }
        Ok(None)
    }

    fn read_link(&self, dir: &Dir, name: &OsStr) -> Result<OsString> {
        let link = File::of(dir.entry(name)?.open(O_RDONLY | O_SYMLINK)?);
        let mut target = vec![0; PATH_MAX];
        let length = self.read_at(&link, &mut target, 0)?;
        target.truncate(length);
        Ok(OsString::from_vec(target))
    }

    fn link(&self, object: Object<'_, Self>, new_dir: &Dir, new_name: &OsStr) -> Result<()> {
        let opened;
        let object = match object {
            Object::Dir(_) => return Err(Error::new(EPERM)),
            Object::Entry(dir, name) => {
                opened = self.changing(dir, name)?.open(ITSELF)?;
                &opened
            }
            Object::File(file) => file.far.call(),
        };
        let new = self.changing(new_dir, new_name)?;
        // redoxfs does not check whether the name exists.
        new.check_absent()?;
        calls::link(object, &new.absolute())
    }

    fn unlink(&self, dir: &Dir, name: &OsStr) -> Result<()> {
        self.changing(dir, name)?.remove(0)
    }

    fn remove_dir(&self, dir: &Dir, name: &OsStr) -> Result<()> {
        self.changing(dir, name)?.remove(AT_REMOVEDIR)
    }

    fn rename(&self, dir: &Dir, name: &OsStr, new_dir: &Dir, new_name: &OsStr, mode: RenameMode) -> Result<()> {
        let kept = self.kept.get(&dir.entry(name)?.absolute());
        let old = self.changing(dir, name)?;
        let object = kept.map_or_else(|| old.open(ITSELF).map(|fd| Arc::new(Far(fd))), Ok)?;
        let new = self.changing(new_dir, new_name)?;
        match mode {
            RenameMode::Replace => {}
            // Redox has no such rename. A check before it is as good. Only this overlay changes the
            // layer, and meanwhile the engine does nothing else to the new name.
            RenameMode::NoReplace => new.check_absent()?,
            RenameMode::Exchange | RenameMode::Whiteout => return Err(Error::new(EINVAL)),
        }
        calls::rename(object.call(), &new.absolute())?;
        // redoxfs would look for it in its old directory.
        if Arc::ptr_eq(&dir.top, &new_dir.top) && dir.path == new_dir.path {
            self.kept.set(new.absolute(), object);
        }
        Ok(())
    }

    fn rename_file(
        &self,
        file: &File,
        (dir, name): (&Dir, &OsStr),
        (new_dir, new_name): (&Dir, &OsStr),
        mode: RenameMode,
    ) -> Result<()> {
        match mode {
            RenameMode::Replace | RenameMode::NoReplace => {
                calls::rename(file.far.call(), &self.changing(new_dir, new_name)?.absolute())
            }
            RenameMode::Exchange | RenameMode::Whiteout => self.rename(dir, name, new_dir, new_name, mode),
        }
    }

    /// redoxfs updates the access time when the file is read, at most once an hour.
    fn read_at(&self, file: &File, buf: &mut [u8], offset: u64) -> Result<usize> {
        calls::read_at(file.far.call(), buf, file_offset(offset)?)
    }

    fn write_at(&self, file: &File, buf: &[u8], offset: u64) -> Result<usize> {
        match calls::write_at(file.far.call(), buf, file_offset(offset)?)? {
            0 if !buf.is_empty() => Err(Error::new(EIO)),
            written => Ok(written),
        }
    }

    fn truncate(&self, file: &File, size: u64) -> Result<()> {
        let size = usize::try_from(file_offset(size)?).map_err(|_| Error::new(EFBIG))?;
        Ok(libredox::call::ftruncate(file.far.call().raw(), size)?)
    }

    fn sync(&self, file: &File) -> Result<()> {
        Ok(file.far.call().fsync()?)
    }

    fn sync_dir(&self, dir: &Dir) -> Result<()> {
        self.on(Object::Dir(dir), sync_dir)
    }

    fn next_data(&self, file: &File, from: u64) -> Result<Option<Range<u64>>> {
        let size = file.far.call().stat()?.st_size.cast_unsigned();
        Ok((from < size).then_some(from..size))
    }

    fn copy_range(&self, from: &File, range: Range<u64>, to: &File, offset: u64) -> Result<u64> {
        turn::pass();
        copy_through_memory(self, from, range, to, offset)
    }

    /// Returns EOPNOTSUPP: redoxfs has no such request.
    fn write_through(&self, _file: &File, _buf: &[u8], _offset: u64) -> Result<()> {
        Err(Error::new(EOPNOTSUPP))
    }

    fn share_data(&self, _from: &File, _to: &File) -> Result<()> {
        Err(Error::new(EOPNOTSUPP))
    }

    fn path(&self) -> Option<&Path> {
        Some(Path::new(&self.top.path))
    }

    fn epoch(&self) -> Option<u128> {
        None
    }

    fn allocate(&self, _: &File, _: Allocation, _: Range<u64>) -> Result<()> {
        Err(Error::new(EOPNOTSUPP))
    }

    fn sync_all(&self) -> Result<()> {
        sync_dir(self.top.fd.call())
    }
}

/// Opens a directory by its path from the root of the system, for its attributes.
fn open(path: &str) -> Result<Fd> {
    Ok(Fd::open(path, flag_bits(O_STAT | O_DIRECTORY | O_CLOEXEC), 0)?)
}

/// Syncs an open directory to the disk.
fn sync_dir(fd: &Fd) -> Result<()> {
    match fd.fsync() {
        // redoxfs refuses that for a directory: each change was on the disk before redoxfs
        // returned.
        Err(error) if matches!(error.errno(), EBADF | EOPNOTSUPP) => Ok(()),
        result => Ok(result?),
    }
}

/// Returns the text of a path or name.
///
/// # Errors
///
/// - EINVAL: it is not UTF-8, as all names on Redox are.
fn text(path: &OsStr) -> Result<&str> {
    path.to_str().ok_or(Error::new(EINVAL))
}

/// Converts a user or group id.
fn id(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(|_| Error::new(EOVERFLOW))
}

/// Returns the bits of a mode that can be set.
fn permissions(mode: u32) -> u16 {
    mode as u16 & MODE_PERM
}

/// Converts the flags of an open for `libredox`.
fn flag_bits(flags: usize) -> libc::c_int {
    flags as libc::c_int
}

/// Returns the mode that relibc returned: type and permissions. Its type is signed on Redox.
fn mode_bits(found: &libredox::data::Stat) -> u16 {
    i64::from(found.st_mode) as u16
}

/// Converts an offset for libc.
///
/// # Errors
///
/// - EFBIG: it is too large.
fn file_offset(offset: u64) -> Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| Error::new(EFBIG))
}

/// Returns the maximum length of a name in a filesystem, in bytes.
fn name_max(found: &libredox::data::StatVfs) -> u32 {
    match u32::try_from(found.f_namemax) {
        Ok(0) | Err(_) => NAME_MAX,
        Ok(length) => length,
    }
}

/// Returns the kind in a mode.
///
/// # Errors
///
/// - EIO: there is none.
fn kind_of(mode: u16) -> Result<Kind> {
    match mode & MODE_TYPE {
        MODE_FILE => Ok(Kind::File),
        MODE_DIR => Ok(Kind::Dir),
        MODE_SYMLINK => Ok(Kind::Symlink),
        MODE_FIFO => Ok(Kind::Fifo),
        MODE_SOCK => Ok(Kind::Socket),
        MODE_CHR => Ok(Kind::CharDev),
        MODE_BLOCK => Ok(Kind::BlockDev),
        _ => Err(Error::new(EIO)),
    }
}

/// Returns the kind in an entry of a listing, if it has one.
fn kind_of_entry(header: &DirentHeader) -> Option<Kind> {
    match DirentKind::try_from_raw(header.kind)? {
        DirentKind::Regular => Some(Kind::File),
        DirentKind::Directory => Some(Kind::Dir),
        DirentKind::Symlink => Some(Kind::Symlink),
        DirentKind::Socket => Some(Kind::Socket),
        DirentKind::CharDev => Some(Kind::CharDev),
        DirentKind::BlockDev => Some(Kind::BlockDev),
        DirentKind::Unspecified => None,
    }
}

/// Takes the first record off the result of getdents: its header and its name.
///
/// # Errors
///
/// - EIO: the record is incomplete.
fn take_record<'a>(records: &mut &'a [u8]) -> Result<(DirentHeader, &'a OsStr)> {
    const HEADER: usize = size_of::<DirentHeader>();
    let mut header = DirentHeader::default();
    header.copy_from_slice(records.get(..HEADER).ok_or(Error::new(EIO))?);
    let (record, rest) = records.split_at_checked(header.record_len.into()).ok_or(Error::new(EIO))?;
    // The name is padded with at least one zero.
    let name = record.get(HEADER..).and_then(|padded| padded.split(|byte| *byte == 0).next()).ok_or(Error::new(EIO))?;
    *records = rest;
    Ok((header, OsStr::from_bytes(name)))
}

fn stat_of(found: &libredox::data::Stat, dev: u64) -> Result<Stat> {
    let mode = mode_bits(found);
    let time = |sec, nsec| Time { sec, nsec: u32::try_from(nsec).unwrap_or(0) };
    Ok(Stat {
        dev,
        ino: found.st_ino,
        kind: kind_of(mode)?,
        mode: (mode & MODE_PERM).into(),
        nlink: u32::try_from(found.st_nlink).unwrap_or(u32::MAX),
        uid: found.st_uid,
        gid: found.st_gid,
        rdev: found.st_rdev,
        size: found.st_size.cast_unsigned(),
        blksize: u32::try_from(found.st_blksize).unwrap_or(u32::MAX),
        blocks: found.st_blocks.cast_unsigned(),
        atime: time(found.st_atime, found.st_atime_nsec),
        mtime: time(found.st_mtime, found.st_mtime_nsec),
        ctime: time(found.st_ctime, found.st_ctime_nsec),
        fixed: Fixed::default(),
        generation: 0,
    })
}
