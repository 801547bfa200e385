//! Layers in trouble below a mount: full, suddenly read-only, unmounted, on a disk that does not
//! answer, on a filesystem that has gone. Callers get an error, the daemon goes on, and all calls
//! succeed again once the layer is back.
//!
//! Needs root, /dev/fuse, loop devices and mkfs.ext4.

#[path = "suite/disk.rs"]
mod disk;
#[path = "suite/mount.rs"]
mod mount;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use disk::{Disk, run};
use mount::{Mount, eventually};
use rustix::mount::{MountFlags, UnmountFlags};
use test_common::{Detail, Setup, Snapshot, exists, names, put};

const MIB: u64 = 1 << 20;

/// Changes the size of a filesystem in memory.
fn resize(disk: &Disk, size: u64) {
    let size = CString::new(format!("size={size}")).unwrap();
    rustix::mount::mount_remount(&disk.point, MountFlags::empty(), size.as_c_str()).unwrap();
}

fn mounted(setup: &Setup, lower: &Path, upper: &Path) -> Mount {
    Mount::new(&setup.dir("mount"), &format!("lowerdir={},upperdir={}", lower.display(), upper.display()))
}

#[track_caller]
fn fails<T>(result: io::Result<T>, errnos: &[i32]) {
    match result {
        Ok(_) => panic!("this was to fail"),
        Err(error) => assert!(error.raw_os_error().is_some_and(|errno| errnos.contains(&errno)), "{error}"),
    }
}

/// Writes a file and syncs it.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the kernel drop its caches of a disk.
fn drop_caches(disk: &Path) {
    run(Command::new("sync").arg("-f").arg(disk));
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

#[test]
fn a_full_upper_layer() {
    let setup = Setup::new();
    let disk = Disk::memory(setup.dir("disk"), 2 * MIB);
    let (lower, upper) = (setup.dir("lower"), disk.dir("upper"));
    put::file(&lower, "large", vec![7; 3 << 20]);
    put::file(&lower, "dir/small", "lower");
    let before = Snapshot::take(&lower, Detail::Contents);
    let mount = mounted(&setup, &lower, &upper);
    let point = setup.path("mount");
    for round in 0..3 {
        let full = write(&point.join("filler"), &vec![1; 4 << 20]);
        fails(full, &[libc::ENOSPC]);
        // Calls that need space fail. Calls that need none go on.
        fails(write(&point.join("large"), &vec![2; 3 << 20]), &[libc::ENOSPC]);
        fails(
            OpenOptions::new()
                .append(true)
                .open(point.join("dir/small"))
                .and_then(|mut file| file.write_all(&[3; 8192]).and_then(|()| file.sync_all())),
            &[libc::ENOSPC],
        );
        let made: io::Result<Vec<()>> = (0..2000)
            .map(|index| {
                fs::write(point.join(format!("more-{index}")), [4; 4096])
                    .and_then(|()| File::open(point.join(format!("more-{index}")))?.sync_all())
            })
            .collect();
        fails(made, &[libc::ENOSPC]);
        for name in names(&point).iter().filter(|name| name.starts_with("more-") || *name == "filler") {
            fs::remove_file(point.join(name)).unwrap();
        }
        // The other files are unchanged, except those that were truncated first.
        fs::remove_file(point.join("large")).unwrap();
        fs::write(point.join("large"), "small now").unwrap();
        write(&point.join("well"), format!("round {round}").as_bytes()).unwrap();
        assert_eq!(fs::read_to_string(point.join("well")).unwrap(), format!("round {round}"));
        assert!(fs::read(point.join("dir/small")).unwrap().starts_with(b"lower"));
    }
    mount.unmount();
    before.assert_same(&Snapshot::take(&lower, Detail::Contents), "the lower layer");
    assert!(!fs::read_dir(&upper).unwrap().any(|entry| entry.unwrap().file_name().to_str().unwrap().contains("part")));
}

/// A copy-up without enough space leaves the file unchanged, and nothing in the work directory.
#[test]
fn a_copy_without_room() {
    let setup = Setup::new();
    let disk = Disk::memory(setup.dir("disk"), 2 * MIB);
    let (lower, upper) = (setup.dir("lower"), disk.dir("upper"));
    put::file(&lower, "large", vec![7; 3 << 20]);
    // With writeback the kernel would still show the data that it could not write, as on any
    // filesystem.
    let options = format!("lowerdir={},upperdir={},whole_copies,writeback=0", lower.display(), upper.display());
    let mount = Mount::new(&setup.dir("mount"), &options);
    let file = setup.path("mount/large");
    let free = || rustix::fs::statvfs(&disk.point).unwrap().f_bfree;
    let before = free();
    for _ in 0..3 {
        fails(
            File::options()
                .write(true)
                .open(&file)
                .and_then(|file| file.write_all_at(b"x", 0).and_then(|()| file.sync_all())),
            &[libc::ENOSPC],
        );
        fails(std::os::unix::fs::chown(&file, Some(1), None), &[libc::ENOSPC]);
    }
    assert!(fs::read(&file).unwrap() == vec![7; 3 << 20]);
    assert!(free() + 8 >= before, "{} blocks of {before} are left", free());
    resize(&disk, 16 * MIB);
    write(&setup.path("mount/large"), b"changed").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"changed");
    mount.unmount();
}

