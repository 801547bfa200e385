//! Command lines and lists of options; the crate `test-hostile` has all of it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| test_hostile::command_lines::run(input));
