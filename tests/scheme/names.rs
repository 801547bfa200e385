//! Unlink, rename, link.

use syscall::error::{EACCES, EBADF, EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM};
use syscall::flag::{AT_REMOVEDIR, O_CREAT, O_DIRECTORY, O_NOFOLLOW, O_RDONLY, O_RDWR, O_STAT};

use crate::layers::{FULL, Layer};
use crate::support::{Setup, ann, bob, errno, eve, names, refused, root};

const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;

#[test]
fn removing() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o755);
        lower.file("d/f", 0o644);
        lower.dir("d/empty", 0o755);
        lower.dir("d/full", 0o755);
        lower.file("d/full/f", 0o644);
        lower.symlink("empty", "d/l");
    });
    let d = setup.open(&ann(), "d", O_STAT).unwrap();
    for (path, flags, error) in [
        ("none", 0, ENOENT),
        ("none/x", 0, ENOENT),
        ("f/x", 0, ENOTDIR),
        ("f/", 0, ENOTDIR),
        ("l/", 0, ENOTDIR),
        ("empty", 0, EISDIR),
        ("empty/", 0, EISDIR),
        (".", 0, EISDIR),
        ("..", 0, EISDIR),
        ("", 0, ENOENT),
        ("/", 0, EISDIR),
        ("none", AT_REMOVEDIR, ENOENT),
        ("f", AT_REMOVEDIR, ENOTDIR),
        ("l", AT_REMOVEDIR, ENOTDIR),
        ("l/", AT_REMOVEDIR, ENOTDIR),
        ("full", AT_REMOVEDIR, ENOTEMPTY),
        ("empty/.", AT_REMOVEDIR, EINVAL),
        ("empty/..", AT_REMOVEDIR, ENOTEMPTY),
        ("", AT_REMOVEDIR, ENOENT),
        ("/", AT_REMOVEDIR, EBUSY),
        ("f", 0x100, EINVAL),
        ("empty", AT_REMOVEDIR | 0x400, EINVAL),
    ] {
        assert_eq!(errno(d.unlinkat(path, flags)), error, "{path:?} {flags:x}");
    }
    d.unlinkat("l", 0).unwrap();
    d.unlinkat("f", 0).unwrap();
    d.unlinkat("empty/", AT_REMOVEDIR).unwrap();
    d.unlinkat("/d/full/f", 0).unwrap();
    ann().rmdir(setup.path("d/full")).unwrap();
    assert_eq!(names(ann().read_dir(setup.path("d")).unwrap()), [""; 0]);
}

#[test]
fn a_name_belongs_to_its_directory() {
    let setup = Setup::new(|lower| {
        lower.dir("mine", 0o755);
        lower.file("mine/open", 0o666);
        lower.dir("ours", 0o777);
        lower.file("ours/f", 0o666);
        lower.dir("ours/d", 0o700);
        lower.dir("unsearchable", 0o776);
        lower.file("unsearchable/f", 0o666);
    });
    assert_eq!(errno(eve().unlink(setup.path("mine/open"))), EACCES);
    assert_eq!(errno(eve().rename(setup.path("mine/open"), setup.path("ours/new"))), EACCES);
    assert_eq!(errno(eve().link(setup.path("ours/f"), setup.path("mine/new"))), EACCES);
    assert_eq!(errno(eve().rename(setup.path("ours/f"), setup.path("mine/new"))), EACCES);
    assert_eq!(errno(eve().rename(setup.path("ours/f"), setup.path("mine/open"))), EACCES);
    assert_eq!(errno(eve().unlink(setup.path("unsearchable/f"))), EACCES);

    eve().link(setup.path("ours/f"), setup.path("ours/second")).unwrap();
    eve().rename(setup.path("ours/f"), setup.path("ours/renamed")).unwrap();
    eve().unlink(setup.path("ours/renamed")).unwrap();
    eve().unlink(setup.path("ours/second")).unwrap();
    eve().rename(setup.path("ours/d"), setup.path("ours/e")).unwrap();
    eve().rmdir(setup.path("ours/e")).unwrap();
    root().unlink(setup.path("mine/open")).unwrap();
}

