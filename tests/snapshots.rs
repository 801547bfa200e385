//! Snapshots and rollbacks with the daemon ended, and with a failure, at each call of a layer.
//!
//! Needs root.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use overlayfs::errno::{EIO, ESTALE};
use overlayfs::layer::counted::{Counted, Counts, Fault};
use overlayfs::layer::{Kind, OsLayer, Owner, RenameMode, Stat, XattrMode};
use overlayfs::overlay::{DirEntry, Handle, Layers, Node, Overlay, Settings, Unfrozen};
use test_common::{Setup, put};

type Counting = Counted<OsLayer>;
type Engine = Overlay<Counting>;

const OWN: Owner = Owner { uid: 0, gid: 0 };

/// A setup with lower files, of which two are one.
fn setup() -> Setup {
    let setup = Setup::in_memory();
    let lower = setup.dir("lower");
    put::file(&lower, "dir/file", "old");
    put::file(&lower, "one", "both");
    fs::hard_link(lower.join("one"), lower.join("other")).unwrap();
    ["upper", "work", "snapshots"].iter().for_each(|name| drop(setup.dir(name)));
    setup
}

fn mount(setup: &Setup, counts: &Counts) -> Engine {
    let paths = ["upper", "work", "snapshots"].map(|name| setup.path(name));
    let opened = OsLayer::open_together(&paths.each_ref().map(PathBuf::as_path)).unwrap();
    let mut opened = opened.into_iter().map(|layer| Counted::new(layer, counts));
    let mut next = || opened.next().unwrap();
    let (upper, work, snapshots) = (next(), next(), next());
    let lowers = vec![Counted::new(OsLayer::open(&setup.path("lower"), false).unwrap(), counts)];
    let layers = Layers { upper: Some(upper), work: Some(work), lowers };
    Overlay::with_snapshots(layers, snapshots, Settings::default()).unwrap_or_else(|refused| panic!("{refused}"))
}

fn find(overlay: &Engine, path: &str) -> Arc<Node<Counting>> {
    path.split('/').fold(overlay.root().clone(), |dir, name| overlay.lookup(&dir, OsStr::new(name)).unwrap())
}

fn read(overlay: &Engine, handle: &Handle<Counting>) -> Vec<u8> {
    let mut bytes = vec![0; 100];
    let read = overlay.read_at(handle, &mut bytes, 0).unwrap();
    bytes.truncate(read);
    bytes
}

fn write(overlay: &Engine, path: &str, text: &str) {
    let handle = overlay.open(&find(overlay, path));
    overlay.truncate(handle.node(), 0).unwrap();
    overlay.write_at(&handle, text.as_bytes(), 0).unwrap();
}

/// Returns number, links and content of each path.
fn tree(overlay: &Engine) -> BTreeMap<String, (u64, u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![(overlay.root().clone(), String::new())];
    while let Some((dir, path)) = dirs.pop() {
        let mut names = Vec::new();
        let add = &mut |entry: DirEntry<'_>| {
            names.push(entry.name.to_owned());
            true
        };
        overlay.list(&overlay.open(&dir), 0, add).unwrap();
        for name in names {
            let node = overlay.lookup(&dir, &name).unwrap();
            let stat = overlay.stat(&node).unwrap();
            let path = format!("{path}/{}", name.display());
            let content = if stat.kind == Kind::File { read(overlay, &overlay.open(&node)) } else { Vec::new() };
            found.insert(path.clone(), (stat.ino, stat.nlink, content));
            if stat.kind == Kind::Dir {
                dirs.push((node, path));
            }
        }
    }
    found
}

/// The objects that a front end has open: one with a name, and one without.
struct Held {
    named: Handle<Counting>,
    nameless: Handle<Counting>,
}

/// Makes changes of several sorts, and opens objects.
fn work(overlay: &Engine) -> Held {
    write(overlay, "one", "by one name");
    write(overlay, "dir/file", "new");
    overlay.create_file(overlay.root(), OsStr::new("made"), 0o640, OWN).unwrap();
    let gone = overlay.create_file(overlay.root(), OsStr::new("gone"), 0o640, OWN).unwrap();
    overlay.write_at(&gone, b"nameless", 0).unwrap();
    overlay.unlink(overlay.root(), OsStr::new("gone")).unwrap();
    overlay.complete_and_sync().unwrap();
    Held { named: overlay.open(&find(overlay, "dir/file")), nameless: gone }
}

fn snapshot(overlay: &Engine, held: &Held) -> Result<Engine, Unfrozen> {
    overlay.snapshot(Some("s"), &[held.named.node().clone(), held.nameless.node().clone()])
}

