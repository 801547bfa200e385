//! Times of last change of status (ctime), as programs saw them.
//!
//! No layer allows this time to be set. It dates the last change in the layer, also one that the
//! overlay made on its own. So the engine remembers the time that it showed beside the layer's time
//! that it stands for. While the layer's time is the same, the object has not changed, and shows
//! that time. A forgotten pair costs little: the shown time moves to that of the layer's change.
//!
//! Until the engine reads the layer's time again, the time to show is in the object's state
//! (`State::ctime`), which costs no call. Between mounts the table is a file in the work directory
//! (`docs/format.md`).
//!
//! The locks here are leaves.

use std::ffi::OsStr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use crate::errno::{EIO, ENOENT, Error};

use super::Overlay;
use super::compact::CompactMap;
use super::node::{Node, State};
use super::work::{Work, replace_file};
use crate::format;
use crate::layer::{Access, Kind, Layer, Object, Result, Stat, Time};
use crate::sync::Lock;

/// The file of the table.
pub const CTIMES: &str = "ctimes";
/// The name of that file while the engine writes it.
const NEW_CTIMES: &str = "tmp.ctimes";

/// The size of one half of the table. The table keeps at least this many of the latest objects, and
/// at most three times as many after a mount.
const MOST: usize = 7 << 14;

/// The bytes of a record: inode number, seconds of the layer, shown seconds, both nanoseconds.
const RECORD: usize = 32;
/// The bytes of the digest, in front of the records.
const HEADER: usize = 16;

/// The number of records that are read at once.
const PIECE: usize = 1 << 11;

/// A time of the layer, and the time to show in its place.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(Rust, packed(4))]
struct Pair {
    layer_sec: i64,
    shown_sec: i64,
    layer_nsec: u32,
    shown_nsec: u32,
}

impl Pair {
    fn new(layer: Time, shown: Time) -> Self {
        Pair { layer_sec: layer.sec, shown_sec: shown.sec, layer_nsec: layer.nsec, shown_nsec: shown.nsec }
    }

    fn layer(self) -> Time {
        Time { sec: self.layer_sec, nsec: self.layer_nsec }
    }

    fn shown(self) -> Time {
        Time { sec: self.shown_sec, nsec: self.shown_nsec }
    }
}

/// The pairs, by shown inode number: a half for the latest ones, and the half from before. The old
/// half is dropped when the young one is full.
#[derive(Default)]
struct Table {
    young: CompactMap<u64, Pair>,
    old: CompactMap<u64, Pair>,
    /// Whether the table differs from the file in the work directory.
    changed: bool,
}

impl Table {
    fn get(&self, ino: u64) -> Option<Pair> {
        self.young.get(ino).or_else(|| self.old.get(ino))
    }

    fn insert(&mut self, ino: u64, pair: Pair) {
        if self.young.len() >= MOST {
            self.old = std::mem::take(&mut self.young);
        }
        self.changed |= self.young.insert(ino, pair) != Some(pair);
    }

    fn remove(&mut self, ino: u64) {
        self.changed |= self.young.remove(ino).is_some() | self.old.remove(ino).is_some();
    }
}

/// The times to show of one overlay.
#[derive(Default)]
pub struct Ctimes(Lock<Table>);

impl Ctimes {
    /// Reads the table that the last mount left in the work directory `dir`. A damaged table counts
    /// as empty.
    pub fn open<L: Layer>(upper: &L, dir: &L::Dir) -> Self {
        let ctimes = Self::default();
        ctimes.read(upper, dir);
        ctimes
    }

    /// Adds the table in the work directory `dir`, which is newer than those that were added
    /// before.
    pub fn read<L: Layer>(&self, upper: &L, dir: &L::Dir) {
        let read = || {
            let file = upper.open_file(dir, OsStr::new(CTIMES), Access::Read)?;
            let size = upper.stat(Object::File(&file))?.size;
            read_table(size, &mut |bytes, at| upper.read_at(&file, bytes, at))
        };
        match read() {
            Ok(read) => {
                let (mut table, mut read) = (self.0.lock(), read.unwrap_or_default());
                if table.old.is_empty() {
                    table.old = read;
                } else {
                    for (ino, pair) in read.sorted() {
                        table.old.insert(ino, pair);
                    }
                }
            }
            Err(error) if error.errno == ENOENT => {}
            Err(error) => log::warn!(
                "cannot read the times of last change of status of earlier mounts, files show those of the layer: \
                 {error}"
            ),
        }
    }

