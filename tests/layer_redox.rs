//! The Redox layer above a simulated redoxfs, in the null namespace: every method, its errors, and
//! the behaviour that is particular to redoxfs.
#![cfg(target_os = "linux")]

#[path = "layer/contract.rs"]
mod contract;
#[path = "layer/look.rs"]
mod look;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use contract::{ALICE, ROOT};
use linux_delegate::Process;
use linux_delegate::abi::act_as;
use linux_delegate::redoxfs::{Disk, Request};
use look::{fails, list, n, names, read};
use overlayfs::errno::*;
use overlayfs::layer::redox::{Dir, RedoxLayer};
use overlayfs::layer::{Access, Kind, Layer, Object, RenameMode, Time};

/// Opens the directory `layer` of a new redoxfs as a writable layer, and returns its root too. Then
/// the thread enters the null namespace.
fn upper() -> (Disk, RedoxLayer, Dir) {
    let disk = Disk::redoxfs();
    disk.tree().put_dir("layer");
    let layer = open(&disk, "layer", true);
    let root = layer.root().unwrap();
    (disk, layer, root)
}

/// Opens a directory of a disk as a layer, and enters the null namespace.
fn open(disk: &Disk, path: &str, for_writing: bool) -> RedoxLayer {
    let layer = RedoxLayer::open(Path::new(&disk.path(path)), for_writing).unwrap();
    libredox::call::setrens(0, 0).unwrap();
    layer
}

#[test]
fn creates_every_kind_with_the_mode_asked_for() {
    let (disk, layer, root) = upper();
    let file = layer.create_file(&root, n("file"), 0o6777, ROOT).unwrap();
    layer.create_dir(&root, n("dir"), 0o7777, ROOT).unwrap();
    layer.create_symlink(&root, n("link"), n("to/nowhere"), ROOT).unwrap();
    for kind in [Kind::Fifo, Kind::Socket, Kind::CharDev, Kind::BlockDev] {
        fails(layer.create_node(&root, n("node"), kind, 0o666, 0, ROOT), EOPNOTSUPP);
    }

    let expected = [("dir", Kind::Dir, 0o7777), ("file", Kind::File, 0o6777), ("link", Kind::Symlink, 0o777)];
    let listed = list(&layer, &root);
    assert_eq!(listed.len(), expected.len());
    let top = layer.stat(Object::Dir(&root)).unwrap();
    assert_ne!(top.dev, 0, "redoxfs does not tell layers apart");
    for (name, kind, mode) in expected {
        let stat = layer.stat(Object::Entry(&root, n(name))).unwrap();
        assert_eq!((stat.kind, stat.mode), (kind, mode), "{name}");
        assert_eq!((stat.uid, stat.gid, stat.dev), (0, 0, top.dev), "{name}");
        assert_eq!(listed[n(name)], (kind, stat.ino), "{name}");
    }
    assert_eq!(layer.read_link(&root, n("link")).unwrap(), "to/nowhere");
    assert_eq!(layer.stat(Object::Entry(&root, n("link"))).unwrap().size, 10);
    assert_eq!(layer.stat(Object::File(&file)).unwrap().ino, layer.stat(Object::Entry(&root, n("file"))).unwrap().ino);
    assert_eq!(disk.tree().text("layer/link"), "to/nowhere");

    for name in listed.keys() {
        fails(layer.create_file(&root, name, 0o600, ROOT), EEXIST);
        fails(layer.create_dir(&root, name, 0o600, ROOT), EEXIST);
        fails(layer.create_symlink(&root, name, n("x"), ROOT), EEXIST);
    }
    fails(layer.read_link(&root, n("file")), EINVAL);
}

