//! The record of the process that holds an upper layer, for the message of another mount.
//!
//! The lock alone keeps other overlays out. The record is for the message, so it is not synced. The
//! next overlay replaces the record of a killed one.
//!
//! On a filesystem that other hosts use, the lock of the layer may exclude only this host. There a
//! file of the work directory is locked too.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::errno::{EOPNOTSUPP, EWOULDBLOCK};
use crate::layer::{Layer, Result};

/// The name of the record. The sweep at mount removes it with objects under construction. The
/// record of a killed overlay is no damage.
pub const RECORD: &str = "tmp.holder";

/// The name of the file whose lock excludes overlays on other hosts. The sweep at mount keeps it,
/// since an overlay on another host may hold it. It is no damage.
pub const LOCK: &str = "tmp.lock";

/// The length up to which a record is read: a process, a word and a path.
pub(super) const RECORD_MAX: usize = 8192;

/// The first line of the record of an overlay that is ending.
const ENDING: &[u8] = b"ending";
/// The first line of the record of another overlay.
const SERVING: &[u8] = b"serving";

/// An overlay that holds an upper layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process that serves it, by the number in its own namespace.
    pub process: u32,
    /// The mount point of its merged tree.
    pub place: PathBuf,
    /// Whether it is unmounted, completes its files, and then unlocks the layer.
    pub ending: bool,
}

impl Holder {
    /// Makes the record of an overlay of this process with its tree at `place`.
    pub fn this(place: PathBuf) -> Self {
        Self { process: std::process::id(), place, ending: false }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let state = if self.ending { ENDING } else { SERVING };
        [state, self.process.to_string().as_bytes(), self.place.as_os_str().as_bytes()].join(&b'\n')
    }

    /// Returns None if the bytes are no complete record.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut lines = bytes.splitn(3, |byte| *byte == b'\n');
        let ending = match lines.next()? {
            ENDING => true,
            SERVING => false,
            _ => return None,
        };
        let process = std::str::from_utf8(lines.next()?).ok()?.parse().ok()?;
        let place = OsString::from_vec(lines.next()?.to_owned()).into();
        Some(Self { process, place, ending })
    }
}

/// Locks a layer. Returns false if another overlay holds it. Logs a warning if the filesystem has
/// no locks: nothing keeps other overlays out then.
pub fn hold<L: Layer>(layer: &L) -> Result<bool> {
    is_held(layer.hold())
}

/// Does the same as [`hold`] against overlays on other hosts, by a file of the work directory
/// `work`, where the lock of the layer does not exclude them. `layer` is that of the work
/// directory.
pub fn hold_on_all_hosts<L: Layer>(layer: &L, work: &L::Dir) -> Result<bool> {
    if layer.capabilities().shared { is_held(layer.hold_by(work, OsStr::new(LOCK))) } else { Ok(true) }
}

fn is_held(locked: Result<()>) -> Result<bool> {
    match locked {
        Err(error) if error.errno == EWOULDBLOCK => Ok(false),
        Err(error) if error.errno == EOPNOTSUPP => {
            log::warn!(
                "the filesystem of the upper layer has no locks: do not use the layer in another overlay meanwhile"
            );
            Ok(true)
        }
        held => held.map(|()| true),
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, place, ending } = self;
        let is = if *ending { ", which is ending" } else { "" };
        write!(f, "the overlay at {} (process {process}){is}", place.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for ending in [false, true] {
            let place = OsString::from_vec(b"/a b\n\xff".to_vec()).into();
            let holder = Holder { process: 12, place, ending };
            assert_eq!(Holder::from_bytes(&holder.to_bytes()), Some(holder));
        }
        for bytes in [&b""[..], b"serving", b"serving\n12", b"serving\nx\n/", b"other\n12\n/"] {
            assert_eq!(Holder::from_bytes(bytes), None);
        }
    }
}