#[test]
fn in_a_sticky_directory_only_owners_remove_names() {
    let setup = Setup::new(|lower| {
        lower.dir_of("tmp", 0o1777, 0, 0);
        for name in ["a", "b", "c"] {
            lower.file(&format!("tmp/{name}"), 0o666);
        }
        lower.dir("tmp/d", 0o777);
        lower.dir("bobs", 0o1777);
        lower.file_of("other", 0o666, 1001, 100);
        lower.dir("free", 0o777);
    });
    root().chown(setup.path("bobs"), 1001, 100).unwrap();
    assert_eq!(errno(bob().unlink(setup.path("tmp/a"))), EPERM);
    assert_eq!(errno(bob().rmdir(setup.path("tmp/d"))), EPERM);
    assert_eq!(errno(bob().rename(setup.path("tmp/a"), setup.path("free/x"))), EPERM);
    bob().write_file(setup.path("free/bobs"), "").unwrap();
    assert_eq!(errno(bob().rename(setup.path("free/bobs"), setup.path("tmp/a"))), EPERM, "it would replace ann's");
    bob().rename(setup.path("free/bobs"), setup.path("tmp/bobs")).unwrap();
    ann().rename(setup.path("tmp/a"), setup.path("tmp/z")).unwrap();
    ann().unlink(setup.path("tmp/z")).unwrap();
    root().unlink(setup.path("tmp/b")).unwrap();
    ann().write_file(setup.path("bobs/anns"), "").unwrap();
    bob().unlink(setup.path("bobs/anns")).unwrap();
}

#[test]
fn renaming_as_relibc_does() {
    let setup = Setup::new(|lower| {
        lower.dir("a", 0o755);
        lower.file("a/f", 0o644);
        lower.dir("a/sub", 0o755);
        lower.file("a/sub/g", 0o644);
        lower.dir("b", 0o755);
        lower.dir("b/empty", 0o755);
        lower.file("b/f", 0o644);
        lower.symlink("f", "a/l");
    });
    ann().rename(setup.path("a/f"), setup.path("b/new")).unwrap();
    assert_eq!(setup.content("b/new"), "a/f");
    assert!(!setup.exists("a/f"));
    ann().rename(setup.path("b/new"), setup.path("b/f")).unwrap();
    assert_eq!(setup.content("b/f"), "a/f");
    ann().rename(setup.path("a/l"), setup.path("b/l")).unwrap();
    assert_eq!(ann().readlink(setup.path("b/l")), Ok(b"f".to_vec()), "not its target");
    ann().rename(setup.path("a/sub"), setup.path("b/empty")).unwrap();
    assert_eq!(setup.content("b/empty/g"), "a/sub/g");

    for (old, new, error) in [
        ("none", "b/x", ENOENT),
        ("b/f", "none/x", ENOENT),
        ("b/f", "b/l/x", ENOTDIR),
        ("b/f", "b/empty", EISDIR),
        ("b/empty", "b/f", ENOTDIR),
        ("a", "b", ENOTEMPTY),
        ("b", "b/empty/x", EINVAL),
    ] {
        assert_eq!(errno(root().rename(setup.path(old), setup.path(new))), error, "{old} {new}");
    }
    let top = setup.top(&root());
    let f = top.openat("b/f", O_STAT | O_NOFOLLOW, 0).unwrap();
    assert_eq!(f.frename(setup.path("b/new/")), refused(ENOTDIR));
    assert_eq!(f.frename(setup.path("b/.")), refused(EBUSY));
    assert_eq!(f.frename(setup.path("b/..")), refused(EBUSY));
    assert_eq!(f.frename(setup.path("")), refused(EBUSY));
    assert_eq!(top.frename(setup.path("b/new")), refused(EBUSY));
    let dir = top.openat("b/empty", O_STAT, 0).unwrap();
    dir.frename(setup.path("b/slash/")).unwrap();
    assert_eq!(dir.path(), Ok(setup.path("b/slash")));
}

#[test]
fn a_handle_goes_by_its_current_name() {
    let setup = Setup::new(|lower| {
        lower.dir("a", 0o755);
        lower.dir("a/b", 0o755);
        lower.file("a/b/f", 0o644);
        lower.dir("c", 0o755);
    });
    let file = setup.open(&ann(), "a/b/f", O_RDONLY).unwrap();
    let renamer = setup.open(&ann(), "a/b/f", O_STAT).unwrap();
    root().rename(setup.path("a/b"), setup.path("c/d")).unwrap();
    assert_eq!(file.path(), Ok(setup.path("c/d/f")));
    renamer.frename(setup.path("a/g")).unwrap();
    assert_eq!(renamer.path(), Ok(setup.path("a/g")));
    assert_eq!(file.path(), Ok(setup.path("a/g")), "renamed through another handle");
    renamer.frename(setup.path("c/h")).unwrap();
    assert_eq!(setup.content("c/h"), "a/b/f");
    root().unlink(setup.path("c/h")).unwrap();
    assert_eq!(renamer.path(), refused(ENOENT));
    assert_eq!(renamer.frename(setup.path("a/x")), refused(ENOENT));
    root().write_file(setup.path("c/h"), "another").unwrap();
    assert_eq!(renamer.frename(setup.path("a/x")), refused(ENOENT), "the name is another's");
    assert_eq!(setup.content("c/h"), "another");
}

