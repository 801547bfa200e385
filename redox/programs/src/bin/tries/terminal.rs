//! A person at a terminal: lines that are typed, and the output that they cause.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libredox::{Fd, call, flag};

use crate::Answer;

/// The time without output after which the next line is typed.
const QUIET: Duration = Duration::from_millis(700);
const TIMEOUT: Duration = Duration::from_secs(30);

/// Starts a program on a pseudo-terminal, and types the lines. Words make a line, and `/` ends it.
/// The first line is not typed: it has the arguments of the program.
/// Returns the output without control sequences.
pub fn talk(program: &str, words: &[&str]) -> Answer {
    let flags = flag::O_CLOEXEC | flag::O_RDWR | flag::O_CREAT | flag::O_NONBLOCK;
    let terminal = call::open("/scheme/pty/ptmx", flags, 0)?;
    // SAFETY: the descriptor is new, and nothing else owns it.
    let mut terminal = unsafe { File::from_raw_fd(terminal as i32) };
    let path = name_of_other_side(&terminal)?;
    let side = || File::options().read(true).write(true).open(&path).map(Stdio::from);
    let mut lines = words.split(|word| *word == "/");
    let arguments = lines.next().unwrap_or_default();
    let mut child = Command::new(program).args(arguments).stdin(side()?).stdout(side()?).stderr(side()?).spawn()?;

    let mut said = listen(&mut terminal)?;
    for line in lines {
        terminal.write_all(format!("{}\n", line.join(" ")).as_bytes())?;
        said.extend(listen(&mut terminal)?);
    }
    let begin = Instant::now();
    let mut status = child.try_wait()?;
    while status.is_none() && begin.elapsed() < TIMEOUT {
        said.extend(listen(&mut terminal)?);
        status = child.try_wait()?;
    }
    if status.is_none() {
        child.kill()?;
    }
    let ended = status.map_or("still runs".to_owned(), |status| status.to_string());
    Ok(format!("{}\n{program}: {ended}", plain(&String::from_utf8_lossy(&said))))
}

/// Returns the path of the side of a terminal that programs use. ptyd and relibc must be from the
/// same day for `ptsname`. So this asks ptyd.
fn name_of_other_side(terminal: &File) -> Result<String, Box<dyn std::error::Error>> {
    let about = |subject: &[u8]| call::dup(terminal.as_raw_fd() as usize, subject).map(Fd::new);
    about(b"ptlock")?.write(&0i32.to_ne_bytes())?;
    let mut number = [0; 4];
    about(b"ptsname")?.read(&mut number)?;
    Ok(format!("/scheme/pty/{}", u32::from_ne_bytes(number)))
}

/// Reads until there is no more output for a moment.
fn listen(terminal: &mut File) -> std::io::Result<Vec<u8>> {
    let (begin, mut last, mut said) = (Instant::now(), Instant::now(), Vec::new());
    let mut packet = [0; 4096];
    while last.elapsed() < QUIET && begin.elapsed() < TIMEOUT {
        match terminal.read(&mut packet) {
            // The first byte is a flag of ptyd.
            Ok(length @ 1..) => {
                said.extend_from_slice(&packet[1..length]);
                last = Instant::now();
            }
            Ok(0) => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(QUIET / 20),
            Err(error) => return Err(error),
        }
    }
    Ok(said)
}

/// Removes control sequences, and lines without text.
fn plain(text: &str) -> String {
    let mut result = String::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\x1b' => drop(letters.by_ref().skip(1).find(char::is_ascii_alphabetic)),
            '\r' => result.push('\n'),
            '\n' => result.push('\n'),
            letter if letter.is_control() => {}
            letter => result.push(letter),
        }
    }
    result.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}
