//! Files in the memory of clients.
//!
//! A client that maps a file asks the daemon for an address in the daemon's own memory, and the
//! kernel maps the pages that are there into the client as well: the same pages if the mapping is
//! shared, and, until the client writes to one, also if it is private. So a mapped file has one
//! [`Region`], filled with what the file holds wherever anybody has it mapped. From then on:
//!
//! - A write or a change of size through a handle goes to the file and to the region. Both happen
//!   under the file's lock, as does everything else here, so a difference between the two is what a
//!   client has written to its memory, and nothing else.
//! - A read through a handle has what clients may have written laid over what the file holds.
//! - What clients have written goes to the file when they unmap it or close their last descriptor,
//!   when somebody asks for the file to be brought to the disk, and when the daemon ends. The
//!   kernel does not tell what was written, so the pages are compared with the file: one that is
//!   the same costs neither a write nor the time of the last change. Bytes behind the end of the
//!   file are nobody's.
//! - A page is given back once nobody has it mapped.
//!
//! A file is copied up before it is mapped shared and writable: nobody would hear of it if that
//! failed when it is unmapped.
//!
//! The kernel keeps the descriptor open that a mapping was made with, and says so when a range is
//! unmapped, naming the handle, but not which of the handle's mappings of that range went. So as
//! long as the handle has a writable one of a page, what is unmapped counts as the others.
//!
//! What counts as a client's is every page that it has mapped, holes too, as the kernel may come
//! and have any of them filled. The pages of one file count once for a user, however many mappings
//! he has of them.
//!
//! Lock order: a file's lock, then those of the engine. That of the holders is a leaf. Under that
//! of the table a file's lock is taken only where no other thread has the file, so without waiting.

use std::cmp::{max, min};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::mem::replace;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::errno::{EACCES, EINVAL, ENODEV, ENOMEM, EOVERFLOW, Error, Result};
use log::error;
use syscall::PAGE_SIZE;
use syscall::flag::MapFlags;

use super::OverlayScheme;
use super::handle::Open;
use super::quota::{Quota, Share};
use super::region::{self, Region};
use crate::layer::{Kind, Layer, write_all_with};
use crate::overlay::{self, Node, Overlay, check_wanted};
use crate::sync::Lock;

const PAGE: u64 = PAGE_SIZE as u64;
/// How many bytes are read, compared and written at a time. Whole pages.
const PIECE: u64 = 128 * 1024;

/// How many mappings the clients of one user may have. All of a file are looked at for every
/// request.
const MAPPINGS_OF_USER_MAX: usize = 1 << 14;
/// How many mappings there may be.
const MAPPINGS_MAX: usize = 1 << 16;

/// All files that clients have mapped.
pub struct Mappings<L: Layer> {
    /// By the number of the node. One that is being changed has an entry too, so that nobody maps
    /// it half way.
    files: Lock<HashMap<u64, Arc<File<L>>>>,
    /// The handles that have mapped something.
    holders: Lock<HashSet<usize>>,
    limits: Limits,
}

/// Of what clients can have only so much.
struct Limits {
    /// Pages that are lent: of one user half of the machine's, in all three quarters.
    pages: Arc<Quota>,
    /// Mappings, or what is left of them.
    parts: Arc<Quota>,
    /// Bytes of address space.
    room: Arc<Quota>,
}

/// One file.
struct File<L: Layer> {
    mapped: Lock<Option<Mapped<L>>>,
    /// Whether there is something in `mapped` that a client may write to: what a reader asks first,
    /// who would wait for a writer otherwise. Changes under the lock of `mapped`.
    writable: AtomicBool,
}

/// A file that clients have in their memory.
struct Mapped<L: Layer> {
    file: overlay::Handle<L>,
    region: Region,
    parts: Vec<Part>,
    /// What each user has of it, by what he has in `parts`.
    charges: HashMap<u32, Charge>,
}

