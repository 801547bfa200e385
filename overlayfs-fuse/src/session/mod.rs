//! A mount at work: the agreement with the kernel, and the threads that take its requests.
//!
//! There are two transports. `device` reads requests from the FUSE device and writes answers to it.
//! `ring` exchanges both with the kernel in shared memory. Where it is in use, threads still read
//! the device: some requests come only there.
//!
//! Each thread has its own buffers, and answers a request before it takes the next. They share one
//! lock, of the [`Seat`]. `gate` stops the threads for another process that takes the mount over.
//!
//! Only the first thread and those of rings are always there (`first`). It starts the others when
//! they have something to do: `workers` read the device, `watcher` does the work between requests,
//! and one runs [`Settler::run`].

mod device;
mod first;
mod gate;
mod ring;
mod watcher;
mod workers;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use overlayfs::control;
use overlayfs::control::requests::{Part, Requests};
use overlayfs::errno::{EOPNOTSUPP, Error};
use overlayfs::overlay::Holder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::{FromBytes, IntoBytes};

use crate::comeback::{Kept, Ledger};
use crate::dispatch::{Agreed, Reply, Request, handle, refuse};
use crate::front_end::{FrontEnd, Setup};
use crate::mount::Device;
use crate::options::IoUring;
use crate::settle::{Settled, Settler};
use crate::succession::Terms;
use crate::waker::Waker;
use crate::wire::{self, InHeader, InitIn, InitOut, OutHeader, init, opcode};
use first::First;
pub use first::Outside;
use gate::Gate;
use watcher::Watcher;
use workers::Workers;

/// The largest WRITE, READ and listing, in bytes.
const MAX_DATA: usize = 1 << 20;
const PAGE: usize = 4096;
/// How many requests without a waiting program, such as read-ahead and write-back, the kernel may
/// send at once.
const BACKGROUND: u16 = 64;
/// How many threads read the device beside rings at least. One may wait.
const BESIDE_RINGS: usize = 2;
/// How many milliseconds to wait for threads that take messages.
const MOST_WAITS: u32 = 100;

/// A mounted filesystem before it serves.
pub struct Session<D> {
    served: Arc<Served<D>>,
    first: First,
    /// How many threads read the device at most.
    threads: usize,
    entries: Vec<ring::Entry>,
}

/// How many threads serve a mount, and over what.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// How many threads read the device at most. Two at least: one may wait for the answer of
    /// another.
    pub threads: usize,
    /// How many threads there may be over io_uring.
    pub most: usize,
    /// Whether requests come over io_uring.
    pub io_uring: IoUring,
}

/// The parts that all threads share.
struct Served<D> {
    seat: Arc<Seat<D>>,
    agreed: Agreed,
    workers: Arc<Workers>,
    watcher: Watcher,
}

/// The front end of a mount. Another one may take its place between two requests.
///
/// Each request holds the lock, shared. A command of the channel does not, since it may exchange
/// the front end. A thread that holds the lock may wait for another request of the kernel only
/// under a lock that the caller of [`Seat::replace`] holds too. Otherwise the other request would
/// wait behind the exchange.
pub struct Seat<D> {
    front_end: RwLock<Arc<D>>,
    /// None: the tree is read-only.
    settler: Option<Settler>,
    gate: Gate,
    device: Arc<File>,
    agreed: Agreed,
    /// The process that brings the mount back if this one is killed.
    kept: OnceLock<Arc<Kept>>,
}

impl<D> Seat<D> {
    fn present(&self) -> RwLockReadGuard<'_, Arc<D>> {
        self.front_end.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the mount comes back if this process is killed.
    fn comes_back(&self) -> bool {
        self.kept.get().is_some()
    }

    fn end_of_keeper(&self) {
        self.kept.get().inspect(|kept| kept.end());
    }

    /// Records the process that holds the upper layer, if there is a settler.
    pub fn sign(&self, holder: &Holder) {
        self.settler.iter().for_each(|settler| settler.sign(holder));
    }

