//! The counts of requests by kind, and the fault at one of them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use overlayfs::layer::counted::Fault;
use syscall::error::{EIO, Error, Result};

/// Defines [`Request`] from the kinds and their names.
macro_rules! requests {
    ($($request:ident $name:literal,)*) => {
        /// A kind of request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Request {
            $($request,)*
        }

        const NAMES: &[&str] = &[$($name,)*];
    };
}

requests! {
    Open "openat",
    Close "close",
    Unlink "unlinkat",
    Read "read",
    Write "write",
    Size "fsize",
    Chmod "fchmod",
    Chown "fchown",
    Control "fcntl",
    Path "fpath",
    Link "flink",
    Rename "frename",
    Stat "fstat",
    StatFs "fstatvfs",
    Sync "fsync",
    Truncate "ftruncate",
    Times "futimens",
    List "getdents",
    Socket "sendfd",
}

/// Counts requests. Clones share the counts.
#[derive(Clone, Default)]
pub(super) struct Counter(Arc<Shared>);

struct Shared {
    counts: [AtomicU64; NAMES.len()],
    ahead: Mutex<Ahead>,
}

/// The next fault.
#[derive(Clone, Copy)]
struct Ahead {
    /// After how many more requests it happens.
    left: u64,
    fault: Fault,
    /// The request at which it happened.
    struck: Option<Request>,
}

impl Default for Shared {
    fn default() -> Self {
        let ahead = Mutex::new(Ahead { left: u64::MAX, fault: Fault::Stop, struck: None });
        Shared { counts: std::array::from_fn(|_| AtomicU64::new(0)), ahead }
    }
}

impl Counter {
    pub fn count(&self, request: Request) {
        self.0.counts[request as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request with an answer. Returns whether it should take only half of its data. The
    /// error is that of a fault.
    pub fn add(&self, request: Request) -> Result<bool> {
        self.count(request);
        let mut ahead = self.ahead();
        match ahead.left {
            u64::MAX => return Ok(false),
            0 => {}
            _ => {
                ahead.left -= 1;
                return Ok(false);
            }
        }
        ahead.struck.get_or_insert(request);
        match ahead.fault {
            Fault::Stop => Err(Error::new(EIO)),
            Fault::Errno(errno) => {
                ahead.left = u64::MAX;
                Err(Error::new(errno))
            }
            Fault::ShortWrite => {
                ahead.left = u64::MAX;
                Ok(true)
            }
        }
    }

    pub fn fault_after(&self, left: u64, fault: Fault) {
        *self.ahead() = Ahead { left, fault, struck: None };
    }

    pub fn struck(&self) -> Option<Request> {
        self.ahead().struck
    }

    pub fn take(&self) -> Requests {
        Requests(std::array::from_fn(|index| self.0.counts[index].swap(0, Ordering::Relaxed)))
    }

    fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.0.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many requests there were of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requests([u64; NAMES.len()]);

impl Request {
    /// Returns the scheme's name of the request.
    pub fn name(self) -> &'static str {
        NAMES[self as usize]
    }
}

impl Requests {
    /// Returns the count of one kind.
    pub fn of(&self, request: Request) -> u64 {
        self.0[request as usize]
    }

    /// Returns the counts for one of so many operations, rounded up.
    pub fn per(&self, operations: u64) -> Self {
        Requests(self.0.map(|count| count.div_ceil(operations)))
    }

    /// Returns the count of all kinds.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// Writes the total and the counts above 0: `3 (openat 1, fstat 1, close 1)`.
impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = NAMES.iter().zip(self.0).filter(|(_, count)| *count > 0);
        let kinds: Vec<_> = kinds.map(|(name, count)| format!("{name} {count}")).collect();
        match kinds.is_empty() {
            true => write!(f, "0"),
            false => write!(f, "{} ({})", self.total(), kinds.join(", ")),
        }
    }
}
