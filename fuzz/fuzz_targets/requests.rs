//! Any bytes as requests of a client that lies; the crate `test-hostile` has all of it.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use test_hostile::Ground;

/// Never dropped: `scripts/fuzz` removes what it leaves.
static GROUND: LazyLock<Ground> = LazyLock::new(|| Ground::new(&std::env::temp_dir()));

fuzz_target!(|input: &[u8]| GROUND.run(input));
