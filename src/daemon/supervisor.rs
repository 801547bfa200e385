//! The process that waits for the daemon's end.
//!
//! Once it serves, the daemon is in an empty namespace and cannot remove its own name. So the
//! program forks before it opens anything. The child serves. The parent waits for it, and passes it
//! the signals that end programs. Meanwhile it makes objects for users (`maker`). After the child's
//! end it answers the clients that still wait (`spare`). If the child ended well, it makes the
//! ending of the layers. Then, if the child owned the name, it removes the name.
//!
//! No request can make the parent use its namespace. The parent asks for nothing there before the
//! child has ended. So the parent never waits for the child in a request, and no client of that
//! request waits either.
//!
//! Each process here has one thread, except for the child's thread that waits for a signal.

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
use crate::layer::redox::maker::{self, Work};
use crate::process::{Detached, Ready, Side, Streams, detach, fork, mask_signals, signal_set, wait_for};

/// The signals that end the daemon with a sync.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The descriptor to which the handler writes: in the child, its own pipe.
static SIGNALLED: AtomicI32 = AtomicI32::new(-1);
/// The process to which the handler passes a signal: in the parent, the child.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// The child's side: it reports its name and that it is ready, and learns of signals.
pub struct Kept {
    /// None: no process waits in the foreground.
    ready: Option<Ready>,
    signals: PipeReader,
    /// One byte each time that the child gets or loses the name: it owns the name if their number
    /// is odd.
    named: PipeWriter,
    owns_name: bool,
    /// The streams for the background.
    streams: Option<Streams>,
    /// The pipe that passes the socket to the parent, where another process can have it.
    lender: Option<Lender>,
}

impl Watcher for Kept {
    fn owns_name(&mut self, owns: bool) {
        // Without a parent, no process removes the name.
        if owns != self.owns_name && self.named.write_all(&[0]).is_ok() {
            self.owns_name = owns;
        }
    }

    fn lend(&mut self, socket: &Socket) -> Option<Lent> {
        self.lender.take().and_then(|lender| lender.lend(socket))
    }

    /// Makes signals end the service from now on, and leaves the caller's streams.
    fn ready(mut self, stop: Arc<Stop>) {
        if let Some(Err(error)) = self.streams.take().map(Streams::put_in_place) {
            log::warn!("the inherited standard streams stay open: {error}");
        }
        // The call fails if the caller is gone.
        let _ = self.ready.take().map(Ready::tell);
        thread::spawn(move || {
            if self.signals.read_exact(&mut [0]).is_ok() {
                stop.stop();
            }
        });
    }
}

