//! A temporary directory with the layers of one test, and short functions to fill them.

use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid};

/// The start of the names of setups.
const PREFIX: &str = "overlayfs-test-";

/// A temporary directory for one test. The drop removes it with its contents.
pub struct Setup {
    dir: tempfile::TempDir,
}

impl Setup {
    /// Makes an empty setup. Panics with a sentence unless the test runs as root: tests change
    /// owners and make device nodes.
    #[expect(clippy::new_without_default, reason = "makes a directory, which a default value should not do")]
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test gives files to other users: run it as root");
        Self { dir: tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap() }
    }

    /// Makes an empty setup in memory, so that no call waits for a disk.
    pub fn in_memory() -> Self {
        Self { dir: tempfile::Builder::new().prefix(PREFIX).tempdir_in("/dev/shm").unwrap() }
    }

    /// Makes a setup with these directories, which other users may enter.
    pub fn for_users(names: &[&str]) -> Self {
        let setup = Self::new();
        mode(setup.root(), 0o755);
        for name in names {
            setup.dir(name);
        }
        setup
    }

    /// Returns the directory of the setup.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the path of `name` in the setup. The object need not exist.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the directory `name` in the setup, and makes it if it is missing.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

/// Functions that put objects, with their parents, into a real directory. They panic on any error,
/// as the test would show nothing then.
pub mod put {
    use super::*;

    fn parents(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
    }

    /// Makes a file with these bytes, or writes them to an existing one.
    pub fn file(root: &Path, path: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = root.join(path);
        parents(&path);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Makes a directory. It may exist.
    pub fn dir(root: &Path, path: &str) -> PathBuf {
        let path = root.join(path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Makes a symlink.
    pub fn symlink(root: &Path, path: &str, target: &str) -> PathBuf {
        let path = root.join(path);
        parents(&path);
        std::os::unix::fs::symlink(target, &path).unwrap();
        path
    }

    /// Adds a name to a file.
    pub fn link(root: &Path, existing: &str, path: &str) -> PathBuf {
        let path = root.join(path);
        parents(&path);
        fs::hard_link(root.join(existing), &path).unwrap();
        path
    }

    /// Makes a FIFO, a socket or a device node.
    pub fn node(root: &Path, path: &str, kind: FileType, mode: u32, rdev: u64) -> PathBuf {
        let path = root.join(path);
        parents(&path);
        rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(mode), rdev).unwrap();
        super::mode(&path, mode);
        path
    }

    /// Makes a whiteout of `name` in `dir`, in the OCI format.
    pub fn whiteout(root: &Path, dir: &str, name: &str) -> PathBuf {
        file(&root.join(dir), &format!(".wh.{name}"), "")
    }

    /// Makes `dir` opaque, in the OCI format.
    pub fn opaque(root: &Path, dir: &str) -> PathBuf {
        file(&root.join(dir), ".wh..wh..opq", "")
    }
}

/// Sets the mode of an object. It must not be a symlink.
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

/// Returns whether an object has this name. A dangling symlink counts.
pub fn exists(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// Returns the names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Returns the path of the partial copy of `name` in a directory of an upper layer (`kind` is
/// `part`), or of its map (`map`). Panics if there is none.
pub fn partial_file(dir: &Path, kind: &str, name: &str) -> PathBuf {
    let (prefix, end) = (format!(".wh..wh.{kind}."), format!(".{name}"));
    let found = names(dir).into_iter().find(|found| found.starts_with(&prefix) && found.ends_with(&end));
    dir.join(found.unwrap_or_else(|| panic!("{} has no {kind} of {name}", dir.display())))
}
