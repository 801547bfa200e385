//! Several requests at once. A slow request of one client delays no other client, and can be
//! cancelled.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use linux_delegate::client::Lock;
use linux_delegate::{Fd, Process, kernel};
use overlayfs::layer::counted::{Counts, Method};
use syscall::error::{EINTR, ENODEV, Error};
use syscall::flag::{O_RDWR, O_STAT, O_WRONLY};

use crate::layers::Layers;
use crate::support::{Setup, bob, names, refused, root};

/// Larger than the piece that a copy-up copies before it checks for a cancellation.
const LARGE: u64 = 40 << 20;

/// A setup with a large lower file `large` and a small one. The copy-up of `large` waits at the
/// gate after its first piece.
struct Gated {
    setup: Setup,
    /// Reports a copy-up at the gate.
    arrived: mpsc::Receiver<()>,
    /// Opens the gate once.
    gate: mpsc::Sender<()>,
}

impl Gated {
    fn new() -> Self {
        let layers = Layers::new(|lower| {
            lower.file_with("large", &vec![7; LARGE as usize], 0o644, 0, 0);
            lower.file("small", 0o644);
        });
        let (overlay, counts) = layers.counted();
        let (arrive, arrived) = mpsc::channel();
        let (gate, opened) = mpsc::channel();
        wait_after_first_piece(&counts, arrive, opened);
        Self { setup: Setup::serve(overlay, layers), arrived, gate }
    }

    /// Starts a write to the large file, and returns when its copy-up is at the gate.
    fn write_to_large(&self, who: &Process) -> thread::JoinHandle<Result<usize, Error>> {
        let file = self.setup.open(who, "large", O_WRONLY).unwrap();
        let writing = thread::spawn(move || file.write_at(b"x", 0));
        self.arrived.recv().unwrap();
        writing
    }
}

fn wait_after_first_piece(counts: &Counts, arrive: mpsc::Sender<()>, opened: mpsc::Receiver<()>) {
    let (pieces, opened) = (AtomicUsize::new(0), std::sync::Mutex::new(opened));
    counts.interpose(move |method| {
        if method == Method::CopyRange && pieces.fetch_add(1, Ordering::Relaxed) == 1 {
            arrive.send(()).unwrap();
            opened.lock().unwrap().recv().unwrap();
        }
        Ok(())
    });
}

#[test]
fn a_copy_up_delays_no_request_for_another_file() {
    let gated = Gated::new();
    let setup = &gated.setup;
    let writing = gated.write_to_large(&Process::new(0, 0));
    // The daemon answers all these requests while the copy-up waits.
    let other = Process::new(0, 0);
    assert_eq!(other.stat(setup.path("small")).unwrap().st_size, 5);
    assert_eq!(other.stat(setup.path("large")).unwrap().st_size, LARGE);
    assert_eq!(setup.content("small"), "small");
    other.write_file(setup.path("new"), "new").unwrap();
    other.rename(setup.path("new"), setup.path("newer")).unwrap();
    other.write_file(setup.path("small"), "changed").unwrap();
    let large = setup.open(&other, "large", syscall::O_RDONLY).unwrap();
    assert_eq!((large.read_at(&mut [0; 8], LARGE - 4), large.fsize()), (Ok(4), Ok(LARGE)));
    assert_eq!(names(other.read_dir(setup.path("")).unwrap()), ["large", "newer", "small"]);
    other.unlink(setup.path("newer")).unwrap();
    assert!(!writing.is_finished());
    gated.gate.send(()).unwrap();
    assert_eq!(writing.join().unwrap(), Ok(1));
    assert_eq!(setup.layers.upper_content("large").len() as u64, LARGE);
}

