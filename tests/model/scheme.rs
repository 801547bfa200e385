//! The scheme as a [`FrontEnd`]: a daemon behind the simulated Redox kernel. A client with root's
//! rights sends the requests of ordinary programs.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use linux_delegate::client::parse_dirents;
use linux_delegate::daemon::unused_name;
use linux_delegate::{Daemon, Fd, Process};
use overlayfs::control::ask::{Refusal, ask};
use overlayfs::control::fact::{Fact, Value};
use overlayfs::control::{CALL, Command};
use overlayfs::layer::{Fixed, Layer, Owner, RenameMode, Stat, Time};
use overlayfs::overlay::Overlay;
use overlayfs::scheme::{About, OverlayScheme};
use syscall::TimeSpec;
use syscall::dirent::DirentKind;
use syscall::error::{EBADF, EINVAL, EIO, EISDIR, ENOTDIR, Error};
use syscall::flag::{
    AT_REMOVEDIR, MODE_CHR, MODE_DIR, MODE_FIFO, MODE_FILE, MODE_SOCK, MODE_SYMLINK, MODE_TYPE, O_CREAT, O_DIRECTORY,
    O_EXCL, O_NOFOLLOW, O_RDONLY, O_RDWR, O_STAT, O_SYMLINK, O_WRONLY,
};

use crate::Kind;
use crate::front_end::{At, FrontEnd, Listed, Part, Result};

/// The type bits of a block device in a mode.
const MODE_BLOCK: u16 = 0x6000;
const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;
/// The set-id bits of a mode.
const SET_ID: u32 = 0o6000;
/// The size of a record of a listing with the longest name.
const LONGEST_RECORD: usize = 512;

pub struct Scheme {
    /// The top directory.
    top: Fd,
    /// The daemon. It ends with its last client.
    daemon: Arc<Daemon>,
    /// Changes with every request that has two forms.
    turn: Cell<bool>,
}

pub struct SchemeHandle {
    fd: Fd,
    kind: Kind,
}

/// Serves an overlay with a channel, for snapshots.
pub fn serve_in_chain<L: Layer>(overlay: Overlay<L>) -> Scheme {
    let name = unused_name("model");
    let about = About { owner: 0, facts: Vec::new() };
    let scheme = OverlayScheme::new(Arc::new(overlay), name.clone()).with_channel(about);
    Scheme::client(Arc::new(Daemon::of(scheme, name).0))
}

/// Serves an overlay under a name of its own.
pub fn serve<L: Layer>(overlay: Overlay<L>) -> Scheme {
    Scheme::client(Arc::new(Daemon::serve(overlay, unused_name("model"))))
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
        MODE_BLOCK => Kind::BlockDev,
        _ => panic!("an object of no kind"),
    }
}

fn listed_kind(kind: u8) -> Kind {
    match DirentKind::try_from_raw(kind) {
        Some(DirentKind::Regular) => Kind::File,
        Some(DirentKind::Directory) => Kind::Dir,
        Some(DirentKind::Symlink) => Kind::Symlink,
        Some(DirentKind::Socket) => Kind::Socket,
        Some(DirentKind::CharDev) => Kind::CharDev,
        Some(DirentKind::BlockDev) => Kind::BlockDev,
        // Redox has no kind for a FIFO.
        Some(DirentKind::Unspecified) => Kind::Fifo,
        None => panic!("an entry of the kind {kind}"),
    }
}

impl SchemeHandle {
    /// Maps the errno of a read or write. The client opens only files for data, so the scheme
    /// refuses the handle (EBADF). The reference refuses the kind of the object.
    fn data<T>(&self, answer: syscall::Result<T>) -> Result<T> {
        answer.map_err(|error| match (error.errno, self.kind) {
            (EBADF, Kind::Dir) => EISDIR,
            (EBADF, Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::CharDev | Kind::BlockDev) => EINVAL,
            (errno, _) => errno,
        })
    }
}

impl Scheme {
    fn client(daemon: Arc<Daemon>) -> Self {
        let top = Process::new(0, 0).scheme_root(daemon.name()).unwrap().openat("", O_STAT, 0).unwrap();
        Scheme { top, daemon, turn: Cell::new(false) }
    }

    /// Returns another client of the same daemon.
    #[cfg(not(shuttle))]
    pub fn another(&self) -> Self {
        Self::client(self.daemon.clone())
    }

