//! What an overlay owes when nobody uses it any more, and in pauses before: files that are whole,
//! and on the disk.
//!
//! An overlay is *settled* when it knows nothing that the upper layer does not have. It *rests*
//! when, besides, no mark says that something is not synced; before the next change it is woken. It
//! is *retired* when nothing in the layers is its own any more, and another may hold them.

use std::sync::atomic::Ordering;

use super::Overlay;
use super::holder::Holder;
use super::names::Names;
use super::work::Work;
use crate::layer::{Layer, Result};

impl<L: Layer> Overlay<L> {
    /// Says who serves the overlay, to those who are refused its upper layer. Without effect for an
    /// overlay that holds none.
    pub fn sign(&self, holder: &Holder) -> Result<()> {
        match &self.work {
            Some(work) if !self.retired.load(Ordering::Acquire) => work.sign(&self.stack, holder),
            _ => Ok(()),
        }
    }

    /// Whether nothing is synced but when the overlay rests.
    pub fn is_volatile(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.is_volatile())
    }

    /// Whether an earlier overlay has left partial copies, which nobody has completed yet.
    pub fn has_unfinished(&self) -> bool {
        self.work.is_some() && self.partials.left()
    }

    /// Completes every partial copy, and brings what was changed to the disk unless nothing is
    /// synced. Others may go on meanwhile; what they change is then left to the next call.
    pub fn complete_and_sync(&self) -> Result<()> {
        let Some(work) = &self.work else { return Ok(()) };
        let completed = self.complete_all();
        if let Err(error) = self.save_ctimes(work) {
            log::debug!("times of last change of status are left to the next mount when the overlay ends: {error}");
        }
        let synced = if work.is_volatile() { Ok(()) } else { self.stack.layer(work.dir()).sync_all() };
        completed.and(synced)
    }

    /// Brings to the disk what is settled, where nothing is synced before.
    pub fn sync_completed(&self) -> Result<()> {
        match &self.work {
            Some(work) if work.is_volatile() => self.stack.layer(work.dir()).sync_all(),
            _ => Ok(()),
        }
    }

    /// Takes the mark away that something is not synced. Nobody may have changed anything since
    /// [`Overlay::sync_completed`].
    pub fn rest(&self) -> Result<()> {
        self.work.as_ref().map_or(Ok(()), |work| work.rest(&self.stack))
    }

    /// Puts the mark back, before something is changed again.
    pub fn wake(&self) -> Result<()> {
        self.work.as_ref().map_or(Ok(()), |work| work.wake(&self.stack))
    }

    /// Empties the work directory, but for what the next overlay has to know, and lets go of the
    /// layers. Nobody may change anything any more. What is not settled stays as it is.
    pub fn retire(&self) -> Result<()> {
        let Some(work) = &self.work else { return Ok(()) };
        if self.retired.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.tidy(work).and(work.release(&self.stack))
    }

    /// Leaves nothing in the work directory but what the next overlay has to know.
    fn tidy(&self, work: &Work<L>) -> Result<()> {
        if let Err(error) = self.save_ctimes(work) {
            log::warn!("times of last change of status are those of the layer in the next mount: {error}");
        }
        work.finish(&self.stack)
    }
}

impl<L: Layer> Drop for Overlay<L> {
    /// Leaves no partial copies, and nothing of its own in the work directory. Nodes and their
    /// parents hold each other: takes them apart, without recursion, since a tree may be deep.
    fn drop(&mut self) {
        if let Some(work) = &self.work
            && !self.retired.load(Ordering::Acquire)
        {
            if let Err(error) = self.complete_all() {
                log::warn!(
                    "the upper layer has files of which only an overlay knows the rest, until the next one ends: {error}"
                );
            }
            if let Err(error) = self.tidy(work) {
                log::warn!("the work directory stays as it is until the next mount: {error}");
            }
        }
        let mut nodes = vec![self.root.clone()];
        while let Some(node) = nodes.pop() {
            node.state.lock().places.clear();
            let names: Option<Names<L>> = node.dir().ok().and_then(|mut dir| dir.names.take());
            if let Some(mut names) = names {
                nodes.extend(names.slots_mut().filter_map(|slot| slot.child.take()));
            }
        }
    }
}
