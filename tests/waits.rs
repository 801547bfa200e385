//! The operations that wait when a layer does not answer, as with a network filesystem that hangs
//! or another daemon that is stopped. One operation blocks in one call of a layer. Each other
//! operation is tried alone. Exactly the listed ones wait.
//!
//! A read, write, copy or sync of data delays only changes of the same object. An operation on
//! names holds its directory meanwhile. A rename of a directory needs the whole tree, so it waits
//! for that. `docs/design.md` has the locks.

use std::cell::Cell;
use std::ffi::OsStr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use overlayfs::layer::counted::{Counted, Counts, Method};
use overlayfs::layer::{OsLayer, Owner, RenameMode, Result};
use overlayfs::overlay::{Handle, Layers, Node, Overlay};
use test_common::{Setup, put};

type Counting = Counted<OsLayer>;

const OWN: Owner = Owner { uid: 0, gid: 0 };

/// An operation that has not ended after this time counts as waiting.
const PATIENCE: Duration = Duration::from_millis(400);

thread_local! {
    /// The method in which this thread blocks.
    static STUCK_IN: Cell<Option<Method>> = const { Cell::new(None) };
}

/// A directory `here` with the objects of the blocked operation, and a directory `elsewhere`.
struct Tree {
    overlay: Overlay<Counting>,
    here: Arc<Node<Counting>>,
    elsewhere: Arc<Node<Counting>>,
    /// `here/file` of the lower layer, and `here/own` of the upper one. Both were read.
    file: Handle<Counting>,
    own: Handle<Counting>,
    /// `elsewhere/file`.
    other: Handle<Counting>,
    _setup: Setup,
}

type Operation = fn(&Tree) -> Result<()>;

fn name(name: &str) -> &OsStr {
    OsStr::new(name)
}

fn read(tree: &Tree, handle: &Handle<Counting>) -> Result<()> {
    tree.overlay.read_at(handle, &mut [0; 4], 0).map(drop)
}

fn write(tree: &Tree, handle: &Handle<Counting>) -> Result<()> {
    tree.overlay.write_at(handle, b"x", 0).map(drop)
}

fn find(tree: &Tree, dir: &Arc<Node<Counting>>, file: &str) -> Result<()> {
    tree.overlay.lookup(dir, name(file)).map(drop)
}

fn list(tree: &Tree, dir: &Arc<Node<Counting>>) -> Result<()> {
    tree.overlay.list(&tree.overlay.open(dir), 0, &mut |_| true)
}

fn create(tree: &Tree, dir: &Arc<Node<Counting>>) -> Result<()> {
    tree.overlay.create_file(dir, name("new"), 0o600, OWN).map(drop)
}

fn rename(tree: &Tree, dir: &Arc<Node<Counting>>, from: &str) -> Result<()> {
    tree.overlay.rename(dir, name(from), dir, name("renamed"), RenameMode::Replace)
}

impl Tree {
    /// Makes a tree in which threads block. A blocked thread reports to `arrived`, and goes on
    /// after a message of `gate`.
    fn new(arrived: Sender<()>, gate: Receiver<()>) -> Self {
        let setup = Setup::new();
        let lower = setup.dir("lower");
        for dir in ["here", "elsewhere"] {
            for file in ["file", "untouched", "moves"] {
                put::file(&lower, &format!("{dir}/{file}"), "data");
            }
            put::file(&lower, &format!("{dir}/dir/file"), "data");
        }
        put::file(&setup.dir("upper"), "here/own", "data");
        put::file(&setup.dir("upper"), "here/own dir/file", "data");
        let counts = Counts::default();
        let open =
            |name: &str, for_writing| Counted::new(OsLayer::open(&setup.dir(name), for_writing).unwrap(), &counts);
        let layers = Layers { upper: Some(open("upper", true)), work: None, lowers: vec![open("lower", false)] };
        let overlay = Overlay::new(layers).unwrap();
        let find = |path: &str| {
            path.split('/').fold(overlay.root().clone(), |dir, part| overlay.lookup(&dir, name(part)).unwrap())
        };
        let open = |path| overlay.open(&find(path));
        let tree = Tree {
            here: find("here"),
            elsewhere: find("elsewhere"),
            file: open("here/file"),
            own: open("here/own"),
            other: open("elsewhere/file"),
            _setup: setup,
            overlay,
        };
        for handle in [&tree.file, &tree.own, &tree.other] {
            read(&tree, handle).unwrap();
        }
        for dir in [&tree.here, &tree.elsewhere] {
            list(&tree, dir).unwrap();
        }
        let gate = Mutex::new(gate);
        counts.interpose(move |method| {
            if STUCK_IN.get() == Some(method) {
                STUCK_IN.set(None);
                arrived.send(()).unwrap();
                gate.lock().unwrap().recv().unwrap();
            }
            Ok(())
        });
        tree
    }
}

