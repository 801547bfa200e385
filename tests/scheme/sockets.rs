//! Sockets that a client binds to a name in the overlay, and connects to by that name.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libredox::protocol::{FsCall, SocketCall};
use linux_delegate::{Fd, Process, kernel};
use redox_scheme::scheme::{SchemeState, SchemeSync, register_sync_scheme};
use redox_scheme::{CallerCtx, OpenResult, RequestKind, SignalBehavior, Socket};
use syscall::data::Stat;
use syscall::error::{
    EACCES, EADDRINUSE, EAGAIN, EBADF, ECONNREFUSED, EINTR, EINVAL, EISDIR, ENFILE, ENODEV, ENOENT, ENOTDIR,
    EOPNOTSUPP, EROFS, Error, Result,
};
use syscall::flag::{MODE_SOCK, MODE_TYPE, O_CREAT, O_DIRECTORY, O_RDONLY, O_RDWR, O_STAT, O_WRONLY};
use syscall::schemev2::NewFdFlags;

use crate::layers::FULL;
use crate::support::{Setup, ann, bob, errno, eve, refused, root};

/// The scheme of the sockets, as far as a filesystem uses it.
struct Net {
    name: String,
    shared: Arc<Mutex<Sockets>>,
    daemon: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Sockets {
    /// The path of each bound socket.
    bound: HashMap<usize, String>,
    /// Pairs of the connecting and the bound socket.
    connections: Vec<(usize, usize)>,
    closed: Vec<usize>,
    /// Blocks the answer to the next request of a filesystem.
    stuck: Option<mpsc::Receiver<()>>,
}

struct NetScheme {
    name: String,
    last: usize,
    shared: Arc<Mutex<Sockets>>,
}

/// The base of the tokens of sockets.
const TOKEN: u64 = 0x1234_5678_0000_0000;

impl NetScheme {
    /// Blocks a request of a filesystem if `stuck` is set.
    fn wait(&self) {
        let stuck = self.shared.lock().unwrap().stuck.take();
        if let Some(stuck) = stuck {
            let _ = stuck.recv();
        }
    }
}

impl SchemeSync for NetScheme {
    fn scheme_root(&mut self) -> Result<usize> {
        Ok(0)
    }

    fn openat(&mut self, _: usize, path: &str, flags: usize, _: u32, _: &CallerCtx) -> Result<OpenResult> {
        if !path.is_empty() || flags & O_CREAT == 0 {
            return Err(Error::new(EINVAL));
        }
        self.last += 1;
        Ok(OpenResult::ThisScheme { number: self.last, flags: NewFdFlags::empty() })
    }

    fn fpath(&mut self, id: usize, buf: &mut [u8], _: &CallerCtx) -> Result<usize> {
        self.wait();
        let shared = self.shared.lock().unwrap();
        let path = format!("/scheme/{}/{}", self.name, shared.bound.get(&id).map_or("", |path| path.as_str()));
        buf[..path.len()].copy_from_slice(path.as_bytes());
        Ok(path.len())
    }

    fn fstat(&mut self, id: usize, stat: &mut Stat, _: &CallerCtx) -> Result<()> {
        *stat = Stat { st_ino: id as u64, st_mode: MODE_SOCK | 0o777, ..Stat::default() };
        Ok(())
    }

    fn call(&mut self, id: usize, payload: &mut [u8], metadata: &[u64], _: &CallerCtx) -> Result<usize> {
        if metadata[0] == SocketCall::GetToken as u64 {
            self.wait();
        }
        let mut shared = self.shared.lock().unwrap();
        match SocketCall::try_from_raw(metadata[0] as usize) {
            Some(SocketCall::Bind) => {
                shared.bound.insert(id, String::from_utf8(payload.to_vec()).unwrap());
                Ok(0)
            }
            Some(SocketCall::Unbind) => {
                shared.bound.remove(&id);
                Ok(0)
            }
            Some(SocketCall::GetToken) if shared.bound.contains_key(&id) => {
                payload[..8].copy_from_slice(&(TOKEN + id as u64).to_le_bytes());
                Ok(8)
            }
            Some(SocketCall::Connect) => {
                let token = u64::from_le_bytes(payload[..8].try_into().unwrap());
                shared.connections.push((id, (token - TOKEN) as usize));
                Ok(0)
            }
            _ => Err(Error::new(EINVAL)),
        }
    }

