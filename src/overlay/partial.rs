//! Partial copies: a large file is changed without a copy of all its data.
//!
//! A partial copy is a sparse file of the upper layer, beside its place under a reserved name. It has all attributes of the file, and
//! of its data what was changed; the rest is *lent* by the lower layer, in chunks. So it looks like the original until something is
//! changed, and goes along when its directory is renamed. Tools that read the layer pass over it. It is completed, and gets its own
//! name, before it is synced, linked, renamed or copied from within the layer, and when the overlay ends: at rest there is none.
//!
//! The *map* beside it says which chunks are its own, so that nothing is lost with the daemon. It is not synced with them, so after the
//! system went down it means nothing and all chunks are lent again: what was written there was never promised.
//!
//! While there may be some, the layer has a mark at its top, so that what a daemon left that was killed is completed by the next.
//!
//! A partial copy counts only where the name shows a file of a lower layer: any object of the upper layer, and a whiteout, outdoes it.
//!
//! Locks: `Partial::chunks` and `Partials::nodes` are leaves. The former changes under the content lock of the node alone.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use syscall::error::{EEXIST, EFBIG, EIO, ENOENT, Error};

use super::Overlay;
use super::copy_up::SET_ID;
use super::names::{Slot, Upper};
use super::node::{Entry, Node, OpenFile, Place, State};
use super::progress::{PIECE, Progress};
use super::stack::{LayerDir, Stack};
use super::xattr::CAPABILITY;
use crate::format::{self, Format};
use crate::layer::{Access, Allocation, Kind, Layer, Object, RenameMode, Result, Stat, Time, write_all};
use crate::sync::Lock;

/// From this size on a file is copied in part.
pub(super) const PARTIAL_FROM: u64 = 1 << 20;

/// And from this size on whole again, so that the map of any partial copy fits into memory.
const PARTIAL_UNTIL: u64 = 16 << 40;

/// The epoch of a map that means something also after the system went down, since it is synced after the data.
const FOR_GOOD: u128 = 0;

/// The unit in which data is lent.
const CHUNK: u64 = 64 << 10;

/// How much is copied at once while a copy is completed, between which others can write.
const AT_ONCE: u64 = 4 << 20;

/// The part of a map before its bits: the layer's epoch, and a time.
const HEADER: usize = 32;

/// A partial copy.
pub(super) struct Partial<L: Layer> {
    /// The directory of the upper layer that it is in, and its name and the map's there.
    pub dir: Arc<LayerDir<L>>,
    pub name: Arc<OsStr>,
    map: OsString,
    /// The file that lends, as an entry of a lower directory.
    source: Entry<L>,
    chunks: Lock<Chunks>,
}

struct Chunks {
    /// How many bytes the source has. What is behind is the copy's own.
    size: u64,
    /// A bit for each chunk that is the copy's own, the lowest bit of a byte first.
    own: Vec<u8>,
    /// What the time of last change is to be, while data is copied that callers do not change.
    mtime: Option<Time>,
    /// Whether there is a map.
    mapped: bool,
    /// Whether the map lacks what was cut off, which must be in it before the copy grows again.
    unsaved: bool,
    /// Whether the map is to mean something also after the system went down.
    for_good: bool,
    /// Whether the copy has lost its reserved name, so that nobody needs a map.
    ended: bool,
}

/// What an open partial copy reads what it does not have from.
pub(super) struct Lent<L: Layer> {
    pub partial: Arc<Partial<L>>,
    pub source: Arc<OpenFile<L>>,
}

/// The partial copies of an overlay.
pub(super) struct Partials<L: Layer> {
    /// Those that were met, by the node's id.
    nodes: Lock<HashMap<u64, Arc<Node<L>>>>,
    /// Whether there are to be none.
    unwanted: bool,
    /// Whether the upper layer has the mark.
    marked: AtomicBool,
    /// Whether it had it at the start, so that there may be some that were not met.
    left: bool,
}

