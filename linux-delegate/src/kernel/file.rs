//! Descriptors, and the system calls that a program can make on one.
//!
//! Every call does what the Redox kernel of August 2026 does: its own checks, its request, and the
//! arguments of that. The sixth argument has the caller's ids only in requests with their own
//! opcode. A `StdFsCall` or a `Call` on one descriptor has its third word of metadata there, mostly
//! 0. On two descriptors it has the second id there.

use std::mem::offset_of;
use std::sync::{Arc, Mutex, MutexGuard};

use redox_path::RedoxPath;
use syscall::data::{Stat, StatVfs, TimeSpec};
use syscall::dirent::DirentHeader;
use syscall::error::{EINVAL, EIO, ENAMETOOLONG, EOPNOTSUPP, EOVERFLOW, EPERM, EXDEV, Error, Result};
use syscall::flag::{
    EventFlags, F_DUPFD, F_GETFD, F_GETFL, F_SETFD, F_SETFL, MapFlags, MunmapFlags, O_ACCMODE, O_APPEND, O_NONBLOCK,
    SEEK_CUR, SEEK_END, SEEK_SET, StdFsCallKind,
};
use syscall::schemev2::{NewFdFlags, Opcode, Sqe, SqeFlags};

use super::scheme::{expects_answer, new_fd_flags};
use super::{Answer, Caller, Scheme, lock};

/// The longest path that the kernel takes, in bytes.
pub(crate) const PATH_MAX: usize = 4096;

pub(super) const PAGE_SIZE: usize = 4096;

/// The address of an empty buffer: not null, and aligned for everything.
const DANGLING: u64 = 1 << 63;

/// An open file of a scheme. All duplicates of a descriptor share it.
pub(crate) struct Description {
    pub scheme: Arc<Scheme>,
    /// The scheme's number of the file.
    pub number: usize,
    status: Mutex<Status>,
}

#[derive(Clone, Copy)]
struct Status {
    offset: u64,
    /// The flags of the open, which F_SETFL changes.
    flags: u32,
    /// Reads and writes go to `offset` and move it.
    positioned: bool,
    /// The scheme wants a message when the next descriptor of this is closed.
    notify_on_detach: bool,
}

impl Description {
    pub fn new(scheme: Arc<Scheme>, number: usize, offset: u64, flags: u32, internal: NewFdFlags) -> Arc<Self> {
        let positioned = internal.contains(NewFdFlags::POSITIONED);
        let status = Mutex::new(Status { offset, flags, positioned, notify_on_detach: false });
        Arc::new(Self { scheme, number, status })
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        lock(&self.status)
    }

    /// Sends a message without an answer.
    pub(super) fn message(&self, opcode: Opcode, pid: usize) {
        let args = [self.number as u64, 0, 0, 0, 0, 0];
        self.scheme.send(Sqe { opcode: opcode as u8, args, caller: pid as u64, ..Sqe::default() });
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        self.message(Opcode::CloseMsg, 0);
    }
}

/// A descriptor of a process. Its drop closes it.
///
/// Its methods are system calls of that process. Their errors are those of the scheme, ENODEV if
/// its daemon is gone, and those of each method.
pub struct Fd {
    caller: Arc<Caller>,
    description: Arc<Description>,
}

impl Drop for Fd {
    fn drop(&mut self) {
        if self.description.status().notify_on_detach {
            self.description.message(Opcode::Detach, self.caller.pid);
        }
    }
}

impl Fd {
    pub(crate) fn new(caller: Arc<Caller>, description: Arc<Description>) -> Self {
        Self { caller, description }
    }

    pub(crate) fn description(&self) -> &Arc<Description> {
        &self.description
    }

    pub(super) fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    /// Returns the scheme's number of the open file.
    pub fn id(&self) -> usize {
        self.description.number
    }

    /// Returns the descriptor as a child of the process inherits it, or as another process receives
    /// it: the same open file with another caller.
    pub(crate) fn held_by(&self, caller: Arc<Caller>) -> Self {
        Self { caller, description: self.description.clone() }
    }

    fn request(&self, opcode: Opcode, args: [u64; 5]) -> Result<Answer> {
        let [a, b, c, d, e] = args;
        self.description.scheme.call(Sqe {
            opcode: opcode as u8,
            args: [a, b, c, d, e, self.caller.packed()],
            caller: self.caller.pid as u64,
            ..Sqe::default()
        })
    }

