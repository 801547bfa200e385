//! Unlink, rename, link.

use syscall::error::{EACCES, EBADF, EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM};
use syscall::flag::{AT_REMOVEDIR, O_CREAT, O_DIRECTORY, O_NOFOLLOW, O_RDONLY, O_RDWR, O_STAT};

use crate::layers::{FULL, Layer};
use crate::support::{Stage, ann, bob, errno, eve, names, refused, root};

const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;

#[test]
fn removing() {
    let stage = Stage::new(|lower| {
        lower.dir("d", 0o755);
        lower.file("d/f", 0o644);
        lower.dir("d/empty", 0o755);
        lower.dir("d/full", 0o755);
        lower.file("d/full/f", 0o644);
        lower.symlink("empty", "d/l");
    });
    let d = stage.open(&ann(), "d", O_STAT).unwrap();
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
    ann().rmdir(stage.path("d/full")).unwrap();
    assert_eq!(names(ann().read_dir(stage.path("d")).unwrap()), [""; 0]);
}

#[test]
fn a_name_belongs_to_its_directory() {
    let stage = Stage::new(|lower| {
        lower.dir("mine", 0o755);
        lower.file("mine/open", 0o666);
        lower.dir("ours", 0o777);
        lower.file("ours/f", 0o666);
        lower.dir("ours/d", 0o700);
        lower.dir("unsearchable", 0o776);
        lower.file("unsearchable/f", 0o666);
    });
    assert_eq!(errno(eve().unlink(stage.path("mine/open"))), EACCES);
    assert_eq!(errno(eve().rename(stage.path("mine/open"), stage.path("ours/new"))), EACCES);
    assert_eq!(errno(eve().link(stage.path("ours/f"), stage.path("mine/new"))), EACCES);
    assert_eq!(errno(eve().rename(stage.path("ours/f"), stage.path("mine/new"))), EACCES);
    assert_eq!(errno(eve().rename(stage.path("ours/f"), stage.path("mine/open"))), EACCES);
    assert_eq!(errno(eve().unlink(stage.path("unsearchable/f"))), EACCES);

    eve().link(stage.path("ours/f"), stage.path("ours/second")).unwrap();
    eve().rename(stage.path("ours/f"), stage.path("ours/renamed")).unwrap();
    eve().unlink(stage.path("ours/renamed")).unwrap();
    eve().unlink(stage.path("ours/second")).unwrap();
    eve().rename(stage.path("ours/d"), stage.path("ours/e")).unwrap();
    eve().rmdir(stage.path("ours/e")).unwrap();
    root().unlink(stage.path("mine/open")).unwrap();
}

#[test]
fn sticky_directories_keep_everyones_names() {
    let stage = Stage::new(|lower| {
        lower.dir_of("tmp", 0o1777, 0, 0);
        for name in ["a", "b", "c"] {
            lower.file(&format!("tmp/{name}"), 0o666);
        }
        lower.dir("tmp/d", 0o777);
        lower.dir("bobs", 0o1777);
        lower.file_of("other", 0o666, 1001, 100);
        lower.dir("free", 0o777);
    });
    root().chown(stage.path("bobs"), 1001, 100).unwrap();
    assert_eq!(errno(bob().unlink(stage.path("tmp/a"))), EPERM);
    assert_eq!(errno(bob().rmdir(stage.path("tmp/d"))), EPERM);
    assert_eq!(errno(bob().rename(stage.path("tmp/a"), stage.path("free/x"))), EPERM);
    bob().write_file(stage.path("free/bobs"), "").unwrap();
    assert_eq!(errno(bob().rename(stage.path("free/bobs"), stage.path("tmp/a"))), EPERM, "it would replace ann's");
    bob().rename(stage.path("free/bobs"), stage.path("tmp/bobs")).unwrap();
    ann().rename(stage.path("tmp/a"), stage.path("tmp/z")).unwrap();
    ann().unlink(stage.path("tmp/z")).unwrap();
    root().unlink(stage.path("tmp/b")).unwrap();
    ann().write_file(stage.path("bobs/anns"), "").unwrap();
    bob().unlink(stage.path("bobs/anns")).unwrap();
}

