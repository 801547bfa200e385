//! Dangerous races, many times each: directories that move while threads work below them, copy-up
//! of files while their names change, and listings during all changes. Each test has a condition
//! that must hold throughout.
//!
//! At the end the next mount shows the same tree, the upper layer has no damage, and the lower
//! layer has not changed.
//!
//! `RACES=20 cargo test --test races` repeats twenty times as often. Random concurrent operations
//! are in `tests/model`.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use overlayfs::errno::{ENOENT, ENOTEMPTY};
use overlayfs::fsck::Checker;
use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::layer::{Allocation, Kind, OsLayer, Owner, RenameMode, Result};
use overlayfs::overlay::{Handle, Layers, Node, Overlay};
use test_common::{LowerGuard, Setup, put};

type Layered = Counted<OsLayer>;
type Merged = Overlay<Layered>;

const OWN: Owner = Owner { uid: 0, gid: 0 };

/// Large enough for a partial copy.
const LARGE: usize = (1 << 20) + 300_000;

fn times(usual: usize) -> usize {
    usual * std::env::var("RACES").map_or(1, |times| times.parse().expect("RACES is a number"))
}

fn name(name: &str) -> &OsStr {
    OsStr::new(name)
}

/// Opens the directories `lower` and `upper` of a setup as layers.
fn open(setup: &Setup) -> Layers<Layered> {
    let counts = Counts::default();
    // Another thread may run between any two calls.
    counts.interpose(|_| {
        thread::yield_now();
        Ok(())
    });
    let open = |name: &str, for_writing| Counted::new(OsLayer::open(&setup.dir(name), for_writing).unwrap(), &counts);
    Layers { upper: Some(open("upper", true)), work: None, lowers: vec![open("lower", false)] }
}

fn mount(setup: &Setup) -> Merged {
    Overlay::new(open(setup)).unwrap()
}

fn find(overlay: &Merged, path: &str) -> Result<Arc<Node<Layered>>> {
    path.split('/').try_fold(overlay.root().clone(), |dir, part| overlay.lookup(&dir, name(part)))
}

fn read(overlay: &Merged, handle: &Handle<Layered>) -> Vec<u8> {
    let mut bytes = vec![0; 2 * LARGE];
    let read = overlay.read_at(handle, &mut bytes, 0).unwrap();
    bytes.truncate(read);
    bytes
}

/// Lists a directory in small pieces, and counts each name.
fn list(overlay: &Merged, dir: &Arc<Node<Layered>>) -> HashMap<String, usize> {
    let (handle, mut met, mut after) = (overlay.open(dir), HashMap::new(), 0);
    loop {
        let mut piece = 0;
        let from = after;
        let each = &mut |entry: overlayfs::overlay::DirEntry<'_>| {
            *met.entry(entry.name.to_str().unwrap().to_owned()).or_default() += 1;
            (after, piece) = (entry.offset, piece + 1);
            piece < 5
        };
        overlay.list(&handle, from, each).unwrap();
        if piece == 0 {
            return met;
        }
    }
}

/// Returns the whole tree: kinds, link counts and contents.
fn tree(overlay: &Merged) -> BTreeMap<PathBuf, (Kind, u32, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut nodes = vec![(PathBuf::new(), overlay.root().clone())];
    while let Some((path, node)) = nodes.pop() {
        let stat = overlay.stat(&node).unwrap();
        let (mut links, mut content) = (0, Vec::new());
        if stat.kind == Kind::Dir {
            for (name, met) in list(overlay, &node) {
                assert_eq!(met, 1, "{name} in {path:?}");
                nodes.push((path.join(&name), overlay.lookup(&node, OsStr::new(&name)).unwrap()));
            }
        } else {
            (links, content) = (stat.nlink, read(overlay, &overlay.open(&node)));
        }
        all.insert(path, (stat.kind, links, content));
    }
    all
}

