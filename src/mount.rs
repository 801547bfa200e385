//! Mounts: opens the layers that the options name, and makes an overlay of them. Refuses unusable
//! layers with a sentence.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::format;
use crate::layer::{Layer, OsLayer};
#[cfg(target_os = "linux")]
use crate::layer::{Result as LayerResult, linux::OpenRoot};
use crate::options::Options;
use crate::overlay::on_disk::{Need, Record};
use crate::overlay::{Holder, Layers, Overlay, Refused, Settings, VOLATILE_MARK};

/// The reason why a mount failed. Its text is a sentence with the paths and the cause.
#[derive(Debug)]
pub enum Error {
    /// A layer cannot be opened.
    Open {
        /// The kind of the layer, for a sentence.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The error of open(2).
        cause: io::Error,
    },
    /// A layer is missing because a commit was interrupted while it exchanged the layer.
    Exchanging {
        /// The kind of the layer, for a sentence.
        what: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// A layer is no directory.
    NotADirectory {
        /// The kind of the layer, for a sentence.
        what: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// One layer is or contains another in a way that cannot work.
    Nested(String),
    /// The engine cannot use the layers.
    Refused {
        /// The upper directory.
        upper: PathBuf,
        /// The work directory, if one is given.
        work: Option<PathBuf>,
        /// The reason.
        cause: Refused,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Open { what, path, cause } => write!(f, "cannot open the {what} {}: {cause}", path.display()),
            Error::Exchanging { what, path } => write!(
                f,
                "the {what} {} is missing, since commit --atomic was interrupted while it exchanged it; \
                 overlayfs-layer commit --resume finishes that",
                path.display()
            ),
            Error::NotADirectory { what, path } => write!(f, "the {what} {} is not a directory", path.display()),
            Error::Nested(sentence) => f.write_str(sentence),
            Error::Refused { upper, work, cause } => {
                write!(f, "{cause}")?;
                if let Refused::Volatile = cause {
                    let mark = work.clone().unwrap_or_else(|| upper.join(format::WORK)).join(VOLATILE_MARK);
                    let mark = mark.display();
                    write!(
                        f,
                        ". To use the layer all the same, mount with reuse_volatile, or remove the directory {mark}"
                    )?;
                }
                write!(f, " (upper layer {}", upper.display())?;
                if let Some(work) = work {
                    write!(f, ", work directory {}", work.display())?;
                }
                f.write_str(")")
            }
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// Whether another overlay holds the upper layer, and its holder, if known.
    pub fn held(&self) -> Option<Option<&Holder>> {
        match self {
            Error::Refused { cause: Refused::Held(holder), .. } => Some(holder.as_ref()),
            _ => None,
        }
    }
}

/// Opens the layers that `options` name and stacks them.
///
/// # Errors
///
/// Each variant of [`enum@Error`].
pub fn mount(options: &Options) -> Result<Overlay<OsLayer>, Error> {
    let opened = Opened::new(options, true)?;
    for lower in &options.lowers {
        check_work_beside(lower)?;
    }
    opened.stack(options, false)
}

/// The open layers of an overlay.
pub struct Opened {
    layers: Layers<OsLayer>,
    snapshots: Option<OsLayer>,
}

impl Opened {
    /// Opens the layers that `options` name. The upper layer, the work directory and the directory
    /// for snapshots are opened for writing if `for_writing`.
    ///
    /// # Errors
    ///
    /// Those of [`mount`], but not [`Error::Refused`].
    pub fn new(options: &Options, for_writing: bool) -> Result<Self, Error> {
        let mut lowers = canonical("lower layer", &options.lowers)?;
        let mut upper = canonical("upper layer", options.upper.as_slice())?.pop();
        let work = canonical("work directory", options.work.as_slice())?.pop();
        let snapshots = canonical("directory for snapshots", options.snapshots.as_slice())?.pop();
        if options.read_only {
            lowers.splice(..0, upper.take());
        }
        check_nesting(&lowers, upper.as_deref(), work.as_deref())?;
        if let Some(snapshots) = &snapshots {
            check_snapshots(snapshots, lowers.iter().chain(&upper).chain(&work))?;
        }
        // A read-only overlay looks into the work directory for the features of the layer.
        let for_writing = for_writing && !options.read_only;
        let places = [("upper layer", &upper), ("work directory", &work), ("directory for snapshots", &snapshots)];
        let named: Vec<_> = places.iter().filter_map(|(what, path)| Some((*what, path.as_deref()?))).collect();
        let mut opened = match for_writing && named.len() > 1 {
            true => open_together(&named)?,
            false => named.iter().map(|(what, path)| open(what, path, for_writing)).collect::<Result<_, _>>()?,
        }
        .into_iter();
        let mut take = |path: &Option<PathBuf>| path.as_ref().and_then(|_| opened.next());
        let (upper, work, snapshots) = (take(&upper), take(&work), take(&snapshots));
        Ok(Self { layers: Layers { upper, work, lowers: open_lowers(&lowers)? }, snapshots })
    }

    /// Stacks the layers. With `succeeds` the overlay takes the place of another one, in another
    /// process ([`Settings::succeeds`]).
    ///
    /// # Errors
    ///
    /// - [`Error::Refused`].
    pub fn stack(self, options: &Options, succeeds: bool) -> Result<Overlay<OsLayer>, Error> {
        let Options { volatile, reuse_volatile, whole_copies, trusted, no_redirects, format, read_only, .. } = *options;
        let settings = Settings {
            volatile,
            reuse_volatile,
            whole_copies,
            trusted,
            no_redirects,
            format,
            read_only_upper: read_only && options.upper.is_some(),
            succeeds,
            ..Settings::default()
        };
        let mounted = match self.snapshots {
            Some(snapshots) => Overlay::with_snapshots(self.layers, snapshots, settings),
            None => Overlay::with_settings(self.layers, settings),
        };
        mounted.map_err(|cause| {
            let upper = options.upper.as_ref().or(options.lowers.first());
            let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
            Error::Refused { upper: upper.map(real).unwrap_or_default(), work: options.work.as_ref().map(real), cause }
        })
    }
}

/// The open roots of layers, which another process may take over.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub struct Roots(Vec<Option<OpenRoot>>);

#[cfg(target_os = "linux")]
impl Roots {
    /// The number of the first lower layer.
    pub const LOWER: usize = 3;

    /// Opens the roots of these layers once more.
    ///
    /// # Errors
    ///
    /// - [`Error::Open`]: too many descriptors are open.
    pub fn of(opened: &Opened) -> Result<Self, Error> {
        let Opened { layers: Layers { upper, work, lowers }, snapshots } = opened;
        let single = [upper, work, snapshots].map(Option::as_ref);
        let all = single.into_iter().chain(lowers.iter().map(Some));
        let again = |layer: &OsLayer| {
            layer.root_again().map_err(|error| Error::Open {
                what: "layer",
                path: layer.path().map(Path::to_owned).unwrap_or_default(),
                cause: io::Error::from_raw_os_error(error.errno),
            })
        };
        Ok(Self(all.map(|layer| layer.map(again).transpose()).collect::<Result<_, _>>()?))
    }

    /// Returns the roots: of the upper layer, the work directory and the directory for snapshots,
    /// then of the lower layers.
    pub fn all(&self) -> &[Option<OpenRoot>] {
        &self.0
    }

    /// Makes them of roots in the order of [`Roots::all`].
    pub fn from_all(all: Vec<Option<OpenRoot>>) -> Self {
        Self(all)
    }

    /// Returns these roots for a mount that only reads the upper layer.
    ///
    /// # Errors
    ///
    /// - EMFILE: too many descriptors are open.
    pub fn only_read(&self) -> LayerResult<Self> {
        let again = |root: &Option<OpenRoot>| root.as_ref().map(OpenRoot::again).transpose();
        let mut all = self.0.iter().map(again).collect::<LayerResult<Vec<_>>>()?;
        let upper = all[0].take();
        all.splice(Self::LOWER..Self::LOWER, upper.map(Some));
        Ok(Self(all))
    }

    /// Returns the paths that options name, in the order of [`Roots::all`].
    pub fn paths(options: &Options) -> Vec<Option<&Path>> {
        let mut lowers: Vec<_> = options.lowers.iter().map(PathBuf::as_path).collect();
        let mut upper = options.upper.as_deref();
        if options.read_only {
            lowers.splice(..0, upper.take());
        }
        let single = [upper, options.work.as_deref(), options.snapshots.as_deref()];
        single.into_iter().chain(lowers.into_iter().map(Some)).collect()
    }

    /// Makes the layers of these roots. `options` name the paths at which they were opened.
    ///
    /// # Errors
    ///
    /// - EINVAL: the options name other layers.
    ///
    /// Others as [`OsLayer::open`].
    pub fn open(&self, options: &Options) -> LayerResult<Opened> {
        let paths = Self::paths(options);
        if paths.len() != self.0.len() {
            return Err(crate::errno::Error::new(crate::errno::EINVAL));
        }
        let open = |index: usize, for_writing| match (paths[index], &self.0[index]) {
            (Some(path), Some(root)) => OsLayer::with_opened(path, root.again()?, for_writing).map(Some),
            (None, None) => Ok(None),
            _ => Err(crate::errno::Error::new(crate::errno::EINVAL)),
        };
        let for_writing = !options.read_only;
        let (upper, work, snapshots) = (open(0, for_writing)?, open(1, for_writing)?, open(2, for_writing)?);
        let lowers = (Self::LOWER..paths.len())
            .filter_map(|index| open(index, false).transpose())
            .collect::<LayerResult<_>>()?;
        Ok(Opened { layers: Layers { upper, work, lowers }, snapshots })
    }
}

/// Returns the options with absolute paths without symlinks, for use after the working directory
/// has changed. A path that cannot be resolved stays.
pub fn resolved(options: &Options) -> Options {
    let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    Options {
        lowers: options.lowers.iter().map(real).collect(),
        upper: options.upper.as_ref().map(real),
        work: options.work.as_ref().map(real),
        snapshots: options.snapshots.as_ref().map(real),
        ..options.clone()
    }
}

/// Records the process that holds the upper layer. If that fails, the message of another mount only
/// says less.
pub fn sign<L: Layer>(overlay: &Overlay<L>, holder: &Holder) {
    if let Err(error) = overlay.sign(holder) {
        log::warn!("cannot record the process that holds the upper layer: {error}");
    }
}

/// Opens the layers that `options` name. The upper layer and the work directory are opened for
/// writing if `for_writing`.
///
/// # Errors
///
/// Those of [`mount`], but not [`Error::Refused`].
pub fn open_layers(options: &Options, for_writing: bool) -> Result<Layers<OsLayer>, Error> {
    Opened::new(&Options { snapshots: None, ..options.clone() }, for_writing).map(|opened| opened.layers)
}

/// A directory that a commit makes beside a lower layer for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// The merged copy. After the exchange with the layer it is the former layer.
    New,
    /// The work directory of the layer.
    Work,
    /// The layer in the middle of an exchange.
    Old,
}

impl Beside {
    /// Returns the name of the directory beside the layer `name`.
    pub fn name(self, name: &OsStr) -> OsString {
        let purpose = match self {
            Beside::New => "new",
            Beside::Work => "work",
            Beside::Old => "old",
        };
        let mut beside = OsString::from(".");
        beside.push(name);
        beside.push(format!(".overlayfs-{purpose}"));
        beside
    }
}

/// Refuses a lower layer to which a commit writes, if its work directory is beside it.
fn check_work_beside(lower: &Path) -> Result<(), Error> {
    let Ok((above, name)) = place(lower) else { return Ok(()) };
    let work = above.join(Beside::Work.name(&name));
    if !work.is_dir() {
        return Ok(());
    }
    let read = || {
        let layer = OsLayer::open(&work, false)?;
        Record::read(&layer, &layer.root()?)
    };
    let record = read().map_err(|error| Error::Open {
        what: "work directory",
        path: work.clone(),
        cause: io::Error::from_raw_os_error(error.errno),
    })?;
    let checked = record.map_or(Ok(()), |record| record.check(Need::Incompatible, false, Some(lower)));
    checked.map_err(|cause| Error::Refused { upper: lower.to_owned(), work: Some(work), cause })
}

/// Returns the directory around a layer, and the name of the layer there. The layer may be missing.
///
/// # Errors
///
/// - Those of [`Path::canonicalize`].
/// - `InvalidInput`: it is the root of the system.
pub fn place(path: &Path) -> io::Result<(PathBuf, OsString)> {
    let mut path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    // What a symlink leads to may be missing. The system follows as many.
    for _ in 0..40 {
        let Ok(target) = path.read_link() else { break };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((above.canonicalize()?, name))
}

/// Whether a commit was interrupted while it exchanged this lower layer.
fn is_exchanging(path: &Path) -> bool {
    place(path).is_ok_and(|(above, name)| above.join(Beside::Old.name(&name)).is_dir())
}

/// Resolves symlinks and `..` in the paths, so that they can be compared.
fn canonical(what: &'static str, paths: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let one = |path: &PathBuf| {
        let fail = |cause| Error::Open { what, path: path.clone(), cause };
        let path = path.canonicalize().map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound if is_exchanging(path) => Error::Exchanging { what, path: path.clone() },
            _ => fail(cause),
        })?;
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => Ok(path),
            Ok(_) => Err(Error::NotADirectory { what, path }),
            Err(cause) => Err(Error::Open { what, path, cause }),
        }
    };
    paths.iter().map(one).collect()
}

