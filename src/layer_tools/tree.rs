//! Questions that several tools ask about a merged tree.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use crate::errno::{EOPNOTSUPP, Result};
use crate::layer::{Fixed, Kind, Layer};
use crate::overlay::{Node, Overlay};

/// Returns the object at a path.
///
/// # Errors
///
/// Those of [`Overlay::lookup`].
pub fn at<L: Layer>(tree: &Overlay<L>, path: &Path) -> Result<Arc<Node<L>>> {
    path.iter().try_fold(tree.root().clone(), |dir, name| tree.lookup(&dir, name))
}

/// Returns the names of the extended attributes of an object; none on a layer without any.
///
/// # Errors
///
/// Those of [`Overlay::xattrs`], but not EOPNOTSUPP.
pub fn xattrs<L: Layer>(tree: &Overlay<L>, node: &Arc<Node<L>>) -> Result<Vec<OsString>> {
    match tree.xattrs(node) {
        Err(error) if error.errno == EOPNOTSUPP => Ok(Vec::new()),
        names => names,
    }
}

/// Returns the flags that make an object immutable or append-only for programs.
///
/// # Errors
///
/// Those of [`Overlay::stat`] and [`Overlay::fixed`].
pub fn fixed<L: Layer>(tree: &Overlay<L>, node: &Arc<Node<L>>) -> Result<Fixed> {
    let fixed = tree.stat(node)?.fixed;
    match node.kind() {
        Kind::File | Kind::Dir => Ok(tree.fixed(node)?.or(fixed)),
        _ => Ok(fixed),
    }
}
