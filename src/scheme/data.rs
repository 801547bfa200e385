//! Contents: reads, writes, sizes, listings.

use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

use crate::errno::{EBADF, EFBIG, EINVAL, EISDIR, ENOTDIR, Error, Result};
use syscall::dirent::{DirEntry, DirentBuf, DirentKind};
use syscall::flag::O_APPEND;

use super::access::Caller;
use super::handle::SchemeHandle;
use super::tree::Tree;
use crate::layer::{Kind, Layer};

/// The largest offset of a file: those of clients are signed.
const OFFSET_MAX: u64 = i64::MAX as u64;

impl<L: Layer> Tree<L> {
    /// Reads from a file. A handle with O_SYMLINK gives the target of a symlink or the number of a
    /// device. A handle of another scheme's path gives that path.
    pub(super) fn read_at(&self, id: usize, buf: &mut [u8], offset: u64) -> Result<usize> {
        if offset > OFFSET_MAX {
            return Err(Error::new(EINVAL));
        }
        let open = match self.handles.get(id)? {
            SchemeHandle::Open(open) => open,
            SchemeHandle::Elsewhere(path) => return Ok(copy_from(path.as_bytes(), buf, offset)),
            SchemeHandle::Scheme | SchemeHandle::PendingNode(_) => return Err(Error::new(EBADF)),
        };
        if open.node().kind() == Kind::Dir {
            return Err(Error::new(EISDIR));
        }
        if !open.readable {
            return Err(Error::new(EBADF));
        }
        match open.node().kind() {
            Kind::Symlink => Ok(copy_from(self.overlay.read_link(open.node())?.as_bytes(), buf, offset)),
            Kind::CharDev | Kind::BlockDev => {
                Ok(copy_from(&self.overlay.stat(open.node())?.rdev.to_ne_bytes(), buf, offset))
            }
            _ => {
                let len = buf.len().min(usize::try_from(OFFSET_MAX - offset).unwrap_or(usize::MAX));
                self.mappings.read(&self.overlay, &open.file, &mut buf[..len], offset)
            }
        }
    }

    /// Writes to a file; at its end if the handle or the request has O_APPEND. On the handle of a
    /// pending symlink or device, the data are its target or number.
    ///
    /// # Errors
    ///
    /// - EFBIG: the write passes the largest offset.
    /// - EBADF: the handle is not open for writing.
    /// - EINVAL: the object is no regular file, or the offset is too large.
    pub(super) fn write_to(&self, id: usize, buf: &[u8], offset: u64, flags: u32, caller: Caller) -> Result<usize> {
        let open = match self.handles.get(id)? {
            SchemeHandle::Open(open) => open,
            SchemeHandle::PendingNode(pending) => return self.create_pending(id, &pending, buf),
            SchemeHandle::Scheme | SchemeHandle::Elsewhere(_) => return Err(Error::new(EBADF)),
        };
        if !open.writable {
            return Err(Error::new(EBADF));
        }
        if open.node().kind() != Kind::File || offset > OFFSET_MAX {
            return Err(Error::new(EINVAL));
        }
        if buf.is_empty() {
            return Ok(0);
        }
        let append = (open.flags.load(Ordering::Relaxed) | flags as usize) & O_APPEND != 0;
        if !append && OFFSET_MAX - offset < buf.len() as u64 {
            return Err(Error::new(EFBIG));
        }
        self.drop_set_id(open.node(), caller)?;
        if append {
            self.mappings.append(&self.overlay, &open.file, buf)
        } else {
            self.mappings.write(&self.overlay, &open.file, buf, offset)
        }
    }

    /// Returns the size of a file in bytes, or the number of entries of a directory.
    pub(super) fn size(&self, id: usize) -> Result<u64> {
        let open = self.handles.open(id)?;
        if open.node().kind() != Kind::Dir {
            return Ok(self.overlay.stat(open.node())?.size);
        }
        if !open.readable {
            return Err(Error::new(EBADF));
        }
        let mut entries = 0;
        self.overlay.list(&open.file, 0, &mut |_| {
            entries += 1;
            true
        })?;
        Ok(entries)
    }

    /// Sets the size of a file that is open for writing.
    pub(super) fn truncate(&self, id: usize, size: u64) -> Result<()> {
        let open = self.handles.open(id)?;
        if !open.writable {
            return Err(Error::new(EBADF));
        }
        if open.node().kind() != Kind::File || size > OFFSET_MAX {
            return Err(Error::new(EINVAL));
        }
        self.drop_set_id(open.node(), open.opener)?;
        self.mappings.truncate(&self.overlay, open.node(), size)
    }

    /// Fills `buf` with the entries behind `after`, without `.` and `..`, as redoxfs lists them. It
    /// leaves out names that are not UTF-8: no request could name them.
    ///
    /// # Errors
    ///
    /// - EINVAL: not even the first entry fits.
    pub(super) fn list<'buf>(
        &self,
        id: usize,
        mut buf: DirentBuf<&'buf mut [u8]>,
        after: u64,
    ) -> Result<DirentBuf<&'buf mut [u8]>> {
        let open = self.handles.open(id)?;
        if open.node().kind() != Kind::Dir {
            return Err(Error::new(ENOTDIR));
        }
        if !open.readable {
            return Err(Error::new(EBADF));
        }
        let mut written = false;
        let mut outcome = Ok(());
        self.overlay.list(&open.file, after, &mut |entry| {
            let Some(name) = entry.name.to_str() else {
                return true;
            };
            let kind = match entry.kind {
                Kind::File => DirentKind::Regular,
                Kind::Dir => DirentKind::Directory,
                Kind::Symlink => DirentKind::Symlink,
                Kind::Socket => DirentKind::Socket,
                Kind::CharDev => DirentKind::CharDev,
                Kind::BlockDev => DirentKind::BlockDev,
                Kind::Fifo => DirentKind::Unspecified,
            };
            match buf.entry(DirEntry { inode: entry.ino, next_opaque_id: entry.offset, name, kind }) {
                Ok(()) => written = true,
                Err(_) if written => return false,
                Err(error) => outcome = Err(error),
            }
            outcome.is_ok()
        })?;
        outcome?;
        Ok(buf)
    }

    /// Syncs the object to the disk, with the writes of clients to their memory.
    pub(super) fn sync(&self, id: usize) -> Result<()> {
        self.mappings.sync(&self.overlay, &self.handles.open(id)?.file)
    }
}

/// Copies the part of `text` from `offset` on, as far as it fits.
fn copy_from(text: &[u8], buf: &mut [u8], offset: u64) -> usize {
    let rest = usize::try_from(offset).ok().and_then(|offset| text.get(offset..)).unwrap_or_default();
    let len = rest.len().min(buf.len());
    buf[..len].copy_from_slice(&rest[..len]);
    len
}
