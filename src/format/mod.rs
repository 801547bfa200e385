//! How layers are written: deletions, opaque and redirected directories, and the order of the steps
//! that change them.
//!
//! | file | subject |
//! | --- | --- |
//! | `oci` | the native format: the names of its markers, and its step sequences |
//! | `kernel` | the same for the format of the kernel's overlayfs |
//! | `listing` | one directory of a layer, read in the formats that it may be written in |
//! | `plan` | what a step sequence is decided by, and what it consists of |
//! | `attribute` | names of extended attributes that are marks, or that are escaped |
//!
//! An upper layer is written in one format, behind the trait [`UpperFormat`]: its two
//! implementations are the only code that knows which. Lower layers are read in both.

pub mod attribute;
pub mod kernel;
pub mod listing;
mod oci;
pub mod plan;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

pub use oci::{
    CONTENT_MAX, DEVICES, Meaning, OCI, OF_AUFS, OPAQUE, PARTS, PartOf, PartRef, REDIRECT, WORK, Whiteout, fnv1a,
    is_reserved, meaning, part_names, redirect_content, redirect_path, whiteout,
};

/// The formats that a person can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// An OCI image layer.
    Oci,
    /// With the namespace that the upper layer is marked with, or else the one that whoever mounts
    /// may use.
    Kernel,
}

/// How an upper layer is written.
pub type Format = &'static dyn UpperFormat;

/// A format of the upper layer: what its marks look like, and in which steps an operation changes
/// the layer.
///
/// The plans are pure. The engine does what they say (`src/overlay/whiteout.rs`), and
/// `docs/format.md` has them as a table. In each plan one step changes the merged tree, so that a
/// crash leaves the state before it or after it.
pub trait UpperFormat: Sync {
    /// What there can be in such a layer.
    fn features(&self) -> Features;

    /// The whiteout of `name`, where names have at most `name_max` bytes.
    fn whiteout(&self, name: &OsStr, name_max: usize) -> WhiteoutMark;

    /// The opaque mark of a directory.
    fn opaque(&self) -> DirMark;

    /// The mark of a directory that merges with this path of the lower layers.
    fn redirect(&self, path: &Path) -> DirMark;

    /// The order, lowest first, in which the entries of a directory go in which nothing is visible:
    /// none that is left may let anything show.
    fn clear_order(&self, name: &OsStr) -> u8;

    /// Creates a name, or links an object to it.
    fn create(&self, new: plan::New) -> plan::Creation;

    /// Removes a name that shows something: unlink, rmdir.
    fn remove(&self, name: plan::Name, is_dir: bool) -> plan::Removal;

    /// Renames to a name that is free, or whose object is replaced. The old name is in the upper
    /// layer.
    fn rename(&self, moving: plan::Move) -> plan::Rename;

    /// The mark that a directory needs, before it moves, to merge with the same as before.
    fn moved(&self, dir: plan::Moved) -> Option<plan::MovedMark>;

    /// Whether `name` can neither be created nor looked up.
    fn is_reserved(&self, name: &OsStr) -> bool {
        self.features().reserved_names && is_reserved(name)
    }
}

/// What there can be in an upper layer of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Names that begin with `.wh.` are marks, and not to be had for objects.
    pub reserved_names: bool,
    /// Attributes in the namespaces of the kernel's overlayfs are marks.
    pub attribute_marks: bool,
    /// A directory that merges with lower ones can be renamed.
    pub redirects: bool,
    /// A device with the number 0 can be a device; all are deletions otherwise.
    pub zero_devices: bool,
    /// A large file can be copied up in part.
    pub partial_copies: bool,
    /// There may be files that have only metadata.
    pub metacopies: bool,
    /// The kernel's overlayfs can mount the layer, so that what it keeps in the work directory is
    /// left alone.
    pub is_kernels: bool,
}

/// The content of a redirect: where a directory merges with the layers below, or a metacopy has its
/// data.
#[derive(Debug, PartialEq, Eq)]
pub enum Redirect {
    /// At this path from the top.
    Path(PathBuf),
    /// Under another name in the same directory.
    Sibling(OsString),
    /// Nowhere: the redirect is damaged, and its object merges with nothing.
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
    /// A file in it.
    File {
        /// Its name, which is reserved.
        name: &'static str,
        /// What it contains.
        content: Vec<u8>,
    },
    /// An extended attribute of it.
    Attribute {
        /// Its name, with the namespace.
        name: OsString,
        /// What it is set to.
        value: Vec<u8>,
    },
}
