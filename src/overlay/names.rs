//! The names of one merged directory: for each, what the upper layer and the lower layers have there.
//!
//! Names keep the order in which they came, and each has a number that is never given again while the table lives: the offset
//! of a listing. So a listing that goes on behind an offset meets every name that was there all the time exactly once, whatever
//! is created and removed meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::sync::Arc;

use super::node::Node;
use crate::layer::{Kind, Layer};

/// The number of the first name: 1 and 2 are left to a door's `.` and `..`.
const FIRST: u64 = 3;

pub struct Names<L: Layer> {
    by_name: HashMap<Arc<OsStr>, u64>,
    slots: BTreeMap<u64, Slot<L>>,
    next: u64,
}

/// What is known of one name.
pub struct Slot<L: Layer> {
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

#[derive(Clone)]
pub enum Lower {
    /// What merges with nothing: anything but a directory, or one of which only the outside shows.
    Other { dir: u32, kind: Kind, ino: u64 },
    /// The directories that merge under this name, the topmost first.
    Dirs { dirs: Vec<u32>, ino: u64 },
}

impl<L: Layer> Slot<L> {
    /// What the merged directory has under this name: its kind, and the layer's inode number where it is known.
    pub fn visible(&self) -> Option<Upper> {
        match (&self.upper, &self.lower) {
            (Some(upper), _) => Some(*upper),
            (None, _) if self.whiteout => None,
            (None, Some(Lower::Other { kind, ino, .. })) => Some(Upper { kind: *kind, ino: Some(*ino) }),
            (None, Some(Lower::Dirs { ino, .. })) => Some(Upper { kind: Kind::Dir, ino: Some(*ino) }),
            (None, None) => None,
        }
    }

    /// Lets go of the object, keeping its inode number for listings. False, and nothing is done, if that is not known.
    pub fn forget_child(&mut self) -> bool {
        let Some(child) = &self.child else { return true };
        if let Some(upper) = &mut self.upper
            && upper.ino.is_none()
        {
            upper.ino = child.state.lock().attr.map(|attr| attr.ino);
            if upper.ino.is_none() {
                return false;
            }
        }
        self.child = None;
        true
    }

    /// The indices, among the directory's lower layers, of the directories that merge under this name.
    pub fn merging(&self) -> &[u32] {
        match (&self.upper, &self.lower) {
            (Some(Upper { kind: Kind::Dir, .. }) | None, Some(Lower::Dirs { dirs, .. })) if !self.whiteout => dirs,
            _ => &[],
        }
    }
}

impl<L: Layer> Names<L> {
    pub fn new() -> Self {
        Names { by_name: HashMap::new(), slots: BTreeMap::new(), next: FIRST }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn number(&self, name: &OsStr) -> Option<u64> {
        self.by_name.get(name).copied()
    }

    pub fn get(&self, name: &OsStr) -> Option<&Slot<L>> {
        self.number(name).and_then(|number| self.slots.get(&number))
    }

    pub fn get_mut(&mut self, name: &OsStr) -> Option<&mut Slot<L>> {
        let number = self.number(name)?;
        self.slots.get_mut(&number)
    }

    /// The name's slot, new and empty if there was none.
    pub fn entry(&mut self, name: &OsStr) -> &mut Slot<L> {
        let number = self.number(name).unwrap_or(self.next);
        self.slots.entry(number).or_insert_with(|| {
            let name: Arc<OsStr> = name.into();
            self.by_name.insert(name.clone(), number);
            self.next = number + 1;
            Slot { name, upper: None, whiteout: false, part: false, lower: None, closed: false, child: None }
        })
    }

    /// Forgets the name if no layer has anything under it.
    pub fn tidy(&mut self, name: &OsStr) {
        let Some(number) = self.number(name) else { return };
        if self.slots.get(&number).is_some_and(|slot| slot.upper.is_none() && slot.lower.is_none() && !slot.whiteout) {
            self.slots.remove(&number);
            self.by_name.remove(name);
        }
    }

    /// The slots numbered above `after`, with their numbers, in order.
    pub fn after(&self, after: u64) -> impl Iterator<Item = (u64, &Slot<L>)> {
        let from = after.saturating_add(1);
        self.slots.range(from..).map(|(number, slot)| (*number, slot))
    }

    /// All slots.
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

    /// Enters an object of lower directory `dir`; the layers must come topmost first.
    pub fn add_lower(&mut self, name: &OsStr, kind: Kind, ino: u64, dir: u32) {
        let slot = self.entry(name);
        match &mut slot.lower {
            _ if slot.closed => {}
            None if kind == Kind::Dir => slot.lower = Some(Lower::Dirs { dirs: vec![dir], ino }),
            None => {
                slot.lower = Some(Lower::Other { dir, kind, ino });
                slot.closed = true;
            }
            Some(Lower::Dirs { dirs, .. }) if kind == Kind::Dir => dirs.push(dir),
            Some(_) => slot.closed = true,
        }
    }

    /// Enters an object of lower directory `dir` of which only the outside shows: a directory is empty and merges with nothing.
    pub fn add_hidden(&mut self, name: &OsStr, kind: Kind, ino: u64, dir: u32) {
        let slot = self.entry(name);
        if !slot.closed && slot.lower.is_none() {
            slot.lower = Some(Lower::Other { dir, kind, ino });
        }
        slot.closed = true;
    }

    /// Enters a marker of a lower directory, after the objects of that directory: it hides the layers below.
    pub fn close(&mut self, name: &OsStr) {
        self.entry(name).closed = true;
    }

    /// Ends the building: names that only lower markers spoke of are no names.
    pub fn finish(&mut self) {
        let gone = |slot: &Slot<L>| slot.upper.is_none() && slot.lower.is_none() && !slot.whiteout;
        for slot in self.slots.values().filter(|slot| gone(slot)) {
            self.by_name.remove(&slot.name);
        }
        self.slots.retain(|_, slot| !gone(slot));
    }
}
