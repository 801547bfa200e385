//! The ledger: what the daemon writes down about the objects that the kernel knows.
//!
//! It is a log in memory that outlives the daemon. A page of it is written as a whole: a page that
//! the death of the daemon cut off does not count. When the log is long, its sum takes its place.
//! There are two files for that, and a third one says which is in use.
//!
//! The lock is a leaf.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Mutex, MutexGuard, PoisonError};

use overlayfs::errno::{EINVAL, Error, Result};
use overlayfs::overlay::{Note, Place};
use overlayfs::packed::{Packer, Unpacker};
use rustix::fs::MemfdFlags;
use rustix::thread::gettid;

use crate::engine::CountedObject;

/// The length of the log in bytes at which its sum takes its place, at least.
const SHORT: u64 = 256 << 10;
/// The place of the words in the third file: which log is in use, why there is no comeback, then
/// the threads that wait for the kernel.
const IN_USE: u64 = 0;
const HELD: u64 = 8;
const WAITING: u64 = 16;
/// How many threads can wait for the kernel at once and be known.
const WAITING_MAX: usize = 64;
/// The length of a word, and of the length in front of a page.
const WORD: usize = 8;
/// How many finished requests the ledger names at most: more than there are threads.
const PERFORMED_MAX: usize = 256;

/// Why there is no comeback at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// There is one.
    None = 0,
    /// Another process is about to take the mount over, or has.
    Restart = 1,
    /// A snapshot was made or taken back.
    Snapshot = 2,
    /// The ledger could not be written.
    Broken = 3,
}

/// What a request is about to do to names.
#[derive(Clone, Debug)]
pub struct Begun {
    /// The thread that performs it. Its next one takes the place of this one.
    pub thread: u32,
    /// The number of the request.
    pub request: u64,
    /// The places that objects will have.
    pub moves: Vec<Place>,
    /// The object that will lose a name, as it will be without any.
    pub losing: Option<Note>,
}

pub struct Ledger {
    state: Mutex<State>,
    words: File,
    logs: [File; 2],
}

struct State {
    in_use: usize,
    /// The length of the log.
    end: u64,
    /// The length at which its sum takes its place.
    limit: u64,
    /// The objects with a note in the log.
    noted: HashSet<u64>,
    /// The threads that wait for the kernel.
    waiting: [u32; WAITING_MAX],
}

