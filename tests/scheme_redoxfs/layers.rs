//! Layers on a redoxfs that the delegate plays.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub use linux_delegate::redoxfs::NAME_MAX;
use linux_delegate::redoxfs::{Disk, Snapshot};
use overlayfs::layer::redox::RedoxLayer;
use overlayfs::overlay::{self, Overlay};
use syscall::flag::MODE_TYPE;

/// Renames cannot exchange, and neither FIFOs nor sockets can be made.
pub const FULL: bool = false;

/// An empty directory for the lower layer and one for the upper.
pub struct Layers {
    disk: Disk,
    guarded: Option<Snapshot>,
}

/// A layer, while it is made.
pub struct Layer<'a>(&'a Disk);

impl Layers {
    pub fn new() -> Self {
        let disk = Disk::redoxfs();
        disk.tree().put_dir("lower");
        disk.tree().put_dir("upper");
        Self { disk, guarded: None }
    }

    /// The lower layer, to fill it.
    pub fn lower(&self) -> Layer<'_> {
        Layer(&self.disk)
    }

    /// From now on the lower layer must not change.
    pub fn guard(&mut self) {
        self.guarded = Some(self.disk.snapshot("lower"));
    }

    pub fn mount(&self, writable: bool) -> Overlay<RedoxLayer> {
        let open = |path, for_writing| RedoxLayer::open(Path::new(&self.disk.path(path)), for_writing).unwrap();
        let upper = writable.then(|| open("upper", true));
        Overlay::new(overlay::Layers { upper, work: None, lowers: vec![open("lower", false)] }).unwrap()
    }

    /// Whether the upper layer has something of this name.
    pub fn upper_has(&self, path: &str) -> bool {
        self.disk.tree().get(&format!("upper/{path}")).is_some()
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        if let Some(guarded) = self.guarded.take_if(|_| !std::thread::panicking()) {
            self.disk.assert_same(&guarded);
        }
    }
}

impl Layer<'_> {
    /// A file of ann's that holds its own path.
    pub fn file(&self, path: &str, mode: u32) {
        self.file_of(path, mode, 1000, 100);
    }

    pub fn file_of(&self, path: &str, mode: u32, uid: u32, gid: u32) {
        self.0.tree().put_file(&format!("lower/{path}"), path);
        self.set(path, mode, uid, gid);
    }

    /// A directory of ann's.
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

    /// A symlink of ann's.
    pub fn symlink(&self, target: impl AsRef<Path>, path: &str) {
        self.0.tree().put_symlink(&format!("lower/{path}"), target.as_ref().as_os_str().as_bytes());
        self.set(path, 0o777, 1000, 100);
    }

    pub fn link(&self, old: &str, new: &str) {
        self.0.tree().put_link(&format!("lower/{old}"), &format!("lower/{new}"));
    }
}
