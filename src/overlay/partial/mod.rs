//! Partial copies: a large file is changed without a copy of all its data.
//!
//! A partial copy is a sparse file of the upper layer, beside its place under a reserved name. It
//! has all attributes of the file, and of its data what was changed; the rest is *lent* by the
//! lower layer, in chunks. So it looks like the original until something is changed, and goes along
//! when its directory is renamed. Tools that read the layer pass over it. It is completed, and gets
//! its own name, before it is synced, linked, renamed or copied from within the layer, and when the
//! overlay ends: at rest there is none.
//!
//! The *map* beside it says which chunks are its own, so that nothing is lost with the daemon. It
//! is not synced with them, so after the system went down it means nothing and all chunks are lent
//! again: what was written there was never promised.
//!
//! Its name has the digest of the file that lends, as [`index`](super::index) knows files again. If
//! the lower layers have another file by then, they are not mixed: the copy is not shown, and stays
//! where it is for who wants to have what was changed.
//!
//! While there may be some, the layer has a mark at its top, so that what a daemon left that was
//! killed is completed by the next.
//!
//! A partial copy counts only where the name shows a file of a lower layer: any object of the upper
//! layer, and a whiteout, outdoes it.
//!
//! The room that the rest of it will take is kept free ([`room`](super::room)). Where there is
//! none, copies are whole.
//!
//! An upper layer that is only read is the topmost lower layer. Its partial copies are shown with
//! what they have, and stay as they are.
//!
//! Locks: `Partial::chunks` and `Partials::nodes` are leaves. The former changes under the content
//! lock of the node alone.

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

/// From this size on a file is copied in part.
pub(super) const PARTIAL_FROM: u64 = 1 << 20;

/// And from this size on whole again, so that the map of any partial copy fits into memory.
const PARTIAL_UNTIL: u64 = 16 << 40;

/// A partial copy.
pub(super) struct Partial<L: Layer> {
    /// The directory of the upper layer that it is in, and its name and the map's there.
    pub dir: Arc<LayerDir<L>>,
    pub name: Arc<OsStr>,
    map: OsString,
    /// The file that lends, as an entry of a lower directory.
    source: LayerEntry<L>,
    chunks: Lock<Chunks>,
}

/// What an open partial copy reads what it does not have from.
pub(super) struct FromLower<L: Layer> {
    pub partial: Arc<Partial<L>>,
    pub source: Arc<OpenFile<L>>,
}

impl<L: Layer> Partial<L> {
    /// That of the file `source`, which has `size` bytes and this digest, beside the entry of its
    /// name in `dir`. None if the reserved names would be too long.
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

    /// Whether the byte at `offset` is lent, and up to where that is so; it is not looked further
    /// than `until`.
    pub fn run(&self, offset: u64, until: u64) -> (bool, u64) {
        self.chunks.lock().run(offset, until)
    }

    /// How often the copy was truncated; None while it is.
    fn truncations(&self) -> Option<u64> {
        let chunks = self.chunks.lock();
        (!chunks.is_being_truncated).then_some(chunks.truncations)
    }

    /// Before the copy is truncated: until [`Partial::end_truncate`] nobody goes by what is said of
    /// its chunks.
    pub fn begin_truncate(&self) {
        self.chunks.lock().is_being_truncated = true;
    }

    /// After it was truncated to `size` bytes, or that failed: what is behind is lent no more.
    /// Answers whether that changes anything.
    pub fn end_truncate(&self, size: Option<u64>) -> bool {
        let mut chunks = self.chunks.lock();
        (chunks.is_being_truncated, chunks.truncations) = (false, chunks.truncations + 1);
        size.is_some_and(|size| chunks.set_copied(size.div_ceil(CHUNK)..u64::MAX, true))
    }

    /// Whether anything in `range` is lent.
    pub fn has_from_lower(&self, range: &Range<u64>) -> bool {
        self.chunks.lock().uncopied_in(range).is_some()
    }
}

