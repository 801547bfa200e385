//! Whether a file of the upper layer is *fixed*: immutable or append-only, so that its layer lets
//! nobody write to it (chattr(1)).
//!
//! open(2) of such a file is to say so. But once a mount has answered OPEN by ENOSYS the kernel
//! asks no more, which makes reading small files several times faster. So OPEN is answered until it
//! is known that there is no such file, and for ever if there is one. The upper layer is looked
//! through in steps, some before the first request and the others by threads between two requests.
//!
//! The lock is taken by who makes a step, and never waited for.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use overlayfs::layer::Layer;
use overlayfs::overlay::{FixedLook, Looked, Overlay};

/// How many steps are made before the first request: a small upper layer is known by then.
const AT_FIRST: usize = 8;

/// What is known.
const LOOKING: u8 = 0;
const NONE: u8 = 1;
const SOME: u8 = 2;

pub struct Fixed<L: Layer> {
    known: AtomicU8,
    look: Mutex<Option<FixedLook<L>>>,
}

impl<L: Layer> Fixed<L> {
    /// Begins to look.
    pub fn new(overlay: &Overlay<L>) -> Self {
        let fixed = Self { known: AtomicU8::new(LOOKING), look: Mutex::new(Some(overlay.begin_look())) };
        for _ in 0..AT_FIRST {
            fixed.look(overlay);
        }
        fixed
    }

    /// Whether it is known that no file is fixed.
    pub fn is_none(&self) -> bool {
        self.known.load(Ordering::Relaxed) == NONE
    }

    /// A file may have become fixed.
    pub fn changed(&self) {
        // Once it was answered that there is none, the kernel does not ask again.
        let _known = self.known.compare_exchange(LOOKING, SOME, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// An append-only file of a lower layer is about to be changed, and its copy to be one.
    pub fn meet(&self) {
        self.known.store(SOME, Ordering::Relaxed);
    }

    /// Makes a step, if there is one to make and nobody else makes one.
    pub fn look(&self, overlay: &Overlay<L>) {
        if self.known.load(Ordering::Relaxed) != LOOKING {
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
        // A directory that is gone is passed over.
        fs::remove_dir(setup.path().join("dir/77/below")).unwrap();
        let steps = (0..1000).take_while(|_| {
            fixed.look(&large);
            !fixed.is_none()
        });
        let steps = steps.count();
        assert!((150..500).contains(&steps), "{steps}");
    }
}
