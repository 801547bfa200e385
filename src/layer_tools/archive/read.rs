//! Reads an archive of any usual program: old, POSIX and GNU headers, PAX records, and holes in
//! each of the four forms of GNU tar.
//!
//! Nothing in an archive makes the reader keep more than a few MiB, and no archive is longer than
//! the limit of the caller.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead, Seek};
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{BLOCK, Error, Member, MemberKind, device, pax};
use crate::layer::Time;

/// The longest name or list of records, in bytes. The reader of Go has the same bound.
const LONGEST: u64 = 1 << 20;
/// The longest list of records for all members, which each of them copies.
const LONGEST_GLOBAL: u64 = 4096;
/// The most ranges of one file with holes.
const RANGES: usize = 1 << 18;

/// Reads the members of an archive.
pub struct Reader<R> {
    source: R,
    /// The bytes read so far, and the most that may be read.
    at: u64,
    limit: u64,
    /// The offset of the current header.
    header_at: u64,
    /// The stored data of the current member that was not read, and the zeros behind it.
    left: u64,
    padding: u64,
    /// The last records for all members behind them.
    global: Said,
}

/// The records and long names before a header.
#[derive(Clone, Default)]
struct Said {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Time>,
    atime: Option<Time>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    acls: [Option<String>; 2],
    sparse: Sparse,
}

/// The records of a file with holes.
#[derive(Clone, Default)]
struct Sparse {
    major: Option<u64>,
    name: Option<Vec<u8>>,
    /// The size with holes. Only such files have it.
    size: Option<u64>,
    /// The offsets and lengths of the data, in turn.
    map: Vec<u64>,
}

impl<R: BufRead> Reader<R> {
    /// Begins to read an archive of at most `limit` bytes.
    pub fn new(source: R, limit: u64) -> Self {
        Reader { source, at: 0, limit, header_at: 0, left: 0, padding: 0, global: Said::default() }
    }

