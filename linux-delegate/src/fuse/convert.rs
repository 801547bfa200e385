//! What Linux and Redox say differently: flags, attributes, times, errors.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{AccessFlags, Errno, FileAttr, FileType, INodeNo, TimeOrNow};
use syscall::data::{Stat, TimeSpec};
use syscall::dirent::DirentKind;
use syscall::error::{EAGAIN, EIO, EWOULDBLOCK, Error, Result};
use syscall::flag::{
    MODE_CHR, MODE_DIR, MODE_FIFO, MODE_FILE, MODE_SOCK, MODE_SYMLINK, MODE_TYPE, O_DIRECTORY, O_FSYNC, O_NOFOLLOW,
    O_NONBLOCK, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY,
};

use crate::client::Process;

/// The type bits of a block device, which Redox does not name.
const MODE_BLOCK: u16 = 0x6000;

/// Instead of a time: the time of the request.
const UTIME_NOW: TimeSpec = TimeSpec { tv_sec: 0, tv_nsec: (1 << 30) - 1 };

/// Instead of a time: the one that the object has.
const UTIME_OMIT: TimeSpec = TimeSpec { tv_sec: 0, tv_nsec: (1 << 30) - 2 };

/// The number is the same on both, but for one: what Linux calls by two names has two numbers on Redox.
pub fn errno(error: Error) -> Errno {
    Errno::from_i32(if error.errno == EWOULDBLOCK { EAGAIN } else { error.errno })
}

/// The flags of an open, without those of creating. O_APPEND is left out: each write says whether it appends.
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

/// Attributes of the object that the kernel calls `node`. EIO for a type that does not exist.
pub fn attributes(stat: &Stat, node: u64) -> Result<FileAttr> {
    let kind = match stat.st_mode & MODE_TYPE {
        MODE_FILE => FileType::RegularFile,
        MODE_DIR => FileType::Directory,
        MODE_SYMLINK => FileType::Symlink,
        MODE_FIFO => FileType::NamedPipe,
        MODE_SOCK => FileType::Socket,
        MODE_CHR => FileType::CharDevice,
        MODE_BLOCK => FileType::BlockDevice,
        _ => return Err(Error::new(EIO)),
    };
    Ok(FileAttr {
        ino: INodeNo(node),
        size: stat.st_size,
        blocks: stat.st_blocks,
        atime: system_time(stat.st_atime, stat.st_atime_nsec),
        mtime: system_time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: system_time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: UNIX_EPOCH,
        kind,
        perm: stat.st_mode & 0o7777,
        nlink: stat.st_nlink,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: 0,
        blksize: stat.st_blksize,
        flags: 0,
    })
}

/// The type of an entry; None if the listing does not say it.
pub fn entry_kind(kind: u8) -> Option<FileType> {
    match DirentKind::try_from_raw(kind)? {
        DirentKind::Unspecified => None,
        DirentKind::CharDev => Some(FileType::CharDevice),
        DirentKind::Directory => Some(FileType::Directory),
        DirentKind::BlockDev => Some(FileType::BlockDevice),
        DirentKind::Regular => Some(FileType::RegularFile),
        DirentKind::Symlink => Some(FileType::Symlink),
        DirentKind::Socket => Some(FileType::Socket),
    }
}

/// Whether the mode of an object grants a process all that `mask` asks for. Root may do everything, but execute only what is
/// executable for someone.
pub fn may(process: &Process, stat: &Stat, mask: AccessFlags) -> bool {
    let wanted = mask.bits() as u16 & 7;
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

/// A time to set; what is not given stays.
pub fn time(time: Option<TimeOrNow>) -> TimeSpec {
    match time {
        None => UTIME_OMIT,
        Some(TimeOrNow::Now) => UTIME_NOW,
        Some(TimeOrNow::SpecificTime(time)) => match time.duration_since(UNIX_EPOCH) {
            Ok(after) => TimeSpec { tv_sec: after.as_secs() as i64, tv_nsec: after.subsec_nanos() as i32 },
            // fuser 0.18 makes the time that is `nsec` before `sec` of what came from the kernel as `nsec` after it.
            Err(error) => {
                let before = error.duration();
                TimeSpec { tv_sec: -(before.as_secs() as i64), tv_nsec: before.subsec_nanos() as i32 }
            }
        },
    }
}

/// A time of Redox, whose seconds are unsigned but mean times before 1970 too. The epoch for one that Linux cannot tell.
fn system_time(seconds: u64, nanoseconds: u32) -> SystemTime {
    let seconds = seconds as i64;
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    time.and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds.into()))).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_what_the_scheme_said() {
        let from_epoch =
            |seconds: i64, nanoseconds| match system_time(seconds as u64, nanoseconds).duration_since(UNIX_EPOCH) {
                Ok(after) => after.as_nanos() as i128,
                Err(before) => -(before.duration().as_nanos() as i128),
            };
        assert_eq!(from_epoch(5, 999_999_999), 5_999_999_999);
        assert_eq!(from_epoch(-1, 0), -1_000_000_000);
        assert_eq!(from_epoch(-1, 1), -999_999_999);
        assert_eq!(from_epoch(i64::from(i32::MIN), 3), -2_147_483_647_999_999_997);
    }

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
        assert!(!may(5, 6, MODE_FILE | 0o077, AccessFlags::R_OK));
        assert!(may(7, 6, MODE_FILE | 0o060, AccessFlags::R_OK | AccessFlags::W_OK));
        assert!(!may(7, 8, MODE_FILE | 0o760, AccessFlags::R_OK));
        assert!(may(7, 8, MODE_FILE, AccessFlags::F_OK));
        assert!(may(0, 0, MODE_FILE, AccessFlags::R_OK | AccessFlags::W_OK));
        assert!(!may(0, 0, MODE_FILE | 0o666, AccessFlags::X_OK));
        assert!(may(0, 0, MODE_FILE | 0o010, AccessFlags::X_OK));
        assert!(may(0, 0, MODE_DIR, AccessFlags::X_OK));
    }
}
