//! An overlay before its service, and the begin of that.

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread;

use overlayfs::layer::OsLayer;
use overlayfs::mount::Roots;
use overlayfs::options::{Ending, Options};
use overlayfs::overlay::{Holder, Overlay};
use overlayfs::process::Ready;
use rustix::mount::MountFlags;

use super::Background;
use super::signals::Signals;
use super::take_over::Taken;
use crate::comeback::{Kept, Ledger, Mounted};
use crate::control::About;
use crate::engine::{EngineFrontEnd, Settings};
use crate::front_end::FrontEnd;
use crate::line::Line;
use crate::mount::{self as fuse_mount, Device, Ender, Prober, Threads, Waiter};
use crate::options::MountOptions;
use crate::sandbox::Sandbox;
use crate::session::{Running, Service, Session};
use crate::settle::Settler;
use crate::source;
use crate::succession::{Estate, Heir, Identities, report_end};
use crate::wire::init;

/// How many requests can run at once by default: two for each processor, since some wait for the
/// disk, within these bounds.
const THREADS: RangeInclusive<usize> = 4..=16;

/// An overlay before its mount, with all that mount and service need.
pub struct Stacked<'a> {
    pub(super) options: &'a MountOptions,
    pub(super) is_limited: bool,
    pub(super) ways: Ways,
    pub(super) overlay: Arc<Overlay<OsLayer>>,
    pub(super) about: Arc<About>,
    pub(super) estate: Arc<Estate>,
    /// The record of this process, which holds the upper layer.
    pub(super) holder: Holder,
    /// The way to tell the parent that the mount is there, if a parent waits.
    pub(super) ready: Option<Ready>,
    /// The mount of another process. None: there is no mount yet.
    pub(super) heir: Option<Box<Taken>>,
    /// Where the objects are written down for a comeback. None: there is none.
    pub(super) ledger: Option<Arc<Ledger>>,
}

/// The ways to the process `unmounter`, by their use.
pub(super) struct Ways {
    pub signals: Rc<Signals>,
    pub watched: (Waiter, Prober),
    pub ender: Ender,
}

impl Ways {
    /// Keeps the ways for the next daemon too, with what stays the same: the mount point, when the
    /// mount began, its layers and their roots.
    ///
    /// # Errors
    ///
    /// - A sentence says what failed.
    pub fn keep(
        threads: Threads,
        (mount_point, since, comebacks, layers, roots): (PathBuf, u64, Vec<u64>, Options, Roots),
        is_foreground: bool,
        report: Option<Line>,
    ) -> Result<(Self, Arc<Estate>), String> {
        let lines = threads.lines().map_err(|error| format!("The process for the unmount cannot be kept: {error}."))?;
        let Threads { unmounter, ender, waiter, prober, starter } = threads;
        let signals = Signals::new(unmounter).map_err(|error| format!("Signals cannot be awaited: {error}."))?;
        let ways = Self { signals: Rc::new(signals), watched: (waiter, prober), ender };
        let next = Mutex::default();
        let estate =
            Estate { mount_point, layers, roots, since, comebacks, lines, starter, is_foreground, report, next };
        Ok((ways, Arc::new(estate)))
    }
}

