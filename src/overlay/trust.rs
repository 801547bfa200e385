//! Trust: whether a redirect or mark in a layer counts.
//!
//! A redirect, and the mark of a file that has only metadata, show an object at another place than
//! its own. It shows with its own attributes, but without the directories that protect it. The
//! owner of a part of a layer may write both marks.
//!
//! A mark is *trusted* in each of these cases:
//!
//! - It belongs to root or to the daemon's user, and no other user can write it.
//! - Its attribute is in the namespace `trusted`.
//! - The options trust the layers ([`Settings::trusted`](super::Settings)).
//!
//! Any other mark counts only as far as its author could go without it. The author must be able to
//! search, list or read every directory on the way, each that merges, and the file. So the mark
//! shows nothing that its author could not copy.
//!
//! Opaque marks and whiteouts only hide, so they count from every author.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::errno::{EXDEV, Error};

use super::Overlay;
use super::stack::LayerDir;
use crate::layer::{Kind, Layer, Object, Result, Stat};
use crate::sync::Lock;

/// The user that may have written an untrusted mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    User(u32),
    /// Several users may have.
    Several,
}

/// A place where a directory merges, and the untrusted author of the way, if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub path: PathBuf,
    pub author: Option<Author>,
}

impl Way {
    /// Returns the way to a name below it.
    pub fn join(self, name: impl AsRef<Path>) -> Self {
        Way { path: self.path.join(name), ..self }
    }

    /// Returns the path if it may be written down as a trusted one.
    ///
    /// # Errors
    ///
    /// - EXDEV: the way has an untrusted author.
    pub fn trusted(self) -> Result<PathBuf> {
        match self.author {
            None => Ok(self.path),
            Some(_) => Err(Error::new(EXDEV)),
        }
    }
}

impl Author {
    /// Whether the author may read a file, or search and list a directory, with these attributes.
    /// The author's groups are unknown.
    fn reads(self, stat: &Stat) -> bool {
        let needed = if stat.kind == Kind::Dir { 0o5 } else { 0o4 };
        self == Author::User(stat.uid) || (stat.mode >> 3) & stat.mode & needed == needed
    }

    /// Returns the author of a way that both influenced.
    pub fn and(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) if one != other => Some(Author::Several),
            _ => one.or(other),
        }
    }
}

/// The directories that are not shown and were logged. Each is logged once, since the engine looks
/// at them again and again. The lock is a leaf.
#[derive(Default)]
pub struct Withheld(Lock<HashSet<(u64, u64)>>);

/// The maximum number of logged directories.
const WITHHELD_MAX: usize = 1000;

impl Withheld {
    /// Whether a directory is to be logged now.
    fn is_new(&self, dir: &Stat) -> bool {
        let mut said = self.0.lock();
        said.len() < WITHHELD_MAX && said.insert((dir.dev, dir.ino))
    }
}

impl<L: Layer> Overlay<L> {
    /// Returns the author of a mark in a layer, or None if it is trusted. `mark` has the attributes
    /// of the marker file, or of the object with the attribute.
    pub(super) fn author(&self, mark: &Stat) -> Option<Author> {
        let ours = mark.uid == 0 || mark.uid == self.stack.top().identity().uid;
        match mark.mode & 0o022 == 0 {
            _ if self.settings.trusted => None,
            true if ours => None,
            true => Some(Author::User(mark.uid)),
            false => Some(Author::Several),
        }
    }

    /// Whether a directory of a layer may show its content as that of another directory.
    pub(super) fn may_merge(&self, dir: &LayerDir<L>) -> Result<bool> {
        let Some(author) = dir.author() else { return Ok(true) };
        let stat = self.stack.layer(dir).stat(Object::Dir(&*self.stack.open(dir)?))?;
        let may = author.reads(&stat);
        if !may && self.withheld.is_new(&stat) {
            log::warn!(
                "a redirect leads to {}, which the redirect's owner may not read, so it does not show",
                self.stack.path(dir).display()
            );
        }
        Ok(may)
    }

    /// Whether a file may show its content as that of another file on the way of `author`.
    pub(super) fn may_show_data(&self, author: Option<Author>, file: &Stat) -> bool {
        author.is_none_or(|author| author.reads(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(kind: Kind, uid: u32, mode: u32) -> Stat {
        Stat::example(kind, mode, uid, 0)
    }

    #[test]
    fn each_directory_is_logged_once() {
        let withheld = Withheld::default();
        let dir = |ino| Stat { ino, ..stat(Kind::Dir, 0, 0o700) };
        assert_eq!([1, 1, 2, 1].map(|ino| withheld.is_new(&dir(ino))), [true, false, true, false]);
        let said = (3..2000).filter(|ino| withheld.is_new(&dir(*ino))).count();
        assert_eq!(said, WITHHELD_MAX - 2);
    }

    #[test]
    fn an_author_reads_own_and_public_objects() {
        let (user, several) = (Author::User(7), Author::Several);
        for (kind, mode, open) in [
            (Kind::File, 0o644, true),
            (Kind::File, 0o640, false),
            (Kind::File, 0o604, false),
            (Kind::Dir, 0o755, true),
            (Kind::Dir, 0o711, false),
            (Kind::Dir, 0o744, false),
        ] {
            assert_eq!(user.reads(&stat(kind, 0, mode)), open, "{kind:?} {mode:o}");
            assert_eq!(several.reads(&stat(kind, 7, mode)), open, "{kind:?} {mode:o}");
            assert!(user.reads(&stat(kind, 7, mode)));
        }
        assert_eq!(Author::and(None, Some(user)), Some(user));
        assert_eq!(Author::and(Some(user), Some(user)), Some(user));
        assert_eq!(Author::and(Some(Author::User(8)), Some(user)), Some(several));
    }
}
