//! Requests that a client must not send. The daemon survives them.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use linux_delegate::Fd;
use linux_delegate::client::Lock;
use syscall::data::{Stat, StatVfs};
use syscall::error::{
    EBADF, ECONNREFUSED, EINVAL, ENOENT, ENOSYS, ENOTDIR, EOPNOTSUPP, EOVERFLOW, EWOULDBLOCK, Error, Result,
};
use syscall::flag::{O_RDONLY, O_RDWR, O_STAT, StdFsCallKind};
use syscall::schemev2::{Opcode, Sqe, SqeFlags};

use crate::support::{Setup, ann, bob, errno, refused};

fn setup() -> Setup {
    Setup::new(|lower| {
        lower.dir("d", 0o777);
        lower.file("d/f", 0o666);
    })
}

/// Sends a request unchanged.
fn send(through: &Fd, opcode: Opcode, args: [u64; 6]) -> Result<usize> {
    let sqe = Sqe { opcode: opcode as u8, args, ..Default::default() };
    // SAFETY: each test passes buffers that live until it has the answer.
    unsafe { through.raw(sqe) }
}

#[test]
fn short_and_misaligned_buffers() {
    let setup = setup();
    let file = setup.open(&ann(), "d/f", O_RDWR).unwrap();
    let id = file.id() as u64;
    let buf = [0u64; 64];
    let address = buf.as_ptr() as u64;
    let (stat, statvfs) = (size_of::<Stat>() as u64, size_of::<StatVfs>() as u64);
    let std_call = |kind: StdFsCallKind, address: u64, len: u64| {
        send(&file, Opcode::StdFsCall, [id, address, len, kind as u64, 0, 0])
    };
    for (address, len) in [(address, 0), (address, 1), (address, stat - 1), (address + 1, stat), (address + 4, stat)] {
        assert_eq!(send(&file, Opcode::Fstat, [id, address, len, 0, 0, 0]), refused(EINVAL), "fstat {len}");
        assert_eq!(std_call(StdFsCallKind::Fstat, address, len), refused(EINVAL), "fstat {len}");
    }
    for (address, len) in [(address, 0), (address, statvfs - 1), (address + 1, statvfs)] {
        assert_eq!(send(&file, Opcode::Fstatvfs, [id, address, len, 0, 0, 0]), refused(EINVAL), "fstatvfs {len}");
        assert_eq!(std_call(StdFsCallKind::Fstatvfs, address, len), refused(EINVAL), "fstatvfs {len}");
    }
    for (address, len) in [(address, 0), (address, 16), (address, 31), (address, 33), (address, 256), (address + 2, 32)]
    {
        assert_eq!(send(&file, Opcode::Futimens, [id, address, len, 0, 0, 0]), refused(EINVAL), "futimens {len}");
        assert_eq!(std_call(StdFsCallKind::Futimens, address, len), refused(EINVAL), "futimens {len}");
    }
    assert_eq!(send(&file, Opcode::Fstat, [id, address, stat, 0, 0, 0]), Ok(0));
    assert_eq!(send(&file, Opcode::Fstatvfs, [id, address, statvfs, 0, 0, 0]), Ok(0));
    assert_eq!(send(&file, Opcode::Futimens, [id, address, 32, 0, 0, 0]), Ok(0));
    assert!(setup.is_alive());
}

#[test]
fn locks_that_the_crate_does_not_survive() {
    let setup = setup();
    let file = setup.open(&ann(), "d/f", O_RDWR).unwrap();
    let id = file.id() as u64;
    let other = setup.open(&bob(), "d/f", O_RDWR).unwrap();
    let buf = [0u64; 4];
    let address = buf.as_ptr() as u64;
    let last = i64::MAX as u64;
    let call = |kind: StdFsCallKind, len: u64, start: u64, length: u64| {
        send(&file, Opcode::StdFsCall, [id, address, len, kind as u64, start, length])
    };
    for held in [false, true] {
        if held {
            other.lock(Lock { start: 0, len: 10, exclusive: true, of_file: false }).unwrap();
        }
        assert_eq!(call(StdFsCallKind::Lock, 0, last, 2), refused(EOVERFLOW));
        let taken = if held { refused(EWOULDBLOCK) } else { Ok(0) };
        assert_eq!(call(StdFsCallKind::Lock, 0, 1, last), taken);
        assert_eq!(call(StdFsCallKind::Unlock, 0, 1, last), Ok(0));
        assert_eq!(call(StdFsCallKind::Unlock, 0, 0, u64::MAX), refused(EOVERFLOW));
        assert_eq!(call(StdFsCallKind::Unlock, 0, last, 2), refused(EOVERFLOW));
        assert_eq!(call(StdFsCallKind::GetLock, 16, last, 2), refused(EOVERFLOW));
        for len in [0, 8, 15, 17, 32] {
            assert_eq!(call(StdFsCallKind::GetLock, len, 0, 0), refused(EINVAL), "{len}");
        }
        let crooked = send(&file, Opcode::StdFsCall, [id, address + 4, 16, StdFsCallKind::GetLock as u64, 0, 0]);
        assert_eq!(crooked, refused(EINVAL));
    }
    let found = call(StdFsCallKind::GetLock, 16, 0, 0);
    assert!(found.is_ok(), "relibc asks about everything with a length of 0: {found:?}");
    assert_eq!(errno(call(StdFsCallKind::GetLock, 16, last, 0)), syscall::error::ESRCH);
    let two = Sqe {
        opcode: Opcode::StdFsCall as u8,
        sqe_flags: SqeFlags::MULTIPLE_IDS,
        args: [id, address, 16, StdFsCallKind::GetLock as u64, 0, id],
        ..Default::default()
    };
    // SAFETY: the buffer lives.
    assert_eq!(unsafe { file.raw(two) }, refused(EINVAL));
    assert!(setup.is_alive());
}

