//! The requests that redoxfs gets for an operation of a program. They come from files in an overlay
//! of layers on it, and on the same files directly. A request is a message to another process, so
//! on Redox requests determine the time.
//!
//! The benchmark prints the numbers, and a test checks them.

use std::path::Path;

use linux_delegate::daemon::unused_name;
use linux_delegate::redoxfs::{Disk, Requests};
use linux_delegate::{Daemon, Fd, Process};
use overlayfs::layer::redox::RedoxLayer;
use overlayfs::overlay::{Layers, Overlay};
use syscall::flag::{O_CREAT, O_RDONLY, O_RDWR, O_TRUNC};

/// The number of repetitions of an operation.
const TIMES: u64 = 10;

/// The cost of one operation.
pub struct Row {
    pub operation: &'static str,
    /// The goal for the requests of the overlay, as a share of the direct ones.
    pub goal: f64,
    /// The limit of requests of the overlay in the test, for all repetitions.
    pub most: u64,
    /// The requests that arrived.
    pub overlay: Requests,
    direct: Requests,
}

impl Row {
    /// Returns the row as Markdown. A ratio above its goal is bold.
    pub fn line(&self) -> String {
        let Row { operation, goal, most, overlay, direct } = self;
        let ratio = overlay.total() as f64 / direct.total() as f64;
        let bold = if ratio > *goal { "**" } else { "" };
        let (most, overlay, direct) = (most.div_ceil(TIMES), overlay.per(TIMES), direct.per(TIMES));
        format!("| {operation} | {goal} | {bold}{ratio:.2}{bold} | {most} | {overlay} | {direct} |")
    }
}

/// A disk with two layers and a plain directory of the same content, and an overlay of the layers.
struct Setup {
    // Dropped first, while the disk exists.
    daemon: Daemon,
    disk: Disk,
}

impl Setup {
    fn new() -> Self {
        let disk = Disk::redoxfs();
        for number in 0..25 {
            for (lower, upper) in [("lower", "upper"), ("plain", "plain")] {
                disk.tree().put_file(&format!("{lower}/d/lower{number}"), [7; 8192]);
                disk.tree().put_file(&format!("{upper}/d/upper{number}"), [7; 8192]);
            }
        }
        for layer in ["lower", "upper", "plain"] {
            disk.tree().look_mut(&format!("{layer}/d")).mode |= 0o777;
        }
        let open = |path, for_writing| RedoxLayer::open(Path::new(&disk.path(path)), for_writing).expect("a layer");
        let layers = Layers { upper: Some(open("upper", true)), work: None, lowers: vec![open("lower", false)] };
        let overlay = Overlay::new(layers).expect("an overlay");
        let setup = Self { daemon: Daemon::serve(overlay, unused_name("cost")), disk };
        for entry in root().read_dir(setup.overlay("d")).expect("a listing") {
            root().stat(setup.overlay(&format!("d/{}", entry.name))).expect("attributes");
        }
        setup
    }

    fn overlay(&self, path: &str) -> String {
        format!("/scheme/{}/{path}", self.daemon.name())
    }

    fn direct(&self, path: &str) -> String {
        self.disk.path(&format!("plain/{path}"))
    }
}

fn root() -> Process {
    Process::new(0, 0)
}

/// Turns a path of the measured tree into an absolute path.
type Paths<'a> = &'a dyn Fn(&str) -> String;

