//! Mappings of files in clients.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use linux_delegate::{Fd, Mapping, kernel};
use overlayfs::layer::counted::Method;
use syscall::error::{EACCES, EBADF, EFAULT, EINTR, EINVAL, ENODEV, ENOMEM, EOVERFLOW, Error, Result};
use syscall::flag::{
    MapFlags, MunmapFlags, O_APPEND, O_CREAT, O_DIRECTORY, O_RDONLY, O_RDWR, O_STAT, O_TRUNC, O_WRONLY,
};
use syscall::schemev2::{Opcode, Sqe};

use crate::layers::{Layer, Layers};
use crate::support::{Setup, ann, bob, errno, eve, refused, root};

const PAGE: usize = 4096;
const READ: MapFlags = MapFlags::MAP_SHARED.union(MapFlags::PROT_READ);
const WRITE: MapFlags = READ.union(MapFlags::PROT_WRITE);
const PRIVATE_READ: MapFlags = MapFlags::MAP_PRIVATE.union(MapFlags::PROT_READ);
const PRIVATE_WRITE: MapFlags = PRIVATE_READ.union(MapFlags::PROT_WRITE);

/// A file of some pages. Each byte tells its page, and the last page is not full.
fn big(lower: &Layer) {
    lower.file_with("big", &text(5 * PAGE + 100), 0o666, 1000, 100);
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|at| b'a' + (at / PAGE) as u8).collect()
}

fn setup() -> Setup {
    Setup::new(|lower| {
        big(lower);
        lower.file("file", 0o666);
    })
}

fn open(setup: &Setup, flags: usize) -> Fd {
    setup.open(&ann(), "big", flags).unwrap()
}

/// Whether the upper layer has the file.
fn is_copied_up(setup: &Setup) -> bool {
    setup.layers.upper_names("").contains(&"big".to_owned())
}

/// Returns the content of the file in the upper layer.
fn upper(setup: &Setup) -> Vec<u8> {
    setup.layers.upper_content("big")
}

/// Reads the file through a new handle.
fn bytes(setup: &Setup, path: &str) -> Vec<u8> {
    root().read_file(setup.path(path)).unwrap()
}

#[test]
fn memory_holds_the_file_and_zeros_behind_it() {
    let setup = setup();
    let file = open(&setup, O_RDONLY);
    for flags in [READ, PRIVATE_READ, PRIVATE_WRITE] {
        let map = file.map(PAGE as u64, 6 * PAGE, flags).unwrap();
        let mut expected = text(5 * PAGE + 100).split_off(PAGE);
        expected.resize(6 * PAGE, 0);
        assert_eq!(map.bytes(0, 6 * PAGE).unwrap(), expected, "{flags:?}");
        map.unmap().unwrap();
    }
    let map = file.map(0, 10, READ).unwrap();
    assert_eq!(map.bytes(PAGE - 1, 1).unwrap(), b"a", "whole pages");
    assert!(!is_copied_up(&setup), "nothing was written, so nothing was copied up");
}

#[test]
fn stores_show_in_all_reads_at_once() {
    let setup = setup();
    let mut map = open(&setup, O_RDWR).map(PAGE as u64, 2 * PAGE, WRITE).unwrap();
    let reader = setup.open(&bob(), "big", O_RDONLY).unwrap();
    let other = reader.map(0, 3 * PAGE, READ).unwrap();
    map.store(PAGE - 2, b"1234").unwrap();
    let mut buf = [0; 6];
    assert_eq!(reader.read_at(&mut buf, 2 * PAGE as u64 - 3), Ok(6));
    assert_eq!(&buf, b"b1234c");
    assert_eq!(other.bytes(2 * PAGE - 3, 6).unwrap(), b"b1234c");
    map.store(0, b"x").unwrap();
    assert_eq!(other.bytes(PAGE, 2).unwrap(), b"xb");
    assert_eq!(&bytes(&setup, "big")[PAGE - 1..PAGE + 2], b"axb");
}

