//! The commit of a run: makes the changes in the overlaid directory, with the rights of the caller.
//!
//! `overlayfs-layer commit` works through the engine, and needs a work directory at the top of the
//! lower layer. A user has none in `/`, and the changes may be inside of it. So this commit makes
//! each change by itself, with the calls that a program would make outside. What the caller may not
//! change stays in the upper layer.
//!
//! Before the first change, the upper layer gets all data of renamed directories and of partial
//! copies. So nothing that is read later depends on what changes meanwhile. Until all is on the
//! disk, the upper layer keeps everything. So the work can be done again from any point.
//!
//! No step follows a symlink of the lower directory, or leaves its filesystem.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use overlayfs::fsck::Checker;
use overlayfs::layer::{Kind, OsLayer, Stat, Time};
use overlayfs::layer_tools::convert::settle;
use overlayfs::layer_tools::summary::meant;
use overlayfs::layer_tools::vacuum;
use overlayfs::layer_tools::{self, Change, ChangeKind, Lenient, Renames, Views};
use overlayfs::mount::{mount, open_layers};
use overlayfs::options::Options;
use overlayfs::overlay::{Node, Overlay};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};

use super::ending::options_of;
use super::store::Part;
use super::unfinished::{self, Unfinished};

/// The size of a piece of content that is read at once.
const PIECE: usize = 128 << 10;

/// A change that was not made, and why.
pub struct Left {
    /// The path in the lower directory.
    pub path: PathBuf,
    /// The reason.
    pub cause: io::Error,
}

/// Makes the changes of a part. `all_ids` says that the caller may set owners. `store` is the
/// directory of all changes, which stays.
///
/// # Errors
///
/// - A layer cannot be read, or the lower directory cannot be opened.
pub fn commit(part: &Part, all_ids: bool, store: &Path) -> Result<Vec<Left>, layer_tools::Error> {
    let options = options_of(part);
    settle(&mount(&options)?, true, &())?;
    let views = Views::open(&options, None)?;
    let Some(above) = &views.above else { return Ok(Vec::new()) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, &part.lower, flags, Mode::empty());
    let top = top.map_err(|error| layer_tools::Error::at("open", &part.lower, error))?;
    let inner = store.strip_prefix(&part.lower).ok();
    let unfinished = Unfinished::open(store).map_err(|error| layer_tools::Error::at("write to", store, error))?;
    let mut work = Work {
        above,
        top,
        lower: &part.lower,
        unfinished,
        all_ids,
        inner,
        linked: HashMap::new(),
        dirs: Vec::new(),
        left: Vec::new(),
    };
    views.changes(Renames::Resolved, &Lenient(&()), &mut |mut change| {
        if meant(&mut change, all_ids) {
            work.apply(&change);
        }
        Ok(())
    })?;
    let left = work.finish();
    let synced = File::open(&part.lower).and_then(|dir| Ok(rustix::fs::syncfs(&dir)?));
    synced.map_err(|error| layer_tools::Error::at("sync", &part.lower, error))?;
    drop(views);
    unfinished::clear(store).map_err(|error| layer_tools::Error::at("finish", store, error))?;
    if !left.is_empty() {
        thin_out(&options)?;
    }
    let whole = |left: Left| Left { path: part.lower.join(left.path), ..left };
    Ok(left.into_iter().map(whole).collect())
}

/// Removes from the upper layer what the lower one has now.
fn thin_out(options: &Options) -> Result<(), layer_tools::Error> {
    let upper = options.upper.clone().unwrap_or_default();
    let checker = Checker::new(open_layers(options, true)?).map_err(|cause| overlayfs::mount::Error::Refused {
        upper,
        work: None,
        cause,
    })?;
    let views = Views::open(options, None)?;
    let Some(above) = &views.above else { return Ok(()) };
    for finding in vacuum::find(&checker, above, true, &()) {
        vacuum::remove(&checker, &finding?)?;
    }
    Ok(())
}

/// The changes of one part while they are made.
struct Work<'w> {
    above: &'w Overlay<OsLayer>,
    /// The lower directory.
    top: OwnedFd,
    /// Its path.
    lower: &'w Path,
    unfinished: Unfinished,
    all_ids: bool,
    /// The path of the directory of all changes in the lower directory, if it is there.
    inner: Option<&'w Path>,
    /// The objects with several names that are there, by their number above.
    linked: HashMap<u64, PathBuf>,
    /// The directories that get their attributes at the end.
    dirs: Vec<(PathBuf, Arc<Node<OsLayer>>, Needed)>,
    left: Vec<Left>,
}

/// The attributes that an object needs.
#[derive(Clone, Copy)]
struct Needed {
    /// All of them, since it is new.
    all: bool,
    mode: bool,
    owner: bool,
    xattrs: bool,
}

