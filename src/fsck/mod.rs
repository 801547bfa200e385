//! Checks an upper layer against its lower layers, without a mount, and makes the repairs that lose
//! nothing.
//!
//! `docs/format.md` defines the damage. [`Checker::check`] only reads. A [`Repair`] changes nothing
//! that the merged tree shows. A crash between two of its steps leaves damage that the next check
//! finds. The check reports damage that needs more than that, and leaves it alone.
//!
//! | file | subject |
//! | --- | --- |
//! | `damage` | the kinds of damage, and their sentences |
//! | `tree` | the walk through the upper layer: markers, redirects, partial copies |
//! | `twice` | redirects to a directory that shows at another place too |
//! | `needless` | what the lower layers show too |
//! | `work` | the work directory: leftovers, the mark of `volatile`, the index |
//! | `repair` | the steps of repairs |
//! | `beside` | what commits have left beside a lower layer |
//! | `options` | the command line of `overlayfs-fsck` |

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::errno::{ENOENT, ENOTDIR};

use crate::format::{self, Format, kernel};
use crate::layer::{Layer, Result};
use crate::overlay::on_disk::{LayerDir, Need, Record, Stack, hold, hold_on_all_hosts, namespace, stack_of};
use crate::overlay::{Layers, Overlay, Refused, Settings};

pub mod beside;
mod damage;
mod needless;
pub mod options;
mod repair;
mod tree;
mod twice;
mod work;

pub use damage::Damage;
pub use needless::{IsSame, Needless};
pub use repair::Repair;

/// One object with damage.
pub struct Finding<L: Layer> {
    /// The path of the object, relative to the upper layer or to the work directory.
    pub path: PathBuf,
    /// Whether the path is relative to the work directory.
    pub in_work: bool,
    /// The kind of the damage.
    pub damage: Damage,
    /// The repair. None: there is none without a loss.
    pub repair: Option<Repair<L>>,
}

/// An upper layer, its work directory and the layers below.
pub struct Checker<L: Layer> {
    /// The upper layer alone.
    upper: Stack<L>,
    root: Arc<LayerDir<L>>,
    /// None: the upper layer was never mounted.
    work: Option<Arc<LayerDir<L>>>,
    /// The layer of the work directory, locked during the check.
    _work_layer: Option<L>,
    /// The lower layers as one tree.
    below: Overlay<L>,
    format: Format,
    name_max: usize,
    in_use: bool,
    /// Whether the work directory has a record of the lower layers.
    is_recorded: bool,
    /// How the lower layers differ from that record.
    difference: Option<String>,
}

/// The damage that a check is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    /// Only what is lost ([`Damage::is_loss`]).
    Losses,
}

/// The findings so far.
struct Report<L: Layer> {
    wanted: Wanted,
    findings: Vec<Finding<L>>,
    /// The merging directories of the upper layer with their paths, by the lower path that they
    /// merge with. Only if all damage is wanted.
    merged: HashMap<PathBuf, Vec<Merging<L>>>,
    /// Directories with a redirect, and its target.
    redirects: Vec<(PathBuf, PathBuf)>,
    /// Whether there are partial copies that stay.
    partial: bool,
}

