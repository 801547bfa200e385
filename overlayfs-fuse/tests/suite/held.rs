//! Programs that use a mount while another process takes it over.

use std::ffi::CString;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use rustix::fs::inotify;
use test_common::{Stop, put};

use crate::command::command;
use crate::fixture::Fixture;
use crate::run;
use crate::sorts::{Tree, change, fill, tree};

/// Returns the process that serves a mount.
pub fn process(point: &Path) -> u64 {
    let (_, said, _) = command(&["status"], point);
    let line = said.lines().find_map(|line| line.strip_prefix("pid")).unwrap_or_else(|| panic!("{said}"));
    line.trim().parse().unwrap()
}

pub fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// Opens a file without a name in a directory.
pub fn temporary(dir: &Path) -> File {
    let path = CString::new(dir.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is valid, and the new descriptor belongs to nothing else.
    let opened = unsafe { libc::open(path.as_ptr(), libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC, 0o600) };
    assert!(opened >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: as above.
    unsafe { OwnedFd::from_raw_fd(opened) }.into()
}

pub fn read_all(mut file: &File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

/// The objects that a program has open.
pub struct Held {
    named: File,
    unlinked: File,
    orphan: File,
    temporary: File,
    removed: File,
    listing: fs::ReadDir,
    listed: usize,
    _locked: File,
    inotify: OwnedFd,
    inside: std::process::Child,
}

impl Held {
    pub fn new(point: &Path) -> Self {
        let named = open(&point.join("own/a"));
        let mut unlinked = open(&point.join("unlinked"));
        unlinked.write_all(b"still ").unwrap();
        fs::remove_file(point.join("unlinked")).unwrap();
        let orphan = File::open(point.join("moved/below")).unwrap();
        fs::remove_file(point.join("moved/below")).unwrap();
        let mut temporary = temporary(&point.join("own"));
        temporary.write_all(b"no ").unwrap();
        fs::create_dir(point.join("removed")).unwrap();
        let removed = File::open(point.join("removed")).unwrap();
        fs::remove_dir(point.join("removed")).unwrap();
        let mut listing = fs::read_dir(point.join("many")).unwrap();
        let listed = listing.by_ref().take(20).count();
        let locked = open(&point.join("locked"));
        locked.lock().unwrap();
        let inotify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&inotify, point.join("own"), inotify::WatchFlags::CREATE).unwrap();
        let inside = Command::new("sh")
            .args(["-c", "read line; pwd; cat changed; echo inside > written"])
            .current_dir(point.join("moved"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self { named, unlinked, orphan, temporary, removed, listing, listed, _locked: locked, inotify, inside }
    }

    /// Checks that all of them go on.
    pub fn go_on(mut self, point: &Path) {
        self.named.write_all(b"LINKED and longer").unwrap();
        assert_eq!(fs::read_to_string(point.join("own/b")).unwrap(), "LINKED and longer");
        self.unlinked.write_all(b"there").unwrap();
        self.unlinked.sync_all().unwrap();
        assert_eq!(read_all(&self.unlinked), "still there");
        assert_eq!(self.unlinked.metadata().unwrap().nlink(), 0);
        assert_eq!(read_all(&self.orphan), "below");
        self.temporary.write_all(b"name").unwrap();
        let place = format!("/proc/self/fd/{}", self.temporary.as_raw_fd());
        let named = point.join("own/named");
        rustix::fs::linkat(rustix::fs::CWD, place, rustix::fs::CWD, &named, rustix::fs::AtFlags::SYMLINK_FOLLOW)
            .unwrap();
        assert_eq!(fs::read_to_string(&named).unwrap(), "no name");
        assert_eq!(self.removed.metadata().unwrap().nlink(), 0);
        assert_eq!(self.listing.count() + self.listed, 300);
        let tried = open(&point.join("locked")).try_lock();
        assert!(matches!(tried, Err(TryLockError::WouldBlock)), "the lock is lost");
        let mut event = [0; 512];
        assert!(rustix::io::read(&self.inotify, &mut event).unwrap() > 0, "the link is not seen");
        self.inside.stdin.take().unwrap().write_all(b"\n").unwrap();
        let output = self.inside.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said, format!("{}\nnew", point.join("moved").display()));
        assert_eq!(fs::read_to_string(point.join("moved/written")).unwrap(), "inside\n");
    }
}

/// Disturbs a mount, which `mount` makes and `unmount` ends, several times while a program has
/// objects open. The program sees the tree as before. A later mount shows it too, as far as
/// `lasting` tells.
pub fn nothing_changes<M>(
    fixture: &Fixture,
    mount: impl Fn() -> M,
    unmount: impl Fn(M),
    disturb: impl Fn(&Path),
    lasting: impl Fn(Tree) -> Tree,
) {
    fill(&fixture.path("lower"));
    let guard = fixture.guard();
    let (mounted, point) = (mount(), fixture.point());
    change(&point);
    let held = Held::new(&point);
    let (before, first) = (tree(&point), process(&point));
    disturb(&point);
    assert_eq!(tree(&point), before);
    assert_ne!(process(&point), first);
    // Some objects are found again by the one process, some by the next.
    disturb(&point);
    disturb(&point);
    held.go_on(&point);
    fs::rename(point.join("moved"), point.join("again")).unwrap();
    fs::write(point.join("other"), "changed by the other name").unwrap();
    assert_eq!(fs::read_to_string(point.join("one")).unwrap(), "changed by the other name");
    disturb(&point);
    let after = tree(&point);
    for (path, (ino, ..)) in &after {
        assert!(before.get(path).is_none_or(|(before, ..)| before == ino), "{path:?} has another number");
    }
    unmount(mounted);
    let mounted = mount();
    assert_eq!(lasting(tree(&point)), lasting(after));
    unmount(mounted);
    drop(guard);
}

/// Disturbs a mount several times while a program stores to a mapping of `file`. The directory
/// `lower` gets the file, and `upper` has all that was stored after `unmount`.
pub fn a_mapping_goes_on<M>(
    fixture: &Fixture,
    mount: impl FnOnce() -> M,
    unmount: impl FnOnce(M),
    disturb: impl Fn(&Path),
) {
    const LENGTH: usize = 1 << 16;
    put::file(&fixture.path("lower"), "file", vec![b'-'; LENGTH]);
    let (mounted, point) = (mount(), fixture.point());
    let file = open(&point.join("file"));
    let (access, descriptor) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
    // SAFETY: the system chooses a free place.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, access, libc::MAP_SHARED, descriptor, 0) };
    assert_ne!(memory, libc::MAP_FAILED);
    // SAFETY: the mapping is as long as this, and nothing else refers to it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(memory.cast::<u8>(), LENGTH) };
    for round in 0..3 {
        bytes[round * 5000..][..10].fill(b'a' + round as u8);
        disturb(&point);
        bytes[round * 5000 + 10..][..10].fill(b'A' + round as u8);
    }
    let expected = bytes.to_vec();
    // SAFETY: the mapping exists until the second call, after which nothing uses it.
    unsafe {
        assert_eq!(libc::msync(memory, LENGTH, libc::MS_SYNC), 0);
        assert_eq!(libc::munmap(memory, LENGTH), 0);
    }
    assert_eq!(fs::read(point.join("file")).unwrap(), expected);
    drop(file);
    unmount(mounted);
    assert_eq!(fs::read(fixture.path("upper/file")).unwrap(), expected);
}

/// A database with a number for each transaction.
const BASE: &str = r#"
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], timeout=60)
if sys.argv[2] == "make":
    base.execute("PRAGMA journal_mode = WAL")
    base.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, text TEXT)")
    base.commit()
