//! The process that serves the overlays of a run, outside of the namespaces of the command.
//!
//! It has the rights of the caller. The command reaches it only through requests to the mounts. It
//! ends when all mounts are gone, after it has completed and synced the changes.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use overlayfs::process::{Side, fork};
use rustix::process::Pid;

use crate::inherited;
use crate::library::{Error, Overlay, Started, Step};
use crate::line::Line;

/// An overlay of a run.
#[derive(Clone, Debug)]
pub struct Tree {
    /// The overlaid directory.
    pub lower: PathBuf,
    /// The part of the changes for it.
    pub upper: PathBuf,
    /// The mount options, about owners.
    pub options: String,
}

/// The server as the other processes know it.
pub struct Server {
    /// Its number.
    pub pid: Pid,
    /// The line to it.
    pub line: Line,
    /// For each tree: nothing, or why it cannot be overlaid.
    pub stacked: Vec<Result<(), String>>,
}

/// Starts the server, which stacks the layers of these trees.
///
/// # Errors
///
/// - A sentence says why it cannot start.
///
/// # Safety
///
/// The process must have one thread.
pub unsafe fn start(trees: &[Tree]) -> Result<Server, String> {
    let failed = |error: io::Error| format!("The process that serves the overlay cannot be started: {error}.");
    let (ours, theirs) = Line::pair().map_err(failed)?;
    // SAFETY: as the caller promises.
    let pid = match unsafe { fork() }.map_err(failed)? {
        Side::Child => {
            drop(ours);
            let code = i32::from(!serve(trees, &theirs));
            // SAFETY: takes a number and does not return. The parent's work at its end is not this
            // child's.
            unsafe { libc::_exit(code) }
        }
        Side::Parent(pid) => pid,
    };
    drop(theirs);
    let ended = || "The process that serves the overlay has ended.".to_owned();
    let mut stacked = Vec::new();
    for _ in trees {
        let message = ours.receive().map_err(failed)?.ok_or_else(ended)?;
        stacked.push(result_of(&message.bytes));
    }
    Ok(Server { pid: Pid::from_raw(pid).ok_or_else(ended)?, line: ours, stacked })
}

impl Server {
    /// Ends the server before a mount, and waits for it.
    pub fn end(self) {
        let Server { pid, line, .. } = self;
        drop(line);
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }
}

/// A message that something is done, or the sentence that says why not.
fn message_of(result: Result<(), String>) -> Vec<u8> {
    result.map_or_else(String::into_bytes, |()| vec![0])
}

/// Reads a message of [`message_of`].
pub fn result_of(bytes: &[u8]) -> Result<(), String> {
    match bytes {
        [0] => Ok(()),
        sentence => Err(String::from_utf8_lossy(sentence).into_owned()),
    }
}

/// A tree whose layers are stacked.
struct Waiting {
    /// Takes the device of the mount.
    device: Sender<OwnedFd>,
    started: Started,
}

/// Serves until all mounts are gone. Returns whether all changes are complete and synced.
fn serve(trees: &[Tree], line: &Line) -> bool {
    // SAFETY: the call touches no memory. It fails only for a leader of a process group, which a
    // child is not.
    unsafe { libc::setsid() };
    inherited::raise_limits();
    leave_streams();
    let mut waiting = Vec::new();
    for tree in trees {
        let stacked = stack(tree);
        let said = stacked.as_ref().map(|_| ()).map_err(String::clone);
        waiting.push(stacked.ok());
        if line.send(&message_of(said), None).is_err() {
            return true;
        }
    }
    let mut served = Vec::new();
    // The other end is closed when all are mounted, or when none will be.
    while let Ok(Some(message)) = line.receive() {
        let index = message.bytes.first().map_or(0, |index| usize::from(*index));
        let (Some(device), Some(tree)) = (message.descriptor, waiting.get_mut(index).and_then(Option::take)) else {
            continue;
        };
        let began = begin(tree, device).map(|keeper| served.push(keeper));
        if line.send(&message_of(began), None).is_err() {
            break;
        }
    }
    drop(waiting);
    let ended = served.into_iter().map(join).fold(Ok(()), Result::and);
    ended.inspect_err(|sentence| eprintln!("overlayfs-fuse run: {sentence}")).is_ok()
}

/// Leaves the streams of the command, except for messages. Without the null device they stay open
/// until the end.
fn leave_streams() {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// Stacks the layers of a tree.
fn stack(tree: &Tree) -> Result<Waiting, String> {
    let (device, devices) = mpsc::channel();
    let (is_stacked, stacked) = mpsc::channel();
    let wait = move |_: &crate::mount::Options| {
        // The other end waits for it.
        let _ = is_stacked.send(());
        devices.recv().map_err(|_| io::Error::other("it is not wanted"))
    };
    let builder = Overlay::builder().lower(&tree.lower).upper(&tree.upper).option(&tree.options);
    let started = builder.start(tree.lower.clone(), wait).map_err(|error| error.to_string())?;
    match stacked.recv() {
        Ok(()) => Ok(Waiting { device, started }),
        Err(_) => Err(why(started.keeper)),
    }
}

/// Serves a mount.
fn begin(tree: Waiting, device: OwnedFd) -> Result<JoinHandle<Result<(), Error>>, String> {
    let Waiting { device: devices, started: Started { keeper, is_ready, .. } } = tree;
    let is_sent = devices.send(device).is_ok();
    match wait_until_served(&is_ready) {
        true if is_sent => Ok(keeper),
        _ => Err(why(keeper)),
    }
}

fn wait_until_served(is_ready: &Receiver<Step>) -> bool {
    is_ready.recv() == Ok(Step::Serving)
}

/// Returns the sentence of a mount that failed.
fn why(keeper: JoinHandle<Result<(), Error>>) -> String {
    join(keeper).err().unwrap_or_else(|| "The mount ended at once.".to_owned())
}

fn join(keeper: JoinHandle<Result<(), Error>>) -> Result<(), String> {
    keeper
        .join()
        .map_err(|_| "A thread that serves the overlay panicked.".to_owned())?
        .map_err(|error| error.to_string())
}