#[test]
fn writes_show_in_mappings_at_once() {
    let setup = setup();
    let (one, two) = (open(&setup, O_RDONLY), open(&setup, O_RDWR));
    let maps = [one.map(0, 7 * PAGE, READ).unwrap(), two.map(0, 7 * PAGE, WRITE).unwrap()];
    let private = one.map(0, 7 * PAGE, PRIVATE_READ).unwrap();
    let writer = setup.open(&bob(), "big", O_WRONLY).unwrap();
    let end = 5 * PAGE + 100;
    let see = |at: usize, expected: &[u8]| {
        for map in maps.iter().chain([&private]) {
            assert_eq!(map.bytes(at, expected.len()).unwrap(), expected, "at {at}");
        }
    };

    writer.write_at(b"over", PAGE as u64 - 2).unwrap();
    see(PAGE - 3, b"aoverb");
    let appender = setup.open(&bob(), "big", O_WRONLY | O_APPEND).unwrap();
    appender.write(b"tail").unwrap();
    see(end - 1, b"ftail\0");
    writer.write_at(b"far", 6 * PAGE as u64).unwrap();
    see(6 * PAGE - 1, b"\0far\0");
    writer.ftruncate(PAGE as u64 + 1).unwrap();
    see(PAGE - 1, b"ve\0");
    see(6 * PAGE, b"\0\0\0");
    writer.ftruncate(3 * PAGE as u64).unwrap();
    see(PAGE, b"e\0");
    setup.open(&bob(), "big", O_WRONLY | O_TRUNC).unwrap();
    see(0, b"\0\0");
    drop(maps);
    drop(private);
    assert_eq!(bytes(&setup, "big"), b"");
}

#[test]
fn stores_reach_the_file_when_they_are_unmapped() {
    let setup = setup();
    let file = open(&setup, O_RDWR);
    let mut map = file.map(0, 4 * PAGE, WRITE).unwrap();
    for page in 0..4 {
        map.store(page * PAGE, &[b'0' + page as u8]).unwrap();
    }
    let upper = || upper(&setup);
    assert_eq!(upper(), text(5 * PAGE + 100));
    map.unmap_part(PAGE, PAGE).unwrap();
    assert_eq!(map.bytes(PAGE, 1), refused(EFAULT));
    assert_eq!((upper()[0], upper()[PAGE], upper()[2 * PAGE]), (b'a', b'1', b'c'));
    drop(file);
    map.store(0, b"z").unwrap();
    map.unmap().unwrap();
    let mut expected = text(5 * PAGE + 100);
    for (page, byte) in b"z123".iter().enumerate() {
        expected[page * PAGE] = *byte;
    }
    assert_eq!(upper(), expected);
}

#[test]
fn stores_reach_the_file_at_a_sync() {
    let setup = setup();
    let mut map = open(&setup, O_RDWR).map(0, PAGE, WRITE).unwrap();
    map.store(0, b"1").unwrap();
    let other = setup.open(&bob(), "big", O_RDONLY).unwrap();
    other.fsync().unwrap();
    assert_eq!(upper(&setup)[..2], *b"1a");
    map.store(1, b"2").unwrap();
    other.sys_fsync().unwrap();
    assert_eq!(upper(&setup)[..3], *b"12a");
    map.store(2, b"3").unwrap();
    other.msync();
    let deadline = Instant::now() + Duration::from_secs(10);
    while upper(&setup)[..4] != *b"123a" {
        assert!(Instant::now() < deadline, "nothing was written");
    }
}

#[test]
fn stores_reach_the_file_when_the_daemon_ends() {
    let setup = setup();
    let mut map = open(&setup, O_RDWR).map(0, PAGE, WRITE).unwrap();
    map.store(0, b"!").unwrap();
    setup.stop();
    let deadline = Instant::now() + Duration::from_secs(10);
    while upper(&setup)[..2] != *b"!a" {
        assert!(Instant::now() < deadline, "nothing was written");
    }
    assert_eq!(map.bytes(0, 2).unwrap(), b"!a", "the client keeps its pages");
    drop(setup);
    assert_eq!(errno(map.unmap()), ENODEV);
}

#[test]
fn a_mapping_outlives_the_descriptor_and_the_name() {
    let setup = setup();
    let file = open(&setup, O_RDWR);
    let mut map = file.map(0, PAGE, WRITE).unwrap();
    let witness = open(&setup, O_RDONLY);
    drop(file);
    root().unlink(setup.path("big")).unwrap();
    root().write_file(setup.path("big"), "new").unwrap();
    map.store(0, b"old").unwrap();
    map.unmap().unwrap();
    let mut buf = [0; 4];
    witness.read_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"olda");
    assert_eq!(setup.content("big"), "new");
}

