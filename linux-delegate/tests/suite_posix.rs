//! What Linux programs expect of a filesystem beyond reading and writing, each on a mount and, to check the test itself, on an ordinary
//! directory of the same content.
//!
//! Needs root, /dev/fuse, and of Debian's packages acl and libcap2-bin; fails without them.

#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use mount::Mount;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, SeekFrom, StatxFlags, XattrFlags,
};
use rustix::io::Errno;
use test_common::{LowerGuard, Stage, mode, put};

const MIB: u64 = 1 << 20;

/// Runs a test on an ordinary directory and on a mount whose lower layer has the same content, which `prepare` makes.
fn on_both(prepare: impl Fn(&Path), test: impl Fn(&Path)) {
    let stage = Stage::new();
    mode(stage.root(), 0o755);
    let [plain, lower, upper, point] = ["plain", "lower", "upper", "mount"].map(|name| stage.dir(name));
    prepare(&plain);
    test(&plain);

    prepare(&lower);
    let guard = LowerGuard::new([&lower]);
    let mount = Mount::new(&point, &format!("lowerdir={},upperdir={}", lower.display(), upper.display()));
    test(&point);
    mount.unmount();
    guard.check();
}

fn nothing(_: &Path) {}

fn a_file(dir: &Path) {
    put::file(dir, "file", "lower content");
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn create(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap()
}

fn said(program: &str, arguments: &[&str], path: &Path) -> String {
    let output = run::finish(run::command(program).args(arguments).arg(path));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `work` in a child with the ids of another user; answers whether it found what it expected.
fn as_another_user(work: impl Fn() -> bool) -> bool {
    // SAFETY: the child makes only system calls of its own and ends without returning.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: takes numbers only; the calls change this process alone.
        let changed =
            unsafe { libc::setgroups(0, std::ptr::null()) == 0 && libc::setgid(4242) == 0 && libc::setuid(4242) == 0 };
        let done = changed && work();
        // SAFETY: takes a number and does not return.
        unsafe { libc::_exit(i32::from(!done)) };
    }
    let mut status = 0;
    // SAFETY: the status is written to a variable of that type.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    status == 0
}

#[test]
fn a_file_without_a_name_can_get_one() {
    on_both(nothing, |dir| {
        let make = || rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o640)).unwrap();
        let file = File::from(make());
        file.write_all_at(b"content", 0).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
        let by_proc = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        rustix::fs::linkat(CWD, &by_proc, CWD, dir.join("named"), AtFlags::SYMLINK_FOLLOW).unwrap();
        assert_eq!((file.metadata().unwrap().nlink(), file.metadata().unwrap().mode()), (1, 0o100640));
        file.write_all_at(b"!", 7).unwrap();
        assert_eq!(fs::read(dir.join("named")).unwrap(), b"content!");
        drop(make());
    });
}

#[test]
fn an_unlinked_file_that_is_open_goes_on() {
    on_both(a_file, |dir| {
        for (name, file) in [("file", open(&dir.join("file"))), ("new", create(&dir.join("new")))] {
            fs::remove_file(dir.join(name)).unwrap();
            file.set_len(0).unwrap();
            file.write_all_at(b"abcd", 0).unwrap();
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!((&bytes, file.metadata().unwrap().nlink()), (b"abcd", 0));
            file.set_len(2).unwrap();
            file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!((file.metadata().unwrap().len(), file.metadata().unwrap().mode()), (2, 0o100600));
            assert_eq!(fs::metadata(dir.join(name)).unwrap_err().kind(), ErrorKind::NotFound);
        }
    });
}

