//! The engine at limits that random operations do not reach: very many layers, very large
//! directories, several threads.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use overlayfs::layer::counted::{Counted, Counts, Method};
use overlayfs::layer::{Kind, OsLayer, Owner, RenameMode, Time};
use overlayfs::options::Options;
use overlayfs::overlay::{Layers, Node, Overlay};
use test_common::{LowerGuard, Setup, put};

type Counting = Counted<OsLayer>;

const OWN: Owner = Owner { uid: 0, gid: 0 };

/// Mounts an overlay of the directories `upper` and `lower0`, `lower1`, … of a setup.
fn mount(setup: &Setup, lowers: usize) -> (Overlay<Counting>, Counts) {
    let counts = Counts::default();
    let open = |name: &str, for_writing| Counted::new(OsLayer::open(&setup.dir(name), for_writing).unwrap(), &counts);
    let lowers = (0..lowers).map(|number| open(&format!("lower{number}"), false)).collect();
    let overlay = Overlay::new(Layers { upper: Some(open("upper", true)), work: None, lowers }).unwrap();
    counts.take();
    (overlay, counts)
}

fn find(overlay: &Overlay<Counting>, path: &str) -> Arc<Node<Counting>> {
    path.split('/').fold(overlay.root().clone(), |dir, name| overlay.lookup(&dir, OsStr::new(name)).unwrap())
}

fn names(overlay: &Overlay<Counting>, dir: &Arc<Node<Counting>>) -> Vec<String> {
    let mut names = Vec::new();
    let add = &mut |entry: overlayfs::overlay::DirEntry<'_>| {
        names.push(entry.name.to_str().unwrap().to_owned());
        true
    };
    overlay.list(&overlay.open(dir), 0, add).unwrap();
    names
}

/// Lists a directory in pieces of `size`. Panics if a name comes twice.
fn in_pieces(overlay: &Overlay<Counting>, dir: &Arc<Node<Counting>>, size: usize) -> HashSet<String> {
    let handle = overlay.open(dir);
    let (mut seen, mut after) = (HashSet::new(), 0);
    loop {
        let mut piece = 0;
        let from = after;
        let list = &mut |entry: overlayfs::overlay::DirEntry<'_>| {
            assert!(seen.insert(entry.name.to_str().unwrap().to_owned()), "{:?} twice", entry.name);
            after = entry.offset;
            piece += 1;
            piece < size
        };
        overlay.list(&handle, from, list).unwrap();
        if piece == 0 {
            return seen;
        }
    }
}

fn read(overlay: &Overlay<Counting>, path: &str) -> String {
    let mut bytes = vec![0; 100];
    let read = overlay.read_at(&overlay.open(&find(overlay, path)), &mut bytes, 0).unwrap();
    String::from_utf8(bytes[..read].to_vec()).unwrap()
}

#[test]
fn five_hundred_lower_layers_merge() {
    let setup = Setup::new();
    for number in 0..500 {
        let dir = setup.dir(&format!("lower{number}/d/deep"));
        fs::write(dir.join(format!("own{number}")), number.to_string()).unwrap();
        fs::write(dir.join("shared"), number.to_string()).unwrap();
    }
    let guard = LowerGuard::new((0..500).map(|number| setup.path(&format!("lower{number}"))));
    let (overlay, _) = mount(&setup, 500);
    assert_eq!(names(&overlay, &find(&overlay, "d/deep")).len(), 501);
    assert_eq!(read(&overlay, "d/deep/shared"), "0", "the topmost layer shows");
    assert_eq!(read(&overlay, "d/deep/own499"), "499");
    let deep = find(&overlay, "d/deep");
    overlay.unlink(&deep, OsStr::new("shared")).unwrap();
    let root = overlay.root().clone();
    overlay.rename(&root, OsStr::new("d"), &root, OsStr::new("moved"), RenameMode::Replace).unwrap();
    drop(overlay);
    let (overlay, _) = mount(&setup, 500);
    assert_eq!(names(&overlay, &find(&overlay, "moved/deep")).len(), 500);
    guard.check();
}