#[test]
fn renaming_as_relibc_does() {
    let stage = Stage::new(|lower| {
        lower.dir("a", 0o755);
        lower.file("a/f", 0o644);
        lower.dir("a/sub", 0o755);
        lower.file("a/sub/g", 0o644);
        lower.dir("b", 0o755);
        lower.dir("b/empty", 0o755);
        lower.file("b/f", 0o644);
        lower.symlink("f", "a/l");
    });
    ann().rename(stage.path("a/f"), stage.path("b/new")).unwrap();
    assert_eq!(stage.content("b/new"), "a/f");
    assert!(!stage.exists("a/f"));
    ann().rename(stage.path("b/new"), stage.path("b/f")).unwrap();
    assert_eq!(stage.content("b/f"), "a/f");
    ann().rename(stage.path("a/l"), stage.path("b/l")).unwrap();
    assert_eq!(ann().readlink(stage.path("b/l")), Ok(b"f".to_vec()), "not what it leads to");
    ann().rename(stage.path("a/sub"), stage.path("b/empty")).unwrap();
    assert_eq!(stage.content("b/empty/g"), "a/sub/g");

    for (old, new, error) in [
        ("none", "b/x", ENOENT),
        ("b/f", "none/x", ENOENT),
        ("b/f", "b/l/x", ENOTDIR),
        ("b/f", "b/empty", EISDIR),
        ("b/empty", "b/f", ENOTDIR),
        ("a", "b", ENOTEMPTY),
        ("b", "b/empty/x", EINVAL),
    ] {
        assert_eq!(errno(root().rename(stage.path(old), stage.path(new))), error, "{old} {new}");
    }
    let top = stage.top(&root());
    let f = top.openat("b/f", O_STAT | O_NOFOLLOW, 0).unwrap();
    assert_eq!(f.frename(stage.path("b/new/")), refused(ENOTDIR));
    assert_eq!(f.frename(stage.path("b/.")), refused(EBUSY));
    assert_eq!(f.frename(stage.path("b/..")), refused(EBUSY));
    assert_eq!(f.frename(stage.path("")), refused(EBUSY));
    assert_eq!(top.frename(stage.path("b/new")), refused(EBUSY));
    let dir = top.openat("b/empty", O_STAT, 0).unwrap();
    dir.frename(stage.path("b/slash/")).unwrap();
    assert_eq!(dir.path(), Ok(stage.path("b/slash")));
}

#[test]
fn a_handle_goes_by_its_current_name() {
    let stage = Stage::new(|lower| {
        lower.dir("a", 0o755);
        lower.dir("a/b", 0o755);
        lower.file("a/b/f", 0o644);
        lower.dir("c", 0o755);
    });
    let file = stage.open(&ann(), "a/b/f", O_RDONLY).unwrap();
    let renamer = stage.open(&ann(), "a/b/f", O_STAT).unwrap();
    root().rename(stage.path("a/b"), stage.path("c/d")).unwrap();
    assert_eq!(file.path(), Ok(stage.path("c/d/f")));
    renamer.frename(stage.path("a/g")).unwrap();
    assert_eq!(renamer.path(), Ok(stage.path("a/g")));
    assert_eq!(file.path(), Ok(stage.path("a/g")), "renamed through another handle");
    renamer.frename(stage.path("c/h")).unwrap();
    assert_eq!(stage.content("c/h"), "a/b/f");
    root().unlink(stage.path("c/h")).unwrap();
    assert_eq!(renamer.path(), refused(ENOENT));
    assert_eq!(renamer.frename(stage.path("a/x")), refused(ENOENT));
    root().write_file(stage.path("c/h"), "another").unwrap();
    assert_eq!(renamer.frename(stage.path("a/x")), refused(ENOENT), "the name is another's");
    assert_eq!(stage.content("c/h"), "another");
}

