//! The life of a scheme daemon: mount, register, serve.
//!
//! | file | subject |
//! | --- | --- |
//! | `start` | how the name of the scheme becomes known |
//! | `init` | the pipe at which init waits |
//! | `serve` | the request loop |
//! | `socket_workers` | requests that wait for another daemon |
//! | `name` | the check and the removal of a scheme's name |
//! | `namespace` | the empty namespace in which the daemon serves |
//! | `log` | messages |
//! | `supervisor` | the process that waits for the daemon's end |
//! | `spare` | the answers of the supervisor after a kill of the daemon |
//!
//! When its name becomes known, the daemon can reach only the descriptors of its layers.

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
use std::time::SystemTime;

use redox_scheme::Socket;

use crate::control::fact::Fact;
use crate::control::info;
use crate::layer::Layer;
use crate::mount::{mount, resolved, sign};
use crate::options::Arguments;
use crate::overlay::Holder;
use crate::scheme::{About, OverlayScheme};

pub use self::init::Init;
pub use self::log::start_log;
pub use self::namespace::Empty;
pub use self::serve::Stop;
pub use self::spare::Lent;
pub use self::start::Watcher;
pub use self::supervisor::{Kept, keep};

/// Mounts the overlay, registers the scheme, and serves until the scheme ends. `watcher` learns
/// when clients can use the tree. The error is a sentence.
///
/// # Errors
///
/// The sentence has the path and the cause.
pub fn run(arguments: &Arguments, init: Init, mut watcher: impl Watcher) -> Result<(), String> {
    let name = &arguments.name;
    let overlay = Arc::new(mount(&arguments.options).map_err(|error| format!("Cannot mount: {error}."))?);
    let mut holder = Holder::this(format!("/scheme/{name}").into());
    sign(&overlay, &holder);
    let empty = Empty::make().map_err(|error| format!("No empty namespace can be made for the daemon: {error}."))?;
    let format = overlay.format_name();
    let scheme = OverlayScheme::new(overlay, name.clone())
        .protect_hardlinks(arguments.protected_hardlinks)
        .with_channel(about(arguments, format));
    let (mut lent, watched) = (None, scheme.clone());
    let served = serve(scheme, |socket, scheme, stop| {
        lent = watcher.lend(socket);
        start::announce(socket, scheme, arguments, init, empty, &mut watcher).map_err(Ended::Said)?;
        watcher.ready(stop);
        Ok(())
    });
    drop(lent);
    // A snapshot has put another overlay in the place of the first one.
    let overlay = watched.overlay();
    holder.ending = true;
    sign(&overlay, &holder);
    let settled = overlay
        .complete_and_sync()
        .map_err(|error| format!("The changes are not all complete and on the disk: {error}."));
    served.map_err(|ended| match ended {
        Ended::Said(sentence) => sentence,
        Ended::Socket(error) => format!("The socket of the scheme {name} failed: {error}."),
    })?;
    settled
}

/// Describes the scheme that this process is about to serve.
fn about(arguments: &Arguments, format: Option<&str>) -> About {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut facts = vec![
        Fact::text("version", env!("CARGO_PKG_VERSION")),
        Fact::text("mount_point", format!("/scheme/{}", arguments.name)),
        Fact::number("pid", std::process::id().into()),
        Fact::number("since", since.as_secs()),
    ];
    facts.extend(format.map(|format| Fact::text("format", format)));
    facts.extend(info::layers(&resolved(&arguments.options)));
    // SAFETY: takes nothing, and cannot fail.
    let owner = unsafe { libc::getuid() };
    About { owner: owner as u32, facts }
}

/// Serves an overlay as a scheme, until its socket ends or the service is stopped. It calls `begin`
/// before the first request; that registers the name. An error of `begin`, or of the socket, ends
/// the service.
///
/// # Errors
///
/// Those of `begin` and of the socket.
pub fn serve<L: Layer, E: From<syscall::Error>>(
    mut scheme: OverlayScheme<L>,
    begin: impl FnOnce(&Socket, &mut OverlayScheme<L>, Arc<Stop>) -> Result<(), E>,
) -> Result<(), E> {
    // The standard library opens the source of random numbers by its path at its first use, and
    // keeps it open.
    let _ = RandomState::new();
    let socket = Arc::new(Socket::create()?);
    let stop = Arc::new(Stop::new(&socket, &mut scheme)?);
    serve::serve(&socket, &scheme.clone(), &stop, || begin(&socket, &mut scheme, stop.clone()))
}

/// Removes the name of a daemon that has ended, unless another daemon serves it already.
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
