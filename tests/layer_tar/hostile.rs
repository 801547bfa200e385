//! Archives that a layer cannot be made of, and unusual ones of which it can.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use overlayfs::layer::Time;
use overlayfs::layer_tools::archive::compress::{Compression, Compressor};
use overlayfs::layer_tools::archive::write::Writer;
use overlayfs::layer_tools::archive::{Member, MemberKind};
use test_common::{Detail, Setup, Snapshot, exists, names, put, xattrs};

use crate::{below, import, refused, run, shown};

/// A member of root.
fn member(path: &str, kind: MemberKind) -> Member {
    let mode = if kind == MemberKind::Dir { 0o755 } else { 0o644 };
    let mtime = Time { sec: 1_000_000_000, nsec: 5 };
    let (xattrs, acls) = (BTreeMap::new(), [None, None]);
    Member { path: PathBuf::from(path), kind, mode, uid: 0, gid: 0, mtime, atime: None, xattrs, acls }
}

fn dir(path: &str) -> Member {
    member(path, MemberKind::Dir)
}

/// A file with its own path as content.
fn file(path: &str) -> Member {
    of_size(path, path.len())
}

fn of_size(path: &str, size: usize) -> Member {
    let size = size as u64;
    member(path, MemberKind::File { size, data: (size > 0).then_some(0..size).into_iter().collect() })
}

fn mark(path: &str) -> Member {
    member(path, MemberKind::File { size: 0, data: Vec::new() })
}

fn symlink(path: &str, target: &str) -> Member {
    member(path, MemberKind::Symlink(target.into()))
}

fn link(path: &str, target: &str) -> Member {
    member(path, MemberKind::Link(target.into()))
}

fn sparse(path: &str, size: u64, data: &[Range<u64>]) -> Member {
    member(path, MemberKind::File { size, data: data.to_vec() })
}

fn with_xattr(mut member: Member, name: &str, value: &[u8]) -> Member {
    member.xattrs.insert(name.into(), value.to_vec());
    member
}

/// Returns an archive. Each file has its path as content, again and again.
fn archive(members: &[Member]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for member in members {
        writer.begin(member).unwrap();
        if let MemberKind::File { data, .. } = &member.kind {
            let length: u64 = data.iter().map(|range| range.end - range.start).sum();
            let path = member.path.to_str().unwrap().bytes().cycle();
            writer.data(&path.take(length as usize).collect::<Vec<_>>()).unwrap();
        }
    }
    writer.finish().unwrap()
}

/// Imports an archive that must be refused. Nothing may be left of it, inside or outside.
fn says(bytes: &[u8], options: &[&str], sentence: &str) {
    let setup = Setup::new();
    let source = setup.path("x.tar");
    fs::write(&source, bytes).unwrap();
    put::file(setup.root(), "outside/file", "kept");
    let outside = Snapshot::take(&setup.path("outside"), Detail::Everything);
    let into = setup.dir("into");
    let mut arguments: Vec<&dyn AsRef<OsStr>> = vec![&"import", &source, &into];
    arguments.extend(options.iter().map(|option| option as &dyn AsRef<OsStr>));
    println!("{sentence}");
    let said = refused(&arguments).replace(source.to_str().unwrap(), "x.tar");
    assert_eq!(said, sentence);
    assert_eq!(names(&into), [""; 0], "{sentence}");
    outside.assert_same(&Snapshot::take(&setup.path("outside"), Detail::Everything), "the directory outside");
}

