//! The layers of a tool that changes them, opened as often as it needs them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::{Error, escaped};
use crate::layer::{Layer, OsLayer};
use crate::mount::{self, open_layers};
use crate::options::Options;
use crate::overlay::on_disk::{Stack, namespace};
use crate::overlay::{Layers, Refused};

/// A stack of layers that a commit opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The upper layer with its work directory, to be written, on all lower layers.
    Upper,
    /// The upper layer, only to be read, on all lower layers.
    Above,
    /// The lower layers.
    Below,
    /// The topmost lower layer, to be written, on those below it.
    Target,
}

/// The layers of a commit.
pub trait Opener {
    /// The type of the layers.
    type Layer: Layer;

    /// Opens a stack of layers anew.
    ///
    /// # Errors
    ///
    /// - [`Error::Layers`]: a layer cannot be opened.
    fn open(&self, part: Part) -> Result<Layers<Self::Layer>, Error>;

    /// Makes the error for a stack that the engine refused.
    fn refused(&self, part: Part, cause: Refused) -> Error;

    /// Removes what [`Opener::open`] made for the target, once its work directory is empty.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: that cannot be removed.
    fn ended(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// The layers that a command line names.
pub struct Paths {
    layers: Options,
    /// The topmost lower layer.
    target: PathBuf,
}

impl Paths {
    /// Takes the layers that `layers` names: an upper one, and at least one lower one.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: a directory cannot be read.
    /// - [`Error::Refused`]: a layer lacks, or the topmost lower layer contains the upper one.
    pub fn new(layers: &Options) -> Result<Self, Error> {
        let real = |path: &PathBuf| path.canonicalize().map_err(|cause| Error::at("open", path, cause));
        let (Some(target), Some(upper)) = (layers.lowers.first(), &layers.upper) else {
            return Err(Error::Refused("an upper and a lower layer are needed".to_owned()));
        };
        let target = real(target)?;
        for inside in [Some(upper), layers.work.as_ref()].into_iter().flatten() {
            if real(inside)?.starts_with(&target) {
                return Err(Error::Refused(format!(
                    "{} is inside the lower layer {}, which cannot take the changes",
                    escaped(inside),
                    escaped(&target)
                )));
            }
        }
        Ok(Paths { layers: Options { read_only: false, ..layers.clone() }, target })
    }

    /// The topmost lower layer.
    pub fn target(&self) -> &PathBuf {
        &self.target
    }

    /// Returns the path of a directory beside the topmost lower layer, with a name for `purpose`.
    pub fn beside(&self, purpose: &str) -> PathBuf {
        let mut name = OsString::from(".");
        name.push(self.target.file_name().unwrap_or_default());
        name.push(format!(".overlayfs-{purpose}"));
        self.target.with_file_name(name)
    }

    /// Returns the work directory that the topmost lower layer needs beside it: in the kernel's
    /// format none can be inside.
    fn target_work(&self) -> Result<Option<PathBuf>, Error> {
        let cause = |error: crate::errno::Error| Error::at("open", &self.target, error);
        let layer = OsLayer::open(&self.target, false).map_err(cause)?;
        if Stack::new(vec![layer], true).and_then(|stack| namespace(&stack)).map_err(cause)?.is_none() {
            return Ok(None);
        }
        let work = self.beside("work");
        match fs::create_dir(&work) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::at("create", &work, error)),
            _ => Ok(Some(work)),
        }
    }
}

impl Opener for Paths {
    type Layer = OsLayer;

    fn open(&self, part: Part) -> Result<Layers<OsLayer>, Error> {
        let lowers = &self.layers.lowers;
        Ok(match part {
            Part::Upper => open_layers(&self.layers, true)?,
            Part::Above => open_layers(&self.layers, false)?,
            Part::Below => open_layers(&Options { lowers: lowers.clone(), ..Options::default() }, false)?,
            Part::Target => {
                let (upper, work) = (Some(self.target.clone()), self.target_work()?);
                open_layers(&Options { upper, work, lowers: lowers[1..].to_vec(), ..Options::default() }, true)?
            }
        })
    }

    fn refused(&self, part: Part, cause: Refused) -> Error {
        let upper = match part {
            Part::Upper | Part::Above => self.layers.upper.clone().unwrap_or_default(),
            Part::Below | Part::Target => self.target.clone(),
        };
        let work = if part == Part::Upper { self.layers.work.clone() } else { None };
        mount::Error::Refused { upper, work, cause }.into()
    }

    fn ended(&self) -> Result<(), Error> {
        let work = self.beside("work");
        match fs::remove_dir(&work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::at("remove", work, error)),
            _ => Ok(()),
        }
    }
}
