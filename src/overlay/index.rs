//! The index: facts in the work directory that the next mount needs about copies. It says which
//! copies stand for lower files with several names, and which inode numbers copies show.
//!
//! A copy of a lower file with several names keeps a name in the work directory, the index entry.
//! That name says which lower file the copy comes from. While the index entry exists, every name of
//! that file shows the copy.
//!
//! The file `numbers` holds records; the engine only appends to it. A lost record costs an inode
//! number, or leaves a link count too high. `docs/format.md` describes both.
//!
//! The locks here are leaves.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::errno::{EIO, ENOENT, Error};

use super::claims::{Claim, Claims};
use super::compact::CompactMap;
use super::ctime::{CTIMES, Ctimes};
use super::features::Feature;
use super::node::{LayerEntry, LinkCount, Node};
use super::stack::{LayerDir, Stack};
use super::work::discard;
use super::{Overlay, Settings};
use crate::format;
use crate::layer::{Access, Kind, Layer, Object, RenameMode, Result, Stat, Time, write_all};
use crate::sync::Lock;

/// The file with the records.
pub const NUMBERS: &str = "numbers";
/// The name of that file while the engine writes it anew.
const NEW_NUMBERS: &str = "tmp.numbers";
/// The prefix of the names of index entries.
const LINK: &str = "link.";
/// The number of obsolete records above which the file is written anew.
const DEAD_MAX: usize = 64;
/// The number of index entries that one listing finds to be removed. There may be a million.
const USELESS_MAX: usize = 1 << 15;
/// The most copies with unsynced records that are known one by one.
const UNSYNCED_MAX: usize = 4096;
/// The number of records that are read or written at once.
const PIECE: usize = 4096;

/// Identifies a file of a lower layer over mounts: a digest of all attributes that stay the same
/// while nothing changes the file.
pub type Origin = u128;

pub struct Index<L: Layer> {
    /// None if the file could not be written. The engine then keeps no numbers.
    numbers: Option<L::File>,
    /// The offset of the next record.
    end: AtomicU64,
    links: Lock<Links>,
    unsynced: Lock<Unsynced>,
}

/// The copies with records that may not be on the disk yet.
#[derive(Default)]
struct Unsynced {
    /// The number of appends so far.
    written: u64,
    /// For the inode number of a copy: the value of `written` after its last record.
    copies: CompactMap<u64, u64>,
    /// The value of `written` after the last record of copies that are not known one by one, since
    /// there were too many. 0: there are none.
    others: u64,
}

impl Unsynced {
    /// Notes a record of each of these copies.
    fn add(&mut self, copies: Vec<u64>) {
        self.written += 1;
        for copy in copies {
            self.copies.insert(copy, self.written);
        }
        if self.copies.len() > UNSYNCED_MAX {
            self.copies.clear();
            self.others = self.written;
        }
    }

    /// Whether records may be unsynced: those of the copy with this inode number, or of any for
    /// None.
    fn has(&self, ino: Option<u64>) -> bool {
        self.others > 0 || ino.map_or(!self.copies.is_empty(), |ino| self.copies.contains(ino))
    }

    /// Notes that a sync has written all records up to this value of `written`.
    fn synced(&mut self, written: u64) {
        self.copies.retain(|_, at| at > written);
        if self.others <= written {
            self.others = 0;
        }
    }
}

#[derive(Default)]
struct Links {
    copies: CompactMap<Origin, Kept>,
    /// The first bits of the keys of `copies`, by the inode number of the copy.
    origins: CompactMap<u64, u32>,
    /// The originals of copies in frozen layers that a layer above has copied again, by the inode
    /// number of the copy.
    copied_again: CompactMap<u64, Origin>,
    /// The ends of the inode numbers of the originals, of all layers together.
    lower_inos: CompactMap<u32, ()>,
    /// For each lower file without a copy, the number of its names that are hidden.
    hidden: CompactMap<Origin, u32>,
}

/// A copy of a lower file with several names. Its index entry has the name [`link_name`].
#[derive(Clone, Copy)]
#[repr(Rust, packed(4))]
struct Kept {
    /// The work directory with its index entry, in [`Overlay::works`].
    at: u32,
    /// The inode number of the original.
    ino: u64,
    /// The number of names that the original has in its layer.
    names: u32,
    /// The inode number of the copy.
    copy: u64,
    /// The number of names of the original that are hidden or are links to the copy.
    hidden: u32,
}

/// The facts about an object that has several names in its layer.
pub struct Linked {
    /// The attributes of the copy if there is one, else those of the object.
    pub attr: Stat,
    /// The copy's index entry: its work directory in [`Overlay::works`], and its name.
    pub index_entry: Option<(usize, OsString)>,
    pub origin: Option<Origin>,
    pub links: LinkCount,
}

/// One record of the file: six little-endian numbers of 64 bits. The first is a digest of the
/// others, the second is the kind of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The first record: the inode numbers of the work directory and of the file. They differ from
    /// the real ones in a copy of the directory.
    Head { dir: u64, file: u64 },
    /// The copy with the inode number `copy` shows `number`. It existed at `time`. `generation` is
    /// that of an original in a frozen layer.
    Number { copy: u64, number: u64, time: Time, generation: u32 },
    /// The copy no longer exists.
    Gone { copy: u64, number: u64 },
    /// The number of names of a lower file that are hidden or are links to the copy. 0 cancels
    /// earlier records.
    Hidden { origin: Origin, names: u32 },
}

