//! The daemon from its options to its end, and its program.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, ThreadId};
use std::time::Duration;

use linux_delegate::abi::{self, act_as};
use linux_delegate::{Daemon, Process, kernel};
use overlayfs::daemon::{Init, Stop, Watcher, remove_name, run, serve};
use overlayfs::layer::OsLayer;
use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::options::{Arguments, Options};
use overlayfs::overlay::{Layers, Overlay};
use overlayfs::scheme::OverlayScheme;
use redox_scheme::Socket;
use syscall::error::{EBADF, ENODEV, Error};
use syscall::flag::O_WRONLY;
use tempfile::TempDir;

fn arguments(name: &str, lower: &Path) -> Arguments {
    let options = Options { lowers: vec![lower.to_owned()], ..Options::default() };
    let name = name.to_owned();
    Arguments {
        options,
        name,
        replace: false,
        detach: false,
        hand_to_init: false,
        protected_hardlinks: true,
        verbose: false,
    }
}

/// Returns the state of a daemon that init started: the environment has the message of init.
fn told(value: &str) -> Init {
    static ENVIRONMENT: Mutex<()> = Mutex::new(());
    let _one = ENVIRONMENT.lock().unwrap();
    // SAFETY: no other thread reads the environment here.
    unsafe { std::env::set_var("INIT_NOTIFY", value) };
    // SAFETY: as above.
    let init = unsafe { Init::from_environment() };
    assert_eq!(std::env::var_os("INIT_NOTIFY"), None, "nothing that it starts inherits it");
    init
}

/// Returns the state of a daemon that init did not start.
fn untold() -> Init {
    told("")
}

#[test]
fn a_daemon_from_start_to_end() {
    let lower = TempDir::new().unwrap();
    std::fs::write(lower.path().join("f"), "content").unwrap();
    let root = Process::new(0, 0);

    // A unit that waits for a byte.
    let (init, pipe) = abi::pipe();
    let first = arguments("first", lower.path());
    let daemon = thread::spawn(move || run(&first, told(&pipe.to_string()), drop));
    assert_eq!(init.byte(), Some(0));
    assert!(root.scheme_root("first").is_ok(), "the name is there when init hears of it");
    assert_eq!(init.byte(), None, "the pipe is closed then");
    assert_eq!(root.read_file("/scheme/first/f"), Ok(b"content".to_vec()));

    // Another unit: init registers the scheme that the daemon sends.
    let handed = Arguments { hand_to_init: true, ..arguments("handed", lower.path()) };
    let (init, pipe) = abi::pipe();
    let handing = thread::spawn(move || run(&handed, told(&pipe.to_string()), drop));
    let scheme = init.descriptor().unwrap();
    assert!(root.scheme_root("handed").is_err(), "the name is init's to give");
    libredox::call::register_scheme_to_ns(libredox::call::getns().unwrap(), "handed", scheme).unwrap();
    assert_eq!(root.read_file("/scheme/handed/f"), Ok(b"content".to_vec()));

    let handed = Arguments { hand_to_init: true, ..arguments("unsent", lower.path()) };
    let (file, closed) = (scheme_file(), abi::pipe().1);
    libredox::call::close(closed).unwrap();
    for (value, cause) in [
        ("no number", "INIT_NOTIFY=no number: invalid digit"),
        (&closed.to_string(), "names no open pipe"),
        (&file.to_string(), "names no open pipe"),
    ] {
        let unsent = run(&handed, told(value), drop).unwrap_err();
        assert!(unsent.contains("The scheme unsent cannot be handed to init: ") && unsent.contains(cause), "{unsent}");
    }
    let taken = run(&arguments("first", lower.path()), untold(), drop).unwrap_err();
    assert!(taken.contains("/scheme/first"), "{taken}");
    let missing = run(&arguments("second", &lower.path().join("none")), untold(), drop).unwrap_err();
    assert!(missing.contains(&*lower.path().join("none").to_string_lossy()), "{missing}");
    assert_eq!(kernel::unregister("second"), Err(Error::new(ENODEV)));

    // The descriptor is a pipe that the daemon did not get from init.
    let (init, pipe) = abi::pipe();
    drop(init);
    let (unheard, stop) = start(arguments("third", lower.path()), told(&pipe.to_string()));
    assert_eq!(root.read_file("/scheme/third/f"), Ok(b"content".to_vec()), "whether or not init hears of it");
    let replacing = |name| Arguments { replace: true, ..arguments(name, lower.path()) };
    let alive = run(&replacing("third"), untold(), drop).unwrap_err();
    assert!(alive.contains("/scheme/third") && alive.contains("a dead daemon"), "{alive}");
    stop.stop();
    assert_eq!(unheard.join().unwrap(), (Ok(()), Some(ENODEV)));
    drop(stop);
    assert_eq!(root.read_file("/scheme/third/f"), Err(Error::new(ENODEV)), "its name is left");

    let stale = run(&arguments("third", lower.path()), untold(), drop).unwrap_err();
    assert!(stale.contains("--replace"), "{stale}");
    let (second, stop) = start(replacing("third"), untold());
    assert_eq!(root.read_file("/scheme/third/f"), Ok(b"content".to_vec()));
    remove_name("third");
    assert_eq!(root.read_file("/scheme/third/f"), Ok(b"content".to_vec()), "the name of a living daemon is left alone");
    stop.stop();
    assert_eq!(second.join().unwrap(), (Ok(()), Some(ENODEV)));
    drop(stop);
    remove_name("third");
    assert_eq!(kernel::unregister("third"), Err(Error::new(ENODEV)));

    for (name, thread) in [("first", daemon), ("handed", handing)] {
        kernel::stop(name).unwrap();
        assert_eq!(thread.join().unwrap(), Ok(()));
        kernel::unregister(name).unwrap();
    }
}

