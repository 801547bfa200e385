//! The work directory of an upper layer that the mount only reads. The facts about copies in it
//! show hard links and inode numbers as the mount that writes does.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{EINVAL, ELOOP, ENOENT, ENOTDIR, Error};

use super::index::Index;
use super::inode::Claims;
use super::record::Record;
use super::stack::{LayerDir, Stack};
use crate::format;
use crate::layer::Layer;

/// The facts about copies, for a mount that writes none.
pub struct Facts<L: Layer> {
    pub dir: Arc<LayerDir<L>>,
    pub index: Index<L>,
    /// Whether a copy shows under a name that only a lower layer has.
    #[cfg_attr(not(feature = "layer-tools"), expect(dead_code, reason = "only layer_tools ask for it"))]
    pub shows_below: bool,
    /// The work directory's own layer, if it is not inside the upper one.
    _layer: Option<L>,
}

impl<L: Layer> Facts<L> {
    /// Reads the facts about the topmost layer of `stack`, and the inode numbers that its copies
    /// show. Returns None if it has no work directory, or one that cannot be read.
    pub fn read(stack: &Stack<L>, layer: Option<L>) -> Option<(Self, Claims)> {
        let read = || {
            let (upper, root) = (stack.top(), stack.open(stack.lower_roots().first().ok_or(Error::new(ENOENT))?)?);
            let dir = match &layer {
                Some(layer) => layer.root()?,
                None => match upper.open_dir(&root, OsStr::new(format::WORK)) {
                    Err(error) if matches!(error.errno, ENOENT | ENOTDIR | ELOOP | EINVAL) => return Ok(None),
                    dir => dir?,
                },
            };
            let before = Record::read(upper, &dir)?;
            let now = Record::of_below_top(stack)?;
            let same_lowers = before.is_some_and(|before| now.difference(&before).is_none());
            let (index, claims) = Index::look(upper, &dir, same_lowers)?;
            Ok(Some((stack.anchored(0, dir), index, claims)))
        };
        let (dir, index, claims) = read().unwrap_or_else(|error: Error| {
            log::warn!("cannot read the work directory, so hard links may show old contents: {error}");
            None
        })?;
        let shows_below = index.shows_below();
        Some((Facts { dir, index, shows_below, _layer: layer }, claims))
    }
}
