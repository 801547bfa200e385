//! stat, chmod, chown, times, flags, paths.

use std::time::{SystemTime, UNIX_EPOCH};

use syscall::TimeSpec;
use syscall::error::{EACCES, EBADF, EINVAL, ENAMETOOLONG, ENOENT, EOPNOTSUPP, EPERM, ERANGE};
use syscall::flag::{
    EventFlags, F_GETFL, F_SETFL, O_APPEND, O_CREAT, O_FSYNC, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR, O_STAT,
    O_WRONLY, StdFsCallKind,
};

use crate::layers::FULL;
use crate::support::{Setup, ann, bob, errno, eve, refused, root};

const NOW: TimeSpec = TimeSpec { tv_sec: 0, tv_nsec: (1 << 30) - 1 };
const OMIT: TimeSpec = TimeSpec { tv_sec: 0, tv_nsec: (1 << 30) - 2 };

fn at(tv_sec: i64, tv_nsec: i32) -> TimeSpec {
    TimeSpec { tv_sec, tv_nsec }
}

#[test]
fn stat_reports_every_field() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o1775);
        lower.file("d/file", 0o4751);
        lower.symlink("file", "d/l");
        lower.link("d/file", "d/second");
    });
    let file = ann().stat(setup.path("d/l")).unwrap();
    assert_eq!(file.st_mode, 0x8000 | 0o4751);
    assert_eq!((file.st_size, file.st_uid, file.st_gid), (6, 1000, 100));
    assert!(file.st_blksize >= 512 && file.st_blocks > 0);
    let dir = ann().stat(setup.path("d")).unwrap();
    assert_eq!(dir.st_mode, 0x4000 | 0o1775);
    let link = ann().lstat(setup.path("d/l")).unwrap();
    assert_eq!((link.st_mode, link.st_size), (0xA000 | 0o777, 4));
    let by_handle = setup.open(&ann(), "d/file", O_STAT).unwrap();
    let mut by_old_call = by_handle.sys_fstat().unwrap();
    by_old_call.st_dev = file.st_dev;
    assert_eq!(by_old_call, file);
    let space = by_handle.fstatvfs().unwrap();
    assert!(space.f_bsize > 0 && space.f_blocks >= space.f_bfree && space.f_bfree >= space.f_bavail);
}

#[test]
fn the_owner_sets_the_mode() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o755);
        lower.file("d/f", 0o644);
        lower.symlink("f", "d/l");
        lower.file_of("d/foreign", 0o755, 1000, 7);
    });
    ann().chmod(setup.path("d/f"), 0o640).unwrap();
    assert_eq!(setup.mode("d/f"), 0o640);
    ann().chmod(setup.path("d/f"), 0o7755).unwrap();
    assert_eq!(setup.mode("d/f"), 0o7755);
    ann().chmod(setup.path("d/l"), 0o600).unwrap();
    assert_eq!(setup.mode("d/f"), 0o600, "through the symlink");
    assert_eq!(errno(eve().chmod(setup.path("d/f"), 0o666)), EPERM);
    assert_eq!(errno(bob().chmod(setup.path("d/f"), 0o666)), EPERM);
    root().chmod(setup.path("d/f"), 0o644).unwrap();
    ann().chmod(setup.path("d"), 0o2770).unwrap();
    assert_eq!(setup.mode("d"), 0o2770);

    ann().chmod(setup.path("d/foreign"), 0o2755).unwrap();
    assert_eq!(setup.mode("d/foreign"), 0o755, "not ann's group, so not hers to give");
    root().chmod(setup.path("d/foreign"), 0o2755).unwrap();
    assert_eq!(setup.mode("d/foreign"), 0o2755);
    let symlink = setup.open(&ann(), "d/l", O_STAT | O_NOFOLLOW).unwrap();
    assert_eq!(symlink.fchmod(0o600), refused(EOPNOTSUPP));
    let file = setup.open(&ann(), "d/f", 0).unwrap();
    file.fchmod(0xFFFF).unwrap();
    assert_eq!(ann().stat(setup.path("d/f")).unwrap().st_mode, 0x8000 | 0o7777, "the kind is no part of it");
}

