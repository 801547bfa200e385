//! The locks of clients on files: record locks of processes and of open files, as in fcntl(2), but
//! no request waits for one.
//!
//! `redox_scheme` has a table of them too. That does not count them, and keeps parts of a lock
//! under a wider lock.
//!
//! The lock of a process ends when the process closes a descriptor of the file. The kernel reports
//! that close only if the answer to the last standard call on the descriptor asked for it. Each
//! other answer, such as to an fstat, cancels that. So once a process holds locks through a handle,
//! all answers to such calls on the handle ask for it. The close of the handle itself releases the
//! locks of all processes that used it.

use std::cmp::{max, min};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use crate::errno::{ENOLCK, EWOULDBLOCK, Error, Result};

use super::quota::{Quota, Share};

/// How many ranges may be locked through the handles of one user. How many processes may lock,
/// counted for each of these handles. Both are four times the limit of OpenBSD and NetBSD.
const OF_USER_MAX: usize = 4096;
/// How many ranges may be locked in all. Each new lock is compared with all of them.
const IN_ALL_MAX: usize = 16384;

/// The owner of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Process(usize),
    Handle(usize),
}

/// A locked range of a file, or one to lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The number of the node.
    pub file: u64,
    pub owner: Owner,
    /// The user that opened the handle.
    pub user: u32,
    /// Not empty.
    pub bytes: Range<u64>,
    pub exclusive: bool,
}

/// The locks of all files.
pub struct Locks {
    /// Locks of one owner do not overlap. Two of one kind that touch are one.
    held: Vec<Record>,
    /// The handles through which processes have locked, with these processes.
    holders: HashMap<usize, Holders>,
    /// Limits these processes, each counted for each handle.
    quota: Arc<Quota>,
}

/// The processes that have locked a range through a handle.
struct Holders {
    pids: HashSet<usize>,
    share: Share,
}

impl Record {
    fn overlaps(&self, other: &Record) -> bool {
        self.file == other.file && self.bytes.start < other.bytes.end && other.bytes.start < self.bytes.end
    }

    /// Whether no byte lies between two locks.
    fn touches(&self, other: &Record) -> bool {
        self.file == other.file && self.bytes.start <= other.bytes.end && other.bytes.start <= self.bytes.end
    }

    /// Returns the parts of the lock outside these bytes.
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

    /// Locks a range through the handle `id`, in place of any lock of the same owner there.
    ///
    /// # Errors
    ///
    /// - EWOULDBLOCK: a lock of another owner conflicts.
    /// - ENOLCK: there are too many locks.
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

    /// Notes that a process locks through a handle.
    ///
    /// # Errors
    ///
    /// - ENOLCK: there are too many such processes.
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

    /// Unlocks a range.
    ///
    /// # Errors
    ///
    /// - ENOLCK: the unlock splits a lock, and there are too many locks.
    pub fn unlock(&mut self, range: &Record) -> Result<()> {
        self.put(range, false)
    }

    /// Iterates over the locks of other owners that overlap a range.
    pub fn others(&self, wanted: &Record) -> impl Iterator<Item = &Record> {
        self.held.iter().filter(|held| held.owner != wanted.owner && held.overlaps(wanted))
    }

    /// Sets or clears the owner's lock on `range`; its other locks are unchanged.
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

    /// Releases the locks of a process on the file of a handle, after it has closed a descriptor of
    /// the handle.
    pub fn detach(&mut self, id: usize, file: u64, pid: usize) {
        self.release(Owner::Process(pid), file);
        if let Some(Holders { pids, share }) = self.holders.get_mut(&id)
            && pids.remove(&pid)
        {
            // A smaller share never fails.
            let _ = share.set(pids.len());
            if pids.is_empty() {
                self.holders.remove(&id);
            }
        }
    }

    /// Releases the locks that were taken through a closed handle.
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

    /// Returns the locks of a process in order.
    fn held(locks: &Locks, pid: usize) -> Vec<(Range<u64>, bool)> {
        let mine = locks.held.iter().filter(|held| held.owner == Owner::Process(pid));
        let mut found: Vec<_> = mine.map(|held| (held.bytes.clone(), held.exclusive)).collect();
        found.sort_by_key(|(bytes, _)| bytes.start);
        found
    }

    #[test]
    fn locks_that_touch_become_one_and_a_new_lock_replaces_old_ones() {
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
    fn processes_with_locks_have_limits_too() {
        let mut locks = Locks::new();
        let by = |pid| Record { user: 1, ..record(pid, 0..1, false) };
        for number in 0..OF_USER_MAX {
            locks.lock(number % 7, &by(number)).unwrap();
            locks.unlock(&by(number)).unwrap();
        }
        assert_eq!(locks.lock(7, &by(OF_USER_MAX)), Err(Error::new(ENOLCK)));
        assert_eq!(locks.lock(0, &by(0)), Ok(()), "it has one already");
        locks.detach(1, 1, 1);
        assert_eq!(locks.lock(7, &by(OF_USER_MAX)), Ok(()));
        locks.close(2, 1);
        assert_eq!(locks.lock(7, &by(OF_USER_MAX + 1)), Ok(()));
    }
}
