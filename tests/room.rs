//! Large files of a lower layer, and an upper layer without room for all of them. A change is
//! refused at once, or it is kept.
//!
//! Needs root, loop devices and Debian's package e2fsprogs; fails without them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use overlayfs::errno::ENOSPC;
use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::layer::{OsLayer, Owner, Result};
use overlayfs::overlay::{Handle, Layers, Node, Overlay};
use test_common::{Disk, LowerGuard, Random, Setup, names, put};

type Merged = Overlay<Counted<OsLayer>>;

const MIB: usize = 1 << 20;
const OWN: Owner = Owner { uid: 0, gid: 0 };

/// The sizes of the upper layer's disk, and of each file of the lower layer.
const DISK: usize = 16 * MIB;
const LARGE: usize = 6 * MIB;
/// The size of a file with two pieces of data, and holes behind them.
const SPARSE: u64 = 40 << 20;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// The layers. The disk is unmounted before its directory is removed.
struct Fixture {
    guard: LowerGuard,
    disk: Disk,
    setup: Setup,
}

impl Fixture {
    fn new() -> Self {
        let setup = Setup::new();
        for name in NAMES {
            put::file(&setup.dir("lower"), name, content(name));
        }
        let sparse = File::create(setup.path("lower/sparse")).unwrap();
        sparse.set_len(SPARSE).unwrap();
        for at in [0, SPARSE / 2] {
            sparse.write_all_at(&vec![7; MIB], at).unwrap();
        }
        sparse.sync_all().unwrap();
        let disk = Disk::new(&setup, DISK as u64, &["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal"]);
        fs::create_dir(disk.path().join("upper")).unwrap();
        Fixture { guard: LowerGuard::new([setup.path("lower")]), disk, setup }
    }

    fn mount(&self, counts: &Counts) -> Merged {
        let upper = Counted::new(OsLayer::open(&self.disk.path().join("upper"), true).unwrap(), counts);
        let lower = Counted::new(OsLayer::open(&self.setup.path("lower"), false).unwrap(), counts);
        Overlay::new(Layers { upper: Some(upper), work: None, lowers: vec![lower] }).unwrap()
    }

    /// Takes all space of the disk except `but` bytes, as another program would.
    fn fill(&self, but: usize) {
        let file = File::create(self.disk.path().join("filler")).unwrap();
        let mut at = 0;
        for size in [MIB, 4096] {
            let free = || rustix::fs::statvfs(self.disk.path()).map(|found| (found.f_bavail * found.f_bsize) as usize);
            while free().unwrap() >= but + size
                && rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at, size as u64).is_ok()
            {
                at += size as u64;
            }
        }
        file.sync_all().unwrap();
    }

    fn free(&self) {
        fs::remove_file(self.disk.path().join("filler")).unwrap();
    }

    /// Returns the names of files of partial copies.
    fn parts(&self) -> Vec<String> {
        let mut all = names(&self.disk.path().join("upper"));
        all.retain(|name| name.starts_with(".wh..wh.part."));
        all
    }
}

fn content(name: &str) -> Vec<u8> {
    (0..LARGE / 512).flat_map(|part| [part as u8 ^ name.as_bytes()[0]; 512]).collect()
}

fn find(overlay: &Merged, name: &str) -> Arc<Node<Counted<OsLayer>>> {
    overlay.lookup(overlay.root(), OsStr::new(name)).unwrap()
}

fn open(overlay: &Merged, name: &str) -> Handle<Counted<OsLayer>> {
    overlay.open(&find(overlay, name))
}

fn read(overlay: &Merged, name: &str) -> Vec<u8> {
    let mut bytes = vec![0; DISK];
    let read = overlay.read_at(&open(overlay, name), &mut bytes, 0).unwrap();
    bytes.truncate(read);
    bytes
}

/// Returns true for success, false for ENOSPC. Panics for another errno.
#[track_caller]
fn is_done<T>(result: Result<T>) -> bool {
    match result {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.errno, ENOSPC);
            false
        }
    }
}

