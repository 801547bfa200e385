//! `overlayfs-fuse run`: runs a command in an overlay of the system, without root.
//!
//! | file | subject |
//! | --- | --- |
//! | `options`, `usage` | the command line, and its explanation |
//! | `store` | the directory of the changes |
//! | `plan` | what is overlaid, and what can only be read |
//! | `namespaces` | the namespaces of the command, and the ids in them |
//! | `serve` | the process that serves the overlays |
//! | `room`, `calls` | the tree that the command sees |
//! | `init` | process 1: starts the command, and collects processes |
//! | `rights` | the rights that the command does not have |
//! | `outside` | the process of the caller meanwhile: signals, the terminal |
//! | `ending`, `commit`, `unfinished` | the summary, and what happens to the changes |
//! | `signals` | signals as data |
//!
//! # The processes
//! ```text
//! caller ── run ──┬── server          outside: serves the overlays, with the rights of the caller
//!                 └── process 1       in the namespaces: builds the room, then collects processes
//!                       └── command   in the namespaces, without capabilities
//! ```
//! The process `run` stays in the caller's process group, and the command too. So the terminal
//! sends its signals to both, and the command has the terminal itself. If `run` is killed, the
//! kernel kills process 1, and with it every process of its namespace. The mounts are only there.
//! So they are gone then, and the server ends.
//!
//! # Why nothing outside changes
//! All files that the command can name are in the room. There a write goes to the upper layer, or
//! fails. The only exceptions are the binds, and the files that standard streams write to. Its
//! other descriptors are closed (`room`, `rights`). A file of the overlay is not the object of
//! the lower layer, so its sockets, FIFOs and devices lead nowhere.

mod calls;
mod commit;
mod ending;
mod init;
mod namespaces;
pub mod options;
mod outside;
mod plan;
mod rights;
mod room;
mod serve;
mod signals;
mod store;
mod unfinished;
pub mod usage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use overlayfs::layer_tools::choice::Choice;
use overlayfs::process::Side;
use rustix::process::Pid;

use self::init::Start;
use self::namespaces::Ids;
use self::options::{Bind, Run, Upper};
use self::plan::Place;
use self::room::Room;
use self::serve::{Server, Tree};
use self::store::Store;
use crate::line::Line;
use crate::logger;
use crate::options::Verbosity;

/// The exit status if the run itself failed, as of env(1).
const FAILED: u8 = 125;
/// The exit status if the command cannot be executed.
const CANNOT_RUN: u8 = 126;
/// The exit status if there is no such command.
const NOT_FOUND: u8 = 127;

/// Tells the user a sentence.
fn say(sentence: &str) {
    eprintln!("overlayfs-fuse run: {sentence}");
}

/// Runs a command. Returns its exit status, 128 and the number of the signal that killed it, or 125
/// if the run itself failed.
///
/// # Safety
///
/// The process must have one thread.
pub unsafe fn run(run: &Run) -> ExitCode {
    logger::start(Verbosity::Quiet);
    // SAFETY: as the caller promises.
    let done = unsafe { run_and_end(run) };
    ExitCode::from(done.unwrap_or_else(|sentence| {
        say(&sentence);
        FAILED
    }))
}

/// Runs the command, and makes the choice.
///
/// # Safety
///
/// As for [`run`].
unsafe fn run_and_end(run: &Run) -> Result<u8, String> {
    let choice = run.choice.unwrap_or(Choice::Ask);
    let ids = Ids::new(run.root);
    if run.command.is_empty() {
        if let Upper::At(dir) = &run.upper
            && !dir.is_dir()
        {
            return Err(format!("{} is not a directory of an earlier run.", dir.display()));
        }
        return ending::end(&Store::open(&run.upper)?, choice, ids.all).map(|()| 0);
    }
    let store = Store::open(&run.upper)?;
    // SAFETY: as the caller promises.
    match unsafe { run_in(run, &store, &ids) } {
        Ok(Became::Ended(code)) => ending::end(&store, choice, ids.all).map(|()| code),
        Ok(Became::Broken) => {
            say("Not all changes could be written. Those that were are kept.");
            ending::end(&store, Choice::Keep, ids.all).map(|()| FAILED)
        }
        Ok(Became::Nothing(code)) => {
            store.remove_unused();
            Ok(code)
        }
        Err(sentence) => {
            store.remove_unused();
            Err(sentence)
        }
    }
}

/// What became of a command.
enum Became {
    /// It ended with this exit status, and all changes are written.
    Ended(u8),
    /// The server ended before, or could not write all changes.
    Broken,
    /// It was not started, and the reason is said. The exit status tells that.
    Nothing(u8),
}

