//! Mounts an overlay on Linux, served by the scheme that serves it on Redox.
//!
//! The process is three things: the scheme's daemon on one thread, the FUSE session on some, and a thread that waits for signals. Without
//! `-f` a child of the process is all that, and the process itself waits only until the mount is there.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use linux_delegate::fuse::Door;
use linux_delegate::kernel;
use overlayfs::daemon::serve;
use overlayfs::layer::OsLayer;
use overlayfs::mount::mount;
use overlayfs::options::{Options, split_list};
use overlayfs::overlay::Overlay;
use overlayfs::scheme::OverlayScheme;
use redox_scheme::Socket;
use redox_scheme::scheme::register_sync_scheme;

const HELP: &str = "\
overlayfs-fuse: read-only directories under one writable directory, as one merged tree

Usage: overlayfs-fuse [-f] -o lowerdir=DIR[:DIR ...][,upperdir=DIR][,workdir=DIR] MOUNTPOINT

Mounts the merged tree at MOUNTPOINT until it is unmounted (umount, fusermount3 -u) or the program is ended by SIGINT or SIGTERM.

Options:
  -o LIST          Separated by commas; a comma, colon or backslash in a name is written behind a backslash:
     lowerdir=     Directories that are only read, separated by colons. The first one is the topmost: what it
                   has hides what has the same name in those after it. Directories of the same path are merged.
     upperdir=     The directory that takes every change. Without it nothing can be changed.
     workdir=      Where changes are prepared: an empty directory on the filesystem of the upper one, beside it.
                   Without it, a reserved name inside the upper directory is used.
     door=scheme   How requests reach the overlay: through the scheme that serves it on Redox. There is no other.
  -f               Stay in the foreground.
  -h, --help       Print this.
  -V, --version    Print the version.
";

/// The name of the scheme, which nobody but this process sees.
const NAME: &str = "overlay";

/// How many requests can be on their way at once.
const THREADS: usize = 4;

enum Command {
    Help,
    Version,
    Mount(Arguments),
}

struct Arguments {
    options: Options,
    mount_point: PathBuf,
    foreground: bool,
}

