//! The turn: the right to take the next request. One of several threads has it.
//!
//! A thread keeps the turn while it answers from memory, so such a request costs no switch to
//! another thread. Before a thread waits for another one, it passes the turn on. It does so before
//! a call of a layer in another process, at a taken lock, and before a log line. So a slow request
//! delays no request that needs no wait.
//!
//! Lock: that of a turn is a leaf.

use std::cell::RefCell;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::thread::{self, Thread};

thread_local! {
    /// The turn of this thread, if it has one.
    static HELD: RefCell<Option<Turn>> = const { RefCell::new(None) };
}

/// The turn of a group of threads. A clone is the same turn.
#[derive(Clone, Default)]
pub struct Turn(Arc<RwLock<State>>);

#[derive(Default)]
struct State {
    is_held: bool,
    has_ended: bool,
    /// The threads that want it. The last one is woken first: its data is still in the processor's
    /// caches.
    waiting: Vec<Thread>,
}

impl Turn {
    /// Waits until this thread has the turn, unless it still has it. Returns false at the end.
    pub fn take(&self) -> bool {
        let keeps = HELD.with_borrow(Option::is_some);
        loop {
            let mut state = self.state();
            if state.has_ended {
                return false;
            }
            if keeps {
                return true;
            }
            if !state.is_held {
                state.is_held = true;
                break;
            }
            let this = thread::current();
            if state.waiting.iter().all(|thread| thread.id() != this.id()) {
                state.waiting.push(this);
            }
            drop(state);
            thread::park();
        }
        HELD.set(Some(self.clone()));
        true
    }

    /// Ends the turn: no thread gets it any more.
    pub fn end(&self) {
        let mut state = self.state();
        state.has_ended = true;
        for thread in state.waiting.drain(..) {
            thread.unpark();
        }
    }

    fn state(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes the turn on, if this thread has one. A thread calls this before it waits for another
/// thread or process.
pub fn pass() {
    if let Some(turn) = HELD.take() {
        let mut state = turn.state();
        state.is_held = false;
        let next = state.waiting.pop();
        drop(state);
        if let Some(thread) = next {
            thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_keeps_the_turn_until_it_passes_it_on() {
        let turn = Turn::default();
        assert!(turn.take() && turn.take());
        let (says, told) = mpsc::channel();
        let (go, wait) = mpsc::channel::<()>();
        let theirs = turn.clone();
        let other = thread::spawn(move || {
            let took = theirs.take();
            says.send(took).unwrap();
            wait.recv().unwrap();
            pass();
            wait.recv().unwrap();
            theirs.take()
        });
        assert!(turn.take());
        assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
        pass();
        assert_eq!(told.recv(), Ok(true));
        go.send(()).unwrap();
        assert!(turn.take(), "it was passed back");
        turn.end();
        go.send(()).unwrap();
        assert!(!other.join().unwrap() && !turn.take());
        pass();
    }

    #[test]
    fn the_end_wakes_all_waiting_threads() {
        let turn = Turn::default();
        turn.take();
        thread::scope(|scope| {
            let others: Vec<_> = (0..3).map(|_| scope.spawn(|| turn.take())).collect();
            turn.end();
            assert!(others.into_iter().all(|other| !other.join().unwrap()));
        });
        pass();
    }
}
