//! The process that waits for the daemon's end.
//!
//! Once it serves, the daemon is in an empty namespace and cannot remove its own name. So the
//! program forks before it opens anything: the child serves, and the parent does nothing but wait
//! for it, hand on the signals that end programs, answer who still waits for the child when that is
//! gone (`spare`), and remove the name, however it went, if the child says that it has one. What it
//! could reach through its namespace no request can ask it for. It asks for nothing there before
//! the child is gone, so nobody waits for the child while the child waits for it.
//!
//! Everything here is done by a process with one thread, but for the one that waits for the word to
//! stop.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::IntoRawFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use redox_scheme::Socket;

use super::serve::Stop;
use super::spare::{Lender, Lent, answer_all};
use super::start::Watcher;
use crate::process::{Detached, Ready, Side, Streams, detach, fork, mask_signals, signal_set};

/// The signals that end the daemon well.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Where a signal is written to: in the child its own pipe.
static SIGNALLED: AtomicI32 = AtomicI32::new(-1);
/// The process to which a signal is handed on: in the parent the child.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// The child's side: how it says that it has a name and is ready, and hears that it is to end.
pub struct Kept {
    /// None: nobody waits in the foreground.
    ready: Option<Ready>,
    signals: PipeReader,
    /// A byte each time that the name becomes the child's, or is not after all: it is if their
    /// number is odd.
    named: PipeWriter,
    owns_name: bool,
    /// What to read and write in the background.
    streams: Option<Streams>,
    /// How the parent gets the socket, where another process can have it.
    lender: Option<Lender>,
}

impl Watcher for Kept {
    fn owns_name(&mut self, owns: bool) {
        // If the parent is gone nobody removes the name.
        if owns != self.owns_name && self.named.write_all(&[0]).is_ok() {
            self.owns_name = owns;
        }
    }

    fn lend(&mut self, socket: &Socket) -> Option<Lent> {
        self.lender.take().and_then(|lender| lender.lend(socket))
    }

    /// Has signals end the service from now on, and leaves the caller's streams.
    fn ready(mut self, stop: Arc<Stop>) {
        if let Some(Err(error)) = self.streams.take().map(Streams::put_in_place) {
            log::warn!("what was inherited is still open: {error}");
        }
        // Without effect if the caller is gone.
        let _ = self.ready.take().map(Ready::tell);
        thread::spawn(move || {
            if self.signals.read_exact(&mut [0]).is_ok() {
                stop.stop();
            }
        });
    }
}

/// Has `serve` done by a child, and removes with `remove` the name that it leaves when it is gone.
/// With `in_background` the program ends when the child is ready, somebody else waits for the
/// child, and both leave standard input, output and error; otherwise it ends with the child, and as
/// it does. The error is a sentence.
///
/// # Safety
/// The process must have one thread.
pub unsafe fn keep(
    in_background: bool,
    serve: impl FnOnce(Kept) -> ExitCode,
    remove: impl FnOnce(),
) -> Result<ExitCode, String> {
    let to_background = |error| format!("The program cannot go into the background: {error}.");
    let (mut ready, mut streams) = (None, None);
    if in_background {
        // SAFETY: as promised by the caller.
        match unsafe { detach().map_err(to_background)? } {
            Detached::Caller(code) => return Ok(code),
            Detached::Daemon(to_tell) => ready = Some(to_tell),
        }
        streams = Some(Streams::open().map_err(to_background)?);
    }
    let pipe = || io::pipe().map_err(|error| format!("No pipe can be made: {error}."));
    let (signals, signalled) = pipe()?;
    let (is_named, named) = pipe()?;
    // The kernel that is played on Linux is part of the daemon's process.
    let lender = if cfg!(target_os = "redox") {
        let (out, into) = pipe()?;
        Some(Lender { out, into })
    } else {
        None
    };
    // None is missed before somebody handles it.
    mask_signals(libc::SIG_BLOCK, &signal_set(ENDING));
    // SAFETY: as promised by the caller: what forked above has one thread too.
    match unsafe { fork() } {
        Err(error) => {
            mask_signals(libc::SIG_UNBLOCK, &signal_set(ENDING));
            Err(format!("No process can be started: {error}."))
        }
        Ok(Side::Child) => {
            SIGNALLED.store(signalled.into_raw_fd(), Ordering::Relaxed);
            handle(on_signal_in_child);
            drop(is_named);
            Ok(serve(Kept { ready, signals, named, owns_name: false, streams, lender }))
        }
        Ok(Side::Parent(child)) => {
            drop((ready, signals, signalled, named, serve));
            if let Some(Err(error)) = streams.map(Streams::put_in_place) {
                eprintln!("overlayfs: What was inherited is still open: {error}.");
            }
            CHILD.store(child, Ordering::Relaxed);
            handle(on_signal_in_parent);
            let lent = lender.map(|Lender { out, .. }| out);
            let status = wait_for(child);
            // First of all: the manager of namespaces may be among those who wait.
            if let Some(out) = lent {
                answer_all(&out);
            }
            if owns_name(is_named) {
                remove();
            }
            Ok(status)
        }
    }
}

/// Whether the child that has ended owned the name of the scheme: it has said each time when that
/// changed.
fn owns_name(mut is_named: impl Read) -> bool {
    let mut said = Vec::new();
    is_named.read_to_end(&mut said).is_ok() && said.len() % 2 == 1
}

extern "C" fn on_signal_in_child(_: libc::c_int) {
    // SAFETY: write may be called in a handler; the byte lives longer than the call.
    unsafe { libc::write(SIGNALLED.load(Ordering::Relaxed), [0u8].as_ptr().cast(), 1) };
}

extern "C" fn on_signal_in_parent(_: libc::c_int) {
    // SAFETY: kill may be called in a handler.
    unsafe { libc::kill(CHILD.load(Ordering::Relaxed), libc::SIGTERM) };
}

/// Has a handler called for each signal that ends the daemon, and takes those that were held.
fn handle(handler: extern "C" fn(libc::c_int)) {
    for signal in ENDING {
        // SAFETY: the handler calls nothing but what may be called in one.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
    mask_signals(libc::SIG_UNBLOCK, &signal_set(ENDING));
}

/// Waits for the end of a child, and answers as it did.
fn wait_for(child: libc::pid_t) -> ExitCode {
    let mut status = 0;
    loop {
        // SAFETY: the status lives longer than the call.
        if unsafe { libc::waitpid(child, &raw mut status, 0) } == child {
            break;
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return ExitCode::FAILURE;
        }
    }
    if libc::WIFEXITED(status) { ExitCode::from(libc::WEXITSTATUS(status) as u8) } else { ExitCode::FAILURE }
}
