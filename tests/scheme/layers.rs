//! Layers in directories of the host.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use overlayfs::layer::OsLayer;
use overlayfs::mount::mount;
use overlayfs::options::Options;
use overlayfs::overlay::Overlay;
use tempfile::TempDir;
use test_common::LowerGuard;

/// Renames can exchange, and FIFOs and sockets can be made.
pub const FULL: bool = true;
/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;

/// An empty directory for the lower layer and one for the upper, gone when dropped.
pub struct Layers {
    guard: LowerGuard,
    dir: TempDir,
}

/// A layer, while it is made.
pub struct Layer(PathBuf);

impl Layers {
    pub fn new() -> Self {
        let layers = Self { guard: LowerGuard::new(Vec::<PathBuf>::new()), dir: TempDir::new().unwrap() };
        for name in ["lower", "upper"] {
            fs::create_dir(layers.path(name)).unwrap();
            fs::set_permissions(layers.path(name), Permissions::from_mode(0o755)).unwrap();
        }
        layers
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The lower layer, to fill it.
    pub fn lower(&self) -> Layer {
        Layer(self.path("lower"))
    }

    /// From now on the lower layer must not change.
    pub fn guard(&mut self) {
        self.guard.add(self.path("lower"));
    }

    pub fn mount(&self, writable: bool) -> Overlay<OsLayer> {
        let upper = writable.then(|| self.path("upper"));
        mount(&Options { lowers: vec![self.path("lower")], upper, ..Options::default() }).unwrap()
    }

    /// Whether the upper layer has something of this name.
    pub fn upper_has(&self, path: &str) -> bool {
        self.path("upper").join(path).exists()
    }

    /// Opens both for an overlay of a backend that the test chooses.
    pub fn open<L>(&self, open: impl Fn(&Path, bool) -> L) -> (L, L) {
        (open(&self.path("lower"), false), open(&self.path("upper"), true))
    }
}

impl Layer {
    /// A file of ann's that holds its own path.
    pub fn file(&self, path: &str, mode: u32) {
        self.file_of(path, mode, 1000, 100);
    }

    pub fn file_of(&self, path: &str, mode: u32, uid: u32, gid: u32) {
        self.write(path, path);
        self.set(path, mode, uid, gid);
    }

    /// A file of root's.
    pub fn write(&self, path: &str, content: &str) {
        fs::write(self.0.join(path), content).unwrap();
    }

    /// A directory of ann's.
    pub fn dir(&self, path: &str, mode: u32) {
        self.dir_of(path, mode, 1000, 100);
    }

    pub fn dir_of(&self, path: &str, mode: u32, uid: u32, gid: u32) {
        fs::create_dir(self.0.join(path)).unwrap();
        self.set(path, mode, uid, gid);
    }

    fn set(&self, path: &str, mode: u32, uid: u32, gid: u32) {
        chown(self.0.join(path), Some(uid), Some(gid)).unwrap();
        fs::set_permissions(self.0.join(path), Permissions::from_mode(mode)).unwrap();
    }

    /// A symlink of ann's.
    pub fn symlink(&self, target: impl AsRef<Path>, path: &str) {
        symlink(target, self.0.join(path)).unwrap();
        lchown(self.0.join(path), Some(1000), Some(100)).unwrap();
    }

    pub fn link(&self, old: &str, new: &str) {
        fs::hard_link(self.0.join(old), self.0.join(new)).unwrap();
    }
}
