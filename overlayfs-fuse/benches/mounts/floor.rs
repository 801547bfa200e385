//! The floor of the measurements: a mount of an ordinary directory that does as little as it can.
//!
//! A request is one system call on the directory, or two with the attributes of the answer. There
//! are no layers, no copy-up, no ACLs and no syncs. So what a row takes here is what FUSE takes
//! with the transport of `overlayfs-fuse`, and an overlay takes no less.
//!
//! The lock of the last listing comes before that of the table, which is a leaf. So is that of the
//! open files.

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, FileTimes, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use overlayfs::errno::{EIO, ENOSYS, Error, Result};
use overlayfs_fuse::front_end::{Caller, FrontEnd, ListingReply, NewMode, NodeEntry, Opened, Setup, StatFs, Write};
use overlayfs_fuse::mount::{Options, mount};
use overlayfs_fuse::options::IoUring;
use overlayfs_fuse::wire::{Attr, SetattrIn, init, set};
use overlayfs_fuse::{Service, Session};
use rustix::mount::MountFlags;

/// The number of the root.
const ROOT: u64 = 1;
/// How many files stay open for the next requests.
const OPEN: usize = 64;
/// The kernel may believe all that it knows: nothing else changes the directory.
const FOR_EVER: Duration = Duration::from_secs(1 << 20);

/// Mounts `top` at `point`, and serves until the unmount.
pub fn serve(is_over_ring: bool, top: &Path, point: &Path) -> std::result::Result<(), String> {
    let failed = |error: io::Error| format!("The floor at {} cannot be served: {error}.", point.display());
    // The kernel has applied the umask of the program.
    rustix::process::umask(rustix::fs::Mode::empty());
    let options =
        Options { source: "floor".into(), flags: MountFlags::empty(), allow_other: true, default_permissions: true };
    let device = mount(point, &options).map_err(failed)?;
    let io_uring = if is_over_ring { IoUring::On } else { IoUring::Off };
    let service = Service { threads: 8, most: usize::MAX, io_uring };
    let session = Session::start(device, Floor::new(top), service, None).map_err(failed)?;
    let ended = session.start_threads().map_err(failed)?.run(None, || ());
    ended.map_or(Ok(()), |(served, settled)| served.map_err(failed).and(settled))
}

struct Floor {
    top: PathBuf,
    table: RwLock<Table>,
    /// The files that were used last.
    files: Mutex<VecDeque<(u64, Arc<File>)>>,
    /// The directory that was listed last, with its names and their types.
    listed: Mutex<(u64, Vec<(OsString, u32)>)>,
}

/// The objects that the kernel knows. It keeps them to the end.
struct Table {
    /// The place of each object.
    places: HashMap<u64, Place>,
    numbers: HashMap<Place, u64>,
    next: u64,
}

/// The number of a directory, and a name in it.
type Place = (u64, OsString);

fn errno(error: &io::Error) -> Error {
    Error::new(error.raw_os_error().unwrap_or(EIO))
}

/// Makes the result of a call that of a request.
fn done<T>(called: io::Result<T>) -> Result<T> {
    called.map_err(|error| errno(&error))
}

fn attributes(stat: &Metadata) -> Attr {
    Attr {
        ino: stat.ino(),
        size: stat.size(),
        blocks: stat.blocks(),
        atime: stat.atime() as u64,
        mtime: stat.mtime() as u64,
        ctime: stat.ctime() as u64,
        atimensec: stat.atime_nsec() as u32,
        mtimensec: stat.mtime_nsec() as u32,
        ctimensec: stat.ctime_nsec() as u32,
        mode: stat.mode(),
        nlink: stat.nlink() as u32,
        uid: stat.uid(),
        gid: stat.gid(),
        rdev: 0,
        blksize: stat.blksize() as u32,
        flags: 0,
    }
}

/// Returns the names in a directory, each with the bits of its type.
fn list(dir: &Path) -> io::Result<Vec<(OsString, u32)>> {
    let one = |entry: io::Result<fs::DirEntry>| {
        let entry = entry?;
        let kind = entry.file_type()?;
        let mode = match () {
            () if kind.is_dir() => libc::S_IFDIR,
            () if kind.is_symlink() => libc::S_IFLNK,
            () => libc::S_IFREG,
        };
        Ok((entry.file_name(), mode))
    };
    fs::read_dir(dir)?.map(one).collect()
}