/// Measures the requests of `act` in both places, on the result of `prepare`. `act` runs once
/// before, so the measurement is warm.
fn row<T>(
    operation: &'static str,
    goal: f64,
    most: u64,
    prepare: impl Fn(Paths<'_>) -> T,
    act: impl Fn(Paths<'_>, &mut T),
) -> Row {
    let setup = Setup::new();
    let measure = |paths: Paths<'_>| {
        let mut prepared = prepare(paths);
        act(paths, &mut prepared);
        setup.disk.take_requests();
        for _ in 0..TIMES {
            act(paths, &mut prepared);
            // A close may reach the daemon after the client has gone on. This request waits for
            // that.
            let _ = root().stat(setup.overlay(""));
        }
        setup.disk.take_requests()
    };
    let overlay = measure(&|path| setup.overlay(path));
    let direct = measure(&|path| setup.direct(path));
    Row { operation, goal, most, overlay, direct }
}

fn open(path: String) -> Fd {
    root().open(path, O_RDWR, 0).expect("a file")
}

fn create_and_unlink(who: &Process, path: String) {
    drop(who.open(&path, O_CREAT | O_RDWR, 0o644).expect("to create"));
    who.unlink(&path).expect("to unlink");
}

/// Measures every operation that has a goal.
pub fn rows() -> Vec<Row> {
    let nothing = |_: Paths<'_>| ();
    vec![
        row("stat", 0.15, 0, nothing, |paths, ()| {
            root().stat(paths("d/lower1")).expect("attributes");
        }),
        row("stat of a missing name", 0.15, 0, nothing, |paths, ()| {
            assert!(root().stat(paths("d/missing")).is_err());
        }),
        row("open, close", 0.15, 0, nothing, |paths, ()| {
            drop(root().open(paths("d/lower1"), O_RDONLY, 0).expect("a file"));
        }),
        row("readdir of 50 entries", 0.2, 0, nothing, |paths, ()| {
            assert_eq!(root().read_dir(paths("d")).expect("a listing").len(), 50);
        }),
        row("create 10, readdir of 60, unlink 10", 1.2, 350, nothing, |paths, ()| {
            let names: Vec<_> = (0..10).map(|number| paths(&format!("d/new{number}"))).collect();
            for name in &names {
                drop(root().open(name, O_CREAT | O_RDWR, 0o644).expect("to create"));
            }
            assert_eq!(root().read_dir(paths("d")).expect("a listing").len(), 60);
            for name in &names {
                root().unlink(name).expect("to unlink");
            }
        }),
        row(
            "read of 4 KiB",
            1.3,
            10,
            |paths| open(paths("d/lower1")),
            |_, file| {
                assert_eq!(file.read_at(&mut [0; 4096], 0), Ok(4096));
            },
        ),
        row(
            "write of 4 KiB",
            1.1,
            10,
            |paths| open(paths("d/upper1")),
            |_, file| {
                assert_eq!(file.write_at(&[1; 4096], 0), Ok(4096));
            },
        ),
        row("create, unlink", 1.2, 30, nothing, |paths, ()| create_and_unlink(&root(), paths("d/new"))),
        row("create, unlink, by another user", 1.2, 30, nothing, |paths, ()| {
            create_and_unlink(&Process::new(1000, 100), paths("d/new"));
        }),
        // The attributes come from the open file.
        row("create, stat, unlink", 0.7, 40, nothing, |paths, ()| {
            drop(root().open(paths("d/new"), O_CREAT | O_RDWR, 0o644).expect("to create"));
            root().stat(paths("d/new")).expect("attributes");
            root().unlink(paths("d/new")).expect("to unlink");
        }),
        row("create, write, stat, unlink", 0.8, 50, nothing, |paths, ()| {
            root().write_file(paths("d/new"), "new").expect("to write");
            root().stat(paths("d/new")).expect("attributes");
            root().unlink(paths("d/new")).expect("to unlink");
        }),
        // Each repetition takes another file.
        row(
            "overwrite a small file of the lower layer",
            3.0,
            // A close may come late.
            60,
            |_| 0..,
            |paths, numbers| {
                let path = paths(&format!("d/lower{}", numbers.next().expect("a number")));
                let file = root().open(path, O_RDWR | O_TRUNC, 0).expect("a file");
                assert_eq!(file.write(&[1; 4096]), Ok(4096));
            },
        ),
        row(
            "change a small file of the lower layer",
            3.0,
            // A close may come late.
            170,
            |_| 0..,
            |paths, numbers| {
                let path = paths(&format!("d/lower{}", numbers.next().expect("a number")));
                assert_eq!(open(path).write(&[1; 4096]), Ok(4096));
            },
        ),
        row("rename there and back", 1.2, 30, nothing, |paths, ()| {
            root().rename(paths("d/upper1"), paths("d/renamed")).expect("to rename");
            root().rename(paths("d/renamed"), paths("d/upper1")).expect("to rename");
        }),
        row(
            "rename of a directory there and back",
            1.2,
            30,
            |paths| root().mkdir(paths("d/dir")).expect("to make it"),
            |paths, _| {
                root().rename(paths("d/dir"), paths("d/renamed")).expect("to rename");
                root().rename(paths("d/renamed"), paths("d/dir")).expect("to rename");
            },
        ),
    ]
}
