//! The system calls of an open layer. A process that confines itself allows these beside its own.
//!
//! `tests/layer_calls.rs` fails if a method of the layer makes another one.

use libc::c_long;

/// These calls have no name in the crate `libc` yet. They have the same number on all architectures
/// that Linux numbers alike.
pub const SYS_FCHMODAT2: c_long = 452;
pub const SYS_SETXATTRAT: c_long = 463;
pub const SYS_GETXATTRAT: c_long = 464;
pub const SYS_LISTXATTRAT: c_long = 465;
pub const SYS_REMOVEXATTRAT: c_long = 466;

/// The system calls that an open layer makes, but for ioctl(2). Opening a layer takes others.
pub const SYSTEM_CALLS: &[c_long] = &[
    // Data.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_copy_file_range,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_syncfs,
    // Descriptors.
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_clock_nanosleep,
    // Attributes.
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_fchownat,
    SYS_FCHMODAT2,
    // In its place before Linux 6.6.
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
    libc::SYS_getxattr,
    libc::SYS_fgetxattr,
    libc::SYS_setxattr,
    libc::SYS_fsetxattr,
    libc::SYS_listxattr,
    libc::SYS_flistxattr,
    libc::SYS_removexattr,
    libc::SYS_fremovexattr,
    SYS_SETXATTRAT,
    SYS_GETXATTRAT,
    SYS_LISTXATTRAT,
    SYS_REMOVEXATTRAT,
    // Names.
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    // The owner of new objects.
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_prctl,
];

/// The requests of ioctl(2) that an open layer makes.
pub const IOCTLS: &[libc::Ioctl] = &[libc::FICLONE, libc::FS_IOC_GETFLAGS, libc::FS_IOC_SETFLAGS];
