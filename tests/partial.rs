//! Partial copies: changes of large files without a whole copy, over remounts and crashes.
//!
//! Needs root, loop devices and Debian's package e2fsprogs; fails without them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, mpsc};
use std::thread;

use overlayfs::errno::{EOPNOTSUPP, Error};
use overlayfs::layer::counted::{Counted, Counts, Method};
use overlayfs::layer::{Allocation, OsLayer, Owner, RenameMode, Result, Stat, Time};
use overlayfs::overlay::{Layers, Node, Overlay, Settings};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use test_common::{Disk, LowerGuard, Setup, names, partial_file, put};

type Merged = Overlay<Counted<OsLayer>>;

const OWN: Owner = Owner { uid: 0, gid: 0 };

/// The size is no multiple of the size of a chunk.
const SIZE: usize = (1 << 20) + 200_000;

/// Returns contents with different bytes in every chunk and every page.
fn content() -> Vec<u8> {
    (0..SIZE).map(|index| (index / 1000 + index % 7) as u8 | 1).collect()
}

fn setup() -> Setup {
    let setup = Setup::new();
    put::file(&setup.dir("lower/dir"), "file", content());
    setup.dir("upper");
    setup
}

fn mount_with(setup: &Setup, counts: &Counts, settings: Settings) -> Merged {
    // A copy that shares the blocks of its original is never a partial one.
    counts.interpose(|method| if method == Method::ShareData { Err(Error::new(EOPNOTSUPP)) } else { Ok(()) });
    let open = |name: &str, for_writing| Counted::new(OsLayer::open(&setup.path(name), for_writing).unwrap(), counts);
    let layers = Layers { upper: Some(open("upper", true)), work: None, lowers: vec![open("lower", false)] };
    Overlay::with_settings(layers, settings).unwrap()
}

fn mount(setup: &Setup, counts: &Counts) -> Merged {
    mount_with(setup, counts, Settings::default())
}

/// As [`mount`], with the upper layer only read, and with these lower layers.
fn mount_read_only(setup: &Setup, counts: &Counts, lowers: &[&str]) -> Merged {
    let open = |name: &&str| Counted::new(OsLayer::open(&setup.path(name), false).unwrap(), counts);
    let lowers = ["upper"].iter().chain(lowers).map(open).collect();
    let settings = Settings { read_only_upper: true, ..Settings::default() };
    Overlay::with_settings(Layers { upper: None, work: None, lowers }, settings).unwrap()
}

fn find(overlay: &Merged, path: &str) -> Arc<Node<Counted<OsLayer>>> {
    path.split('/').fold(overlay.root().clone(), |dir, name| overlay.lookup(&dir, OsStr::new(name)).unwrap())
}

fn read(overlay: &Merged, path: &str) -> Vec<u8> {
    let handle = overlay.open(&find(overlay, path));
    let mut bytes = vec![0; 4 * SIZE];
    let read = overlay.read_at(&handle, &mut bytes, 0).unwrap();
    assert_eq!(read as u64, overlay.stat(handle.node()).unwrap().size);
    bytes.truncate(read);
    bytes
}

/// Returns the number of bytes written to files of the layers, by any call.
fn copies(counts: &Counts) -> u64 {
    let tally = counts.tally();
    tally.of(Method::CopyRange) + tally.of(Method::WriteAt)
}

/// Returns whether the upper layer has files of partial copies.
fn has_parts(setup: &Setup) -> bool {
    let has = |dir: &str, prefix: &str| {
        let dir = setup.path(dir);
        dir.exists() && names(&dir).iter().any(|name| name.starts_with(prefix))
    };
    has("upper", ".wh..wh.part") || has("upper/dir", ".wh..wh.")
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize, usize, u8),
    Append(usize, u8),
    Truncate(usize),
    Mode(u32),
    Times(i64),
    Punch(usize, usize),
    Sync,
    Rename,
    Link,
    /// The overlay ends normally, and is mounted again.
    Remount,
    /// The overlay ends at any point.
    Kill,
}

/// The expected state of the file.
#[derive(Clone, PartialEq)]
struct Model {
    bytes: Vec<u8>,
    mode: u32,
    name: &'static str,
    is_linked: bool,
    /// The time that was set, if no change came after it.
    mtime: Option<Time>,
}

impl Model {
    fn new(setup: &Setup) -> Self {
        let mode = fs::metadata(setup.path("lower/dir/file")).unwrap().mode() & 0o7777;
        Model { bytes: content(), mode, name: "file", is_linked: false, mtime: None }
    }

    fn apply(&mut self, op: &Op) {
        if matches!(op, Op::Write(..) | Op::Append(..) | Op::Truncate(_) | Op::Punch(..)) {
            self.mtime = None;
        }
        match *op {
            Op::Write(at, length, byte) => {
                let end = at + length;
                if self.bytes.len() < end {
                    self.bytes.resize(end, 0);
                }
                self.bytes[at..end].fill(byte);
            }
            Op::Append(length, byte) => self.bytes.resize(self.bytes.len() + length, byte),
            Op::Truncate(size) => self.bytes.resize(size, 0),
            Op::Mode(mode) => self.mode = mode,
            Op::Times(sec) => self.mtime = Some(Time { sec, nsec: 5 }),
            Op::Punch(at, length) => {
                let end = (at + length).min(self.bytes.len());
                if at < end {
                    self.bytes[at..end].fill(0);
                }
            }
            Op::Rename => self.name = if self.name == "file" { "other" } else { "file" },
            Op::Link => self.is_linked = true,
            Op::Sync | Op::Remount | Op::Kill => {}
        }
    }

