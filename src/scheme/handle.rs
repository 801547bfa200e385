//! The handles of clients: the objects behind descriptors of this scheme.
//!
//! Several requests may use a handle at once. Each mutable part of it has its own lock, a leaf, and
//! so has the table. No thread drops an object of the table under the table's lock.
//!
//! The kernel limits the descriptors of a process. It limits neither the processes of a user nor
//! the descriptors in messages. So this file limits the handles.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::errno::{EBADF, ENFILE, ESTALE, EXDEV, Error, Result};

use super::access::Caller;
use super::quota::{Quota, Share};
use crate::layer::{Kind, Layer};
use crate::overlay::{self, Node};
use crate::sync::{Lock, Shared};

/// How many handles the clients of one user may have: as many as the kernel allows one process.
const OF_USER_MAX: usize = 1 << 16;
/// How many handles there may be: they take some tens of megabytes of memory.
const IN_ALL_MAX: usize = 1 << 18;

/// The meaning of one id.
pub enum SchemeHandle<L: Layer> {
    /// The scheme itself: the directory descriptor of every absolute request. No client opened it,
    /// so it has no opener.
    Scheme,
    /// An object of the merged tree.
    Open(Arc<Open<L>>),
    /// A symlink or device node with a name, but no target or number yet. It does not show: the
    /// write of that makes it.
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
    /// The object, which lives while it is open, even without a name.
    pub file: overlay::Handle<L>,
    /// The caller that opened it. It counts if a request does not name its caller.
    pub opener: Caller,
    /// The flags of the open, for F_GETFL. F_SETFL changes those in `O_FCNTL_MASK`.
    pub flags: AtomicUsize,
    pub readable: bool,
    pub writable: bool,
    /// Of several links, a rename takes this one. None for the root, and for a path that ended in
    /// `.` or `..`.
    pub entry: Lock<EntryOf<L>>,
}

impl<L: Layer> Open<L> {
    pub fn node(&self) -> &Arc<Node<L>> {
        self.file.node()
    }

    pub fn subject(&self) -> Subject {
        Subject { node: self.node().id(), user: self.opener.uid }
    }
}

impl<L: Layer> Open<L> {
    /// Opens the object in the overlay that follows.
    fn again(&self, find: &mut dyn FnMut(&Node<L>) -> Option<overlay::Handle<L>>) -> Option<Self> {
        let entry = self.entry.lock().clone();
        Some(Self {
            file: find(self.node())?,
            opener: self.opener,
            flags: AtomicUsize::new(self.flags.load(Ordering::Relaxed)),
            readable: self.readable,
            writable: self.writable,
            // Without it the object has another name, or none.
            entry: Lock::new(entry.and_then(|(dir, name)| Some((find(&dir)?.node().clone(), name)))),
        })
    }
}

/// A symlink or device node before its creation.
pub struct PendingNode<L: Layer> {
    pub dir: Arc<Node<L>>,
    pub name: OsString,
    pub maker: Caller,
    pub kind: Kind,
    pub mode: u32,
}

impl<L: Layer> PendingNode<L> {
    fn again(&self, find: &mut dyn FnMut(&Node<L>) -> Option<overlay::Handle<L>>) -> Option<Self> {
        let Self { name, maker, kind, mode, .. } = self;
        Some(Self { dir: find(&self.dir)?.node().clone(), name: name.clone(), maker: *maker, kind: *kind, mode: *mode })
    }
}

/// All handles by their id. An id is never reused: a late close must not hit a newer handle.
pub struct Table<L: Layer> {
    last_id: AtomicUsize,
    handles: Shared<BTreeMap<usize, OpenHandle<L>>>,
    quota: Arc<Quota>,
}

struct OpenHandle<L: Layer> {
    meaning: Meaning<L>,
    _room: Share,
}

enum Meaning<L: Layer> {
    Is(SchemeHandle<L>),
    /// A rollback took the object away.
    Was(Subject),
}

/// The object of a handle and the user that opened it. They stay known after a rollback has taken
/// the object away.
#[derive(Clone, Copy)]
pub struct Subject {
    /// The number of the node.
    pub node: u64,
    pub user: u32,
}

impl<L: Layer> Table<L> {
    pub fn new() -> Self {
        let quota = Quota::new(OF_USER_MAX, IN_ALL_MAX, ENFILE);
        Self { last_id: AtomicUsize::new(0), handles: Shared::new(BTreeMap::new()), quota }
    }

