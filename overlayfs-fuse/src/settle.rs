//! Completing and syncing what was changed: soon after the last change, and before umount(2)
//! returns.
//!
//! The kernel tells a FUSE daemon nothing before it takes a filesystem down: no DESTROY and no
//! SYNCFS comes, which are for block devices, and requests for dirty inodes are sent when the
//! connection is cut already. But taking it down needs the lock of the superblock, exclusively, and
//! ustat(2), which names a filesystem by the number of its device and so keeps nobody from
//! unmounting it, has that lock, shared, while the daemon is asked for the space that is left. So,
//! from before the first change is answered until everything is settled, a thread of the process
//! that unmounts (see [`crate::mount`]) waits in ustat(2), and umount(2) and a remount wait for it.
//!
//! Whether somebody waits for that lock another ustat(2) tells, which does not get as far as a
//! request then. So umount is known from a mount that was only taken from the table of mounts,
//! while programs use it: the mount has left the table, and somebody waits. Then everything is
//! settled and the layers are let go of, before that thread is.
//!
//! Otherwise what was changed is settled when nothing has changed for [`PAUSE`], or when somebody
//! waits: for a remount then. An overlay that syncs nothing is only completed then; it is synced,
//! and its mark taken away, after [`REST`].
//!
//! Where there is no ustat(2) umount does not wait, and the next mount of the same upper layer
//! does.
//!
//! The lock of the state is a leaf, but for taking away and putting back the mark. The thread that
//! settles makes no other request to the kernel of the mount.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use overlayfs::errno::{EROFS, Error, Result};
use overlayfs::layer::OsLayer;
use overlayfs::overlay::Overlay;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::IntoBytes;

use crate::mount::{Device, Prober, Waiter};
use crate::wire::{OutHeader, opcode};

/// How long nothing is changed before what was changed is settled.
const PAUSE: Duration = Duration::from_millis(700);
/// How long nothing is changed before an overlay that syncs nothing is synced.
const REST: Duration = Duration::from_secs(10);
/// How often it is asked, while changes go on, whether somebody waits.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How long a remount waits at most where that is not known.
const MOST: Duration = Duration::from_secs(10);
/// How long after a mount has left the table umount may be on its way to wait.
const ON_ITS_WAY: Duration = Duration::from_millis(100);
/// How long a change waits at most for umount to be kept waiting.
const ARMING: Duration = Duration::from_millis(500);

/// What settles a mount.
pub struct Settler {
    overlay: Arc<Overlay<OsLayer>>,
    device: Device,
    /// The mounts of the daemon's namespace.
    mounts: File,
    waiter: Waiter,
    prober: Prober,
    threads: usize,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Something is to be settled yet.
    dirty: bool,
    /// How many changes have begun, and how many have ended: what was settled in between may have
    /// missed one that was under way.
    changes: u64,
    /// How many have begun and not ended.
    under_way: usize,
    last_change: Instant,
    /// Whether umount is kept waiting.
    hold: Hold,
    /// How often the other process was asked to wait.
    asked: u32,
    /// How many threads wait until it is.
    waiting: usize,
    /// The overlay rests: it is to be woken before a change.
    resting: bool,
    /// The layers were let go of: nothing can be changed any more.
    retired: bool,
    /// What became of what was settled last.
    failed: Result<()>,
    ended: bool,
}

enum Hold {
    None,
    /// The other process was asked, and its request has not come.
    Asked,
    /// Its request is not answered.
    Held {
        unique: u64,
        device: Arc<File>,
    },
    /// It cannot be done here.
    Impossible,
}

