//! The data that overlays leave in layers and work directories, for `fsck` and `layer_tools`.
//! Beyond this, both use only the public interface of the engine.

use std::sync::Arc;

use super::{Node, Overlay};
use crate::layer::{Layer, Result};

#[cfg(feature = "layer-tools")]
pub use super::compare::{Content, Entry, Relation, content, has_copy, is_upper_over};
#[cfg(feature = "layer-tools")]
pub use super::detect::attempt as try_kernel_marks;
pub use super::detect::namespace;
pub use super::features::{Features, Need, found as found_features};
pub use super::holder::{RECORD as HOLDER, hold};
pub use super::index::{NUMBERS, Origin, is_link, origin, review, rewrite};
pub use super::partial::{map_len, means_something as map_means_something};
pub use super::record::{RECORD, Record};
#[cfg(feature = "layer-tools")]
pub use super::record::{end_line, escape, unescape};
pub use super::stack::{LayerDir, Stack};
#[cfg(feature = "layer-tools")]
pub use super::survey::{Survey, survey};
pub use super::volatile::is_marked as is_marked_volatile;
pub use super::work::{is_kept, is_ours};

/// Returns the layers of an overlay.
pub fn stack_of<L: Layer>(overlay: &Overlay<L>) -> &Stack<L> {
    &overlay.stack
}

/// Returns the origin of an object of a lower layer. None if it has no name left.
pub fn origin_of<L: Layer>(overlay: &Overlay<L>, node: &Arc<Node<L>>) -> Result<Option<Origin>> {
    let place = node.state.lock().places.first().cloned();
    place.map(|place| Ok(origin(&overlay.stack, &place.dir, &overlay.layer_attr(node)?))).transpose()
}
