//! Restarts of a mount at work: another process goes on with it, and programs see a pause.
//!
//! Needs root, /dev/fuse, git, tar and Python with sqlite3; fails without them.

#[path = "suite/command.rs"]
mod command;
#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/held.rs"]
mod held;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;
#[path = "suite/sorts.rs"]
mod sorts;

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use test_common::put;

use command::command;
use fixture::Fixture;
use held::{Held, open, process, programs_go_on, read_all};
use mount::{Mount, eventually, is_mounted, program};
use sorts::{change, fill, tree};

/// Over io_uring no other process can take a mount over.
const DEVICE: &str = ",io_uring=off";

fn restart(point: &Path) {
    assert_eq!(command(&["restart"], point), (0, String::new(), String::new()));
}

fn a_restart_changes_nothing(fixture: &Fixture, more: &str) {
    let mount = || fixture.mount(&format!("{more}{DEVICE}"));
    held::nothing_changes(fixture, mount, Mount::unmount, restart, |tree| tree);
}

#[test]
fn a_restart_changes_nothing_that_programs_see() {
    a_restart_changes_nothing(&Fixture::new(), "");
}

#[test]
fn a_restart_changes_nothing_in_the_kernels_format() {
    a_restart_changes_nothing(&Fixture::with_work(), ",format=kernel");
}

#[test]
fn a_restart_changes_nothing_of_a_volatile_mount() {
    a_restart_changes_nothing(&Fixture::with_work(), ",volatile");
}

#[test]
fn a_restart_changes_nothing_without_write_back() {
    a_restart_changes_nothing(&Fixture::new(), ",writeback=0,timeout=0");
}

/// A mapping that a program has stored to.
#[test]
fn a_mapping_goes_on() {
    let fixture = Fixture::new();
    held::a_mapping_goes_on(&fixture, || fixture.mount(DEVICE), Mount::unmount, restart);
}

/// Snapshots before and after restarts.
#[test]
fn snapshots_go_on() {
    let mut fixture = Fixture::new();
    let snapshots = fixture.setup.dir("snapshots");
    fixture.add(&format!(",snapshots={}", snapshots.display()));
    fill(&fixture.path("lower"));
    let (mount, point) = (fixture.mount(DEVICE), fixture.point());
    change(&point);
    let held = Held::new(&point);
    restart(&point);
    assert_eq!(command(&["snapshot"], &point), (0, "1\n".to_owned(), String::new()));
    let before = tree(&point);
    restart(&point);
    assert_eq!(tree(&point), before);
    held.go_on(&point);
    assert_eq!(command(&["snapshot"], &point).0, 0);
    let before = tree(&point);
    restart(&point);
    fs::write(point.join("bad"), "bad").unwrap();
    assert_eq!(command(&["rollback"], &point).0, 0);
    restart(&point);
    assert_eq!(tree(&point), before);
    assert_eq!(command(&["snapshots"], &point).1.lines().count(), 2);
    mount.unmount();
}

/// Without an upper layer there is nothing to lock or to sync.
#[test]
fn a_read_only_mount_goes_on() {
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    let (mount, point) = (fixture.mount(&format!(",ro{DEVICE}")), fixture.point());
    let (file, before) = (File::open(point.join("dir/below")).unwrap(), tree(&point));
    restart(&point);
    restart(&point);
    assert_eq!((read_all(&file).as_str(), tree(&point)), ("below", before));
    drop(file);
    mount.unmount();
}

/// A daemon in the background ends after it has given its mount away. The next one still commits.
#[test]
fn a_mount_in_the_background_goes_on_to_its_ending() {
    let fixture = Fixture::with_work();
    put::file(&fixture.path("lower"), "old", "old");
    let (point, log) = (fixture.point(), fixture.path("log"));
    let options = fixture.options(&format!(",on_exit=commit,log={}{DEVICE}", log.display()));
    let started = run::finish(run::command(program()).args(["-v", "-o", &options]).arg(&point));
    assert!(started.status.success());
    let first = process(&point);
    let held = open(&point.join("held"));
    restart(&point);
    let gone = || !Path::new(&format!("/proc/{first}/fd/0")).exists();
    eventually("the first daemon has ended", gone);
    fs::write(point.join("new"), "new").unwrap();
    (&held).write_all(b"held").unwrap();
    drop(held);
    let second = process(&point);
    eventually("it is unmounted", || {
        Command::new("umount").arg(&point).stderr(Stdio::null()).status().unwrap().success()
    });
    assert_eq!(fs::read_to_string(fixture.path("lower/new")).unwrap(), "new");
    assert_eq!(fs::read_to_string(fixture.path("lower/held")).unwrap(), "held");
    assert_eq!(fs::read_dir(fixture.path("upper")).unwrap().count(), 0);
    let log = fs::read_to_string(log).unwrap();
    let said = |process: u64, text: &str| log.contains(&format!("overlayfs-fuse[{process}]: {text}"));
    assert!(said(first, "another process serves") && said(second, "serving"), "{log}");
}