impl Ledger {
    /// Makes an empty ledger.
    ///
    /// # Errors
    ///
    /// - EMFILE, ENFILE: too many files are open.
    /// - ENOSYS: the kernel has no such memory.
    pub fn new() -> io::Result<Self> {
        let file = || -> io::Result<File> { Ok(rustix::fs::memfd_create("ledger", MemfdFlags::CLOEXEC)?.into()) };
        let words = file()?;
        words.write_all_at(&[0; WAITING as usize + WORD * WAITING_MAX], 0)?;
        let (noted, waiting) = (HashSet::new(), [0; WAITING_MAX]);
        let state = Mutex::new(State { in_use: 0, end: 0, limit: SHORT, noted, waiting });
        Ok(Self { state, words, logs: [file()?, file()?] })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a page that `fill` fills.
    pub fn write(&self, fill: impl FnOnce(&mut Page<'_>)) {
        let mut state = self.state();
        let mut page = Page { bytes: Packer::default(), noted: &mut state.noted };
        page.bytes.number(0);
        fill(&mut page);
        let mut bytes = page.bytes.done();
        let length = (bytes.len() - WORD) as u64;
        if length == 0 {
            return;
        }
        bytes[..WORD].copy_from_slice(&length.to_le_bytes());
        let written = self.logs[state.in_use].write_all_at(&bytes, state.end).and_then(|()| {
            state.end += bytes.len() as u64;
            if state.end < state.limit { Ok(()) } else { self.sum_up(&mut state) }
        });
        drop(state);
        if let Err(error) = written {
            log::error!("the mount will not go on if this process is killed: the ledger cannot be written: {error}");
            self.hold(Hold::Broken);
        }
    }

    /// Writes where an object is. Returns whether the ledger has a note about the directory of its
    /// name.
    pub fn note(&self, note: &Note) -> bool {
        let mut has_parent = true;
        self.write(|page| {
            page.note(note);
            has_parent = if let Note::Place(place) = note { page.noted.contains(&place.parent) } else { true };
        });
        has_parent
    }

    /// Writes that answers named an object once more. Returns false, and writes nothing, if the
    /// ledger has no note about the object.
    pub fn count(&self, counted: CountedObject) -> bool {
        let mut has_note = false;
        self.write(|page| {
            has_note = page.noted.contains(&counted.id);
            if has_note {
                page.count(counted);
            }
        });
        has_note
    }

    /// Puts the sum of the log in its place.
    fn sum_up(&self, state: &mut State) -> io::Result<()> {
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
        let (from, to) = (state.in_use, 1 - state.in_use);
        let mut sum = self.read_log(from).map_err(invalid)?;
        sum.prune();
        state.noted = sum.notes.keys().copied().collect();
        let bytes = sum.pack();
        self.logs[to].write_all_at(&bytes, 0)?;
        self.words.write_all_at(&(to as u64).to_ne_bytes(), IN_USE)?;
        self.logs[from].set_len(0)?;
        (state.in_use, state.end) = (to, bytes.len() as u64);
        state.limit = SHORT.max(2 * state.end);
        Ok(())
    }

    /// Sets why there is no comeback from now on.
    pub fn hold(&self, why: Hold) {
        // A ledger that cannot be written stays so.
        if self.held() != Hold::Broken
            && let Err(error) = self.words.write_all_at(&(why as u64).to_ne_bytes(), HELD)
        {
            log::error!("the ledger cannot be written: {error}");
        }
    }

    /// Why there is no comeback.
    pub fn held(&self) -> Hold {
        let is = |why: &Hold| self.word(HELD).is_ok_and(|word| word == *why as u64);
        [Hold::None, Hold::Restart, Hold::Snapshot].into_iter().find(is).unwrap_or(Hold::Broken)
    }

    /// Makes a call that may wait for answers to requests of the kernel, and that a kill may so
    /// not end.
    pub fn while_waiting<T>(&self, call: impl FnOnce() -> T) -> T {
        let this = gettid().as_raw_nonzero().get() as u32;
        let place = self.exchange_waiting(0, this);
        let value = call();
        if place.is_some() {
            self.exchange_waiting(this, 0);
        }
        value
    }

    /// Puts a thread in the place of another one. Returns its place.
    fn exchange_waiting(&self, before: u32, thread: u32) -> Option<usize> {
        let mut state = self.state();
        let place = state.waiting.iter().position(|known| *known == before)?;
        state.waiting[place] = thread;
        let word = u64::from(thread).to_ne_bytes();
        self.words.write_all_at(&word, WAITING + (WORD * place) as u64).ok().map(|()| place)
    }

    /// The threads that wait for the kernel.
    pub fn waiting(&self) -> HashSet<u32> {
        let word = |place| self.word(WAITING + (WORD * place) as u64).unwrap_or(0) as u32;
        (0..WAITING_MAX).map(word).filter(|thread| *thread != 0).collect()
    }

    fn word(&self, at: u64) -> io::Result<u64> {
        let mut word = [0; WORD];
        self.words.read_exact_at(&mut word, at)?;
        Ok(u64::from_ne_bytes(word))
    }

    /// Returns the sum of all pages, in the process that outlived the writer.
    ///
    /// # Errors
    ///
    /// - EINVAL: they make no sense.
    pub fn read(&self) -> Result<Sum> {
        let in_use = self.word(IN_USE).map_err(|_| Error::new(EINVAL))?;
        let mut sum = self.read_log(usize::from(in_use == 1))?;
        sum.prune();
        Ok(sum)
    }

    fn read_log(&self, number: usize) -> Result<Sum> {
        let read = || -> io::Result<Vec<u8>> {
            let length = self.logs[number].metadata()?.size();
            let mut bytes = vec![0; length as usize];
            self.logs[number].read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|_| Error::new(EINVAL))?;
        let (mut sum, mut rest) = (Sum::default(), &bytes[..]);
        while let Some((length, behind)) = rest.split_first_chunk::<WORD>() {
            let length = u64::from_le_bytes(*length) as usize;
            let Some((page, next)) = behind.split_at_checked(length) else { break };
            sum.add_page(page)?;
            rest = next;
        }
        Ok(sum)
    }
}

/// The kinds of records.
const COUNT: u64 = 1;
const FORGET: u64 = 2;
const NOTE: u64 = 3;
const BEGIN: u64 = 4;
const PERFORMED: u64 = 5;
const NEXT_ID: u64 = 6;

/// A page that is being written.
pub struct Page<'a> {
    bytes: Packer,
    noted: &'a mut HashSet<u64>,
}

impl Page<'_> {
    /// Writes that answers named an object `count` times more.
    pub fn count(&mut self, CountedObject { number, id, generation, count }: CountedObject) {
        self.bytes.numbers(&[COUNT, number, id, generation.into(), count]);
    }

