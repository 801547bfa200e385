//! How many requests of each kind have arrived, and what goes wrong at one of them.

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

/// Counts; a clone counts in the same place.
#[derive(Clone, Default)]
pub(super) struct Counter(Arc<Shared>);

struct Shared {
    counts: [AtomicU64; NAMES.len()],
    ahead: Mutex<Ahead>,
}

/// What goes wrong.
#[derive(Clone, Copy)]
struct Ahead {
    /// After how many more requests.
    left: u64,
    fault: Fault,
    /// The request that it was, once it has.
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

    /// Counts a request that is answered. Answers whether it takes only half of what it could; an
    /// errno if it is not to be done.
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
    /// What the scheme calls it.
    pub fn name(self) -> &'static str {
        NAMES[self as usize]
    }
}

impl Requests {
    /// Of one kind.
    pub fn of(&self, request: Request) -> u64 {
        self.0[request as usize]
    }

    /// How many there were for one of so many operations, rounded up.
    pub fn per(&self, operations: u64) -> Self {
        Requests(self.0.map(|count| count.div_ceil(operations)))
    }

    /// Of all kinds.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// The total and the kinds that there were: `3 (openat 1, fstat 1, close 1)`.
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
