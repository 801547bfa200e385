//! `openat`: flags, access modes, creation of objects.

use std::time::{Duration, Instant};

use linux_delegate::Process;
use syscall::error::{
    EACCES, EBADF, EEXIST, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENFILE, ENOENT, ENOTDIR, ENXIO, EOPNOTSUPP, EPERM,
    EROFS, Error,
};
use syscall::flag::{
    MODE_CHR, MODE_DIR, MODE_FIFO, MODE_SOCK, MODE_SYMLINK, MODE_TYPE, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW,
    O_RDONLY, O_RDWR, O_STAT, O_SYMLINK, O_TRUNC, O_WRONLY,
};

use crate::layers::{FULL, NAME_MAX};
use crate::support::{Setup, ann, bob, errno, eve, names, refused, root};

#[test]
fn the_access_mode_decides_what_a_handle_can_do() {
    let setup = Setup::new(|lower| lower.file("f", 0o644));
    let mut buf = [0; 8];
    let reader = setup.open(&ann(), "f", O_RDONLY).unwrap();
    assert_eq!(reader.read(&mut buf), Ok(1));
    assert_eq!(reader.write(b"x"), refused(EBADF));
    assert_eq!(reader.ftruncate(0), refused(EBADF));
    let writer = setup.open(&ann(), "f", O_WRONLY).unwrap();
    assert_eq!(writer.read(&mut buf), refused(EBADF));
    assert_eq!(writer.write(b"xy"), Ok(2));
    let both = setup.open(&ann(), "f", O_RDWR).unwrap();
    assert_eq!(both.write_at(b"z", 1), Ok(1));
    assert_eq!(both.read(&mut buf), Ok(2));
    assert_eq!(&buf[..2], b"xz");
}

#[test]
fn a_path_handle_needs_no_right_and_gives_none() {
    let setup = Setup::new(|lower| {
        lower.file("f", 0o600);
        lower.dir("d", 0o700);
    });
    for flags in [O_STAT, O_STAT | O_RDONLY, O_STAT | O_RDWR, 0] {
        let file = setup.open(&eve(), "f", flags).unwrap();
        assert_eq!(file.fstat().unwrap().st_size, 1);
        assert_eq!(file.read(&mut [0; 8]), refused(EBADF), "{flags:x}");
        assert_eq!(file.write(b"x"), refused(EBADF), "{flags:x}");
        assert_eq!(file.ftruncate(0), refused(EBADF), "{flags:x}");
        let dir = setup.open(&eve(), "d", flags).unwrap();
        assert_eq!(dir.getdents(&mut [0; 512], 0), refused(EBADF), "{flags:x}");
        assert_eq!(dir.fsize(), refused(EBADF), "{flags:x}");
    }
    for flags in [O_RDONLY, O_WRONLY, O_RDWR] {
        assert_eq!(errno(setup.open(&eve(), "f", flags)), EACCES, "{flags:x}");
    }
    assert_eq!(errno(setup.open(&eve(), "d", O_RDONLY)), EACCES);
}

#[test]
fn a_new_file_belongs_to_its_creator() {
    let setup = Setup::new(|lower| lower.dir("d", 0o777));
    let file = eve().with_umask(0o027).open(setup.path("d/new"), O_CREAT | O_RDWR, 0o4777).unwrap();
    assert_eq!((setup.owner("d/new"), setup.mode("d/new")), ((1002, 200), 0o4750));
    assert_eq!(file.write(b"mine"), Ok(4));
    assert_eq!(setup.content("d/new"), "mine");
    assert_eq!(setup.mode("d/new"), 0o750, "written to by someone without privileges");

    let closed = eve().open(setup.path("d/closed"), O_CREAT | O_EXCL | O_RDWR, 0).unwrap();
    assert_eq!(closed.write(b"x"), Ok(1), "the mode counts from the next open on");
    assert_eq!(errno(setup.open(&eve(), "d/closed", O_RDONLY)), EACCES);
}

#[test]
fn creating_what_exists_opens_it_unless_it_must_not_exist() {
    let setup = Setup::new(|lower| {
        lower.file("f", 0o644);
        lower.dir("d", 0o755);
        lower.symlink("nowhere", "dangling");
    });
    let file = ann().open(setup.path("f"), O_CREAT | O_RDWR, 0o600).unwrap();
    assert_eq!((file.fstat().unwrap().st_size, setup.mode("f")), (1, 0o644));
    assert_eq!(errno(eve().open(setup.path("f"), O_CREAT | O_RDWR, 0o600)), EACCES);
    for name in ["f", "d", "dangling", ""] {
        let made = root().open(setup.path(name), O_CREAT | O_EXCL | O_RDWR, 0o600);
        assert_eq!(errno(made), EEXIST, "{name}");
    }
    assert_eq!(errno(root().open(setup.path("d"), O_CREAT | O_RDONLY, 0o600)), EISDIR);
    assert!(!setup.exists("nowhere"));
}