/// Checks that no layer lies in one that changes. A lower layer may contain the upper layer and the
/// work directory, as `/` does.
fn check_nesting(lowers: &[PathBuf], upper: Option<&Path>, work: Option<&Path>) -> Result<(), Error> {
    let Some(upper) = upper else {
        return Ok(());
    };
    let nested = |sentence: String| Err(Error::Nested(sentence));
    for lower in lowers {
        if lower == upper {
            return nested(format!("{} is named both as the upper layer and as a lower one", upper.display()));
        }
        if lower.starts_with(upper) {
            let (lower, upper) = (lower.display(), upper.display());
            return nested(format!(
                "the lower layer {lower} is inside the upper layer {upper}, so writing would change it"
            ));
        }
        if let Some(work) = work
            && lower.starts_with(work)
        {
            let (lower, work) = (lower.display(), work.display());
            return nested(format!("the lower layer {lower} is inside the work directory {work}, which is emptied"));
        }
    }
    if let Some(work) = work
        && (work.starts_with(upper) || upper.starts_with(work))
    {
        let (work, upper) = (work.display(), upper.display());
        return nested(format!("the work directory {work} and the upper layer {upper} contain each other"));
    }
    Ok(())
}

/// Checks that the directory for snapshots and a layer do not contain each other. But a lower layer
/// may contain it.
fn check_snapshots<'a>(snapshots: &Path, layers: impl Iterator<Item = &'a PathBuf>) -> Result<(), Error> {
    for layer in layers {
        if layer.starts_with(snapshots) {
            let (layer, snapshots) = (layer.display(), snapshots.display());
            return Err(Error::Nested(format!("{layer} is inside the directory for snapshots {snapshots}")));
        }
    }
    Ok(())
}

