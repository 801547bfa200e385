//! The directories of one mount: a lower layer, an upper layer and the mount point.

use std::path::PathBuf;

use rustix::mount::{UnmountFlags, unmount};
use test_common::{LowerGuard, Setup};

use crate::mount::{Mount, is_mounted};

/// The directories `lower`, `upper` and `mount` of a setup, which other users may enter. The drop
/// unmounts, as a daemon in the background is no child of the test.
pub struct Fixture {
    pub setup: Setup,
    /// The mount options of the layers.
    layers: String,
}

#[allow(dead_code, reason = "not every suite needs all of them")]
impl Fixture {
    /// Makes the directories. The work directory will be in the upper layer.
    pub fn new() -> Self {
        let setup = Setup::for_users(&["lower", "upper", "mount"]);
        let root = setup.root().display();
        Self { layers: format!("lowerdir={root}/lower,upperdir={root}/upper"), setup }
    }

    /// Makes the directories, and the work directory `work`.
    pub fn with_work() -> Self {
        let mut fixture = Self::new();
        fixture.layers += &format!(",workdir={}", fixture.setup.dir("work").display());
        fixture
    }

    /// Adds options to those of the layers.
    pub fn add(&mut self, options: &str) {
        self.layers += options;
    }

    /// Returns the path of `path` in the setup. The object need not exist.
    pub fn path(&self, path: &str) -> PathBuf {
        self.setup.path(path)
    }

    /// Returns the mount point.
    pub fn point(&self) -> PathBuf {
        self.path("mount")
    }

    /// Returns the list behind `-o`: the layers, then `more`. Each further option has a comma
    /// before it.
    pub fn options(&self, more: &str) -> String {
        format!("{}{more}", self.layers)
    }

    /// Mounts the layers with these further options.
    pub fn mount(&self, more: &str) -> Mount {
        Mount::new(&self.point(), &self.options(more))
    }

    /// Guards the lower layer against changes.
    pub fn guard(&self) -> LowerGuard {
        LowerGuard::new([self.path("lower")])
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if is_mounted(&self.point()) {
            let _ = unmount(self.point(), UnmountFlags::DETACH);
        }
    }
}
