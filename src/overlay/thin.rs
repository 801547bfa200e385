//! Removes a part of the upper layer that the lower layers show too.
//!
//! First directories whose opaque mark hides nothing else lose it. After that, on the disk, the
//! rest goes, the deepest first. So the same is decided again after an end in between.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::errno::{EIO, ENODATA, ENOENT, Error};
use crate::format::DirMark;
use crate::layer::{Kind, Layer, Object, Result, Time, entries};

use super::Overlay;
use super::node::Node;

/// A name of an upper directory.
struct Own {
    name: Arc<OsStr>,
    /// The kind of the object.
    kind: Option<Kind>,
    whiteout: bool,
}

/// A directory of both trees.
struct Both<L: Layer> {
    path: PathBuf,
    node: Arc<Node<L>>,
    below: Arc<Node<L>>,
}

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
        let root = Both { path: PathBuf::new(), node: self.root.clone(), below: below.root.clone() };
        let mut dirs = Vec::new();
        if self.let_merge(below, &root, None)? {
            dirs.push(root);
        }
        let mut next = 0;
        while let Some(dir) = dirs.get(next).map(|dir: &Both<L>| Both {
            path: dir.path.clone(),
            node: dir.node.clone(),
            below: dir.below.clone(),
        }) {
            next += 1;
            for own in self.own_names(&dir.node)?.iter().filter(|own| own.kind == Some(Kind::Dir)) {
                let path = dir.path.join(&*own.name);
                let Some(lower) = find(below, &dir.below, &own.name)?.filter(|lower| lower.kind() == Kind::Dir) else {
                    continue;
                };
                if stays(&path) {
                    continue;
                }
                let child = Both { path, node: self.lookup(&dir.node, &own.name)?, below: lower };
                if self.let_merge(below, &child, own.whiteout.then_some((&dir, &*own.name)))? {
                    dirs.push(child);
                }
            }
        }
        self.sync_upper()?;
        while let Some(dir) = dirs.pop() {
            self.thin_dir(below, &dir, stays)?;
        }
        // The root below may have other times after an end in the next step.
        let (upper, top) = (self.upper()?.0, self.stack.upper_root().ok_or(Error::new(EIO))?);
        upper.set_times(Object::Dir(&*self.stack.open(top)?), times.0, times.1)
    }

    /// Returns the names of a directory of the upper layer.
    fn own_names(&self, node: &Arc<Node<L>>) -> Result<Vec<Own>> {
        let _tree = self.tree.read();
        let mut dir = node.dir()?;
        let slots = self.read_dir(node, &mut dir)?.slots_mut();
        let own = slots.filter(|slot| slot.upper.is_some() || slot.whiteout);
        let own = own.map(|slot| Own {
            name: slot.name.clone(),
            kind: slot.upper.map(|upper| upper.kind),
            whiteout: slot.whiteout,
        });
        Ok(own.collect())
    }

    /// Lets an opaque directory merge, unless that shows more. Returns whether it merges.
    /// `whiteout` is its name, if that has a whiteout beside it.
    fn let_merge(&self, below: &Overlay<L>, dir: &Both<L>, whiteout: Option<(&Both<L>, &OsStr)>) -> Result<bool> {
        self.own_names(&dir.node)?;
        if !dir.node.dir()?.opaque && whiteout.is_none() {
            return Ok(true);
        }
        if !self.covers(below, dir)? {
            return Ok(false);
        }
        let own = self.upper_dir(&dir.node)?;
        {
            let mut content = dir.node.dir()?;
            self.keeping_times(&dir.node, &own, |open| self.remove_opaque(open))?;
            content.opaque = false;
        }
        if let Some((above, name)) = whiteout {
            let own = self.upper_dir(&above.node)?;
            self.keeping_times(&above.node, &own, |_| self.remove_whiteout(&own, name))?;
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
        let mut dirs = vec![(top.node.clone(), top.below.clone())];
        while let Some((node, lower)) = dirs.pop() {
            let own: HashMap<_, _> = self.own_names(&node)?.into_iter().map(|own| (own.name, own.kind)).collect();
            for (name, kind) in below.shown_names(&lower)? {
                let Some(own) = own.get(&name) else { return Ok(false) };
                if (*own, kind) == (Some(Kind::Dir), Kind::Dir) {
                    dirs.push((self.lookup(&node, &name)?, below.lookup(&lower, &name)?));
                }
            }
        }
        Ok(true)
    }

    /// Removes what can go from a directory, and the directory itself if it is empty then. Else it
    /// gets the times that it has below.
    fn thin_dir(&self, below: &Overlay<L>, dir: &Both<L>, stays: &dyn Fn(&Path) -> bool) -> Result<()> {
        let (upper, _) = self.upper()?;
        let own = self.upper_dir(&dir.node)?;
        let open = self.stack.open(&own)?;
        for Own { name, kind, whiteout } in self.own_names(&dir.node)? {
            if stays(&dir.path.join(&*name)) || kind == Some(Kind::Dir) {
                continue;
            }
            if whiteout && (kind.is_some() || find(below, &dir.below, &name)?.is_none()) {
                self.remove_whiteout(&own, &name)?;
            }
            if kind.is_some() {
                self.remove_fixed(&open, &name)?;
            }
        }
        if let Some((above, name)) = self.stack.parent(&own)
            && entries(upper, &open)?.is_empty()
        {
            return upper.remove_dir(&*self.stack.open(&above)?, &name);
        }
        let stat = below.stat(&dir.below)?;
        upper.set_times(Object::Dir(&*open), stat.atime, stat.mtime)
    }
}

fn find<L: Layer>(overlay: &Overlay<L>, dir: &Arc<Node<L>>, name: &OsStr) -> Result<Option<Arc<Node<L>>>> {
    match overlay.lookup(dir, name) {
        Err(error) if error == Error::new(ENOENT) => Ok(None),
        found => found.map(Some),
    }
}
