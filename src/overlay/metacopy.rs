//! Files that have only metadata of their own. The kernel's overlayfs, with its option metacopy,
//! makes them when only metadata changes.
//!
//! The data is that of the file at the same path in the layers below, or at the path of a redirect.
//! The engine reads it there. In the upper layer it does so until the file changes or loses a name.
//! Then it copies the data into the file, and removes the mark last. That step does not show.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use crate::errno::{EIO, ENODATA, ENOENT, EOPNOTSUPP, Error};

use super::Overlay;
use super::attr::Location;
use super::node::Node;
use super::stack::LayerDir;
use super::trust::{Author, Way};
use crate::format::{Redirect, kernel};
use crate::layer::{Access, CAPABILITY, Kind, Layer, Object, Result, XattrMode};

/// The marks of a file that has only metadata.
struct Metacopy {
    /// The attribute that marks it.
    mark: OsString,
    redirect: Option<Redirect>,
    /// The untrusted user that may have written the mark, if any.
    author: Option<Author>,
}

impl<L: Layer> Overlay<L> {
    /// Opens the data of the regular file `name` of `dir`, in the layer that has it. Also returns
    /// the directory with the data.
    ///
    /// # Errors
    ///
    /// - EIO: the file has only metadata, and no layer below has its data.
    pub(super) fn open_data(
        &self,
        mut dir: Arc<LayerDir<L>>,
        name: &OsStr,
        access: Access,
    ) -> Result<(Arc<LayerDir<L>>, L::File)> {
        let mut name = name.to_owned();
        let mut author = None;
        loop {
            let file = self.stack.layer(&dir).open_file(&*self.stack.open(&dir)?, &name, access)?;
            if access != Access::Read {
                return Ok((dir, file));
            }
            let Some(metacopy) = self.metacopy(&dir, Object::File(&file))? else {
                return Ok((dir, file));
            };
            author = Author::and(author, metacopy.author);
            let Some((below, below_name)) = self.find_data(&dir, &name, metacopy.redirect, author)? else {
                log::warn!(
                    "{} has only metadata, and the layers below it have no data that it may show",
                    self.stack.path(&dir).join(&name).display()
                );
                return Err(Error::new(EIO));
            };
            (dir, name) = (below, below_name);
        }
    }

    /// Returns the marks of a regular file in `dir` that has only metadata.
    fn metacopy(&self, dir: &LayerDir<L>, file: Object<'_, L>) -> Result<Option<Metacopy>> {
        let layer = self.stack.layer(dir);
        let names = self.reading(dir).attributes(layer, file)?;
        // The mark of root, if there are two.
        let Some(mark) = names.iter().filter(|name| kernel::is_metacopy_mark(name)).min() else {
            return Ok(None);
        };
        let marks = kernel::marks(layer, file, &names)?;
        let author = match kernel::is_users_mark(mark) || marks.redirect_is_users {
            true => self.author(&layer.stat(file)?),
            false => None,
        };
        Ok(Some(Metacopy { mark: mark.clone(), redirect: marks.redirect, author }))
    }

    /// Returns the regular file with the data of the regular file `name` of `dir`: mostly that
    /// itself. None if no layer has the data, or the file may not show them.
    pub(super) fn find_all_data(
        &self,
        mut dir: Arc<LayerDir<L>>,
        name: &OsStr,
    ) -> Result<Option<(Arc<LayerDir<L>>, OsString)>> {
        let (mut name, mut author) = (name.to_owned(), None);
        let _tree = self.tree.read();
        loop {
            let metacopy = self.metacopy(&dir, Object::Entry(&*self.stack.open(&dir)?, &name))?;
            let Some(metacopy) = metacopy else { return Ok(Some((dir, name))) };
            author = Author::and(author, metacopy.author);
            match self.find_data(&dir, &name, metacopy.redirect, author)? {
                Some(below) => (dir, name) = below,
                None => return Ok(None),
            }
        }
    }

