//! Layers, requests of a kernel, and command lines, made of chance, without a fuzzer.

use std::path::Path;

use test_common::Random;

/// How many inputs of each kind are made up.
const MADE_UP: usize = 200;
/// The longest of them, in bytes.
const LONGEST: usize = 400;

#[test]
fn found_layers() {
    by_chance(2, |input| test_hostile::found::run(Path::new("/dev/shm"), input));
}

#[test]
fn kernel() {
    by_chance(4, |input| test_hostile::kernel::run(Path::new("/dev/shm"), input));
}

fn by_chance(seed: u64, run: impl Fn(&[u8])) {
    let mut chance = Random(seed);
    for _ in 0..MADE_UP {
        let input: Vec<u8> = (0..chance.below(LONGEST)).map(|_| chance.below(256) as u8).collect();
        println!("{}", input.escape_ascii());
        run(&input);
    }
}

#[test]
fn words() {
    const WORDS: [&str; 16] = [
        "-o",
        "lowerdir=",
        "upperdir=/u",
        "workdir=",
        "/l",
        "=",
        ",",
        ":",
        "\\",
        "\"",
        "--lower",
        "--upper",
        "ro",
        "\0",
        "uidmapping=0:1:2",
        "x",
    ];
    let mut chance = Random(3);
    for _ in 0..MADE_UP {
        let mut input = Vec::new();
        for _ in 0..chance.below(12) {
            match chance.below(4) {
                0 => input.push(chance.below(256) as u8),
                _ => input.extend_from_slice(WORDS[chance.below(WORDS.len())].as_bytes()),
            }
        }
        println!("{}", input.escape_ascii());
        test_hostile::words::run(&input);
    }
}
