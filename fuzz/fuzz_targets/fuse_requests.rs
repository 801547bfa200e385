//! Fuzzes the FUSE mount with requests of a hostile kernel. The crate `test-hostile` has the code.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| test_hostile::fuse_requests::run(&std::env::temp_dir(), input));
