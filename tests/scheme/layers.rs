//! Layers in directories of Linux.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use overlayfs::layer::OsLayer;
use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::mount::mount;
use overlayfs::options::Options;
use overlayfs::overlay::{self, Overlay, Settings};
use tempfile::TempDir;
use test_common::LowerGuard;

/// Whether these layers can exchange names, and have FIFOs and sockets.
pub const FULL: bool = true;
/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;

/// A lower layer and an upper one. The drop removes them.
pub struct Layers {
    /// Compares the lower layer at its drop, so it is dropped first.
    _guard: LowerGuard,
    dir: TempDir,
}

/// A layer, while a test fills it.
pub struct Layer(PathBuf);

impl Layers {
    /// Makes a lower layer, which `fill_lower` fills and which must not change afterwards, and an
    /// upper one.
    pub fn new(fill_lower: impl FnOnce(&Layer)) -> Self {
        let dir = TempDir::new().unwrap();
        let [lower, upper] = ["lower", "upper"].map(|name| dir.path().join(name));
        for layer in [&lower, &upper] {
            fs::create_dir(layer).unwrap();
            fs::set_permissions(layer, Permissions::from_mode(0o755)).unwrap();
        }
        fill_lower(&Layer(lower.clone()));
        Self { _guard: LowerGuard::new([lower]), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn mount(&self, writable: bool) -> Overlay<OsLayer> {
        let upper = writable.then(|| self.path("upper"));
        mount(&Options { lowers: vec![self.path("lower")], upper, ..Options::default() }).unwrap()
    }

    /// Mounts with a directory for snapshots.
    pub fn mount_with_snapshots(&self) -> Overlay<OsLayer> {
        fs::create_dir_all(self.path("snapshots")).unwrap();
        let [upper, snapshots] = ["upper", "snapshots"].map(|name| Some(self.path(name)));
        mount(&Options { lowers: vec![self.path("lower")], upper, snapshots, ..Options::default() }).unwrap()
    }

    /// Returns the content of a file of the upper layer that a snapshot put on the others, the
    /// first one with the number 1.
    pub fn later_content(&self, number: u64, path: &str) -> Vec<u8> {
        fs::read(self.path(&format!("snapshots/{number}/upper/{path}"))).unwrap()
    }

    /// Returns an overlay of the two layers, with counted backing calls. It copies files up whole.
    pub fn counted(&self) -> (Overlay<Counted<OsLayer>>, Counts) {
        let counts = Counts::default();
        let open = |name, for_writing| Counted::new(OsLayer::open(&self.path(name), for_writing).unwrap(), &counts);
        let (upper, lowers) = (Some(open("upper", true)), vec![open("lower", false)]);
        let settings = Settings { whole_copies: true, ..Settings::default() };
        let overlay = Overlay::with_settings(overlay::Layers { upper, work: None, lowers }, settings).unwrap();
        (overlay, counts)
    }

    pub fn upper_is_socket(&self, path: &str) -> bool {
        fs::symlink_metadata(self.upper(path)).unwrap().file_type().is_socket()
    }

    /// Returns the path of an object of the upper layer.
    fn upper(&self, path: &str) -> PathBuf {
        self.path("upper").join(path)
    }

    /// Returns the names in a directory of the upper layer, sorted.
    pub fn upper_names(&self, path: &str) -> Vec<String> {
        test_common::names(&self.upper(path))
    }

    /// Returns the content of a file of the upper layer.
    pub fn upper_content(&self, path: &str) -> Vec<u8> {
        fs::read(self.upper(path)).unwrap()
    }
}

impl Layer {
    /// Makes a file of ann that contains its own path.
    pub fn file(&self, path: &str, mode: u32) {
        self.file_of(path, mode, 1000, 100);
    }

    pub fn file_of(&self, path: &str, mode: u32, uid: u32, gid: u32) {
        self.file_with(path, path.as_bytes(), mode, uid, gid);
    }

    pub fn file_with(&self, path: &str, content: &[u8], mode: u32, uid: u32, gid: u32) {
        fs::write(self.0.join(path), content).unwrap();
        self.set(path, mode, uid, gid);
    }

    /// Makes a directory of ann.
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

    /// Makes a symlink of ann.
    pub fn symlink(&self, target: impl AsRef<Path>, path: &str) {
        symlink(target, self.0.join(path)).unwrap();
        lchown(self.0.join(path), Some(1000), Some(100)).unwrap();
    }

    pub fn link(&self, old: &str, new: &str) {
        fs::hard_link(self.0.join(old), self.0.join(new)).unwrap();
    }
}