    /// Takes room for a handle of a user. A request does so before it makes anything.
    ///
    /// # Errors
    ///
    /// - ENFILE: there are too many handles.
    pub fn room(&self, user: u32) -> Result<Share> {
        self.quota.take(user, 1)
    }

    /// Adds a handle. Returns its id.
    pub fn insert(&self, handle: SchemeHandle<L>, room: Share) -> usize {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        self.handles.write().insert(id, OpenHandle { meaning: Meaning::Is(handle), _room: room });
        id
    }

    /// Gives an id another meaning.
    pub fn replace(&self, id: usize, handle: SchemeHandle<L>) {
        let mut handles = self.handles.write();
        let handle = Meaning::Is(handle);
        let _before = match handles.get_mut(&id) {
            Some(known) => std::mem::replace(&mut known.meaning, handle),
            None => handle,
        };
        drop(handles);
    }

    /// Returns the handle with an id.
    ///
    /// # Errors
    ///
    /// - EBADF: there is no such handle.
    /// - ESTALE: a rollback took its object away.
    pub fn get(&self, id: usize) -> Result<SchemeHandle<L>> {
        match self.handles.read().get(&id).map(|known| &known.meaning) {
            Some(Meaning::Is(handle)) => Ok(handle.clone()),
            Some(Meaning::Was(_)) => Err(Error::new(ESTALE)),
            None => Err(Error::new(EBADF)),
        }
    }

    /// Returns the object of a handle and its user, even if a rollback took the object away.
    ///
    /// # Errors
    ///
    /// As [`Table::open`], but not ESTALE.
    pub fn subject(&self, id: usize) -> Result<Subject> {
        if let Some(Meaning::Was(subject)) = self.handles.read().get(&id).map(|known| &known.meaning) {
            return Ok(*subject);
        }
        self.open(id).map(|open| open.subject())
    }

    /// Returns the open object behind an id.
    ///
    /// # Errors
    ///
    /// - EXDEV: the handle leads to another scheme.
    /// - EBADF: the handle is no object, or does not exist.
    /// - ESTALE: a rollback took the object away.
    pub fn open(&self, id: usize) -> Result<Arc<Open<L>>> {
        match self.get(id)? {
            SchemeHandle::Open(open) => Ok(open),
            SchemeHandle::Elsewhere(_) => Err(Error::new(EXDEV)),
            SchemeHandle::Scheme | SchemeHandle::PendingNode(_) => Err(Error::new(EBADF)),
        }
    }

    /// How many handles there are.
    pub fn count(&self) -> usize {
        self.handles.read().len()
    }

    pub fn remove(&self, id: usize) {
        let _closed = self.handles.write().remove(&id);
    }

    /// Returns all objects that handles need: those that are open, and the directories of names.
    pub fn nodes(&self) -> Vec<Arc<Node<L>>> {
        let mut nodes = Vec::new();
        for known in self.handles.read().values() {
            match &known.meaning {
                Meaning::Is(SchemeHandle::Open(open)) => {
                    nodes.push(open.node().clone());
                    nodes.extend(open.entry.lock().as_ref().map(|(dir, _)| dir.clone()));
                }
                Meaning::Is(SchemeHandle::PendingNode(pending)) => nodes.push(pending.dir.clone()),
                _ => {}
            }
        }
        nodes
    }

    /// Gives each handle its object in the overlay that follows, which `find` returns, if it is
    /// there. No request is under way meanwhile.
    pub fn follow(&self, find: &mut dyn FnMut(&Node<L>) -> Option<overlay::Handle<L>>) {
        for known in self.handles.write().values_mut() {
            let (next, subject) = match &known.meaning {
                Meaning::Is(SchemeHandle::Open(open)) => {
                    (open.again(find).map(|open| SchemeHandle::Open(Arc::new(open))), open.subject())
                }
                Meaning::Is(SchemeHandle::PendingNode(pending)) => (
                    pending.again(find).map(|pending| SchemeHandle::PendingNode(Arc::new(pending))),
                    Subject { node: pending.dir.id(), user: pending.maker.uid },
                ),
                Meaning::Is(SchemeHandle::Scheme | SchemeHandle::Elsewhere(_)) | Meaning::Was(_) => continue,
            };
            known.meaning = next.map_or(Meaning::Was(subject), Meaning::Is);
        }
    }
}