/// Checks that the objects go on in the overlay that followed.
fn go_on(overlay: &Engine, held: &Held) {
    let again = |handle: &Handle<Counting>| overlay.find_again(handle.node().id()).unwrap();
    assert_eq!(read(overlay, &again(&held.nameless)), b"nameless");
    // A rename between the handover and the use of the object.
    let root = overlay.root();
    overlay.rename(root, OsStr::new("dir"), root, OsStr::new("moved"), RenameMode::Replace).unwrap();
    let named = again(&held.named);
    assert_eq!(read(overlay, &named), b"new");
    overlay.write_at(&named, b"NEW", 0).unwrap();
    assert_eq!(read(overlay, &overlay.open(&find(overlay, "moved/file"))), b"NEW");
}

#[test]
fn a_crash_at_each_call_leaves_the_state_before_or_after() {
    let (mut before, mut after) = (0, 0);
    for calls in 0.. {
        let (setup, counts) = (setup(), Counts::default());
        let overlay = mount(&setup, &counts);
        let held = work(&overlay);
        let expected = tree(&overlay);
        counts.stop_after(calls);
        let made = snapshot(&overlay, &held);
        let is_made = made.is_ok();
        let is_struck = counts.struck().is_some();
        drop((held, made, overlay));
        counts.stop_after(u64::MAX);
        let overlay = mount(&setup, &counts);
        assert_eq!(tree(&overlay), expected, "after {calls} calls");
        let count = overlay.snapshots().len();
        assert!(count == 1 || count == 0 && !is_made, "{count} snapshots after {calls} calls");
        if count == 0 {
            before += 1
        } else {
            after += 1
        }
        // It works.
        write(&overlay, "other", "by the other name");
        assert_eq!(tree(&overlay)["/one"].2, b"by the other name");
        if !is_struck {
            break;
        }
    }
    assert!(before > 10 && after > 1, "{before} before, {after} after");
}

#[test]
fn a_failure_of_each_call_leaves_a_working_overlay() {
    for calls in 0.. {
        let (setup, counts) = (setup(), Counts::default());
        let overlay = mount(&setup, &counts);
        let held = work(&overlay);
        let expected = tree(&overlay);
        counts.fault_after(calls, Fault::Errno(EIO));
        let made = snapshot(&overlay, &held);
        let is_struck = counts.struck().is_some();
        counts.fault_after(u64::MAX, Fault::Stop);
        let next = made.unwrap_or_else(|_| {
            assert_eq!(tree(&overlay), expected, "after a failure of call {calls}");
            assert_eq!(read(&overlay, &held.nameless), b"nameless");
            snapshot(&overlay, &held).unwrap_or_else(|error| panic!("call {calls}: {error}"))
        });
        assert_eq!(tree(&next), expected, "after a failure of call {calls}");
        go_on(&next, &held);
        drop((held, overlay, next));
        assert_eq!(mount(&setup, &counts).snapshots().len(), 1);
        if !is_struck {
            break;
        }
    }
}

#[test]
fn a_crash_of_a_rollback_leaves_the_state_before_or_after() {
    let (mut before, mut after) = (0, 0);
    for calls in 0.. {
        let (setup, counts) = (setup(), Counts::default());
        let overlay = mount(&setup, &counts);
        let held = work(&overlay);
        let frozen = tree(&overlay);
        let next = snapshot(&overlay, &held).unwrap();
        drop((held, overlay));
        write(&next, "dir/file", "newer");
        next.unlink(next.root(), OsStr::new("one")).unwrap();
        next.complete_and_sync().unwrap();
        let changed = tree(&next);
        let known = [find(&next, "dir")];
        counts.stop_after(calls);
        let made = next.roll_back(&known);
        let (is_made, is_struck) = (made.is_ok(), counts.struck().is_some());
        drop((made, known, next));
        counts.stop_after(u64::MAX);
        let found = tree(&mount(&setup, &counts));
        assert!(found == frozen || found == changed && !is_made, "after {calls} calls: {found:?}");
        if found == frozen {
            after += 1
        } else {
            before += 1
        }
        if !is_struck {
            break;
        }
    }
    assert!(before > 10 && after > 1, "{before} before, {after} after");
}

