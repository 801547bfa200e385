//! Fuzzes the daemon with requests of a hostile client. The crate `test-hostile` has the code.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use test_hostile::Backing;

/// A static is never dropped, so `scripts/fuzz` removes the files of this one.
static BACKING: LazyLock<Backing> = LazyLock::new(|| Backing::new(&std::env::temp_dir()));

fuzz_target!(|input: &[u8]| BACKING.run(input));
