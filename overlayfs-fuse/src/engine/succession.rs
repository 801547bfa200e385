//! The front end as a part of a legacy: another process goes on with the objects that the kernel
//! knows.
//!
//! No request is under way meanwhile ([`crate::session::Seat`]). The thread that gives the mount
//! away holds `waiting` before, so no other thread waits for a request of the kernel.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError, Weak};

use overlayfs::control::Failure;
use overlayfs::errno::{EBUSY, EINVAL, EOPNOTSUPP, EROFS, Error, Result};
use overlayfs::layer::Layer;
use overlayfs::overlay::{Handover, Plan};
use overlayfs::packed::{Packer, Unpacker};

use super::nodes::{CountedObject, Nodes};
use super::{EngineFrontEnd, Killed};
use crate::comeback::{Hold, Ledger};
use crate::session::Seat;
use crate::succession::{Estate, Next, Passed, Received};
use crate::wire::{RESENT, ROOT};

/// What a front end needs to give its mount to another process.
pub(super) struct Heirs<L: Layer> {
    estate: Arc<Estate>,
    descriptor: for<'a> fn(&'a L::File) -> BorrowedFd<'a>,
}

impl<L: Layer> Clone for Heirs<L> {
    fn clone(&self) -> Self {
        Self { estate: self.estate.clone(), descriptor: self.descriptor }
    }
}

impl<L: Layer> EngineFrontEnd<L>
where
    L::File: AsFd + From<OwnedFd>,
{
    /// Lets another process take the mount over.
    pub(crate) fn with_heirs(self, estate: Arc<Estate>) -> Self {
        Self { heirs: Some(Heirs { estate, descriptor: AsFd::as_fd }), ..self }
    }

    /// Writes the objects that the kernel knows down in `ledger`.
    pub(crate) fn with_ledger(self, ledger: Option<Arc<Ledger>>) -> Self {
        Self { nodes: self.nodes.with_ledger(ledger), ..self }
    }

    /// Goes on with what the front end of another process knew. The caller calls this before the
    /// first request.
    ///
    /// # Errors
    ///
    /// - EINVAL: the legacy makes no sense.
    pub(crate) fn after(self, received: &mut Received) -> Result<Self> {
        let bytes = std::mem::take(&mut received.legacy.front_end);
        let legacy = FrontEndLegacy::unpack(&bytes)?;
        let FrontEndLegacy { counted, told, unannounced, announced, performed, objects } = legacy;
        told.into_iter().for_each(|(number, thread)| self.told.add(number, thread));
        unannounced.into_iter().for_each(|number| self.space.not_announced(number));
        announced.into_iter().for_each(|number| self.space.is_announced(number));
        let handover = Handover::unpack(&objects, &mut |number| received.take(number).map(L::File::from))?;
        let ledger = self.nodes.ledger().cloned();
        if let Some(ledger) = &ledger {
            ledger.write(|page| {
                counted.iter().for_each(|counted| page.count(*counted));
                handover.notes().for_each(|note| page.note(&note));
                performed.iter().for_each(|request| page.performed(*request));
            });
        }
        self.overlay.succeed(handover, None);
        let nodes = Nodes::known(&self.overlay, self.settings.known_max, &counted).with_ledger(ledger);
        let performed = performed.into_iter().map(|request| request & !RESENT).collect();
        let killed = Arc::new(Killed { is_before: received.legacy.asks_again, performed });
        Ok(Self { nodes, killed, ..self })
    }
}

impl<L: Layer> EngineFrontEnd<L> {
    /// How many times the mount came back after a kill. None: it does not.
    pub(super) fn comebacks(&self) -> Option<u64> {
        let heirs = self.heirs.as_ref().filter(|_| self.nodes.ledger().is_some());
        heirs.map(|heirs| heirs.estate.comebacks.len() as u64)
    }

    /// Gives the mount to another process, which runs the present version of the program.
    ///
    /// # Errors
    ///
    /// - A clause says why not. This process goes on.
    pub(super) fn restart(&self) -> std::result::Result<(), Failure> {
        let seat = self.seat.get().and_then(Weak::upgrade).ok_or(Error::new(EOPNOTSUPP))?;
        let heirs = self.heirs.as_ref().ok_or_else(|| Failure {
            error: Error::new(EOPNOTSUPP),
            clause: "it is mounted by a library".to_owned(),
        })?;
        if self.backings.is_some() {
            let clause = "the kernel reads its large files itself, for this process (passthrough)".to_owned();
            return Err(Failure { error: Error::new(EOPNOTSUPP), clause });
        }
        // Most of the work, while requests go on.
        let known = self.nodes.all(&self.overlay);
        drop(self.overlay.plan_handover(&known)?);
        drop(known);
        let ledger = self.nodes.ledger();
        let held = ledger.map_or(Hold::None, |ledger| ledger.held());
        // If this process is killed now, the other one may serve or not.
        ledger.inspect(|ledger| ledger.hold(Hold::Restart));
        let next = heirs.estate.start();
        let given = next.and_then(|next| self.give_to(next, &seat, heirs));
        if given.is_err() {
            ledger.inspect(|ledger| ledger.hold(held));
        }
        given
    }

