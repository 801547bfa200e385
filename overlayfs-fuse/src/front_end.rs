//! The trait of front ends, which answer the requests of a FUSE mount, and its types.
//!
//! Objects are numbers, which the front end gives out ([`NodeEntry::node`]). The kernel returns
//! each as many times by [`FrontEnd::forget`]. Errors are errnos. A missing method returns ENOSYS,
//! which the kernel mostly remembers.

use std::ffi::{OsStr, OsString};
use std::sync::Weak;
use std::time::Duration;

use overlayfs::control::requests::Requests;
use overlayfs::errno::{ENOSYS, ENOTTY, Error, Result};
use zerocopy::IntoBytes;

use crate::session::{Notifier, Seat};
use crate::wire::{Attr, Dirent, EntryOut, SetattrIn, valid_for};

/// The process that makes a request.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The user of the filesystem (`fsuid`).
    pub uid: u32,
    /// The group of the filesystem (`fsgid`).
    pub gid: u32,
    /// 0 for the kernel itself.
    pub pid: u32,
    /// The number of the request.
    pub request: u64,
}

impl Caller {
    /// Whether the kernel sent the request once more, since a daemon that was killed has not
    /// answered it. It may be performed already.
    pub fn asks_again(&self) -> bool {
        self.request & crate::wire::RESENT != 0
    }
}

/// An object in an answer.
#[derive(Clone, Copy, Debug)]
pub struct NodeEntry {
    /// The number that the front end gave the object.
    pub node: u64,
    /// Tells objects apart that have the same number one after the other.
    pub generation: u32,
    /// Its attributes.
    pub attr: Attr,
}

/// An open file or directory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opened {
    /// The number that later requests have for it.
    pub fh: u64,
    /// `FOPEN_*`.
    pub flags: u32,
    /// The kernel's number of the backing, with `FOPEN_PASSTHROUGH`.
    pub backing: i32,
}

/// The mode of a new object.
#[derive(Clone, Copy, Debug)]
pub struct NewMode {
    /// Type and permission bits from the program, before the umask applies.
    pub mode: u32,
    /// The umask of the program.
    pub umask: u32,
}

/// The numbers of statfs(2).
pub type StatFs = crate::wire::StatfsOut;

/// A time of creation in seconds and nanoseconds since 1970.
pub type Birth = (i64, u32);

/// How long the kernel may keep its knowledge of an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Valid {
    pub usual: Duration,
    /// The kernel asks for the attributes of a file at each use.
    pub files_expire: bool,
}

impl Valid {
    /// Returns how long these attributes are valid.
    pub fn of(self, attr: &Attr) -> Duration {
        let expires = self.files_expire && attr.mode & libc::S_IFMT == libc::S_IFREG;
        if expires { Duration::ZERO } else { self.usual }
    }
}

/// The setup of a mount.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The features that the front end wants (`wire::init`).
    pub flags: u64,
    /// How long the kernel may believe an entry and its attributes.
    pub valid: Duration,
    /// The resolution of stored times in nanoseconds, at most a second. The kernel makes no finer
    /// ones.
    pub time_gran: u32,
}

/// Answers the requests of a mount, from several threads at once.
#[expect(clippy::missing_errors_doc, reason = "the errors are those of the system call that a method serves")]
pub trait FrontEnd: Send + Sync {
    /// Whether the front end checks access itself. If not, the kernel does, by owner, mode and ACL.
    const CHECKS_ACCESS: bool = false;

    /// Returns the setup for a kernel that offers the features `offered`.
    fn setup(&self, offered: u64) -> Setup;

    /// Starts. Called once, before the first request.
    fn begin(&self, _: Notifier) {}

    /// Takes the way to put another front end in the place of this one. Called once, before the
    /// first request.
    fn sit(&self, _: Weak<Seat<Self>>)
    where
        Self: Sized,
    {
    }

    /// Does other work. A thread calls it between two requests. Only one thread at a time may wait
    /// here for the answers of others.
    fn rest(&self) {}

    /// Whether [`FrontEnd::rest`] has something to do.
    fn has_to_rest(&self) -> bool {
        false
    }

    /// Does regular work. A thread that does nothing else calls it, from the first request on.
    /// Returns the time until the next call.
    fn watch(&self) -> Duration {
        Duration::MAX
    }

    /// Whether the attributes of files expire at once. Then the kernel also asks before each write.
    fn files_expire(&self) -> bool {
        false
    }

