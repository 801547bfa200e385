//! Times stay the same after the kernel drops its caches, after an fsync and after another mount.
//! The upper layer may have coarse times.
//!
//! Needs root, /dev/fuse, loop devices and mkfs.ext4.

#[macro_use]
#[path = "suite/front_ends.rs"]
mod front_ends;
#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use fixture::Fixture;
use mount::{Mount, eventually};
use rustix::fs::{FallocateFlags, IFlags, fallocate};
use rustix::mount::UnmountFlags;
use test_common::{LowerGuard, Setup, mode, owner, put, times};

type Moment = (i64, i64);

fn mtime(path: &Path) -> Moment {
    let found = fs::symlink_metadata(path).unwrap();
    (found.mtime(), found.mtime_nsec())
}

/// Makes the kernel drop its caches.
fn drop_caches() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

/// An ext4 filesystem with inodes of 128 bytes. Its times are whole seconds from 1901 to 2038. The
/// drop unmounts it.
struct Coarse(PathBuf);

impl Coarse {
    fn new(setup: &Setup) -> Self {
        let image = setup.path("image");
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        run::finish(run::command("mkfs.ext4").args(["-q", "-I", "128"]).arg(&image));
        let point = setup.dir("coarse");
        assert!(run::finish(run::command("mount").args(["-o", "loop"]).arg(&image).arg(&point)).status.success());
        Self(point)
    }
}

