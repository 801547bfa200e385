//! Mounts whose large files the kernel reads from their layers itself.
//!
//! Needs root, /dev/fuse, Linux 6.9 with FUSE passthrough, and util-linux; fails without them.

#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;
#[path = "suite/user.rs"]
mod user;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use fixture::Fixture;
use mount::{Mount, program};
use test_common::put;

/// Data of this size, different everywhere.
fn data(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at / 7 % 251) as u8).collect()
}

/// Returns how many requests of a kind the mount has got.
fn requests(point: &Path, kind: &str) -> u64 {
    let output = run::finish(run::command(program()).arg("status").arg(point));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let lines = said.lines().filter_map(|line| line.strip_prefix("requests")?.trim().strip_prefix(kind));
    lines.filter_map(|line| line.trim().split(',').next()?.parse::<u64>().ok()).sum()
}

/// Returns how many bytes of a file are in memory.
fn resident(path: &Path) -> u64 {
    let output = run::finish(run::command("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(path));
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// Mounts the lower layer alone at a directory of this name.
fn mount_at(fixture: &Fixture, name: &str, more: &str) -> Mount {
    let lower = fixture.path("lower");
    Mount::new(&fixture.setup.dir(name), &format!("lowerdir={}{more}", lower.display()))
}

#[test]
fn the_kernel_reads_large_files_itself() {
    let fixture = Fixture::new();
    let (large, small) = (data(3_000_001), data(5000));
    put::file(&fixture.path("lower"), "large", &large);
    put::file(&fixture.path("lower"), "small", &small);
    let guard = fixture.guard();
    for more in [",passthrough", ",passthrough,max_threads=2", ",passthrough,io_uring=off,log=stderr"] {
        let mount = mount_at(&fixture, "one", more);
        let point = fixture.path("one");
        for _ in 0..3 {
            assert!(fs::read(point.join("large")).unwrap() == large);
        }
        assert_eq!(requests(&point, "read "), 0, "{more}");
        assert!(fs::read(point.join("small")).unwrap() == small);
        assert!(requests(&point, "read ") > 0, "{more}");
        // Several opens at a time, of which one outlives the others.
        let open = || File::open(point.join("large")).unwrap();
        let (first, mut second) = (open(), open());
        drop(first);
        second.seek(SeekFrom::Start(1_000_000)).unwrap();
        let mut piece = vec![0; 70_000];
        open().read_exact_at(&mut piece, 999).unwrap();
        assert!(piece == large[999..70_999]);
        second.read_exact(&mut piece).unwrap();
        assert!(piece == large[1_000_000..1_070_000]);
        drop(second);
        assert!(fs::read(point.join("large")).unwrap() == large);
        let error = File::options().write(true).open(point.join("large")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        mount.unmount();
    }
    guard.check();
}

#[test]
fn all_mounts_of_a_layer_share_its_pages() {
    let fixture = Fixture::new();
    put::file(&fixture.path("lower"), "large", data(4 << 20));
    for (more, shared) in [(",passthrough", 4 << 20), ("", 0)] {
        let mounts = ["one", "two"].map(|name| mount_at(&fixture, name, more));
        fs::read(fixture.path("one/large")).unwrap();
        assert!(resident(&fixture.path("one/large")) == 4 << 20);
        assert_eq!(resident(&fixture.path("two/large")), shared, "{more}");
        mounts.into_iter().for_each(Mount::unmount);
    }
}

#[test]
fn many_threads_open_the_same_files() {
    let fixture = Fixture::new();
    let large = data(200_000);
    for file in 0..4 {
        put::file(&fixture.path("lower"), &format!("large-{file}"), &large);
    }
    let mount = mount_at(&fixture, "one", ",passthrough");
    let point = fixture.path("one");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 0..100 {
                    let read = fs::read(point.join(format!("large-{}", round % 4))).unwrap();
                    assert!(read == large, "round {round}");
                }
            });
        }
    });
    assert_eq!(requests(&point, "read "), 0);
    mount.unmount();
}

/// A program runs from such a file, which the kernel maps.
#[test]
fn programs_run() {
    let fixture = Fixture::new();
    fs::copy("/usr/bin/tar", fixture.path("lower/program")).unwrap();
    let mount = mount_at(&fixture, "one", ",passthrough");
    assert!(fs::metadata(fixture.path("one/program")).unwrap().len() > 64 << 10);
    let output = Command::new(fixture.path("one/program")).arg("--version").output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("tar"));
    mount.unmount();
}

/// The lower layers are an upper layer that is only read, and one below it.
#[test]
fn an_upper_layer_that_is_only_read_takes_part() {
    let fixture = Fixture::new();
    let (lower, upper) = (data(100_000), data(90_000));
    put::file(&fixture.path("lower"), "below", &lower);
    put::file(&fixture.path("upper"), "above", &upper);
    let mount = fixture.mount(",ro,passthrough");
    assert!(fs::read(fixture.point().join("below")).unwrap() == lower);
    assert!(fs::read(fixture.point().join("above")).unwrap() == upper);
    assert_eq!(requests(&fixture.point(), "read "), 0);
    mount.unmount();
}

/// A backing belongs to the process that gave it.
#[test]
fn another_process_does_not_go_on() {
    let fixture = Fixture::new();
    let large = data(200_000);
    put::file(&fixture.path("lower"), "large", &large);
    let mount = mount_at(&fixture, "one", ",passthrough,io_uring=off");
    let point = fixture.path("one");
    let open = File::open(point.join("large")).unwrap();
    let output = run::finish(run::command(program()).arg("restart").arg(&point));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("passthrough"), "{said}");
    assert!(fs::read(point.join("large")).unwrap() == large);
    drop(open);
    mount.unmount();
}

/// A user may give the kernel no backings.
#[test]
fn without_the_right_the_option_has_no_effect() {
    let fixture = Fixture::new();
    put::file(&fixture.path("lower"), "large", data(200_000));
    let script = "mkdir mount; \"$P\" -o \"lowerdir=$1,passthrough\" mount; \
                  for round in 1 2 3; do cmp mount/large \"$1/large\"; done; umount mount; echo done";
    let lower = fixture.path("lower");
    let output = user::run_as(&fixture.setup, "5418", script, &[lower.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.stdout == b"done\n" && said.is_empty(), "{said}");
}
