//! The states of an upper layer in which a tool must not change it.

use std::path::Path;

use super::{Error, escaped};
use crate::fsck::{Checker, Finding};
use crate::layer::Layer;

/// Checks that no overlay uses the upper layer at `upper`, that the lower layers are those that it
/// was written with, and that it has lost nothing.
///
/// # Errors
///
/// - [`Error::Refused`]: one of these is not so.
/// - [`Error::At`]: a layer cannot be read.
pub fn check<L: Layer>(checker: &Checker<L>, upper: &Path) -> Result<(), Error> {
    let shown = escaped(upper);
    if checker.is_in_use() {
        return Err(Error::Refused(format!("{shown} is in use by another overlay: unmount that one first")));
    }
    if let Some(difference) = checker.other_layers() {
        return Err(Error::Refused(format!("{shown} was mounted last on other lower layers: {difference}")));
    }
    let losses = checker.losses().map_err(|error| Error::at("check", upper, error))?;
    match losses.first() {
        Some(Finding { path, damage, .. }) => {
            Err(Error::Refused(format!("{shown} is damaged: {} {damage}; run overlayfs-fsck", escaped(path))))
        }
        None => Ok(()),
    }
}
