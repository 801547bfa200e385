//! The Linux layer on real directories: every method and its errors. It follows no symlink, crosses
//! no mount, and changes no access time.
//!
//! Needs root, for mounts and owners. Each test makes its mounts in a mount namespace of its own,
//! which ends with it.
#![cfg(target_os = "linux")]

#[path = "layer/contract.rs"]
mod contract;
#[path = "layer/look.rs"]
mod look;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use contract::{ALICE, ROOT};
use look::{fails, list, n, names, read};
use overlayfs::errno::*;
use overlayfs::layer::counted::{Counted, Counts, Method};
use overlayfs::layer::linux::{Dir, LinuxLayer};
use overlayfs::layer::{Access, Kind, Layer, Object, Owner, RenameMode, Time};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{CapabilitySet, UnshareFlags};
use tempfile::TempDir;

fn temp() -> TempDir {
    assert!(rustix::process::geteuid().is_root(), "these tests make mounts and other users' files: run them as root");
    tempfile::tempdir().unwrap()
}

/// Opens a new directory as a writable layer, and returns its root too.
fn upper() -> (TempDir, LinuxLayer, Dir) {
    let temp = temp();
    let layer = LinuxLayer::open(temp.path(), true).unwrap();
    let root = layer.root().unwrap();
    (temp, layer, root)
}

/// Runs `test` in a thread and passes its panic on. Fails after half a minute.
fn in_thread(test: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        test();
        drop(done);
    });
    assert_ne!(wait.recv_timeout(Duration::from_secs(30)), Err(mpsc::RecvTimeoutError::Timeout), "hangs");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Drops capabilities of this thread.
fn drop_capabilities(which: CapabilitySet) {
    let mut sets = rustix::thread::capabilities(None).unwrap();
    sets.effective.remove(which);
    sets.permitted.remove(which);
    rustix::thread::set_capabilities(None, sets).unwrap();
}

/// The way in which a lower layer is opened.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// As a clone of its mount.
    Clone,
    /// Directly, as for a daemon without the right to clone mounts.
    Plain,
}

impl Way {
    const BOTH: [Way; 2] = [Way::Clone, Way::Plain];

    /// Opens the layer in this way. After `Plain` the thread cannot mount any more.
    fn open(self, path: &Path) -> LinuxLayer {
        if self == Way::Plain {
            drop_capabilities(CapabilitySet::SYS_ADMIN);
        }
        let layer = LinuxLayer::open(path, false).unwrap();
        // Only a clone refuses writes, so this shows the way in which the layer was opened.
        let root = layer.root().unwrap();
        let made = layer.create_dir(&root, n("probe"), 0o700, ROOT);
        match self {
            Way::Clone => fails(made, EROFS),
            Way::Plain => made.and_then(|_| layer.remove_dir(&root, n("probe"))).unwrap(),
        }
        layer
    }
}

/// Gives this thread a mount namespace of its own. Mounts do not propagate into it or out of it.
fn own_mounts() {
    // SAFETY: the thread leaves only the mount namespace. Descriptors and memory of other threads
    // do not change.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
}

fn mount_tmpfs(path: &Path) {
    mount("tmpfs", path, "tmpfs", MountFlags::empty(), c"").unwrap();
}

/// A mount may have hundreds of layers, and the facts about the process are in files of /proc.
#[test]
fn another_layer_asks_nothing_about_the_process() {
    let reads = || -> u64 {
        let counters = fs::read_to_string("/proc/thread-self/io").unwrap();
        counters.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap().parse().unwrap()
    };
    let temp = temp();
    let layer = LinuxLayer::open(temp.path(), false).unwrap();
    let before = reads();
    let others: Vec<_> = (0..50).map(|_| layer.open_another(temp.path()).unwrap()).collect();
    let read = reads() - before;
    assert!(read < 50, "{read} reads for {} layers", others.len());
    assert!(others.iter().all(|other| other.epoch() == layer.epoch()));
}

#[test]
fn creates_every_kind_with_the_mode_asked_for() {
    let (_temp, layer, root) = upper();
    let file = layer.create_file(&root, n("file"), 0o6777, ROOT).unwrap();
    layer.create_dir(&root, n("dir"), 0o7777, ROOT).unwrap();
    layer.create_symlink(&root, n("link"), n("to/nowhere"), ROOT).unwrap();
    layer.create_node(&root, n("fifo"), Kind::Fifo, 0o666, 0, ROOT).unwrap();
    layer.create_node(&root, n("socket"), Kind::Socket, 0o622, 0, ROOT).unwrap();
    layer.create_node(&root, n("char"), Kind::CharDev, 0o600, libc::makedev(1, 3), ROOT).unwrap();
    layer.create_node(&root, n("block"), Kind::BlockDev, 0o640, libc::makedev(7, 300), ROOT).unwrap();

    let expected = [
        ("block", Kind::BlockDev, 0o640),
        ("char", Kind::CharDev, 0o600),
        ("dir", Kind::Dir, 0o7777),
        ("fifo", Kind::Fifo, 0o666),
        ("file", Kind::File, 0o6777),
        ("link", Kind::Symlink, 0o777),
        ("socket", Kind::Socket, 0o622),
    ];
    let listed = list(&layer, &root);
    assert_eq!(listed.len(), expected.len());
    let top = layer.stat(Object::Dir(&root)).unwrap();
    for (name, kind, mode) in expected {
        let stat = layer.stat(Object::Entry(&root, n(name))).unwrap();
        assert_eq!((stat.kind, stat.mode), (kind, mode), "{name}");
        assert_eq!((stat.uid, stat.gid, stat.dev), (0, 0, top.dev), "{name}");
        assert_eq!(listed[n(name)], (kind, stat.ino), "{name}");
    }
    assert_eq!(layer.stat(Object::Entry(&root, n("block"))).unwrap().rdev, libc::makedev(7, 300));
    assert_eq!(layer.read_link(&root, n("link")).unwrap(), "to/nowhere");
    assert_eq!(layer.stat(Object::Entry(&root, n("link"))).unwrap().size, 10);
    assert_eq!(layer.stat(Object::File(&file)).unwrap().ino, layer.stat(Object::Entry(&root, n("file"))).unwrap().ino);

    for name in listed.keys() {
        fails(layer.create_file(&root, name, 0o600, ROOT), EEXIST);
        fails(layer.create_empty(&root, name), EEXIST);
        fails(layer.create_dir(&root, name, 0o600, ROOT), EEXIST);
        fails(layer.create_symlink(&root, name, n("x"), ROOT), EEXIST);
        fails(layer.create_node(&root, name, Kind::Fifo, 0o600, 0, ROOT), EEXIST);
    }
    fails(layer.create_node(&root, n("new"), Kind::File, 0o600, 0, ROOT), EINVAL);
    fails(layer.read_link(&root, n("file")), EINVAL);
}