#[test]
fn a_rollback_keeps_what_it_does_not_change() {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts);
    let held = work(&overlay);
    let next = snapshot(&overlay, &held).unwrap();
    let (kept, changed) = (next.open(&find(&next, "made")), next.open(&find(&next, "dir/file")));
    let dir = next.open(&find(&next, "dir"));
    next.write_at(&changed, b"newer", 0).unwrap();
    let nodes = [&kept, &changed, &dir].map(|handle| handle.node().clone());
    next.complete_and_sync().unwrap();
    let back = next.roll_back(&nodes).unwrap();
    assert!(!back.has_earlier() || back.find_again(kept.node().id()).is_ok());
    assert!(Arc::ptr_eq(back.find_again(dir.node().id()).unwrap().node(), &find(&back, "dir")));
    assert_eq!(back.find_again(changed.node().id()).err().map(|error| error.errno), Some(ESTALE));
    assert_eq!(read(&back, &back.open(&find(&back, "dir/file"))), b"new");
}

#[test]
fn a_rollback_shows_the_root_of_the_snapshot() {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts);
    overlay.set_mode(overlay.root(), 0o710).unwrap();
    overlay.set_xattr(overlay.root(), OsStr::new("user.kept"), b"1", XattrMode::Create).unwrap();
    let next = overlay.snapshot(None, &[]).unwrap();
    next.set_mode(next.root(), 0o705).unwrap();
    next.set_xattr(next.root(), OsStr::new("user.dropped"), b"1", XattrMode::Create).unwrap();
    let back = next.roll_back(&[]).unwrap();
    assert_eq!(back.stat(back.root()).unwrap().mode & 0o7777, 0o710);
    assert_eq!(back.xattrs(back.root()).unwrap(), [OsStr::new("user.kept")]);
}

/// Two directories changed places. A rollback shows each at its old place, so a path of before
/// leads to the other one and to other files in it. All of them go on.
#[test]
fn a_rollback_takes_no_object_for_another() {
    let (setup, counts) = (setup(), Counts::default());
    put::file(&setup.path("lower"), "second/file", "of the second one");
    let overlay = mount(&setup, &counts);
    let next = overlay.snapshot(None, &[]).unwrap();
    let paths = ["dir", "second", "dir/file", "second/file"];
    let held = paths.map(|path| next.open(&find(&next, path)));
    let root = next.root();
    next.rename(root, OsStr::new("dir"), root, OsStr::new("second"), RenameMode::Exchange).unwrap();
    let back = next.roll_back(&held.each_ref().map(|handle| handle.node().clone())).unwrap();
    for (path, handle) in paths.iter().zip(&held) {
        let found = back.find_again(handle.node().id()).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(Arc::ptr_eq(found.node(), &find(&back, path)), "{path} is another object");
    }
}

/// A file with two names goes on after a rollback if it has one before and after, also one that no
/// lookup has met. Its directory moved meanwhile.
#[test]
fn a_rollback_keeps_a_file_that_has_lost_a_name() {
    let cases: [([&[&str]; 2], bool); 6] = [
        ([&[], &[]], true),
        ([&[], &["one"]], true),
        ([&[], &["other"]], true),
        ([&[], &["one", "other"]], false),
        ([&["one"], &[]], true),
        ([&["one", "other"], &[]], false),
    ];
    for (([before, since], stays), is_copied) in cases.into_iter().flat_map(|case| [(case, false), (case, true)]) {
        let case = format!("{before:?} before the snapshot, {since:?} since then, copied: {is_copied}");
        let (setup, counts) = (setup(), Counts::default());
        let lower = setup.path("lower");
        ["one", "other"].iter().for_each(|name| fs::rename(lower.join(name), lower.join("dir").join(name)).unwrap());
        let remove = |overlay: &Engine, names: &[&str]| {
            names.iter().for_each(|name| overlay.unlink(&find(overlay, "dir"), OsStr::new(name)).unwrap());
            overlay.complete_and_sync().unwrap();
        };
        let overlay = mount(&setup, &counts);
        let held = overlay.open(&find(&overlay, "dir/one"));
        let id = held.node().id();
        if is_copied {
            overlay.write_at(&held, b"copy", 0).unwrap();
        }
        remove(&overlay, before);
        let next = overlay.snapshot(None, &[held.node().clone()]).unwrap();
        drop((held, overlay));
        let held = next.find_again(id).unwrap();
        let expected = (next.stat(held.node()).unwrap(), read(&next, &held));
        remove(&next, since);
        let root = next.root();
        next.rename(root, OsStr::new("dir"), root, OsStr::new("moved"), RenameMode::Replace).unwrap();
        let back = next.roll_back(&[held.node().clone()]).unwrap();
        drop((held, next));
        let found = back.find_again(id);
        assert_eq!(found.as_ref().err().map(|error| error.errno), (!stays).then_some(ESTALE), "{case}");
        let Ok(held) = found else { continue };
        let facts = |(stat, content): (Stat, Vec<u8>)| (stat.ino, stat.nlink, stat.ctime, content);
        let shown = (back.stat(held.node()).unwrap(), read(&back, &held));
        assert_eq!(facts(shown), facts(expected), "{case}");
        assert!(Arc::ptr_eq(&find(&back, "dir/other"), held.node()), "{case}");
        back.write_at(&held, b"new", 0).unwrap();
        let expected = tree(&back);
        drop((held, back));
        assert_eq!(tree(&mount(&setup, &counts)), expected, "{case}");
    }
}