/// Opens directories for writing, with renames between them. An error with one of them names that
/// one.
fn open_together(named: &[(&'static str, &Path)]) -> Result<Vec<OsLayer>, Error> {
    for (what, path) in named {
        open(what, path, true)?;
    }
    let paths: Vec<_> = named.iter().map(|(_, path)| *path).collect();
    OsLayer::open_together(&paths).map_err(|error| Error::Open {
        what: "upper layer with its other directories",
        path: paths.first().map(|path| path.to_path_buf()).unwrap_or_default(),
        cause: io::Error::from_raw_os_error(error.errno),
    })
}

/// Opens lower layers, of which there may be hundreds.
fn open_lowers(paths: &[PathBuf]) -> Result<Vec<OsLayer>, Error> {
    let mut layers: Vec<OsLayer> = Vec::new();
    for path in paths {
        let opened = match layers.first() {
            Some(first) => first.open_another(path),
            None => OsLayer::open(path, false),
        };
        layers.push(opened.map_err(|error| unopened("lower layer", path, error))?);
    }
    Ok(layers)
}

fn open(what: &'static str, path: &Path, for_writing: bool) -> Result<OsLayer, Error> {
    OsLayer::open(path, for_writing).map_err(|error| unopened(what, path, error))
}

fn unopened(what: &'static str, path: &Path, error: crate::errno::Error) -> Error {
    Error::Open { what, path: path.to_path_buf(), cause: io::Error::from_raw_os_error(error.errno) }
}
