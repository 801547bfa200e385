//! How the world learns of the scheme: by its name, and through init.
//!
//! A daemon that was started by hand registers its name. One that init started may do that too, and
//! then says so; or it sends init the scheme, to which init gives the name.

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

/// Who is told how far a daemon has come.
pub trait Watcher {
    /// Whether the name of the scheme is to be removed when the daemon is gone. First it is not.
    fn owns_name(&mut self, _owns: bool) {}

    /// Is lent the socket before the scheme is known, to answer who waits for a daemon that was
    /// killed.
    fn lend(&mut self, _socket: &Socket) -> Option<Lent> {
        None
    }

    /// Clients can use the tree. It is told what ends the service.
    fn ready(self, stop: Arc<Stop>);
}

impl<F: FnOnce(Arc<Stop>)> Watcher for F {
    fn ready(self, stop: Arc<Stop>) {
        self(stop);
    }
}

/// Gives the scheme its name, or has init do it, enters the empty namespace, and tells init. Once
/// the name is known nothing is asked of the manager of namespaces. The error is a sentence.
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
        empty.enter().map_err(|error| format!("The empty namespace, in which to serve, cannot be entered: {error}."))
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
                "Another daemon serves /scheme/{name}, and lives: only a name that was left behind can be replaced."
            ));
        }
        name::remove(name).map_err(|error| format!("The name /scheme/{name} cannot be removed: {error}."))?;
        registered = register();
    }
    registered.map_err(|error| match error.errno {
        EEXIST if name::is_served(name) => format!("Another daemon serves /scheme/{name}."),
        EEXIST => format!(
            "A daemon that died left the name /scheme/{name} behind. Use --replace to take it, or remove it with rm /scheme/{name}."
        ),
        _ => format!("The scheme {name} cannot be registered: {error}."),
    })?;
    enter(empty)?;
    init.tell();
    info!("serving /scheme/{name}");
    Ok(())
}

/// A descriptor of the scheme's root, which whoever has it can give a name.
fn root<L: Layer>(socket: &Socket, scheme: &mut OverlayScheme<L>) -> syscall::Result<usize> {
    socket.create_this_scheme_fd(0, scheme.scheme_root()?, 0, 0)
}
