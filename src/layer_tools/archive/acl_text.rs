//! ACLs as text, which GNU tar, star and bsdtar read and write:
//! `user::rw-,user:1000:r--,group::r--` and so on, with commas or line breaks. A layer has them as
//! bytes.

use crate::layer::acl::{Entry, GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, entries_mut, tag};

/// The version in the header of an ACL (`linux/posix_acl_xattr.h`).
const VERSION: u32 = 2;
/// The id of an entry that needs none.
const NO_ID: u32 = u32::MAX;

/// Parses an ACL, and returns the value of its extended attribute. None if it is damaged, or has a
/// name without a number: the names of this system are others.
pub fn parse(text: &str) -> Option<Vec<u8>> {
    let lines = text.split([',', '\n']).map(|line| line.split('#').next().unwrap_or_default().trim());
    let mut entries = lines.filter(|line| !line.is_empty()).map(entry).collect::<Option<Vec<_>>>()?;
    // The kernel wants this order.
    entries.sort_unstable();
    let bytes = |(tag, id, permissions): &(u16, u32, u16)| -> Entry {
        let ([a, b], [c, d], [e, f, g, h]) = (tag.to_le_bytes(), permissions.to_le_bytes(), id.to_le_bytes());
        [a, b, c, d, e, f, g, h]
    };
    Some(VERSION.to_le_bytes().into_iter().chain(entries.iter().flat_map(bytes)).collect())
}

/// Returns the text of the value of an extended attribute with an ACL, with numbers for users and
/// groups.
pub fn text(value: &[u8]) -> String {
    let mut value = value.to_vec();
    let line = |entry: &Entry| {
        let [_, _, bits, _, id @ ..] = *entry;
        let id = u32::from_le_bytes(id);
        let name = match tag(entry) {
            USER_OBJ => "user:".to_owned(),
            USER => format!("user:{id}"),
            GROUP_OBJ => "group:".to_owned(),
            GROUP => format!("group:{id}"),
            MASK => "mask:".to_owned(),
            _ => "other:".to_owned(),
        };
        let letters = [(4, 'r'), (2, 'w'), (1, 'x')].map(|(bit, letter)| if bits & bit == 0 { '-' } else { letter });
        format!("{name}:{}\n", letters.iter().collect::<String>())
    };
    entries_mut(&mut value).iter().map(line).collect()
}

/// Returns tag, id and permissions of `TAG:NAME:PERMISSIONS` or `TAG:NAME:PERMISSIONS:ID`.
fn entry(line: &str) -> Option<(u16, u32, u16)> {
    let mut fields = line.split(':').map(str::trim);
    let (tag, name, permissions, id) = (fields.next()?, fields.next()?, fields.next()?, fields.next());
    let tag = match (tag, name.is_empty()) {
        ("user" | "u", true) => USER_OBJ,
        ("user" | "u", false) => USER,
        ("group" | "g", true) => GROUP_OBJ,
        ("group" | "g", false) => GROUP,
        ("mask" | "m", true) => MASK,
        ("other" | "o", true) => OTHER,
        _ => return None,
    };
    let id = match tag {
        USER | GROUP => id.unwrap_or(name).parse().ok()?,
        _ => NO_ID,
    };
    let bit = |letter| match letter {
        'r' => Some(4),
        'w' => Some(2),
        'x' => Some(1),
        '-' => Some(0),
        _ => None,
    };
    let permissions = permissions.chars().try_fold(0, |bits, letter| Some(bits | bit(letter)?))?;
    Some((tag, id, permissions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_mean_the_same() {
        let acl = parse("user::rw-\nuser:7:r--\ngroup::r-x\nmask::rwx\nother::---\n").unwrap();
        let hex: String = acl.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "02000000 01000600ffffffff 0200040007000000 04000500ffffffff 10000700ffffffff 20000000ffffffff"
                .replace(' ', "")
        );
        for other in [
            "other::---,user::rw-,mask::rwx,group::r-x,user:7:r--",
            "u::rw, u:daemon:r:7, g::rx, m::rwx, o::  # comment",
        ] {
            assert_eq!(parse(other), Some(acl.clone()), "{other}");
        }
        assert_eq!(text(&acl), "user::rw-\nuser:7:r--\ngroup::r-x\nmask::rwx\nother::---\n");
    }

    #[test]
    fn damage_and_names_without_numbers_are_none() {
        for wrong in ["user", "user:daemon:r--", "user::rz", "mask:7:r", "king::rwx", "group:-1:r"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