    /// Writes the table to the work directory for the next mount, if it has changed.
    pub fn save<L: Layer>(&self, upper: &L, dir: &L::Dir) -> Result<()> {
        let bytes = {
            let mut table = self.0.lock();
            if !std::mem::take(&mut table.changed) {
                return Ok(());
            }
            to_bytes(&mut table)
        };
        let saved = Self::write(upper, dir, &bytes);
        if saved.is_err() {
            self.0.lock().changed = true;
        }
        saved
    }

    fn write<L: Layer>(upper: &L, dir: &L::Dir, bytes: &[u8]) -> Result<()> {
        let (name, temp) = (OsStr::new(CTIMES), OsStr::new(NEW_CTIMES));
        if bytes.len() == HEADER {
            return match upper.unlink(dir, name) {
                Err(error) if error.errno != ENOENT => Err(error),
                _ => Ok(()),
            };
        }
        replace_file(upper, dir, (temp, name), [bytes].into_iter(), false)
    }

    /// Returns the time that an object shows if its layer has the time `layer`.
    pub fn shown(&self, ino: u64, layer: Time) -> Time {
        let table = self.0.lock();
        table.get(ino).filter(|pair| pair.layer() == layer).map_or(layer, Pair::shown)
    }

    /// Records that a change which is not to show moved the layer's time of an object from `before`
    /// to `now`.
    pub fn changed_unseen(&self, ino: u64, before: Time, now: Time) {
        self.keep(ino, now, self.shown(ino, before));
    }

    /// Records that an object shows `shown` while its layer has the time `layer`.
    fn keep(&self, ino: u64, layer: Time, shown: Time) {
        let mut table = self.0.lock();
        match layer == shown {
            true => table.remove(ino),
            false => table.insert(ino, Pair::new(layer, shown)),
        }
    }
}

/// Returns the bytes of the file.
fn to_bytes(Table { young, old, .. }: &mut Table) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + (young.len() + old.len()) * RECORD);
    bytes.resize(HEADER, 0);
    for (ino, pair) in young.sorted() {
        put(&mut bytes, ino, pair);
    }
    for (ino, pair) in old.sorted().filter(|(ino, _)| !young.contains(*ino)) {
        put(&mut bytes, ino, pair);
    }
    let digest = format::fnv1a(&bytes[HEADER..]);
    bytes[..HEADER].copy_from_slice(&digest.to_le_bytes());
    bytes
}

/// Adds a record.
fn put(bytes: &mut Vec<u8>, ino: u64, pair: Pair) {
    let nanos = u64::from(pair.layer_nsec) << 32 | u64::from(pair.shown_nsec);
    for word in [ino, pair.layer_sec as u64, pair.shown_sec as u64, nanos] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
}

/// Reads a file of `size` bytes with `read_at`, in pieces. Returns None if it is damaged.
fn read_table(
    size: u64,
    read_at: &mut dyn FnMut(&mut [u8], u64) -> Result<usize>,
) -> Result<Option<CompactMap<u64, Pair>>> {
    if size > (HEADER + 3 * MOST * RECORD) as u64 {
        return Err(Error::new(EIO));
    }
    let (mut header, mut piece) = ([0; HEADER], vec![0; PIECE * RECORD]);
    let (mut table, mut digest) = (CompactMap::default(), format::FNV1A_OF_NOTHING);
    let mut at = read_at(&mut header, 0)? as u64;
    loop {
        let read = read_at(&mut piece, at)?;
        at += read as u64;
        digest = format::fnv1a_behind(digest, &piece[..read]);
        for (ino, pair) in piece[..read].chunks(RECORD).filter_map(record) {
            table.insert(ino, pair);
        }
        if read < piece.len() || at >= size {
            let is_whole = at >= HEADER as u64 && (at - HEADER as u64).is_multiple_of(RECORD as u64);
            return Ok((is_whole && header == digest.to_le_bytes()).then_some(table));
        }
    }
}

