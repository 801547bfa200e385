//! Power failures at any call, with a loss of some unsynced data. The states that the tree went
//! through explain the tree of a new mount. Its names and attributes are those of one state.
//!
//! Each byte of a file is one that the file had there since its last sync, or a zero where the file
//! grew. Synced data are there.

use std::collections::BTreeSet;

use overlayfs::fsck::{Checker, Damage};
use overlayfs::layer::Kind;
use overlayfs::layer::counted::Fault;
use test_common::Random;

use crate::backing::{Backing, InMemory, Start};
use crate::memory::{Data, Loss, Order, PAGE};
use crate::op::{Op, Session, Source};
use crate::points::Tried;
use crate::view::{Content, Seen, View, view, without_held, without_set_id};

/// A sequence of operations with a power failure.
pub struct Outage<'c> {
    pub start: &'c Start,
    pub ops: &'c [Op],
    pub order: Order,
    /// The first operation during which the power fails.
    pub from: usize,
    /// The sample of states: one of so many.
    pub one_of: u64,
    pub seed: u64,
}

/// The states of the tree, and the promises of syncs.
struct History {
    /// The tree before each operation, and after the last one.
    states: Vec<View>,
    /// The tree of the lower layers alone.
    below: View,
    /// The object that each operation synced, if it was a sync.
    synced: Vec<Option<Synced>>,
}

struct Synced {
    /// None: a snapshot synced everything.
    ino: Option<u64>,
    /// The first state with all its names and attributes.
    since: usize,
}

impl Synced {
    fn is_of(&self, ino: u64) -> bool {
        self.ino.is_none_or(|synced| synced == ino)
    }
}

fn looked<S: Source>(session: &Session<'_, S>) -> View {
    without_set_id(without_held(&view(session)))
}

/// Returns the traits of an object, except the content of a file. These are its names, each with
/// the number of its directory, and its attributes; for a directory also its entries. The objects
/// above the directory do not belong to them.
fn traits(view: &View, ino: u64) -> BTreeSet<(u64, String, String, u32)> {
    let mut found = BTreeSet::new();
    for (path, seen) in view {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = if path.is_empty() { 0 } else { view[above].ino };
        if seen.ino == ino {
            found.insert((parent, name.to_owned(), seen.said.clone(), seen.mode));
        } else if parent == ino {
            found.insert((parent, name.to_owned(), seen.ino.to_string(), 0));
        }
    }
    found
}

impl History {
    fn of(outage: &Outage<'_>, prepared: &InMemory) -> Self {
        let backing = prepared.copy().unwrap();
        let mut session = Session::new(&backing, outage.start.mounting).unwrap();
        let bare = InMemory::make(&Start { ops: Vec::new(), ..outage.start.clone() });
        let below = looked(&Session::new(&bare, outage.start.mounting).unwrap());
        let mut history = History { states: vec![looked(&session)], below, synced: Vec::new() };
        for op in outage.ops {
            let done = session.apply(op);
            history.states.push(looked(&session));
            let synced = match op {
                Op::Sync(path) if done.is_ok() => {
                    let seen = history.states.last().unwrap().get(path);
                    seen.filter(|seen| is_brought(seen, &history.below)).map(|seen| seen.ino)
                }
                _ => None,
            };
            let synced = synced.map(|ino| {
                let now = traits(history.states.last().unwrap(), ino);
                let since = history.states.iter().rposition(|state| traits(state, ino) != now);
                Synced { ino: Some(ino), since: since.map_or(0, |before| before + 1) }
            });
            let is_frozen = matches!(op, Op::Snapshot) && done.is_ok();
            let frozen = is_frozen.then(|| Synced { ino: None, since: history.states.len() - 1 });
            history.synced.push(synced.or(frozen));
        }
        history
    }

    /// Returns why `found` cannot be the tree after a power failure during the operation `during`,
    /// or None if it can.
    fn refutes(&self, found: &View, during: usize, order: Order) -> Option<String> {
        let last = during + 1;
        let synced = self.synced[..during].iter().flatten();
        let first = synced.map(|synced| synced.since).max().unwrap_or(0);
        let mut why = String::new();
        for state in (first..=last).rev() {
            let wrong = self.differs(found, state, during, order)?;
            why += &format!("\n  not as after {state} operations: {wrong}");
        }
        Some(why)
    }

