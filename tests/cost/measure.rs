//! The backing calls of each operation. The engine is above a counting layer, cold (a new overlay)
//! and warm (it has read every directory and every object). The benchmark prints the numbers, and a
//! test checks them.
//!
//! The layers are in memory. A filesystem that does not keep the order of changes needs some syncs
//! more.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use overlayfs::layer::counted::{Counted, Counts, Tally};
use overlayfs::layer::{CAPABILITY, Kind, OsLayer, Owner, RenameMode, Time};
use overlayfs::overlay::{Handle, Layers, Node, Overlay};
use tempfile::TempDir;

type Counting = Counted<OsLayer>;
type NodeRef = Arc<Node<Counting>>;

/// The cost of one operation.
pub struct Row {
    pub operation: &'static str,
    /// The goal for the warm cost: that of a plain call, and 1 to 3 more for each mark, redirect
    /// and copied parent.
    pub goal: u64,
    /// The limit of the warm cost in the test.
    pub most: u64,
    pub cold: Tally,
    pub warm: Tally,
}

impl Row {
    /// Returns the row as Markdown. A number above its goal is bold.
    pub fn line(&self) -> String {
        let Row { operation, goal, most, warm, cold } = self;
        let bold = if warm.total() > *goal { "**" } else { "" };
        format!("| {operation} | {goal} | {most} | {bold}{warm}{bold} | {cold} |")
    }
}

/// Layers in a temporary directory, and an overlay of them with counted calls.
struct Setup {
    _dir: TempDir,
    overlay: Overlay<Counting>,
    counts: Counts,
}

/// The number of objects of each kind: one for the cold measurement, one for the warm one.
const OBJECTS: usize = 2;

impl Setup {
    /// Makes the layers. `lower` has the directories `d` and `m`. `upper` has `u`, and `m` merged
    /// with the lower one. Lower has `r` too, which is renamed before. In `m`, both layers have the
    /// `b`s, and the `w`s are whited out.
    fn new() -> Self {
        let dir = TempDir::new_in("/dev/shm").unwrap();
        let (lower, upper) = (dir.path().join("lower"), dir.path().join("upper"));
        for dir in [lower.join("d"), lower.join("r"), lower.join("m"), upper.join("u"), upper.join("m")] {
            fs::create_dir_all(&dir).unwrap();
        }
        for number in 0..OBJECTS {
            fill(&lower.join("d"), number);
            fill(&upper.join("u"), number);
            for path in [lower.join("m/b"), upper.join("m/b"), lower.join("m/w")] {
                fs::write(numbered(&path, number), "x").unwrap();
            }
            fs::create_dir(numbered(&lower.join("m/v"), number)).unwrap();
            for name in ["w", "v"] {
                fs::write(upper.join(format!("m/.wh.{name}{number}")), "").unwrap();
            }
        }
        let counts = Counts::default();
        let layer = |path: &Path, for_writing| Counted::new(OsLayer::open(path, for_writing).unwrap(), &counts);
        let layers = || Layers { upper: Some(layer(&upper, true)), work: None, lowers: vec![layer(&lower, false)] };
        use_redirects(&Overlay::new(layers()).unwrap());
        let overlay = Overlay::new(layers()).unwrap();
        counts.take();
        Self { _dir: dir, overlay, counts }
    }

    fn find(&self, path: &str) -> NodeRef {
        path.split('/')
            .fold(self.overlay.root().clone(), |dir, name| self.overlay.lookup(&dir, OsStr::new(name)).unwrap())
    }

    /// Lists every directory and stats every object.
    fn warm_up(&self) {
        let mut dirs = vec![self.overlay.root().clone()];
        while let Some(dir) = dirs.pop() {
            let mut names = Vec::new();
            let handle = self.overlay.open(&dir);
            self.overlay
                .list(&handle, 0, &mut |entry| {
                    names.push(entry.name.to_owned());
                    true
                })
                .unwrap();
            for name in names {
                let node = self.overlay.lookup(&dir, &name).unwrap();
                self.overlay.stat(&node).unwrap();
                if node.kind() == Kind::Dir {
                    dirs.push(node);
                }
            }
        }
    }
}

/// Makes a redirect, which the record of the upper layer names from then on.
fn use_redirects(overlay: &Overlay<Counting>) {
    let root = overlay.root();
    let [old, new] = ["r", "r.moved"].map(OsStr::new);
    overlay.lookup(root, old).unwrap();
    overlay.rename(root, old, root, new, RenameMode::Replace).unwrap();
}

