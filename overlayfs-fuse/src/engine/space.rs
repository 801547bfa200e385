//! Scarce space.
//!
//! The kernel holds written data back, and may hold more than the upper layer has room for. So
//! attributes of files expire at once where little space is left. Then the kernel asks before each
//! write(2) (see [`announce`](super::announce)). Each such write counts as a large one. Before the
//! held data could fill half of the free space, the front end has the kernel write it back. Near
//! the end of the space it tries before each write whether there is room for one more.
//!
//! Then no large lower file is copied in part. The engine looks for the room of a whole copy while
//! the writer can still get the error.
//!
//! While there is enough space, the kernel does not ask twice for a file. `unannounced` has the
//! files that it need not ask for. They serve at the moment when space becomes scarce.
//!
//! A thread that releases an object holds `forgetting` shared. A thread that finds no room takes it
//! exclusively, for a moment: an object that was just removed may be about to free its space. It
//! comes before all locks but `waiting`. The others are leaves.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use overlayfs::errno::{EDQUOT, ENOSPC, EOPNOTSUPP, Error, Result};
use overlayfs::layer::{Layer, StatFs};
use overlayfs::overlay::{FILLED, Node};

use super::EngineFrontEnd;
use crate::session::Notifier;

/// The kernel holds back at most 1 % of its dirty limit for a FUSE mount (`max_ratio`, a strict
/// limit). That limit is about a fifth of the memory. The free space must be at least this part
/// of the memory, more than twice that bound.
const ENOUGH_PART: u64 = 200;
const ENOUGH_LEAST: u64 = 64 << 20;
/// How much one write(2) writes at most, by assumption.
const LARGE: u64 = 1 << 20;
/// The part of a small filesystem that must be free.
const SMALL_PART: u64 = 64;
/// A pause between two looks of at least this length means that the result holds until the next
/// look.
const LONG: Duration = Duration::from_secs(1);
/// How long space counts as scarce for a user with an exhausted quota. No call tells when that
/// ends.
const EXHAUSTED: Duration = Duration::from_secs(60);

/// The facts about the space that is left.
pub struct Space {
    /// How many bytes must be free; with fewer, space is scarce.
    enough: u64,
    scarce: AtomicBool,
    /// How many more bytes may be written before the next look.
    credit: AtomicI64,
    free: AtomicU64,
    /// When a call last failed for an exhausted quota.
    exhausted: Mutex<Option<Instant>>,
    /// The files of which the kernel may not announce the next write.
    unannounced: Mutex<HashSet<u64>>,
    held: Mutex<Announced>,
    forgetting: RwLock<()>,
}

/// The data that the kernel announced while space was scarce, and may still hold.
#[derive(Default)]
struct Announced {
    files: HashSet<u64>,
    writes: u64,
    /// During a write-back: the files for which a write failed, with the errno.
    failed: Option<HashMap<u64, i32>>,
}

impl Announced {
    /// Adds one more announced write to a file.
    fn add(&mut self, node: u64) {
        self.files.insert(node);
        self.writes += 1;
    }

    /// Whether so many writes could fill half of the free space.
    fn is_too_much(writes: u64, free: u64) -> bool {
        writes.saturating_mul(LARGE) > free / 2
    }
}

impl Space {
    pub fn new() -> Self {
        let info = rustix::system::sysinfo();
        let memory = (info.totalram as u64).saturating_mul(info.mem_unit.into());
        Self {
            enough: (memory / ENOUGH_PART).max(ENOUGH_LEAST),
            scarce: AtomicBool::new(false),
            credit: AtomicI64::new(0),
            free: AtomicU64::new(u64::MAX),
            exhausted: Mutex::default(),
            unannounced: Mutex::default(),
            held: Mutex::default(),
            forgetting: RwLock::new(()),
        }
    }

    /// Whether the kernel must announce each write.
    pub fn is_scarce(&self) -> bool {
        self.scarce.load(Ordering::Relaxed)
    }

