//! Every system call reaches the scheme as the request of the Redox kernel.

use crate::toy::{Daemon, ROOT};
use linux_delegate::client::Lock;
use linux_delegate::{Fd, Process};
use syscall::data::TimeSpec;
use syscall::error::{EINVAL, ENAMETOOLONG, EOPNOTSUPP, EOVERFLOW, EPERM, EWOULDBLOCK, EXDEV, Error};
use syscall::flag::{
    EventFlags, F_SETFL, MapFlags, MunmapFlags, O_APPEND, O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY, SEEK_CUR, SEEK_END,
    SEEK_SET, StdFsCallKind,
};
use syscall::schemev2::{Opcode, Sqe, SqeFlags};

/// Makes a process with the pid 41, the uid 1000 and the gid 2000, and an open file of it with the
/// number 100.
fn open(daemon: &Daemon, flags: usize) -> (Process, Fd) {
    let process = Process::with_pid(41, 1000, 2000);
    let file = process.scheme_root(&daemon.name).unwrap().openat("dir/file", flags, 0).unwrap();
    assert_eq!(file.id(), 100);
    assert_eq!(daemon.calls(), [format!("openat {ROOT} \"dir/file\" {flags:x} 0 by 41:1000:2000")]);
    (process, file)
}

#[test]
fn requests_with_their_own_opcode_carry_the_callers_ids() {
    let daemon = Daemon::start();
    let (_, file) = open(&daemon, O_RDWR);
    file.openat("x/y", O_RDONLY | O_NONBLOCK, O_NONBLOCK as u32).unwrap();
    file.unlinkat("gone", 0x200).unwrap();
    file.dup(b"how").unwrap();
    file.fsize().unwrap();
    file.sys_fsync().unwrap();
    assert_ne!(file.sys_fstat().unwrap().st_dev, 3, "the kernel puts the number of the scheme there");
    file.fchown(1000, 2000).unwrap();
    file.fevent(EventFlags::EVENT_READ).unwrap();
    file.flink("/scheme/anything/new/name").unwrap();
    file.frename("/scheme/anything/new/name").unwrap();
    file.fpath(&mut [0; 100]).unwrap();
    assert_eq!(file.mmap(4096, 100, MapFlags::MAP_SHARED | MapFlags::PROT_READ).unwrap(), 0x5000);
    file.munmap(4096, 100, MunmapFlags::NEEDS_SYNC).unwrap();
    drop(file);
    let calls: Vec<String> = daemon.await_calls(16).into_iter().filter(|call| !call.starts_with("close 10")).collect();
    assert_eq!(
        calls,
        [
            "openat 100 \"x/y\" 50000 40000 by 41:1000:2000",
            "unlinkat 100 \"gone\" 200 by 41:1000:2000",
            "dup 100 \"how\" by 41:1000:2000",
            "fsize 100 by 41:1000:2000",
            "fsync 100 by 41:1000:2000",
            "fstat 100 by 41:1000:2000",
            "fchown 100 1000 2000 by 41:1000:2000",
            "fevent 100 1 by 41:1000:2000",
            "flink 100 \"new/name\" by 41:1000:2000",
            "frename 100 \"new/name\" by 41:1000:2000",
            "fpath 100 by 41:1000:2000",
            "mmap_prep 100 4096 100 40001 by 41:1000:2000",
            "munmap 100 4096 100 1 by 41:1000:2000",
        ]
    );
}

#[test]
fn standard_calls_carry_no_ids_or_worse() {
    let daemon = Daemon::start();
    let (process, file) = open(&daemon, O_RDWR);
    let dir = process.scheme_root(&daemon.name).unwrap();
    let stat = file.fstat().unwrap();
    assert_eq!((stat.st_dev, stat.st_ino, stat.st_size), (3, 100, 10));
    assert_eq!(file.fstatvfs().unwrap().f_bsize, 4096);
    file.fchmod(0o4711).unwrap();
    file.ftruncate(1 << 40).unwrap();
    file.futimens(TimeSpec { tv_sec: -5, tv_nsec: 6 }, TimeSpec { tv_sec: 7, tv_nsec: 0x3fff_ffff }).unwrap();
    file.fsync().unwrap();
    file.std_unlinkat("x/y", 0x200).unwrap();
    file.std_fs_call(StdFsCallKind::Fchown as u8, &mut [], 5, 6).unwrap();
    let mut path = [0; 9];
    assert_eq!(file.relpathat(&dir, &mut path), Ok(3));
    assert_eq!(&path[..4], b"rel\0");
    file.frenameat("a/b", &dir, "c", 1).unwrap();
    file.flinkat(&dir, "d", 0).unwrap();
    assert_eq!(
        daemon.calls(),
        [
            "fstat 100 by 41:0:0",
            "fstatvfs 100 by 41:0:0",
            "fchmod 100 4711 by 41:0:0",
            "ftruncate 100 1099511627776 by 41:0:0",
            "futimens 100 [(-5, 6), (7, 1073741823)] by 41:0:0",
            "fsync 100 by 41:0:0",
            "unlinkat 100 \"x/y\" 200 by 41:0:0",
            "std_fs_call 100 Fchown [] 5 6",
            // In the place of the uid is the number of the second file.
            "relpathat 100 7 9 by 41:7:0",
            "frenameat 100 \"a/b\" 7 \"c\" 1 by 41:7:0",
            "flinkat 100 7 \"d\" 0",
        ]
    );
    assert_eq!(file.std_fs_call(99, &mut [], 0, 0), Err(Error::new(EOPNOTSUPP)));
    assert_eq!(daemon.calls(), [""; 0], "a kind that does not exist stays in the kernel");
}