    fn on_close(&mut self, id: usize) {
        self.shared.lock().unwrap().closed.push(id);
    }
}

impl Net {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("net{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let shared: Arc<Mutex<Sockets>> = Arc::default();
        let (ready, wait) = mpsc::channel();
        let mut scheme = NetScheme { name: name.clone(), last: 0, shared: shared.clone() };
        let daemon = std::thread::spawn(move || {
            let socket = Socket::create().unwrap();
            register_sync_scheme(&socket, &scheme.name.clone(), &mut scheme).unwrap();
            ready.send(()).unwrap();
            let mut state = SchemeState::new();
            while let Some(request) = socket.next_request(SignalBehavior::Restart).unwrap() {
                match request.kind() {
                    RequestKind::Call(call) => {
                        let response = call.handle_sync(&mut scheme, &mut state);
                        let _ = socket.write_response(response, SignalBehavior::Restart);
                    }
                    RequestKind::OnClose { id } => scheme.on_close(id),
                    _ => {}
                }
            }
        });
        wait.recv().unwrap();
        Self { name, shared, daemon: Some(daemon) }
    }

    fn socket(&self, who: &Process) -> Fd {
        who.open(format!("/scheme/{}", self.name), O_RDWR | O_CREAT, 0).unwrap()
    }

    fn connections(&self) -> Vec<(usize, usize)> {
        self.shared.lock().unwrap().connections.clone()
    }

    /// Blocks the next request, until the caller drops the sender that this returns.
    fn hold_back(&self) -> mpsc::Sender<()> {
        let (go_on, stuck) = mpsc::channel();
        self.shared.lock().unwrap().stuck = Some(stuck);
        go_on
    }

    /// Waits until a request is blocked.
    fn wait_until_asked(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.shared.lock().unwrap().stuck.is_some() {
            assert!(Instant::now() < deadline, "nothing is asked about the sockets");
            std::thread::yield_now();
        }
    }

