//! Locks on files: of processes, and of open files.

use linux_delegate::client::Lock;
use linux_delegate::{Fd, Process};
use syscall::error::{EBADF, ENOLCK, EWOULDBLOCK, Error, Result};
use syscall::flag::{O_RDONLY, O_RDWR, O_STAT, O_WRONLY};
use syscall::schemev2::{Opcode, Sqe};

use crate::support::{Setup, ann, bob, refused, root};

fn setup() -> Setup {
    Setup::new(|lower| {
        lower.file("file", 0o666);
        lower.file("other", 0o666);
    })
}

fn open(setup: &Setup, who: &Process) -> Fd {
    setup.open(who, "file", O_RDWR).unwrap()
}

fn of_process(start: u64, len: u64) -> Lock {
    Lock { start, len, exclusive: true, of_file: false }
}

fn of_file(start: u64, len: u64) -> Lock {
    Lock { of_file: true, ..of_process(start, len) }
}

fn shared(lock: Lock) -> Lock {
    Lock { exclusive: false, ..lock }
}

/// Takes a lock as soon as it is free. A message from the kernel without an answer reaches the
/// daemon after its client has gone on.
#[track_caller]
fn becomes_free(fd: &Fd, lock: Lock) {
    for _ in 0..2000 {
        match fd.lock(lock) {
            Err(Error { errno: EWOULDBLOCK }) => std::thread::sleep(std::time::Duration::from_millis(1)),
            result => return assert_eq!(result, Ok(())),
        }
    }
    panic!("the lock is still held");
}

#[test]
fn ranges_of_two_processes() {
    let setup = setup();
    let (a, b) = (open(&setup, &ann()), open(&setup, &bob()));
    a.lock(of_process(10, 10)).unwrap();
    for (start, len) in [(10, 1), (19, 1), (0, 11), (19, 0), (0, 0)] {
        assert_eq!(b.lock(of_process(start, len)), refused(EWOULDBLOCK), "{start} {len}");
        assert_eq!(b.lock(shared(of_process(start, len))), refused(EWOULDBLOCK), "{start} {len}");
    }
    for (start, len) in [(0, 10), (20, 1), (21, 0)] {
        assert_eq!(b.lock(of_process(start, len)), Ok(()), "{start} {len}");
    }
    a.lock(of_process(12, 3)).unwrap();
    a.unlock(of_process(12, 3)).unwrap();
    assert_eq!(b.lock(of_process(12, 3)), Ok(()), "in the middle of what the other holds");
    assert_eq!(b.lock(of_process(12, 4)), refused(EWOULDBLOCK));
    assert_eq!(setup.open(&bob(), "other", O_RDWR).unwrap().lock(of_process(0, 0)), Ok(()), "another file");
}

#[test]
fn shared_locks_and_exclusive_ones() {
    let setup = setup();
    let (a, b, c) = (open(&setup, &ann()), open(&setup, &bob()), open(&setup, &ann()));
    let all = of_process(0, 0);
    a.lock(shared(all)).unwrap();
    b.lock(shared(all)).unwrap();
    c.lock(shared(of_file(0, 0))).unwrap();
    assert_eq!(a.lock(all), refused(EWOULDBLOCK), "others share it");
    b.unlock(all).unwrap();
    c.unlock(of_file(0, 0)).unwrap();
    a.lock(all).unwrap();
    assert_eq!(b.lock(shared(all)), refused(EWOULDBLOCK));
    a.lock(shared(all)).unwrap();
    assert_eq!(b.lock(shared(all)), Ok(()));
}

#[test]
fn a_query_returns_the_conflicting_lock() {
    let setup = setup();
    let (who, other) = (ann(), bob());
    let (a, b) = (open(&setup, &who), open(&setup, &other));
    assert_eq!(b.get_lock(of_process(0, 0)), Ok(None));
    a.lock(of_process(100, 11)).unwrap();
    let (found, pid) = b.get_lock(of_process(0, 0)).unwrap().unwrap();
    assert_eq!((found.start, found.exclusive, pid), (100, true, who.pid()));
    assert_eq!(b.get_lock(of_process(0, 100)), Ok(None));
    assert_eq!(a.get_lock(of_process(0, 0)), Ok(None), "its own is not in its way");
    a.unlock(of_process(0, 0)).unwrap();
    a.lock(of_file(5, 1)).unwrap();
    let (found, pid) = b.get_lock(of_process(0, 0)).unwrap().unwrap();
    assert_eq!((found.start, found.of_file, pid), (5, true, 0));
}