#[test]
fn no_path_leaves_the_layer() {
    for (members, sentence) in [
        (vec![file("../out")], "cannot import ../out: its path contains `..`"),
        (vec![file("a/../../out")], "cannot import a/../../out: its path contains `..`"),
        (vec![dir("a"), dir("a/..")], "cannot import a/..: its path contains `..`"),
        (vec![file("/tmp/out")], "cannot import /tmp/out: its path is absolute"),
        (vec![symlink("s", "../outside"), file("s/x")], "cannot import s/x: s on its path is a symlink"),
        (vec![symlink("s", "../outside"), dir("s/d")], "cannot import s/d: s on its path is a symlink"),
        (vec![symlink("s", "../outside"), mark("s/.wh.file")], "cannot import s/.wh.file: s on its path is a symlink"),
        (vec![file("f"), file("f/x")], "cannot import f/x: f on its path is no directory"),
        (vec![symlink("", "x")], "cannot import .: only a directory can be the top of a layer"),
        (vec![symlink("s", "")], "cannot import s: its target is empty"),
    ] {
        says(&archive(&members), &[], sentence);
    }
    let long = "d/".repeat(2100) + "f";
    says(&archive(&[file(&long)]), &[], &format!("cannot import {long}: its path has more than 4096 bytes"));
    let name = "n".repeat(256);
    says(&archive(&[file(&name)]), &[], &format!("cannot import {name}: File name too long"));
}

#[test]
fn a_hard_link_stays_inside() {
    for (target, why) in [
        ("../outside/file", ": its path contains `..`"),
        ("/etc/passwd", ": its path is absolute"),
        ("missing", ", which the layer does not have before it"),
        ("d", ", a directory"),
        ("d/s/file", ", which the layer does not have before it"),
        ("", ", which is no object of the layer"),
        (".wh.gone", ", which is no object of the layer"),
    ] {
        let members = [dir("d"), symlink("d/s", "../../outside"), mark(".wh.gone"), link("l", target)];
        says(&archive(&members), &[], &format!("cannot import l: it is a link to {target}{why}"));
    }
}

#[test]
fn a_deletion_is_of_one_name() {
    for (members, sentence) in [
        (vec![mark(".wh...")], "cannot import .wh...: it deletes no name"),
        (vec![mark(".wh..")], "cannot import .wh..: it deletes no name"),
        (vec![file(".wh.a/b")], "cannot import .wh.a/b: .wh.a on its path is a whiteout, which has no entries"),
    ] {
        says(&archive(&members), &[], sentence);
    }
}

#[test]
fn sizes_are_bounded() {
    let limit = &["--limit", "1M"][..];
    let over = "the files of the layer have more than the limit of 1048576 bytes";
    let huge = 1 << 50;
    for (members, sentence) in [
        (vec![sparse("f", huge, &[])], format!("cannot import f: with its {huge} bytes {over}")),
        (
            vec![sparse("f", 700 << 10, &[]), sparse("g", 700 << 10, &[])],
            format!("cannot import g: with its 716800 bytes {over}"),
        ),
    ] {
        says(&archive(&members), limit, &sentence);
    }
    // Without an option the free space is the limit.
    let declared = sparse("f", huge, &[]);
    let setup = Setup::new();
    fs::write(setup.path("x.tar"), archive(&[declared])).unwrap();
    let said = refused(&[&"import", &setup.path("x.tar"), &setup.path("into")]);
    assert!(said.starts_with(&format!("cannot import f: with its {huge} bytes the files of the layer")), "{said}");

    // A few KiB that unpack to many: names without content, and attributes.
    let many: Vec<_> = (0..3000).map(|i| mark(&format!("{i}"))).collect();
    let mut bomb = Compressor::new(Vec::new(), Compression::Gzip);
    bomb.write_all(&archive(&many)).unwrap();
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 200_000);
    says(
        &bomb,
        limit,
        "cannot read x.tar: the archive is longer than the limit of 1048576 bytes (at byte 1048576 of the archive)",
    );
}

