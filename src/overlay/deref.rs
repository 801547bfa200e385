//! The end of redirects: everything that a renamed directory shows comes to the upper layer, and an
//! opaque mark takes the place of the redirect. So programs that know no redirects read the layer.
//!
//! Each step is a copy-up, or changes nothing that the merged tree shows.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{ENODATA, ENOENT};

use super::Overlay;
use super::copy_up::For;
use super::node::Node;
use crate::format::DirMark;
use crate::layer::{Kind, Layer, Object, Result};

impl<L: Layer> Overlay<L> {
    /// Resolves all redirects of directories in the upper layer. Calls `each` before each object
    /// that may be copied.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    /// - ENOSPC, EDQUOT: the upper layer has not enough space.
    ///
    /// An error of `each`. Others of the layers.
    pub fn dereference(&self, each: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut dirs = vec![self.root().clone()];
        while let Some(dir) = dirs.pop() {
            if self.is_redirected(&dir)? {
                self.copy_up_all(&dir, each)?;
                // The mark must not survive a crash without them.
                self.sync_upper()?;
                self.make_opaque(&dir)?;
            }
            for (name, kind) in self.shown_names(&dir)? {
                if kind == Kind::Dir && self.shown_place(&dir, &name)?.0 {
                    dirs.push(self.lookup(&dir, &name)?);
                }
            }
        }
        Ok(())
    }

    /// Whether a directory of the upper layer has a redirect that counts.
    fn is_redirected(&self, node: &Arc<Node<L>>) -> Result<bool> {
        let _tree = self.tree.read();
        let mut dir = node.dir()?;
        self.read_dir(node, &mut dir)?;
        Ok(dir.redirect.is_some() && !dir.opaque)
    }

    /// Gives the upper layer each name in a directory of it.
    fn copy_up_all(&self, top: &Arc<Node<L>>, each: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut dirs = vec![top.clone()];
        while let Some(dir) = dirs.pop() {
            self.upper_dir(&dir)?;
            for (name, kind) in self.shown_names(&dir)? {
                each()?;
                let node = self.lookup(&dir, &name)?;
                if kind == Kind::Dir {
                    dirs.push(node);
                    continue;
                }
                drop(self.begin_copy_up(&node, u64::MAX, For::Flags)?);
                self.complete(&node)?;
                // The copy may have another name of the file only.
                if !self.shown_place(&dir, &name)?.0 {
                    self.link_from_copy(&dir, &name)?;
                }
            }
        }
        Ok(())
    }

    /// Replaces the redirects of a directory and of those below it by opaque marks, and removes the
    /// whiteouts, which hide nothing any more. The upper layer has everything that the directory
    /// shows.
    fn make_opaque(&self, top: &Arc<Node<L>>) -> Result<()> {
        let mut dirs = vec![top.clone()];
        while let Some(node) = dirs.pop() {
            if self.is_redirected(&node)? {
                self.exchange_marks(&node)?;
            }
            self.forget_lowers(&node)?;
            for (name, _) in self.shown_names(&node)?.iter().filter(|(_, kind)| *kind == Kind::Dir) {
                dirs.push(self.lookup(&node, name)?);
            }
        }
        Ok(())
    }

    /// Gives a directory the opaque mark, and takes its redirect.
    fn exchange_marks(&self, node: &Arc<Node<L>>) -> Result<()> {
        let own = self.upper_dir(node)?;
        let _tree = self.tree.write();
        let mut dir = node.dir()?;
        self.keeping_times(node, &own, |open| {
            self.set_opaque(&mut dir)?;
            self.sync_names(&mut dir)?;
            dir.redirect = None;
            self.remove_redirect(open)
        })
    }

    /// Removes the whiteouts in a directory that merges with nothing any more. The next use reads
    /// it anew.
    fn forget_lowers(&self, node: &Arc<Node<L>>) -> Result<()> {
        let own = self.upper_dir(node)?;
        let _tree = self.tree.write();
        let mut dir = node.dir()?;
        let slots = self.read_dir(node, &mut dir)?.slots_mut();
        let hidden: Vec<_> = slots.filter(|slot| slot.whiteout).map(|slot| slot.name.clone()).collect();
        dir.names = None;
        dir.lowers.clear();
        if hidden.is_empty() {
            return Ok(());
        }
        self.keeping_times(node, &own, |_| hidden.iter().try_for_each(|name| self.remove_whiteout(&own, name)))
    }

    /// Removes the redirect of a directory of the upper layer.
    fn remove_redirect(&self, dir: &L::Dir) -> Result<()> {
        let (upper, _) = self.upper()?;
        let removed = match self.format().redirect("".as_ref()) {
            DirMark::File { name, .. } => upper.unlink(dir, OsStr::new(name)),
            DirMark::Attribute { name, .. } => upper.remove_xattr(Object::Dir(dir), &name),
        };
        match removed {
            // The redirect may have another form, which means nothing beside the opaque mark either.
            Err(error) if !matches!(error.errno, ENODATA | ENOENT) => Err(error),
            _ => Ok(()),
        }
    }
}
