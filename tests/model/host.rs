//! A directory of Linux as a [`FrontEnd`]: an ordinary one, to check the reference itself, or a
//! mount of the overlay.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use overlayfs::layer::{Fixed, Owner, RenameMode, Stat, Time};
use rustix::fs::{
    self, AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom,
    StatxFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::{Errno, ReadWriteFlags};

use crate::Kind;
use crate::front_end::{At, FrontEnd, Listed, Part, Result, Work};
use crate::mounted::Mounted;

pub struct Host {
    root: OwnedFd,
    /// Whether symlinks in the middle of a path are followed. They stay within the root.
    follows: bool,
    /// The mount that shows the tree. It ends after `root` is closed.
    mount: Option<Arc<Mounted>>,
}

pub struct HostHandle {
    /// A descriptor (O_PATH) of an object of any kind.
    path: OwnedFd,
    /// A descriptor to read and write a file, or to read a directory.
    data: Option<OwnedFd>,
}

fn errno(error: Errno) -> i32 {
    error.raw_os_error()
}

/// Returns the kind of an object from its mode.
pub fn kind(mode: u32) -> Kind {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::CharDev,
        FileType::BlockDevice => Kind::BlockDev,
        FileType::Unknown => panic!("an object of no kind"),
    }
}

impl Host {
    /// Opens the front end to the tree in `root`.
    pub fn new(root: &Path, follows: bool) -> Self {
        rustix::process::umask(Mode::empty());
        Self { root: fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap(), follows, mount: None }
    }

    /// Opens the front end of a program that uses a mount.
    pub fn of(mount: Arc<Mounted>) -> Self {
        Self { mount: Some(mount.clone()), ..Self::new(mount.point(), false) }
    }

    fn walk(&self, at: &At<HostHandle>, path: &[OsString]) -> Result<OwnedFd> {
        let start = at.held.map_or(self.root.as_fd(), |handle| handle.path.as_fd());
        let path = Path::new(".").join(path.iter().collect::<std::path::PathBuf>());
        let links = if self.follows { ResolveFlags::IN_ROOT } else { ResolveFlags::NO_SYMLINKS };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // openat2(2) asks callers to try a walk with `..` again after a rename anywhere on the
        // machine.
        let opened = loop {
            match fs::openat2(start, &path, flags, Mode::empty(), links) {
                Err(Errno::AGAIN) => {}
                opened => break opened,
            }
        };
        opened
            // With NO_SYMLINKS a symlink in the place of a directory gives ELOOP.
            .map_err(|error| if error == Errno::LOOP && !self.follows { Errno::NOTDIR } else { error })
            .map_err(errno)
    }

    /// Returns the directory of the last name, and that name.
    fn entry<'a>(&self, at: &At<'a, HostHandle>) -> Result<(OwnedFd, &'a OsStr)> {
        let (name, parents) = at.path.split_last().expect("an entry has a name");
        // A path that ends in "/." goes through a symlink at its end.
        let parents: Vec<_> = parents.iter().cloned().chain([".".into()]).collect();
        Ok((self.walk(at, &parents)?, name))
    }
}

