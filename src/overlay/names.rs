//! The names of one merged directory: for each, the objects in the upper layer and in the lower
//! layers.
//!
//! A name has a number, its offset in a listing. The number is a digest of the name, so it survives
//! the eviction of the directory and the mount. Names are kept and listed in the order of their
//! numbers. So a listing that continues behind an offset meets each name that stays exactly once.
//! The listing ends while names come and go, since about half of the new ones are behind it.
//!
//! If two names of a directory have one digest, the later one takes another digest of its name. It
//! keeps that while the directory is cached. When the directory is read, the order of their bytes
//! decides. Such names do not occur by chance.
//!
//! Each cached directory has such a table, so tables are small. In an overlay for a walk, a table
//! has a run of the names at most, and beside them those whose objects are in use.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hasher};
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::node::Node;
use crate::format::listing::Run;
use crate::format::plan::Name;
use crate::layer::{Kind, Layer};

/// The lowest number. Front ends use 1 and 2 for `.` and `..`.
const FIRST: u64 = 3;

/// The number of bits of a digest. A number is positive as a signed one too, and below the highest.
#[cfg(not(test))]
fn bits() -> u32 {
    62
}

pub struct Names<L: Layer> {
    slots: BTreeMap<u64, Slot<L>>,
    /// The highest `nth` of a digest in use: 0 unless two names have one digest.
    last: u32,
    /// None: the table has all names.
    part: Option<Box<Part>>,
}

/// A part of the names of a directory.
struct Part {
    /// The names that the table has all of.
    run: Run,
    /// The number of names when it was read.
    read: usize,
}

static ALL: Run = Run { from: OsString::new(), to: None };

/// The facts about one name.
pub struct Slot<L: Layer> {
    pub name: Arc<OsStr>,
    /// The object that the upper layer has under this name.
    pub upper: Option<Upper>,
    /// Whether the upper layer has the marker of this name.
    pub whiteout: bool,
    /// Whether the upper layer has a partial copy of this name that no lookup has opened. In an
    /// upper layer that the mount only reads it may stay true.
    pub part: bool,
    /// The object that the lower layers have under this name, as if there were no upper layer.
    pub lower: Option<Lower>,
    /// Whether no layer below the ones merged so far can show. Used only while the table is built.
    closed: bool,
    /// The node of the object, if it was looked up.
    pub child: Option<Arc<Node<L>>>,
}

#[derive(Clone, Copy)]
pub struct Upper {
    pub kind: Kind,
    /// The layer's inode number, if known.
    pub ino: Option<u64>,
}

/// The objects of lower layers under a name. The topmost one counts.
pub struct Lower {
    pub kind: Kind,
    pub ino: u64,
    /// The index of its directory among the lower layers of the directory.
    pub dir: u32,
    /// Whether it is a directory that shows its content.
    merges: bool,
    /// The indices of further directories that merge with it, topmost first.
    #[expect(clippy::box_collection, reason = "few have any, and every name has a slot")]
    below: Option<Box<Vec<u32>>>,
}

impl<L: Layer> Slot<L> {
    /// Returns the visible object of this name: its kind, and the layer's inode number if known.
    pub fn visible(&self) -> Option<Upper> {
        match (&self.upper, &self.lower) {
            (Some(upper), _) => Some(*upper),
            (None, Some(Lower { kind, ino, .. })) if !self.whiteout => Some(Upper { kind: *kind, ino: Some(*ino) }),
            _ => None,
        }
    }

    /// Returns the facts that plans depend on.
    pub fn facts(&self) -> Name {
        Name { upper: self.upper.is_some(), lower: self.lower.is_some(), whiteout: self.whiteout }
    }

    /// Drops the node. Keeps the layer's inode number for listings.
    pub fn forget_child(&mut self, ino: u64) {
        if let Some(upper) = &mut self.upper {
            upper.ino.get_or_insert(ino);
        }
        self.child = None;
    }

    /// Returns the indices, among the lower layers of the directory, of the directories that merge
    /// under this name.
    pub fn merging(&self) -> impl Iterator<Item = u32> {
        let merges = match (&self.upper, &self.lower) {
            (Some(Upper { kind: Kind::Dir, .. }) | None, Some(lower)) if lower.merges && !self.whiteout => Some(lower),
            _ => None,
        };
        merges
            .into_iter()
            .flat_map(|lower| [lower.dir].into_iter().chain(lower.below.iter().flat_map(|b| b.iter().copied())))
    }

    fn says_nothing(&self) -> bool {
        self.upper.is_none() && self.lower.is_none() && !self.whiteout
    }
}

/// Returns the digest `nth` of a name.
fn digest(name: &OsStr, nth: u32) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u32(nth);
    hasher.write(name.as_bytes());
    FIRST + (hasher.finish() >> (u64::BITS - bits()))
}

/// Sorts what a layer lists by the numbers of the names. A table takes many names faster in this
/// order, since each is beside the last one.
pub fn sort(objects: &mut [(OsString, Kind, u64)]) {
    objects.sort_by_cached_key(|(name, ..)| digest(name, 0));
}

