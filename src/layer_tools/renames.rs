//! Finds the objects that were renamed: a walk before that of the differ.
//!
//! The upper layer names the old path of a renamed directory. It does not for other objects. But
//! the work directory has the number of the original of each copy, so a number that left one path
//! and came to another tells the rename. Both are about the layers directly below the upper layer.
//! In another pair of trees no rename is found.
//!
//! The walk only lists directories. It reads the attributes of objects that seem to be renamed.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::changes::{contents, matched};
use super::{Error, Views, Watch, tree};
use crate::errno::{self, ENOENT, ENOTDIR, ESTALE, Result};
use crate::layer::{Kind, Layer};
use crate::overlay::Overlay;
use crate::overlay::on_disk::{Content, Entry, Relation, content, has_copy, head, is_upper_over};

/// The renamed objects.
#[derive(Default)]
pub struct Renamed {
    /// The old path of each, by the new one.
    from: HashMap<PathBuf, PathBuf>,
    /// The old paths.
    sources: HashSet<PathBuf>,
}

impl Renamed {
    /// Returns the old path of the object at `path` in the later tree, if it was renamed.
    pub fn from(&self, path: &Path) -> Option<&PathBuf> {
        self.from.get(path)
    }

    /// Whether the object at `path` in the earlier tree was renamed.
    pub fn has_left(&self, path: &Path) -> bool {
        self.sources.contains(path)
    }

    fn add(&mut self, from: PathBuf, to: PathBuf) {
        if self.sources.insert(from.clone()) {
            self.from.insert(to, from);
        }
    }

    /// Finds the renamed objects between two trees.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: a directory cannot be read. One that vanished is left out.
    /// - [`Error::Stopped`]: `watch` wants to stop.
    pub fn find<L: Layer>(views: &Views<L>, watch: &dyn Watch) -> std::result::Result<Self, Error> {
        let (Some(above), Some(below)) = (&views.above, &views.below) else { return Ok(Self::default()) };
        if !is_upper_over(above, below) {
            return Ok(Self::default());
        }
        let mut search = Search::new(above, below);
        search.walk(watch)?;
        let mut renamed = Renamed::default();
        search.add_dirs(&mut renamed);
        search.look_in_removed(&renamed, watch)?;
        search.add_others(&mut renamed);
        Ok(renamed)
    }
}

/// A directory of the later tree, and its path in the earlier one. The walk keeps paths, since
/// there may be many.
#[derive(Default)]
struct Pair {
    path: PathBuf,
    old_path: PathBuf,
    /// Whether the earlier tree has a directory there.
    is_old: bool,
}

/// The facts from which renames follow.
struct Search<'v, L: Layer> {
    above: &'v Overlay<L>,
    below: &'v Overlay<L>,
    left: Vec<Pair>,
    /// The directories with another path below, and that path.
    redirects: Vec<(PathBuf, PathBuf)>,
    /// The directories of the earlier tree of which nothing shows at their path.
    removed: HashSet<PathBuf>,
    /// The new paths of copies, by the number of the original. Each is the path, and that which the
    /// earlier tree has in its place.
    came: HashMap<u64, Vec<(PathBuf, PathBuf)>>,
    /// The old paths of objects with a copy, by their number.
    went: HashMap<u64, Vec<PathBuf>>,
}

impl<'v, L: Layer> Search<'v, L> {
    fn new(above: &'v Overlay<L>, below: &'v Overlay<L>) -> Self {
        Search {
            above,
            below,
            left: vec![Pair { is_old: true, ..Pair::default() }],
            redirects: Vec::new(),
            removed: HashSet::new(),
            came: HashMap::new(),
            went: HashMap::new(),
        }
    }

    /// Walks through both trees, as far as they may differ.
    fn walk(&mut self, watch: &dyn Watch) -> std::result::Result<(), Error> {
        while let Some(pair) = self.left.pop() {
            if watch.wants_stop() {
                return Err(Error::Stopped);
            }
            let path = pair.path.clone();
            match self.visit(pair) {
                // The differ tells about it.
                Err(error) if is_missing(error) => {}
                visited => visited.map_err(|error| Error::in_tree("read", &path, error))?,
            }
        }
        Ok(())
    }

    fn visit(&mut self, mut pair: Pair) -> Result<()> {
        let dir = tree::at(self.above, &pair.path)?;
        let now = head(self.above, &dir)?;
        if let Some(from) = now.redirect.as_ref().filter(|from| **from != pair.old_path) {
            let old_path = std::mem::replace(&mut pair.old_path, from.clone());
            if pair.is_old {
                self.removed.insert(old_path);
            }
            pair.is_old = match tree::at(self.below, from) {
                Err(error) if is_missing(error) => false,
                dir => dir?.kind() == Kind::Dir,
            };
            self.redirects.extend(pair.is_old.then(|| (pair.old_path.clone(), pair.path.clone())));
        }
        if pair.is_old && now.is_alone() {
            // Another directory took the place.
            self.removed.insert(pair.old_path.clone());
            pair.is_old = false;
        }
        let old = if pair.is_old { Some(tree::at(self.below, &pair.old_path)?) } else { None };
        let (mut next, first_left) = (Some(OsString::new()), self.left.len());
        while let Some(from) = next {
            let [before, now] = contents([old.as_ref().map(|old| (self.below, old)), Some((self.above, &dir))], &from)?;
            for (one, other, relation) in matched(&before, &now) {
                if relation != Relation::Same {
                    self.compare(&pair, one, other);
                }
            }
            next = now.next;
        }
        // The first name comes next: the trees may have only a run of the names in memory.
        self.left[first_left..].reverse();
        Ok(())
    }

