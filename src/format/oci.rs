//! The native format: that of OCI image layers (image-spec, `layer.md`, "Whiteouts"). So an upper
//! directory that is not mounted is an unpacked OCI changeset.
//!
//! A deletion is a *marker*, an empty file with a reserved name. Files that OCI does not know have
//! names that begin with `.wh..wh.`, which tools that unpack layers ignore. `docs/format.md`
//! describes the format.
//!
//! The whiteout of a name is a marker beside it. So it can exist before the object is removed, and
//! after an object appears. Beside an object of the same layer it hides nothing.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use super::plan::{Creation, End, Move, Moved, MovedMark, Name, New, Onto, Placement, Removal, Rename, Seen, Step};
use super::{DirMark, Features, UpperFormat, WhiteoutMark, fixed};
use crate::layer::{Fixed, RenameMode};

/// The prefix of every reserved name.
const PREFIX: &[u8] = b".wh.";
/// The prefix of reserved names that are not the whiteout of a name.
const META_PREFIX: &[u8] = b".wh..wh.";
/// The prefix of the marker of a name that is too long for `.wh.NAME`.
const LONG_PREFIX: &[u8] = b".wh..wh.long.";

/// The marker that hides all entries of lower layers in its directory.
pub const OPAQUE: &str = ".wh..wh..opq";
/// The file with the path in the merged lower layers that its directory merges with, instead of its
/// own path.
pub const REDIRECT: &str = ".wh..wh.redirect";
/// The file that says that its directory is immutable or append-only.
pub const FIXED: &str = ".wh..wh.fixed";
/// The work directory inside the upper layer.
pub const WORK: &str = ".wh..wh.work";

/// The names at the root of a layer of aufs, which mean nothing to other programs.
pub const OF_AUFS: [&str; 3] = [".wh..wh.aufs", ".wh..wh.orph", ".wh..wh.plnk"];

/// The prefix of the name of a partial copy, and that of its map.
const PART_PREFIX: &[u8] = b".wh..wh.part.";
const MAP_PREFIX: &[u8] = b".wh..wh.map.";

/// The mark at the root of a layer that it may have partial copies.
pub const PARTS: &str = ".wh..wh.parts";

/// The mark at the root of a layer that its character devices with the number 0 are devices, not
/// deletions.
pub const DEVICES: &str = ".wh..wh.devices";

/// The length up to which a file of the format is read. Any path that a system accepts is shorter.
pub const CONTENT_MAX: usize = 64 * 1024;

/// The meaning of an entry of a layer's directory.
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
    /// [`FIXED`].
    Fixed,
    /// A partial copy.
    Part(PartRef<'a>),
    /// The map of a partial copy.
    Map(PartRef<'a>),
    /// A reserved name without a meaning in a listing: the work directory, a mark of the whole
    /// layer, or the name of another tool.
    Unknown,
}

/// The content of the name of a partial copy, or of its map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartRef<'a> {
    /// The digest of the source. None for a copy of an earlier version of the overlay.
    pub source: Option<u128>,
    /// The name of the file that it is a copy of.
    pub name: &'a OsStr,
}

/// An owned [`PartRef`].
pub type PartOf = (Option<u128>, OsString);

impl<'a> PartRef<'a> {
    const DIGITS: usize = 32;

    /// Parses the part of the name behind the prefix. Returns None if it is empty.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let (source, name) = match bytes.split_at_checked(Self::DIGITS) {
            Some((digest, [b'.', name @ ..])) if !name.is_empty() && digest.iter().all(is_digit) => {
                (u128::from_str_radix(str::from_utf8(digest).ok()?, 16).ok(), name)
            }
            _ => (None, bytes),
        };
        (!name.is_empty()).then(|| PartRef { source, name: OsStr::from_bytes(name) })
    }

    /// Returns an owned copy.
    pub fn to_owned(self) -> PartOf {
        (self.source, self.name.to_owned())
    }
}

