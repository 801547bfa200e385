//! From the bytes of a request to a call of the front end, and from its result to the bytes of the
//! answer.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlayfs::control;
use overlayfs::control::requests::Part;
use overlayfs::errno::{EINVAL, ENOSYS, ERANGE, Error, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::flags;
use crate::front_end::{Caller, FrontEnd, ListingReply, NewMode, NodeEntry, Opened, Valid, Write, entry_out};
use crate::wire::{self, InHeader, OutHeader, init, opcode};

/// The agreement with the kernel at the start of the mount.
#[derive(Clone, Copy, Debug)]
pub struct Agreed {
    /// The features of `wire::init`.
    pub flags: u64,
    /// How long entries and attributes are valid.
    pub valid: Duration,
    /// The largest answer to a READ or a listing, in bytes.
    pub max_answer: usize,
    /// Whether the kernel takes requests to drop objects.
    pub prunes: bool,
}

/// A request in its parts. Each transport delivers them in its own memory.
pub struct Request<'a> {
    /// Its header.
    pub header: InHeader,
    body: Body<'a>,
}

impl<'a> Request<'a> {
    /// Reads the header of a request in one piece. None: the request is too short.
    pub fn whole(bytes: &'a [u8]) -> Option<Self> {
        let (header, body) = InHeader::read_from_prefix(bytes).ok()?;
        Some(Self { header, body: Body { first: body, rest: &[] } })
    }

    /// Joins the parts of a request: its header, its first structure, which may be empty, and what
    /// follows.
    pub fn in_parts(header: InHeader, first: &'a [u8], rest: &'a [u8]) -> Self {
        Self { header, body: Body { first, rest } }
    }

    /// Returns the structure at the start of its body. None: the request is too short.
    pub fn first<T: FromBytes + KnownLayout + Immutable>(&self) -> Option<T> {
        self.body.clone().take().ok()
    }
}

/// An answer. A thread keeps it from one request to the next.
#[derive(Default)]
pub struct Reply {
    /// The header, then the body. The data of a file are not here.
    bytes: Vec<u8>,
    data: usize,
    /// The counters of the thread.
    counted: Option<Arc<Part>>,
}

impl Reply {
    /// Makes the reply of a thread with these counters.
    pub(crate) fn counting(counted: Option<Arc<Part>>) -> Self {
        Self { counted, ..Self::default() }
    }

    /// Counts a request that began at this time.
    pub(crate) fn count(&self, request: &Request<'_>, begun: Instant, is_answered: bool) {
        let Some(counted) = &self.counted else { return };
        let header = OutHeader::read_from_prefix(&self.bytes).ok().filter(|_| is_answered);
        counted.add(kind(request.header.opcode), begun.elapsed(), header.map_or(0, |(out, _)| -out.error));
    }

    /// Returns the header.
    pub fn header(&self) -> &[u8] {
        &self.bytes[..size_of::<OutHeader>().min(self.bytes.len())]
    }

    /// Returns the body, which is empty if there are data.
    pub fn body(&self) -> &[u8] {
        self.bytes.get(size_of::<OutHeader>()..).unwrap_or_default()
    }

    /// Returns how many bytes of data are at the start of the room.
    pub fn data(&self) -> usize {
        self.data
    }

    fn begin(&mut self) {
        self.bytes.clear();
        self.data = 0;
        self.bytes.extend_from_slice(OutHeader::default().as_bytes());
    }

    /// Writes the header of the answer to a request into the room for it. An error has no other
    /// data.
    fn finish(&mut self, to: &InHeader, done: Result<()>) {
        if done.is_err() {
            self.bytes.truncate(size_of::<OutHeader>());
        }
        let error = done.map_or_else(wire::errno, |()| 0);
        log::trace!("{} of {} by {}:{}: {error}", name(to.opcode), to.node, to.uid, to.pid);
        let length = self.bytes.len() + self.data;
        let out = OutHeader { len: length as u32, error, unique: to.unique };
        self.bytes[..size_of::<OutHeader>()].copy_from_slice(out.as_bytes());
    }
}

