//! The differences of Linux and Redox: flags, attributes, times, errors.

use syscall::data::{Stat, TimeSpec};
use syscall::dirent::DirentKind;
use syscall::flag::{
    MODE_DIR, MODE_TYPE, O_DIRECTORY, O_FSYNC, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY,
};

use linux_delegate::client::Process;
use overlayfs_fuse::wire::Attr;

/// Stands for the time of the request.
const UTIME_NOW: TimeSpec = TimeSpec { tv_sec: 0, tv_nsec: (1 << 30) - 1 };

/// Stands for the time that the object has.
const UTIME_OMIT: TimeSpec = TimeSpec { tv_sec: 0, tv_nsec: (1 << 30) - 2 };

/// Converts the flags of an open, without those of creation. O_APPEND is left out: each write says
/// whether it appends.
pub fn open_flags(linux: i32) -> usize {
    let access = match linux & libc::O_ACCMODE {
        libc::O_WRONLY => O_WRONLY,
        libc::O_RDWR => O_RDWR,
        _ => O_RDONLY,
    };
    [
        (libc::O_NONBLOCK, O_NONBLOCK),
        (libc::O_DSYNC, O_FSYNC),
        (libc::O_TRUNC, O_TRUNC),
        (libc::O_DIRECTORY, O_DIRECTORY),
        (libc::O_NOFOLLOW, O_NOFOLLOW),
    ]
    .into_iter()
    .fold(access, |flags, (linux_flag, flag)| if linux & linux_flag != 0 { flags | flag } else { flags })
}

/// Converts the attributes of the object with the kernel's number `node`. Types have the same
/// numbers on both systems. So have times before 1970, which are unsigned only by their type.
pub fn attributes(stat: &Stat, node: u64) -> Attr {
    Attr {
        ino: node,
        size: stat.st_size,
        blocks: stat.st_blocks,
        atime: stat.st_atime,
        mtime: stat.st_mtime,
        ctime: stat.st_ctime,
        atimensec: stat.st_atime_nsec,
        mtimensec: stat.st_mtime_nsec,
        ctimensec: stat.st_ctime_nsec,
        mode: stat.st_mode.into(),
        nlink: stat.st_nlink,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: 0,
        blksize: stat.st_blksize,
        flags: 0,
    }
}

/// Returns the type bits of an entry. None: the listing does not have them.
pub fn entry_kind(kind: u8) -> Option<u32> {
    match DirentKind::try_from_raw(kind)? {
        DirentKind::Unspecified => None,
        DirentKind::CharDev => Some(libc::S_IFCHR),
        DirentKind::Directory => Some(libc::S_IFDIR),
        DirentKind::BlockDev => Some(libc::S_IFBLK),
        DirentKind::Regular => Some(libc::S_IFREG),
        DirentKind::Symlink => Some(libc::S_IFLNK),
        DirentKind::Socket => Some(libc::S_IFSOCK),
    }
}

/// Whether the mode of an object grants a process all of `mask`. Root may do everything, but it
/// executes only objects with an execute bit.
pub fn may(process: &Process, stat: &Stat, mask: i32) -> bool {
    let wanted = mask as u16 & 7;
    let any_execute = stat.st_mode & 0o111 != 0 || stat.st_mode & MODE_TYPE == MODE_DIR;
    if process.uid() == 0 {
        return wanted & 1 == 0 || any_execute;
    }
    let class = if process.uid() == stat.st_uid {
        6
    } else if process.gid() == stat.st_gid {
        3
    } else {
        0
    };
    (stat.st_mode >> class) & wanted == wanted
}

/// Returns the time to set: the given one, that of the request, or that of the object.
pub fn time(given: bool, now: bool, seconds: u64, nanoseconds: u32) -> TimeSpec {
    match (given, now) {
        (false, _) => UTIME_OMIT,
        (true, true) => UTIME_NOW,
        (true, false) => TimeSpec { tv_sec: seconds as i64, tv_nsec: nanoseconds as i32 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libc::{F_OK, R_OK, W_OK, X_OK};
    use syscall::flag::MODE_FILE;

    #[test]
    fn open_flags_say_the_same() {
        assert_eq!(open_flags(libc::O_RDONLY), O_RDONLY);
        assert_eq!(open_flags(libc::O_RDWR | libc::O_TRUNC | libc::O_APPEND), O_RDWR | O_TRUNC);
        assert_eq!(open_flags(libc::O_WRONLY | libc::O_SYNC | libc::O_CLOEXEC), O_WRONLY | O_FSYNC);
        assert_eq!(
            open_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_NONBLOCK),
            O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK
        );
    }

    #[test]
    fn the_first_class_decides_and_root_executes_no_data() {
        let stat = |mode| Stat { st_mode: mode, st_uid: 5, st_gid: 6, ..Stat::default() };
        let may = |uid, gid, mode, mask| may(&Process::new(uid, gid), &stat(mode), mask);
        assert!(!may(5, 6, MODE_FILE | 0o077, R_OK));
        assert!(may(7, 6, MODE_FILE | 0o060, R_OK | W_OK));
        assert!(!may(7, 8, MODE_FILE | 0o760, R_OK));
        assert!(may(7, 8, MODE_FILE, F_OK));
        assert!(may(0, 0, MODE_FILE, R_OK | W_OK));
        assert!(!may(0, 0, MODE_FILE | 0o666, X_OK));
        assert!(may(0, 0, MODE_FILE | 0o010, X_OK));
        assert!(may(0, 0, MODE_DIR, X_OK));
    }
}
