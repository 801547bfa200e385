//! The history of a program's files, step by step, and the trees that a crash may leave of it.
//!
//! A step is one call that changes the tree, or one that syncs. After a crash each name must show
//! its state after some step, and so must each block of a file. The step must lie between the last
//! one that is promised and the last one that was begun.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use test_common::xattrs;

/// The unit that a filesystem writes whole or not at all.
pub const BLOCK: usize = 4096;

/// The number of a file, which may have several names.
pub type FileId = usize;

/// The object at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    Dir,
    Symlink(String),
    /// A device with the number 0, as a rename leaves it.
    Device,
    File(FileId),
}

/// The contents and attributes of a file.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Content {
    pub bytes: Arc<Vec<u8>>,
    pub mode: u32,
    /// The time of the last change of the bytes. None is an unknown time after a set one.
    pub mtime: Option<SystemTime>,
    /// The attributes of the program (`user.`).
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// The tree of a program at one time.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct State {
    pub tree: BTreeMap<String, Entry>,
    pub files: HashMap<FileId, Content>,
}

impl State {
    /// Returns the names of a file.
    pub fn names(&self, id: FileId) -> Vec<&str> {
        let named = self.tree.iter().filter(|(_, entry)| **entry == Entry::File(id));
        named.map(|(path, _)| path.as_str()).collect()
    }

    /// Returns whether this state equals `found`, except for unknown times.
    pub fn is(&self, found: &Self) -> bool {
        let fits = |(id, content): (&FileId, &Content)| {
            let found = found.files.get(id);
            found.is_some_and(|found| *found == Content { mtime: content.mtime.or(found.mtime), ..content.clone() })
        };
        self.tree == found.tree && self.files.iter().all(fits)
    }
}

/// Returns the path of the directory that contains `path`.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// A promise about the disk, from the success of a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Promise {
    /// The data of a file, and the name by which it was synced.
    File(FileId, String),
    /// The names in a directory.
    Dir(String),
}

/// A call.
pub struct Step {
    /// A description for messages.
    pub what: String,
    /// The times of the start and the answer, by the clock of the test. None: without an answer.
    pub begun: u64,
    pub done: Option<u64>,
    pub promise: Option<Promise>,
    /// The file that got a name or other content, and the directories in which a name changed.
    pub file: Option<FileId>,
    pub dirs: Vec<String>,
    /// The tree after the step.
    pub state: State,
}

/// The calls of one program, in their order.
pub struct History {
    steps: Vec<Step>,
}

/// A tree as the test found it.
#[derive(Default)]
pub struct Found(BTreeMap<String, FoundEntry>);

#[derive(PartialEq, Eq)]
enum FoundEntry {
    Dir,
    Symlink(String),
    Device,
    File { content: Content, ino: u64 },
}

/// The versions of a file that a crash may leave.
#[derive(Clone, Copy)]
struct Floor {
    /// This step and later ones.
    step: usize,
    /// Whether the time of last change is that of one of these versions, too. A power failure
    /// during the completion of a partial copy may lose its time.
    timed: bool,
}

/// The order in which changes of names survive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// All names are those after one step.
    Kept,
    /// Each name has a step of its own, even a promised name. btrfs alone, without an overlay,
    /// brings back old names of renamed files in synced directories.
    EachName,
}

impl Found {
    /// Records the object at `path`, with everything below it, if it exists.
    pub fn add(&mut self, root: &Path, path: &str) {
        let full = root.join(path);
        let Ok(metadata) = full.symlink_metadata() else { return };
        let entry = if metadata.is_dir() {
            for entry in fs::read_dir(&full).unwrap() {
                self.add(root, &format!("{path}/{}", entry.unwrap().file_name().to_str().unwrap()));
            }
            FoundEntry::Dir
        } else if metadata.is_symlink() {
            FoundEntry::Symlink(fs::read_link(&full).unwrap().to_str().unwrap().to_owned())
        } else if metadata.file_type().is_char_device() {
            assert_eq!(metadata.rdev(), 0, "the device {}", full.display());
            FoundEntry::Device
        } else {
            let bytes = fs::read(&full).unwrap_or_else(|error| panic!("{} cannot be read: {error}", full.display()));
            assert_eq!(bytes.len() as u64, metadata.len(), "the size of {}", full.display());
            let mut xattrs = xattrs(&full);
            xattrs.retain(|name, _| name.starts_with("user."));
            let (mode, mtime) = (metadata.mode() & 0o7777, Some(metadata.modified().unwrap()));
            let content = Content { bytes: Arc::new(bytes), mode, mtime, xattrs };
            FoundEntry::File { content, ino: metadata.ino() }
        };
        self.0.insert(path.to_owned(), entry);
    }

