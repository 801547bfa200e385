//! Inode numbers. They are unique among the objects of the merged tree that are in use. They stay
//! the same over copy-up and mounts.
//!
//! A layer gives the number of a removed object to a new one. The *generation* tells the two apart
//! ([`Inodes::generation`]).
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

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::claims::{Claim, Claims};
use super::compact::CompactMap;
use super::node::Node;
use crate::format::fnv1a;
use crate::layer::{Layer, Stat, Time};
use crate::sync::Lock;

/// The first bit of the layer's part of an inode number.
pub(super) const DEVICE_SHIFT: u32 = 48;
/// The lowest number from the counter.
const COUNTED: u64 = 1 << 63;
/// The bits of the counter below the time of the mount in milliseconds.
const NUMBERS_SHIFT: u32 = 16;
/// The lowest number that is a digest.
const DIGESTED: u64 = 3 << 62;
/// How many removed objects the table keeps: more than a program removes in one tick of the clock.
const REMOVED_MAX: usize = 4096;
/// The number that front ends and filesystems use for the root.
const ROOT: u64 = 1;

pub struct Inodes<L: Layer> {
    tables: Lock<Tables<L>>,
}

struct Tables<L: Layer> {
    /// The high part of the numbers of each filesystem, by its device number from the stack.
    devices: HashMap<u64, u64>,
    /// The numbers of objects that do not have their layer's number: copies of this mount, and
    /// objects with a number in use. By filesystem and the layer's number.
    renumbered: CompactMap<(u64, u64), u64>,
    /// The filesystem of the upper layer, if there is one, and those of the frozen layers below it.
    /// All are one filesystem, marked for each layer. So no two of their objects have the same
    /// number.
    uppers: Vec<u64>,
    /// The copies of earlier mounts.
    claims: Claims,
    /// The numbers that this mount recorded for objects of the upper layer: those of copies, and
    /// those from the counter.
    copied: CompactMap<u64, ()>,
    /// The generations of copies of objects of frozen layers, by number. Other copies have 0.
    generations: CompactMap<u64, u32>,
    /// The generations of objects of the upper layer that were removed last, by number.
    removed: HashMap<u64, u32>,
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
    /// Makes the tables. `devices` are the filesystems of the layers, topmost first. The first
    /// `uppers` are those of the upper layer and of frozen ones. Without these the topmost layer is
    /// numbered as one of them, unless `as_below`.
    pub fn new(devices: &[u64], uppers: usize, as_below: bool, mut claims: Claims) -> Self {
        let counted = claims.numbers().rev().find(|number| (COUNTED..DIGESTED).contains(number)).unwrap_or(0);
        let from_bottom = devices.iter().rev().zip(1..).map(|(device, index)| (*device, index));
        let mut indices: HashMap<_, _> = from_bottom.collect();
        let unchanged = if as_below { uppers } else { uppers.max(1) };
        indices.extend(devices.iter().take(unchanged).map(|device| (*device, 0)));
        Inodes {
            tables: Lock::new(Tables {
                counter: first_of_counter(Time::now()).max(counted.saturating_add(1)),
                devices: indices,
                renumbered: CompactMap::default(),
                uppers: devices.iter().take(uppers).copied().collect(),
                generations: claims.take_generations(),
                removed: HashMap::new(),
                claims,
                copied: CompactMap::default(),
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
        if tables.is_upper(device) && tables.claims.open(ino).is_some() {
            return None;
        }
        let visible = tables.visible(device, ino);
        let contested = match tables.is_top(device) {
            true => tables.is_held(visible) || tables.removed.contains_key(&visible),
            false => tables.claims.claimant(visible).is_some() || tables.is_of_another(device, ino, visible),
        };
        (!contested).then_some(visible)
    }

    /// Returns the number for an object that this mount meets for the first time. No unlinked
    /// object in use, and no copy, has the same number. Also returns whether the caller must record
    /// the number.
    pub fn assign(&self, device: u64, ino: u64, generation: u32) -> (u64, bool) {
        let mut tables = self.tables.lock();
        let in_upper = tables.is_upper(device);
        if in_upper {
            // The object that had this number in the layer no longer exists.
            tables.claims.settle(ino, false);
        }
        let visible = tables.visible(device, ino);
        let mut taken = tables.is_held(visible) || generation != 0 && tables.removed.get(&visible) == Some(&generation);
        if !tables.is_top(device) {
            // The lower object shows, so no copy that claims its number is in its place.
            while let Some(copy) = tables.claims.claimant(visible) {
                tables.claims.settle(copy, false);
            }
            taken |= tables.is_of_another(device, ino, visible);
        }
        if !taken {
            // An earlier object with the number had another generation.
            tables.removed.remove(&visible);
            return (visible, false);
        }
        let number = tables.renumber(device, ino);
        if in_upper {
            tables.copied.insert(number, ());
        }
        (number, in_upper)
    }

    /// Records that the object `ino` of `device` is a copy, and keeps the original's number
    /// `visible` and its generation.
    pub fn record_copy_up(&self, device: u64, ino: u64, visible: u64, generation: u32) {
        let mut tables = self.tables.lock();
        tables.record(device, ino, visible);
        tables.copied.insert(visible, ());
        if generation != 0 {
            tables.generations.insert(visible, generation);
        }
    }

    /// Returns the generation of the object that shows `visible`. No two objects have the same
    /// number and generation, one after the other. The layer has the object with the attributes
    /// `attr`. Returns None if the layer tells no generations.
    ///
    /// A lower layer never changes, so its objects need none: they have 0. A copy has that of its
    /// original.
    pub fn generation(&self, visible: u64, attr: &Stat) -> Option<u32> {
        if visible == first_choice(0, attr.ino) {
            return (attr.generation != 0).then_some(attr.generation);
        }
        let is_below = (1 << DEVICE_SHIFT..COUNTED).contains(&visible);
        Some(if is_below { 0 } else { self.tables.lock().generations.get(visible).unwrap_or(0) })
    }

    /// Returns a time at which a copy with the number `ino` on `device` existed in an earlier
    /// mount. None if there is none, or it was met already.
    pub fn claimed_at(&self, device: u64, ino: u64) -> Option<Time> {
        let tables = self.tables.lock();
        tables.claims.open(ino).filter(|_| tables.is_upper(device)).map(Claim::time)
    }

    /// Returns the number of the original of a copy, by the inode number of the copy on the upper
    /// layer. A record of an earlier mount may be wrong.
    #[cfg(feature = "layer-tools")]
    pub fn number_of_copy(&self, ino: u64) -> Option<u64> {
        let tables = self.tables.lock();
        let known = tables.uppers.first().and_then(|device| tables.recorded(*device, ino));
        known.or_else(|| tables.claims.open(ino).map(|claim| claim.number))
    }

    /// Whether a copy shows the number of its original, by the number.
    #[cfg(feature = "layer-tools")]
    pub fn has_copy(&self, number: u64) -> bool {
        let tables = self.tables.lock();
        tables.claims.claimant(number).is_some() || tables.is_of_copy(number)
    }

    /// Forgets the numbers of all copies.
    #[cfg(feature = "layer-tools")]
    pub fn forget_copies(&self) {
        let mut tables = self.tables.lock();
        tables.claims = Claims::default();
        tables.renumbered.clear();
        tables.copied.clear();
    }

    /// Settles whether the object `ino` of the upper layer is that copy.
    pub fn resolve_claim(&self, ino: u64, is_copy: bool) {
        self.tables.lock().claims.settle(ino, is_copy);
    }

    /// Forgets the object `ino` of the upper layer, shown as `visible`, which lost its last name.
    /// Returns whether a record has its number.
    pub fn forget_copy(&self, device: u64, ino: u64, visible: u64) -> bool {
        let mut tables = self.tables.lock();
        // The layer may already have given `ino` to another copy.
        let is_claimed = tables.claims.shown(ino) == Some(visible);
        if is_claimed {
            tables.claims.forget(ino);
        } else if tables.renumbered.get((device, ino)) == Some(visible) {
            tables.renumbered.remove((device, ino));
        }
        is_claimed | tables.copied.remove(visible).is_some()
    }

    /// Records that the object with the number `visible` has lost its last name, or is about to.
    pub fn unlinked(&self, node: &Arc<Node<L>>, visible: u64) {
        let mut tables = self.tables.lock();
        tables.unlinked.insert(visible, Arc::downgrade(node));
        tables.sweep();
    }

    /// Records that an object with the attributes `attr`, which showed `visible`, is gone from the
    /// upper layer. A new object that the layer makes in the same moment may have its number and
    /// its generation.
    pub fn removed(&self, visible: u64, attr: &Stat) {
        if attr.generation == 0 || visible != first_choice(0, attr.ino) {
            return;
        }
        let mut tables = self.tables.lock();
        // Those of earlier moments have served their purpose.
        if tables.removed.len() >= REMOVED_MAX {
            tables.removed.clear();
        }
        tables.removed.insert(visible, attr.generation);
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
    /// Whether a filesystem is that of the upper layer or of a frozen one.
    fn is_upper(&self, device: u64) -> bool {
        self.uppers.contains(&device)
    }

    /// Whether a filesystem is that of the upper layer.
    fn is_top(&self, device: u64) -> bool {
        self.uppers.first() == Some(&device)
    }

    fn visible(&mut self, device: u64, ino: u64) -> u64 {
        if let Some(number) = self.recorded(device, ino) {
            return number;
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

    /// Returns the number of an object that does not have its layer's number.
    fn recorded(&self, device: u64, ino: u64) -> Option<u64> {
        let claimed = if self.is_upper(device) { self.claims.shown(ino) } else { None };
        claimed.or_else(|| self.renumbered.get((device, ino)))
    }

    /// Whether an object of the upper layer that this mount has met has this recorded number.
    fn is_of_copy(&self, number: u64) -> bool {
        self.claims.is_shown(number) || self.copied.contains(number)
    }

    /// Does the same, unless the object is `ino` of `device`. A copy in a frozen layer shows the
    /// number of its original itself.
    fn is_of_another(&self, device: u64, ino: u64, number: u64) -> bool {
        self.is_of_copy(number) && self.recorded(device, ino) != Some(number)
    }

    fn renumber(&mut self, device: u64, ino: u64) -> u64 {
        let number = self.counter;
        self.counter += 1;
        self.record(device, ino, number);
        number
    }

    /// Records the number of an object that does not have its layer's number.
    fn record(&mut self, device: u64, ino: u64, number: u64) {
        if self.is_upper(device) {
            self.claims.settle(ino, false);
            // The copy that had `ino` in the layer may be open without a name.
            if let Some(number) = self.claims.forget(ino) {
                self.copied.insert(number, ());
            }
        }
        self.renumbered.insert((device, ino), number);
    }

    fn sweep(&mut self) {
        if self.unlinked.len() + self.linked.len() >= self.sweep_at {
            self.unlinked.retain(|_, node| node.strong_count() > 0);
            self.linked.retain(|_, node| node.strong_count() > 0);
            self.sweep_at = 1024.max(2 * (self.unlinked.len() + self.linked.len()));
        }
    }
}

/// Returns the first number from the counter of a mount at the time `now`. No earlier mount used
/// it, also for objects that are gone.
fn first_of_counter(now: Time) -> u64 {
    let milliseconds = now.sec.cast_unsigned() * 1000 + u64::from(now.nsec / 1_000_000);
    COUNTED + ((milliseconds << NUMBERS_SHIFT) & (COUNTED / 4 - 1))
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
        Inodes::new(&[7, 8, 9], 1, false, Claims::default())
    }

    #[test]
    fn large_numbers_are_the_same_in_any_order() {
        let objects: Vec<_> = (0..1000)
            .flat_map(|ino| [(8, ino << 48), (9, ino << 48), (9, u64::MAX - ino), (7, !(ino << 20))])
            .collect();
        let (one, other) = (inodes(), inodes());
        let numbers: Vec<_> = objects.iter().map(|(device, ino)| one.assign(*device, *ino, 0)).collect();
        for ((device, ino), number) in objects.iter().zip(&numbers).rev() {
            assert_eq!(other.assign(*device, *ino, 0), *number);
            assert_eq!(other.listed(*device, *ino), Some(number.0));
        }
        assert_eq!(numbers.iter().collect::<std::collections::HashSet<_>>().len(), numbers.len());
    }

    #[test]
    fn a_removed_object_shares_no_number_and_generation_with_a_new_one() {
        let inodes = inodes();
        let attr = Stat { ino: 5, generation: 9, ..Stat::example(crate::layer::Kind::File, 0, 0, 0) };
        assert_eq!(inodes.assign(7, 5, 9), (5, false));
        assert_eq!(inodes.generation(5, &attr), Some(9));
        inodes.removed(5, &attr);
        let (number, is_recorded) = inodes.assign(7, 5, 9);
        assert!((COUNTED..DIGESTED).contains(&number) && is_recorded);
        let other = super::tests::inodes();
        other.removed(5, &attr);
        assert_eq!(other.listed(7, 5), None);
        assert_eq!(other.assign(7, 5, 10), (5, false), "the layer's generation tells them apart");
        assert_eq!(other.listed(7, 5), Some(5));
        assert_eq!(other.generation(5, &Stat { generation: 0, ..attr }), None);
    }

    #[test]
    fn a_copy_has_the_generation_of_its_original() {
        let inodes = Inodes::<OsLayer>::new(&[7, 8, 9], 2, false, Claims::default());
        let attr = |ino, generation| Stat { ino, generation, ..Stat::example(crate::layer::Kind::File, 0, 0, 0) };
        // The layer 8 is frozen, the layer 9 is a lower one.
        let frozen = inodes.visible(8, 5);
        inodes.record_copy_up(7, 6, frozen, inodes.generation(frozen, &attr(5, 1)).unwrap());
        assert_eq!(inodes.generation(frozen, &attr(6, 2)), Some(1));
        let lower = inodes.visible(9, 5);
        assert_eq!(inodes.generation(lower, &attr(5, 1)), Some(0));
        inodes.record_copy_up(7, 8, lower, 0);
        assert_eq!(inodes.generation(lower, &attr(8, 3)), Some(0));
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
