//! Requests that wait for another daemon, which may never answer. Each waits in a thread of its
//! own.
//!
//! While it waits, such a thread holds no part of the scheme. So neither other requests nor the end
//! of the service wait for it. The thread that removes a request from the table answers it: its own
//! thread, or one that reads that the caller has given up. The kernel answers those that are left
//! at the end.
//!
//! Locks, in the order in which a thread takes them: `Askers::service`, then `Askers::waiting`, a
//! leaf. A thread takes the scheme's own locks under the first.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;

use crate::errno::{EAGAIN, ECANCELED, Result};
use libredox::Fd;
use log::warn;
use redox_scheme::scheme::IntoTag;
use redox_scheme::{CallRequest, Id, Response, SendFdRequest, SignalBehavior, Socket, Tag};

use crate::layer::Layer;
use crate::scheme::{OverlayScheme, give, path_of, token_of};
use crate::sync::{Lock, Shared};

/// How many threads may wait for requests of one user.
const THREADS_PER_USER: usize = 16;

/// A request that needs an answer of the scheme of a socket.
pub enum Request {
    /// Gives a socket in a message a name.
    Bind(SendFdRequest),
    /// Asks for the token of a socket.
    Connect(CallRequest),
}

/// The requests that wait. Clones share them.
pub struct Asking<L: Layer>(Arc<Askers<L>>);

struct Askers<L: Layer> {
    /// None after the end of the service.
    service: Shared<Option<Service<L>>>,
    waiting: Lock<Waiting>,
}

struct Service<L: Layer> {
    socket: Arc<Socket>,
    scheme: OverlayScheme<L>,
}

#[derive(Default)]
struct Waiting {
    last: u64,
    /// By a number that is never reused, unlike the kernel's: a thread may get its answer long
    /// after its request got one.
    requests: HashMap<u64, Request>,
    /// How many threads wait, by user.
    threads: HashMap<u32, usize>,
}

impl<L: Layer> Asking<L> {
    pub fn new(socket: &Arc<Socket>, scheme: &OverlayScheme<L>) -> Self {
        let service = Service { socket: socket.clone(), scheme: scheme.clone() };
        Asking(Arc::new(Askers { service: Shared::new(Some(service)), waiting: Lock::new(Waiting::default()) }))
    }

    /// Asks the other scheme for the answer to a request, in a new thread. The request fails with
    /// EAGAIN if its user has too many waiting requests, or no thread can start.
    pub fn start(&self, request: Request) {
        let service = self.0.service.read();
        let Some(Service { socket, scheme }) = &*service else {
            return;
        };
        let (user, subject) = match request.subject(socket, scheme) {
            Ok(found) => found,
            Err(error) => return respond(socket, Response::new(Err(error.into()), request)),
        };
        let question = request.question();
        let number = match self.0.waiting.lock().enter(user, request) {
            Ok(number) => number,
            Err(request) => return respond(socket, Response::err(EAGAIN, request)),
        };
        let askers = self.0.clone();
        let thread = thread::Builder::new().spawn(move || {
            let told = question(&subject);
            askers.waiting.lock().leave(user);
            askers.answer(number, &subject, told);
        });
        if thread.is_err() {
            let mut waiting = self.0.waiting.lock();
            waiting.leave(user);
            if let Some(request) = waiting.requests.remove(&number) {
                respond(socket, Response::err(EAGAIN, request));
            }
        }
    }

    /// Answers ECANCELED to a waiting request after its caller has given up.
    pub fn cancel(&self, id: Id) {
        let service = self.0.service.read();
        let given_up = self.0.waiting.lock().requests.extract_if(|_, request| request.req_id() == id).next();
        if let (Some(Service { socket, .. }), Some((_, request))) = (&*service, given_up) {
            respond(socket, Response::err(ECANCELED, request));
        }
    }

    /// Ends all answers. Waits for answers in progress, but for no other daemon.
    pub fn end(&self) {
        let _service = self.0.service.write().take();
    }
}

impl<L: Layer> Askers<L> {
    /// Answers the request `number`, if it still waits, with the reply about its subject.
    fn answer(&self, number: u64, subject: &Arc<Fd>, told: Result<Vec<u8>>) {
        let service = self.service.read();
        let Some(Service { socket, scheme }) = &*service else {
            return;
        };
        let request = self.waiting.lock().requests.remove(&number);
        if let Some(request) = request {
            let answer = told.and_then(|told| match &request {
                Request::Bind(sent) => scheme.bind(sent, subject.clone(), &told),
                Request::Connect(call) => give(call, &told),
            });
            respond(socket, Response::new(answer.map_err(Into::into), request));
        }
    }
}

impl Waiting {
    /// Adds a request and its thread. Returns its number, or the request itself if its user has too
    /// many threads.
    fn enter(&mut self, user: u32, request: Request) -> std::result::Result<u64, Request> {
        let threads = self.threads.entry(user).or_default();
        if *threads == THREADS_PER_USER {
            return Err(request);
        }
        *threads += 1;
        self.last += 1;
        self.requests.insert(self.last, request);
        Ok(self.last)
    }

    /// Removes a thread of the user.
    fn leave(&mut self, user: u32) {
        if let Some(threads) = self.threads.get_mut(&user) {
            *threads -= 1;
            if *threads == 0 {
                self.threads.remove(&user);
            }
        }
    }
}

impl Request {
    /// Returns the user of the request, and its socket.
    fn subject<L: Layer>(&self, socket: &Socket, scheme: &OverlayScheme<L>) -> Result<(u32, Arc<Fd>)> {
        match self {
            Request::Bind(request) => Ok((request.caller().uid, scheme.sent(socket, request)?)),
            Request::Connect(call) => scheme.bound(call),
        }
    }

    /// Returns the question to the scheme of the socket.
    fn question(&self) -> fn(&Fd) -> Result<Vec<u8>> {
        match self {
            Request::Bind(_) => path_of,
            Request::Connect(_) => token_of,
        }
    }
}

impl IntoTag for Request {
    fn into_tag(self) -> Tag {
        match self {
            Request::Bind(request) => request.into_tag(),
            Request::Connect(call) => call.into_tag(),
        }
    }

    fn req_id(&self) -> Id {
        match self {
            Request::Bind(request) => request.req_id(),
            Request::Connect(call) => call.req_id(),
        }
    }
}

fn respond(socket: &Socket, response: Response) {
    if let Err(error) = socket.write_response(response, SignalBehavior::Restart) {
        // The client may be gone.
        warn!("the kernel did not take a response: {error}");
    }
}
