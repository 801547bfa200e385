//! The objects that the kernel knows: each is kept as long as the kernel may ask for it.
//!
//! The kernel would remember without end. So there is an order of what it was told, and it is to
//! let go of the oldest when there are too many. What is in use stays then: a directory with known
//! objects in it, or a mount point.
//!
//! The locks, of the parts of the table and of the order, are leaves; that of the order is never
//! taken under another.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use overlayfs::errno::{ESTALE, Error, Result};
use overlayfs::layer::Layer;
use overlayfs::overlay::{Handle, Node, Overlay};

use crate::wire::ROOT;

/// In how many parts the table is, so that threads seldom wait for each other.
const PARTS: usize = 32;

/// How many are to go at a time.
const BATCH: usize = 256;
/// After how many new objects there is a next time, so that those in use, however many, are not
/// tried at every request.
const NEW_MIN: usize = BATCH / 8;

/// An object that the kernel was told of.
struct KnownObject<L: Layer> {
    /// Open, so that it stays usable when its last name is removed: the kernel does not say who has
    /// it open.
    handle: Handle<L>,
    /// How many times the kernel was told of it and has not forgotten it.
    count: u64,
}

pub struct Nodes<L: Layer> {
    root: Handle<L>,
    parts: [Mutex<HashMap<u64, KnownObject<L>>>; PARTS],
    count: AtomicUsize,
    /// How many there may be.
    most: usize,
    /// How many came since some were to expire.
    new: AtomicUsize,
    /// What the kernel was told of, the oldest first; maybe forgotten since.
    order: Mutex<VecDeque<u64>>,
}

impl<L: Layer> Nodes<L> {
    /// A table of the root alone, which is never forgotten, and of `most` objects if possible.
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

    /// The object. ESTALE if the kernel should not know it.
    pub fn get(&self, number: u64) -> Result<Arc<Node<L>>> {
        if number == ROOT {
            return Ok(self.root.node().clone());
        }
        self.part(number).get(&number).map(|known| known.handle.node().clone()).ok_or(Error::new(ESTALE))
    }

    /// The kernel is told of an object once more. Answers its number.
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

    /// The kernel forgets `count` of the times it was told. Answers the object if that were all.
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

    /// Whether it is time to ask for the [`Nodes::oldest`].
    pub fn is_due(&self) -> bool {
        let count = self.count();
        let is_due = count > self.most && self.new.load(Ordering::Relaxed) >= NEW_MIN;
        is_due || self.order().len() > 2 * count.max(self.most)
    }

    /// Some of those that the kernel has known longest and should let go of, if there are too many.
    /// They go to the end of the order, in case it does not.
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

/// The number by which the kernel knows an object. The root, which has the id 0, is the first.
pub fn number<L: Layer>(node: &Node<L>) -> u64 {
    node.id() + ROOT
}
