//! Helpers of the whole-system tests: temporary directories for layers, small trees to fill them
//! with, snapshots of real directory trees, random numbers that stay the same, and the guard that
//! proves that a lower layer was left alone.

mod disk;
mod guard;
mod random;
mod setup;
mod snapshot;

pub use disk::Disk;
pub use guard::LowerGuard;
pub use random::Random;
pub use setup::{Setup, exists, lent, mode, names, owner, put, times};
pub use snapshot::{Detail, Snapshot, xattrs};