/// Ends an overlay, and checks the tree and the upper layer.
fn leave(overlay: Merged, setup: &Setup, guard: &LowerGuard) {
    let before = tree(&overlay);
    drop(overlay);
    let findings = Checker::new(open(setup)).unwrap().check().unwrap();
    assert!(findings.is_empty(), "{} {}", findings[0].path.display(), findings[0].damage);
    assert_eq!(
        test_common::names(&setup.path("upper/.wh..wh.work")).iter().filter(|n| n.starts_with("tmp")).count(),
        0
    );
    let after = tree(&mount(setup));
    let paths = |tree: &BTreeMap<PathBuf, _>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(&before), paths(&after), "after a new mount");
    assert!(before == after, "contents or links differ after a new mount");
    guard.check();
}

/// Sets the flag at its drop, also at a panic, so that the other threads end.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Repeats `work` until the other threads have ended.
fn until(ended: &AtomicBool, mut work: impl FnMut(usize)) {
    for round in 0.. {
        work(round);
        if ended.load(Ordering::Relaxed) {
            return;
        }
    }
}

#[test]
fn directories_move_while_threads_work_below_them() {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    for number in 0..20 {
        put::file(&lower, &format!("from/dir/deep/stays{number}"), number.to_string());
    }
    put::dir(&lower, "to");
    // A merged directory.
    put::file(&setup.dir("upper"), "from/dir/deep/own", "own");
    let guard = LowerGuard::new([&lower]);
    let overlay = mount(&setup);
    let [from, to, dir, deep] = ["from", "to", "from/dir", "from/dir/deep"].map(|path| find(&overlay, path).unwrap());
    let ended = &AtomicBool::new(false);
    let made = thread::scope(|scope| {
        let (overlay, from, to, dir, deep) = (&overlay, &from, &to, &dir, &deep);
        scope.spawn(move || {
            let _ends = Ends(ended);
            for _ in 0..times(300) {
                overlay.rename(from, name("dir"), to, name("moved"), RenameMode::Replace).unwrap();
                overlay.rename(dir, name("deep"), dir, name("deeper"), RenameMode::NoReplace).unwrap();
                overlay.rename(to, name("moved"), from, name("dir"), RenameMode::Replace).unwrap();
                overlay.rename(dir, name("deeper"), dir, name("deep"), RenameMode::NoReplace).unwrap();
            }
        });
        scope.spawn(move || {
            until(ended, |_| {
                for path in ["from/dir", "to/moved", "from/dir/deep/stays3", "to/moved/deeper/stays3"] {
                    match find(overlay, path) {
                        Ok(node) => assert_eq!(node.kind() == Kind::Dir, path.ends_with(['r', 'd'])),
                        Err(error) => assert_eq!(error.errno, ENOENT, "{path}"),
                    }
                }
                let path = overlay.path(deep).unwrap();
                let known = ["from/dir/deep", "from/dir/deeper", "to/moved/deep", "to/moved/deeper"];
                assert!(known.iter().any(|known| path == Path::new(known)), "{path:?}");
            });
        });
        scope.spawn(move || {
            until(ended, |_| {
                let met = list(overlay, deep);
                for number in 0..20 {
                    assert_eq!(met.get(&format!("stays{number}")), Some(&1));
                }
            });
        });
        let maker = scope.spawn(move || {
            let mut made = 0;
            until(ended, |round| {
                let new = format!("new{round}");
                let file = overlay.create_file(deep, name(&new), 0o600, OWN).unwrap();
                overlay.write_at(&file, new.as_bytes(), 0).unwrap();
                let again = overlay.open(&overlay.lookup(deep, name(&new)).unwrap());
                assert_eq!(read(overlay, &again), new.as_bytes());
                if round % 2 == 0 {
                    overlay.unlink(deep, name(&new)).unwrap();
                }
                let stays = overlay.lookup(deep, name(&format!("stays{}", round % 20))).unwrap();
                overlay.set_mode(&stays, 0o600 + round as u32 % 8).unwrap();
                made = round;
            });
            made
        });
        maker.join().unwrap()
    });
    let left = 20 + 1 + made.div_ceil(2);
    assert_eq!(
        list(&overlay, &deep).len(),
        left,
        "the lasting files, those of the upper layer, and half of the new ones"
    );
    drop([from, to, dir, deep]);
    leave(overlay, &setup, &guard);
}