impl<L: Layer> Partials<L> {
    /// Those of an overlay that begins: `unwanted`, or not to be had in an upper layer of this format. Lower layers with the mark are
    /// complained about.
    pub fn new(stack: &Stack<L>, unwanted: bool, format: Format) -> Result<Self> {
        for root in stack.lower_roots().iter().filter(|root| is_marked(stack, root)) {
            log::warn!(
                "an overlay did not complete layer {}: large files that it changed show as they were before",
                root.index()
            );
        }
        // They need reserved names.
        let possible = format == Format::Oci;
        let left = possible && stack.upper_root().is_some_and(|root| is_marked(stack, root));
        let unwanted = unwanted || !possible;
        Ok(Partials { nodes: Lock::new(HashMap::new()), unwanted, marked: AtomicBool::new(left), left })
    }
}

fn is_marked<L: Layer>(stack: &Stack<L>, root: &LayerDir<L>) -> bool {
    stack.stat(root, OsStr::new(format::PARTS)).is_ok()
}

impl Chunks {
    fn new(size: u64) -> Self {
        let own = vec![0; size.div_ceil(CHUNK).div_ceil(8) as usize];
        Chunks { size, own, mtime: None, mapped: false, unsaved: false, for_good: false, ended: false }
    }

    fn is_own(&self, chunk: u64) -> bool {
        chunk * CHUNK >= self.size || self.own[(chunk / 8) as usize] & 1 << (chunk % 8) != 0
    }

    /// Notes whether chunks are the copy's own. Answers whether any of them was not so before.
    fn set_own(&mut self, chunks: Range<u64>, own: bool) -> bool {
        let mut changed = false;
        for chunk in chunks.start..chunks.end.min(self.size.div_ceil(CHUNK)) {
            changed |= self.is_own(chunk) != own;
            let (byte, bit) = ((chunk / 8) as usize, 1 << (chunk % 8));
            self.own[byte] = if own { self.own[byte] | bit } else { self.own[byte] & !bit };
        }
        changed
    }

    /// Whether the byte at `offset` is lent, and up to where that is so; it is not looked further than `until`.
    fn run(&self, offset: u64, until: u64) -> (bool, u64) {
        let lent = !self.is_own(offset / CHUNK) && offset < self.size;
        if offset >= self.size {
            return (false, u64::MAX);
        }
        let mut chunk = offset / CHUNK + 1;
        let last = self.size.min(until);
        while chunk * CHUNK < last && self.is_own(chunk) != lent {
            chunk += 1;
        }
        match chunk * CHUNK {
            end if end < self.size => (lent, end),
            _ if lent => (lent, self.size),
            _ => (lent, u64::MAX),
        }
    }

    /// The map's content.
    fn map(&self, epoch: u128) -> Vec<u8> {
        let time = self.mtime.unwrap_or_default();
        let is_set = u32::from(self.mtime.is_some());
        let header =
            [&epoch.to_le_bytes()[..], &time.sec.to_le_bytes(), &time.nsec.to_le_bytes(), &is_set.to_le_bytes()];
        [&header.concat()[..], &self.own].concat()
    }

    /// Takes over what a map says, if it is whole and of this epoch.
    fn read_map(&mut self, map: &[u8], epoch: Option<u128>) -> bool {
        let Some((header, own)) = map.split_at_checked(HEADER).filter(|(_, own)| own.len() == self.own.len()) else {
            return false;
        };
        let field = |range: Range<usize>| header[range].iter().rfold(0, |number, byte| number << 8 | u128::from(*byte));
        let written = field(0..16);
        if written != FOR_GOOD && epoch != Some(written) {
            return false;
        }
        self.for_good = written == FOR_GOOD;
        self.own.copy_from_slice(own);
        self.mtime = (field(28..32) == 1).then(|| Time { sec: field(16..24) as i64, nsec: field(24..28) as u32 });
        self.mapped = true;
        true
    }

    /// The first chunks in `range` that are lent, one after the other.
    fn lent_in(&self, range: &Range<u64>) -> Option<Range<u64>> {
        if range.start >= self.size {
            return None;
        }
        let last = range.end.min(self.size).div_ceil(CHUNK);
        let start = (range.start / CHUNK..last).find(|chunk| !self.is_own(*chunk))?;
        let end = (start..last).find(|chunk| self.is_own(*chunk)).unwrap_or(last);
        Some(start..end)
    }
}

/// How long the map of a partial copy of a file with so many bytes is. None: there is no partial copy of a file that large.
pub(crate) fn map_len(size: u64) -> Option<usize> {
    (size < PARTIAL_UNTIL).then(|| HEADER + Chunks::new(size).own.len())
}