#[test]
fn names_are_single_components_of_any_bytes() {
    let (_temp, layer, root) = upper();
    let long = "x".repeat(255);
    let strange = OsStr::from_bytes(b"\xff\xfe\n\x01 \\");
    for name in [n(&long), strange] {
        let file = layer.create_file(&root, name, 0o600, ROOT).unwrap();
        let ino = layer.stat(Object::File(&file)).unwrap().ino;
        assert_eq!(list(&layer, &root)[name], (Kind::File, ino));
        layer.open_file(&root, name, Access::ReadWrite).unwrap();
        layer.rename(&root, name, &root, n("other"), RenameMode::NoReplace).unwrap();
        layer.rename(&root, n("other"), &root, name, RenameMode::NoReplace).unwrap();
        layer.unlink(&root, name).unwrap();
    }
    fails(layer.create_file(&root, n(&"x".repeat(256)), 0o600, ROOT), ENAMETOOLONG);

    for bad in ["", ".", "..", "dir/", "dir/x", "/", "/etc", "../x", "fi\0le"].map(OsStr::new) {
        contract::refuses_a_name(&layer, &root, bad);
        fails(layer.create_node(&root, bad, Kind::Fifo, 0o600, 0, ROOT), EINVAL);
    }
    assert!(names(&layer, &root).is_empty());
}

#[test]
fn a_missing_name_is_enoent_everywhere() {
    let (_temp, layer, root) = upper();
    fails(layer.open_dir(&root, n("missing")), ENOENT);
    contract::misses_a_name(&layer, &root, &[RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]);
}

#[test]
fn a_symlink_is_never_followed() {
    for way in [None, Some(Way::Clone), Some(Way::Plain)] {
        in_thread(move || {
            let temp = temp();
            fs::create_dir(temp.path().join("dir")).unwrap();
            fs::write(temp.path().join("dir/file"), "text").unwrap();
            symlink("dir", temp.path().join("to-dir")).unwrap();
            symlink("dir/file", temp.path().join("to-file")).unwrap();
            let layer = match way {
                None => LinuxLayer::open(temp.path(), true).unwrap(),
                Some(way) => way.open(temp.path()),
            };
            let root = layer.root().unwrap();
            fails(layer.open_dir(&root, n("to-dir")), ENOTDIR);
            fails(layer.open_file(&root, n("to-file"), Access::Read), ELOOP);
            for name in ["to-dir", "to-file"] {
                assert_eq!(layer.stat(Object::Entry(&root, n(name))).unwrap().kind, Kind::Symlink);
                assert_eq!(list(&layer, &root)[n(name)].0, Kind::Symlink);
            }
            assert_eq!(layer.read_link(&root, n("to-file")).unwrap(), "dir/file");
        });
    }

    let (temp, layer, root) = upper();
    layer.create_file(&root, n("file"), 0o640, ROOT).unwrap();
    let before = layer.stat(Object::Entry(&root, n("file"))).unwrap();
    layer.create_symlink(&root, n("link"), n("file"), ROOT).unwrap();
    fails(layer.open_file(&root, n("link"), Access::ReadWrite), ELOOP);
    fails(layer.create_file(&root, n("link"), 0o600, ROOT), EEXIST);
    fails(layer.set_mode(Object::Entry(&root, n("link")), 0o777), EOPNOTSUPP);
    let time = Time { sec: 77, nsec: 7 };
    layer.set_times(Object::Entry(&root, n("link")), time, time).unwrap();
    layer.set_owner(Object::Entry(&root, n("link")), ALICE).unwrap();
    let link = layer.stat(Object::Entry(&root, n("link"))).unwrap();
    assert_eq!((link.mtime, link.uid, link.gid), (time, ALICE.uid, ALICE.gid));
    layer.link(Object::Entry(&root, n("link")), &root, n("second")).unwrap();
    assert_eq!(layer.stat(Object::Entry(&root, n("second"))).unwrap().ino, link.ino);
    layer.unlink(&root, n("link")).unwrap();
    assert_eq!(layer.stat(Object::Entry(&root, n("file"))).unwrap(), before);

    // An open directory does not become the object that took its name.
    layer.create_dir(&root, n("dir"), 0o700, ROOT).unwrap();
    let dir = layer.open_dir(&root, n("dir")).unwrap();
    layer.rename(&root, n("dir"), &root, n("moved"), RenameMode::Replace).unwrap();
    symlink("/etc", temp.path().join("dir")).unwrap();
    layer.create_file(&dir, n("inside"), 0o600, ROOT).unwrap();
    assert!(temp.path().join("moved/inside").exists());
}

#[test]
fn removes_or_reports_why_not() {
    let (_temp, layer, root) = upper();
    contract::removes(&layer, &root);
    layer.create_file(&root, n("file"), 0o600, ROOT).unwrap();
    fails(layer.open_dir(&root, n("file")), ENOTDIR);
}