    /// Returns the regular file with the data of the entry `name` of `dir`. That file may again
    /// have only metadata.
    fn find_data(
        &self,
        dir: &Arc<LayerDir<L>>,
        name: &OsStr,
        redirect: Option<Redirect>,
        author: Option<Author>,
    ) -> Result<Option<(Arc<LayerDir<L>>, OsString)>> {
        let way = match redirect {
            Some(Redirect::Path(path)) => Some(Way { path, author: None }),
            Some(Redirect::Sibling(sibling)) => self.path_below(dir)?.map(|above| above.join(sibling)),
            Some(Redirect::Nothing) => None,
            None => self.path_below(dir)?.map(|above| above.join(name)),
        };
        let Some(way) = way else { return Ok(None) };
        let author = Author::and(author, Author::and(way.author, dir.author()));
        let Some((parent, name)) = way.path.parent().zip(way.path.file_name()) else {
            return Ok(None);
        };
        let parent = Way { path: parent.to_owned(), author };
        for below in self.resolve(&parent, self.stack.roots_below(dir).to_vec())? {
            match self.stack.stat(&below, name) {
                Ok(stat) if !self.may_show_data(author, &stat) => return Ok(None),
                Ok(stat) => return Ok((stat.kind == Kind::File).then(|| (below, name.to_owned()))),
                Err(error) if error.errno != ENOENT => return Err(error),
                Err(_) if self.is_whited_out(&below, name)? => return Ok(None),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Copies the data of a file of the upper layer into it, unless it has them. Omits the data
    /// behind `keep` bytes, and truncates the file there, since the caller is about to truncate it.
    ///
    /// The caller holds the content's lock, and must not hold the tree.
    pub(super) fn bring_data(&self, node: &Arc<Node<L>>, keep: u64) -> Result<()> {
        if !self.format().features().metacopies || node.kind() != Kind::File || node.state.lock().has_data {
            return Ok(());
        }
        let (upper, work) = self.upper()?;
        if let Some((to, mark)) = self.incomplete(node)? {
            let attr = upper.stat(Object::File(&to))?;
            let from = self.file(node, Access::Read)?;
            let capability = match upper.xattr(Object::File(&to), OsStr::new(CAPABILITY)) {
                Err(error) if matches!(error.errno, ENODATA | EOPNOTSUPP) => None,
                value => Some(value?),
            };
            self.copy_data(&from, &to, 0..attr.size.min(keep), &mut |_| {})?;
            if keep < attr.size {
                upper.truncate(&to, keep)?;
            }
            if let Some(value) = capability {
                upper.set_xattr(Object::File(&to), OsStr::new(CAPABILITY), &value, XattrMode::Set)?;
            }
            upper.set_times(Object::File(&to), attr.atime, attr.mtime)?;
            work.sync(upper, &to)?;
            upper.remove_xattr(Object::File(&to), &mark)?;
        }
        let mut state = node.state.lock();
        state.has_data = true;
        self.touch_unseen(node, &mut state);
        // The open file may be the one with the data below.
        let open = if state.is_reopenable() { state.file.take() } else { None };
        drop(state);
        drop(open);
        Ok(())
    }

    /// Whether a file of the upper layer has its own data.
    pub(super) fn is_whole(&self, node: &Arc<Node<L>>) -> Result<bool> {
        if !self.format().features().metacopies || node.state.lock().has_data {
            return Ok(true);
        }
        let _content = node.content.lock();
        let is_whole = self.incomplete(node)?.is_none();
        node.state.lock().has_data |= is_whole;
        Ok(is_whole)
    }

    /// Does the same as [`Overlay::bring_data`], for a file that may lose its last name while it is
    /// open or found. The caller has one reference to the node, and must hold neither the tree nor
    /// the content of any node.
    pub(super) fn bring_held_data(&self, node: &Arc<Node<L>>) -> Result<()> {
        let _content = node.content.lock();
        let state = node.state.lock();
        // Two strong references: the directory's and the caller's.
        let held = state.upper && (state.handles > 0 || Arc::strong_count(node) > 2);
        drop(state);
        if held { self.bring_data(node, u64::MAX) } else { Ok(()) }
    }

    /// Returns a file of the upper layer that has only metadata, open for writing, and the
    /// attribute that marks it. None if the file has data.
    fn incomplete(&self, node: &Arc<Node<L>>) -> Result<Option<(L::File, OsString)>> {
        let _tree = self.tree.read();
        let state = node.state.lock();
        // A file without a name got its data before it lost the last one.
        let Location::Entry(dir, name) = self.location(&state) else {
            return Ok(None);
        };
        let open = self.stack.open(&dir)?;
        let Some(metacopy) = self.metacopy(&dir, Object::Entry(&*open, &name))? else {
            return Ok(None);
        };
        let file = self.stack.layer(&dir).open_file(&open, &name, Access::ReadWrite)?;
        Ok(Some((file, metacopy.mark)))
    }
}
