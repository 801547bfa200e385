//! Requests that wait for the answer of another daemon, which might never come: each waits in a
//! thread of its own.
//!
//! While it waits, such a thread has nothing of the scheme, so neither other requests nor the end
//! of the service wait for it. Who takes a request out of the table answers it: the thread, when it
//! was told, or whoever reads that the caller has given up. Those that are left at the end the
//! kernel answers.
//!
//! Locks, in the order in which they are taken: `Askers::service`, then `Askers::waiting`, a leaf.
//! The scheme's own are taken under the first.

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

/// A request about which the scheme of a socket is asked.
pub enum Request {
    /// To give a socket that was sent a name.
    Bind(SendFdRequest),
    /// For the token of a socket.
    Connect(CallRequest),
}

/// The requests that wait. A clone is for the same ones.
pub struct Asking<L: Layer>(Arc<Askers<L>>);

struct Askers<L: Layer> {
    /// None when the service has ended.
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
    /// By a number that is never given twice, as the kernel's are: a thread may be told when its
    /// request was answered long ago.
    requests: HashMap<u64, Request>,
    /// How many threads wait, by user.
    threads: HashMap<u32, usize>,
}

impl<L: Layer> Asking<L> {
    pub fn new(socket: &Arc<Socket>, scheme: &OverlayScheme<L>) -> Self {
        let service = Service { socket: socket.clone(), scheme: scheme.clone() };
        Asking(Arc::new(Askers { service: Shared::new(Some(service)), waiting: Lock::new(Waiting::default()) }))
    }

    /// Asks what there is to ask about a request, and has it answered. EAGAIN if as many of its
    /// user's wait already as may, or there can be no other thread.
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

    /// Answers a request whose caller has given up, if it waits: ECANCELED.
    pub fn cancel(&self, id: Id) {
        let service = self.0.service.read();
        let given_up = self.0.waiting.lock().requests.extract_if(|_, request| request.req_id() == id).next();
        if let (Some(Service { socket, .. }), Some((_, request))) = (&*service, given_up) {
            respond(socket, Response::err(ECANCELED, request));
        }
    }

    /// From now on nothing is answered. Waits for answers that are being given, but for no other
    /// daemon.
    pub fn end(&self) {
        let _service = self.0.service.write().take();
    }
}

impl<L: Layer> Askers<L> {
    /// Answers the request `number`, unless that is done, with what its subject was asked.
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
    /// Takes a request in, with a thread for it, and answers its number. Gives it back if its user
    /// has too many threads.
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

    /// A thread of the user's waits no more.
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
    /// Who asks, and the socket that is meant.
    fn subject<L: Layer>(&self, socket: &Socket, scheme: &OverlayScheme<L>) -> Result<(u32, Arc<Fd>)> {
        match self {
            Request::Bind(request) => Ok((request.caller().uid, scheme.sent(socket, request)?)),
            Request::Connect(call) => scheme.bound(call),
        }
    }

    /// What the scheme of the socket is asked.
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
        // The client is gone, say.
        warn!("a response was not taken: {error}");
    }
}