/// An ext4 filesystem becomes read-only when it finds its disk damaged.
#[test]
fn an_upper_layer_that_becomes_read_only() {
    let setup = Setup::new();
    let image = setup.path("image");
    let disk = Disk::ext4(&setup, &image, 16 * MIB, "has_journal");
    let (lower, upper) = (setup.dir("lower"), disk.dir("upper"));
    put::file(&lower, "dir/lower", "lower");
    put::file(&upper, "dir/upper", "upper");
    run(Command::new("sync").arg("-f").arg(&disk.point));
    let mount = mounted(&setup, &lower, &upper);
    let point = setup.path("mount");
    write(&point.join("before"), b"synced").unwrap();
    let held = File::options().write(true).open(point.join("dir/upper")).unwrap();
    assert_eq!(names(&point.join("dir")), ["lower", "upper"]);
    let _ =
        Command::new("mount").args(["-o", "remount,abort"]).arg(&disk.point).stderr(Stdio::null()).status().unwrap();

    let refusals = [libc::EROFS, libc::EIO];
    for _ in 0..2 {
        fails(fs::write(point.join("new"), "x"), &refusals);
        fails(fs::create_dir(point.join("dir/new")), &refusals);
        fails(fs::remove_file(point.join("dir/lower")), &refusals);
        fails(fs::remove_file(point.join("dir/upper")), &refusals);
        fails(fs::rename(point.join("dir/upper"), point.join("moved")), &refusals);
        fails(write(&point.join("dir/lower"), b"x"), &refusals);
        fails(std::os::unix::fs::chown(point.join("dir/upper"), Some(1), Some(77)), &refusals);
        fails(held.write_all_at(b"x", 0).and_then(|()| held.sync_all()), &refusals);
        assert_eq!(names(&point), ["before", "dir"]);
        assert_eq!(names(&point.join("dir")), ["lower", "upper"]);
        assert_eq!(fs::read_to_string(point.join("dir/lower")).unwrap(), "lower");
    }
    drop(held);
    assert_eq!(mount.unmount_and_wait().code(), Some(1), "the change cannot be written to the disk");
    eventually("no process holds the filesystem", || {
        rustix::mount::unmount(&disk.point, UnmountFlags::empty()).is_ok()
    });

    // The disk works again.
    let _ = Command::new("fsck.ext4").args(["-p"]).arg(&image).stdout(Stdio::null()).status().unwrap();
    eventually("the disk can be mounted", || {
        Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&disk.point)
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    });
    let mount = mounted(&setup, &lower, &upper);
    assert_eq!(fs::read_to_string(point.join("before")).unwrap(), "synced");
    assert_eq!(fs::read_to_string(point.join("dir/upper")).unwrap(), "upper");
    fs::remove_file(point.join("dir/lower")).unwrap();
    mount.unmount();
    assert!(exists(&upper.join("dir/.wh.lower")));
}

/// A filesystem that is unmounted lazily stays a layer until the overlay is unmounted. It is free
/// then.
#[test]
fn layers_whose_filesystem_is_unmounted() {
    let setup = Setup::new();
    let image = setup.path("image");
    let disk = Disk::ext4(&setup, &image, 16 * MIB, "has_journal");
    let (lower, upper) = (disk.dir("lower"), disk.dir("upper"));
    put::file(&lower, "dir/file", "lower");
    let mount = mounted(&setup, &lower, &upper);
    let point = setup.path("mount");
    assert_eq!(names(&point), ["dir"]);
    rustix::mount::unmount(&disk.point, UnmountFlags::DETACH).unwrap();
    assert_eq!(fs::read_dir(&disk.point).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(point.join("dir/file")).unwrap(), "lower");
    write(&point.join("dir/file"), b"changed").unwrap();
    write(&point.join("dir/new"), b"new").unwrap();
    fs::rename(point.join("dir"), point.join("moved")).unwrap();
    mount.unmount();

    let loops = || String::from_utf8(Command::new("losetup").arg("-j").arg(&image).output().unwrap().stdout).unwrap();
    eventually("the device is free", || loops().is_empty());
    disk.mount(&image);
    assert_eq!(fs::read_to_string(upper.join("moved/file")).unwrap(), "changed");
    assert_eq!(fs::read_to_string(upper.join("moved/new")).unwrap(), "new");
    assert_eq!(fs::read_to_string(lower.join("dir/file")).unwrap(), "lower");
}

