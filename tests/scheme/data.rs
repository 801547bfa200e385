//! Reads, writes, sizes and listings.

use std::collections::BTreeSet;

use linux_delegate::client::parse_dirents;
use syscall::dirent::{DirentHeader, DirentKind};
use syscall::error::{EACCES, EBADF, EFBIG, EINVAL, EISDIR, ENOENT, ENOTDIR};
use syscall::flag::{
    O_APPEND, O_CREAT, O_DIRECTORY, O_NONBLOCK, O_RDONLY, O_RDWR, O_STAT, O_WRONLY, SEEK_CUR, SEEK_END, SEEK_SET,
};

use crate::layers::FULL;
use crate::support::{Setup, ann, errno, eve, names, refused, root};

#[test]
fn the_kernel_keeps_offsets() {
    let setup = Setup::new(|lower| lower.file("file", 0o644));
    let file = setup.open(&ann(), "file", O_RDWR).unwrap();
    let mut buf = [0; 3];
    assert_eq!(file.read(&mut buf), Ok(3));
    assert_eq!(&buf, b"fil");
    assert_eq!(file.lseek(0, SEEK_CUR), Ok(3), "the handle is a positioned one");
    assert_eq!(file.write(b"L"), Ok(1));
    assert_eq!(file.read(&mut buf), Ok(0));
    assert_eq!(file.lseek(-2, SEEK_END), Ok(2));
    assert_eq!(file.read(&mut buf), Ok(2));
    assert_eq!(&buf[..2], b"lL");
    file.lseek(6, SEEK_SET).unwrap();
    assert_eq!(file.write(b"!"), Ok(1));
    assert_eq!(setup.content("file"), "filL\0\0!");
}

#[test]
fn the_scheme_appends() {
    let setup = Setup::new(|lower| lower.file("f", 0o644));
    let (one, two) =
        (setup.open(&ann(), "f", O_WRONLY | O_APPEND).unwrap(), setup.open(&ann(), "f", O_WRONLY | O_APPEND).unwrap());
    assert_eq!(one.write(b"1"), Ok(1));
    assert_eq!(two.write(b"2"), Ok(1));
    assert_eq!(one.write_at(b"3", 0), Ok(1), "an offset does not count");
    assert_eq!(setup.content("f"), "f123");

    let plain = setup.open(&ann(), "f", O_WRONLY).unwrap();
    assert_eq!(plain.write_at_with(b"4", 0, true, false), Ok(1), "asked for with the request");
    plain.set_flags(O_APPEND).unwrap();
    assert_eq!(plain.write_at(b"5", 0), Ok(1), "asked for afterwards");
    plain.set_flags(O_NONBLOCK).unwrap();
    assert_eq!(plain.write_at(b"F", 0), Ok(1), "and taken back");
    assert_eq!(setup.content("f"), "F12345");
}

#[test]
fn sizes_and_offsets_have_limits() {
    let setup = Setup::new(|lower| lower.file("f", 0o644));
    let file = setup.open(&ann(), "f", O_RDWR).unwrap();
    let last = i64::MAX as u64;
    for offset in [last + 1, u64::MAX - 1, u64::MAX] {
        assert_eq!(file.read_at(&mut [0; 8], offset), refused(EINVAL), "{offset:x}");
        assert_eq!(file.write_at(b"x", offset), refused(EINVAL), "{offset:x}");
        assert_eq!(file.ftruncate(offset), refused(EINVAL), "{offset:x}");
    }
    assert_eq!(file.read_at(&mut [0; 8], last), Ok(0));
    assert_eq!(file.write_at(b"xy", last - 1), refused(EFBIG));
    assert_eq!(file.write_at(b"", last), Ok(0));
    assert_eq!(file.read_at(&mut [], 0), Ok(0));
    assert_eq!(setup.content("f"), "f");
    assert!(!setup.layers.upper_names("").contains(&"f".to_owned()), "nothing was written, so nothing was copied up");
}

#[test]
fn files_are_resized_through_writable_handles() {
    let setup = Setup::new(|lower| {
        lower.file("file", 0o644);
        lower.dir("d", 0o755);
    });
    let file = setup.open(&ann(), "file", O_RDWR).unwrap();
    file.ftruncate(2).unwrap();
    assert_eq!(setup.content("file"), "fi");
    file.ftruncate(4).unwrap();
    assert_eq!(setup.content("file"), "fi\0\0");
    assert_eq!(file.fsize(), Ok(4));
    assert_eq!(setup.open(&ann(), "file", O_RDONLY).unwrap().ftruncate(0), refused(EBADF));
    assert_eq!(setup.open(&ann(), "d", O_RDONLY).unwrap().ftruncate(0), refused(EBADF));
    assert_eq!(errno(eve().truncate(setup.path("file"), 0)), EACCES);
}

