//! The processes of a mount at rest: how many threads they have after a load.
//!
//! Needs root, /dev/fuse and a kernel with FUSE over io_uring (Linux 6.14); fails without them.

#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/ring.rs"]
mod ring;

use std::fs;
use std::process::Command;
use std::thread;

use fixture::Fixture;
use mount::{eventually, is_mounted};
use ring::Offer;

fn threads(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/task")).unwrap().count()
}

/// Returns the process `unmounter` of a daemon.
fn unmounter(daemon: u32) -> u32 {
    let children = fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).unwrap();
    children.trim().parse().unwrap()
}

/// Creates, lists, renames and removes files in several threads at once.
fn load(fixture: &Fixture) {
    thread::scope(|scope| {
        for index in 0..8 {
            let dir = fixture.point().join(index.to_string());
            scope.spawn(move || {
                for round in 0..50 {
                    fs::create_dir(&dir).unwrap();
                    let (file, other) = (dir.join("file"), dir.join("other"));
                    fs::write(&file, round.to_string()).unwrap();
                    fs::rename(&file, &other).unwrap();
                    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
                    assert_eq!(fs::read_to_string(&other).unwrap(), round.to_string());
                    fs::remove_dir_all(&dir).unwrap();
                }
            });
        }
    });
}

/// Programs find a mount at rest as they left it, and it comes to rest again after each load.
#[test]
fn each_process_has_one_thread_at_rest() {
    for options in ["", ",volatile", ",writeback=0", ",max_threads=2"] {
        let fixture = Fixture::new();
        let mount = fixture.mount(&format!("{options},io_uring=off"));
        let daemon = mount.daemon.id();
        for round in 0..3 {
            load(&fixture);
            fs::write(fixture.point().join("kept"), round.to_string()).unwrap();
            for process in [daemon, unmounter(daemon)] {
                eventually(&format!("{process} has one thread with {options:?}"), || threads(process) == 1);
            }
            assert_eq!(fs::read_to_string(fixture.point().join("kept")).unwrap(), round.to_string());
        }
        mount.unmount();
        assert_eq!(fs::read_to_string(fixture.path("upper/kept")).unwrap(), "2");
    }
}

/// A daemon at rest is told of the end of its mount in each way.
#[test]
fn a_mount_at_rest_ends() {
    for end in ["umount", "umount -l", "umount -f", "kill"] {
        let fixture = Fixture::new();
        let mut mount = fixture.mount(",io_uring=off");
        let daemon = mount.daemon.id();
        fs::write(fixture.point().join("file"), end).unwrap();
        eventually("it rests", || threads(daemon) == 1);
        let target = if end == "kill" { daemon.to_string() } else { fixture.point().display().to_string() };
        // Another test may list all mounts just then. Its open root makes umount busy for that moment.
        eventually(end, || {
            let mut words = end.split(' ');
            Command::new(words.next().unwrap()).args(words).arg(&target).status().unwrap().success()
        });
        eventually("the daemon ends", || mount.daemon.try_wait().unwrap().is_some_and(|status| status.success()));
        assert!(!is_mounted(&fixture.point()));
        assert_eq!(fs::read_to_string(fixture.path("upper/file")).unwrap(), end);
    }
}

/// Over io_uring each queue keeps its threads: the kernel gives a request to a thread that waits.
#[test]
fn over_io_uring_only_the_threads_of_queues_are_left() {
    let _offer = Offer::set(true);
    let fixture = Fixture::new();
    let mount = fixture.mount(",io_uring=on");
    let queues = fs::read_dir("/sys/devices/system/cpu").unwrap();
    let is_queue = |name: &str| name.strip_prefix("cpu").is_some_and(|number| number.parse::<u32>().is_ok());
    let queues = queues.filter(|entry| is_queue(entry.as_ref().unwrap().file_name().to_str().unwrap())).count();
    for _ in 0..2 {
        load(&fixture);
        eventually("the other threads have ended", || threads(mount.daemon.id()) == 1 + 3 * queues);
    }
    mount.unmount();
}
