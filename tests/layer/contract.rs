//! What every layer promises, whatever it stands on. The tests of a layer call these functions with
//! an empty writable directory, and add what is particular to it.

use std::ffi::OsStr;

use overlayfs::errno::*;
use overlayfs::layer::{Access, Layer, Object, Owner, RenameMode, Stat, Time};

use crate::look::{fails, n, names};

pub const ROOT: Owner = Owner { uid: 0, gid: 0 };
pub const ALICE: Owner = Owner { uid: 12345, gid: 23456 };

/// Panics unless every call refuses `bad`, which is no name.
pub fn refuses_a_name<L: Layer>(layer: &L, dir: &L::Dir, bad: &OsStr) {
    let (entry, time) = (|| Object::Entry(dir, bad), Time::default());
    layer.create_file(dir, n("file"), 0o600, ROOT).unwrap();
    layer.create_dir(dir, n("dir"), 0o700, ROOT).unwrap();
    fails(layer.open_dir(dir, bad), EINVAL);
    fails(layer.stat(entry()), EINVAL);
    fails(layer.set_owner(entry(), ROOT), EINVAL);
    fails(layer.set_mode(entry(), 0o700), EINVAL);
    fails(layer.set_times(entry(), time, time), EINVAL);
    fails(layer.open_file(dir, bad, Access::Read), EINVAL);
    fails(layer.create_file(dir, bad, 0o600, ROOT), EINVAL);
    fails(layer.create_dir(dir, bad, 0o700, ROOT), EINVAL);
    fails(layer.create_symlink(dir, bad, n("x"), ROOT), EINVAL);
    fails(layer.read_link(dir, bad), EINVAL);
    fails(layer.link(entry(), dir, n("new")), EINVAL);
    fails(layer.link(Object::Entry(dir, n("file")), dir, bad), EINVAL);
    fails(layer.unlink(dir, bad), EINVAL);
    fails(layer.remove_dir(dir, bad), EINVAL);
    fails(layer.rename(dir, bad, dir, n("new"), RenameMode::Replace), EINVAL);
    fails(layer.rename(dir, n("file"), dir, bad, RenameMode::Replace), EINVAL);
    assert_eq!(names(layer, dir), ["dir", "file"]);
    layer.remove_dir(dir, n("dir")).unwrap();
    layer.unlink(dir, n("file")).unwrap();
}

/// Panics unless every call says that a name is missing. `modes` are those of rename. A layer may
/// open a directory later than it is asked to, so its test looks at that.
pub fn misses_a_name<L: Layer>(layer: &L, dir: &L::Dir, modes: &[RenameMode]) {
    let (missing, time) = (n("missing"), Time::default());
    fails(layer.stat(Object::Entry(dir, missing)), ENOENT);
    fails(layer.set_owner(Object::Entry(dir, missing), ROOT), ENOENT);
    fails(layer.set_mode(Object::Entry(dir, missing), 0o700), ENOENT);
    fails(layer.set_times(Object::Entry(dir, missing), time, time), ENOENT);
    fails(layer.open_file(dir, missing, Access::Read), ENOENT);
    fails(layer.open_file(dir, missing, Access::ReadWrite), ENOENT);
    fails(layer.read_link(dir, missing), ENOENT);
    fails(layer.link(Object::Entry(dir, missing), dir, n("new")), ENOENT);
    fails(layer.unlink(dir, missing), ENOENT);
    fails(layer.remove_dir(dir, missing), ENOENT);
    for mode in modes {
        fails(layer.rename(dir, missing, dir, n("new"), *mode), ENOENT);
    }
    assert!(names(layer, dir).is_empty());
}

