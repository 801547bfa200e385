//! Mounts that come back after their daemon was killed: programs see a pause.
//!
//! Needs root, /dev/fuse, Linux 6.9, git, tar and Python with sqlite3; fails without them.

#[path = "suite/command.rs"]
mod command;
#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/held.rs"]
mod held;
#[path = "suite/locks.rs"]
mod locks;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;
#[path = "suite/sorts.rs"]
mod sorts;
#[path = "suite/tracer.rs"]
mod tracer;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, IFlags, RenameFlags, XattrFlags, renameat_with};
use rustix::mount::UnmountFlags;
use test_common::put;

use command::command;
use fixture::Fixture;
use held::{Held, open, process, programs_go_on, read_all, temporary};
use locks::is_free;
use mount::{eventually, is_mounted, program};
use sorts::{Tree, change, fill, tree};
use tracer::{Tracer, Verdict};

/// The options of each mount. Over io_uring no other process can take it over.
const COMEBACK: &str = ",comeback,io_uring=off";

fn kill(point: &Path) {
    signal(process(point) as i32, libc::SIGKILL);
}

fn signal(process: i32, signal: i32) {
    // SAFETY: takes two numbers. The process serves a mount of this test.
    assert_eq!(unsafe { libc::kill(process, signal) }, 0);
}

/// A mount in the background, which has no process that a test waits for.
struct Background<'a> {
    fixture: &'a Fixture,
}

impl<'a> Background<'a> {
    fn new(fixture: &'a Fixture, more: &str) -> Self {
        let options = fixture.options(&format!("{COMEBACK},log={}{more}", fixture.path("log").display()));
        let started = run::finish(run::command(program()).args(["-o", &options]).arg(fixture.point()));
        assert!(started.status.success(), "{started:?}");
        Self { fixture }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.fixture.path("log")).unwrap_or_default()
    }

    /// Unmounts. umount(8) waits until the layers are free.
    fn unmount(self) {
        let umount = || Command::new("umount").arg(self.fixture.point()).stderr(Stdio::null()).status();
        eventually("it is unmounted", || umount().unwrap().success());
    }
}

impl Drop for Background<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the messages of the mount: {}", self.log());
        }
        if is_mounted(&self.fixture.point()) {
            let _ = Command::new("umount").arg("-l").arg(self.fixture.point()).status();
        }
    }
}

fn a_kill_changes_nothing(fixture: &Fixture, more: &str) {
    let mount = || Background::new(fixture, more);
    held::nothing_changes(fixture, mount, Background::unmount, kill, without_ctime);
}

/// The time of last change of status moves to that of the layer, if the daemon was killed before it
/// wrote down what it had shown.
fn without_ctime(mut facts: Tree) -> Tree {
    facts.values_mut().for_each(|(_, _, _, times, _)| times[1] = (0, 0));
    facts
}

#[test]
fn a_kill_changes_nothing_that_programs_see() {
    a_kill_changes_nothing(&Fixture::new(), "");
}

#[test]
fn a_kill_changes_nothing_in_the_kernels_format() {
    a_kill_changes_nothing(&Fixture::with_work(), ",format=kernel");
}

#[test]
fn a_kill_changes_nothing_of_a_volatile_mount() {
    a_kill_changes_nothing(&Fixture::with_work(), ",volatile");
}

/// The mount has a frozen layer. A snapshot ends the comebacks, and a restart begins them again.
#[test]
fn a_kill_changes_nothing_above_a_snapshot() {
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    let snapshots = fixture.setup.dir("snapshots");
    let (mount, point) = (Background::new(&fixture, &format!(",snapshots={}", snapshots.display())), fixture.point());
    change(&point);
    for word in ["snapshot", "restart"] {
        let (code, _, said) = command(&[word], &point);
        assert_eq!(code, 0, "{word}: {said}");
    }
    let file = open(&point.join("moved/made"));
    file.write_all_at(b"MA", 0).unwrap();
    fs::rename(point.join("moved/made"), point.join("own/made")).unwrap();
    fs::rename(point.join("many/1"), point.join("own/1")).unwrap();
    let before = tree(&point);
    kill(&point);
    assert_eq!(tree(&point), before);
    assert_eq!(read_all(&file), "MAde");
    drop(file);
    mount.unmount();
}

