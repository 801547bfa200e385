//! The choice of some changes.
//!
//! A glob that matches a directory stands for everything below it too. What is chosen takes the
//! changes of the directories above it with it. The names of a file with several are chosen all
//! or not at all.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};

use crate::layer::{Kind, Layer};
use crate::layer_tools::paths::PathList;
use crate::layer_tools::{Error, Views, Watch};
use crate::options;

/// Globs of paths in the merged tree. Without any, everything is chosen.
#[derive(Clone, Default)]
pub struct Filter {
    include: Vec<GlobMatcher>,
    exclude: Vec<GlobMatcher>,
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = |globs: &[GlobMatcher]| globs.iter().map(|glob| glob.glob().to_string()).collect::<Vec<_>>();
        write!(f, "include {:?}, exclude {:?}", texts(&self.include), texts(&self.exclude))
    }
}

impl Filter {
    /// Adds a glob of paths to choose.
    ///
    /// # Errors
    ///
    /// Names a glob that is none.
    pub fn include(&mut self, glob: &OsStr) -> Result<(), options::Error> {
        self.include.push(parse(glob)?);
        Ok(())
    }

    /// Adds a glob of paths to leave out.
    ///
    /// # Errors
    ///
    /// Names a glob that is none.
    pub fn exclude(&mut self, glob: &OsStr) -> Result<(), options::Error> {
        self.exclude.push(parse(glob)?);
        Ok(())
    }

    /// Whether there is no glob.
    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Whether the globs choose a path.
    pub fn chooses(&self, path: &Path) -> bool {
        let matches = |globs: &[GlobMatcher]| path.ancestors().any(|path| globs.iter().any(|glob| glob.is_match(path)));
        !matches(&self.exclude) && (self.include.is_empty() || matches(&self.include))
    }

    /// Returns the paths of the changes that are not chosen, without those below others.
    pub(super) fn kept<L: Layer>(&self, views: &Views<L>, watch: &dyn Watch) -> Result<PathList, Error> {
        let (mut paths, mut chosen) = (PathList::default(), Vec::new());
        // The changes of objects with several names, by the inode number.
        let mut linked = Vec::new();
        views.changes_to_apply(watch, &mut |change| {
            if let (Some(above), Some(new)) = (&views.above, &change.new)
                && new.kind() != Kind::Dir
            {
                let stat = above.stat(new).map_err(|error| Error::in_tree("read", &change.path, error))?;
                if stat.nlink > 1 {
                    linked.push((stat.ino, chosen.len()));
                }
            }
            chosen.push(self.chooses(&change.path));
            paths.push(&change.path);
            Ok(())
        })?;
        linked.sort_unstable();
        for names in linked.chunk_by(|one, other| one.0 == other.0) {
            let all = names.iter().all(|(_, index)| chosen[*index]);
            names.iter().for_each(|(_, index)| chosen[*index] = all);
        }
        drop(linked);
        // The changes below a directory come directly behind it.
        let mut below: Option<PathBuf> = None;
        for at in (0..chosen.len()).rev() {
            let path = paths.get(at);
            chosen[at] |= below.as_ref().is_some_and(|below| below.starts_with(&path));
            below = if chosen[at] { Some(path) } else { below };
        }
        let mut kept = PathList::default();
        for (path, _) in paths.iter().zip(&chosen).filter(|(_, chosen)| !**chosen) {
            let is_top = path.as_os_str().is_empty();
            if !is_top && (kept.is_empty() || !path.starts_with(kept.last())) {
                kept.push(&path);
            }
        }
        Ok(kept)
    }
}

fn parse(glob: &OsStr) -> Result<GlobMatcher, options::Error> {
    let wrong = |cause: &dyn std::fmt::Display| options::Error::new(format!("{} is no glob: {cause}.", glob.display()));
    let text = glob.to_str().ok_or_else(|| wrong(&"it is not UTF-8"))?;
    let built = GlobBuilder::new(text).literal_separator(true).build();
    built.map(|glob| glob.compile_matcher()).map_err(|error| wrong(error.kind()))
}
