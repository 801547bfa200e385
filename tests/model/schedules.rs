//! A few threads with a few operations in the engine, in many orders. At every lock and every call
//! of a layer a scheduler chooses the next thread. A failure in one order comes again in that
//! order, unlike with the scheduler of the machine.
//!
//! A failure prints the seed or the whole schedule. `SCHEDULES_SEED=… scripts/schedules` begins
//! with that seed, `SCHEDULE=… scripts/schedules` runs that schedule alone.
//!
//! It is built with `--cfg shuttle` only, and `scripts/schedules` runs it: outside of it such locks
//! do not work.

use std::fmt::Debug;
use std::str::FromStr;

use overlayfs::layer::OsLayer;
use overlayfs::layer::counted::Counted;
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, Runner};
use test_common::Setup;

use crate::backing::Host;
use crate::engine::{self, Engine};
use crate::layer::Written;
use crate::threads::{self, Size};

/// The number of changes of the thread at chosen points of one schedule.
const DEPTH: usize = 3;

fn number<T: FromStr<Err: Debug>>(name: &str, usual: T) -> T {
    std::env::var(name).map_or(usual, |number| number.parse().expect(name))
}

/// Tries as many schedules as `SCHEDULES` says.
fn try_all<S: Scheduler + 'static>(scheduler: impl Fn(u64, usize) -> S, test: impl Fn() + Send + Sync + 'static) {
    if let Ok(schedule) = std::env::var("SCHEDULE") {
        return run(ReplayScheduler::new_from_encoded(&schedule), test);
    }
    run(scheduler(number("SCHEDULES_SEED", 1), number("SCHEDULES", 1000)), test);
}

fn run(scheduler: impl Scheduler + 'static, test: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    // Calls of layers are system calls, which need more stack than shuttle's default.
    config.stack_size = 1 << 20;
    Runner::new(scheduler, config).run(test);
}

fn random_operations(size: Size) -> impl Fn() + Send + Sync + 'static {
    move || {
        threads::check(thread_rng().r#gen(), size, Box::new(Host::new(Setup::in_memory())), &|stacked| {
            let overlay = engine::mount_slowed(stacked, shuttle::thread::yield_now);
            let engine: Engine<Counted<OsLayer>> = Engine::new(overlay);
            vec![engine; size.threads]
        });
    }
}

const SMALL: Size = Size {
    threads: 3,
    ops: 3,
    rounds: 2,
    mounts: 1,
    exchanges: true,
    large: false,
    linux: true,
    written: Written::Native,
    mounted: None,
};

#[test]
fn random_operations_in_random_orders() {
    try_all(RandomScheduler::new_from_seed, random_operations(SMALL));
}

#[test]
fn random_operations_in_orders_with_few_changes() {
    try_all(|seed, schedules| PctScheduler::new_from_seed(seed, DEPTH, schedules), random_operations(SMALL));
}