/// Whether such a map says anything while the layer has this epoch.
pub(crate) fn means_something(map: &[u8], size: u64, epoch: Option<u128>) -> bool {
    Chunks::new(size).read_map(map, epoch)
}

impl<L: Layer> Partial<L> {
    /// That of the file `source`, which has `size` bytes, for the name `name` of `dir`. None if the reserved names would be too long.
    pub fn new(dir: Arc<LayerDir<L>>, name: &OsStr, name_max: usize, source: Entry<L>, size: u64) -> Option<Self> {
        let (name, map) = format::part_names(name, name_max)?;
        Some(Partial { dir, name: name.into(), map, source, chunks: Lock::new(Chunks::new(size)) })
    }

    /// Whether the byte at `offset` is lent, and up to where that is so; it is not looked further than `until`.
    pub fn run(&self, offset: u64, until: u64) -> (bool, u64) {
        self.chunks.lock().run(offset, until)
    }

    /// Whether anything in `range` is lent.
    pub fn lends(&self, range: &Range<u64>) -> bool {
        self.chunks.lock().lent_in(range).is_some()
    }
}

impl<L: Layer> Overlay<L> {
    /// Whether a file of a lower layer may be copied in part, of which `keep` bytes are needed.
    pub(super) fn may_be_partial(&self, node: &Arc<Node<L>>, attr: &Stat, xattrs: &[OsString], keep: u64) -> bool {
        let able = self.stack.upper().is_some_and(|upper| upper.capabilities().sparse);
        let state = node.state.lock();
        let named = state.places.first().is_some_and(|place| format::part_names(&place.name, self.name_max).is_some());
        able && named
            && !self.partials.unwanted
            && node.kind() == Kind::File
            && attr.nlink == 1
            && attr.size.min(keep) >= PARTIAL_FROM
            && attr.size < PARTIAL_UNTIL
            && xattrs.iter().all(|name| name != CAPABILITY)
    }

    /// Before an attribute is set: completes a partial copy if the writing of its data would take it again.
    pub(super) fn complete_for(&self, node: &Arc<Node<L>>, xattr: &OsStr) -> Result<()> {
        if xattr == CAPABILITY { self.complete(node) } else { Ok(()) }
    }

    /// Puts a copy without data, built as `temp` in the work directory, beside its place. Nobody sees a difference. The content must be
    /// locked.
    pub(super) fn put_partial_in_place(
        &self,
        node: &Arc<Node<L>>,
        before: &Stat,
        copy: &Stat,
        temp: &OsStr,
        file: L::File,
        source: Arc<OpenFile<L>>,
    ) -> Result<()> {
        let (upper, work) = self.upper()?;
        let _tree = self.tree.read();
        let place = node.state.lock().places.first().cloned().ok_or(Error::new(EIO))?;
        self.mark_partials()?;
        let parent = place.parent.dir()?;
        let to = self.known_upper(&parent)?;
        let lender = (place.dir.clone(), place.name.clone());
        let partial =
            Partial::new(to.clone(), &place.name, self.name_max, lender, before.size).ok_or(Error::new(EIO))?;
        let open = self.stack.open(work.dir())?;
        self.keeping_times(&place.parent, &to, |dir| {
            upper.rename(&open, temp, dir, &partial.name, RenameMode::Replace)
        })?;
        drop(parent);
        let partial = Arc::new(partial);
        let mut state = node.state.lock();
        let ino = *state.ino.get_or_insert_with(|| self.inodes.assign(before.dev, before.ino));
        state.attr = Some(Stat { dev: copy.dev, ino: copy.ino, ..*before });
        self.lend(node, &mut state, partial.clone(), copy, ino);
        let lent = Some(Lent { partial, source });
        let open = Arc::new(OpenFile { file, writable: true, dir: to, lent });
        let open = if state.users > 0 { Some(open) } else { None };
        let _closed = std::mem::replace(&mut state.file, open);
        Ok(())
    }

    /// Makes a node that of a partial copy.
    fn lend(&self, node: &Arc<Node<L>>, state: &mut State<L>, partial: Arc<Partial<L>>, copy: &Stat, ino: u64) {
        self.copied(ino, copy, None);
        state.upper = true;
        state.stale = true;
        state.partial = Some(partial);
        self.partials.nodes.lock().insert(node.id(), node.clone());
    }