/// Returns an archive whose first header is changed; its checksum is right.
fn changed(mut bytes: Vec<u8>, change: impl Fn(&mut [u8])) -> Vec<u8> {
    change(&mut bytes[..512]);
    bytes[148..156].fill(b' ');
    let sum: u32 = bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

/// Returns an archive of one file that begins with these PAX records.
fn with_records(records: &[u8], content: &[u8]) -> Vec<u8> {
    let mut plain = of_size("f", content.len());
    plain.mtime = Time::default();
    let mut extension = of_size("x", records.len());
    extension.mtime = Time::default();
    let mut writer = Writer::new(Vec::new());
    writer.begin(&extension).unwrap();
    writer.data(records).unwrap();
    writer.begin(&plain).unwrap();
    writer.data(content).unwrap();
    changed(writer.finish().unwrap(), |header| header[156] = b'x')
}

#[test]
fn damage_is_named_with_its_place() {
    let good = archive(&[file("first"), file("second")]);
    let mut unsummed = good.clone();
    unsummed[0] = b'F';
    let plain = Member { mtime: Time::default(), ..mark("f") };
    let header_fault = |change: &dyn Fn(&mut [u8])| changed(archive(std::slice::from_ref(&plain)), change);
    for (bytes, sentence) in [
        (
            b"text, and no archive at all".repeat(40),
            "this is no header of a tar archive: its checksum is wrong (at byte 0 of the archive)",
        ),
        (unsummed, "this is no header of a tar archive: its checksum is wrong (at byte 0 of the archive)"),
        (b"short".to_vec(), "the archive ends without its end mark (at byte 0 of the archive)"),
        (Vec::new(), "the archive ends without its end mark (at byte 0 of the archive)"),
        (good[..good.len() - 1024].to_vec(), "the archive ends without its end mark (at byte 4096 of the archive)"),
        (good[..1538].to_vec(), "the archive ends in the content of this member (at byte 1024 of the archive)"),
        (
            header_fault(&|header| header[156] = b'V'),
            "it is of the kind 'V', which layers do not have (at byte 0 of the archive)",
        ),
        (
            header_fault(&|header| header[108] = b'x'),
            "x000000\\x00 in its header is no number (at byte 0 of the archive)",
        ),
        (
            header_fault(&|header| header[124..136].fill(0xff)),
            "its size 18446744073709551615 is too large (at byte 0 of the archive)",
        ),
        (with_records(b"9 path=x", b""), "its records are damaged (at byte 0 of the archive)"),
        (with_records(b"11 size=-1\n", b""), "its record size=-1 is damaged (at byte 0 of the archive)"),
        (with_records(b"13 uid=5.000\n", b""), "its record uid=5.000 is damaged (at byte 0 of the archive)"),
        (with_records(b"18 uid=4294967296\n", b""), "its owner 4294967296 is too large (at byte 1024 of the archive)"),
        (
            with_records(&vec![b'1'; 2 << 20], b""),
            "its names or attributes have 2097152 bytes, more than 1048576 (at byte 0 of the archive)",
        ),
        (
            with_records(b"22 GNU.sparse.major=2\n25 GNU.sparse.realsize=1\n", b""),
            "its holes are in a form 2 that is unknown (at byte 1024 of the archive)",
        ),
        (
            with_records(b"22 GNU.sparse.major=1\n25 GNU.sparse.realsize=1\n", b""),
            "the list of its holes is damaged (at byte 1024 of the archive)",
        ),
        (
            with_records(b"21 GNU.sparse.size=9\n22 GNU.sparse.map=0,2\n", b"xyz"),
            "the list of its holes does not match its content (at byte 1024 of the archive)",
        ),
        (
            with_records(b"21 GNU.sparse.size=9\n26 GNU.sparse.map=5,2,1,1\n", b"xyz"),
            "the list of its holes is damaged (at byte 1024 of the archive)",
        ),
        (
            with_records(b"21 GNU.sparse.size=2\n22 GNU.sparse.map=0,3\n", b"xyz"),
            "the list of its holes is damaged (at byte 1024 of the archive)",
        ),
        (
            with_records(b"21 GNU.sparse.size=9\n20 GNU.sparse.map=3\n", b"xyz"),
            "the list of its holes does not match its content (at byte 1024 of the archive)",
        ),
    ] {
        says(&bytes, &[], &format!("cannot read x.tar: {sentence}"));
    }
    let mut wrong = file("f");
    for (acl, sentence) in [
        ("u::rw,g::r,o::s", "its ACL is damaged"),
        (
            "u::rw,u:no-one-here:r,g::r,m::r,o::r",
            "its ACL has the user no-one-here, which neither the layer nor this system knows",
        ),
        (
            "u::rw,g::r,g:root/x:r,m::r,o::r",
            "its ACL has the group root/x, which neither the layer nor this system knows",
        ),
    ] {
        wrong.acls[0] = Some(acl.to_owned());
        says(&archive(&[wrong.clone()]), &[], &format!("cannot import f: {sentence}"));
    }
}

/// GNU tar writes ACLs with names alone. They mean the accounts of the layer first.
#[test]
fn names_in_acls_are_those_of_the_layer_else_of_the_system() {
    let acl = |path: &str, text: &str| Member { acls: [Some(text.to_owned()), None], ..file(path) };
    let text = "u::rw,u:daemon:r,u:own:r,u:77:r,g::r,g:own:w,m::rw,o::r";
    let users = |users: &str| {
        let mut member = of_size("etc/passwd", users.len());
        member.path = PathBuf::from("etc/passwd");
        (member, users.to_owned())
    };
    let (passwd, content) = users("own:x:4242:1::/:/bin/sh\n");
    let (mut group, groups) = users("own:x:4343:\n");
    group.path = PathBuf::from("etc/group");
    let mut writer = Writer::new(Vec::new());
    for (member, content) in [(&passwd, &content), (&group, &groups), (&acl("f", text), &"f".to_owned())] {
        writer.begin(member).unwrap();
        writer.data(content.as_bytes()).unwrap();
    }
    let setup = Setup::new();
    fs::write(setup.path("x.tar"), writer.finish().unwrap()).unwrap();
    let made = import(&setup.path("x.tar"), &setup.path("into")).remove(0);
    let shown = run(Command::new("getfacl").args(["-cnE"]).arg(made.join("f")));
    let daemon = run(Command::new("id").args(["-u", "daemon"]));
    let wanted = format!(
        "user::rw-\nuser:{}:r--\nuser:77:r--\nuser:4242:r--\ngroup::r--\ngroup:4343:-w-\nmask::rw-\nother::r--\n\n",
        daemon.trim()
    );
    assert_eq!(shown, wanted);

    // The layer's etc may be hostile.
    for members in [
        vec![symlink("etc", "/etc"), acl("f", "u::rw,u:daemon:r,g::r,m::r,o::r")],
        vec![symlink("etc/passwd", "/proc/kmsg"), acl("f", "u::rw,u:daemon:r,g::r,m::r,o::r")],
        vec![member("etc/passwd", MemberKind::Fifo), acl("f", "u::rw,u:daemon:r,g::r,m::r,o::r")],
    ] {
        let setup = Setup::new();
        let made = layer(&setup, &members);
        let shown = run(Command::new("getfacl").args(["-cnE"]).arg(made.join("f")));
        assert!(shown.contains(&format!("user:{}:r--\n", daemon.trim())), "{shown}");
    }
}

/// Imports an archive that is as it should be, and returns the layer.
fn layer(setup: &Setup, members: &[Member]) -> PathBuf {
    let source = setup.path("good.tar");
    fs::write(&source, archive(members)).unwrap();
    import(&source, &setup.path("into")).remove(0)
}

#[test]
fn what_another_overlay_obeys_is_no_mark() {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    put::file(&lower, "secret/file", "of the lower layer");
    let made = layer(
        &setup,
        &[
            with_xattr(dir("d"), "trusted.overlay.redirect", b"/secret"),
            with_xattr(dir("e"), "user.containers.override_stat", b"7:7:4755"),
            member("zero", MemberKind::CharDev(0)),
        ],
    );
    assert_eq!(xattrs(&made.join("d"))["trusted.overlay.overlay.redirect"], b"/secret");
    assert!(!xattrs(&made.join("e")).contains_key("user.containers.override_stat"));
    let tree = below(&[made.clone(), lower]);
    let find = |name: &str| tree.lookup(tree.root(), OsStr::new(name)).unwrap();
    assert_eq!(shown::entries(&tree, &find("d")), [""; 0], "the redirect counts");
    assert_eq!(tree.stat(&find("zero")).unwrap().rdev, 0);
    assert_eq!(tree.stat(&find("e")).unwrap().uid, 0);
}

#[test]
fn reserved_names_of_other_programs_are_left_out() {
    let setup = Setup::new();
    let members =
        [mark(".wh..wh.aufs"), dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2"), file("d/.wh..wh.redirect"), file("f")];
    fs::write(setup.path("x.tar"), archive(&members)).unwrap();
    let into = setup.path("into");
    let said = crate::tool(&[&"import", &setup.path("x.tar"), &into]).stderr;
    let sentence = "overlayfs-layer: left out: 4 entries of other programs (.wh..wh.*).\n";
    assert_eq!(String::from_utf8_lossy(&said), sentence);
    assert_eq!(names(&into.join(&names(&into)[0])), ["f"]);
}

/// At rest no whiteout is beside an object: readers disagree about that.
#[test]
fn a_whiteout_beside_a_directory_makes_it_opaque() {
    let lower = |setup: &Setup| {
        let lower = setup.dir("lower");
        put::file(&lower, "d/below", "");
        put::file(&lower, "f", "");
        lower
    };
    let orders = [
        [mark(".wh.d"), mark(".wh.f"), dir("d"), file("d/new"), file("f")],
        [dir("d"), file("d/new"), file("f"), mark(".wh.d"), mark(".wh.f")],
        [mark(".wh.d"), mark(".wh.f"), file("d/new"), dir("d"), file("f")],
    ];
    for members in orders {
        let setup = Setup::new();
        let made = layer(&setup, &members);
        assert_eq!(names(&made), ["d", "f"]);
        assert_eq!(names(&made.join("d")), [".wh..wh..opq", "new"]);
        let tree = below(&[made, lower(&setup)]);
        let dir = tree.lookup(tree.root(), OsStr::new("d")).unwrap();
        assert_eq!(shown::entries(&tree, &dir), ["new"]);
    }
}

/// The whiteout is gone with its directory, when the directory comes again.
#[test]
fn a_name_whose_whiteout_was_replaced_is_made() {
    let setup = Setup::new();
    let made = layer(&setup, &[mark("x/.wh.d"), file("x"), dir("x"), file("x/d/e")]);
    assert_eq!(names(&made.join("x")), ["d"]);
    assert_eq!(names(&made.join("x/d")), ["e"]);
}

#[test]
fn a_later_member_replaces_an_earlier_one() {
    let setup = Setup::new();
    let deep: Vec<_> = (1..600).map(|depth| dir(&"d/".repeat(depth))).collect();
    let mut members = deep.clone();
    members.extend([file("d/f"), file("kept"), link("linked", "kept"), file("linked"), file("d")]);
    members.extend([symlink("s", "kept"), file("s"), link("kept", "kept"), file("g"), dir("g")]);
    let made = layer(&setup, &members);
    assert_eq!(names(&made), ["d", "g", "kept", "linked", "s"]);
    for name in ["d", "kept", "linked", "s"] {
        assert_eq!(fs::read_to_string(made.join(name)).unwrap(), name);
    }
    assert!(made.join("g").is_dir());
}

#[test]
fn a_directory_keeps_its_attributes_whatever_comes_into_it_later() {
    let setup = Setup::new();
    let acl = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x04\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";
    let mut first = with_xattr(dir("d"), "system.posix_acl_default", acl);
    (first.mode, first.gid) = (0o2555, 7);
    let made = layer(&setup, &[first, file("d/a"), file("e/x"), dir("d/sub"), file("implied/f"), link("d/b", "d/a")]);
    let stat = fs::symlink_metadata(made.join("d")).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.gid(), stat.mtime(), stat.mtime_nsec()), (0o2555, 7, 1_000_000_000, 5));
    assert_eq!(xattrs(&made.join("d"))["system.posix_acl_default"], acl);
    for name in ["d/a", "d/sub"] {
        assert!(xattrs(&made.join(name)).is_empty(), "{name} inherited an ACL");
        assert_eq!(fs::symlink_metadata(made.join(name)).unwrap().gid(), 0, "{name}");
    }
    let implied = fs::symlink_metadata(made.join("implied")).unwrap();
    assert_eq!((implied.mode() & 0o7777, implied.mtime()), (0o755, 0));
}