    /// Returns the next member. None behind the last one; the source is then read to its end.
    ///
    /// # Errors
    ///
    /// Each variant of [`Error`].
    pub fn next_member(&mut self) -> Result<Option<Member>, Error> {
        self.skip(self.left.saturating_add(self.padding))?;
        (self.left, self.padding) = (0, 0);
        let mut said = self.global.clone();
        loop {
            self.header_at = self.at;
            let mut block = [0; BLOCK];
            self.read_exact(&mut block)?;
            if block.iter().all(|byte| *byte == 0) {
                self.read_to_end()?;
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            self.check_sum(header)?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let records = self.extension(header, LONGEST)?;
                    self.hear(&mut said, &records)?;
                }
                EntryType::XGlobalHeader => {
                    said = Said::default();
                    let records = self.extension(header, LONGEST_GLOBAL)?;
                    self.hear(&mut said, &records)?;
                    self.global = said.clone();
                }
                EntryType::GNULongName => said.path = Some(until_nul(self.extension(header, LONGEST)?)),
                EntryType::GNULongLink => said.link = Some(until_nul(self.extension(header, LONGEST)?)),
                _ => return self.member(header, said).map(Some),
            }
        }
    }

    /// Returns the next stored data of the current member: at least one byte, at most `most`.
    ///
    /// # Errors
    ///
    /// Each variant of [`Error`]; [`Error::Damaged`] also behind the last byte.
    pub fn fill(&mut self, most: u64) -> Result<&[u8], Error> {
        let most = usize::try_from(most.min(self.left)).unwrap_or(usize::MAX);
        let at = self.header_at;
        let bytes = if most == 0 { &[] } else { self.source.fill_buf()? };
        if bytes.is_empty() {
            return Err(damaged(at, "the archive ends in the content of this member"));
        }
        Ok(&bytes[..most.min(bytes.len())])
    }

    /// Marks `count` bytes of those that [`Reader::fill`] returned as read.
    ///
    /// # Errors
    ///
    /// - [`Error::Damaged`]: the archive is longer than the limit.
    pub fn consume(&mut self, count: usize) -> Result<(), Error> {
        self.source.consume(count);
        self.left = self.left.saturating_sub(count as u64);
        self.count(count as u64)
    }

    /// Makes an error of the current member.
    fn wrong(&self, cause: impl Into<String>) -> Error {
        damaged(self.header_at, cause)
    }

    fn count(&mut self, bytes: u64) -> Result<(), Error> {
        self.at = self.at.saturating_add(bytes);
        if self.at > self.limit {
            return Err(self.wrong(format!("the archive is longer than the limit of {} bytes", self.limit)));
        }
        Ok(())
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        match self.source.read_exact(buffer) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(damaged(self.at, "the archive ends without its end mark"))
            }
            Err(error) => Err(error.into()),
            Ok(()) => self.count(buffer.len() as u64),
        }
    }

    fn skip(&mut self, mut count: u64) -> Result<(), Error> {
        while count > 0 {
            let bytes = self.source.fill_buf()?.len() as u64;
            if bytes == 0 {
                return Err(self.wrong("the archive ends in the content of this member"));
            }
            let skipped = bytes.min(count);
            self.source.consume(skipped as usize);
            self.count(skipped)?;
            count -= skipped;
        }
        Ok(())
    }

    fn read_to_end(&mut self) -> Result<(), Error> {
        loop {
            let bytes = self.source.fill_buf()?.len();
            if bytes == 0 {
                return Ok(());
            }
            self.source.consume(bytes);
            self.count(bytes as u64)?;
        }
    }

    fn check_sum(&self, header: &Header) -> Result<(), Error> {
        let bytes = header.as_bytes();
        let covered = bytes.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
        let (sum, signed) = covered
            .fold((0, 0), |(sum, signed), byte| (sum + i64::from(byte), signed + i64::from(i8::from_ne_bytes([byte]))));
        match header.cksum() {
            Ok(wanted) if i64::from(wanted) == sum || i64::from(wanted) == signed => Ok(()),
            _ => Err(self.wrong("this is no header of a tar archive: its checksum is wrong")),
        }
    }

    /// Reads the content of a header that only describes another one.
    fn extension(&mut self, header: &Header, longest: u64) -> Result<Vec<u8>, Error> {
        let size = self.number(&header.as_old().size, header.entry_size())?;
        if size > longest {
            return Err(self.wrong(format!("its names or attributes have {size} bytes, more than {longest}")));
        }
        let mut bytes = vec![0; size as usize];
        self.read_exact(&mut bytes)?;
        self.skip(size.next_multiple_of(BLOCK as u64) - size)?;
        Ok(bytes)
    }

    /// Takes the facts of PAX records.
    fn hear(&self, said: &mut Said, mut records: &[u8]) -> Result<(), Error> {
        while !records.is_empty() {
            let Some((keyword, value, rest)) = pax::first(records) else {
                return Err(self.wrong("its records are damaged"));
            };
            records = rest;
            if said.hear(keyword, value).is_none() {
                let (keyword, value) = (keyword.escape_ascii(), value[..value.len().min(100)].escape_ascii());
                return Err(self.wrong(format!("its record {keyword}={value} is damaged")));
            }
        }
        Ok(())
    }

    /// Returns the value of a field. An empty field is 0.
    fn number(&self, field: &[u8], value: io::Result<u64>) -> Result<u64, Error> {
        match value {
            Ok(value) => Ok(value),
            Err(_) if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(0),
            Err(_) => Err(self.wrong(format!("{} in its header is no number", field.escape_ascii()))),
        }
    }

    /// Returns the member of a header and of what was said before.
    fn member(&mut self, header: &Header, mut said: Said) -> Result<Member, Error> {
        let old = header.as_old();
        let size = match said.size {
            Some(size) => size,
            None => self.number(&old.size, header.entry_size())?,
        };
        let path = said.path.take().unwrap_or_else(|| header.path_bytes().into_owned());
        let path = said.sparse.name.take().unwrap_or(path);
        let link = || said.link.clone().unwrap_or_else(|| until_nul(old.linkname.to_vec()));
        let kind = match header.entry_type() {
            EntryType::Directory => MemberKind::Dir,
            EntryType::Regular if path.ends_with(b"/") => MemberKind::Dir,
            EntryType::Regular | EntryType::Continuous => self.file(size, &mut said.sparse)?,
            EntryType::GNUSparse => self.old_sparse_file(header, size)?,
            EntryType::Symlink => MemberKind::Symlink(OsString::from_vec(link())),
            EntryType::Link => MemberKind::Link(PathBuf::from(OsString::from_vec(link()))),
            EntryType::Fifo => MemberKind::Fifo,
            EntryType::Char => MemberKind::CharDev(self.device(header)?),
            EntryType::Block => MemberKind::BlockDev(self.device(header)?),
            other => {
                let kind = [other.as_byte()].escape_ascii().to_string();
                return Err(self.wrong(format!("it is of the kind '{kind}', which layers do not have")));
            }
        };
        let mode = self.number(&old.mode, header.mode().map(u64::from))? as u32 & 0o7777;
        let [uid, gid] = [(said.uid, &old.uid, header.uid()), (said.gid, &old.gid, header.gid())]
            .map(|(said, field, value)| said.map_or_else(|| self.number(field, value), Ok));
        let id = |id: u64| u32::try_from(id).map_err(|_| self.wrong(format!("its owner {id} is too large")));
        let mtime = match said.mtime {
            Some(mtime) => mtime,
            None => Time { sec: self.number(&old.mtime, header.mtime())? as i64, nsec: 0 },
        };
        Ok(Member {
            path: PathBuf::from(OsString::from_vec(path)),
            kind,
            mode,
            uid: id(uid?)?,
            gid: id(gid?)?,
            mtime,
            atime: said.atime,
            xattrs: said.xattrs,
            acls: said.acls,
        })
    }

    fn device(&self, header: &Header) -> Result<u64, Error> {
        let Some(fields) = header.as_bytes().get(329..345) else { return Ok(0) };
        let (major, minor) = fields.split_at(8);
        let number = |field, value: io::Result<Option<u32>>| {
            let value = value.map(|value| value.unwrap_or(0).into());
            self.number(field, value).map(|value| value as u32)
        };
        Ok(device(number(major, header.device_major())?, number(minor, header.device_minor())?))
    }

    /// Begins the content of a regular file with `stored` bytes in the archive.
    fn file(&mut self, stored: u64, sparse: &mut Sparse) -> Result<MemberKind, Error> {
        self.store(stored)?;
        let Some(size) = sparse.size else {
            let data = (stored > 0).then_some(0..stored).into_iter().collect();
            return Ok(MemberKind::File { size: stored, data });
        };
        let map = match sparse.major {
            Some(1) => self.map_in_content()?,
            Some(0) | None => std::mem::take(&mut sparse.map),
            Some(other) => return Err(self.wrong(format!("its holes are in a form {other} that is unknown"))),
        };
        self.sparse_file(size, map)
    }

    /// Begins the content of a file whose header says where its data is.
    fn old_sparse_file(&mut self, header: &Header, stored: u64) -> Result<MemberKind, Error> {
        let Some(gnu) = header.as_gnu() else {
            return Err(self.wrong("only headers of GNU tar can say holes"));
        };
        let size = self.number(&gnu.realsize, gnu.real_size())?;
        let mut map = Vec::new();
        let mut add = |reader: &Self, ranges: &[GnuSparseHeader]| {
            for range in ranges.iter().filter(|range| !range.is_empty()) {
                map.push(reader.number(&range.offset, range.offset())?);
                map.push(reader.number(&range.numbytes, range.length())?);
            }
            if map.len() > 2 * RANGES { Err(reader.wrong("it has too many holes")) } else { Ok(()) }
        };
        add(self, &gnu.sparse)?;
        let mut goes_on = gnu.is_extended();
        while goes_on {
            let mut more = GnuExtSparseHeader::new();
            self.read_exact(more.as_mut_bytes())?;
            add(self, more.sparse())?;
            goes_on = more.is_extended();
        }
        self.store(stored)?;
        self.sparse_file(size, map)
    }

    /// Sets the length of the stored content.
    fn store(&mut self, stored: u64) -> Result<(), Error> {
        if stored > i64::MAX as u64 {
            return Err(self.wrong(format!("its size {stored} is too large")));
        }
        (self.left, self.padding) = (stored, stored.next_multiple_of(BLOCK as u64) - stored);
        Ok(())
    }

    /// Reads the offsets and lengths at the start of the content: decimal numbers, a line each,
    /// their count first, in whole blocks.
    fn map_in_content(&mut self) -> Result<Vec<u64>, Error> {
        let (mut map, mut wanted, mut digits) = (Vec::new(), None, Vec::new());
        while wanted.is_none_or(|wanted| map.len() < wanted) {
            let mut block = [0; BLOCK];
            if self.left < BLOCK as u64 {
                return Err(self.wrong("the list of its holes is damaged"));
            }
            self.read_exact(&mut block)?;
            self.left -= BLOCK as u64;
            for byte in block {
                if wanted.is_some_and(|wanted| map.len() == wanted) {
                    break;
                }
                if byte != b'\n' {
                    digits.push(byte);
                    continue;
                }
                let number = number(&std::mem::take(&mut digits));
                let number = number.ok_or_else(|| self.wrong("the list of its holes is damaged"))?;
                match wanted {
                    Some(_) => map.push(number),
                    None if number > RANGES as u64 => return Err(self.wrong("it has too many holes")),
                    None => wanted = Some(2 * number as usize),
                }
            }
            if digits.len() > 20 {
                return Err(self.wrong("the list of its holes is damaged"));
            }
        }
        Ok(map)
    }

    /// Returns a file of `size` bytes with data at these offsets and lengths.
    fn sparse_file(&self, size: u64, map: Vec<u64>) -> Result<MemberKind, Error> {
        let mut data: Vec<Range<u64>> = Vec::new();
        let (pairs, rest) = map.as_chunks::<2>();
        let mut stored = 0_u64;
        for [start, length] in pairs {
            let end = start.checked_add(*length).filter(|end| *end <= size);
            let end = end.filter(|_| *start >= data.last().map_or(0, |before| before.end));
            let end = end.ok_or_else(|| self.wrong("the list of its holes is damaged"))?;
            stored += length;
            if *length > 0 {
                data.push(*start..end);
            }
        }
        if !rest.is_empty() || stored != self.left || size > i64::MAX as u64 {
            return Err(self.wrong("the list of its holes does not match its content"));
        }
        Ok(MemberKind::File { size, data })
    }
}

