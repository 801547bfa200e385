//! Completes and syncs changes: soon after the last change, and before umount(2) returns.
//!
//! The kernel sends a FUSE daemon nothing before it takes a filesystem down. DESTROY and SYNCFS are
//! for block devices, and the requests for dirty inodes come after the connection is closed. But
//! the take-down needs the lock of the superblock exclusively. ustat(2) holds that lock, shared,
//! while it asks the daemon for the space that is left. It names a filesystem by the number of its
//! device, so it does not make the mount busy.
//!
//! So a thread of the process `unmounter` (see [`crate::mount`]) waits in ustat(2). It does so from
//! before the first change is answered until all changes are complete and synced. umount(2) and a
//! remount wait for it.
//!
//! A second ustat(2) finds out whether a thread waits for the lock: then the call sleeps before it
//! becomes a request. It distinguishes umount from a mount that left the table of mounts while
//! programs use it. If the mount has left the table and a thread waits, the daemon completes and
//! syncs everything. It unlocks the layers, and only then releases the first thread.
//!
//! Otherwise it completes and syncs the changes after `PAUSE` without a change, or when a thread
//! waits, which is a remount. A volatile overlay is only completed then. After `REST` it is
//! synced, and its mark is removed.
//!
//! After the last sync, once the layers are unlocked, the process `unmounter` makes the ending:
//! what happens to the changes then. umount waits for it too, so with an ending it waits from the
//! start to the end, also when nothing is left to sync. If anything failed before, the changes
//! stay. It also waits so once the mount has left the table of mounts: the kernel may be on the way
//! to its wait for longer than this side looks.
//!
//! Without ustat(2) umount does not wait, and the next mount of the same upper layer does.
//!
//! The lock of the overlay comes before that of the state, which is a leaf, except for the removal
//! and the return of the mark. The thread
//! of [`Settler::run`] makes no other request to the kernel for this mount.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use overlayfs::errno::{EROFS, Error, Result};
use overlayfs::layer::Layer;
use overlayfs::mount::sign;
use overlayfs::overlay::{Holder, Overlay};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::comeback::Kept;
use crate::dispatch::Request;
use crate::mount::{Device, Ender, Prober, Said, Waiter};
use crate::waker::Waker;
use crate::wire::{OutHeader, opcode};

/// The pause without a change before changes are completed and synced.
const PAUSE: Duration = Duration::from_millis(700);
/// The pause without a change before a volatile overlay is synced.
const REST: Duration = Duration::from_secs(10);
/// How often to ask, while changes go on, whether a thread waits.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often to ask so while only the ending is left. A remount waits as long.
const ASK_AT_REST: Duration = Duration::from_secs(5);
/// How long a remount waits at most if the answer is unknown.
const MOST: Duration = Duration::from_secs(10);
/// How long the thread of [`Settler::run`] waits for more changes before it ends.
const LINGER: Duration = Duration::from_secs(2);
/// How long umount may take to its wait after the mount has left the table. Between the two the
/// kernel waits for all processors (`namespace_unlock` in fs/namespace.c).
const ON_ITS_WAY: Duration = Duration::from_secs(2);
/// How long to wait at most before the next look whether it is there.
const NEXT_LOOK: Duration = Duration::from_millis(50);
/// How long a change waits at most until umount would wait.
const ARMING: Duration = Duration::from_secs(5);

/// Sends the answer of a request, of which it gets the header, at a later time.
pub type Later = Box<dyn FnOnce(OutHeader) + Send>;
/// An overlay, as far as its settler uses it. The methods are those of [`Overlay`].
#[expect(missing_docs, clippy::missing_errors_doc, reason = "see `Overlay`")]
pub trait Settled: Send + Sync {
    fn is_volatile(&self) -> bool;
    fn has_unfinished(&self) -> bool;
    fn complete_and_sync(&self) -> Result<()>;
    fn sync_completed(&self) -> Result<()>;
    fn rest(&self) -> Result<()>;
    fn wake(&self) -> Result<()>;
    fn retire(&self) -> Result<()>;
    fn sign(&self, holder: &Holder);
}

impl<L: Layer> Settled for Overlay<L> {
    fn is_volatile(&self) -> bool {
        self.is_volatile()
    }

    fn has_unfinished(&self) -> bool {
        self.has_unfinished()
    }

    fn complete_and_sync(&self) -> Result<()> {
        self.complete_and_sync()
    }