/// Forks a child that runs `serve`, and waits for its end. After a success it calls `ending`. Then
/// it removes the child's name with `remove`.
/// With `in_background` the program ends when the child is ready. Another process then waits for
/// the child, and both leave the standard streams. Without it, the program ends with the child,
/// with the same exit code. The error is a sentence.
///
/// # Safety
///
/// The process must have one thread.
///
/// # Errors
///
/// The sentence says which step failed.
pub unsafe fn keep(
    in_background: bool,
    serve: impl FnOnce(Kept) -> ExitCode,
    ending: impl FnOnce() -> Result<(), String>,
    remove: impl FnOnce(),
) -> Result<ExitCode, String> {
    let to_background = |error| format!("The program cannot go into the background: {error}.");
    let (mut ready, mut streams) = (None, None);
    if in_background {
        // SAFETY: as the caller promises.
        match unsafe { detach().map_err(to_background)? } {
            Detached::Caller(code) => return Ok(code),
            Detached::Daemon(to_tell) => ready = Some(to_tell),
        }
        streams = Some(Streams::open().map_err(to_background)?);
    }
    let pipe = || io::pipe().map_err(|error| format!("No pipe can be made: {error}."));
    let (signals, signalled) = pipe()?;
    let (is_named, named) = pipe()?;
    // On Linux the simulated kernel is in the daemon's process.
    let lender = if cfg!(target_os = "redox") {
        let (out, into) = pipe()?;
        Some(Lender { out, into })
    } else {
        None
    };
    let maker = if cfg!(target_os = "redox") {
        Some(maker::pipes().map_err(|error| format!("No pipe can be made: {error}."))?)
    } else {
        None
    };
    // No signal gets lost before a handler is set.
    mask_signals(libc::SIG_BLOCK, &signal_set(ENDING));
    // SAFETY: as the caller promises. A process that forked above has one thread too.
    match unsafe { fork() } {
        Err(error) => {
            mask_signals(libc::SIG_UNBLOCK, &signal_set(ENDING));
            Err(format!("No process can be started: {error}."))
        }
        Ok(Side::Child) => {
            SIGNALLED.store(signalled.into_raw_fd(), Ordering::Relaxed);
            handle(on_signal_in_child);
            drop(is_named);
            if let Some((orders, work)) = maker {
                // With the maker's ends open here, the daemon would never learn of its end.
                drop(work);
                orders.employ();
            }
            Ok(serve(Kept { ready, signals, named, owns_name: false, streams, lender }))
        }
        Ok(Side::Parent(child)) => {
            drop((ready, signals, signalled, named, serve));
            if let Some(Err(error)) = streams.map(Streams::put_in_place) {
                eprintln!("overlayfs: The inherited standard streams stay open: {error}.");
            }
            let work = maker.map(|(_, work)| work);
            Ok(supervise(child, work, lender.map(|Lender { out, .. }| out), is_named, ending, remove))
        }
    }
}

/// Makes objects for the child, waits for its end, answers its clients through the socket in the
/// pipe `lent`, calls `ending` and removes its name. Returns the exit code of the child, or a
/// failure of `ending`.
fn supervise(
    child: libc::pid_t,
    work: Option<Work>,
    lent: Option<PipeReader>,
    is_named: PipeReader,
    ending: impl FnOnce() -> Result<(), String>,
    remove: impl FnOnce(),
) -> ExitCode {
    CHILD.store(child, Ordering::Relaxed);
    handle(on_signal_in_parent);
    if let Some(Err(error)) = work.map(Work::serve) {
        eprintln!("overlayfs: From now on, new files of users take longer: {error}.");
    }
    let mut status = wait_for(child);
    // A signal has no process to go to any more, and must not end this one in the midst of an ending.
    mask_signals(libc::SIG_BLOCK, &signal_set(ENDING));
    // First of all: the manager of namespaces may be among the waiting clients.
    if let Some(out) = lent {
        answer_all(&out);
    }
    if status == ExitCode::SUCCESS
        && let Err(sentence) = ending()
    {
        eprintln!("overlayfs: {sentence}");
        status = ExitCode::FAILURE;
    }
    if owns_name(is_named) {
        remove();
    }
    status
}

/// Whether the child owned the name of the scheme at its end: it wrote a byte at each change.
fn owns_name(mut is_named: impl Read) -> bool {
    let mut said = Vec::new();
    is_named.read_to_end(&mut said).is_ok() && said.len() % 2 == 1
}

extern "C" fn on_signal_in_child(_: libc::c_int) {
    // SAFETY: a handler may call write. The byte outlives the call.
    unsafe { libc::write(SIGNALLED.load(Ordering::Relaxed), [0u8].as_ptr().cast(), 1) };
}

extern "C" fn on_signal_in_parent(_: libc::c_int) {
    // SAFETY: a handler may call kill.
    unsafe { libc::kill(CHILD.load(Ordering::Relaxed), libc::SIGTERM) };
}

/// Sets the handler of each signal that ends the daemon, and unblocks these.
fn handle(handler: extern "C" fn(libc::c_int)) {
    for signal in ENDING {
        // SAFETY: the handler only makes calls that a handler may make.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
    mask_signals(libc::SIG_UNBLOCK, &signal_set(ENDING));
}
