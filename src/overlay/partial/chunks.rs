//! The copied chunks of a partial copy, in memory and in the map.

use std::ops::Range;

use super::PARTIAL_UNTIL;
use crate::layer::Time;
use crate::overlay::room::Promise;

/// The epoch of a map that counts after a crash of the system too, since it is synced after the
/// data. It is not 0: a header that a crash lost reads as zeros, while the bits may be there.
pub(super) const FOR_GOOD: u128 = u128::MAX;

/// The size of a chunk.
pub(super) const CHUNK: u64 = 64 << 10;

/// The length of a map's header: the layer's epoch, and a time.
pub(super) const HEADER: usize = 32;

/// The number of chunks for which a word has bits.
const WORD: u64 = 64;

pub(super) struct Chunks {
    /// The size of the source. Behind it all data is in the copy.
    pub size: u64,
    /// One bit for each copied chunk, the lowest bit of a word first.
    copied: Vec<u64>,
    /// The number of chunks that come from the source.
    from_lower: u64,
    /// The promise of free space for them. None in a layer that the mount only reads.
    promise: Option<Promise>,
    /// The words that may differ from those in the map.
    unwritten: Range<usize>,
    /// The header in the map. None if the map lacks everything.
    pub written: Option<[u8; HEADER]>,
    /// The mtime that the file must have, while the engine copies data without a change for
    /// programs.
    pub mtime: Option<Time>,
    /// Whether there is a map.
    pub mapped: bool,
    /// Whether the map must be written before the copy changes. It may lack a truncation, which
    /// must be in it before the copy grows again. Or it has an mtime, which must go before the
    /// mtime changes.
    pub unsaved: bool,
    /// Whether the map is to count after a crash of the system too.
    pub for_good: bool,
    /// Whether the copy has lost its reserved name, so that it needs no map.
    pub ended: bool,
    /// The number of truncations, and whether one is going on.
    pub truncations: u64,
    pub is_being_truncated: bool,
}

/// The parts of a map to write: the bits first.
pub(super) struct Update {
    /// None if the map has these bits already.
    pub bits: Option<(Vec<u8>, u64)>,
    pub header: Option<[u8; HEADER]>,
}

impl Chunks {
    pub(super) fn new(size: u64) -> Self {
        let from_lower = size.div_ceil(CHUNK);
        Chunks {
            size,
            copied: vec![0; from_lower.div_ceil(WORD) as usize],
            from_lower,
            promise: None,
            unwritten: 0..0,
            written: None,
            mtime: None,
            mapped: false,
            unsaved: false,
            for_good: false,
            ended: false,
            truncations: 0,
            is_being_truncated: false,
        }
    }

    fn is_copied(&self, chunk: u64) -> bool {
        chunk * CHUNK >= self.size || self.copied[(chunk / WORD) as usize] & 1 << (chunk % WORD) != 0
    }

    /// Returns the first copied chunk (or the first one that is not, by `copied`) from `from` on.
    /// Returns `until` if there is none before it.
    fn next(&self, copied: bool, from: u64, until: u64) -> u64 {
        let mut chunk = from;
        while chunk < until {
            let word = self.copied[(chunk / WORD) as usize];
            let found = if copied { word } else { !word } >> (chunk % WORD);
            if found != 0 {
                return until.min(chunk + u64::from(found.trailing_zeros()));
            }
            chunk = (chunk / WORD + 1) * WORD;
        }
        from.max(until)
    }

    /// Records whether chunks are copied. Returns whether that changed any of them.
    pub(super) fn set_copied(&mut self, chunks: Range<u64>, copied: bool) -> bool {
        let end = chunks.end.min(self.size.div_ceil(CHUNK));
        let mut changed = false;
        let mut chunk = chunks.start;
        while chunk < end {
            let (index, next) = ((chunk / WORD) as usize, end.min((chunk / WORD + 1) * WORD));
            let bits = (u64::MAX >> (WORD - (next - chunk))) << (chunk % WORD);
            let before = self.copied[index];
            let word = if copied { before | bits } else { before & !bits };
            if word != before {
                self.copied[index] = word;
                self.from_lower = self.from_lower + u64::from(before.count_ones()) - u64::from(word.count_ones());
                self.unwritten = match self.unwritten.is_empty() {
                    true => index..index + 1,
                    false => self.unwritten.start.min(index)..self.unwritten.end.max(index + 1),
                };
                changed = true;
            }
            chunk = next;
        }
        if changed && let Some(promise) = &mut self.promise {
            promise.needs(self.from_lower * CHUNK);
        }
        changed
    }

