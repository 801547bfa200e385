//! The record: the lower layers of an upper layer, and the features that a reader of it must know.
//! It is the file `record` in the work directory.
//!
//! The mount and fsck compare it with the lower layers. The mount writes it anew, in one step, if
//! they changed. A digest identifies a lower layer while its directory is not replaced; the path is
//! there for the user. [`features`](super::features) adds a feature before its first use.
//! `docs/format.md` describes the lines.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::errno::{EFBIG, EINVAL, ELOOP, ENOENT, ENOTDIR, Error};

use super::Refused;
use super::features::{Feature, Features, Need, Unknown};
use super::stack::{LayerDir, Stack};
use super::work::replace_file;
use crate::format::{self, fnv1a};
use crate::layer::{Access, Layer, Object, Result, Time, read_start};

/// The file's name.
pub const RECORD: &str = "record";
/// The name of the file while it is written anew.
const NEW_RECORD: &str = "tmp.record";
/// The first line, in front of the version.
const TITLE: &str = "overlayfs upper layer";
const VERSION: &str = "1";
/// The line that says that all features of the layer are named. A record of an earlier version
/// lacks it.
const NAMED: &str = "features";
/// The maximum length of the file: enough for the layers that Linux stacks, with the longest paths.
const LENGTH_MAX: u64 = 8 << 20;

