//! The command lines of the commands for an overlay at work. A program takes those that its system
//! has.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::options::{Error, unknown};

/// A command of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Lists all overlays.
    List {
        /// As JSON.
        json: bool,
    },
    /// Tells what the daemon of an overlay knows.
    Status {
        /// The overlay: a mount point, or the name of a scheme.
        point: PathBuf,
        /// How.
        form: Form,
        /// Again and again.
        watch: bool,
    },
    /// Completes partial copies, and syncs all changes.
    Sync {
        /// As for `Status`.
        point: PathBuf,
    },
    /// Lets the present version of the program go on with a mount.
    Restart {
        /// As for `Status`.
        point: PathBuf,
    },
    /// Freezes the upper layer, and goes on in a new one.
    Snapshot {
        /// As for `Status`.
        point: PathBuf,
        /// The name of the snapshot. None: its number.
        name: Option<String>,
    },
    /// Shows the last snapshot again.
    RollBack {
        /// As for `Status`.
        point: PathBuf,
    },
    /// Lists the snapshots.
    Snapshots {
        /// As for `Status`.
        point: PathBuf,
    },
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// For people.
    #[default]
    Text,
    /// An object on a line.
    Json,
    /// The text format of Prometheus.
    Metrics,
}

/// A command: its name, its options without and with a value, and the parser of its words.
struct Command {
    name: &'static str,
    options: &'static [&'static str],
    valued: &'static [&'static str],
    make: fn(Words) -> Result<Request, Error>,
}

/// The commands. The table `usage` of each program explains those that it has.
const COMMANDS: [Command; 7] = [
    Command {
        name: "ls",
        options: &["--json"],
        valued: &[],
        make: |words| words.without_point().map(|words| Request::List { json: words.has("--json") }),
    },
    Command {
        name: "status",
        options: &["--json", "--metrics", "--watch"],
        valued: &[],
        make: |words| {
            let form = match (words.has("--json"), words.has("--metrics")) {
                (true, true) => return Err(Error::new("Only one of --json and --metrics can be given.")),
                (true, false) => Form::Json,
                (false, true) => Form::Metrics,
                (false, false) => Form::Text,
            };
            let watch = words.has("--watch");
            Ok(Request::Status { point: words.point()?, form, watch })
        },
    },
    Command { name: "sync", options: &[], valued: &[], make: |words| Ok(Request::Sync { point: words.point()? }) },
    Command {
        name: "restart",
        options: &[],
        valued: &[],
        make: |words| Ok(Request::Restart { point: words.point()? }),
    },
    Command {
        name: "snapshot",
        options: &[],
        valued: &["--name"],
        make: |words| Ok(Request::Snapshot { name: words.text("--name")?, point: words.point()? }),
    },
    Command {
        name: "rollback",
        options: &[],
        valued: &[],
        make: |words| Ok(Request::RollBack { point: words.point()? }),
    },
    Command {
        name: "snapshots",
        options: &[],
        valued: &[],
        make: |words| Ok(Request::Snapshots { point: words.point()? }),
    },
];

impl Request {
    /// Parses a command line without its first word, the program, which has the commands of
    /// `names`. `point` is the noun for the place of an overlay. None: the line names no command,
    /// so it is that of a mount.
    ///
    /// # Errors
    ///
    /// - A sentence names the word that does not fit.
    pub fn parse(words: &[OsString], names: &[&str], point: &'static str) -> Option<Result<Self, Error>> {
        let (name, rest) = words.split_first()?;
        let command = COMMANDS.iter().find(|command| name == command.name && names.contains(&command.name))?;
        Some(Words::parse(rest, command, point).and_then(command.make))
    }

    /// Returns the options of a command, in the order of the text for users.
    pub fn options(name: &str) -> Vec<&'static str> {
        let command = COMMANDS.iter().find(|command| command.name == name);
        command.map_or(Vec::new(), |command| [command.options, command.valued].concat())
    }
}

/// The words of a command.
struct Words {
    /// The noun for the place of an overlay.
    point: &'static str,
    options: Vec<&'static str>,
    values: Vec<(&'static str, OsString)>,
    places: Vec<OsString>,
}

impl Words {
    fn parse(words: &[OsString], command: &Command, point: &'static str) -> Result<Self, Error> {
        use lexopt::Arg::{Long, Short, Value};

        let mut parsed = Words { point, options: Vec::new(), values: Vec::new(), places: Vec::new() };
        let mut parser = lexopt::Parser::from_args(words);
        while let Some(word) = parser.next()? {
            let name = match word {
                Value(word) => {
                    parsed.places.push(word);
                    continue;
                }
                Long(name) => format!("--{name}"),
                Short(name) => format!("-{name}"),
            };
            let known = |options: &'static [&'static str]| options.iter().find(|option| **option == name);
            match (known(command.options), known(command.valued)) {
                (Some(option), _) => parsed.options.push(option),
                (None, Some(option)) => parsed.values.push((option, parser.value()?)),
                (None, None) => {
                    let all = [command.options, command.valued].concat();
                    return Err(unknown(&format!("option of {}", command.name), &name, &all));
                }
            }
        }
        Ok(parsed)
    }

