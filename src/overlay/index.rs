//! What one mount leaves in the work directory for the next: which copies are still the same file
//! as names of a lower layer, and which inode numbers copies show.
//!
//! A copied-up file of several names has a name in the work directory that says which file of the
//! lower layers it was copied from. As long as it is there, every name of that file shows the copy.
//! The file `numbers` is a row of records that is only appended to; what is lost of it costs an
//! inode number, or leaves a link count too high. `docs/format.md` describes both.
//!
//! The lock is a leaf.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::errno::{EIO, ENOENT, Error};

use super::Overlay;
use super::ctime::{CTIMES, Ctimes};
use super::inode::{Claim, Claims};
use super::node::{LinkCount, Node};
use super::stack::{LayerDir, Stack};
use super::work::discard;
use crate::format;
use crate::layer::{Access, Kind, Layer, Object, RenameMode, Result, Stat, Time, write_all};
use crate::sync::Lock;

/// The file of the records.
pub const NUMBERS: &str = "numbers";
/// The same while it is written anew.
const NEW_NUMBERS: &str = "tmp.numbers";
/// What the names of copies begin with.
const LINK: &str = "link.";
/// How many records that say nothing any more are left before the file is written anew.
const DEAD_MAX: usize = 64;

/// A file of a lower layer, as every mount knows it again: a digest of all that the layer says of
/// it and that never changes while nobody touches it.
pub type Origin = u128;

pub struct Index<L: Layer> {
    /// None where it could not be written: then numbers are not kept.
    numbers: Option<L::File>,
    /// Where the next record goes.
    end: AtomicU64,
    links: Lock<Links>,
    unsynced: Lock<Unsynced>,
}

/// The objects of which records may not be on the disk.
#[derive(Default)]
struct Unsynced {
    /// How many records were written.
    written: u64,
    /// By the inode number of the copy, how many there were with its last one.
    copies: HashMap<u64, u64>,
}

#[derive(Default)]
struct Links {
    copies: HashMap<Origin, Kept>,
    /// The same by the inode number of the copy.
    origins: HashMap<u64, Origin>,
    /// The inode numbers of the files that they were copied from, whatever the layer.
    lower_inos: HashSet<u64>,
    /// How many names of a lower file are its own no more: hidden, or links of the copy.
    hidden: HashMap<Origin, u32>,
}

/// A copied-up file of several names.
struct Kept {
    /// Its name in the work directory.
    name: OsString,
    /// How many names the original has in its layer.
    names: u32,
    /// Its inode number.
    copy: u64,
}

/// What is known of an object that has several names in its layer.
pub struct Linked {
    /// The attributes: of the copy, if there is one.
    pub attr: Stat,
    /// The name of the copy in the work directory.
    pub index_entry: Option<OsString>,
    pub origin: Option<Origin>,
    pub links: LinkCount,
}

/// One record of the file: six numbers of 64 bits, the lowest byte first. The first is a digest of
/// the others, the second says what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The first: the inode numbers of the work directory and of the file, which are others where
    /// somebody has copied them.
    Head { dir: u64, file: u64 },
    /// The copy with the inode number `copy` shows `number`. At `time` it existed.
    Number { copy: u64, number: u64, time: Time },
    /// It is gone.
    Gone { copy: u64, number: u64 },
    /// So many names of a lower file are its own no more; 0, if it does not matter any more.
    Hidden { origin: Origin, names: u32 },
}

impl Record {
    const SIZE: usize = 48;

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let words = match self {
            Record::Head { dir, file } => [0, dir, file, 0, 0],
            Record::Number { copy, number, time } => [1, copy, number, time.sec as u64, time.nsec.into()],
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

    /// None if this is no record.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let words: Vec<_> = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes)).collect();
        let [digest, what, a, b, c, d] = words[..] else { return None };
        if digest != format::fnv1a(&bytes[8..]) as u64 {
            return None;
        }
        match what {
            0 => Some(Record::Head { dir: a, file: b }),
            1 => Some(Record::Number { copy: a, number: b, time: Time { sec: c as i64, nsec: d.try_into().ok()? } }),
            2 => Some(Record::Gone { copy: a, number: b }),
            3 => Some(Record::Hidden { origin: u128::from(a) << 64 | u128::from(b), names: c.try_into().ok()? }),
            _ => None,
        }
    }
}