#[test]
fn renames_in_every_mode() {
    let (temp, layer, root) = upper();
    let content = |name: &str| fs::read_to_string(temp.path().join(name)).unwrap();
    let reset = || {
        fs::write(temp.path().join("a"), "A").unwrap();
        fs::write(temp.path().join("b"), "B").unwrap();
    };
    reset();
    fails(layer.rename(&root, n("a"), &root, n("b"), RenameMode::NoReplace), EEXIST);
    fails(layer.rename(&root, n("a"), &root, n("c"), RenameMode::Exchange), ENOENT);
    layer.rename(&root, n("a"), &root, n("b"), RenameMode::Replace).unwrap();
    assert_eq!((names(&layer, &root), content("b")), (vec!["b".to_owned()], "A".to_owned()));
    layer.rename(&root, n("b"), &root, n("c"), RenameMode::NoReplace).unwrap();
    assert_eq!(names(&layer, &root), ["c"]);
    layer.unlink(&root, n("c")).unwrap();

    reset();
    layer.rename(&root, n("a"), &root, n("b"), RenameMode::Exchange).unwrap();
    assert_eq!((content("a"), content("b")), ("B".to_owned(), "A".to_owned()));

    layer.create_dir(&root, n("dir"), 0o700, ROOT).unwrap();
    layer.rename(&root, n("a"), &root, n("dir"), RenameMode::Exchange).unwrap();
    assert_eq!((content("dir"), layer.stat(Object::Entry(&root, n("a"))).unwrap().kind), ("B".into(), Kind::Dir));
    fails(layer.rename(&root, n("b"), &root, n("a"), RenameMode::Replace), EISDIR);
    fails(layer.rename(&root, n("a"), &root, n("b"), RenameMode::Replace), ENOTDIR);
    let dir = layer.open_dir(&root, n("a")).unwrap();
    fails(layer.rename(&root, n("a"), &dir, n("x"), RenameMode::Replace), EINVAL);
    layer.rename(&root, n("b"), &dir, n("b"), RenameMode::Replace).unwrap();
    layer.create_dir(&root, n("empty"), 0o700, ROOT).unwrap();
    fails(layer.rename(&root, n("empty"), &root, n("a"), RenameMode::Replace), ENOTEMPTY);
    layer.rename(&root, n("a"), &root, n("empty"), RenameMode::Replace).unwrap();
    assert_eq!(names(&layer, &root), ["dir", "empty"]);
}

#[test]
fn renames_and_links_between_two_layers_of_one_filesystem() {
    let temp = temp();
    let path = |name| {
        fs::create_dir(temp.path().join(name)).unwrap();
        temp.path().join(name)
    };
    let (work, upper) = LinuxLayer::open_pair(&path("work"), &path("upper")).unwrap();
    let (from, to) = (work.root().unwrap(), upper.root().unwrap());
    work.create_dir(&from, n("dir"), 0o700, ROOT).unwrap();
    work.create_file(&from, n("file"), 0o600, ROOT).unwrap();
    let dir = work.open_dir(&from, n("dir")).unwrap();
    upper.link(Object::Entry(&from, n("file")), &to, n("second")).unwrap();
    upper.rename(&from, n("dir"), &to, n("dir"), RenameMode::NoReplace).unwrap();
    upper.rename(&from, n("file"), &dir, n("file"), RenameMode::Replace).unwrap();
    assert!(names(&work, &from).is_empty());
    assert_eq!(names(&upper, &to), ["dir", "second"]);
    assert_eq!(names(&upper, &dir), ["file"], "a directory's descriptor follows the rename");
    assert_eq!(upper.stat(Object::Entry(&dir, n("file"))).unwrap().nlink, 2);
    assert!(upper.capabilities().dirs_follow_rename);
}

#[test]
fn links_have_one_object() {
    let (_temp, layer, root) = upper();
    contract::links(&layer, &root);
    layer.create_dir(&root, n("dir"), 0o700, ROOT).unwrap();
    fails(layer.link(Object::Entry(&root, n("dir")), &root, n("dir2")), EPERM);
}

#[test]
fn reads_and_writes() {
    let (_temp, layer, root) = upper();
    let removed = contract::reads_and_writes(&layer, &root);
    assert_eq!((removed.nlink, removed.mode), (0, 0o755));
    let file = layer.open_file(&root, n("again"), Access::ReadWrite).unwrap();
    fails(layer.read_at(&file, &mut [0], u64::MAX), EINVAL);
    fails(layer.truncate(&file, i64::MAX as u64), EFBIG);
}

#[test]
fn opens_regular_files_only_and_waits_for_none() {
    for way in Way::BOTH {
        in_thread(move || {
            let (temp, upper, root) = upper();
            upper.create_dir(&root, n("dir"), 0o700, ROOT).unwrap();
            upper.create_node(&root, n("fifo"), Kind::Fifo, 0o600, 0, ROOT).unwrap();
            upper.create_node(&root, n("null"), Kind::CharDev, 0o600, libc::makedev(1, 3), ROOT).unwrap();
            upper.create_node(&root, n("socket"), Kind::Socket, 0o600, 0, ROOT).unwrap();
            for access in [Access::Read, Access::ReadWrite] {
                fails(upper.open_file(&root, n("fifo"), access), EINVAL);
                fails(upper.open_file(&root, n("null"), access), EACCES);
                fails(upper.open_file(&root, n("socket"), access), ENXIO);
            }
            fails(upper.open_file(&root, n("dir"), Access::Read), EINVAL);
            fails(upper.open_file(&root, n("dir"), Access::ReadWrite), EISDIR);
            let lower = way.open(temp.path());
            let root = lower.root().unwrap();
            fails(lower.open_file(&root, n("fifo"), Access::Read), EINVAL);
            fails(lower.open_file(&root, n("null"), Access::Read), if way == Way::Clone { EACCES } else { EINVAL });
        });
    }
}

