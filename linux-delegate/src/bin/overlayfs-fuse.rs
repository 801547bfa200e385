//! Mounts an overlay on Linux: stacks the layers, serves them through the engine's door or the scheme's, and unmounts when it is told to.
//!
//! The FUSE session has some threads, one waits for signals, and with `door=scheme` one is the scheme's daemon. Without `-f` a child of the
//! process is all that, and the process itself waits only until the mount is there. Before the threads are started, the daemon gives up what it
//! does not need any more; unmounting, which it then may not, is left to a child of its own.

use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::os::fd::FromRawFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use linux_delegate::fuse::engine::{EngineDoor, Fixed, Settings};
use linux_delegate::fuse::mount::{self as fuse_mount, Unmounter};
use linux_delegate::fuse::scheme::SchemeDoor;
use linux_delegate::fuse::{Door, Session};
use linux_delegate::options::{Command, HELP, MountOptions, WhichDoor};
use linux_delegate::sandbox::Sandbox;
use linux_delegate::{kernel, logger};
use overlayfs::daemon::serve;
use overlayfs::layer::OsLayer;
use overlayfs::mount::mount;
use overlayfs::options::Options;
use overlayfs::overlay::Overlay;
use redox_scheme::scheme::register_sync_scheme;
use rustix::mount::MountFlags;

/// The name of the scheme, which nobody but this process sees.
const NAME: &str = "overlay";

/// How many requests can be on their way at once, if nobody says: two for each processor, since some wait for the disk, but not fewer
/// or more than these.
const THREADS: RangeInclusive<usize> = 4..=16;

fn main() -> ExitCode {
    let done = match Command::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => write!(io::stdout(), "{HELP}"),
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
    logger::start(options.verbosity);
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
    block_signals();
    raise_descriptor_limit();
    // SAFETY: takes a number. The mode of a new object is what the door makes of it.
    unsafe { libc::umask(0) };

    let mount_point = &options.mount_point;
    let mount_point = mount_point
        .canonicalize()
        .map_err(|error| format!("The mount point {} cannot be used: {error}.", mount_point.display()))?;
    if !mount_point.is_dir() {
        return Err(format!("The mount point {} cannot be used: it is not a directory.", mount_point.display()));
    }
    // Before the layers are held, so that only the daemon holds them.
    let unmounter = Unmounter::start(&mount_point)
        .map_err(|error| format!("No process can be started that unmounts {}: {error}.", mount_point.display()))?;
    log_layers(&options.layers);
    let overlay = mount(&options.layers).map_err(|error| format!("The layers cannot be stacked: {error}."))?;
    let usual =
        || (2 * thread::available_parallelism().map_or(1, NonZeroUsize::get)).clamp(*THREADS.start(), *THREADS.end());
    let how = How {
        mount: mount_options(options, overlay.is_read_only()),
        threads: options.max_threads.map_or_else(usual, NonZeroUsize::get),
        unmounter,
        sandbox: match options.door {
            WhichDoor::Engine => Some(Sandbox::new(&options.layers)?),
            WhichDoor::Scheme => None,
        },
        ready,
    };
    match options.door {
        WhichDoor::Engine => {
            let fixed = fixed(&options.layers)?;
            serve_door(EngineDoor::new(overlay, fixed, settings(options)), &mount_point, how)
        }
        WhichDoor::Scheme => {
            let daemon = start_daemon(overlay)?;
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
    unmounter: Unmounter,
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
    let session = Session::start(device, door, how.threads)
        .map_err(|error| format!("The kernel and the mount at {shown} cannot agree: {error}."))?;
    let detached = |error| format!("The mount cannot leave the terminal: {error}.");
    if how.ready.is_some() {
        leave_terminal().map_err(detached)?;
    }
    if let Some(sandbox) = how.sandbox {
        sandbox.enter();
    }
    let unmounter = how.unmounter;
    thread::spawn(move || unmount_on_signal(unmounter));
    if let Some(mut ready) = how.ready {
        ready.write_all(&[1]).map_err(detached)?;
    }
    log::info!("serving {shown}");
    let served = session.run();
    log::info!("{shown} is unmounted");
    served.map_err(|error| format!("The mount at {shown} failed: {error}."))
}

/// Asks for as many open files as the system lets this process have: one mount serves all that its users have open.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is written by the first call and read by the second. Where either fails, the limit is what it was.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// Serves the overlay as a scheme on a thread of its own.
fn start_daemon(overlay: Overlay<OsLayer>) -> Result<JoinHandle<()>, String> {
    let (ready, wait) = mpsc::channel();
    let daemon = thread::spawn(move || {
        let served = serve(overlay, NAME, |socket, scheme, _| {
            register_sync_scheme(socket, NAME, scheme)?;
            // Nobody waits any more only if the process is about to end.
            let _ = ready.send(());
            Ok::<_, syscall::Error>(())
        });
        if let Err(error) = served {
            log::error!("The scheme's socket failed: {error}.");
        }
    });
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
fn settings(options: &MountOptions) -> Settings {
    let usual = Settings::default();
    Settings {
        identity: options.identity.clone(),
        static_nlink: options.static_nlink,
        acl: options.acl,
        writeback: options.writeback,
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

/// The signals that end the mount.
fn end_signals() -> libc::sigset_t {
    // SAFETY: sigemptyset makes a set of any memory of that size, and sigaddset adds signals that exist.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

/// Keeps the signals back in this thread and all that it starts, for the one that waits for them.
fn block_signals() {
    // SAFETY: the set is whole, and the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &end_signals(), std::ptr::null_mut()) };
}

/// Waits for a signal and unmounts; whoever still uses the mount keeps what he has until he is done, and then the session ends.
fn unmount_on_signal(mut unmounter: Unmounter) {
    let mut signal = 0;
    // SAFETY: the set is whole, and the number is written to a variable of that type.
    if unsafe { libc::sigwait(&end_signals(), &mut signal) } != 0 {
        return;
    }
    if let Err(error) = unmounter.unmount() {
        log::error!("The mount cannot be taken away: {error}.");
    }
}

/// Lets go of the terminal and of the working directory. Messages go to syslog from now on.
fn leave_terminal() -> io::Result<()> {
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for stream in 0..3 {
        // SAFETY: the first descriptor is open, the second is one of the three streams, which std only refers to by number.
        if unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), stream) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    logger::leave_terminal();
    Ok(())
}
