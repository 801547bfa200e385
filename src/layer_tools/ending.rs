//! The ending of a mount: what happens to the changes in its upper layer.
//!
//! A process that is not in the sandbox of the daemon makes it, after the daemon has synced the
//! layer and given it up. Without a clean end there is no ending, and the changes stay.

use super::commit::{self, Choice};
use super::open::Paths;
use super::{Error, Watch};
use crate::mount::resolved;
use crate::options::{Ending, Options};

/// Commits the upper layer that `layers` names.
///
/// # Errors
///
/// Those of [`commit::commit`].
pub fn commit_layers(layers: &Options, choice: Choice, watch: &dyn Watch) -> Result<(), Error> {
    let paths = Paths::for_commit(layers)?;
    if choice.atomic {
        paths.check_exchange()?;
    }
    commit::commit(&paths, &choice, watch)
}

/// An ending that is to come, with the layers as they were named at the start.
pub struct Planned {
    layers: Options,
}

impl Planned {
    /// Takes the layers of a mount. Their paths may be relative until now.
    ///
    /// # Errors
    ///
    /// - [`Error::Refused`], [`Error::At`]: the layers cannot have this ending.
    pub fn new(layers: &Options) -> Result<Self, Error> {
        let layers = match layers.on_exit {
            // It needs no paths.
            Ending::Preserve => layers.clone(),
            _ => resolved(layers),
        };
        match layers.on_exit {
            Ending::Preserve => {}
            Ending::Discard | Ending::Commit => drop(Paths::new(&layers)?),
            Ending::CommitAtomic => Paths::new(&layers)?.check_exchange()?,
        }
        Ok(Planned { layers })
    }

    /// Makes the ending. The error is a sentence. The layer is as it was, or the tool that the
    /// sentence names goes on.
    ///
    /// # Errors
    ///
    /// - The ending failed: the sentence has the path and the cause.
    pub fn make(&self) -> Result<(), String> {
        let tool = match self.layers.on_exit {
            Ending::CommitAtomic => "commit --atomic",
            other => other.word(),
        };
        self.try_make(&()).map_err(|error| {
            format!(
                "The changes stay in the upper directory, since {tool} failed: {error}. overlayfs-layer {tool} does \
                 it, or goes on."
            )
        })
    }

    fn try_make(&self, watch: &dyn Watch) -> Result<(), Error> {
        match self.layers.on_exit {
            Ending::Preserve => Ok(()),
            Ending::Discard => commit::discard(&Paths::new(&self.layers)?, watch),
            Ending::Commit => commit_layers(&self.layers, Choice::default(), watch),
            Ending::CommitAtomic => commit_layers(&self.layers, Choice { atomic: true, ..Choice::default() }, watch),
        }
    }
}