    /// Waits until the last descriptor of a socket is closed.
    fn wait_for_close(&self, id: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.shared.lock().unwrap().closed.contains(&id) {
            assert!(Instant::now() < deadline, "the socket is still held");
            std::thread::yield_now();
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = kernel::stop(&self.name);
        let _ = kernel::unregister(&self.name);
        if let Some(daemon) = self.daemon.take() {
            daemon.join().unwrap();
        }
    }
}

fn setup() -> Setup {
    Setup::new(|lower| {
        lower.dir("run", 0o775);
        lower.file("run/file", 0o666);
        lower.dir("run/dir", 0o755);
    })
}

#[test]
fn a_socket_is_bound_and_connected_to_by_its_name() {
    let (setup, net) = (setup(), Net::new());
    let listener = net.socket(&ann());
    ann().bind(&listener, setup.path("run/socket")).unwrap();
    let stat = bob().lstat(setup.path("run/socket")).unwrap();
    assert_eq!(stat.st_mode & MODE_TYPE, MODE_SOCK);
    assert_eq!((stat.st_mode & 0o7777, stat.st_uid, stat.st_gid), (0o777, 1000, 100));
    assert!(setup.layers.upper_is_socket("run/socket"));

    let client = net.socket(&eve());
    eve().connect(&client, setup.path("run/socket")).unwrap();
    assert_eq!(net.connections(), [(client.id(), listener.id())]);

    root().rename(setup.path("run/socket"), setup.path("moved")).unwrap();
    root().link(setup.path("moved"), setup.path("linked")).unwrap();
    root().unlink(setup.path("moved")).unwrap();
    let other = net.socket(&bob());
    bob().connect(&other, setup.path("linked")).unwrap();
    assert_eq!(net.connections()[1], (other.id(), listener.id()));
    assert_eq!(errno(bob().connect(&other, setup.path("run/socket"))), ENOENT);
}

#[test]
fn the_overlay_holds_a_socket_until_its_last_name_is_gone() {
    let (setup, net) = (setup(), Net::new());
    let bind = |path: &str| {
        let socket = net.socket(&ann());
        ann().bind(&socket, setup.path(path)).unwrap();
        socket.id()
    };
    let client = net.socket(&bob());

    let first = bind("run/one");
    bob().connect(&client, setup.path("run/one")).unwrap();
    ann().unlink(setup.path("run/one")).unwrap();
    net.wait_for_close(first);

    let second = bind("run/one");
    assert_ne!(first, second);
    ann().write_file(setup.path("run/new"), "").unwrap();
    ann().rename(setup.path("run/new"), setup.path("run/one")).unwrap();
    net.wait_for_close(second);
    assert_eq!(errno(bob().connect(&client, setup.path("run/file"))), ECONNREFUSED);

    let third = bind("run/two");
    let open = setup.open(&bob(), "run/two", O_RDWR).unwrap();
    ann().unlink(setup.path("run/two")).unwrap();
    net.wait_for_close(third);
    assert_eq!(open.call(&mut [0; 16], &[FsCall::Connect as u64]), refused(ECONNREFUSED));

    let last = bind("run/three");
    assert!(!net.shared.lock().unwrap().closed.contains(&last));
    drop(setup);
    net.wait_for_close(last);
}

/// Each bound socket needs a descriptor of the daemon, so their number has a limit. It is below the
/// limit of descriptors.
#[test]
fn sockets_have_a_limit() {
    let (setup, net) = (setup(), Net::new());
    let mut bound = Vec::new();
    let refusal = loop {
        let path = setup.path(&format!("run/{}", bound.len()));
        match ann().bind(&net.socket(&ann()), &path) {
            Ok(()) => bound.push(path),
            Err(error) => break error,
        }
        assert!(bound.len() < 5000, "there is no end");
    };
    assert_eq!(refusal, Error::new(ENFILE));
    ann().write_file(setup.path("run/new"), "goes on").unwrap();
    ann().unlink(&bound[7]).unwrap();
    ann().bind(&net.socket(&ann()), &bound[7]).unwrap();
}

#[test]
fn sockets_that_are_not_bound_refuse() {
    let (setup, net) = (setup(), Net::new());
    if FULL {
        ann().mknod(setup.path("run/plain"), u32::from(MODE_SOCK) | 0o666).unwrap();
    }
    let client = net.socket(&ann());
    for path in FULL.then_some("run/plain").into_iter().chain(["run/file"]) {
        assert_eq!(errno(ann().connect(&client, setup.path(path))), ECONNREFUSED, "{path}");
    }
    assert_eq!(errno(ann().connect(&client, setup.path("run/dir"))), EISDIR);
    assert_eq!(errno(ann().connect(&client, setup.path("run/none"))), ENOENT);
}

#[test]
fn bind_and_connect_need_permission() {
    let (setup, net) = (setup(), Net::new());
    let socket = net.socket(&eve());
    assert_eq!(errno(eve().bind(&socket, setup.path("run/socket"))), EACCES);
    assert!(net.shared.lock().unwrap().bound.is_empty(), "it was unbound again");
    assert!(!setup.exists("run/socket"));

    ann().bind(&net.socket(&ann()), setup.path("run/socket")).unwrap();
    ann().chmod(setup.path("run/socket"), 0o754).unwrap();
    assert_eq!(errno(eve().connect(&socket, setup.path("run/socket"))), EACCES);
    assert_eq!(errno(bob().connect(&socket, setup.path("run/socket"))), EACCES);
    let mut token = [0; 16];
    for flags in [O_STAT, O_RDONLY] {
        let open = setup.open(&bob(), "run/socket", flags).unwrap();
        assert_eq!(open.call(&mut token, &[FsCall::Connect as u64]), refused(EACCES));
    }
    ann().connect(&socket, setup.path("run/socket")).unwrap();
    let open = setup.open(&ann(), "run/socket", O_WRONLY).unwrap();
    assert_eq!(open.call(&mut token, &[FsCall::Connect as u64]), Ok(8));
    assert_eq!(open.call(&mut token, &[77]), refused(EOPNOTSUPP));
    assert_eq!(open.call(&mut token[..4], &[FsCall::Connect as u64]), refused(EINVAL), "it does not fit");
    assert_eq!(open.call(&mut token, &[]), Ok(8), "no word is 0, which means connect");
    assert_eq!(open.write(b"x"), refused(EINVAL));
    assert_eq!(open.read(&mut token), refused(EBADF));
}

#[test]
fn names_that_are_taken_or_wrong() {
    let (setup, net) = (setup(), Net::new());
    let socket = net.socket(&ann());
    for path in ["run/file", "run/dir"] {
        assert_eq!(errno(ann().bind(&socket, setup.path(path))), EADDRINUSE, "{path}");
    }
    ann().bind(&socket, setup.path("run/socket")).unwrap();
    assert_eq!(errno(ann().bind(&net.socket(&ann()), setup.path("run/socket"))), EADDRINUSE);
    assert_eq!(errno(ann().bind(&net.socket(&ann()), setup.path("run/.wh.x"))), EINVAL);

    let dir = setup.open(&ann(), "run", O_RDONLY | O_DIRECTORY).unwrap();
    assert_eq!(dir.send(net.socket(&ann())), refused(EINVAL), "it has no path");
    let file = setup.open(&ann(), "run/file", O_RDWR).unwrap();
    assert_eq!(file.send(net.socket(&ann())), refused(ENOTDIR));

    let setup = Setup::read_only(|lower| lower.dir("run", 0o777));
    assert_eq!(errno(ann().bind(&net.socket(&ann()), setup.path("run/socket"))), EROFS);
}

#[test]
fn a_socket_takes_the_place_of_a_removed_lower_name() {
    let (setup, net) = (setup(), Net::new());
    ann().unlink(setup.path("run/file")).unwrap();
    let listener = net.socket(&ann());
    ann().bind(&listener, setup.path("run/file")).unwrap();
    let client = net.socket(&bob());
    bob().connect(&client, setup.path("run/file")).unwrap();
    assert_eq!(net.connections(), [(client.id(), listener.id())]);
}

#[test]
fn a_descriptor_of_the_overlay_itself_is_refused() {
    let setup = setup();
    std::thread::scope(|scope| {
        for client in 0..8 {
            let setup = &setup;
            scope.spawn(move || {
                let who = ann();
                let name = format!("own-{client}");
                let path = setup.path(&format!("run/dir/{name}"));
                who.write_file(&path, "").unwrap();
                let run = setup.open(&who, "run", O_RDONLY | O_DIRECTORY).unwrap();
                assert_eq!(run.send(who.open(&path, O_RDWR, 0).unwrap()), refused(EINVAL));
                assert!(!setup.exists(&format!("run/{name}")));
            });
        }
    });
    assert!(setup.is_alive());
}

#[test]
fn a_scheme_that_does_not_answer_delays_its_caller_only() {
    let (setup, net, stuck) = (setup(), Net::new(), Net::new());
    for net in [&net, &stuck] {
        ann().bind(&net.socket(&ann()), setup.path(&format!("run/{}", net.name))).unwrap();
    }
    let run = setup.open(&ann(), "run", O_RDONLY | O_DIRECTORY).unwrap();
    let late = stuck.socket(&ann());
    late.call(&mut b"run/late".to_vec(), &[SocketCall::Bind as u64]).unwrap();
    let listener = setup.open(&ann(), &format!("run/{}", stuck.name), O_RDWR).unwrap();
    let go_on = stuck.hold_back();
    std::thread::scope(|scope| {
        let binding = scope.spawn(|| run.send(late));
        let connecting = scope.spawn(|| listener.call(&mut [0; 16], &[FsCall::Connect as u64]));
        stuck.wait_until_asked();
        for round in 0..10 {
            ann().bind(&net.socket(&ann()), setup.path(&format!("run/{round}"))).unwrap();
            ann().connect(&net.socket(&ann()), setup.path(&format!("run/{}", net.name))).unwrap();
            assert_eq!(setup.content("run/file"), "run/file");
        }
        assert!(!binding.is_finished() && !connecting.is_finished());
        drop(go_on);
        assert_eq!((binding.join().unwrap(), connecting.join().unwrap()), (Ok(1), Ok(8)));
    });
    assert!(setup.exists("run/late"));
}

#[test]
fn a_caller_of_such_a_scheme_can_be_cancelled() {
    let (setup, net) = (setup(), Net::new());
    ann().bind(&net.socket(&ann()), setup.path("run/socket")).unwrap();
    let who = ann();
    let open = setup.open(&who, "run/socket", O_RDWR).unwrap();
    let go_on = net.hold_back();
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| open.call(&mut [0; 16], &[FsCall::Connect as u64]));
        net.wait_until_asked();
        kernel::interrupt(setup.name(), who.pid()).unwrap();
        assert_eq!(connecting.join().unwrap(), refused(EINTR));
    });
    drop(go_on);
    ann().connect(&net.socket(&ann()), setup.path("run/socket")).unwrap();
}