#[test]
fn creating_through_a_dangling_symlink_makes_its_target() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o755);
        lower.symlink("d/target", "link");
        lower.symlink("gone/target", "lost");
    });
    ann().write_file(setup.path("link"), "through").unwrap();
    assert_eq!(setup.content("d/target"), "through");
    assert_eq!(ann().readlink(setup.path("link")), Ok(b"d/target".to_vec()));
    assert_eq!(errno(ann().open(setup.path("lost"), O_CREAT | O_RDWR, 0o600)), ENOENT);
}

#[test]
fn set_gid_directories_pass_their_group_on() {
    let setup = Setup::new(|lower| lower.dir_of("shared", 0o2777, 0, 7));
    eve().write_file(setup.path("shared/f"), "").unwrap();
    eve().mkdir(setup.path("shared/d")).unwrap();
    eve().symlink("f", setup.path("shared/l")).unwrap();
    if FULL {
        eve().mkfifo(setup.path("shared/p"), 0o600).unwrap();
    }
    for name in ["f", "d", "l", "p"].into_iter().filter(|name| FULL || *name != "p") {
        assert_eq!(setup.owner(&format!("shared/{name}")), (1002, 7), "{name}");
    }
    assert_eq!(setup.mode("shared/d"), 0o2755);
    eve().with_umask(0).open(setup.path("shared/s"), O_CREAT | O_RDWR, 0o2755).unwrap();
    assert_eq!(setup.mode("shared/s"), 0o755, "not eve's group, so not hers to give");
}

#[test]
fn directories_are_made_by_open() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o755);
        lower.file("f", 0o644);
        lower.symlink("nowhere", "l");
    });
    ann().with_umask(0o007).mkdir(setup.path("d/new")).unwrap();
    assert_eq!((setup.owner("d/new"), setup.mode("d/new")), ((1000, 100), 0o770));
    ann().mkdir(setup.path("d/slash/")).unwrap();
    for name in ["d", "f", "l", "d/new/", "f/", "d/.", "d/..", ""] {
        assert_eq!(errno(root().mkdir(setup.path(name))), EEXIST, "{name}");
    }
    assert_eq!(errno(ann().mkdir(setup.path("x/y"))), ENOENT);
    assert_eq!(errno(ann().mkdir(setup.path("f/y"))), ENOTDIR);

    let top = setup.top(&ann());
    let d = top.openat("d", O_CREAT | O_DIRECTORY | O_RDONLY | 0o700, 0).unwrap();
    assert_eq!(d.entries().unwrap().len(), 2, "without O_EXCL an existing directory is opened");
    assert_eq!(errno(top.openat("f", O_CREAT | O_DIRECTORY | 0o700, 0)), ENOTDIR);
    let fresh = d.openat("fresh", O_CREAT | O_DIRECTORY | O_RDONLY | 0o7777, 0).unwrap();
    assert_eq!(fresh.entries().unwrap(), []);
    assert_eq!(setup.mode("d/fresh"), 0o1777, "mkdir gives no set-id bits");
    assert_eq!(errno(d.openat("w", O_CREAT | O_DIRECTORY | O_RDWR | 0o700, 0)), EISDIR);
    assert!(!setup.exists("d/w"));
}

