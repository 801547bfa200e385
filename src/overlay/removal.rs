//! The removal of an object of a layer with all its content.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::EPERM;

use super::stack::{LayerDir, Stack};
use crate::layer::{Kind, Layer, Object, Result, some_entries};

/// The most entries of a directory that are in memory at once. The rest is listed again.
pub(super) const PIECE: usize = 1 << 16;

/// Removes an entry of a directory with its content, also what its flags forbid to remove. It works
/// without recursion and with a bounded number of descriptors, since a tree may be deep.
///
/// # Errors
///
/// - ENOENT: the entry does not exist.
///
/// Others of the layer.
pub fn remove_tree<L: Layer>(stack: &Stack<L>, dir: &Arc<LayerDir<L>>, name: &OsStr, kind: Kind) -> Result<()> {
    let layer = stack.layer(dir);
    if kind != Kind::Dir {
        return remove(layer, (&*stack.open(dir)?, name), kind, false);
    }
    let mut dirs = vec![stack.child(dir, name)];
    while let Some(dir) = dirs.last().cloned() {
        let (open, count) = (stack.open(&dir)?, dirs.len());
        let entries = some_entries(layer, &open, PIECE)?;
        let is_all = entries.len() < PIECE;
        for (name, kind) in entries {
            match kind {
                Kind::Dir => dirs.push(stack.child(&dir, &name)),
                _ => remove(layer, (&open, &name), kind, true)?,
            }
        }
        if is_all && dirs.len() == count {
            dirs.pop();
            if let Some((above, name)) = stack.parent(&dir) {
                remove(layer, (&*stack.open(&above)?, &name), Kind::Dir, !dirs.is_empty())?;
            }
        }
    }
    Ok(())
}

/// Removes an entry that has no content. `inside` says that the directory goes too, so its flags
/// do not count.
fn remove<L: Layer>(layer: &L, (dir, name): (&L::Dir, &OsStr), kind: Kind, inside: bool) -> Result<()> {
    let remove = || match kind {
        Kind::Dir => layer.remove_dir(dir, name),
        _ => layer.unlink(dir, name),
    };
    match remove() {
        Err(error) if error.errno == EPERM => {
            let above = inside.then_some(Object::Dir(dir));
            for object in [Object::Entry(dir, name)].into_iter().chain(above) {
                if layer.stat(object)?.fixed.is_any() {
                    layer.set_flags(object, 0)?;
                }
            }
            remove()
        }
        removed => removed,
    }
}
