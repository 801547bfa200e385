//! The names of extended attributes: marks of an overlay on its layers, and attributes of objects
//! that look like them.
//!
//! The mounted tree may contain a layer of another overlay, which marks it with the same
//! attributes. The layers store such an attribute *escaped*, as those of the kernel's overlayfs do
//! (`ovl_xattr_escape_name` in fs/overlayfs/xattrs.c): `trusted.overlay.NAME` becomes
//! `trusted.overlay.overlay.NAME`. An attribute without an escape is a mark of the layer, and
//! hidden. Overlays nest at any depth, since each adds one escape.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::errno::EOPNOTSUPP;
use crate::layer::{Layer, Object, Owner, Result};

/// The prefixes of the names of marks: those of the kernel's overlayfs, fuse-overlayfs and this
/// overlay, and of container tools.
const OWN: [&str; 5] =
    ["trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "trusted.fuseoverlayfs.", "user.containers."];
/// Follows the prefix in the stored name of an attribute that is no mark.
const ESCAPE: &str = "overlay.";

/// The attribute with the owner and mode to show for an object that could not get them.
pub const OWNER_RECORD: &str = "user.containers.override_stat";
/// [`OWNER_RECORD`], and the older name, which is only read.
pub const OWNER_RECORDS: [&str; 2] = [OWNER_RECORD, "user.fuseoverlayfs.override_stat"];

/// Returns an owner, and a mode of at most `0o7777`, as the attribute has them: `UID:GID:MODE`, the
/// mode in octal.
pub fn owner_record(owner: Owner, mode: u32) -> String {
    format!("{}:{}:{mode:o}", owner.uid, owner.gid)
}

/// Parses the value that [`owner_record`] returns. Another program may have added the kind of the
/// object. Returns None if it is no such value.
pub fn recorded_owner(value: &[u8]) -> Option<(Owner, u32)> {
    let mut words = std::str::from_utf8(value).ok()?.split(':');
    let mut id = || words.next()?.parse().ok().filter(|id| *id != u32::MAX);
    let owner = Owner { uid: id()?, gid: id()? };
    let mode = u32::from_str_radix(words.next()?, 8).ok()?;
    Some((owner, mode & 0o7777))
}

/// Returns the name by which layers store the attribute that the merged tree shows as `name`.
pub fn stored(name: &OsStr) -> Cow<'_, OsStr> {
    match own(name) {
        Some((prefix, rest)) => Cow::Owned(OsString::from_vec([prefix.as_bytes(), ESCAPE.as_bytes(), rest].concat())),
        None => Cow::Borrowed(name),
    }
}

/// Returns the name by which the merged tree shows the attribute that layers store as `name`. None
/// for a mark of the layer.
pub fn shown(name: &OsStr) -> Option<Cow<'_, OsStr>> {
    match own(name) {
        Some((prefix, rest)) => {
            let rest = rest.strip_prefix(ESCAPE.as_bytes())?;
            Some(Cow::Owned(OsString::from_vec([prefix.as_bytes(), rest].concat())))
        }
        None => Some(Cow::Borrowed(name)),
    }
}

/// Whether layers store an attribute under the name by which the merged tree shows it, whatever
/// their format is.
pub fn is_plain(name: &OsStr) -> bool {
    own(name).is_none()
}

/// Returns the names of an object's attributes, with an overlay's marks. Returns none if it cannot
/// have any.
///
/// # Errors
///
/// Those of [`Layer::xattrs`], but not EOPNOTSUPP.
pub fn names<L: Layer>(layer: &L, object: Object<'_, L>) -> Result<Vec<OsString>> {
    match layer.xattrs(object) {
        Err(error) if error.errno == EOPNOTSUPP => Ok(Vec::new()),
        names => names,
    }
}

/// Splits a name behind the prefix of marks, if it has one.
fn own(name: &OsStr) -> Option<(&'static str, &[u8])> {
    OWN.into_iter().find_map(|prefix| Some((prefix, name.as_bytes().strip_prefix(prefix.as_bytes())?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_attribute_shows_under_its_name() {
        for (name, kept) in [
            ("trusted.overlay.opaque", "trusted.overlay.overlay.opaque"),
            ("user.overlay.overlay.redirect", "user.overlay.overlay.overlay.redirect"),
            ("user.fuseoverlayfs.", "user.fuseoverlayfs.overlay."),
            ("user.overlayed", "user.overlayed"),
            ("security.capability", "security.capability"),
        ] {
            let (name, kept) = (OsStr::new(name), OsStr::new(kept));
            assert_eq!(stored(name), kept);
            assert_eq!(shown(kept).as_deref(), Some(name));
        }
    }

    #[test]
    fn an_owner_is_read_as_it_was_written() {
        let owner = Owner { uid: 1000, gid: 0 };
        assert_eq!(owner_record(owner, 0o4755), "1000:0:4755");
        for record in ["1000:0:4755", "1000:0:0104755", "1000:0:4755:file"] {
            assert_eq!(recorded_owner(record.as_bytes()), Some((owner, 0o4755)), "{record}");
        }
        for bad in
            ["", "1000", "1000:0", "-1:0:755", "4294967295:0:755", "0:4294967295:755", "0:0:8", "a:b:c", "\u{ff}"]
        {
            assert_eq!(recorded_owner(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn marks_are_not_shown() {
        for mark in ["trusted.overlay.opaque", "user.overlay.overlayx", "user.fuseoverlayfs.origin", "user.overlay."] {
            assert_eq!(shown(OsStr::new(mark)), None, "{mark}");
        }
    }
}