/// What is in the file of the records.
enum Numbers<L: Layer> {
    /// Records, so many behind the first; and the open file.
    Whole(L::File, usize),
    /// The file is missing, or lacks what a power failure takes of what was not synced.
    Cut,
    /// It has what is no record, or is a copy of the file.
    Damaged,
}

/// What the records say together.
#[derive(Default)]
struct RecordsRead {
    claims: Claims,
    hidden: HashMap<Origin, u32>,
}

impl RecordsRead {
    fn add(&mut self, record: Record) {
        match record {
            Record::Head { .. } => {}
            Record::Number { copy, number, time } => drop(self.claims.insert(copy, Claim { number, time })),
            // The inode number may be that of another copy already.
            Record::Gone { copy, number } => {
                if self.claims.get(&copy).is_some_and(|claim| claim.number == number) {
                    self.claims.remove(&copy);
                }
            }
            Record::Hidden { origin, names: 0 } => drop(self.hidden.remove(&origin)),
            // Of two threads, the first may have been the last to write.
            Record::Hidden { origin, names } => {
                let known = self.hidden.entry(origin).or_default();
                *known = names.max(*known);
            }
        }
    }

    fn len(&self) -> usize {
        self.claims.len() + self.hidden.len()
    }

    fn records(&self) -> impl Iterator<Item = Record> {
        let numbers = self.claims.iter();
        let numbers =
            numbers.map(|(copy, Claim { number, time })| Record::Number { copy: *copy, number: *number, time: *time });
        numbers.chain(self.hidden.iter().map(|(origin, names)| Record::Hidden { origin: *origin, names: *names }))
    }
}

/// What the names in the work directory begin with that this module gives, whole or damaged.
pub const NAMES: [&str; 2] = [NUMBERS, LINK];

/// Whether the entry `name` of the work directory is for the next mount, and whole. Everything else
/// is swept at mount.
pub fn is_kept(name: &OsStr, kind: Kind) -> bool {
    match kind {
        Kind::Dir => false,
        Kind::File if name == NUMBERS || name == CTIMES => true,
        _ => parse_link(name).is_some(),
    }
}

/// The inode number, the origin and the count of names of the original that a name in the work
/// directory tells.
fn parse_link(name: &OsStr) -> Option<(u64, Origin, u32)> {
    let mut parts = name.to_str()?.strip_prefix(LINK)?.split('.');
    let ino = u64::from_str_radix(parts.next()?, 16).ok()?;
    let origin = u128::from_str_radix(parts.next()?, 16).ok()?;
    let names = u32::from_str_radix(parts.next()?, 16).ok()?;
    parts.next().is_none().then_some((ino, origin, names))
}

fn link_name(ino: u64, origin: Origin, names: u32) -> OsString {
    format!("{LINK}{ino:x}.{origin:032x}.{names:x}").into()
}

/// What the file whose attributes in the lower directory `dir` are `stat` is known by.
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
    } = *stat;
    let of_layer = [stack.level(dir) as u64, stack.root_ino(dir)];
    let of_file = [ino, kind as u64, mode.into(), nlink.into(), uid.into(), gid.into(), rdev, size];
    let times = [mtime.sec as u64, mtime.nsec.into(), ctime.sec as u64, ctime.nsec.into()];
    let words = of_layer.into_iter().chain(of_file).chain(times);
    format::fnv1a(&words.flat_map(u64::to_le_bytes).collect::<Vec<_>>())
}

