//! A temporary directory that holds the layers of one test, and short ways to fill them.

use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid};

/// What begins the names of stages.
const PREFIX: &str = "overlayfs-test-";

/// A temporary directory for one test; removed with all its contents when it is dropped.
pub struct Setup {
    dir: tempfile::TempDir,
}

impl Setup {
    /// An empty setup. Tests change owners and make device nodes, so they run as root; a sentence
    /// says so if they do not.
    #[expect(clippy::new_without_default, reason = "makes a directory, which a default value should not do")]
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test gives files to other users: run it as root");
        Self { dir: tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap() }
    }

    /// An empty setup in memory, where nothing waits for a disk.
    pub fn in_memory() -> Self {
        Self { dir: tempfile::Builder::new().prefix(PREFIX).tempdir_in("/dev/shm").unwrap() }
    }

    /// A setup with these directories, which other users may enter.
    pub fn for_users(names: &[&str]) -> Self {
        let setup = Self::new();
        mode(setup.root(), 0o755);
        for name in names {
            setup.dir(name);
        }
        setup
    }

    /// The setup itself.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The path of `name` in the setup, whether it exists or not.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The directory `name` in the setup, created if it is missing.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

/// Puts objects into a real directory, with parents as needed. Panics on any failure: the test
/// could not mean anything then.
pub mod put {
    use super::*;

    fn parents(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
    }

    /// A file with these bytes, or new bytes for an existing one.
    pub fn file(root: &Path, path: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = root.join(path);
        parents(&path);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A directory, which may exist.
    pub fn dir(root: &Path, path: &str) -> PathBuf {
        let path = root.join(path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A symlink.
    pub fn symlink(root: &Path, path: &str, target: &str) -> PathBuf {
        let path = root.join(path);
        parents(&path);
        std::os::unix::fs::symlink(target, &path).unwrap();
        path
    }

    /// A second name of a file.
    pub fn link(root: &Path, existing: &str, path: &str) -> PathBuf {
        let path = root.join(path);
        parents(&path);
        fs::hard_link(root.join(existing), &path).unwrap();
        path
    }

    /// A FIFO, a socket or a device node.
    pub fn node(root: &Path, path: &str, kind: FileType, mode: u32, rdev: u64) -> PathBuf {
        let path = root.join(path);
        parents(&path);
        rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(mode), rdev).unwrap();
        super::mode(&path, mode);
        path
    }

    /// Hides `name` of `dir` in the layers below, in the native format.
    pub fn whiteout(root: &Path, dir: &str, name: &str) -> PathBuf {
        file(&root.join(dir), &format!(".wh.{name}"), "")
    }

    /// Hides all that layers below have in `dir`, in the native format.
    pub fn opaque(root: &Path, dir: &str) -> PathBuf {
        file(&root.join(dir), ".wh..wh..opq", "")
    }
}

/// Sets the mode of an object that is not a symlink.
pub fn mode(path: &Path, mode: u32) {
    rustix::fs::chmod(path, Mode::from_raw_mode(mode)).unwrap();
}

/// Sets the owner of an object, also of a symlink.
pub fn owner(path: &Path, uid: u32, gid: u32) {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Sets both times of an object, also of a symlink: seconds and nanoseconds.
pub fn times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let spec = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Whether something has this name, also a dangling symlink.
pub fn exists(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// The names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The partial copy of `name` in a directory of an upper layer (`kind` is `part`), or its map
/// (`map`). Panics if there is none.
pub fn lent(dir: &Path, kind: &str, name: &str) -> PathBuf {
    let (prefix, end) = (format!(".wh..wh.{kind}."), format!(".{name}"));
    let found = names(dir).into_iter().find(|found| found.starts_with(&prefix) && found.ends_with(&end));
    dir.join(found.unwrap_or_else(|| panic!("{} has no {kind} of {name}", dir.display())))
}