fn fill(dir: &Path, number: usize) {
    fs::write(numbered(&dir.join("f"), number), [7; 4096]).unwrap();
    fs::write(numbered(&dir.join("g"), number), [7; 4096]).unwrap();
    fs::create_dir(numbered(&dir.join("s"), number)).unwrap();
    fs::create_dir(numbered(&dir.join("t"), number)).unwrap();
    std::os::unix::fs::symlink("target", numbered(&dir.join("l"), number)).unwrap();
}

fn numbered(path: &Path, number: usize) -> std::path::PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(number.to_string());
    path.into()
}

/// Measures `operation` on object 0 of a cold overlay and on object 1 of a warm one. `prepare` runs
/// before it, and does not count when warm.
fn row<T>(
    operation: &'static str,
    goal: u64,
    most: u64,
    prepare: impl Fn(&Setup, usize) -> T,
    act: impl Fn(&Setup, T, usize),
) -> Row {
    let cold = Setup::new();
    let prepared = prepare(&cold, 0);
    act(&cold, prepared, 0);
    let cold = cold.counts.take();
    let warm = Setup::new();
    warm.warm_up();
    let prepared = prepare(&warm, 1);
    warm.counts.take();
    act(&warm, prepared, 1);
    Row { operation, goal, most, cold, warm: warm.counts.take() }
}

/// Opens a file that was read, and that needs no copy-up for a write.
fn open_file(setup: &Setup, number: usize) -> Handle<Counting> {
    let handle = setup.overlay.open(&setup.find(&format!("u/f{number}")));
    setup.overlay.write_at(&handle, b"x", 0).unwrap();
    handle
}

fn named(name: &str, number: usize) -> std::ffi::OsString {
    format!("{name}{number}").into()
}

/// Leaves the times to the front end, as a mount with write-back does, and finds a file of the
/// upper layer.
fn dated(setup: &Setup, number: usize) -> NodeRef {
    setup.overlay.leave_times_to_front_end();
    let node = setup.find(&format!("u/f{number}"));
    setup.overlay.stat(&node).unwrap();
    node
}

/// What a SETATTR of times alone becomes.
fn date(setup: &Setup, node: &NodeRef, mtime: Time) {
    let (atime, _) = setup.overlay.times_at_rest(node).unwrap();
    setup.overlay.set_times(node, atime, mtime).unwrap();
    setup.overlay.set_ctime(node, mtime);
    setup.overlay.stat(node).unwrap();
}

/// Measures the operations of a mount with write-back: the kernel dates each change of a file, and
/// wants its attributes after that.
pub fn dated_rows() -> Vec<Row> {
    let own = Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    let time = Time { sec: 1, nsec: 2 };
    vec![
        row(
            "create, stat",
            1,
            1,
            |setup, _| setup.find("u"),
            |setup, dir, number| {
                let handle = setup.overlay.create_file(&dir, &named("new", number), 0o644, own).unwrap();
                setup.overlay.stat(handle.node()).unwrap();
            },
        ),
        row(
            "mkdir, stat",
            1,
            1,
            |setup, _| setup.find("u"),
            |setup, dir, number| {
                let node = setup.overlay.create_dir(&dir, &named("new", number), 0o755, own).unwrap();
                setup.overlay.stat(&node).unwrap();
            },
        ),
        row(
            "the capability of a new file",
            1,
            1,
            |setup, _| setup.find("u"),
            |setup, dir, number| {
                let handle = setup.overlay.create_file(&dir, &named("new", number), 0o644, own).unwrap();
                setup.overlay.xattr(handle.node(), OsStr::new(CAPABILITY)).unwrap_err();
            },
        ),
        row("the capability of another file, twice", 1, 1, dated, |setup, node, _| {
            for _ in 0..2 {
                setup.overlay.xattr(&node, OsStr::new(CAPABILITY)).unwrap_err();
            }
        }),
        row("write, date", 4, 4, dated_and_open, |setup, handle, _| {
            setup.overlay.write_at(&handle, b"y", 5).unwrap();
            date(setup, handle.node(), time);
        }),
        row("chmod, stat", 1, 1, dated, |setup, node, _| {
            setup.overlay.set_mode(&node, 0o600).unwrap();
            setup.overlay.stat(&node).unwrap();
        }),
        row("chown, stat", 1, 1, dated, |setup, node, _| {
            setup.overlay.xattr(&node, OsStr::new(CAPABILITY)).unwrap_err();
            setup.counts.take();
            setup.overlay.set_owner(&node, own).unwrap();
            setup.overlay.stat(&node).unwrap();
        }),
        row("rename, date", 2, 2, dated, |setup, node, number| {
            let (dir, new) = (setup.find("u"), named("new", number));
            setup.overlay.rename(&dir, &named("f", number), &dir, &new, RenameMode::Replace).unwrap();
            date(setup, &node, time);
        }),
        row("link, stat", 1, 1, dated, |setup, node, number| {
            setup.overlay.link(&node, &setup.find("u"), &named("new", number)).unwrap();
            setup.overlay.stat(&node).unwrap();
        }),
    ]
}