/// Returns the meaning of the entry `name` of a layer's directory.
pub fn meaning(name: &OsStr) -> Meaning<'_> {
    let bytes = name.as_bytes();
    let Some(hidden) = bytes.strip_prefix(PREFIX) else {
        return Meaning::Object;
    };
    if name == OPAQUE {
        Meaning::Opaque
    } else if name == REDIRECT {
        Meaning::Redirect
    } else if name == FIXED {
        Meaning::Fixed
    } else if bytes.starts_with(LONG_PREFIX) {
        Meaning::LongWhiteout
    } else if let Some(part) = bytes.strip_prefix(PART_PREFIX).and_then(PartRef::parse) {
        Meaning::Part(part)
    } else if let Some(part) = bytes.strip_prefix(MAP_PREFIX).and_then(PartRef::parse) {
        Meaning::Map(part)
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
    /// The content of the marker: empty, or the hidden name if it does not fit into
    /// [`Whiteout::name`].
    pub content: Vec<u8>,
}

/// Returns the marker that hides `name` in a layer with names of at most `name_max` bytes.
pub fn whiteout(name: &OsStr, name_max: usize) -> Whiteout {
    let hidden = name.as_bytes();
    if PREFIX.len() + hidden.len() <= name_max {
        Whiteout { name: OsString::from_vec([PREFIX, hidden].concat()), content: Vec::new() }
    } else {
        let digest = format!("{:032x}", fnv1a(hidden));
        Whiteout { name: OsString::from_vec([LONG_PREFIX, digest.as_bytes()].concat()), content: hidden.to_vec() }
    }
}

/// Returns the names of the partial copy of `name` with this source, and of its map. None if they
/// would be longer than `name_max` bytes.
pub fn part_names(name: &OsStr, source: Option<u128>, name_max: usize) -> Option<(OsString, OsString)> {
    let digest = source.map(|source| format!("{source:032x}.")).unwrap_or_default();
    let with = |prefix: &[u8]| OsString::from_vec([prefix, digest.as_bytes(), name.as_bytes()].concat());
    let (part, map) = (with(PART_PREFIX), with(MAP_PREFIX));
    (part.len().max(map.len()) <= name_max).then_some((part, map))
}

/// Returns the 128-bit FNV-1a digest. Two long names in one directory with the same digest would
/// share a marker.
pub fn fnv1a(bytes: &[u8]) -> u128 {
    fnv1a_behind(FNV1A_OF_NOTHING, bytes)
}

/// The digest of no bytes.
pub const FNV1A_OF_NOTHING: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;

/// Returns the digest of the bytes of `digest` and these behind them.
pub fn fnv1a_behind(digest: u128, bytes: &[u8]) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(digest, |digest, byte| (digest ^ u128::from(*byte)).wrapping_mul(PRIME))
}

/// Returns the content of a redirect to `path`, which is relative to the root of the merged lower
/// layers.
pub fn redirect_content(path: &Path) -> Vec<u8> {
    [b"/", path.as_os_str().as_bytes()].concat()
}

/// Returns the path of a redirect, relative to the root of the merged lower layers. None if the
/// content is no absolute path, or has an empty, `.`, `..` or reserved component.
pub fn redirect_path(content: &[u8]) -> Option<PathBuf> {
    let relative = Path::new(OsStr::from_bytes(content.strip_prefix(b"/")?));
    let plain = relative.components().all(|part| matches!(part, Component::Normal(name) if !is_reserved(name)));
    let exact = relative.components().collect::<PathBuf>().as_os_str() == relative.as_os_str();
    let whole = !content.contains(&0) && !relative.as_os_str().is_empty();
    (plain && exact && whole).then(|| relative.to_path_buf())
}

/// The native format of an upper layer.
pub const OCI: super::Format = &Oci;

struct Oci;

impl UpperFormat for Oci {
    fn features(&self) -> Features {
        Features {
            reserved_names: true,
            attribute_marks: false,
            redirects: true,
            zero_devices: true,
            partial_copies: true,
            metacopies: false,
            is_kernels: false,
        }
    }

    fn whiteout(&self, name: &OsStr, name_max: usize) -> WhiteoutMark {
        WhiteoutMark::Beside(whiteout(name, name_max))
    }

    fn opaque(&self) -> DirMark {
        DirMark::File { name: OPAQUE, content: Vec::new() }
    }

