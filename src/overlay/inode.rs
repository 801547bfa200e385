//! Inode numbers. They are unique among the objects of the merged tree that are in use. They stay
//! the same over copy-up and mounts.
//!
//! An object has the number of the layer where it was first seen. Numbers of the topmost layer are
//! unchanged. The high bits tell those of other layers apart; they hold the layer, counted from the
//! bottom. If a layer uses the high bits itself, a digest of layer and number takes the number's
//! place. Each mount computes the same digest. A table keeps two digests from meeting. A number
//! that another object still has is replaced by one from a counter, and the index writes that down.
//!
//! Earlier mounts recorded the numbers of copies ([`Claims`]). The engine uses such a record when
//! it meets an object that can be the copy, and only if the number is free. A change of the upper
//! layer between mounts may have made it wrong.
//!
//! The lock here is a leaf.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use super::node::Node;
use crate::format::fnv1a;
use crate::layer::{Layer, Stat, Time};
use crate::sync::Lock;

/// The first bit of the layer's part of an inode number.
const DEVICE_SHIFT: u32 = 48;
/// The lowest number from the counter.
const COUNTED: u64 = 1 << 63;
/// The lowest number that is a digest.
const DIGESTED: u64 = 3 << 62;
/// The number that front ends and filesystems use for the root.
const ROOT: u64 = 1;

/// The number that a copy had in an earlier mount.
#[derive(Clone, Copy)]
pub struct Claim {
    pub number: u64,
    /// A time at which the copy existed.
    pub time: Time,
}

/// The numbers of copies of earlier mounts, by the inode number of the copy.
pub type Claims = HashMap<u64, Claim>;

pub struct Inodes<L: Layer> {
    tables: Lock<Tables<L>>,
}

struct Tables<L: Layer> {
    /// The high part of the numbers of each filesystem, by its device number from the stack.
    devices: HashMap<u64, u64>,
    /// The numbers of objects that do not have their layer's number: copies, and objects with a
    /// number in use. By filesystem and the layer's number.
    renumbered: HashMap<(u64, u64), u64>,
    /// The filesystem of the upper layer, if there is one.
    upper: Option<u64>,
    /// The copies of earlier mounts that this mount has not met yet.
    claims: Claims,
    /// The keys of `claims`, by the claimed number.
    claimed: HashMap<u64, u64>,
    /// The recorded numbers of objects of the upper layer: those of copies, and those from the
    /// counter.
    copied: HashSet<u64>,
    /// The objects with a digest as number, by that: filesystem and the layer's number.
    digested: HashMap<u64, (u64, u64)>,
    counter: u64,
    /// Unlinked objects that may be in use, by number. The filesystem may give such a number to a
    /// new object meanwhile.
    unlinked: HashMap<u64, Weak<Node<L>>>,
    /// Objects that may have several names, by filesystem and the layer's number.
    linked: HashMap<(u64, u64), Weak<Node<L>>>,
    /// The size of the two tables of weak references at which dead ones are removed.
    sweep_at: usize,
}

