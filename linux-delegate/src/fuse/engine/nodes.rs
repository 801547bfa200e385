//! The objects that the kernel knows: each is kept as long as the kernel may ask for it.
//!
//! The locks, of the parts of the table, are leaves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use overlayfs::layer::Layer;
use overlayfs::overlay::{Handle, Node, Overlay};
use syscall::error::{ESTALE, Error, Result};

use crate::fuse::wire::ROOT;

/// In how many parts the table is, so that threads seldom wait for each other.
const PARTS: usize = 32;

/// An object that the kernel was told of.
struct Known<L: Layer> {
    /// Open, so that it stays usable when its last name is removed: the kernel does not say who has it open.
    handle: Arc<Handle<L>>,
    /// How many times the kernel was told of it and has not forgotten it.
    count: u64,
}

pub struct Nodes<L: Layer> {
    root: Arc<Handle<L>>,
    parts: [Mutex<HashMap<u64, Known<L>>>; PARTS],
}

impl<L: Layer> Nodes<L> {
    /// A table of the root alone, which is never forgotten.
    pub fn new(overlay: &Overlay<L>) -> Self {
        Self { root: Arc::new(overlay.open(overlay.root())), parts: std::array::from_fn(|_| Mutex::default()) }
    }

    fn part(&self, number: u64) -> MutexGuard<'_, HashMap<u64, Known<L>>> {
        self.parts[number as usize % PARTS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object. ESTALE if the kernel should not know it.
    pub fn get(&self, number: u64) -> Result<Arc<Handle<L>>> {
        if number == ROOT {
            return Ok(self.root.clone());
        }
        self.part(number).get(&number).map(|known| known.handle.clone()).ok_or(Error::new(ESTALE))
    }

    /// The kernel is told of an object once more. Answers its number.
    pub fn remember(&self, overlay: &Overlay<L>, node: &Arc<Node<L>>) -> u64 {
        let number = number(node);
        if number != ROOT {
            let mut part = self.part(number);
            let known = part.entry(number);
            known.or_insert_with(|| Known { handle: Arc::new(overlay.open(node)), count: 0 }).count += 1;
        }
        number
    }

    /// The kernel forgets `count` of the times it was told. Answers the object if that were all.
    pub fn forget(&self, number: u64, count: u64) -> Option<Arc<Handle<L>>> {
        let mut part = self.part(number);
        let known = part.get_mut(&number)?;
        known.count = known.count.saturating_sub(count);
        if known.count > 0 {
            return None;
        }
        part.remove(&number).map(|known| known.handle)
    }
}

/// The number by which the kernel knows an object. The root, which has the id 0, is the first.
pub fn number<L: Layer>(node: &Node<L>) -> u64 {
    node.id() + ROOT
}
