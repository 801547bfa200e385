//! The directory around a layer: what a commit makes beside the layer, and the exchange of it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Error, escaped};
use crate::errno::{self, EEXIST, EINVAL, ENOENT};
use crate::layer::exchange::{Seat, exchange, finish_exchange};
use crate::layer::{Kind, Layer, Object, RenameMode};
use crate::mount::Beside;
use crate::overlay::on_disk::{Stack, remove_tree};

/// The directory around a layer.
pub struct Around<L: Layer> {
    /// The directory alone.
    stack: Stack<L>,
    /// The name of the layer in it.
    name: OsString,
}

impl<L: Layer> Around<L> {
    /// Takes the directory with the layer `name`.
    ///
    /// # Errors
    ///
    /// - Any errno of the directory.
    pub fn new(dir: L, name: OsString) -> errno::Result<Self> {
        Ok(Around { stack: Stack::new(vec![dir], true)?, name })
    }

    /// Returns the name under which the former layer can stay after an exchange.
    fn old_name(&self) -> OsString {
        let mut name = self.name.clone();
        name.push(".old");
        name
    }

    /// Returns the path of an entry, for messages.
    fn path(&self, name: &OsStr) -> PathBuf {
        self.stack.top().path().unwrap_or(Path::new("")).join(name)
    }

    fn root(&self) -> errno::Result<Arc<L::Dir>> {
        self.stack.open(self.stack.upper_root().ok_or(errno::Error::new(EINVAL))?)
    }

    /// Returns the kind of an entry, if it exists.
    fn find(&self, name: &OsStr) -> errno::Result<Option<Kind>> {
        match self.stack.top().stat(Object::Entry(&*self.root()?, name)) {
            Err(error) if error.errno == ENOENT => Ok(None),
            found => found.map(|stat| Some(stat.kind)),
        }
    }

    /// Makes the directory for a merged copy, if it is missing. `keeps_old` says that the former
    /// layer is to stay.
    ///
    /// # Errors
    ///
    /// - [`Error::Refused`]: something has the name for the former layer.
    /// - [`Error::At`]: the directory cannot be made.
    pub fn make_copy(&self, keeps_old: bool) -> Result<(), Error> {
        let old = self.old_name();
        if keeps_old && self.find(&old).map_err(|error| Error::at("read", self.path(&old), error))?.is_some() {
            let old = self.path(&old);
            return Err(Error::Refused(format!("{} exists, so the former layer cannot stay there", escaped(&old))));
        }
        let (layer, copy) = (self.stack.top(), Beside::New.name(&self.name));
        match self.root().and_then(|root| layer.create_dir(&root, &copy, 0o700, layer.identity())) {
            Err(error) if error.errno != EEXIST => Err(Error::at("create", self.path(&copy), error)),
            _ => Ok(()),
        }
    }

    /// Whether the merged copy has this inode number.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: the copy cannot be read.
    pub fn has_copy(&self, number: u64) -> Result<bool, Error> {
        let copy = Beside::New.name(&self.name);
        match self.root().and_then(|root| self.stack.top().stat(Object::Entry(&*root, &copy))) {
            Err(error) if error.errno == ENOENT => Ok(false),
            found => found.map(|stat| stat.ino == number).map_err(|error| Error::at("read", self.path(&copy), error)),
        }
    }

    /// Exchanges the merged copy with the layer.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: a rename failed.
    pub fn exchange(&self) -> Result<(), Error> {
        self.with_seats(|one, other, spare| exchange(self.stack.top(), one, other, spare))
    }

    /// Finishes an exchange that was interrupted, if there is one.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: a rename failed.
    pub fn finish(&self) -> Result<(), Error> {
        self.with_seats(|one, other, spare| finish_exchange(self.stack.top(), one, other, spare))
    }

    fn with_seats(&self, act: impl FnOnce(Seat<'_, L>, Seat<'_, L>, &OsStr) -> errno::Result<()>) -> Result<(), Error> {
        let (copy, spare) = (Beside::New.name(&self.name), Beside::Old.name(&self.name));
        let done = self.root().and_then(|root| act((&*root, &self.name), (&*root, &copy), &spare));
        // The cache would lead to the old layer by the new name.
        self.stack.close_dirs();
        done.map_err(|error| Error::at("exchange", self.path(&self.name), error))
    }

    /// Removes what is left beside the layer at the end of a commit. After an exchange the former
    /// layer goes, or gets `.old` behind its name if `keeps_old`.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: something cannot be removed.
    pub fn clean(&self, keeps_old: bool) -> Result<(), Error> {
        let (layer, root) = (self.stack.top(), self.stack.upper_root().ok_or(errno::Error::new(EINVAL)));
        let [work, former] = [Beside::Work, Beside::New].map(|what| what.name(&self.name));
        let cleaned = |name: &OsStr, clean: &dyn Fn(Kind) -> errno::Result<()>| {
            let done = self.find(name).and_then(|kind| kind.map_or(Ok(()), clean));
            done.map_err(|error| Error::at("remove", self.path(name), error))
        };
        cleaned(&work, &|_| layer.remove_dir(&*self.root()?, &work))?;
        cleaned(&former, &|kind| {
            if !keeps_old {
                return remove_tree(&self.stack, root?, &former, kind);
            }
            let open = self.root()?;
            layer.rename(&open, &former, &open, &self.old_name(), RenameMode::Replace)
        })
    }
}
