//! What an overlay owes when nobody uses it any more, and in pauses before: files that are whole, and on the disk.

use super::Overlay;
use super::holder::Holder;
use super::names::Names;
use crate::layer::{Layer, Result};

impl<L: Layer> Overlay<L> {
    /// Says who serves the overlay, to those who are refused its upper layer. Without effect for an overlay that holds none.
    pub fn sign(&self, holder: &Holder) -> Result<()> {
        match &self.work {
            Some(work) => work.sign(&self.stack, holder),
            None => Ok(()),
        }
    }

    /// Whether an earlier overlay has left partial copies, which nobody has completed yet.
    pub fn has_unfinished(&self) -> bool {
        self.work.is_some() && self.partials.left()
    }

    /// Completes every partial copy, and brings what was changed to the disk unless nothing is synced. Others may go on meanwhile; what they
    /// change is then left to the next call.
    pub fn settle_all(&self) -> Result<()> {
        let Some(work) = &self.work else { return Ok(()) };
        let completed = self.complete_all();
        let synced = if work.is_volatile() { Ok(()) } else { self.stack.layer(work.dir()).sync_all() };
        completed.and(synced)
    }
}

impl<L: Layer> Drop for Overlay<L> {
    /// Leaves no partial copies, and nothing but the index in the work directory. Nodes and their parents hold each other: takes them apart,
    /// without recursion, since a tree may be deep.
    fn drop(&mut self) {
        if let Err(error) = self.complete_all() {
            log::warn!(
                "the upper layer has files of which only an overlay knows the rest, until the next one ends: {error}"
            );
        }
        let mut nodes = vec![self.root.clone()];
        while let Some(node) = nodes.pop() {
            let mut state = node.state.lock();
            if state.ctime.is_some()
                && let Err(error) = self.refresh(&node, &mut state)
            {
                log::debug!("an object will show the layer's time of last change of status: {error}");
            }
            state.places.clear();
            drop(state);
            let names: Option<Names<L>> = node.dir().ok().and_then(|mut dir| dir.names.take());
            if let Some(mut names) = names {
                nodes.extend(names.slots_mut().filter_map(|slot| slot.child.take()));
            }
        }
        if let Some(work) = &self.work
            && let Err(error) = work.finish(&self.stack, &self.ctimes)
        {
            log::warn!("the work directory stays as it is until the next mount: {error}");
        }
    }
}