    /// The node of a name that has a partial copy, left by a daemon that was killed. `from` is the lower directory that has the name. None if it
    /// is none, and is removed.
    pub(super) fn load_partial(
        &self,
        parent: &Arc<Node<L>>,
        to: &Arc<LayerDir<L>>,
        from: &Arc<LayerDir<L>>,
        name: &OsStr,
    ) -> Result<Option<Arc<Node<L>>>> {
        let lower = self.stack.stat(from, name)?;
        if lower.size >= PARTIAL_UNTIL {
            return Err(Error::new(EFBIG));
        }
        let lender = (from.clone(), name.into());
        let partial = Partial::new(to.clone(), name, self.name_max, lender, lower.size).ok_or(Error::new(EIO))?;
        let partial = Arc::new(partial);
        let mut copy = self.stack.stat(to, &partial.name)?;
        if copy.nlink > 1 {
            // It was completed and renamed, but after the system went down has its first name too, as btrfs may leave it: the file is the other
            // name's, and no data may be taken out of it.
            self.discard_parts_of(to, name);
            return Ok(None);
        }
        let map = self.read_map(&partial)?;
        let valid = map.as_ref().is_some_and(|map| {
            let epoch = self.stack.layer(to).epoch();
            partial.chunks.lock().read_map(map, epoch)
        });
        if !valid {
            if map.is_some() {
                self.discard_part_file(to, &partial.map);
            }
            self.empty_part(&partial, &copy)?;
        }
        self.own_end(&partial, &copy)?;
        let (mtime, is_cut) = {
            let mut chunks = partial.chunks.lock();
            // What was cut off is not lent any more, also if there was no time to say so.
            let is_cut = chunks.set_own(copy.size.div_ceil(CHUNK)..u64::MAX, true);
            (chunks.mtime.take(), is_cut)
        };
        if let Some(mtime) = mtime {
            let open = self.stack.open(to)?;
            self.stack.layer(to).set_times(Object::Entry(&*open, &partial.name), copy.atime, mtime)?;
            copy.mtime = mtime;
        }
        if mtime.is_some() || is_cut {
            self.save_map_within(parent, &partial)?;
        }
        let place = Place { parent: parent.clone(), name: name.into(), dir: from.clone() };
        let ino = self.inodes.assign(lower.dev, lower.ino);
        let node = Node::new(self.new_id(), Kind::File, State::at(place, true, Some(copy)), None);
        {
            let mut state = node.state.lock();
            state.ino = Some(ino);
            self.lend(&node, &mut state, partial, &copy, ino);
        }
        Ok(Some(node))
    }

    /// Takes out of a partial copy whose map is lost what it has where the original lends: nobody knows which of it was there.
    fn empty_part(&self, partial: &Partial<L>, copy: &Stat) -> Result<()> {
        let layer = self.stack.layer(&partial.dir);
        let file = layer.open_file(&*self.stack.open(&partial.dir)?, &partial.name, Access::ReadWrite)?;
        let lent = 0..partial.chunks.lock().size.min(copy.size);
        if layer.next_data(&file, 0)?.is_none_or(|data| data.start >= lent.end) {
            return Ok(());
        }
        layer.allocate(&file, Allocation::PunchHole, lent)?;
        layer.set_times(Object::File(&file), copy.atime, copy.mtime)
    }

    /// Makes the chunk that a partial copy ends in its own if it was cut there, but its map, which said so, is lost: what is lent reaches to the end
    /// of its chunk. Whether that is written down does not matter, as the next mount would do the same.
    fn own_end(&self, partial: &Arc<Partial<L>>, copy: &Stat) -> Result<()> {
        let last = copy.size / CHUNK;
        let is_cut = copy.size < partial.chunks.lock().size && !copy.size.is_multiple_of(CHUNK);
        if !is_cut || !partial.lends(&(last * CHUNK..copy.size)) {
            return Ok(());
        }
        let layer = self.stack.layer(&partial.dir);
        let file = layer.open_file(&*self.stack.open(&partial.dir)?, &partial.name, Access::ReadWrite)?;
        let lent = self.open_lent(partial)?;
        self.copy_data(&lent.source, &file, last * CHUNK..copy.size, &mut |_| {})?;
        layer.set_times(Object::File(&file), copy.atime, copy.mtime)?;
        if partial.chunks.lock().for_good {
            layer.sync(&file)?;
        }
        partial.chunks.lock().set_own(last..last + 1, true);
        Ok(())
    }

