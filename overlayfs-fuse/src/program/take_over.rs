//! The service of a mount that another process has served until now.
//!
//! That process waits, and no process answers requests meanwhile. So this one looks no path of the
//! mount or of a layer up, and leaves the layers as they are if anything fails.

use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;

use overlayfs::layer::OsLayer;
use overlayfs::layer::linux::locks;
use overlayfs::mount::sign;
use overlayfs::options::Options;
use overlayfs::overlay::Holder;

use super::stacked::{Stacked, Ways, ender, keep};
use super::{code_of, ledger};
use crate::control::About;
use crate::engine::EngineFrontEnd;
use crate::front_end::FrontEnd;
use crate::line::Line;
use crate::mount::{Device, Threads};
use crate::options::MountOptions;
use crate::sandbox::Sandbox;
use crate::session::{Running, Session};
use crate::settle::Settler;
use crate::succession::{Heir, Identities, Received};
use crate::{inherited, logger};

/// The mount of another process, with the way to that process.
pub(super) struct Taken {
    received: Received,
    heir: Arc<Heir>,
}

impl Taken {
    /// Tells a front end what that of the other process knew.
    ///
    /// # Errors
    ///
    /// - A sentence says that it makes no sense.
    pub fn known_to(&mut self, front_end: EngineFrontEnd<OsLayer>) -> Result<EngineFrontEnd<OsLayer>, String> {
        front_end
            .after(&mut self.received)
            .map_err(|error| format!("The objects of the daemon of the mount make no sense: {error}."))
    }
}

/// Takes a mount over from the process that serves it.
pub(super) fn take_over(
    mut options: MountOptions,
    layers: &Identities,
    serve: impl FnOnce(Stacked<'_>) -> Result<(), String>,
) -> ExitCode {
    logger::start(options.verbosity);
    let is_limited = inherited::prepare();
    let heir = match Heir::this() {
        Ok(heir) => Arc::new(heir),
        Err(error) => return code_of(Err(format!("The line to the daemon of the mount cannot be used: {error}."))),
    };
    let result = heir.receive().and_then(|received| {
        let Options { lowers, upper, work, snapshots, .. } = received.legacy.layers.clone();
        options.layers = Options { lowers, upper, work, snapshots, ..options.layers.clone() };
        serve(stack_again(&options, is_limited, received, (heir.clone(), layers))?)
    });
    if let Err(sentence) = &result {
        // The other process says it, unless it has given the mount away.
        heir.fail(sentence);
    }
    code_of(result)
}

/// Stacks the layers of another process again. The error is a sentence.
fn stack_again<'a>(
    options: &'a MountOptions,
    is_limited: bool,
    mut received: Received,
    (heir, layers): (Arc<Heir>, &Identities),
) -> Result<Stacked<'a>, String> {
    let cannot = |error: &dyn Display| format!("The layers cannot be stacked again: {error}.");
    let roots = received.roots();
    if !layers.are(&roots) {
        return Err("The daemon of the mount has other layers than those that it was started with.".to_owned());
    }
    let legacy = &mut received.legacy;
    locks::inherit(std::mem::take(&mut legacy.locks));
    logger::go_on_with(std::mem::take(&mut legacy.logs), options.log.as_ref(), &legacy.mount_point);
    let opened = roots.open(&options.layers).map_err(|error| cannot(&error))?;
    let overlay = Arc::new(opened.stack(&options.layers, true).map_err(|error| cannot(&error))?);
    // Its drop would unlock the layers, which the other process still holds if this one fails.
    std::mem::forget(overlay.clone());
    let (point, since, layers) = (legacy.mount_point.clone(), legacy.since, options.layers.clone());
    let comebacks = legacy.comebacks.clone();
    let about = Arc::new(About::since(since, &point, &layers, options, overlay.format_name()));
    let again = |line: &OwnedFd| line.try_clone().map_err(|error| cannot(&error));
    let [unmount, end, wait, probe, start] = &legacy.lines;
    let lines = [again(unmount)?, again(end)?, again(wait)?, again(probe)?, again(start)?];
    let report = match legacy.report.take() {
        None if options.foreground => Some(heir.line_again().map_err(|error| cannot(&error))?),
        report => report.map(Line::from),
    };
    let holder = Holder::this(point.clone());
    let threads = Threads::again(lines);
    let (ways, estate) = Ways::keep(threads, (point, since, comebacks, layers, roots), options.foreground, report)?;
    let heir = Some(Box::new(Taken { received, heir }));
    let ledger = ledger(options)?;
    Ok(Stacked { options, is_limited, ways, overlay, about, estate, holder, ready: None, heir, ledger })
}

impl Stacked<'_> {
    /// Starts all threads but this one, once the other process has given the mount away.
    pub(super) fn begin_again<D: FrontEnd + 'static>(
        self,
        front_end: D,
        sandbox: Option<Sandbox>,
    ) -> Result<Running<D>, String> {
        let service = self.service();
        let Some(taken) = self.heir else { return Err("There is no mount to take over.".to_owned()) };
        let Taken { received, heir } = *taken;
        let legacy = received.legacy;
        let shown = legacy.mount_point.display().to_string();
        let settler = match self.overlay.is_read_only() {
            true => None,
            false => {
                let (ending, (major, minor)) = (ender(self.options, self.ways.ender), legacy.filesystem);
                let overlay = self.overlay.clone();
                let settler = Settler::new(Device::new(major, minor), self.ways.watched, ending, overlay)
                    .map_err(|error| format!("The mount at {shown} cannot be watched for its unmount: {error}."))?;
                Some(settler.after(legacy.asked, legacy.asks_again))
            }
        };
        let session = Session::go_on(legacy.device, front_end, legacy.agreed, service, settler)
            .map_err(|error| format!("FUSE cannot go on at {shown}: {error}."))?;
        std::env::set_current_dir("/").map_err(|error| format!("The working directory cannot be left: {error}."))?;
        match legacy.streams {
            Some([output, error]) => {
                let placed = rustix::stdio::dup2_stdout(output).and_then(|()| rustix::stdio::dup2_stderr(error));
                placed.map_err(|error| format!("The standard streams cannot be used: {error}."))?;
            }
            None => logger::leave_terminal(),
        }
        keep(self.ledger, self.estate.clone(), &session, Some(heir.clone()))?;
        if let Some(sandbox) = sandbox {
            sandbox.enter();
        }
        if legacy.asks_again {
            // The other process has taken requests by descriptors that end with it.
            session.resend().map_err(|error| format!("The requests to {shown} do not come again: {error}."))?;
        }
        heir.begin()?;
        sign(&self.overlay, &self.holder);
        let signals = self.ways.signals;
        session.start_threads().map_err(|error| {
            // Without this, a program that uses the mount would wait forever.
            if let Err(error) = signals.unmount() {
                log::error!("The mount at {shown} cannot be unmounted after the error: {error}.");
            }
            format!("The threads that serve {shown} cannot be started: {error}.")
        })
    }
}
