//! The structures and numbers of the FUSE protocol (`linux/fuse.h`) that the front ends use,
//! version 7.31 and later.

use std::time::Duration;

use overlayfs::errno::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The version of this code. Linux answers with its own if that is lower.
pub const MAJOR: u32 = 7;
/// The minor version.
pub const MINOR: u32 = 41;
/// The first version with requests to the kernel to drop objects (`FUSE_NOTIFY_PRUNE`): Linux 6.18.
pub const PRUNE_MINOR: u32 = 45;
/// The oldest version that has everything a front end needs: Linux 5.4.
pub const OLDEST_MINOR: u32 = 31;

/// The number of the root of the tree.
pub const ROOT: u64 = 1;

/// The kinds of requests.
#[expect(missing_docs, reason = "the names are those of linux/fuse.h")]
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
}

/// The features that kernel and front end agree on (`FUSE_*` of INIT).
#[expect(missing_docs, reason = "the names are those of linux/fuse.h")]
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const HANDLE_KILLPRIV: u64 = 1 << 19;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const PASSTHROUGH: u64 = 1 << 37;
    pub const HAS_RESEND: u64 = 1 << 39;
    pub const OVER_IO_URING: u64 = 1 << 41;
}

/// The attributes that a SETATTR sets (`FATTR_*`).
#[expect(missing_docs, reason = "the names are those of linux/fuse.h")]
pub mod set {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
    /// The flags of which each sets an attribute.
    pub const ANY: u32 = MODE | UID | GID | SIZE | ATIME | MTIME;
}

/// The cached pages of a file stay valid when it is opened again (`FOPEN_KEEP_CACHE`).
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// The kernel reads the file of the backing (`FOPEN_PASSTHROUGH`).
pub const FOPEN_PASSTHROUGH: u32 = 1 << 7;
/// Gives the kernel a file as a backing (`FUSE_DEV_IOC_BACKING_OPEN`).
pub const IOC_BACKING_OPEN: libc::Ioctl = 0x4010_e501_u32 as libc::Ioctl;
/// Takes it back (`FUSE_DEV_IOC_BACKING_CLOSE`).
pub const IOC_BACKING_CLOSE: libc::Ioctl = 0x4004_e502_u32 as libc::Ioctl;
/// The data of a WRITE come from the page cache, maybe of a shared mapping (`FUSE_WRITE_CACHE`).
pub const WRITE_CACHE: u32 = 1 << 0;
/// The writer may not keep set-id bits (`FUSE_WRITE_KILL_SUIDGID`).
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// A SETXATTR of an access ACL removes the set-group-id bit (`FUSE_SETXATTR_ACL_KILL_SGID`).
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// Makes an entry of a ring ready for its first request (`FUSE_IO_URING_CMD_REGISTER`).
pub const RING_REGISTER: u32 = 1;
/// Answers the request of an entry, and makes it ready for the next
/// (`FUSE_IO_URING_CMD_COMMIT_AND_FETCH`).
pub const RING_COMMIT: u32 = 2;
/// The notification that cached attributes or pages of a file may be invalid
/// (`FUSE_NOTIFY_INVAL_INODE`).
pub const NOTIFY_INVAL_INODE: i32 = 2;
/// The notification that an entry is not valid any more (`FUSE_NOTIFY_INVAL_ENTRY`).
pub const NOTIFY_INVAL_ENTRY: i32 = 3;
/// The notification that the kernel should send all requests again that have no answer
/// (`FUSE_NOTIFY_RESEND`).
pub const NOTIFY_RESEND: i32 = 7;
/// Marks the number of a request that the kernel sends again (`FUSE_UNIQUE_RESEND`).
pub const RESENT: u64 = 1 << 63;
/// The notification that the kernel should drop objects (`FUSE_NOTIFY_PRUNE`).
pub const NOTIFY_PRUNE: i32 = 9;