    /// Puts the front end that `follow` makes in the place of the present one, with its overlay. No
    /// request is under way meanwhile, and those that come wait.
    ///
    /// # Errors
    ///
    /// - EROFS: the mount has given its layers up.
    ///
    /// Others of `follow`, after which the present front end goes on.
    pub fn replace<E: From<Error>>(
        &self,
        follow: impl FnOnce(&Arc<D>) -> Result<(Arc<D>, Arc<dyn Settled>), E>,
    ) -> Result<Arc<D>, E> {
        let exchange = || {
            let mut front_end = self.front_end.write().unwrap_or_else(PoisonError::into_inner);
            let (next, overlay) = follow(&front_end)?;
            *front_end = next.clone();
            Ok((next, overlay))
        };
        match &self.settler {
            Some(settler) => settler.replace(exchange),
            None => exchange().map(|(next, _)| next),
        }
    }

    /// Stops all threads between two requests, and calls `give`, which gives the mount to another
    /// process. From then on this process takes no request.
    ///
    /// # Errors
    ///
    /// - EOPNOTSUPP: requests come over io_uring.
    /// - EROFS: the mount has given its layers up.
    /// - EBUSY: a request takes too long.
    ///
    /// Others of `give`. After an error this process goes on.
    pub(crate) fn hand_over<E: From<Error>>(
        &self,
        give: impl FnOnce(&Arc<D>, &Terms<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.agreed.flags & init::OVER_IO_URING != 0 {
            return Err(Error::new(EOPNOTSUPP).into());
        }
        self.settler.as_ref().map_or(Ok(()), Settler::pause)?;
        let given = self.gate.close().map_err(E::from).and_then(|()| {
            let front_end = self.front_end.write().unwrap_or_else(PoisonError::into_inner);
            let asked = self.settler.as_ref().map_or(0, Settler::let_go);
            let filesystem = self.settler.as_ref().map(Settler::device);
            let given = give(
                &front_end,
                &Terms { device: &self.device, agreed: self.agreed, asked, filesystem, comeback: None },
            );
            match &given {
                // No thread may use the layers any more.
                Ok(()) => {
                    std::mem::forget(front_end);
                    self.gate.pass_on();
                }
                Err(_) => self.gate.open(),
            }
            given
        });
        if given.is_err() {
            self.settler.iter().for_each(Settler::go_on);
        }
        given
    }
}

impl<D: FrontEnd + 'static> Session<D> {
    /// Agrees with the kernel on how the mount of `device` works. Waits for the INIT of the kernel,
    /// which comes at mount.
    ///
    /// # Errors
    ///
    /// - ENODEV: the filesystem is unmounted.
    /// - `Unsupported`: the kernel speaks a version of FUSE before 7.31, or lacks what `service`
    ///   demands.
    pub fn start(device: OwnedFd, front_end: D, service: Service, settler: Option<Settler>) -> io::Result<Self> {
        let device = Arc::new(File::from(device));
        let mut request = vec![0; device::MAX_REQUEST];
        let mut entries = Vec::new();
        loop {
            let length = (&*device).read(&mut request)?;
            let answered = greet(&front_end, &request[..length], |offered| {
                entries = ring::prepare(service, offered, &device)?;
                Ok(!entries.is_empty())
            })?;
            (&*device).write_all(&answered.bytes)?;
            if let Some(agreed) = answered.agreed {
                return Self::agreed(device, front_end, agreed, service, settler, entries);
            }
        }
    }

    /// Returns the device, the agreement with the kernel, and the device number of the mount, for
    /// the process that outlives this one.
    pub(crate) fn mounted(&self) -> (Arc<File>, Agreed, Option<Device>) {
        let seat = &self.served.seat;
        (seat.device.clone(), seat.agreed, seat.settler.as_ref().map(Settler::device))
    }

