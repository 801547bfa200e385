//! Turns bytes into a request.
//!
//! Requests keep the guarantees of the real kernel: a buffer is valid, and a request with an opcode
//! of its own names the true caller. The client chooses everything else.

use syscall::data::{Stat, StatVfs, TimeSpec};
use syscall::dirent::DirentHeader;
use syscall::flag::{
    AT_REMOVEDIR, F_GETFL, F_SETFL, MODE_CHR, MODE_FIFO, MODE_SOCK, MapFlags, O_APPEND, O_CREAT, O_DIRECTORY, O_EXCL,
    O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_RDWR, O_STAT, O_SYMLINK, O_TRUNC, O_WRONLY, StdFsCallKind,
};
use syscall::schemev2::{Opcode, Sqe, SqeFlags};

/// The input, read from its start. After its end every byte is 0.
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// Takes up to `len` bytes, as many as are left.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Takes one of the given values.
    pub fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }

    /// Takes a number: near a limit, small, or any.
    pub fn number(&mut self) -> u64 {
        const BORDERS: [u64; 20] = [
            0,
            1,
            4095,
            4096,
            4097,
            (1 << 20) - 1,
            1 << 20,
            (1 << 20) + 1,
            (1 << 31) - 1,
            1 << 31,
            u32::MAX as u64,
            1 << 32,
            1 << 62,
            (1 << 63) - 4096,
            (1 << 63) - 2,
            (1 << 63) - 1,
            1 << 63,
            (1 << 63) + 1,
            u64::MAX - 1,
            u64::MAX,
        ];
        match self.byte() {
            at @ 0..64 => BORDERS[usize::from(at) % BORDERS.len()],
            small @ 64..192 => u64::from(small - 64),
            _ => self.take(8).iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
        }
    }

    /// Takes the length of a buffer.
    fn len(&mut self) -> usize {
        const LENGTHS: [usize; 16] = [
            0,
            1,
            8,
            16,
            31,
            size_of::<[TimeSpec; 2]>(),
            size_of::<StatVfs>(),
            size_of::<Stat>(),
            256,
            512,
            4095,
            4096,
            4097,
            10_000,
            65_536,
            70_000,
        ];
        match self.byte() {
            at @ 0..128 => LENGTHS[usize::from(at) % LENGTHS.len()],
            small => usize::from(small - 128),
        }
    }
}

/// The facts that the client uses to make up a request.
pub struct KnownToClient<'a> {
    /// Its own ids, with the user in the low half.
    pub packed: u64,
    /// The name of the scheme.
    pub scheme: &'a str,
    /// The id of the scheme's own handle.
    pub root: usize,
    /// The open ids, the newest last.
    pub live: &'a [usize],
    /// The closed ids.
    pub closed: &'a [usize],
    /// The tags of the requests that are in progress.
    pub tags: &'a [u32],
}

/// A request, and its buffer. Once the buffer has an address, the second and third argument name
/// it.
pub struct Request {
    pub sqe: Sqe,
    pub buffer: Option<Buffer>,
}

pub struct Buffer {
    pub bytes: Vec<u8>,
    /// The distance of the start of the buffer from an address that is aligned for every type.
    pub skew: usize,
}

/// The kind of a request. Kinds that change more stand several times, so they are chosen more
/// often.
#[derive(Clone, Copy)]
enum Shape {
    Own(Opcode),
    Standard(StdFsCallKind),
}