    fn differs(&self, found: &View, state: usize, during: usize, order: Order) -> Option<String> {
        let expected = &self.states[state];
        for (path, seen) in expected {
            let Some(now) = found.get(path) else { return Some(format!("{path} is missing")) };
            if (&now.said, now.mode) != (&seen.said, seen.mode) {
                return Some(format!("{path} is {} {:o} and not {} {:o}", now.said, now.mode, seen.said, seen.mode));
            }
            if let Some(nlink) = self.synced_links(expected, seen, during)
                && (now.ino, now.nlink) != (seen.ino, nlink)
            {
                let (ino, links) = (now.ino, now.nlink);
                return Some(format!(
                    "{path} has the number {ino} and {links} links, and not {} and {nlink}",
                    seen.ino
                ));
            }
            if let Some(content) = &now.content
                && let Some(wrong) = wrong_content(content, &self.contents(during, order, |_, other| other == seen.ino))
            {
                return Some(format!("{path}: {wrong}"));
            }
        }
        found.keys().find(|path| !expected.contains_key(*path)).map(|path| format!("{path} should not be there"))
    }

    /// Returns the link count of a file of a state, if the file was synced with its names of that
    /// state. Its inode number must be the same, too. Returns None if there was no such sync. A
    /// snapshot is none: the record of a later copy-up may be lost.
    fn synced_links(&self, state: &View, seen: &Seen, during: usize) -> Option<u32> {
        let names = |view: &View| view.values().filter(|other| other.ino == seen.ino).count();
        let synced = self.synced[..during].iter().zip(&self.states[1..]).rev();
        let mut synced =
            synced.filter(|(synced, _)| synced.as_ref().is_some_and(|synced| synced.ino == Some(seen.ino)));
        synced.find(|(_, then)| seen.kind == Kind::File && names(then) == names(state)).map(|_| seen.nlink)
    }

    /// Returns the contents since the last sync, of the objects for which `is_meant` returns true.
    fn contents(&self, during: usize, order: Order, is_meant: impl Fn(&str, u64) -> bool) -> Vec<&Content> {
        const EMPTY: &Content = &Content { size: 0, pages: std::collections::BTreeMap::new() };
        let mut contents = Vec::new();
        for (path, seen) in self.states[..=during + 1].iter().flatten() {
            if is_meant(path, seen.ino) {
                let is_last = |synced: &Option<Synced>| synced.as_ref().is_some_and(|synced| synced.is_of(seen.ino));
                let since = match order {
                    Order::Journaled => self.synced[..during].iter().rposition(is_last).map_or(0, |op| op + 1),
                    Order::None => 0,
                };
                // A new file was empty at first.
                let is_new = self.states[since].values().all(|other| other.ino != seen.ino);
                contents.extend(is_new.then_some(EMPTY));
                let states = self.states[since..=during + 1].iter().flat_map(|state| state.values());
                contents
                    .extend(states.filter(|other| other.ino == seen.ino).filter_map(|other| other.content.as_ref()));
            }
        }
        contents
    }

    /// Returns why a file has contents that no file with its name had. Names and attributes may be
    /// a mixture.
    fn refutes_contents(&self, found: &View, during: usize) -> Option<String> {
        found.iter().find_map(|(path, seen)| {
            let name = path.rsplit('/').next();
            let versions = self.contents(during, Order::None, |other, _| other.rsplit('/').next() == name);
            let wrong = wrong_content(seen.content.as_ref()?, &versions)?;
            // The contents may have come from another name, or be older than a change or a removal.
            let mut versions = self.contents(during, Order::None, |_, _| true);
            versions.extend(self.below.values().filter_map(|seen| seen.content.as_ref()));
            versions.iter().all(|version| Some(*version) != seen.content.as_ref()).then(|| format!("{path}: {wrong}"))
        })
    }
}

/// Returns why a file with these versions cannot have the content `found` after a power failure.
fn wrong_content(found: &Content, versions: &[&Content]) -> Option<String> {
    if versions.contains(&found) {
        return None;
    }
    let sizes = || versions.iter().map(|version| version.size);
    let (least, most) = (sizes().min()?, sizes().max()?);
    if !(least..=most).contains(&found.size) {
        return Some(format!("{} bytes are not between {least} and {most}", found.size));
    }
    let pages: BTreeSet<_> = versions.iter().chain([&found]).flat_map(|content| content.pages.keys()).collect();
    for page in pages {
        if versions.iter().any(|version| version.pages.get(page) == found.pages.get(page)) && (page + 1) * PAGE <= least
        {
            continue;
        }
        for at in page * PAGE..((page + 1) * PAGE).min(found.size) {
            let byte = found.byte(at);
            if !versions.iter().any(|version| version.byte(at) == byte) && (byte != 0 || at < least) {
                return Some(format!("byte {at} is {byte}, which it never was"));
            }
        }
    }
    None
}