#[test]
fn a_caller_of_such_a_scheme_does_not_delay_the_end() {
    let (setup, net) = (setup(), Net::new());
    let run = setup.open(&ann(), "run", O_RDONLY | O_DIRECTORY).unwrap();
    let socket = net.socket(&ann());
    let id = socket.id();
    socket.call(&mut b"run/socket".to_vec(), &[SocketCall::Bind as u64]).unwrap();
    let go_on = net.hold_back();
    std::thread::scope(|scope| {
        let binding = scope.spawn(|| run.send(socket));
        net.wait_until_asked();
        let layers = setup.end();
        assert_eq!(binding.join().unwrap(), refused(ENODEV));
        drop(go_on);
        net.wait_for_close(id);
        assert!(!Setup::serve(layers.mount(true), layers).exists("run/socket"));
    });
}

#[test]
fn one_user_cannot_have_many_threads() {
    let (setup, net) = (setup(), Net::new());
    ann().bind(&net.socket(&ann()), setup.path("run/socket")).unwrap();
    let (who, other) = (ann(), bob());
    let open = |who: &Process| setup.open(who, "run/socket", O_RDWR).unwrap();
    let connect = |open: &Fd| open.call(&mut [0; 16], &[FsCall::Connect as u64]);
    let anns = open(&who);
    let go_on = net.hold_back();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..40).map(|_| scope.spawn(|| connect(&anns))).collect();
        // A cancelled request keeps its thread.
        let deadline = Instant::now() + Duration::from_secs(10);
        while waiting.iter().filter(|connecting| connecting.is_finished()).count() < 24 {
            assert!(Instant::now() < deadline, "more than 16 wait");
            std::thread::yield_now();
        }
        net.wait_until_asked();
        kernel::interrupt(setup.name(), who.pid()).unwrap();
        let mut answers: Vec<_> = waiting.into_iter().map(|connecting| connecting.join().unwrap()).collect();
        answers.sort_by_key(|answer| answer.map_err(|error| error.errno));
        let expected = [(EINTR, 16), (EAGAIN, 24)].into_iter().flat_map(|(errno, count)| vec![refused(errno); count]);
        assert_eq!(answers, expected.collect::<Vec<_>>());
        assert_eq!(connect(&anns), refused(EAGAIN));
        let bobs = open(&other);
        let connecting = scope.spawn(move || connect(&bobs));
        drop(go_on);
        assert_eq!(connecting.join().unwrap(), Ok(8), "another user");
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    while connect(&anns) != Ok(8) {
        assert!(Instant::now() < deadline, "the threads have not ended");
    }
}

#[test]
fn a_socket_whose_scheme_is_gone() {
    let setup = setup();
    let net = Net::new();
    let listener = net.socket(&ann());
    ann().bind(&listener, setup.path("run/socket")).unwrap();
    drop(net);
    let open = setup.open(&bob(), "run/socket", O_RDWR).unwrap();
    assert_eq!(open.call(&mut [0; 16], &[FsCall::Connect as u64]), refused(ENODEV));
    ann().unlink(setup.path("run/socket")).unwrap();
    assert_eq!(setup.open(&ann(), "run/file", O_RDWR).unwrap().call(&mut [], &[1]), refused(EOPNOTSUPP));
}