#[test]
fn names_are_single_components_that_redoxfs_can_store() {
    let (disk, layer, root) = upper();
    let long = "x".repeat(252);
    for name in [n(&long), n("Käse \\\n")] {
        let file = layer.create_file(&root, name, 0o600, ROOT).unwrap();
        let ino = layer.stat(Object::File(&file)).unwrap().ino;
        assert_eq!(list(&layer, &root)[name], (Kind::File, ino));
        layer.rename(&root, name, &root, n("other"), RenameMode::NoReplace).unwrap();
        layer.rename(&root, n("other"), &root, name, RenameMode::NoReplace).unwrap();
        layer.unlink(&root, name).unwrap();
    }
    layer.create_file(&root, n("file"), 0o600, ROOT).unwrap();
    let longer = "x".repeat(253);
    fails(layer.create_file(&root, n(&longer), 0o600, ROOT), ENAMETOOLONG);
    fails(layer.rename(&root, n("file"), &root, n(&longer), RenameMode::Replace), ENAMETOOLONG);
    fails(layer.link(Object::Entry(&root, n("file")), &root, n(&longer)), ENAMETOOLONG);
    fails(layer.create_file(&root, n("a:b"), 0o600, ROOT), EINVAL);
    assert_eq!(layer.stat_fs().unwrap().name_max, 252);

    layer.unlink(&root, n("file")).unwrap();
    let strange = OsStr::from_bytes(b"\xff");
    for bad in [n(""), n("."), n(".."), n("file/"), n("dir/x"), n("/"), n("/etc"), n("../x"), n("fi\0le"), strange] {
        contract::refuses_a_name(&layer, &root, bad);
    }
    assert_eq!(disk.tree().names("layer"), [""; 0]);
    assert_eq!(disk.tree().names(""), ["layer"]);
}

#[test]
fn a_missing_name_is_enoent_everywhere() {
    let (_disk, layer, root) = upper();
    let dir = layer.open_dir(&root, n("missing")).unwrap();
    fails(layer.stat(Object::Dir(&dir)), ENOENT);
    fails(layer.list(&dir, &mut |_| ()), ENOENT);
    contract::misses_a_name(&layer, &root, &[RenameMode::Replace, RenameMode::NoReplace]);
}

#[test]
fn attributes_of_a_symlink_are_its_own() {
    let (disk, layer, root) = upper();
    layer.create_file(&root, n("file"), 0o640, ROOT).unwrap();
    layer.create_symlink(&root, n("link"), n("file"), ROOT).unwrap();
    layer.create_dir(&root, n("dir"), 0o700, ROOT).unwrap();
    layer.create_symlink(&root, n("to-dir"), n("dir"), ROOT).unwrap();
    let before = disk.snapshot("layer/file");
    for name in ["file", "to-dir"] {
        let no_dir = layer.open_dir(&root, n(name)).unwrap();
        fails(layer.stat(Object::Dir(&no_dir)), ENOTDIR);
        fails(layer.set_mode(Object::Dir(&no_dir), 0o700), ENOTDIR);
    }
    fails(layer.set_mode(Object::Entry(&root, n("link")), 0o777), EOPNOTSUPP);
    let time = Time { sec: 77, nsec: 7 };
    layer.set_times(Object::Entry(&root, n("link")), time, time).unwrap();
    layer.set_owner(Object::Entry(&root, n("link")), ALICE).unwrap();
    let link = layer.stat(Object::Entry(&root, n("link"))).unwrap();
    assert_eq!((link.kind, link.mtime, link.uid, link.gid), (Kind::Symlink, time, ALICE.uid, ALICE.gid));
    layer.link(Object::Entry(&root, n("link")), &root, n("second")).unwrap();
    assert_eq!(layer.stat(Object::Entry(&root, n("second"))).unwrap().ino, link.ino);
    layer.rename(&root, n("link"), &root, n("moved"), RenameMode::Replace).unwrap();
    layer.unlink(&root, n("moved")).unwrap();
    disk.assert_same(&before);
}

#[test]
fn removes_or_reports_why_not() {
    let (_disk, layer, root) = upper();
    contract::removes(&layer, &root);
    layer.create_file(&root, n("file"), 0o600, ROOT).unwrap();
    let no_dir = layer.open_dir(&root, n("file")).unwrap();
    fails(layer.create_file(&no_dir, n("inside"), 0o600, ROOT), ENOTDIR);
}

