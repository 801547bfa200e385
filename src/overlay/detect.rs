//! Detection of the format of an upper layer.
//!
//! The root of an upper layer in the kernel's format has an attribute that tells it. The kernel
//! leaves some at its mount. The engine writes [`kernel::FORMAT`] before anything else. Any other
//! layer is an OCI image layer.
//!
//! If the options want the kernel's format and there is no such attribute, the engine searches
//! the layer once for marks of the other format. If reserved names cannot be made, the layer
//! is on another overlay. It then gets the kernel's format, unless the options want the other.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::errno::{EEXIST, EINVAL, ENOENT, ENOTDIR, EOPNOTSUPP, EPERM, Error};

use super::stack::{LayerDir, Stack};
use super::work::{Refused, TRIAL, TRIAL_MARKER, Work};
use crate::format::attribute::names;
use crate::format::kernel::{self, Namespace};
use crate::format::{self, Format, Meaning, Wanted};
use crate::layer::{Kind, Layer, Object, RenameMode, Result, XattrMode, entries};

/// The directory of the kernel's overlayfs with its option index: links between names of lower
/// layers and changed files.
const INDEX: &str = "index";

/// The known facts about the format of an upper layer, before the mount writes to it.
#[derive(Clone, Copy)]
pub enum KnownFormat {
    Oci,
    /// The kernel's format, marked in this namespace, or not marked yet.
    Kernel(Option<Namespace>),
}

/// Finds out the format of the upper layer of a stack, or the format for a new one.
///
/// # Errors
///
/// - [`Refused::KernelFormat`], [`Refused::OciFormat`]: the layer has another format than `wanted`.
pub fn detect<L: Layer>(stack: &Stack<L>, wanted: Option<Wanted>) -> std::result::Result<KnownFormat, Refused> {
    match (namespace(stack)?, wanted) {
        (Some(namespace), Some(Wanted::Oci)) => Err(Refused::KernelFormat(namespace.prefix())),
        (Some(namespace), _) => Ok(KnownFormat::Kernel(Some(namespace))),
        (None, Some(Wanted::Kernel)) => match find_marker(stack)? {
            Some(marker) => Err(Refused::OciFormat(marker)),
            None => Ok(KnownFormat::Kernel(None)),
        },
        (None, _) => Ok(KnownFormat::Oci),
    }
}

impl KnownFormat {
    pub fn is_kernel(self) -> bool {
        matches!(self, KnownFormat::Kernel(_))
    }

    /// Refuses a work directory of the kernel's overlayfs with content that the mount must not
    /// lose.
    pub fn check_work<L: Layer>(self, upper: &L, work: &L::Dir) -> std::result::Result<(), Refused> {
        let index = match upper.open_dir(work, OsStr::new(INDEX)) {
            _ if !self.is_kernel() => return Ok(()),
            Err(error) if matches!(error.errno, ENOENT | ENOTDIR) => return Ok(()),
            index => index?,
        };
        if entries(upper, &index)?.is_empty() { Ok(()) } else { Err(Refused::Indexed) }
    }

    /// Changes to the kernel's format if the layer takes no reserved names. Tries that in the work
    /// directory.
    pub fn if_possible<L: Layer>(
        self,
        upper: &L,
        work: &L::Dir,
        wanted: Option<Wanted>,
    ) -> std::result::Result<Self, Refused> {
        if self.is_kernel() {
            return Ok(self);
        }
        let name = OsStr::new(TRIAL_MARKER);
        // fuse-overlayfs refuses the name to open(2) alone.
        match upper.create_file(work, name, 0o600, upper.identity()) {
            Err(error) if error.errno == EINVAL => match wanted {
                None if attempt(upper, work, None).is_ok() => {
                    log::info!("the upper layer refuses names that begin with .wh., so it gets the kernel's format");
                    Ok(KnownFormat::Kernel(None))
                }
                _ => Err(Refused::NoMarkers(error, upper.capabilities().xattrs)),
            },
            Err(error) if error.errno != EEXIST => Err(error.into()),
            _ => {
                upper.unlink(work, name)?;
                Ok(self)
            }
        }
    }

