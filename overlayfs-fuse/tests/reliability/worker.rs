//! A program that changes its part of a tree at random, one call at a time, and records its
//! history.
//!
//! It has a directory of its own, and files in a directory that all programs use.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::XattrFlags;
use test_common::{Random, mode, put};

use crate::call::{Call, SyncBy, bytes};
use crate::history::{BLOCK, Content, Entry, FileId, Found, History, State, Step, parent};

/// The directory that all programs use.
const SHARED: &str = "shared";

/// The limit of the size of a file.
const LARGEST: usize = 3 << 20;

/// The limit of names of a program.
const NAMES: usize = 60;

/// The extended attributes that it sets, and the limit of each. Together with the marks of the
/// overlay they fit into a block, as ext4 needs.
const XATTRS: [&str; 3] = ["user.one", "user.two", "user.three"];
const LARGEST_XATTR: usize = 900;

/// A program.
pub struct Worker {
    number: usize,
    root: PathBuf,
    random: Random,
    /// The clock of the steps.
    clock: Arc<AtomicU64>,
    next_file: FileId,
    /// Whether it renames directories.
    pub moves_dirs: bool,
    /// Whether it sets extended attributes.
    pub has_xattrs: bool,
    /// Whether it makes files without a name.
    pub has_temps: bool,
    /// Whether its renames leave devices.
    pub leaves_devices: bool,
    /// Whether it exchanges names.
    pub exchanges: bool,
    pub history: History,
}

impl Worker {
    /// Puts the first files of the program into two lower layers. The first argument is the higher
    /// one.
    pub fn furnish(number: usize, upper: &Path, lower: &Path) {
        let own = format!("w{number}");
        let mut seed = number as u64 * 1000;
        let mut file = |layer: &Path, path: &str, length: usize| {
            seed += 1;
            let path = put::file(layer, path, bytes(seed, length));
            mode(&path, 0o644);
            rustix::fs::setxattr(&path, XATTRS[0], &bytes(seed, 50), XattrFlags::empty()).unwrap();
        };
        for (index, length) in [0, 10, 3000, 4096, 9000, 70_000].into_iter().enumerate() {
            file(upper, &format!("{own}/small{index}"), length);
        }
        file(lower, &format!("{own}/big0"), (1 << 20) + 100);
        file(lower, &format!("{own}/big1"), 2_500_000);
        for path in ["dir/a", "dir/b", "dir/sub/c", "two/x"] {
            file(upper, &format!("{own}/{path}"), 5000);
        }
        file(lower, &format!("{own}/two/y"), 5001);
        file(lower, &format!("{own}/two/z/deep"), 300);
        file(lower, &format!("{own}/hard"), 6000);
        put::link(lower, &format!("{own}/hard"), &format!("{own}/hard-too"));
        put::symlink(upper, &format!("{own}/symlink"), "small1");
        for index in 0..3 {
            file(upper, &format!("{SHARED}/{own}-{index}"), 2000);
        }
        file(lower, &format!("{SHARED}/{own}-large"), 1_200_000);
    }

    /// Makes the program with this number in the tree at `root`, which has its first files.
    pub fn new(number: usize, root: &Path, seed: u64, clock: Arc<AtomicU64>) -> Self {
        let mut worker = Self {
            number,
            root: root.to_owned(),
            random: Random(seed ^ (number as u64) << 32),
            clock,
            next_file: 0,
            moves_dirs: true,
            has_xattrs: true,
            has_temps: true,
            leaves_devices: true,
            exchanges: true,
            history: History::new(State::default()),
        };
        let state = worker.find().to_state();
        worker.next_file = state.files.len();
        worker.history = History::new(state);
        worker
    }

    /// Returns all objects of the program in their present state.
    pub fn find(&self) -> Found {
        let mut found = Found::default();
        found.add(&self.root, &self.own());
        let prefix = format!("{}-", self.own());
        for entry in fs::read_dir(self.root.join(SHARED)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.starts_with(&prefix) {
                found.add(&self.root, &format!("{SHARED}/{name}"));
            }
        }
        found
    }

    /// Panics unless the tree equals the history.
    pub fn compare(&mut self) {
        let found = self.find();
        self.history
            .check_answered(&found)
            .unwrap_or_else(|difference| panic!("program {}: {difference}", self.number));
    }

