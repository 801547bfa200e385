//! Attributes and paths of open objects.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use crate::errno::{EINVAL, ENAMETOOLONG, ENOENT, EPERM, ERANGE, Error, Result};
use syscall::data::{Stat as RedoxStat, StatVfs, TimeSpec};
use syscall::flag::{
    F_GETFL, F_SETFL, MODE_CHR, MODE_DIR, MODE_FIFO, MODE_FILE, MODE_SOCK, MODE_SYMLINK, O_FCNTL_MASK,
};

use super::access::WRITE;
use super::handle::{Open, SchemeHandle};
use super::open::MODE_BLOCK;
use super::tree::Tree;
use crate::layer::{Kind, Layer, Owner, Time};
use crate::overlay::ownership::SET_GID;

/// In the nanoseconds of a time: the time of the request.
const UTIME_NOW: i32 = (1 << 30) - 1;
/// In the nanoseconds of a time: the time that the object has.
const UTIME_OMIT: i32 = (1 << 30) - 2;
/// An owner or a group that stays.
const UNCHANGED: u32 = u32::MAX;

impl<L: Layer> Tree<L> {
    pub(super) fn stat(&self, id: usize) -> Result<RedoxStat> {
        let open = self.handles.open(id)?;
        let stat = self.overlay.stat(open.node())?;
        let kind = match stat.kind {
            Kind::File => MODE_FILE,
            Kind::Dir => MODE_DIR,
            Kind::Symlink => MODE_SYMLINK,
            Kind::Fifo => MODE_FIFO,
            Kind::Socket => MODE_SOCK,
            Kind::CharDev => MODE_CHR,
            Kind::BlockDev => MODE_BLOCK,
        };
        Ok(RedoxStat {
            st_dev: stat.dev,
            st_ino: stat.ino,
            st_mode: kind | (stat.mode & 0o7777) as u16,
            st_nlink: stat.nlink,
            st_uid: stat.uid,
            st_gid: stat.gid,
            st_size: stat.size,
            st_blksize: stat.blksize,
            st_blocks: stat.blocks,
            // The fields are signed in libc's stat, and times before 1970 are negative there.
            st_mtime: stat.mtime.sec as u64,
            st_mtime_nsec: stat.mtime.nsec,
            st_atime: stat.atime.sec as u64,
            st_atime_nsec: stat.atime.nsec,
            st_ctime: stat.ctime.sec as u64,
            st_ctime_nsec: stat.ctime.nsec,
        })
    }

    pub(super) fn stat_fs(&self, id: usize) -> Result<StatVfs> {
        self.handles.open(id)?;
        let stat = self.overlay.stat_fs()?;
        Ok(StatVfs {
            f_bsize: stat.block_size,
            f_blocks: stat.blocks,
            f_bfree: stat.blocks_free,
            f_bavail: stat.blocks_available,
        })
    }

    /// Sets the permission, set-id and sticky bits.
    ///
    /// # Errors
    ///
    /// - EPERM: the opener is neither the owner nor root.
    pub(super) fn set_mode(&self, id: usize, mode: u32) -> Result<()> {
        let open = self.handles.open(id)?;
        self.require_writable()?;
        let guard = self.changes.of_one(open.node());
        let stat = self.overlay.stat(open.node())?;
        if !open.opener.owns(&stat) {
            return Err(Error::new(EPERM));
        }
        let Some(_guard) = self.copied_ahead(guard, open.node(), false)? else { return self.set_mode(id, mode) };
        let mut mode = mode & 0o7777;
        if stat.kind == Kind::File && !open.opener.is_root() && open.opener.gid != stat.gid {
            mode &= !SET_GID;
        }
        self.overlay.set_mode(open.node(), mode)
    }

    /// Sets the owner and the group; −1 leaves one as it is.
    ///
    /// # Errors
    ///
    /// - EPERM: the opener is not root. An owner may still change the group to its own.
    pub(super) fn set_owner(&self, id: usize, uid: u32, gid: u32) -> Result<()> {
        let open = self.handles.open(id)?;
        self.require_writable()?;
        let guard = self.changes.of_one(open.node());
        let stat = self.overlay.stat(open.node())?;
        let owner = Owner {
            uid: if uid == UNCHANGED { stat.uid } else { uid },
            gid: if gid == UNCHANGED { stat.gid } else { gid },
        };
        let caller = open.opener;
        let allowed = caller.is_root()
            || (caller.uid == stat.uid && owner.uid == stat.uid && (owner.gid == stat.gid || owner.gid == caller.gid));
        if !allowed {
            return Err(Error::new(EPERM));
        }
        let Some(guard) = self.copied_ahead(guard, open.node(), false)? else {
            return self.set_owner(id, uid, gid);
        };
        if stat.kind == Kind::File {
            self.drop_set_id_within(open.node(), caller, &guard)?;
        }
        self.overlay.set_owner(open.node(), owner)
    }

