//! The locks that clients hold on files: record locks of processes and of open files, as fcntl(2)
//! has them, but that nobody waits for one.
//!
//! `redox_scheme` has a table of them too, which does not tell how many there are, and keeps pieces
//! of what a wider lock was laid over.
//!
//! A process's lock ends when the process closes a descriptor of the file. The kernel tells of that
//! only if the last standard call on the descriptor was answered with the wish to hear of it; each
//! other answer, to an fstat say, takes the wish back. So once a process holds locks through a
//! handle, all such calls on the handle are answered with it. And when the handle is closed for
//! good, the locks of all processes that came by it are released.

use std::cmp::{max, min};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use crate::errno::{ENOLCK, EWOULDBLOCK, Error, Result};

use super::quota::{Quota, Share};

/// How many ranges may be locked through the handles of one user, and how many processes may lock
/// through each of them, together: four times what OpenBSD and NetBSD allow him.
const OF_USER_MAX: usize = 4096;
/// How many ranges may be locked. All of them are looked at for every lock.
const IN_ALL_MAX: usize = 16384;

/// Whose a lock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Process(usize),
    Handle(usize),
}

/// A range of a file that is locked, or is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The number of the node.
    pub file: u64,
    pub owner: Owner,
    /// Who opened the handle.
    pub user: u32,
    /// Not empty.
    pub bytes: Range<u64>,
    pub exclusive: bool,
}

/// The locks of all files.
pub struct Locks {
    /// Those of one owner do not overlap, and where two of one kind would touch there is one.
    held: Vec<Record>,
    /// Through which handles processes have locked, and which.
    holders: HashMap<usize, Holders>,
    /// Limits these processes, each counted for each handle, as the ranges are.
    quota: Arc<Quota>,
}

/// The processes that have locked something through a handle.
struct Holders {
    pids: HashSet<usize>,
    share: Share,
}

impl Record {
    fn overlaps(&self, other: &Record) -> bool {
        self.file == other.file && self.bytes.start < other.bytes.end && other.bytes.start < self.bytes.end
    }

    /// Whether there is nothing between two locks.
    fn touches(&self, other: &Record) -> bool {
        self.file == other.file && self.bytes.start <= other.bytes.end && other.bytes.start <= self.bytes.end
    }

    /// What is left of it without the bytes of another.
    fn without(&self, bytes: &Range<u64>) -> impl Iterator<Item = Record> {
        let left = self.bytes.start..min(self.bytes.end, bytes.start);
        let right = max(self.bytes.start, bytes.end)..self.bytes.end;
        [left, right].into_iter().filter(|part| !part.is_empty()).map(|bytes| Record { bytes, ..self.clone() })
    }
}

impl Locks {
    pub fn new() -> Self {
        Self { held: Vec::new(), holders: HashMap::new(), quota: Quota::new(OF_USER_MAX, IN_ALL_MAX, ENOLCK) }
    }

    /// Locks a range through the handle `id`, whatever lock its owner had on it. EWOULDBLOCK if
    /// another's is in the way; ENOLCK if there are too many.
    pub fn lock(&mut self, id: usize, wanted: &Record) -> Result<()> {
        if self.others(wanted).any(|held| held.exclusive || wanted.exclusive) {
            return Err(Error::new(EWOULDBLOCK));
        }
        let Owner::Process(pid) = wanted.owner else { return self.put(wanted, true) };
        if self.holders.get(&id).is_none_or(|holders| !holders.pids.contains(&pid)) {
            self.hold(id, pid, wanted.user)?;
        }
        self.put(wanted, true)
    }

    /// Remembers that a process locks through a handle. ENOLCK.
    fn hold(&mut self, id: usize, pid: usize, user: u32) -> Result<()> {
        match self.holders.entry(id) {
            Entry::Occupied(mut entry) => {
                let Holders { pids, share } = entry.get_mut();
                share.set(pids.len() + 1)?;
                pids.insert(pid);
            }
            Entry::Vacant(entry) => {
                entry.insert(Holders { share: self.quota.take(user, 1)?, pids: HashSet::from([pid]) });
            }
        }
        Ok(())
    }

    /// Unlocks a range. ENOLCK if that would make one lock two, and there are too many.
    pub fn unlock(&mut self, range: &Record) -> Result<()> {
        self.put(range, false)
    }

    /// The locks that others have somewhere in a range.
    pub fn others(&self, wanted: &Record) -> impl Iterator<Item = &Record> {
        self.held.iter().filter(|held| held.owner != wanted.owner && held.overlaps(wanted))
    }

    /// Has the owner's locks be what they were, but in one range, which is locked or not.
    fn put(&mut self, range: &Record, locked: bool) -> Result<()> {
        let is_replaced = |held: &Record| held.owner == range.owner && held.touches(range);
        let (mut before, mut after) = (0, Vec::new());
        let mut whole = range.clone();
        for held in self.held.iter().filter(|held| is_replaced(held)) {
            before += 1;
            if locked && held.exclusive == range.exclusive {
                whole.bytes = min(whole.bytes.start, held.bytes.start)..max(whole.bytes.end, held.bytes.end);
            } else {
                after.extend(held.without(&range.bytes));
            }
        }
        after.extend(locked.then_some(whole));
        let more = after.len().saturating_sub(before);
        let of_user = || self.held.iter().filter(|held| held.user == range.user).count();
        if more > 0 && (self.held.len() + more > IN_ALL_MAX || of_user() + more > OF_USER_MAX) {
            return Err(Error::new(ENOLCK));
        }
        self.held.retain(|held| !is_replaced(held));
        self.held.append(&mut after);
        Ok(())
    }

