//! A layer: one directory tree that the overlay stacks, behind one small trait.
//!
//! The engine and the formats reach filesystems only through [`Layer`], and this folder implements
//! it. `src/mount.rs` resolves the paths of layers before it opens them here. [`linux`] uses the
//! `*at` calls, [`redox`] the calls of the Redox kernel that are relative to a descriptor.
//! [`counted`] wraps another backend and counts its calls.
//!
//! Each method is one *backing call*: the unit of cost, and of a crash. So a method makes one
//! change of the tree. Three cases need more than one system call for it:
//!
//! - A layer without [`Capabilities::whole_objects`] makes a symlink or a socket in several steps.
//!   The engine builds such objects in the work directory, where no step shows.
//! - On Linux a default ACL or the group of a directory may change the owner or mode of a new
//!   object. The method sets them again.
//! - On Linux an owner that the daemon cannot set becomes a record. The first one in a layer also
//!   marks the root, before it. A change of an ACL updates the record of the object.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

pub use crate::errno::{Error, Result};

pub mod acl;
mod compound;
pub mod counted;
#[cfg(feature = "layer-tools")]
pub mod exchange;
#[cfg(target_os = "linux")]
pub mod linux;
mod os;
#[cfg(feature = "scheme")]
pub mod redox;

pub use compound::{
    copy_through_memory, ensure_file, entries, keeping_times, read_start, some_entries, write_all, write_all_with,
};

pub use os::OsLayer;

/// The unit of [`Layer::write_through`], in bytes.
pub const THROUGH: u64 = 4096;

/// The kind of an object of a filesystem.
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

/// A time as seconds since 1970, and nanoseconds in `0..1_000_000_000`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds; negative before 1970.
    pub sec: i64,
    /// Nanoseconds behind these seconds.
    pub nsec: u32,
}

impl Time {
    /// The time of the system's clock; 1970 if the clock is not set.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time { sec: since.as_secs() as i64, nsec: since.subsec_nanos() }
    }
}

/// The flags that forbid changes of an object to every user (chattr(1)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// Nothing can change.
    pub immutable: bool,
    /// A file can only grow at its end; a directory loses no entry.
    pub append: bool,
}

impl Fixed {
    /// Whether attributes and names cannot change.
    pub fn is_any(self) -> bool {
        self.immutable || self.append
    }

    /// Returns what either forbids.
    pub fn or(self, other: Fixed) -> Fixed {
        Fixed { immutable: self.immutable || other.immutable, append: self.append || other.append }
    }
}

/// The attributes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The filesystem of the object. Two layers on one filesystem have the same number.
    pub dev: u64,
    /// The inode number in that filesystem.
    pub ino: u64,
    /// File, directory, or another kind.
    pub kind: Kind,
    /// Permission bits, set-id and sticky bits: at most `0o7777`, no type bits.
    pub mode: u32,
    /// The number of names.
    pub nlink: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The number of a device node's device, encoded as the system does.
    pub rdev: u64,
    /// The bytes of the content; the length of the target for a symlink.
    pub size: u64,
    /// The preferred size of a request, in bytes.
    pub blksize: u32,
    /// The space in use, in units of 512 bytes.
    pub blocks: u64,
    /// The last access.
    pub atime: Time,
    /// The last change of the content.
    pub mtime: Time,
    /// The last change of content or attributes.
    pub ctime: Time,
    /// The flags that forbid changes.
    pub fixed: Fixed,
    /// Tells the objects apart that have the same inode number one after the other. 0: the layer
    /// does not.
    pub generation: u32,
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
            generation: 0,
        }
    }
}

/// The space and limits of a layer's filesystem.
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
    /// The maximum length of a name, in bytes.
    pub name_max: u32,
}

impl StatFs {
    /// Returns the size of the filesystem in bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size.into())
    }

    /// Returns the bytes that an ordinary user can still write. A filesystem that does not count
    /// them has no end.
    pub fn bytes_available(&self) -> u64 {
        if self.blocks == 0 { u64::MAX } else { self.blocks_available.saturating_mul(self.block_size.into()) }
    }
}

/// The owner and group of an object.
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

/// The access of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading, without a change of the access time if the system permits that.
    Read,
    /// For reading and writing.
    ReadWrite,
    /// For reading, and for writing only at the end: an append-only file permits no more.
    Append,
    /// For the attributes alone. An object of any kind can be open so.
    Attributes,
}

