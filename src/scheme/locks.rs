//! The locks that clients hold on files: `redox_scheme` keeps them, and here is remembered who has to be told to let go.
//!
//! A process's lock ends when the process closes a descriptor of the file. The kernel tells of that only if the last standard call on the
//! descriptor was answered with the wish to hear of it; each other answer, to an fstat say, takes the wish back. So once a process holds
//! locks through a handle, all such calls on the handle are answered with it. And when the handle is closed for good, the locks of all
//! processes that came by it are released.

use std::collections::{HashMap, HashSet};

use redox_scheme::scheme::SchemeState;

/// A process id that no process has.
const NO_PROCESS: usize = usize::MAX;

/// The locks of all files.
pub struct Locks {
    pub state: SchemeState,
    /// Through which handles processes have locked, and which.
    holders: HashMap<usize, HashSet<usize>>,
}

impl Locks {
    pub fn new() -> Self {
        Self { state: SchemeState::new(), holders: HashMap::new() }
    }

    /// Remembers that a process has got a lock through a handle.
    pub fn locked(&mut self, id: usize, pid: usize) {
        self.holders.entry(id).or_default().insert(pid);
    }

    /// Whether a process may hold a lock that it got through the handle.
    pub fn are_held(&self, id: usize) -> bool {
        self.holders.contains_key(&id)
    }

    /// Releases what a process holds on the file of a handle of which it has closed a descriptor.
    pub fn detach(&mut self, id: usize, inode: usize, pid: usize) {
        self.state.on_detach(id, inode, pid);
        if let Some(holders) = self.holders.get_mut(&id) {
            holders.remove(&pid);
            if holders.is_empty() {
                self.holders.remove(&id);
            }
        }
    }

    /// Releases what is held through a handle that is closed.
    pub fn close(&mut self, id: usize, inode: usize) {
        // Those of the handle itself go with those of any process.
        for pid in self.holders.remove(&id).into_iter().flatten().chain([NO_PROCESS]) {
            self.state.on_detach(id, inode, pid);
        }
    }
}