struct Charge {
    pages: Share,
    parts: Share,
    /// All of the region's address space, whoever else has a part of it.
    room: Share,
}

/// What was mapped by one request, or is left of that.
#[derive(Clone)]
struct Part {
    /// The handle's id.
    id: usize,
    /// Who opened it.
    user: u32,
    /// Whole pages, in bytes of the file.
    bytes: Range<u64>,
    /// Whether what the client writes there is meant for the file.
    writable: bool,
}

impl<L: Layer> OverlayScheme<L> {
    /// Answers the address of `size` bytes of a file from `offset` on, of which the kernel then
    /// lends the pages to the client.
    ///
    /// EACCES without the right to read, and for what is shared and writable without the right to
    /// write; ENODEV for what is no regular file; EINVAL for no bytes, or an offset that is not on
    /// a page; EOVERFLOW behind the largest offset; ENOMEM, also for more than clients may have,
    /// and for a place that is far behind all that was expected when the file was mapped first;
    /// ECANCELED; and the errors of a write.
    pub(super) fn map(&self, id: usize, offset: u64, size: usize, flags: MapFlags) -> Result<usize> {
        let open = &*self.handles.open(id)?;
        if open.node().kind() != Kind::File {
            return Err(Error::new(ENODEV));
        }
        let writable = flags.contains(MapFlags::MAP_SHARED | MapFlags::PROT_WRITE);
        if !open.readable || (writable && !open.writable) {
            return Err(Error::new(EACCES));
        }
        if size == 0 || !offset.is_multiple_of(PAGE) {
            return Err(Error::new(EINVAL));
        }
        let bytes = pages(offset, size)?;
        if writable {
            self.drop_set_id(open.node(), open.opener)?;
            self.overlay.prepare_write(open.node())?;
        }
        let address = self.mappings.map(&self.overlay, open, Part { id, user: open.opener.uid, bytes, writable })?;
        // Who has given up may have closed it meanwhile.
        if let Err(closed) = self.handles.get(id) {
            self.mappings.unmap_all(&self.overlay, open, id);
            return Err(closed);
        }
        Ok(address)
    }

    /// Takes back what [`OverlayScheme::map`] gave, or a part of it. EINVAL for what was not given;
    /// ENOMEM if that would make two mappings of one, and there are too many: then all of it stays
    /// until the handle is closed.
    pub(super) fn unmap(&self, id: usize, offset: u64, size: usize) -> Result<()> {
        let open = self.handles.open(id)?;
        if size == 0 || !offset.is_multiple_of(PAGE) {
            return Err(Error::new(EINVAL));
        }
        self.mappings.unmap(&self.overlay, &open, id, pages(offset, size)?)
    }

    /// Whether a handle has something mapped, so that closing it may take long.
    pub fn has_mapped(&self, id: usize) -> bool {
        self.mappings.holders.lock().contains(&id)
    }

    /// Unmaps what a handle that is closed has mapped still.
    pub(super) fn unmap_all(&self, id: usize, open: &Open<L>) {
        if self.has_mapped(id) {
            self.mappings.unmap_all(&self.overlay, open, id);
        }
    }

    /// Writes to the files what clients have written to their memory. An error of one file does not
    /// keep the others back.
    pub fn write_back(&self) {
        self.mappings.write_all_back(&self.overlay);
    }
}

/// The whole pages of `size` bytes at a page. EOVERFLOW behind the largest offset.
fn pages(offset: u64, size: usize) -> Result<Range<u64>> {
    let end = offset.checked_add(size as u64).and_then(|end| end.checked_next_multiple_of(PAGE));
    let end = end.filter(|end| i64::try_from(*end).is_ok()).ok_or(Error::new(EOVERFLOW))?;
    Ok(offset..end)
}

impl<L: Layer> Mappings<L> {
    pub fn new() -> Self {
        Self { files: Lock::new(HashMap::new()), holders: Lock::new(HashSet::new()), limits: Limits::new() }
    }

