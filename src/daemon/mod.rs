//! The life of a scheme daemon: mount, register, serve.
//!
//! `start` is how the world learns of the scheme, `init` the pipe at which init waits, `serve` the
//! request loop, `socket_workers` what waits for other daemons, `name` how a scheme's name is
//! removed, `namespace` the empty one in which the daemon serves, `log` what it says, `supervisor`
//! the process that waits for its end, and `spare` what that answers then. By the time that its
//! name is known, the descriptors of its layers are all that it can reach.

mod init;
mod log;
mod name;
mod namespace;
mod serve;
mod socket_workers;
mod spare;
mod start;
mod supervisor;

use std::hash::RandomState;
use std::sync::Arc;

use redox_scheme::Socket;

use crate::layer::Layer;
use crate::mount::{mount, sign};
use crate::options::Arguments;
use crate::overlay::Holder;
use crate::scheme::OverlayScheme;

pub use self::init::Init;
pub use self::log::start_log;
pub use self::namespace::Empty;
pub use self::serve::Stop;
pub use self::spare::Lent;
pub use self::start::Watcher;
pub use self::supervisor::{Kept, keep};

/// Mounts the overlay, gives the scheme its name, and serves until the scheme ends. `watcher` is
/// told when clients can use it. The error is a sentence.
pub fn run(arguments: &Arguments, init: Init, mut watcher: impl Watcher) -> Result<(), String> {
    let name = &arguments.name;
    let overlay = Arc::new(mount(&arguments.options).map_err(|error| error.to_string())?);
    let mut holder = Holder::this(format!("/scheme/{name}").into());
    sign(&overlay, &holder);
    let empty = Empty::make().map_err(|error| format!("No namespace can be made in which to serve: {error}."))?;
    let scheme = OverlayScheme::new(overlay.clone(), name.clone()).protect_hardlinks(arguments.protected_hardlinks);
    let mut lent = None;
    let served = serve(scheme, |socket, scheme, stop| {
        lent = watcher.lend(socket);
        start::announce(socket, scheme, arguments, init, empty, &mut watcher).map_err(Ended::Said)?;
        watcher.ready(stop);
        Ok(())
    });
    drop(lent);
    holder.ending = true;
    sign(&overlay, &holder);
    let settled = overlay
        .complete_and_sync()
        .map_err(|error| format!("What was changed is not all complete and on the disk: {error}."));
    served.map_err(|ended| match ended {
        Ended::Said(sentence) => sentence,
        Ended::Socket(error) => format!("The socket of the scheme {name} failed: {error}."),
    })?;
    settled
}

/// Serves an overlay as a scheme, until its socket ends or the service is stopped. `begin` is
/// called before the first request is taken, and has to give the scheme its name. Its error ends it
/// all, as one of the socket does.
pub fn serve<L: Layer, E: From<syscall::Error>>(
    mut scheme: OverlayScheme<L>,
    begin: impl FnOnce(&Socket, &mut OverlayScheme<L>, Arc<Stop>) -> Result<(), E>,
) -> Result<(), E> {
    // The standard library finds the source of random numbers by its path when it first needs one,
    // and keeps it.
    let _ = RandomState::new();
    let socket = Arc::new(Socket::create()?);
    let stop = Arc::new(Stop::new(&socket, &mut scheme)?);
    serve::serve(&socket, &scheme.clone(), &stop, || begin(&socket, &mut scheme, stop.clone()))
}

/// Removes the name of a daemon that has ended, unless another has it already.
pub fn remove_name(name: &str) {
    if !name::is_served(name)
        && let Err(error) = name::remove(name)
    {
        eprintln!("overlayfs: The name /scheme/{name} cannot be removed: {error}.");
    }
}

/// Why the service ended.
enum Ended {
    Said(String),
    Socket(syscall::Error),
}

impl From<syscall::Error> for Ended {
    fn from(error: syscall::Error) -> Self {
        Ended::Socket(error)
    }
}