impl<L: Layer> Checker<L> {
    /// Locks the upper layer and the work directory, unless a mount holds them (see
    /// [`Checker::is_in_use`]). Writes nothing.
    ///
    /// # Errors
    ///
    /// - [`Refused::NoLayer`]: there is no upper or no lower layer.
    /// - [`Refused::Layer`]: a layer cannot be read.
    /// - [`Refused::Feature`]: a layer needs a feature that this version lacks.
    /// - [`Refused::Commit`]: a commit of the upper layer, or to a lower one, is not finished.
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
            // An untrusted check would report markers as useless that another mount needs.
            Settings { trusted: true, ..Settings::for_walk() },
        )?;
        let upper = Stack::new(vec![upper], true)?;
        let root = upper.upper_root().ok_or(Refused::NoLayer)?.clone();
        let (layer, open) = (upper.layer(&root), upper.open(&root)?);
        let format = namespace(&upper)?.map_or(format::OCI, kernel::format);
        let work = match &work_layer {
            Some(layer) => Some(layer.root()?),
            None => match layer.open_dir(&open, OsStr::new(format::WORK)) {
                Err(error) if matches!(error.errno, ENOENT | ENOTDIR) => None,
                work => Some(work?),
            },
        };
        if let Some(dir) = &work {
            in_use |= !hold_on_all_hosts(work_layer.as_ref().unwrap_or(layer), dir)?;
        }
        let known = work.as_ref().map(|dir| Record::read(upper.layer(&root), dir)).transpose()?.flatten();
        // A check that does not know a feature would find damage where there is none.
        known.iter().try_for_each(|known| known.check(Need::ReadOnly, false, None))?;
        let difference = match &known {
            Some(known) => Record::of(stack_of(&below))?.difference(known),
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
            is_recorded: known.is_some(),
            difference,
        })
    }

    /// Whether a mount holds the upper layer. Then a check sees its tree at the moment, and no
    /// repair is possible.
    pub fn is_in_use(&self) -> bool {
        self.in_use
    }

    /// The lower layers as one tree.
    #[cfg(feature = "layer-tools")]
    pub(crate) fn below(&self) -> &Overlay<L> {
        &self.below
    }

    /// Returns how the lower layers differ from those of the last mount, in words that follow a
    /// colon. None: they do not, or there is no record. With a difference, damage has no repair if
    /// its repair depends on the lower layers.
    pub fn other_layers(&self) -> Option<&str> {
        self.difference.as_deref()
    }

    /// Returns the copies in the work directory that nothing needs any more. They are no damage: an
    /// overlay would have to read the whole tree to find them. Returns none unless these are the
    /// lower layers of the record.
    ///
    /// # Errors
    ///
    /// - Any errno of a layer that cannot be read.
    pub fn unused(&self) -> Result<Vec<Finding<L>>> {
        if self.in_use || !self.is_recorded || self.difference.is_some() {
            return Ok(Vec::new());
        }
        self.find_unused()
    }

    /// Returns the damage that is a loss ([`Damage::is_loss`]). There may be very much other
    /// damage, so this takes less memory than [`Checker::check`]. Also reports nothing about a
    /// layer in use but its tree.
    ///
    /// # Errors
    ///
    /// - Any errno of a layer that cannot be read.
    #[cfg(feature = "layer-tools")]
    pub fn losses(&self) -> Result<Vec<Finding<L>>> {
        let mut report = Report::new(Wanted::Losses);
        self.check_tree(&mut report)?;
        if !self.in_use {
            self.check_work(&mut report)?;
        }
        Ok(report.findings)
    }

    /// Returns all damage.
    ///
    /// # Errors
    ///
    /// - Any errno of a layer that cannot be read.
    pub fn check(&self) -> Result<Vec<Finding<L>>> {
        let mut report = Report::new(Wanted::All);
        self.check_tree(&mut report)?;
        self.check_redirects(&mut report)?;
        if !self.in_use {
            self.check_partial_mark(&mut report)?;
            self.check_work(&mut report)?;
            self.check_record(&mut report)?;
        }
        let mut findings = report.findings;
        // If the lower layers lack something, they may not be those of the upper layer. Then a
        // whiteout that hides nothing here may hide something there.
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
    fn new(wanted: Wanted) -> Self {
        Report { wanted, findings: Vec::new(), merged: HashMap::new(), redirects: Vec::new(), partial: false }
    }

    /// Adds a finding, if it is wanted.
    fn note(&mut self, finding: Finding<L>) {
        if self.wanted == Wanted::All || finding.damage.is_loss() {
            self.findings.push(finding);
        }
    }
}

/// A directory of the upper layer, and its path.
type Merging<L> = (PathBuf, Arc<LayerDir<L>>);
