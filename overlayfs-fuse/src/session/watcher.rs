//! The work between requests: [`FrontEnd::watch`], each time when it is due, and
//! [`FrontEnd::rest`] for the threads of rings. A thread does it, which starts when there is some
//! and ends soon after.
//!
//! The lock is a leaf.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Seat;
use crate::front_end::FrontEnd;
use crate::waker::Waker;

/// How long the thread waits for more work.
const LINGER: Duration = Duration::from_secs(1);

/// Says what the thread has to do, and whether it is there.
pub struct Watcher {
    state: Mutex<State>,
    changed: Condvar,
    /// Wakes the first thread of the mount.
    waker: Arc<Waker>,
}

struct State {
    /// Whether a rest is due.
    rest: bool,
    /// When to watch. None: never again.
    due: Option<Instant>,
    is_there: bool,
    ended: bool,
}

impl State {
    fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }
}

impl Watcher {
    /// Watches first at once.
    pub fn new(waker: Arc<Waker>) -> Self {
        let state = State { rest: false, due: Some(Instant::now()), is_there: false, ended: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), waker }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a rest.
    pub fn ask(&self) {
        let mut state = self.state();
        if std::mem::replace(&mut state.rest, true) {
            return;
        }
        if state.is_there { self.changed.notify_all() } else { self.waker.wake() }
    }

    /// When a thread has to be there. None: not before [`Watcher::ask`], or it is there.
    pub fn due(&self) -> Option<Instant> {
        let state = self.state();
        state.due.filter(|_| !state.is_there)
    }

    /// Whether to start the thread. If it cannot start, the caller calls [`Watcher::unclaim`].
    pub fn claim(&self) -> bool {
        let mut state = self.state();
        let is_needed = !state.is_there && !state.ended && (state.rest || state.is_due());
        state.is_there |= is_needed;
        is_needed
    }

    /// Notes that the thread is not there.
    pub fn unclaim(&self) {
        self.state().is_there = false;
    }

    /// The thread.
    pub fn run<D: FrontEnd>(&self, seat: &Seat<D>) {
        loop {
            let state = self.state();
            let left = state.due.map_or(LINGER, |due| due.saturating_duration_since(Instant::now()).min(LINGER));
            let is_idle = |state: &mut State| !state.rest && !state.ended;
            let waited = self.changed.wait_timeout_while(state, left, is_idle);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
            let (rest, is_due) = (state.rest, state.is_due());
            if state.ended || !rest && !is_due {
                state.is_there = false;
                break;
            }
            state.rest = false;
            drop(state);
            if is_due {
                let due = Instant::now().checked_add(seat.present().watch());
                self.state().due = due;
            }
            if rest {
                seat.present().rest();
            }
        }
        self.waker.wake();
    }

    /// Ends the thread.
    pub fn stop(&self) {
        self.state().ended = true;
        self.changed.notify_all();
    }
}
