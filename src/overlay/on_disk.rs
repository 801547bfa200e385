//! The data that overlays leave in layers and work directories, for `fsck` and `layer_tools`.
//! Beyond this, both use only the public interface of the engine.

use std::sync::Arc;

use super::{Node, Overlay};
use crate::layer::{Layer, Result};

#[cfg(feature = "layer-tools")]
pub use super::compact::CompactMap;
#[cfg(feature = "layer-tools")]
pub use super::compare::{Content, Entry, Relation, content, has_copy, head, is_upper_over};
#[cfg(feature = "layer-tools")]
pub use super::detect::attempt as try_kernel_marks;
pub use super::detect::namespace;
pub use super::features::{Features, Need, found as found_features};
pub use super::holder::{RECORD as HOLDER, hold, hold_on_all_hosts};
pub use super::index::{IndexEntry, NUMBERS, Origin, is_link, origin, review, rewrite};
pub use super::partial::{map_len, means_something as map_means_something};
pub use super::record::{RECORD, Record};
#[cfg(feature = "layer-tools")]
pub use super::record::{end_line, end_line_of, escape, unescape};
pub use super::removal::remove_tree;
pub use super::stack::{LayerDir, Stack};
#[cfg(feature = "layer-tools")]
pub use super::survey::{Counts, Survey, survey};
pub use super::volatile::is_marked as is_marked_volatile;
pub use super::work::{entries_but_links, is_kept, is_ours};

/// Returns the layers of an overlay.
pub fn stack_of<L: Layer>(overlay: &Overlay<L>) -> &Stack<L> {
    &overlay.stack
}

/// Returns how the layers below the upper layer of a view differ from those of its last mount, in
/// words. None: they do not, the view shows no upper layer, or that has no record.
#[cfg(feature = "layer-tools")]
pub fn other_lowers<L: Layer>(view: &Overlay<L>) -> Result<Option<String>> {
    let (Some(work), Some(root)) = (view.works.last(), view.stack.lower_roots().first()) else { return Ok(None) };
    let before = Record::read(view.stack.layer(work), &*view.stack.open(work)?)?;
    let now = Record::of_below(&view.stack, root)?;
    Ok(before.and_then(|before| now.difference(&before)))
}

/// Returns the origin of an object of a lower layer. None if it has no name left.
pub fn origin_of<L: Layer>(overlay: &Overlay<L>, node: &Arc<Node<L>>) -> Result<Option<Origin>> {
    let place = node.state.lock().places.first().cloned();
    place.map(|place| Ok(origin(&overlay.stack, &place.dir, &overlay.layer_attr(node)?))).transpose()
}
