//! The two merged trees that a tool compares.
//!
//! A view is an overlay that changes nothing and takes no lock. So the layers may be those of an
//! overlay that is mounted.

use std::path::PathBuf;

use super::Error;
use crate::layer::{Layer, OsLayer};
use crate::mount::{self, open_layers};
use crate::options::Options;
use crate::overlay::{CopyFacts, Layers, Overlay, Refused, Settings};

/// Two merged trees. None is the tree without a layer: it is empty.
pub struct Views<L: Layer> {
    /// The later state: the upper layer on the lower ones.
    pub above: Option<Overlay<L>>,
    /// The earlier state: the lower layers alone.
    pub below: Option<Overlay<L>>,
}

impl<L: Layer> Views<L> {
    /// Makes the views of two stacks of layers.
    ///
    /// # Errors
    ///
    /// - [`Refused::Layer`]: a layer cannot be read.
    pub fn new(above: Layers<L>, below: Layers<L>) -> Result<Self, Refused> {
        Self::with(above, below, Settings::default())
    }

    /// Makes the views of a commit, which has marked its layers. Its upper layer is whole without
    /// the work directory.
    ///
    /// # Errors
    ///
    /// Those of [`Views::new`].
    pub fn of_commit(above: Layers<L>, below: Layers<L>) -> Result<Self, Refused> {
        let settings = Settings { commits: true, copy_facts: CopyFacts::Nothing, ..Settings::default() };
        Self::with(Layers { work: None, ..above }, below, settings)
    }

    fn with(above: Layers<L>, below: Layers<L>, settings: Settings) -> Result<Self, Refused> {
        Ok(Views { above: view(above, settings)?, below: view(below, settings)? })
    }
}

impl Views<OsLayer> {
    /// Opens the layers that `options` name as the later state. The earlier state is the stack of
    /// `from`, topmost first. None stands for the lower layers of `options`.
    ///
    /// # Errors
    ///
    /// - [`Error::Layers`]: a layer cannot be opened, or the layers cannot be stacked.
    pub fn open(options: &Options, from: Option<&[PathBuf]>) -> Result<Self, Error> {
        Self::open_with(options, from, CopyFacts::All)
    }

    /// Does the same as [`Views::open`], for a tool that needs no inode numbers. They are not those
    /// that a mount shows, and no rename of a file is found by them.
    ///
    /// # Errors
    ///
    /// Those of [`Views::open`].
    pub fn open_without_numbers(options: &Options, from: Option<&[PathBuf]>) -> Result<Self, Error> {
        Self::open_with(options, from, CopyFacts::Names)
    }

    fn open_with(options: &Options, from: Option<&[PathBuf]>, copy_facts: CopyFacts) -> Result<Self, Error> {
        let above = open_layers(options, false)?;
        let lowers = from.unwrap_or(&options.lowers).to_owned();
        let below = open_layers(&Options { lowers, ..Options::default() }, false)?;
        let upper = options.upper.clone().or_else(|| options.lowers.first().cloned()).unwrap_or_default();
        Views::with(above, below, Settings { copy_facts, ..Settings::default() })
            .map_err(|cause| mount::Error::Refused { upper, work: options.work.clone(), cause }.into())
    }
}

/// Makes the merged tree of `layers`, with the upper one as it is at the moment, and these further
/// settings. An object of a lower layer has one inode number in both views, so that the differ
/// needs no table from one to the other.
fn view<L: Layer>(layers: Layers<L>, settings: Settings) -> Result<Option<Overlay<L>>, Refused> {
    let Layers { upper, work, mut lowers } = layers;
    let read_only_upper = upper.is_some();
    lowers.splice(..0, upper);
    if lowers.is_empty() {
        return Ok(None);
    }
    let layers = Layers { upper: None, work, lowers };
    let Settings { known_max, names_at_once, .. } = Settings::for_walk();
    let settings =
        Settings { trusted: true, read_only_upper, numbers_as_below: true, known_max, names_at_once, ..settings };
    Overlay::with_settings(layers, settings).map(Some)
}
