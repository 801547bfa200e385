//! A chain of snapshots: the first upper layer, and the upper layers that were put on it one after
//! the other. Only the topmost one changes; the others are frozen.
//!
//! A directory beside the first upper layer has the others, each with its work directory, in
//! directories that are numbers. The file `chain` in it lists them. The engine writes that file
//! anew in one step, which is the visible step of a snapshot and of a rollback. `docs/format.md`
//! describes the lines.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::errno::{EFBIG, ENOENT, Error};

use super::Refused;
use super::holder::{hold, hold_on_all_hosts};
use super::record::{digest, end_line, escape, unescape};
use super::work::{holder, replace_file};
use crate::layer::{Access, Kind, Layer, Object, Result, entries, read_start};

/// The file's name.
const CHAIN: &str = "chain";
/// The name of the file while it is written anew.
const NEW_CHAIN: &str = "tmp.chain";
/// The first line.
const TITLE: &[u8] = b"overlayfs snapshots 1";
/// The names in the directory of a layer.
pub(super) const UPPER: &str = "upper";
pub(super) const WORK: &str = "work";
/// The maximum length of the file.
const LENGTH_MAX: u64 = 1 << 20;

/// A snapshot: the state of the layers below the one that was put on them then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The number of the layer above it, which is the name of that layer's directory.
    pub number: u64,
    /// When it was made, in seconds since 1970.
    pub time: u64,
    /// Its name, which no other snapshot of the chain has.
    pub name: String,
}

/// The chain of an overlay.
pub struct Chain<L: Layer> {
    /// The directory with the layers, which the overlay holds until its end.
    pub(super) dir: Arc<L>,
    base: u128,
    path: PathBuf,
    /// The snapshots, the first one first.
    pub(super) snapshots: Vec<Snapshot>,
}

/// An upper layer and its work directory.
pub type Level<L> = (L, Option<L>);

impl<L: Layer> Chain<L> {
    /// Opens the chain in the directory `dir` for the first upper layer `base`. With `holds` locks
    /// it against all other overlays. Also returns the layers, from the bottom.
    ///
    /// # Errors
    ///
    /// - [`Refused::Held`]: another overlay holds the chain.
    /// - [`Refused::Chain`]: the chain is of another upper layer, or is damaged.
    pub fn open(dir: L, base: Level<L>, holds: bool) -> std::result::Result<(Self, Vec<Level<L>>), Refused> {
        let root = dir.root()?;
        let is_held = holds && !(hold(&dir)? && hold_on_all_hosts(&dir, &root)?);
        let base_root = base.0.root()?;
        let ino = base.0.stat(Object::Dir(&base_root))?.ino;
        let found = digest(&base.0, &base_root, ino)?;
        let path = base.0.path().map(Path::to_owned).unwrap_or_default();
        let chain = Chain { dir: Arc::new(dir), base: found, path, snapshots: Vec::new() };
        let mut levels = vec![base];
        let Some(bytes) = read(&*chain.dir, &root)? else {
            return if is_held { Err(Refused::Held(chain.holder(&levels))) } else { Ok((chain, levels)) };
        };
        let (base, path, snapshots) = parse(&bytes).ok_or(Refused::Chain("is damaged".to_owned()))?;
        if base != chain.base {
            return Err(Refused::Chain(format!("has snapshots of the upper directory {}", path.display())));
        }
        for snapshot in &snapshots {
            levels.push(chain.level(snapshot.number, holds)?);
        }
        if is_held {
            return Err(Refused::Held(chain.holder(&levels)));
        }
        Ok((Chain { path, snapshots, ..chain }, levels))
    }

    /// Returns the overlay that holds the topmost of these layers, if it left a record.
    fn holder(&self, levels: &[Level<L>]) -> Option<super::Holder> {
        let (upper, work) = levels.last()?;
        holder(upper, &upper.root().ok()?, work.as_ref())
    }

    /// Opens the layer with this number.
    fn level(&self, number: u64, for_writing: bool) -> Result<Level<L>> {
        let place = self.dir.open_dir(&self.dir.root()?, &name_of(number))?;
        self.open_level(number, &place, for_writing)
    }

    /// Makes the directories of a new layer, empty. Returns its number, and the directory with
    /// both.
    pub(super) fn make_level(&self) -> Result<(u64, L::Dir)> {
        let root = self.dir.root()?;
        let numbers =
            entries(&*self.dir, &root)?.into_iter().filter_map(|(name, _)| name.to_str()?.parse::<u64>().ok());
        let number = numbers.max().unwrap_or(0) + 1;
        let (name, own) = (name_of(number), self.dir.identity());
        self.dir.create_dir(&root, &name, 0o700, own)?;
        let place = self.dir.open_dir(&root, &name)?;
        for name in [UPPER, WORK] {
            self.dir.create_dir(&place, OsStr::new(name), 0o700, own)?;
        }
        Ok((number, place))
    }

