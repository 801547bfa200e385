//! Changes of names and attributes: what was checked is what is changed.
//!
//! Whoever checks access and then changes something does both while the change is under way (a
//! [`ChangeGuard`]) for the directories whose names change, and for the objects that are changed or
//! lose a name. Nobody else changes any of these meanwhile, nor who may do what in them. Nobody
//! waits who changes something else, or who only opens, reads, writes or asks.
//!
//! Which objects are meant a path tells, and that before anything is held. So it is walked again
//! afterwards, until it leads to what is held ([`Changes::of`]). The directories above are not
//! held: the right to search them is asked on the way.
//!
//! All that a change needs is taken at once, when it is free, and nobody asks for more while he has
//! something: so there is no order, and no two wait for each other.

use std::collections::HashSet;

use crate::errno::Result;
use smallvec::SmallVec;

use crate::layer::Layer;
use crate::overlay::Node;
use crate::sync::Condition;

/// The numbers of the nodes that a change is about.
pub type Numbers = SmallVec<[u64; 4]>;

/// The changes that are under way.
pub struct Changes {
    /// The nodes that they are about; those who want one of them wait.
    taken: Condition<HashSet<u64>>,
}

/// A change that is under way.
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

    /// Begins a change of what `find` finds, and says of which nodes it is one.
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
