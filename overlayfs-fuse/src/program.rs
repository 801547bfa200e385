//! The program of a mount. It stacks the layers, serves them through a front end, and unmounts on a
//! signal.
//!
//! Several threads serve the FUSE session, and one waits for signals. Without `-f` they run in a
//! child, and the process itself only waits until the mount is there. Before the daemon starts the
//! threads it drops the rights that it no longer needs. Then it may not unmount, so a child process
//! of its own does that.

use std::ffi::OsString;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use overlayfs::layer::OsLayer;
use overlayfs::layer_tools::ending::Planned;
use overlayfs::mount::{mount, sign};
use overlayfs::options::{Ending, Options};
use overlayfs::overlay::{Holder, Overlay};
use overlayfs::process::{Detached, Ready, Streams, detach};
use rustix::mount::MountFlags;

use crate::front_end::FrontEnd;
use crate::mount::{self as fuse_mount, Device, Ender, Prober, Unmounter, Waiter};
use crate::options::{Command, MountOptions};
use crate::patience::Patience;
use crate::sandbox::Sandbox;
use crate::session::{Running, Session};
use crate::settle::Settler;
use crate::usage::PROGRAM;
use crate::{inherited, logger};

/// How many requests can run at once by default: two for each processor, since some wait for the
/// disk, within these bounds.
const THREADS: RangeInclusive<usize> = 4..=16;

