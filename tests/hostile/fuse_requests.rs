//! A hostile kernel: any bytes become FUSE requests to a mount of a small overlay. Needs root.
//!
//! Every second request comes in the parts that it has over io_uring, the others in one piece. Each
//! request gets an answer with a valid errno. After the requests the next mount works. No
//! lower layer changes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use overlayfs::control::{
    self,
    frame::{Frame, SIZE},
};
use overlayfs::layer::OsLayer;
use overlayfs::options::Options;
use overlayfs::overlay::{Layers, Overlay};
use overlayfs_fuse::FrontEnd;
use overlayfs_fuse::control::About;
use overlayfs_fuse::dispatch::{Agreed, Reply, Request, handle};
use overlayfs_fuse::engine::{EngineFrontEnd, Settings};
use overlayfs_fuse::options::MountOptions;
use overlayfs_fuse::wire::{EntryOut, InHeader, OutHeader, ROOT, opcode};
use tempfile::TempDir;
use test_common::{Detail, Snapshot, put};
use zerocopy::{FromBytes, IntoBytes};

use crate::request::Bytes;

/// The largest answer that a request asks for.
const MAX_ANSWER: usize = 64 << 10;
/// Names, targets and attributes: bytes, with or without a zero at the end.
const NAMES: [&[u8]; 18] = [
    b"a\0",
    b"b\0",
    b"d\0",
    b"e\0",
    b"f\0",
    b"g\0",
    b".\0",
    b"..\0",
    b"\0",
    b"d/f\0",
    b".wh.a\0",
    b".wh..wh.work\0",
    b"x",
    b"user.x\0",
    b"trusted.overlay.opaque\0",
    b"security.capability\0",
    b"system.posix_acl_access\0",
    b"/\0",
];

/// The shape of each request: the number of 32-bit words behind the header, the number of names,
/// and whether data follow.
const SHAPES: [(u32, usize, usize, bool); 41] = [
    (opcode::LOOKUP, 0, 1, false),
    (opcode::LOOKUP, 0, 1, false),
    (opcode::LOOKUP, 0, 1, false),
    (opcode::FORGET, 2, 0, false),
    (opcode::GETATTR, 4, 0, false),
    (opcode::SETATTR, 22, 0, false),
    (opcode::READLINK, 0, 0, false),
    (opcode::SYMLINK, 0, 2, false),
    (opcode::MKNOD, 4, 1, false),
    (opcode::MKDIR, 2, 1, false),
    (opcode::UNLINK, 0, 1, false),
    (opcode::RMDIR, 0, 1, false),
    (opcode::RENAME, 2, 2, false),
    (opcode::LINK, 2, 1, false),
    (opcode::OPEN, 2, 0, false),
    (opcode::READ, 10, 0, false),
    (opcode::WRITE, 10, 0, true),
    (opcode::STATFS, 0, 0, false),
    (opcode::RELEASE, 6, 0, false),
    (opcode::FSYNC, 4, 0, false),
    (opcode::SETXATTR, 2, 1, true),
    (opcode::GETXATTR, 2, 1, false),
    (opcode::LISTXATTR, 2, 0, false),
    (opcode::REMOVEXATTR, 0, 1, false),
    (opcode::OPENDIR, 2, 0, false),
    (opcode::READDIR, 10, 0, false),
    (opcode::RELEASEDIR, 6, 0, false),
    (opcode::FSYNCDIR, 4, 0, false),
    (opcode::ACCESS, 2, 0, false),
    (opcode::CREATE, 4, 1, false),
    (opcode::INTERRUPT, 2, 0, false),
    (opcode::BATCH_FORGET, 10, 0, false),
    (opcode::FALLOCATE, 8, 0, false),
    (opcode::READDIRPLUS, 10, 0, false),
    (opcode::RENAME2, 4, 2, false),
    (opcode::LSEEK, 6, 0, false),
    (opcode::COPY_FILE_RANGE, 14, 0, false),
    (opcode::TMPFILE, 4, 1, false),
    (opcode::STATX, 6, 0, false),
    (opcode::IOCTL, 8, 0, false),
    (77, 4, 1, true),
];

