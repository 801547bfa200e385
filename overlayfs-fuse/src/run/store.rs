//! The directory of the changes: a part for each overlaid directory, and an empty place for the
//! room.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::options::Upper;
use super::plan::{part_name, part_path};

/// The name of the place where the room is built.
const ROOM: &str = "room";

/// The directory of the changes.
#[derive(Debug)]
pub struct Store {
    /// Its path: absolute, and without symlinks.
    pub dir: PathBuf,
    /// Whether this run made it.
    is_new: bool,
}

/// The changes of one overlaid directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The overlaid directory.
    pub lower: PathBuf,
    /// The upper directory.
    pub upper: PathBuf,
}

impl Store {
    /// Opens the directory that the options name, or makes it.
    ///
    /// # Errors
    ///
    /// - A sentence names the directory, and why it cannot be used.
    pub fn open(upper: &Upper) -> Result<Self, String> {
        let (dir, is_new) = match upper {
            Upper::At(dir) => (dir.clone(), make(dir).map_err(|error| unusable(dir, &error))?),
            Upper::Temporary => (make_new(&std::env::temp_dir().join("overlayfs-fuse"), true)?, true),
            Upper::New => (make_new(&cache()?.join("overlayfs-fuse").join("run"), false)?, true),
        };
        let real = dir.canonicalize().map_err(|error| unusable(&dir, &error))?;
        let names: io::Result<Vec<_>> =
            fs::read_dir(&real).and_then(|all| all.map(|one| Ok(one?.file_name())).collect());
        let names = names.map_err(|error| unusable(&dir, &error))?;
        if !names.is_empty() && !names.iter().any(|name| name == ROOM) {
            return Err(format!(
                "{} cannot be used for the changes: it is not empty, and no earlier run made it.",
                dir.display()
            ));
        }
        make(&real.join(ROOM)).map_err(|error| unusable(&dir, &error))?;
        Ok(Self { dir: real, is_new })
    }

    /// Returns the place where the room is built.
    pub fn room(&self) -> PathBuf {
        self.dir.join(ROOM)
    }

    /// Returns the part for an overlaid directory. A new one has the mode and the owner of that
    /// directory, as far as the caller may set these.
    ///
    /// # Errors
    ///
    /// Those of mkdir(2).
    pub fn part(&self, lower: &Path) -> io::Result<Part> {
        let upper = self.dir.join(part_name(lower));
        if make(&upper)? {
            let meta = fs::metadata(lower)?;
            // Only root can.
            let _ = std::os::unix::fs::chown(&upper, Some(meta.uid()), Some(meta.gid()));
            fs::set_permissions(&upper, Permissions::from_mode(meta.mode() & 0o7777))?;
        }
        Ok(Part { lower: lower.to_owned(), upper })
    }

    /// Returns the parts of this run and of earlier ones.
    ///
    /// # Errors
    ///
    /// Those of opendir(3).
    pub fn parts(&self) -> io::Result<Vec<Part>> {
        let mut parts = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if let Some(lower) = part_path(&entry.file_name()) {
                parts.push(Part { lower, upper: entry.path() });
            }
        }
        parts.sort_by(|one, other| one.lower.cmp(&other.lower));
        Ok(parts)
    }

    /// Removes what this run made and did not use. Without success it stays.
    pub fn remove_unused(&self) {
        if self.is_new {
            let _ = self.remove();
        }
    }

    /// Removes a part that is not used. Without success it stays.
    pub fn remove_part(&self, upper: &Path) {
        let _ = fs::remove_dir(upper);
    }

    /// Removes the parts, and the directory itself if a run made it.
    ///
    /// # Errors
    ///
    /// - A sentence names the object that cannot be removed.
    pub fn remove(&self) -> Result<(), String> {
        let failed = |path: &Path, error: &io::Error| format!("{} cannot be removed: {error}.", path.display());
        for Part { upper, .. } in self.parts().map_err(|error| unusable(&self.dir, &error))? {
            remove_tree(&upper).map_err(|error| failed(&upper, &error))?;
        }
        for dir in [&self.room(), &self.dir] {
            match fs::remove_dir(dir) {
                // The user may have put it at a place that stays.
                Err(error) if error.kind() != ErrorKind::NotFound && self.is_new => return Err(failed(dir, &error)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Returns the user's directory for what can be made again.
fn cache() -> Result<PathBuf, String> {
    let named = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")));
    cache.ok_or_else(|| {
        "There is no place for the changes: neither XDG_CACHE_HOME nor HOME has a path. Give --upper or --tmp."
            .to_owned()
    })
}

/// Makes a directory of the user, unless it exists. Returns whether it is new.
fn make(dir: &Path) -> io::Result<bool> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists && dir.is_dir() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a new directory that begins with `path`: a number follows. Makes those above it, unless
/// they are temporary.
fn make_new(path: &Path, temporary: bool) -> Result<PathBuf, String> {
    if !temporary && let Some(above) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(above);
        made.map_err(|error| format!("{} Give --upper or --tmp.", unusable(above, &error)))?;
    }
    for number in 1_u32.. {
        let mut name = path.to_owned().into_os_string();
        // Other users share the directory of temporary files, and may take names before.
        let of = if temporary { rustix::process::getpid().as_raw_nonzero().get() as u32 } else { 0 };
        name.push(format!("-{}", of + number));
        let dir = PathBuf::from(name);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(unusable(&dir, &error)),
        }
    }
    Err(format!("{} has no number left.", path.display()))
}

fn unusable(dir: &Path, error: &io::Error) -> String {
    format!("{} cannot be used for the changes: {error}.", dir.display())
}

/// Removes a tree, also with directories that their owner may not change.
fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            unlock(dir)?;
            fs::remove_dir_all(dir)
        }
        removed => removed,
    }
}

/// Gives the owner all rights to the directories of a tree.
fn unlock(top: &Path) -> io::Result<()> {
    let mut left = vec![top.to_owned()];
    while let Some(dir) = left.pop() {
        fs::set_permissions(&dir, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(())
}
