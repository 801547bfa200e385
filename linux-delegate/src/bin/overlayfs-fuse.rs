//! Mounts an overlay on Linux: stacks the layers, serves them through the engine's door or the scheme's, and unmounts when it is told to.
//!
//! The FUSE session has some threads, one waits for signals, and with `door=scheme` one is the scheme's daemon. Without `-f` a child of the
//! process is all that, and the process itself waits only until the mount is there. Before the threads are started, the daemon gives up what it
//! does not need any more; unmounting, which it then may not, is left to a child of its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use linux_delegate::fuse::engine::{EngineDoor, Fixed, Settings};
use linux_delegate::fuse::mount::{self as fuse_mount, Device, Prober, Unmounter, Waiter};
use linux_delegate::fuse::scheme::SchemeDoor;
use linux_delegate::fuse::settle::Settler;
use linux_delegate::fuse::{Door, Running, Session};
use linux_delegate::inherited;
use linux_delegate::options::{Command, MountOptions, WhichDoor};
use linux_delegate::patience::Patience;
use linux_delegate::sandbox::Sandbox;
use linux_delegate::usage::PROGRAM;
use linux_delegate::{kernel, logger};
use overlayfs::daemon::{serve, sign};
use overlayfs::layer::OsLayer;
use overlayfs::mount::mount;
use overlayfs::options::Options;
use overlayfs::overlay::{Holder, Overlay};
use overlayfs::scheme::OverlayScheme;
use redox_scheme::scheme::register_sync_scheme;
use rustix::mount::MountFlags;

/// The name of the scheme, which nobody but this process sees.
const NAME: &str = "overlay";

/// How many requests can be on their way at once, if nobody says: two for each processor, since some wait for the disk, but not fewer
/// or more than these.
const THREADS: RangeInclusive<usize> = 4..=16;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    // SAFETY: nothing was opened yet.
    unsafe { inherited::close_descriptors(arguments.iter().map(OsString::as_os_str)) };
    let done = match Command::parse(arguments) {
        Ok(Command::Help) => write!(io::stdout(), "{}", PROGRAM.help()),
        Ok(Command::Version) => writeln!(io::stdout(), "overlayfs-fuse {}", env!("CARGO_PKG_VERSION")),
        Ok(Command::Mount(options)) => return mount_and_serve(&options),
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
            eprintln!("overlayfs-fuse: The mount at {} cannot be changed: {error}.", options.mount_point.display());
            ExitCode::FAILURE
        }
    }
}