/// Runs a command line without its first word. For a mount, `serve` makes a front end and calls
/// [`Stacked::serve`]; its error is a sentence. The caller closes inherited descriptors before
/// ([`inherited::close_descriptors`]).
pub fn run(arguments: Vec<OsString>, serve: impl FnOnce(Stacked<'_>) -> Result<(), String>) -> ExitCode {
    let done = match Command::parse(arguments) {
        Ok(Command::Help) => write!(io::stdout(), "{}", PROGRAM.help()),
        Ok(Command::Version) => writeln!(io::stdout(), "overlayfs-fuse {}", env!("CARGO_PKG_VERSION")),
        Ok(Command::Mount(options)) => return mount_and_serve(&options, serve),
        Ok(Command::Remount(options)) => return remount(&options),
        Err(error) => {
            eprintln!("overlayfs-fuse: {error} See overlayfs-fuse --help.");
            return ExitCode::FAILURE;
        }
    };
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Changes the flags of a mount that another process serves.
fn remount(options: &MountOptions) -> ExitCode {
    let mut flags = options.flags;
    flags.set(MountFlags::RDONLY, options.layers.read_only);
    match fuse_mount::remount(&options.mount_point, flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let why = match error.raw_os_error() {
                Some(libc::EINVAL) => "nothing is mounted there".to_owned(),
                _ => error.to_string(),
            };
            eprintln!("overlayfs-fuse: The mount at {} cannot be changed: {why}.", options.mount_point.display());
            ExitCode::FAILURE
        }
    }
}

fn mount_and_serve(options: &MountOptions, serve: impl FnOnce(Stacked<'_>) -> Result<(), String>) -> ExitCode {
    inherited::raise_limits();
    logger::start(options.verbosity);
    if let Some(file) = &options.log
        && let Err(error) = logger::log_to(file)
    {
        log::error!("The log file {} cannot be opened: {error}.", file.display());
        return ExitCode::FAILURE;
    }
    let result = match options.foreground {
        true => stack(options, None).and_then(serve),
        // SAFETY: no other thread has been started.
        false => match unsafe { detach() } {
            Ok(Detached::Caller(code)) => return code,
            Ok(Detached::Daemon(ready)) => stack(options, Some(ready)).and_then(serve),
            Err(error) => Err(format!("No process can be started in the background: {error}.")),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            log::error!("{sentence}");
            ExitCode::FAILURE
        }
    }
}

/// Stacks the layers and prepares their mount. The error is a sentence.
fn stack(options: &MountOptions, ready: Option<Ready>) -> Result<Stacked<'_>, String> {
    let is_limited = inherited::prepare();
    let mount_point = &options.mount_point;
    let mount_point = mount_point.canonicalize().map_err(|error| unusable(mount_point, &error))?;
    if !mount_point.metadata().map_err(|error| unusable(&mount_point, &error))?.is_dir() {
        return Err(format!("The mount point {} cannot be used: it is not a directory.", mount_point.display()));
    }
    // Before the layers are locked, so that only the daemon holds them.
    let ending = Planned::new(&options.layers).map_err(|error| format!("Cannot mount with on_exit: {error}."))?;
    let (unmounter, ender, waiter, prober) =
        Unmounter::start(&mount_point, move || ending.make()).map_err(|error| {
            format!("No process can be started for the later unmount of {}: {error}.", mount_point.display())
        })?;
    log_layers(&options.layers);
    let overlay = Arc::new(mount_in_turn(&options.layers)?);
    let holder = Holder::this(mount_point.clone());
    sign(&overlay, &holder);
    let unmounter = Arc::new(Mutex::new(unmounter));
    Ok(Stacked {
        options,
        is_limited,
        mount_point,
        unmounter,
        watched: (waiter, prober),
        ender,
        overlay,
        holder,
        ready,
    })
}

/// Explains why a mount point cannot be used.
fn unusable(mount_point: &Path, error: &io::Error) -> String {
    let shown = mount_point.display();
    match error.raw_os_error() {
        Some(libc::ENOTCONN) => format!(
            "The mount point {shown} is a dead mount: its program ended without an unmount. Unmount it first: umount \
             {shown}, or fusermount3 -u {shown}."
        ),
        _ => format!("The mount point {shown} cannot be used: {error}."),
    }
}

/// Stacks the layers. Waits for another overlay that holds the upper layer and is ending.
fn mount_in_turn(layers: &Options) -> Result<Overlay<OsLayer>, String> {
    let mut patience = Patience::new();
    loop {
        match mount(layers) {
            Ok(overlay) => return Ok(overlay),
            Err(error) if error.held().is_some_and(|holder| patience.waits_for(holder)) => {}
            Err(error) => return Err(format!("Cannot mount: {error}.")),
        }
    }
}

/// Logs the layers, for `-v`.
fn log_layers(layers: &Options) {
    let one = |path: &Path| path.display().to_string();
    let lowers: Vec<_> = layers.lowers.iter().map(|path| one(path)).collect();
    let upper = match &layers.upper {
        Some(upper) if layers.read_only => format!("only reading {}", one(upper)),
        Some(upper) => format!("writing to {}", one(upper)),
        None => "without an upper directory".to_owned(),
    };
    let volatile = if layers.volatile { ", syncing nothing" } else { "" };
    log::info!("mounting {}, {upper}{volatile}", lowers.join(" over "));
}

/// An overlay before its mount, with all that mount and service need.
pub struct Stacked<'a> {
    options: &'a MountOptions,
    is_limited: bool,
    mount_point: PathBuf,
    unmounter: Arc<Mutex<Unmounter>>,
    watched: (Waiter, Prober),
    ender: Ender,
    overlay: Arc<Overlay<OsLayer>>,
    /// The record of this process, which holds the upper layer.
    holder: Holder,
    /// The way to tell the parent that the mount is there, if a parent waits.
    ready: Option<Ready>,
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

    /// Whether the process has a limit of the size of files, so that some writes fail with EFBIG.
    pub fn is_limited(&self) -> bool {
        self.is_limited
    }

    /// Mounts a front end and serves it until the unmount, in the sandbox if there is one.
    ///
    /// # Errors
    ///
    /// - A sentence says which step failed, and why.
    pub fn serve<D: FrontEnd + 'static>(self, front_end: D, sandbox: Option<Sandbox>) -> Result<(), String> {
        let shown = self.mount_point.display();
        let device = fuse_mount::mount(&self.mount_point, &self.mount_options::<D>())
            .map_err(|error| format!("The overlay cannot be mounted at {shown}: {error}."))?;
        let (overlay, unmounter) = (self.overlay.clone(), self.unmounter.clone());
        let holder = Holder { ending: true, ..self.holder.clone() };
        let shown = shown.to_string();
        let begun = self.begin(front_end, device, sandbox);
        let running = begun.inspect_err(|_| {
            // Without this, a program that uses the mount would wait forever.
            if let Err(error) = unmount(&unmounter) {
                log::error!("The mount at {shown} cannot be unmounted after the error: {error}.");
            }
        })?;
        log::info!("serving {shown}");
        let (served, settled) = running.run(|| sign(&overlay, &holder));
        log::info!("{shown} is unmounted");
        served.map_err(|error| format!("The mount at {shown} failed: {error}."))?;
        settled
    }

    fn mount_options<D: FrontEnd>(&self) -> fuse_mount::Options {
        let root = rustix::process::geteuid().is_root();
        let mut flags = self.options.flags;
        flags.set(MountFlags::RDONLY, self.overlay.is_read_only());
        fuse_mount::Options {
            source: self.options.source.clone().unwrap_or_else(|| "overlayfs".into()),
            flags,
            allow_other: root || self.options.allow_other,
            default_permissions: !D::CHECKS_ACCESS,
        }
    }

    /// How many threads serve requests. Two at least: one may wait for the answer of another.
    fn threads(&self) -> usize {
        let usual = || {
            (2 * thread::available_parallelism().map_or(1, NonZeroUsize::get)).clamp(*THREADS.start(), *THREADS.end())
        };
        self.options.max_threads.map_or_else(usual, NonZeroUsize::get).max(2)
    }

    /// Starts all threads of a mount but this one, and tells the parent that the mount is there.
    fn begin<D: FrontEnd + 'static>(
        self,
        front_end: D,
        device: OwnedFd,
        sandbox: Option<Sandbox>,
    ) -> Result<Running<D>, String> {
        let (shown, threads) = (self.mount_point.display(), self.threads());
        let settler = match self.overlay.is_read_only() {
            true => None,
            false => {
                let ends = self.options.layers.on_exit != Ending::Preserve;
                let ending = ends.then_some(self.ender);
                let settler = Device::of_mounted(&self.mount_point)
                    .and_then(|device| Settler::new(device, self.watched, ending, threads, self.overlay))
                    .map_err(|error| format!("The mount at {shown} cannot be watched for its unmount: {error}."))?;
                Some(settler)
            }
        };
        let session = Session::start(device, front_end, threads, settler)
            .map_err(|error| format!("FUSE cannot be started at {shown}: {error}."))?;
        let detached = |error| format!("The program cannot leave the terminal: {error}.");
        // So that the filesystem of the working directory can be unmounted.
        std::env::set_current_dir("/").map_err(|error| format!("The working directory cannot be left: {error}."))?;
        let background = self.ready.map(|ready| Background::prepare(ready).map_err(detached)).transpose()?;
        if let Some(sandbox) = sandbox {
            sandbox.enter();
        }
        let cannot_start = |error| format!("The threads that serve {shown} cannot be started: {error}.");
        let running = session.start_threads().map_err(cannot_start)?;
        let unmounter = self.unmounter;
        thread::Builder::new().spawn(move || unmount_on_signal(&unmounter)).map_err(cannot_start)?;
        if let Some(background) = background {
            background.enter().map_err(detached)?;
        }
        Ok(running)
    }
}

/// Waits for a signal and unmounts. A program that still uses the mount keeps its files. The
/// session ends with the last of them.
fn unmount_on_signal(unmounter: &Mutex<Unmounter>) {
    let mut signal = 0;
    // SAFETY: the set is whole, and the number is written to a variable of that type.
    if unsafe { libc::sigwait(&inherited::end_signals(), &mut signal) } != 0 {
        return;
    }
    if let Err(error) = unmount(unmounter) {
        log::error!("The mount cannot be unmounted: {error}.");
    }
}

fn unmount(unmounter: &Mutex<Unmounter>) -> io::Result<()> {
    unmounter.lock().unwrap_or_else(PoisonError::into_inner).unmount()
}

/// The files that a mount needs to go on in the background.
struct Background {
    ready: Ready,
    streams: Streams,
}

impl Background {
    /// Opens these files.
    fn prepare(ready: Ready) -> io::Result<Self> {
        logger::prepare_to_leave();
        Ok(Self { ready, streams: Streams::open()? })
    }

    /// Leaves the terminal, and tells the parent that the mount is there. From now on messages go
    /// to syslog.
    fn enter(self) -> io::Result<()> {
        self.streams.put_in_place()?;
        logger::leave_terminal();
        self.ready.tell()
    }
}
