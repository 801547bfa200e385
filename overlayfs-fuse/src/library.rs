//! An overlay mount for other programs.
//!
//! [`Overlay::builder`] names the layers and mounts them. A [`Mount`] serves until it is unmounted.
//! After that an [`Unmounted`] tells what to do with the changes. Each step takes the value of the
//! step before, so no ending comes before an unmount, and none twice.
//!
//! # The threads
//! Threads of this process serve the mount, since a library cannot fork: the process may have
//! threads and locks of its own. So a kill of the process ends the mount as well. Programs then get
//! ENOTCONN until someone unmounts it, and the changes stay in the upper layer.
//!
//! - The threads are in the sandbox of the program `overlayfs-fuse` (see [`crate::sandbox`]), and
//!   have their own umask. The rest of the process keeps its rights and its umask.
//! - They block all signals. Handlers run in other threads.
//! - All descriptors are closed by execve(2). A child that forks without execve keeps them, and the
//!   mount lasts as long as the child.
//! - Nothing changes the limits of the process. The mount uses some hundred descriptors.
//! - The changes are synced by fsync(2) and at the unmount. umount(8) by another process returns
//!   before the sync; [`Mount::unmount`] waits for it.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use overlayfs::layer::OsLayer;
use overlayfs::layer_tools::commit::{self, Choice};
use overlayfs::layer_tools::ending::commit_layers;
use overlayfs::layer_tools::export::{Holes, write_layer};
use overlayfs::layer_tools::open::Paths;
use overlayfs::layer_tools::{self, Aspects, ChangeKind, Renames, Views, Watch, escaped};
use overlayfs::mount::{mount, resolved, sign};
use overlayfs::options::{Options, split_list};
use overlayfs::overlay::{Holder, Overlay as Engine};
use overlayfs::process::mask_signals;
use rustix::mount::MountFlags;
use rustix::process::{Resource, getrlimit};

use crate::control::About;
use crate::engine::{EngineFrontEnd, Settings};
use crate::mount as fuse_mount;
use crate::options::MountOptions;
use crate::sandbox::Sandbox;
use crate::session::{Running, Service, Session};
use crate::source;

/// How many threads take requests, unless the options say it.
const THREADS: usize = 4;

/// The reason why something failed. Its text is a sentence with the path and the cause.
#[derive(Debug)]
pub enum Error {
    /// The options do not fit together, or one is unknown.
    Options(overlayfs::options::Error),
    /// The layers cannot be stacked.
    Layers(overlayfs::mount::Error),
    /// A step of the mount or of the unmount failed.
    At {
        /// The step, as a verb and what follows it.
        action: &'static str,
        /// The mount point.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
    /// A tool for layers failed.
    Tool(layer_tools::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Options(sentence) => write!(f, "{sentence}"),
            Error::Layers(error) => write!(f, "Cannot mount: {error}."),
            Error::At { action, path, cause } => write!(f, "Cannot {action} {}: {cause}.", escaped(path)),
            Error::Tool(error) => {
                let text = error.to_string();
                let mut rest = text.chars();
                let first = rest.next().map(|first| first.to_ascii_uppercase());
                write!(f, "{}{}.", first.map(String::from).unwrap_or_default(), rest.as_str())
            }
        }
    }
}

impl std::error::Error for Error {}

impl From<layer_tools::Error> for Error {
    fn from(error: layer_tools::Error) -> Self {
        Error::Tool(error)
    }
}

fn at(action: &'static str, path: &Path, cause: impl fmt::Display) -> Error {
    Error::At { action, path: path.to_owned(), cause: cause.to_string() }
}

/// The start of a mount.
pub struct Overlay;

impl Overlay {
    /// Begins to name the layers of a mount.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

/// The layers and options of a mount.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    options: MountOptions,
    wrong: Option<overlayfs::options::Error>,
}

impl Builder {
    /// Adds a directory that is only read, below the earlier ones.
    pub fn lower(mut self, dir: impl Into<PathBuf>) -> Self {
        self.options.layers.lowers.push(dir.into());
        self
    }

    /// Names the directory that takes every change. Without it the mount is read-only.
    pub fn upper(mut self, dir: impl Into<PathBuf>) -> Self {
        self.options.layers.upper = Some(dir.into());
        self
    }

    /// Names the work directory, outside the upper one and on its filesystem. Without it the
    /// overlay uses a reserved name in the upper directory.
    pub fn work(mut self, dir: impl Into<PathBuf>) -> Self {
        self.options.layers.work = Some(dir.into());
        self
    }

