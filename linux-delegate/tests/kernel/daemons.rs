//! The daemon's side: registration, capabilities, the end of a socket, and daemons that die.

use std::time::Duration;

use crate::toy::Daemon;
use linux_delegate::{Process, kernel};
use redox_scheme::{RequestKind, Response, SignalBehavior, Socket};
use syscall::error::{EAGAIN, EBADFD, EEXIST, EINVAL, ENODEV, ENOENT, ESRCH, Error};
use syscall::flag::O_RDONLY;

fn errno<T>(result: libredox::error::Result<T>) -> Option<i32> {
    result.err().map(|error| error.errno())
}

/// Makes a socket without a loop behind it, and registers its scheme. The root is 1.
fn bare(name: &str) -> Socket {
    let socket = Socket::create().unwrap();
    redox_scheme::scheme::register_scheme_inner(&socket, name, 1).unwrap();
    socket
}

#[test]
fn a_name_is_taken_until_it_is_unregistered() {
    let mut daemon = Daemon::start();
    let socket = Socket::create().unwrap();
    let again = redox_scheme::scheme::register_scheme_inner(&socket, &daemon.name, 1);
    assert_eq!(again, Err(Error::new(EEXIST)));
    for name in ["", "a/b", "a:b"] {
        assert_eq!(redox_scheme::scheme::register_scheme_inner(&socket, name, 1), Err(Error::new(EINVAL)));
    }
    kernel::stop(&daemon.name).unwrap();
    assert!(daemon.join());
    assert_eq!(daemon.calls(), ["end"]);
    let again = redox_scheme::scheme::register_scheme_inner(&socket, &daemon.name, 1);
    assert_eq!(again, Err(Error::new(EEXIST)), "also after its daemon has ended");
    assert_eq!(Process::new(0, 0).stat(daemon.path("f")), Err(Error::new(ENODEV)));
    kernel::unregister(&daemon.name).unwrap();
    assert_eq!(kernel::unregister(&daemon.name), Err(Error::new(ENODEV)));
    redox_scheme::scheme::register_scheme_inner(&socket, &daemon.name, 1).unwrap();
}

#[test]
fn a_stopped_scheme_answers_no_request() {
    let mut daemon = Daemon::start();
    let file = Process::new(0, 0).open(daemon.path("f"), O_RDONLY, 0).unwrap();
    kernel::stop(&daemon.name).unwrap();
    assert!(daemon.join());
    assert_eq!(file.fstat(), Err(Error::new(ENODEV)));
    assert_eq!(file.read(&mut [0; 4]), Err(Error::new(ENODEV)));
}

#[test]
fn a_request_that_was_not_read_fails_when_the_scheme_stops() {
    let socket = bare("unread");
    let caller = std::thread::spawn(|| Process::new(0, 0).stat("/scheme/unread/f"));
    // The request may be in the queue or not.
    std::thread::sleep(Duration::from_millis(20));
    kernel::stop("unread").unwrap();
    assert_eq!(caller.join().unwrap(), Err(Error::new(ENODEV)));
    assert!(socket.next_request(SignalBehavior::Restart).unwrap().is_none());
    kernel::unregister("unread").unwrap();
}

#[test]
fn a_request_that_was_read_can_be_answered_after_the_stop() {
    let socket = bare("late");
    let caller = std::thread::spawn(|| Process::new(0, 0).scheme_root("late").unwrap().fsize());
    let RequestKind::Call(call) = socket.next_request(SignalBehavior::Restart).unwrap().unwrap().kind() else {
        panic!("a call was made");
    };
    kernel::stop("late").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(!caller.is_finished(), "its buffers may still be in use");
    assert!(socket.write_response(Response::ok(5, call), SignalBehavior::Restart).unwrap());
    assert_eq!(caller.join().unwrap(), Ok(5));
    kernel::unregister("late").unwrap();
}

#[test]
fn no_caller_waits_for_a_daemon_that_panics() {
    let mut daemon = Daemon::start();
    let process = Process::new(0, 0);
    let file = process.open(daemon.path("f"), O_RDONLY, 0).unwrap();
    assert_eq!(process.stat(daemon.path("panic")), Err(Error::new(ENODEV)));
    assert!(!daemon.join());
    assert_eq!(file.fstat(), Err(Error::new(ENODEV)));
}

#[test]
fn no_caller_waits_for_a_daemon_thread_that_has_ended() {
    let socket = std::sync::Arc::new(bare("kept"));
    let served = socket.clone();
    let daemon = std::thread::spawn(move || drop(served.next_request(SignalBehavior::Restart)));
    assert_eq!(Process::new(0, 0).stat("/scheme/kept/f"), Err(Error::new(ENODEV)));
    daemon.join().unwrap();
    assert!(socket.next_request(SignalBehavior::Restart).unwrap().is_none());
    kernel::unregister("kept").unwrap();
}

