//! The exchange of two directories, also on a filesystem that cannot do it in one step.
//!
//! There it takes three renames over a *spare* name beside the first directory. The names alone
//! tell how far it is, so it needs no journal:
//!
//! | first place | spare name | second place | |
//! | --- | --- | --- | --- |
//! | one | | other | not begun |
//! | | one | other | after the first rename |
//! | other | one | | after the second |
//! | other | | one | done |

use std::ffi::OsStr;

use super::{Layer, Object, RenameMode};
use crate::errno::{EINVAL, ENOENT, Result};

/// A name in a directory.
pub type Seat<'a, L> = (&'a <L as Layer>::Dir, &'a OsStr);

/// Exchanges two directories, with the change on the disk at the return. `spare` is a free name in
/// the directory of the first.
///
/// # Errors
///
/// Those of [`Layer::rename`] and [`Layer::sync_dir`].
pub fn exchange<L: Layer>(layer: &L, one: Seat<'_, L>, other: Seat<'_, L>, spare: &OsStr) -> Result<()> {
    match layer.rename(one.0, one.1, other.0, other.1, RenameMode::Exchange) {
        Err(error) if error.errno == EINVAL => {}
        exchanged => {
            exchanged?;
            layer.sync_dir(one.0)?;
            return layer.sync_dir(other.0);
        }
    }
    layer.rename(one.0, one.1, one.0, spare, RenameMode::Replace)?;
    layer.sync_dir(one.0)?;
    finish_exchange(layer, one, other, spare)
}

/// Finishes an exchange that was interrupted, if there is one. If the second directory is gone
/// meanwhile, the first gets its name again.
///
/// # Errors
///
/// Those of [`Layer::rename`] and [`Layer::sync_dir`].
/// - ENOTEMPTY: another directory has the name of the first one.
pub fn finish_exchange<L: Layer>(layer: &L, one: Seat<'_, L>, other: Seat<'_, L>, spare: &OsStr) -> Result<()> {
    if !exists(layer, (one.0, spare))? {
        return Ok(());
    }
    if exists(layer, other)? {
        layer.rename(other.0, other.1, one.0, one.1, RenameMode::Replace)?;
        layer.sync_dir(one.0)?;
        layer.sync_dir(other.0)?;
    }
    let (dir, name) = if exists(layer, one)? { other } else { one };
    layer.rename(one.0, spare, dir, name, RenameMode::Replace)?;
    layer.sync_dir(dir)?;
    layer.sync_dir(one.0)
}

fn exists<L: Layer>(layer: &L, (dir, name): Seat<'_, L>) -> Result<bool> {
    match layer.stat(Object::Entry(dir, name)) {
        Err(error) if error.errno == ENOENT => Ok(false),
        found => found.map(|_| true),
    }
}
