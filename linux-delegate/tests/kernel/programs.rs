//! The calls of programs become the requests of relibc.

use std::sync::Arc;

use crate::toy::Daemon;
use linux_delegate::Process;
use syscall::data::TimeSpec;
use syscall::error::{EEXIST, EINVAL, ENODEV, ENOENT, Error};
use syscall::flag::{O_CREAT, O_EXCL, O_NONBLOCK, O_RDONLY, O_RDWR};

/// Returns the calls of a daemon, without closes and without the caller, which is the same in all.
fn calls(daemon: &Daemon) -> Vec<String> {
    daemon
        .calls()
        .into_iter()
        .filter(|call| !call.starts_with("close"))
        .map(|call| call.split(" by ").next().unwrap().to_owned())
        .collect()
}

#[test]
fn open_flags_and_modes() {
    let daemon = Daemon::start();
    let process = Process::new(1, 2);
    process.open(daemon.path("a//b/../c/"), O_RDWR | O_CREAT | O_EXCL | O_NONBLOCK, 0o6666).unwrap();
    process.with_umask(0o277).open(daemon.path(""), O_RDONLY, 0o777).unwrap();
    process.open(format!("/scheme/{}", daemon.name), O_RDONLY, 0).unwrap();
    assert_eq!(
        calls(&daemon),
        ["openat 7 \"a//b/../c/\" a070da4 40000", "openat 7 \"\" 10140 0", "openat 7 \"\" 10000 0"],
        "paths are left to the scheme; 0o6666 without 0o022 is 0xda4"
    );
    assert_eq!(process.open("", O_RDONLY, 0).err(), Some(Error::new(ENOENT)));
    assert_eq!(process.open("relative", O_RDONLY, 0).err(), Some(Error::new(ENOENT)));
    assert_eq!(process.open("/scheme/nobody/x", O_RDONLY, 0).err(), Some(Error::new(ENODEV)));
    assert_eq!(process.open(b"/scheme/\xff", O_RDONLY, 0).err(), Some(Error::new(EINVAL)));
    assert_eq!(process.open(b"/scheme/a\0b", O_RDONLY, 0).err(), Some(Error::new(EINVAL)));
}

#[test]
fn each_call_of_a_program() {
    let daemon = Daemon::start();
    let process = Process::new(0, 0);
    let path = |name: &str| daemon.path(name);
    let time = TimeSpec { tv_sec: 1, tv_nsec: 2 };
    let expect = |lines: &[&str]| assert_eq!(calls(&daemon), lines);

    assert_eq!(process.stat(path("f")).unwrap().st_ino, 100);
    expect(&["openat 7 \"f\" 21000000 0", "fstat 100"]);
    process.lstat(path("f")).unwrap();
    expect(&["openat 7 \"f\" a1000000 0", "fstat 101"]);
    process.statvfs(path("f")).unwrap();
    expect(&["openat 7 \"f\" 20000000 0", "fstatvfs 102"]);
    process.chmod(path("f"), 0o751).unwrap();
    expect(&["openat 7 \"f\" 21000000 0", "fchmod 103 751"]);
    process.chown(path("f"), 5, 6).unwrap();
    expect(&["openat 7 \"f\" 1000000 0", "fchown 104 5 6"]);
    process.lchown(path("f"), 5, 6).unwrap();
    expect(&["openat 7 \"f\" a1000000 0", "fchown 105 5 6"]);
    process.truncate(path("f"), 77).unwrap();
    expect(&["openat 7 \"f\" 20000 0", "ftruncate 106 77"]);
    process.utimens(path("f"), time, time).unwrap();
    expect(&["openat 7 \"f\" 0 0", "futimens 107 [(1, 2), (1, 2)]"]);
    process.mkdir(path("d")).unwrap();
    expect(&["openat 7 \"d\" 1b0001ed 0"]);
    process.with_umask(0).mkfifo(path("p"), 0o4644).unwrap();
    expect(&["openat 7 \"p\" 30011a4 0"]);
    process.symlink("tar/get", path("l")).unwrap();
    expect(&["openat 7 \"l\" 430201ed 0", "write 110 \"tar/get\" at 0 430201ed"]);
    assert_eq!(process.readlink(path("l")).unwrap(), b"aaaaaaaaaa");
    expect(&["openat 7 \"l\" 41010000 0", "read 111 4096 at 0 41010000"]);
    process.unlink(path("x/y")).unwrap();
    expect(&["unlinkat 7 \"x/y\" 0"]);
    process.rmdir(path("x/y")).unwrap();
    expect(&["unlinkat 7 \"x/y\" 200"]);
    process.rename(path("old"), path("x/../new")).unwrap();
    expect(&["openat 7 \"old\" a1000000 0", "frename 112 \"x/../new\""]);
    process.rename(path("old"), "/scheme/ram/h").unwrap();
    expect(&["openat 7 \"old\" a1000000 0", "frename 113 \"h\""]);
    assert_eq!(process.rename_noreplace(path("old"), path("new")), Err(Error::new(EEXIST)));
    expect(&["openat 7 \"new\" 21000000 0"]);
    process.rename_noreplace(path("old"), path("missing")).unwrap();
    expect(&["openat 7 \"missing\" 21000000 0", "openat 7 \"old\" a1000000 0", "frename 115 \"missing\""]);
    process.link(path("old"), path("new")).unwrap();
    expect(&["openat 7 \"old\" a1000000 0", "flink 116 \"new\""]);
    assert_eq!(process.realpath(path("f")).unwrap(), path("f"));
    expect(&["openat 7 \"f\" 21000000 0", "fpath 117"]);
    assert_eq!(process.read_file(path("f")).unwrap(), b"aaaaaaaaaa");
    expect(&["openat 7 \"f\" 1010000 0", "fstat 118", "read 118 11 at 0 1010000", "read 118 1 at 10 1010000"]);
    process.write_file(path("f"), "data").unwrap();
    expect(&["openat 7 \"f\" 70201a4 0", "write 119 \"data\" at 0 70201a4"]);
}

