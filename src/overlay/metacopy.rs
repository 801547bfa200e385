//! Files that have only metadata of their own: the kernel's overlayfs, with its option metacopy,
//! copies up no more where only these change.
//!
//! The data are those of the file at the same path of the layers below, or at the path of a
//! redirect. In a lower layer they are read there. In the upper layer they are too, until the file
//! is changed or loses a name: then they are copied into it, and the step that nobody sees is the
//! removal of the mark.

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

/// What a file that has only metadata says.
struct Metacopy {
    /// The attribute that says so.
    mark: OsString,
    redirect: Option<Redirect>,
    /// On whose word, if it is not trusted.
    author: Option<Author>,
}

impl<L: Layer> Overlay<L> {
    /// Opens the data of the regular file `name` of `dir`, wherever they are. Answers the directory
    /// that they are in. EIO if a file has only metadata, and there are no data below it.
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
                    "{name:?} of layer {} has only metadata, and no data that it may show are found below it",
                    dir.index()
                );
                return Err(Error::new(EIO));
            };
            (dir, name) = (below, below_name);
        }
    }

    /// Whether a regular file of the directory `dir` has only metadata.
    fn metacopy(&self, dir: &LayerDir<L>, file: Object<'_, L>) -> Result<Option<Metacopy>> {
        let layer = self.stack.layer(dir);
        let names = self.reading(dir).attributes(layer, file)?;
        // Root's, if there are two.
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

    /// The regular file whose data are those of the entry `name` of `dir`, which may again have
    /// only metadata.
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
                Ok(stat) if !self.may_lend(author, &stat) => return Ok(None),
                Ok(stat) => return Ok((stat.kind == Kind::File).then(|| (below, name.to_owned()))),
                Err(error) if error.errno != ENOENT => return Err(error),
                Err(_) if self.is_whited_out(&below, name)? => return Ok(None),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Copies the data of a file of the upper layer into it, unless they are there: but for what is
    /// behind the first `keep` bytes, where the file is cut, since it is going to be truncated. The
    /// content must be locked, and the tree must not be.
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
        // What is open may be the file that the data were in.
        let open = if state.places.is_empty() { None } else { state.file.take() };
        drop(state);
        drop(open);
        Ok(())
    }

    /// Whether a file of the upper layer has data of its own, so that there are none to bring.
    pub(super) fn is_whole(&self, node: &Arc<Node<L>>) -> Result<bool> {
        if !self.format().features().metacopies || node.state.lock().has_data {
            return Ok(true);
        }
        let _content = node.content.lock();
        let is_whole = self.incomplete(node)?.is_none();
        node.state.lock().has_data |= is_whole;
        Ok(is_whole)
    }

    /// As [`Overlay::bring_data`], for a file that may lose its last name while somebody holds it
    /// or has found it. The caller has one reference to the node, and must hold neither the tree
    /// nor the content of any.
    pub(super) fn bring_held_data(&self, node: &Arc<Node<L>>) -> Result<()> {
        let _content = node.content.lock();
        let state = node.state.lock();
        // The two are the directory's and the caller's.
        let held = state.upper && (state.handles > 0 || Arc::strong_count(node) > 2);
        drop(state);
        if held { self.bring_data(node, u64::MAX) } else { Ok(()) }
    }

    /// A file of the upper layer that has only metadata, open for writing, and the attribute that
    /// says so. None if it has data.
    fn incomplete(&self, node: &Arc<Node<L>>) -> Result<Option<(L::File, OsString)>> {
        let _tree = self.tree.read();
        let state = node.state.lock();
        // What lost its last name got its data before.
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
