//! The calls of this backend for which `libredox` has no function.
//!
//! On Redox these are calls of libc on a descriptor, and calls of the kernel. relibc's own
//! `unlinkat`, `rename` and `link` would resolve paths in the namespace. On other systems the Redox
//! simulator defines them, as it defines the symbols that `libredox` calls. A number that libc or
//! the kernel of this system got would be another descriptor or another call there.

pub use system::{can_make_as, link, make_as, read_at, rename, unlink_at, write_at};

#[cfg(target_os = "redox")]
mod system {
    use std::io;

    use crate::errno::{EBADF, EIO};
    use libredox::Fd;

    use crate::layer::{Error, Result};

    /// Reads at `offset`.
    pub fn read_at(fd: &Fd, buf: &mut [u8], offset: libc::off_t) -> Result<usize> {
        let fd = raw(fd)?;
        // SAFETY: pointer and length are those of a writable slice.
        answer(unsafe { libc::pread(fd, buf.as_mut_ptr().cast(), buf.len(), offset) })
    }

    /// Writes at `offset`.
    pub fn write_at(fd: &Fd, buf: &[u8], offset: libc::off_t) -> Result<usize> {
        let fd = raw(fd)?;
        // SAFETY: pointer and length are those of a slice.
        answer(unsafe { libc::pwrite(fd, buf.as_ptr().cast(), buf.len(), offset) })
    }

    /// Removes the entry `path` of a directory; `flags` is 0 or `AT_REMOVEDIR`.
    pub fn unlink_at(dir: &Fd, path: &str, flags: usize) -> Result<()> {
        Ok(syscall::unlinkat(dir.raw(), path, flags).map(drop)?)
    }

    /// Renames an object to an absolute path. The kernel ignores the part that names the scheme.
    pub fn rename(fd: &Fd, path: &str) -> Result<()> {
        Ok(syscall::frename(fd.raw(), path).map(drop)?)
    }

    /// Gives an object a second name, an absolute path as in [`rename`].
    pub fn link(fd: &Fd, path: &str) -> Result<()> {
        Ok(syscall::flink(fd.raw(), path).map(drop)?)
    }

    pub use crate::layer::redox::maker::{is_there as can_make_as, make_as};

    /// Converts the number of a descriptor for libc.
    fn raw(fd: &Fd) -> Result<libc::c_int> {
        libc::c_int::try_from(fd.raw()).map_err(|_| Error::new(EBADF))
    }

    /// Converts the result of the last call of libc.
    fn answer(result: libc::ssize_t) -> Result<usize> {
        usize::try_from(result).map_err(|_| Error::new(io::Error::last_os_error().raw_os_error().unwrap_or(EIO)))
    }
}

#[cfg(not(target_os = "redox"))]
mod system {
    use libredox::Fd;

    use crate::layer::{Owner, Result};

    // All return a number or a negated errno, as system calls do.
    unsafe extern "C" {
        fn played_pread(fd: usize, base: *mut u8, len: usize, offset: libc::off_t) -> usize;
        fn played_pwrite(fd: usize, base: *const u8, len: usize, offset: libc::off_t) -> usize;
        fn played_unlinkat(fd: usize, path: *const u8, len: usize, flags: usize) -> usize;
        fn played_frename(fd: usize, path: *const u8, len: usize) -> usize;
        fn played_flink(fd: usize, path: *const u8, len: usize) -> usize;
        fn played_has_maker() -> bool;
        /// Returns a descriptor.
        fn played_make_as(fd: usize, path: *const u8, len: usize, flags: usize, uid: u32, gid: u32) -> usize;
    }

    pub fn can_make_as() -> bool {
        // SAFETY: the call touches no memory.
        unsafe { played_has_maker() }
    }

    pub fn make_as(dir: &Fd, path: &str, flags: usize, owner: Owner) -> Result<Fd> {
        let Owner { uid, gid } = owner;
        // SAFETY: pointer and length are those of a string.
        answer(unsafe { played_make_as(dir.raw(), path.as_ptr(), path.len(), flags, uid, gid) }).map(Fd::new)
    }

    pub fn read_at(fd: &Fd, buf: &mut [u8], offset: libc::off_t) -> Result<usize> {
        // SAFETY: pointer and length are those of a writable slice.
        answer(unsafe { played_pread(fd.raw(), buf.as_mut_ptr(), buf.len(), offset) })
    }

    pub fn write_at(fd: &Fd, buf: &[u8], offset: libc::off_t) -> Result<usize> {
        // SAFETY: pointer and length are those of a slice.
        answer(unsafe { played_pwrite(fd.raw(), buf.as_ptr(), buf.len(), offset) })
    }

    pub fn unlink_at(dir: &Fd, path: &str, flags: usize) -> Result<()> {
        // SAFETY: pointer and length are those of a string.
        answer(unsafe { played_unlinkat(dir.raw(), path.as_ptr(), path.len(), flags) }).map(drop)
    }

    pub fn rename(fd: &Fd, path: &str) -> Result<()> {
        // SAFETY: pointer and length are those of a string.
        answer(unsafe { played_frename(fd.raw(), path.as_ptr(), path.len()) }).map(drop)
    }

    pub fn link(fd: &Fd, path: &str) -> Result<()> {
        // SAFETY: pointer and length are those of a string.
        answer(unsafe { played_flink(fd.raw(), path.as_ptr(), path.len()) }).map(drop)
    }

    fn answer(number: usize) -> Result<usize> {
        Ok(syscall::Error::demux(number)?)
    }
}