/// Does the same as [`dated`], and opens the file for a write.
fn dated_and_open(setup: &Setup, number: usize) -> Handle<Counting> {
    dated(setup, number);
    open_file(setup, number)
}

/// Measures every operation of the table "Cost".
pub fn rows() -> Vec<Row> {
    let own = Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    let time = Time { sec: 1, nsec: 2 };
    let in_dir = |dir: &'static str| move |setup: &Setup, _: usize| setup.find(dir);
    let at = |path: &'static str| move |setup: &Setup, number: usize| setup.find(&format!("{path}{number}"));
    let nothing = |_: &Setup, _: usize| ();
    vec![
        row("stat", 0, 0, nothing, |setup, (), number| {
            setup.overlay.stat(&setup.find(&format!("d/f{number}"))).unwrap();
        }),
        row("failed lookup", 0, 0, nothing, |setup, (), _| {
            assert!(setup.overlay.lookup(&setup.find("d"), OsStr::new("missing")).is_err());
        }),
        row("readdir", 0, 0, nothing, |setup, (), _| {
            let handle = setup.overlay.open(&setup.find("m"));
            setup.overlay.list(&handle, 0, &mut |_| true).unwrap();
        }),
        row("read a link", 1, 1, nothing, |setup, (), number| {
            setup.overlay.read_link(&setup.find(&format!("d/l{number}"))).unwrap();
        }),
        row("open and close", 0, 0, nothing, |setup, (), number| {
            drop(setup.overlay.open(&setup.find(&format!("d/f{number}"))));
        }),
        row("open, read and close", 2, 3, nothing, |setup, (), number| {
            let handle = setup.overlay.open(&setup.find(&format!("d/f{number}")));
            setup.overlay.read_at(&handle, &mut [0; 100], 0).unwrap();
        }),
        row("read", 1, 1, open_file, |setup, handle, _| {
            setup.overlay.read_at(&handle, &mut [0; 100], 0).unwrap();
        }),
        row("write", 1, 1, open_file, |setup, handle, _| {
            setup.overlay.write_at(&handle, b"y", 5).unwrap();
        }),
        row("append", 1, 1, open_file, |setup, handle, _| {
            setup.overlay.append(&handle, b"y").unwrap();
        }),
        row("ftruncate", 1, 1, open_file, |setup, handle, _| {
            setup.overlay.truncate(handle.node(), 10).unwrap();
        }),
        row("fsync", 1, 1, open_file, |setup, handle, _| {
            setup.overlay.sync(&handle).unwrap();
        }),
        row("chmod", 1, 1, at("u/f"), |setup, node, _| setup.overlay.set_mode(&node, 0o600).unwrap()),
        row("utimens", 1, 1, at("u/f"), |setup, node, _| setup.overlay.set_times(&node, time, time).unwrap()),
        row("create", 1, 1, in_dir("u"), |setup, dir, number| {
            setup.overlay.create_file(&dir, &named("new", number), 0o644, own).unwrap();
        }),
        row("mkdir", 1, 1, in_dir("u"), |setup, dir, number| {
            setup.overlay.create_dir(&dir, &named("new", number), 0o755, own).unwrap();
        }),
        row("symlink", 1, 1, in_dir("u"), |setup, dir, number| {
            setup.overlay.create_symlink(&dir, &named("new", number), OsStr::new("x"), own).unwrap();
        }),
        row("link", 1, 1, at("u/f"), |setup, node, number| {
            setup.overlay.link(&node, &setup.find("u"), &named("new", number)).unwrap();
        }),
        row("unlink", 1, 1, in_dir("u"), |setup, dir, number| setup.overlay.unlink(&dir, &named("f", number)).unwrap()),
        row("rmdir", 1, 1, in_dir("u"), |setup, dir, number| {
            setup.overlay.remove_dir(&dir, &named("s", number)).unwrap();
        }),
        row("rename of a file", 1, 1, in_dir("u"), |setup, dir, number| {
            let (old, new) = (named("f", number), named("new", number));
            setup.overlay.rename(&dir, &old, &dir, &new, RenameMode::Replace).unwrap();
        }),
        row("rename of a directory", 1, 1, in_dir("u"), |setup, dir, number| {
            let (old, new) = (named("s", number), named("new", number));
            setup.overlay.rename(&dir, &old, &dir, &new, RenameMode::Replace).unwrap();
        }),
        row("unlink, in both layers (a marker)", 2, 2, in_dir("m"), |setup, dir, number| {
            setup.overlay.unlink(&dir, &named("b", number)).unwrap();
        }),
        row("create over a marker", 2, 2, in_dir("m"), |setup, dir, number| {
            setup.overlay.create_file(&dir, &named("w", number), 0o644, own).unwrap();
        }),
        row("mkdir over a marker", 4, 4, in_dir("m"), |setup, dir, number| {
            setup.overlay.create_dir(&dir, &named("v", number), 0o755, own).unwrap();
        }),
        row("chmod of a lower directory (one directory copied up)", 4, 7, nothing, |setup, (), _| {
            setup.overlay.set_mode(&setup.find("d"), 0o700).unwrap();
        }),
        row("unlink of a lower file (and its directory copied up)", 4, 8, in_dir("d"), |setup, dir, number| {
            setup.overlay.unlink(&dir, &named("f", number)).unwrap();
        }),
        row("first byte written to a lower file (both copied up)", 12, 20, at("d/f"), |setup, node, _| {
            setup.overlay.write_at(&setup.overlay.open(&node), b"x", 0).unwrap();
        }),
        row(
            "rename of a lower directory (both copied up, a redirect, a marker)",
            13,
            23,
            in_dir("d"),
            |setup, dir, number| {
                let (old, new) = (named("t", number), named("new", number));
                setup.overlay.rename(&dir, &old, &dir, &new, RenameMode::Replace).unwrap();
            },
        ),
    ]
}

