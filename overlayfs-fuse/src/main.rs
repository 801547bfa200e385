//! Mounts an overlay on Linux, with a front end that calls the engine.

use std::process::ExitCode;

use overlayfs_fuse::engine::{EngineFrontEnd, Settings};
use overlayfs_fuse::inherited;
use overlayfs_fuse::program::{self, Stacked};
use overlayfs_fuse::sandbox::Sandbox;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    // SAFETY: nothing was opened yet.
    unsafe { inherited::close_descriptors(&arguments) };
    program::run(arguments, serve)
}

/// Serves the overlay through the engine until it is unmounted.
fn serve(stacked: Stacked<'_>) -> Result<(), String> {
    let options = stacked.options();
    let sandbox = Sandbox::new(&options.layers)?;
    let settings = Settings::of(options, stacked.is_limited());
    let front_end = EngineFrontEnd::new(stacked.overlay(), settings);
    stacked.serve(front_end, Some(sandbox))
}