/// Changes of a file after the removal of its name: of the upper layer and of a lower one.
#[test]
fn a_kill_takes_nothing_back_from_a_file_without_a_name() {
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    let (mount, point) = (Background::new(&fixture, ""), fixture.point());
    change(&point);
    for name in ["moved/made", "moved/changed", "many/1"] {
        let file = open(&point.join(name));
        fs::remove_file(point.join(name)).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o601)).unwrap();
        file.set_len(0).unwrap();
        file.write_all_at(b"changed", 0).unwrap();
        file.sync_all().unwrap();
        kill(&point);
        let found = file.metadata().unwrap();
        let shown = (read_all(&file), found.mode() & 0o7777, found.nlink(), found.len());
        assert_eq!(shown, ("changed".to_owned(), 0o601, 0, 7), "{name}");
    }
    let file = open(&point.join("many/2"));
    fs::remove_file(point.join("many/2")).unwrap();
    rustix::fs::ioctl_setflags(&file, IFlags::NODUMP).unwrap();
    kill(&point);
    assert!(rustix::fs::ioctl_getflags(&file).unwrap().contains(IFlags::NODUMP));
    drop(file);
    mount.unmount();
}

/// A file that has lost its only known name, of which a lookup then meets another one.
#[test]
fn a_kill_loses_no_file_by_a_name_that_was_met_late() {
    let fixture = Fixture::new();
    let (mount, point) = (Background::new(&fixture, ""), fixture.point());
    fs::create_dir(point.join("dir")).unwrap();
    fs::write(point.join("dir/one"), "text").unwrap();
    fs::hard_link(point.join("dir/one"), point.join("other")).unwrap();
    mount.unmount();
    let mount = Background::new(&fixture, "");
    let file = open(&point.join("other"));
    fs::remove_file(point.join("other")).unwrap();
    let number = file.metadata().unwrap().ino();
    // No request reads or writes it, so nothing keeps it open.
    assert_eq!(fs::metadata(point.join("dir/one")).unwrap().ino(), number);
    rustix::fs::setxattr(point.join("dir/one"), "user.x", b"x", XattrFlags::empty()).unwrap();
    kill(&point);
    assert_eq!((read_all(&file).as_str(), file.metadata().unwrap().nlink()), ("text", 1));
    file.write_all_at(b"TE", 0).unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(point.join("dir/one")).unwrap(), "TExt");
    mount.unmount();
}

#[test]
fn a_kill_changes_nothing_without_write_back() {
    a_kill_changes_nothing(&Fixture::new(), ",writeback=0,timeout=0");
}

/// What a tree shows: the kind and mode, links and content of each path.
type Shown = BTreeMap<PathBuf, (u32, u64, u64, Vec<u8>)>;

fn shown(point: &Path) -> Shown {
    let facts = tree(point);
    facts
        .into_iter()
        .map(|(path, (_, mode, links, _, content))| {
            let device = point.join(&path).symlink_metadata().unwrap().rdev();
            // A kill may leave the count of links of a lower file with several names too high.
            let links = if path == Path::new("one") || path == Path::new("other") { 0 } else { links };
            (path, (mode, links, device, content))
        })
        .collect()
}

/// Makes a change, or asks something. Returns what the program sees.
type Act = fn(&Path) -> io::Result<String>;

fn done(result: io::Result<()>) -> io::Result<String> {
    result.map(|()| String::new())
}

fn rename(point: &Path, from: &str, to: &str, flags: RenameFlags) -> io::Result<String> {
    done(renameat_with(CWD, point.join(from), CWD, point.join(to), flags).map_err(io::Error::from))
}

fn xattr(path: PathBuf, value: &[u8], flags: XattrFlags) -> io::Result<String> {
    done(rustix::fs::setxattr(path, "user.x", value, flags).map_err(io::Error::from))
}

