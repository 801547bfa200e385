//! The backend of the system for which this is built, with its calls counted.

use std::path::{Path, PathBuf};

use super::Result;
use super::counted::{Calls, Counted};
#[cfg(target_os = "linux")]
use super::linux::{LinuxLayer as Backend, OpenRoot};
#[cfg(target_os = "redox")]
use super::redox::RedoxLayer as Backend;

/// A layer on this system.
pub type OsLayer = Counted<Backend, Calls>;

impl OsLayer {
    /// Opens the directory `path` as a layer, as the backend does.
    ///
    /// # Errors
    ///
    /// Those of open(2): ENOENT, ENOTDIR, EACCES and others.
    pub fn open(path: &Path, for_writing: bool) -> Result<Self> {
        Backend::open(path, for_writing).map(counted)
    }

    /// Opens another layer for reading. What this one knows about the process is not asked again.
    ///
    /// # Errors
    ///
    /// Those of [`OsLayer::open`].
    pub fn open_another(&self, path: &Path) -> Result<Self> {
        self.inner().open_another(path).map(counted)
    }

    /// Opens two directories for writing, with renames between them.
    ///
    /// # Errors
    ///
    /// Those of [`OsLayer::open`].
    pub fn open_pair(path: &Path, other: &Path) -> Result<(Self, Self)> {
        Backend::open_pair(path, other).map(|(one, other)| (counted(one), counted(other)))
    }

    /// Opens directories of one filesystem for writing, with renames between them.
    ///
    /// # Errors
    ///
    /// Those of [`OsLayer::open`].
    pub fn open_together(paths: &[&Path]) -> Result<Vec<Self>> {
        Ok(Backend::open_together(paths)?.into_iter().map(counted).collect())
    }

    /// Opens directories for writing, with renames and links between them. Returns None if they are
    /// not on one mount, or if directories that were opened alone are as good.
    ///
    /// # Errors
    ///
    /// Those of [`OsLayer::open`].
    pub fn open_group(paths: &[PathBuf]) -> Result<Option<Vec<Self>>> {
        Ok(Backend::open_group(paths)?.map(|layers| layers.into_iter().map(counted).collect()))
    }
}

#[cfg(target_os = "linux")]
impl OsLayer {
    /// Makes a layer of a directory that another process opened at `path`.
    ///
    /// # Errors
    ///
    /// Those of [`OsLayer::open`].
    pub fn with_opened(path: &Path, root: OpenRoot, for_writing: bool) -> Result<Self> {
        Backend::with_opened(path, root, for_writing).map(counted)
    }

    /// Opens the root once more, for a process that takes the layer over.
    ///
    /// # Errors
    ///
    /// - EMFILE: too many descriptors are open.
    pub fn root_again(&self) -> Result<OpenRoot> {
        self.inner().root_again()
    }
}

fn counted(layer: Backend) -> OsLayer {
    Counted::new(layer, &Calls::default())
}
