//! The locks that hold layers, and how they outlive their process.
//!
//! A lock of flock(2) belongs to an open file, not to a process. So the next daemon of a mount gets
//! the open files of the locks, and no other process can lock the layers in between. It finds among
//! them the one for an object that it is about to lock.
//!
//! The lock of each list is a leaf.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::convert::error;
use crate::errno::{EWOULDBLOCK, Error};
use crate::layer::Result;

/// The locks of this process.
static HELD: Mutex<Vec<Weak<OwnedFd>>> = Mutex::new(Vec::new());
/// The locks of the process before this one that no layer has taken over yet.
static INHERITED: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// A lock of a layer. The drop unlocks it, and does not only close the descriptor. A program that
/// this process starts has the descriptor too, until execve(2), and would keep the lock.
pub struct LayerLock(Arc<OwnedFd>);

impl LayerLock {
    /// Takes the lock of an open object.
    ///
    /// # Errors
    ///
    /// - EWOULDBLOCK: another process has it.
    pub fn new(object: OwnedFd) -> Result<Self> {
        let lock = |object: &OwnedFd| rustix::fs::flock(object, FlockOperation::NonBlockingLockExclusive);
        let object = match lock(&object) {
            Err(Errno::WOULDBLOCK) => {
                // Redox distinguishes EWOULDBLOCK from EAGAIN, Linux does not.
                let inherited = inherited_for(&object)?.ok_or(Error::new(EWOULDBLOCK))?;
                lock(&inherited).map_err(error)?;
                inherited
            }
            locked => locked.map(|()| object).map_err(error)?,
        };
        let object = Arc::new(object);
        let mut held = list(&HELD);
        held.retain(|lock| lock.strong_count() > 0);
        held.push(Arc::downgrade(&object));
        Ok(Self(object))
    }
}

impl Drop for LayerLock {
    fn drop(&mut self) {
        // The lock ends with the last descriptor in any case.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

fn list<T>(locks: &Mutex<Vec<T>>) -> MutexGuard<'_, Vec<T>> {
    locks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the inherited lock of this object.
fn inherited_for(object: &OwnedFd) -> Result<Option<OwnedFd>> {
    let wanted = rustix::fs::fstat(object).map_err(error)?;
    let mut inherited = list(&INHERITED);
    let is_it = |lock: &OwnedFd| {
        rustix::fs::fstat(lock).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (wanted.st_dev, wanted.st_ino))
    };
    Ok(inherited.iter().position(is_it).map(|index| inherited.swap_remove(index)))
}

/// Returns the open files of all locks of this process, for the next one.
///
/// # Errors
///
/// - EMFILE: too many descriptors are open.
pub fn held() -> Result<Vec<OwnedFd>> {
    let held: Vec<_> = list(&HELD).iter().filter_map(Weak::upgrade).collect();
    held.iter().map(|lock| rustix::io::fcntl_dupfd_cloexec(lock.as_fd(), 0).map_err(error)).collect()
}

/// Takes over the open files of the locks of the process before this one, in place of earlier ones.
pub fn inherit(locks: Vec<OwnedFd>) {
    *list(&INHERITED) = locks;
}

/// Takes all locks of this process again, in case a process that inherited them has unlocked them.
///
/// # Errors
///
/// - EWOULDBLOCK: another process was faster.
pub fn lock_again() -> Result<()> {
    let held: Vec<_> = list(&HELD).iter().filter_map(Weak::upgrade).collect();
    held.iter().try_for_each(|lock| {
        rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            Errno::WOULDBLOCK => Error::new(EWOULDBLOCK),
            other => error(other),
        })
    })
}