#[test]
fn private_stores_do_not_change_the_file() {
    let setup = setup();
    let file = open(&setup, O_RDONLY);
    let mut map = file.map(0, 2 * PAGE, PRIVATE_WRITE).unwrap();
    map.store(10, b"mine").unwrap();
    assert_eq!(map.bytes(9, 6).unwrap(), b"aminea");
    file.fsync().unwrap();
    assert_eq!(bytes(&setup, "big"), text(5 * PAGE + 100));
    map.unmap().unwrap();
    assert_eq!(bytes(&setup, "big"), text(5 * PAGE + 100));
    assert!(!is_copied_up(&setup));
}

#[test]
fn only_stores_change_the_file_and_its_time() {
    let setup = setup();
    let file = open(&setup, O_RDWR);
    let past = syscall::data::TimeSpec { tv_sec: 1000, tv_nsec: 0 };
    file.futimens(past, past).unwrap();
    let mtime = || root().stat(setup.path("big")).unwrap().st_mtime;
    let mut map = file.map(0, 6 * PAGE, WRITE).unwrap();
    map.bytes(0, 6 * PAGE).unwrap();
    file.fsync().unwrap();
    map.store(5 * PAGE + 100, b"behind the end").unwrap();
    map.store(0, b"a").unwrap();
    file.fsync().unwrap();
    map.unmap().unwrap();
    assert_eq!(mtime(), 1000, "nothing in the file is other than before");
    assert_eq!(bytes(&setup, "big"), text(5 * PAGE + 100));

    let mut map = file.map(5 * PAGE as u64, PAGE, WRITE).unwrap();
    assert_eq!(map.bytes(100, 3).unwrap(), b"\0\0\0");
    map.store(99, b"last and more").unwrap();
    assert_eq!(mtime(), 1000);
    map.unmap().unwrap();
    assert_ne!(mtime(), 1000);
    let mut expected = text(5 * PAGE + 100);
    expected[5 * PAGE + 99] = b'l';
    assert_eq!(bytes(&setup, "big"), expected, "the size stays");
}

#[test]
fn stores_behind_the_end_are_zero_when_the_file_grows() {
    let setup = setup();
    let file = open(&setup, O_RDWR);
    let mut map = file.map(5 * PAGE as u64, 3 * PAGE, WRITE).unwrap();
    map.store(100, &[b'x'; 2 * PAGE]).unwrap();
    file.ftruncate(5 * PAGE as u64 + 110).unwrap();
    assert_eq!(map.bytes(99, 13).unwrap(), b"f\0\0\0\0\0\0\0\0\0\0xx");
    file.write_at(b"end", 6 * PAGE as u64).unwrap();
    let mut expected = text(5 * PAGE + 100);
    expected.resize(6 * PAGE, 0);
    expected.extend(b"end");
    assert_eq!(bytes(&setup, "big"), expected);
    map.unmap().unwrap();
    assert_eq!(bytes(&setup, "big"), expected);
}

#[test]
fn a_shared_writable_mapping_copies_up_and_others_go_on_with_the_copy() {
    let setup = setup();
    let early = open(&setup, O_RDONLY).map(0, PAGE, PRIVATE_READ).unwrap();
    assert!(!is_copied_up(&setup));
    let mut map = open(&setup, O_RDWR).map(0, PAGE, WRITE).unwrap();
    assert!(is_copied_up(&setup));
    map.store(0, b"1").unwrap();
    assert_eq!(early.bytes(0, 2).unwrap(), b"1a");
    open(&setup, O_WRONLY).write_at(b"2", 1).unwrap();
    assert_eq!(early.bytes(0, 3).unwrap(), b"12a");
    drop((early, map));
    assert_eq!(upper(&setup)[..3], *b"12a");
}

#[test]
fn one_handle_has_several_mappings_of_a_page() {
    for writable_first in [false, true] {
        let setup = setup();
        let file = open(&setup, O_RDWR);
        let private = file.map(0, 3 * PAGE, PRIVATE_READ).unwrap();
        let mut map = file.map(PAGE as u64, PAGE, WRITE).unwrap();
        map.store(0, b"1").unwrap();
        if writable_first {
            map.unmap().unwrap();
            assert_eq!(bytes(&setup, "big")[PAGE], b'1');
            file.write_at(b"2", PAGE as u64).unwrap();
            assert_eq!(private.bytes(PAGE, 1).unwrap(), b"2");
            private.unmap().unwrap();
        } else {
            private.unmap().unwrap();
            map.store(0, b"2").unwrap();
            assert_eq!(bytes(&setup, "big")[PAGE], b'2');
            map.unmap().unwrap();
        }
        assert_eq!(upper(&setup)[PAGE], b'2');
        assert_eq!(file.munmap(PAGE as u64, PAGE, MunmapFlags::empty()), refused(EINVAL), "all of it is gone");
    }
}

