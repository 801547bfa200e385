//! `overlayfs-fuse` for tests of the scheme: each request becomes calls of the scheme that serves
//! the overlay on Redox, which is slow.
//!
//! The scheme's daemon is one more thread of the mount. It checks access itself, there are no
//! extended attributes, and the options for owners, links, ACLs, `timeout` and `writeback` have no
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

/// The name of the scheme, which nobody but this process sees.
const NAME: &str = "overlay";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).map(|word| without_front_end(&word)).collect();
    // SAFETY: nothing was opened yet.
    unsafe { inherited::close_descriptors(&arguments) };
    program::run(arguments, serve_scheme)
}

/// A list of mount options without `door=scheme`, which says what is so anyway, as
/// `door=engine` does in `overlayfs-fuse`.
fn without_front_end(list: &OsStr) -> OsString {
    let items: Vec<_> = list.as_bytes().split(|byte| *byte == b',').filter(|item| *item != b"door=scheme").collect();
    OsString::from_vec(items.join(&b','))
}

/// Serves the overlay as a scheme, and the scheme as a mount until that is unmounted.
fn serve_scheme(stacked: Stacked<'_>) -> Result<(), String> {
    let daemon = start_daemon(stacked.overlay())?;
    let front_end =
        SchemeFrontEnd::new(NAME).map_err(|error| format!("The root of the overlay cannot be opened: {error}."))?;
    // Its daemon is a thread that runs already: no sandbox would confine it.
    let served = stacked.serve(front_end, None);
    // ENODEV means that the daemon has ended by itself, which joining it tells.
    let _ = kernel::stop(NAME);
    daemon.join().map_err(|_| "The scheme's thread panicked.".to_owned())?;
    served
}

/// Serves the overlay as a scheme on a thread of its own.
fn start_daemon(overlay: Arc<Overlay<OsLayer>>) -> Result<JoinHandle<()>, String> {
    let (ready, wait) = mpsc::channel();
    let daemon = thread::Builder::new().spawn(move || {
        // Who may link what, the kernel has decided by then.
        let scheme = OverlayScheme::new(overlay, NAME.to_owned()).protect_hardlinks(false);
        let served = serve(scheme, |socket, scheme, _| {
            register_sync_scheme(socket, NAME, scheme)?;
            // Nobody waits any more only if the process is about to end.
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
