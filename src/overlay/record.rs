//! The record: the lower layers of an upper layer, and the features that a reader of it must know.
//! It is the file `record` in the work directory.
//!
//! The mount and fsck compare it with the lower layers. The mount writes it anew, in one step, if
//! they changed. A digest identifies a lower layer while its directory is not replaced; the path is
//! there for the user. `docs/format.md` describes the lines.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::errno::{EFBIG, ENOENT, Error};

use super::Refused;
use super::stack::{LayerDir, Stack};
use super::work::replace_file;
use crate::format::fnv1a;
use crate::layer::{Access, Layer, Object, Result, Time, read_start};

/// The file's name.
pub const RECORD: &str = "record";
/// The name of the file while it is written anew.
const NEW_RECORD: &str = "tmp.record";
/// The first line, in front of the version.
const TITLE: &str = "overlayfs upper layer";
const VERSION: &str = "1";
/// The kinds of features. A reader that does not know the feature must not use the layer, must not
/// write to it, or may ignore the feature.
const INCOMPATIBLE: &str = "incompatible";
const READ_ONLY: &str = "read-only";
const COMPATIBLE: &str = "compatible";
/// The maximum length of the file: enough for the layers that Linux stacks, with the longest paths.
const LENGTH_MAX: u64 = 8 << 20;

