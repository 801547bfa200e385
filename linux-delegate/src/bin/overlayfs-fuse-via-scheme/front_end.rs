//! The FUSE mount that turns every operation into a request to a scheme.
//!
//! So Linux programs run the code that serves Redox. Each FUSE request becomes the calls of a
//! [`Process`] with the ids of its caller. This side caches nothing and checks nothing, and entries
//! and attributes are valid for no time. So the scheme decides about every component of every path.
//! This side answers two questions, as the client's libc does on Redox: access(2), and whether a
//! file may be executed.
//!
//! Lock order: the table of `inodes` and that of the open files are leaves. No thread makes a
//! request under one.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use overlayfs::errno::{EACCES, EBADF, EIO, Error, Result};
use syscall::flag::{
    AT_REMOVEDIR, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDONLY, O_STAT, O_SYMLINK, O_WRONLY, StdFsCallKind,
};

use linux_delegate::client::{Process, parse_dirents};
use linux_delegate::kernel::Fd;
use overlayfs_fuse::front_end::{Caller, FrontEnd, ListingReply, NewMode, NodeEntry, Opened, Setup, StatFs, Write};
use overlayfs_fuse::wire::{self, Attr, SetattrIn, init};

use crate::convert;
use crate::inodes::Inodes;

/// An owner or a group that a chown leaves unchanged.
const UNCHANGED: u32 = u32::MAX;

/// The longest target of a symlink.
const TARGET_MAX: usize = 4096;

/// How many bytes of a directory to read at once. More than one entry always fits.
const LISTING: usize = 4096;

/// The flag with which the kernel opens a file to execute it.
const FMODE_EXEC: i32 = 0x20;

/// The offset behind "." and "..", which the scheme does not list.
const FIRST_OF_SCHEME: u64 = 2;

/// A scheme as a FUSE filesystem.
pub struct SchemeFrontEnd {
    inodes: Inodes,
    files: RwLock<HashMap<u64, Arc<Fd>>>,
    next_file: AtomicU64,
    /// The process that holds the kernel's objects, and reads for the kernel itself.
    kernel: Process,
}

impl SchemeFrontEnd {
    /// Opens the root of the scheme `name`. Its errors are those of that open.
    pub fn new(name: &str) -> Result<Self> {
        let kernel = Process::with_pid(0, 0, 0);
        let root = kernel.scheme_root(name)?.openat("", O_STAT | O_DIRECTORY, 0)?;
        let ino = root.fstat()?.st_ino;
        Ok(Self { inodes: Inodes::new(root, ino), files: RwLock::default(), next_file: AtomicU64::new(1), kernel })
    }

    /// Opens an object again as the process, so that the scheme checks its access.
    fn reopen(&self, process: &Process, node: u64, flags: usize) -> Result<Fd> {
        Ok(process.inherit(&*self.inodes.get(node)?).openat("", flags, 0)?)
    }

    /// Opens a directory for calls that the scheme checks by the opener of their directory.
    fn directory(&self, process: &Process, node: u64) -> Result<Fd> {
        self.reopen(process, node, O_STAT | O_DIRECTORY)
    }

    fn attributes(&self, fd: &Fd) -> Result<Attr> {
        let stat = fd.fstat()?;
        let attr = convert::attributes(&stat, self.inodes.node(stat.st_ino));
        Ok(match attr.mode & libc::S_IFMT {
            libc::S_IFCHR | libc::S_IFBLK => Attr { rdev: wire::device_to_wire(self.device_number(fd)?), ..attr },
            _ => attr,
        })
    }

    /// Returns the number of a device node. No field of a stat has it; a read of the node returns
    /// it, as it returns the target of a symlink.
    fn device_number(&self, fd: &Fd) -> Result<u64> {
        let mut number = [0; 8];
        match self.kernel.inherit(fd).openat("", O_RDONLY | O_SYMLINK, 0)?.read(&mut number)? {
            8 => Ok(u64::from_ne_bytes(number)),
            _ => Err(Error::new(EIO)),
        }
    }

