//! The program of the daemon with real processes, signals and streams. This test starts itself as
//! that program. The manager of namespaces waits for the daemon, and clients ask the manager for
//! the scheme from the start. So a daemon that asks the manager for anything hangs.
//!
//! It has no harness, because the daemon's program must have one thread when it forks.

use std::cell::Cell;
use std::env;
use std::ffi::{c_char, c_int};
use std::fs;
use std::io::{PipeWriter, Read, pipe};
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use linux_delegate::kernel::manager;
use linux_delegate::{Process, abi};
use overlayfs::daemon::{Init, Kept, Stop, Watcher, keep, run, start_log};
use overlayfs::layer_tools::ending::Planned;
use overlayfs::options::{Arguments, Ending, Options};
use redox_scheme::Socket;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

/// The timeout of every step.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    // Each process has its own simulated kernel.
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

const TESTS: [(&str, fn()); 11] = [
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
    ("after a good end the parent makes the ending, before the name goes", || {
        let mut started = Started::with_upper();
        started.signal(started.parent(), Signal::TERM);
        assert!(started.end().success());
        started.is_gone("ended well");
        assert!(!started.path("upper/change").exists());
    }),
    ("after a kill the changes stay", || {
        let mut started = Started::with_upper();
        started.signal(started.daemon(), Signal::KILL);
        assert!(!started.end().success());
        started.is_gone("");
        assert!(started.path("upper/change").exists());
    }),
    ("a daemon that cannot begin fails", || {
        let mut started = Started::failing(false);
        assert_eq!(started.end().code(), Some(1));
        assert!(!started.path("name").exists());
    }),
    ("a daemon that cannot get its name leaves it to its owner", || {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("name"), "taken").unwrap();
        let mut started = Started::start(dir, false, true);
        assert_eq!(started.end().code(), Some(1));
        assert!(started.path("name").exists());
    }),
    ("its messages, a panic too, need no other process", || {
        let (mut reader, writer) = pipe().unwrap();
        let mut started = Started::logging(writer);
        started.signal(started.parent(), Signal::TERM);
        assert!(started.end().success());
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert!(said.contains("Z overlayfs: serving /scheme/kept\n"), "{said}");
        assert!(said.contains(" overlayfs: panicked at tests/supervisor.rs:"), "{said}");
        assert!(said.contains(": on purpose\n") && !said.contains("backtrace"), "{said}");
    }),
    ("detached, it keeps nothing open that its caller waits for", || {
        let (mut reader, writer) = pipe().unwrap();
        let started = Started::spawn(TempDir::new().unwrap(), true, true, |program| {
            program.stdin(writer.try_clone().unwrap()).stdout(writer.try_clone().unwrap()).stderr(writer);
        });
        let (ended, wait) = mpsc::channel();
        thread::spawn(move || ended.send(reader.read_to_end(&mut Vec::new()).unwrap()));
        wait.recv_timeout(PATIENCE).expect("the end of its output");
        started.wait_until_ready();
        assert!(test_kill_process(started.daemon()).is_ok());
        started.signal(started.daemon(), Signal::TERM);
        started.is_gone("ended well");
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

/// Runs the daemon. `dir` has the layer `lower`, and the file `name` while the scheme's name
/// exists. The files `daemon`, `read` and `end` report the state of the child.
fn serve(dir: &Path, detach: bool) -> ExitCode {
    let upper = Some(dir.join("upper")).filter(|upper| upper.exists());
    let on_exit = if upper.is_some() { Ending::Discard } else { Ending::Preserve };
    let options = Options { lowers: vec![dir.join("lower")], upper, on_exit, ..Options::default() };
    let ending = Planned::new(&options).unwrap();
    let name = "kept".to_owned();
    let arguments = Arguments {
        options,
        name,
        replace: false,
        detach,
        hand_to_init: false,
        protected_hardlinks: true,
        verbose: true,
    };
    // SAFETY: the process has one thread.
    let init = unsafe { Init::from_environment() };
    let as_child = |kept: Kept| {
        start_log(arguments.verbose);
        manager::let_it_wait();
        if fs::exists(dir.join("name")).unwrap() {
            // The name is left by a daemon that has ended.
            redox_scheme::scheme::register_scheme_inner(&Socket::create().unwrap(), &arguments.name, 0).unwrap();
        }
        for client in 0..2 {
            let read = dir.join("read");
            thread::spawn(move || {
                while Process::new(client, 0).stat("/scheme/kept").is_err() {}
                fs::write(read, "").unwrap();
            });
        }
        // This thread acts as the daemon. The clients are other processes.
        abi::act_as(&Process::new(0, 0));
        let served = run(&arguments, init, Telling { dir, kept });
        as_test(|| fs::write(dir.join("end"), if served.is_ok() { "ended well" } else { "failed" }).unwrap());
        if served.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    };
    // SAFETY: the process has one thread.
    let kept = unsafe { keep(detach, as_child, || ending.make(), || drop(fs::remove_file(dir.join("name")))) };
    kept.unwrap()
}

/// The watcher of the daemon. It reports the progress to the test.
struct Telling<'d> {
    dir: &'d Path,
    kept: Kept,
}

impl Watcher for Telling<'_> {
    fn owns_name(&mut self, owns: bool) {
        self.kept.owns_name(owns);
    }

    fn ready(self, stop: Arc<Stop>) {
        let Self { dir, kept } = self;
        // As a bug in a request would panic.
        catch_unwind(|| panic!("on purpose")).unwrap_err();
        as_test(|| {
            fs::write(dir.join("name"), "").unwrap();
            fs::write(dir.join("pid"), std::process::id().to_string()).unwrap();
            fs::rename(dir.join("pid"), dir.join("daemon")).unwrap();
        });
        kept.ready(stop);
    }
}