    fn has(&self, option: &str) -> bool {
        self.options.contains(&option)
    }

    /// Returns the last value of an option.
    fn text(&self, option: &str) -> Result<Option<String>, Error> {
        let value = self.values.iter().rfind(|(name, _)| *name == option);
        let text = value.map(|(_, value)| value.to_str().ok_or(value)).transpose();
        let text = text.map_err(|value| Error::new(format!("{} is not UTF-8.", value.display())))?;
        Ok(text.map(str::to_owned))
    }

    /// Takes the only place.
    fn point(mut self) -> Result<PathBuf, Error> {
        match (self.places.pop(), self.places.pop()) {
            (Some(point), None) if !point.is_empty() => Ok(point.into()),
            (Some(more), Some(_)) => Err(too_many(&more)),
            _ => Err(Error::new(format!("The {} is missing.", self.point))),
        }
    }

    fn without_point(self) -> Result<Self, Error> {
        match self.places.first() {
            None => Ok(self),
            Some(more) => Err(too_many(more)),
        }
    }
}

fn too_many(word: &OsString) -> Error {
    Error::new(format!("The command line has a word too many, {}.", word.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Option<Result<Request, String>> {
        let words: Vec<_> = words.iter().map(OsString::from).collect();
        Request::parse(&words, &["ls", "status", "sync", "snapshot"], "mount point")
            .map(|parsed| parsed.map_err(|error| error.to_string()))
    }

    #[test]
    fn only_the_first_word_is_a_command() {
        assert_eq!(parse(&["sync", "/m"]), Some(Ok(Request::Sync { point: "/m".into() })));
        for mount in [
            &["./sync"][..],
            &["-o", "lowerdir=/l", "sync"],
            &["--", "sync", "/m"],
            &["Sync", "/m"],
            &["rollback", "/m"],
            &[],
        ] {
            assert_eq!(parse(mount), None, "{mount:?}");
        }
    }

    #[test]
    fn options_choose_the_form() {
        let status = |form, watch| Some(Ok(Request::Status { point: "/m".into(), form, watch }));
        assert_eq!(parse(&["status", "/m"]), status(Form::Text, false));
        assert_eq!(parse(&["status", "/m", "--json", "--watch"]), status(Form::Json, true));
        assert_eq!(parse(&["status", "--metrics", "/m"]), status(Form::Metrics, false));
        assert_eq!(parse(&["ls"]), Some(Ok(Request::List { json: false })));
        assert_eq!(parse(&["ls", "--json"]), Some(Ok(Request::List { json: true })));
    }

    #[test]
    fn options_may_have_a_value() {
        let snapshot =
            |name: Option<&str>| Some(Ok(Request::Snapshot { point: "/m".into(), name: name.map(str::to_owned) }));
        assert_eq!(parse(&["snapshot", "/m"]), snapshot(None));
        assert_eq!(parse(&["snapshot", "--name", "a b", "/m"]), snapshot(Some("a b")));
        assert_eq!(parse(&["snapshot", "/m", "--name=x"]), snapshot(Some("x")));
        assert_eq!(parse(&["snapshot", "/m", "--name"]), Some(Err("The option --name needs a value.".to_owned())));
    }

    #[test]
    fn refusals_are_sentences() {
        let refused = |words: &[&str]| parse(words).unwrap().unwrap_err();
        assert_eq!(refused(&["sync"]), "The mount point is missing.");
        assert_eq!(refused(&["sync", ""]), "The mount point is missing.");
        assert_eq!(refused(&["sync", "/a", "/b"]), "The command line has a word too many, /b.");
        assert_eq!(refused(&["ls", "/a"]), "The command line has a word too many, /a.");
        assert_eq!(refused(&["status", "--jsn", "/a"]), "There is no option of status --jsn. Did you mean --json?");
        assert_eq!(refused(&["sync", "-o", "ro", "/a"]), "There is no option of sync -o.");
        assert_eq!(refused(&["status", "--json", "--metrics", "/a"]), "Only one of --json and --metrics can be given.");
    }
}