#[test]
fn files_are_copied_up_while_their_names_change() {
    for round in 0..times(20) {
        let setup = Setup::new();
        let lower = setup.dir("lower");
        let base: Vec<u8> = (0..LARGE).map(|index| (index / 4096) as u8 | 1).collect();
        put::file(&lower, "dir/large", &base);
        put::file(&lower, "dir/small", &base[..5000]);
        put::link(&lower, "dir/small", "other/linked");
        setup.dir("upper");
        let guard = LowerGuard::new([&lower]);
        let overlay = mount(&setup);
        let held = ["dir/large", "dir/small", "other/linked"].map(|path| overlay.open(&find(&overlay, path).unwrap()));
        thread::scope(|scope| {
            let (overlay, held) = (&overlay, &held);
            for number in 0..3u8 {
                // Each thread has its own bytes in every file. No other thread may lose them.
                scope.spawn(move || {
                    for step in 0..6usize {
                        for (file, large) in held.iter().zip([true, false, false]) {
                            let at = 100 * usize::from(number) + if large { step * 200_000 } else { step };
                            overlay.write_at(file, &[number], at as u64).unwrap();
                            let mut byte = [255];
                            assert_eq!(overlay.read_at(file, &mut byte, at as u64), Ok(1));
                            assert_eq!(byte, [number]);
                        }
                        overlay.set_mode(held[usize::from(number)].node(), 0o600 + step as u32).unwrap();
                    }
                });
            }
            scope.spawn(move || {
                overlay.sync(&held[round % 3]).unwrap();
                overlay.sync(&held[0]).unwrap();
            });
            scope.spawn(move || {
                let [dir, other] = ["dir", "other"].map(|path| find(overlay, path).unwrap());
                let (large, small) = (held[0].node(), held[1].node());
                match round % 5 {
                    0 => overlay.unlink(&dir, name("large")).unwrap(),
                    1 => overlay.rename(&dir, name("large"), &other, name("large"), RenameMode::Replace).unwrap(),
                    2 => {
                        overlay.rename(overlay.root(), name("dir"), &other, name("moved"), RenameMode::Replace).unwrap()
                    }
                    3 => overlay.link(large, &other, name("second")).unwrap(),
                    _ => overlay.rename(&other, name("linked"), &dir, name("large"), RenameMode::Replace).unwrap(),
                }
                match round % 4 {
                    0 => drop(overlay.unlink(&dir, name("small"))),
                    1 => drop(overlay.rename(&dir, name("small"), &other, name("small"), RenameMode::Replace)),
                    2 => drop(overlay.link(small, overlay.root(), name("third"))),
                    _ => {}
                }
            });
        });
        for (file, large) in held.iter().zip([true, false, false]) {
            let mut expected = if large { base.clone() } else { base[..5000].to_vec() };
            for number in 0..3u8 {
                for step in 0..6usize {
                    expected[100 * usize::from(number) + if large { step * 200_000 } else { step }] = number;
                }
            }
            assert!(read(&overlay, file) == expected, "round {round}: a write or the old content is lost");
        }
        drop(held);
        leave(overlay, &setup, &guard);
    }
}

