//! Walks of paths.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use syscall::error::{EACCES, EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EXDEV};
use syscall::flag::{O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_RDONLY, O_RDWR, O_STAT, O_SYMLINK};

use crate::support::{Setup, ann, errno, eve, refused, root};

#[test]
fn dots_and_slashes() {
    let setup = Setup::new(|lower| {
        lower.dir("a", 0o755);
        lower.dir("a/b", 0o755);
        lower.file("a/b/f", 0o644);
        lower.file("top", 0o644);
    });
    let root_fd = ann().scheme_root(setup.name()).unwrap();
    let content = |path: &str| {
        let mut buf = [0; 16];
        let len = root_fd.openat(path, O_RDONLY, 0).unwrap().read(&mut buf).unwrap();
        String::from_utf8_lossy(&buf[..len]).into_owned()
    };
    for path in ["a/b/f", "/a/b/f", "//a///b//f", "./a/./b/./f", "a/b/../b/f", "a/../a/b/f", "../../a/b/f", "/../a/b/f"]
    {
        assert_eq!(content(path), "a/b/f", "{path}");
    }
    assert_eq!(content("a/b/../../top"), "top");
    assert_eq!(content(&format!("{}top", "../".repeat(1000))), "top", "nothing lies above the top");
    assert_eq!(errno(root_fd.openat("a/none/../b/f", O_RDONLY, 0)), ENOENT, "every directory on the way exists");
    assert_eq!(errno(root_fd.openat("top/../top", O_RDONLY, 0)), ENOTDIR);
    for path in ["", "/", "//", ".", "..", "/..", "a/.."] {
        let mut buf = [0; 64];
        let len = root_fd.openat(path, O_RDONLY, 0).unwrap().fpath(&mut buf).unwrap();
        assert_eq!(&buf[..len], format!("/scheme/{}", setup.name()).as_bytes(), "{path}");
    }
    let longest = format!("{}top", "./".repeat(2046));
    assert_eq!(longest.len(), 4095);
    assert_eq!(content(&longest), "top");
    assert_eq!(errno(root_fd.openat("/".repeat(4097), O_RDONLY, 0)), ENAMETOOLONG);
}

#[test]
fn paths_start_at_a_directory_handle_unless_they_are_absolute() {
    let setup = Setup::new(|lower| {
        lower.dir("a", 0o755);
        lower.dir("a/b", 0o755);
        lower.file("a/b/f", 0o644);
        lower.file("a/g", 0o644);
    });
    let b = setup.open(&ann(), "a/b", O_STAT).unwrap();
    let size = |path: &str| b.openat(path, O_STAT, 0).unwrap().fstat().unwrap().st_size;
    assert_eq!(size("f"), 5);
    assert_eq!(size("../g"), 3);
    assert_eq!(size("/a/g"), 3);
    assert_eq!(errno(b.openat("g", O_STAT, 0)), ENOENT);

    ann().with_umask(0).mkdir(setup.path("a/c")).unwrap();
    ann().rename(setup.path("a/b"), setup.path("a/c/b")).unwrap();
    assert_eq!(size("f"), 5, "the handle follows its directory");
    assert_eq!(errno(b.openat("../g", O_STAT, 0)), ENOENT, "and so does its parent");
    assert_eq!(size("../../g"), 3);

    let gone = setup.open(&ann(), "a/c", O_STAT).unwrap();
    ann().unlink(setup.path("a/c/b/f")).unwrap();
    ann().rmdir(setup.path("a/c/b")).unwrap();
    ann().rmdir(setup.path("a/c")).unwrap();
    assert_eq!(errno(gone.openat("x", O_STAT, 0)), ENOENT);
    assert_eq!(errno(gone.openat("..", O_STAT, 0)), ENOENT);
    assert_eq!(errno(gone.openat("x", O_CREAT | O_RDWR | 0o600, 0)), ENOENT);
}

#[test]
fn symlinks_lead_on_at_the_end_and_in_the_middle() {
    let setup = Setup::new(|lower| {
        lower.dir("a", 0o755);
        lower.dir("a/b", 0o755);
        lower.file("a/b/f", 0o644);
        lower.symlink("b/f", "a/near");
        lower.symlink("../a/b", "a/dir");
        lower.symlink("a/dir/", "chain");
        lower.symlink("/a/b/f", "from-top");
        lower.symlink("../../../a/b", "above");
    });
    let name = setup.name().to_owned();
    root().symlink(format!("/scheme/{name}/a/b"), setup.path("named")).unwrap();
    root().symlink(format!("/scheme/{name}"), setup.path("whole")).unwrap();
    for path in [
        "a/near",
        "a/dir/f",
        "chain/f",
        "from-top",
        "above/f",
        "named/f",
        "whole/a/b/f",
        "whole/whole/named/../b/f",
        "chain/../b/f",
    ] {
        assert_eq!(setup.content(path), "a/b/f", "{path}");
    }
    assert_eq!(setup.open(&ann(), "chain/f", O_STAT).unwrap().path(), Ok(setup.path("a/b/f")));
    assert_eq!(errno(setup.open(&ann(), "a/near/x", O_STAT)), ENOTDIR);
    assert_eq!(errno(setup.open(&ann(), "a/near/", O_STAT)), ENOTDIR);
    setup.open(&ann(), "chain/", O_DIRECTORY | O_RDONLY).unwrap();
}

