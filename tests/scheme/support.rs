//! A scheme above new layers, and its users.

use std::sync::Arc;

use linux_delegate::daemon::unused_name;
use linux_delegate::{Daemon, Fd, Process};
use overlayfs::control::ask::{Refusal, ask};
use overlayfs::control::fact::Fact;
use overlayfs::control::{CALL, Command};
use overlayfs::overlay::Overlay;
use overlayfs::scheme::{About, OverlayScheme};
use syscall::error::{Error, Result};
use syscall::flag::{O_NOFOLLOW, O_STAT};

use crate::layers::{Layer, Layers};

/// A running scheme. At its drop the daemon ends, the name is free again, and the lower layer must
/// be unchanged.
pub struct Setup {
    // Dropped first, while the layers exist.
    daemon: Daemon,
    pub layers: Layers,
}

impl Setup {
    /// Makes a writable overlay over one lower layer.
    pub fn new(fill_lower: impl FnOnce(&Layer)) -> Self {
        Self::start(fill_lower, true)
    }

    /// Makes an overlay without an upper layer.
    pub fn read_only(fill_lower: impl FnOnce(&Layer)) -> Self {
        Self::start(fill_lower, false)
    }

    /// Makes a writable overlay that lets each user link every visible file.
    pub fn with_free_hardlinks(fill_lower: impl FnOnce(&Layer)) -> Self {
        let layers = Layers::new(fill_lower);
        let name = unused_name("overlay");
        let scheme = OverlayScheme::new(Arc::new(layers.mount(true)), name.clone()).protect_hardlinks(false);
        Self { daemon: Daemon::of(scheme, name).0, layers }
    }

    /// Makes a writable overlay that ann serves, with a channel that tells these facts.
    pub fn with_channel(fill_lower: impl FnOnce(&Layer), facts: Vec<Fact>) -> Self {
        let layers = Layers::new(fill_lower);
        let name = unused_name("overlay");
        let about = About { owner: 1000, facts };
        let scheme = OverlayScheme::new(Arc::new(layers.mount(true)), name.clone()).with_channel(about);
        Self { daemon: Daemon::of(scheme, name).0, layers }
    }

    /// Makes a writable overlay that ann serves, with a directory for snapshots.
    pub fn with_snapshots(fill_lower: impl FnOnce(&Layer)) -> Self {
        Self::again(Layers::new(fill_lower))
    }

    /// Serves such an overlay again.
    pub fn again(layers: Layers) -> Self {
        let name = unused_name("overlay");
        let about = About { owner: 1000, facts: Vec::new() };
        let scheme = OverlayScheme::new(Arc::new(layers.mount_with_snapshots()), name.clone()).with_channel(about);
        Self { daemon: Daemon::of(scheme, name).0, layers }
    }

    fn start(fill_lower: impl FnOnce(&Layer), writable: bool) -> Self {
        let layers = Layers::new(fill_lower);
        Self::serve(layers.mount(writable), layers)
    }

    /// Serves an overlay of these layers.
    pub fn serve<L: overlayfs::layer::Layer>(overlay: Overlay<L>, layers: Layers) -> Self {
        Self { daemon: Daemon::serve(overlay, unused_name("overlay")), layers }
    }

    /// Returns the name of the scheme: it serves `/scheme/NAME`.
    pub fn name(&self) -> &str {
        self.daemon.name()
    }

    /// Makes the daemon end, as a signal does.
    pub fn stop(&self) {
        self.daemon.stop();
    }

    /// Makes the daemon end, even during a request, and waits for its end.
    pub fn end(self) -> Layers {
        self.stop();
        drop(self.daemon);
        self.layers
    }

    /// Returns the path of a client for `path` of the merged tree.
    pub fn path(&self, path: &str) -> String {
        format!("/scheme/{}/{path}", self.name())
    }

    /// Opens a path of the merged tree.
    pub fn open(&self, who: &Process, path: &str, flags: usize) -> Result<Fd> {
        who.open(self.path(path), flags, 0)
    }

    /// Opens the top directory for path-based requests of `who`.
    pub fn top(&self, who: &Process) -> Fd {
        self.open(who, "", O_STAT).unwrap()
    }

    /// Returns the permission bits of an object, with set-id and sticky bits.
    pub fn mode(&self, path: &str) -> u16 {
        root().lstat(self.path(path)).unwrap().st_mode & 0o7777
    }

    /// Returns the owner and the group of an object.
    pub fn owner(&self, path: &str) -> (u32, u32) {
        let stat = root().lstat(self.path(path)).unwrap();
        (stat.st_uid, stat.st_gid)
    }

    pub fn exists(&self, path: &str) -> bool {
        self.open(&root(), path, O_STAT | O_NOFOLLOW).is_ok()
    }

    pub fn content(&self, path: &str) -> String {
        String::from_utf8(root().read_file(self.path(path)).unwrap()).unwrap()
    }

    /// Returns whether the daemon still answers.
    pub fn is_alive(&self) -> bool {
        self.exists("")
    }
}

/// Sends a command to the channel of a scheme. Returns the whole answer, or the errno of the
/// command.
pub fn command(root: &Fd, command: Command, arguments: &[Fact]) -> Result<Vec<Fact>> {
    let send = |frame: &mut [u8]| root.call(frame, &[CALL]).map(|length| assert_eq!(length, frame.len()));
    ask(command, arguments, send).map_err(|refusal| match refusal {
        Refusal::Call(error) => error,
        Refusal::Failed { errno, .. } => Error::new(errno),
        Refusal::Malformed => panic!("the answer makes no sense"),
    })
}

pub fn root() -> Process {
    Process::new(0, 0)
}

/// Returns a process of ann, the owner of the layers' objects.
pub fn ann() -> Process {
    Process::new(1000, 100)
}

/// Returns a process of bob, a member of ann's group.
pub fn bob() -> Process {
    Process::new(1001, 100)
}

/// Returns a process of eve: another user of another group.
pub fn eve() -> Process {
    Process::new(1002, 200)
}

/// Returns the result of a refused request.
pub fn refused<T>(errno: i32) -> Result<T> {
    Err(Error::new(errno))
}

/// Returns the errno of a request. Panics if the request succeeds.
#[track_caller]
pub fn errno<T>(result: Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("this was to be refused"),
        Err(error) => error.errno,
    }
}

/// Returns the names of a listing, in order.
pub fn names(entries: Vec<linux_delegate::DirEntry>) -> Vec<String> {
    let mut names: Vec<String> = entries.into_iter().map(|entry| entry.name).collect();
    names.sort();
    names
}
