//! The first thread of a mount. It waits for all that can happen, and starts a thread for what is
//! to do. It waits for no layer itself. So at rest a mount has one thread, and each request, signal
//! or look at the space begins there.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Served, panicked, start_thread, workers};
use crate::front_end::FrontEnd;
use crate::settle::Settler;
use crate::waker::Waker;

/// How long no request comes before the threads for requests end.
const PAUSE: Duration = Duration::from_secs(2);
/// How long to wait before a thread that could not start is tried again.
const AGAIN: Duration = Duration::from_millis(10);

/// What the first thread waits for beside the mount.
pub trait Outside {
    /// Returns the descriptors to wait for.
    fn awaited(&self) -> Vec<BorrowedFd<'_>>;

    /// Does what has become possible, without a wait.
    fn look(&self);
}

/// A thread that is there for a while, again and again.
pub struct Job {
    name: &'static str,
    thread: Option<JoinHandle<()>>,
    ended: io::Result<()>,
}

impl Job {
    fn new(name: &'static str) -> Self {
        Self { name, thread: None, ended: Ok(()) }
    }

    /// Starts the thread once more. It has ended, or is about to.
    fn start(&mut self, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.await_end();
        self.thread = Some(start_thread(self.name, run)?);
        Ok(())
    }

    fn await_end(&mut self) {
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            self.ended = Err(panicked());
        }
    }

    /// Waits for the end of the thread.
    ///
    /// # Errors
    ///
    /// - `Other`: it panicked.
    fn end(mut self) -> io::Result<()> {
        self.await_end();
        self.ended
    }
}

/// The first thread.
pub struct First {
    device: Arc<File>,
    waker: Arc<Waker>,
    settling: Job,
    watching: Job,
    /// Whether a thread that could not start was reported.
    has_warned: bool,
}

impl First {
    /// Waits for this device and this waker.
    pub fn new(device: Arc<File>, waker: Arc<Waker>) -> Self {
        Self { device, waker, settling: Job::new("settle"), watching: Job::new("watch"), has_warned: false }
    }

    /// Starts the threads that have something to do now, except for requests.
    ///
    /// # Errors
    ///
    /// - EAGAIN: a limit forbids it. The threads that are not there are still needed.
    pub fn start_jobs<D: FrontEnd + 'static>(&mut self, served: &Arc<Served<D>>) -> io::Result<()> {
        let Served { seat, watcher, .. } = &**served;
        if watcher.claim() {
            let served = served.clone();
            let run = move || served.watcher.run(&served.seat);
            self.watching.start(run).inspect_err(|_| watcher.unclaim())?;
        }
        // The last one: it has the process `unmounter` start a thread, which counts for a limit too.
        if let Some(settler) = seat.settler.as_ref().filter(|settler| settler.claim()) {
            let seat = seat.clone();
            let run = move || seat.settler.iter().for_each(Settler::run);
            self.settling.start(run).inspect_err(|_| settler.unclaim())?;
        }
        Ok(())
    }

    /// Starts threads when they are needed, until the filesystem is unmounted or another process
    /// serves it.
    pub fn serve<D: FrontEnd + 'static>(&mut self, served: &Arc<Served<D>>, outside: Option<&dyn Outside>) {
        let (workers, gate) = (&served.workers, &served.seat.gate);
        let mut look_at = Instant::now() + PAUSE;
        while !workers.have_ended() && !gate.has_ended() {
            let started = self.start_jobs(served);
            let is_resting = !workers.are_there();
            let dues = [(!is_resting).then_some(look_at), served.watcher.due(), self.again_at(started)];
            let (called, device) = self.wait(dues.into_iter().flatten().min(), is_resting, outside);
            if called {
                self.waker.clear();
            }
            outside.iter().for_each(|outside| outside.look());
            if device.intersects(PollFlags::ERR | PollFlags::HUP) {
                workers.end();
            } else if !device.is_empty() {
                look_at = Instant::now() + PAUSE;
                if self.again_at(workers::start(served)).is_some() {
                    thread::sleep(AGAIN);
                }
            } else if Instant::now() >= look_at {
                look_at = Instant::now() + PAUSE;
                if workers.are_idle() {
                    gate.dismiss(|| !workers.have_taken());
                }
            }
        }
    }

    /// When to try again what failed.
    fn again_at(&mut self, started: io::Result<()>) -> Option<Instant> {
        let error = started.err()?;
        if !std::mem::replace(&mut self.has_warned, true) {
            log::warn!("a thread cannot be started, and what it should do waits: {error}");
        }
        Some(Instant::now() + AGAIN)
    }

    /// Waits until something happens, or until `due`. Returns whether another thread calls, and
    /// what the device says, which is only asked at rest.
    fn wait(&self, due: Option<Instant>, is_resting: bool, outside: Option<&dyn Outside>) -> (bool, PollFlags) {
        let outside = outside.map_or_else(Vec::new, |outside| outside.awaited());
        let mut awaited = vec![PollFd::new(&*self.waker, PollFlags::IN)];
        awaited.extend(is_resting.then(|| PollFd::new(&*self.device, PollFlags::IN)));
        awaited.extend(outside.into_iter().map(|other| PollFd::from_borrowed_fd(other, PollFlags::IN)));
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        if poll(&mut awaited, left.as_ref()).is_err() {
            return (false, PollFlags::empty());
        }
        let device = if is_resting { awaited[1].revents() } else { PollFlags::empty() };
        (!awaited[0].revents().is_empty(), device)
    }

    /// Waits until no thread for requests is there.
    pub fn await_workers<D>(&self, served: &Served<D>) {
        while served.workers.are_there() {
            self.wait(None, false, None);
            self.waker.clear();
        }
    }

    /// Waits for the ends of the other threads.
    ///
    /// # Errors
    ///
    /// - `Other`: one panicked.
    pub fn end(self) -> io::Result<()> {
        self.watching.end().and(self.settling.end())
    }
}
