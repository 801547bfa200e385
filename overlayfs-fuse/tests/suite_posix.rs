//! The behaviour that Linux programs expect of a filesystem beyond reads and writes. Each test runs
//! on a mount. To check the test itself, it also runs on an ordinary directory with the same
//! content.
//!
//! A test without a matching request of a Redox scheme runs through the engine's front end alone.
//! The end of this file lists these tests with the reasons.
//!
//! Needs root, /dev/fuse, and of Debian's packages acl and libcap2-bin; fails without them.

#[macro_use]
#[path = "suite/front_ends.rs"]
mod front_ends;
#[path = "suite/child.rs"]
mod child;
#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;
#[path = "suite/unprivileged.rs"]
mod unprivileged;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use child::{as_another_user, in_a_child};
use fixture::Fixture;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, SeekFrom, StatxFlags, XattrFlags,
};
use rustix::io::Errno;
use test_common::{mode, put};

const MIB: u64 = 1 << 20;

/// Runs a test on an ordinary directory, and on a mount with the same content in its lower layer.
/// `prepare` makes the content.
fn on_both(front_end: &str, prepare: impl Fn(&Path), test: impl Fn(&Path)) {
    let fixture = Fixture::new();
    let plain = fixture.setup.dir("plain");
    prepare(&plain);
    test(&plain);

    prepare(&fixture.path("lower"));
    let guard = fixture.guard();
    let mount = fixture.mount(&format!(",door={front_end}"));
    test(&fixture.point());
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

fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 5000];
    rustix::fs::lgetxattr(path, name, &mut buffer).map(|length| buffer[..length].to_vec())
}

fn xattrs(path: &Path) -> Vec<String> {
    let mut buffer = vec![0; 1000];
    let length = rustix::fs::llistxattr(path, &mut buffer).unwrap();
    let names = str::from_utf8(&buffer[..length]).unwrap().split_terminator('\0');
    let mut names: Vec<_> = names.map(str::to_owned).collect();
    names.sort();
    names
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn acl(path: &Path) -> String {
    said("getfacl", &["-cpn"], path)
}

fn node(path: &Path, kind: FileType, device: u64) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o666), device).unwrap();
    mode(path, 0o666);
}

fn a_file_without_a_name_can_get_one(front_end: &str) {
    on_both(front_end, nothing, |dir| {
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

        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL;
        let nameless = rustix::fs::open(dir, flags, Mode::from_raw_mode(0o640)).unwrap();
        let by_proc = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&nameless));
        let linked = rustix::fs::linkat(CWD, &by_proc, CWD, dir.join("other"), AtFlags::SYMLINK_FOLLOW);
        assert_eq!(linked, Err(Errno::NOENT), "with O_EXCL it never gets a name");
    });
}

