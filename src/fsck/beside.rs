//! What a commit that was interrupted leaves beside a lower layer.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::errno::{ENOENT, ENOTDIR};
use crate::format;
use crate::layer::{Kind, Layer, OsLayer, Result, entries};
use crate::mount::{Beside, place};
use crate::overlay::on_disk::{Stack, hold, remove_tree};

/// A directory beside a lower layer that a commit has left there.
pub struct Left {
    /// Its path.
    pub path: PathBuf,
    /// Whether nothing needs it, so that [`Left::remove`] loses nothing.
    pub is_needless: bool,
    beside: Beside,
    lower: PathBuf,
}

/// Finds what commits have left beside the lower layer at `lower`. Writes nothing.
///
/// # Errors
///
/// - A directory cannot be read.
pub fn find(lower: &Path) -> io::Result<Vec<Left>> {
    let Ok((above, name)) = place(lower) else { return Ok(Vec::new()) };
    let layer = OsLayer::open(&above, false)?;
    let mut found = Vec::new();
    for beside in [Beside::New, Beside::Work, Beside::Old] {
        let path = above.join(beside.name(&name));
        let names = match layer.open_dir(&layer.root()?, &beside.name(&name)).and_then(|dir| entries(&layer, &dir)) {
            Err(error) if matches!(error.errno, ENOENT | ENOTDIR) => continue,
            names => names?,
        };
        let is_needless = match beside {
            // A copy that is not complete has its work directory.
            Beside::New => names.is_empty() || names.iter().any(|(name, _)| name == format::WORK),
            Beside::Work => names.is_empty(),
            Beside::Old => false,
        };
        // A commit holds the copy while it builds it.
        if !is_needless || hold(&OsLayer::open(&path, false)?)? {
            found.push(Left { path, is_needless, beside, lower: lower.to_owned() });
        }
    }
    Ok(found)
}

impl Left {
    /// Removes the directory.
    ///
    /// # Errors
    ///
    /// - Any errno of the directory around the layer.
    pub fn remove(&self) -> Result<()> {
        let (above, name) = (self.path.parent().unwrap_or(Path::new("/")), self.path.file_name().unwrap_or_default());
        let stack = Stack::new(vec![OsLayer::open(above, true)?], true)?;
        match (self.beside, stack.upper_root()) {
            (Beside::New, Some(root)) => remove_tree(&stack, root, name, Kind::Dir),
            _ => stack.top().remove_dir(&stack.top().root()?, name),
        }
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lower = self.lower.display();
        match (self.beside, self.is_needless) {
            (Beside::New, true) => write!(f, "is a merged copy for {lower} that commit --atomic did not complete"),
            (Beside::New, false) => write!(
                f,
                "is a merged copy or the former content of {lower}, left by commit --atomic; overlayfs-layer commit \
                 --resume ends that. If no upper directory has such a commit, remove it"
            ),
            (Beside::Work, true) => write!(f, "is left from a commit to {lower}"),
            (Beside::Work, false) => write!(
                f,
                "is the work directory of a commit to {lower} that was interrupted; overlayfs-layer commit --resume \
                 ends that"
            ),
            (Beside::Old, _) => write!(
                f,
                "is {lower} in the middle of an exchange that was interrupted; overlayfs-layer commit --resume ends that"
            ),
        }
    }
}