    /// Whether a process may hold a lock that it got through the handle.
    pub fn are_held(&self, id: usize) -> bool {
        self.holders.contains_key(&id)
    }

    /// Releases what a process holds on the file of a handle of which it has closed a descriptor.
    pub fn detach(&mut self, id: usize, file: u64, pid: usize) {
        self.release(Owner::Process(pid), file);
        if let Some(Holders { pids, share }) = self.holders.get_mut(&id)
            && pids.remove(&pid)
        {
            // Less is never refused.
            let _ = share.set(pids.len());
            if pids.is_empty() {
                self.holders.remove(&id);
            }
        }
    }

    /// Releases what is held through a handle that is closed.
    pub fn close(&mut self, id: usize, file: u64) {
        for pid in self.holders.remove(&id).into_iter().flat_map(|holders| holders.pids) {
            self.release(Owner::Process(pid), file);
        }
        self.release(Owner::Handle(id), file);
    }

    fn release(&mut self, owner: Owner, file: u64) {
        self.held.retain(|held| held.owner != owner || held.file != file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pid: usize, bytes: Range<u64>, exclusive: bool) -> Record {
        Record { file: 1, owner: Owner::Process(pid), user: pid as u32, bytes, exclusive }
    }

    /// What a process holds, in order.
    fn held(locks: &Locks, pid: usize) -> Vec<(Range<u64>, bool)> {
        let mine = locks.held.iter().filter(|held| held.owner == Owner::Process(pid));
        let mut found: Vec<_> = mine.map(|held| (held.bytes.clone(), held.exclusive)).collect();
        found.sort_by_key(|(bytes, _)| bytes.start);
        found
    }

    #[test]
    fn what_touches_becomes_one_and_what_is_laid_over_is_gone() {
        let mut locks = Locks::new();
        for start in [0, 2, 4] {
            locks.lock(9, &record(1, start..start + 1, true)).unwrap();
        }
        locks.lock(9, &record(1, 1..2, true)).unwrap();
        assert_eq!(held(&locks, 1), [(0..3, true), (4..5, true)]);
        locks.lock(9, &record(1, 1..10, false)).unwrap();
        assert_eq!(held(&locks, 1), [(0..1, true), (1..10, false)]);
        locks.lock(9, &record(1, 3..4, true)).unwrap();
        assert_eq!(held(&locks, 1), [(0..1, true), (1..3, false), (3..4, true), (4..10, false)]);
        locks.unlock(&record(1, 2..5, false)).unwrap();
        assert_eq!(held(&locks, 1), [(0..1, true), (1..2, false), (5..10, false)]);
        locks.lock(9, &record(1, 0..20, true)).unwrap();
        assert_eq!(held(&locks, 1), [(0..20, true)]);
        assert_eq!(locks.lock(8, &record(2, 19..20, false)), Err(Error::new(EWOULDBLOCK)));
        assert_eq!(locks.lock(8, &record(2, 20..30, false)), Ok(()), "another's does not join");
        locks.close(9, 1);
        assert_eq!((held(&locks, 1), held(&locks, 2)), (vec![], vec![(20..30, false)]));
    }

    #[test]
    fn a_user_and_all_have_limits() {
        let mut locks = Locks::new();
        let too_many = Err(Error::new(ENOLCK));
        let users = IN_ALL_MAX / OF_USER_MAX;
        for pid in 1..=users {
            let every_fourth = (0..OF_USER_MAX as u64).map(|place| 4 * place..4 * place + 3);
            locks.held.extend(every_fourth.map(|bytes| record(pid, bytes, false)));
        }
        for pid in 1..=users + 1 {
            assert_eq!(locks.lock(pid, &record(pid, 1 << 40..1 << 41, false)), too_many);
        }
        assert_eq!(locks.unlock(&record(1, 1..2, false)), too_many, "two of one");
        locks.unlock(&record(1, 0..3, false)).unwrap();
        assert_eq!(locks.unlock(&record(1, 5..6, false)), Ok(()));
        assert_eq!(locks.lock(1, &record(1, 1 << 40..1 << 41, false)), too_many);
        assert_eq!(locks.lock(1, &record(1, 0..1 << 40, false)), Ok(()), "one of many");
        assert_eq!(locks.lock(1, &record(1, 1 << 41..1 << 42, false)), Ok(()));
    }

    #[test]
    fn who_has_locked_has_limits_too() {
        let mut locks = Locks::new();
        let by = |pid| Record { user: 1, ..record(pid, 0..1, false) };
        for number in 0..OF_USER_MAX {
            locks.lock(number % 7, &by(number)).unwrap();
            locks.unlock(&by(number)).unwrap();
        }
        assert_eq!(locks.lock(7, &by(OF_USER_MAX)), Err(Error::new(ENOLCK)));
        assert_eq!(locks.lock(0, &by(0)), Ok(()), "he has already");
        locks.detach(1, 1, 1);
        assert_eq!(locks.lock(7, &by(OF_USER_MAX)), Ok(()));
        locks.close(2, 1);
        assert_eq!(locks.lock(7, &by(OF_USER_MAX + 1)), Ok(()));
    }
}
