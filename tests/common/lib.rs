//! Helpers of the whole-system tests: temporary directories for layers, small trees to fill them with, snapshots of real directory
//! trees, and the guard that proves that a lower layer was left alone.

mod disk;
mod guard;
mod snapshot;
mod stage;

pub use disk::Disk;
pub use guard::LowerGuard;
pub use snapshot::{Detail, Snapshot};
pub use stage::{Stage, exists, mode, names, owner, put, times};