    /// As [`Overlay::read_at`].
    pub fn read(&self, overlay: &Overlay<L>, file: &overlay::Handle<L>, buf: &mut [u8], offset: u64) -> Result<usize> {
        let found = self.files.lock().get(&file.node().id()).cloned();
        let Some(mapped_file) = found.filter(|file| file.writable.load(Ordering::Acquire)) else {
            return overlay.read_at(file, buf, offset);
        };
        let mapped = mapped_file.mapped.lock();
        let read = overlay.read_at(file, buf, offset)?;
        if let Some(mapped) = &*mapped {
            for range in mapped.covered(offset..offset + read as u64, |part| part.writable) {
                let (start, end) = (range.start - offset, range.end - offset);
                mapped.region.read(range.start, &mut buf[start as usize..end as usize]);
            }
        }
        Ok(read)
    }

    /// As [`Overlay::write_at`].
    pub fn write(&self, overlay: &Overlay<L>, file: &overlay::Handle<L>, buf: &[u8], offset: u64) -> Result<usize> {
        self.change(file.node(), |mapped| {
            let Some(mapped) = mapped else {
                return overlay.write_at(file, buf, offset);
            };
            let size = overlay.stat(file.node())?.size;
            let written = overlay.write_at(file, buf, offset)?;
            mapped.clear(size..max(size, offset));
            mapped.put(offset, &buf[..written]);
            Ok(written)
        })
    }

    /// As [`Overlay::append`].
    pub fn append(&self, overlay: &Overlay<L>, file: &overlay::Handle<L>, buf: &[u8]) -> Result<usize> {
        self.change(file.node(), |mapped| {
            let Some(mapped) = mapped else {
                return overlay.append(file, buf);
            };
            let size = overlay.stat(file.node())?.size;
            let written = overlay.append(file, buf)?;
            mapped.put(size, &buf[..written]);
            Ok(written)
        })
    }

    /// As [`Overlay::truncate`].
    pub fn truncate(&self, overlay: &Overlay<L>, node: &Arc<Node<L>>, size: u64) -> Result<()> {
        self.change(node, |mapped| {
            let Some(mapped) = mapped else {
                return overlay.truncate(node, size);
            };
            let before = overlay.stat(node)?.size;
            overlay.truncate(node, size)?;
            mapped.clear(min(before, size)..max(before, size));
            Ok(())
        })
    }

    /// As [`Overlay::sync`], with what clients have written to their memory.
    pub fn sync(&self, overlay: &Overlay<L>, file: &overlay::Handle<L>) -> Result<()> {
        let found = self.files.lock().get(&file.node().id()).cloned();
        if let Some(mapped_file) = found
            && let Some(mapped) = &*mapped_file.mapped.lock()
        {
            mapped.write_back(overlay, 0..u64::MAX)?;
        }
        overlay.sync(file)
    }

    fn map(&self, overlay: &Overlay<L>, open: &Open<L>, part: Part) -> Result<usize> {
        let id = part.id;
        self.change(open.node(), |mapped| {
            let size = overlay.stat(open.node())?.size;
            let file = match mapped {
                Some(file) => file,
                None => {
                    let end = max(size, part.bytes.end);
                    mapped.insert(Mapped {
                        file: overlay.open(open.node()),
                        region: Region::reserve(end)?,
                        parts: Vec::new(),
                        charges: HashMap::new(),
                    })
                }
            };
            let answer = file.map(overlay, &self.limits, size, part);
            if answer.is_ok() {
                self.holders.lock().insert(id);
            }
            if file.parts.is_empty() {
                *mapped = None;
            }
            answer
        })
    }

    fn unmap(&self, overlay: &Overlay<L>, open: &Open<L>, id: usize, bytes: Range<u64>) -> Result<()> {
        self.change(open.node(), |mapped| {
            let file = mapped.as_mut().ok_or(Error::new(EINVAL))?;
            let answer = file.unmap(overlay, &self.limits, (id, open.opener.uid), bytes);
            if !file.parts.iter().any(|part| part.id == id) {
                self.holders.lock().remove(&id);
            }
            if file.parts.is_empty() {
                *mapped = None;
            }
            answer
        })
    }