/// The content of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The lower layers, from the bottom.
    lowers: Vec<Lower>,
    /// The features of the layer that this version knows.
    pub features: Features,
    /// Whether all features of the layer are named.
    pub is_complete: bool,
    /// Features that this version does not know.
    unknown: Vec<(Need, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Lower {
    digest: u128,
    /// The path of the layer, empty if unknown.
    path: PathBuf,
}

impl Record {
    /// Makes the record of a stack's lower layers.
    pub fn of<L: Layer>(stack: &Stack<L>) -> Result<Self> {
        Self::of_roots(stack, stack.lower_roots())
    }

    /// Makes the record of the layers below the one with this root.
    pub fn of_below<L: Layer>(stack: &Stack<L>, root: &LayerDir<L>) -> Result<Self> {
        Self::of_roots(stack, stack.roots_below(root))
    }

    fn of_roots<L: Layer>(stack: &Stack<L>, roots: &[Arc<LayerDir<L>>]) -> Result<Self> {
        let lower = |root: &Arc<LayerDir<L>>| {
            let layer = stack.layer(root);
            let path = layer.path().map(Path::to_owned).unwrap_or_default();
            Ok(Lower { digest: digest(layer, &*stack.open(root)?, stack.root_ino(root))?, path })
        };
        let lowers = roots.iter().rev().map(lower).collect::<Result<_>>()?;
        Ok(Record { lowers, ..Record::default() })
    }

    /// Reads the record in the work directory inside a layer with this root. Returns None if it is
    /// missing or damaged.
    pub fn inside<L: Layer>(layer: &L, root: &L::Dir) -> Result<Option<Self>> {
        match layer.open_dir(root, OsStr::new(format::WORK)) {
            Err(error) if matches!(error.errno, ENOENT | ENOTDIR | ELOOP | EINVAL) => Ok(None),
            dir => Self::read(layer, &dir?),
        }
    }

    /// Reads the record in the work directory `dir`. Returns None if it is missing or damaged.
    pub fn read<L: Layer>(layer: &L, dir: &L::Dir) -> Result<Option<Self>> {
        let file = match layer.open_file(dir, OsStr::new(RECORD), Access::Read) {
            // A backend with paths as directories finds out only now that there is no directory.
            Err(error) if matches!(error.errno, ENOENT | ENOTDIR) => return Ok(None),
            file => file?,
        };
        let size = layer.stat(Object::File(&file))?.size;
        if size > LENGTH_MAX {
            return Err(Error::new(EFBIG));
        }
        Ok(Self::parse(&read_start(layer, &file, size as usize)?))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let body = bytes.strip_suffix(b"\n").and_then(|lines| {
            let at = lines.iter().rposition(|byte| *byte == b'\n')? + 1;
            let (body, end) = lines.split_at(at);
            (end == end_line(body).as_bytes()).then_some(body)
        })?;
        let mut record = Record::default();
        for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
            let (word, rest) = match line.iter().position(|byte| *byte == b' ') {
                Some(at) => (&line[..at], &line[at + 1..]),
                None => (line, &[][..]),
            };
            match (index, word) {
                (0, _) => {
                    let version = line.strip_prefix(TITLE.as_bytes())?.trim_ascii();
                    if version != VERSION.as_bytes() {
                        let name = format!("version {} of the record", String::from_utf8_lossy(version));
                        record.unknown.push((Need::Incompatible, name));
                        return Some(record);
                    }
                }
                (_, b"lower") => record.lowers.push(parse_lower(rest)?),
                _ if line == NAMED.as_bytes() => record.is_complete = true,
                _ => {
                    let Some(need) = Need::of(word) else { continue };
                    match Feature::ALL.into_iter().find(|feature| feature.name().as_bytes() == rest) {
                        Some(feature) => record.features = record.features.with(feature),
                        None => record.unknown.push((need, String::from_utf8_lossy(rest).into_owned())),
                    }
                }
            }
        }
        Some(record)
    }

    /// Returns the content of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut body = format!("{TITLE} {VERSION}\n").into_bytes();
        if self.is_complete {
            body.extend(format!("{NAMED}\n").bytes());
        }
        let known = self.features.iter().map(|feature| (feature.need(), feature.name()));
        for (need, name) in known.chain(self.unknown.iter().map(|(need, name)| (*need, &**name))) {
            body.extend(format!("{} {name}\n", need.word()).bytes());
        }
        for Lower { digest, path } in &self.lowers {
            body.extend(format!("lower {digest:032x} {}\n", escape(path)).bytes());
        }
        let end = end_line(&body);
        body.extend(end.bytes().chain(*b"\n"));
        body
    }

    /// Checks that this version may use the layer, although it does not know features of this kind
    /// or stricter ones. `commits`: the caller is a commit itself, or shows the layer to one.
    /// `lower` is the path of a lower layer.
    ///
    /// # Errors
    ///
    /// - [`Refused::Feature`]: it does not know one.
    /// - [`Refused::Commit`]: a commit is not finished.
    pub fn check(&self, from: Need, commits: bool, lower: Option<&Path>) -> std::result::Result<(), Refused> {
        let lower = lower.map(Path::to_owned);
        if let Some((need, name)) = self.unknown.iter().find(|(need, _)| *need >= from) {
            return Err(Refused::Feature(Unknown { name: name.clone(), need: *need, lower }));
        }
        if self.features.has(Feature::Commit) && !commits {
            return Err(Refused::Commit(lower));
        }
        Ok(())
    }

    /// Takes over what an earlier record says about the layer itself.
    pub fn continued(self, before: Option<&Self>) -> Self {
        match before {
            Some(before) => Record { lowers: self.lowers, ..before.clone() },
            None => self,
        }
    }

    /// Writes the record to the work directory `dir`.
    pub fn write<L: Layer>(&self, layer: &L, dir: &L::Dir, volatile: bool) -> Result<()> {
        let names = (OsStr::new(NEW_RECORD), OsStr::new(RECORD));
        replace_file(layer, dir, names, [self.to_bytes()].into_iter(), !volatile)
    }

    /// Adds features to the record in the work directory `dir`, and takes others out. No overlay
    /// may use the directory. The change is on the disk at the end.
    pub fn change<L: Layer>(layer: &L, dir: &L::Dir, added: Features, gone: Features) -> Result<()> {
        let before = Self::read(layer, dir)?.unwrap_or_default();
        let features = before.features.beyond(gone).or(added);
        if features != before.features {
            Record { features, ..before }.write(layer, dir, false)?;
        }
        layer.sync_dir(dir)
    }

    /// Returns the paths of the lower layers, topmost first. A path that is not known is empty.
    #[cfg(feature = "layer-tools")]
    pub fn lower_paths(&self) -> impl Iterator<Item = &Path> {
        self.lowers.iter().rev().map(|lower| &*lower.path)
    }

    /// Returns the features, with those that this version does not know.
    #[cfg(feature = "layer-tools")]
    pub fn all_features(&self) -> impl Iterator<Item = (Need, &str)> {
        let known = self.features.iter().map(|feature| (feature.need(), feature.name()));
        known.chain(self.unknown.iter().map(|(need, name)| (*need, &**name)))
    }

    /// Returns how the lower layers differ from those of `before`, as words that follow a colon.
    /// None if they are the same.
    pub fn difference(&self, before: &Self) -> Option<String> {
        let digests = |record: &Self| record.lowers.iter().map(|lower| lower.digest).collect::<Vec<_>>();
        if digests(self) == digests(before) {
            return None;
        }
        let (missing, new) = (before.without(self), self.without(before));
        let mut said = Vec::new();
        for lower in &missing {
            let replaced = new.iter().any(|other| other.path == lower.path);
            said.push(format!("{} {}", lower.name(), if replaced { "is another directory now" } else { "is missing" }));
        }
        for lower in new.iter().filter(|lower| !missing.iter().any(|other| other.path == lower.path)) {
            said.push(format!("{} is new", lower.name()));
        }
        Some(if said.is_empty() { "their order has changed".to_owned() } else { said.join(", ") })
    }

    /// Returns the lower layers that `other` lacks. A layer that it has less often counts for each
    /// time.
    fn without(&self, other: &Self) -> Vec<&Lower> {
        let mut rest: Vec<_> = other.lowers.iter().map(|lower| lower.digest).collect();
        let is_left = |lower: &&Lower| match rest.iter().position(|digest| *digest == lower.digest) {
            Some(at) => {
                rest.swap_remove(at);
                false
            }
            None => true,
        };
        self.lowers.iter().filter(is_left).collect()
    }
}

