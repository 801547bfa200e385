//! Snapshots of a mount at work, and rollbacks: what programs see, and what is in the frozen
//! layers.
//!
//! Needs root, /dev/fuse, git and sqlite3; fails without them.

#[path = "suite/command.rs"]
mod command;
#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;
#[path = "suite/sorts.rs"]
mod sorts;

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use test_common::{Stop, put};

use command::command;
use fixture::Fixture;
use mount::program;
use sorts::{change, fill, tree};

/// Makes a snapshot with this name.
fn snapshot(point: &Path, name: &str) {
    assert_eq!(command(&["snapshot", "--name", name], point), (0, format!("{name}\n"), String::new()));
}

/// A fixture with a directory for snapshots.
fn with_snapshots(mut fixture: Fixture) -> Fixture {
    let snapshots = fixture.setup.dir("snapshots");
    fixture.add(&format!(",snapshots={}", snapshots.display()));
    fixture
}

fn a_snapshot_changes_nothing(fixture: &Fixture, more: &str) {
    fill(&fixture.path("lower"));
    let guard = fixture.guard();
    let (mount, point) = (fixture.mount(more), fixture.point());
    change(&point);
    let mut held = File::options().read(true).write(true).open(point.join("own/a")).unwrap();
    let mut unlinked = File::options().read(true).write(true).create_new(true).open(point.join("unlinked")).unwrap();
    unlinked.write_all(b"still ").unwrap();
    fs::remove_file(point.join("unlinked")).unwrap();
    let mut orphan = File::open(point.join("moved/below")).unwrap();
    fs::remove_file(point.join("moved/below")).unwrap();
    let (before, root) = (tree(&point), point.metadata().unwrap().ino());

    snapshot(&point, "first");
    assert_eq!(tree(&point), before);
    assert_eq!(point.metadata().unwrap().ino(), root);
    let frozen = tree(&fixture.path("upper"));

    // Open files go on.
    held.write_all(b"LINKED and longer").unwrap();
    assert_eq!(fs::read_to_string(point.join("own/b")).unwrap(), "LINKED and longer");
    unlinked.write_all(b"there").unwrap();
    let mut text = String::new();
    unlinked.rewind().unwrap();
    unlinked.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still there");
    text.clear();
    orphan.read_to_string(&mut text).unwrap();
    assert_eq!(text, "below");

    // All names of a file that was changed under one name before go on showing the same.
    fs::write(point.join("other"), "changed by the other name").unwrap();
    assert_eq!(fs::read_to_string(point.join("one")).unwrap(), "changed by the other name");
    let number = |name: &str| point.join(name).metadata().unwrap();
    assert_eq!((number("one").ino(), number("one").nlink()), (number("other").ino(), 2));
    fs::write(point.join("moved/made"), "made again").unwrap();
    snapshot(&point, "second");
    fs::remove_file(point.join("moved/made")).unwrap();
    File::options().append(true).open(point.join("large")).unwrap().write_all(b"end").unwrap();

    let (after, root_after) = (tree(&point), point.metadata().unwrap().ino());
    for (path, (ino, ..)) in &after {
        assert!(before.get(path).is_none_or(|(before, ..)| before == ino), "{path:?} has another number");
    }
    assert_eq!(root_after, root);
    let said = command(&["snapshots"], &point);
    let names: Vec<_> = said.1.lines().map(|line| line.split('\t').nth(2).unwrap()).collect();
    assert_eq!(names, ["first", "second"]);
    drop((held, unlinked, orphan));
    mount.unmount();
    assert_eq!(tree(&fixture.path("upper")), frozen, "the frozen layer has changed");

    // Another mount shows the same.
    let mount = fixture.mount(more);
    assert_eq!(tree(&point), after);
    assert_eq!(point.metadata().unwrap().ino(), root);
    mount.unmount();
    let mount = fixture.mount(",ro");
    assert_eq!(tree(&point), after);
    mount.unmount();
    drop(guard);
}

#[test]
fn a_snapshot_changes_nothing_that_programs_see() {
    a_snapshot_changes_nothing(&with_snapshots(Fixture::new()), "");
}

#[test]
fn a_snapshot_changes_nothing_in_the_kernels_format() {
    a_snapshot_changes_nothing(&with_snapshots(Fixture::with_work()), ",format=kernel");
}