#[test]
fn listings_meet_lasting_entries_under_all_changes() {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    for number in 0..100 {
        for kind in ["stays", "goes", "moves", "changes"] {
            put::file(&lower, &format!("dir/{kind}{number}"), "data");
        }
    }
    put::file(&setup.dir("upper"), "dir/own", "own");
    let guard = LowerGuard::new([&lower]);
    let overlay = mount(&setup);
    let dir = find(&overlay, "dir").unwrap();
    let ended = &AtomicBool::new(false);
    thread::scope(|scope| {
        let (overlay, dir) = (&overlay, &dir);
        let change = move |work: fn(&Merged, &Arc<Node<Layered>>, usize)| {
            move || {
                for number in 0..100 {
                    work(overlay, dir, number);
                }
            }
        };
        let changes = [
            scope.spawn(change(|overlay, dir, number| {
                overlay.unlink(dir, name(&format!("goes{number}"))).unwrap();
                drop(overlay.create_file(dir, name(&format!("comes{number}")), 0o600, OWN).unwrap());
            })),
            scope.spawn(change(|overlay, dir, number| {
                let (old, new) = (format!("moves{number}"), format!("moved{number}"));
                overlay.rename(dir, name(&old), overlay.root(), name(&new), RenameMode::Replace).unwrap();
                overlay.rename(overlay.root(), name(&new), dir, name(&new), RenameMode::Replace).unwrap();
            })),
            scope.spawn(change(|overlay, dir, number| {
                let file = overlay.lookup(dir, name(&format!("changes{number}"))).unwrap();
                overlay.write_at(&overlay.open(&file), b"more", 4).unwrap();
                overlay.link(&file, dir, name(&format!("linked{number}"))).unwrap();
            })),
        ];
        for _ in 0..2 {
            scope.spawn(move || {
                until(ended, |_| {
                    let met = list(overlay, dir);
                    for number in 0..100 {
                        for kind in ["stays", "changes"] {
                            assert_eq!(met.get(&format!("{kind}{number}")), Some(&1), "{kind}{number}");
                        }
                    }
                    assert!(met.values().all(|times| *times == 1));
                });
            });
        }
        let _ends = Ends(ended);
        for change in changes {
            change.join().unwrap();
        }
    });
    drop(dir);
    leave(overlay, &setup, &guard);
}

/// A reader that sees the new size reads the new data. A reader that sees a new byte sees the new
/// size.
#[test]
fn sizes_and_bytes_agree() {
    type Change = fn(&Merged, &Handle<Layered>, &Handle<Layered>);
    let changes: [(&str, bool, Change); 4] = [
        ("truncate", true, |overlay, file, _| overlay.truncate(file.node(), 10).unwrap()),
        ("truncate to a chunk", true, |overlay, file, _| overlay.truncate(file.node(), 1 << 16).unwrap()),
        ("copy_range", false, |overlay, file, from| {
            assert_eq!(overlay.copy_range(from, 0..10, file, 0).unwrap(), 10);
        }),
        ("allocate", false, |overlay, file, _| {
            overlay.allocate(file, Allocation::Reserve { keep_size: false }, 0..10).unwrap();
        }),
    ];
    for (what, shrinks, change) in changes {
        let setup = Setup::new();
        let lower = setup.dir("lower");
        put::file(&lower, "from", "some data to copy");
        let rounds = times(40);
        for round in 0..rounds {
            let file = std::fs::File::create(lower.join(format!("large{round}"))).unwrap();
            file.set_len(LARGE as u64).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"x", LARGE as u64 - 1).unwrap();
            put::file(&lower, &format!("small{round}"), "");
        }
        let guard = LowerGuard::new([&lower]);
        let overlay = &mount(&setup);
        let open = |path: &str| overlay.open(&find(overlay, path).unwrap());
        let from = &open("from");
        for round in 0..rounds {
            let file = &open(&format!("{}{round}", if shrinks { "large" } else { "small" }));
            if shrinks {
                overlay.write_at(file, b"y", 0).unwrap();
            }
            let (size, byte) = (
                || overlay.stat(file.node()).unwrap().size,
                |at: usize| overlay.read_at(file, &mut [0], at as u64).unwrap() == 1,
            );
            let before = size();
            let begun = &std::sync::Barrier::new(3);
            thread::scope(|scope| {
                scope.spawn(move || {
                    begun.wait();
                    change(overlay, file, from);
                });
                for _ in 0..2 {
                    scope.spawn(move || {
                        begun.wait();
                        while shrinks && size() == before {}
                        assert!(!shrinks || !byte(LARGE - 1), "{what}: a byte behind the reported end");
                        while !shrinks && !byte(0) {}
                        assert!(shrinks || size() > 0, "{what}: a byte of a file that is empty");
                    });
                }
            });
        }
        guard.check();
    }
}