impl<L: Layer> Index<L> {
    /// Reads what is in the work directory `dir`, and answers also the numbers that copies had.
    /// What cannot be read is forgotten. `ctimes` follow what is done to copies.
    pub fn open(upper: &L, dir: &L::Dir, volatile: bool, ctimes: &Ctimes) -> Result<(Self, Claims)> {
        let mut links = Links::default();
        let mut found = Vec::new();
        upper.list(dir, &mut |entry| {
            if let Some(link) = parse_link(entry.name) {
                found.push((entry.name.to_owned(), entry.kind, entry.ino, link));
            }
        })?;
        let head = upper.stat(Object::Dir(dir))?.ino;
        let mut known = RecordsRead::default();
        let read = read_numbers(upper, dir, Access::ReadWrite, head, &mut known).unwrap_or_else(|error| {
            log::warn!("the inode numbers of earlier mounts cannot be read: {error}");
            Numbers::Damaged
        });
        for (name, kind, copy, (ino, origin, names)) in found {
            if known.hidden.get(&origin).is_some_and(|hidden| *hidden >= names) {
                // Every name of the original is hidden or a link of the copy, which needs nothing
                // to hold it together.
                let number = known.claims.get(&copy).filter(|_| kind == Kind::File).map(|claim| claim.number);
                unlink_unseen(upper, dir, &name, number, ctimes)?;
                known.hidden.remove(&origin);
                continue;
            }
            links.add(ino, origin, Kept { name, names, copy });
        }
        let written = match read {
            Numbers::Whole(file, records) if records <= 2 * known.len() + DEAD_MAX => {
                // So that a later sync of an object need not ask for what an earlier mount has
                // written of it.
                let synced = if known.len() > 0 && !volatile { upper.sync(&file) } else { Ok(()) };
                synced.map(|()| (file, records + 1))
            }
            _ => write_numbers(upper, dir, head, &known, volatile).map(|file| (file, known.len() + 1)),
        };
        let (numbers, records) = match written {
            Ok((file, records)) => (Some(file), records),
            Err(error) => {
                log::warn!("inode numbers are not kept for later mounts: {error}");
                (None, 0)
            }
        };
        links.hidden = known.hidden;
        let end = AtomicU64::new((records * Record::SIZE) as u64);
        Ok((Index { numbers, end, links: Lock::new(links), unsynced: Lock::default() }, known.claims))
    }

    /// Removes the file if there is nothing in it.
    pub fn finish(&self, upper: &L, dir: &L::Dir) -> Result<()> {
        let is_empty = self.end.load(Ordering::Relaxed) <= Record::SIZE as u64;
        if self.numbers.is_some() && is_empty { upper.unlink(dir, OsStr::new(NUMBERS)) } else { Ok(()) }
    }

    /// Writes records down. What fails is logged: only a later mount misses it.
    pub fn append(&self, upper: &L, records: &[Record]) {
        let Some(file) = &self.numbers else { return };
        let bytes: Vec<_> = records.iter().flat_map(|record| record.to_bytes()).collect();
        let at = self.end.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if let Err(error) = write_all(upper, file, &bytes, at) {
            log::warn!("inode numbers and links are not kept for the next mount: {error}");
            return;
        }
        let copies: Vec<_> = records.iter().filter_map(|record| self.copy_of(record)).collect();
        let mut unsynced = self.unsynced.lock();
        unsynced.written += 1;
        let written = unsynced.written;
        unsynced.copies.extend(copies.into_iter().map(|copy| (copy, written)));
    }

    /// The copy of which a record says something that its next mount needs.
    fn copy_of(&self, record: &Record) -> Option<u64> {
        match record {
            Record::Number { copy, .. } => Some(*copy),
            Record::Hidden { origin, .. } => self.links.lock().copies.get(origin).map(|kept| kept.copy),
            Record::Head { .. } | Record::Gone { .. } => None,
        }
    }

    /// Brings to the disk what was written down of the object of the upper layer with the inode
    /// number `ino`. None: it may be any.
    pub fn sync(&self, upper: &L, ino: Option<u64>) -> Result<()> {
        let written = {
            let unsynced = self.unsynced.lock();
            if ino.map_or(unsynced.copies.is_empty(), |ino| !unsynced.copies.contains_key(&ino)) {
                return Ok(());
            }
            unsynced.written
        };
        if let Some(file) = &self.numbers {
            upper.sync(file)?;
        }
        self.unsynced.lock().copies.retain(|_, at| *at > written);
        Ok(())
    }

    /// Whether a lower file with this inode number may have been copied up while it had other
    /// names.
    pub fn may_be_copied(&self, ino: u64) -> bool {
        self.links.lock().lower_inos.contains(&ino)
    }

    /// Says that one more name of a lower file is its own no more.
    fn hide(&self, origin: Origin) -> Record {
        let mut links = self.links.lock();
        let names = links.hidden.entry(origin).or_default();
        *names += 1;
        Record::Hidden { origin, names: *names }
    }

