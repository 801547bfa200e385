//! The layers of a tool that changes them, opened as often as it needs them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::around::Around;
use super::{Error, escaped};
use crate::format;
use crate::layer::{Layer, Object, OsLayer};
use crate::mount::{self, Beside, open_layers, place};
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
    /// The lower layers that stay below a copy.
    Rest,
    /// The copy, to be written, on the lower layers that stay below it.
    Copy,
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

    /// Opens [`Part::Above`], and [`Part::Target`] or [`Part::Copy`]. If possible, files of the two
    /// topmost layers of the first can be linked into the second.
    ///
    /// # Errors
    ///
    /// Those of [`Opener::open`].
    fn open_linkable(&self, part: Part) -> Result<[Layers<Self::Layer>; 2], Error> {
        Ok([self.open(Part::Above)?, self.open(part)?])
    }

    /// Opens the directory around the topmost lower layer.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: it cannot be opened.
    fn around(&self) -> Result<Around<Self::Layer>, Error>;
}

/// The layers that a command line names.
pub struct Paths {
    layers: Options,
    /// The topmost lower layer.
    target: PathBuf,
    /// The copy, and the number of lower layers that it takes the place of.
    copy: (PathBuf, usize),
}

impl Paths {
    /// Takes the layers that `layers` names: at least one lower one.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: a directory cannot be read.
    /// - [`Error::Refused`]: a layer lacks, or the topmost lower layer contains the upper one.
    pub fn new(layers: &Options) -> Result<Self, Error> {
        let Some(target) = layers.lowers.first() else {
            return Err(Error::Refused("a lower layer is needed".to_owned()));
        };
        let target = real(target)?;
        for inside in [layers.upper.as_ref(), layers.work.as_ref()].into_iter().flatten() {
            if real(inside)?.starts_with(&target) {
                return Err(Error::Refused(format!(
                    "{} is inside the lower layer {}, which cannot take the changes",
                    escaped(inside),
                    escaped(&target)
                )));
            }
        }
        let copy = (beside(&target, Beside::New), 1);
        Ok(Paths { layers: Options { read_only: false, ..layers.clone() }, target, copy })
    }

    /// Takes the layers for a commit. Finishes an exchange of the topmost lower layer that was
    /// interrupted, since the layer is missing until then.
    ///
    /// # Errors
    ///
    /// Those of [`Paths::new`].
    pub fn for_commit(layers: &Options) -> Result<Self, Error> {
        if let Some((above, name)) = layers.lowers.first().and_then(|target| place(target).ok()) {
            around(&above, name)?.finish()?;
        }
        Self::new(layers)
    }

