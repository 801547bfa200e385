//! The scheme as a [`Door`]: a daemon on a thread, and a client that calls it through the delegate's kernel.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use linux_delegate::client::parse_dirents;
use linux_delegate::{Fd, Process, kernel};
use overlayfs::layer::{Owner, RenameMode, Stat, Time};
use overlayfs::options::Options;
use overlayfs::scheme::OverlayScheme;
use redox_scheme::Socket;
use redox_scheme::scheme::register_sync_scheme;
use syscall::TimeSpec;
use syscall::error::{EINVAL, EIO, EISDIR, Error};
use syscall::flag::{
    AT_REMOVEDIR, MODE_CHR, MODE_DIR, MODE_FIFO, MODE_FILE, MODE_SOCK, MODE_SYMLINK, MODE_TYPE, O_CREAT, O_DIRECTORY,
    O_EXCL, O_NOFOLLOW, O_RDONLY, O_RDWR, O_STAT, O_SYMLINK, O_WRONLY,
};

use crate::Kind;
use crate::door::{At, Door, Listed, Result};

/// The flags of renameat2, which Redox shares with Linux.
const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;

pub struct Scheme {
    name: String,
    /// The directory of every path that is not relative to a handle. Closed before the daemon is stopped.
    root: Option<Fd>,
    daemon: Option<JoinHandle<()>>,
}

pub struct SchemeHandle {
    fd: Fd,
    kind: Kind,
}

impl fmt::Debug for SchemeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "handle {} of a {:?}", self.fd.id(), self.kind)
    }
}

/// Mounts these layers and serves them.
pub fn mount(lowers: &[PathBuf], upper: &Path) -> Scheme {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("model{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let options = Options { lowers: lowers.to_vec(), upper: Some(upper.to_owned()), work: None };
    let overlay = overlayfs::mount::mount(&options).unwrap_or_else(|error| panic!("{error}"));
    let (ready, wait) = mpsc::channel();
    let served = name.clone();
    let daemon = std::thread::spawn(move || {
        let socket = Socket::create().unwrap();
        let mut scheme = OverlayScheme::new(Arc::new(overlay), served.clone());
        register_sync_scheme(&socket, &served, &mut scheme).unwrap();
        ready.send(()).unwrap();
        overlayfs::daemon::serve(&socket, &mut scheme).unwrap();
    });
    wait.recv().unwrap();
    let root = Process::new(0, 0).scheme_root(&name).unwrap().openat("", O_STAT | O_DIRECTORY, 0).unwrap();
    Scheme { name, root: Some(root), daemon: Some(daemon) }
}

impl Drop for Scheme {
    fn drop(&mut self) {
        drop(self.root.take());
        kernel::stop(&self.name).unwrap();
        if let Some(daemon) = self.daemon.take() {
            daemon.join().unwrap();
        }
        kernel::unregister(&self.name).unwrap();
    }
}

fn errno(error: Error) -> i32 {
    error.errno
}

fn kind(mode: u16) -> Kind {
    match mode & MODE_TYPE {
        MODE_FILE => Kind::File,
        MODE_DIR => Kind::Dir,
        MODE_SYMLINK => Kind::Symlink,
        MODE_FIFO => Kind::Fifo,
        MODE_SOCK => Kind::Socket,
        MODE_CHR => Kind::CharDev,
        other => panic!("an object of the type {other:o}"),
    }
}

fn joined(path: &[OsString]) -> Vec<u8> {
    path.iter().map(|name| name.as_bytes()).collect::<Vec<_>>().join(&b'/')
}

impl Scheme {
    /// Where a path starts, and the path.
    fn path<'a>(&'a self, at: &At<'a, SchemeHandle>) -> (&'a Fd, Vec<u8>) {
        let start = at.held.map_or_else(|| self.root.as_ref().unwrap(), |handle| &handle.fd);
        (start, joined(at.path))
    }

    /// A path from the root as programs name it.
    fn absolute(&self, path: &[u8]) -> Vec<u8> {
        [b"/scheme/", self.name.as_bytes(), b"/", path].concat()
    }
}

impl SchemeHandle {
    fn file(&self) -> Result<&Fd> {
        match self.kind {
            Kind::File => Ok(&self.fd),
            Kind::Dir => Err(EISDIR),
            _ => Err(EINVAL),
        }
    }
}

impl Door for Scheme {
    type Handle = SchemeHandle;

    fn open(&self, at: &At<SchemeHandle>) -> Result<SchemeHandle> {
        let (start, path) = self.path(at);
        let looked = start.openat(&path, O_STAT | O_NOFOLLOW, 0).map_err(errno)?;
        let kind = kind(looked.fstat().map_err(errno)?.st_mode);
        let flags = match kind {
            Kind::File => O_RDWR,
            Kind::Dir => O_RDONLY | O_DIRECTORY,
            Kind::Symlink => O_RDONLY | O_SYMLINK,
            _ => return Ok(SchemeHandle { fd: looked, kind }),
        };
        let fd = start.openat(&path, flags | O_NOFOLLOW, 0).map_err(errno)?;
        Ok(SchemeHandle { fd, kind })
    }