#[test]
fn holes_are_told_of_punched_and_kept() {
    let sparse = |dir: &Path| {
        let file = create(&dir.join("sparse"));
        file.write_all_at(&[1; 4096], MIB).unwrap();
        file.set_len(4 * MIB).unwrap();
    };
    on_both(sparse, |dir| {
        let seek = |file: &File, from| rustix::fs::seek(file, from);
        let path = dir.join("sparse");
        let file = open(&path);
        assert_eq!(seek(&file, SeekFrom::Data(0)), Ok(MIB));
        assert_eq!(seek(&file, SeekFrom::Hole(MIB)), Ok(MIB + 4096));
        assert_eq!(seek(&file, SeekFrom::Data(2 * MIB)), Err(Errno::NXIO));
        // Also what was only just written.
        file.write_all_at(&[2; 4096], 0).unwrap();
        assert_eq!(seek(&file, SeekFrom::Data(0)), Ok(0));
        assert_eq!(seek(&file, SeekFrom::Hole(0)), Ok(4096));
        file.sync_all().unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 < MIB, "a copy keeps holes");

        let allocate = |flags, offset, length| rustix::fs::fallocate(&file, flags, offset, length).unwrap();
        allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, MIB, 4096);
        let mut bytes = [9; 4096];
        file.read_exact_at(&mut bytes, MIB).unwrap();
        assert_eq!((bytes, file.metadata().unwrap().len()), ([0; 4096], 4 * MIB));
        assert_eq!(seek(&file, SeekFrom::Data(4096)), Err(Errno::NXIO));
        allocate(FallocateFlags::empty(), 4 * MIB, 8192);
        assert_eq!(file.metadata().unwrap().len(), 4 * MIB + 8192);
        allocate(FallocateFlags::ZERO_RANGE, 0, 100);
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((&bytes[..100], bytes[100]), (&[0; 100][..], 2));
    });
}

#[test]
fn ranges_are_copied_between_files() {
    on_both(a_file, |dir| {
        let (from, to) = (open(&dir.join("file")), create(&dir.join("to")));
        let (mut source, mut target) = (6, 3);
        let copied = rustix::fs::copy_file_range(&from, Some(&mut source), &to, Some(&mut target), 1000).unwrap();
        assert_eq!((copied, source, target), (7, 13, 10));
        assert_eq!(fs::read(dir.join("to")).unwrap(), b"\0\0\0content");
        let (mut source, mut target) = (0, 13);
        rustix::fs::copy_file_range(&from, Some(&mut source), &from, Some(&mut target), 5).unwrap();
        assert_eq!(fs::read(dir.join("file")).unwrap(), b"lower contentlower");
    });
}

#[test]
fn extended_attributes() {
    let prepare = |dir: &Path| {
        a_file(dir);
        put::dir(dir, "dir");
        symlink("file", dir.join("link")).unwrap();
        for name in ["file", "dir"] {
            rustix::fs::setxattr(dir.join(name), "user.below", b"1", XattrFlags::empty()).unwrap();
        }
        rustix::fs::lsetxattr(dir.join("link"), "trusted.below", b"1", XattrFlags::empty()).unwrap();
    };
    let names = |path: &Path| {
        let mut buffer = vec![0; 1000];
        let length = rustix::fs::llistxattr(path, &mut buffer).unwrap();
        let mut names: Vec<_> = buffer[..length].split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
        names.sort();
        names
    };
    let value = |path: &Path, name: &str| {
        let mut buffer = vec![0; 5000];
        rustix::fs::lgetxattr(path, name, &mut buffer).map(|length| buffer[..length].to_vec())
    };
    on_both(prepare, |dir| {
        for name in ["file", "dir"] {
            let path = dir.join(name);
            assert_eq!(value(&path, "user.below").unwrap(), b"1");
            let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
            assert_eq!(set("user.above", b"2", XattrFlags::REPLACE), Err(Errno::NODATA));
            set("user.above", &[7; 2000], XattrFlags::CREATE).unwrap();
            assert_eq!(set("user.above", b"2", XattrFlags::CREATE), Err(Errno::EXIST));
            assert_eq!(value(&path, "user.above").unwrap(), [7; 2000]);
            assert_eq!(names(&path), [&b""[..], b"user.above", b"user.below"]);
            rustix::fs::removexattr(&path, "user.below").unwrap();
            assert_eq!(value(&path, "user.below"), Err(Errno::NODATA));
        }
        let link = dir.join("link");
        assert_eq!(value(&link, "trusted.below").unwrap(), b"1");
        rustix::fs::lsetxattr(&link, "trusted.above", b"2", XattrFlags::empty()).unwrap();
        assert_eq!(names(&link), [&b""[..], b"trusted.above", b"trusted.below"]);
    });
}

