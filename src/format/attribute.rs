//! The names of extended attributes: an overlay's own, by which it marks its layers, and those that lie under them.
//!
//! What is mounted may itself be the layer of another overlay, which marks it by the same attributes. Such an attribute of the merged tree is
//! *escaped* in the layers, as by the kernel's overlayfs: `trusted.overlay.NAME` is stored as `trusted.overlay.overlay.NAME`. What is stored
//! without an escape is a mark of the layer, and not shown. Overlays nest in any depth, since each adds one escape.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What the names begin with by which overlays mark their layers: the kernel's, fuse-overlayfs and this one.
const OWN: [&str; 4] = ["trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "trusted.fuseoverlayfs."];
/// What stands behind that in the name of an attribute that is no mark.
const ESCAPE: &str = "overlay.";

/// The name by which layers store the attribute that the merged tree shows as `name`.
pub fn stored(name: &OsStr) -> Cow<'_, OsStr> {
    match own(name) {
        Some((prefix, rest)) => Cow::Owned(OsString::from_vec([prefix.as_bytes(), ESCAPE.as_bytes(), rest].concat())),
        None => Cow::Borrowed(name),
    }
}

/// The name by which the merged tree shows what layers store as `name`. None for a mark of the layer.
pub fn shown(name: &OsStr) -> Option<Cow<'_, OsStr>> {
    match own(name) {
        Some((prefix, rest)) => {
            let rest = rest.strip_prefix(ESCAPE.as_bytes())?;
            Some(Cow::Owned(OsString::from_vec([prefix.as_bytes(), rest].concat())))
        }
        None => Some(Cow::Borrowed(name)),
    }
}

/// The two parts of a name that an overlay's own begin like.
fn own(name: &OsStr) -> Option<(&'static str, &[u8])> {
    OWN.into_iter().find_map(|prefix| Some((prefix, name.as_bytes().strip_prefix(prefix.as_bytes())?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_shown_as_it_was_named() {
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
    fn marks_are_not_shown() {
        for mark in ["trusted.overlay.opaque", "user.overlay.overlayx", "user.fuseoverlayfs.origin", "user.overlay."] {
            assert_eq!(shown(OsStr::new(mark)), None, "{mark}");
        }
    }
}