    /// Looks a name up. The kernel keeps the answer None, but not the error ENOENT.
    fn lookup(&self, caller: Caller, parent: u64, name: &OsStr) -> Result<Option<NodeEntry>>;
    /// Takes back `count` answers that had the object. The kernel does not use it any more after
    /// the last one.
    fn forget(&self, node: u64, count: u64);
    /// Returns the attributes of an object.
    fn getattr(&self, caller: Caller, node: u64) -> Result<Attr>;
    /// Sets the attributes that `change.valid` names ([`set`](crate::wire::set)), and returns all.
    fn setattr(&self, caller: Caller, node: u64, change: &SetattrIn) -> Result<Attr>;
    /// Returns the target of a symlink.
    fn readlink(&self, caller: Caller, node: u64) -> Result<OsString>;
    /// `device` is the number as the system's calls have it.
    fn mknod(&self, caller: Caller, parent: u64, name: &OsStr, mode: NewMode, device: u64) -> Result<NodeEntry>;
    /// Creates a directory.
    fn mkdir(&self, caller: Caller, parent: u64, name: &OsStr, mode: NewMode) -> Result<NodeEntry>;
    /// Creates a symlink.
    fn symlink(&self, caller: Caller, parent: u64, name: &OsStr, target: &OsStr) -> Result<NodeEntry>;
    /// Removes a name of an object that is no directory.
    fn unlink(&self, caller: Caller, parent: u64, name: &OsStr) -> Result<()>;
    /// Removes an empty directory.
    fn rmdir(&self, caller: Caller, parent: u64, name: &OsStr) -> Result<()>;
    /// `flags` are those of renameat2(2).
    fn rename(&self, caller: Caller, from: (u64, &OsStr), to: (u64, &OsStr), flags: u32) -> Result<()>;
    /// Gives an object one more name.
    fn link(&self, caller: Caller, node: u64, parent: u64, name: &OsStr) -> Result<NodeEntry>;
    /// `flags` are those of open(2). After the error ENOSYS the kernel calls [`FrontEnd::mknod`] in
    /// place of this, then opens the file.
    fn create(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: NewMode,
        flags: i32,
    ) -> Result<(NodeEntry, Opened)>;
    /// Reads to the start of `buf`. It reads fewer bytes only at the end of the file.
    fn read(&self, caller: Caller, node: u64, fh: u64, offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// Writes, and returns the number of bytes.
    fn write(&self, caller: Caller, node: u64, write: Write<'_>) -> Result<usize>;
    /// Syncs an open file.
    fn fsync(&self, node: u64, fh: u64) -> Result<()>;
    /// Adds the entries behind `offset` to `listing`, until it is full.
    fn readdir(&self, caller: Caller, node: u64, fh: u64, offset: u64, listing: &mut ListingReply<'_>) -> Result<()>;
    /// Syncs an open directory.
    fn fsyncdir(&self, node: u64, fh: u64) -> Result<()>;
    /// Returns the numbers of the filesystem.
    fn statfs(&self, node: u64) -> Result<StatFs>;

    /// `flags` are those of open(2).
    fn open(&self, _: Caller, _node: u64, _flags: i32) -> Result<Opened> {
        Err(Error::new(ENOSYS))
    }
    /// Closes a file.
    fn release(&self, _fh: u64) {}
    /// Opens a directory.
    fn opendir(&self, _: Caller, _node: u64) -> Result<Opened> {
        Err(Error::new(ENOSYS))
    }
    /// Closes a directory.
    fn releasedir(&self, _fh: u64) {}
    /// `mask` is that of access(2).
    fn access(&self, _: Caller, _node: u64, _mask: u32) -> Result<()> {
        Err(Error::new(ENOSYS))
    }
    /// `parent` is the directory that open(2) with O_TMPFILE named.
    fn tmpfile(&self, _: Caller, _parent: u64, _: NewMode) -> Result<(NodeEntry, Opened)> {
        Err(Error::new(ENOSYS))
    }
    /// Returns the attributes of an object, and the time of its creation where that is known.
    fn birth(&self, _node: u64) -> Result<(Attr, Option<Birth>)> {
        Err(Error::new(ENOSYS))
    }
    /// With `only_size` the answer has only the size of the value.
    fn getxattr(&self, _: Caller, _node: u64, _name: &OsStr, _only_size: bool) -> Result<Vec<u8>> {
        Err(Error::new(ENOSYS))
    }
    /// `flags` are those of setxattr(2).
    fn setxattr(
        &self,
        _: Caller,
        _node: u64,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _kill_sgid: bool,
    ) -> Result<()> {
        Err(Error::new(ENOSYS))
    }
    /// Returns the names of the extended attributes of an object.
    fn listxattr(&self, _: Caller, _node: u64) -> Result<Vec<OsString>> {
        Err(Error::new(ENOSYS))
    }
    /// Removes an extended attribute.
    fn removexattr(&self, _: Caller, _node: u64, _name: &OsStr) -> Result<()> {
        Err(Error::new(ENOSYS))
    }
    /// `mode` is that of fallocate(2).
    fn fallocate(&self, _caller: Caller, _node: u64, _mode: i32, _offset: u64, _length: u64) -> Result<()> {
        Err(Error::new(ENOSYS))
    }
    /// The flags that chattr(1) sets, as `FS_IOC_GETFLAGS` has them.
    fn flags(&self, _node: u64) -> Result<u32> {
        Err(Error::new(ENOTTY))
    }
    /// Sets the flags that [`flags`](FrontEnd::flags) returns.
    fn set_flags(&self, _node: u64, _flags: u32) -> Result<()> {
        Err(Error::new(ENOTTY))
    }
    /// Returns the counters of requests. None: nothing is counted.
    fn requests(&self) -> Option<&Requests> {
        None
    }
    /// Answers a frame of the channel ([`overlayfs::control`]) that was sent to an object.
    fn control(&self, _: Caller, _node: u64, _request: &[u8]) -> Result<Vec<u8>> {
        Err(Error::new(ENOTTY))
    }
    /// `whence` is SEEK_DATA or SEEK_HOLE.
    fn lseek(&self, _node: u64, _offset: u64, _whence: i32) -> Result<u64> {
        Err(Error::new(ENOSYS))
    }
    /// Copies between two open files, each an object and its `fh`, and returns the number of bytes.
    fn copy_file_range(&self, _caller: Caller, _from: (u64, u64), _to: (u64, u64), _length: u64) -> Result<u64> {
        Err(Error::new(ENOSYS))
    }
}

/// A WRITE.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// The number of the open file.
    pub fh: u64,
    /// Where the data go.
    pub offset: u64,
    /// The data.
    pub data: &'a [u8],
    /// The flags of the open file.
    pub open_flags: i32,
    /// `wire::WRITE_CACHE` and `wire::WRITE_KILL_SUIDGID`.
    pub flags: u32,
}

/// A listing that is being filled.
pub struct ListingReply<'a> {
    answer: &'a mut Vec<u8>,
    /// Where the listing begins in `answer`, and where it must end.
    start: usize,
    end: usize,
    /// With attributes: each entry but `.` and `..` counts as an answer that names the object.
    plus: Option<Valid>,
}

impl<'a> ListingReply<'a> {
    /// Makes a listing of at most `room` bytes at the end of `answer`. With `plus` the entries have
    /// attributes, valid for that time.
    pub(super) fn new(answer: &'a mut Vec<u8>, room: usize, plus: Option<Valid>) -> Self {
        let start = answer.len();
        Self { answer, start, end: start + room, plus }
    }

