//! A walk through the directories of the merged tree.
//!
//! It keeps only the directories on the way, and the names that are left in them. So it needs
//! little memory in a tree of any size.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Overlay;
use super::node::Node;
use crate::layer::{Layer, Result};

/// A function for each directory of a walk. It gets the path from the start, and returns the names
/// of the directories to enter.
pub type EachDir<'f, L> = dyn FnMut(&Path, &Arc<Node<L>>) -> Result<Vec<Arc<OsStr>>> + 'f;

impl<L: Layer> Overlay<L> {
    /// Calls `each` for a directory, and then for those below it that `each` names. A directory
    /// comes before those in it.
    ///
    /// # Errors
    ///
    /// Those of [`Overlay::lookup`] and of `each`.
    pub fn each_dir(&self, top: &Arc<Node<L>>, each: &mut EachDir<'_, L>) -> Result<()> {
        let mut path = PathBuf::new();
        // An open directory is not evicted, so each is read once.
        let mut frames = vec![(self.open(top), each(&path, top)?.into_iter())];
        while let Some((dir, names)) = frames.last_mut() {
            let Some(name) = names.next() else {
                frames.pop();
                path.pop();
                continue;
            };
            let node = self.lookup(dir.node(), &name)?;
            path.push(&*name);
            let inside = each(&path, &node)?.into_iter();
            frames.push((self.open(&node), inside));
        }
        Ok(())
    }
}
