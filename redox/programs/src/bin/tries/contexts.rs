//! The threads of the system, as the kernel reports them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Error;
use std::time::Duration;

use libredox::{Fd, flag};

use crate::Answer;

/// Sends a signal to the processes of a program: to all, or to the one with the lowest or highest
/// number.
pub fn signal(program: &str, signal: i32, which: &str) -> Answer {
    let contexts = fs::read_to_string("/scheme/sys/context")?;
    let mut processes: Vec<libc::pid_t> = contexts
        .lines()
        .filter(|line| line.ends_with(&format!("/{program}")))
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect();
    processes.sort();
    processes.dedup();
    match which {
        "all" => {}
        "first" => processes.truncate(1),
        "last" => drop(processes.drain(..processes.len().saturating_sub(1))),
        other => return Err(format!("{other} is none of all, first, last").into()),
    }
    if processes.is_empty() {
        return Err(format!("no process of {program} runs").into());
    }
    for process in &processes {
        // SAFETY: a plain call.
        let failed = unsafe { libc::kill(*process, signal) } != 0;
        let error = Error::last_os_error();
        // The supervisor hands the signal on, so the other process may have ended.
        if failed && error.raw_os_error() != Some(libc::ESRCH) {
            return Err(format!("kill of {process}: {error}").into());
        }
    }
    Ok(format!("{} signalled", processes.len()))
}

/// Prints the private memory of each process of a program, in KiB, the largest first.
pub fn memory(program: &str) -> Answer {
    let contexts = fs::read_to_string("/scheme/sys/context")?;
    let mut found = BTreeMap::new();
    for line in contexts.lines().filter(|line| line.ends_with(&format!("/{program}"))) {
        let words: Vec<&str> = line.split_whitespace().collect();
        // The last words are two sizes, each a number and a unit, and the name.
        let [process, .., number, unit, _, _, _] = words[..] else {
            return Err(format!("the kernel says {line:?}").into());
        };
        let unit = ["B", "KB", "MB", "GB"].iter().position(|known| *known == unit).ok_or("an unknown unit")?;
        // Each thread has a line, with the memory of its whole process.
        found.insert(process, (number.parse::<f64>()? * 1024f64.powi(unit as i32 - 1)) as u64);
    }
    let mut sizes: Vec<u64> = found.into_values().collect();
    sizes.sort_by(|one, other| other.cmp(one));
    Ok(sizes.iter().map(u64::to_string).collect::<Vec<_>>().join(" "))
}

/// Prints what each thread waits for. The descriptor is opened first and used without the namespace
/// manager, because the manager may hang by then.
pub fn watch(ms: u64) -> Answer {
    let system = Fd::open("/scheme/sys", flag::O_RDONLY | flag::O_DIRECTORY, 0)?;
    std::thread::sleep(Duration::from_millis(ms));
    let mut said = String::new();
    for name in ["context", "block", "syscall"] {
        let file = system.openat(name, flag::O_RDONLY, 0)?;
        let mut buffer = [0; 4096];
        said.push_str(&format!("{name}:\n"));
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                length => said.push_str(&String::from_utf8_lossy(&buffer[..length])),
            }
        }
    }
    Ok(said)
}
