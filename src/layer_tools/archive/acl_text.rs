//! ACLs as text, which GNU tar, star and bsdtar read and write:
//! `user::rw-,user:1000:r--,group::r--` and so on, with commas or line breaks. A layer has them as
//! bytes.

use crate::layer::acl::{Entry, GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, entries_mut, tag};

/// The version in the header of an ACL (`linux/posix_acl_xattr.h`).
const VERSION: u32 = 2;
/// The id of an entry that needs none.
const NO_ID: u32 = u32::MAX;

/// The kind of an account with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Account {
    /// A user.
    User,
    /// A group.
    Group,
}

/// The reason why a text is no ACL.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is damaged.
    Damaged,
    /// It has this name, and its number is unknown.
    Unknown(Account, String),
}

/// Parses an ACL, and returns the value of its extended attribute. `id` returns the number of a
/// name that the text has without one.
///
/// # Errors
///
/// Each variant of [`Wrong`].
pub fn parse(text: &str, id: &mut dyn FnMut(Account, &str) -> Option<u32>) -> Result<Vec<u8>, Wrong> {
    let lines = text.split([',', '\n']).map(|line| line.split('#').next().unwrap_or_default().trim());
    let lines = lines.filter(|line| !line.is_empty());
    let mut entries = lines.map(|line| entry(line, id)).collect::<Result<Vec<_>, _>>()?;
    // The kernel wants this order.
    entries.sort_unstable();
    let bytes = |(tag, id, permissions): &(u16, u32, u16)| -> Entry {
        let ([a, b], [c, d], [e, f, g, h]) = (tag.to_le_bytes(), permissions.to_le_bytes(), id.to_le_bytes());
        [a, b, c, d, e, f, g, h]
    };
    Ok(VERSION.to_le_bytes().into_iter().chain(entries.iter().flat_map(bytes)).collect())
}

/// Returns the number of a name in the text of `etc/passwd` or `etc/group`.
pub fn number_in(file: &[u8], name: &str) -> Option<u32> {
    file.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let found = fields.next().filter(|found| *found == name.as_bytes())?;
        fields.nth(1).filter(|_| !found.is_empty()).and_then(|digits| str::from_utf8(digits).ok()?.parse().ok())
    })
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
fn entry(line: &str, id: &mut dyn FnMut(Account, &str) -> Option<u32>) -> Result<(u16, u32, u16), Wrong> {
    let fields: Vec<_> = line.split(':').map(str::trim).collect();
    let [tag, name, permissions, ref rest @ ..] = fields[..] else { return Err(Wrong::Damaged) };
    let tag = match (tag, name.is_empty()) {
        ("user" | "u", true) => USER_OBJ,
        ("user" | "u", false) => USER,
        ("group" | "g", true) => GROUP_OBJ,
        ("group" | "g", false) => GROUP,
        ("mask" | "m", true) => MASK,
        ("other" | "o", true) => OTHER,
        _ => return Err(Wrong::Damaged),
    };
    let account = if tag == USER { Account::User } else { Account::Group };
    let number = match (tag, rest.first()) {
        (USER | GROUP, Some(number)) => number.parse().map_err(|_| Wrong::Damaged)?,
        (USER | GROUP, None) => {
            let number = name.parse().ok().or_else(|| id(account, name));
            number.ok_or_else(|| Wrong::Unknown(account, name.to_owned()))?
        }
        _ => NO_ID,
    };
    let bit = |letter| match letter {
        'r' => Some(4),
        'w' => Some(2),
        'x' => Some(1),
        '-' => Some(0),
        _ => None,
    };
    let permissions = permissions.chars().try_fold(0, |bits, letter| Some(bits | bit(letter)?));
    Ok((tag, number, permissions.ok_or(Wrong::Damaged)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(account: Account, name: &str) -> Option<u32> {
        number_in(b"root:x:0:0::/:/bin/sh\n\nlp:x:7:7\nbad\n:x:9", name).filter(|_| account == Account::User)
    }

    #[test]
    fn all_spellings_mean_the_same() {
        let acl = parse("user::rw-\nuser:7:r--\ngroup::r-x\nmask::rwx\nother::---\n", &mut known).unwrap();
        let hex: String = acl.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "02000000 01000600ffffffff 0200040007000000 04000500ffffffff 10000700ffffffff 20000000ffffffff"
                .replace(' ', "")
        );
        for other in [
            "other::---,user::rw-,mask::rwx,group::r-x,user:7:r--",
            "u::rw, u:daemon:r:7, g::rx, m::rwx, o::  # comment",
            "user::rw-,user:lp:r--,group::r-x,mask::rwx,other::---",
        ] {
            assert_eq!(parse(other, &mut known), Ok(acl.clone()), "{other}");
        }
        assert_eq!(text(&acl), "user::rw-\nuser:7:r--\ngroup::r-x\nmask::rwx\nother::---\n");
    }

    #[test]
    fn damage_and_unknown_names_are_errors() {
        for wrong in ["user", "user::rz", "mask:7:r", "king::rwx", "user:lp:r:x", "user:lp:r:-1"] {
            assert_eq!(parse(wrong, &mut known), Err(Wrong::Damaged), "{wrong}");
        }
        for (wrong, account, name) in [
            ("user:daemon:r--", Account::User, "daemon"),
            ("group:lp:r", Account::Group, "lp"),
            ("group:-1:r", Account::Group, "-1"),
            ("user:bad:r", Account::User, "bad"),
        ] {
            assert_eq!(parse(wrong, &mut known), Err(Wrong::Unknown(account, name.to_owned())), "{wrong}");
        }
    }
}