    /// Forgets a file of which no name is left.
    fn forget(&self, origin: Origin) -> Option<Record> {
        let mut links = self.links.lock();
        if let Some(kept) = links.copies.remove(&origin) {
            links.origins.remove(&kept.copy);
        }
        links.hidden.remove(&origin).map(|_| Record::Hidden { origin, names: 0 })
    }

    /// What is known of a copy, by its inode number.
    fn of_copy(&self, attr: &Stat) -> Option<Linked> {
        let links = self.links.lock();
        links.linked(*links.origins.get(&attr.ino)?, *attr)
    }

    fn of_origin(&self, origin: Origin, attr: Stat) -> Option<Linked> {
        self.links.lock().linked(origin, attr)
    }

    fn copy_name(&self, origin: Origin) -> Option<OsString> {
        self.links.lock().copies.get(&origin).map(|copy| copy.name.clone())
    }

    fn hidden(&self, origin: Origin) -> u32 {
        self.links.lock().hidden.get(&origin).copied().unwrap_or(0)
    }
}

impl Links {
    fn add(&mut self, ino: u64, origin: Origin, kept: Kept) {
        self.origins.insert(kept.copy, origin);
        self.copies.insert(origin, kept);
        self.lower_inos.insert(ino);
    }

    /// The file that was copied from `origin`; `attr` are those of the copy.
    fn linked(&self, origin: Origin, attr: Stat) -> Option<Linked> {
        let copy = self.copies.get(&origin)?;
        let below = copy.names.saturating_sub(self.hidden.get(&origin).copied().unwrap_or(0));
        // The name in the work directory is none of the file's.
        let nlink = (attr.nlink.saturating_sub(1) + below).max(1);
        Some(Linked {
            attr,
            index_entry: Some(copy.name.clone()),
            origin: Some(origin),
            links: LinkCount::Counted(nlink),
        })
    }
}

/// What is in a work directory, for those who only look.
pub struct Review {
    /// Whether every record of the numbers is one, and of this file, but for what a power failure
    /// takes.
    pub whole: bool,
    /// The copies of which not all of the original's names are hidden or links.
    pub links: Vec<(OsString, Origin)>,
}

/// Looks at the work directory `dir`.
pub fn review<L: Layer>(upper: &L, dir: &L::Dir) -> Result<Review> {
    let (mut links, mut has_numbers) = (Vec::new(), false);
    upper.list(dir, &mut |entry| {
        has_numbers |= entry.name == NUMBERS && entry.kind == Kind::File;
        links.extend(
            parse_link(entry.name).filter(|_| entry.kind != Kind::Dir).map(|link| (entry.name.to_owned(), link)),
        );
    })?;
    let mut known = RecordsRead::default();
    let head = upper.stat(Object::Dir(dir))?.ino;
    let whole = !has_numbers || !matches!(read_numbers(upper, dir, Access::Read, head, &mut known)?, Numbers::Damaged);
    links.retain(|(_, (_, origin, names))| known.hidden.get(origin).is_none_or(|hidden| hidden < names));
    Ok(Review { whole, links: links.into_iter().map(|(name, (_, origin, _))| (name, origin)).collect() })
}

/// Writes the numbers of a work directory anew if they are damaged, as the next mount would.
pub fn rewrite<L: Layer>(upper: &L, dir: &L::Dir) -> Result<()> {
    let ctimes = Ctimes::open(upper, dir);
    let (index, _) = Index::open(upper, dir, false, &ctimes)?;
    index.finish(upper, dir)?;
    ctimes.save(upper, dir)
}

