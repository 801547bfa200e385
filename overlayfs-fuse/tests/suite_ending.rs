//! What a mount does with the changes at its end: `on_exit`.
//!
//! Needs root and /dev/fuse; fails without them.

#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::Output;
use std::thread;
use std::time::Duration;

use fixture::Fixture;
use mount::{eventually, is_mounted, program_for};
use rustix::mount::{UnmountFlags, unmount};
use test_common::{names, put};

/// The time after which everything is synced.
const AT_REST: Duration = Duration::from_secs(2);

fn filled() -> Fixture {
    let fixture = Fixture::with_work();
    put::file(&fixture.path("lower"), "old", "old");
    put::file(&fixture.path("lower"), "large", vec![b'l'; 4 << 20]);
    fixture
}

impl Fixture {
    /// Mounts as users do, with the daemon in the background.
    fn start(&self, more: &str) -> Output {
        run::finish(run::command(program_for(more)).args(["-o", &self.options(more)]).arg(self.point()))
    }

    fn change(&self) {
        let point = self.point();
        fs::write(point.join("new"), "new").unwrap();
        fs::remove_file(point.join("old")).unwrap();
        fs::write(point.join("large"), "small").unwrap();
    }

    /// Unmounts. `overlayfs-fuse ls` of another suite may have the mount open for a moment.
    fn umount(&self) {
        eventually("it is unmounted", || {
            let output = run::finish(run::command("umount").arg(self.point()));
            let said = said(&output);
            assert!(output.status.success() || said.contains("target is busy"), "{said}");
            output.status.success()
        });
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The ending is complete when umount returns, and the layers are free.
#[test]
fn the_changes_are_discarded_or_committed_when_umount_returns() {
    for (more, is_committed) in [
        (",on_exit=discard", false),
        (",on_exit=commit", true),
        (",on_exit=discard,volatile", false),
        (",on_exit=commit,format=kernel", true),
        (",on_exit=commit-atomic", true),
        (",on_exit=commit-atomic,format=kernel", true),
    ] {
        let fixture = filled();
        for _ in 0..2 {
            let started = fixture.start(more);
            assert!(started.status.success(), "{more}: {}", said(&started));
            if fixture.point().join("old").exists() {
                fixture.change();
            }
            fixture.umount();
            assert_eq!(names(&fixture.path("upper")), [""; 0], "{more}");
            let expected: &[&str] = if is_committed { &["large", "new"] } else { &["large", "old"] };
            assert_eq!(names(&fixture.path("lower")), expected, "{more}");
            let length = fs::metadata(fixture.path("lower/large")).unwrap().len();
            assert_eq!(length, if is_committed { 5 } else { 4 << 20 }, "{more}");
        }
    }
}

/// umount waits also if everything has long been synced, and a remount does not wait for the end.
#[test]
fn umount_waits_for_the_ending_of_a_mount_at_rest() {
    for more in [",on_exit=commit", ",on_exit=discard", ",on_exit=commit-atomic,format=kernel"] {
        let fixture = filled();
        assert!(fixture.start(more).status.success());
        fixture.change();
        thread::sleep(AT_REST);
        let output = run::finish(run::command("mount").args(["-i", "-o", "remount,ro"]).arg(fixture.point()));
        assert!(output.status.success(), "{}", said(&output));
        thread::sleep(AT_REST);
        fixture.umount();
        assert_eq!(names(&fixture.path("upper")), [""; 0], "{more}");
        let expected = if more.contains("commit") { ["large", "new"] } else { ["large", "old"] };
        assert_eq!(names(&fixture.path("lower")), expected, "{more}");
    }
}

#[test]
fn the_changes_stay_without_the_option_and_after_a_kill() {
    for more in ["", ",on_exit=preserve"] {
        let fixture = filled();
        assert!(fixture.start(more).status.success());
        fixture.change();
        fixture.umount();
        assert!(fixture.path("upper/new").exists() && fixture.path("lower/old").exists(), "{more}");
    }
    for more in [",on_exit=discard", ",on_exit=commit", ",on_exit=commit-atomic"] {
        let fixture = filled();
        let mut mount = fixture.mount(more);
        fixture.change();
        mount.daemon.kill().unwrap();
        mount.daemon.wait().unwrap();
        unmount(fixture.point(), UnmountFlags::DETACH).unwrap();
        assert!(fixture.path("upper/new").exists() && fixture.path("lower/old").exists(), "{more}");
    }
}

/// The lower layer is another directory then, and nothing of the exchange is left.
#[test]
fn an_atomic_commit_exchanges_the_lower_layer() {
    let fixture = filled();
    let around = fixture.setup.root();
    let before = (names(around), fs::metadata(fixture.path("lower")).unwrap().ino());
    let former = File::open(fixture.path("lower")).unwrap();
    let mount = fixture.mount(",on_exit=commit-atomic");
    fixture.change();
    mount.unmount();
    assert_eq!(names(&fixture.path("lower")), ["large", "new"]);
    assert_ne!(fs::metadata(fixture.path("lower")).unwrap().ino(), before.1);
    assert_eq!(names(around), before.0);
    assert_eq!(former.metadata().unwrap().nlink(), 0, "the former layer is removed");
}

/// A signal unmounts as well, and the exit status of the daemon tells whether everything worked.
#[test]
fn a_signal_is_a_clean_end() {
    let fixture = filled();
    let mut mount = fixture.mount(",on_exit=discard");
    fixture.change();
    let pid = rustix::process::Pid::from_child(&mount.daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(mount.daemon.wait().unwrap().success());
    eventually("it is unmounted", || !is_mounted(&fixture.point()));
    assert_eq!(names(&fixture.path("upper")), [""; 0]);
}

/// A failure is logged with the path and the cause, and the changes stay.
#[test]
fn an_ending_that_fails_leaves_the_changes() {
    for (ending, tool) in [("commit", "commit"), ("commit-atomic", "commit --atomic")] {
        let fixture = filled();
        let log = fixture.path("log");
        assert!(fixture.start(&format!(",on_exit={ending},log={}", log.display())).status.success());
        fixture.change();
        fs::rename(fixture.path("lower"), fixture.path("elsewhere")).unwrap();
        fixture.umount();
        let text = fs::read_to_string(&log).unwrap();
        let expected = format!(
            "The changes stay in the upper directory, since {tool} failed: cannot open {}: ",
            fixture.path("lower").display()
        );
        assert!(text.contains(&expected), "{text}");
        assert!(text.contains(&format!("overlayfs-layer {tool} does it")), "{text}");
        assert!(fixture.path("upper/new").exists() && fixture.path("elsewhere/old").exists());
    }
}

#[test]
fn an_ending_without_changes_is_refused_at_the_start() {
    let fixture = filled();
    for more in [",on_exit=discard,ro", ",ro,on_exit=commit-atomic"] {
        let refused = fixture.start(more);
        assert!(!refused.status.success(), "{more}");
        assert!(said(&refused).contains("needs changes, and the overlay is read-only."), "{}", said(&refused));
    }
    let lower = format!("lowerdir={}", fixture.path("lower").display());
    let refused =
        run::finish(run::command(program_for("")).args(["--on-exit", "discard", "-o", &lower]).arg(fixture.point()));
    assert!(said(&refused).contains("read-only without an upper directory"), "{}", said(&refused));
    let lower = fixture.path("lower");
    rustix::mount::mount_bind(fixture.setup.dir("elsewhere"), &lower).unwrap();
    let refused = fixture.start(",on_exit=commit-atomic");
    unmount(&lower, UnmountFlags::DETACH).unwrap();
    assert!(said(&refused).contains("is a mount point, and cannot be exchanged"), "{}", said(&refused));
    let refused = fixture.start(",on_exit=throw");
    assert!(said(&refused).contains("There is no on_exit=throw"), "{}", said(&refused));
}