    /// Applies an operation to an overlay. `self` is the model before the operation.
    fn do_to(&self, overlay: &Merged, op: &Op) -> Result<()> {
        let dir = overlay.lookup(overlay.root(), OsStr::new("dir"))?;
        let node = overlay.lookup(&dir, OsStr::new(self.name))?;
        let handle = overlay.open(&node);
        match *op {
            Op::Write(at, length, byte) => {
                assert_eq!(overlay.write_at(&handle, &vec![byte; length], at as u64)?, length);
            }
            Op::Append(length, byte) => assert_eq!(overlay.append(&handle, &vec![byte; length])?, length),
            Op::Truncate(size) => overlay.truncate(&node, size as u64)?,
            Op::Mode(mode) => overlay.set_mode(&node, mode)?,
            Op::Times(sec) => overlay.set_times(&node, Time { sec: 3, nsec: 3 }, Time { sec, nsec: 5 })?,
            Op::Punch(at, length) => {
                overlay.allocate(&handle, Allocation::PunchHole, at as u64..(at + length) as u64)?;
            }
            Op::Sync => overlay.sync(&handle)?,
            Op::Rename => {
                let mut then = self.clone();
                then.apply(op);
                let (from, to) = (OsStr::new(self.name), OsStr::new(then.name));
                overlay.rename(&dir, from, &dir, to, RenameMode::Replace)?;
            }
            Op::Link if !self.is_linked => overlay.link(&node, &dir, OsStr::new("link"))?,
            Op::Link | Op::Remount | Op::Kill => {}
        }
        Ok(())
    }

    fn is_shown_by(&self, overlay: &Merged) -> bool {
        let dir = find(overlay, "dir");
        let Ok(node) = overlay.lookup(&dir, OsStr::new(self.name)) else { return false };
        let Stat { mode, size, mtime, .. } = overlay.stat(&node).unwrap();
        let is_linked = overlay.lookup(&dir, OsStr::new("link")).is_ok();
        (mode, size as usize, is_linked) == (self.mode, self.bytes.len(), self.is_linked)
            && self.mtime.is_none_or(|known| known == mtime)
            && read(overlay, &format!("dir/{}", self.name)) == self.bytes
            && holes_are_holes(overlay, &node, &self.bytes)
    }
}

/// Returns whether the overlay reports all bytes that are not zero as data.
fn holes_are_holes(overlay: &Merged, node: &Arc<Node<Counted<OsLayer>>>, bytes: &[u8]) -> bool {
    let handle = overlay.open(node);
    let mut at = 0;
    while let Some(data) = overlay.next_data(&handle, at as u64).unwrap() {
        let (start, end) = (data.start as usize, (data.end as usize).min(bytes.len()));
        assert!(start >= at && start < end, "{data:?} after {at}");
        if bytes[at..start].iter().any(|byte| *byte != 0) {
            return false;
        }
        at = end;
    }
    bytes[at..].iter().all(|byte| *byte == 0)
}

/// Offsets: mostly within the lower file, often at the edges of chunks.
fn place() -> impl Strategy<Value = usize> {
    prop_oneof![0..SIZE + 100_000, (0..20usize, 0..3usize).prop_map(|(chunk, more)| (chunk << 16) + more)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (place(), 1..200_000usize, any::<u8>()).prop_map(|(at, length, byte)| Op::Write(at, length, byte)),
        4 => (place(), 1..2000usize, any::<u8>()).prop_map(|(at, length, byte)| Op::Write(at, length, byte)),
        2 => (1..100_000usize, any::<u8>()).prop_map(|(length, byte)| Op::Append(length, byte)),
        3 => place().prop_map(Op::Truncate),
        2 => (0..0o10000u32).prop_map(Op::Mode),
        2 => (0..9i64).prop_map(Op::Times),
        1 => (place(), 1..300_000usize).prop_map(|(at, length)| Op::Punch(at, length)),
        1 => Just(Op::Sync),
        1 => Just(Op::Rename),
        1 => Just(Op::Link),
        1 => Just(Op::Remount),
        2 => Just(Op::Kill),
    ]
}

/// Ends an overlay without any further call on its layers.
fn kill(overlay: Merged, counts: &Counts) {
    counts.stop_after(0);
    drop(overlay);
    counts.stop_after(u64::MAX);
}

