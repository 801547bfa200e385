//! FUSE requests of a kernel that lies; the crate `test-hostile` has all of it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| test_hostile::fuse_requests::run(&std::env::temp_dir(), input));
