//! A scheme socket: requests wait in it for the daemon, and callers wait for their answers.
//!
//! A request may point into memory of its caller. So a caller waits once the daemon has read its
//! request: until the answer, or until no thread can still work on it. That is when the socket is
//! closed, or when every thread that ever read from it has ended. Then the caller gets ENODEV, and
//! nothing hangs.
//!
//! Lock order: [`Scheme::state`] is a leaf.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

use syscall::error::{EAGAIN, EBADFD, ECANCELED, EINTR, EINVAL, EIO, ENODEV, ENOENT, Error, Result, STR_ERROR};
use syscall::flag::EventFlags;
use syscall::schemev2::{Cqe, CqeOpcode, NewFdFlags, Opcode, Sqe, SqeFlags};

use super::{Description, lock};

/// An answer of a daemon.
pub(crate) enum Answer {
    /// A number or an error. `extra` has the flags of a new descriptor. With `notify_on_detach` the
    /// scheme wants a message when the descriptor of the request is closed.
    Regular { result: Result<usize>, extra: u8, notify_on_detach: bool },
    /// A descriptor of the daemon.
    Descriptor(Arc<Description>),
    /// Several descriptors. No filesystem answers so.
    Descriptors,
}

impl Answer {
    fn error(errno: i32) -> Self {
        Self::Regular { result: Err(Error::new(errno)), extra: 0, notify_on_detach: false }
    }

    /// Returns the number.
    ///
    /// # Errors
    ///
    /// - EIO: the scheme answered with a descriptor.
    /// - The errno of the answer.
    pub fn number(self) -> Result<usize> {
        match self {
            Self::Regular { result, .. } => result,
            Self::Descriptor(_) | Self::Descriptors => Err(Error::new(EIO)),
        }
    }
}

enum Call {
    /// In the queue.
    Waiting(Thread),
    /// The daemon has read it.
    Taken(Thread),
    Answered(Answer),
}

struct State {
    open: bool,
    queue: VecDeque<Sqe>,
    calls: HashMap<u32, Call>,
    /// The processes that made the calls.
    callers: HashMap<u32, usize>,
    /// The descriptors of a call that the scheme has not taken yet.
    descriptors: HashMap<u32, Vec<Arc<Description>>>,
    /// The calls with an interrupted caller, of which the scheme got a cancellation.
    canceling: HashSet<u32>,
    next_tag: u32,
    /// How many living threads have read from the socket.
    readers: usize,
    /// Events from the scheme, by the number of its file.
    events: HashMap<usize, EventFlags>,
}

/// One scheme, from the creation of its socket on.
pub(crate) struct Scheme {
    /// Tells schemes apart. It is also the `st_dev` of the system call fstat.
    pub id: u64,
    state: Mutex<State>,
    /// Notified at each request, and at the end of the socket.
    arrived: Condvar,
}

impl Scheme {
    pub fn new() -> Arc<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(16);
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            state: Mutex::new(State {
                open: true,
                queue: VecDeque::new(),
                calls: HashMap::new(),
                callers: HashMap::new(),
                descriptors: HashMap::new(),
                canceling: HashSet::new(),
                next_tag: 0,
                readers: 0,
                events: HashMap::new(),
            }),
            arrived: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Sends a request with a new tag, and waits for the answer.
    ///
    /// # Errors
    ///
    /// - ENODEV: the daemon is gone, or ends meanwhile.
    pub fn call(&self, sqe: Sqe) -> Result<Answer> {
        self.call_with(sqe, Vec::new())
    }

    /// As [`Scheme::call`], with descriptors for the scheme. Those that it does not take are closed
    /// with the answer.
    pub fn call_with(&self, sqe: Sqe, descriptors: Vec<Arc<Description>>) -> Result<Answer> {
        let tag = self.begin(sqe, descriptors)?;
        self.finish(tag)
    }

    /// Sends the request of [`Scheme::call_with`]. Returns its tag.
    pub fn begin(&self, mut sqe: Sqe, descriptors: Vec<Arc<Description>>) -> Result<u32> {
        {
            let mut state = self.state();
            if !state.open {
                return Err(Error::new(ENODEV));
            }
            while state.calls.contains_key(&state.next_tag) {
                state.next_tag = state.next_tag.wrapping_add(1);
            }
            sqe.tag = state.next_tag;
            state.next_tag = state.next_tag.wrapping_add(1);
            state.calls.insert(sqe.tag, Call::Waiting(thread::current()));
            state.callers.insert(sqe.tag, sqe.caller as usize);
            if !descriptors.is_empty() {
                state.descriptors.insert(sqe.tag, descriptors);
            }
            state.queue.push_back(sqe);
        }
        self.arrived.notify_one();
        Ok(sqe.tag)
    }