#[test]
fn renames_in_the_modes_that_there_are() {
    let (disk, layer, root) = upper();
    let reset = || {
        disk.tree().put_file("layer/a", "A");
        disk.tree().put_file("layer/b", "B");
    };
    reset();
    fails(layer.rename(&root, n("a"), &root, n("b"), RenameMode::NoReplace), EEXIST);
    fails(layer.rename(&root, n("a"), &root, n("b"), RenameMode::Exchange), EINVAL);
    fails(layer.rename(&root, n("a"), &root, n("b"), RenameMode::Whiteout), EINVAL);
    layer.rename(&root, n("a"), &root, n("b"), RenameMode::Replace).unwrap();
    assert_eq!((names(&layer, &root), disk.tree().text("layer/b")), (vec!["b".to_owned()], "A".to_owned()));
    layer.rename(&root, n("b"), &root, n("c"), RenameMode::NoReplace).unwrap();
    assert_eq!(names(&layer, &root), ["c"]);
    layer.unlink(&root, n("c")).unwrap();

    reset();
    layer.create_dir(&root, n("dir"), 0o700, ROOT).unwrap();
    layer.create_dir(&root, n("empty"), 0o700, ROOT).unwrap();
    fails(layer.rename(&root, n("dir"), &root, n("a"), RenameMode::Replace), ENOTDIR);
    let dir = layer.open_dir(&root, n("dir")).unwrap();
    layer.rename(&root, n("b"), &dir, n("b"), RenameMode::Replace).unwrap();
    fails(layer.rename(&root, n("empty"), &root, n("dir"), RenameMode::Replace), ENOTEMPTY);
    layer.rename(&root, n("dir"), &root, n("empty"), RenameMode::Replace).unwrap();
    assert_eq!(names(&layer, &root), ["a", "empty"]);
    assert_eq!(disk.tree().text("layer/empty/b"), "B");
}

/// The descriptor of the last rename or directory serves the next call for the object, and no
/// other.
#[test]
fn a_renamed_object_needs_no_second_lookup() {
    let (disk, layer, root) = upper();
    disk.tree().put_file("layer/a", "A");
    disk.tree().put_file("layer/other", "other");
    layer.create_dir(&root, n("dir"), 0o700, ROOT).unwrap();
    let dir = layer.open_dir(&root, n("dir")).unwrap();
    // A request after the closes, which have no answer.
    fails(layer.stat(Object::Entry(&root, n("missing"))), ENOENT);
    let open = disk.open();
    let rename = |from: (&Dir, &str), to: (&Dir, &str)| {
        layer.rename(from.0, n(from.1), to.0, n(to.1), RenameMode::Replace).unwrap();
    };
    rename((&root, "a"), (&root, "b"));
    disk.take_requests();
    let number = layer.stat(Object::Entry(&root, n("b"))).unwrap().ino;
    rename((&root, "b"), (&root, "c"));
    assert_eq!(disk.take_requests().of(Request::Open), 0);
    // In another directory redoxfs would not find it by this descriptor.
    rename((&root, "c"), (&dir, "c"));
    rename((&dir, "c"), (&dir, "d"));
    rename((&dir, "d"), (&root, "d"));
    assert_eq!(layer.stat(Object::Entry(&root, n("d"))).unwrap().ino, number);

    rename((&root, "d"), (&root, "e"));
    layer.unlink(&root, n("e")).unwrap();
    fails(layer.stat(Object::Entry(&root, n("e"))), ENOENT);
    assert_eq!(disk.open(), open, "the removed object is closed");
    drop(layer.create_file(&root, n("e"), 0o600, ROOT).unwrap());
    rename((&root, "e"), (&root, "f"));
    rename((&root, "other"), (&root, "f"));
    rename((&root, "f"), (&root, "g"));
    assert_eq!(disk.tree().text("layer/g"), "other");
    // The name of its directory changes.
    rename((&root, "g"), (&dir, "g"));
    rename((&dir, "g"), (&dir, "h"));
    rename((&root, "dir"), (&root, "moved"));
    fails(layer.stat(Object::Entry(&dir, n("h"))), ENOENT);

    let moved = layer.open_dir(&root, n("moved")).unwrap();
    let touch = |dir: &Dir| layer.set_times(Object::Dir(dir), Time { sec: 7, nsec: 0 }, Time { sec: 7, nsec: 0 });
    touch(&moved).unwrap();
    disk.take_requests();
    drop(layer.create_file(&moved, n("new"), 0o600, ROOT).unwrap());
    touch(&moved).unwrap();
    assert_eq!(disk.take_requests().of(Request::Open), 1, "only the new file");
    rename((&root, "moved"), (&root, "away"));
    fails(touch(&moved), ENOENT);
    layer.create_dir(&root, n("moved"), 0o700, ROOT).unwrap();
    touch(&moved).unwrap();
    assert_eq!(disk.tree().look("layer/moved").mtime.0, 7, "the directory that has the path now");
    layer.remove_dir(&root, n("moved")).unwrap();
    fails(touch(&moved), ENOENT);
    rename((&root, "away"), (&root, "moved"));
    assert_eq!(disk.tree().text("layer/moved/h"), "other");
}

