//! Large files that the kernel reads from the layer's file itself (FUSE passthrough, Linux 6.9).
//!
//! Their pages are those of the layer's filesystem. So all mounts of a layer share them, and they
//! are in pieces of any size. The price is a request for each open and each close, also of small
//! files: the kernel asks for all of them or for none (`fuse_file_open` in fs/fuse/file.c). It has
//! no write-back then, and a file that is open would go on showing its data from before a copy-up.
//! So only a read-only mount can do that, and its user chooses.
//!
//! The kernel wants the same backing for all opens of a file at a time. So a backing lasts from the
//! first open to the last close. The lock is a leaf.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use overlayfs::errno::{ENOSYS, Error, Result};
use overlayfs::layer::{Kind, Layer};

use super::EngineFrontEnd;
use crate::front_end::Opened;
use crate::session::Notifier;
use crate::wire::{FOPEN_KEEP_CACHE, FOPEN_PASSTHROUGH};

/// The size in bytes from which on the kernel reads the layer's file. Below it an open file costs
/// more than its pages.
const LARGE: u64 = 64 << 10;

/// The backings of open files.
#[derive(Default)]
pub struct Backings {
    /// By the kernel's number of the file.
    open: Mutex<HashMap<u64, Backing>>,
    /// Whether the kernel takes no backings.
    are_refused: AtomicBool,
}

struct Backing {
    id: i32,
    opens: u64,
}

impl Backings {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Backing>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more open of a file, which has its data in `data`. Returns its backing. None: the
    /// kernel does not take this file.
    fn add(&self, number: u64, data: BorrowedFd<'_>, notifier: &Notifier) -> Option<i32> {
        let mut open = self.open();
        if let Some(backing) = open.get_mut(&number) {
            backing.opens += 1;
            return Some(backing.id);
        }
        match notifier.back(data) {
            Ok(id) => {
                open.insert(number, Backing { id, opens: 1 });
                Some(id)
            }
            Err(error) => {
                log::debug!("the kernel does not read the file {number} from its layer: {error}");
                // Without the right, or the feature, it takes none. Some filesystems it refuses.
                self.are_refused.fetch_or(error.raw_os_error() == Some(libc::EPERM), Ordering::Relaxed);
                None
            }
        }
    }

    /// Counts one open less.
    fn remove(&self, number: u64, notifier: &Notifier) {
        let mut open = self.open();
        let Some(backing) = open.get_mut(&number) else { return };
        backing.opens -= 1;
        if backing.opens == 0
            && let Some(Backing { id, .. }) = open.remove(&number)
            && let Err(error) = notifier.end_backing(id)
        {
            log::debug!("the backing of the file {number} stays: {error}");
        }
    }
}

impl<L: Layer> EngineFrontEnd<L> {
    /// Opens a file of a mount whose large files the kernel reads itself.
    ///
    /// # Errors
    ///
    /// - ENOSYS: the kernel takes no backings, so it need not ask.
    pub(super) fn open_backed(&self, backings: &Backings, number: u64) -> Result<Opened> {
        let node = self.node(number)?;
        let mut backing = None;
        if let Some(notifier) = self.notifier.get()
            && node.kind() == Kind::File
            && self.overlay.stat(&node)?.size >= LARGE
        {
            let file = self.file(number)?;
            let add = |data: BorrowedFd<'_>| backings.add(number, data, notifier);
            // A failed read tells the error of the layer.
            backing = self.call(|| self.overlay.with_data(&file, add)).ok().flatten().flatten();
        }
        match backing {
            Some(backing) => Ok(Opened { fh: number, flags: FOPEN_PASSTHROUGH, backing }),
            None if backings.are_refused.load(Ordering::Relaxed) => Err(Error::new(ENOSYS)),
            None => Ok(Opened { flags: FOPEN_KEEP_CACHE, ..Opened::default() }),
        }
    }

    /// Closes a file of [`EngineFrontEnd::open_backed`].
    pub(super) fn close_backed(&self, number: u64) {
        if let (Some(backings), Some(notifier)) = (&self.backings, self.notifier.get()) {
            backings.remove(number, notifier);
        }
    }
}
