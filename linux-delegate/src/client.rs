//! Programs: the requests that relibc and `std::fs` make for a program's calls.
//!
//! Absolute paths are `/scheme/NAME/...`. A relative path starts at the directory of
//! [`Process::at`], as for the `*at` functions. Flags are those of `syscall::flag`. A process has a
//! umask, 0o022 by default, which relibc applies itself.
//!
//! Errors are those of the scheme, and these:
//!
//! - ENODEV: no daemon has registered the scheme, or its daemon is gone.
//! - ENOENT: the path is empty, or relative without a directory.
//! - EINVAL: the path is not UTF-8, or contains a zero byte.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use libredox::protocol::{FsCall, SocketCall};
use redox_path::{RedoxPath, RedoxStr};
use syscall::data::{Stat, StatVfs, TimeSpec};
use syscall::dirent::DirentHeader;
use syscall::error::{EBADF, EEXIST, EINVAL, EIO, ELOOP, ENAMETOOLONG, ENOENT, ESRCH, EXDEV, Error, Result};
use syscall::flag::{
    AT_REMOVEDIR, MODE_FIFO, O_CREAT, O_DIRECTORY, O_EXCL, O_FCNTL_MASK, O_NOFOLLOW, O_RDONLY, O_RDWR, O_STAT,
    O_SYMLINK, O_WRONLY, StdFsCallKind,
};

use crate::kernel::{self, Caller, Credentials, Fd, PATH_MAX, manager};

/// Close on exec. To a scheme it is an open flag without a meaning; relibc passes it on.
pub const O_CLOEXEC: usize = 0x0100_0000;

/// How many symlinks to other schemes relibc follows before it returns ELOOP.
const SYMLOOP_MAX: usize = 64;

/// The size of relibc's buffer for listings, until an entry does not fit.
const DIRENT_BUFFER: usize = 512;

/// A running program: a pid, a uid, a gid, a umask. Clones are its threads.
#[derive(Clone)]
pub struct Process {
    caller: Arc<Caller>,
    umask: u32,
    dir: Option<Arc<Fd>>,
}

/// The arguments of a lock call of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    pub start: u64,
    /// 0: to the end of the file.
    pub len: u64,
    pub exclusive: bool,
    /// The open file owns it (`F_OFD_SETLK`), not the process.
    pub of_file: bool,
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    pub name: String,
    pub ino: u64,
    /// A `syscall::dirent::DirentKind`.
    pub kind: u8,
    /// The offset of a listing behind this entry.
    pub next: u64,
}

impl Process {
    /// Makes a process with a new pid.
    pub fn new(uid: u32, gid: u32) -> Self {
        // These pids are far from those of Linux, which a FUSE mount passes on.
        static NEXT_PID: AtomicUsize = AtomicUsize::new(1 << 24);
        Self::with_pid(NEXT_PID.fetch_add(1, Ordering::Relaxed), uid, gid)
    }

    /// Makes a process with a chosen pid.
    pub fn with_pid(pid: usize, uid: u32, gid: u32) -> Self {
        Self::of(Caller::new(pid, Credentials { uid, gid }))
    }

    /// Makes a process that the kernel knows already.
    pub(crate) fn of(caller: Arc<Caller>) -> Self {
        Self { caller, umask: 0o022, dir: None }
    }

    /// Returns the kernel's entry of the process.
    pub(crate) fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    /// Returns the same process with another umask.
    pub fn with_umask(&self, umask: u32) -> Self {
        Self { umask: umask & 0o777, ..self.clone() }
    }

    /// Returns the same process, with `dir` as the start of relative paths.
    pub fn at(&self, dir: &Fd) -> Self {
        Self { dir: Some(Arc::new(dir.held_by(self.caller.clone()))), ..self.clone() }
    }

    pub fn pid(&self) -> usize {
        self.caller.pid
    }

    pub fn uid(&self) -> u32 {
        self.caller.credentials.uid
    }

    pub fn gid(&self) -> u32 {
        self.caller.credentials.gid
    }

    /// Returns a descriptor of another process as this one inherits it: the same open file, with
    /// requests of this process.
    pub fn inherit(&self, fd: &Fd) -> Fd {
        fd.held_by(self.caller.clone())
    }

    /// Returns the descriptor at which every absolute path of a scheme is opened: the root of the
    /// scheme. The path of that is `""`.
    pub fn scheme_root(&self, name: &str) -> Result<Fd> {
        Ok(Fd::new(self.caller.clone(), kernel::root(name)?))
    }

