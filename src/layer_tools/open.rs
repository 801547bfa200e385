//! The layers of a tool that changes them, opened as often as it needs them.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Error, escaped};
use crate::format;
use crate::layer::{Layer, Object, OsLayer, RenameMode};
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

    /// Opens [`Part::Above`] and [`Part::Copy`]. If possible, files of the topmost lower layer of
    /// the first can be linked into the second.
    ///
    /// # Errors
    ///
    /// Those of [`Opener::open`].
    fn open_linkable(&self) -> Result<[Layers<Self::Layer>; 2], Error> {
        Ok([self.open(Part::Above)?, self.open(Part::Copy)?])
    }

    /// Exchanges the copy and the topmost lower layer. After that each is opened as the other was.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: they cannot be exchanged.
    fn exchange(&self) -> Result<(), Error>;

    /// Removes what [`Opener::open`] made for the target, once its work directory is empty. After
    /// an exchange it removes the former lower layer too.
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
    /// The copy, and the number of lower layers that it takes the place of.
    copy: (PathBuf, usize),
    /// The path where the former lower layer stays after an exchange.
    kept: Option<PathBuf>,
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
        let copy = (beside(&target, "new"), 1);
        Ok(Paths { layers: Options { read_only: false, ..layers.clone() }, target, copy, kept: None })
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
        // A copy that is not complete has its work directory. A former layer has none.
        if !names.is_empty() && !names.contains(&OsString::from(format::WORK)) && path != self.copy.0 {
            return Err(Error::Refused(format!("{} is not empty", escaped(path))));
        }
        let copy = real(&path.to_owned())?;
        let Options { lowers, upper, work, .. } = &self.layers;
        for layer in lowers.iter().chain(upper).chain(work) {
            let layer = real(layer)?;
            if layer.starts_with(&copy) || copy.starts_with(&layer) {
                let (layer, copy) = (escaped(&layer), escaped(&copy));
                return Err(Error::Refused(format!("{copy} and the layer {layer} contain each other")));
            }
        }
        Ok(Paths { copy: (copy, replaced), ..self })
    }

    /// Adds a copy beside the topmost lower layer, to be exchanged with it. With `keeps` the former
    /// layer stays, with `.old` behind its name.
    ///
    /// # Errors
    ///
    /// Those of [`Paths::with_copy`] and [`Paths::check_exchange`].
    /// - [`Error::Refused`]: something has the name for the former layer.
    pub fn to_exchange(self, keeps: bool) -> Result<Self, Error> {
        self.check_exchange()?;
        let path = self.copy.0.clone();
        let mut name = self.target.clone().into_os_string();
        name.push(".old");
        let kept = keeps.then(|| PathBuf::from(name));
        if let Some(kept) = kept.as_ref().filter(|kept| kept.symlink_metadata().is_ok()) {
            return Err(Error::Refused(format!("{} exists, so the former layer cannot stay there", escaped(kept))));
        }
        Ok(Paths { kept, ..self.with_copy(&path, 1)? })
    }

    /// Checks that a directory beside the topmost lower layer can be exchanged with it. A commit
    /// that finds it out only after its journal could not end.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: the directory around the layer cannot be read.
    /// - [`Error::Refused`]: the filesystem exchanges no directories, or the layer is a mount
    ///   point.
    pub fn check_exchange(&self) -> Result<(), Error> {
        self.around().map(drop)
    }

    /// Opens the directory around the topmost lower layer, and returns the name of the layer there.
    fn around(&self) -> Result<(OsLayer, &OsStr), Error> {
        let failed = |error: crate::errno::Error| Error::at("exchange", &self.target, error);
        let refused = |why: &str| {
            Err(Error::Refused(format!("{} {why}; only a commit without --atomic can do it", escaped(&self.target))))
        };
        let (Some(parent), Some(name)) = (self.target.parent(), self.target.file_name()) else {
            return refused("is the root of the system");
        };
        let layer = OsLayer::open(parent, true).map_err(failed)?;
        if !layer.capabilities().exchange {
            return refused("is on a filesystem that cannot exchange two directories in one step");
        }
        let number = |layer: &OsLayer, object: Object<'_, OsLayer>| layer.stat(object).map(|stat| (stat.dev, stat.ino));
        let here = layer.root().and_then(|root| number(&layer, Object::Entry(&root, name))).map_err(failed)?;
        let lower = OsLayer::open(&self.target, false).map_err(failed)?;
        if here != lower.root().and_then(|root| number(&lower, Object::Dir(&root))).map_err(failed)? {
            return refused("is a mount point, and cannot be exchanged");
        }
        Ok((layer, name))
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
        let work = beside(&self.target, "work");
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

    fn open_linkable(&self) -> Result<[Layers<OsLayer>; 2], Error> {
        let (mut above, mut copy) = (self.open(Part::Above)?, self.open(Part::Copy)?);
        // Two layers that were opened alone count as two mounts to the system, which links no file
        // from one to the other.
        if let (Ok(pair), Some(lower)) = (OsLayer::open_pair(&self.target, self.copy().0), above.lowers.first_mut()) {
            (*lower, copy.upper) = (pair.0, Some(pair.1));
        }
        Ok([above, copy])
    }

    fn exchange(&self) -> Result<(), Error> {
        let failed = |error: crate::errno::Error| Error::at("exchange", &self.target, error);
        let (layer, name) = self.around()?;
        let new = self.copy().0.file_name().unwrap_or_default();
        let root = layer.root().map_err(failed)?;
        let exchanged = layer.rename(&root, new, &root, name, RenameMode::Exchange);
        exchanged.and_then(|()| layer.sync_dir(&root)).map_err(failed)
    }

    fn ended(&self) -> Result<(), Error> {
        let work = beside(&self.target, "work");
        match fs::remove_dir(&work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::at("remove", work, error)),
            _ => {}
        }
        // Also of a commit that another call began.
        let former = beside(&self.target, "new");
        let ended = match &self.kept {
            Some(kept) => fs::rename(&former, kept),
            None => fs::remove_dir_all(&former),
        };
        match ended {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::at("remove", former, error)),
            _ => Ok(()),
        }
    }
}

/// Resolves symlinks and `..`, so that paths can be compared.
fn real(path: &PathBuf) -> Result<PathBuf, Error> {
    path.canonicalize().map_err(|cause| Error::at("open", path, cause))
}

/// Returns the path of a directory beside a layer, with a name for `purpose`.
fn beside(layer: &Path, purpose: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(layer.file_name().unwrap_or_default());
    name.push(format!(".overlayfs-{purpose}"));
    layer.with_file_name(name)
}