#[test]
fn close_of_any_descriptor_releases_the_locks_of_the_process() {
    let setup = setup();
    let who = ann();
    let (one, two, other) = (open(&setup, &who), open(&setup, &who), open(&setup, &bob()));
    one.lock(of_process(0, 5)).unwrap();
    two.lock(of_process(5, 5)).unwrap();
    assert_eq!(other.lock(of_process(0, 0)), refused(EWOULDBLOCK));
    drop(two);
    becomes_free(&other, of_process(0, 0));
    drop(one);
}

#[test]
fn close_releases_locks_though_a_child_has_the_file_open() {
    let setup = setup();
    let (parent, child) = (ann(), ann());
    let file = open(&setup, &parent);
    let inherited = child.inherit(&file);
    let other = open(&setup, &bob());
    file.lock(of_process(0, 0)).unwrap();
    assert_eq!(inherited.lock(of_process(0, 0)), refused(EWOULDBLOCK), "locks are not inherited");
    drop(file);
    becomes_free(&other, of_process(0, 0));
    drop(inherited);
}

#[test]
fn other_requests_do_not_make_a_lock_last() {
    let setup = setup();
    let (parent, child) = (ann(), ann());
    let other = open(&setup, &bob());
    for with_child in [false, true] {
        let file = open(&setup, &parent);
        let inherited = with_child.then(|| child.inherit(&file));
        file.lock(of_process(0, 0)).unwrap();
        // The kernel reports a close only if the last answer on the descriptor asked for it. So
        // each of these answers must ask again.
        file.fstat().unwrap();
        file.ftruncate(4).unwrap();
        file.fsync().unwrap();
        file.unlock(of_process(100, 1)).unwrap();
        file.get_lock(of_process(0, 0)).unwrap();
        drop(file);
        becomes_free(&other, of_process(0, 0));
        drop(inherited);
        other.unlock(of_process(0, 0)).unwrap();
    }
}

#[test]
fn the_last_close_releases_every_lock() {
    let setup = setup();
    let (file, other) = (open(&setup, &ann()), open(&setup, &bob()));
    file.lock(of_process(0, 5)).unwrap();
    file.lock(of_file(5, 5)).unwrap();
    // The message names no process, as after the last close by another process.
    let close = Sqe { opcode: Opcode::CloseMsg as u8, args: [file.id() as u64, 0, 0, 0, 0, 0], ..Sqe::default() };
    // SAFETY: the message has no buffer.
    assert_eq!(unsafe { other.raw(close) }, Ok(0));
    becomes_free(&other, of_process(0, 0));
}

#[test]
fn an_open_files_lock_is_shared_by_its_descriptors_and_ends_with_the_last() {
    let setup = setup();
    let (parent, child) = (ann(), ann());
    let file = open(&setup, &parent);
    let (copy, inherited) = (file.dup(&[]).unwrap(), child.inherit(&file));
    let other = open(&setup, &parent);
    file.lock(of_file(0, 0)).unwrap();
    assert_eq!(copy.lock(of_file(0, 0)), Ok(()));
    assert_eq!(inherited.lock(of_file(0, 0)), Ok(()));
    assert_eq!(other.lock(of_file(0, 0)), refused(EWOULDBLOCK), "the same process, by another open");
    assert_eq!(other.lock(of_process(0, 0)), refused(EWOULDBLOCK));
    drop((file, copy));
    assert!(setup.is_alive());
    assert_eq!(other.lock(of_file(0, 0)), refused(EWOULDBLOCK), "the child has it still");
    drop(inherited);
    becomes_free(&other, of_file(0, 0));
}

#[test]
fn a_lock_stays_with_its_file() {
    let setup = Setup::new(|lower| {
        lower.file("file", 0o666);
        lower.link("file", "link");
    });
    let (a, b) = (open(&setup, &ann()), open(&setup, &bob()));
    a.lock(of_process(0, 0)).unwrap();
    let is_locked = |path: &str| {
        let opened = setup.open(&bob(), path, O_RDONLY).unwrap();
        assert_eq!(opened.lock(shared(of_process(0, 0))), refused(EWOULDBLOCK), "{path}");
    };
    is_locked("link");
    b.write(b"copied up").unwrap();
    is_locked("file");
    is_locked("link");
    root().rename(setup.path("file"), setup.path("moved")).unwrap();
    is_locked("moved");
    root().write_file(setup.path("file"), "another").unwrap();
    let another = setup.open(&root(), "file", O_WRONLY).unwrap();
    assert_eq!(another.lock(of_process(0, 0)), Ok(()));
    root().unlink(setup.path("moved")).unwrap();
    root().unlink(setup.path("link")).unwrap();
    assert_eq!(b.lock(of_process(0, 0)), refused(EWOULDBLOCK), "without a name too");
    drop(a);
    becomes_free(&b, of_process(0, 0));
}

