//! The commands of the program `overlayfs` for an overlay at work, and `run`.
//!
//! | file | subject |
//! | --- | --- |
//! | `channel` | a question to a daemon, and its answer |
//! | `memory` | the memory of a process |
//! | `run` | a program in an overlay of the system |
//! | `namespace` | a namespace whose `/` is an overlay |

mod channel;
mod memory;
mod namespace;
pub mod run;

use std::ffi::OsString;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

pub use self::channel::{Channel, Trouble};
use self::run::{Asked, Run};

use crate::control::fact::{Fact, Value};
use crate::control::options::{Form, Request};
use crate::control::{Command, report, snapshots};
use crate::options;

/// The commands for an overlay at work.
pub const COMMANDS: [&str; 5] = ["status", "sync", "snapshot", "rollback", "snapshots"];

/// A command line of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Of the daemon.
    Daemon(options::Command),
    /// A command for an overlay at work.
    Control(Request),
    /// A program to run in an overlay.
    Run(Asked),
}

impl Line {
    /// Parses a command line without its first word, the program. Only the first word can be a
    /// command: the name of a scheme such as `status` comes behind an option.
    ///
    /// # Errors
    ///
    /// Each names the wrong or missing word.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, options::Error> {
        let words: Vec<_> = words.into_iter().collect();
        if let Some(request) = Request::parse(&words, &COMMANDS, "name of the scheme") {
            return request.map(Line::Control);
        }
        match words.split_first() {
            Some((first, rest)) if first == "run" => Run::parse(rest.iter().cloned()).map(Line::Run),
            _ => options::Command::parse(words).map(Line::Daemon),
        }
    }
}

/// The time between two looks at an overlay.
const PAUSE: Duration = Duration::from_secs(1);

/// Performs a command, and prints the answer. The error is a sentence.
///
/// # Errors
///
/// The sentence says what failed, and why.
pub fn perform(request: &Request) -> Result<(), String> {
    let told = |answer: Result<String, Trouble>, done, point: &Path| {
        print(&answer.map_err(|trouble| trouble.sentence(done, point))?)
    };
    match request {
        // `COMMANDS` leaves them out.
        Request::List { .. } | Request::Restart { .. } => Err("This command is one of overlayfs-fuse.".to_owned()),
        Request::Status { point, form, watch } => status(point, *form, *watch),
        Request::Sync { point } => told(ask(point, Command::Sync, &[]).map(|_| String::new()), "synced", point),
        Request::Snapshot { point, name } => {
            let arguments: Vec<_> = name.iter().map(|name| Fact::text("name", name.as_bytes())).collect();
            told(ask(point, Command::Snapshot, &arguments).and_then(name_of), "frozen", point)
        }
        Request::RollBack { point } => told(ask(point, Command::RollBack, &[]).and_then(name_of), "rolled back", point),
        Request::Snapshots { point } => {
            let listed = ask(point, Command::Snapshots, &[]).map(|facts| snapshots::lines(&facts));
            told(listed, "asked for its snapshots", point)
        }
    }
}

fn ask(point: &Path, command: Command, arguments: &[Fact]) -> Result<Vec<Fact>, Trouble> {
    Channel::open(point)?.ask(command, arguments)
}

fn name_of(answer: Vec<Fact>) -> Result<String, Trouble> {
    snapshots::name_of(&answer).map(|name| format!("{name}\n")).ok_or(Trouble::Malformed)
}

/// Prints what a daemon tells, once or every second until the daemon ends.
fn status(point: &Path, form: Form, watch: bool) -> Result<(), String> {
    let sentence = |trouble: Trouble| trouble.sentence("looked at", point);
    let channel = Channel::open(point).map_err(sentence)?;
    let clears = watch && form == Form::Text && io::stdout().is_terminal();
    let mut is_first = true;
    loop {
        let facts = match facts(&channel) {
            Err(Trouble::NoScheme) if !is_first => return Ok(()),
            facts => facts.map_err(sentence)?,
        };
        let text = report::in_form(form, &facts, channel.path());
        // Moves to the corner and clears the rest.
        print(&if clears { format!("\x1b[H\x1b[2J{text}") } else { text })?;
        if !watch {
            return Ok(());
        }
        is_first = false;
        thread::sleep(PAUSE);
    }
}

/// Returns what a daemon tells, and what the system tells about its process.
fn facts(channel: &Channel) -> Result<Vec<Fact>, Trouble> {
    let mut facts = channel.ask(Command::Info, &[])?;
    let pid = facts.iter().find(|fact| fact.name == "pid").map(|fact| &fact.value);
    if let Some(Value::Numbers(numbers)) = pid
        && let Some(memory) = numbers.first().and_then(|pid| memory::of(*pid))
    {
        facts.push(Fact::number("memory", memory));
    }
    facts.extend(channel.ask(Command::Status, &[])?);
    Ok(facts)
}

/// Prints to standard output. A reader that has enough ends the program.
fn print(text: &str) -> Result<(), String> {
    let mut output = io::stdout();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|error| format!("The answer cannot be written: {error}.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::overlayfs::PROGRAM;

    fn parse(words: &[&str]) -> Result<Line, String> {
        Line::parse(words.iter().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn only_the_first_word_is_a_command() {
        assert_eq!(parse(&["sync", "x"]), Ok(Line::Control(Request::Sync { point: "x".into() })));
        assert_eq!(parse(&["sync"]), Err("The name of the scheme is missing.".to_owned()));
        for daemon in [&["--lower", "/a", "sync"][..], &["ls", "--lower", "/a"], &["--lower=/a", "run"]] {
            assert!(matches!(parse(daemon), Ok(Line::Daemon(_))), "{daemon:?}");
        }
        assert!(matches!(parse(&["run", "x", "--help"]), Ok(Line::Run(Asked::Run(_)))));
    }

    #[test]
    fn every_command_is_explained_with_its_options() {
        let commands: Vec<_> = PROGRAM.commands.iter().map(|(name, _)| *name).filter(|name| *name != "run").collect();
        assert_eq!(commands, COMMANDS);
        for name in COMMANDS {
            let title = format!("Options of {name}");
            let group = PROGRAM.groups.iter().find(|group| group.title == title);
            let names: Vec<_> = group.iter().flat_map(|group| group.names()).collect();
            assert_eq!(names, Request::options(name), "{name}");
        }
    }

    #[test]
    fn every_word_that_is_explained_is_an_option() {
        for group in PROGRAM.groups {
            let command = PROGRAM.commands.iter().find(|(name, _)| group.title == format!("Options of {name}"));
            let command: Vec<_> = command.iter().map(|(name, _)| *name).collect();
            for name in group.names().filter(|name| name.starts_with('-')) {
                let said = parse(&[&command[..], &[name]].concat()).err().unwrap_or_default();
                assert!(!said.starts_with("There is no option"), "{said}");
            }
        }
    }
}
