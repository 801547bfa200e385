//! How the world learns of the scheme: by its name, and through init.
//!
//! A daemon that was started by hand registers its name. One that init started finds in `INIT_NOTIFY` the descriptor of a pipe at which init
//! waits: for a byte, when the name is registered (a unit of `type = "notify"`), or for the descriptor of the scheme itself, to which init gives
//! the name (`type = { scheme = "NAME" }`). Nobody can tell from the pipe which of the two it is.

use log::{info, warn};
use redox_scheme::Socket;
use redox_scheme::scheme::{SchemeSync, register_sync_scheme};
use syscall::error::{EEXIST, Result};
use syscall::flag::CallFlags;

use super::name;
use crate::layer::Layer;
use crate::options::Arguments;
use crate::scheme::OverlayScheme;

/// Where init says at which descriptor it waits.
const INIT_NOTIFY: &str = "INIT_NOTIFY";

/// Gives the scheme its name, or has init do it, and tells init. The error is a sentence.
pub fn announce<L: Layer>(
    socket: &Socket,
    scheme: &mut OverlayScheme<L>,
    arguments: &Arguments,
) -> std::result::Result<(), String> {
    let name = &arguments.name;
    if arguments.hand_to_init {
        let pipe = init().ok_or(format!("{INIT_NOTIFY} is not set, so there is no init to hand the scheme to."))?;
        return pipe
            .and_then(|pipe| hand_over(socket, scheme, pipe).map_err(|error| error.to_string()))
            .map_err(|cause| format!("The scheme {name} cannot be handed to init: {cause}."));
    }
    if arguments.replace {
        if name::is_served(name) {
            return Err(format!(
                "Another daemon serves /scheme/{name}, and lives: only a name that was left behind can be replaced."
            ));
        }
        name::remove(name).map_err(|error| format!("The name /scheme/{name} cannot be removed: {error}."))?;
    }
    register_sync_scheme(socket, name, scheme).map_err(|error| match error.errno {
        EEXIST if name::is_served(name) => format!("Another daemon serves /scheme/{name}."),
        EEXIST => format!(
            "A daemon that died left the name /scheme/{name} behind. Use --replace to take it, or remove it with rm /scheme/{name}."
        ),
        _ => format!("The scheme {name} cannot be registered: {error}."),
    })?;
    info!("serving /scheme/{name}");
    let told = init().map(|pipe| {
        pipe.and_then(|pipe| libredox::call::write(pipe, &[0]).map(drop).map_err(|error| error.to_string()))
    });
    if let Some(Err(cause)) = told {
        warn!("init cannot be told that the scheme is ready: {cause}");
    }
    Ok(())
}

/// The descriptor at which init waits, if it does; or what is wrong with it.
fn init() -> Option<std::result::Result<usize, String>> {
    let descriptor = std::env::var(INIT_NOTIFY).ok()?;
    Some(descriptor.parse().map_err(|error| format!("{INIT_NOTIFY}={descriptor}: {error}")))
}

fn hand_over<L: Layer>(socket: &Socket, scheme: &mut OverlayScheme<L>, pipe: usize) -> Result<()> {
    let root = socket.create_this_scheme_fd(0, scheme.scheme_root()?, 0, 0)?;
    libredox::call::call_wo(pipe, &root.to_ne_bytes(), CallFlags::FD, &[])?;
    Ok(())
}