/// Handles one request. `room` takes the data that are read from a file. Returns whether `reply`
/// holds an answer to send: some requests get none.
pub fn handle(
    front_end: &impl FrontEnd,
    agreed: &Agreed,
    request: &Request<'_>,
    reply: &mut Reply,
    room: &mut [u8],
) -> bool {
    reply.begin();
    match perform(front_end, agreed, &request.header, request.body.clone(), reply, room) {
        Ok(Answer::Made) => reply.finish(&request.header, Ok(())),
        Ok(Answer::None) => return false,
        Err(error) => reply.finish(&request.header, Err(error)),
    }
    true
}

/// Answers an error to a request.
pub fn refuse(request: &Request<'_>, error: Error, reply: &mut Reply) {
    reply.begin();
    reply.finish(&request.header, Err(error));
}

/// The result of a request.
enum Answer {
    /// The answer is in the buffers.
    Made,
    /// The kernel wants no answer.
    None,
}

/// The parts of a request behind its header. The second follows the first.
#[derive(Clone)]
struct Body<'a> {
    first: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    /// Returns the part from which the next piece comes. No piece is in both.
    fn next(&mut self) -> &mut &'a [u8] {
        if self.first.is_empty() { &mut self.rest } else { &mut self.first }
    }

    /// Takes the next structure.
    ///
    /// # Errors
    ///
    /// - EINVAL: the request is too short.
    fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T> {
        let from = self.next();
        let (value, rest) = T::read_from_prefix(from).map_err(|_| Error::new(EINVAL))?;
        *from = rest;
        Ok(value)
    }

    /// Takes the next text, without the zero byte that ends it.
    ///
    /// # Errors
    ///
    /// - EINVAL: the text has no end.
    fn text(&mut self) -> Result<&'a OsStr> {
        let from = self.next();
        let end = from.iter().position(|byte| *byte == 0).ok_or(Error::new(EINVAL))?;
        let text = OsStr::from_bytes(&from[..end]);
        *from = &from[end + 1..];
        Ok(text)
    }

    /// Takes the next `length` bytes.
    ///
    /// # Errors
    ///
    /// - EINVAL: the request is too short.
    fn bytes(&mut self, length: usize) -> Result<&'a [u8]> {
        let from = self.next();
        let (bytes, rest) = from.split_at_checked(length).ok_or(Error::new(EINVAL))?;
        *from = rest;
        Ok(bytes)
    }

    /// Takes all that is left.
    fn all(&mut self) -> &'a [u8] {
        std::mem::take(self.next())
    }
}

