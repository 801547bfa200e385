//! A question to the daemon of a scheme, and its answer. See [`crate::control`].

use std::fmt;
use std::path::{Path, PathBuf};

use libredox::Fd;
use libredox::flag::O_DIRECTORY;
use syscall::flag::{CallFlags, O_STAT};

use crate::control::ask::{Refusal, ask};
use crate::control::fact::Fact;
use crate::control::{CALL, Command};
use crate::errno::{EACCES, EBADF, ENODEV, ENOENT, ENOTTY, EOPNOTSUPP, EPERM, Error};

/// Why a daemon gave no answer, or the answer is a failure.
#[derive(Debug)]
pub enum Trouble {
    /// No daemon serves the scheme.
    NoScheme,
    /// The caller is neither root nor the user that serves the scheme.
    Denied,
    /// The scheme is no overlay, or of another version.
    Unknown,
    /// The answer makes no sense.
    Malformed,
    /// The command failed, as this clause says.
    Failed(String),
    /// Another error of a call.
    Call(Error),
}

impl Trouble {
    /// Returns a sentence about the overlay `point`, which cannot be `done`.
    pub fn sentence(&self, done: &str, point: &Path) -> String {
        format!("The overlay {} cannot be {done}: {self}.", point.display())
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::NoScheme => f.write_str("no daemon serves that scheme"),
            Trouble::Denied => f.write_str("only root and the user that serves it may do that"),
            Trouble::Unknown => f.write_str("the scheme does not know this command; it is no overlay of this version"),
            Trouble::Malformed => f.write_str("the answer makes no sense"),
            Trouble::Failed(clause) => f.write_str(clause),
            Trouble::Call(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Trouble {}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        match error.errno {
            ENODEV | ENOENT | EBADF => Trouble::NoScheme,
            EPERM | EACCES => Trouble::Denied,
            EOPNOTSUPP | ENOTTY => Trouble::Unknown,
            _ => Trouble::Call(error),
        }
    }
}

/// The channel to the daemon of a scheme.
pub struct Channel {
    root: Fd,
    path: PathBuf,
}

impl Channel {
    /// Opens the channel of the scheme with this name, or with this path.
    ///
    /// # Errors
    ///
    /// Those variants of [`Trouble`] that an open can cause.
    pub fn open(point: &Path) -> Result<Self, Trouble> {
        // An absolute path takes the place of the first part.
        let path = Path::new("/scheme").join(point);
        let text = path.to_str().ok_or(Trouble::NoScheme)?;
        let flags = O_STAT as libc::c_int | O_DIRECTORY;
        let root = Fd::open(text, flags, 0).map_err(|error| Error::new(error.errno()))?;
        Ok(Self { root, path })
    }

    /// Returns the path of the scheme.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends a command with its arguments, and returns all pages of the answer.
    ///
    /// # Errors
    ///
    /// Each variant of [`Trouble`].
    pub fn ask(&self, command: Command, arguments: &[Fact]) -> Result<Vec<Fact>, Trouble> {
        let send = |frame: &mut [u8]| -> Result<(), Trouble> {
            let sent = self.root.call_rw(frame, CallFlags::empty(), &[CALL]);
            sent.map(drop).map_err(|error| Error::new(error.errno()).into())
        };
        ask(command, arguments, send).map_err(|refusal| match refusal {
            Refusal::Call(trouble) => trouble,
            Refusal::Malformed => Trouble::Malformed,
            Refusal::Failed { clause, .. } => Trouble::Failed(clause),
        })
    }
}
