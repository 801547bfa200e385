//! The flags of files and directories that chattr(1) sets: immutable, append-only and others.
//!
//! The upper layer keeps the flags of its files, and obeys them. An object that is *fixed*
//! (immutable or append-only) in a lower layer is so in the tree. No layer would refuse the change
//! of a copy, so the engine refuses it before it copies anything up.
//!
//! A fixed object is copied up in three cases. Its flags are removed. A program appends to a file,
//! and the copy becomes append-only too. Or an object below a directory is copied up.
//!
//! A directory of the upper layer has no such flags, since objects must be copied into it. It has a
//! mark instead ([`UpperFormat::fixed`](crate::format::UpperFormat::fixed)), which the engine
//! obeys. In the kernel's format an immutable file has a mark too, since the kernel's overlayfs
//! cannot remove the flag itself.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{ENODATA, ENOENT, EOPNOTSUPP, EPERM, Error};

use super::Overlay;
use super::attr::Location;
use super::copy_up::For;
use super::features::Feature;
use super::node::Node;
use super::stack::LayerDir;
use crate::format::DirMark;
use crate::format::listing::{self, Reading};
use crate::layer::{Fixed, Kind, Layer, Result, XattrMode};

/// The flags that fix an object, with their values in `FS_IOC_GETFLAGS`.
const IMMUTABLE: u32 = 0x10;
const APPEND: u32 = 0x20;

impl<L: Layer> Overlay<L> {
    /// Returns the flags with their values in `FS_IOC_GETFLAGS`. Of an object in a lower layer
    /// these are the flags that fix it.
    ///
    /// # Errors
    ///
    /// - EOPNOTSUPP: `node` is neither a file nor a directory, or the upper layer has no flags.
    pub fn flags(&self, node: &Arc<Node<L>>) -> Result<u32> {
        check_kind(node)?;
        let fixed = to_flags(self.fixed(node)?);
        if !node.state.lock().upper {
            return Ok(fixed);
        }
        let own = self.on_object(node, |layer, object| layer.flags(object))?;
        own.map(|own| own | fixed).ok_or(Error::new(ENOENT))
    }

    /// Sets the flags.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    /// - EPERM: the layer refuses the change.
    /// - EOPNOTSUPP: `node` is neither a file nor a directory, or the upper layer lacks a flag.
    pub fn set_flags(&self, node: &Arc<Node<L>>, flags: u32) -> Result<()> {
        let changed = self.flags(node)? ^ flags;
        if changed == 0 {
            return Ok(());
        }
        self.ensure_copied_up(node, For::Flags)?;
        // An immutable file could not be completed later.
        self.complete(node)?;
        let _content = node.content.lock();
        // A copy has none of the flags that fix its original.
        let set = self.set_upper_flags(node, flags, changed | IMMUTABLE | APPEND);
        // A front end that keeps times does not know of this change.
        self.touch_as(node, &mut node.state.lock(), None);
        set
    }

    /// Makes an object immutable or append-only, or neither. Other flags stay.
    ///
    /// # Errors
    ///
    /// Those of [`Overlay::set_flags`].
    pub fn set_fixed(&self, node: &Arc<Node<L>>, fixed: Fixed) -> Result<()> {
        self.set_flags(node, self.flags(node)? & !(IMMUTABLE | APPEND) | to_flags(fixed))
    }

    /// Sets the flags in `changed`, or the mark of a directory.
    fn set_upper_flags(&self, node: &Arc<Node<L>>, flags: u32, changed: u32) -> Result<()> {
        let set = |flags: u32, changed: u32| {
            let set = self.on_object(node, |layer, object| {
                // The layer sets some flags itself, such as the kind of the file's block map.
                let own = layer.flags(object)?;
                let wanted = own & !changed | flags & changed;
                if own == wanted { Ok(()) } else { layer.set_flags(object, wanted) }
            });
            set?.ok_or(Error::new(ENOENT))
        };
        let marks = match node.kind() {
            Kind::Dir if !node.dir()?.removed => IMMUTABLE | APPEND,
            Kind::File if self.format().features().attribute_marks => IMMUTABLE,
            _ => 0,
        };
        let is_marked = |flag| flags & marks & flag != 0;
        // The layer refuses a mark on an object that has the flags, and its removal.
        set(0, IMMUTABLE | APPEND)?;
        self.set_mark(node, Fixed { immutable: is_marked(IMMUTABLE), append: is_marked(APPEND) })?;
        set(flags & !marks, changed)
    }

    /// Returns the flags that fix an object beside those that the upper layer obeys: the flags of a
    /// lower layer, and the mark.
    ///
    /// # Errors
    ///
    /// Those of [`Layer::stat`], and of the methods that read the mark.
    pub fn fixed(&self, node: &Arc<Node<L>>) -> Result<Fixed> {
        let (is_upper, marked) = {
            let state = node.state.lock();
            (state.upper, state.marked)
        };
        let marked = marked.map_or_else(|| self.read_mark(node, is_upper), Ok)?;
        if is_upper { Ok(marked) } else { self.layer_attr(node).map(|attr| attr.fixed.or(marked)) }
    }

