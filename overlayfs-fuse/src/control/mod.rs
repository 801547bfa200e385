//! The channel to a mount at work: what the daemon tells, and the commands that ask for it. See
//! [`overlayfs::control`] for the frame.
//!
//! | file | subject |
//! | --- | --- |
//! | `about` | what the daemon of a mount tells |
//! | `table` | the mounts of overlays in the tables of mounts |
//! | `snapshot` | the commands for snapshots |
//! | `client` | a question to a daemon, and its answer |

pub(crate) mod about;
mod client;
mod snapshot;
mod table;

pub use about::About;
pub use client::{Channel, Trouble};
pub use overlayfs::control::options::{Form, Request};
pub use table::Mounted;

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use overlayfs::control::fact::Fact;
use overlayfs::control::{Command, report};
use overlayfs::layer_tools::text::escaped;
use serde_json::{Map, Value};

/// The commands for a mount at work.
pub const COMMANDS: [&str; 7] = ["ls", "status", "sync", "restart", "snapshot", "rollback", "snapshots"];

/// How long a daemon may take to tell something.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time between two looks at a mount.
const PAUSE: Duration = Duration::from_secs(1);
/// How many daemons are asked at once.
const AT_ONCE: usize = 64;

/// Performs a command of the command line.
///
/// # Errors
///
/// - A sentence says what failed, and why.
pub fn run(request: &Request) -> Result<(), String> {
    let told =
        |done: Result<(), Trouble>, what, point| done.map_err(|trouble| Stopped::For(trouble.sentence(what, point)));
    let done = match request {
        Request::List { json } => list(*json),
        Request::Status { point, form, watch } => status(point, *form, *watch),
        Request::Sync { point } => told(sync(point), "synced", point),
        Request::Restart { point } => told(restart(point), "restarted", point),
        Request::Snapshot { point, name } => told(snapshot::freeze(point, name.as_deref()), "frozen", point),
        Request::RollBack { point } => told(snapshot::roll_back(point), "rolled back", point),
        Request::Snapshots { point } => told(snapshot::list(point), "asked for its snapshots", point),
    };
    match done {
        Err(Stopped::For(sentence)) => Err(sentence),
        Ok(()) | Err(Stopped::NoReader) => Ok(()),
    }
}

/// Why a command did not come to its end.
enum Stopped {
    /// The reader of the output has enough.
    NoReader,
    /// A sentence.
    For(String),
}

/// Completes all partial copies of a mount, and syncs its changes.
fn sync(point: &Path) -> Result<(), Trouble> {
    let channel = Channel::open(&Mounted::at(point)?)?;
    // The kernel holds written data back, which the daemon does not know yet.
    channel.write_back()?;
    channel.ask(Command::Sync, &[]).map(drop)
}

/// Lets the present version of the program go on with a mount.
fn restart(point: &Path) -> Result<(), Trouble> {
    Channel::open(&Mounted::at(point)?)?.ask(Command::Restart, &[]).map(drop)
}

/// Prints the overlays of all namespaces that this process may see.
fn list(json: bool) -> Result<(), Stopped> {
    let mounts =
        Mounted::everywhere().map_err(|error| Stopped::For(format!("The mounts cannot be listed: {error}.")))?;
    for some in mounts.chunks(AT_ONCE) {
        for (mounted, told) in some.iter().zip(tell(some)) {
            print(&if json { json_line(mounted, &told) } else { paragraph(mounted, &told) })?;
        }
    }
    Ok(())
}

/// Asks the daemons of these mounts all at once. So one that does not answer takes no time from the
/// others, and keeps no other mount in use.
fn tell(mounts: &[Mounted]) -> Vec<Result<Vec<Fact>, Trouble>> {
    // A channel opens while there is one thread.
    let channels: Vec<_> = mounts.iter().map(Channel::open).collect();
    let deadline = Instant::now() + PATIENCE;
    let told = |mut channel: Channel| {
        channel.wait_until(deadline);
        channel.ask(Command::Info, &[])
    };
    thread::scope(|scope| {
        let ask = |channel: io::Result<Channel>| {
            let channel = channel?;
            thread::Builder::new().spawn_scoped(scope, move || told(channel))
        };
        let asked: Vec<_> = channels.into_iter().map(ask).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        asked.into_iter().map(|thread| join(thread?)).collect()
    })
}

/// Returns one overlay as an object on a line.
fn json_line(mounted: &Mounted, told: &Result<Vec<Fact>, Trouble>) -> String {
    let mut object: Map<_, _> = told.as_ref().map(|facts| report::json(facts)).unwrap_or_default();
    let state = told.as_ref().map_or_else(Trouble::word, |_| "serving");
    object.insert("state".to_owned(), state.into());
    // The table of the kernel knows where it is; a daemon may say anything.
    object.insert("mount_point".to_owned(), mounted.point.to_string_lossy().into());
    object.insert("seen_by".to_owned(), mounted.seen_by.into());
    format!("{}\n", Value::from(object))
}

/// Returns one overlay as lines for people.
fn paragraph(mounted: &Mounted, told: &Result<Vec<Fact>, Trouble>) -> String {
    let elsewhere = mounted.seen_by.map_or(String::new(), |process| format!(" (in the namespace of {process})"));
    let head = format!("{}{elsewhere}\n", escaped(&mounted.point));
    match told {
        Ok(facts) => {
            let facts: Vec<_> = facts.iter().filter(|fact| fact.name != "mount_point").cloned().collect();
            head + &report::text_lines(&facts, "    ")
        }
        Err(trouble) => format!("{head}    no answer: {trouble}\n"),
    }
}

/// Prints what a daemon tells, once or every second until the mount ends.
fn status(point: &Path, form: Form, watch: bool) -> Result<(), Stopped> {
    let sentence = |trouble: Trouble| Stopped::For(trouble.sentence("looked at", point));
    let mounted = Mounted::at(point).map_err(sentence)?;
    let mut channel = Channel::open(&mounted).map_err(|error| sentence(error.into()))?;
    let clears = watch && form == Form::Text && io::stdout().is_terminal();
    let mut is_first = true;
    loop {
        channel.wait_until(Instant::now() + PATIENCE);
        let told = channel.ask(Command::Info, &[]).and_then(|mut facts| {
            facts.extend(channel.ask(Command::Status, &[])?);
            Ok(facts)
        });
        let facts = match told {
            Err(Trouble::Dead | Trouble::NoMount) if !is_first => return Ok(()),
            told => told.map_err(sentence)?,
        };
        let text = report::in_form(form, &facts, &mounted.point);
        // Moves to the corner and clears the rest.
        print(&if clears { format!("\x1b[H\x1b[2J{text}") } else { text })?;
        if !watch {
            return Ok(());
        }
        is_first = false;
        thread::sleep(PAUSE);
    }
}

/// Prints to standard output.
fn print(text: &str) -> Result<(), Stopped> {
    let mut output = io::stdout();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Stopped::NoReader,
        _ => Stopped::For(format!("The answer cannot be written: {error}.")),
    })
}