/// The kinds of requests, but for the removal of a partial copy: a kill in it ends the mount
/// (`docs/restart.md`). The lower layer has the files of [`fill`], the upper one those of
/// [`change`].
const ACTS: &[(&str, Act)] = &[
    ("create", |point| fs::write(point.join("new"), "new").map(|()| String::new())),
    ("create alone", |point| File::create_new(point.join("new")).map(|_| String::new())),
    ("create what exists", |point| File::create_new(point.join("one")).map(|_| String::new())),
    ("make a directory", |point| done(fs::create_dir(point.join("new")))),
    ("make a symlink", |point| done(symlink("target", point.join("new")))),
    ("make a FIFO", |point| {
        let path = CString::new(point.join("new").as_os_str().as_bytes()).unwrap();
        // SAFETY: the path is valid.
        match unsafe { libc::mkfifo(path.as_ptr(), 0o640) } {
            0 => Ok(String::new()),
            _ => Err(io::Error::last_os_error()),
        }
    }),
    ("link", |point| done(fs::hard_link(point.join("own/a"), point.join("own/new")))),
    ("link a lower file", |point| done(fs::hard_link(point.join("many/1"), point.join("own/new")))),
    ("remove", |point| done(fs::remove_file(point.join("moved/made")))),
    ("remove a lower file", |point| done(fs::remove_file(point.join("many/1")))),
    ("remove a link", |point| done(fs::remove_file(point.join("own/b")))),
    ("remove a lower link", |point| done(fs::remove_file(point.join("other")))),
    ("remove what is open", |point| {
        let file = open(&point.join("moved/made"));
        fs::remove_file(point.join("moved/made"))?;
        (&file).write_all(b"MA")?;
        file.sync_all()?;
        Ok(read_all(&file))
    }),
    ("remove a lower file that is open", |point| {
        let file = File::open(point.join("many/1"))?;
        fs::remove_file(point.join("many/1"))?;
        Ok(read_all(&file))
    }),
    ("remove a directory", |point| done(fs::remove_dir(point.join("empty")))),
    ("remove what is missing", |point| done(fs::remove_file(point.join("missing")))),
    ("remove a full directory", |point| done(fs::remove_dir(point.join("many")))),
    ("rename", |point| rename(point, "own/a", "own/new", RenameFlags::empty())),
    ("rename a lower file", |point| rename(point, "many/1", "own/new", RenameFlags::empty())),
    ("rename a lower directory", |point| rename(point, "many", "own/new", RenameFlags::empty())),
    ("rename a directory again", |point| rename(point, "moved", "own/new", RenameFlags::empty())),
    ("rename to a removed name", |point| rename(point, "own/a", "gone", RenameFlags::empty())),
    ("replace", |point| {
        let (new, old) = (File::open(point.join("moved/made"))?, File::open(point.join("own/a"))?);
        rename(point, "moved/made", "own/a", RenameFlags::empty())?;
        Ok(read_all(&new) + &read_all(&old))
    }),
    ("replace a lower file", |point| {
        let (new, old) = (File::open(point.join("own/a"))?, File::open(point.join("many/1"))?);
        rename(point, "own/a", "many/1", RenameFlags::empty())?;
        Ok(read_all(&new) + &read_all(&old))
    }),
    ("replace nothing", |point| rename(point, "own/a", "own/b", RenameFlags::NOREPLACE)),
    ("rename to the other link", |point| rename(point, "own/a", "own/b", RenameFlags::empty())),
    ("exchange", |point| rename(point, "own/a", "moved", RenameFlags::EXCHANGE)),
    ("exchange lower files", |point| rename(point, "many/1", "many/2", RenameFlags::EXCHANGE)),
    ("leave a device", |point| rename(point, "own/a", "own/new", RenameFlags::WHITEOUT)),
    ("copy up", |point| fs::write(point.join("many/1"), "longer").map(|()| String::new())),
    ("copy up a part", |point| {
        let file = open(&point.join("huge"));
        file.write_all_at(b"part", 1 << 20)?;
        done(file.sync_all())
    }),
    ("append", |point| {
        let mut file = File::options().append(true).open(point.join("many/1"))?;
        file.write_all(b"and")?;
        done(file.sync_all())
    }),
    ("truncate", |point| done(open(&point.join("moved/made")).set_len(2))),
    ("truncate a lower file", |point| done(open(&point.join("huge")).set_len((1 << 20) + 3))),
    ("empty a lower file", |point| File::create(point.join("many/1")).map(|_| String::new())),
    ("change the mode", |point| done(fs::set_permissions(point.join("many/1"), fs::Permissions::from_mode(0o711)))),
    ("change the owner", |point| done(std::os::unix::fs::chown(point.join("many/1"), Some(3), Some(4)))),
    ("change the time", |point| {
        let file = open(&point.join("own/a"));
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(7))?;
        Ok(format!("{:?}", file.metadata()?.modified()))
    }),
    ("set an attribute", |point| xattr(point.join("many/1"), b"y", XattrFlags::empty())),
    ("make an attribute", |point| xattr(point.join("own/a"), b"y", XattrFlags::CREATE)),
    ("make an attribute again", |point| xattr(point.join("marked"), b"other", XattrFlags::CREATE)),
    ("remove an attribute", |point| {
        rustix::fs::removexattr(point.join("marked"), "user.x")?;
        Ok(format!("{:?}", rustix::fs::getxattr(point.join("marked"), "user.x", &mut [0_u8; 9])))
    }),
    ("reserve space", |point| {
        let file = open(&point.join("own/a"));
        Ok(format!("{:?}", rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 9000)))
    }),
    ("copy a range", |point| {
        let (from, to) = (File::open(point.join("large"))?, open(&point.join("own/a")));
        let copied = rustix::fs::copy_file_range(&from, Some(&mut 9), &to, Some(&mut 3), 9000)?;
        Ok(copied.to_string())
    }),
    ("look for holes", |point| {
        let mut file = open(&point.join("own/a"));
        file.write_all_at(b"far", 1 << 20)?;
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0))?;
        file.seek(SeekFrom::Start(0))?;
        Ok(format!("{hole} {:?}", file.metadata()?.len()))
    }),
    ("a file without a name", |point| {
        let mut file = temporary(&point.join("own"));
        file.write_all(b"text")?;
        file.sync_all()?;
        let place = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(CWD, place, CWD, point.join("own/new"), rustix::fs::AtFlags::SYMLINK_FOLLOW)?;
        Ok(read_all(&file))
    }),
    ("list", |point| Ok(fs::read_dir(point.join("many"))?.count().to_string())),
    ("read", |point| {
        let mut text = Vec::new();
        File::open(point.join("large"))?.read_to_end(&mut text)?;
        Ok(text.len().to_string())
    }),
];

