//! The command line of `overlayfs-fsck`.

use std::ffi::OsString;

use crate::options::{Error, Options, unknown};

/// What `--help` prints.
pub const HELP: &str = "\
overlayfs-fsck: looks for damage in the upper directory of an overlay, and repairs it

Usage: overlayfs-fsck --lower DIR [--lower DIR ...] --upper DIR [--work DIR] [-n | -y]
       overlayfs-fsck -o lowerdir=DIR[:DIR ...],upperdir=DIR[,workdir=DIR] [-n | -y]

Name the directories with which the overlay is mounted, in the same order: with other lower ones, what is needed
looks useless. If the lower ones are not those of the last mount, that is said, and nothing is repaired that
depends on them. Each finding is a line: what is wrong, and what can be done about it. No repair changes what the
overlay shows; what could not be repaired without that is left alone.

Options:
  --lower DIR      A directory that is only read. The first one given is the topmost.
  --upper DIR      The directory that is checked.
  --work DIR       Its work directory. Without it, the one inside the upper directory.
  -o LIST          The same as a list with commas. The other options of a mount have no effect.
  -n               Write nothing, only say what is wrong. So it is without -y.
  -y               Repair what can be repaired. The overlay must not be mounted.
  -h, --help       Print this.
  -V, --version    Print the version.

While the overlay is mounted, only its tree is checked, as it is just then; what is found may be a change that is
being made. Nothing can be mounted while it is checked.

The exit status is the sum of: 1 damage was repaired; 4 damage is left; 8 the check could not be done;
16 the command line is wrong. It is 0 if there is no damage.
";

const OPTIONS: [&str; 5] = ["--lower", "--upper", "--work", "--help", "--version"];

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
                Long(other) => return Err(unknown("option", &format!("--{other}"), &OPTIONS)),
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
