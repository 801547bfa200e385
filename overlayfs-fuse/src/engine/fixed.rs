//! Tells whether the upper layer has a *fixed* file: one that is immutable or append-only
//! (chattr(1)), so that its layer refuses writes.
//!
//! open(2) of such a file must fail. But after one answer ENOSYS to OPEN the kernel sends no OPEN
//! again, which makes reading small files several times faster. So the front end answers OPEN until
//! it knows that no file is fixed, and forever if one is. It searches the upper layer in steps:
//! some before the first request, the others in threads between two requests.
//!
//! A thread takes the lock for a step. No thread waits for it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use overlayfs::layer::Layer;
use overlayfs::overlay::{FixedLook, Looked, Overlay};

/// How many steps come before the first request: they suffice for a small upper layer.
const AT_FIRST: usize = 8;

/// The values of `Fixed::known`.
const LOOKING: u8 = 0;
const NONE: u8 = 1;
const SOME: u8 = 2;

pub struct Fixed<L: Layer> {
    known: AtomicU8,
    look: Mutex<Option<FixedLook<L>>>,
}

impl<L: Layer> Fixed<L> {
    /// Begins the search.
    pub fn new(overlay: &Overlay<L>) -> Self {
        let fixed = Self { known: AtomicU8::new(LOOKING), look: Mutex::new(Some(overlay.begin_look())) };
        for _ in 0..AT_FIRST {
            fixed.look(overlay);
        }
        fixed
    }

    /// Whether the search has ended without a fixed file.
    pub fn is_none(&self) -> bool {
        self.known.load(Ordering::Relaxed) == NONE
    }

    /// Notes that a file may have become fixed.
    pub fn changed(&self) {
        // After an answer that no file is fixed, the kernel does not ask again.
        let _known = self.known.compare_exchange(LOOKING, SOME, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Notes that an append-only lower file is about to be copied up. Its copy is append-only too.
    pub fn meet(&self) {
        self.known.store(SOME, Ordering::Relaxed);
    }

    /// Whether a step is left.
    pub fn is_looking(&self) -> bool {
        self.known.load(Ordering::Relaxed) == LOOKING
    }

    /// Makes a step, if one is left and no other thread makes one.
    pub fn look(&self, overlay: &Overlay<L>) {
        if !self.is_looking() {
            return;
        }
        let Ok(mut look) = self.look.try_lock() else { return };
        let known = match look.as_mut().map(|look| overlay.look_for_fixed(look)) {
            Some(Looked::Further) => return,
            Some(Looked::Found) => SOME,
            Some(Looked::End) | None => NONE,
        };
        *look = None;
        let _known = self.known.compare_exchange(LOOKING, known, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use overlayfs::layer::OsLayer;
    use overlayfs::overlay::Layers;

    use super::*;

    fn overlay(upper: &Path, lower: &Path) -> Overlay<OsLayer> {
        let open = |path: &Path, for_writing| OsLayer::open(path, for_writing).unwrap();
        Overlay::new(Layers { upper: Some(open(upper, true)), work: None, lowers: vec![open(lower, false)] }).unwrap()
    }

    #[test]
    fn a_small_layer_is_known_at_once_and_a_large_one_in_steps() {
        let (setup, lower) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(setup.path().join("dir")).unwrap();
        fs::write(setup.path().join("dir/file"), "").unwrap();
        std::os::unix::fs::symlink("/", setup.path().join("link")).unwrap();
        let small = overlay(setup.path(), lower.path());
        assert!(Fixed::new(&small).is_none());
        drop(small);
        for index in 0..100 {
            fs::create_dir_all(setup.path().join(format!("dir/{index}/below"))).unwrap();
        }
        let large = overlay(setup.path(), lower.path());
        let fixed = Fixed::new(&large);
        assert!(!fixed.is_none());
        // The search passes over a directory that is gone.
        fs::remove_dir(setup.path().join("dir/77/below")).unwrap();
        let steps = (0..1000).take_while(|_| {
            fixed.look(&large);
            !fixed.is_none()
        });
        let steps = steps.count();
        assert!((150..500).contains(&steps), "{steps}");
    }
}