    /// `open` and `openat`: the low 16 bits of the flags for the scheme are `mode` without the
    /// umask. If a symlink leads to another scheme, its own returns EXDEV. Then the target is read
    /// and opened there.
    pub fn open(&self, path: impl AsRef<[u8]>, flags: usize, mode: u32) -> Result<Fd> {
        let flags = (flags & 0xFFFF_0000) | ((mode & !self.umask) as usize & 0xFFFF);
        match parse(path.as_ref())? {
            path if path.is_empty() => Err(Error::new(ENOENT)),
            RedoxStr::Absolute(path) => match self.open_absolute(&text(path.clone()), flags) {
                Err(Error { errno: EXDEV }) => {
                    let link = self.open_absolute(&text(path), O_CLOEXEC | O_SYMLINK | O_RDONLY)?;
                    // relibc resolves a relative target at the working directory here, not at the
                    // directory of the symlink.
                    self.open_elsewhere(self.resolve(&link_target(&link)?)?, flags)
                }
                result => result,
            },
            RedoxStr::Relative(path) => {
                let dir = self.dir()?;
                match dir.openat(path.as_ref(), flags, (flags & O_FCNTL_MASK) as u32) {
                    Err(Error { errno: EXDEV }) => {
                        let link = dir.openat(path.as_ref(), O_CLOEXEC | O_SYMLINK | O_RDONLY, 0)?;
                        self.open_elsewhere(self.resolve(&link_target(&link)?)?, flags)
                    }
                    result => result,
                }
            }
        }
    }

    fn dir(&self) -> Result<&Fd> {
        self.dir.as_deref().ok_or(Error::new(ENOENT))
    }

    fn open_absolute(&self, path: &str, flags: usize) -> Result<Fd> {
        let path = RedoxPath::from_absolute(path).ok_or(Error::new(EINVAL))?;
        let (scheme, reference) = path.as_parts().ok_or(Error::new(EINVAL))?;
        manager::ask(|| {
            self.scheme_root(scheme.as_ref())?.openat(reference.as_ref(), flags, (flags & O_FCNTL_MASK) as u32)
        })
    }

    /// Opens a path, also through symlinks to further schemes.
    fn open_elsewhere(&self, mut path: RedoxPath<'static>, flags: usize) -> Result<Fd> {
        for _ in 0..SYMLOOP_MAX {
            let name = text(path.clone());
            match self.open_absolute(&name, flags) {
                Err(Error { errno: EXDEV }) => {
                    let link = self.open_absolute(&name, O_CLOEXEC | O_SYMLINK | O_RDONLY)?;
                    let target = link_target(&link)?;
                    path = path.dirname().canonicalize_as_cwd(parse(target.as_bytes())?).into_owned();
                }
                result => return result,
            }
        }
        Err(Error::new(ELOOP))
    }

