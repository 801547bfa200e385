//! A layer: one directory tree that the overlay stacks, behind one small trait.
//!
//! Of all that the engine is made of, only this folder reaches the filesystems of the system.
//! [`linux`] reaches a layer with the `*at` calls, [`redox`] with the calls of the Redox kernel
//! that are relative to a descriptor, and [`counted`] wraps another backend and counts. The engine
//! sees only [`Layer`].
//!
//! Every method is one *backing call*: the unit in which the overlay's cost is counted and after
//! which a crash may come. So a method makes one change of the tree, and none repeats a change
//! behind the engine's back. What a new object still lacks may follow in further system calls: the
//! target or the mode, where the layer has no [`Capabilities::whole_objects`], so that the engine
//! builds such objects in the work directory; and on Linux the owner and the mode, where a default
//! ACL or the group of its directory has given it others.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::Path;

use crate::errno::EIO;
pub use crate::errno::{Error, Result};

pub mod acl;
pub mod counted;
#[cfg(target_os = "linux")]
pub mod linux;
#[cfg(feature = "scheme")]
pub mod redox;

/// The backend of the operating system that this build runs on.
#[cfg(target_os = "linux")]
pub use linux::LinuxLayer as OsLayer;
#[cfg(target_os = "redox")]
pub use redox::RedoxLayer as OsLayer;

/// The unit of [`Layer::write_through`], in bytes.
pub const THROUGH: u64 = 4096;

/// What an object of a filesystem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDev,
    /// A block device.
    BlockDev,
}

/// A point in time since 1970: whole seconds, and nanoseconds in `0..1_000_000_000`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds; negative before 1970.
    pub sec: i64,
    /// Nanoseconds behind these seconds.
    pub nsec: u32,
}

/// What forbids changes of an object, whoever makes them (chattr(1)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// Nothing changes.
    pub immutable: bool,
    /// A file grows at its end alone; of a directory no entry goes.
    pub append: bool,
}

impl Fixed {
    /// Whether attributes and names may not change.
    pub fn is_any(self) -> bool {
        self.immutable || self.append
    }
}

/// What is known of an object without reading its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The filesystem that holds the object; two layers on one filesystem answer the same number.
    pub dev: u64,
    /// The inode number in that filesystem.
    pub ino: u64,
    /// File, directory, or another kind.
    pub kind: Kind,
    /// Permission bits, set-id and sticky: `0o7777` at most, no type bits.
    pub mode: u32,
    /// The number of names.
    pub nlink: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The device that a device node names, encoded as the system does.
    pub rdev: u64,
    /// Bytes; of a symlink, the length of its target.
    pub size: u64,
    /// The preferred size of a request, in bytes.
    pub blksize: u32,
    /// Space taken, in units of 512 bytes.
    pub blocks: u64,
    /// The last access.
    pub atime: Time,
    /// The last change of the content.
    pub mtime: Time,
    /// The last change of content or attributes.
    pub ctime: Time,
    /// What forbids changes.
    pub fixed: Fixed,
}

#[cfg(test)]
impl Stat {
    /// An empty object, for tests.
    pub(crate) fn example(kind: Kind, mode: u32, uid: u32, gid: u32) -> Self {
        Stat {
            dev: 0,
            ino: 1,
            kind,
            mode,
            nlink: 1,
            uid,
            gid,
            rdev: 0,
            size: 0,
            blksize: 4096,
            blocks: 0,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            fixed: Fixed::default(),
        }
    }
}

/// Space and names of the filesystem below a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// The unit of the three counts of blocks, in bytes.
    pub block_size: u32,
    /// All blocks.
    pub blocks: u64,
    /// Blocks that are free.
    pub blocks_free: u64,
    /// Blocks that are free for ordinary users.
    pub blocks_available: u64,
    /// All inodes.
    pub files: u64,
    /// Inodes that are free.
    pub files_free: u64,
    /// The longest name that an entry can have, in bytes.
    pub name_max: u32,
}

impl StatFs {
    /// How many bytes there are in all.
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size.into())
    }

    /// How many bytes an ordinary user can still write. A filesystem that does not count them has
    /// bytes without end.
    pub fn bytes_available(&self) -> u64 {
        if self.blocks == 0 { u64::MAX } else { self.blocks_available.saturating_mul(self.block_size.into()) }
    }
}

/// Who owns an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// One entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Its name.
    pub name: &'a OsStr,
    /// The inode number of its object.
    pub ino: u64,
    /// The kind of its object.
    pub kind: Kind,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading. Access times are left alone where the system lets us.
    Read,
    /// For reading and writing.
    ReadWrite,
    /// For reading, and for writing at the end alone: all that an append-only file allows.
    Append,
}