fn by_fd(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

impl HostHandle {
    fn new(path: OwnedFd) -> Result<Self> {
        let flags = match kind(fs::fstat(&path).map_err(errno)?.st_mode) {
            Kind::File => Some(OFlags::RDWR),
            Kind::Dir => Some(OFlags::RDONLY),
            _ => None,
        };
        let open = |flags| fs::open(by_fd(path.as_fd()), flags | OFlags::CLOEXEC, Mode::empty());
        let data = flags.map(open).transpose().map_err(errno)?;
        Ok(Self { path, data })
    }

    fn file(&self) -> Result<&OwnedFd> {
        match (kind(fs::fstat(&self.path).map_err(errno)?.st_mode), &self.data) {
            (Kind::File, Some(data)) => Ok(data),
            (Kind::Dir, _) => Err(errno(Errno::ISDIR)),
            _ => Err(errno(Errno::INVAL)),
        }
    }
}

impl FrontEnd for Host {
    type Handle = HostHandle;

    fn open(&self, at: &At<HostHandle>) -> Result<HostHandle> {
        if at.path.is_empty() {
            return HostHandle::new(self.walk(at, &[])?);
        }
        let (dir, name) = self.entry(at)?;
        let path = fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        HostHandle::new(path.map_err(errno)?)
    }

    fn create(&self, at: &At<HostHandle>, kind: Kind, mode: u32, owner: Owner, target: &OsStr) -> Result<()> {
        let (dir, name) = self.entry(at)?;
        // A default ACL takes permissions away from these.
        let asked = Mode::from_raw_mode(mode & 0o777);
        match kind {
            Kind::File => fs::openat(&dir, name, OFlags::CREATE | OFlags::EXCL | OFlags::RDWR, asked).map(drop),
            Kind::Dir => fs::mkdirat(&dir, name, asked),
            Kind::Symlink => fs::symlinkat(target, &dir, name),
            Kind::Fifo => fs::mknodat(&dir, name, FileType::Fifo, asked, 0),
            Kind::Socket => fs::mknodat(&dir, name, FileType::Socket, asked, 0),
            Kind::CharDev | Kind::BlockDev => unreachable!("the model makes no devices"),
        }
        .map_err(errno)?;
        if self.mount.is_some() {
            // Programs race for the name. So the object stays as this one call has made it.
            return Ok(());
        }
        let (uid, gid) = (Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
        fs::chownat(&dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
        if kind != Kind::Symlink {
            let made = fs::statat(&dir, name, AtFlags::empty()).map_err(errno)?.st_mode & 0o777;
            let mode = Mode::from_raw_mode(made | mode & 0o7000);
            fs::chmodat(&dir, name, mode, AtFlags::empty()).map_err(errno)?;
        }
        Ok(())
    }

    fn create_temp(&self, dir: &At<HostHandle>, mode: u32, owner: Owner) -> Result<HostHandle> {
        let (dir, flags) = (self.open(dir)?, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC);
        let path = fs::openat(&dir.path, ".", flags, Mode::from_raw_mode(mode & 0o777)).map_err(errno)?;
        let handle = HostHandle::new(path)?;
        if self.mount.is_some() {
            return Ok(handle);
        }
        self.set_owner(&handle, owner)?;
        let made = self.stat(&handle)?.mode & 0o777;
        self.set_mode(&handle, made | mode & 0o7000)?;
        Ok(handle)
    }

    fn link(&self, handle: &HostHandle, to: &At<HostHandle>) -> Result<()> {
        let (dir, name) = self.entry(to)?;
        fs::linkat(&handle.path, "", dir, name, AtFlags::EMPTY_PATH).map_err(errno)
    }

    fn unlink(&self, at: &At<HostHandle>) -> Result<()> {
        let (dir, name) = self.entry(at)?;
        fs::unlinkat(dir, name, AtFlags::empty()).map_err(errno)
    }

    fn remove_dir(&self, at: &At<HostHandle>) -> Result<()> {
        let (dir, name) = self.entry(at)?;
        fs::unlinkat(dir, name, AtFlags::REMOVEDIR).map_err(errno)
    }

    fn rename(&self, from: &At<HostHandle>, to: &At<HostHandle>, mode: RenameMode) -> Result<()> {
        let (dir, name) = self.entry(from)?;
        let (new_dir, new_name) = self.entry(to)?;
        let flags = match mode {
            RenameMode::Replace => RenameFlags::empty(),
            RenameMode::NoReplace => RenameFlags::NOREPLACE,
            RenameMode::Exchange => RenameFlags::EXCHANGE,
            RenameMode::Whiteout => RenameFlags::WHITEOUT,
        };
        fs::renameat_with(dir, name, new_dir, new_name, flags).map_err(errno)
    }

    fn stat(&self, handle: &HostHandle) -> Result<Stat> {
        let stat = fs::fstat(&handle.path).map_err(errno)?;
        let time = |sec, nsec: u64| Time { sec, nsec: nsec as u32 };
        Ok(Stat {
            dev: stat.st_dev,
            ino: stat.st_ino,
            kind: kind(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            nlink: stat.st_nlink as u32,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev,
            size: stat.st_size as u64,
            blksize: stat.st_blksize as u32,
            blocks: stat.st_blocks as u64,
            atime: time(stat.st_atime, stat.st_atime_nsec),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            fixed: Fixed::default(),
            generation: 0,
        })
    }

    fn links(&self, handle: &HostHandle) -> Result<u32> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
        Ok(fs::statx(&handle.path, "", flags, StatxFlags::NLINK).map_err(errno)?.stx_nlink)
    }

    fn read_link(&self, handle: &HostHandle) -> Result<OsString> {
        if kind(fs::fstat(&handle.path).map_err(errno)?.st_mode) != Kind::Symlink {
            return Err(errno(Errno::INVAL));
        }
        let target = fs::readlinkat(&handle.path, "", Vec::new()).map_err(errno)?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    fn read(&self, handle: &HostHandle, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let read = rustix::io::pread(handle.file()?, &mut bytes, offset).map_err(errno)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn write(&self, handle: &HostHandle, offset: Option<u64>, bytes: &[u8]) -> Result<()> {
        let file = handle.file()?;
        let written = match offset {
            Some(offset) => rustix::io::pwrite(file, bytes, offset),
            None => rustix::io::pwritev2(file, &[IoSlice::new(bytes)], 0, ReadWriteFlags::APPEND),
        }
        .map_err(errno)?;
        assert_eq!(written, bytes.len());
        Ok(())
    }

    fn truncate(&self, handle: &HostHandle, size: u64) -> Result<()> {
        fs::ftruncate(handle.file()?, size).map_err(errno)
    }

    fn set_mode(&self, handle: &HostHandle, mode: u32) -> Result<()> {
        fs::chmod(by_fd(handle.path.as_fd()), Mode::from_raw_mode(mode)).map_err(errno)
    }

    fn set_owner(&self, handle: &HostHandle, owner: Owner) -> Result<()> {
        let mode = fs::fstat(&handle.path).map_err(errno)?.st_mode;
        let (uid, gid) = (Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
        fs::chownat(&handle.path, "", uid, gid, AtFlags::EMPTY_PATH).map_err(errno)?;
        if kind(mode) != Kind::Symlink {
            // The kernel clears set-id bits here, and in the reference the caller must do that.
            fs::chmod(by_fd(handle.path.as_fd()), Mode::from_raw_mode(mode & 0o7777)).map_err(errno)?;
        }
        Ok(())
    }

    fn set_times(&self, handle: &HostHandle, atime: Time, mtime: Time) -> Result<()> {
        let spec = |time: Time| Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() };
        let times = Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
        fs::utimensat(&handle.path, "", &times, AtFlags::EMPTY_PATH).map_err(errno)
    }

    fn xattrs(&self, handle: &HostHandle) -> Result<BTreeMap<OsString, Vec<u8>>> {
        let path = by_fd(handle.path.as_fd());
        let mut names = vec![0; 4096];
        let length = fs::listxattr(&path, &mut names).map_err(errno)?;
        let with_value = |name: &[u8]| {
            let name = OsStr::from_bytes(name).to_owned();
            let mut value = vec![0; 4096];
            let length = fs::getxattr(&path, &name, &mut value).map_err(errno)?;
            value.truncate(length);
            Ok((name, value))
        };
        names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(with_value).collect()
    }

    fn set_xattr(&self, handle: &HostHandle, name: &OsStr, value: &[u8]) -> Result<()> {
        fs::setxattr(by_fd(handle.path.as_fd()), name, value, XattrFlags::empty()).map_err(errno)
    }

    fn remove_xattr(&self, handle: &HostHandle, name: &OsStr) -> Result<()> {
        fs::removexattr(by_fd(handle.path.as_fd()), name).map_err(errno)
    }

    fn sync(&self, handle: &HostHandle) -> Result<()> {
        handle.data.as_ref().map_or(Ok(()), |data| fs::fsync(data).map_err(errno))
    }

    fn copy_byte(&self, from: &HostHandle, from_offset: u64, to: &HostHandle, to_offset: u64) -> Result<()> {
        let (from, to, mut start, mut end) = (from.file()?, to.file()?, from_offset, to_offset);
        fs::copy_file_range(from, Some(&mut start), to, Some(&mut end), 1).map(drop).map_err(errno)
    }

    fn reserve(&self, handle: &HostHandle, size: u64) -> Result<()> {
        fs::fallocate(handle.file()?, FallocateFlags::empty(), 0, size).map_err(errno)
    }

    fn snapshot(&mut self, _handles: &mut BTreeMap<usize, HostHandle>) -> Result<u64> {
        let mount = self.mount.as_ref().ok_or(errno(Errno::OPNOTSUPP))?;
        if mount.snapshot() { Ok(mount.topmost()) } else { Err(errno(Errno::BUSY)) }
    }

    fn roll_back(&mut self) -> Result<u64> {
        let mount = self.mount.as_ref().ok_or(errno(Errno::OPNOTSUPP))?;
        mount.roll_back();
        Ok(mount.topmost())
    }

    fn beside(&self) -> Option<Work> {
        let mount = self.mount.clone()?;
        Some(Box::new(move || mount.disturb()))
    }

    fn names(&self, handle: &HostHandle) -> Result<Vec<OsString>> {
        let data = handle.data.as_ref().ok_or(errno(Errno::NOTDIR))?;
        let dir = fs::openat(data, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let dir = dir.map_err(errno)?;
        // Two calls for most directories.
        let mut buffer = [MaybeUninit::uninit(); 100];
        let (mut entries, mut names) = (RawDir::new(&dir, &mut buffer), Vec::new());
        while let Some(entry) = entries.next().transpose().map_err(errno)? {
            names.push(OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
        }
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    }

    fn list_part(&self, handle: &HostHandle, after: u64, chunk: usize) -> Result<Part> {
        let data = handle.data.as_ref().ok_or(errno(Errno::NOTDIR))?;
        let dir = fs::openat(data, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let dir = dir.map_err(errno)?;
        fs::seek(&dir, SeekFrom::Start(after)).map_err(errno)?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let (mut entries, mut part) = (RawDir::new(&dir, &mut buffer), Part { listed: Vec::new(), next: Some(after) });
        while part.listed.len() < chunk {
            let Some(entry) = entries.next().transpose().map_err(errno)? else {
                part.next = None;
                break;
            };
            part.next = Some(entry.next_entry_cookie());
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            if name != "." && name != ".." {
                let stat = fs::statat(data, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
                part.listed.push(Listed { name, ino: entry.ino(), kind: kind(stat.st_mode) });
            }
        }
        Ok(part)
    }
}
