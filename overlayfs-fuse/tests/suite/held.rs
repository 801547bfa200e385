//! Programs that use a mount while another process takes it over.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use rustix::fs::inotify;
use test_common::put;

use crate::mount::program;
use crate::run;

/// Runs a command of the program. Returns its exit code, output and messages.
pub fn command(words: &[&str], point: &Path) -> (i32, String, String) {
    let output = run::finish(run::command(program()).args(words).arg(point));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Returns the process that serves a mount.
pub fn process(point: &Path) -> u64 {
    let (_, said, _) = command(&["status"], point);
    let line = said.lines().find_map(|line| line.strip_prefix("pid")).unwrap_or_else(|| panic!("{said}"));
    line.trim().parse().unwrap()
}

/// What must stay of an object: its number, kind and mode, links, times and contents.
pub type Facts = (u64, u32, u64, [(i64, i64); 2], Vec<u8>);

/// Returns the facts about each path of a tree.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let stat = path.symlink_metadata().unwrap();
            let content = if stat.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if stat.is_dir() {
                dirs.push(path.clone());
            }
            let times = [(stat.mtime(), stat.mtime_nsec()), (stat.ctime(), stat.ctime_nsec())];
            let links = if stat.is_dir() { 0 } else { stat.nlink() };
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.insert(name, (stat.ino(), stat.mode(), links, times, content));
        }
    }
    found
}

/// Fills the lower layer with files of all sorts.
pub fn fill(lower: &Path) {
    put::file(lower, "dir/below", "below");
    put::file(lower, "dir/changed", "old");
    put::file(lower, "gone", "gone");
    put::file(lower, "large", vec![7; 3 << 20]);
    put::file(lower, "one", "both");
    fs::hard_link(lower.join("one"), lower.join("other")).unwrap();
    for index in 0..300 {
        put::file(lower, &format!("many/{index}"), "x");
    }
}

/// Makes changes of all sorts.
pub fn change(point: &Path) {
    fs::write(point.join("dir/changed"), "new").unwrap();
    fs::write(point.join("dir/made"), "made").unwrap();
    fs::remove_file(point.join("gone")).unwrap();
    fs::write(point.join("one"), "changed by one name").unwrap();
    File::options().write(true).open(point.join("large")).unwrap().write_all_at(b"x", 1 << 20).unwrap();
    fs::create_dir(point.join("own")).unwrap();
    fs::write(point.join("own/a"), "linked").unwrap();
    fs::hard_link(point.join("own/a"), point.join("own/b")).unwrap();
    fs::rename(point.join("dir"), point.join("moved")).unwrap();
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
        disturb();
        stop.store(true, Ordering::Relaxed);
    });
    println!("the longest write, sync and unlink took {longest:?} ms");
    at_work("cd $1/repository; git fsck --strict; test -z \"$(git status --porcelain)\"");
    at_work(&format!("python3 -c '{BASE}' $1/base check"));
    let synced = fs::read(point.join("synced")).unwrap();
    let numbers = synced.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    assert!(numbers.zip(1..).all(|(number, expected)| number == expected));
}
