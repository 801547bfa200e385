//! Tools for the life of an upper layer: what it changes, where its changes go, what it is.
//!
//! Every tool compares or changes merged trees, so none of them reads marks of formats. [`Views`]
//! are the trees with and without the upper layer, and the differ finds each [`Change`] between
//! them. The program `overlayfs-layer` runs one [`Tool`].
//!
//! | file | subject |
//! | --- | --- |
//! | `views` | the two merged trees that a tool compares |
//! | `changes` | the differ: from two trees to the changes between them |
//! | `renames` | the objects that were renamed |
//! | `compare` | the attributes and contents of one object in both trees |
//! | `options` | the command line: the subcommands, and the options for layers |
//! | `paths` | lists of very many paths |
//! | `text` | paths in messages and listings |
//! | `tree` | questions about a merged tree |
//! | `apply` | the applier: makes the changes in a layer |
//! | `links` | the first names of objects with several |
//! | `open` | the layers of a tool that changes them |
//! | `around` | the directory around a layer, and the exchange of the layer |
//! | `check` | the states in which a tool must not change a layer |
//! | `diff`, `commit`, `discard`, `flatten`, `vacuum`, `info`, `convert` | the subcommands |
//! | `ending` | what a mount does with the changes at its end |
//! | `listing`, `content`, `sums` | the listing of `diff`; the lines that differ; its sums |
//! | `summary` | what a program changed, for its user |
//! | `choice` | what happens to these changes, and the question for it |
//! | `export` | the subcommand `export`: the changes become a layer of an image |
//! | `import` | the subcommand `import`: archives and images become lower directories |
//! | `archive`, `oci` | tar archives of layers; OCI image layouts |

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::{errno, mount};

pub mod apply;
pub mod archive;
pub mod around;
pub mod changes;
pub mod check;
pub mod choice;
pub mod commit;
mod compare;
mod content;
pub mod convert;
pub mod diff;
mod discard;
pub mod ending;
pub mod export;
mod flatten;
pub mod import;
pub mod info;
mod links;
mod listing;
pub mod oci;
pub mod open;
pub mod options;
mod paths;
mod renames;
pub mod summary;
mod sums;
pub mod text;
mod tree;
pub mod vacuum;
pub mod views;

pub use changes::{Aspects, Change, ChangeKind, Renames};
pub use listing::line_of;
pub use text::escaped;
pub use views::Views;

/// The reason why a tool failed. Its text is a clause that names the path and the cause.
#[derive(Debug)]
pub enum Error {
    /// A step failed at an object: "cannot ACTION PATH: CAUSE".
    At {
        /// The step, as a verb and what follows it.
        action: &'static str,
        /// The object, in the merged tree or outside the layers.
        path: PathBuf,
        /// The error of the system.
        cause: io::Error,
    },
    /// The layers cannot be opened or stacked.
    Layers(mount::Error),
    /// The tool refuses the work. The sentence says why.
    Refused(String),
    /// The user stopped the work ([`Watch::wants_stop`]).
    Stopped,
}

impl Error {
    /// Makes the error of a step at `path`.
    pub fn at(action: &'static str, path: impl Into<PathBuf>, cause: impl Into<io::Error>) -> Self {
        Error::At { action, path: path.into(), cause: cause.into() }
    }

    /// Makes the error of a step at an object of a merged tree. The empty path is the root.
    pub(crate) fn in_tree(action: &'static str, path: &Path, cause: errno::Error) -> Self {
        Error::at(action, if path.as_os_str().is_empty() { Path::new(".") } else { path }, cause)
    }

    /// Makes the error of a listing that cannot be written.
    pub(crate) fn output(cause: io::Error) -> Self {
        Error::at("write to", "standard output", cause)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::At { action, path, cause } => {
                let text = cause.to_string();
                // The standard library appends the number.
                let cause = text.split_once(" (os error").map_or(&*text, |(clause, _)| clause);
                write!(f, "cannot {action} {}: {cause}", escaped(path))
            }
            Error::Layers(error) => write!(f, "{error}"),
            Error::Refused(sentence) => f.write_str(sentence),
            Error::Stopped => f.write_str("the work was stopped; the same command goes on with it"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::At { cause, .. } => Some(cause),
            Error::Layers(error) => Some(error),
            Error::Refused(_) | Error::Stopped => None,
        }
    }
}

impl From<mount::Error> for Error {
    fn from(error: mount::Error) -> Self {
        Error::Layers(error)
    }
}

/// An amount of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Objects of any kind.
    pub objects: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// The observer of long work. A tool calls it from its own thread.
pub trait Watch {
    /// Whether the observer wants to know how much work there is, although only a walk can tell.
    fn wants_total(&self) -> bool {
        false
    }

    /// Says how much work there is, once that is known.
    fn expect(&self, _all: Progress) {}

    /// Counts work that is done, beyond that of earlier calls.
    fn advance(&self, _done: Progress) {}

    /// Whether the work is to stop at the next point from which it can go on.
    fn wants_stop(&self) -> bool {
        false
    }

    /// Tells that an object vanished or was replaced while a walk read it. Returns whether the walk
    /// leaves the object out and goes on; otherwise it fails.
    fn passes_over(&self, _path: &Path) -> bool {
        false
    }

    /// Tells the user something that is no error. The sentence has no full stop.
    fn tell(&self, sentence: &str) {
        log::warn!("{sentence}");
    }
}

/// The observer that looks at nothing.
impl Watch for () {}

/// An observer of layers in use: it leaves out what other programs, or a mounted overlay, change
/// while the walk reads it, and tells `.0` so.
pub struct Lenient<'w>(pub &'w dyn Watch);

impl Watch for Lenient<'_> {
    fn expect(&self, all: Progress) {
        self.0.expect(all);
    }

    fn advance(&self, done: Progress) {
        self.0.advance(done);
    }

    fn wants_stop(&self) -> bool {
        self.0.wants_stop()
    }

    fn passes_over(&self, path: &Path) -> bool {
        self.0.tell(&format!("{} changed while it was read, so it is not listed", escaped(path)));
        true
    }

    fn tell(&self, sentence: &str) {
        self.0.tell(sentence);
    }
}

/// The result of a subcommand that worked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was done.
    Done,
    /// Everything was done, and there are differences.
    Differs,
}

/// One subcommand with its options.
pub trait Tool {
    /// Does the work. Writes the listing to `out`.
    ///
    /// # Errors
    ///
    /// Each variant of [`enum@Error`].
    fn run(&self, out: &mut dyn io::Write, watch: &dyn Watch) -> Result<Outcome, Error>;
}
