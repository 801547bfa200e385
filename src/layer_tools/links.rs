//! The objects with several names that a target has already, and the path of the first name.
//!
//! A tree may have a million of them, so the table keeps each directory once, and for each object
//! its name and 16 bytes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::overlay::on_disk::CompactMap;

/// The table.
#[derive(Default)]
pub struct Links {
    /// The place in `names` of the first name of an inode number, and the count of names to come.
    first: CompactMap<u64, (u32, u32)>,
    /// The directory of a name, its length and the name, one behind the other.
    names: Vec<u8>,
    dirs: Vec<PathBuf>,
}

/// The bytes before a name: the index of its directory and its length.
const HEAD: usize = 6;

impl Links {
    /// Returns the path of the first name of the object `ino`, which has `count` names. None if
    /// this one, `path`, is the first. Call it once for each name.
    pub fn meet(&mut self, ino: u64, count: u32, path: &Path) -> Option<PathBuf> {
        if let Some((at, left)) = self.first.get(ino) {
            match left {
                ..=1 => self.first.remove(ino),
                _ => self.first.insert(ino, (at, left - 1)),
            };
            return self.path(at as usize);
        }
        let (dir, name) = (path.parent().unwrap_or(Path::new("")), path.file_name()?.as_bytes());
        // A table that is full costs a copy of the object.
        let (Ok(at), Ok(length)) = (u32::try_from(self.names.len()), u16::try_from(name.len())) else { return None };
        if self.dirs.last().is_none_or(|last| last != dir) {
            self.dirs.push(dir.to_owned());
        }
        let dir = u32::try_from(self.dirs.len() - 1).ok()?;
        self.names.extend_from_slice(&dir.to_le_bytes());
        self.names.extend_from_slice(&length.to_le_bytes());
        self.names.extend_from_slice(name);
        self.first.insert(ino, (at, count.saturating_sub(1)));
        None
    }

    /// Returns the path at this place of `names`.
    fn path(&self, at: usize) -> Option<PathBuf> {
        let (head, names) = self.names.get(at..)?.split_first_chunk::<HEAD>()?;
        let [a, b, c, d, e, f] = *head;
        let dir = self.dirs.get(u32::from_le_bytes([a, b, c, d]) as usize)?;
        Some(dir.join(OsStr::from_bytes(names.get(..u16::from_le_bytes([e, f]).into())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_leads_to_the_first_one() {
        let mut links = Links::default();
        for (ino, path, first) in [
            (1, "a/x", None),
            (2, "a/y", None),
            (1, "a/z", Some("a/x")),
            (3, "top", None),
            (2, "b/c/y", Some("a/y")),
            (1, "b/x", Some("a/x")),
            (3, "b/top", Some("top")),
            (3, "c/top", Some("top")),
        ] {
            assert_eq!(links.meet(ino, 3, Path::new(path)).as_deref(), first.map(Path::new), "{path}");
        }
        assert_eq!(links.first.len(), 1, "only one object has names to come");
    }
}
