//! Character devices with the number 0, which are deletions to other overlays.
//!
//! fuse-overlayfs may have written an OCI upper layer before, or may write it between our mounts.
//! Such a device in it is a deletion then. The engine honours it, and replaces it by a marker as
//! soon as it reads the directory.
//!
//! But programs can make such devices too; an overlay does that has its layers in this tree. Before
//! the first one is made, the layer gets a mark ([`format::DEVICES`]). By then all deletions are
//! markers, and from then on such devices are devices.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{EIO, ENOENT, EPERM, Error};

use super::Overlay;
use super::features::Feature;
use super::stack::LayerDir;
use crate::format::{self, Meaning, kernel};
use crate::layer::{Kind, Layer, Result, keeping_times};
use crate::sync::Lock;

/// Whether layers have the mark, by their index; only layers that were asked. A leaf.
#[derive(Default)]
pub(super) struct Marked(Lock<HashMap<usize, bool>>);

impl<L: Layer> Overlay<L> {
    /// Whether such a device in the layer of `dir` is a device, not a deletion.
    pub(super) fn has_devices(&self, dir: &LayerDir<L>) -> Result<bool> {
        if self.stack.is_upper(dir) && !self.format().features().zero_devices {
            return Ok(false);
        }
        if let Some(known) = self.devices.0.lock().get(&dir.index()) {
            return Ok(*known);
        }
        let marked = match self.stack.stat(self.stack.root(dir), OsStr::new(format::DEVICES)) {
            Err(error) if error.errno == ENOENT => false,
            found => found.map(|_| true)?,
        };
        // Another thread may have marked the layer meanwhile.
        Ok(*self.devices.0.lock().entry(dir.index()).or_insert(marked))
    }

    /// Prepares for the first such device in the upper layer: replaces those that are deletions by
    /// markers, then marks the layer.
    ///
    /// The caller must hold neither the tree nor any directory.
    ///
    /// # Errors
    ///
    /// - EPERM: the layer has the kernel's format, where each such device is a deletion.
    pub(super) fn prepare_device(&self) -> Result<()> {
        if !self.format().features().zero_devices {
            return Err(Error::new(EPERM));
        }
        let (upper, _) = self.upper()?;
        let root = self.stack.upper_root().ok_or(Error::new(EIO))?;
        if self.has_devices(root)? {
            return Ok(());
        }
        self.need(Feature::Devices)?;
        let _tree = self.tree.write();
        // Another thread may have marked the layer meanwhile, and made devices.
        if self.has_devices(root)? {
            return Ok(());
        }
        let mut dirs = vec![root.clone()];
        while let Some(dir) = dirs.pop() {
            let (mut found, mut below) = (Vec::new(), Vec::new());
            upper.list(&*self.stack.open(&dir)?, &mut |entry| match (format::meaning(entry.name), entry.kind) {
                (Meaning::Object, Kind::CharDev) => found.push(entry.name.to_owned()),
                (Meaning::Object, Kind::Dir) => below.push(entry.name.to_owned()),
                _ => {}
            })?;
            let mut deletions = Vec::new();
            for name in found {
                if kernel::is_whiteout(&self.stack.stat(&dir, &name)?) {
                    deletions.push(name);
                }
            }
            self.make_markers(&dir, deletions.iter().map(|name| &**name))?;
            dirs.extend(below.iter().map(|name| self.stack.child(&dir, name)));
        }
        self.mark_top(format::DEVICES)?;
        self.sync_step(root)?;
        self.devices.0.lock().insert(root.index(), true);
        Ok(())
    }

    /// Replaces devices that are deletions in a directory of the upper layer by markers. Each step
    /// leaves the names deleted. The directory's times stay.
    pub(super) fn make_markers<'n>(
        &self,
        dir: &Arc<LayerDir<L>>,
        names: impl ExactSizeIterator<Item = &'n OsStr> + Clone,
    ) -> Result<()> {
        if names.len() == 0 {
            return Ok(());
        }
        let (upper, _) = self.upper()?;
        let open = self.stack.open(dir)?;
        keeping_times(upper, &*open, || {
            names.clone().try_for_each(|name| self.add_whiteout(dir, name))?;
            self.sync_step(dir)?;
            names.clone().try_for_each(|name| upper.unlink(&open, name))
        })
    }
}