impl<L: Layer> Overlay<L> {
    /// Reads an open file so that what is read of a partial copy was all there at one moment: what
    /// is lent does not end where the file does, so whoever truncates it must not come in between.
    /// The content must not be locked.
    pub(super) fn read_lent<T>(
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

    /// Whether a file of a lower layer may be copied in part, of which `keep` bytes are needed.
    /// `from` has its data, which must be its own: the digest is of one file.
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

    /// Puts a copy without data, built as `temp` in the work directory, beside its place. Nobody
    /// sees a difference. The content must be locked.
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
        self.keeping_times(&place.parent, &to, |dir| {
            upper.rename(&open, temp, dir, &partial.name, RenameMode::Replace)
        })?;
        drop(parent);
        let partial = Arc::new(partial);
        let mut state = node.state.lock();
        let ino = *state.ino.get_or_insert_with(|| self.number(before));
        state.attr = Some(Stat { dev: copy.dev, ino: copy.ino, ..*before });
        partial.chunks.lock().keep_free(promise);
        self.record_partial(node, &mut state, partial.clone(), copy, ino);
        let from_lower = Some(FromLower { partial, source });
        let open = Arc::new(OpenFile { file, access: Access::ReadWrite, dir: to, from_lower });
        let open = if state.users > 0 { Some(open) } else { None };
        let _closed = std::mem::replace(&mut state.file, open);
        Ok(())
    }

    /// Makes a node that of a partial copy.
    fn record_partial(
        &self,
        node: &Arc<Node<L>>,
        state: &mut State<L>,
        partial: Arc<Partial<L>>,
        copy: &Stat,
        ino: u64,
    ) {
        self.record_copy_up(ino, copy, None);
        state.upper = true;
        self.touch_unseen(node, state);
        state.stored = Stored::Partial(partial);
        self.partials.nodes.lock().insert(node.id(), node.clone());
    }

    /// What lends to a partial copy, opened.
    pub(super) fn open_source(&self, partial: &Arc<Partial<L>>) -> Result<FromLower<L>> {
        let (dir, name) = &partial.source;
        let (dir, file) = self.open_data(dir.clone(), name, Access::Read)?;
        let source = Arc::new(OpenFile { file, access: Access::Read, dir, from_lower: None });
        Ok(FromLower { partial: partial.clone(), source })
    }

    /// Removes what there is of a partial copy that lost its name. Whoever has it open keeps it.
    pub(super) fn discard_partial(&self, node: &Arc<Node<L>>, partial: &Partial<L>) {
        self.end(node, partial);
        self.discard_part_file(&partial.dir, &partial.name);
    }

    /// Ends the need for a map.
    fn end(&self, node: &Arc<Node<L>>, partial: &Partial<L>) {
        let mapped = partial.chunks.lock().end();
        if mapped {
            self.discard_part_file(&partial.dir, &partial.map);
        }
        let _kept = self.partials.nodes.lock().remove(&node.id());
    }

    /// Removes a partial copy that means nothing, and its map. Answers whether they are gone.
    pub(super) fn discard_part(&self, dir: &LayerDir<L>, (source, name): &PartOf) -> bool {
        let Some((part, map)) = format::part_names(name, *source, self.name_max) else { return true };
        [map, part].map(|file| self.discard_part_file(dir, &file)) == [true, true]
    }

    /// As [`Overlay::remove_part_file`], where nothing depends on it. Answers whether it is gone.
    fn discard_part_file(&self, dir: &LayerDir<L>, name: &OsStr) -> bool {
        let removed = self.remove_part_file(dir, name);
        if let Err(error) = &removed {
            log::warn!("{name:?}, which nobody needs, stays in the upper layer: {error}");
        }
        removed.is_ok()
    }

    /// Removes a partial copy or a map, if it is there.
    fn remove_part_file(&self, dir: &LayerDir<L>, name: &OsStr) -> Result<()> {
        match self.stack.layer(dir).unlink(&*self.stack.open(dir)?, name) {
            Err(error) if error.errno != ENOENT => Err(error),
            _ => Ok(()),
        }
    }
}