    /// Waits for the answer to the request of [`Scheme::begin`], in the same thread.
    pub fn finish(&self, tag: u32) -> Result<Answer> {
        loop {
            {
                let mut state = self.state();
                match state.calls.remove(&tag) {
                    Some(Call::Answered(answer)) => {
                        state.callers.remove(&tag);
                        state.canceling.remove(&tag);
                        let left = state.descriptors.remove(&tag);
                        drop(state);
                        drop(left);
                        return Ok(answer);
                    }
                    Some(waiting) => state.calls.insert(tag, waiting),
                    None => return Err(Error::new(EBADFD)),
                };
            }
            thread::park();
        }
    }

    /// Interrupts a process as a signal does. The scheme gets a cancellation of each of its calls,
    /// and the process waits on for the answers.
    pub fn interrupt(&self, pid: usize) {
        {
            let mut state = self.state();
            let State { queue, calls, callers, canceling, .. } = &mut *state;
            for (tag, _) in callers.iter().filter(|(_, caller)| **caller == pid) {
                if !matches!(calls.get(tag), Some(Call::Answered(_)) | None) && canceling.insert(*tag) {
                    let opcode = Opcode::Cancel as u8;
                    queue.push_back(Sqe { opcode, sqe_flags: SqeFlags::ONEWAY, tag: *tag, ..Sqe::default() });
                }
            }
        }
        self.arrived.notify_all();
    }

    /// Sends a message without an answer. It is lost if the daemon is gone.
    pub fn send(&self, sqe: Sqe) {
        {
            let mut state = self.state();
            if !state.open {
                return;
            }
            state.queue.push_back(sqe);
        }
        self.arrived.notify_one();
    }

