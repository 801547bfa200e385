//! Removes a part of the upper layer that the lower layers show too.
//!
//! First directories whose opaque mark hides nothing else lose it. After that, on the disk, the
//! rest goes in a second walk, the deepest first. So the same is decided again after an end in
//! between.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::errno::{EIO, ENODATA, ENOENT, Error};
use crate::format::DirMark;
use crate::layer::{Kind, Layer, Object, Result, Time, some_entries};

use super::Overlay;
use super::file::Handle;
use super::node::Node;
use super::removal::remove_tree;

/// A name of an upper directory.
struct Own {
    name: Arc<OsStr>,
    /// The kind of the object.
    kind: Option<Kind>,
    whiteout: bool,
}

/// A directory of both trees. It is open in both, so that it is not evicted and read again.
struct Both<L: Layer> {
    path: PathBuf,
    node: Handle<L>,
    below: Handle<L>,
}

/// A function for each directory of both trees that is entered. It gets the directory above and the
/// name there, if that has a whiteout beside it, and returns whether the directory merges.
type Enter<'f, L> = dyn FnMut(&Both<L>, Option<(&Both<L>, &OsStr)>) -> Result<bool> + 'f;

impl<L: Layer> Overlay<L> {
    /// Removes everything from the upper layer that `below`, the tree of the lower layers, shows
    /// too, with its whiteouts that hide nothing. `stays` tells the other paths, and everything
    /// below them. The root gets these times. The upper layer must be whole, without redirects. The
    /// overlay must not be used after that.
    ///
    /// # Errors
    ///
    /// Those of the layers.
    pub fn thin_out(&self, below: &Overlay<L>, times: (Time, Time), stays: &dyn Fn(&Path) -> bool) -> Result<()> {
        let let_merge = &mut |dir: &Both<L>, whiteout: Option<(&Both<L>, &OsStr)>| self.let_merge(below, dir, whiteout);
        self.each_both(below, stays, let_merge, &mut |_| Ok(()))?;
        self.sync_upper()?;
        let merges = &mut |dir: &Both<L>, whiteout: Option<(&Both<L>, &OsStr)>| self.merges(dir, whiteout.is_some());
        self.each_both(below, stays, merges, &mut |dir| self.thin_dir(below, dir, stays))?;
        // The root below may have other times after an end in the next step.
        let (upper, top) = (self.upper()?.0, self.stack.upper_root().ok_or(Error::new(EIO))?);
        upper.set_times(Object::Dir(&*self.stack.open(top)?), times.0, times.1)
    }

    /// Walks through the directories of both trees that do not stay. Calls `enter` for each, and
    /// `leave` after those in it if it merges. Only then those in it are part of the walk.
    fn each_both(
        &self,
        below: &Overlay<L>,
        stays: &dyn Fn(&Path) -> bool,
        enter: &mut Enter<'_, L>,
        leave: &mut dyn FnMut(&Both<L>) -> Result<()>,
    ) -> Result<()> {
        let root = Both { path: PathBuf::new(), node: self.open(&self.root), below: below.open(&below.root) };
        let mut frames = Vec::new();
        if enter(&root, None)? {
            frames.push((root, Vec::new().into_iter(), Some(OsString::new())));
        }
        while let Some((dir, names, next)) = frames.last_mut() {
            let Some(Own { name, kind, whiteout }) = names.next() else {
                if let Some(from) = next.take() {
                    let (own, behind) = self.own_names(dir.node.node(), &from)?;
                    (*names, *next) = (own.into_iter(), behind);
                } else if let Some((dir, ..)) = frames.pop() {
                    leave(&dir)?;
                    self.close_both(below, dir);
                }
                continue;
            };
            let path = dir.path.join(&*name);
            if kind != Some(Kind::Dir) || stays(&path) {
                continue;
            }
            let lower = below.seek(dir.below.node(), &name)?.filter(|lower| lower.kind() == Kind::Dir);
            let Some(lower) = lower.map(|lower| below.open(&lower)) else { continue };
            let child = Both { path, node: self.open(&self.lookup(dir.node.node(), &name)?), below: lower };
            if enter(&child, whiteout.then_some((dir, &*name)))? {
                frames.push((child, Vec::new().into_iter(), Some(OsString::new())));
            } else {
                self.close_both(below, child);
            }
        }
        Ok(())
    }

    /// Forgets a directory of both trees. An unread one does not count among those to evict.
    fn close_both(&self, below: &Overlay<L>, dir: Both<L>) {
        let [node, lower] = [&dir.node, &dir.below].map(|handle| handle.node().clone());
        drop(dir);
        self.release(node);
        below.release(lower);
    }

