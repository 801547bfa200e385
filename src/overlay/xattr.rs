//! Extended attributes, ACLs among them.
//!
//! Those by which an overlay marks its layers are not shown and cannot be set.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use syscall::error::{ENODATA, ENOENT, EOPNOTSUPP, EPERM, Error};

use super::Overlay;
use super::attr::Spot;
use super::node::Node;
use super::stack::LayerDir;
use crate::format::is_own_xattr;
use crate::layer::{Layer, Object, Result, Time, XattrMode};

/// The attribute by which a directory hands down access to what is created in it.
const DEFAULT_ACL: &str = "system.posix_acl_default";
/// The attribute of an ACL, which has a say in the mode.
const ACCESS_ACL: &str = "system.posix_acl_access";

impl<L: Layer> Overlay<L> {
    /// The value of an extended attribute. ENODATA if there is none of that name; EOPNOTSUPP where the layer has none.
    pub fn xattr(&self, node: &Arc<Node<L>>, name: &OsStr) -> Result<Vec<u8>> {
        if is_own_xattr(name) {
            return Err(Error::new(ENODATA));
        }
        self.on_object(node, |layer, object| layer.xattr(object, name))?.ok_or(Error::new(ENODATA))
    }

    /// The names of the extended attributes. EOPNOTSUPP where the layer has none.
    pub fn xattrs(&self, node: &Arc<Node<L>>) -> Result<Vec<OsString>> {
        let mut names = self.on_object(node, |layer, object| layer.xattrs(object))?.unwrap_or_default();
        names.retain(|name| !is_own_xattr(name));
        Ok(names)
    }

    /// Sets an extended attribute. EEXIST and ENODATA as `mode` says; EPERM for a name that is the overlay's own; EROFS; EOPNOTSUPP.
    pub fn set_xattr(&self, node: &Arc<Node<L>>, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        self.change_xattr(node, name, |layer, object| layer.set_xattr(object, name, value, mode))
    }

    /// Removes an extended attribute. ENODATA; otherwise as [`Overlay::set_xattr`].
    pub fn remove_xattr(&self, node: &Arc<Node<L>>, name: &OsStr) -> Result<()> {
        self.change_xattr(node, name, |layer, object| layer.remove_xattr(object, name))
    }

    /// When the object was created, where its layer knows: a copy, when it was made.
    pub fn birth(&self, node: &Arc<Node<L>>) -> Result<Option<Time>> {
        Ok(self.on_object(node, |layer, object| layer.birth(object))?.flatten())
    }

    /// Whether new objects in a directory get an ACL from it, so that the umask of whoever creates them has no say.
    pub fn has_default_acl(&self, dir: &Arc<Node<L>>) -> Result<bool> {
        if let Some(known) = dir.state.lock().default_acl {
            return Ok(known);
        }
        let has = match self.xattr(dir, OsStr::new(DEFAULT_ACL)) {
            Ok(_) => true,
            Err(error) if matches!(error.errno, ENODATA | EOPNOTSUPP) => false,
            Err(error) => return Err(error),
        };
        dir.state.lock().default_acl = Some(has);
        Ok(has)
    }

    fn change_xattr(
        &self,
        node: &Arc<Node<L>>,
        name: &OsStr,
        change: impl FnOnce(&L, Object<'_, L>) -> Result<()>,
    ) -> Result<()> {
        let (upper, _) = self.upper()?;
        if is_own_xattr(name) {
            return Err(Error::new(EPERM));
        }
        if !upper.capabilities().xattrs {
            return Err(Error::new(EOPNOTSUPP));
        }
        self.copied_up(node)?;
        let _content = node.content.lock();
        self.on_object(node, change)?.ok_or(Error::new(ENOENT))?;
        let mut state = node.state.lock();
        state.stale = true;
        if name == ACCESS_ACL {
            state.attr = None;
        }
        if name == DEFAULT_ACL {
            state.default_acl = None;
        }
        Ok(())
    }

    /// Calls the layer that has the object. None if no layer has it any more: it was unlinked and is no open file.
    fn on_object<T>(
        &self,
        node: &Arc<Node<L>>,
        call: impl FnOnce(&L, Object<'_, L>) -> Result<T>,
    ) -> Result<Option<T>> {
        let state = node.state.lock();
        let spot = self.spot(node, &state);
        drop(state);
        Ok(match &spot {
            Spot::Root(dir) => Some(call(self.stack.layer(dir), Object::Dir(&*self.stack.open(dir)?))?),
            Spot::Entry(dir, name) => Some(call(self.stack.layer(dir), Object::Entry(&*self.stack.open(dir)?, name))?),
            Spot::File(open) => Some(call(self.stack.layer(&open.dir), Object::File(&open.file))?),
            Spot::Nowhere => None,
        })
    }

    /// Gives a copy the extended attributes of what it was copied from. What the upper layer cannot hold is left out, but for what has a say
    /// in who may do what.
    pub(super) fn copy_xattrs(&self, node: &Arc<Node<L>>, copy: Object<'_, L>) -> Result<()> {
        let (upper, _) = self.upper()?;
        if !upper.capabilities().xattrs || !self.place_has_xattrs(node) {
            return Ok(());
        }
        let names = match self.xattrs(node) {
            Err(error) if error.errno == EOPNOTSUPP => return Ok(()),
            names => names?,
        };
        for name in names {
            let value = match self.xattr(node, &name) {
                // Listed, but not for us to read.
                Err(error) if matches!(error.errno, ENODATA | EOPNOTSUPP) => continue,
                value => value?,
            };
            match upper.set_xattr(copy, &name, &value, XattrMode::Set) {
                Err(error) if error.errno == EOPNOTSUPP && !matters(&name) => {}
                set => set?,
            }
        }
        Ok(())
    }

    fn place_has_xattrs(&self, node: &Arc<Node<L>>) -> bool {
        let dir: Option<Arc<LayerDir<L>>> = node.state.lock().places.first().map(|place| place.dir.clone());
        dir.is_none_or(|dir| self.stack.layer(&dir).capabilities().xattrs)
    }
}

/// Whether an attribute may not get lost without a word.
fn matters(name: &OsStr) -> bool {
    name == ACCESS_ACL || name == DEFAULT_ACL || name.as_bytes().starts_with(b"security.")
}
