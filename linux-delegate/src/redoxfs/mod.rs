//! redoxfs and ramfs in memory: the filesystems of an overlay's layers on Redox.
//!
//! [`Disk`] is a daemon that serves one of them as a scheme behind the simulated kernel. Tests fill
//! it and read it without requests ([`Tree`]). They count the requests that arrive ([`Requests`]),
//! and end it as the end of the system would.
//!
//! Lock order: the lock of the tree is a leaf. No thread makes a request under it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use overlayfs::layer::counted::Fault;
use redox_scheme::scheme::{Op, SchemeResponse, SchemeState, SchemeSync, register_sync_scheme};
use redox_scheme::{CallRequest, RequestKind, Response, SignalBehavior, Socket};
use syscall::error::{ENOSYS, Result};
use syscall::flag::EventFlags;

use crate::client::Process;
use crate::kernel;

mod locks;
mod requests;
mod scheme;
mod tree;

use locks::Locks;
use requests::Counter;
pub use requests::{Request, Requests};
pub use scheme::Kind;
use scheme::Scheme;
pub use tree::{Content, NAME_MAX, Node, Tree};

/// A filesystem with its daemon. Its drop ends the daemon and frees the name.
pub struct Disk {
    name: String,
    kind: Kind,
    tree: Arc<Mutex<Tree>>,
    counter: Counter,
    daemon: Option<JoinHandle<Result<()>>>,
}

/// The objects at and below a path of a disk at one moment.
pub struct Snapshot {
    path: String,
    objects: BTreeMap<String, (u32, Node)>,
}

impl Disk {
    /// Makes an empty redoxfs with its own name.
    pub fn redoxfs() -> Self {
        Self::new(Kind::Redoxfs)
    }

    /// Makes an empty ramfs with its own name.
    pub fn ramfs() -> Self {
        Self::new(Kind::Ramfs)
    }

    fn new(kind: Kind) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("disk{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let tree = Arc::new(Mutex::new(Tree::new(&name)));
        let mut disk = Self { name, kind, tree, counter: Counter::default(), daemon: None };
        disk.start();
        disk
    }

    fn start(&mut self) {
        let mut scheme = Scheme::new(self.name.clone(), self.kind, self.tree.clone(), self.counter.clone());
        let (ready, wait) = mpsc::channel();
        let name = self.name.clone();
        self.daemon = Some(thread::spawn(move || {
            let socket = Socket::create()?;
            register_sync_scheme(&socket, &name, &mut scheme)?;
            // The send fails if the starting thread has panicked.
            let _ = ready.send(());
            serve(&socket, &mut scheme)
        }));
        // If the daemon has ended already, its first request shows that.
        let _ = wait.recv();
    }

    fn stop(&mut self) {
        let _ = kernel::stop(&self.name);
        let ended = self.daemon.take().map(JoinHandle::join);
        let _ = kernel::unregister(&self.name);
        if !thread::panicking() {
            assert!(matches!(ended, Some(Ok(Ok(())))), "the daemon of {} ended with {ended:?}", self.name);
        }
    }

    /// Ends the daemon as the end of the system would, and starts another one with the content of
    /// the disk. Every descriptor of the first returns ENODEV from now on, and its locks are gone.
    pub fn restart(&mut self) {
        self.stop();
        self.stop_after(u64::MAX);
        self.tree().close_all();
        self.start();
    }

    /// Returns the path of `path` of this filesystem in the system.
    pub fn path(&self, path: &str) -> String {
        format!("/scheme/{}/{path}", self.name)
    }

    /// Returns the content of the disk.
    pub fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the objects at and below `path`.
    pub fn snapshot(&self, path: &str) -> Snapshot {
        Snapshot { path: path.to_owned(), objects: self.tree().snapshot(path) }
    }

    /// Compares a part of the disk with a record: bytes, modes, owners, numbers, links and times. A
    /// read changes the time of last access, so that does not count.
    ///
    /// # Panics
    ///
    /// If they differ, with the first differences.
    pub fn assert_same(&self, before: &Snapshot) {
        let now = self.tree().snapshot(&before.path);
        let paths = before.objects.keys().chain(now.keys().filter(|path| !before.objects.contains_key(*path)));
        let differing: Vec<_> = paths.filter(|path| before.objects.get(*path) != now.get(*path)).take(10).collect();
        let shown = differing.iter().map(|path| (path, before.objects.get(*path), now.get(*path)));
        assert!(differing.is_empty(), "{} has changed: {:#?}", before.path, shown.collect::<Vec<_>>());
    }

    /// After so many more requests the disk does nothing and returns EIO, as if the system had
    /// ended there. `u64::MAX`: it always works.
    pub fn stop_after(&self, requests: u64) {
        self.fault_after(requests, Fault::Stop);
    }

    /// After so many more requests this fault happens. `u64::MAX`: none does.
    pub fn fault_after(&self, requests: u64, fault: Fault) {
        self.counter.fault_after(requests, fault);
    }

    /// Returns the request at which the fault of the last [`Disk::fault_after`] happened.
    pub fn struck(&self) -> Option<Request> {
        self.counter.struck()
    }

    /// Returns how many descriptors of objects are open.
    pub fn open(&self) -> usize {
        self.tree().open()
    }

    /// Copies the content of another disk. Nothing is open afterwards.
    pub fn copy_from(&self, other: &Disk) {
        let tree = other.tree().copy(&self.name);
        *self.tree() = tree;
    }

    /// Returns the requests since the last call, with those that have no answer.
    pub fn take_requests(&self) -> Requests {
        // All earlier requests have arrived when this one is answered. It is not counted.
        let root = Process::new(0, 0).scheme_root(&self.name);
        let _ = root.and_then(|root| root.fevent(EventFlags::empty()));
        self.counter.take()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Answers requests, one after the other, until the socket ends.
fn serve(socket: &Socket, scheme: &mut Scheme) -> Result<()> {
    let mut locks = Locks::default();
    while let Some(request) = socket.next_request(SignalBehavior::Restart)? {
        match request.kind() {
            RequestKind::Call(call) => {
                socket.write_response(answer(call, scheme, &mut locks), SignalBehavior::Restart)?;
            }
            RequestKind::SendFd(request) => {
                let response = Response::new(scheme.name_socket(socket, &request), request);
                socket.write_response(response, SignalBehavior::Restart)?;
            }
            RequestKind::OnClose { id } => {
                locks.close(id);
                scheme.on_close(id);
            }
            RequestKind::OnDetach { id, pid } => {
                if let Ok(inode) = scheme.inode(id) {
                    locks.detach(inode, pid);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn answer(call: CallRequest, scheme: &mut Scheme, locks: &mut Locks) -> Response {
    let caller = call.caller();
    let op = match call.op() {
        Ok(op) => op,
        Err(call) => return Response::err(ENOSYS, call),
    };
    if let Op::StdFsCall(call) = &op
        && let Some(answer) = locks.answer(call.fd(), scheme.inode(call.fd()), caller.pid, call.metadata())
    {
        return match answer {
            SchemeResponse::RegularAndNotifyOnDetach(status) => Response::new_notify_on_detach(status, op),
            SchemeResponse::Regular(status) => Response::new(status, op),
            SchemeResponse::Opened(opened) => Response::open_dup_like(opened, op),
        };
    }
    op.handle_sync(caller, scheme, &mut SchemeState::new())
}
