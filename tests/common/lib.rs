//! Helpers for tests of the whole system: temporary directories for layers, and functions that fill
//! them. Also snapshots of directory trees, reproducible random numbers, and a guard that checks
//! that lower layers do not change.

mod disk;
mod guard;
mod random;
mod setup;
mod snapshot;

pub use disk::Disk;
pub use guard::LowerGuard;
pub use random::Random;
pub use setup::{Setup, exists, mode, names, owner, partial_file, put, times};
pub use snapshot::{Detail, Snapshot, xattrs};