    /// Makes the kernel send all requests again that another process took and has not answered.
    ///
    /// # Errors
    ///
    /// - EINVAL: the kernel cannot.
    pub(crate) fn resend(&self) -> io::Result<()> {
        let header = OutHeader { len: size_of::<OutHeader>() as u32, error: wire::NOTIFY_RESEND, unique: 0 };
        match (&*self.served.seat.device).write_all(header.as_bytes()) {
            // It is unmounted. The threads that take requests find that out.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EPERM | libc::ECONNABORTED)) => {
                Ok(())
            }
            sent => sent,
        }
    }

    /// Tells `kept` when the mount begins to give its layers up, or is given away.
    pub(crate) fn kept_by(&self, kept: Arc<Kept>) {
        self.served.seat.settler.iter().for_each(|settler| settler.kept_by(kept.clone()));
        self.served.seat.kept.get_or_init(|| kept);
    }

    /// Goes on with a mount that another process has served, by the agreement that it made with the
    /// kernel.
    ///
    /// # Errors
    ///
    /// - EMFILE: too many descriptors are open.
    pub(crate) fn go_on(
        device: OwnedFd,
        front_end: D,
        agreed: Agreed,
        service: Service,
        settler: Option<Settler>,
    ) -> io::Result<Self> {
        Self::agreed(Arc::new(File::from(device)), front_end, agreed, service, settler, Vec::new())
    }

    fn agreed(
        device: Arc<File>,
        front_end: D,
        agreed: Agreed,
        service: Service,
        settler: Option<Settler>,
        entries: Vec<ring::Entry>,
    ) -> io::Result<Self> {
        let gate = Gate::new(gate::prepare());
        let (over_ring, threads) = (!entries.is_empty(), service.threads);
        front_end.begin(Notifier { device: device.clone(), prunes: agreed.prunes, over_ring, ledger: None });
        let waker = Arc::new(Waker::new()?);
        let mut devices = (1..threads).map(|_| device::clone(&device)).collect::<io::Result<Vec<_>>>()?;
        devices.push(device.clone());
        let workers = Arc::new(Workers::new(devices, waker.clone()));
        let in_one_place = if over_ring { ring::THREADS } else { threads };
        let settler = settler.map(|settler| settler.served_by(in_one_place, waker.clone()));
        let (front_end, kept) = (RwLock::new(Arc::new(front_end)), OnceLock::new());
        let seat = Arc::new(Seat { front_end, settler, gate, device: device.clone(), agreed, kept });
        seat.present().sit(Arc::downgrade(&seat));
        let watcher = Watcher::new(waker.clone());
        let served = Arc::new(Served { seat, agreed, workers, watcher });
        let threads = if over_ring { BESIDE_RINGS } else { threads };
        Ok(Self { served, first: First::new(device, waker), threads, entries })
    }

    /// Returns the front end that answers the requests.
    pub fn front_end(&self) -> Arc<D> {
        self.served.seat.present().clone()
    }

    /// Starts all threads that the mount may need. Those that have nothing to do end soon, but so a
    /// limit shows at once. If one cannot start, the caller must unmount the filesystem, which ends
    /// the others.
    ///
    /// # Errors
    ///
    /// - EAGAIN: the system has no more threads for the user.
    pub fn start_threads(self) -> io::Result<Running<D>> {
        let Self { served, mut first, threads, entries } = self;
        (0..threads).try_for_each(|_| workers::start(&served))?;
        let start = |entry: ring::Entry| {
            let served = served.clone();
            start_thread("ring", move || entry.serve(&served))
        };
        let rings = entries.into_iter().map(start).collect::<io::Result<_>>()?;
        first.start_jobs(&served)?;
        served.seat.settler.iter().for_each(Settler::begin);
        Ok(Running { served, first, rings })
    }
}

fn start_thread<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name.to_owned()).spawn(run)
}

fn panicked() -> io::Error {
    io::Error::other("a thread panicked")
}

/// A filesystem that other threads serve.
pub struct Running<D> {
    served: Arc<Served<D>>,
    first: First,
    rings: Vec<JoinHandle<io::Result<()>>>,
}