/// A file that has lost the name it was opened by is not renamed by another name, or told of, where
/// its opener may not go.
#[test]
fn a_handle_leads_to_no_name_that_its_opener_cannot_reach() {
    let stage = Stage::new(|lower| {
        lower.dir("pub", 0o777);
        lower.dir("private", 0o700);
        lower.dir("private/open", 0o777);
        lower.file("pub/f", 0o666);
    });
    root().link(stage.path("pub/f"), stage.path("private/open/secret-name")).unwrap();
    let handle = stage.open(&eve(), "pub/f", O_STAT).unwrap();
    assert_eq!(handle.path(), Ok(stage.path("pub/f")));
    root().unlink(stage.path("pub/f")).unwrap();

    assert_eq!(handle.path(), refused(EACCES));
    assert_eq!(handle.frename(stage.path("pub/mine")), refused(EACCES));
    assert_eq!(stage.content("private/open/secret-name"), "pub/f");
    let by_ann = stage.open(&ann(), "private/open/secret-name", O_STAT).unwrap();
    assert_eq!(by_ann.path(), Ok(stage.path("private/open/secret-name")));
    root().chmod(stage.path("private"), 0o711).unwrap();
    assert_eq!(handle.path(), Ok(stage.path("private/open/secret-name")));
    handle.frename(stage.path("pub/mine")).unwrap();
    assert_eq!(stage.content("pub/mine"), "pub/f");
}

/// A layer may know its directories by their paths. Handles do not show that.
#[test]
fn what_is_open_below_a_directory_stays_open_when_it_is_renamed() {
    let stage = Stage::new(|lower| lower.dir("home", 0o777));
    let path = |path: &str| stage.path(&format!("home/{path}"));
    for dir in ["a", "a/b", "a/b/c", "other", "other/b"] {
        ann().mkdir(path(dir)).unwrap();
    }
    ann().write_file(path("a/b/c/f"), "first").unwrap();
    ann().write_file(path("a/b/read"), "read").unwrap();
    let open = |path: &str, flags| stage.open(&ann(), &format!("home/{path}"), flags).unwrap();
    let (b, c) = (open("a/b", O_RDONLY | O_DIRECTORY), open("a/b/c", O_STAT));
    let (file, stat) = (open("a/b/c/f", O_RDWR), open("a/b/c/f", O_STAT));
    let idle = open("a/b/read", O_RDWR);

    ann().rename(path("a"), path("moved")).unwrap();
    // Other things take the paths.
    ann().rename(path("other"), path("a")).unwrap();
    ann().write_file(path("a/b/read"), "another").unwrap();

    assert_eq!((b.path(), c.path()), (Ok(path("moved/b")), Ok(path("moved/b/c"))));
    assert_eq!(names(b.entries().unwrap()), ["c", "read"]);
    assert_eq!(idle.write(b"R"), Ok(1));
    assert_eq!(stage.content("home/moved/b/read"), "Read");
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
    assert_eq!(stage.mode("home/moved/b/c"), 0o711);
    b.frenameat("read", &c, "read", 0).unwrap();
    assert_eq!(stage.content("home/moved/b/c/read"), "Read");
    assert_eq!(file.read_at(&mut [0; 9], 0), Ok(5), "what lost its name is still open");

    assert_eq!(names(ann().read_dir(path("a/b")).unwrap()), ["read"]);
    assert_eq!(stage.content("home/a/b/read"), "another");
}

