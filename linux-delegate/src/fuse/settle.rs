//! Completing and syncing what was changed: soon after the last change, and before umount(2) returns.
//!
//! The kernel tells a FUSE daemon nothing before it takes a filesystem down: no DESTROY and no SYNCFS comes, which are for block devices, and
//! requests for dirty inodes are sent when the connection is cut already. But taking it down needs the lock of the superblock, exclusively,
//! and ustat(2), which names a filesystem by the number of its device and so keeps nobody from unmounting it, has that lock, shared, while
//! the daemon is asked for the space that is left. So, from before the first change is answered until everything is settled, a thread of
//! the process that unmounts (see [`super::mount`]) waits in ustat(2), and umount(2) and a remount wait for it.
//!
//! Settled is what was changed when nothing has changed for [`PAUSE`], or when the mount has left the table of mounts, which only the daemon's
//! own namespace tells at once. Where there is no ustat(2) umount does not wait, and the next mount of the same upper layer does.
//!
//! The lock of the state is a leaf. The thread that settles makes no other request to the kernel of the mount.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::IntoBytes;

use super::mount::{Device, Waiter};
use super::wire::{OutHeader, opcode};

/// How long nothing is changed before what was changed is settled.
const PAUSE: Duration = Duration::from_millis(700);
/// How long a remount waits at most while changes go on.
const MOST: Duration = Duration::from_secs(10);
/// How long a change waits at most for umount to be kept waiting.
const ARMING: Duration = Duration::from_millis(500);

/// What is called to settle everything.
pub type Settle = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// What settles a mount.
pub struct Settler {
    settle: Settle,
    device: Device,
    /// The mounts of the daemon's namespace.
    mounts: File,
    waiter: Waiter,
    threads: usize,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// What was changed is not settled yet.
    dirty: bool,
    /// How many changes there were.
    changes: u64,
    last_change: Instant,
    /// Whether umount is kept waiting.
    hold: Hold,
    /// How often the other process was asked to wait.
    asked: u32,
    /// How many threads wait until it is.
    waiting: usize,
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
    /// For the mount with this device number, served by so many threads; `dirty` if there is something to settle already.
    pub fn new(device: Device, waiter: Waiter, threads: usize, dirty: bool, settle: Settle) -> io::Result<Self> {
        let state = State {
            dirty,
            changes: 0,
            last_change: Instant::now(),
            hold: Hold::None,
            asked: 0,
            waiting: 0,
            ended: false,
        };
        Ok(Self {
            settle,
            device,
            mounts: File::open("/proc/self/mountinfo")?,
            waiter,
            threads,
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called before a change is answered: from now on umount waits.
    pub fn note_change(&self) {
        let mut state = self.state();
        state.changes += 1;
        state.last_change = Instant::now();
        if !state.dirty {
            state.dirty = true;
            self.changed.notify_all();
        }
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

    /// Called when somebody wants no answer to a request any more: the process that waits is to end.
    pub fn interrupt(&self, of: u64) {
        let mut state = self.state();
        if matches!(state.hold, Hold::Held { unique, .. } if unique == of) {
            state.release(Hold::Impossible);
        }
    }

    /// Settles what was changed whenever it is time to, until [`Settler::end`].
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
            let since = Instant::now();
            while !self.settle_in_time(since, &mut elsewhere) {}
        }
    }

    /// Waits until it is time to settle what was changed from `since` on, and does. Answers whether nothing is left to do. `elsewhere` says that
    /// the mount is not in this namespace any more though somebody uses it.
    fn settle_in_time(&self, since: Instant, elsewhere: &mut bool) -> bool {
        let is_gone = loop {
            let (now, last_change) = {
                let state = self.state();
                if state.ended {
                    return true;
                }
                (Instant::now(), state.last_change)
            };
            if !*elsewhere && self.is_unmounted() {
                break true;
            }
            let left = (last_change + PAUSE).min(since + MOST).saturating_duration_since(now);
            if left.is_zero() {
                break false;
            }
            self.wait(left);
        };
        let before = self.state().changes;
        let settled = (self.settle)();
        if let Err(error) = &settled {
            log::error!("what was changed is not all complete and on the disk: {error}");
        }
        let mut state = self.state();
        if state.changes != before && (is_gone || since.elapsed() < MOST) {
            return false;
        }
        *elsewhere |= is_gone;
        state.dirty = false;
        state.release(Hold::None);
        if state.changes != before {
            state.dirty = true;
            self.ask(&mut state);
        }
        true
    }

    /// Waits so long, or until mounts have changed or the other process says something.
    fn wait(&self, time: Duration) {
        let line = self.waiter.line();
        let mut ready =
            [PollFd::new(&self.mounts, PollFlags::PRI), PollFd::from_borrowed_fd(line.as_fd(), PollFlags::IN)];
        // In every namespace of mounts the table has its own number of the last change, so nothing is missed.
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

    /// After the last request: umount is kept waiting no more, and [`Settler::run`] ends.
    pub fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        self.changed.notify_all();
        state.release(Hold::Impossible);
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
