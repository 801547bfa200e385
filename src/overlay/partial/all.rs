//! All partial copies of an overlay: the mark that some may exist, and their completion at the end.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::errno::{EIO, Error};

use super::Partial;
use crate::format::{self, Format};
use crate::layer::{Access, Kind, Layer, Result};
use crate::overlay::features::Feature;
use crate::overlay::names::Slot;
use crate::overlay::node::Node;
use crate::overlay::stack::{LayerDir, Stack};
use crate::overlay::{Overlay, Settings};
use crate::sync::Lock;

/// A file and its partial copy.
type Known<L> = (Arc<Node<L>>, Arc<Partial<L>>);

/// The partial copies of an overlay.
pub(in crate::overlay) struct Partials<L: Layer> {
    /// The known ones with their nodes, by the node's id.
    pub(super) nodes: Lock<HashMap<u64, Known<L>>>,
    /// Whether the engine must make none.
    pub(super) unwanted: bool,
    /// Whether the topmost layer may have some. It is an upper layer that the mount only reads.
    pub(in crate::overlay) shown: bool,
    /// Whether the upper layer has the mark.
    pub(super) marked: AtomicBool,
    /// Whether the upper layer had the mark at the start. Then some may exist that are not known
    /// yet.
    pub(super) left: AtomicBool,
    /// Whether the engine found some that it cannot complete.
    pub(in crate::overlay) lost: AtomicBool,
}

impl<L: Layer> Partials<L> {
    /// Prepares for an overlay. Its settings may exclude partial copies, or the format of its upper
    /// layer. Logs a warning for each lower layer with the mark.
    pub fn new(stack: &Stack<L>, settings: Settings, format: Format) -> Result<Self> {
        let mut shown = false;
        for root in stack.lower_roots().iter().filter(|root| is_marked(stack, root)) {
            if settings.read_only_upper && root.index() == 0 {
                shown = true;
                continue;
            }
            log::warn!(
                "{} has partial copies of another overlay: large files in it show without their changes",
                stack.path(root).display()
            );
        }
        let possible = format.features().partial_copies;
        let left = possible && stack.upper_root().is_some_and(|root| is_marked(stack, root));
        Ok(Partials {
            nodes: Lock::new(HashMap::new()),
            unwanted: settings.whole_copies || !possible,
            shown,
            marked: AtomicBool::new(left),
            left: AtomicBool::new(left),
            lost: AtomicBool::new(false),
        })
    }

    /// Returns the number of known ones, and an upper bound of the bytes that they lack.
    pub fn sums(&self) -> (u64, u64) {
        let partials: Vec<_> = self.nodes.lock().values().map(|(_, partial)| partial.clone()).collect();
        let missing = partials.iter().map(|partial| partial.chunks.lock().uncopied_bytes()).sum();
        (partials.len() as u64, missing)
    }

    /// Whether an earlier overlay left some that may not be known yet.
    pub fn left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }
}

fn is_marked<L: Layer>(stack: &Stack<L>, root: &LayerDir<L>) -> bool {
    stack.stat(root, OsStr::new(format::PARTS)).is_ok()
}

impl<L: Layer> Overlay<L> {
    /// Puts the mark at the root of the upper layer, unless it is there. The caller holds the tree.
    pub(super) fn mark_partials(&self) -> Result<()> {
        if self.partials.marked.load(Ordering::Acquire) {
            return Ok(());
        }
        self.need(Feature::PartialCopies)?;
        self.mark_top(format::PARTS)?;
        self.partials.marked.store(true, Ordering::Release);
        Ok(())
    }

    /// Completes every partial copy, and removes the mark if no new one came meanwhile. The mark
    /// stays for copies that only other lower layers can complete.
    pub(in crate::overlay) fn complete_all(&self) -> Result<()> {
        self.try_complete_all()?;
        match self.partials.marked.load(Ordering::Acquire) && !self.partials.lost.load(Ordering::Relaxed) {
            true => self.unmark_partials(),
            false => Ok(()),
        }
    }

    fn try_complete_all(&self) -> Result<()> {
        if self.partials.left() {
            self.meet_partials()?;
            self.partials.left.store(false, Ordering::Release);
        }
        self.complete_each(|node| self.complete(node).or_else(|error| self.keep_for_good(node).and(Err(error))))
    }

    /// Completes every known partial copy.
    pub(in crate::overlay) fn complete_known(&self) -> Result<()> {
        self.complete_each(|node| self.complete(node))
    }

    fn complete_each(&self, complete: impl Fn(&Arc<Node<L>>) -> Result<()>) -> Result<()> {
        let nodes: Vec<_> = self.partials.nodes.lock().values().map(|(node, _)| node.clone()).collect();
        // One copy may fail, maybe for lack of space. The others are completed all the same.
        nodes.iter().map(complete).collect::<Vec<_>>().into_iter().collect()
    }

    /// Syncs a partial copy as it is, since it is unknown when it can be completed.
    fn keep_for_good(&self, node: &Arc<Node<L>>) -> Result<()> {
        let _content = node.content.lock();
        let Some(partial) = node.state.lock().stored.partial().cloned() else { return Ok(()) };
        let (upper, _) = self.upper()?;
        upper.sync(&self.file(node, Access::ReadWrite)?.file)?;
        partial.chunks.lock().for_good = true;
        self.save_map(node, &partial)?;
        let open = {
            let _tree = self.tree.read();
            self.stack.open(&partial.dir)?
        };
        upper.sync_dir(&open)
    }

    fn unmark_partials(&self) -> Result<()> {
        let (upper, _) = self.upper()?;
        let root = self.stack.upper_root().ok_or(Error::new(EIO))?;
        // A thread that makes a partial copy holds the tree from the mark until the copy is in the
        // table.
        let _tree = self.tree.write();
        let _dir = self.root.dir()?;
        // Another thread may have removed it meanwhile.
        if self.partials.marked.load(Ordering::Acquire) && self.partials.nodes.lock().is_empty() {
            self.keeping_times(&self.root, root, |dir| upper.unlink(dir, OsStr::new(format::PARTS)))?;
            self.partials.marked.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Looks up every partial copy in the upper layer.
    fn meet_partials(&self) -> Result<()> {
        let mut dirs = vec![self.root.clone()];
        while let Some(dir) = dirs.pop() {
            let in_upper = |slot: &Slot<L>| slot.upper.is_some_and(|upper| upper.kind == Kind::Dir);
            let mut next = Some(OsString::new());
            while let Some(from) = next {
                let (names, behind) =
                    self.each_slot(&dir, &from, |slot| (slot.part || in_upper(slot)).then(|| slot.name.clone()))?;
                for name in names {
                    let child = self.lookup(&dir, &name)?;
                    if child.kind() == Kind::Dir {
                        dirs.push(child);
                    }
                }
                next = behind;
            }
        }
        Ok(())
    }
}