/// Some directories are nested and some are not. Renames in both directions need two of them at
/// once.
#[test]
fn files_go_from_every_directory_to_every_other() {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    let paths = ["a", "a/b", "a/b/c", "d", "d/e"];
    for path in paths {
        put::file(&lower, &format!("{path}/stays"), path);
    }
    for number in 1..=4 {
        put::file(&lower, &format!("a/file{number}"), number.to_string());
    }
    setup.dir("upper");
    let guard = LowerGuard::new([&lower]);
    let overlay = mount(&setup);
    let dirs = paths.map(|path| find(&overlay, path).unwrap());
    let ended = &AtomicBool::new(false);
    thread::scope(|scope| {
        let (overlay, dirs) = (&overlay, &dirs);
        let movers = [1, 2, 3, 4].map(|number| {
            scope.spawn(move || {
                let file = format!("file{number}");
                let held = overlay.open(&overlay.lookup(&dirs[0], name(&file)).unwrap());
                for round in 0..times(50) {
                    // Each mover has another step. The number of directories is prime, so each one
                    // visits all of them.
                    let [from, to] = [round, round + 1].map(|round| &dirs[round * number % dirs.len()]);
                    overlay.rename(from, name(&file), to, name(&file), RenameMode::NoReplace).unwrap();
                    assert_eq!(overlay.lookup(to, name(&file)).unwrap().id(), held.node().id());
                    assert_eq!(overlay.stat(held.node()).unwrap().nlink, 1);
                    assert_eq!(read(overlay, &held), number.to_string().as_bytes());
                    // Each mover also replaces `new` of the other movers.
                    overlay.create_file(to, name(&format!("new{number}")), 0o600, OWN).unwrap();
                    let new = name("new");
                    overlay.rename(to, name(&format!("new{number}")), from, new, RenameMode::Replace).unwrap();
                }
            })
        });
        scope.spawn(move || {
            until(ended, |round| {
                let (parent, dir) = (&dirs[round % 3], name("dir"));
                overlay.create_dir(parent, dir, 0o700, OWN).unwrap();
                overlay.remove_dir(parent, dir).unwrap();
                let inside = ["b", "c"][round % 2];
                let kept = overlay.remove_dir(&dirs[round % 2], name(inside));
                assert_eq!(kept.unwrap_err().errno, ENOTEMPTY);
                assert_eq!(list(overlay, parent).get("stays"), Some(&1));
            });
        });
        let _ends = Ends(ended);
        for mover in movers {
            mover.join().unwrap();
        }
    });
    let tree = tree(&overlay);
    let ends_with = |file: &str| tree.keys().filter(|path| path.file_name() == Some(name(file))).count();
    assert_eq!(["file1", "file2", "file3", "file4", "new"].map(ends_with), [1, 1, 1, 1, dirs.len()]);
    drop(dirs);
    leave(overlay, &setup, &guard);
}

/// A program asks for everything to be complete while the daemon does that in a pause.
#[test]
fn two_threads_complete_everything_at_once() {
    let setup = Setup::in_memory();
    let lower = setup.dir("lower");
    setup.dir("upper");
    let rounds = times(60);
    for round in 0..rounds {
        File::create(lower.join(round.to_string())).unwrap().set_len(2 << 20).unwrap();
    }
    let overlay = mount(&setup);
    for round in 0..rounds {
        let file = overlay.open(&find(&overlay, &round.to_string()).unwrap());
        overlay.write_at(&file, b"new", 0).unwrap();
        let barrier = Barrier::new(2);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    barrier.wait();
                    overlay.complete_and_sync().unwrap();
                });
            }
        });
        assert!(setup.path(&format!("upper/{round}")).exists());
    }
}

/// Several threads make the first devices of a layer at once. Such devices were deletions until
/// then.
#[test]
fn the_first_devices_of_a_layer_stay() {
    const DEVICES: [&str; 4] = ["a", "b", "c", "d"];
    for _ in 0..times(300) {
        let setup = Setup::in_memory();
        ["lower", "upper"].iter().for_each(|name| drop(setup.dir(name)));
        let overlay = mount(&setup);
        let barrier = Barrier::new(DEVICES.len());
        thread::scope(|scope| {
            for device in DEVICES {
                let (overlay, barrier) = (&overlay, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    overlay.create_node(overlay.root(), name(device), Kind::CharDev, 0o600, 0, OWN).unwrap();
                });
            }
        });
        drop(overlay);
        let overlay = mount(&setup);
        for device in DEVICES {
            assert!(find(&overlay, device).is_ok(), "{device} is gone in the next mount");
        }
    }
}
