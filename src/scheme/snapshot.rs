//! Snapshots and rollbacks of a scheme at work: another overlay takes the place of the present one,
//! and the handles of clients stay.
//!
//! The exchange holds the tree alone, so no request is under way. It finds all objects of handles
//! again at once: there are few, and each is one that a client uses. One that is not there after a
//! rollback answers ESTALE from then on.

use std::collections::HashMap;
use std::sync::Arc;

use super::OverlayScheme;
use super::tree::Tree;
use crate::control::Failure;
use crate::control::fact::Fact;
use crate::control::snapshots;
use crate::errno::ESTALE;
use crate::layer::Layer;
use crate::overlay::{Handle, Node, Overlay, Unfrozen};

/// Makes the overlay that follows, for the objects of handles.
type Follow<'a, L> = &'a dyn Fn(&Overlay<L>, &[Arc<Node<L>>]) -> Result<Overlay<L>, Unfrozen>;

impl<L: Layer> OverlayScheme<L> {
    /// Freezes the upper layer, and goes on in a new one. Returns the name of the snapshot.
    ///
    /// # Errors
    ///
    /// - A clause says why there is no snapshot. The scheme goes on without it.
    pub(super) fn snapshot(&self, name: Option<&str>) -> Result<Vec<Fact>, Failure> {
        self.exchange(&|overlay, nodes| overlay.snapshot(name, nodes))?;
        let tree = self.tree();
        tree.mappings.copy_up(&tree.overlay);
        Ok(snapshots::last(tree.overlay.snapshots()))
    }

    /// Leaves the upper layer aside, and shows the last snapshot. Returns its name.
    ///
    /// # Errors
    ///
    /// - A clause says why there is no rollback. The scheme goes on without it.
    pub(super) fn roll_back(&self) -> Result<Vec<Fact>, Failure> {
        self.exchange(&Overlay::roll_back)?;
        Ok(snapshots::last(self.tree().overlay.snapshots()))
    }

    /// Puts the overlay that `follow` makes in the place of the present one.
    fn exchange(&self, follow: Follow<'_, L>) -> Result<(), Failure> {
        // Most of the work, while requests go on.
        self.tree().overlay.complete_and_sync()?;
        let mut tree = self.tree.write();
        tree.mappings.write_all_back(&tree.overlay)?;
        tree.overlay.complete_and_sync()?;
        let next = follow(&tree.overlay, &tree.nodes())?;
        tree.go_on_with(Arc::new(next));
        Ok(())
    }
}

impl<L: Layer> Tree<L> {
    /// Returns the objects that belong to clients, each once.
    fn nodes(&self) -> Vec<Arc<Node<L>>> {
        let all = [self.handles.nodes(), self.mappings.nodes(), self.sockets.nodes()];
        let once: HashMap<_, _> = all.into_iter().flatten().map(|node| (node.id(), node)).collect();
        once.into_values().collect()
    }

    /// Finds the objects that belong to clients again in the overlay that follows.
    fn go_on_with(&mut self, next: Arc<Overlay<L>>) {
        let mut found: HashMap<u64, Option<Handle<L>>> = HashMap::new();
        let mut find = |node: &Node<L>| {
            let again = || match next.find_again(node.id()) {
                Ok(handle) => Some(handle),
                Err(error) => {
                    // A rollback takes objects away.
                    if error.errno != ESTALE {
                        log::warn!("an open file is lost to the programs that use it: {error}");
                    }
                    next.forget_earlier(node.id());
                    None
                }
            };
            let is_root = node.id() == next.root().id();
            let known =
                found.entry(node.id()).or_insert_with(|| if is_root { Some(next.open(next.root())) } else { again() });
            known.as_ref().map(|handle| next.open(handle.node()))
        };
        self.handles.follow(&mut find);
        self.mappings.follow(&mut find);
        self.sockets.follow(&mut find);
        self.overlay = next.clone();
    }
}