    /// Counts one more answer that names the object of a descriptor. The descriptor stays open for
    /// it.
    fn remember(&self, fd: Fd) -> Result<NodeEntry> {
        let attr = self.attributes(&fd)?;
        self.inodes.remember(attr.ino, self.kernel.inherit(&fd));
        Ok(NodeEntry { node: attr.ino, generation: 0, attr })
    }

    fn add_file(&self, fd: Fd) -> Opened {
        let fh = self.next_file.fetch_add(1, Ordering::Relaxed);
        self.files.write().unwrap_or_else(PoisonError::into_inner).insert(fh, Arc::new(fd));
        Opened { fh, ..Opened::default() }
    }

    fn file(&self, fh: u64) -> Result<Arc<Fd>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(&fh).cloned().ok_or(Error::new(EBADF))
    }

    fn close(&self, fh: u64) {
        let closed = self.files.write().unwrap_or_else(PoisonError::into_inner).remove(&fh);
        drop(closed);
    }

    fn open_file(&self, process: &Process, node: u64, flags: i32) -> Result<Fd> {
        if flags & FMODE_EXEC != 0 {
            // An execution is no read: the kernel reads a file for a program that may only execute
            // it.
            let stat = self.inodes.get(node)?.fstat()?;
            if !convert::may(process, &stat, libc::X_OK) {
                return Err(Error::new(EACCES));
            }
            return self.reopen(&self.kernel, node, O_RDONLY);
        }
        self.reopen(process, node, convert::open_flags(flags))
    }

    /// Adds the entries behind `offset` until the listing is full.
    fn list(&self, node: u64, dir: &Fd, mut offset: u64, listing: &mut ListingReply<'_>) -> Result<()> {
        for (index, name) in [(0, "."), (1, "..")] {
            if offset == index {
                let ino = if index == 0 { node } else { self.parent(node, dir) };
                if !listing.add(ino, index + 1, libc::S_IFDIR, OsStr::new(name)) {
                    return Ok(());
                }
                offset = index + 1;
            }
        }
        let mut after = if offset == FIRST_OF_SCHEME { 0 } else { offset };
        let mut buf = [0; LISTING];
        loop {
            let length = dir.getdents(&mut buf, after)?;
            let entries = parse_dirents(buf.get(..length).ok_or(Error::new(EIO))?)?;
            if entries.is_empty() {
                return Ok(());
            }
            for entry in entries {
                after = entry.next;
                let kind = match convert::entry_kind(entry.kind) {
                    Some(kind) => kind,
                    // The listing of Redox has no kind for a FIFO.
                    None => match self.kernel.inherit(dir).openat(&entry.name, O_STAT | O_NOFOLLOW, 0) {
                        Ok(fd) => self.attributes(&fd)?.mode & libc::S_IFMT,
                        // The entry is gone since the scheme listed it.
                        Err(_) => continue,
                    },
                };
                if !listing.add(self.inodes.node(entry.ino), entry.next, kind, OsStr::from_bytes(entry.name.as_ref())) {
                    return Ok(());
                }
            }
        }
    }

    /// Returns the number of the directory above; that of the directory itself if it was removed.
    fn parent(&self, node: u64, dir: &Fd) -> u64 {
        let parent = self
            .kernel
            .inherit(dir)
            .openat("..", O_STAT, 0)
            .map_err(Error::from)
            .and_then(|parent| self.attributes(&parent));
        parent.map_or(node, |attr| attr.ino)
    }
}

fn process(caller: Caller) -> Process {
    Process::with_pid(caller.pid as usize, caller.uid, caller.gid)
}

impl FrontEnd for SchemeFrontEnd {
    /// The scheme checks, as on Redox.
    const CHECKS_ACCESS: bool = true;

    fn setup(&self, _: u64) -> Setup {
        // The scheme truncates in the open, and drops set-id bits at a change.
        let flags = init::ATOMIC_O_TRUNC
            | init::HANDLE_KILLPRIV
            | init::HANDLE_KILLPRIV_V2
            | init::PARALLEL_DIROPS
            | init::DONT_MASK;
        Setup { flags, valid: Duration::ZERO, time_gran: 1 }
    }

