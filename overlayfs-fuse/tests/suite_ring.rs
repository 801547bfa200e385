//! FUSE over io_uring: the mount uses it where the kernel offers it, and the device otherwise. What
//! programs see is the same. `scripts/suites --ring` runs other suites over it.
//!
//! Needs root, /dev/fuse, and Linux 6.14 or later, built with FUSE over io_uring; fails without
//! them.

#[path = "suite/disk.rs"]
mod disk;
#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/ring.rs"]
mod ring;
#[path = "suite/run.rs"]
mod run;
#[path = "suite/user.rs"]
mod user;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use disk::Disk;
use fixture::Fixture;
use mount::{Mount, eventually, is_mounted, program};
use ring::Offer;
use rustix::fs::XattrFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use test_common::put;

/// How long a caller may wait for a daemon that is gone.
const SOON: Duration = Duration::from_secs(20);

/// Returns the rings of a process, each with the number of messages that it got from the kernel.
fn rings(pid: u32) -> Vec<u64> {
    let is_ring = |path: PathBuf| fs::read_link(path).is_ok_and(|to| to.as_os_str() == "anon_inode:[io_uring]");
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap());
    let rings = open.filter(|entry| is_ring(entry.path()));
    rings.map(|ring| messages(&format!("/proc/{pid}/fdinfo/{}", ring.file_name().to_str().unwrap()))).collect()
}

/// Returns the number of messages of a ring. The kernel leaves it out while another thread uses the
/// ring (`io_uring_show_fdinfo` in io_uring/fdinfo.c).
fn messages(info: &str) -> u64 {
    let mut number = None;
    eventually("the kernel tells the number of messages", || {
        let text = fs::read_to_string(info).unwrap();
        number = text.lines().find_map(|line| line.strip_prefix("CqTail:")?.trim().parse().ok());
        number.is_some()
    });
    number.unwrap()
}

/// Returns the processors that the threads of rings are bound to.
fn bound(pid: u32) -> Vec<String> {
    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|entry| entry.unwrap().path());
    let threads = tasks.filter(|task| read(task.join("comm")).trim() == "ring");
    let mut bound: Vec<_> = threads
        .map(|task| {
            let status = read(task.join("status"));
            let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            line.unwrap().trim().to_owned()
        })
        .collect();
    bound.sort();
    bound
}

fn processors() -> u64 {
    let online = fs::read_to_string("/proc/cpuinfo").unwrap();
    online.lines().filter(|line| line.starts_with("processor")).count() as u64
}

/// Does some of everything in a directory of its own, and panics if a result is not right.
fn work(dir: &Path, rounds: usize) {
    fs::create_dir(dir).unwrap();
    for round in 0..rounds {
        let (file, other) = (dir.join(format!("file-{round}")), dir.join("other"));
        fs::write(&file, format!("content {round}")).unwrap();
        fs::rename(&file, &other).unwrap();
        OpenOptions::new().append(true).open(&other).unwrap().write_all(b", more").unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), format!("content {round}, more"));
        fs::hard_link(&other, &file).unwrap();
        symlink("file", dir.join("link")).unwrap();
        assert_eq!(fs::read_link(dir.join("link")).unwrap(), Path::new("file"));
        assert_eq!(fs::read_dir(dir).unwrap().count(), 3);
        for path in [&file, &other, &dir.join("link")] {
            fs::remove_file(path).unwrap();
        }
    }
    fs::remove_dir(dir).unwrap();
}

/// Mounts over io_uring.
fn over_ring(fixture: &Fixture, more: &str) -> Mount {
    let mount = fixture.mount(&format!(",io_uring=on{more}"));
    // The kernel answers once the rings are ready.
    fs::metadata(fixture.point()).unwrap();
    assert!(!rings(mount.daemon.id()).is_empty());
    mount
}

