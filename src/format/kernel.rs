//! The format of the kernel's overlayfs. Lower layers may have it, and an upper layer can.
//!
//! A deletion is a character device with the number 0. In a directory with a certain mark it may
//! also be an empty file with an attribute. Marks of a directory are extended attributes, in the
//! namespace `trusted`, or `user` for an overlay that a user mounted (Linux,
//! Documentation/filesystems/overlayfs.rst). fuse-overlayfs has its own opaque mark too.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::plan::{Creation, End, Move, Moved, MovedMark, Name, New, Onto, Placement, Removal, Rename, Seen, Step};
use super::{DirMark, Features, Format, Redirect, UpperFormat, WhiteoutMark, fixed, redirect_content, redirect_path};
use crate::layer::{Fixed, Kind, Layer, Object, RenameMode, Result, Stat};

/// The namespace of the attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// `trusted.overlay.`, for root.
    Trusted,
    /// `user.overlay.`, for all other users. The kernel follows no redirects there.
    User,
}

/// The attribute of a directory for [`Marks::opaque`], and its value.
pub const OPAQUE: (&str, &[u8]) = ("opaque", b"y");
/// The attribute of a directory for [`Marks::redirect`].
pub const REDIRECT: &str = "redirect";
/// The attribute of a file that has its data in the layers below.
pub const METACOPY: &str = "metacopy";
/// The attribute of a directory or a file for [`Marks::fixed`].
pub const PROTATTR: &str = "protattr";
/// The attribute of the root of an upper layer that the engine writes in this format, and its
/// value. The kernel ignores it.
pub const FORMAT: (&str, &[u8]) = ("format", b"kernel");

/// The attributes by which the kernel marks the root of an upper layer.
const TOP: [&str; 3] = ["uuid", "impure", "origin"];

impl Namespace {
    /// The prefix of the names of the attributes.
    pub fn prefix(self) -> &'static str {
        match self {
            Namespace::Trusted => "trusted.overlay.",
            Namespace::User => "user.overlay.",
        }
    }

    /// Returns the whole name of an attribute.
    pub fn name(self, mark: &str) -> OsString {
        format!("{}{mark}", self.prefix()).into()
    }

    /// Returns the namespace in which the root of an upper layer is marked, by the engine or by the
    /// kernel's mount. None if it is not marked. The engine's own mark has precedence, then that of
    /// root.
    pub fn of(names: &[OsString]) -> Option<Self> {
        let all = [Namespace::Trusted, Namespace::User];
        let marked = |marks: &[&str]| {
            all.into_iter().find(|namespace| marks.iter().any(|mark| names.contains(&namespace.name(mark))))
        };
        marked(&[FORMAT.0]).or_else(|| marked(&TOP))
    }
}

/// The marks in the attributes of a directory. Of a file only [`Marks::redirect`] counts, which
/// tells where its data is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Whether it hides the layers below.
    pub opaque: bool,
    /// Whether files in it may be deletions: those with an attribute for which [`is_whiteout_mark`]
    /// is true.
    pub file_whiteouts: bool,
    /// The place where it merges with the layers below, instead of its own path.
    pub redirect: Option<Redirect>,
    /// Whether the redirect is in the namespace of users. One in that of root has precedence.
    pub redirect_is_users: bool,
    /// Whether it is immutable or append-only without the flags of its layer.
    pub fixed: Fixed,
}

impl Marks {
    /// Takes in one attribute.
    pub fn add(&mut self, name: &OsStr, value: &[u8]) {
        let is_users = is_users_mark(name);
        match (mark(name), value) {
            (Some("opaque"), b"y") => self.opaque = true,
            (Some("opaque"), b"x") => self.file_whiteouts = true,
            (Some(REDIRECT), value) if self.redirect.is_none() || !is_users => {
                (self.redirect, self.redirect_is_users) = (Some(redirect(value)), is_users);
            }
            (Some(PROTATTR), value) => self.fixed = self.fixed.or(fixed::parse(value).unwrap_or_default()),
            _ => {}
        }
    }
}

/// Returns the marks in an object's attributes, which have these names.
///
/// # Errors
///
/// Those of [`Layer::xattr`].
pub fn marks<L: Layer>(layer: &L, object: Object<'_, L>, names: &[OsString]) -> Result<Marks> {
    let mut marks = Marks::default();
    for name in names.iter().filter(|name| is_mark(name)) {
        marks.add(name, &layer.xattr(object, name)?);
    }
    Ok(marks)
}

/// Whether [`Marks::add`] knows an attribute.
fn is_mark(name: &OsStr) -> bool {
    matches!(mark(name), Some("opaque" | REDIRECT | PROTATTR))
}

/// Whether an attribute may limit which directories of the layers below merge.
pub fn limits_merge(name: &OsStr) -> bool {
    matches!(mark(name), Some("opaque" | REDIRECT))
}

/// Whether a directory with this attribute may hide the layers below.
pub fn is_opaque_mark(name: &OsStr) -> bool {
    mark(name) == Some(OPAQUE.0)
}

/// Whether the owner of an object can set this attribute.
pub fn is_users_mark(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"user.")
}

/// Whether a regular file with this attribute has only metadata of its own.
pub fn is_metacopy_mark(name: &OsStr) -> bool {
    mark(name) == Some(METACOPY)
}

/// Whether a file with this attribute is a deletion, in a directory where files may be deletions.
pub fn is_whiteout_mark(name: &OsStr) -> bool {
    mark(name) == Some("whiteout")
}

/// Whether an object is a deletion.
pub fn is_whiteout(stat: &Stat) -> bool {
    is_whiteout_device(stat.kind, stat.rdev)
}