impl Record {
    const SIZE: usize = 48;

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let words = match self {
            Record::Head { dir, file } => [0, dir, file, 0, 0],
            Record::Number { copy, number, time, generation } => {
                [1, copy, number, time.sec as u64, u64::from(generation) << 32 | u64::from(time.nsec)]
            }
            Record::Gone { copy, number } => [2, copy, number, 0, 0],
            Record::Hidden { origin, names } => [3, (origin >> 64) as u64, origin as u64, names.into(), 0],
        };
        let mut bytes = [0; Self::SIZE];
        for (place, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let digest = format::fnv1a(&bytes[8..]) as u64;
        bytes[..8].copy_from_slice(&digest.to_le_bytes());
        bytes
    }

    /// Returns None if the bytes are no record.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let words: Vec<_> = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes)).collect();
        let [digest, what, a, b, c, d] = words[..] else { return None };
        if digest != format::fnv1a(&bytes[8..]) as u64 {
            return None;
        }
        match what {
            0 => Some(Record::Head { dir: a, file: b }),
            1 => {
                let time = Time { sec: c as i64, nsec: d as u32 };
                Some(Record::Number { copy: a, number: b, time, generation: (d >> 32) as u32 })
            }
            2 => Some(Record::Gone { copy: a, number: b }),
            3 => Some(Record::Hidden { origin: u128::from(a) << 64 | u128::from(b), names: c.try_into().ok()? }),
            _ => None,
        }
    }
}

/// The result of reading the file of the records.
enum Numbers<L: Layer> {
    /// The open file, and the number of records after the first.
    Whole(L::File, usize),
    /// The file is missing, or lacks the unsynced end that a power failure loses.
    Truncated,
    /// The file contains bytes that are no record, or is a copy of another file.
    Damaged,
}

/// The state that all records together describe.
#[derive(Default)]
struct RecordsRead {
    claims: CompactMap<u64, Claim>,
    /// The generations in the records, by the number that the copy shows.
    generations: CompactMap<u64, u32>,
    hidden: CompactMap<Origin, u32>,
    /// Whether the numbers of copies are left out.
    without_numbers: bool,
}

impl RecordsRead {
    fn add(&mut self, record: Record) {
        match record {
            Record::Head { .. } => {}
            Record::Number { .. } | Record::Gone { .. } if self.without_numbers => {}
            Record::Number { copy, number, time, generation } => {
                self.claims.insert(copy, Claim::new(number, time));
                if generation != 0 {
                    self.generations.insert(number, generation);
                }
            }
            // A later copy may already have the same inode number. Its record stays.
            Record::Gone { copy, number } => {
                if self.claims.get(copy).is_some_and(|claim| claim.number == number) {
                    self.claims.remove(copy);
                    self.generations.remove(number);
                }
            }
            Record::Hidden { origin, names: 0 } => drop(self.hidden.remove(origin)),
            // Two threads may have written their records in reverse order. The larger count is the
            // later one.
            Record::Hidden { origin, names } => {
                let known = self.hidden.get(origin).unwrap_or(0);
                self.hidden.insert(origin, names.max(known));
            }
        }
    }

    /// Drops all counts of hidden names but these.
    fn hide_only(&mut self, hidden: Vec<(Origin, u32)>) {
        self.hidden.clear();
        for (origin, names) in hidden {
            self.hidden.insert(origin, names);
        }
    }

    fn len(&self) -> usize {
        self.claims.len() + self.hidden.len()
    }

    fn records(&mut self) -> impl Iterator<Item = Record> {
        let generations = &self.generations;
        let numbers = self.claims.sorted().map(|(copy, claim)| Record::Number {
            copy,
            number: claim.number,
            time: claim.time(),
            generation: generations.get(claim.number).unwrap_or(0),
        });
        numbers.chain(self.hidden.sorted().map(|(origin, names)| Record::Hidden { origin, names }))
    }
}

/// The prefixes of the names that this module uses in the work directory, of damaged entries too.
pub const NAMES: [&str; 2] = [NUMBERS, LINK];

/// Whether `name` in the work directory belongs to the index and is well formed. The mount sweeps
/// other entries.
pub fn is_kept(name: &OsStr, kind: Kind) -> bool {
    match kind {
        Kind::Dir => false,
        Kind::File if name == NUMBERS || name == CTIMES => true,
        _ => parse_link(name).is_some(),
    }
}

/// Whether `name` in the work directory is that of an index entry.
pub fn is_link(name: &OsStr) -> bool {
    parse_link(name).is_some()
}

/// The facts that the name of an index entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(Rust, packed(8))]
pub struct IndexEntry {
    /// The inode number of the original.
    ino: u64,
    /// The original.
    pub origin: Origin,
    /// The number of names that the original has in its layer.
    names: u32,
}

impl IndexEntry {
    /// Returns the name.
    pub fn name(&self) -> OsString {
        link_name(self.ino, self.origin, self.names)
    }
}