/// A handle is opened, and its name is removed. The handle shows no other name that its opener
/// cannot reach, and renames none.
#[test]
fn a_handle_leads_to_no_name_that_its_opener_cannot_reach() {
    let setup = Setup::new(|lower| {
        lower.dir("pub", 0o777);
        lower.dir("private", 0o700);
        lower.dir("private/open", 0o777);
        lower.file("pub/f", 0o666);
    });
    root().link(setup.path("pub/f"), setup.path("private/open/secret-name")).unwrap();
    let handle = setup.open(&eve(), "pub/f", O_STAT).unwrap();
    assert_eq!(handle.path(), Ok(setup.path("pub/f")));
    root().unlink(setup.path("pub/f")).unwrap();

    assert_eq!(handle.path(), refused(EACCES));
    assert_eq!(handle.frename(setup.path("pub/mine")), refused(EACCES));
    assert_eq!(setup.content("private/open/secret-name"), "pub/f");
    let by_ann = setup.open(&ann(), "private/open/secret-name", O_STAT).unwrap();
    assert_eq!(by_ann.path(), Ok(setup.path("private/open/secret-name")));
    root().chmod(setup.path("private"), 0o711).unwrap();
    assert_eq!(handle.path(), Ok(setup.path("private/open/secret-name")));
    handle.frename(setup.path("pub/mine")).unwrap();
    assert_eq!(setup.content("pub/mine"), "pub/f");
}

/// A layer may know its directories by their paths. Handles do not show that.
#[test]
fn what_is_open_below_a_directory_stays_open_when_it_is_renamed() {
    let setup = Setup::new(|lower| lower.dir("home", 0o777));
    let path = |path: &str| setup.path(&format!("home/{path}"));
    for dir in ["a", "a/b", "a/b/c", "other", "other/b"] {
        ann().mkdir(path(dir)).unwrap();
    }
    ann().write_file(path("a/b/c/f"), "first").unwrap();
    ann().write_file(path("a/b/read"), "read").unwrap();
    let open = |path: &str, flags| setup.open(&ann(), &format!("home/{path}"), flags).unwrap();
    let (b, c) = (open("a/b", O_RDONLY | O_DIRECTORY), open("a/b/c", O_STAT));
    let (file, stat) = (open("a/b/c/f", O_RDWR), open("a/b/c/f", O_STAT));
    let idle = open("a/b/read", O_RDWR);

    ann().rename(path("a"), path("moved")).unwrap();
    // Other objects take the old paths.
    ann().rename(path("other"), path("a")).unwrap();
    ann().write_file(path("a/b/read"), "another").unwrap();

    assert_eq!((b.path(), c.path()), (Ok(path("moved/b")), Ok(path("moved/b/c"))));
    assert_eq!(names(b.entries().unwrap()), ["c", "read"]);
    assert_eq!(idle.write(b"R"), Ok(1));
    assert_eq!(setup.content("home/moved/b/read"), "Read");
    assert_eq!(file.write(b"FIRST"), Ok(5));
    file.fchmod(0o600).unwrap();
    assert_eq!(stat.fstat().unwrap().st_mode & 0o7777, 0o600);
    let made = c.openat("new", O_CREAT | O_RDWR | 0o644, 0).unwrap();
    made.write_all(b"new").unwrap();
    c.openat("dir", O_CREAT | O_DIRECTORY | 0o700, 0).unwrap();
    c.fchmod(0o711).unwrap();
    c.unlinkat("f", 0).unwrap();
    stat.fstat().unwrap();
    assert_eq!(names(ann().read_dir(path("moved/b/c")).unwrap()), ["dir", "new"]);
    assert_eq!(setup.mode("home/moved/b/c"), 0o711);
    b.frenameat("read", &c, "read", 0).unwrap();
    assert_eq!(setup.content("home/moved/b/c/read"), "Read");
    assert_eq!(file.read_at(&mut [0; 9], 0), Ok(5), "what lost its name is still open");

    assert_eq!(names(ann().read_dir(path("a/b")).unwrap()), ["read"]);
    assert_eq!(setup.content("home/a/b/read"), "another");
}

