//! Converts values of the engine to those of the protocol.

use overlayfs::layer::{Kind, Stat, Time};

use crate::wire::{Attr, device_to_wire};

/// Returns the type bits of a mode.
pub fn kind_bits(kind: Kind) -> u32 {
    match kind {
        Kind::File => libc::S_IFREG,
        Kind::Dir => libc::S_IFDIR,
        Kind::Symlink => libc::S_IFLNK,
        Kind::Fifo => libc::S_IFIFO,
        Kind::Socket => libc::S_IFSOCK,
        Kind::CharDev => libc::S_IFCHR,
        Kind::BlockDev => libc::S_IFBLK,
    }
}

/// Returns the kind that the type bits of a mode name; a regular file if they are zero.
pub fn kind_of(mode: u32) -> Option<Kind> {
    Some(match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Kind::File,
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFCHR => Kind::CharDev,
        libc::S_IFBLK => Kind::BlockDev,
        _ => return None,
    })
}

/// Converts attributes. The protocol stores negative seconds, before 1970, in two's complement.
pub fn attr(stat: &Stat) -> Attr {
    Attr {
        ino: stat.ino,
        size: stat.size,
        blocks: stat.blocks,
        atime: stat.atime.sec as u64,
        mtime: stat.mtime.sec as u64,
        ctime: stat.ctime.sec as u64,
        atimensec: stat.atime.nsec,
        mtimensec: stat.mtime.nsec,
        ctimensec: stat.ctime.nsec,
        mode: kind_bits(stat.kind) | stat.mode,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: device_to_wire(stat.rdev),
        blksize: stat.blksize,
        flags: 0,
    }
}

/// Makes a time of the two fields of the protocol.
pub fn time(sec: u64, nsec: u32) -> Time {
    Time { sec: sec as i64, nsec }
}
