//! A mount at work: the FUSE device, the agreement with the kernel, and the threads that take its
//! requests.
//!
//! Each thread has its own clone of the device and its own two buffers, and answers a request
//! before it takes the next. There is no lock. One more thread only calls [`FrontEnd::watch`].

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use zerocopy::{FromBytes, IntoBytes};

use crate::dispatch::{Agreed, Buffers, handle, refuse};
use crate::front_end::{FrontEnd, Setup};
use crate::mount::DEVICE;
use crate::settle::Settler;
use crate::wire::{self, InHeader, InitIn, InitOut, OutHeader, init, opcode};

/// The largest WRITE, READ and listing, in bytes.
const MAX_DATA: usize = 1 << 20;
/// Room for the header of a request and the fields before its data.
const MAX_HEAD: usize = 4096;
const PAGE: usize = 4096;
/// How many requests without a waiting program, such as read-ahead and write-back, the kernel may
/// send at once.
const BACKGROUND: u16 = 64;
/// Makes a clone of the device (`FUSE_DEV_IOC_CLONE`).
const IOC_CLONE: libc::Ioctl = 0x8004_e500_u32 as libc::Ioctl;

/// A mounted filesystem before it serves.
pub struct Session<D> {
    served: Arc<Served<D>>,
    /// The device, and a clone of it for each thread but one.
    device: Arc<File>,
    clones: Vec<Arc<File>>,
}

/// The parts that all threads share.
struct Served<D> {
    front_end: Arc<D>,
    agreed: Agreed,
    /// None: the tree is read-only.
    settler: Option<Settler>,
}

impl<D: FrontEnd + 'static> Session<D> {
    /// Agrees with the kernel on how the mount of `device` works, and prepares for `threads`
    /// threads, at least two. Waits for the INIT of the kernel, which comes at mount.
    ///
    /// # Errors
    ///
    /// - ENODEV: the filesystem is unmounted.
    /// - `Unsupported`: the kernel speaks a version of FUSE before 7.31.
    pub fn start(device: OwnedFd, front_end: D, threads: usize, settler: Option<Settler>) -> io::Result<Self> {
        let device = Arc::new(File::from(device));
        let mut request = vec![0; MAX_DATA + MAX_HEAD];
        loop {
            let length = (&*device).read(&mut request)?;
            let answered = greet(&front_end, &request[..length])?;
            (&*device).write_all(&answered.bytes)?;
            if let Some(agreed) = answered.agreed {
                front_end.begin(Notifier { device: device.clone(), prunes: agreed.prunes });
                // Two at least: one may wait for the answer of another.
                let clones = (1..threads).map(|_| clone(&device).map(Arc::new)).collect::<io::Result<_>>()?;
                return Ok(Self {
                    served: Arc::new(Served { front_end: Arc::new(front_end), agreed, settler }),
                    device,
                    clones,
                });
            }
        }
    }

    /// Returns the front end that answers the requests.
    pub fn front_end(&self) -> Arc<D> {
        self.served.front_end.clone()
    }

    /// Starts all threads but one. If one cannot start, the caller must unmount the filesystem,
    /// which ends the others.
    ///
    /// # Errors
    ///
    /// - EAGAIN: the system has no more threads for the user.
    pub fn start_threads(self) -> io::Result<Running<D>> {
        let Self { served, device, clones } = self;
        let mut others = Vec::new();
        for device in clones {
            let served = served.clone();
            others.push(start("request", move || served.serve(&device))?);
        }
        let shared = served.clone();
        let settling = start("settle", move || shared.settler.iter().for_each(Settler::run))?;
        served.settler.iter().for_each(Settler::begin);
        let (watched, ended) = mpsc::channel::<()>();
        let front_end = served.front_end.clone();
        let watching = start("watch", move || {
            // The other end is dropped at the end of the mount.
            while ended.recv_timeout(front_end.watch()) == Err(RecvTimeoutError::Timeout) {}
        })?;
        Ok(Running { served, device, others, settling, watching, watched })
    }
}

fn start<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name.to_owned()).spawn(run)
}

/// A filesystem that all of its threads but one serve.
pub struct Running<D> {
    served: Arc<Served<D>>,
    device: Arc<File>,
    others: Vec<JoinHandle<io::Result<()>>>,
    settling: JoinHandle<()>,
    watching: JoinHandle<()>,
    /// Dropped at the end of the mount.
    watched: Sender<()>,
}

impl<D: FrontEnd + 'static> Running<D> {
    /// Serves until the filesystem is unmounted, then calls `ending`. The first result has the
    /// error of the thread that failed first. At the end it completes and syncs the changes that
    /// are left, and makes the ending. The second result says whether that succeeded, or what
    /// umount waited for; its error is a sentence.
    pub fn run(self, ending: impl FnOnce()) -> (io::Result<()>, Result<(), String>) {
        let panicked = |_| io::Error::other("a thread panicked");
        let first = self.served.serve(&self.device);
        let others = self.others.into_iter().map(|other| other.join().map_err(panicked).flatten());
        let result = others.fold(first, io::Result::and);
        ending();
        drop(self.watched);
        self.served.settler.iter().for_each(Settler::stop);
        let result = result.and(self.watching.join().map_err(panicked)).and(self.settling.join().map_err(panicked));
        let settled = self.served.settler.as_ref().map_or(Ok(()), |settler| settler.end(result.is_ok()));
        (result, settled)
    }
}