/// A file with two names was copied up before a snapshot. Both names go while it is open.
#[test]
fn a_frozen_copy_outlives_its_names() {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts);
    write(&overlay, "one", "copy");
    overlay.complete_and_sync().unwrap();
    let next = overlay.snapshot(None, &[]).unwrap();
    let mut held = next.open(&find(&next, "one"));
    for name in ["one", "other"] {
        next.unlink(next.root(), OsStr::new(name)).unwrap();
    }
    assert_eq!(read(&next, &held), b"copy");
    let node = held.node().clone();
    next.complete_and_sync().unwrap();
    let last = next.snapshot(None, std::slice::from_ref(&node)).unwrap();
    held = last.find_again(node.id()).unwrap();
    assert_eq!((read(&last, &held), last.stat(held.node()).unwrap().nlink), (b"copy".to_vec(), 0));
    last.write_at(&held, b"C", 0).unwrap();
    assert_eq!(read(&last, &held), b"Copy");
}

/// The names of a copy in a frozen layer are its links. A removed one counts as hidden, also when
/// the file has no name in a lower layer that is left.
#[test]
fn links_of_a_frozen_copy_are_counted_in_the_next_mount() {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts);
    for (from, to) in [("one", "first"), ("other", "second")] {
        let root = overlay.root();
        overlay.rename(root, OsStr::new(from), root, OsStr::new(to), RenameMode::Replace).unwrap();
    }
    overlay.complete_and_sync().unwrap();
    let next = overlay.snapshot(None, &[]).unwrap();
    drop(overlay);
    assert_eq!(tree(&next)["/first"].1, 2);
    next.unlink(next.root(), OsStr::new("second")).unwrap();
    let expected = tree(&next);
    assert_eq!(expected["/first"].1, 1);
    drop(next);
    let overlay = mount(&setup, &counts);
    assert_eq!(tree(&overlay), expected);
}

/// A file has a name that no lookup has met. What a program writes through another name, which it
/// has removed meanwhile, shows there: from the lower layer, from a copy, and from a frozen copy.
#[test]
fn a_write_shows_under_a_name_that_no_lookup_has_met() {
    for changed in [0, 1, 2] {
        let (setup, counts) = (setup(), Counts::default());
        let mut overlay = mount(&setup, &counts);
        let mut handle = overlay.open(&find(&overlay, "one"));
        for step in 0..3 {
            if step == changed {
                overlay.unlink(overlay.root(), OsStr::new("one")).unwrap();
            }
            if step < changed {
                overlay.write_at(&handle, &[b'0' + step], 0).unwrap();
            }
            let before = overlay.stat(handle.node()).unwrap();
            overlay.complete_and_sync().unwrap();
            let next = overlay.snapshot(None, &[handle.node().clone()]).unwrap();
            handle = next.find_again(handle.node().id()).unwrap();
            let after = next.stat(handle.node()).unwrap();
            assert_eq!((after.ino, after.nlink), (before.ino, before.nlink), "{changed}, {step}");
            overlay = next;
        }
        overlay.write_at(&handle, b"new", 0).unwrap();
        let other = overlay.open(&find(&overlay, "other"));
        assert_eq!((read(&overlay, &other), other.node().id()), (b"newh".to_vec(), handle.node().id()), "{changed}");
        let expected = tree(&overlay);
        drop((handle, other));
        drop(overlay);
        assert_eq!(tree(&mount(&setup, &counts)), expected, "{changed}");
    }
}

/// No copy of such a file would show under its other name.
#[test]
fn a_file_of_the_upper_layer_with_only_a_name_that_no_lookup_has_met_refuses_a_snapshot() {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts);
    overlay.create_file(overlay.root(), OsStr::new("made"), 0o640, OWN).unwrap();
    overlay.link(&find(&overlay, "made"), overlay.root(), OsStr::new("again")).unwrap();
    drop(overlay);
    let overlay = mount(&setup, &counts);
    let handle = overlay.open(&find(&overlay, "made"));
    overlay.unlink(overlay.root(), OsStr::new("made")).unwrap();
    let nodes = [handle.node().clone()];
    assert!(matches!(overlay.snapshot(None, &nodes), Err(Unfrozen::Unmet)));
    overlay.write_at(&handle, b"new", 0).unwrap();
    let other = find(&overlay, "again");
    let next = overlay.snapshot(None, &nodes).unwrap();
    assert_eq!(read(&next, &next.find_again(other.id()).unwrap()), b"new");
}

