//! Kills a process at a system call.

use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

/// A thread that traces a process, and kills it when its threads have begun so many system calls.
pub struct Tracer {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<bool>,
}

impl Tracer {
    /// Traces the process from now on. It is killed before the call with the number `fatal`, from
    /// 1.
    pub fn new(process: i32, fatal: usize) -> Self {
        let (stop, stopped) = mpsc::channel();
        let (begun, has_begun) = mpsc::channel();
        let thread = thread::spawn(move || {
            let threads = attach(process);
            begun.send(()).unwrap();
            trace(process, threads, fatal, &stopped)
        });
        has_begun.recv().unwrap();
        Self { stop, thread }
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

/// Begins to trace all threads, which go on.
fn attach(process: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let threads: Vec<i32> = tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    for thread in &threads {
        ptrace(libc::PTRACE_SEIZE, *thread, libc::PTRACE_O_TRACESYSGOOD as usize).unwrap();
        ptrace(libc::PTRACE_INTERRUPT, *thread, 0).unwrap();
        stopped(*thread, 0).unwrap();
        ptrace(libc::PTRACE_SYSCALL, *thread, 0).unwrap();
    }
    threads
}

fn trace(process: i32, mut threads: Vec<i32>, fatal: usize, end: &mpsc::Receiver<()>) -> bool {
    let (mut inside, mut calls) = (vec![true; threads.len()], 0);
    while !threads.is_empty() {
        if end.try_recv().is_ok() {
            return detach(&threads);
        }
        let mut has_stopped = false;
        for index in 0..threads.len() {
            let Some(status) = stopped(threads[index], libc::WNOHANG) else { continue };
            has_stopped = true;
            if !libc::WIFSTOPPED(status) {
                threads[index] = 0;
                continue;
            }
            if libc::WSTOPSIG(status) == libc::SIGTRAP | 0x80 {
                inside[index] = !inside[index];
                calls += usize::from(inside[index]);
                if inside[index] && calls == fatal {
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
            let _ = ptrace(libc::PTRACE_SYSCALL, threads[index], signal);
        }
        if !has_stopped {
            thread::sleep(std::time::Duration::from_micros(50));
        }
        let alive: Vec<_> = threads.iter().map(|thread| *thread != 0).collect();
        let mut of_inside = alive.iter();
        inside.retain(|_| *of_inside.next().unwrap());
        threads.retain(|thread| *thread != 0);
    }
    true
}

/// Takes the ends of killed threads, without which the process does not end. The first one ends
/// last.
fn reap(threads: &[i32]) {
    for thread in threads.iter().rev() {
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