#[test]
fn directories_are_not_read_as_files() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o755);
        lower.file("d/a", 0o644);
        lower.file("d/b", 0o644);
        lower.file("f", 0o644);
    });
    let dir = setup.open(&ann(), "d", O_RDONLY).unwrap();
    assert_eq!(dir.read(&mut [0; 8]), refused(EISDIR));
    assert_eq!(dir.write(b"x"), refused(EBADF));
    assert_eq!(dir.fsize(), Ok(2));
    assert_eq!(setup.open(&ann(), "f", O_RDONLY).unwrap().getdents(&mut [0; 512], 0), refused(ENOTDIR));
    dir.fsync().unwrap();
    dir.sys_fsync().unwrap();
    setup.open(&ann(), "f", O_RDWR).unwrap().fsync().unwrap();
}

#[test]
fn a_listing_merges_the_layers_and_names_the_kinds() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o777);
        lower.file("d/file", 0o644);
        lower.dir("d/dir", 0o755);
        lower.symlink("x", "d/link");
        lower.file("d/gone", 0o644);
        lower.file("d/changed", 0o644);
    });
    if FULL {
        ann().mkfifo(setup.path("d/fifo"), 0o600).unwrap();
        ann().mknod(setup.path("d/socket"), 0xC000 | 0o600).unwrap();
    }
    ann().unlink(setup.path("d/gone")).unwrap();
    ann().write_file(setup.path("d/changed"), "!").unwrap();
    let entries = ann().read_dir(setup.path("d")).unwrap();
    let mut kinds: Vec<(&str, u8)> = entries.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect();
    kinds.sort();
    let mut expected = vec![
        ("changed", DirentKind::Regular as u8),
        ("dir", DirentKind::Directory as u8),
        ("fifo", DirentKind::Unspecified as u8),
        ("file", DirentKind::Regular as u8),
        ("link", DirentKind::Symlink as u8),
        ("socket", DirentKind::Socket as u8),
    ];
    expected.retain(|(name, _)| FULL || !matches!(*name, "fifo" | "socket"));
    assert_eq!(kinds, expected);
    for entry in &entries {
        let stat = ann().lstat(setup.path(&format!("d/{}", entry.name))).unwrap();
        assert_eq!(entry.ino, stat.st_ino, "{}", entry.name);
    }
}

#[test]
fn a_listing_continues_behind_any_entry() {
    let count = 300;
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o777);
        for i in 0..count {
            lower.file(&format!("d/entry-{i}"), 0o644);
        }
    });
    let dir = setup.open(&ann(), "d", O_RDONLY | O_DIRECTORY).unwrap();
    let all = dir.entries().unwrap();
    assert_eq!(all.len(), count);
    for (i, entry) in all.iter().enumerate() {
        let mut buf = [0; 100];
        let len = dir.getdents(&mut buf, entry.next).unwrap();
        let next = parse_dirents(&buf[..len]).unwrap();
        assert_eq!(next.first(), all.get(i + 1), "behind {}", entry.name);
    }
    let mut buf = vec![0; 64 * 1024];
    let len = dir.getdents(&mut buf, 0).unwrap();
    assert_eq!(parse_dirents(&buf[..len]).unwrap(), all, "a large buffer is filled");
}

#[test]
fn a_listing_in_small_pieces_misses_and_repeats_nothing_while_the_directory_changes() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o777);
        for i in 0..100 {
            lower.file(&format!("d/stays-{i}"), 0o644);
            lower.file(&format!("d/goes-{i}"), 0o644);
        }
    });
    let dir = setup.open(&ann(), "d", O_RDONLY | O_DIRECTORY).unwrap();
    let mut seen = Vec::new();
    let mut after = 0;
    for round in 0.. {
        let mut buf = [0; 128];
        let len = dir.getdents(&mut buf, after).unwrap();
        let entries = parse_dirents(&buf[..len]).unwrap();
        let Some(last) = entries.last() else { break };
        after = last.next;
        seen.extend(entries.into_iter().map(|entry| entry.name));
        if round < 100 {
            ann().unlink(setup.path(&format!("d/goes-{round}"))).unwrap();
            ann().write_file(setup.path(&format!("d/new-{round}")), "").unwrap();
        }
    }
    let unique: BTreeSet<&String> = seen.iter().collect();
    assert_eq!(unique.len(), seen.len(), "an entry came twice");
    assert_eq!(seen.iter().filter(|name| name.starts_with("stays")).count(), 100);
}

