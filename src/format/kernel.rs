//! The format of the kernel's overlayfs, as far as it is read: lower layers may come from there.
//!
//! A deletion is a character device with the number 0, or, in a directory that says so, an empty file with an attribute; marks of a directory are
//! extended attributes, in the namespace `trusted` or, of an overlay that a user mounted, `user` (Linux,
//! Documentation/filesystems/overlayfs.rst). fuse-overlayfs has an opaque mark of its own beside these.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::redirect_path;
use crate::layer::{Kind, Stat};

/// What the attributes of a directory say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Nothing of the layers below shows in it.
    pub opaque: bool,
    /// Files in it may be deletions: those that [`is_whiteout_mark`] is true for an attribute of.
    pub file_whiteouts: bool,
    /// Where it merges with the layers below, instead of by its own path.
    pub redirect: Option<Redirect>,
}

/// What a redirect names. A directory whose redirect names nothing merges with nothing, since nobody knows what it was to show.
#[derive(Debug, PartialEq, Eq)]
pub enum Redirect {
    /// A path from the top.
    Path(PathBuf),
    /// Another name in the same directory.
    Sibling(OsString),
    Nothing,
}

impl Marks {
    /// Takes in one attribute of a directory.
    pub fn add(&mut self, name: &OsStr, value: &[u8]) {
        match (mark(name), value) {
            (Some("opaque"), b"y") => self.opaque = true,
            (Some("opaque"), b"x") => self.file_whiteouts = true,
            (Some("redirect"), value) => self.redirect = Some(redirect(value)),
            _ => {}
        }
    }
}

/// Whether an attribute of a directory may say something to [`Marks::add`].
pub fn is_dir_mark(name: &OsStr) -> bool {
    matches!(mark(name), Some("opaque" | "redirect"))
}

/// Whether a file with this attribute is a deletion, in a directory where files may be.
pub fn is_whiteout_mark(name: &OsStr) -> bool {
    mark(name) == Some("whiteout")
}

/// Whether an object is a deletion.
pub fn is_whiteout(stat: &Stat) -> bool {
    stat.kind == Kind::CharDev && stat.rdev == 0
}

/// What comes behind the namespace.
fn mark(name: &OsStr) -> Option<&str> {
    let name = name.to_str()?;
    let own = ["trusted.overlay.", "user.overlay."].iter().find_map(|prefix| name.strip_prefix(prefix));
    own.or_else(|| name.strip_prefix("user.fuseoverlayfs.").filter(|mark| *mark == "opaque"))
}

fn redirect(value: &[u8]) -> Redirect {
    if let Some(path) = redirect_path(value) {
        return Redirect::Path(path);
    }
    let name = Path::new(OsStr::from_bytes(value));
    match name.file_name() {
        Some(plain) if plain == name.as_os_str() && !value.contains(&0) => Redirect::Sibling(plain.to_owned()),
        _ => Redirect::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(name: &str, value: &[u8]) -> Marks {
        let mut marks = Marks::default();
        marks.add(OsStr::new(name), value);
        marks
    }

    #[test]
    fn attributes_say_what_a_directory_is() {
        for prefix in ["trusted.overlay.", "user.overlay."] {
            assert!(marks(&format!("{prefix}opaque"), b"y").opaque);
            assert!(marks(&format!("{prefix}opaque"), b"x").file_whiteouts);
            assert_eq!(marks(&format!("{prefix}origin"), b"y"), Marks::default());
            assert!(is_whiteout_mark(OsStr::new(&format!("{prefix}whiteout"))));
            let redirect = |value| marks(&format!("{prefix}redirect"), value).redirect;
            assert_eq!(redirect(b"/a/b"), Some(Redirect::Path("a/b".into())));
            assert_eq!(redirect(b"b"), Some(Redirect::Sibling("b".into())));
            for nothing in [&b""[..], b"/", b"..", b"a/b", b"/a/../b", b"a\0"] {
                assert_eq!(redirect(nothing), Some(Redirect::Nothing), "{nothing:?}");
            }
        }
        assert!(marks("user.fuseoverlayfs.opaque", b"y").opaque);
        assert_eq!(marks("user.opaque", b"y"), Marks::default());
    }
}