/// Removes the name of a copy that has others. A file that shows `number` goes on showing its time
/// of last change of status.
fn unlink_unseen<L: Layer>(upper: &L, dir: &L::Dir, name: &OsStr, number: Option<u64>, ctimes: &Ctimes) -> Result<()> {
    let file = number.and_then(|number| Some((number, upper.open_file(dir, name, Access::Read).ok()?)));
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
        Err(error) if error.errno == ENOENT => return Ok(Numbers::Cut),
        file => file?,
    };
    let stat = upper.stat(Object::File(&file))?;
    let mut bytes = vec![0; usize::try_from(stat.size).map_err(|_| Error::new(EIO))?];
    let read = upper.read_at(&file, &mut bytes, 0)?;
    let bytes = &bytes[..read];
    let (mut cut, mut damaged) = (bytes.is_empty(), false);
    for (index, chunk) in bytes.chunks(Record::SIZE).enumerate() {
        match Record::from_bytes(chunk) {
            Some(record) if (index == 0) == (record == Record::Head { dir: head, file: stat.ino }) => known.add(record),
            // It may be of another file, of which nothing is believed.
            None if index == 0 && is_truncated(chunk, 0) => return Ok(Numbers::Cut),
            _ if index == 0 => return Ok(Numbers::Damaged),
            _ if is_truncated(chunk, index * Record::SIZE) => cut = true,
            _ => damaged = true,
        }
    }
    Ok(match (damaged, cut) {
        (true, _) => Numbers::Damaged,
        (false, true) => Numbers::Cut,
        (false, false) => Numbers::Whole(file, (read / Record::SIZE).saturating_sub(1)),
    })
}

/// Whether a power failure may have made this, at `offset` in the file, of a record that was not
/// synced: the end is missing, or zeros are in a block of the disk that was not written.
fn is_truncated(bytes: &[u8], offset: usize) -> bool {
    const BLOCK: usize = 512;
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let edge = (BLOCK - offset % BLOCK).min(bytes.len());
    bytes.len() < Record::SIZE || is_zero(&bytes[..edge]) || edge < bytes.len() && is_zero(&bytes[edge..])
}

