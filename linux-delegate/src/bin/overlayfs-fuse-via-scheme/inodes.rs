//! The objects that the Linux kernel knows, each with a descriptor that keeps it open.
//!
//! The kernel's number of an object is its `st_ino`, except that the kernel calls the root 1: so
//! the root and whatever has the `st_ino` 1 have each other's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use syscall::error::{ESTALE, Error, Result};

use linux_delegate::kernel::Fd;

/// The kernel's number of the root.
const ROOT: u64 = 1;

struct Inode {
    fd: Arc<Fd>,
    /// How many times the kernel was told of the object and has not forgotten it.
    count: u64,
}

pub struct Inodes {
    root_ino: u64,
    table: Mutex<HashMap<u64, Inode>>,
}

impl Inodes {
    /// A table with the root, which is never forgotten.
    pub fn new(root: Fd, root_ino: u64) -> Self {
        let root = Inode { fd: Arc::new(root), count: 1 };
        Self { root_ino, table: Mutex::new(HashMap::from([(ROOT, root)])) }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<u64, Inode>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel's number of the object with this `st_ino`.
    pub fn node(&self, ino: u64) -> u64 {
        if ino == self.root_ino {
            ROOT
        } else if ino == ROOT {
            self.root_ino
        } else {
            ino
        }
    }

    /// The descriptor of an object. ESTALE if the kernel should not know it.
    pub fn get(&self, node: u64) -> Result<Arc<Fd>> {
        self.table().get(&node).map(|inode| inode.fd.clone()).ok_or(Error::new(ESTALE))
    }

    /// The kernel is told of an object once more. The descriptor is kept if there is none yet.
    pub fn remember(&self, node: u64, fd: Fd) {
        // An Arc of its own, so that one that is not needed is closed after the table is released.
        let fd = Arc::new(fd);
        let mut table = self.table();
        table.entry(node).or_insert_with(|| Inode { fd: fd.clone(), count: 0 }).count += 1;
        drop(table);
    }

    /// The kernel forgets `count` of the times it was told.
    pub fn forget(&self, node: u64, count: u64) {
        if node == ROOT {
            return;
        }
        let mut table = self.table();
        let Some(inode) = table.get_mut(&node) else {
            return;
        };
        inode.count = inode.count.saturating_sub(count);
        let forgotten = if inode.count == 0 { table.remove(&node) } else { None };
        drop(table);
        drop(forgotten);
    }
}
