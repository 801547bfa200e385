//! The command line of `overlayfs-fsck`.

use std::ffi::OsString;

use crate::options::{Error, Options, unknown};
use crate::usage::fsck::PROGRAM;

/// A command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Help,
    Version,
    /// Checks these layers, and repairs what can be if so.
    Check {
        options: Options,
        repair: bool,
    },
}

impl Command {
    /// Parses a command line without its first word, the program.
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
                    return Err(Error::new(format!("{} is not expected: all layers are options.", word.display())));
                }
            }
        }
        if yes && no {
            return Err(Error::new("-y and -n are both given: either damage is repaired or not."));
        }
        options.check()?;
        if options.upper.is_none() {
            return Err(Error::new("No upper directory is given: it is what is checked."));
        }
        // The upper layer is checked as one also if it was to be mounted as a lower one.
        options.read_only = false;
        Ok(Self::Check { options, repair: yes })
    }
}