    /// Returns an upper bound of the bytes that come from the source.
    pub(super) fn uncopied_bytes(&self) -> u64 {
        self.from_lower * CHUNK
    }

    /// Takes the promise of space for the rest, until the copy is complete or gone.
    pub(super) fn keep_free(&mut self, mut promise: Promise) {
        promise.needs(self.uncopied_bytes());
        self.promise = Some(promise);
    }

    /// Records that neither the rest nor a map is needed. Returns whether there is a map.
    pub(super) fn end(&mut self) -> bool {
        (self.ended, self.promise) = (true, None);
        std::mem::take(&mut self.mapped)
    }

    /// Whether the byte at `offset` comes from the source, and the end of the run for which that
    /// holds. Looks no further than `until`.
    pub(super) fn run(&self, offset: u64, until: u64) -> (bool, u64) {
        if offset >= self.size {
            return (false, u64::MAX);
        }
        let from_lower = !self.is_copied(offset / CHUNK);
        match self.next(from_lower, offset / CHUNK + 1, self.size.min(until).div_ceil(CHUNK)) * CHUNK {
            end if end < self.size => (from_lower, end),
            _ if from_lower => (from_lower, self.size),
            _ => (from_lower, u64::MAX),
        }
    }

    /// Returns the first run of chunks in `range` that come from the source.
    pub(super) fn uncopied_in(&self, range: &Range<u64>) -> Option<Range<u64>> {
        if range.start >= self.size {
            return None;
        }
        let last = range.end.min(self.size).div_ceil(CHUNK);
        let start = self.next(false, range.start / CHUNK, last);
        (start < last).then(|| start..self.next(true, start, last))
    }

    /// Returns the number of bytes that the bits take in a map.
    pub(super) fn bytes(&self) -> usize {
        self.size.div_ceil(CHUNK).div_ceil(8) as usize
    }

    /// Returns the bits of these words as the map has them, and their offset.
    fn bits(&self, words: Range<usize>) -> (Vec<u8>, u64) {
        let at = words.start * size_of::<u64>();
        let mut bits: Vec<_> = self.copied[words].iter().flat_map(|word| word.to_le_bytes()).collect();
        bits.truncate(self.bytes() - at);
        (bits, (HEADER + at) as u64)
    }

    fn header(&self, epoch: u128) -> [u8; HEADER] {
        let time = self.mtime.unwrap_or_default();
        let mut header = [0; HEADER];
        header[..16].copy_from_slice(&epoch.to_le_bytes());
        header[16..24].copy_from_slice(&time.sec.to_le_bytes());
        header[24..28].copy_from_slice(&time.nsec.to_le_bytes());
        header[28..].copy_from_slice(&u32::from(self.mtime.is_some()).to_le_bytes());
        header
    }

    /// Returns the parts that the map lacks. An empty map gets everything in one write, since it
    /// counts as soon as it is complete.
    pub(super) fn update(&self, epoch: u128) -> Update {
        let header = self.header(epoch);
        let Some(written) = self.written else {
            let (bits, _) = self.bits(0..self.copied.len());
            return Update { bits: Some(([&header[..], &bits].concat(), 0)), header: None };
        };
        let bits = (!self.unwritten.is_empty()).then(|| self.bits(self.unwritten.clone()));
        Update { bits, header: (written != header).then_some(header) }
    }

    /// Records that the map has everything, or maybe nothing after a failed write.
    pub(super) fn wrote(&mut self, epoch: u128, is_done: bool) {
        self.written = is_done.then(|| self.header(epoch));
        self.unwritten = 0..0;
        self.unsaved &= !is_done;
    }

