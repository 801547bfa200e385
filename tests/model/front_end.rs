//! The operations of every front end: the engine's own API, the scheme, a directory of Linux. An
//! object is opened first, then read and changed, as clients of a scheme do.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use overlayfs::errno::EOPNOTSUPP;
use overlayfs::layer::{Owner, RenameMode, Stat, Time};

use crate::Kind;

/// A result with an errno.
pub type Result<T> = std::result::Result<T, i32>;

/// A path from the root, or from an open directory. A symlink at its end is not followed.
pub struct At<'a, H> {
    pub held: Option<&'a H>,
    pub path: &'a [OsString],
}

/// An entry of a listing.
#[derive(Debug)]
pub struct Listed {
    pub name: OsString,
    pub ino: u64,
    pub kind: Kind,
}

/// A part of a listing.
pub struct Part {
    pub listed: Vec<Listed>,
    /// The offset of the next part, or None at the end.
    pub next: Option<u64>,
}

/// Work beside the operations.
pub type Work = Box<dyn FnOnce() + Send>;

pub trait FrontEnd {
    /// An open object of any kind.
    type Handle;

    fn open(&self, at: &At<Self::Handle>) -> Result<Self::Handle>;
    fn create(&self, at: &At<Self::Handle>, kind: Kind, mode: u32, owner: Owner, target: &OsStr) -> Result<()>;
    /// Makes and opens a file without a name in a directory. Fails with EOPNOTSUPP without such a
    /// call.
    fn create_temp(&self, _dir: &At<Self::Handle>, _mode: u32, _owner: Owner) -> Result<Self::Handle> {
        Err(EOPNOTSUPP)
    }
    /// Closes an open object.
    fn close(&self, handle: Self::Handle) {
        drop(handle);
    }
    fn link(&self, handle: &Self::Handle, to: &At<Self::Handle>) -> Result<()>;
    fn unlink(&self, at: &At<Self::Handle>) -> Result<()>;
    fn remove_dir(&self, at: &At<Self::Handle>) -> Result<()>;
    fn rename(&self, from: &At<Self::Handle>, to: &At<Self::Handle>, mode: RenameMode) -> Result<()>;

    fn stat(&self, handle: &Self::Handle) -> Result<Stat>;
    /// Asks for the link count, also where `stat` shows what a kernel knows.
    fn links(&self, handle: &Self::Handle) -> Result<u32> {
        Ok(self.stat(handle)?.nlink)
    }
    fn read_link(&self, handle: &Self::Handle) -> Result<OsString>;
    fn read(&self, handle: &Self::Handle, offset: u64, len: usize) -> Result<Vec<u8>>;
    /// Writes all of `bytes`, at `offset` or at the end of the file.
    fn write(&self, handle: &Self::Handle, offset: Option<u64>, bytes: &[u8]) -> Result<()>;
    fn truncate(&self, handle: &Self::Handle, size: u64) -> Result<()>;
    fn set_mode(&self, handle: &Self::Handle, mode: u32) -> Result<()>;
    fn set_owner(&self, handle: &Self::Handle, owner: Owner) -> Result<()>;
    fn set_times(&self, handle: &Self::Handle, atime: Time, mtime: Time) -> Result<()>;
    /// Returns the extended attributes with their values. Fails with EOPNOTSUPP without such
    /// attributes.
    fn xattrs(&self, _handle: &Self::Handle) -> Result<BTreeMap<OsString, Vec<u8>>> {
        Err(EOPNOTSUPP)
    }
    fn set_xattr(&self, _handle: &Self::Handle, _name: &OsStr, _value: &[u8]) -> Result<()> {
        Err(EOPNOTSUPP)
    }
    fn remove_xattr(&self, _handle: &Self::Handle, _name: &OsStr) -> Result<()> {
        Err(EOPNOTSUPP)
    }
    fn sync(&self, handle: &Self::Handle) -> Result<()>;
    /// Completes and syncs everything, and returns how many copies are partial then.
    fn settle(&self) -> Result<u64> {
        Err(EOPNOTSUPP)
    }
    /// Freezes the upper layer and puts a new one on top. The open objects stay open. Returns the
    /// number of the new layer.
    fn snapshot(&mut self, _handles: &mut BTreeMap<usize, Self::Handle>) -> Result<u64> {
        Err(EOPNOTSUPP)
    }
    /// Lets another overlay of the same layers go on, as a new daemon does. The open objects stay
    /// open.
    fn restart(&mut self, _handles: &mut BTreeMap<usize, Self::Handle>) -> Result<()> {
        Err(EOPNOTSUPP)
    }
    /// Leaves the upper layer aside and shows the last snapshot. Returns the number of the new
    /// layer. In most front ends nothing may be open.
    fn roll_back(&mut self) -> Result<u64> {
        Err(EOPNOTSUPP)
    }
    /// Returns work of the owner of the mount that programs must not notice, if there is such work.
    fn beside(&self) -> Option<Work> {
        None
    }
    /// Copies a byte of a file, if it has one there, to an offset in another. Fails with EOPNOTSUPP
    /// without such a call.
    fn copy_byte(&self, _from: &Self::Handle, _from_offset: u64, _to: &Self::Handle, _to_offset: u64) -> Result<()> {
        Err(EOPNOTSUPP)
    }
    /// Reserves space, so that a file has at least `size` bytes. Fails with EOPNOTSUPP without such
    /// a call.
    fn reserve(&self, _handle: &Self::Handle, _size: u64) -> Result<()> {
        Err(EOPNOTSUPP)
    }
    /// Lists about `chunk` entries of a directory behind the offset `after`, without `.` and `..`.
    /// The offset of the start is 0.
    fn list_part(&self, handle: &Self::Handle, after: u64, chunk: usize) -> Result<Part>;
    /// Returns the names in a directory, and asks nothing about each.
    fn names(&self, handle: &Self::Handle) -> Result<Vec<OsString>> {
        Ok(self.list(handle, 1000)?.into_iter().map(|entry| entry.name).collect())
    }
    /// Lists a whole directory, about `chunk` entries at a time.
    fn list(&self, handle: &Self::Handle, chunk: usize) -> Result<Vec<Listed>> {
        let (mut listed, mut next) = (Vec::new(), Some(0));
        while let Some(after) = next {
            let part = self.list_part(handle, after, chunk)?;
            listed.extend(part.listed);
            next = part.next;
        }
        Ok(listed)
    }
}