#[test]
fn a_page_is_read_anew_when_it_is_mapped_again() {
    let setup = setup();
    let file = open(&setup, O_RDWR);
    let keeper = file.map(4 * PAGE as u64, PAGE, READ).unwrap();
    for round in 0..3 {
        let mut map = file.map(0, 3 * PAGE, WRITE).unwrap();
        map.store(PAGE, &[b'0' + round]).unwrap();
        map.unmap().unwrap();
        file.write_at(&[b'A' + round], 2 * PAGE as u64).unwrap();
        let map = setup.open(&bob(), "big", O_RDONLY).unwrap().map(0, 5 * PAGE, READ).unwrap();
        assert_eq!(map.bytes(PAGE, 1).unwrap(), [b'0' + round]);
        assert_eq!(map.bytes(2 * PAGE, 1).unwrap(), [b'A' + round]);
    }
    assert_eq!(keeper.bytes(0, 2).unwrap(), b"ee");
    file.ftruncate(PAGE as u64 + 1).unwrap();
    assert_eq!(file.map(PAGE as u64, 2 * PAGE, READ).unwrap().bytes(0, 2 * PAGE).unwrap()[1..], [0; 2 * PAGE - 1]);
}

#[test]
fn a_mapping_that_the_kernel_could_not_make_goes_with_its_descriptor() {
    let layers = Layers::new(big);
    let (overlay, counts) = layers.counted();
    let setup = Setup::serve(overlay, layers);
    let map = || open(&setup, O_RDONLY).map(0, PAGE, READ).unwrap();
    let reads = || counts.tally().of(Method::ReadAt);
    let file = open(&setup, O_RDWR);
    file.mmap(0, PAGE, READ).unwrap();
    let before = reads();
    map();
    assert_eq!(reads(), before, "the page is there");
    drop(file);
    let deadline = Instant::now() + Duration::from_secs(10);
    while reads() == before {
        assert!(Instant::now() < deadline, "the page is still there");
        map();
    }
}

#[test]
fn access_modes_count() {
    let setup = setup();
    let map = |flags, how| open(&setup, flags).map(0, PAGE, how);
    assert_eq!(errno(map(O_WRONLY, READ)), EACCES);
    assert_eq!(errno(map(O_WRONLY, WRITE)), EACCES);
    assert_eq!(errno(map(O_WRONLY, MapFlags::MAP_SHARED | MapFlags::PROT_WRITE)), EACCES);
    assert_eq!(errno(map(O_STAT, PRIVATE_READ)), EACCES);
    assert_eq!(errno(map(O_RDONLY, WRITE)), EACCES);
    assert!(map(O_RDONLY, PRIVATE_WRITE).is_ok());
    let mut readable = map(O_RDWR, READ).unwrap();
    assert_eq!(readable.store(0, b"x"), refused(EFAULT));
    assert_eq!(errno(setup.open(&ann(), "", O_DIRECTORY | O_RDONLY).unwrap().map(0, PAGE, READ)), ENODEV);
    assert_eq!(errno(setup.top(&ann()).map(0, PAGE, READ)), ENODEV);

    let setup = Setup::read_only(big);
    assert_eq!(open(&setup, O_RDONLY).map(0, PAGE, READ).unwrap().bytes(0, 1).unwrap(), b"a");
    assert_eq!(errno(open(&setup, O_RDONLY).map(0, PAGE, WRITE)), EACCES);
}

#[test]
fn a_writable_mapping_clears_set_id_bits() {
    let setup = Setup::new(|lower| lower.file("tool", 0o6777));
    let map = |flags| setup.open(&eve(), "tool", O_RDWR).unwrap().map(0, PAGE, flags).unwrap();
    map(PRIVATE_WRITE);
    assert_eq!(setup.mode("tool"), 0o6777);
    map(WRITE);
    assert_eq!(setup.mode("tool"), 0o777);
}

