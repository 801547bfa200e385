//! The symbols for a daemon that is a client of other schemes. Most are relibc's calls on the
//! descriptor of a file, for `libredox`. The backend of a layer on Redox makes a few without it.
//!
//! relibc translates the structures of C, and so does this code for those of Linux.

use std::sync::{Arc, MutexGuard, PoisonError};

use syscall::data::{Stat, TimeSpec};
use syscall::error::{EBADF, EPIPE, Error, Result};
use syscall::flag::MODE_FIFO;

use super::{Maker, Object, Program, bytes, bytes_mut, get, insert, process, program};
use crate::client::Process;
use crate::kernel::Fd;

/// Returns a descriptor that is a file.
///
/// # Errors
///
/// - EBADF: it is no file.
fn file(fd: usize) -> Result<Arc<Fd>> {
    match get(fd)? {
        Object::File(file) => Ok(file),
        _ => Err(Error::new(EBADF)),
    }
}

/// Makes a call on a file that returns only success or an error.
fn done(fd: usize, call: impl FnOnce(&Fd) -> Result<()>) -> usize {
    Error::mux(file(fd).and_then(|file| call(&file)).map(|()| 0))
}

/// Makes a call on a file that returns a number.
fn count(fd: usize, call: impl FnOnce(&Fd) -> Result<usize>) -> usize {
    Error::mux(file(fd).and_then(|file| call(&file)))
}

/// Opens a path relative to a directory.
///
/// # Safety
///
/// `path_base` must point to `path_len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_openat_v1(
    fd: usize,
    path_base: *const u8,
    path_len: usize,
    flags: u32,
    fcntl_flags: u32,
) -> usize {
    // SAFETY: as the caller promises.
    let path = unsafe { bytes(path_base, path_len) };
    count(fd, |dir| Ok(insert(Object::File(Arc::new(dir.openat(path, flags as usize, fcntl_flags)?)))))
}

/// Writes the path of a file to a buffer. Returns its length.
///
/// # Safety
///
/// `dst_base` must point to `dst_len` bytes that nothing else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_fpath_v1(fd: usize, dst_base: *mut u8, dst_len: usize) -> usize {
    // SAFETY: as the caller promises.
    let dst = unsafe { bytes_mut(dst_base, dst_len) };
    count(fd, |file| file.fpath(dst))
}

/// Writes the attributes of a file to `dst`.
///
/// # Safety
///
/// `dst` must point to memory for a structure that nothing else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_fstat_v1(fd: usize, dst: *mut libc::stat) -> usize {
    Error::mux(attributes(fd).map(|found| {
        // SAFETY: the structure consists of numbers, for which all zeros are a value.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        stat.st_dev = found.st_dev;
        stat.st_ino = found.st_ino;
        stat.st_nlink = found.st_nlink.into();
        stat.st_mode = found.st_mode.into();
        stat.st_uid = found.st_uid;
        stat.st_gid = found.st_gid;
        stat.st_size = found.st_size.cast_signed();
        stat.st_blksize = found.st_blksize.into();
        stat.st_blocks = found.st_blocks.cast_signed();
        (stat.st_atime, stat.st_atime_nsec) = (found.st_atime.cast_signed(), found.st_atime_nsec.into());
        (stat.st_mtime, stat.st_mtime_nsec) = (found.st_mtime.cast_signed(), found.st_mtime_nsec.into());
        (stat.st_ctime, stat.st_ctime_nsec) = (found.st_ctime.cast_signed(), found.st_ctime_nsec.into());
        // SAFETY: as the caller promises.
        unsafe { dst.write(stat) };
        0
    }))
}

fn attributes(fd: usize) -> Result<Stat> {
    match get(fd)? {
        Object::File(file) => file.fstat(),
        Object::Pipe(_) => Ok(Stat { st_mode: MODE_FIFO | 0o666, ..Stat::default() }),
        _ => Err(Error::new(EBADF)),
    }
}

/// Writes the space of the filesystem to `dst`. relibc does not tell its limits.
///
/// # Safety
///
/// `dst` must point to memory for a structure that nothing else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_fstatvfs_v1(fd: usize, dst: *mut libc::statvfs) -> usize {
    done(fd, |file| {
        let found = file.fstatvfs()?;
        // SAFETY: the structure consists of numbers, for which all zeros are a value.
        let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
        (stat.f_bsize, stat.f_frsize) = (found.f_bsize.into(), found.f_bsize.into());
        (stat.f_blocks, stat.f_bfree, stat.f_bavail) = (found.f_blocks, found.f_bfree, found.f_bavail);
        // SAFETY: as the caller promises.
        unsafe { dst.write(stat) };
        Ok(())
    })
}

