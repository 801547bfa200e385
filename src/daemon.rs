//! The life of a scheme daemon: mount, register, serve.

use std::sync::Arc;

use log::{info, warn};
use redox_scheme::scheme::{SchemeState, SchemeSync, register_sync_scheme};
use redox_scheme::{RequestKind, Response, SignalBehavior, Socket};
use syscall::error::{EEXIST, Result};

use crate::layer::Layer;
use crate::mount::mount;
use crate::options::Arguments;
use crate::scheme::{OverlayScheme, answer};

/// Where init says which descriptor it waits at for a byte that means "ready".
const INIT_NOTIFY: &str = "INIT_NOTIFY";
/// A process id that no process has.
const NO_PROCESS: usize = usize::MAX;

/// Mounts the overlay, registers the scheme, tells init if it waits, and serves until the scheme ends. The error is a sentence.
pub fn run(arguments: Arguments) -> std::result::Result<(), String> {
    let Arguments { options, name, .. } = arguments;
    let overlay = mount(&options).map_err(|error| error.to_string())?;
    let socket = Socket::create().map_err(|error| format!("The kernel gives no socket for a scheme: {error}."))?;
    let mut scheme = OverlayScheme::new(Arc::new(overlay), name.clone());
    register_sync_scheme(&socket, &name, &mut scheme).map_err(|error| match error.errno {
        EEXIST => {
            format!("There is a scheme {name} already, or a daemon that died left the name /scheme/{name} behind.")
        }
        _ => format!("The scheme {name} cannot be registered: {error}."),
    })?;
    info!("serving /scheme/{name}");
    tell_init();
    serve(&socket, &mut scheme).map_err(|error| format!("The socket of the scheme {name} failed: {error}."))
}

fn tell_init() {
    let Ok(descriptor) = std::env::var(INIT_NOTIFY) else {
        return;
    };
    let told = match descriptor.parse() {
        Ok(descriptor) => libredox::call::write(descriptor, &[0]).map(drop).map_err(|error| error.to_string()),
        Err(error) => Err(format!("{descriptor}: {error}")),
    };
    if let Err(reason) = told {
        warn!("init cannot be told that the scheme is ready: {reason}");
    }
}

/// Answers the requests of a socket one after the other until it ends. Only an error of the socket itself ends this: see
/// [`answer`] for what clients can do.
pub fn serve<L: Layer>(socket: &Socket, scheme: &mut OverlayScheme<L>) -> Result<()> {
    let mut locks = SchemeState::new();
    while let Some(request) = socket.next_request(SignalBehavior::Restart)? {
        let response = match request.kind() {
            RequestKind::Call(call) => answer(call, scheme, &mut locks),
            RequestKind::SendFd(request) => Response::new(scheme.on_sendfd(&request), request),
            RequestKind::RecvFd(request) => Response::open_dup_like(scheme.on_recvfd(&request), request),
            RequestKind::OnClose { id } => {
                // The state lets go of a closed handle's locks only when it is told so in this way.
                detach(scheme, &mut locks, id, NO_PROCESS);
                scheme.on_close(id);
                continue;
            }
            RequestKind::OnDetach { id, pid } => {
                detach(scheme, &mut locks, id, pid);
                continue;
            }
            // It does not say which file is meant.
            RequestKind::MsyncMsg => {
                scheme.write_back();
                continue;
            }
            // One request is answered before the next is read, so there is none to cancel; the others ask for nothing.
            RequestKind::Cancellation(_) | RequestKind::MunmapMsg | RequestKind::MmapMsg => continue,
        };
        match socket.write_response(response, SignalBehavior::Restart) {
            Ok(true) => {}
            Ok(false) => break,
            // The client is gone, say.
            Err(error) => warn!("a response was not taken: {error}"),
        }
    }
    scheme.write_back();
    Ok(())
}

/// Releases the locks that the handle, or the process through it, holds.
fn detach<L: Layer>(scheme: &OverlayScheme<L>, locks: &mut SchemeState, id: usize, pid: usize) {
    if let Ok(inode) = scheme.inode(id) {
        locks.on_detach(id, inode, pid);
    }
}

/// Sends what is logged to standard error, which init passes on to the log scheme.
pub fn start_log(verbose: bool) {
    let level = if verbose { log::LevelFilter::Debug } else { log::LevelFilter::Info };
    let output = redox_log::OutputBuilder::stderr().with_filter(level).build();
    let logger = redox_log::RedoxLogger::new().with_process_name("overlayfs".to_owned()).with_output(output);
    if let Err(error) = logger.enable() {
        eprintln!("overlayfs: nothing is logged: {error}");
    }
}