#[test]
fn sets_attributes_of_directories_and_entries() {
    let (_temp, layer, root) = upper();
    layer.create_dir(&root, n("dir"), 0o700, ROOT).unwrap();
    layer.create_file(&root, n("file"), 0o600, ROOT).unwrap();
    let dir = layer.open_dir(&root, n("dir")).unwrap();
    let times = [
        (Time { sec: 1, nsec: 999_999_999 }, Time { sec: 4_000_000_000, nsec: 1 }),
        (Time { sec: -5, nsec: 3 }, Time { sec: 0, nsec: 0 }),
    ];
    for object in [Object::Dir(&dir), Object::Entry(&root, n("file")), Object::Entry(&root, n("dir"))] {
        for times in times {
            contract::sets_attributes(&layer, object, times);
        }
        let none = Time { sec: 0, nsec: 1_000_000_000 };
        let now_to_the_system = Time { sec: 0, nsec: libc::UTIME_NOW as u32 };
        fails(layer.set_times(object, none, Time::default()), EINVAL);
        fails(layer.set_times(object, Time::default(), now_to_the_system), EINVAL);
        fails(layer.set_owner(object, Owner { uid: u32::MAX, gid: 0 }), EINVAL);
        fails(layer.set_owner(object, Owner { uid: 0, gid: u32::MAX }), EINVAL);
    }
}

#[test]
fn reading_leaves_access_times_alone() {
    for way in Way::BOTH {
        in_thread(move || {
            let temp = temp();
            let path = temp.path().join("dir");
            fs::create_dir(&path).unwrap();
            fs::write(path.join("file"), "text").unwrap();
            symlink("file", path.join("link")).unwrap();
            let old = Time { sec: 1000, nsec: 0 };
            let layer = LinuxLayer::open(temp.path(), true).unwrap();
            let root = layer.root().unwrap();
            let dir = layer.open_dir(&root, n("dir")).unwrap();
            for object in [Object::Dir(&dir), Object::Entry(&dir, n("file"))] {
                layer.set_times(object, old, Time { sec: 2000, nsec: 0 }).unwrap();
            }
            let lower = way.open(temp.path());
            let lower_dir = lower.open_dir(&lower.root().unwrap(), n("dir")).unwrap();
            assert_eq!(names(&lower, &lower_dir), ["file", "link"]);
            assert_eq!(read(&lower, &lower_dir, "file"), b"text");
            for object in [Object::Dir(&dir), Object::Entry(&dir, n("file"))] {
                assert_eq!(layer.stat(object).unwrap().atime, old, "{way:?}");
            }
            // A plain read does change the access time, so the test can fail.
            fs::read(path.join("file")).unwrap();
            assert_ne!(layer.stat(Object::Entry(&dir, n("file"))).unwrap().atime, old);
        });
    }
}

const MIB: u64 = 1 << 20;

/// Makes a file of 5 MiB with data at 1 MiB and at 3 MiB, and holes elsewhere.
fn with_holes(layer: &LinuxLayer, dir: &Dir) -> <LinuxLayer as Layer>::File {
    let file = layer.create_file(dir, n("holes"), 0o600, ROOT).unwrap();
    layer.write_at(&file, &[1; 4096], MIB).unwrap();
    layer.write_at(&file, &[3; 8192], 3 * MIB).unwrap();
    layer.truncate(&file, 5 * MIB).unwrap();
    file
}

#[test]
fn finds_data_between_holes() {
    let (_temp, layer, root) = upper();
    let file = with_holes(&layer, &root);
    assert_eq!(layer.next_data(&file, 0).unwrap(), Some(MIB..MIB + 4096));
    assert_eq!(layer.next_data(&file, MIB + 100).unwrap(), Some(MIB + 100..MIB + 4096));
    assert_eq!(layer.next_data(&file, MIB + 4096).unwrap(), Some(3 * MIB..3 * MIB + 8192));
    assert_eq!(layer.next_data(&file, 4 * MIB).unwrap(), None);
    assert_eq!(layer.next_data(&file, 5 * MIB).unwrap(), None);
    assert_eq!(layer.next_data(&file, u64::MAX).unwrap(), None);
}

#[test]
fn copies_ranges_within_and_between_filesystems() {
    in_thread(|| {
        own_mounts();
        let (temp, layer, root) = upper();
        fs::create_dir(temp.path().join("other")).unwrap();
        mount_tmpfs(&temp.path().join("other"));
        let other = LinuxLayer::open(&temp.path().join("other"), true).unwrap();
        let other_root = other.root().unwrap();
        for (source, dir) in [(&layer, &root), (&other, &other_root)] {
            let from = with_holes(source, dir);
            let to = layer.create_file(&root, n("copy"), 0o600, ROOT).unwrap();
            layer.truncate(&to, 5 * MIB).unwrap();
            let mut at = 0;
            while let Some(range) = source.next_data(&from, at).unwrap() {
                at = range.end;
                let (start, length) = (range.start, range.end - range.start);
                assert_eq!(layer.copy_range(&from, range, &to, start).unwrap(), length);
            }
            assert_eq!(layer.next_data(&to, 0).unwrap(), Some(MIB..MIB + 4096));
            assert_eq!(layer.next_data(&to, 2 * MIB).unwrap(), Some(3 * MIB..3 * MIB + 8192));
            assert_eq!(layer.next_data(&to, 4 * MIB).unwrap(), None);
            let mut bytes = vec![9; 5 * MIB as usize];
            assert_eq!(layer.read_at(&to, &mut bytes, 0).unwrap(), bytes.len());
            let mut expected = vec![9; bytes.len()];
            source.read_at(&from, &mut expected, 0).unwrap();
            assert!(bytes == expected);
            assert_eq!(bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>(), 4096 + 3 * 8192);

            // The copy ends at the end of the source. A copied range goes to its own offset.
            layer.truncate(&to, 0).unwrap();
            layer.copy_range(&from, 3 * MIB + 4096..90 * MIB, &to, 3 * MIB + 4096).unwrap();
            assert_eq!(layer.stat(Object::File(&to)).unwrap().size, 5 * MIB);
            let mut part = [9; 8192];
            layer.read_at(&to, &mut part, 3 * MIB).unwrap();
            assert!(part[..4096].iter().all(|&byte| byte == 0) && part[4096..].iter().all(|&byte| byte == 3));
            layer.copy_range(&from, 6 * MIB..7 * MIB, &to, 6 * MIB).unwrap();
            assert_eq!(layer.stat(Object::File(&to)).unwrap().size, 5 * MIB);

            let reader = layer.open_file(&root, n("copy"), Access::Read).unwrap();
            fails(layer.copy_range(&from, 0..4096, &reader, 0), EBADF);
            layer.unlink(&root, n("copy")).unwrap();
        }
    });
}