#[test]
fn a_buffer_holds_an_entry_or_the_request_fails() {
    let setup = Setup::new(|lower| {
        lower.dir("d", 0o755);
        lower.file("d/a-rather-long-name", 0o644);
        lower.dir("empty", 0o755);
    });
    let dir = setup.open(&ann(), "d", O_RDONLY).unwrap();
    let header = size_of::<DirentHeader>();
    assert_eq!(dir.getdents(&mut [0; 8], 0), refused(EINVAL));
    assert_eq!(dir.getdents(&mut vec![0; header + 18], 0), refused(EINVAL));
    let len = dir.getdents(&mut [0; 64], 0).unwrap();
    assert_eq!(len, (header + 19 + 1).next_multiple_of(8).min(len), "one record");
    let empty = setup.open(&ann(), "empty", O_RDONLY).unwrap();
    assert_eq!(empty.getdents(&mut [0; 8], 0), Ok(0));
    assert_eq!(dir.getdents(&mut [0; 512], u64::MAX), Ok(0));
    assert_eq!(empty.std_fs_call(3, &mut [0; 512], 0, 4), refused(EINVAL), "a header that is too small");
}

#[test]
fn open_objects_outlive_their_names() {
    let setup = Setup::new(|lower| {
        lower.file("f", 0o644);
        lower.dir("d", 0o755);
    });
    let file = setup.open(&root(), "f", O_RDWR).unwrap();
    let dir = setup.open(&root(), "d", O_RDONLY).unwrap();
    root().unlink(setup.path("f")).unwrap();
    root().rmdir(setup.path("d")).unwrap();
    let mut buf = [0; 4];
    assert_eq!(file.read_at(&mut buf, 0), Ok(1));
    assert_eq!(file.write_at(b"more", 0), Ok(4));
    assert_eq!(file.read_at(&mut buf, 0), Ok(4));
    assert_eq!(&buf, b"more");
    assert_eq!((file.fstat().unwrap().st_nlink, file.fstat().unwrap().st_size), (0, 4));
    assert_eq!(dir.fstat().unwrap().st_nlink, 0);
    assert_eq!(names(dir.entries().unwrap()), [""; 0]);
    assert_eq!(file.path(), refused(ENOENT));
    assert!(!setup.exists("f"));
    root().write_file(setup.path("f"), "another").unwrap();
    assert_eq!(file.read_at(&mut buf, 0), Ok(4), "the name is another file's now");
}

#[test]
fn handles_follow_their_file_when_it_is_copied_up() {
    let setup = Setup::new(|lower| lower.file("f", 0o644));
    let reader = setup.open(&ann(), "f", O_RDONLY).unwrap();
    let mut buf = [0; 8];
    assert_eq!(reader.read_at(&mut buf, 0), Ok(1));
    let before = reader.fstat().unwrap();
    ann().open(setup.path("f"), O_WRONLY | O_CREAT, 0).unwrap().write(b"changed").unwrap();
    assert_eq!(reader.read_at(&mut buf, 0), Ok(7));
    assert_eq!(&buf[..7], b"changed");
    let after = reader.fstat().unwrap();
    assert_eq!((before.st_ino, before.st_dev), (after.st_ino, after.st_dev));
    assert_eq!(setup.open(&ann(), "f", O_STAT).unwrap().fstat().unwrap(), after);
}

#[test]
fn a_duplicate_has_an_id_of_its_own() {
    let setup = Setup::new(|lower| lower.file("f", 0o640));
    let file = setup.open(&ann(), "f", O_RDONLY).unwrap();
    assert_eq!(errno(file.dup(b"other")), EINVAL);
    let sqe = syscall::schemev2::Sqe {
        opcode: syscall::schemev2::Opcode::Dup as u8,
        args: [file.id() as u64, 1 << 63, 0, 0, 0, 0],
        ..Default::default()
    };
    // SAFETY: the request has no buffer.
    let copy = unsafe { file.raw(sqe) }.unwrap();
    assert_ne!(copy, file.id(), "the kernel never asks for an empty duplicate, but old ones did");
}
