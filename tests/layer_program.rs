//! The program `overlayfs-layer` around its subcommands: progress, warnings, signals, exit codes.

#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use overlayfs::format::WORK;
use overlayfs::overlay::VOLATILE_MARK;
use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_overlayfs-layer");
/// The number of files that the upper layer adds. Their lines do not fit into a pipe.
const FILES: usize = 4000;

/// Layers of which `diff` prints more than a pipe holds.
fn layers() -> tempfile::TempDir {
    let setup = tempfile::tempdir().unwrap();
    for name in ["lower", "upper"] {
        fs::create_dir(setup.path().join(name)).unwrap();
    }
    for number in 0..FILES {
        File::create(setup.path().join(format!("upper/a-file-with-a-rather-long-name-{number}"))).unwrap();
    }
    setup
}

fn diff(setup: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("diff").arg("--lower").arg(setup.join("lower")).arg("--upper").arg(setup.join("upper"));
    command
}

/// Starts `diff`, and waits until it has begun to print. It waits for a reader from then on.
fn start(setup: &Path) -> (Child, ChildStdout) {
    let mut child = diff(setup).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0]).unwrap();
    (child, out)
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits until the process has taken a signal.
fn wait_until_taken(child: &Child) {
    let pending = |line: &&str| line.starts_with("SigPnd:") || line.starts_with("ShdPnd:");
    let is_zero = |line: &str| line.trim_end().ends_with("0000000000000000");
    while !fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap().lines().filter(pending).all(is_zero) {
        std::thread::yield_now();
    }
}

/// Waits until the process sleeps in a write to its standard output. It meets no point to stop at
/// from then on.
fn wait_until_pipe_is_full(child: &Child) {
    let call = format!("{} 0x1 ", libc::SYS_write);
    while !fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap().starts_with(&call) {
        std::thread::yield_now();
    }
}

fn errors(child: &mut Child) -> String {
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    said
}

#[test]
fn a_first_signal_stops_at_a_point_from_which_the_work_goes_on() {
    let setup = layers();
    for one in [Signal::INT, Signal::TERM] {
        let (mut child, mut out) = start(setup.path());
        signal(&child, one);
        let mut listed = String::new();
        out.read_to_string(&mut listed).unwrap();
        assert!(listed.lines().count() < FILES, "the work was not stopped");
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let said = errors(&mut child);
        assert!(said.contains("stopping at the next point") && said.contains("the same command goes on"), "{said}");
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let setup = layers();
    let (mut child, _unread) = start(setup.path());
    wait_until_pipe_is_full(&child);
    signal(&child, Signal::INT);
    wait_until_taken(&child);
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!errors(&mut child).contains("the same command goes on"));
}

#[test]
fn a_commit_goes_on_after_a_kill_without_an_alarm() {
    let setup = layers();
    let commit = || {
        let mut command = Command::new(PROGRAM);
        command.arg("commit").arg("--lower").arg(setup.path().join("lower"));
        command.arg("--upper").arg(setup.path().join("upper")).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let mark = setup.path().join("lower").join(WORK).join(VOLATILE_MARK);
    let mut killed = commit();
    while !mark.exists() {
        assert_eq!(killed.try_wait().unwrap(), None, "the commit ended");
    }
    signal(&killed, Signal::KILL);
    killed.wait().unwrap();
    assert!(mark.exists(), "the commit ended");
    let mut again = commit();
    let said = errors(&mut again);
    assert!(again.wait().unwrap().success() && !mark.exists());
    assert!(!said.contains("damaged"), "{said}");
}

/// Runs `diff` on a terminal of its own, with a reader that makes it wait for `seconds`. Returns
/// what it prints to the terminal.
fn on_terminal(setup: &Path, seconds: u32, more: &str) -> String {
    let line = format!(
        "{PROGRAM} diff {more} --lower {0}/lower --upper {0}/upper | {{ sleep {seconds}; cat >/dev/null; }}",
        setup.display()
    );
    let shown = Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    String::from_utf8(shown.stdout).unwrap()
}

#[test]
fn a_terminal_shows_progress_unless_quiet() {
    let setup = layers();
    let shown = on_terminal(setup.path(), 1, "");
    assert!(shown.contains(" files"), "{shown:?}");
    assert_eq!(on_terminal(setup.path(), 1, "--quiet"), "");
}

#[test]
fn lines_tell_the_progress_where_there_is_no_terminal() {
    let setup = layers();
    let mut child = diff(setup.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(6));
    child.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let lines = errors(&mut child);
    assert!(lines.starts_with("overlayfs-layer: ") && lines.ends_with(" files\n"), "{lines:?}");
    assert_eq!(lines.lines().count(), 1, "{lines:?}");
}
