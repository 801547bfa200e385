//! One call: from the kernel's queue entry to the response.
//!
//! `redox_scheme` decodes the entries of the kernel, and asserts its assumptions about them. But
//! the kernel passes on the arguments of clients. An `fstat` into a short buffer, or a lock beyond
//! the largest offset, would end the daemon. So this code checks every entry before it is decoded.
//! A panic of any other origin costs only the request in which it happens.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use crate::errno::{EINVAL, EIO, ENAMETOOLONG, ENOSYS, EOVERFLOW, ESRCH, Error, Result};
use log::{debug, error};
use redox_scheme::scheme::{Op, SchemeResponse, SchemeState};
use redox_scheme::{CallRequest, CallerCtx, Response};
use syscall::data::{Stat, StatVfs, TimeSpec};
use syscall::flag::{FsCall, StdFsCallKind};
use syscall::schemev2::{Opcode, Sqe, SqeFlags};

use super::OverlayScheme;
use super::kinds::kind_of;
use super::locks::{Owner, Record};
use super::path::PATH_MAX;
use crate::layer::Layer;

/// In the start of a lock: it belongs to the handle. In its length: it is exclusive.
const LOCK_FLAG: u64 = 1 << 63;
/// Two of the longest paths, and the zero between them.
const PATHS_MAX: u64 = 2 * PATH_MAX as u64 + 1;
/// The last byte that can be locked.
const LOCK_MAX: u64 = i64::MAX as u64;

/// Handles one call, and makes its answer for any input of the client. Counts it, if the scheme has
/// a channel.
pub fn answer<L: Layer>(call: CallRequest, scheme: &mut OverlayScheme<L>) -> Response {
    let begun = scheme.counted.as_ref().map(|counted| counted.begin(kind_of(queue_entry(&call))));
    let (response, errno) = handle(call, scheme);
    if let (Some(begun), Some(counted)) = (begun, &mut scheme.counted) {
        counted.end(begun, errno);
    }
    response
}

/// Returns the response to a call, and its errno, 0 for success.
fn handle<L: Layer>(call: CallRequest, scheme: &mut OverlayScheme<L>) -> (Response, i32) {
    let mut entry = *queue_entry(&call);
    let checked = check(&entry).and_then(|()| Ok((caller(&call, &entry, scheme)?, copy_paths(&mut entry)?)));
    // The paths must live until the answer.
    let (caller, _paths) = match checked {
        Ok(checked) => checked,
        Err(error) => {
            debug!("refused before decoding: {entry:?}: {error}");
            return (Response::new(Err(error.into()), call), error.errno);
        }
    };
    // SAFETY: the kernel keeps the buffers of a request mapped until the answer, which takes the
    // operation. `check` has checked their sizes, alignments and texts.
    let Some(mut op) = (unsafe { Op::from_sqe_unchecked(&entry) }) else {
        return (Response::err(ENOSYS, call), ENOSYS);
    };
    let handled = catch_unwind(AssertUnwindSafe(|| match about_locks(&entry) {
        Some(kind) => lock(&call, &entry, kind, caller.pid, scheme).map_err(syscall::Error::from).into(),
        // The state would hold only locks, and `locks` handles those.
        None => op.handle_sync_dont_consume(&caller, scheme, &mut SchemeState::new()),
    }));
    let notify = entry.opcode == Opcode::StdFsCall as u8 && scheme.tree().locks.lock().are_held(entry.args[0] as usize);
    debug!("uid {} gid {} pid {}: {op:?}: {handled:?}", caller.uid, caller.gid, caller.pid);
    match handled {
        Ok(SchemeResponse::Regular(result)) if notify => {
            (Response::new_notify_on_detach(result, op), errno_of(&result))
        }
        Ok(SchemeResponse::Regular(result) | SchemeResponse::RegularAndNotifyOnDetach(result)) => {
            (Response::new(result, op), errno_of(&result))
        }
        Ok(SchemeResponse::Opened(result)) => {
            let errno = errno_of(&result);
            (Response::open_dup_like(result, op), errno)
        }
        Err(_) => {
            error!("panicked while handling {op:?}");
            (Response::err(EIO, op), EIO)
        }
    }
}

/// Returns the errno of a result, 0 for success.
fn errno_of<T>(result: &syscall::Result<T>) -> i32 {
    result.as_ref().err().map_or(0, |error| error.errno)
}

