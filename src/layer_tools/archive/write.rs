//! Writes an archive: POSIX headers, with PAX records only for members that need them. The bytes
//! depend on the members alone.
//!
//! A file with holes is in the form "GNU sparse 1.0", which GNU tar, Python and Go read.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tar::{EntryType, Header};

use super::{BLOCK, Member, MemberKind, device_numbers, pax};

/// The first number that the fields of 12 and of 8 bytes have no room for.
const LARGE: u64 = 1 << 33;
const LARGE_ID: u32 = 1 << 21;

/// The end of an archive.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Writes members to `to`.
pub struct Writer<W: Write> {
    to: W,
    /// The data that the current member still needs, and the zeros behind it.
    missing: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// Begins an archive.
    pub fn new(to: W) -> Self {
        Writer { to, missing: 0, padding: 0 }
    }

    /// Writes all of a member but the data of a file. [`Writer::data`] takes that next.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn begin(&mut self, member: &Member) -> io::Result<()> {
        self.end_data()?;
        let (is_sparse, map) = sparse_map(&member.kind);
        let stored = map.len() as u64 + data_len(&member.kind);
        let records = records(member, is_sparse, stored);
        if !records.is_empty() {
            let mut header = Header::new_ustar();
            put_name(&mut header.as_old_mut().name, &beside(&member.path, "PaxHeaders"));
            header.set_mode(0o644);
            header.set_entry_type(EntryType::XHeader);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(records.len() as u64);
            header.set_cksum();
            self.to.write_all(header.as_bytes())?;
            self.to.write_all(&records)?;
            self.to.write_all(&END[..padding(records.len() as u64)])?;
        }
        self.to.write_all(header(member, is_sparse, stored).as_bytes())?;
        self.to.write_all(&map)?;
        (self.missing, self.padding) = (data_len(&member.kind), padding(stored));
        self.end_data_if_complete()
    }

    /// Writes data of the member that was begun, in the order of its ranges.
    ///
    /// # Errors
    ///
    /// - InvalidInput: more data than the member has.
    ///
    /// Others of the writer.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.missing = self.missing.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        self.to.write_all(bytes)?;
        self.end_data_if_complete()
    }

    /// Ends the archive and returns the writer.
    ///
    /// # Errors
    ///
    /// - InvalidInput: the last member lacks data.
    ///
    /// Others of the writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.end_data()?;
        self.to.write_all(&END)?;
        Ok(self.to)
    }

    fn end_data(&mut self) -> io::Result<()> {
        if self.missing > 0 { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
    }

    fn end_data_if_complete(&mut self) -> io::Result<()> {
        match self.missing {
            0 => self.to.write_all(&END[..std::mem::take(&mut self.padding)]),
            _ => Ok(()),
        }
    }
}

/// Returns the length of the data of a member.
fn data_len(kind: &MemberKind) -> u64 {
    match kind {
        MemberKind::File { data, .. } => data.iter().map(|range| range.end - range.start).sum(),
        _ => 0,
    }
}

/// Returns the number of zeros behind `length` bytes.
fn padding(length: u64) -> usize {
    (length.next_multiple_of(BLOCK as u64) - length) as usize
}