impl Access {
    /// Whether what is opened so can be used for `wanted`.
    pub fn allows(self, wanted: Access) -> bool {
        self == Access::ReadWrite || wanted == Access::Read || wanted == self
    }
}

/// What a rename does when the new name exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it, as rename(2) does.
    Replace,
    /// Answer EEXIST.
    NoReplace,
    /// Swap the two; ENOENT if one is missing.
    Exchange,
    /// Replace it, and leave a character device with the number 0 at the old name.
    Whiteout,
}

/// What setting an extended attribute does when it exists or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace it.
    Set,
    /// Answer EEXIST if it exists.
    Create,
    /// Answer ENODATA if it does not exist.
    Replace,
}

/// What becomes of a range of a file, as fallocate(2) has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Space is taken for what has none; the content stays. Else the size grows to the end of the
    /// range.
    Reserve {
        /// The size stays.
        keep_size: bool,
    },
    /// The content becomes a hole; the size stays.
    PunchHole,
    /// The content becomes zeros. The size grows to the end of the range unless it is to be kept.
    Zero {
        /// The size stays.
        keep_size: bool,
    },
    /// The range is taken out, and what follows moves down.
    Collapse,
    /// A hole of the range's length is put in, and what follows moves up.
    Insert,
    /// Blocks that other files share become the file's own.
    Unshare,
}

/// The extended attribute with the capabilities of a program. Every write removes it.
pub const CAPABILITY: &str = "security.capability";

/// The object that an attribute is read from or set on.
pub enum Object<'a, L: Layer> {
    /// A directory that is open.
    Dir(&'a L::Dir),
    /// An entry of a directory; symlinks are not followed.
    Entry(&'a L::Dir, &'a OsStr),
    /// An open file, which may have no name any more.
    File(&'a L::File),
}

impl<L: Layer> Clone for Object<'_, L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L: Layer> Copy for Object<'_, L> {}

/// What a backend can do beyond the least, asked for once at mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// [`RenameMode::Exchange`] works.
    pub exchange: bool,
    /// A [`Layer::Dir`] names the same directory after it, or one above it, was renamed. Where it
    /// does not, it names whatever has the old path then.
    pub dirs_follow_rename: bool,
    /// A symlink has its target, and a socket its mode, from the moment it exists.
    pub whole_objects: bool,
    /// Objects have extended attributes.
    pub xattrs: bool,
    /// What was never written of a file takes no space and no time.
    pub sparse: bool,
    /// [`Layer::write_through`] works.
    pub write_through: bool,
    /// After the system went down no change of a name is there without those that were made before
    /// it.
    pub ordered: bool,
}

/// What is in a directory of a layer.
pub fn entries<L: Layer>(layer: &L, dir: &L::Dir) -> Result<Vec<(OsString, Kind)>> {
    let mut entries = Vec::new();
    layer.list(dir, &mut |entry| entries.push((entry.name.to_owned(), entry.kind)))?;
    Ok(entries)
}

/// Removes an entry of a directory of a layer, with all that is in it. It is for what overlays
/// make, which is not deep.
pub fn remove_all<L: Layer>(layer: &L, dir: &L::Dir, name: &OsStr, kind: Kind) -> Result<()> {
    if kind != Kind::Dir {
        return layer.unlink(dir, name);
    }
    let open = layer.open_dir(dir, name)?;
    entries(layer, &open)?.iter().try_for_each(|(name, kind)| remove_all(layer, &open, name, *kind))?;
    layer.remove_dir(dir, name)
}

/// Writes all of `bytes` at `offset`, in as many calls as the layer takes.
///
/// # Errors
/// Those of [`Layer::write_at`].
/// - EIO: the layer writes nothing.
pub fn write_all<L: Layer>(layer: &L, file: &L::File, bytes: &[u8], offset: u64) -> Result<()> {
    write_all_with(bytes, offset, |bytes, offset| layer.write_at(file, bytes, offset))
}

/// Calls `write` with the rest of `bytes` and its offset, until all is written.
///
/// # Errors
/// Those of `write`.
/// - EIO: `write` writes nothing, or more than it got.
pub fn write_all_with(
    mut bytes: &[u8],
    mut offset: u64,
    mut write: impl FnMut(&[u8], u64) -> Result<usize>,
) -> Result<()> {
    while !bytes.is_empty() {
        let written = write(bytes, offset)?;
        bytes = bytes.get(written..).filter(|_| written > 0).ok_or(Error::new(EIO))?;
        offset += written as u64;
    }
    Ok(())
}

/// Has `change` change the entries of a directory, and sets its times back.
///
/// # Errors
/// Those of `change`, of [`Layer::stat`] and of [`Layer::set_times`].
pub fn keeping_times<L: Layer>(layer: &L, dir: &L::Dir, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = layer.stat(Object::Dir(dir))?;
    change()?;
    layer.set_times(Object::Dir(dir), before.atime, before.mtime)
}