    /// Writes that the kernel has forgotten as many answers.
    pub fn forget(&mut self, number: u64, count: u64) {
        self.bytes.numbers(&[FORGET, number, count]);
    }

    /// Writes where an object is now.
    pub fn note(&mut self, note: &Note) {
        self.bytes.number(NOTE);
        note.pack(&mut self.bytes);
        self.noted.insert(note.id());
    }

    /// Writes what a request is about to do.
    pub fn begin(&mut self, Begun { thread, request, moves, losing }: &Begun) {
        self.bytes.numbers(&[BEGIN, (*thread).into(), *request]);
        self.bytes.list(moves.iter(), |to, place| place.pack(to));
        self.bytes.option(losing.as_ref(), |to, note| note.pack(to));
    }

    /// Writes that a request which the kernel may send again was performed.
    pub fn performed(&mut self, request: u64) {
        self.bytes.numbers(&[PERFORMED, request]);
    }

    fn next_id(&mut self, id: u64) {
        self.bytes.numbers(&[NEXT_ID, id]);
    }
}

/// What all pages say together.
#[derive(Debug, Default)]
pub struct Sum {
    /// The objects that the kernel knows, by number, with their places in the order of their
    /// arrival.
    counted: HashMap<u64, (u64, CountedObject)>,
    arrivals: u64,
    /// Where each object is, by id.
    pub notes: HashMap<u64, Note>,
    /// The last request of each thread.
    begun: HashMap<u32, Begun>,
    /// The requests that were performed, and that the kernel may send again.
    pub performed: Vec<u64>,
    /// The lowest id that no object has had.
    pub next_id: u64,
}

impl Sum {
    fn add_page(&mut self, page: &[u8]) -> Result<()> {
        let mut from = Unpacker::new(page);
        while !from.is_empty() {
            self.add(&mut from)?;
        }
        Ok(())
    }

    fn add(&mut self, from: &mut Unpacker<'_>) -> Result<()> {
        match from.number()? {
            COUNT => {
                let (number, id) = (from.number()?, from.number()?);
                let counted = CountedObject { number, id, generation: from.small()?, count: from.number()? };
                self.met(id);
                let (_, known) = self.counted.entry(number).or_insert_with(|| {
                    self.arrivals += 1;
                    (self.arrivals, CountedObject { count: 0, ..counted })
                });
                known.count += counted.count;
            }
            FORGET => {
                let (number, count) = (from.number()?, from.number()?);
                let left = self.counted.get_mut(&number).map(|(_, known)| {
                    known.count = known.count.saturating_sub(count);
                    known.count
                });
                if left == Some(0) {
                    self.counted.remove(&number);
                }
            }
            NOTE => {
                let note = Note::unpack(from)?;
                self.met(note.id());
                self.notes.insert(note.id(), note);
            }
            BEGIN => {
                let (thread, request) = (from.small()?, from.number()?);
                let moves = from.list(Place::unpack)?;
                let losing = from.option(Note::unpack)?;
                self.begun.insert(thread, Begun { thread, request, moves, losing });
            }
            PERFORMED => self.performed.push(from.number()?),
            NEXT_ID => {
                let id = from.number()?;
                self.met(id.saturating_sub(1));
            }
            _ => return Err(Error::new(EINVAL)),
        }
        Ok(())
    }

    fn met(&mut self, id: u64) {
        self.next_id = self.next_id.max(id + 1);
    }

    /// Returns the objects that the kernel knows, the oldest first.
    pub fn counted(&self) -> Vec<CountedObject> {
        let mut counted: Vec<_> = self.counted.values().copied().collect();
        counted.sort_by_key(|(arrival, _)| *arrival);
        counted.into_iter().map(|(_, counted)| counted).collect()
    }

    /// Returns the last request of each thread.
    pub fn begun(&self) -> Vec<Begun> {
        self.begun.values().cloned().collect()
    }

    /// Drops the notes about objects that the kernel does not know, and that are on the way to none
    /// that it knows.
    pub fn prune(&mut self) {
        let moves = self.begun.values().flat_map(|begun| &begun.moves);
        let of_begun = moves.flat_map(|place| [place.id, place.parent]);
        let losing = self.begun.values().filter_map(|begun| begun.losing.as_ref().map(Note::id));
        let known = self.counted.values().map(|(_, counted)| counted.id);
        let mut wanted: Vec<_> = known.chain(of_begun).chain(losing).collect();
        let mut kept = HashMap::new();
        while let Some(id) = wanted.pop() {
            if let Some(note) = self.notes.remove(&id) {
                wanted.extend(if let Note::Place(place) = &note { Some(place.parent) } else { None });
                kept.insert(id, note);
            }
        }
        self.notes = kept;
        let old = self.performed.len().saturating_sub(PERFORMED_MAX);
        self.performed.drain(..old);
    }

