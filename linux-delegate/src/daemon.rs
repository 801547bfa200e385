//! An overlay that a daemon thread serves under a name, for tests and benchmarks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use overlayfs::daemon::{Empty, Stop, serve};
use overlayfs::layer::Layer;
use overlayfs::overlay::Overlay;
use overlayfs::scheme::OverlayScheme;
use redox_scheme::scheme::register_sync_scheme;
use syscall::error::Result;

use crate::{abi, kernel};

/// A running daemon. Its drop ends it and frees its name.
pub struct Daemon {
    name: String,
    thread: Option<JoinHandle<Result<()>>>,
    stop: Arc<Stop>,
}

impl Daemon {
    /// Serves `overlay` as `/scheme/NAME`, in its own program and in an empty namespace. Returns
    /// when clients can use it.
    ///
    /// # Panics
    ///
    /// If the daemon does not start, for example because the name is taken.
    pub fn serve<L: Layer>(overlay: Overlay<L>, name: impl Into<String>) -> Self {
        Self::watched(overlay, name).0
    }

    /// As [`Daemon::serve`]. Also returns the scheme, which knows more than its clients learn.
    pub fn watched<L: Layer>(overlay: Overlay<L>, name: impl Into<String>) -> (Self, OverlayScheme<L>) {
        let name = name.into();
        Self::of(OverlayScheme::new(Arc::new(overlay), name.clone()), name)
    }

    /// As [`Daemon::watched`], for a scheme that calls itself `name`.
    pub fn of<L: Layer>(scheme: OverlayScheme<L>, name: String) -> (Self, OverlayScheme<L>) {
        let (ready, wait) = mpsc::channel();
        let (scheme_name, process) = (name.clone(), abi::process());
        let thread = thread::spawn(move || {
            abi::act_as(&process);
            let empty = Empty::make()?;
            serve(scheme, |socket, scheme, stop| {
                register_sync_scheme(socket, &scheme_name, scheme)?;
                empty.enter()?;
                let _ = ready.send((stop, scheme.clone()));
                Ok(())
            })
        });
        let (stop, scheme) = wait.recv().unwrap_or_else(|_| panic!("the daemon of {name} did not start"));
        (Self { name, thread: Some(thread), stop }, scheme)
    }

    /// Returns NAME of the path `/scheme/NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes the daemon answer the pending requests and then end, as a signal does.
    pub fn stop(&self) {
        self.stop.stop();
    }
}

impl Drop for Daemon {
    /// Ends the daemon. Panics if it ended with an error.
    fn drop(&mut self) {
        let _ = kernel::stop(&self.name);
        // Until the daemon has ended, it holds the upper layer.
        let ended = self.thread.take().map(JoinHandle::join);
        let _ = kernel::unregister(&self.name);
        if !thread::panicking() {
            assert!(matches!(ended, Some(Ok(Ok(())))), "the daemon of {} ended with {ended:?}", self.name);
        }
    }
}

/// Returns an unused name for a scheme: `prefix` and a number.
pub fn unused_name(prefix: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("{prefix}{}", COUNT.fetch_add(1, Ordering::Relaxed))
}