    /// Makes sure that the upper layer can have the format, and has its mark at `root`. Tries that
    /// in the work directory.
    pub fn ensure_marked<L: Layer>(
        self,
        upper: &L,
        root: &L::Dir,
        work: &L::Dir,
    ) -> std::result::Result<Format, Refused> {
        let KnownFormat::Kernel(known) = self else {
            return Ok(format::OCI);
        };
        let namespace = attempt(upper, work, known).map_err(Refused::CannotMark)?;
        if known.is_none() {
            let (name, value) = kernel::FORMAT;
            upper.set_xattr(Object::Dir(root), &namespace.name(name), value, XattrMode::Set)?;
        }
        Ok(kernel::format(namespace))
    }
}

/// Makes each step that the kernel's format needs once, in the work directory. Returns the known
/// namespace, else the first one that works.
pub fn attempt<L: Layer>(upper: &L, work: &L::Dir, known: Option<Namespace>) -> Result<Namespace> {
    let able = upper.capabilities();
    if !able.xattrs || !able.exchange {
        return Err(Error::new(EOPNOTSUPP));
    }
    let [from, to] = TRIAL.map(OsStr::new);
    for name in [from, to] {
        upper.create_empty(work, name)?;
    }
    let mark = |namespace: Namespace| {
        let (name, value) = kernel::OPAQUE;
        let object = Object::Entry(work, from);
        upper.set_xattr(object, &namespace.name(name), value, XattrMode::Set)?;
        // fuse-overlayfs accepts some of these attributes, and does not return them.
        if upper.xattr(object, &namespace.name(name))? == value { Ok(namespace) } else { Err(Error::new(EINVAL)) }
    };
    let namespace = match known {
        Some(known) => mark(known),
        None => match mark(Namespace::Trusted) {
            Err(error) if matches!(error.errno, EPERM | EOPNOTSUPP) => mark(Namespace::User),
            marked => marked,
        },
    };
    let exchanged = upper.rename(work, from, work, to, RenameMode::Exchange);
    upper.unlink(work, to)?;
    let left = namespace.and_then(|namespace| {
        exchanged?;
        upper.rename(work, from, work, to, RenameMode::Whiteout)?;
        upper.unlink(work, to)?;
        Ok((namespace, upper.stat(Object::Entry(work, from))?))
    });
    upper.unlink(work, from)?;
    match left? {
        (namespace, left) if kernel::is_whiteout(&left) => Ok(namespace),
        _ => Err(Error::new(EINVAL)),
    }
}

/// Returns the namespace of the kernel's attributes at the root of the upper layer.
pub fn namespace<L: Layer>(stack: &Stack<L>) -> Result<Option<Namespace>> {
    stack.upper_root().map_or(Ok(None), |root| namespace_at(stack, root))
}

/// Returns the format of the upper layers of a stack. `work` is that of the one that is written to.
/// Without it, the `frozen` topmost layers are upper ones that are only read.
pub fn format_of<L: Layer>(stack: &Stack<L>, work: Option<&Work<L>>, frozen: usize) -> Result<Format> {
    if let Some(work) = work {
        return Ok(work.format());
    }
    let top = stack.lower_roots().first().filter(|_| frozen > 0);
    let namespace = top.map(|root| namespace_at(stack, root)).transpose()?.flatten();
    Ok(namespace.map_or(format::OCI, kernel::format))
}

fn namespace_at<L: Layer>(stack: &Stack<L>, root: &LayerDir<L>) -> Result<Option<Namespace>> {
    let layer = stack.layer(root);
    if !layer.capabilities().xattrs {
        return Ok(None);
    }
    Ok(Namespace::of(&names(layer, Object::Dir(&*stack.open(root)?))?))
}

/// Returns the path of a file in the upper layer that has a meaning only in an OCI image layer.
fn find_marker<L: Layer>(stack: &Stack<L>) -> Result<Option<PathBuf>> {
    let mut dirs: Vec<_> = stack.upper_root().map(|root| (root.clone(), PathBuf::new())).into_iter().collect();
    while let Some((dir, path)) = dirs.pop() {
        let mut found = None;
        let each = &mut |entry: crate::layer::DirEntry<'_>| match format::meaning(entry.name) {
            Meaning::Object if entry.kind == Kind::Dir => {
                dirs.push((stack.child(&dir, entry.name), path.join(Path::new(entry.name))));
            }
            Meaning::Object => {}
            _ => found = Some(path.join(Path::new(entry.name))),
        };
        stack.layer(&dir).list(&*stack.open(&dir)?, each)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}
