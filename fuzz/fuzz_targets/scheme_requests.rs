//! Any bytes as requests of a client that lies; the crate `test-hostile` has all of it.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use test_hostile::Backing;

/// Never dropped: `scripts/fuzz` removes what it leaves.
static BACKING: LazyLock<Backing> = LazyLock::new(|| Backing::new(&std::env::temp_dir()));

fuzz_target!(|input: &[u8]| BACKING.run(input));