impl<'a> Stacked<'a> {
    /// Returns the options of the mount.
    pub fn options(&self) -> &'a MountOptions {
        self.options
    }

    /// Returns the overlay.
    pub fn overlay(&self) -> Arc<Overlay<OsLayer>> {
        self.overlay.clone()
    }

    /// Returns the sandbox of the daemon.
    ///
    /// # Errors
    ///
    /// - A sentence names the directory that cannot be opened, and why.
    pub fn sandbox(&self) -> Result<Sandbox, String> {
        match &self.heir {
            None => Sandbox::new(self.options),
            Some(_) => Sandbox::of_roots(&self.estate.roots, !self.options.layers.read_only, self.options.passthrough),
        }
    }

    /// Makes the front end that calls the engine. It has a channel, and can give the mount to
    /// another process.
    ///
    /// # Errors
    ///
    /// - A sentence says why it cannot go on with the mount of another process.
    pub fn engine(&mut self) -> Result<EngineFrontEnd<OsLayer>, String> {
        // A process with a limit of the size of files fails some writes with EFBIG.
        let settings = Settings::of(self.options, self.is_limited);
        let front_end = EngineFrontEnd::new(self.overlay.clone(), settings);
        let front_end = front_end.with_channel(self.about.clone()).with_heirs(self.estate.clone());
        let front_end = front_end.with_ledger(self.ledger.clone());
        match &mut self.heir {
            None => Ok(front_end),
            Some(taken) => taken.known_to(front_end),
        }
    }

    /// Mounts a front end and serves it until the unmount, in the sandbox if there is one.
    ///
    /// # Errors
    ///
    /// - A sentence says which step failed, and why.
    pub fn serve<D: FrontEnd + 'static>(self, front_end: D, sandbox: Option<Sandbox>) -> Result<(), String> {
        let estate = self.estate.clone();
        let shown = estate.mount_point.display().to_string();
        let holder = Holder { ending: true, ..self.holder.clone() };
        let signals = self.ways.signals.clone();
        let running = match self.heir {
            None => self.mount_and_begin(front_end, sandbox)?,
            Some(_) => self.begin_again(front_end, sandbox)?,
        };
        log::info!("serving {shown}");
        let seat = running.seat();
        let Some((served, settled)) = running.run(Some(&*signals), || seat.sign(&holder)) else {
            log::info!("another process serves {shown}");
            // The layers are still in use, so nothing of them is dropped.
            std::mem::forget(seat);
            return match estate.wait_for_end(&*signals) {
                true => Ok(()),
                false => Err(format!("The process that took over the mount at {shown} failed.")),
            };
        };
        log::info!("{shown} is unmounted");
        served.map_err(|error| format!("The mount at {shown} failed: {error}."))?;
        settled?;
        estate.report.iter().for_each(report_end);
        Ok(())
    }

    fn mount_and_begin<D: FrontEnd + 'static>(
        self,
        front_end: D,
        sandbox: Option<Sandbox>,
    ) -> Result<Running<D>, String> {
        let (signals, estate) = (self.ways.signals.clone(), self.estate.clone());
        let point = &estate.mount_point;
        let device = fuse_mount::mount(point, &self.mount_options::<D>())
            .map_err(|error| format!("The overlay cannot be mounted at {}: {error}.", point.display()))?;
        self.begin(front_end, device, sandbox).inspect_err(|_| {
            // Without this, a program that uses the mount would wait forever.
            if let Err(error) = signals.unmount() {
                log::error!("The mount at {} cannot be unmounted after the error: {error}.", point.display());
            }
        })
    }

    fn mount_options<D: FrontEnd>(&self) -> fuse_mount::Options {
        let root = rustix::process::geteuid().is_root();
        let mut flags = self.options.flags;
        flags.set(MountFlags::RDONLY, self.overlay.is_read_only());
        fuse_mount::Options {
            source: self.options.source.clone().unwrap_or_else(|| source::of(&self.options.layers)),
            flags,
            allow_other: root || self.options.allow_other,
            default_permissions: !D::CHECKS_ACCESS,
        }
    }

    /// How many threads serve requests.
    pub(super) fn service(&self) -> Service {
        let usual = || {
            (2 * thread::available_parallelism().map_or(1, NonZeroUsize::get)).clamp(*THREADS.start(), *THREADS.end())
        };
        let most = self.options.max_threads.map(NonZeroUsize::get);
        Service {
            threads: most.unwrap_or_else(usual).max(2),
            most: most.unwrap_or(usize::MAX),
            io_uring: self.options.io_uring,
        }
    }

    /// Starts all threads of a mount but this one, and tells the parent that the mount is there.
    fn begin<D: FrontEnd + 'static>(
        self,
        front_end: D,
        device: OwnedFd,
        sandbox: Option<Sandbox>,
    ) -> Result<Running<D>, String> {
        let (point, service) = (&self.estate.mount_point, self.service());
        let shown = point.display();
        let settler = match self.overlay.is_read_only() {
            true => None,
            false => {
                let ending = ender(self.options, self.ways.ender);
                let settler = Device::of_mounted(point)
                    .and_then(|device| Settler::new(device, self.ways.watched, ending, self.overlay))
                    .map_err(|error| format!("The mount at {shown} cannot be watched for its unmount: {error}."))?;
                Some(settler)
            }
        };
        let session = Session::start(device, front_end, service, settler)
            .map_err(|error| format!("FUSE cannot be started at {shown}: {error}."))?;
        let detached = |error| format!("The program cannot leave the terminal: {error}.");
        // So that the filesystem of the working directory can be unmounted.
        std::env::set_current_dir("/").map_err(|error| format!("The working directory cannot be left: {error}."))?;
        let background = self.ready.map(|ready| Background::prepare(ready).map_err(detached)).transpose()?;
        let kept = keep(self.ledger, self.estate.clone(), &session, None)?;
        if let Some(sandbox) = sandbox {
            sandbox.enter();
        }
        let cannot_start = |error| format!("The threads that serve {shown} cannot be started: {error}.");
        kept.iter().for_each(|kept| kept.begin());
        let running = session.start_threads().map_err(cannot_start)?;
        if let Some(background) = background {
            background.enter().map_err(detached)?;
        }
        Ok(running)
    }
}

/// Starts the process that brings the mount back, if there is a ledger. No thread may have been
/// started. The error is a sentence.
pub(super) fn keep<D: FrontEnd + 'static>(
    ledger: Option<Arc<Ledger>>,
    estate: Arc<Estate>,
    session: &Session<D>,
    heir: Option<Arc<Heir>>,
) -> Result<Option<Arc<Kept>>, String> {
    let Some(ledger) = ledger else { return Ok(None) };
    let (device, agreed, filesystem) = session.mounted();
    let why = match agreed.flags {
        flags if flags & init::OVER_IO_URING != 0 => Some("its requests come over io_uring"),
        flags if flags & init::PASSTHROUGH != 0 => Some("the kernel reads its large files for this process"),
        flags if flags & init::HAS_RESEND == 0 => Some("it needs Linux 6.9"),
        _ => None,
    };
    if let Some(why) = why {
        log::warn!("the mount will not go on if this process is killed: {why}");
        return Ok(None);
    }
    let layers = Identities::of_roots(&estate.roots).ok_or("The layers cannot be looked at.")?;
    let mounted = Mounted { estate, layers, ledger, device, agreed, filesystem, heir };
    // SAFETY: no thread has been started.
    let kept = unsafe { mounted.keep() };
    let kept = kept.map_err(|error| format!("No process can be started that brings the mount back: {error}."))?;
    let kept = Arc::new(kept);
    session.kept_by(kept.clone());
    Ok(Some(kept))
}

/// Returns the way to the ending, if there is one.
pub(super) fn ender(options: &MountOptions, ender: Ender) -> Option<Ender> {
    (options.layers.on_exit != Ending::Preserve).then_some(ender)
}
