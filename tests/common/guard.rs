//! A check that lower layers do not change.

use std::path::PathBuf;

use crate::snapshot::{Detail, Snapshot};

/// Takes snapshots of lower layers, and compares them at the end of a test. They have bytes, modes,
/// owners, times (of access too), link counts and extended attributes. The drop of the guard
/// compares too, unless the test fails already.
pub struct LowerGuard {
    detail: Detail,
    lowers: Vec<(PathBuf, Snapshot)>,
}

impl LowerGuard {
    /// Makes a guard of these directories.
    pub fn new(lowers: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self::with_detail(Detail::Everything, lowers)
    }

    /// Makes a guard of these directories, on a filesystem that cannot keep all of the properties.
    pub fn with_detail(detail: Detail, lowers: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        let mut guard = Self { detail, lowers: Vec::new() };
        for lower in lowers {
            guard.add(lower);
        }
        guard
    }

    /// Adds a directory to the guard.
    pub fn add(&mut self, lower: impl Into<PathBuf>) {
        let lower = lower.into();
        let snapshot = Snapshot::take(&lower, self.detail);
        self.lowers.push((lower, snapshot));
    }

    /// Panics with the differences if a layer has changed.
    pub fn check(&self) {
        for (path, before) in &self.lowers {
            before.assert_same(&Snapshot::take(path, self.detail), &format!("the lower layer {}", path.display()));
        }
    }
}

impl Drop for LowerGuard {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check();
        }
    }
}
