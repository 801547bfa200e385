//! The FUSE mount whose every operation is a request to a scheme.
//!
//! Linux programs so run the code that serves Redox: each FUSE request becomes the calls of a [`Process`] with the ids of the
//! program that caused it. Nothing is cached and nothing is checked on this side, entries and attributes are valid for no time:
//! the scheme decides about every component of every path. Two questions are answered here because on Redox the client's libc answers
//! them: access(2), and whether a file may be executed.
//!
//! Lock order: the table of `inodes` and that of the open files are leaves; no request is made while either is held.

mod convert;
mod inodes;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use syscall::error::{EACCES, EBADF, EIO, Error, Result};
use syscall::flag::{
    AT_REMOVEDIR, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDONLY, O_STAT, O_SYMLINK, O_WRONLY, StdFsCallKind,
};

use crate::client::{Process, parse_dirents};
use crate::kernel::Fd;
use inodes::Inodes;

/// How long the kernel may believe what it was told: not at all.
const NO_TIME: Duration = Duration::ZERO;

/// An owner or a group that a chown leaves as it is.
const UNCHANGED: u32 = u32::MAX;

/// The longest target of a symlink.
const TARGET_MAX: usize = 4096;

/// How much of a directory is asked for at once; more than one entry always fits.
const LISTING: usize = 4096;

/// The largest write that the kernel may send.
const WRITE_MAX: u32 = 1 << 20;

/// The flag by which the kernel opens a file to execute it.
const FMODE_EXEC: i32 = 0x20;

/// The entry of a listing behind "." and "..", which the scheme does not list.
const FIRST_OF_SCHEME: u64 = 2;

/// A scheme as a FUSE filesystem.
pub struct Door {
    inodes: Inodes,
    files: RwLock<HashMap<u64, Arc<Fd>>>,
    next_file: AtomicU64,
    /// Who holds what the kernel remembers, and reads for the kernel itself.
    kernel: Process,
}

impl Door {
    /// The tree of the scheme `name`. Errors of opening its root.
    pub fn new(name: &str) -> Result<Self> {
        let kernel = Process::with_pid(0, 0, 0);
        let root = kernel.scheme_root(name)?.openat("", O_STAT | O_DIRECTORY, 0)?;
        let ino = root.fstat()?.st_ino;
        Ok(Self { inodes: Inodes::new(root, ino), files: RwLock::default(), next_file: AtomicU64::new(1), kernel })
    }

    /// Opens an object anew, as the process: the checks are made for that one.
    fn reopen(&self, process: &Process, ino: INodeNo, flags: usize) -> Result<Fd> {
        process.inherit(&*self.inodes.get(ino.0)?).openat("", flags, 0)
    }

    /// A directory for calls that the scheme checks for the opener of their directory.
    fn directory(&self, process: &Process, ino: INodeNo) -> Result<Fd> {
        self.reopen(process, ino, O_STAT | O_DIRECTORY)
    }

    fn attributes(&self, fd: &Fd) -> Result<FileAttr> {
        let stat = fd.fstat()?;
        let attributes = convert::attributes(&stat, self.inodes.node(stat.st_ino))?;
        Ok(match attributes.kind {
            FileType::CharDevice | FileType::BlockDevice => FileAttr { rdev: self.device_number(fd)?, ..attributes },
            _ => attributes,
        })
    }

    /// Which device a node stands for: no field of a stat says it, but it is read as the target of a symlink is.
    fn device_number(&self, fd: &Fd) -> Result<u32> {
        let mut number = [0; 8];
        match self.kernel.inherit(fd).openat("", O_RDONLY | O_SYMLINK, 0)?.read(&mut number)? {
            8 => Ok(u64::from_ne_bytes(number) as u32),
            _ => Err(Error::new(EIO)),
        }
    }

    /// Counts one more reference of the kernel to the object of a descriptor, which stays open for it.
    fn remember(&self, fd: Fd) -> Result<FileAttr> {
        let attributes = self.attributes(&fd)?;
        self.inodes.remember(attributes.ino.0, self.kernel.inherit(&fd));
        Ok(attributes)
    }