/// Whether a file has holes, and then the text before its data that says where the data is.
fn sparse_map(kind: &MemberKind) -> (bool, Vec<u8>) {
    let MemberKind::File { size, data } = kind else { return (false, Vec::new()) };
    if data_len(kind) == *size {
        return (false, Vec::new());
    }
    // A hole at the end shows as an empty range there.
    let end = data.last().is_none_or(|last| last.end < *size).then_some(*size..*size);
    let mut map = format!("{}\n", data.len() + usize::from(end.is_some()));
    for Range { start, end } in data.iter().cloned().chain(end) {
        map.push_str(&format!("{start}\n{}\n", end - start));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    (true, map)
}

/// Returns the records that the header of a member has no room for.
fn records(member: &Member, is_sparse: bool, stored: u64) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |keyword: &[u8], value: &[u8]| pax::add(&mut records, keyword, value);
    let path = member_path(member);
    let is_text = [&path[..], link_of(member)].iter().all(|name| str::from_utf8(name).is_ok());
    let (long, long_link) = (path.len() > 100 && !is_sparse, link_of(member).len() > 100);
    if !is_text && (long || long_link || is_sparse) {
        add(b"hdrcharset", b"BINARY");
    }
    if is_sparse {
        add(b"GNU.sparse.major", b"1");
        add(b"GNU.sparse.minor", b"0");
        add(b"GNU.sparse.name", &path);
        if let MemberKind::File { size, .. } = member.kind {
            add(b"GNU.sparse.realsize", size.to_string().as_bytes());
        }
    }
    if long {
        add(b"path", &path);
    }
    if long_link {
        add(b"linkpath", link_of(member));
    }
    for (keyword, id) in [(b"uid", member.uid), (b"gid", member.gid)] {
        if id >= LARGE_ID {
            add(keyword, id.to_string().as_bytes());
        }
    }
    if stored >= LARGE {
        add(b"size", stored.to_string().as_bytes());
    }
    if member.mtime.nsec > 0 || !(0..LARGE as i64).contains(&member.mtime.sec) {
        add(b"mtime", &pax::time(member.mtime));
    }
    if let Some(atime) = member.atime {
        add(b"atime", &pax::time(atime));
    }
    for (keyword, acl) in [pax::ACL_ACCESS, pax::ACL_DEFAULT].into_iter().zip(&member.acls) {
        if let Some(acl) = acl {
            add(keyword, acl.as_bytes());
        }
    }
    for (name, value) in &member.xattrs {
        add(&pax::xattr_keyword(name), value);
    }
    records
}

fn header(member: &Member, is_sparse: bool, stored: u64) -> Header {
    let mut header = Header::new_ustar();
    match is_sparse {
        true => put_name(&mut header.as_old_mut().name, &beside(&member.path, "GNUSparseFile.0")),
        false => put_name(&mut header.as_old_mut().name, &member_path(member)),
    }
    put_name(&mut header.as_old_mut().linkname, link_of(member));
    header.set_mode(member.mode);
    header.set_uid(Some(member.uid).filter(|id| *id < LARGE_ID).unwrap_or(0).into());
    header.set_gid(Some(member.gid).filter(|id| *id < LARGE_ID).unwrap_or(0).into());
    header.set_size(Some(stored).filter(|size| *size < LARGE).unwrap_or(0));
    header.set_mtime(u64::try_from(member.mtime.sec).unwrap_or(0).min(LARGE - 1));
    let (entry_type, rdev) = match member.kind {
        MemberKind::File { .. } => (EntryType::Regular, 0),
        MemberKind::Dir => (EntryType::Directory, 0),
        MemberKind::Symlink(_) => (EntryType::Symlink, 0),
        MemberKind::Link(_) => (EntryType::Link, 0),
        MemberKind::Fifo => (EntryType::Fifo, 0),
        MemberKind::CharDev(rdev) => (EntryType::Char, rdev),
        MemberKind::BlockDev(rdev) => (EntryType::Block, rdev),
    };
    header.set_entry_type(entry_type);
    let (major, minor) = device_numbers(rdev);
    if let Some(ustar) = header.as_ustar_mut() {
        ustar.set_device_major(major as u32);
        ustar.set_device_minor(minor as u32);
    }
    header.set_cksum();
    header
}

/// The path of a member in the archive: that of a directory ends with `/`, and the top is `./`.
fn member_path(member: &Member) -> Vec<u8> {
    let mut path = member.path.as_os_str().as_bytes().to_vec();
    if path.is_empty() {
        path.push(b'.');
    }
    if member.kind == MemberKind::Dir {
        path.push(b'/');
    }
    path
}

fn link_of(member: &Member) -> &[u8] {
    match &member.kind {
        MemberKind::Symlink(target) => target.as_bytes(),
        MemberKind::Link(path) => path.as_os_str().as_bytes(),
        _ => b"",
    }
}

/// Returns a path below `dir` beside a member, for programs that know no records.
fn beside(path: &Path, dir: &str) -> Vec<u8> {
    let name = path.file_name().unwrap_or(OsStr::new("."));
    path.with_file_name(dir).join(name).into_os_string().as_bytes().to_vec()
}

/// Writes a name, or its start, to a field.
fn put_name(field: &mut [u8; 100], name: &[u8]) {
    for (byte, from) in field.iter_mut().zip(name) {
        *byte = *from;
    }
}
