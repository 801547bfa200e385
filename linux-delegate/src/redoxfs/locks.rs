//! The locks of a redoxfs as redox-scheme 0.11.0 keeps them for it: where they differ from what
//! POSIX says, a layer has to be held all the same.
//!
//! Files are not told apart, so a lock on one excludes a lock on another; a process's own locks on
//! two files exclude each other as well. And what excludes each other overlaps in more than one
//! byte.

use redox_scheme::scheme::SchemeResponse;
use syscall::error::{EOPNOTSUPP, EWOULDBLOCK, Error, Result};
use syscall::flag::StdFsCallKind;

/// In the arguments of a lock: it is the descriptor's instead of the process's, and it excludes all
/// others.
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
    /// Answers a call about locks; None for any other. EWOULDBLOCK for a lock that is not free,
    /// EOPNOTSUPP for all that no layer asks for.
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
        // The daemon panics for a range that ends too far.
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

    /// The last descriptor of an open file was closed.
    pub fn close(&mut self, id: usize) {
        self.release(Owner::Descriptor(id));
    }

    /// A process has closed a descriptor of a file.
    pub fn detach(&mut self, inode: usize, pid: usize) {
        self.release(Owner::Process { pid, inode });
    }

    /// Takes away one lock, whether there are more or not.
    fn release(&mut self, owner: Owner) {
        if let Some(held) = self.0.iter().position(|held| held.owner == owner) {
            self.0.remove(held);
        }
    }
}