#[test]
fn of_two_links_the_opened_one_is_renamed() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o777);
        lower.file("d/one", 0o644);
    });
    ann().link(setup.path("d/one"), setup.path("d/two")).unwrap();
    assert_eq!(ann().stat(setup.path("d/two")).unwrap().st_nlink, 2);
    for name in ["one", "two"] {
        assert_eq!(
            setup.open(&ann(), &format!("d/{name}"), O_STAT).unwrap().path(),
            Ok(setup.path(&format!("d/{name}")))
        );
    }
    ann().rename(setup.path("d/two"), setup.path("d/three")).unwrap();
    ann().rename(setup.path("d/one"), setup.path("d/four")).unwrap();
    assert_eq!(names(ann().read_dir(setup.path("d")).unwrap()), ["four", "three"]);

    let three = setup.open(&ann(), "d/three", O_STAT).unwrap();
    ann().unlink(setup.path("d/three")).unwrap();
    assert_eq!(three.path(), Ok(setup.path("d/four")), "a name that is left");
}

#[test]
fn a_directory_that_moves_must_be_writable() {
    let setup = Setup::new(|lower| {
        lower.dir("from", 0o777);
        lower.dir("from/d", 0o755);
        lower.dir("to", 0o777);
    });
    assert_eq!(errno(eve().rename(setup.path("from/d"), setup.path("to/d"))), EACCES);
    eve().rename(setup.path("from/d"), setup.path("from/e")).unwrap();
    ann().rename(setup.path("from/e"), setup.path("to/d")).unwrap();
}

#[test]
fn linking() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o777);
        lower.file("d/f", 0o600);
        lower.symlink("f", "d/l");
        lower.file("d/taken", 0o644);
    });
    ann().link(setup.path("d/f"), setup.path("d/g")).unwrap();
    assert_eq!(ann().stat(setup.path("d/f")).unwrap().st_nlink, 2);
    assert_eq!(ann().stat(setup.path("d/f")).unwrap().st_ino, ann().stat(setup.path("d/g")).unwrap().st_ino);
    ann().write_file(setup.path("d/g"), "through one").unwrap();
    assert_eq!(setup.content("d/f"), "through one");
    ann().link(setup.path("d/l"), setup.path("d/m")).unwrap();
    assert_eq!(ann().readlink(setup.path("d/m")), Ok(b"f".to_vec()));

    for (old, new, error) in [
        ("d/f", "d/taken", EEXIST),
        ("d/f", "d/f", EEXIST),
        ("d/f", "d/l", EEXIST),
        ("d/f", "none/x", ENOENT),
        ("d/f", "d/taken/x", ENOTDIR),
        ("d", "d/new", EPERM),
    ] {
        assert_eq!(errno(root().link(setup.path(old), setup.path(new))), error, "{old} {new}");
    }
    let f = setup.open(&ann(), "d/f", O_RDONLY).unwrap();
    assert_eq!(f.flink(setup.path("d/new/")), refused(ENOENT));
    assert_eq!(f.flink(setup.path("d/.")), refused(EEXIST));
    assert_eq!(f.flink(setup.path("")), refused(EEXIST));
    f.flink(setup.path("d/by-handle")).unwrap();
    assert_eq!(f.path(), Ok(setup.path("d/f")), "a link gives a name, it takes none");

    for name in ["f", "g", "by-handle"] {
        ann().unlink(setup.path(&format!("d/{name}"))).unwrap();
    }
    assert_eq!(f.flink(setup.path("d/back")), refused(ENOENT), "no name is left to link");
}

#[test]
fn linking_a_file_of_another_user() {
    let fill = |lower: &Layer| {
        lower.dir("d", 0o777);
        lower.file("d/private", 0o600);
        lower.file("d/readable", 0o644);
        lower.file("d/shared", 0o666);
        lower.file("d/program", 0o4777);
        lower.symlink("private", "d/l");
        lower.dir("anns", 0o755);
    };
    let setup = Setup::new(fill);
    for name in ["private", "readable", "program", "l"] {
        let (old, new) = (setup.path(&format!("d/{name}")), setup.path("d/mine"));
        assert_eq!(errno(eve().link(&old, &new)), EPERM, "{name}");
        let dir = setup.open(&eve(), "d", O_RDONLY).unwrap();
        let object = eve().open(&old, O_STAT | O_NOFOLLOW, 0).unwrap();
        assert_eq!(errno(object.flinkat(&dir, "mine", 0)), EPERM, "{name}");
        assert_eq!(errno(eve().link(&old, setup.path("anns/new"))), EPERM, "{name}");
        assert_eq!(errno(eve().link(&old, setup.path("d/shared"))), EEXIST, "{name}");
        for who in [ann(), root()] {
            who.link(&old, &new).unwrap();
            who.unlink(&new).unwrap();
        }
    }
    eve().link(setup.path("d/shared"), setup.path("d/mine")).unwrap();

    let setup = Setup::with_free_hardlinks(fill);
    eve().link(setup.path("d/private"), setup.path("d/mine")).unwrap();
    assert_eq!(errno(eve().read_file(setup.path("d/mine"))), EACCES);
}

