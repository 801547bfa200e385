//! Snapshots and rollbacks of a mount at work: another overlay takes the place of the present one,
//! and the objects that the kernel knows stay.
//!
//! No request is under way meanwhile ([`crate::session::Seat`]). The thread that exchanges holds
//! `waiting` before, so no other thread waits for a request of the kernel.

use std::sync::{Arc, PoisonError, Weak};

use overlayfs::control::fact::Fact;
use overlayfs::control::{Failure, snapshots};
use overlayfs::errno::{ENOTTY, Error};
use overlayfs::layer::Layer;
use overlayfs::overlay::{Node, Overlay, Unfrozen};

use super::EngineFrontEnd;
use super::ahead::Ahead;
use super::files::Files;
use super::fixed::Fixed;
use crate::comeback::Hold;
use crate::settle::Settled;

/// Makes the overlay that follows, for the objects that the kernel knows.
type Follow<'a, L> = &'a dyn Fn(&Overlay<L>, &[Arc<Node<L>>]) -> Result<Overlay<L>, Unfrozen>;

/// Says something about the objects that the kernel knows through a front end.
type Look<'a, L, T> = &'a dyn Fn(&EngineFrontEnd<L>, &[Arc<Node<L>>]) -> Vec<T>;

impl<L: Layer> EngineFrontEnd<L> {
    /// Freezes the upper layer, and goes on in a new one. Returns the name of the snapshot.
    ///
    /// # Errors
    ///
    /// - A clause says why there is no snapshot. The mount goes on without it.
    pub(super) fn snapshot(&self, name: Option<&str>) -> Result<Vec<Fact>, Failure> {
        let next = self.exchange(&|overlay, nodes| overlay.snapshot(name, nodes), &|_, _| Vec::<()>::new())?.0;
        // The next write to a frozen file copies it up, which may fail. So the kernel must announce
        // it again.
        self.space.not_announced_any_more().into_iter().for_each(|number| self.ask_again(number));
        Ok(snapshots::last(next.overlay.snapshots()))
    }

    /// Leaves the upper layer aside, and shows the last snapshot. Returns its name.
    ///
    /// # Errors
    ///
    /// - A clause says why there is no rollback. The mount goes on without it.
    pub(super) fn roll_back(&self) -> Result<Vec<Fact>, Failure> {
        let (next, changed) = self.exchange(&Overlay::roll_back, &|present, nodes| {
            let changed = present.overlay.changed_names(nodes).into_iter();
            changed.filter_map(|(dir, name)| Some((present.nodes.number(&present.overlay, &dir)?, name))).collect()
        })?;
        // From now on the kernel must not answer for what changed. It writes back before, so another
        // thread must take the requests.
        let _waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notifier) = self.notifier.get() {
            for (dir, name) in changed {
                if let Err(error) = notifier.forget_entry(dir, &name) {
                    log::trace!("the kernel does not know {name:?}: {error}");
                }
            }
            for number in next.nodes.numbers() {
                if let Err(error) = notifier.write_back(number, 0) {
                    log::trace!("the kernel holds nothing of node {number}: {error}");
                }
            }
        }
        Ok(snapshots::last(next.overlay.snapshots()))
    }

    /// Puts the overlay that `follow` makes in the place of the present one. Also returns what
    /// `look` says about the objects of the present one.
    fn exchange<T>(&self, follow: Follow<'_, L>, look: Look<'_, L, T>) -> Result<(Arc<Self>, Vec<T>), Failure> {
        let seat = self.seat.get().and_then(Weak::upgrade).ok_or(Error::new(ENOTTY))?;
        // Most of the work, while requests go on.
        self.overlay.complete_and_sync()?;
        let _waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // The ledger says nothing about the other overlay.
        let held = self.nodes.ledger().map(|ledger| (ledger, ledger.held()));
        held.inspect(|(ledger, _)| ledger.hold(Hold::Snapshot));
        let mut looked = Vec::new();
        let next = seat.replace(|present| -> Result<_, Failure> {
            present.overlay.complete_and_sync()?;
            let nodes = present.nodes.all(&present.overlay);
            looked = look(present, &nodes);
            let next = follow(&present.overlay, &nodes)?;
            let overlay = Arc::new(next);
            Ok((Arc::new(present.successor(overlay.clone())), overlay as Arc<dyn Settled>))
        });
        if let (Err(_), Some((ledger, before))) = (&next, held) {
            ledger.hold(before);
        }
        Ok((next?, looked))
    }

    /// Makes the front end that goes on with another overlay of the same tree.
    fn successor(&self, overlay: Arc<Overlay<L>>) -> Self {
        if self.settings.writeback {
            overlay.leave_times_to_front_end();
        }
        Self {
            nodes: self.nodes.for_successor(&overlay),
            files: Files::new(),
            ahead: Ahead::new(),
            told: self.told.clone(),
            space: self.space.clone(),
            fixed: Fixed::new(&overlay),
            // Only a read-only mount has some, and it has no snapshots.
            backings: None,
            overlay,
            settings: self.settings.clone(),
            notifier: self.notifier.clone(),
            misdated: self.misdated.clone(),
            seat: self.seat.clone(),
            about: self.about.clone(),
            heirs: self.heirs.clone(),
            waiting: self.waiting.clone(),
            killed: self.killed.clone(),
        }
    }

    /// Has the kernel ask for the attributes of an object before it uses them again.
    fn ask_again(&self, number: u64) {
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.forget_attributes(number)
        {
            log::trace!("the kernel knows no attributes of {number}: {error}");
        }
    }
}
