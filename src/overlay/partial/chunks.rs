//! Which chunks of a partial copy are its own, in memory and as its map has it.

use std::ops::Range;

use super::PARTIAL_UNTIL;
use crate::layer::Time;

/// The epoch of a map that means something also after the system went down, since it is synced after the data.
pub(super) const FOR_GOOD: u128 = 0;

/// The unit in which data is lent.
pub(super) const CHUNK: u64 = 64 << 10;

/// The part of a map before its bits: the layer's epoch, and a time.
pub(super) const HEADER: usize = 32;

pub(super) struct Chunks {
    /// How many bytes the source has. What is behind is the copy's own.
    pub size: u64,
    /// A bit for each chunk that is the copy's own, the lowest bit of a byte first.
    pub own: Vec<u8>,
    /// What the time of last change is to be, while data is copied that callers do not change.
    pub mtime: Option<Time>,
    /// Whether there is a map.
    pub mapped: bool,
    /// Whether the map lacks what was cut off, which must be in it before the copy grows again.
    pub unsaved: bool,
    /// Whether the map is to mean something also after the system went down.
    pub for_good: bool,
    /// Whether the copy has lost its reserved name, so that nobody needs a map.
    pub ended: bool,
}

impl Chunks {
    pub(super) fn new(size: u64) -> Self {
        let own = vec![0; size.div_ceil(CHUNK).div_ceil(8) as usize];
        Chunks { size, own, mtime: None, mapped: false, unsaved: false, for_good: false, ended: false }
    }

    pub(super) fn is_own(&self, chunk: u64) -> bool {
        chunk * CHUNK >= self.size || self.own[(chunk / 8) as usize] & 1 << (chunk % 8) != 0
    }

    /// Notes whether chunks are the copy's own. Answers whether any of them was not so before.
    pub(super) fn set_own(&mut self, chunks: Range<u64>, own: bool) -> bool {
        let mut changed = false;
        for chunk in chunks.start..chunks.end.min(self.size.div_ceil(CHUNK)) {
            changed |= self.is_own(chunk) != own;
            let (byte, bit) = ((chunk / 8) as usize, 1 << (chunk % 8));
            self.own[byte] = if own { self.own[byte] | bit } else { self.own[byte] & !bit };
        }
        changed
    }

    /// Whether the byte at `offset` is lent, and up to where that is so; it is not looked further than `until`.
    pub(super) fn run(&self, offset: u64, until: u64) -> (bool, u64) {
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
    pub(super) fn map(&self, epoch: u128) -> Vec<u8> {
        let time = self.mtime.unwrap_or_default();
        let is_set = u32::from(self.mtime.is_some());
        let header =
            [&epoch.to_le_bytes()[..], &time.sec.to_le_bytes(), &time.nsec.to_le_bytes(), &is_set.to_le_bytes()];
        [&header.concat()[..], &self.own].concat()
    }

    /// Takes over what a map says, if it is whole and of this epoch.
    pub(super) fn read_map(&mut self, map: &[u8], epoch: Option<u128>) -> bool {
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
    pub(super) fn lent_in(&self, range: &Range<u64>) -> Option<Range<u64>> {
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
