//! Whose word counts in a layer.
//!
//! A redirect, and the mark of a file that has only metadata, have something shown at another place
//! than its own: with the attributes of what is there, and not by the way to where it is. Who owns
//! a part of a layer may write both. Such a mark is *trusted* if it belongs to root or to whoever
//! the daemon is and nobody else can write it, if its attribute is in the namespace `trusted`, or
//! if the mounter says that layers are ([`Settings::trusted`](super::Settings)). Any other counts
//! as far as its author gets without it: every directory on the way, each that merges and the file
//! are such that he may search, list or read them. So it shows nobody what its author could not
//! copy.
//!
//! Opaque marks and whiteouts only hide. They count whoever made them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::errno::{EXDEV, Error};

use super::Overlay;
use super::stack::LayerDir;
use crate::layer::{Kind, Layer, Object, Result, Stat};
use crate::sync::Lock;

/// The user who may have written a mark that is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    User(u32),
    /// Several could have.
    Anybody,
}

/// Where a directory merges, and on whose word; None: it is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    pub path: PathBuf,
    pub author: Option<Author>,
}

impl Way {
    /// A name below it.
    pub fn join(self, name: impl AsRef<Path>) -> Self {
        Way { path: self.path.join(name), ..self }
    }

    /// The path, if it may be written down as one that is trusted. EXDEV otherwise.
    pub fn trusted(self) -> Result<PathBuf> {
        match self.author {
            None => Ok(self.path),
            Some(_) => Err(Error::new(EXDEV)),
        }
    }
}

impl Author {
    /// Whether he may read a file, or search and list a directory, that has these attributes. Of
    /// his groups nothing is known.
    fn reads(self, stat: &Stat) -> bool {
        let needed = if stat.kind == Kind::Dir { 0o5 } else { 0o4 };
        self == Author::User(stat.uid) || (stat.mode >> 3) & stat.mode & needed == needed
    }

    /// Who has a say where both have.
    pub fn and(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) if one != other => Some(Author::Anybody),
            _ => one.or(other),
        }
    }
}

/// The directories of which it was said that they are not shown: once for each, since they are
/// looked at again and again. The lock is a leaf.
#[derive(Default)]
pub struct Withheld(Lock<HashSet<(u64, u64)>>);

/// Of how many it is said.
const WITHHELD_MAX: usize = 1000;

impl Withheld {
    /// Whether nothing was said of a directory yet, and is to be said.
    fn is_new(&self, dir: &Stat) -> bool {
        let mut said = self.0.lock();
        said.len() < WITHHELD_MAX && said.insert((dir.dev, dir.ino))
    }
}

impl<L: Layer> Overlay<L> {
    /// Who has a say in a mark of a layer, by the attributes of the file that it is, or of the
    /// object that has it as an attribute. None: it is trusted.
    pub(super) fn author(&self, mark: &Stat) -> Option<Author> {
        let ours = mark.uid == 0 || mark.uid == self.stack.top().identity().uid;
        match mark.mode & 0o022 == 0 {
            _ if self.trusted => None,
            true if ours => None,
            true => Some(Author::User(mark.uid)),
            false => Some(Author::Anybody),
        }
    }

    /// Whether what is in a directory of a layer may be shown as the content of another.
    pub(super) fn may_merge(&self, dir: &LayerDir<L>) -> Result<bool> {
        let Some(author) = dir.author() else { return Ok(true) };
        let stat = self.stack.layer(dir).stat(Object::Dir(&*self.stack.open(dir)?))?;
        let may = author.reads(&stat);
        if !may && self.withheld.is_new(&stat) {
            log::warn!("a directory of layer {} is not shown by the redirect of one who may not read it", dir.index());
        }
        Ok(may)
    }

    /// Whether the content of a file may be shown as that of another on the word of `author`.
    pub(super) fn may_lend(&self, author: Option<Author>, file: &Stat) -> bool {
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
    fn it_is_said_once_of_each_directory() {
        let withheld = Withheld::default();
        let dir = |ino| Stat { ino, ..stat(Kind::Dir, 0, 0o700) };
        assert_eq!([1, 1, 2, 1].map(|ino| withheld.is_new(&dir(ino))), [true, false, true, false]);
        let said = (3..2000).filter(|ino| withheld.is_new(&dir(*ino))).count();
        assert_eq!(said, WITHHELD_MAX - 2);
    }

    #[test]
    fn an_author_reads_what_is_his_or_everybodys() {
        let (user, anybody) = (Author::User(7), Author::Anybody);
        for (kind, mode, open) in [
            (Kind::File, 0o644, true),
            (Kind::File, 0o640, false),
            (Kind::File, 0o604, false),
            (Kind::Dir, 0o755, true),
            (Kind::Dir, 0o711, false),
            (Kind::Dir, 0o744, false),
        ] {
            assert_eq!(user.reads(&stat(kind, 0, mode)), open, "{kind:?} {mode:o}");
            assert_eq!(anybody.reads(&stat(kind, 7, mode)), open, "{kind:?} {mode:o}");
            assert!(user.reads(&stat(kind, 7, mode)));
        }
        assert_eq!(Author::and(None, Some(user)), Some(user));
        assert_eq!(Author::and(Some(user), Some(user)), Some(user));
        assert_eq!(Author::and(Some(Author::User(8)), Some(user)), Some(anybody));
    }
}