    /// Notes what a name of both directories tells.
    fn compare(&mut self, pair: &Pair, one: Option<&Entry>, other: Option<&Entry>) {
        let is_dir = |entry: &&Entry| entry.kind == Kind::Dir;
        let is_file = |entry: &&Entry| entry.kind != Kind::Dir;
        let is_same = one.zip(other).is_some_and(|(one, other)| one.number == other.number);
        if let Some(one) = one {
            let path = || pair.old_path.join(&*one.name);
            match other.filter(is_dir) {
                _ if !is_dir(&one) && is_same => {}
                _ if !is_dir(&one) => note(&mut self.went, path, one.number.filter(|it| has_copy(self.above, *it))),
                Some(_) => {}
                None => drop(self.removed.insert(path())),
            }
        }
        if let Some(other) = other.filter(is_file).filter(|other| other.is_upper && !is_same) {
            let paths = || (pair.path.join(&*other.name), pair.old_path.join(&*other.name));
            note(&mut self.came, paths, other.number);
        }
        if let Some(other) = other.filter(is_dir).filter(|other| other.is_upper || one.is_some()) {
            self.left.push(Pair {
                path: pair.path.join(&*other.name),
                old_path: pair.old_path.join(&*other.name),
                is_old: one.is_some_and(|one| is_dir(&one)),
            });
        }
    }

    /// Adds the renamed directories. A redirect to a directory that still shows at its own path is
    /// no rename.
    fn add_dirs(&mut self, renamed: &mut Renamed) {
        self.redirects.sort_by_key(|(from, _)| from.iter().count());
        for (from, to) in self.redirects.drain(..) {
            let has_left = match from.ancestors().find(|above| self.removed.contains(*above)) {
                Some(removed) => removed == from || !renamed.has_left(removed),
                None => false,
            };
            if has_left {
                renamed.add(from, to);
            }
        }
    }

    /// Looks for the originals of copies in the removed directories.
    fn look_in_removed(&mut self, renamed: &Renamed, watch: &dyn Watch) -> std::result::Result<(), Error> {
        let count = |paths: Option<&Vec<PathBuf>>| paths.map_or(0, Vec::len);
        self.came.retain(|number, _| has_copy(self.above, *number));
        let mut dirs: Vec<_> = self.removed.drain().filter(|dir| !renamed.has_left(dir)).collect();
        dirs.sort();
        while let Some(path) = dirs.pop()
            && self.came.iter().any(|(number, came)| came.len() > count(self.went.get(number)))
        {
            if watch.wants_stop() {
                return Err(Error::Stopped);
            }
            self.look_in(&path, renamed, &mut dirs).map_err(|error| Error::in_tree("read", &path, error))?;
        }
        Ok(())
    }

    /// Looks for the originals of copies in a removed directory. Adds those in it to `dirs`.
    fn look_in(&mut self, path: &Path, renamed: &Renamed, dirs: &mut Vec<PathBuf>) -> Result<()> {
        let dir = tree::at(self.below, path)?;
        let mut from = Some(OsString::new());
        while let Some(first) = from {
            let Content { entries, next, .. } = content(self.below, &dir, &first)?;
            for Entry { name, kind, number, .. } in entries {
                let path = path.join(&*name);
                match kind {
                    Kind::Dir => dirs.extend((!renamed.has_left(&path)).then_some(path)),
                    _ => note(&mut self.went, || path, number.filter(|number| self.came.contains_key(number))),
                }
            }
            from = next;
        }
        Ok(())
    }

    /// Adds the other renamed objects. An object that only has the number of an earlier copy is not
    /// one: it shows another number.
    fn add_others(&mut self, renamed: &mut Renamed) {
        for (number, mut came) in self.came.drain() {
            let mut went = self.went.remove(&number).unwrap_or_default();
            // A name that is again at its place was not renamed.
            let at_home: Vec<_> = went.extract_if(.., |from| came.iter().any(|(_, place)| place == from)).collect();
            came.retain(|(_, place)| !at_home.contains(place));
            for (from, (to, _)) in went.into_iter().zip(came) {
                let shown = tree::at(self.above, &to).and_then(|node| self.above.stat(&node));
                if shown.is_ok_and(|stat| stat.ino == number) {
                    renamed.add(from, to);
                }
            }
        }
    }
}

fn note<P>(paths: &mut HashMap<u64, Vec<P>>, path: impl FnOnce() -> P, number: Option<u64>) {
    if let Some(number) = number {
        paths.entry(number).or_default().push(path());
    }
}

fn is_missing(error: errno::Error) -> bool {
    matches!(error.errno, ENOENT | ENOTDIR | ESTALE)
}
