//! The command line of `overlayfs-layer`: the subcommands, and the options that they share.
//!
//! A subcommand is one file of this folder, which parses its own options. It is listed in
//! `TOOLS`, and explained in [`crate::usage::layer`].

use std::ffi::OsString;

use super::{Tool, commit, convert, diff, discard, export, flatten, import, info, vacuum};
use crate::options::{Error, Options, unknown};
use crate::usage::layer::PROGRAM;

/// Parses the words behind the name of a subcommand.
type Parser = fn(&mut Words) -> Result<Box<dyn Tool>, Error>;

/// The subcommands.
const TOOLS: [(&str, Parser); 9] = [
    ("diff", diff::parse),
    ("commit", commit::parse),
    ("discard", discard::parse),
    ("flatten", flatten::parse),
    ("vacuum", vacuum::parse),
    ("export", export::parse),
    ("import", import::parse),
    ("info", info::parse),
    ("convert", convert::parse),
];

/// A command line.
pub enum Command {
    /// Prints `--help`.
    Help,
    /// Prints the version.
    Version,
    /// Runs a subcommand.
    Run {
        /// The subcommand with its options.
        tool: Box<dyn Tool>,
        /// Show no progress.
        quiet: bool,
    },
}

impl Command {
    /// Parses a command line without its first word, the program.
    ///
    /// # Errors
    ///
    /// Each names the wrong or missing word.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        let mut words = Words { parser: lexopt::Parser::from_args(words), quiet: false, asked: None };
        let name = match words.word()? {
            Some(Word::Value(name)) => name,
            Some(Word::Option(option)) if PROGRAM.names().any(|name| name == option) => {
                return Err(Error::new(format!("The option {option} comes behind a command.")));
            }
            Some(Word::Option(option)) => return Err(words.unknown(&option)),
            None => {
                return match words.asked {
                    Some(asked) => Ok(asked.command()),
                    None => Err(Error::new("No command is given.")),
                };
            }
        };
        let text = name.to_string_lossy();
        let names = TOOLS.map(|(name, _)| name);
        let Some((_, parse)) = TOOLS.iter().find(|(name, _)| *name == text) else {
            return Err(unknown("command", &text, &names));
        };
        let tool = parse(&mut words);
        match words.asked {
            Some(asked) => Ok(asked.command()),
            None => tool.map(|tool| Self::Run { tool, quiet: words.quiet }),
        }
    }
}

/// An option that takes the place of all others.
#[derive(Clone, Copy)]
enum Asked {
    Help,
    Version,
}

impl Asked {
    fn command(self) -> Command {
        match self {
            Asked::Help => Command::Help,
            Asked::Version => Command::Version,
        }
    }
}

/// A word of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// An option with its dashes: `--json`, `-0`.
    Option(String),
    /// Any other word.
    Value(OsString),
}

/// The words of a command line that are left to parse.
pub struct Words {
    parser: lexopt::Parser,
    quiet: bool,
    asked: Option<Asked>,
}

impl Words {
    /// Returns the next word that the subcommand must know. None at the end.
    ///
    /// # Errors
    ///
    /// - The value of the option before was not taken.
    pub fn word(&mut self) -> Result<Option<Word>, Error> {
        use lexopt::Arg::{Long, Short, Value};

        while self.asked.is_none() {
            return Ok(Some(match self.parser.next()? {
                None => break,
                Some(Value(word)) => Word::Value(word),
                Some(Short('h') | Long("help")) => {
                    self.asked = Some(Asked::Help);
                    continue;
                }
                Some(Short('V') | Long("version")) => {
                    self.asked = Some(Asked::Version);
                    continue;
                }
                Some(Short('q') | Long("quiet")) => {
                    self.quiet = true;
                    continue;
                }
                Some(Short(letter)) => Word::Option(format!("-{letter}")),
                Some(Long(name)) => Word::Option(format!("--{name}")),
            }));
        }
        Ok(None)
    }

    /// Returns the value of the option that came last.
    ///
    /// # Errors
    ///
    /// - It has no value.
    pub fn value(&mut self) -> Result<OsString, Error> {
        Ok(self.parser.value()?)
    }

    /// Makes the error for an option that the subcommand does not know.
    pub fn unknown(&self, option: &str) -> Error {
        match PROGRAM.names().any(|name| name == option) {
            true => Error::new(format!("The option {option} belongs to another command.")),
            false => unknown("option", option, &PROGRAM.long_words()),
        }
    }

    /// Takes a word that names layers, or returns the error for any other word.
    ///
    /// # Errors
    ///
    /// - The word is unknown, lacks a value, or names a directory again.
    pub fn take_layers(&mut self, word: &Word, layers: &mut Options) -> Result<(), Error> {
        match word {
            Word::Option(option) => match option.as_str() {
                "-o" => layers.add_list(&self.value()?),
                "--lower" => layers.add_lower(self.value()?),
                "--upper" => layers.set_upper(self.value()?),
                "--work" => layers.set_work(self.value()?),
                other => Err(self.unknown(other)),
            },
            Word::Value(word) => Err(Error::new(format!(
                "{} is no option: name layers with --lower, --upper and --work.",
                word.display()
            ))),
        }
    }
}

/// Checks that the layers of a tool for an upper layer are there. A list of mount options may have
/// `ro`, which means nothing here.
///
/// # Errors
///
/// - There is no lower or no upper directory.
pub fn check_upper(layers: &mut Options) -> Result<(), Error> {
    layers.check()?;
    layers.read_only = false;
    match layers.upper {
        Some(_) => Ok(()),
        None => Err(Error::new("No upper directory is given: name it with --upper.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, Error> {
        Command::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_table_lists_each_subcommand() {
        let listed: Vec<_> = PROGRAM.commands.iter().map(|(name, _)| *name).collect();
        assert_eq!(listed, TOOLS.map(|(name, _)| name));
    }

    #[test]
    fn help_and_version_work_with_and_without_a_subcommand() {
        for line in ["--help", "-h", "diff -h", "diff --lower /x --help --bad"] {
            assert!(matches!(parse(line), Ok(Command::Help)), "{line}");
        }
        assert!(matches!(parse("-V"), Ok(Command::Version)));
        assert!(matches!(parse("diff --version"), Ok(Command::Version)));
    }

    #[test]
    fn a_wrong_line_is_refused_with_a_sentence() {
        for (line, said) in [
            ("", "No command is given."),
            ("dif", "There is no command dif. Did you mean diff?"),
            ("--json diff", "The option --json comes behind a command."),
            ("diff --jso", "There is no option --jso. Did you mean --json?"),
            ("info --content", "The option --content belongs to another command."),
            ("diff --lower", "The option --lower needs a value."),
            ("diff --lower /l", "No upper directory is given: name it with --upper."),
            ("diff --upper /u", "No lower directory is given: an overlay needs at least one."),
            ("diff /u", "/u is no option: name layers with --lower, --upper and --work."),
        ] {
            let error = parse(line).err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(error, said, "{line}");
        }
    }
}
