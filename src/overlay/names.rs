//! The names of one merged directory: for each, what the upper layer and the lower layers have there.
//!
//! Names keep the order in which they came, and each has a number that is never given again while the table lives: the offset
//! of a listing. So a listing that goes on behind an offset meets every name that was there all the time exactly once, whatever
//! is created and removed meanwhile.
//!
//! There is one of these for each directory that was read, so they are kept small: a row of slots in the order of their numbers, and a table
//! that finds a slot by its name; the hash of a name is kept, so that the table grows without hashing again. A forgotten slot stays as a gap until there are more gaps than slots.

use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::HashTable;

use super::node::Node;
use crate::layer::{Kind, Layer};

/// The number of the first name: 1 and 2 are left to a door's `.` and `..`.
const FIRST: u64 = 3;

pub struct Names<L: Layer> {
    slots: Vec<Slot<L>>,
    /// Indices of slots that are no gaps.
    by_name: HashTable<u32>,
    hasher: RandomState,
    next: u64,
}

/// What is known of one name.
pub struct Slot<L: Layer> {
    number: u64,
    /// Of the name.
    hash: u32,
    /// Empty: a gap.
    pub name: Arc<OsStr>,
    /// What the upper layer has under this name.
    pub upper: Option<Upper>,
    /// Whether the upper layer has the marker of this name.
    pub whiteout: bool,
    /// Whether the upper layer has a partial copy of this name, until somebody looks it up.
    pub part: bool,
    /// What the lower layers have under this name, as if there were no upper layer.
    pub lower: Option<Lower>,
    /// Whether nothing below the layers merged so far can show: set and used while the table is built.
    closed: bool,
    /// The object, if it was looked up.
    pub child: Option<Arc<Node<L>>>,
}

#[derive(Clone, Copy)]
pub struct Upper {
    pub kind: Kind,
    /// The layer's inode number, once known.
    pub ino: Option<u64>,
}

/// What lower layers have under a name: the object of the topmost that has one.
pub struct Lower {
    pub kind: Kind,
    pub ino: u64,
    /// The index of its directory among the directory's lower layers.
    pub dir: u32,
    /// Whether it is a directory that shows more than its outside.
    merges: bool,
    /// The indices of further directories that merge with it, the topmost first.
    #[expect(clippy::box_collection, reason = "few have any, and every name has a slot")]
    below: Option<Box<Vec<u32>>>,
}

impl<L: Layer> Slot<L> {
    /// What the merged directory has under this name: its kind, and the layer's inode number where it is known.
    pub fn visible(&self) -> Option<Upper> {
        match (&self.upper, &self.lower) {
            (Some(upper), _) => Some(*upper),
            (None, Some(Lower { kind, ino, .. })) if !self.whiteout => Some(Upper { kind: *kind, ino: Some(*ino) }),
            _ => None,
        }
    }

    /// Lets go of the object, keeping for listings the number that its layer has for it.
    pub fn forget_child(&mut self, ino: u64) {
        if let Some(upper) = &mut self.upper {
            upper.ino.get_or_insert(ino);
        }
        self.child = None;
    }

    /// The indices, among the directory's lower layers, of the directories that merge under this name.
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

impl<L: Layer> Names<L> {
    pub fn new() -> Self {
        Names { slots: Vec::new(), by_name: HashTable::new(), hasher: RandomState::new(), next: FIRST }
    }

    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    fn hash(&self, name: &OsStr) -> u32 {
        self.hasher.hash_one(name) as u32
    }

    fn index(&self, name: &OsStr, hash: u32) -> Option<usize> {
        let is_it = |index: &u32| {
            let slot = &self.slots[*index as usize];
            slot.hash == hash && *slot.name == *name
        };
        self.by_name.find(spread(hash), is_it).map(|index| *index as usize)
    }

    pub fn get(&self, name: &OsStr) -> Option<&Slot<L>> {
        self.index(name, self.hash(name)).map(|index| &self.slots[index])
    }

    pub fn get_mut(&mut self, name: &OsStr) -> Option<&mut Slot<L>> {
        self.index(name, self.hash(name)).map(|index| &mut self.slots[index])
    }

    /// The name's slot, new and empty if there was none.
    pub fn entry(&mut self, name: &OsStr) -> &mut Slot<L> {
        let hash = self.hash(name);
        let index = self.index(name, hash).unwrap_or_else(|| self.add(name, hash));
        &mut self.slots[index]
    }

    fn add(&mut self, name: &OsStr, hash: u32) -> usize {
        let index = self.slots.len();
        let (number, name) = (self.next, name.into());
        self.next += 1;
        self.slots.push(Slot {
            number,
            hash,
            name,
            upper: None,
            whiteout: false,
            part: false,
            lower: None,
            closed: false,
            child: None,
        });
        self.enter(index);
        index
    }

