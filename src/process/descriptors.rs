//! Descriptors of Redox that pass through a pipe to another process.

use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsRawFd;

use libredox::Fd;
use libredox::error::Result;
use syscall::flag::CallFlags;

/// Puts a copy of a descriptor into a pipe.
///
/// # Errors
///
/// - EPIPE: the other end is closed.
pub fn give(pipe: &PipeWriter, descriptor: &Fd) -> Result<()> {
    let flags = CallFlags::FD | CallFlags::FD_CLONE;
    libredox::call::call_wo(number(pipe), &descriptor.raw().to_ne_bytes(), flags, &[]).map(drop)
}

/// Takes a descriptor out of a pipe. Returns None if there is none, and the other end is closed.
///
/// # Errors
///
/// - EMFILE: too many files are open.
pub fn take(pipe: &PipeReader) -> Result<Option<Fd>> {
    let mut descriptor = [0; size_of::<usize>()];
    let taken = libredox::call::call_ro(number(pipe), &mut descriptor, CallFlags::FD, &[])?;
    Ok((taken > 0).then(|| Fd::new(usize::from_ne_bytes(descriptor))))
}

fn number(pipe: &impl AsRawFd) -> usize {
    pipe.as_raw_fd() as usize
}