impl<D: FrontEnd + 'static> Running<D> {
    /// Returns the seat of the front end.
    pub fn seat(&self) -> Arc<Seat<D>> {
        self.served.seat.clone()
    }

    /// Serves until the filesystem is unmounted, then calls `ending`. This thread waits for
    /// `outside` too. The first result has the error of the thread that failed first. At the end it
    /// completes and syncs the changes that are left, and makes the ending. The second result says
    /// whether that succeeded, or what umount waited for; its error is a sentence. None: another
    /// process serves now. This one must leave the layers as they are.
    pub fn run(
        self,
        outside: Option<&dyn Outside>,
        ending: impl FnOnce(),
    ) -> Option<(io::Result<()>, Result<(), String>)> {
        let Self { served, mut first, rings } = self;
        first.serve(&served, outside);
        if served.seat.gate.has_ended() {
            served.seat.end_of_keeper();
            // Its drop would unlock the layers.
            std::mem::forget(served);
            return None;
        }
        // A thread of a ring may wait for the settler.
        served.seat.settler.iter().for_each(Settler::stop);
        first.await_workers(&served);
        let rings = rings.into_iter().map(|ring| ring.join().map_err(|_| panicked()).flatten());
        let result = rings.fold(served.workers.take_failure(), io::Result::and);
        ending();
        served.watcher.stop();
        let result = result.and(first.end());
        let settled = served.seat.settler.as_ref().map_or(Ok(()), |settler| settler.end(result.is_ok()));
        served.seat.end_of_keeper();
        Some((result, settled))
    }
}

/// Sends the kernel notifications.
#[derive(Clone)]
pub struct Notifier {
    device: Arc<File>,
    /// Whether the kernel takes requests to drop objects.
    prunes: bool,
    /// Whether requests come over io_uring.
    over_ring: bool,
    /// Where to write down that a thread waits for the kernel.
    ledger: Option<Arc<Ledger>>,
}

impl Notifier {
    /// Writes down in `ledger` when a thread waits for the kernel.
    pub(crate) fn with_ledger(self, ledger: Option<Arc<Ledger>>) -> Self {
        Self { ledger, ..self }
    }

    /// Whether the kernel takes [`Notifier::prune`].
    pub fn can_prune(&self) -> bool {
        self.prunes
    }