#[expect(clippy::too_many_lines, reason = "one table, a row or a few lines for each request")]
fn perform(
    front_end: &impl FrontEnd,
    agreed: &Agreed,
    header: &InHeader,
    mut body: Body<'_>,
    reply: &mut Reply,
    room: &mut [u8],
) -> Result<Answer> {
    let answer = &mut reply.bytes;
    let valid = Valid { usual: agreed.valid, files_expire: front_end.files_expire() };
    let caller = Caller { uid: header.uid, gid: header.gid, pid: header.pid, request: header.unique };
    let node = header.node;
    let put = |answer: &mut Vec<u8>, bytes: &[u8]| {
        answer.extend_from_slice(bytes);
        Ok(Answer::Made)
    };
    let put_entry = |answer: &mut Vec<u8>, entry: &NodeEntry| {
        answer.extend_from_slice(entry_out(Some(entry), valid).as_bytes());
        Ok(Answer::Made)
    };
    let put_attr = |answer: &mut Vec<u8>, attr: wire::Attr| {
        let (valid, valid_nsec) = wire::valid_for(valid.of(&attr));
        answer.extend_from_slice(wire::AttrOut { valid, valid_nsec, dummy: 0, attr }.as_bytes());
        Ok(Answer::Made)
    };
    let done = |()| Answer::Made;

    match header.opcode {
        opcode::LOOKUP => {
            let found = front_end.lookup(caller, node, body.text()?)?;
            put(answer, entry_out(found.as_ref(), valid).as_bytes())
        }
        opcode::FORGET => {
            let forget: wire::ForgetIn = body.take()?;
            front_end.forget(node, forget.count);
            Ok(Answer::None)
        }
        opcode::BATCH_FORGET => {
            let batch: wire::BatchForgetIn = body.take()?;
            for _ in 0..batch.count {
                let one: wire::ForgetOne = body.take()?;
                front_end.forget(one.node, one.count);
            }
            Ok(Answer::None)
        }
        opcode::INTERRUPT => Ok(Answer::None),
        opcode::DESTROY => Ok(Answer::Made),
        opcode::GETATTR => put_attr(answer, front_end.getattr(caller, node)?),
        opcode::SETATTR => put_attr(answer, front_end.setattr(caller, node, &body.take()?)?),
        opcode::STATX => {
            let (attr, birth) = front_end.birth(node)?;
            put(answer, statx_out(valid, &attr, birth).as_bytes())
        }
        opcode::READLINK => put(answer, front_end.readlink(caller, node)?.as_bytes()),
        opcode::SYMLINK => {
            let name = body.text()?;
            put_entry(answer, &front_end.symlink(caller, node, name, body.text()?)?)
        }
        opcode::MKNOD => {
            let make: wire::MknodIn = body.take()?;
            let mode = NewMode { mode: make.mode, umask: make.umask };
            put_entry(answer, &front_end.mknod(caller, node, body.text()?, mode, wire::device_from_wire(make.rdev))?)
        }
        opcode::MKDIR => {
            let make: wire::MkdirIn = body.take()?;
            put_entry(
                answer,
                &front_end.mkdir(caller, node, body.text()?, NewMode { mode: make.mode, umask: make.umask })?,
            )
        }
        opcode::UNLINK => front_end.unlink(caller, node, body.text()?).map(done),
        opcode::RMDIR => front_end.rmdir(caller, node, body.text()?).map(done),
        opcode::RENAME => {
            let rename: wire::RenameIn = body.take()?;
            let (from, to) = ((node, body.text()?), (rename.new_dir, body.text()?));
            front_end.rename(caller, from, to, 0).map(done)
        }
        opcode::RENAME2 => {
            let rename: wire::Rename2In = body.take()?;
            let (from, to) = ((node, body.text()?), (rename.new_dir, body.text()?));
            front_end.rename(caller, from, to, rename.flags).map(done)
        }
        opcode::LINK => {
            let link: wire::LinkIn = body.take()?;
            put_entry(answer, &front_end.link(caller, link.node, node, body.text()?)?)
        }
        opcode::OPEN => {
            let open: wire::OpenIn = body.take()?;
            put(answer, open_out(front_end.open(caller, node, open.flags as i32)?).as_bytes())
        }
        opcode::CREATE => {
            let create: wire::CreateIn = body.take()?;
            let mode = NewMode { mode: create.mode, umask: create.umask };
            let (entry, opened) = front_end.create(caller, node, body.text()?, mode, create.flags as i32)?;
            put_entry(answer, &entry)?;
            put(answer, open_out(opened).as_bytes())
        }
        opcode::TMPFILE => {
            let create: wire::CreateIn = body.take()?;
            let (entry, opened) =
                front_end.tmpfile(caller, node, NewMode { mode: create.mode, umask: create.umask })?;
            put_entry(answer, &entry)?;
            put(answer, open_out(opened).as_bytes())
        }
        opcode::READ => {
            let read: wire::ReadIn = body.take()?;
            let length = (read.size as usize).min(agreed.max_answer).min(room.len());
            reply.data = front_end.read(caller, node, read.fh, read.offset, &mut room[..length])?;
            Ok(Answer::Made)
        }
        opcode::WRITE => {
            let write: wire::WriteIn = body.take()?;
            let data = body.bytes(write.size as usize)?;
            let (fh, offset, open_flags) = (write.fh, write.offset, write.flags as i32);
            let written =
                front_end.write(caller, node, Write { fh, offset, data, open_flags, flags: write.write_flags })?;
            put(answer, wire::WriteOut { size: written as u32, padding: 0 }.as_bytes())
        }
        opcode::STATFS => put(answer, front_end.statfs(node)?.as_bytes()),
        opcode::RELEASE => {
            let release: wire::ReleaseIn = body.take()?;
            front_end.release(release.fh);
            Ok(Answer::Made)
        }
        opcode::FSYNC => {
            let sync: wire::FsyncIn = body.take()?;
            front_end.fsync(node, sync.fh).map(done)
        }
        opcode::SETXATTR => {
            let set: wire::SetxattrIn = body.take()?;
            let extended = match agreed.flags & init::SETXATTR_EXT {
                0 => wire::SetxattrExt::default(),
                _ => body.take()?,
            };
            let name = body.text()?;
            let kill_sgid = extended.setxattr_flags & wire::SETXATTR_ACL_KILL_SGID != 0;
            let value = body.bytes(set.size as usize)?;
            front_end.setxattr(caller, node, name, value, set.flags as i32, kill_sgid).map(done)
        }
        opcode::GETXATTR => {
            let get: wire::GetxattrIn = body.take()?;
            put_sized(answer, get.size, &front_end.getxattr(caller, node, body.text()?, get.size == 0)?)
        }
        opcode::LISTXATTR => {
            let list: wire::GetxattrIn = body.take()?;
            let mut names = Vec::new();
            for name in front_end.listxattr(caller, node)? {
                names.extend_from_slice(name.as_bytes());
                names.push(0);
            }
            put_sized(answer, list.size, &names)
        }
        opcode::REMOVEXATTR => front_end.removexattr(caller, node, body.text()?).map(done),
        opcode::OPENDIR => put(answer, open_out(front_end.opendir(caller, node)?).as_bytes()),
        opcode::READDIR | opcode::READDIRPLUS => {
            let read: wire::ReadIn = body.take()?;
            let plus = (header.opcode == opcode::READDIRPLUS).then_some(valid);
            let mut listing = ListingReply::new(answer, (read.size as usize).min(agreed.max_answer), plus);
            front_end.readdir(caller, node, read.fh, read.offset, &mut listing)?;
            Ok(Answer::Made)
        }
        opcode::RELEASEDIR => {
            let release: wire::ReleaseIn = body.take()?;
            front_end.releasedir(release.fh);
            Ok(Answer::Made)
        }
        opcode::FSYNCDIR => {
            let sync: wire::FsyncIn = body.take()?;
            front_end.fsyncdir(node, sync.fh).map(done)
        }
        opcode::ACCESS => {
            let access: wire::AccessIn = body.take()?;
            front_end.access(caller, node, access.mask).map(done)
        }
        opcode::FALLOCATE => {
            let allocate: wire::FallocateIn = body.take()?;
            front_end.fallocate(caller, node, allocate.mode as i32, allocate.offset, allocate.length).map(done)
        }
        opcode::LSEEK => {
            let seek: wire::LseekIn = body.take()?;
            let offset = front_end.lseek(node, seek.offset, seek.whence as i32)?;
            put(answer, wire::LseekOut { offset }.as_bytes())
        }
        opcode::IOCTL => {
            let ioctl: wire::IoctlIn = body.take()?;
            let said = match ioctl.command {
                control::IOCTL => front_end.control(caller, node, body.all())?,
                other => flags::perform(front_end, node, other, body.all())?,
            };
            put(answer, wire::IoctlOut::default().as_bytes())?;
            put(answer, &said)
        }
        opcode::COPY_FILE_RANGE => {
            let copy: wire::CopyFileRangeIn = body.take()?;
            let copied =
                front_end.copy_file_range(caller, (node, copy.offset), (copy.to_node, copy.to_offset), copy.length)?;
            put(answer, wire::WriteOut { size: copied as u32, padding: 0 }.as_bytes())
        }
        _ => Err(Error::new(ENOSYS)),
    }
}

