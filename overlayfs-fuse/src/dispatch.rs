//! From the bytes of a request to a call of the front end, and from its result to the bytes of the
//! answer.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

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

/// The buffers for an answer. A thread keeps them from one request to the next.
#[derive(Default)]
pub struct Buffers {
    /// The answer without the data of a file.
    head: Vec<u8>,
    /// The data that were read from a file, and room for more.
    data: Vec<u8>,
    data_length: usize,
}

impl Buffers {
    /// Returns the two parts of the answer.
    pub fn parts(&self) -> [&[u8]; 2] {
        [&self.head, &self.data[..self.data_length]]
    }

    /// Makes room for `length` bytes of data.
    fn room(&mut self, length: usize) -> &mut [u8] {
        if self.data.len() < length {
            self.data.resize(length, 0);
        }
        &mut self.data[..length]
    }

    /// Starts the answer to a request. None: the request is too short.
    fn begin(&mut self, request: &[u8]) -> Option<InHeader> {
        self.head.clear();
        self.data_length = 0;
        let (header, _) = InHeader::read_from_prefix(request).ok()?;
        self.head.extend_from_slice(OutHeader::default().as_bytes());
        Some(header)
    }

    /// Writes the header of the answer to a request into the room for it. An error has no other
    /// data.
    fn finish(&mut self, to: &InHeader, done: Result<()>) {
        if done.is_err() {
            self.head.truncate(size_of::<OutHeader>());
        }
        let error = done.map_or_else(wire::errno, |()| 0);
        log::trace!("{} of {} by {}:{}: {error}", name(to.opcode), to.node, to.uid, to.pid);
        let length = self.head.len() + self.data_length;
        let out = OutHeader { len: length as u32, error, unique: to.unique };
        self.head[..size_of::<OutHeader>()].copy_from_slice(out.as_bytes());
    }
}

/// Handles one request. Returns whether `buffers` hold an answer to send: some requests get none.
pub fn handle(front_end: &impl FrontEnd, agreed: &Agreed, request: &[u8], buffers: &mut Buffers) -> bool {
    let Some(header) = buffers.begin(request) else {
        return false;
    };
    let body = Body { rest: request.get(size_of::<InHeader>()..).unwrap_or_default() };
    match perform(front_end, agreed, &header, body, buffers) {
        Ok(Answer::Made) => buffers.finish(&header, Ok(())),
        Ok(Answer::None) => return false,
        Err(error) => buffers.finish(&header, Err(error)),
    }
    true
}

/// Answers an error to a request. Returns whether `buffers` hold an answer to send.
pub fn refuse(request: &[u8], error: Error, buffers: &mut Buffers) -> bool {
    let Some(header) = buffers.begin(request) else {
        return false;
    };
    buffers.finish(&header, Err(error));
    true
}

/// The result of a request.
enum Answer {
    /// The answer is in the buffers.
    Made,
    /// The kernel wants no answer.
    None,
}

/// The part of a request behind its header.
struct Body<'a> {
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    /// Takes the next structure.
    ///
    /// # Errors
    ///
    /// - EINVAL: the request is too short.
    fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T> {
        let (value, rest) = T::read_from_prefix(self.rest).map_err(|_| Error::new(EINVAL))?;
        self.rest = rest;
        Ok(value)
    }

    /// Takes the next text, without the zero byte that ends it.
    ///
    /// # Errors
    ///
    /// - EINVAL: the text has no end.
    fn text(&mut self) -> Result<&'a OsStr> {
        let end = self.rest.iter().position(|byte| *byte == 0).ok_or(Error::new(EINVAL))?;
        let text = OsStr::from_bytes(&self.rest[..end]);
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }

    /// Takes the next `length` bytes.
    ///
    /// # Errors
    ///
    /// - EINVAL: the request is too short.
    fn bytes(&mut self, length: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Error::new(EINVAL))?;
        self.rest = rest;
        Ok(bytes)
    }
}

#[expect(clippy::too_many_lines, reason = "one table, a row or a few lines for each request")]
fn perform(
    front_end: &impl FrontEnd,
    agreed: &Agreed,
    header: &InHeader,
    mut body: Body<'_>,
    buffers: &mut Buffers,
) -> Result<Answer> {
    let answer = &mut buffers.head;
    let valid = Valid { usual: agreed.valid, files_expire: front_end.files_expire() };
    let caller = Caller { uid: header.uid, gid: header.gid, pid: header.pid };
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
            let room = buffers.room((read.size as usize).min(agreed.max_answer));
            buffers.data_length = front_end.read(caller, node, read.fh, read.offset, room)?;
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
            let said = flags::perform(front_end, node, ioctl.command, body.rest)?;
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
    wire::OpenOut { fh: opened.fh, open_flags: opened.flags, backing_id: 0 }
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

/// Returns the name of a request for the log.
fn name(code: u32) -> &'static str {
    match code {
        opcode::LOOKUP => "lookup",
        opcode::GETATTR => "getattr",
        opcode::SETATTR => "setattr",
        opcode::READLINK => "readlink",
        opcode::SYMLINK => "symlink",
        opcode::MKNOD => "mknod",
        opcode::MKDIR => "mkdir",
        opcode::UNLINK => "unlink",
        opcode::RMDIR => "rmdir",
        opcode::RENAME | opcode::RENAME2 => "rename",
        opcode::LINK => "link",
        opcode::OPEN => "open",
        opcode::READ => "read",
        opcode::WRITE => "write",
        opcode::STATFS => "statfs",
        opcode::RELEASE => "release",
        opcode::FSYNC => "fsync",
        opcode::SETXATTR => "setxattr",
        opcode::GETXATTR => "getxattr",
        opcode::LISTXATTR => "listxattr",
        opcode::REMOVEXATTR => "removexattr",
        opcode::OPENDIR => "opendir",
        opcode::READDIR => "readdir",
        opcode::RELEASEDIR => "releasedir",
        opcode::FSYNCDIR => "fsyncdir",
        opcode::ACCESS => "access",
        opcode::CREATE => "create",
        opcode::DESTROY => "destroy",
        opcode::FALLOCATE => "fallocate",
        opcode::READDIRPLUS => "readdirplus",
        opcode::IOCTL => "ioctl",
        opcode::LSEEK => "lseek",
        opcode::COPY_FILE_RANGE => "copy_file_range",
        opcode::TMPFILE => "tmpfile",
        opcode::STATX => "statx",
        _ => "an unknown request",
    }
}