#[test]
fn a_rollback_shows_the_snapshot() {
    let fixture = with_snapshots(Fixture::new());
    fill(&fixture.path("lower"));
    let (mount, point) = (fixture.mount(""), fixture.point());
    change(&point);
    snapshot(&point, "good");
    let before = tree(&point);
    let (lasting, unlinked) =
        (File::open(point.join("large")).unwrap(), File::open(point.join("moved/below")).unwrap());
    let mut changed = File::options().read(true).write(true).open(point.join("own/a")).unwrap();

    // The kernel learns names that a rollback makes wrong.
    assert!(!point.join("bad").exists());
    fs::write(point.join("bad"), "bad").unwrap();
    fs::remove_file(point.join("moved/changed")).unwrap();
    assert!(!point.join("moved/changed").exists());
    fs::create_dir_all(point.join("tree/of/new")).unwrap();
    fs::write(point.join("one"), "a much longer text than before").unwrap();
    changed.write_all(b"bad and longer").unwrap();
    fs::rename(point.join("moved"), point.join("elsewhere")).unwrap();
    fs::remove_dir_all(point.join("elsewhere")).unwrap();
    fs::create_dir(point.join("moved")).unwrap();
    assert_eq!(point.join("moved").read_dir().unwrap().count(), 0);

    assert_eq!(command(&["rollback"], &point), (0, "good\n".into(), String::new()));
    assert_eq!(tree(&point), before);
    for file in [&changed, &unlinked] {
        assert_eq!(file.read_at(&mut [0; 10], 0).unwrap_err().raw_os_error(), Some(libc::ESTALE));
    }
    let mut byte = [0];
    assert_eq!((lasting.read_at(&mut byte, 3).unwrap(), byte), (1, [7]));
    fs::write(point.join("after"), "works").unwrap();
    drop((changed, lasting, unlinked));
    mount.unmount();
    let mount = fixture.mount("");
    assert!(point.join("after").exists() && !point.join("bad").exists());
    mount.unmount();
}

#[test]
fn refusals_are_sentences() {
    let fixture = Fixture::new();
    let (mount, point) = (fixture.mount(""), fixture.point());
    let shown = point.display();
    let refused = |words: &[&str], sentence: &str| {
        assert_eq!(
            command(words, &point),
            (1, String::new(), format!("overlayfs-fuse: The overlay at {shown} {sentence}\n"))
        );
    };
    let without = "the overlay has no directory for snapshots: mount with an upper directory and snapshots=DIR.";
    refused(&["snapshot"], &format!("cannot be frozen: {without}"));
    refused(&["rollback"], &format!("cannot be rolled back: {without}"));
    mount.unmount();
    let fixture = with_snapshots(fixture);
    let mount = fixture.mount("");
    refused(&["rollback"], "cannot be rolled back: there is no snapshot.");
    snapshot(&point, "a");
    refused(&["snapshot", "--name", "a"], "cannot be frozen: there is already a snapshot a.");
    mount.unmount();

    // Without its chain the first upper layer cannot be written.
    let alone = format!("lowerdir={},upperdir={}", fixture.path("lower").display(), fixture.path("upper").display());
    let output = run::finish(run::command(program()).args(["-f", "-o", &alone]).arg(&point));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the upper layer belongs to a chain of snapshots"), "{said}");
}