    /// What is in a map, if there is one.
    fn read_map(&self, partial: &Partial<L>) -> Result<Option<Vec<u8>>> {
        let layer = self.stack.layer(&partial.dir);
        let file = match layer.open_file(&*self.stack.open(&partial.dir)?, &partial.map, Access::Read) {
            Err(error) if error.errno == ENOENT => return Ok(None),
            file => file?,
        };
        let mut content = vec![0; HEADER + partial.chunks.lock().own.len()];
        let read = layer.read_at(&file, &mut content, 0)?;
        content.truncate(read);
        Ok(Some(content))
    }

    /// What lends to a partial copy, opened.
    pub(super) fn open_lent(&self, partial: &Arc<Partial<L>>) -> Result<Lent<L>> {
        let (dir, name) = &partial.source;
        let (dir, file) = self.open_data(dir.clone(), name, Access::Read)?;
        let source = Arc::new(OpenFile { file, writable: false, dir, lent: None });
        Ok(Lent { partial: partial.clone(), source })
    }

    /// Before bytes in `range` are changed: makes the copy's own what is lent there, which nobody sees. The content must be locked.
    pub(super) fn own(&self, node: &Arc<Node<L>>, open: &OpenFile<L>, range: Range<u64>) -> Result<()> {
        let Some(Lent { partial, source }) = &open.lent else { return Ok(()) };
        if partial.chunks.lock().unsaved {
            self.save_map(node, partial)?;
        }
        loop {
            let (chunks, size) = {
                let chunks = partial.chunks.lock();
                (chunks.lent_in(&range), chunks.size)
            };
            let Some(chunks) = chunks else { return Ok(()) };
            let bytes = chunks.start * CHUNK..(chunks.end * CHUNK).min(size);
            self.copy_data(source, &open.file, bytes, &mut |_| {})?;
            if partial.chunks.lock().for_good {
                self.upper()?.0.sync(&open.file)?;
            }
            self.take_over(node, partial, chunks)?;
        }
    }

    /// After the copy was truncated to `size` bytes, before which [`Overlay::own`] was called for the last one: what is behind is
    /// lent no more. If that cannot be written down now it is later: as long as the copy is no larger its size says the same.
    pub(super) fn cut(&self, node: &Arc<Node<L>>, open: &OpenFile<L>, size: u64) {
        let Some(Lent { partial, .. }) = &open.lent else { return };
        let changed = partial.chunks.lock().set_own(size.div_ceil(CHUNK)..u64::MAX, true);
        if changed && let Err(error) = self.save_map(node, partial) {
            log::warn!("the map of a file that was cut is to be written again: {error}");
            partial.chunks.lock().unsaved = true;
        }
    }

    /// Notes that chunks that were lent are the copy's own.
    fn take_over(&self, node: &Arc<Node<L>>, partial: &Partial<L>, chunks: Range<u64>) -> Result<()> {
        partial.chunks.lock().set_own(chunks.clone(), true);
        let saved = self.save_map(node, partial);
        if saved.is_err() {
            partial.chunks.lock().set_own(chunks, false);
        }
        saved
    }

    /// Writes the map of a partial copy that has its reserved name.
    fn save_map(&self, node: &Arc<Node<L>>, partial: &Partial<L>) -> Result<()> {
        if partial.chunks.lock().ended {
            return Ok(());
        }
        let _tree = self.tree.read();
        let (parent, _) = self.parent(node).ok_or(Error::new(EIO))?;
        // The map gets its name.
        let is_new = !partial.chunks.lock().mapped;
        let _dir = if is_new { Some(parent.dir()?) } else { None };
        self.save_map_within(&parent, partial)
    }

    /// As [`Overlay::save_map`], of a copy in `parent`, where the tree is locked already, and that directory unless there is a map.
    fn save_map_within(&self, parent: &Arc<Node<L>>, partial: &Partial<L>) -> Result<()> {
        let upper = self.stack.layer(&partial.dir);
        let (content, mapped, for_good) = {
            let known = partial.chunks.lock();
            let epoch = if known.for_good { Some(FOR_GOOD) } else { upper.epoch() };
            let Some(epoch) = epoch else { return Ok(()) };
            (known.map(epoch), known.mapped, known.for_good)
        };
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
        write_all(upper, &file, &content, 0)?;
        if for_good {
            upper.sync(&file)?;
        }
        partial.chunks.lock().unsaved = false;
        Ok(())
    }