#[test]
fn private_calls_carry_their_metadata() {
    let daemon = Daemon::start();
    let (process, file) = open(&daemon, O_RDWR);
    let dir = process.scheme_root(&daemon.name).unwrap();
    assert_eq!(file.call(&mut [1, 2], &[10, 11, 12, 13]), Ok(2));
    assert_eq!(file.call(&mut [], &[10]), Ok(0));
    assert_eq!(file.call_multiple(&dir, &mut [3], &[10, 11, 12]), Ok(1));
    assert_eq!(
        daemon.calls(),
        ["call 100 [1, 2] [10, 11, 12]", "call 100 [] [10, 0, 0]", "call [100, 7] [3] [10, 11, 0]"]
    );
    let other = Daemon::start();
    let elsewhere = process.scheme_root(&other.name).unwrap();
    assert_eq!(file.call_multiple(&elsewhere, &mut [], &[]), Err(Error::new(EXDEV)));
    assert_eq!(file.frenameat("a", &elsewhere, "b", 0), Err(Error::new(EXDEV)));
    assert_eq!(daemon.calls(), [""; 0]);
}

#[test]
fn reads_and_writes_move_the_offset() {
    let daemon = Daemon::start();
    let (_, file) = open(&daemon, O_RDWR | O_APPEND);
    let mut buf = [0; 4];
    assert_eq!(file.read(&mut buf), Ok(4));
    assert_eq!(&buf, b"aaaa");
    assert_eq!(file.read(&mut buf[..0]), Ok(0));
    assert_eq!(file.write(b"xy"), Ok(2));
    assert_eq!(file.read_at(&mut buf, 3), Ok(4));
    assert_eq!(&buf, b"dddd");
    assert_eq!(file.write_at(b"z", 1 << 40), Ok(1));
    assert_eq!(file.write_at_with(b"z", 9, false, true), Ok(1));
    assert_eq!(file.lseek(0, SEEK_CUR), Ok(6));
    assert_eq!(file.lseek(-6, SEEK_END), Ok(994));
    assert_eq!(file.lseek(-1000, SEEK_CUR), Err(Error::new(EINVAL)));
    assert_eq!(file.lseek(i64::MAX, SEEK_CUR), Err(Error::new(EOVERFLOW)));
    assert_eq!(file.lseek(2, SEEK_SET), Ok(2));
    assert_eq!(file.lseek(0, 9), Err(Error::new(EINVAL)));
    assert_eq!(file.read(&mut buf), Ok(4));
    assert_eq!(
        daemon.calls(),
        [
            "read 100 4 at 0 b0000 by 41:1000:2000",
            "read 100 0 at 4 b0000 by 41:1000:2000",
            "write 100 \"xy\" at 4 b0000 by 41:1000:2000",
            "read 100 4 at 3 b0000 by 41:1000:2000",
            "write 100 \"z\" at 1099511627776 b0000 by 41:1000:2000",
            "write 100 \"z\" at 9 70000 by 41:1000:2000",
            "fsize 100 by 41:1000:2000",
            "read 100 4 at 2 b0000 by 41:1000:2000",
        ]
    );
}

#[test]
fn a_file_without_offsets_is_told_none() {
    let daemon = Daemon::start();
    let root = Process::new(0, 0).scheme_root(&daemon.name).unwrap();
    let stream = root.openat("stream", O_RDONLY, 0).unwrap();
    daemon.calls();
    stream.read(&mut [0; 4]).unwrap();
    assert!(daemon.calls()[0].starts_with(&format!("read 100 4 at {} ", u64::MAX)));
    assert_eq!(stream.lseek(0, SEEK_CUR), Ok(0), "and the offset stays");
}

#[test]
fn flags_are_kept_by_the_kernel_and_told_to_the_scheme() {
    let daemon = Daemon::start();
    let (_, file) = open(&daemon, O_WRONLY);
    assert_eq!(file.flags(), Ok(O_WRONLY));
    file.set_flags(O_RDWR | O_APPEND).unwrap();
    assert_eq!(file.flags(), Ok(O_WRONLY | O_APPEND));
    assert_eq!(file.fcntl(77, 0), Err(Error::new(EINVAL)));
    let calls = daemon.calls();
    assert_eq!(calls.len(), 4, "{calls:?}");
    assert_eq!(calls[1], format!("fcntl 100 {F_SETFL} {:x} by 41:1000:2000", O_RDWR | O_APPEND));
}

