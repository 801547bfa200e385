//! The copy-up of a file that loses all its data at this moment.
//!
//! Nothing of the original is copied, so the copy is whole from its creation. One step makes it at
//! its place, where other copies need a rename. A crash shows the original or the empty file, as
//! after any truncation.

use std::sync::Arc;

use crate::errno::{EACCES, EIO, Error};

use super::Overlay;
use super::copy_up::Placed;
use super::names::Upper;
use super::node::{Node, OpenFile};
use super::ownership::SET_ID;
use super::work::discard;
use crate::layer::{Access, Layer, Object, Owner, Result, Stat};

impl<L: Layer> Overlay<L> {
    /// Makes the empty copy of a file at its place. Returns false, and makes nothing, if the
    /// creation alone cannot give the copy all that it needs: its extended attributes, its set-id
    /// bits, its other names.
    ///
    /// The caller must hold the content of the file.
    pub(super) fn make_emptied(&self, node: &Arc<Node<L>>, before: &Stat) -> Result<bool> {
        let (upper, _) = self.upper()?;
        let owner = Owner { uid: before.uid, gid: before.gid };
        if upper.capabilities().xattrs || before.mode & SET_ID != 0 || !upper.tries_to_create_as(owner) {
            return Ok(false);
        }
        let _tree = self.tree.read();
        let place = {
            let state = node.state.lock();
            state.places.first().filter(|_| state.origin().is_none()).cloned()
        };
        let Some(place) = place else { return Ok(false) };
        let mut parent = place.parent.dir()?;
        let Some(to) = parent.upper.clone() else { return Ok(false) };

        let mut made = None;
        let placed = self.keeping_times(&place.parent, &to, |dir| {
            let file = upper.create_file(dir, &place.name, before.mode, owner)?;
            let asked = || upper.stat(Object::File(&file)).inspect_err(|_| discard(upper, dir, &place.name));
            let copy = upper.attr_of_new(&file).map_or_else(asked, Ok)?;
            made = Some((file, copy));
            Ok(())
        });
        match placed {
            // The daemon reaches the directory, but the owner does not.
            Err(error) if error.errno == EACCES => return Ok(false),
            placed => placed?,
        }
        let (file, copy) = made.ok_or(Error::new(EIO))?;
        let copy = self.stack.mark(&to, copy);
        self.numbered(node, before, &copy, || Ok(()))?;
        let names = self.read_dir_at(&place.parent, &mut parent, &place.name)?;
        names.entry(&place.name).upper = Some(Upper { kind: copy.kind, ino: Some(copy.ino) });

        let open = Arc::new(OpenFile { file, access: Access::ReadWrite, dir: to.clone(), from_lower: None });
        let placed = Placed { to: Some(to), index_entry: None };
        self.use_copy(node, before, &copy, (Some(place.clone()), None), placed, Some(open));
        Ok(true)
    }
}