#[test]
fn requests_come_over_io_uring_where_the_kernel_offers_it() {
    let offer = Offer::set(true);
    for option in ["", ",io_uring=auto", ",io_uring=on", ",io_uring=on,door=scheme"] {
        let fixture = Fixture::new();
        let mount = fixture.mount(option);
        fs::metadata(fixture.point()).unwrap();
        let pid = mount.daemon.id();
        let before: u64 = rings(pid).iter().sum();
        work(&fixture.point().join("dir"), 50);
        let after: u64 = rings(pid).iter().sum();
        // A name is looked up, made, moved, linked and removed by requests.
        assert!(after >= before + 50 * 8, "{option}: {before}, then {after}");
        mount.unmount();
    }
    drop(offer);
}

#[test]
fn every_processor_has_its_queue() {
    let _offer = Offer::set(true);
    let fixture = Fixture::new();
    let mount = over_ring(&fixture, "");
    // The kernel answers as soon as each queue has one thread.
    eventually("each queue has its threads", || {
        let bound = bound(mount.daemon.id());
        (0..processors()).all(|processor| bound.iter().filter(|to| **to == processor.to_string()).count() == 3)
    });
    for processor in 0..processors() as usize {
        let mut alone = CpuSet::new();
        alone.set(processor);
        let dir = fixture.point().join(processor.to_string());
        thread::scope(|scope| {
            scope.spawn(|| {
                sched_setaffinity(None, &alone).unwrap();
                let before = rings(mount.daemon.id());
                work(&dir, 20);
                let after = rings(mount.daemon.id());
                let busy = before.iter().zip(&after).filter(|(before, after)| *after - *before > 20).count();
                assert!((1..=3).contains(&busy), "{before:?}, then {after:?}");
            });
        });
    }
    mount.unmount();
}

/// A request in a ring belongs to the process that made the ring.
#[test]
fn no_other_process_takes_a_mount_over() {
    let _offer = Offer::set(true);
    let fixture = Fixture::new();
    let mount = over_ring(&fixture, "");
    for _ in 0..2 {
        let output = run::finish(run::command(program()).arg("restart").arg(fixture.point()));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.ends_with("cannot be restarted: its requests come over io_uring, which only one process can use.\n")
        );
        work(&fixture.point().join("dir"), 5);
    }
    mount.unmount();
}

#[test]
fn without_the_offer_requests_come_over_the_device() {
    let _offer = Offer::set(false);
    for option in [",io_uring=auto", ",io_uring=off"] {
        let fixture = Fixture::new();
        let mount = fixture.mount(option);
        work(&fixture.point().join("dir"), 5);
        assert_eq!(rings(mount.daemon.id()).len(), 0, "{option}");
        mount.unmount();
    }
    let fixture = Fixture::new();
    let mut command = run::command(program());
    let output = run::finish(command.args(["-f", "-o", &fixture.options(",io_uring=on")]).arg(fixture.point()));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    let remedy = "echo 1 > /sys/module/fuse/parameters/enable_uring";
    assert!(said.contains("io_uring=on, but the kernel does not offer") && said.contains(remedy), "{said}");
    assert!(!is_mounted(&fixture.point()), "{said}");
}

#[test]
fn the_device_serves_where_io_uring_is_off_or_threads_are_few() {
    let _offer = Offer::set(true);
    for option in [",io_uring=off", ",max_threads=2"] {
        let fixture = Fixture::new();
        let mount = fixture.mount(option);
        work(&fixture.point().join("dir"), 5);
        assert_eq!(rings(mount.daemon.id()).len(), 0, "{option}");
        mount.unmount();
    }
}