/// A disk that cannot be read for a while.
#[test]
fn a_disk_that_cannot_be_read() {
    let setup = Setup::new();
    let image = setup.path("image");
    let disk = Disk::ext4(&setup, &image, 32 * MIB, "has_journal");
    let lower = disk.dir("lower");
    let content: Vec<u8> = (0..4 * MIB).map(|byte| (byte / 4096) as u8).collect();
    put::file(&lower, "large", &content);
    put::file(&setup.dir("upper"), "file", "another disk");
    run(Command::new("sync").arg("-f").arg(&disk.point));
    let mount = mounted(&setup, &lower, &setup.path("upper"));
    let point = setup.path("mount");
    assert_eq!(names(&point), ["file", "large"]);
    let large = File::open(point.join("large")).unwrap();
    large.read_exact_at(&mut [0], 0).unwrap();

    // The device lies in a file. A read behind the end of that file fails.
    let whole = setup.path("whole");
    run(Command::new("cp").arg("--sparse=always").arg(&image).arg(&whole));
    drop_caches(&disk.point);
    File::options().write(true).open(&image).unwrap().set_len(4096).unwrap();
    drop_caches(&disk.point);
    for _ in 0..2 {
        fails(large.read_exact_at(&mut vec![0; 65_536], 2 * MIB), &[libc::EIO]);
        fails(fs::read(point.join("large")), &[libc::EIO]);
        assert_eq!(fs::read_to_string(point.join("file")).unwrap(), "another disk");
        write(&point.join("new"), b"goes on").unwrap();
    }

    // The content is restored in place, as the device has the file open.
    let mut device = File::options().write(true).open(&image).unwrap();
    io::copy(&mut File::open(&whole).unwrap(), &mut device).unwrap();
    device.set_len(32 * MIB).unwrap();
    device.sync_all().unwrap();
    drop_caches(&disk.point);
    let mut found = vec![0; content.len()];
    large.read_exact_at(&mut found, 0).unwrap();
    assert!(found == content, "the file reads as before");
    drop(large);
    OpenOptions::new().append(true).open(point.join("large")).unwrap().write_all(b"well").unwrap();
    mount.unmount();
    assert!(fs::read(setup.path("upper/large")).unwrap() == [&content[..], b"well"].concat());
}

/// A thin disk takes no more writes, though its filesystem reports free space. Data that were
/// synced before are kept.
#[test]
fn a_disk_that_cannot_be_written() {
    let setup = Setup::new();
    let thin = Disk::memory(setup.dir("thin"), 12 * MIB);
    let disk = Disk::ext4(&setup, &thin.point.join("image"), 64 * MIB, "^has_journal");
    let (lower, upper) = (setup.dir("lower"), disk.dir("upper"));
    put::file(&lower, "dir/file", "lower");
    let mount = mounted(&setup, &lower, &upper);
    let point = setup.path("mount");
    write(&point.join("synced"), b"before").unwrap();
    let failed: io::Result<Vec<()>> =
        (0..20).map(|index| write(&point.join(format!("lost-{index}")), &[5; 1 << 20])).collect();
    fails(failed, &[libc::EIO, libc::ENOSPC, libc::EROFS]);
    assert_eq!(fs::read_to_string(point.join("synced")).unwrap(), "before");
    assert_eq!(fs::read_to_string(point.join("dir/file")).unwrap(), "lower");

    resize(&thin, 128 * MIB);
    for name in names(&point).iter().filter(|name| name.starts_with("lost-")) {
        fs::remove_file(point.join(name)).unwrap();
    }
    eventually("files can be written again", || write(&point.join("well"), b"after").is_ok());
    write(&point.join("dir/file"), b"changed").unwrap();
    mount.unmount();
    assert_eq!(fs::read_to_string(upper.join("synced")).unwrap(), "before");
    assert_eq!(fs::read_to_string(upper.join("well")).unwrap(), "after");
    assert_eq!(fs::read_to_string(upper.join("dir/file")).unwrap(), "changed");
    drop(disk);
}

/// A layer of another FUSE daemon, which dies.
#[test]
fn a_layer_of_a_dead_filesystem() {
    let setup = Setup::new();
    let [below, lower, upper] = ["below", "lower", "upper"].map(|name| setup.dir(name));
    put::file(&below, "dir/known", "below");
    put::file(&below, "unknown/file", "below");
    put::file(&lower, "lower", "well");
    let mut first = Mount::new(&setup.dir("first"), &format!("lowerdir={}", below.display()));
    let options =
        format!("lowerdir={}:{},upperdir={}", lower.display(), setup.path("first").display(), upper.display());
    let mount = Mount::new(&setup.dir("mount"), &options);
    let point = setup.path("mount");
    assert_eq!(names(&point), ["dir", "lower", "unknown"]);
    assert_eq!(names(&point.join("dir")), ["known"]);
    first.daemon.kill().unwrap();
    first.daemon.wait().unwrap();

    let gone = [libc::ENOTCONN, libc::ECONNABORTED];
    fails(fs::read(point.join("dir/known")), &gone);
    fails(fs::read(point.join("unknown/file")), &gone);
    fails(write(&point.join("dir/known"), b"x"), &gone);
    assert_eq!(fs::read_to_string(point.join("lower")).unwrap(), "well");
    write(&point.join("lower"), b"changed").unwrap();
    // A directory of the dead layer cannot be copied up.
    fails(fs::write(point.join("dir/new"), "x"), &gone);
    write(&point.join("new"), b"new").unwrap();
    fs::remove_file(point.join("lower")).unwrap();
    mount.unmount();
    drop(first);
    assert_eq!(fs::read_to_string(upper.join("new")).unwrap(), "new");
}
