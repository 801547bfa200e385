//! The gate between two requests. Where another process takes a mount over, it stops the threads
//! that take requests, and lets them go on if that process fails. At rest it makes them leave.
//!
//! A thread that waits for a request is in a system call, which a signal interrupts. The signal can
//! come just before the call. So it comes again and again, until the thread waits at the gate.
//!
//! The lock is a leaf.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use overlayfs::errno::{EBUSY, Error, Result};
use overlayfs::process::{mask_signals, signal_set};
use rustix::process::getpid;
use rustix::thread::{Pid, gettid};

/// How long a request that is under way may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the signal comes.
const EVERY: Duration = Duration::from_millis(1);
/// The signal. A process that does not expect it ignores it.
const SIGNAL: libc::c_int = libc::SIGURG;

/// The states of the gate.
const OPEN: u8 = 0;
const CLOSED: u8 = 1;
/// Another process serves. One thread still sends its answer.
const PASSED_ON: u8 = 2;
const ENDED: u8 = 3;
/// Those who come leave.
const DISMISSED: u8 = 4;

pub struct Gate {
    /// Whether the signal interrupts.
    interrupts: bool,
    state: AtomicU8,
    threads: Mutex<Threads>,
    changed: Condvar,
}

#[derive(Default)]
struct Threads {
    /// Those that take requests.
    all: Vec<Pid>,
    /// How many of them wait here.
    waiting: usize,
}

/// A thread that takes requests. The drop means that it takes no more.
pub struct Taker<'a>(&'a Gate);

impl Gate {
    /// Opens a gate. `interrupts` is the result of [`prepare`].
    pub fn new(interrupts: bool) -> Self {
        Self { interrupts, state: AtomicU8::new(OPEN), threads: Mutex::default(), changed: Condvar::new() }
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, state: u8) -> bool {
        self.state.load(Ordering::Acquire) == state
    }

