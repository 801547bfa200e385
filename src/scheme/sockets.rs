//! Sockets that are bound to a name in the overlay.
//!
//! A socket belongs to another scheme, `uds_stream` say; a filesystem only gives it a name. relibc's `bind` tells the socket its path, opens the
//! directory and sends it a descriptor of the socket, whose `fpath` ends in the name. `connect` opens the name and asks with
//! [`FsCall::Connect`] for the token that the socket's own scheme has for it, and hands that to its own socket. So the overlay keeps the
//! descriptor as long as the node has a name and the daemon lives. A socket of a layer, or of an earlier daemon, has none, and a
//! connection to it is refused.
//!
//! Both requests ask another scheme and wait for its answer. Anybody may send a descriptor of any scheme, of this one even, so they are
//! not answered by a thread that others wait for: see [`super::asks_others`].

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;

use libredox::Fd;
use libredox::protocol::SocketCall;
use redox_scheme::{SendFdRequest, Socket};
use syscall::error::{
    EACCES, EADDRINUSE, ECONNREFUSED, EEXIST, EINVAL, EIO, ENFILE, ENOTDIR, EOPNOTSUPP, Error, Result,
};
use syscall::flag::{CallFlags, FobtainFdFlags, FsCall};

use super::OverlayScheme;
use super::access::Caller;
use super::path::PATH_MAX;
use crate::layer::{Kind, Layer};
use crate::overlay::{self, Node};
use crate::sync::Lock;

/// The permission bits of a bound socket: those that redoxfs gives it, since relibc does not say which it should have.
const MODE: u32 = 0o777;

/// How many sockets may be bound at once. Each keeps a descriptor of the daemon, which needs others for files.
const BOUND_MAX: usize = 4096;

/// The sockets that were bound here.
pub struct Sockets<L: Layer> {
    /// By the number of the node.
    bound: Lock<HashMap<u64, Bound<L>>>,
}

struct Bound<L: Layer> {
    /// Keeps the node what it is.
    _node: overlay::Handle<L>,
    socket: Arc<Fd>,
}

impl<L: Layer> Sockets<L> {
    pub fn new() -> Self {
        Self { bound: Lock::new(HashMap::new()) }
    }
}

impl<L: Layer> OverlayScheme<L> {
    /// Takes a socket that a client has sent to a directory, and gives it there the name that its path ends in.
    ///
    /// EADDRINUSE if the name is taken; ENFILE if too many sockets are bound; ENOTDIR; EINVAL for anything but one descriptor with such a name, of another scheme; EACCES, EROFS and the other
    /// errors of creating a node.
    pub fn bind(&self, socket: &Socket, request: &SendFdRequest) -> Result<usize> {
        let dir = self.handles.open(request.id())?;
        if dir.node().kind() != Kind::Dir {
            return Err(Error::new(ENOTDIR));
        }
        if request.num_fds() != 1 {
            return Err(Error::new(EINVAL));
        }
        let mut number = usize::MAX;
        request.obtain_fd(socket, FobtainFdFlags::empty(), std::slice::from_mut(&mut number))?;
        let sent = Arc::new(Fd::new(number));
        let mut path = [0; PATH_MAX];
        let length = sent.fpath(&mut path)?;
        let path = path.get(..length).and_then(|path| str::from_utf8(path).ok()).ok_or(Error::new(EINVAL))?;
        let (place, name) = path.rsplit_once('/').ok_or(Error::new(EINVAL))?;
        // There are no sockets of this scheme, and a layer must not be made to wait for it.
        let is_own = format!("{place}/").starts_with(&format!("/scheme/{}/", self.name));
        if is_own || matches!(name, "" | "." | "..") {
            return Err(Error::new(EINVAL));
        }
        self.name_socket(dir.node(), name, &Caller::of(&request.caller()), sent)?;
        Ok(1)
    }

    fn name_socket(&self, dir: &Arc<Node<L>>, name: &str, caller: &Caller, socket: Arc<Fd>) -> Result<()> {
        let _changing = self.changing();
        self.require_writable()?;
        let dir_stat = self.overlay.rights(dir)?;
        caller.require_entries(&dir_stat)?;
        if self.sockets.bound.lock().len() >= BOUND_MAX {
            return Err(Error::new(ENFILE));
        }
        let (owner, mode) = caller.newborn(&dir_stat, Kind::Socket, MODE);
        // Some layers have to be sent the socket too.
        let number = socket.raw() as u64;
        let made = self.overlay.create_node(dir, OsStr::new(name), Kind::Socket, mode, number, owner);
        let node = made.map_err(|error| match error.errno {
            EEXIST => Error::new(EADDRINUSE),
            _ => error,
        })?;
        self.sockets.bound.lock().insert(node.id(), Bound { _node: self.overlay.open(&node), socket });
        Ok(())
    }

    /// Answers what `connect` is to hand to its socket, written to the start of `token`. A handle that was opened to write counts as the right to
    /// connect. EACCES; ECONNREFUSED for what is no socket, or one that was not bound here; EINVAL for another call than FsCall::Connect.
    pub(super) fn connect(&self, id: usize, token: &mut [u8], metadata: &[u64]) -> Result<usize> {
        let verb = metadata.first().and_then(|verb| FsCall::try_from_raw(usize::try_from(*verb).ok()?));
        match verb {
            Some(FsCall::Connect) => {}
            Some(_) => return Err(Error::new(EOPNOTSUPP)),
            None => return Err(Error::new(EINVAL)),
        }
        let open = self.handles.open(id)?;
        if open.node().kind() == Kind::Socket && !open.writable {
            return Err(Error::new(EACCES));
        }
        let socket = self.sockets.bound.lock().get(&open.node().id()).map(|bound| bound.socket.clone());
        let socket = socket.ok_or(Error::new(ECONNREFUSED))?;
        let length = socket.call_ro(token, CallFlags::empty(), &[SocketCall::GetToken as u64])?;
        if length <= token.len() { Ok(length) } else { Err(Error::new(EIO)) }
    }

    /// Lets go of the socket of a node that has lost its last name.
    pub(super) fn unbind(&self, node: &Arc<Node<L>>) {
        if node.kind() == Kind::Socket && self.overlay.parent(node).is_none() {
            let _gone = self.sockets.bound.lock().remove(&node.id());
        }
    }
}