fn an_unlinked_open_file_stays_usable(front_end: &str) {
    on_both(front_end, a_file, |dir| {
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

fn a_removed_directory_that_is_open_is_empty(front_end: &str) {
    let prepare = |dir: &Path| {
        put::file(dir, "dir/file", "");
    };
    on_both(front_end, prepare, |dir| {
        let open = rustix::fs::open(dir.join("dir"), OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
        fs::remove_dir_all(dir.join("dir")).unwrap();
        let entries: Vec<_> = rustix::fs::Dir::read_from(&open).unwrap().map(Result::unwrap).collect();
        assert!(entries.iter().all(|entry| [c".", c".."].contains(&entry.file_name())), "{entries:?}");
        let created = rustix::fs::openat(&open, "new", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU);
        assert_eq!(created.unwrap_err(), Errno::NOENT);
        assert_eq!(rustix::fs::fstat(&open).unwrap().st_nlink, 0);
    });
}

/// Makes an object at a path.
type Make = fn(&Path);

/// The kinds of objects.
const MAKE: [(&str, Make); 5] = [
    ("dir", |path| fs::create_dir(path).unwrap()),
    ("file", |path| fs::write(path, "").unwrap()),
    ("symlink", |path| symlink("target", path).unwrap()),
    ("fifo", |path| node(path, FileType::Fifo, 0)),
    ("device", |path| node(path, FileType::CharacterDevice, rustix::fs::makedev(1, 5))),
];

fn a_removed_object_that_is_held_keeps_its_attributes(front_end: &str) {
    let make = |dir: &Path, age: &str| {
        for (kind, make) in MAKE {
            let path = dir.join(format!("{age}-{kind}"));
            make(&path);
            set_xattr(&path, "trusted.before", b"1");
        }
    };
    on_both(
        front_end,
        |dir| make(dir, "old"),
        |dir| {
            make(dir, "new");
            for (age, (kind, _)) in ["old", "new"].into_iter().flat_map(|age| MAKE.map(|made| (age, made))) {
                let path = dir.join(format!("{age}-{kind}"));
                let held = rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).unwrap();
                if kind == "dir" {
                    fs::remove_dir(&path).unwrap()
                } else {
                    fs::remove_file(&path).unwrap()
                }
                let object = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held)));
                // With the link below /proc the calls reach the object itself, a symlink too.
                let value = || {
                    let mut buffer = [0; 10];
                    rustix::fs::getxattr(&object, "trusted.before", &mut buffer).map(|length| buffer[..length].to_vec())
                };
                let set = |name: &str, value: &[u8]| rustix::fs::setxattr(&object, name, value, XattrFlags::REPLACE);
                assert_eq!(value(), Ok(b"1".to_vec()), "{age} {kind}");
                assert_eq!(set("trusted.missing", b"1"), Err(Errno::NODATA), "{age} {kind}");
                set("trusted.before", b"2").unwrap();
                assert_eq!(value(), Ok(b"2".to_vec()), "{age} {kind}");
                rustix::fs::removexattr(&object, "trusted.before").unwrap();
                assert_eq!(value(), Err(Errno::NODATA), "{age} {kind}");
                let owner = (Some(rustix::fs::Uid::from_raw(5)), Some(rustix::fs::Gid::from_raw(6)));
                rustix::fs::chownat(&held, "", owner.0, owner.1, AtFlags::EMPTY_PATH).unwrap();
                let mut mode = 0o777;
                if kind != "symlink" {
                    mode = 0o640;
                    rustix::fs::chmod(&object, Mode::from_raw_mode(mode)).unwrap();
                }
                let stat = rustix::fs::fstat(&held).unwrap();
                let seen = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid, stat.st_nlink);
                assert_eq!(seen, (mode, 5, 6, 0), "{age} {kind}");
            }
        },
    );
}

/// A truncate(2) to the present size changes no times. The test looks after another mount, since
/// the kernel shows the times that it has.
fn truncating_to_the_present_size_changes_nothing(front_end: &str) {
    let fixture = Fixture::new();
    a_file(&fixture.path("lower"));
    let (point, more) = (fixture.point(), format!(",door={front_end}"));
    let guard = fixture.guard();
    let mount = fixture.mount(&more);
    put::file(&point, "new", "");
    let files = ["file", "new"].map(|name| point.join(name));
    for file in &files {
        test_common::times(file, (1, 0), (2, 0));
        let path = CString::new(file.as_os_str().as_bytes()).unwrap();
        let size = fs::metadata(file).unwrap().len() as i64;
        // SAFETY: the path is a C string.
        assert_eq!(unsafe { libc::truncate(path.as_ptr(), size) }, 0);
    }
    let times = || files.each_ref().map(|file| fs::metadata(file).unwrap().modified().unwrap());
    let before = times();
    mount.unmount();
    let mount = fixture.mount(&more);
    assert_eq!(times(), before);
    mount.unmount();
    guard.check();
}