#[test]
fn a_file_keeps_its_contents_over_remounts_and_kills() {
    let config = Config { cases: 60, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Config::default() };
    proptest!(config, |(ops in prop::collection::vec(op(), 1..14))| {
        let (setup, counts) = (setup(), Counts::default());
        let guard = LowerGuard::new([setup.path("lower")]);
        let mut model = Model::new(&setup);
        let mut overlay = mount(&setup, &counts);
        for op in &ops {
            model.do_to(&overlay, op).unwrap();
            model.apply(op);
            match op {
                Op::Kill => {
                    kill(overlay, &counts);
                    let upper = LowerGuard::new([setup.path("upper")]);
                    prop_assert!(model.is_shown_by(&mount_read_only(&setup, &counts, &["lower"])), "read-only");
                    drop(upper);
                    overlay = mount(&setup, &counts);
                }
                Op::Remount => {
                    drop(overlay);
                    prop_assert!(!has_parts(&setup));
                    overlay = mount(&setup, &counts);
                }
                _ => {}
            }
            prop_assert!(model.is_shown_by(&overlay), "after {op:?}");
        }
        drop(overlay);
        prop_assert!(!has_parts(&setup));
        prop_assert!(model.is_shown_by(&mount(&setup, &counts)));
        guard.check();
    });
}

#[test]
fn a_crash_leaves_the_file_before_or_after() {
    let ops = [
        Op::Mode(0o640),
        Op::Write(70_000, 3000, 7),
        Op::Append(5000, 8),
        Op::Truncate(300_000),
        Op::Truncate(900_000),
        Op::Write(100_000, 100_000, 9),
        Op::Times(77),
        Op::Sync,
        Op::Write(5, 5, 5),
        Op::Times(88),
        Op::Rename,
    ];
    for start in 0..ops.len() {
        for stop in 0.. {
            let (setup, counts) = (setup(), Counts::default());
            let overlay = mount(&setup, &counts);
            // Includes all reads that the first lookup needs.
            let mut before = Model::new(&setup);
            counts.stop_after(stop);
            let mut after = before.clone();
            let mut ended = true;
            for op in ops[start..].iter().take(3) {
                before = after.clone();
                after.apply(op);
                if before.do_to(&overlay, op).is_err() {
                    ended = false;
                    break;
                }
            }
            kill(overlay, &counts);
            let overlay = mount(&setup, &counts);
            let shown = after.is_shown_by(&overlay) || !ended && before.is_shown_by(&overlay);
            assert!(shown, "from {:?} stopped after {stop} calls", ops[start]);
            drop(overlay);
            assert!(!has_parts(&setup), "from {:?} stopped after {stop} calls", ops[start]);
            if ended {
                break;
            }
        }
    }
}

#[test]
fn attributes_and_the_end_of_a_large_file_change_without_a_copy() {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts);
    let file = find(&overlay, "dir/file");
    let ino = overlay.stat(&file).unwrap().ino;
    overlay.set_mode(&file, 0o600).unwrap();
    overlay.set_owner(&file, Owner { uid: 5, gid: 6 }).unwrap();
    let records = copies(&counts);
    assert!(
        records <= 5,
        "the feature, what the layer is stacked on, the first record of numbers, one of the directory, one of the file"
    );
    overlay.append(&overlay.open(&file), b"x").unwrap();
    assert_eq!(copies(&counts), records + 1, "the byte");
    overlay.write_at(&overlay.open(&file), b"x", 700_000).unwrap();
    assert_eq!(copies(&counts), records + 4, "the chunk, the map, the byte");
    let part = fs::metadata(partial_file(&setup.path("upper/dir"), "part", "file")).unwrap();
    assert!(part.blocks() * 512 <= 128 << 10, "{} blocks", part.blocks());
    assert_eq!((part.len(), part.uid(), part.gid(), part.mode() & 0o7777), (SIZE as u64 + 1, 5, 6, 0o600));
    assert_eq!(overlay.stat(&file).unwrap().ino, ino);
    overlay.sync(&overlay.open(&file)).unwrap();
    assert_eq!(names(&setup.path("upper/dir")), ["file"], "a synced copy is whole");
    assert_eq!(overlay.stat(&file).unwrap().ino, ino);
    let mut expected = content();
    expected.push(b'x');
    expected[700_000] = b'x';
    assert_eq!(fs::read(setup.path("upper/dir/file")).unwrap(), expected);
}

/// Returns the number of bytes that this thread has given to the system for writing.
fn written() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
}