/// Parses the name of an index entry.
fn parse_link(name: &OsStr) -> Option<IndexEntry> {
    let mut parts = name.to_str()?.strip_prefix(LINK)?.split('.');
    let ino = u64::from_str_radix(parts.next()?, 16).ok()?;
    let origin = u128::from_str_radix(parts.next()?, 16).ok()?;
    let names = u32::from_str_radix(parts.next()?, 16).ok()?;
    // The engine computes the name from the three again.
    Some(IndexEntry { ino, origin, names }).filter(|entry| entry.name() == name)
}

fn link_name(ino: u64, origin: Origin, names: u32) -> OsString {
    format!("{LINK}{ino:x}.{origin:032x}.{names:x}").into()
}

/// Returns the origin of a file with the attributes `stat` in the lower directory `dir`.
pub fn origin<L: Layer>(stack: &Stack<L>, dir: &LayerDir<L>, stat: &Stat) -> Origin {
    let Stat {
        dev: _,
        ino,
        kind,
        mode,
        nlink,
        uid,
        gid,
        rdev,
        size,
        blksize: _,
        blocks: _,
        atime: _,
        mtime,
        ctime,
        fixed: _,
        generation: _,
    } = *stat;
    let of_layer = [stack.level(dir) as u64, stack.root_ino(dir)];
    let of_file = [ino, kind as u64, mode.into(), nlink.into(), uid.into(), gid.into(), rdev, size];
    let times = [mtime.sec as u64, mtime.nsec.into(), ctime.sec as u64, ctime.nsec.into()];
    let words = of_layer.into_iter().chain(of_file).chain(times);
    format::fnv1a(&words.flat_map(u64::to_le_bytes).collect::<Vec<_>>())
}

/// The facts of work directories that are only read, from the bottom.
#[derive(Default)]
pub struct Known {
    links: Links,
    records: RecordsRead,
    /// The number of these directories.
    count: u32,
}

impl Known {
    /// Prepares to read facts. The inode numbers of copies are among them if `numbers`.
    pub fn new(numbers: bool) -> Self {
        let records = RecordsRead { without_numbers: !numbers, ..RecordsRead::default() };
        Known { records, ..Known::default() }
    }

    /// Adds the facts in the work directory `dir`, without a change to it.
    pub fn read<L: Layer>(&mut self, upper: &L, dir: &L::Dir, same_lowers: bool) -> Result<()> {
        upper.list(dir, &mut |entry| {
            if let Some(link) = parse_link(entry.name) {
                self.links.add(link, self.count, entry.ino);
            }
        })?;
        let head = upper.stat(Object::Dir(dir))?.ino;
        let below = self.records.hidden.sorted().collect();
        read_numbers(upper, dir, Access::Read, head, &mut self.records)?;
        if !same_lowers {
            self.records.hide_only(below);
        }
        self.count += 1;
        Ok(())
    }
}

impl<L: Layer> Index<L> {
    /// Reads the index from the work directory `dir`, which is above those of `below`. Also returns
    /// the inode numbers that copies had.
    ///
    /// The function drops records that it cannot read. Without `same_lowers` it drops the counts of
    /// hidden names too, since other lower layers may show these again. It tells `ctimes` about
    /// each copy that it changes. `volatile` and `succeeds` are those of the settings.
    pub fn open(
        upper: &L,
        dir: &L::Dir,
        below: Known,
        Settings { volatile, succeeds, .. }: Settings,
        same_lowers: bool,
        ctimes: &Ctimes,
    ) -> Result<(Self, Claims)> {
        let Known { mut links, records: mut known, count: at } = below;
        let head = upper.stat(Object::Dir(dir))?.ino;
        let hidden_below: Vec<_> = known.hidden.sorted().collect();
        let read = read_numbers(upper, dir, Access::ReadWrite, head, &mut known).unwrap_or_else(|error| {
            log::warn!("cannot read the inode numbers of earlier mounts, so files may show new ones: {error}");
            Numbers::Damaged
        });
        let is_right = same_lowers || known.hidden.sorted().eq(hidden_below.iter().copied());
        if !is_right {
            known.hide_only(hidden_below);
        }
        let mut is_all = false;
        while !is_all {
            let mut useless = Vec::new();
            upper.list(dir, &mut |entry| {
                let Some(link) = parse_link(entry.name) else { return };
                // Every name of the original may be hidden or a link to the copy. An open object
                // whose names no lookup has met has only the index entry.
                match !succeeds && known.hidden.get(link.origin).is_some_and(|hidden| hidden >= link.names) {
                    true if useless.len() < USELESS_MAX => useless.push((entry.kind, entry.ino, link)),
                    true => {}
                    false => links.add(link, at, entry.ino),
                }
            })?;
            is_all = useless.len() < USELESS_MAX;
            for (kind, copy, link) in useless {
                let number = known.claims.get(copy).map(|claim| claim.number);
                unlink_unseen(upper, dir, (&link.name(), kind), number, ctimes)?;
                known.hidden.remove(link.origin);
            }
        }
        let written = match read {
            Numbers::Whole(file, records) if is_right && records <= 2 * known.len() + DEAD_MAX => {
                // Syncs the records of earlier mounts now, so that a later sync of an object need
                // not care for them.
                let synced = if known.len() > 0 && !volatile { upper.sync(&file) } else { Ok(()) };
                synced.map(|()| (file, records + 1))
            }
            _ => write_numbers(upper, dir, head, &mut known, volatile).map(|file| (file, known.len() + 1)),
        };
        let (numbers, records) = match written {
            Ok((file, records)) => (Some(file), records),
            Err(error) => {
                log::warn!("cannot write inode numbers for later mounts, which may show new ones: {error}");
                (None, 0)
            }
        };
        links.hide(known.hidden);
        let end = AtomicU64::new((records * Record::SIZE) as u64);
        let index = Index { numbers, end, links: Lock::new(links), unsynced: Lock::default() };
        Ok((index, Claims::new(known.claims, known.generations, at > 0)))
    }