    fn lookup(&self, caller: Caller, parent: u64, name: &OsStr) -> Result<Option<NodeEntry>> {
        let dir = self.inodes.get(parent)?;
        let fd = process(caller).inherit(&dir).openat(name.as_bytes(), O_STAT | O_NOFOLLOW, 0)?;
        self.remember(fd).map(Some)
    }

    fn forget(&self, node: u64, count: u64) {
        self.inodes.forget(node, count);
    }

    fn getattr(&self, _: Caller, node: u64) -> Result<Attr> {
        self.attributes(&*self.inodes.get(node)?)
    }

    fn setattr(&self, caller: Caller, node: u64, change: &SetattrIn) -> Result<Attr> {
        let process = process(caller);
        let is_set = |field| change.valid & field != 0;
        if is_set(wire::set::SIZE) {
            match is_set(wire::set::FH) {
                true => process.inherit(&*self.file(change.fh)?).ftruncate(change.size)?,
                false => self.reopen(&process, node, O_WRONLY)?.ftruncate(change.size)?,
            }
        }
        let fd = self.reopen(&process, node, O_STAT | O_NOFOLLOW)?;
        if is_set(wire::set::UID | wire::set::GID) {
            // The system call lets no user set only one of the two.
            let uid = if is_set(wire::set::UID) { change.uid } else { UNCHANGED };
            let gid = if is_set(wire::set::GID) { change.gid } else { UNCHANGED };
            let ids = u64::from(uid) | (u64::from(gid) << 32);
            fd.std_fs_call(StdFsCallKind::Fchown as u8, &mut [], ids, 0)?;
        }
        if is_set(wire::set::MODE) {
            fd.fchmod((change.mode & 0o7777) as u16)?;
        }
        if is_set(wire::set::ATIME | wire::set::MTIME) {
            let atime =
                convert::time(is_set(wire::set::ATIME), is_set(wire::set::ATIME_NOW), change.atime, change.atimensec);
            let mtime =
                convert::time(is_set(wire::set::MTIME), is_set(wire::set::MTIME_NOW), change.mtime, change.mtimensec);
            fd.futimens(atime, mtime)?;
        }
        self.attributes(&fd)
    }

    fn readlink(&self, caller: Caller, node: u64) -> Result<OsString> {
        let mut target = vec![0; TARGET_MAX];
        let length = self.reopen(&process(caller), node, O_RDONLY | O_SYMLINK)?.read(&mut target)?;
        target.truncate(length);
        Ok(OsString::from_vec(target))
    }

    fn mknod(&self, caller: Caller, parent: u64, name: &OsStr, mode: NewMode, device: u64) -> Result<NodeEntry> {
        let dir = self.directory(&process(caller), parent)?;
        let flags = O_CREAT | O_EXCL | ((mode.mode & !mode.umask) as usize & 0xFFFF);
        let made = match mode.mode & libc::S_IFMT {
            libc::S_IFCHR | libc::S_IFBLK => {
                let made = dir.openat(name.as_bytes(), flags | O_WRONLY, 0)?;
                made.write(&device.to_ne_bytes())?;
                made
            }
            _ => dir.openat(name.as_bytes(), flags, 0)?,
        };
        self.remember(made)
    }

    fn mkdir(&self, caller: Caller, parent: u64, name: &OsStr, mode: NewMode) -> Result<NodeEntry> {
        let dir = self.directory(&process(caller), parent)?;
        let flags = O_CREAT | O_EXCL | O_DIRECTORY | ((mode.mode & !mode.umask) as usize & 0o7777);
        self.remember(dir.openat(name.as_bytes(), flags, 0)?)
    }

    fn symlink(&self, caller: Caller, parent: u64, name: &OsStr, target: &OsStr) -> Result<NodeEntry> {
        let dir = self.directory(&process(caller), parent)?;
        let link = dir.openat(name.as_bytes(), O_CREAT | O_EXCL | O_SYMLINK | O_WRONLY | 0o777, 0)?;
        link.write(target.as_bytes())?;
        self.remember(link)
    }

    fn unlink(&self, caller: Caller, parent: u64, name: &OsStr) -> Result<()> {
        Ok(self.directory(&process(caller), parent)?.unlinkat(name.as_bytes(), 0)?)
    }