/// Those by which overlays mark their layers are nobody's.
#[test]
fn the_overlays_own_attributes_are_hidden_and_protected() {
    let stage = Stage::new();
    let [lower, upper, point] = ["lower", "upper", "mount"].map(|name| stage.dir(name));
    a_file(&lower);
    rustix::fs::setxattr(lower.join("file"), "user.overlay.origin", b"x", XattrFlags::empty()).unwrap();
    let mount = Mount::new(&point, &format!("lowerdir={},upperdir={}", lower.display(), upper.display()));
    let path = point.join("file");
    let mut buffer = [0; 100];
    assert_eq!(rustix::fs::getxattr(&path, "user.overlay.origin", &mut buffer), Err(Errno::NODATA));
    assert_eq!(rustix::fs::listxattr(&path, &mut buffer), Ok(0));
    for name in ["trusted.overlay.opaque", "user.overlay.redirect", "user.fuseoverlayfs.opaque"] {
        assert_eq!(rustix::fs::setxattr(&path, name, b"y", XattrFlags::empty()), Err(Errno::PERM), "{name}");
    }
    mount.unmount();
}

#[test]
fn access_control_lists() {
    on_both(a_file, |dir| {
        let acl = |name: &str| said("getfacl", &["-cpn"], &dir.join(name));
        said("setfacl", &["-m", "u:4242:rw,m::rw"], &dir.join("file"));
        assert!(acl("file").contains("user:4242:rw-"), "{}", acl("file"));
        assert_eq!(fs::metadata(dir.join("file")).unwrap().mode(), 0o100664, "the group's bits are the mask's");
        let path = dir.join("file");
        assert!(as_another_user(|| OpenOptions::new().write(true).open(&path).is_ok()));

        put::dir(dir, "handing");
        said("setfacl", &["-d", "-m", "u:4242:rwx,g::r-x"], &dir.join("handing"));
        let script = "umask 077; touch file; mkdir dir; mkfifo fifo";
        let done = run::finish(run::command("sh").args(["-euc", script]).current_dir(dir.join("handing")));
        assert!(done.status.success());
        assert!(acl("handing/file").contains("user:4242:rwx") && acl("handing/file").contains("mask::rw-"));
        assert!(acl("handing/dir").contains("default:user:4242:rwx"));
        let modes =
            ["file", "dir", "fifo"].map(|name| fs::metadata(dir.join("handing").join(name)).unwrap().mode() & 0o7777);
        assert_eq!(modes, [0o664, 0o775, 0o664], "the umask has no say");
    });
}

#[test]
fn capabilities_and_set_id_bits_go_with_a_change_by_another() {
    on_both(a_file, |dir| {
        let path = dir.join("file");
        said("setcap", &["cap_net_raw+ep"], &path);
        assert!(said("getcap", &[], &path).contains("cap_net_raw"));
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"x").unwrap();
        assert!(!said("getcap", &[], &path).contains("cap_net_raw"));

        let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
        set(0o6777);
        assert!(as_another_user(|| open(&path).write_all_at(b"y", 0).is_ok()));
        assert_eq!(mode(), 0o777);
        set(0o6777);
        assert!(as_another_user(|| open(&path).set_len(3).is_ok()));
        assert_eq!(mode(), 0o777);
        set(0o6777);
        std::os::unix::fs::chown(&path, Some(5), Some(6)).unwrap();
        assert_eq!(mode(), 0o777);
        set(0o6777);
        open(&path).write_all_at(b"z", 0).unwrap();
        assert_eq!(mode(), 0o6777, "root may keep them");
    });
}

#[test]
fn renames_with_flags() {
    on_both(a_file, |dir| {
        fs::write(dir.join("other"), "other").unwrap();
        let rename =
            |from: &str, to: &str, flags| rustix::fs::renameat_with(CWD, dir.join(from), CWD, dir.join(to), flags);
        assert_eq!(rename("file", "other", RenameFlags::NOREPLACE), Err(Errno::EXIST));
        rename("file", "other", RenameFlags::EXCHANGE).unwrap();
        assert_eq!(fs::read(dir.join("file")).unwrap(), b"other");
        rename("other", "third", RenameFlags::WHITEOUT).unwrap();
        assert_eq!(fs::read(dir.join("third")).unwrap(), b"lower content");
        let left = fs::symlink_metadata(dir.join("other")).unwrap();
        assert!(left.file_type().is_char_device() && left.rdev() == 0);
        rename("file", "fourth", RenameFlags::NOREPLACE).unwrap();
        assert!(!dir.join("file").exists());
    });
}

#[test]
fn locks_keep_others_out() {
    on_both(a_file, |dir| {
        let (one, other) = (open(&dir.join("file")), open(&dir.join("file")));
        rustix::fs::flock(&one, FlockOperation::LockExclusive).unwrap();
        assert_eq!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK));
        rustix::fs::flock(&one, FlockOperation::Unlock).unwrap();
        rustix::fs::flock(&other, FlockOperation::NonBlockingLockShared).unwrap();

        rustix::fs::fcntl_lock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
        let path = dir.join("file");
        assert!(as_another_user(|| {
            let file = File::open(&path).unwrap();
            rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::AGAIN)
        }));
    });
}

