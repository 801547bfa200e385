//! Changed files stay open until a request asks for their attributes.
//!
//! A change makes the known attributes out of date, so the next request asks the layer. An open
//! file answers without a lookup of its path. On Redox, where a layer is another process, that
//! lookup takes most of the time. So the last handle of a changed file leaves the file open. That
//! request closes it, as the end of its last name and newer changed files do.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use super::Overlay;
use super::node::Node;
use crate::layer::Layer;
use crate::sync::Lock;

/// The number of files that stay open without a handle.
const MOST: usize = 32;

/// The changed files, the oldest first. Some have been asked about since. The lock is a leaf.
pub(super) struct Changed<L: Layer>(Lock<VecDeque<Weak<Node<L>>>>);

impl<L: Layer> Default for Changed<L> {
    fn default() -> Self {
        Changed(Lock::default())
    }
}

impl<L: Layer> Overlay<L> {
    /// Keeps the open file of a changed node until a request asks for its attributes. That of a
    /// partial copy has two files, and is not kept.
    pub(super) fn keep_changed(&self, node: &Arc<Node<L>>) {
        {
            let mut state = node.state.lock();
            let is_partial = state.stored.partial().is_some();
            if state.is_changed || is_partial || state.file.is_none() || state.fresh_attr_to_show().is_some() {
                return;
            }
            state.is_changed = true;
        }
        let mut changed = self.changed.0.lock();
        if changed.back().is_some_and(|last| std::ptr::eq(last.as_ptr(), Arc::as_ptr(node))) {
            return;
        }
        changed.push_back(Arc::downgrade(node));
        let oldest = if changed.len() > MOST { changed.pop_front() } else { None };
        drop(changed);
        if let Some(node) = oldest.and_then(|oldest| oldest.upgrade()) {
            close(&node);
        }
    }

    /// Closes all files that stay open only for their attributes.
    pub(super) fn close_changed(&self) {
        let changed = std::mem::take(&mut *self.changed.0.lock());
        changed.iter().filter_map(Weak::upgrade).for_each(|node| close(&node));
    }
}

fn close<L: Layer>(node: &Node<L>) {
    let mut state = node.state.lock();
    let file = state.take_changed();
    drop(state);
    drop(file);
}