    /// Completes a partial copy and gives it its own name. Does nothing for anything else.
    ///
    /// The caller must hold neither the tree nor the content of any node.
    pub(super) fn complete(&self, node: &Arc<Node<L>>) -> Result<()> {
        let Some(partial) = node.state.lock().partial.clone() else { return Ok(()) };
        let open = self.file(node, Access::ReadWrite)?;
        let size = partial.chunks.lock().size;
        let path = self.path(node).unwrap_or_default();
        let mut progress = Progress::new(path, size, Instant::now());
        let mut at = 0;
        loop {
            let _content = node.content.lock();
            if node.state.lock().partial.is_none() {
                return Ok(());
            }
            if at >= size {
                if size > PIECE {
                    log::info!("{}", progress.done(Instant::now()));
                }
                return self.put_whole_in_place(node, &partial, &open);
            }
            self.fill(node, &open, at..at + AT_ONCE)?;
            at += AT_ONCE;
            if let Some(said) = progress.copied(at.min(size), Instant::now()) {
                log::info!("{said}");
            }
        }
    }

    /// Copies what is lent in `range`, though nothing is changed there. The content must be locked.
    pub(super) fn fill(&self, node: &Arc<Node<L>>, open: &OpenFile<L>, range: Range<u64>) -> Result<()> {
        let (upper, _) = self.upper()?;
        let Some(Lent { partial, .. }) = open.lent.as_ref().filter(|lent| lent.partial.lends(&range)) else {
            return Ok(());
        };
        let Stat { atime, mtime, mode, .. } = self.stat(node)?;
        partial.chunks.lock().mtime = Some(mtime);
        let filled = self.save_map(node, partial).and_then(|()| self.own(node, open, range));
        // Also of what was copied before it failed nobody is to see anything.
        let mended = (|| {
            if mode & SET_ID != 0 {
                upper.set_mode(Object::File(&open.file), mode)?;
            }
            upper.set_times(Object::File(&open.file), atime, mtime)
        })();
        partial.chunks.lock().mtime = None;
        let saved = self.save_map(node, partial);
        filled.and(mended).and(saved)
    }

    /// Gives a copy that is complete its own name. The content must be locked.
    fn put_whole_in_place(&self, node: &Arc<Node<L>>, partial: &Partial<L>, open: &OpenFile<L>) -> Result<()> {
        let (upper, work) = self.upper()?;
        work.sync(upper, &open.file)?;
        let _tree = self.tree.read();
        let place = node.state.lock().places.first().cloned().ok_or(Error::new(EIO))?;
        let mut parent = place.parent.dir()?;
        let mut ino = None;
        self.keeping_times(&place.parent, &partial.dir, |dir| {
            // Until it is known where the object is now, nobody asks for it by its name.
            let mut state = node.state.lock();
            upper.rename(dir, &partial.name, dir, &place.name, RenameMode::Replace)?;
            if let Some(place) = state.places.first_mut() {
                place.dir = partial.dir.clone();
            }
            (state.partial, state.stale) = (None, true);
            ino = state.attr.map(|attr| attr.ino);
            drop(state);
            self.end(node, partial);
            Ok(())
        })?;
        self.read_dir(&place.parent, &mut parent)?.entry(&place.name).upper = Some(Upper { kind: Kind::File, ino });
        Ok(())
    }

    /// Removes what there is of a partial copy that lost its name. Whoever has it open keeps it.
    pub(super) fn discard_partial(&self, node: &Arc<Node<L>>, partial: &Partial<L>) {
        self.end(node, partial);
        self.discard_part_file(&partial.dir, &partial.name);
    }

    /// Ends the need for a map.
    fn end(&self, node: &Arc<Node<L>>, partial: &Partial<L>) {
        let mapped = {
            let mut chunks = partial.chunks.lock();
            chunks.ended = true;
            std::mem::take(&mut chunks.mapped)
        };
        if mapped {
            self.discard_part_file(&partial.dir, &partial.map);
        }
        let _kept = self.partials.nodes.lock().remove(&node.id());
    }

