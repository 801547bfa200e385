//! System calls of the room that no crate wraps.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;

/// Makes the mount at `path` and all mounts in it read-only, and leaves their other flags.
///
/// # Errors
///
/// - ENOSYS: the kernel is older than Linux 5.12.
pub fn set_read_only(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    set_attributes(libc::AT_FDCWD, &path, libc::AT_RECURSIVE)
}

/// Opens a file through a mount of its own, which is read-only.
///
/// # Errors
///
/// Those of open(2), and of [`set_read_only`].
pub fn open_read_only(path: &Path) -> io::Result<File> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount: OwnedFd = rustix::mount::open_tree(CWD, path, flags)?;
    set_attributes(mount.as_raw_fd(), c"", libc::AT_EMPTY_PATH)?;
    File::open(format!("/proc/self/fd/{}", mount.as_raw_fd()))
}

fn set_attributes(dir: RawFd, path: &std::ffi::CStr, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: the structure has only numbers, for which zero is a value.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_RDONLY;
    // SAFETY: the path ends with a zero byte, and the structure has its size. Both outlive the
    // call.
    let done = unsafe {
        let length = size_of::<libc::mount_attr>();
        libc::syscall(libc::SYS_mount_setattr, dir, path.as_ptr(), flags, &raw const attributes, length)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Starts the loopback interface of this network namespace.
///
/// # Errors
///
/// - EPERM: the caller has no right to it.
pub fn start_loopback() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: the structure has only numbers and a union of them, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request reads the structure, which outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
