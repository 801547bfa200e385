//! The program of a mount: stacks the layers, has a front end serve them, and unmounts when it is
//! told to.
//!
//! The FUSE session has some threads, and one waits for signals. Without `-f` a child of the
//! process is all that, and the process itself waits only until the mount is there. Before the
//! threads are started, the daemon gives up what it does not need any more; unmounting, which it
//! then may not, is left to a child of its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use overlayfs::layer::OsLayer;
use overlayfs::mount::{mount, sign};
use overlayfs::options::Options;
use overlayfs::overlay::{Holder, Overlay};
use rustix::mount::MountFlags;

use crate::front_end::FrontEnd;
use crate::mount::{self as fuse_mount, Device, Prober, Unmounter, Waiter};
use crate::options::{Command, MountOptions};
use crate::patience::Patience;
use crate::sandbox::Sandbox;
use crate::session::{Running, Session};
use crate::settle::Settler;
use crate::usage::PROGRAM;
use crate::{inherited, logger};

/// How many requests can be on their way at once, if nobody says: two for each processor, since
/// some wait for the disk, but not fewer or more than these.
const THREADS: RangeInclusive<usize> = 4..=16;

/// Does what a command line says, without its first word. For a mount, `serve` makes a front end
/// and has it served ([`Stacked::serve`]); its error is a sentence. Descriptors that were inherited
/// are to be closed before ([`inherited::close_descriptors`]).
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
        log::error!("The log {} cannot be written: {error}.", file.display());
        return ExitCode::FAILURE;
    }
    let result = match options.foreground {
        true => stack(options, None).and_then(serve),
        false => match fork() {
            Ok(Process::Parent(code)) => return code,
            Ok(Process::Child(ready)) => stack(options, Some(ready)).and_then(serve),
            Err(error) => Err(format!("No process can be started for the mount: {error}.")),
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

enum Process {
    /// With the exit code of a process whose child has done its work or failed.
    Parent(ExitCode),
    /// With the pipe through which the parent is told that the mount is there.
    Child(File),
}

/// Goes on in a child. The parent waits until that says that it is ready, or has ended, having said
/// on standard error why.
fn fork() -> io::Result<Process> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two descriptors that pipe2 makes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both descriptors are new and nobody else's.
    let (mut wait, ready) = unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) };
    // SAFETY: no other thread has been started, so the child has all that the parent has.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: takes no argument. It fails only for a leader of a process group, which a
            // child is not.
            unsafe { libc::setsid() };
            Ok(Process::Child(ready))
        }
        _ => {
            drop(ready);
            let mut told = [0];
            Ok(Process::Parent(match wait.read(&mut told) {
                Ok(1) => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            }))
        }
    }
}

/// Stacks the layers and finds out what mounting them takes. The error is a sentence.
fn stack(options: &MountOptions, ready: Option<File>) -> Result<Stacked<'_>, String> {
    let is_limited = inherited::prepare();
    let mount_point = &options.mount_point;
    let mount_point = mount_point.canonicalize().map_err(|error| unusable(mount_point, &error))?;
    if !mount_point.metadata().map_err(|error| unusable(&mount_point, &error))?.is_dir() {
        return Err(format!("The mount point {} cannot be used: it is not a directory.", mount_point.display()));
    }
    // Before the layers are held, so that only the daemon holds them.
    let (unmounter, waiter, prober) = Unmounter::start(&mount_point)
        .map_err(|error| format!("No process can be started that unmounts {}: {error}.", mount_point.display()))?;
    log_layers(&options.layers);
    let overlay = Arc::new(mount_in_turn(&options.layers)?);
    let holder = Holder::this(mount_point.clone());
    sign(&overlay, &holder);
    let unmounter = Arc::new(Mutex::new(unmounter));
    Ok(Stacked { options, is_limited, mount_point, unmounter, watched: (waiter, prober), overlay, holder, ready })
}

/// Why nothing can be mounted at a path that cannot be looked at.
fn unusable(mount_point: &Path, error: &io::Error) -> String {
    let shown = mount_point.display();
    match error.raw_os_error() {
        Some(libc::ENOTCONN) => format!(
            "The mount point {shown} is a dead mount, whose program has ended without unmounting it. Unmount it first: umount {shown}, or \
             fusermount3 -u {shown}."
        ),
        _ => format!("The mount point {shown} cannot be used: {error}."),
    }
}

/// Stacks the layers; waits for another overlay that holds the upper one and is ending.
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