/// Rings take more descriptors than the device. So the smallest limit with which the mount works is
/// too small for them.
#[test]
fn the_device_serves_where_there_is_no_descriptor_for_a_ring() {
    let _offer = Offer::set(true);
    let fixture = Fixture::new();
    let start = |limit: usize| {
        let mut shell = run::command("bash");
        shell.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")]).arg(program());
        shell.args(["-f", "-o", &fixture.options("")]).arg(fixture.point()).stderr(Stdio::null()).spawn().unwrap()
    };
    for limit in 12.. {
        assert!(limit < 100, "no limit is enough");
        let mut daemon = start(limit);
        eventually("it is mounted, or has failed", || {
            is_mounted(&fixture.point()) || daemon.try_wait().unwrap().is_some()
        });
        if fs::create_dir(fixture.point().join("dir")).is_ok() && is_mounted(&fixture.point()) {
            fs::remove_dir(fixture.point().join("dir")).unwrap();
            // For a moment all descriptors may be in use.
            let file = fixture.point().join("file");
            eventually("it writes", || fs::write(&file, "content").is_ok());
            eventually("it reads", || fs::read_to_string(&file).is_ok_and(|text| text == "content"));
            // The program is a child of `timeout`.
            let pid = fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.id())).unwrap();
            assert_eq!(rings(pid.trim().parse().unwrap()).len(), 0, "the limit {limit}");
            eventually("it is unmounted", || Command::new("umount").arg(fixture.point()).status().unwrap().success());
            assert!(daemon.wait().unwrap().success());
            return;
        }
        daemon.wait().unwrap();
        let _ = fs::remove_dir(fixture.point().join("dir"));
    }
}

/// Mounts as a user whose processes may have so many threads, and changes something. The arguments
/// are the option and the limit. Prints how many threads have a ring; -1 if there is no mount.
const WITH_FEW_THREADS: &str = r#"
rm -rf upper work; mkdir -p lower upper work mount
# Threads of a program that is about to end would count too.
ended() { for try in $(seq 200); do grep -qx of-a-user /proc/[0-9]*/comm 2>/dev/null || break; sleep .05; done; }
if ! (ulimit -u "$2"; exec "$P" -o "lowerdir=lower,upperdir=upper,workdir=work,io_uring=$1" mount) 2>said; then
    ended; echo -1
    exit