/// Returns the calls of a cold walk over everything. Each of `layers` lower layers has the same
/// directory of 10 files.
pub fn cold_walk(layers: usize) -> Tally {
    let dir = TempDir::new_in("/dev/shm").unwrap();
    let counts = Counts::default();
    let mut lowers = Vec::new();
    for number in 0..layers {
        let path = dir.path().join(number.to_string());
        fs::create_dir_all(path.join("d")).unwrap();
        for file in 0..10 {
            fs::write(path.join(format!("d/{number}-{file}")), "x").unwrap();
        }
        lowers.push(Counted::new(OsLayer::open(&path, false).unwrap(), &counts));
    }
    let setup = Setup { overlay: Overlay::new(Layers { upper: None, work: None, lowers }).unwrap(), _dir: dir, counts };
    setup.counts.take();
    setup.warm_up();
    setup.counts.take()
}

/// Returns the calls of two listings: of a directory far below, after many other listings, and then
/// of 20 directories in it. Two lower layers have all of them.
pub fn deep_steps(depth: usize) -> [Tally; 2] {
    let dir = TempDir::new_in("/dev/shm").unwrap();
    let deep = vec!["d"; depth].join("/");
    let counts = Counts::default();
    let lowers = ["one", "two"].map(|layer| {
        let layer = dir.path().join(layer);
        for number in 0..20 {
            fs::create_dir_all(layer.join(&deep).join(number.to_string())).unwrap();
        }
        for number in 0..300 {
            fs::create_dir(layer.join(number.to_string())).unwrap();
        }
        Counted::new(OsLayer::open(&layer, false).unwrap(), &counts)
    });
    let overlay = Overlay::new(Layers { upper: None, work: None, lowers: lowers.into() }).unwrap();
    let list = |node: &NodeRef| overlay.list(&overlay.open(node), 0, &mut |_| true).unwrap();
    let find = |dir: &NodeRef, name: &str| overlay.lookup(dir, OsStr::new(name)).unwrap();
    let bottom = deep.split('/').fold(overlay.root().clone(), |dir, name| find(&dir, name));
    for number in 0..300 {
        list(&find(overlay.root(), &number.to_string()));
    }
    counts.take();
    list(&bottom);
    let first = counts.take();
    for number in 0..20 {
        list(&find(&bottom, &number.to_string()));
    }
    [first, counts.take()]
}
