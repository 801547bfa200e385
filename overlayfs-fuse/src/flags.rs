//! The ioctls for the flags of chattr(1). The kernel has them as calls of a filesystem, and
//! passes them on to a FUSE daemon.

use overlayfs::errno::{EINVAL, ENOTTY, EOPNOTSUPP, Error, Result};
use zerocopy::{FromBytes, IntoBytes};

use crate::front_end::FrontEnd;
use crate::wire::Fsxattr;

const GETFLAGS: u32 = 0x8008_6601;
const SETFLAGS: u32 = 0x4008_6602;
const FSGETXATTR: u32 = 0x801c_581f;
const FSSETXATTR: u32 = 0x401c_5820;

/// The flags of both kinds of ioctls, as `FS_*_FL` and as `FS_XFLAG_*`: immutable, append-only,
/// synchronous, no access times, no dump.
const BOTH: [(u32, u32); 5] = [(0x10, 0x8), (0x20, 0x10), (0x8, 0x20), (0x80, 0x40), (0x40, 0x80)];

/// Performs an ioctl with the argument `input`. Returns the new value of the argument.
///
/// # Errors
///
/// - ENOTTY: the ioctl is another one.
/// - EINVAL: the argument is too short.
/// - EOPNOTSUPP: the argument sets a flag or a field that only this kind of ioctl has.
pub fn perform(front_end: &impl FrontEnd, node: u64, command: u32, input: &[u8]) -> Result<Vec<u8>> {
    match command {
        GETFLAGS => Ok(front_end.flags(node)?.to_ne_bytes().to_vec()),
        SETFLAGS => {
            let (flags, _) = u32::read_from_prefix(input).map_err(|_| Error::new(EINVAL))?;
            front_end.set_flags(node, flags).map(|()| Vec::new())
        }
        FSGETXATTR => {
            let found = front_end.flags(node)?;
            let flags = BOTH.iter().filter(|(flag, _)| found & flag != 0).fold(0, |all, (_, other)| all | other);
            Ok(Fsxattr { flags, ..Fsxattr::default() }.as_bytes().to_vec())
        }
        FSSETXATTR => {
            let (asked, _) = Fsxattr::read_from_prefix(input).map_err(|_| Error::new(EINVAL))?;
            let known = BOTH.iter().fold(0, |all, (_, other)| all | other);
            if asked.flags & !known != 0 || (asked.extent, asked.project, asked.cow_extent) != (0, 0, 0) {
                return Err(Error::new(EOPNOTSUPP));
            }
            let set =
                |flags, (flag, other): &(u32, u32)| if asked.flags & other != 0 { flags | flag } else { flags & !flag };
            front_end.set_flags(node, BOTH.iter().fold(front_end.flags(node)?, set)).map(|()| Vec::new())
        }
        _ => Err(Error::new(ENOTTY)),
    }
}