impl<L: Layer> Inodes<L> {
    /// Makes the tables. `devices` are the filesystems of the layers, topmost first. The first is
    /// that of the upper layer if `has_upper`.
    pub fn new(devices: &[u64], has_upper: bool, mut claims: Claims) -> Self {
        // A valid number has the high bits of a lower layer, or is from the counter.
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

    /// Returns the number that callers see for the object `ino` of the filesystem `device`.
    pub fn visible(&self, device: u64, ino: u64) -> u64 {
        self.tables.lock().visible(device, ino)
    }

    /// Does the same as [`Inodes::visible`] if the number is certain. Returns None if it depends on
    /// the object itself.
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

    /// Returns the number for an object that this mount meets for the first time. No unlinked
    /// object in use, and no copy, has the same number. Also returns whether the caller must record
    /// the number.
    pub fn assign(&self, device: u64, ino: u64) -> (u64, bool) {
        let mut tables = self.tables.lock();
        if tables.upper == Some(device) {
            // The object that had this number in the layer no longer exists.
            tables.take_claim(ino);
        }
        let visible = tables.visible(device, ino);
        let in_upper = tables.upper == Some(device);
        let mut taken = tables.is_held(visible);
        if !in_upper {
            // The lower object shows, so the copy that claims its number is no longer in its place.
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

    /// Records that the object `ino` of `device` is a copy, and keeps the original's number
    /// `visible`.
    pub fn record_copy_up(&self, device: u64, ino: u64, visible: u64) {
        let mut tables = self.tables.lock();
        tables.take_claim(ino);
        tables.renumbered.insert((device, ino), visible);
        tables.copied.insert(visible);
    }

    /// Returns a time at which a copy with the number `ino` on `device` existed in an earlier
    /// mount. None if there is none, or it was met already.
    pub fn claimed_at(&self, device: u64, ino: u64) -> Option<Time> {
        let tables = self.tables.lock();
        tables.claims.get(&ino).filter(|_| tables.upper == Some(device)).map(|claim| claim.time)
    }

    /// Returns the number of the original of a copy, by the inode number of the copy on the upper
    /// layer. A record of an earlier mount may be wrong.
    #[cfg(feature = "layer-tools")]
    pub fn number_of_copy(&self, ino: u64) -> Option<u64> {
        let tables = self.tables.lock();
        let known = tables.upper.and_then(|device| tables.renumbered.get(&(device, ino)).copied());
        known.or_else(|| tables.claims.get(&ino).map(|claim| claim.number))
    }

    /// Whether a copy shows the number of its original, by the number.
    #[cfg(feature = "layer-tools")]
    pub fn has_copy(&self, number: u64) -> bool {
        let tables = self.tables.lock();
        tables.claimed.contains_key(&number) || tables.copied.contains(&number)
    }

    /// Settles whether the object `ino` of `device` is that copy.
    pub fn resolve_claim(&self, device: u64, ino: u64, is_copy: bool) {
        let mut tables = self.tables.lock();
        if let Some(claim) = tables.take_claim(ino).filter(|_| is_copy) {
            tables.renumbered.insert((device, ino), claim.number);
            tables.copied.insert(claim.number);
        }
    }

    /// Forgets the object `ino` of the upper layer, shown as `visible`, which lost its last name.
    /// Returns whether a record has its number.
    pub fn forget_copy(&self, device: u64, ino: u64, visible: u64) -> bool {
        let mut tables = self.tables.lock();
        // The layer may already have given `ino` to another copy.
        if tables.renumbered.get(&(device, ino)) == Some(&visible) {
            tables.renumbered.remove(&(device, ino));
        }
        tables.copied.remove(&visible)
    }

    /// Records that the object with the number `visible` has lost its last name, or is about to.
    pub fn unlinked(&self, node: &Arc<Node<L>>, visible: u64) {
        let mut tables = self.tables.lock();
        tables.unlinked.insert(visible, Arc::downgrade(node));
        tables.sweep();
    }

    /// Returns the node of an object that may have several names, if there is one.
    pub fn held(&self, stat: &Stat) -> Option<Arc<Node<L>>> {
        self.tables.lock().linked.get(&(stat.dev, stat.ino)).and_then(Weak::upgrade)
    }

    /// Returns the one node of an object that may have several names: the existing one, else
    /// `node`.
    pub fn same(&self, stat: &Stat, node: Arc<Node<L>>) -> Arc<Node<L>> {
        let mut tables = self.tables.lock();
        if let Some(held) = tables.linked.get(&(stat.dev, stat.ino)).and_then(Weak::upgrade) {
            return held;
        }
        tables.linked.insert((stat.dev, stat.ino), Arc::downgrade(&node));
        tables.sweep();
        node
    }

    /// Records that `node` is (also) the object `ino` of `device`, so that its other names find it.
    pub fn link(&self, device: u64, ino: u64, node: &Arc<Node<L>>) {
        let mut tables = self.tables.lock();
        tables.linked.insert((device, ino), Arc::downgrade(node));
        tables.sweep();
    }

    /// Forgets an object that may have several names, if the caller has the only reference to
    /// `node`. So its memory does not stay until the next sweep.
    pub fn forget_unused(&self, device: u64, ino: u64, node: &Arc<Node<L>>) {
        let mut tables = self.tables.lock();
        // Other threads get the node only from this table, so the count cannot grow meanwhile.
        if Arc::strong_count(node) == 1 {
            tables.linked.remove(&(device, ino));
        }
    }

    /// Forgets an object that lost its last name, since its filesystem may reuse the number.
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
        let mut number = first_choice(index, ino);
        if number < DIGESTED {
            return number;
        }
        while *self.digested.entry(number).or_insert((device, ino)) != (device, ino) {
            number = DIGESTED | number.wrapping_add(1);
        }
        number
    }

    /// Whether an unlinked object in use has this number.
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

/// Returns the number for the object `ino` of the layer `index`, unless another object has it. It
/// is a digest if the layer's number leaves no room for the index.
fn first_choice(index: u64, ino: u64) -> u64 {
    if ino != ROOT && ino >> DEVICE_SHIFT == 0 && index < COUNTED >> DEVICE_SHIFT {
        index << DEVICE_SHIFT | ino
    } else {
        DIGESTED | fnv1a([index, ino].map(u64::to_le_bytes).as_flattened()) as u64
    }
}

/// Returns the number that an overlay with an upper layer on top shows for the object `ino` of a
/// lower layer, unless another object has it. `level` is the number of the layer, counted from the
/// bottom.
#[cfg(feature = "layer-tools")]
pub fn number_below(level: usize, ino: u64) -> u64 {
    first_choice(level as u64 + 1, ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::OsLayer;

    fn inodes() -> Inodes<OsLayer> {
        Inodes::new(&[7, 8, 9], true, Claims::new())
    }

    #[test]
    fn large_numbers_are_the_same_in_any_order() {
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
    fn equal_digests_are_told_apart() {
        let inodes = inodes();
        let number = inodes.visible(8, 1 << 60);
        inodes.tables.lock().digested.insert(number, (9, 1 << 61));
        let other = inodes.visible(8, 1 << 60);
        assert_ne!(other, number);
        assert_eq!(inodes.visible(8, 1 << 60), other);
        assert!(number >= DIGESTED && other >= DIGESTED);
    }
}