/// Changes succeed as long as the whole files fit. Later ones fail at the write.
#[test]
fn a_change_of_a_file_without_room_is_refused() {
    let fixture = Fixture::new();
    let overlay = fixture.mount(&Counts::default());
    let free = || overlay.stat_fs().unwrap();
    let before = free();
    let write = |name| is_done(overlay.write_at(&open(&overlay, name), b"new", 3_000_000));
    assert_eq!(NAMES.map(write), [true, true, false, false]);
    // The whole size of both files counts as used, even before it is copied.
    let taken = (before.blocks_available - free().blocks_available) * u64::from(before.block_size);
    assert!(taken >= 2 * LARGE as u64, "{taken}");
    assert_eq!(NAMES.map(write), [true, true, false, false]);
    assert!(!is_done(overlay.set_mode(&find(&overlay, "c"), 0o600)), "chmod");
    for name in NAMES {
        overlay.sync(&open(&overlay, name)).unwrap();
    }
    let check = |overlay: &Merged| {
        for (name, is_new) in NAMES.into_iter().zip([true, true, false, false]) {
            let mut right = content(name);
            if is_new {
                right[3_000_000..][..3].copy_from_slice(b"new");
            }
            assert!(read(overlay, name) == right, "{name}");
        }
    };
    check(&overlay);
    drop(overlay);
    assert_eq!(names(&fixture.disk.path().join("upper")), [".wh..wh.work", "a", "b"]);
    check(&fixture.mount(&Counts::default()));
    fixture.guard.check();
}

/// A write to another file of the overlay does not get the space that partial copies still need.
#[test]
fn the_room_for_the_rest_of_a_file_is_reserved() {
    let fixture = Fixture::new();
    let overlay = fixture.mount(&Counts::default());
    let large = open(&overlay, "a");
    overlay.write_at(&large, b"new", 100).unwrap();
    assert_eq!(fixture.parts().len(), 1, "there is room for all of it");
    let others = overlay.create_file(overlay.root(), OsStr::new("others"), 0o600, OWN).unwrap();
    let mut size = 0;
    while is_done(overlay.write_at(&others, &vec![1; MIB / 2], size)) {
        size += MIB as u64 / 2;
    }
    assert!((DISK - LARGE - 3 * MIB..DISK - LARGE).contains(&(size as usize)), "{size} bytes were given");
    // The completion still has its space.
    overlay.sync(&large).unwrap();
    let mut right = content("a");
    right[100..103].copy_from_slice(b"new");
    assert!(read(&overlay, "a") == right);
    fixture.guard.check();
}

/// Other programs may take the space that was kept free. Earlier writes stay, and the next mount
/// shows them.
#[test]
fn a_disk_filled_by_another_program_loses_no_write() {
    let fixture = Fixture::new();
    let counts = Counts::default();
    let overlay = fixture.mount(&counts);
    let mut right = content("a");
    let large = open(&overlay, "a");
    overlay.write_at(&large, b"new", 100).unwrap();
    right[100..103].copy_from_slice(b"new");
    fixture.fill(2 * MIB);
    // The next write that needs space fails, and so does the completion.
    let mut at = 200_000;
    while is_done(overlay.write_at(&large, &[9; 100_000], at as u64)) {
        right[at..at + 100_000].fill(9);
        at += 100_000;
    }
    assert!(at < 2 * LARGE / 3, "{at}");
    assert!(!is_done(overlay.sync(&large)));
    assert!(read(&overlay, "a") == right, "while it is mounted");
    drop((large, overlay));
    assert_eq!(fixture.parts().len(), 1, "it cannot be completed");
    let overlay = fixture.mount(&counts);
    assert!(read(&overlay, "a") == right, "in the next mount");
    assert!(!is_done(overlay.sync(&open(&overlay, "a"))));
    fixture.free();
    overlay.sync(&open(&overlay, "a")).unwrap();
    assert!(read(&overlay, "a") == right, "when there is room again");
    drop(overlay);
    assert!(fixture.parts().is_empty());
    fixture.guard.check();
}

