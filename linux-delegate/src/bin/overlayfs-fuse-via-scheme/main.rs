//! `overlayfs-fuse` for tests of the scheme: each request becomes calls of the scheme that serves
//! the overlay on Redox. This is slow.
//!
//! The daemon of the scheme is one more thread of the mount. It checks access itself, and has no
//! extended attributes. The options for owners, links, ACLs, `timeout` and `writeback` have no
//! effect. There is no sandbox.

mod convert;
mod front_end;
mod inodes;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use linux_delegate::kernel;
use overlayfs::daemon::serve;
use overlayfs::layer::OsLayer;
use overlayfs::overlay::Overlay;
use overlayfs::scheme::OverlayScheme;
use overlayfs_fuse::inherited;
use overlayfs_fuse::program::{self, Stacked};
use redox_scheme::scheme::register_sync_scheme;

use front_end::SchemeFrontEnd;

/// The name of the scheme. Only this process sees it.
const NAME: &str = "overlay";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).map(|word| without_front_end(&word)).collect();
    // SAFETY: this process has opened nothing yet.
    unsafe { inherited::close_descriptors(&arguments) };
    program::run(arguments, serve_scheme)
}

/// Removes `door=scheme` from a list of mount options. It names the only front end of this program,
/// as `door=engine` does for `overlayfs-fuse`.
fn without_front_end(list: &OsStr) -> OsString {
    let items: Vec<_> = list.as_bytes().split(|byte| *byte == b',').filter(|item| *item != b"door=scheme").collect();
    OsString::from_vec(items.join(&b','))
}

/// Serves the overlay as a scheme, and the scheme as a mount until that is unmounted.
fn serve_scheme(stacked: Stacked<'_>) -> Result<(), String> {
    let daemon = start_daemon(stacked.overlay())?;
    let front_end =
        SchemeFrontEnd::new(NAME).map_err(|error| format!("The root of the overlay cannot be opened: {error}."))?;
    // The daemon thread runs already, so a sandbox would not confine it.
    let served = stacked.serve(front_end, None);
    // ENODEV: the daemon has ended by itself. The join shows its error.
    let _ = kernel::stop(NAME);
    daemon.join().map_err(|_| "The scheme's thread panicked.".to_owned())?;
    served
}

/// Serves the overlay as a scheme, on its own thread.
fn start_daemon(overlay: Arc<Overlay<OsLayer>>) -> Result<JoinHandle<()>, String> {
    let (ready, wait) = mpsc::channel();
    let daemon = thread::Builder::new().spawn(move || {
        // The kernel of Linux has checked the rights to link before.
        let scheme = OverlayScheme::new(overlay, NAME.to_owned()).protect_hardlinks(false);
        let served = serve(scheme, |socket, scheme, _| {
            register_sync_scheme(socket, NAME, scheme)?;
            // The send fails only if the process is about to end.
            let _ = ready.send(());
            Ok::<_, syscall::Error>(())
        });
        if let Err(error) = served {
            log::error!("The scheme's socket failed: {error}.");
        }
    });
    let daemon = daemon.map_err(|error| format!("The scheme's thread cannot be started: {error}."))?;
    match wait.recv() {
        Ok(()) => Ok(daemon),
        Err(_) => Err("The scheme cannot be served.".to_owned()),
    }
}