    /// Returns a log that says the same.
    fn pack(&self) -> Vec<u8> {
        let mut page = Page { bytes: Packer::default(), noted: &mut HashSet::new() };
        page.bytes.number(0);
        page.next_id(self.next_id);
        self.counted().into_iter().for_each(|counted| page.count(counted));
        self.notes.values().for_each(|note| page.note(note));
        self.begun.values().for_each(|begun| page.begin(begun));
        self.performed.iter().for_each(|request| page.performed(*request));
        let mut bytes = page.bytes.done();
        let length = (bytes.len() - WORD) as u64;
        bytes[..WORD].copy_from_slice(&length.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(id: u64, parent: u64, name: &str) -> Place {
        Place { id, ino: id + 100, parent, name: name.into() }
    }

    fn counted(number: u64, id: u64, count: u64) -> CountedObject {
        CountedObject { number, id, generation: 7, count }
    }

    #[test]
    fn the_sum_says_what_the_pages_say() {
        let ledger = Ledger::new().unwrap();
        assert!(!ledger.count(counted(11, 1, 1)), "an object without a note");
        assert!(!ledger.note(&Note::Place(place(2, 1, "below"))), "a directory without a note");
        assert!(!ledger.note(&Note::Place(place(1, 0, "dir"))));
        assert!(ledger.count(counted(11, 1, 1)) && ledger.count(counted(12, 2, 1)) && ledger.count(counted(12, 2, 1)));
        ledger.note(&Note::Place(place(3, 0, "gone")));
        assert!(ledger.count(counted(13, 3, 1)));
        ledger.write(|page| {
            page.forget(12, 1);
            page.forget(13, 1);
            page.forget(14, 1);
        });
        let begun = |request| Begun { thread: 1, request, moves: vec![place(2, 0, "moved")], losing: None };
        ledger.write(|page| page.begin(&begun(5)));
        ledger.write(|page| page.begin(&begun(6)));
        let sum = ledger.read().unwrap();
        let known: Vec<_> = sum.counted().iter().map(|known| (known.number, known.id, known.count)).collect();
        assert_eq!(known, [(11, 1, 1), (12, 2, 1)]);
        assert_eq!(sum.notes.get(&2), Some(&Note::Place(place(2, 1, "below"))));
        assert!(!sum.notes.contains_key(&3), "the kernel has forgotten it");
        assert_eq!(sum.begun().iter().map(|begun| begun.request).collect::<Vec<_>>(), [6]);
        assert_eq!(sum.next_id, 4);
    }

    #[test]
    fn the_sum_takes_the_place_of_a_long_log() {
        let ledger = Ledger::new().unwrap();
        ledger.note(&Note::Place(place(1, 0, "dir")));
        ledger.count(counted(11, 1, 1));
        for id in 2..20_000 {
            // The sum may leave out what was not counted yet.
            while !ledger.count(counted(id + 10, id, 1)) {
                ledger.note(&Note::Place(place(id, 1, "below")));
            }
            ledger.write(|page| page.forget(id + 10, 1));
        }
        let sum = ledger.read().unwrap();
        assert_eq!((sum.counted().len(), sum.notes.len(), sum.next_id), (1, 1, 20_000));
        let length: u64 = ledger.logs.iter().map(|log| log.metadata().unwrap().size()).sum();
        assert!(length < 2 * SHORT, "{length} bytes");
    }

    #[test]
    fn a_page_that_is_cut_off_does_not_count() {
        let ledger = Ledger::new().unwrap();
        ledger.note(&Note::Place(place(1, 0, "dir")));
        ledger.count(counted(11, 1, 1));
        let end = ledger.state().end;
        ledger.count(counted(11, 1, 1));
        for length in end..ledger.state().end {
            ledger.logs[0].set_len(length).unwrap();
            assert_eq!(ledger.read().unwrap().counted()[0].count, 1, "{length} bytes");
        }
    }

    #[test]
    fn a_thread_is_known_while_it_waits() {
        let ledger = Ledger::new().unwrap();
        let this = gettid().as_raw_nonzero().get() as u32;
        assert_eq!(ledger.while_waiting(|| ledger.waiting()), HashSet::from([this]));
        assert!(ledger.waiting().is_empty());
        assert_eq!(ledger.held(), Hold::None);
        ledger.hold(Hold::Restart);
        assert_eq!(ledger.held(), Hold::Restart);
        ledger.hold(Hold::Broken);
        ledger.hold(Hold::None);
        assert_eq!(ledger.held(), Hold::Broken);
    }
}