#[test]
fn special_files_are_made_but_not_read() {
    let setup = Setup::new(|lower| lower.dir("d", 0o755));
    let (fifo, socket) = (u32::from(MODE_FIFO), u32::from(MODE_SOCK));
    if !FULL {
        assert_eq!(errno(ann().mkfifo(setup.path("d/fifo"), 0o666)), EOPNOTSUPP);
        assert_eq!(errno(ann().mknod(setup.path("d/socket"), socket | 0o777)), EOPNOTSUPP);
        return;
    }
    ann().mkfifo(setup.path("d/fifo"), 0o666).unwrap();
    ann().mknod(setup.path("d/socket"), socket | 0o777).unwrap();
    for (name, kind, mode) in [("d/fifo", MODE_FIFO, 0o644), ("d/socket", MODE_SOCK, 0o755)] {
        let stat = ann().lstat(setup.path(name)).unwrap();
        assert_eq!((stat.st_mode & MODE_TYPE, stat.st_mode & 0o7777), (kind, mode), "{name}");
        assert_eq!((stat.st_uid, stat.st_gid), (1000, 100));
        for flags in [O_RDONLY, O_WRONLY, O_RDWR] {
            match kind {
                MODE_FIFO => assert_eq!(errno(setup.open(&ann(), name, flags)), ENXIO, "{name}"),
                // A connect to a bound socket needs a descriptor, so the open succeeds. A read
                // fails.
                _ => assert_ne!(errno(setup.open(&ann(), name, flags).unwrap().read(&mut [0; 8])), 0),
            }
        }
        assert_eq!(errno(ann().mkfifo(setup.path(name), 0o600)), EEXIST, "also without O_EXCL");
    }
    assert_eq!(errno(ann().mkfifo(setup.path("d/p/"), 0o600)), ENOENT);
    assert_eq!(errno(eve().mknod(setup.path("d/x"), fifo | 0o600)), EACCES);
    assert_eq!(errno(root().mknod(setup.path("d/x"), u32::from(MODE_CHR) | 0o600)), EPERM, "without a number");
    assert_eq!(errno(root().mknod(setup.path("d/x"), 0x6000 | 0o600)), EPERM);
    assert_eq!(errno(root().mknod(setup.path("d/x"), u32::from(MODE_DIR) | 0o600)), EPERM);
    assert_eq!(errno(root().mknod(setup.path("d/x"), u32::from(MODE_SYMLINK) | 0o600)), EINVAL);
    ann().mknod(setup.path("d/plain"), 0o100640).unwrap();
    assert_eq!(setup.mode("d/plain"), 0o640);
}

#[test]
fn a_device_node_appears_when_its_number_is_written() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o755);
        lower.file("d/f", 0o644);
    });
    for (name, kind) in [("d/char", MODE_CHR), ("d/block", 0x6000)] {
        let flags = O_CREAT | O_WRONLY | usize::from(kind) | 0o640;
        let number = 0x12_34_u64;
        assert_eq!(errno(setup.top(&eve()).openat(name, flags, 0)), EACCES);
        assert_eq!(errno(setup.top(&ann()).openat(name, flags, 0)), EPERM, "devices are root's to make");
        let top = setup.top(&root());
        assert_eq!(errno(top.openat("d/f", flags, 0)), EEXIST, "also without O_EXCL");
        assert_eq!(errno(top.openat(name, flags | O_RDWR, 0)), EPERM, "not for reading");
        let made = top.openat(name, flags, 0).unwrap();
        for wrong in [&b""[..], b"1234567", b"123456789"] {
            assert_eq!(made.write(wrong), refused(EINVAL));
        }
        assert!(!setup.exists(name));
        if !FULL {
            assert_eq!(made.write(&number.to_ne_bytes()), refused(EOPNOTSUPP));
            continue;
        }
        assert_eq!(made.write(&number.to_ne_bytes()), Ok(8));
        assert_eq!(root().lstat(setup.path(name)).unwrap().st_mode, kind | 0o640);
        assert_eq!(made.write(&number.to_ne_bytes()), refused(EBADF));

        let mut read = [0; 8];
        assert_eq!(setup.open(&eve(), name, O_SYMLINK | O_RDONLY).unwrap().read(&mut read), Ok(8));
        assert_eq!(u64::from_ne_bytes(read), number);
        assert_eq!(errno(setup.open(&root(), name, O_SYMLINK | O_WRONLY)), EINVAL);
        for flags in [O_RDONLY, O_WRONLY, O_RDWR] {
            assert_eq!(errno(setup.open(&root(), name, flags)), ENXIO, "{name}");
        }
        assert_eq!(setup.open(&root(), name, O_STAT).unwrap().read(&mut read), refused(EBADF));
    }
}