#[test]
fn a_copy_up_for_a_new_name_delays_no_other_request() {
    let gated = Gated::new();
    let setup = &gated.setup;
    let file = setup.open(&root(), "large", O_STAT).unwrap();
    let path = setup.path("linked");
    let linking = thread::spawn(move || file.flink(path));
    gated.arrived.recv().unwrap();
    let other = Process::new(0, 0);
    other.write_file(setup.path("new"), "new").unwrap();
    other.rename(setup.path("new"), setup.path("newer")).unwrap();
    setup.open(&other, "small", O_STAT).unwrap().fchmod(0o600).unwrap();
    assert!(!linking.is_finished());
    gated.gate.send(()).unwrap();
    linking.join().unwrap().unwrap();
    assert_eq!(setup.layers.upper_content("linked").len() as u64, LARGE);
}

#[test]
fn three_slow_reads_delay_no_other_request() {
    let names = ["a", "b", "c"];
    let layers = Layers::new(|lower| names.iter().for_each(|name| lower.file(name, 0o644)));
    let (overlay, counts) = layers.counted();
    let (arrive, arrived) = mpsc::channel();
    let (gate, opened) = mpsc::channel::<()>();
    let opened = std::sync::Mutex::new(opened);
    counts.interpose(move |method| {
        if method == Method::ReadAt {
            arrive.send(()).unwrap();
            // An error says that the gate is open for all.
            let _ = opened.lock().unwrap().recv();
        }
        Ok(())
    });
    let setup = Setup::serve(overlay, layers);
    let reading = names.map(|name| {
        let file = setup.open(&root(), name, syscall::O_RDONLY).unwrap();
        let reading = thread::spawn(move || file.read_at(&mut [0; 8], 0));
        arrived.recv().unwrap();
        reading
    });
    assert_eq!(root().stat(setup.path("a")).unwrap().st_size, 1);
    assert!(reading.iter().all(|reading| !reading.is_finished()));
    drop(gate);
    assert_eq!(reading.map(|reading| reading.join().unwrap()), [Ok(1); 3]);
}

/// The timeout for a request that should go on.
const PATIENCE: Duration = Duration::from_secs(20);
/// A request that should wait does so for this time.
const PAUSE: Duration = Duration::from_millis(400);

/// The directories `here`, `elsewhere` and `sticky`. The last one has two files of bob.
struct Dirs {
    setup: Setup,
    here: Fd,
    sticky: Fd,
    /// `sticky/file`.
    file: Fd,
}

/// A setup where the next call of one method blocks, once the flag `armed` is set.
struct Stuck {
    dirs: Dirs,
    armed: Arc<AtomicBool>,
    arrived: mpsc::Receiver<()>,
    gate: mpsc::Sender<()>,
}

impl Stuck {
    fn new(method: Method) -> Self {
        let layers = Layers::new(|lower| lower.file("of-lower", 0o644));
        let (overlay, counts) = layers.counted();
        let ((arrive, arrived), (gate, opened)) = (mpsc::channel(), mpsc::channel::<()>());
        let opened = std::sync::Mutex::new(opened);
        let armed = Arc::new(AtomicBool::new(false));
        let is_armed = armed.clone();
        counts.interpose(move |called| {
            if called == method && is_armed.swap(false, Ordering::Relaxed) {
                arrive.send(()).unwrap();
                opened.lock().unwrap().recv().unwrap();
            }
            Ok(())
        });
        let setup = Setup::serve(overlay, layers);
        let who = root();
        for dir in ["here", "elsewhere", "sticky"] {
            who.mkdir(setup.path(dir)).unwrap();
            for file in ["file", "other", "old"] {
                who.write_file(setup.path(&format!("{dir}/{file}")), file).unwrap();
            }
        }
        let [here, sticky, file] = ["here", "sticky", "sticky/file"].map(|path| attributes(&setup, path));
        sticky.fchmod(0o1777).unwrap();
        file.fchown(1001, 100).unwrap();
        file.fstat().unwrap();
        // A change of its owner may drop a file capability of the lower layer. So a permission check
        // must ask the layer for the attributes again.
        who.rename(setup.path("of-lower"), setup.path("sticky/other")).unwrap();
        attributes(&setup, "sticky/other").fchown(1001, 100).unwrap();
        Self { dirs: Dirs { setup, here, sticky, file }, armed, arrived, gate }
    }

