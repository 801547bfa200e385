//! Helpers for tests of the whole system: temporary directories for layers, and functions that fill
//! them. Also snapshots of directory trees, reproducible random numbers, a guard that checks that
//! lower layers do not change, and an end for threads.

mod disk;
mod guard;
mod random;
mod setup;
mod snapshot;
mod stop;

pub use disk::Disk;
pub use guard::LowerGuard;
pub use random::Random;
pub use setup::{Setup, exists, mode, names, owner, partial_file, put, times};
pub use snapshot::{Detail, Snapshot, xattrs};
pub use stop::Stop;