#[test]
fn what_can_be_locked() {
    let setup = setup();
    for flags in [O_STAT, O_RDONLY] {
        let top = setup.open(&root(), "", flags).unwrap();
        assert_eq!(top.lock(of_process(0, 1)), Ok(()), "a directory, as a daemon locks its layer");
    }
    assert_eq!(root().scheme_root(setup.name()).unwrap().lock(of_process(0, 0)), refused(EBADF));
}

/// Locks every second byte through a descriptor until a refusal. Returns the number of locks.
fn lock_until_refused(fd: &Fd, lock: fn(u64, u64) -> Lock) -> u64 {
    for count in 0..20_000 {
        match fd.lock(lock(2 * count, 1)) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error, Error::new(ENOLCK));
                return count;
            }
        }
    }
    panic!("there is no end");
}

#[test]
fn locks_have_a_limit() {
    let setup = setup();
    let (one, two, other) = (ann(), ann(), bob());
    let file = open(&setup, &one);
    let second = setup.open(&two, "other", O_RDWR).unwrap();
    let count = lock_until_refused(&file, of_process);
    assert_eq!(second.lock(of_process(0, 1)), refused(ENOLCK), "another process of the same user, and another file");
    assert_eq!(second.lock(of_file(0, 1)), refused(ENOLCK));
    assert_eq!(setup.open(&other, "other", O_RDWR).unwrap().lock(of_process(0, 0)), Ok(()), "another user");

    file.unlock(of_process(0, 1)).unwrap();
    assert_eq!(second.lock(of_file(0, 9)), Ok(()));
    assert_eq!(second.unlock(of_file(4, 1)), refused(ENOLCK), "two of one");
    assert_eq!(file.lock(of_process(0, 0)), Ok(()), "one of many");
    second.unlock(of_file(0, 0)).unwrap();
    assert_eq!(lock_until_refused(&second, of_file), count - 1);
    drop(second);
    let again = setup.open(&two, "other", O_RDWR).unwrap();
    becomes_free(&again, of_process(0, 9));
    again.unlock(of_process(0, 0)).unwrap();
    drop(file);
    becomes_free(&setup.open(&other, "file", O_RDWR).unwrap(), of_process(0, 0));
    assert_eq!(lock_until_refused(&again, of_file), count, "a closed file has no locks");
}

#[test]
fn a_lock_over_many_replaces_them() {
    let setup = setup();
    let (a, b) = (open(&setup, &ann()), open(&setup, &bob()));
    for start in [0, 2, 4] {
        a.lock(of_process(start, 1)).unwrap();
    }
    a.lock(of_process(0, 5)).unwrap();
    a.lock(shared(of_process(0, 5))).unwrap();
    assert_eq!(b.lock(shared(of_process(0, 0))), Ok(()));
    a.unlock(of_process(0, 0)).unwrap();
    assert_eq!(b.lock(of_process(0, 0)), Ok(()));
    let (found, _) = a.get_lock(of_process(7, 1)).unwrap().unwrap();
    assert_eq!((found.start, found.len, found.exclusive), (0, 0, true), "up to the end");
    b.unlock(of_process(3, 0)).unwrap();
    assert_eq!(a.get_lock(of_process(0, 0)).unwrap().unwrap().0.len, 3);
}

#[test]
fn processes_take_turns() -> Result<()> {
    let setup = setup();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let who = ann();
                for _ in 0..25 {
                    let file = open(&setup, &who);
                    becomes_free(&file, of_process(0, 0));
                    let mut buf = [0; 64];
                    let read = file.read_at(&mut buf, 0).unwrap();
                    let count: u32 = str::from_utf8(&buf[..read]).unwrap().parse().unwrap_or(0);
                    file.ftruncate(0).unwrap();
                    file.write_at((count + 1).to_string().as_bytes(), 0).unwrap();
                }
            });
        }
    });
    assert_eq!(setup.content("file"), "100");
    Ok(())
}