/// Returns the number of an open descriptor of a scheme.
fn scheme_file() -> usize {
    Socket::create().unwrap().create_this_scheme_fd(0, 77, O_WRONLY, 0).unwrap()
}

#[test]
fn it_reports_whether_it_owns_the_name() {
    struct Noting(mpsc::Sender<Option<bool>>, mpsc::Sender<Arc<Stop>>);
    impl Watcher for Noting {
        fn owns_name(&mut self, owns: bool) {
            self.0.send(Some(owns)).unwrap();
        }

        fn ready(self, stop: Arc<Stop>) {
            self.0.send(None).unwrap();
            self.1.send(stop).unwrap();
        }
    }
    let lower = TempDir::new().unwrap();
    let other = Socket::create().unwrap();
    redox_scheme::scheme::register_scheme_inner(&other, "whose", 0).unwrap();
    drop(other);
    let (notes, noted) = mpsc::channel();
    let (give, stop) = mpsc::channel();
    let left = arguments("whose", lower.path());
    run(&left, untold(), Noting(notes.clone(), give.clone())).unwrap_err();
    assert_eq!(noted.try_iter().collect::<Vec<_>>(), [Some(true), Some(false)], "a name that was left behind");
    let replacing = Arguments { replace: true, ..left };
    let daemon = thread::spawn(move || run(&replacing, untold(), Noting(notes, give)));
    stop.recv().unwrap().stop();
    assert_eq!(daemon.join().unwrap(), Ok(()));
    let all = [Some(true), Some(false), Some(true), None];
    assert_eq!(noted.try_iter().collect::<Vec<_>>(), all, "the name was replaced");
    kernel::unregister("whose").unwrap();
}

