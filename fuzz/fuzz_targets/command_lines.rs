//! Fuzzes command lines and lists of options. The crate `test-hostile` has the code.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| test_hostile::command_lines::run(input));