#[test]
fn one_daemon_holds_a_layer() {
    let (temp, layer, _root) = upper();
    let locked_elsewhere = || {
        let status = Command::new("flock").arg("--nonblock").arg(temp.path()).arg("true").status().unwrap();
        !status.success()
    };
    let second = LinuxLayer::open(temp.path(), true).unwrap();
    assert!(!locked_elsewhere());
    layer.hold().unwrap();
    layer.hold().unwrap();
    fails(second.hold(), EWOULDBLOCK);
    assert!(locked_elsewhere(), "another process can take the lock");
    drop(layer);
    assert!(!locked_elsewhere());
    second.hold().unwrap();
}

/// The lock of a file excludes other hosts. The next one waits until it shows their changes.
#[test]
fn a_file_holds_a_layer_for_all_hosts() {
    let (temp, layer, root) = upper();
    let second = LinuxLayer::open(temp.path(), true).unwrap();
    assert!(!layer.capabilities().shared, "only this host uses {}", temp.path().display());
    layer.hold_by(&root, n("lock")).unwrap();
    layer.hold_by(&root, n("lock")).unwrap();
    let second_root = second.root().unwrap();
    fails(second.hold_by(&second_root, n("lock")), EWOULDBLOCK);
    layer.release().unwrap();
    let start = Instant::now();
    second.hold_by(&second_root, n("lock")).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_starting_program_does_not_hold_a_layer() {
    let (temp, layer, _root) = upper();
    layer.hold().unwrap();
    let ((mut begun, mut tell), (mut wait, mut go)) = (io::pipe().unwrap(), io::pipe().unwrap());
    let mut command = Command::new("true");
    // SAFETY: between fork(2) and execve(2) there are only read(2) and write(2).
    unsafe { command.pre_exec(move || tell.write_all(&[0]).and_then(|()| wait.read_exact(&mut [0]))) };
    let starting = thread::spawn(move || command.status().unwrap());
    begun.read_exact(&mut [0]).unwrap();
    drop(layer);
    let held = LinuxLayer::open(temp.path(), true).unwrap().hold();
    go.write_all(&[0]).unwrap();
    assert!(starting.join().unwrap().success());
    held.unwrap();
}

#[test]
fn creates_objects_of_other_owners() {
    let (temp, layer, root) = upper();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(layer.identity(), ROOT);
    assert!(layer.creates_as(ROOT) && layer.creates_as(ALICE));
    assert!(!layer.creates_as(Owner { uid: u32::MAX, gid: 0 }));
    fails(layer.create_dir(&root, n("none"), 0o700, Owner { uid: 0, gid: u32::MAX }), EPERM);

    let check = |name: &str, mode: u32| {
        let stat = layer.stat(Object::Entry(&root, n(name))).unwrap();
        assert_eq!((stat.uid, stat.gid, stat.mode), (ALICE.uid, ALICE.gid, mode), "{name}");
        fs::write(temp.path().join("mine"), "").unwrap();
        let mine = fs::metadata(temp.path().join("mine")).unwrap();
        assert_eq!((mine.uid(), mine.gid()), (0, 0), "the thread is itself again");
        layer.unlink(&root, n("mine")).unwrap();
    };
    layer.create_file(&root, n("file"), 0o6755, ALICE).unwrap();
    check("file", 0o6755);
    layer.create_file(&root, n("secret"), 0o000, ALICE).unwrap();
    check("secret", 0o000);
    layer.create_dir(&root, n("dir"), 0o3770, ALICE).unwrap();
    check("dir", 0o3770);
    layer.create_symlink(&root, n("link"), n("x"), ALICE).unwrap();
    check("link", 0o777);
    layer.create_node(&root, n("fifo"), Kind::Fifo, 0o620, 0, ALICE).unwrap();
    check("fifo", 0o620);
    layer.create_node(&root, n("null"), Kind::CharDev, 0o666, libc::makedev(1, 3), ALICE).unwrap();
    check("null", 0o666);

    fails(layer.create_file(&root, n("file"), 0o600, ALICE), EEXIST);
    check("file", 0o6755);
}

#[test]
fn threads_create_objects_of_different_owners() {
    // The threads start before the layer is opened, so they inherit nothing from the thread that
    // opens it.
    let start = |uid: u32| {
        let (give, take) = mpsc::channel::<Arc<LinuxLayer>>();
        let thread = thread::spawn(move || {
            let layer = take.recv().unwrap();
            let root = layer.root().unwrap();
            for index in 0..200 {
                let (name, owner) = (format!("{uid}-{index}"), Owner { uid, gid: uid + 1 });
                let file = layer.create_file(&root, n(&name), 0o600, owner).unwrap();
                let stat = layer.stat(Object::File(&file)).unwrap();
                assert_eq!((stat.uid, stat.gid), (uid, uid + 1));
            }
        });
        (give, thread)
    };
    let threads: Vec<_> = (1000..1004).map(start).collect();
    let (temp, layer, _root) = upper();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let layer = Arc::new(layer);
    let join = |(give, thread): (mpsc::Sender<_>, thread::JoinHandle<()>)| {
        give.send(layer.clone()).unwrap();
        thread
    };
    for thread in threads.into_iter().map(join).collect::<Vec<_>>() {
        thread.join().unwrap();
    }
}

/// A new object inherits the default ACL of its directory, but not its group and set-group-id bit:
/// the caller gave the owner.
#[test]
fn a_new_object_inherits_from_its_directory() {
    let (temp, layer, root) = upper();
    layer.set_owner(Object::Dir(&root), Owner { uid: 0, gid: 777 }).unwrap();
    layer.set_mode(Object::Dir(&root), 0o2777).unwrap();
    // user::rwx, group::r-x, other::---
    let acl = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x04\0\x05\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
    rustix::fs::setxattr(temp.path(), "system.posix_acl_default", acl, rustix::fs::XattrFlags::empty()).unwrap();
    fs::write(temp.path().join("plain"), "").unwrap();
    let plain = fs::metadata(temp.path().join("plain")).unwrap();
    assert_eq!((plain.gid(), plain.mode() & 0o7777), (777, 0o640), "the directory hands nothing down");

    for owner in [ROOT, ALICE, Owner { uid: ALICE.uid, gid: 777 }] {
        layer.create_file(&root, n("file"), 0o2767, owner).unwrap();
        layer.create_dir(&root, n("dir"), 0o775, owner).unwrap();
        layer.create_dir(&root, n("setgid"), 0o2777, owner).unwrap();
        layer.create_symlink(&root, n("link"), n("x"), owner).unwrap();
        layer.create_node(&root, n("fifo"), Kind::Fifo, 0o666, 0, owner).unwrap();
        for (name, mode) in [("file", 0o2740), ("dir", 0o750), ("setgid", 0o2750), ("link", 0o777), ("fifo", 0o640)] {
            let stat = layer.stat(Object::Entry(&root, n(name))).unwrap();
            assert_eq!((stat.uid, stat.gid, stat.mode), (owner.uid, owner.gid, mode), "{name} of {owner:?}");
            match stat.kind {
                Kind::Dir => layer.remove_dir(&root, n(name)).unwrap(),
                _ => layer.unlink(&root, n(name)).unwrap(),
            }
        }
    }
}

/// The layer asks for the attributes of a new object to check its owner. The engine uses them, so
/// they must be those that the layer would say next.
#[test]
fn the_attributes_of_a_new_object_are_told() {
    let (_temp, layer, root) = upper();
    for owner in [ROOT, ALICE] {
        let file = layer.create_file(&root, n("file"), 0o4640, owner).unwrap();
        let told = [
            ("file", layer.attr_of_new(&file)),
            ("dir", layer.create_dir(&root, n("dir"), 0o750, owner).unwrap()),
            ("link", layer.create_symlink(&root, n("link"), n("x"), owner).unwrap()),
            ("fifo", layer.create_node(&root, n("fifo"), Kind::Fifo, 0o620, 0, owner).unwrap()),
        ];
        for (name, told) in told {
            assert_eq!(told, Some(layer.stat(Object::Entry(&root, n(name))).unwrap()), "{name}");
        }
        let opened = layer.open_file(&root, n("file"), Access::ReadWrite).unwrap();
        assert_eq!(layer.attr_of_new(&opened), None);
        layer.remove_dir(&root, n("dir")).unwrap();
        for name in ["file", "link", "fifo"] {
            layer.unlink(&root, n(name)).unwrap();
        }
    }

    // The group comes from the directory, and the layer sets it after the creation.
    layer.set_owner(Object::Dir(&root), Owner { uid: 0, gid: 777 }).unwrap();
    layer.set_mode(Object::Dir(&root), 0o2777).unwrap();
    let file = layer.create_file(&root, n("file"), 0o640, ROOT).unwrap();
    assert_eq!(layer.attr_of_new(&file), None);
    assert_eq!(layer.create_dir(&root, n("dir"), 0o750, ROOT).unwrap(), None);
    assert_eq!(layer.create_symlink(&root, n("link"), n("x"), ROOT).unwrap(), None);
}

#[test]
fn an_empty_file_is_for_the_daemon_alone() {
    let (_temp, layer, root) = upper();
    layer.create_empty(&root, n("empty")).unwrap();
    let stat = layer.stat(Object::Entry(&root, n("empty"))).unwrap();
    assert_eq!((stat.kind, stat.mode, stat.size, stat.uid), (Kind::File, 0o600, 0, 0));
    fails(layer.create_empty(&root, n(".")), EINVAL);
}

/// Another user may replace a new object before the layer sets its group. The layer must not change
/// the replacement, or that user would get a file of root.
#[test]
fn a_replacement_of_a_new_object_is_not_changed() {
    let (temp, layer, root) = upper();
    layer.set_owner(Object::Dir(&root), Owner { uid: ALICE.uid, gid: 777 }).unwrap();
    layer.set_mode(Object::Dir(&root), 0o2777).unwrap();
    let (kept, secret, new) = (temp.path().join("kept"), temp.path().join("secret"), temp.path().join("new"));
    fs::write(&kept, "of root").unwrap();
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o600)).unwrap();
    rustix::fs::chown(&kept, None, Some(rustix::fs::Gid::ROOT)).unwrap();
    let before = fs::metadata(&kept).unwrap();

    /// Sets the flag also at a panic, so that the other thread ends.
    struct Done<'d>(&'d AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    // The exchange fails while one of the names is missing. Until the name is gone, it may be a
    // file or a directory.
    let clear = |name: &Path| {
        while name.symlink_metadata().is_ok() {
            let _ = fs::remove_file(name);
            let _ = fs::remove_dir(name);
        }
    };
    let (exchanged, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let touched = thread::scope(|scope| {
        let _done = Done(&done);
        scope.spawn(|| {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            while !done.load(Ordering::Relaxed) {
                if rustix::fs::renameat_with(CWD, &secret, CWD, &new, flags).is_ok() {
                    exchanged.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        (0..2000).find_map(|round| {
            clear(&secret);
            fs::hard_link(&kept, &secret).unwrap();
            let made = match round % 4 {
                0 => layer.create_dir(&root, n("new"), 0o750, ALICE),
                1 => layer.create_symlink(&root, n("new"), n("x"), ALICE),
                2 => layer.create_node(&root, n("new"), Kind::Fifo, 0o640, 0, ALICE),
                _ => layer.create_file(&root, n("new"), 0o640, ALICE).map(|file| layer.attr_of_new(&file)),
            };
            let found = fs::metadata(&kept).unwrap();
            let same = (found.uid(), found.gid(), found.mode()) == (before.uid(), before.gid(), before.mode());
            clear(&new);
            (!same).then(|| format!("after {round} rounds, the last of which answered {made:?}: {found:?}"))
        })
    });
    assert_eq!(touched, None);
    assert!(exchanged.into_inner() > 100, "too few exchanges");
}

#[test]
fn without_privileges_only_own_objects_are_created() {
    in_thread(|| {
        let temp = temp();
        drop_capabilities(CapabilitySet::SETPCAP);
        let layer = LinuxLayer::open(temp.path(), true).unwrap();
        let root = layer.root().unwrap();
        assert!(layer.creates_as(ROOT) && !layer.creates_as(ALICE));
        fails(layer.create_file(&root, n("file"), 0o600, ALICE), EPERM);
        layer.create_file(&root, n("file"), 0o600, ROOT).unwrap();
    });
    in_thread(|| {
        let temp = temp();
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let (uid, gid) = (rustix::fs::Uid::from_raw(ALICE.uid), rustix::fs::Gid::from_raw(ALICE.gid));
        fs::write(temp.path().join("roots"), "text").unwrap();
        fs::create_dir(temp.path().join("hidden")).unwrap();
        fs::set_permissions(temp.path().join("hidden"), fs::Permissions::from_mode(0o711)).unwrap();
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        for for_writing in [false, true] {
            let layer = LinuxLayer::open(temp.path(), for_writing).unwrap();
            let root = layer.root().unwrap();
            assert_eq!(layer.identity(), ALICE);
            assert!(layer.creates_as(ALICE) && !layer.creates_as(ROOT));
            assert_eq!(read(&layer, &root, "roots"), b"text", "O_NOATIME is for owners only");
            let hidden = layer.open_dir(&root, n("hidden")).unwrap();
            fails(layer.list(&hidden, &mut |_| ()), EACCES);
            fails(layer.stat(Object::Entry(&hidden, n("x"))), ENOENT);
        }
        let layer = LinuxLayer::open(temp.path(), true).unwrap();
        let root = layer.root().unwrap();
        let file = layer.create_file(&root, n("file"), 0o666, ALICE).unwrap();
        let stat = layer.stat(Object::File(&file)).unwrap();
        assert_eq!((stat.uid, stat.gid, stat.mode), (ALICE.uid, ALICE.gid, 0o666));
        fails(layer.create_file(&root, n("other"), 0o666, ROOT), EPERM);
        // An owner that cannot be set is recorded, and the next layer shows it from the record too.
        // The object itself stays unchanged.
        layer.set_owner(Object::File(&file), ROOT).unwrap();
        layer.set_mode(Object::File(&file), 0o4711).unwrap();
        for layer in [layer, LinuxLayer::open(temp.path(), true).unwrap()] {
            let stat = layer.stat(Object::Entry(&root, n("file"))).unwrap();
            assert_eq!((stat.uid, stat.gid, stat.mode), (ROOT.uid, ROOT.gid, 0o4711));
        }
        let own = fs::metadata(temp.path().join("file")).unwrap();
        assert_eq!((own.uid(), own.gid(), own.mode() & 0o7777), (ALICE.uid, ALICE.gid, 0o666));
    });
}

/// Tests a lower tree with `dir/{a,b}` and `file`. `mount_on` mounts another filesystem on `dir`,
/// and `file` has a bind mount.
fn mounted_inside(way: Way, mounts_first: bool, mount_on: impl Fn(&Path)) {
    let temp = temp();
    let lower = temp.path().join("lower");
    fs::create_dir_all(lower.join("dir/a")).unwrap();
    fs::write(lower.join("dir/b"), "below").unwrap();
    fs::write(lower.join("file"), "below").unwrap();
    fs::write(temp.path().join("other"), "above").unwrap();
    let inos = ["dir", "file"].map(|name| fs::symlink_metadata(lower.join(name)).unwrap().ino());

    let mount_all = || {
        mount_bind(temp.path().join("other"), lower.join("file")).unwrap();
        mount_on(&lower.join("dir"));
    };
    if mounts_first {
        mount_all();
    }
    let layer = way.open(&lower);
    if !mounts_first {
        mount_all();
    }

    let root = layer.root().unwrap();
    let listed = list(&layer, &root);
    assert_eq!(listed.len(), 2);
    for (name, ino, kind) in [("dir", inos[0], Kind::Dir), ("file", inos[1], Kind::File)] {
        let stat = layer.stat(Object::Entry(&root, n(name))).unwrap();
        assert_eq!((stat.kind, stat.ino, listed[n(name)]), (kind, ino, (kind, ino)));
        assert_eq!(stat.dev, layer.stat(Object::Dir(&root)).unwrap().dev);
    }
    let dir = layer.open_dir(&root, n("dir")).unwrap();
    let stat = layer.stat(Object::Dir(&dir)).unwrap();
    assert_eq!((stat.kind, stat.ino), (Kind::Dir, inos[0]));
    let time = Time::default();
    if way == Way::Clone {
        assert_eq!(names(&layer, &dir), ["a", "b"]);
        assert_eq!(read(&layer, &dir, "b"), b"below");
        assert_eq!(read(&layer, &root, "file"), b"below");
        for object in [Object::Dir(&dir), Object::Entry(&root, n("dir")), Object::Entry(&root, n("file"))] {
            fails(layer.set_mode(object, 0o777), EROFS);
            fails(layer.set_owner(object, ALICE), EROFS);
            fails(layer.set_times(object, time, time), EROFS);
        }
        return;
    }
    assert!(names(&layer, &dir).is_empty());
    fails(layer.stat(Object::Entry(&dir, n("a"))), ENOENT);
    fails(layer.open_dir(&dir, n("a")), ENOENT);
    fails(layer.open_file(&dir, n("b"), Access::Read), ENOENT);
    fails(layer.create_dir(&dir, n("c"), 0o700, ROOT), ENOENT);
    fails(layer.open_file(&root, n("file"), Access::Read), EBUSY);
    fails(layer.open_dir(&root, n("file")), ENOTDIR);
    fails(layer.read_link(&root, n("dir")), EINVAL);
    fails(layer.remove_dir(&root, n("dir")), EBUSY);
    fails(layer.unlink(&root, n("file")), EBUSY);
    fails(layer.rename(&root, n("dir"), &root, n("new"), RenameMode::Replace), EBUSY);
    fails(layer.link(Object::Entry(&root, n("file")), &root, n("new")), EXDEV);
    for object in [Object::Dir(&dir), Object::Entry(&root, n("dir")), Object::Entry(&root, n("file"))] {
        fails(layer.set_mode(object, 0o777), EBUSY);
        fails(layer.set_owner(object, ALICE), EBUSY);
        fails(layer.set_times(object, time, time), EBUSY);
        assert_eq!(layer.birth(object).unwrap(), None);
        assert_eq!(layer.xattrs(object).unwrap(), [""; 0]);
        fails(layer.xattr(object, n("user.none")), ENODATA);
    }
    assert_eq!(layer.stat(Object::Entry(&root, n("file"))).unwrap().size, 0);
}

#[test]
fn mounts_inside_a_layer_are_not_crossed() {
    for way in Way::BOTH {
        in_thread(move || {
            own_mounts();
            mounted_inside(way, true, |path| {
                mount_tmpfs(path);
                fs::write(path.join("above"), "").unwrap();
            });
        });
    }
}

#[test]
fn mounts_made_later_do_not_come_in() {
    in_thread(|| {
        own_mounts();
        mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).unwrap();
        mounted_inside(Way::Clone, false, |path| {
            mount_tmpfs(path);
            fs::write(path.join("above"), "").unwrap();
        });
    });
}

/// The mount point of an overlay does not answer while the daemon works on a request. Any call on
/// it would wait forever.
#[test]
fn a_filesystem_that_does_not_answer_is_not_asked() {
    for way in Way::BOTH {
        let device = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0\0", device.as_raw_fd());
        // If the test fails, the drop closes the descriptor, which ends every wait.
        in_thread(move || {
            own_mounts();
            mounted_inside(way, true, |path| {
                let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).unwrap();
                mount("hung", path, "fuse", MountFlags::empty(), options).unwrap();
            });
        });
    }
}

#[test]
fn reports_space_and_capabilities() {
    let (temp, layer, root) = upper();
    let expected = rustix::fs::statvfs(temp.path()).unwrap();
    let stat = layer.stat_fs().unwrap();
    assert_eq!((u64::from(stat.block_size), stat.blocks), (expected.f_frsize, expected.f_blocks));
    assert_eq!((stat.files, stat.name_max), (expected.f_files, 255));
    assert!(stat.blocks_available <= stat.blocks_free && stat.blocks_free <= stat.blocks && stat.blocks_free > 0);

    fs::write(temp.path().join("a"), "").unwrap();
    fs::write(temp.path().join("b"), "").unwrap();
    let exchanged = layer.rename(&root, n("a"), &root, n("b"), RenameMode::Exchange).is_ok();
    assert_eq!(layer.capabilities().exchange, exchanged);
    assert!(!LinuxLayer::open(temp.path(), false).unwrap().capabilities().exchange, "a lower layer is never written");
}

#[test]
fn opens_directories_only() {
    in_thread(|| {
        let temp = temp();
        fs::write(temp.path().join("file"), "").unwrap();
        fs::create_dir(temp.path().join("dir")).unwrap();
        symlink("dir", temp.path().join("link")).unwrap();
        for without_rights in [false, true] {
            if without_rights {
                drop_capabilities(CapabilitySet::SYS_ADMIN);
            }
            for for_writing in [false, true] {
                let open = |name: &str| LinuxLayer::open(&temp.path().join(name), for_writing);
                fails(open("missing"), ENOENT);
                fails(open("file"), ENOTDIR);
                fails(open("file/x"), ENOTDIR);
                fails(LinuxLayer::open(Path::new(""), for_writing), ENOENT);
                let dir = open("link").unwrap();
                let ino = dir.stat(Object::Dir(&dir.root().unwrap())).unwrap().ino;
                assert_eq!(ino, fs::metadata(temp.path().join("dir")).unwrap().ino());
            }
        }
    });
}

#[test]
fn lists_a_large_directory_once() {
    let (temp, layer, root) = upper();
    for index in 0..5000 {
        fs::write(temp.path().join(format!("{index:0>40}")), "").unwrap();
    }
    assert_eq!(list(&layer, &root).len(), 5000);
    assert_eq!(list(&layer, &root).len(), 5000, "each listing starts at the beginning");
}

#[test]
fn counts_calls_by_method() {
    let temp = temp();
    let counts = Counts::default();
    let path = |name| {
        fs::create_dir(temp.path().join(name)).unwrap();
        temp.path().join(name)
    };
    let (first, second) = LinuxLayer::open_pair(&path("first"), &path("second")).unwrap();
    let (first, second) = (Counted::new(first, &counts), Counted::new(second, &counts));
    let (from, to) = (first.root().unwrap(), second.root().unwrap());
    assert_eq!(counts.take().to_string(), "2 (root 2)");
    assert_eq!(counts.to_string(), "0");

    let file = first.create_file(&from, n("file"), 0o600, ROOT).unwrap();
    first.stat(Object::Dir(&from)).unwrap();
    first.stat(Object::Entry(&from, n("file"))).unwrap();
    first.set_mode(Object::File(&file), 0o640).unwrap();
    second.rename(&from, n("file"), &to, n("file"), RenameMode::Replace).unwrap();
    fails(second.unlink(&to, n("missing")), ENOENT);
    assert!(first.creates_as(ROOT) && first.capabilities().dirs_follow_rename && first.identity() == ROOT);
    assert_eq!(counts.total(), 6);
    assert_eq!(counts.to_string(), "6 (stat 2, set_mode 1, create_file 1, unlink 1, rename 1)");
    let tally = counts.take();
    assert_eq!((tally.of(Method::Stat), tally.of(Method::Rename), tally.of(Method::List)), (2, 1, 0));
    assert_eq!(Method::ALL.iter().map(|&method| tally.of(method)).sum::<u64>(), tally.total());
    assert_eq!(counts.total(), 0);
}