    /// Adds a file of which the kernel may not announce the next write.
    pub fn not_announced(&self, node: u64) {
        self.unannounced.lock().unwrap_or_else(PoisonError::into_inner).insert(node);
    }

    /// Returns the files of which the kernel may not announce the next write.
    pub fn unannounced(&self) -> Vec<u64> {
        self.unannounced.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// Returns the files of which the kernel may hold announced data.
    pub fn announced(&self) -> Vec<u64> {
        self.held().files.iter().copied().collect()
    }

    /// Notes that the kernel may hold announced data of a file.
    pub fn is_announced(&self, node: u64) {
        self.held().add(node);
    }

    /// Takes the files of which the kernel may not announce the next write.
    pub fn not_announced_any_more(&self) -> HashSet<u64> {
        std::mem::take(&mut self.unannounced.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Removes an object that the kernel has forgotten. The caller holds the guard while it
    /// releases the object.
    pub fn forget(&self, node: u64) -> RwLockReadGuard<'_, ()> {
        self.unannounced.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
        self.forgetting.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores how many bytes are free. Returns the files of which the kernel must announce writes
    /// from now on.
    fn learn(&self, free: u64) -> HashSet<u64> {
        self.free.store(free, Ordering::Relaxed);
        let above = free.saturating_sub(self.enough);
        self.credit.store(i64::try_from(above / 2).unwrap_or(i64::MAX), Ordering::Relaxed);
        let is_scarce = above == 0 || self.is_exhausted();
        if self.scarce.swap(is_scarce, Ordering::Relaxed) || !is_scarce {
            return HashSet::new();
        }
        std::mem::take(&mut self.unannounced.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where space is scarce: whether one more write to a file fits without a look.
    pub fn has_plenty(&self, node: u64) -> bool {
        if self.is_exhausted() {
            return false;
        }
        let free = self.free.load(Ordering::Relaxed);
        let mut held = self.held();
        let has_plenty = free > 8 * LARGE && !Announced::is_too_much(held.writes + 1, free);
        if has_plenty {
            held.add(node);
        }
        has_plenty
    }

    /// When to look again, if this mount writes nothing meanwhile.
    fn pause(&self) -> Duration {
        let above = self.free.load(Ordering::Relaxed).saturating_sub(self.enough);
        let pause = Duration::from_millis((above / (FILLED / 1000)).clamp(100, 60_000));
        if self.is_scarce() { Duration::from_secs(1) } else { pause }
    }

    /// Whether the last look still holds. Neither this mount's writes since then nor those of other
    /// programs can have made space scarce.
    fn is_known(&self) -> bool {
        !self.is_scarce() && !self.is_exhausted() && self.credit.load(Ordering::Relaxed) > 0 && self.pause() >= LONG
    }

    /// Whether a call failed lately for an exhausted quota.
    fn is_exhausted(&self) -> bool {
        self.exhausted().is_some_and(|since| since.elapsed() < EXHAUSTED)
    }

    fn exhausted(&self) -> MutexGuard<'_, Option<Instant>> {
        self.exhausted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Announced> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<L: Layer> EngineFrontEnd<L> {
    /// Whether the kernel holds writes back, so that there is something to watch.
    fn holds_back(&self) -> bool {
        self.settings.writeback && !self.overlay.is_read_only()
    }

    /// Looks how much space is free.
    pub(super) fn look_for_space(&self) -> Option<StatFs> {
        let found = self.overlay.stat_fs().ok()?;
        for node in self.space.learn(found.bytes_available()) {
            if let Some(notifier) = self.notifier.get()
                && let Err(error) = notifier.forget_attributes(node)
            {
                log::trace!("the kernel knows no attributes of {node}: {error}");
            }
        }
        Some(found)
    }

    /// Calls [`EngineFrontEnd::look_for_space`], unless the answer is known.
    pub(super) fn look_unless_known(&self) {
        if !self.space.is_known() {
            self.look_for_space();
        }
    }

    /// Implements [`FrontEnd::watch`](crate::FrontEnd::watch).
    pub(super) fn watch_space(&self) -> Duration {
        if !self.holds_back() {
            return Duration::MAX;
        }
        self.look_for_space();
        if self.space.is_scarce()
            && let Err(error) = self.call(|| self.overlay.keep_promises())
        {
            log::debug!("there is no room for the rest of a large file: {error}");
        }
        self.space.pause()
    }

    /// Notes the result of a write of held-back data to the layer.
    pub(super) fn written_back(&self, number: u64, written: Result<usize>) {
        match written {
            Ok(count) => {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                if self.space.credit.fetch_sub(count, Ordering::Relaxed) < count && !self.space.is_scarce() {
                    self.look_for_space();
                }
            }
            Err(error) if matches!(error.errno, ENOSPC | EDQUOT) => {
                if let Some(failed) = &mut self.space.held().failed {
                    failed.insert(number, error.errno);
                }
                self.look_for_space();
            }
            Err(_) => {}
        }
    }

    /// Notes an exhausted quota. The statistics of a filesystem mostly do not show one.
    pub(super) fn quota_exhausted(&self) {
        *self.space.exhausted() = Some(Instant::now());
        self.look_for_space();
    }

    /// Prepares for a write to a file where space is scarce. It has the kernel write back the data
    /// that it may hold, and tries whether there is room.
    ///
    /// # Errors
    ///
    /// - ENOSPC: the filesystem has too little room.
    /// - EDQUOT: a quota leaves too little room.
    pub(super) fn take_space(&self, number: u64, node: &Arc<Node<L>>) -> Result<()> {
        self.look_unless_known();
        if !self.space.is_scarce() {
            return Ok(());
        }
        let is_too_much = {
            let mut held = self.space.held();
            held.add(number);
            Announced::is_too_much(held.writes, self.space.free.load(Ordering::Relaxed))
        } || self.space.is_exhausted();
        if is_too_much && let Some(errno) = self.write_back_held(number) {
            return Err(Error::new(errno));
        }
        self.has_room(node).or_else(|_| {
            self.await_forgotten();
            self.has_room(node)
        })
    }

    /// Waits for the release of objects that the kernel has forgotten. Returns whether it had to
    /// tell of some.
    pub(super) fn await_forgotten(&self) -> bool {
        let had_to_tell = self.notifier.get().is_some_and(Notifier::await_messages);
        drop(self.space.forgetting.write().unwrap_or_else(PoisonError::into_inner));
        had_to_tell
    }

    /// Tries whether there is room for one more write to a file.
    ///
    /// # Errors
    ///
    /// - ENOSPC: the filesystem has too little room.
    /// - EDQUOT: a quota leaves too little room.
    fn has_room(&self, node: &Arc<Node<L>>) -> Result<()> {
        let Some(found) = self.look_for_space() else { return Ok(()) };
        let least = (found.bytes() / SMALL_PART).clamp(found.block_size.into(), LARGE.max(found.block_size.into()));
        if !self.space.is_exhausted() && found.bytes_available() > 4 * least {
            return Ok(());
        }
        match self.call(|| self.overlay.find_room(node, least)) {
            Err(error) if error.errno == EOPNOTSUPP && found.bytes_available() < least => Err(Error::new(ENOSPC)),
            Err(error) if error.errno == EOPNOTSUPP => Ok(()),
            found => found,
        }
    }

    /// Has the kernel write back the data that it may hold. Another thread must be there for the
    /// writes. Returns why a write to the file `number` failed, if one did.
    fn write_back_held(&self, number: u64) -> Option<i32> {
        let (Ok(_waiting), Some(notifier)) = (self.waiting.try_lock(), self.notifier.get()) else { return None };
        let files = {
            let mut held = self.space.held();
            (held.writes, held.failed) = (1, Some(HashMap::new()));
            std::mem::replace(&mut held.files, HashSet::from([number]))
        };
        for file in files {
            if let Err(error) = notifier.write_back(file, 0) {
                log::trace!("the kernel holds nothing of node {file}: {error}");
            }
        }
        self.space.held().failed.take().and_then(|failed| failed.get(&number).copied())
    }
}