    /// Adds mount options, as after `-o` of the program: `volatile`, `format=kernel`. A wrong one
    /// is an error of [`Builder::mount`]. The options of the process, such as `log`, have no
    /// effect.
    pub fn option(mut self, list: impl AsRef<OsStr>) -> Self {
        let added =
            split_list(list.as_ref()).and_then(|items| items.iter().try_for_each(|item| self.options.add(item)));
        self.wrong = self.wrong.or(added.err());
        self
    }

    /// Mounts the overlay at a directory. Returns when programs can use it.
    ///
    /// # Errors
    ///
    /// Each variant of [`enum@Error`] but [`Error::Tool`].
    pub fn mount(self, point: impl AsRef<Path>) -> Result<Mount, Error> {
        let point = point.as_ref();
        let point = point.canonicalize().map_err(|cause| at("mount at", point, cause))?;
        let place = point.clone();
        let started = self.start(point.clone(), move |options| fuse_mount::mount(&place, options))?;
        let Started { layers, keeper, is_ready } = started;
        let mount = Mount { layers, point, keeper: Some(keeper) };
        match is_ready.recv() {
            Ok(Step::Serving) => Ok(mount),
            // From the mount on only the thread of the caller has the right to unmount.
            Ok(Step::Mounted) => Err(mount.end_failed(true)),
            Err(_) => Err(mount.end_failed(false)),
        }
    }

    /// Starts the threads of a mount that is shown at `place`. `mount` makes it, once the layers
    /// are stacked, and returns its device.
    pub(crate) fn start(
        self,
        place: PathBuf,
        mount: impl FnOnce(&fuse_mount::Options) -> io::Result<OwnedFd> + Send + 'static,
    ) -> Result<Started, Error> {
        let Builder { mut options, wrong } = self;
        wrong.map_or(Ok(()), Err).and_then(|()| options.layers.check()).map_err(Error::Options)?;
        options.layers = resolved(&options.layers);
        let layers = options.layers.clone();
        let (ready, is_ready) = mpsc::channel();
        let shown = place.clone();
        let keep = move || Keeper { options, place, ready }.run(mount);
        let spawned = thread::Builder::new().name("overlay".to_owned()).spawn(keep);
        let keeper = spawned.map_err(|cause| at("start a thread for", &shown, cause))?;
        Ok(Started { layers, keeper, is_ready })
    }
}

/// A mount whose threads were started.
pub(crate) struct Started {
    layers: Options,
    /// The first thread. It returns after the unmount, when all changes are complete and synced.
    pub keeper: JoinHandle<Result<(), Error>>,
    /// Tells how far the mount came. It ends without [`Step::Serving`] if the mount failed.
    pub is_ready: Receiver<Step>,
}

/// How far a mount came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is mounted, but no thread serves it.
    Mounted,
    /// Programs can use it.
    Serving,
}

/// The first thread of a mount, which starts the others.
struct Keeper {
    options: MountOptions,
    place: PathBuf,
    ready: Sender<Step>,
}

impl Keeper {
    /// Mounts and serves until the unmount. Then completes and syncs the changes, and unlocks the
    /// layers.
    fn run(self, mounter: impl FnOnce(&fuse_mount::Options) -> io::Result<OwnedFd>) -> Result<(), Error> {
        let Self { options, place, ready } = self;
        let failed = |action, cause: io::Error| at(action, &place, cause);
        own_umask().map_err(|cause| failed("give a umask of its own to", cause))?;
        mask_signals(libc::SIG_SETMASK, &all_signals());
        let overlay = Arc::new(mount(&options.layers).map_err(Error::Layers)?);
        let holder = Holder::this(place.clone());
        sign(&overlay, &holder);
        let sandbox = Sandbox::new(&options).map_err(|cause| at("confine", &place, cause))?;
        let device = mounter(&mount_options(&options, &overlay)).map_err(|cause| failed("mount at", cause))?;
        let running = begin(&options, &overlay, About::this(&place, &options, overlay.format_name()), device, sandbox)
            .map_err(|cause| {
                let _ = ready.send(Step::Mounted);
                failed("serve", cause)
            })?;
        // The receiver waits for it.
        let _ = ready.send(Step::Serving);
        drop(ready);
        let served = running.run(None, || sign(&overlay, &Holder { ending: true, ..holder }));
        // No other process takes the mount of a library over.
        let served = served.map_or(Ok(()), |(served, _)| served);
        let settled = overlay.complete_and_sync().and_then(|()| overlay.retire());
        served.map_err(|cause| failed("serve", cause))?;
        settled.map_err(|cause| at("complete and sync the changes of", &place, cause))
    }
}

