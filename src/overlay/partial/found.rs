//! Partial copies that a killed daemon left.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{EFBIG, ENOENT, Error};

use super::chunks::CHUNK;
use super::{PARTIAL_UNTIL, Partial};
use crate::format::PartOf;
use crate::layer::{Access, Allocation, Kind, Layer, Object, Result, Stat};
use crate::overlay::Overlay;
use crate::overlay::index::{Origin, origin};
use crate::overlay::node::{Node, ObjectName, State};
use crate::overlay::stack::LayerDir;

impl<L: Layer> Overlay<L> {
    /// Whether `from` has the source of a partial copy. `from` is the lower directory that has a
    /// file of its name, if there is one.
    pub(in crate::overlay) fn has_source(
        &self,
        from: Option<&Arc<LayerDir<L>>>,
        (source, name): &PartOf,
    ) -> Result<bool> {
        match (from, source) {
            (Some(from), Some(source)) => Ok(origin(&self.stack, from, &self.stack.stat(from, name)?) == *source),
            (from, None) => Ok(from.is_some()),
            (None, Some(_)) => Ok(false),
        }
    }

    /// Returns the node of a name with a partial copy that a killed daemon left. `from` is the
    /// lower directory with that name. Returns None if the copy is obsolete, and removes it.
    pub(in crate::overlay) fn load_partial(
        &self,
        parent: &Arc<Node<L>>,
        to: &Arc<LayerDir<L>>,
        from: &Arc<LayerDir<L>>,
        name: &OsStr,
    ) -> Result<Option<Arc<Node<L>>>> {
        let lower = self.stack.stat(from, name)?;
        let (digest, partial, mut copy) = self.find_part(to, from, name, &lower)?;
        if copy.nlink > 1 {
            // The copy was completed and renamed. After a crash of the system it has its first name
            // too, as btrfs may leave it. The data belongs to the other name, so nothing may remove
            // it.
            self.discard_part(to, &(digest, name.to_owned()));
            return Ok(None);
        }
        let map = self.read_map(&partial)?;
        let valid = map.as_ref().is_some_and(|map| {
            let epoch = self.stack.layer(to).epoch();
            partial.chunks.lock().read_map(map, epoch)
        });
        if !valid {
            if map.is_some() {
                self.remove_part_file(to, &partial.map)?;
            }
            self.empty_part(&partial, &copy)?;
        }
        self.copy_last_chunk(&partial, &copy)?;
        let (mtime, is_truncated) = {
            let mut chunks = partial.chunks.lock();
            // Chunks behind the end no longer come from the source, also if the map does not say
            // so.
            let is_truncated = chunks.set_copied(copy.size.div_ceil(CHUNK)..u64::MAX, true);
            (chunks.mtime.take(), is_truncated)
        };
        if let Some(mtime) = mtime {
            let open = self.stack.open(to)?;
            self.stack.layer(to).set_times(Object::Entry(&*open, &partial.name), copy.atime, mtime)?;
            copy.mtime = mtime;
        }
        if mtime.is_some() || is_truncated {
            self.save_map_within(parent, &partial)?;
        }
        {
            let mut chunks = partial.chunks.lock();
            let promise = self.room.promise(chunks.uncopied_bytes());
            chunks.keep_free(promise);
        }
        let place = ObjectName { parent: parent.clone(), name: name.into(), dir: from.clone() };
        let ino = self.number_of_part(&place, &lower, (&partial, &copy))?;
        let id = self.id_at(&place, Some(ino));
        let node = Node::new(id, Kind::File, State::at(place, true, Some(copy)), None);
        self.record_number(ino, &lower, &copy);
        {
            let mut state = node.state.lock();
            state.ino = Some(ino);
            self.record_partial(&node, &mut state, partial, (&lower, &copy), ino);
        }
        Ok(Some(node))
    }

    /// Returns the number that a partial copy at `place` shows: the recorded one, or that of
    /// `lower`. A copy in a frozen layer may have a record of the same number, of which one counts.
    pub(super) fn number_of_part(
        &self,
        place: &ObjectName<L>,
        lower: &Stat,
        (partial, copy): (&Partial<L>, &Stat),
    ) -> Result<u64> {
        if self.resolve_claim(&partial.dir, &partial.name, copy)? {
            return Ok(self.number(copy));
        }
        self.resolve_claim(&place.dir, &place.name, lower)?;
        Ok(self.number(lower))
    }

    /// Finds the partial copy in `to` for the entry `name` of `from`, which has the attributes
    /// `lower`. Returns the digest in its name, the copy and its attributes.
    pub(super) fn find_part(
        &self,
        to: &Arc<LayerDir<L>>,
        from: &Arc<LayerDir<L>>,
        name: &OsStr,
        lower: &Stat,
    ) -> Result<(Option<Origin>, Arc<Partial<L>>, Stat)> {
        if lower.size >= PARTIAL_UNTIL {
            return Err(Error::new(EFBIG));
        }
        let part_of = |digest| {
            let source = (from.clone(), name.into());
            let partial =
                Partial::new(to.clone(), self.name_max, source, digest, lower.size).ok_or(Error::new(ENOENT))?;
            self.stack.stat(to, &partial.name).map(|copy| (digest, Arc::new(partial), copy))
        };
        match part_of(Some(origin(&self.stack, from, lower))) {
            // A copy with a name that does not tell the source.
            Err(error) if error.errno == ENOENT => part_of(None),
            part => part,
        }
    }

    /// Removes the data that a partial copy has in the range of the source. Its map is lost, so it
    /// is unknown which chunks were copied.
    fn empty_part(&self, partial: &Partial<L>, copy: &Stat) -> Result<()> {
        let layer = self.stack.layer(&partial.dir);
        let file = layer.open_file(&*self.stack.open(&partial.dir)?, &partial.name, Access::ReadWrite)?;
        let from_lower = 0..partial.chunks.lock().size.min(copy.size);
        if layer.next_data(&file, 0)?.is_none_or(|data| data.start >= from_lower.end) {
            return Ok(());
        }
        layer.allocate(&file, Allocation::PunchHole, from_lower)?;
        layer.set_times(Object::File(&file), copy.atime, copy.mtime)
    }

    /// Copies the last chunk of a partial copy that was truncated within it, if the map with that
    /// fact is lost. Otherwise the source's data would show to the end of the chunk. The map need
    /// not record this, since the next mount would do the same.
    fn copy_last_chunk(&self, partial: &Arc<Partial<L>>, copy: &Stat) -> Result<()> {
        let last = copy.size / CHUNK;
        let is_truncated = copy.size < partial.chunks.lock().size && !copy.size.is_multiple_of(CHUNK);
        if !is_truncated || !partial.has_from_lower(&(last * CHUNK..copy.size)) {
            return Ok(());
        }
        let layer = self.stack.layer(&partial.dir);
        let file = layer.open_file(&*self.stack.open(&partial.dir)?, &partial.name, Access::ReadWrite)?;
        let from_lower = self.open_source(partial)?;
        self.copy_data(&from_lower.source, &file, last * CHUNK..copy.size, &mut |_| {})?;
        layer.set_times(Object::File(&file), copy.atime, copy.mtime)?;
        if partial.chunks.lock().for_good {
            layer.sync(&file)?;
        }
        partial.chunks.lock().set_copied(last..last + 1, true);
        Ok(())
    }
}
