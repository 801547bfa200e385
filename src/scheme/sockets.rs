//! Sockets that are bound to a name in the overlay.
//!
//! A socket belongs to another scheme, `uds_stream` say; a filesystem only gives it a name.
//! relibc's `bind` tells the socket its path, opens the directory and sends it a descriptor of the
//! socket, whose `fpath` ends in the name. `connect` opens the name and asks with
//! `FsCall::Connect` for the token that the socket's own scheme has for it, and hands that to its
//! own socket. So the overlay keeps the descriptor as long as the node has a name and the daemon
//! lives. A socket of a layer, or of an earlier daemon, has none, and a connection to it is
//! refused.
//!
//! For both, another scheme has to be asked, and waited for. Anybody may send a descriptor of any
//! scheme, of this one even, so whoever serves the scheme asks where nobody else waits: first what
//! is to be asked ([`OverlayScheme::sent`], [`OverlayScheme::bound`]), then the question
//! ([`path_of`], [`token_of`]), for which nothing of the scheme is needed, and then what follows
//! from the answer ([`OverlayScheme::bind`], [`super::give`]).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{EACCES, EADDRINUSE, ECONNREFUSED, EEXIST, EINVAL, ENFILE, ENOTDIR, Error, Result};
use libredox::Fd;
use libredox::protocol::SocketCall;
use redox_scheme::{CallRequest, SendFdRequest, Socket};
use syscall::flag::{CallFlags, FobtainFdFlags};

use super::OverlayScheme;
use super::access::Caller;
use super::decode::target;
use super::path::PATH_MAX;
use super::quota::{Quota, Share};
use crate::layer::{Kind, Layer};
use crate::overlay::{self, Node};
use crate::sync::Lock;

/// The permission bits of a bound socket: those that redoxfs gives it, since relibc does not say
/// which it should have.
const MODE: u32 = 0o777;

/// How many sockets may be bound at once. Each keeps a descriptor of the daemon, which needs others
/// for files.
const BOUND_MAX: usize = 1024;

/// The longest token: many times what relibc makes room for.
const TOKEN_MAX: usize = 256;

/// The sockets that were bound here.
pub struct Sockets<L: Layer> {
    /// By the number of the node.
    bound: Lock<HashMap<u64, Bound<L>>>,
    quota: Arc<Quota>,
}

struct Bound<L: Layer> {
    /// Keeps the node what it is.
    _node: overlay::Handle<L>,
    socket: Arc<Fd>,
    _room: Share,
}

impl<L: Layer> Sockets<L> {
    pub fn new() -> Self {
        Self { bound: Lock::new(HashMap::new()), quota: Quota::new(BOUND_MAX, BOUND_MAX, ENFILE) }
    }
}

impl<L: Layer> OverlayScheme<L> {
    /// The socket that a client sends to a directory. ENOTDIR; EINVAL for anything but one
    /// descriptor.
    pub fn sent(&self, socket: &Socket, request: &SendFdRequest) -> Result<Arc<Fd>> {
        if self.handles.open(request.id())?.node().kind() != Kind::Dir {
            return Err(Error::new(ENOTDIR));
        }
        if request.num_fds() != 1 {
            return Err(Error::new(EINVAL));
        }
        let mut number = usize::MAX;
        request.obtain_fd(socket, FobtainFdFlags::empty(), std::slice::from_mut(&mut number))?;
        Ok(Arc::new(Fd::new(number)))
    }

    /// Gives the socket of a request, which was [`Self::sent`], the name that its path ends in.
    ///
    /// EADDRINUSE if the name is taken; ENFILE if too many sockets are bound; EINVAL if the path
    /// has no such name, or is of this scheme; EACCES, EROFS and the other errors of creating a
    /// node.
    pub fn bind(&self, request: &SendFdRequest, socket: Arc<Fd>, path: &[u8]) -> Result<usize> {
        let dir = self.handles.open(request.id())?;
        let path = str::from_utf8(path).map_err(|_| Error::new(EINVAL))?;
        let (place, name) = path.rsplit_once('/').ok_or(Error::new(EINVAL))?;
        // There are no sockets of this scheme, and a layer must not be made to wait for it.
        let is_own = format!("{place}/").starts_with(&format!("/scheme/{}/", self.name));
        if is_own || matches!(name, "" | "." | "..") {
            return Err(Error::new(EINVAL));
        }
        self.name_socket(dir.node(), name, &Caller::of(&request.caller()), socket)?;
        Ok(1)
    }

    fn name_socket(&self, dir: &Arc<Node<L>>, name: &str, caller: &Caller, socket: Arc<Fd>) -> Result<()> {
        let _under = self.changes.of_one(dir);
        self.require_writable()?;
        let dir_stat = self.overlay.stat_for_access(dir)?;
        caller.require_entries(&dir_stat)?;
        let room = self.sockets.quota.take(caller.uid, 1)?;
        let (owner, mode) = caller.newborn(&dir_stat, Kind::Socket, MODE);
        // Some layers have to be sent the socket too.
        let number = socket.raw() as u64;
        let made = self.overlay.create_node(dir, OsStr::new(name), Kind::Socket, mode, number, owner);
        let node = made.map_err(|error| match error.errno {
            EEXIST => Error::new(EADDRINUSE),
            _ => error,
        })?;
        let bound = Bound { _node: self.overlay.open(&node), socket, _room: room };
        let _before = self.sockets.bound.lock().insert(node.id(), bound);
        Ok(())
    }

    /// The socket for whose token a call that [`is_connect`](super::is_connect) asks, and the user
    /// who asks. A handle that was opened to write counts as the right to connect. EACCES;
    /// ECONNREFUSED for what is no socket, or one that was not bound here.
    pub fn bound(&self, call: &CallRequest) -> Result<(u32, Arc<Fd>)> {
        let open = self.handles.open(target(call))?;
        if open.node().kind() == Kind::Socket && !open.writable {
            return Err(Error::new(EACCES));
        }
        let socket = self.sockets.bound.lock().get(&open.node().id()).map(|bound| bound.socket.clone());
        Ok((open.opener.uid, socket.ok_or(Error::new(ECONNREFUSED))?))
    }

    /// Lets go of the socket of a node that has lost its last name.
    pub(super) fn unbind(&self, node: &Arc<Node<L>>) {
        if node.kind() == Kind::Socket && self.overlay.parent(node).is_none() {
            let _gone = self.sockets.bound.lock().remove(&node.id());
        }
    }
}

/// The path that a socket is bound to, as its own scheme says it.
pub fn path_of(socket: &Fd) -> Result<Vec<u8>> {
    let mut path = vec![0; PATH_MAX];
    let length = socket.fpath(&mut path)?;
    path.truncate(length);
    Ok(path)
}

/// What a client is to hand to its own socket to have it connected to this one.
pub fn token_of(socket: &Fd) -> Result<Vec<u8>> {
    let mut token = vec![0; TOKEN_MAX];
    let length = socket.call_ro(&mut token, CallFlags::empty(), &[SocketCall::GetToken as u64])?;
    token.truncate(length);
    Ok(token)
}