    /// Takes up to `max` requests, at least one. It takes none only at the end of the socket.
    ///
    /// # Errors
    ///
    /// - EAGAIN: there is none, and `nonblock` is set.
    pub fn read(self: &Arc<Self>, max: usize, nonblock: bool) -> Result<Vec<Sqe>> {
        self.count_reader();
        let mut state = self.state();
        while state.queue.is_empty() && state.open {
            if nonblock {
                return Err(Error::new(EAGAIN));
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let State { queue, calls, .. } = &mut *state;
        let taken: Vec<Sqe> = queue.drain(..max.min(queue.len())).collect();
        for sqe in &taken {
            if expects_answer(sqe)
                && let Some(call) = calls.get_mut(&sqe.tag)
                && let Call::Waiting(thread) = call
            {
                *call = Call::Taken(thread.clone());
            }
        }
        Ok(taken)
    }

    /// Takes one message of the daemon. `take_descriptor` removes a descriptor from the daemon's
    /// table.
    ///
    /// # Errors
    ///
    /// - EBADFD: no request has the tag.
    /// - EINVAL: the message has no meaning, the request has its answer already, or the daemon has
    ///   no such descriptor.
    pub fn write(&self, cqe: &Cqe, take_descriptor: impl FnOnce(usize) -> Option<Arc<Description>>) -> Result<()> {
        let regular = |notify_on_detach| Answer::Regular {
            result: number_or_error(cqe.result),
            extra: cqe.extra_raw[0],
            notify_on_detach,
        };
        let answer = match CqeOpcode::try_from_raw(cqe.flags & 0b111).ok_or(Error::new(EINVAL))? {
            CqeOpcode::RespondRegular => regular(false),
            CqeOpcode::RespondAndNotifyOnDetach => regular(true),
            CqeOpcode::RespondWithFd => {
                Answer::Descriptor(take_descriptor(cqe.result as usize).ok_or(Error::new(EINVAL))?)
            }
            CqeOpcode::RespondWithMultipleFds => Answer::Descriptors,
            CqeOpcode::SendFevent => {
                let flags = EventFlags::from_bits(cqe.tag as usize).ok_or(Error::new(EINVAL))?;
                *self.state().events.entry(cqe.result as usize).or_default() |= flags;
                return Ok(());
            }
            // The old way to take descriptors. `redox-scheme` does not use it.
            CqeOpcode::ObtainFd => return Err(Error::new(EINVAL)),
        };
        self.answer(cqe.tag, answer)
    }

    /// Returns the descriptors of a call that has no answer yet.
    ///
    /// # Errors
    ///
    /// - EINVAL: there is no such call.
    /// - ENOENT: the call has its answer.
    pub fn obtain(&self, tag: u32) -> Result<Vec<Arc<Description>>> {
        let mut state = self.state();
        match state.calls.get(&tag) {
            None => Err(Error::new(EINVAL)),
            Some(Call::Answered(_)) => Err(Error::new(ENOENT)),
            Some(_) => Ok(state.descriptors.remove(&tag).unwrap_or_default()),
        }
    }

    fn answer(&self, tag: u32, mut answer: Answer) -> Result<()> {
        let mut state = self.state();
        if let Answer::Regular { result: Err(error), .. } = &mut answer {
            error.errno = match (error.errno, state.canceling.contains(&tag)) {
                (ECANCELED, true) => EINTR,
                // Only an interrupted caller may get EINTR.
                (EINTR, false) => EIO,
                (errno, _) => errno,
            };
        }
        let Some(call) = state.calls.get_mut(&tag) else {
            drop(state);
            return Err(Error::new(EBADFD));
        };
        let (Call::Waiting(thread) | Call::Taken(thread)) = call else {
            drop(state);
            return Err(Error::new(EINVAL));
        };
        let thread = thread.clone();
        *call = Call::Answered(answer);
        drop(state);
        thread.unpark();
        Ok(())
    }

    /// Returns the events for a file since the last call.
    pub fn take_events(&self, number: usize) -> EventFlags {
        self.state().events.remove(&number).unwrap_or_default()
    }

    /// Ends the requests. The daemon reads the end of the socket next. It can still answer the
    /// requests that it has read.
    pub fn close(&self) {
        self.end(|call| matches!(call, Call::Waiting(_)));
    }

    /// As [`Scheme::close`], and the daemon answers no more requests.
    pub fn abandon(&self) {
        self.end(|call| !matches!(call, Call::Answered(_)));
    }

    fn end(&self, fails: impl Fn(&Call) -> bool) {
        let mut state = self.state();
        state.open = false;
        state.queue.clear();
        for call in state.calls.values_mut().filter(|call| fails(call)) {
            if let Call::Waiting(thread) | Call::Taken(thread) = call {
                let thread = thread.clone();
                *call = Call::Answered(Answer::error(ENODEV));
                thread.unpark();
            }
        }
        drop(state);
        self.arrived.notify_all();
    }

    /// Notes that the current thread serves this scheme, until the thread ends.
    fn count_reader(self: &Arc<Self>) {
        thread_local! {
            static SERVING: RefCell<HashMap<u64, Reader>> = RefCell::new(HashMap::new());
        }
        SERVING.with_borrow_mut(|serving| {
            serving.entry(self.id).or_insert_with(|| {
                self.state().readers += 1;
                Reader(self.clone())
            });
        });
    }
}

/// A thread that has read from the socket of a scheme.
struct Reader(Arc<Scheme>);

impl Drop for Reader {
    fn drop(&mut self) {
        let last = {
            let mut state = self.0.state();
            state.readers -= 1;
            state.readers == 0
        };
        if last {
            self.0.abandon();
        }
    }
}

/// Whether a caller waits for the answer to this request.
pub(super) fn expects_answer(sqe: &Sqe) -> bool {
    !sqe.sqe_flags.contains(SqeFlags::ONEWAY)
        && !matches!(
            Opcode::try_from_raw(sqe.opcode),
            Some(Opcode::CloseMsg | Opcode::Detach | Opcode::Cancel | Opcode::Msync)
        )
}

/// Converts the answer of a scheme as `Error::demux` does, but without its overflow check: the
/// kernel is built without one.
fn number_or_error(result: u64) -> Result<usize> {
    let errno = (result as i32).wrapping_neg();
    let is_error = (1..STR_ERROR.len() as i32).contains(&errno);
    if is_error { Err(Error::new(errno)) } else { Ok(result as usize) }
}

/// Reads the flags of a new descriptor from an answer.
///
/// # Errors
///
/// - EINVAL: a flag does not exist.
pub(super) fn new_fd_flags(extra: u8) -> Result<NewFdFlags> {
    NewFdFlags::from_bits(extra).ok_or(Error::new(EINVAL))
}
