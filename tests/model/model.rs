//! Random sequences of operations against a reference filesystem in memory, through every front
//! end. These are a directory of Linux (which checks the reference itself), the engine's API, and
//! the scheme through the Redox simulator.
//!
//! The layers are in directories of Linux (most in memory, where no sync waits for a disk), or on a
//! simulated redoxfs. Half of the overlays have a small cache. Between two mounts lower layers are
//! added, removed and exchanged, and `overlayfs-fsck` repairs with one of them missing.
//!
//! The cases are the same in every run, so a failure comes from a change of the code.
//! `PROPTEST_RNG_SEED=$RANDOM PROPTEST_CASES=5000 cargo test -p test-model` tries others. With
//! `TMPDIR` on another filesystem the layers are on that one.

mod backing;
mod engine;
mod front_end;
mod history;
mod host;
mod layer;
mod lowers;
mod mounted;
mod run;
#[cfg(shuttle)]
mod schedules;
mod scheme;
mod threads;
mod tree;

use std::sync::Arc;

use linux_delegate::redoxfs::NAME_MAX;
use overlayfs::layer::{Kind, Owner, RenameMode};
use proptest::test_runner::{Config, FileFailurePersistence, RngSeed, TestRunner};

use backing::Backing;
use engine::Engine;
use front_end::FrontEnd;
use host::Host;
use layer::Written;
use mounted::{Fate, Mounted};
use run::{Abilities, Case, Mount};
use test_common::Setup;
#[cfg(not(shuttle))]
use threads::Size;
use tree::Rules;

/// The seed of the random cases, unless `PROPTEST_RNG_SEED` has another.
const SEED: u64 = 1;

