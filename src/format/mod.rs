//! How whiteouts, opaque and redirected directories are written in a layer: in the native format, which is described here, or in that of
//! the [`kernel`].
//!
//! The native format is the OCI image layer format (image-spec, `layer.md`, "Whiteouts"), so an upper directory at rest is an unpacked OCI
//! changeset: a deletion is a *marker*, an empty file with a reserved name. The files that OCI does not
//! know begin with `.wh..wh.`, which tools that unpack layers pass over. `docs/format.md` describes the format for people.

pub mod attribute;
pub mod kernel;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// What every reserved name begins with.
const PREFIX: &[u8] = b".wh.";
/// What the reserved names begin with that are not the whiteout of a name.
const META_PREFIX: &[u8] = b".wh..wh.";
/// What the marker of a name begins with that is too long to stand in its marker's own name.
const LONG_PREFIX: &[u8] = b".wh..wh.long.";

/// The marker that hides everything that lower layers have in its directory.
pub const OPAQUE: &str = ".wh..wh..opq";
/// The file that names the path in the merged lower layers that its directory merges with, instead of its own path.
pub const REDIRECT: &str = ".wh..wh.redirect";
/// The work directory, where it is kept inside the upper layer.
pub const WORK: &str = ".wh..wh.work";

/// The names at the top of a layer that aufs made, which mean nothing to others.
pub const OF_AUFS: [&str; 3] = [".wh..wh.aufs", ".wh..wh.orph", ".wh..wh.plnk"];

/// What the name of a partial copy begins with, and that of its map.
const PART_PREFIX: &[u8] = b".wh..wh.part.";
const MAP_PREFIX: &[u8] = b".wh..wh.map.";

/// The mark, at the top of a layer, that there may be partial copies in it.
pub const PARTS: &str = ".wh..wh.parts";

/// The mark, at the top of a layer, that character devices with the number 0 are devices in it, and no deletions.
pub const DEVICES: &str = ".wh..wh.devices";

/// The longest content of a file of the format that is read: any path that a system accepts is shorter.
pub const CONTENT_MAX: usize = 64 * 1024;

/// How an upper layer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// As an OCI image layer, the native format: deletions and marks are files with reserved names.
    #[default]
    Oci,
    /// As the kernel's overlayfs does: deletions are devices, and marks are extended attributes in this namespace.
    Kernel(kernel::Namespace),
}

/// The formats that a person can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Oci,
    /// With the namespace that the upper layer is marked with, or else the one that whoever mounts may use.
    Kernel,
}

/// What an entry of a layer's directory means.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// An object of the layer.
    Object,
    /// Hides this name of every lower layer.
    Whiteout(&'a OsStr),
    /// Hides the name that the file contains.
    LongWhiteout,
    /// [`OPAQUE`].
    Opaque,
    /// [`REDIRECT`].
    Redirect,
    /// A partial copy.
    Part(Lent<'a>),
    /// The map of a partial copy.
    Map(Lent<'a>),
    /// Reserved, with no meaning in a listing: the work directory, a mark of the whole layer, or another tool's.
    Unknown,
}

/// What the name of a partial copy, or of its map, says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lent<'a> {
    /// The digest of the file that lends. None: an overlay made it that did not say so yet.
    pub source: Option<u128>,
    /// The name that it is a copy of.
    pub name: &'a OsStr,
}

/// As [`Lent`], on its own.
pub type PartOf = (Option<u128>, OsString);

impl<'a> Lent<'a> {
    const DIGITS: usize = 32;

    /// What is behind the prefix of the name. None if that is nothing.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let (source, name) = match bytes.split_at_checked(Self::DIGITS) {
            Some((digest, [b'.', name @ ..])) if !name.is_empty() && digest.iter().all(is_digit) => {
                (u128::from_str_radix(str::from_utf8(digest).ok()?, 16).ok(), name)
            }
            _ => (None, bytes),
        };
        (!name.is_empty()).then(|| Lent { source, name: OsStr::from_bytes(name) })
    }

    /// The same on its own.
    pub fn to_owned(self) -> PartOf {
        (self.source, self.name.to_owned())
    }
}

/// What the entry `name` of a layer's directory means.
pub fn meaning(name: &OsStr) -> Meaning<'_> {
    let bytes = name.as_bytes();
    let Some(hidden) = bytes.strip_prefix(PREFIX) else {
        return Meaning::Object;
    };
    if name == OPAQUE {
        Meaning::Opaque
    } else if name == REDIRECT {
        Meaning::Redirect
    } else if bytes.starts_with(LONG_PREFIX) {
        Meaning::LongWhiteout
    } else if let Some(lent) = bytes.strip_prefix(PART_PREFIX).and_then(Lent::parse) {
        Meaning::Part(lent)
    } else if let Some(lent) = bytes.strip_prefix(MAP_PREFIX).and_then(Lent::parse) {
        Meaning::Map(lent)
    } else if bytes.starts_with(META_PREFIX) || hidden.is_empty() {
        Meaning::Unknown
    } else {
        Meaning::Whiteout(OsStr::from_bytes(hidden))
    }
}

/// Whether a name can neither be created nor looked up through the mount.
pub fn is_reserved(name: &OsStr) -> bool {
    name.as_bytes().starts_with(PREFIX)
}

/// The marker that hides one name.
pub struct Whiteout {
    /// The marker's own name.
    pub name: OsString,
    /// What the marker contains: nothing, or the hidden name where it does not fit into [`Whiteout::name`].
    pub content: Vec<u8>,
}

