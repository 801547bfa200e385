//! The steps of repairs. No step changes the merged tree. Each is one backing call, except for the
//! removal of a directory that the tree does not show.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::sync::Arc;

use crate::errno::{EBUSY, ENOENT, Error};

use super::Checker;
use crate::format;
use crate::layer::{Kind, Layer, Object, RenameMode, Result, ensure_file, keeping_times};
use crate::overlay::on_disk::{Features, LayerDir, Record, remove_tree, rewrite};

/// The repair of one finding.
pub struct Repair<L: Layer> {
    pub(super) dir: Arc<LayerDir<L>>,
    pub(super) steps: Vec<Step>,
}

pub(super) enum Step {
    /// Removes an entry; a directory with all its content.
    Remove(OsString, Kind),
    /// Removes an empty directory.
    RemoveEmpty(OsString),
    /// Removes an attribute of the directory itself.
    RemoveXattr(OsString),
    /// Creates an empty file.
    Create(OsString),
    /// Puts the opaque mark into a directory.
    MakeOpaque(OsString),
    /// Renames a file.
    Rename(OsString, OsString),
    /// Writes the complete records of the work directory again.
    RewriteNumbers,
    /// Adds features to the record of the work directory.
    Record(Features),
}

impl<L: Layer> Repair<L> {
    pub(super) fn remove(dir: &Arc<LayerDir<L>>, name: &OsStr, kind: Kind) -> Self {
        Repair { dir: dir.clone(), steps: vec![Step::Remove(name.to_owned(), kind)] }
    }
}

impl<L: Layer> fmt::Display for Repair<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.steps.iter().enumerate() {
            f.write_str(if index > 0 { ", then " } else { "" })?;
            match step {
                Step::Remove(name, _) | Step::RemoveEmpty(name) => write!(f, "remove {}", name.display())?,
                Step::RemoveXattr(name) => write!(f, "remove the attribute {}", name.display())?,
                Step::Create(name) => write!(f, "create {}", name.display())?,
                Step::MakeOpaque(name) => write!(f, "put the opaque mark into {}", name.display())?,
                Step::Rename(from, to) => write!(f, "rename {} to {}", from.display(), to.display())?,
                Step::Record(features) => write!(f, "record {features}")?,
                Step::RewriteNumbers => f.write_str("write the complete records again")?,
            }
        }
        Ok(())
    }
}

impl<L: Layer> Checker<L> {
    /// Makes a repair from the last check of this checker.
    ///
    /// # Errors
    ///
    /// - EBUSY: a mount holds the layer.
    /// - Any errno of the failed step.
    pub fn repair(&self, repair: &Repair<L>) -> Result<()> {
        if self.in_use {
            return Err(Error::new(EBUSY));
        }
        repair.steps.iter().try_for_each(|step| self.step(&repair.dir, step))
    }

    fn step(&self, dir: &Arc<LayerDir<L>>, step: &Step) -> Result<()> {
        let (layer, open) = (self.upper.layer(dir), self.upper.open(dir)?);
        match step {
            Step::Remove(name, kind) => {
                keeping_times(layer, &open, || match remove_tree(&self.upper, dir, name, *kind) {
                    Err(error) if error.errno != ENOENT => Err(error),
                    _ => Ok(()),
                })
            }
            Step::RemoveEmpty(name) => keeping_times(layer, &open, || layer.remove_dir(&open, name)),
            Step::RemoveXattr(name) => layer.remove_xattr(Object::Dir(&*open), name),
            Step::Create(name) => self.create(dir, name),
            Step::MakeOpaque(name) => self.create(&self.upper.child(dir, name), OsStr::new(format::OPAQUE)),
            Step::Rename(from, to) => {
                keeping_times(layer, &open, || layer.rename(&open, from, &open, to, RenameMode::Replace))
            }
            Step::RewriteNumbers => rewrite(layer, &open),
            Step::Record(features) => Record::change(layer, &open, *features, Features::default()),
        }
    }

    fn create(&self, dir: &LayerDir<L>, name: &OsStr) -> Result<()> {
        let (layer, open) = (self.upper.layer(dir), self.upper.open(dir)?);
        keeping_times(layer, &open, || ensure_file(layer, &open, name))
    }
}
