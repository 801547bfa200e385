//! Random sequences of operations against an in-memory reference of a filesystem, through every door: a directory of the host (which checks
//! the reference itself), the engine's API, and the scheme through the delegate.
//!
//! The cases are the same in every run, so that a failure is the change's that it follows. To look for more:
//! `PROPTEST_RNG_SEED=$RANDOM PROPTEST_CASES=5000 cargo test --test model`; with `TMPDIR` on another filesystem, over that one.

mod door;
mod engine;
mod host;
mod layer;
mod lowers;
mod run;
mod scheme;
mod tree;

use overlayfs::layer::{Kind, Owner, RenameMode};
use proptest::test_runner::{Config, FileFailurePersistence, RngSeed, TestRunner};

use door::Door;
use layer::Written;
use run::{Abilities, Mount};
use tree::Rules;

/// Where the random cases start, unless `PROPTEST_RNG_SEED` says.
const SEED: u64 = 1;

/// Runs `cases` random cases (or as many as `PROPTEST_CASES` says) through a door, the kept failing ones first.
fn check<D: Door>(kept: &'static str, cases: u32, abilities: Abilities, mount: Mount<'_, D>) {
    let cases =
        std::env::var("PROPTEST_CASES").map_or(cases, |cases| cases.parse().expect("PROPTEST_CASES is a number"));
    let seed =
        std::env::var("PROPTEST_RNG_SEED").map_or(SEED, |seed| seed.parse().expect("PROPTEST_RNG_SEED is a number"));
    let config = Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        max_shrink_iters: 4000,
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(kept))),
        ..Config::default()
    };
    let result =
        TestRunner::new(config).run(&run::case(abilities), |(stack, ops)| run::run(&stack, &ops, abilities, mount));
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn the_reference_does_what_the_host_does() {
    let rules = Rules { reserves: false, follows: false };
    let abilities = Abilities { rules, bytes: true, full: true, layers: None };
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model/proptest-regressions/host.txt");
    check(kept, 100, abilities, &|_, root, merged| host::mount(merged, root, false));
}

#[test]
fn the_reference_follows_symlinks_as_the_host_does() {
    let rules = Rules { reserves: false, follows: true };
    let abilities = Abilities { rules, bytes: true, full: true, layers: None };
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model/proptest-regressions/host-follows.txt");
    check(kept, 100, abilities, &|_, root, merged| host::mount(merged, root, true));
}

#[test]
fn the_engine_does_what_the_reference_does() {
    let rules = Rules { reserves: true, follows: false };
    let abilities = Abilities { rules, bytes: true, full: true, layers: Some(Written::Native) };
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model/proptest-regressions/engine.txt");
    check(kept, 400, abilities, &|lowers, upper, _| engine::mount(lowers, upper));
}

#[test]
fn the_engine_does_so_in_the_kernels_format() {
    let rules = Rules { reserves: false, follows: false };
    let abilities = Abilities { rules, bytes: true, full: true, layers: Some(Written::Kernel) };
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model/proptest-regressions/engine-kernel.txt");
    check(kept, 400, abilities, &|lowers, upper, _| engine::mount_kernel(lowers, upper));
}

#[test]
fn the_scheme_does_what_the_reference_does() {
    let rules = Rules { reserves: true, follows: true };
    let abilities = Abilities { rules, bytes: false, full: true, layers: Some(Written::Native) };
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model/proptest-regressions/scheme.txt");
    check(kept, 200, abilities, &|lowers, upper, _| scheme::mount(lowers, upper));
}