/// Returns whether a sync writes an object to the disk. Only files and directories can be opened
/// for a sync. An unchanged file of a lower layer needs no write.
fn is_brought(seen: &Seen, below: &View) -> bool {
    match seen.kind {
        Kind::Dir => true,
        Kind::File => !below.values().any(|lower| lower == seen),
        _ => false,
    }
}

impl Outage<'_> {
    /// Tries the outage. Returns the number of states that were a mixture. Panics at a mixture if
    /// the filesystem keeps the order of changes.
    pub fn sweep(&self, prepared: &InMemory, tried: &mut Tried) -> u64 {
        let history = History::of(self, prepared);
        let mut mixtures = 0;
        for during in self.from..self.ops.len() {
            for calls in 0.. {
                let backing = prepared.copy().unwrap();
                let mut session = Session::new(&backing, self.start.mounting).unwrap();
                for op in &self.ops[..during] {
                    let _ = session.apply(op);
                }
                backing.fault_after(calls, Fault::Stop);
                let _ = session.apply(&self.ops[during]);
                let is_last = backing.struck().is_none();
                session.crash();
                for loss in self.losses(&backing, during, calls) {
                    mixtures += u64::from(self.lose(&backing, loss, &history, during, calls, tried));
                }
                if is_last {
                    break;
                }
            }
        }
        mixtures
    }

    /// Returns the sample of possible losses at this point.
    fn losses(&self, backing: &InMemory, during: usize, calls: u64) -> Vec<Loss> {
        let seed = self.seed ^ (during as u64) << 48 ^ calls << 32;
        let mut random = Random(seed);
        let (durable, changes) = (backing.disk.durable(), backing.disk.changes());
        let mut losses = Vec::new();
        for kept in durable..=changes {
            for data in [Data::All, Data::None, Data::Some] {
                let is_tried = random.number().is_multiple_of(self.one_of);
                let loss = Loss { order: self.order, kept, data, seed: random.number() };
                losses.extend(is_tried.then_some(loss));
            }
        }
        losses
    }

    fn lose(
        &self,
        before: &InMemory,
        loss: Loss,
        history: &History,
        during: usize,
        calls: u64,
        tried: &mut Tried,
    ) -> bool {
        let backing = InMemory::with(before.disk.after_loss(loss));
        let lowers = backing.lowers();
        let Start { mounting, abilities, .. } = self.start;
        let what = || {
            let ops = &self.ops[..=during];
            format!("{loss:?} after {calls} calls of the last of {ops:?} ({mounting:?}, {abilities:?})")
        };
        // Fsck checks one upper layer, and not a chain.
        if self.order == Order::Journaled && !mounting.in_chain {
            let checker =
                Checker::new(backing.layers().unwrap()).unwrap_or_else(|refused| panic!("{}: {refused}", what()));
            for finding in checker.check().unwrap() {
                // The map of unsynced data.
                let expected = finding.damage == Damage::MapMeansNothing;
                let is_lost = finding.damage.is_loss() && !expected;
                assert!(!is_lost, "{}: {} {}", what(), finding.path.display(), finding.damage);
            }
        }
        let session = Session::new(&backing, *mounting).unwrap_or_else(|error| panic!("{}: {error}", what()));
        let found = looked(&session);
        drop(session);
        backing.check_lowers(&lowers);
        let wrong = history.refutes(&found, during, self.order);
        match self.order {
            Order::Journaled => {
                tried.add("memory", "power, in order");
                assert!(wrong.is_none(), "{}: {}", what(), wrong.unwrap());
                false
            }
            Order::None => {
                tried.add("memory", "power, in no order");
                let torn = history.refutes_contents(&found, during);
                assert!(torn.is_none(), "{}: {}", what(), torn.unwrap());
                if wrong.is_some() {
                    tried.add("memory", "of these a mixture of states");
                }
                wrong.is_some()
            }
        }
    }
}
