//! The flags of files and directories that chattr(1) sets: immutable, append-only and the like.
//!
//! They are the upper layer's, which also obeys them. What is in a lower layer shows none, and its copy has none: no lower layer is changed
//! anyway, and who could not undo the flag of a copy could not undo a change.

use std::sync::Arc;

use syscall::error::{ENOENT, EOPNOTSUPP, Error};

use super::Overlay;
use super::node::Node;
use crate::layer::{Kind, Layer, Result};

impl<L: Layer> Overlay<L> {
    /// The flags, as `FS_IOC_GETFLAGS` has them. EOPNOTSUPP of anything but a file or a directory, and where the upper layer has none.
    pub fn flags(&self, node: &Arc<Node<L>>) -> Result<u32> {
        check_kind(node)?;
        if !node.state.lock().upper {
            return Ok(0);
        }
        self.on_object(node, |layer, object| layer.flags(object))?.ok_or(Error::new(ENOENT))
    }

    /// Sets the flags. EROFS; EPERM; EOPNOTSUPP as [`Overlay::flags`], and for a flag that the upper layer does not have.
    pub fn set_flags(&self, node: &Arc<Node<L>>, flags: u32) -> Result<()> {
        let changed = self.flags(node)? ^ flags;
        if changed == 0 {
            return Ok(());
        }
        self.copied_up(node)?;
        // What is immutable could not be completed.
        self.complete(node)?;
        let _content = node.content.lock();
        let set = self.on_object(node, |layer, object| {
            // Some are the layer's to set, such as how it keeps the file's blocks.
            let own = layer.flags(object)?;
            layer.set_flags(object, own & !changed | flags & changed)
        });
        // A door that keeps times does not know of this.
        self.touch_as(node, &mut node.state.lock(), None);
        set?.ok_or(Error::new(ENOENT))
    }
}

fn check_kind<L: Layer>(node: &Node<L>) -> Result<()> {
    if matches!(node.kind(), Kind::File | Kind::Dir) { Ok(()) } else { Err(Error::new(EOPNOTSUPP)) }
}