/// Says what is mounted, for those who want to know.
fn log_layers(layers: &Options) {
    let one = |path: &Path| path.display().to_string();
    let lowers: Vec<_> = layers.lowers.iter().map(|path| one(path)).collect();
    let upper = match &layers.upper {
        Some(upper) if layers.read_only => format!("only reading {}", one(upper)),
        Some(upper) => format!("writing to {}", one(upper)),
        None => "writing nowhere".to_owned(),
    };
    let volatile = if layers.volatile { ", syncing nothing" } else { "" };
    log::info!("mounting {}, {upper}{volatile}", lowers.join(" over "));
}

/// An overlay that is to be mounted, and what mounting and serving it takes.
pub struct Stacked<'a> {
    options: &'a MountOptions,
    is_limited: bool,
    mount_point: PathBuf,
    unmounter: Arc<Mutex<Unmounter>>,
    watched: (Waiter, Prober),
    overlay: Arc<Overlay<OsLayer>>,
    /// Who holds the upper layer.
    holder: Holder,
    /// Who waits for the mount, if anybody does.
    ready: Option<File>,
}

impl<'a> Stacked<'a> {
    pub fn options(&self) -> &'a MountOptions {
        self.options
    }

    pub fn overlay(&self) -> Arc<Overlay<OsLayer>> {
        self.overlay.clone()
    }

    /// Whether there is a limit of the size of files, so that some writes are EFBIG.
    pub fn is_limited(&self) -> bool {
        self.is_limited
    }

    /// Mounts a front end and serves it until it is unmounted, in the sandbox if there is one. The
    /// error is a sentence.
    pub fn serve<D: FrontEnd + 'static>(self, front_end: D, sandbox: Option<Sandbox>) -> Result<(), String> {
        let shown = self.mount_point.display();
        let device = fuse_mount::mount(&self.mount_point, &self.mount_options::<D>())
            .map_err(|error| format!("The overlay cannot be mounted at {shown}: {error}."))?;
        let (overlay, unmounter) = (self.overlay.clone(), self.unmounter.clone());
        let holder = Holder { ending: true, ..self.holder.clone() };
        let shown = shown.to_string();
        let begun = self.begin(front_end, device, sandbox);
        let running = begun.inspect_err(|_| {
            // Nobody would answer there.
            if let Err(error) = unmount(&unmounter) {
                log::error!("{shown} cannot be unmounted again: {error}.");
            }
        })?;
        log::info!("serving {shown}");
        let (served, settled) = running.run(|| sign(&overlay, &holder));
        log::info!("{shown} is unmounted");
        served.map_err(|error| format!("The mount at {shown} failed: {error}."))?;
        settled.map_err(|error| format!("What was changed is not all complete and on the disk: {error}."))
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

    /// How many threads serve requests. One may have to wait for what another answers.
    fn threads(&self) -> usize {
        let usual = || {
            (2 * thread::available_parallelism().map_or(1, NonZeroUsize::get)).clamp(*THREADS.start(), *THREADS.end())
        };
        self.options.max_threads.map_or_else(usual, NonZeroUsize::get).max(2)
    }

    /// Has all threads of a mount but this one serve it, and tells who waits for that.
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
                let settler = Device::of_mounted(&self.mount_point)
                    .and_then(|device| Settler::new(device, self.watched, threads, self.overlay))
                    .map_err(|error| format!("It cannot be found out when {shown} is unmounted: {error}."))?;
                Some(settler)
            }
        };
        let session = Session::start(device, front_end, threads, settler)
            .map_err(|error| format!("The kernel and the mount at {shown} cannot agree: {error}."))?;
        let detached = |error| format!("The mount cannot leave the terminal: {error}.");
        // So that what is mounted there can be unmounted.
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

/// Waits for a signal and unmounts; whoever still uses the mount keeps what he has until he is
/// done, and then the session ends.
fn unmount_on_signal(unmounter: &Mutex<Unmounter>) {
    let mut signal = 0;
    // SAFETY: the set is whole, and the number is written to a variable of that type.
    if unsafe { libc::sigwait(&inherited::end_signals(), &mut signal) } != 0 {
        return;
    }
    if let Err(error) = unmount(unmounter) {
        log::error!("The mount cannot be taken away: {error}.");
    }
}

fn unmount(unmounter: &Mutex<Unmounter>) -> io::Result<()> {
    unmounter.lock().unwrap_or_else(PoisonError::into_inner).unmount()
}

/// What a mount needs to go on in the background.
struct Background {
    ready: File,
    null: File,
}

impl Background {
    /// Opens what is needed in the background.
    fn prepare(ready: File) -> io::Result<Self> {
        logger::prepare_to_leave();
        Ok(Self { ready, null: File::options().read(true).write(true).open("/dev/null")? })
    }

    /// Lets go of the terminal, and tells who waits that the mount is there. Messages go to syslog
    /// from now on.
    fn enter(mut self) -> io::Result<()> {
        inherited::replace_streams(&self.null)?;
        logger::leave_terminal();
        self.ready.write_all(&[1])
    }
}