    fn sync_completed(&self) -> Result<()> {
        self.sync_completed()
    }

    fn rest(&self) -> Result<()> {
        self.rest()
    }

    fn wake(&self) -> Result<()> {
        self.wake()
    }

    fn retire(&self) -> Result<()> {
        self.retire()
    }

    fn sign(&self, holder: &Holder) {
        sign(self, holder);
    }
}

/// Completes and syncs the changes of a mount.
pub struct Settler {
    overlay: RwLock<Arc<dyn Settled>>,
    device: Device,
    /// The table of mounts in the daemon's namespace.
    mounts: File,
    /// Whether that may have changed since it was read. The kernel copies it page by page.
    mounts_changed: AtomicBool,
    waiter: Waiter,
    prober: Prober,
    /// The process that makes the ending. None: the changes stay.
    ending: Option<Ender>,
    /// How many threads take requests from one place.
    threads: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// Wakes the thread that starts [`Settler::run`].
    waker: Option<Arc<Waker>>,
    /// Wakes [`Settler::run`] from its wait for umount.
    caller: Waker,
    /// Learns when the layers are about to be unlocked.
    kept: OnceLock<Arc<Kept>>,
}

struct State {
    /// Whether the thread of [`Settler::run`] is there.
    runs: bool,
    /// Whether the mount has left this namespace, and programs still use it.
    elsewhere: bool,
    /// Whether changes are left to complete or sync.
    dirty: bool,
    /// How many changes have begun, plus how many have ended. If the number changed during a sync,
    /// the sync may have missed a change.
    changes: u64,
    /// How many changes have begun and not ended.
    under_way: usize,
    last_change: Instant,
    /// Whether umount waits.
    hold: Hold,
    /// How many times the other process was asked to wait.
    asked: u32,
    /// Whether a dead process asked last. It may have answered the request that is awaited.
    has_adopted: bool,
    /// Whether it does not begin to wait in time. Changes go on without it then.
    is_late: bool,
    /// The number of the thread there that waits, or was the last one.
    waiter: u32,
    /// How many threads wait until it does.
    waiting: usize,
    /// Whether the overlay rests: a change must wake it first.
    resting: bool,
    /// Whether the layers are unlocked: nothing can change any more.
    retired: bool,
    /// The result of the last completion and sync.
    failed: Result<()>,
    /// The failure of the ending, as a sentence.
    ended_badly: Option<String>,
    ended: bool,
    /// Whether [`Settler::run`] should leave the overlay and the other process alone, and whether
    /// it does.
    pausing: bool,
    paused: bool,
}

enum Hold {
    None,
    /// The other process was asked to wait, and its request has not come.
    Asked,
    /// The request has come and has no answer yet.
    Held {
        unique: u64,
        answer: Later,
    },
    /// This system cannot do it.
    Impossible,
}

impl Settler {
    /// Serves the mount with this device number.
    ///
    /// # Errors
    ///
    /// - ENOENT: `/proc` is not mounted.
    /// - EMFILE, ENFILE: too many files are open.
    pub fn new(
        device: Device,
        (waiter, prober): (Waiter, Prober),
        ending: Option<Ender>,
        overlay: Arc<dyn Settled>,
    ) -> io::Result<Self> {
        let state = State {
            runs: false,
            elsewhere: false,
            // umount waits from the start, so that the upper layer is complete after an unmount at
            // once, too.
            dirty: true,
            changes: 0,
            under_way: 0,
            last_change: Instant::now(),
            hold: Hold::None,
            asked: 0,
            has_adopted: false,
            is_late: false,
            waiter: 0,
            waiting: 0,
            resting: false,
            retired: false,
            failed: Ok(()),
            ended_badly: None,
            ended: false,
            pausing: false,
            paused: false,
        };
        Ok(Self {
            overlay: RwLock::new(overlay),
            device,
            mounts: File::open("/proc/self/mountinfo")?,
            mounts_changed: AtomicBool::new(true),
            waiter,
            prober,
            ending,
            threads: 0,
            state: Mutex::new(state),
            changed: Condvar::new(),
            waker: None,
            caller: Waker::new()?,
            kept: OnceLock::new(),
        })
    }

    /// Counts on `threads` threads, of which each takes any request that comes from the place of
    /// another. `waker` wakes the thread that starts [`Settler::run`].
    pub(crate) fn served_by(self, threads: usize, waker: Arc<Waker>) -> Self {
        Self { threads, waker: Some(waker), ..self }
    }

