//! Fuzzes the import of archives. The crate `test-hostile` has the code.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| test_hostile::archives::run(&std::env::temp_dir(), input));
