//! The tools for upper layers beside a mount: the changes of a mounted overlay are listed without
//! disturbing it.
//!
//! Needs root and /dev/fuse.

#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use fixture::Fixture;
use overlayfs::layer_tools::{Change, ChangeKind, Renames, Views, Watch};
use overlayfs::options::Options;
use test_common::{Stop, put};

/// Counts the objects that vanished during a walk.
#[derive(Default)]
struct Lenient(AtomicU64);

impl Watch for Lenient {
    fn passes_over(&self, _path: &Path) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// Returns the changes as lines.
fn changes(fixture: &Fixture, watch: &dyn Watch) -> Vec<String> {
    let (lowers, upper) = (vec![fixture.path("lower")], Some(fixture.path("upper")));
    let views = Views::open(&Options { lowers, upper, ..Options::default() }, None).unwrap();
    let mut lines = Vec::new();
    let each = &mut |change: Change<_>| {
        let words: Vec<_> = change.aspects.words().collect();
        let letter = match change.kind {
            ChangeKind::Added => 'A',
            ChangeKind::Removed => 'D',
            ChangeKind::Modified => 'M',
            ChangeKind::Renamed { .. } => 'R',
        };
        lines.push(format!("{letter} {} {}", change.path.display(), words.join(",")));
        Ok(())
    };
    views.changes(Renames::Found, watch, each).unwrap();
    lines
}

#[test]
fn the_changes_of_a_mounted_overlay_are_listed() {
    let fixture = Fixture::new();
    let lower = fixture.path("lower");
    put::file(&lower, "large", vec![7; 3 << 20]);
    put::file(&lower, "dir/file", "content");
    put::file(&lower, "gone", "content");
    let mount = fixture.mount("");
    let point = fixture.point();
    // A large file is copied in part, until it is synced.
    let large = File::options().write(true).open(point.join("large")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&large, b"changed", 1 << 20).unwrap();
    drop(large);
    fs::rename(point.join("dir"), point.join("moved")).unwrap();
    fs::remove_file(point.join("gone")).unwrap();
    fs::write(point.join("new"), "content").unwrap();
    let accessed = fs::metadata(fixture.path("upper/new")).unwrap().atime_nsec();
    let expected = ["M  times", "D gone ", "M large content,times", "R moved ", "A new "];
    assert_eq!(changes(&fixture, &()), expected);
    // The overlay goes on, and the listing changes nothing.
    fs::write(point.join("moved/file"), "other").unwrap();
    assert_eq!(fs::metadata(fixture.path("upper/new")).unwrap().atime_nsec(), accessed);
    assert_eq!(fs::read_to_string(point.join("moved/file")).unwrap(), "other");
    mount.unmount();
    let lines = changes(&fixture, &());
    assert!(lines.contains(&"M moved/file content,times".to_owned()), "{lines:?}");
}

#[test]
fn a_listing_goes_on_while_files_come_and_go() {
    let fixture = Fixture::new();
    for file in 0..200 {
        put::file(&fixture.path("lower"), &format!("dir{}/{file}", file % 10), "content");
    }
    let mount = fixture.mount("");
    let (point, stop) = (fixture.point(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let file = round % 200;
                let (path, other) = (point.join(format!("dir{}/{file}", file % 10)), point.join("moved"));
                fs::write(&path, "changed").unwrap();
                fs::rename(&path, &other).unwrap();
                fs::create_dir(point.join("made")).unwrap();
                fs::rename(&other, &path).unwrap();
                fs::remove_dir(point.join("made")).unwrap();
            }
        });
        let stopping = Stop(&stop);
        let watch = Lenient::default();
        let lines: Vec<_> = (0..100).flat_map(|_| changes(&fixture, &watch)).collect();
        drop(stopping);
        assert!(lines.iter().any(|line| line.ends_with("content,times")), "nothing was listed");
    });
    let lines = changes(&fixture, &());
    assert!(lines.iter().all(|line| !line.starts_with('D')), "{lines:?}");
    assert!(mount.unmount_and_wait().success());
}
