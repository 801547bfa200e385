//! Files in the memory of a client: `mmap`, the client's use of the memory, and `munmap`.
//!
//! The kernel asks the scheme for an address, and maps the daemon's pages there into the client
//! too. The client keeps them until it unmaps them, even if the daemon changes its own mapping. A
//! private mapping has the same page until the client writes to it and gets a copy. A mapping keeps
//! its descriptor open. The scheme gets a message for each unmapped range, after the client has
//! lost it. Its answer has no effect.
//!
//! Here daemon and clients are one process. So the client's pages are further mappings of the
//! daemon's, which must be shared memory.

use std::collections::HashMap;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use syscall::error::{EFAULT, EINVAL, EIO, ENOMEM, Error, Result};
use syscall::flag::{MapFlags, MunmapFlags};
use syscall::schemev2::{Opcode, Sqe};

use super::file::{Fd, PAGE_SIZE};
use super::{Caller, Description};

/// A mapping of a client. Its drop unmaps it. Offsets count from its start.
///
/// An access is a load or a store of a program. EFAULT stands for the signal that the program would
/// get.
pub struct Mapping {
    caller: Arc<Caller>,
    description: Arc<Description>,
    /// The offset of the first byte in the file.
    offset: u64,
    flags: MapFlags,
    memory: Memory,
    /// The pages of a private mapping that the client has written to.
    copies: HashMap<usize, Box<[u8; PAGE_SIZE]>>,
    /// Whole pages: which of them are still mapped.
    mapped: Vec<bool>,
}

/// Address space of the client.
struct Memory {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the value owns the memory. The daemon may use its pages at the same time; the tests are
// about that. Both sides copy bytes by raw pointers.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Fd {
    /// Maps `size` bytes of the file from `offset` on.
    ///
    /// # Errors
    ///
    /// - EINVAL: `size` is 0, or `offset` or the daemon's memory is not at a page.
    /// - EIO: the daemon's memory cannot be mapped a second time.
    pub fn map(&self, offset: u64, size: usize, flags: MapFlags) -> Result<Mapping> {
        let address = self.mmap(offset, size, flags)?;
        let memory = Memory::alias(address, size.next_multiple_of(PAGE_SIZE))?;
        let mapped = vec![true; memory.len / PAGE_SIZE];
        let (caller, description) = (self.caller().clone(), self.description().clone());
        Ok(Mapping { caller, description, offset, flags, memory, copies: HashMap::new(), mapped })
    }

    /// Asks the scheme to write back the clients' writes to mappings, as `msync` would in a kernel
    /// that knows it. The message has no answer and names no file.
    pub fn msync(&self) {
        self.description().message(Opcode::Msync, self.caller().pid);
    }
}

impl Mapping {
    /// Loads bytes.
    ///
    /// # Errors
    ///
    /// - EFAULT: nothing is mapped there.
    pub fn load(&self, offset: usize, buf: &mut [u8]) -> Result<()> {
        for (page, range, at) in self.pieces(offset, buf.len())? {
            let (start, len) = (range.start % PAGE_SIZE, range.len());
            match self.copies.get(&page) {
                Some(copy) => buf[at..at + len].copy_from_slice(&copy[start..start + len]),
                None => self.memory.load(range.start, &mut buf[at..at + len]),
            }
        }
        Ok(())
    }

    /// Loads `len` bytes.
    pub fn bytes(&self, offset: usize, len: usize) -> Result<Vec<u8>> {
        let mut buf = vec![0; len];
        self.load(offset, &mut buf)?;
        Ok(buf)
    }

    /// Stores bytes.
    ///
    /// # Errors
    ///
    /// - EFAULT: nothing is mapped there, or the mapping is not writable.
    pub fn store(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        if !self.flags.contains(MapFlags::PROT_WRITE) {
            return Err(Error::new(EFAULT));
        }
        for (page, range, at) in self.pieces(offset, bytes.len())? {
            let piece = &bytes[at..at + range.len()];
            if self.flags.contains(MapFlags::MAP_SHARED) {
                self.memory.store(range.start, piece);
                continue;
            }
            let memory = &self.memory;
            let copy = self.copies.entry(page).or_insert_with(|| {
                let mut copy = Box::new([0; PAGE_SIZE]);
                memory.load(page * PAGE_SIZE, &mut copy[..]);
                copy
            });
            copy[range.start % PAGE_SIZE..][..piece.len()].copy_from_slice(piece);
        }
        Ok(())
    }