fn main() -> ExitCode {
    let result = match parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => write!(io::stdout(), "{HELP}").map_err(|error| error.to_string()),
        Ok(Command::Version) => {
            writeln!(io::stdout(), "overlayfs-fuse {}", env!("CARGO_PKG_VERSION")).map_err(|error| error.to_string())
        }
        Ok(Command::Mount(arguments)) if arguments.foreground => run(&arguments, None),
        Ok(Command::Mount(arguments)) => match fork() {
            Ok(Process::Parent(code)) => return code,
            Ok(Process::Child(ready)) => run(&arguments, Some(ready)),
            Err(error) => Err(format!("No process can be started for the mount: {error}.")),
        },
        Err(sentence) => Err(format!("{sentence} See overlayfs-fuse --help.")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("overlayfs-fuse: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    use lexopt::Arg::{Long, Short, Value};

    let sentence = |error: lexopt::Error| format!("{error}.");
    let mut options = Options::default();
    let mut mount_point = None;
    let mut foreground = false;
    let mut parser = lexopt::Parser::from_args(words);
    while let Some(word) = parser.next().map_err(sentence)? {
        match word {
            Short('h') | Long("help") => return Ok(Command::Help),
            Short('V') | Long("version") => return Ok(Command::Version),
            Short('f') => foreground = true,
            Short('o') => {
                let list = parser.value().map_err(sentence)?;
                for item in split_list(&list).map_err(|error| error.to_string())? {
                    match item.key.as_str() {
                        "door" => check_door(item.value())?,
                        _ => options.add(&item).map_err(|error| error.to_string())?,
                    }
                }
            }
            Value(word) if mount_point.is_none() => mount_point = Some(PathBuf::from(word)),
            Value(word) => return Err(format!("There is one mount point: {} is one too many.", word.display())),
            Short(other) => return Err(format!("There is no option -{other}.")),
            Long(other) => return Err(format!("There is no option --{other}.")),
        }
    }
    options.check().map_err(|error| error.to_string())?;
    let mount_point = mount_point.ok_or("The mount point is missing.")?;
    Ok(Command::Mount(Arguments { options, mount_point, foreground }))
}

fn check_door(value: Option<OsString>) -> Result<(), String> {
    match value {
        Some(door) if door == "scheme" => Ok(()),
        Some(door) => Err(format!("There is no door {}: door=scheme is the only one.", door.display())),
        None => Err("The mount option door needs a value: door=scheme.".to_owned()),
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
fn run(arguments: &Arguments, ready: Option<File>) -> Result<(), String> {
    let Arguments { options, mount_point, .. } = arguments;
    block_signals();
    raise_descriptor_limit();
    // SAFETY: takes a number. The mode of a new object is what the scheme makes of it.
    unsafe { libc::umask(0) };

    let mount_point = mount_point
        .canonicalize()
        .map_err(|error| format!("The mount point {} cannot be used: {error}.", mount_point.display()))?;
    if !mount_point.is_dir() {
        return Err(format!("The mount point {} cannot be used: it is not a directory.", mount_point.display()));
    }
    let overlay = mount(options).map_err(|error| error.to_string())?;
    let read_only = overlay.is_read_only();
    let daemon = start_daemon(overlay)?;
    let door = Door::new(NAME).map_err(|error| format!("The root of the overlay cannot be opened: {error}."))?;
    let mut session = Session::new(door, &mount_point, &config(read_only))
        .map_err(|error| format!("The overlay cannot be mounted at {}: {error}.", mount_point.display()))?;
    let unmounter = session.unmount_callable();
    let shown = mount_point.display().to_string();
    thread::spawn(move || unmount_on_signal(unmounter, &mount_point));
    if let Some(ready) = ready {
        detach(ready).map_err(|error| format!("The mount cannot leave the terminal: {error}."))?;
    }

    let served = session.run().map_err(|error| format!("The mount at {shown} failed: {error}."));
    // ENODEV means that the daemon has ended by itself, which joining it tells.
    let _ = kernel::stop(NAME);
    daemon.join().map_err(|_| "The scheme's thread panicked.".to_owned())?;
    served
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
        let registered = Socket::create().and_then(|socket| {
            let mut scheme = OverlayScheme::new(Arc::new(overlay), NAME.to_owned());
            register_sync_scheme(&socket, NAME, &mut scheme)?;
            Ok((socket, scheme))
        });
        match registered {
            Ok((socket, mut scheme)) => {
                // Nobody waits any more only if the process is about to end.
                let _ = ready.send(Ok(()));
                if let Err(error) = serve(&socket, &mut scheme) {
                    eprintln!("overlayfs-fuse: The scheme's socket failed: {error}.");
                }
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        }
    });
    match wait.recv() {
        Ok(Ok(())) => Ok(daemon),
        Ok(Err(error)) => Err(format!("The scheme cannot be registered: {error}.")),
        Err(_) => Err("The scheme's thread panicked.".to_owned()),
    }
}

fn config(read_only: bool) -> Config {
    // SAFETY: takes no argument and cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    let mut config = Config::default();
    config.mount_options.push(MountOption::FSName("overlayfs".to_owned()));
    if read_only {
        config.mount_options.push(MountOption::RO);
    }
    if root {
        // What everybody may do anywhere, since the scheme checks who asks.
        config.acl = SessionACL::All;
        config.mount_options.extend([MountOption::Suid, MountOption::Dev]);
    }
    config.n_threads = Some(THREADS);
    config
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
fn unmount_on_signal(mut unmounter: SessionUnmounter, mount_point: &Path) {
    let mut signal = 0;
    // SAFETY: the set is whole, and the number is written to a variable of that type.
    if unsafe { libc::sigwait(&end_signals(), &mut signal) } != 0 {
        return;
    }
    let Err(error) = unmounter.unmount() else {
        return;
    };
    let mut path = mount_point.as_os_str().as_bytes().to_vec();
    path.push(0);
    // SAFETY: the path ends in a zero byte.
    let detached = unsafe { libc::umount2(path.as_ptr().cast(), libc::MNT_DETACH) };
    if detached != 0 {
        eprintln!("overlayfs-fuse: {} cannot be unmounted: {error}.", mount_point.display());
    }
}

/// Lets go of the terminal and of the working directory, and tells the waiting parent.
fn detach(mut ready: File) -> io::Result<()> {
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for stream in 0..3 {
        // SAFETY: the first descriptor is open, the second is one of the three streams, which std only refers to by number.
        if unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), stream) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    ready.write_all(&[1])
}
