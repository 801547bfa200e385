//! A disk that records its writes in order. Afterwards a test can compute its contents for a power
//! failure at any moment.
//!
//! It is a loop device over a file that this process serves through FUSE. A disk keeps all writes
//! before the last answered flush. Of later writes it keeps any subset, block by block.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::mount::{MountFlags, UnmountFlags};
use test_common::{Random, Setup, put};

use crate::history::BLOCK;

/// The contents of a disk, by the number of the block. Other blocks are zero.
pub type Blocks = HashMap<u64, Arc<[u8]>>;

#[derive(Clone)]
enum Event {
    Write(u64, Arc<[u8]>),
    Flush,
}

/// The writes and flushes of a disk.
#[derive(Clone, Default)]
pub struct Recording {
    begin: Blocks,
    events: Vec<Event>,
}

impl Recording {
    /// Returns the number of events.
    pub fn end(&self) -> u64 {
        self.events.len() as u64
    }

    /// Returns the contents of the disk after a power failure behind `moment` events. `random`
    /// decides which blocks without a flush are kept.
    pub fn cut(&self, moment: u64, random: &mut Random) -> Blocks {
        let events = &self.events[..moment as usize];
        let flushed = events.iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0);
        let mut blocks = self.begin.clone();
        // The share of kept blocks: from none to all, in quarters.
        let kept = random.below(5) as u64;
        for (at, event) in events.iter().enumerate() {
            if let Event::Write(number, data) = event
                && (at < flushed || random.number() % 4 < kept)
            {
                blocks.insert(*number, data.clone());
            }
        }
        blocks
    }
}

/// A block device. It exists while this value lives.
pub struct Disk {
    device: String,
    file: PathBuf,
    /// The number of events.
    pub clock: Arc<AtomicU64>,
    recording: Arc<Mutex<Recording>>,
    server: Option<JoinHandle<()>>,
}

impl Disk {
    /// Makes a disk of `size` bytes with these contents.
    pub fn new(setup: &Setup, size: u64, begin: Blocks) -> Self {
        let file = put::file(setup.root(), "device", "");
        let fuse = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let data = format!("fd={},rootmode=100000,user_id=0,group_id=0", fuse.as_raw_fd());
        let data = std::ffi::CString::new(data).unwrap();
        rustix::mount::mount("disk", &file, "fuse", MountFlags::empty(), data.as_c_str()).unwrap();
        let recording = Arc::new(Mutex::new(Recording { begin: begin.clone(), events: Vec::new() }));
        let clock = Arc::new(AtomicU64::new(0));
        let server = Server { fuse, size, blocks: begin, recording: recording.clone(), clock: clock.clone() };
        let server = Some(thread::spawn(move || server.run()));
        let mut disk = Self { device: String::new(), file, clock, recording, server };
        disk.device =
            succeed(Command::new("losetup").args(["--find", "--show", "--sector-size", "4096"]).arg(&disk.file));
        disk
    }