    fn add_file(&self, fd: Fd) -> FileHandle {
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        self.files.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(fd));
        FileHandle(number)
    }

    fn file(&self, file: FileHandle) -> Result<Arc<Fd>> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(&file.0).cloned().ok_or(Error::new(EBADF))
    }

    fn close(&self, file: FileHandle) {
        let closed = self.files.write().unwrap_or_else(PoisonError::into_inner).remove(&file.0);
        drop(closed);
    }

    fn open_file(&self, process: &Process, ino: INodeNo, flags: i32) -> Result<Fd> {
        if flags & FMODE_EXEC != 0 {
            // To execute is not to read: the kernel reads a file that the program may only execute.
            let stat = self.inodes.get(ino.0)?.fstat()?;
            if !convert::may(process, &stat, AccessFlags::X_OK) {
                return Err(Error::new(EACCES));
            }
            return self.reopen(&self.kernel, ino, O_RDONLY);
        }
        self.reopen(process, ino, convert::open_flags(flags))
    }

    fn set_attributes(
        &self,
        process: &Process,
        ino: INodeNo,
        file: Option<FileHandle>,
        change: Change,
    ) -> Result<FileAttr> {
        if let Some(size) = change.size {
            match file {
                Some(file) => process.inherit(&*self.file(file)?).ftruncate(size)?,
                None => self.reopen(process, ino, O_WRONLY)?.ftruncate(size)?,
            }
        }
        let fd = self.reopen(process, ino, O_STAT | O_NOFOLLOW)?;
        if change.uid.is_some() || change.gid.is_some() {
            // Not the system call: that one lets no user set only one of the two.
            let (uid, gid) = (change.uid.unwrap_or(UNCHANGED), change.gid.unwrap_or(UNCHANGED));
            let ids = u64::from(uid) | (u64::from(gid) << 32);
            fd.std_fs_call(StdFsCallKind::Fchown as u8, &mut [], ids, 0)?;
        }
        if let Some(mode) = change.mode {
            fd.fchmod((mode & 0o7777) as u16)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            fd.futimens(convert::time(change.atime), convert::time(change.mtime))?;
        }
        self.attributes(&fd)
    }

    /// Adds entries behind `offset` until the reply is full.
    fn list(&self, ino: INodeNo, dir: &Fd, mut offset: u64, reply: &mut ReplyDirectory) -> Result<()> {
        for (index, name) in [(0, "."), (1, "..")] {
            if offset == index {
                let node = if index == 0 { ino.0 } else { self.parent(ino, dir) };
                if reply.add(INodeNo(node), index + 1, fuser::FileType::Directory, name) {
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
                    // The listing of Redox has no word for a FIFO.
                    None => match self.kernel.inherit(dir).openat(&entry.name, O_STAT | O_NOFOLLOW, 0) {
                        Ok(fd) => self.attributes(&fd)?.kind,
                        // Gone since it was listed.
                        Err(_) => continue,
                    },
                };
                if reply.add(INodeNo(self.inodes.node(entry.ino)), entry.next, kind, &entry.name) {
                    return Ok(());
                }
            }
        }
    }

    /// The number of the directory above; of the directory itself if that has been removed.
    fn parent(&self, ino: INodeNo, dir: &Fd) -> u64 {
        let parent = self.kernel.inherit(dir).openat("..", O_STAT, 0).and_then(|parent| self.attributes(&parent));
        parent.map_or(ino.0, |attributes| attributes.ino.0)
    }
}

/// What a setattr asks for.
struct Change {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    atime: Option<TimeOrNow>,
    mtime: Option<TimeOrNow>,
}

fn process(request: &Request) -> Process {
    Process::with_pid(request.pid() as usize, request.uid(), request.gid())
}

/// Answers a request with the outcome of making it, by the reply's own word for success.
macro_rules! answer {
    ($reply:ident, $result:expr, |$value:pat_param| $success:expr) => {
        match $result {
            Ok($value) => $success,
            Err(error) => $reply.error(convert::errno(error)),
        }
    };
}