#[test]
fn relative_paths_go_to_the_directory() {
    let daemon = Daemon::start();
    let process = Process::new(0, 0);
    let dir = process.open(daemon.path("some/dir"), O_RDONLY, 0).unwrap();
    let here = process.at(&dir);
    daemon.calls();
    here.stat("f").unwrap();
    here.unlink("../f//g").unwrap();
    here.rename("f", "./g").unwrap();
    process.rename_into(daemon.path("f"), &dir, "h").unwrap();
    here.symlink("target", "l").unwrap();
    here.stat(daemon.path("f")).unwrap();
    assert_eq!(
        calls(&daemon),
        [
            "openat 100 \"f\" 21000000 0",
            "fstat 101",
            "fpath 100",
            "unlinkat 7 \"some/f/g\" 0",
            "openat 100 \"f\" a1000000 0",
            "fpath 100",
            "frename 102 \"some/dir/g\"",
            "openat 7 \"f\" a1000000 0",
            "fpath 100",
            "frename 103 \"some/dir/h\"",
            "openat 100 \"l\" 430201ed 0",
            "write 104 \"target\" at 0 430201ed",
            "openat 7 \"f\" 21000000 0",
            "fstat 105",
        ]
    );
}

#[test]
fn a_symlink_into_another_scheme_is_followed_there() {
    let daemon = Daemon::start();
    let process = Process::new(0, 0);
    // Its target is /scheme/file/target, and no scheme has that name here.
    assert_eq!(process.open(daemon.path("elsewhere"), O_RDONLY, 0).err(), Some(Error::new(ENODEV)));
    let expected =
        ["openat 7 \"elsewhere\" 10000 0", "openat 7 \"elsewhere\" 41010000 0", "read 100 4097 at 0 41010000"];
    assert_eq!(calls(&daemon), expected);
    let root = process.scheme_root(&daemon.name).unwrap();
    assert_eq!(process.at(&root).stat("elsewhere").err(), Some(Error::new(ENODEV)));
    assert_eq!(calls(&daemon).len(), 3);
}

#[test]
fn listings_grow_their_buffer_and_continue() {
    let daemon = Daemon::start();
    let entries = Process::new(0, 0).read_dir(daemon.path("d")).unwrap();
    let names: Vec<_> = entries.iter().map(|entry| (entry.name.len(), entry.ino, entry.next)).collect();
    assert_eq!(names, [(5, 1, 40), (1000, 2, 90)]);
    let listing: Vec<String> = calls(&daemon).split_off(1);
    let expected =
        ["getdents 100 after 0"].into_iter().chain(["getdents 100 after 40"; 2]).chain(["getdents 100 after 90"]);
    assert_eq!(listing, expected.collect::<Vec<_>>());
}

#[test]
fn many_processes_at_once() {
    let daemon = Daemon::start();
    let root = Arc::new(Process::new(0, 0).scheme_root(&daemon.name).unwrap());
    let threads: Vec<_> = (0..8)
        .map(|index: u32| {
            let root = root.clone();
            std::thread::spawn(move || {
                let process = Process::new(1000 + index, 2000 + index);
                for round in 0..200 {
                    let file = process.inherit(&root).openat(format!("{index}/{round}"), O_RDWR, 0).unwrap();
                    assert_eq!(file.fstat().unwrap().st_ino, file.id() as u64, "each gets its own answer");
                    let mut buf = [0; 3];
                    assert_eq!(file.read_at(&mut buf, u64::from(index)), Ok(3));
                    assert_eq!(buf, [b'a' + index as u8; 3]);
                }
                process.pid()
            })
        })
        .collect();
    let pids: Vec<usize> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let calls = daemon.await_calls(8 * 200 * 4);
    assert_eq!(calls.len(), 8 * 200 * 4);
    for (index, pid) in pids.iter().enumerate() {
        let by = format!(" by {pid}:{}:{}", 1000 + index, 2000 + index);
        let opens = calls.iter().filter(|call| call.starts_with("openat") && call.ends_with(&by));
        assert_eq!(opens.filter(|call| call.contains(&format!("\"{index}/"))).count(), 200);
    }
}