impl Access {
    /// Whether a file that is open with this access can be used for `wanted`.
    pub fn allows(self, wanted: Access) -> bool {
        self == wanted || self == Access::ReadWrite || wanted == Access::Read && self != Access::Attributes
    }
}

/// The effect of a rename if the new name exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces it, as rename(2) does.
    Replace,
    /// Returns EEXIST.
    NoReplace,
    /// Exchanges the two; ENOENT if one is missing.
    Exchange,
    /// Replaces it, and leaves a character device with the number 0 at the old name.
    Whiteout,
}

/// The effect of setting an extended attribute, depending on whether it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Creates or replaces it.
    Set,
    /// Returns EEXIST if it exists.
    Create,
    /// Returns ENODATA if it does not exist.
    Replace,
}

/// A change of a range of a file, as in fallocate(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Allocates space for the range; the content stays. The size grows to the end of the range
    /// unless `keep_size`.
    Reserve {
        /// The size stays.
        keep_size: bool,
    },
    /// Makes the content a hole; the size stays.
    PunchHole,
    /// Makes the content zeros. The size grows to the end of the range unless `keep_size`.
    Zero {
        /// The size stays.
        keep_size: bool,
    },
    /// Removes the range; the data behind it moves down.
    Collapse,
    /// Inserts a hole of the range's length; the data behind it moves up.
    Insert,
    /// Makes blocks that other files share the file's own.
    Unshare,
}

/// The extended attribute with the capabilities of a program. Every write removes it.
pub const CAPABILITY: &str = "security.capability";

/// The object of a method that reads or sets attributes.
pub enum Object<'a, L: Layer> {
    /// An open directory.
    Dir(&'a L::Dir),
    /// An entry of a directory. A symlink is not followed.
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

/// The abilities of a backend, asked once at mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// [`RenameMode::Exchange`] works.
    pub exchange: bool,
    /// A [`Layer::Dir`] is the same directory after it, or one above it, was renamed. Without this
    /// ability it is the directory that has the old path then.
    pub dirs_follow_rename: bool,
    /// A symlink has its target, and a socket its mode, from its creation on.
    pub whole_objects: bool,
    /// Objects have extended attributes.
    pub xattrs: bool,
    /// Parts of a file that were never written take no space and no time.
    pub sparse: bool,
    /// [`Layer::write_through`] works.
    pub write_through: bool,
    /// After a crash of the system, a change of a name survives only together with all earlier
    /// ones.
    pub ordered: bool,
    /// An owner that the daemon cannot set becomes a record in an attribute of the object.
    pub owner_records: bool,
    /// Other hosts may use the filesystem too, and its locks of directories do not exclude them.
    pub shared: bool,
}

