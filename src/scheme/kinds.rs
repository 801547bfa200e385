//! The kinds of requests that the status of a scheme counts.

use syscall::flag::StdFsCallKind;
use syscall::schemev2::{Opcode, Sqe};

/// A kind of request. Its number is a place in [`KINDS`].
enum Kind {
    Open,
    Unlink,
    Rename,
    Link,
    Dup,
    Read,
    Write,
    Truncate,
    Stat,
    StatVfs,
    Chmod,
    Chown,
    Times,
    Sync,
    List,
    Path,
    Map,
    Unmap,
    Lock,
    Call,
    Other,
}

/// The names of the kinds, in the order of [`Kind`].
pub const KINDS: [&str; Kind::Other as usize + 1] = [
    "open", "unlink", "rename", "link", "dup", "read", "write", "truncate", "stat", "statvfs", "chmod", "chown",
    "times", "sync", "list", "path", "map", "unmap", "lock", "call", "other",
];

/// Returns the kind of a request.
pub fn kind_of(entry: &Sqe) -> usize {
    let kind = match Opcode::try_from_raw(entry.opcode) {
        Some(Opcode::OpenAt) => Kind::Open,
        Some(Opcode::UnlinkAt) => Kind::Unlink,
        Some(Opcode::Frename) => Kind::Rename,
        Some(Opcode::Flink) => Kind::Link,
        Some(Opcode::Dup) => Kind::Dup,
        Some(Opcode::Read) => Kind::Read,
        Some(Opcode::Write) => Kind::Write,
        Some(Opcode::Ftruncate) => Kind::Truncate,
        Some(Opcode::Fstat | Opcode::Fsize) => Kind::Stat,
        Some(Opcode::Fstatvfs) => Kind::StatVfs,
        Some(Opcode::Fchmod) => Kind::Chmod,
        Some(Opcode::Fchown) => Kind::Chown,
        Some(Opcode::Futimens) => Kind::Times,
        Some(Opcode::Fsync) => Kind::Sync,
        Some(Opcode::Getdents) => Kind::List,
        Some(Opcode::Fpath) => Kind::Path,
        Some(Opcode::MmapPrep | Opcode::RequestMmap) => Kind::Map,
        Some(Opcode::Munmap) => Kind::Unmap,
        Some(Opcode::Call) => Kind::Call,
        Some(Opcode::StdFsCall) => of_standard_call(entry.args[3] as u8),
        _ => Kind::Other,
    };
    kind as usize
}

fn of_standard_call(number: u8) -> Kind {
    match StdFsCallKind::try_from_raw(number) {
        Some(StdFsCallKind::Fchmod) => Kind::Chmod,
        Some(StdFsCallKind::Fchown) => Kind::Chown,
        Some(StdFsCallKind::Getdents) => Kind::List,
        Some(StdFsCallKind::Fstat) => Kind::Stat,
        Some(StdFsCallKind::Fstatvfs) => Kind::StatVfs,
        Some(StdFsCallKind::Fsync) => Kind::Sync,
        Some(StdFsCallKind::Ftruncate) => Kind::Truncate,
        Some(StdFsCallKind::Futimens) => Kind::Times,
        Some(StdFsCallKind::Unlinkat) => Kind::Unlink,
        Some(StdFsCallKind::Relpathat) => Kind::Path,
        Some(StdFsCallKind::Lock | StdFsCallKind::Unlock | StdFsCallKind::GetLock) => Kind::Lock,
        Some(StdFsCallKind::Frenameat) => Kind::Rename,
        Some(StdFsCallKind::Flinkat) => Kind::Link,
        None => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_kinds() {
        let name = |opcode| KINDS[kind_of(&Sqe { opcode, ..Sqe::default() })];
        assert_eq!([1, 15, 19, 28, 32].map(name), ["other", "stat", "times", "call", "unlink"]);
        let standard = |number| {
            let entry = Sqe { opcode: Opcode::StdFsCall as u8, args: [0, 0, 0, number, 0, 0], ..Sqe::default() };
            KINDS[kind_of(&entry)]
        };
        assert_eq!([0, 3, 13, 16].map(standard), ["other", "list", "lock", "link"]);
    }
}
