//! The request loop: several threads take requests from one socket, in turn, and answer them side
//! by side.
//!
//! A thread that has read a request keeps the turn while it answers from memory, and passes it on
//! before it waits for a layer or for another thread ([`crate::turn`]). So nobody waits for what
//! takes another long, and a request that needs no layer costs no switch to another thread. What
//! the kernel only tells (a descriptor was closed, a caller has given up) is dealt with by whoever
//! reads it, before anything behind it is read: no later request can overtake it. Only what has to
//! do with mapped files may take long, and is work as a request is; the number of a closed handle
//! is never given again, so nothing depends on when that is done.
//!
//! Locks, in the order in which they are taken: `Queue::in_hand`, then those of `asking`. The
//! scheme's own are taken by what the kernel only tells, and to find out what is to be asked. The
//! turn is no lock: who has it passes it on before he waits for one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{mem, thread};

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
use crate::turn::{self, Turn};

/// How many requests are answered at once.
const THREADS: usize = 4;

/// What ends the service of a scheme from another thread.
pub struct Stop {
    asked: AtomicBool,
    /// A descriptor of the scheme itself, through which whoever waits for a request is given one.
    own: Fd,
}

impl Stop {
    /// That of the service of `scheme` on `socket`.
    pub fn new<L: Layer>(socket: &Socket, scheme: &mut OverlayScheme<L>) -> Result<Self> {
        let own = Fd::new(socket.create_this_scheme_fd(0, scheme.scheme_root()?, 0, 0)?);
        Ok(Self { asked: AtomicBool::new(false), own })
    }

    /// Has `serve` answer what there is and then end. Waits until it knows.
    pub fn stop(&self) {
        self.asked.store(true, Ordering::Release);
        // It is refused, as there is nothing that is called so. What counts is that it comes.
        let _ = self.own.dup(b"stop");
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }
}

/// What the threads share.
struct Queue<'s, L: Layer> {
    socket: &'s Socket,
    stop: &'s Stop,
    asking: Asking<L>,
    /// Who reads.
    turn: Turn,
    /// The calls that are being answered.
    in_hand: Lock<HashMap<Id, Cancel>>,
}

/// What is to be done, by who has read a request, and may take long.
enum Work {
    Call(CallRequest, Cancel),
    /// To close a handle that has mapped something.
    Close(usize),
    /// To write back what was written to mapped files.
    WriteBack,
}

/// Answers the requests of a socket until it ends or `stop` is asked for. Before the first is read,
/// when the threads are there, `begin` is called; its error ends it all, as an error of the socket
/// does. What clients can do is no such error: see [`answer`].
pub fn serve<L: Layer, E: From<syscall::Error>>(
    socket: &Arc<Socket>,
    scheme: &OverlayScheme<L>,
    stop: &Stop,
    begin: impl FnOnce() -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let asking = Asking::new(socket, scheme);
    let queue = Queue { socket, stop, asking, turn: Turn::default(), in_hand: Lock::new(HashMap::new()) };
    thread::scope(|scope| {
        let queue = &queue;
        queue.turn.take();
        let begun = Begun(&queue.turn);
        let others: Vec<_> = (1..THREADS)
            .map(|_| {
                let mut scheme = scheme.clone();
                scope.spawn(move || queue.work(&mut scheme))
            })
            .collect();
        begin()?;
        mem::forget(begun);
        let served = queue.work(&mut scheme.clone());
        let all = others.into_iter().map(|other| other.join().unwrap_or(Ok(()))).chain([served]);
        let ended = all.collect::<Vec<_>>().into_iter().collect::<Result<()>>();
        queue.asking.end();
        scheme.write_back();
        ended.map_err(E::from)
    })
}

/// Ends the turn if the service does not begin, also by a panic: nobody would wait in vain.
struct Begun<'t>(&'t Turn);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.end();
        turn::pass();
    }
}

impl<L: Layer> Queue<'_, L> {
    /// What each thread does.
    fn work(&self, scheme: &mut OverlayScheme<L>) -> Result<()> {
        while let Some(work) = self.take(scheme)? {
            self.finish(work, scheme);
        }
        Ok(())
    }

    /// Does what there is to do, and answers.
    fn finish(&self, work: Work, scheme: &mut OverlayScheme<L>) {
        let response = match work {
            Work::Call(call, cancel) => {
                let id = call.request_id();
                let response = cancel.during(|| answer(call, scheme));
                // Before the kernel can give the number to another.
                self.in_hand.lock().remove(&id);
                response
            }
            Work::Close(id) => return scheme.on_close(id),
            Work::WriteBack => return scheme.write_back(),
        };
        match self.socket.write_response(response, SignalBehavior::Restart) {
            Ok(true) => {}
            Ok(false) => self.turn.end(),
            // The client is gone, say.
            Err(error) => warn!("a response was not taken: {error}"),
        }
    }

    /// The next request that is to be answered. None at the end.
    fn take(&self, scheme: &mut OverlayScheme<L>) -> Result<Option<Work>> {
        while self.turn.take() {
            if self.stop.is_asked() {
                // What is there already is answered, and nothing more is waited for.
                self.socket.inner().fcntl(F_SETFL, O_NONBLOCK as usize)?;
            }
            let request = match self.socket.next_request(SignalBehavior::Restart) {
                Ok(Some(request)) => request,
                Ok(None) => {
                    self.turn.end();
                    continue;
                }
                Err(error) if error.errno == EAGAIN && self.stop.is_asked() => {
                    self.turn.end();
                    continue;
                }
                Err(error) => {
                    self.turn.end();
                    error!("the socket of the scheme failed: {error}");
                    return Err(error);
                }
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
                        warn!("a response was not taken: {error}");
                    }
                }
                RequestKind::Cancellation(request) => match self.in_hand.lock().get(&request.id) {
                    Some(cancel) => cancel.cancel(),
                    None => self.asking.cancel(request.id),
                },
                RequestKind::OnClose { id } => {
                    if scheme.has_mapped(id) {
                        return Ok(Some(Work::Close(id)));
                    }
                    scheme.on_close(id);
                }
                RequestKind::OnDetach { id, pid } => scheme.detach(id, pid),
                // It does not say which file is meant.
                RequestKind::MsyncMsg => return Ok(Some(Work::WriteBack)),
                // They ask for nothing.
                RequestKind::MunmapMsg | RequestKind::MmapMsg => {}
            }
        }
        Ok(None)
    }
}
