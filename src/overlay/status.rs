//! What an overlay at work tells about itself: numbers for its owner. See [`crate::control`].
//!
//! No number waits for a layer: each is an atomic, or comes from under a leaf lock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Overlay;
use crate::control::fact::{Fact, Value};
use crate::layer::Layer;
use crate::layer::counted::Method;

/// The counters of the engine.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Names that were looked up, and those of them that were known.
    lookups: AtomicU64,
    hits: AtomicU64,
    /// Objects copied up, and the bytes of files.
    copied_files: AtomicU64,
    copied_bytes: AtomicU64,
}

impl Counters {
    /// Counts the lookup of a name, and whether it needed no layer.
    pub fn looked_up(&self, was_known: bool) {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        if was_known {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts the copy of an object that is no directory.
    pub fn copied_up(&self) {
        self.copied_files.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes that were copied up.
    pub fn copied(&self, bytes: u64) {
        self.copied_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl<L: Layer> Overlay<L> {
    /// Returns the name of the format of the upper layer. None: there is no upper layer.
    pub fn format_name(&self) -> Option<&'static str> {
        let work = self.work.as_ref()?;
        Some(if work.format().features().is_kernels { "kernel" } else { "oci" })
    }

    /// Returns the numbers of the overlay at this moment.
    pub fn status(&self) -> Vec<Fact> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (partial_copies, missing) = self.partials.sums();
        let counters = &self.counters;
        let mut facts = vec![
            Fact::number("cached_names", self.known.count() as u64),
            Fact::number("partial_copies", partial_copies),
            Fact::number("missing", missing),
            Fact::number("copied_files", count(&counters.copied_files)),
            Fact::number("copied", count(&counters.copied_bytes)),
            Fact::number("lookups", count(&counters.lookups)),
            Fact::number("lookup_hits", count(&counters.hits)),
        ];
        let mut calls = BTreeMap::<_, u64>::new();
        for tally in self.stack.layers().filter_map(Layer::calls) {
            for method in Method::ALL {
                *calls.entry(method.name()).or_default() += tally.of(*method);
            }
        }
        facts.extend(calls.into_iter().filter(|(_, count)| *count > 0).map(|(name, count)| Fact {
            name: "backing_calls".to_owned(),
            label: name.to_owned(),
            value: Value::Numbers(vec![count]),
        }));
        facts
    }
}