    /// Whether a directory merges with the one below: it has no opaque mark, and no whiteout is
    /// beside it.
    fn merges(&self, dir: &Both<L>, has_whiteout: bool) -> Result<bool> {
        let _tree = self.tree.read();
        let mut content = dir.node.node().dir()?;
        self.read_some(dir.node.node(), &mut content)?;
        Ok(!content.opaque && !has_whiteout)
    }

    /// Returns the names of a directory of the upper layer from `from` on: all, or those of a run.
    /// Also returns the name at which the next run begins.
    fn own_names(&self, node: &Arc<Node<L>>, from: &OsStr) -> Result<(Vec<Own>, Option<OsString>)> {
        self.each_slot(node, from, |slot| {
            (slot.upper.is_some() || slot.whiteout).then(|| Own {
                name: slot.name.clone(),
                kind: slot.upper.map(|upper| upper.kind),
                whiteout: slot.whiteout,
            })
        })
    }

    /// Lets an opaque directory merge, unless that shows more. Returns whether it merges.
    /// `whiteout` is its name, if that has a whiteout beside it.
    fn let_merge(&self, below: &Overlay<L>, dir: &Both<L>, whiteout: Option<(&Both<L>, &OsStr)>) -> Result<bool> {
        if self.merges(dir, whiteout.is_some())? {
            return Ok(true);
        }
        if !self.covers(below, dir)? {
            return Ok(false);
        }
        let node = dir.node.node();
        let own = self.upper_dir(node)?;
        {
            let mut content = node.dir()?;
            self.keeping_times(node, &own, |open| self.remove_opaque(open))?;
            content.opaque = false;
        }
        if let Some((above, name)) = whiteout {
            let above = above.node.node();
            let own = self.upper_dir(above)?;
            let mut content = above.dir()?;
            self.keeping_times(above, &own, |_| self.remove_whiteout(&own, name))?;
            if let Some(slot) = self.read_dir_at(above, &mut content, name)?.get_mut(name) {
                slot.whiteout = false;
            }
        }
        Ok(true)
    }

    fn remove_opaque(&self, dir: &L::Dir) -> Result<()> {
        let (upper, _) = self.upper()?;
        let removed = match self.format().opaque() {
            DirMark::File { name, .. } => upper.unlink(dir, OsStr::new(name)),
            DirMark::Attribute { name, .. } => upper.remove_xattr(Object::Dir(dir), &name),
        };
        match removed {
            Err(error) if !matches!(error.errno, ENODATA | ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether the upper directory has each name that the lower one shows, also further down.
    fn covers(&self, below: &Overlay<L>, top: &Both<L>) -> Result<bool> {
        let mut covers = true;
        below.each_dir(top.below.node(), &mut |path, lower| {
            let mut inside = Vec::new();
            if !covers {
                return Ok(inside);
            }
            let node = path.iter().try_fold(top.node.node().clone(), |dir, name| self.lookup(&dir, name))?;
            below.each_shown(lower, &mut |name, kind| {
                let _tree = self.tree.read();
                let mut dir = node.dir()?;
                let own = self.read_dir_at(&node, &mut dir, name)?.get(name);
                let own = own.filter(|slot| slot.upper.is_some() || slot.whiteout).map(|slot| slot.upper);
                covers &= own.is_some();
                let is_dir = own.flatten().is_some_and(|upper| upper.kind == Kind::Dir) && kind == Kind::Dir;
                inside.extend(is_dir.then(|| name.clone()));
                Ok(())
            })?;
            Ok(inside)
        })?;
        Ok(covers)
    }

    /// Removes what can go from a directory, and the directory itself if it is empty then. Else it
    /// gets the times that it has below.
    fn thin_dir(&self, below: &Overlay<L>, dir: &Both<L>, stays: &dyn Fn(&Path) -> bool) -> Result<()> {
        let (upper, _) = self.upper()?;
        let own = self.upper_dir(dir.node.node())?;
        let open = self.stack.open(&own)?;
        let mut next = Some(OsString::new());
        while let Some(from) = next {
            let (names, behind) = self.own_names(dir.node.node(), &from)?;
            for Own { name, kind, whiteout } in names {
                if stays(&dir.path.join(&*name)) || kind == Some(Kind::Dir) {
                    continue;
                }
                if whiteout && (kind.is_some() || below.seek(dir.below.node(), &name)?.is_none()) {
                    self.remove_whiteout(&own, &name)?;
                }
                if kind.is_some() {
                    remove_tree(&self.stack, &own, &name, Kind::File)?;
                }
            }
            next = behind;
        }
        if let Some((above, name)) = self.stack.parent(&own)
            && some_entries(upper, &open, 1)?.is_empty()
        {
            return upper.remove_dir(&*self.stack.open(&above)?, &name);
        }
        let stat = below.stat(dir.below.node())?;
        upper.set_times(Object::Dir(&*open), stat.atime, stat.mtime)
    }
}