    /// Returns the found tree as a state, with files numbered from 0.
    pub fn to_state(&self) -> State {
        let mut state = State::default();
        let mut numbers = HashMap::new();
        for (path, entry) in &self.0 {
            let entry = match entry {
                FoundEntry::Dir => Entry::Dir,
                FoundEntry::Device => Entry::Device,
                FoundEntry::Symlink(target) => Entry::Symlink(target.clone()),
                FoundEntry::File { content, ino } => {
                    let next = numbers.len();
                    let id = *numbers.entry(*ino).or_insert(next);
                    state.files.insert(id, content.clone());
                    Entry::File(id)
                }
            };
            state.tree.insert(path.clone(), entry);
        }
        state
    }
}

impl History {
    /// Makes a history that begins with this state.
    pub fn new(state: State) -> Self {
        let what = "the beginning".to_owned();
        Self { steps: vec![Step { what, begun: 0, done: Some(0), promise: None, file: None, dirs: Vec::new(), state }] }
    }

    /// Returns the state after the last step.
    pub fn state(&self) -> &State {
        &self.last().state
    }

    /// Returns the last step.
    pub fn last(&self) -> &Step {
        self.steps.last().expect("there is a first one")
    }

    /// Adds a step at its start.
    pub fn begin(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// Records the answer to the last step.
    pub fn done(&mut self, now: u64) {
        self.steps.last_mut().expect("there is a first one").done = Some(now);
    }

    /// Returns the number of steps that were begun before a moment.
    pub fn begun_by(&self, moment: u64) -> usize {
        self.steps.partition_point(|step| step.begun <= moment)
    }

    /// Drops all steps but the last one.
    pub fn drop_steps(&mut self) {
        self.steps.drain(..self.steps.len() - 1);
    }

    /// Checks a tree after a kill of the daemon: it has every answered step. The last step without
    /// an answer has happened or not. The history goes on from the tree found.
    pub fn check_answered(&mut self, found: &Found) -> Result<(), String> {
        let last = self.steps.len() - 1;
        let first = self.steps.iter().rposition(|step| step.done.is_some()).expect("the beginning is done");
        let at = self.find(found, first..=last, |_| Floor { step: first, timed: true }, last)?;
        let mut state = self.steps[at].state.clone();
        for (path, entry) in &state.tree {
            if let (Entry::File(id), Some(FoundEntry::File { content, .. })) = (entry, found.0.get(path)) {
                state.files.insert(*id, content.clone());
            }
        }
        *self = Self::new(state);
        Ok(())
    }

    /// Checks a tree after a power cut at `moment`: it keeps every promise, and has no torn state.
    /// Returns whether all names are those after one step.
    pub fn check_cut(&self, found: &Found, moment: u64, order: Order) -> Result<bool, String> {
        let last = self.begun_by(moment) - 1;
        let promises: Vec<(usize, &Promise)> = self.steps[..=last]
            .iter()
            .enumerate()
            .filter(|(_, step)| step.done.is_some_and(|done| done <= moment))
            .filter_map(|(at, step)| step.promise.as_ref().map(|promise| (at, promise)))
            .collect();
        let floor = |id| {
            let of_file = promises.iter().filter(|(_, promise)| matches!(promise, Promise::File(of, _) if *of == id));
            let step = of_file.map(|(at, _)| *at).max();
            Floor { step: step.unwrap_or(0), timed: step.is_some() }
        };
        let first = promises.iter().map(|(at, promise)| self.promised(promise, *at)).max().unwrap_or(0);
        let whole = self.find(found, first..=last, floor, last);
        match order {
            Order::Kept => whole.map(|_| true),
            Order::EachName => self.check_names(found, &promises, floor, last).map(|()| whole.is_ok()),
        }
        .map_err(|difference| format!("{difference}\nThe steps:\n{}", self.story(last, moment)))
    }

    /// Lists the steps up to `last`, for a message.
    fn story(&self, last: usize, moment: u64) -> String {
        let line = |(at, step): (usize, &Step)| {
            let answered = if step.done.is_some_and(|done| done <= moment) { "" } else { " (not answered)" };
            format!("{at} {}{answered}\n", step.what)
        };
        self.steps[..=last].iter().enumerate().map(line).collect()
    }

    /// Returns the last step up to `at` that a promise is about.
    fn promised(&self, promise: &Promise, at: usize) -> usize {
        let is_meant = |step: &Step| match promise {
            Promise::File(id, _) => step.file == Some(*id),
            Promise::Dir(dir) => step.dirs.contains(dir),
        };
        self.steps[..=at].iter().rposition(is_meant).unwrap_or(0)
    }

    /// Finds the last step of `range` with the found names. The contents may be those of any step
    /// from `floor` of the file to `last`.
    fn find(
        &self,
        found: &Found,
        range: std::ops::RangeInclusive<usize>,
        floor: impl Fn(FileId) -> Floor,
        last: usize,
    ) -> Result<usize, String> {
        let mut why = String::new();
        for at in range.clone().rev() {
            match self.fits(found, at, &floor, last) {
                Ok(()) => return Ok(at),
                Err(difference) => why += &format!("\n  not after step {at}, {}: {difference}", self.steps[at].what),
            }
        }
        Err(format!("the tree found is that after none of the steps {range:?}:{why}"))
    }

    fn fits(&self, found: &Found, at: usize, floor: &impl Fn(FileId) -> Floor, last: usize) -> Result<(), String> {
        let state = &self.steps[at].state;
        if let Some(path) = found.0.keys().find(|path| !state.tree.contains_key(*path)) {
            return Err(format!("{path} is there"));
        }
        let mut inodes = HashMap::new();
        for (path, entry) in &state.tree {
            let there = found.0.get(path).ok_or_else(|| format!("{path} is missing"))?;
            self.entry_fits(path, there, entry, floor, last)?;
            if let (Entry::File(id), FoundEntry::File { ino, .. }) = (entry, there)
                && *inodes.entry(*id).or_insert(*ino) != *ino
            {
                return Err(format!("{path} is another file than {:?}", state.names(*id)));
            }
        }
        Ok(())
    }

    fn entry_fits(
        &self,
        path: &str,
        there: &FoundEntry,
        entry: &Entry,
        floor: &impl Fn(FileId) -> Floor,
        last: usize,
    ) -> Result<(), String> {
        match (there, entry) {
            (FoundEntry::Dir, Entry::Dir) | (FoundEntry::Device, Entry::Device) => Ok(()),
            (FoundEntry::Symlink(found), Entry::Symlink(target)) if found == target => Ok(()),
            (FoundEntry::File { content, .. }, Entry::File(id)) => self
                .content_fits(content, *id, floor(*id), last)
                .map_err(|difference| format!("{path}, file {id}: {difference}")),
            _ => Err(format!("{path} is not {entry:?}")),
        }
    }

    /// Checks that each block is from some version of the file.
    fn content_fits(&self, found: &Content, id: FileId, floor: Floor, last: usize) -> Result<(), String> {
        let first = floor.step;
        let mut versions: Vec<&Content> = Vec::new();
        for content in self.steps[first..=last].iter().filter_map(|step| step.state.files.get(&id)) {
            if !versions.last().is_some_and(|before| Arc::ptr_eq(&before.bytes, &content.bytes) && *before == content) {
                versions.push(content);
            }
        }
        let sizes: Vec<_> = versions.iter().map(|version| version.bytes.len()).collect();
        let bytes = &found.bytes;
        let (least, most) = (sizes.iter().min().copied().unwrap_or(0), sizes.iter().max().copied().unwrap_or(0));
        // A long write may have stopped at the end of a block.
        let size = bytes.len();
        if !sizes.contains(&size) && !(least < size && size < most && size.is_multiple_of(BLOCK)) {
            return Err(format!("{size} bytes, and the sizes since step {first} are {sizes:?}"));
        }
        if !versions.iter().any(|version| version.mode == found.mode) {
            return Err(format!("mode {:o}", found.mode));
        }
        if floor.timed && !versions.iter().any(|version| version.mtime.is_none() || version.mtime == found.mtime) {
            let times: Vec<_> = versions.iter().map(|version| version.mtime).collect();
            return Err(format!("the time of last change is {:?}, and was {times:?} since step {first}", found.mtime));
        }
        let names: BTreeSet<&String> =
            versions.iter().copied().chain([found]).flat_map(|version| version.xattrs.keys()).collect();
        for name in names {
            let value = found.xattrs.get(name);
            if !versions.iter().any(|version| version.xattrs.get(name) == value) {
                let length = value.map(Vec::len);
                return Err(format!("{name} has {length:?} bytes, which it did not have since step {first}"));
            }
        }
        // At the end of a version, a block may mix two versions. Behind the end of the source, the
        // data of a partial copy are its own.
        let mut ends: Vec<usize> =
            (0..size).step_by(BLOCK).chain(sizes.iter().copied().filter(|end| *end < size)).collect();
        ends.push(size);
        ends.sort_unstable();
        for piece in ends.windows(2).filter(|piece| piece[0] < piece[1]) {
            let (start, end) = (piece[0], piece[1]);
            // Behind the end of a version there are zeros.
            let fits = |version: &&Content| {
                let rest = version.bytes.get(start..).unwrap_or_default();
                let (same, behind) = bytes[start..end].split_at((end - start).min(rest.len()));
                rest.starts_with(same) && behind.iter().all(|byte| *byte == 0)
            };
            if !versions.iter().any(fits) {
                let zeros = if bytes[start..end].iter().all(|byte| *byte == 0) { ", zeros," } else { "" };
                let count = versions.len();
                return Err(format!(
                    "bytes {start} to {end} of {size}{zeros} are of none of {count} versions since step {first}"
                ));
            }
        }
        Ok(())
    }

    /// Checks that each name shows its state after some step, with all promised data. A promised
    /// file must have a name.
    fn check_names(
        &self,
        found: &Found,
        promises: &[(usize, &Promise)],
        floor: impl Fn(FileId) -> Floor,
        last: usize,
    ) -> Result<(), String> {
        let steps = &self.steps[..=last];
        let paths: BTreeSet<&String> =
            steps.iter().flat_map(|step| step.state.tree.keys()).chain(found.0.keys()).collect();
        for path in paths {
            let there = found.0.get(path);
            let mut why = String::new();
            let fits = steps.iter().any(|step| match (there, step.state.tree.get(path)) {
                (None, None) => true,
                (Some(there), Some(entry)) => {
                    let fits = self.entry_fits(path, there, entry, &floor, last);
                    fits.map_err(|difference| why = difference).is_ok()
                }
                _ => false,
            });
            if !fits {
                let there = if there.is_some() { "there" } else { "missing" };
                return Err(format!("{path} is {there}, as after none of the steps up to {last}. {why}"));
            }
        }
        for (at, promise) in promises {
            let Promise::File(id, _) = promise else { continue };
            let names: BTreeSet<&str> = steps.iter().flat_map(|step| step.state.names(*id)).collect();
            let shows = |path: &&str| {
                let there = found.0.get(*path);
                there.is_some_and(|there| self.entry_fits(path, there, &Entry::File(*id), &floor, last).is_ok())
            };
            if steps[*at..].iter().all(|step| !step.state.names(*id).is_empty()) && !names.iter().any(shows) {
                return Err(format!("file {id}, which was synced in step {at}, has none of its names {names:?}"));
            }
        }
        Ok(())
    }
}