    /// Counts this thread, which takes requests from now on.
    pub fn enter(&self) -> Taker<'_> {
        if self.interrupts {
            mask_signals(libc::SIG_UNBLOCK, &signal_set([SIGNAL]));
        }
        self.threads().all.push(gettid());
        Taker(self)
    }

    /// Closes the gate, and waits until all threads but this one wait at it.
    ///
    /// # Errors
    ///
    /// - EBUSY: a request takes too long, or another thread has closed the gate. It stays as it
    ///   was.
    pub fn close(&self) -> Result<()> {
        let (this, since) = (gettid(), Instant::now());
        let mut threads = self.threads();
        // This thread has just taken a request, so the dismissal ends at once.
        while self.is(DISMISSED) {
            threads = self.changed.wait(threads).unwrap_or_else(PoisonError::into_inner);
        }
        let closed = self.state.compare_exchange(OPEN, CLOSED, Ordering::AcqRel, Ordering::Acquire);
        closed.map_err(|_| Error::new(EBUSY))?;
        loop {
            let others: Vec<_> = threads.all.iter().copied().filter(|thread| *thread != this).collect();
            if threads.waiting >= others.len() {
                return Ok(());
            }
            if since.elapsed() >= PATIENCE {
                drop(threads);
                self.open();
                return Err(Error::new(EBUSY));
            }
            others.into_iter().for_each(interrupt);
            threads = self.changed.wait_timeout(threads, EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes all threads leave that wait for a request, as long as `is_idle`.
    pub fn dismiss(&self, is_idle: impl Fn() -> bool) {
        let mut threads = self.threads();
        let dismiss = || self.state.compare_exchange(OPEN, DISMISSED, Ordering::AcqRel, Ordering::Acquire);
        if !self.interrupts || dismiss().is_err() {
            return;
        }
        while !threads.all.is_empty() && is_idle() {
            threads.all.iter().copied().for_each(interrupt);
            threads = self.changed.wait_timeout(threads, EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(threads);
        self.open();
    }

    /// Lets all threads go on.
    pub fn open(&self) {
        self.set(OPEN);
    }

    /// Notes that another process serves now.
    pub fn pass_on(&self) {
        self.set(PASSED_ON);
    }

    /// Ends all threads that take requests, if another process serves. Returns whether it does.
    pub fn end(&self) -> bool {
        let is_passed_on = self.is(PASSED_ON);
        if is_passed_on {
            self.set(ENDED);
        }
        is_passed_on
    }

    /// Whether another process serves, and this one has sent its last answer.
    pub fn has_ended(&self) -> bool {
        self.is(ENDED)
    }

    fn set(&self, state: u8) {
        let _threads = self.threads();
        self.state.store(state, Ordering::Release);
        self.changed.notify_all();
    }
}

impl Taker<'_> {
    /// Waits here while the gate is closed. Returns whether the thread may take another request. If
    /// not, it leaves.
    pub fn pass(&self) -> bool {
        let gate = self.0;
        if gate.is(OPEN) {
            return true;
        }
        let mut threads = gate.threads();
        threads.waiting += 1;
        gate.changed.notify_all();
        while gate.is(CLOSED) || gate.is(PASSED_ON) {
            threads = gate.changed.wait(threads).unwrap_or_else(PoisonError::into_inner);
        }
        threads.waiting -= 1;
        gate.is(OPEN)
    }
}

impl Drop for Taker<'_> {
    fn drop(&mut self) {
        let this = gettid();
        self.0.threads().all.retain(|thread| *thread != this);
        self.0.changed.notify_all();
    }
}

/// Makes a system call of a thread return, if it waits in one.
fn interrupt(thread: Pid) {
    // SAFETY: takes numbers. The thread is one of this process; a number without a thread is an
    // error, since a thread takes its number out before it ends.
    unsafe { libc::syscall(libc::SYS_tgkill, getpid().as_raw_nonzero(), thread.as_raw_nonzero(), SIGNAL) };
}

/// Lets [`SIGNAL`] interrupt system calls and do nothing else. Returns false if the program that
/// uses the mount as a library has a use for it.
pub fn prepare() -> bool {
    extern "C" fn nothing(_: libc::c_int) {}
    let ours = nothing as *const () as usize;
    // SAFETY: the function does nothing, and the structures are valid with all else 0: no flags, so
    // that calls do not go on after the signal.
    unsafe {
        let mut present: libc::sigaction = std::mem::zeroed();
        let known = libc::sigaction(SIGNAL, std::ptr::null(), &mut present) == 0;
        if !known || ![libc::SIG_DFL, libc::SIG_IGN, ours].contains(&present.sa_sigaction) {
            return false;
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ours;
        libc::sigaction(SIGNAL, &action, std::ptr::null_mut()) == 0
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    #[test]
    fn threads_in_a_system_call_stop_and_go_on() {
        prepare();
        let (gate, taken) = (Gate::new(true), AtomicUsize::new(0));
        let lines: Vec<_> = (0..8).map(|_| UnixStream::pair().unwrap()).collect();
        thread::scope(|scope| {
            for (line, _) in &lines {
                let (gate, taken) = (&gate, &taken);
                scope.spawn(move || {
                    let (taker, mut line) = (gate.enter(), line);
                    while taker.pass() {
                        match line.read(&mut [0]) {
                            Err(error) if error.kind() == ErrorKind::Interrupted => {}
                            read => drop((read.unwrap(), taken.fetch_add(1, Ordering::Relaxed))),
                        }
                    }
                });
            }
            while gate.threads().all.len() < lines.len() {
                thread::yield_now();
            }
            for round in 1..100 {
                gate.close().unwrap();
                assert_eq!(gate.threads().waiting, lines.len());
                assert_eq!(gate.close(), Err(Error::new(EBUSY)));
                for (_, other) in &lines {
                    std::io::Write::write_all(&mut &*other, b"x").unwrap();
                }
                assert_eq!(taken.load(Ordering::Relaxed), (round - 1) * lines.len());
                gate.open();
                while taken.load(Ordering::Relaxed) < round * lines.len() {
                    thread::yield_now();
                }
            }
            gate.close().unwrap();
            assert!(!gate.end());
            gate.pass_on();
            assert!(gate.end() && gate.has_ended());
        });
    }
}
