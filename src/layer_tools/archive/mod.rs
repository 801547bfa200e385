//! Tar archives, as image layers are: one object of a tree after the other.
//!
//! | file | subject |
//! | --- | --- |
//! | `write` | writes the members of an archive, the same bytes for the same members |
//! | `read` | reads archives of all usual programs, and bounds what a damaged one costs |
//! | `pax` | the records that hold what the header of a member has no room for |
//! | `acl_text` | ACLs in the form of a text |
//! | `compress` | gzip and zstd, and digests of what passes |
//!
//! The crate `tar` knows the layout of a header. Its reader keeps names of any length in memory and
//! ends an attribute at a newline, so reading and writing of records is here.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use crate::layer::Time;

pub mod acl_text;
pub mod compress;
pub mod pax;
pub mod read;
pub mod write;

/// The unit of an archive, in bytes.
const BLOCK: usize = 512;

/// The extended attribute with the label of SELinux. Each system labels its own objects, so layers
/// carry none.
pub const LABEL: &str = "security.selinux";

/// One object of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The path from the top of the layer, as the archive says it; the reader does not check it.
    pub path: PathBuf,
    /// What it is.
    pub kind: MemberKind,
    /// Permission, set-id and sticky bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The last change of the content.
    pub mtime: Time,
    /// The last access, if the archive says it.
    pub atime: Option<Time>,
    /// The extended attributes, under the names that the merged tree shows.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// ACLs in the form of a text: for objects, and for new objects in a directory.
    pub acls: [Option<String>; 2],
}

/// The kind of an object of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file.
    File {
        /// The size, with all holes.
        size: u64,
        /// The ranges that the archive has the data of, in their order. All others are holes.
        data: Vec<Range<u64>>,
    },
    /// A directory.
    Dir,
    /// A symlink, and its target.
    Symlink(OsString),
    /// A further name of the object at this path.
    Link(PathBuf),
    /// A named pipe.
    Fifo,
    /// A character device, and its number as the system encodes it.
    CharDev(u64),
    /// A block device, and its number.
    BlockDev(u64),
}

/// The reason why an archive cannot be read. Its text is a clause.
#[derive(Debug)]
pub enum Error {
    /// The file with the archive, or a compressed stream.
    Io(io::Error),
    /// The archive itself.
    Damaged {
        /// The offset of the header.
        at: u64,
        /// The cause.
        cause: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(error) => write!(f, "{error}"),
            Error::Damaged { at, cause } => write!(f, "{cause} (at byte {at} of the archive)"),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Io(error)
    }
}

/// Splits the number of a device, in the encoding of Linux and relibc, into major and minor.
pub(super) fn device_numbers(rdev: u64) -> (u64, u64) {
    (rdev >> 8 & 0xfff | rdev >> 32 & 0xffff_f000, rdev & 0xff | rdev >> 12 & 0xffff_ff00)
}

/// Joins major and minor to the number of a device.
fn device(major: u32, minor: u32) -> u64 {
    let (major, minor) = (u64::from(major), u64::from(minor));
    (major & 0xfff) << 8 | (major & 0xffff_f000) << 32 | minor & 0xff | (minor & 0xffff_ff00) << 12
}
