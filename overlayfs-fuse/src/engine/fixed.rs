//! Whether a file of the upper layer is *fixed*: immutable or append-only, so that its layer lets nobody write to it (chattr(1)).
//!
//! open(2) of such a file is to say so. But once a mount has answered OPEN by ENOSYS the kernel asks no more, which makes reading small
//! files several times faster. So OPEN is answered until it is known that there is no such file, and for ever if there is one. The upper layer
//! is looked through in steps, some before the first request and the others by threads between two requests.
//!
//! The lock is taken by who makes a step, and never waited for.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::io::Result;

/// How much of a listing is read in one step, in bytes: several hundred names.
const LISTING: usize = 32 << 10;
/// How many steps are made before the first request: a small upper layer is known by then.
const AT_FIRST: usize = 8;

/// What is known.
const LOOKING: u8 = 0;
const NONE: u8 = 1;
const SOME: u8 = 2;

pub struct Fixed {
    known: AtomicU8,
    walk: Mutex<Option<Walk>>,
}

/// A way through all directories of a layer.
struct Walk {
    top: OwnedFd,
    /// The directory that is being read, and its path.
    open: Option<(OwnedFd, PathBuf)>,
    /// The paths of those that were met and not read.
    unread: Vec<PathBuf>,
}

impl Fixed {
    /// Where nothing is written there is nothing to look for.
    pub fn none() -> Self {
        Self { known: AtomicU8::new(NONE), walk: Mutex::new(None) }
    }

    /// For an upper layer, by its top directory. Begins to look.
    pub fn new(top: OwnedFd) -> Self {
        let walk = Walk { top, open: None, unread: vec![PathBuf::from(".")] };
        let fixed = Self { known: AtomicU8::new(LOOKING), walk: Mutex::new(Some(walk)) };
        for _ in 0..AT_FIRST {
            fixed.look();
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
    pub fn look(&self) {
        if self.known.load(Ordering::Relaxed) != LOOKING {
            return;
        }
        let Ok(mut walk) = self.walk.try_lock() else { return };
        let known = match walk.as_mut().map(Walk::step) {
            Some(Step::Further) => return,
            Some(Step::Found) => SOME,
            Some(Step::End) | None => NONE,
        };
        *walk = None;
        let _known = self.known.compare_exchange(LOOKING, known, Ordering::Relaxed, Ordering::Relaxed);
    }
}

enum Step {
    Further,
    Found,
    End,
}

impl Walk {
    /// Reads some names. A directory that cannot be read is passed over: what is in it is met when it is written to.
    fn step(&mut self) -> Step {
        let (dir, path) = match self.open.take() {
            Some(open) => open,
            None => {
                let Some(path) = self.unread.pop() else { return Step::End };
                match open(&self.top, &path) {
                    Ok(dir) => (dir, path),
                    Err(_) => return Step::Further,
                }
            }
        };
        let mut room = [const { MaybeUninit::uninit() }; LISTING];
        let mut listing = RawDir::new(&dir, &mut room);
        loop {
            let Some(Ok(entry)) = listing.next() else { return Step::Further };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            match entry.file_type() {
                _ if name == "." || name == ".." => {}
                FileType::Directory => self.unread.push(path.join(name)),
                FileType::RegularFile | FileType::Unknown if is_fixed(&dir, name) => return Step::Found,
                _ => {}
            }
            if listing.is_buffer_empty() {
                self.open = Some((dir, path));
                return Step::Further;
            }
        }
    }
}

fn open(top: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(top, path, flags, Mode::empty(), within)
}

fn is_fixed(dir: &OwnedFd, name: &OsStr) -> bool {
    let fixed = StatxAttributes::IMMUTABLE | StatxAttributes::APPEND;
    let stat = rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    stat.is_ok_and(|stat| stat.stx_attributes.intersects(fixed))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    fn fixed(top: &Path) -> Fixed {
        Fixed::new(File::open(top).unwrap().into())
    }

    #[test]
    fn a_small_layer_is_known_at_once_and_a_large_one_in_steps() {
        let stage = tempfile::tempdir().unwrap();
        fs::create_dir(stage.path().join("dir")).unwrap();
        fs::write(stage.path().join("dir/file"), "").unwrap();
        assert!(fixed(stage.path()).is_none());
        for index in 0..100 {
            fs::create_dir_all(stage.path().join(format!("dir/{index}/below"))).unwrap();
        }
        let fixed = fixed(stage.path());
        assert!(!fixed.is_none());
        // A directory is read in one step, and its end is found in another.
        let steps = (0..1000).take_while(|_| {
            fixed.look();
            !fixed.is_none()
        });
        let steps = steps.count();
        assert!((200..500).contains(&steps), "{steps}");
    }

    #[test]
    fn what_cannot_be_read_is_passed_over() {
        let stage = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", stage.path().join("link")).unwrap();
        fs::create_dir(stage.path().join("gone")).unwrap();
        let fixed = Fixed { known: AtomicU8::new(LOOKING), walk: Mutex::new(None) };
        let unread = vec![PathBuf::from("gone"), PathBuf::from("link"), PathBuf::from("..")];
        let top = File::open(stage.path()).unwrap().into();
        *fixed.walk.lock().unwrap() = Some(Walk { top, open: None, unread });
        fs::remove_dir(stage.path().join("gone")).unwrap();
        for _ in 0..4 {
            assert!(!fixed.is_none());
            fixed.look();
        }
        assert!(fixed.is_none());
    }
}
