//! The places of layers: a filesystem of Linux, or a simulated redoxfs. A test puts objects into
//! layers there, and looks at layers without an overlay.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use linux_delegate::redoxfs::{Content, Disk, NAME_MAX, Snapshot};
use rustix::fs::{CWD, FileType, Mode};
use syscall::flag::{MODE_DIR, MODE_FILE, MODE_PERM, MODE_SYMLINK, MODE_TYPE};
use test_common::{LowerGuard, Setup};

use crate::Kind;
use crate::host::kind;
use crate::layer::Meta;

/// The properties of an object.
pub struct Found {
    pub meta: Meta,
    pub kind: Kind,
    /// The identity of the object.
    pub number: (u64, u64),
    /// The device number of a device node.
    pub device: u64,
    /// The bytes of a file, or the target of a symlink.
    pub content: Vec<u8>,
}

/// A filesystem of one test. Methods panic at an error.
pub trait Backing {
    /// Makes a new directory for a layer. Returns its path as a mount needs it.
    fn layer(&self, name: &str) -> PathBuf;
    /// Returns the length of the longest name, in bytes.
    fn name_max(&self) -> usize;

    /// Makes a directory. It may exist.
    fn make_dir(&self, path: &Path);
    fn make_file(&self, path: &Path, bytes: &[u8]);
    fn make_symlink(&self, path: &Path, target: &OsStr);
    fn make_link(&self, old: &Path, new: &Path);
    /// Makes a FIFO or a socket.
    fn make_node(&self, path: &Path, kind: Kind);
    /// Sets owner, times and, unless it is a symlink, mode.
    fn set_meta(&self, path: &Path, meta: &Meta);

    fn look(&self, path: &Path) -> Found;
    fn names(&self, path: &Path) -> Vec<OsString>;
    /// Returns the extended attributes.
    fn attributes(&self, path: &Path) -> Vec<(String, Vec<u8>)>;

    /// Guards all objects at and below `path` against changes.
    fn guard(&mut self, path: &Path);
    /// Panics if a guarded object has changed.
    fn check(&self);
}

/// A temporary directory of Linux.
pub struct Host {
    /// Compares the layers at its drop, so it is dropped first.
    guard: LowerGuard,
    setup: Setup,
}

impl Host {
    pub fn new(setup: Setup) -> Self {
        Self { guard: LowerGuard::new(std::iter::empty::<PathBuf>()), setup }
    }
}

impl Backing for Host {
    fn layer(&self, name: &str) -> PathBuf {
        self.setup.dir(name)
    }

    fn name_max(&self) -> usize {
        255
    }

    fn make_dir(&self, path: &Path) {
        if !path.is_dir() {
            fs::create_dir(path).unwrap();
        }
    }

    /// The file gets holes where bytes are zero for a while, so that a copy-up meets holes.
    fn make_file(&self, path: &Path, bytes: &[u8]) {
        let file = fs::File::create_new(path).unwrap();
        for (block, chunk) in bytes.chunks(4096).enumerate().filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0)) {
            file.write_all_at(chunk, block as u64 * 4096).unwrap();
        }
        file.set_len(bytes.len() as u64).unwrap();
        // A redirect that every user may write does not count. The umask belongs to the process,
        // and a daemon in another test clears it.
        file.set_permissions(fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn make_symlink(&self, path: &Path, target: &OsStr) {
        std::os::unix::fs::symlink(target, path).unwrap();
    }

    fn make_link(&self, old: &Path, new: &Path) {
        fs::hard_link(old, new).unwrap();
    }

    fn make_node(&self, path: &Path, kind: Kind) {
        let kind = if kind == Kind::Fifo { FileType::Fifo } else { FileType::Socket };
        rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), 0).unwrap();
    }

    fn set_meta(&self, path: &Path, meta: &Meta) {
        test_common::owner(path, meta.uid, meta.gid);
        if !path.is_symlink() {
            test_common::mode(path, meta.mode);
        }
        test_common::times(path, (1, 1), (meta.mtime.0, meta.mtime.1.into()));
    }

    fn look(&self, path: &Path) -> Found {
        let stat = fs::symlink_metadata(path).unwrap();
        let meta = Meta {
            mode: stat.mode() & 0o7777,
            uid: stat.uid(),
            gid: stat.gid(),
            mtime: (stat.mtime(), stat.mtime_nsec() as u32),
        };
        let kind = kind(stat.mode());
        let content = match kind {
            Kind::File => fs::read(path).unwrap(),
            Kind::Symlink => fs::read_link(path).unwrap().into_os_string().into_vec(),
            _ => Vec::new(),
        };
        Found { meta, kind, number: (stat.dev(), stat.ino()), device: stat.rdev(), content }
    }

    fn names(&self, path: &Path) -> Vec<OsString> {
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    fn attributes(&self, path: &Path) -> Vec<(String, Vec<u8>)> {
        let mut names = vec![0; 4096];
        let len = rustix::fs::listxattr(path, &mut names[..]).unwrap();
        let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let value = |name: &str| {
            let mut value = vec![0; 4096];
            let len = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
            value.truncate(len);
            value
        };
        names.map(|name| str::from_utf8(name).unwrap()).map(|name| (name.to_owned(), value(name))).collect()
    }

    fn guard(&mut self, path: &Path) {
        self.guard.add(path);
    }

    fn check(&self) {
        self.guard.check();
    }
}