    /// Returns the directory handle of a request, and the path relative to it.
    fn start<'a>(&'a self, at: &At<'a, SchemeHandle>) -> (&'a Fd, Vec<u8>) {
        (at.held.map_or(&self.top, |handle| &handle.fd), at.path.join(OsStr::new("/")).into_vec())
    }

    /// Returns the path for a request that starts at the top, at every other usable call.
    fn absolute(&self, at: &At<SchemeHandle>) -> Option<Vec<u8>> {
        self.turn.set(!self.turn.get());
        let path = at.path.join(OsStr::new("/")).into_vec();
        let usable = at.held.is_none() && self.turn.get();
        usable.then(|| [format!("/scheme/{}/", self.daemon.name()).as_bytes(), &path].concat())
    }

    /// Sends a command to the channel.
    fn command(&self, command: Command) -> Result<Vec<Fact>> {
        let send = |frame: &mut [u8]| self.top.call(frame, &[CALL]).map(drop);
        ask(command, &[], send).map_err(|refusal| match refusal {
            Refusal::Call(error) => errno(error),
            Refusal::Failed { errno, .. } => errno,
            Refusal::Malformed => panic!("the answer of {command:?} makes no sense"),
        })
    }

    /// Returns the number of the topmost upper layer, after a command has put it there.
    fn put_on_top(&self, by: Command) -> Result<u64> {
        self.command(by)?;
        self.command(Command::Status)?;
        match self.command(Command::Snapshots)?.last().map(|fact| fact.value.clone()) {
            Some(Value::Numbers(numbers)) => Ok(numbers[0]),
            other => panic!("the last snapshot is {other:?}"),
        }
    }

    fn remove(&self, at: &At<SchemeHandle>, flags: usize) -> Result<()> {
        let (dir, path) = self.start(at);
        dir.unlinkat(path, flags).map_err(errno)
    }
}

/// Gives a new object its owner, and the set-id bits that a new directory does not take from the
/// request.
fn finish(fd: &Fd, mode: u32, owner: Owner) -> syscall::Result<()> {
    fd.fchown(owner.uid, owner.gid)?;
    let made = fd.fstat()?.st_mode;
    let differs = u32::from(made & !MODE_TYPE) ^ mode;
    if kind(made) == Kind::Dir && differs != 0 && differs & !SET_ID == 0 {
        fd.fchmod(mode as u16)?;
    }
    Ok(())
}

impl FrontEnd for Scheme {
    type Handle = SchemeHandle;

    fn open(&self, at: &At<Self::Handle>) -> Result<Self::Handle> {
        let (dir, path) = self.start(at);
        loop {
            let named = dir.openat(&path, O_STAT | O_NOFOLLOW, 0).map_err(errno)?;
            let kind = kind(named.fstat().map_err(errno)?.st_mode);
            let flags = match kind {
                Kind::File => O_RDWR | O_NOFOLLOW,
                Kind::Dir => O_RDONLY | O_DIRECTORY,
                Kind::Symlink => O_SYMLINK | O_RDONLY,
                Kind::Fifo | Kind::Socket | Kind::CharDev | Kind::BlockDev => O_STAT | O_NOFOLLOW,
            };
            match dir.openat(&path, flags, 0) {
                // The object has been replaced by one of another kind.
                Err(error) if matches!(error.errno, EISDIR | ENOTDIR) => {}
                opened => return Ok(SchemeHandle { fd: opened.map_err(errno)?, kind }),
            }
        }
    }

    fn create(&self, at: &At<Self::Handle>, kind: Kind, mode: u32, owner: Owner, target: &OsStr) -> Result<()> {
        let (dir, path) = self.start(at);
        let flags = O_CREAT | O_EXCL | mode as usize;
        let flags = match kind {
            Kind::File => flags | O_RDWR,
            Kind::Dir => flags | O_DIRECTORY | O_RDONLY,
            Kind::Symlink => O_CREAT | O_SYMLINK | O_WRONLY,
            Kind::Fifo => flags | O_STAT | usize::from(MODE_FIFO),
            Kind::Socket => flags | O_STAT | usize::from(MODE_SOCK),
            Kind::CharDev | Kind::BlockDev => panic!("device nodes are not made here"),
        };
        let made = dir.openat(path, flags, 0).map_err(errno)?;
        if kind == Kind::Symlink {
            made.write_all(target.as_bytes()).map_err(errno)?;
        }
        finish(&made, mode, owner).map_err(errno)
    }

    fn link(&self, handle: &Self::Handle, to: &At<Self::Handle>) -> Result<()> {
        match self.absolute(to) {
            Some(path) => handle.fd.flink(path),
            None => {
                let (dir, path) = self.start(to);
                handle.fd.flinkat(dir, path, 0)
            }
        }
        .map_err(errno)
    }

    fn unlink(&self, at: &At<Self::Handle>) -> Result<()> {
        self.remove(at, 0)
    }

    fn remove_dir(&self, at: &At<Self::Handle>) -> Result<()> {
        self.remove(at, AT_REMOVEDIR)
    }

    fn rename(&self, from: &At<Self::Handle>, to: &At<Self::Handle>, mode: RenameMode) -> Result<()> {
        let (dir, old) = self.start(from);
        if mode == RenameMode::Replace
            && let Some(path) = self.absolute(to)
        {
            return dir.openat(old, O_STAT | O_NOFOLLOW, 0).and_then(|fd| fd.frename(path)).map_err(errno);
        }
        let flags = match mode {
            RenameMode::Replace => 0,
            RenameMode::NoReplace => RENAME_NOREPLACE,
            RenameMode::Exchange => RENAME_EXCHANGE,
            RenameMode::Whiteout => unreachable!("no request of Redox leaves a device"),
        };
        let (new_dir, new) = self.start(to);
        dir.frenameat(old, new_dir, new, flags).map_err(errno)
    }

