//! A signal ends a request that takes long: the kernel passes it on as a cancellation.

use std::ffi::CString;
use std::io::{BufRead, BufReader, Error, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Answer;

/// Starts a process whose first write copies `path` up, sends it a signal after `ms`, and returns
/// what that process says.
pub fn run(path: &str, ms: u64) -> Answer {
    let mut child =
        Command::new(std::env::current_exe()?).args(["interrupted", path]).stdout(Stdio::piped()).spawn()?;
    let mut output = BufReader::new(child.stdout.take().ok_or("there is no pipe")?);
    output.read_line(&mut String::new())?;
    thread::sleep(Duration::from_millis(ms));
    // SAFETY: a plain call. Nothing has waited for the child, so the number is the child's.
    let sent = unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGUSR1) };
    let mut said = String::new();
    output.read_to_string(&mut said)?;
    child.wait()?;
    if sent == 0 { Ok(said.trim_end().to_owned()) } else { Err(said.into()) }
}

/// The process of [`run`]: it says that it begins, changes the first byte of `path`, and says how
/// that ended. After an interruption it does so again.
pub fn victim(path: &str) -> Answer {
    extern "C" fn ignore(_: libc::c_int) {}
    // SAFETY: all zeros is a valid sigaction; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as libc::sighandler_t;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
    }
    println!("begins");
    let begin = Instant::now();
    let first = change(path);
    let took = begin.elapsed().as_millis();
    let ended = |result: std::io::Result<()>| result.map_or_else(|error| error.to_string(), |()| "done".to_owned());
    match first {
        Ok(()) => Ok(format!("done after {took} ms")),
        Err(error) => Ok(format!("{error} after {took} ms, then {}", ended(change(path)))),
    }
}

/// Does not repeat a call after a signal, as the functions of the standard library do.
fn change(path: &str) -> std::io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: the string ends with NUL.
    let file = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY) };
    if file < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the buffer has one byte.
    let written = unsafe { libc::write(file, b"Z".as_ptr().cast(), 1) };
    let error = Error::last_os_error();
    // SAFETY: the descriptor is this function's.
    unsafe { libc::close(file) };
    if written == 1 { Ok(()) } else { Err(error) }
}
