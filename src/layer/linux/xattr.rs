//! Extended attributes of an entry, a directory or an open file. No call follows a symlink.
//!
//! Linux 6.13 has calls that take a directory and a name. On older kernels, and for an entry that
//! must be opened first, the descriptor's link below `/proc` leads to the object itself.

use std::ffi::{CString, OsStr, OsString, c_long, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::OFlags;
use rustix::io::{Errno, Result};

use super::calls::{SYS_GETXATTRAT, SYS_LISTXATTRAT, SYS_REMOVEXATTRAT, SYS_SETXATTRAT};
use super::raw::{self, answer};
use crate::layer::XattrMode;

/// The space for a value or a list at the first try, in bytes.
const USUAL: usize = 1024;
/// The longest value and the longest list in Linux, in bytes.
const LONGEST: usize = 64 * 1024;

/// `struct xattr_args` of `linux/xattr.h`.
#[repr(C)]
struct Args {
    value: u64,
    size: u32,
    flags: u32,
}

/// The object with the attributes.
#[derive(Clone, Copy)]
pub enum XattrTarget<'a> {
    /// An open file, or what is open by O_PATH.
    File(BorrowedFd<'a>),
    /// An entry of a directory, or `.`.
    Entry(BorrowedFd<'a>, &'a OsStr),
    /// The object of an O_PATH descriptor.
    Itself(BorrowedFd<'a>),
}

/// Whether the kernel lacks the calls that take a directory and a name.
static NO_AT: AtomicBool = AtomicBool::new(false);

/// Returns a value.
///
/// # Errors
///
/// - ENODATA: the object has no attribute `name`.
/// - EOPNOTSUPP: the filesystem has no such attributes.
pub fn get(place: XattrTarget<'_>, name: &OsStr) -> Result<Vec<u8>> {
    let name = c_string(name)?;
    sized(|buffer| {
        let (value, size) = (buffer.as_mut_ptr().cast::<c_void>(), buffer.len());
        place.call(
            // SAFETY: the name is a C string, and the buffer has the given length. Both outlive the
            // call. The same holds for the two calls below.
            |fd| unsafe { libc::fgetxattr(fd, name.as_ptr(), value, size) as c_long },
            |path| unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value, size) as c_long },
            |fd, entry| {
                let args = Args { value: value as u64, size: size as u32, flags: 0 };
                // SAFETY: as above, and the arguments have the given size.
                unsafe {
                    libc::syscall(
                        SYS_GETXATTRAT,
                        fd,
                        entry.as_ptr(),
                        libc::AT_SYMLINK_NOFOLLOW,
                        name.as_ptr(),
                        &raw const args,
                        size_of::<Args>(),
                    )
                }
            },
        )
    })
}

/// Returns the names.
pub fn list(place: XattrTarget<'_>) -> Result<Vec<OsString>> {
    let names = sized(|buffer| {
        let (list, size) = (buffer.as_mut_ptr().cast::<libc::c_char>(), buffer.len());
        place.call(
            // SAFETY: the buffer has the given length and outlives the call. The same holds for the
            // two calls below.
            |fd| unsafe { libc::flistxattr(fd, list, size) as c_long },
            |path| unsafe { libc::listxattr(path.as_ptr(), list, size) as c_long },
            |fd, entry| unsafe {
                libc::syscall(SYS_LISTXATTRAT, fd, entry.as_ptr(), libc::AT_SYMLINK_NOFOLLOW, list, size)
            },
        )
    })?;
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| OsString::from_vec(name.to_vec())).collect())
}

/// Sets a value.
///
/// # Errors
///
/// - EEXIST, ENODATA: see [`XattrMode`].
/// - EOPNOTSUPP: the filesystem has no such attributes.
/// - EPERM: the process may not set the attribute.
/// - ENOSPC, E2BIG: the value is too long.
pub fn set(place: XattrTarget<'_>, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
    let name = c_string(name)?;
    let flags = match mode {
        XattrMode::Set => 0,
        XattrMode::Create => libc::XATTR_CREATE,
        XattrMode::Replace => libc::XATTR_REPLACE,
    };
    let (bytes, size) = (value.as_ptr().cast::<c_void>(), value.len());
    let set = place.call(
        // SAFETY: the name is a C string, and the value has the given length. Both outlive the
        // call. The same holds for the two calls below.
        |fd| unsafe { libc::fsetxattr(fd, name.as_ptr(), bytes, size, flags) as c_long },
        |path| unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), bytes, size, flags) as c_long },
        |fd, entry| {
            let args = Args { value: bytes as u64, size: size as u32, flags: flags as u32 };
            // SAFETY: as above, and the arguments have the given size.
            unsafe {
                libc::syscall(
                    SYS_SETXATTRAT,
                    fd,
                    entry.as_ptr(),
                    libc::AT_SYMLINK_NOFOLLOW,
                    name.as_ptr(),
                    &raw const args,
                    size_of::<Args>(),
                )
            }
        },
    );
    set.map(drop)
}