    /// Takes over the chunks of a map, if it is complete and of this epoch.
    pub(super) fn read_map(&mut self, map: &[u8], epoch: Option<u128>) -> bool {
        let Some((header, copied)) =
            map.split_first_chunk::<HEADER>().filter(|(_, copied)| copied.len() == self.bytes())
        else {
            return false;
        };
        let field = |range: Range<usize>| header[range].iter().rfold(0, |number, byte| number << 8 | u128::from(*byte));
        let epoch_written = field(0..16);
        if epoch_written != FOR_GOOD && epoch != Some(epoch_written) {
            return false;
        }
        self.for_good = epoch_written == FOR_GOOD;
        let count = self.size.div_ceil(CHUNK);
        self.from_lower = count;
        for (index, bytes) in (0..).zip(copied.chunks(size_of::<u64>())) {
            let meant = u64::MAX >> (WORD - (count - index * WORD).min(WORD));
            let word = bytes.iter().rfold(0, |word, byte| word << 8 | u64::from(*byte)) & meant;
            self.copied[index as usize] = word;
            self.from_lower -= u64::from(word.count_ones());
        }
        self.mtime = (field(28..32) == 1).then(|| Time { sec: field(16..24) as i64, nsec: field(24..28) as u32 });
        (self.mapped, self.written, self.unwritten) = (true, Some(*header), 0..0);
        true
    }
}

/// Returns the length of the map of a partial copy of a file of `size` bytes. None if no such file
/// has a partial copy.
pub fn map_len(size: u64) -> Option<usize> {
    (size < PARTIAL_UNTIL).then(|| HEADER + size.div_ceil(CHUNK).div_ceil(8) as usize)
}

/// Whether a map counts while the layer has this epoch.
pub fn means_something(map: &[u8], size: u64, epoch: Option<u128>) -> bool {
    Chunks::new(size).read_map(map, epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with a plain row of truth values.
    #[test]
    fn words_agree_with_a_row_of_chunks() {
        const COUNT: usize = 200;
        let size = COUNT as u64 * CHUNK - 100;
        let mut chunks = Chunks::new(size);
        let mut row = [false; COUNT];
        let mut map = vec![0; map_len(size).unwrap()];
        // Ranges that begin and end at every place in a word.
        for step in 0..2000 {
            let (start, length, copied) = (step * 37 % COUNT, step * 13 % 140, step % 3 != 0);
            let end = (start + length).min(COUNT);
            let changes = row[start..end].iter().any(|known| *known != copied);
            row[start..end].fill(copied);
            assert_eq!(chunks.set_copied(start as u64..(start + length) as u64, copied), changes, "step {step}");
            let expected = row.iter().position(|copied| !copied).map(|start| {
                let end = row[start..].iter().position(|copied| *copied).map_or(COUNT, |length| start + length);
                start as u64..end as u64
            });
            assert_eq!(chunks.uncopied_in(&(0..u64::MAX)), expected, "step {step}");
            let (from_lower, end) = chunks.run(start as u64 * CHUNK + 1, u64::MAX);
            let same = row[start..].iter().take_while(|copied| **copied == row[start]).count();
            let expected = match start + same {
                COUNT if row[start] => u64::MAX,
                COUNT => size,
                end => end as u64 * CHUNK,
            };
            assert_eq!((from_lower, end), (!row[start], expected), "step {step}");

            let Update { bits, header } = chunks.update(7);
            if let Some((bits, at)) = bits {
                map[at as usize..at as usize + bits.len()].copy_from_slice(&bits);
            }
            assert!(header.is_none());
            chunks.wrote(7, true);
            let mut read = Chunks::new(size);
            assert!(read.read_map(&map, Some(7)));
            assert_eq!(read.copied, chunks.copied, "step {step}");
            let from_lower = row.iter().filter(|copied| !**copied).count() as u64 * CHUNK;
            assert_eq!([chunks.uncopied_bytes(), read.uncopied_bytes()], [from_lower; 2], "step {step}");
        }
        assert!(!Chunks::new(size).read_map(&map, Some(8)) && !Chunks::new(size + CHUNK * 8).read_map(&map, Some(7)));
    }
}
