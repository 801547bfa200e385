//! The object that a commit is making in the lower directory, under a name that is not the last
//! one. A record in the directory of the changes has its path. So the next command finds the object
//! that a kill left behind, and removes it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};

/// The name of the record.
const RECORD: &str = "unfinished";
/// The beginning of every temporary name.
const PREFIX: &[u8] = b".overlayfs-run-";

/// The record, open.
pub struct Unfinished(File);

impl Unfinished {
    /// Opens the record of a directory of changes.
    ///
    /// # Errors
    ///
    /// Those of open(2).
    pub fn open(store: &Path) -> io::Result<Self> {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        options.open(store.join(RECORD)).map(Self)
    }

    /// Records that an object is about to be made in a directory. Returns its name.
    ///
    /// # Errors
    ///
    /// Those of write(2).
    pub fn begin(&self, dir: &Path) -> io::Result<OsString> {
        let mut name = OsStr::from_bytes(PREFIX).to_owned();
        name.push(rustix::process::getpid().as_raw_nonzero().to_string());
        let path = dir.join(&name);
        self.0.write_all_at(&[path.as_os_str().as_bytes(), b"\0"].concat(), 0)?;
        Ok(name)
    }
}

/// Removes the object that the record names, and the record.
///
/// # Errors
///
/// Those of read(2) and unlink(2).
pub fn clear(store: &Path) -> io::Result<()> {
    let record = store.join(RECORD);
    let bytes = match fs::read(&record) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        bytes => bytes?,
    };
    let path = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    remove(Path::new(OsStr::from_bytes(path)))?;
    fs::remove_file(&record)
}

/// Removes an object with a temporary name, if it is there. Leaves any other one.
fn remove(path: &Path) -> io::Result<()> {
    let Some((dir, name)) = path.parent().zip(path.file_name()) else { return Ok(()) };
    if !name.as_bytes().starts_with(PREFIX) {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let removed = rustix::fs::openat2(CWD, dir, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
        .and_then(|dir| rustix::fs::unlinkat(dir, name, AtFlags::empty()));
    match removed {
        // The object has its last name, or its directory is gone.
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(()),
        removed => Ok(removed?),
    }
}
