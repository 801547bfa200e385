//! Room in the upper layer: for who has taken data that the layer does not have yet, and for what
//! partial copies lack.
//!
//! A partial copy is a promise: its change is taken, and the rest of it will need room. So as much
//! is left free for it (`Promise`), and does not show as free. A copy for which there is not enough
//! is made whole at once; then ENOSPC comes before the change, as from any copy-up. Who would take
//! what was promised has all partial copies completed first.
//!
//! How much is free is asked of the layer only when what was written since, and what other programs
//! may have written since, could have made it too little. Others who fill the disk faster than
//! that, or between two questions, take what was promised; only blocks that are allocated would
//! keep it from them.
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

/// How fast others may fill the filesystem, in bytes a second, and what they may take at once.
pub const FILLED: u64 = 2 << 30;
const AT_ONCE: u64 = 1 << 30;

/// What is left free besides, for maps, names and what the filesystem keeps of them: this part of
/// it, but not less or more than these.
const SPARE_PART: u64 = 64;
const SPARE_LEAST: u64 = 1 << 20;
const SPARE_MOST: u64 = 64 << 20;

/// The unit of [`Stat::blocks`].
const BLOCK: u64 = 512;

/// How many pieces of data are counted of a file with holes. What is behind them counts as data.
const PIECES: usize = 64;

/// What is known of the room in the upper layer.
pub(super) struct Room {
    known: Lock<KnownRoom>,
    /// How many bytes partial copies lack, all together.
    promised: Arc<AtomicU64>,
}

/// What the layer said last.
struct KnownRoom {
    free: u64,
    spare: u64,
    at: Instant,
    /// How many bytes were written here since, at most.
    spent: u64,
}

impl KnownRoom {
    fn new(space: &StatFs) -> Self {
        let spare = (space.bytes() / SPARE_PART).clamp(SPARE_LEAST, SPARE_MOST);
        KnownRoom { free: space.bytes_available(), spare, at: Instant::now(), spent: 0 }
    }

    /// Whether there was room for so many bytes when it was asked.
    fn has(&self, bytes: u64) -> bool {
        self.free >= bytes.saturating_add(self.spare)
    }

    /// Whether there still is, also if others write as fast as they can.
    fn surely_has(&self, bytes: u64) -> bool {
        let others = AT_ONCE.saturating_add((self.at.elapsed().as_secs_f64() * FILLED as f64) as u64);
        self.free == u64::MAX || self.has(bytes.saturating_add(self.spent).saturating_add(others))
    }
}

impl Room {
    pub(super) fn new(space: &StatFs) -> Self {
        Room { known: Lock::new(KnownRoom::new(space)), promised: Arc::default() }
    }

    /// Counts bytes that are written to the layer.
    pub(super) fn spend(&self, bytes: u64) {
        let mut known = self.known.lock();
        known.spent = known.spent.saturating_add(bytes);
    }

    /// Has so many bytes more left free.
    pub(super) fn promise(&self, bytes: u64) -> Promise {
        self.promised.fetch_add(bytes, Ordering::Relaxed);
        Promise { total: self.promised.clone(), most: bytes, bytes }
    }

    fn promised(&self) -> u64 {
        self.promised.load(Ordering::Relaxed)
    }
}

/// Bytes of the upper layer that are left free until this is dropped.
pub(super) struct Promise {
    total: Arc<AtomicU64>,
    /// How many they were at first.
    most: u64,
    bytes: u64,
}

impl Promise {
    /// Says that no more than so many are needed now.
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
    /// Space left and limits: those of the topmost layer, where what partial copies lack is taken
    /// already.
    pub fn stat_fs(&self) -> Result<StatFs> {
        let mut space = self.stack.top().stat_fs()?;
        *self.room.known.lock() = KnownRoom::new(&space);
        let promised = self.room.promised().div_ceil(u64::from(space.block_size).max(1));
        space.blocks_free = space.blocks_free.saturating_sub(promised);
        space.blocks_available = space.blocks_available.saturating_sub(promised);
        Ok(space)
    }

    /// Whether there is room for so many bytes beside what is promised.
    fn has_room_for(&self, bytes: u64) -> Result<bool> {
        let wanted = self.room.promised().saturating_add(bytes);
        if self.room.known.lock().surely_has(wanted) {
            return Ok(true);
        }
        self.stat_fs()?;
        Ok(self.room.known.lock().has(wanted))
    }

    /// Promises room for a partial copy. None if there is not enough.
    pub(super) fn promise_room(&self, bytes: u64) -> Result<Option<Promise>> {
        // Promised before it is asked, as others promise too.
        let promise = self.room.promise(bytes);
        Ok(self.has_room_for(0)?.then_some(promise))
    }

    /// Before so many bytes are written: completes all partial copies if there is no room for both.
    /// ENOSPC and EDQUOT if they cannot be completed.
    ///
    /// The caller must hold neither the tree nor the content of any node.
    pub(super) fn take_room(&self, bytes: u64) -> Result<()> {
        if self.room.promised() > 0 && !self.has_room_for(bytes)? {
            self.keep_promises()?;
        }
        self.room.spend(bytes);
        Ok(())
    }

    /// Completes all partial copies that are known, while there is room for them. ENOSPC, EDQUOT;
    /// of another error one is left as it is.
    pub fn keep_promises(&self) -> Result<()> {
        match self.complete_known() {
            Err(error) if matches!(error.errno, ENOSPC | EDQUOT) => Err(error),
            Err(error) => {
                log::debug!("a partial copy is left for later: {error}");
                Ok(())
            }
            done => done,
        }
    }

    /// How many bytes of data a file has, at most.
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

    /// Tries whether the owner of an object could have so many more bytes, by a file that is there
    /// for a moment. ENOSPC, EDQUOT; EOPNOTSUPP where the layer reserves no space; EROFS.
    pub fn find_room(&self, node: &Arc<Node<L>>, bytes: u64) -> Result<()> {
        let (upper, work) = self.upper()?;
        self.take_room(bytes)?;
        let attr = self.layer_attr(node)?;
        let owner = Owner { uid: attr.uid, gid: attr.gid };
        let made_as = if upper.creates_as(owner) { owner } else { upper.identity() };
        let (dir, name) = (self.stack.open(work.dir())?, work.name());
        let file = upper.create_file(&dir, &name, 0o600, made_as)?;
        let owned = if made_as == owner { Ok(()) } else { upper.set_owner(Object::File(&file), owner) };
        let found = owned.and_then(|()| upper.allocate(&file, Allocation::Reserve { keep_size: true }, 0..bytes));
        drop(file);
        discard(upper, &dir, &name);
        found
    }
}
