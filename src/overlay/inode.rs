//! Inode numbers: unique among the objects of the merged tree that anyone holds, and the same over copy-up and in the next mount.
//!
//! An object keeps the number of the layer that it was first seen in. The topmost layer's are left as they are, those of every other are
//! set apart by their high bits, in which layers are counted from the bottom. The few numbers that would meet another's are replaced by one
//! from a counter.
//!
//! What earlier mounts wrote down of copies ([`Claims`]) is believed when a copy is met that can be the one, and only if nobody else has the
//! number by then: somebody may have changed the upper layer in between.
//!
//! The lock is a leaf.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use super::node::Node;
use crate::layer::{Layer, Stat, Time};
use crate::sync::Lock;

/// Where the filesystem's number starts within an inode number.
const DEVICE_SHIFT: u32 = 48;
/// From here on numbers come from the counter.
const COUNTED: u64 = 1 << 63;
/// The number that doors and filesystems keep for the root.
const ROOT: u64 = 1;

/// The number that a copy had in an earlier mount.
#[derive(Clone, Copy)]
pub struct Claim {
    pub number: u64,
    /// When the copy existed.
    pub time: Time,
}

/// The numbers of the copies of earlier mounts, by the inode number of the copy.
pub type Claims = HashMap<u64, Claim>;

pub struct Inodes<L: Layer> {
    tables: Lock<Tables<L>>,
}

struct Tables<L: Layer> {
    /// The filesystems of the layers, as marked by the stack, and what the high part of their numbers is.
    devices: HashMap<u64, u64>,
    /// Objects whose number is not what their layer says: copied up, or in another's way. By filesystem and the layer's number.
    renumbered: HashMap<(u64, u64), u64>,
    /// The filesystem of the upper layer, if there is one.
    upper: Option<u64>,
    /// The copies of earlier mounts that were not met yet.
    claims: Claims,
    /// The same by what they claim.
    claimed: HashMap<u64, u64>,
    /// The numbers that copies have from their originals.
    copied: HashSet<u64>,
    counter: u64,
    /// Unlinked objects that somebody may still hold, by number, which the filesystem may give to a new object meanwhile.
    unlinked: HashMap<u64, Weak<Node<L>>>,
    /// Objects that may have several names, by filesystem and the layer's number.
    linked: HashMap<(u64, u64), Weak<Node<L>>>,
    /// Objects that got a name in the work directory in this mount, by the node's id: a name of which nobody asked yet must find the copy.
    kept: HashMap<u64, Arc<Node<L>>>,
    /// How large the two tables of weak references may grow before the dead ones are swept.
    sweep_at: usize,
}

impl<L: Layer> Inodes<L> {
    /// `devices` are the marked filesystems of the layers, the topmost first, which is the upper one if `has_upper`.
    pub fn new(devices: &[u64], has_upper: bool, mut claims: Claims) -> Self {
        // The high bits are those of layers, or it is from the counter.
        claims.retain(|_, claim| claim.number >> DEVICE_SHIFT != 0);
        let claimed: HashMap<_, _> = claims.iter().map(|(ino, claim)| (claim.number, *ino)).collect();
        claims.retain(|ino, claim| claimed.get(&claim.number) == Some(ino));
        let counted = claimed.keys().filter(|number| **number >= COUNTED).max();
        let from_bottom = devices.iter().rev().zip(1..).map(|(device, index)| (*device, index));
        let mut indices: HashMap<_, _> = from_bottom.collect();
        indices.extend(devices.first().map(|top| (*top, 0)));
        Inodes {
            tables: Lock::new(Tables {
                counter: counted.map_or(COUNTED, |number| number.saturating_add(1)),
                devices: indices,
                renumbered: HashMap::new(),
                upper: devices.first().copied().filter(|_| has_upper),
                claims,
                claimed,
                copied: HashSet::new(),
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

    /// As [`Inodes::visible`], where that is known already; None where it depends on what the object is.
    pub fn listed(&self, device: u64, ino: u64) -> Option<u64> {
        let mut tables = self.tables.lock();
        if tables.upper == Some(device) && tables.claims.contains_key(&ino) {
            return None;
        }
        let visible = tables.visible(device, ino);
        let contested =
            tables.upper != Some(device) && (tables.claimed.contains_key(&visible) || tables.copied.contains(&visible));
        (!contested).then_some(visible)
    }

    /// As [`Inodes::visible`], for an object that is met anew: never a number that another has, be that unlinked and still held, or a copy.
    pub fn assign(&self, device: u64, ino: u64) -> u64 {
        let mut tables = self.tables.lock();
        if tables.upper == Some(device) {
            // Whatever had this number in the layer is gone.
            tables.take_claim(ino);
        }
        let visible = tables.visible(device, ino);
        let mut taken = tables.unlinked.get(&visible).is_some_and(|node| node.strong_count() > 0);
        if tables.upper != Some(device) {
            // It shows, so a copy that has the number from it is not where it was put.
            if let Some(copy) = tables.claimed.get(&visible).copied() {
                tables.take_claim(copy);
            }
            taken |= tables.copied.contains(&visible);
        }
        if taken { tables.renumber(device, ino) } else { visible }
    }

    /// Says that the object `ino` of `device`, copied up from one that callers know as `visible`, keeps that number.
    pub fn copied_up(&self, device: u64, ino: u64, visible: u64) {
        let mut tables = self.tables.lock();
        tables.take_claim(ino);
        tables.renumbered.insert((device, ino), visible);
        tables.copied.insert(visible);
    }

    /// When a copy existed that had the number `ino` on `device` in an earlier mount, and that was not met yet.
    pub fn claimed_at(&self, device: u64, ino: u64) -> Option<Time> {
        let tables = self.tables.lock();
        tables.claims.get(&ino).filter(|_| tables.upper == Some(device)).map(|claim| claim.time)
    }

    /// Says whether the object `ino` of `device` is that copy.
    pub fn settle(&self, device: u64, ino: u64, is_copy: bool) {
        let mut tables = self.tables.lock();
        if let Some(claim) = tables.take_claim(ino).filter(|_| is_copy) {
            tables.renumbered.insert((device, ino), claim.number);
            tables.copied.insert(claim.number);
        }
    }

    /// Says that the object `ino` of the upper layer, which callers know as `visible`, has no name any more. Answers whether it is a copy that
    /// had its original's number.
    pub fn forget_copy(&self, device: u64, ino: u64, visible: u64) -> bool {
        let mut tables = self.tables.lock();
        // The layer may have given `ino` to another copy by now.
        if tables.renumbered.get(&(device, ino)) == Some(&visible) {
            tables.renumbered.remove(&(device, ino));
        }
        tables.copied.remove(&visible)
    }

    /// Says that the object numbered `visible` has no name any more.
    pub fn unlinked(&self, node: &Arc<Node<L>>, visible: u64) {
        let mut tables = self.tables.lock();
        tables.unlinked.insert(visible, Arc::downgrade(node));
        tables.sweep();
    }

    /// The node of an object that may have several names, if there is one.
    pub fn held(&self, stat: &Stat) -> Option<Arc<Node<L>>> {
        self.tables.lock().linked.get(&(stat.dev, stat.ino)).and_then(Weak::upgrade)
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

    fn take_claim(&mut self, ino: u64) -> Option<Claim> {
        let claim = self.claims.remove(&ino)?;
        self.claimed.remove(&claim.number);
        Some(claim)
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