#[test]
fn a_birth_time_is_told() {
    on_both(a_file, |dir| {
        let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64 - 60;
        create(&dir.join("new"));
        for name in ["file", "new"] {
            let told = rustix::fs::statx(CWD, dir.join(name), AtFlags::empty(), StatxFlags::BTIME).unwrap();
            assert_ne!(told.stx_mask & StatxFlags::BTIME.bits(), 0, "{name}");
            assert!(told.stx_btime.tv_sec > before);
        }
    });
}

#[test]
fn pipes_sockets_and_devices_work() {
    on_both(nothing, |dir| {
        let node = |name: &str, kind, device| {
            rustix::fs::mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(0o666), device).unwrap();
        };
        node("pipe", FileType::Fifo, 0);
        let path = dir.join("pipe");
        let writer = thread::spawn(move || fs::write(path, "through").unwrap());
        assert_eq!(fs::read_to_string(dir.join("pipe")).unwrap(), "through");
        writer.join().unwrap();

        let listener = UnixListener::bind(dir.join("socket")).unwrap();
        UnixStream::connect(dir.join("socket")).unwrap().write_all(b"hello").unwrap();
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");

        node("zero", FileType::CharacterDevice, libc::makedev(1, 5));
        let mut bytes = [9; 4];
        File::open(dir.join("zero")).unwrap().read_exact(&mut bytes).unwrap();
        assert_eq!((bytes, fs::metadata(dir.join("zero")).unwrap().rdev()), ([0; 4], libc::makedev(1, 5)));
    });
}

/// On an ordinary filesystem this is nothing; here the file is copied up in between.
#[test]
fn a_shared_mapping_from_before_sees_later_writes() {
    on_both(a_file, |dir| {
        let reader = File::open(dir.join("file")).unwrap();
        // SAFETY: a new mapping of a file of that length, which nobody makes shorter while it is used.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                13,
                libc::PROT_READ,
                libc::MAP_SHARED,
                std::os::fd::AsRawFd::as_raw_fd(&reader),
                0,
            )
        };
        assert_ne!(map, libc::MAP_FAILED);
        let seen = || {
            // SAFETY: the mapping is as long as that; its bytes are read one by one, since others write them.
            (0..13).map(|index| unsafe { map.cast::<u8>().add(index).read_volatile() }).collect::<Vec<_>>()
        };
        assert_eq!(seen(), b"lower content");
        open(&dir.join("file")).write_all_at(b"UPPER", 0).unwrap();
        assert_eq!(seen(), b"UPPER content");
        // SAFETY: the mapping made above; it is not used any more.
        assert_eq!(unsafe { libc::munmap(map, 13) }, 0);
    });
}

#[test]
fn the_longest_names_can_be_used_and_removed() {
    let long = |letter: &str| letter.repeat(255);
    let prepare = |dir: &Path| {
        put::file(dir, &long("a"), "");
        put::file(dir, &format!("{}/file", long("d")), "");
    };
    on_both(prepare, |dir| {
        fs::rename(dir.join(long("a")), dir.join(long("b"))).unwrap();
        fs::remove_file(dir.join(long("b"))).unwrap();
        fs::remove_dir_all(dir.join(long("d"))).unwrap();
        fs::write(dir.join(long("c")), "").unwrap();
        assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
        fs::remove_file(dir.join(long("c"))).unwrap();
        assert_eq!(fs::write(dir.join("x".repeat(256)), "").unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
    });
}

/// A path longer than any call takes, walked step by step.
#[test]
fn a_very_deep_tree() {
    on_both(nothing, |dir| {
        let name = "deep".repeat(20);
        let mut at = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
        for _ in 0..100 {
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = rustix::fs::openat(at.as_fd(), &name, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
        }
        let file = rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::RDWR, Mode::RWXU).unwrap();
        rustix::io::write(&file, b"deep").unwrap();
        let path = CString::new(dir.as_os_str().as_bytes()).unwrap();
        assert!(
            run::finish(run::command("rm").arg("-rf").arg(PathBuf::from(path.to_str().unwrap()).join(&name)))
                .status
                .success()
        );
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    });
}