#[test]
fn renames_and_links_between_two_layers_of_one_filesystem() {
    let disk = Disk::redoxfs();
    disk.tree().put_dir("work");
    disk.tree().put_dir("some/upper");
    let path = |path| disk.path(path);
    let (work, upper) = RedoxLayer::open_pair(Path::new(&path("work")), Path::new(&path("some/upper"))).unwrap();
    libredox::call::setrens(0, 0).unwrap();
    let (from, to) = (work.root().unwrap(), upper.root().unwrap());
    work.create_dir(&from, n("dir"), 0o700, ROOT).unwrap();
    work.create_file(&from, n("file"), 0o600, ROOT).unwrap();
    upper.link(Object::Entry(&from, n("file")), &to, n("second")).unwrap();
    upper.rename(&from, n("dir"), &to, n("dir"), RenameMode::NoReplace).unwrap();
    let dir = upper.open_dir(&to, n("dir")).unwrap();
    upper.rename(&from, n("file"), &dir, n("file"), RenameMode::Replace).unwrap();
    assert!(names(&work, &from).is_empty());
    assert_eq!(names(&upper, &to), ["dir", "second"]);
    assert_eq!(upper.stat(Object::Entry(&dir, n("file"))).unwrap().nlink, 2);
    assert_eq!(disk.tree().names("some/upper/dir"), ["file"]);
    let devices = [&from, &to].map(|dir| upper.stat(Object::Dir(dir)).unwrap().dev);
    assert_eq!(devices[0], devices[1], "one filesystem");
    let other = Disk::redoxfs();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let other = open(&other, "", true);
            assert_ne!(other.stat(Object::Dir(&other.root().unwrap())).unwrap().dev, devices[0]);
        });
    });
}

/// [`Capabilities::dirs_follow_rename`](overlayfs::layer::Capabilities) is about this.
#[test]
fn a_directory_is_a_path() {
    let (disk, layer, root) = upper();
    layer.create_dir(&root, n("dir"), 0o700, ROOT).unwrap();
    let dir = layer.open_dir(&root, n("dir")).unwrap();
    let file = layer.create_file(&dir, n("file"), 0o600, ROOT).unwrap();
    layer.rename(&root, n("dir"), &root, n("moved"), RenameMode::Replace).unwrap();
    fails(layer.stat(Object::Dir(&dir)), ENOENT);
    fails(layer.create_file(&dir, n("new"), 0o600, ROOT), ENOENT);
    layer.create_dir(&root, n("dir"), 0o700, ROOT).unwrap();
    layer.create_file(&dir, n("new"), 0o600, ROOT).unwrap();
    assert_eq!(disk.tree().names("layer/dir"), ["new"], "the object with that path now");
    assert!(!layer.capabilities().dirs_follow_rename);
    // An open file stays the same file.
    layer.write_at(&file, b"text", 0).unwrap();
    assert_eq!(disk.tree().text("layer/moved/file"), "text");
}

#[test]
fn links_have_one_object() {
    let (disk, layer, root) = upper();
    contract::links(&layer, &root);
    assert_eq!(disk.tree().names("layer"), ["a", "b"], "redoxfs would enter a name twice");
}

#[test]
fn reads_and_writes() {
    let (_disk, layer, root) = upper();
    let removed = contract::reads_and_writes(&layer, &root);
    // redoxfs counts the last name until the file is closed.
    assert_eq!((removed.nlink, removed.mode), (1, 0o4755));
    let reader = layer.open_file(&root, n("again"), Access::Read).unwrap();
    fails(layer.read_at(&reader, &mut [0], u64::MAX), EFBIG);
    fails(layer.truncate(&reader, 0), EBADF);
    layer.sync_all().unwrap();
}

#[test]
fn opens_regular_files_only() {
    let (_disk, layer, root) = upper();
    layer.create_dir(&root, n("dir"), 0o700, ROOT).unwrap();
    fails(layer.open_file(&root, n("dir"), Access::ReadWrite), EISDIR);
}

#[test]
fn sets_attributes_of_directories_and_entries() {
    let (_disk, layer, root) = upper();
    layer.create_dir(&root, n("dir"), 0o700, ROOT).unwrap();
    layer.create_file(&root, n("file"), 0o600, ROOT).unwrap();
    let dir = layer.open_dir(&root, n("dir")).unwrap();
    let times = (Time { sec: 1, nsec: 999_999_999 }, Time { sec: 4_000_000_000, nsec: 1 });
    for object in
        [Object::Dir(&root), Object::Dir(&dir), Object::Entry(&root, n("file")), Object::Entry(&root, n("dir"))]
    {
        contract::sets_attributes(&layer, object, times);
        fails(layer.xattr(object, n("user.x")), EOPNOTSUPP);
        fails(layer.xattrs(object), EOPNOTSUPP);
        assert_eq!(layer.birth(object), Ok(None));
    }
}