thread_local! {
    static IS_TEST: Cell<bool> = const { Cell::new(false) };
}

/// Runs code of the test, outside of the daemon's restrictions.
fn as_test(act: impl FnOnce()) {
    IS_TEST.set(true);
    act();
    IS_TEST.set(false);
}

/// The function that the standard library opens files with. In an empty namespace it asks the
/// manager, as on Redox.
#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    if !IS_TEST.get()
        && let Err(error) = abi::look_up()
    {
        // SAFETY: errno belongs to this thread.
        unsafe { *libc::__errno_location() = error.errno };
        return -1;
    }
    // SAFETY: the caller of this function guarantees the path, and the other arguments are numbers.
    unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) as c_int }
}

/// A started program of the daemon.
struct Started {
    dir: TempDir,
    program: Child,
}

impl Started {
    /// Starts the program, and returns when the daemon is ready.
    fn new(detach: bool) -> Self {
        let started = Self::start(TempDir::new().unwrap(), detach, true);
        started.wait_until_ready();
        started
    }

    /// Starts the program with an upper layer, whose changes are to be discarded.
    fn with_upper() -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("upper")).unwrap();
        fs::write(dir.path().join("upper/change"), "change").unwrap();
        let started = Self::start(dir, false, true);
        started.wait_until_ready();
        started
    }

    /// Starts the program without its layer.
    fn failing(detach: bool) -> Self {
        Self::start(TempDir::new().unwrap(), detach, false)
    }

    /// Starts the program, and returns when the daemon has answered a client.
    fn logging(stderr: PipeWriter) -> Self {
        let started = Self::spawn(TempDir::new().unwrap(), false, true, |program| {
            program.stderr(stderr).env("RUST_BACKTRACE", "1");
        });
        started.wait_until_ready();
        wait_until("a client is answered", || started.path("read").exists());
        started
    }

    fn start(dir: TempDir, detach: bool, with_layer: bool) -> Self {
        Self::spawn(dir, detach, with_layer, |program| {
            program.stderr(Stdio::null());
        })
    }

    fn spawn(dir: TempDir, detach: bool, with_layer: bool, prepare: impl FnOnce(&mut Command)) -> Self {
        if with_layer {
            fs::create_dir(dir.path().join("lower")).unwrap();
        }
        let mut program = Command::new(env::current_exe().unwrap());
        program.arg("serve").arg(dir.path()).args(detach.then_some("detach"));
        prepare(&mut program);
        let program = program.spawn().unwrap();
        Self { dir, program }
    }

    fn wait_until_ready(&self) {
        wait_until("the daemon is ready", || self.path("daemon").exists());
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

    /// Waits for the end of the program, and returns its exit status.
    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the program ends", || {
            status = self.program.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Checks that the daemon has ended, reported `said` as its end, and that its name is removed.
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
