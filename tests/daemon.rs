//! The daemon from its options to its end, and the program around it.

use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use linux_delegate::{Process, kernel};
use overlayfs::daemon::run;
use overlayfs::options::{Arguments, Options};
use redox_scheme::scheme::{IntoTag, Op};
use redox_scheme::{RequestKind, Response, SignalBehavior, Socket};
use syscall::flag::O_WRONLY;
use tempfile::TempDir;

fn arguments(name: &str, lower: &Path) -> Arguments {
    let options = Options { lowers: vec![lower.to_owned()], ..Options::default() };
    Arguments { options, name: name.to_owned(), verbose: false }
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
    let daemon = thread::spawn(move || run(first));
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

    set_init_notify("no number");
    let taken = run(arguments("first", lower.path())).unwrap_err();
    assert!(taken.contains("/scheme/first"), "{taken}");
    let missing = run(arguments("second", &lower.path().join("none"))).unwrap_err();
    assert!(missing.contains(&*lower.path().join("none").to_string_lossy()), "{missing}");
    assert_eq!(kernel::unregister("second"), Err(syscall::Error::new(syscall::ENODEV)));

    let third = arguments("third", lower.path());
    let unheard = thread::spawn(move || run(third));
    while root.scheme_root("third").is_err() {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(root.read_file("/scheme/third/f"), Ok(b"content".to_vec()), "whether or not init hears of it");

    for (name, thread) in [("first", daemon), ("third", unheard)] {
        kernel::stop(name).unwrap();
        assert_eq!(thread.join().unwrap(), Ok(()));
        kernel::unregister(name).unwrap();
    }
}

fn program(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_overlayfs")).args(words).output().unwrap()
}

#[test]
fn the_program_explains_itself() {
    let help = program(&["--help"]);
    assert!(help.status.success());
    assert_eq!(String::from_utf8_lossy(&help.stdout), overlayfs::options::HELP);
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