impl Settler {
    /// For the mount with this device number, served by so many threads.
    pub fn new(
        device: Device,
        (waiter, prober): (Waiter, Prober),
        threads: usize,
        overlay: Arc<Overlay<OsLayer>>,
    ) -> io::Result<Self> {
        let state = State {
            // Umount is kept waiting from the start, so that a mount which is taken away at once is
            // whole, too.
            dirty: true,
            changes: 0,
            under_way: 0,
            last_change: Instant::now(),
            hold: Hold::None,
            asked: 0,
            waiting: 0,
            resting: false,
            retired: false,
            failed: Ok(()),
            ended: false,
        };
        Ok(Self {
            overlay,
            device,
            mounts: File::open("/proc/self/mountinfo")?,
            waiter,
            prober,
            threads,
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called before a change is made, and then [`Settler::end_change`] after it. The error is its
    /// answer.
    pub fn begin_change(&self) -> Result<()> {
        let mut state = self.state();
        if state.retired {
            return Err(Error::new(EROFS));
        }
        if state.resting {
            self.overlay.wake()?;
            state.resting = false;
        }
        state.changes += 1;
        state.under_way += 1;
        Ok(())
    }

    /// Called before a change is answered: from now on umount waits.
    pub fn end_change(&self) {
        let mut state = self.state();
        state.under_way -= 1;
        state.changes += 1;
        state.last_change = Instant::now();
        if !state.dirty {
            state.dirty = true;
            self.changed.notify_all();
        }
        self.keep_waiting(state);
    }

    /// Called when other threads serve, and before anybody is told: umount waits from the start.
    pub fn begin(&self) {
        self.keep_waiting(self.state());
    }

    /// Has umount wait from now on.
    fn keep_waiting(&self, mut state: MutexGuard<'_, State>) {
        self.ask(&mut state);
        // One thread must be left to take the request that is waited for.
        if !matches!(state.hold, Hold::Asked) || state.waiting + 1 >= self.threads {
            return;
        }
        state.waiting += 1;
        let waited = self.changed.wait_timeout_while(state, ARMING, |state| matches!(state.hold, Hold::Asked));
        waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
    }

    /// Has the other process wait, unless it does.
    fn ask(&self, state: &mut State) {
        if matches!(state.hold, Hold::None) {
            state.asked = state.asked.wrapping_add(1);
            let asked = self.waiter.ask(self.device, state.asked);
            state.hold = if asked.is_ok() { Hold::Asked } else { Hold::Impossible };
        }
    }

    /// Whether a request is the one that umount is to wait for. Then it is answered later.
    pub fn keeps(&self, code: u32, unique: u64, pid: u32, device: &Arc<File>) -> bool {
        if code != opcode::STATFS || pid != self.waiter.thread() {
            return false;
        }
        let mut state = self.state();
        if !state.dirty || !matches!(state.hold, Hold::Asked) {
            return false;
        }
        state.hold = Hold::Held { unique, device: device.clone() };
        self.changed.notify_all();
        true
    }

    /// Called when somebody wants no answer to a request any more: the process that waits is to
    /// end.
    pub fn interrupt(&self, of: u64) {
        let mut state = self.state();
        if matches!(state.hold, Hold::Held { unique, .. } if unique == of) {
            state.release(Hold::Impossible);
        }
    }

    /// Settles what was changed whenever it is time to, until [`Settler::stop`].
    pub fn run(&self) {
        let mut elsewhere = false;
        loop {
            let state = self.state();
            let waited = self.changed.wait_while(state, |state| !state.dirty && !state.ended);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner);
            if state.ended {
                return;
            }
            self.ask(&mut state);
            drop(state);
            self.settle_in_time(&mut elsewhere);
        }
    }

    /// Waits until it is time to settle what was changed, and does. `elsewhere` says that the mount
    /// is not in this namespace any more though somebody uses it.
    fn settle_in_time(&self, elsewhere: &mut bool) {
        let since = Instant::now();
        let mut ask_at = since + ASK_EVERY;
        // Of how many changes everything is complete.
        let mut completed = None;
        loop {
            let (changes, last_change) = {
                let state = self.state();
                if state.ended {
                    return;
                }
                (state.changes, state.last_change)
            };
            if !*elsewhere && self.is_unmounted() {
                if self.is_taken_down() {
                    return self.retire();
                }
                *elsewhere = true;
            }
            let now = Instant::now();
            let due = last_change + if completed == Some(changes) { REST } else { PAUSE };
            let mut is_awaited = false;
            if now >= ask_at || now >= due && *elsewhere {
                ask_at = now + ASK_EVERY;
                is_awaited = self.prober.is_awaited(self.device).unwrap_or(now - since >= MOST);
            }
            if is_awaited && *elsewhere {
                return self.retire();
            }
            if now < due && !is_awaited {
                self.wait(due.min(ask_at) - now);
                continue;
            }
            if changes > 0 || self.overlay.has_unfinished() {
                let settled = self.overlay.complete_and_sync();
                self.state().failed = settled;
                self.log(settled);
            }
            if self.overlay.is_volatile() && !is_awaited && completed != Some(changes) {
                completed = Some(changes);
            } else if self.rest(changes, is_awaited) {
                return;
            }
        }
    }

    /// After everything was settled, when there had been so many changes: has the overlay rest, and
    /// umount wait no more. Answers false, and has it wait on, if there were others meanwhile and
    /// nobody `is_awaited`, which is for a remount.
    fn rest(&self, changes: u64, is_awaited: bool) -> bool {
        let synced = self.overlay.sync_completed();
        let mut state = self.state();
        let is_still = state.changes == changes && state.under_way == 0;
        match synced {
            Ok(()) if is_still && !state.resting => {
                let rested = self.overlay.rest();
                state.resting = true;
                self.log(rested);
            }
            synced => self.log(synced),
        }
        if !is_still && !is_awaited {
            return false;
        }
        state.release(Hold::None);
        state.dirty = !is_still;
        if state.dirty {
            self.ask(&mut state);
        }
        true
    }

    /// Umount waits: settles everything, lets go of the layers, and of umount.
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
            break;
        }
        let retired = self.overlay.retire();
        let mut state = self.state();
        state.failed = state.failed.and(retired);
        self.log(state.failed);
        state.release(Hold::Impossible);
    }