if sys.argv[2] == "add":
    for _ in range(20):
        with base:
            base.execute("INSERT INTO rows (text) VALUES (hex(randomblob(200)))")
(said,), = base.execute("PRAGMA integrity_check")
assert said == "ok", said
assert next(base.execute("SELECT count(*) = coalesce(max(number), 0) FROM rows")) == (1,)
"#;

/// Lets writers, git, tar and sqlite work at `point` during `disturb`. The tree has the files of
/// [`fill`] and `huge`.
pub fn programs_go_on(point: &Path, disturb: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let longest = AtomicU64::new(0);
    let at_work = |script: &str| {
        let output = run::finish(run::command("sh").args(["-ec", script, "sh"]).arg(point));
        assert!(output.status.success(), "{script}: {output:?}");
    };
    let again = |script: &str| {
        while !stop.load(Ordering::Relaxed) {
            at_work(script);
        }
    };
    at_work("mkdir $1/repository; cd $1/repository; git init -q; git config user.name a; git config user.email a@b");
    at_work(&format!("python3 -c '{BASE}' $1/base make"));
    thread::scope(|scope| {
        scope.spawn(|| again("cd $1/repository; date +%N > file; git add -A; git commit -qm x; git status >/dev/null"));
        scope.spawn(|| {
            again("mkdir $1/t; tar -C $1 -cf - many | tar -C $1/t -xf -; diff -r $1/many $1/t/many; rm -r $1/t")
        });
        scope.spawn(|| again(&format!("python3 -c '{BASE}' $1/base add")));
        scope.spawn(|| again("printf x >> $1/huge; cp $1/huge $1/copy; cmp $1/huge $1/copy; rm $1/copy"));
        scope.spawn(|| {
            let file = open(&point.join("synced"));
            for number in 1_u64.. {
                let since = Instant::now();
                file.write_all_at(&number.to_le_bytes(), 8 * (number - 1)).unwrap();
                file.sync_data().unwrap();
                let name = point.join("temporary");
                let unlinked = open(&name);
                fs::remove_file(name).unwrap();
                (&unlinked).write_all(b"text").unwrap();
                assert_eq!(read_all(&unlinked), "text");
                longest.fetch_max(since.elapsed().as_millis() as u64, Ordering::Relaxed);
                if stop.load(Ordering::Relaxed) {
                    assert_eq!(file.metadata().unwrap().len(), 8 * number);
                    return;
                }
            }
        });
        let stopping = Stop(&stop);
        disturb();
        drop(stopping);
    });
    println!("the longest write, sync and unlink took {longest:?} ms");
    at_work("cd $1/repository; git fsck --strict; test -z \"$(git status --porcelain)\"");
    at_work(&format!("python3 -c '{BASE}' $1/base check"));
    let synced = fs::read(point.join("synced")).unwrap();
    let numbers = synced.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    assert!(numbers.zip(1..).all(|(number, expected)| number == expected));
}
