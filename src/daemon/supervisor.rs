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

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use redox_scheme::Socket;

use super::serve::Stop;
use super::spare::{Lender, Lent, answer_all};
use super::start::Watcher;
use super::streams::Streams;

/// The signals that end the daemon well.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Where a signal is written to: in the child its own pipe.
static SIGNALLED: AtomicI32 = AtomicI32::new(-1);
/// The process to which a signal is handed on: in the parent the child.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// The child's side: how it says that it has a name and is ready, and hears that it is to end.
pub struct Kept {
    ready: File,
    signals: File,
    /// A byte each time that the name becomes the child's, or is not after all: it is if their
    /// number is odd.
    named: File,
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
        // Nobody waits for it in the foreground.
        let _ = self.ready.write_all(&[0]);
        thread::spawn(move || {
            if self.signals.read_exact(&mut [0]).is_ok() {
                stop.stop();
            }
        });
    }
}

/// Has `serve` done by a child, and removes with `remove` the name that it leaves when it is gone.
/// With `detach` the program ends when the child is ready, somebody else waits for the child, and
/// both leave standard input, output and error; otherwise it ends with the child, and as it does.
/// The error is a sentence.
///
/// # Safety
/// The process must have one thread.
pub unsafe fn keep(
    detach: bool,
    serve: impl FnOnce(Kept) -> ExitCode,
    remove: impl FnOnce(),
) -> Result<ExitCode, String> {
    let failed = |what: &str| format!("{what}: {}.", io::Error::last_os_error());
    let (mut is_ready, ready) = pipe()?;
    if detach {
        // SAFETY: as promised by the caller.
        match unsafe { libc::fork() } {
            -1 => return Err(failed("The program cannot go into the background")),
            0 => {
                // SAFETY: it touches no memory.
                unsafe { libc::setsid() };
            }
            _ => {
                drop(ready);
                // The end of the pipe: the child has said why.
                let served = is_ready.read_exact(&mut [0]).is_ok();
                return Ok(if served { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
        }
    }
    drop(is_ready);
    let streams = if detach {
        Some(Streams::open().map_err(|error| format!("The program cannot go into the background: {error}."))?)
    } else {
        None
    };
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
    hold_signals(libc::SIG_BLOCK);
    // SAFETY: as promised by the caller: what forked above has one thread too.
    match unsafe { libc::fork() } {
        -1 => {
            hold_signals(libc::SIG_UNBLOCK);
            Err(failed("No process can be started"))
        }
        0 => {
            SIGNALLED.store(signalled.into_raw_fd(), Ordering::Relaxed);
            handle(on_signal_in_child);
            drop(is_named);
            Ok(serve(Kept { ready, signals, named, owns_name: false, streams, lender }))
        }
        child => {
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
    hold_signals(libc::SIG_UNBLOCK);
}

/// Holds the signals that end the daemon (`SIG_BLOCK`), or takes them again (`SIG_UNBLOCK`).
fn hold_signals(how: libc::c_int) {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the set is made empty before anything else is done with it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in ENDING {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(how, set.as_ptr(), std::ptr::null_mut());
    }
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

/// The two ends of a new pipe, to read from and to write to. The error is a sentence.
fn pipe() -> Result<(File, File), String> {
    let mut ends = [0; 2];
    // SAFETY: there is room for two descriptors.
    if unsafe { libc::pipe(ends.as_mut_ptr()) } != 0 {
        return Err(format!("No pipe can be made: {}.", io::Error::last_os_error()));
    }
    // SAFETY: they were just made, and nobody else has them.
    Ok(ends.map(|end| unsafe { File::from_raw_fd(end) }).into())
}
