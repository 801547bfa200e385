//! Partial copies in an upper layer that the mount only reads. The engine shows them as they are,
//! and completes and removes none.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{ENOENT, ESTALE, Error};

use crate::format::PartOf;
use crate::layer::{Kind, Layer, Result};
use crate::overlay::Overlay;
use crate::overlay::names::{Names, Slot};
use crate::overlay::node::{Node, ObjectName, State, Stored};
use crate::overlay::stack::LayerDir;

impl<L: Layer> Overlay<L> {
    /// Records which names of a directory have partial copies in the topmost layer. The mount only
    /// reads that layer, which hides none of these names. `dirs` are the layers' directories.
    pub(in crate::overlay) fn show_parts(
        &self,
        dirs: &[Arc<LayerDir<L>>],
        names: &mut Names<L>,
        parts: &[PartOf],
    ) -> Result<()> {
        let Some(top) = dirs.first() else { return Ok(()) };
        for part in parts {
            let slot = names.get_mut(&part.1);
            let source = slot.as_deref().and_then(|slot| source_dir(slot, dirs));
            if source.is_some_and(|dir| dir.index() == 0) {
                // An object beside the copy has precedence.
                continue;
            }
            match slot {
                Some(slot) if self.has_source(source, part)? => slot.part = true,
                _ => self.tell_lost(top, part, source.is_some()),
            }
        }
        Ok(())
    }

    /// Returns the node of a name with a partial copy in `top`, as [`Overlay::load_partial`] does
    /// in an overlay that writes. Returns None if the copy is obsolete.
    ///
    /// # Errors
    ///
    /// - ESTALE: another overlay has completed the copy meanwhile.
    pub(in crate::overlay) fn show_partial(
        &self,
        parent: &Arc<Node<L>>,
        top: &Arc<LayerDir<L>>,
        from: &Arc<LayerDir<L>>,
        name: &OsStr,
    ) -> Result<Option<Arc<Node<L>>>> {
        let lower = self.stack.stat(from, name)?;
        let (_, partial, mut copy) = match self.find_part(top, from, name, &lower) {
            Err(error) if error.errno == ENOENT => return Err(Error::new(ESTALE)),
            found => found?,
        };
        if copy.nlink > 1 {
            return Ok(None);
        }
        if let Some(map) = self.read_map(&partial)? {
            partial.chunks.lock().read_map(&map, self.stack.layer(top).epoch());
        }
        let mtime = {
            let mut chunks = partial.chunks.lock();
            // Chunks behind the end no longer come from the source.
            chunks.size = chunks.size.min(copy.size);
            chunks.mtime.take()
        };
        copy.mtime = mtime.unwrap_or(copy.mtime);
        let place = ObjectName { parent: parent.clone(), name: name.into(), dir: from.clone() };
        let ino = Some(self.number_of_part(&place, &lower, (&partial, &copy))?);
        let state = State { ino, stored: Stored::Partial(partial), ..State::at(place.clone(), false, Some(copy)) };
        Ok(Some(Node::new(self.id_at(&place, ino), Kind::File, state, None)))
    }
}

/// Returns the directory of `dirs` that has the file which a name shows, if one has.
pub(in crate::overlay) fn source_dir<'d, L: Layer>(
    slot: &Slot<L>,
    dirs: &'d [Arc<LayerDir<L>>],
) -> Option<&'d Arc<LayerDir<L>>> {
    let lower = slot.lower.as_ref().filter(|lower| lower.kind == Kind::File)?;
    dirs.get(lower.dir as usize)
}
