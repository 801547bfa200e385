//! The threads that read the device. There are none at rest: the first thread of the mount waits
//! for the device then, and starts one of them for a request. One that takes a request while no
//! other waits for one starts another, up to a limit. After a pause without requests all end.
//!
//! The lock is a leaf.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use overlayfs::control::requests::Part;

use super::device::{self, End};
use super::{Served, panicked, start_thread};
use crate::front_end::FrontEnd;
use crate::waker::Waker;

/// The threads that read the device of a mount.
pub struct Workers {
    state: Mutex<State>,
    /// How many wait for a request.
    waiting: AtomicUsize,
    /// Whether one has taken a request since the last look.
    have_taken: AtomicBool,
    /// Wakes the first thread of the mount.
    waker: Arc<Waker>,
}

struct State {
    /// What threads need that are not there.
    free: Vec<Place>,
    running: usize,
    unmounted: bool,
    /// The error of the thread that failed first.
    failed: io::Result<()>,
}

/// What a thread needs.
pub struct Place {
    /// A descriptor of the device.
    pub device: Arc<File>,
    /// The counters of its requests, once it has some.
    pub counted: Option<Arc<Part>>,
}

impl Workers {
    /// Allows a thread for each of these descriptors of the device.
    pub fn new(devices: Vec<Arc<File>>, waker: Arc<Waker>) -> Self {
        let free = devices.into_iter().map(|device| Place { device, counted: None }).collect();
        let state = State { free, running: 0, unmounted: false, failed: Ok(()) };
        Self { state: Mutex::new(state), waiting: AtomicUsize::new(0), have_taken: AtomicBool::new(false), waker }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there are any.
    pub fn are_there(&self) -> bool {
        self.state().running > 0
    }

    /// Whether the filesystem is unmounted, or all threads have failed.
    pub fn have_ended(&self) -> bool {
        let state = self.state();
        state.unmounted || state.running == 0 && state.free.is_empty()
    }

    /// Notes that the filesystem is unmounted.
    pub fn end(&self) {
        self.state().unmounted = true;
    }

    /// Whether one has taken a request since the last call of [`Workers::are_idle`].
    pub fn have_taken(&self) -> bool {
        self.have_taken.load(Ordering::Relaxed)
    }

    /// Whether all wait for a request, and none has taken one since the last call.
    pub fn are_idle(&self) -> bool {
        !self.have_taken.swap(false, Ordering::Relaxed) && self.waiting.load(Ordering::Relaxed) == self.state().running
    }

    /// Takes the error of the thread that failed first.
    pub fn take_failure(&self) -> io::Result<()> {
        std::mem::replace(&mut self.state().failed, Ok(()))
    }

    fn left(&self, place: Place, end: io::Result<End>) {
        let mut state = self.state();
        state.running -= 1;
        match end {
            Ok(End::Left) => state.free.push(place),
            Ok(End::Unmounted) => state.unmounted = true,
            Err(error) if state.failed.is_ok() => state.failed = Err(error),
            Err(_) => {}
        }
        drop(state);
        self.waker.wake();
    }
}

/// Starts one more, unless there are as many as may be.
///
/// # Errors
///
/// - EAGAIN: a limit forbids it.
pub fn start<D: FrontEnd + 'static>(served: &Arc<Served<D>>) -> io::Result<()> {
    let workers = served.workers.clone();
    let place = {
        let mut state = workers.state();
        let Some(place) = state.free.pop() else { return Ok(()) };
        state.running += 1;
        place
    };
    let mut worker = Worker { served: Some(served.clone()), workers, place: Some(place), end: Ok(End::Left) };
    start_thread("request", move || worker.run()).map(drop)
}

/// Waits for a request with `read`. Starts another thread if no other waits now.
///
/// # Errors
///
/// The errors of `read`.
pub fn take<D: FrontEnd + 'static>(
    served: &Arc<Served<D>>,
    read: impl FnOnce() -> io::Result<usize>,
) -> io::Result<usize> {
    let workers = &served.workers;
    workers.waiting.fetch_add(1, Ordering::Relaxed);
    let read = read();
    let is_last = workers.waiting.fetch_sub(1, Ordering::Relaxed) == 1;
    if read.is_ok() {
        if !workers.have_taken() {
            workers.have_taken.store(true, Ordering::Relaxed);
        }
        if is_last && let Err(error) = start(served) {
            log::debug!("no other thread for requests can be started: {error}");
        }
    }
    read
}

/// A thread before, at and after its work. The drop means that it has left.
struct Worker<D> {
    served: Option<Arc<Served<D>>>,
    workers: Arc<Workers>,
    place: Option<Place>,
    end: io::Result<End>,
}

impl<D: FrontEnd + 'static> Worker<D> {
    fn run(&mut self) {
        if let (Some(served), Some(place)) = (&self.served, &mut self.place) {
            self.end = device::serve(served, place);
        }
    }
}

impl<D> Drop for Worker<D> {
    fn drop(&mut self) {
        let end = if thread::panicking() { Err(panicked()) } else { std::mem::replace(&mut self.end, Ok(End::Left)) };
        // The first thread ends the mount when all have left, and then uses the front end alone.
        self.served = None;
        if let Some(place) = self.place.take() {
            self.workers.left(place, end);
        }
    }
}
