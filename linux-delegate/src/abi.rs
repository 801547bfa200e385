//! The symbols through which `libredox` reaches the system: relibc's on Redox, these on Linux.
//!
//! They are the daemon's side of the kernel, so the descriptors here are the daemon's. They are its
//! scheme socket, the two capabilities, its namespace, and descriptors of schemes. No number is
//! used twice, because `redox-scheme` closes a descriptor again after the kernel has taken it with
//! an answer. All functions return what system calls do: a number, or a negated errno.
//!
//! Several daemons can live in one test process. So each thread belongs to a `Program`, and so do
//! the threads that it starts. All of them act as the same process, and change the namespace
//! together. A thread that no program has started is its own program, of root.
//!
//! `files` has the descriptors of other files, `pipe` has pipes, and `namespace` has paths from the
//! root of the system.
//!
//! Lock order: the lock of the table is a leaf. A removed object is dropped after the release of
//! the lock.

use std::cell::RefCell;
use std::collections::HashMap;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;

use libredox::protocol::{F_DUPFD_CLOEXEC, ProcCall, ProcMeta};
use syscall::data::NewFdParams;
use syscall::error::{EACCES, EBADF, EINVAL, EOPNOTSUPP, ESRCH, Error, Result, STR_ERROR};
use syscall::flag::{CallFlags, F_DUPFD, F_GETFD, F_GETFL, F_SETFD, F_SETFL, SchemeSocketCall};
use syscall::schemev2::{Cqe, NewFdFlags, Sqe};

use crate::client::Process;
use crate::kernel::{self, Caller, Credentials, Description, Fd, Scheme};

mod files;
mod namespace;
mod pipe;

pub use self::namespace::look_up;
pub use self::pipe::{Pipe, pipe};

/// The object behind a descriptor of a daemon.
#[derive(Clone)]
enum Object {
    /// The right to create scheme sockets.
    SchemeCreation,
    /// The right to ask for the ids of processes.
    ProcessCredentials,
    Socket(Arc<Socket>),
    /// A file of a scheme.
    File(Arc<Fd>),
    /// The place of paths from the root of the system: it reaches all schemes or none.
    Namespace(namespace::Reach),
    /// The end of a pipe for writes.
    Pipe(Arc<pipe::Writer>),
}

struct Socket {
    scheme: Arc<Scheme>,
    nonblock: AtomicBool,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.scheme.abandon();
    }
}

/// The first descriptor of the table. It is above all of Linux's, so that a confusion of the two is
/// EBADF.
const FIRST: usize = 1 << 30;

static OBJECTS: LazyLock<Mutex<HashMap<usize, Object>>> = LazyLock::new(Mutex::default);

/// The default process of the daemons: root, with the pid of this process.
static DAEMON: LazyLock<Arc<Caller>> =
    LazyLock::new(|| Caller::new(std::process::id() as usize, Credentials { uid: 0, gid: 0 }));

/// The parts that the threads of a daemon share.
struct Program {
    caller: Arc<Caller>,
    /// The descriptor of its namespace, after the first use.
    namespace: Mutex<Option<usize>>,
    maker: Mutex<Maker>,
}

/// The process that makes objects for a daemon, with the ids of their owners.
#[derive(Clone, Copy, Debug, Default)]
pub enum Maker {
    /// It makes every object.
    #[default]
    Lives,
    /// It makes `after` objects, and is killed at the next one, before or after it makes that.
    Dies {
        after: usize,
        makes_last: bool,
    },
    Gone,
}

impl Maker {
    /// Takes an order. Returns whether it makes the object, and whether it answers.
    fn take_order(&mut self) -> (bool, bool) {
        match self {
            Maker::Lives => (true, true),
            Maker::Dies { after: 0, makes_last } => {
                let makes = *makes_last;
                *self = Maker::Gone;
                (makes, false)
            }
            Maker::Dies { after, .. } => {
                *after -= 1;
                (true, true)
            }
            Maker::Gone => (false, false),
        }
    }
}

impl Program {
    fn new(caller: &Arc<Caller>) -> Arc<Self> {
        Arc::new(Self { caller: caller.clone(), namespace: Mutex::default(), maker: Mutex::default() })
    }
}

thread_local! {
    static PROGRAM: RefCell<Arc<Program>> = RefCell::new(Program::new(&DAEMON));
}

/// Makes the calling thread, and those that it starts, a program that acts as `process` from now
/// on. So its opens are opens of that process. Files that are open already keep their opener.
pub fn act_as(process: &Process) {
    PROGRAM.set(Program::new(process.caller()));
    thread::add_spawn_hook(|_| {
        let program = program();
        || PROGRAM.set(program)
    });
}

