//! The objects that the kernel knows. Each stays as long as the kernel may ask for it.
//!
//! The kernel would remember objects without limit. So the table keeps their order, and the front
//! end asks the kernel to drop the oldest when there are too many. An object in use stays: a
//! directory with known objects in it, or a mount point.
//!
//! The number of an object is its inode number, so that a handle of the kernel survives the mount.
//! Rarely another object still has that number here, as after a rollback. Then the object gets a
//! number of its own, and its handles end with the mount.
//!
//! The locks of the table's parts and of the order are leaves, but for that of the ledger. No
//! thread takes the lock of the order under another.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use overlayfs::errno::{ESTALE, Error, Result};
use overlayfs::layer::Layer;
use overlayfs::overlay::{Handle, Node, Overlay};

use crate::comeback::Ledger;

use crate::wire::ROOT;

/// The lowest of the numbers for objects whose inode number another one has here. The engine shows
/// no such number.
const APART: u64 = 5 << 61;

/// The number of parts of the table: so threads seldom wait for each other.
const PARTS: usize = 32;

/// How many objects the front end asks the kernel to drop at a time.
const BATCH: usize = 256;
/// How many new objects come before the next such request, so that it does not try the objects in
/// use again at every request.
const NEW_MIN: usize = BATCH / 8;

/// An object that the kernel knows.
struct KnownObject<L: Layer> {
    /// An open handle, so that the object stays usable after its last name is removed. The kernel
    /// does not tell which objects are open. None: the object was known to the overlay before, and
    /// no request has asked for it since.
    handle: Option<Handle<L>>,
    /// The id of its node.
    id: u64,
    /// What the kernel got as its generation. The kernel gives the object up if it gets another.
    generation: u32,
    /// How many answers named the object, less those that the kernel has forgotten.
    count: u64,
}

/// An object for the table of another process: its number, the id of its node, its generation, and
/// how many answers named it.
#[derive(Clone, Copy, Debug)]
pub struct CountedObject {
    pub number: u64,
    pub id: u64,
    pub generation: u32,
    pub count: u64,
}

pub struct Nodes<L: Layer> {
    root: Handle<L>,
    parts: [Mutex<HashMap<u64, KnownObject<L>>>; PARTS],
    count: AtomicUsize,
    /// How many objects there may be.
    most: usize,
    /// How many new objects came since the last call of [`Nodes::oldest`].
    new: AtomicUsize,
    /// The objects that the kernel knows, the oldest first. Some may be forgotten by now.
    order: Mutex<VecDeque<u64>>,
    /// How many of them have a number of their own.
    apart: AtomicUsize,
    /// The objects of the overlay before that no request has asked for.
    unopened: Mutex<Vec<u64>>,
    /// Held by a thread that finds an object of the overlay before again. It comes before the other
    /// locks.
    finding: Mutex<()>,
    /// Where to write the objects down. None: the mount does not go on after a kill.
    ledger: Option<Arc<Ledger>>,
}

/// Writes down where an object is now, if it is not the root. Also where the directories above are
/// of which the ledger knows nothing.
pub fn note<L: Layer>(overlay: &Overlay<L>, node: &Arc<Node<L>>, ledger: &Ledger) {
    let mut node = node.clone();
    while !Arc::ptr_eq(&node, overlay.root()) {
        let has_parent = loop {
            let note = overlay.note(&node);
            let has_parent = ledger.note(&note);
            // Another thread may have moved it, and may have written that before.
            if overlay.note(&node) == note {
                break has_parent;
            }
        };
        match overlay.parent(&node) {
            Some((parent, _)) if !has_parent => node = parent,
            _ => return,
        }
    }
}

impl<L: Layer> Nodes<L> {
    /// Makes a table with the root alone, which the kernel never forgets. It holds `most` objects
    /// if possible.
    pub fn new(overlay: &Overlay<L>, most: usize) -> Self {
        Self {
            root: overlay.open(overlay.root()),
            parts: std::array::from_fn(|_| Mutex::default()),
            count: AtomicUsize::new(0),
            most,
            new: AtomicUsize::new(0),
            order: Mutex::default(),
            apart: AtomicUsize::new(0),
            unopened: Mutex::default(),
            finding: Mutex::default(),
            ledger: None,
        }
    }

    /// Writes all objects down in `ledger` from now on.
    pub fn with_ledger(self, ledger: Option<Arc<Ledger>>) -> Self {
        Self { ledger, ..self }
    }

    /// Returns the ledger.
    pub fn ledger(&self) -> Option<&Arc<Ledger>> {
        self.ledger.as_ref()
    }