#[test]
fn locks_work_and_end_with_their_owner() {
    let setup = setup();
    let exclusive = Lock { start: 0, len: 0, exclusive: true, of_file: true };
    let first = setup.open(&ann(), "d/f", O_RDWR).unwrap();
    let second = setup.open(&bob(), "d/f", O_RDWR).unwrap();
    first.lock(exclusive).unwrap();
    assert_eq!(second.lock(exclusive), refused(EWOULDBLOCK));
    assert!(second.get_lock(exclusive).unwrap().is_some());
    drop(first);
    assert_eq!(retry(|| second.lock(exclusive)), Ok(()), "an open file's lock ends when it is closed");
    second.unlock(exclusive).unwrap();

    let of_process = Lock { start: 5, len: 1, exclusive: true, of_file: false };
    let third = setup.open(&ann(), "d/f", O_RDWR).unwrap();
    third.lock(of_process).unwrap();
    assert_eq!(second.lock(of_process), refused(EWOULDBLOCK));
    drop(third);
    assert_eq!(retry(|| second.lock(of_process)), Ok(()), "a process's lock when it closes the file");
}

/// Retries: a close reaches the daemon after its client has gone on.
fn retry(mut request: impl FnMut() -> Result<()>) -> Result<()> {
    for _ in 0..1000 {
        match request() {
            Err(Error { errno: EWOULDBLOCK }) => std::thread::sleep(std::time::Duration::from_millis(1)),
            other => return other,
        }
    }
    request()
}

#[test]
fn unknown_ids_are_refused() {
    let setup = setup();
    let file = setup.open(&ann(), "d/f", O_RDWR).unwrap();
    let closed = {
        let id = setup.open(&ann(), "d/f", O_RDWR).unwrap().id();
        // The close is on its way. The loop ends when the daemon has received it.
        let ask = || send(&file, Opcode::Fsize, [id as u64, 0, 0, 0, 0, 0]);
        while ask().is_ok() {}
        id as u64
    };
    let buf = [0u64; 64];
    let address = buf.as_ptr() as u64;
    for id in [0, closed, 1 << 40, u64::MAX] {
        for opcode in [
            Opcode::OpenAt,
            Opcode::UnlinkAt,
            Opcode::Dup,
            Opcode::Read,
            Opcode::Write,
            Opcode::Fsize,
            Opcode::Fchmod,
            Opcode::Fchown,
            Opcode::Fcntl,
            Opcode::Fevent,
            Opcode::Fpath,
            Opcode::Fsync,
            Opcode::Ftruncate,
        ] {
            assert_eq!(send(&file, opcode, [id, address, 0, 0, 0, 0]), refused(EBADF), "{opcode:?} {id}");
        }
        assert_eq!(send(&file, Opcode::Fstat, [id, address, 512, 0, 0, 0]), refused(EBADF));
        assert_eq!(send(&file, Opcode::Frename, [id, address, 0, 0, 0, 0]), refused(EBADF));
        assert_eq!(send(&file, Opcode::Flink, [id, address, 0, 0, 0, 0]), refused(EBADF));
        assert_eq!(send(&file, Opcode::Getdents, [id, address, 512, 24, 0, 0]), refused(EBADF));
        for kind in [StdFsCallKind::Fchmod, StdFsCallKind::Fchown, StdFsCallKind::Unlinkat, StdFsCallKind::Fsync] {
            assert_eq!(send(&file, Opcode::StdFsCall, [id, address, 0, kind as u64, 0, 0]), refused(EBADF), "{kind:?}");
        }
        assert!(send(&file, Opcode::StdFsCall, [id, address, 16, StdFsCallKind::Lock as u64, 0, 0]).is_err());
        for (opcode, arg) in [(Opcode::CloseMsg, id), (Opcode::Detach, id), (Opcode::Cancel, id)] {
            let sqe = Sqe {
                opcode: opcode as u8,
                sqe_flags: SqeFlags::ONEWAY,
                args: [arg, 0, 0, 0, 0, 0],
                ..Default::default()
            };
            // SAFETY: these requests have no buffers.
            unsafe { file.raw(sqe) }.unwrap();
        }
    }
    assert!(setup.is_alive());
}