#[test]
fn renaming_relative_to_directory_handles() {
    let setup = Setup::new(|lower| {
        lower.dir("a", 0o755);
        lower.dir("b", 0o755);
        lower.file("a/f", 0o644);
        lower.file("b/g", 0o644);
        lower.dir("a/d", 0o755);
    });
    let a = setup.open(&ann(), "a", O_STAT).unwrap();
    let b = setup.open(&ann(), "b", O_STAT).unwrap();
    assert_eq!(errno(a.frenameat("f", &b, "g", RENAME_NOREPLACE)), EEXIST);
    match FULL {
        true => a.frenameat("f", &b, "g", RENAME_EXCHANGE).unwrap(),
        false => {
            assert_eq!(errno(a.frenameat("f", &b, "g", RENAME_EXCHANGE)), EINVAL);
            a.frenameat("f", &b, "other", 0).unwrap();
            b.frenameat("g", &a, "f", 0).unwrap();
            b.frenameat("other", &b, "g", 0).unwrap();
        }
    }
    assert_eq!((setup.content("a/f"), setup.content("b/g")), ("b/g".into(), "a/f".into()));
    a.frenameat("f", &b, "h", RENAME_NOREPLACE).unwrap();
    a.frenameat("d", &b, "d/", 0).unwrap();
    a.frenameat("/b/d", &a, "../a/d", 0).unwrap();
    b.frenameat("h", &b, "g", 0).unwrap();
    assert_eq!(setup.content("b/g"), "b/g");
    assert_eq!(names(ann().read_dir(setup.path("b")).unwrap()), ["g"]);

    for (old, new, flags, error) in [
        ("none", "x", 0, ENOENT),
        ("d", "none", RENAME_EXCHANGE, ENOENT),
        ("d", "x", 3, EINVAL),
        ("d", "x", 4, EINVAL),
        ("d", ".", 0, EBUSY),
        ("d", "/", 0, EBUSY),
        (".", "x", 0, EBUSY),
        ("..", "x", 0, EBUSY),
        ("", "x", 0, EBUSY),
        ("d", "", RENAME_NOREPLACE, EEXIST),
        ("d", "../a/d/x", 0, EINVAL),
        ("/b/g/", "x", 0, ENOTDIR),
        ("/b/g", "x/", 0, ENOTDIR),
    ] {
        assert_eq!(errno(a.frenameat(old, &b, new, flags)), error, "{old} {new} {flags}");
    }
    let file = setup.open(&ann(), "b/g", O_RDWR).unwrap();
    assert_eq!(file.frenameat("x", &b, "y", 0), refused(ENOTDIR));
    assert_eq!(a.frenameat("d", &file, "y", 0), refused(ENOTDIR));
}

#[test]
fn linking_relative_to_a_directory_handle() {
    let setup = Setup::new(|lower| {
        lower.dir("a", 0o755);
        lower.file("a/f", 0o644);
    });
    let a = setup.open(&ann(), "a", O_STAT).unwrap();
    let f = setup.open(&ann(), "a/f", O_STAT).unwrap();
    f.flinkat(&a, "g", 0).unwrap();
    f.flinkat(&a, "/a/h", 0).unwrap();
    assert_eq!(names(ann().read_dir(setup.path("a")).unwrap()), ["f", "g", "h"]);
    assert_eq!(f.flinkat(&a, "g", 0), refused(EEXIST));
    assert_eq!(f.flinkat(&a, "x", 0x400), refused(EINVAL));
    assert_eq!(a.flinkat(&a, "x", 0), refused(EPERM));
    assert_eq!(f.flinkat(&f, "x", 0), refused(ENOTDIR));
    assert_eq!(setup.open(&ann(), "a/none", O_STAT).map(drop), refused(ENOENT));
    let waiting = setup.open(&ann(), "a/l", syscall::flag::O_CREAT | syscall::flag::O_SYMLINK).unwrap();
    assert_eq!(waiting.flinkat(&a, "x", 0), refused(EBADF));
    assert_eq!(f.flinkat(&waiting, "x", 0), refused(EBADF));
}