impl Drop for Coarse {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn times_have_the_resolution_of_the_upper_layer(front_end: &str) {
    for format in ["oci", "kernel"] {
        let setup = Setup::new();
        let coarse = Coarse::new(&setup);
        let [lower, point] = ["lower", "mount"].map(|name| setup.dir(name));
        let [upper, work] = ["upper", "work"].map(|name| put::dir(&coarse.0, name));
        for name in ["read", "written", "dir/in"] {
            times(&put::file(&lower, name, "lower"), (1_000_000_000, 7), (1_000_000_000, 123_456_789));
        }
        times(&lower.join("dir"), (1_000_000_000, 7), (1_000_000_000, 123_456_789));
        let guard = LowerGuard::new([&lower]);
        let options = format!(
            "door={front_end},format={format},lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let mount = Mount::new(&point, &options);

        fs::write(point.join("new"), "new").unwrap();
        fs::write(point.join("set"), "set").unwrap();
        times(&point.join("set"), (1_000_000_001, 500_000_000), (1_000_000_003, 987_654_321));
        assert_eq!(mtime(&point.join("set")), (1_000_000_003, 0));
        for name in ["read", "written", "dir", "dir/in"] {
            assert_eq!(mtime(&point.join(name)), (1_000_000_000, 0), "{name}");
        }
        fs::set_permissions(point.join("written"), fs::metadata(point.join("read")).unwrap().permissions()).unwrap();
        fs::set_permissions(point.join("dir"), fs::metadata(point.join("dir")).unwrap().permissions()).unwrap();
        // Times out of range. A stat right after the call may still show the requested time.
        for (name, year) in [("early", -6_000_000_000), ("late", 16_725_225_600)] {
            fs::write(point.join(name), "").unwrap();
            times(&point.join(name), (year, 5), (year, 5));
            let limit = if year < 0 { i64::from(i32::MIN) } else { i64::from(i32::MAX) };
            eventually("the time is one that the layer keeps", || mtime(&point.join(name)) == (limit, 0));
        }

        let names = ["new", "set", "read", "written", "dir", "dir/in", "early", "late"];
        let before = names.map(|name| mtime(&point.join(name)));
        assert_eq!(before[0].1, 0, "whole seconds");
        drop_caches();
        assert_eq!(names.map(|name| mtime(&point.join(name))), before, "after the caches were dropped");
        mount.unmount();
        let mount = Mount::new(&point, &options);
        assert_eq!(names.map(|name| mtime(&point.join(name))), before, "in the next mount");
        mount.unmount();
        guard.check();
    }
}

fn store(path: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    // SAFETY: a mapping of one page of a file that has as many bytes. Only this code uses it,
    // before its munmap.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let page = libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(page, libc::MAP_FAILED);
        *page.cast::<u8>() += 1;
        assert_eq!(libc::msync(page, 4096, libc::MS_SYNC), 0);
        assert_eq!(libc::munmap(page, 4096), 0);
    }
}

#[test]
fn a_store_through_a_mapping_changes_the_time() {
    for writeback in [0, 1] {
        let fixture = Fixture::new();
        let file = put::file(&fixture.path("lower"), "file", [1; 4096]);
        times(&file, (1_000_000_000, 0), (1_000_000_000, 0));
        let mount = fixture.mount(&format!(",writeback={writeback}"));
        let path = fixture.point().join("file");
        let mut before = mtime(&path);
        for round in 0..2 {
            store(&path);
            let after = mtime(&path);
            assert!(after > before, "writeback={writeback}, round {round}: {after:?}");
            before = after;
        }
        File::open(&path).unwrap().sync_all().unwrap();
        drop_caches();
        assert_eq!(mtime(&path), before, "writeback={writeback}");
        mount.unmount();
        assert_eq!(fs::read(fixture.path("upper/file")).unwrap()[0], 3);
        assert_eq!(mtime(&fixture.path("upper/file")), before);
    }
}

/// Changes a file. Some changes need a second name for it.
type Change = fn(&Path, &Path);

/// Returns the ways to change a file.
fn changes() -> Vec<(&'static str, Change)> {
    fn open(path: &Path) -> File {
        OpenOptions::new().read(true).write(true).open(path).unwrap()
    }
    vec![
        ("write", |path, _| open(path).write_all_at(b"written", 3).unwrap()),
        ("append", |path, _| OpenOptions::new().append(true).open(path).unwrap().write_all(b"appended").unwrap()),
        ("truncate", |path, _| open(path).set_len(5).unwrap()),
        ("chmod", |path, _| mode(path, 0o640)),
        ("chown", |path, _| owner(path, 1000, 1000)),
        ("utimens", |path, _| times(path, (1_000_000_000, 1), (1_000_000_001, 2))),
        ("write and utimens", |path, _| {
            open(path).write_all_at(b"written", 3).unwrap();
            times(path, (1_000_000_000, 1), (1_000_000_001, 2));
        }),
        ("setxattr", |path, _| {
            rustix::fs::setxattr(path, "user.name", b"value", rustix::fs::XattrFlags::empty()).unwrap();
        }),
        ("link", |path, other| fs::hard_link(path, other).unwrap()),
        ("unlink", |path, other| {
            fs::hard_link(path, other).unwrap();
            fs::remove_file(other).unwrap();
        }),
        ("rename", |path, other| {
            fs::rename(path, other).unwrap();
            fs::rename(other, path).unwrap();
        }),
        ("store", |path, _| store(path)),
        ("write past the page cache", |path, _| {
            let bytes = vec![2; 3 * 4096];
            let start = bytes.as_ptr().align_offset(4096);
            let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
            direct.write_all_at(&bytes[start..start + 8192], 0).unwrap();
        }),
        ("copy_file_range", |path, _| {
            let file = open(path);
            assert_eq!(rustix::fs::copy_file_range(&file, Some(&mut 0), &file, Some(&mut 2000), 1000).unwrap(), 1000);
        }),
        ("fallocate", |path, _| fallocate(open(path), FallocateFlags::empty(), 0, 10_000).unwrap()),
        ("fallocate without a new size", |path, _| {
            fallocate(open(path), FallocateFlags::KEEP_SIZE, 0, 10_000_000).unwrap();
        }),
        ("punch a hole", |path, _| {
            fallocate(open(path), FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 1000, 2000).unwrap();
        }),
        ("chattr", |path, _| {
            let before = fs::metadata(path).unwrap();
            let flags = rustix::fs::ioctl_getflags(File::open(path).unwrap()).unwrap();
            rustix::fs::ioctl_setflags(File::open(path).unwrap(), flags | IFlags::NODUMP).unwrap();
            // The kernel shows its cached time until it drops the file.
            eventually("the time of last change of status moves", || {
                let now = fs::metadata(path).unwrap();
                (now.ctime(), now.ctime_nsec()) > (before.ctime(), before.ctime_nsec())
            });
        }),
    ]
}

/// Makes the kernel write back the changes of a mount in a loop. So this also happens between a
/// change and a stat.
struct Syncer(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Syncer {
    fn new(point: &Path) -> Self {
        let (ended, mount) = (Arc::new(AtomicBool::new(false)), File::open(point).unwrap());
        let ends = ended.clone();
        let sync = move || {
            while !ends.load(Ordering::Relaxed) {
                rustix::fs::syncfs(&mount).unwrap();
            }
        };
        Self(ended, Some(std::thread::spawn(sync)))
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        let _ = self.1.take().map(JoinHandle::join);
    }
}

/// The times of the last change do not move before the next change, whenever a program asks for
/// them.
fn times_of_last_change_stay_until_the_next_change(front_end: &str) {
    let extra: &[&str] = match front_end {
        "engine" => &["format=oci", "format=kernel", "writeback=0", "whole_copies"],
        _ => &["format=oci"],
    };
    for extra in extra {
        let fixture = Fixture::with_work();
        let (lower, point) = (fixture.path("lower"), fixture.point());
        // Redox has no extended attributes, and no request to reserve space.
        let impossible = ["setxattr", "fallocate", "fallocate without a new size", "punch a hole", "chattr"];
        let possible = |name: &str| front_end == "engine" || !impossible.contains(&name);
        let changes: Vec<_> = changes().into_iter().filter(|(name, _)| possible(name)).collect();
        for (name, _) in &changes {
            put::file(&lower, &format!("small/{name}"), vec![1; 4096]);
            put::file(&lower, &format!("large/{name}"), vec![1; 2 << 20]);
        }
        put::file(&lower, "dir/untouched/file", "");
        let guard = fixture.guard();
        let more = format!(",door={front_end},{extra}");
        let mount = fixture.mount(&more);
        fs::create_dir(point.join("new")).unwrap();
        let mut paths = Vec::new();
        let syncer = Syncer::new(&point);
        for dir in ["small", "large", "new"] {
            for (name, change) in &changes {
                let path = point.join(dir).join(name);
                if dir == "new" {
                    fs::write(&path, vec![1; 4096]).unwrap();
                }
                // The clock of the kernel moves in steps of up to four milliseconds.
                std::thread::sleep(std::time::Duration::from_millis(5));
                change(&path, &point.join(format!("{dir}-{name}")));
                paths.push(path);
            }
            paths.push(point.join(dir));
        }
        drop(syncer);
        mode(&point.join("dir/untouched/file"), 0o600);
        paths.extend(["dir/untouched/file", "dir/untouched", "dir", ""].map(|name| point.join(name)));

        let times = || -> Vec<_> {
            let times_of = |path: &PathBuf| {
                let found = fs::symlink_metadata(path).unwrap();
                (path.clone(), (found.ctime(), found.ctime_nsec()), (found.mtime(), found.mtime_nsec()))
            };
            paths.iter().map(times_of).collect()
        };
        let before = times();
        let same = |when: &str| {
            let differ: Vec<_> = before.iter().zip(times()).filter(|(before, now)| **before != *now).collect();
            assert!(differ.is_empty(), "{extra}, {when}: {differ:#?}");
        };
        drop_caches();
        same("after the caches were dropped");
        for path in &paths {
            File::open(path).unwrap().sync_all().unwrap();
        }
        same("after an fsync");
        drop_caches();
        same("after an fsync, when the caches were dropped");
        mount.unmount();
        let mount = fixture.mount(&more);
        same("in the next mount");
        mount.unmount();
        let mount = fixture.mount(&more);
        same("in the one after that");
        // The next change moves the time.
        for path in paths.iter().filter(|path| path.is_file()) {
            mode(path, 0o604);
        }
        for (before, now) in before.iter().zip(times()).filter(|(before, _)| before.0.is_file()) {
            assert!(now.1 > before.1, "{before:?} {now:?}");
        }
        mount.unmount();
        guard.check();
    }
}

through_both_front_ends! {
    times_of_last_change_stay_until_the_next_change,
    times_have_the_resolution_of_the_upper_layer,
}