/// Sets the permission bits.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_fchmod_v1(fd: usize, new_mode: u16) -> usize {
    done(fd, |file| file.fchmod(new_mode))
}

/// Sets owner and group.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_fchown_v1(fd: usize, new_uid: u32, new_gid: u32) -> usize {
    done(fd, |file| file.fchown(new_uid, new_gid))
}

/// Sets the size.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_ftruncate_v0(fd: usize, len: usize) -> usize {
    done(fd, |file| file.ftruncate(len as u64))
}

/// Sets the times of last access and last change.
///
/// # Safety
///
/// `times` must point to two times.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_futimens_v1(fd: usize, times: *const libc::timespec) -> usize {
    // SAFETY: as the caller promises.
    let [atime, mtime] = unsafe { times.cast::<[libc::timespec; 2]>().read() }
        .map(|time| TimeSpec { tv_sec: time.tv_sec, tv_nsec: time.tv_nsec as i32 });
    done(fd, |file| file.futimens(atime, mtime))
}

/// Syncs a file to the disk.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_fsync_v1(fd: usize) -> usize {
    done(fd, Fd::fsync)
}

/// Lists a directory from an opaque offset on. Returns how many bytes of records it wrote.
///
/// # Safety
///
/// `buf` must point to `buf_len` bytes that nothing else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_getdents_v0(fd: usize, buf: *mut u8, buf_len: usize, opaque: u64) -> usize {
    // SAFETY: as the caller promises.
    let buf = unsafe { bytes_mut(buf, buf_len) };
    count(fd, |file| file.getdents(buf, opaque))
}

/// Returns the user of the daemon.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_get_euid_v1() -> usize {
    program().caller.credentials.uid as usize
}

/// Returns the group of the daemon.
///
/// # Safety
///
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn redox_get_egid_v1() -> usize {
    program().caller.credentials.gid as usize
}

/// Makes libc's `pread`.
///
/// # Safety
///
/// `base` must point to `len` bytes that nothing else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn played_pread(fd: usize, base: *mut u8, len: usize, offset: libc::off_t) -> usize {
    // SAFETY: as the caller promises.
    let buf = unsafe { bytes_mut(base, len) };
    count(fd, |file| file.read_at(buf, offset.cast_unsigned()))
}

/// Makes libc's `pwrite`.
///
/// # Safety
///
/// `base` must point to `len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn played_pwrite(fd: usize, base: *const u8, len: usize, offset: libc::off_t) -> usize {
    // SAFETY: as the caller promises.
    let buf = unsafe { bytes(base, len) };
    count(fd, |file| file.write_at(buf, offset.cast_unsigned()))
}

/// Makes the kernel's `unlinkat`.
///
/// # Safety
///
/// `path` must point to `len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn played_unlinkat(fd: usize, path: *const u8, len: usize, flags: usize) -> usize {
    // SAFETY: as the caller promises.
    let path = unsafe { bytes(path, len) };
    done(fd, |dir| dir.unlinkat(path, flags))
}

/// Makes the kernel's `frename`.
///
/// # Safety
///
/// `path` must point to `len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn played_frename(fd: usize, path: *const u8, len: usize) -> usize {
    // SAFETY: as the caller promises.
    let path = unsafe { bytes(path, len) };
    done(fd, |file| file.frename(path))
}

/// Makes the kernel's `flink`.
///
/// # Safety
///
/// `path` must point to `len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn played_flink(fd: usize, path: *const u8, len: usize) -> usize {
    // SAFETY: as the caller promises.
    let path = unsafe { bytes(path, len) };
    done(fd, |file| file.flink(path))
}

/// Whether the program has a maker.
#[unsafe(no_mangle)]
pub extern "C" fn played_has_maker() -> bool {
    !matches!(*maker(&program()), Maker::Gone)
}

fn maker(program: &Program) -> MutexGuard<'_, Maker> {
    program.maker.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Creates an object as the maker of a daemon does: an open with other ids. Returns a descriptor,
/// or EPIPE if the maker is gone, maybe after it created the object.
///
/// # Safety
///
/// `path` must point to `len` readable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn played_make_as(
    fd: usize,
    path: *const u8,
    len: usize,
    flags: usize,
    uid: u32,
    gid: u32,
) -> usize {
    // SAFETY: as the caller promises.
    let path = unsafe { bytes(path, len) };
    let (makes, answers) = maker(&program()).take_order();
    count(fd, |dir| {
        let made = makes.then(|| Process::new(uid, gid).inherit(dir).openat(path, flags, 0));
        let made = made.filter(|_| answers).ok_or(Error::new(EPIPE))??;
        Ok(insert(Object::File(Arc::new(process().inherit(&made)))))
    })
}