/// Makes layers in a new directory in `parent`. A filesystem in memory is the best parent. Mounts
/// them and sends the mount the requests that `input` encodes.
pub fn run(parent: &Path, input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let dir = TempDir::with_prefix_in("overlayfs-kernel-", parent).unwrap();
    let [lower, upper] = ["lower", "upper"].map(|name| dir.path().join(name));
    fs::create_dir(&upper).unwrap();
    put::file(&lower, "a", "file");
    put::file(&lower, "d/f", vec![7; (1 << 20) + 1]);
    put::file(&lower, "d/e/g", "deep");
    put::link(&lower, "a", "b");
    put::symlink(&lower, "e", "d/f");
    let before = Snapshot::take(&lower, Detail::Xattrs);
    let mount = || {
        let open = |path, for_writing| OsLayer::open(path, for_writing).unwrap();
        let layers = Layers { upper: Some(open(&upper, true)), work: None, lowers: vec![open(&lower, false)] };
        Overlay::new(layers).unwrap()
    };
    let about = {
        let layers = Options { lowers: vec![lower.clone(); 200], ..Options::default() };
        About::this(Path::new("/m"), &MountOptions { layers, ..MountOptions::default() }, Some("oci"))
    };
    let front_end = EngineFrontEnd::new(mount(), Settings::default()).with_channel(about);
    let agreed =
        Agreed { flags: front_end.setup(u64::MAX).flags, valid: Duration::MAX, max_answer: MAX_ANSWER, prunes: true };
    let mut nodes = vec![ROOT];
    let mut reply = Reply::default();
    let mut room = vec![0; MAX_ANSWER];
    let mut in_parts = false;
    while !bytes.is_empty() {
        let Made { header, body, first } = request(&mut bytes, &nodes);
        let whole = [header.as_bytes(), &body].concat();
        let request = match in_parts {
            false => Request::whole(&whole).unwrap(),
            true => Request::in_parts(header, &body[..first], &body[first..]),
        };
        in_parts = !in_parts;
        if !handle(&front_end, &agreed, &request, &mut reply, &mut room) {
            continue;
        }
        assert!(reply.body().is_empty() || reply.data() == 0, "a body and data for {}", header.opcode);
        let answer = [reply.header(), reply.body(), &room[..reply.data()]].concat();
        let (out, body) = OutHeader::read_from_prefix(&answer).unwrap();
        assert_eq!((out.unique, out.len as usize), (header.unique, answer.len()));
        assert!((-133..=0).contains(&out.error), "errno {} for {}", out.error, header.opcode);
        assert!(out.error == 0 || body.is_empty());
        let names = matches!(
            header.opcode,
            opcode::LOOKUP
                | opcode::MKNOD
                | opcode::MKDIR
                | opcode::CREATE
                | opcode::SYMLINK
                | opcode::LINK
                | opcode::TMPFILE
        );
        if let (0, true, Ok((entry, _))) = (out.error, names, EntryOut::read_from_prefix(body)) {
            nodes.push(entry.node);
        }
    }
    drop(front_end);
    let overlay = mount();
    overlay.list(&overlay.open(overlay.root()), 0, &mut |_| true).unwrap();
    before.assert_same(&Snapshot::take(&lower, Detail::Xattrs), "the lower layer");
}

struct Made {
    header: InHeader,
    body: Vec<u8>,
    /// The length of the structure at the start of the body.
    first: usize,
}

fn request(bytes: &mut Bytes, nodes: &[u64]) -> Made {
    let node = |bytes: &mut Bytes| match bytes.byte() {
        known @ 0..240 => nodes[nodes.len() - 1 - usize::from(known) % nodes.len()],
        _ => bytes.number(),
    };
    let (opcode, words, names, data) = bytes.choose(&SHAPES);
    let mut body = Vec::new();
    for word in 0..words {
        let number = match bytes.byte() % 4 {
            // A word that names an object of the kernel is mostly a known number.
            0 if word % 2 == 0 => node(bytes) as u32,
            1 => 0,
            2 => u32::from(bytes.byte()),
            _ => bytes.number() as u32,
        };
        body.extend_from_slice(&number.to_ne_bytes());
    }
    if opcode == opcode::FALLOCATE {
        // The backing allocates memory for this request, so offset and length are small.
        body[11..16].fill(0);
        body[19..24].fill(0);
    }
    for _ in 0..names {
        body.extend_from_slice(bytes.choose(&NAMES));
    }
    if opcode == opcode::IOCTL {
        let command = bytes.choose(&[control::IOCTL, control::IOCTL, control::IOCTL, 0x8008_6601, 0x401c_5820]);
        body[12..16].copy_from_slice(&command.to_ne_bytes());
        body.extend(frame(bytes));
    }
    if data {
        let length = usize::from(bytes.byte());
        body.extend_from_slice(bytes.take(length));
    }
    if bytes.byte() < 8 {
        body.truncate(usize::from(bytes.byte()));
    }
    let node = if opcode == opcode::IOCTL && bytes.byte() < 200 { ROOT } else { node(bytes) };
    let uid = bytes.choose(&[0, 1000, u32::MAX]);
    let header = InHeader { opcode, unique: 7, node, uid, gid: uid, pid: 1, ..InHeader::default() };
    let first = (words * 4).min(body.len());
    Made { header, body, first }
}

/// Makes a frame of the channel, mostly a valid one, with any facts.
fn frame(bytes: &mut Bytes) -> Vec<u8> {
    let (error, cursor) = (bytes.choose(&[0, 0, 0, -1, 5]), bytes.choose(&[0, 0, 0, 1, 150, 7_000, u64::MAX]));
    let mut payload = Vec::new();
    for _ in 0..bytes.byte() % 4 {
        let (kind, length) = (bytes.choose(&[1, 1, 2, 2, 0, 3]), usize::from(bytes.byte()));
        let value = bytes.take(length);
        let (name, label) = (bytes.byte(), bytes.choose(&[0, 0, 1, 255]));
        payload.extend(((value.len() + 3) as u16).to_le_bytes());
        payload.extend([kind, name, label]);
        payload.extend(value);
    }
    let command = u16::from(bytes.byte() % 4);
    let mut frame = Frame { command, error, cursor, payload: &payload }.bytes().unwrap();
    match bytes.byte() {
        at @ 0..24 => frame[usize::from(at)] ^= bytes.byte(),
        24..32 => frame.truncate(bytes.number() as usize % SIZE),
        _ => {}
    }
    frame
}
