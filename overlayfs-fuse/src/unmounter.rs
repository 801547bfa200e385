//! The work of the process `unmounter`, which has the rights of the start: to unmount, to wait in
//! ustat(2) and to probe with it (see [`crate::settle`]), to make the ending, and to start the next
//! daemon (see [`crate::succession`]).
//!
//! Its first thread waits for requests on all lines. Each line with a request gets a thread of its
//! own, which ends soon after the answer: umount waits for the ending, and both wait for the thread
//! in ustat(2). So the process has one thread while nothing happens.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, Scope};
use std::time::Duration;

use overlayfs::process::Streams;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};

use crate::line::Line;
use crate::mount::unmount;
use crate::succession::{Program, StartedDaemons};
use crate::waker::Waker;

/// The ends of the lines, one for each kind of request.
pub struct Lines {
    /// Wakes the first thread, once a request is answered.
    pub waker: Waker,
    pub unmount: UnixStream,
    pub wait: UnixStream,
    pub probe: UnixStream,
    pub end: UnixStream,
    pub start: Line,
}

/// How long to wait before a thread that could not start is tried again, and how often at most.
/// From then on the first thread unmounts, without the ending if that has to wait.
const AGAIN: Duration = Duration::from_millis(10);
const TRIES: u32 = 100;

/// How long a thread waits for another request before it ends.
const LINGER: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// The states of a job.
const IDLE: u8 = 0;
const BUSY: u8 = 1;
/// No request comes any more.
const OVER: u8 = 2;

/// What a thread does for each request on a line.
struct Job<'a> {
    line: BorrowedFd<'a>,
    /// See [`Job::run`]. After an error no other request comes.
    answer: Box<dyn Fn() -> io::Result<()> + Sync + 'a>,
    state: AtomicU8,
}

impl<'a> Job<'a> {
    fn new(line: &'a impl AsFd, answer: impl Fn() -> io::Result<()> + Sync + 'a) -> Self {
        Self { line: line.as_fd(), answer: Box::new(answer), state: AtomicU8::new(IDLE) }
    }

    fn is(&self, state: u8) -> bool {
        self.state.load(Ordering::Acquire) == state
    }

    /// Starts a thread for the request that has come. It takes the next ones too, if they come
    /// soon. Returns whether there is one.
    fn start<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, waker: &'scope Waker) -> bool {
        self.state.store(BUSY, Ordering::Release);
        let run = move || {
            let mut is_over = self.run();
            while !is_over && self.is_called_soon() {
                is_over = self.run();
            }
            self.state.store(if is_over { OVER } else { IDLE }, Ordering::Release);
            waker.wake();
        };
        let is_started = thread::Builder::new().spawn_scoped(scope, run).is_ok();
        if !is_started {
            // The request stays on the line.
            self.state.store(IDLE, Ordering::Release);
        }
        is_started
    }

    /// Takes one request, and answers it. Returns whether no other comes.
    fn run(&self) -> bool {
        let is_over = !matches!(catch_unwind(AssertUnwindSafe(&self.answer)), Ok(Ok(())));
        if is_over {
            // The other process must not wait for an answer.
            let _ = shutdown(self.line, Shutdown::Both);
        }
        is_over
    }

    fn is_called_soon(&self) -> bool {
        let mut line = [PollFd::from_borrowed_fd(self.line, PollFlags::IN)];
        poll(&mut line, Some(&LINGER)).is_ok_and(|ready| ready > 0)
    }
}

