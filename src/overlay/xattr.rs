//! Extended attributes, with ACLs.
//!
//! Marks of this overlay on its layers are hidden. Marks of another overlay, which has its layers
//! in this tree, are escaped ([`attribute`]).

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::errno::{EEXIST, EINVAL, ENODATA, ENOENT, EOPNOTSUPP, EOVERFLOW, Error};

use super::Overlay;
use super::attr::Location;
use super::copy_up::For;
use super::node::{Node, State};
use super::stack::LayerDir;
use crate::format::attribute;
use crate::layer::{CAPABILITY, Kind, Layer, Object, Result, Time, XattrMode, acl};

/// The maximum length of the name of an extended attribute, in bytes.
const NAME_MAX: usize = 255;

/// A change of an extended attribute.
#[derive(Clone, Copy)]
enum Change<'a> {
    Set(&'a [u8], XattrMode),
    Remove,
}

impl<L: Layer> Overlay<L> {
    /// Returns the value of an extended attribute.
    ///
    /// # Errors
    ///
    /// - ENODATA: the object has no attribute `name`.
    /// - EOPNOTSUPP: the layer has no extended attributes, or `name` is too long.
    pub fn xattr(&self, node: &Arc<Node<L>>, name: &OsStr) -> Result<Vec<u8>> {
        if name == CAPABILITY { self.capability(node) } else { self.stored_xattr(node, &stored(name)?) }
    }

    /// Returns the file capability. The kernel of a front end may ask for it before each write, so
    /// the state of the node knows if there is none.
    fn capability(&self, node: &Arc<Node<L>>) -> Result<Vec<u8>> {
        let value = self.on_state(node, |layer, object, state| {
            if state.lacks_capability {
                return Err(Error::new(ENODATA));
            }
            let value = layer.xattr(object, OsStr::new(CAPABILITY));
            state.lacks_capability = value.as_ref().is_err_and(|error| error.errno == ENODATA);
            value
        });
        value?.ok_or(Error::new(ENODATA))
    }

    /// Does the same as [`Overlay::xattr`], with the name by which layers store the attribute.
    fn stored_xattr(&self, node: &Arc<Node<L>>, name: &OsStr) -> Result<Vec<u8>> {
        self.on_object(node, |layer, object| layer.xattr(object, name))?.ok_or(Error::new(ENODATA))
    }

    /// Returns the names of the extended attributes.
    ///
    /// # Errors
    ///
    /// - EOPNOTSUPP: the layer has no extended attributes.
    pub fn xattrs(&self, node: &Arc<Node<L>>) -> Result<Vec<OsString>> {
        let names = self.stored_xattrs(node)?;
        Ok(names.iter().filter_map(|name| attribute::shown(name)).map(Cow::into_owned).collect())
    }