fn holes_are_reported_punched_and_kept(front_end: &str) {
    let sparse = |dir: &Path| {
        let file = create(&dir.join("sparse"));
        file.write_all_at(&[1; 4096], MIB).unwrap();
        file.set_len(4 * MIB).unwrap();
    };
    on_both(front_end, sparse, |dir| {
        let seek = |file: &File, from| rustix::fs::seek(file, from);
        let path = dir.join("sparse");
        let file = open(&path);
        assert_eq!(seek(&file, SeekFrom::Data(0)), Ok(MIB));
        assert_eq!(seek(&file, SeekFrom::Hole(MIB)), Ok(MIB + 4096));
        assert_eq!(seek(&file, SeekFrom::Data(2 * MIB)), Err(Errno::NXIO));
        // Also for data that were just written.
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

/// The hole is the first change of the file, so the copy-up is made for it.
fn holes_are_punched_into_lower_files(front_end: &str) {
    let prepare = |dir: &Path| {
        put::file(dir, "full", vec![1; MIB as usize]);
    };
    on_both(front_end, prepare, |dir| {
        let (reader, file) = (File::open(dir.join("full")).unwrap(), open(&dir.join("full")));
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, flags, 8192, 8192).unwrap();
        let mut expected = vec![1; MIB as usize];
        expected[8192..16384].fill(0);
        assert!(fs::read(dir.join("full")).unwrap() == expected);
        let mut found = vec![0; MIB as usize];
        reader.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected, "through a descriptor from before");
        assert_eq!(rustix::fs::seek(&reader, SeekFrom::Hole(0)), Ok(8192));
        assert_eq!(rustix::fs::seek(&reader, SeekFrom::Data(8192)), Ok(16384));
    });
}

fn ranges_are_copied_between_files(front_end: &str) {
    on_both(front_end, a_file, |dir| {
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

fn extended_attributes(front_end: &str) {
    let prepare = |dir: &Path| {
        a_file(dir);
        put::file(dir, "dir/inside", "");
        put::file(dir, "written", "content");
        for name in ["file", "dir", "written"] {
            set_xattr(&dir.join(name), "user.below", b"1");
        }
    };
    on_both(front_end, prepare, |dir| {
        for name in ["file", "dir"] {
            let path = dir.join(name);
            assert_eq!(xattr(&path, "user.below").unwrap(), b"1");
            let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
            assert_eq!(set("user.above", b"2", XattrFlags::REPLACE), Err(Errno::NODATA));
            set("user.above", &[7; 2000], XattrFlags::CREATE).unwrap();
            assert_eq!(set("user.above", b"2", XattrFlags::CREATE), Err(Errno::EXIST));
            assert_eq!(xattr(&path, "user.above").unwrap(), [7; 2000]);
            set("user.empty", b"", XattrFlags::empty()).unwrap();
            assert_eq!(xattr(&path, "user.empty").unwrap(), b"");
            assert_eq!(xattrs(&path), ["user.above", "user.below", "user.empty"]);
            rustix::fs::removexattr(&path, "user.below").unwrap();
            assert_eq!(xattr(&path, "user.below"), Err(Errno::NODATA));
            assert_eq!(rustix::fs::getxattr(&path, "user.above", &mut [0; 10][..]), Err(Errno::RANGE));
        }
        symlink("file", dir.join("link")).unwrap();
        let on_link = rustix::fs::lsetxattr(dir.join("link"), "user.x", b"1", XattrFlags::empty());
        assert_eq!(on_link, Err(Errno::PERM));

        // Every copy-up copies them.
        OpenOptions::new().append(true).open(dir.join("written")).unwrap().write_all(b"!").unwrap();
        fs::rename(dir.join("dir"), dir.join("moved")).unwrap();
        fs::write(dir.join("moved/new"), "").unwrap();
        assert_eq!(xattr(&dir.join("written"), "user.below").unwrap(), b"1");
        assert_eq!(xattrs(&dir.join("moved")), ["user.above", "user.empty"]);
    });
}

fn extended_attributes_that_only_root_sees(front_end: &str) {
    let prepare = |dir: &Path| {
        a_file(dir);
        symlink("file", dir.join("link")).unwrap();
        for name in ["file", "link"] {
            set_xattr(&dir.join(name), "trusted.below", b"1");
        }
    };
    on_both(front_end, prepare, |dir| {
        for name in ["file", "link"] {
            let path = dir.join(name);
            assert_eq!(xattr(&path, "trusted.below").unwrap(), b"1");
            set_xattr(&path, "trusted.above", b"2");
            assert_eq!(xattrs(&path), ["trusted.above", "trusted.below"]);
        }
        let path = dir.join("file");
        assert!(as_another_user(|| xattrs(&path).is_empty() && xattr(&path, "trusted.below") == Err(Errno::NODATA)));
    });
}

/// The marks of an overlay are not accessible. Attributes that programs store by the same names are
/// kept apart from them.
#[test]
fn the_overlays_own_attributes_are_hidden_and_protected() {
    let fixture = Fixture::new();
    a_file(&fixture.path("lower"));
    set_xattr(&fixture.path("lower/file"), "user.overlay.origin", b"x");
    let mount = fixture.mount("");
    let path = fixture.point().join("file");
    assert_eq!(xattr(&path, "user.overlay.origin"), Err(Errno::NODATA));
    assert_eq!(xattrs(&path), [""; 0]);
    let mut names = vec!["trusted.overlay.opaque", "user.fuseoverlayfs.opaque", "user.overlay.redirect"];
    // Only root of the system may set those.
    names.retain(|name| std::env::var_os(unprivileged::VARIABLE).is_none() || !name.starts_with("trusted."));
    for name in names.iter().copied() {
        assert_eq!(rustix::fs::removexattr(&path, name), Err(Errno::NODATA), "{name}");
        set_xattr(&path, name, b"y");
        assert_eq!(xattr(&fixture.path("upper/file"), name), Err(Errno::NODATA), "{name} is no mark");
    }
    assert_eq!(xattrs(&path), names);
    let copy = fixture.path("mount/copy");
    said("cp", &["-a", path.to_str().unwrap()], &copy);
    assert_eq!(xattrs(&copy), names);
    mount.unmount();
}

fn access_control_lists(front_end: &str) {
    let prepare = |dir: &Path| {
        a_file(dir);
        said("setfacl", &["-m", "u:0:rw,m::rw"], &dir.join("file"));
        put::file(dir, "plain", "content");
        put::dir(dir, "handing");
        said("setfacl", &["-d", "-m", "u:0:rwx,g::r-x"], &dir.join("handing"));
    };
    on_both(front_end, prepare, |dir| {
        let file = dir.join("file");
        assert!(acl(&file).contains("user:0:rw-"), "{}", acl(&file));
        OpenOptions::new().append(true).open(&file).unwrap().write_all(b"!").unwrap();
        assert!(acl(&file).contains("user:0:rw-"), "it comes along with the copy: {}", acl(&file));
        assert_eq!(fs::metadata(&file).unwrap().mode(), 0o100664, "the group's bits are the mask's");
        mode(&file, 0o640);
        assert!(acl(&file).contains("mask::r--") && acl(&file).contains("user:0:rw-"), "{}", acl(&file));
        said("setfacl", &["-b"], &file);
        assert_eq!(acl(&file).lines().filter(|line| !line.is_empty()).count(), 3);
        said("setfacl", &["-m", "u:0:x"], &dir.join("plain"));
        assert!(acl(&dir.join("plain")).contains("user:0:--x"));

        let script = "umask 077; touch file; mkdir dir; mkfifo fifo";
        let done = run::finish(run::command("sh").args(["-euc", script]).current_dir(dir.join("handing")));
        assert!(done.status.success());
        let handed = |name: &str| acl(&dir.join("handing").join(name));
        assert!(handed("file").contains("user:0:rwx") && handed("file").contains("mask::rw-"), "{}", handed("file"));
        assert!(handed("dir").contains("default:user:0:rwx"), "{}", handed("dir"));
        let modes =
            ["file", "dir", "fifo"].map(|name| fs::metadata(dir.join("handing").join(name)).unwrap().mode() & 0o7777);
        assert_eq!(modes, [0o664, 0o775, 0o664], "the umask has no say");
    });
}

fn an_access_control_list_admits_and_refuses_users(front_end: &str) {
    let prepare = |dir: &Path| {
        for name in ["open", "closed"] {
            mode(&put::file(dir, name, "content"), 0o600);
        }
        said("setfacl", &["-m", "u:4242:rw,m::rw"], &dir.join("open"));
        said("setfacl", &["-m", "u:4242:-,m::rw,o::r"], &dir.join("closed"));
    };
    on_both(front_end, prepare, |dir| {
        let [opened, closed] = ["open", "closed"].map(|name| dir.join(name));
        assert!(as_another_user(
            || OpenOptions::new().write(true).open(&opened).is_ok() && File::open(&closed).is_err()
        ));
        said("setfacl", &["-m", "u:4242:r"], &closed);
        said("setfacl", &["-x", "u:4242"], &opened);
        assert!(as_another_user(|| File::open(&closed).is_ok() && File::open(&opened).is_err()));
    });
}

fn a_change_clears_capabilities(front_end: &str) {
    let prepare = |dir: &Path| {
        for name in ["written", "truncated", "given", "moved"] {
            said("setcap", &["cap_net_raw+ep"], &put::file(dir, name, "content"));
        }
    };
    on_both(front_end, prepare, |dir| {
        let path = |name: &str| dir.join(name);
        let has = |name: &str| said("getcap", &[], &path(name)).contains("cap_net_raw");
        assert!(has("written") && has("truncated") && has("given") && has("moved"));
        OpenOptions::new().append(true).open(path("written")).unwrap().write_all(b"x").unwrap();
        open(&path("truncated")).set_len(3).unwrap();
        std::os::unix::fs::chown(path("given"), Some(0), None).unwrap();
        assert!(!has("written") && !has("truncated") && !has("given"));
        fs::rename(path("moved"), path("to")).unwrap();
        mode(&path("to"), 0o755);
        assert!(has("to"), "a new name and mode keep it");
        said("setcap", &["cap_chown+ep"], &path("to"));
        assert!(said("getcap", &[], &path("to")).contains("cap_chown"));
        said("setcap", &["-r"], &path("to"));
        assert_eq!(said("getcap", &[], &path("to")), "");
    });
}

fn a_change_by_another_user_clears_set_id_bits(front_end: &str) {
    on_both(front_end, a_file, |dir| {
        let path = dir.join("file");
        let mode_now = || fs::metadata(&path).unwrap().mode() & 0o7777;
        mode(&path, 0o6777);
        assert!(as_another_user(|| open(&path).write_all_at(b"y", 0).is_ok()));
        assert_eq!(mode_now(), 0o777);
        mode(&path, 0o6777);
        assert!(as_another_user(|| open(&path).set_len(3).is_ok()));
        assert_eq!(mode_now(), 0o777);
        mode(&path, 0o2767);
        assert!(as_another_user(|| open(&path).set_len(2).is_ok()));
        assert_eq!(mode_now(), 0o767, "without the group's right to execute, by a stranger");
        std::os::unix::fs::chown(&path, None, Some(4242)).unwrap();
        mode(&path, 0o2767);
        assert!(as_another_user(|| open(&path).set_len(1).is_ok()));
        assert!(as_another_user(|| open(&path).write_all_at(b"y", 0).is_ok()));
        assert_eq!(mode_now(), 0o2767, "the same, by one of the group");
        mode(&path, 0o6777);
        open(&path).write_all_at(b"z", 0).unwrap();
        assert_eq!(mode_now(), 0o6777, "root may keep them");
    });
}

fn a_new_owner_clears_set_id_bits(front_end: &str) {
    on_both(front_end, a_file, |dir| {
        mode(&dir.join("file"), 0o6777);
        std::os::unix::fs::chown(dir.join("file"), Some(0), None).unwrap();
        assert_eq!(fs::metadata(dir.join("file")).unwrap().mode() & 0o7777, 0o777);
    });
}

fn renames_with_flags(front_end: &str) {
    let prepare = |dir: &Path| {
        a_file(dir);
        put::file(dir, "dir/inside", "");
    };
    on_both(front_end, prepare, |dir| {
        fs::write(dir.join("other"), "other").unwrap();
        let rename =
            |from: &str, to: &str, flags| rustix::fs::renameat_with(CWD, dir.join(from), CWD, dir.join(to), flags);
        assert_eq!(rename("file", "other", RenameFlags::NOREPLACE), Err(Errno::EXIST));
        rename("file", "other", RenameFlags::EXCHANGE).unwrap();
        assert_eq!(fs::read(dir.join("file")).unwrap(), b"other");
        assert_eq!(fs::read(dir.join("other")).unwrap(), b"lower content");
        rename("dir", "other", RenameFlags::EXCHANGE).unwrap();
        assert!(dir.join("other/inside").exists() && dir.join("dir").is_file());
        assert_eq!(rename("missing", "file", RenameFlags::EXCHANGE), Err(Errno::NOENT));
        assert_eq!(rename("file", "missing", RenameFlags::EXCHANGE), Err(Errno::NOENT));
        rename("file", "third", RenameFlags::NOREPLACE).unwrap();
        assert!(!dir.join("file").exists());
    });
}

/// As an overlay above this one makes it. The kernel lets every user make this device.
fn a_rename_can_leave_a_whiteout(front_end: &str) {
    on_both(front_end, a_file, |dir| {
        let rename = |from: &str, to: &str| {
            rustix::fs::renameat_with(CWD, dir.join(from), CWD, dir.join(to), RenameFlags::WHITEOUT).unwrap();
            let left = fs::symlink_metadata(dir.join(from)).unwrap();
            assert!(left.file_type().is_char_device() && left.rdev() == 0);
        };
        rename("file", "moved");
        assert_eq!(fs::read(dir.join("moved")).unwrap(), b"lower content");
        fs::write(dir.join("new"), "new").unwrap();
        rename("new", "moved");
        assert_eq!(fs::read(dir.join("moved")).unwrap(), b"new");
    });
}

/// Also if the file is copied up after the lock.
fn locks_keep_others_out(front_end: &str) {
    on_both(front_end, a_file, |dir| {
        let path = dir.join("file");
        let (one, other) = (open(&path), open(&path));
        rustix::fs::flock(&one, FlockOperation::LockExclusive).unwrap();
        one.write_all_at(b"L", 0).unwrap();
        assert_eq!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK));
        assert!(in_a_child(|| {
            let file = open(&path);
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
        }));
        rustix::fs::flock(&one, FlockOperation::Unlock).unwrap();
        rustix::fs::flock(&other, FlockOperation::NonBlockingLockShared).unwrap();
    });
}

fn locks_of_ranges_keep_others_out(front_end: &str) {
    on_both(front_end, a_file, |dir| {
        let path = dir.join("file");
        let lock = |file: &File, command, kind, start, len| {
            let range = libc::flock {
                l_type: kind as i16,
                l_whence: libc::SEEK_SET as i16,
                l_start: start,
                l_len: len,
                l_pid: 0,
            };
            // SAFETY: an open descriptor, and a description of a lock, which is only read.
            unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(file), command, &raw const range) == 0 }
        };
        let holder = open(&path);
        // The locks of a process, and those of an open file.
        for command in [libc::F_SETLK, libc::F_OFD_SETLK] {
            assert!(lock(&holder, command, libc::F_WRLCK, 0, 5) && lock(&holder, command, libc::F_RDLCK, 5, 5));
            holder.write_all_at(b"L", 0).unwrap();
            assert!(in_a_child(|| {
                let file = open(&path);
                !lock(&file, command, libc::F_RDLCK, 4, 1)
                    && !lock(&file, command, libc::F_WRLCK, 9, 1)
                    && lock(&file, command, libc::F_RDLCK, 9, 1)
                    && lock(&file, command, libc::F_WRLCK, 10, 0)
            }));
            assert!(lock(&holder, command, libc::F_UNLCK, 0, 0));
            assert!(in_a_child(|| lock(&open(&path), command, libc::F_WRLCK, 0, 0)));
        }
        // A waiting thread gets the lock when its holder releases it.
        assert!(lock(&holder, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 0));
        let waiting = thread::spawn({
            let path = path.clone();
            move || lock(&open(&path), libc::F_OFD_SETLKW, libc::F_WRLCK, 0, 0)
        });
        thread::sleep(std::time::Duration::from_millis(100));
        assert!(!waiting.is_finished());
        drop(holder);
        assert!(waiting.join().unwrap());
    });
}