    /// Adds a copy at `path`, which takes the place of the `replaced` topmost lower layers. Makes
    /// the directory if it is missing.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: the directory cannot be made.
    /// - [`Error::Refused`]: the directory and a layer contain each other.
    pub fn with_copy(self, path: &Path, replaced: usize) -> Result<Self, Error> {
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Error::at("create", path, error)),
            _ => {}
        }
        let names = fs::read_dir(path).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
        let names: Vec<_> = names.map_err(|error| Error::at("read", path, error))?;
        // A copy that is not complete has its work directory.
        if !names.is_empty() && !names.contains(&OsString::from(format::WORK)) {
            return Err(Error::Refused(format!("{} is not empty", escaped(path))));
        }
        let copy = real(path)?;
        self.check_copy(&copy)?;
        Ok(Paths { copy: (copy, replaced), ..self })
    }

    /// Checks that the topmost lower layer can be exchanged with a directory beside it, and that no
    /// layer is in that. A commit that finds it out only after its journal could not end.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: the directory around the layer cannot be read.
    /// - [`Error::Refused`]: the layer is a mount point, or another layer is in the way.
    pub fn check_exchange(&self) -> Result<(), Error> {
        self.check_copy(&self.copy.0)?;
        let failed = |error: crate::errno::Error| Error::at("exchange", &self.target, error);
        let (above, name) = self.place()?;
        let number = |path: &Path, name: Option<&OsStr>| {
            let layer = OsLayer::open(path, false)?;
            let root = layer.root()?;
            layer
                .stat(name.map_or(Object::Dir(&root), |name| Object::Entry(&root, name)))
                .map(|stat| (stat.dev, stat.ino))
        };
        let here = number(&above, Some(&name)).map_err(failed)?;
        if here != number(&self.target, None).map_err(failed)? {
            return Err(Error::Refused(format!(
                "{} is a mount point, and cannot be exchanged; only a commit without --atomic can do it",
                escaped(&self.target)
            )));
        }
        Ok(())
    }

    /// Returns the directory around the topmost lower layer, and its name.
    fn place(&self) -> Result<(PathBuf, OsString), Error> {
        place(&self.target).map_err(|cause| Error::at("open the directory around", &self.target, cause))
    }

    /// Checks that the directory of a copy and the layers do not contain each other.
    fn check_copy(&self, copy: &Path) -> Result<(), Error> {
        let Options { lowers, upper, work, .. } = &self.layers;
        for layer in lowers.iter().chain(upper).chain(work) {
            let layer = real(layer)?;
            if layer.starts_with(copy) || copy.starts_with(&layer) {
                let (layer, copy) = (escaped(&layer), escaped(copy));
                return Err(Error::Refused(format!("{copy} and the layer {layer} contain each other")));
            }
        }
        Ok(())
    }

    /// The copy, and the lower layers below it.
    fn copy(&self) -> (&PathBuf, &[PathBuf]) {
        let (copy, replaced) = &self.copy;
        (copy, self.layers.lowers.get(*replaced..).unwrap_or_default())
    }

    /// Returns the work directory that the topmost lower layer needs beside it: in the kernel's
    /// format none can be inside.
    fn target_work(&self) -> Result<Option<PathBuf>, Error> {
        let cause = |error: crate::errno::Error| Error::at("open", &self.target, error);
        let layer = OsLayer::open(&self.target, false).map_err(cause)?;
        if Stack::new(vec![layer], true).and_then(|stack| namespace(&stack)).map_err(cause)?.is_none() {
            return Ok(None);
        }
        let work = beside(&self.target, Beside::Work);
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
            Part::Rest => open_layers(&Options { lowers: self.copy().1.to_vec(), ..Options::default() }, false)?,
            Part::Copy => {
                let (copy, rest) = self.copy();
                open_layers(&Options { upper: Some(copy.clone()), lowers: rest.to_vec(), ..Options::default() }, true)?
            }
            Part::Target => {
                let (upper, work) = (Some(self.target.clone()), self.target_work()?);
                open_layers(&Options { upper, work, lowers: lowers[1..].to_vec(), ..Options::default() }, true)?
            }
        })
    }

    fn refused(&self, part: Part, cause: Refused) -> Error {
        let upper = match part {
            Part::Upper | Part::Above => self.layers.upper.clone().unwrap_or_default(),
            Part::Below | Part::Target | Part::Rest => self.target.clone(),
            Part::Copy => self.copy.0.clone(),
        };
        let work = if part == Part::Upper { self.layers.work.clone() } else { None };
        mount::Error::Refused { upper, work, cause }.into()
    }

    fn open_linkable(&self, part: Part) -> Result<[Layers<OsLayer>; 2], Error> {
        let (mut above, mut into) = (self.open(Part::Above)?, self.open(part)?);
        // Layers that were opened alone count as several mounts to the system, which links no file
        // from one to another.
        let top = above.upper.as_mut().into_iter().chain(above.lowers.first_mut());
        let mut group: Vec<_> = top.chain(into.upper.as_mut()).chain(into.work.as_mut()).collect();
        let paths: Vec<_> = group.iter().map(|layer| layer.path().unwrap_or(Path::new("")).to_owned()).collect();
        let opened = OsLayer::open_group(&paths).map_err(|error| Error::at("open", &self.target, error))?;
        group.iter_mut().zip(opened.into_iter().flatten()).for_each(|(layer, opened)| **layer = opened);
        Ok([above, into])
    }

    fn around(&self) -> Result<Around<OsLayer>, Error> {
        let (above, name) = self.place()?;
        around(&above, name)
    }
}

fn around(above: &Path, name: OsString) -> Result<Around<OsLayer>, Error> {
    let opened = OsLayer::open(above, true).and_then(|layer| Around::new(layer, name));
    opened.map_err(|error| Error::at("open", above, error))
}

/// Resolves symlinks and `..`, so that paths can be compared.
fn real(path: &Path) -> Result<PathBuf, Error> {
    path.canonicalize().map_err(|cause| Error::at("open", path, cause))
}

/// Returns the path of a directory beside a layer.
fn beside(layer: &Path, what: Beside) -> PathBuf {
    layer.with_file_name(what.name(layer.file_name().unwrap_or_default()))
}
