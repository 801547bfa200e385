//! A search of the whole upper layer for immutable and append-only files, for a front end that must
//! know whether there are any.
//!
//! It takes steps, so that a thread that changes such flags waits only briefly. It misses a file
//! that gets the flag, or enters a directory that was read, meanwhile.

use std::ffi::OsString;
use std::sync::Arc;

use super::Overlay;
use super::stack::LayerDir;
use crate::format::listing;
use crate::layer::{Fixed, Kind, Layer, Object};

/// The number of files in one step. A disk may have to be read for each.
const AT_ONCE: usize = 64;

/// The state of the search.
pub struct FixedLook<L: Layer> {
    /// Directories that were found and not read.
    unread: Vec<Arc<LayerDir<L>>>,
    /// Files that were not checked yet, and their directory.
    files: Vec<OsString>,
    dir: Option<Arc<LayerDir<L>>>,
}

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// Nothing found yet.
    Further,
    /// Found an immutable or append-only file.
    Found,
    /// Checked all files; there is none.
    End,
}

impl<L: Layer> Overlay<L> {
    /// Begins a search. Without an upper layer it ends at once.
    pub fn begin_look(&self) -> FixedLook<L> {
        FixedLook { unread: self.stack.upper_root().cloned().into_iter().collect(), files: Vec::new(), dir: None }
    }

    /// Makes a step. Skips what it cannot read: a write to such a file returns the error.
    pub fn look_for_fixed(&self, look: &mut FixedLook<L>) -> Looked {
        // While the tree is held, no rename moves a directory on the way.
        let _tree = self.tree.read();
        if look.files.is_empty() {
            let Some(dir) = look.unread.pop() else { return Looked::End };
            self.read_names(look, &dir);
            look.dir = Some(dir);
        }
        let Some(dir) = &look.dir else { return Looked::Further };
        let Ok(open) = self.stack.open(dir) else {
            look.files.clear();
            return Looked::Further;
        };
        let rest = look.files.len().saturating_sub(AT_ONCE);
        let (layer, reading) = (self.stack.layer(dir), self.reading(dir));
        let is_fixed = |name: OsString| {
            let object = Object::Entry(&*open, &name);
            layer.stat(object).is_ok_and(|stat| stat.fixed.is_any())
                || listing::fixed_by_attributes(layer, object, reading).is_ok_and(Fixed::is_any)
        };
        if look.files.drain(rest..).any(is_fixed) { Looked::Found } else { Looked::Further }
    }

    fn read_names(&self, look: &mut FixedLook<L>, dir: &Arc<LayerDir<L>>) {
        let listed = self.stack.open(dir).and_then(|open| {
            self.stack.layer(dir).list(&open, &mut |entry| match entry.kind {
                Kind::Dir => look.unread.push(self.stack.child(dir, entry.name)),
                Kind::File => look.files.push(entry.name.to_owned()),
                _ => {}
            })
        });
        if let Err(error) = listed {
            log::debug!("cannot search {} for immutable files: {error}", self.stack.path(dir).display());
        }
    }
}