/// The map of such a file has 2.5 MiB. It is written once, and then only its changed parts.
#[test]
fn a_huge_sparse_file_costs_only_its_changes() {
    const HUGE: u64 = 1280 << 30;
    const EXTENTS: u64 = 500;
    let map = HUGE / (64 << 10) / 8;
    let (setup, counts) = (Setup::new(), Counts::default());
    setup.dir("upper");
    let file = put::file(&setup.dir("lower/dir"), "file", "data");
    let file = fs::File::options().write(true).open(file).unwrap();
    file.set_len(HUGE).unwrap();
    let overlay = mount(&setup, &counts);
    let handle = overlay.open(&find(&overlay, "dir/file"));
    overlay.write_at(&handle, b"x", HUGE / 2).unwrap();
    counts.take();
    let before = written();
    for extent in 0..EXTENTS {
        overlay.write_at(&handle, b"x", extent * 37 % EXTENTS * (HUGE / EXTENTS) + 1).unwrap();
    }
    let (calls, bytes) = (counts.take(), written() - before);
    assert!(calls.total() <= 6 * EXTENTS, "{calls} for {EXTENTS} writes");
    assert!(bytes <= 64 * EXTENTS, "{bytes} bytes for {EXTENTS} writes");

    let mut found = 0;
    let mut at = 0;
    while let Some(data) = overlay.next_data(&handle, at).unwrap() {
        (found, at) = (found + 1, data.end);
    }
    let calls = counts.take();
    assert_eq!(found, EXTENTS);
    assert!(calls.total() <= 4 * EXTENTS, "{calls} to find {EXTENTS} extents");

    let before = written();
    overlay.sync(&handle).unwrap();
    let (calls, bytes) = (counts.take(), written() - before);
    // Between two extents no data are copied, but the map marks the holes as copied.
    assert!(calls.total() <= 16 * EXTENTS, "{calls} to complete {EXTENTS} extents");
    assert!(
        bytes <= 2 * map + 64 * 3 * EXTENTS,
        "{bytes} bytes to complete {EXTENTS} extents, where the map has {map}"
    );
    let copy = fs::File::open(setup.path("upper/dir/file")).unwrap();
    assert_eq!(copy.metadata().unwrap().len(), HUGE);
    assert!(copy.metadata().unwrap().blocks() * 512 <= (EXTENTS + 2) * (64 << 10), "it is sparse");
    let mut start = [0; 5];
    std::os::unix::fs::FileExt::read_exact_at(&copy, &mut start, 0).unwrap();
    assert_eq!(&start, b"dxta\0");
}

#[test]
fn a_removed_partial_copy_leaves_nothing_and_stays_open() {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts);
    let (dir, handle) = (find(&overlay, "dir"), overlay.open(&find(&overlay, "dir/file")));
    overlay.write_at(&handle, b"new", 0).unwrap();
    overlay.unlink(&dir, OsStr::new("file")).unwrap();
    assert_eq!(names(&setup.path("upper/dir")), [".wh.file"]);
    overlay.write_at(&handle, b"more", 500_000).unwrap();
    let mut expected = content();
    expected[..3].copy_from_slice(b"new");
    expected[500_000..500_004].copy_from_slice(b"more");
    let mut bytes = vec![0; SIZE];
    assert_eq!(overlay.read_at(&handle, &mut bytes, 0).unwrap(), SIZE);
    assert_eq!(bytes, expected);
    let copy = overlay.create_file(&dir, OsStr::new("copy"), 0o600, OWN).unwrap();
    overlay.copy_range(&handle, 400_000..900_000, &copy, 0).unwrap();
    assert_eq!(read(&overlay, "dir/copy"), expected[400_000..900_000]);
    overlay.unlink(&dir, OsStr::new("copy")).unwrap();
    overlay.allocate(&handle, Allocation::PunchHole, 300_000..310_000).unwrap();
    expected[300_000..310_000].fill(0);
    assert_eq!(overlay.read_at(&handle, &mut bytes, 0).unwrap(), SIZE);
    assert_eq!(bytes, expected);
    overlay.create_file(&dir, OsStr::new("file"), 0o600, OWN).unwrap();
    assert_eq!(read(&overlay, "dir/file"), b"");
    assert_eq!(names(&setup.path("upper/dir")), ["file"]);
}

#[test]
fn a_range_is_copied_from_and_to_a_partial_copy() {
    let (setup, counts) = (setup(), Counts::default());
    put::file(&setup.path("lower/dir"), "other", content());
    let overlay = mount(&setup, &counts);
    let [from, to] = ["dir/file", "dir/other"].map(|path| overlay.open(&find(&overlay, path)));
    overlay.write_at(&from, b"new", 500_000).unwrap();
    overlay.append(&to, b"end").unwrap();
    overlay.copy_range(&from, 499_999..500_100, &to, 100_000).unwrap();
    let mut expected = [&content()[..], b"end"].concat();
    expected[100_000..100_101].copy_from_slice(&content()[499_999..500_100]);
    expected[100_001..100_004].copy_from_slice(b"new");
    assert_eq!(read(&overlay, "dir/other"), expected);
}

#[test]
fn leftovers_of_a_removed_file_do_not_come_back() {
    let (setup, counts) = (setup(), Counts::default());
    drop(mount(&setup, &counts));
    let upper = setup.dir("upper/dir");
    for name in [".wh.file", ".wh..wh.part.file", ".wh..wh.map.file", ".wh..wh.map.other"] {
        put::file(&upper, name, "");
    }
    let overlay = mount(&setup, &counts);
    let dir = find(&overlay, "dir");
    assert!(overlay.lookup(&dir, OsStr::new("file")).is_err());
    assert_eq!(names(&upper), [".wh.file"]);
    overlay.remove_dir(overlay.root(), OsStr::new("dir")).unwrap();
    assert!(!upper.exists());
}

#[test]
fn a_map_of_another_time_is_ignored() {
    check_spoiled_map(|map| map[3] ^= 1);
}

/// A power failure may lose the start of a map and leave its bits.
#[test]
fn a_map_without_its_header_is_ignored() {
    check_spoiled_map(|map| map[..32].fill(0));
}