fn all_signals() -> libc::sigset_t {
    let mut all = std::mem::MaybeUninit::uninit();
    // SAFETY: the call makes a set of any memory of that size.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        all.assume_init()
    }
}

fn mount_options(options: &MountOptions, overlay: &Engine<OsLayer>) -> fuse_mount::Options {
    let mut flags = options.flags;
    flags.set(MountFlags::RDONLY, overlay.is_read_only());
    fuse_mount::Options {
        source: options.source.clone().unwrap_or_else(|| source::of(&options.layers)),
        flags,
        allow_other: rustix::process::geteuid().is_root() || options.allow_other,
        default_permissions: true,
    }
}

/// Gives this thread, and those that it starts, a umask and a working directory of their own. A
/// layer that is written to needs the umask 0.
fn own_umask() -> io::Result<()> {
    // SAFETY: the call takes a number. It separates no descriptor from the other threads.
    match unsafe { libc::unshare(libc::CLONE_FS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the ending of an upper layer in a thread with a umask of its own.
fn end(layers: &Options, ending: impl FnOnce() -> Result<(), Error> + Send) -> Result<(), Error> {
    let upper = layers.upper.as_deref().unwrap_or(Path::new(""));
    let work = || {
        own_umask().map_err(|cause| at("give a umask of its own to the ending of", upper, cause))?;
        ending()
    };
    let ended = thread::scope(|scope| scope.spawn(work).join());
    ended.unwrap_or_else(|_| Err(at("end the work on", upper, "its thread panicked")))
}

/// Starts the threads of a mount but this one, in the sandbox.
fn begin(
    options: &MountOptions,
    overlay: &Arc<Engine<OsLayer>>,
    about: About,
    device: OwnedFd,
    sandbox: Sandbox,
) -> io::Result<Running<EngineFrontEnd<OsLayer>>> {
    let is_limited = getrlimit(Resource::Fsize).current.is_some();
    let front_end = EngineFrontEnd::new(overlay.clone(), Settings::of(options, is_limited)).with_channel(about);
    let most = options.max_threads.map(std::num::NonZeroUsize::get);
    let service = Service {
        threads: most.unwrap_or(THREADS).max(2),
        most: most.unwrap_or(usize::MAX),
        io_uring: options.io_uring,
    };
    let session = Session::start(device, front_end, service, None)?;
    sandbox.enter();
    session.start_threads()
}

/// A change in the upper layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The path in the merged tree.
    pub path: PathBuf,
    /// The kind of the change.
    pub kind: ChangeKind,
    /// What differs.
    pub aspects: Aspects,
}

/// Lists the changes of an upper layer.
fn changes(layers: &Options) -> Result<Vec<Changed>, Error> {
    let mut found = Vec::new();
    Views::open(layers, None)?.changes(Renames::Found, &Passing, &mut |change| {
        found.push(Changed { path: change.path, kind: change.kind, aspects: change.aspects });
        Ok(())
    })?;
    Ok(found)
}

/// Leaves out what changes while it is compared.
struct Passing;

impl Watch for Passing {
    fn passes_over(&self, _path: &Path) -> bool {
        true
    }
}

/// A mounted overlay. The drop unmounts it, and the changes stay in the upper layer. If a program
/// still uses the mount then, it leaves the tree, and ends with that program.
#[must_use = "the mount ends with this value"]
#[derive(Debug)]
pub struct Mount {
    layers: Options,
    point: PathBuf,
    /// None: it has ended.
    keeper: Option<JoinHandle<Result<(), Error>>>,
}

impl Mount {
    /// Returns the mount point.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Lists the changes so far, by their paths, a directory before its content. The mount stays
    /// usable. An object that changes meanwhile may be missing.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: the data that the kernel holds back cannot be written.
    /// - [`Error::Tool`]: a layer cannot be read.
    pub fn changes(&self) -> Result<Vec<Changed>, Error> {
        let written = File::open(&self.point).and_then(|point| Ok(rustix::fs::syncfs(&point)?));
        written.map_err(|cause| at("write the data of", &self.point, cause))?;
        changes(&self.layers)
    }

    /// Unmounts the overlay, and waits until all changes are complete and synced.
    ///
    /// # Errors
    ///
    /// - [`UnmountError::Busy`]: a program uses the mount. [`Busy::into_mount`] has the mount
    ///   again; the drop of the error detaches it.
    /// - [`UnmountError::Failed`]: not everything is synced. The changes stay.
    pub fn unmount(mut self) -> Result<Unmounted, UnmountError> {
        match fuse_mount::unmount(&self.point, false) {
            // Someone else has unmounted it.
            Err(cause) if cause.raw_os_error() != Some(libc::EINVAL) => {
                return Err(UnmountError::Busy(Box::new(Busy { mount: self, cause })));
            }
            _ => {}
        }
        self.take_keeper().map_err(UnmountError::Failed)?;
        Ok(Unmounted { layers: self.layers.clone() })
    }

    /// Ends a mount that did not begin well, and returns the reason.
    fn end_failed(mut self, is_mounted: bool) -> Error {
        let point = &self.point;
        if is_mounted && let Err(error) = fuse_mount::unmount(point, true) {
            log::error!("the mount at {} cannot be unmounted after the error: {error}", point.display());
        }
        self.take_keeper().err().unwrap_or_else(|| at("mount at", &self.point, "its thread ended"))
    }

    /// Takes the thread, so that the drop does nothing. It is there until then.
    fn take_keeper(&mut self) -> Result<(), Error> {
        self.keeper.take().map_or(Ok(()), joined)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.keeper.is_none() {
            return;
        }
        let ended = match fuse_mount::unmount(&self.point, false) {
            Ok(()) => self.take_keeper().map_err(|error| error.to_string()),
            // The threads end with the last program that uses it.
            Err(_) => fuse_mount::unmount(&self.point, true).map_err(|error| error.to_string()),
        };
        if let Err(error) = ended {
            log::error!("the end of the mount at {}: {error}", self.point.display());
        }
    }
}

/// Waits for the end of a mount's first thread.
fn joined(keeper: JoinHandle<Result<(), Error>>) -> Result<(), Error> {
    keeper.join().unwrap_or_else(|_| Err(at("end the mount at", Path::new("its place"), "its thread panicked")))
}

/// The reason why an unmount failed.
#[derive(Debug)]
pub enum UnmountError {
    /// The mount is still there.
    Busy(Box<Busy>),
    /// The mount is gone, but not all changes are complete and synced. The next mount completes
    /// them.
    Failed(Error),
}

impl fmt::Display for UnmountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnmountError::Busy(busy) => {
                write!(f, "Cannot unmount {}: {}.", escaped(&busy.mount.point), busy.cause)
            }
            UnmountError::Failed(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for UnmountError {}

/// A mount that could not be unmounted.
#[derive(Debug)]
pub struct Busy {
    mount: Mount,
    cause: io::Error,
}

impl Busy {
    /// Returns the mount, for another try.
    pub fn into_mount(self) -> Mount {
        self.mount
    }
}

/// An overlay after its unmount. All changes are on the disk, in its upper layer. The drop
/// preserves them.
#[derive(Debug)]
pub struct Unmounted {
    layers: Options,
}

impl Unmounted {
    /// Lists the changes.
    ///
    /// # Errors
    ///
    /// - [`Error::Tool`]: a layer cannot be read.
    pub fn changes(&self) -> Result<Vec<Changed>, Error> {
        changes(&self.layers)
    }

    /// Writes the changes as a layer of an OCI image: an archive of tar, without compression. They
    /// stay in the upper layer, so another ending may follow.
    ///
    /// # Errors
    ///
    /// - [`Error::Tool`]: a layer cannot be read, the archive cannot be written, or it cannot hold
    ///   an object.
    pub fn export<W: Write>(&self, writer: W) -> Result<W, Error> {
        let views = Views::open(&self.layers, None)?;
        Ok(write_layer(&views, writer, Path::new("the archive"), Holes::Kept, &())?.0)
    }

    /// Leaves the changes in the upper layer, for the next mount.
    pub fn preserve(self) {}

    /// Throws the changes away.
    ///
    /// # Errors
    ///
    /// - [`Error::Tool`]: the upper layer is in use, or a step failed. `overlayfs-layer discard`
    ///   goes on.
    pub fn discard(self) -> Result<(), Error> {
        end(&self.layers, || Ok(commit::discard(&Paths::new(&self.layers)?, &())?))
    }

    /// Merges the changes into the topmost lower layer. The upper layer is empty after it.
    ///
    /// # Errors
    ///
    /// - [`Error::Tool`]: a layer is in use or damaged, or a step failed. `overlayfs-layer commit`
    ///   goes on.
    pub fn commit(self, choice: Choice) -> Result<(), Error> {
        end(&self.layers, || Ok(commit_layers(&self.layers, choice, &())?))
    }
}
