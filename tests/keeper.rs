//! The process that waits for the daemon's end, with real processes and signals: this program starts itself as the daemon's.
//!
//! It has no harness, because the daemon's program must have one thread when it forks.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use overlayfs::daemon::{keep, run};
use overlayfs::options::{Arguments, Options};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    // The kernel of the tests is in each process of its own.
    linux_delegate::kernel::unregister("none").unwrap_err();
    match env::args().nth(1).as_deref() {
        Some("serve") => serve(Path::new(&env::args().nth(2).unwrap()), env::args().nth(3).is_some()),
        _ => {
            for (what, test) in TESTS {
                test();
                println!("{what}: ok");
            }
            ExitCode::SUCCESS
        }
    }
}

const TESTS: [(&str, fn()); 6] = [
    ("a signal to the parent ends the daemon well", || {
        let mut started = Started::new(false);
        started.signal(started.parent(), Signal::TERM);
        assert!(started.end().success());
        started.is_gone("ended well");
    }),
    ("a signal to the daemon ends both", || {
        let mut started = Started::new(false);
        started.signal(started.daemon(), Signal::INT);
        assert!(started.end().success());
        started.is_gone("ended well");
    }),
    ("a daemon that is killed leaves no name", || {
        let mut started = Started::new(false);
        started.signal(started.daemon(), Signal::KILL);
        assert!(!started.end().success());
        started.is_gone("");
    }),
    ("a daemon that cannot begin fails", || {
        let mut started = Started::failing(false);
        assert_eq!(started.end().code(), Some(1));
        assert!(!started.path("name").exists());
    }),
    ("detached, the command ends when the daemon is ready", || {
        let mut started = Started::new(true);
        assert!(started.end().success());
        assert!(test_kill_process(started.daemon()).is_ok());
        assert!(started.path("name").exists());
        started.signal(started.daemon(), Signal::TERM);
        started.is_gone("ended well");
    }),
    ("detached, a daemon that cannot begin fails the command", || {
        let mut started = Started::failing(true);
        assert_eq!(started.end().code(), Some(1));
    }),
];

/// The daemon's program. In `dir`, `lower` is the layer, `name` stands for the scheme's name, and `daemon` and `end` tell of the child.
fn serve(dir: &Path, detach: bool) -> ExitCode {
    let options = Options { lowers: vec![dir.join("lower")], ..Options::default() };
    let name = "kept".to_owned();
    let arguments = Arguments { options, name, replace: false, detach, hand_to_init: false, verbose: false };
    // SAFETY: nothing here has started a thread.
    let kept = unsafe {
        keep(
            detach,
            |kept| {
                let served = run(&arguments, |stop| {
                    fs::write(dir.join("name"), "").unwrap();
                    fs::write(dir.join("pid"), std::process::id().to_string()).unwrap();
                    fs::rename(dir.join("pid"), dir.join("daemon")).unwrap();
                    kept.ready(stop);
                });
                fs::write(dir.join("end"), if served.is_ok() { "ended well" } else { "failed" }).unwrap();
                if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
            },
            || {
                let _ = fs::remove_file(dir.join("name"));
            },
        )
    };
    kept.unwrap()
}

/// The daemon's program, started.
struct Started {
    dir: TempDir,
    program: Child,
}

impl Started {
    /// Comes back when the daemon is ready.
    fn new(detach: bool) -> Self {
        let started = Self::start(detach, true);
        wait_until("the daemon is ready", || started.path("daemon").exists());
        started
    }

    /// Without the layer that it is to serve.
    fn failing(detach: bool) -> Self {
        Self::start(detach, false)
    }

    fn start(detach: bool, with_layer: bool) -> Self {
        let dir = TempDir::new().unwrap();
        if with_layer {
            fs::create_dir(dir.path().join("lower")).unwrap();
        }
        let mut program = Command::new(env::current_exe().unwrap());
        program.arg("serve").arg(dir.path()).args(detach.then_some("detach"));
        let program = program.spawn().unwrap();
        Self { dir, program }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn parent(&self) -> Pid {
        Pid::from_child(&self.program)
    }

    fn daemon(&self) -> Pid {
        let pid = fs::read_to_string(self.path("daemon")).unwrap();
        Pid::from_raw(pid.parse().unwrap()).unwrap()
    }

    fn signal(&self, to: Pid, signal: Signal) {
        kill_process(to, signal).unwrap();
    }

    /// How the program ends, as whoever started it sees it.
    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the program ends", || {
            status = self.program.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// The daemon is gone, has said this of its end, and its name is removed.
    fn is_gone(&self, said: &str) {
        wait_until("the daemon is gone", || test_kill_process(self.daemon()).is_err());
        wait_until("its name is removed", || !self.path("name").exists());
        assert_eq!(fs::read_to_string(self.path("end")).unwrap_or_default(), said);
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
