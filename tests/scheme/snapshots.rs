//! Snapshots and rollbacks of a scheme at work.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use linux_delegate::client::Lock;
use linux_delegate::{Fd, Process};
use overlayfs::control::Command;
use overlayfs::control::fact::{Fact, Value};
use syscall::error::{EEXIST, EINVAL, ENOENT, EPERM, ESTALE, EWOULDBLOCK, Error, Result};
use syscall::flag::{MapFlags, O_APPEND, O_CREAT, O_DIRECTORY, O_EXCL, O_RDONLY, O_RDWR, O_STAT, O_SYMLINK, O_WRONLY};

use crate::support::{Setup, ann, bob, command, names, refused, root};

const WRITE: MapFlags = MapFlags::MAP_SHARED.union(MapFlags::PROT_READ).union(MapFlags::PROT_WRITE);

fn setup() -> Setup {
    Setup::with_snapshots(|lower| {
        lower.file("lower", 0o666);
        lower.file("other", 0o666);
        lower.dir("dir", 0o777);
        lower.file("dir/file", 0o666);
    })
}

fn snapshot(setup: &Setup, name: &str) -> Result<()> {
    let answer = command(&setup.top(&ann()), Command::Snapshot, &[Fact::text("name", name)])?;
    assert_eq!(answer, [Fact::text("name", name)]);
    Ok(())
}

fn roll_back(setup: &Setup) -> Result<()> {
    command(&setup.top(&ann()), Command::RollBack, &[]).map(drop)
}

/// Returns the numbers and names of the snapshots.
fn listed(setup: &Setup) -> Vec<(u64, String)> {
    let facts = command(&setup.top(&ann()), Command::Snapshots, &[]).unwrap();
    let number = |fact: &Fact| match &fact.value {
        Value::Numbers(numbers) => numbers[0],
        other => panic!("{other:?}"),
    };
    facts.iter().map(|fact| (number(fact), fact.label.clone())).collect()
}

fn open(setup: &Setup, path: &str, flags: usize) -> Fd {
    setup.open(&ann(), path, flags).unwrap()
}

/// Makes a file of root, and opens it.
fn create(setup: &Setup, path: &str, flags: usize) -> Fd {
    root().open(setup.path(path), O_CREAT | O_EXCL | O_RDWR | flags, 0o666).unwrap()
}

fn make(setup: &Setup, path: &str, text: &str) {
    root().write_file(setup.path(path), text).unwrap();
}

/// Returns all that a descriptor can read.
fn content(fd: &Fd) -> Result<String> {
    let mut bytes = [0; 100];
    let length = fd.read_at(&mut bytes, 0)?;
    Ok(String::from_utf8(bytes[..length].to_vec()).unwrap())
}

#[test]
fn open_files_go_on_in_the_new_layer() {
    let setup = setup();
    let (lower, dir) = (open(&setup, "lower", O_RDONLY), open(&setup, "dir", O_RDONLY | O_DIRECTORY));
    let upper = open(&setup, "other", O_RDWR);
    upper.write(b"before").unwrap();
    let log = create(&setup, "log", O_APPEND);
    log.write(b"one ").unwrap();
    let gone = create(&setup, "gone", 0);
    gone.write(b"nameless").unwrap();
    root().unlink(setup.path("gone")).unwrap();
    let moved = open(&setup, "dir/file", O_STAT);
    root().rename(setup.path("dir/file"), setup.path("dir/moved")).unwrap();
    let numbers = || [&lower, &upper, &log, &gone, &dir, &moved].map(|fd| fd.fstat().unwrap().st_ino);
    let before = numbers();

    snapshot(&setup, "s").unwrap();
    assert_eq!(numbers(), before);
    assert_eq!([&lower, &upper, &gone].map(|fd| content(fd).unwrap()), ["lower", "before", "nameless"]);
    assert_eq!(gone.fstat().unwrap().st_nlink, 0);
    assert_eq!(moved.path(), Ok(setup.path("dir/moved")));
    assert_eq!(names(dir.entries().unwrap()), ["moved"]);
    upper.write_at(b"BEFORE", 0).unwrap();
    log.write(b"two").unwrap();
    gone.write_at(b"N", 0).unwrap();
    root().inherit(&lower).frename(setup.path("lower2")).unwrap();
    dir.openat("new", O_CREAT | O_WRONLY | 0o666, 0).unwrap().write(b"new").unwrap();
    assert_eq!([setup.content("other"), setup.content("log"), setup.content("dir/new")], ["BEFORE", "one two", "new"]);
    assert_eq!((content(&gone), setup.content("lower2")), (Ok("Nameless".to_owned()), "lower".to_owned()));

    assert_eq!(setup.layers.upper_content("other"), b"before", "the layer is frozen");
    assert_eq!(setup.layers.upper_content("log"), b"one ");
    assert_eq!(setup.layers.later_content(1, "log"), b"one two");
    let all = names(root().read_dir(setup.path("")).unwrap());
    assert_eq!(all, ["dir", "log", "lower2", "other"]);
    drop((lower, dir, upper, log, gone, moved));
    // The next mount goes on with the same chain.
    let setup = Setup::again(setup.end());
    assert_eq!(listed(&setup), [(1, "s".to_owned())]);
    assert_eq!([setup.content("other"), setup.content("log"), setup.content("dir/new")], ["BEFORE", "one two", "new"]);
}

