//! Attacks on a mount: by its users, by users that can write to a part of its layers, and by a
//! compromised daemon.
//!
//! `OVERLAYFS_LOOKUPS=5000000 cargo test -p overlayfs-fuse --test suite_security` makes more
//! attacks and takes longer.
//!
//! Needs root, /dev/fuse, and a kernel with landlock (Linux 5.19).

#[path = "suite/child.rs"]
mod child;
#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, thread};

use child::{as_another_user, in_a_child};
use fixture::Fixture;
use overlayfs::options::Options;
use overlayfs_fuse::options::MountOptions;
use overlayfs_fuse::sandbox::Sandbox;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags, XattrFlags,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, OpenTreeFlags};
use rustix::process::{Resource, Rlimit};
use test_common::{exists, mode, names, owner, put};

/// Returns a number from the status of a process.
fn status(status: &str, field: &str, radix: u32) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_else(|| panic!("no {field}"));
    let text = line.split_whitespace().next().unwrap();
    u64::from_str_radix(text, radix).unwrap()
}

/// Returns the memory of the daemon in KiB.
fn memory(daemon: u32) -> u64 {
    status(&fs::read_to_string(format!("/proc/{daemon}/status")).unwrap(), "VmRSS:", 10)
}

fn descriptors(daemon: u32) -> usize {
    fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().count()
}