#[test]
fn directories_with_names_of_marks() {
    let setup = Setup::new();
    for layer in ["upper", "lower0"] {
        setup.dir(&format!("{layer}/d/.wh..wh.redirect"));
        setup.dir(&format!("{layer}/.wh..wh.long.{}", "0".repeat(32)));
    }
    setup.dir("lower0/.wh..wh.part.big");
    setup.dir("upper/d/.wh..wh.part.big");
    setup.dir("upper/d/.wh..wh.map.big");
    put::file(&setup.path("lower0"), "d/big", "by an unreadable redirect");
    put::file(&setup.path("lower0"), "big", vec![b'b'; 2 << 20]);
    let guard = LowerGuard::new([setup.path("lower0")]);
    let (overlay, _) = mount(&setup, 1);
    let mut shown = names(&overlay, overlay.root());
    shown.sort();
    assert_eq!(shown, ["big", "d"]);
    assert_eq!(names(&overlay, &find(&overlay, "d")), [""; 0]);
    let big = overlay.open(&find(&overlay, "big"));
    overlay.write_at(&big, b"changed", 0).unwrap();
    drop((big, overlay));
    let (overlay, _) = mount(&setup, 1);
    assert!(read(&overlay, "big").starts_with("changedbbb"));
    guard.check();
}

#[test]
fn a_large_directory_is_read_once_and_listed_whole() {
    const ENTRIES: usize = 50_000;
    let setup = Setup::new();
    let (lower, upper) = (setup.dir("lower0/d"), setup.dir("upper/d"));
    for number in 0..ENTRIES {
        fs::write(lower.join(format!("l{number}")), "").unwrap();
        fs::write(upper.join(format!("u{number}")), "").unwrap();
    }
    let (overlay, counts) = mount(&setup, 1);
    let dir = find(&overlay, "d");
    let seen = in_pieces(&overlay, &dir, 1000);
    assert_eq!(seen.len(), 2 * ENTRIES);
    for number in (0..ENTRIES).step_by(10) {
        assert!(overlay.lookup(&dir, OsStr::new(&format!("missing{number}"))).is_err());
    }
    let calls = counts.take();
    assert!(calls.total() < 20, "as many calls as for a small directory: {calls}");
}

/// The change that is made to each name during the listing.
type ToEach = fn(&Overlay<Counting>, &Arc<Node<Counting>>, &str);

/// A listing ends, however many names come and go meanwhile.
#[test]
fn a_listing_ends_under_all_changes() {
    const ENTRIES: usize = 1000;
    let to_each: [(&str, ToEach); 4] = [
        ("renamed and back", |overlay, dir, name| {
            for (from, to) in [(name, "tmp"), ("tmp", name)] {
                overlay.rename(dir, OsStr::new(from), dir, OsStr::new(to), RenameMode::Replace).unwrap();
            }
        }),
        ("removed and made again", |overlay, dir, name| {
            overlay.unlink(dir, OsStr::new(name)).unwrap();
            drop(overlay.create_file(dir, OsStr::new(name), 0o600, OWN).unwrap());
        }),
        ("renamed to a longer name", |overlay, dir, name| {
            let longer = format!("{name}x");
            overlay.rename(dir, OsStr::new(name), dir, OsStr::new(&longer), RenameMode::Replace).unwrap();
        }),
        ("linked", |overlay, dir, name| {
            let file = overlay.lookup(dir, OsStr::new(name)).unwrap();
            overlay.link(&file, dir, OsStr::new(&format!("{name}x"))).unwrap();
        }),
    ];
    for (what, change) in to_each {
        let setup = Setup::new();
        (0..ENTRIES / 2).for_each(|number| drop(put::file(&setup.dir("lower0/d"), &format!("l{number}"), "")));
        (0..ENTRIES / 2).for_each(|number| drop(put::file(&setup.dir("upper/d"), &format!("u{number}"), "")));
        let (overlay, _) = mount(&setup, 1);
        let dir = find(&overlay, "d");
        let handle = overlay.open(&dir);
        let (mut met, mut after) = (HashMap::<String, usize>::new(), 0);
        loop {
            let mut names = Vec::new();
            let from = after;
            let each = &mut |entry: overlayfs::overlay::DirEntry<'_>| {
                names.push(entry.name.to_str().unwrap().to_owned());
                after = entry.offset;
                names.len() < 10
            };
            overlay.list(&handle, from, each).unwrap();
            if names.is_empty() {
                break;
            }
            for name in names {
                *met.entry(name.clone()).or_default() += 1;
                change(&overlay, &dir, &name);
            }
            assert!(met.values().sum::<usize>() < 4 * ENTRIES, "{what}: a listing has no end");
        }
        let old = |name: &&String| name.trim_end_matches('x') == name.as_str();
        assert_eq!(met.keys().filter(old).count(), ENTRIES, "{what}: every old entry was met");
        let twice: Vec<_> = met.iter().filter(|(name, times)| *name != "tmp" && **times != 1).collect();
        assert!(twice.is_empty(), "{what}: {twice:?}");
    }
}