    /// Whether the file with the numbers exists.
    pub fn keeps_numbers(&self) -> bool {
        self.numbers.is_some()
    }

    /// Whether there are index entries.
    pub fn has_links(&self) -> bool {
        !self.links.lock().copies.is_empty()
    }

    /// Makes the index of an overlay that writes no record, from the facts of its work directories.
    pub fn of(known: Known) -> (Self, Claims) {
        let Known { mut links, records, count } = known;
        links.hide(records.hidden);
        let index = Index { numbers: None, end: AtomicU64::new(0), links: Lock::new(links), unsynced: Lock::default() };
        (index, Claims::new(records.claims, records.generations, count > 1))
    }

    /// Removes the file if it has no record but the first.
    pub fn finish(&self, upper: &L, dir: &L::Dir) -> Result<()> {
        let is_empty = self.end.load(Ordering::Relaxed) <= Record::SIZE as u64;
        if self.numbers.is_some() && is_empty { upper.unlink(dir, OsStr::new(NUMBERS)) } else { Ok(()) }
    }

    /// Appends records. A failure is logged: only a later mount misses the records.
    pub fn append(&self, upper: &L, records: &[Record]) {
        let Some(file) = &self.numbers else { return };
        let bytes: Vec<_> = records.iter().flat_map(|record| record.to_bytes()).collect();
        let at = self.end.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if let Err(error) = write_all(upper, file, &bytes, at) {
            log::warn!("cannot write inode numbers and link counts for the next mount, which may show others: {error}");
            return;
        }
        let copies: Vec<_> = records.iter().filter_map(|record| self.copy_of(record)).collect();
        self.unsynced.lock().add(copies);
    }

    /// Returns the copy that `record` keeps right for the next mount, if any.
    fn copy_of(&self, record: &Record) -> Option<u64> {
        match record {
            Record::Number { copy, .. } => Some(*copy),
            Record::Hidden { origin, .. } => self.links.lock().copies.get(*origin).map(|kept| kept.copy),
            Record::Head { .. } | Record::Gone { .. } => None,
        }
    }

    /// Syncs the records about the copy with the inode number `ino`, or about all copies for None.
    pub fn sync(&self, upper: &L, ino: Option<u64>) -> Result<()> {
        let written = {
            let unsynced = self.unsynced.lock();
            if !unsynced.has(ino) {
                return Ok(());
            }
            unsynced.written
        };
        if let Some(file) = &self.numbers {
            upper.sync(file)?;
        }
        self.unsynced.lock().synced(written);
        Ok(())
    }

    /// Whether there are copies that names of lower layers show by their index entries alone.
    pub fn has_copies(&self) -> bool {
        !self.links.lock().copies.is_empty()
    }

    /// Forgets all copies. Only their numbers are still recorded.
    #[cfg(feature = "layer-tools")]
    pub fn forget_copies(&self) {
        *self.links.lock() = Links::default();
    }

    /// Whether a lower file with this inode number may have been copied up while it had other
    /// names.
    pub fn may_be_copied(&self, ino: u64) -> bool {
        self.links.lock().lower_inos.contains(end_of(ino))
    }

    /// Whether a copy shows under a name that only a lower layer has.
    pub fn shows_below(&self) -> bool {
        self.links.lock().copies.sorted().any(|(_, kept)| kept.hidden < kept.names)
    }

    /// Counts one more name of a lower file that is hidden or a link to the copy.
    fn hide(&self, origin: Origin) -> Record {
        let mut links = self.links.lock();
        let names = links.hidden(origin) + 1;
        links.set_hidden(origin, names);
        Record::Hidden { origin, names }
    }

    /// Drops the facts about a file that has lost its last name.
    fn forget(&self, origin: Origin) -> Option<Record> {
        let mut links = self.links.lock();
        let hidden = links.hidden(origin);
        if let Some(kept) = links.copies.remove(origin) {
            links.origins.remove(kept.copy);
        }
        links.hidden.remove(origin);
        (hidden > 0).then_some(Record::Hidden { origin, names: 0 })
    }

    /// Returns the facts about the copy with the attributes `attr`.
    fn of_copy(&self, attr: &Stat) -> Option<Linked> {
        let links = self.links.lock();
        links.linked(links.origin_of(attr.ino)?, *attr)
    }

    fn of_origin(&self, origin: Origin, attr: Stat) -> Option<Linked> {
        self.links.lock().linked(origin, attr)
    }

