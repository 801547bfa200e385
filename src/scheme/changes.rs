//! Changes of names and attributes: a change meets the state that was checked.
//!
//! A request checks access and makes its change under one [`ChangeGuard`]. The guard covers the
//! directories of the changed names, and the objects that change or lose a name. No other request
//! changes these meanwhile, nor the rights to them. A request waits only if it changes one of them.
//! Opens, reads, writes and questions never wait.
//!
//! The path names these objects, but they are unknown before the first walk, and that holds no
//! guard. So the request walks again under the guard, until the path leads to the guarded objects
//! ([`Changes::of`]). Directories above need no guard: the walk checks the right to search them.
//!
//! A request takes all nodes of its change at once, when all are free. It asks for no more while it
//! holds some. So there is no order, and no two requests wait for each other.

use std::collections::HashSet;

use crate::errno::Result;
use smallvec::SmallVec;

use crate::layer::Layer;
use crate::overlay::Node;
use crate::sync::Condition;

/// The numbers of the nodes of a change.
pub type Numbers = SmallVec<[u64; 4]>;

/// The changes in progress.
pub struct Changes {
    /// The nodes of these changes. A request that needs one of them waits.
    taken: Condition<HashSet<u64>>,
}

/// A change in progress.
pub struct ChangeGuard<'c> {
    changes: &'c Changes,
    nodes: Numbers,
}

impl Changes {
    pub fn new() -> Self {
        Self { taken: Condition::new(HashSet::new()) }
    }

    /// Begins a change of one node.
    pub fn of_one<L: Layer>(&self, node: &Node<L>) -> ChangeGuard<'_> {
        self.begin(Numbers::from_slice(&[node.id()]))
    }

    /// Begins a change of the nodes that `find` returns beside its result.
    pub fn of<T>(&self, find: impl Fn() -> Result<(T, Numbers)>) -> Result<(ChangeGuard<'_>, T)> {
        let (mut found, mut nodes) = find()?;
        loop {
            let guard = self.begin(nodes);
            if guard.nodes.is_empty() {
                return Ok((guard, found));
            }
            (found, nodes) = find()?;
            if nodes.iter().all(|node| guard.nodes.contains(node)) {
                return Ok((guard, found));
            }
        }
    }

    fn begin(&self, mut nodes: Numbers) -> ChangeGuard<'_> {
        nodes.sort_unstable();
        nodes.dedup();
        if !nodes.is_empty() {
            let mut taken = self.taken.lock_when(|taken| nodes.iter().all(|node| !taken.contains(node)));
            taken.extend(&nodes);
        }
        ChangeGuard { changes: self, nodes }
    }
}

impl Drop for ChangeGuard<'_> {
    fn drop(&mut self) {
        if self.nodes.is_empty() {
            return;
        }
        let mut taken = self.changes.taken.lock();
        for node in &self.nodes {
            taken.remove(node);
        }
        drop(taken);
        self.changes.taken.notify_all();
    }
}
