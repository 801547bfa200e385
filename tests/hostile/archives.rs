//! Hostile archives: any bytes become the members of an archive, and changes of its bytes. Needs
//! root.
//!
//! The import makes a layer of it, or refuses it with a sentence. It changes nothing outside the
//! layer, and leaves nothing behind. An overlay can show what it made.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use overlayfs::layer::{Kind, OsLayer, Time};
use overlayfs::layer_tools::archive::compress::{Compression, Compressor};
use overlayfs::layer_tools::archive::write::Writer;
use overlayfs::layer_tools::archive::{Member, MemberKind};
use overlayfs::layer_tools::import::{Source, Wishes, import};
use overlayfs::overlay::{Layers, Overlay};
use test_common::{Detail, Snapshot, put};

use crate::request::Bytes;

/// The limit of members of one input, and of the bytes of a layer.
const MOST: u8 = 30;
const LIMIT: u64 = 1 << 20;

/// The unit of an archive.
const BLOCK: usize = 512;

/// The paths of members, and the targets of links.
const PATHS: [&str; 24] = [
    "",
    "a",
    "b",
    "d",
    "d/a",
    "d/e",
    "d/e/f",
    "s",
    "s/a",
    "./a/",
    "..",
    "../outside/file",
    "d/../../outside/file",
    "/outside",
    ".wh.a",
    ".wh.d",
    "d/.wh.a",
    "d/.wh..wh..opq",
    ".wh...",
    ".wh.",
    ".wh.d/a",
    ".wh..wh.redirect",
    "d/.wh..wh.work/x",
    "d//e/./g",
];

/// Names and values of extended attributes.
const XATTRS: [(&str, &[u8]); 6] = [
    ("user.x", b"a\nb"),
    ("trusted.overlay.redirect", b"/d"),
    ("user.containers.override_stat", b"0:0:4755"),
    ("system.posix_acl_access", b"\x02\0\0\0"),
    ("security.capability", b"no capability"),
    ("", b"without a name"),
];

/// Makes an archive of `input` in a directory below `place`, and imports it.
pub fn run(place: &Path, input: &[u8]) {
    let home = tempfile::tempdir_in(place).unwrap();
    put::file(home.path(), "outside/file", "outside of the layer");
    let outside = Snapshot::take(&home.path().join("outside"), Detail::Everything);
    let (file, into) = (home.path().join("archive"), home.path().join("into"));
    let mut bytes = Bytes::new(input);
    fs::write(&file, archive(&mut bytes)).unwrap();
    let wishes = Wishes { no_devices: bytes.byte().is_multiple_of(4), limit: Some(LIMIT), ..Wishes::default() };
    match import(&Source::Archive(file), &into, wishes, &()) {
        Ok(imported) => imported.dirs.iter().for_each(|dir| show(dir)),
        Err(error) => {
            let sentence = error.to_string();
            assert!(sentence.starts_with("cannot ") && sentence.contains(": "), "{sentence}");
            assert_eq!(fs::read_dir(&into).map_or(0, Iterator::count), 0, "{sentence}: something is left");
        }
    }
    outside.assert_same(&Snapshot::take(&home.path().join("outside"), Detail::Everything), "the outside");
}

/// Walks through an overlay over the layer.
fn show(dir: &Path) {
    let lowers = vec![OsLayer::open(dir, false).unwrap()];
    let overlay = Overlay::new(Layers { upper: None, work: None, lowers }).unwrap();
    let mut pending = vec![overlay.root().clone()];
    while let Some(node) = pending.pop() {
        overlay.stat(&node).unwrap();
        if node.kind() == Kind::Dir {
            let mut names = Vec::new();
            let each = &mut |entry: overlayfs::overlay::DirEntry<'_>| {
                names.push(entry.name.to_owned());
                true
            };
            overlay.list(&overlay.open(&node), 0, each).unwrap();
            pending.extend(names.iter().map(|name| overlay.lookup(&node, name).unwrap()));
        }
    }
}

fn archive(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for _ in 0..bytes.byte() % MOST {
        let member = member(bytes);
        writer.begin(&member).unwrap();
        if let MemberKind::File { data, .. } = &member.kind {
            let length: u64 = data.iter().map(|range| range.end - range.start).sum();
            writer.data(&vec![bytes.byte(); length as usize]).unwrap();
        }
    }
    let mut archive = writer.finish().unwrap();
    for _ in 0..bytes.byte() % 8 {
        let (block, at, value) = (usize::from(bytes.byte()), usize::from(bytes.byte()) * 2, bytes.byte());
        let start = block * BLOCK % archive.len();
        archive[start + at] = value;
        // Without a right checksum the other changes of a header mean nothing.
        if !bytes.byte().is_multiple_of(4) {
            archive[start + 148..start + 156].fill(b' ');
            let sum: u32 = archive[start..start + BLOCK].iter().map(|byte| u32::from(*byte)).sum();
            archive[start + 148..start + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let (_, compression) = Compression::ALL[usize::from(bytes.byte()) % Compression::ALL.len()];
    let mut compressor = Compressor::new(Vec::new(), compression);
    compressor.write_all(&archive).unwrap();
    let mut compressed = compressor.finish().unwrap();
    if bytes.byte().is_multiple_of(8) {
        let length = usize::from(bytes.byte()) * compressed.len() / 256;
        compressed.truncate(length);
    }
    compressed
}

fn member(bytes: &mut Bytes<'_>) -> Member {
    let path = |bytes: &mut Bytes<'_>| PATHS[usize::from(bytes.byte()) % PATHS.len()];
    let kind = match bytes.byte() % 12 {
        0..3 => {
            let size = u64::from(bytes.byte()) * 8;
            let data = (size > 0).then_some(0..size).into_iter().collect();
            MemberKind::File { size, data }
        }
        3 => {
            let (start, length) = (u64::from(bytes.byte()) << 12, u64::from(bytes.byte()));
            let size = start + length + (u64::from(bytes.byte()) << 14);
            let data = (length > 0).then_some(start..start + length).into_iter().collect();
            MemberKind::File { size, data }
        }
        4..7 => MemberKind::Dir,
        7 => MemberKind::Symlink(["a", "../outside", "/", "d", ""][usize::from(bytes.byte()) % 5].into()),
        8 | 9 => MemberKind::Link(PathBuf::from(path(bytes))),
        10 => MemberKind::Fifo,
        _ => MemberKind::CharDev(u64::from(bytes.byte() % 3)),
    };
    let mut xattrs = BTreeMap::new();
    let extras = bytes.byte();
    if extras.is_multiple_of(4) {
        let (name, value) = XATTRS[usize::from(bytes.byte()) % XATTRS.len()];
        xattrs.insert(name.into(), value.to_vec());
    }
    let acl = ["user::rwx,group::r-x,other::r-x", "user:lp:r--", "?"]
        .get(usize::from(extras >> 4))
        .map(|acl| (*acl).to_owned());
    let mtime = Time { sec: i64::from(bytes.byte()) - 128, nsec: u32::from(extras) };
    let (mode, uid) = (u32::from(bytes.byte()) << 4, u32::from(bytes.byte()));
    Member { path: path(bytes).into(), kind, mode, uid, gid: 0, mtime, atime: None, xattrs, acls: [acl, None] }
}