    fn entry_of(&self, origin: Origin) -> Option<(usize, OsString)> {
        self.links.lock().copies.get(origin).map(|copy| (copy.at as usize, copy.name(origin)))
    }

    /// Returns the original of a copy with this inode number, also of one that a layer above has
    /// copied again.
    fn origin_of(&self, copy: u64) -> Option<Origin> {
        self.links.lock().origin_of(copy)
    }

    /// Returns the number of names to write down for a copy of `before`. That may be a copy of a
    /// frozen layer itself, which the other names of its original show too.
    fn names_of(&self, origin: Origin, before: &Stat) -> u32 {
        // The index entry is no name of the file.
        let of_frozen = |kept: Kept| kept.names.saturating_add(before.nlink.saturating_sub(1));
        self.links.lock().copies.get(origin).map_or(before.nlink, of_frozen)
    }

    fn hidden(&self, origin: Origin) -> u32 {
        self.links.lock().hidden(origin)
    }
}

impl Kept {
    /// Returns the name of the index entry.
    fn name(&self, origin: Origin) -> OsString {
        link_name(self.ino, origin, self.names)
    }
}

impl Links {
    /// Adds an index entry in the work directory `at`. `copy` is its inode number.
    fn add(&mut self, IndexEntry { ino, origin, names }: IndexEntry, at: u32, copy: u64) {
        let hidden = self.hidden(origin);
        self.hidden.remove(origin);
        if let Some(below) = self.copies.get(origin).map(|kept| kept.copy).filter(|below| *below != copy) {
            self.copied_again.insert(below, origin);
        }
        self.origins.insert(copy, start_of(origin));
        self.lower_inos.insert(end_of(ino), ());
        self.copies.insert(origin, Kept { at, ino, names, copy, hidden });
    }

    /// Returns the original of the copy with this inode number.
    fn origin_of(&self, copy: u64) -> Option<Origin> {
        if let Some(origin) = self.copied_again.get(copy) {
            return Some(origin);
        }
        let first = Origin::from(self.origins.get(copy)?) << (Origin::BITS - u32::BITS);
        let mut like = self.copies.within(first..=first | Origin::MAX >> u32::BITS);
        like.find(|(_, kept)| kept.copy == copy).map(|(origin, _)| origin)
    }

    /// Returns the number of names of a lower file that are hidden or are links to the copy.
    fn hidden(&self, origin: Origin) -> u32 {
        let of_copy = self.copies.get(origin).map(|kept| kept.hidden);
        of_copy.or_else(|| self.hidden.get(origin)).unwrap_or(0)
    }

    fn set_hidden(&mut self, origin: Origin, names: u32) {
        match self.copies.get(origin) {
            Some(kept) => drop(self.copies.insert(origin, Kept { hidden: names, ..kept })),
            None => drop(self.hidden.insert(origin, names)),
        }
    }

    /// Takes the numbers of names that are hidden or are links to the copy, by the lower file.
    fn hide(&mut self, mut hidden: CompactMap<Origin, u32>) {
        hidden.sorted().for_each(|(origin, names)| self.set_hidden(origin, names));
    }

    /// Returns the facts about the file copied from `origin`. `attr` belongs to the copy.
    fn linked(&self, origin: Origin, attr: Stat) -> Option<Linked> {
        let copy = self.copies.get(origin)?;
        // The index entry is no name of the file. A hidden name may be one of the copy, if that is in a
        // frozen layer.
        let names = attr.nlink.saturating_sub(1).saturating_add(copy.names);
        let nlink = names.saturating_sub(copy.hidden).max(1);
        Some(Linked {
            attr,
            index_entry: Some((copy.at as usize, copy.name(origin))),
            origin: Some(origin),
            links: LinkCount::Counted(nlink),
        })
    }
}

/// Returns the first bits of an origin, which seldom has them in common with another.
fn start_of(origin: Origin) -> u32 {
    (origin >> (Origin::BITS - u32::BITS)) as u32
}

/// Returns the part of an inode number that stands for it where others may have the same.
fn end_of(ino: u64) -> u32 {
    (ino >> 32) as u32 ^ ino as u32
}

/// The facts about a work directory that fsck needs.
pub struct Review {
    /// Whether the file `numbers` has only valid records of its own, apart from an end lost in a
    /// power failure.
    pub whole: bool,
    /// The index entries of originals that still have a name below that is neither hidden nor a
    /// link.
    pub links: Vec<IndexEntry>,
}

/// Reads the index in the work directory `dir` without a change to it.
pub fn review<L: Layer>(upper: &L, dir: &L::Dir) -> Result<Review> {
    let (mut links, mut has_numbers) = (Vec::new(), false);
    upper.list(dir, &mut |entry| {
        has_numbers |= entry.name == NUMBERS && entry.kind == Kind::File;
        links.extend(parse_link(entry.name).filter(|_| entry.kind != Kind::Dir));
    })?;
    let mut known = RecordsRead::default();
    let head = upper.stat(Object::Dir(dir))?.ino;
    let whole = !has_numbers || !matches!(read_numbers(upper, dir, Access::Read, head, &mut known)?, Numbers::Damaged);
    links.retain(|link| known.hidden.get(link.origin).is_none_or(|hidden| hidden < link.names));
    Ok(Review { whole, links })
}