#[test]
fn a_snapshot_of_a_snapshot() {
    let setup = setup();
    let file = open(&setup, "lower", O_RDWR);
    for number in 1..=3 {
        file.write_at(format!("{number}").as_bytes(), 0).unwrap();
        snapshot(&setup, &format!("s{number}")).unwrap();
    }
    file.write_at(b"4", 0).unwrap();
    assert_eq!(listed(&setup).iter().map(|(_, name)| &**name).collect::<Vec<_>>(), ["s1", "s2", "s3"]);
    let first = String::from_utf8(setup.layers.upper_content("lower")).unwrap();
    let later = [1, 2, 3].map(|number| String::from_utf8(setup.layers.later_content(number, "lower")).unwrap());
    assert_eq!((&*first, later.each_ref().map(|text| &**text)), ("1ower", ["2ower", "3ower", "4ower"]));
    assert_eq!(setup.content("lower"), "4ower");
}

#[test]
fn refusals_change_nothing() {
    let setup = setup();
    let top = setup.top(&bob());
    for name in [Command::Snapshot, Command::RollBack, Command::Snapshots] {
        assert_eq!(command(&top, name, &[]), refused(EPERM));
    }
    assert_eq!(roll_back(&setup), refused(ENOENT));
    assert_eq!(snapshot(&setup, "a\nb"), refused(EINVAL));
    snapshot(&setup, "a").unwrap();
    assert_eq!(snapshot(&setup, "a"), refused(EEXIST));
    let wrong = [Fact::text("nam", "b")];
    assert_eq!(command(&setup.top(&ann()), Command::Snapshot, &wrong), refused(EINVAL));
    assert_eq!(command(&setup.top(&ann()), Command::Sync, &[Fact::text("name", "b")]), refused(EINVAL));
    assert_eq!(listed(&setup).len(), 1);
    let without = Setup::with_channel(|_| {}, Vec::new());
    assert_eq!(command(&without.top(&ann()), Command::Snapshot, &[]), refused(EINVAL));
}

#[test]
fn locks_stay() {
    let setup = setup();
    let lock = |of_file| Lock { start: 0, len: 10, exclusive: true, of_file };
    let (one, two) = (open(&setup, "lower", O_RDWR), open(&setup, "other", O_RDWR));
    one.lock(lock(true)).unwrap();
    two.lock(lock(false)).unwrap();
    snapshot(&setup, "s").unwrap();
    for path in ["lower", "other"] {
        let another = setup.open(&bob(), path, O_RDWR).unwrap();
        assert_eq!(another.lock(lock(true)), refused(EWOULDBLOCK), "{path}");
    }
    one.unlock(lock(true)).unwrap();
    assert_eq!(setup.open(&bob(), "lower", O_RDWR).unwrap().lock(lock(true)), Ok(()));
}

#[test]
fn a_mapping_has_what_was_stored_before_and_after() {
    let setup = setup();
    let file = open(&setup, "lower", O_RDWR);
    let mut map = file.map(0, 5, WRITE).unwrap();
    map.store(0, b"B").unwrap();
    snapshot(&setup, "s").unwrap();
    assert_eq!(setup.layers.upper_content("lower"), b"Bower");
    map.store(1, b"A").unwrap();
    assert_eq!((map.bytes(0, 5).unwrap(), setup.content("lower")), (b"BAwer".to_vec(), "BAwer".to_owned()));
    file.write_at(b"W", 2).unwrap();
    assert_eq!(map.bytes(0, 5).unwrap(), b"BAWer");
    drop(map);
    file.fsync().unwrap();
    assert_eq!(setup.layers.upper_content("lower"), b"Bower");
    assert_eq!(setup.layers.later_content(1, "lower"), b"BAWer");
}

#[test]
fn a_symlink_that_is_still_to_be_made() {
    let setup = setup();
    let link = open(&setup, "dir/link", O_CREAT | O_SYMLINK | O_WRONLY);
    snapshot(&setup, "s").unwrap();
    link.write(b"file").unwrap();
    assert_eq!(root().readlink(setup.path("dir/link")).unwrap(), b"file");
}