/// Holes need no room.
#[test]
fn a_file_with_holes_needs_room_for_its_data() {
    let fixture = Fixture::new();
    let overlay = fixture.mount(&Counts::default());
    let file = open(&overlay, "sparse");
    overlay.write_at(&file, b"new", SPARSE - 9).unwrap();
    let left = overlay.stat_fs().unwrap();
    assert!(left.blocks_available * u64::from(left.block_size) > DISK as u64 / 2);
    overlay.sync(&file).unwrap();
    drop((file, overlay));
    let copy = fs::metadata(fixture.disk.path().join("upper/sparse")).unwrap();
    assert_eq!(copy.len(), SPARSE);
    assert!(copy.blocks() * 512 < 3 * MIB as u64, "{} blocks", copy.blocks());
}

/// Random changes of large and small files, while another program fills the disk and frees it
/// again.
#[test]
fn accepted_changes_are_kept_and_refused_ones_change_nothing() {
    let mut refused = 0;
    for seed in 1..=2 {
        refused += random_changes(seed);
    }
    assert!(refused > 0, "nothing was refused");
}

fn random_changes(seed: u64) -> usize {
    let fixture = Fixture::new();
    let mut random = Random(seed);
    let mut right: BTreeMap<&str, Vec<u8>> = NAMES.iter().map(|name| (*name, content(name))).collect();
    let (mut refused, mut is_filled) = (0, false);
    for _ in 0..2 {
        let overlay = fixture.mount(&Counts::default());
        for _ in 0..60 {
            let name = *random.one_of(&["a", "b", "c", "d", "e", "f"]);
            match random.below(10) {
                0..6 => {
                    if !right.contains_key(name) {
                        let made = overlay.create_file(overlay.root(), OsStr::new(name), 0o600, OWN);
                        if !is_done(made) {
                            refused += 1;
                            continue;
                        }
                    }
                    let bytes = right.entry(name).or_default();
                    let at = random.below(bytes.len().min(LARGE) + 1);
                    let new = vec![random.below(256) as u8; *random.one_of(&[1, 5000, 300_000, 2 * MIB])];
                    match overlay.write_at(&open(&overlay, name), &new, at as u64) {
                        Ok(count) => {
                            bytes.resize(bytes.len().max(at + count), 0);
                            bytes[at..at + count].copy_from_slice(&new[..count]);
                        }
                        done => {
                            is_done(done);
                            refused += 1;
                        }
                    }
                }
                6 => {
                    if let Some(bytes) = right.get_mut(name) {
                        let size = random.below(LARGE);
                        match is_done(overlay.truncate(&find(&overlay, name), size as u64)) {
                            true => bytes.resize(size, 0),
                            false => refused += 1,
                        }
                    }
                }
                7 => {
                    if right.contains_key(name) && is_done(overlay.unlink(overlay.root(), OsStr::new(name))) {
                        right.remove(name);
                    }
                }
                8 => {
                    fixture.fill(random.below(4) * MIB);
                    is_filled = true;
                }
                _ => {
                    if std::mem::take(&mut is_filled) {
                        fixture.free();
                    }
                    for name in right.keys() {
                        // No other program has taken space, so the sync succeeds.
                        overlay.sync(&open(&overlay, name)).unwrap();
                    }
                }
            }
        }
        for (name, bytes) in &right {
            assert!(read(&overlay, name) == *bytes, "seed {seed}: {name} in the mount");
        }
        drop(overlay);
        let overlay = fixture.mount(&Counts::default());
        for (name, bytes) in &right {
            assert!(read(&overlay, name) == *bytes, "seed {seed}: {name} in the next mount");
        }
    }
    fixture.guard.check();
    refused
}