/// Writes damaged numbers of a work directory anew, as the next mount would.
pub fn rewrite<L: Layer>(upper: &L, dir: &L::Dir) -> Result<()> {
    let ctimes = Ctimes::open(upper, dir);
    let (index, _) = Index::open(upper, dir, Known::default(), Settings::default(), true, &ctimes)?;
    index.finish(upper, dir)?;
    ctimes.save(upper, dir)
}

/// Removes the index entry of a copy that has other names. The object that shows `number` keeps the
/// time of last change of status that it shows.
fn unlink_unseen<L: Layer>(
    upper: &L,
    dir: &L::Dir,
    (name, kind): (&OsStr, Kind),
    number: Option<u64>,
    ctimes: &Ctimes,
) -> Result<()> {
    let access = if kind == Kind::File { Access::Read } else { Access::Attributes };
    let file = number.and_then(|number| Some((number, upper.open_file(dir, name, access).ok()?)));
    let ctime = |file: &L::File| upper.stat(Object::File(file)).map(|stat| stat.ctime);
    let before = file.as_ref().map(|(_, file)| ctime(file));
    upper.unlink(dir, name)?;
    if let (Some((number, file)), Some(Ok(before))) = (&file, before)
        && let Ok(now) = ctime(file)
    {
        ctimes.changed_unseen(*number, before, now);
    }
    Ok(())
}

/// Reads the records into `known`.
fn read_numbers<L: Layer>(
    upper: &L,
    dir: &L::Dir,
    access: Access,
    head: u64,
    known: &mut RecordsRead,
) -> Result<Numbers<L>> {
    let file = match upper.open_file(dir, OsStr::new(NUMBERS), access) {
        Err(error) if error.errno == ENOENT => return Ok(Numbers::Truncated),
        file => file?,
    };
    let stat = upper.stat(Object::File(&file))?;
    let first = Record::Head { dir: head, file: stat.ino };
    let mut piece = vec![0; (PIECE * Record::SIZE).min(usize::try_from(stat.size).map_err(|_| Error::new(EIO))?)];
    let (mut size, mut truncated, mut damaged) = (0, false, false);
    loop {
        let read = upper.read_at(&file, &mut piece, size as u64)?;
        for (at, chunk) in (size..).step_by(Record::SIZE).zip(piece[..read].chunks(Record::SIZE)) {
            match Record::from_bytes(chunk) {
                Some(record) if (at == 0) == (record == first) => known.add(record),
                // The file may belong to another directory. Without its first record no other
                // record counts.
                None if at == 0 && is_truncated(chunk, 0) => return Ok(Numbers::Truncated),
                _ if at == 0 => return Ok(Numbers::Damaged),
                _ if is_truncated(chunk, at) => truncated = true,
                _ => damaged = true,
            }
        }
        size += read;
        if read < piece.len() || size as u64 >= stat.size {
            break;
        }
    }
    Ok(match (damaged, truncated || size == 0) {
        (true, _) => Numbers::Damaged,
        (false, true) => Numbers::Truncated,
        (false, false) => Numbers::Whole(file, (size / Record::SIZE).saturating_sub(1)),
    })
}

/// Whether a power failure may have left these bytes, at `offset` in the file, of an unsynced
/// record. Then the end is missing, or one block of the disk is unwritten and reads as zeros.
fn is_truncated(bytes: &[u8], offset: usize) -> bool {
    const BLOCK: usize = 512;
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let edge = (BLOCK - offset % BLOCK).min(bytes.len());
    bytes.len() < Record::SIZE || is_zero(&bytes[..edge]) || edge < bytes.len() && is_zero(&bytes[edge..])
}

/// Writes a new file with these records.
fn write_numbers<L: Layer>(
    upper: &L,
    dir: &L::Dir,
    head: u64,
    known: &mut RecordsRead,
    volatile: bool,
) -> Result<L::File> {
    let (name, temp) = (OsStr::new(NUMBERS), OsStr::new(NEW_NUMBERS));
    let file = upper.create_file(dir, temp, 0o600, upper.identity())?;
    let written = (|| {
        let first = Record::Head { dir: head, file: upper.stat(Object::File(&file))?.ino };
        let mut records = [first].into_iter().chain(known.records()).peekable();
        let mut end = 0;
        while records.peek().is_some() {
            let bytes: Vec<_> = records.by_ref().take(PIECE).flat_map(Record::to_bytes).collect();
            write_all(upper, &file, &bytes, end)?;
            end += bytes.len() as u64;
        }
        drop(records);
        if known.len() > 0 && !volatile {
            upper.sync(&file)?;
        }
        upper.rename(dir, temp, dir, name, RenameMode::Replace)
    })();
    match written {
        Ok(()) => Ok(file),
        Err(error) => {
            discard(upper, dir, temp);
            Err(error)
        }
    }
}