/// Removes objects, and panics unless each wrong removal says why it is wrong.
pub fn removes<L: Layer>(layer: &L, dir: &L::Dir) {
    layer.create_dir(dir, n("dir"), 0o700, ROOT).unwrap();
    let inner = layer.open_dir(dir, n("dir")).unwrap();
    layer.create_file(&inner, n("file"), 0o600, ROOT).unwrap();
    fails(layer.unlink(dir, n("dir")), EISDIR);
    fails(layer.remove_dir(dir, n("dir")), ENOTEMPTY);
    fails(layer.remove_dir(&inner, n("file")), ENOTDIR);
    layer.unlink(&inner, n("file")).unwrap();
    layer.remove_dir(dir, n("dir")).unwrap();
    fails(layer.create_file(&inner, n("late"), 0o600, ROOT), ENOENT);
    assert!(names(layer, dir).is_empty());
}

/// Leaves the names `a` and `b` of one file.
pub fn links<L: Layer>(layer: &L, dir: &L::Dir) {
    let file = layer.create_file(dir, n("a"), 0o600, ROOT).unwrap();
    layer.link(Object::Entry(dir, n("a")), dir, n("b")).unwrap();
    fails(layer.link(Object::Entry(dir, n("a")), dir, n("b")), EEXIST);
    assert_eq!(layer.stat(Object::File(&file)).unwrap().nlink, 2);
    layer.unlink(dir, n("a")).unwrap();
    layer.link(Object::File(&file), dir, n("a")).unwrap();
    fails(layer.link(Object::File(&file), dir, n("b")), EEXIST);
    fails(layer.link(Object::Dir(dir), dir, n("dir2")), EPERM);
    assert_eq!(layer.stat(Object::Entry(dir, n("a"))).unwrap().nlink, 2);
}

/// Reads and writes a file with and without a name. Returns the attributes of the removed file,
/// which got the owner [`ALICE`] and the mode 0o4755.
pub fn reads_and_writes<L: Layer>(layer: &L, dir: &L::Dir) -> Stat {
    let file = layer.create_file(dir, n("file"), 0o000, ROOT).unwrap();
    assert_eq!(layer.write_at(&file, b"hello", 3).unwrap(), 5);
    assert_eq!(layer.write_at(&file, b"", 100).unwrap(), 0);
    let mut buffer = [7; 10];
    assert_eq!(layer.read_at(&file, &mut buffer, 2).unwrap(), 6);
    assert_eq!(&buffer[..6], b"\0hello");
    assert_eq!(layer.read_at(&file, &mut buffer, 8).unwrap(), 0);
    layer.truncate(&file, 4).unwrap();
    assert_eq!(layer.stat(Object::File(&file)).unwrap().size, 4);
    fails(layer.truncate(&file, u64::MAX), EFBIG);
    layer.sync(&file).unwrap();
    layer.sync_dir(dir).unwrap();

    layer.create_file(dir, n("again"), 0o600, ROOT).unwrap();
    let reader = layer.open_file(dir, n("again"), Access::Read).unwrap();
    fails(layer.write_at(&reader, b"x", 0), EBADF);

    layer.unlink(dir, n("file")).unwrap();
    layer.write_at(&file, b"still", 0).unwrap();
    layer.set_mode(Object::File(&file), 0o4755).unwrap();
    let time = Time { sec: 5, nsec: 6 };
    layer.set_times(Object::File(&file), time, time).unwrap();
    layer.set_owner(Object::File(&file), ALICE).unwrap();
    let stat = layer.stat(Object::File(&file)).unwrap();
    assert_eq!((stat.size, stat.mtime, stat.uid, stat.gid), (5, time, ALICE.uid, ALICE.gid));
    stat
}

/// Sets all attributes of an object, with these times of access and change of contents.
pub fn sets_attributes<L: Layer>(layer: &L, object: Object<'_, L>, (atime, mtime): (Time, Time)) {
    layer.set_owner(object, ALICE).unwrap();
    layer.set_mode(object, 0o1765).unwrap();
    layer.set_times(object, atime, mtime).unwrap();
    let stat = layer.stat(object).unwrap();
    assert_eq!((stat.uid, stat.gid, stat.mode), (ALICE.uid, ALICE.gid, 0o1765));
    assert_eq!((stat.atime, stat.mtime), (atime, mtime));
}
