//! The turn: the right to take the next request. One of several threads has it.
//!
//! A thread keeps the turn while it answers from memory, so such a request costs no switch to
//! another thread. Before a call of a layer in another process, the thread offers the turn: another
//! thread takes it if the request lasts long. So a short call costs no switch either. A switch is
//! dear on Redox. Before a call that takes long, at a taken lock, and before a log line, the thread
//! passes the turn on at once. Either way a slow request delays others by at most two ticks.
//!
//! While there are offers, one of the waiting threads watches. It looks once a tick, and takes the
//! turn if the offer is the same as at the last look. A tick without an offer ends the watch. The
//! watching thread sleeps: on Redox a wait with a time limit leaves an entry in the kernel.
//!
//! Lock: that of a turn is a leaf.

use std::cell::RefCell;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::thread::{self, Thread, ThreadId};
use std::time::Duration;

/// How often the watching thread looks.
const TICK: Duration = Duration::from_millis(4);

thread_local! {
    /// The turn of this thread, if it has one. After an offer another thread may have taken it.
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

struct Held {
    turn: Turn,
    is_offered: bool,
}

/// Whether a thread has taken the turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// No: the turn has ended.
    Ended,
    /// Yes.
    Yes,
    /// Yes, from another thread or as the first one, and no other thread waits for it.
    Alone,
}

/// The turn of a group of threads. A clone is the same turn.
#[derive(Clone, Default)]
pub struct Turn(Arc<RwLock<State>>);

#[derive(Default)]
struct State {
    /// The thread that has the turn.
    holder: Option<ThreadId>,
    /// Whether that thread offers it.
    is_offered: bool,
    /// How often the turn was offered.
    offers: u64,
    has_ended: bool,
    /// The threads that sleep until they are woken. The last one is woken first: its data is still
    /// in the processor's caches.
    waiting: Vec<Thread>,
    /// The thread that watches.
    watcher: Option<ThreadId>,
}

impl Turn {
    /// Waits until this thread has the turn, unless it still has it.
    pub fn take(&self) -> Taken {
        let this = thread::current();
        let taken = loop {
            let mut state = self.state();
            if state.has_ended {
                return Taken::Ended;
            }
            if state.holder.is_none_or(|holder| holder == this.id()) {
                break state.give_to(this.id());
            }
            if state.is_offered && state.watcher.is_none() {
                state.watcher = Some(this.id());
            }
            if state.watcher == Some(this.id()) {
                if let Some(taken) = self.watch(state) {
                    break taken;
                }
                continue;
            }
            if state.waiting.iter().all(|thread| thread.id() != this.id()) {
                state.waiting.push(this.clone());
            }
            drop(state);
            thread::park();
        };
        HELD.with_borrow_mut(|held| match held {
            Some(held) => held.is_offered = false,
            None => *held = Some(Held { turn: self.clone(), is_offered: false }),
        });
        taken
    }

    /// Waits for a tick. Takes the turn if the same offer stands throughout.
    fn watch(&self, state: RwLockWriteGuard<'_, State>) -> Option<Taken> {
        let offers = state.offers;
        drop(state);
        thread::sleep(TICK);
        let mut state = self.state();
        if state.offers != offers {
            return None;
        }
        if state.is_offered {
            return Some(state.give_to(thread::current().id()));
        }
        state.watcher = None;
        None
    }

    /// Lets another thread take the turn if this one stays away for long.
    fn offer(&self) {
        let mut state = self.state();
        state.is_offered = true;
        state.offers += 1;
        if state.watcher.is_none()
            && let Some(thread) = state.waiting.pop()
        {
            state.watcher = Some(thread.id());
            drop(state);
            thread.unpark();
        }
    }

    /// Ends this thread's turn, unless another thread has taken it.
    fn pass(&self) {
        let mut state = self.state();
        if state.holder != Some(thread::current().id()) {
            return;
        }
        state.holder = None;
        state.is_offered = false;
        let next = state.waiting.pop();
        drop(state);
        if let Some(thread) = next {
            thread.unpark();
        }
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

impl State {
    fn give_to(&mut self, thread: ThreadId) -> Taken {
        self.is_offered = false;
        if self.holder == Some(thread) {
            return Taken::Yes;
        }
        self.holder = Some(thread);
        self.waiting.retain(|waiting| waiting.id() != thread);
        self.watcher.take_if(|watcher| *watcher == thread);
        match self.waiting.is_empty() && self.watcher.is_none() {
            true => Taken::Alone,
            false => Taken::Yes,
        }
    }
}

/// Offers the turn, if this thread has it, before a call to another process. Another thread takes
/// it if the request lasts long.
pub fn offer() {
    HELD.with_borrow_mut(|held| {
        if let Some(held) = held
            && !held.is_offered
        {
            held.is_offered = true;
            held.turn.offer();
        }
    });
}

/// Passes the turn on, if this thread has one, before it waits long for another thread or process.
pub fn pass() {
    if let Some(held) = HELD.take() {
        held.turn.pass();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_keeps_the_turn_until_it_passes_it_on() {
        let turn = Turn::default();
        assert_eq!((turn.take(), turn.take()), (Taken::Alone, Taken::Yes));
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
        assert_eq!(turn.take(), Taken::Yes);
        assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
        pass();
        assert_eq!(told.recv(), Ok(Taken::Alone), "the first thread does not wait any more");
        go.send(()).unwrap();
        assert_eq!(turn.take(), Taken::Alone, "it was passed back");
        turn.end();
        go.send(()).unwrap();
        assert_eq!((other.join().unwrap(), turn.take()), (Taken::Ended, Taken::Ended));
        pass();
    }

    #[test]
    fn an_offered_turn_is_taken_from_a_thread_that_stays_away() {
        let turn = Turn::default();
        assert_eq!(turn.take(), Taken::Alone);
        let (says, told) = mpsc::channel();
        let theirs = turn.clone();
        let other = thread::spawn(move || {
            while theirs.take() != Taken::Ended {
                says.send(()).unwrap();
                offer();
                pass();
            }
        });
        offer();
        assert_eq!(told.recv(), Ok(()), "nothing but the offer lets the other thread go on");
        // The turn is the other thread's: neither of these changes that.
        offer();
        pass();
        assert_ne!(turn.take(), Taken::Ended);
        turn.end();
        pass();
        other.join().unwrap();
    }

    #[test]
    fn an_offer_is_over_when_the_thread_is_back() {
        let turn = Turn::default();
        turn.take();
        offer();
        assert!(turn.state().is_offered);
        turn.take();
        assert!(!turn.state().is_offered);
        pass();
    }

    #[test]
    fn the_end_wakes_all_waiting_threads() {
        let turn = Turn::default();
        turn.take();
        thread::scope(|scope| {
            let others: Vec<_> = (0..3).map(|_| scope.spawn(|| turn.take())).collect();
            turn.end();
            assert!(others.into_iter().all(|other| other.join().unwrap() == Taken::Ended));
        });
        pass();
    }
}