/// Makes the tree in which a program acts.
fn furnish(point: &Path) {
    change(point);
    fs::create_dir(point.join("empty")).unwrap();
    fs::write(point.join("marked"), "marked").unwrap();
    xattr(point.join("marked"), b"x", XattrFlags::empty()).unwrap();
}

/// Makes one kind of request, and kills the daemon before its call `fatal`; never if that is 0.
/// Returns what the program sees, what the tree shows then and after the next mount, and whether
/// there was a kill.
fn act(act: Act, fatal: usize, more: &str) -> ((String, Shown, Shown), bool) {
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    put::file(&fixture.path("lower"), "huge", vec![9; 3 << 20]);
    let guard = fixture.guard();
    let (mount, point) = (Background::new(&fixture, more), fixture.point());
    furnish(&point);
    let tracer = (fatal > 0).then(|| Tracer::killing_at(process(&point) as i32, fatal));
    let seen = act(&point).unwrap_or_else(|error| error.to_string());
    let is_killed = tracer.is_some_and(Tracer::end);
    assert!(!mount.log().contains("does not go on"), "call {fatal}: {}", mount.log());
    let now = shown(&point);
    mount.unmount();
    let mount = Background::new(&fixture, more);
    let next = shown(&point);
    mount.unmount();
    drop(guard);
    ((seen, now, next), is_killed)
}

