//! Files in the memory of clients.
//!
//! A client that maps a file asks the daemon for an address in the daemon's memory. The kernel then
//! maps the pages at that address into the client too. A shared mapping has the same pages; so has
//! a private one until the client writes to a page. So a mapped file has one [`Region`], which
//! holds the content of the file in each page that a client has mapped.
//!
//! - A write or a change of size through a handle changes the file and the region. All of this
//!   happens under the file's lock. So any difference between the two is a write of a client to its
//!   memory.
//! - A read through a handle overlays the content of the file with the pages that clients may have
//!   written.
//! - The writes of clients to memory reach the file at four moments. These are an unmap, the close
//!   of the last descriptor, a sync of the file, and the end of the daemon. The kernel does not
//!   report such writes, so the daemon compares the pages with the file. An equal page costs
//!   neither a write nor a new time of last change. Bytes behind the end of the file do not count.
//! - The daemon releases a page once no client has it mapped.
//!
//! A file is copied up before it is mapped shared and writable: no call could report a failure at
//! the unmap.
//!
//! The kernel keeps the descriptor of a mapping open. It reports the unmap of a range with the
//! handle, but not which of the handle's mappings of that range went. So while the handle has a
//! writable mapping of a page, an unmap counts for the others first.
//!
//! A client is charged for every page that it has mapped, holes too, as the kernel may ask to fill
//! any of them. The pages of one file count once for a user, with any number of mappings.
//!
//! Lock order: a file's lock, then those of the engine. That of the holders is a leaf. Under the
//! lock of the table a thread takes a file's lock only if no other thread has the file, so without
//! a wait.

use std::cmp::{max, min};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::mem::replace;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::errno::{EACCES, EINVAL, ENODEV, ENOMEM, EOVERFLOW, ESTALE, Error, Result};
use log::{error, warn};
use syscall::PAGE_SIZE;
use syscall::flag::MapFlags;

use super::handle::{Open, Subject};
use super::quota::{Quota, Share};
use super::region::{self, Region};
use super::tree::Tree;
use crate::layer::{Kind, Layer, write_all_with};
use crate::overlay::{self, Node, Overlay, check_wanted};
use crate::sync::Lock;

const PAGE: u64 = PAGE_SIZE as u64;
/// How many bytes to read, compare and write at a time: whole pages.
const PIECE: u64 = 128 * 1024;

/// How many mappings the clients of one user may have. Every request looks at all mappings of its
/// file.
const MAPPINGS_OF_USER_MAX: usize = 1 << 14;
/// How many mappings there may be.
const MAPPINGS_MAX: usize = 1 << 16;

/// All files that clients have mapped.
pub struct Mappings<L: Layer> {
    /// By the number of the node. A file in a change has an entry too, so that no client maps it in
    /// between.
    files: Lock<HashMap<u64, Arc<File<L>>>>,
    /// The handles with mappings.
    holders: Lock<HashSet<usize>>,
    limits: Limits,
}

/// The limits for clients.
struct Limits {
    /// Mapped pages: half of the machine's for one user, three quarters in all.
    pages: Arc<Quota>,
    /// Mappings, and parts of them.
    parts: Arc<Quota>,
    /// Bytes of address space.
    room: Arc<Quota>,
}

/// One file.
struct File<L: Layer> {
    mapped: Lock<Option<Mapped<L>>>,
    /// Whether `mapped` has a part that a client may write to. A reader checks this first, so that
    /// it does not wait for a writer. It changes under the lock of `mapped`.
    writable: AtomicBool,
}

/// A file that clients have mapped.
struct Mapped<L: Layer> {
    /// None: a rollback took the file away.
    file: Option<overlay::Handle<L>>,
    region: Region,
    parts: Vec<Part>,
    /// The share of each user, by the user of its `parts`.
    charges: HashMap<u32, Charge>,
}

struct Charge {
    pages: Share,
    parts: Share,
    /// All of the region's address space, even if other users have parts of it.
    room: Share,
}

/// A mapping of one request, or a part of it.
#[derive(Clone)]
struct Part {
    /// The handle's id.
    id: usize,
    /// The user that opened it.
    user: u32,
    /// Whole pages, in bytes of the file.
    bytes: Range<u64>,
    /// Whether the client's writes there are for the file.
    writable: bool,
}