    /// Makes a request with the file as its first argument and a number as its answer.
    fn simple(&self, opcode: Opcode, b: u64, c: u64, d: u64, e: u64) -> Result<usize> {
        self.request(opcode, [self.id() as u64, b, c, d, e])?.number()
    }

    /// Makes the descriptor of an answer to an open or a dup.
    fn opened(&self, answer: Answer, flags: u32) -> Result<Fd> {
        let description = match answer {
            Answer::Regular { result, extra, .. } => {
                Description::new(self.description.scheme.clone(), result?, 0, flags, new_fd_flags(extra)?)
            }
            Answer::Descriptor(description) => description,
            Answer::Descriptors => return Err(Error::new(EIO)),
        };
        Ok(Fd { caller: self.caller.clone(), description })
    }

    /// Opens `path` relative to this directory. `flags` are those of `syscall::flag`, with the
    /// permission bits of a new object in the low 16 bits.
    ///
    /// # Errors
    ///
    /// - EINVAL: the path is not UTF-8.
    /// - ENAMETOOLONG: the path has more than 4096 bytes.
    pub fn openat(&self, path: impl AsRef<[u8]>, flags: usize, fcntl_flags: u32) -> Result<Fd> {
        let path = checked_path(path.as_ref())?;
        let args = [self.id(), path.as_ptr() as usize, path.len(), flags, fcntl_flags as usize].map(|arg| arg as u64);
        self.opened(self.request(Opcode::OpenAt, args)?, flags as u32)
    }

    /// Removes an entry of this directory; `flags` is 0 or `AT_REMOVEDIR`. The errors of the path
    /// are those of [`Fd::openat`].
    pub fn unlinkat(&self, path: impl AsRef<[u8]>, flags: usize) -> Result<()> {
        let path = checked_path(path.as_ref())?;
        self.simple(Opcode::UnlinkAt, path.as_ptr() as u64, path.len() as u64, flags as u64, 0).map(drop)
    }

    /// Makes a second descriptor of the same open file if `how` is empty. Otherwise the scheme
    /// interprets `how`.
    pub fn dup(&self, how: &[u8]) -> Result<Fd> {
        if how.is_empty() {
            return Ok(self.held_by(self.caller.clone()));
        }
        let answer = self.request(Opcode::Dup, [self.id() as u64, address(how), how.len() as u64, 0, 0])?;
        let flags = self.description.status().flags;
        self.opened(answer, flags)
    }

    /// Reads at the offset of the descriptor and moves it.
    pub fn read(&self, buf: &mut [u8]) -> Result<usize> {
        let status = *self.description.status();
        let count = self.read_with(buf, status.current_offset(), status.flags)?;
        self.advance(count);
        Ok(count)
    }

