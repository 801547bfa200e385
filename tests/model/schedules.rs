//! Few threads that do few operations in the engine, in many orders: a scheduler that every lock
//! and every call of a layer hands over to says who is next. What is found in one order is found
//! again in it, unlike where the machine says.
//!
//! A failure prints the seed or the whole schedule; `SCHEDULES_SEED=… scripts/schedules` begins
//! with that seed, `SCHEDULE=… scripts/schedules` does that schedule alone.
//!
//! Built with `--cfg shuttle` only, and run by `scripts/schedules`: the locks then work nowhere
//! else.

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
use crate::threads::{self, Size};

/// How often the threads of one schedule are changed at a place that is chosen with care.
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
    // Calls of layers are system calls, which take more than what shuttle gives usually.
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

const SMALL: Size = Size { threads: 3, ops: 3, rounds: 2, mounts: 1, exchanges: true, large: false, linux: true };

#[test]
fn random_operations_in_random_orders() {
    try_all(RandomScheduler::new_from_seed, random_operations(SMALL));
}

#[test]
fn random_operations_in_orders_with_few_changes() {
    try_all(|seed, schedules| PctScheduler::new_from_seed(seed, DEPTH, schedules), random_operations(SMALL));
}