impl<L: Layer> Tree<L> {
    /// Returns the address of `size` bytes of a file from `offset` on. The kernel then maps the
    /// pages there into the client.
    ///
    /// # Errors
    ///
    /// - EACCES: the handle is not open for reading; or the mapping is shared and writable, and the
    ///   handle is not open for writing.
    /// - ENODEV: the object is no regular file.
    /// - EINVAL: `size` is 0, or `offset` is not at a page.
    /// - EOVERFLOW: the range passes the largest offset.
    /// - ENOMEM: memory is short, or a limit of clients is reached. Or the range is far behind the
    ///   room that the first mapping of the file reserved.
    /// - ECANCELED: the client has given up.
    /// - Any errno of a write.
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
        // A client that has given up may have closed the handle meanwhile.
        if let Err(closed) = self.handles.get(id) {
            self.mappings.unmap_all(&self.overlay, open.subject(), id);
            return Err(closed);
        }
        Ok(address)
    }

    /// Unmaps a range that [`Tree::map`] mapped, or a part of it.
    ///
    /// # Errors
    ///
    /// - EINVAL: the range is not mapped.
    /// - ENOMEM: the unmap splits a mapping, and there are too many. Then all of it stays until the
    ///   handle is closed.
    /// - ESTALE: a rollback took the file away, so the writes of clients to the range are lost.
    pub(super) fn unmap(&self, id: usize, offset: u64, size: usize) -> Result<()> {
        let subject = self.handles.subject(id)?;
        if size == 0 || !offset.is_multiple_of(PAGE) {
            return Err(Error::new(EINVAL));
        }
        self.mappings.unmap(&self.overlay, subject, id, pages(offset, size)?)
    }

    /// Whether a handle has mappings, so that its close may take long.
    pub(super) fn has_mapped(&self, id: usize) -> bool {
        self.mappings.holders.lock().contains(&id)
    }

    /// Unmaps the mappings of a closed handle.
    pub(super) fn unmap_all(&self, id: usize, subject: Subject) {
        if self.has_mapped(id) {
            self.mappings.unmap_all(&self.overlay, subject, id);
        }
    }
}

/// Returns the whole pages of `size` bytes from a page on.
///
/// # Errors
///
/// - EOVERFLOW: the range passes the largest offset.
fn pages(offset: u64, size: usize) -> Result<Range<u64>> {
    let end = offset.checked_add(size as u64).and_then(|end| end.checked_next_multiple_of(PAGE));
    let end = end.filter(|end| i64::try_from(*end).is_ok()).ok_or(Error::new(EOVERFLOW))?;
    Ok(offset..end)
}

impl<L: Layer> Mappings<L> {
    pub fn new() -> Self {
        Self { files: Lock::new(HashMap::new()), holders: Lock::new(HashSet::new()), limits: Limits::new() }
    }

    /// As [`Overlay::read_at`], with the writes of clients to their memory.
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

