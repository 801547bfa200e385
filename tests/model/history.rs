//! The requests of several threads with their answers, and a check whether one sequence of
//! operations explains them: whether the history is linearizable.
//!
//! An operation takes effect at one moment between its request and its answer. So an operation that
//! was answered before another request comes before it. Overlapping operations may have any order.
//! The search tries all orders that still fit, each state once.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::hash::Hasher;
use std::path::PathBuf;

use overlayfs::errno::ENOENT;
use overlayfs::layer::Stat;

use crate::mounted::Fate;
use crate::tree::{Data, Id, Place, Tree};
use crate::{Kind, Owner, RenameMode};

const OWN: Owner = Owner { uid: 0, gid: 0 };

/// A request of a thread: one operation on names in open directories, or on an open object. Numbers
/// are slots of open objects.
#[derive(Clone, Debug)]
pub enum Op {
    Open(usize, Place),
    Create(Place, Kind, u32),
    /// Makes a file without a name in an open directory, and holds it.
    Temp(usize, usize, u32),
    Link(usize, Place),
    Unlink(Place),
    RemoveDir(Place),
    Rename(Place, Place, RenameMode),
    Stat(usize),
    /// One byte, since no filesystem promises to read more in one step.
    Read(usize, usize),
    Write(usize, Option<usize>, u8),
    Truncate(usize, usize),
    /// From an offset in one file to an offset in another.
    CopyByte((usize, usize), (usize, usize)),
    Reserve(usize, usize),
    SetMode(usize, u32),
    Sync(usize),
    /// In one step.
    List(usize),
    /// The start of a listing in several steps.
    BeginList(usize),
    /// Its end.
    EndList(usize),
}

#[derive(Clone, Debug)]
pub enum Answer {
    Done,
    Failed(i32),
    Stat(Stat),
    Bytes(Vec<u8>),
    Names(Vec<OsString>),
}

/// An operation with its answer, and the times of both on a clock that all threads share.
#[derive(Clone, Debug)]
pub struct Event {
    pub op: Op,
    pub answer: Answer,
    pub asked: u64,
    pub answered: u64,
}

/// An object that a look at the tree found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub path: PathBuf,
    pub kind: Kind,
    pub mode: u32,
    /// The link count of an object that is no directory.
    pub links: u32,
    pub number: u64,
    pub data: Vec<u8>,
}

/// The result of a look at everything.
pub struct Scene {
    /// Sorted by path.
    pub seen: Vec<Seen>,
    /// The open objects by slot, with their contents. An unlinked file is not in `seen`.
    pub held: Vec<(usize, (Stat, Vec<u8>))>,
}

/// The reference, and the inode numbers seen so far.
#[derive(Clone)]
pub struct State {
    pub tree: Tree,
    pub numbers: BTreeMap<Id, u64>,
    /// The listings under way, by slot.
    pub listings: BTreeMap<usize, Listing>,
    /// What happens to the mount that shows the tree. None: there is no mount.
    pub mounted: Option<Fate>,
}

/// A listing in several steps. It has each name that is there throughout, and none that never is.
#[derive(Clone, Debug)]
pub struct Listing {
    throughout: BTreeSet<OsString>,
    ever: BTreeSet<OsString>,
}

impl Listing {
    fn explains(&self, names: &[OsString]) -> bool {
        let found: BTreeSet<_> = names.iter().cloned().collect();
        let is_twice = names
            .iter()
            .any(|name| self.throughout.contains(name) && names.iter().filter(|other| *other == name).count() > 1);
        self.throughout.is_subset(&found) && found.is_subset(&self.ever) && !is_twice
    }
}

impl State {
    /// Applies an operation. Returns whether the reference gives the same answer.
    pub fn takes(&mut self, event: &Event) -> bool {
        let takes = self.answers(event);
        for (slot, listing) in &mut self.listings {
            let entries = &self.tree.node(self.tree.handles[slot]).entries;
            listing.throughout.retain(|name| entries.contains_key(name));
            listing.ever.extend(entries.keys().cloned());
        }
        takes
    }