    fn stat(&self, handle: &Self::Handle) -> Result<Stat> {
        let stat = handle.fd.fstat().map_err(errno)?;
        Ok(Stat {
            dev: stat.st_dev,
            ino: stat.st_ino,
            kind: kind(stat.st_mode),
            mode: u32::from(stat.st_mode & !MODE_TYPE),
            nlink: stat.st_nlink,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: 0,
            size: stat.st_size,
            blksize: stat.st_blksize,
            blocks: stat.st_blocks,
            atime: Time { sec: stat.st_atime as i64, nsec: stat.st_atime_nsec },
            mtime: Time { sec: stat.st_mtime as i64, nsec: stat.st_mtime_nsec },
            ctime: Time { sec: stat.st_ctime as i64, nsec: stat.st_ctime_nsec },
            fixed: Fixed::default(),
            generation: 0,
        })
    }

    fn read_link(&self, handle: &Self::Handle) -> Result<OsString> {
        let link = handle.fd.openat("", O_SYMLINK | O_RDONLY, 0).map_err(errno)?;
        let mut target = vec![0; 4096];
        let len = link.read_at(&mut target, 0).map_err(errno)?;
        target.truncate(len);
        Ok(OsString::from_vec(target))
    }

    fn read(&self, handle: &Self::Handle, offset: u64, len: usize) -> Result<Vec<u8>> {
        // A read of the handle of a symlink returns its target, as readlink does.
        if handle.kind == Kind::Symlink {
            return Err(EINVAL);
        }
        let mut bytes = vec![0; len];
        let read = handle.data(handle.fd.read_at(&mut bytes, offset))?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn write(&self, handle: &Self::Handle, offset: Option<u64>, bytes: &[u8]) -> Result<()> {
        let written = handle.data(match offset {
            Some(offset) => handle.fd.write_at(bytes, offset),
            None => handle.fd.write_at_with(bytes, 0, true, false),
        })?;
        // A short write would be correct in general, but not for these few bytes on a disk with
        // space.
        if written == bytes.len() { Ok(()) } else { Err(EIO) }
    }

    fn truncate(&self, handle: &Self::Handle, size: u64) -> Result<()> {
        handle.data(handle.fd.ftruncate(size))
    }

    fn set_mode(&self, handle: &Self::Handle, mode: u32) -> Result<()> {
        handle.fd.fchmod(mode as u16).map_err(errno)
    }

    fn set_owner(&self, handle: &Self::Handle, owner: Owner) -> Result<()> {
        handle.fd.fchown(owner.uid, owner.gid).map_err(errno)
    }

    fn set_times(&self, handle: &Self::Handle, atime: Time, mtime: Time) -> Result<()> {
        let spec = |time: Time| TimeSpec { tv_sec: time.sec, tv_nsec: time.nsec as i32 };
        handle.fd.futimens(spec(atime), spec(mtime)).map_err(errno)
    }

    fn sync(&self, handle: &Self::Handle) -> Result<()> {
        handle.fd.fsync().map_err(errno)
    }

    fn settle(&self) -> Result<u64> {
        self.command(Command::Sync)?;
        let told = self.command(Command::Status)?.into_iter().find(|fact| fact.name == "partial_copies");
        match told.map(|fact| fact.value) {
            Some(Value::Numbers(left)) => Ok(left[0]),
            other => panic!("the number of partial copies is {other:?}"),
        }
    }

    fn snapshot(&mut self, _: &mut BTreeMap<usize, Self::Handle>) -> Result<u64> {
        self.put_on_top(Command::Snapshot)
    }

    fn roll_back(&mut self) -> Result<u64> {
        self.put_on_top(Command::RollBack)
    }

    fn list_part(&self, handle: &Self::Handle, after: u64, chunk: usize) -> Result<Part> {
        let mut size = chunk * 32;
        let (len, records) = loop {
            let mut records = vec![0; size];
            match handle.fd.getdents(&mut records, after) {
                // Not even the first entry fits.
                Err(error) if error.errno == EINVAL && size < LONGEST_RECORD => size = LONGEST_RECORD,
                answer => break (answer.map_err(errno)?, records),
            }
        };
        let entries = parse_dirents(&records[..len]).map_err(errno)?;
        let next = entries.last().map(|entry| entry.next);
        let listed = entries
            .into_iter()
            .map(|entry| Listed { name: entry.name.into(), ino: entry.ino, kind: listed_kind(entry.kind) })
            .collect();
        // With space for another entry, this was the end.
        Ok(Part { listed, next: next.filter(|_| len + LONGEST_RECORD > size) })
    }
}
