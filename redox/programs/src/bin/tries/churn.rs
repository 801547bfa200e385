//! Load: several threads change their own directories with all operations. Each thread compares
//! every answer with its own record of the changes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::Answer;

type Step = Result<(), String>;

pub fn run(dir: &str, threads: u64, seconds: u64) -> Answer {
    let end = Instant::now() + Duration::from_secs(seconds);
    let counts = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mut worker = Worker { dir: format!("{dir}/churn{thread}"), ..Worker::new(thread) };
                    while Instant::now() < end {
                        worker.round(end).map_err(|error| format!("thread {thread}: {error}"))?;
                    }
                    Ok(worker.operations)
                })
            })
            .collect();
        let counts = workers.into_iter().map(|worker| worker.join().unwrap_or(Err("a thread panicked".to_owned())));
        counts.collect::<Result<Vec<u64>, String>>()
    })?;
    Ok(format!("{} operations, all right", counts.iter().sum::<u64>()))
}

struct Worker {
    dir: String,
    /// The expected contents of the directory.
    files: BTreeMap<String, Vec<u8>>,
    random: u64,
    operations: u64,
}

/// Adds the operation and the path to an error.
fn did<T>(what: &str, path: &str, result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{what} {path}: {error}"))
}

/// Describes the object that a descriptor leads to. With several threads, a descriptor has led to
/// the object of another thread, once in some ten thousand operations.
fn led_to(file: &File) -> String {
    let descriptor = file.as_raw_fd();
    let mut path = [0; 4096];
    let path = libredox::call::fpath(descriptor as usize, &mut path)
        .map(|length| String::from_utf8_lossy(&path[..length]).into_owned());
    format!("descriptor {descriptor} is {path:?}, {:?}", file.metadata().map(|meta| (meta.is_dir(), meta.len())))
}

impl Worker {
    fn new(seed: u64) -> Worker {
        Worker { dir: String::new(), files: BTreeMap::new(), random: seed * 7919 + 1, operations: 0 }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir)
    }

    /// Makes a directory, changes it for a while, and removes it with its contents.
    fn round(&mut self, end: Instant) -> Step {
        did("mkdir", &self.dir, fs::create_dir(&self.dir))?;
        for index in 0..40 {
            if Instant::now() >= end {
                break;
            }
            self.step(index)?;
            self.operations += 1;
        }
        self.files.clear();
        did("remove_dir_all", &self.dir, fs::remove_dir_all(&self.dir))
    }

    fn step(&mut self, index: u64) -> Step {
        match self.random(8) {
            0..=2 => self.create(index),
            3 => match self.files.pop_first() {
                Some((old, bytes)) => self.moved(&old, format!("renamed{index}"), bytes),
                None => Ok(()),
            },
            4 => match self.files.pop_last() {
                Some((name, _)) => did("unlink", &name, fs::remove_file(self.path(&name))),
                None => Ok(()),
            },
            5 => match self.files.first_key_value() {
                Some((old, bytes)) => self.linked(&old.clone(), format!("linked{index}"), bytes.clone()),
                None => Ok(()),
            },
            6 => self.list(),
            _ => self.read(),
        }
    }

    fn create(&mut self, index: u64) -> Step {
        let name = format!("file{index}");
        let bytes = vec![b'a' + (index % 26) as u8; self.random(9000) as usize];
        let path = self.path(&name);
        let mut file = did("create", &path, File::create(&path))?;
        file.write_all(&bytes).map_err(|error| format!("write {path}: {error}; {}", led_to(&file)))?;
        self.files.insert(name, bytes);
        Ok(())
    }

    fn moved(&mut self, old: &str, new: String, bytes: Vec<u8>) -> Step {
        did("rename", old, fs::rename(self.path(old), self.path(&new)))?;
        self.files.insert(new, bytes);
        Ok(())
    }

    fn linked(&mut self, old: &str, new: String, bytes: Vec<u8>) -> Step {
        did("link", old, fs::hard_link(self.path(old), self.path(&new)))?;
        self.files.insert(new, bytes);
        Ok(())
    }

    fn list(&self) -> Step {
        let mut names = Vec::new();
        for entry in did("list", &self.dir, fs::read_dir(&self.dir))? {
            names.push(did("list", &self.dir, entry)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        if !names.iter().eq(self.files.keys()) {
            return Err(format!("{} lists {names:?}, not {:?}", self.dir, self.files.keys()));
        }
        Ok(())
    }

    fn read(&self) -> Step {
        for (name, bytes) in &self.files {
            let path = self.path(name);
            let mut file = did("open", &path, File::open(&path))?;
            let mut found = Vec::new();
            file.read_to_end(&mut found).map_err(|error| format!("read {path}: {error}; {}", led_to(&file)))?;
            if found != *bytes {
                return Err(format!("{path} has other contents; {}", led_to(&file)));
            }
        }
        Ok(())
    }
}