    fn answers(&mut self, event: &Event) -> bool {
        let tree = &mut self.tree;
        let done = match &event.op {
            Op::Open(slot, place) => tree.find(place).map(|id| {
                tree.handles.insert(*slot, id);
            }),
            Op::Create(place, kind, mode) => tree.create(place, *kind, *mode, OWN, OsStr::new("")).map(drop),
            Op::Temp(slot, dir, mode) => {
                let place = Place { held: Some(*dir), path: Vec::new() };
                tree.create_temp(&place, *mode, OWN).map(|id| {
                    tree.handles.insert(*slot, id);
                })
            }
            Op::Link(slot, place) => tree.link(tree.handles[slot], place),
            Op::Unlink(place) => tree.unlink(place),
            Op::RemoveDir(place) => tree.remove_dir(place),
            Op::Rename(from, to, mode) => tree.rename(from, to, *mode),
            Op::Write(slot, offset, byte) => tree.write(tree.handles[slot], *offset, &[*byte]),
            Op::Truncate(slot, size) => tree.truncate(tree.handles[slot], *size),
            Op::CopyByte((from, start), (to, end)) => {
                tree.copy_byte(tree.handles[from], *start, tree.handles[to], *end)
            }
            Op::Reserve(slot, size) => tree.reserve(tree.handles[slot], *size),
            Op::SetMode(slot, mode) => tree.set_mode(tree.handles[slot], *mode),
            Op::Sync(_) => Ok(()),
            Op::Read(slot, offset) => {
                let read = tree.read(tree.handles[slot], *offset, 1);
                return match (read, &event.answer) {
                    (Ok(bytes), Answer::Bytes(real)) => bytes == *real,
                    (Err(errnos), Answer::Failed(errno)) => errnos.contains(errno),
                    _ => false,
                };
            }
            Op::List(slot) => {
                let names = tree.list(tree.handles[slot]);
                return matches!((names, &event.answer), (Ok(names), Answer::Names(real)) if names == *real);
            }
            Op::BeginList(slot) => {
                let names: BTreeSet<_> = tree.node(tree.handles[slot]).entries.keys().cloned().collect();
                self.listings.insert(*slot, Listing { throughout: names.clone(), ever: names });
                return true;
            }
            Op::EndList(slot) => {
                let is_dead = tree.node(tree.handles[slot]).names == 0;
                let Some(listing) = self.listings.remove(slot) else { return false };
                return match &event.answer {
                    Answer::Names(names) => listing.explains(names),
                    answer => is_dead && matches!(answer, Answer::Failed(ENOENT)),
                };
            }
            Op::Stat(slot) => {
                let id = tree.handles[slot];
                return matches!(&event.answer, Answer::Stat(stat) if self.shows(id, stat, false));
            }
        };
        match (done, &event.answer) {
            (Ok(()), Answer::Done) => true,
            (Err(errnos), Answer::Failed(errno)) => errnos.contains(errno),
            _ => false,
        }
    }

    /// Whether an object can have these attributes. `is_asked` says whether the count of links is
    /// from no cache.
    fn shows(&mut self, id: Id, stat: &Stat, is_asked: bool) -> bool {
        let node = self.tree.node(id);
        let links = match node.kind {
            Kind::Dir => (stat.nlink == 0) == (node.names == 0),
            _ => self.has_links(id, stat.nlink, is_asked),
        };
        let size = node.kind == Kind::Dir || stat.size == node.data.len() as u64;
        links && size && stat.kind == node.kind && stat.mode == node.mode && self.is_number(id, stat.ino)
    }

    /// Returns whether this can be the link count of an object that is no directory.
    ///
    /// The kernel takes one away at the answer to a removal, even if it has asked for the count
    /// after the removal. A kill in a removal may leave the count of a file too high that had
    /// several names in a snapshot.
    fn has_links(&self, id: Id, links: u32, is_asked: bool) -> bool {
        let node = self.tree.node(id);
        let count = node.names + node.unseen;
        let may_be_less = self.mounted.is_some() && !is_asked;
        let may_be_more = self.mounted == Some(Fate::Kills) && node.linked;
        links == count || may_be_less && links < count || may_be_more && links > count
    }