/// Whether a call asks for the token of a socket that was bound here.
pub fn is_connect(call: &CallRequest) -> bool {
    let entry = queue_entry(call);
    let is_for_one = !entry.sqe_flags.contains(SqeFlags::MULTIPLE_IDS);
    entry.opcode == Opcode::Call as u8 && is_for_one && entry.args[3] == FsCall::Connect as u64
}

/// Returns the handle of a call.
pub(super) fn target(call: &CallRequest) -> usize {
    queue_entry(call).args[0] as usize
}

/// Writes `told` to the start of the caller's buffer. Returns its length in bytes.
///
/// # Errors
///
/// - EINVAL: it does not fit.
pub fn give(call: &CallRequest, told: &[u8]) -> Result<usize> {
    let [_, buffer, len, ..] = queue_entry(call).args;
    require(told.len() as u64 <= len)?;
    // SAFETY: the kernel keeps this many bytes mapped and writable until the answer. The write uses
    // no reference, as the client may write there too.
    unsafe { ptr::copy_nonoverlapping(told.as_ptr(), buffer as *mut u8, told.len()) };
    Ok(told.len())
}

/// Returns the kernel's queue entry of this call.
fn queue_entry(call: &CallRequest) -> &Sqe {
    const { assert!(size_of::<CallRequest>() == size_of::<Sqe>() && align_of::<CallRequest>() == align_of::<Sqe>()) };
    // SAFETY: CallRequest and the Request in it are `repr(transparent)` around the Sqe that was
    // read from the socket.
    unsafe { &*ptr::from_ref(call).cast() }
}

/// Returns the caller of a call. A StdFsCall does not name it: its second argument, which the
/// client chooses, is in the place of the ids. The requests that need the ids take those of the
/// handle's opener. But the scheme has one unlinkat for both kinds of calls, so that gets the ids
/// here.
///
/// # Errors
///
/// - EBADF: the handle is not open.
/// - EACCES: the handle is that of the scheme, which no client opened.
fn caller<L: Layer>(call: &CallRequest, entry: &Sqe, scheme: &OverlayScheme<L>) -> Result<CallerCtx> {
    let mut caller = call.caller();
    let is_unlinkat = StdFsCallKind::try_from_raw(entry.args[3] as u8) == Some(StdFsCallKind::Unlinkat);
    if entry.opcode == Opcode::StdFsCall as u8 && is_unlinkat {
        let opener = scheme.tree().opener(entry.args[0] as usize)?;
        (caller.uid, caller.gid) = (opener.uid, opener.gid);
    }
    Ok(caller)
}

/// Returns the kind of a call about locks: lock, unlock or get.
fn about_locks(entry: &Sqe) -> Option<StdFsCallKind> {
    let kind = StdFsCallKind::try_from_raw(entry.args[3] as u8).filter(|_| entry.opcode == Opcode::StdFsCall as u8);
    kind.filter(|kind| matches!(kind, StdFsCallKind::Lock | StdFsCallKind::Unlock | StdFsCallKind::GetLock))
}

/// Handles a call about locks, of the process `pid` or of a handle.
///
/// GetLock reports a lock of another owner in the range, even if both are shared, and the pid of
/// its process. relibc does not define which lock it expects.
///
/// # Errors
///
/// - EBADF: the handle is not open.
/// - EWOULDBLOCK: a lock of another owner conflicts.
/// - ENOLCK: there are too many locks.
/// - ESRCH: GetLock finds no lock.
fn lock<L: Layer>(
    call: &CallRequest,
    entry: &Sqe,
    kind: StdFsCallKind,
    pid: usize,
    scheme: &OverlayScheme<L>,
) -> Result<usize> {
    let [id, _, _, _, start, length] = entry.args;
    let id = id as usize;
    // Before the look-up of the handle: so the close of the handle releases a lock that this call
    // takes.
    let tree = scheme.tree();
    let mut locks = tree.locks.lock();
    let open = tree.handles.open(id)?;
    let owner = if start & LOCK_FLAG == 0 { Owner::Process(pid) } else { Owner::Handle(id) };
    let (start, exclusive, length) = (start & !LOCK_FLAG, length & LOCK_FLAG != 0, length & !LOCK_FLAG);
    let end = if length == 0 { LOCK_MAX + 1 } else { start + length };
    let record = Record { file: open.node().id(), owner, user: open.opener.uid, bytes: start..end, exclusive };
    match kind {
        StdFsCallKind::Lock => locks.lock(id, &record).map(|()| 0),
        StdFsCallKind::Unlock => locks.unlock(&record).map(|()| 0),
        _ => {
            let found = locks.others(&record).next().ok_or(Error::new(ESRCH))?;
            let Range { start, end } = found.bytes;
            let length = if end > LOCK_MAX { 0 } else { end - start };
            let words = [start, length | if found.exclusive { LOCK_FLAG } else { 0 }];
            give(call, words.map(u64::to_ne_bytes).as_flattened())?;
            Ok(if let Owner::Process(pid) = found.owner { pid } else { 0 })
        }
    }
}