#[test]
fn a_rollback_shows_the_frozen_state() {
    let setup = setup();
    make(&setup, "made", "before");
    root().unlink(setup.path("other")).unwrap();
    snapshot(&setup, "s").unwrap();
    let frozen = names(root().read_dir(setup.path("")).unwrap());

    let (kept, dir) = (open(&setup, "made", O_RDONLY), open(&setup, "dir", O_RDONLY | O_DIRECTORY));
    let changed = open(&setup, "lower", O_RDWR);
    changed.write(b"after").unwrap();
    let mut map = changed.map(0, 5, WRITE).unwrap();
    map.store(0, b"x").unwrap();
    let new = create(&setup, "new", 0);
    let gone = create(&setup, "gone", 0);
    root().mkdir(setup.path("new-dir")).unwrap();
    let link = root().open(setup.path("new-dir/x"), O_CREAT | O_SYMLINK | O_WRONLY, 0).unwrap();
    let untouched = open(&setup, "dir/file", O_RDWR);
    for path in ["gone", "made"] {
        root().unlink(setup.path(path)).unwrap();
    }
    changed.lock(Lock { start: 0, len: 0, exclusive: true, of_file: true }).unwrap();
    make(&setup, "dir/new", "after");
    assert_eq!(names(dir.entries().unwrap()), ["file", "new"]);

    roll_back(&setup).unwrap();
    assert_eq!(names(root().read_dir(setup.path("")).unwrap()), frozen);
    assert_eq!([setup.content("lower"), setup.content("made")], ["lower", "before"]);
    assert_eq!(names(dir.entries().unwrap()), ["file"]);
    for fd in [&changed, &new, &gone] {
        assert_eq!((content(fd), fd.write_at(b"y", 0)), (refused(ESTALE), refused(ESTALE)));
        assert_eq!(fd.fstat().map(drop), refused(ESTALE));
    }
    assert_eq!(link.write(b"target"), refused(ESTALE));
    // The layer that lost its name held the only change of it.
    assert_eq!(content(&kept), refused(ESTALE));
    assert_eq!((content(&untouched), untouched.write_at(b"D", 0)), (Ok("dir/file".to_owned()), Ok(1)));
    assert_eq!(setup.content("dir/file"), "Dir/file");
    // Nothing of a file that is gone hinders one of the same name.
    let again = setup.open(&bob(), "lower", O_RDWR).unwrap();
    again.lock(Lock { start: 0, len: 0, exclusive: true, of_file: true }).unwrap();
    map.store(0, b"z").unwrap();
    drop((map, changed, new, gone));
    assert_eq!(content(&again), Ok("lower".to_owned()));
    again.write_at(b"L", 0).unwrap();
    assert_eq!(setup.content("lower"), "Lower");
    roll_back(&setup).unwrap();
    assert_eq!((setup.content("lower"), listed(&setup).len()), ("lower".to_owned(), 1));
    assert!(setup.is_alive());
}

/// Appends records to a file of its own until it is told to end. Returns how many.
fn append(who: &Process, path: String, end: &AtomicBool) -> usize {
    let log = who.open(&path, O_CREAT | O_RDWR | O_APPEND, 0o666).unwrap();
    let mut records = 0;
    while !end.load(Ordering::Relaxed) {
        assert_eq!(log.write(format!("{records:8}").as_bytes()), Ok(8));
        records += 1;
        let name = format!("{path}.{}", records % 3);
        who.write_file(&name, format!("{records}")).unwrap();
        assert_eq!(who.read_file(&name).unwrap(), format!("{records}").into_bytes());
        match who.unlink(&name) {
            Ok(()) => {}
            Err(Error { errno }) => panic!("{name}: {errno}"),
        }
    }
    records
}

#[test]
fn nothing_is_lost_under_load() {
    let setup = setup();
    let (end, setup) = (&AtomicBool::new(false), &setup);
    let records = thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|number| scope.spawn(move || append(&ann(), setup.path(&format!("dir/log{number}")), end)))
            .collect();
        for number in 0..20 {
            snapshot(setup, &format!("s{number}")).unwrap();
        }
        end.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect::<Vec<_>>()
    });
    for (number, records) in records.into_iter().enumerate() {
        let expected: String = (0..records).map(|record| format!("{record:8}")).collect();
        assert_eq!(setup.content(&format!("dir/log{number}")), expected);
    }
    assert_eq!(names(root().read_dir(setup.path("dir")).unwrap()), ["file", "log0", "log1", "log2"]);
    assert_eq!(listed(setup).len(), 20);
}