fn open_out(opened: Opened) -> wire::OpenOut {
    wire::OpenOut { fh: opened.fh, open_flags: opened.flags, backing_id: opened.backing }
}

/// Answers a value, or only its size if `room` is 0.
///
/// # Errors
///
/// - ERANGE: the value is larger than `room`.
fn put_sized(answer: &mut Vec<u8>, room: u32, value: &[u8]) -> Result<Answer> {
    if room == 0 {
        answer.extend_from_slice(wire::GetxattrOut { size: value.len() as u32, padding: 0 }.as_bytes());
    } else if value.len() <= room as usize {
        answer.extend_from_slice(value);
    } else {
        return Err(Error::new(ERANGE));
    }
    Ok(Answer::Made)
}

fn statx_out(valid: Valid, attr: &wire::Attr, birth: Option<(i64, u32)>) -> wire::StatxOut {
    let time = |sec: u64, nsec| wire::StatxTime { sec: sec as i64, nsec, reserved: 0 };
    let device = wire::device_from_wire(attr.rdev);
    let (valid, valid_nsec) = wire::valid_for(valid.of(attr));
    let mask = libc::STATX_BASIC_STATS | if birth.is_some() { libc::STATX_BTIME } else { 0 };
    let stat = wire::Statx {
        mask,
        blksize: attr.blksize,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        mode: attr.mode as u16,
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime, attr.atimensec),
        btime: birth.map_or_else(Default::default, |(sec, nsec)| wire::StatxTime { sec, nsec, reserved: 0 }),
        ctime: time(attr.ctime, attr.ctimensec),
        mtime: time(attr.mtime, attr.mtimensec),
        rdev_major: libc::major(device),
        rdev_minor: libc::minor(device),
        ..wire::Statx::default()
    };
    wire::StatxOut { valid, valid_nsec, flags: 0, spare: [0; 2], stat }
}