/// Gives the calling thread's program another maker.
pub fn employ(maker: Maker) {
    *program().maker.lock().unwrap_or_else(PoisonError::into_inner) = maker;
}

/// Returns the process that the calling thread acts as.
pub fn process() -> Process {
    Process::of(program().caller.clone())
}

fn program() -> Arc<Program> {
    PROGRAM.with_borrow(Arc::clone)
}

fn objects() -> MutexGuard<'static, HashMap<usize, Object>> {
    OBJECTS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn insert(object: Object) -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(FIRST);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    objects().insert(number, object);
    number
}

fn get(fd: usize) -> Result<Object> {
    objects().get(&fd).cloned().ok_or(Error::new(EBADF))
}

fn remove(fd: usize) -> Result<Object> {
    objects().remove(&fd).ok_or(Error::new(EBADF))
}

/// Returns the open file behind a descriptor, for the kernel to pass on.
fn description(fd: usize) -> Option<Arc<Description>> {
    match get(fd) {
        Ok(Object::File(file)) => Some(file.description().clone()),
        _ => None,
    }
}

/// As [`description`]. Also closes the descriptor.
fn take_description(fd: usize) -> Option<Arc<Description>> {
    let passed = description(fd)?;
    let removed = remove(fd);
    drop(removed);
    Some(passed)
}

/// Makes a slice of a system call's buffer. A null pointer is an empty one.
///
/// # Safety
///
/// Unless null, `base` must point to `len` readable bytes for as long as the result lives.
unsafe fn bytes<'a>(base: *const u8, len: usize) -> &'a [u8] {
    // SAFETY: as the caller promises.
    if base.is_null() { &[] } else { unsafe { slice::from_raw_parts(base, len) } }
}

/// Makes a mutable slice of a system call's buffer. A null pointer is an empty one.
///
/// # Safety
///
/// Unless null, `base` must point to `len` bytes that nothing else uses for as long as the result
/// lives.
unsafe fn bytes_mut<'a>(base: *mut u8, len: usize) -> &'a mut [u8] {
    // SAFETY: as the caller promises.
    if base.is_null() { &mut [] } else { unsafe { slice::from_raw_parts_mut(base, len) } }
}

/// Closes a descriptor.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_close_v1(fd: usize) -> usize {
    Error::mux(remove(fd).map(|object| {
        drop(object);
        0
    }))
}

/// Duplicates a descriptor. On the capability, creates a scheme socket. On a socket, makes a
/// descriptor of its scheme.
///
/// # Safety
///
/// `buf` must point to `len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_dup_v1(fd: usize, buf: *const u8, len: usize) -> usize {
    // SAFETY: as the caller promises.
    let how = unsafe { bytes(buf, len) };
    Error::mux(dup(fd, how))
}

fn dup(fd: usize, how: &[u8]) -> Result<usize> {
    let new = match get(fd)? {
        object if how.is_empty() => object,
        Object::SchemeCreation if how.starts_with(b"create-scheme") => {
            Object::Socket(Arc::new(Socket { scheme: Scheme::new(), nonblock: AtomicBool::new(false) }))
        }
        Object::Socket(socket) => {
            if how.len() < size_of::<NewFdParams>() {
                return Err(Error::new(EINVAL));
            }
            // SAFETY: the buffer is as long as the structure, and any bytes are valid for it.
            let params = unsafe { how.as_ptr().cast::<NewFdParams>().read_unaligned() };
            let internal = NewFdFlags::from_bits(params.internal_flags).ok_or(Error::new(EINVAL))?;
            let flags = params.flags as u32;
            let description = Description::new(socket.scheme.clone(), params.number, params.offset, flags, internal);
            Object::File(Arc::new(Fd::new(DAEMON.clone(), description)))
        }
        Object::File(file) => Object::File(Arc::new(file.dup(how)?)),
        Object::SchemeCreation | Object::ProcessCredentials | Object::Namespace(_) | Object::Pipe(_) => {
            return Err(Error::new(EINVAL));
        }
    };
    Ok(insert(new))
}

/// Reads requests from a scheme socket: all pending ones that fit. Returns 0 bytes after
/// [`kernel::stop`] has closed the socket. On a file, reads it.
///
/// # Safety
///
/// `dst_base` must point to `dst_len` bytes that nothing else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_read_v1(fd: usize, dst_base: *mut u8, dst_len: usize) -> usize {
    // SAFETY: as the caller promises. The bytes may be uninitialized; for requests they are only
    // written.
    let dst = unsafe { bytes_mut(dst_base, dst_len) };
    Error::mux(match get(fd) {
        Ok(Object::Socket(socket)) => read_requests(&socket, dst),
        Ok(Object::File(file)) => file.read(dst),
        Ok(_) => Err(Error::new(EBADF)),
        Err(error) => Err(error),
    })
}

