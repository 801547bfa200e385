//! Permission checks: the rules of POSIX for one caller and one object.
//!
//! The scheme checks where redoxfs does: every directory on a path for search, the parent for write
//! when an entry is made, removed or renamed. It checks the object for read and write when it is
//! opened, and its owner when its attributes are set. Where the rules of redoxfs differ, those of
//! POSIX count. A caller that may write a directory may remove or rename a file in it, not only the
//! owner of the file. In a sticky directory it must also own the file or the directory.

use crate::errno::{EACCES, EPERM, Error, Result};
use redox_scheme::CallerCtx;

use crate::layer::{Kind, Owner, Stat};
use crate::overlay::ownership::{self, SET_GID, lends_rights};

/// The right to read a file or list a directory.
pub const READ: u32 = 4;
/// The right to change a file's contents or a directory's entries.
pub const WRITE: u32 = 2;
/// The right to look names up in a directory.
pub const SEARCH: u32 = 1;

pub const STICKY: u32 = 0o1000;

/// The caller of a request: the effective user and group of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
}

impl Caller {
    /// Takes the ids of a request. Only `openat`, `read`, `write`, `frename`, `flink`, `unlinkat`
    /// and `dup` have real ones. In other requests the kernel leaves them 0 or uses their place for
    /// other data, so the opener of the handle counts.
    pub fn of(context: &CallerCtx) -> Self {
        Self { uid: context.uid, gid: context.gid }
    }

    pub fn is_root(self) -> bool {
        self.uid == 0
    }

    /// Whether this is the owner of the object, or root, which may do what the owner may.
    pub fn owns(self, stat: &Stat) -> bool {
        self.is_root() || self.uid == stat.uid
    }

    /// Whether the mode of the object grants all of `wanted`, a union of [`READ`], [`WRITE`] and
    /// [`SEARCH`]. The class is the owner, else the group, else all others, even if a later class
    /// would grant more.
    pub fn may(self, stat: &Stat, wanted: u32) -> bool {
        let class = if self.uid == stat.uid {
            6
        } else if self.gid == stat.gid {
            3
        } else {
            0
        };
        self.is_root() || (stat.mode >> class) & wanted == wanted
    }

    /// Checks [`Caller::may`].
    ///
    /// # Errors
    ///
    /// - EACCES: the mode does not grant it.
    pub fn require(self, stat: &Stat, wanted: u32) -> Result<()> {
        if self.may(stat, wanted) { Ok(()) } else { Err(Error::new(EACCES)) }
    }

    /// Checks that the caller may make entries in `dir`.
    ///
    /// # Errors
    ///
    /// - EACCES: the mode does not grant it.
    pub fn require_entries(self, dir: &Stat) -> Result<()> {
        self.require(dir, WRITE | SEARCH)
    }

    /// Checks that the caller may remove or replace the entry of `dir` that names `object`. Only
    /// for a sticky directory it calls `object`.
    ///
    /// # Errors
    ///
    /// - EACCES: the mode of `dir` does not grant it.
    /// - EPERM: `dir` is sticky, and the caller owns neither it nor the object.
    pub fn require_removal(self, dir: &Stat, object: impl FnOnce() -> Result<Stat>) -> Result<()> {
        self.require_entries(dir)?;
        if dir.mode & STICKY != 0 && !self.owns(dir) && !self.owns(&object()?) {
            return Err(Error::new(EPERM));
        }
        Ok(())
    }

    /// Checks that the caller may give an object a second name, as Linux does with
    /// `protected_hardlinks`. A caller that does not own it needs a regular file that it may read
    /// and write, and that gives no rights to its users. Otherwise the caller could keep a file
    /// that its owner removes. It could also make a program of root take it for a file of the
    /// caller.
    ///
    /// # Errors
    ///
    /// - EPERM: the link is not allowed.
    pub fn require_link(self, object: &Stat) -> Result<()> {
        let is_harmless = object.kind == Kind::File && !lends_rights(object.mode) && self.may(object, READ | WRITE);
        if self.owns(object) || is_harmless { Ok(()) } else { Err(Error::new(EPERM)) }
    }

