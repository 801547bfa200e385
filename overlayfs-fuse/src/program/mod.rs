//! The program of a mount. It stacks the layers, serves them through a front end, and unmounts on a
//! signal.
//!
//! `stacked` begins the service, and `take_over` begins it with the mount of another process.
//! `signals` unmounts on a signal.
//!
//! Several threads serve the FUSE session, and the first one waits for signals too. Without `-f`
//! they run in a child, and the process itself only waits until the mount is there. Before the
//! daemon starts the threads it drops the rights that it no longer needs. Then it may not unmount,
//! so a child process of its own does that.

mod signals;
mod stacked;
mod take_over;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, absolute};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use overlayfs::layer::OsLayer;
use overlayfs::layer_tools::ending::Planned;
use overlayfs::mount::{Opened, Roots, resolved, sign};
use overlayfs::options::Options;
use overlayfs::overlay::{Holder, Overlay};
use overlayfs::process::{Detached, Ready, Streams, detach};
use rustix::mount::MountFlags;

use crate::comeback::Ledger;
use crate::control::about::seconds;
use crate::control::{self, About, Request};
use crate::mount::{self as fuse_mount, Unmounter};
use crate::options::{Command, MountOptions};
use crate::patience::Patience;
use crate::succession::Program;
use crate::usage::PROGRAM;
use crate::{inherited, logger};
pub use stacked::Stacked;
use stacked::Ways;
use take_over::take_over;

/// Runs a command line without its first word. For a mount, `serve` makes a front end and calls
/// [`Stacked::serve`]; its error is a sentence. The caller closes inherited descriptors before
/// ([`inherited::close_descriptors`]).
pub fn run(arguments: Vec<OsString>, serve: impl FnOnce(Stacked<'_>) -> Result<(), String>) -> ExitCode {
    let parsed = Command::parse(arguments.iter().cloned());
    let done = match parsed {
        Ok(Command::Help) => write!(io::stdout(), "{}", PROGRAM.help()),
        Ok(Command::Version) => writeln!(io::stdout(), "overlayfs-fuse {}", env!("CARGO_PKG_VERSION")),
        Ok(Command::Mount(options)) => return mount_and_serve(&options, arguments, serve),
        Ok(Command::TakeOver(options, layers)) => return take_over(*options, &layers, serve),
        Ok(Command::Remount(options)) => return remount(&options),
        Ok(Command::Control(request)) => return control(&request),
        // SAFETY: no other thread has been started.
        Ok(Command::Run(run)) => return unsafe { crate::run::run(&run) },
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

/// Performs a command for a mount at work.
fn control(request: &Request) -> ExitCode {
    match control::run(request) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("overlayfs-fuse: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn mount_and_serve(
    options: &MountOptions,
    arguments: Vec<OsString>,
    serve: impl FnOnce(Stacked<'_>) -> Result<(), String>,
) -> ExitCode {
    inherited::raise_limits();
    logger::start(options.verbosity);
    if let Some(target) = &options.log
        && let Err(error) = logger::log_to(target, &absolute(&options.mount_point).unwrap_or_default())
    {
        log::error!("The {} cannot be opened: {error}.", target.name());
        return ExitCode::FAILURE;
    }
    let program = Program::this(arguments, &options.layers);
    let result = match options.foreground {
        true => stack(options, program, None).and_then(serve),
        // SAFETY: no other thread has been started.
        false => match unsafe { detach() } {
            Ok(Detached::Caller(code)) => return code,
            Ok(Detached::Daemon(ready)) => stack(options, program, Some(ready)).and_then(serve),
            Err(error) => Err(format!("No process can be started in the background: {error}.")),
        },
    };
    code_of(result)
}

fn code_of(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            log::error!("{sentence}");
            ExitCode::FAILURE
        }
    }
}

/// Stacks the layers and prepares their mount. The error is a sentence.
fn stack(options: &MountOptions, program: Program, ready: Option<Ready>) -> Result<Stacked<'_>, String> {
    let is_limited = inherited::prepare();
    let mount_point = &options.mount_point;
    let mount_point = mount_point.canonicalize().map_err(|error| unusable(mount_point, &error))?;
    if !mount_point.metadata().map_err(|error| unusable(&mount_point, &error))?.is_dir() {
        return Err(format!("The mount point {} cannot be used: it is not a directory.", mount_point.display()));
    }
    // Before the layers are locked, so that only the daemon holds them.
    let ending = Planned::new(&options.layers).map_err(|error| format!("Cannot mount with on_exit: {error}."))?;
    let threads = Unmounter::start(&mount_point, move || ending.make(), program).map_err(|error| {
        format!("No process can be started for the later unmount of {}: {error}.", mount_point.display())
    })?;
    log_layers(&options.layers);
    let (overlay, roots) = mount_in_turn(&options.layers)?;
    let overlay = Arc::new(overlay);
    let holder = Holder::this(mount_point.clone());
    sign(&overlay, &holder);
    let (since, layers) = (seconds(SystemTime::now()), resolved(&options.layers));
    // Before the working directory changes.
    let about = Arc::new(About::since(since, &mount_point, &layers, options, overlay.format_name()));
    let (ways, estate) =
        Ways::keep(threads, (mount_point, since, Vec::new(), layers, roots), options.foreground, None)?;
    let ledger = ledger(options)?;
    Ok(Stacked { options, is_limited, ways, overlay, about, estate, holder, ready, heir: None, ledger })
}

/// Makes the ledger of a mount that goes on after a kill.
fn ledger(options: &MountOptions) -> Result<Option<Arc<Ledger>>, String> {
    let ledger = options.comeback.then(Ledger::new).transpose();
    let ledger = ledger.map_err(|error| format!("The option comeback cannot be used: {error}."))?;
    Ok(ledger.map(Arc::new))
}

/// Explains why a mount point cannot be used.
fn unusable(mount_point: &Path, error: &io::Error) -> String {
    let shown = mount_point.display();
    match error.raw_os_error() {
        // At the moment of its program's end a request is aborted.
        Some(libc::ENOTCONN | libc::ECONNABORTED) => format!(
            "The mount point {shown} is a dead mount: its program ended without an unmount. Unmount it first: umount \
             {shown}, or fusermount3 -u {shown}."
        ),
        _ => format!("The mount point {shown} cannot be used: {error}."),
    }
}

/// Stacks the layers. Waits for another overlay that holds the upper layer and is ending.
fn mount_in_turn(layers: &Options) -> Result<(Overlay<OsLayer>, Roots), String> {
    let mut patience = Patience::new();
    loop {
        match mount_with_roots(layers) {
            Ok(mounted) => return Ok(mounted),
            Err(error) if error.held().is_some_and(|holder| patience.waits_for(holder)) => {}
            Err(error) => return Err(format!("Cannot mount: {error}.")),
        }
    }
}

/// Stacks the layers, and keeps their roots open for the next daemon.
fn mount_with_roots(layers: &Options) -> Result<(Overlay<OsLayer>, Roots), overlayfs::mount::Error> {
    let opened = Opened::new(layers, true)?;
    let roots = Roots::of(&opened)?;
    Ok((opened.stack(layers, false)?, roots))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_without_its_program_is_dead() {
        for errno in [libc::ENOTCONN, libc::ECONNABORTED] {
            let said = unusable(Path::new("/mnt"), &io::Error::from_raw_os_error(errno));
            assert!(said.starts_with("The mount point /mnt is a dead mount"), "{said}");
        }
    }
}
