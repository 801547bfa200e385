//! The symbols about paths from the root of the system and the namespaces in which they are looked
//! up. All but the change from one namespace to another is asked of the manager.

use std::sync::{Arc, PoisonError};

use syscall::error::{EBADF, EINVAL, ENODEV, EOPNOTSUPP, EPERM, Error, Result};

use super::{Object, bytes, get, insert, process, program, remove};
use crate::kernel::{self, manager};

/// Which schemes are found in a namespace.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    All,
    Nothing,
}

/// The descriptor of the namespace in which the calling program is.
fn current() -> usize {
    let program = program();
    let mut namespace = program.namespace.lock().unwrap_or_else(PoisonError::into_inner);
    *namespace.get_or_insert_with(|| insert(Object::Namespace(Reach::All)))
}

/// What is found in a namespace. EBADF for a descriptor of anything else.
fn reach(fd: usize) -> Result<Reach> {
    match get(fd)? {
        Object::Namespace(reach) => Ok(reach),
        _ => Err(Error::new(EBADF)),
    }
}

/// Asks the manager for something in a namespace where all schemes are. ENODEV in the null
/// namespace.
fn ask<T>(namespace: usize, request: impl FnOnce() -> Result<T>) -> Result<T> {
    manager::ask(|| match reach(namespace)? {
        Reach::All => request(),
        Reach::Nothing => Err(Error::new(ENODEV)),
    })
}

/// Looks up a path that only Linux knows: in the null namespace the manager is asked, and has
/// nothing (ENODEV). For tests that stand between the standard library and libc.
pub fn look_up() -> Result<()> {
    ask(current(), || Ok(()))
}

/// Opens one of the two capabilities or a file of a scheme, as relibc's `open`; ENODEV in the null
/// namespace.
///
/// # Safety
/// `path_base` must point to `path_len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_open_v1(path_base: *const u8, path_len: usize, flags: u32, mode: u16) -> usize {
    // SAFETY: as promised by the caller.
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

/// The namespace that the program is in.
///
/// # Safety
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_get_ns_v0() -> usize {
    current()
}

/// Makes a namespace with some of the schemes of the program's: here with none, as only a list
/// without names is taken. EOPNOTSUPP for another, EINVAL for flags.
///
/// # Safety
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_mkns_v1(_names: *const libc::iovec, num_names: usize, flags: u32) -> usize {
    Error::mux(match (num_names, flags) {
        (0, 0) => manager::ask(|| Ok(insert(Object::Namespace(Reach::Nothing)))),
        (_, 0) => Err(Error::new(EOPNOTSUPP)),
        _ => Err(Error::new(EINVAL)),
    })
}

/// Enters a namespace with all threads of the program, and takes its descriptor. Answers the
/// descriptor of the one that was left, which the caller has now; EPERM if there was none, as
/// relibc does.
///
/// # Safety
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_setns_v0(fd: usize) -> usize {
    let program = program();
    let left = program.namespace.lock().unwrap_or_else(PoisonError::into_inner).replace(fd);
    left.unwrap_or(Error::mux(Err(Error::new(EPERM))))
}

/// Enters the null namespace (`ens` 0) with all threads of the program. EINVAL for any other.
///
/// # Safety
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

/// Gives the scheme whose root is `cap_fd` a name, and takes that descriptor. EEXIST if the name is
/// taken, ENODEV in the null namespace.
///
/// # Safety
/// `name_base` must point to `name_len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_register_scheme_to_ns_v0(
    ns_fd: usize,
    name_base: *const u8,
    name_len: usize,
    cap_fd: usize,
) -> usize {
    // SAFETY: as promised by the caller.
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

/// Removes the name of a scheme, given as its path. ENODEV if nobody has it and in the null
/// namespace, EINVAL for any other path.
///
/// # Safety
/// `path` must point to `len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn played_unlink(path: *const u8, len: usize) -> usize {
    // SAFETY: as promised by the caller.
    let path = unsafe { bytes(path, len) };
    let name = str::from_utf8(path).ok().and_then(|path| path.strip_prefix("/scheme/"));
    Error::mux(name.ok_or(Error::new(EINVAL)).and_then(|name| ask(current(), || kernel::unregister(name).map(|()| 0))))
}
