//! The commands of the channel that the front end performs.

use overlayfs::control::fact::Fact;
use overlayfs::control::{Command, Failure, Subject, snapshots, warnings};
use overlayfs::errno::{ENOTTY, Error, Result};
use overlayfs::layer::Layer;

use super::EngineFrontEnd;
use crate::control::About;
use crate::front_end::Caller;
use crate::wire::ROOT;

impl<L: Layer> EngineFrontEnd<L> {
    /// Answers a frame of the channel, which only the root has.
    pub(super) fn answer(&self, caller: Caller, node: u64, request: &[u8]) -> Result<Vec<u8>> {
        match &self.about {
            Some(about) if node == ROOT => {
                overlayfs::control::answer(&Controlled { front_end: self, about }, caller.uid, request)
            }
            _ => Err(Error::new(ENOTTY)),
        }
    }
}

/// A mount with a channel.
struct Controlled<'a, L: Layer> {
    front_end: &'a EngineFrontEnd<L>,
    about: &'a About,
}

impl<L: Layer> Subject for Controlled<'_, L> {
    fn owner(&self) -> u32 {
        self.about.owner
    }

    fn perform(&self, command: Command, arguments: &[Fact]) -> std::result::Result<Vec<Fact>, Failure> {
        let name = snapshots::name_in(command, arguments)?;
        match command {
            Command::Info => Ok(self.about.facts.clone()),
            Command::Status => Ok(self.status()),
            Command::Sync => self.sync().map(|()| Vec::new()),
            Command::Restart => self.front_end.restart().map(|()| Vec::new()),
            Command::Snapshot => self.front_end.snapshot(name.as_deref()),
            Command::RollBack => self.front_end.roll_back(),
            Command::Snapshots => Ok(snapshots::facts(self.front_end.overlay.snapshots())),
        }
    }
}

impl<L: Layer> Controlled<'_, L> {
    fn status(&self) -> Vec<Fact> {
        let Self { front_end, about } = self;
        let mut facts = about.process();
        facts.push(Fact::number("objects", front_end.nodes.count() as u64));
        facts.push(Fact::number("open_files", front_end.files.count() as u64));
        facts.extend(front_end.comebacks().map(|count| Fact::number("comebacks", count)));
        facts.extend(front_end.overlay.status());
        facts.extend(about.requests.facts());
        facts.extend(warnings::facts());
        facts
    }

    fn sync(&self) -> std::result::Result<(), Failure> {
        let overlay = &self.front_end.overlay;
        Ok(self.front_end.call(|| overlay.complete_and_sync().and(overlay.sync_completed()))?)
    }
}