/// Works for the other process, and ends with it.
pub fn serve(lines: &Lines, path: &Path, ending: impl FnOnce() -> Result<(), String> + Send, program: &Program) -> ! {
    // So a search for the daemon by its name finds only the daemon.
    let _ = rustix::thread::set_name(c"unmounter");
    // A process that waits for the end of the daemon's output must not wait for this process. If
    // that fails, the streams stay.
    let _ = Streams::open().and_then(Streams::put_in_place);
    let _ = std::env::set_current_dir("/");
    let (waiting, probing) = (ustat::Waiting::default(), ustat::Probing::default());
    let (ending, daemons) = (Mutex::new(Some(ending)), StartedDaemons::default());
    let ending = || ending.lock().ok()?.take();
    let jobs = [
        Job::new(&lines.unmount, || answer_unmount(&lines.unmount, path)),
        Job::new(&lines.wait, || waiting.answer(&lines.wait)),
        Job::new(&lines.probe, || probing.answer(&lines.probe)),
        Job::new(&lines.end, || answer_end(&lines.end, ending())),
        Job::new(&lines.start, || {
            waiting.say_again(&lines.wait);
            daemons.answer(&lines.start, program)
        }),
    ];
    let mut tries = 0;
    thread::scope(|scope| {
        loop {
            let idle: Vec<_> = jobs.iter().filter(|job| job.is(IDLE)).collect();
            let idle_lines = idle.iter().map(|job| PollFd::from_borrowed_fd(job.line, PollFlags::IN));
            let mut ready: Vec<_> = idle_lines.chain([PollFd::new(&lines.waker, PollFlags::IN)]).collect();
            if poll(&mut ready, None).is_err() {
                continue;
            }
            let is_ready: Vec<_> = ready.iter().map(|line| !line.revents().is_empty()).collect();
            if is_ready.last() == Some(&true) {
                lines.waker.clear();
            }
            let called = idle.into_iter().zip(is_ready).filter_map(|(job, is_ready)| is_ready.then_some(job));
            let not_started: Vec<_> = called.filter(|job| !job.start(scope, &lines.waker)).collect();
            tries = if not_started.is_empty() { 0 } else { tries + 1 };
            if tries > TRIES && not_started.iter().any(|job| std::ptr::eq(*job, &raw const jobs[0])) {
                let state = if jobs[0].run() { OVER } else { IDLE };
                jobs[0].state.store(state, Ordering::Release);
            } else if tries > 0 {
                thread::sleep(AGAIN);
            }
            if jobs[0].is(OVER) {
                // SAFETY: takes a number and does not return. The parent's work at its end is not
                // this child's, and the threads have nothing left to do.
                unsafe { libc::_exit(0) }
            }
        }
    })
}

/// Unmounts, and answers an errno or 0.
fn answer_unmount(mut line: &UnixStream, path: &Path) -> io::Result<()> {
    line.read_exact(&mut [0])?;
    let errno = unmount(path, true).err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
    line.write_all(&errno.to_ne_bytes())
}

/// Makes the ending, and answers with the length of a sentence and the sentence. If the other
/// process dies without that request, there is no ending.
fn answer_end(mut line: &UnixStream, ending: Option<impl FnOnce() -> Result<(), String>>) -> io::Result<()> {
    line.read_exact(&mut [0])?;
    let sentence = ending.and_then(|ending| ending().err()).unwrap_or_default();
    line.write_all(&[&(sentence.len() as u32).to_ne_bytes(), sentence.as_bytes()].concat())
}

#[cfg(target_arch = "x86_64")]
mod ustat {
    use std::io::{self, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicI32, Ordering};
    use std::sync::{Arc, Mutex, PoisonError};
    use std::thread;
    use std::time::Duration;

    use rustix::thread::gettid;

    use crate::mount::{AWAITED, NOT_AWAITED, UNKNOWN};

    /// How long to look for the answer, in milliseconds.
    const PROBE: u32 = 500;

    /// Asks for the space that is left in the filesystem with this number.
    fn ustat(device: u32) {
        let mut answer = [0_u64; 8];
        // SAFETY: takes a number, and writes a structure of 32 bytes to memory that has room for
        // it.
        unsafe { libc::syscall(libc::SYS_ustat, device, answer.as_mut_ptr()) };
    }

    /// The thread that waits in ustat(2). The lock is a leaf: what is said first arrives first.
    #[derive(Default)]
    pub struct Waiting(Mutex<Option<Words>>);

    /// A thread, or 0 at the end of its wait, and the number of the wait.
    type Words = [[u8; size_of::<u32>()]; 2];