/// A partial copy of a frozen copy has the number of the original, also after its daemon was
/// killed.
#[test]
fn a_partial_copy_that_a_killed_daemon_left_over_a_frozen_one_keeps_its_number() {
    let (setup, counts) = (setup(), Counts::default());
    put::file(&setup.path("lower"), "large", vec![7; 3 << 20]);
    let overlay = mount(&setup, &counts);
    let number = overlay.stat(&find(&overlay, "large")).unwrap().ino;
    overlay.write_at(&overlay.open(&find(&overlay, "large")), b"new", 0).unwrap();
    overlay.complete_and_sync().unwrap();
    let next = overlay.snapshot(None, &[]).unwrap();
    drop(overlay);
    next.write_at(&next.open(&find(&next, "large")), b"newer", 1 << 20).unwrap();
    counts.fault_after(0, Fault::Stop);
    drop(next);
    assert!(setup.path("snapshots/1/upper/.wh..wh.parts").exists(), "there is no partial copy");
    let overlay = mount(&setup, &Counts::default());
    assert_eq!(overlay.stat(&find(&overlay, "large")).unwrap().ino, number);
}

/// The copy in the upper layer takes the number over from the one in the frozen layer. Both may
/// have a record of it.
#[test]
fn a_crash_in_a_copy_of_a_frozen_copy_keeps_its_number() {
    let numbers =
        |overlay: &Engine| ["one", "dir", "dir/file"].map(|path| overlay.stat(&find(overlay, path)).unwrap().ino);
    for calls in 0.. {
        let (setup, counts) = (setup(), Counts::default());
        let first = mount(&setup, &counts);
        let held = work(&first);
        let overlay = snapshot(&first, &held).unwrap();
        drop((held, first));
        let before = numbers(&overlay);
        let (one, file) = (overlay.open(&find(&overlay, "one")), overlay.open(&find(&overlay, "dir/file")));
        counts.stop_after(calls);
        let written = overlay.write_at(&one, b"BY", 0).and_then(|_| overlay.write_at(&file, b"NEW", 0));
        drop((one, file, overlay));
        counts.stop_after(u64::MAX);
        for _ in 0..2 {
            assert_eq!(numbers(&mount(&setup, &counts)), before, "after {calls} calls");
        }
        if written.is_ok() {
            return;
        }
    }
}

#[test]
fn a_removed_directory_goes_on() {
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts);
    let dir = overlay.open(&find(&overlay, "dir"));
    overlay.unlink(dir.node(), OsStr::new("file")).unwrap();
    overlay.remove_dir(overlay.root(), OsStr::new("dir")).unwrap();
    overlay.complete_and_sync().unwrap();
    // A front end may have it open twice.
    let next = overlay.snapshot(None, &[dir.node().clone(), dir.node().clone()]).unwrap();
    let dir = next.find_again(dir.node().id()).unwrap();
    let name = OsStr::new("user.note");
    next.set_xattr(dir.node(), name, b"note", XattrMode::Set).unwrap();
    assert_eq!(next.xattr(dir.node(), name).unwrap(), b"note");
    assert_eq!(next.stat(dir.node()).unwrap().nlink, 0);
}

/// In the kernel's format a name may begin with `.wh.`. A frozen layer has it too, and hides
/// nothing.
#[test]
fn names_of_deletions_stay_names_in_a_frozen_layer_of_the_kernels_format() {
    let (setup, counts) = (setup(), Counts::default());
    let mark = rustix::fs::XattrFlags::CREATE;
    rustix::fs::setxattr(setup.path("upper"), "trusted.overlay.format", b"kernel", mark).unwrap();
    let overlay = mount(&setup, &counts);
    for (dir, name) in [("dir", ".wh.file"), ("dir", ".wh..wh..opq")] {
        overlay.create_file(&find(&overlay, dir), OsStr::new(name), 0o640, OWN).unwrap();
    }
    overlay.complete_and_sync().unwrap();
    let expected = tree(&overlay);
    assert!(expected.contains_key("/dir/.wh.file") && expected.contains_key("/dir/file"));
    let after = overlay.snapshot(Some("s"), &[]).unwrap();
    assert_eq!(tree(&after), expected);
    drop((after, overlay));
    assert_eq!(tree(&mount(&setup, &counts)), expected, "after another mount");
}