/// Runs the command in a room.
///
/// # Safety
///
/// As for [`run`].
unsafe fn run_in(run: &Run, store: &Store, ids: &Ids) -> Result<Became, String> {
    let here = std::env::current_dir()
        .map_err(|error| format!("The working directory cannot be used: {error}. Change to another one."))?;
    let lowers = lowers(&run.lowers)?;
    let binds = binds(&run.binds)?;
    let mut places = plan::places(&lowers).map_err(|error| format!("The mounts cannot be read: {error}."))?;
    // SAFETY: as the caller promises.
    let server = unsafe { serve(&mut places, &lowers, store, ids)? };
    let (ours, theirs) = Line::pair().map_err(|error| format!("The command cannot be started: {error}."))?;
    let caller = outside::Caller::new()?;
    // SAFETY: as the caller promises.
    let entered = match unsafe { namespaces::enter(run.no_net) } {
        Ok(entered) => entered,
        Err(error) => {
            server.end();
            return Err(no_namespace(error));
        }
    };
    let pid = match entered {
        Side::Child => {
            drop(ours);
            let room =
                Room { at: &store.room(), places: &places, binds: &binds, of_root: ids.all, server: &server.line };
            let start = Start { words: &run.command, blocked: caller.blocked_before() };
            // SAFETY: as the caller promises.
            let code = unsafe { inside(&start, run.no_net, &room, &theirs, &here) };
            // SAFETY: takes a number and does not return. The parent's work at its end is not this
            // child's.
            unsafe { libc::_exit(i32::from(code)) }
        }
        Side::Parent(pid) => Pid::from_raw(pid).ok_or("The command has no number.")?,
    };
    drop(theirs);
    if let Err(error) = ids.map(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        server.end();
        return Err(format!("The ids of the command cannot be mapped: {error}."));
    }
    let Server { pid: server, line, .. } = server;
    caller.wait(pid, &ours, server, line)
}

/// Makes the namespaces' first process what it is for. Returns the exit status of the command.
///
/// # Safety
///
/// As for [`run`].
unsafe fn inside(start: &Start<'_>, no_net: bool, room: &Room<'_>, outside: &Line, here: &Path) -> u8 {
    let entered = || {
        init::follow_outside(outside)?;
        let input = room::protect_input()?;
        let roots = room.build()?;
        room.enter()?;
        if no_net {
            calls::start_loopback().map_err(|error| format!("The loopback interface cannot be started: {error}."))?;
        }
        std::env::set_current_dir(here).map_err(|error| {
            format!("The working directory {} cannot be used in the overlay: {error}.", here.display())
        })?;
        Ok((roots, input))
    };
    match entered() {
        // SAFETY: as the caller promises.
        Ok((roots, input)) => unsafe { init::run(start, outside, &roots, input.as_ref()) },
        Err(sentence) => {
            let sentence: String = sentence;
            say(&sentence);
            FAILED
        }
    }
}

/// Starts the server of the overlaid places. Other places than those that the user named become
/// read-only if they cannot be overlaid.
///
/// # Safety
///
/// As for [`run`].
unsafe fn serve(places: &mut [Place], lowers: &[PathBuf], store: &Store, ids: &Ids) -> Result<Server, String> {
    let mut trees = Vec::new();
    for place in places.iter_mut().filter(|place| place.overlaid) {
        match store.part(&place.path) {
            Ok(part) => trees.push(Tree { lower: part.lower, upper: part.upper, options: ids.mount_options() }),
            Err(error) => {
                let sentence = format!("{} cannot be overlaid: {error}.", place.path.display());
                protect(place, lowers, sentence)?;
            }
        }
    }
    // SAFETY: as the caller promises.
    let server = unsafe { serve::start(&trees)? };
    for (tree, stacked) in trees.iter().zip(&server.stacked) {
        let place = places.iter_mut().find(|place| place.path == tree.lower);
        if let (Some(place), Err(sentence)) = (place, stacked) {
            protect(place, lowers, sentence.clone())?;
            store.remove_part(&tree.upper);
        }
    }
    Ok(server)
}

/// Makes a place read-only for a reason, unless the user named it.
fn protect(place: &mut Place, lowers: &[PathBuf], sentence: String) -> Result<(), String> {
    if lowers.contains(&place.path) {
        return Err(sentence);
    }
    place.overlaid = false;
    say(&format!("{} can only be read. {sentence}", place.path.display()));
    Ok(())
}

/// Returns the overlaid directories: absolute, and without symlinks.
fn lowers(named: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let (mut lowers, all) = (Vec::new(), [PathBuf::from("/")]);
    for lower in if named.is_empty() { &all } else { named } {
        let failed = |error| format!("The directory {} cannot be overlaid: {error}.", lower.display());
        let real = lower.canonicalize().map_err(failed)?;
        if !real.is_dir() {
            return Err(failed(std::io::ErrorKind::NotADirectory.into()));
        }
        if plan::OWN.iter().any(|own| real.starts_with(own)) {
            return Err(format!("{} cannot be overlaid: the command has one of its own.", lower.display()));
        }
        lowers.push(real);
    }
    lowers.sort();
    lowers.dedup();
    Ok(lowers)
}

/// Returns the binds with absolute paths without symlinks.
fn binds(named: &[Bind]) -> Result<Vec<Bind>, String> {
    let mut binds = Vec::new();
    for Bind { source, at, read_only } in named {
        let failed = |error| format!("{} cannot be bound: {error}.", source.display());
        let real = source.canonicalize().map_err(failed)?;
        let at = match at == source {
            true => real.clone(),
            false => std::path::absolute(at).map_err(failed)?,
        };
        binds.push(Bind { source: real, at, read_only: *read_only });
    }
    Ok(binds)
}

/// Explains why the system refused the namespaces.
fn no_namespace(error: std::io::Error) -> String {
    let remedy = match error.raw_os_error() {
        Some(libc::ENOSPC) => ": the limit user.max_user_namespaces is reached",
        Some(libc::EPERM) => ": the system permits users none, as with kernel.unprivileged_userns_clone=0",
        Some(libc::ENOSYS) => ": Linux 5.12 is needed",
        _ => "",
    };
    format!("No namespaces can be made for the command{remedy} ({error}).")
}