impl Filesystem for Door {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // The scheme truncates as part of the open, and takes set-id bits off what is changed. A kernel that lacks one does without.
        for capability in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_HANDLE_KILLPRIV,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ] {
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_write(WRITE_MAX);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let look_up = || {
            let dir = self.inodes.get(parent.0)?;
            self.remember(process(request).inherit(&dir).openat(name.as_bytes(), O_STAT | O_NOFOLLOW, 0)?)
        };
        answer!(reply, look_up(), |attributes| reply.entry(&NO_TIME, &attributes, Generation(0)));
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.inodes.forget(ino.0, count);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let attributes = self.inodes.get(ino.0).and_then(|fd| self.attributes(&fd));
        answer!(reply, attributes, |attributes| reply.attr(&NO_TIME, &attributes));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        file: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = Change { mode, uid, gid, size, atime, mtime };
        let attributes = self.set_attributes(&process(request), ino, file, change);
        answer!(reply, attributes, |attributes| reply.attr(&NO_TIME, &attributes));
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let mut target = vec![0; TARGET_MAX];
        let read = self.reopen(&process(request), ino, O_RDONLY | O_SYMLINK).and_then(|link| link.read(&mut target));
        answer!(reply, read, |length| reply.data(&target[..length.min(TARGET_MAX)]));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let make = || {
            let dir = self.directory(&process(request), parent)?;
            let flags = O_CREAT | O_EXCL | ((mode & !umask) as usize & 0xFFFF);
            let made = match mode & libc::S_IFMT {
                libc::S_IFCHR | libc::S_IFBLK => {
                    let made = dir.openat(name.as_bytes(), flags | O_WRONLY, 0)?;
                    made.write(&u64::from(rdev).to_ne_bytes())?;
                    made
                }
                _ => dir.openat(name.as_bytes(), flags, 0)?,
            };
            self.remember(made)
        };
        answer!(reply, make(), |attributes| reply.entry(&NO_TIME, &attributes, Generation(0)));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let make = || {
            let dir = self.directory(&process(request), parent)?;
            let flags = O_CREAT | O_EXCL | O_DIRECTORY | ((mode & !umask) as usize & 0o7777);
            self.remember(dir.openat(name.as_bytes(), flags, 0)?)
        };
        answer!(reply, make(), |attributes| reply.entry(&NO_TIME, &attributes, Generation(0)));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let dir = self.directory(&process(request), parent);
        answer!(reply, dir.and_then(|dir| dir.unlinkat(name.as_bytes(), 0)), |()| reply.ok());
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let dir = self.directory(&process(request), parent);
        answer!(reply, dir.and_then(|dir| dir.unlinkat(name.as_bytes(), AT_REMOVEDIR)), |()| reply.ok());
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let make = || {
            let dir = self.directory(&process(request), parent)?;
            let link = dir.openat(name.as_bytes(), O_CREAT | O_EXCL | O_SYMLINK | O_WRONLY | 0o777, 0)?;
            link.write(target.as_os_str().as_bytes())?;
            self.remember(link)
        };
        answer!(reply, make(), |attributes| reply.entry(&NO_TIME, &attributes, Generation(0)));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let rename = || {
            let process = process(request);
            let (dir, new_dir) = (self.directory(&process, parent)?, self.directory(&process, new_parent)?);
            dir.frenameat(name.as_bytes(), &new_dir, new_name.as_bytes(), flags.bits())
        };
        answer!(reply, rename(), |()| reply.ok());
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let link = || {
            let process = process(request);
            let fd = self.reopen(&process, ino, O_STAT | O_NOFOLLOW)?;
            fd.flinkat(&self.directory(&process, parent)?, name.as_bytes(), 0)?;
            self.remember(fd)
        };
        answer!(reply, link(), |attributes| reply.entry(&NO_TIME, &attributes, Generation(0)));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let fd = self.open_file(&process(request), ino, flags.0);
        answer!(reply, fd, |fd| reply.opened(self.add_file(fd), FopenFlags::empty()));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let create = || {
            let dir = self.directory(&process(request), parent)?;
            let exclusive = if flags & libc::O_EXCL != 0 { O_EXCL } else { 0 };
            let flags = convert::open_flags(flags) | O_CREAT | exclusive | ((mode & !umask) as usize & 0o7777);
            let fd = dir.openat(name.as_bytes(), flags, 0)?;
            // Not the same descriptor, which holds an open file of a layer: that one ends with the program's, this one with the kernel's memory.
            let attributes = self.remember(fd.openat("", O_STAT | O_NOFOLLOW, 0)?)?;
            Ok((attributes, fd))
        };
        answer!(reply, create(), |(attributes, fd)| {
            let file = self.add_file(fd);
            reply.created(&NO_TIME, &attributes, Generation(0), file, FopenFlags::empty());
        });
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        file: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut data = vec![0; size as usize];
        let read = self.file(file).and_then(|file| process(request).inherit(&file).read_at(&mut data, offset));
        answer!(reply, read, |length| reply.data(&data[..length.min(data.len())]));
    }

    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        file: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let write = || {
            // A page of a shared mapping comes through any file that is open, and belongs where it was mapped.
            let from_mapping = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
            let append = flags.0 & libc::O_APPEND != 0 && !from_mapping;
            let file = process(request).inherit(&*self.file(file)?);
            let mut written = 0;
            while written < data.len() {
                match file.write_at_with(&data[written..], offset + written as u64, append, false) {
                    Ok(0) => break,
                    Ok(count) => written += count,
                    Err(error) if written == 0 => return Err(error),
                    Err(_) => break,
                }
            }
            Ok(written)
        };
        answer!(reply, write(), |written| reply.written(written.min(data.len()) as u32));
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        file: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.close(file);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, file: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.file(file).and_then(|file| file.fsync()), |()| reply.ok());
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let dir = self.reopen(&process(request), ino, O_RDONLY | O_DIRECTORY);
        answer!(reply, dir, |dir| reply.opened(self.add_file(dir), FopenFlags::empty()));
    }

    fn readdir(&self, _: &Request, ino: INodeNo, dir: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.file(dir).and_then(|dir| self.list(ino, &dir, offset, &mut reply));
        answer!(reply, listed, |()| reply.ok());
    }

    fn releasedir(&self, _: &Request, _: INodeNo, dir: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.close(dir);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, dir: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(reply, self.file(dir).and_then(|dir| dir.fsync()), |()| reply.ok());
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let stat = self.inodes.get(ino.0).and_then(|fd| fd.fstatvfs());
        // Redox does not say how many files there are.
        answer!(reply, stat, |stat| reply.statfs(
            stat.f_blocks,
            stat.f_bfree,
            stat.f_bavail,
            0,
            0,
            stat.f_bsize,
            255,
            stat.f_bsize
        ));
    }

    fn access(&self, request: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let stat = self.inodes.get(ino.0).and_then(|fd| fd.fstat());
        answer!(reply, stat, |stat| {
            if convert::may(&process(request), &stat, mask) { reply.ok() } else { reply.error(Errno::EACCES) }
        });
    }
}