#[test]
fn a_symlink_appears_when_its_target_is_written() {
    let setup = Setup::new(|lower| lower.dir("d", 0o755));
    let made = setup.open(&ann(), "d/l", O_CREAT | O_SYMLINK | O_WRONLY).unwrap();
    assert!(!setup.exists("d/l"));
    assert_eq!(made.read(&mut [0; 8]), refused(EBADF));
    assert_eq!(made.fstat().map(drop), refused(EBADF));
    assert_eq!(made.write(b""), refused(ENOENT));
    assert_eq!(made.write(b"a\0b"), refused(EINVAL));
    assert_eq!(made.write(&[b'a'; 4096]), refused(ENAMETOOLONG));
    assert!(!setup.exists("d/l"));
    assert_eq!(made.write(b"some/where"), Ok(10));
    assert_eq!(ann().readlink(setup.path("d/l")), Ok(b"some/where".to_vec()));
    assert_eq!(setup.owner("d/l"), (1000, 100));
    assert_eq!(made.write(b"else"), refused(EINVAL));
    assert_eq!(made.fstat().unwrap().st_mode & MODE_TYPE, MODE_SYMLINK);
    assert_eq!(made.path(), Ok(setup.path("d/l")));
}

#[test]
fn a_symlink_takes_no_name_that_is_taken() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o755);
        lower.file("d/f", 0o644);
        lower.symlink("nowhere", "d/l");
    });
    for name in ["d/f", "d/l", "d", "d/f/", ""] {
        assert_eq!(errno(ann().symlink("x", setup.path(name))), EEXIST, "{name}, though there is no O_EXCL");
    }
    assert_eq!(errno(ann().symlink("x", setup.path("d/new/"))), ENOENT);
    assert_eq!(errno(eve().symlink("x", setup.path("d/new"))), EACCES);

    let (first, second) = (
        setup.open(&ann(), "d/race", O_CREAT | O_SYMLINK | O_WRONLY).unwrap(),
        setup.open(&ann(), "d/race", O_CREAT | O_SYMLINK | O_WRONLY).unwrap(),
    );
    assert_eq!(first.write(b"1"), Ok(1));
    assert_eq!(second.write(b"2"), refused(EEXIST));
    assert_eq!(ann().readlink(setup.path("d/race")), Ok(b"1".to_vec()));
}

#[test]
fn o_symlink_opens_symlinks_only() {
    let setup = Setup::new(|lower| {
        lower.file("f", 0o644);
        lower.dir("d", 0o755);
        lower.symlink("some/where", "l");
    });
    let link = setup.open(&eve(), "l", O_SYMLINK | O_RDONLY).unwrap();
    let mut buf = [0; 4];
    assert_eq!(link.read(&mut buf), Ok(4));
    assert_eq!(&buf, b"some");
    assert_eq!(link.read_at(&mut buf, 5), Ok(4));
    assert_eq!(&buf, b"wher");
    assert_eq!(link.read_at(&mut buf, 9), Ok(1));
    assert_eq!(link.read_at(&mut buf, 10), Ok(0));
    assert_eq!(link.read_at(&mut buf, 1 << 40), Ok(0));
    for name in ["f", "d", ""] {
        assert_eq!(errno(setup.open(&ann(), name, O_SYMLINK | O_RDONLY)), EINVAL, "{name}");
    }
    assert_eq!(errno(setup.open(&ann(), "l", O_SYMLINK | O_WRONLY)), EINVAL);
    assert_eq!(errno(setup.open(&ann(), "l", O_SYMLINK | O_DIRECTORY)), ENOTDIR);
    assert_eq!(errno(setup.open(&ann(), "none", O_SYMLINK | O_RDONLY)), ENOENT);
}

#[test]
fn o_nofollow_refuses_symlinks_but_to_path_handles() {
    let setup = Setup::new(|lower| {
        lower.file("f", 0o644);
        lower.dir("d", 0o755);
        lower.symlink("f", "l");
        lower.symlink("d", "dl");
    });
    assert_eq!(errno(setup.open(&ann(), "l", O_NOFOLLOW | O_RDONLY)), ELOOP);
    setup.open(&ann(), "f", O_NOFOLLOW | O_RDONLY).unwrap();
    let link = setup.open(&ann(), "l", O_NOFOLLOW | O_STAT).unwrap();
    assert_eq!(link.fstat().unwrap().st_mode & MODE_TYPE, MODE_SYMLINK);
    assert_eq!(link.read(&mut [0; 8]), refused(EBADF));
    let target = setup.open(&ann(), "l", O_STAT).unwrap();
    assert_eq!(target.fstat().unwrap().st_mode & MODE_TYPE, 0x8000);
    let behind = setup.open(&ann(), "dl/", O_NOFOLLOW | O_STAT).unwrap();
    assert_eq!(behind.fstat().unwrap().st_mode & MODE_TYPE, MODE_DIR, "a slash follows");
}