    fn own(&self) -> String {
        format!("w{}", self.number)
    }

    /// Makes one call, or a few that belong together. An error is that of a call. Its step stays
    /// without an answer.
    pub fn work(&mut self) -> io::Result<()> {
        match self.random.below(24) {
            0 | 1 => return self.replace(),
            2 => return self.sync_all_above(),
            _ => {}
        }
        let call = loop {
            if let Some(call) = self.choose() {
                break call;
            }
        };
        self.perform(call)
    }

    /// Replaces a file as editors do: writes a file with another name, and renames it.
    fn replace(&mut self) -> io::Result<()> {
        let (temp, length) = (self.free_name(), 1 + self.random.below(20_000));
        let Some(target) = self.some_file() else { return Ok(()) };
        let Some(temp) = temp else { return self.perform(Call::Unlink(target)) };
        self.perform(Call::Create(temp.clone()))?;
        self.perform(Call::Write { path: temp.clone(), offset: 0, length })?;
        self.perform(Call::SyncFile(temp.clone()))?;
        self.perform(Call::Rename(temp, target))
    }

    /// Syncs a file and all directories above it.
    fn sync_all_above(&mut self) -> io::Result<()> {
        let Some(path) = self.some_file() else { return Ok(()) };
        self.perform(Call::SyncFile(path.clone()))?;
        let mut above = path.as_str();
        while !above.is_empty() {
            above = parent(above);
            self.perform(Call::SyncDir(above.to_owned()))?;
        }
        Ok(())
    }

    fn choose(&mut self) -> Option<Call> {
        let kind = self.random.below(128);
        Some(match kind {
            0..10 => Call::Create(self.free_name()?),
            10..40 => {
                let path = self.some_file()?;
                let size = self.size(&path);
                let (offset, length) = match self.random.below(4) {
                    0 => (size, 1 + self.random.below(9000)),
                    1 => {
                        // The write stays inside one block.
                        let offset = self.random.below(size + 1);
                        (offset, 1 + self.random.below(BLOCK - offset % BLOCK))
                    }
                    2 => (self.random.below(size + 1), 1 + self.random.below(9000)),
                    _ => (self.random.below(size + 1), 1 + self.random.below(200_000)),
                };
                (offset + length <= LARGEST).then_some(Call::Write { path, offset, length })?
            }
            40..45 => {
                let path = self.some_file()?;
                let size = self.size(&path);
                let size = if self.random.below(3) == 0 { 0 } else { self.random.below(size + 5000) };
                (size <= LARGEST).then_some(Call::Truncate(path, size))?
            }
            45..50 => Call::Mode(self.some_file()?, *self.random.one_of(&[0o644, 0o600, 0o755])),
            50..57 => Call::Unlink(self.some_path(|entry| *entry != Entry::Dir)?),
            57..67 => {
                let from = self.some_path(|entry| *entry != Entry::Dir)?;
                let to = if self.random.below(3) == 0 { self.some_file()? } else { self.free_name()? };
                // A rename between two names of one file does nothing.
                let tree = &self.history.state().tree;
                (from != to && tree.get(&from) != tree.get(&to)).then_some(Call::Rename(from, to))?
            }
            67..71 => {
                let from = self.some_dir()?;
                let to = self.free_name()?;
                let inside = to.starts_with(&format!("{from}/")) || parent(&to) == SHARED;
                (self.moves_dirs && !inside).then_some(Call::Rename(from, to))?
            }
            71..75 => Call::Link(self.some_file()?, self.free_name()?),
            75..77 => Call::Symlink(self.free_name()?),
            77..81 => {
                let path = self.free_name()?;
                (parent(&path) != SHARED).then_some(Call::MakeDir(path))?
            }
            81..83 => {
                let path = self.some_dir()?;
                let is_empty = !self.history.state().tree.keys().any(|other| parent(other) == path);
                is_empty.then_some(Call::RemoveDir(path))?
            }
            83..91 => {
                let path = self.some_file()?;
                let size = self.size(&path);
                let offset = self.random.below(size.max(1));
                let most = *self.random.one_of(&[100, 9000, 200_000]);
                let length = (1 + self.random.below(most)).min(size - offset);
                (length > 0).then(|| Call::Store {
                    path,
                    offset,
                    length,
                    sync: *self.random.one_of(&[SyncBy::Msync, SyncBy::Fsync]),
                })?
            }
            91..97 => {
                let since = Duration::from_nanos(self.random.number() >> 2);
                Call::Time(self.some_file()?, since)
            }
            97..103 => {
                let (path, name) = (self.some_file()?, self.random.one_of(&XATTRS).to_string());
                let length = 1 + self.random.below(LARGEST_XATTR);
                self.has_xattrs.then_some(Call::SetXattr(path, name, length))?
            }
            103..106 => {
                let path = self.some_file()?;
                let names: Vec<String> = self.content(&path)?.xattrs.keys().cloned().collect();
                (!names.is_empty()).then(|| Call::RemoveXattr(path, self.random.one_of(&names).clone()))?
            }
            106..114 => Call::SyncFile(self.some_file()?),
            114..117 => {
                let from = self.some_path(|entry| *entry != Entry::Dir)?;
                let to = if self.random.below(3) == 0 { self.some_file()? } else { self.free_name()? };
                let tree = &self.history.state().tree;
                let differs = from != to && tree.get(&from) != tree.get(&to);
                (self.leaves_devices && differs).then_some(Call::Leave(from, to))?
            }
            117..120 => {
                let to = self.some_path(|entry| matches!(entry, Entry::Symlink(_) | Entry::Device))?;
                let from = self.some_file()?;
                self.exchanges.then_some(Call::Exchange(from, to))?
            }
            120..122 => {
                let (path, length) = (self.free_name()?, self.random.below(20_000));
                self.has_temps.then_some(Call::Temp(path, length))?
            }
            _ => {
                let dirs = self.dirs();
                Call::SyncDir(self.random.one_of(&dirs).clone())
            }
        })
    }