impl Lower {
    fn name(&self) -> String {
        if self.path.as_os_str().is_empty() { "one".to_owned() } else { self.path.display().to_string() }
    }
}

/// Returns a number that identifies the layer with this root, as long as the directory is not
/// replaced. `ino` is the inode number of the root.
pub fn digest<L: Layer>(layer: &L, root: &L::Dir, ino: u64) -> Result<u128> {
    let Time { sec, nsec } = layer.birth(Object::Dir(root))?.unwrap_or_default();
    let words = [ino, sec as u64, nsec.into()].map(u64::to_le_bytes);
    Ok(fnv1a(words.as_flattened()))
}

/// Returns the last line of a file of the work directory, with the digest of the lines before.
pub fn end_line(body: &[u8]) -> String {
    end_line_of(fnv1a(body))
}

/// Does the same with the digest itself.
pub fn end_line_of(digest: u128) -> String {
    format!("end {digest:032x}")
}

fn parse_lower(line: &[u8]) -> Option<Lower> {
    let (digest, path) = line.split_at_checked(33)?;
    let digest = u128::from_str_radix(str::from_utf8(digest.strip_suffix(b" ")?).ok()?, 16).ok()?;
    Some(Lower { digest, path: unescape(path) })
}

/// Escapes a path for a line: a control character or `%` becomes `%` and two hexadecimal digits.
pub fn escape(path: &Path) -> String {
    let byte = |byte: &u8| match byte {
        b'%' | 0..b' ' | 0x7f.. => format!("%{byte:02x}"),
        _ => char::from(*byte).to_string(),
    };
    path.as_os_str().as_bytes().iter().map(byte).collect()
}

