//! The objects that the kernel knows. Each stays as long as the kernel may ask for it.
//!
//! The kernel would remember objects without limit. So the table keeps their order, and the front
//! end asks the kernel to drop the oldest when there are too many. An object in use stays: a
//! directory with known objects in it, or a mount point.
//!
//! The locks of the table's parts and of the order are leaves. No thread takes the lock of the
//! order under another.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use overlayfs::errno::{ESTALE, Error, Result};
use overlayfs::layer::Layer;
use overlayfs::overlay::{Handle, Node, Overlay};

use crate::wire::ROOT;

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
    /// does not tell which objects are open.
    handle: Handle<L>,
    /// How many answers named the object, less those that the kernel has forgotten.
    count: u64,
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
        }
    }

    fn part(&self, number: u64) -> MutexGuard<'_, HashMap<u64, KnownObject<L>>> {
        self.parts[number as usize % PARTS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the object.
    ///
    /// # Errors
    ///
    /// - ESTALE: the kernel should not know the number.
    pub fn get(&self, number: u64) -> Result<Arc<Node<L>>> {
        if number == ROOT {
            return Ok(self.root.node().clone());
        }
        self.part(number).get(&number).map(|known| known.handle.node().clone()).ok_or(Error::new(ESTALE))
    }

    /// Counts one more answer that names the object. Returns its number.
    pub fn remember(&self, overlay: &Overlay<L>, node: &Arc<Node<L>>) -> u64 {
        let number = number(node);
        if number != ROOT {
            let mut part = self.part(number);
            let mut is_new = false;
            let make = || {
                is_new = true;
                KnownObject { handle: overlay.open(node), count: 0 }
            };
            part.entry(number).or_insert_with(make).count += 1;
            drop(part);
            if is_new {
                self.count.fetch_add(1, Ordering::Relaxed);
                self.new.fetch_add(1, Ordering::Relaxed);
                self.order().push_back(number);
            }
        }
        number
    }

    /// Removes `count` answers that named the object. Returns its handle if none is left.
    pub fn forget(&self, number: u64, count: u64) -> Option<Handle<L>> {
        let mut part = self.part(number);
        let known = part.get_mut(&number)?;
        known.count = known.count.saturating_sub(count);
        if known.count > 0 {
            return None;
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
        part.remove(&number).map(|known| known.handle)
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
        oldest.retain(|number| self.get(*number).is_ok());
        self.order().extend(&oldest);
        if self.count() <= self.most {
            oldest.clear();
        }
        oldest
    }
}

/// Returns the number by which the kernel knows an object. The root has the id 0, and the number
/// [`ROOT`].
pub fn number<L: Layer>(node: &Node<L>) -> u64 {
    node.id() + ROOT
}