impl<L: Layer> Names<L> {
    pub fn new() -> Self {
        Names { slots: BTreeMap::new(), last: 0, part: None }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// The names that the table has all of.
    pub fn run(&self) -> &Run {
        self.part.as_ref().map_or(&ALL, |part| &part.run)
    }

    /// Whether the table tells about a name: it has the name, or there is none.
    pub fn tells(&self, name: &OsStr) -> bool {
        self.run().has(name) || self.number(name).is_some()
    }

    /// Returns how many names came since it was read; of a table with all names, their number.
    pub fn grown(&self) -> usize {
        self.len().saturating_sub(self.part.as_ref().map_or(0, |part| part.read))
    }

    /// Returns the slots of the run from a name on, in the order of the bytes of their names.
    pub fn of_run(&self, from: &OsStr) -> impl Iterator<Item = &Slot<L>> {
        let slots = self.slots.values().filter(|slot| *slot.name >= *from && self.run().has(&slot.name));
        let mut slots: Vec<_> = slots.collect();
        slots.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        slots.into_iter()
    }

    /// Takes a slot of another table of the directory, in place of the own one.
    pub fn take(&mut self, slot: Slot<L>) {
        let number = self.number(&slot.name).unwrap_or_else(|| self.free(&slot.name));
        self.slots.insert(number, slot);
        if let Some(part) = &mut self.part {
            part.read = part.read.max(self.slots.len());
        }
    }

    /// Makes a table that tells about no name.
    pub fn none() -> Self {
        let run = Run { to: Some(OsString::new()), ..Run::default() };
        Names { part: Some(Box::new(Part { run, read: 0 })), ..Names::new() }
    }

    /// Returns all slots.
    pub fn into_slots(self) -> impl Iterator<Item = Slot<L>> {
        self.slots.into_values()
    }

    /// Returns the number of a name in the table.
    pub fn number(&self, name: &OsStr) -> Option<u64> {
        let is_it = |number: &u64| self.slots.get(number).is_some_and(|slot| *slot.name == *name);
        (0..=self.last).map(|nth| digest(name, nth)).find(is_it)
    }

    /// Returns a free number for a name that is not in the table.
    fn free(&mut self, name: &OsStr) -> u64 {
        let mut nth = 0;
        loop {
            let number = digest(name, nth);
            if !self.slots.contains_key(&number) {
                self.last = self.last.max(nth);
                return number;
            }
            nth += 1;
        }
    }

    pub fn get(&self, name: &OsStr) -> Option<&Slot<L>> {
        self.slots.get(&self.number(name)?)
    }

    pub fn get_mut(&mut self, name: &OsStr) -> Option<&mut Slot<L>> {
        self.slots.get_mut(&self.number(name)?)
    }

    /// Returns the name's slot, which is new and empty if there was none.
    pub fn entry(&mut self, name: &OsStr) -> &mut Slot<L> {
        let first = digest(name, 0);
        let number = match self.slots.get(&first) {
            None if self.last == 0 => first,
            Some(slot) if *slot.name == *name => first,
            _ => self.number(name).unwrap_or_else(|| self.free(name)),
        };
        self.slots.entry(number).or_insert_with(|| Slot {
            name: name.into(),
            upper: None,
            whiteout: false,
            part: false,
            lower: None,
            closed: false,
            child: None,
        })
    }

    /// Removes the slot of a name that no layer has any more.
    pub fn tidy(&mut self, name: &OsStr) {
        if let Some(number) = self.number(name)
            && self.slots.get(&number).is_some_and(Slot::says_nothing)
        {
            self.slots.remove(&number);
        }
    }

    /// Returns the slots with numbers above `after`, in order.
    pub fn after(&self, after: u64) -> impl Iterator<Item = (u64, &Slot<L>)> {
        self.slots.range((Bound::Excluded(after), Bound::Unbounded)).map(|(number, slot)| (*number, slot))
    }

    /// Returns all slots.
    pub fn slots_mut(&mut self) -> impl Iterator<Item = &mut Slot<L>> {
        self.slots.values_mut()
    }

    /// Whether no name is visible.
    pub fn is_empty(&self) -> bool {
        self.slots.values().all(|slot| slot.visible().is_none())
    }

    /// Whether the upper layer's directory has markers of names.
    pub fn has_whiteouts(&self) -> bool {
        self.slots.values().any(|slot| slot.whiteout)
    }

    /// Enters an object of the upper layer's directory.
    pub fn add_upper(&mut self, name: &OsStr, kind: Kind, ino: u64) {
        self.entry(name).upper = Some(Upper { kind, ino: Some(ino) });
    }

    /// Enters a marker of the upper layer's directory.
    pub fn add_whiteout(&mut self, name: &OsStr) {
        self.entry(name).whiteout = true;
    }

    /// Enters an object of the lower directory `dir`. The caller goes from the topmost layer down.
    pub fn add_lower(&mut self, name: &OsStr, kind: Kind, ino: u64, dir: u32) {
        let slot = self.entry(name);
        match &mut slot.lower {
            _ if slot.closed => {}
            None => {
                let merges = kind == Kind::Dir;
                slot.lower = Some(Lower { kind, ino, dir, merges, below: None });
                slot.closed = !merges;
            }
            Some(lower) if kind == Kind::Dir => lower.below.get_or_insert_default().push(dir),
            Some(_) => slot.closed = true,
        }
    }

    /// Enters an object of the lower directory `dir` without its content: as a directory it is
    /// empty, and merges with nothing.
    pub fn add_hidden(&mut self, name: &OsStr, kind: Kind, ino: u64, dir: u32) {
        let slot = self.entry(name);
        if !slot.closed && slot.lower.is_none() {
            slot.lower = Some(Lower { kind, ino, dir, merges: false, below: None });
        }
        slot.closed = true;
    }

    /// Enters a marker of a lower directory, which hides the layers below. The caller enters the
    /// objects of that directory first.
    pub fn close(&mut self, name: &OsStr) {
        self.entry(name).closed = true;
    }

    /// Completes the table, which has all names of `run`. Drops names that have nothing but markers
    /// in lower layers, and those behind the run.
    pub fn finish(&mut self, run: Run) {
        self.slots.retain(|_, slot| !slot.says_nothing() && run.has(&slot.name));
        self.part = (!run.is_whole()).then(|| Box::new(Part { run, read: self.slots.len() }));
        if self.last > 0 {
            // The numbers must not depend on the order in which layers list names.
            let mut slots: Vec<_> = std::mem::take(&mut self.slots).into_values().collect();
            slots.sort_by(|one, other| one.name.cmp(&other.name));
            self.last = 0;
            for slot in slots {
                let number = self.free(&slot.name);
                self.slots.insert(number, slot);
            }
        }
        // A tree that is built from sorted elements has full nodes.
        self.slots = std::mem::take(&mut self.slots).into_iter().collect();
    }
}

#[cfg(test)]
fn bits() -> u32 {
    tests::BITS.get()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::layer::OsLayer;

    thread_local! {
        /// The number of bits of a digest.
        pub static BITS: Cell<u32> = const { Cell::new(62) };
    }

    fn names(all: impl Iterator<Item = u64>) -> Names<OsLayer> {
        let mut names = Names::new();
        all.for_each(|index| names.add_upper(OsStr::new(&index.to_string()), Kind::File, index));
        names.finish(Run::default());
        names
    }

    fn numbers(names: &Names<OsLayer>) -> Vec<(u64, Arc<OsStr>)> {
        names.after(0).map(|(number, slot)| (number, slot.name.clone())).collect()
    }

    fn remove(names: &mut Names<OsLayer>, name: u64) {
        let name = name.to_string();
        names.entry(OsStr::new(&name)).upper = None;
        names.tidy(OsStr::new(&name));
        assert!(names.get(OsStr::new(&name)).is_none());
    }

    #[test]
    fn names_and_numbers_stay_while_others_go() {
        // With few bits, many names have one digest.
        for bits in [62, 11] {
            BITS.set(bits);
            let mut names = names(0..1000);
            let before = numbers(&names);
            assert_eq!(before.len(), 1000);
            assert!(before.is_sorted_by_key(|(number, _)| *number) && before[0].0 >= FIRST);
            assert!(before.windows(2).all(|pair| pair[0].0 != pair[1].0));
            (0..1000).filter(|index| index % 10 != 0).for_each(|index| remove(&mut names, index));
            (2000..2500).for_each(|index| names.add_upper(OsStr::new(&index.to_string()), Kind::File, index));
            assert_eq!(names.len(), 600);
            let after = numbers(&names);
            let stayed = |(_, name): &&(u64, Arc<OsStr>)| {
                name.to_str().unwrap().parse::<u64>().unwrap().is_multiple_of(10) && name.len() < 4
            };
            let stay = before.iter().filter(stayed).cloned().collect::<Vec<_>>();
            assert!(stay.iter().all(|pair| after.contains(pair)), "a name keeps its number");
            assert_eq!(names.after(after[50].0).count(), 549);
            for index in (0..1000).step_by(10) {
                let slot = names.get(OsStr::new(&index.to_string())).unwrap();
                assert_eq!(slot.visible().unwrap().ino, Some(index));
            }
        }
    }

    #[test]
    fn numbers_are_the_same_when_the_directory_is_read_again() {
        for bits in [62, 11] {
            BITS.set(bits);
            assert_eq!(numbers(&names(0..1000)), numbers(&names((0..1000).rev())), "in another order");
        }
    }

    #[test]
    fn a_name_that_comes_again_has_its_number_again() {
        let mut names = names(0..1000);
        let before = numbers(&names);
        remove(&mut names, 500);
        names.add_upper(OsStr::new("500"), Kind::File, 500);
        assert_eq!(numbers(&names), before);
    }

    #[test]
    fn offsets_fit_wherever_they_are_kept() {
        assert!(numbers(&names(0..1000)).iter().all(|(number, _)| (3..i64::MAX as u64).contains(number)));
    }
}
