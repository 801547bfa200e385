//! Mounts: opens the layers that the options name, and makes an overlay of them. Refuses unusable
//! layers with a sentence.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::format;
use crate::layer::{Layer, OsLayer, Result as LayerResult};
use crate::options::Options;
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
    let layers = open_layers(options, true)?;
    let Options { volatile, reuse_volatile, whole_copies, trusted, no_redirects, format, read_only, .. } = *options;
    let settings =
        Settings { volatile, reuse_volatile, whole_copies, trusted, no_redirects, format, ..Settings::default() };
    let settings = Settings { read_only_upper: read_only && options.upper.is_some(), ..settings };
    Overlay::with_settings(layers, settings).map_err(|cause| {
        let upper = options.upper.as_ref().or(options.lowers.first());
        let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
        Error::Refused { upper: upper.map(real).unwrap_or_default(), work: options.work.as_ref().map(real), cause }
    })
}

/// Returns the options with absolute paths without symlinks, for use after the working directory
/// has changed. A path that cannot be resolved stays.
pub fn resolved(options: &Options) -> Options {
    let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    Options {
        lowers: options.lowers.iter().map(real).collect(),
        upper: options.upper.as_ref().map(real),
        work: options.work.as_ref().map(real),
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
    let mut lowers = canonical("lower layer", &options.lowers)?;
    let mut upper = canonical("upper layer", options.upper.as_slice())?.pop();
    let work = canonical("work directory", options.work.as_slice())?.pop();
    if options.read_only {
        lowers.splice(..0, upper.take());
    }
    check_nesting(&lowers, upper.as_deref(), work.as_deref())?;

    let (upper, work) = match (&upper, &work) {
        (Some(upper), Some(work)) if for_writing => {
            let (upper, work) = open_pair(upper, work)?;
            (Some(upper), Some(work))
        }
        (upper, work) => {
            // A read-only overlay looks into the work directory for the features of the layer.
            let for_writing = for_writing && !options.read_only;
            let open =
                |what, path: &Option<PathBuf>| path.as_ref().map(|path| open(what, path, for_writing)).transpose();
            (open("upper layer", upper)?, open("work directory", work)?)
        }
    };
    let lowers = lowers.iter().map(|path| open("lower layer", path, false)).collect::<Result<Vec<_>, _>>()?;
    Ok(Layers { upper, work, lowers })
}

/// Resolves symlinks and `..` in the paths, so that they can be compared.
fn canonical(what: &'static str, paths: &[PathBuf]) -> Result<Vec<PathBuf>, Error> {
    let one = |path: &PathBuf| {
        let fail = |cause| Error::Open { what, path: path.clone(), cause };
        let path = path.canonicalize().map_err(fail)?;
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

fn open_pair(upper: &Path, work: &Path) -> Result<(OsLayer, OsLayer), Error> {
    // An error with one of the two names that one.
    open("upper layer", upper, true)?;
    open("work directory", work, true)?;
    OsLayer::open_pair(upper, work).map_err(|error| Error::Open {
        what: "upper layer with its work directory",
        path: upper.to_path_buf(),
        cause: io::Error::from_raw_os_error(error.errno),
    })
}

fn open(what: &'static str, path: &Path, for_writing: bool) -> Result<OsLayer, Error> {
    let opened: LayerResult<OsLayer> = OsLayer::open(path, for_writing);
    opened.map_err(|error| Error::Open {
        what,
        path: path.to_path_buf(),
        cause: io::Error::from_raw_os_error(error.errno),
    })
}