/// One directory tree. All names are single components: never empty, `.`, `..`, and without `/`. No
/// method follows a symlink, and none crosses to another mounted filesystem: a directory on which
/// something is mounted shows what it held before.
///
/// A layer that another process serves passes the turn on (`crate::turn`) before it waits for
/// that process.
///
/// Errors are errnos of the system; those that a caller must expect beyond the usual (EIO, ENOMEM,
/// EMFILE, ENOSPC, EDQUOT, EROFS, ENAMETOOLONG, ENOENT for a missing name) are said at each method.
pub trait Layer: Send + Sync + Sized + 'static {
    /// A directory of the layer, as the backend names it: a descriptor, or a path where descriptors
    /// do not last.
    type Dir: Send + Sync + 'static;
    /// An open regular file.
    type File: Send + Sync + 'static;

    /// What this layer can do.
    fn capabilities(&self) -> Capabilities;

    /// Where the layer was opened, to tell people. None where nobody knows.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// The top directory.
    fn root(&self) -> Result<Self::Dir>;

    /// Keeps every other daemon, also in other processes, from holding this layer until the layer
    /// is dropped or [released](Layer::release). EWOULDBLOCK if one does; EOPNOTSUPP where the
    /// filesystem keeps no locks.
    fn hold(&self) -> Result<()>;

    /// Lets others hold the layer. Without effect if it is not held.
    fn release(&self) -> Result<()>;

    /// Space left and limits.
    fn stat_fs(&self) -> Result<StatFs>;

    /// Opens the directory `name`. ENOTDIR if it is something else, and ENOENT if there is nothing;
    /// a backend to which directories are paths may say so only when it is used.
    fn open_dir(&self, dir: &Self::Dir, name: &OsStr) -> Result<Self::Dir>;

    /// Calls `each` for every entry but `.` and `..`, in no order.
    fn list(&self, dir: &Self::Dir, each: &mut dyn FnMut(DirEntry<'_>)) -> Result<()>;

    /// Attributes.
    fn stat(&self, object: Object<'_, Self>) -> Result<Stat>;

    /// Sets the owner and the group.
    fn set_owner(&self, object: Object<'_, Self>, owner: Owner) -> Result<()>;

    /// Sets the permission, set-id and sticky bits. EOPNOTSUPP on a symlink.
    fn set_mode(&self, object: Object<'_, Self>, mode: u32) -> Result<()>;

    /// Sets the times of last access and last change.
    fn set_times(&self, object: Object<'_, Self>, atime: Time, mtime: Time) -> Result<()>;

    /// When the object was created, where the filesystem knows.
    fn birth(&self, object: Object<'_, Self>) -> Result<Option<Time>>;

    /// The value of an extended attribute. ENODATA if there is none of that name; EOPNOTSUPP where
    /// the layer has none; so for the three below.
    fn xattr(&self, object: Object<'_, Self>, name: &OsStr) -> Result<Vec<u8>>;

    /// Sets an extended attribute. EEXIST and ENODATA as [`XattrMode`] says; EPERM, ERANGE, E2BIG.
    fn set_xattr(&self, object: Object<'_, Self>, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()>;

    /// Removes an extended attribute.
    fn remove_xattr(&self, object: Object<'_, Self>, name: &OsStr) -> Result<()>;

    /// The names of the extended attributes that the daemon may see.
    fn xattrs(&self, object: Object<'_, Self>) -> Result<Vec<OsString>>;

    /// The flags of a regular file or a directory that chattr(1) sets, as `FS_IOC_GETFLAGS` has
    /// them. EOPNOTSUPP where the layer has none.
    fn flags(&self, object: Object<'_, Self>) -> Result<u32>;

    /// Sets the flags. EPERM; EOPNOTSUPP for one that the layer does not have.
    fn set_flags(&self, object: Object<'_, Self>, flags: u32) -> Result<()>;

    /// Opens a regular file.
    fn open_file(&self, dir: &Self::Dir, name: &OsStr, access: Access) -> Result<Self::File>;

    /// The ids that the daemon itself works with.
    fn identity(&self) -> Owner;

    /// Whether the `create_*` methods can give a new object this owner in the same step.
    fn creates_as(&self, owner: Owner) -> bool;

    /// Creates a regular file that did not exist, open for reading and writing. EEXIST. The owner
    /// must be [`Layer::identity`] or one for which [`Layer::creates_as`] is true; so for the three
    /// below.
    fn create_file(&self, dir: &Self::Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<Self::File>;

    /// Creates a directory. EEXIST.
    fn create_dir(&self, dir: &Self::Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<()>;

    /// Creates a symlink. EEXIST.
    fn create_symlink(&self, dir: &Self::Dir, name: &OsStr, target: &OsStr, owner: Owner) -> Result<()>;

    /// Creates a FIFO, a socket or a device node. `rdev` is the number of the device; of a socket
    /// that of a descriptor of it in this process, where there is one, since some layers make a
    /// socket in no other way (else 0). EEXIST; EOPNOTSUPP or EPERM where the layer cannot hold
    /// one.
    fn create_node(&self, dir: &Self::Dir, name: &OsStr, kind: Kind, mode: u32, rdev: u64, owner: Owner) -> Result<()>;

    /// The target of a symlink. EINVAL if it is something else.
    fn read_link(&self, dir: &Self::Dir, name: &OsStr) -> Result<OsString>;

    /// Gives the object a further name. EEXIST, EMLINK; EPERM for a directory; ENOENT for an open
    /// file that has no name, or where the system does not let one be named by its descriptor;
    /// EOPNOTSUPP where the layer has no links.
    fn link(&self, object: Object<'_, Self>, new_dir: &Self::Dir, new_name: &OsStr) -> Result<()>;

    /// Removes a name that is not a directory's. EISDIR.
    fn unlink(&self, dir: &Self::Dir, name: &OsStr) -> Result<()>;

    /// Removes an empty directory. ENOTEMPTY, ENOTDIR.
    fn remove_dir(&self, dir: &Self::Dir, name: &OsStr) -> Result<()>;

    /// Renames in one step. As rename(2); EINVAL for a mode that the layer lacks.
    fn rename(
        &self,
        dir: &Self::Dir,
        name: &OsStr,
        new_dir: &Self::Dir,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<()>;

    /// As [`Layer::rename`], of an object that is open as `file`, by a caller who knows whether the
    /// new name is free: a layer that would have to look up either of the two does not.
    fn rename_file(
        &self,
        _file: &Self::File,
        (dir, name): (&Self::Dir, &OsStr),
        (new_dir, new_name): (&Self::Dir, &OsStr),
        mode: RenameMode,
    ) -> Result<()> {
        self.rename(dir, name, new_dir, new_name, mode)
    }

    /// Reads at `offset`; fewer bytes than asked only at the end of the file.
    fn read_at(&self, file: &Self::File, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// Writes at `offset` and answers how many bytes were taken, at least 1 of a buffer that is not
    /// empty.
    fn write_at(&self, file: &Self::File, buf: &[u8], offset: u64) -> Result<usize>;

    /// Writes all of `buf` at `offset` so that no crash of the system leaves the file without it
    /// under a name that it gets from now on. The size may grow to the next multiple of
    /// [`THROUGH`], of which `offset` must be one. EOPNOTSUPP where only [`Layer::sync`] can do
    /// that.
    fn write_through(&self, file: &Self::File, buf: &[u8], offset: u64) -> Result<()>;

    /// Sets the size. EFBIG.
    fn truncate(&self, file: &Self::File, size: u64) -> Result<()>;

    /// Brings a file's data and attributes to the disk.
    fn sync(&self, file: &Self::File) -> Result<()>;

    /// Brings a directory's entries to the disk.
    fn sync_dir(&self, dir: &Self::Dir) -> Result<()>;

    /// The first range of data at or after `from`; None when only a hole follows. A layer that
    /// knows no holes answers everything up to the end.
    fn next_data(&self, file: &Self::File, from: u64) -> Result<Option<Range<u64>>>;

    /// Copies `range` of `from` to `offset` of `to`, a file of `self` while `from` may be of
    /// another layer of the same backend. Stops early, without an error, at the end of `from`;
    /// answers how many bytes were copied. The two may share space afterwards.
    fn copy_range(&self, from: &Self::File, range: Range<u64>, to: &Self::File, offset: u64) -> Result<u64>;

    /// Makes `to`, an empty file of `self`, share all the data of `from`, which may be of another
    /// layer of the same backend. EOPNOTSUPP where the two cannot share.
    fn share_data(&self, from: &Self::File, to: &Self::File) -> Result<()>;

    /// A number that stays the same as long as what was written is read again, whether synced or
    /// not: until the system goes down. None where nobody tells.
    fn epoch(&self) -> Option<u128>;

    /// Changes the allocation of a range that is not empty. EOPNOTSUPP where the layer cannot;
    /// ENOSPC, EFBIG; EINVAL as fallocate(2).
    fn allocate(&self, file: &Self::File, how: Allocation, range: Range<u64>) -> Result<()>;

    /// Brings everything that was written to the layer to the disk.
    fn sync_all(&self) -> Result<()>;
}
