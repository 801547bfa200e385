//! What is left when the daemon is killed, when the power fails, and what becomes of a daemon that
//! works for hours. `docs/reliability.md` says what is promised, and how to run these tests for
//! long.
//!
//! Needs root, /dev/fuse, and for the power failures loop devices and the packages e2fsprogs,
//! xfsprogs and btrfs-progs.

mod call;
mod disk;
mod fixture;
mod history;
mod killed;
#[path = "../suite/mount.rs"]
mod mount;
mod power;
#[path = "../suite/run.rs"]
mod run;
mod soak;
mod worker;

/// The number in an environment variable, which makes a test longer, or the one with which it is
/// part of all tests.
fn setting(variable: &str, otherwise: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")),
        Err(_) => otherwise,
    }
}