    /// Waits for a moment until other threads have taken the messages of the kernel that its
    /// requests may have overtaken: over io_uring, those about forgotten objects. Returns
    /// whether there were any.
    pub fn await_messages(&self) -> bool {
        let is_waiting = || {
            let mut device = [PollFd::new(&*self.device, PollFlags::IN)];
            poll(&mut device, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        };
        if !self.over_ring || !is_waiting() {
            return false;
        }
        for _ in 0..MOST_WAITS {
            thread::sleep(Duration::from_millis(1));
            if !is_waiting() {
                break;
            }
        }
        true
    }

    /// Asks the kernel to drop those of these objects that are not in use. A directory with an
    /// entry that the kernel knows is in use, and so is an object with a mount on it. An
    /// invalidation of entries would detach such mounts.
    ///
    /// The kernel writes the held data of a file back before, so another thread must take the
    /// requests.
    ///
    /// # Errors
    ///
    /// - ENODEV: the filesystem is unmounted.
    /// - EINVAL: the kernel does not know the notification.
    pub fn prune(&self, nodes: &[u64]) -> io::Result<()> {
        let prune = wire::NotifyPrune { count: nodes.len() as u32, ..wire::NotifyPrune::default() };
        self.notify(wire::NOTIFY_PRUNE, &[prune.as_bytes(), nodes.as_bytes()].concat())
    }

    /// Makes the kernel ask for the attributes of an object before it uses them again.
    ///
    /// # Errors
    ///
    /// - ENODEV: the filesystem is unmounted.
    /// - ENOENT: the kernel does not know the object.
    pub fn forget_attributes(&self, node: u64) -> io::Result<()> {
        let inode = wire::NotifyInvalInode { node, offset: -1, length: 0 };
        self.notify(wire::NOTIFY_INVAL_INODE, inode.as_bytes())
    }

    /// Makes the kernel write back, and drop, the held data of a file from `offset` on. The writes
    /// are requests, which another thread must take.
    ///
    /// # Errors
    ///
    /// - ENODEV: the filesystem is unmounted.
    /// - ENOENT: the kernel does not know the object.
    pub fn write_back(&self, node: u64, offset: u64) -> io::Result<()> {
        let offset = i64::try_from(offset).unwrap_or(i64::MAX);
        let inode = wire::NotifyInvalInode { node, offset, length: 0 };
        self.notify(wire::NOTIFY_INVAL_INODE, inode.as_bytes())
    }

    /// Makes the kernel forget an entry. That detaches the mounts on it and below it.
    ///
    /// # Errors
    ///
    /// - ENODEV: the filesystem is unmounted.
    /// - ENOENT: the kernel does not know the directory or the entry.
    pub fn forget_entry(&self, dir: u64, name: &OsStr) -> io::Result<()> {
        let entry = wire::NotifyInvalEntry { parent: dir, name_length: name.len() as u32, flags: 0 };
        self.notify(wire::NOTIFY_INVAL_ENTRY, &[entry.as_bytes(), name.as_bytes(), b"\0"].concat())
    }

    /// Gives the kernel a file that it reads itself. Returns the number of the backing.
    ///
    /// # Errors
    ///
    /// - EPERM: the process is not root, or the kernel has no passthrough.
    /// - EOPNOTSUPP, ELOOP: the filesystem of the file is no backing.
    pub fn back(&self, data: BorrowedFd<'_>) -> io::Result<i32> {
        device::back(&self.device, data)
    }

    /// Ends a backing. Files that are open go on.
    ///
    /// # Errors
    ///
    /// - ENOENT: there is no such backing.
    pub fn end_backing(&self, id: i32) -> io::Result<()> {
        device::end_backing(&self.device, id)
    }

    fn notify(&self, code: i32, body: &[u8]) -> io::Result<()> {
        let length = size_of::<OutHeader>() + body.len();
        let header = OutHeader { len: length as u32, error: code, unique: 0 };
        let send = || (&*self.device).write_all(&[header.as_bytes(), body].concat());
        self.ledger.as_ref().map_or_else(send, |ledger| ledger.while_waiting(send))
    }
}

/// The answer to INIT.
struct Greeting {
    bytes: Vec<u8>,
    agreed: Option<Agreed>,
}

/// Answers INIT. A kernel with a higher major version gets ours and asks again. `over_ring` learns
/// whether the kernel offers io_uring, and says whether to use it.
fn greet(
    front_end: &impl FrontEnd,
    request: &[u8],
    over_ring: impl FnOnce(bool) -> io::Result<bool>,
) -> io::Result<Greeting> {
    let malformed = || io::Error::new(ErrorKind::InvalidData, "the first request of the kernel is not INIT");
    let (header, body) = InHeader::read_from_prefix(request).map_err(|_| malformed())?;
    // Older kernels send a shorter structure.
    let mut whole = [0; size_of::<InitIn>()];
    let length = body.len().min(whole.len());
    whole[..length].copy_from_slice(&body[..length]);
    let (asked, _) = InitIn::read_from_prefix(&whole).map_err(|_| malformed())?;
    if header.opcode != opcode::INIT {
        return Err(malformed());
    }
    if asked.major < wire::MAJOR || asked.major == wire::MAJOR && asked.minor < wire::OLDEST_MINOR {
        return Err(io::Error::new(
            ErrorKind::Unsupported,
            format!("the kernel speaks FUSE {}.{}, but 7.31 (Linux 5.4) is needed", asked.major, asked.minor),
        ));
    }
    let offered =
        u64::from(asked.flags) | if asked.flags as u64 & init::INIT_EXT != 0 { (asked.flags2 as u64) << 32 } else { 0 };
    let Setup { flags, valid, time_gran } = front_end.setup(offered);
    let always = init::ASYNC_READ | init::BIG_WRITES | init::MAX_PAGES | init::INIT_EXT | init::ASYNC_DIO;
    let over_ring = if over_ring(offered & init::OVER_IO_URING != 0)? { init::OVER_IO_URING } else { 0 };
    let flags = (flags | always | over_ring) & offered;
    let out = InitOut {
        major: wire::MAJOR,
        minor: wire::MINOR,
        max_readahead: asked.max_readahead,
        flags: flags as u32,
        flags2: (flags >> 32) as u32,
        max_background: BACKGROUND,
        congestion_threshold: BACKGROUND / 4 * 3,
        max_write: MAX_DATA as u32,
        time_gran,
        max_pages: (MAX_DATA / PAGE) as u16,
        // The layers are on filesystems that are not stacked themselves.
        max_stack_depth: u32::from(flags & init::PASSTHROUGH != 0),
        ..InitOut::default()
    };
    let length = size_of::<OutHeader>() + size_of::<InitOut>();
    let head = OutHeader { len: length as u32, error: 0, unique: header.unique };
    let agreed = Agreed { flags, valid, max_answer: MAX_DATA, prunes: asked.minor >= wire::PRUNE_MINOR };
    let agreed = (asked.major == wire::MAJOR).then_some(agreed);
    Ok(Greeting { bytes: [head.as_bytes(), out.as_bytes()].concat(), agreed })
}

impl<D: FrontEnd> Served<D> {
    /// Returns the reply of a thread, which counts its requests. `counted` keeps the counters for
    /// another thread.
    fn reply(&self, counted: &mut Option<Arc<Part>>) -> Reply {
        if counted.is_none() {
            *counted = self.seat.present().requests().map(Requests::part);
        }
        Reply::counting(counted.clone())
    }