fn threads(daemon: u32) -> Vec<PathBuf> {
    fs::read_dir(format!("/proc/{daemon}/task")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

// Attacks by a compromised daemon.

#[test]
fn every_thread_of_the_daemon_has_dropped_its_rights() {
    const KILL: u64 = 5;
    const NET_ADMIN: u64 = 12;
    const SYS_MODULE: u64 = 16;
    const SYS_RAWIO: u64 = 17;
    const SYS_CHROOT: u64 = 18;
    const SYS_PTRACE: u64 = 19;
    let fixture = Fixture::new();
    let mount = fixture.mount("");
    fs::write(fixture.path("mount/file"), "served").unwrap();
    let threads = threads(mount.daemon.id());
    assert!(threads.len() > 2, "{threads:?}");
    for thread in threads {
        // One that had nothing to do may have ended.
        let Ok(told) = fs::read_to_string(thread.join("status")) else { continue };
        assert_eq!(status(&told, "NoNewPrivs:", 10), 1, "{told}");
        assert_eq!(status(&told, "Seccomp:", 10), 2, "{told}");
        for sets in ["CapEff:", "CapPrm:"] {
            for capability in [KILL, NET_ADMIN, SYS_MODULE, SYS_RAWIO, SYS_CHROOT, SYS_PTRACE] {
                assert_eq!(status(&told, sets, 16) >> capability & 1, 0, "{sets} {capability}: {told}");
            }
        }
    }
    mount.unmount();
}

/// The usual work of a daemon in its sandbox.
fn daily_work(fixture: &Fixture) -> Vec<(&'static str, bool)> {
    let path = |path: &str| fixture.path(path);
    let open = |name: &str, flags| rustix::fs::openat2(CWD, path(name), flags, Mode::empty(), ResolveFlags::empty());
    let mut byte = [0];
    vec![
        (
            "read a lower file",
            open("lower/file", OFlags::RDONLY).is_ok_and(|file| rustix::io::read(file, &mut byte) == Ok(1)),
        ),
        ("list a lower directory", open("lower", OFlags::RDONLY | OFlags::DIRECTORY).is_ok()),
        (
            "write an upper file",
            open("upper/a/file", OFlags::RDWR).is_ok_and(|file| rustix::io::write(file, b"x") == Ok(1)),
        ),
        ("make a directory", rustix::fs::mkdirat(CWD, path("upper/new"), Mode::RWXU).is_ok()),
        (
            "rename between directories",
            rustix::fs::renameat_with(CWD, path("upper/a/file"), CWD, path("upper/b/moved"), RenameFlags::NOREPLACE)
                .is_ok(),
        ),
        (
            "link between directories",
            rustix::fs::linkat(CWD, path("upper/b/moved"), CWD, path("upper/a/link"), AtFlags::empty()).is_ok(),
        ),
        ("start a thread", thread::Builder::new().spawn(|| ()).is_ok_and(|thread| thread.join().is_ok())),
        ("change a mode", rustix::fs::chmodat(CWD, path("upper/b/moved"), Mode::RWXU, AtFlags::empty()).is_ok()),
    ]
}

/// The calls that a daemon in its sandbox must not make.
fn mischief(fixture: &Fixture) -> Vec<(&'static str, bool)> {
    let path = |path: &str| fixture.path(path);
    let open =
        |path: PathBuf, flags| rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::empty()).is_ok();
    let map = |protection| {
        // SAFETY: the call takes no memory, and the mapping is not used.
        let memory = unsafe {
            libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        (memory != libc::MAP_FAILED).then_some(memory)
    };
    // SAFETY: the mapping is new, and is not used.
    let protect = |memory| unsafe { libc::mprotect(memory, 4096, libc::PROT_READ | libc::PROT_EXEC) == 0 };
    // SAFETY: the child only ends.
    let fork = || match unsafe { libc::fork() } {
        // SAFETY: takes a number and does not return.
        0 => unsafe { libc::_exit(0) },
        pid => pid > 0,
    };
    vec![
        ("read a file outside", open(path("outside/secret"), OFlags::RDONLY)),
        ("read a file of the system", open("/etc/passwd".into(), OFlags::RDONLY)),
        ("follow a symlink outside", open(path("upper/symlink"), OFlags::RDONLY)),
        ("write a lower file", open(path("lower/file"), OFlags::RDWR)),
        ("make a directory in a lower layer", rustix::fs::mkdirat(CWD, path("lower/new"), Mode::RWXU).is_ok()),
        ("remove a lower file", rustix::fs::unlinkat(CWD, path("lower/victim"), AtFlags::empty()).is_ok()),
        ("make a directory outside", rustix::fs::mkdirat(CWD, path("outside/new"), Mode::RWXU).is_ok()),
        (
            "rename out of the layer",
            rustix::fs::renameat_with(
                CWD,
                path("upper/treasure"),
                CWD,
                path("outside/treasure"),
                RenameFlags::NOREPLACE,
            )
            .is_ok(),
        ),
        (
            "link into the layer",
            rustix::fs::linkat(CWD, path("outside/secret"), CWD, path("upper/secret"), AtFlags::empty()).is_ok(),
        ),
        ("open in another way", File::open(path("lower/file")).is_ok()),
        ("open a socket", UnixDatagram::unbound().is_ok()),
        ("clone a mount", rustix::mount::open_tree(CWD, path("upper"), OpenTreeFlags::OPEN_TREE_CLONE).is_ok()),
        ("map executable memory", map(libc::PROT_EXEC).is_some()),
        ("make memory executable", map(libc::PROT_READ).is_some_and(protect)),
        // SAFETY: takes two numbers. The call sends no signal.
        ("send a signal", unsafe { libc::kill(libc::getppid(), 0) } == 0),
        ("leave a namespace", rustix::process::chroot("/").is_ok()),
        ("start a process", fork()),
        ("run a program", Command::new("true").stdin(Stdio::null()).status().is_ok_and(|status| status.success())),
    ]
}

#[test]
fn the_sandbox_has_only_the_layers() {
    for sandboxed in [false, true] {
        let fixture = Fixture::new();
        for (place, file) in
            [("lower", "file"), ("lower", "victim"), ("upper", "a/file"), ("upper", "treasure"), ("outside", "secret")]
        {
            put::file(&fixture.path(place), file, "content");
        }
        put::dir(&fixture.path("upper"), "b");
        put::symlink(&fixture.path("upper"), "symlink", "../outside/secret");
        let layers =
            Options { lowers: vec![fixture.path("lower")], upper: Some(fixture.path("upper")), ..Options::default() };
        let options = MountOptions { layers, ..MountOptions::default() };
        assert!(in_a_child(|| {
            if sandboxed {
                Sandbox::new(&options).unwrap().enter();
            }
            let all = daily_work(&fixture)
                .into_iter()
                .map(|done| (done, true))
                .chain(mischief(&fixture).into_iter().map(|done| (done, !sandboxed)));
            let unexpected: Vec<_> = all.filter(|((_, done), expected)| done != expected).collect();
            if !unexpected.is_empty() {
                eprintln!("sandboxed: {sandboxed}, unexpected: {unexpected:?}");
            }
            unexpected.is_empty()
        }));
    }
}

// Attacks by users with write access to a part of the layers.

/// The daemon knows these names as files and directories. At its open they are other objects.
#[test]
fn a_replacement_of_a_known_name_is_not_followed() {
    let fixture = Fixture::new();
    let (point, outside) = (fixture.point(), fixture.setup.dir("outside"));
    put::file(&outside, "secret", "secret");
    for place in ["lower", "upper"] {
        for name in ["dir/file", "file", "to-fifo"] {
            put::file(&fixture.path(place), &format!("in-{place}/{name}"), "mine");
        }
    }
    let mount = fixture.mount("");
    for place in ["lower", "upper"] {
        let (layer, shown) = (fixture.path(place).join(format!("in-{place}")), point.join(format!("in-{place}")));
        assert_eq!(names(&shown), ["dir", "file", "to-fifo"]);
        assert!(
            fs::metadata(shown.join("file")).unwrap().is_file()
                && fs::metadata(shown.join("to-fifo")).unwrap().is_file()
        );
        fs::rename(layer.join("dir"), layer.join("dir-before")).unwrap();
        symlink(&outside, layer.join("dir")).unwrap();
        fs::remove_file(layer.join("file")).unwrap();
        symlink(outside.join("secret"), layer.join("file")).unwrap();
        fs::remove_file(layer.join("to-fifo")).unwrap();
        put::node(&layer, "to-fifo", FileType::Fifo, 0o666, 0);

        for name in ["dir/secret", "file", "to-fifo"] {
            assert!(fs::read(shown.join(name)).is_err(), "{place}: {name}");
            assert!(
                OpenOptions::new()
                    .append(true)
                    .open(shown.join(name))
                    .and_then(|mut file| file.write_all(b"x").and_then(|()| file.sync_all()))
                    .is_err(),
                "{place}: {name}"
            );
        }
        assert!(fs::write(shown.join("dir/new"), "x").is_err(), "{place}");
    }
    assert_eq!(names(&outside), ["secret"]);
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
    mount.unmount();
}

#[test]
fn a_mount_that_comes_into_a_layer_is_not_seen() {
    let fixture = Fixture::new();
    let point = fixture.point();
    for place in ["lower", "upper"] {
        put::file(&fixture.path(place), &format!("in-{place}/file"), "layer");
    }
    let mount = fixture.mount("");
    let covers = ["lower", "upper"].map(|place| fixture.path(place).join(format!("in-{place}")));
    for cover in &covers {
        rustix::mount::mount("tmpfs", cover, "tmpfs", MountFlags::empty(), c"").unwrap();
        fs::write(cover.join("file"), "planted").unwrap();
    }
    let found = ["in-lower", "in-upper"].map(|dir| fs::read_to_string(point.join(dir).join("file")));
    let made = fs::write(point.join("in-upper/new"), "x");
    let planted = names(&covers[1]);
    for cover in &covers {
        mount::unmount(cover);
    }
    for found in found {
        assert_eq!(found.unwrap(), "layer");
    }
    made.unwrap();
    assert_eq!(planted, ["file"]);
    assert_eq!(names(&fixture.path("upper/in-upper")), ["file", "new"]);
    mount.unmount();
}

/// A file of a lower layer that has a name outside is copied before a change, and so are its
/// attributes.
#[test]
fn the_other_name_of_a_lower_file_is_not_written_through() {
    let fixture = Fixture::new();
    let outside = put::file(&fixture.path("outside"), "file", "content");
    fs::hard_link(&outside, fixture.path("lower/file")).unwrap();
    let before = fs::metadata(&outside).unwrap();
    let guard = fixture.guard();
    let mount = fixture.mount("");
    let file = fixture.path("mount/file");
    OpenOptions::new().append(true).open(&file).unwrap().write_all(b"changed").unwrap();
    mode(&file, 0o777);
    owner(&file, 4242, 4242);
    rustix::fs::setxattr(&file, "user.a", b"b", XattrFlags::empty()).unwrap();
    mount.unmount();
    drop(guard);
    let after = fs::metadata(&outside).unwrap();
    assert_eq!(fs::read(&outside).unwrap(), b"content");
    assert_eq!((after.mode(), after.uid(), after.ctime_nsec()), (before.mode(), before.uid(), before.ctime_nsec()));
}

// Attacks by the users of the mount.

/// With and without the right of the group to execute: without it the bit marks mandatory locks.
const SET_ID_MODES: [u32; 5] = [0o4777, 0o2777, 0o6777, 0o2767, 0o6767];

/// A change of a file by a user who does not own it clears its set-id bits and its capabilities, as
/// on any filesystem.
#[test]
fn every_change_by_another_user_clears_set_id_bits_and_capabilities() {
    type Change = fn(&Path) -> bool;
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    let changes: [(&str, Change); 7] = [
        ("write", |path| {
            OpenOptions::new().write(true).open(path).is_ok_and(|file| file.write_all_at(b"x", 1).is_ok())
        }),
        ("append", |path| {
            OpenOptions::new().append(true).open(path).is_ok_and(|mut file| file.write_all(b"x").is_ok())
        }),
        ("open with O_TRUNC", |path| OpenOptions::new().write(true).truncate(true).open(path).is_ok()),
        ("truncate", |path| OpenOptions::new().write(true).open(path).is_ok_and(|file| file.set_len(3).is_ok())),
        ("allocate", |path| {
            File::options()
                .write(true)
                .open(path)
                .is_ok_and(|file| rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 5000).is_ok())
        }),
        ("punch a hole", |path| {
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            File::options().write(true).open(path).is_ok_and(|file| rustix::fs::fallocate(&file, how, 0, 4).is_ok())
        }),
        ("copy a range", |path| {
            let from = File::open(path.with_file_name("source")).unwrap();
            File::options()
                .write(true)
                .open(path)
                .is_ok_and(|to| rustix::fs::copy_file_range(&from, None, &to, None, 4) == Ok(4))
        }),
    ];
    // cap_net_raw, permitted and effective, in the format of linux/capability.h.
    let capability = [&[1, 0, 0, 2, 0, 0x20, 0, 0], &[0; 12][..]].concat();
    let prepare = |dir: &Path| {
        put::file(dir, "source", "source of data");
        for (index, _) in changes.iter().enumerate() {
            for bits in SET_ID_MODES {
                let path = put::file(dir, &format!("{index}-{bits:o}"), "content");
                rustix::fs::setxattr(&path, "security.capability", &capability, XattrFlags::empty()).unwrap();
                mode(&path, bits);
            }
        }
    };
    let change = |dir: &Path| {
        let all = |index: usize| SET_ID_MODES.map(|bits| dir.join(format!("{index}-{bits:o}")));
        assert!(as_another_user(|| changes
            .iter()
            .enumerate()
            .all(|(index, (_, change))| all(index).iter().all(|path| change(path)))));
        let mut found = Vec::new();
        for (index, (name, _)) in changes.iter().enumerate() {
            for path in all(index) {
                open(&path).unwrap().sync_all().unwrap();
                let kept = rustix::fs::getxattr(&path, "security.capability", &mut [0; 100]);
                let bits = fs::metadata(&path).unwrap().mode() & 0o7777;
                found.push((*name, path.file_name().unwrap().to_owned(), format!("{bits:o}"), kept));
            }
        }
        found
    };

    let fixture = Fixture::new();
    let plain = fixture.setup.dir("plain");
    prepare(&plain);
    prepare(&fixture.path("lower"));
    let mount = fixture.mount("");
    let point = fixture.point();
    fs::create_dir(point.join("upper-dir")).unwrap();
    prepare(&point.join("upper-dir"));
    let expected = change(&plain);
    assert!(expected.iter().all(|(.., kept)| *kept == Err(Errno::NODATA)), "{expected:?}");
    assert!(expected.iter().any(|(.., bits, _)| bits == "777"), "{expected:?}");
    assert_eq!(change(&point), expected, "files of the lower layer");
    assert_eq!(change(&point.join("upper-dir")), expected, "files of the upper layer");
    mount.unmount();
}

/// A program that another user has changed runs without its set-id rights, also without a lookup
/// since the change.
#[test]
fn a_program_changed_by_another_user_has_no_set_id_rights() {
    type Change = fn(&Path) -> bool;
    let changes: [(&str, Change); 4] = [
        ("write", |path| OpenOptions::new().append(true).open(path).is_ok_and(|mut file| file.write_all(b"x").is_ok())),
        ("truncate", |path| {
            let longer = fs::metadata(path).unwrap().len() + 1;
            File::options().write(true).open(path).is_ok_and(|file| file.set_len(longer).is_ok())
        }),
        ("allocate", |path| {
            let how = FallocateFlags::KEEP_SIZE;
            File::options().write(true).open(path).is_ok_and(|file| rustix::fs::fallocate(&file, how, 0, 5000).is_ok())
        }),
        ("copy", |path| {
            let from = File::open(path.with_file_name("id")).unwrap();
            let to = File::options().write(true).open(path).unwrap();
            rustix::fs::copy_file_range(&from, None, &to, None, 4) == Ok(4)
        }),
    ];
    let fixture = Fixture::new();
    for name in ["id", "write", "truncate", "allocate", "copy"] {
        let path = fixture.path("lower").join(name);
        fs::copy("/usr/bin/id", &path).unwrap();
        mode(&path, 0o4777);
    }
    let mount = fixture.mount("");
    for (name, change) in changes {
        let path = fixture.point().join(name);
        let runs_as = || String::from_utf8(Command::new(&path).arg("-u").output().unwrap().stdout).unwrap();
        assert!(as_another_user(|| runs_as() == "0\n"), "{name}: the bit has an effect");
        assert!(as_another_user(|| change(&path) && runs_as() == "4242\n"), "{name}");
    }
    mount.unmount();
}

/// Reserved names do not exist in the mount, whatever call uses them, and whether the layers have
/// them or not.
#[test]
fn reserved_names_do_not_exist() {
    let reserved = [
        ".wh.gone",
        ".wh.never",
        ".wh.",
        ".wh..wh..opq",
        ".wh..wh.work",
        ".wh..wh.redirect",
        ".wh..wh.part.file",
        ".wh..wh.x",
    ];
    let fixture = Fixture::new();
    for name in ["gone", "file", "dir/gone", "dir/file"] {
        put::file(&fixture.path("lower"), name, "content");
    }
    let mount = fixture.mount("");
    let point = fixture.point();
    for dir in ["", "dir"] {
        let (dir, layer) = (point.join(dir), fixture.path("upper").join(dir));
        fs::remove_file(dir.join("gone")).unwrap();
        symlink(".wh.gone", dir.join("to-reserved")).unwrap();
        assert!(exists(&layer.join(".wh.gone")), "the layer has the names that this test uses");
        let before = names(&layer);
        let there = rustix::fs::open(&dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let there = there.as_fd();
        for name in reserved {
            let (mode, none) = (Mode::from_raw_mode(0o600), AtFlags::empty());
            let open = |flags| rustix::fs::openat(there, name, flags, mode).map(drop);
            let asked = [
                open(OFlags::RDONLY),
                open(OFlags::PATH),
                open(OFlags::RDONLY | OFlags::DIRECTORY),
                rustix::fs::statat(there, name, AtFlags::SYMLINK_NOFOLLOW).map(drop),
                rustix::fs::accessat(there, name, rustix::fs::Access::EXISTS, none),
                rustix::fs::readlinkat(there, name, []).map(drop),
                rustix::fs::unlinkat(there, name, none),
                rustix::fs::unlinkat(there, name, AtFlags::REMOVEDIR),
                rustix::fs::renameat(there, name, there, "visible"),
                rustix::fs::linkat(there, name, there, "visible", none),
                rustix::fs::chmodat(there, name, mode, none),
                rustix::fs::getxattr(dir.join(name), "user.a", &mut [0; 1]).map(drop),
                rustix::fs::statat(there, format!("{name}/index"), none).map(drop),
                rustix::fs::renameat_with(there, "file", there, name, RenameFlags::EXCHANGE),
            ];
            assert_eq!(asked, [Err(Errno::NOENT); 14], "{name}");
            let made = [
                open(OFlags::CREATE | OFlags::RDWR),
                open(OFlags::CREATE | OFlags::EXCL | OFlags::RDWR),
                rustix::fs::mkdirat(there, name, mode),
                rustix::fs::symlinkat("target", there, name),
                rustix::fs::mknodat(there, name, FileType::Fifo, mode, 0),
                rustix::fs::linkat(there, "file", there, name, none),
                rustix::fs::renameat(there, "file", there, name),
                rustix::fs::renameat_with(there, "file", there, name, RenameFlags::NOREPLACE),
            ];
            assert_eq!(made, [Err(Errno::INVAL); 8], "{name}");
        }
        assert!(File::open(dir.join("to-reserved")).is_err());
        assert!(!names(&dir).iter().any(|name| name.starts_with(".wh.")), "{:?}", names(&dir));
        assert_eq!(names(&layer), before);
    }
    mount.unmount();
}

/// With fewer descriptors than users want, the daemon refuses some requests and goes on. After
/// closes it serves all again.
#[test]
fn without_descriptors_the_daemon_goes_on_and_recovers() {
    const LIMIT: u64 = 64;
    let fixture = Fixture::new();
    for index in 0..100 {
        put::file(&fixture.path("lower"), &format!("dir-{index}/file"), "lower");
    }
    let mount = fixture.mount("");
    let point = fixture.point();
    let daemon = mount.daemon.id();
    let few = Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) };
    rustix::process::prlimit(
        Some(rustix::process::Pid::from_raw(daemon.cast_signed()).unwrap()),
        Resource::Nofile,
        few,
    )
    .unwrap();

    let all_work = || {
        for index in 0..100 {
            let dir = point.join(format!("dir-{index}"));
            assert_eq!(names(&dir).len(), 1);
            assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "lower");
        }
    };
    all_work();
    // An open file without a name needs a descriptor of the daemon. There is no way around it.
    let (mut held, mut refused) = (Vec::new(), 0);
    for index in 0..200 {
        let path = point.join(format!("held-{index}"));
        let opened = File::options().read(true).write(true).create_new(true).open(&path).and_then(|mut file| {
            file.write_all(b"mine")?;
            file.sync_all()?;
            fs::remove_file(&path)?;
            file.read_exact_at(&mut [0; 4], 0)?;
            Ok(file)
        });
        match opened {
            Ok(file) => held.push(file),
            Err(error) => {
                assert!(matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && held.len() > 10, "{refused} refused, {} held", held.len());
    assert!(fs::metadata(&point).is_ok());
    drop(held);
    mount::eventually("descriptors are free again", || descriptors(daemon) < 40);
    fs::write(point.join("new"), "well").unwrap();
    all_work();
    mount.unmount();
}

#[test]
fn missing_names_cost_no_memory() {
    let lookups = env::var("OVERLAYFS_LOOKUPS").map_or(100_000, |number| number.parse().unwrap());
    let fixture = Fixture::new();
    put::file(&fixture.path("lower"), "dir/file", "content");
    let mount = fixture.mount("");
    let dir = fixture.path("mount/dir");
    let look = |from: u64, to: u64| {
        for index in from..to {
            let path = CString::new(format!("{}/absent-{index}", dir.display())).unwrap();
            assert_eq!(rustix::fs::access(&path, rustix::fs::Access::EXISTS), Err(Errno::NOENT));
        }
    };
    look(0, 5000);
    let before = memory(mount.daemon.id());
    look(5000, lookups);
    let after = memory(mount.daemon.id());
    assert!(after < before + 2048, "{lookups} names take {} KiB", after - before);
    mount.unmount();
}

#[test]
fn attributes_locks_and_crowds_cost_no_memory_and_no_threads() {
    let fixture = Fixture::new();
    let file = put::file(&fixture.path("lower"), "file", "content");
    owner(&file, 4242, 4242);
    let mount = fixture.mount(",max_threads=4");
    let (file, daemon) = (fixture.path("mount/file"), mount.daemon.id());
    let work = |rounds: usize| {
        for round in 0..rounds {
            // The largest value that Linux allows, and larger ones.
            for size in [2000, 65_536, 65_537] {
                let set = rustix::fs::setxattr(&file, "user.large", &vec![7; size], XattrFlags::empty());
                assert!(matches!(set, Ok(()) | Err(Errno::NOSPC | Errno::TOOBIG)), "{set:?}");
            }
            let mut value = vec![0; 65_536];
            let _ = rustix::fs::getxattr(&file, "user.large", &mut value[..]);
            let locked = OpenOptions::new().read(true).write(true).open(&file).unwrap();
            rustix::fs::flock(&locked, FlockOperation::LockShared).unwrap();
            let range = libc::flock {
                l_type: libc::F_WRLCK as i16,
                l_whence: 0,
                l_start: 2 * round as i64,
                l_len: 1,
                l_pid: 0,
            };
            // SAFETY: the structure is complete and outlives the call.
            assert_eq!(
                unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&locked), libc::F_OFD_SETLK, &raw const range) },
                0
            );
        }
    };
    work(20);
    let before = memory(daemon);
    work(500);
    thread::scope(|scope| {
        for index in 0..64 {
            let path = fixture.point().join(index.to_string());
            scope.spawn(move || {
                for _ in 0..20 {
                    fs::write(&path, "crowd").unwrap();
                    assert_eq!(fs::read(&path).unwrap(), b"crowd");
                    fs::remove_file(&path).unwrap();
                }
            });
        }
    });
    // The first one, the settler and the watcher take no requests.
    let count = threads(daemon).len();
    assert!(count <= 4 + 3, "{count} threads");
    let after = memory(daemon);
    assert!(after < before + 16 * 1024, "{} KiB more", after - before);
    mount.unmount();
}
