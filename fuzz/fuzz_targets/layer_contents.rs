//! Layers that somebody else has filled; the crate `test-hostile` has all of it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| test_hostile::layer_contents::run(&std::env::temp_dir(), input));
