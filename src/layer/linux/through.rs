//! Writes past the page cache. That replaces an fsync for a file that must only be complete before
//! it gets its name.
//!
//! A write with O_DIRECT returns after the data went to the disk. On ext4 and XFS, size and place
//! of the data are then in the journal. A later rename follows in the same journal. Before the
//! filesystem writes the journal, it tells the disk to keep the data. So if the name is there after
//! a crash, the data is too.
//!
//! On btrfs the place of the data may reach the disk after the name. An ext4 without a journal, or
//! with one on another disk, promises nothing. Other filesystems are unknown.

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::errno::{EOPNOTSUPP, Error};
use rustix::fs::{OFlags, Statx};
use rustix::io::{Errno, retry_on_intr};

use super::convert::error;
use crate::layer::{Result, THROUGH, write_all_with};

/// The inode of the journal on an ext4 filesystem with the journal on its own disk.
const JOURNAL: u32 = 8;

/// Whether the filesystem of a directory writes names to the disk after data from earlier calls of
/// [`write()`]. False if that is unknown.
pub fn keeps_order(dir: &OwnedFd) -> bool {
    let (Ok(filesystem), Ok(stat)) = (rustix::fs::fstatfs(dir), rustix::fs::fstat(dir)) else { return false };
    match filesystem.f_type as u64 {
        magic if magic == libc::XFS_SUPER_MAGIC as u64 => true,
        magic if magic == libc::EXT4_SUPER_MAGIC as u64 => {
            let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
            let device = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
            device.is_ok_and(|device| {
                let name = device.file_name().unwrap_or_default().display().to_string();
                Path::new(&format!("/proc/fs/jbd2/{name}-{JOURNAL}")).exists()
            })
        }
        _ => false,
    }
}

/// Writes all of `buf` at `offset`, a multiple of [`THROUGH`]. Fills the file with zeros up to the
/// next multiple. The file takes that ([`takes_direct`]), and was opened without any flag that
/// fcntl(2) can change.
///
/// # Errors
///
/// - EOPNOTSUPP: the filesystem cannot do that.
pub fn write(file: &OwnedFd, buf: &[u8], offset: u64) -> Result<()> {
    if !offset.is_multiple_of(THROUGH) {
        return Err(Error::new(EOPNOTSUPP));
    }
    let unit = THROUGH as usize;
    let length = buf.len().next_multiple_of(unit);
    let mut room = vec![0; length + unit];
    let start = room.as_ptr().align_offset(unit);
    let aligned = room.get_mut(start..start + length).ok_or(Error::new(EOPNOTSUPP))?;
    aligned[..buf.len()].copy_from_slice(buf);
    rustix::fs::fcntl_setfl(file, OFlags::DIRECT).map_err(unsupported)?;
    let written = write_all_with(aligned, offset, |bytes, offset| {
        retry_on_intr(|| rustix::io::pwrite(file, bytes, offset)).map_err(unsupported)
    });
    rustix::fs::fcntl_setfl(file, OFlags::empty()).map_err(error)?;
    written
}

/// Whether the data of a new file can bypass the page cache, by its attributes and
/// `STATX_DIOALIGN`. Data of encrypted files, or inside the inode, goes through the cache without
/// an error. False before Linux 6.1, which does not tell.
pub fn takes_direct(file: &Statx) -> bool {
    (1..=THROUGH).contains(&u64::from(file.stx_dio_offset_align))
}

fn unsupported(errno: Errno) -> Error {
    match errno {
        Errno::INVAL => Error::new(EOPNOTSUPP),
        other => error(other),
    }
}
