//! The name of a scheme: the operations that libredox lacks.

use syscall::error::{ENODEV, ENOENT, Error, Result};

/// Whether a living daemon serves the name.
pub fn is_served(name: &str) -> bool {
    let opened = libredox::Fd::open(&format!("/scheme/{name}/"), libredox::flag::O_PATH, 0);
    !opened.is_err_and(|error| matches!(error.errno(), ENODEV | ENOENT))
}

/// Removes the name, of any daemon. Does nothing if the name does not exist.
pub fn remove(name: &str) -> Result<()> {
    match unlink(&format!("/scheme/{name}")) {
        Err(error) if !matches!(error.errno, ENODEV | ENOENT) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(target_os = "redox")]
fn unlink(path: &str) -> Result<()> {
    std::fs::remove_file(path).map_err(|error| Error::new(error.raw_os_error().unwrap_or(syscall::EIO)))
}

/// Asks the simulated kernel.
#[cfg(not(target_os = "redox"))]
fn unlink(path: &str) -> Result<()> {
    unsafe extern "C" {
        fn played_unlink(path: *const u8, len: usize) -> usize;
    }
    // SAFETY: the pointer and the length are those of a string.
    Error::demux(unsafe { played_unlink(path.as_ptr(), path.len()) }).map(drop)
}
