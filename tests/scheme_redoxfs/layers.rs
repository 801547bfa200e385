//! Layers on a simulated redoxfs.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use linux_delegate::redoxfs::NAME_MAX;
use linux_delegate::redoxfs::{Disk, Snapshot};
use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::layer::redox::RedoxLayer;
use overlayfs::overlay::{self, Overlay, Settings};
use syscall::flag::{MODE_SOCK, MODE_TYPE};

/// Whether these layers can exchange names, and have FIFOs and sockets.
pub const FULL: bool = false;

/// A lower layer and an upper one.
pub struct Layers {
    disk: Disk,
    lower: Snapshot,
}

/// A layer, while a test fills it.
pub struct Layer<'a>(&'a Disk);

impl Layers {
    /// Makes a lower layer, which `fill_lower` fills and which must not change afterwards, and an
    /// upper one.
    pub fn new(fill_lower: impl FnOnce(&Layer)) -> Self {
        let disk = Disk::redoxfs();
        disk.tree().put_dir("lower");
        disk.tree().put_dir("upper");
        fill_lower(&Layer(&disk));
        Self { lower: disk.snapshot("lower"), disk }
    }

    fn open(&self, path: &str, for_writing: bool) -> RedoxLayer {
        RedoxLayer::open(Path::new(&self.disk.path(path)), for_writing).unwrap()
    }

    pub fn mount(&self, writable: bool) -> Overlay<RedoxLayer> {
        let upper = writable.then(|| self.open("upper", true));
        Overlay::new(overlay::Layers { upper, work: None, lowers: vec![self.open("lower", false)] }).unwrap()
    }

    /// Mounts with a directory for snapshots.
    pub fn mount_with_snapshots(&self) -> Overlay<RedoxLayer> {
        if !self.disk.tree().names("").contains(&"snapshots".to_owned()) {
            self.disk.tree().put_dir("snapshots");
        }
        let (upper, lowers) = (Some(self.open("upper", true)), vec![self.open("lower", false)]);
        let layers = overlay::Layers { upper, work: None, lowers };
        Overlay::with_snapshots(layers, self.open("snapshots", true), Settings::default()).unwrap()
    }

    /// Returns the content of a file of the upper layer that a snapshot put on the others, the
    /// first one with the number 1.
    pub fn later_content(&self, number: u64, path: &str) -> Vec<u8> {
        self.disk.tree().look(&format!("snapshots/{number}/upper/{path}")).bytes().unwrap().clone()
    }

    /// Returns an overlay of the two layers, with counted backing calls. It copies files up whole.
    pub fn counted(&self) -> (Overlay<Counted<RedoxLayer>>, Counts) {
        let counts = Counts::default();
        let open = |path, for_writing| Counted::new(self.open(path, for_writing), &counts);
        let (upper, lowers) = (Some(open("upper", true)), vec![open("lower", false)]);
        let settings = Settings { whole_copies: true, ..Settings::default() };
        let overlay = Overlay::with_settings(overlay::Layers { upper, work: None, lowers }, settings).unwrap();
        (overlay, counts)
    }

    pub fn upper_is_socket(&self, path: &str) -> bool {
        self.disk.tree().look(&format!("upper/{path}")).mode & MODE_TYPE == MODE_SOCK
    }

    /// Returns the names in a directory of the upper layer, sorted.
    pub fn upper_names(&self, path: &str) -> Vec<String> {
        self.disk.tree().names(&format!("upper/{path}"))
    }

    /// Returns the content of a file of the upper layer.
    pub fn upper_content(&self, path: &str) -> Vec<u8> {
        self.disk.tree().look(&format!("upper/{path}")).bytes().unwrap().clone()
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.disk.assert_same(&self.lower);
        }
    }
}

impl Layer<'_> {
    /// Makes a file of ann that contains its own path.
    pub fn file(&self, path: &str, mode: u32) {
        self.file_of(path, mode, 1000, 100);
    }

    pub fn file_of(&self, path: &str, mode: u32, uid: u32, gid: u32) {
        self.file_with(path, path.as_bytes(), mode, uid, gid);
    }

    pub fn file_with(&self, path: &str, content: &[u8], mode: u32, uid: u32, gid: u32) {
        self.0.tree().put_file(&format!("lower/{path}"), content);
        self.set(path, mode, uid, gid);
    }

    /// Makes a directory of ann.
    pub fn dir(&self, path: &str, mode: u32) {
        self.dir_of(path, mode, 1000, 100);
    }

    pub fn dir_of(&self, path: &str, mode: u32, uid: u32, gid: u32) {
        self.0.tree().put_dir(&format!("lower/{path}"));
        self.set(path, mode, uid, gid);
    }

    fn set(&self, path: &str, mode: u32, uid: u32, gid: u32) {
        let mut tree = self.0.tree();
        let node = tree.look_mut(&format!("lower/{path}"));
        (node.mode, node.uid, node.gid) = (node.mode & MODE_TYPE | mode as u16, uid, gid);
    }

    /// Makes a symlink of ann.
    pub fn symlink(&self, target: impl AsRef<Path>, path: &str) {
        self.0.tree().put_symlink(&format!("lower/{path}"), target.as_ref().as_os_str().as_bytes());
        self.set(path, 0o777, 1000, 100);
    }

    pub fn link(&self, old: &str, new: &str) {
        self.0.tree().put_link(&format!("lower/{old}"), &format!("lower/{new}"));
    }
}