/// The offsets of a listing stay valid in the next mount.
#[test]
fn a_listing_continues_in_the_next_mount() {
    let setup = Setup::new();
    (0..100).for_each(|number| drop(put::file(&setup.dir("lower0/d"), &format!("l{number}"), "")));
    (0..100).for_each(|number| drop(put::file(&setup.dir("upper/d"), &format!("u{number}"), "")));
    let (mut met, mut after) = (HashSet::new(), 0);
    for mount_number in 0.. {
        let (overlay, _) = mount(&setup, 1);
        let dir = find(&overlay, "d");
        let (from, before) = (after, met.len());
        let each = &mut |entry: overlayfs::overlay::DirEntry<'_>| {
            let name = entry.name.to_str().unwrap().to_owned();
            assert!(name.starts_with("new") || met.insert(name), "{:?} twice", entry.name);
            after = entry.offset;
            met.len() < before + 30
        };
        overlay.list(&overlay.open(&dir), from, each).unwrap();
        if met.len() == before {
            break;
        }
        drop(overlay.create_file(&dir, OsStr::new(&format!("new{mount_number}")), 0o600, OWN).unwrap());
    }
    assert_eq!(met.len(), 200);
}

#[test]
fn a_tree_deeper_than_any_stack_is_dropped() {
    const DEPTH: usize = 2000;
    const STACK: usize = 200 << 10;
    let setup = Setup::new();
    let (overlay, _) = mount(&setup, 1);
    // From the bottom to the top, since no path is long enough for the whole depth.
    let root = overlay.root().clone();
    overlay.create_dir(&root, OsStr::new("d"), 0o700, OWN).unwrap();
    for _ in 0..DEPTH {
        let above = overlay.create_dir(&root, OsStr::new("new"), 0o700, OWN).unwrap();
        overlay.rename(&root, OsStr::new("d"), &above, OsStr::new("d"), RenameMode::Replace).unwrap();
        overlay.rename(&root, OsStr::new("new"), &root, OsStr::new("d"), RenameMode::Replace).unwrap();
    }
    drop(root);
    let ends = std::thread::Builder::new().stack_size(STACK).spawn(move || drop(overlay));
    ends.unwrap().join().unwrap();
    remove_deep(&setup.path("upper"), "d");
}

/// Removes a tree of any depth.
fn remove_deep(dir: &Path, name: &str) {
    loop {
        let inner = dir.join(name).join("d");
        if !inner.exists() {
            return fs::remove_dir(dir.join(name)).unwrap();
        }
        fs::rename(inner, dir.join("inner")).unwrap();
        fs::remove_dir(dir.join(name)).unwrap();
        fs::rename(dir.join("inner"), dir.join(name)).unwrap();
    }
}

