//! The symbols for paths from the root of the system, and for the namespaces that resolve them. All
//! calls ask the manager, except the change to another namespace.

use std::sync::{Arc, PoisonError};

use syscall::error::{EBADF, EINVAL, ENODEV, EOPNOTSUPP, EPERM, Error, Result};

use super::{Object, bytes, get, insert, process, program, remove};
use crate::kernel::{self, manager};

/// The schemes that a namespace reaches.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    All,
    Nothing,
}

/// Returns the descriptor of the namespace of the calling program.
fn current() -> usize {
    let program = program();
    let mut namespace = program.namespace.lock().unwrap_or_else(PoisonError::into_inner);
    *namespace.get_or_insert_with(|| insert(Object::Namespace(Reach::All)))
}

/// Returns the reach of a namespace.
///
/// # Errors
///
/// - EBADF: the descriptor is no namespace.
fn reach(fd: usize) -> Result<Reach> {
    match get(fd)? {
        Object::Namespace(reach) => Ok(reach),
        _ => Err(Error::new(EBADF)),
    }
}

/// Makes a request to the manager in a namespace that reaches all schemes.
///
/// # Errors
///
/// - ENODEV: the namespace is the null namespace.
fn ask<T>(namespace: usize, request: impl FnOnce() -> Result<T>) -> Result<T> {
    manager::ask(|| match reach(namespace)? {
        Reach::All => request(),
        Reach::Nothing => Err(Error::new(ENODEV)),
    })
}

/// Looks up a path that only Linux knows, for tests that are between the standard library and libc.
///
/// # Errors
///
/// - ENODEV: the program is in the null namespace. The manager has nothing there.
pub fn look_up() -> Result<()> {
    ask(current(), || Ok(()))
}

/// Opens one of the two capabilities or a file of a scheme, as relibc's `open` does.
///
/// # Errors
///
/// - ENODEV: the program is in the null namespace.
///
/// # Safety
///
/// `path_base` must point to `path_len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_open_v1(path_base: *const u8, path_len: usize, flags: u32, mode: u16) -> usize {
    // SAFETY: as the caller promises.
    let path = unsafe { bytes(path_base, path_len) };
    Error::mux(open(path, flags, mode).map(insert))
}

fn open(path: &[u8], flags: u32, mode: u16) -> Result<Object> {
    match path {
        b"/scheme/namespace/scheme-creation-cap" => ask(current(), || Ok(Object::SchemeCreation)),
        b"/scheme/proc/proc-creds-capability" => ask(current(), || Ok(Object::ProcessCredentials)),
        _ if reach(current())? == Reach::All => {
            let opened = process().with_umask(0).open(path, flags as usize, u32::from(mode))?;
            Ok(Object::File(Arc::new(opened)))
        }
        _ => ask(current(), || Err(Error::new(ENODEV))),
    }
}

/// Returns the namespace of the program.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_get_ns_v0() -> usize {
    current()
}

/// Makes a namespace with some of the program's schemes. This simulator takes only a list without
/// names.
///
/// # Errors
///
/// - EINVAL: there are flags.
/// - EOPNOTSUPP: the list has names.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_mkns_v1(_names: *const libc::iovec, num_names: usize, flags: u32) -> usize {
    Error::mux(match (num_names, flags) {
        (0, 0) => manager::ask(|| Ok(insert(Object::Namespace(Reach::Nothing)))),
        (_, 0) => Err(Error::new(EOPNOTSUPP)),
        _ => Err(Error::new(EINVAL)),
    })
}

/// Enters a namespace with all threads of the program, and takes its descriptor. Returns the
/// descriptor of the old namespace, which the caller now owns.
///
/// # Errors
///
/// - EPERM: there was no namespace before. relibc returns the same.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_setns_v0(fd: usize) -> usize {
    let program = program();
    let left = program.namespace.lock().unwrap_or_else(PoisonError::into_inner).replace(fd);
    left.unwrap_or(Error::mux(Err(Error::new(EPERM))))
}

/// Enters the null namespace (`ens` 0) with all threads of the program.
///
/// # Errors
///
/// - EINVAL: `ens` is another number.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_setrens_v1(_rns: usize, ens: usize) -> usize {
    if ens != 0 {
        return Error::mux(Err(Error::new(EINVAL)));
    }
    let empty = manager::ask(|| insert(Object::Namespace(Reach::Nothing)));
    let program = program();
    let left = program.namespace.lock().unwrap_or_else(PoisonError::into_inner).replace(empty);
    drop(left.map(remove));
    0
}

/// Registers a name for the scheme with the root `cap_fd`, and takes that descriptor.
///
/// # Errors
///
/// - EEXIST: the name is taken.
/// - ENODEV: the namespace is the null namespace.
///
/// # Safety
///
/// `name_base` must point to `name_len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_register_scheme_to_ns_v0(
    ns_fd: usize,
    name_base: *const u8,
    name_len: usize,
    cap_fd: usize,
) -> usize {
    // SAFETY: as the caller promises.
    let name = unsafe { bytes(name_base, name_len) };
    Error::mux(register(ns_fd, name, cap_fd).map(|()| 0))
}

fn register(ns_fd: usize, name: &[u8], cap_fd: usize) -> Result<()> {
    let Object::File(root) = get(cap_fd)? else {
        return Err(Error::new(EBADF));
    };
    let name = str::from_utf8(name).map_err(|_| Error::new(EINVAL))?;
    ask(ns_fd, || kernel::register(name, root.description().clone()))?;
    drop(remove(cap_fd));
    Ok(())
}

/// Removes the name of a scheme, given as its path.
///
/// # Errors
///
/// - EINVAL: the path names no scheme.
/// - ENODEV: the name does not exist, or the program is in the null namespace.
///
/// # Safety
///
/// `path` must point to `len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn played_unlink(path: *const u8, len: usize) -> usize {
    // SAFETY: as the caller promises.
    let path = unsafe { bytes(path, len) };
    let name = str::from_utf8(path).ok().and_then(|path| path.strip_prefix("/scheme/"));
    Error::mux(name.ok_or(Error::new(EINVAL)).and_then(|name| ask(current(), || kernel::unregister(name).map(|()| 0))))
}