fn mount_and_serve(options: &MountOptions) -> ExitCode {
    inherited::raise_limits();
    logger::start(options.verbosity);
    if let Some(file) = &options.log
        && let Err(error) = logger::log_to(file)
    {
        log::error!("The log {} cannot be written: {error}.", file.display());
        return ExitCode::FAILURE;
    }
    let result = match options.foreground {
        true => run(options, None),
        false => match fork() {
            Ok(Process::Parent(code)) => return code,
            Ok(Process::Child(ready)) => run(options, Some(ready)),
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

/// Goes on in a child. The parent waits until that says that it is ready, or has ended, having said on standard error why.
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
            // SAFETY: takes no argument. It fails only for a leader of a process group, which a child is not.
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

/// Mounts, tells the waiting parent, serves until the end. The error is a sentence.
fn run(options: &MountOptions, ready: Option<File>) -> Result<(), String> {
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
    let usual =
        || (2 * thread::available_parallelism().map_or(1, NonZeroUsize::get)).clamp(*THREADS.start(), *THREADS.end());
    let how = How {
        mount: mount_options(options, overlay.is_read_only()),
        // One may have to wait for what another answers.
        threads: options.max_threads.map_or_else(usual, NonZeroUsize::get).max(2),
        unmounter: Arc::new(Mutex::new(unmounter)),
        watched: (waiter, prober),
        overlay: overlay.clone(),
        holder,
        sandbox: match options.door {
            WhichDoor::Engine => Some(Sandbox::new(&options.layers)?),
            WhichDoor::Scheme => None,
        },
        ready,
    };
    match options.door {
        WhichDoor::Engine => {
            let fixed = fixed(&options.layers)?;
            serve_door(EngineDoor::new(overlay.clone(), fixed, settings(options, is_limited)), &mount_point, how)
        }
        WhichDoor::Scheme => {
            let daemon = start_daemon(overlay.clone())?;
            let door =
                SchemeDoor::new(NAME).map_err(|error| format!("The root of the overlay cannot be opened: {error}."))?;
            let served = serve_door(door, &mount_point, how);
            // ENODEV means that the daemon has ended by itself, which joining it tells.
            let _ = kernel::stop(NAME);
            daemon.join().map_err(|_| "The scheme's thread panicked.".to_owned())?;
            served
        }
    }
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

/// How a door is mounted and served.
struct How {
    mount: fuse_mount::Options,
    threads: usize,
    unmounter: Arc<Mutex<Unmounter>>,
    watched: (Waiter, Prober),
    overlay: Arc<Overlay<OsLayer>>,
    /// Who holds the upper layer.
    holder: Holder,
    /// None for the door of the scheme, which is there for tests: its daemon is a thread that runs already.
    sandbox: Option<Sandbox>,
    /// Who waits for the mount, if anybody does.
    ready: Option<File>,
}

/// Mounts a door and serves it until it is unmounted.
fn serve_door(door: impl Door + 'static, mount_point: &Path, how: How) -> Result<(), String> {
    let shown = mount_point.display();
    let device = fuse_mount::mount(mount_point, &how.mount)
        .map_err(|error| format!("The overlay cannot be mounted at {shown}: {error}."))?;
    let (overlay, unmounter) = (how.overlay.clone(), how.unmounter.clone());
    let holder = Holder { ending: true, ..how.holder.clone() };
    let begun = begin(door, device, mount_point, how);
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

/// Has all threads of a mount but this one serve it, and tells who waits for that.
fn begin<D: Door + 'static>(door: D, device: OwnedFd, mount_point: &Path, how: How) -> Result<Running<D>, String> {
    let shown = mount_point.display();
    let settler = match how.overlay.is_read_only() {
        true => None,
        false => {
            let settler = Device::of_mounted(mount_point)
                .and_then(|device| Settler::new(device, how.watched, how.threads, how.overlay))
                .map_err(|error| format!("It cannot be found out when {shown} is unmounted: {error}."))?;
            Some(settler)
        }
    };
    let session = Session::start(device, door, how.threads, settler)
        .map_err(|error| format!("The kernel and the mount at {shown} cannot agree: {error}."))?;
    let detached = |error| format!("The mount cannot leave the terminal: {error}.");
    // So that what is mounted there can be unmounted.
    std::env::set_current_dir("/").map_err(|error| format!("The working directory cannot be left: {error}."))?;
    let background = how.ready.map(|ready| Background::prepare(ready).map_err(detached)).transpose()?;
    if let Some(sandbox) = how.sandbox {
        sandbox.enter();
    }
    let threads = |error| format!("The threads that serve {shown} cannot be started: {error}.");
    let running = session.start_threads().map_err(threads)?;
    let unmounter = how.unmounter;
    thread::Builder::new().spawn(move || unmount_on_signal(&unmounter)).map_err(threads)?;
    if let Some(background) = background {
        background.enter().map_err(detached)?;
    }
    Ok(running)
}

/// Serves the overlay as a scheme on a thread of its own.
fn start_daemon(overlay: Arc<Overlay<OsLayer>>) -> Result<JoinHandle<()>, String> {
    let (ready, wait) = mpsc::channel();
    let daemon = thread::Builder::new().spawn(move || {
        // Who may link what, the kernel has decided by then.
        let scheme = OverlayScheme::new(overlay, NAME.to_owned()).protect_hardlinks(false);
        let served = serve(scheme, |socket, scheme, _| {
            register_sync_scheme(socket, NAME, scheme)?;
            // Nobody waits any more only if the process is about to end.
            let _ = ready.send(());
            Ok::<_, syscall::Error>(())
        });
        if let Err(error) = served {
            log::error!("The scheme's socket failed: {error}.");
        }
    });
    let daemon = daemon.map_err(|error| format!("The scheme's thread cannot be started: {error}."))?;
    match wait.recv() {
        Ok(()) => Ok(daemon),
        Err(_) => Err("The scheme cannot be served.".to_owned()),
    }
}

/// What is known of fixed files in the layer that is written to.
fn fixed(layers: &Options) -> Result<Fixed, String> {
    let Some(upper) = layers.upper.as_ref().filter(|_| !layers.read_only) else { return Ok(Fixed::none()) };
    let top = File::open(upper)
        .map_err(|error| format!("The upper layer {} cannot be opened again: {error}.", upper.display()))?;
    Ok(Fixed::new(top.into()))
}

/// What was chosen for the door of the engine.
fn settings(options: &MountOptions, is_limited: bool) -> Settings {
    let usual = Settings::default();
    Settings {
        identity: options.identity.clone(),
        static_nlink: options.static_nlink,
        acl: options.acl,
        // What goes over a limit is to be refused when it is written, not when the file is closed.
        writeback: options.writeback && !is_limited,
        valid: options.timeout.unwrap_or(usual.valid),
        ..usual
    }
}

fn mount_options(options: &MountOptions, read_only: bool) -> fuse_mount::Options {
    let root = rustix::process::geteuid().is_root();
    let mut flags = options.flags;
    flags.set(MountFlags::RDONLY, read_only);
    fuse_mount::Options {
        source: options.source.clone().unwrap_or_else(|| "overlayfs".into()),
        flags,
        allow_other: root || options.allow_other,
        // The scheme checks access itself, as on Redox.
        default_permissions: options.door == WhichDoor::Engine,
    }
}

/// Waits for a signal and unmounts; whoever still uses the mount keeps what he has until he is done, and then the session ends.
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

    /// Lets go of the terminal, and tells who waits that the mount is there. Messages go to syslog from now on.
    fn enter(mut self) -> io::Result<()> {
        for stream in 0..3 {
            // SAFETY: the first descriptor is open, the second is one of the three streams, which std only refers to by number.
            if unsafe { libc::dup2(self.null.as_raw_fd(), stream) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        logger::leave_terminal();
        self.ready.write_all(&[1])
    }
}