impl<L: Layer> Overlay<L> {
    /// Returns the facts about an object with several names, which has the attributes `attr` in
    /// `dir`.
    pub(super) fn linked(&self, dir: &LayerDir<L>, attr: Stat) -> Result<Linked> {
        let alone = Linked { attr, index_entry: None, origin: None, links: LinkCount::OfLayer };
        let Some(index) = self.copies() else { return Ok(alone) };
        if self.is_in_upper_layer(dir) {
            return Ok(index.of_copy(&attr).unwrap_or(alone));
        }
        let frozen = if self.is_frozen(dir) { index.origin_of(attr.ino) } else { None };
        let origin = frozen.unwrap_or_else(|| origin(&self.stack, dir, &attr));
        if let Some((at, name)) = index.entry_of(origin) {
            let linked = match self.stack.stat(self.work_at(at)?, &name) {
                Ok(copy) if copy.kind == attr.kind => index.of_origin(origin, copy),
                Err(error) if error.errno != ENOENT => return Err(error),
                _ => None,
            };
            if let Some(linked) = linked {
                return Ok(linked);
            }
        }
        let hidden = index.hidden(origin);
        let links = match hidden {
            0 => LinkCount::OfLayer,
            hidden => LinkCount::Counted(attr.nlink.saturating_sub(hidden).max(1)),
        };
        Ok(Linked { origin: Some(origin), links, ..alone })
    }

    /// Returns the place of the copy of a lower file with several names, if the index has one.
    pub(super) fn index_entry(&self, origin: Origin) -> Result<Option<LayerEntry<L>>> {
        self.copies().and_then(|index| index.entry_of(origin)).map(|entry| self.in_work(entry)).transpose()
    }

    /// Returns the place of an index entry: the number of its work directory, and its name there.
    pub(super) fn in_work(&self, (at, name): (usize, OsString)) -> Result<LayerEntry<L>> {
        Ok((self.work_at(at)?.clone(), name.into()))
    }

    /// Gives the complete copy `temp` of a file with several names its index entry.
    pub(super) fn keep_copy(&self, origin: Origin, before: &Stat, temp: &OsStr) -> Result<OsString> {
        let (upper, work) = self.upper()?;
        work.need(&self.stack, Feature::Links)?;
        let name = link_name(before.ino, origin, work.index().names_of(origin, before));
        let open = self.stack.open(work.dir())?;
        upper.rename(&open, temp, &open, &name, RenameMode::Replace)?;
        Ok(name)
    }

    /// Undoes [`Overlay::keep_copy`].
    pub(super) fn unkeep_copy(&self, name: &OsStr, temp: &OsStr) {
        let undone = self.upper().and_then(|(upper, work)| {
            let open = self.stack.open(work.dir())?;
            upper.rename(&open, name, &open, temp, RenameMode::Replace)
        });
        if let Err(error) = undone {
            log::warn!("cannot take {name:?} back in the work directory: {error}");
        }
    }

    /// Puts the copy of the object with the attributes `before` in its place, by `put`. The number
    /// that it shows is recorded before: no crash lets it show another one.
    pub(super) fn numbered<T>(
        &self,
        node: &Node<L>,
        before: &Stat,
        copy: &Stat,
        put: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let number = *node.state.lock().ino.get_or_insert_with(|| self.number(before));
        self.record_number(number, before, copy);
        put().inspect_err(|_| {
            if let Ok((upper, work)) = self.upper() {
                work.index().append(upper, &[Record::Gone { copy: copy.ino, number }]);
            }
        })
    }

    /// Records the number that a copy shows.
    pub(super) fn record_number(&self, number: u64, before: &Stat, copy: &Stat) {
        let Ok((upper, work)) = self.upper() else { return };
        let generation = self.inodes.generation(number, before).unwrap_or(0);
        work.index().append(upper, &[Record::Number { copy: copy.ino, number, time: copy.ctime, generation }]);
    }

    /// Notes that a copy with a recorded number has its place, and its index entry if the original
    /// has other names.
    pub(super) fn copied_up(&self, ino: u64, before: &Stat, copy: &Stat, kept: Option<Origin>) {
        let Ok((_, work)) = self.upper() else { return };
        let generation = self.inodes.generation(ino, before).unwrap_or(0);
        self.inodes.record_copy_up(copy.dev, copy.ino, ino, generation);
        if let Some(origin) = kept {
            let at = self.works.len().saturating_sub(1) as u32;
            let names = work.index().names_of(origin, before);
            work.index().links.lock().add(IndexEntry { ino: before.ino, origin, names }, at, copy.ino);
        }
    }

    /// Records that a name of a lower file with several names is hidden, or is now a link to the
    /// copy.
    pub(super) fn hid_name(&self, origin: Origin) {
        if let Ok((upper, work)) = self.upper() {
            work.index().append(upper, &[work.index().hide(origin)]);
        }
    }

    /// Records that an object of the upper layer lost its last name. It shows `number`; its layer
    /// has it as `ino` on `device`.
    pub(super) fn lost_copy(&self, number: u64, device: u64, ino: u64, origin: Option<Origin>) {
        let Ok((upper, work)) = self.upper() else { return };
        let number = self.inodes.forget_copy(device, ino, number).then_some(Record::Gone { copy: ino, number });
        let hidden = origin.and_then(|origin| work.index().forget(origin));
        let records: Vec<_> = number.into_iter().chain(hidden).collect();
        if !records.is_empty() {
            work.index().append(upper, &records);
        }
    }