/// Changes the map of unsynced data. The next mount must ignore it.
fn check_spoiled_map(spoil: impl Fn(&mut [u8])) {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts);
    let file = find(&overlay, "dir/file");
    overlay.write_at(&overlay.open(&file), b"never synced", 70_000).unwrap();
    overlay.append(&overlay.open(&file), b"end").unwrap();
    drop(file);
    kill(overlay, &counts);
    let map = partial_file(&setup.path("upper/dir"), "map", "file");
    let mut bytes = fs::read(&map).unwrap();
    spoil(&mut bytes);
    fs::write(&map, bytes).unwrap();
    let overlay = mount(&setup, &counts);
    assert_eq!(read(&overlay, "dir/file"), [&content()[..], b"end"].concat());
    assert!(!map.exists());
}

/// btrfs may restore the first name of a complete copy beside its later name.
#[test]
fn a_copy_that_has_another_name_keeps_its_data() {
    let (setup, counts) = (setup(), Counts::default());
    put::dir(&setup.path("upper"), "dir");
    let whole = put::file(&setup.path("upper"), "whole", vec![b'w'; SIZE]);
    let part = setup.path("upper/dir/.wh..wh.part.file");
    fs::hard_link(&whole, &part).unwrap();
    let overlay = mount(&setup, &counts);
    assert!(read(&overlay, "dir/file") == content());
    assert!(read(&overlay, "whole") == vec![b'w'; SIZE]);
    assert!(!part.exists());
}

/// Data without a map, after a power loss, do not show in a hole of the original.
#[test]
fn unsynced_data_do_not_come_back_in_a_hole() {
    let (setup, counts) = (setup(), Counts::default());
    let holes = fs::File::create(setup.path("lower/dir/file")).unwrap();
    holes.set_len(4 << 20).unwrap();
    let overlay = mount(&setup, &counts);
    overlay.write_at(&overlay.open(&find(&overlay, "dir/file")), b"never synced", 70_000).unwrap();
    kill(overlay, &counts);
    fs::remove_file(partial_file(&setup.path("upper/dir"), "map", "file")).unwrap();
    let overlay = mount(&setup, &counts);
    let file = find(&overlay, "dir/file");
    overlay.write_at(&overlay.open(&file), b"x", 90_000).unwrap();
    let mut expected = vec![0; 4 << 20];
    expected[90_000] = b'x';
    assert!(read(&overlay, "dir/file") == expected);
}

/// A load of a partial copy repairs it on the disk.
#[test]
fn a_second_kill_finds_what_the_first_mount_found() {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts);
    overlay.set_mode(&find(&overlay, "dir/file"), 0o600).unwrap();
    kill(overlay, &counts);
    // As after a kill between the truncation and the write of the map.
    fs::OpenOptions::new()
        .write(true)
        .open(partial_file(&setup.path("upper/dir"), "part", "file"))
        .unwrap()
        .set_len(131_072)
        .unwrap();
    let mut expected = content();
    expected.truncate(131_072);
    expected.resize(900_001, 0);
    expected[900_000] = b'x';
    let overlay = mount(&setup, &counts);
    overlay.write_at(&overlay.open(&find(&overlay, "dir/file")), b"x", 900_000).unwrap();
    kill(overlay, &counts);
    assert!(read(&mount(&setup, &counts), "dir/file") == expected);
}

#[test]
fn a_capability_is_not_lost_with_the_data_that_come_later() {
    let (setup, counts) = (setup(), Counts::default());
    let name = OsStr::new("security.capability");
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    put::file(&setup.path("lower/dir"), "other", content());
    rustix::fs::setxattr(setup.path("lower/dir/file"), name, capability, rustix::fs::XattrFlags::empty()).unwrap();
    let overlay = mount(&setup, &counts);
    let [below, above] = ["dir/file", "dir/other"].map(|path| find(&overlay, path));
    overlay.set_times(&below, Time { sec: 1, nsec: 1 }, Time { sec: 2, nsec: 2 }).unwrap();
    overlay.set_mode(&above, 0o755).unwrap();
    overlay.set_xattr(&above, name, capability, overlayfs::layer::XattrMode::Set).unwrap();
    for node in [&below, &above] {
        overlay.sync(&overlay.open(node)).unwrap();
        assert_eq!(overlay.xattr(node, name).unwrap(), capability);
    }
}

/// Without space for the whole file the partial copy stays, also after a power loss.
#[test]
fn a_copy_that_cannot_be_completed_is_on_the_disk() {
    let (setup, counts) = (setup(), Counts::default());
    let disk = Disk::new(&setup, 32 << 20, &["mkfs.ext4", "-q"]);
    let large: Vec<u8> = content().iter().cycle().take(12 << 20).copied().collect();
    let filler = disk.path().join("filler");
    put::file(&setup.path("lower/dir"), "file", &large);
    let overlay = || {
        let open = |path: &std::path::Path, upper| Counted::new(OsLayer::open(path, upper).unwrap(), &counts);
        let layers = Layers {
            upper: Some(open(disk.path(), true)),
            work: None,
            lowers: vec![open(&setup.path("lower"), false)],
        };
        Overlay::new(layers).unwrap()
    };
    let mut expected = large;
    for (at, word) in [(5_000_000, b"first"), (9_000_000, b"later")] {
        let overlay = overlay();
        overlay.write_at(&overlay.open(&find(&overlay, "dir/file")), word, at as u64).unwrap();
        expected[at..at + word.len()].copy_from_slice(word);
        // Another program takes the space for the rest.
        fs::write(&filler, vec![0; 14 << 20]).unwrap();
        drop(overlay);
        fs::remove_file(&filler).unwrap();
        let map = fs::read(partial_file(&disk.path().join("dir"), "map", "file")).unwrap();
        assert_eq!(map[..16], [0xff; 16], "it is valid at any time");
    }
    let overlay = overlay();
    let handle = overlay.open(&find(&overlay, "dir/file"));
    let mut bytes = vec![0; expected.len()];
    assert_eq!(overlay.read_at(&handle, &mut bytes, 0).unwrap(), expected.len());
    assert!(bytes == expected);
}