    /// Reads the mark of an object. Of a directory the mark in the topmost layer counts.
    fn read_mark(&self, node: &Arc<Node<L>>, is_upper: bool) -> Result<Fixed> {
        let marked = match node.kind() {
            Kind::Dir => {
                let top = {
                    let dir = node.dir()?;
                    dir.upper.as_ref().or(dir.lowers.first()).filter(|_| !dir.removed).cloned()
                };
                let read = |top: Arc<LayerDir<L>>| {
                    listing::read_fixed(self.stack.layer(&top), &*self.stack.open(&top)?, self.reading(&top))
                };
                top.map(read).transpose()?
            }
            Kind::File if self.format().features().attribute_marks && (is_upper || self.is_of_frozen(node)) => {
                let reading = Reading::upper(self.format());
                self.on_object(node, |layer, object| listing::fixed_by_attributes(layer, object, reading))?
            }
            _ => None,
        };
        Ok(*node.state.lock().marked.get_or_insert(marked.unwrap_or_default()))
    }

    /// Whether an object is in an upper layer that the overlay only reads.
    fn is_of_frozen(&self, node: &Arc<Node<L>>) -> bool {
        match self.location(&node.state.lock()) {
            Location::Entry(dir, _) | Location::Root(dir) => self.is_frozen(&dir),
            Location::File(open) => self.is_frozen(&open.dir),
            Location::Nowhere => false,
        }
    }

    /// Sets the mark of an object of the upper layer, or removes it. The caller holds the content's
    /// lock.
    fn set_mark(&self, node: &Arc<Node<L>>, fixed: Fixed) -> Result<()> {
        if self.fixed(node)? == fixed {
            return Ok(());
        }
        let (upper, work) = self.upper()?;
        let mark = self.format().fixed(fixed);
        self.need_mark(&mark, Feature::FixedMarks)?;
        match mark {
            DirMark::Attribute { name, value } => {
                let set = self.on_object(node, |layer, object| match fixed.is_any() {
                    true => layer.set_xattr(object, &name, &value, XattrMode::Set),
                    false => missing_is_removed(layer.remove_xattr(object, &name)),
                });
                set?.ok_or(Error::new(ENOENT))?;
            }
            DirMark::File { name, content } => {
                let dir = node.dir()?;
                let to = dir.upper.clone().ok_or(Error::new(ENOENT))?;
                let name = OsStr::new(name);
                self.keeping_times(node, &to, |open| match fixed.is_any() {
                    true => work.place_file(&self.stack, &to, name, &content),
                    false => missing_is_removed(upper.unlink(open, name)),
                })?;
            }
        }
        node.state.lock().marked = Some(fixed);
        Ok(())
    }

    /// Checks that an object may be copied up, or changed in the upper layer, for this purpose.
    ///
    /// # Errors
    ///
    /// - EPERM: the object is fixed in its lower layer, or by a mark.
    pub(super) fn check_fixed(&self, node: &Arc<Node<L>>, why: For) -> Result<Fixed> {
        if why == For::Flags {
            return Ok(Fixed::default());
        }
        let fixed = self.fixed(node)?;
        if fixed.immutable || fixed.append && why != For::Write { Err(Error::new(EPERM)) } else { Ok(fixed) }
    }

    /// Checks that an entry of a directory may be made, or that the entry of `goes` may be removed.
    ///
    /// # Errors
    ///
    /// - EPERM: the directory or the object is fixed in a lower layer, or by a mark.
    pub(super) fn check_entries(&self, dir: &Arc<Node<L>>, goes: Option<&Arc<Node<L>>>) -> Result<()> {
        let fixed = self.fixed(dir)?;
        let forbidden = match goes {
            Some(node) => fixed.is_any() || self.fixed(node)?.is_any(),
            None => fixed.immutable,
        };
        if forbidden { Err(Error::new(EPERM)) } else { Ok(()) }
    }

    /// Marks the copy of a directory under construction like its original. Returns the mark, which
    /// is empty if the layer cannot have it.
    pub(super) fn build_fixed(&self, node: &Arc<Node<L>>, work: &L::Dir, temp: &OsStr) -> Result<Fixed> {
        let fixed = self.fixed(node)?;
        if !fixed.is_any() {
            return Ok(fixed);
        }
        let mark = self.format().fixed(fixed);
        self.need_mark(&mark, Feature::FixedMarks)?;
        match self.build_mark(work, temp, mark) {
            Err(error) if matches!(error.errno, EOPNOTSUPP | EPERM) => {
                log::warn!("the copy of an immutable or append-only directory can be changed: {error}");
                Ok(Fixed::default())
            }
            built => built.map(|()| fixed),
        }
    }

    /// Makes a file of the upper layer append-only before a write, if its original or a mark is.
    /// The caller holds the content's lock.
    pub(super) fn fix_copy(&self, node: &Arc<Node<L>>, fixed: Fixed, why: For) -> Result<()> {
        if !fixed.append || why != For::Write {
            return Ok(());
        }
        let fixed = self.on_object(node, |layer, object| {
            let own = layer.flags(object)?;
            if own & APPEND == 0 { layer.set_flags(object, own | APPEND) } else { Ok(()) }
        });
        match fixed {
            Err(error) if error.errno != EOPNOTSUPP => return Err(error),
            _ => {}
        }
        // A file that is open for writing could write anywhere.
        let _closed = node.state.lock().file.take();
        Ok(())
    }
}

/// Returns the flags of a fixed object.
fn to_flags(fixed: Fixed) -> u32 {
    (if fixed.immutable { IMMUTABLE } else { 0 }) | if fixed.append { APPEND } else { 0 }
}

/// Takes a mark that does not exist as removed.
fn missing_is_removed(removed: Result<()>) -> Result<()> {
    match removed {
        Err(error) if matches!(error.errno, ENOENT | ENODATA) => Ok(()),
        removed => removed,
    }
}

fn check_kind<L: Layer>(node: &Node<L>) -> Result<()> {
    if matches!(node.kind(), Kind::File | Kind::Dir) { Ok(()) } else { Err(Error::new(EOPNOTSUPP)) }
}