    /// Returns the table for another overlay of the same tree, which finds the objects again.
    pub fn for_successor(&self, overlay: &Overlay<L>) -> Self {
        let unopened = |part: &Mutex<HashMap<u64, KnownObject<L>>>| {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            let objects = part.iter().map(|(number, known)| (*number, KnownObject { handle: None, ..*known }));
            Mutex::new(objects.collect())
        };
        Self {
            parts: std::array::from_fn(|index| unopened(&self.parts[index])),
            count: AtomicUsize::new(self.count()),
            order: Mutex::new(self.order().clone()),
            apart: AtomicUsize::new(self.apart.load(Ordering::Relaxed)),
            unopened: Mutex::new(self.numbers()),
            ledger: self.ledger.clone(),
            ..Self::new(overlay, self.most)
        }
    }

    /// Returns all objects but the root, the oldest first.
    pub fn counted(&self) -> Vec<CountedObject> {
        let mut met = HashSet::new();
        let order = self.order();
        let numbers: Vec<_> = order.iter().copied().filter(|number| met.insert(*number)).collect();
        drop(order);
        let count = |number| {
            let part = self.part(number);
            let KnownObject { id, generation, count, .. } = *part.get(&number)?;
            Some(CountedObject { number, id, generation, count })
        };
        numbers.into_iter().filter_map(count).collect()
    }

    /// Makes the table of objects that another process knew ([`Nodes::counted`]), which the overlay
    /// finds again.
    pub fn known(overlay: &Overlay<L>, most: usize, counted: &[CountedObject]) -> Self {
        let nodes = Self::new(overlay, most);
        for CountedObject { number, id, generation, count } in counted.iter().copied() {
            nodes.part(number).insert(number, KnownObject { handle: None, id, generation, count });
        }
        let numbers = || counted.iter().map(|counted| counted.number);
        nodes.count.store(counted.len(), Ordering::Relaxed);
        let apart = counted.iter().filter(|counted| counted.number == APART + counted.id).count();
        nodes.apart.store(apart, Ordering::Relaxed);
        nodes.order().extend(numbers());
        nodes.unopened.lock().unwrap_or_else(PoisonError::into_inner).extend(numbers());
        nodes
    }

    /// Returns the numbers of all objects.
    pub fn numbers(&self) -> Vec<u64> {
        let numbers = |part: &Mutex<HashMap<u64, KnownObject<L>>>| -> Vec<u64> {
            part.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
        };
        [ROOT].into_iter().chain(self.parts.iter().flat_map(numbers)).collect()
    }

    /// Returns all objects. One that is not found again is left out.
    pub fn all(&self, overlay: &Overlay<L>) -> Vec<Arc<Node<L>>> {
        self.numbers().into_iter().filter_map(|number| self.get(overlay, number).ok()).collect()
    }

