//! Features outside of the model: ACLs and capabilities, files without a name, allocation, copies
//! of ranges, birth times, and the device that a rename leaves. Where it is possible, the tests
//! compare the result with the same operation in an ordinary directory.

#![cfg(target_os = "linux")]

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use overlayfs::errno::{EEXIST, EFBIG, EINVAL, EISDIR, ENODATA, ENOENT, EOPNOTSUPP, EROFS};
use overlayfs::layer::{Allocation, Error, Kind, OsLayer, Owner, RenameMode, Time, XattrMode};
use overlayfs::overlay::{Layers, Node, Overlay};
use rustix::fs::{AtFlags, CWD, FileType, OFlags, StatxFlags, XattrFlags};
use rustix::io::Errno;
use test_common::{LowerGuard, Setup, exists, mode, names, owner, put, times};

type NodeRef = Arc<Node<OsLayer>>;

const OWN: Owner = Owner { uid: 0, gid: 0 };
const OTHER: Owner = Owner { uid: 1000, gid: 1000 };
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const CAPABILITY: &str = "security.capability";
/// `cap_net_raw=ep`, as setcap(8) writes it.
const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const MIB: u64 = 1 << 20;

/// Mounts an overlay of `upper` over `lower`, two directories of the setup.
fn mount(setup: &Setup) -> Overlay<OsLayer> {
    let upper = OsLayer::open(&setup.dir("upper"), true).unwrap();
    let lowers = vec![OsLayer::open(&setup.dir("lower"), false).unwrap()];
    Overlay::new(Layers { upper: Some(upper), work: None, lowers }).unwrap()
}

fn find(overlay: &Overlay<OsLayer>, path: &str) -> NodeRef {
    path.split('/').fold(overlay.root().clone(), |dir, name| overlay.lookup(&dir, OsStr::new(name)).unwrap())
}

fn missing(overlay: &Overlay<OsLayer>, path: &str) -> bool {
    let (dir, name) =
        path.split_once('/').map_or((overlay.root().clone(), path), |(dir, name)| (find(overlay, dir), name));
    match overlay.lookup(&dir, OsStr::new(name)) {
        Ok(_) => false,
        Err(error) => error.errno == ENOENT || panic!("{path}: {error}"),
    }
}

fn content(overlay: &Overlay<OsLayer>, node: &NodeRef) -> Vec<u8> {
    let mut bytes = vec![0; overlay.stat(node).unwrap().size as usize + 1];
    let read = overlay.read_at(&overlay.open(node), &mut bytes, 0).unwrap();
    bytes.truncate(read);
    bytes
}

fn errno<T>(result: Result<T, Error>) -> i32 {
    result.map(drop).map_or_else(|error| error.errno, |()| 0)
}

/// Returns an extended attribute of an object of Linux, or None.
fn host_xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(4096);
    match rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)) {
        Ok(_) => Some(value),
        Err(Errno::NODATA) => None,
        Err(other) => panic!("{name} of {}: {other}", path.display()),
    }
}

fn set_host_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// Returns an extended attribute of an object of the overlay, or None.
fn xattr(overlay: &Overlay<OsLayer>, node: &NodeRef, name: &str) -> Option<Vec<u8>> {
    match overlay.xattr(node, OsStr::new(name)) {
        Ok(value) => Some(value),
        Err(error) if error.errno == ENODATA => None,
        Err(error) => panic!("{name}: {error}"),
    }
}

fn set(overlay: &Overlay<OsLayer>, node: &NodeRef, name: &str, value: &[u8]) {
    overlay.set_xattr(node, OsStr::new(name), value, XattrMode::Set).unwrap();
}

fn xattrs(overlay: &Overlay<OsLayer>, node: &NodeRef) -> Vec<String> {
    let mut names: Vec<_> = overlay.xattrs(node).unwrap().into_iter().map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

/// Encodes a POSIX ACL as the value of an attribute, from the permissions of the owner, the user
/// 1000, the group, the mask and others.
fn acl(owner: u16, user: u16, group: u16, mask: u16, others: u16) -> Vec<u8> {
    let entries =
        [(1, owner, u32::MAX), (2, user, 1000), (4, group, u32::MAX), (0x10, mask, u32::MAX), (0x20, others, u32::MAX)];
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend([u16::to_le_bytes(tag), permissions.to_le_bytes()].concat());
        value.extend(u32::to_le_bytes(id));
    }
    value
}

/// Returns the mode, owner and ACLs of an object of the overlay.
fn access(overlay: &Overlay<OsLayer>, node: &NodeRef) -> Access {
    let stat = overlay.stat(node).unwrap();
    let acl = |name| (node.kind() != Kind::Symlink).then(|| xattr(overlay, node, name)).flatten();
    (stat.mode, (stat.uid, stat.gid), acl(ACCESS), acl(DEFAULT))
}

/// Returns the mode, owner and ACLs of an object of Linux.
fn host_access(path: &Path) -> Access {
    let stat = fs::symlink_metadata(path).unwrap();
    let acl = |name| (!stat.is_symlink()).then(|| host_xattr(path, name)).flatten();
    (stat.mode() & 0o7777, (stat.uid(), stat.gid()), acl(ACCESS), acl(DEFAULT))
}

type Access = (u32, (u32, u32), Option<Vec<u8>>, Option<Vec<u8>>);