#[test]
fn a_directory_is_renamed_with_the_partial_copies_in_it() {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts);
    overlay.write_at(&overlay.open(&find(&overlay, "dir/file")), b"new", 70_000).unwrap();
    let calls = copies(&counts);
    let (root, dir) = (overlay.root(), OsStr::new("dir"));
    overlay.rename(root, dir, root, OsStr::new("moved"), RenameMode::Replace).unwrap();
    assert!(copies(&counts) <= calls + 2, "nothing but the redirect and its record is written");
    let mut expected = content();
    expected[70_000..70_003].copy_from_slice(b"new");
    assert_eq!(read(&overlay, "moved/file"), expected);
    kill(overlay, &counts);
    let overlay = mount(&setup, &counts);
    assert_eq!(read(&overlay, "moved/file"), expected);
    drop(overlay);
    assert_eq!(fs::read(setup.path("upper/moved/file")).unwrap(), expected);
}

#[test]
fn copies_of_a_killed_daemon_are_completed_without_a_lookup() {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts);
    overlay.set_mode(&find(&overlay, "dir/file"), 0o600).unwrap();
    kill(overlay, &counts);
    assert!(has_parts(&setup));
    drop(mount(&setup, &counts));
    assert!(!has_parts(&setup));
    assert_eq!(fs::read(setup.path("upper/dir/file")).unwrap(), content());
}

#[test]
fn whole_copies_are_made_on_request() {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount_with(&setup, &counts, Settings { whole_copies: true, ..Settings::default() });
    overlay.set_mode(&find(&overlay, "dir/file"), 0o600).unwrap();
    assert_eq!(fs::read(setup.path("upper/dir/file")).unwrap(), content());
}

#[test]
fn truncated_data_do_not_come_back() {
    let setup = setup();
    let counts = Counts::default();
    let overlay = mount(&setup, &counts);
    let file = find(&overlay, "dir/file");
    overlay.write_at(&overlay.open(&file), &[112; 9000], 70_000).unwrap();
    overlay.truncate(&file, 3).unwrap();
    assert_eq!(read(&overlay, "dir/file"), content()[..3]);
    drop(file);
    kill(overlay, &counts);
    // As after a power loss.
    fs::remove_file(partial_file(&setup.path("upper/dir"), "map", "file")).unwrap();
    let overlay = mount(&setup, &counts);
    assert_eq!(read(&overlay, "dir/file"), content()[..3]);
    overlay.truncate(&find(&overlay, "dir/file"), 10).unwrap();
    assert_eq!(read(&overlay, "dir/file"), [&content()[..3], &[0; 7]].concat());
    drop(overlay);
    assert_eq!(read(&mount(&setup, &counts), "dir/file").len(), 10);
}

#[test]
fn a_copy_that_gets_its_name_is_there_throughout() {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = Arc::new(mount(&setup, &counts));
    let (dir, node) = (find(&overlay, "dir"), find(&overlay, "dir/file"));
    overlay.write_at(&overlay.open(&node), b"new", 0).unwrap();
    assert!(has_parts(&setup));
    // The copy already has its own name when its map is removed.
    let (read, seen) = mpsc::channel();
    let (reader, file) = (overlay.clone(), node.clone());
    counts.interpose(move |method| {
        if method == Method::Unlink {
            let (reader, file, mut bytes) = (reader.clone(), file.clone(), [0; 3]);
            let other = thread::spawn(move || reader.read_at(&reader.open(&file), &mut bytes, 0).map(|_| bytes));
            let _ = read.send(other.join().unwrap());
        }
        Ok(())
    });
    overlay.rename(&dir, OsStr::new("file"), &dir, OsStr::new("moved"), RenameMode::Replace).unwrap();
    assert_eq!(seen.try_iter().next(), Some(Ok(*b"new")));
    counts.interpose(|_| Ok(()));
}