#[test]
fn every_thread_of_it_is_in_an_empty_namespace() {
    let lower = TempDir::new().unwrap();
    for name in 0..64 {
        std::fs::write(lower.path().join(name.to_string()), "").unwrap();
    }
    let counts = Counts::default();
    let threads: Arc<Mutex<HashMap<ThreadId, Option<i32>>>> = Arc::default();
    let seen = threads.clone();
    let layer = OsLayer::open(lower.path(), false).unwrap();
    let layers = Layers { upper: None, work: None, lowers: vec![Counted::new(layer, &counts)] };
    let overlay = Overlay::new(layers).unwrap();
    counts.interpose(move |_| {
        let errno = libredox::Fd::open("/scheme/threads/0", 0, 0).err().map(|error| error.errno());
        seen.lock().unwrap().insert(thread::current().id(), errno);
        // The time is long enough that other threads have to take the next requests.
        thread::sleep(Duration::from_millis(1));
        Ok(())
    });
    let daemon = Daemon::serve(overlay, "threads");
    thread::scope(|scope| {
        for client in 0..4 {
            scope.spawn(move || {
                let root = Process::new(0, 0);
                for file in client * 16..(client + 1) * 16 {
                    root.stat(format!("/scheme/threads/{file}")).unwrap();
                }
            });
        }
    });
    drop(daemon);
    let threads = threads.lock().unwrap();
    assert!(threads.len() > 1, "one thread did it all");
    assert!(threads.values().all(|errno| *errno == Some(ENODEV)), "{threads:?}");
}

#[test]
fn a_service_that_fails_to_start_ends() {
    let lower = TempDir::new().unwrap();
    let layer = OsLayer::open(lower.path(), false).unwrap();
    let overlay = Overlay::new(Layers { upper: None, work: None, lowers: vec![layer] }).unwrap();
    let scheme = OverlayScheme::new(Arc::new(overlay), "unbegun".to_owned());
    act_as(&Process::new(0, 0));
    let refused = serve(scheme.clone(), |_, _, _| Err(Error::new(EBADF)));
    assert_eq!(refused, Err(Error::new(EBADF)));
    // The other threads must not wait for a turn that the panicked thread never passes on.
    let panicked = catch_unwind(AssertUnwindSafe(|| serve::<_, Error>(scheme, |_, _, _| panic!("it cannot begin"))));
    assert!(panicked.is_err());
}

/// The end of a daemon, and the errno of an open by path in its thread afterwards.
type End = (Result<(), String>, Option<i32>);

/// Starts a daemon, and returns when it serves.
fn start(arguments: Arguments, init: Init) -> (thread::JoinHandle<End>, Arc<Stop>) {
    let (ready, wait) = mpsc::channel();
    let daemon = thread::spawn(move || {
        act_as(&Process::new(0, 0));
        let before = libredox::call::getns().unwrap();
        let ended = run(&arguments, init, |stop| ready.send(stop).unwrap());
        let left = libredox::call::fcntl(before, libredox::flag::F_GETFD as usize, 0).map_err(|error| error.errno());
        assert_eq!(left, Err(EBADF), "the namespace that it left is closed");
        (ended, libredox::Fd::open("/scheme/first/f", 0, 0).err().map(|error| error.errno()))
    });
    (daemon, wait.recv().unwrap())
}

fn program(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_overlayfs")).args(words).output().unwrap()
}

#[test]
fn the_program_explains_itself() {
    let help = program(&["--help"]);
    assert!(help.status.success());
    assert_eq!(String::from_utf8_lossy(&help.stdout), overlayfs::usage::overlayfs::PROGRAM.help());
    let version = program(&["--version"]);
    assert!(version.status.success());
    assert_eq!(String::from_utf8_lossy(&version.stdout), format!("overlayfs {}\n", env!("CARGO_PKG_VERSION")));
    for (words, sentence) in [
        (
            &["--lowre", "/", "x"][..],
            "overlayfs: There is no option --lowre. Did you mean --lower? See overlayfs --help.\n",
        ),
        (
            &["--lower", "/", "x"],
            "overlayfs: This is the daemon for Redox, and it needs a Redox kernel. On Linux, overlayfs-fuse mounts the same overlay.\n",
        ),
    ] {
        let refused = program(words);
        assert_eq!(refused.status.code(), Some(1));
        assert_eq!(String::from_utf8_lossy(&refused.stderr), sentence);
    }
}
