//! Sockets that are bound to a name in the overlay.
//!
//! A socket belongs to another scheme, such as `uds_stream`; a filesystem only gives it a name.
//! relibc's `bind` tells the socket its path, opens the directory and sends it a descriptor of the
//! socket. The `fpath` of that descriptor ends in the name. `connect` opens the name and asks with
//! `FsCall::Connect` for a token, which the scheme of the socket makes. It passes the token to
//! its own socket.
//!
//! So the overlay keeps the descriptor as long as the node has a name and the daemon lives. A
//! socket of a layer, or of an earlier daemon, has no descriptor, and a connection to it is
//! refused.
//!
//! Both calls need an answer of another scheme, which may never come: a client may send a
//! descriptor of any scheme, even of this one. So the daemon waits for it where no other request
//! waits, in three steps:
//!
//! 1. [`Tree::sent`] and [`Tree::bound`] find the socket.
//! 2. [`path_of`] and [`token_of`] ask its scheme, and need nothing of this one.
//! 3. [`Tree::bind`] and [`super::give`] use the answer.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{EACCES, EADDRINUSE, ECONNREFUSED, EEXIST, EINVAL, ENFILE, ENOTDIR, Error, Result};
use libredox::Fd;
use libredox::protocol::SocketCall;
use redox_scheme::{CallRequest, SendFdRequest, Socket};
use syscall::flag::{CallFlags, FobtainFdFlags};

use super::access::Caller;
use super::decode::target;
use super::path::PATH_MAX;
use super::quota::{Quota, Share};
use super::tree::Tree;
use crate::layer::{Kind, Layer};
use crate::overlay::{self, Node};
use crate::sync::Lock;

/// The permission bits of a bound socket. redoxfs gives it the same, since relibc does not pass a
/// mode.
const MODE: u32 = 0o777;

/// How many sockets may be bound at once. Each keeps a descriptor of the daemon, which needs others
/// for files.
const BOUND_MAX: usize = 1024;

/// The longest token: many times the room that relibc makes.
const TOKEN_MAX: usize = 256;

/// The sockets that are bound here.
pub struct Sockets<L: Layer> {
    /// By the number of the node.
    bound: Lock<HashMap<u64, Bound<L>>>,
    quota: Arc<Quota>,
}

struct Bound<L: Layer> {
    /// Keeps the node and its number.
    node: overlay::Handle<L>,
    socket: Arc<Fd>,
    _room: Share,
}

impl<L: Layer> Sockets<L> {
    pub fn new() -> Self {
        Self { bound: Lock::new(HashMap::new()), quota: Quota::new(BOUND_MAX, BOUND_MAX, ENFILE) }
    }

    /// Returns the nodes of all sockets.
    pub fn nodes(&self) -> Vec<Arc<Node<L>>> {
        self.bound.lock().values().map(|bound| bound.node.node().clone()).collect()
    }

    /// Keeps the nodes of the overlay that follows, which `find` returns. Closes the sockets that
    /// are not there. No request is under way meanwhile.
    pub fn follow(&self, find: &mut dyn FnMut(&Node<L>) -> Option<overlay::Handle<L>>) {
        self.bound.lock().retain(|_, bound| match find(bound.node.node()) {
            Some(node) => {
                bound.node = node;
                true
            }
            None => false,
        });
    }
}

impl<L: Layer> Tree<L> {
    /// Takes the socket that a client sends to a directory.
    ///
    /// # Errors
    ///
    /// - ENOTDIR: the handle is no directory.
    /// - EINVAL: the request does not have exactly one descriptor.
    pub(super) fn sent(&self, socket: &Socket, request: &SendFdRequest) -> Result<Arc<Fd>> {
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

    /// Gives the socket of a request, from [`Self::sent`], the last name of its path.
    ///
    /// # Errors
    ///
    /// - EADDRINUSE: the name is taken.
    /// - ENFILE: too many sockets are bound.
    /// - EINVAL: the path has no such name, or is of this scheme.
    /// - EACCES: the caller may not make a name in the directory.
    /// - EROFS: the tree is read-only.
    /// - Any other errno of the creation of a node.
    pub(super) fn bind(&self, request: &SendFdRequest, socket: Arc<Fd>, path: &[u8]) -> Result<usize> {
        let dir = self.handles.open(request.id())?;
        let path = str::from_utf8(path).map_err(|_| Error::new(EINVAL))?;
        let (place, name) = path.rsplit_once('/').ok_or(Error::new(EINVAL))?;
        // This scheme has no sockets, and a layer must not wait for it.
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
        // Some layers need the socket too.
        let number = socket.raw() as u64;
        let made = self.overlay.create_node(dir, OsStr::new(name), Kind::Socket, mode, number, owner);
        let node = made.map_err(|error| match error.errno {
            EEXIST => Error::new(EADDRINUSE),
            _ => error,
        })?;
        let bound = Bound { node: self.overlay.open(&node), socket, _room: room };
        let _before = self.sockets.bound.lock().insert(node.id(), bound);
        Ok(())
    }

    /// Returns the user and the socket of a call that asks for a token
    /// ([`is_connect`](super::is_connect)). A handle that is open for writing has the right to
    /// connect.
    ///
    /// # Errors
    ///
    /// - EACCES: the handle is not open for writing.
    /// - ECONNREFUSED: the object is no socket, or was not bound here.
    pub(super) fn bound(&self, call: &CallRequest) -> Result<(u32, Arc<Fd>)> {
        let open = self.handles.open(target(call))?;
        if open.node().kind() == Kind::Socket && !open.writable {
            return Err(Error::new(EACCES));
        }
        let socket = self.sockets.bound.lock().get(&open.node().id()).map(|bound| bound.socket.clone());
        Ok((open.opener.uid, socket.ok_or(Error::new(ECONNREFUSED))?))
    }

    /// Closes the socket of a node that has lost its last name.
    pub(super) fn unbind(&self, node: &Arc<Node<L>>) {
        if node.kind() == Kind::Socket && self.overlay.parent(node).is_none() {
            let _gone = self.sockets.bound.lock().remove(&node.id());
        }
    }
}

/// Asks the scheme of a socket for the path to which it is bound.
///
/// # Errors
///
/// Those of the scheme of the socket.
pub fn path_of(socket: &Fd) -> Result<Vec<u8>> {
    let mut path = vec![0; PATH_MAX];
    let length = socket.fpath(&mut path)?;
    path.truncate(length);
    Ok(path)
}

/// Asks the scheme of a socket for the token that connects another socket to it.
///
/// # Errors
///
/// Those of the scheme of the socket.
pub fn token_of(socket: &Fd) -> Result<Vec<u8>> {
    let mut token = vec![0; TOKEN_MAX];
    let length = socket.call_ro(&mut token, CallFlags::empty(), &[SocketCall::GetToken as u64])?;
    token.truncate(length);
    Ok(token)
}