/// The name of each kind of request, by its opcode. Kinds with an empty name count as the first
/// one: the mount does not know them, and no request has the opcode 0.
pub const KINDS: [&str; 53] = {
    let mut kinds = [""; 53];
    kinds[0] = "other";
    kinds[opcode::LOOKUP as usize] = "lookup";
    kinds[opcode::FORGET as usize] = "forget";
    kinds[opcode::GETATTR as usize] = "getattr";
    kinds[opcode::SETATTR as usize] = "setattr";
    kinds[opcode::READLINK as usize] = "readlink";
    kinds[opcode::SYMLINK as usize] = "symlink";
    kinds[opcode::MKNOD as usize] = "mknod";
    kinds[opcode::MKDIR as usize] = "mkdir";
    kinds[opcode::UNLINK as usize] = "unlink";
    kinds[opcode::RMDIR as usize] = "rmdir";
    kinds[opcode::RENAME as usize] = "rename";
    kinds[opcode::LINK as usize] = "link";
    kinds[opcode::OPEN as usize] = "open";
    kinds[opcode::READ as usize] = "read";
    kinds[opcode::WRITE as usize] = "write";
    kinds[opcode::STATFS as usize] = "statfs";
    kinds[opcode::RELEASE as usize] = "release";
    kinds[opcode::FSYNC as usize] = "fsync";
    kinds[opcode::SETXATTR as usize] = "setxattr";
    kinds[opcode::GETXATTR as usize] = "getxattr";
    kinds[opcode::LISTXATTR as usize] = "listxattr";
    kinds[opcode::REMOVEXATTR as usize] = "removexattr";
    kinds[opcode::INIT as usize] = "init";
    kinds[opcode::OPENDIR as usize] = "opendir";
    kinds[opcode::READDIR as usize] = "readdir";
    kinds[opcode::RELEASEDIR as usize] = "releasedir";
    kinds[opcode::FSYNCDIR as usize] = "fsyncdir";
    kinds[opcode::ACCESS as usize] = "access";
    kinds[opcode::CREATE as usize] = "create";
    kinds[opcode::INTERRUPT as usize] = "interrupt";
    kinds[opcode::DESTROY as usize] = "destroy";
    kinds[opcode::IOCTL as usize] = "ioctl";
    kinds[opcode::BATCH_FORGET as usize] = "batch_forget";
    kinds[opcode::FALLOCATE as usize] = "fallocate";
    kinds[opcode::READDIRPLUS as usize] = "readdirplus";
    kinds[opcode::RENAME2 as usize] = "rename2";
    kinds[opcode::LSEEK as usize] = "lseek";
    kinds[opcode::COPY_FILE_RANGE as usize] = "copy_file_range";
    kinds[opcode::TMPFILE as usize] = "tmpfile";
    kinds[opcode::STATX as usize] = "statx";
    kinds
};

/// Returns the index in [`KINDS`] of the requests with an opcode.
fn kind(code: u32) -> usize {
    let code = code as usize;
    if KINDS.get(code).is_some_and(|name| !name.is_empty()) { code } else { 0 }
}

/// Returns the name of a request for the log.
fn name(code: u32) -> &'static str {
    KINDS[kind(code)]
}
