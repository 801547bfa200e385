//! One call: from the kernel's queue entry to the response.
//!
//! `redox_scheme` decodes what the kernel passes on and asserts what it takes for granted about it,
//! but the kernel passes on what clients say: an `fstat` into a short buffer or a lock beyond the
//! largest offset would end the daemon. So every entry is checked before it is decoded. A panic of
//! any other origin costs the request during which it happens, no more.

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
use super::locks::{Owner, Record};
use super::path::PATH_MAX;
use crate::layer::Layer;

/// The bit that makes a lock's start one of a handle's own lock, and a lock's length an exclusive
/// one's.
const LOCK_FLAG: u64 = 1 << 63;
/// Two of the longest paths, and the zero between them.
const PATHS_MAX: u64 = 2 * PATH_MAX as u64 + 1;
/// The last byte that can be locked.
const LOCK_MAX: u64 = i64::MAX as u64;

/// Handles one call and answers it, whatever the client sent.
pub fn answer<L: Layer>(call: CallRequest, scheme: &mut OverlayScheme<L>) -> Response {
    let mut entry = *queue_entry(&call);
    let checked = check(&entry).and_then(|()| Ok((caller(&call, &entry, scheme)?, copy_paths(&mut entry)?)));
    // The paths are kept until the answer.
    let (caller, _paths) = match checked {
        Ok(checked) => checked,
        Err(error) => {
            debug!("refused before decoding: {entry:?}: {error}");
            return Response::new(Err(error.into()), call);
        }
    };
    // SAFETY: the kernel keeps the buffers of a request mapped until it is answered, which takes
    // the operation; their sizes, alignments and texts are as `check` says.
    let Some(mut op) = (unsafe { Op::from_sqe_unchecked(&entry) }) else {
        return Response::err(ENOSYS, call);
    };
    let handled = catch_unwind(AssertUnwindSafe(|| match about_locks(&entry) {
        Some(kind) => lock(&call, &entry, kind, caller.pid, scheme).map_err(syscall::Error::from).into(),
        // Nothing is kept in the state but locks.
        None => op.handle_sync_dont_consume(&caller, scheme, &mut SchemeState::new()),
    }));
    let notify = entry.opcode == Opcode::StdFsCall as u8 && scheme.locks.lock().are_held(entry.args[0] as usize);
    debug!("uid {} gid {} pid {}: {op:?}: {handled:?}", caller.uid, caller.gid, caller.pid);
    match handled {
        Ok(SchemeResponse::Regular(result)) if notify => Response::new_notify_on_detach(result, op),
        Ok(SchemeResponse::Regular(result) | SchemeResponse::RegularAndNotifyOnDetach(result)) => {
            Response::new(result, op)
        }
        Ok(SchemeResponse::Opened(result)) => Response::open_dup_like(result, op),
        Err(_) => {
            error!("panicked while handling {op:?}");
            Response::err(EIO, op)
        }
    }
}

/// Whether a call asks for the token of a socket that was bound here.
pub fn is_connect(call: &CallRequest) -> bool {
    let entry = queue_entry(call);
    let is_for_one = !entry.sqe_flags.contains(SqeFlags::MULTIPLE_IDS);
    entry.opcode == Opcode::Call as u8 && is_for_one && entry.args[3] == FsCall::Connect as u64
}

/// The handle that a call is for.
pub(super) fn target(call: &CallRequest) -> usize {
    queue_entry(call).args[0] as usize
}

/// Writes what is told to the start of the caller's buffer, and answers how many bytes it is.
/// EINVAL if it does not fit.
pub fn give(call: &CallRequest, told: &[u8]) -> Result<usize> {
    let [_, buffer, len, ..] = queue_entry(call).args;
    require(told.len() as u64 <= len)?;
    // SAFETY: the kernel mapped this many bytes for us to write to until we answer. They are
    // written through no reference, as the client may too.
    unsafe { ptr::copy_nonoverlapping(told.as_ptr(), buffer as *mut u8, told.len()) };
    Ok(told.len())
}

