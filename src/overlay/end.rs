//! The end of an overlay, and pauses before it: files become complete and reach the disk.
//!
//! An overlay *rests* when the upper layer has everything and no mark says that something is not
//! synced. Before the next change it *wakes*. An overlay is *retired* when it has given its layers
//! up, and another one may hold them.

use std::sync::atomic::Ordering;

use super::Overlay;
use super::holder::Holder;
use super::names::Names;
use super::work::Work;
use crate::layer::{Layer, Result};

impl<L: Layer> Overlay<L> {
    /// Records the process and mount point that hold the upper layer, for the message of another
    /// mount. Does nothing for an overlay that holds none.
    ///
    /// # Errors
    ///
    /// Those of the upper layer.
    pub fn sign(&self, holder: &Holder) -> Result<()> {
        *self.holder.lock() = Some(holder.clone());
        match &self.work {
            Some(work) if !self.retired.load(Ordering::Acquire) => work.sign(&self.stack, holder),
            _ => Ok(()),
        }
    }

    /// Whether the overlay syncs only when it rests.
    pub fn is_volatile(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.is_volatile())
    }

    /// Whether an earlier overlay left partial copies that are not completed yet.
    pub fn has_unfinished(&self) -> bool {
        self.work.is_some() && self.partials.left()
    }

    /// Completes every partial copy, and syncs all changes unless the overlay is volatile. Other
    /// threads may go on meanwhile; the next call handles their changes.
    ///
    /// # Errors
    ///
    /// - ENOSPC, EDQUOT: a partial copy cannot be completed. The others are.
    ///
    /// Others of the upper layer.
    pub fn complete_and_sync(&self) -> Result<()> {
        let Some(work) = &self.work else { return Ok(()) };
        let completed = self.complete_all();
        if let Err(error) = self.save_ctimes(work) {
            log::debug!(
                "cannot write the times of last change of status now, the end of the overlay tries again: {error}"
            );
        }
        let synced = if work.is_volatile() { Ok(()) } else { self.stack.layer(work.dir()).sync_all() };
        completed.and(synced)
    }

    /// Syncs the completed files of a volatile overlay.
    ///
    /// # Errors
    ///
    /// Those of [`Layer::sync_all`].
    pub fn sync_completed(&self) -> Result<()> {
        match &self.work {
            Some(work) if work.is_volatile() => self.stack.layer(work.dir()).sync_all(),
            _ => Ok(()),
        }
    }

    /// Removes the mark of a volatile overlay. The caller makes sure that nothing has changed since
    /// [`Overlay::sync_completed`].
    ///
    /// # Errors
    ///
    /// Those of the upper layer.
    pub fn rest(&self) -> Result<()> {
        self.work.as_ref().map_or(Ok(()), |work| work.rest(&self.stack))
    }

    /// Puts the mark back before the next change.
    ///
    /// # Errors
    ///
    /// Those of the upper layer.
    pub fn wake(&self) -> Result<()> {
        self.work.as_ref().map_or(Ok(()), |work| work.wake(&self.stack))
    }

    /// Empties the work directory, except for the facts that the next mount needs, and unlocks the
    /// layers. The caller makes sure that no thread changes anything any more. Partial copies stay
    /// as they are.
    ///
    /// # Errors
    ///
    /// Those of the upper layer.
    pub fn retire(&self) -> Result<()> {
        let Some(work) = &self.work else { return Ok(()) };
        if self.retired.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.close_changed();
        let tidied = self.tidy(work).and(work.release(&self.stack));
        match &self.chain {
            Some(chain) if !self.is_succeeded.load(Ordering::Acquire) => tidied.and(chain.dir.release()),
            _ => tidied,
        }
    }

    /// Writes down what another overlay on the same layers needs to show the same tree. Partial
    /// copies stay as they are. The caller makes sure that no thread changes anything meanwhile.
    ///
    /// # Errors
    ///
    /// Those of the upper layer.
    pub fn write_facts(&self) -> Result<()> {
        self.close_changed();
        self.work.as_ref().map_or(Ok(()), |work| self.save_ctimes(work))
    }

    /// Makes the drop of the overlay leave the layers as they are: another overlay goes on with
    /// them.
    pub fn give_up(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Empties the work directory, except for the facts that the next mount needs.
    fn tidy(&self, work: &Work<L>) -> Result<()> {
        if let Err(error) = self.save_ctimes(work) {
            log::warn!(
                "cannot write the times of last change of status, the next mount shows those of the layer: {error}"
            );
        }
        work.finish(&self.stack)
    }
}

impl<L: Layer> Drop for Overlay<L> {
    /// Completes partial copies, and empties the work directory. Nodes and their parents refer to
    /// each other, so the drop takes them apart. It works without recursion, since a tree may be
    /// deep.
    fn drop(&mut self) {
        if let Some(work) = &self.work
            && !self.retired.load(Ordering::Acquire)
        {
            if let Err(error) = self.complete_all() {
                log::warn!("cannot complete all partial copies in the upper layer, the next mount does: {error}");
            }
            if let Err(error) = self.tidy(work) {
                log::warn!("cannot empty the work directory, the next mount does: {error}");
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