#[test]
fn hostile_sizes_and_offsets() {
    let setup = setup();
    let file = open(&setup, O_RDWR);
    let ask = |opcode: Opcode, offset: u64, size: u64| {
        let args = [file.id() as u64, size, WRITE.bits() as u64, offset, 0, 0];
        // SAFETY: the request has no buffer.
        unsafe { file.raw(Sqe { opcode: opcode as u8, args, ..Sqe::default() }) }
    };
    let page = PAGE as u64;
    for opcode in [Opcode::MmapPrep, Opcode::Munmap] {
        assert_eq!(ask(opcode, 0, 0), refused(EINVAL));
        assert_eq!(ask(opcode, 1, page), refused(EINVAL));
        assert_eq!(ask(opcode, 0, u64::MAX), refused(EOVERFLOW));
        assert_eq!(ask(opcode, u64::MAX - page + 1, page), refused(EOVERFLOW));
        assert_eq!(ask(opcode, 1 << 63, page), refused(EOVERFLOW));
        assert_eq!(ask(opcode, page, i64::MAX as u64), refused(EOVERFLOW));
    }
    assert_eq!(ask(Opcode::MmapPrep, 0, 1 << 62), refused(ENOMEM));
    assert_eq!(ask(Opcode::MmapPrep, 1 << 62, page), refused(ENOMEM));
    assert_eq!(ask(Opcode::Munmap, 0, page), refused(EINVAL), "nothing is mapped");

    let map = file.map(0, PAGE, WRITE).unwrap();
    assert_eq!(ask(Opcode::MmapPrep, 1 << 40, page), refused(ENOMEM), "far behind the reserved range");
    assert_eq!(ask(Opcode::Munmap, page, page), refused(EINVAL), "another page");
    let other = setup.open(&ann(), "big", O_RDWR).unwrap();
    assert_eq!(other.munmap(0, PAGE, MunmapFlags::empty()), refused(EINVAL), "another's");
    assert_eq!(map.bytes(0, 1).unwrap(), b"a");
    map.unmap().unwrap();
    assert_eq!(setup.open(&ann(), "file", O_RDONLY).unwrap().munmap(0, PAGE, MunmapFlags::empty()), refused(EINVAL));
    assert_eq!(setup.top(&ann()).munmap(0, PAGE, MunmapFlags::empty()), refused(EINVAL));
    let raw = Sqe { opcode: Opcode::MmapPrep as u8, args: [12345, page, 0, 0, 0, 0], ..Sqe::default() };
    // SAFETY: as above.
    assert_eq!(unsafe { file.raw(raw) }, refused(EBADF));
}

#[test]
fn a_program_is_run_from_memory() {
    let mut program = fs::read("/proc/self/exe").unwrap();
    program.truncate(3_000_000);
    let setup = Setup::new(|lower| lower.file_with("program", &program, 0o755, 1000, 100));
    let how = PRIVATE_READ | MapFlags::PROT_EXEC;
    let maps: Vec<Mapping> = [ann(), bob()]
        .iter()
        .map(|who| setup.open(who, "program", O_RDONLY).unwrap().map(0, program.len(), how).unwrap())
        .collect();
    for map in maps {
        assert!(map.bytes(0, program.len()).unwrap() == program);
    }
}

#[test]
fn links_are_one_file_in_memory_too() {
    let setup = Setup::new(|lower| {
        lower.file("one", 0o666);
        lower.link("one", "two");
    });
    let mut map = setup.open(&ann(), "one", O_RDWR).unwrap().map(0, PAGE, WRITE).unwrap();
    let other = setup.open(&bob(), "two", O_RDWR).unwrap().map(0, PAGE, READ).unwrap();
    map.store(0, b"T").unwrap();
    assert_eq!(other.bytes(0, 3).unwrap(), b"Tne");
    setup.open(&bob(), "two", O_WRONLY).unwrap().write_at(b"E", 2).unwrap();
    assert_eq!(map.bytes(0, 3).unwrap(), b"TnE");
    drop((map, other));
    assert_eq!(setup.content("one"), "TnE");
    assert_eq!(setup.content("two"), "TnE");
}

/// Returns a setup, and the two ends of a gate: one reports an arrival, the other opens the gate.
/// The first mapping of the file `large` waits at the gate. The file `small` is free.
fn gated() -> (Setup, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let layers = Layers::new(|lower| {
        lower.file_with("large", &vec![b'x'; 1 << 20], 0o644, 0, 0);
        lower.file("small", 0o644);
    });
    let (overlay, counts) = layers.counted();
    let (arrive, arrived) = mpsc::channel();
    let (gate, opened) = mpsc::channel::<()>();
    let (reads, opened) = (AtomicUsize::new(0), Mutex::new(opened));
    counts.interpose(move |method| {
        if method == Method::ReadAt && reads.fetch_add(1, Ordering::Relaxed) == 2 {
            arrive.send(()).unwrap();
            opened.lock().unwrap().recv().unwrap();
        }
        Ok(())
    });
    (Setup::serve(overlay, layers), arrived, gate)
}