    /// Unmaps all that a handle has mapped. The kernel does that before it closes the descriptor,
    /// but says nothing when it could not map what it had asked for.
    fn unmap_all(&self, overlay: &Overlay<L>, open: &Open<L>, id: usize) {
        let user = open.opener.uid;
        let unmapped = self.change(open.node(), |mapped| {
            self.holders.lock().remove(&id);
            let Some(file) = mapped else {
                return Ok(());
            };
            let held: Vec<_> = file.parts.iter().filter(|part| part.id == id).map(|part| part.bytes.clone()).collect();
            let written = file.write_back(overlay, 0..u64::MAX);
            file.parts.retain(|part| part.id != id);
            // Nothing is refused to who has less.
            let _ = file.charge(&self.limits, user);
            for bytes in held {
                file.release(file.uncovered(bytes));
            }
            if file.parts.is_empty() {
                *mapped = None;
            }
            written
        });
        if let Err(error) = unmapped {
            error!("what a client wrote to a mapped file is lost: {error}");
        }
    }

    fn write_all_back(&self, overlay: &Overlay<L>) {
        let files: Vec<Arc<File<L>>> = self.files.lock().values().cloned().collect();
        for file in files {
            if let Some(mapped) = &*file.mapped.lock()
                && let Err(error) = mapped.write_back(overlay, 0..u64::MAX)
            {
                error!("what a client wrote to a mapped file cannot be written to it now: {error}");
            }
        }
    }

    /// Has `work` change a file, or what is mapped of it, while nobody else does. It may map the
    /// file and unmap it.
    fn change<R>(&self, node: &Node<L>, work: impl FnOnce(&mut Option<Mapped<L>>) -> R) -> R {
        let file = Arc::clone(self.files.lock().entry(node.id()).or_insert_with(|| Arc::new(File::new())));
        let mut mapped = file.mapped.lock();
        let result = work(&mut mapped);
        let writable = mapped.as_ref().is_some_and(|mapped| mapped.parts.iter().any(|part| part.writable));
        file.writable.store(writable, Ordering::Release);
        let unmapped = mapped.is_none();
        drop(mapped);
        if unmapped {
            self.forget(node.id(), file);
        }
        result
    }

    /// Takes a file out of the table, unless it is mapped or somebody else is at it, who will do
    /// this.
    fn forget(&self, number: u64, file: Arc<File<L>>) {
        let mut files = self.files.lock();
        drop(file);
        if let Entry::Occupied(mut entry) = files.entry(number)
            && Arc::get_mut(entry.get_mut()).is_some_and(|file| file.mapped.lock().is_none())
        {
            entry.remove();
        }
    }
}

impl Limits {
    fn new() -> Self {
        let pages = region::memory();
        Self {
            pages: Quota::new(pages / 2, pages / 4 * 3, ENOMEM),
            parts: Quota::new(MAPPINGS_OF_USER_MAX, MAPPINGS_MAX, ENOMEM),
            room: Quota::new(region::SPACE / 2, region::SPACE, ENOMEM),
        }
    }

    /// That of a user who has nothing yet.
    fn charge(&self, user: u32) -> Charge {
        Charge { pages: self.pages.share(user), parts: self.parts.share(user), room: self.room.share(user) }
    }
}

impl<L: Layer> File<L> {
    fn new() -> Self {
        Self { mapped: Lock::new(None), writable: AtomicBool::new(false) }
    }
}

