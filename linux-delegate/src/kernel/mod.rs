//! The kernel's tables: who runs, and which scheme has which name.
//!
//! The rest is in `scheme`, a scheme's socket with its requests and answers, in `file`, descriptors
//! and the system calls on them, in `memory`, files that clients have mapped, and in `manager`, who
//! finds schemes by their names.
//!
//! Lock order: the turn of the manager, then one of the others. The two tables here and the lock of
//! each scheme and of each description are leaves. No one of them is held while another is taken,
//! and none while a description is dropped, because that sends a message to its scheme.

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

/// The identities of the living processes by pid, with the number of [`Caller`]s that carry the
/// pid.
static PROCESSES: Mutex<Option<HashMap<usize, (Credentials, usize)>>> = Mutex::new(None);

/// Locks also after another thread has panicked: no table is ever left half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The user and the group that a process acts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
}

/// A process as the kernel knows it; while one lives, [`credentials`] answers for its pid.
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

    /// How the kernel packs the two ids into the last argument of a request.
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

/// Who the process `pid` acts as, as the process manager of Redox tells it to a holder of its
/// capability.
pub(crate) fn credentials(pid: usize) -> Option<Credentials> {
    lock(&PROCESSES).as_ref()?.get(&pid).map(|(credentials, _)| *credentials)
}

/// Gives a scheme its name. EEXIST if the name is taken, EINVAL if it cannot be one.
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

/// The root of the scheme `name`. ENODEV for a name that nobody has.
pub(crate) fn root(name: &str) -> Result<Arc<Description>> {
    lock(&NAMESPACE).get(name).cloned().ok_or(Error::new(ENODEV))
}

/// Takes a name out of the namespace, as `unlink("/scheme/NAME")` does; until then the name of a
/// daemon that has ended is still taken. ENODEV for a name that nobody has.
pub fn unregister(name: &str) -> Result<()> {
    let root = lock(&NAMESPACE).remove(name);
    root.map(drop).ok_or(Error::new(ENODEV))
}

/// Interrupts the process `pid`, as a signal does, in the calls that it makes of the scheme `name`:
/// EINTR if the scheme cancels them. ENODEV for a name that nobody has.
pub fn interrupt(name: &str, pid: usize) -> Result<()> {
    root(name)?.scheme.interrupt(pid);
    Ok(())
}

/// Ends the service of the scheme `name`: its daemon reads the end of its socket, requests that it
/// had not read yet and all later ones answer ENODEV. The name stays. ENODEV for a name that nobody
/// has.
pub fn stop(name: &str) -> Result<()> {
    root(name)?.scheme.close();
    Ok(())
}
