//! The flags of files and directories that chattr(1) sets: immutable, append-only and the like.
//!
//! Those of an object in the upper layer are that layer's, which also obeys them. What is *fixed*
//! (immutable or append-only) in a lower layer is so in the tree: no layer would refuse the change
//! of a copy, so it is refused before anything is copied up. A copy is made of what is fixed only
//! to take the flags away, to append to a file, which then is append-only in the upper layer too,
//! or for what is below a directory: that copy has no flags, since then nothing could be copied
//! into it.

use std::sync::Arc;

use crate::errno::{ENOENT, EOPNOTSUPP, EPERM, Error};

use super::Overlay;
use super::copy_up::For;
use super::node::Node;
use crate::layer::{Fixed, Kind, Layer, Result};

/// The flags that make an object fixed, as `FS_IOC_GETFLAGS` has them.
const IMMUTABLE: u32 = 0x10;
const APPEND: u32 = 0x20;

impl<L: Layer> Overlay<L> {
    /// The flags, as `FS_IOC_GETFLAGS` has them; of an object in a lower layer those that make it
    /// fixed. EOPNOTSUPP of anything but a file or a directory, and where the upper layer has none.
    pub fn flags(&self, node: &Arc<Node<L>>) -> Result<u32> {
        check_kind(node)?;
        if !node.state.lock().upper {
            let Fixed { immutable, append } = self.fixed_below(node)?;
            return Ok(if immutable { IMMUTABLE } else { 0 } | if append { APPEND } else { 0 });
        }
        self.on_object(node, |layer, object| layer.flags(object))?.ok_or(Error::new(ENOENT))
    }

    /// Sets the flags. EROFS; EPERM; EOPNOTSUPP as [`Overlay::flags`], and for a flag that the
    /// upper layer does not have.
    pub fn set_flags(&self, node: &Arc<Node<L>>, flags: u32) -> Result<()> {
        let changed = self.flags(node)? ^ flags;
        if changed == 0 {
            return Ok(());
        }
        self.ensure_copied_up(node, For::Flags)?;
        // What is immutable could not be completed.
        self.complete(node)?;
        let _content = node.content.lock();
        // A copy has none of the flags that make its original fixed.
        let changed = changed | IMMUTABLE | APPEND;
        let set = self.on_object(node, |layer, object| {
            // Some are the layer's to set, such as how it keeps the file's blocks.
            let own = layer.flags(object)?;
            layer.set_flags(object, own & !changed | flags & changed)
        });
        // A front end that keeps times does not know of this.
        self.touch_as(node, &mut node.state.lock(), None);
        set?.ok_or(Error::new(ENOENT))
    }

    /// What is fixed of an object of a lower layer; of one in the upper layer, that says so itself.
    pub fn fixed_below(&self, node: &Arc<Node<L>>) -> Result<Fixed> {
        let is_upper = node.state.lock().upper;
        if is_upper { Ok(Fixed::default()) } else { self.layer_attr(node).map(|attr| attr.fixed) }
    }

    /// Before an object is copied up. EPERM if what for is not allowed.
    pub(super) fn check_fixed_below(&self, node: &Arc<Node<L>>, why: For) -> Result<Fixed> {
        if why == For::Flags {
            return Ok(Fixed::default());
        }
        let fixed = self.fixed_below(node)?;
        if fixed.immutable || fixed.append && why != For::Write { Err(Error::new(EPERM)) } else { Ok(fixed) }
    }

    /// Before an entry is made in a directory, or goes, which is that of an object. EPERM if either
    /// is fixed in a lower layer.
    pub(super) fn check_entries(&self, dir: &Arc<Node<L>>, goes: Option<&Arc<Node<L>>>) -> Result<()> {
        let fixed = self.fixed_below(dir)?;
        let forbidden = match goes {
            Some(node) => fixed.is_any() || self.fixed_below(node)?.is_any(),
            None => fixed.immutable,
        };
        if forbidden { Err(Error::new(EPERM)) } else { Ok(()) }
    }

    /// Makes the copy of an append-only file append-only. The content must be locked.
    pub(super) fn fix_copy(&self, node: &Arc<Node<L>>) -> Result<()> {
        let fixed = self.on_object(node, |layer, object| {
            let own = layer.flags(object)?;
            layer.set_flags(object, own | APPEND)
        });
        match fixed {
            Err(error) if error.errno != EOPNOTSUPP => return Err(error),
            _ => {}
        }
        // What is open for writing could write anywhere.
        let _closed = node.state.lock().file.take();
        Ok(())
    }
}

fn check_kind<L: Layer>(node: &Node<L>) -> Result<()> {
    if matches!(node.kind(), Kind::File | Kind::Dir) { Ok(()) } else { Err(Error::new(EOPNOTSUPP)) }
}