const SHAPES: [Shape; 64] = {
    use Opcode::*;
    use Shape::{Own, Standard};
    use StdFsCallKind as Kind;
    [
        Own(OpenAt),
        Own(OpenAt),
        Own(OpenAt),
        Own(OpenAt),
        Own(OpenAt),
        Own(OpenAt),
        Own(OpenAt),
        Own(OpenAt),
        Own(Write),
        Own(Write),
        Own(Write),
        Own(Write),
        Own(Read),
        Own(Read),
        Own(Read),
        Own(Frename),
        Own(Frename),
        Own(UnlinkAt),
        Own(UnlinkAt),
        Own(Flink),
        Own(Flink),
        Own(CloseMsg),
        Own(CloseMsg),
        Own(Dup),
        Own(Fsize),
        Own(Fchmod),
        Own(Fchown),
        Own(Fcntl),
        Own(Fevent),
        Own(Sendfd),
        Own(Recvfd),
        Own(Fpath),
        Own(Fstat),
        Own(Fstatvfs),
        Own(Fsync),
        Own(Ftruncate),
        Own(Futimens),
        Own(MmapPrep),
        Own(Munmap),
        Own(Msync),
        Own(RequestMmap),
        Own(Cancel),
        Own(Getdents),
        Own(Call),
        Own(Detach),
        Standard(Kind::Fchmod),
        Standard(Kind::Fchown),
        Standard(Kind::Getdents),
        Standard(Kind::Getdents),
        Standard(Kind::Fstat),
        Standard(Kind::Fstatvfs),
        Standard(Kind::Fsync),
        Standard(Kind::Ftruncate),
        Standard(Kind::Ftruncate),
        Standard(Kind::Futimens),
        Standard(Kind::Unlinkat),
        Standard(Kind::Relpathat),
        Standard(Kind::Lock),
        Standard(Kind::Lock),
        Standard(Kind::Unlock),
        Standard(Kind::GetLock),
        Standard(Kind::Frenameat),
        Standard(Kind::Frenameat),
        Standard(Kind::Flinkat),
    ]
};

/// Whether a request with this opcode has a buffer.
pub fn has_buffer(opcode: u8) -> bool {
    use Opcode::*;
    matches!(
        Opcode::try_from_raw(opcode),
        Some(
            OpenAt
                | UnlinkAt
                | Dup
                | Read
                | Write
                | Fpath
                | Frename
                | Flink
                | Fstat
                | Fstatvfs
                | Futimens
                | Getdents
                | Call
                | StdFsCall
        )
    )
}

impl Request {
    /// Makes up the next request.
    pub fn next(bytes: &mut Bytes, known: &KnownToClient) -> Self {
        let shape = bytes.choose(&SHAPES);
        let id = id(bytes, known);
        let mut request = match shape {
            Shape::Own(opcode) => own(opcode, id, bytes, known),
            Shape::Standard(kind) => standard(kind, id, bytes, known),
        };
        twist(&mut request, bytes);

        let Sqe { opcode, sqe_flags, tag, args, .. } = &mut request.sqe;
        let is_own = *opcode != Opcode::StdFsCall as u8 && *opcode != Opcode::Call as u8;
        if is_own {
            args[5] = known.packed;
        }
        if !has_buffer(*opcode) {
            request.buffer = None;
        }
        // The crate that decodes requests keeps no tag of these, so a client could not wait for an
        // answer. The kernel does not send them yet.
        if matches!(Opcode::try_from_raw(*opcode), Some(Opcode::Msync | Opcode::RequestMmap)) {
            sqe_flags.insert(SqeFlags::ONEWAY);
        }
        // A request without an answer must not have the tag of a request with one.
        if sqe_flags.contains(SqeFlags::ONEWAY) && *opcode != Opcode::Cancel as u8 {
            *tag |= 1 << 31;
        }
        // Without an answer, no client would know the new handle.
        if matches!(Opcode::try_from_raw(*opcode), Some(Opcode::OpenAt | Opcode::Dup)) {
            sqe_flags.remove(SqeFlags::ONEWAY);
        }
        request
    }
}

/// Chooses a handle: mostly an open one, the newest first.
fn id(bytes: &mut Bytes, known: &KnownToClient) -> u64 {
    let newest = |ids: &[usize], back: u8| match ids.len() {
        0 => known.root as u64,
        len => ids[len - 1 - usize::from(back) % len] as u64,
    };
    match bytes.byte() {
        back @ 0..200 => newest(known.live, back),
        200..216 => known.root as u64,
        back @ 216..240 => newest(known.closed, back - 216),
        _ => bytes.number(),
    }
}