/// Defines structures in the layout of the protocol.
macro_rules! wire {
    ($($(#[$meta:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
            #[repr(C)]
            #[expect(missing_docs, reason = "the names are those of linux/fuse.h")]
            pub struct $name {
                $(pub $field: $type,)*
            }
        )*
    };
}

wire! {
    /// The head of every request.
    InHeader {
        len: u32, opcode: u32, unique: u64, node: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16,
    }
    /// The head of every answer.
    OutHeader { len: u32, error: i32, unique: u64 }
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11] }
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    /// Attributes in an answer. Times are seconds and nanoseconds since 1970. Earlier ones are in
    /// two's complement.
    Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    EntryOut {
        node: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
        attr: Attr,
    }
    AttrOut { valid: u64, valid_nsec: u32, dummy: u32, attr: Attr }
    ForgetIn { count: u64 }
    BatchForgetIn { count: u32, dummy: u32 }
    ForgetOne { node: u64, count: u64 }
    /// A SETATTR. `valid` names the fields to set.
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkdirIn { mode: u32, umask: u32 }
    RenameIn { new_dir: u64 }
    Rename2In { new_dir: u64, flags: u32, padding: u32 }
    LinkIn { node: u64 }
    OpenIn { flags: u32, open_flags: u32 }
    OpenOut { fh: u64, open_flags: u32, backing_id: i32 }
    BackingMap { fd: i32, flags: u32, padding: u64 }
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteIn { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteOut { size: u32, padding: u32 }
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    FsyncIn { fh: u64, flags: u32, padding: u32 }
    AccessIn { mask: u32, padding: u32 }
    SetxattrIn { size: u32, flags: u32 }
    /// Between [`SetxattrIn`] and the name, if [`init::SETXATTR_EXT`] is agreed.
    SetxattrExt { setxattr_flags: u32, padding: u32 }
    GetxattrIn { size: u32, padding: u32 }
    GetxattrOut { size: u32, padding: u32 }
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    LseekIn { fh: u64, offset: u64, whence: u32, padding: u32 }
    LseekOut { offset: u64 }
    IoctlIn { fh: u64, flags: u32, command: u32, argument: u64, in_size: u32, out_size: u32 }
    IoctlOut { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    /// Attributes of a file in the layout of `FS_IOC_FSGETXATTR`.
    Fsxattr { flags: u32, extent: u32, extents: u32, project: u32, cow_extent: u32, padding: [u32; 2] }
    CopyFileRangeIn {
        fh: u64, offset: u64, to_node: u64, to_fh: u64, to_offset: u64, length: u64, flags: u64,
    }
    StatxTime { sec: i64, nsec: u32, reserved: i32 }
    Statx {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16, ino: u64,
        size: u64, blocks: u64, attributes_mask: u64, atime: StatxTime, btime: StatxTime, ctime: StatxTime,
        mtime: StatxTime, rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    StatxOut { valid: u64, valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx }
    StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    /// An entry of a listing. The name follows, with zeros up to a multiple of eight bytes.
    Dirent { ino: u64, offset: u64, name_length: u32, kind: u32 }
    NotifyInvalInode { node: u64, offset: i64, length: i64 }
    /// The memory of a ring's entry that has no data (`fuse_uring_req_header`). `head` has the header
    /// of the request, then that of its answer. `first` has the first structure of the request.
    RingHeaders {
        head: [u64; 16], first: [u64; 16], flags: u64, commit: u64, payload: u32, padding: u32, reserved: u64,
    }
    /// A command of a ring (`fuse_uring_cmd_req`).
    RingCommand { flags: u64, commit: u64, queue: u16, padding: [u16; 3] }
    /// The name follows, with a zero at the end.
    NotifyInvalEntry { parent: u64, name_length: u32, flags: u32 }
    /// The numbers of `count` objects follow.
    NotifyPrune { count: u32, padding: u32, spare: u64 }
}

/// Returns a duration as the seconds and nanoseconds of an answer.
pub fn valid_for(time: Duration) -> (u64, u32) {
    (time.as_secs(), time.subsec_nanos())
}

/// Returns an errno as answers have it: the number of Linux, negative. The engine has two numbers
/// for an errno to which Linux gives two names.
pub fn errno(error: Error) -> i32 {
    -error.raw_os_error()
}

/// Returns a device number in the 32 bits of the protocol.
pub fn device_to_wire(device: u64) -> u32 {
    let (major, minor) = (libc::major(device), libc::minor(device));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Returns a device number of the protocol in the form of the system's calls.
pub fn device_from_wire(device: u32) -> u64 {
    libc::makedev((device & 0xf_ff00) >> 8, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes are those of `linux/fuse.h`.
    #[test]
    fn structures_have_the_sizes_of_the_protocol() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<InitIn>(), 64);
        assert_eq!(size_of::<InitOut>(), 64);
        assert_eq!(size_of::<Attr>(), 88);
        assert_eq!(size_of::<EntryOut>(), 128);
        assert_eq!(size_of::<AttrOut>(), 104);
        assert_eq!(size_of::<SetattrIn>(), 88);
        assert_eq!(size_of::<WriteIn>(), 40);
        assert_eq!(size_of::<CopyFileRangeIn>(), 56);
        assert_eq!(size_of::<Statx>(), 256);
        assert_eq!(size_of::<StatxOut>(), 288);
        assert_eq!(size_of::<StatfsOut>(), 80);
        assert_eq!(size_of::<RingHeaders>(), 288);
        assert_eq!(size_of::<RingCommand>(), 24);
    }

    #[test]
    fn device_numbers_go_both_ways() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 256), (4095, 0xf_ffff)] {
            let device = libc::makedev(major, minor);
            assert_eq!(device_from_wire(device_to_wire(device)), device);
        }
    }
}