/// Kills the daemon at one of `every` of its calls during a request. Each kind of request begins
/// with another call.
fn is_the_same_at_each_kill(more: &str, every: usize) {
    let chosen = std::env::var("OVERLAYFS_ACT").ok();
    let acts = ACTS.iter().enumerate();
    for (index, (name, what)) in acts.filter(|(_, (name, _))| chosen.as_ref().is_none_or(|chosen| chosen == name)) {
        let (expected, _) = act(*what, 0, more);
        let mut kills = 0;
        for fatal in (1 + index * 5 % every.min(FEWEST)..).step_by(every) {
            let (found, is_killed) = act(*what, fatal, more);
            assert_eq!(found.0, expected.0, "{name}{more}: the program sees another result at call {fatal}");
            for (when, found, expected) in
                [("now", &found.1, &expected.1), ("at the next mount", &found.2, &expected.2)]
            {
                let of = |this: &Shown, other: &Shown| -> Vec<_> {
                    let differs = |path: &&PathBuf| this.get(*path) != other.get(*path);
                    let brief =
                        |path: &PathBuf| format!("{path:?} {:?}", this[path].3.get(..9).unwrap_or(&this[path].3));
                    this.keys().filter(differs).map(brief).collect()
                };
                let differences = (of(found, expected), of(expected, found));
                assert!(found == expected, "{name}{more}: the tree differs {when} at call {fatal}: {differences:?}");
            }
            if !is_killed {
                break;
            }
            kills += 1;
        }
        println!("{name}{more}: {kills} kills");
    }
}

/// No kind of request makes fewer calls.
const FEWEST: usize = 12;

/// OVERLAYFS_CALLS=1 kills at every call.
#[test]
fn each_request_is_performed_once() {
    let every = std::env::var("OVERLAYFS_CALLS").map_or(61, |every| every.parse().unwrap());
    is_the_same_at_each_kill("", every);
}

/// git, tar, sqlite, copies and a program that syncs work all the time while the daemon is killed.
/// OVERLAYFS_COMEBACKS sets the number of kills.
#[test]
fn programs_go_on_under_kills() {
    let kills = std::env::var("OVERLAYFS_COMEBACKS").map_or(6, |kills| kills.parse().unwrap());
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    put::file(&fixture.path("lower"), "huge", vec![1; 64 << 20]);
    let guard = fixture.guard();
    let (mount, point) = (Background::new(&fixture, ""), fixture.point());
    programs_go_on(&point, || {
        for number in 0..kills {
            thread::sleep(Duration::from_millis(1000 + number * 37 % 300));
            kill(&point);
        }
    });
    assert_eq!(mount.log().matches("was killed").count() as u64, kills);
    let before = without_ctime(tree(&point));
    mount.unmount();
    let mount = Background::new(&fixture, "");
    assert!(without_ctime(tree(&point)) == before);
    mount.unmount();
    drop(guard);
}

/// A mapping that a program has stored to.
#[test]
fn a_mapping_goes_on() {
    let fixture = Fixture::new();
    held::a_mapping_goes_on(&fixture, || Background::new(&fixture, ""), Background::unmount, kill);
}

/// Requests that come while the daemon is stopped, and is killed then. A second one dies before it
/// serves.
#[test]
fn a_kill_during_a_comeback_is_one_more() {
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    let (mount, point) = (Background::new(&fixture, ""), fixture.point());
    for round in 0..4 {
        let first = process(&point) as i32;
        signal(first, libc::SIGSTOP);
        thread::scope(|scope| {
            for (name, text) in [("a", "one"), ("b", "two"), ("c", "three")] {
                let path = point.join(format!("{name}{round}"));
                scope.spawn(move || {
                    fs::write(&path, text).unwrap();
                    assert_eq!(fs::read_to_string(&path).unwrap(), text);
                    fs::rename(&path, path.with_extension("moved")).unwrap();
                });
            }
            thread::sleep(Duration::from_millis(50));
            signal(first, libc::SIGKILL);
            // The next one, at any moment of its start.
            let next = || takes_over(&point, first);
            eventually("another process takes over", || next().is_some());
            thread::sleep(Duration::from_millis(round * 12));
            if let Some(next) = next() {
                signal(next, libc::SIGKILL);
            }
        });
        for name in ["a", "b", "c"] {
            assert!(point.join(format!("{name}{round}.moved")).exists());
        }
    }
    mount.unmount();
}

/// The next daemon dies at each call from the start of its second process to that of its threads:
/// before the mount is given to it, at that moment, and after it. Its second process begins to run
/// only then.
#[test]
fn a_kill_when_the_mount_is_given_is_one_more() {
    at_each_call(|fatal| {
        let fixture = Fixture::new();
        let (mount, point) = (Background::new(&fixture, ""), fixture.point());
        fs::write(point.join("file"), "text").unwrap();
        let first = process(&point) as i32;
        let kill = || signal(first, libc::SIGKILL);
        let is_killed = kill_the_next(keeper(&fixture), &point, Tracer::holding, fatal, kill);
        let renamed = fs::rename(point.join("file"), point.join("renamed"));
        assert!(renamed.is_ok(), "call {fatal}: {renamed:?}");
        mount.unmount();
        is_killed
    });
}

