//! The handles of clients: what a descriptor of this scheme stands for.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::Arc;

use syscall::error::{EBADF, EXDEV, Error, Result};

use super::access::Caller;
use crate::layer::{Kind, Layer};
use crate::overlay::{self, Node};

/// What one id stands for.
pub enum Handle<L: Layer> {
    /// The scheme itself: the directory descriptor of every absolute request. No client opened it, so it has no opener.
    Scheme,
    /// An object of the merged tree.
    Open(Open<L>),
    /// A symlink or device node that has a name but nothing yet that it leads to, and that nobody sees: it is made when that is written.
    Unborn(Unborn<L>),
    /// The path in another scheme to which a path of this one leads. relibc reads it and opens it itself.
    Elsewhere(String),
}

/// An object that a client opened.
pub struct Open<L: Layer> {
    /// The object, kept while it is open even after its last name is gone.
    pub file: overlay::Handle<L>,
    /// Who opened it. Counts wherever a request does not say who asks.
    pub opener: Caller,
    /// The flags of the open that F_GETFL answers; those in `O_FCNTL_MASK` change with F_SETFL.
    pub flags: usize,
    pub readable: bool,
    pub writable: bool,
    /// The directory and the name through which it was opened, so that of several links the right one is renamed. None for the root and
    /// where the path ended in `.` or `..`.
    pub entry: Option<(Arc<Node<L>>, OsString)>,
}

impl<L: Layer> Open<L> {
    pub fn node(&self) -> &Arc<Node<L>> {
        self.file.node()
    }
}

/// A symlink or device node to be.
pub struct Unborn<L: Layer> {
    pub dir: Arc<Node<L>>,
    pub name: OsString,
    pub maker: Caller,
    pub kind: Kind,
    pub mode: u32,
}

impl<L: Layer> Clone for Unborn<L> {
    fn clone(&self) -> Self {
        Self {
            dir: Arc::clone(&self.dir),
            name: self.name.clone(),
            maker: self.maker,
            kind: self.kind,
            mode: self.mode,
        }
    }
}

/// All handles by their id. An id is never given twice: a close that arrives late must not hit a newer handle.
pub struct Table<L: Layer> {
    last_id: usize,
    handles: HashMap<usize, Handle<L>>,
}

impl<L: Layer> Table<L> {
    pub fn new() -> Self {
        Self { last_id: 0, handles: HashMap::new() }
    }

    /// Takes a handle in and answers its id.
    pub fn insert(&mut self, handle: Handle<L>) -> usize {
        self.last_id += 1;
        self.handles.insert(self.last_id, handle);
        self.last_id
    }

    /// EBADF for an id that is not, or no longer, given.
    pub fn get(&self, id: usize) -> Result<&Handle<L>> {
        self.handles.get(&id).ok_or(Error::new(EBADF))
    }

    /// As [`Table::get`].
    pub fn get_mut(&mut self, id: usize) -> Result<&mut Handle<L>> {
        self.handles.get_mut(&id).ok_or(Error::new(EBADF))
    }

    /// The open object behind an id. EXDEV if it is in another scheme, EBADF for everything else that is no object.
    pub fn open(&self, id: usize) -> Result<&Open<L>> {
        match self.get(id)? {
            Handle::Open(open) => Ok(open),
            Handle::Elsewhere(_) => Err(Error::new(EXDEV)),
            Handle::Scheme | Handle::Unborn(_) => Err(Error::new(EBADF)),
        }
    }

    /// As [`Table::open`].
    pub fn open_mut(&mut self, id: usize) -> Result<&mut Open<L>> {
        match self.get_mut(id)? {
            Handle::Open(open) => Ok(open),
            Handle::Elsewhere(_) => Err(Error::new(EXDEV)),
            Handle::Scheme | Handle::Unborn(_) => Err(Error::new(EBADF)),
        }
    }

    pub fn remove(&mut self, id: usize) {
        self.handles.remove(&id);
    }
}
