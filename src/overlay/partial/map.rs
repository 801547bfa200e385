//! Copies chunks from the source, and records that in the map.

use std::ops::Range;
use std::sync::Arc;

use crate::errno::{EIO, ENOENT, Error};

use super::chunks::{CHUNK, FOR_GOOD, HEADER, Update};
use super::{FromLower, Partial};
use crate::layer::{Access, Layer, Result, read_start, write_all};
use crate::overlay::Overlay;
use crate::overlay::node::{Node, OpenFile};

impl<L: Layer> Overlay<L> {
    /// Copies the chunks in `range` that come from the source, before their bytes change. Nothing
    /// that a program sees changes. The caller holds the content's lock.
    pub(in crate::overlay) fn ensure_chunks_copied(
        &self,
        node: &Arc<Node<L>>,
        open: &OpenFile<L>,
        range: Range<u64>,
    ) -> Result<()> {
        let Some(FromLower { partial, source }) = &open.from_lower else { return Ok(()) };
        self.save_again(node, partial)?;
        let mut rest = range;
        loop {
            let (chunks, size) = {
                let chunks = partial.chunks.lock();
                (chunks.uncopied_in(&rest), chunks.size)
            };
            let Some(chunks) = chunks else { return Ok(()) };
            rest.start = chunks.end * CHUNK;
            let bytes = chunks.start * CHUNK..(chunks.end * CHUNK).min(size);
            self.room.spend(bytes.end - bytes.start);
            self.copy_data(source, &open.file, bytes, &mut |_| {})?;
            if partial.chunks.lock().for_good {
                self.upper()?.0.sync(&open.file)?;
            }
            self.take_over(node, partial, chunks)?;
        }
    }

    /// Calls `truncate` for an open file, which may be a partial copy. The caller has called
    /// [`Overlay::ensure_chunks_copied`] for the last of the `size` bytes.
    ///
    /// The chunks behind no longer come from the source. If the map cannot be written now, it is
    /// written later: the size of the copy says the same until it grows.
    pub(in crate::overlay) fn truncate_partial(
        &self,
        node: &Arc<Node<L>>,
        open: &OpenFile<L>,
        size: u64,
        truncate: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let Some(FromLower { partial, .. }) = &open.from_lower else { return truncate() };
        partial.begin_truncate();
        let truncated = truncate();
        let changed = partial.end_truncate(truncated.is_ok().then_some(size));
        if changed && let Err(error) = self.save_map(node, partial) {
            let path = self.stack.path(&partial.dir).join(&partial.map);
            log::warn!("cannot write the map {}, the next change does: {error}", path.display());
            partial.chunks.lock().unsaved = true;
        }
        truncated
    }

    /// Records that chunks are copied.
    fn take_over(&self, node: &Arc<Node<L>>, partial: &Partial<L>, chunks: Range<u64>) -> Result<()> {
        partial.chunks.lock().set_copied(chunks.clone(), true);
        let saved = self.save_map(node, partial);
        if saved.is_err() {
            partial.chunks.lock().set_copied(chunks, false);
        }
        saved
    }

    /// Reads the map, if there is one.
    pub(super) fn read_map(&self, partial: &Partial<L>) -> Result<Option<Vec<u8>>> {
        let layer = self.stack.layer(&partial.dir);
        let file = match layer.open_file(&*self.stack.open(&partial.dir)?, &partial.map, Access::Read) {
            Err(error) if error.errno == ENOENT => return Ok(None),
            file => file?,
        };
        let most = HEADER + partial.chunks.lock().bytes();
        read_start(layer, &file, most).map(Some)
    }

    /// Writes the map of a partial copy before a change of it, if that failed before.
    pub(in crate::overlay) fn save_again(&self, node: &Arc<Node<L>>, partial: &Partial<L>) -> Result<()> {
        let unsaved = partial.chunks.lock().unsaved;
        if unsaved { self.save_map(node, partial) } else { Ok(()) }
    }

    /// Writes the map of a partial copy that has its reserved name.
    pub(super) fn save_map(&self, node: &Arc<Node<L>>, partial: &Partial<L>) -> Result<()> {
        if partial.chunks.lock().ended {
            return Ok(());
        }
        let _tree = self.tree.read();
        let (parent, _) = self.parent(node).ok_or(Error::new(EIO))?;
        // The map is new, so it gets a name.
        let is_new = !partial.chunks.lock().mapped;
        let _dir = if is_new { Some(parent.dir()?) } else { None };
        self.save_map_within(&parent, partial)
    }

    /// Does the same as [`Overlay::save_map`], for a copy in `parent`. The caller holds the tree,
    /// and the directory if there is no map yet.
    pub(super) fn save_map_within(&self, parent: &Arc<Node<L>>, partial: &Partial<L>) -> Result<()> {
        let upper = self.stack.layer(&partial.dir);
        let (update, epoch, mapped, for_good) = {
            let known = partial.chunks.lock();
            let epoch = if known.for_good { Some(FOR_GOOD) } else { upper.epoch() };
            let Some(epoch) = epoch else { return Ok(()) };
            (known.update(epoch), epoch, known.mapped, known.for_good)
        };
        if update.bits.is_none() && update.header.is_none() {
            return Ok(());
        }
        let file = match mapped {
            true => upper.open_file(&*self.stack.open(&partial.dir)?, &partial.map, Access::ReadWrite)?,
            false => {
                let mut made = None;
                self.keeping_times(parent, &partial.dir, |dir| {
                    made = Some(upper.create_file(dir, &partial.map, 0o600, upper.identity())?);
                    partial.chunks.lock().mapped = true;
                    Ok(())
                })?;
                made.ok_or(Error::new(EIO))?
            }
        };
        let written = self.write_map(&file, &update, for_good);
        partial.chunks.lock().wrote(epoch, written.is_ok());
        written
    }

    /// Writes the missing parts of a map. A header that makes it count for good comes after its
    /// bits are on the disk.
    fn write_map(&self, file: &L::File, update: &Update, for_good: bool) -> Result<()> {
        let (upper, _) = self.upper()?;
        if let Some((bits, at)) = &update.bits {
            write_all(upper, file, bits, *at)?;
        }
        if let Some(header) = &update.header {
            if for_good {
                upper.sync(file)?;
            }
            write_all(upper, file, header, 0)?;
        }
        if for_good { upper.sync(file) } else { Ok(()) }
    }
}