/// The content of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The lower layers, from the bottom.
    lowers: Vec<Lower>,
    /// Unknown features that a reader may ignore.
    compatible: Vec<String>,
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
        let lower = |root: &Arc<LayerDir<L>>| {
            let layer = stack.layer(root);
            let birth = layer.birth(Object::Dir(&*stack.open(root)?))?.unwrap_or_default();
            let Time { sec, nsec } = birth;
            let words = [stack.root_ino(root), sec as u64, nsec.into()].map(u64::to_le_bytes);
            let path = layer.path().map(Path::to_owned).unwrap_or_default();
            Ok(Lower { digest: fnv1a(words.as_flattened()), path })
        };
        let lowers = stack.lower_roots().iter().rev().map(lower).collect::<Result<_>>()?;
        Ok(Record { lowers, compatible: Vec::new() })
    }

    /// Reads the record in the work directory `dir`. Returns None if it is missing or damaged.
    ///
    /// # Errors
    ///
    /// - [`Refused::Feature`]: the record names a feature that this version must know and does not.
    pub fn read<L: Layer>(layer: &L, dir: &L::Dir) -> std::result::Result<Option<Self>, Refused> {
        let file = match layer.open_file(dir, OsStr::new(RECORD), Access::Read) {
            Err(error) if error.errno == ENOENT => return Ok(None),
            file => file?,
        };
        let size = layer.stat(Object::File(&file))?.size;
        if size > LENGTH_MAX {
            return Err(Error::new(EFBIG).into());
        }
        Self::parse(&read_start(layer, &file, size as usize)?)
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Option<Self>, Refused> {
        let Some(body) = bytes.strip_suffix(b"\n").and_then(|lines| {
            let at = lines.iter().rposition(|byte| *byte == b'\n')? + 1;
            let (body, end) = lines.split_at(at);
            (end == end_line(body).as_bytes()).then_some(body)
        }) else {
            return Ok(None);
        };
        let mut record = Record::default();
        for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
            let (word, rest) = match line.iter().position(|byte| *byte == b' ') {
                Some(at) => (&line[..at], &line[at + 1..]),
                None => (line, &[][..]),
            };
            let text = || String::from_utf8_lossy(rest).into_owned();
            match str::from_utf8(word) {
                _ if index == 0 => match line.strip_prefix(TITLE.as_bytes()) {
                    Some(version) if version.trim_ascii() == VERSION.as_bytes() => {}
                    Some(version) => {
                        let version = String::from_utf8_lossy(version.trim_ascii()).into_owned();
                        return Err(Refused::Feature(format!("version {version} of the record")));
                    }
                    None => return Ok(None),
                },
                Ok("lower") => match parse_lower(rest) {
                    Some(lower) => record.lowers.push(lower),
                    None => return Ok(None),
                },
                Ok(INCOMPATIBLE | READ_ONLY) => return Err(Refused::Feature(text())),
                Ok(COMPATIBLE) => record.compatible.push(text()),
                _ => {}
            }
        }
        Ok(Some(record))
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut body = format!("{TITLE} {VERSION}\n").into_bytes();
        for feature in &self.compatible {
            body.extend(format!("{COMPATIBLE} {feature}\n").bytes());
        }
        for Lower { digest, path } in &self.lowers {
            body.extend(format!("lower {digest:032x} {}\n", escape(path)).bytes());
        }
        let end = end_line(&body);
        body.extend(end.bytes().chain(*b"\n"));
        body
    }

    /// Writes the record to the work directory `dir`, unless it is the same as `before`.
    pub fn write<L: Layer>(mut self, before: Option<&Self>, layer: &L, dir: &L::Dir, volatile: bool) -> Result<()> {
        self.compatible = before.map(|before| before.compatible.clone()).unwrap_or_default();
        if before == Some(&self) {
            return Ok(());
        }
        let names = (OsStr::new(NEW_RECORD), OsStr::new(RECORD));
        replace_file(layer, dir, names, &self.to_bytes(), !volatile)
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

fn end_line(body: &[u8]) -> String {
    format!("end {:032x}", fnv1a(body))
}

fn parse_lower(line: &[u8]) -> Option<Lower> {
    let (digest, path) = line.split_at_checked(33)?;
    let digest = u128::from_str_radix(str::from_utf8(digest.strip_suffix(b" ")?).ok()?, 16).ok()?;
    Some(Lower { digest, path: unescape(path) })
}

/// Escapes a path for a line: a control character or `%` becomes `%` and two hexadecimal digits.
fn escape(path: &Path) -> String {
    let byte = |byte: &u8| match byte {
        b'%' | 0..b' ' | 0x7f.. => format!("%{byte:02x}"),
        _ => char::from(*byte).to_string(),
    };
    path.as_os_str().as_bytes().iter().map(byte).collect()
}

fn unescape(bytes: &[u8]) -> PathBuf {
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
        Record { lowers: lowers.iter().map(lower).collect(), compatible: Vec::new() }
    }

    #[test]
    fn a_record_is_read_as_it_is_written() {
        let mut written = record(&[(1, b"/a b"), (u128::MAX, b"/new\nline%41\xff"), (3, b"")]);
        written.compatible.push("later".to_owned());
        let bytes = written.to_bytes();
        assert_eq!(Record::parse(&bytes).unwrap().as_ref(), Some(&written));
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1;
            assert_eq!(Record::parse(&damaged).unwrap(), None, "byte {index}");
            assert_eq!(Record::parse(&bytes[..index]).unwrap(), None, "{index} bytes");
        }
    }

    #[test]
    fn an_unknown_feature_is_refused_by_its_name() {
        for (line, named) in [
            ("overlayfs upper layer 1\nincompatible time travel\n", "time travel"),
            ("overlayfs upper layer 1\nread-only colours\n", "colours"),
            ("overlayfs upper layer 2\nanything\n", "version 2 of the record"),
        ] {
            let bytes = format!("{line}{}\n", end_line(line.as_bytes()));
            match Record::parse(bytes.as_bytes()) {
                Err(Refused::Feature(name)) => assert_eq!(name, named),
                other => panic!("{line}: {other:?}"),
            }
        }
        let line = "overlayfs upper layer 1\nsomething else\nlower 00000000000000000000000000000007 /x\n";
        let bytes = format!("{line}{}\n", end_line(line.as_bytes()));
        assert_eq!(Record::parse(bytes.as_bytes()).unwrap(), Some(record(&[(7, b"/x")])));
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
