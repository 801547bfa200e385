//! File handles: name_to_handle_at(2), open_by_handle_at(2), and the servers of NFS that use them.
//!
//! The kernel makes a handle from the number of an object and its generation, without a request. A
//! handle lasts longer than the object is known, and than the mount. So the number is the inode
//! number, which later mounts show too. When the kernel does not know the number of a handle, it
//! looks up `.` in it. For a directory it then looks up `..`, up to one that it knows
//! (`fuse_get_dentry` and `fuse_get_parent` in fs/fuse/inode.c). It compares the generations
//! itself.

use std::sync::Arc;

use overlayfs::errno::{ESTALE, Error, Result};
use overlayfs::layer::Layer;

use super::EngineFrontEnd;
use crate::front_end::{FrontEnd, NodeEntry};

impl<L: Layer> EngineFrontEnd<L> {
    /// Finds the object with a number that the kernel has from a handle.
    ///
    /// # Errors
    ///
    /// - ESTALE: the tree has no such object.
    ///
    /// Others as `Overlay::find_by_number`.
    pub(super) fn find_again(&self, number: u64) -> Result<NodeEntry> {
        let known = |number| self.nodes.get(&self.overlay, number).ok();
        let found = match known(number) {
            Some(node) => self.overlay.open(&node),
            None => self.call(|| self.overlay.find_by_number(number, &known))?,
        };
        let entry = self.entry(found.node())?;
        // The daemon may know the object although its last name is gone and the kernel has forgotten
        // it. And the number may be in use for an object that a rollback removed, until the kernel's
        // FORGET of that comes. Then this one, which shows the number, got another.
        let has_it = entry.node == number || entry.attr.ino == number;
        if entry.attr.nlink == 0 || !has_it {
            self.forget(entry.node, 1);
            return Err(Error::new(ESTALE));
        }
        Ok(entry)
    }

    /// Returns the directory that has an object.
    ///
    /// # Errors
    ///
    /// - ESTALE: no directory has it.
    pub(super) fn above(&self, number: u64) -> Result<NodeEntry> {
        let node = self.node(number)?;
        match self.overlay.parent(&node) {
            Some((parent, _)) => self.entry(&parent),
            None if Arc::ptr_eq(&node, self.overlay.root()) => self.entry(&node),
            None => Err(Error::new(ESTALE)),
        }
    }
}