/// Removes a value.
///
/// # Errors
///
/// - ENODATA: the object has no attribute `name`.
/// - EOPNOTSUPP: the filesystem has no such attributes.
/// - EPERM: the process may not remove the attribute.
pub fn remove(place: XattrTarget<'_>, name: &OsStr) -> Result<()> {
    let name = c_string(name)?;
    let removed = place.call(
        // SAFETY: the name is a C string that outlives the call. The same holds for the two calls
        // below.
        |fd| unsafe { libc::fremovexattr(fd, name.as_ptr()) as c_long },
        |path| unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) as c_long },
        |fd, entry| unsafe {
            libc::syscall(SYS_REMOVEXATTRAT, fd, entry.as_ptr(), libc::AT_SYMLINK_NOFOLLOW, name.as_ptr())
        },
    );
    removed.map(drop)
}

impl XattrTarget<'_> {
    /// Makes the call in the form that fits the place: on an open file, on a path to follow, or on
    /// an entry.
    fn call(
        self,
        mut on_file: impl FnMut(i32) -> c_long,
        mut on_path: impl FnMut(&CString) -> c_long,
        mut on_entry: impl FnMut(i32, &CString) -> c_long,
    ) -> Result<usize> {
        match self {
            XattrTarget::File(fd) => match answer(on_file(fd.as_raw_fd())) {
                // So it is open by O_PATH.
                Err(Errno::BADF) => answer(on_path(&by_proc(fd)?)),
                result => result,
            },
            XattrTarget::Itself(fd) => answer(on_path(&by_proc(fd)?)),
            XattrTarget::Entry(dir, name) => {
                if !NO_AT.load(Ordering::Relaxed) {
                    match answer(on_entry(dir.as_raw_fd(), &c_string(name)?)) {
                        Err(Errno::NOSYS) => NO_AT.store(true, Ordering::Relaxed),
                        result => return result,
                    }
                }
                let entry = raw::open_at(dir, name, OFlags::PATH, rustix::fs::Mode::empty())?;
                XattrTarget::Itself(std::os::fd::AsFd::as_fd(&entry)).call(on_file, on_path, on_entry)
            }
        }
    }
}

/// Calls `ask` with a buffer that is usually large enough, and again with the largest one if it was
/// not.
fn sized(mut ask: impl FnMut(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buffer = vec![0; USUAL];
    let length = match ask(&mut buffer) {
        Err(Errno::RANGE) => {
            buffer = vec![0; LONGEST];
            ask(&mut buffer)?
        }
        result => result?,
    };
    buffer.truncate(length);
    Ok(buffer)
}

fn by_proc(fd: BorrowedFd<'_>) -> Result<CString> {
    c_string(OsStr::new(&format!("/proc/self/fd/{}", fd.as_raw_fd())))
}

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// The code for older kernels does the same as the calls that take an entry.
    #[test]
    fn all_forms_do_the_same() {
        with_places(&["file", "."], |places| {
            let name = OsStr::new("user.a");
            let long = vec![7; 2000];
            for place in places {
                assert_eq!(get(place, name), Err(Errno::NODATA));
                assert_eq!(set(place, name, b"x", XattrMode::Replace), Err(Errno::NODATA));
                set(place, name, b"x", XattrMode::Create).unwrap();
                assert_eq!(set(place, name, b"y", XattrMode::Create), Err(Errno::EXIST));
                for other in places {
                    assert_eq!(get(other, name).unwrap(), b"x");
                    assert!(list(other).unwrap().contains(&name.to_owned()));
                }
                set(place, name, &long, XattrMode::Set).unwrap();
                assert_eq!(get(place, name).unwrap(), long);
                remove(place, name).unwrap();
                assert!(!list(place).unwrap().contains(&name.to_owned()));
            }
        });
    }

    /// A call that follows the symlink would set the attribute on its file.
    #[test]
    fn no_form_follows_a_symlink() {
        with_places(&["link"], |places| {
            for place in places {
                assert_eq!(set(place, OsStr::new("user.a"), b"x", XattrMode::Set), Err(Errno::PERM));
            }
        });
    }

    /// Runs `test` with every form of each of the entries.
    fn with_places(entries: &[&str], test: impl Fn([XattrTarget<'_>; 2])) {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("file", temp.path().join("link")).unwrap();
        let dir = rustix::fs::open(temp.path(), OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        for entry in entries.iter().map(OsStr::new) {
            let open = raw::open_at(dir.as_fd(), entry, OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
            test([XattrTarget::Entry(dir.as_fd(), entry), XattrTarget::Itself(open.as_fd())]);
        }
    }
}
