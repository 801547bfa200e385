//! Partial copies: changes of a large file without a copy of all its data.
//!
//! A partial copy is a sparse file of the upper layer, beside the file's place, under a reserved
//! name. It has all attributes of the file, and the changed part of its data. Reads take the other
//! chunks from the lower file, the source. So it looks like the original until something changes,
//! and moves along when its directory is renamed. Tools that read the layer ignore it. The engine
//! completes it when a sync, a link, a rename or a copy within the layer needs it whole. Then it
//! gets its own name. At the latest it does so when the overlay ends, so an upper layer that is not
//! mounted has none.
//!
//! The *map* beside it says which chunks are copied, so that a killed daemon loses nothing. The map
//! is not synced with them. So after a crash of the system it counts no more, and all chunks come
//! from the source: the data written there was never promised.
//!
//! Its name has the digest of the source, its [origin](super::index). If the lower layers have
//! another file later, the engine does not mix the two. It does not show the copy, which stays for
//! a user that wants the changed data.
//!
//! While partial copies may exist, the root of the layer has a mark. So the next mount completes
//! the copies of a killed daemon.
//!
//! A partial copy counts only where the name shows a file of a lower layer. Any object of the upper
//! layer, and a whiteout, have precedence.
//!
//! The engine keeps the space for the rest free ([`room`](super::room)). Where there is too little,
//! it makes whole copies.
//!
//! An upper layer that the mount only reads is the topmost lower layer. Its partial copies show
//! their content and stay as they are.
//!
//! Locks: `Partial::chunks` and `Partials::nodes` are leaves. `Partial::chunks` changes only under
//! the content lock of the node.

mod all;
mod chunks;
mod complete;
mod found;
mod map;
mod shown;

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::sync::Arc;

use crate::errno::{EIO, ENOENT, Error};

use super::Overlay;
use super::index::{Origin, origin};
use super::node::{LayerEntry, Node, ObjectName, OpenFile, State, Stored};
use super::room::Promise;
use super::stack::LayerDir;
use crate::format::{self, PartOf};
use crate::layer::{Access, CAPABILITY, Kind, Layer, RenameMode, Result, Stat};
use crate::sync::Lock;

pub(super) use all::Partials;
use chunks::{CHUNK, Chunks};
pub use chunks::{map_len, means_something};
pub(super) use shown::source_dir;

/// The size from which on a file is copied in part.
pub(super) const PARTIAL_FROM: u64 = 1 << 20;

/// The size from which on a file is copied whole again, so that each map fits into memory.
const PARTIAL_UNTIL: u64 = 16 << 40;

/// A partial copy.
pub(super) struct Partial<L: Layer> {
    /// The directory of the upper layer that has it, with its name and the map's name there.
    pub dir: Arc<LayerDir<L>>,
    pub name: Arc<OsStr>,
    map: OsString,
    /// The source, as an entry of a lower directory.
    source: LayerEntry<L>,
    chunks: Lock<Chunks>,
}

/// The partial copy of an open file, and the open source of the chunks that it lacks.
pub(super) struct FromLower<L: Layer> {
    pub partial: Arc<Partial<L>>,
    pub source: Arc<OpenFile<L>>,
}

impl<L: Layer> Partial<L> {
    /// Makes the partial copy in `dir` of the file `source` with this size and digest. Returns None
    /// if the reserved names would be too long.
    pub fn new(
        dir: Arc<LayerDir<L>>,
        name_max: usize,
        source: LayerEntry<L>,
        digest: Option<Origin>,
        size: u64,
    ) -> Option<Self> {
        let (name, map) = format::part_names(&source.1, digest, name_max)?;
        Some(Partial { dir, name: name.into(), map, source, chunks: Lock::new(Chunks::new(size)) })
    }

    /// Returns the source.
    pub fn source(&self) -> &LayerEntry<L> {
        &self.source
    }