    /// As [`Overlay::write_at`], in the file and its mapped pages.
    pub fn write(&self, overlay: &Overlay<L>, file: &overlay::Handle<L>, buf: &[u8], offset: u64) -> Result<usize> {
        self.change(file.node().id(), |mapped| {
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

    /// As [`Overlay::append`], in the file and its mapped pages.
    pub fn append(&self, overlay: &Overlay<L>, file: &overlay::Handle<L>, buf: &[u8]) -> Result<usize> {
        self.change(file.node().id(), |mapped| {
            let Some(mapped) = mapped else {
                return overlay.append(file, buf);
            };
            let size = overlay.stat(file.node())?.size;
            let written = overlay.append(file, buf)?;
            mapped.put(size, &buf[..written]);
            Ok(written)
        })
    }

    /// As [`Overlay::truncate`], in the file and its mapped pages.
    pub fn truncate(&self, overlay: &Overlay<L>, node: &Arc<Node<L>>, size: u64) -> Result<()> {
        self.change(node.id(), |mapped| {
            let Some(mapped) = mapped else {
                return overlay.truncate(node, size);
            };
            let before = overlay.stat(node)?.size;
            overlay.truncate(node, size)?;
            mapped.clear(min(before, size)..max(before, size));
            Ok(())
        })
    }

    /// As [`Overlay::sync`], with the writes of clients to their memory.
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
        self.change(open.node().id(), |mapped| {
            let size = overlay.stat(open.node())?.size;
            let file = match mapped {
                Some(file) => file,
                None => {
                    let end = max(size, part.bytes.end);
                    mapped.insert(Mapped {
                        file: Some(overlay.open(open.node())),
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

    fn unmap(&self, overlay: &Overlay<L>, subject: Subject, id: usize, bytes: Range<u64>) -> Result<()> {
        self.change(subject.node, |mapped| {
            let file = mapped.as_mut().ok_or(Error::new(EINVAL))?;
            let answer = file.unmap(overlay, &self.limits, (id, subject.user), bytes);
            if !file.parts.iter().any(|part| part.id == id) {
                self.holders.lock().remove(&id);
            }
            if file.parts.is_empty() {
                *mapped = None;
            }
            answer
        })
    }

    /// Unmaps all mappings of a handle. The kernel unmaps before it closes the descriptor. But it
    /// reports nothing for a range that it failed to map.
    fn unmap_all(&self, overlay: &Overlay<L>, Subject { node, user }: Subject, id: usize) {
        let unmapped = self.change(node, |mapped| {
            self.holders.lock().remove(&id);
            let Some(file) = mapped else {
                return Ok(());
            };
            let held: Vec<_> = file.parts.iter().filter(|part| part.id == id).map(|part| part.bytes.clone()).collect();
            let written = file.write_back(overlay, 0..u64::MAX);
            file.parts.retain(|part| part.id != id);
            // A smaller share never fails.
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
            error!("a client's writes to a mapped file are lost: {error}");
        }
    }

    /// Writes the clients' writes to memory to the files, and logs the errors.
    ///
    /// # Errors
    ///
    /// - The first errno. The other files are written to all the same.
    pub fn write_all_back(&self, overlay: &Overlay<L>) -> Result<()> {
        let write_back = |file: Arc<File<L>>| match &*file.mapped.lock() {
            Some(mapped) => mapped.write_back(overlay, 0..u64::MAX),
            None => Ok(()),
        };
        let log = |error: &Error| error!("a client's writes to a mapped file cannot be written to it now: {error}");
        self.files().into_iter().map(|file| write_back(file).inspect_err(log)).fold(Ok(()), Result::and)
    }

    /// Returns the files that are mapped.
    pub fn nodes(&self) -> Vec<Arc<Node<L>>> {
        let node = |file: Arc<File<L>>| Some(file.mapped.lock().as_ref()?.file.as_ref()?.node().clone());
        self.files().into_iter().filter_map(node).collect()
    }

    /// Gives each file its object in the overlay that follows, which `find` returns, if it is
    /// there. No request is under way meanwhile.
    pub fn follow(&self, find: &mut dyn FnMut(&Node<L>) -> Option<overlay::Handle<L>>) {
        for file in self.files() {
            if let Some(mapped) = &mut *file.mapped.lock() {
                mapped.file = mapped.file.take().and_then(|file| find(file.node()));
            }
        }
    }

    /// Copies files up that clients may write to in their memory. No later moment could report a
    /// failure to a client, so this one logs it.
    pub fn copy_up(&self, overlay: &Overlay<L>) {
        let writable = self.files().into_iter().filter(|file| file.writable.load(Ordering::Acquire));
        let node = |file: Arc<File<L>>| Some(file.mapped.lock().as_ref()?.file.as_ref()?.node().clone());
        for node in writable.filter_map(node) {
            if let Err(error) = overlay.prepare_write(&node) {
                warn!("a mapped file cannot be copied up, so a client's next writes to it may be lost: {error}");
            }
        }
    }

    fn files(&self) -> Vec<Arc<File<L>>> {
        self.files.lock().values().cloned().collect()
    }

    /// Calls `work` to change the file with this number or its mappings, while no other thread
    /// does. It may map and unmap the file.
    fn change<R>(&self, number: u64, work: impl FnOnce(&mut Option<Mapped<L>>) -> R) -> R {
        let file = Arc::clone(self.files.lock().entry(number).or_insert_with(|| Arc::new(File::new())));
        let mut mapped = file.mapped.lock();
        let result = work(&mut mapped);
        let writable = mapped.as_ref().is_some_and(|mapped| mapped.parts.iter().any(|part| part.writable));
        file.writable.store(writable, Ordering::Release);
        let unmapped = mapped.is_none();
        drop(mapped);
        if unmapped {
            self.forget(number, file);
        }
        result
    }

    /// Removes a file from the table, unless it is mapped, or another thread uses it and will
    /// remove it.
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

    /// Makes the charge of a user without mappings.
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
    /// Adds a mapping, and fills the pages that no other mapping has. `size` is that of the file.
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

    /// Sets the charge of a user to its mappings.
    ///
    /// # Errors
    ///
    /// - ENOMEM: a limit is reached, and the charge grows. The caller must restore the mappings and
    ///   charge again.
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

    /// Fills pages, which are zero and which no client has, with the content of the file. It skips
    /// zeros, so that they take no memory: a file with large holes may be larger than all memory.
    fn fill(&mut self, overlay: &Overlay<L>, range: Range<u64>) -> Result<()> {
        let file = self.file.as_ref().ok_or(Error::new(ESTALE))?;
        let mut buf = Vec::new();
        let mut from = range.start;
        while from < range.end
            && let Some(data) = overlay.next_data(file, from)?
        {
            for piece in pieces(data.start..min(data.end, range.end)) {
                check_wanted()?;
                buf.resize((piece.end - piece.start) as usize, 0);
                let read = read_all(overlay, file, &mut buf, piece.start)?;
                if buf[..read].iter().any(|byte| *byte != 0) {
                    self.region.write(piece.start, &buf[..read]);
                }
            }
            from = data.end;
        }
        Ok(())
    }

    /// Removes a range from the mappings of a user's handle, each page once. After an error of the
    /// write-back the range is unmapped too.
    ///
    /// # Errors
    ///
    /// - EINVAL: the handle has no mapping of it.
    /// - ENOMEM: it would leave too many parts. Then nothing is unmapped.
    /// - The first errno of the write-back.
    fn unmap(
        &mut self,
        overlay: &Overlay<L>,
        limits: &Limits,
        (id, user): (usize, u32),
        bytes: Range<u64>,
    ) -> Result<()> {
        let written = self.write_back(overlay, bytes.clone());
        // The writable ones come last: see the head of the file.
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

    /// Releases pages that no client has mapped.
    fn release(&mut self, ranges: Vec<Range<u64>>) {
        for range in ranges {
            self.region.release(range);
        }
    }

    /// Writes the clients' changes in `range` to the file.
    fn write_back(&self, overlay: &Overlay<L>, range: Range<u64>) -> Result<()> {
        let dirty = self.covered(range, |part| part.writable);
        if dirty.is_empty() {
            return Ok(());
        }
        let handle = self.file.as_ref().ok_or(Error::new(ESTALE))?;
        let size = overlay.stat(handle.node())?.size;
        let (mut memory, mut file) = (Vec::new(), Vec::new());
        for piece in dirty.into_iter().flat_map(|range| pieces(range.start..min(range.end, size))) {
            let len = (piece.end - piece.start) as usize;
            memory.resize(len, 0);
            file.resize(len, 0);
            self.region.read(piece.start, &mut memory);
            let read = read_all(overlay, handle, &mut file, piece.start)?;
            file[read..].fill(0);
            for changed in differences(&memory, &file) {
                write_all(overlay, handle, &memory[changed.clone()], piece.start + changed.start as u64)?;
            }
        }
        Ok(())
    }

    /// Copies a write to the file into the pages too.
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        for range in self.covered(offset..offset + bytes.len() as u64, |_| true) {
            let (start, end) = (range.start - offset, range.end - offset);
            self.region.write(range.start, &bytes[start as usize..end as usize]);
        }
    }

    /// Clears bytes that the file no longer has, or now has as zeros, with all writes of clients to
    /// them.
    fn clear(&mut self, bytes: Range<u64>) {
        for range in self.covered(bytes, |_| true) {
            self.region.clear(range);
        }
    }

    /// Returns the parts of a range in the mappings that are `meant`, in order and without
    /// overlaps.
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

    /// Returns the parts of a range in no mapping.
    fn uncovered(&self, within: Range<u64>) -> Vec<Range<u64>> {
        without(&within, &self.covered(within.clone(), |_| true))
    }
}

fn common(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    max(a.start, b.start)..min(a.end, b.end)
}

/// Returns the parts of a range outside others, which are in order.
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

/// Splits a range into pieces of [`PIECE`] bytes.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range.step_by(PIECE as usize).map(move |start| start..min(start + PIECE, end))
}

/// Returns the pages in which two texts of one length differ, as ranges of bytes with neighbours
/// joined.
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

/// Writes all bytes.
///
/// # Errors
///
/// - EIO: the layer takes no byte.
fn write_all<L: Layer>(overlay: &Overlay<L>, file: &overlay::Handle<L>, bytes: &[u8], offset: u64) -> Result<()> {
    write_all_with(bytes, offset, |bytes, offset| overlay.write_at(file, bytes, offset))
}
