//! The handles of clients: what a descriptor of this scheme stands for.
//!
//! Several requests may use a handle at once. What can change in one has a lock of its own, a leaf,
//! as is that of the table; nothing that is taken out of the table is dropped while that is locked.
//!
//! The kernel limits how many descriptors a process has, but neither how many processes a user has
//! nor what they send each other, so how many handles there are is limited here.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::errno::{EBADF, ENFILE, EXDEV, Error, Result};

use super::access::Caller;
use super::quota::{Quota, Share};
use crate::layer::{Kind, Layer};
use crate::overlay::{self, Node};
use crate::sync::{Lock, Shared};

/// How many handles the clients of one user may have: as many as the kernel lets one process have.
const OF_USER_MAX: usize = 1 << 16;
/// How many handles there may be: some tens of megabytes of memory.
const IN_ALL_MAX: usize = 1 << 18;

/// What one id stands for.
pub enum SchemeHandle<L: Layer> {
    /// The scheme itself: the directory descriptor of every absolute request. No client opened it,
    /// so it has no opener.
    Scheme,
    /// An object of the merged tree.
    Open(Arc<Open<L>>),
    /// A symlink or device node that has a name but nothing yet that it leads to, and that nobody
    /// sees: it is made when that is written.
    PendingNode(Arc<PendingNode<L>>),
    /// The path in another scheme to which a path of this one leads. relibc reads it and opens it
    /// itself.
    Elsewhere(Arc<str>),
}

impl<L: Layer> Clone for SchemeHandle<L> {
    fn clone(&self) -> Self {
        match self {
            SchemeHandle::Scheme => SchemeHandle::Scheme,
            SchemeHandle::Open(open) => SchemeHandle::Open(open.clone()),
            SchemeHandle::PendingNode(pending) => SchemeHandle::PendingNode(pending.clone()),
            SchemeHandle::Elsewhere(path) => SchemeHandle::Elsewhere(path.clone()),
        }
    }
}

/// The directory and the name through which an object was opened.
pub type EntryOf<L> = Option<(Arc<Node<L>>, OsString)>;

/// An object that a client opened.
pub struct Open<L: Layer> {
    /// The object, kept while it is open even after its last name is gone.
    pub file: overlay::Handle<L>,
    /// Who opened it. Counts wherever a request does not say who asks.
    pub opener: Caller,
    /// The flags of the open that F_GETFL answers; those in `O_FCNTL_MASK` change with F_SETFL.
    pub flags: AtomicUsize,
    pub readable: bool,
    pub writable: bool,
    /// So that of several links the right one is renamed. None for the root and where the path
    /// ended in `.` or `..`.
    pub entry: Lock<EntryOf<L>>,
}

impl<L: Layer> Open<L> {
    pub fn node(&self) -> &Arc<Node<L>> {
        self.file.node()
    }
}

/// A symlink or device node to be.
pub struct PendingNode<L: Layer> {
    pub dir: Arc<Node<L>>,
    pub name: OsString,
    pub maker: Caller,
    pub kind: Kind,
    pub mode: u32,
}

/// All handles by their id. An id is never given twice: a close that arrives late must not hit a
/// newer handle.
pub struct Table<L: Layer> {
    last_id: AtomicUsize,
    handles: Shared<HashMap<usize, OpenHandle<L>>>,
    quota: Arc<Quota>,
}

struct OpenHandle<L: Layer> {
    handle: SchemeHandle<L>,
    _room: Share,
}

impl<L: Layer> Table<L> {
    pub fn new() -> Self {
        let quota = Quota::new(OF_USER_MAX, IN_ALL_MAX, ENFILE);
        Self { last_id: AtomicUsize::new(0), handles: Shared::new(HashMap::new()), quota }
    }

    /// Room for a handle of a user's: what is asked for before anything is made. ENFILE.
    pub fn room(&self, user: u32) -> Result<Share> {
        self.quota.take(user, 1)
    }

    /// Takes a handle in and answers its id.
    pub fn insert(&self, handle: SchemeHandle<L>, room: Share) -> usize {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        self.handles.write().insert(id, OpenHandle { handle, _room: room });
        id
    }

    /// Has an id that is given stand for something else from now on.
    pub fn replace(&self, id: usize, handle: SchemeHandle<L>) {
        let mut handles = self.handles.write();
        let _before = match handles.get_mut(&id) {
            Some(known) => std::mem::replace(&mut known.handle, handle),
            None => handle,
        };
        drop(handles);
    }

    /// EBADF for an id that is not, or no longer, given.
    pub fn get(&self, id: usize) -> Result<SchemeHandle<L>> {
        self.handles.read().get(&id).map(|known| known.handle.clone()).ok_or(Error::new(EBADF))
    }

    /// The open object behind an id. EXDEV if it is in another scheme, EBADF for everything else
    /// that is no object.
    pub fn open(&self, id: usize) -> Result<Arc<Open<L>>> {
        match self.get(id)? {
            SchemeHandle::Open(open) => Ok(open),
            SchemeHandle::Elsewhere(_) => Err(Error::new(EXDEV)),
            SchemeHandle::Scheme | SchemeHandle::PendingNode(_) => Err(Error::new(EBADF)),
        }
    }

    pub fn remove(&self, id: usize) {
        let _closed = self.handles.write().remove(&id);
    }
}
