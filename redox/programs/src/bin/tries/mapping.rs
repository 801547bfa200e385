//! Shared mappings of a file: all mappings, reads and writes see the same content.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Error, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::slice;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::Answer;

const PAGE: usize = 4096;

/// A shared mapping of a whole file.
pub struct Mapping {
    start: *mut u8,
    length: usize,
}

impl Mapping {
    pub fn new(file: &File) -> std::io::Result<Mapping> {
        let length = (file.metadata()?.len() as usize).next_multiple_of(PAGE);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a mapping at an address that the system chooses touches no memory of this
        // program.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        Ok(Mapping { start: start.cast(), length })
    }

    /// Returns the mapped bytes. Other processes may change them.
    fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: the memory stays mapped while this value lives. Other threads and processes may
        // change an atomic byte.
        unsafe { slice::from_raw_parts(self.start.cast(), self.length) }
    }

    pub fn get(&self, index: usize) -> u8 {
        self.bytes()[index].load(Ordering::SeqCst)
    }

    pub fn set(&self, index: usize, byte: u8) {
        self.bytes()[index].store(byte, Ordering::SeqCst);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and no borrow of it is left.
        if unsafe { libc::munmap(self.start.cast(), self.length) } != 0 {
            println!("munmap: {}", Error::last_os_error());
        }
    }
}

pub fn open(path: &str) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn byte(file: &File, offset: u64) -> std::io::Result<u8> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    Ok(byte[0])
}

pub fn one_process(path: &str) -> Answer {
    let file = open(path)?;
    let before = std::fs::read(path)?;
    let (one, other) = (Mapping::new(&file)?, Mapping::new(&file)?);
    let mut wrong = Vec::new();
    let mut check = |what, right: bool| {
        if !right {
            wrong.push(what);
        }
    };
    check("it shows the file", (0..before.len()).all(|index| one.get(index) == before[index]));
    one.set(1, b'S');
    check("another mapping sees a store", other.get(1) == b'S');
    check("read sees a store", byte(&file, 1)? == b'S');
    file.write_all_at(b"W", 2)?;
    check("it sees a write", one.get(2) == b'W');
    drop((one, other));
    check("read sees a store after munmap", byte(&file, 1)? == b'S');
    drop(file);
    let after = std::fs::read(path)?;
    check("the stores are in the file after close", after[1] == b'S' && after[2] == b'W');
    check("the rest is as it was", after.len() == before.len() && after[3..] == before[3..] && after[0] == before[0]);
    Ok(if wrong.is_empty() { "right".to_owned() } else { format!("not so: {}", wrong.join("; ")) })
}

/// Maps a file in this process and in another one. Both store to it in turn.
pub fn two_processes(path: &str) -> Answer {
    let file = open(path)?;
    let mapping = Mapping::new(&file)?;
    let mut peer = Command::new(std::env::current_exe()?)
        .args(["mapping-peer", path])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut told = BufReader::new(peer.stdout.take().ok_or("no pipe")?).lines();
    let mut to = peer.stdin.take().ok_or("no pipe")?;
    let mut wrong = Vec::new();
    for turn in 0..26 {
        let byte = b'a' + turn;
        mapping.set(3, byte);
        to.write_all(&[byte])?;
        match told.next() {
            Some(line) if line.as_deref().is_ok_and(|line| line == "seen") => {}
            other => wrong.push(format!("turn {turn}: the other process says {other:?}")),
        }
        if mapping.get(4) != byte {
            wrong.push(format!("turn {turn}: the store of the other process is not seen"));
        }
    }
    drop(to);
    if !peer.wait()?.success() {
        wrong.push("the other process failed".to_owned());
    }
    drop((mapping, file));
    let after = std::fs::read(path)?;
    if after[3..5] != *b"zz" {
        wrong.push("the last stores are not in the file".to_owned());
    }
    Ok(if wrong.is_empty() { "right".to_owned() } else { wrong.swap_remove(0) })
}

/// The other process of `two_processes`. For each byte that it is told, it says whether its mapping
/// has the byte, and stores the byte elsewhere.
pub fn peer(path: &str) -> Answer {
    let mapping = Mapping::new(&open(path)?)?;
    let mut input = std::io::stdin();
    let mut byte = [0];
    while std::io::Read::read(&mut input, &mut byte)? == 1 {
        let found = mapping.get(3);
        mapping.set(4, byte[0]);
        println!("{}", if found == byte[0] { "seen" } else { "not seen" });
    }
    Ok(String::new())
}
