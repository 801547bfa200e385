//! Memory of the daemon's own whose pages the kernel lends to clients.
//!
//! A region stands for one file: its byte at `n` is the file's byte at `n`. It is a stretch of
//! anonymous memory as long as may ever be needed of the file, since it cannot move while the
//! daemon reads and writes it; the system gives it pages only where something was written or lent.
//! redoxfs does the same, and memory of any other kind has hung the daemon that unmapped it.
//!
//! A client that was lent a page for writing writes to it whenever it likes, from another address
//! space. So nothing here ever makes a reference to such memory: bytes are copied in and out by raw
//! pointers, and a copy is as torn as the client's writes make it.

use std::ops::Range;
use std::ptr::{self, NonNull};

use crate::errno::{ENOMEM, Error, Result};
#[cfg(target_os = "redox")]
use libredox::{Fd, flag::O_PATH};
use syscall::PAGE_SIZE;

/// Which anonymous memory the kernel can lend: on Redox any, and of this kind it gives pages as
/// they are touched.
#[cfg(target_os = "redox")]
const KIND: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
/// On Linux the tests' kernel can show a client the same pages only of memory that is shared.
#[cfg(not(target_os = "redox"))]
const KIND: libc::c_int = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// The least room for a file, in bytes: address space, not memory.
const ROOM: usize = if usize::BITS == 64 { 1 << 32 } else { 1 << 22 };

/// How much address space regions may take, in bytes: half of what a process has, as the daemon
/// needs some for itself.
pub const SPACE: usize = if usize::BITS == 64 { 1 << 46 } else { 1 << 30 };

/// How many pages of memory the machine is taken to have if it does not say: 2 GiB.
const MEMORY: usize = (2 << 30) / PAGE_SIZE;

/// The memory of one file. Offsets are bytes of the file; all of those given to a method must lie
/// within [`Region::room`].
pub struct Region {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to the region alone, and no method relies on being called by a certain
// thread.
unsafe impl Send for Region {}
// SAFETY: what changes the memory from here needs the region for itself.
unsafe impl Sync for Region {}

impl Region {
    /// A region for a file of which `end` bytes are needed now: twice as many, since files grow.
    /// ENOMEM.
    pub fn reserve(end: u64) -> Result<Self> {
        let room = usize::try_from(end).ok().and_then(|end| end.checked_mul(2)?.checked_next_multiple_of(PAGE_SIZE));
        let len = room.ok_or(Error::new(ENOMEM))?.max(ROOM);
        let base = map(ptr::null_mut(), len, 0)?;
        Ok(Self { base, len })
    }

    /// Up to which offset there is room.
    pub fn room(&self) -> u64 {
        self.len as u64
    }

    /// Where a byte of the file is in this process: what a client's request for memory is answered
    /// with.
    pub fn address(&self, offset: u64) -> usize {
        self.at(offset, 0).as_ptr().addr()
    }

    /// Copies bytes out.
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        let from = self.at(offset, buf.len());
        // SAFETY: `at` has checked that these bytes are in the mapping, which nothing but the
        // buffer's borrow could overlap, and it does not: the mapping is never lent as a reference.
        // What a client writes meanwhile only decides which bytes are copied.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), buf.as_mut_ptr(), buf.len()) }
    }

    /// Copies bytes in.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: as for `read`, the other way round.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) }
    }

    /// Clears bytes, and so gives pages to those that had none.
    pub fn clear(&mut self, range: Range<u64>) {
        let len = (range.end - range.start) as usize;
        let to = self.at(range.start, len);
        // SAFETY: `at` has checked that these bytes are in the mapping; nothing refers to them but
        // raw pointers.
        unsafe { ptr::write_bytes(to.as_ptr(), 0, len) }
    }

    /// Gives whole pages, which no client has any more, back to the system. They read as zeros
    /// afterwards.
    pub fn release(&mut self, pages: Range<u64>) {
        let len = (pages.end - pages.start) as usize;
        if map(self.at(pages.start, len).as_ptr(), len, libc::MAP_FIXED).is_err() {
            // Both systems find out what fails before they take the old mapping away, so the memory
            // is still there.
            self.clear(pages);
        }
    }

    /// The place of `len` bytes of the file. Panics if they are not all within the region: a bug
    /// that must not reach the memory of others.
    fn at(&self, offset: u64, len: usize) -> NonNull<u8> {
        let end = offset.checked_add(len as u64);
        assert!(end.is_some_and(|end| end <= self.room()), "{len} bytes at {offset} of a region of {}", self.len);
        // SAFETY: the place is within the mapping, or just behind it.
        unsafe { self.base.add(offset as usize) }
    }
}

/// How many pages of memory the machine has.
#[cfg(target_os = "redox")]
pub fn memory() -> usize {
    let told = Fd::open("/scheme/memory", O_PATH, 0).and_then(|memory| memory.statvfs());
    told.map_or(MEMORY, |told| told.f_blocks as usize)
}

/// How many pages of memory the machine has.
#[cfg(not(target_os = "redox"))]
pub fn memory() -> usize {
    // SAFETY: this only answers a number.
    let told = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    usize::try_from(told).unwrap_or(MEMORY)
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is the region's own, and no address of it is used after this. Pages
        // that a client still has stay its.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Maps fresh memory. With MAP_FIXED `place` must be within a mapping of the caller's.
fn map(place: *mut u8, len: usize, how: libc::c_int) -> Result<NonNull<u8>> {
    // SAFETY: without MAP_FIXED this takes no memory that anybody has; with it, what the caller may
    // replace.
    let base = unsafe { libc::mmap(place.cast(), len, libc::PROT_READ | libc::PROT_WRITE, KIND | how, -1, 0) };
    NonNull::new(base.cast()).filter(|_| base != libc::MAP_FAILED).ok_or(Error::new(ENOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of the first four pages have memory.
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
    fn there_is_room_for_what_is_needed_and_more() {
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
