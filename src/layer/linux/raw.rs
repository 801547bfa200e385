//! The system calls of this backend that rustix lacks in the needed form, and combinations of
//! calls.

use std::ffi::OsStr;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, RawDirEntry, ResolveFlags};
use rustix::io::{Errno, Result, retry_on_intr};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::path::Arg;

use super::calls::SYS_FCHMODAT2;

/// The space for entries of one call of getdents64, in bytes.
const LIST_BUFFER: usize = 64 * 1024;

/// Makes a private copy of the mount that has `path`. `path` is its root, and it has no mounts
/// inside.
///
/// Mounts below `path`, now or later, neither show through the descriptor nor block it. The clone
/// receives no mounts, and its directories show their own content. A device node in it opens no
/// device. Unless `writable`, nothing writes through it, access times included.
///
/// # Errors
///
/// - EPERM: the process lacks CAP_SYS_ADMIN over the mount namespace.
/// - EINVAL, ENOSYS: Linux is older than 5.12, or the mount cannot be cloned.
pub fn private_clone(path: &Path, writable: bool) -> Result<OwnedFd> {
    let tree = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NODEV | if writable { 0 } else { libc::MOUNT_ATTR_RDONLY },
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the path is a C string, and the attributes are a `mount_attr` of the given size. Both
    // outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    answer(result)?;
    Ok(tree)
}

/// Opens the entry `name`, which must be a single component.
///
/// RESOLVE_BENEATH would add nothing for a single component that is not `..`. It returns EXDEV if
/// the entry moves at the same time.
///
/// # Errors
///
/// - EXDEV: the entry has a mount on it. The kernel has not called the mounted filesystem.
pub fn open_at(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    retry_on_intr(|| rustix::fs::openat2(dir, name, flags, mode, resolve))
}

/// Does the same as [`open_at`], for reading, without a change of the access time if the system
/// permits that.
pub fn open_unseen(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> Result<OwnedFd> {
    match open_at(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => open_at(dir, name, flags, Mode::empty()),
        result => result,
    }
}

/// Opens the directory of an O_PATH descriptor for reading, with its own offset.
pub fn reopen_dir(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    open_unseen(dir, OsStr::new("."), OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Calls `each` for every entry of a directory but `.` and `..`, in its order, until `each` returns
/// false. The directory must be open for reading, and unread.
pub fn entries(dir: BorrowedFd<'_>, mut each: impl FnMut(&RawDirEntry<'_>) -> bool) -> Result<()> {
    let mut buffer = [MaybeUninit::uninit(); LIST_BUFFER];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") && !each(&entry) {
            break;
        }
    }
    Ok(())
}

/// Sets the mode of an entry, or of the descriptor itself if `flags` has AT_EMPTY_PATH.
///
/// # Errors
///
/// - EOPNOTSUPP: the object is a symlink.
pub fn change_mode(fd: BorrowedFd<'_>, name: &OsStr, flags: AtFlags, mode: Mode) -> Result<()> {
    let result = name.into_with_c_str(|name| {
        // SAFETY: the name is a C string that outlives the call. The call touches no other memory.
        answer(unsafe { libc::syscall(SYS_FCHMODAT2, fd.as_raw_fd(), name.as_ptr(), mode.as_raw_mode(), flags.bits()) })
    });
    match result {
        Err(Errno::NOSYS) => change_mode_by_proc(fd, name, flags, mode),
        result => result.map(drop),
    }
}

/// Does the work of [`change_mode`] on Linux before 6.6: the descriptor's link below `/proc` leads
/// to the object itself.
fn change_mode_by_proc(fd: BorrowedFd<'_>, name: &OsStr, flags: AtFlags, mode: Mode) -> Result<()> {
    let opened;
    let object = if flags.contains(AtFlags::EMPTY_PATH) {
        fd
    } else {
        opened = open_at(fd, name, OFlags::PATH, Mode::empty())?;
        opened.as_fd()
    };
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(object)?.st_mode);
    if kind.is_symlink() {
        return Err(Errno::OPNOTSUPP);
    }
    rustix::fs::chmod(format!("/proc/self/fd/{}", object.as_raw_fd()), mode)
}

/// Converts the result of a system call.
pub fn answer(result: libc::c_long) -> Result<usize> {
    usize::try_from(result).map_err(|_| {
        let code = std::io::Error::last_os_error().raw_os_error();
        code.map_or(Errno::IO, Errno::from_raw_os_error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// The code for older kernels does the same as fchmodat2.
    #[test]
    fn modes_by_proc() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        std::fs::write(&path, "").unwrap();
        symlink("file", temp.path().join("link")).unwrap();
        let dir = rustix::fs::open(temp.path(), OFlags::PATH, Mode::empty()).unwrap();
        let mode_of = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;

        for change in [change_mode, change_mode_by_proc] {
            let set = |fd, name, flags, mode| change(fd, OsStr::new(name), flags, Mode::from_raw_mode(mode));
            set(dir.as_fd(), "file", AtFlags::SYMLINK_NOFOLLOW, 0o4711).unwrap();
            assert_eq!(mode_of(&path), 0o4711);
            set(dir.as_fd(), "", AtFlags::EMPTY_PATH, 0o1750).unwrap();
            assert_eq!(mode_of(temp.path()), 0o1750);

            assert_eq!(set(dir.as_fd(), "link", AtFlags::SYMLINK_NOFOLLOW, 0o600), Err(Errno::OPNOTSUPP));
            let link = open_at(dir.as_fd(), OsStr::new("link"), OFlags::PATH, Mode::empty()).unwrap();
            assert_eq!(set(link.as_fd(), "", AtFlags::EMPTY_PATH, 0o600), Err(Errno::OPNOTSUPP));
            assert_eq!(mode_of(&path), 0o4711);

            set(dir.as_fd(), "file", AtFlags::SYMLINK_NOFOLLOW, 0o600).unwrap();
            set(dir.as_fd(), "", AtFlags::EMPTY_PATH, 0o700).unwrap();
        }
    }
}
