//! Kills a process at a system call.

use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

/// What to do with a process that is about to make a system call.
pub enum Verdict {
    GoOn,
    Kill,
    /// It goes on, and is not traced any more.
    LetGo,
}

/// A thread that traces a process.
pub struct Tracer {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<bool>,
}

impl Tracer {
    /// Traces the process from now on. `judge` decides at each system call of its present threads,
    /// by the number of the call.
    pub fn new(process: i32, judge: impl FnMut(i64) -> Verdict + Send + 'static) -> Self {
        Self::with(process, libc::PTRACE_O_TRACESYSGOOD, judge)
    }

    /// Does the same. The processes that it starts stand still until the end of the trace.
    pub fn holding(process: i32, judge: impl FnMut(i64) -> Verdict + Send + 'static) -> Self {
        Self::with(process, libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACEFORK, judge)
    }

    fn with(process: i32, options: libc::c_int, judge: impl FnMut(i64) -> Verdict + Send + 'static) -> Self {
        let (stop, stopped) = mpsc::channel();
        let (begun, has_begun) = mpsc::channel();
        let thread = thread::spawn(move || {
            let threads = attach(process, options);
            begun.send(()).unwrap();
            trace(process, threads, judge, &stopped)
        });
        has_begun.recv().unwrap();
        Self { stop, thread }
    }

    /// Traces the process from now on. It is killed before the call `fatal`, counted from 1.
    pub fn killing_at(process: i32, fatal: usize) -> Self {
        let mut calls = 0;
        Self::new(process, move |_| {
            calls += 1;
            if calls == fatal { Verdict::Kill } else { Verdict::GoOn }
        })
    }

    /// Waits for the death of the process, or for its release. Returns whether it was killed.
    pub fn wait(self) -> bool {
        self.thread.join().unwrap()
    }

    /// Ends the trace. Returns whether the process was killed.
    pub fn end(self) -> bool {
        // It has ended if the process has.
        let _ = self.stop.send(());
        self.thread.join().unwrap()
    }
}

fn ptrace(request: libc::c_uint, thread: i32, data: usize) -> io::Result<()> {
    // SAFETY: these requests take numbers, and write no memory of this process.
    match unsafe { libc::ptrace(request, thread, 0, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Waits for a stop of one of these threads. None: there is none now.
fn stopped(thread: i32, flags: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: the call writes a number to a variable of that type.
    let found = unsafe { libc::waitpid(thread, &mut status, flags | libc::__WALL) };
    (found > 0).then_some(status)
}

/// Begins to trace all threads, which go on. A thread may end before.
fn attach(process: i32, options: libc::c_int) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut threads: Vec<i32> =
        tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    threads.retain(|thread| {
        match ptrace(libc::PTRACE_SEIZE, *thread, options as usize) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return false,
            seized => seized.unwrap(),
        }
        let _ = ptrace(libc::PTRACE_INTERRUPT, *thread, 0);
        let is_alive = stopped(*thread, 0).is_some_and(|status| libc::WIFSTOPPED(status));
        if is_alive {
            ptrace(libc::PTRACE_SYSCALL, *thread, 0).unwrap();
        }
        is_alive
    });
    threads
}

/// Returns the number of the system call that a stopped thread is about to make. None: it has made
/// one.
fn begun_call(thread: i32) -> Option<i64> {
    let mut info = std::mem::MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    // SAFETY: the request writes at most `size` bytes to the variable.
    let written = unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, size, info.as_mut_ptr()) };
    // SAFETY: it is made of numbers, for which zeros are valid.
    let info = unsafe { info.assume_init() };
    // SAFETY: as above, for each part.
    (written > 0 && info.op == libc::PTRACE_SYSCALL_INFO_ENTRY).then_some(unsafe { info.u.entry.nr } as i64)
}

fn trace(process: i32, mut threads: Vec<i32>, mut judge: impl FnMut(i64) -> Verdict, end: &mpsc::Receiver<()>) -> bool {
    while !threads.is_empty() {
        if end.try_recv().is_ok() {
            return detach(&threads);
        }
        let mut has_stopped = false;
        for thread in &mut threads {
            let Some(status) = stopped(*thread, libc::WNOHANG) else { continue };
            has_stopped = true;
            if !libc::WIFSTOPPED(status) {
                *thread = 0;
                continue;
            }
            let call = (libc::WSTOPSIG(status) == libc::SIGTRAP | 0x80).then(|| begun_call(*thread)).flatten();
            match call.map_or(Verdict::GoOn, &mut judge) {
                Verdict::GoOn => {}
                Verdict::LetGo => {
                    let _ = ptrace(libc::PTRACE_DETACH, *thread, 0);
                    *thread = 0;
                    threads.retain(|thread| *thread != 0);
                    return detach(&threads);
                }
                Verdict::Kill => {
                    // SAFETY: takes two numbers. The process is traced, so its number is its own.
                    unsafe { libc::kill(process, libc::SIGKILL) };
                    reap(&threads);
                    return true;
                }
            }
            let signal = match libc::WSTOPSIG(status) {
                signal if status >> 16 == 0 && signal & 0x80 == 0 && signal != libc::SIGTRAP => signal as usize,
                _ => 0,
            };
            let _ = ptrace(libc::PTRACE_SYSCALL, *thread, signal);
        }
        if !has_stopped {
            thread::sleep(std::time::Duration::from_micros(50));
        }
        threads.retain(|thread| *thread != 0);
    }
    true
}

/// Takes the ends of killed threads, without which the process does not end. The first one ends
/// last.
fn reap(threads: &[i32]) {
    for thread in threads.iter().rev().filter(|thread| **thread != 0) {
        while stopped(*thread, 0).is_some_and(|status| libc::WIFSTOPPED(status)) {}
    }
}

fn detach(threads: &[i32]) -> bool {
    for thread in threads {
        // It may be stopped already.
        let _ = ptrace(libc::PTRACE_INTERRUPT, *thread, 0);
        if stopped(*thread, 0).is_some_and(|status| libc::WIFSTOPPED(status)) {
            let _ = ptrace(libc::PTRACE_DETACH, *thread, 0);
        }
    }
    false
}
