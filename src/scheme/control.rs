//! The channel: calls on the root of the scheme that carry a frame. See [`crate::control`].

use crate::control::fact::Fact;
use crate::control::requests::Requests;
use crate::control::{self, Command, Failure, Subject, snapshots, warnings};
use crate::errno::{EINVAL, ENOTTY, EOPNOTSUPP, Error, Result};
use crate::layer::Layer;

use super::OverlayScheme;
use super::kinds::KINDS;

/// What the scheme tells that stays the same, and to whom.
#[derive(Clone, Debug)]
pub struct About {
    /// The user that serves it.
    pub owner: u32,
    /// The answer to [`Command::Info`].
    pub facts: Vec<Fact>,
}

/// The channel of a scheme.
pub(super) struct Channel {
    about: About,
    /// The counters of the threads that serve.
    pub(super) requests: Requests,
}

impl<L: Layer> OverlayScheme<L> {
    /// Opens the channel, which tells these facts. From now on each clone counts its requests.
    pub fn with_channel(self, about: About) -> Self {
        Self { channel: Some(Channel { about, requests: Requests::new(&KINDS) }.into()), ..self }
    }

    /// Answers the frame in `payload`, which the answer replaces. The opener of the handle counts
    /// as the caller. Returns the length of the answer.
    ///
    /// # Errors
    ///
    /// - EBADF: the handle is not open.
    /// - EOPNOTSUPP: the call is another one, or the handle is not that of the root.
    ///
    /// Others as [`control::answer`].
    pub(super) fn call_channel(&self, id: usize, payload: &mut [u8], metadata: &[u64]) -> Result<usize> {
        let unknown = || Error::new(EOPNOTSUPP);
        if metadata.first() != Some(&control::CALL) {
            return Err(unknown());
        }
        let channel = self.channel.as_deref().ok_or_else(unknown)?;
        let tree = self.tree();
        let open = tree.handles.open(id)?;
        if open.node().id() != tree.overlay.root().id() {
            return Err(unknown());
        }
        let user = open.opener.uid;
        // A snapshot takes the tree alone, and drops what this one holds.
        drop((open, tree));
        let answer = control::answer(&Controlled { scheme: self, channel }, user, payload)?;
        let place = payload.get_mut(..answer.len()).ok_or(Error::new(EINVAL))?;
        place.copy_from_slice(&answer);
        Ok(answer.len())
    }
}

/// An overlay with a channel.
struct Controlled<'a, L: Layer> {
    scheme: &'a OverlayScheme<L>,
    channel: &'a Channel,
}

impl<L: Layer> Subject for Controlled<'_, L> {
    fn owner(&self) -> u32 {
        self.channel.about.owner
    }

    fn perform(&self, command: Command, arguments: &[Fact]) -> std::result::Result<Vec<Fact>, Failure> {
        let name = snapshots::name_in(command, arguments)?;
        match command {
            Command::Info => Ok(self.channel.about.facts.clone()),
            Command::Status => Ok(self.status()),
            Command::Sync => self.sync(),
            Command::Snapshot => self.scheme.snapshot(name.as_deref()),
            Command::RollBack => self.scheme.roll_back(),
            Command::Snapshots => Ok(snapshots::facts(self.scheme.tree().overlay.snapshots())),
            // Only the process that made the socket of a scheme can serve it.
            Command::Restart => Err(Error::new(ENOTTY).into()),
        }
    }
}

impl<L: Layer> Controlled<'_, L> {
    fn status(&self) -> Vec<Fact> {
        let tree = self.scheme.tree();
        let mut facts = vec![Fact::number("objects", tree.handles.count() as u64)];
        facts.extend(tree.overlay.status());
        facts.extend(self.channel.requests.facts());
        facts.extend(warnings::facts());
        facts
    }

    fn sync(&self) -> std::result::Result<Vec<Fact>, Failure> {
        let tree = self.scheme.tree();
        tree.mappings.write_all_back(&tree.overlay)?;
        let synced = tree.overlay.complete_and_sync().and_then(|()| tree.overlay.sync_completed());
        Ok(synced.map(|()| Vec::new())?)
    }
}
