//! The renamed directories of a commit in place: they move in the lower layer before all else.
//!
//! The deepest moves into the stage first, so the old places of the others stay as the journal
//! names them. Then all move to their new places, the highest first. After each move the redirect
//! in the upper layer follows. A move that was interrupted between the two is found by the stage.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Commit;
use super::journal::{Move, Phase};
use crate::errno::{self, ENOENT};
use crate::layer::{Kind, Layer, Owner, RenameMode};
use crate::layer_tools::Error;
use crate::layer_tools::apply::{make_stage, remove};
use crate::layer_tools::open::Opener;
use crate::layer_tools::tree;
use crate::overlay::{Node, Overlay};

impl<O: Opener> Commit<'_, O> {
    /// Finds the renamed directories.
    fn find_moved(&mut self) -> Result<(), Error> {
        if self.moved.is_empty() {
            let find =
                |one: &Move| tree::at(&self.upper, &one.to).map_err(|error| Error::in_tree("read", &one.to, error));
            self.moved = self.journal.moves.iter().map(find).collect::<Result<_, _>>()?;
        }
        Ok(())
    }

    /// Does `step` for each moved directory, in this order.
    fn each_move(
        &self,
        order: impl Iterator<Item = usize>,
        action: &'static str,
        mut step: impl FnMut(&OsStr, &Move, &Arc<Node<O::Layer>>) -> errno::Result<()>,
    ) -> Result<(), Error> {
        for index in order {
            if self.watch.wants_stop() {
                return Err(Error::Stopped);
            }
            let name = OsString::from(index.to_string());
            let done = step(&name, &self.journal.moves[index], &self.moved[index]);
            done.map_err(|error| Error::in_tree(action, &self.journal.moves[index].from, error))?;
        }
        Ok(())
    }

    /// Moves the renamed directories into the stage, the deepest first. The upper layer names that
    /// place then.
    pub(super) fn take(&mut self) -> Result<(), Error> {
        self.find_moved()?;
        let target = &self.target(false)?;
        let stage_path = PathBuf::from(&self.journal.stage);
        let stage = match target.seek(target.root(), &self.journal.stage) {
            Ok(None) => make_stage(target, &self.journal.stage),
            found => found.and_then(|found| found.ok_or(errno::Error::new(ENOENT))),
        };
        let stage = stage.map_err(|error| Error::in_tree("create", &stage_path, error))?;
        self.each_move(0..self.journal.moves.len(), "move", |name, one, node| {
            if target.seek(&stage, name)?.is_none() {
                let (parent, old) = split(&one.from)?;
                let parent = tree::at(target, parent)?;
                target.rename(&parent, old, &stage, name, RenameMode::NoReplace)?;
            }
            self.upper.redirect(node, &stage_path.join(name), one.times)
        })?;
        self.go_on(target, Phase::Put)
    }

    /// Moves the renamed directories from the stage to their new places, the highest first.
    pub(super) fn put(&mut self) -> Result<(), Error> {
        self.find_moved()?;
        let target = &self.target(false)?;
        let mut order: Vec<_> = (0..self.journal.moves.len()).collect();
        order.sort_by_key(|index| self.journal.moves[*index].to.iter().count());
        let stage = target.seek(target.root(), &self.journal.stage);
        let stage = stage.map_err(|error| Error::in_tree("read", Path::new(&self.journal.stage), error))?;
        self.each_move(order.into_iter(), "move to its new place", |name, one, node| {
            if let Some(stage) = &stage
                && target.seek(stage, name)?.is_some()
            {
                let (parent, new) = split(&one.to)?;
                let parent = make_way(target, parent)?;
                remove(target, &parent, new)?;
                target.rename(stage, name, &parent, new, RenameMode::NoReplace)?;
            }
            self.upper.redirect(node, &one.to, one.times)
        })?;
        let emptied = remove(target, target.root(), &self.journal.stage);
        emptied.map_err(|error| Error::in_tree("remove", Path::new(&self.journal.stage), error))?;
        self.go_on(target, Phase::Apply)
    }
}

/// Splits a path that is not the root.
fn split(path: &Path) -> errno::Result<(&Path, &OsStr)> {
    path.parent().zip(path.file_name()).ok_or(errno::Error::new(ENOENT))
}

/// Returns the directory at a path of the target. Makes what lacks on the way, and removes what is
/// none. The upper layer hides all of that.
fn make_way<L: Layer>(target: &Overlay<L>, path: &Path) -> errno::Result<Arc<Node<L>>> {
    let mut dir = target.root().clone();
    for name in path {
        dir = match target.seek(&dir, name)? {
            Some(there) if there.kind() == Kind::Dir => there,
            there => {
                if there.is_some() {
                    remove(target, &dir, name)?;
                }
                let stat = target.stat(&dir)?;
                let owner = Owner { uid: stat.uid, gid: stat.gid };
                target.create_dir(&dir, name, 0o700, owner)?
            }
        };
    }
    Ok(dir)
}
