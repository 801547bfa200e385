//! The rules of owners and set-id bits that all front ends follow.

use crate::layer::{Kind, Owner, Stat};

/// The set-user-id bit.
pub const SET_UID: u32 = 0o4000;
/// The set-group-id bit.
pub const SET_GID: u32 = 0o2000;
/// The bits that give a program the rights of its owner or group.
pub const SET_ID: u32 = SET_UID | SET_GID;
const GROUP_EXECUTE: u32 = 0o010;

/// Returns the mode of a file after an unprivileged process with the group `gid` changed its
/// content or owner.
///
/// As on Linux since 6.2 (`setattr_should_drop_sgid` in fs/attr.c), members of the file's group
/// keep set-group-id without group execute, the sign for mandatory locks.
pub fn without_set_id(file: &Stat, gid: u32) -> u32 {
    let kept = file.mode & GROUP_EXECUTE == 0 && file.gid == gid;
    file.mode & !(if kept { SET_UID } else { SET_ID })
}

/// Whether a program with this mode runs with the rights of its owner or group.
pub fn lends_rights(mode: u32) -> bool {
    const AS_GROUP: u32 = SET_GID | GROUP_EXECUTE;
    mode & SET_UID != 0 || mode & AS_GROUP == AS_GROUP
}

/// Returns the owner and mode of an object that `caller` makes in `dir` with `mode`. The
/// set-group-id bit of a directory passes its group to new objects, and itself to new directories.
pub fn of_new(dir: &Stat, caller: Owner, kind: Kind, mode: u32) -> (Owner, u32) {
    match dir.mode & SET_GID {
        0 => (caller, mode),
        bit => (Owner { gid: dir.gid, ..caller }, if kind == Kind::Dir { mode | bit } else { mode }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(kind: Kind, mode: u32) -> Stat {
        Stat::example(kind, mode, 1000, 100)
    }

    #[test]
    fn set_id_bits_are_dropped_as_on_linux() {
        let file = |mode| stat(Kind::File, mode);
        assert_eq!(without_set_id(&file(0o6755), 100), 0o755);
        assert_eq!(without_set_id(&file(0o6745), 100), 0o2745, "mandatory locking's bit, by a member");
        assert_eq!(without_set_id(&file(0o6745), 200), 0o745);
        assert_eq!(without_set_id(&file(0o1644), 200), 0o1644);
    }

    #[test]
    fn a_directory_gives_its_group_to_new_objects() {
        let caller = Owner { uid: 7, gid: 8 };
        let shared = stat(Kind::Dir, 0o2775);
        assert_eq!(of_new(&stat(Kind::Dir, 0o775), caller, Kind::Dir, 0o700), (caller, 0o700));
        assert_eq!(of_new(&shared, caller, Kind::Dir, 0o700), (Owner { uid: 7, gid: 100 }, 0o2700));
        assert_eq!(of_new(&shared, caller, Kind::File, 0o600), (Owner { uid: 7, gid: 100 }, 0o600));
    }
}