    /// Returns the owner and the mode of an object that the caller makes in `dir` with `mode`.
    pub fn newborn(self, dir: &Stat, kind: Kind, mode: u32) -> (Owner, u32) {
        let (owner, mode) = ownership::of_new(dir, Owner { uid: self.uid, gid: self.gid }, kind, mode);
        let may_lend = kind == Kind::Dir || self.is_root() || owner.gid == self.gid;
        (owner, if may_lend { mode } else { mode & !SET_GID })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(uid: u32, gid: u32, mode: u32) -> Stat {
        Stat::example(Kind::File, mode, uid, gid)
    }

    const ROOT: Caller = Caller { uid: 0, gid: 0 };
    const ANN: Caller = Caller { uid: 1000, gid: 100 };
    const BOB: Caller = Caller { uid: 1001, gid: 100 };
    const EVE: Caller = Caller { uid: 1002, gid: 200 };

    #[test]
    fn one_class_decides() {
        let file = object(1000, 100, 0o064);
        assert!(!ANN.may(&file, READ), "the owner's class grants nothing, though the group's would");
        assert!(BOB.may(&file, READ | WRITE));
        assert!(EVE.may(&file, READ));
        assert!(!EVE.may(&file, READ | WRITE));
        assert!(ROOT.may(&object(1000, 100, 0), READ | WRITE | SEARCH));
    }

    #[test]
    fn sticky_directories_protect_entries_of_others() {
        let dir = object(0, 0, 0o1777);
        let file = || Ok(object(1000, 100, 0o666));
        assert_eq!(ANN.require_removal(&dir, file), Ok(()));
        assert_eq!(BOB.require_removal(&dir, file), Err(Error::new(EPERM)));
        assert_eq!(ROOT.require_removal(&dir, file), Ok(()));
        assert_eq!(BOB.require_removal(&object(1001, 0, 0o1777), file), Ok(()), "the directory's owner");
        assert_eq!(BOB.require_removal(&object(0, 0, 0o0777), file), Ok(()));
        assert_eq!(ANN.require_removal(&object(0, 0, 0o1755), file), Err(Error::new(EACCES)));
    }

    #[test]
    fn only_an_owner_or_a_writer_links_a_file() {
        let refused = Err(Error::new(EPERM));
        for (mode, bobs, eves) in [
            (0o666, Ok(()), Ok(())),
            (0o660, Ok(()), refused),
            (0o644, refused, refused),
            (0o622, refused, refused),
            (0o4666, refused, refused),
            (0o2666, Ok(()), Ok(())),
            (0o2676, refused, refused),
            (0o1666, Ok(()), Ok(())),
        ] {
            let file = object(1000, 100, mode);
            assert_eq!((BOB.require_link(&file), EVE.require_link(&file)), (bobs, eves), "{mode:o}");
            assert_eq!((ANN.require_link(&file), ROOT.require_link(&file)), (Ok(()), Ok(())), "{mode:o}");
        }
        let symlink = Stat { kind: Kind::Symlink, ..object(1000, 100, 0o777) };
        assert_eq!((ANN.require_link(&symlink), EVE.require_link(&symlink)), (Ok(()), refused));
    }

    #[test]
    fn new_objects_take_the_group_of_a_set_gid_directory() {
        let plain = object(0, 7, 0o777);
        let shared = object(0, 7, 0o2777);
        assert_eq!(ANN.newborn(&plain, Kind::File, 0o2755), (Owner { uid: 1000, gid: 100 }, 0o2755));
        assert_eq!(ANN.newborn(&shared, Kind::Dir, 0o755), (Owner { uid: 1000, gid: 7 }, 0o2755));
        assert_eq!(ANN.newborn(&shared, Kind::File, 0o2755), (Owner { uid: 1000, gid: 7 }, 0o755));
        assert_eq!(ROOT.newborn(&shared, Kind::File, 0o2755), (Owner { uid: 0, gid: 7 }, 0o2755));
    }
}