/// A stat of a directory during the rename of a copy in it returns the times from before.
#[test]
fn a_directory_shows_its_times_while_a_copy_in_it_gets_its_name() {
    let (setup, counts) = (setup(), Counts::default());
    put::file(&setup.path("lower/dir"), "other", "other");
    let overlay = Arc::new(mount(&setup, &counts));
    let (dir, file) = (find(&overlay, "dir"), find(&overlay, "dir/file"));
    let times = |stat: Stat| (stat.mtime, stat.ctime);
    let before = times(overlay.stat(&dir).unwrap());
    let handle = overlay.open(&file);
    overlay.write_at(&handle, b"new", 0).unwrap();
    // The copy already has its own name when its map is removed.
    let (tell, seen) = mpsc::channel();
    let (asked, asked_for) = (overlay.clone(), dir.clone());
    counts.interpose(move |method| {
        if method == Method::Unlink {
            let (asked, dir) = (asked.clone(), asked_for.clone());
            let _ = tell.send(thread::spawn(move || asked.stat(&dir).unwrap()).join().unwrap());
        }
        Ok(())
    });
    overlay.sync(&handle).unwrap();
    counts.interpose(|_| Ok(()));
    assert_eq!(seen.try_iter().map(times).next(), Some(before));
    assert_eq!(times(overlay.stat(&dir).unwrap()), before);
    // The next change does not restore a wrong time either.
    overlay.truncate(&find(&overlay, "dir/other"), 5).unwrap();
    assert_eq!(times(overlay.stat(&dir).unwrap()), before);
    let found = fs::metadata(setup.path("upper/dir")).unwrap();
    assert_eq!((found.mtime(), found.mtime_nsec() as u32), (before.0.sec, before.0.nsec));
}

/// As [`mount`], with these lower layers.
fn mount_on(setup: &Setup, counts: &Counts, lowers: &[&str]) -> Merged {
    counts.interpose(|method| if method == Method::ShareData { Err(Error::new(EOPNOTSUPP)) } else { Ok(()) });
    let open = |name: &str, for_writing| Counted::new(OsLayer::open(&setup.path(name), for_writing).unwrap(), counts);
    let lowers = lowers.iter().map(|name| open(name, false)).collect();
    Overlay::new(Layers { upper: Some(open("upper", true)), work: None, lowers }).unwrap()
}

#[test]
fn a_change_is_not_mixed_with_another_lower_file() {
    type Change = fn(&Merged, &Arc<Node<Counted<OsLayer>>>);
    let changes: [Change; 3] = [
        |overlay, file| assert_eq!(overlay.write_at(&overlay.open(file), b"changed", 70_000), Ok(7)),
        // A change without any copied data.
        |overlay, file| overlay.set_mode(file, 0o600).unwrap(),
        |overlay, file| overlay.truncate(file, 1 << 20).unwrap(),
    ];
    // Another file with the same size and time of last change.
    let newer = vec![b'n'; SIZE];
    for change in changes {
        let (setup, counts) = (setup(), Counts::default());
        put::file(&setup.dir("newer/dir"), "file", &newer);
        test_common::times(&setup.path("lower/dir/file"), (5, 0), (5, 0));
        test_common::times(&setup.path("newer/dir/file"), (5, 0), (5, 0));
        let guard = LowerGuard::new([setup.path("lower"), setup.path("newer")]);
        let overlay = mount(&setup, &counts);
        let file = find(&overlay, "dir/file");
        change(&overlay, &file);
        let (changed, stat) = (read(&overlay, "dir/file"), overlay.stat(&file).unwrap());
        drop(file);
        kill(overlay, &counts);

        for _ in 0..2 {
            let part = partial_file(&setup.path("upper/dir"), "part", "file");
            let kept = fs::read(&part).unwrap();
            let overlay = mount_on(&setup, &counts, &["newer", "lower"]);
            assert!(read(&overlay, "dir/file") == newer);
            drop(overlay);
            assert!(fs::read(&part).unwrap() == kept, "the change is kept");
        }
        // A change of the other file has another name.
        let overlay = mount_on(&setup, &counts, &["newer", "lower"]);
        overlay.write_at(&overlay.open(&find(&overlay, "dir/file")), b"other", 0).unwrap();
        kill(overlay, &counts);
        let overlay = mount_on(&setup, &counts, &["newer", "lower"]);
        assert!(read(&overlay, "dir/file") == [b"other", &newer[5..]].concat());
        drop(overlay);
        assert!(partial_file(&setup.path("upper/dir"), "part", "file").exists(), "the first change is kept");
        fs::remove_file(setup.path("upper/dir/file")).unwrap();

        // With its former layers, the change shows again.
        let overlay = mount(&setup, &counts);
        let file = find(&overlay, "dir/file");
        assert!(read(&overlay, "dir/file") == changed);
        assert_eq!(overlay.stat(&file).unwrap().mode, stat.mode);
        drop((file, overlay));
        assert_eq!(names(&setup.path("upper/dir")), ["file"]);
        assert!(!setup.path("upper/.wh..wh.parts").exists());
        guard.check();
    }
}

#[test]
fn a_partial_copy_without_a_recorded_source_is_read() {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts);
    overlay.write_at(&overlay.open(&find(&overlay, "dir/file")), b"changed", 70_000).unwrap();
    let changed = read(&overlay, "dir/file");
    kill(overlay, &counts);
    let dir = setup.path("upper/dir");
    // The names that earlier versions used.
    for kind in ["part", "map"] {
        fs::rename(partial_file(&dir, kind, "file"), dir.join(format!(".wh..wh.{kind}.file"))).unwrap();
    }
    assert!(read(&mount(&setup, &counts), "dir/file") == changed);
    assert_eq!(names(&dir), ["file"]);
}