    /// Makes an absolute path, as relibc does before calls that take only such. An absolute path
    /// stays. A relative one is appended to the `fpath` of the directory, and `.` and `..` are
    /// resolved in the text.
    fn resolve(&self, path: &str) -> Result<RedoxPath<'static>> {
        match parse(path.as_bytes())? {
            path if path.is_empty() => Err(Error::new(ENOENT)),
            RedoxStr::Absolute(path) => Ok(path.into_owned()),
            RedoxStr::Relative(path) => {
                let dir = self.dir()?.path()?;
                let dir = RedoxPath::from_absolute(dir).ok_or(Error::new(EBADF))?;
                Ok(dir.canonicalize_as_cwd(RedoxStr::Relative(path)).into_owned())
            }
        }
    }

    /// `stat`.
    pub fn stat(&self, path: impl AsRef<[u8]>) -> Result<Stat> {
        self.open(path, O_CLOEXEC | O_STAT, 0)?.fstat()
    }

    /// `lstat`.
    pub fn lstat(&self, path: impl AsRef<[u8]>) -> Result<Stat> {
        self.open(path, O_CLOEXEC | O_STAT | O_NOFOLLOW, 0)?.fstat()
    }

    /// `statvfs`.
    pub fn statvfs(&self, path: impl AsRef<[u8]>) -> Result<StatVfs> {
        self.open(path, O_STAT, 0)?.fstatvfs()
    }

    /// `chmod`.
    pub fn chmod(&self, path: impl AsRef<[u8]>, mode: u16) -> Result<()> {
        self.open(path, O_CLOEXEC | O_STAT, 0)?.fchmod(mode)
    }

    /// `chown`; relibc opens without an access mode.
    pub fn chown(&self, path: impl AsRef<[u8]>, uid: u32, gid: u32) -> Result<()> {
        self.open(path, O_CLOEXEC, 0)?.fchown(uid, gid)
    }

    /// `lchown`.
    pub fn lchown(&self, path: impl AsRef<[u8]>, uid: u32, gid: u32) -> Result<()> {
        self.open(path, O_CLOEXEC | O_STAT | O_NOFOLLOW, 0)?.fchown(uid, gid)
    }

    /// `truncate`.
    pub fn truncate(&self, path: impl AsRef<[u8]>, size: u64) -> Result<()> {
        self.open(path, O_WRONLY, 0)?.ftruncate(size)
    }

    /// `utimensat` without flags; relibc opens without any.
    pub fn utimens(&self, path: impl AsRef<[u8]>, atime: TimeSpec, mtime: TimeSpec) -> Result<()> {
        self.open(path, 0, 0)?.futimens(atime, mtime)
    }

    /// `mkdir`; relibc ignores its mode.
    pub fn mkdir(&self, path: impl AsRef<[u8]>) -> Result<()> {
        self.open(path, O_CREAT | O_EXCL | O_DIRECTORY | O_CLOEXEC, 0o777).map(drop)
    }

    /// `mknod`, with the type in the mode. It does not pass the device on.
    pub fn mknod(&self, path: impl AsRef<[u8]>, mode: u32) -> Result<()> {
        self.open(path, O_CREAT | O_CLOEXEC, mode).map(drop)
    }

    /// `mkfifo`.
    pub fn mkfifo(&self, path: impl AsRef<[u8]>, mode: u32) -> Result<()> {
        self.mknod(path, u32::from(MODE_FIFO) | (mode & 0o777))
    }

    /// `symlink`: creates `path`, not exclusively, and writes the target.
    pub fn symlink(&self, target: impl AsRef<[u8]>, path: impl AsRef<[u8]>) -> Result<()> {
        let link = self.open(path, O_CREAT | O_WRONLY | O_SYMLINK | O_CLOEXEC, 0o777)?;
        link.write(target.as_ref()).map(drop)
    }

    /// `readlink`, with a buffer for the longest path.
    pub fn readlink(&self, path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        let link = self.open(path, O_RDONLY | O_SYMLINK | O_CLOEXEC, 0)?;
        let mut target = vec![0; PATH_MAX];
        let length = link.read(&mut target)?;
        target.truncate(length);
        Ok(target)
    }

    /// `unlink`.
    pub fn unlink(&self, path: impl AsRef<[u8]>) -> Result<()> {
        self.unlink_with(path.as_ref(), 0)
    }

    /// `rmdir`.
    pub fn rmdir(&self, path: impl AsRef<[u8]>) -> Result<()> {
        self.unlink_with(path.as_ref(), AT_REMOVEDIR)
    }

    fn unlink_with(&self, path: &[u8], flags: usize) -> Result<()> {
        let path = self.resolve(utf8(path)?)?;
        let (scheme, reference) = path.as_parts().ok_or(Error::new(EINVAL))?;
        manager::ask(|| self.scheme_root(scheme.as_ref())?.unlinkat(reference.as_ref(), flags))
    }

    /// `rename`.
    pub fn rename(&self, old: impl AsRef<[u8]>, new: impl AsRef<[u8]>) -> Result<()> {
        let source = self.open(old, O_NOFOLLOW | O_STAT | O_CLOEXEC, 0)?;
        source.frename(text(self.resolve(utf8(new.as_ref())?)?))
    }

    /// `renameat` with another directory for the new name.
    pub fn rename_into(&self, old: impl AsRef<[u8]>, new_dir: &Fd, new: impl AsRef<[u8]>) -> Result<()> {
        let source = self.open(old, O_NOFOLLOW | O_STAT | O_CLOEXEC, 0)?;
        source.frename(text(self.at(new_dir).resolve(utf8(new.as_ref())?)?))
    }

    /// `renameat2` with `RENAME_NOREPLACE`: relibc checks the name first and then renames.
    pub fn rename_noreplace(&self, old: impl AsRef<[u8]>, new: impl AsRef<[u8]>) -> Result<()> {
        if self.open(new.as_ref(), O_STAT | O_CLOEXEC, 0).is_ok() {
            return Err(Error::new(EEXIST));
        }
        self.rename(old, new)
    }

    /// `link`.
    pub fn link(&self, old: impl AsRef<[u8]>, new: impl AsRef<[u8]>) -> Result<()> {
        let source = self.open(old, O_STAT | O_CLOEXEC | O_NOFOLLOW, 0)?;
        source.flink(text(self.resolve(utf8(new.as_ref())?)?))
    }

    /// `realpath`.
    pub fn realpath(&self, path: impl AsRef<[u8]>) -> Result<String> {
        self.open(path, O_STAT | O_CLOEXEC, 0)?.path()
    }

    /// `opendir`, `readdir` until the end, `closedir`.
    pub fn read_dir(&self, path: impl AsRef<[u8]>) -> Result<Vec<DirEntry>> {
        self.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0)?.entries()
    }

    /// `bind` of a socket of another scheme: the socket gets the path, and the directory gets the
    /// socket. If the directory refuses it, the socket is unbound again.
    pub fn bind(&self, socket: &Fd, path: impl AsRef<[u8]>) -> Result<()> {
        let path = self.resolve(utf8(path.as_ref())?)?;
        let (scheme, reference) = path.as_parts().ok_or(Error::new(EINVAL))?;
        let reference = reference.as_ref();
        let dir = reference.rsplit_once('/').map_or("", |(dir, _)| dir);
        let dir = format!("/scheme/{}/{dir}", scheme.as_ref());
        socket.call(&mut reference.as_bytes().to_vec(), &[SocketCall::Bind as u64])?;
        let named = self.open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0).and_then(|dir| dir.send(socket.dup(&[])?));
        if named.is_err() {
            let _ = socket.call(&mut [], &[SocketCall::Unbind as u64]);
        }
        named.map(drop)
    }

    /// `connect` of a socket to the one that is bound to a path.
    pub fn connect(&self, socket: &Fd, path: impl AsRef<[u8]>) -> Result<()> {
        let file = self.open(path, O_RDWR, 0)?;
        let mut token = [0; 16];
        file.call(&mut token, &[FsCall::Connect as u64])?;
        socket.call(&mut token, &[SocketCall::Connect as u64]).map(drop)
    }

    /// Reads a file as `std::fs::read` does: it takes the size from `fstat`, then reads to the end.
    pub fn read_file(&self, path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        let file = self.open(path, O_RDONLY | O_CLOEXEC, 0)?;
        let mut data = vec![0; file.fstat()?.st_size as usize + 1];
        let mut length = 0;
        loop {
            if length == data.len() {
                data.resize(length * 2, 0);
            }
            match file.read(&mut data[length..])? {
                0 => break,
                count => length += count,
            }
        }
        data.truncate(length);
        Ok(data)
    }

    /// Writes a file as `std::fs::write` does: creates it with 0o666 or truncates it.
    pub fn write_file(&self, path: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Result<()> {
        let flags = O_WRONLY | O_CREAT | syscall::flag::O_TRUNC | O_CLOEXEC;
        self.open(path, flags, 0o666)?.write_all(data.as_ref())
    }
}

