//! Writes that the kernel announces.
//!
//! With write-back a write(2) only fills pages, and without a request to open, no request comes
//! before it. The kernel would report an error of the layer when it writes the pages back. By then
//! the program may be gone: `echo x >> file` would succeed, and the text would be lost.
//!
//! But the kernel removes file capabilities before the first write after it got attributes
//! (`file_remove_privs` in fs/inode.c). It asks for the size of `security.capability`. If there is
//! one, it asks once more, removes it, and sends a SETATTR that sets nothing; then it writes. If
//! there is none, it writes at once and does not ask again. If that SETATTR fails, write(2) returns
//! its error.
//!
//! So the front end reports a capability where a write can fail for another reason than its data. A
//! program that only reads attributes asks for the size too. It then asks for the value, and gets
//! the true answer. The SETATTR is the announcement. In it the front end copies the file up, or
//! opens it for writing. It also looks for space where that is scarce (see
//! [`space`](super::space)). An upper file that can be opened for writing needs none of that.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use overlayfs::errno::Result;
use overlayfs::layer::{Kind, Layer};
use overlayfs::overlay::Node;

use super::EngineFrontEnd;
use crate::front_end::Caller;

/// How many announcements [`Told`] remembers. A writing thread ends its own at once: it removes the
/// capability.
const TOLD: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// The threads that got the answer that a missing capability exists, by the object's number and the
/// thread's. The lock is a leaf.
pub struct Told(Mutex<LruCache<(u64, u32), ()>>);

impl Told {
    pub fn new() -> Self {
        Self(Mutex::new(LruCache::new(TOLD)))
    }

    fn told(&self) -> MutexGuard<'_, LruCache<(u64, u32), ()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, node: u64, thread: u32) {
        self.told().put((node, thread), ());
    }

    /// Returns all entries, the oldest first.
    pub fn all(&self) -> Vec<(u64, u32)> {
        self.told().iter().rev().map(|(entry, ())| *entry).collect()
    }

    /// Removes the entry of the thread. Returns whether there was one.
    pub fn take(&self, node: u64, thread: u32) -> bool {
        self.told().pop(&(node, thread)).is_some()
    }
}

impl<L: Layer> EngineFrontEnd<L> {
    /// Returns the answer for the capability of a file. `there` is the layer's answer.
    pub(super) fn capability(
        &self,
        caller: Caller,
        (number, node): (u64, &Arc<Node<L>>),
        there: Result<Vec<u8>>,
        only_size: bool,
    ) -> Result<Vec<u8>> {
        if there.is_ok() {
            return there;
        }
        if !only_size {
            // Number 0 stands for each thread that is not visible here, so another one may be about
            // to write.
            if caller.pid != 0 {
                self.told.take(number, caller.pid);
            }
            return there;
        }
        let announces = self.settings.writeback && node.kind() == Kind::File && !self.overlay.is_read_only();
        if !announces || self.takes_writes(number) {
            return there;
        }
        self.told.add(number, caller.pid);
        Ok(vec![0])
    }

    /// Whether a write to a file can fail only for its data, so that it needs no announcement.
    fn takes_writes(&self, number: u64) -> bool {
        self.space.not_announced(number);
        self.look_unless_known();
        if self.space.is_scarce() && !self.space.has_plenty(number) {
            return false;
        }
        let appends = self.may_append();
        let open = self.file(number).and_then(|file| self.call(|| self.overlay.open_for_writing(&file, appends)));
        open.unwrap_or(false)
    }

    /// Whether a write to an append-only file may append: open(2) has refused every other one.
    fn may_append(&self) -> bool {
        !self.fixed.is_none()
    }

    /// Prepares the file for the write that the kernel announces. write(2) returns the error.
    pub(super) fn announced(&self, number: u64, node: &Arc<Node<L>>) -> Result<()> {
        if node.kind() != Kind::File {
            return Ok(());
        }
        if self.overlay.fixed(node)?.append {
            self.fixed.meet();
        }
        self.call(|| self.overlay.prepare_change(node, self.space.is_scarce()))?;
        let file = self.file(number)?;
        self.call(|| self.overlay.open_for_writing(&file, self.may_append()))?;
        self.take_space(number, node)
    }
}