/// Processes append to a file of a lower layer at the same time, and no data are lost.
fn concurrent_appends_lose_nothing(front_end: &str) {
    on_both(front_end, a_file, |dir| {
        let path = dir.join("file");
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let path = path.clone();
                thread::spawn(move || {
                    assert!(in_a_child(|| {
                        let Ok(mut file) = OpenOptions::new().append(true).open(&path) else { return false };
                        (0..200).all(|_| file.write_all(&[b'a' + writer; 16]).is_ok())
                    }));
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        let content = fs::read(&path).unwrap();
        let (before, appended) = content.split_at(b"lower content".len());
        assert_eq!((before, appended.len()), (&b"lower content"[..], 4 * 200 * 16));
        assert!(appended.chunks(16).all(|chunk| chunk.iter().all(|byte| *byte == chunk[0])));
    });
}

/// Past the page cache, together with reads and writes through it.
fn direct_reads_and_writes(front_end: &str) {
    let prepare = |dir: &Path| {
        put::file(dir, "file", [1; 16384]);
    };
    on_both(front_end, prepare, |dir| {
        let script = "dd if=/dev/zero of=file bs=4096 seek=1 count=1 conv=notrunc oflag=direct status=none
            printf x | dd of=file bs=1 seek=8192 conv=notrunc status=none
            dd if=file iflag=direct bs=4096 of=copy status=none; cmp file copy";
        let done = run::finish(run::command("sh").args(["-euc", script]).current_dir(dir));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let expected = [&[1; 4096][..], &[0; 4096], b"x", &[1; 8191]].concat();
        assert!(fs::read(dir.join("file")).unwrap() == expected);
    });
}

fn a_birth_time_is_reported(front_end: &str) {
    on_both(front_end, a_file, |dir| {
        let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64 - 60;
        create(&dir.join("new"));
        for name in ["file", "new"] {
            let told = rustix::fs::statx(CWD, dir.join(name), AtFlags::empty(), StatxFlags::BTIME).unwrap();
            assert_ne!(told.stx_mask & StatxFlags::BTIME.bits(), 0, "{name}");
            assert!(told.stx_btime.tv_sec > before);
        }
    });
}

fn pipes_and_sockets_work(front_end: &str) {
    let prepare = |dir: &Path| {
        node(&dir.join("lower pipe"), FileType::Fifo, 0);
    };
    on_both(front_end, prepare, |dir| {
        node(&dir.join("pipe"), FileType::Fifo, 0);
        for name in ["pipe", "lower pipe"] {
            let path = dir.join(name);
            let writer = thread::spawn({
                let path = path.clone();
                move || fs::write(path, "through").unwrap()
            });
            assert_eq!(fs::read_to_string(&path).unwrap(), "through");
            writer.join().unwrap();
            // The copy-up happens while a thread reads.
            let mut reader = open(&path);
            mode(&path, 0o600);
            open(&path).write_all(b"again").unwrap();
            let mut bytes = [0; 5];
            reader.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"again");
        }

        let listener = UnixListener::bind(dir.join("socket")).unwrap();
        fs::rename(dir.join("socket"), dir.join("moved")).unwrap();
        UnixStream::connect(dir.join("moved")).unwrap().write_all(b"hello").unwrap();
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    });
}

fn devices_work(front_end: &str) {
    let zero = libc::makedev(1, 5);
    let prepare = |dir: &Path| node(&dir.join("lower zero"), FileType::CharacterDevice, zero);
    on_both(front_end, prepare, |dir| {
        node(&dir.join("zero"), FileType::CharacterDevice, zero);
        for name in ["zero", "lower zero"] {
            mode(&dir.join(name), 0o644);
            let mut bytes = [9; 4];
            File::open(dir.join(name)).unwrap().read_exact(&mut bytes).unwrap();
            assert_eq!((bytes, fs::metadata(dir.join(name)).unwrap().rdev()), ([0; 4], zero));
        }
        node(&dir.join("block"), FileType::BlockDevice, libc::makedev(7, 200));
        let metadata = fs::metadata(dir.join("block")).unwrap();
        assert!(metadata.file_type().is_block_device() && metadata.rdev() == libc::makedev(7, 200));
    });
}

/// On an ordinary filesystem this is trivial. In the overlay the file is copied up in between.
fn a_shared_mapping_from_before_sees_later_writes(front_end: &str) {
    on_both(front_end, a_file, |dir| {
        let reader = File::open(dir.join("file")).unwrap();
        // SAFETY: a new mapping of a file of that length. No code truncates it while the mapping is
        // in use.
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
            // SAFETY: the mapping has that length. Its bytes are read one by one, since other code
            // writes them.
            (0..13).map(|index| unsafe { map.cast::<u8>().add(index).read_volatile() }).collect::<Vec<_>>()
        };
        assert_eq!(seen(), b"lower content");
        open(&dir.join("file")).write_all_at(b"UPPER", 0).unwrap();
        assert_eq!(seen(), b"UPPER content");
        // SAFETY: the mapping of this test, which is no longer in use.
        assert_eq!(unsafe { libc::munmap(map, 13) }, 0);
    });
}

