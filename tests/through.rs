//! Copies without a sync, on a filesystem that writes the data of a file to the disk before its
//! later name.
//!
//! Needs root, loop devices and Debian's package e2fsprogs; fails without them.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use overlayfs::errno::EOPNOTSUPP;
use overlayfs::layer::counted::{Counted, Counts, Method};
use overlayfs::layer::{Layer, OsLayer, Owner, RenameMode};
use overlayfs::overlay::{Layers, Overlay};
use test_common::{Disk, Setup, put};

const OWN: Owner = Owner { uid: 0, gid: 0 };

/// Copies up files of different sizes below `disk`, one with holes. Returns the numbers of calls
/// that wrote past the page cache and that synced.
fn copy_up(disk: &Path) -> (u64, u64) {
    let (lower, upper) = (disk.join("lower"), disk.join("upper"));
    let sizes = [0, 1, 4095, 4096, 4097, 200_000];
    for size in sizes {
        put::file(&lower, &size.to_string(), "0123456789".repeat(size / 10 + 1).split_at(size).0);
    }
    let holes = fs::File::create(lower.join("holes")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, b"middle", 500_001).unwrap();
    holes.set_len(900_001).unwrap();
    put::file(&lower, "dir/file", "");
    fs::create_dir(&upper).unwrap();

    let counts = Counts::default();
    let open = |path: &Path, for_writing| Counted::new(OsLayer::open(path, for_writing).unwrap(), &counts);
    let layers = Layers { upper: Some(open(&upper, true)), work: None, lowers: vec![open(&lower, false)] };
    let overlay = Overlay::new(layers).unwrap();
    counts.take();
    let names = sizes.iter().map(usize::to_string).chain(["holes".to_owned()]);
    for name in names {
        let node = overlay.lookup(overlay.root(), OsStr::new(&name)).unwrap();
        overlay.set_mode(&node, 0o640).unwrap();
        let (below, above) = (lower.join(&name), upper.join(&name));
        assert_eq!(fs::read(&above).unwrap(), fs::read(&below).unwrap(), "{name}");
        let times = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        assert_eq!(times(&above), times(&below), "{name}");
    }
    assert!(
        std::os::unix::fs::MetadataExt::blocks(&fs::metadata(upper.join("holes")).unwrap()) <= 16,
        "the hole is kept"
    );
    let root = overlay.root();
    overlay.rename(root, OsStr::new("dir"), root, OsStr::new("moved"), RenameMode::Replace).unwrap();
    assert_eq!(fs::read(upper.join("moved/.wh..wh.redirect")).unwrap(), b"/dir");
    let calls = counts.take();
    (calls.of(Method::WriteThrough), calls.of(Method::Sync))
}

#[test]
fn a_journal_keeps_the_order() {
    let setup = Setup::new();
    let disk = Disk::new(&setup, 64 << 20, &["mkfs.ext4", "-q"]);
    assert_eq!(copy_up(disk.path()), (8, 0), "six files with data, a redirect, and the record that names it");
}

#[test]
fn without_a_journal_copies_are_synced() {
    let setup = Setup::new();
    let disk = Disk::new(&setup, 64 << 20, &["mkfs.ext4", "-q", "-O", "^has_journal"]);
    assert_eq!(copy_up(disk.path()), (0, 8), "the empty file needs none");
}

#[test]
fn only_whole_units_are_written_through() {
    let setup = Setup::new();
    let disk = Disk::new(&setup, 64 << 20, &["mkfs.ext4", "-q"]);
    let layer = OsLayer::open(disk.path(), true).unwrap();
    let file = layer.create_file(&layer.root().unwrap(), OsStr::new("file"), 0o600, OWN).unwrap();
    layer.write_through(&file, &[b'a'; 5000], 4096).unwrap();
    assert_eq!(layer.write_through(&file, b"b", 1).unwrap_err().errno, EOPNOTSUPP);
    let bytes = fs::read(disk.path().join("file")).unwrap();
    assert_eq!(bytes, [vec![0; 4096], vec![b'a'; 5000], vec![0; 3192]].concat());
    // A later ordinary write is found too.
    assert_eq!(layer.write_at(&file, b"c", 4100).unwrap(), 1);
    assert_eq!(fs::read(disk.path().join("file")).unwrap()[4099..4102], *b"aca");
}
