//! Proof that lower layers were left alone.

use std::path::PathBuf;

use crate::snapshot::{Detail, Snapshot};

/// Holds snapshots of lower layers and compares them at the end of a test: bytes, modes, owners,
/// times (of access too), link counts and extended attributes. The comparison also happens when the
/// guard is dropped, unless the test fails already.
pub struct LowerGuard {
    lowers: Vec<(PathBuf, Snapshot)>,
}

impl LowerGuard {
    /// Guards these directories from now on.
    pub fn new(lowers: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        let mut guard = Self { lowers: Vec::new() };
        for lower in lowers {
            guard.add(lower);
        }
        guard
    }

    /// Guards one more directory from now on.
    pub fn add(&mut self, lower: impl Into<PathBuf>) {
        let lower = lower.into();
        let snapshot = Snapshot::take(&lower, Detail::Everything);
        self.lowers.push((lower, snapshot));
    }

    /// Panics with the differences if a layer is not what it was.
    pub fn check(&self) {
        for (path, before) in &self.lowers {
            before
                .assert_same(&Snapshot::take(path, Detail::Everything), &format!("the lower layer {}", path.display()));
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
