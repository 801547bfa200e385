//! The kernel's parameter that offers FUSE over io_uring to new mounts.

use std::fs::{self, File};
use std::path::Path;

/// The parameter (`fs/fuse/dev_uring.c`).
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

/// The parameter with a value of this test. The drop restores it. Other tests with such a value
/// wait until then.
pub struct Offer {
    before: String,
    _lock: File,
}

impl Offer {
    /// Sets the parameter. Panics where the kernel has none, or this user may not change it.
    pub fn set(on: bool) -> Self {
        assert!(
            Path::new(PARAMETER).exists(),
            "this kernel cannot be tested with FUSE over io_uring: it has no {PARAMETER}, which came with Linux 6.14"
        );
        let lock = File::open(PARAMETER).unwrap();
        lock.lock().unwrap();
        let before = fs::read_to_string(PARAMETER).unwrap();
        fs::write(PARAMETER, if on { "1" } else { "0" })
            .unwrap_or_else(|error| panic!("without {PARAMETER} FUSE over io_uring cannot be tested here: {error}"));
        Self { before, _lock: lock }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        let restored = fs::write(PARAMETER, &self.before);
        assert!(restored.is_ok() || std::thread::panicking(), "{PARAMETER}: {restored:?}");
    }
}