    /// Whether to start a thread for [`Settler::run`]. If it cannot start, the caller calls
    /// [`Settler::unclaim`].
    pub fn claim(&self) -> bool {
        let mut state = self.state();
        let is_needed = self.has_work(&state) && !state.runs;
        state.runs |= is_needed;
        is_needed
    }

    /// Whether there are changes to sync, or umount waits without them: for an ending, or because
    /// the mount has left the table. Then umount may come at any moment.
    fn has_work(&self, state: &State) -> bool {
        let waits_at_rest = self.ending.is_some() || state.elsewhere;
        !state.ended && (state.dirty || waits_at_rest && !state.retired)
    }

    /// Notes that the thread is not there.
    pub fn unclaim(&self) {
        self.state().runs = false;
        self.changed.notify_all();
    }

    /// Has [`Settler::run`] see a change.
    fn call(&self, state: &State) {
        match &self.waker {
            Some(waker) if !state.runs => waker.wake(),
            _ => self.notify(),
        }
    }

    /// Wakes [`Settler::run`], wherever it waits.
    fn notify(&self) {
        self.changed.notify_all();
        self.caller.wake();
    }

    /// Goes on after another process, which asked the process `unmounter` so many times to wait,
    /// and may have left changes. If it was killed, umount may wait, and should go on waiting.
    pub(crate) fn after(self, asked: u32, was_killed: bool) -> Self {
        {
            let mut state = self.state();
            (state.asked, state.changes) = (asked, 1);
            if was_killed {
                self.adopt_wait(&mut state);
            }
        }
        self
    }

