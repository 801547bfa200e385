//! Tells whether the upper layer has a *fixed* file: one that is immutable or append-only
//! (chattr(1)), so that its layer refuses writes.
//!
//! open(2) of such a file must fail. But after one answer ENOSYS to OPEN the kernel sends no OPEN
//! again, which makes reading small files several times faster. So the front end answers OPEN until
//! it knows that no file is fixed, and forever if one is. It searches the upper layer in steps: a
//! few before the first request, the others in threads between two requests. These take little of
//! the time: a program that waits for the layer should not wait for the search too.
//!
//! A thread takes the lock for a step. No thread waits for it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use overlayfs::layer::Layer;
use overlayfs::overlay::{FixedLook, Looked, Overlay};

/// How long steps may begin before the first request: this suffices for a small upper layer.
const AT_FIRST: Duration = Duration::from_millis(2);
/// A step is followed by a pause of this many times its own time.
const PAUSE: u32 = 15;

/// The values of `Fixed::known`.
const LOOKING: u8 = 0;
const NONE: u8 = 1;
const SOME: u8 = 2;

pub struct Fixed<L: Layer> {
    known: AtomicU8,
    look: Mutex<Option<FixedLook<L>>>,
    began: Instant,
    /// When the next step is due, in microseconds since the beginning.
    due: AtomicU64,
}

impl<L: Layer> Fixed<L> {
    /// Begins the search.
    pub fn new(overlay: &Overlay<L>) -> Self {
        Self::after(overlay, AT_FIRST)
    }

    /// Begins the search, with steps for this long.
    fn after(overlay: &Overlay<L>, first: Duration) -> Self {
        let look = Mutex::new(Some(overlay.begin_look()));
        let fixed = Self { known: AtomicU8::new(LOOKING), look, began: Instant::now(), due: AtomicU64::new(0) };
        while fixed.is_looking() && fixed.began.elapsed() < first {
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

    fn is_looking(&self) -> bool {
        self.known.load(Ordering::Relaxed) == LOOKING
    }

    /// Whether a step is left, and it is time for it.
    pub fn is_due(&self) -> bool {
        self.is_looking() && self.began.elapsed() >= Duration::from_micros(self.due.load(Ordering::Relaxed))
    }

    /// Makes a step, if one is left and no other thread makes one.
    pub fn look(&self, overlay: &Overlay<L>) {
        if !self.is_looking() {
            return;
        }
        let Ok(mut look) = self.look.try_lock() else { return };
        let start = Instant::now();
        let known = match look.as_mut().map(|look| overlay.look_for_fixed(look)) {
            Some(Looked::Further) => {
                let due = self.began.elapsed() + PAUSE * start.elapsed();
                return self.due.store(due.as_micros() as u64, Ordering::Relaxed);
            }
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
        assert!(Fixed::after(&small, Duration::from_secs(10)).is_none());
        drop(small);
        for index in 0..100 {
            fs::create_dir_all(setup.path().join(format!("dir/{index}/below"))).unwrap();
        }
        let large = overlay(setup.path(), lower.path());
        let fixed = Fixed::after(&large, Duration::ZERO);
        assert!(!fixed.is_none() && fixed.is_due());
        fixed.look(&large);
        let due = fixed.due.load(Ordering::Relaxed);
        assert!(due > 0, "a step is followed by a pause");
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
