//! The daemon from its options to its end, and the program around it.

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, ThreadId};
use std::time::Duration;

use linux_delegate::abi::act_as;
use linux_delegate::{Daemon, Process, kernel};
use overlayfs::daemon::{Stop, remove_name, run};
use overlayfs::layer::OsLayer;
use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::options::{Arguments, Options};
use overlayfs::overlay::{Layers, Overlay};
use redox_scheme::scheme::{IntoTag, Op};
use redox_scheme::{RequestKind, Response, SignalBehavior, Socket};
use syscall::error::{ENODEV, Error};
use syscall::flag::{FobtainFdFlags, O_WRONLY};
use tempfile::TempDir;

fn arguments(name: &str, lower: &Path) -> Arguments {
    let options = Options { lowers: vec![lower.to_owned()], ..Options::default() };
    let name = name.to_owned();
    Arguments { options, name, replace: false, detach: false, hand_to_init: false, verbose: false }
}

/// Sets the variable through which init tells a daemon where it waits.
fn set_init_notify(value: &str) {
    // SAFETY: the only test that starts daemons does this while none runs, and nothing else here asks for the environment.
    unsafe { std::env::set_var("INIT_NOTIFY", value) }
}

#[test]
fn a_daemon_from_start_to_end() {
    let lower = TempDir::new().unwrap();
    std::fs::write(lower.path().join("f"), "content").unwrap();

    // A pipe of init's: the one thing written to it comes out as a request to this socket.
    let init = Socket::create().unwrap();
    let pipe = init.create_this_scheme_fd(0, 77, O_WRONLY, 0).unwrap();
    set_init_notify(&pipe.to_string());
    let first = arguments("first", lower.path());
    let daemon = thread::spawn(move || run(&first, drop));
    let Some(RequestKind::Call(call)) =
        init.next_request(SignalBehavior::Restart).unwrap().map(|request| request.kind())
    else {
        panic!("init was told something else");
    };
    let Ok(Op::Write(write)) = call.op() else {
        panic!("init was told something else");
    };
    assert_eq!((write.fd, write.buf().len()), (77, 1));
    let root = Process::new(0, 0);
    assert!(root.scheme_root("first").is_ok(), "the name is there when init hears of it");
    init.write_response(Response::ok(1, write.into_tag()), SignalBehavior::Restart).unwrap();
    assert_eq!(root.read_file("/scheme/first/f"), Ok(b"content".to_vec()));

    // Another unit, for which init registers what it is sent.
    let handed = Arguments { hand_to_init: true, ..arguments("handed", lower.path()) };
    let handing = thread::spawn(move || run(&handed, drop));
    let Some(RequestKind::SendFd(sent)) =
        init.next_request(SignalBehavior::Restart).unwrap().map(|request| request.kind())
    else {
        panic!("init was sent something else");
    };
    assert_eq!((sent.id(), sent.num_fds()), (77, 1));
    let mut scheme = [0];
    sent.obtain_fd(&init, FobtainFdFlags::empty(), &mut scheme).unwrap();
    assert!(root.scheme_root("handed").is_err(), "the name is init's to give");
    libredox::call::register_scheme_to_ns(libredox::call::getns().unwrap(), "handed", scheme[0]).unwrap();
    init.write_response(Response::new(Ok(1), sent), SignalBehavior::Restart).unwrap();
    assert_eq!(root.read_file("/scheme/handed/f"), Ok(b"content".to_vec()));

    set_init_notify("no number");
    let unsent = run(&Arguments { hand_to_init: true, ..arguments("unsent", lower.path()) }, drop).unwrap_err();
    assert!(unsent.contains("INIT_NOTIFY=no number"), "{unsent}");
    let taken = run(&arguments("first", lower.path()), drop).unwrap_err();
    assert!(taken.contains("/scheme/first"), "{taken}");
    let missing = run(&arguments("second", &lower.path().join("none")), drop).unwrap_err();
    assert!(missing.contains(&*lower.path().join("none").to_string_lossy()), "{missing}");
    assert_eq!(kernel::unregister("second"), Err(Error::new(ENODEV)));

    let (unheard, stop) = start(arguments("third", lower.path()));
    assert_eq!(root.read_file("/scheme/third/f"), Ok(b"content".to_vec()), "whether or not init hears of it");
    let replacing = |name| Arguments { replace: true, ..arguments(name, lower.path()) };
    let alive = run(&replacing("third"), drop).unwrap_err();
    assert!(alive.contains("/scheme/third") && alive.contains("lives"), "{alive}");
    stop.stop();
    assert_eq!(unheard.join().unwrap(), (Ok(()), Some(ENODEV)));
    drop(stop);
    assert_eq!(root.read_file("/scheme/third/f"), Err(Error::new(ENODEV)), "its name is left");

    let stale = run(&arguments("third", lower.path()), drop).unwrap_err();
    assert!(stale.contains("--replace"), "{stale}");
    let (second, stop) = start(replacing("third"));
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

#[test]
fn every_thread_of_it_is_in_the_null_namespace() {
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
        let errno = libredox::call::getns().err().map(|error| error.errno());
        seen.lock().unwrap().insert(thread::current().id(), errno);
        // Long enough that others have to take the next requests.
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

/// How a daemon ended, and the errno that an attempt to open something by a path got in its thread afterwards.
type End = (Result<(), String>, Option<i32>);

/// Starts a daemon, and comes back when it serves.
fn start(arguments: Arguments) -> (thread::JoinHandle<End>, Arc<Stop>) {
    let (ready, wait) = mpsc::channel();
    let daemon = thread::spawn(move || {
        act_as(&Process::new(0, 0));
        let ended = run(&arguments, |stop| ready.send(stop).unwrap());
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
            "overlayfs: This is the daemon for Redox, which needs a Redox kernel to serve. On Linux, overlayfs-fuse mounts the same overlay.\n",
        ),
    ] {
        let refused = program(words);
        assert_eq!(refused.status.code(), Some(1));
        assert_eq!(String::from_utf8_lossy(&refused.stderr), sentence);
    }
}
