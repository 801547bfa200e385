//! The request loop: several threads take requests from one socket, in turn, and answer them side
//! by side.
//!
//! A thread that has read a request keeps the turn while it answers from memory. It offers the turn
//! before it waits for a layer, and passes it on before it waits for another thread
//! ([`crate::turn`]). So a slow request delays no other for long, and a quick one costs no switch
//! to another thread.
//!
//! There are two threads at first. A thread that takes the turn over, and leaves none that waits,
//! starts another one. Every switch of the kernel looks at all threads, so each one costs time.
//!
//! Some entries of the kernel are no requests: a descriptor was closed, a caller has given up. The
//! thread that reads one handles it before it reads the next entry, so no later request can
//! overtake it. Only work on mapped files may take long, and a thread does it as it does a request.
//! The number of a closed handle is never reused, so nothing depends on when that is done.
//!
//! Locks, in the order in which a thread takes them: `Queue::in_hand`, then those of `asking`. A
//! thread takes the scheme's own locks for these entries, and to find the subject of a question.
//! The turn is no lock: a thread passes it on before it waits for one.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};

use libredox::Fd;
use libredox::flag::O_NONBLOCK;
use log::{error, warn};
use redox_scheme::scheme::SchemeSync;
use redox_scheme::{CallRequest, Id, RequestKind, Response, SignalBehavior, Socket};
use syscall::error::{EAGAIN, Result};
use syscall::flag::F_SETFL;

use super::socket_workers::{Asking, Request};
use crate::layer::Layer;
use crate::overlay::Cancel;
use crate::scheme::{OverlayScheme, answer, is_connect};
use crate::sync::Lock;
use crate::turn::{self, Taken, Turn};

/// How many requests run at once, at most.
const THREADS: usize = 4;

/// Ends the service of a scheme from another thread.
pub struct Stop {
    asked: AtomicBool,
    /// A descriptor of the scheme itself: it sends a request to a thread that waits for one.
    own: Fd,
}

impl Stop {
    /// Makes it for the service of `scheme` on `socket`.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
    pub fn new<L: Layer>(socket: &Socket, scheme: &mut OverlayScheme<L>) -> Result<Self> {
        let own = Fd::new(socket.create_this_scheme_fd(0, scheme.scheme_root()?, 0, 0)?);
        Ok(Self { asked: AtomicBool::new(false), own })
    }

    /// Makes `serve` answer the pending requests and then end. Waits until it knows.
    pub fn stop(&self) {
        self.asked.store(true, Ordering::Release);
        // The request fails, as nothing has this name. It only has to arrive.
        let _ = self.own.dup(b"stop");
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }
}

/// The parts that all threads share.
struct Queue<'s, L: Layer> {
    socket: &'s Socket,
    stop: &'s Stop,
    asking: Asking<L>,
    /// The turn to read.
    turn: Turn,
    /// How many threads there are.
    threads: AtomicUsize,
    /// The calls in progress.
    in_hand: Lock<BTreeMap<Id, Cancel>>,
}

/// Work for the thread that has read a request. It may take long.
enum Work {
    Call(CallRequest, Cancel),
    /// Closes a handle that has mapped something.
    Close(usize),
    /// Writes the clients' writes to mapped files to the files.
    WriteBack,
}

/// Answers the requests of a socket until it ends, or `stop` is called. It calls `begin` before it
/// reads the first one, when the threads exist. An error of `begin`, or of the socket, ends the
/// service. Bad requests of clients are no such error: see [`answer`].
pub fn serve<L: Layer, E: From<syscall::Error>>(
    socket: &Arc<Socket>,
    scheme: &OverlayScheme<L>,
    stop: &Stop,
    begin: impl FnOnce() -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let asking = Asking::new(socket, scheme);
    let queue = Queue {
        socket,
        stop,
        asking,
        turn: Turn::default(),
        threads: AtomicUsize::new(1),
        in_hand: Lock::new(BTreeMap::new()),
    };
    thread::scope(|scope| {
        let mut worker = Worker { queue: &queue, scope, scheme: scheme.clone(), started: Vec::new() };
        queue.turn.take();
        let begun = Begun(&queue.turn);
        worker.start();
        begin()?;
        mem::forget(begun);
        let ended = worker.work();
        queue.asking.end();
        scheme.write_back();
        ended.map_err(E::from)
    })
}

/// Ends the turn if the service does not begin, also by a panic, so that no thread waits in vain.
struct Begun<'t>(&'t Turn);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.end();
        turn::pass();
    }
}