    /// Reads at `offset`; that of the descriptor stays.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let flags = self.description.status().flags;
        self.read_with(buf, offset, flags)
    }

    fn read_with(&self, buf: &mut [u8], offset: u64, flags: u32) -> Result<usize> {
        let length = buf.len() as u64;
        self.simple(Opcode::Read, address_mut(buf), length, offset, u64::from(flags))
    }

    /// Writes at the offset of the descriptor and moves it. The scheme gets the flag O_APPEND, and
    /// gives it its meaning.
    pub fn write(&self, buf: &[u8]) -> Result<usize> {
        let status = *self.description.status();
        let count = self.write_with(buf, status.current_offset(), status.flags)?;
        self.advance(count);
        Ok(count)
    }

    /// Writes at `offset`; that of the descriptor stays.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<usize> {
        let flags = self.description.status().flags;
        self.write_with(buf, offset, flags)
    }

    /// Writes at `offset` with O_APPEND and O_NONBLOCK as given, instead of the descriptor's flags.
    pub fn write_at_with(&self, buf: &[u8], offset: u64, append: bool, nonblock: bool) -> Result<usize> {
        let mut flags = self.description.status().flags & !((O_APPEND | O_NONBLOCK) as u32);
        flags |= if append { O_APPEND as u32 } else { 0 } | if nonblock { O_NONBLOCK as u32 } else { 0 };
        self.write_with(buf, offset, flags)
    }

    fn write_with(&self, buf: &[u8], offset: u64, flags: u32) -> Result<usize> {
        self.simple(Opcode::Write, address(buf), buf.len() as u64, offset, u64::from(flags))
    }

    fn advance(&self, count: usize) {
        let mut status = self.description.status();
        if status.positioned {
            status.offset = status.offset.saturating_add(count as u64);
        }
    }

    /// Moves the offset, and returns the new one. `whence` is `SEEK_SET`, `SEEK_CUR` or `SEEK_END`,
    /// which asks the scheme for the size.
    ///
    /// # Errors
    ///
    /// - EINVAL: the new offset is negative.
    /// - EOVERFLOW: the new offset is too large.
    pub fn lseek(&self, offset: i64, whence: usize) -> Result<u64> {
        let size = if whence == SEEK_END { self.fsize()? } else { 0 };
        let mut status = self.description.status();
        let base = match whence {
            SEEK_SET => 0,
            SEEK_CUR => status.offset,
            SEEK_END => size,
            _ => return Err(Error::new(EINVAL)),
        };
        let new = offset.checked_add_unsigned(base).ok_or(Error::new(EOVERFLOW))?;
        status.offset = u64::try_from(new).map_err(|_| Error::new(EINVAL))?;
        Ok(status.offset)
    }

    /// Returns the size, as SEEK_END asks for it.
    pub fn fsize(&self) -> Result<u64> {
        self.simple(Opcode::Fsize, 0, 0, 0, 0).map(|size| size as u64)
    }

    /// Returns attributes by their own call, which older programs use. `st_dev` is then the
    /// kernel's number of the scheme.
    pub fn sys_fstat(&self) -> Result<Stat> {
        let mut stat = Stat::default();
        let (base, length) = (address_mut(&mut stat), stat.len() as u64);
        self.simple(Opcode::Fstat, base, length, 0, 0)?;
        stat.st_dev = self.description.scheme.id;
        Ok(stat)
    }

    /// Syncs the file by its own call, which `fdatasync` and older programs use.
    pub fn sys_fsync(&self) -> Result<()> {
        self.simple(Opcode::Fsync, 0, 0, 0, 0).map(drop)
    }

    /// Sets owner and group.
    ///
    /// # Errors
    ///
    /// - EPERM: the caller is not root, and the two ids are not its own. The scheme gets no
    ///   request.
    pub fn fchown(&self, uid: u32, gid: u32) -> Result<()> {
        let own = self.caller.credentials;
        if own.uid != 0 && (uid, gid) != (own.uid, own.gid) {
            return Err(Error::new(EPERM));
        }
        self.simple(Opcode::Fchown, u64::from(uid), u64::from(gid), 0, 0).map(drop)
    }

    /// Makes the raw call. The scheme gets all commands but F_DUPFD, F_GETFD and F_SETFD, and only
    /// its errors count.
    ///
    /// # Errors
    ///
    /// - EINVAL: the kernel does not know the command. It does not take F_DUPFD either; see
    ///   [`Fd::dup`].
    pub fn fcntl(&self, command: usize, arg: usize) -> Result<usize> {
        if command == F_DUPFD {
            return Err(Error::new(EINVAL));
        }
        let flags = self.description.status().flags;
        if command != F_GETFD && command != F_SETFD {
            self.simple(Opcode::Fcntl, command as u64, arg as u64, 0, 0)?;
        }
        match command {
            F_GETFD | F_SETFD => Ok(0),
            F_GETFL => Ok(flags as usize),
            F_SETFL => {
                self.description.status().flags = (flags & O_ACCMODE as u32) | (arg as u32 & !O_ACCMODE as u32);
                Ok(0)
            }
            _ => Err(Error::new(EINVAL)),
        }
    }

    /// Returns the flags of the open file.
    pub fn flags(&self) -> Result<usize> {
        self.fcntl(F_GETFL, 0)
    }

    /// Sets the flags of the open file; the access mode stays.
    pub fn set_flags(&self, flags: usize) -> Result<()> {
        self.fcntl(F_SETFL, flags).map(drop)
    }

    /// Subscribes to events. Returns those that exist already.
    pub fn fevent(&self, flags: EventFlags) -> Result<EventFlags> {
        self.simple(Opcode::Fevent, flags.bits() as u64, 0, 0, 0).map(EventFlags::from_bits_truncate)
    }

    /// Returns the events of this file since the last call.
    pub fn take_events(&self) -> EventFlags {
        self.description.scheme.take_events(self.id())
    }

    /// Gives the object a second name, an absolute path. The kernel removes the scheme from the
    /// path and does not check it.
    ///
    /// # Errors
    ///
    /// - EINVAL: the path is relative.
    /// - The errors of the path in [`Fd::openat`].
    pub fn flink(&self, path: impl AsRef<[u8]>) -> Result<()> {
        self.with_absolute(Opcode::Flink, path.as_ref())
    }

    /// Renames the object to an absolute path, with the same errors as [`Fd::flink`].
    pub fn frename(&self, path: impl AsRef<[u8]>) -> Result<()> {
        self.with_absolute(Opcode::Frename, path.as_ref())
    }

    fn with_absolute(&self, opcode: Opcode, path: &[u8]) -> Result<()> {
        let path = RedoxPath::from_absolute(checked_path(path)?).ok_or(Error::new(EINVAL))?;
        let (_, reference) = path.as_parts().ok_or(Error::new(EINVAL))?;
        let reference = reference.as_ref();
        self.simple(opcode, reference.as_ptr() as u64, reference.len() as u64, 0, 0).map(drop)
    }

    /// Writes the scheme's path of the file to the start of `buf`. Returns its length.
    pub fn fpath(&self, buf: &mut [u8]) -> Result<usize> {
        let length = buf.len() as u64;
        self.simple(Opcode::Fpath, address_mut(buf), length, 0, 0)
    }

    /// Asks the scheme for memory with `size` bytes of the file from `offset` on. Returns its
    /// address in the scheme's memory. This is the first half of [`Fd::map`]; a client never sees
    /// this address.
    ///
    /// # Errors
    ///
    /// - EINVAL: `size` is 0, or `offset` or the address is not at a page.
    pub fn mmap(&self, offset: u64, size: usize, flags: MapFlags) -> Result<usize> {
        if size == 0 || !offset.is_multiple_of(PAGE_SIZE as u64) {
            return Err(Error::new(EINVAL));
        }
        let address = self.simple(Opcode::MmapPrep, size as u64, flags.bits() as u64, offset, 0)?;
        if address.is_multiple_of(PAGE_SIZE) { Ok(address) } else { Err(Error::new(EINVAL)) }
    }

    /// Tells the scheme that the caller has unmapped a range, as the end of a [`super::Mapping`]
    /// does.
    pub fn munmap(&self, offset: u64, size: usize, flags: MunmapFlags) -> Result<()> {
        self.simple(Opcode::Munmap, size as u64, flags.bits() as u64, offset, 0).map(drop)
    }

    /// Makes a call on this file that only the caller and the scheme define. At most three words of
    /// `metadata` arrive.
    pub fn call(&self, payload: &mut [u8], metadata: &[u64]) -> Result<usize> {
        self.call_with(Opcode::Call, None, payload, metadata)?.number()
    }

    /// Makes a [`Fd::call`] on two files. At most two words of `metadata` arrive.
    ///
    /// # Errors
    ///
    /// - EXDEV: the files are of two schemes.
    pub fn call_multiple(&self, other: &Fd, payload: &mut [u8], metadata: &[u64]) -> Result<usize> {
        self.call_with(Opcode::Call, Some(other), payload, metadata)?.number()
    }

    /// Sends a descriptor to the scheme of this file, as `sendfd` on this file. The sender loses
    /// it.
    pub fn send(&self, sent: Fd) -> Result<usize> {
        self.send_all(vec![sent.description.clone()], &[])
    }

    /// Sends open files. One word of `metadata` arrives.
    pub(crate) fn send_all(&self, sent: Vec<Arc<Description>>, metadata: &[u64]) -> Result<usize> {
        let word = metadata.first().copied().unwrap_or(0);
        let args = [self.id() as u64, 0, word, sent.len() as u64, 0, self.caller.packed()];
        let sqe = Sqe { opcode: Opcode::Sendfd as u8, args, caller: self.caller.pid as u64, ..Sqe::default() };
        self.description.scheme.call_with(sqe, sent)?.number()
    }

    /// Makes the standard filesystem call `kind` on this file.
    ///
    /// # Errors
    ///
    /// - EOPNOTSUPP: the kernel does not know the kind.
    pub fn std_fs_call(&self, kind: u8, payload: &mut [u8], arg1: u64, arg2: u64) -> Result<usize> {
        self.std_fs(kind, None, payload, arg1, arg2)
    }

    /// Makes a standard filesystem call on this file and another. Its second argument does not
    /// arrive.
    ///
    /// # Errors
    ///
    /// - EXDEV: the files are of two schemes.
    pub fn std_fs_call_multiple(&self, other: &Fd, kind: u8, payload: &mut [u8], arg1: u64) -> Result<usize> {
        self.std_fs(kind, Some(other), payload, arg1, 0)
    }

    fn std_fs(&self, kind: u8, other: Option<&Fd>, payload: &mut [u8], arg1: u64, arg2: u64) -> Result<usize> {
        if StdFsCallKind::try_from_raw(kind).is_none() {
            return Err(Error::new(EOPNOTSUPP));
        }
        let answer = self.call_with(Opcode::StdFsCall, other, payload, &[u64::from(kind), arg1, arg2])?;
        if let Answer::Regular { notify_on_detach, .. } = &answer {
            self.description.status().notify_on_detach = *notify_on_detach;
        }
        answer.number()
    }

    fn call_with(&self, opcode: Opcode, other: Option<&Fd>, payload: &mut [u8], metadata: &[u64]) -> Result<Answer> {
        let mut args = [self.id() as u64, address_mut(payload), payload.len() as u64, 0, 0, 0];
        let mut sqe_flags = SqeFlags::empty();
        let mut words = &mut args[3..];
        if let Some(other) = other {
            if !Arc::ptr_eq(&self.description.scheme, &other.description.scheme) {
                return Err(Error::new(EXDEV));
            }
            sqe_flags = SqeFlags::MULTIPLE_IDS;
            words[2] = other.id() as u64;
            words = &mut args[3..5];
        }
        for (word, value) in words.iter_mut().zip(metadata) {
            *word = *value;
        }
        let caller = self.caller.pid as u64;
        self.description.scheme.call(Sqe { opcode: opcode as u8, sqe_flags, args, caller, ..Sqe::default() })
    }

    /// Returns attributes.
    pub fn fstat(&self) -> Result<Stat> {
        let mut stat = Stat::default();
        self.std_fs_call(StdFsCallKind::Fstat as u8, &mut stat, 0, 0)?;
        Ok(stat)
    }

    /// Returns the space and the limits of the filesystem.
    pub fn fstatvfs(&self) -> Result<StatVfs> {
        let mut stat = StatVfs::default();
        self.std_fs_call(StdFsCallKind::Fstatvfs as u8, &mut stat, 0, 0)?;
        Ok(stat)
    }

    /// Sets the permission bits.
    pub fn fchmod(&self, mode: u16) -> Result<()> {
        self.std_fs_call(StdFsCallKind::Fchmod as u8, &mut [], u64::from(mode), 0).map(drop)
    }

    /// Sets the size.
    pub fn ftruncate(&self, size: u64) -> Result<()> {
        self.std_fs_call(StdFsCallKind::Ftruncate as u8, &mut [], size, 0).map(drop)
    }

    /// Sets the times of last access and last change. `UTIME_NOW` and `UTIME_OMIT` arrive
    /// unchanged.
    pub fn futimens(&self, atime: TimeSpec, mtime: TimeSpec) -> Result<()> {
        /// Two `TimeSpec`s in memory, aligned as the scheme reads them.
        #[repr(align(8))]
        struct Times([u8; 2 * size_of::<TimeSpec>()]);
        let mut times = Times([0; _]);
        for (time, bytes) in [atime, mtime].iter().zip(times.0.chunks_exact_mut(size_of::<TimeSpec>())) {
            bytes[offset_of!(TimeSpec, tv_sec)..][..8].copy_from_slice(&time.tv_sec.to_ne_bytes());
            bytes[offset_of!(TimeSpec, tv_nsec)..][..4].copy_from_slice(&time.tv_nsec.to_ne_bytes());
        }
        self.std_fs_call(StdFsCallKind::Futimens as u8, &mut times.0, 0, 0).map(drop)
    }

    /// Syncs the file to the disk.
    pub fn fsync(&self) -> Result<()> {
        self.std_fs_call(StdFsCallKind::Fsync as u8, &mut [], 0, 0).map(drop)
    }

    /// Lists a directory into `buf` from the opaque offset `after` on. Returns how many bytes of
    /// records it wrote; 0 at the end.
    pub fn getdents(&self, buf: &mut [u8], after: u64) -> Result<usize> {
        self.std_fs_call(StdFsCallKind::Getdents as u8, buf, after, size_of::<DirentHeader>() as u64)
    }

    /// Removes an entry of this directory by the standard call, which relibc does not use yet.
    pub fn std_unlinkat(&self, path: impl AsRef<[u8]>, flags: usize) -> Result<()> {
        let mut payload = path.as_ref().to_vec();
        self.std_fs_call(StdFsCallKind::Unlinkat as u8, &mut payload, flags as u64, 0).map(drop)
    }

    /// Writes the path of this file relative to the directory `dir` to the start of `buf`. Returns
    /// its length.
    pub fn relpathat(&self, dir: &Fd, buf: &mut [u8]) -> Result<usize> {
        self.std_fs_call_multiple(dir, StdFsCallKind::Relpathat as u8, buf, 0)
    }

    /// Renames an entry of this directory into `new_dir`. `flags` are the `RENAME_*` of Linux.
    pub fn frenameat(&self, old: impl AsRef<[u8]>, new_dir: &Fd, new: impl AsRef<[u8]>, flags: u32) -> Result<()> {
        let mut payload = [old.as_ref(), new.as_ref()].join(&0);
        self.std_fs_call_multiple(new_dir, StdFsCallKind::Frenameat as u8, &mut payload, u64::from(flags)).map(drop)
    }

    /// Gives the object of this descriptor a second name in `dir`.
    pub fn flinkat(&self, dir: &Fd, path: impl AsRef<[u8]>, flags: u32) -> Result<()> {
        let mut payload = path.as_ref().to_vec();
        self.std_fs_call_multiple(dir, StdFsCallKind::Flinkat as u8, &mut payload, u64::from(flags)).map(drop)
    }

    /// Sends any request to the scheme of this file, with its tag and the caller's pid. A request
    /// without a waiting caller (one-way, or a message of the kernel) returns 0. An open returns
    /// the scheme's number, without a descriptor.
    ///
    /// # Safety
    ///
    /// The arguments that the scheme takes for an address and a length must name memory. The scheme
    /// may read or write it as the request says.
    pub unsafe fn raw(&self, sqe: Sqe) -> Result<usize> {
        // SAFETY: as the caller promises.
        unsafe { self.begin_raw(sqe) }?.finish()
    }

    /// As [`Fd::raw`], but [`Begun::finish`] waits for the answer.
    ///
    /// # Safety
    ///
    /// As for [`Fd::raw`], until the answer is there.
    pub unsafe fn begin_raw(&self, sqe: Sqe) -> Result<Begun> {
        let scheme = self.description.scheme.clone();
        let sqe = Sqe { caller: self.caller.pid as u64, ..sqe };
        let tag = if expects_answer(&sqe) {
            Some(scheme.begin(sqe, Vec::new())?)
        } else {
            scheme.send(sqe);
            None
        };
        Ok(Begun { scheme, tag })
    }
}

