//! Snapshots of real directory trees, and their comparison.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::hash::Hasher;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// The detail of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Detail {
    /// Kinds, contents, modes, owners, symlink targets, device numbers, and the names that share a
    /// file. Two trees that the same programs made at different times agree in this.
    Contents,
    /// The same, and times of change to the nanosecond.
    Times,
    /// The same, and extended attributes.
    Xattrs,
    /// The same, times of inode change, inode numbers and link counts. Any change of a tree changes
    /// them.
    Inodes,
    /// The same, and times of access. Any access to a tree changes them.
    Everything,
}

/// A snapshot of a directory tree of the real filesystem. Taking one changes nothing, not even
/// access times.
#[derive(PartialEq, Eq)]
pub struct Snapshot {
    detail: Detail,
    objects: BTreeMap<PathBuf, Object>,
}

/// One object: named properties with printable values, so that a difference explains itself.
type Object = BTreeMap<&'static str, String>;

impl Snapshot {
    /// Takes a snapshot of the tree below `root`. The root itself has the empty path. Panics if a
    /// part of the tree cannot be read.
    pub fn take(root: &Path, detail: Detail) -> Self {
        let mut taker = Taker { detail, objects: BTreeMap::new(), links: HashMap::new() };
        let fd = open(CWD, root.as_os_str(), OFlags::DIRECTORY).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
        taker.object(CWD, root.as_os_str(), PathBuf::new());
        taker.directory(fd, Path::new(""));
        Self { detail, objects: taker.objects }
    }

    /// Returns the paths of all objects, sorted. The first is the root ("").
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.objects.keys().map(PathBuf::as_path)
    }

    /// Returns the number of objects, with the root.
    pub fn count(&self) -> usize {
        self.objects.len()
    }

    /// Returns the differences to `other`, one line for each object. Without a difference the text
    /// is empty.
    pub fn diff(&self, other: &Self) -> String {
        assert_eq!(self.detail, other.detail, "snapshots of different detail cannot be compared");
        let mut out = String::new();
        for (path, object) in &self.objects {
            match other.objects.get(path) {
                None => writeln!(out, "- {} ({})", path.display(), object["kind"]).unwrap(),
                Some(now) if now != object => {
                    let mut keys: Vec<_> = object.keys().chain(now.keys()).collect();
                    keys.sort();
                    keys.dedup();
                    let changes: Vec<_> = keys
                        .into_iter()
                        .filter(|key| object.get(*key) != now.get(*key))
                        .map(|key| {
                            let value = |object: &Object| object.get(key).map_or("none", String::as_str).to_owned();
                            format!("{key} {} -> {}", value(object), value(now))
                        })
                        .collect();
                    writeln!(out, "~ {}: {}", path.display(), changes.join(", ")).unwrap();
                }
                Some(_) => {}
            }
        }
        for (path, object) in other.objects.iter().filter(|(path, _)| !self.objects.contains_key(*path)) {
            writeln!(out, "+ {} ({})", path.display(), object["kind"]).unwrap();
        }
        out
    }

    /// Panics with the differences, if there are any. `what` begins the sentence: "the lower
    /// layer".
    pub fn assert_same(&self, other: &Self, what: &str) {
        let diff = self.diff(other);
        let lines: Vec<_> = diff.lines().collect();
        let shown = lines.iter().take(40).fold(String::new(), |all, line| all + line + "\n");
        assert!(diff.is_empty(), "{what} differs in {} objects:\n{shown}", lines.len());
    }
}

struct Taker {
    detail: Detail,
    objects: BTreeMap<PathBuf, Object>,
    /// The first path of every file that has several names.
    links: HashMap<(u64, u64), PathBuf>,
}