    /// Settles everything, in a second try if need be: syncfs(2) tells once of what failed before,
    /// which whoever wrote it was told.
    fn settle_at_last(&self) -> Result<()> {
        self.overlay.complete_and_sync().or_else(|error| {
            self.log(Err(error));
            self.overlay.complete_and_sync()
        })
    }

    fn log(&self, settled: Result<()>) {
        if let Err(error) = settled {
            log::error!("what was changed is not all complete and on the disk: {error}");
        }
    }

    /// Waits so long, or until mounts have changed or the other process says something.
    fn wait(&self, time: Duration) {
        let line = self.waiter.line();
        let mut ready =
            [PollFd::new(&self.mounts, PollFlags::PRI), PollFd::from_borrowed_fd(line.as_fd(), PollFlags::IN)];
        // In every namespace of mounts the table has its own number of the last change, so nothing
        // is missed.
        let count = if matches!(self.state().hold, Hold::Impossible) { 1 } else { 2 };
        let _ = poll(
            &mut ready[..count],
            Some(&Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() }),
        );
        if count == 2 && !ready[1].revents().is_empty() {
            // It does not wait any more. If nobody has answered it never did, and will not.
            let ended = self.waiter.take_end();
            let mut state = self.state();
            if ended.is_err() || matches!(state.hold, Hold::Asked) && ended.is_ok_and(|asked| asked == state.asked) {
                state.release(Hold::Impossible);
                self.changed.notify_all();
            }
        }
    }

    /// Whether the table of mounts has no mount of this filesystem.
    fn is_unmounted(&self) -> bool {
        let mut table = Vec::new();
        let mut mounts = &self.mounts;
        if mounts.rewind().and_then(|()| mounts.read_to_end(&mut table)).is_err() {
            return false;
        }
        let device = self.device.to_string();
        !table
            .split(|byte| *byte == b'\n')
            .any(|line| line.split(|byte| *byte == b' ').nth(2) == Some(device.as_bytes()))
    }

    /// Whether the filesystem of a mount that has left the table is being taken down: umount waits.
    fn is_taken_down(&self) -> bool {
        let since = Instant::now();
        loop {
            match self.prober.is_awaited(self.device) {
                Some(false) if since.elapsed() < ON_ITS_WAY => thread::sleep(Duration::from_millis(1)),
                is_awaited => return is_awaited == Some(true),
            }
        }
    }

    /// After the last request: umount is kept waiting no more, and [`Settler::run`] ends.
    pub fn stop(&self) {
        let mut state = self.state();
        state.ended = true;
        self.changed.notify_all();
        state.release(Hold::Impossible);
    }

    /// After [`Settler::run`]: settles what is left to settle, and lets go of the layers.
    pub fn end(&self) -> Result<()> {
        let State { dirty, changes, retired, failed, .. } = *self.state();
        if retired {
            return failed;
        }
        let is_settled = failed.is_ok() && !(dirty && changes > 0 || self.overlay.has_unfinished());
        let settled = if is_settled { Ok(()) } else { self.settle_at_last() };
        settled.and(self.overlay.retire())
    }
}

impl State {
    /// Keeps umount waiting no more.
    fn release(&mut self, then: Hold) {
        if let Hold::Held { unique, device } = std::mem::replace(&mut self.hold, then) {
            // What the space is nobody wants to know.
            let answer = OutHeader { len: size_of::<OutHeader>() as u32, error: -libc::EINTR, unique };
            // It fails when the filesystem is gone: then nobody waits.
            let _ = (&*device).write_all(answer.as_bytes());
        }
    }
}