/// A simulated redoxfs.
pub struct Redoxfs {
    disk: Disk,
    guarded: Vec<Snapshot>,
}

impl Redoxfs {
    pub fn new() -> Self {
        Self { disk: Disk::redoxfs(), guarded: Vec::new() }
    }

    /// Returns the path on the disk for a path that begins with the scheme.
    fn inside(&self, path: &Path) -> String {
        path.strip_prefix(self.disk.path("")).unwrap().to_str().unwrap().to_owned()
    }
}

impl Backing for Redoxfs {
    fn layer(&self, name: &str) -> PathBuf {
        self.disk.tree().put_dir(name);
        self.disk.path(name).into()
    }

    fn name_max(&self) -> usize {
        NAME_MAX
    }

    fn make_dir(&self, path: &Path) {
        self.disk.tree().put_dir(&self.inside(path));
    }

    fn make_file(&self, path: &Path, bytes: &[u8]) {
        self.disk.tree().put_file(&self.inside(path), bytes);
    }

    fn make_symlink(&self, path: &Path, target: &OsStr) {
        self.disk.tree().put_symlink(&self.inside(path), target.as_bytes());
    }

    fn make_link(&self, old: &Path, new: &Path) {
        self.disk.tree().put_link(&self.inside(old), &self.inside(new));
    }

    fn make_node(&self, path: &Path, kind: Kind) {
        panic!("{}: redoxfs makes no {kind:?}", path.display());
    }

    fn set_meta(&self, path: &Path, meta: &Meta) {
        let mut tree = self.disk.tree();
        let node = tree.look_mut(&self.inside(path));
        (node.uid, node.gid) = (meta.uid, meta.gid);
        if !node.is_symlink() {
            node.mode = node.mode & MODE_TYPE | meta.mode as u16;
        }
        (node.atime, node.mtime) = ((1, 1), (meta.mtime.0 as u64, meta.mtime.1));
    }

    fn look(&self, path: &Path) -> Found {
        let (tree, path) = (self.disk.tree(), self.inside(path));
        let node = tree.look(&path);
        let mode = u32::from(node.mode & MODE_PERM);
        let meta = Meta { mode, uid: node.uid, gid: node.gid, mtime: (node.mtime.0 as i64, node.mtime.1) };
        let kind = match node.mode & MODE_TYPE {
            MODE_FILE => Kind::File,
            MODE_DIR => Kind::Dir,
            MODE_SYMLINK => Kind::Symlink,
            other => panic!("{path}: an object of the type {other:o}"),
        };
        let content = match &node.content {
            Content::Bytes(bytes) => bytes.clone(),
            Content::Entries(_) => Vec::new(),
        };
        Found { meta, kind, number: (0, tree.at(&path).into()), device: 0, content }
    }

    fn names(&self, path: &Path) -> Vec<OsString> {
        let names = self.disk.tree().names(&self.inside(path));
        let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
        assert!(twice.is_none(), "{}: two entries {twice:?}", path.display());
        names.into_iter().map(OsString::from).collect()
    }

    fn attributes(&self, _: &Path) -> Vec<(String, Vec<u8>)> {
        Vec::new()
    }

    fn guard(&mut self, path: &Path) {
        self.guarded.push(self.disk.snapshot(&self.inside(path)));
    }

    fn check(&self) {
        self.guarded.iter().for_each(|before| self.disk.assert_same(before));
    }
}
