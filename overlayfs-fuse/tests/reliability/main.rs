//! Kills of the daemon, power failures, and a daemon that works for hours. `docs/reliability.md`
//! has the promises, and the way to run these tests for long.
//!
//! Needs root and /dev/fuse. The power failures also need loop devices and the packages e2fsprogs,
//! xfsprogs and btrfs-progs.

mod call;
mod comeback;
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

/// Returns the number in an environment variable, which makes a test longer, or the default for a
/// normal run.
fn setting(variable: &str, otherwise: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("{variable}={text}: {error}")),
        Err(_) => otherwise,
    }
}
