//! POSIX ACLs, as Linux stores them in extended attributes: a header, then entries
//! (`linux/posix_acl_xattr.h`).

use std::ffi::OsStr;

/// The attribute with the ACL of an object. It shares permissions with the mode.
pub const ACCESS: &str = "system.posix_acl_access";
/// The attribute with the ACL that new objects in a directory get.
pub const DEFAULT: &str = "system.posix_acl_default";

/// The length of the header.
pub const HEADER: usize = 4;
/// The length of an entry.
pub const ENTRY: usize = 8;

/// A tag, permissions and an id, in little-endian order: 2, 2 and 4 bytes.
pub type Entry = [u8; ENTRY];

/// The tag of the entry of the owner.
pub const USER_OBJ: u16 = 0x01;
/// The tag of an entry of a user.
pub const USER: u16 = 0x02;
/// The tag of the entry of the object's group.
pub const GROUP_OBJ: u16 = 0x04;
/// The tag of an entry of a group.
pub const GROUP: u16 = 0x08;
/// The tag of the entry that limits users and groups.
pub const MASK: u16 = 0x10;
/// The tag of the entry of all others.
pub const OTHER: u16 = 0x20;

/// Whether an extended attribute is an ACL.
pub fn is_acl(name: &OsStr) -> bool {
    name == ACCESS || name == DEFAULT
}

/// The entries of an ACL: none in a value that is too short.
pub fn entries_mut(acl: &mut [u8]) -> &mut [Entry] {
    acl.get_mut(HEADER..).unwrap_or_default().as_chunks_mut().0
}

/// The tag of an entry.
pub fn tag(entry: &Entry) -> u16 {
    u16::from_le_bytes([entry[0], entry[1]])
}