/// One directory tree.
///
/// A name is a single component: never empty, `.` or `..`, and without `/`. No method follows a
/// symlink, and none crosses to another mounted filesystem. A directory with a mount on it shows
/// its own content.
///
/// A layer of another process offers the turn (`crate::turn`) before it waits for that process. It
/// passes the turn on before a call that takes long.
///
/// # Errors
///
/// Each method lists the errnos that a caller must expect, beside these usual ones:
///
/// - EIO, ENOMEM, EMFILE, ENOSPC, EDQUOT, EROFS, ENAMETOOLONG
/// - ENOENT: the name does not exist.
pub trait Layer: Send + Sync + Sized + 'static {
    /// A directory of the layer: a descriptor, or a path if descriptors do not follow a rename.
    type Dir: Send + Sync + 'static;
    /// An open file: a regular file, unless it is open for its attributes alone.
    type File: Send + Sync + 'static;

    /// Returns the abilities of the layer.
    fn capabilities(&self) -> Capabilities;

    /// Returns the path at which the layer was opened, for messages. None if it is unknown.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// Returns the root of the layer.
    ///
    /// # Errors
    ///
    /// The usual ones.
    fn root(&self) -> Result<Self::Dir>;

    /// Returns a directory of the layer as a layer of its own. Objects can be renamed between the
    /// two. It needs no right but those of the layer. `path` is for messages.
    ///
    /// # Errors
    ///
    /// The usual ones.
    fn below(&self, dir: &Self::Dir, path: &Path, for_writing: bool) -> Result<Self>;

    /// Locks the layer against all other daemons, until it is dropped or
    /// [released](Layer::release).
    ///
    /// # Errors
    ///
    /// - EWOULDBLOCK: another daemon holds the lock.
    /// - EOPNOTSUPP: the filesystem has no locks.
    fn hold(&self) -> Result<()>;

    /// Locks the layer against daemons on other hosts too, by a lock on the file `name` of `dir`.
    /// Makes the file if it is missing; [`Layer::release`] leaves it. If it exists, waits until
    /// this host shows what other hosts have changed. Only a layer with the ability
    /// [`Capabilities::shared`] needs this method.
    ///
    /// # Errors
    ///
    /// - EWOULDBLOCK: another daemon holds the lock.
    /// - EOPNOTSUPP: the filesystem has no locks.
    fn hold_by(&self, dir: &Self::Dir, name: &OsStr) -> Result<()>;

    /// Unlocks the layer. Does nothing if it is not locked.
    ///
    /// # Errors
    ///
    /// The usual ones.
    fn release(&self) -> Result<()>;

    /// Returns space and limits.
    ///
    /// # Errors
    ///
    /// The usual ones.
    fn stat_fs(&self) -> Result<StatFs>;

    /// Opens the directory `name`. A backend with paths as directories may return an error only at
    /// the first use.
    ///
    /// # Errors
    ///
    /// - ENOTDIR: the entry is no directory.
    fn open_dir(&self, dir: &Self::Dir, name: &OsStr) -> Result<Self::Dir>;

    /// Calls `each` for every entry but `.` and `..`, in no certain order.
    ///
    /// # Errors
    ///
    /// The usual ones.
    fn list(&self, dir: &Self::Dir, each: &mut dyn FnMut(DirEntry<'_>)) -> Result<()>;

    /// Returns the attributes.
    ///
    /// # Errors
    ///
    /// The usual ones.
    fn stat(&self, object: Object<'_, Self>) -> Result<Stat>;

    /// Sets owner and group.
    ///
    /// # Errors
    ///
    /// - EPERM: the daemon cannot set this owner.
    /// - EINVAL: the user namespace lacks an id.
    fn set_owner(&self, object: Object<'_, Self>, owner: Owner) -> Result<()>;

    /// Sets the permission, set-id and sticky bits.
    ///
    /// # Errors
    ///
    /// - EOPNOTSUPP: the object is a symlink.
    fn set_mode(&self, object: Object<'_, Self>, mode: u32) -> Result<()>;

    /// Sets atime and mtime.
    ///
    /// # Errors
    ///
    /// - EPERM: the object is immutable or append-only.
    /// - EINVAL: the nanoseconds are out of range.
    fn set_times(&self, object: Object<'_, Self>, atime: Time, mtime: Time) -> Result<()>;

    /// Returns the time of creation, or None if the filesystem does not store it.
    ///
    /// # Errors
    ///
    /// The usual ones.
    fn birth(&self, object: Object<'_, Self>) -> Result<Option<Time>>;

    /// Returns the value of an extended attribute.
    ///
    /// # Errors
    ///
    /// - ENODATA: the object has no attribute `name`.
    /// - EOPNOTSUPP: the layer has no extended attributes.
    fn xattr(&self, object: Object<'_, Self>, name: &OsStr) -> Result<Vec<u8>>;

    /// Sets an extended attribute.
    ///
    /// # Errors
    ///
    /// - EEXIST, ENODATA: see [`XattrMode`].
    /// - EPERM: the daemon may not set the attribute, or the object cannot have it.
    /// - ERANGE: the name is too long.
    /// - E2BIG: the value is too long.
    /// - EOPNOTSUPP: the layer has no extended attributes.
    fn set_xattr(&self, object: Object<'_, Self>, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()>;

    /// Removes an extended attribute.
    ///
    /// # Errors
    ///
    /// - ENODATA: the object has no attribute `name`.
    /// - EPERM: the daemon may not remove the attribute.
    /// - EOPNOTSUPP: the layer has no extended attributes.
    fn remove_xattr(&self, object: Object<'_, Self>, name: &OsStr) -> Result<()>;

    /// Returns the names of the extended attributes that the daemon may see.
    ///
    /// # Errors
    ///
    /// - EOPNOTSUPP: the layer has no extended attributes.
    fn xattrs(&self, object: Object<'_, Self>) -> Result<Vec<OsString>>;

    /// Returns the flags of a regular file or a directory that chattr(1) sets, with their values in
    /// `FS_IOC_GETFLAGS`.
    ///
    /// # Errors
    ///
    /// - EOPNOTSUPP: the layer has no flags.
    fn flags(&self, object: Object<'_, Self>) -> Result<u32>;

    /// Sets the flags.
    ///
    /// # Errors
    ///
    /// - EPERM: the daemon may not set a flag.
    /// - EOPNOTSUPP: the layer lacks a flag.
    fn set_flags(&self, object: Object<'_, Self>, flags: u32) -> Result<()>;

    /// Opens a regular file, or for [`Access::Attributes`] an object of any kind.
    ///
    /// # Errors
    ///
    /// - EPERM: the file is immutable or append-only, and `access` would permit more.
    /// - EOPNOTSUPP: `access` is for the attributes, and the layer has no extended ones.
    fn open_file(&self, dir: &Self::Dir, name: &OsStr, access: Access) -> Result<Self::File>;

    /// Whether the layer can set the attributes of an object through this open file. If not, a file
    /// that [`Layer::open_file`] opens can.
    fn may_set_attributes(&self, _file: &Self::File) -> bool {
        true
    }

    /// Returns the ids of the daemon itself.
    fn identity(&self) -> Owner;

    /// Whether the `create_*` methods can give a new object this owner in the same step.
    fn creates_as(&self, owner: Owner) -> bool;

    /// Whether [`Layer::create_file`] and [`Layer::create_dir`] try to give a new object this owner
    /// in the same step. If the owner cannot change the directory, they return EACCES.
    fn tries_to_create_as(&self, owner: Owner) -> bool {
        self.creates_as(owner)
    }

    /// Creates a regular file, and opens it for reading and writing. Here and in the three
    /// `create_*` methods below, the owner must be [`Layer::identity`], or one for which
    /// [`Layer::creates_as`] is true. Here and for a directory, [`Layer::tries_to_create_as`]
    /// is enough.
    ///
    /// # Errors
    ///
    /// - EEXIST: the name exists.
    fn create_file(&self, dir: &Self::Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<Self::File>;

    /// Returns the attributes that a file had when [`Layer::create_file`] returned it. None: the
    /// layer did not ask for them.
    fn attr_of_new(&self, _file: &Self::File) -> Option<Stat> {
        None
    }

    /// Creates an empty regular file that only the daemon's own user may use, and does not open it.
    ///
    /// # Errors
    ///
    /// - EEXIST: the name exists.
    fn create_empty(&self, dir: &Self::Dir, name: &OsStr) -> Result<()> {
        self.create_file(dir, name, 0o600, self.identity()).map(drop)
    }

    /// Creates a directory. Here and in the two methods below, returns the attributes of the new
    /// object. None: the layer did not ask for them.
    ///
    /// # Errors
    ///
    /// - EEXIST: the name exists.
    fn create_dir(&self, dir: &Self::Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<Option<Stat>>;

    /// Creates a symlink.
    ///
    /// # Errors
    ///
    /// - EEXIST: the name exists.
    fn create_symlink(&self, dir: &Self::Dir, name: &OsStr, target: &OsStr, owner: Owner) -> Result<Option<Stat>>;

    /// Creates a FIFO, a socket or a device node.
    ///
    /// `rdev` is the number of the device. For a socket it is the number of its descriptor in this
    /// process, or 0 without one. Some layers make a socket only from its descriptor.
    ///
    /// # Errors
    ///
    /// - EEXIST: the name exists.
    /// - EOPNOTSUPP, EPERM: the layer cannot hold such an object.
    fn create_node(
        &self,
        dir: &Self::Dir,
        name: &OsStr,
        kind: Kind,
        mode: u32,
        rdev: u64,
        owner: Owner,
    ) -> Result<Option<Stat>>;

    /// Returns the target of a symlink.
    ///
    /// # Errors
    ///
    /// - EINVAL: the object is no symlink.
    fn read_link(&self, dir: &Self::Dir, name: &OsStr) -> Result<OsString>;

    /// Gives the object a further name.
    ///
    /// # Errors
    ///
    /// - EEXIST: the new name exists.
    /// - EMLINK: the object has too many names.
    /// - EPERM: the object is a directory.
    /// - ENOENT: the open file has no name, or the system cannot link an open file.
    /// - EOPNOTSUPP: the layer has no links.
    fn link(&self, object: Object<'_, Self>, new_dir: &Self::Dir, new_name: &OsStr) -> Result<()>;

    /// Removes a name of an object other than a directory.
    ///
    /// # Errors
    ///
    /// - EISDIR: the object is a directory.
    fn unlink(&self, dir: &Self::Dir, name: &OsStr) -> Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    ///
    /// - ENOTDIR: the object is no directory.
    /// - ENOTEMPTY: the directory has entries.
    fn remove_dir(&self, dir: &Self::Dir, name: &OsStr) -> Result<()>;

    /// Renames in one step.
    ///
    /// # Errors
    ///
    /// Those of rename(2), and:
    ///
    /// - EINVAL: the layer lacks `mode`.
    fn rename(
        &self,
        dir: &Self::Dir,
        name: &OsStr,
        new_dir: &Self::Dir,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<()>;

    /// Does the same as [`Layer::rename`], for an object that is open as `file`. The caller knows
    /// whether the new name is free. So a layer that would have to look up either of the two need
    /// not.
    ///
    /// # Errors
    ///
    /// Those of [`Layer::rename`].
    fn rename_file(
        &self,
        _file: &Self::File,
        (dir, name): (&Self::Dir, &OsStr),
        (new_dir, new_name): (&Self::Dir, &OsStr),
        mode: RenameMode,
    ) -> Result<()> {
        self.rename(dir, name, new_dir, new_name, mode)
    }

    /// Reads at `offset`. Returns fewer bytes than requested only at the end of the file.
    ///
    /// # Errors
    ///
    /// The usual ones.
    fn read_at(&self, file: &Self::File, buf: &mut [u8], offset: u64) -> Result<usize>;

    /// Writes at `offset`. Returns the number of bytes written, at least 1 if `buf` is not empty.
    ///
    /// # Errors
    ///
    /// - EFBIG: the end of the write is too large.
    fn write_at(&self, file: &Self::File, buf: &[u8], offset: u64) -> Result<usize>;

    /// Writes all of `buf` at `offset` of a file of [`Layer::create_file`], past the page cache. If
    /// the file gets a name after this, no crash of the system leaves that name without the data.
    /// The size may grow to the next multiple of [`THROUGH`]; `offset` must be a multiple.
    ///
    /// # Errors
    ///
    /// - EOPNOTSUPP: only [`Layer::sync`] can do that.
    fn write_through(&self, file: &Self::File, buf: &[u8], offset: u64) -> Result<()>;

    /// Sets the size.
    ///
    /// # Errors
    ///
    /// - EFBIG: `size` is too large.
    fn truncate(&self, file: &Self::File, size: u64) -> Result<()>;

    /// Syncs a file's data and attributes to the disk.
    ///
    /// # Errors
    ///
    /// The usual ones.
    fn sync(&self, file: &Self::File) -> Result<()>;

    /// Syncs a directory's entries to the disk.
    ///
    /// # Errors
    ///
    /// The usual ones.
    fn sync_dir(&self, dir: &Self::Dir) -> Result<()>;

    /// Returns the first range of data at or after `from`, or None if only a hole follows. A layer
    /// that knows no holes returns everything up to the end.
    ///
    /// # Errors
    ///
    /// The usual ones.
    fn next_data(&self, file: &Self::File, from: u64) -> Result<Option<Range<u64>>>;

    /// Copies `range` of `from` to `offset` of `to`. `to` is a file of `self`; `from` may be of
    /// another layer of the same backend. Returns the number of bytes copied, which is less only at
    /// the end of `from`. The two may share space afterwards.
    ///
    /// # Errors
    ///
    /// - EFBIG: the end of the copy is too large.
    fn copy_range(&self, from: &Self::File, range: Range<u64>, to: &Self::File, offset: u64) -> Result<u64>;

    /// Makes `to`, an empty file of `self`, share all data of `from`, which may be of another layer
    /// of the same backend.
    ///
    /// # Errors
    ///
    /// - EOPNOTSUPP: the two cannot share.
    fn share_data(&self, from: &Self::File, to: &Self::File) -> Result<()>;

    /// Returns the descriptor of a file that is open for reading, for a kernel that reads it itself
    /// without a change of its access time. None: there is no such descriptor.
    fn descriptor<'a>(&self, _file: &'a Self::File) -> Option<BorrowedFd<'a>> {
        None
    }

    /// Returns the calls so far. None: they are not counted.
    fn calls(&self) -> Option<counted::Tally> {
        None
    }

    /// Returns a number that changes when unsynced data may have been lost: with each start of the
    /// system. None if it is unknown.
    fn epoch(&self) -> Option<u128>;

    /// Changes the allocation of a range that is not empty.
    ///
    /// # Errors
    ///
    /// - EOPNOTSUPP: the layer cannot do that.
    /// - EFBIG: the end of the range is too large.
    /// - EINVAL: see fallocate(2).
    fn allocate(&self, file: &Self::File, how: Allocation, range: Range<u64>) -> Result<()>;

    /// Syncs everything that was written to the layer to the disk.
    ///
    /// # Errors
    ///
    /// The usual ones.
    fn sync_all(&self) -> Result<()>;
}