#[test]
fn a_new_object_inherits_the_default_acl() {
    let setup = Setup::new();
    let (plain, lower) = (setup.dir("plain"), put::dir(&setup.dir("lower"), "d"));
    for dir in [&plain, &lower] {
        set_host_xattr(dir, DEFAULT, &acl(7, 6, 5, 7, 1));
    }
    let guard = LowerGuard::new([setup.path("lower")]);
    let overlay = mount(&setup);
    let dir = find(&overlay, "d");
    fn name(name: &str) -> &OsStr {
        OsStr::new(name)
    }
    for mode in [0o666, 0o600, 0o777, 0o4755, 0o2711] {
        let file = format!("file{mode:o}");
        let made = overlay.create_file(&dir, name(&file), mode, OWN).unwrap();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        rustix::fs::openat(CWD, plain.join(&file), flags, mode.into()).unwrap();
        assert_eq!(access(&overlay, made.node()), host_access(&plain.join(&file)), "{file}");

        let temp = overlay.create_temp(&dir, mode, OWN).unwrap();
        let unnamed = rustix::fs::openat(CWD, &plain, OFlags::TMPFILE | OFlags::WRONLY, mode.into()).unwrap();
        let named = plain.join(format!("temp{mode:o}"));
        rustix::fs::linkat(CWD, format!("/proc/self/fd/{}", unnamed.as_raw_fd()), CWD, &named, AtFlags::SYMLINK_FOLLOW)
            .unwrap();
        assert_eq!(access(&overlay, temp.node()), host_access(&named), "without a name, {mode:o}");
    }
    overlay.create_dir(&dir, name("dir"), 0o770, OWN).unwrap();
    overlay.create_node(&dir, name("fifo"), Kind::Fifo, 0o660, 0, OWN).unwrap();
    overlay.create_symlink(&dir, name("link"), name("target"), OWN).unwrap();
    rustix::fs::mkdirat(CWD, plain.join("dir"), 0o770.into()).unwrap();
    rustix::fs::mknodat(CWD, plain.join("fifo"), FileType::Fifo, 0o660.into(), 0).unwrap();
    std::os::unix::fs::symlink("target", plain.join("link")).unwrap();
    for name in ["dir", "fifo", "link"] {
        assert_eq!(access(&overlay, &find(&overlay, &format!("d/{name}"))), host_access(&plain.join(name)), "{name}");
    }
    let inside = overlay.create_dir(&find(&overlay, "d/dir"), name("inside"), 0o777, OTHER).unwrap();
    assert!(xattr(&overlay, &inside, DEFAULT).is_some(), "handed down further");
    guard.check();
}