fn read_requests(socket: &Socket, dst: &mut [u8]) -> Result<usize> {
    let max = dst.len() / size_of::<Sqe>();
    if max == 0 {
        return Err(Error::new(EINVAL));
    }
    let requests = socket.scheme.read(max, socket.nonblock.load(Ordering::Relaxed))?;
    for (request, slot) in requests.iter().zip(dst.chunks_exact_mut(size_of::<Sqe>())) {
        slot.copy_from_slice(request);
    }
    Ok(requests.len() * size_of::<Sqe>())
}

/// Writes answers to a scheme socket, until the kernel refuses one. If that is the first, returns
/// its error. On a file, writes it.
///
/// # Safety
///
/// `src_base` must point to `src_len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_write_v1(fd: usize, src_base: *const u8, src_len: usize) -> usize {
    // SAFETY: as the caller promises.
    let src = unsafe { bytes(src_base, src_len) };
    Error::mux(match get(fd) {
        Ok(Object::Socket(socket)) => write_answers(&socket.scheme, src),
        Ok(Object::File(file)) => file.write(src),
        Ok(Object::Pipe(pipe)) => pipe.write(src),
        Ok(_) => Err(Error::new(EBADF)),
        Err(error) => Err(error),
    })
}

fn write_answers(scheme: &Scheme, src: &[u8]) -> Result<usize> {
    let mut written = 0;
    for bytes in src.chunks_exact(size_of::<Cqe>()) {
        let mut cqe = Cqe::default();
        cqe.copy_from_slice(bytes);
        match scheme.write(&cqe, take_description) {
            Ok(()) => written += bytes.len(),
            Err(_) if written > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

/// File controls. The flags of a socket are Linux's, because `libredox` takes their names from
/// libc.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_fcntl_v0(fd: usize, cmd: usize, arg: usize) -> usize {
    Error::mux(fcntl(fd, cmd, arg))
}

fn fcntl(fd: usize, cmd: usize, arg: usize) -> Result<usize> {
    let object = get(fd)?;
    match (object, cmd) {
        (object, F_DUPFD | F_DUPFD_CLOEXEC) => Ok(insert(object)),
        (_, F_GETFD | F_SETFD) => Ok(0),
        (Object::File(file), _) => file.fcntl(cmd, arg),
        (Object::Socket(socket), F_SETFL) => {
            socket.nonblock.store(arg & libc::O_NONBLOCK as usize != 0, Ordering::Relaxed);
            Ok(0)
        }
        (Object::Socket(socket), F_GETFL) => {
            Ok(if socket.nonblock.load(Ordering::Relaxed) { libc::O_NONBLOCK as usize } else { 0 })
        }
        _ => Err(Error::new(EINVAL)),
    }
}

/// Makes a call on a descriptor. On a file, its scheme defines it. On the capability, it asks for
/// the ids of a process.
///
/// # Safety
///
/// `payload` must point to `payload_len` bytes that nothing else uses, `metadata` to `metadata_len`
/// readable words; either may be null if empty.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_sys_call_v0(
    fd: usize,
    payload: *mut u8,
    payload_len: usize,
    flags: usize,
    metadata: *const u64,
    metadata_len: usize,
) -> usize {
    // SAFETY: as the caller promises.
    let payload = unsafe { bytes_mut(payload, payload_len) };
    // SAFETY: as the caller promises.
    let metadata = if metadata.is_null() { &[] } else { unsafe { slice::from_raw_parts(metadata, metadata_len) } };
    Error::mux(sys_call(fd, payload, CallFlags::from_bits_retain(flags), metadata))
}

fn sys_call(fd: usize, payload: &mut [u8], flags: CallFlags, metadata: &[u64]) -> Result<usize> {
    if flags.contains(CallFlags::FD) {
        return pass_descriptors(get(fd)?, payload, flags, metadata);
    }
    match (get(fd)?, metadata) {
        (Object::File(file), &[kind, arg1, arg2, ..]) if flags.contains(CallFlags::STD_FS) => {
            file.std_fs_call(kind as u8, payload, arg1, arg2)
        }
        (Object::File(_), _) if flags.contains(CallFlags::STD_FS) => Err(Error::new(EINVAL)),
        (Object::File(file), metadata) => file.call(payload, metadata),
        (Object::ProcessCredentials, &[call, pid, ..]) if call == ProcCall::GetProcCredentials as u64 => {
            process_credentials(pid as usize, payload)
        }
        _ => Err(Error::new(EOPNOTSUPP)),
    }
}

/// On a scheme's socket, takes the descriptors of a request, and writes their numbers to the
/// payload. On a file, sends the descriptors with the numbers in the payload.
fn pass_descriptors(to: Object, payload: &mut [u8], flags: CallFlags, metadata: &[u64]) -> Result<usize> {
    let numbers = payload.chunks_exact_mut(size_of::<usize>());
    match (to, metadata) {
        (Object::Socket(socket), &[verb, tag]) if flags.contains(CallFlags::READ) => {
            if SchemeSocketCall::try_from_raw(verb as usize) != Some(SchemeSocketCall::ObtainFd) {
                return Err(Error::new(EINVAL));
            }
            let sent = socket.scheme.obtain(tag as u32)?;
            if sent.len() != numbers.len() {
                return Err(Error::new(EINVAL));
            }
            let count = sent.len();
            for (description, number) in sent.into_iter().zip(numbers) {
                let file = Object::File(Arc::new(Fd::new(DAEMON.clone(), description)));
                number.copy_from_slice(&insert(file).to_ne_bytes());
            }
            Ok(count)
        }
        (Object::File(file), metadata) if flags.contains(CallFlags::WRITE) => {
            let give = |number: usize| match flags.contains(CallFlags::FD_CLONE) {
                true => description(number),
                false => take_description(number),
            };
            let sent: Option<Vec<_>> =
                numbers.map(|number| give(usize::from_ne_bytes((&*number).try_into().ok()?))).collect();
            file.send_all(sent.ok_or(Error::new(EBADF))?, metadata)
        }
        (Object::Pipe(pipe), _) if flags.contains(CallFlags::WRITE) => pipe.send(
            numbers
                .map(|number| remove(usize::from_ne_bytes((&*number).try_into().map_err(|_| Error::new(EINVAL))?)))
                .collect::<Result<_>>()?,
        ),
        _ => Err(Error::new(EOPNOTSUPP)),
    }
}

/// Writes the ids of a process to `buf`, as a `ProcMeta`.
///
/// # Errors
///
/// - EINVAL: the buffer is too small.
/// - ESRCH: no process has the pid.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
#[allow(improper_ctypes_definitions, reason = "declared so by libredox, in Rust on both sides")]
pub unsafe extern "C" fn redox_get_proc_credentials_v1(cap_fd: usize, target_pid: usize, buf: &mut [u8]) -> usize {
    Error::mux(match get(cap_fd) {
        Ok(Object::ProcessCredentials) => process_credentials(target_pid, buf),
        Ok(_) => Err(Error::new(EACCES)),
        Err(error) => Err(error),
    })
}

fn process_credentials(pid: usize, buf: &mut [u8]) -> Result<usize> {
    let Credentials { uid, gid } = kernel::credentials(pid).ok_or(Error::new(ESRCH))?;
    let meta = ProcMeta {
        pid: pid as u32,
        pgid: pid as u32,
        ruid: uid,
        euid: uid,
        suid: uid,
        rgid: gid,
        egid: gid,
        sgid: gid,
        ..ProcMeta::default()
    };
    // SAFETY: the structure consists of 32-bit words alone, so it has no padding.
    let meta = unsafe { slice::from_raw_parts((&raw const meta).cast::<u8>(), size_of::<ProcMeta>()) };
    buf.get_mut(..meta.len()).ok_or(Error::new(EINVAL))?.copy_from_slice(meta);
    Ok(meta.len())
}

/// Writes the name of an errno to `dst`, at most `*dst_len` bytes of it, and its whole length to
/// `*dst_len`.
///
/// # Errors
///
/// - EINVAL: there is no such errno.
///
/// # Safety
///
/// `dst_len` must point to a length and `dst` to that many bytes that nothing else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_strerror_v1(dst: *mut u8, dst_len: *mut usize, error: u32) -> usize {
    let Some(text) = STR_ERROR.get(error as usize) else {
        return Error::mux(Err(Error::new(EINVAL)));
    };
    // SAFETY: as the caller promises.
    let dst = unsafe { bytes_mut(dst, dst_len.read()) };
    // SAFETY: as the caller promises.
    unsafe { dst_len.write(text.len()) };
    // The texts are ASCII, so each byte is a character.
    let length = text.len().min(dst.len());
    dst[..length].copy_from_slice(&text.as_bytes()[..length]);
    length
}