    /// Takes over the wait that a dead process asked for. The kernel sends its request again.
    fn adopt_wait(&self, state: &mut State) {
        let mut begun = None;
        loop {
            match self.waiter.hear() {
                Ok(Said::Begins { thread, asked }) => begun = Some((thread, asked)),
                Ok(Said::Ends(ended)) => begun = begun.filter(|(_, asked)| *asked != ended),
                // What an error means, the first question finds out.
                Err(_) => break,
            }
        }
        if let Some((thread, asked)) = begun {
            (state.waiter, state.asked, state.hold, state.has_adopted) = (thread, asked, Hold::Asked, true);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn overlay(&self) -> RwLockReadGuard<'_, Arc<dyn Settled>> {
        self.overlay.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device number of the mount.
    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// Tells `kept` before the layers are unlocked.
    pub(crate) fn kept_by(&self, kept: Arc<Kept>) {
        self.kept.get_or_init(|| kept);
    }

    /// Records the process that holds the upper layer.
    pub fn sign(&self, holder: &Holder) {
        self.overlay().sign(holder);
    }

    /// Calls `follow` while this settler leaves the overlay alone, and goes on with the overlay
    /// that it returns.
    ///
    /// # Errors
    ///
    /// - EROFS: the layers are unlocked already.
    ///
    /// Others of `follow`.
    pub fn replace<T, E: From<Error>>(
        &self,
        follow: impl FnOnce() -> std::result::Result<(T, Arc<dyn Settled>), E>,
    ) -> std::result::Result<T, E> {
        let mut overlay = self.overlay.write().unwrap_or_else(PoisonError::into_inner);
        if self.state().retired {
            return Err(Error::new(EROFS).into());
        }
        let (value, next) = follow()?;
        *overlay = next;
        let mut state = self.state();
        state.resting = false;
        state.dirty = true;
        state.changes += 1;
        state.last_change = Instant::now();
        self.call(&state);
        Ok(value)
    }

    /// Begins a change. The caller calls [`Settler::end_change`] after it. The error is the answer
    /// to the change.
    ///
    /// # Errors
    ///
    /// - EROFS: the layers are unlocked already.
    pub fn begin_change(&self) -> Result<()> {
        let overlay = self.overlay();
        let mut state = self.state();
        if state.retired {
            return Err(Error::new(EROFS));
        }
        if state.resting {
            overlay.wake()?;
            state.resting = false;
        }
        state.changes += 1;
        state.under_way += 1;
        Ok(())
    }

    /// Ends a change, before its answer: from now on umount waits.
    pub fn end_change(&self) {
        let mut state = self.state();
        state.under_way -= 1;
        state.changes += 1;
        state.last_change = Instant::now();
        if !state.dirty {
            state.dirty = true;
            self.call(&state);
        }
        self.keep_waiting(state);
    }

    /// Makes umount wait from the start. The caller calls it once other threads serve, and before
    /// it reports the mount.
    pub fn begin(&self) {
        self.keep_waiting(self.state());
    }

    /// Makes umount wait from now on.
    fn keep_waiting(&self, mut state: MutexGuard<'_, State>) {
        self.ask(&mut state);
        // One thread must stay free to take that request.
        if !matches!(state.hold, Hold::Asked) || state.is_late || state.waiting + 1 >= self.threads {
            return;
        }
        state.waiting += 1;
        let waited = self.changed.wait_timeout_while(state, ARMING, |state| matches!(state.hold, Hold::Asked));
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state.is_late |= waited.timed_out();
    }

    /// Asks the other process to wait, unless it does.
    fn ask(&self, state: &mut State) {
        if matches!(state.hold, Hold::None) {
            state.asked = state.asked.wrapping_add(1);
            (state.has_adopted, state.is_late) = (false, false);
            let asked = self.waiter.ask(self.device, state.asked);
            state.hold = if asked.is_ok() { Hold::Asked } else { Hold::Impossible };
        }
    }

    /// Makes [`Settler::run`] leave the overlay and the process `unmounter` alone, and waits until
    /// it does. Requests must go on meanwhile.
    ///
    /// # Errors
    ///
    /// - EROFS: the layers are unlocked, or about to be.
    pub fn pause(&self) -> Result<()> {
        let mut state = self.state();
        state.pausing = true;
        self.notify();
        let is_busy = |state: &mut State| state.runs && !state.paused && !state.retired && !state.ended;
        let state = self.changed.wait_while(state, is_busy).unwrap_or_else(PoisonError::into_inner);
        if state.retired || state.ended {
            drop(state);
            self.go_on();
            return Err(Error::new(EROFS));
        }
        Ok(())
    }

    /// Ends the wait of umount, during a pause without requests. Returns how many times the other
    /// process was asked to wait.
    pub fn let_go(&self) -> u32 {
        let mut state = self.state();
        state.release(Hold::None);
        state.asked
    }

    /// Ends the pause.
    pub fn go_on(&self) {
        let mut state = self.state();
        state.pausing = false;
        self.changed.notify_all();
    }

    /// Waits while there is a pause.
    fn rest_in_pause<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while state.pausing && !state.ended {
            state.paused = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.paused = false;
        state
    }

    /// Whether a request only makes umount wait. If so, its answer comes later, by `later`.
    pub fn keeps(&self, request: &Request<'_>, later: impl FnOnce() -> Later) -> bool {
        let header = request.header;
        if header.opcode == opcode::INTERRUPT
            && let Some(of) = request.first()
        {
            self.interrupt(of);
        }
        if header.opcode != opcode::STATFS {
            return false;
        }
        let mut state = self.state();
        self.hear(&mut state);
        if !self.has_work(&state) || !matches!(state.hold, Hold::Asked) || header.pid != state.waiter {
            return false;
        }
        state.hold = Hold::Held { unique: header.unique, answer: later() };
        self.changed.notify_all();
        true
    }

    /// Ends the wait of a request that is interrupted: the waiting process should end.
    fn interrupt(&self, of: u64) {
        let mut state = self.state();
        if matches!(state.hold, Hold::Held { unique, .. } if unique == of) {
            state.release(Hold::Impossible);
        }
    }

    /// Completes and syncs changes, each time when they are due, until none is left, or until
    /// [`Settler::stop`]. With an ending it goes on until that.
    pub fn run(&self) {
        loop {
            let is_idle = |state: &mut State| !self.has_work(state) && !state.ended && !state.pausing;
            let waited = self.changed.wait_timeout_while(self.state(), LINGER, is_idle);
            let mut state = self.rest_in_pause(waited.unwrap_or_else(PoisonError::into_inner).0);
            if !self.has_work(&state) {
                state.runs = false;
                self.changed.notify_all();
                return;
            }
            self.ask(&mut state);
            drop(state);
            self.settle_in_time();
        }
    }

    /// Waits until changes are due, then completes and syncs them. Without changes, waits for one
    /// or for umount.
    fn settle_in_time(&self) {
        let since = Instant::now();
        let is_dirty = self.state().dirty;
        let mut asked_at = since;
        // The number of changes after which everything is complete.
        let mut completed = None;
        loop {
            let (changes, last_change, mut elsewhere) = {
                let state = self.state();
                if state.ended || state.pausing || state.dirty != is_dirty {
                    return;
                }
                (state.changes, state.last_change, state.elsewhere)
            };
            if !elsewhere && self.is_unmounted() {
                if self.is_taken_down() {
                    return self.retire();
                }
                elsewhere = true;
                self.state().elsewhere = true;
            }
            let now = Instant::now();
            let due = last_change + if completed == Some(changes) { REST } else { PAUSE };
            let is_due = is_dirty && now >= due;
            let ask_at = asked_at + if is_dirty || elsewhere { ASK_EVERY } else { ASK_AT_REST };
            let mut is_awaited = false;
            if now >= ask_at || is_due && elsewhere {
                asked_at = now;
                is_awaited = self.prober.is_awaited(self.device).unwrap_or(now - since >= MOST);
            }
            // umount may have come since the look at the table: then it is not a remount that waits.
            if is_awaited && (elsewhere || self.is_unmounted()) {
                return self.retire();
            }
            if !is_due && !is_awaited {
                self.wait(if is_dirty { due.min(ask_at) } else { ask_at }.saturating_duration_since(now));
                continue;
            }
            if changes > 0 || self.overlay().has_unfinished() {
                let settled = self.overlay().complete_and_sync();
                self.state().failed = settled;
                self.log(settled);
            }
            if self.overlay().is_volatile() && !is_awaited && completed != Some(changes) {
                completed = Some(changes);
            } else if self.rest(changes, is_awaited) {
                return;
            }
        }
    }

    /// Ends a sync that began at the number of changes `changes`. If no change came since, the
    /// overlay rests, and umount no longer waits, except for an ending. Otherwise, or if umount
    /// came during the sync, returns false, and umount waits on. But with `is_awaited` a
    /// remount waits, and goes on in both cases.
    fn rest(&self, changes: u64, is_awaited: bool) -> bool {
        let overlay = self.overlay();
        let synced = overlay.sync_completed();
        let is_unmounted = self.is_unmounted();
        let mut state = self.state();
        let is_still = state.changes == changes && state.under_way == 0;
        match synced {
            Ok(()) if is_still && !state.resting => {
                let rested = overlay.rest();
                state.resting = true;
                self.log(rested);
            }
            synced => self.log(synced),
        }
        let is_leaving = is_unmounted && !state.elsewhere;
        if !is_awaited && (!is_still || is_leaving) {
            return false;
        }
        state.dirty = !is_still;
        if is_awaited || !self.has_work(&state) {
            state.release(Hold::None);
        }
        if self.has_work(&state) {
            self.ask(&mut state);
        }
        true
    }

    /// Completes and syncs everything for a waiting umount, unlocks the layers, then lets umount go
    /// on.
    fn retire(&self) {
        loop {
            let changes = self.state().changes;
            let settled = self.settle_at_last();
            let mut state = self.state();
            if state.changes != changes || state.under_way > 0 {
                continue;
            }
            state.retired = true;
            state.dirty = false;
            state.failed = settled;
            self.changed.notify_all();
            break;
        }
        self.kept.get().inspect(|kept| kept.end());
        let retired = self.overlay().retire();
        let mut state = self.state();
        state.failed = state.failed.and(retired);
        self.log(state.failed);
        if state.failed.is_ok() {
            drop(state);
            let ended_badly = self.make_ending().err();
            state = self.state();
            state.ended_badly = ended_badly;
        }
        state.release(Hold::Impossible);
    }

    /// Has the other process make the ending of the unlocked layers.
    fn make_ending(&self) -> std::result::Result<(), String> {
        let Some(ending) = &self.ending else { return Ok(()) };
        ending.end().inspect_err(|sentence| log::error!("{sentence}"))
    }

    /// Completes and syncs everything, with a second try. The first syncfs(2) may report an earlier
    /// failure once, which the writer of those data has got.
    fn settle_at_last(&self) -> Result<()> {
        self.overlay().complete_and_sync().or_else(|error| {
            self.log(Err(error));
            self.overlay().complete_and_sync()
        })
    }

    fn log(&self, settled: Result<()>) {
        if let Err(error) = settled {
            log::error!("the changes are not all complete and on the disk: {error}");
        }
    }

    /// Waits for this time, or until the table of mounts changes, the other process writes, or
    /// another thread calls.
    fn wait(&self, time: Duration) {
        let line = self.waiter.line();
        // Each mount namespace counts the changes of its table, so poll(2) misses none.
        let mut ready = [
            PollFd::new(&self.mounts, PollFlags::PRI),
            PollFd::new(&self.caller, PollFlags::IN),
            PollFd::from_borrowed_fd(line.as_fd(), PollFlags::IN),
        ];
        let count = if matches!(self.state().hold, Hold::Impossible) { 2 } else { 3 };
        let _ = poll(
            &mut ready[..count],
            Some(&Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() }),
        );
        let [mounts, caller, line] = ready.map(|ready| !ready.revents().is_empty());
        if mounts {
            self.mounts_changed.store(true, Ordering::Relaxed);
        }
        if caller {
            self.caller.clear();
        }
        if line {
            self.hear(&mut self.state());
        }
    }

    /// Notes what the other process has said.
    fn hear(&self, state: &mut State) {
        loop {
            match self.waiter.hear() {
                Ok(Said::Begins { thread, .. }) => state.waiter = thread,
                Ok(Said::Ends(asked)) if asked == state.asked && matches!(state.hold, Hold::Asked) => {
                    // If this side has not answered it, it cannot wait on this system.
                    if !state.has_adopted {
                        break;
                    }
                    state.hold = Hold::None;
                    self.ask(state);
                }
                Ok(Said::Ends(_)) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => break,
            }
        }
        state.release(Hold::Impossible);
        self.changed.notify_all();
    }

    /// Whether the table of mounts has no mount of this filesystem.
    fn is_unmounted(&self) -> bool {
        let mut ready = [PollFd::new(&self.mounts, PollFlags::PRI)];
        let has_changed = poll(&mut ready, Some(&Timespec::default())).is_ok_and(|ready| ready > 0);
        if !self.mounts_changed.swap(false, Ordering::Relaxed) && !has_changed {
            return false;
        }
        let mut table = Vec::new();
        let mut mounts = &self.mounts;
        if mounts.rewind().and_then(|()| mounts.read_to_end(&mut table)).is_err() {
            self.mounts_changed.store(true, Ordering::Relaxed);
            return false;
        }
        let device = self.device.to_string();
        let is_unmounted = !table
            .split(|byte| *byte == b'\n')
            .any(|line| line.split(|byte| *byte == b' ').nth(2) == Some(device.as_bytes()));
        // The next look comes to the same result.
        self.mounts_changed.fetch_or(is_unmounted, Ordering::Relaxed);
        is_unmounted
    }

    /// Whether the kernel takes down the filesystem of a mount that has left the table: umount
    /// waits.
    fn is_taken_down(&self) -> bool {
        let since = Instant::now();
        let mut pause = Duration::from_millis(1);
        while since.elapsed() < ON_ITS_WAY && !self.state().ended {
            if self.prober.is_awaited(self.device) == Some(true) {
                return true;
            }
            thread::sleep(pause);
            pause = (2 * pause).min(NEXT_LOOK);
        }
        false
    }

    /// Ends [`Settler::run`] after the last request. umount no longer waits.
    pub fn stop(&self) {
        let mut state = self.state();
        state.ended = true;
        self.notify();
        state.release(Hold::Impossible);
    }

    /// Completes and syncs the rest after [`Settler::run`], and unlocks the layers. Then, if the
    /// service ended well, makes the ending.
    ///
    /// # Errors
    ///
    /// - A sentence says which of these failed, and why.
    pub fn end(&self, served_well: bool) -> std::result::Result<(), String> {
        let unsettled = |error| format!("The changes are not all complete and on the disk: {error}.");
        let (dirty, changes, failed) = {
            let state = self.state();
            if state.retired {
                return state.failed.map_err(unsettled).and(state.ended_badly.clone().map_or(Ok(()), Err));
            }
            (state.dirty, state.changes, state.failed)
        };
        let is_settled = failed.is_ok() && !(dirty && changes > 0 || self.overlay().has_unfinished());
        let settled = if is_settled { Ok(()) } else { self.settle_at_last() };
        self.kept.get().inspect(|kept| kept.end());
        settled.and(self.overlay().retire()).map_err(unsettled)?;
        if served_well { self.make_ending() } else { Ok(()) }
    }
}

impl State {
    /// Lets umount go on.
    fn release(&mut self, then: Hold) {
        if let Hold::Held { unique, answer } = std::mem::replace(&mut self.hold, then) {
            // The waiting process does not need the answer.
            answer(OutHeader { len: size_of::<OutHeader>() as u32, error: -libc::EINTR, unique });
        }
    }
}