/// Returns the data and attributes of a file of a mount, without the inode number and the time of
/// last change of status. The work directory keeps these two.
fn shown(overlay: &Merged, path: &str) -> (Vec<u8>, Stat) {
    let node = find(overlay, path);
    let stat = overlay.stat(&node).unwrap();
    let bytes = read(overlay, path);
    assert!(holes_are_holes(overlay, &node, &bytes));
    assert_eq!(overlay.stat(&node).unwrap(), stat);
    (bytes, Stat { ino: 0, dev: 0, ctime: Time::default(), blocks: 0, ..stat })
}

/// After a kill at any call, a read-only mount shows the same as the next writable one. It does not
/// change the layers.
#[test]
fn a_read_only_mount_shows_the_state_of_a_killed_daemon() {
    let ops = [
        Op::Mode(0o640),
        Op::Write(70_000, 3000, 7),
        Op::Append(5000, 8),
        Op::Truncate(300_000),
        Op::Truncate(900_000),
        Op::Times(77),
        Op::Sync,
    ];
    // The possible states of the map after a power loss.
    let maps: [fn(&std::path::Path); 3] = [
        |_| {},
        |map| fs::remove_file(map).unwrap(),
        |map| {
            let mut bytes = fs::read(map).unwrap();
            bytes.iter_mut().take(1).for_each(|byte| *byte ^= 1);
            fs::write(map, bytes).unwrap();
        },
    ];
    let mut partial = [0; 3];
    for stop in 0.. {
        let index = stop as usize % maps.len();
        let (setup, counts) = (setup(), Counts::default());
        let overlay = mount(&setup, &counts);
        let mut model = Model::new(&setup);
        counts.stop_after(stop);
        let ended = ops.iter().all(|op| {
            let done = model.do_to(&overlay, op).is_ok();
            model.apply(op);
            done
        });
        kill(overlay, &counts);
        if let Some(map) = map(&setup.path("upper/dir")) {
            maps[index](&map);
            partial[index] += 1;
        }
        let guard = LowerGuard::new([setup.path("upper"), setup.path("lower")]);
        let found = shown(&mount_read_only(&setup, &counts, &["lower"]), "dir/file");
        drop(guard);
        assert!(found == shown(&mount(&setup, &counts), "dir/file"), "map {index}, stopped after {stop} calls");
        if ended {
            break;
        }
    }
    assert!(partial.iter().all(|count| *count > 5), "{partial:?}");
}

/// Returns the path of the map of a partial copy in `dir`, if there is one.
fn map(dir: &std::path::Path) -> Option<std::path::PathBuf> {
    let names = if dir.exists() { names(dir) } else { Vec::new() };
    names.iter().find(|name| name.starts_with(".wh..wh.map.")).map(|name| dir.join(name))
}

#[test]
fn a_read_only_mount_shows_no_change_of_another_file() {
    let (setup, counts) = (setup(), Counts::default());
    put::file(&setup.dir("newer/dir"), "file", vec![b'n'; SIZE]);
    let overlay = mount(&setup, &counts);
    overlay.write_at(&overlay.open(&find(&overlay, "dir/file")), b"changed", 70_000).unwrap();
    let changed = read(&overlay, "dir/file");
    kill(overlay, &counts);
    let _guard = LowerGuard::new(["upper", "lower", "newer"].map(|name| setup.path(name)));
    assert!(read(&mount_read_only(&setup, &counts, &["newer", "lower"]), "dir/file") == vec![b'n'; SIZE]);
    let options = overlayfs::options::Options {
        lowers: vec![setup.path("lower")],
        upper: Some(setup.path("upper")),
        read_only: true,
        ..Default::default()
    };
    let overlay = overlayfs::mount::mount(&options).unwrap();
    // Also after the engine has evicted it.
    for _ in 0..2 {
        let dir = overlay.lookup(overlay.root(), OsStr::new("dir")).unwrap();
        let node = overlay.lookup(&dir, OsStr::new("file")).unwrap();
        let mut bytes = vec![0; 2 * SIZE];
        let handle = overlay.open(&node);
        assert_eq!(overlay.read_at(&handle, &mut bytes, 0).unwrap(), SIZE);
        assert!(bytes[..SIZE] == changed);
        drop(handle);
        overlay.release(node);
    }
}

#[test]
fn a_read_only_mount_shows_nothing_of_a_removed_file() {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts);
    overlay.set_mode(&find(&overlay, "dir/file"), 0o600).unwrap();
    kill(overlay, &counts);
    // As after a kill between the whiteout and the removal.
    let marker = put::file(&setup.path("upper/dir"), ".wh.file", "");
    let overlay = mount_read_only(&setup, &counts, &["lower"]);
    assert!(overlay.lookup(&find(&overlay, "dir"), OsStr::new("file")).is_err());
    fs::remove_file(marker).unwrap();
    put::file(&setup.path("upper/dir"), "file", "another");
    assert_eq!(read(&mount_read_only(&setup, &counts, &["lower"]), "dir/file"), b"another");
}