/// The next daemon of a second restart dies at each such call. In the foreground the first process
/// stays to the end, and has the exit status of the mount.
#[test]
fn a_kill_when_a_restart_gives_the_mount_changes_nothing() {
    at_each_call(|fatal| {
        let fixture = Fixture::new();
        let (mount, point) = (fixture.mount(COMEBACK), fixture.point());
        fs::write(point.join("file"), "text").unwrap();
        assert_eq!(command(&["restart"], &point).0, 0);
        let first = process(&point) as i32;
        // The command succeeds if the mount was given.
        let restart = || drop(command(&["restart"], &point));
        let is_killed = kill_the_next(first, &point, Tracer::new, fatal, restart);
        let renamed = fs::rename(point.join("file"), point.join("renamed"));
        assert!(renamed.is_ok(), "call {fatal}: {renamed:?}");
        let status = mount.unmount_and_wait();
        assert!(status.success(), "call {fatal}: {status}");
        is_killed
    });
}

/// Calls `kill_at` with one number after another, until it kills nothing.
fn at_each_call(mut kill_at: impl FnMut(usize) -> bool) {
    let calls = (1..).take_while(|fatal| kill_at(*fatal)).count();
    assert!(calls > 10, "{calls} calls");
}

/// Calls `begin`, after which `giving` starts the next daemon, and kills that at the call with the
/// number `fatal` between its first two clones, traced by `trace`. Returns whether there were as
/// many calls.
fn kill_the_next(
    giving: i32,
    point: &Path,
    trace: fn(i32, BetweenClones) -> Tracer,
    fatal: usize,
    begin: impl FnOnce() + Send,
) -> bool {
    let first = process(point) as i32;
    // The other process stands still while the next daemon is looked for.
    let (found, next) = mpsc::channel();
    let looking = Tracer::new(giving, {
        let point = point.to_owned();
        move |_| match takes_over(&point, first) {
            None => Verdict::GoOn,
            Some(next) => {
                found.send(trace(next, between_clones(fatal))).unwrap();
                Verdict::LetGo
            }
        }
    });
    thread::scope(|scope| {
        scope.spawn(begin);
        let is_killed = next.recv().unwrap().wait();
        looking.wait();
        is_killed
    })
}

type BetweenClones = Box<dyn FnMut(i64) -> Verdict + Send>;

/// Kills at the call with this number after a clone, and lets go at the next clone.
fn between_clones(fatal: usize) -> BetweenClones {
    let mut calls = None;
    Box::new(move |call| {
        match (&mut calls, matches!(call, libc::SYS_clone | libc::SYS_clone3)) {
            (None, false) => {}
            (None, true) => calls = Some(0),
            (Some(_), true) => return Verdict::LetGo,
            (Some(calls), false) => *calls += 1,
        }
        if calls == Some(fatal) { Verdict::Kill } else { Verdict::GoOn }
    })
}

/// Returns the process that is about to take a mount over, other than `not`.
fn takes_over(point: &Path, not: i32) -> Option<i32> {
    fs::read_dir("/proc").unwrap().find_map(|entry| {
        let entry = entry.unwrap();
        let process: i32 = entry.file_name().to_str()?.parse().ok()?;
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        let mut words = words.split(|byte| *byte == 0);
        let is_next = words.nth(1) == Some(b"take-over") && words.any(|word| word == point.as_os_str().as_bytes());
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        (is_next && process != not && name.trim() == "overlayfs-fuse").then_some(process)
    })
}