/// Whether an object of this kind, with this number if it is a device, is a deletion.
pub fn is_whiteout_device(kind: Kind, rdev: u64) -> bool {
    kind == Kind::CharDev && rdev == 0
}

/// Returns the format of an upper layer with marks in this namespace.
pub const fn format(namespace: Namespace) -> Format {
    match namespace {
        Namespace::Trusted => &Kernel(Namespace::Trusted),
        Namespace::User => &Kernel(Namespace::User),
    }
}

struct Kernel(Namespace);

impl Kernel {
    fn mark(&self, name: &str, value: &[u8]) -> DirMark {
        DirMark::Attribute { name: self.0.name(name), value: value.to_vec() }
    }
}

impl UpperFormat for Kernel {
    fn features(&self) -> Features {
        Features {
            reserved_names: false,
            attribute_marks: true,
            // The kernel follows no redirects in the attributes of users.
            redirects: self.0 == Namespace::Trusted,
            zero_devices: false,
            // Partial copies need reserved names.
            partial_copies: false,
            metacopies: true,
            is_kernels: true,
        }
    }

    fn whiteout(&self, _: &OsStr, _: usize) -> WhiteoutMark {
        WhiteoutMark::InPlace
    }

    fn opaque(&self) -> DirMark {
        self.mark(OPAQUE.0, OPAQUE.1)
    }

    fn redirect(&self, path: &Path) -> DirMark {
        self.mark(REDIRECT, &redirect_content(path))
    }

    fn fixed(&self, fixed: Fixed) -> DirMark {
        self.mark(PROTATTR, &fixed::value(fixed))
    }

    fn clear_order(&self, _: &OsStr) -> u8 {
        0
    }

    fn create(&self, New { is_dir, at_once, whiteout }: New) -> Creation {
        let placement = match (whiteout, is_dir) {
            // "create anything but a directory where there is a whiteout"; "link where there is a
            // whiteout".
            (true, false) => Placement::Built(Onto::Whiteout),
            // "create a directory where there is a whiteout".
            (true, true) => Placement::Built(Onto::Swapped),
            // "create a file, symlink or node".
            (false, _) if at_once => Placement::AtOnce,
            (false, _) => Placement::Built(Onto::Free),
        };
        Creation { placement, opaque: is_dir && whiteout, uncover: false }
    }

    fn remove(&self, name: Name, is_dir: bool) -> Removal {
        let first = if name.upper && is_dir { vec![Step::Clear { opaque_first: true }] } else { Vec::new() };
        let seen = match (name.upper, name.lower) {
            // "unlink what only lower layers have".
            (false, _) => Seen::Whiteout,
            // "unlink what only the upper layer has"; "remove a directory that only the upper layer
            // has".
            (true, false) => Seen::Remove,
            // "unlink what both have"; "remove a directory that lower layers have too, and that
            // looks empty".
            (true, true) => Seen::Replace,
        };
        Removal { first, seen }
    }

    fn rename(&self, Move { old, new, is_dir, over_dir, leaves_device }: Move) -> Rename {
        // "rename over an empty directory that lower layers have too".
        let clear = (over_dir && new.upper).then_some(Step::Clear { opaque_first: true });
        let hides = old.lower || leaves_device;
        // "rename a directory to a name that has a whiteout"; "rename what lower layers have".
        let (mode, old_whiteout) = match (new.whiteout && is_dir, hides) {
            (true, _) => (RenameMode::Exchange, true),
            (false, true) => (RenameMode::Whiteout, true),
            (false, false) => (RenameMode::Replace, false),
        };
        let idle = (old_whiteout && !hides).then_some(End::Old);
        Rename { first: Vec::from_iter(clear), mode, old_whiteout, new_whiteout: false, idle }
    }

    fn moved(&self, dir: Moved) -> Option<MovedMark> {
        match dir {
            Moved { opaque: true, .. } => None,
            // The kernel may have written a redirect that is right only at its present place.
            Moved { merges: true, .. } | Moved { redirect: true, .. } => Some(MovedMark::Redirect),
            // "rename a directory to a name that has a whiteout".
            Moved { onto_lower: true, .. } => Some(MovedMark::Opaque),
            _ => None,
        }
    }
}

/// Returns the part of an attribute's name behind the namespace.
fn mark(name: &OsStr) -> Option<&str> {
    let name = name.to_str()?;
    let own = [Namespace::Trusted, Namespace::User].iter().find_map(|namespace| name.strip_prefix(namespace.prefix()));
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
    fn attributes_mark_a_directory() {
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
        assert!(is_metacopy_mark(OsStr::new("user.overlay.metacopy")));
        let both = [("trusted.overlay.redirect", &b"/root"[..]), ("user.overlay.redirect", b"/user")];
        for order in [[0, 1], [1, 0]] {
            let mut marks = Marks::default();
            order.iter().for_each(|at| marks.add(OsStr::new(both[*at].0), both[*at].1));
            assert_eq!((marks.redirect, marks.redirect_is_users), (Some(Redirect::Path("root".into())), false));
        }
        assert!(marks("user.fuseoverlayfs.opaque", b"y").opaque);
        assert_eq!(marks("user.opaque", b"y"), Marks::default());
    }

    #[test]
    fn the_attributes_of_the_root_tell_the_namespace() {
        let of = |names: &[&str]| Namespace::of(&names.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(of(&["user.a", "security.selinux", "user.fuseoverlayfs.opaque", "user.overlay.opaque"]), None);
        assert_eq!(of(&["user.overlay.uuid"]), Some(Namespace::User));
        assert_eq!(of(&["user.overlay.uuid", "trusted.overlay.impure"]), Some(Namespace::Trusted));
        assert_eq!(of(&["user.overlay.format", "trusted.overlay.uuid"]), Some(Namespace::User));
    }
}
