//! Pipes of the Redox kernel: bytes and descriptors pass through. Only the end for writes has a
//! number, which a started program inherits. The test has the other end.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use syscall::error::{EPIPE, Error, Result};

use super::{Object, insert};

/// An item in a pipe.
enum Item {
    Byte(u8),
    Descriptor(Object),
}

struct State {
    items: VecDeque<Item>,
    has_reader: bool,
    has_writer: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Notified when an item arrives, or the last writer is dropped.
    changed: Condvar,
}

/// The end for writes. Its drop ends the pipe.
pub(super) struct Writer(Arc<Shared>);

/// The end for reads. After its drop, writes fail.
pub struct Pipe(Arc<Shared>);

/// Makes a pipe. The number is that of the end for writes.
pub fn pipe() -> (Pipe, usize) {
    let state = State { items: VecDeque::new(), has_reader: true, has_writer: true };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    (Pipe(shared.clone()), insert(Object::Pipe(Arc::new(Writer(shared)))))
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    pub(super) fn write(&self, bytes: &[u8]) -> Result<usize> {
        self.put(bytes.iter().copied().map(Item::Byte).collect())
    }

    /// Sends descriptors. The sender loses them.
    pub(super) fn send(&self, descriptors: Vec<Object>) -> Result<usize> {
        self.put(descriptors.into_iter().map(Item::Descriptor).collect())
    }

    fn put(&self, items: Vec<Item>) -> Result<usize> {
        let mut state = self.0.state();
        if !state.has_reader {
            return Err(Error::new(EPIPE));
        }
        let count = items.len();
        state.items.extend(items);
        self.0.changed.notify_all();
        Ok(count)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.state().has_writer = false;
        self.0.changed.notify_all();
    }
}

impl Pipe {
    /// Waits for a byte. None: the pipe ends, or a descriptor comes.
    pub fn byte(&self) -> Option<u8> {
        match self.next()? {
            Item::Byte(byte) => Some(byte),
            Item::Descriptor(_) => None,
        }
    }

    /// Waits for a descriptor, and returns its number. None: the pipe ends, or a byte comes.
    pub fn descriptor(&self) -> Option<usize> {
        match self.next()? {
            Item::Descriptor(object) => Some(insert(object)),
            Item::Byte(_) => None,
        }
    }

    fn next(&self) -> Option<Item> {
        let mut state = self.0.state();
        while state.items.is_empty() && state.has_writer {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.items.pop_front()
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.0.state().has_reader = false;
    }
}