#[test]
fn paths_that_are_not_utf8() {
    let setup = setup();
    let top = setup.open(&ann(), "", O_RDONLY).unwrap();
    let file = setup.open(&ann(), "d/f", O_STAT).unwrap();
    let text = b"d/\xff\xfe";
    let (address, len) = (text.as_ptr() as u64, text.len() as u64);
    for opcode in [Opcode::OpenAt, Opcode::UnlinkAt] {
        assert_eq!(send(&top, opcode, [top.id() as u64, address, len, 0, 0, 0]), refused(EINVAL), "{opcode:?}");
    }
    for opcode in [Opcode::Frename, Opcode::Flink] {
        assert_eq!(send(&file, opcode, [file.id() as u64, address, len, 0, 0, 0]), refused(EINVAL), "{opcode:?}");
    }
    for kind in [StdFsCallKind::Unlinkat, StdFsCallKind::Frenameat, StdFsCallKind::Flinkat] {
        let args = [top.id() as u64, address, len, kind as u64, 0, 0];
        assert_eq!(send(&top, Opcode::StdFsCall, args), refused(EINVAL), "{kind:?}");
    }
    assert!(setup.is_alive());
}

#[test]
fn a_path_that_its_client_changes_while_it_is_read() {
    let setup = setup();
    let file = setup.open(&ann(), "d/f", O_RDWR).unwrap();
    let dir = setup.open(&ann(), "d", O_RDONLY).unwrap();
    let flags = SqeFlags::MULTIPLE_IDS;
    let path = AtomicU8::new(b'n');
    let address = path.as_ptr() as u64;
    let args = [file.id() as u64, address, 1, StdFsCallKind::Flinkat as u64, 0, dir.id() as u64];
    let sqe = Sqe { opcode: Opcode::StdFsCall as u8, sqe_flags: flags, args, ..Default::default() };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                path.store(0xFF, Ordering::Relaxed);
                path.store(b'n', Ordering::Relaxed);
            }
        });
        for _ in 0..3000 {
            // SAFETY: the buffer lives.
            if unsafe { file.raw(sqe) }.is_ok() {
                let _ = dir.unlinkat("n", 0);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    for name in setup.layers.upper_names("d") {
        assert!(["f", "n"].contains(&name.as_str()), "{name:?} was never asked for");
    }
    assert!(setup.is_alive());
}

#[test]
fn requests_that_a_filesystem_does_not_know() {
    let setup = setup();
    let file = setup.open(&ann(), "d/f", O_RDWR).unwrap();
    let id = file.id() as u64;
    let dir = setup.top(&ann());
    for count in [0, 1, 2, u64::MAX] {
        assert_eq!(send(&file, Opcode::Sendfd, [id, 0, 0, count, 0, 0]), refused(ENOTDIR));
        assert_eq!(send(&file, Opcode::Sendfd, [dir.id() as u64, 0, 0, count, 0, 0]), refused(EINVAL));
    }
    assert_eq!(send(&file, Opcode::Call, [id, 1 << 63, 0, 0, 0, 0]), refused(ECONNREFUSED));
    assert_eq!(send(&file, Opcode::Call, [id, 1 << 63, 0, 1, 0, 0]), refused(EOPNOTSUPP));
    assert!(send(&file, Opcode::Recvfd, [id, 0, 1, 0, 0, 0]).is_err());
    for opcode in [Opcode::Close, Opcode::Mremap] {
        assert_eq!(send(&file, opcode, [id, 0, 0, 0, 0, 0]), refused(ENOSYS), "{opcode:?}");
    }
    for kind in [0, 9, 17, 255] {
        assert_eq!(send(&file, Opcode::StdFsCall, [id, 1 << 63, 0, kind, 0, 0]), refused(EOPNOTSUPP), "{kind}");
    }
    for kind in 1..=16 {
        let sqe = Sqe {
            opcode: Opcode::StdFsCall as u8,
            sqe_flags: SqeFlags::MULTIPLE_IDS,
            args: [id, 1 << 63, 0, kind, 0, u64::MAX],
            ..Default::default()
        };
        // SAFETY: the request has no buffer.
        assert!(unsafe { file.raw(sqe) }.is_err(), "{kind} with a second handle that is none");
    }
    let unknown = Sqe { opcode: 200, args: [id, 0, 0, 0, 0, 0], ..Default::default() };
    // SAFETY: the request has no buffer.
    assert_eq!(unsafe { file.raw(unknown) }, refused(ENOSYS));
    assert!(setup.is_alive());
    assert_eq!(setup.open(&ann(), "none", O_STAT).map(drop), refused(ENOENT));
}
