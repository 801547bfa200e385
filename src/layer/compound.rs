//! Functions that make several calls of a layer, for every backend.

use std::ffi::{OsStr, OsString};
use std::ops::Range;

use super::{Kind, Layer, Object};
use crate::errno::{EEXIST, EIO, Error, Result};

/// The largest piece that is copied through memory at once, in bytes: the largest record of
/// redoxfs.
const COPY_PIECE: usize = 128 * 1024;

/// Returns the entries of a directory of a layer.
///
/// # Errors
///
/// Those of [`Layer::list`].
pub fn entries<L: Layer>(layer: &L, dir: &L::Dir) -> Result<Vec<(OsString, Kind)>> {
    let mut entries = Vec::new();
    layer.list(dir, &mut |entry| entries.push((entry.name.to_owned(), entry.kind)))?;
    Ok(entries)
}

/// Returns at most `most` entries of a directory of a layer.
///
/// # Errors
///
/// Those of [`Layer::list`].
pub fn some_entries<L: Layer>(layer: &L, dir: &L::Dir, most: usize) -> Result<Vec<(OsString, Kind)>> {
    let mut entries = Vec::new();
    layer.list(dir, &mut |entry| {
        if entries.len() < most {
            entries.push((entry.name.to_owned(), entry.kind));
        }
    })?;
    Ok(entries)
}

/// Writes all of `bytes` at `offset`, in as many calls as the layer needs.
///
/// # Errors
///
/// Those of [`Layer::write_at`].
/// - EIO: the layer writes nothing.
pub fn write_all<L: Layer>(layer: &L, file: &L::File, bytes: &[u8], offset: u64) -> Result<()> {
    write_all_with(bytes, offset, |bytes, offset| layer.write_at(file, bytes, offset))
}

/// Calls `write` with the rest of `bytes` and its offset, until everything is written.
///
/// # Errors
///
/// Those of `write`.
/// - EIO: `write` writes nothing, or more than it got.
pub fn write_all_with(
    mut bytes: &[u8],
    mut offset: u64,
    mut write: impl FnMut(&[u8], u64) -> Result<usize>,
) -> Result<()> {
    while !bytes.is_empty() {
        let written = write(bytes, offset)?;
        bytes = bytes.get(written..).filter(|_| written > 0).ok_or(Error::new(EIO))?;
        offset += written as u64;
    }
    Ok(())
}

/// Copies a range of a file by reads and writes, for [`Layer::copy_range`] where the system cannot
/// copy. `from` may be of another layer of the same backend.
///
/// # Errors
///
/// Those of [`Layer::read_at`] and [`write_all`].
pub fn copy_through_memory<L: Layer>(
    layer: &L,
    from: &L::File,
    range: Range<u64>,
    to: &L::File,
    offset: u64,
) -> Result<u64> {
    let mut buffer = vec![0; COPY_PIECE];
    let mut at = range.start;
    while at < range.end {
        let wanted = usize::try_from(range.end - at).map_or(COPY_PIECE, |left| left.min(COPY_PIECE));
        let read = layer.read_at(from, &mut buffer[..wanted], at)?;
        if read == 0 {
            break;
        }
        write_all(layer, to, &buffer[..read], offset + (at - range.start))?;
        at += read as u64;
    }
    Ok(at - range.start)
}

/// Calls `change`, which changes the entries of a directory, then sets the directory's times back.
///
/// # Errors
///
/// Those of `change`, of [`Layer::stat`] and of [`Layer::set_times`].
pub fn keeping_times<L: Layer>(layer: &L, dir: &L::Dir, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = layer.stat(Object::Dir(dir))?;
    change()?;
    layer.set_times(Object::Dir(dir), before.atime, before.mtime)
}

/// Reads a file from its start: `most` bytes, or fewer if it ends before.
///
/// # Errors
///
/// Those of [`Layer::read_at`].
pub fn read_start<L: Layer>(layer: &L, file: &L::File, most: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; most];
    let read = layer.read_at(file, &mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// Creates an empty file that only its owner may use. A file of that name stays.
///
/// # Errors
///
/// Those of [`Layer::create_empty`] but EEXIST.
pub fn ensure_file<L: Layer>(layer: &L, dir: &L::Dir, name: &OsStr) -> Result<()> {
    match layer.create_empty(dir, name) {
        Err(error) if error.errno != EEXIST => Err(error),
        _ => Ok(()),
    }
}
