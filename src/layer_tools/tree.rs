//! Questions that several tools ask about a merged tree.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use crate::errno::{ENOENT, EOPNOTSUPP, Result};
use crate::layer::{Kind, Layer};
use crate::overlay::{Node, Overlay};

/// Returns the object at a path.
///
/// # Errors
///
/// Those of [`Overlay::lookup`].
pub fn at<L: Layer>(tree: &Overlay<L>, path: &Path) -> Result<Arc<Node<L>>> {
    path.iter().try_fold(tree.root().clone(), |dir, name| tree.lookup(&dir, name))
}

/// Returns the object `name` of a directory, if there is one.
///
/// # Errors
///
/// Those of [`Overlay::lookup`], but not ENOENT.
pub fn find<L: Layer>(tree: &Overlay<L>, dir: &Arc<Node<L>>, name: &OsStr) -> Result<Option<Arc<Node<L>>>> {
    match tree.lookup(dir, name) {
        Err(error) if error.errno == ENOENT => Ok(None),
        found => found.map(Some),
    }
}

/// Returns the names in a directory; none for another object.
///
/// # Errors
///
/// Those of [`Overlay::list`].
pub fn names<L: Layer>(tree: &Overlay<L>, node: &Arc<Node<L>>) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    if node.kind() == Kind::Dir {
        tree.list(&tree.open(node), 0, &mut |entry| {
            names.push(entry.name.to_owned());
            true
        })?;
    }
    Ok(names)
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