#[test]
fn several_workers_share_a_socket() {
    let socket = std::sync::Arc::new(bare("workers"));
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let socket = socket.clone();
            std::thread::spawn(move || {
                let mut count = 0;
                while let Some(request) = socket.next_request(SignalBehavior::Restart).unwrap() {
                    if let RequestKind::Call(call) = request.kind() {
                        count += 1;
                        socket.write_response(Response::ok(count, call), SignalBehavior::Restart).unwrap();
                    }
                }
                count
            })
        })
        .collect();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(|| {
                let root = Process::new(0, 0).scheme_root("workers").unwrap();
                (0..100).for_each(|_| assert!(root.fsize().unwrap() > 0));
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    kernel::stop("workers").unwrap();
    assert_eq!(workers.into_iter().map(|worker| worker.join().unwrap()).sum::<usize>(), 400);
    kernel::unregister("workers").unwrap();
}

#[test]
fn answers_that_mean_nothing_are_refused() {
    let socket = bare("odd");
    let caller = std::thread::spawn(|| Process::new(0, 0).scheme_root("odd").unwrap().openat("f", O_RDONLY, 0).err());
    let RequestKind::Call(call) = socket.next_request(SignalBehavior::Restart).unwrap().unwrap().kind() else {
        panic!("a call was made");
    };
    let write = |cqe: [u8; 16]| errno(libredox::call::write(socket.inner().raw(), &cqe));
    let cqe = |flags: u8, tag: u8, result: u8| [flags, 0, 0, 0, tag, 0, 0, 0, result, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(write(cqe(0, 9, 0)), Some(EBADFD), "no request has the tag 9");
    assert_eq!(write(cqe(6, 0, 0)), Some(EINVAL), "no such kind of answer");
    assert_eq!(write(cqe(1, 0, 99)), Some(EINVAL), "no such descriptor");
    // A descriptor with flags that do not exist.
    let response = Response::ok(5, call).with_extra([0x80, 0, 0]);
    assert!(socket.write_response(response, SignalBehavior::Restart).unwrap());
    assert_eq!(caller.join().unwrap(), Some(Error::new(EINVAL)));
    kernel::unregister("odd").unwrap();
}

#[test]
fn a_descriptor_of_another_scheme_can_be_the_answer() {
    let daemon = Daemon::start();
    let socket = bare("forward");
    let caller = std::thread::spawn(|| Process::new(3, 4).open("/scheme/forward/f", O_RDONLY, 0).unwrap().id());
    let RequestKind::Call(call) = socket.next_request(SignalBehavior::Restart).unwrap().unwrap().kind() else {
        panic!("a call was made");
    };
    let other = bare("other");
    let fd = other.create_this_scheme_fd(0, 55, 0, 0).unwrap();
    socket.write_response(Response::return_external_fd(fd, call), SignalBehavior::Restart).unwrap();
    assert_eq!(caller.join().unwrap(), 55);
    assert_eq!(errno(libredox::call::fcntl(fd, libredox::flag::F_GETFD as usize, 0)), Some(syscall::EBADF));
    drop(daemon);
    kernel::unregister("forward").unwrap();
    kernel::unregister("other").unwrap();
}

#[test]
fn a_socket_can_be_nonblocking() {
    let socket = Socket::nonblock().unwrap();
    assert_eq!(socket.next_request(SignalBehavior::Restart).err(), Some(Error::new(EAGAIN)));
}

#[test]
fn credentials_are_known_while_the_process_lives() {
    let capability = libredox::Fd::open("/scheme/proc/proc-creds-capability", 0, 0).unwrap();
    let process = Process::new(77, 88);
    let mut meta = [0; size_of::<libredox::protocol::ProcMeta>()];
    let word = |meta: &[u8], index: usize| u32::from_le_bytes(meta[index * 4..][..4].try_into().unwrap());
    let pid = process.pid();
    libredox::call::get_proc_credentials(capability.raw(), pid, &mut meta).unwrap();
    assert_eq!([word(&meta, 0), word(&meta, 3), word(&meta, 6)], [pid as u32, 77, 88]);
    assert_eq!(errno(libredox::call::get_proc_credentials(capability.raw(), pid, &mut [0; 4])), Some(EINVAL));
    drop(process);
    assert_eq!(errno(libredox::call::get_proc_credentials(capability.raw(), pid, &mut meta)), Some(ESRCH));
}

#[test]
fn the_null_namespace_has_nothing() {
    std::thread::spawn(|| {
        assert_eq!(errno(libredox::Fd::open("/scheme/nothing", 0, 0)), Some(ENODEV));
        let root = Socket::create().unwrap().create_this_scheme_fd(0, 55, 0, 0).unwrap();
        libredox::call::setrens(0, 0).unwrap();
        assert_eq!(Socket::create().err(), Some(Error::new(ENODEV)));
        let namespace = libredox::call::getns().unwrap();
        assert_eq!(errno(libredox::call::register_scheme_to_ns(namespace, "named", root)), Some(ENODEV));
    })
    .join()
    .unwrap();
    assert!(Socket::create().is_ok(), "other threads are not in it");
}

#[test]
fn errors_have_texts() {
    assert_eq!(libredox::error::Error::new(syscall::ENOENT).to_string(), Error::new(ENOENT).to_string());
    assert_eq!(libredox::error::Error::new(9999).to_string(), "unknown error");
}