/// A program that cannot take the mount over leaves it to the present daemon, with its locks.
#[test]
fn the_daemon_goes_on_if_the_new_program_fails() {
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    let (ours, next, point) = (fixture.path("program"), fixture.path("next"), fixture.point());
    fs::copy(program(), &ours).unwrap();
    let mut daemon = Command::new(&ours);
    daemon.args(["-f", "-o", &fixture.options(DEVICE)]).arg(&point).stdin(Stdio::null());
    let mut daemon = daemon.spawn().unwrap();
    eventually("the mount is there", || is_mounted(&point));
    change(&point);
    let held = Held::new(&point);
    let (before, first) = (tree(&point), process(&point));
    let install = |text: &str| {
        fs::write(&next, text).unwrap();
        fs::set_permissions(&next, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&next, &ours).unwrap();
    };
    let refused = |why: &str| {
        let (code, said, sentence) = command(&["restart"], &point);
        assert_eq!((code, said.as_str()), (1, ""));
        let begin = format!("overlayfs-fuse: The overlay at {} cannot be restarted: ", point.display());
        assert!(sentence.starts_with(&begin) && sentence.contains(why), "{sentence}");
        assert_eq!((process(&point), tree(&point)), (first, before.clone()));
        sentence
    };
    for (text, why) in [
        ("#!/bin/false\n", "the new program ended at once"),
        ("no program", "cannot be started"),
        ("#!/bin/sh\nexec sleep 1\n", "the new program ended at once"),
        (
            "#!/usr/bin/env python3\nimport socket\ns = socket.socket(fileno=0)\ns.send(b'h' + b'\\xff' * 8)\n",
            "the new program cannot take over from this version",
        ),
        (
            "#!/usr/bin/env python3\nimport socket\ns = socket.socket(fileno=0)\ns.send(b'fIt is tired.')\n",
            "the new program says: It is tired",
        ),
    ] {
        install(text);
        refused(why);
    }
    // It takes the legacy, and dies of it. The version is that of a legacy (`succession`).
    install(
        "#!/usr/bin/env python3\nimport socket\ns = socket.socket(fileno=0)\ns.send(b'h' + b'\\4' + b'\\0' * 7)\n\
         s.recv(9999)\n",
    );
    let sentence = refused("the new program");
    assert!(!sentence.contains("from this version"), "{sentence}");
    // Layers that are not those of the start, as an attacker in the daemon could send them.
    install(&format!("#!/bin/sh\nshift 2\nexec {} take-over 1.1,-,-,1.1 \"$@\"\n", program()));
    refused("has other layers than those that it was started with");
    fs::remove_file(&ours).unwrap();
    refused("cannot be started");
    // The layers are still locked.
    let other = fixture.setup.dir("other");
    let output = run::finish(run::command(program()).args(["-f", "-o", &fixture.options("")]).arg(&other));
    assert!(String::from_utf8_lossy(&output.stderr).contains("in use by the overlay at"), "{output:?}");
    fs::copy(program(), &next).unwrap();
    fs::rename(&next, &ours).unwrap();
    restart(&point);
    assert_ne!(process(&point), first);
    held.go_on(&point);
    eventually("it is unmounted", || {
        Command::new("umount").arg(&point).stderr(Stdio::null()).status().unwrap().success()
    });
    assert!(daemon.wait().unwrap().success());
}

/// Only the owner of the mount and root may restart it.
#[test]
fn others_may_not_restart_a_mount() {
    let fixture = Fixture::new();
    let (mount, point) = (fixture.mount(DEVICE), fixture.point());
    let first = process(&point);
    let output =
        run::finish(run::command("setpriv").args(["--reuid=1", "--clear-groups", &program(), "restart"]).arg(&point));
    assert!(!output.status.success());
    assert_eq!(process(&point), first);
    mount.unmount();
}

/// Writers, git, tar and sqlite work all the time while the mount is restarted again and again.
#[test]
fn programs_go_on_under_restarts() {
    const ROUNDS: u64 = 12;
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    put::file(&fixture.path("lower"), "huge", vec![1; 64 << 20]);
    let (mount, point) = (fixture.mount(DEVICE), fixture.point());
    programs_go_on(&point, || {
        let mut done = 0;
        while done < ROUNDS {
            let (code, _, said) = command(&["restart"], &point);
            assert!(code == 0 || said.contains("a request takes too long"), "{said}");
            done += u64::from(code == 0);
            thread::sleep(Duration::from_millis(200));
        }
    });
    mount.unmount();
}

/// umount while another process takes the mount over: either comes first, and the upper layer has
/// all when both have ended.
#[test]
fn an_unmount_during_a_restart_loses_nothing() {
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    let point = fixture.point();
    for round in 0..12 {
        let mount = fixture.mount(DEVICE);
        let text = format!("round {round}");
        fs::write(point.join("file"), &text).unwrap();
        File::options().write(true).open(point.join("large")).unwrap().write_all_at(b"x", round << 16).unwrap();
        thread::scope(|scope| {
            let restarting = scope.spawn(|| command(&["restart"], &point).0);
            thread::sleep(Duration::from_millis(round * 25));
            mount.unmount();
            restarting.join().unwrap();
        });
        assert_eq!(fs::read_to_string(fixture.path("upper/file")).unwrap(), text);
        assert_eq!(fs::metadata(fixture.path("upper/large")).unwrap().len(), 3 << 20);
    }
}

/// The file position is the kernel's, the signal that of the first daemon.
#[test]
fn a_signal_still_unmounts() {
    let fixture = Fixture::new();
    let (mut mount, point): (Mount, _) = (fixture.mount(DEVICE), fixture.point());
    let mut file = open(&point.join("file"));
    file.write_all(b"0123456789").unwrap();
    file.seek(SeekFrom::Start(4)).unwrap();
    restart(&point);
    file.write_all(b"x").unwrap();
    assert_eq!(read_all(&file), "0123x56789");
    drop(file);
    // SAFETY: takes two numbers, and the daemon is a child that was not waited for.
    unsafe { libc::kill(mount.daemon.id().cast_signed(), libc::SIGTERM) };
    eventually("it is unmounted", || !is_mounted(&point));
    assert!(mount.daemon.wait().unwrap().success());
    assert_eq!(fs::read_to_string(fixture.path("upper/file")).unwrap(), "0123x56789");
}
