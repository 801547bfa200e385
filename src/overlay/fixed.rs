//! A look through the whole upper layer for files that are immutable or append-only, for a front
//! end that has to know whether there is one.
//!
//! It goes in steps, so that who makes one is soon free again. What becomes so meanwhile, or comes
//! into a directory that was read, is not seen.

use std::ffi::OsString;
use std::sync::Arc;

use super::Overlay;
use super::stack::LayerDir;
use crate::layer::{Kind, Layer, Object};

/// At how many files one step looks.
const AT_ONCE: usize = 512;

/// How far the look has come.
pub struct FixedLook<L: Layer> {
    /// Directories that were met and not read.
    unread: Vec<Arc<LayerDir<L>>>,
    /// Files at which nobody has looked, and their directory.
    files: Vec<OsString>,
    dir: Option<Arc<LayerDir<L>>>,
}

/// What a step has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looked {
    /// Nothing yet.
    Further,
    /// A file that is fixed.
    Found,
    /// That there is none.
    End,
}

impl<L: Layer> Overlay<L> {
    /// Begins to look. Without an upper layer there is nothing to find.
    pub fn begin_look(&self) -> FixedLook<L> {
        FixedLook { unread: self.stack.upper_root().cloned().into_iter().collect(), files: Vec::new(), dir: None }
    }

    /// Makes a step. What cannot be read is passed over: it is met when it is written to.
    pub fn look_for_fixed(&self, look: &mut FixedLook<L>) -> Looked {
        // So that no directory is renamed on the way to one below it.
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
        let is_fixed = |name: OsString| {
            let stat = self.stack.layer(dir).stat(Object::Entry(&*open, &name));
            stat.is_ok_and(|stat| stat.fixed.is_any())
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
            log::debug!("a directory is not looked through: {error}");
        }
    }
}