#[test]
fn copies_ranges() {
    let (disk, layer, root) = upper();
    let content: Vec<u8> = (0..300_000u32).map(|index| (index % 251) as u8).collect();
    disk.tree().put_file("layer/from", content.clone());
    let from = layer.open_file(&root, n("from"), Access::Read).unwrap();
    let to = layer.create_file(&root, n("to"), 0o600, ROOT).unwrap();
    assert_eq!(layer.copy_range(&from, 1000..200_000, &to, 500).unwrap(), 199_000);
    assert_eq!(disk.tree().look("layer/to").bytes().unwrap()[500..], content[1000..200_000]);
    assert_eq!(layer.copy_range(&from, 299_000..900_000, &to, 0).unwrap(), 1000, "the end of the source");
    assert_eq!(layer.copy_range(&from, 300_000..300_001, &to, 0).unwrap(), 0);
    assert_eq!(layer.next_data(&from, 7), Ok(Some(7..300_000)));
    assert_eq!(layer.next_data(&from, 300_000), Ok(None));
    fails(layer.share_data(&from, &to), EOPNOTSUPP);
    fails(layer.write_through(&to, b"x", 0), EOPNOTSUPP);
}

#[test]
fn one_process_holds_a_layer() {
    let mut disk = Disk::redoxfs();
    disk.tree().put_dir("layer");
    disk.tree().put_dir("other");
    let hold_at = |disk: &Disk, path: &'static str, process: Process| {
        std::thread::scope(|scope| {
            let held = scope.spawn(|| {
                act_as(&process);
                let layer = open(disk, path, true);
                layer.hold().map(|()| layer)
            });
            held.join().unwrap()
        })
    };
    let hold = |disk: &Disk, process: Process| hold_at(disk, "layer", process);
    let (first, second) = (Process::new(0, 0), Process::new(0, 0));
    let layer = hold(&disk, first.clone()).unwrap();
    layer.hold().unwrap();
    fails(hold(&disk, second.clone()), EWOULDBLOCK);
    for process in [&first, &second] {
        hold_at(&disk, "other", process.clone()).unwrap();
    }
    fails(hold(&disk, second.clone()), EWOULDBLOCK);
    // Other calls on the layer do not release the lock.
    layer.stat(Object::Dir(&layer.root().unwrap())).unwrap();
    layer.sync_all().unwrap();
    fails(hold(&disk, second.clone()), EWOULDBLOCK);
    drop(layer);
    let layer = hold(&disk, second).unwrap();
    disk.restart();
    let again = hold(&disk, first).unwrap();
    fails(layer.stat(Object::Dir(&layer.root().unwrap())), ENODEV);
    again.stat(Object::Dir(&again.root().unwrap())).unwrap();
}

/// On redoxfs the caller becomes the owner, so the daemon creates objects in its own name only.
#[test]
fn a_daemon_that_is_not_root() {
    let disk = Disk::redoxfs();
    disk.tree().put_dir("layer");
    let top = disk.tree().look_mut("layer").clone();
    *disk.tree().look_mut("layer") = linux_delegate::redoxfs::Node { uid: ALICE.uid, gid: ALICE.gid, ..top };
    disk.tree().put_file("layer/roots", "text");
    disk.tree().put_dir("layer/closed");
    disk.tree().look_mut("layer/closed").mode &= !0o077;
    act_as(&Process::new(ALICE.uid, ALICE.gid));
    let layer = open(&disk, "layer", true);
    let root = layer.root().unwrap();
    assert_eq!(layer.identity(), ALICE);
    assert!(layer.creates_as(ALICE) && !layer.creates_as(ROOT));
    layer.create_file(&root, n("file"), 0o600, ALICE).unwrap();
    assert_eq!(layer.stat(Object::Entry(&root, n("file"))).unwrap().uid, ALICE.uid);
    assert_eq!(read(&layer, &root, "roots"), b"text");
    fails(layer.open_file(&root, n("roots"), Access::ReadWrite), EACCES);
    fails(layer.set_mode(Object::Entry(&root, n("roots")), 0o777), EPERM);
    let closed = layer.open_dir(&root, n("closed")).unwrap();
    fails(layer.list(&closed, &mut |_| ()), EACCES);
    fails(layer.stat(Object::Entry(&closed, n("x"))), EACCES);
}