/// Returns the record in these bytes, if they are all of one.
fn record(bytes: &[u8]) -> Option<(u64, Pair)> {
    let words: Vec<_> = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes)).collect();
    let [ino, layer, shown, nanos] = words[..] else { return None };
    let time = |sec, nsec: u64| Time { sec: sec as i64, nsec: (nsec & 0xffff_ffff) as u32 };
    Some((ino, Pair::new(time(layer, nanos >> 32), time(shown, nanos))))
}

impl<L: Layer> Overlay<L> {
    /// Leaves the times of regular files to the front end, which keeps them itself. From now on
    /// only [`Overlay::set_times`] and [`Overlay::set_ctime`] change the shown times. The front end
    /// may call these before or after the change that they date.
    pub fn leave_times_to_front_end(&self) {
        self.dated_by_front_end.store(true, Ordering::Relaxed);
    }

    /// Whether the front end keeps the times of an object.
    pub(super) fn is_dated_by_front_end(&self, node: &Node<L>) -> bool {
        node.kind() == Kind::File && self.dated_by_front_end.load(Ordering::Relaxed)
    }

    /// Marks the times of a changed object: the engine must ask the layer for them, unless the
    /// front end keeps them.
    pub(super) fn touch(&self, node: &Arc<Node<L>>, state: &mut State<L>) {
        let ctime = if self.is_dated_by_front_end(node) { self.shown_ctime(state) } else { None };
        self.touch_as(node, state, ctime);
    }

    /// Does the same as [`Overlay::touch`], for a change of names, owner, mode or times alone that
    /// the state already has.
    pub(super) fn redate(&self, node: &Arc<Node<L>>, state: &mut State<L>) {
        if node.kind() == Kind::Dir {
            return self.touch(node, state);
        }
        let ctime = if self.is_dated_by_front_end(node) { self.shown_ctime(state) } else { None };
        state.freshness.redate();
        self.date(node, state, ctime);
    }

    /// Marks an object that changed in its layer, where the change is not to show.
    pub(super) fn touch_unseen(&self, node: &Arc<Node<L>>, state: &mut State<L>) {
        let ctime = self.shown_ctime(state);
        self.touch_as(node, state, ctime);
    }

    /// Marks an object that changed in its layer. It shows `ctime`, or the layer's time for None.
    pub(super) fn touch_as(&self, node: &Arc<Node<L>>, state: &mut State<L>, ctime: Option<Time>) {
        match node.kind() {
            // Names that come and go change its times.
            Kind::Dir => state.freshness.change(),
            // Changes of content have their own calls.
            _ => state.freshness.change_status(),
        }
        self.date(node, state, ctime);
    }

    /// Sets the time to show until the engine has read that of the layer.
    fn date(&self, node: &Arc<Node<L>>, state: &mut State<L>, ctime: Option<Time>) {
        state.ctime = ctime;
        // The next mount finds no object without a name.
        let is_to_be_kept = ctime.is_some() && (!state.places.is_empty() || self.is_root(node));
        let mut undated = self.undated.lock();
        if is_to_be_kept {
            undated.entry(node.id()).or_insert_with(|| Arc::downgrade(node));
        } else {
            undated.remove(&node.id());
        }
    }

    /// Begins a change of a file's content in the layer. Until [`Overlay::end_change`] each request
    /// for attributes asks the layer: a thread that reads new data must not get the old size. The
    /// caller holds the content's lock.
    pub(super) fn begin_change(&self, node: &Arc<Node<L>>) {
        let mut state = node.state.lock();
        self.touch(node, &mut state);
        state.freshness.begin_content();
    }

    /// Ends a change of content, also one that failed.
    pub(super) fn end_change(&self, node: &Arc<Node<L>>, state: &mut State<L>) {
        state.freshness.end_content();
        self.touch(node, state);
    }