#[test]
fn truncation_asks_for_the_right_to_write() {
    let setup = Setup::new(|lower| {
        lower.file("mine", 0o644);
        lower.file("ours", 0o646);
        lower.file("idle", 0o4644);
        lower.dir("d", 0o777);
    });
    assert_eq!(errno(setup.open(&eve(), "mine", O_RDONLY | O_TRUNC)), EACCES);
    assert_eq!(setup.content("mine"), "mine");
    setup.open(&eve(), "ours", O_RDONLY | O_TRUNC).unwrap();
    assert_eq!(setup.content("ours"), "");
    setup.open(&ann(), "mine", O_WRONLY | O_TRUNC).unwrap();
    assert_eq!(setup.content("mine"), "");
    setup.open(&ann(), "idle", O_WRONLY | O_TRUNC).unwrap();
    assert_eq!(setup.mode("idle"), 0o644);
    assert_eq!(errno(setup.open(&ann(), "d", O_RDONLY | O_TRUNC)), EISDIR);
}

#[test]
fn directories_are_not_written_and_files_are_no_directories() {
    let setup = Setup::new(|lower| {
        lower.file("f", 0o644);
        lower.dir("d", 0o755);
        lower.symlink("d", "l");
    });
    assert_eq!(errno(setup.open(&ann(), "d", O_WRONLY)), EISDIR);
    assert_eq!(errno(setup.open(&ann(), "d", O_RDWR)), EISDIR);
    assert_eq!(errno(setup.open(&ann(), "f", O_RDONLY | O_DIRECTORY)), ENOTDIR);
    setup.open(&ann(), "l", O_RDONLY | O_DIRECTORY).unwrap();
    for name in ["f/", "f/.", "f/..", "f/x"] {
        assert_eq!(errno(setup.open(&ann(), name, O_RDONLY)), ENOTDIR, "{name}");
    }
    for name in ["new/", "d/new/"] {
        assert_eq!(errno(ann().open(setup.path(name), O_CREAT | O_RDWR, 0o600)), EISDIR, "{name}");
    }
}

#[test]
fn the_empty_path_names_the_handles_own_object() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o755);
        lower.file("d/f", 0o640);
        lower.symlink("f", "d/l");
    });
    let top = ann().scheme_root(setup.name()).unwrap().openat("", O_RDONLY, 0).unwrap();
    assert_eq!(names(top.entries().unwrap()), ["d"]);

    let file = setup.open(&ann(), "d/f", O_STAT).unwrap();
    assert_eq!(file.openat("", O_RDONLY, 0).unwrap().read(&mut [0; 8]), Ok(3));
    assert_eq!(bob().inherit(&file).openat("", O_RDONLY, 0).unwrap().read(&mut [0; 8]), Ok(3));
    assert_eq!(errno(bob().inherit(&file).openat("", O_WRONLY, 0)), EACCES);
    assert_eq!(errno(eve().inherit(&file).openat("", O_RDONLY, 0)), EACCES, "independent of the opener of the handle");
    assert_eq!(errno(file.openat("", O_CREAT | O_EXCL | O_RDWR | 0o600, 0)), EEXIST);
    assert_eq!(errno(file.openat("", O_DIRECTORY | O_RDONLY, 0)), ENOTDIR);
    assert_eq!(errno(file.openat("x", O_RDONLY, 0)), ENOTDIR);
    assert_eq!(errno(file.openat("..", O_RDONLY, 0)), ENOTDIR);

    let link = setup.open(&ann(), "d/l", O_STAT | O_NOFOLLOW).unwrap();
    assert_eq!(errno(link.openat("", O_RDONLY, 0)), ELOOP);
    assert_eq!(link.openat("", O_SYMLINK | O_RDONLY, 0).unwrap().read(&mut [0; 8]), Ok(1));

    ann().unlink(setup.path("d/f")).unwrap();
    assert_eq!(file.openat("", O_RDONLY, 0).unwrap().read(&mut [0; 8]), Ok(3), "it lives while it is open");
}