/// Makes a request with an opcode of its own.
fn own(opcode: Opcode, id: u64, bytes: &mut Bytes, known: &KnownToClient) -> Request {
    let mut args = [id, 0, 0, 0, 0, 0];
    let mut tag = 0;
    let mut buffer = None;
    match opcode {
        Opcode::OpenAt => {
            buffer = Some(path(bytes, known));
            args[3] = open_flags(bytes);
            args[4] = args[3];
        }
        Opcode::UnlinkAt => {
            buffer = Some(path(bytes, known));
            args[3] = unlink_flags(bytes);
        }
        Opcode::Frename | Opcode::Flink => buffer = Some(path(bytes, known)),
        Opcode::Dup => {
            let len = bytes.choose(&[0, 0, 0, 1, 8, 255]);
            buffer = Some(bytes.take(len).to_vec());
        }
        Opcode::Read => {
            buffer = Some(vec![0; bytes.len()]);
            args[3] = bytes.number();
            args[4] = io_flags(bytes);
        }
        Opcode::Write => {
            buffer = Some(content(bytes, known));
            args[3] = bytes.number();
            args[4] = io_flags(bytes);
        }
        Opcode::Fpath => buffer = Some(vec![0; bytes.len()]),
        Opcode::Fstat => buffer = Some(vec![0; size_of::<Stat>()]),
        Opcode::Fstatvfs => buffer = Some(vec![0; size_of::<StatVfs>()]),
        Opcode::Futimens => buffer = Some(times(bytes)),
        Opcode::Getdents => {
            buffer = Some(vec![0; bytes.len()]);
            args[3] = header_size(bytes);
            args[4] = bytes.number();
        }
        Opcode::Call => {
            buffer = Some(vec![0; bytes.len()]);
            args[3..].fill_with(|| bytes.number());
        }
        Opcode::Fchmod => args[1] = mode(bytes),
        Opcode::Fchown => (args[1], args[2]) = (user(bytes), user(bytes)),
        Opcode::Fcntl => {
            args[1] = bytes.choose(&[F_GETFL as u64, F_SETFL as u64, 0, 1, 2, 5, 1030, u64::MAX]);
            args[2] = open_flags(bytes);
        }
        Opcode::Cancel => {
            let at = usize::from(bytes.byte());
            tag = if known.tags.is_empty() { at as u32 } else { known.tags[at % known.tags.len()] };
        }
        Opcode::MmapPrep | Opcode::Munmap => {
            args[1] = bytes.choose(&[1, 4096, 8192, 65_536, 3 << 20, 0, 4095, u64::MAX]);
            let flags = match bytes.byte() {
                0..64 => MapFlags::PROT_READ | MapFlags::MAP_PRIVATE,
                64..224 => MapFlags::PROT_READ | MapFlags::PROT_WRITE | MapFlags::MAP_SHARED,
                _ => MapFlags::from_bits_retain(bytes.number() as usize),
            };
            args[2] = flags.bits() as u64;
            args[3] = bytes.choose(&[0, 0, 0, 4096, 8192, 1 << 20, 1 << 32, (1 << 63) - 4096, 1]);
        }
        Opcode::Fsize | Opcode::Fsync | Opcode::CloseMsg | Opcode::Detach => {}
        // Wrong descriptors, and opcodes that are not in use yet.
        _ => args[1..5].fill_with(|| bytes.number()),
    }
    Request::new(opcode, SqeFlags::empty(), tag, args, buffer)
}