    /// Returns the path in `/dev`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Returns the events so far.
    pub fn recording(&self) -> Recording {
        self.recording.lock().unwrap().clone()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !self.device.is_empty() {
            let _ = Command::new("losetup").args(["--detach", &self.device]).status();
        }
        let _ = rustix::mount::unmount(&self.file, UnmountFlags::DETACH);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// Runs a program that must succeed. Returns the first line of its output.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} fails: {said}");
    String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned()
}

/// A mount point. The filesystem is mounted while this value lives.
pub struct Mounted(PathBuf);

impl Mounted {
    /// Mounts the disk with these options.
    pub fn new(disk: &Disk, point: &Path, options: &str) -> Self {
        succeed(Command::new("mount").args(["-o", options, disk.device()]).arg(point));
        Self(point.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A filesystem that stays mounted keeps its disk.
        let unmounted = Command::new("umount").arg(&self.0).status().is_ok_and(|status| status.success());
        if !unmounted {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
}

/// The limit of the data of a request, and the size of a buffer with the headers.
const MAX_DATA: usize = 1 << 20;
const MAX_HEAD: usize = 4096;

/// The length of the header of a request, and of a WRITE behind it, as in the kernel's
/// `include/uapi/linux/fuse.h`.
const HEADER: usize = 40;
const WRITE_HEADER: usize = 40;

/// Answers the requests of the kernel for a mount that is one file.
struct Server {
    fuse: File,
    size: u64,
    blocks: Blocks,
    recording: Arc<Mutex<Recording>>,
    clock: Arc<AtomicU64>,
}

impl Server {
    fn run(mut self) {
        let mut request = vec![0; MAX_DATA + MAX_HEAD];
        loop {
            let length = match self.fuse.read(&mut request) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
                // The filesystem was unmounted.
                Err(_) => return,
            };
            let Some(answer) = self.answer(&request[..length]) else { continue };
            let (error, body) = match answer {
                Ok(body) => (0, body),
                Err(errno) => (-errno, Vec::new()),
            };
            let mut bytes = (16 + body.len() as u32).to_le_bytes().to_vec();
            bytes.extend_from_slice(&error.to_le_bytes());
            bytes.extend_from_slice(&request[8..16]);
            bytes.extend_from_slice(&body);
            // The caller may be gone.
            let _ = self.fuse.write(&bytes);
        }
    }

    /// Handles a request. Returns None if the kernel waits for no answer.
    fn answer(&mut self, request: &[u8]) -> Option<Result<Vec<u8>, i32>> {
        let number = |at: usize, length: usize| {
            request[at..at + length].iter().rev().fold(0, |number: u64, byte| number << 8 | u64::from(*byte))
        };
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        Some(match number(4, 4) {
            // FORGET, INTERRUPT, BATCH_FORGET
            2 | 36 | 42 => return None,
            // GETATTR, SETATTR: of the attributes, the size is at offset 8, the mode and the link
            // count are at 60.
            3 | 4 => {
                let mut answer = words(&[u32::MAX, 0, 0, 0]);
                let mut attributes = vec![0; 88];
                attributes[0] = 1;
                attributes[8..16].copy_from_slice(&self.size.to_le_bytes());
                attributes[60..68].copy_from_slice(&words(&[0o100600, 1]));
                attributes[80..84].copy_from_slice(&words(&[BLOCK as u32]));
                answer.append(&mut attributes);
                Ok(answer)
            }
            // OPEN, with FOPEN_KEEP_CACHE
            14 => Ok(words(&[0, 0, 2, 0])),
            15 => Ok(self.read(number(HEADER + 8, 8), number(HEADER + 16, 4) as usize)),
            16 => {
                let (offset, length) = (number(HEADER + 8, 8), number(HEADER + 16, 4) as usize);
                let data = &request[HEADER + WRITE_HEADER..][..length];
                self.write(offset, data);
                Ok(words(&[length as u32, 0]))
            }
            // FSYNC
            20 => {
                self.record([Event::Flush]);
                Ok(Vec::new())
            }
            // RELEASE, DESTROY
            18 | 38 => Ok(Vec::new()),
            // INIT: version 7.31, ASYNC_READ, BIG_WRITES and MAX_PAGES
            26 => {
                let pages = (MAX_DATA / BLOCK) as u32;
                let flags = 1 | 1 << 5 | 1 << 22;
                let mut answer = words(&[7, 31, 1 << 20, flags, 64 | 48 << 16, MAX_DATA as u32, 1, pages, 0]);
                answer.resize(64, 0);
                Ok(answer)
            }
            // FALLOCATE: the kernel then writes zeros.
            43 => Err(libc::EOPNOTSUPP),
            _ => Err(libc::ENOSYS),
        })
    }

    fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let end = (offset + length as u64).min(self.size);
        let mut data = Vec::with_capacity(length);
        let mut at = offset.min(end);
        while at < end {
            let (number, within) = (at / BLOCK as u64, at as usize % BLOCK);
            let piece = (BLOCK - within).min((end - at) as usize);
            match self.blocks.get(&number) {
                Some(block) => data.extend_from_slice(&block[within..within + piece]),
                None => data.resize(data.len() + piece, 0),
            }
            at += piece as u64;
        }
        data
    }

    /// The device has blocks of this size, so every write has whole blocks.
    fn write(&mut self, offset: u64, data: &[u8]) {
        assert!(
            offset.is_multiple_of(BLOCK as u64) && data.len().is_multiple_of(BLOCK),
            "{} bytes at {offset}",
            data.len()
        );
        let first = offset / BLOCK as u64;
        let written: Vec<_> =
            (first..).zip(data.chunks(BLOCK)).map(|(number, block)| (number, Arc::<[u8]>::from(block))).collect();
        self.blocks.extend(written.iter().cloned());
        self.record(written.into_iter().map(|(number, block)| Event::Write(number, block)));
    }

    fn record(&self, events: impl IntoIterator<Item = Event>) {
        let mut recording = self.recording.lock().unwrap();
        recording.events.extend(events);
        self.clock.store(recording.events.len() as u64, Ordering::SeqCst);
    }
}