#[test]
fn names_have_limits() {
    let setup = Setup::new(|lower| lower.dir("d", 0o755));
    let top = setup.top(&ann());
    let longest = "n".repeat(NAME_MAX);
    ann().write_file(setup.path(&format!("d/{longest}")), "x").unwrap();
    assert_eq!(setup.content(&format!("d/{longest}")), "x");
    let too_long = "n".repeat(NAME_MAX + 1);
    assert_eq!(errno(top.openat(format!("d/{too_long}"), O_RDONLY, 0)), ENAMETOOLONG);
    assert_eq!(errno(top.openat(format!("d/{too_long}"), O_CREAT | O_RDWR | 0o600, 0)), ENAMETOOLONG);
    assert_eq!(errno(top.openat(format!("d/{too_long}/x"), O_RDONLY, 0)), ENAMETOOLONG);
    assert_eq!(errno(top.openat("d/a\0b", O_CREAT | O_RDWR | 0o600, 0)), EINVAL);
    for reserved in ["d/.wh.x", "d/.wh..wh..opq"] {
        assert_eq!(errno(top.openat(reserved, O_RDONLY, 0)), ENOENT, "{reserved}");
        assert_eq!(errno(top.openat(reserved, O_CREAT | O_RDWR | 0o600, 0)), EINVAL, "{reserved}");
        assert_eq!(errno(ann().mkdir(setup.path(reserved))), EINVAL, "{reserved}");
        assert_eq!(errno(ann().symlink("x", setup.path(reserved))), EINVAL, "{reserved}");
    }
    ann().write_file(setup.path("d/.whx"), "").unwrap();
}

#[test]
fn without_an_upper_layer_nothing_changes() {
    let setup = Setup::read_only(|lower| {
        lower.dir("d", 0o777);
        lower.file("d/f", 0o666);
        lower.symlink("f", "d/l");
    });
    let me = ann();
    assert_eq!(setup.content("d/f"), "d/f");
    assert_eq!(errno(setup.open(&me, "d/f", O_RDWR)), EROFS);
    assert_eq!(errno(setup.open(&me, "d/f", O_RDONLY | O_TRUNC)), EROFS);
    assert_eq!(errno(me.open(setup.path("d/new"), O_CREAT | O_RDONLY, 0o600)), EROFS);
    assert_eq!(me.open(setup.path("d/f"), O_CREAT | O_RDONLY, 0o600).unwrap().read(&mut [0; 8]), Ok(3));
    assert_eq!(errno(me.mkdir(setup.path("d/new"))), EROFS);
    assert_eq!(errno(me.mkdir(setup.path("d"))), EEXIST);
    assert_eq!(errno(me.mkfifo(setup.path("d/new"), 0o600)), EROFS);
    assert_eq!(errno(me.symlink("x", setup.path("d/new"))), EROFS);
    assert_eq!(errno(me.unlink(setup.path("d/f"))), EROFS);
    assert_eq!(errno(me.unlink(setup.path("d/none"))), ENOENT);
    assert_eq!(errno(me.rename(setup.path("d/f"), setup.path("d/g"))), EROFS);
    assert_eq!(errno(me.link(setup.path("d/f"), setup.path("d/g"))), EROFS);
    assert_eq!(errno(me.chmod(setup.path("d/f"), 0o600)), EROFS);
    assert_eq!(errno(root().chown(setup.path("d/f"), 1, 1)), EROFS);
    let now = syscall::TimeSpec { tv_sec: 0, tv_nsec: (1 << 30) - 1 };
    assert_eq!(errno(me.utimens(setup.path("d/f"), now, now)), EROFS);
}

#[test]
fn an_id_is_never_given_twice() {
    let setup = Setup::new(|lower| lower.file("f", 0o644));
    let me: Process = ann();
    let mut last = 0;
    for _ in 0..20 {
        let id = setup.open(&me, "f", O_RDONLY).unwrap().id();
        assert!(id > last, "{id} after {last}");
        last = id;
    }
}

#[test]
fn handles_have_a_limit() {
    let setup = Setup::new(|lower| lower.file("file", 0o644));
    let who = ann();
    let mut open = Vec::new();
    let refusal = loop {
        match setup.open(&who, "file", O_STAT) {
            Ok(file) => open.push(file),
            Err(error) => break error,
        }
        assert!(open.len() < 100_000, "there is no end");
    };
    assert_eq!(refusal, Error::new(ENFILE));
    assert_eq!(errno(setup.open(&ann(), "new", O_CREAT | O_RDWR | 0o600)), ENFILE);
    assert!(!setup.exists("new"), "nothing was made");
    assert!(setup.open(&bob(), "file", O_RDONLY).is_ok(), "another user");
    drop(open);
    // A close reaches the daemon later, as its client does not wait for it.
    let deadline = Instant::now() + Duration::from_secs(10);
    while setup.open(&ann(), "file", O_RDONLY).is_err() {
        assert!(Instant::now() < deadline, "there is no room again");
    }
}
