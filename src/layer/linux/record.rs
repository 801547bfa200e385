//! Records of owners that the daemon cannot set, in an attribute.
//!
//! A user's daemon cannot give an object to another user, and a user namespace has only mapped ids.
//! Where chown(2) fails for that, owner, group and mode become the attribute `OWNER_RECORD` of the
//! object. [`Layer::stat`](crate::layer::Layer::stat) returns them. The object itself stays with
//! the daemon, and keeps the mode of its creation. Podman and fuse-overlayfs read and write the
//! same.
//!
//! The attribute on the root of a layer says that the layer may have records. So a layer without
//! any costs nothing. A record counts only on an object of the daemon. Unless the daemon itself
//! writes records, other users must not be able to write the object: then only the daemon's user
//! wrote the record. Only files and directories have such attributes; the owner of other objects is
//! lost.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::errno::{EINVAL, EOVERFLOW, EPERM, Error};
use rustix::io::{Errno, Result};

use super::xattr::{self, XattrTarget};
use crate::format::attribute::{OWNER_RECORD, OWNER_RECORDS, owner_record, recorded_owner};
use crate::layer::{Kind, Owner, Stat, XattrMode};

/// The facts about the records of one layer.
pub struct Records {
    /// Whether the daemon writes a record if it cannot set an owner.
    writes: bool,
    /// Whether the daemon can set any owner.
    gives_all: bool,
    /// Whether the layer may have records.
    any: AtomicBool,
    /// The ids of the daemon.
    own: Owner,
    users: Ids,
    groups: Ids,
}

/// The ids of this user namespace: the first id and the count of each range.
#[derive(Clone)]
struct Ids(Vec<(u32, u32)>);

impl Ids {
    fn of_this_namespace(map: &str) -> Self {
        let map = std::fs::read_to_string(map).unwrap_or_default();
        let range = |line: &str| {
            let mut numbers = line.split_whitespace().map(|word| word.parse().ok());
            Some((numbers.next()??, numbers.nth(1)??))
        };
        let ranges: Vec<_> = map.lines().filter_map(range).collect();
        // Without a map, all ids.
        Ids(if ranges.is_empty() { vec![(0, u32::MAX)] } else { ranges })
    }

    fn has(&self, id: u32) -> bool {
        self.0.iter().any(|(first, count)| id.checked_sub(*first).is_some_and(|distance| distance < *count))
    }
}

impl Records {
    /// Reads the facts from the root of a layer.
    pub fn new(root: BorrowedFd<'_>, own: Owner, for_writing: bool) -> Self {
        let [users, groups] = ["uid_map", "gid_map"].map(|map| Ids::of_this_namespace(&format!("/proc/self/{map}")));
        let gives_all = own.uid == 0 && [&users, &groups].into_iter().all(|ids| ids.has(0) && ids.has(u32::MAX - 1));
        let any = OWNER_RECORDS.iter().any(|name| xattr::get(top(root), OsStr::new(name)).is_ok());
        Self { writes: for_writing && !gives_all, gives_all, any: AtomicBool::new(any), own, users, groups }
    }

    /// Returns the facts about another layer of this process.
    pub fn of_another(&self, root: BorrowedFd<'_>, for_writing: bool) -> Self {
        let any = OWNER_RECORDS.iter().any(|name| xattr::get(top(root), OsStr::new(name)).is_ok());
        let (users, groups) = (self.users.clone(), self.groups.clone());
        let writes = for_writing && !self.gives_all;
        Self { writes, gives_all: self.gives_all, any: AtomicBool::new(any), own: self.own, users, groups }
    }

    /// Whether the user namespace has these ids.
    pub fn has_ids(&self, owner: Owner) -> bool {
        self.users.has(owner.uid) && self.groups.has(owner.gid)
    }

    /// Whether an owner that chown(2) refused with this error must be recorded.
    pub fn takes(&self, refused: Error) -> bool {
        self.writes && matches!(refused.errno, EPERM | EINVAL | EOVERFLOW)
    }

    /// Whether the daemon writes a record if it cannot set an owner.
    pub fn writes(&self) -> bool {
        self.writes
    }

    /// Whether an object with these attributes may have a record that counts.
    pub fn may_be_on(&self, object: &Stat) -> bool {
        let only_ours = object.uid == self.own.uid && (self.writes || object.mode & 0o022 == 0);
        self.are_any() && only_ours && holds_record(object.kind)
    }

    /// Whether the layer may have records.
    pub fn are_any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Returns the owner and mode in an object's record.
    pub fn read(&self, object: XattrTarget<'_>) -> Option<(Owner, u32)> {
        let value = |name: &&str| xattr::get(object, OsStr::new(name)).ok();
        recorded_owner(&OWNER_RECORDS.iter().find_map(value)?)
    }

    /// Records the owner and mode of an object with the attributes `own`. `root` is the root of the
    /// layer.
    pub fn write(
        &self,
        root: BorrowedFd<'_>,
        object: XattrTarget<'_>,
        own: &Stat,
        owner: Owner,
        mode: u32,
    ) -> Result<()> {
        if !holds_record(own.kind) {
            return Ok(());
        }
        if !self.are_any() {
            let stat = rustix::fs::statat(root, "", rustix::fs::AtFlags::EMPTY_PATH)?;
            let value = owner_record(Owner { uid: stat.st_uid, gid: stat.st_gid }, stat.st_mode & 0o7777);
            match xattr::set(top(root), OsStr::new(OWNER_RECORD), value.as_bytes(), XattrMode::Create) {
                Err(Errno::EXIST) => {}
                marked => marked?,
            }
            self.any.store(true, Ordering::Relaxed);
        }
        xattr::set(object, OsStr::new(OWNER_RECORD), owner_record(owner, mode).as_bytes(), XattrMode::Set)
    }
}

fn holds_record(kind: Kind) -> bool {
    matches!(kind, Kind::File | Kind::Dir)
}

fn top(root: BorrowedFd<'_>) -> XattrTarget<'_> {
    XattrTarget::Entry(root, OsStr::new("."))
}