#[test]
fn the_kernel_refuses_before_the_scheme_is_asked() {
    let daemon = Daemon::start();
    let (_, file) = open(&daemon, O_RDWR);
    assert_eq!(file.openat("x".repeat(4097), O_RDONLY, 0).err(), Some(Error::new(ENAMETOOLONG)));
    assert_eq!(file.openat(b"\xff", O_RDONLY, 0).err(), Some(Error::new(EINVAL)));
    assert_eq!(file.unlinkat(b"\xff", 0), Err(Error::new(EINVAL)));
    assert_eq!(file.frename("relative"), Err(Error::new(EINVAL)));
    assert_eq!(file.frename("x".repeat(4097)), Err(Error::new(ENAMETOOLONG)));
    assert_eq!(file.flink(b"/scheme/toy/\xff"), Err(Error::new(EINVAL)));
    assert_eq!(file.fchown(1000, 0), Err(Error::new(EPERM)));
    assert_eq!(file.mmap(0, 0, MapFlags::PROT_READ), Err(Error::new(EINVAL)));
    assert_eq!(file.mmap(1, 1, MapFlags::PROT_READ), Err(Error::new(EINVAL)));
    assert_eq!(daemon.calls(), [""; 0]);
    assert!(file.openat("x".repeat(4096), O_RDONLY, 0).is_ok());
    assert!(file.openat("", O_RDONLY, 0).is_ok());
    // The kernel does not check the paths of the two standard calls; the scheme's library does.
    assert_eq!(file.std_unlinkat(b"\xff", 0), Err(Error::new(EINVAL)));
}

#[test]
fn the_last_descriptor_closes_the_file() {
    let daemon = Daemon::start();
    let (process, file) = open(&daemon, O_RDWR);
    let second = file.dup(b"").unwrap();
    let child = Process::with_pid(42, 5, 6);
    let third = child.inherit(&second);
    file.lseek(3, SEEK_SET).unwrap();
    drop((file, second));
    assert_eq!(third.lseek(0, SEEK_CUR), Ok(3), "they share the offset");
    third.fsize().unwrap();
    assert_eq!(daemon.calls(), ["fsize 100 by 42:5:6"]);
    drop(third);
    assert_eq!(daemon.await_calls(1), ["close 100"]);
    drop(process);
}

#[test]
fn a_lock_of_a_process_ends_with_its_first_descriptor() {
    let daemon = Daemon::start();
    let (process, file) = open(&daemon, O_RDWR);
    let lock = Lock { start: 10, len: 5, exclusive: true, of_file: false };
    file.lock(lock).unwrap();
    let other = Process::with_pid(43, 0, 0);
    let theirs = other.inherit(&file);
    assert_eq!(theirs.lock(lock), Err(Error::new(EWOULDBLOCK)));
    let (found, pid) = theirs.get_lock(lock).unwrap().unwrap();
    assert_eq!((found.start, found.exclusive, pid), (10, true, process.pid()));
    // The answer to the next standard call cancels the message at the close, even an answer with an
    // error.
    file.lock(lock).unwrap();
    drop(file);
    assert_eq!(daemon.await_calls(1), ["detach 100 by 41"]);
    theirs.lock(lock).unwrap();
    theirs.unlock(lock).unwrap();
    assert_eq!(theirs.get_lock(lock), Ok(None));
}

#[test]
fn events_reach_the_file() {
    let daemon = Daemon::start();
    let (_, file) = open(&daemon, O_RDWR);
    assert_eq!(file.fevent(EventFlags::EVENT_READ), Ok(EventFlags::EVENT_WRITE));
    assert_eq!(file.take_events(), EventFlags::empty());
    file.write(b"event!").unwrap();
    file.fsize().unwrap();
    assert_eq!(file.take_events(), EventFlags::EVENT_READ);
    assert_eq!(file.take_events(), EventFlags::empty());
}

#[test]
fn any_request_can_be_sent() {
    let daemon = Daemon::start();
    let (_, file) = open(&daemon, O_RDWR);
    let size = Sqe { opcode: Opcode::Fsize as u8, args: [3, 0, 0, 0, 0, 9], tag: 77, ..Sqe::default() };
    // SAFETY: no argument is an address.
    unsafe {
        assert_eq!(file.raw(size), Ok(1000));
        assert_eq!(file.raw(Sqe { opcode: 250, ..size }), Err(Error::new(syscall::ENOSYS)));
        assert_eq!(file.raw(Sqe { opcode: Opcode::CloseMsg as u8, ..size }), Ok(0));
        assert_eq!(file.raw(Sqe { sqe_flags: SqeFlags::ONEWAY, ..size }), Ok(0));
    }
    assert_eq!(daemon.await_calls(3), ["fsize 3 by 41:9:0", "close 3", "fsize 3 by 41:9:0"]);
    assert_eq!(file.fsize(), Ok(1000), "an answer that nobody waits for is an error of the daemon's write alone");
}