#[test]
fn a_layer_that_is_only_read_is_never_changed() {
    let disk = Disk::redoxfs();
    disk.tree().put_file("layer/dir/file", "text");
    let before = disk.snapshot("layer");
    let layer = open(&disk, "layer", false);
    let root = layer.root().unwrap();
    let (file, time) = (n("file"), Time::default());
    let dir = layer.open_dir(&root, n("dir")).unwrap();
    assert_eq!(read(&layer, &dir, "file"), b"text");
    fails(layer.open_file(&dir, file, Access::ReadWrite), EROFS);
    fails(layer.create_file(&dir, n("new"), 0o600, ROOT), EROFS);
    fails(layer.create_dir(&dir, n("new"), 0o600, ROOT), EROFS);
    fails(layer.create_symlink(&dir, n("new"), n("x"), ROOT), EROFS);
    fails(layer.create_node(&dir, n("new"), Kind::Fifo, 0o600, 0, ROOT), EROFS);
    fails(layer.link(Object::Entry(&dir, file), &dir, n("new")), EROFS);
    fails(layer.unlink(&dir, file), EROFS);
    fails(layer.remove_dir(&root, n("dir")), EROFS);
    fails(layer.rename(&dir, file, &dir, n("new"), RenameMode::Replace), EROFS);
    for object in [Object::Dir(&dir), Object::Entry(&dir, file)] {
        fails(layer.set_owner(object, ALICE), EROFS);
        fails(layer.set_mode(object, 0o777), EROFS);
        fails(layer.set_times(object, time, time), EROFS);
    }
    disk.assert_same(&before);
}

#[test]
fn reports_space() {
    let (_disk, layer, _root) = upper();
    let stat = layer.stat_fs().unwrap();
    assert_eq!(stat.block_size, 4096);
    assert!(stat.blocks_available <= stat.blocks_free && stat.blocks_free < stat.blocks && stat.blocks_free > 0);
}

#[test]
fn opens_directories_only_and_none_in_the_null_namespace() {
    let disk = Disk::redoxfs();
    disk.tree().put_file("dir/file", "");
    disk.tree().put_symlink("link", "dir");
    let path = |name: &str| disk.path(name);
    for for_writing in [false, true] {
        let open = |name: &str| RedoxLayer::open(Path::new(&path(name)), for_writing);
        fails(open("missing"), ENOENT);
        fails(open("dir/file"), ENOTDIR);
        fails(open("dir/file/x"), ENOTDIR);
        fails(RedoxLayer::open(Path::new("/scheme/nobody/dir"), for_writing), ENODEV);
        fails(RedoxLayer::open(Path::new(OsStr::from_bytes(b"/\xff")), for_writing), EINVAL);
        let dir = open("link").unwrap();
        assert_eq!(names(&dir, &dir.root().unwrap()), ["file"]);
        let top = open("").unwrap();
        assert_eq!(names(&top, &top.root().unwrap()), ["dir", "link"]);
    }
    libredox::call::setrens(0, 0).unwrap();
    fails(RedoxLayer::open(Path::new(&path("dir")), false), ENODEV);
}

#[test]
fn lists_a_large_directory_once() {
    let (disk, layer, root) = upper();
    for index in 0..5000 {
        disk.tree().put_file(&format!("layer/{index:0>40}"), "");
    }
    disk.take_requests();
    assert_eq!(list(&layer, &root).len(), 5000);
    assert!(disk.take_requests().of(Request::List) <= 9, "buffers are filled");
    assert_eq!(list(&layer, &root).len(), 5000, "each listing starts at the beginning");
}

/// ramfs reports no kinds, lists only whole directories, and opens nothing relative to a directory
/// except its root.
#[test]
fn ramfs_can_be_read() {
    let disk = Disk::ramfs();
    for index in 0..3000 {
        disk.tree().put_file(&format!("dir/{index:0>40}"), "text");
    }
    disk.tree().put_dir("dir/sub");
    let layer = open(&disk, "", false);
    let dir = layer.open_dir(&layer.root().unwrap(), n("dir")).unwrap();
    let listed = list(&layer, &dir);
    assert_eq!(listed.len(), 3001);
    assert_eq!(listed[n("sub")].0, Kind::Dir);
    assert_eq!(listed[n(&"0".repeat(40))].0, Kind::File);
    assert_eq!(read(&layer, &dir, &"0".repeat(40)), b"text");
}