/// Makes a standard call. The client chooses all its arguments.
fn standard(kind: StdFsCallKind, first: u64, bytes: &mut Bytes, known: &KnownToClient) -> Request {
    use StdFsCallKind as Kind;
    let mut buffer = Vec::new();
    let mut flags = SqeFlags::empty();
    let (mut one, mut two) = (0, 0);
    match kind {
        Kind::Fchmod => one = mode(bytes),
        Kind::Fchown => one = user(bytes) & 0xFFFF_FFFF | user(bytes) << 32,
        Kind::Getdents => {
            buffer = vec![0; bytes.len()];
            (one, two) = (bytes.number(), header_size(bytes));
        }
        Kind::Fstat => buffer = vec![0; size_of::<Stat>()],
        Kind::Fstatvfs => buffer = vec![0; size_of::<StatVfs>()],
        Kind::Fsync => {}
        Kind::Ftruncate => one = bytes.number(),
        Kind::Futimens => buffer = times(bytes),
        Kind::Unlinkat => {
            buffer = path(bytes, known);
            one = unlink_flags(bytes);
        }
        Kind::Lock | Kind::Unlock | Kind::GetLock => {
            buffer = vec![0; if kind == Kind::GetLock { 16 } else { 0 }];
            let bits = bytes.byte();
            one = bytes.number() ^ u64::from(bits & 1) << 63;
            two = bytes.number() ^ u64::from(bits >> 1 & 1) << 63;
        }
        Kind::Relpathat => {
            flags = SqeFlags::MULTIPLE_IDS;
            two = id(bytes, known);
            buffer = vec![0; bytes.len()];
        }
        Kind::Frenameat => {
            flags = SqeFlags::MULTIPLE_IDS;
            two = id(bytes, known);
            buffer = [path(bytes, known), path(bytes, known)].join(&0);
            one = bytes.choose(&[0, 0, 0, 1, 2, 3, 4, u64::MAX]);
        }
        Kind::Flinkat => {
            flags = SqeFlags::MULTIPLE_IDS;
            two = id(bytes, known);
            buffer = path(bytes, known);
            one = bytes.choose(&[0, 0, 0, 1, u64::MAX]);
        }
    }
    Request::new(Opcode::StdFsCall, flags, 0, [first, 0, 0, kind as u64, one, two], Some(buffer))
}

impl Request {
    fn new(opcode: Opcode, sqe_flags: SqeFlags, tag: u32, args: [u64; 6], buffer: Option<Vec<u8>>) -> Self {
        Self {
            sqe: Sqe { opcode: opcode as u8, sqe_flags, tag, args, ..Sqe::default() },
            buffer: buffer.map(|bytes| Buffer { bytes, skew: 0 }),
        }
    }
}

/// Changes one part of a request to an unusual value.
fn twist(request: &mut Request, bytes: &mut Bytes) {
    let Sqe { opcode, sqe_flags, tag, args, .. } = &mut request.sqe;
    match bytes.byte() {
        0..208 => {}
        at @ 208..228 => args[usize::from(at) % args.len()] = bytes.number(),
        228..236 => {
            let len = bytes.len();
            request.buffer.get_or_insert(Buffer { bytes: Vec::new(), skew: 0 }).bytes.resize(len, 0);
        }
        236..244 => {
            let skew = usize::from(bytes.byte() % 8);
            request.buffer.get_or_insert(Buffer { bytes: Vec::new(), skew: 0 }).skew = skew;
        }
        244..248 => *sqe_flags ^= SqeFlags::from_bits_retain(bytes.byte()),
        248..252 => *opcode = bytes.byte(),
        _ => *tag = bytes.number() as u32,
    }
}

/// Makes a path, mostly of a few names that may exist.
fn path(bytes: &mut Bytes, known: &KnownToClient) -> Vec<u8> {
    let how = bytes.byte();
    let mut path: Vec<u8> = match how {
        0..200 => Vec::from(if how & 8 != 0 { "/" } else { "" }),
        200..208 => return bytes.take(usize::from(how - 199) * 8).to_vec(),
        208..216 => format!("/scheme/{}/", known.scheme).into(),
        216..220 => "../".repeat(1000).into(),
        220..224 => "d/../".repeat(800).into(),
        224..228 => "./".repeat(2040).into(),
        228..232 => "/".repeat(4090).into(),
        // The longest path that the kernel takes, and longer ones that only a standard call can
        // send.
        232..240 => return vec![b'n'; [255, 256, 4095, 4096, 4097, 5000, 8192, 65_536][usize::from(how - 232)]],
        _ => return Vec::new(),
    };
    for _ in 0..(how & 3) + 1 {
        if path.last().is_some_and(|last| *last != b'/') {
            path.push(b'/');
        }
        path.extend(name(bytes));
    }
    if how & 4 != 0 && how & 32 != 0 {
        path.push(b'/');
    }
    path
}