impl Work<'_> {
    /// Makes a change, or notes why it cannot be made.
    fn apply(&mut self, change: &Change<OsLayer>) {
        // What cannot be made in a directory that is not there is known already.
        if self.left.last().is_some_and(|left| change.path.starts_with(&left.path) && change.path != left.path) {
            return;
        }
        if let Err(cause) = self.make(change) {
            self.left.push(Left { path: change.path.clone(), cause });
        }
    }

    fn make(&mut self, change: &Change<OsLayer>) -> io::Result<()> {
        let aspects = change.aspects;
        let is_new = matches!(change.kind, ChangeKind::Added) || aspects.kind;
        let needed = Needed { all: is_new, mode: aspects.mode, owner: aspects.owner, xattrs: aspects.xattrs };
        let Some((above, name)) = change.path.parent().zip(change.path.file_name()) else {
            if let Some(new) = &change.new {
                self.dirs.push((change.path.clone(), new.clone(), needed));
            }
            return Ok(());
        };
        let goes = change.kind == ChangeKind::Removed || aspects.kind;
        if goes && self.inner.is_some_and(|inner| inner.starts_with(&change.path)) {
            return Err(io::Error::other("the directory of the changes is in it"));
        }
        let dir = self.open_dir(above)?;
        if goes {
            remove(&dir, name)?;
        }
        let Some(new) = &change.new else { return Ok(()) };
        if new.kind() == Kind::Dir {
            match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
                Err(rustix::io::Errno::EXIST) => {}
                made => made?,
            }
            self.dirs.push((change.path.clone(), new.clone(), needed));
            return Ok(());
        }
        let stat = self.above.stat(new)?;
        let needs_content = is_new || aspects.content || aspects.links;
        if stat.nlink > 1 && needs_content {
            if let Some(first) = self.linked.get(&stat.ino) {
                return self.link(&first.clone(), &dir, &change.path);
            }
            self.linked.insert(stat.ino, change.path.clone());
        }
        match needs_content {
            true => self.write(&dir, &change.path, new, &stat),
            false => self.set_attributes_at(&dir, name, new, &stat, needed),
        }
    }

    /// Gives directories their attributes, the deepest first. Returns the changes that are left.
    fn finish(mut self) -> Vec<Left> {
        for (path, node, needed) in std::mem::take(&mut self.dirs).into_iter().rev() {
            let set = || {
                let stat = self.above.stat(&node)?;
                let dir = rustix::fs::openat2(
                    &self.top,
                    if path.as_os_str().is_empty() { Path::new(".") } else { &path },
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                    Mode::empty(),
                    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
                )?;
                self.set_attributes(&dir, &node, &stat, needed)
            };
            let done: io::Result<()> = set();
            if let Err(cause) = done {
                self.left.push(Left { path, cause });
            }
        }
        self.left
    }

    fn open_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        Ok(rustix::fs::openat2(&self.top, path, flags, Mode::empty(), resolve)?)
    }

    /// Gives an object that is there a further path, which is in `dir`.
    fn link(&self, first: &Path, dir: &OwnedFd, path: &Path) -> io::Result<()> {
        let Some((above, first)) = first.parent().zip(first.file_name()) else { return Ok(()) };
        let Some((temp, name)) = self.begin(path)? else { return Ok(()) };
        rustix::fs::linkat(self.open_dir(above)?, first, dir, &temp, AtFlags::empty())?;
        let moved = rustix::fs::renameat(dir, &temp, dir, name);
        // A rename of one name of an object to another one does nothing.
        let _ = rustix::fs::unlinkat(dir, &temp, AtFlags::empty());
        Ok(moved?)
    }

    /// Returns a name for an object until it is whole, and the last name in its path.
    fn begin<'p>(&self, path: &'p Path) -> io::Result<Option<(OsString, &'p OsStr)>> {
        let path = path.parent().zip(path.file_name());
        path.map(|(dir, name)| Ok((self.unfinished.begin(&self.lower.join(dir))?, name))).transpose()
    }

    /// Makes an object that is no directory, in place of what has its path. `dir` has that path.
    fn write(&self, dir: &OwnedFd, path: &Path, new: &Arc<Node<OsLayer>>, stat: &Stat) -> io::Result<()> {
        let Some((temp, name)) = self.begin(path)? else { return Ok(()) };
        let there = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let needed = Needed { all: true, mode: true, owner: true, xattrs: true };
        if let Some(there) = there.filter(|there| is_others(there, new.kind())) {
            // The owner stays, and so do other names of it.
            let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
            self.fill(&mut file, new, stat)?;
            let is_like = there.st_mode & 0o7777 == stat.mode;
            return self.set_attributes(
                &file,
                new,
                stat,
                Needed { all: false, mode: !is_like, owner: false, ..needed },
            );
        }
        let made = (|| match new.kind() {
            Kind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = File::from(rustix::fs::openat(dir, &temp, flags, Mode::RUSR | Mode::WUSR)?);
                self.fill(&mut file, new, stat)?;
                self.set_attributes(&file, new, stat, needed)
            }
            Kind::Symlink => {
                rustix::fs::symlinkat(self.above.read_link(new)?, dir, &temp)?;
                self.set_attributes_at(dir, &temp, new, stat, needed)
            }
            Kind::Socket => Err(io::Error::other("a socket belongs to the program that made it")),
            kind => {
                let kind = match kind {
                    Kind::CharDev => FileType::CharacterDevice,
                    Kind::BlockDev => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                rustix::fs::mknodat(dir, &temp, kind, Mode::RUSR | Mode::WUSR, stat.rdev)?;
                self.set_attributes_at(dir, &temp, new, stat, needed)
            }
        })();
        let placed = made.and_then(|()| Ok(rustix::fs::renameat(dir, &temp, dir, name)?));
        if placed.is_err() {
            let _ = rustix::fs::unlinkat(dir, &temp, AtFlags::empty());
        }
        placed
    }

    /// Writes the content of a file. Holes stay holes.
    fn fill(&self, file: &mut File, new: &Arc<Node<OsLayer>>, stat: &Stat) -> io::Result<()> {
        let handle = self.above.open(new);
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        while let Some(data) = self.above.next_data(&handle, at)? {
            at = data.start;
            while at < data.end {
                let most = usize::try_from(data.end - at).unwrap_or(PIECE).min(PIECE);
                let read = self.above.read_at(&handle, &mut piece[..most], at)?;
                if read == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                file.write_all_at(&piece[..read], at)?;
                at += read as u64;
            }
        }
        file.set_len(stat.size)?;
        file.flush()
    }

    /// Sets attributes of an object that cannot be opened: a symlink, a FIFO, a device, or a file
    /// that the caller may not read.
    fn set_attributes_at(
        &self,
        dir: &OwnedFd,
        name: &OsStr,
        new: &Arc<Node<OsLayer>>,
        stat: &Stat,
        needed: Needed,
    ) -> io::Result<()> {
        if new.kind() == Kind::File {
            let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let file = rustix::fs::openat(dir, name, flags | OFlags::RDONLY, Mode::empty());
            let file = file.or_else(|_| rustix::fs::openat(dir, name, flags | OFlags::WRONLY, Mode::empty()))?;
            return self.set_attributes(&file, new, stat, needed);
        }
        if self.all_ids && (needed.all || needed.owner) {
            let (uid, gid) = (Uid::from_raw(stat.uid), Gid::from_raw(stat.gid));
            rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if new.kind() != Kind::Symlink && (needed.all || needed.mode) {
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(stat.mode), AtFlags::empty())?;
        }
        rustix::fs::utimensat(dir, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    /// Sets attributes of an open file or directory.
    fn set_attributes<F: AsFd>(
        &self,
        file: F,
        new: &Arc<Node<OsLayer>>,
        stat: &Stat,
        needed: Needed,
    ) -> io::Result<()> {
        if self.all_ids && (needed.all || needed.owner) {
            rustix::fs::fchown(&file, Some(Uid::from_raw(stat.uid)), Some(Gid::from_raw(stat.gid)))?;
        }
        if needed.all || needed.xattrs {
            self.set_xattrs(file.as_fd().as_raw_fd(), new)?;
        }
        if needed.all || needed.mode {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(stat.mode))?;
        }
        match rustix::fs::futimens(&file, &times(stat)) {
            // Only the owner sets times. Those of the change itself are there.
            Err(rustix::io::Errno::PERM) if !needed.all => Ok(()),
            set => Ok(set?),
        }
    }

    /// Gives a file the extended attributes that it has above, and no others.
    fn set_xattrs(&self, file: i32, new: &Arc<Node<OsLayer>>) -> io::Result<()> {
        let path = format!("/proc/self/fd/{file}");
        let wanted = match self.above.xattrs(new) {
            Err(error) if error.errno == overlayfs::errno::EOPNOTSUPP => return Ok(()),
            names => names?,
        };
        for name in xattr_names(&path)?.iter().filter(|name| !wanted.contains(name)) {
            rustix::fs::removexattr(&path, name.as_os_str())?;
        }
        for name in &wanted {
            let value = self.above.xattr(new, name)?;
            rustix::fs::setxattr(&path, name.as_os_str(), &value, XattrFlags::empty())?;
        }
        Ok(())
    }
}

/// Returns the names of the extended attributes of a file.
fn xattr_names(path: &str) -> io::Result<Vec<OsString>> {
    let mut list = vec![0_u8; 64 << 10];
    let length = match rustix::fs::listxattr(path, &mut list) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    // A label of the system is not a change.
    let names = names.filter(|name| !name.starts_with(b"security.selinux"));
    Ok(names.map(|name| OsStr::from_bytes(name).to_owned()).collect())
}

/// Whether an object is a file that stays: that of another user, or one with several names.
fn is_others(there: &rustix::fs::Stat, kind: Kind) -> bool {
    let is_file = FileType::from_raw_mode(there.st_mode) == FileType::RegularFile && kind == Kind::File;
    let me = rustix::process::geteuid();
    is_file && (there.st_nlink > 1 || !me.is_root() && there.st_uid != me.as_raw())
}

/// Removes an object with its content, if it is there.
fn remove(dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    let removed = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => fs::remove_dir_all(&path),
        Ok(_) => fs::remove_file(&path),
        Err(error) => Err(error.into()),
    };
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn times(stat: &Stat) -> Timestamps {
    let of = |time: Time| Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() };
    Timestamps { last_access: of(stat.atime), last_modification: of(stat.mtime) }
}