/// Runs `cases` random cases (or as many as `PROPTEST_CASES` says) through a front end. The kept
/// failing ones run first.
fn check<D: FrontEnd>(
    kept: &'static str,
    cases: u32,
    abilities: Abilities,
    backing: &dyn Fn(&Case) -> Box<dyn Backing>,
    mount: Mount<'_, D>,
) {
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
        TestRunner::new(config).run(&run::case(abilities), |case| run::run(&case, abilities, backing(&case), mount));
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// The rules of front ends with layers on Linux.
const ON_HOST: Rules = Rules { reserves: true, devices: true, follows: false, xattrs: true, name_max: 255 };
/// The rules of front ends with layers on redoxfs.
const ON_REDOXFS: Rules = Rules { xattrs: false, name_max: NAME_MAX, ..ON_HOST };

fn host(case: &Case) -> Box<dyn Backing> {
    Box::new(backing::Host::new(if case.in_memory { Setup::in_memory() } else { Setup::new() }))
}

/// Always in memory: on ext4 a refused rename with a whiteout (ENOTEMPTY) changes the directory's
/// mtime.
fn host_in_memory(_: &Case) -> Box<dyn Backing> {
    Box::new(backing::Host::new(Setup::in_memory()))
}

fn redoxfs(_: &Case) -> Box<dyn Backing> {
    Box::new(backing::Redoxfs::new())
}

#[test]
fn the_reference_matches_linux() {
    let rules = Rules { reserves: false, ..ON_HOST };
    let abilities =
        Abilities { rules, bytes: true, full: true, linux: true, layers: None, check: None, snapshots: false };
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/host.txt");
    check(kept, 100, abilities, &host_in_memory, &|stacked| Host::new(stacked.upper, false));
}

#[test]
fn the_reference_follows_symlinks_as_linux_does() {
    let rules = Rules { reserves: false, follows: true, ..ON_HOST };
    let abilities =
        Abilities { rules, bytes: true, full: true, linux: true, layers: None, check: None, snapshots: false };
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/host-follows.txt");
    check(kept, 100, abilities, &host_in_memory, &|stacked| Host::new(stacked.upper, true));
}

#[test]
fn the_engine_matches_the_reference() {
    let layers = Some(Written::Native);
    let abilities = Abilities {
        rules: ON_HOST,
        bytes: true,
        full: true,
        linux: true,
        layers,
        check: Some(engine::check_layers),
        snapshots: false,
    };
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/engine.txt");
    check(kept, 250, abilities, &host, &|stacked| Engine::new(engine::mount(stacked)));
}

#[test]
fn the_engine_matches_in_the_kernels_format() {
    let rules = Rules { reserves: false, devices: false, ..ON_HOST };
    let layers = Some(Written::Kernel);
    let abilities = Abilities {
        rules,
        bytes: true,
        full: true,
        linux: true,
        layers,
        check: Some(engine::check_layers_kernel),
        snapshots: false,
    };
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/engine-kernel.txt");
    check(kept, 250, abilities, &host, &|stacked| Engine::new(engine::mount_kernel(stacked)));
}

#[test]
fn the_engine_matches_with_snapshots() {
    let layers = Some(Written::Native);
    let abilities =
        Abilities { rules: ON_HOST, bytes: true, full: true, linux: true, layers, check: None, snapshots: true };
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/engine-snapshots.txt");
    check(kept, 250, abilities, &host, &|stacked| engine::mount_in_chain(stacked));
}

#[test]
fn the_engine_matches_with_snapshots_in_the_kernels_format() {
    let rules = Rules { reserves: false, devices: false, ..ON_HOST };
    let layers = Some(Written::Kernel);
    let abilities = Abilities { rules, bytes: true, full: true, linux: true, layers, check: None, snapshots: true };
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/engine-kernel-snapshots.txt");
    check(kept, 150, abilities, &host, &|stacked| engine::mount_kernel_in_chain(stacked));
}

#[test]
fn the_engine_matches_over_redoxfs() {
    let layers = Some(Written::Native);
    let abilities =
        Abilities { rules: ON_REDOXFS, bytes: false, full: false, linux: false, layers, check: None, snapshots: false };
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/engine-redoxfs.txt");
    check(kept, 250, abilities, &redoxfs, &|stacked| Engine::new(engine::mount_redoxfs(stacked)));
}

#[test]
fn the_scheme_matches_the_reference() {
    let rules = Rules { follows: true, xattrs: false, ..ON_HOST };
    let layers = Some(Written::Native);
    let abilities = Abilities {
        rules,
        bytes: false,
        full: true,
        linux: false,
        layers,
        check: Some(engine::check_layers),
        snapshots: false,
    };
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/scheme.txt");
    check(kept, 120, abilities, &host, &|stacked| scheme::serve(engine::mount(stacked)));
}

#[test]
fn the_scheme_matches_over_redoxfs() {
    let rules = Rules { follows: true, ..ON_REDOXFS };
    let layers = Some(Written::Native);
    let abilities = Abilities { rules, bytes: false, full: false, linux: false, layers, check: None, snapshots: false };
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/scheme-redoxfs.txt");
    check(kept, 120, abilities, &redoxfs, &|stacked| scheme::serve(engine::mount_redoxfs(stacked)));
}

#[test]
fn the_scheme_matches_with_snapshots_over_redoxfs() {
    let rules = Rules { follows: true, ..ON_REDOXFS };
    let layers = Some(Written::Native);
    let abilities = Abilities { rules, bytes: false, full: false, linux: false, layers, check: None, snapshots: true };
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/scheme-redoxfs-snapshots.txt");
    check(kept, 120, abilities, &redoxfs, &|stacked| scheme::serve_in_chain(engine::mount_redoxfs_in_chain(stacked)));
}

/// The work of the threads on one stack of layers.
#[cfg(not(shuttle))]
const THREADS: Size = Size {
    threads: 8,
    ops: 5,
    rounds: 12,
    mounts: 2,
    exchanges: true,
    large: true,
    linux: false,
    written: Written::Native,
    mounted: None,
};

/// Lets threads work on `setups` stacks of layers, or on as many as `THREADS_SETUPS` says.
#[cfg(not(shuttle))]
fn check_threads<D: FrontEnd<Handle: Send> + Send>(
    setups: u64,
    size: Size,
    backing: &dyn Fn() -> Box<dyn Backing>,
    mount: Mount<'_, Vec<D>>,
) {
    let number = |name, usual| std::env::var(name).map_or(usual, |text| text.parse().expect("a number"));
    let seed = number("THREADS_SEED", SEED);
    for setup in 0..number("THREADS_SETUPS", setups) {
        threads::check(seed + setup, size, backing(), mount);
    }
}

#[cfg(not(shuttle))]
#[test]
fn threads_in_the_engine_are_linearizable() {
    check_threads(
        3,
        Size { linux: true, ..THREADS },
        &|| Box::new(backing::Host::new(Setup::in_memory())),
        &|stacked| {
            let engine = Engine::new(engine::mount_slowed(stacked, std::thread::yield_now));
            vec![engine; THREADS.threads]
        },
    );
}

#[cfg(not(shuttle))]
#[test]
fn threads_over_redoxfs_are_linearizable() {
    check_threads(
        3,
        Size { exchanges: false, large: false, ..THREADS },
        &|| Box::new(backing::Redoxfs::new()),
        &|stacked| vec![Engine::new(engine::mount_redoxfs(stacked)); THREADS.threads],
    );
}

#[cfg(not(shuttle))]
#[test]
fn clients_of_the_scheme_are_linearizable() {
    check_threads(3, THREADS, &|| Box::new(backing::Host::new(Setup::in_memory())), &|stacked| {
        let scheme = scheme::serve(engine::mount_slowed(stacked, std::thread::yield_now));
        (0..THREADS.threads).map(|_| scheme.another()).collect()
    });
}

/// Lets programs use mounts of `setups` stacks of layers, with a disturbance beside the operations
/// of each round.
#[cfg(not(shuttle))]
fn check_programs(setups: u64, written: Written, fate: Fate) {
    let size = Size { threads: 4, rounds: 8, linux: true, written, mounted: Some(fate), ..THREADS };
    check_threads(setups, size, &|| Box::new(backing::Host::new(Setup::in_memory())), &|stacked| {
        let mount = Arc::new(Mounted::new(stacked, written, fate));
        (0..size.threads).map(|_| Host::of(mount.clone())).collect()
    });
}

#[cfg(not(shuttle))]
#[test]
fn programs_on_a_mount_are_linearizable() {
    check_programs(2, Written::Native, Fate::Snapshots);
}

#[cfg(not(shuttle))]
#[test]
fn programs_on_a_mount_in_the_kernels_format_are_linearizable() {
    check_programs(1, Written::Kernel, Fate::Snapshots);
}

#[cfg(not(shuttle))]
#[test]
fn programs_on_a_mount_under_kills_are_linearizable() {
    check_programs(1, Written::Native, Fate::Kills);
}

#[cfg(not(shuttle))]
#[test]
fn programs_on_a_mount_in_the_kernels_format_under_kills_are_linearizable() {
    check_programs(1, Written::Kernel, Fate::Kills);
}

#[cfg(not(shuttle))]
#[test]
fn programs_on_a_mount_with_rollbacks_are_linearizable() {
    check_programs(1, Written::Native, Fate::Rollbacks);
}

#[cfg(not(shuttle))]
#[test]
fn programs_on_a_mount_in_the_kernels_format_with_rollbacks_are_linearizable() {
    check_programs(1, Written::Kernel, Fate::Rollbacks);
}