    /// Opens the layer with this number in the directory `place`.
    pub(super) fn open_level(&self, number: u64, place: &L::Dir, for_writing: bool) -> Result<Level<L>> {
        let above = self.dir.path().map(|path| path.join(name_of(number))).unwrap_or_default();
        let open = |name| {
            let dir = self.dir.open_dir(place, OsStr::new(name))?;
            self.dir.below(&dir, &above.join(name), for_writing)
        };
        Ok((open(UPPER)?, Some(open(WORK)?)))
    }

    /// Returns the chain with these snapshots.
    pub(super) fn with(&self, snapshots: Vec<Snapshot>) -> Self {
        Chain { dir: self.dir.clone(), base: self.base, path: self.path.clone(), snapshots }
    }

    /// Writes the file: from now on this is the chain that a mount finds.
    pub(super) fn write(&self) -> Result<()> {
        let root = self.dir.root()?;
        let mut body = [TITLE, b"\n"].concat();
        body.extend(format!("base {:032x} {}\n", self.base, escape(&self.path)).bytes());
        for Snapshot { number, time, name } in &self.snapshots {
            body.extend(format!("snapshot {number} {time} {}\n", escape(Path::new(name))).bytes());
        }
        let end = end_line(&body);
        body.extend(end.bytes().chain(*b"\n"));
        let names = (OsStr::new(NEW_CHAIN), OsStr::new(CHAIN));
        if let Some((name, Kind::File)) = entries(&*self.dir, &root)?.iter().find(|(name, _)| name == NEW_CHAIN) {
            // A crash left it.
            self.dir.unlink(&root, name)?;
        }
        replace_file(&*self.dir, &root, names, [body].into_iter(), true)?;
        if let Err(error) = self.dir.sync_dir(&root) {
            // The new chain counts already.
            log::warn!("a crash of the system may bring back the chain of snapshots from before: {error}");
        }
        Ok(())
    }
}

fn name_of(number: u64) -> OsString {
    number.to_string().into()
}

/// Reads the file. None if there is none: the chain has no snapshot.
fn read<L: Layer>(dir: &L, root: &L::Dir) -> Result<Option<Vec<u8>>> {
    let file = match dir.open_file(root, OsStr::new(CHAIN), Access::Read) {
        Err(error) if error.errno == ENOENT => return Ok(None),
        file => file?,
    };
    let size = dir.stat(Object::File(&file))?.size;
    if size > LENGTH_MAX {
        return Err(Error::new(EFBIG));
    }
    read_start(dir, &file, size as usize).map(Some)
}

/// Parses the file: the digest and the path of the first upper layer, and the snapshots.
fn parse(bytes: &[u8]) -> Option<(u128, PathBuf, Vec<Snapshot>)> {
    let lines = bytes.strip_suffix(b"\n")?;
    let at = lines.iter().rposition(|byte| *byte == b'\n')? + 1;
    let (body, end) = lines.split_at(at);
    if end != end_line(body).as_bytes() {
        return None;
    }
    let mut lines = body.strip_suffix(b"\n")?.split(|byte| *byte == b'\n');
    if lines.next()? != TITLE {
        return None;
    }
    let (base, path) = lines.next()?.strip_prefix(b"base ")?.split_at_checked(33)?;
    let base = u128::from_str_radix(str::from_utf8(base.strip_suffix(b" ")?).ok()?, 16).ok()?;
    let snapshot = |line: &[u8]| {
        let mut words = line.strip_prefix(b"snapshot ")?.splitn(3, |byte| *byte == b' ');
        let mut number = || str::from_utf8(words.next()?).ok()?.parse().ok();
        let (number, time) = (number()?, number()?);
        let name = unescape(words.next()?).into_os_string().into_string().ok()?;
        Some(Snapshot { number, time, name })
    };
    Some((base, unescape(path), lines.map(snapshot).collect::<Option<_>>()?))
}

/// Whether a snapshot may have this name: at most 255 bytes, and no control characters.
pub fn is_name(name: &str) -> bool {
    (1..=255).contains(&name.len()) && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn only_a_whole_file_is_a_chain() {
        let mut body = b"overlayfs snapshots 1\nbase 0000000000000000000000000000000a /a b%0a\n".to_vec();
        body.extend(b"snapshot 1 17 before the upgrade\nsnapshot 3 18 %25\n");
        let bytes = [&body[..], end_line(&body).as_bytes(), b"\n"].concat();
        let (base, path, snapshots) = parse(&bytes).unwrap();
        assert_eq!((base, path.as_os_str().as_bytes()), (10, &b"/a b\n"[..]));
        let names: Vec<_> = snapshots.iter().map(|snapshot| (snapshot.number, &*snapshot.name)).collect();
        assert_eq!(names, [(1, "before the upgrade"), (3, "%")]);
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1;
            assert_eq!(parse(&damaged), None, "byte {index}");
            assert_eq!(parse(&bytes[..index]), None, "{index} bytes");
        }
    }
}