    /// Returns whether this can be the object's inode number. It must stay the same, and no other
    /// named or open object may have it.
    fn is_number(&mut self, id: Id, number: u64) -> bool {
        let tree = &self.tree;
        let is_there = |id: Id| tree.node(id).names > 0 || tree.handles.values().any(|held| *held == id);
        let is_taken = self.numbers.iter().any(|(other, known)| *known == number && *other != id && is_there(*other));
        *self.numbers.entry(id).or_insert(number) == number && !is_taken
    }

    /// Describes the difference between this state and a look without concurrent changes.
    pub fn differs(&mut self, Scene { held, seen }: &Scene) -> Option<String> {
        for (slot, (stat, data)) in held {
            let id = self.tree.handles[slot];
            if !self.shows(id, stat, true) || *data != *self.tree.node(id).data {
                return Some(format!("{slot} holds object {id}, and not {stat:?} {:?}", Data::from(data.clone())));
            }
        }
        let mut paths = self.tree.paths();
        paths.sort();
        if paths.len() != seen.len() {
            return Some(format!("there are {} objects", paths.len()));
        }
        paths.iter().zip(seen).find_map(|((path, id), seen)| {
            let node = self.tree.node(*id);
            let links = node.kind == Kind::Dir || self.has_links(*id, seen.links, true);
            let same = (path, node.kind, node.mode, &*node.data) == (&seen.path, seen.kind, seen.mode, &seen.data);
            let is_same = links && same && self.is_number(*id, seen.number);
            (!is_same).then(|| format!("{} is object {id}", path.display()))
        })
    }

    fn digest(&self) -> u64 {
        let mut digest = Digest(DefaultHasher::new());
        let Self { tree, numbers, listings, .. } = self;
        let _ = write!(digest, "{:?}{:?}{numbers:?}{listings:?}", tree.nodes, tree.handles);
        digest.0.finish()
    }
}

struct Digest(DefaultHasher);

impl fmt::Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

/// Finds an order of all events that explains every answer and the tree at the end. Each thread
/// keeps its own order. Returns the state after it, or how far the longest order comes.
pub fn explain(start: &State, threads: &[Vec<Event>], end: &Scene) -> Result<State, Farthest> {
    let farthest = Farthest { events: vec![0; threads.len()], difference: None };
    let mut search = Search { threads, end, tried: HashSet::new(), farthest };
    search.from(start, &mut vec![0; threads.len()]).ok_or(search.farthest)
}

/// The longest order that explains a part of the events.
pub struct Farthest {
    /// The number of events of each thread.
    pub events: Vec<usize>,
    /// The difference at the end, if the order has all events.
    pub difference: Option<String>,
}

struct Search<'a> {
    threads: &'a [Vec<Event>],
    end: &'a Scene,
    /// The position of each thread, with the digest of the state.
    tried: HashSet<(Vec<usize>, u64)>,
    farthest: Farthest,
}

impl Search<'_> {
    fn from(&mut self, state: &State, at: &mut Vec<usize>) -> Option<State> {
        let threads = self.threads;
        if at.iter().sum::<usize>() > self.farthest.events.iter().sum() {
            self.farthest.events.clone_from(at);
        }
        let next = |thread: usize, at: &[usize]| threads[thread].get(at[thread]);
        let Some(first) = (0..at.len()).filter_map(|thread| next(thread, at)).map(|event| event.answered).min() else {
            let mut state = state.clone();
            self.farthest.difference = state.differs(self.end);
            return self.farthest.difference.is_none().then_some(state);
        };
        if !self.tried.insert((at.clone(), state.digest())) {
            return None;
        }
        for thread in 0..at.len() {
            // A request after an answer comes after the answered operation.
            let Some(event) = next(thread, at).filter(|event| event.asked < first) else { continue };
            let mut after = state.clone();
            if after.takes(event) {
                at[thread] += 1;
                if let Some(end) = self.from(&after, at) {
                    return Some(end);
                }
                at[thread] -= 1;
            }
        }
        None
    }
}
