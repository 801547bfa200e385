//! In which format an upper layer is written.
//!
//! An upper layer in the kernel's format says so by the attributes of its top: the kernel leaves
//! some there when it mounts, and we leave [`kernel::FORMAT`] before anything else is written.
//! Every other is an OCI image layer. Where the kernel's format is asked for and there is no such
//! attribute yet, the whole layer is looked through once for what only the other format has. Where
//! reserved names cannot be made, since the layer lies on another overlay, it is written in the
//! kernel's format if nobody wants the other.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::errno::{EEXIST, EINVAL, ENOENT, ENOTDIR, EOPNOTSUPP, EPERM, Error};

use super::stack::Stack;
use super::work::{Refused, TRIAL, TRIAL_MARKER};
use crate::format::attribute::names;
use crate::format::kernel::{self, Namespace};
use crate::format::{self, Format, Meaning, Wanted};
use crate::layer::{Kind, Layer, Object, RenameMode, Result, XattrMode, entries};

/// Where the kernel's overlayfs keeps, with its option index, which names of lower layers are links
/// of a file that was changed.
const INDEX: &str = "index";

/// What is known of the format of an upper layer before anything is written to it.
#[derive(Clone, Copy)]
pub enum KnownFormat {
    Oci,
    /// The kernel's, in the namespace that it is marked with; None if it is not marked yet.
    Kernel(Option<Namespace>),
}

/// Finds out how the upper layer of a stack is written, or is to be if it is new.
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

    /// Refuses a work directory of the kernel's overlayfs in which something is that must not get
    /// lost.
    pub fn check_work<L: Layer>(self, upper: &L, work: &L::Dir) -> std::result::Result<(), Refused> {
        let index = match upper.open_dir(work, OsStr::new(INDEX)) {
            _ if !self.is_kernel() => return Ok(()),
            Err(error) if matches!(error.errno, ENOENT | ENOTDIR) => return Ok(()),
            index => index?,
        };
        if entries(upper, &index)?.is_empty() { Ok(()) } else { Err(Refused::Indexed) }
    }

    /// The kernel's format for a layer that cannot be written in the native one: it takes no
    /// reserved names. Asked in the work directory.
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
        match upper.create_file(work, name, 0o600, upper.identity()) {
            Err(error) if error.errno == EINVAL => match wanted {
                None if attempt(upper, work, None).is_ok() => {
                    log::info!(
                        "the upper layer takes no names that begin with .wh.: it is written in the kernel's format"
                    );
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

    /// Sees to it that the upper layer can be written so and is marked, if need be, at its top
    /// `root`. What has to be tried is tried in the work directory.
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

/// Does once in the work directory what the kernel's format needs. Answers the namespace: the one
/// that is known, or else the first one that can be used.
fn attempt<L: Layer>(upper: &L, work: &L::Dir, known: Option<Namespace>) -> Result<Namespace> {
    let able = upper.capabilities();
    if !able.xattrs || !able.exchange {
        return Err(Error::new(EOPNOTSUPP));
    }
    let [from, to] = TRIAL.map(OsStr::new);
    for name in [from, to] {
        drop(upper.create_file(work, name, 0o600, upper.identity())?);
    }
    let mark = |namespace: Namespace| {
        let (name, value) = kernel::OPAQUE;
        let object = Object::Entry(work, from);
        upper.set_xattr(object, &namespace.name(name), value, XattrMode::Set)?;
        // fuse-overlayfs takes some of these attributes, and does not give them back.
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

/// The namespace of the attributes at the top of the upper layer that are the kernel's format's.
pub fn namespace<L: Layer>(stack: &Stack<L>) -> Result<Option<Namespace>> {
    let Some(root) = stack.upper_root() else { return Ok(None) };
    let upper = stack.layer(root);
    if !upper.capabilities().xattrs {
        return Ok(None);
    }
    Ok(Namespace::of(&names(upper, Object::Dir(&*stack.open(root)?))?))
}

/// The path of a file in the upper layer that has a meaning only if that is an OCI image layer.
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