fn write_numbers<L: Layer>(upper: &L, dir: &L::Dir, head: u64, known: &RecordsRead, volatile: bool) -> Result<L::File> {
    let (name, temp) = (OsStr::new(NUMBERS), OsStr::new(NEW_NUMBERS));
    let file = upper.create_file(dir, temp, 0o600, upper.identity())?;
    let written = (|| {
        let first = Record::Head { dir: head, file: upper.stat(Object::File(&file))?.ino };
        let bytes: Vec<_> = [first].into_iter().chain(known.records()).flat_map(Record::to_bytes).collect();
        write_all(upper, &file, &bytes, 0)?;
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
    /// What is known of an object that `dir` of a layer has with these attributes, and that has
    /// several names there.
    pub(super) fn linked(&self, dir: &LayerDir<L>, attr: Stat) -> Result<Linked> {
        let alone = Linked { attr, index_entry: None, origin: None, links: LinkCount::OfLayer };
        let Ok((_, work)) = self.upper() else { return Ok(alone) };
        let index = work.index();
        if self.stack.is_upper(dir) {
            return Ok(index.of_copy(&attr).unwrap_or(alone));
        }
        let origin = origin(&self.stack, dir, &attr);
        if let Some(name) = index.copy_name(origin) {
            let linked = match self.stack.stat(work.dir(), &name) {
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

    /// What an object of a lower layer is known by, for `fsck`. None if no name is left.
    pub(crate) fn digest(&self, node: &Arc<Node<L>>) -> Result<Option<Origin>> {
        let place = node.state.lock().places.first().cloned();
        place.map(|place| Ok(origin(&self.stack, &place.dir, &self.layer_attr(node)?))).transpose()
    }

    /// Gives the complete copy `temp` of a file with several names the name in the work directory
    /// by which it is found again.
    pub(super) fn keep_copy(&self, origin: Origin, before: &Stat, temp: &OsStr) -> Result<OsString> {
        let (upper, work) = self.upper()?;
        let name = link_name(before.ino, origin, before.nlink);
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
            log::warn!("{name:?} stays in the work directory: {error}");
        }
    }

    /// After a copy-up: writes down which number the copy shows, and of a file that has other names
    /// below, under which name it is kept.
    pub(super) fn record_copy_up(&self, ino: u64, copy: &Stat, kept: Option<(&Stat, Origin, &OsStr)>) {
        let Ok((upper, work)) = self.upper() else { return };
        self.inodes.record_copy_up(copy.dev, copy.ino, ino);
        if let Some((before, origin, name)) = kept {
            let kept = Kept { name: name.to_owned(), names: before.nlink, copy: copy.ino };
            work.index().links.lock().add(before.ino, origin, kept);
        }
        work.index().append(upper, &[Record::Number { copy: copy.ino, number: ino, time: copy.ctime }]);
    }

    /// Says that a name of a file that has several in a lower layer is hidden there, or a link of
    /// the copy.
    pub(super) fn hid_name(&self, origin: Origin) {
        if let Ok((upper, work)) = self.upper() {
            work.index().append(upper, &[work.index().hide(origin)]);
        }
    }

    /// Says that no name is left of an object of the upper layer, which shows `number`, and which
    /// its layer numbers `ino` on `device`.
    pub(super) fn lost_copy(&self, number: u64, device: u64, ino: u64, origin: Option<Origin>) {
        let Ok((upper, work)) = self.upper() else { return };
        let number = self.inodes.forget_copy(device, ino, number).then_some(Record::Gone { copy: ino, number });
        let hidden = origin.and_then(|origin| work.index().forget(origin));
        let records: Vec<_> = number.into_iter().chain(hidden).collect();
        if !records.is_empty() {
            work.index().append(upper, &records);
        }
    }

    /// The number that an object with these attributes shows from now on, as
    /// [`Inodes::assign`](super::inode::Inodes::assign) has it.
    pub(super) fn number(&self, attr: &Stat) -> u64 {
        let (number, is_new) = self.inodes.assign(attr.dev, attr.ino);
        if let (true, Ok((upper, work))) = (is_new, self.upper()) {
            work.index().append(upper, &[Record::Number { copy: attr.ino, number, time: attr.ctime }]);
        }
        number
    }

    /// Before the entry `name` of `dir` gets its number: finds out whether an earlier mount gave it
    /// one.
    pub(super) fn resolve_claim(&self, dir: &Arc<LayerDir<L>>, name: &OsStr, attr: &Stat) -> Result<()> {
        if let Some(time) = self.inodes.claimed_at(attr.dev, attr.ino) {
            let birth = self.stack.layer(dir).birth(Object::Entry(&*self.stack.open(dir)?, name))?;
            // What was created later has only got the inode number that the copy had.
            self.inodes.resolve_claim(attr.dev, attr.ino, birth.is_none_or(|birth| birth <= time));
        }
        Ok(())
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
            Record::Number { copy: 2, number: 3 << 48, time },
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
    fn what_a_power_failure_leaves_of_a_record_is_no_damage() {
        let bytes = Record::Number { copy: 2, number: 3 << 48, time: Time { sec: 1 << 60, nsec: 1 } }.to_bytes();
        let zeroed = |range: std::ops::Range<usize>| {
            let mut torn = bytes;
            torn[range].fill(0);
            torn
        };
        assert!(is_truncated(&bytes[..47], 48) && is_truncated(&zeroed(0..48), 48));
        // This one lies across the end of a block: 32 bytes are in the first, 16 in the second.
        assert!(is_truncated(&zeroed(0..32), 480) && is_truncated(&zeroed(32..48), 480));
        assert!(
            !is_truncated(&zeroed(0..30), 480) && !is_truncated(&zeroed(32..48), 528) && !is_truncated(&bytes, 480)
        );
    }

    #[test]
    fn what_is_gone_does_not_take_what_came_after_it() {
        let mut known = RecordsRead::default();
        let time = Time::default();
        known.add(Record::Number { copy: 1, number: 10, time });
        known.add(Record::Number { copy: 1, number: 11, time });
        known.add(Record::Gone { copy: 1, number: 10 });
        assert_eq!(known.claims[&1].number, 11);
        known.add(Record::Gone { copy: 1, number: 11 });
        assert!(known.claims.is_empty());
    }

    #[test]
    fn the_name_of_a_link_says_what_it_is_a_copy_of() {
        let name = link_name(0x1f, 5, 3);
        assert_eq!(parse_link(&name), Some((0x1f, 5, 3)));
        assert!(is_kept(&name, Kind::File) && is_kept(&name, Kind::Symlink) && !is_kept(&name, Kind::Dir));
        assert!(!is_kept(OsStr::new(NUMBERS), Kind::Fifo));
        for other in ["link.", "link.1.2", "link.1.2.3.4", "link.x.2.3", "1.2.3"] {
            assert_eq!(parse_link(OsStr::new(other)), None, "{other}");
        }
    }
}