    /// Whether the byte at `offset` comes from the source, and the end of the run for which that
    /// holds. Looks no further than `until`.
    pub fn run(&self, offset: u64, until: u64) -> (bool, u64) {
        self.chunks.lock().run(offset, until)
    }

    /// Returns how often the copy was truncated. None during a truncation.
    fn truncations(&self) -> Option<u64> {
        let chunks = self.chunks.lock();
        (!chunks.is_being_truncated).then_some(chunks.truncations)
    }

    /// Begins a truncation. Until [`Partial::end_truncate`] no reader relies on the chunks.
    pub fn begin_truncate(&self) {
        self.chunks.lock().is_being_truncated = true;
    }

    /// Ends a truncation to `size` bytes, or a failed one. The chunks behind `size` no longer come
    /// from the source. Returns whether that changes anything.
    pub fn end_truncate(&self, size: Option<u64>) -> bool {
        let mut chunks = self.chunks.lock();
        (chunks.is_being_truncated, chunks.truncations) = (false, chunks.truncations + 1);
        size.is_some_and(|size| chunks.set_copied(size.div_ceil(CHUNK)..u64::MAX, true))
    }

    /// Whether a chunk in `range` comes from the source.
    pub fn has_from_lower(&self, range: &Range<u64>) -> bool {
        self.chunks.lock().uncopied_in(range).is_some()
    }
}

impl<L: Layer> Overlay<L> {
    /// Reads an open file at one moment, also a partial copy. The source does not end where the
    /// file does, so no truncation may come in between.
    ///
    /// The caller must not hold the content's lock.
    pub(super) fn read_at_one_moment<T>(
        &self,
        node: &Arc<Node<L>>,
        open: &OpenFile<L>,
        mut read: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let Some(FromLower { partial, .. }) = &open.from_lower else { return read() };
        if let Some(truncations) = partial.truncations() {
            let done = read();
            if partial.truncations() == Some(truncations) {
                return done;
            }
        }
        let _content = node.content.lock();
        read()
    }

    /// Whether a file of a lower layer may be copied in part, if `keep` bytes are needed. `from`
    /// has its data. It must be the file itself, since the digest is of one file.
    pub(super) fn may_be_partial(
        &self,
        node: &Arc<Node<L>>,
        attr: &Stat,
        xattrs: &[OsString],
        from: &OpenFile<L>,
        keep: u64,
    ) -> bool {
        let able = self.stack.upper().is_some_and(|upper| upper.capabilities().sparse);
        let state = node.state.lock();
        let fits = |place: &ObjectName<L>| {
            Arc::ptr_eq(&place.dir, &from.dir) && format::part_names(&place.name, Some(0), self.name_max).is_some()
        };
        able && state.places.first().is_some_and(fits)
            && !self.partials.unwanted
            && node.kind() == Kind::File
            && attr.nlink == 1
            && !attr.fixed.is_any()
            && attr.size.min(keep) >= PARTIAL_FROM
            && attr.size < PARTIAL_UNTIL
            && xattrs.iter().all(|name| name != CAPABILITY)
    }