/// An unmount is complete although the daemon is killed in it.
#[test]
fn a_kill_during_an_unmount_loses_nothing() {
    for round in 0..8_u64 {
        let fixture = Fixture::new();
        fill(&fixture.path("lower"));
        let (mount, point) = (Background::new(&fixture, ""), fixture.point());
        let first = process(&point) as i32;
        let text = format!("round {round}");
        fs::write(point.join("file"), &text).unwrap();
        File::options().write(true).open(point.join("large")).unwrap().write_all_at(b"x", round << 16).unwrap();
        thread::scope(|scope| {
            let unmounting = scope.spawn(|| mount.unmount());
            thread::sleep(Duration::from_millis(round * 3));
            signal(first, libc::SIGKILL);
            unmounting.join().unwrap();
        });
        let mount = Background::new(&fixture, "");
        assert_eq!(fs::read_to_string(point.join("file")).unwrap(), text);
        let large = fs::read(point.join("large")).unwrap();
        assert!(large.len() == 3 << 20 && large[(round << 16) as usize] == b'x');
        mount.unmount();
    }
}

/// An unmount waits for the next daemon, if it waited already when the daemon was killed.
#[test]
fn an_unmount_that_waits_goes_on_waiting() {
    let fixture = Fixture::new();
    for round in 0..4 {
        let (_mount, point) = (Background::new(&fixture, ""), fixture.point());
        let first = process(&point) as i32;
        fs::write(point.join("file"), vec![round; 8 << 20]).unwrap();
        signal(first, libc::SIGSTOP);
        thread::scope(|scope| {
            // umount(8) would first ask the daemon for the root directory.
            let unmounting = scope.spawn(|| rustix::mount::unmount(&point, UnmountFlags::empty()));
            eventually("it has left the table of mounts", || !is_mounted(&point));
            // umount comes to its wait soon after that.
            thread::sleep(Duration::from_millis(100));
            signal(first, libc::SIGKILL);
            unmounting.join().unwrap().unwrap();
        });
        assert!(is_free(&fixture.path("upper")), "round {round}: the daemon still uses the layers");
    }
}

/// The changes go where the option says, although the daemon was killed.
#[test]
fn a_mount_comes_back_to_its_ending() {
    let fixture = Fixture::with_work();
    put::file(&fixture.path("lower"), "old", "old");
    let (mount, point) = (Background::new(&fixture, ",on_exit=commit"), fixture.point());
    fs::write(point.join("new"), "new").unwrap();
    kill(&point);
    fs::write(point.join("more"), "more").unwrap();
    mount.unmount();
    assert_eq!(fs::read_to_string(fixture.path("lower/new")).unwrap(), "new");
    assert_eq!(fs::read_to_string(fixture.path("lower/more")).unwrap(), "more");
}

/// A mount in the foreground. The process of the start has its exit status, also after a kill.
#[test]
fn a_mount_in_the_foreground_comes_back() {
    let fixture = Fixture::new();
    let (mount, point) = (fixture.mount(COMEBACK), fixture.point());
    fs::write(point.join("file"), "text").unwrap();
    mount.unmount();
    eventually("no process stays", || processes(&fixture).is_empty());
    let mount = fixture.mount(COMEBACK);
    kill(&point);
    assert_eq!(fs::read_to_string(point.join("file")).unwrap(), "text");
    assert_eq!(mount.unmount_and_wait().signal(), Some(libc::SIGKILL));
    eventually("no process stays", || processes(&fixture).is_empty());
}

/// A signal unmounts, and no process stays.
#[test]
fn a_signal_still_unmounts() {
    let fixture = Fixture::new();
    let (mount, point) = (Background::new(&fixture, ""), fixture.point());
    fs::write(point.join("file"), "text").unwrap();
    kill(&point);
    signal(process(&point) as i32, libc::SIGTERM);
    eventually("it is unmounted", || !is_mounted(&point));
    eventually("no process stays", || processes(&fixture).is_empty());
    assert_eq!(fs::read_to_string(fixture.path("upper/file")).unwrap(), "text");
    drop(mount);
}

/// Returns the live processes of a mount.
fn processes(fixture: &Fixture) -> Vec<i32> {
    let point = fixture.point();
    let of_mount = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let process = entry.file_name().to_str()?.parse().ok()?;
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        words.split(|byte| *byte == 0).any(|word| word == point.as_os_str().as_bytes()).then_some(process)
    };
    fs::read_dir("/proc").unwrap().filter_map(of_mount).collect()
}

/// Returns the second process of a mount, once it has its name.
fn keeper(fixture: &Fixture) -> i32 {
    let mut keepers = Vec::new();
    eventually("the second process waits", || {
        keepers = processes(fixture);
        keepers.retain(|process| named(*process) == "keeper\n");
        !keepers.is_empty()
    });
    keepers[0]
}