#[test]
fn a_listing_meets_a_lasting_entry_exactly_once() {
    let setup = Setup::new();
    let (lower, upper) = (setup.dir("lower0/d"), setup.dir("upper/d"));
    for number in 0..500 {
        fs::write(lower.join(format!("stays{number}")), "").unwrap();
        fs::write(upper.join(format!("stays-too{number}")), "").unwrap();
        fs::write(lower.join(format!("goes{number}")), "").unwrap();
    }
    let (overlay, _) = mount(&setup, 1);
    let (dir, done) = (find(&overlay, "d"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..500 {
                let (old, new) = (format!("goes{number}"), format!("came{number}"));
                overlay.create_file(&dir, OsStr::new(&new), 0o600, OWN).unwrap();
                match number % 2 {
                    0 => overlay.unlink(&dir, OsStr::new(&old)).unwrap(),
                    _ => {
                        let new = format!("renamed{number}");
                        overlay.rename(&dir, OsStr::new(&old), &dir, OsStr::new(&new), RenameMode::Replace).unwrap();
                    }
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            let seen = in_pieces(&overlay, &dir, 7);
            let stayed = seen.iter().filter(|name| name.starts_with("stays")).count();
            assert_eq!(stayed, 1000);
        }
    });
}

#[test]
fn threads_copy_up_different_files_at_once_and_the_same_file_once() {
    let setup = Setup::new();
    let lower = setup.dir("lower0/d");
    for number in 0..8 {
        fs::write(lower.join(format!("own{number}")), vec![b'x'; 1 << 20]).unwrap();
    }
    fs::write(lower.join("shared"), vec![b'x'; 8 << 20]).unwrap();
    let guard = LowerGuard::new([setup.path("lower0")]);
    let (overlay, counts) = mount(&setup, 1);
    let (overlay, barrier) = (&overlay, &Barrier::new(8));
    std::thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                let shared = overlay.open(&find(overlay, "d/shared"));
                let own = overlay.open(&find(overlay, &format!("d/own{number}")));
                barrier.wait();
                overlay.write_at(&shared, &[b'0' + number], u64::from(number)).unwrap();
                overlay.write_at(&own, b"y", 0).unwrap();
            });
        }
    });
    assert_eq!(&read(overlay, "d/shared")[..9], "01234567x");
    assert_eq!(&read(overlay, "d/own3")[..2], "yx");
    let made = counts.take();
    assert_eq!(
        made.of(Method::CreateFile) + made.of(Method::CreateEmpty),
        9 + 9 + 2,
        "each of the 9 files was copied once; maps; the mark of them; the record of the mark"
    );
    overlay.sync(&overlay.open(&find(overlay, "d/shared"))).unwrap();
    assert_eq!(fs::metadata(setup.path("upper/d/shared")).unwrap().len(), 8 << 20);
    guard.check();
}