fn the_longest_names_can_be_used_and_removed(front_end: &str) {
    let long = |letter: &str| letter.repeat(255);
    let prepare = |dir: &Path| {
        put::file(dir, &long("a"), "");
        put::file(dir, &format!("{}/file", long("d")), "");
    };
    on_both(front_end, prepare, |dir| {
        fs::rename(dir.join(long("a")), dir.join(long("b"))).unwrap();
        fs::remove_file(dir.join(long("b"))).unwrap();
        fs::remove_dir_all(dir.join(long("d"))).unwrap();
        fs::write(dir.join(long("c")), "").unwrap();
        assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
        fs::remove_file(dir.join(long("c"))).unwrap();
        assert_eq!(fs::write(dir.join("x".repeat(256)), "").unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
    });
}

fn names_are_bytes(front_end: &str) {
    let name = |letter: u8| std::ffi::OsString::from_vec(vec![letter; 255]);
    let prepare = |dir: &Path| {
        fs::write(dir.join(name(0xff)), "").unwrap();
    };
    on_both(front_end, prepare, |dir| {
        fs::rename(dir.join(name(0xff)), dir.join(name(0xfe))).unwrap();
        fs::write(dir.join(name(b'\n')), "").unwrap();
        let mut found: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        found.sort();
        assert_eq!(found, [name(b'\n'), name(0xfe)]);
        for name in found {
            fs::remove_file(dir.join(name)).unwrap();
        }
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    });
}

fn flags_are_set_and_obeyed(front_end: &str) {
    let prepare = |dir: &Path| {
        for name in ["dir/immutable", "dir/append", "plain"] {
            put::file(dir, name, "lower content");
        }
    };
    on_both(front_end, prepare, |dir| {
        let has = |path: &Path, flag: char| said("lsattr", &["-d"], path).split(' ').next().unwrap().contains(flag);
        let path = |name: &str| dir.join(name);
        let appended = |path: &Path| OpenOptions::new().append(true).open(path)?.write_all(b"more");
        let overwritten = |path: &Path| OpenOptions::new().write(true).open(path)?.write_all(b"more");
        let denied = |result: std::io::Result<()>| assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EPERM));
        fs::write(path("new"), "new").unwrap();
        for name in ["dir/immutable", "new"] {
            assert!(!has(&path(name), 'i'), "{name}");
            said("chattr", &["+i"], &path(name));
            assert!(has(&path(name), 'i'), "{name}");
            denied(appended(&path(name)));
            denied(fs::remove_file(path(name)));
            denied(fs::rename(path(name), path("elsewhere")));
            denied(fs::hard_link(path(name), path("elsewhere")));
            denied(fs::set_permissions(path(name), fs::Permissions::from_mode(0o600)));
            said("chattr", &["-i"], &path(name));
            appended(&path(name)).unwrap();
        }
        said("chattr", &["+a"], &path("dir/append"));
        denied(overwritten(&path("dir/append")));
        denied(fs::remove_file(path("dir/append")));
        said("chattr", &["-a"], &path("dir/append"));
        overwritten(&path("dir/append")).unwrap();
        assert_eq!(fs::read(path("dir/append")).unwrap(), b"morer content");

        said("chattr", &["+i"], &path("dir"));
        denied(fs::write(path("dir/another"), ""));
        denied(fs::remove_file(path("dir/append")));
        said("chattr", &["-i"], &path("dir"));
        fs::write(path("dir/another"), "").unwrap();

        said("chattr", &["+dA"], &path("plain"));
        assert!(has(&path("plain"), 'd') && has(&path("plain"), 'A'));
        said("chattr", &["-d"], &path("plain"));
        assert!(!has(&path("plain"), 'd') && has(&path("plain"), 'A'));
        assert_eq!(fs::read(path("plain")).unwrap(), b"lower content");
    });
}