impl<L: Layer> Mapped<L> {
    /// Fills what nobody else has mapped already. `size` is the file's.
    fn map(&mut self, overlay: &Overlay<L>, limits: &Limits, size: u64, part: Part) -> Result<usize> {
        if part.bytes.end > self.region.room() {
            return Err(Error::new(ENOMEM));
        }
        let (user, bytes) = (part.user, part.bytes.clone());
        let new = self.uncovered(bytes.clone());
        self.parts.push(part);
        let filled = self.charge(limits, user).and_then(|()| {
            let filled = new.iter().try_for_each(|range| self.fill(overlay, range.start..min(range.end, size)));
            filled.inspect_err(|_| self.release(new))
        });
        if let Err(error) = filled {
            self.parts.pop();
            let _ = self.charge(limits, user);
            return Err(error);
        }
        Ok(self.region.address(bytes.start))
    }

    /// Counts what a user has mapped. ENOMEM if that is too much, and more than it was: then it has
    /// to be made what it was, and counted again.
    fn charge(&mut self, limits: &Limits, user: u32) -> Result<()> {
        let parts = self.parts.iter().filter(|part| part.user == user).count();
        if parts == 0 {
            self.charges.remove(&user);
            return Ok(());
        }
        let bytes: u64 = self.covered(0..u64::MAX, |part| part.user == user).iter().map(|it| it.end - it.start).sum();
        let charge = self.charges.entry(user).or_insert_with(|| limits.charge(user));
        charge.room.set(self.region.room() as usize)?;
        charge.parts.set(parts)?;
        charge.pages.set((bytes / PAGE) as usize)
    }

    /// Fills memory, which holds zeros and which no client has, with what the file holds. Where
    /// that is zeros the memory is not touched, so that it takes none: anybody can have a file that
    /// is larger than all memory, if most of it is a hole.
    fn fill(&mut self, overlay: &Overlay<L>, range: Range<u64>) -> Result<()> {
        let mut buf = Vec::new();
        let mut from = range.start;
        while from < range.end
            && let Some(data) = overlay.next_data(&self.file, from)?
        {
            for piece in pieces(data.start..min(data.end, range.end)) {
                check_wanted()?;
                buf.resize((piece.end - piece.start) as usize, 0);
                let read = read_all(overlay, &self.file, &mut buf, piece.start)?;
                if buf[..read].iter().any(|byte| *byte != 0) {
                    self.region.write(piece.start, &buf[..read]);
                }
            }
            from = data.end;
        }
        Ok(())
    }

    /// Takes a range from what a handle of a user's has mapped, each page once. EINVAL if it has
    /// nothing of it; ENOMEM if it leaves too many parts, and then nothing is taken; else the first
    /// error of writing back, after which the range is unmapped all the same.
    fn unmap(
        &mut self,
        overlay: &Overlay<L>,
        limits: &Limits,
        (id, user): (usize, u32),
        bytes: Range<u64>,
    ) -> Result<()> {
        let written = self.write_back(overlay, bytes.clone());
        // The writable ones last: see above.
        self.parts.sort_by_key(|part| part.writable);
        let mut wanted = vec![bytes.clone()];
        let mut kept = Vec::with_capacity(self.parts.len());
        let mut any = false;
        for part in &self.parts {
            if part.id != id {
                kept.push(part.clone());
                continue;
            }
            let taken: Vec<_> =
                wanted.iter().map(|range| common(range, &part.bytes)).filter(|r| !r.is_empty()).collect();
            any |= !taken.is_empty();
            wanted = wanted.iter().flat_map(|range| without(range, &taken)).collect();
            kept.extend(without(&part.bytes, &taken).into_iter().map(|bytes| Part { bytes, ..part.clone() }));
        }
        if !any {
            return Err(Error::new(EINVAL));
        }
        let before = replace(&mut self.parts, kept);
        if let Err(error) = self.charge(limits, user) {
            self.parts = before;
            let _ = self.charge(limits, user);
            return Err(error);
        }
        self.release(self.uncovered(bytes));
        written
    }

    /// Gives pages back that nobody has mapped.
    fn release(&mut self, ranges: Vec<Range<u64>>) {
        for range in ranges {
            self.region.release(range);
        }
    }