    fn rmdir(&self, caller: Caller, parent: u64, name: &OsStr) -> Result<()> {
        Ok(self.directory(&process(caller), parent)?.unlinkat(name.as_bytes(), AT_REMOVEDIR)?)
    }

    fn rename(&self, caller: Caller, from: (u64, &OsStr), to: (u64, &OsStr), flags: u32) -> Result<()> {
        let process = process(caller);
        let (dir, new_dir) = (self.directory(&process, from.0)?, self.directory(&process, to.0)?);
        Ok(dir.frenameat(from.1.as_bytes(), &new_dir, to.1.as_bytes(), flags)?)
    }

    fn link(&self, caller: Caller, node: u64, parent: u64, name: &OsStr) -> Result<NodeEntry> {
        let process = process(caller);
        let fd = self.reopen(&process, node, O_STAT | O_NOFOLLOW)?;
        fd.flinkat(&self.directory(&process, parent)?, name.as_bytes(), 0)?;
        self.remember(fd)
    }

    fn open(&self, caller: Caller, node: u64, flags: i32) -> Result<Opened> {
        Ok(self.add_file(self.open_file(&process(caller), node, flags)?))
    }

    fn create(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: NewMode,
        flags: i32,
    ) -> Result<(NodeEntry, Opened)> {
        let dir = self.directory(&process(caller), parent)?;
        let exclusive = if flags & libc::O_EXCL != 0 { O_EXCL } else { 0 };
        let permissions = (mode.mode & !mode.umask) as usize & 0o7777;
        let fd = dir.openat(name.as_bytes(), convert::open_flags(flags) | O_CREAT | exclusive | permissions, 0)?;
        // Another descriptor than `fd`, which holds an open file of a layer. `fd` ends with the
        // program's, this one when the kernel forgets the object.
        let entry = self.remember(fd.openat("", O_STAT | O_NOFOLLOW, 0)?)?;
        Ok((entry, self.add_file(fd)))
    }

    fn read(&self, caller: Caller, _: u64, fh: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let length = process(caller).inherit(&*self.file(fh)?).read_at(buf, offset)?;
        Ok(length.min(buf.len()))
    }

    fn write(&self, caller: Caller, _: u64, write: Write<'_>) -> Result<usize> {
        // A page of a shared mapping comes through any open file, and belongs at its own offset.
        let append = write.open_flags & libc::O_APPEND != 0 && write.flags & wire::WRITE_CACHE == 0;
        let file = process(caller).inherit(&*self.file(write.fh)?);
        let mut written = 0;
        while written < write.data.len() {
            match file.write_at_with(&write.data[written..], write.offset + written as u64, append, false) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if written == 0 => return Err(error.into()),
                Err(_) => break,
            }
        }
        Ok(written.min(write.data.len()))
    }

    fn release(&self, fh: u64) {
        self.close(fh);
    }

    fn fsync(&self, _: u64, fh: u64) -> Result<()> {
        Ok(self.file(fh)?.fsync()?)
    }

    fn opendir(&self, caller: Caller, node: u64) -> Result<Opened> {
        Ok(self.add_file(self.reopen(&process(caller), node, O_RDONLY | O_DIRECTORY)?))
    }

    fn readdir(&self, _: Caller, node: u64, fh: u64, offset: u64, listing: &mut ListingReply<'_>) -> Result<()> {
        self.list(node, &*self.file(fh)?, offset, listing)
    }

    fn releasedir(&self, fh: u64) {
        self.close(fh);
    }

    fn fsyncdir(&self, _: u64, fh: u64) -> Result<()> {
        Ok(self.file(fh)?.fsync()?)
    }

    fn statfs(&self, node: u64) -> Result<StatFs> {
        let stat = self.inodes.get(node)?.fstatvfs()?;
        // Redox does not report the number of files or the longest name.
        Ok(StatFs {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            bsize: stat.f_bsize,
            frsize: stat.f_bsize,
            namelen: 255,
            ..StatFs::default()
        })
    }

    fn access(&self, caller: Caller, node: u64, mask: u32) -> Result<()> {
        let stat = self.inodes.get(node)?.fstat()?;
        if convert::may(&process(caller), &stat, mask as i32) { Ok(()) } else { Err(Error::new(EACCES)) }
    }
}