impl Taker {
    fn directory(&mut self, fd: OwnedFd, path: &Path) {
        let mut names: Vec<OsString> = Dir::read_from(&fd)
            .unwrap()
            .map(|entry| OsString::from_vec(entry.unwrap().file_name().to_bytes().to_vec()))
            .filter(|name| name != "." && name != "..")
            .collect();
        names.sort();
        for name in names {
            let path = path.join(&name);
            let kind = self.object(fd.as_fd(), &name, path.clone());
            if kind == FileType::Directory {
                let dir = open(fd.as_fd(), &name, OFlags::DIRECTORY);
                self.directory(dir.unwrap_or_else(|e| panic!("{}: {e}", path.display())), &path);
            }
        }
    }

    fn object(&mut self, dir: BorrowedFd<'_>, name: &OsStr, path: PathBuf) -> FileType {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut object = Object::from([
            ("kind", format!("{kind:?}")),
            ("mode", format!("{:o}", stat.st_mode & 0o7777)),
            ("owner", format!("{}:{}", stat.st_uid, stat.st_gid)),
        ]);
        match kind {
            FileType::RegularFile => {
                object.insert("bytes", digest(dir, name, &path));
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new()).unwrap();
                object.insert("target", String::from_utf8_lossy(target.as_bytes()).into_owned());
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                object.insert("rdev", format!("{:#x}", stat.st_rdev));
            }
            _ => {}
        }
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let first = self.links.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.clone());
            object.insert("link of", first.display().to_string());
        }
        if self.detail >= Detail::Times {
            object.insert("mtime", format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec));
        }
        if self.detail >= Detail::Xattrs {
            object.insert("xattrs", xattrs_at(dir, name));
        }
        if self.detail >= Detail::Inodes {
            object.insert("ctime", format!("{}.{:09}", stat.st_ctime, stat.st_ctime_nsec));
            object.insert("inode", format!("{}/{} ×{}", stat.st_dev, stat.st_ino, stat.st_nlink));
        }
        // A read of a symlink changes its access time: readlink has no O_NOATIME.
        if self.detail >= Detail::Everything && kind != FileType::Symlink {
            object.insert("atime", format!("{}.{:09}", stat.st_atime, stat.st_atime_nsec));
        }
        self.objects.insert(path, object);
        kind
    }
}

/// Opens an object for reading without a change to its access time.
fn open(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::openat(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(dir, name, flags, Mode::empty()),
        other => other,
    }
}

/// Returns the contents of a file: the bytes of a short file, otherwise the number of bytes and a
/// hash.
fn digest(dir: BorrowedFd<'_>, name: &OsStr, path: &Path) -> String {
    let fd = open(dir, name, OFlags::empty()).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    std::fs::File::from(fd).read_to_end(&mut bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    if bytes.len() <= 48 {
        return format!("\"{}\"", bytes.escape_ascii());
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    format!("{} bytes #{:016x}", bytes.len(), hasher.finish())
}

/// Returns the extended attributes of an object, also of a symlink, as text.
fn xattrs_at(dir: BorrowedFd<'_>, name: &OsStr) -> String {
    // The calls for attributes take no directory descriptor.
    let path = match dir.as_raw_fd() {
        at_cwd if at_cwd < 0 => PathBuf::from(name),
        at => Path::new("/proc/self/fd").join(at.to_string()).join(name),
    };
    let mut out = String::new();
    for (name, value) in xattrs(&path) {
        write!(out, "{}={} ", name, value.escape_ascii()).unwrap();
    }
    out
}

/// Returns the extended attributes of an object, also of a symlink. Without support of the
/// filesystem there are none.
pub fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = Vec::with_capacity(64 << 10);
    match rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut list)) {
        Err(Errno::OPNOTSUPP) => return BTreeMap::new(),
        result => result.unwrap(),
    };
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let get = |name: &[u8]| {
        let mut value = Vec::with_capacity(64 << 10);
        let buffer = rustix::buffer::spare_capacity(&mut value);
        rustix::fs::lgetxattr(path, OsStr::from_bytes(name), buffer).unwrap();
        (name.escape_ascii().to_string(), value)
    };
    names.map(get).collect()
}