/// Sends the kernel notifications.
#[derive(Clone)]
pub struct Notifier {
    device: Arc<File>,
    /// Whether the kernel takes requests to drop objects.
    prunes: bool,
}

impl Notifier {
    /// Whether the kernel takes [`Notifier::prune`].
    pub fn can_prune(&self) -> bool {
        self.prunes
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

    fn notify(&self, code: i32, body: &[u8]) -> io::Result<()> {
        let length = size_of::<OutHeader>() + body.len();
        let header = OutHeader { len: length as u32, error: code, unique: 0 };
        (&*self.device).write_all(&[header.as_bytes(), body].concat())
    }
}

/// The answer to INIT.
struct Greeting {
    bytes: Vec<u8>,
    agreed: Option<Agreed>,
}

/// Answers INIT. A kernel with a higher major version gets ours and asks again.
fn greet(front_end: &impl FrontEnd, request: &[u8]) -> io::Result<Greeting> {
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
    let flags = (flags | always) & offered;
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
        ..InitOut::default()
    };
    let length = size_of::<OutHeader>() + size_of::<InitOut>();
    let head = OutHeader { len: length as u32, error: 0, unique: header.unique };
    let agreed = Agreed { flags, valid, max_answer: MAX_DATA, prunes: asked.minor >= wire::PRUNE_MINOR };
    let agreed = (asked.major == wire::MAJOR).then_some(agreed);
    Ok(Greeting { bytes: [head.as_bytes(), out.as_bytes()].concat(), agreed })
}

impl<D: FrontEnd> Served<D> {
    fn serve(&self, device: &Arc<File>) -> io::Result<()> {
        let Self { front_end, agreed, settler } = self;
        let mut request = vec![0; MAX_DATA + MAX_HEAD];
        let mut buffers = Buffers::default();
        loop {
            let length = match (&**device).read(&mut request) {
                Ok(length) => length,
                Err(error) => match error.raw_os_error() {
                    // ENODEV: unmounted. ECONNABORTED: unmounted with requests on the way, or by
                    // force.
                    Some(libc::ENODEV | libc::ECONNABORTED) => return Ok(()),
                    // The kernel has withdrawn the request.
                    Some(libc::ENOENT | libc::EINTR | libc::EAGAIN) => continue,
                    _ => return Err(error),
                },
            };
            let request = &request[..length];
            if settler.as_ref().is_some_and(|settler| is_settlers(settler, request, device)) {
                continue;
            }
            let settler = settler.as_ref().filter(|_| changes(request));
            let is_answered = match settler.map_or(Ok(()), Settler::begin_change) {
                Ok(()) => {
                    let is_answered = handle(&**front_end, agreed, request, &mut buffers);
                    settler.inspect(|settler| settler.end_change());
                    is_answered
                }
                Err(error) => refuse(request, error, &mut buffers),
            };
            if is_answered && let Err(error) = (&**device).write_vectored(&buffers.parts().map(IoSlice::new)) {
                match error.raw_os_error() {
                    // The program that waited for the answer is gone.
                    Some(libc::ENOENT | libc::EINTR) => {}
                    Some(libc::ENODEV | libc::ECONNABORTED) => return Ok(()),
                    _ => log::warn!("the kernel did not take an answer: {error}"),
                }
            }
            front_end.rest();
        }
    }
}

/// Whether a request only makes umount wait, and gets its answer later.
fn is_settlers(settler: &Settler, request: &[u8], device: &Arc<File>) -> bool {
    let Ok((header, body)) = InHeader::read_from_prefix(request) else { return false };
    if header.opcode == opcode::INTERRUPT
        && let Ok((of, _)) = u64::read_from_prefix(body)
    {
        settler.interrupt(of);
    }
    settler.keeps(header.opcode, header.unique, header.pid, device)
}

/// Whether a request may change something.
fn changes(request: &[u8]) -> bool {
    let Ok((header, body)) = InHeader::read_from_prefix(request) else { return false };
    match header.opcode {
        // Where files are opened by requests, an open for writing may copy the file up.
        opcode::OPEN => {
            let flags = wire::OpenIn::read_from_prefix(body).map_or(0, |(open, _)| open.flags as i32);
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

/// Opens a second descriptor of the same mount, so that threads do not wait for each other in the
/// kernel.
fn clone(device: &File) -> io::Result<File> {
    let clone = File::options().read(true).write(true).open(DEVICE)?;
    let mut number = device.as_raw_fd() as u32;
    // SAFETY: the call reads one number of 32 bits, which outlives it.
    if unsafe { libc::ioctl(clone.as_raw_fd(), IOC_CLONE, &raw mut number) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(clone)
}