/// Writers append numbers and sync them. Each number that was synced before a snapshot is in the
/// frozen layers.
#[test]
fn synced_data_are_in_the_frozen_layer() {
    const WRITERS: usize = 4;
    let fixture = with_snapshots(Fixture::new());
    let (mount, point) = (fixture.mount(""), fixture.point());
    let stop = AtomicBool::new(false);
    let synced: Vec<_> = (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
    let (top, layers) = (fixture.path("upper"), fixture.path("snapshots"));
    thread::scope(|scope| {
        for (writer, synced) in synced.iter().enumerate() {
            let (point, stop) = (&point, &stop);
            scope.spawn(move || {
                let path = point.join(format!("writer{writer}"));
                let mut file = File::options().append(true).create(true).open(&path).unwrap();
                for number in 1_u64.. {
                    file.write_all(&number.to_le_bytes()).unwrap();
                    file.sync_data().unwrap();
                    synced.store(number, Ordering::Release);
                    if number % 16 == 0 {
                        // Other names and handles come and go.
                        fs::rename(&path, point.join(format!("other{writer}"))).unwrap();
                        fs::rename(point.join(format!("other{writer}")), &path).unwrap();
                        file = File::options().append(true).open(&path).unwrap();
                    }
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        let stopping = Stop(&stop);
        let mut frozen = vec![top];
        for round in 1..=12 {
            thread::sleep(std::time::Duration::from_millis(100));
            let least: Vec<_> = synced.iter().map(|synced| synced.load(Ordering::Acquire)).collect();
            snapshot(&point, &format!("round {round}"));
            for (writer, least) in least.iter().enumerate() {
                let names = [format!("writer{writer}"), format!("other{writer}")];
                let found =
                    frozen.iter().rev().find_map(|layer| names.iter().find_map(|name| fs::read(layer.join(name)).ok()));
                let bytes = found.unwrap_or_default();
                let numbers: Vec<_> =
                    bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
                assert!(numbers.len() as u64 >= *least, "writer {writer} lost data in round {round}");
                assert!(numbers.iter().zip(1..).all(|(number, expected)| *number == expected), "writer {writer}");
            }
            frozen.push(layers.join(round.to_string()).join("upper"));
        }
        drop(stopping);
    });
    for (writer, synced) in synced.iter().enumerate() {
        let bytes = fs::read(point.join(format!("writer{writer}"))).unwrap();
        assert_eq!(bytes.len() as u64, 8 * synced.load(Ordering::Acquire), "writer {writer}");
    }
    mount.unmount();
}

/// git commits all the time while snapshots are made.
#[test]
fn git_goes_on_during_snapshots() {
    let fixture = with_snapshots(Fixture::new());
    let (mount, point) = (fixture.mount(""), fixture.point());
    let repository = Arc::new(point.join("repository"));
    let git = |words: &[&str]| {
        let mut command = run::command("git");
        command
            .args(["-c", "user.name=a", "-c", "user.email=a@b", "-c", "gc.auto=0", "-C"])
            .arg(&*repository)
            .args(words);
        let output = run::finish(&mut command);
        assert!(output.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    fs::create_dir(&*repository).unwrap();
    git(&["init", "-q"]);
    let stop = AtomicBool::new(false);
    let commits = thread::scope(|scope| {
        let committing = scope.spawn(|| {
            let mut commits = 0;
            while !stop.load(Ordering::Relaxed) {
                commits += 1;
                fs::write(repository.join(format!("file{}", commits % 7)), format!("{commits}")).unwrap();
                git(&["add", "-A"]);
                git(&["commit", "-q", "-m", &format!("{commits}")]);
            }
            commits
        });
        let stopping = Stop(&stop);
        for round in 0..6 {
            thread::sleep(std::time::Duration::from_millis(150));
            snapshot(&point, &format!("round {round}"));
        }
        drop(stopping);
        committing.join().unwrap()
    });
    git(&["fsck", "--strict"]);
    assert_eq!(git(&["rev-list", "--count", "HEAD"]).trim(), commits.to_string());
    assert_eq!(git(&["status", "--porcelain"]), "");
    mount.unmount();
    let mount = fixture.mount("");
    git(&["fsck", "--strict"]);
    assert_eq!(git(&["status", "--porcelain"]), "");
    mount.unmount();
}

/// Returns the file that frozen layers show under a name, if it is not removed.
fn frozen(layers: &[PathBuf], name: &str) -> Option<Vec<u8>> {
    let of_layer = |layer: &PathBuf| match fs::read(layer.join(name)) {
        Ok(bytes) => Some(Some(bytes)),
        Err(_) => layer.join(format!(".wh.{name}")).exists().then_some(None),
    };
    layers.iter().rev().find_map(of_layer).flatten()
}

/// Runs a program with words, and returns its output.
fn run_program(words: &[&str]) -> String {
    let output = run::finish(run::command(words[0]).args(&words[1..]));
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// tar unpacks a tree, and sqlite commits, while snapshots are made. Each commit before a snapshot
/// is in the frozen layers.
#[test]
fn tar_and_sqlite_go_on_during_snapshots() {
    let fixture = with_snapshots(Fixture::new());
    for number in 0..200 {
        put::file(&fixture.path("lower"), &format!("tree/{}/{number}", number % 7), format!("{number}").repeat(100));
    }
    let (mount, point) = (fixture.mount(""), fixture.point());
    let database = point.join("database").into_os_string().into_string().unwrap();
    run_program(&["sqlite3", &database, "PRAGMA journal_mode=WAL; CREATE TABLE rows(number)"]);
    let (stop, committed) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut layers = vec![fixture.path("upper")];
    thread::scope(|scope| {
        let (database, stop, committed, point) = (&database, &stop, &committed, &point);
        let stopping = Stop(stop);
        let committing = scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let number = committed.load(Ordering::Relaxed) + 1;
                let commit = format!("PRAGMA synchronous=FULL; INSERT INTO rows VALUES({number})");
                run_program(&["sqlite3", database, &commit]);
                committed.store(number, Ordering::Release);
            }
        });
        let unpacking = scope.spawn(move || {
            for round in 0.. {
                let copy = point.join(format!("copy{round}"));
                fs::create_dir(&copy).unwrap();
                let line = format!("tar -cf - -C {} tree | tar -xf - -C {}", point.display(), copy.display());
                run_program(&["sh", "-c", &line]);
                run_program(&["diff", "-r", point.join("tree").to_str().unwrap(), copy.join("tree").to_str().unwrap()]);
                fs::remove_dir_all(&copy).unwrap();
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        for round in 1..=6 {
            thread::sleep(std::time::Duration::from_millis(150));
            let before = committed.load(Ordering::Acquire);
            snapshot(point, &format!("round {round}"));
            let copy = fixture.setup.dir(&format!("frozen{round}"));
            for name in ["database", "database-wal"] {
                if let Some(bytes) = frozen(&layers, name) {
                    fs::write(copy.join(name), bytes).unwrap();
                }
            }
            let copy = copy.join("database").into_os_string().into_string().unwrap();
            let said = run_program(&["sqlite3", &copy, "PRAGMA integrity_check; SELECT count(*) FROM rows"]);
            let (health, rows) = said.trim().split_once('\n').unwrap();
            assert!(health == "ok" && rows.parse::<u64>().unwrap() >= before, "{said} after {before} commits");
            layers.push(fixture.path("snapshots").join(round.to_string()).join("upper"));
        }
        drop(stopping);
        committing.join().unwrap();
        unpacking.join().unwrap();
    });
    let commits = committed.load(Ordering::Relaxed);
    mount.unmount();
    let mount = fixture.mount("");
    let said = run_program(&["sqlite3", &database, "PRAGMA integrity_check; SELECT count(*) FROM rows"]);
    assert_eq!(said, format!("ok\n{commits}\n"));
    mount.unmount();
}

/// A program stores through a mapping, and holds a lock, while snapshots are made. No store is
/// lost, and the lock stays.
#[test]
fn mappings_and_locks_go_on_during_snapshots() {
    const PAGES: usize = 64;
    let fixture = with_snapshots(Fixture::new());
    put::file(&fixture.path("lower"), "mapped", vec![0; PAGES * 4096]);
    let (mount, point) = (fixture.mount(""), fixture.point());
    let file = File::options().read(true).write(true).open(point.join("mapped")).unwrap();
    file.lock().unwrap();
    let other = File::open(point.join("mapped")).unwrap();
    let is_locked = || other.try_lock_shared().is_err();
    // SAFETY: the mapping has this length, and no other code uses it.
    let pages = unsafe {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(std::ptr::null_mut(), PAGES * 4096, rights, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(at, libc::MAP_FAILED);
        std::slice::from_raw_parts_mut(at.cast::<u64>(), PAGES * 512)
    };
    let stop = AtomicBool::new(false);
    let mut stored = 0;
    thread::scope(|scope| {
        let snapshots = scope.spawn(|| {
            let _stopping = Stop(&stop);
            for round in 0..8 {
                thread::sleep(std::time::Duration::from_millis(50));
                snapshot(&point, &format!("round {round}"));
                assert!(is_locked());
            }
        });
        while !stop.load(Ordering::Relaxed) {
            stored += 1;
            pages[stored * 7 % pages.len()] = stored as u64;
        }
        snapshots.join().unwrap();
    });
    let expected: Vec<_> = pages.iter().flat_map(|word| word.to_le_bytes()).collect();
    file.sync_all().unwrap();
    assert!(fs::read(point.join("mapped")).unwrap() == expected);
    // SAFETY: the slice is not used any more.
    assert_eq!(unsafe { libc::munmap(pages.as_mut_ptr().cast(), PAGES * 4096) }, 0);
    drop((file, other));
    mount.unmount();
    let mount = fixture.mount("");
    assert!(fs::read(point.join("mapped")).unwrap() == expected);
    mount.unmount();
}
