//! The locks of redoxfs, as redox-scheme 0.11.0 implements them. They differ from POSIX, and an
//! overlay must be able to lock a layer all the same.
//!
//! All files are one: a lock on one file conflicts with a lock on another, even if one process
//! holds both. Two ranges conflict only if they overlap in more than one byte.

use redox_scheme::scheme::SchemeResponse;
use syscall::error::{EOPNOTSUPP, EWOULDBLOCK, Error, Result};
use syscall::flag::StdFsCallKind;

/// In the start of a lock: it belongs to the descriptor, not to the process. In the length: it is
/// exclusive.
const FLAG: u64 = 1 << 63;
/// The last byte that can be locked.
const LAST: u64 = i64::MAX as u64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Process { pid: usize, inode: usize },
    Descriptor(usize),
}

struct Lock {
    owner: Owner,
    first: u64,
    last: u64,
    exclusive: bool,
}

#[derive(Default)]
pub struct Locks(Vec<Lock>);

impl Locks {
    /// Answers a call about locks. None: the call is another one.
    ///
    /// # Errors
    ///
    /// - EWOULDBLOCK: a lock of another owner conflicts.
    /// - EOPNOTSUPP: no layer makes this call.
    pub fn answer(&mut self, id: usize, inode: Result<usize>, pid: usize, call: &[u64]) -> Option<SchemeResponse> {
        let &[kind, start, length] = call else { return None };
        match StdFsCallKind::try_from_raw(kind as u8)? {
            StdFsCallKind::Lock => Some(match inode {
                Ok(inode) => self.lock(id, inode, pid, start, length),
                Err(error) => SchemeResponse::Regular(Err(error)),
            }),
            StdFsCallKind::Unlock | StdFsCallKind::GetLock => {
                Some(SchemeResponse::Regular(Err(Error::new(EOPNOTSUPP))))
            }
            _ => None,
        }
    }

    fn lock(&mut self, id: usize, inode: usize, pid: usize, start: u64, length: u64) -> SchemeResponse {
        let is_process = start & FLAG == 0;
        let owner = if is_process { Owner::Process { pid, inode } } else { Owner::Descriptor(id) };
        let (first, exclusive, length) = (start & !FLAG, length & FLAG != 0, length & !FLAG);
        // redoxfs panics for a range that ends too far.
        let last = length.checked_sub(1).map_or(LAST, |more| first + more);
        assert!(last <= LAST, "redoxfs would not survive a lock up to {last}");
        let excludes = |held: &&Lock| {
            let overlaps = first < held.last && last > held.first;
            held.owner != owner && overlaps && (exclusive || held.exclusive)
        };
        if self.0.iter().find(excludes).is_some() {
            return SchemeResponse::Regular(Err(Error::new(EWOULDBLOCK)));
        }
        self.0.push(Lock { owner, first, last, exclusive });
        if is_process { SchemeResponse::RegularAndNotifyOnDetach(Ok(0)) } else { SchemeResponse::Regular(Ok(0)) }
    }

    /// Ends the locks of an open file after its last close.
    pub fn close(&mut self, id: usize) {
        self.release(Owner::Descriptor(id));
    }

    /// Ends a lock of a process that has closed a descriptor of a file.
    pub fn detach(&mut self, inode: usize, pid: usize) {
        self.release(Owner::Process { pid, inode });
    }

    /// Removes one lock of an owner, even if there are more.
    fn release(&mut self, owner: Owner) {
        if let Some(held) = self.0.iter().position(|held| held.owner == owner) {
            self.0.remove(held);
        }
    }
}