#[test]
fn a_copy_has_the_acl_of_its_original_and_none_of_its_surroundings() {
    let setup = Setup::new();
    let (lower, upper) = (setup.dir("lower"), setup.dir("upper"));
    // New objects in the root of the upper layer inherit this ACL, and the work directory is one of
    // them.
    set_host_xattr(&upper, DEFAULT, &acl(7, 7, 7, 7, 7));
    set_host_xattr(&lower, DEFAULT, &acl(7, 7, 7, 7, 7));
    let (file, dir) = (put::file(&lower, "d/file", "x"), lower.join("d"));
    let (with, dir_with) = (put::file(&lower, "with", "x"), put::dir(&lower, "dir-with"));
    put::node(&lower, "fifo", FileType::Fifo, 0o640, 0);
    for path in [&file, &dir, &lower.join("fifo")] {
        for name in [ACCESS, DEFAULT] {
            match rustix::fs::lremovexattr(path, name) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
    mode(&file, 0o640);
    mode(&dir, 0o750);
    mode(&lower.join("fifo"), 0o640);
    set_host_xattr(&with, ACCESS, &acl(6, 4, 0, 4, 0));
    set_host_xattr(&dir_with, ACCESS, &acl(7, 5, 1, 5, 0));
    set_host_xattr(&dir_with, DEFAULT, &acl(7, 5, 1, 5, 0));
    owner(&with, 1000, 1000);
    let overlay = mount(&setup);
    for path in ["d/file", "d", "with", "dir-with", "fifo"] {
        let node = find(&overlay, path);
        let before = access(&overlay, &node);
        overlay.set_times(&node, Time { sec: 1, nsec: 1 }, Time { sec: 2, nsec: 2 }).unwrap();
        assert!(exists(&upper.join(path)));
        assert_eq!(access(&overlay, &node), before, "{path}");
        assert_eq!(host_access(&upper.join(path)), before, "{path}");
        assert_eq!(host_access(&lower.join(path)), before, "{path}");
    }
    let temp = overlay.create_temp(&find(&overlay, "d"), 0o640, OWN).unwrap();
    assert_eq!(access(&overlay, temp.node()), (0o640, (0, 0), None, None));
}

#[test]
fn a_copy_has_all_attributes_of_its_original_except_marks() {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    put::file(&lower, "file", "x");
    put::dir(&lower, "dir");
    put::symlink(&lower, "link", "file");
    put::node(&lower, "fifo", FileType::Fifo, 0o640, 0);
    for name in ["file", "dir", "link", "fifo"] {
        set_host_xattr(&lower.join(name), "trusted.kept", name.as_bytes());
        set_host_xattr(&lower.join(name), "security.kept", &[0; 3000]);
        set_host_xattr(&lower.join(name), "trusted.overlay.origin", b"elsewhere");
    }
    for name in ["file", "dir"] {
        set_host_xattr(&lower.join(name), "user.kept", b"");
        set_host_xattr(&lower.join(name), "user.fuseoverlayfs.origin", b"elsewhere");
        set_host_xattr(&lower.join(name), "user.overlay.origin", b"elsewhere");
    }
    times(&lower.join("file"), (7, 7), (8, 8));
    let guard = LowerGuard::new([lower.clone()]);
    let overlay = mount(&setup);
    for name in ["file", "dir", "link", "fifo"] {
        let node = find(&overlay, name);
        let user = if matches!(name, "file" | "dir") { &["user.kept"][..] } else { &[] };
        let all = [&["security.kept", "trusted.kept"], user].concat();
        assert_eq!(xattrs(&overlay, &node), all, "of the lower {name}");
        overlay.set_owner(&node, OTHER).unwrap();
        assert_eq!(xattrs(&overlay, &node), all, "of the upper {name}");
        let upper = setup.path("upper").join(name);
        for kept in all {
            assert_eq!(host_xattr(&upper, kept), host_xattr(&lower.join(name), kept), "{kept} of {name}");
        }
        assert_eq!(host_xattr(&upper, "trusted.overlay.origin"), None);
    }
    assert_eq!(overlay.stat(&find(&overlay, "file")).unwrap().mtime, Time { sec: 8, nsec: 8 });
    guard.check();
}

/// A user of the overlay cannot reach the marks of the layers. Attributes with their names are
/// escaped, since a layer of another overlay may need them.
#[test]
fn attributes_of_other_overlays_are_escaped() {
    let setup = Setup::new();
    let file = put::file(&setup.dir("lower"), "file", "x");
    let own = [
        ("trusted.overlay.opaque", "trusted.overlay.overlay.opaque"),
        ("user.overlay.overlay.redirect", "user.overlay.overlay.overlay.redirect"),
        ("user.fuseoverlayfs.origin", "user.fuseoverlayfs.overlay.origin"),
    ];
    for (name, stored) in own {
        set_host_xattr(&file, name, b"mark");
        set_host_xattr(&file, stored, b"lower");
    }
    // The second of the names is an escaped attribute itself.
    let guard = LowerGuard::new([setup.path("lower")]);
    let overlay = mount(&setup);
    let node = find(&overlay, "file");
    let all = [
        "trusted.overlay.opaque",
        "user.fuseoverlayfs.origin",
        "user.overlay.overlay.redirect",
        "user.overlay.redirect",
    ];
    assert_eq!(xattrs(&overlay, &node), all);
    for (name, _) in own {
        assert_eq!(xattr(&overlay, &node, name).unwrap(), b"lower", "{name}");
    }
    assert!(!exists(&setup.path("upper/file")));

    overlay.set_owner(&node, OTHER).unwrap();
    assert_eq!(xattrs(&overlay, &node), all, "of the copy");
    let upper = setup.path("upper/file");
    for (name, stored) in own {
        assert_eq!(host_xattr(&upper, stored).unwrap(), b"lower", "{stored}");
        let (name, other) = (OsStr::new(name), b"upper");
        assert_eq!(errno(overlay.set_xattr(&node, name, other, XattrMode::Create)), EEXIST);
        overlay.set_xattr(&node, name, other, XattrMode::Replace).unwrap();
        assert_eq!(host_xattr(&upper, stored).unwrap(), other);
        assert_eq!(overlay.xattr(&node, name).unwrap(), other);
    }
    assert_eq!(host_xattr(&upper, "trusted.overlay.opaque"), None);
    for (name, _) in own {
        overlay.remove_xattr(&node, OsStr::new(name)).unwrap();
        assert_eq!(errno(overlay.xattr(&node, OsStr::new(name))), ENODATA);
    }
    assert_eq!(xattrs(&overlay, &node), ["user.overlay.redirect"]);

    let fits = format!("user.overlay.{}", "x".repeat(255 - "user.overlay.overlay.".len()));
    set(&overlay, &node, &fits, b"y");
    let long = fits + "x";
    assert_eq!(errno(overlay.set_xattr(&node, OsStr::new(&long), b"y", XattrMode::Set)), EOPNOTSUPP);
    assert_eq!(errno(overlay.xattr(&node, OsStr::new(&long))), EOPNOTSUPP);
    guard.check();
}

#[test]
fn setting_an_attribute_copies_up_and_reading_does_not() {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    for name in ["set", "removed", "asked"] {
        set_host_xattr(&put::file(&lower, name, "x"), "user.there", b"1");
    }
    let guard = LowerGuard::new([lower]);
    let overlay = mount(&setup);
    let there = OsStr::new("user.there");
    let other = OsStr::new("user.other");

    let asked = find(&overlay, "asked");
    assert_eq!(xattr(&overlay, &asked, "user.there").unwrap(), b"1");
    assert_eq!(errno(overlay.set_xattr(&asked, there, b"2", XattrMode::Create)), EEXIST);
    assert_eq!(errno(overlay.set_xattr(&asked, other, b"2", XattrMode::Replace)), ENODATA);
    assert_eq!(errno(overlay.remove_xattr(&asked, other)), ENODATA);
    assert!(!exists(&setup.path("upper/asked")), "nothing was changed, so nothing is copied");

    let (node, handle) = (find(&overlay, "set"), overlay.open(&find(&overlay, "set")));
    let before = overlay.stat(&node).unwrap();
    overlay.set_xattr(&node, there, b"2", XattrMode::Replace).unwrap();
    overlay.set_xattr(&node, other, b"3", XattrMode::Create).unwrap();
    let after = overlay.stat(&node).unwrap();
    assert_eq!((after.ino, after.mtime), (before.ino, before.mtime));
    assert!(after.ctime > before.ctime);
    assert_eq!(xattr(&overlay, handle.node(), "user.there").unwrap(), b"2");
    overlay.remove_xattr(&find(&overlay, "removed"), there).unwrap();

    overlay.unlink(overlay.root(), OsStr::new("asked")).unwrap();
    drop((node, handle, asked));
    drop(overlay);
    let overlay = mount(&setup);
    assert_eq!(xattrs(&overlay, &find(&overlay, "set")), ["user.other", "user.there"]);
    assert_eq!(xattrs(&overlay, &find(&overlay, "removed")), [""; 0]);
    guard.check();
}

#[test]
fn the_root_has_attributes_too() {
    let setup = Setup::new();
    set_host_xattr(&setup.dir("upper"), "trusted.overlay.opaque", b"x");
    let overlay = mount(&setup);
    set(&overlay, &overlay.root().clone(), "user.name", b"value");
    assert_eq!(xattrs(&overlay, overlay.root()), ["user.name"]);
    assert_eq!(host_xattr(&setup.path("upper"), "user.name").unwrap(), b"value");
}

#[test]
fn an_open_file_keeps_its_attributes_when_it_is_unlinked() {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    for name in ["lower", "changed"] {
        set_host_xattr(&put::file(&lower, name, "x"), "user.there", b"1");
    }
    let overlay = mount(&setup);
    for name in ["lower", "changed"] {
        let handle = overlay.open(&find(&overlay, name));
        if name == "changed" {
            overlay.write_at(&handle, b"y", 0).unwrap();
        }
        overlay.unlink(overlay.root(), OsStr::new(name)).unwrap();
        assert_eq!(xattr(&overlay, handle.node(), "user.there").unwrap(), b"1");
        set(&overlay, handle.node(), "user.there", b"2");
        assert_eq!(xattr(&overlay, handle.node(), "user.there").unwrap(), b"2");
        assert_eq!(overlay.stat(handle.node()).unwrap().nlink, 0);
        assert!(overlay.birth(handle.node()).unwrap().is_some());
    }
}

#[test]
fn an_open_directory_keeps_its_times_when_it_is_removed() {
    let setup = Setup::new();
    for dir in ["removed", "replaced"] {
        put::file(&setup.dir("lower"), &format!("{dir}/file"), "");
    }
    put::dir(&setup.dir("lower"), "other");
    let overlay = mount(&setup);
    let (root, old) = (overlay.root(), Time { sec: 7, nsec: 8 });
    let open = ["removed", "replaced"].map(|name| {
        let dir = find(&overlay, name);
        // A whiteout is in the directory now.
        overlay.unlink(&dir, OsStr::new("file")).unwrap();
        overlay.set_times(&dir, old, old).unwrap();
        overlay.open(&dir)
    });
    overlay.remove_dir(root, OsStr::new("removed")).unwrap();
    overlay.rename(root, OsStr::new("other"), root, OsStr::new("replaced"), RenameMode::Replace).unwrap();
    for dir in open {
        assert_eq!(overlay.stat(dir.node()).unwrap().mtime, old);
    }
}

#[test]
fn nothing_is_set_without_an_upper_layer() {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    set_host_xattr(&put::file(&lower, "file", "x"), "user.there", b"1");
    let lowers = vec![OsLayer::open(&lower, false).unwrap()];
    let overlay = Overlay::new(Layers { upper: None, work: None, lowers }).unwrap();
    let (node, there) = (find(&overlay, "file"), OsStr::new("user.there"));
    let handle = overlay.open(&node);
    assert_eq!(xattr(&overlay, &node, "user.there").unwrap(), b"1");
    assert_eq!(errno(overlay.set_xattr(&node, there, b"2", XattrMode::Set)), EROFS);
    assert_eq!(errno(overlay.remove_xattr(&node, there)), EROFS);
    assert_eq!(errno(overlay.create_temp(overlay.root(), 0o600, OWN)), EROFS);
    assert_eq!(errno(overlay.allocate(&handle, Allocation::PunchHole, 0..1)), EROFS);
    assert_eq!(errno(overlay.copy_range(&handle, 0..1, &handle, 1)), EROFS);
}

#[test]
fn an_acl_and_the_mode_agree() {
    let setup = Setup::new();
    put::file(&setup.dir("lower"), "file", "x");
    let overlay = mount(&setup);
    let node = find(&overlay, "file");
    set(&overlay, &node, ACCESS, &acl(6, 7, 0, 4, 0));
    assert_eq!(overlay.stat(&node).unwrap().mode, 0o640, "the mask is the group's part");
    overlay.set_mode(&node, 0o601).unwrap();
    assert_eq!(xattr(&overlay, &node, ACCESS).unwrap(), acl(6, 7, 0, 0, 1));
    overlay.set_owner(&node, OTHER).unwrap();
    assert_eq!(overlay.stat(&node).unwrap().mode, 0o601);
    overlay.remove_xattr(&node, OsStr::new(ACCESS)).unwrap();
    assert_eq!(access(&overlay, &node), (0o601, (1000, 1000), None, None));
}

#[test]
fn a_default_acl_is_known_as_soon_as_it_is_set() {
    let setup = Setup::new();
    let inherits = put::dir(&setup.dir("lower"), "inherits");
    set_host_xattr(&inherits, DEFAULT, &acl(7, 5, 5, 5, 5));
    put::dir(&setup.dir("lower"), "d");
    let overlay = mount(&setup);
    assert!(overlay.has_default_acl(&find(&overlay, "inherits")).unwrap());
    let dir = find(&overlay, "d");
    assert!(!overlay.has_default_acl(&dir).unwrap());
    set(&overlay, &dir, DEFAULT, &acl(7, 5, 5, 5, 5));
    assert!(overlay.has_default_acl(&dir).unwrap());
    overlay.remove_xattr(&dir, OsStr::new(DEFAULT)).unwrap();
    assert!(!overlay.has_default_acl(&dir).unwrap());
}

#[test]
fn capabilities_are_copied_up_and_dropped_as_in_any_filesystem() {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    for name in ["renamed", "chmod", "chown", "written", "cut", "cut-to-nothing"] {
        set_host_xattr(&put::file(&lower, name, "program"), CAPABILITY, &NET_RAW);
        owner(&lower.join(name), 0, 1000);
        set_host_xattr(&lower.join(name), CAPABILITY, &NET_RAW);
        mode(&lower.join(name), 0o755);
    }
    let overlay = mount(&setup);
    let of = |name: &str| xattr(&overlay, &find(&overlay, name), CAPABILITY);
    let root = overlay.root().clone();
    overlay.rename(&root, OsStr::new("renamed"), &root, OsStr::new("new"), RenameMode::Replace).unwrap();
    overlay.set_mode(&find(&overlay, "chmod"), 0o700).unwrap();
    for kept in ["new", "chmod"] {
        assert_eq!(of(kept).as_deref(), Some(&NET_RAW[..]), "{kept}");
    }
    overlay.set_owner(&find(&overlay, "chown"), OTHER).unwrap();
    overlay.write_at(&overlay.open(&find(&overlay, "written")), b"x", 0).unwrap();
    overlay.truncate(&find(&overlay, "cut"), 3).unwrap();
    overlay.truncate(&find(&overlay, "cut-to-nothing"), 0).unwrap();
    for dropped in ["chown", "written", "cut", "cut-to-nothing"] {
        assert_eq!(of(dropped), None, "{dropped}");
        assert_eq!(overlay.stat(&find(&overlay, dropped)).unwrap().mode, 0o755);
    }
}

/// Runs `test` on an overlay in a thread with the uid 1000 and the groups 1000 and 2000. The other
/// threads keep their ids.
fn as_user(setup: &Setup, test: impl FnOnce(&Overlay<OsLayer>) + Send) {
    mode(setup.root(), 0o755);
    owner(&setup.dir("upper"), 1000, 1000);
    let daemon = || {
        let groups = [2000u32];
        // SAFETY: the array has the given number of elements. The two other calls take no memory.
        let results = unsafe {
            [
                libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()),
                libc::syscall(libc::SYS_setresgid, 1000, 1000, 1000),
                libc::syscall(libc::SYS_setresuid, 1000, 1000, 1000),
            ]
        };
        assert_eq!(results, [0; 3]);
        test(&mount(setup));
    };
    std::thread::scope(|scope| scope.spawn(daemon).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn set_id_bits_survive_a_copy_up_by_a_daemon_without_rights() {
    let setup = Setup::new();
    let file = put::file(&setup.dir("lower"), "file", vec![b'x'; 10_000]);
    owner(&file, 1000, 1000);
    mode(&file, 0o6755);
    as_user(&setup, |overlay| {
        let node = find(overlay, "file");
        overlay.set_times(&node, Time { sec: 1, nsec: 1 }, Time { sec: 1, nsec: 1 }).unwrap();
        assert_eq!(overlay.stat(&node).unwrap().mode, 0o6755);
    });
    assert_eq!(host_access(&setup.path("upper/file")).0, 0o6755);
}

#[test]
fn an_object_built_in_the_work_directory_gets_the_acl_of_its_directory() {
    let setup = Setup::new();
    let (plain, lower) = (setup.dir("plain"), put::dir(&setup.dir("lower"), "d"));
    for dir in [&plain, &lower] {
        owner(dir, 1000, 2000);
        set_host_xattr(dir, DEFAULT, &acl(7, 6, 5, 7, 1));
        mode(dir, 0o2775);
    }
    rustix::fs::mkdirat(CWD, plain.join("dir"), 0o2750.into()).unwrap();
    rustix::fs::mknodat(CWD, plain.join("fifo"), FileType::Fifo, 0o664.into(), 0).unwrap();
    fs::OpenOptions::new().write(true).create_new(true).mode(0o646).open(plain.join("file")).unwrap();
    for name in ["dir", "fifo", "file"] {
        rustix::fs::chownat(CWD, plain.join(name), Some(rustix::fs::Uid::from_raw(1000)), None, AtFlags::empty())
            .unwrap();
    }
    as_user(&setup, |overlay| {
        let (dir, name) = (find(overlay, "d"), OsStr::new);
        // The daemon has another group.
        let shared = Owner { uid: 1000, gid: 2000 };
        overlay.create_dir(&dir, name("dir"), 0o2750, shared).unwrap();
        overlay.create_node(&dir, name("fifo"), Kind::Fifo, 0o664, 0, shared).unwrap();
        overlay.create_file(&dir, name("file"), 0o646, shared).unwrap();
        overlay.create_symlink(&dir, name("link"), name("target"), shared).unwrap();
        for made in ["dir", "fifo", "file"] {
            let node = find(overlay, &format!("d/{made}"));
            assert_eq!(access(overlay, &node), host_access(&plain.join(made)), "{made}");
        }
    });
}

#[test]
fn a_file_without_a_name_is_a_file() {
    let setup = Setup::new();
    let work = setup.path("upper/.wh..wh.work");
    put::file(&setup.dir("lower"), "d/hidden", "x");
    let overlay = mount(&setup);
    let (dir, root) = (find(&overlay, "d"), overlay.root().clone());
    let temp = overlay.create_temp(&dir, 0o640, OTHER).unwrap();
    let stat = overlay.stat(temp.node()).unwrap();
    assert_eq!((stat.kind, stat.mode, stat.uid, stat.gid, stat.nlink), (Kind::File, 0o640, 1000, 1000, 0));
    assert_eq!(overlay.write_at(&temp, b"0123456789", 0).unwrap(), 10);
    assert_eq!(overlay.append(&temp, b"ab").unwrap(), 2);
    overlay.truncate(temp.node(), 11).unwrap();
    overlay.set_mode(temp.node(), 0o600).unwrap();
    set(&overlay, temp.node(), "user.name", b"value");
    overlay.sync(&temp).unwrap();
    let second = overlay.open(temp.node());
    overlay.write_at(&second, b"X", 0).unwrap();
    drop(second);
    assert_eq!(content(&overlay, temp.node()), b"X123456789a");
    assert!(overlay.path(temp.node()).is_none());
    assert_eq!(names(&setup.path("upper")), [".wh..wh.work"], "nothing is in the tree");

    let ino = overlay.stat(temp.node()).unwrap().ino;
    assert_eq!(errno(overlay.link(temp.node(), &dir, OsStr::new("hidden"))), EEXIST);
    overlay.link(temp.node(), &dir, OsStr::new("first")).unwrap();
    assert_eq!(overlay.stat(temp.node()).unwrap().nlink, 1);
    overlay.link(temp.node(), &root, OsStr::new("second")).unwrap();
    let stat = overlay.stat(temp.node()).unwrap();
    assert_eq!((stat.nlink, stat.mode, stat.ino), (2, 0o600, ino));
    assert!(Arc::ptr_eq(&find(&overlay, "second"), temp.node()));
    assert_eq!(names(&work), ["numbers", "record"], "nothing else is left in the work directory");
    overlay.unlink(&dir, OsStr::new("first")).unwrap();
    overlay.write_at(&temp, b"Y", 1).unwrap();
    drop(temp);
    drop((dir, root));
    drop(overlay);
    let overlay = mount(&setup);
    assert_eq!(content(&overlay, &find(&overlay, "second")), b"XY23456789a");
    assert_eq!(xattr(&overlay, &find(&overlay, "second"), "user.name").unwrap(), b"value");
    assert!(missing(&overlay, "d/first"));
}

#[test]
fn the_first_name_is_counted_once() {
    let setup = Setup::new();
    let overlay = mount(&setup);
    overlay.leave_times_to_front_end();
    let temp = overlay.create_temp(overlay.root(), 0o600, OWN).unwrap();
    let links = || overlay.stat(temp.node()).unwrap().nlink;
    overlay.write_at(&temp, b"x", 0).unwrap();
    assert_eq!(links(), 0);
    for (count, name) in ["first", "second"].into_iter().enumerate() {
        overlay.link(temp.node(), overlay.root(), OsStr::new(name)).unwrap();
        assert_eq!(links() as usize, count + 1);
    }
}

#[test]
fn a_file_that_never_gets_a_name_leaves_nothing() {
    let setup = Setup::new();
    let overlay = mount(&setup);
    let work = setup.path("upper/.wh..wh.work");
    let temp = overlay.create_temp(overlay.root(), 0o600, OWN).unwrap();
    overlay.write_at(&temp, b"x", 0).unwrap();
    let node = temp.node().clone();
    overlay.release(node.clone());
    assert_eq!(content(&overlay, &node), b"x", "it is open");
    drop(temp);
    overlay.release(node);
    assert_eq!(names(&work), ["numbers", "record"]);

    let removed = overlay.create_dir(overlay.root(), OsStr::new("removed"), 0o700, OWN).unwrap();
    overlay.remove_dir(overlay.root(), OsStr::new("removed")).unwrap();
    assert_eq!(errno(overlay.create_temp(&removed, 0o600, OWN)), ENOENT);
    // As after a crash: the file stays open and unnamed.
    std::mem::forget(overlay.create_temp(overlay.root(), 0o600, OWN).unwrap());
    drop(overlay);
    put::file(&work, "tmp.left", "x");
    drop(mount(&setup));
    assert_eq!(names(&work), ["record"]);
}

#[test]
fn the_first_name_of_a_temporary_file_may_cover_a_mark() {
    let setup = Setup::new();
    put::file(&setup.dir("lower"), "file", "old");
    let overlay = mount(&setup);
    let (root, name) = (overlay.root().clone(), OsStr::new("file"));
    overlay.unlink(&root, name).unwrap();
    let temp = overlay.create_temp(&root, 0o600, OWN).unwrap();
    overlay.write_at(&temp, b"new", 0).unwrap();
    overlay.link(temp.node(), &root, name).unwrap();
    assert_eq!(names(&setup.path("upper")), [".wh..wh.work", "file"]);
    overlay.unlink(&root, name).unwrap();
    assert_eq!(errno(overlay.link(temp.node(), &root, name)), ENOENT, "it had a name, which was its last");
    assert_eq!(content(&overlay, temp.node()), b"new");
    assert!(missing(&overlay, "file"));
}

#[test]
fn space_is_reserved_and_freed() {
    let setup = Setup::new();
    let lower = put::file(&setup.dir("lower"), "file", vec![b'x'; MIB as usize]);
    let plain = put::file(&setup.dir("plain"), "file", vec![b'x'; MIB as usize]);
    let guard = LowerGuard::new([setup.path("lower")]);
    let overlay = mount(&setup);
    let (node, block) = (find(&overlay, "file"), fs::metadata(&lower).unwrap().blksize());
    let handle = overlay.open(&node);
    let file = fs::OpenOptions::new().write(true).open(&plain).unwrap();
    let (keep, grow) = (rustix::fs::FallocateFlags::KEEP_SIZE, rustix::fs::FallocateFlags::empty());
    use rustix::fs::FallocateFlags as Flags;
    for (how, flags, range) in [
        (Allocation::PunchHole, Flags::PUNCH_HOLE | keep, 4 * block..8 * block),
        (Allocation::Reserve { keep_size: true }, keep, MIB..2 * MIB),
        (Allocation::Reserve { keep_size: false }, grow, 0..MIB + 100),
        (Allocation::Zero { keep_size: true }, Flags::ZERO_RANGE | keep, 100..200),
        (Allocation::Zero { keep_size: false }, Flags::ZERO_RANGE, MIB..MIB + 2 * block),
        (Allocation::Collapse, Flags::COLLAPSE_RANGE, block..2 * block),
        (Allocation::Insert, Flags::INSERT_RANGE, 2 * block..4 * block),
    ] {
        overlay.allocate(&handle, how, range.clone()).unwrap();
        rustix::fs::fallocate(&file, flags, range.start, range.end - range.start).unwrap();
        let (stat, expected) = (overlay.stat(&node).unwrap(), fs::metadata(&plain).unwrap());
        assert_eq!(stat.size, expected.size(), "{how:?}");
        // The filesystem also counts blocks for metadata, and their number depends on the state of
        // the disk.
        let (blocks, expected_blocks) = (stat.blocks, expected.blocks());
        assert!(blocks.abs_diff(expected_blocks) <= 64, "{how:?}: {blocks} and {expected_blocks} blocks");
        assert_eq!(content(&overlay, &node), fs::read(&plain).unwrap(), "{how:?}");
        assert_eq!(overlay.append(&handle, b"end").unwrap(), 3);
        file.write_all_at(b"end", expected.size()).unwrap();
        assert_eq!(content(&overlay, &node), fs::read(&plain).unwrap(), "appended after {how:?}");
    }
    let hole = Allocation::PunchHole;
    assert_eq!(errno(overlay.allocate(&handle, hole, 5..5)), EINVAL);
    assert_eq!(errno(overlay.allocate(&handle, hole, 0..u64::MAX)), EFBIG);
    assert_eq!(errno(overlay.allocate(&overlay.open(overlay.root()), hole, 0..1)), EISDIR);
    guard.check();
}

#[test]
fn holes_are_reported_and_kept() {
    let setup = Setup::new();
    let lower = put::file(&setup.dir("lower"), "file", "");
    let file = fs::OpenOptions::new().write(true).open(&lower).unwrap();
    file.set_len(8 * MIB).unwrap();
    file.write_all_at(&[b'x'; 4096], 2 * MIB).unwrap();
    let overlay = mount(&setup);
    let handle = overlay.open(&find(&overlay, "file"));
    let data = |from| overlay.next_data(&handle, from).unwrap();
    for place in ["lower", "both", "upper"] {
        if place == "upper" {
            overlay.sync(&handle).unwrap();
        }
        assert_eq!(data(0), Some(2 * MIB..2 * MIB + 4096));
        assert_eq!(data(2 * MIB + 5), Some(2 * MIB + 5..2 * MIB + 4096));
        assert_eq!(data(3 * MIB), None);
        assert_eq!(data(9 * MIB), None);
        assert_eq!(data(u64::MAX), None);
        overlay.write_at(&handle, b"y", 2 * MIB).unwrap();
    }
    assert!(fs::metadata(setup.path("upper/file")).unwrap().blocks() < 100);
    assert_eq!(errno(overlay.next_data(&overlay.open(overlay.root()), 0)), EISDIR);
}

#[test]
fn ranges_are_copied_between_files_wherever_they_are() {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    put::file(&lower, "from", "0123456789");
    put::file(&lower, "to", "abcdefghij");
    put::file(&lower, "same", "0123456789");
    let guard = LowerGuard::new([lower]);
    let overlay = mount(&setup);
    let open = |path: &str| overlay.open(&find(&overlay, path));
    let (from, to, same) = (open("from"), open("to"), open("same"));
    assert_eq!(overlay.copy_range(&from, 2..5, &to, 1).unwrap(), 3);
    assert_eq!(content(&overlay, to.node()), b"a234efghij");
    assert!(!exists(&setup.path("upper/from")), "a read copies nothing up");
    assert_eq!(overlay.copy_range(&from, 8..100, &to, 9).unwrap(), 2, "as far as there is something");
    assert_eq!(content(&overlay, to.node()), b"a234efghi89");
    assert_eq!(overlay.stat(to.node()).unwrap().size, 11);
    assert_eq!(overlay.copy_range(&from, 50..60, &to, 0).unwrap(), 0);

    assert_eq!(overlay.copy_range(&same, 0..5, &open("same"), 5).unwrap(), 5);
    assert_eq!(content(&overlay, same.node()), b"0123401234");
    assert_eq!(errno(overlay.copy_range(&same, 0..5, &same, 4)), EINVAL);
    assert_eq!(errno(overlay.copy_range(&same, 4..8, &same, 0)), 0);
    assert_eq!(errno(overlay.copy_range(&same, 3..8, &same, 0)), EINVAL);
    assert_eq!(
        overlay.copy_range(&same, 6..1000, &same, 10).unwrap(),
        4,
        "the end of the file is the end of the range"
    );
    assert_eq!(errno(overlay.copy_range(&from, 0..5, &to, u64::MAX - 2)), EFBIG);
    assert_eq!(errno(overlay.copy_range(&overlay.open(overlay.root()), 0..5, &to, 0)), EISDIR);
    guard.check();
}

#[test]
fn concurrent_copies_in_both_directions_end() {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    for name in ["a", "b"] {
        put::file(&lower, name, vec![b'x'; MIB as usize]);
    }
    let overlay = &mount(&setup);
    std::thread::scope(|scope| {
        for (from, to) in [("a", "b"), ("b", "a")] {
            scope.spawn(move || {
                let (from, to) = (overlay.open(&find(overlay, from)), overlay.open(&find(overlay, to)));
                for _ in 0..50 {
                    assert_eq!(overlay.copy_range(&from, 0..MIB, &to, 0).unwrap(), MIB);
                }
            });
        }
    });
}

#[test]
fn birth_times_come_from_the_layer() {
    let setup = Setup::new();
    let lower = put::file(&setup.dir("lower"), "file", "x");
    let born = |path: &Path| {
        let found = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BTIME).unwrap();
        assert!(found.stx_mask & StatxFlags::BTIME.bits() != 0, "the filesystem of the test knows birth times");
        Some(Time { sec: found.stx_btime.tv_sec, nsec: found.stx_btime.tv_nsec })
    };
    let overlay = mount(&setup);
    let node = find(&overlay, "file");
    assert_eq!(overlay.birth(&node).unwrap(), born(&lower));
    assert_eq!(overlay.birth(overlay.root()).unwrap(), born(&setup.path("upper")));
    overlay.set_mode(&node, 0o600).unwrap();
    assert_eq!(overlay.birth(&node).unwrap(), born(&setup.path("upper/file")));
}

#[test]
fn a_rename_leaves_a_device_if_asked_for() {
    let setup = Setup::new();
    let (lower, upper) = (setup.dir("lower"), setup.dir("upper"));
    for name in ["file", "dir/inside", "linked", "replaced"] {
        put::file(&lower, name, name);
    }
    put::link(&lower, "linked", "other");
    put::file(&upper, "own", "own");
    let guard = LowerGuard::new([lower]);
    let overlay = mount(&setup);
    let root = overlay.root().clone();
    let rename = |from: &str, to: &str| {
        overlay.rename(&root, OsStr::new(from), &root, OsStr::new(to), RenameMode::Whiteout).unwrap();
    };
    overlay.write_at(&overlay.open(&find(&overlay, "linked")), b"L", 0).unwrap();
    let moves = [("file", "new"), ("dir", "new-dir"), ("other", "new-other"), ("own", "replaced")];
    for (from, to) in moves {
        rename(from, to);
    }
    let check = |overlay: &Overlay<OsLayer>| {
        for (from, _) in moves {
            let stat = overlay.stat(&find(overlay, from)).unwrap();
            assert_eq!((stat.kind, stat.rdev, stat.nlink), (Kind::CharDev, 0, 1), "{from}");
        }
        let moved = [("new", "file"), ("new-dir/inside", "dir/inside"), ("new-other", "Linked"), ("replaced", "own")];
        for (path, bytes) in moved {
            assert_eq!(content(overlay, &find(overlay, path)), bytes.as_bytes(), "{path}");
        }
    };
    check(&overlay);
    drop(root);
    drop(overlay);
    let overlay = mount(&setup);
    check(&overlay);
    // The device is an ordinary object. Its removal frees the name, and still hides the object of
    // the lower layer.
    overlay.unlink(overlay.root(), OsStr::new("dir")).unwrap();
    assert!(missing(&overlay, "dir"));
    drop(overlay);
    assert!(missing(&mount(&setup), "dir"));
    guard.check();
}

#[test]
fn a_file_stays_one_file_while_any_of_its_names_is_left() {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    put::file(&lower, "a", "old");
    put::link(&lower, "a", "b");
    let overlay = mount(&setup);
    overlay.write_at(&overlay.open(&find(&overlay, "a")), b"new", 0).unwrap();
    overlay.unlink(overlay.root(), OsStr::new("a")).unwrap();
    let b = find(&overlay, "b");
    assert_eq!(content(&overlay, &b), b"new");
    assert_eq!(overlay.stat(&b).unwrap().nlink, 1);
    overlay.unlink(overlay.root(), OsStr::new("b")).unwrap();
    assert_eq!(names(&setup.path("upper/.wh..wh.work")), ["numbers", "record"]);
}

#[test]
fn answers_are_for_the_right_object_while_names_change() {
    let setup = Setup::new();
    for (name, size) in [("a", 1), ("b", 2)] {
        set_host_xattr(&put::file(&setup.dir("upper"), name, vec![b'x'; size]), "user.name", name.as_bytes());
    }
    let overlay = &mount(&setup);
    let (root, a, b, replaced) = (overlay.root(), OsStr::new("a"), OsStr::new("b"), OsStr::new("replaced"));
    let done = &AtomicBool::new(false);
    let make = |name: &str| drop(overlay.create_file(root, OsStr::new(name), 0o640, OWN).unwrap());
    make("replaced");
    std::thread::scope(|scope| {
        for (name, size) in [("a", 1), ("b", 2)] {
            let node = find(overlay, name);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(xattr(overlay, &node, "user.name").as_deref(), Some(name.as_bytes()));
                    let stat = overlay.stat(&node).unwrap();
                    assert_eq!((stat.size, stat.nlink), (size, 1));
                    assert!(overlay.birth(&node).unwrap().is_some());
                }
            });
        }
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                // A thread with an open handle still makes these calls after the file was replaced.
                let file = overlay.open(&find(overlay, "replaced"));
                let before = overlay.stat(file.node()).unwrap();
                for _ in 0..10 {
                    let stat = overlay.stat(file.node()).unwrap();
                    assert_eq!((stat.ino, stat.mode), (before.ino, 0o640));
                    assert_eq!(xattrs(overlay, file.node()), [""; 0]);
                }
            }
        });
        for _ in 0..1000 {
            overlay.rename(root, a, root, b, RenameMode::Exchange).unwrap();
            make("new");
            overlay.rename(root, OsStr::new("new"), root, replaced, RenameMode::Replace).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}
