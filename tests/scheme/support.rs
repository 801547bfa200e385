//! A scheme over fresh layers, and the people who use it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use linux_delegate::{Fd, Process, kernel};
use overlayfs::daemon::Stop;
use overlayfs::overlay::Overlay;
use redox_scheme::scheme::register_sync_scheme;
use syscall::error::{Error, Result};
use syscall::flag::{O_NOFOLLOW, O_STAT};

use crate::layers::{Layer, Layers};

/// A running scheme named [`Stage::name`]. Dropped, it ends and its name is free again, and the lower layer must be what it was.
pub struct Stage {
    pub name: String,
    pub layers: Layers,
    daemon: Option<JoinHandle<Result<()>>>,
    stop: Arc<Stop>,
}

impl Stage {
    /// A writable overlay over one lower layer.
    pub fn new(fill_lower: impl FnOnce(&Layer)) -> Self {
        Self::start(fill_lower, true)
    }

    /// An overlay without an upper layer.
    pub fn read_only(fill_lower: impl FnOnce(&Layer)) -> Self {
        Self::start(fill_lower, false)
    }

    fn start(fill_lower: impl FnOnce(&Layer), writable: bool) -> Self {
        let layers = Layers::new(fill_lower);
        Self::serve(layers.mount(writable), layers)
    }

    /// Serves an overlay that was made of these layers.
    pub fn serve<L: overlayfs::layer::Layer>(overlay: Overlay<L>, layers: Layers) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("overlay{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let (ready, wait) = mpsc::channel();
        let scheme_name = name.clone();
        let daemon = std::thread::spawn(move || {
            overlayfs::daemon::serve(overlay, &scheme_name, |socket, scheme, stop| {
                register_sync_scheme(socket, &scheme_name, scheme)?;
                libredox::call::setrens(0, 0)?;
                ready.send(stop).unwrap();
                Ok(())
            })
        });
        let stop = wait.recv().unwrap();
        Self { name, layers, daemon: Some(daemon), stop }
    }

    /// Has the daemon end, as a signal does.
    pub fn stop(&self) {
        self.stop.stop();
    }

    /// The path by which clients know `path` of the merged tree.
    pub fn path(&self, path: &str) -> String {
        format!("/scheme/{}/{path}", self.name)
    }

    /// Opens a path of the merged tree.
    pub fn open(&self, who: &Process, path: &str, flags: usize) -> Result<Fd> {
        who.open(self.path(path), flags, 0)
    }

    /// The top directory, for path-based requests of `who`.
    pub fn top(&self, who: &Process) -> Fd {
        self.open(who, "", O_STAT).unwrap()
    }

    /// The permission bits of an object, set-id and sticky included.
    pub fn mode(&self, path: &str) -> u16 {
        root().lstat(self.path(path)).unwrap().st_mode & 0o7777
    }

    /// Owner and group of an object.
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

    /// Whether the daemon still answers.
    pub fn is_alive(&self) -> bool {
        self.exists("")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = kernel::stop(&self.name);
        let served = self.daemon.take().map(JoinHandle::join);
        let _ = kernel::unregister(&self.name);
        if !std::thread::panicking() {
            assert!(matches!(served, Some(Ok(Ok(())))), "the daemon ended with {served:?}");
        }
    }
}

pub fn root() -> Process {
    Process::new(0, 0)
}

/// Owns what the layers are filled with.
pub fn ann() -> Process {
    Process::new(1000, 100)
}

/// Of ann's group.
pub fn bob() -> Process {
    Process::new(1001, 100)
}

/// A stranger to ann.
pub fn eve() -> Process {
    Process::new(1002, 200)
}

/// What a refused request answers.
pub fn refused<T>(errno: i32) -> Result<T> {
    Err(Error::new(errno))
}

/// The errno of a request that must be refused.
#[track_caller]
pub fn errno<T>(result: Result<T>) -> i32 {
    match result {
        Ok(_) => panic!("this was to be refused"),
        Err(error) => error.errno,
    }
}

/// The names of a listing in order.
pub fn names(entries: Vec<linux_delegate::DirEntry>) -> Vec<String> {
    let mut names: Vec<String> = entries.into_iter().map(|entry| entry.name).collect();
    names.sort();
    names
}
