//! The kernel's tables: the processes, and the names of schemes.
//!
//! The rest is in other files. `scheme` has the socket of a scheme with its requests and answers.
//! `file` has descriptors and their system calls, and `memory` mapped files. `manager` finds
//! schemes by their names.
//!
//! Lock order: the turn of the manager, then one of the others. The two tables here, and the lock
//! of each scheme and of each description, are leaves: no thread takes one of them under another.
//! No thread drops a description under one, because that sends a message to its scheme.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redox_path::RedoxScheme;
use syscall::error::{EEXIST, EINVAL, ENODEV, Error, Result};

mod file;
pub mod manager;
mod memory;
mod scheme;

pub use file::{Begun, Fd};
pub(crate) use file::{Description, PATH_MAX};
pub use memory::Mapping;
pub(crate) use scheme::{Answer, Scheme};

/// Names of schemes, each with the descriptor of its root.
static NAMESPACE: Mutex<BTreeMap<String, Arc<Description>>> = Mutex::new(BTreeMap::new());

/// The ids of the living processes by pid, with the number of [`Caller`]s that have the pid.
static PROCESSES: Mutex<Option<HashMap<usize, (Credentials, usize)>>> = Mutex::new(None);

/// Takes a lock even after a panic of another thread: no table is ever left half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The user and the group of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
}

/// A process of the kernel. While it lives, [`credentials`] returns its ids.
#[derive(Debug)]
pub(crate) struct Caller {
    pub pid: usize,
    pub credentials: Credentials,
}

impl Caller {
    pub fn new(pid: usize, credentials: Credentials) -> Arc<Self> {
        let mut processes = lock(&PROCESSES);
        let entry = processes.get_or_insert_default().entry(pid).or_insert((credentials, 0));
        *entry = (credentials, entry.1 + 1);
        Arc::new(Self { pid, credentials })
    }

    /// Returns both ids as the last argument of a request has them.
    pub fn packed(&self) -> u64 {
        u64::from(self.credentials.uid) | (u64::from(self.credentials.gid) << 32)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut processes = lock(&PROCESSES);
        let processes = processes.get_or_insert_default();
        if let Some((_, count)) = processes.get_mut(&self.pid) {
            *count -= 1;
            if *count == 0 {
                processes.remove(&self.pid);
            }
        }
    }
}

/// Returns the ids of the process `pid`. On Redox the process manager tells them to a holder of its
/// capability.
pub(crate) fn credentials(pid: usize) -> Option<Credentials> {
    lock(&PROCESSES).as_ref()?.get(&pid).map(|(credentials, _)| *credentials)
}

/// Registers the name of a scheme.
///
/// # Errors
///
/// - EEXIST: the name is taken.
/// - EINVAL: the name is not valid.
pub(crate) fn register(name: &str, root: Arc<Description>) -> Result<()> {
    if name.is_empty() || RedoxScheme::new(name).is_none() {
        return Err(Error::new(EINVAL));
    }
    let mut names = lock(&NAMESPACE);
    if names.contains_key(name) {
        return Err(Error::new(EEXIST));
    }
    names.insert(name.to_owned(), root);
    Ok(())
}

/// Returns the root of the scheme `name`.
///
/// # Errors
///
/// - ENODEV: the name does not exist.
pub(crate) fn root(name: &str) -> Result<Arc<Description>> {
    lock(&NAMESPACE).get(name).cloned().ok_or(Error::new(ENODEV))
}

/// Removes a name, as `unlink("/scheme/NAME")` does. Until then the name of an ended daemon is
/// taken.
///
/// # Errors
///
/// - ENODEV: the name does not exist.
pub fn unregister(name: &str) -> Result<()> {
    let root = lock(&NAMESPACE).remove(name);
    root.map(drop).ok_or(Error::new(ENODEV))
}

/// Interrupts the process `pid`, as a signal does, in its calls of the scheme `name`. The calls
/// return EINTR if the scheme cancels them.
///
/// # Errors
///
/// - ENODEV: the name does not exist.
pub fn interrupt(name: &str, pid: usize) -> Result<()> {
    root(name)?.scheme.interrupt(pid);
    Ok(())
}

/// Ends the service of the scheme `name`. Its daemon reads the end of its socket. Requests that it
/// has not read, and all later ones, return ENODEV. The name stays.
///
/// # Errors
///
/// - ENODEV: the name does not exist.
pub fn stop(name: &str) -> Result<()> {
    root(name)?.scheme.close();
    Ok(())
}