/// A thread.
struct Worker<'scope, 'env, L: Layer> {
    queue: &'env Queue<'env, L>,
    scope: &'scope Scope<'scope, 'env>,
    scheme: OverlayScheme<L>,
    /// The threads that this one has started.
    started: Vec<ScopedJoinHandle<'scope, Result<()>>>,
}

impl<L: Layer> Worker<'_, '_, L> {
    /// Takes requests and answers them until the end. Waits for the threads that it has started.
    fn work(mut self) -> Result<()> {
        let mut ended = self.serve();
        for other in self.started {
            ended = ended.and(other.join().unwrap_or(Ok(())));
        }
        ended
    }

    fn serve(&mut self) -> Result<()> {
        let queue = self.queue;
        loop {
            match queue.turn.take() {
                Taken::Ended => return Ok(()),
                Taken::Alone => self.start(),
                Taken::Yes => {}
            }
            if let Some(work) = queue.take(&mut self.scheme).inspect_err(|_| queue.turn.end())? {
                queue.finish(work, &mut self.scheme);
            }
        }
    }

    /// Starts a thread that waits for the turn, if there may be one more.
    fn start(&mut self) {
        let (queue, scope) = (self.queue, self.scope);
        let more = |threads| (threads < THREADS).then_some(threads + 1);
        if queue.threads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            return;
        }
        let other = Worker { queue, scope, scheme: self.scheme.clone(), started: Vec::new() };
        match thread::Builder::new().spawn_scoped(scope, || other.work()) {
            Ok(thread) => self.started.push(thread),
            Err(error) => {
                queue.threads.fetch_sub(1, Ordering::Relaxed);
                warn!("no thread can be started, so slow requests delay others: {error}");
            }
        }
    }
}

impl<L: Layer> Queue<'_, L> {
    /// Does the work, and answers.
    fn finish(&self, work: Work, scheme: &mut OverlayScheme<L>) {
        let response = match work {
            Work::Call(call, cancel) => {
                let id = call.request_id();
                let response = cancel.during(|| answer(call, scheme));
                // Before the kernel can reuse the number.
                self.in_hand.lock().remove(&id);
                response
            }
            Work::Close(id) => return scheme.on_close(id),
            Work::WriteBack => return scheme.write_back(),
        };
        match self.socket.write_response(response, SignalBehavior::Restart) {
            Ok(true) => {}
            Ok(false) => self.turn.end(),
            // The client may be gone.
            Err(error) => warn!("the kernel did not take a response: {error}"),
        }
    }

    /// Reads a message of the kernel, in the turn. None at the end.
    fn read(&self) -> Result<Option<redox_scheme::Request>> {
        if self.stop.is_asked() {
            // The thread answers pending requests, and waits for no more.
            self.socket.inner().fcntl(F_SETFL, O_NONBLOCK as usize)?;
        }
        match self.socket.next_request(SignalBehavior::Restart) {
            Err(error) if error.errno == EAGAIN && self.stop.is_asked() => Ok(None),
            request => request.inspect_err(|error| error!("the socket of the scheme failed: {error}")),
        }
    }

    /// Reads a request, in the turn. Returns its work, or none if there is nothing left to do.
    fn take(&self, scheme: &mut OverlayScheme<L>) -> Result<Option<Work>> {
        let Some(request) = self.read()? else {
            self.turn.end();
            return Ok(None);
        };
        match request.kind() {
            RequestKind::Call(call) if is_connect(&call) => self.asking.start(Request::Connect(call)),
            RequestKind::SendFd(request) => self.asking.start(Request::Bind(request)),
            RequestKind::Call(call) => {
                let cancel = Cancel::default();
                self.in_hand.lock().insert(call.request_id(), cancel.clone());
                return Ok(Some(Work::Call(call, cancel)));
            }
            RequestKind::RecvFd(request) => {
                let response = Response::open_dup_like(scheme.on_recvfd(&request), request);
                if let Err(error) = self.socket.write_response(response, SignalBehavior::Restart) {
                    warn!("the kernel did not take a response: {error}");
                }
            }
            RequestKind::Cancellation(request) => match self.in_hand.lock().get(&request.id) {
                Some(cancel) => cancel.cancel(),
                None => self.asking.cancel(request.id),
            },
            RequestKind::OnClose { id } if scheme.has_mapped(id) => return Ok(Some(Work::Close(id))),
            RequestKind::OnClose { id } => scheme.on_close(id),
            RequestKind::OnDetach { id, pid } => scheme.detach(id, pid),
            // The entry does not name the file.
            RequestKind::MsyncMsg => return Ok(Some(Work::WriteBack)),
            // These need no work.
            RequestKind::MunmapMsg | RequestKind::MmapMsg => {}
        }
        Ok(None)
    }
}
