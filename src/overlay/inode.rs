//! Inode numbers: unique among the objects of the merged tree that anyone holds, and the same over copy-up.
//!
//! An object keeps the number of the layer that it was first seen in. The topmost layer's are left as they are, those of every other are
//! set apart by their high bits. The few numbers that would meet another's are replaced by one from a counter.
//!
//! The lock is a leaf.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::node::Node;
use super::sync::Lock;
use crate::layer::{Layer, Stat};

/// Where the filesystem's number starts within an inode number.
const DEVICE_SHIFT: u32 = 48;
/// From here on numbers come from the counter.
const COUNTED: u64 = 1 << 63;
/// The number that doors and filesystems keep for the root.
const ROOT: u64 = 1;

pub struct Inodes<L: Layer> {
    tables: Lock<Tables<L>>,
}

struct Tables<L: Layer> {
    /// The filesystems of the layers, as marked by the stack, and what the high part of their numbers is.
    devices: HashMap<u64, u64>,
    /// Objects whose number is not what their layer says: copied up, or in another's way. By filesystem and the layer's number.
    renumbered: HashMap<(u64, u64), u64>,
    counter: u64,
    /// Unlinked objects that somebody may still hold, by number, which the filesystem may give to a new object meanwhile.
    unlinked: HashMap<u64, Weak<Node<L>>>,
    /// Objects that may have several names, by filesystem and the layer's number.
    linked: HashMap<(u64, u64), Weak<Node<L>>>,
    /// Objects that have a name in the work directory, by the node's id: a name of which nobody asked yet must find the copy.
    kept: HashMap<u64, Arc<Node<L>>>,
    /// How large the two tables of weak references may grow before the dead ones are swept.
    sweep_at: usize,
}

impl<L: Layer> Inodes<L> {
    /// `devices` are the marked filesystems of the layers, the topmost first.
    pub fn new(devices: impl Iterator<Item = u64>) -> Self {
        Inodes {
            tables: Lock::new(Tables {
                devices: devices.zip(0..).collect(),
                renumbered: HashMap::new(),
                counter: COUNTED,
                unlinked: HashMap::new(),
                linked: HashMap::new(),
                kept: HashMap::new(),
                sweep_at: 1024,
            }),
        }
    }

    /// The number that callers see of an object that its layer numbers `ino` on the filesystem `device`.
    pub fn visible(&self, device: u64, ino: u64) -> u64 {
        self.tables.lock().visible(device, ino)
    }

    /// As [`Inodes::visible`], for an object that is met anew: never the number of an unlinked object that is still held.
    pub fn assign(&self, device: u64, ino: u64) -> u64 {
        let mut tables = self.tables.lock();
        let visible = tables.visible(device, ino);
        let taken = tables.unlinked.get(&visible).is_some_and(|node| node.strong_count() > 0);
        if taken { tables.renumber(device, ino) } else { visible }
    }

    /// Says that the object `ino` of `device`, copied up from one that callers know as `visible`, keeps that number.
    pub fn copied_up(&self, device: u64, ino: u64, visible: u64) {
        self.tables.lock().renumbered.insert((device, ino), visible);
    }

    /// Says that the object numbered `visible` has no name any more; `copied` is its own number if it was copied up.
    pub fn unlinked(&self, node: &Arc<Node<L>>, visible: u64, device: u64, copied: Option<u64>) {
        let mut tables = self.tables.lock();
        if let Some(ino) = copied {
            tables.renumbered.remove(&(device, ino));
        }
        tables.unlinked.insert(visible, Arc::downgrade(node));
        tables.sweep();
    }

    /// The node of an object that may have several names: the one that is held already, or `node`, which is then remembered.
    pub fn same(&self, stat: &Stat, node: Arc<Node<L>>) -> Arc<Node<L>> {
        let mut tables = self.tables.lock();
        if let Some(held) = tables.linked.get(&(stat.dev, stat.ino)).and_then(Weak::upgrade) {
            return held;
        }
        tables.linked.insert((stat.dev, stat.ino), Arc::downgrade(&node));
        tables.sweep();
        node
    }

    /// Remembers that `node` is (also) the object `ino` of `device`, so that its other names find it.
    pub fn link(&self, device: u64, ino: u64, node: &Arc<Node<L>>) {
        let mut tables = self.tables.lock();
        tables.linked.insert((device, ino), Arc::downgrade(node));
        tables.sweep();
    }

    /// Keeps an object that is to be found under names that are not known yet, until [`Inodes::let_go`].
    pub fn keep(&self, node: &Arc<Node<L>>) {
        self.tables.lock().kept.insert(node.id(), node.clone());
    }

    /// No more keeps an object, of which no name is left.
    pub fn let_go(&self, node: &Arc<Node<L>>) {
        let _kept = self.tables.lock().kept.remove(&node.id());
    }

    /// Forgets an object of which no name is left, since its filesystem may give the number to a new one.
    pub fn forget_link(&self, device: u64, ino: u64) {
        self.tables.lock().linked.remove(&(device, ino));
    }
}

impl<L: Layer> Tables<L> {
    fn visible(&mut self, device: u64, ino: u64) -> u64 {
        if let Some(number) = self.renumbered.get(&(device, ino)) {
            return *number;
        }
        let next = self.devices.len() as u64;
        let index = *self.devices.entry(device).or_insert(next);
        if ino != ROOT && ino >> DEVICE_SHIFT == 0 && index < COUNTED >> DEVICE_SHIFT {
            index << DEVICE_SHIFT | ino
        } else {
            self.renumber(device, ino)
        }
    }

    fn renumber(&mut self, device: u64, ino: u64) -> u64 {
        let number = self.counter;
        self.counter += 1;
        self.renumbered.insert((device, ino), number);
        number
    }

    fn sweep(&mut self) {
        if self.unlinked.len() + self.linked.len() >= self.sweep_at {
            self.unlinked.retain(|_, node| node.strong_count() > 0);
            self.linked.retain(|_, node| node.strong_count() > 0);
            self.sweep_at = 1024.max(2 * (self.unlinked.len() + self.linked.len()));
        }
    }
}