#[test]
fn root_sets_the_owner_and_the_owner_sets_the_group() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o777);
        lower.file("d/f", 0o644);
        lower.file_of("d/foreign", 0o644, 1000, 7);
        lower.symlink("f", "d/l");
    });
    let same = u32::MAX;
    let chown = |who: &linux_delegate::Process, path: &str, uid: u32, gid: u32| {
        // The request as a standard call: the kernel does not look at the ids.
        let file = setup.open(who, path, O_STAT | O_NOFOLLOW)?;
        let ids = u64::from(uid) | u64::from(gid) << 32;
        file.std_fs_call(StdFsCallKind::Fchown as u8, &mut [], ids, 0).map(drop)
    };
    assert_eq!(chown(&eve(), "d/f", 1002, 200), refused(EPERM));
    assert_eq!(chown(&ann(), "d/f", 1002, 100), refused(EPERM));
    assert_eq!(chown(&ann(), "d/f", same, 200), refused(EPERM));
    assert_eq!(chown(&ann(), "d/foreign", 1000, 100), Ok(()));
    assert_eq!(setup.owner("d/foreign"), (1000, 100));
    assert_eq!(chown(&ann(), "d/foreign", 1000, 7), refused(EPERM), "not her group any more");
    assert_eq!(chown(&ann(), "d/f", same, same), Ok(()));
    assert_eq!(chown(&root(), "d/f", 5, same), Ok(()));
    assert_eq!(setup.owner("d/f"), (5, 100));
    assert_eq!(chown(&root(), "d/f", same, 6), Ok(()));
    assert_eq!(setup.owner("d/f"), (5, 6));
    assert_eq!(chown(&root(), "d/l", 8, 9), Ok(()));
    assert_eq!((setup.owner("d/l"), setup.owner("d/f")), ((8, 9), (5, 6)), "the symlink itself");

    root().chown(setup.path("d/f"), 1000, 7).unwrap();
    ann().chown(setup.path("d/f"), 1000, 100).unwrap();
    assert_eq!(setup.owner("d/f"), (1000, 100), "by the old call");
}

#[test]
fn a_change_by_an_unprivileged_user_clears_set_id_bits() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o777);
        for name in ["write", "append", "resize", "truncate", "own", "root", "nothing"] {
            lower.file(&format!("d/{name}"), 0o6777);
        }
        lower.file("d/locking", 0o6767);
        lower.dir("d/dir", 0o6777);
    });
    let open = |name: &str, flags| setup.open(&eve(), name, flags).unwrap();
    open("d/write", O_WRONLY).write(b"x").unwrap();
    open("d/append", O_WRONLY | O_APPEND).write(b"x").unwrap();
    open("d/resize", O_WRONLY).ftruncate(0).unwrap();
    eve().truncate(setup.path("d/truncate"), 0).unwrap();
    ann().chown(setup.path("d/own"), 1000, 100).unwrap();
    for name in ["write", "append", "resize", "truncate", "own"] {
        assert_eq!(setup.mode(&format!("d/{name}")), 0o777, "{name}");
    }
    open("d/locking", O_WRONLY).write(b"x").unwrap();
    assert_eq!(setup.mode("d/locking"), 0o767, "eve is not in the group");
    open("d/nothing", O_RDWR).write(b"").unwrap();
    assert_eq!(setup.mode("d/nothing"), 0o6777, "nothing was written");
    root().write_file(setup.path("d/root"), "x").unwrap();
    root().chown(setup.path("d/root"), 1000, 100).unwrap();
    assert_eq!(setup.mode("d/root"), 0o6777, "root has privileges");
    ann().chown(setup.path("d/dir"), 1000, 100).unwrap();
    assert_eq!(setup.mode("d/dir"), 0o6777, "a directory's mean something else");
}

#[test]
fn times() {
    let setup = Setup::new(|lower| {
        lower.file("mine", 0o644);
        lower.file("ours", 0o666);
        lower.dir("d", 0o755);
    });
    let times = |name: &str| {
        let stat = ann().stat(setup.path(name)).unwrap();
        (at(stat.st_atime as i64, stat.st_atime_nsec as i32), at(stat.st_mtime as i64, stat.st_mtime_nsec as i32))
    };
    ann().utimens(setup.path("mine"), at(1, 2), at(3, 999_999_999)).unwrap();
    assert_eq!(times("mine"), (at(1, 2), at(3, 999_999_999)));
    ann().utimens(setup.path("mine"), OMIT, at(-5, 6)).unwrap();
    assert_eq!(times("mine"), (at(1, 2), at(-5, 6)), "also before 1970");
    ann().utimens(setup.path("mine"), at(7, 0), OMIT).unwrap();
    assert_eq!(times("mine"), (at(7, 0), at(-5, 6)));
    ann().utimens(setup.path("d"), at(8, 0), at(9, 0)).unwrap();
    assert_eq!(times("d"), (at(8, 0), at(9, 0)));

    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    ann().utimens(setup.path("mine"), NOW, NOW).unwrap();
    let (atime, mtime) = times("mine");
    assert!(atime == mtime && atime.tv_sec >= before && atime.tv_sec <= before + 60, "{atime:?} {mtime:?}");

    assert_eq!(errno(eve().utimens(setup.path("mine"), NOW, NOW)), EACCES);
    assert_eq!(errno(eve().utimens(setup.path("mine"), at(1, 0), at(1, 0))), EPERM);
    eve().utimens(setup.path("ours"), NOW, NOW).unwrap();
    assert_eq!(errno(eve().utimens(setup.path("ours"), NOW, OMIT)), EPERM);
    assert_eq!(errno(eve().utimens(setup.path("ours"), at(1, 0), at(1, 0))), EPERM);
    eve().utimens(setup.path("mine"), OMIT, OMIT).unwrap();
    root().utimens(setup.path("mine"), at(1, 0), at(1, 0)).unwrap();
    for nsec in [-1, 1_000_000_000, i32::MIN, i32::MAX] {
        assert_eq!(errno(ann().utimens(setup.path("mine"), at(1, nsec), NOW)), EINVAL, "{nsec}");
        assert_eq!(errno(ann().utimens(setup.path("mine"), NOW, at(1, nsec))), EINVAL, "{nsec}");
    }
    let file = setup.open(&ann(), "mine", O_STAT).unwrap();
    for len in [0, 16, 31, 33, 48] {
        let call = file.std_fs_call(StdFsCallKind::Futimens as u8, &mut aligned(len), 0, 0);
        assert_eq!(call, refused(EINVAL), "{len} bytes of times");
    }
}