    /// Sets the time of last change of status that an object shows until its next change. For a
    /// front end that keeps times.
    pub fn set_ctime(&self, node: &Arc<Node<L>>, ctime: Time) {
        let ctime = self.times.kept(ctime);
        // A write-back of data from before that time comes either before or after this.
        let _content = node.content.lock();
        let mut state = node.state.lock();
        match (state.fresh_attr(), state.ino) {
            (Some(attr), Some(ino)) => self.ctimes.keep(ino, attr.ctime, ctime),
            _ => self.date(node, &mut state, Some(ctime)),
        }
    }

    /// Returns the time that an object shows, if it is known without a call of the layer.
    pub(super) fn shown_ctime(&self, state: &State<L>) -> Option<Time> {
        match (state.ctime, state.fresh_attr(), state.ino) {
            (Some(ctime), _, _) => Some(ctime),
            (None, Some(attr), Some(ino)) => Some(self.ctimes.shown(ino, attr.ctime)),
            _ => None,
        }
    }

    /// Records the time to show, once the engine has read the layer's own.
    pub(super) fn keep_ctime(&self, node: &Arc<Node<L>>, state: &mut State<L>, fresh: &Stat) {
        if let (false, Some(ino), Some(shown)) = (state.freshness.is_passing(), state.ino, state.ctime) {
            self.ctimes.keep(ino, fresh.ctime, shown);
            self.date(node, state, None);
        }
    }

    /// Writes the shown times of last change of status for the next mount.
    pub(super) fn save_ctimes(&self, work: &Work<L>) -> Result<()> {
        let undated = std::mem::take(&mut *self.undated.lock());
        for node in undated.values().filter_map(Weak::upgrade) {
            let _tree = self.tree.read();
            let mut state = node.state.lock();
            if state.ctime.is_some() {
                if let Err(error) = self.refresh(&node, &mut state) {
                    log::debug!(
                        "an object will show the layer's time of last change of status, since its attributes cannot \
                         be read: {error}"
                    );
                }
                // Unless the engine has just read the layer's own.
                let ctime = state.ctime;
                self.date(&node, &mut state, ctime);
            }
        }
        self.ctimes.save(self.stack.layer(work.dir()), &*self.stack.open(work.dir())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_table_is_read() {
        let at = |sec, nsec| Time { sec, nsec };
        let ctimes = Ctimes::default();
        ctimes.keep(7, at(-5, 999_999_999), at(-6, 1));
        ctimes.keep(u64::MAX, at(1 << 40, 0), at(5, 0));
        ctimes.keep(8, at(5, 5), at(5, 4));
        ctimes.keep(8, at(5, 6), at(5, 6));
        let bytes = to_bytes(&mut ctimes.0.lock());
        let parsed = |bytes: &[u8]| {
            let read_at = &mut |to: &mut [u8], at: u64| {
                let rest = bytes.get(at as usize..).unwrap_or_default();
                let length = rest.len().min(to.len());
                to[..length].copy_from_slice(&rest[..length]);
                Ok(length)
            };
            read_table(bytes.len() as u64, read_at).unwrap()
        };
        let table = Table { old: parsed(&bytes).unwrap(), ..Table::default() };
        let read = Ctimes(Lock::new(table));
        assert_eq!(read.shown(7, at(-5, 999_999_999)), at(-6, 1));
        assert_eq!(read.shown(u64::MAX, at(1 << 40, 0)), at(5, 0));
        assert_eq!(read.shown(7, at(-5, 0)), at(-5, 0), "it has changed since");
        assert_eq!(read.shown(8, at(5, 5)), at(5, 5), "forgotten");
        for length in [0, 15, bytes.len() - 1, bytes.len() - RECORD] {
            assert!(parsed(&bytes[..length]).is_none(), "{length}");
        }
    }

    #[test]
    fn the_table_is_bounded() {
        let ctimes = Ctimes::default();
        for ino in 0..3 * MOST as u64 {
            ctimes.keep(ino, Time { sec: 1, nsec: 0 }, Time::default());
        }
        let table = ctimes.0.lock();
        assert!(table.young.len() + table.old.len() <= 2 * MOST);
        assert!(table.get(3 * MOST as u64 - 1).is_some() && table.get(2 * MOST as u64).is_some());
    }
}