/// Returns the name of a process, with the end of the line.
fn named(process: i32) -> String {
    fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default()
}

/// Without an upper layer there is nothing to lock or to sync.
#[test]
fn a_read_only_mount_comes_back() {
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    let (mount, point) = (Background::new(&fixture, ",ro"), fixture.point());
    let (file, before) = (File::open(point.join("dir/below")).unwrap(), tree(&point));
    kill(&point);
    kill(&point);
    assert_eq!((read_all(&file).as_str(), tree(&point)), ("below", before));
    drop(file);
    mount.unmount();
    eventually("no process stays", || processes(&fixture).is_empty());
}

/// Restarts and kills, in any order.
#[test]
fn restarts_and_comebacks_follow_one_another() {
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    let (mount, point) = (Background::new(&fixture, ""), fixture.point());
    change(&point);
    let held = Held::new(&point);
    let before = tree(&point);
    let restart = || assert_eq!(command(&["restart"], &point), (0, String::new(), String::new()));
    restart();
    kill(&point);
    restart();
    restart();
    kill(&point);
    kill(&point);
    assert_eq!(tree(&point), before);
    let (_, said, _) = command(&["status"], &point);
    let count = said.lines().find_map(|line| line.strip_prefix("comebacks")).unwrap_or_else(|| panic!("{said}"));
    assert_eq!(count.trim(), "3");
    held.go_on(&point);
    mount.unmount();
}

/// Ends a mount as one without the option ends: programs get an error, and nothing is lost.
fn ends(fixture: &Fixture, mount: Background<'_>, why: &str) {
    let point = fixture.point();
    eventually("the mount is dead", || {
        let found = fs::metadata(point.join("none"));
        found.is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
    });
    assert!(mount.log().contains(why), "{}", mount.log());
    mount.unmount();
    eventually("no process stays", || processes(fixture).is_empty());
    let mount = Background::new(fixture, "");
    assert_eq!(fs::read_to_string(point.join("file")).unwrap(), "text");
    mount.unmount();
}

/// A daemon that dies again and again does not come back for ever.
#[test]
fn too_many_kills_end_the_mount() {
    let fixture = Fixture::new();
    let (mount, point) = (Background::new(&fixture, ""), fixture.point());
    fs::write(point.join("file"), "text").unwrap();
    File::open(point.join("file")).unwrap().sync_all().unwrap();
    for _ in 0..11 {
        kill(&point);
    }
    ends(&fixture, mount, "its process was killed too often");
}

/// After a snapshot the ledger says nothing about the present layers.
#[test]
fn a_kill_after_a_snapshot_ends_the_mount() {
    let mut fixture = Fixture::new();
    let snapshots = fixture.setup.dir("snapshots");
    fixture.add(&format!(",snapshots={}", snapshots.display()));
    let (mount, point) = (Background::new(&fixture, ""), fixture.point());
    fs::write(point.join("file"), "text").unwrap();
    assert_eq!(command(&["snapshot"], &point).0, 0);
    kill(&point);
    ends(&fixture, mount, "a snapshot was made since its start");
}

/// The keeper and the daemon at once.
#[test]
fn a_kill_of_both_processes_ends_the_mount() {
    let fixture = Fixture::new();
    let (mount, point) = (Background::new(&fixture, ""), fixture.point());
    fs::write(point.join("file"), "text").unwrap();
    let all = processes(&fixture);
    assert_eq!(all.len(), 3, "{all:?}");
    // The keeper sees no death before its own.
    for number in [libc::SIGSTOP, libc::SIGKILL] {
        all.iter().for_each(|process| signal(*process, number));
    }
    ends(&fixture, mount, "");
}

/// Without its keeper the daemon goes on, up to its own death.
#[test]
fn a_kill_of_the_keeper_changes_nothing() {
    let fixture = Fixture::new();
    let (mount, point) = (Background::new(&fixture, ""), fixture.point());
    let daemon = process(&point) as i32;
    signal(keeper(&fixture), libc::SIGKILL);
    fs::write(point.join("file"), "text").unwrap();
    assert_eq!(process(&point) as i32, daemon);
    kill(&point);
    ends(&fixture, mount, "");
}