/// The operations that are tried meanwhile.
const OTHERS: [(&str, Operation); 18] = [
    ("read the file", |tree| read(tree, &tree.file)),
    ("stat the file", |tree| tree.overlay.stat(tree.file.node()).map(drop)),
    ("write to the file", |tree| write(tree, &tree.file)),
    ("unlink the file", |tree| tree.overlay.unlink(&tree.here, name("file"))),
    ("read the other file", |tree| read(tree, &tree.own)),
    ("write to the other file", |tree| write(tree, &tree.own)),
    ("find a known name here", |tree| find(tree, &tree.here, "own")),
    ("find an unknown name here", |tree| find(tree, &tree.here, "untouched")),
    ("list here", |tree| list(tree, &tree.here)),
    ("create here", |tree| create(tree, &tree.here)),
    ("read elsewhere", |tree| read(tree, &tree.other)),
    ("write elsewhere", |tree| write(tree, &tree.other)),
    ("find elsewhere", |tree| find(tree, &tree.elsewhere, "untouched")),
    ("list elsewhere", |tree| list(tree, &tree.elsewhere)),
    ("create elsewhere", |tree| create(tree, &tree.elsewhere)),
    ("rename elsewhere", |tree| rename(tree, &tree.elsewhere, "moves")),
    ("rename across elsewhere", |tree| {
        let dir = tree.overlay.lookup(&tree.elsewhere, name("dir"))?;
        tree.overlay.rename(&tree.elsewhere, name("moves"), &dir, name("renamed"), RenameMode::Replace)
    }),
    ("rename a directory elsewhere", |tree| rename(tree, &tree.elsewhere, "dir")),
];

/// Blocks `stuck` in `method`, tries each of the other operations, and compares the ones that wait
/// with `waiting`.
fn check(stuck: Operation, method: Method, waiting: &[&str]) {
    let waits = |other: Operation| {
        let ((arrived, arrival), (gate, opened), (ended, end)) = (mpsc::channel(), mpsc::channel(), mpsc::channel());
        let tree = &Tree::new(arrived, opened);
        thread::scope(|scope| {
            let stuck = scope.spawn(move || {
                STUCK_IN.set(Some(method));
                stuck(tree)
            });
            arrival.recv_timeout(10 * PATIENCE).expect("it does not get stuck");
            scope.spawn(move || {
                // The operation may fail after the wait.
                let _ = other(tree);
                ended.send(()).unwrap();
            });
            let waits = end.recv_timeout(PATIENCE).is_err();
            assert!(!stuck.is_finished());
            gate.send(()).unwrap();
            assert_eq!(stuck.join().unwrap(), Ok(()));
            if waits {
                end.recv().unwrap();
            }
            waits
        })
    };
    let found: Vec<_> = OTHERS.iter().filter(|(_, other)| waits(*other)).map(|(what, _)| *what).collect();
    assert_eq!(found, waiting, "the operations that wait for {}", method.name());
}

const NOBODY: &[&str] = &[];
const WHO_CHANGES_THE_FILE: &[&str] = &["write to the file", "unlink the file"];

#[test]
fn a_read_delays_no_operation() {
    check(|tree| read(tree, &tree.file), Method::ReadAt, NOBODY);
}

#[test]
fn a_copy_up_delays_changes_of_the_same_file() {
    let write: Operation = |tree| write(tree, &tree.file);
    check(write, Method::CreateFile, WHO_CHANGES_THE_FILE);
    check(write, Method::SetTimes, WHO_CHANGES_THE_FILE);
}

#[test]
fn a_write_a_truncation_and_a_copy_delay_changes_of_the_same_file() {
    let waiting = &["write to the other file"];
    check(|tree| write(tree, &tree.own), Method::WriteAt, waiting);
    check(|tree| tree.overlay.truncate(tree.own.node(), 4), Method::Truncate, waiting);
    let copy: Operation = |tree| tree.overlay.copy_range(&tree.other, 0..4, &tree.own, 0).map(drop);
    check(copy, Method::CopyRange, waiting);
}

#[test]
fn a_sync_delays_no_operation() {
    check(|tree| tree.overlay.sync(&tree.own), Method::Sync, NOBODY);
    check(|tree| tree.overlay.sync(&tree.overlay.open(&tree.here)), Method::SyncDir, NOBODY);
}

/// The operations that need the directory `here`, and a rename of a directory, which needs the
/// whole tree.
const NEED_THE_DIRECTORY: &[&str] = &[
    "unlink the file",
    "find a known name here",
    "find an unknown name here",
    "list here",
    "create here",
    "rename a directory elsewhere",
];

#[test]
fn a_lookup_and_a_creation_delay_operations_on_the_directory() {
    // The copy gets its name there.
    let waiting = &[&["write to the file"], NEED_THE_DIRECTORY].concat();
    check(|tree| find(tree, &tree.here, "untouched"), Method::Stat, waiting);
    check(|tree| create(tree, &tree.here), Method::CreateFile, waiting);
    check(|tree| tree.overlay.unlink(&tree.here, name("file")), Method::CreateEmpty, waiting);
}

#[test]
fn a_rename_of_a_file_delays_operations_on_the_directory_and_the_file() {
    let the_file = ["write to the file", "read the other file", "write to the other file"];
    let waiting = [&the_file, NEED_THE_DIRECTORY].concat();
    let mut waiting: Vec<_> = OTHERS.iter().map(|(what, _)| *what).filter(|what| waiting.contains(what)).collect();
    check(|tree| rename(tree, &tree.here, "own"), Method::Rename, &waiting);
    // A rename between two directories waits for another one.
    let last = waiting.len() - 1;
    waiting.insert(last, "rename across elsewhere");
    let across: Operation = |tree| {
        let dir = tree.overlay.lookup(&tree.here, name("own dir"))?;
        tree.overlay.rename(&tree.here, name("own"), &dir, name("renamed"), RenameMode::Replace)
    };
    check(across, Method::Rename, &waiting);
}

#[test]
fn a_rename_of_a_directory_delays_operations_on_names() {
    let data = ["read the file", "stat the file", "read the other file", "read elsewhere"];
    let waiting: Vec<_> = OTHERS.iter().map(|(what, _)| *what).filter(|what| !data.contains(what)).collect();
    check(|tree| rename(tree, &tree.here, "own dir"), Method::Rename, &waiting);
}