impl<R: BufRead + Seek> Reader<R> {
    /// Leaves the stored content of the current member out. Returns its offset and its length.
    ///
    /// # Errors
    ///
    /// - [`Error::Io`]: the source cannot seek so far.
    pub fn pass_over(&mut self) -> Result<(u64, u64), Error> {
        let (at, length) = (self.at, self.left);
        let whole = length + self.padding;
        let distance = i64::try_from(whole).map_err(|_| self.wrong("its size is too large"))?;
        self.source.seek_relative(distance)?;
        (self.left, self.padding) = (0, 0);
        self.count(whole)?;
        Ok((at, length))
    }
}

impl Said {
    /// Takes the fact of a record. Returns None if the value is damaged. An empty value takes a
    /// fact back.
    fn hear(&mut self, keyword: &[u8], value: &[u8]) -> Option<()> {
        let text = || Some(value.to_vec()).filter(|text| !text.is_empty());
        match keyword {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = said(value, number)?,
            b"uid" => self.uid = said(value, number)?,
            b"gid" => self.gid = said(value, number)?,
            b"mtime" => self.mtime = said(value, pax::parse_time)?,
            b"atime" => self.atime = said(value, pax::parse_time)?,
            pax::ACL_ACCESS => self.acls[0] = said(value, |text| String::from_utf8(text.to_vec()).ok())?,
            pax::ACL_DEFAULT => self.acls[1] = said(value, |text| String::from_utf8(text.to_vec()).ok())?,
            b"GNU.sparse.name" => self.sparse.name = text(),
            b"GNU.sparse.major" => self.sparse.major = said(value, number)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = said(value, number)?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.map.push(number(value)?),
            b"GNU.sparse.map" => {
                let numbers = value.split(|byte| *byte == b',').filter(|_| !value.is_empty());
                self.sparse.map = numbers.map(number).collect::<Option<_>>()?;
            }
            _ => {
                if let Some(name) = pax::xattr_name(keyword) {
                    self.xattrs.insert(name, value.to_vec());
                }
            }
        }
        Some(())
    }
}

/// Parses a value, unless it is empty. Returns None if it is damaged.
fn said<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() { Some(None) } else { parse(value).map(Some) }
}

/// Parses a decimal number.
fn number(digits: &[u8]) -> Option<u64> {
    str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?.parse().ok()
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
    name
}

fn damaged(at: u64, cause: impl Into<String>) -> Error {
    Error::Damaged { at, cause: cause.into() }
}