    /// Whether entries have attributes. [`ListingReply::add_entry`] adds these.
    pub fn with_attributes(&self) -> bool {
        self.plus.is_some()
    }

    /// Whether there is no entry yet.
    pub fn is_empty(&self) -> bool {
        self.answer.len() <= self.start
    }

    /// How many bytes of entries still fit.
    pub fn room(&self) -> usize {
        self.end - self.answer.len()
    }

    /// How many bytes an entry with attributes takes.
    pub fn size_with_attributes(name: &OsStr) -> usize {
        size_of::<EntryOut>() + (size_of::<Dirent>() + name.len()).next_multiple_of(8)
    }

    /// Whether an entry of this name still fits.
    fn fits(&self, name: &OsStr) -> bool {
        let entry = if self.plus.is_some() { size_of::<EntryOut>() } else { 0 };
        self.answer.len() + entry + (size_of::<Dirent>() + name.len()).next_multiple_of(8) <= self.end
    }

    /// Adds an entry without attributes, if it fits. `offset` is where a listing goes on behind it,
    /// `kind` the type bits of its mode.
    pub fn add(&mut self, ino: u64, offset: u64, kind: u32, name: &OsStr) -> bool {
        let fits = self.fits(name);
        if fits {
            if self.plus.is_some() {
                self.answer.extend_from_slice(EntryOut::default().as_bytes());
            }
            self.add_dirent(ino, offset, kind, name);
        }
        fits
    }

    /// Adds an entry with its attributes, which must fit.
    pub fn add_entry(&mut self, entry: &NodeEntry, offset: u64, name: &OsStr) {
        if let Some(valid) = self.plus {
            self.answer.extend_from_slice(entry_out(Some(entry), valid).as_bytes());
        }
        self.add_dirent(entry.attr.ino, offset, entry.attr.mode, name);
    }

    fn add_dirent(&mut self, ino: u64, offset: u64, mode: u32, name: &OsStr) {
        let kind = (mode & libc::S_IFMT) >> 12;
        let dirent = Dirent { ino, offset, name_length: name.len() as u32, kind };
        self.answer.extend_from_slice(dirent.as_bytes());
        self.answer.extend_from_slice(name.as_encoded_bytes());
        self.answer.resize(self.answer.len() + name.len().next_multiple_of(8) - name.len(), 0);
    }
}

/// Makes the answer that names an entry, or says that there is none.
pub(super) fn entry_out(entry: Option<&NodeEntry>, valid: Valid) -> EntryOut {
    let (sec, nsec) = valid_for(valid.usual);
    let (node, generation, attr) =
        entry.map_or_else(Default::default, |entry| (entry.node, entry.generation.into(), entry.attr));
    let (attr_valid, attr_valid_nsec) = valid_for(valid.of(&attr));
    EntryOut { node, generation, entry_valid: sec, attr_valid, entry_valid_nsec: nsec, attr_valid_nsec, attr }
}
