//! The end of redirects: everything that a renamed directory shows comes to the upper layer, and an
//! opaque mark takes the place of the redirect. So programs that know no redirects read the layer.
//!
//! Each step is a copy-up, or changes nothing that the merged tree shows.

use std::ffi::{OsStr, OsString};
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
        self.each_dir(self.root(), &mut |_, dir| {
            if self.is_redirected(dir)? {
                self.copy_up_all(dir, each)?;
                // The mark must not survive a crash without them.
                self.sync_upper()?;
                self.make_opaque(dir)?;
            }
            let mut inside = Vec::new();
            self.each_shown(dir, &mut |name, kind| {
                if kind == Kind::Dir && self.shown_place(dir, name)?.0 {
                    inside.push(name.clone());
                }
                Ok(())
            })?;
            Ok(inside)
        })
    }

    /// Whether a directory of the upper layer has a redirect that counts.
    fn is_redirected(&self, node: &Arc<Node<L>>) -> Result<bool> {
        let _tree = self.tree.read();
        let mut dir = node.dir()?;
        self.read_some(node, &mut dir)?;
        Ok(dir.redirect.is_some() && !dir.opaque)
    }

    /// Gives the upper layer each name in a directory of it.
    fn copy_up_all(&self, top: &Arc<Node<L>>, each: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.each_dir(top, &mut |_, dir| {
            self.upper_dir(dir)?;
            let mut inside = Vec::new();
            self.each_shown(dir, &mut |name, kind| {
                each()?;
                if kind == Kind::Dir {
                    inside.push(name.clone());
                    return Ok(());
                }
                let node = self.lookup(dir, name)?;
                drop(self.begin_copy_up(&node, u64::MAX, For::Flags)?);
                self.complete(&node)?;
                self.release(node);
                // The copy may have another name of the file only.
                if !self.shown_place(dir, name)?.0 {
                    self.link_from_copy(dir, name)?;
                }
                Ok(())
            })?;
            Ok(inside)
        })
    }

    /// Replaces the redirects of a directory and of those below it by opaque marks, and removes the
    /// whiteouts, which hide nothing any more. The upper layer has everything that the directory
    /// shows.
    fn make_opaque(&self, top: &Arc<Node<L>>) -> Result<()> {
        self.each_dir(top, &mut |_, node| {
            if self.is_redirected(node)? {
                self.exchange_marks(node)?;
            }
            self.forget_lowers(node)?;
            let mut inside = Vec::new();
            self.each_shown(node, &mut |name, kind| {
                inside.extend((kind == Kind::Dir).then(|| name.clone()));
                Ok(())
            })?;
            Ok(inside)
        })
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
        let mut next = Some(OsString::new());
        while let Some(from) = next {
            let names = self.read_dir_from(node, &mut dir, &from)?;
            let hidden: Vec<_> =
                names.of_run(&from).filter(|slot| slot.whiteout).map(|slot| slot.name.clone()).collect();
            next = names.run().to.clone();
            if !hidden.is_empty() {
                self.keeping_times(node, &own, |_| {
                    hidden.iter().try_for_each(|name| self.remove_whiteout(&own, name))
                })?;
            }
        }
        dir.names = None;
        dir.lowers.clear();
        Ok(())
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
