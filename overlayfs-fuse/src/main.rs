//! Mounts an overlay on Linux, through calls of its engine.

use std::fs::File;
use std::process::ExitCode;

use overlayfs::options::Options;
use overlayfs_fuse::engine::{EngineDoor, Fixed, Settings};
use overlayfs_fuse::inherited;
use overlayfs_fuse::options::MountOptions;
use overlayfs_fuse::program::{self, Stacked};
use overlayfs_fuse::sandbox::Sandbox;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    // SAFETY: nothing was opened yet.
    unsafe { inherited::close_descriptors(&arguments) };
    program::run(arguments, serve)
}

/// Serves the overlay through its engine until it is unmounted.
fn serve(stacked: Stacked<'_>) -> Result<(), String> {
    let options = stacked.options();
    let sandbox = Sandbox::new(&options.layers)?;
    let settings = settings(options, stacked.is_limited());
    let door = EngineDoor::new(stacked.overlay(), fixed(&options.layers)?, settings);
    stacked.serve(door, Some(sandbox))
}

/// What is known of fixed files in the layer that is written to.
fn fixed(layers: &Options) -> Result<Fixed, String> {
    let Some(upper) = layers.upper.as_ref().filter(|_| !layers.read_only) else { return Ok(Fixed::none()) };
    let top = File::open(upper)
        .map_err(|error| format!("The upper layer {} cannot be opened again: {error}.", upper.display()))?;
    Ok(Fixed::new(top.into()))
}

/// What was chosen for the door.
fn settings(options: &MountOptions, is_limited: bool) -> Settings {
    let usual = Settings::default();
    Settings {
        identity: options.identity.clone(),
        static_nlink: options.static_nlink,
        acl: options.acl,
        // What goes over a limit is to be refused when it is written, not when the file is closed.
        writeback: options.writeback && !is_limited,
        valid: options.timeout.unwrap_or(usual.valid),
        ..usual
    }
}
