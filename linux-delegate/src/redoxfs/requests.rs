//! How many requests of each kind have arrived.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
pub(super) struct Counter(Arc<[AtomicU64; NAMES.len()]>);

impl Counter {
    pub fn add(&self, request: Request) {
        self.0[request as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn take(&self) -> Requests {
        Requests(std::array::from_fn(|index| self.0[index].swap(0, Ordering::Relaxed)))
    }
}

/// How many requests there were of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requests([u64; NAMES.len()]);

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
