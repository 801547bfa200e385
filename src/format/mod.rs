//! The formats of layers: deletions, opaque and redirected directories, and the order of the steps
//! that change them.
//!
//! | file | subject |
//! | --- | --- |
//! | `oci` | the native format: the names of its markers, and its step sequences |
//! | `kernel` | the same for the format of the kernel's overlayfs |
//! | `listing` | reads one directory of a layer in the formats that it may have |
//! | `plan` | the facts that decide a step sequence, and its steps |
//! | `fixed` | the value of the mark of an immutable or append-only object |
//! | `attribute` | names of extended attributes that are marks, or that are escaped |
//!
//! An upper layer has one format, behind the trait [`UpperFormat`]. Only its two implementations
//! know which. Lower layers are read in both.

pub mod attribute;
pub mod fixed;
pub mod kernel;
pub mod listing;
mod oci;
pub mod plan;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::layer::Fixed;

pub use oci::{
    CONTENT_MAX, DEVICES, FIXED, FNV1A_OF_NOTHING, Meaning, OCI, OF_AUFS, OPAQUE, PARTS, PartOf, PartRef, REDIRECT,
    WORK, Whiteout, fnv1a, fnv1a_behind, is_reserved, meaning, part_names, redirect_content, redirect_path, whiteout,
};

/// The formats that the options offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// An OCI image layer.
    Oci,
    /// In the namespace of the upper layer's mark, else in one that the mounting user may use.
    Kernel,
}

/// The format of an upper layer.
pub type Format = &'static dyn UpperFormat;

/// A format of the upper layer: the form of its marks, and the steps of each operation.
///
/// The plans are pure. The engine makes their steps (`src/overlay/whiteout.rs`), and
/// `docs/format.md` lists them. In each plan one step changes the merged tree, so a crash leaves
/// the state before it or after it.
pub trait UpperFormat: Sync {
    /// Returns the features of such a layer.
    fn features(&self) -> Features;

    /// Returns the whiteout of `name`. Names have at most `name_max` bytes.
    fn whiteout(&self, name: &OsStr, name_max: usize) -> WhiteoutMark;

    /// Returns the opaque mark of a directory.
    fn opaque(&self) -> DirMark;

    /// Returns the mark of a directory that merges with this path of the lower layers.
    fn redirect(&self, path: &Path) -> DirMark;

    /// Returns the mark of an immutable or append-only directory.
    fn fixed(&self, fixed: Fixed) -> DirMark;

    /// Returns the order, lowest first, in which to remove the entries of a directory that shows
    /// nothing. The entries that are left must let nothing show.
    fn clear_order(&self, name: &OsStr) -> u8;

    /// Plans to create a name, or to link an object to it.
    fn create(&self, new: plan::New) -> plan::Creation;

    /// Plans to remove a visible name: unlink, rmdir.
    fn remove(&self, name: plan::Name, is_dir: bool) -> plan::Removal;

    /// Plans to rename to a free name, or to replace an object. The old name is in the upper layer.
    fn rename(&self, moving: plan::Move) -> plan::Rename;

    /// Returns the mark that a directory needs, before it moves, to merge with the same as before.
    fn moved(&self, dir: plan::Moved) -> Option<plan::MovedMark>;

    /// Whether `name` can neither be created nor looked up.
    fn is_reserved(&self, name: &OsStr) -> bool {
        self.features().reserved_names && is_reserved(name)
    }
}

/// The features of an upper layer in a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Whether names that begin with `.wh.` are marks, and refused for objects.
    pub reserved_names: bool,
    /// Whether attributes in the namespaces of the kernel's overlayfs are marks.
    pub attribute_marks: bool,
    /// Whether a directory that merges with lower ones can be renamed.
    pub redirects: bool,
    /// Whether a device with the number 0 can be a device. Else each one is a deletion.
    pub zero_devices: bool,
    /// Whether a large file can be copied up in part.
    pub partial_copies: bool,
    /// Whether files may have only metadata.
    pub metacopies: bool,
    /// Whether the kernel's overlayfs can mount the layer. Then its entries in the work directory
    /// stay.
    pub is_kernels: bool,
}

/// The target of a redirect: the place where a directory merges with the layers below, or where the
/// data of a metacopy is.
#[derive(Debug, PartialEq, Eq)]
pub enum Redirect {
    /// A path from the root.
    Path(PathBuf),
    /// Another name in the same directory.
    Sibling(OsString),
    /// None: the redirect is damaged, and its object merges with nothing.
    Nothing,
}

/// The whiteout of a name.
pub enum WhiteoutMark {
    /// A file beside the name.
    Beside(Whiteout),
    /// A device with the number 0, which has the name itself.
    InPlace,
}

/// A mark of a directory.
pub enum DirMark {
    /// A file in the directory.
    File {
        /// Its name, which is reserved.
        name: &'static str,
        /// Its content.
        content: Vec<u8>,
    },
    /// An extended attribute of the directory.
    Attribute {
        /// Its name, with the namespace.
        name: OsString,
        /// Its value.
        value: Vec<u8>,
    },
}