    /// Puts a copy without data, built as `temp` in the work directory, beside its place. Nothing
    /// that a program sees changes. The caller holds the content's lock.
    pub(super) fn put_partial_in_place(
        &self,
        node: &Arc<Node<L>>,
        before: &Stat,
        copy: &Stat,
        temp: &OsStr,
        file: L::File,
        (source, promise): (Arc<OpenFile<L>>, Promise),
    ) -> Result<()> {
        let (upper, work) = self.upper()?;
        let _tree = self.tree.read();
        let place = node.state.lock().places.first().cloned().ok_or(Error::new(EIO))?;
        self.mark_partials()?;
        let parent = place.parent.dir()?;
        let to = self.known_upper(&parent)?;
        let lower = (place.dir.clone(), place.name.clone());
        let digest = origin(&self.stack, &place.dir, before);
        let partial =
            Partial::new(to.clone(), self.name_max, lower, Some(digest), before.size).ok_or(Error::new(EIO))?;
        let open = self.stack.open(work.dir())?;
        self.numbered(node, before, copy, || {
            self.keeping_times(&place.parent, &to, |dir| {
                upper.rename(&open, temp, dir, &partial.name, RenameMode::Replace)
            })
        })?;
        drop(parent);
        let partial = Arc::new(partial);
        let mut state = node.state.lock();
        let ino = *state.ino.get_or_insert_with(|| self.number(before));
        state.attr = Some(Stat { dev: copy.dev, ino: copy.ino, ..*before });
        partial.chunks.lock().keep_free(promise);
        self.record_partial(node, &mut state, partial.clone(), (before, copy), ino);
        self.counters.copied_up();
        let from_lower = Some(FromLower { partial, source });
        let open = Arc::new(OpenFile { file, access: Access::ReadWrite, dir: to, from_lower });
        let open = state.keeps_file().then_some(open);
        let _closed = std::mem::replace(&mut state.file, open);
        Ok(())
    }

    /// Makes a node that of a partial copy.
    fn record_partial(
        &self,
        node: &Arc<Node<L>>,
        state: &mut State<L>,
        partial: Arc<Partial<L>>,
        (before, copy): (&Stat, &Stat),
        ino: u64,
    ) {
        self.copied_up(ino, before, copy, None);
        state.upper = true;
        self.touch_unseen(node, state);
        self.partials.nodes.lock().insert(node.id(), (node.clone(), partial.clone()));
        state.stored = Stored::Partial(partial);
    }

    /// Opens the source of a partial copy.
    pub(super) fn open_source(&self, partial: &Arc<Partial<L>>) -> Result<FromLower<L>> {
        let (dir, name) = &partial.source;
        let (dir, file) = self.open_data(dir.clone(), name, Access::Read)?;
        let source = Arc::new(OpenFile { file, access: Access::Read, dir, from_lower: None });
        Ok(FromLower { partial: partial.clone(), source })
    }

    /// Removes a partial copy that lost its name. Open files keep it.
    pub(super) fn discard_partial(&self, node: &Arc<Node<L>>, partial: &Partial<L>) {
        self.end(node, partial);
        self.discard_part_file(&partial.dir, &partial.name);
    }

    /// Removes the map, which is no longer needed.
    fn end(&self, node: &Arc<Node<L>>, partial: &Partial<L>) {
        let mapped = partial.chunks.lock().end();
        if mapped {
            self.discard_part_file(&partial.dir, &partial.map);
        }
        let _kept = self.partials.nodes.lock().remove(&node.id());
    }

    /// Removes an obsolete partial copy and its map. Returns whether both are gone.
    pub(super) fn discard_part(&self, dir: &LayerDir<L>, (source, name): &PartOf) -> bool {
        let Some((part, map)) = format::part_names(name, *source, self.name_max) else { return true };
        [map, part].map(|file| self.discard_part_file(dir, &file)) == [true, true]
    }

    /// Does the same as [`Overlay::remove_part_file`] where a failure does no harm. Returns whether
    /// the file is gone.
    fn discard_part_file(&self, dir: &LayerDir<L>, name: &OsStr) -> bool {
        let removed = self.remove_part_file(dir, name);
        if let Err(error) = &removed {
            log::warn!("cannot remove the obsolete {}: {error}", self.stack.path(dir).join(name).display());
        }
        removed.is_ok()
    }

    /// Removes a partial copy or a map, if it exists.
    fn remove_part_file(&self, dir: &LayerDir<L>, name: &OsStr) -> Result<()> {
        match self.stack.layer(dir).unlink(&*self.stack.open(dir)?, name) {
            Err(error) if error.errno != ENOENT => Err(error),
            _ => Ok(()),
        }
    }
}
