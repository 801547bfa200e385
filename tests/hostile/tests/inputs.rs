//! Runs the fuzz targets without a fuzzer: on the kept inputs, on changes of these, and on random
//! inputs.

use std::fs;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};

use test_common::Random;
use test_hostile::{Backing, archives, command_lines, fuse_requests, layer_contents};

/// The folder of the layers, in memory.
const PLACE: &str = "/dev/shm";
/// Serializes the tests, since each counts the descriptors of the whole process.
static ALONE: Mutex<()> = Mutex::new(());
/// The longest input of random bytes.
const LONGEST: usize = 400;

/// Runs `run` on the kept inputs of a target, and on `made_up` other inputs.
fn try_all(target: &str, made_up: usize, run: impl Fn(&[u8])) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut seeds: Vec<Vec<u8>> =
        fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(seeds.len() > 20, "only {} seeds", seeds.len());
    seeds.sort();
    let run = |what: &str, input: &[u8]| {
        // If the test fails, this shows the input. Written to a file, it is an input of the fuzz
        // target.
        println!("{what}: {}", input.escape_ascii());
        run(input);
    };
    for seed in &seeds {
        run("seed", seed);
    }
    let mut chance = Random(1);
    for number in 0..made_up {
        let mut input = if number % 2 == 0 {
            chance.one_of(&seeds).clone()
        } else {
            (0..chance.below(LONGEST)).map(|_| chance.below(256) as u8).collect()
        };
        for _ in 0..chance.below(8).min(input.len()) {
            let at = chance.below(input.len());
            input[at] = chance.below(256) as u8;
        }
        run("made up", &input);
    }
}

#[test]
fn requests() {
    let backing = LazyLock::new(|| Backing::new(Path::new(PLACE)));
    try_all("scheme_requests", 800, |input| backing.run(input));
}

#[test]
fn found_layers() {
    try_all("layer_contents", 150, |input| layer_contents::run(Path::new(PLACE), input));
}

#[test]
fn fuse_requests() {
    try_all("fuse_requests", 150, |input| fuse_requests::run(Path::new(PLACE), input));
}

#[test]
fn imported_archives() {
    try_all("archives", 300, |input| archives::run(Path::new(PLACE), input));
}

#[test]
fn command_lines() {
    try_all("command_lines", 2000, command_lines::run);
}