    /// Splits an access into pages. Returns for each the page, the bytes of the mapping, and their
    /// place in the buffer.
    fn pieces(&self, offset: usize, len: usize) -> Result<Vec<(usize, Range<usize>, usize)>> {
        let end = offset.checked_add(len).filter(|end| *end <= self.memory.len).ok_or(Error::new(EFAULT))?;
        let mut pieces = Vec::new();
        let mut start = offset;
        while start < end {
            let page = start / PAGE_SIZE;
            if !self.mapped[page] {
                return Err(Error::new(EFAULT));
            }
            let stop = end.min((page + 1) * PAGE_SIZE);
            pieces.push((page, start..stop, start - offset));
            start = stop;
        }
        Ok(pieces)
    }

    /// Unmaps the rest. Returns the scheme's answer, which a program does not get.
    pub fn unmap(mut self) -> Result<()> {
        self.unmap_pages(0..self.mapped.len())
    }

    /// Unmaps whole pages. Returns the scheme's answer, which a program does not get.
    ///
    /// # Errors
    ///
    /// - EINVAL: the range is not on pages.
    pub fn unmap_part(&mut self, offset: usize, len: usize) -> Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= self.memory.len).ok_or(Error::new(EINVAL))?;
        if !offset.is_multiple_of(PAGE_SIZE) || !end.is_multiple_of(PAGE_SIZE) {
            return Err(Error::new(EINVAL));
        }
        self.unmap_pages(offset / PAGE_SIZE..end / PAGE_SIZE)
    }

    /// Tells the scheme of each part that was still mapped.
    fn unmap_pages(&mut self, pages: Range<usize>) -> Result<()> {
        let mut outcome = Ok(());
        let mut start = pages.start;
        while start < pages.end {
            let stretch = self.mapped[start..pages.end].iter().take_while(|mapped| **mapped).count();
            if stretch == 0 {
                start += 1;
                continue;
            }
            self.mapped[start..start + stretch].fill(false);
            let mut flags = MunmapFlags::empty();
            // The kernel sets this flag for private mappings too.
            flags.set(MunmapFlags::NEEDS_SYNC, self.flags.contains(MapFlags::PROT_WRITE));
            outcome = outcome.and(self.tell(self.offset + (start * PAGE_SIZE) as u64, stretch * PAGE_SIZE, flags));
            start += stretch;
        }
        outcome
    }

    fn tell(&self, offset: u64, size: usize, flags: MunmapFlags) -> Result<()> {
        let args = [self.description.number as u64, size as u64, flags.bits() as u64, offset, 0, self.caller.packed()];
        let request = Sqe { opcode: Opcode::Munmap as u8, args, caller: self.caller.pid as u64, ..Sqe::default() };
        self.description.scheme.call(request)?.number().map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _ = self.unmap_pages(0..self.mapped.len());
    }
}

impl Memory {
    /// Maps the pages of this process at `address` a second time.
    fn alias(address: usize, len: usize) -> Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the call uses only free addresses.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        let base = NonNull::new(base.cast::<u8>()).filter(|_| base != libc::MAP_FAILED).ok_or(Error::new(ENOMEM))?;
        let memory = Self { base, len };
        for page in (0..len).step_by(PAGE_SIZE) {
            // An old size of 0 keeps the old mapping. The calls go page by page, since the daemon's
            // memory may be several mappings. SAFETY: the new place is in the mapping from above,
            // and the old one is only read.
            let mapped = unsafe {
                libc::mremap(
                    ptr::without_provenance_mut(address + page),
                    0,
                    PAGE_SIZE,
                    libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                    base.add(page).as_ptr(),
                )
            };
            if mapped == libc::MAP_FAILED {
                return Err(Error::new(EIO));
            }
        }
        Ok(memory)
    }

    fn load(&self, offset: usize, buf: &mut [u8]) {
        assert!(offset + buf.len() <= self.len);
        // SAFETY: the bytes are within the mapping, which no buffer overlaps.
        unsafe { ptr::copy_nonoverlapping(self.base.add(offset).as_ptr(), buf.as_mut_ptr(), buf.len()) }
    }

    fn store(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len);
        // SAFETY: as above. The daemon may use the same pages at the same time, by raw pointers.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(offset).as_ptr(), bytes.len()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the value owns the mapping.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