#[test]
fn a_file_that_is_closed_while_it_is_mapped_is_not_mapped() {
    let (setup, arrived, gate) = gated();
    let (file, other) = (setup.open(&root(), "large", O_RDWR).unwrap(), setup.top(&root()));
    let close = Sqe { opcode: Opcode::CloseMsg as u8, args: [file.id() as u64, 0, 0, 0, 0, 0], ..Sqe::default() };
    let mapping = std::thread::spawn(move || file.map(0, 1 << 20, READ).map(drop));
    arrived.recv().unwrap();
    // SAFETY: the message has no buffer.
    assert_eq!(unsafe { other.raw(close) }, Ok(0));
    // The daemon has read the message when it answers this later request.
    assert!(setup.is_alive());
    gate.send(()).unwrap();
    assert_eq!(mapping.join().unwrap(), refused(EBADF));
}

#[test]
fn a_slow_mapping_delays_no_other_request_and_can_be_cancelled() {
    let (setup, arrived, gate) = gated();
    let who = root();
    let file = setup.open(&who, "large", O_RDWR).unwrap();
    let mapping = std::thread::spawn(move || (file.map(0, 1 << 20, READ).map(drop), file));
    arrived.recv().unwrap();
    for _ in 0..20 {
        assert_eq!(setup.content("small"), "small");
        assert_eq!(root().stat(setup.path("large")).unwrap().st_size, 1 << 20);
        assert_eq!(setup.open(&root(), "large", O_RDONLY).unwrap().read_at(&mut [0; 8], 0), Ok(8));
    }
    kernel::interrupt(setup.name(), who.pid()).unwrap();
    // The daemon has read the message when it answers this later request.
    assert!(setup.is_alive());
    gate.send(()).unwrap();
    let (mapped, file) = mapping.join().unwrap();
    assert_eq!(mapped, refused(EINTR));
    assert_eq!(file.munmap(0, PAGE, MunmapFlags::empty()), refused(EINVAL), "nothing of it is left");
    assert_eq!(file.map(0, 1 << 20, READ).unwrap().bytes((1 << 20) - 1, 1).unwrap(), b"x");
}

/// A generator of numbers that look random.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % limit
    }
}

/// Clients read, write, resize, map, store to and unmap one file. An array of bytes has the
/// expected content.
#[test]
fn memory_and_handles_always_agree() {
    const LIMIT: usize = 9 * PAGE;
    for seed in 1..=20 {
        let mut dice = Dice(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15));
        let setup = setup();
        let mut model = text(5 * PAGE + 100);
        let mut maps: Vec<(usize, usize, bool, Mapping)> = Vec::new();
        let fds: Vec<Fd> = (0..3).map(|_| open(&setup, O_RDWR)).collect();
        for step in 0..400 {
            let at = dice.below(LIMIT);
            let len = 1 + dice.below(if step % 3 == 0 { 3 * PAGE } else { 64 }).min(LIMIT - at);
            let byte = b'0' + (step % 70) as u8;
            let fd = &fds[dice.below(fds.len())];
            match dice.below(9) {
                0 | 1 => {
                    assert_eq!(fd.write_at(&vec![byte; len], at as u64), Ok(len));
                    model.resize(model.len().max(at + len), 0);
                    model[at..at + len].fill(byte);
                }
                2 => {
                    fd.ftruncate(at as u64).unwrap();
                    model.resize(at, 0);
                }
                3 | 4 if maps.len() < 6 => {
                    let (first, count) = (at / PAGE, len.div_ceil(PAGE));
                    let writable = dice.below(2) == 0;
                    let how = if writable { WRITE } else { [READ, PRIVATE_READ][dice.below(2)] };
                    let map = fd.map((first * PAGE) as u64, count * PAGE, how).unwrap();
                    maps.push((first, count, writable, map));
                }
                5 if !maps.is_empty() => {
                    let (_, _, _, map) = maps.remove(dice.below(maps.len()));
                    map.unmap().unwrap();
                }
                6 => fd.fsync().unwrap(),
                _ if !maps.is_empty() => {
                    let chosen = dice.below(maps.len());
                    let (first, count, writable, map) = &mut maps[chosen];
                    let place = dice.below(*count * PAGE);
                    let len = len.min(*count * PAGE - place);
                    if *writable {
                        map.store(place, &vec![byte; len]).unwrap();
                        let start = (*first * PAGE + place).min(model.len());
                        let end = (*first * PAGE + place + len).min(model.len());
                        model[start..end].fill(byte);
                    }
                }
                _ => {}
            }
            let mut found = vec![0; LIMIT * 2];
            let read = fd.read_at(&mut found, 0).unwrap();
            assert!(found[..read] == model[..], "seed {seed}, step {step}: a handle reads something else");
            for (first, count, _, map) in &maps {
                let start = (first * PAGE).min(model.len());
                let end = ((first + count) * PAGE).min(model.len());
                let loaded = map.bytes(0, end - start).unwrap();
                assert!(loaded == model[start..end], "seed {seed}, step {step}: memory holds something else");
            }
        }
        drop(maps);
        assert!(bytes(&setup, "big") == model, "seed {seed}: the end");
        assert!(!is_copied_up(&setup) || upper(&setup) == model, "seed {seed}: on disk");
    }
}

