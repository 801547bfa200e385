//! A list of very many paths, which takes a few bytes for each.
//!
//! A path is much like the one before it, so the list has only what differs: the number of bytes
//! that stay, the number of those behind them, and these. Each block of paths begins anew, so that
//! a search need not read all of the list.

use std::ffi::{OsStr, OsString};
use std::iter;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The paths of a block.
const BLOCK: usize = 16;

/// The list, in the order of a walk: depth first, names in the order of their bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathList {
    /// The differences, one behind the other.
    bytes: Vec<u8>,
    /// The place of each block in `bytes`.
    blocks: Vec<usize>,
    last: PathBuf,
    len: usize,
}

impl PathList {
    /// Adds a path, which comes behind the others in a walk.
    pub fn push(&mut self, path: &Path) {
        let (before, path) = (self.last.as_os_str().as_bytes(), path.as_os_str().as_bytes());
        let mut stay = before.iter().zip(path).take_while(|(one, other)| one == other).count();
        if self.len.is_multiple_of(BLOCK) {
            self.blocks.push(self.bytes.len());
            stay = 0;
        }
        put_number(&mut self.bytes, stay);
        put_number(&mut self.bytes, path.len() - stay);
        self.bytes.extend_from_slice(&path[stay..]);
        self.last = PathBuf::from(OsStr::from_bytes(path));
        self.len += 1;
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the path that was added last; an empty one if there is none.
    pub fn last(&self) -> &Path {
        &self.last
    }

    /// Returns the path at this index, which is less than the length.
    pub fn get(&self, at: usize) -> PathBuf {
        self.paths_of(at / BLOCK).nth(at % BLOCK).unwrap_or_default()
    }

    /// Returns the paths in their order.
    pub fn iter(&self) -> impl Iterator<Item = PathBuf> {
        self.paths_of(0)
    }

    /// Whether a path is one of the list, or below one.
    pub fn covers(&self, path: &Path) -> bool {
        path.ancestors().any(|path| self.has(path))
    }

    fn has(&self, path: &Path) -> bool {
        let (mut start, mut end) = (0, self.blocks.len());
        // The last block that does not begin behind the path.
        while start < end {
            let middle = start + (end - start) / 2;
            let first =
                take_difference(&mut self.bytes_of(middle)).map(|(_, first)| Path::new(OsStr::from_bytes(first)));
            match first.is_some_and(|first| first <= path) {
                true => start = middle + 1,
                false => end = middle,
            }
        }
        let Some(block) = start.checked_sub(1) else { return false };
        let (mut rest, mut found) = (self.bytes_of(block), Vec::new());
        (0..BLOCK).any(|_| take(&mut rest, &mut found) && Path::new(OsStr::from_bytes(&found)) == path)
    }

    /// Returns the bytes from the start of a block on.
    fn bytes_of(&self, block: usize) -> &[u8] {
        self.blocks.get(block).map_or(&[], |start| &self.bytes[*start..])
    }

    /// Returns the paths from the start of a block on.
    fn paths_of(&self, block: usize) -> impl Iterator<Item = PathBuf> {
        let (mut rest, mut path) = (self.bytes_of(block), Vec::new());
        iter::from_fn(move || take(&mut rest, &mut path).then(|| PathBuf::from(OsString::from_vec(path.clone()))))
    }
}

/// Takes the next path, from the one before it. Returns false if there is none.
fn take(rest: &mut &[u8], path: &mut Vec<u8>) -> bool {
    let Some((stay, new)) = take_difference(rest) else { return false };
    path.truncate(stay);
    path.extend_from_slice(new);
    true
}

/// Takes the next difference: the number of bytes that stay, and those behind them.
fn take_difference<'b>(rest: &mut &'b [u8]) -> Option<(usize, &'b [u8])> {
    let (stay, new) = (take_number(rest)?, take_number(rest)?);
    let (new, behind) = rest.split_at_checked(new)?;
    *rest = behind;
    Some((stay, new))
}

/// Adds a number, seven bits a byte. All bytes but the last have the highest bit.
fn put_number(bytes: &mut Vec<u8>, mut number: usize) {
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<usize> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_below_one_of_the_list_is_covered() {
        let mut list = PathList::default();
        // `a.b` sorts before `a/x` as bytes, but behind it in a walk.
        for path in ["a/x", "a/x y/z", "a.b/c", "b", "d/e/f"] {
            list.push(Path::new(path));
        }
        for covered in ["a/x", "a/x/y/z", "a/x y/z", "a.b/c/d", "b", "b/x", "d/e/f"] {
            assert!(list.covers(Path::new(covered)), "{covered}");
        }
        for other in ["", "a", "a.b", "a/x y", "a/w", "c", "d/e", "d/e/g", "z"] {
            assert!(!list.covers(Path::new(other)), "{other}");
        }
        let paths: Vec<_> = list.iter().collect();
        assert_eq!(paths, ["a/x", "a/x y/z", "a.b/c", "b", "d/e/f"].map(PathBuf::from));
    }

    #[test]
    fn each_of_many_paths_is_found_and_takes_a_few_bytes() {
        let long = "n".repeat(300);
        let mut names: Vec<_> = (0..10_000).map(|number| format!("dir{}/file{number}", number / 100)).collect();
        names.push(format!("{long}/{long}"));
        names.sort_by(|one, other| Path::new(one).cmp(Path::new(other)));
        let mut list = PathList::default();
        names.iter().for_each(|name| list.push(Path::new(name)));
        assert_eq!((list.len, list.last()), (names.len(), Path::new(&names[names.len() - 1])));
        assert!(list.iter().eq(names.iter().map(PathBuf::from)));
        for (at, name) in names.iter().enumerate() {
            assert!(list.has(Path::new(name)) && !list.has(Path::new(&format!("{name}x"))), "{name}");
            assert_eq!(list.get(at), Path::new(name));
        }
        let bytes = list.bytes.len() + size_of_val(&*list.blocks);
        assert!(bytes < 6 * list.len, "{bytes} bytes");
    }
}