    /// Answers a request, unless its answer comes later. `room` takes the data of a file. Returns
    /// whether `reply` holds an answer to send.
    fn answer(&self, request: &Request<'_>, reply: &mut Reply, room: &mut [u8]) -> bool {
        let begun = Instant::now();
        if is_command(request) {
            // It may put another front end in the place of this one.
            let front_end = self.seat.present().clone();
            let is_answered = handle(&*front_end, &self.agreed, request, reply, room);
            reply.count(request, begun, is_answered);
            return is_answered;
        }
        let settler = self.seat.settler.as_ref().filter(|_| changes(request));
        let is_answered = match settler.map_or(Ok(()), Settler::begin_change) {
            Ok(()) => {
                let is_answered = handle(&**self.seat.present(), &self.agreed, request, reply, room);
                settler.inspect(|settler| settler.end_change());
                is_answered
            }
            Err(error) => {
                refuse(request, error, reply);
                true
            }
        };
        reply.count(request, begun, is_answered);
        is_answered
    }
}

/// Whether a request is a command of the channel.
fn is_command(request: &Request<'_>) -> bool {
    let is_ioctl = request.header.opcode == opcode::IOCTL;
    is_ioctl && request.first().is_some_and(|ioctl: wire::IoctlIn| ioctl.command == control::IOCTL)
}

/// Whether a request may change something.
fn changes(request: &Request<'_>) -> bool {
    match request.header.opcode {
        // Where files are opened by requests, an open for writing may copy the file up.
        opcode::OPEN => {
            let flags = request.first().map_or(0, |open: wire::OpenIn| open.flags as i32);
            flags & (libc::O_ACCMODE | libc::O_TRUNC) != libc::O_RDONLY
        }
        opcode::SETATTR
        | opcode::MKNOD
        | opcode::MKDIR
        | opcode::SYMLINK
        | opcode::UNLINK
        | opcode::RMDIR
        | opcode::RENAME
        | opcode::RENAME2
        | opcode::LINK
        | opcode::CREATE
        | opcode::TMPFILE
        | opcode::WRITE
        | opcode::SETXATTR
        | opcode::REMOVEXATTR
        | opcode::FALLOCATE
        | opcode::COPY_FILE_RANGE => true,
        _ => false,
    }
}