    fn part(&self, number: u64) -> MutexGuard<'_, HashMap<u64, KnownObject<L>>> {
        self.parts[number as usize % PARTS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the object.
    ///
    /// # Errors
    ///
    /// - ESTALE: the kernel should not know the number, or the tree lacks the object since a
    ///   rollback.
    ///
    /// Others as [`Overlay::find_again`].
    pub fn get(&self, overlay: &Overlay<L>, number: u64) -> Result<Arc<Node<L>>> {
        if number == ROOT {
            return Ok(self.root.node().clone());
        }
        let (opened, id) = self.opened(number)?;
        opened.map_or_else(|| self.find_again(overlay, number, id), Ok)
    }

    /// Returns the object if it is open, and the id of its node.
    fn opened(&self, number: u64) -> Result<(Option<Arc<Node<L>>>, u64)> {
        let part = self.part(number);
        let known = part.get(&number).ok_or(Error::new(ESTALE))?;
        Ok((known.handle.as_ref().map(|handle| handle.node().clone()), known.id))
    }

    /// Opens an object that the overlay before had open.
    fn find_again(&self, overlay: &Overlay<L>, number: u64, id: u64) -> Result<Arc<Node<L>>> {
        let _finding = self.finding.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = self.opened(number)?.0 {
            return Ok(node);
        }
        let handle = match overlay.find_again(id) {
            Ok(handle) => handle,
            // Another thread may have met it in a lookup meanwhile.
            Err(error) => return self.opened(number)?.0.ok_or(error),
        };
        let node = handle.node().clone();
        let mut part = self.part(number);
        let known = part.get_mut(&number).ok_or(Error::new(ESTALE))?;
        let unused = if known.handle.is_none() { known.handle.replace(handle) } else { Some(handle) };
        drop(part);
        drop(unused);
        Ok(node)
    }

    /// Returns the number by which the kernel knows an object, if it does.
    pub fn number(&self, overlay: &Overlay<L>, node: &Arc<Node<L>>) -> Option<u64> {
        if Arc::ptr_eq(node, self.root.node()) {
            return Some(ROOT);
        }
        let is_it = |number: &u64| self.part(*number).get(number).is_some_and(|known| known.id == node.id());
        [overlay.asked_number(node)?, APART + node.id()].into_iter().find(is_it)
    }

    /// Counts one more answer that names the object, which shows the inode number `shown`. Returns
    /// its number and its generation.
    pub fn remember(&self, overlay: &Overlay<L>, node: &Arc<Node<L>>, shown: u64) -> (u64, u32) {
        if Arc::ptr_eq(node, self.root.node()) {
            return (ROOT, 0);
        }
        let own = APART + node.id();
        let is_apart = self.apart.load(Ordering::Relaxed) > 0 && self.part(own).contains_key(&own);
        let shown = if is_apart || shown <= ROOT { own } else { shown };
        let counted = self.count_at(overlay, node, shown).map(|generation| (shown, generation));
        counted.or_else(|| Some((own, self.count_at(overlay, node, own)?))).unwrap_or((own, 0))
    }

    /// Counts one more answer that names the object by this number. Returns its generation, or None
    /// if another object has the number.
    fn count_at(&self, overlay: &Overlay<L>, node: &Arc<Node<L>>, number: u64) -> Option<u32> {
        // Without generations of the layers a handle is valid as long as the object is known.
        let generation = overlay.generation(node).unwrap_or(node.id() as u32);
        let mut part = self.part(number);
        let mut is_new = false;
        let known = part.entry(number).or_insert_with(|| {
            is_new = true;
            KnownObject { handle: Some(overlay.open(node)), id: node.id(), generation, count: 0 }
        });
        if known.id != node.id() {
            return None;
        }
        known.count += 1;
        let generation = known.generation;
        let is_found = known.handle.is_none();
        if is_found {
            known.handle = Some(overlay.open(node));
        }
        drop(part);
        if let Some(ledger) = &self.ledger {
            // The kernel forgets no answer that it has not got, so the order does not matter.
            while !ledger.count(CountedObject { number, id: node.id(), generation, count: 1 }) {
                note(overlay, node, ledger);
            }
        }
        if is_found {
            overlay.forget_earlier(node.id());
        }
        if is_new {
            self.count.fetch_add(1, Ordering::Relaxed);
            self.new.fetch_add(1, Ordering::Relaxed);
            self.apart.fetch_add(usize::from(number == APART + node.id()), Ordering::Relaxed);
            self.order().push_back(number);
        }
        Some(generation)
    }

    /// Tells the overlay that the kernel may forget an object now.
    pub fn note_place(&self, overlay: &Overlay<L>, number: u64) {
        if overlay.notes_places()
            && let Ok((Some(node), _)) = self.opened(number)
        {
            overlay.note_place(&node);
        }
    }

    /// Removes `count` answers that named the object. Returns its handle if none is left.
    pub fn forget(&self, overlay: &Overlay<L>, number: u64, count: u64) -> Option<Handle<L>> {
        let mut part = self.part(number);
        let known = part.get_mut(&number)?;
        known.count = known.count.saturating_sub(count);
        self.ledger.iter().for_each(|ledger| ledger.write(|page| page.forget(number, count)));
        if known.count > 0 {
            return None;
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
        let KnownObject { handle, id, .. } = part.remove(&number)?;
        drop(part);
        self.apart.fetch_sub(usize::from(number == APART + id), Ordering::Relaxed);
        overlay.forget_earlier(id);
        handle
    }

    /// Finds some of the objects of the overlay before again, and opens them.
    pub fn find_some(&self, overlay: &Overlay<L>) {
        let numbers = {
            let mut unopened = self.unopened.lock().unwrap_or_else(PoisonError::into_inner);
            let rest = unopened.len().saturating_sub(BATCH);
            unopened.split_off(rest)
        };
        let mut missed = Vec::new();
        for number in numbers {
            if let Err(error) = self.get(overlay, number) {
                log::debug!("object {number} is not found again now: {error}");
                missed.extend((error.errno != ESTALE).then_some(number));
            }
        }
        self.unopened.lock().unwrap_or_else(PoisonError::into_inner).extend(missed);
    }

    fn order(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many objects the kernel knows.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether it is time to call [`Nodes::oldest`].
    pub fn is_due(&self) -> bool {
        let count = self.count();
        let is_due = count > self.most && self.new.load(Ordering::Relaxed) >= NEW_MIN;
        is_due || self.order().len() > 2 * count.max(self.most)
    }

    /// Returns some of the objects that the kernel has known longest and should drop, if there are
    /// too many. They move to the end of the order, in case the kernel keeps them.
    pub fn oldest(&self) -> Vec<u64> {
        self.new.store(0, Ordering::Relaxed);
        let mut order = self.order();
        let oldest = order.len().min(BATCH);
        let mut oldest: Vec<_> = order.drain(..oldest).collect();
        drop(order);
        oldest.retain(|number| self.part(*number).contains_key(number));
        self.order().extend(&oldest);
        if self.count() <= self.most {
            oldest.clear();
        }
        oldest
    }
}