/// What the kernel put into the queue for this call.
fn queue_entry(call: &CallRequest) -> &Sqe {
    const { assert!(size_of::<CallRequest>() == size_of::<Sqe>() && align_of::<CallRequest>() == align_of::<Sqe>()) };
    // SAFETY: CallRequest and the Request in it are `repr(transparent)` around the Sqe that was
    // read from the socket.
    unsafe { &*ptr::from_ref(call).cast() }
}

/// Who asks. A StdFsCall does not say: its second argument, which is the client's choice, stands
/// where the ids should be. Those that need them ask the handle for its opener, but an unlinkat is
/// one operation to the scheme, whichever way it came, so it gets its ids here. EBADF, or EACCES
/// for the handle of the scheme, which nobody opened.
fn caller<L: Layer>(call: &CallRequest, entry: &Sqe, scheme: &OverlayScheme<L>) -> Result<CallerCtx> {
    let mut caller = call.caller();
    let is_unlinkat = StdFsCallKind::try_from_raw(entry.args[3] as u8) == Some(StdFsCallKind::Unlinkat);
    if entry.opcode == Opcode::StdFsCall as u8 && is_unlinkat {
        let opener = scheme.opener(entry.args[0] as usize)?;
        (caller.uid, caller.gid) = (opener.uid, opener.gid);
    }
    Ok(caller)
}

/// Whether a call asks for a lock, gives one back or asks about one, and which.
fn about_locks(entry: &Sqe) -> Option<StdFsCallKind> {
    let kind = StdFsCallKind::try_from_raw(entry.args[3] as u8).filter(|_| entry.opcode == Opcode::StdFsCall as u8);
    kind.filter(|kind| matches!(kind, StdFsCallKind::Lock | StdFsCallKind::Unlock | StdFsCallKind::GetLock))
}

/// Handles a call about locks, of the process `pid` or of a handle. EBADF, ENOLCK; EWOULDBLOCK for
/// a lock that is not free.
///
/// Who asks about a lock is told one of another's in the range, also if both are shared, and the
/// pid of its process: relibc does not say which it means to get. ESRCH if there is none.
fn lock<L: Layer>(
    call: &CallRequest,
    entry: &Sqe,
    kind: StdFsCallKind,
    pid: usize,
    scheme: &OverlayScheme<L>,
) -> Result<usize> {
    let [id, _, _, _, start, length] = entry.args;
    let id = id as usize;
    // Before it is asked for the handle: who closes that releases what is locked afterwards.
    let mut locks = scheme.locks.lock();
    let open = scheme.handles.open(id)?;
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

/// Whether an entry can be decoded and handled. EINVAL, or EOVERFLOW for a lock that reaches too
/// far.
fn check(entry: &Sqe) -> Result<()> {
    let [_, buffer, len, kind, start, length] = entry.args;
    match Opcode::try_from_raw(entry.opcode) {
        Some(Opcode::OpenAt | Opcode::UnlinkAt | Opcode::Flink | Opcode::Frename) => {
            // SAFETY: the kernel mapped this path for us until we answer; an empty one has an
            // address too.
            let path = unsafe { std::slice::from_raw_parts(buffer as *const u8, len as usize) };
            require(str::from_utf8(path).is_ok())
        }
        Some(Opcode::Fstat) => require(len as usize >= size_of::<Stat>() && is_aligned::<Stat>(buffer)),
        Some(Opcode::Fstatvfs) => require(len as usize >= size_of::<StatVfs>() && is_aligned::<StatVfs>(buffer)),
        Some(Opcode::Futimens) => require(len as usize == size_of::<[TimeSpec; 2]>() && is_aligned::<TimeSpec>(buffer)),
        Some(Opcode::StdFsCall) => match StdFsCallKind::try_from_raw(kind as u8) {
            // Their sizes are checked when they are handled.
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

/// Takes the paths of a standard call out of the client's reach, which the entry then names in
/// their place. Paths of other requests are copies that the kernel made, but a payload is the
/// client's own memory where it fills a page, and could change after it was found to be text.
/// ENAMETOOLONG.
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
    // SAFETY: the kernel mapped the payload for us until we answer. It is read through no
    // reference, as the client may write to it.
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