    /// Returns the names by which the layer stores the attributes, with its marks.
    fn stored_xattrs(&self, node: &Arc<Node<L>>) -> Result<Vec<OsString>> {
        Ok(self.on_object(node, |layer, object| layer.xattrs(object))?.unwrap_or_default())
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    ///
    /// - EEXIST: the attribute exists, and `mode` is [`XattrMode::Create`].
    /// - ENODATA: the attribute does not exist, and `mode` is [`XattrMode::Replace`].
    /// - EROFS: there is no upper layer.
    /// - EPERM: the object is immutable or append-only.
    /// - EOPNOTSUPP: the upper layer has no extended attributes, or `name` is too long.
    pub fn set_xattr(&self, node: &Arc<Node<L>>, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        self.change_xattr(node, name, Change::Set(value, mode))
    }

    /// Removes an extended attribute. A missing ACL is no error.
    ///
    /// # Errors
    ///
    /// - ENODATA: the object has no attribute `name`.
    ///
    /// Others as [`Overlay::set_xattr`].
    pub fn remove_xattr(&self, node: &Arc<Node<L>>, name: &OsStr) -> Result<()> {
        self.change_xattr(node, name, Change::Remove)
    }

    /// Returns the time of creation, if the layer has it. For a copy it is the time of the copy-up.
    ///
    /// # Errors
    ///
    /// Those of [`Layer::birth`].
    pub fn birth(&self, node: &Arc<Node<L>>) -> Result<Option<Time>> {
        Ok(self.on_object(node, |layer, object| layer.birth(object))?.flatten())
    }

    /// Whether new objects in a directory get an ACL from it. Then the umask of their creator has
    /// no effect.
    ///
    /// # Errors
    ///
    /// Those of [`Layer::xattr`], but not ENODATA and EOPNOTSUPP.
    pub fn has_default_acl(&self, dir: &Arc<Node<L>>) -> Result<bool> {
        if let Some(known) = dir.state.lock().default_acl {
            return Ok(known);
        }
        let has = match self.xattr(dir, OsStr::new(acl::DEFAULT)) {
            Ok(_) => true,
            Err(error) if matches!(error.errno, ENODATA | EOPNOTSUPP) => false,
            Err(error) => return Err(error),
        };
        dir.state.lock().default_acl = Some(has);
        Ok(has)
    }

    /// Returns the default ACL of a directory, for a new object that is not made inside it.
    pub(super) fn default_acl(&self, dir: &Arc<Node<L>>) -> Result<Option<Vec<u8>>> {
        match self.has_default_acl(dir)? {
            true => self.xattr(dir, OsStr::new(acl::DEFAULT)).map(Some),
            false => Ok(None),
        }
    }

    /// Gives a new object of the upper layer its ACLs from `default`, the default ACL of its
    /// directory. `mode` is the mode with which the object was created.
    pub(super) fn inherit(&self, made: Object<'_, L>, kind: Kind, mode: u32, default: &[u8]) -> Result<()> {
        self.give_xattr(made, OsStr::new(acl::ACCESS), &masked(default, mode))?;
        match kind {
            Kind::Dir => self.give_xattr(made, OsStr::new(acl::DEFAULT), default),
            _ => Ok(()),
        }
    }

    fn change_xattr(&self, node: &Arc<Node<L>>, name: &OsStr, change: Change<'_>) -> Result<()> {
        let (upper, _) = self.upper()?;
        if !upper.capabilities().xattrs {
            return Err(Error::new(EOPNOTSUPP));
        }
        let stored = stored(name)?;
        if !node.state.lock().upper && !self.is_change(node, name, change)? {
            return Ok(());
        }
        self.ensure_copied_up(node, For::Change)?;
        self.complete_for(node, name)?;
        let _content = node.content.lock();
        let changed = self.on_state(node, |layer, object, state| {
            state.lacks_capability &= name != CAPABILITY;
            match change {
                Change::Set(value, mode) => layer.set_xattr(object, &stored, value, mode),
                Change::Remove => layer.remove_xattr(object, &stored),
            }
        });
        changed?.ok_or(Error::new(ENOENT))?;
        let mut state = node.state.lock();
        self.touch(node, &mut state);
        if name == acl::ACCESS {
            state.attr = None;
        }
        if name == acl::DEFAULT {
            state.default_acl = None;
        }
        Ok(())
    }

    /// Whether the change has an effect. Returns an error if it is not permitted. Neither an error
    /// nor a change without effect copies anything up.
    fn is_change(&self, node: &Arc<Node<L>>, name: &OsStr, change: Change<'_>) -> Result<bool> {
        let is_acl = acl::is_acl(name);
        let wanted = match change {
            Change::Set(_, XattrMode::Set) => return Ok(true),
            // No filesystem heeds the flags of setxattr(2) for an ACL.
            Change::Set(..) if is_acl => return Ok(true),
            Change::Set(_, XattrMode::Create) => false,
            Change::Set(_, XattrMode::Replace) | Change::Remove => true,
        };
        let there = match self.xattr(node, name) {
            Err(error) if error.errno == ENODATA => false,
            found => found.map(|_| true)?,
        };
        match (there, change) {
            _ if there == wanted => Ok(true),
            (true, _) => Err(Error::new(EEXIST)),
            (false, Change::Remove) if is_acl => Ok(false),
            (false, _) => Err(Error::new(ENODATA)),
        }
    }

    /// Calls the layer that has the object. Returns None if the object was unlinked and is not an
    /// open file.
    pub(super) fn on_object<T>(
        &self,
        node: &Arc<Node<L>>,
        call: impl FnOnce(&L, Object<'_, L>) -> Result<T>,
    ) -> Result<Option<T>> {
        self.on_state(node, |layer, object, _| call(layer, object))
    }

    /// Does the same as [`Overlay::on_object`], for a call that uses the state of the node.
    fn on_state<T>(
        &self,
        node: &Arc<Node<L>>,
        call: impl FnOnce(&L, Object<'_, L>, &mut State<L>) -> Result<T>,
    ) -> Result<Option<T>> {
        let _tree = self.tree.read();
        // The lock lasts until the layer returns, so that the name stays the object's.
        let state = &mut *node.state.lock();
        Ok(match &self.location(state) {
            Location::Root(dir) => Some(call(self.stack.layer(dir), Object::Dir(&*self.stack.open(dir)?), state)?),
            Location::Entry(dir, name) => {
                Some(call(self.stack.layer(dir), Object::Entry(&*self.stack.open(dir)?, name), state)?)
            }
            Location::File(open) => Some(call(self.stack.layer(&open.dir), Object::File(&open.file), state)?),
            Location::Nowhere => None,
        })
    }

    /// Returns the stored names of the attributes to copy with an object of a lower layer.
    pub(super) fn xattrs_to_copy(&self, node: &Arc<Node<L>>) -> Result<Vec<OsString>> {
        if !self.upper()?.0.capabilities().xattrs || !self.layer_has_xattrs(node) {
            return Ok(Vec::new());
        }
        let mut names = match self.stored_xattrs(node) {
            Err(error) if error.errno == EOPNOTSUPP => return Ok(Vec::new()),
            names => names?,
        };
        names.retain(|name| attribute::shown(name).is_some());
        Ok(names)
    }

    /// Copies these attributes of a lower object to its copy. Takes one at a time, since a file can
    /// have gigabytes of them.
    ///
    /// If the upper layer cannot store one, the copy goes without it. Attributes that matter for
    /// access are errors then.
    ///
    /// # Errors
    ///
    /// - EOPNOTSUPP: the upper layer cannot store an attribute for access (`ovl_copy_xattr` in
    ///   fs/overlayfs/copy_up.c does the same).
    /// - EOVERFLOW: an ACL has ids that the daemon's user namespace cannot write.
    pub(super) fn copy_xattrs(&self, node: &Arc<Node<L>>, copy: Object<'_, L>, names: &[OsString]) -> Result<()> {
        for name in names {
            let value = match self.stored_xattr(node, name) {
                // The layer lists the attribute, but this process may not read it.
                Err(error) if matches!(error.errno, ENODATA | EOPNOTSUPP) => continue,
                value => value?,
            };
            match self.give_xattr(copy, name, &value) {
                Err(error) if error.errno == EOPNOTSUPP && !matters(name) => {}
                given => given?,
            }
        }
        Ok(())
    }

    /// Gives a new object of the upper layer an attribute of another object.
    ///
    /// # Errors
    ///
    /// - EOVERFLOW: an ACL has ids that the daemon's user namespace lacks. They can be read, not
    ///   written.
    fn give_xattr(&self, made: Object<'_, L>, name: &OsStr, value: &[u8]) -> Result<()> {
        match self.upper()?.0.set_xattr(made, name, value, XattrMode::Set) {
            Err(error) if error.errno == EINVAL && acl::is_acl(name) => Err(Error::new(EOVERFLOW)),
            given => given,
        }
    }

    fn layer_has_xattrs(&self, node: &Arc<Node<L>>) -> bool {
        let dir: Option<Arc<LayerDir<L>>> = node.state.lock().places.first().map(|place| place.dir.clone());
        dir.is_none_or(|dir| self.stack.layer(&dir).capabilities().xattrs)
    }
}

/// Returns the name by which layers store the attribute `name`.
///
/// # Errors
///
/// - EOPNOTSUPP: the stored name is too long. The kernel's overlayfs returns the same.
fn stored(name: &OsStr) -> Result<Cow<'_, OsStr>> {
    let stored = attribute::stored(name);
    if stored != name && stored.len() > NAME_MAX { Err(Error::new(EOPNOTSUPP)) } else { Ok(stored) }
}

/// Returns an ACL limited by `mode`. The entries of the owner, of others, and of the mask grant no
/// more than `mode`. Without a mask that holds for the group's entry.
fn masked(acl: &[u8], mode: u32) -> Vec<u8> {
    let mut masked = acl.to_vec();
    let entries = acl::entries_mut(&mut masked);
    let has_mask = entries.iter().any(|entry| acl::tag(entry) == acl::MASK);
    for entry in entries {
        let allowed = match acl::tag(entry) {
            acl::USER_OBJ => mode >> 6,
            acl::GROUP_OBJ if has_mask => 7,
            acl::GROUP_OBJ | acl::MASK => mode >> 3,
            acl::OTHER => mode,
            _ => 7,
        };
        entry[2] &= allowed as u8 & 7;
    }
    masked
}

/// Whether the loss of an attribute must be an error.
fn matters(name: &OsStr) -> bool {
    acl::is_acl(name) || name.as_bytes().starts_with(b"security.")
}