/// Makes a name, mostly of an object that the layers have.
fn name(bytes: &mut Bytes) -> Vec<u8> {
    const NAMES: [&str; 28] = [
        "d",
        "f",
        "g",
        "sub",
        "x",
        "tmp",
        "roots",
        "big",
        "new",
        "other",
        "link",
        "up",
        "top",
        "loop",
        "out",
        "first",
        "second",
        "below",
        "gone",
        "secret",
        "key",
        ".",
        "..",
        ".wh.f",
        ".wh..wh.opq",
        ".wh..wh.work",
        "a:b",
        "\u{fffd}\u{1f980}",
    ];
    match bytes.byte() {
        at @ 0..240 => NAMES[usize::from(at) % NAMES.len()].into(),
        at @ 240..244 => vec![b'l'; [250, 251, 252, 255][usize::from(at - 240)]],
        244..248 => vec![b'a', 0, b'b'],
        248..252 => vec![b'd', 0xFF, 0xC0],
        _ => {
            let len = usize::from(bytes.byte() % 16);
            bytes.take(len).to_vec()
        }
    }
}

/// Makes the data of a write: data of a file, or the target of a new symlink, or the number of a
/// new device.
fn content(bytes: &mut Bytes, known: &KnownToClient) -> Vec<u8> {
    match bytes.byte() {
        0..128 => {
            let mut content = vec![b'w'; bytes.len()];
            let start = bytes.take(content.len().min(8));
            content[..start.len()].copy_from_slice(start);
            content
        }
        128..192 => path(bytes, known),
        192..224 => bytes.number().to_ne_bytes().to_vec(),
        _ => Vec::new(),
    }
}

fn open_flags(bytes: &mut Bytes) -> u64 {
    let flags = match bytes.byte() {
        0..32 => O_RDONLY,
        32..64 => O_RDWR,
        64..80 => O_WRONLY | O_TRUNC,
        80..112 => O_RDWR | O_CREAT,
        112..128 => O_RDWR | O_CREAT | O_EXCL,
        128..144 => O_RDONLY | O_DIRECTORY,
        144..160 => O_CREAT | O_EXCL | O_DIRECTORY,
        160..176 => O_CREAT | O_SYMLINK | O_WRONLY,
        176..188 => O_SYMLINK | O_RDONLY,
        188..204 => O_STAT,
        204..220 => O_STAT | O_NOFOLLOW,
        220..224 => O_RDWR | O_APPEND,
        224..228 => {
            return (O_CREAT | O_STAT | usize::from(bytes.choose(&[MODE_FIFO, MODE_SOCK]))) as u64 | mode(bytes);
        }
        228..232 => return (O_CREAT | O_WRONLY | usize::from(MODE_CHR)) as u64 | mode(bytes),
        _ => return bytes.number(),
    };
    flags as u64 | mode(bytes)
}

fn mode(bytes: &mut Bytes) -> u64 {
    match bytes.byte() {
        0..64 => 0o777,
        64..128 => 0o666,
        128..160 => 0o600,
        160..176 => 0,
        176..192 => 0o1777,
        192..208 => 0o6755,
        208..224 => 0o2777,
        _ => bytes.number() & 0xFFFF,
    }
}

fn unlink_flags(bytes: &mut Bytes) -> u64 {
    match bytes.byte() {
        0..128 => 0,
        128..240 => AT_REMOVEDIR as u64,
        _ => bytes.number(),
    }
}

fn io_flags(bytes: &mut Bytes) -> u64 {
    match bytes.byte() {
        0..192 => 0,
        192..216 => O_APPEND as u64,
        216..240 => O_NONBLOCK as u64,
        _ => bytes.number(),
    }
}

fn user(bytes: &mut Bytes) -> u64 {
    match bytes.byte() {
        0..192 => bytes.choose(&[0, 100, 200, 1000, 1002, u64::MAX]),
        _ => bytes.number(),
    }
}

fn header_size(bytes: &mut Bytes) -> u64 {
    match bytes.byte() {
        0..224 => size_of::<DirentHeader>() as u64,
        _ => bytes.number(),
    }
}

/// Encodes two times in memory, as futimens takes them.
fn times(bytes: &mut Bytes) -> Vec<u8> {
    let mut times = Vec::new();
    for _ in 0..2 {
        times.extend(bytes.number().to_ne_bytes());
        let nanoseconds = match bytes.byte() {
            0..128 => 0,
            128..176 => (1 << 30) - 1,
            176..224 => (1 << 30) - 2,
            _ => bytes.number(),
        };
        times.extend(nanoseconds.to_ne_bytes());
    }
    times
}
