//! The choice of some changes.
//!
//! A glob that matches a directory stands for everything below it too. What is chosen takes the
//! changes of the directories above it with it. The names of a file with several are chosen all
//! or not at all.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};

use crate::layer::{Kind, Layer};
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
    pub(super) fn kept<L: Layer>(&self, views: &Views<L>, watch: &dyn Watch) -> Result<Vec<PathBuf>, Error> {
        let (mut changes, mut linked) = (Vec::new(), HashMap::<u64, Vec<usize>>::new());
        views.changes_to_apply(watch, &mut |change| {
            if let (Some(above), Some(new)) = (&views.above, &change.new)
                && new.kind() != Kind::Dir
            {
                let stat = above.stat(new).map_err(|error| Error::in_tree("read", &change.path, error))?;
                if stat.nlink > 1 {
                    linked.entry(stat.ino).or_default().push(changes.len());
                }
            }
            let chosen = self.chooses(&change.path);
            changes.push((change.path, chosen));
            Ok(())
        })?;
        for names in linked.values() {
            let all = names.iter().all(|index| changes[*index].1);
            names.iter().for_each(|index| changes[*index].1 = all);
        }
        let chosen = changes.iter().filter(|(_, chosen)| *chosen);
        let ways: HashSet<_> = chosen.flat_map(|(path, _)| path.ancestors()).map(Path::to_owned).collect();
        let mut kept: Vec<PathBuf> = Vec::new();
        for (path, _) in changes {
            let is_top = path.as_os_str().is_empty();
            if !is_top && !ways.contains(&path) && !kept.last().is_some_and(|last| path.starts_with(last)) {
                kept.push(path);
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

/// The changes that are not chosen.
pub struct Kept<'k>(HashSet<&'k Path>);

impl<'k> Kept<'k> {
    pub fn new(paths: &'k [PathBuf]) -> Self {
        Kept(paths.iter().map(PathBuf::as_path).collect())
    }

    /// Whether a path is one of them, or below one.
    pub fn has(&self, path: &Path) -> bool {
        path.ancestors().any(|path| self.0.contains(path))
    }
}
