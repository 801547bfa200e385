//! Space that is scarce.
//!
//! The kernel holds back what is written, and may hold more than the upper layer has room for. So
//! where little space is left, attributes of files expire at once: then the kernel asks before each
//! write(2) (see [`announce`](super::announce)). Each is taken to be large. When those that were
//! taken might fill half of what is free, they are written back before another is taken; and at the
//! end it is tried each time whether there is room for one more. No large file of a lower layer is
//! copied in part then: room for the rest is sought while the writer can be told that there is
//! none. While there is enough, the kernel does not ask twice for a file; those that it need not
//! ask for are remembered here, for the moment when space becomes scarce.
//!
//! `forgetting` is shared by who lets go of an object, and taken alone, for a moment, by who finds
//! no room: what was just removed may be about to give its space back. It comes before all locks
//! but `waiting`. The others are leaves.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use overlayfs::errno::{EDQUOT, ENOSPC, EOPNOTSUPP, Error, Result};
use overlayfs::layer::{Layer, StatFs};
use overlayfs::overlay::{FILLED, Node};

use super::EngineFrontEnd;

/// The kernel holds no more than a hundredth of a fifth of the memory for a FUSE mount (its
/// `max_ratio`, with a strict limit). This is the part of memory that has to be free, more than
/// twice that, and the least.
const ENOUGH_PART: u64 = 200;
const ENOUGH_LEAST: u64 = 64 << 20;
/// What one write(2) is taken to write at most.
const LARGE: u64 = 1 << 20;
/// As which part of a small filesystem that has to be free.
const SMALL_PART: u64 = 64;
/// A pause between two looks that is so long that what was found holds until the next.
const LONG: Duration = Duration::from_secs(1);
/// How long space is taken to be scarce for a user whose quota is exhausted, which nobody tells.
const EXHAUSTED: Duration = Duration::from_secs(60);

/// What is known of the space that is left.
pub struct Space {
    /// How many bytes must be free, or space is scarce.
    enough: u64,
    scarce: AtomicBool,
    /// How much more may be written before it is looked again.
    credit: AtomicI64,
    free: AtomicU64,
    /// When a quota was last found to be exhausted.
    exhausted: Mutex<Option<Instant>>,
    /// The files whose next write the kernel may not announce.
    unannounced: Mutex<HashSet<u64>>,
    held: Mutex<Announced>,
    forgetting: RwLock<()>,
}

/// What the kernel may hold that was announced while space was scarce.
#[derive(Default)]
struct Announced {
    files: HashSet<u64>,
    writes: u64,
    /// While it is written back: the files of which something was not taken, and why.
    failed: Option<HashMap<u64, i32>>,
}

impl Announced {
    /// One more write to a file was announced.
    fn add(&mut self, node: u64) {
        self.files.insert(node);
        self.writes += 1;
    }

    /// Whether so many writes might fill half of what is free.
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

    /// Whether each write is to be announced.
    pub fn is_scarce(&self) -> bool {
        self.scarce.load(Ordering::Relaxed)
    }

    /// Remembers a file whose next write the kernel may not announce.
    pub fn not_announced(&self, node: u64) {
        self.unannounced.lock().unwrap_or_else(PoisonError::into_inner).insert(node);
    }

    /// The kernel has forgotten an object, which is let go of while what this answers is held.
    pub fn forget(&self, node: u64) -> RwLockReadGuard<'_, ()> {
        self.unannounced.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
        self.forgetting.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over how much is free. Answers the files that must be announced from now on.
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

    /// Where space is scarce, whether one more write to a file can be taken without a look.
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

    /// When to look again, if nothing is written here.
    fn pause(&self) -> Duration {
        let above = self.free.load(Ordering::Relaxed).saturating_sub(self.enough);
        let pause = Duration::from_millis((above / (FILLED / 1000)).clamp(100, 60_000));
        if self.is_scarce() { Duration::from_secs(1) } else { pause }
    }

    /// Whether what was learnt last still holds: neither what was written here since, nor what
    /// others may have written, makes space scarce.
    fn is_known(&self) -> bool {
        !self.is_scarce() && !self.is_exhausted() && self.credit.load(Ordering::Relaxed) > 0 && self.pause() >= LONG
    }

    /// Whether a quota was found to be exhausted lately.
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
    /// Whether there is anything to look for.
    fn holds_back(&self) -> bool {
        self.settings.writeback && !self.overlay.is_read_only()
    }

    /// Looks how much is free.
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

    /// As [`EngineFrontEnd::look_for_space`], unless the answer is known.
    pub(super) fn look_unless_known(&self) {
        if !self.space.is_known() {
            self.look_for_space();
        }
    }

    /// As [`FrontEnd::watch`](crate::FrontEnd::watch).
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

    /// Something that was held back has reached the layer, or not.
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

    /// A quota is exhausted, which the statistics of a filesystem mostly do not tell.
    pub(super) fn quota_exhausted(&self) {
        *self.space.exhausted() = Some(Instant::now());
        self.look_for_space();
    }

    /// Before a write to a file is taken, where space is scarce: has the kernel write back what it
    /// may hold, and tries whether there is room. ENOSPC, EDQUOT.
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
            drop(self.space.forgetting.write().unwrap_or_else(PoisonError::into_inner));
            self.has_room(node)
        })
    }

    /// Whether there is room for one more write to a file. ENOSPC, EDQUOT.
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

    /// Has the kernel write back what it may hold. Another thread must be there for the writes.
    /// Answers why what it held of one file was not taken.
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
