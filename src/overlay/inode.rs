//! Inode numbers: unique among the objects of the merged tree that anyone holds, and the same over
//! copy-up and in the next mount.
//!
//! An object keeps the number of the layer that it was first seen in. The topmost layer's are left
//! as they are, those of every other are set apart by their high bits, in which layers are counted
//! from the bottom. A number that needs the high bits itself is replaced by a digest of layer and
//! number, which every mount finds again; it is remembered, so that two objects never have the
//! same. A number that another object still has is replaced by one from a counter, which is written
//! down for the next mount.
//!
//! What earlier mounts wrote down of copies ([`Claims`]) is believed when a copy is met that can be
//! the one, and only if nobody else has the number by then: somebody may have changed the upper
//! layer in between.
//!
//! The lock is a leaf.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use super::node::Node;
use crate::format::fnv1a;
use crate::layer::{Layer, Stat, Time};
use crate::sync::Lock;

/// Where the filesystem's number starts within an inode number.
const DEVICE_SHIFT: u32 = 48;
/// From here on numbers come from the counter.
const COUNTED: u64 = 1 << 63;
/// And from here on they are digests.
const DIGESTED: u64 = 3 << 62;
/// The number that front ends and filesystems keep for the root.
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
    /// The filesystems of the layers, as marked by the stack, and what the high part of their
    /// numbers is.
    devices: HashMap<u64, u64>,
    /// Objects whose number is not what their layer says: copied up, or in another's way. By
    /// filesystem and the layer's number.
    renumbered: HashMap<(u64, u64), u64>,
    /// The filesystem of the upper layer, if there is one.
    upper: Option<u64>,
    /// The copies of earlier mounts that were not met yet.
    claims: Claims,
    /// The same by what they claim.
    claimed: HashMap<u64, u64>,
    /// The numbers of objects of the upper layer that are written down: those that copies have from
    /// their originals, and those of the counter.
    copied: HashSet<u64>,
    /// The objects whose number is a digest, by that: filesystem and the layer's number.
    digested: HashMap<u64, (u64, u64)>,
    counter: u64,
    /// Unlinked objects that somebody may still hold, by number, which the filesystem may give to a
    /// new object meanwhile.
    unlinked: HashMap<u64, Weak<Node<L>>>,
    /// Objects that may have several names, by filesystem and the layer's number.
    linked: HashMap<(u64, u64), Weak<Node<L>>>,
    /// How large the two tables of weak references may grow before the dead ones are swept.
    sweep_at: usize,
}

