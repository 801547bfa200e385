//! How the scheme becomes known: by its name, and through init.
//!
//! A daemon that a user starts registers its name. One that init starts may do so too, and then
//! tells init. Or it sends the scheme to init, and init registers the name.

use std::sync::Arc;

use log::info;
use redox_scheme::Socket;
use redox_scheme::scheme::{SchemeSync, register_sync_scheme};
use syscall::error::{EEXIST, Error};

use super::init::Init;
use super::name;
use super::namespace::Empty;
use super::serve::Stop;
use super::spare::Lent;
use crate::layer::Layer;
use crate::options::Arguments;
use crate::scheme::OverlayScheme;

/// The observer of a daemon's progress.
pub trait Watcher {
    /// Whether the name must be removed after the daemon's end. At first it must not.
    fn owns_name(&mut self, _owns: bool) {}

    /// Gets the socket before the scheme becomes known. So it can answer clients after a kill of
    /// the daemon.
    fn lend(&mut self, _socket: &Socket) -> Option<Lent> {
        None
    }

    /// Learns that clients can use the tree, and how to end the service.
    fn ready(self, stop: Arc<Stop>);
}

impl<F: FnOnce(Arc<Stop>)> Watcher for F {
    fn ready(self, stop: Arc<Stop>) {
        self(stop);
    }
}

/// Registers the name of the scheme, or has init do it, enters the empty namespace, and tells init.
/// Once the name is known, nothing asks the manager of namespaces. The error is a sentence.
pub fn announce<L: Layer>(
    socket: &Socket,
    scheme: &mut OverlayScheme<L>,
    arguments: &Arguments,
    init: Init,
    empty: Empty,
    watcher: &mut impl Watcher,
) -> Result<(), String> {
    let name = &arguments.name;
    let enter = |empty: Empty| {
        empty.enter().map_err(|error| format!("The empty namespace of the daemon cannot be entered: {error}."))
    };
    if arguments.hand_to_init {
        let failed = |cause: String| format!("The scheme {name} cannot be handed to init: {cause}.");
        init.check().map_err(failed)?;
        let root = root(socket, scheme).map_err(|error| failed(error.to_string()))?;
        enter(empty)?;
        watcher.owns_name(true);
        return init.hand_over(root).map_err(|error| {
            watcher.owns_name(false);
            failed(error.to_string())
        });
    }
    let mut register = || {
        watcher.owns_name(true);
        register_sync_scheme(socket, name, scheme).inspect_err(|_| watcher.owns_name(false))
    };
    let mut registered = register();
    if registered == Err(Error::new(EEXIST)) && arguments.replace {
        if name::is_served(name) {
            return Err(format!(
                "Another daemon serves /scheme/{name}: --replace takes only a name that a dead daemon left behind."
            ));
        }
        name::remove(name).map_err(|error| format!("The name /scheme/{name} cannot be removed: {error}."))?;
        registered = register();
    }
    registered.map_err(|error| match error.errno {
        EEXIST if name::is_served(name) => format!("Another daemon serves /scheme/{name}."),
        EEXIST => format!(
            "A daemon that died left the name /scheme/{name} behind. Take it with --replace, or remove it with rm \
             /scheme/{name}."
        ),
        _ => format!("The scheme {name} cannot be registered: {error}."),
    })?;
    enter(empty)?;
    init.tell();
    info!("serving /scheme/{name}");
    Ok(())
}

/// Makes a descriptor of the scheme's root. A process with it can register a name for the scheme.
fn root<L: Layer>(socket: &Socket, scheme: &mut OverlayScheme<L>) -> syscall::Result<usize> {
    socket.create_this_scheme_fd(0, scheme.scheme_root()?, 0, 0)
}