#[test]
fn symlinks_that_lead_nowhere() {
    let setup = Setup::new(|lower| {
        lower.symlink("b", "a");
        lower.symlink("a", "b");
        lower.symlink("self/x", "self");
        lower.symlink("gone", "dangling");
        lower.symlink(OsStr::from_bytes(b"not \xff text"), "odd");
        lower.file("f", 0o644);
        for i in 1..=41 {
            let target = if i == 1 { "f".to_owned() } else { format!("l{}", i - 1) };
            lower.symlink(target, &format!("l{i}"));
        }
    });
    for path in ["a", "a/x", "self"] {
        assert_eq!(errno(setup.open(&ann(), path, O_STAT)), ELOOP, "{path}");
    }
    assert_eq!(setup.content("l40"), "f");
    assert_eq!(errno(setup.open(&ann(), "l41", O_STAT)), ELOOP);
    assert_eq!(errno(setup.open(&ann(), "dangling", O_STAT)), ENOENT);
    assert_eq!(errno(setup.open(&ann(), "dangling/x", O_STAT)), ENOENT);
    assert_eq!(errno(setup.open(&ann(), "odd", O_STAT)), EINVAL);
    assert_eq!(ann().readlink(setup.path("odd")), Ok(b"not \xff text".to_vec()));
    setup.open(&ann(), "a", O_STAT | O_NOFOLLOW).unwrap();
}

#[test]
fn the_client_follows_symlinks_into_another_scheme() {
    let other = Setup::new(|lower| {
        lower.dir("d", 0o755);
        lower.file("d/f", 0o644);
    });
    let setup = Setup::new(|lower| {
        lower.symlink(format!("/scheme/{}/d", other.name()), "dir");
        lower.symlink(format!("/scheme/{}/d/f", other.name()), "file");
        lower.symlink("file", "chain");
        lower.symlink("/scheme", "schemes");
        lower.file("f", 0o644);
    });
    let top = setup.top(&ann());
    for path in ["dir", "file", "chain", "dir/f", "dir/none", "schemes", "schemes/x"] {
        assert_eq!(errno(top.openat(path, O_RDONLY, 0)), EXDEV, "{path}");
        assert_eq!(errno(top.openat(path, O_STAT, 0)), EXDEV, "{path}");
        assert_eq!(errno(top.openat(path, O_CREAT | O_RDWR | 0o600, 0)), EXDEV, "{path}");
    }
    assert_eq!(errno(top.openat("dir/new", O_CREAT | O_SYMLINK | O_RDWR, 0)), EXDEV);
    assert_eq!(errno(top.openat("dir/new", O_CREAT | O_DIRECTORY | O_EXCL | 0o700, 0)), EXDEV);
    assert_eq!(errno(top.unlinkat("dir/f", 0)), EXDEV);
    let file = setup.open(&ann(), "f", O_STAT).unwrap();
    assert_eq!(file.flink(setup.path("dir/new")), refused(EXDEV));
    assert_eq!(file.frename(setup.path("dir/new")), refused(EXDEV));

    // With O_SYMLINK, the last symlink of a path is opened itself. Symlinks before it are followed.
    let link = top.openat("file", O_SYMLINK | O_RDONLY, 0).unwrap();
    assert_eq!(link.path(), Ok(setup.path("file")));
    let outside = top.openat("dir/../d//f", O_SYMLINK | O_RDONLY, 0).unwrap();
    let target = format!("/scheme/{}/d/../d//f", other.name());
    let mut buf = [0; 64];
    let len = outside.fpath(&mut buf).unwrap();
    assert_eq!(&buf[..len], target.as_bytes());
    let len = outside.read(&mut buf).unwrap();
    assert_eq!(&buf[..len], target.as_bytes());
    assert_eq!(outside.fpath(&mut buf[..8]), refused(ENAMETOOLONG));
    assert_eq!(outside.fstat().map(drop), refused(EXDEV));
    assert_eq!(outside.fsync(), refused(EXDEV));

    for path in ["file", "dir/f"] {
        assert_eq!(ann().read_file(setup.path(path)), Ok(b"d/f".to_vec()), "as relibc goes on: {path}");
        assert_eq!(ann().realpath(setup.path(path)), Ok(other.path("d/f")));
    }
    ann().mkdir(setup.path("dir/new")).unwrap();
    assert!(other.exists("d/new"));
}

#[test]
fn every_directory_on_the_way_must_be_searchable() {
    let setup = Setup::new(|lower| {
        lower.dir("closed", 0o744);
        lower.dir("closed/in", 0o777);
        lower.file("closed/in/f", 0o666);
        lower.dir("open", 0o755);
        lower.symlink("../closed/in/f", "open/l");
        lower.file("open/f", 0o644);
    });
    for path in ["closed/in/f", "closed/in", "closed/none", "open/l", "open/../closed/in/f", "closed/.", "closed/.."] {
        assert_eq!(errno(setup.open(&eve(), path, O_STAT)), EACCES, "{path}");
    }
    setup.open(&eve(), "closed", O_RDONLY).unwrap();
    setup.open(&ann(), "open/l", O_RDONLY).unwrap();
    setup.open(&root(), "open/l", O_RDONLY).unwrap();

    let closed = setup.open(&ann(), "closed", O_STAT).unwrap();
    closed.openat("in/f", O_RDONLY, 0).unwrap();
    assert_eq!(
        errno(eve().inherit(&closed).openat("in/f", O_RDONLY, 0)),
        EACCES,
        "independent of the opener of the directory"
    );
    eve().inherit(&closed).openat("", O_RDONLY, 0).unwrap();
}