    impl Waiting {
        /// Waits in ustat(2). Tells the other process which thread begins to wait, then that its
        /// call has ended.
        pub fn answer(&self, mut line: &UnixStream) -> io::Result<()> {
            let (mut device, mut number) = ([0; size_of::<u32>()], [0; size_of::<u32>()]);
            line.read_exact(&mut device).and_then(|()| line.read_exact(&mut number))?;
            let thread = gettid().as_raw_nonzero().get() as u32;
            self.say(line, [thread.to_ne_bytes(), number])?;
            ustat(u32::from_ne_bytes(device));
            self.say(line, [[0; size_of::<u32>()], number])
        }

        fn say(&self, mut line: &UnixStream, words: Words) -> io::Result<()> {
            let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *begun = Some(words).filter(|[thread, _]| *thread != [0; size_of::<u32>()]);
            line.write_all(words.as_flattened())
        }

        /// Says again that a thread waits, if it does: a daemon that was killed may have heard it.
        pub fn say_again(&self, mut line: &UnixStream) {
            let begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Without an end the other process hears nothing more.
            begun.iter().for_each(|words| drop(line.write_all(words.as_flattened())));
        }
    }

    /// The thread that calls ustat(2) to probe.
    #[derive(Default)]
    pub struct Probing(Arc<AtomicI32>);

    /// The values of [`Probing`] beside the number of a thread.
    const NONE: i32 = 0;
    const STARTING: i32 = -1;

    impl Probing {
        /// Answers whether a thread waits for the lock of a superblock. Another thread calls
        /// ustat(2), and this one finds out whether that call has ended, or waits for the lock.
        pub fn answer(&self, mut line: &UnixStream) -> io::Result<()> {
            let (mut device, mut number) = ([0; size_of::<u32>()], [0; size_of::<u32>()]);
            line.read_exact(&mut device).and_then(|()| line.read_exact(&mut number))?;
            let begun = self.begin(u32::from_ne_bytes(device));
            let look = |_| {
                thread::sleep(Duration::from_millis(1));
                match self.0.load(Ordering::Acquire) {
                    NONE => Some(NOT_AWAITED),
                    thread => waits_for_superblock(thread).then_some(AWAITED),
                }
            };
            let found = begun.ok().and_then(|()| (0..PROBE).find_map(look));
            line.write_all(&[&number[..], &[found.unwrap_or(UNKNOWN)]].concat())
        }

        /// Starts the thread. A call that waits since an earlier question answers this one too.
        fn begin(&self, device: u32) -> io::Result<()> {
            if self.0.compare_exchange(NONE, STARTING, Ordering::AcqRel, Ordering::Acquire).is_err() {
                return Ok(());
            }
            let calling = self.0.clone();
            let call = move || {
                calling.store(gettid().as_raw_nonzero().get(), Ordering::Release);
                ustat(device);
                calling.store(NONE, Ordering::Release);
            };
            let started = thread::Builder::new().spawn(call);
            started.map(drop).inspect_err(|_| self.0.store(NONE, Ordering::Release))
        }
    }

    /// Whether a thread of this process waits for the lock of a superblock, in a sleep that no
    /// signal ends.
    fn waits_for_superblock(thread: i32) -> bool {
        let read = |name| std::fs::read_to_string(format!("/proc/self/task/{thread}/{name}"));
        // The state follows the name, which is in parentheses.
        let sleeps = read("stat").is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('D')));
        // A kernel without names of functions writes 0.
        let place = if sleeps { read("wchan") } else { return false };
        place.is_ok_and(|place| place.contains("super") || place == "0")
    }
}

/// ustat(2) does not exist here.
#[cfg(not(target_arch = "x86_64"))]
mod ustat {
    use std::io::{self, ErrorKind};
    use std::os::unix::net::UnixStream;

    #[derive(Default)]
    pub struct Waiting;

    impl Waiting {
        /// Fails, and the daemon finds out that umount cannot wait.
        pub fn answer(&self, _: &UnixStream) -> io::Result<()> {
            Err(ErrorKind::Unsupported.into())
        }

        /// No thread waits.
        pub fn say_again(&self, _: &UnixStream) {}
    }

    #[derive(Default)]
    pub struct Probing;

    impl Probing {
        /// Fails, and the daemon finds out that nothing can be known.
        pub fn answer(&self, _: &UnixStream) -> io::Result<()> {
            Err(ErrorKind::Unsupported.into())
        }
    }
}
