//! The start of the next daemon by the process `unmounter`, which has the rights of the start. It
//! kills that daemon if it is not wanted.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use overlayfs::layer::linux::OpenRoot;
use overlayfs::mount::Roots;
use overlayfs::options::Options;

use super::WORD;
use crate::line::{Line, Message};

/// The questions to that process.
const START: u8 = b's';
const STOP: u8 = b'k';
/// The first byte of its answers. A sentence follows a failure.
const DONE: u8 = 0;
const FAILED: u8 = 1;

/// The way to that process.
pub struct Starter(Line);

impl Starter {
    /// Talks to it over this line.
    pub fn new(line: Line) -> Self {
        Self(line)
    }

    /// Starts the next daemon. Returns the line to it.
    ///
    /// # Errors
    ///
    /// - A clause says why it cannot be started.
    pub fn start(&self) -> Result<Line, String> {
        let line = self.ask(START)?.descriptor.ok_or("the process for that gave no line")?;
        Ok(line.into())
    }

    /// Kills the daemon that was started last, and waits for its end.
    ///
    /// # Errors
    ///
    /// - A clause says what failed.
    pub fn stop(&self) -> Result<(), String> {
        self.ask(STOP).map(drop)
    }

    fn ask(&self, question: u8) -> Result<Message, String> {
        let asked = self.0.send(&[question], None).and_then(|()| self.0.receive());
        let answer = asked.map_err(|error| format!("the process for that does not answer: {error}"))?;
        match answer {
            Some(answer) if answer.bytes.first() == Some(&DONE) => Ok(answer),
            Some(answer) => Err(String::from_utf8_lossy(answer.bytes.get(1..).unwrap_or_default()).into_owned()),
            None => Err("the process for that has ended".to_owned()),
        }
    }

    /// The line, for the next daemon.
    pub fn line(&self) -> &Line {
        &self.0
    }
}

/// The program of the mount, its command line without the first word, and its layers.
pub struct Program {
    path: io::Result<PathBuf>,
    arguments: Vec<OsString>,
    layers: Identities,
}

/// Which directories the layers are, as this process found them before the mount. The daemon gives
/// the next one descriptors of them. If an attacker has taken the daemon over, it may give others,
/// which the next daemon would use with the rights of the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identities(Vec<Option<(u64, u64)>>);

impl Identities {
    /// Looks the layers up that options name.
    pub fn of(layers: &Options) -> Self {
        let of = |path: Option<&Path>| path.and_then(|path| identity(&path.metadata().ok()?));
        Self(Roots::paths(layers).into_iter().map(of).collect())
    }

    /// Reads the word of a command line.
    pub fn parse(word: &OsStr) -> Option<Self> {
        let one = |text: &str| match text {
            "-" => Some(None),
            text => {
                let (device, inode) = text.split_once('.')?;
                Some(Some((device.parse().ok()?, inode.parse().ok()?)))
            }
        };
        word.to_str()?.split(',').map(one).collect::<Option<_>>().map(Self)
    }

    fn word(&self) -> String {
        let one = |identity: &Option<(u64, u64)>| {
            identity.map_or_else(|| "-".to_owned(), |(device, inode)| format!("{device}.{inode}"))
        };
        self.0.iter().map(one).collect::<Vec<_>>().join(",")
    }

    /// Looks at these roots. None: one cannot be looked at.
    pub fn of_roots(roots: &Roots) -> Option<Self> {
        let of = |root: &Option<OpenRoot>| match root {
            None => Some(None),
            Some(root) => Some(Some(identity(&File::from(root.directory.try_clone().ok()?).metadata().ok()?)?)),
        };
        roots.all().iter().map(of).collect::<Option<_>>().map(Self)
    }

    /// Whether these roots are the layers.
    pub fn are(&self, roots: &Roots) -> bool {
        Self::of_roots(roots).is_some_and(|found| found == *self)
    }
}

/// Returns device and inode of a directory.
fn identity(found: &Metadata) -> Option<(u64, u64)> {
    found.is_dir().then(|| (found.dev(), found.ino()))
}

impl Program {
    /// Finds the program of this process. A new version has the same path.
    pub fn this(arguments: Vec<OsString>, layers: &Options) -> Self {
        Self { path: std::env::current_exe(), arguments, layers: Identities::of(layers) }
    }

    /// Starts the program as the next daemon. The error is a clause.
    fn start(&self) -> Result<(Child, Line), String> {
        let path = self.path.as_ref().map_err(|error| format!("the path of the program is unknown: {error}"))?;
        let failed = |error| format!("{} cannot be started: {error}", path.display());
        let (ours, theirs) = Line::pair().map_err(failed)?;
        let mut command = Command::new(path);
        command.arg(WORD).arg(self.layers.word()).args(&self.arguments).stdin(Stdio::from(OwnedFd::from(theirs)));
        Ok((command.spawn().map_err(failed)?, ours))
    }
}

/// The daemons that the process `unmounter` has started.
#[derive(Default)]
pub struct StartedDaemons(Mutex<Vec<Child>>);

impl StartedDaemons {
    /// Starts or kills a daemon at the request of the other process.
    ///
    /// # Errors
    ///
    /// - `UnexpectedEof`: that process has ended.
    pub fn answer(&self, line: &Line, program: &Program) -> io::Result<()> {
        let question = line.receive()?.ok_or(ErrorKind::UnexpectedEof)?;
        let mut started = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let done = match question.bytes.first() {
            Some(&START) => {
                // So that the system forgets those that have ended.
                started.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
                program.start().map(|(child, line)| {
                    started.push(child);
                    Some(line)
                })
            }
            // The last one, also if it has ended. The one before it serves.
            _ => stop(started.pop()).map(|()| None).map_err(|error| format!("it cannot be killed: {error}")),
        };
        match &done {
            Ok(Some(theirs)) => line.send(&[DONE], Some(theirs.as_fd())),
            Ok(None) => line.send(&[DONE], None),
            Err(clause) => line.send(&[&[FAILED], clause.as_bytes()].concat(), None),
        }
    }
}

fn stop(child: Option<Child>) -> io::Result<()> {
    let Some(mut child) = child else { return Ok(()) };
    child.kill()?;
    child.wait().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_names_the_layers() {
        let place = tempfile::tempdir().unwrap();
        let (lower, upper) = (place.path().join("lower"), place.path().join("upper"));
        std::fs::create_dir(&lower).unwrap();
        std::fs::create_dir(&upper).unwrap();
        let options = Options { lowers: vec![lower.clone()], upper: Some(upper), ..Options::default() };
        let layers = Identities::of(&options);
        assert_eq!(Identities::parse(OsStr::new(&layers.word())), Some(layers.clone()));
        for wrong in ["", "1", "1.x", "-,", "1.2.3"] {
            assert_eq!(Identities::parse(OsStr::new(wrong)), None, "{wrong}");
        }
        let roots = |options: &Options| Roots::of(&overlayfs::mount::Opened::new(options, true).unwrap()).unwrap();
        assert!(layers.are(&roots(&options)));
        // The lower layer in the place of the upper one.
        let exchanged = Options { lowers: options.upper.iter().cloned().collect(), upper: Some(lower), ..options };
        assert!(!layers.are(&roots(&exchanged)));
    }
}
