//! The kernel announces a write.
//!
//! With write-back a write(2) only fills pages, and with no request at open nothing is said before
//! it. What the layer has against the write would come when the pages are written back, when the
//! program may be gone: "echo x >> file" would succeed and the text be lost.
//!
//! But before the first write to a file since its attributes were fetched, the kernel wants to take
//! its capabilities away. It asks for the size of `security.capability`. If there is one, it asks
//! once more, removes it, and sends a SETATTR that sets nothing; then it writes. If there is none
//! it writes at once, and does not ask again. An error of that SETATTR is what write(2) answers.
//!
//! So where a write can fail for another reason than its data, the front end answers that there is
//! a capability, whether there is or not. Who only reads attributes asks for the size too, but then
//! for the value, which is not there. That SETATTR is the announcement: here the file is copied up,
//! or opened for writing, and space is looked for where it is scarce (see [`space`](super::space)).
//! A file that is in the upper layer and can be opened for writing needs none of that.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use overlayfs::errno::Result;
use overlayfs::layer::{Kind, Layer};
use overlayfs::overlay::Node;

use super::EngineFrontEnd;
use crate::front_end::Caller;

/// The attribute that the kernel asks for.
pub const CAPABILITY: &str = "security.capability";

/// How many threads are known that were told of a capability that is not there; each removes it at
/// once.
const TOLD: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Who was told of a capability that is not there: the object's number, and the thread's. The lock
/// is a leaf.
pub struct Told(Mutex<LruCache<(u64, u32), ()>>);

impl Told {
    pub fn new() -> Self {
        Self(Mutex::new(LruCache::new(TOLD)))
    }

    fn told(&self) -> MutexGuard<'_, LruCache<(u64, u32), ()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, node: u64, thread: u32) {
        self.told().put((node, thread), ());
    }

    /// Whether the thread was told, which it forgets.
    pub fn take(&self, node: u64, thread: u32) -> bool {
        self.told().pop(&(node, thread)).is_some()
    }
}

impl<L: Layer> EngineFrontEnd<L> {
    /// What is told of the capability of a file, which the layer says is `there`.
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
            // Not of a thread whose number cannot be seen here: it may be another that writes.
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

    /// Whether a write to a file can fail for its data alone, so that it need not be announced.
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

    /// Whether a write to an append-only file may append: open(2) has refused every other.
    fn may_append(&self) -> bool {
        !self.fixed.is_none()
    }

    /// A write is announced: has the file ready for it. The error is what the write answers.
    pub(super) fn announced(&self, number: u64, node: &Arc<Node<L>>) -> Result<()> {
        if node.kind() != Kind::File {
            return Ok(());
        }
        if self.overlay.fixed_below(node)?.append {
            self.fixed.meet();
        }
        self.call(|| self.overlay.prepare_change(node, self.space.is_scarce()))?;
        let file = self.file(number)?;
        self.call(|| self.overlay.open_for_writing(&file, self.may_append()))?;
        self.take_space(number, node)
    }
}
