//! Free space in the upper layer. It is for accepted data that the layer does not have yet, and for
//! the missing chunks of partial copies.
//!
//! A partial copy is a promise: its change is accepted, and its rest will need space. So the engine
//! keeps that much free (`Promise`), and does not show it as free. If there is too little space, a
//! copy is made whole at once. Then ENOSPC comes before the change, as from any copy-up. Before a
//! write takes promised space, the engine completes all partial copies.
//!
//! The engine asks the layer for its free space only if that may be too small by now. It counts
//! what it wrote since, and assumes what other programs may have written. If these fill the disk
//! faster, or between two questions, they take promised space. Only allocated blocks could prevent
//! that.
//!
//! Lock: `Room::known` is a leaf.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::errno::{EDQUOT, ENOSPC};

use super::Overlay;
use super::node::{Node, OpenFile};
use super::work::discard;
use crate::layer::{Allocation, Layer, Object, Owner, Result, Stat, StatFs};
use crate::sync::Lock;

/// The speed at which other programs may fill the filesystem, in bytes a second, and the bytes that
/// they may take at once.
pub const FILLED: u64 = 2 << 30;
const AT_ONCE: u64 = 1 << 30;

/// The space kept free for maps, names and metadata: this part of the filesystem, within these
/// bounds.
const SPARE_PART: u64 = 64;
const SPARE_LEAST: u64 = 1 << 20;
const SPARE_MOST: u64 = 64 << 20;

/// The unit of [`Stat::blocks`].
const BLOCK: u64 = 512;

/// The number of data ranges that are counted in a file with holes. The rest counts as data.
const PIECES: usize = 64;

/// The known free space of the upper layer.
pub(super) struct Room {
    known: Lock<KnownRoom>,
    /// The bytes that all partial copies lack together.
    promised: Arc<AtomicU64>,
}

/// The last answer of the layer.
struct KnownRoom {
    free: u64,
    spare: u64,
    at: Instant,
    /// An upper bound of the bytes written here since.
    spent: u64,
}

impl KnownRoom {
    fn new(space: &StatFs) -> Self {
        let spare = (space.bytes() / SPARE_PART).clamp(SPARE_LEAST, SPARE_MOST);
        KnownRoom { free: space.bytes_available(), spare, at: Instant::now(), spent: 0 }
    }

    /// Whether there was space for this many bytes at the last answer.
    fn has(&self, bytes: u64) -> bool {
        self.free >= bytes.saturating_add(self.spare)
    }

    /// Whether there still is, even if other programs write as fast as they can.
    fn surely_has(&self, bytes: u64) -> bool {
        let others = AT_ONCE.saturating_add((self.at.elapsed().as_secs_f64() * FILLED as f64) as u64);
        self.free == u64::MAX || self.has(bytes.saturating_add(self.spent).saturating_add(others))
    }
}

impl Room {
    pub(super) fn new(space: &StatFs) -> Self {
        Room { known: Lock::new(KnownRoom::new(space)), promised: Arc::default() }
    }

    /// Counts bytes written to the layer.
    pub(super) fn spend(&self, bytes: u64) {
        let mut known = self.known.lock();
        known.spent = known.spent.saturating_add(bytes);
    }

    /// Keeps this many more bytes free.
    pub(super) fn promise(&self, bytes: u64) -> Promise {
        self.promised.fetch_add(bytes, Ordering::Relaxed);
        Promise { total: self.promised.clone(), most: bytes, bytes }
    }

    fn promised(&self) -> u64 {
        self.promised.load(Ordering::Relaxed)
    }
}

/// Bytes of the upper layer that stay free until the drop.
pub(super) struct Promise {
    total: Arc<AtomicU64>,
    /// The number of bytes at first.
    most: u64,
    bytes: u64,
}

