//! Room in the upper layer, for who has taken data that the layer does not have yet.

use std::sync::Arc;

use super::Overlay;
use super::node::Node;
use super::work::discard;
use crate::layer::{Allocation, Layer, Object, Owner, Result};

impl<L: Layer> Overlay<L> {
    /// Tries whether the owner of an object could have so many more bytes, by a file that is there for a moment. ENOSPC, EDQUOT; EOPNOTSUPP where
    /// the layer reserves no space; EROFS.
    pub fn find_room(&self, node: &Arc<Node<L>>, bytes: u64) -> Result<()> {
        let (upper, work) = self.upper()?;
        let attr = self.layer_attr(node)?;
        let owner = Owner { uid: attr.uid, gid: attr.gid };
        let made_as = if upper.creates_as(owner) { owner } else { upper.identity() };
        let (dir, name) = (self.stack.open(work.dir())?, work.name());
        let file = upper.create_file(&dir, &name, 0o600, made_as)?;
        let owned = if made_as == owner { Ok(()) } else { upper.set_owner(Object::File(&file), owner) };
        let found = owned.and_then(|()| upper.allocate(&file, Allocation::Reserve { keep_size: true }, 0..bytes));
        drop(file);
        discard(upper, &dir, &name);
        found
    }
}