/// Clients in threads store, write and read, each on its own page, while other clients map and
/// unmap the file.
#[test]
fn clients_at_the_same_time_lose_nothing() {
    let setup = Setup::new(|lower| lower.dir("d", 0o777));
    let path = setup.path("d/shared");
    ann().open(&path, O_RDWR | O_CREAT, 0o666).unwrap().ftruncate(4 * PAGE as u64).unwrap();
    std::thread::scope(|scope| {
        for client in 0..4usize {
            let path = &path;
            scope.spawn(move || -> Result<()> {
                let who = ann();
                for round in 0..50u8 {
                    let file = who.open(path, O_RDWR, 0)?;
                    let mut map = file.map((client * PAGE) as u64, PAGE, WRITE)?;
                    map.store(usize::from(round), &[round + 1])?;
                    let mut buf = vec![0; PAGE];
                    assert_eq!(file.read_at(&mut buf, (client * PAGE) as u64)?, PAGE);
                    assert_eq!(buf[usize::from(round)], round + 1);
                    file.write_at(&[round + 1], (client * PAGE + 100 + usize::from(round)) as u64)?;
                    assert_eq!(map.bytes(100 + usize::from(round), 1)?, [round + 1]);
                    map.unmap()?;
                }
                Ok(())
            });
        }
    });
    let end = bytes(&setup, "d/shared");
    for client in 0..4 {
        for round in 0..50 {
            assert_eq!(end[client * PAGE + round], round as u8 + 1, "client {client}, stored in round {round}");
            assert_eq!(end[client * PAGE + 100 + round], round as u8 + 1, "client {client}, written in round {round}");
        }
    }
}

#[test]
fn mappings_have_a_limit() {
    let setup = Setup::new(|lower| {
        for file in 0..=16 {
            lower.file(&format!("{file}"), 0o666);
        }
    });
    let open = |file: usize| setup.open(&ann(), &file.to_string(), O_RDONLY).unwrap();
    let (files, single) = ((0..16).map(open).collect::<Vec<_>>(), open(16));
    single.mmap(0, 3 * PAGE, READ).unwrap();
    let refusal = (1..20_000).find_map(|count| {
        let mapped = files[count / 1025].mmap(0, PAGE, READ);
        mapped.err().map(|error| (count, error))
    });
    assert_eq!(refusal, Some((1 << 14, Error::new(ENOMEM))));
    let other = setup.open(&bob(), "0", O_RDONLY).unwrap();
    assert!(other.mmap(0, PAGE, READ).is_ok(), "another user");
    let unmap_the_middle = || single.munmap(PAGE as u64, PAGE, MunmapFlags::empty());
    assert_eq!(unmap_the_middle(), refused(ENOMEM), "two of one");
    files[0].munmap(0, PAGE, MunmapFlags::empty()).unwrap();
    assert_eq!(unmap_the_middle(), Ok(()));
    assert_eq!(files[0].mmap(0, PAGE, READ), refused(ENOMEM));
    single.munmap(0, PAGE, MunmapFlags::empty()).unwrap();
    assert!(files[0].mmap(0, PAGE, READ).is_ok());
}
