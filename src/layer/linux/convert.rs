//! Converts between types of the layer and types of the system.

use rustix::fs::{FileType, Mode, Statx, StatxAttributes, StatxFlags, StatxTimestamp, Timespec, makedev};
use rustix::io::Errno;

use crate::errno::{EINVAL, EIO};
use crate::format::fnv1a;
use crate::layer::{Error, Fixed, Kind, Result, Stat, Time};

/// Converts attributes.
///
/// # Errors
///
/// - EIO: Linux has no such kind of object.
pub fn stat_of(stat: &rustix::fs::Stat) -> Result<Stat> {
    let kind = kind_of(FileType::from_raw_mode(stat.st_mode)).ok_or(Error::new(EIO))?;
    let time = |sec, nsec| Time { sec, nsec };
    Ok(Stat {
        dev: stat.st_dev,
        ino: stat.st_ino,
        kind,
        mode: stat.st_mode & 0o7777,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev,
        size: stat.st_size as u64,
        blksize: stat.st_blksize as u32,
        blocks: stat.st_blocks as u64,
        atime: time(stat.st_atime, stat.st_atime_nsec as u32),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec as u32),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec as u32),
        fixed: Fixed::default(),
        generation: 0,
    })
}

/// Does the same, with the flags that forbid changes and with the generation.
pub fn stat_of_statx(stat: &Statx) -> Result<Stat> {
    let kind = kind_of(FileType::from_raw_mode(stat.stx_mode.into())).ok_or(Error::new(EIO))?;
    let time = |time: StatxTimestamp| Time { sec: time.tv_sec, nsec: time.tv_nsec };
    Ok(Stat {
        dev: makedev(stat.stx_dev_major, stat.stx_dev_minor),
        ino: stat.stx_ino,
        kind,
        mode: u32::from(stat.stx_mode) & 0o7777,
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
        size: stat.stx_size,
        blksize: stat.stx_blksize,
        blocks: stat.stx_blocks,
        atime: time(stat.stx_atime),
        mtime: time(stat.stx_mtime),
        ctime: time(stat.stx_ctime),
        fixed: Fixed {
            immutable: stat.stx_attributes.contains(StatxAttributes::IMMUTABLE),
            append: stat.stx_attributes.contains(StatxAttributes::APPEND),
        },
        generation: birth_of(stat).map_or(0, generation),
    })
}

/// Returns the time of birth, if the filesystem tells it.
pub fn birth_of(stat: &Statx) -> Option<Time> {
    let known = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    known.then_some(Time { sec: stat.stx_btime.tv_sec, nsec: stat.stx_btime.tv_nsec })
}

/// Returns a generation, not 0, for an object that was born at this time.
fn generation(birth: Time) -> u32 {
    let words = [birth.sec.cast_unsigned(), birth.nsec.into()].map(u64::to_le_bytes);
    (fnv1a(words.as_flattened()) as u32).max(1)
}

/// Converts a kind. Returns None if the system does not tell it.
pub fn kind_of(file_type: FileType) -> Option<Kind> {
    match file_type {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Dir),
        FileType::Symlink => Some(Kind::Symlink),
        FileType::Fifo => Some(Kind::Fifo),
        FileType::Socket => Some(Kind::Socket),
        FileType::CharacterDevice => Some(Kind::CharDev),
        FileType::BlockDevice => Some(Kind::BlockDev),
        FileType::Unknown => None,
    }
}

/// Returns the permission, set-id and sticky bits of a mode.
pub fn mode_of(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

/// Converts a time.
///
/// # Errors
///
/// - EINVAL: the nanoseconds are out of range. The system would take some such numbers for
///   commands.
pub fn timespec(time: Time) -> Result<Timespec> {
    if time.nsec >= 1_000_000_000 {
        return Err(Error::new(EINVAL));
    }
    Ok(Timespec { tv_sec: time.sec, tv_nsec: time.nsec.into() })
}

/// Converts an errno.
pub fn error(errno: Errno) -> Error {
    Error::new(errno.raw_os_error())
}
