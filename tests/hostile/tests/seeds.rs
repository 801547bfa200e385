//! The seeds of the fuzz target, and requests made of them and of chance, without a fuzzer.

use std::fs;
use std::path::Path;

use test_common::Random;
use test_hostile::Ground;

/// How many inputs are made up.
const MADE_UP: usize = 800;
/// The longest of them, in bytes.
const LONGEST: usize = 400;

#[test]
fn seeds() {
    let ground = Ground::new(Path::new("/dev/shm"));
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/requests");
    let mut seeds: Vec<Vec<u8>> =
        fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(seeds.len() > 20, "only {} seeds", seeds.len());
    seeds.sort();
    let mut chance = Random(1);
    let run = |what: &str, input: &[u8]| {
        // Shown if it fails: it can be written to a file for the fuzz target.
        println!("{what}: {}", input.escape_ascii());
        ground.run(input);
    };
    for seed in &seeds {
        run("seed", seed);
    }
    for number in 0..MADE_UP {
        let mut input = if number % 2 == 0 {
            seeds[chance.below(seeds.len())].clone()
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