/// Returns the path that [`escape`] escaped.
pub fn unescape(bytes: &[u8]) -> PathBuf {
    let mut path = Vec::new();
    let mut rest = bytes;
    while let [byte, after @ ..] = rest {
        let code = after.get(..2).and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok());
        (rest, _) = match (byte, code) {
            (b'%', Some(code)) => (&after[2..], path.push(code)),
            _ => (after, path.push(*byte)),
        };
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lowers: &[(u128, &[u8])]) -> Record {
        let lower =
            |(digest, path): &(u128, &[u8])| Lower { digest: *digest, path: OsStr::from_bytes(path).to_owned().into() };
        Record { lowers: lowers.iter().map(lower).collect(), ..Record::default() }
    }

    #[test]
    fn a_record_is_read_as_it_is_written() {
        let mut written = record(&[(1, b"/a b"), (u128::MAX, b"/new\nline%41\xff"), (3, b"")]);
        written.unknown.push((Need::Compatible, "later".to_owned()));
        written.is_complete = true;
        written.features = Feature::ALL.into_iter().fold(Features::default(), Features::with);
        let bytes = written.to_bytes();
        assert_eq!(Record::parse(&bytes).as_ref(), Some(&written));
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1;
            assert_eq!(Record::parse(&damaged), None, "byte {index}");
            assert_eq!(Record::parse(&bytes[..index]), None, "{index} bytes");
        }
    }

    #[test]
    fn an_unknown_feature_is_refused_by_its_name() {
        let parsed = |lines: &str| {
            let body = format!("overlayfs upper layer {lines}");
            Record::parse(format!("{body}{}\n", end_line(body.as_bytes())).as_bytes()).unwrap()
        };
        let named = |record: &Record, from| match record.check(from, false, None) {
            Err(Refused::Feature(unknown)) => Some(unknown.name),
            Err(other) => panic!("{other:?}"),
            Ok(()) => None,
        };
        for (lines, to_write, to_read) in [
            ("1\nincompatible time travel\n", Some("time travel"), Some("time travel")),
            ("1\nread-only colours\nread-only owner-records\n", Some("colours"), None),
            ("1\ncompatible sounds\nsomething else\nincompatible redirects\n", None, None),
            ("2\nanything\n", Some("version 2 of the record"), Some("version 2 of the record")),
        ] {
            let record = parsed(lines);
            assert_eq!(named(&record, Need::ReadOnly).as_deref(), to_write, "{lines}");
            assert_eq!(named(&record, Need::Incompatible).as_deref(), to_read, "{lines}");
        }
        let commit = parsed("1\nincompatible commit\n");
        assert!(matches!(commit.check(Need::Incompatible, false, None), Err(Refused::Commit(None))));
        assert!(commit.check(Need::ReadOnly, true, None).is_ok());
        let other = parsed("1\nsomething else\nlower 00000000000000000000000000000007 /x\n");
        assert_eq!(other, record(&[(7, b"/x")]));
    }

    #[test]
    fn the_difference_names_paths() {
        let before = record(&[(1, b"/bottom"), (2, b"/top")]);
        let said = |lowers: &[(u128, &[u8])]| record(lowers).difference(&before);
        assert_eq!(said(&[(1, b"/moved"), (2, b"/top")]), None);
        assert_eq!(said(&[(1, b"/bottom"), (2, b"/top"), (3, b"/newer")]).unwrap(), "/newer is new");
        assert_eq!(said(&[(2, b"/top")]).unwrap(), "/bottom is missing");
        assert_eq!(said(&[(2, b"/top"), (1, b"/bottom")]).unwrap(), "their order has changed");
        assert_eq!(said(&[(5, b"/bottom"), (2, b"/top")]).unwrap(), "/bottom is another directory now");
        assert_eq!(said(&[(4, b"/x"), (2, b"/top")]).unwrap(), "/bottom is missing, /x is new");
    }
}
