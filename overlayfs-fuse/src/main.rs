//! Mounts an overlay on Linux, with a front end that calls the engine.

use std::process::ExitCode;

use overlayfs_fuse::inherited;
use overlayfs_fuse::program::{self, Stacked};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    // SAFETY: nothing was opened yet.
    unsafe { inherited::close_descriptors(&arguments) };
    program::run(arguments, serve)
}

/// Serves the overlay through the engine until it is unmounted.
fn serve(mut stacked: Stacked<'_>) -> Result<(), String> {
    let (sandbox, front_end) = (stacked.sandbox()?, stacked.engine()?);
    stacked.serve(front_end, Some(sandbox))
}