fi
echo text > mount/file; mkdir mount/dir; mv mount/file mount/dir; test "$(cat mount/dir/file)" = text
cat said >&2
rings=0
for comm in $(grep -lx of-a-user /proc/[0-9]*/comm 2>/dev/null || true); do
    rings=$((rings + $(cat "${comm%/comm}"/task/*/comm | grep -cx ring || true)))
done
umount mount; ended; echo $rings
"#;

/// Rings take more threads than the device. So there is a limit with which only the device works.
#[test]
fn the_device_serves_where_a_user_may_not_start_the_threads_of_rings() {
    let _offer = Offer::set(true);
    let fixture = Fixture::new();
    let rings = |choice: &str, limit: usize| -> i32 {
        let output = user::run_as(&fixture.setup, "5417", WITH_FEW_THREADS, &[choice, &limit.to_string()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.is_empty(), "{choice}, {limit}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
    };
    let enough = (4..60).find(|limit| rings("off", *limit) == 0).expect("some limit is enough");
    for limit in enough..enough + 10 {
        assert!(rings("auto", limit) >= 0, "{limit}: {enough} is enough for the device");
    }
    assert_eq!(rings("auto", enough), 0);
    assert!(rings("auto", 500) > 0);
}

#[test]
fn all_that_a_request_carries_arrives() {
    let _offer = Offer::set(true);
    let fixture = Fixture::new();
    let content: Vec<u8> = (0..5 << 20_u32).map(|at| (at % 251) as u8).collect();
    put::file(&fixture.path("lower"), "large", &content);
    let guard = fixture.guard();
    for more in ["", ",writeback=0"] {
        let mount = over_ring(&fixture, more);
        let point = fixture.point();
        assert!(fs::read(point.join("large")).unwrap() == content, "a large read");
        fs::write(point.join("copy"), &content).unwrap();
        assert!(fs::read(point.join("copy")).unwrap() == content, "a large write");
        // At odd places, of odd sizes.
        let file = File::options().read(true).write(true).open(point.join("large")).unwrap();
        file.write_all_at(&content[7..1_100_000], 3_000_001).unwrap();
        let mut read = vec![0; 1_099_993];
        file.read_exact_at(&mut read, 3_000_001).unwrap();
        assert!(read == content[7..1_100_000]);
        drop(file);
        let name = "n".repeat(255);
        symlink("t".repeat(4095), point.join(&name)).unwrap();
        assert_eq!(fs::read_link(point.join(&name)).unwrap().as_os_str().len(), 4095);
        let value = vec![7; 3000];
        rustix::fs::setxattr(point.join("copy"), "user.large", &value, XattrFlags::empty()).unwrap();
        let mut read = vec![0; 65_536];
        let length = rustix::fs::getxattr(point.join("copy"), "user.large", &mut read).unwrap();
        assert!(read[..length] == value);
        fs::rename(point.join(&name), point.join("m".repeat(255))).unwrap();
        fs::create_dir(point.join("many")).unwrap();
        for index in 0..3000 {
            File::create(point.join(format!("many/{index}-{}", "x".repeat(100)))).unwrap();
        }
        mount.unmount();
        let mount = over_ring(&fixture, more);
        assert_eq!(fs::read_dir(point.join("many")).unwrap().count(), 3000);
        assert!(fs::read(point.join("copy")).unwrap() == content);
        for name in ["many", "copy", "large"] {
            let path = point.join(name);
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        }
        mount.unmount();
        fs::remove_dir_all(fixture.path("upper")).unwrap();
        fixture.setup.dir("upper");
    }
    guard.check();
}

/// The kernel tells over the device that it has forgotten a removed file. Only then its space is
/// free. A request over io_uring may overtake that.
#[test]
fn the_space_of_removed_files_is_there_at_once() {
    let _offer = Offer::set(true);
    let fixture = Fixture::new();
    let disk = Disk::memory(fixture.setup.dir("disk"), 2 << 20);
    let options = format!("lowerdir={},upperdir={}", fixture.path("lower").display(), disk.dir("upper").display());
    let mount = Mount::new(&fixture.point(), &format!("{options},io_uring=on"));
    let point = fixture.point();
    for round in 0..20 {
        let full = (0..).find(|index| fs::write(point.join(format!("file-{index}")), [4; 4096]).is_err()).unwrap();
        assert!(full > 100, "round {round}: {full} files");
        for index in 0..=full {
            fs::remove_file(point.join(format!("file-{index}"))).unwrap();
        }
    }
    mount.unmount();
}

#[test]
fn many_clients_work_at_once() {
    let _offer = Offer::set(true);
    let fixture = Fixture::new();
    let mount = over_ring(&fixture, "");
    let point = fixture.point();
    thread::scope(|scope| {
        for client in 0..64 {
            let dir = point.join(client.to_string());
            scope.spawn(move || work(&dir, 30));
        }
    });
    mount.unmount();
    assert_eq!(fs::read_dir(fixture.path("upper")).unwrap().filter(|it| !is_work(it.as_ref().unwrap())).count(), 0);
}

fn is_work(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_str().unwrap().starts_with(".wh.")
}

/// Eight clients that make, read and remove files until they are told to end, or an error.
struct Load<'a> {
    done: &'a AtomicBool,
    made: &'a AtomicU64,
}

impl Load<'_> {
    fn run(&self, point: &Path, client: usize) -> std::io::Result<()> {
        for round in 0.. {
            if self.done.load(Ordering::Relaxed) {
                break;
            }
            let path = point.join(format!("client-{client}-{}", round % 20));
            fs::write(&path, "content")?;
            File::open(&path)?.read_to_end(&mut Vec::new())?;
            self.made.fetch_add(1, Ordering::Relaxed);
            if round % 3 == 0 {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// Runs the load, does `event` once it is under way, and returns when all clients have ended.
fn under_load(point: &Path, event: impl FnOnce()) {
    let (done, made) = (AtomicBool::new(false), AtomicU64::new(0));
    let load = &Load { done: &done, made: &made };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|client| scope.spawn(move || load.run(point, client))).collect();
        eventually("the clients are at work", || made.load(Ordering::Relaxed) > 200);
        event();
        thread::sleep(Duration::from_millis(50));
        done.store(true, Ordering::Relaxed);
        let since = Instant::now();
        while !clients.iter().all(|client| client.is_finished()) {
            assert!(since.elapsed() < SOON, "a client waits for a mount that is gone");
            thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn no_client_waits_for_a_killed_daemon() {
    let _offer = Offer::set(true);
    for _ in 0..5 {
        let fixture = Fixture::new();
        let mut mount = over_ring(&fixture, "");
        let point = fixture.point();
        under_load(&point, || {
            mount.daemon.kill().unwrap();
            mount.daemon.wait().unwrap();
        });
        assert_eq!(File::create(point.join("later")).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
        drop(mount);
        eventually("it is unmounted", || !is_mounted(&point));
        let mount = over_ring(&fixture, "");
        work(&point.join("dir"), 5);
        mount.unmount();
    }
}

#[test]
fn a_mount_ends_under_load() {
    let _offer = Offer::set(true);
    let fixture = Fixture::new();
    for _ in 0..5 {
        let mut mount = over_ring(&fixture, "");
        let point = fixture.point();
        under_load(&point, || {
            let done = Command::new("umount").arg("-l").arg(&point).status().unwrap();
            assert!(done.success());
        });
        eventually("the daemon ends", || mount.daemon.try_wait().unwrap().is_some());
        assert!(mount.daemon.wait().unwrap().success());
        for entry in fs::read_dir(&point).unwrap() {
            // The clients went on in the directory below.
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
}

#[test]
fn an_aborted_connection_ends_the_daemon() {
    let _offer = Offer::set(true);
    let fixture = Fixture::new();
    let mut mount = over_ring(&fixture, "");
    let point = fixture.point();
    // Changes are not synced yet, so a thread of a ring waits for the settler.
    under_load(&point, || {
        let done = Command::new("umount").args(["-f", "-l"]).arg(&point).status().unwrap();
        assert!(done.success());
    });
    eventually("the daemon ends", || mount.daemon.try_wait().unwrap().is_some());
}

/// The process `unmounter` waits in a request that the daemon answers late. While changes go on, it
/// must still end at once when it is told to.
#[test]
fn a_request_that_is_answered_late_can_be_interrupted() {
    let _offer = Offer::set(true);
    let fixture = Fixture::new();
    let mount = over_ring(&fixture, "");
    let pid = mount.daemon.id();
    let children = format!("/proc/{pid}/task/{pid}/children");
    let unmounter: i32 = fs::read_to_string(children).unwrap().trim().parse().unwrap();
    let point = fixture.point();
    under_load(&point, || {
        kill_process(Pid::from_raw(unmounter).unwrap(), Signal::KILL).unwrap();
        let stat = format!("/proc/{unmounter}/stat");
        // It stays as a zombie: the daemon waits for no child.
        let has_ended = || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z"));
        eventually("the process has ended", has_ended);
    });
    mount.unmount();
}

#[test]
fn umount_waits_until_everything_is_synced() {
    let _offer = Offer::set(true);
    let fixture = Fixture::new();
    put::file(&fixture.path("lower"), "large", vec![b'l'; 8 << 20]);
    let guard = fixture.guard();
    for round in 1..=3 {
        let output =
            run::finish(run::command(program()).args(["-o", &fixture.options(",io_uring=on")]).arg(fixture.point()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut large = File::options().append(true).open(fixture.point().join("large")).unwrap();
        large.write_all(b"end").unwrap();
        drop(large);
        eventually("it is unmounted", || Command::new("umount").arg(fixture.point()).status().unwrap().success());
        let whole = fs::metadata(fixture.path("upper/large")).unwrap().len();
        assert_eq!(whole, (8 << 20) + 3 * round);
    }
    guard.check();
}
