//! The end of a mount: the state when umount returns, the processes that wait. Also the descriptors
//! and limits that a daemon inherits from a shell.
//!
//! Needs root and /dev/fuse; fails without them.

#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/locks.rs"]
mod locks;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use fixture::Fixture;
use locks::is_free;
use mount::{eventually, is_mounted, program, program_for};
use test_common::{LowerGuard, names, put};

/// A mount rests so long after its last change.
const REST: Duration = Duration::from_millis(700);

/// Large enough for a partial copy.
const LARGE: usize = 8 << 20;

/// Makes a fixture with two files in the lower layer. The guard of that layer is dropped first.
fn filled() -> (Fixture, LowerGuard) {
    let fixture = Fixture::with_work();
    put::file(&fixture.path("lower"), "large", vec![b'l'; LARGE]);
    put::file(&fixture.path("lower"), "small", "small");
    let guard = fixture.guard();
    (fixture, guard)
}

impl Fixture {
    /// Mounts as users do, with the daemon in the background.
    fn start(&self, more: &str) -> Output {
        run::finish(run::command(program_for(more)).args(["-o", &self.options(more)]).arg(self.point()))
    }

    fn must_mount(&self, more: &str) {
        let output = self.start(more);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs a command in a shell. $O has the options of the mount, $M the mount point, and $P the
    /// program.
    fn shell(&self, script: &str) -> Output {
        let mut shell = run::command("bash");
        shell.arg("-c").arg(script).env("O", self.options("")).env("M", self.point()).env("P", program());
        run::finish(shell.current_dir(self.setup.root()))
    }

    /// Unmounts. `overlayfs-fuse ls` of another suite may have the mount open for a moment.
    fn umount(&self) {
        eventually("it is unmounted", || {
            let output = run::finish(run::command("umount").arg(self.point()));
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() || said.contains("target is busy"), "{said}");
            output.status.success()
        });
    }

