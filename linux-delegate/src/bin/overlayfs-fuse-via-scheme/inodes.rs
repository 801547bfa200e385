//! The objects that the Linux kernel knows, each with a descriptor that keeps it open.
//!
//! The kernel's number of an object is its `st_ino`, but the kernel's number of the root is 1. So
//! the root and an object with the `st_ino` 1 swap theirs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use syscall::error::{ESTALE, Error, Result};

use linux_delegate::kernel::Fd;

/// The kernel's number of the root.
const ROOT: u64 = 1;

struct Inode {
    fd: Arc<Fd>,
    /// How many answers named the object, less those that the kernel has forgotten.
    count: u64,
}

pub struct Inodes {
    root_ino: u64,
    table: Mutex<HashMap<u64, Inode>>,
}

impl Inodes {
    /// Makes a table with the root, which the kernel never forgets.
    pub fn new(root: Fd, root_ino: u64) -> Self {
        let root = Inode { fd: Arc::new(root), count: 1 };
        Self { root_ino, table: Mutex::new(HashMap::from([(ROOT, root)])) }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<u64, Inode>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the kernel's number of the object with this `st_ino`.
    pub fn node(&self, ino: u64) -> u64 {
        if ino == self.root_ino {
            ROOT
        } else if ino == ROOT {
            self.root_ino
        } else {
            ino
        }
    }

    /// Returns the descriptor of an object.
    ///
    /// # Errors
    ///
    /// - ESTALE: the kernel should not know the number.
    pub fn get(&self, node: u64) -> Result<Arc<Fd>> {
        self.table().get(&node).map(|inode| inode.fd.clone()).ok_or(Error::new(ESTALE))
    }

    /// Counts one more answer that names the object. The table keeps the descriptor if it has none.
    pub fn remember(&self, node: u64, fd: Fd) {
        // Its own Arc: a descriptor that is not needed closes after the release of the table.
        let fd = Arc::new(fd);
        let mut table = self.table();
        table.entry(node).or_insert_with(|| Inode { fd: fd.clone(), count: 0 }).count += 1;
        drop(table);
    }

    /// Removes `count` answers that named the object.
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
