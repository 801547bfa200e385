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
//!
//! Often no other change is under way. Then the first walk still holds, and there is no second one.

use std::collections::BTreeSet;

use crate::errno::Result;
use smallvec::SmallVec;

use crate::layer::Layer;
use crate::overlay::Node;
use crate::sync::Condition;

/// The numbers of the nodes of a change.
pub type Numbers = SmallVec<[u64; 4]>;

/// The changes in progress.
pub struct Changes {
    taken: Condition<Taken>,
}

#[derive(Default)]
struct Taken {
    /// The nodes of these changes. A request that needs one of them waits.
    nodes: BTreeSet<u64>,
    /// How many changes have begun.
    begun: u64,
}

/// A change in progress.
pub struct ChangeGuard<'c> {
    changes: &'c Changes,
    nodes: Numbers,
}

impl Changes {
    pub fn new() -> Self {
        Self { taken: Condition::new(Taken::default()) }
    }

    /// Begins a change of one node.
    pub fn of_one<L: Layer>(&self, node: &Node<L>) -> ChangeGuard<'_> {
        self.begin(Numbers::from_slice(&[node.id()])).0
    }

    /// Begins a change of the nodes that `find` returns beside its result.
    pub fn of<T>(&self, find: impl Fn() -> Result<(T, Numbers)>) -> Result<(ChangeGuard<'_>, T)> {
        let mut before = self.begun_and_ended();
        let (mut found, mut nodes) = find()?;
        loop {
            let (guard, begun) = self.begin(nodes);
            if guard.nodes.is_empty() || before.take() == Some(begun) {
                return Ok((guard, found));
            }
            (found, nodes) = find()?;
            if nodes.iter().all(|node| guard.nodes.contains(node)) {
                return Ok((guard, found));
            }
        }
    }

    /// Returns how many changes have begun, if all of them have ended.
    fn begun_and_ended(&self) -> Option<u64> {
        self.taken.when(|_| true, |taken| taken.nodes.is_empty().then_some(taken.begun))
    }

    /// Also returns how many changes began before.
    fn begin(&self, mut nodes: Numbers) -> (ChangeGuard<'_>, u64) {
        nodes.sort_unstable();
        nodes.dedup();
        let begun = if nodes.is_empty() {
            0
        } else {
            self.taken.when(|taken| taken.are_free(&nodes), |taken| taken.take(&nodes))
        };
        (ChangeGuard { changes: self, nodes }, begun)
    }
}

impl Taken {
    fn are_free(&self, nodes: &Numbers) -> bool {
        nodes.iter().all(|node| !self.nodes.contains(node))
    }

    /// Returns how many changes began before.
    fn take(&mut self, nodes: &Numbers) -> u64 {
        self.nodes.extend(nodes);
        self.begun += 1;
        self.begun - 1
    }
}

impl Drop for ChangeGuard<'_> {
    fn drop(&mut self) {
        if !self.nodes.is_empty() {
            self.changes.taken.change(|taken| taken.nodes.retain(|node| !self.nodes.contains(node)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    fn numbers(numbers: &[u64]) -> Numbers {
        Numbers::from_slice(numbers)
    }

    /// Returns how often a change of node 1 walks. `meanwhile` happens in its first walk.
    fn walks(changes: &Changes, meanwhile: impl Fn()) -> u32 {
        let walks = Cell::new(0);
        let walk = || {
            walks.set(walks.get() + 1);
            if walks.get() == 1 {
                meanwhile();
            }
            Ok(((), numbers(&[1])))
        };
        drop(changes.of(walk));
        walks.get()
    }

    #[test]
    fn a_change_walks_again_only_if_another_may_have_come_between() {
        let changes = Changes::new();
        assert_eq!(walks(&changes, || {}), 1);
        assert_eq!(walks(&changes, || drop(changes.begin(numbers(&[2])))), 2, "one began and ended");
        let (under_way, _) = changes.begin(numbers(&[2]));
        assert_eq!(walks(&changes, || {}), 2, "one is under way");
        drop(under_way);
        let (until_then, _) = changes.begin(numbers(&[2]));
        let until_then = Cell::new(Some(until_then));
        assert_eq!(walks(&changes, || drop(until_then.take())), 2, "one ended");
        assert_eq!(walks(&changes, || {}), 1);
    }

    #[test]
    fn a_change_of_a_node_waits_for_the_end_of_another() {
        let changes = Changes::new();
        let (first, _) = changes.begin(numbers(&[1, 2]));
        thread::scope(|scope| {
            let (says, told) = mpsc::channel();
            scope.spawn(|| {
                let says = says;
                let _second = changes.begin(numbers(&[2, 3]));
                says.send(()).unwrap();
            });
            drop(changes.begin(numbers(&[4])));
            assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
            drop(first);
            assert_eq!(told.recv(), Ok(()));
        });
    }
}