    fn append(&self, name: &str, text: &str) {
        File::options().append(true).open(self.point().join(name)).unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Panics unless the upper directory has the large file whole, and nothing that only an overlay
    /// knows.
    fn is_whole(&self, appended: usize) {
        let upper = self.path("upper");
        let there = names(&upper);
        assert!(!there.iter().any(|name| name.starts_with(".wh.")), "{there:?}");
        assert_eq!(fs::metadata(upper.join("large")).unwrap().len(), (LARGE + appended) as u64, "{there:?}");
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_upper_directory_is_whole_when_umount_returns_and_can_be_mounted_again() {
    for more in ["", ",volatile", ",format=kernel", ",door=scheme", ",writeback=0", ",whole_copies"] {
        let (fixture, _guard) = filled();
        for round in 1..=3 {
            fixture.must_mount(more);
            fixture.append("large", "end");
            fixture.umount();
            fixture.is_whole(3 * round);
        }
    }
}

/// The files in a work directory for the next mount.
const KEPT: [&str; 3] = ["ctimes", "numbers", "record"];

impl Fixture {
    /// Removes the layers of an overlay that has ended, and makes them again.
    fn start_again(&self, when: &str) {
        let left = names(&self.path("work"));
        assert!(left.iter().all(|name| KEPT.contains(&name.as_str())), "{when}: {left:?}");
        for name in ["upper", "work"] {
            fs::remove_dir_all(self.path(name)).unwrap_or_else(|error| panic!("{when}: {name}: {error}"));
            self.setup.dir(name);
        }
    }
}

#[test]
fn the_layers_are_free_when_umount_returns() {
    for more in ["", ",volatile", ",door=scheme", ",door=scheme,volatile"] {
        let (fixture, _guard) = filled();
        let (mut round, mut in_time) = (0, 0);
        while in_time < 12 {
            round += 1;
            assert!(round < 120, "this machine is too slow");
            let began = Instant::now();
            fixture.must_mount(more);
            // Half of the rounds change nothing.
            if round % 2 == 0 {
                fixture.append("large", "end");
                fs::remove_file(fixture.point().join("small")).unwrap();
                fs::write(fixture.point().join("new"), "new").unwrap();
            }
            fixture.umount();
            let is_free = || ["upper", "work"].iter().all(|name| is_free(&fixture.path(name)));
            // Later the mount rests, and umount waits for nothing.
            if began.elapsed() < REST {
                assert!(is_free(), "{more}, round {round}: the layers are held");
                in_time += 1;
            }
            eventually("the layers are free", is_free);
            fixture.start_again(&format!("{more}, round {round}"));
        }
        assert_eq!(names(&fixture.path("upper")), [""; 0], "nothing comes back");
        assert_eq!(names(&fixture.path("work")), [""; 0], "nothing comes back");
    }
}

#[test]
fn an_upper_layer_at_rest_does_not_change() {
    for more in ["", ",door=scheme"] {
        let (fixture, _guard) = filled();
        fixture.must_mount(more);
        fixture.append("large", "end");
        eventually("the copy is whole", || fixture.path("upper/large").exists());
        // By now umount has nothing, or almost nothing, to wait for.
        thread::sleep(Duration::from_millis(500));
        fixture.umount();
        for name in ["upper", "work"] {
            fs::remove_dir_all(fixture.path(name)).unwrap();
        }
        eventually("the daemon has ended", || {
            Command::new("pgrep").args(["-f", &fixture.options(more)]).output().unwrap().stdout.is_empty()
        });
        assert!(!fixture.path("upper").exists() && !fixture.path("work").exists());
    }
}

#[test]
fn a_mount_that_is_in_use_keeps_its_layers_without_a_name() {
    let (fixture, _guard) = filled();
    fixture.must_mount("");
    fixture.append("large", "end");
    let mut open = File::options().append(true).open(fixture.point().join("large")).unwrap();
    assert!(run::finish(run::command("umount").arg("-l").arg(fixture.point())).status.success());
    eventually("the change is complete", || fixture.path("upper/large").exists());
    for _ in 0..3 {
        assert!(!is_free(&fixture.path("upper")));
        open.write_all(b"end").unwrap();
        open.sync_data().unwrap();
    }
    drop(open);
    eventually("the layers are free", || is_free(&fixture.path("upper")));
    fixture.is_whole(12);
}

#[test]
fn a_volatile_overlay_is_synced_in_a_pause() {
    let (fixture, _guard) = filled();
    let mark = fixture.path("work/work/incompat/volatile");
    let mut mount = fixture.mount(",volatile");
    fixture.append("small", "end");
    assert!(mark.exists());
    eventually("it rests", || !mark.exists());
    fixture.append("small", "end");
    assert!(mark.exists(), "before the next change is answered the mark is back");
    mount.daemon.kill().unwrap();
    mount.daemon.wait().unwrap();
    fixture.umount();
    let refused = fixture.start("");
    assert!(said(&refused).contains("reuse_volatile"), "{}", said(&refused));
}

#[test]
fn a_remount_completes_everything() {
    let (fixture, _guard) = filled();
    fixture.must_mount("");
    fixture.append("large", "end");
    let remounted = run::finish(run::command("mount").args(["-i", "-o", "remount,ro"]).arg(fixture.point()));
    assert!(remounted.status.success(), "{}", said(&remounted));
    fixture.is_whole(3);
    fixture.umount();
}

#[test]
fn a_sync_of_the_mount_point_completes_everything() {
    for more in ["", ",format=kernel", ",door=scheme", ",writeback=0"] {
        let (fixture, _guard) = filled();
        fixture.must_mount(more);
        for times in 1..=3 {
            fixture.append("large", "end");
            File::open(fixture.point()).unwrap().sync_all().unwrap();
            fixture.is_whole(3 * times);
        }
        fixture.umount();
    }
}

#[test]
fn changes_are_completed_in_a_pause() {
    let (fixture, _guard) = filled();
    fixture.must_mount("");
    let mut open = File::options().append(true).open(fixture.point().join("large")).unwrap();
    open.write_all(b"end").unwrap();
    open.sync_data().unwrap();
    drop(open);
    eventually("the copy is whole", || fixture.path("upper/large").exists());
    fixture.append("large", "end");
    fixture.umount();
    fixture.is_whole(6);
}

#[test]
fn the_holder_of_an_upper_layer_is_named() {
    let (fixture, _guard) = filled();
    let mount = fixture.mount("");
    let other = fixture.setup.dir("other");
    let refused = run::finish(run::command(program()).args(["-o", &fixture.options("")]).arg(&other));
    let expected = format!("in use by the overlay at {} (process {})", fixture.point().display(), mount.daemon.id());
    assert!(said(&refused).contains(&expected), "{}", said(&refused));
    assert!(!is_mounted(&other));
    mount.unmount();
}

#[test]
fn a_dead_mount_is_reported() {
    let (fixture, _guard) = filled();
    let mut mount = fixture.mount("");
    // The daemon dies during a change, and umount has something to wait for.
    fixture.append("large", "end");
    mount.daemon.kill().unwrap();
    mount.daemon.wait().unwrap();
    eventually("no daemon answers", || fs::metadata(fixture.point()).is_err());
    let refused = fixture.start("");
    assert!(said(&refused).contains("is a dead mount") && said(&refused).contains("umount "), "{}", said(&refused));
    fixture.umount();
    fixture.must_mount("");
    fixture.umount();
    fixture.is_whole(3);
}

#[test]
fn a_mount_works_without_its_unmounter() {
    let (fixture, _guard) = filled();
    let mount = fixture.mount("");
    fixture.append("large", "end");
    let pid = mount.daemon.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    for child in children.split_whitespace() {
        // SAFETY: takes two numbers. The process is a child of the daemon, which has not waited for
        // it.
        assert_eq!(unsafe { libc::kill(child.parse().unwrap(), libc::SIGKILL) }, 0);
    }
    fixture.append("large", "end");
    mount.unmount();
    fixture.is_whole(6);
}

#[test]
fn a_daemon_copes_with_inherited_limits_and_descriptors() {
    for inherited in [
        "ulimit -S -f 1",
        "ulimit -n 1024; ulimit -S -n 20",
        "ulimit -c 0; ulimit -l 0; ulimit -S -v 100000",
        "trap '' TERM HUP INT PIPE XFSZ XCPU CHLD USR1",
        "umask 777",
        "cd $M",
        "mkdir gone; cd gone; rmdir ../gone",
        "exec <&-",
        "exec <&- >&- 2>&-",
    ] {
        let (fixture, _guard) = filled();
        let output = fixture.shell(&format!("{inherited}; exec $P -o $O $M"));
        assert!(output.status.success(), "{inherited}: {}", said(&output));
        fixture.append("large", "end");
        let new = fixture.point().join("new");
        fs::write(&new, vec![b'n'; 1 << 20]).unwrap_or_else(|error| panic!("{inherited}: {error}"));
        assert_eq!(fs::read(&new).unwrap().len(), 1 << 20, "{inherited}");
        fixture.umount();
        fixture.is_whole(3);
    }
}

/// A reader of a pipe does not wait for the daemon, unless the daemon got the pipe as a descriptor
/// of its own.
#[test]
fn a_daemon_keeps_no_descriptors() {
    let (fixture, _guard) = filled();
    let output =
        fixture.shell("said=$(exec 7>&1 8<lower; $P -o ${O/$PWD\\/lower/\\/dev\\/fd\\/8} $M) && test -z \"$said\"");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(fs::read_to_string(fixture.point().join("small")).unwrap(), "small");
    fixture.umount();
}

#[test]
fn a_write_beyond_the_daemons_limit_is_refused() {
    let (fixture, _guard) = filled();
    let output = fixture.shell("ulimit -f 4096; exec $P -o $O $M");
    assert!(output.status.success(), "{}", said(&output));
    let mut new = File::create(fixture.point().join("new")).unwrap();
    let refused = (0..16).find_map(|_| new.write_all(&[b'n'; 1 << 20]).err());
    assert_eq!(refused.and_then(|error| error.raw_os_error()), Some(libc::EFBIG));
    // A copy cannot be larger either. The daemon goes on.
    let refused =
        File::options().append(true).open(fixture.point().join("large")).and_then(|mut file| file.write_all(b"x"));
    assert_eq!(refused.map_err(|error| error.raw_os_error()), Err(Some(libc::EFBIG)));
    assert_eq!(fs::read_to_string(fixture.point().join("small")).unwrap(), "small");
    drop(new);
    fixture.umount();
}

#[test]
fn a_mount_that_fails_late_leaves_nothing() {
    let (fixture, _guard) = filled();
    let output = fixture.shell("ulimit -n 14; exec $P -o $O,max_threads=16 $M");
    assert!(!output.status.success() && said(&output).starts_with("overlayfs-fuse: "), "{}", said(&output));
    assert!(!is_mounted(&fixture.point()));
    fixture.must_mount("");
    fixture.umount();
}

#[test]
fn the_end_reports_incomplete_copies() {
    let (fixture, _guard) = filled();
    // Another program takes the space for the rest of a large file. In one of the rounds it does so
    // before the copy is complete.
    let script = "for round in $(seq 20); do mkdir -p small; mount -t tmpfs -o size=16m tmpfs small; mkdir small/upper small/work; \
                  $P -f -o lowerdir=lower,upperdir=small/upper,workdir=small/work $M & until mountpoint -q $M; do sleep .05; done; \
                  truncate -s -1 $M/large; head -c 16m /dev/zero > small/filler; umount $M; \
                  wait $!; ended=$?; umount -l small; [ $ended = 0 ] || exit $ended; done";
    let output = fixture.shell(script);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("not all complete and on the disk"), "{}", said(&output));
}

#[test]
fn messages_go_to_a_file() {
    let (fixture, _guard) = filled();
    let log = fixture.path("log");
    let more = format!(",log={}", log.display());
    let output = run::finish(run::command(program()).args(["-v", "-o", &fixture.options(&more)]).arg(fixture.point()));
    assert!(output.status.success(), "{}", said(&output));
    fixture.umount();
    eventually("the last message is there", || fs::read_to_string(&log).unwrap().contains("is unmounted"));
    assert!(fs::read_to_string(&log).unwrap().contains("]: serving "));
    let refused = fixture.start(",log=/nowhere/log");
    assert!(said(&refused).contains("The log file /nowhere/log cannot be opened"), "{}", said(&refused));
}