impl Table {
    fn path(&self, top: &Path, node: u64) -> PathBuf {
        match self.places.get(&node) {
            Some((parent, name)) => self.path(top, *parent).join(name),
            None => top.to_owned(),
        }
    }

    fn number(&mut self, place: Place) -> u64 {
        let Self { places, numbers, next } = self;
        *numbers.entry(place.clone()).or_insert_with(|| {
            *next += 1;
            places.insert(*next, place);
            *next
        })
    }
}

impl Floor {
    fn new(top: &Path) -> Self {
        let table = Table { places: HashMap::new(), numbers: HashMap::new(), next: ROOT };
        Self { top: top.to_owned(), table: RwLock::new(table), files: Mutex::default(), listed: Mutex::default() }
    }

    fn path(&self, node: u64) -> PathBuf {
        self.table.read().unwrap_or_else(PoisonError::into_inner).path(&self.top, node)
    }

    fn path_of(&self, parent: u64, name: &OsStr) -> PathBuf {
        self.path(parent).join(name)
    }

    fn entry(&self, parent: u64, name: &OsStr, stat: &Metadata) -> NodeEntry {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        NodeEntry { node: table.number((parent, name.to_owned())), generation: 0, attr: attributes(stat) }
    }

    /// Returns the entry of an object that was just made at a path.
    fn made(&self, parent: u64, name: &OsStr, made: io::Result<()>) -> Result<NodeEntry> {
        let stat = done(made.and_then(|()| self.path_of(parent, name).symlink_metadata()))?;
        Ok(self.entry(parent, name, &stat))
    }

    fn removed(&self, parent: u64, name: &OsStr) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = table.numbers.remove(&(parent, name.to_owned())) {
            table.places.remove(&node);
        }
    }

    fn file(&self, node: u64) -> Result<Arc<File>> {
        let files = || self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, file)) = files().iter().find(|(of, _)| *of == node) {
            return Ok(file.clone());
        }
        let file = Arc::new(done(File::options().read(true).write(true).open(self.path(node)))?);
        self.keep(node, file.clone());
        Ok(file)
    }

    fn keep(&self, node: u64, file: Arc<File>) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.truncate(OPEN - 1);
        files.push_front((node, file));
    }
}

impl FrontEnd for Floor {
    fn setup(&self, _: u64) -> Setup {
        let flags = init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::NO_OPEN_SUPPORT
            | init::NO_OPENDIR_SUPPORT
            | init::PARALLEL_DIROPS
            | init::CACHE_SYMLINKS
            | init::HANDLE_KILLPRIV_V2
            | init::WRITEBACK_CACHE;
        Setup { flags, valid: FOR_EVER, time_gran: 1 }
    }