/// The marker that hides `name` in a layer whose names have at most `name_max` bytes.
pub fn whiteout(name: &OsStr, name_max: usize) -> Whiteout {
    let hidden = name.as_bytes();
    if PREFIX.len() + hidden.len() <= name_max {
        Whiteout { name: OsString::from_vec([PREFIX, hidden].concat()), content: Vec::new() }
    } else {
        let digest = format!("{:032x}", fnv1a(hidden));
        Whiteout { name: OsString::from_vec([LONG_PREFIX, digest.as_bytes()].concat()), content: hidden.to_vec() }
    }
}

/// The names of the partial copy of `name` and of its map, where the file with the digest `source` lends. None if these would be longer than
/// `name_max` bytes.
pub fn part_names(name: &OsStr, source: Option<u128>, name_max: usize) -> Option<(OsString, OsString)> {
    let digest = source.map(|source| format!("{source:032x}.")).unwrap_or_default();
    let with = |prefix: &[u8]| OsString::from_vec([prefix, digest.as_bytes(), name.as_bytes()].concat());
    let (part, map) = (with(PART_PREFIX), with(MAP_PREFIX));
    (part.len().max(map.len()) <= name_max).then_some((part, map))
}

/// The 128-bit FNV-1a digest. Two long names of one directory that shared a digest would share a marker.
pub fn fnv1a(bytes: &[u8]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(BASIS, |digest, byte| (digest ^ u128::from(*byte)).wrapping_mul(PRIME))
}

/// What a redirect to `path` (relative to the root of the merged lower layers) contains.
pub fn redirect_content(path: &Path) -> Vec<u8> {
    [b"/", path.as_os_str().as_bytes()].concat()
}

/// The path that a redirect names, relative to the root of the merged lower layers; None if the content is no such path: not
/// absolute, or with an empty, `.`, `..` or reserved component.
pub fn redirect_path(content: &[u8]) -> Option<PathBuf> {
    let relative = Path::new(OsStr::from_bytes(content.strip_prefix(b"/")?));
    let plain = relative.components().all(|part| matches!(part, Component::Normal(name) if !is_reserved(name)));
    let exact = relative.components().collect::<PathBuf>().as_os_str() == relative.as_os_str();
    let whole = !content.contains(&0) && !relative.as_os_str().is_empty();
    (plain && exact && whole).then(|| relative.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_read_as_they_are_written() {
        let name = OsStr::new("etc");
        let marker = whiteout(name, 255);
        assert_eq!(marker.name, ".wh.etc");
        assert!(marker.content.is_empty());
        assert_eq!(meaning(&marker.name), Meaning::Whiteout(name));
    }

    #[test]
    fn a_name_too_long_for_its_marker_stands_inside_it() {
        for length in [251, 252, 255] {
            let name = OsString::from("x".repeat(length));
            let marker = whiteout(&name, 255);
            assert!(marker.name.len() <= 255);
            if length <= 251 {
                assert_eq!(meaning(&marker.name), Meaning::Whiteout(&name));
            } else {
                assert_eq!(meaning(&marker.name), Meaning::LongWhiteout);
                assert_eq!(marker.content, name.as_bytes());
            }
        }
        let (a, b) = ("a".repeat(255), "b".repeat(255));
        assert_ne!(whiteout(OsStr::new(&a), 255).name, whiteout(OsStr::new(&b), 255).name);
    }

    #[test]
    fn reserved_names_are_told_apart() {
        assert_eq!(meaning(OsStr::new("file")), Meaning::Object);
        assert_eq!(meaning(OsStr::new(".wh")), Meaning::Object);
        assert_eq!(meaning(OsStr::new(OPAQUE)), Meaning::Opaque);
        assert_eq!(meaning(OsStr::new(REDIRECT)), Meaning::Redirect);
        assert_eq!(meaning(OsStr::new(WORK)), Meaning::Unknown);
        assert_eq!(meaning(OsStr::new(".wh..wh.plnk")), Meaning::Unknown);
        assert_eq!(meaning(OsStr::new(".wh.")), Meaning::Unknown);
        assert!(is_reserved(OsStr::new(".wh.x")) && !is_reserved(OsStr::new(".who")));
    }

    #[test]
    fn a_partial_copy_says_what_lends() {
        let digest = "0123456789abcdef0123456789abcdef";
        for name in ["big", digest, "0123456789abcdef0123456789abcdef.big"] {
            let lent = Lent { source: Some(0xf << 64 | 7), name: OsStr::new(name) };
            let (part, map) = part_names(lent.name, lent.source, 255).unwrap();
            assert_eq!((meaning(&part), meaning(&map)), (Meaning::Part(lent), Meaning::Map(lent)));
        }
        for old in ["big", digest, "0123456789abcdef0123456789abcdef.", "0123456789abcdef0123456789abcdeg.x"] {
            let lent = Lent { source: None, name: OsStr::new(old) };
            assert_eq!(meaning(&part_names(lent.name, None, 255).unwrap().0), Meaning::Part(lent));
        }
        assert_eq!(part_names(OsStr::new(&"x".repeat(211)), Some(1), 255), None);
    }

    #[test]
    fn a_redirect_is_a_plain_absolute_path() {
        let path = Path::new("a/b c");
        assert_eq!(redirect_path(&redirect_content(path)).as_deref(), Some(path));
        for bad in ["", "/", "a", "/a/../b", "/./a", "//a", "/a/", "/a//b", "/.wh.a", "/a/.wh..wh.work", "/a\0"] {
            assert_eq!(redirect_path(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
