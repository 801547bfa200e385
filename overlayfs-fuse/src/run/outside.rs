//! The process of the caller while the command runs.
//!
//! It passes signals on, and stops when the command stops, so that the caller's shell sees both.
//! The terminal sends its signals to the whole process group, so it passes none of those on. At
//! the end it takes the terminal back from a shell that ran inside.

use std::fs::File;
use std::os::fd::AsFd;

use libc::c_int;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpgrp, kill_process, wait};

use super::init::{OFFSET, STARTS, STOPPED, exit_status, wait_for};
use super::signals::Signals;
use super::{Became, FAILED};
use crate::line::Line;

/// The signals that it waits for.
const WATCHED: [c_int; 9] = [
    libc::SIGCHLD,
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTSTP,
    libc::SIGTTOU,
];

/// The process of the caller.
pub struct Caller {
    signals: Signals,
    /// The terminal, if this process has it in the foreground.
    terminal: Option<File>,
}

/// What became of the command so far.
#[derive(Default)]
struct Run {
    has_started: bool,
    /// How process 1 ended.
    ended: Option<WaitStatus>,
    /// How the server ended.
    served: Option<WaitStatus>,
}

impl Caller {
    /// Prepares to wait. Children inherit the blocked signals.
    ///
    /// # Errors
    ///
    /// - A sentence: there are too many open files.
    pub fn new() -> Result<Self, String> {
        let terminal = File::options().read(true).write(true).open("/dev/tty").ok();
        let is_ours = |terminal: &File| rustix::termios::tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp());
        let signals = Signals::block(&WATCHED).map_err(|error| format!("Signals cannot be awaited: {error}."))?;
        Ok(Self { signals, terminal: terminal.filter(is_ours) })
    }

    /// Returns the signals that the caller had blocked.
    pub fn blocked_before(&self) -> libc::sigset_t {
        self.signals.before()
    }

    /// Waits for process 1 and for the server.
    ///
    /// # Errors
    ///
    /// - A sentence: a call failed.
    pub fn wait(self, init: Pid, line: &Line, server: Pid, to_server: Line) -> Result<Became, String> {
        // Its other end tells the server that all is mounted once process 1 has closed it too.
        drop(to_server);
        let failed = |error: std::io::Error| format!("The command cannot be awaited: {error}.");
        line.send(&[STARTS], None).map_err(failed)?;
        let mut run = Run::default();
        while run.ended.is_none() || run.served.is_none() {
            let ready = match run.ended {
                None => wait_for([self.signals.as_fd(), line.as_fd()]).map_err(failed)?,
                Some(_) => wait_for([self.signals.as_fd()]).map(|[ready]| [ready, false]).map_err(failed)?,
            };
            if ready[0] {
                self.pass_on(line).map_err(failed)?;
                collect(&mut run, init, server);
            }
            if ready[1] {
                listen(&mut run, line).map_err(failed)?;
            }
        }
        // What process 1 said last.
        while let Ok(true) = is_readable(line) {
            if !listen(&mut run, line).map_err(failed)? {
                break;
            }
        }
        self.take_terminal();
        self.signals.unblock();
        let is_served = run.served.is_some_and(|status| status.exit_status() == Some(0));
        let code = run.ended.map_or(FAILED, exit_status);
        Ok(match run.has_started {
            false => Became::Nothing(code),
            true if is_served => Became::Ended(code),
            true => Became::Broken,
        })
    }

    /// Passes a signal on to the command.
    fn pass_on(&self, line: &Line) -> std::io::Result<()> {
        let came = self.signals.next()?;
        let is_for_command = !matches!(came.signal, libc::SIGCHLD | libc::SIGTTOU) && !came.from_kernel;
        if is_for_command {
            // If process 1 has ended, no process is left to get it.
            let _ = line.send(&[came.signal as u8], None);
        }
        Ok(())
    }

    /// Takes the terminal back into the foreground, if it was there.
    fn take_terminal(&self) {
        if let Some(terminal) = &self.terminal {
            // If it is gone, so is the need for it.
            let _ = rustix::termios::tcsetpgrp(terminal, getpgrp());
        }
    }
}

fn is_readable(line: &Line) -> std::io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(line, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&Timespec::default()))? > 0)
}

/// Takes a message of process 1. Returns whether there was one.
fn listen(run: &mut Run, line: &Line) -> std::io::Result<bool> {
    let Some(message) = line.receive()? else { return Ok(false) };
    match message.bytes.split_first() {
        Some((&STARTS, _)) => run.has_started = true,
        Some((&STOPPED, _)) => {
            kill_process(rustix::process::getpid(), Signal::STOP)?;
            // Now it goes on.
            let _ = line.send(&[libc::SIGCONT as u8], None);
        }
        Some((&OFFSET, offset)) => {
            if let Some(offset) = offset.first_chunk() {
                let to = rustix::fs::SeekFrom::Start(u64::from_ne_bytes(*offset));
                let _ = rustix::fs::seek(rustix::stdio::stdin(), to);
            }
        }
        _ => {}
    }
    Ok(true)
}

/// Notes the ends of process 1 and of the server. Without the server the command cannot go on.
fn collect(run: &mut Run, init: Pid, server: Pid) {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == init {
            run.ended = Some(status);
        } else if pid == server {
            run.served = Some(status);
            if run.ended.is_none() {
                match kill_process(init, Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(error) => log::error!("the command cannot be killed: {error}"),
                }
            }
        }
    }
}