#[test]
fn of_two_links_the_opened_one_is_renamed() {
    let stage = Stage::new(|lower| {
        lower.dir("d", 0o777);
        lower.file("d/one", 0o644);
    });
    ann().link(stage.path("d/one"), stage.path("d/two")).unwrap();
    assert_eq!(ann().stat(stage.path("d/two")).unwrap().st_nlink, 2);
    for name in ["one", "two"] {
        assert_eq!(
            stage.open(&ann(), &format!("d/{name}"), O_STAT).unwrap().path(),
            Ok(stage.path(&format!("d/{name}")))
        );
    }
    ann().rename(stage.path("d/two"), stage.path("d/three")).unwrap();
    ann().rename(stage.path("d/one"), stage.path("d/four")).unwrap();
    assert_eq!(names(ann().read_dir(stage.path("d")).unwrap()), ["four", "three"]);

    let three = stage.open(&ann(), "d/three", O_STAT).unwrap();
    ann().unlink(stage.path("d/three")).unwrap();
    assert_eq!(three.path(), Ok(stage.path("d/four")), "a name that is left");
}

#[test]
fn a_directory_that_moves_must_be_writable() {
    let stage = Stage::new(|lower| {
        lower.dir("from", 0o777);
        lower.dir("from/d", 0o755);
        lower.dir("to", 0o777);
    });
    assert_eq!(errno(eve().rename(stage.path("from/d"), stage.path("to/d"))), EACCES);
    eve().rename(stage.path("from/d"), stage.path("from/e")).unwrap();
    ann().rename(stage.path("from/e"), stage.path("to/d")).unwrap();
}

#[test]
fn linking() {
    let stage = Stage::new(|lower| {
        lower.dir("d", 0o777);
        lower.file("d/f", 0o600);
        lower.symlink("f", "d/l");
        lower.file("d/taken", 0o644);
    });
    ann().link(stage.path("d/f"), stage.path("d/g")).unwrap();
    assert_eq!(ann().stat(stage.path("d/f")).unwrap().st_nlink, 2);
    assert_eq!(ann().stat(stage.path("d/f")).unwrap().st_ino, ann().stat(stage.path("d/g")).unwrap().st_ino);
    ann().write_file(stage.path("d/g"), "through one").unwrap();
    assert_eq!(stage.content("d/f"), "through one");
    ann().link(stage.path("d/l"), stage.path("d/m")).unwrap();
    assert_eq!(ann().readlink(stage.path("d/m")), Ok(b"f".to_vec()));

    for (old, new, error) in [
        ("d/f", "d/taken", EEXIST),
        ("d/f", "d/f", EEXIST),
        ("d/f", "d/l", EEXIST),
        ("d/f", "none/x", ENOENT),
        ("d/f", "d/taken/x", ENOTDIR),
        ("d", "d/new", EPERM),
    ] {
        assert_eq!(errno(root().link(stage.path(old), stage.path(new))), error, "{old} {new}");
    }
    let f = stage.open(&ann(), "d/f", O_RDONLY).unwrap();
    assert_eq!(f.flink(stage.path("d/new/")), refused(ENOENT));
    assert_eq!(f.flink(stage.path("d/.")), refused(EEXIST));
    assert_eq!(f.flink(stage.path("")), refused(EEXIST));
    f.flink(stage.path("d/by-handle")).unwrap();
    assert_eq!(f.path(), Ok(stage.path("d/f")), "a link gives a name, it takes none");

    for name in ["f", "g", "by-handle"] {
        ann().unlink(stage.path(&format!("d/{name}"))).unwrap();
    }
    assert_eq!(f.flink(stage.path("d/back")), refused(ENOENT), "no name is left to link");
}