#[test]
fn wishes_of_the_user_count() {
    let setup = Setup::new();
    let source = setup.path("x.tar");
    let mut program = file("program");
    (program.mode, program.uid) = (0o4755, 9);
    fs::write(&source, archive(&[program, member("null", MemberKind::CharDev(0x103))])).unwrap();
    let into = setup.path("into");
    let said = crate::tool(&[&"import", &source, &into, &"--no-devices", &"--owner", &"5:6"]);
    assert!(said.status.success());
    let made = into.join(&names(&into)[0]);
    assert_eq!(names(&made), ["program"]);
    let stat = fs::symlink_metadata(made.join("program")).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.permissions().mode() & 0o7777), (5, 6, 0o755));
    // The layer without these wishes is another one.
    assert_ne!(import(&source, &into)[0], made);
}

/// A user other than root imports a layer of root. A mount of that user shows root's owners.
#[test]
fn a_user_imports_a_layer_of_root() {
    let setup = Setup::for_users(&[]);
    let home = setup.dir("home");
    test_common::owner(&home, 4243, 4243);
    let mut program = file("d/program");
    (program.mode, program.uid, program.gid) = (0o4755, 0, 9);
    let mut closed = dir("d");
    closed.mode = 0o555;
    let capable = with_xattr(file("d/ping"), "security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let members = [dir(""), closed, program, capable, member("null", MemberKind::CharDev(0x103)), file("d/last")];
    fs::write(setup.path("x.tar"), archive(&members)).unwrap();
    let program = setup.path("overlayfs-layer");
    fs::copy(env!("CARGO_BIN_EXE_overlayfs-layer"), &program).unwrap();
    let as_user = |arguments: &[&dyn AsRef<OsStr>]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "4243", "--regid", "4243", "--clear-groups"]).arg(&program);
        command.args(arguments.iter().map(|argument| (*argument).as_ref()));
        command
    };
    let (source, into) = (setup.path("x.tar"), home.join("layers"));
    let said = as_user(&[&"import", &source, &into]).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&said.stderr),
        "overlayfs-layer: cannot import d/ping: its attribute security.capability cannot be set: Operation not \
         permitted; --rootless leaves it out.\n"
    );
    run(&mut as_user(&[&"import", &"--rootless", &source, &into]));
    let made = into.join(&names(&into)[0]);
    assert!(!exists(&made.join("null")));
    // The objects themselves belong to the user, who sees the records.
    let object = |path: &str| {
        let stat = fs::symlink_metadata(made.join(path)).unwrap();
        let record = xattrs(&made.join(path)).remove("user.containers.override_stat").unwrap();
        (stat.uid(), stat.mode() & 0o7777, String::from_utf8(record).unwrap())
    };
    assert_eq!(names(&made.join("d")), ["last", "ping", "program"]);
    assert_eq!(object("d"), (4243, 0o700, "0:0:555".to_owned()));
    assert_eq!(object("d/program"), (4243, 0o600, "0:9:4755".to_owned()));
}