/// A request on its way. The thread that sent it waits for its answer.
pub struct Begun {
    scheme: Arc<Scheme>,
    tag: Option<u32>,
}

impl Begun {
    /// Returns the tag of the request. None: it has no answer.
    pub fn tag(&self) -> Option<u32> {
        self.tag
    }

    /// Waits for the answer of [`Fd::raw`].
    pub fn finish(self) -> Result<usize> {
        self.tag.map_or(Ok(0), |tag| self.scheme.finish(tag)?.number())
    }
}

impl Status {
    /// Returns the offset of the next read or write. The scheme of a file without an offset gets
    /// the largest number.
    fn current_offset(&self) -> u64 {
        if self.positioned { self.offset } else { u64::MAX }
    }
}

fn address(buf: &[u8]) -> u64 {
    if buf.is_empty() { DANGLING } else { buf.as_ptr() as u64 }
}

fn address_mut(buf: &mut [u8]) -> u64 {
    if buf.is_empty() { DANGLING } else { buf.as_mut_ptr() as u64 }
}

fn checked_path(path: &[u8]) -> Result<&str> {
    if path.len() > PATH_MAX {
        return Err(Error::new(ENAMETOOLONG));
    }
    std::str::from_utf8(path).map_err(|_| Error::new(EINVAL))
}