    fn lookup(&self, _: Caller, parent: u64, name: &OsStr) -> Result<Option<NodeEntry>> {
        match self.path_of(parent, name).symlink_metadata() {
            Ok(stat) => Ok(Some(self.entry(parent, name, &stat))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(errno(&error)),
        }
    }

    fn forget(&self, _: u64, _: u64) {}

    fn getattr(&self, _: Caller, node: u64) -> Result<Attr> {
        done(self.path(node).symlink_metadata()).map(|stat| attributes(&stat))
    }

    fn setattr(&self, caller: Caller, node: u64, change: &SetattrIn) -> Result<Attr> {
        let path = self.path(node);
        let has = |flag| change.valid & flag != 0;
        if has(set::SIZE) {
            done(self.file(node)?.set_len(change.size))?;
        }
        if has(set::MODE) {
            done(fs::set_permissions(&path, Permissions::from_mode(change.mode & 0o7777)))?;
        }
        if has(set::UID) || has(set::GID) {
            let owner = |flag, id| has(flag).then_some(id);
            done(std::os::unix::fs::lchown(&path, owner(set::UID, change.uid), owner(set::GID, change.gid)))?;
        }
        if has(set::MTIME) {
            let time = SystemTime::UNIX_EPOCH + Duration::new(change.mtime, change.mtimensec);
            let opened = File::open(&path);
            done(opened.and_then(|file| file.set_times(FileTimes::new().set_modified(time))))?;
        }
        self.getattr(caller, node)
    }

    fn readlink(&self, _: Caller, node: u64) -> Result<OsString> {
        done(fs::read_link(self.path(node))).map(PathBuf::into_os_string)
    }

    fn mknod(&self, _: Caller, _: u64, _: &OsStr, _: NewMode, _: u64) -> Result<NodeEntry> {
        Err(Error::new(ENOSYS))
    }

    fn mkdir(&self, _: Caller, parent: u64, name: &OsStr, mode: NewMode) -> Result<NodeEntry> {
        let made = fs::DirBuilder::new().mode(mode.mode & 0o7777).create(self.path_of(parent, name));
        self.made(parent, name, made)
    }

    fn symlink(&self, _: Caller, parent: u64, name: &OsStr, target: &OsStr) -> Result<NodeEntry> {
        self.made(parent, name, std::os::unix::fs::symlink(target, self.path_of(parent, name)))
    }

    fn unlink(&self, _: Caller, parent: u64, name: &OsStr) -> Result<()> {
        done(fs::remove_file(self.path_of(parent, name)))?;
        self.removed(parent, name);
        Ok(())
    }

    fn rmdir(&self, _: Caller, parent: u64, name: &OsStr) -> Result<()> {
        done(fs::remove_dir(self.path_of(parent, name)))?;
        self.removed(parent, name);
        Ok(())
    }

    fn rename(&self, _: Caller, from: (u64, &OsStr), to: (u64, &OsStr), _: u32) -> Result<()> {
        done(fs::rename(self.path_of(from.0, from.1), self.path_of(to.0, to.1)))?;
        self.removed(to.0, to.1);
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let place = (to.0, to.1.to_owned());
        if let Some(node) = table.numbers.remove(&(from.0, from.1.to_owned())) {
            table.numbers.insert(place.clone(), node);
            table.places.insert(node, place);
        }
        Ok(())
    }

    fn link(&self, _: Caller, node: u64, parent: u64, name: &OsStr) -> Result<NodeEntry> {
        self.made(parent, name, fs::hard_link(self.path(node), self.path_of(parent, name)))
    }

    fn create(&self, _: Caller, parent: u64, name: &OsStr, mode: NewMode, _: i32) -> Result<(NodeEntry, Opened)> {
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(mode.mode & 0o7777);
        let file = done(options.open(self.path_of(parent, name)))?;
        let entry = self.entry(parent, name, &done(file.metadata())?);
        self.keep(entry.node, Arc::new(file));
        Ok((entry, Opened::default()))
    }

    fn read(&self, _: Caller, node: u64, _: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        done(self.file(node)?.read_at(buf, offset))
    }

    fn write(&self, _: Caller, node: u64, write: Write<'_>) -> Result<usize> {
        done(self.file(node)?.write_at(write.data, write.offset))
    }

    fn fsync(&self, node: u64, _: u64) -> Result<()> {
        done(self.file(node)?.sync_data())
    }

    fn readdir(&self, _: Caller, node: u64, _: u64, offset: u64, listing: &mut ListingReply<'_>) -> Result<()> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = self.path(node);
        if offset == 0 || listed.0 != node {
            *listed = (node, done(list(&dir))?);
        }
        for ((name, mode), number) in listed.1.iter().zip(1..).skip(offset as usize) {
            if !listing.with_attributes() {
                if !listing.add(number, number, *mode, name) {
                    break;
                }
            } else if listing.room() < ListingReply::size_with_attributes(name) {
                break;
            } else {
                let stat = done(dir.join(name).symlink_metadata())?;
                listing.add_entry(&self.entry(node, name, &stat), number, name);
            }
        }
        Ok(())
    }

    fn fsyncdir(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn statfs(&self, _: u64) -> Result<StatFs> {
        let stat = done(rustix::fs::statvfs(&self.top).map_err(io::Error::from))?;
        Ok(StatFs {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: stat.f_bsize as u32,
            namelen: stat.f_namemax as u32,
            frsize: stat.f_frsize as u32,
            ..StatFs::default()
        })
    }
}