    fn enter(&mut self, index: usize) {
        let hash = |index: &u32| spread(self.slots[*index as usize].hash);
        self.by_name.insert_unique(hash(&(index as u32)), index as u32, hash);
    }

    /// Forgets the name if no layer has anything under it.
    pub fn tidy(&mut self, name: &OsStr) {
        let hash = self.hash(name);
        let Some(index) = self.index(name, hash).filter(|index| self.slots[*index].says_nothing()) else { return };
        if let Ok(found) = self.by_name.find_entry(spread(hash), |other| *other as usize == index) {
            found.remove();
        }
        (self.slots[index].name, self.slots[index].child) = (Arc::from(OsStr::new("")), None);
        if self.slots.len() > 16.max(2 * self.len()) {
            self.close_gaps();
        }
    }

    fn close_gaps(&mut self) {
        self.slots.retain(|slot| !slot.name.is_empty());
        self.slots.shrink_to_fit();
        self.by_name = HashTable::with_capacity(self.slots.len());
        for index in 0..self.slots.len() {
            self.enter(index);
        }
    }

    /// The slots numbered above `after`, with their numbers, in order.
    pub fn after(&self, after: u64) -> impl Iterator<Item = (u64, &Slot<L>)> {
        let from = self.slots.partition_point(|slot| slot.number <= after);
        self.slots[from..].iter().filter(|slot| !slot.name.is_empty()).map(|slot| (slot.number, slot))
    }

    /// All slots.
    pub fn slots_mut(&mut self) -> impl Iterator<Item = &mut Slot<L>> {
        self.slots.iter_mut().filter(|slot| !slot.name.is_empty())
    }

    /// Whether no name is visible.
    pub fn is_empty(&self) -> bool {
        self.slots.iter().all(|slot| slot.visible().is_none())
    }

    /// Whether the upper layer's directory has markers of names.
    pub fn has_whiteouts(&self) -> bool {
        self.slots.iter().any(|slot| slot.whiteout)
    }

    /// Enters an object of the upper layer's directory.
    pub fn add_upper(&mut self, name: &OsStr, kind: Kind, ino: u64) {
        self.entry(name).upper = Some(Upper { kind, ino: Some(ino) });
    }

    /// Enters a marker of the upper layer's directory.
    pub fn add_whiteout(&mut self, name: &OsStr) {
        self.entry(name).whiteout = true;
    }

    /// Enters an object of lower directory `dir`; the layers must come topmost first.
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

    /// Enters an object of lower directory `dir` of which only the outside shows: a directory is empty and merges with nothing.
    pub fn add_hidden(&mut self, name: &OsStr, kind: Kind, ino: u64, dir: u32) {
        let slot = self.entry(name);
        if !slot.closed && slot.lower.is_none() {
            slot.lower = Some(Lower { kind, ino, dir, merges: false, below: None });
        }
        slot.closed = true;
    }

    /// Enters a marker of a lower directory, after the objects of that directory: it hides the layers below.
    pub fn close(&mut self, name: &OsStr) {
        self.entry(name).closed = true;
    }

    /// Ends the building: names that only lower markers spoke of are no names.
    pub fn finish(&mut self) {
        let mut gaps = false;
        for slot in self.slots.iter_mut().filter(|slot| slot.says_nothing()) {
            slot.name = Arc::from(OsStr::new(""));
            gaps = true;
        }
        if gaps {
            self.close_gaps();
        } else {
            self.slots.shrink_to_fit();
        }
    }
}

/// A hash for the table, which looks at the highest bits as well as at the lowest.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::OsLayer;

    #[test]
    fn names_and_numbers_stay_while_others_go() {
        let mut names = Names::<OsLayer>::new();
        for index in 0..1000 {
            names.add_upper(OsStr::new(&index.to_string()), Kind::File, index);
        }
        names.finish();
        let numbers = |names: &Names<OsLayer>| -> Vec<_> {
            names.after(0).map(|(number, slot)| (number, slot.name.to_owned())).collect()
        };
        let before = numbers(&names);
        for index in (0..1000).filter(|index| index % 10 != 0) {
            let name = index.to_string();
            names.entry(OsStr::new(&name)).upper = None;
            names.tidy(OsStr::new(&name));
            assert!(names.get(OsStr::new(&name)).is_none());
        }
        names.add_upper(OsStr::new("1"), Kind::File, 5);
        assert_eq!(names.len(), 101);
        assert!(names.slots.len() <= 202, "gaps are closed");
        let after = numbers(&names);
        assert_eq!(after[..100], before.into_iter().step_by(10).collect::<Vec<_>>());
        assert_eq!(after[100], (FIRST + 1000, OsStr::new("1").into()), "a name that comes again has a new number");
        assert_eq!(names.after(after[50].0).count(), 50);
        for index in (0..1000).step_by(10) {
            assert_eq!(names.get(OsStr::new(&index.to_string())).unwrap().visible().unwrap().ino, Some(index));
        }
    }
}