/// A buffer that is aligned for a time.
fn aligned(len: usize) -> Vec<u8> {
    let buf = vec![0; len];
    assert!(len == 0 || buf.as_ptr().cast::<u64>().is_aligned());
    buf
}

#[test]
fn flags_that_change_and_flags_that_do_not() {
    let setup = Setup::new(|lower| lower.file("f", 0o644));
    let file = setup.open(&ann(), "f", O_RDWR | O_NONBLOCK).unwrap();
    // The kernel answers F_GETFL from its own memory, so the scheme is asked directly.
    let ask = |command: usize, argument: usize| {
        let sqe = syscall::schemev2::Sqe {
            opcode: syscall::schemev2::Opcode::Fcntl as u8,
            args: [file.id() as u64, command as u64, argument as u64, 0, 0, 0],
            ..Default::default()
        };
        // SAFETY: the request has no buffer.
        unsafe { file.raw(sqe) }
    };
    assert_eq!(ask(F_GETFL, 0), Ok(O_RDWR | O_NONBLOCK));
    assert_eq!(ask(F_SETFL, O_APPEND | O_FSYNC | O_WRONLY | O_CREAT | 0o777), Ok(0));
    assert_eq!(ask(F_GETFL, 0), Ok(O_RDWR | O_APPEND | O_FSYNC));
    assert_eq!(ask(F_SETFL, 0), Ok(0));
    assert_eq!(ask(F_GETFL, 0), Ok(O_RDWR));
    assert_eq!(ask(77, 0), refused(EINVAL));
    assert_eq!(file.read(&mut [0; 8]), Ok(1), "the access mode stays");
    assert_eq!(file.call(&mut [0; 8], &[77, 0, 0]), refused(EOPNOTSUPP));
}

#[test]
fn events_are_refused() {
    let setup = Setup::new(|lower| lower.file("file", 0o644));
    if FULL {
        root().mkfifo(setup.path("fifo"), 0o666).unwrap();
    }
    let special = FULL.then_some(("fifo", O_STAT));
    for (path, flags) in [("file", O_RDONLY), ("file", O_RDWR), ("", O_RDONLY)].into_iter().chain(special) {
        let open = setup.open(&root(), path, flags).unwrap();
        for events in [EventFlags::EVENT_READ, EventFlags::EVENT_WRITE, EventFlags::empty()] {
            assert_eq!(open.fevent(events).map(drop), refused(EPERM), "{path}");
        }
        assert_eq!(open.take_events(), EventFlags::empty());
    }
    assert_eq!(root().scheme_root(setup.name()).unwrap().fevent(EventFlags::EVENT_READ).map(drop), refused(EBADF));
}

#[test]
fn paths_of_handles() {
    let setup = Setup::new(|lower| {
        lower.dir("a", 0o755);
        lower.dir("a/b", 0o755);
        lower.file("a/b/f", 0o644);
        lower.dir("c", 0o755);
    });
    let f = setup.open(&ann(), "a/../a/./b//f", O_STAT).unwrap();
    let path = setup.path("a/b/f");
    let mut buf = vec![0; path.len()];
    assert_eq!(f.fpath(&mut buf), Ok(path.len()));
    assert_eq!(buf, path.as_bytes());
    assert_eq!(f.fpath(&mut buf[1..]), refused(ENAMETOOLONG));
    assert_eq!(f.fpath(&mut []), refused(ENAMETOOLONG));
    assert_eq!(ann().realpath(setup.path("a/b/../b/f")), Ok(path));
    let root_cap = ann().scheme_root(setup.name()).unwrap();
    assert_eq!(root_cap.fpath(&mut buf), refused(EBADF));

    // The first argument is the directory, as in relibc's redox_relpathat_v0.
    let relative = |dir: &str, path: &str| {
        let (dir, file) = (setup.open(&ann(), dir, O_STAT)?, setup.open(&ann(), path, O_STAT)?);
        let mut buf = [0; 16];
        dir.relpathat(&file, &mut buf).map(|len| String::from_utf8_lossy(&buf[..len]).into_owned())
    };
    assert_eq!(relative("", "a/b/f").as_deref(), Ok("a/b/f"));
    assert_eq!(relative("a", "a/b/f").as_deref(), Ok("b/f"));
    assert_eq!(relative("a/b", "a/b").as_deref(), Ok(""));
    assert_eq!(relative("c", "a/b/f"), refused(ENOENT));
    assert_eq!(relative("a/b", "a"), refused(ENOENT));
    let top = setup.open(&ann(), "", O_RDONLY).unwrap();
    assert_eq!(top.relpathat(&f, &mut [0; 4]), refused(ERANGE));
}