    fn create(&self, at: &At<SchemeHandle>, kind: Kind, mode: u32, owner: Owner, target: &OsStr) -> Result<()> {
        let (start, path) = self.path(at);
        let flags = match kind {
            Kind::File => O_EXCL | O_RDWR | 0o600,
            Kind::Dir => O_EXCL | O_DIRECTORY | 0o700,
            Kind::Symlink => O_SYMLINK | O_WRONLY,
            Kind::Fifo => usize::from(MODE_FIFO) | 0o600,
            Kind::Socket => usize::from(MODE_SOCK) | 0o600,
            Kind::CharDev | Kind::BlockDev => unreachable!("the model makes no devices"),
        };
        let made = start.openat(&path, O_CREAT | flags, 0).map_err(errno)?;
        if kind == Kind::Symlink {
            made.write(target.as_bytes()).map_err(errno)?;
        }
        made.fchown(owner.uid, owner.gid).map_err(errno)?;
        if kind != Kind::Symlink {
            made.fchmod(mode as u16).map_err(errno)?;
        }
        Ok(())
    }

    fn link(&self, handle: &SchemeHandle, to: &At<SchemeHandle>) -> Result<()> {
        let (dir, path) = self.path(to);
        handle.fd.flinkat(dir, path, 0).map_err(errno)
    }

    fn unlink(&self, at: &At<SchemeHandle>) -> Result<()> {
        let (start, path) = self.path(at);
        start.unlinkat(path, 0).map_err(errno)
    }

    fn remove_dir(&self, at: &At<SchemeHandle>) -> Result<()> {
        let (start, path) = self.path(at);
        start.unlinkat(path, AT_REMOVEDIR).map_err(errno)
    }

    fn rename(&self, from: &At<SchemeHandle>, to: &At<SchemeHandle>, mode: RenameMode) -> Result<()> {
        let ((dir, path), (new_dir, new_path)) = (self.path(from), self.path(to));
        let flags = match mode {
            // As std::fs renames.
            RenameMode::Replace if to.held.is_none() => {
                return dir
                    .openat(path, O_STAT | O_NOFOLLOW, 0)
                    .and_then(|old| old.frename(self.absolute(&new_path)))
                    .map_err(errno);
            }
            RenameMode::Replace => 0,
            RenameMode::NoReplace => NOREPLACE,
            RenameMode::Exchange => EXCHANGE,
        };
        dir.frenameat(path, new_dir, new_path, flags).map_err(errno)
    }

    fn stat(&self, handle: &SchemeHandle) -> Result<Stat> {
        let stat = handle.fd.fstat().map_err(errno)?;
        let time = |sec, nsec| Time { sec: sec as i64, nsec };
        Ok(Stat {
            dev: stat.st_dev,
            ino: stat.st_ino,
            kind: kind(stat.st_mode),
            mode: u32::from(stat.st_mode & 0o7777),
            nlink: stat.st_nlink,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: 0,
            size: stat.st_size,
            blksize: stat.st_blksize,
            blocks: stat.st_blocks,
            atime: time(stat.st_atime, stat.st_atime_nsec),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        })
    }

    fn read_link(&self, handle: &SchemeHandle) -> Result<OsString> {
        if handle.kind != Kind::Symlink {
            return Err(EINVAL);
        }
        let mut target = vec![0; 4096];
        let read = handle.fd.read_at(&mut target, 0).map_err(errno)?;
        target.truncate(read);
        Ok(OsString::from_vec(target))
    }

    fn read(&self, handle: &SchemeHandle, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let read = handle.file()?.read_at(&mut bytes, offset).map_err(errno)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn write(&self, handle: &SchemeHandle, offset: Option<u64>, bytes: &[u8]) -> Result<()> {
        let written = handle.file()?.write_at_with(bytes, offset.unwrap_or(0), offset.is_none(), false);
        if written.map_err(errno)? == bytes.len() { Ok(()) } else { Err(EIO) }
    }

    fn truncate(&self, handle: &SchemeHandle, size: u64) -> Result<()> {
        handle.file()?.ftruncate(size).map_err(errno)
    }

    fn set_mode(&self, handle: &SchemeHandle, mode: u32) -> Result<()> {
        handle.fd.fchmod(mode as u16).map_err(errno)
    }

    fn set_owner(&self, handle: &SchemeHandle, owner: Owner) -> Result<()> {
        handle.fd.fchown(owner.uid, owner.gid).map_err(errno)
    }

    fn set_times(&self, handle: &SchemeHandle, atime: Time, mtime: Time) -> Result<()> {
        let time = |time: Time| TimeSpec { tv_sec: time.sec, tv_nsec: time.nsec as i32 };
        handle.fd.futimens(time(atime), time(mtime)).map_err(errno)
    }

    fn sync(&self, handle: &SchemeHandle) -> Result<()> {
        handle.fd.fsync().map_err(errno)
    }

    fn list(&self, handle: &SchemeHandle, chunk: usize) -> Result<Vec<Listed>> {
        let (mut listed, mut after) = (Vec::new(), 0);
        // The longest entry has 19 bytes before its name, and one and up to seven behind it.
        let mut records = vec![0; chunk * (19 + 255 + 8)];
        loop {
            let read = handle.fd.getdents(&mut records, after).map_err(errno)?;
            if read == 0 {
                return Ok(listed);
            }
            for entry in parse_dirents(&records[..read]).map_err(errno)? {
                after = entry.next;
                let kind = match entry.kind {
                    // Redox has no type for a FIFO in listings, and every other has one.
                    0 => Kind::Fifo,
                    4 => Kind::Dir,
                    8 => Kind::File,
                    10 => Kind::Symlink,
                    12 => Kind::Socket,
                    other => panic!("an entry of the type {other}"),
                };
                listed.push(Listed { name: OsString::from_vec(entry.name.into()), ino: entry.ino, kind });
            }
        }
    }
}