    /// Sets the times of last access and change, each to a given time, to now, or not at all.
    ///
    /// # Errors
    ///
    /// - EACCES: both are now, and the opener may not write the object.
    /// - EPERM: any other times, and the opener is neither the owner nor root.
    pub(super) fn set_times(&self, id: usize, times: &[TimeSpec]) -> Result<()> {
        let open = self.handles.open(id)?;
        let &[atime, mtime] = times else {
            return Err(Error::new(EINVAL));
        };
        let now = Time::now();
        let guard = self.changes.of_one(open.node());
        let stat = self.overlay.stat(open.node())?;
        let new_atime = resolve_time(&atime, now, stat.atime)?;
        let new_mtime = resolve_time(&mtime, now, stat.mtime)?;
        let all = |nsec| atime.tv_nsec == nsec && mtime.tv_nsec == nsec;
        if all(UTIME_OMIT) {
            return Ok(());
        }
        self.require_writable()?;
        if !open.opener.owns(&stat) {
            if !all(UTIME_NOW) {
                return Err(Error::new(EPERM));
            }
            open.opener.require(&stat, WRITE)?;
        }
        let Some(_guard) = self.copied_ahead(guard, open.node(), false)? else {
            return self.set_times(id, times);
        };
        self.overlay.set_times(open.node(), new_atime, new_mtime)
    }

    /// Performs F_GETFL and F_SETFL. Of the argument of F_SETFL only the bits count that can
    /// change.
    ///
    /// # Errors
    ///
    /// - EINVAL: the command is another one.
    pub(super) fn control(&self, id: usize, command: usize, argument: usize) -> Result<usize> {
        let open = self.handles.open(id)?;
        let flags = open.flags.load(Ordering::Relaxed);
        match command {
            F_GETFL => Ok(flags),
            F_SETFL => {
                open.flags.store((flags & !O_FCNTL_MASK) | (argument & O_FCNTL_MASK), Ordering::Relaxed);
                Ok(0)
            }
            _ => Err(Error::new(EINVAL)),
        }
    }

    /// Writes the path of an object as clients write it, `/scheme/NAME/…`, by its current name. For
    /// a handle that leads to another scheme it is the path there.
    ///
    /// # Errors
    ///
    /// - ENOENT: the object has no name any more.
    /// - EACCES: the opener may not search the directories of the path.
    /// - ENAMETOOLONG: the buffer is too small.
    pub(super) fn path(&self, id: usize, buf: &mut [u8]) -> Result<usize> {
        let path = match self.handles.get(id)? {
            SchemeHandle::Elsewhere(path) => path.as_bytes().to_vec(),
            _ => {
                let mut path = format!("/scheme/{}", self.name).into_bytes();
                let below = self.path_below(&*self.handles.open(id)?)?;
                if !below.as_os_str().is_empty() {
                    path.push(b'/');
                    path.extend_from_slice(below.as_os_str().as_bytes());
                }
                path
            }
        };
        fill(buf, &path, ENAMETOOLONG)
    }

    /// Writes the path of an object relative to a directory above it.
    ///
    /// # Errors
    ///
    /// - ENOENT: the object is not below the directory, or has no name any more.
    /// - ERANGE: the buffer is too small.
    pub(super) fn relative_path(&self, dir: usize, id: usize, buf: &mut [u8]) -> Result<usize> {
        let dir = self.path_below(&*self.handles.open(dir)?)?;
        let path = self.path_below(&*self.handles.open(id)?)?;
        let relative = path.strip_prefix(dir).map_err(|_| Error::new(ENOENT))?;
        fill(buf, relative.as_os_str().as_bytes(), ERANGE)
    }

    /// Returns the path of an open object from the top of the tree.
    ///
    /// # Errors
    ///
    /// - ENOENT: the object has no name any more.
    /// - EACCES: the opener may not search the directories above its only name.
    fn path_below(&self, open: &Open<L>) -> Result<PathBuf> {
        let path = match self.current_entry(open, open.opener)? {
            Some((dir, name)) => self.overlay.path(&dir).map(|dir| dir.join(name)),
            None => self.overlay.path(open.node()),
        };
        path.ok_or(Error::new(ENOENT))
    }
}

fn resolve_time(time: &TimeSpec, now: Time, old: Time) -> Result<Time> {
    match time.tv_nsec {
        UTIME_NOW => Ok(now),
        UTIME_OMIT => Ok(old),
        nsec @ 0..1_000_000_000 => Ok(Time { sec: time.tv_sec, nsec: nsec as u32 }),
        _ => Err(Error::new(EINVAL)),
    }
}

/// Copies all of `text` into the buffer, or nothing.
fn fill(buf: &mut [u8], text: &[u8], too_small: i32) -> Result<usize> {
    buf.get_mut(..text.len()).ok_or(Error::new(too_small))?.copy_from_slice(text);
    Ok(text.len())
}