/// Checks that an entry can be decoded and handled.
///
/// # Errors
///
/// - EINVAL: a buffer or a path does not suit the call.
/// - EOVERFLOW: a lock reaches beyond the largest offset.
fn check(entry: &Sqe) -> Result<()> {
    let [_, buffer, len, kind, start, length] = entry.args;
    match Opcode::try_from_raw(entry.opcode) {
        Some(Opcode::OpenAt | Opcode::UnlinkAt | Opcode::Flink | Opcode::Frename) => {
            // SAFETY: the kernel keeps this path mapped until the answer. An empty one has an
            // address too.
            let path = unsafe { std::slice::from_raw_parts(buffer as *const u8, len as usize) };
            require(str::from_utf8(path).is_ok())
        }
        Some(Opcode::Fstat) => require(len as usize >= size_of::<Stat>() && is_aligned::<Stat>(buffer)),
        Some(Opcode::Fstatvfs) => require(len as usize >= size_of::<StatVfs>() && is_aligned::<StatVfs>(buffer)),
        Some(Opcode::Futimens) => require(len as usize == size_of::<[TimeSpec; 2]>() && is_aligned::<TimeSpec>(buffer)),
        Some(Opcode::StdFsCall) => match StdFsCallKind::try_from_raw(kind as u8) {
            // The handler checks their sizes.
            Some(StdFsCallKind::Fstat) => require(is_aligned::<Stat>(buffer)),
            Some(StdFsCallKind::Fstatvfs) => require(is_aligned::<StatVfs>(buffer)),
            Some(StdFsCallKind::Futimens) => require(is_aligned::<TimeSpec>(buffer)),
            Some(kind @ (StdFsCallKind::Lock | StdFsCallKind::Unlock | StdFsCallKind::GetLock)) => {
                require(!entry.sqe_flags.contains(SqeFlags::MULTIPLE_IDS))?;
                let start = start & !LOCK_FLAG;
                let length = if kind == StdFsCallKind::Unlock { length } else { length & !LOCK_FLAG };
                if length != 0 && length - 1 > LOCK_MAX - start {
                    return Err(Error::new(EOVERFLOW));
                }
                if kind == StdFsCallKind::GetLock {
                    require(len as usize == size_of::<[u64; 2]>() && is_aligned::<[u64; 2]>(buffer))?;
                }
                Ok(())
            }
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Copies the paths of a standard call, and makes the entry name the copy. The kernel copies the
/// paths of other requests itself. But a payload that fills a page is the memory of the client, and
/// could change after the check for UTF-8.
///
/// # Errors
///
/// - ENAMETOOLONG: the paths are too long.
fn copy_paths(entry: &mut Sqe) -> Result<Vec<u8>> {
    let [_, payload, len, kind, ..] = entry.args;
    let kind = StdFsCallKind::try_from_raw(kind as u8);
    let has_paths = matches!(kind, Some(StdFsCallKind::Unlinkat | StdFsCallKind::Frenameat | StdFsCallKind::Flinkat));
    if entry.opcode != Opcode::StdFsCall as u8 || !has_paths {
        return Ok(Vec::new());
    }
    if len > PATHS_MAX {
        return Err(Error::new(ENAMETOOLONG));
    }
    let mut paths = vec![0; len as usize];
    // SAFETY: the kernel keeps the payload mapped until the answer. The read uses no reference, as
    // the client may write there.
    unsafe { ptr::copy_nonoverlapping(payload as *const u8, paths.as_mut_ptr(), paths.len()) };
    entry.args[1] = paths.as_ptr() as u64;
    Ok(paths)
}

fn require(condition: bool) -> Result<()> {
    if condition { Ok(()) } else { Err(Error::new(EINVAL)) }
}

fn is_aligned<T>(address: u64) -> bool {
    address.is_multiple_of(align_of::<T>() as u64)
}