impl<L: Layer> Inodes<L> {
    /// `devices` are the marked filesystems of the layers, the topmost first, which is the upper
    /// one if `has_upper`.
    pub fn new(devices: &[u64], has_upper: bool, mut claims: Claims) -> Self {
        // The high bits are those of layers, or it is from the counter.
        claims.retain(|_, claim| claim.number >> DEVICE_SHIFT != 0);
        let claimed: HashMap<_, _> = claims.iter().map(|(ino, claim)| (claim.number, *ino)).collect();
        claims.retain(|ino, claim| claimed.get(&claim.number) == Some(ino));
        let counted = claimed.keys().filter(|number| (COUNTED..DIGESTED).contains(*number)).max();
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
                digested: HashMap::new(),
                unlinked: HashMap::new(),
                linked: HashMap::new(),
                sweep_at: 1024,
            }),
        }
    }

    /// The number that callers see of an object that its layer numbers `ino` on the filesystem
    /// `device`.
    pub fn visible(&self, device: u64, ino: u64) -> u64 {
        self.tables.lock().visible(device, ino)
    }

    /// As [`Inodes::visible`], where that is known already; None where it depends on what the
    /// object is.
    pub fn listed(&self, device: u64, ino: u64) -> Option<u64> {
        let mut tables = self.tables.lock();
        if tables.upper == Some(device) && tables.claims.contains_key(&ino) {
            return None;
        }
        let visible = tables.visible(device, ino);
        let contested = match tables.upper == Some(device) {
            true => tables.is_held(visible),
            false => tables.claimed.contains_key(&visible) || tables.copied.contains(&visible),
        };
        (!contested).then_some(visible)
    }

    /// As [`Inodes::visible`], for an object that is met anew: never a number that another has, be
    /// that unlinked and still held, or a copy. Answers also whether only a record tells the next
    /// mount which number an object of the upper layer has.
    pub fn assign(&self, device: u64, ino: u64) -> (u64, bool) {
        let mut tables = self.tables.lock();
        if tables.upper == Some(device) {
            // Whatever had this number in the layer is gone.
            tables.take_claim(ino);
        }
        let visible = tables.visible(device, ino);
        let in_upper = tables.upper == Some(device);
        let mut taken = tables.is_held(visible);
        if !in_upper {
            // It shows, so a copy that has the number from it is not where it was put.
            if let Some(copy) = tables.claimed.get(&visible).copied() {
                tables.take_claim(copy);
            }
            taken |= tables.copied.contains(&visible);
        }
        if !taken {
            return (visible, false);
        }
        let number = tables.renumber(device, ino);
        if in_upper {
            tables.copied.insert(number);
        }
        (number, in_upper)
    }

    /// Says that the object `ino` of `device`, copied up from one that callers know as `visible`,
    /// keeps that number.
    pub fn record_copy_up(&self, device: u64, ino: u64, visible: u64) {
        let mut tables = self.tables.lock();
        tables.take_claim(ino);
        tables.renumbered.insert((device, ino), visible);
        tables.copied.insert(visible);
    }

    /// When a copy existed that had the number `ino` on `device` in an earlier mount, and that was
    /// not met yet.
    pub fn claimed_at(&self, device: u64, ino: u64) -> Option<Time> {
        let tables = self.tables.lock();
        tables.claims.get(&ino).filter(|_| tables.upper == Some(device)).map(|claim| claim.time)
    }

    /// Says whether the object `ino` of `device` is that copy.
    pub fn resolve_claim(&self, device: u64, ino: u64, is_copy: bool) {
        let mut tables = self.tables.lock();
        if let Some(claim) = tables.take_claim(ino).filter(|_| is_copy) {
            tables.renumbered.insert((device, ino), claim.number);
            tables.copied.insert(claim.number);
        }
    }

    /// Says that the object `ino` of the upper layer, which callers know as `visible`, has no name
    /// any more. Answers whether a record says that it has this number.
    pub fn forget_copy(&self, device: u64, ino: u64, visible: u64) -> bool {
        let mut tables = self.tables.lock();
        // The layer may have given `ino` to another copy by now.
        if tables.renumbered.get(&(device, ino)) == Some(&visible) {
            tables.renumbered.remove(&(device, ino));
        }
        tables.copied.remove(&visible)
    }

    /// Says that the object numbered `visible` has no name any more, or is about to lose the last.
    pub fn unlinked(&self, node: &Arc<Node<L>>, visible: u64) {
        let mut tables = self.tables.lock();
        tables.unlinked.insert(visible, Arc::downgrade(node));
        tables.sweep();
    }

    /// The node of an object that may have several names, if there is one.
    pub fn held(&self, stat: &Stat) -> Option<Arc<Node<L>>> {
        self.tables.lock().linked.get(&(stat.dev, stat.ino)).and_then(Weak::upgrade)
    }

    /// The node of an object that may have several names: the one that is held already, or `node`,
    /// which is then remembered.
    pub fn same(&self, stat: &Stat, node: Arc<Node<L>>) -> Arc<Node<L>> {
        let mut tables = self.tables.lock();
        if let Some(held) = tables.linked.get(&(stat.dev, stat.ino)).and_then(Weak::upgrade) {
            return held;
        }
        tables.linked.insert((stat.dev, stat.ino), Arc::downgrade(&node));
        tables.sweep();
        node
    }

    /// Remembers that `node` is (also) the object `ino` of `device`, so that its other names find
    /// it.
    pub fn link(&self, device: u64, ino: u64, node: &Arc<Node<L>>) {
        let mut tables = self.tables.lock();
        tables.linked.insert((device, ino), Arc::downgrade(node));
        tables.sweep();
    }

    /// Forgets an object that may have several names, if nobody but the caller has `node`, its
    /// node: its memory is not kept until the next sweep.
    pub fn forget_unused(&self, device: u64, ino: u64, node: &Arc<Node<L>>) {
        let mut tables = self.tables.lock();
        // Others get the node from this table alone, so nobody can come to have it meanwhile.
        if Arc::strong_count(node) == 1 {
            tables.linked.remove(&(device, ino));
        }
    }

    /// Forgets an object of which no name is left, since its filesystem may give the number to a
    /// new one.
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
            self.digest(device, index, ino)
        }
    }

    /// The number of an object whose own leaves no room for that of its layer, which is `index`.
    fn digest(&mut self, device: u64, index: u64, ino: u64) -> u64 {
        let words = [index.to_le_bytes(), ino.to_le_bytes()];
        let mut number = DIGESTED | fnv1a(words.as_flattened()) as u64;
        while *self.digested.entry(number).or_insert((device, ino)) != (device, ino) {
            number = DIGESTED | number.wrapping_add(1);
        }
        number
    }

    /// Whether an object without a name, which somebody holds, has this number.
    fn is_held(&self, number: u64) -> bool {
        self.unlinked.get(&number).is_some_and(|node| node.strong_count() > 0)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::OsLayer;

    fn inodes() -> Inodes<OsLayer> {
        Inodes::new(&[7, 8, 9], true, Claims::new())
    }

    #[test]
    fn large_numbers_are_found_again_in_any_order() {
        let objects: Vec<_> = (0..1000)
            .flat_map(|ino| [(8, ino << 48), (9, ino << 48), (9, u64::MAX - ino), (7, !(ino << 20))])
            .collect();
        let (one, other) = (inodes(), inodes());
        let numbers: Vec<_> = objects.iter().map(|(device, ino)| one.assign(*device, *ino)).collect();
        for ((device, ino), number) in objects.iter().zip(&numbers).rev() {
            assert_eq!(other.assign(*device, *ino), *number);
            assert_eq!(other.listed(*device, *ino), Some(number.0));
        }
        assert_eq!(numbers.iter().collect::<HashSet<_>>().len(), numbers.len());
    }

    #[test]
    fn digests_that_meet_are_told_apart() {
        let inodes = inodes();
        let number = inodes.visible(8, 1 << 60);
        inodes.tables.lock().digested.insert(number, (9, 1 << 61));
        let other = inodes.visible(8, 1 << 60);
        assert_ne!(other, number);
        assert_eq!(inodes.visible(8, 1 << 60), other);
        assert!(number >= DIGESTED && other >= DIGESTED);
    }
}