impl Fd {
    /// Returns the `fpath` as relibc reports it: `/scheme/NAME/path`, or `/path` in the scheme
    /// `file`.
    pub fn path(&self) -> Result<String> {
        let mut buf = [0; PATH_MAX];
        let length = self.fpath(&mut buf)?;
        let path = buf.get(..length).ok_or(Error::new(EIO))?;
        let path = RedoxPath::from_absolute(utf8(path)?).ok_or(Error::new(EINVAL))?;
        let (scheme, reference) = path.as_parts().ok_or(Error::new(EINVAL))?;
        let reference = reference.as_ref().trim_start_matches('/');
        Ok(match scheme.as_ref() {
            "file" => format!("/{reference}"),
            scheme => format!("/scheme/{scheme}/{reference}"),
        })
    }

    /// Returns the whole listing of a directory, with buffers like relibc's.
    ///
    /// # Errors
    ///
    /// - EIO: the scheme wrote malformed records.
    pub fn entries(&self) -> Result<Vec<DirEntry>> {
        let mut entries: Vec<DirEntry> = Vec::new();
        let mut buf = vec![0; DIRENT_BUFFER];
        loop {
            let after = entries.last().map_or(0, |entry| entry.next);
            match self.getdents(&mut buf, after) {
                Ok(0) => return Ok(entries),
                Ok(length) => entries.extend(parse_dirents(buf.get(..length).ok_or(Error::new(EIO))?)?),
                // The next entry does not fit.
                Err(Error { errno: EINVAL }) if buf.len() < 1 << 20 => buf.resize(buf.len() * 2, 0),
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes all of `data`.
    ///
    /// # Errors
    ///
    /// - EIO: the scheme takes no byte.
    pub fn write_all(&self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            match self.write(data)? {
                0 => return Err(Error::new(EIO)),
                count => data = data.get(count..).ok_or(Error::new(EIO))?,
            }
        }
        Ok(())
    }

    /// `fcntl(F_SETLK)` or `fcntl(F_OFD_SETLK)` with `F_RDLCK` or `F_WRLCK`.
    ///
    /// # Errors
    ///
    /// - EWOULDBLOCK (41 on Redox, not EAGAIN): a lock of another owner conflicts.
    pub fn lock(&self, lock: Lock) -> Result<()> {
        let (start, len) = lock.words();
        self.std_fs_call(StdFsCallKind::Lock as u8, &mut [], start, len).map(drop)
    }

    /// The same with `F_UNLCK`.
    pub fn unlock(&self, lock: Lock) -> Result<()> {
        let (start, _) = lock.words();
        self.std_fs_call(StdFsCallKind::Unlock as u8, &mut [], start, lock.len).map(drop)
    }

    /// Returns a lock that conflicts with `lock`, and the pid of its owner (0: an open file). The
    /// range is in the arguments of the call.
    ///
    /// relibc of August 2026 passes the range in the payload, where no scheme reads it. So its
    /// `F_GETLK` asks about the whole file.
    pub fn get_lock(&self, lock: Lock) -> Result<Option<(Lock, usize)>> {
        let (start, len) = lock.words();
        let mut found = [0u64; 2];
        // SAFETY: two words are 16 initialized bytes, and any bytes are words.
        let payload = unsafe { std::slice::from_raw_parts_mut(found.as_mut_ptr().cast::<u8>(), size_of_val(&found)) };
        match self.std_fs_call(StdFsCallKind::GetLock as u8, payload, start, len) {
            Ok(pid) => {
                let (exclusive, len) = (found[1] >> 63 == 1, found[1] & !(1 << 63));
                Ok(Some((Lock { start: found[0], len, exclusive, of_file: pid == 0 }, pid)))
            }
            Err(Error { errno: ESRCH }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Lock {
    /// Returns the two words of a lock request. Their top bits have the owner and the kind.
    fn words(self) -> (u64, u64) {
        (self.start | (u64::from(self.of_file) << 63), self.len | (u64::from(self.exclusive) << 63))
    }
}

/// Parses the records of [`Fd::getdents`].
///
/// # Errors
///
/// - EIO: they are no sequence of whole records with names that end in a zero byte.
pub fn parse_dirents(mut records: &[u8]) -> Result<Vec<DirEntry>> {
    const HEADER: usize = size_of::<DirentHeader>();
    let malformed = || Error::new(EIO);
    let mut entries = Vec::new();
    while !records.is_empty() {
        let mut header = DirentHeader::default();
        header.copy_from_slice(records.get(..HEADER).ok_or_else(malformed)?);
        let (record, rest) = records.split_at_checked(usize::from(header.record_len)).ok_or_else(malformed)?;
        let name = record.get(HEADER..).ok_or_else(malformed)?;
        if name.last() != Some(&0) {
            return Err(malformed());
        }
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        entries.push(DirEntry {
            name: String::from_utf8(name.to_vec()).map_err(|_| malformed())?,
            ino: header.inode,
            kind: header.kind,
            next: header.next_opaque_id,
        });
        records = rest;
    }
    Ok(entries)
}

/// Reads the target of a symlink that was opened with O_SYMLINK.
///
/// # Errors
///
/// - ENOENT: the target is not UTF-8.
/// - ENAMETOOLONG: the target has more than 4096 bytes.
fn link_target(link: &Fd) -> Result<String> {
    let mut target = vec![0; PATH_MAX + 1];
    let length = link.read(&mut target)?;
    if length == target.len() {
        return Err(Error::new(ENAMETOOLONG));
    }
    target.truncate(length);
    String::from_utf8(target).map_err(|_| Error::new(ENOENT))
}

fn utf8(path: &[u8]) -> Result<&str> {
    std::str::from_utf8(path).map_err(|_| Error::new(EINVAL))
}

fn parse(path: &[u8]) -> Result<RedoxStr<'_>> {
    RedoxStr::new(utf8(path)?).ok_or(Error::new(EINVAL))
}

fn text(path: RedoxPath<'_>) -> String {
    Cow::<str>::from(path).into_owned()
}
