//! The flags of files and directories that chattr(1) sets: immutable, append-only and others.
//!
//! The upper layer keeps the flags of its objects, and obeys them. An object that is *fixed*
//! (immutable or append-only) in a lower layer is so in the tree. No layer would refuse the change
//! of a copy, so the engine refuses it before it copies anything up.
//!
//! A fixed object is copied up in three cases. Its flags are removed. A program appends to a file,
//! and the copy becomes append-only too. Or an object below a directory is copied up; then the copy
//! of the directory has no flags, since objects must be copied into it.

use std::sync::Arc;

use crate::errno::{ENOENT, EOPNOTSUPP, EPERM, Error};

use super::Overlay;
use super::copy_up::For;
use super::node::Node;
use crate::layer::{Fixed, Kind, Layer, Result};

/// The flags that fix an object, with their values in `FS_IOC_GETFLAGS`.
const IMMUTABLE: u32 = 0x10;
const APPEND: u32 = 0x20;

impl<L: Layer> Overlay<L> {
    /// Returns the flags with their values in `FS_IOC_GETFLAGS`. Of an object in a lower layer
    /// these are the flags that fix it.
    ///
    /// # Errors
    ///
    /// - EOPNOTSUPP: `node` is neither a file nor a directory, or the upper layer has no flags.
    pub fn flags(&self, node: &Arc<Node<L>>) -> Result<u32> {
        check_kind(node)?;
        if !node.state.lock().upper {
            let Fixed { immutable, append } = self.fixed_below(node)?;
            return Ok(if immutable { IMMUTABLE } else { 0 } | if append { APPEND } else { 0 });
        }
        self.on_object(node, |layer, object| layer.flags(object))?.ok_or(Error::new(ENOENT))
    }

    /// Sets the flags.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    /// - EPERM: the layer refuses the change.
    /// - EOPNOTSUPP: `node` is neither a file nor a directory, or the upper layer lacks a flag.
    pub fn set_flags(&self, node: &Arc<Node<L>>, flags: u32) -> Result<()> {
        let changed = self.flags(node)? ^ flags;
        if changed == 0 {
            return Ok(());
        }
        self.ensure_copied_up(node, For::Flags)?;
        // An immutable file could not be completed later.
        self.complete(node)?;
        let _content = node.content.lock();
        // A copy has none of the flags that fix its original.
        let changed = changed | IMMUTABLE | APPEND;
        let set = self.on_object(node, |layer, object| {
            // The layer sets some flags itself, such as the kind of the file's block map.
            let own = layer.flags(object)?;
            layer.set_flags(object, own & !changed | flags & changed)
        });
        // A front end that keeps times does not know of this change.
        self.touch_as(node, &mut node.state.lock(), None);
        set?.ok_or(Error::new(ENOENT))
    }

    /// Returns the flags that fix an object of a lower layer. Returns none for an object in the
    /// upper layer, which obeys its own flags.
    ///
    /// # Errors
    ///
    /// Those of [`Layer::stat`].
    pub fn fixed_below(&self, node: &Arc<Node<L>>) -> Result<Fixed> {
        let is_upper = node.state.lock().upper;
        if is_upper { Ok(Fixed::default()) } else { self.layer_attr(node).map(|attr| attr.fixed) }
    }

    /// Checks that an object may be copied up for this purpose.
    ///
    /// # Errors
    ///
    /// - EPERM: the object is fixed in its lower layer.
    pub(super) fn check_fixed_below(&self, node: &Arc<Node<L>>, why: For) -> Result<Fixed> {
        if why == For::Flags {
            return Ok(Fixed::default());
        }
        let fixed = self.fixed_below(node)?;
        if fixed.immutable || fixed.append && why != For::Write { Err(Error::new(EPERM)) } else { Ok(fixed) }
    }

    /// Checks that an entry of a directory may be made, or that the entry of `goes` may be removed.
    ///
    /// # Errors
    ///
    /// - EPERM: the directory or the object is fixed in a lower layer.
    pub(super) fn check_entries(&self, dir: &Arc<Node<L>>, goes: Option<&Arc<Node<L>>>) -> Result<()> {
        let fixed = self.fixed_below(dir)?;
        let forbidden = match goes {
            Some(node) => fixed.is_any() || self.fixed_below(node)?.is_any(),
            None => fixed.immutable,
        };
        if forbidden { Err(Error::new(EPERM)) } else { Ok(()) }
    }

    /// Makes the copy of an append-only file append-only. The caller holds the content's lock.
    pub(super) fn fix_copy(&self, node: &Arc<Node<L>>) -> Result<()> {
        let fixed = self.on_object(node, |layer, object| {
            let own = layer.flags(object)?;
            layer.set_flags(object, own | APPEND)
        });
        match fixed {
            Err(error) if error.errno != EOPNOTSUPP => return Err(error),
            _ => {}
        }
        // The file that is open for writing could write at any offset.
        let _closed = node.state.lock().file.take();
        Ok(())
    }
}

fn check_kind<L: Layer>(node: &Node<L>) -> Result<()> {
    if matches!(node.kind(), Kind::File | Kind::Dir) { Ok(()) } else { Err(Error::new(EOPNOTSUPP)) }
}