#[test]
fn copies_keep_attributes() {
    let setup = Setup::new();
    let lower = setup.dir("lower0/d");
    let file = fs::File::create(lower.join("holes")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", 64 << 20).unwrap();
    test_common::owner(&lower.join("holes"), 1000, 1001);
    test_common::mode(&lower.join("holes"), 0o6751);
    test_common::times(&lower.join("holes"), (11, 111), (22, 222));
    test_common::mode(&lower, 0o1770);
    test_common::times(&lower, (33, 333), (44, 444));
    let guard = LowerGuard::new([setup.path("lower0")]);
    let (overlay, _) = mount(&setup, 1);
    let (dir, node) = (find(&overlay, "d"), find(&overlay, "d/holes"));
    let before = (overlay.stat(&dir).unwrap(), overlay.stat(&node).unwrap());
    // A link copies the file up, and changes nothing but the link count.
    overlay.link(&node, overlay.root(), OsStr::new("second")).unwrap();
    let (dir, node) = (overlay.stat(&dir).unwrap(), overlay.stat(&node).unwrap());
    assert_eq!((node.mode, node.uid, node.gid, node.nlink), (0o6751, 1000, 1001, 2));
    assert_eq!((node.atime, node.mtime), (Time { sec: 11, nsec: 111 }, Time { sec: 22, nsec: 222 }));
    assert_eq!((node.size, node.ino), (before.1.size, before.1.ino));
    assert!(node.blocks < 1000, "the hole is kept: {} blocks", node.blocks);
    assert_eq!((dir.mode, dir.atime, dir.mtime, dir.ino), (0o1770, before.0.atime, before.0.mtime, before.0.ino));
    guard.check();
}

#[test]
fn leftovers_of_a_crash_in_the_work_directory_are_removed() {
    let setup = Setup::new();
    setup.dir("lower0");
    let work = setup.dir("upper/.wh..wh.work");
    fs::write(work.join("tmp.7"), "half a copy").unwrap();
    fs::create_dir(work.join("tmp.8")).unwrap();
    fs::write(work.join("tmp.8/.wh..wh..opq"), "").unwrap();
    let (overlay, _) = mount(&setup, 1);
    assert_eq!(test_common::names(&work), ["numbers", "record"]);
    assert!(names(&overlay, overlay.root()).is_empty());
}

/// The engine empties a work directory, so it must refuse a directory with documents of the user.
#[test]
fn a_work_directory_with_foreign_files_is_refused_and_unchanged() {
    let setup = Setup::new();
    let (lower, upper, work) = (setup.dir("lower0"), setup.dir("upper"), setup.dir("work"));
    fs::write(work.join("letter"), "dear").unwrap();
    let options = Options { lowers: vec![lower], upper: Some(upper), work: Some(work.clone()), ..Options::default() };
    let said = overlayfs::mount::mount(&options).err().unwrap().to_string();
    assert!(said.contains("letter is in the work directory") && said.contains(work.to_str().unwrap()), "{said}");
    assert_eq!(fs::read_to_string(work.join("letter")).unwrap(), "dear");
}

#[test]
fn threads_with_all_operations_end() {
    let setup = Setup::new();
    for dir in ["a", "b", "c"] {
        let dir = setup.dir(&format!("lower0/{dir}"));
        for number in 0..10 {
            fs::write(dir.join(format!("f{number}")), "data").unwrap();
        }
    }
    let guard = LowerGuard::new([setup.path("lower0")]);
    let (overlay, _) = mount(&setup, 1);
    let shared = &overlay;
    std::thread::scope(|scope| {
        for thread in 0..8usize {
            scope.spawn(move || {
                let dirs = ["a", "b", "c"].map(|name| find(shared, name));
                for step in 0..400usize {
                    let pick = |salt: usize| (thread * 31 + step * 17 + salt * 7) % 30;
                    let place = |salt: usize| (&dirs[pick(salt) % 3], format!("f{}", pick(salt) / 3));
                    let ((dir, name), (to, new)) = (place(1), place(2));
                    let (name, new) = (OsStr::new(&name), OsStr::new(&new));
                    // An operation may fail if another thread was faster. None may hang, and the
                    // tree must be whole afterwards.
                    let _ = match step % 6 {
                        0 => shared.create_file(dir, name, 0o600, OWN).map(drop),
                        1 => shared.rename(dir, name, to, new, RenameMode::Replace),
                        2 => shared.unlink(dir, name),
                        3 => shared.lookup(dir, name).and_then(|node| shared.link(&node, to, new)),
                        4 => shared
                            .lookup(dir, name)
                            .and_then(|node| shared.write_at(&shared.open(&node), b"data", 0).map(drop)),
                        _ => shared.list(&shared.open(dir), 0, &mut |_| true),
                    };
                }
            });
        }
    });
    let tree = |overlay: &Overlay<Counting>| {
        ["a", "b", "c"].map(|dir| {
            let names: HashSet<_> = names(overlay, &find(overlay, dir)).into_iter().collect();
            for name in &names {
                let path = format!("{dir}/{name}");
                assert_eq!(find(overlay, &path).kind(), Kind::File);
                assert!(matches!(&*read(overlay, &path), "" | "data"), "{path} is half of something");
            }
            names
        })
    };
    let before = tree(&overlay);
    drop(overlay);
    let (overlay, _) = mount(&setup, 1);
    assert_eq!(tree(&overlay), before, "after a remount");
    guard.check();
}