#[test]
fn linking_what_is_another_s() {
    let fill = |lower: &Layer| {
        lower.dir("d", 0o777);
        lower.file("d/private", 0o600);
        lower.file("d/readable", 0o644);
        lower.file("d/shared", 0o666);
        lower.file("d/program", 0o4777);
        lower.symlink("private", "d/l");
        lower.dir("anns", 0o755);
    };
    let stage = Stage::new(fill);
    for name in ["private", "readable", "program", "l"] {
        let (old, new) = (stage.path(&format!("d/{name}")), stage.path("d/mine"));
        assert_eq!(errno(eve().link(&old, &new)), EPERM, "{name}");
        let dir = stage.open(&eve(), "d", O_RDONLY).unwrap();
        let object = eve().open(&old, O_STAT | O_NOFOLLOW, 0).unwrap();
        assert_eq!(errno(object.flinkat(&dir, "mine", 0)), EPERM, "{name}");
        assert_eq!(errno(eve().link(&old, stage.path("anns/new"))), EPERM, "{name}");
        assert_eq!(errno(eve().link(&old, stage.path("d/shared"))), EEXIST, "{name}");
        for who in [ann(), root()] {
            who.link(&old, &new).unwrap();
            who.unlink(&new).unwrap();
        }
    }
    eve().link(stage.path("d/shared"), stage.path("d/mine")).unwrap();

    let stage = Stage::with_free_hardlinks(fill);
    eve().link(stage.path("d/private"), stage.path("d/mine")).unwrap();
    assert_eq!(errno(eve().read_file(stage.path("d/mine"))), EACCES);
}

#[test]
fn renaming_relative_to_directory_handles() {
    let stage = Stage::new(|lower| {
        lower.dir("a", 0o755);
        lower.dir("b", 0o755);
        lower.file("a/f", 0o644);
        lower.file("b/g", 0o644);
        lower.dir("a/d", 0o755);
    });
    let a = stage.open(&ann(), "a", O_STAT).unwrap();
    let b = stage.open(&ann(), "b", O_STAT).unwrap();
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
    assert_eq!((stage.content("a/f"), stage.content("b/g")), ("b/g".into(), "a/f".into()));
    a.frenameat("f", &b, "h", RENAME_NOREPLACE).unwrap();
    a.frenameat("d", &b, "d/", 0).unwrap();
    a.frenameat("/b/d", &a, "../a/d", 0).unwrap();
    b.frenameat("h", &b, "g", 0).unwrap();
    assert_eq!(stage.content("b/g"), "b/g");
    assert_eq!(names(ann().read_dir(stage.path("b")).unwrap()), ["g"]);

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
    let file = stage.open(&ann(), "b/g", O_RDWR).unwrap();
    assert_eq!(file.frenameat("x", &b, "y", 0), refused(ENOTDIR));
    assert_eq!(a.frenameat("d", &file, "y", 0), refused(ENOTDIR));
}

#[test]
fn linking_relative_to_a_directory_handle() {
    let stage = Stage::new(|lower| {
        lower.dir("a", 0o755);
        lower.file("a/f", 0o644);
    });
    let a = stage.open(&ann(), "a", O_STAT).unwrap();
    let f = stage.open(&ann(), "a/f", O_STAT).unwrap();
    f.flinkat(&a, "g", 0).unwrap();
    f.flinkat(&a, "/a/h", 0).unwrap();
    assert_eq!(names(ann().read_dir(stage.path("a")).unwrap()), ["f", "g", "h"]);
    assert_eq!(f.flinkat(&a, "g", 0), refused(EEXIST));
    assert_eq!(f.flinkat(&a, "x", 0x400), refused(EINVAL));
    assert_eq!(a.flinkat(&a, "x", 0), refused(EPERM));
    assert_eq!(f.flinkat(&f, "x", 0), refused(ENOTDIR));
    assert_eq!(stage.open(&ann(), "a/none", O_STAT).map(drop), refused(ENOENT));
    let waiting = stage.open(&ann(), "a/l", syscall::flag::O_CREAT | syscall::flag::O_SYMLINK).unwrap();
    assert_eq!(waiting.flinkat(&a, "x", 0), refused(EBADF));
    assert_eq!(f.flinkat(&waiting, "x", 0), refused(EBADF));
}