    fn give_to(&self, next: Next<'_>, seat: &Seat<Self>, heirs: &Heirs<L>) -> std::result::Result<(), Failure> {
        let _waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let given = seat.hand_over(|present, terms| -> std::result::Result<(), Failure> {
            present.overlay.write_facts()?;
            let nodes = present.nodes.all(&present.overlay);
            let plan = present.overlay.plan_handover(&nodes)?;
            let mut passed = Passed::default();
            let front_end = present.pack(&plan, heirs.descriptor, &mut passed)?;
            next.inherit(terms, front_end, passed)
        });
        given.map_err(|failure| Failure { clause: explained(&failure), ..failure })
    }

    fn pack(
        &self,
        plan: &Plan<L>,
        descriptor: for<'a> fn(&'a L::File) -> BorrowedFd<'a>,
        passed: &mut Passed,
    ) -> Result<Vec<u8>> {
        let legacy = FrontEndLegacy {
            counted: self.nodes.counted(),
            told: self.told.all(),
            unannounced: self.space.unannounced(),
            announced: self.space.announced(),
            performed: Vec::new(),
            objects: self.overlay.pack(plan, &mut |file| passed.keep(descriptor(file)))?,
        };
        Ok(legacy.pack())
    }
}

/// What a front end passes on.
#[derive(Debug)]
pub(crate) struct FrontEndLegacy {
    /// The objects that the kernel knows, the oldest first.
    pub counted: Vec<CountedObject>,
    /// The threads that are about to announce a write, with the numbers of the files.
    pub told: Vec<(u64, u32)>,
    /// The files of which the kernel may not announce the next write.
    pub unannounced: Vec<u64>,
    /// The files of which the kernel may hold announced data.
    pub announced: Vec<u64>,
    /// The requests that were performed and not answered.
    pub performed: Vec<u64>,
    /// What the overlay packed.
    pub objects: Vec<u8>,
}

impl FrontEndLegacy {
    /// Returns its bytes.
    pub fn pack(self) -> Vec<u8> {
        let mut to = Packer::default();
        to.list(self.counted.into_iter(), |to, CountedObject { number, id, generation, count }| {
            to.numbers(&[number, id, generation.into(), count]);
        });
        to.list(self.told.into_iter(), |to, (number, thread)| to.numbers(&[number, thread.into()]));
        for numbers in [self.unannounced, self.announced, self.performed] {
            to.list(numbers.into_iter(), Packer::number);
        }
        to.bytes(&self.objects);
        to.done()
    }

    /// Takes it from its bytes.
    ///
    /// # Errors
    ///
    /// - EINVAL: they make no sense.
    pub fn unpack(bytes: &[u8]) -> Result<Self> {
        let mut from = Unpacker::new(bytes);
        let counted = from.list(|from| {
            let (number, id) = (from.number()?, from.number()?);
            Ok(CountedObject { number, id, generation: from.small()?, count: from.number()? })
        })?;
        if counted.iter().any(|counted| counted.number <= ROOT) {
            return Err(Error::new(EINVAL));
        }
        let told = from.list(|from| Ok((from.number()?, from.small()?)))?;
        let mut numbers = || from.list(Unpacker::number);
        let (unannounced, announced, performed) = (numbers()?, numbers()?, numbers()?);
        let objects = from.bytes()?.to_owned();
        from.end()?;
        Ok(Self { counted, told, unannounced, announced, performed, objects })
    }
}

/// Explains the errnos of [`crate::session::Seat::hand_over`].
fn explained(failure: &Failure) -> String {
    if failure.clause != Failure::from(failure.error).clause {
        return failure.clause.clone();
    }
    match failure.error.errno {
        EOPNOTSUPP => "its requests come over io_uring, which only one process can use".to_owned(),
        EROFS => "it is being unmounted".to_owned(),
        EBUSY => "a request takes too long; try again".to_owned(),
        _ => failure.clause.clone(),
    }
}
