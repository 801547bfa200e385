//! The command line of `overlayfs-fsck`.

use std::ffi::OsString;

use crate::options::{Error, Options, unknown};
use crate::usage::fsck::PROGRAM;

/// A command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Prints `--help`.
    Help,
    /// Prints the version.
    Version,
    /// Checks these layers, and makes the repairs if `repair`.
    Check {
        /// The layers.
        options: Options,
        /// Damage is repaired.
        repair: bool,
    },
}

impl Command {
    /// Parses a command line without its first word, the program.
    ///
    /// # Errors
    ///
    /// Each names the wrong or missing word.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        use lexopt::Arg::{Long, Short, Value};

        let mut options = Options::default();
        let (mut yes, mut no) = (false, false);
        let mut parser = lexopt::Parser::from_args(words);
        while let Some(word) = parser.next()? {
            match word {
                Short('h') | Long("help") => return Ok(Self::Help),
                Short('V') | Long("version") => return Ok(Self::Version),
                Short('y') => yes = true,
                Short('n') => no = true,
                Short('o') => options.add_list(&parser.value()?)?,
                Long("lower") => options.add_lower(parser.value()?)?,
                Long("upper") => options.set_upper(parser.value()?)?,
                Long("work") => options.set_work(parser.value()?)?,
                Long(other) => return Err(unknown("option", &format!("--{other}"), &PROGRAM.long_words())),
                Short(other) => return Err(Error::new(format!("There is no option -{other}."))),
                Value(word) => {
                    return Err(Error::new(format!(
                        "{} is no option: name layers with --lower, --upper and --work.",
                        word.display()
                    )));
                }
            }
        }
        if yes && no {
            return Err(Error::new("-y and -n are both given: leave one of them out."));
        }
        options.check()?;
        if options.upper.is_none() {
            return Err(Error::new("No upper directory is given: name the one to check with --upper."));
        }
        // `ro` would mount the upper layer as a lower one. The check still takes it as an upper
        // layer.
        options.read_only = false;
        Ok(Self::Check { options, repair: yes })
    }
}
