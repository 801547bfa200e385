//! Memory of the daemon: the kernel maps its pages into clients.
//!
//! A region stands for one file: its byte at `n` is the file's byte at `n`. It reserves as much
//! anonymous memory as the file may ever need, since it cannot move while the daemon uses it. The
//! system gives pages only to written and mapped parts. redoxfs does the same. Memory of any other
//! kind has hung the daemon that unmapped it.
//!
//! A client with a writable page writes to it at any time, from another address space. So this code
//! never makes a reference to such memory. It copies bytes by raw pointers, and a copy is as torn
//! as the writes of the client make it.

use std::ops::Range;
use std::ptr::{self, NonNull};

use crate::errno::{ENOMEM, Error, Result};
#[cfg(target_os = "redox")]
use libredox::{Fd, flag::O_PATH};
use syscall::PAGE_SIZE;

/// The kind of anonymous memory that the kernel can map into clients. On Redox any kind can; this
/// one gets pages at their first use.
#[cfg(target_os = "redox")]
const KIND: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
/// On Linux the simulated kernel can map only shared memory into a client.
#[cfg(not(target_os = "redox"))]
const KIND: libc::c_int = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// The least room for a file in bytes. It is address space, not memory.
const ROOM: usize = if usize::BITS == 64 { 1 << 32 } else { 1 << 22 };

/// How many bytes of address space all regions may take: half of that of a process, since the
/// daemon needs some itself.
pub const SPACE: usize = if usize::BITS == 64 { 1 << 46 } else { 1 << 30 };

/// How many pages of memory to assume if the machine does not tell: 2 GiB.
const MEMORY: usize = (2 << 30) / PAGE_SIZE;

/// The memory of one file. Offsets are bytes of the file. All offsets in arguments must lie within
/// [`Region::room`].
pub struct Region {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to the region alone, and no method depends on the calling thread.
unsafe impl Send for Region {}
// SAFETY: each method that changes the memory from here takes the region exclusively.
unsafe impl Sync for Region {}

impl Region {
    /// Reserves a region for a file that needs `end` bytes now. It has twice as many, since files
    /// grow.
    ///
    /// # Errors
    ///
    /// - ENOMEM: the system has too little memory or address space.
    pub fn reserve(end: u64) -> Result<Self> {
        let room = usize::try_from(end).ok().and_then(|end| end.checked_mul(2)?.checked_next_multiple_of(PAGE_SIZE));
        let len = room.ok_or(Error::new(ENOMEM))?.max(ROOM);
        let base = map(ptr::null_mut(), len, 0)?;
        Ok(Self { base, len })
    }

    /// Returns the offset at which the room ends.
    pub fn room(&self) -> u64 {
        self.len as u64
    }

    /// Returns the address of a byte of the file in this process: the answer to a client that maps
    /// it.
    pub fn address(&self, offset: u64) -> usize {
        self.at(offset, 0).as_ptr().addr()
    }

    /// Copies bytes out.
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        let from = self.at(offset, buf.len());
        // SAFETY: `at` has checked that these bytes are in the mapping. The buffer does not overlap
        // it, since no reference to the mapping exists. A concurrent write of a client only decides
        // which bytes are copied.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), buf.as_mut_ptr(), buf.len()) }
    }

    /// Copies bytes in.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: as for `read`, in the other direction.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) }
    }

    /// Clears bytes. Those without pages get some.
    pub fn clear(&mut self, range: Range<u64>) {
        let len = (range.end - range.start) as usize;
        let to = self.at(range.start, len);
        // SAFETY: `at` has checked that these bytes are in the mapping, and only raw pointers refer
        // to them.
        unsafe { ptr::write_bytes(to.as_ptr(), 0, len) }
    }

    /// Returns whole pages, which no client has any more, to the system. Afterwards they read as
    /// zeros.
    pub fn release(&mut self, pages: Range<u64>) {
        let len = (pages.end - pages.start) as usize;
        if map(self.at(pages.start, len).as_ptr(), len, libc::MAP_FIXED).is_err() {
            // Both systems check for errors before they remove the old mapping, so the memory is
            // still there.
            self.clear(pages);
        }
    }

    /// Returns the place of `len` bytes of the file. Panics if they are not all within the region:
    /// such a bug must not reach other memory.
    fn at(&self, offset: u64, len: usize) -> NonNull<u8> {
        let end = offset.checked_add(len as u64);
        assert!(end.is_some_and(|end| end <= self.room()), "{len} bytes at {offset} of a region of {}", self.len);
        // SAFETY: the place is within the mapping, or just behind it.
        unsafe { self.base.add(offset as usize) }
    }
}

/// Returns how many pages of memory the machine has.
#[cfg(target_os = "redox")]
pub fn memory() -> usize {
    let told = Fd::open("/scheme/memory", O_PATH, 0).and_then(|memory| memory.statvfs());
    told.map_or(MEMORY, |told| told.f_blocks as usize)
}

/// Returns how many pages of memory the machine has.
#[cfg(not(target_os = "redox"))]
pub fn memory() -> usize {
    // SAFETY: the call only returns a number.
    let told = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    usize::try_from(told).unwrap_or(MEMORY)
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is the region's own, and nothing uses its addresses after this. Pages
        // of a client stay with the client.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Maps fresh memory. With MAP_FIXED `place` must be within a mapping of the caller.
fn map(place: *mut u8, len: usize, how: libc::c_int) -> Result<NonNull<u8>> {
    // SAFETY: without MAP_FIXED the call uses only free addresses; with it, memory that the caller
    // may replace.
    let base = unsafe { libc::mmap(place.cast(), len, libc::PROT_READ | libc::PROT_WRITE, KIND | how, -1, 0) };
    NonNull::new(base.cast()).filter(|_| base != libc::MAP_FAILED).ok_or(Error::new(ENOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns which of the first four pages have memory.
    fn present(region: &Region) -> [bool; 4] {
        let mut found = [0u8; 4];
        // SAFETY: the pages are mapped, and there is a byte for each.
        let result = unsafe { libc::mincore(region.base.as_ptr().cast(), 4 * PAGE_SIZE, found.as_mut_ptr()) };
        assert_eq!(result, 0);
        found.map(|byte| byte & 1 == 1)
    }

    #[test]
    fn pages_take_memory_from_when_they_are_touched_until_they_are_released() {
        let page = PAGE_SIZE as u64;
        let mut region = Region::reserve(4 * page).unwrap();
        assert_eq!(present(&region), [false; 4]);
        region.write(page - 1, b"12");
        region.clear(3 * page..3 * page + 1);
        assert_eq!(present(&region), [true, true, false, true]);
        region.release(0..page);
        region.release(3 * page..4 * page);
        assert_eq!(present(&region), [false, true, false, false]);
        let mut buf = [7; 2];
        region.read(page - 1, &mut buf);
        assert_eq!(&buf, b"\x002");
    }

    #[test]
    fn a_region_has_more_room_than_needed() {
        assert!(Region::reserve(1).unwrap().room() >= ROOM as u64);
        assert_eq!(Region::reserve(ROOM as u64).unwrap().room(), 2 * ROOM as u64);
        for too_much in [1 << 62, u64::MAX] {
            assert_eq!(Region::reserve(too_much).err(), Some(Error::new(ENOMEM)));
        }
    }

    #[test]
    #[should_panic(expected = "2 bytes at")]
    fn nothing_outside_is_touched() {
        let mut region = Region::reserve(1).unwrap();
        region.write(region.room() - 1, b"12");
    }
}