    /// Blocks the operation `stuck`, tries each of the others, and returns the names of those that
    /// wait for this time.
    fn waiting<'o>(&self, time: Duration, stuck: Operation, others: &[(&'o str, Operation)]) -> Vec<&'o str> {
        let dirs = &self.dirs;
        thread::scope(|scope| {
            self.armed.store(true, Ordering::Relaxed);
            let stuck = scope.spawn(move || stuck(dirs));
            self.arrived.recv_timeout(PATIENCE).expect("it does not get stuck");
            let mut waiting = Vec::new();
            for (what, other) in others {
                let (ended, end) = mpsc::channel();
                scope.spawn(move || {
                    other(dirs);
                    // After the timeout the receiver is gone.
                    let _ = ended.send(());
                });
                if end.recv_timeout(time).is_err() {
                    waiting.push(*what);
                }
            }
            assert!(!stuck.is_finished());
            self.gate.send(()).unwrap();
            waiting
        })
    }
}

type Operation = fn(&Dirs);

fn attributes(setup: &Setup, path: &str) -> Fd {
    setup.open(&root(), path, O_STAT).unwrap()
}

#[test]
fn a_stuck_change_delays_no_request_in_another_directory() {
    let elsewhere: [(&str, Operation); 9] = [
        ("create", |it| root().write_file(it.setup.path("elsewhere/new"), "new").unwrap()),
        ("truncate", |it| root().write_file(it.setup.path("elsewhere/file"), "new").unwrap()),
        ("mkdir", |it| root().mkdir(it.setup.path("elsewhere/dir")).unwrap()),
        ("symlink", |it| root().symlink("file", it.setup.path("elsewhere/link")).unwrap()),
        ("chmod", |it| attributes(&it.setup, "elsewhere/file").fchmod(0o600).unwrap()),
        ("chown", |it| attributes(&it.setup, "elsewhere/file").fchown(1000, 100).unwrap()),
        ("chmod of the directory", |it| attributes(&it.setup, "elsewhere").fchmod(0o755).unwrap()),
        ("link", |it| attributes(&it.setup, "elsewhere/other").flink(it.setup.path("elsewhere/linked")).unwrap()),
        ("unlink", |it| root().unlink(it.setup.path("elsewhere/old")).unwrap()),
    ];
    let changes: [(Method, Operation); 3] = [
        (Method::CreateFile, |it| root().write_file(it.setup.path("here/new"), "new").unwrap()),
        (Method::Unlink, |it| root().unlink(it.setup.path("here/file")).unwrap()),
        (Method::SetMode, |it| it.here.fchmod(0o700).unwrap()),
    ];
    for (method, change) in changes {
        let waiting = Stuck::new(method).waiting(PATIENCE, change, &elsewhere);
        assert!(waiting.is_empty(), "{waiting:?} wait for {}", method.name());
    }
}

#[test]
fn a_check_holds_until_its_change_is_made() {
    let others: [(&str, Operation); 2] = [
        ("chmod of the directory", |it| it.sticky.fchmod(0o755).unwrap()),
        ("chown of the victim", |it| it.file.fchown(1000, 100).unwrap()),
    ];
    for other in others {
        let change: Operation = |it| bob().rename(it.setup.path("sticky/file"), it.setup.path("sticky/other")).unwrap();
        // Bob may move his file. The daemon checks whether the other file is bob's too.
        let waiting = Stuck::new(Method::Stat).waiting(PAUSE, change, &[other]);
        assert_eq!(waiting, [other.0]);
    }
}