    /// Removes the partial copy of a name that shows something else, and its map.
    pub(super) fn discard_parts_of(&self, dir: &LayerDir<L>, name: &OsStr) {
        let Some((part, map)) = format::part_names(name, self.name_max) else { return };
        for file in [map, part] {
            self.discard_part_file(dir, &file);
        }
    }

    /// Removes a partial copy or a map, if it is there.
    fn discard_part_file(&self, dir: &LayerDir<L>, name: &OsStr) {
        let removed = self.stack.open(dir).and_then(|open| self.stack.layer(dir).unlink(&open, name));
        if let Err(error) = removed
            && error.errno != ENOENT
        {
            log::warn!("{name:?}, which nobody needs, stays in the upper layer: {error}");
        }
    }

    /// Puts the mark at the top of the upper layer, unless it is there. The tree must be locked.
    fn mark_partials(&self) -> Result<()> {
        if self.partials.marked.load(Ordering::Acquire) {
            return Ok(());
        }
        let (upper, _) = self.upper()?;
        let root = self.stack.upper_root().ok_or(Error::new(EIO))?;
        let _dir = self.root.dir()?;
        self.keeping_times(&self.root, root, |dir| {
            match upper.create_file(dir, OsStr::new(format::PARTS), 0o600, upper.identity()) {
                Err(error) if error.errno != EEXIST => Err(error),
                _ => Ok(()),
            }
        })?;
        self.partials.marked.store(true, Ordering::Release);
        Ok(())
    }

    /// Completes every partial copy, at the end of the overlay.
    pub(super) fn complete_all(&self) {
        let done = self.try_complete_all().and_then(|()| match self.partials.marked.load(Ordering::Acquire) {
            true => self.unmark_partials(),
            false => Ok(()),
        });
        if let Err(error) = done {
            log::warn!(
                "the upper layer has files of which only an overlay knows the rest, until the next one ends: {error}"
            );
        }
    }

    fn try_complete_all(&self) -> Result<()> {
        if self.partials.left {
            self.meet_partials()?;
        }
        let nodes: Vec<_> = self.partials.nodes.lock().values().cloned().collect();
        let completed =
            nodes.iter().map(|node| self.complete(node).or_else(|error| self.keep_for_good(node).and(Err(error))));
        // One that cannot be completed, for want of space maybe, is no reason to leave the others.
        completed.collect::<Vec<_>>().into_iter().collect()
    }

    /// Brings a partial copy to the disk as it is, since nobody knows when it can be completed.
    fn keep_for_good(&self, node: &Arc<Node<L>>) -> Result<()> {
        let _content = node.content.lock();
        let Some(partial) = node.state.lock().partial.clone() else { return Ok(()) };
        let (upper, _) = self.upper()?;
        upper.sync(&self.file(node, Access::ReadWrite)?.file)?;
        partial.chunks.lock().for_good = true;
        self.save_map(node, &partial)?;
        let open = {
            let _tree = self.tree.read();
            self.stack.open(&partial.dir)?
        };
        upper.sync_dir(&open)
    }

    fn unmark_partials(&self) -> Result<()> {
        let (upper, _) = self.upper()?;
        let root = self.stack.upper_root().ok_or(Error::new(EIO))?;
        let _tree = self.tree.read();
        let _dir = self.root.dir()?;
        self.keeping_times(&self.root, root, |dir| upper.unlink(dir, OsStr::new(format::PARTS)))
    }

    /// Looks up every partial copy in the upper layer.
    fn meet_partials(&self) -> Result<()> {
        let mut dirs = vec![self.root.clone()];
        while let Some(dir) = dirs.pop() {
            let names: Vec<_> = {
                let _tree = self.tree.read();
                let mut content = dir.dir()?;
                let slots = self.read_dir(&dir, &mut content)?.after(0);
                let in_upper = |slot: &Slot<L>| slot.upper.is_some_and(|upper| upper.kind == Kind::Dir);
                slots.filter(|(_, slot)| slot.part || in_upper(slot)).map(|(_, slot)| slot.name.clone()).collect()
            };
            for name in names {
                let child = self.lookup(&dir, &name)?;
                if child.kind() == Kind::Dir {
                    dirs.push(child);
                }
            }
        }
        Ok(())
    }
}