impl Promise {
    /// Lowers the promise to the number of bytes that are still needed.
    pub(super) fn needs(&mut self, bytes: u64) {
        let bytes = bytes.min(self.most);
        self.total.fetch_add(bytes, Ordering::Relaxed);
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl<L: Layer> Overlay<L> {
    /// Returns space and limits of the topmost layer. Promised space does not count as free.
    ///
    /// # Errors
    ///
    /// Those of [`Layer::stat_fs`].
    pub fn stat_fs(&self) -> Result<StatFs> {
        let mut space = self.stack.top().stat_fs()?;
        *self.room.known.lock() = KnownRoom::new(&space);
        let promised = self.room.promised().div_ceil(u64::from(space.block_size).max(1));
        space.blocks_free = space.blocks_free.saturating_sub(promised);
        space.blocks_available = space.blocks_available.saturating_sub(promised);
        Ok(space)
    }

    /// Whether there is space for this many bytes beside the promises.
    fn has_room_for(&self, bytes: u64) -> Result<bool> {
        let wanted = self.room.promised().saturating_add(bytes);
        if self.room.known.lock().surely_has(wanted) {
            return Ok(true);
        }
        self.stat_fs()?;
        Ok(self.room.known.lock().has(wanted))
    }

    /// Promises space for a partial copy. Returns None if there is too little.
    pub(super) fn promise_room(&self, bytes: u64) -> Result<Option<Promise>> {
        // The promise comes before the question, since other threads promise too.
        let promise = self.room.promise(bytes);
        Ok(self.has_room_for(0)?.then_some(promise))
    }

    /// Makes sure that there is space for a write beside the promises. Otherwise completes all
    /// partial copies first.
    ///
    /// The caller must hold neither the tree nor the content of any node.
    ///
    /// # Errors
    ///
    /// - ENOSPC, EDQUOT: the copies cannot be completed.
    pub(super) fn take_room(&self, bytes: u64) -> Result<()> {
        if self.room.promised() > 0 && !self.has_room_for(bytes)? {
            self.keep_promises()?;
        }
        self.room.spend(bytes);
        Ok(())
    }

    /// Completes all known partial copies, while there is space for them.
    ///
    /// # Errors
    ///
    /// - ENOSPC, EDQUOT: a copy cannot be completed. After another error, the copy stays partial.
    pub fn keep_promises(&self) -> Result<()> {
        match self.complete_known() {
            Err(error) if matches!(error.errno, ENOSPC | EDQUOT) => Err(error),
            Err(error) => {
                log::debug!("cannot complete a partial copy, which stays for later: {error}");
                Ok(())
            }
            done => done,
        }
    }

    /// Returns an upper bound of a file's bytes of data.
    pub(super) fn data_in(&self, file: &OpenFile<L>, attr: &Stat) -> Result<u64> {
        if attr.blocks.saturating_mul(BLOCK) >= attr.size {
            return Ok(attr.size);
        }
        let layer = self.stack.layer(&file.dir);
        let (mut at, mut bytes) = (0, 0);
        for _ in 0..PIECES {
            let Some(data) = layer.next_data(&file.file, at)?.filter(|data| data.start < attr.size) else {
                return Ok(bytes);
            };
            at = data.end.min(attr.size);
            bytes += at - data.start;
        }
        Ok(bytes + (attr.size - at))
    }

    /// Tries whether the owner of an object could have this many more bytes, with a file that
    /// exists for a moment.
    ///
    /// # Errors
    ///
    /// - ENOSPC, EDQUOT: the owner could not.
    /// - EOPNOTSUPP: the layer reserves no space.
    /// - EROFS: there is no upper layer.
    pub fn find_room(&self, node: &Arc<Node<L>>, bytes: u64) -> Result<()> {
        let (upper, work) = self.upper()?;
        self.take_room(bytes)?;
        let attr = self.layer_attr(node)?;
        let owner = Owner { uid: attr.uid, gid: attr.gid };
        let made_as = if upper.creates_as(owner) { owner } else { upper.identity() };
        self.prepare_owner(owner)?;
        let (dir, name) = (self.stack.open(work.dir())?, work.name());
        let file = upper.create_file(&dir, &name, 0o600, made_as)?;
        let owned = if made_as == owner { Ok(()) } else { upper.set_owner(Object::File(&file), owner) };
        let found = owned.and_then(|()| upper.allocate(&file, Allocation::Reserve { keep_size: true }, 0..bytes));
        drop(file);
        discard(upper, &dir, &name);
        found
    }
}