    fn redirect(&self, path: &Path) -> DirMark {
        DirMark::File { name: REDIRECT, content: redirect_content(path) }
    }

    fn fixed(&self, fixed: Fixed) -> DirMark {
        DirMark::File { name: FIXED, content: fixed::value(fixed) }
    }

    fn clear_order(&self, name: &OsStr) -> u8 {
        match name.to_str() {
            Some(REDIRECT) => 0,
            Some(OPAQUE) => 1,
            _ => 2,
        }
    }

    fn create(&self, New { is_dir, at_once, whiteout }: New) -> Creation {
        match at_once {
            // "create a file, symlink or node"; "create where there is a whiteout"; "create a
            // directory where there is a whiteout".
            true => Creation { placement: Placement::AtOnce, opaque: false, uncover: whiteout },
            // The same rows, built in the work directory.
            false => {
                Creation { placement: Placement::Built(Onto::Free), opaque: is_dir && whiteout, uncover: whiteout }
            }
        }
    }

    fn remove(&self, name: Name, is_dir: bool) -> Removal {
        if !name.upper {
            // "unlink what only lower layers have".
            return Removal { first: Vec::new(), seen: Seen::Whiteout };
        }
        let mut first = Vec::new();
        if name.lower {
            // "unlink what both have"; "remove a directory that lower layers have too, and that
            // looks empty".
            first.extend((!name.whiteout).then_some(Step::Whiteout(End::Old)));
            first.push(Step::SyncNames(End::Old));
        }
        if is_dir {
            first.push(Step::Clear { opaque_first: false });
        }
        // "unlink what only the upper layer has"; "remove a directory that only the upper layer
        // has".
        Removal { first, seen: Seen::Remove }
    }

    fn rename(&self, Move { old, new, is_dir: _, over_dir, leaves_device }: Move) -> Rename {
        let mut first = Vec::new();
        let mut covered = new.whiteout;
        if over_dir && new.upper {
            // "rename over an empty directory that lower layers have too": the whiteout keeps the
            // directory empty.
            if new.lower {
                first.extend((!covered).then_some(Step::Whiteout(End::New)));
                first.push(Step::SyncNames(End::New));
                covered = true;
            }
            first.push(Step::Clear { opaque_first: false });
        }
        // "rename a file that lower layers have"; "rename a directory that merges with lower ones".
        // A device hides lower objects as any object does.
        let hides = old.lower && !old.whiteout && !leaves_device;
        first.extend(hides.then_some(Step::Whiteout(End::Old)));
        first.extend(old.lower.then_some(Step::SyncNames(End::Old)));
        Rename {
            first,
            mode: if leaves_device { RenameMode::Whiteout } else { RenameMode::Replace },
            old_whiteout: old.whiteout || hides,
            new_whiteout: covered,
            idle: covered.then_some(End::New),
        }
    }

    fn moved(&self, dir: Moved) -> Option<MovedMark> {
        match dir {
            Moved { opaque: true, .. } | Moved { redirect: true, .. } => None,
            // "rename a directory that merges with lower ones".
            Moved { merges: true, .. } => Some(MovedMark::Redirect),
            // "rename a directory to a name that lower layers have".
            Moved { onto_lower: true, .. } => Some(MovedMark::Opaque),
            _ => None,
        }
    }
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
    fn a_name_too_long_for_its_marker_is_inside_it() {
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
    fn the_name_of_a_partial_copy_tells_its_source() {
        let digest = "0123456789abcdef0123456789abcdef";
        for name in ["big", digest, "0123456789abcdef0123456789abcdef.big"] {
            let of = PartRef { source: Some(0xf << 64 | 7), name: OsStr::new(name) };
            let (part, map) = part_names(of.name, of.source, 255).unwrap();
            assert_eq!((meaning(&part), meaning(&map)), (Meaning::Part(of), Meaning::Map(of)));
        }
        for old in ["big", digest, "0123456789abcdef0123456789abcdef.", "0123456789abcdef0123456789abcdeg.x"] {
            let part = PartRef { source: None, name: OsStr::new(old) };
            assert_eq!(meaning(&part_names(part.name, None, 255).unwrap().0), Meaning::Part(part));
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
