//! The facts in the work directories of upper layers that the overlay only reads. These are the
//! frozen layers of a chain of snapshots, and the topmost layer of a read-only mount. The facts
//! show hard links and inode numbers as the mount that wrote the layers did.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{EINVAL, ELOOP, ENOENT, ENOTDIR, Error};

use super::ctime::Ctimes;
use super::index::Known;
use super::record::Record;
use super::stack::{LayerDir, Stack};
use super::{CopyFacts, Settings};
use crate::format;
use crate::layer::{Layer, Result};

/// The facts about copies in layers that the overlay only reads.
pub struct Facts<L: Layer> {
    /// The work directories, from the bottom.
    pub dirs: Vec<Arc<LayerDir<L>>>,
    pub known: Known,
    pub ctimes: Ctimes,
    /// Work directories that are layers of their own.
    pub layers: Vec<L>,
}

impl<L: Layer> Facts<L> {
    /// Reads the facts about the topmost lower layers of `stack`. `works` are their work
    /// directories, from the bottom; None stands for the one inside the layer. An overlay that
    /// writes cannot do without them. One for a walk needs no times of last change of status.
    ///
    /// # Errors
    ///
    /// - ENOENT: a layer has no work directory, and the overlay writes.
    ///
    /// Others of the layers, if the overlay writes.
    pub fn read(stack: &Stack<L>, works: Vec<Option<L>>, settings: Settings) -> Result<Self> {
        let writes = stack.upper().is_some();
        let without_times = !writes && settings.names_at_once.is_some();
        let roots: Vec<_> = stack.lower_roots().iter().take(works.len()).rev().collect();
        let mut facts = Self::none();
        let wanted = if writes { CopyFacts::All } else { settings.copy_facts };
        if wanted == CopyFacts::Nothing {
            return Ok(facts);
        }
        facts.known = Known::new(wanted == CopyFacts::All);
        for (root, work) in roots.into_iter().zip(works) {
            match facts.add(stack, root, work, without_times) {
                Err(error) if !writes => {
                    log::warn!("cannot read the work directory, so hard links may show old contents: {error}");
                    return Ok(Self::none());
                }
                Ok(false) if writes => return Err(Error::new(ENOENT)),
                Ok(false) => return Ok(Self::none()),
                added => added?,
            };
        }
        Ok(facts)
    }

    fn none() -> Self {
        Facts { dirs: Vec::new(), known: Known::default(), ctimes: Ctimes::default(), layers: Vec::new() }
    }

    /// Adds the facts about the layer with this root, which is above those that were added before.
    /// Returns false if there is no work directory.
    fn add(&mut self, stack: &Stack<L>, root: &Arc<LayerDir<L>>, work: Option<L>, without_times: bool) -> Result<bool> {
        let layer = stack.layer(root);
        let dir = match &work {
            Some(work) => work.root()?,
            None => match layer.open_dir(&*stack.open(root)?, OsStr::new(format::WORK)) {
                Err(error) if matches!(error.errno, ENOENT | ENOTDIR | ELOOP | EINVAL) => return Ok(false),
                dir => dir?,
            },
        };
        let before = Record::read(layer, &dir)?;
        let now = Record::of_below(stack, root)?;
        let same_lowers = before.is_some_and(|before| now.difference(&before).is_none());
        self.known.read(layer, &dir, same_lowers)?;
        if !without_times {
            self.ctimes.read(layer, &dir);
        }
        self.dirs.push(stack.anchored(root.index(), dir));
        self.layers.extend(work);
        Ok(true)
    }
}