/// A path longer than any call takes, walked step by step.
fn a_very_deep_tree(front_end: &str) {
    on_both(front_end, nothing, |dir| {
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

through_both_front_ends! {
    an_unlinked_open_file_stays_usable,
    a_removed_directory_that_is_open_is_empty,
    truncating_to_the_present_size_changes_nothing,
    ranges_are_copied_between_files,
    a_change_by_another_user_clears_set_id_bits,
    renames_with_flags,
    locks_keep_others_out,
    locks_of_ranges_keep_others_out,
    concurrent_appends_lose_nothing,
    direct_reads_and_writes,
    pipes_and_sockets_work,
    devices_work,
    a_shared_mapping_from_before_sees_later_writes,
    the_longest_names_can_be_used_and_removed,
    a_very_deep_tree,
}

/// Makes a test of each of these functions for the engine's front end alone. The text beside it is
/// the reason.
macro_rules! through_the_engine_alone {
    ($($name:ident: $reason:literal),* $(,)?) => {
        mod engine_alone {
            $(#[doc = $reason] #[test] fn $name() { super::$name("engine"); })*
        }
    };
}

through_the_engine_alone! {
    a_file_without_a_name_can_get_one: "on Redox a file begins with its name: openat creates it under a path",
    holes_are_reported_punched_and_kept: "a scheme has no request for the place of data, or to punch a hole",
    holes_are_punched_into_lower_files: "no request of a scheme punches a hole",
    extended_attributes: "Redox has none",
    extended_attributes_that_only_root_sees: "Redox has no extended attributes",
    a_removed_object_that_is_held_keeps_its_attributes: "Redox has no extended attributes",
    access_control_lists: "Redox has neither them nor the extended attributes that they are kept in",
    an_access_control_list_admits_and_refuses_users: "Redox has no access control lists",
    a_change_clears_capabilities: "Redox has neither them nor the extended attributes that they are kept in",
    a_new_owner_clears_set_id_bits: "POSIX leaves it open if root changes the owner, and redoxfs keeps the bits",
    flags_are_set_and_obeyed: "Redox has none",
    a_rename_can_leave_a_whiteout: "frename has no flag for it, and Redox has no such device",
    a_birth_time_is_reported: "the stat of Redox has no place for it",
    names_are_bytes: "the paths in the requests of a scheme are UTF-8",
}

#[test]
fn as_an_unprivileged_user() {
    unprivileged::again(
        &["engine::", "scheme::", "engine_alone::", "the_overlays_own"],
        &[
            ("engine::devices_work", "only root of the system makes devices"),
            ("scheme::devices_work", "only root of the system makes devices"),
            ("engine::a_change_by_another_user_clears_set_id_bits", "there is no other user in the namespace"),
            ("scheme::a_change_by_another_user_clears_set_id_bits", "there is no other user in the namespace"),
            (
                "engine_alone::an_access_control_list_admits_and_refuses_users",
                "there is no other user in the namespace",
            ),
            ("engine_alone::extended_attributes_that_only_root_sees", "only root of the system sees them"),
            (
                "engine_alone::a_removed_object_that_is_held_keeps_its_attributes",
                "only root of the system makes devices",
            ),
            ("engine_alone::flags_are_set_and_obeyed", "only root of the system sets them"),
        ],
        &[],
    );
}