    fn some_path(&mut self, wanted: impl Fn(&Entry) -> bool) -> Option<String> {
        let tree = &self.history.state().tree;
        let all: Vec<String> = tree.iter().filter(|(_, entry)| wanted(entry)).map(|(path, _)| path.clone()).collect();
        (!all.is_empty()).then(|| self.random.one_of(&all).clone())
    }

    fn some_file(&mut self) -> Option<String> {
        self.some_path(|entry| matches!(entry, Entry::File(_)))
    }

    /// Returns a directory that can be removed, other than the program's own.
    fn some_dir(&mut self) -> Option<String> {
        let own = self.own();
        self.some_path(|entry| *entry == Entry::Dir).filter(|path| *path != own)
    }

    /// Returns the directories that can take a file.
    fn dirs(&self) -> Vec<String> {
        let tree = &self.history.state().tree;
        let own = tree.iter().filter(|(_, entry)| **entry == Entry::Dir).map(|(path, _)| path.clone());
        own.chain([SHARED.to_owned()]).collect()
    }

    fn free_name(&mut self) -> Option<String> {
        let dirs = self.dirs();
        let dir = self.random.one_of(&dirs).clone();
        let prefix = if dir == SHARED { format!("{}-", self.own()) } else { String::new() };
        let path = format!("{dir}/{prefix}n{}", self.random.below(20));
        let tree = &self.history.state().tree;
        (tree.len() < NAMES && path.matches('/').count() < 8 && !tree.contains_key(&path)).then_some(path)
    }

    /// Returns the content of a file.
    fn content(&self, path: &str) -> Option<&Content> {
        let state = self.history.state();
        match state.tree.get(path) {
            Some(Entry::File(id)) => state.files.get(id),
            _ => None,
        }
    }

    fn size(&self, path: &str) -> usize {
        self.content(path).map_or(0, |content| content.bytes.len())
    }

    fn perform(&mut self, call: Call) -> io::Result<()> {
        let mut state = self.history.state().clone();
        let seed = self.random.number();
        let promise = call.apply(&mut state, &mut self.next_file, seed);
        let (what, begun) = (format!("{call:?}"), self.clock.load(Ordering::SeqCst));
        let (file, dirs) = (call.file(&state), call.dirs());
        self.history.begin(Step { what, begun, done: None, promise, file, dirs, state });
        call.make(&self.root, seed)?;
        self.history.done(self.clock.load(Ordering::SeqCst));
        Ok(())
    }
}