    /// Writes to the file what clients have changed in `range`.
    fn write_back(&self, overlay: &Overlay<L>, range: Range<u64>) -> Result<()> {
        let dirty = self.covered(range, |part| part.writable);
        if dirty.is_empty() {
            return Ok(());
        }
        let size = overlay.stat(self.file.node())?.size;
        let (mut memory, mut file) = (Vec::new(), Vec::new());
        for piece in dirty.into_iter().flat_map(|range| pieces(range.start..min(range.end, size))) {
            let len = (piece.end - piece.start) as usize;
            memory.resize(len, 0);
            file.resize(len, 0);
            self.region.read(piece.start, &mut memory);
            let read = read_all(overlay, &self.file, &mut file, piece.start)?;
            file[read..].fill(0);
            for changed in differences(&memory, &file) {
                write_all(overlay, &self.file, &memory[changed.clone()], piece.start + changed.start as u64)?;
            }
        }
        Ok(())
    }

    /// Puts what was written to the file into the memory as well.
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        for range in self.covered(offset..offset + bytes.len() as u64, |_| true) {
            let (start, end) = (range.start - offset, range.end - offset);
            self.region.write(range.start, &bytes[start as usize..end as usize]);
        }
    }

    /// Clears what the file does not hold any more, or from now on holds as zeros, whatever clients
    /// have written there.
    fn clear(&mut self, bytes: Range<u64>) {
        for range in self.covered(bytes, |_| true) {
            self.region.clear(range);
        }
    }

    /// What of a range is in the parts that are `meant`, in order and without overlaps.
    fn covered(&self, within: Range<u64>, meant: impl Fn(&Part) -> bool) -> Vec<Range<u64>> {
        let parts = self.parts.iter().filter(|part| meant(part)).map(|part| common(&within, &part.bytes));
        let mut found: Vec<Range<u64>> = parts.filter(|range| !range.is_empty()).collect();
        found.sort_by_key(|range| range.start);
        found.dedup_by(|next, range| {
            let touches = next.start <= range.end;
            if touches {
                range.end = max(range.end, next.end);
            }
            touches
        });
        found
    }

    /// What of a range is in no part.
    fn uncovered(&self, within: Range<u64>) -> Vec<Range<u64>> {
        without(&within, &self.covered(within.clone(), |_| true))
    }
}

fn common(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    max(a.start, b.start)..min(a.end, b.end)
}

/// What is left of a range without others that are in order.
fn without(range: &Range<u64>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    let mut start = range.start;
    for other in others.iter().filter(|other| !common(range, other).is_empty()) {
        left.push(start..other.start);
        start = other.end;
    }
    left.push(start..range.end);
    left.retain(|range| !range.is_empty());
    left
}

/// Cuts a range into pieces of [`PIECE`] bytes.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range.step_by(PIECE as usize).map(move |start| start..min(start + PIECE, end))
}

/// The pages, as ranges of bytes with neighbours joined, in which two texts of one length differ.
fn differences(one: &[u8], other: &[u8]) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for (page, (a, b)) in one.chunks(PAGE_SIZE).zip(other.chunks(PAGE_SIZE)).enumerate() {
        if a == b {
            continue;
        }
        let start = page * PAGE_SIZE;
        match found.last_mut() {
            Some(last) if last.end == start => last.end += a.len(),
            _ => found.push(start..start + a.len()),
        }
    }
    found
}

/// Reads until the buffer is full or the file ends.
fn read_all<L: Layer>(overlay: &Overlay<L>, file: &overlay::Handle<L>, buf: &mut [u8], offset: u64) -> Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match overlay.read_at(file, &mut buf[filled..], offset + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// Writes all. EIO if the layer takes nothing.
fn write_all<L: Layer>(overlay: &Overlay<L>, file: &overlay::Handle<L>, bytes: &[u8], offset: u64) -> Result<()> {
    write_all_with(bytes, offset, |bytes, offset| overlay.write_at(file, bytes, offset))
}
