//! The command line of `overlayfs-fuse run`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use overlayfs::layer_tools::choice::Choice;
use overlayfs::options::{Error, unknown};

use super::usage::OPTIONS;

/// A command and the overlay that it runs in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The directories that are overlaid. Empty: the whole system.
    pub lowers: Vec<PathBuf>,
    /// The place of the changes.
    pub upper: Upper,
    /// The objects that are shown as they are.
    pub binds: Vec<Bind>,
    /// Whether the command has a network of its own, with the loopback interface only.
    pub no_net: bool,
    /// Whether the command sees its user as root.
    pub root: bool,
    /// What happens to the changes. None: as [`Choice::Ask`].
    pub choice: Option<Choice>,
    /// The program and its arguments. Empty: only the choice is made.
    pub command: Vec<OsString>,
}

/// The place of the changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Upper {
    /// A new directory in the user's cache.
    #[default]
    New,
    /// A new directory among temporary files.
    Temporary,
    /// A directory of the user.
    At(PathBuf),
}

/// An object outside that the command reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// The object.
    pub source: PathBuf,
    /// The path where the command sees it.
    pub at: PathBuf,
    /// Whether the command can only read it.
    pub read_only: bool,
}

/// A command line.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// Show the options.
    Help,
    /// Run the command, or end the work of an earlier one.
    Run(Box<Run>),
}

/// Parses a command line without its first two words.
///
/// # Errors
///
/// - A sentence names the word that does not fit.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Asked, Error> {
    use lexopt::Arg::{Long, Short, Value};

    let mut run = Run::default();
    let mut parser = lexopt::Parser::from_args(words);
    while let Some(word) = parser.next()? {
        match word {
            Short('h') | Long("help") => return Ok(Asked::Help),
            Long("lower") => run.lowers.push(parser.value()?.into()),
            Long("upper") => run.set_upper(Upper::At(parser.value()?.into()))?,
            Long("tmp") => run.set_upper(Upper::Temporary)?,
            Long("bind") => run.binds.push(bind(&parser.value()?)?),
            Long("net") => run.no_net = false,
            Long("no-net") => run.no_net = true,
            Long("root") => run.root = true,
            Long("keep") => run.set_choice(Choice::Keep)?,
            Long("discard") => run.set_choice(Choice::Discard)?,
            Long("commit") => run.set_choice(Choice::Commit)?,
            Long("ask") => run.set_choice(Choice::Ask)?,
            Value(program) => {
                run.command = std::iter::once(program).chain(parser.raw_args()?).collect();
                break;
            }
            Short(other) => return Err(Error::new(format!("There is no option -{other}."))),
            Long(other) => return Err(unknown("option", &format!("--{other}"), &OPTIONS.long_words())),
        }
    }
    run.check()?;
    Ok(Asked::Run(Box::new(run)))
}

impl Run {
    fn set_upper(&mut self, upper: Upper) -> Result<(), Error> {
        match self.upper {
            Upper::New => self.upper = upper,
            _ => return Err(Error::new("One of --upper and --tmp can be given, and once.")),
        }
        Ok(())
    }

    fn set_choice(&mut self, choice: Choice) -> Result<(), Error> {
        match self.choice.replace(choice) {
            None => Ok(()),
            Some(_) => Err(Error::new("One of --keep, --discard, --commit and --ask can be given, and once.")),
        }
    }

    fn check(&self) -> Result<(), Error> {
        let ends_earlier = matches!(self.upper, Upper::At(_)) && self.choice.is_some();
        if self.command.is_empty() && !ends_earlier {
            return Err(Error::new(
                "The command is missing. Only with --upper and a choice, such as --commit, there need not be one.",
            ));
        }
        Ok(())
    }
}

/// Parses `SRC[:DST][:ro]`. A backslash stands before a colon in a path.
fn bind(word: &OsStr) -> Result<Bind, Error> {
    let wrong = || Error::new(format!("The bind {} is not of the form SRC[:DST][:ro].", word.display()));
    let mut parts = vec![Vec::new()];
    let mut bytes = word.as_bytes().iter();
    while let Some(byte) = bytes.next() {
        let last = parts.len() - 1;
        match byte {
            b'\\' => parts[last].push(*bytes.next().ok_or_else(wrong)?),
            b':' => parts.push(Vec::new()),
            byte => parts[last].push(*byte),
        }
    }
    let read_only = parts.len() > 1 && parts.last().is_some_and(|last| last == b"ro");
    parts.truncate(parts.len() - usize::from(read_only));
    let mut paths = parts.into_iter().map(|part| PathBuf::from(OsString::from_vec(part)));
    match (paths.next(), paths.next(), paths.next()) {
        (Some(source), at, None) if !source.as_os_str().is_empty() => {
            let at = at.unwrap_or_else(|| source.clone());
            if at.as_os_str().is_empty() { Err(wrong()) } else { Ok(Bind { source, at, read_only }) }
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> Run {
        match parse(words.iter().map(OsString::from)) {
            Ok(Asked::Run(run)) => *run,
            other => panic!("{words:?} gave {other:?}"),
        }
    }

    fn refused(words: &[&str]) -> String {
        match parse(words.iter().map(OsString::from)) {
            Err(error) => error.to_string(),
            other => panic!("{words:?} gave {other:?}"),
        }
    }

    #[test]
    fn the_words_of_the_command_are_not_options() {
        let plain = run(&["make", "--keep", "-j4"]);
        assert_eq!(plain.command, ["make", "--keep", "-j4"]);
        assert_eq!((plain.upper, plain.choice), (Upper::New, None));
        assert_eq!(run(&["--", "make", "--", "x"]).command, ["make", "--", "x"]);
        assert_eq!(run(&["--tmp", "--discard", "sh", "-c", "true"]).choice, Some(Choice::Discard));
    }

    #[test]
    fn binds_have_one_form() {
        let bound = |word| run(&["--bind", word, "true"]).binds.remove(0);
        let bind = |source: &str, at: &str, read_only| Bind { source: source.into(), at: at.into(), read_only };
        assert_eq!(bound("/a"), bind("/a", "/a", false));
        assert_eq!(bound("/a:ro"), bind("/a", "/a", true));
        assert_eq!(bound("/a:/b"), bind("/a", "/b", false));
        assert_eq!(bound("/a:/b:ro"), bind("/a", "/b", true));
        assert_eq!(bound(r"/a\:b:/c"), bind("/a:b", "/c", false));
        for wrong in ["", ":/b", "/a:", "/a:/b:/c", r"/a\"] {
            assert!(refused(&["--bind", wrong, "true"]).contains("SRC[:DST][:ro]"), "{wrong}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert!(refused(&["--keep", "--commit", "true"]).contains("--keep"));
        assert!(refused(&["--tmp", "--upper", "/u", "true"]).contains("--tmp"));
        assert!(refused(&["--discrad", "true"]).contains("--discard"));
        for words in [&[][..], &["--commit"], &["--upper", "/u"]] {
            assert!(refused(words).contains("The command is missing"), "{words:?}");
        }
        assert_eq!(run(&["--upper", "/u", "--commit"]).command, [""; 0]);
    }
}