    /// Returns the number that an object with these attributes shows from now on. See
    /// [`Inodes::assign`](super::inode::Inodes::assign).
    pub(super) fn number(&self, attr: &Stat) -> u64 {
        let (number, is_new) = self.inodes.assign(attr.dev, attr.ino, attr.generation);
        if let (true, Ok((upper, work))) = (is_new, self.upper()) {
            let record = Record::Number { copy: attr.ino, number, time: attr.ctime, generation: 0 };
            work.index().append(upper, &[record]);
        }
        number
    }

    /// Finds out whether an earlier mount gave the entry `name` of `dir` a number. The caller does
    /// this before the entry gets one. Returns false also if that is settled already.
    pub(super) fn resolve_claim(&self, dir: &Arc<LayerDir<L>>, name: &OsStr, attr: &Stat) -> Result<bool> {
        let Some(time) = self.inodes.claimed_at(attr.dev, attr.ino) else { return Ok(false) };
        let birth = self.stack.layer(dir).birth(Object::Entry(&*self.stack.open(dir)?, name))?;
        // An object born after that time is a new one that reuses the copy's inode number.
        let is_copy = birth.is_none_or(|birth| birth <= time);
        self.inodes.resolve_claim(attr.ino, is_copy);
        Ok(is_copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_are_written() {
        let time = Time { sec: -1, nsec: 999_999_999 };
        for record in [
            Record::Head { dir: 1, file: u64::MAX },
            Record::Number { copy: 2, number: 3 << 48, time, generation: 0 },
            Record::Number { copy: 2, number: 3, time, generation: u32::MAX },
            Record::Gone { copy: 2, number: 3 << 48 },
            Record::Hidden { origin: u128::MAX - 1, names: 7 },
        ] {
            let bytes = record.to_bytes();
            assert_eq!(Record::from_bytes(&bytes), Some(record));
            assert_eq!(Record::from_bytes(&bytes[1..]), None);
            for index in 0..bytes.len() {
                let mut damaged = bytes;
                damaged[index] ^= 0x10;
                assert_eq!(Record::from_bytes(&damaged), None, "{record:?} with another byte {index}");
            }
        }
        assert_eq!(Record::from_bytes(&[0; Record::SIZE]), None);
    }

    #[test]
    fn a_record_truncated_by_a_power_failure_is_no_damage() {
        let bytes =
            Record::Number { copy: 2, number: 3 << 48, time: Time { sec: 1 << 60, nsec: 1 }, generation: 0 }.to_bytes();
        let zeroed = |range: std::ops::Range<usize>| {
            let mut torn = bytes;
            torn[range].fill(0);
            torn
        };
        assert!(is_truncated(&bytes[..47], 48) && is_truncated(&zeroed(0..48), 48));
        // This record crosses the end of a block: 32 bytes are in the first, 16 in the second.
        assert!(is_truncated(&zeroed(0..32), 480) && is_truncated(&zeroed(32..48), 480));
        assert!(
            !is_truncated(&zeroed(0..30), 480) && !is_truncated(&zeroed(32..48), 528) && !is_truncated(&bytes, 480)
        );
    }

    #[test]
    fn too_many_unsynced_copies_are_not_known_one_by_one() {
        let mut unsynced = Unsynced::default();
        (0..=UNSYNCED_MAX as u64).for_each(|copy| unsynced.add(vec![copy]));
        assert!(unsynced.copies.is_empty() && unsynced.has(Some(5)) && unsynced.has(None));
        let written = unsynced.written;
        unsynced.add(vec![7]);
        unsynced.synced(written);
        assert!(unsynced.has(Some(7)) && unsynced.has(None) && !unsynced.has(Some(5)));
    }

    #[test]
    fn a_gone_record_leaves_later_numbers_alone() {
        let mut known = RecordsRead::default();
        let time = Time::default();
        known.add(Record::Number { copy: 1, number: 10, time, generation: 0 });
        known.add(Record::Number { copy: 1, number: 11, time, generation: 5 });
        known.add(Record::Gone { copy: 1, number: 10 });
        assert_eq!(known.claims.get(1).map(|claim| claim.number), Some(11));
        assert_eq!(known.generations.get(11), Some(5));
        known.add(Record::Gone { copy: 1, number: 11 });
        assert!(known.claims.is_empty() && known.generations.is_empty());
    }

    #[test]
    fn the_name_of_an_index_entry_tells_its_origin() {
        let name = link_name(0x1f, 5, 3);
        assert_eq!(parse_link(&name), Some(IndexEntry { ino: 0x1f, origin: 5, names: 3 }));
        assert!(is_kept(&name, Kind::File) && is_kept(&name, Kind::Symlink) && !is_kept(&name, Kind::Dir));
        assert!(!is_kept(OsStr::new(NUMBERS), Kind::Fifo));
        let origin = format!("{:032x}", 5);
        for other in ["link.", "link.1.2", "link.1.2.3", "link.1.2.3.4", "link.x.2.3", "1.2.3"]
            .map(str::to_owned)
            .into_iter()
            .chain(["+1", "01", "A"].map(|ino| format!("link.{ino}.{origin}.3")))
        {
            assert_eq!(parse_link(OsStr::new(&other)), None, "{other}");
        }
    }
}
