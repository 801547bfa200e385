//! Checks an upper layer against its lower layers, without mounting them, and repairs what can be
//! repaired without a loss.
//!
//! What is damage is said in `docs/format.md`. [`Checker::check`] only reads. A [`Repair`] changes
//! nothing that the merged tree shows, and a crash between two of its steps leaves damage that the
//! next check finds; what would need more than that is reported and left alone.
//!
//! | file | subject |
//! | --- | --- |
//! | `damage` | what can be wrong, in words |
//! | `tree` | the walk through the upper layer: markers, redirects, partial copies |
//! | `twice` | redirects to what shows at another place too |
//! | `work` | the work directory: leftovers, the mark of `volatile`, the index |
//! | `repair` | what repairs do |
//! | `options` | the command line of `overlayfs-fsck` |

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::errno::{ENOENT, ENOTDIR, EWOULDBLOCK};

use crate::format::attribute::names;
use crate::format::kernel::{self, Namespace};
use crate::format::{self, Format};
use crate::layer::{Layer, Object, Result};
use crate::overlay::on_disk::{LayerDir, Record, Stack};
use crate::overlay::{Layers, Overlay, Refused, Settings};

mod damage;
pub mod options;
mod repair;
mod tree;
mod twice;
mod work;

pub use damage::Damage;
pub use repair::Repair;

/// One thing that is wrong.
pub struct Finding<L: Layer> {
    /// Where: relative to the upper layer, or to the work directory.
    pub path: PathBuf,
    /// Whether the path is relative to the work directory.
    pub in_work: bool,
    pub damage: Damage,
    /// What can be done about it; None: nothing that loses nothing.
    pub repair: Option<Repair<L>>,
}

/// An upper layer, its work directory and the layers below.
pub struct Checker<L: Layer> {
    /// The upper layer alone.
    upper: Stack<L>,
    root: Arc<LayerDir<L>>,
    /// None: there was never a mount.
    work: Option<Arc<LayerDir<L>>>,
    /// The work directory's own layer, held as long as it is checked.
    _work_layer: Option<L>,
    /// The lower layers as one tree.
    below: Overlay<L>,
    format: Format,
    name_max: usize,
    in_use: bool,
    /// Whether it is written down which lower layers the upper one was stacked on.
    is_recorded: bool,
    /// How the lower layers differ from those.
    difference: Option<String>,
}

/// What was found so far.
struct Report<L: Layer> {
    findings: Vec<Finding<L>>,
    /// The directories of the upper layer that merge, with their paths, by the path that they merge
    /// with.
    merged: HashMap<PathBuf, Vec<Merging<L>>>,
    /// Directories with a redirect, and where that goes.
    redirects: Vec<(PathBuf, PathBuf)>,
    /// Whether there are partial copies that are not to be removed.
    partial: bool,
}

impl<L: Layer> Checker<L> {
    /// Takes hold of the upper layer and of the work directory, unless a mount holds them: see
    /// [`Checker::is_in_use`]. Writes nothing. [`Refused::NoLayer`] without an upper or a lower
    /// layer, [`Refused::Layer`] if one cannot be read, [`Refused::Feature`] if the upper layer
    /// needs what is not known here.
    pub fn new(layers: Layers<L>) -> std::result::Result<Self, Refused> {
        let Layers { upper: Some(upper), work: work_layer, lowers } = layers else {
            return Err(Refused::NoLayer);
        };
        let mut in_use = !hold(&upper)?;
        if let Some(layer) = &work_layer {
            in_use |= !hold(layer)?;
        }
        let below = Overlay::with_settings(
            Layers { upper: None, work: None, lowers },
            // So that no marker is called useless which another mount needs.
            Settings { trusted: true, ..Settings::default() },
        )?;
        let upper = Stack::new(vec![upper], true)?;
        let root = upper.upper_root().ok_or(Refused::NoLayer)?.clone();
        let (layer, open) = (upper.layer(&root), upper.open(&root)?);
        let format = match layer.capabilities().xattrs {
            true => Namespace::of(&names(layer, Object::Dir(&*open))?).map_or(format::OCI, kernel::format),
            false => format::OCI,
        };
        let work = match &work_layer {
            Some(layer) => Some(layer.root()?),
            None => match layer.open_dir(&open, OsStr::new(format::WORK)) {
                Err(error) if matches!(error.errno, ENOENT | ENOTDIR) => None,
                work => Some(work?),
            },
        };
        let known = work.as_ref().map(|dir| Record::read(upper.layer(&root), dir)).transpose()?.flatten();
        let is_recorded = known.is_some();
        let difference = match known {
            Some(known) => Record::of(below.stack())?.difference(&known),
            None => None,
        };
        let work = work.map(|dir| upper.anchored(0, dir));
        let name_max = layer.stat_fs()?.name_max as usize;
        Ok(Checker {
            upper,
            root,
            work,
            _work_layer: work_layer,
            below,
            format,
            name_max,
            in_use,
            is_recorded,
            difference,
        })
    }

    /// Whether a mount holds the upper layer. Then it can be looked at, as far as it is not being
    /// worked on, but not repaired.
    pub fn is_in_use(&self) -> bool {
        self.in_use
    }

    /// How the lower layers differ from those that the upper one was stacked on when it was mounted
    /// last, in words that follow a colon; None if they do not, or nobody knows. Then nothing is
    /// repaired of which the lower layers say whether it is needed.
    pub fn other_layers(&self) -> Option<&str> {
        self.difference.as_deref()
    }

    /// What takes space in the work directory and nobody needs any more, which no overlay can know
    /// without looking at everything. It is no damage. Nothing unless these are the lower layers of
    /// which it is written down that the upper one was stacked on. Fails if a layer cannot be read.
    pub fn unused(&self) -> Result<Vec<Finding<L>>> {
        if self.in_use || !self.is_recorded || self.difference.is_some() {
            return Ok(Vec::new());
        }
        self.find_unused()
    }

    /// Everything that is wrong. Fails if a layer cannot be read.
    pub fn check(&self) -> Result<Vec<Finding<L>>> {
        let mut report = Report::new();
        self.check_tree(&mut report)?;
        self.check_redirects(&mut report)?;
        if !self.in_use {
            self.check_partial_mark(&mut report)?;
            self.check_work(&mut report)?;
        }
        let mut findings = report.findings;
        // If something is missing below, these may be other lower layers than the upper one was
        // made with: then nobody knows what hides nothing.
        if findings.iter().any(|finding| finding.damage.is_missing_below()) {
            for finding in findings.iter_mut().filter(|finding| finding.damage.hides_nothing()) {
                finding.repair = None;
            }
        }
        if self.difference.is_some() {
            for finding in findings.iter_mut().filter(|finding| finding.damage.depends_on_lowers()) {
                finding.repair = None;
            }
        }
        Ok(findings)
    }
}

impl<L: Layer> Report<L> {
    fn new() -> Self {
        Report { findings: Vec::new(), merged: HashMap::new(), redirects: Vec::new(), partial: false }
    }
}

/// A directory of the upper layer, and its path.
type Merging<L> = (PathBuf, Arc<LayerDir<L>>);

/// Whether a layer could be held.
fn hold<L: Layer>(layer: &L) -> Result<bool> {
    match layer.hold() {
        Err(error) if error.errno == EWOULDBLOCK => Ok(false),
        held => held.map(|()| true),
    }
}
