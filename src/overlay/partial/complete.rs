//! Completion: a partial copy gets the rest of its data, and its own name.

use std::ffi::OsStr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::errno::{EIO, Error};

use super::chunks::CHUNK;
use super::{FromLower, Partial};
use crate::layer::{Access, CAPABILITY, Kind, Layer, Object, RenameMode, Result, Stat};
use crate::overlay::Overlay;
use crate::overlay::names::Upper;
use crate::overlay::node::{Node, OpenFile, Stored};
use crate::overlay::ownership::SET_ID;
use crate::overlay::progress::{PIECE, Progress};

/// The number of bytes copied in one step of a completion. Other threads can write between steps.
const AT_ONCE: u64 = 4 << 20;

impl<L: Layer> Overlay<L> {
    /// Completes a partial copy and gives it its own name. Does nothing for other objects.
    ///
    /// The caller must hold neither the tree nor the content of any node.
    pub(in crate::overlay) fn complete(&self, node: &Arc<Node<L>>) -> Result<()> {
        let Some(partial) = node.state.lock().stored.partial().cloned() else { return Ok(()) };
        let open = self.file(node, Access::ReadWrite)?;
        let size = partial.chunks.lock().size;
        let path = self.path(node).unwrap_or_default();
        let mut progress = Progress::new(path, size, Instant::now());
        let mut at = 0;
        loop {
            let _content = node.content.lock();
            if node.state.lock().stored.partial().is_none() {
                return Ok(());
            }
            let piece = self.next_piece(&open, at..size)?;
            if piece.is_empty() {
                if size > PIECE {
                    log::info!("{}", progress.done(Instant::now()));
                }
                return self.put_whole_in_place(node, &partial, &open);
            }
            at = piece.end;
            self.fill(node, &open, piece)?;
            if let Some(said) = progress.copied(at, Instant::now()) {
                log::info!("{said}");
            }
        }
    }

    /// Returns the next part of `rest` to copy, empty if nothing there comes from the source. A
    /// hole of the source takes no time, so it does not end a part.
    fn next_piece(&self, open: &OpenFile<L>, rest: Range<u64>) -> Result<Range<u64>> {
        let none = rest.end..rest.end;
        let Some(FromLower { partial, source }) = &open.from_lower else { return Ok(none) };
        let Some(chunks) = partial.chunks.lock().uncopied_in(&rest) else { return Ok(none) };
        let start = chunks.start * CHUNK;
        let data = self.stack.layer(&source.dir).next_data(&source.file, start)?;
        let hole = data.map_or(rest.end, |data| data.start).min(chunks.end * CHUNK);
        Ok(start..rest.end.min(hole + AT_ONCE))
    }

    /// Completes a partial copy before an attribute is set that the writing of its data would
    /// remove.
    pub(in crate::overlay) fn complete_for(&self, node: &Arc<Node<L>>, xattr: &OsStr) -> Result<()> {
        if xattr == CAPABILITY { self.complete(node) } else { Ok(()) }
    }

    /// Copies the chunks in `range` that come from the source. Nothing that a program sees changes.
    /// The caller holds the content's lock.
    pub(in crate::overlay) fn fill(&self, node: &Arc<Node<L>>, open: &OpenFile<L>, range: Range<u64>) -> Result<()> {
        let (upper, _) = self.upper()?;
        let Some(FromLower { partial, .. }) =
            open.from_lower.as_ref().filter(|from_lower| from_lower.partial.has_from_lower(&range))
        else {
            return Ok(());
        };
        let Stat { atime, mtime, ctime, mode, .. } = self.stat(node)?;
        partial.chunks.lock().mtime = Some(mtime);
        let filled = self.save_map(node, partial).and_then(|()| self.ensure_chunks_copied(node, open, range));
        // Also after a failure: the part that was copied must not show.
        let mended = (|| {
            if mode & SET_ID != 0 {
                upper.set_mode(Object::File(&open.file), mode)?;
            }
            upper.set_times(Object::File(&open.file), atime, mtime)
        })();
        self.touch_as(node, &mut node.state.lock(), Some(ctime));
        partial.chunks.lock().mtime = None;
        let saved = self.save_map(node, partial);
        if saved.is_err() {
            partial.chunks.lock().unsaved = true;
        }
        filled.and(mended).and(saved)
    }

    /// Gives a complete copy its own name. The caller holds the content's lock.
    fn put_whole_in_place(&self, node: &Arc<Node<L>>, partial: &Partial<L>, open: &OpenFile<L>) -> Result<()> {
        let (upper, work) = self.upper()?;
        work.sync(upper, &open.file)?;
        let _tree = self.tree.read();
        let place = node.state.lock().places.first().cloned().ok_or(Error::new(EIO))?;
        let mut parent = place.parent.dir()?;
        let mut ino = None;
        self.keeping_times(&place.parent, &partial.dir, |dir| {
            // The lock lasts until the new place is known, so no thread asks for the object by its
            // old name.
            let mut state = node.state.lock();
            upper.rename(dir, &partial.name, dir, &place.name, RenameMode::Replace)?;
            if let Some(place) = state.places.first_mut() {
                place.dir = partial.dir.clone();
            }
            self.touch_unseen(node, &mut state);
            state.stored = Stored::Named;
            ino = state.attr.map(|attr| attr.ino);
            drop(state);
            self.end(node, partial);
            Ok(())
        })?;
        self.read_dir_at(&place.parent, &mut parent, &place.name)?.entry(&place.name).upper =
            Some(Upper { kind: Kind::File, ino });
        Ok(())
    }
}