#[test]
fn an_interrupted_copy_up_leaves_nothing() {
    let gated = Gated::new();
    let setup = &gated.setup;
    let writer = Process::new(0, 0);
    let writing = gated.write_to_large(&writer);
    kernel::interrupt(setup.name(), writer.pid()).unwrap();
    // The daemon handles the interruption before any later request.
    assert!(setup.is_alive());
    gated.gate.send(()).unwrap();
    assert_eq!(writing.join().unwrap(), refused(EINTR));
    let left = setup.layers.upper_names("");
    assert!(!left.iter().any(|name| name == "large"), "{left:?}");
    assert_eq!(setup.layers.upper_names(".wh..wh.work"), ["numbers", "record"]);
    let large = setup.open(&writer, "large", O_RDWR).unwrap();
    let mut byte = [0];
    assert_eq!((large.read_at(&mut byte, LARGE - 1), byte), (Ok(1), [7]));
    assert_eq!(large.write_at(b"x", LARGE - 1), Ok(1), "the next try is not cancelled");
    assert_eq!(setup.layers.upper_content("large")[LARGE as usize - 2..], [7, b'x']);
}

#[test]
fn an_interruption_that_comes_too_late_changes_nothing() {
    let setup = Setup::new(|lower| lower.file("a", 0o644));
    let who = root();
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            for _ in 0..500 {
                assert_eq!(who.read_file(setup.path("a")), Ok(b"a".to_vec()));
            }
        });
        while !reading.is_finished() {
            kernel::interrupt(setup.name(), who.pid()).unwrap();
        }
    });
}

#[test]
fn a_lock_is_free_when_its_holder_has_closed() {
    let setup = Setup::new(|lower| lower.file("a", 0o666));
    let lock = Lock { start: 0, len: 0, exclusive: true, of_file: false };
    for _ in 0..300 {
        for who in [Process::new(0, 0), Process::new(0, 0)] {
            let file = setup.open(&who, "a", O_RDWR).unwrap();
            file.lock(lock).unwrap();
        }
    }
}

#[test]
fn concurrent_clients_lose_no_change() {
    let setup = &Setup::new(|lower| {
        lower.dir("d", 0o777);
        lower.file("d/shared", 0o666);
    });
    thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || {
                let who = Process::new(1000 + number, 100);
                for round in 0..100 {
                    let (own, moved) = (setup.path(&format!("d/{number}")), setup.path(&format!("d/moved-{number}")));
                    who.write_file(&own, format!("{number} {round}")).unwrap();
                    who.rename(&own, &moved).unwrap();
                    assert_eq!(who.read_file(&moved), Ok(format!("{number} {round}").into_bytes()));
                    assert_eq!(who.stat(&moved).unwrap().st_uid, 1000 + number);
                    let shared = setup.open(&who, "d/shared", O_RDWR).unwrap();
                    shared.write_at(&[b'0' + number as u8], u64::from(number)).unwrap();
                    who.unlink(&moved).unwrap();
                }
            });
        }
    });
    assert_eq!(setup.content("d/shared")[..4], *"0123");
    assert_eq!(names(root().read_dir(setup.path("d")).unwrap()), ["shared"]);
}

#[test]
fn a_stopped_daemon_answers_the_requests_it_has() {
    let gated = Gated::new();
    let setup = &gated.setup;
    let writing = gated.write_to_large(&Process::new(0, 0));
    let known = setup.open(&root(), "small", O_STAT).unwrap();
    setup.stop();
    // The daemon may still answer this request. Otherwise the request fails when the socket is
    // closed.
    let late = thread::spawn(move || known.fstat().map(drop));
    assert!(!writing.is_finished());
    gated.gate.send(()).unwrap();
    assert_eq!(writing.join().unwrap(), Ok(1));
    assert!(matches!(late.join().unwrap(), Ok(()) | Err(Error { errno: ENODEV })));
    assert_eq!(setup.open(&root(), "small", O_STAT).map(drop), refused(ENODEV));
}
