//! The operations under fault: every operation on objects in every state, and random sequences.

use overlayfs::format::Wanted;
use overlayfs::layer::RenameMode;
use test_common::Random;

use crate::backing::{Item, LARGE, Placed, Start};
use crate::memory::Abilities;
use crate::op::{Mounting, OTHER, Op, Op::*};

/// The files of the table, each in another state.
const FILES: [&str; 12] = [
    // Of the lower layer; copied up; of the upper layer alone; in a merged directory, and copied up
    // there.
    "file",
    "both",
    "own/file",
    "d/gone-not",
    "d/both",
    // In a directory that only a lower layer has, two levels deep.
    "e/g/f",
    // One of two names of a lower file; one of two where the other was copied up; one of two of an
    // upper file.
    "l1",
    "c1",
    "linked",
    // Large: lower; a partial copy; a partial copy in a renamed directory.
    "big",
    "part",
    "redirected/part",
];

/// The directories of the table.
const DIRS: [&str; 9] = [
    // Merged; of one lower layer; opaque; redirected; of the upper layer alone.
    "d",
    "e",
    "o",
    "redirected",
    "own",
    // Merged and apparently empty; the same with a redirect; empty in a lower layer; empty in the
    // upper one.
    "looks-empty",
    "looks-empty-too",
    "empty",
    "own-empty",
];

/// Free names: a new one, and one each of a removed file and directory. Also names in a merged
/// directory, in one that is not copied up, and in an opaque one.
const FREE: [&str; 6] = ["new", "gone", "dirgone", "d/gone", "e/new", "o/f"];

/// Further names for later operations: free, hidden, and of empty directories, with and without a
/// lower one.
pub const OTHERS: [&str; 6] = ["after", "gone", "dirgone", "empty", "looks-empty", "own-empty"];

fn s(name: &str) -> String {
    name.to_owned()
}

fn placed(layer: &'static str, path: &str, item: Item) -> Placed {
    (layer, s(path), item)
}

/// The number of the last operations of [`start`], which make partial copies.
pub const PARTS: usize = 2;

/// Makes the tree of the table, with names in every possible state.
pub fn start(format: Wanted, whole_copies: bool, abilities: Abilities, full: bool) -> Start {
    let files = [
        "file",
        "both",
        "gone",
        "gone-too",
        "d/gone",
        "d/gone-not",
        "d/both",
        "d/deep/f",
        "dirgone/f",
        "r/f",
        "o/f",
        "e/g/f",
    ];
    let mut lowers: Vec<_> = files.iter().map(|path| placed("lower", path, Item::File)).collect();
    lowers.extend(["l1", "c1"].map(|path| placed("lower", path, Item::File)));
    lowers.push(placed("lower", "l2", Item::Link(s("l1"))));
    lowers.push(placed("lower", "c2", Item::Link(s("c1"))));
    lowers.extend(["big", "part", "r/part"].map(|path| placed("lower", path, Item::Large)));
    lowers.push(placed("lower", "symlink", Item::Symlink));
    if full {
        lowers.push(placed("lower", "fifo", Item::Fifo));
    }
    let below = ["d/bottom", "looks-empty/f", "emptied/f", "dirgone/bottom/f"];
    lowers.extend(below.map(|path| placed("bottom", path, Item::File)));
    lowers.push(placed("bottom", "empty", Item::Dir));
    let replace = RenameMode::Replace;
    let mut ops: Vec<_> = ["dirgone/bottom/f", "gone", "gone-too", "d/gone"].map(|path| Unlink(s(path))).into();
    // So a whiteout hides the object of the bottom layer below two layers.
    ops.push(Rmdir(s("dirgone/bottom")));
    ops.extend(["both", "d/both", "c2"].map(|path| Write(s(path), 0, 2, b'U')));
    ops.extend([
        Unlink(s("dirgone/f")),
        Rmdir(s("dirgone")),
        Unlink(s("looks-empty/f")),
        Unlink(s("emptied/f")),
        Rename(s("emptied"), s("looks-empty-too"), replace),
        Mkdir(s("own")),
        Create(s("own/file")),
        Write(s("own/file"), 0, 5000, b'o'),
        Link(s("own/file"), s("linked")),
        Mkdir(s("own-empty")),
        Rename(s("r"), s("redirected"), replace),
        Unlink(s("o/f")),
        Rmdir(s("o")),
        Mkdir(s("o")),
        Create(s("o/new")),
        Write(s("part"), 70_000, 9000, b'p'),
        Write(s("redirected/part"), LARGE - 10, 2000, b'p'),
    ]);
    Start { lowers, ops, mounting: Mounting { format, whole_copies, in_chain: false }, abilities }
}

/// Returns the operations of the table.
pub fn table(full: bool) -> Vec<Op> {
    let mut ops = Vec::new();
    for file in FILES {
        let f = || s(file);
        ops.extend([
            Write(f(), 3, 10, b'w'),
            Append(f(), 5000, b'a'),
            Truncate(f(), 0),
            Truncate(f(), 3),
            Truncate(f(), LARGE + 5000),
            Chmod(f(), 0o600),
            Chown(f(), OTHER),
            Times(f(), 77),
            Sync(f()),
            Unlink(f()),
            Link(f(), s("new")),
            Link(f(), s("gone")),
            Rename(f(), s("d/new"), RenameMode::Replace),
            Rename(f(), s("gone"), RenameMode::NoReplace),
            Rename(f(), s("d/gone"), RenameMode::Replace),
            CopyRange(f(), s("own/file")),
            CopyRange(s("own/file"), f()),
            CopyRange(s("big"), f()),
        ]);
        for over in ["file", "both", "l2", "part", "symlink"].into_iter().filter(|over| *over != file) {
            ops.push(Rename(f(), s(over), RenameMode::Replace));
        }
        if full {
            ops.extend([SetXattr(f(), 1), RemoveXattr(f()), Punch(f(), 2, 9000), Reserve(f(), LARGE + 9000)]);
            ops.extend(["both", "own", "big"].map(|other| Rename(f(), s(other), RenameMode::Exchange)));
            ops.extend(["d/new", "gone", "both"].map(|other| Rename(f(), s(other), RenameMode::Whiteout)));
        }
    }
    for dir in DIRS {
        let d = || s(dir);
        ops.extend([
            Rmdir(d()),
            Chmod(d(), 0o700),
            Chown(d(), OTHER),
            Times(d(), 78),
            Sync(d()),
            Create(s(&format!("{dir}/made"))),
            Rename(s("file"), s(&format!("{dir}/moved")), RenameMode::Replace),
        ]);
        for to in
            ["moved", "e/moved", "gone-too", "dirgone", "r", "looks-empty", "looks-empty-too", "empty", "own-empty"]
        {
            if to != dir {
                ops.push(Rename(d(), s(to), RenameMode::Replace));
            }
        }
        if full {
            ops.push(SetXattr(d(), 2));
            ops.extend(
                ["both", "file", "own", "redirected", "looks-empty"].map(|to| Rename(d(), s(to), RenameMode::Exchange)),
            );
            ops.extend(["moved", "gone-too", "looks-empty"].map(|to| Rename(d(), s(to), RenameMode::Whiteout)));
        }
    }
    for name in FREE {
        let n = || s(name);
        ops.extend([Create(n()), CreateAs(n(), OTHER), Mkdir(n()), MkdirAs(n(), OTHER), Symlink(n()), Temp(n())]);
        ops.extend([Link(s("symlink"), n()), Rename(s("symlink"), n(), RenameMode::Replace)]);
        if full {
            ops.extend([Fifo(n()), Rename(s("fifo"), n(), RenameMode::NoReplace)]);
        }
    }
    ops.extend([Unlink(s("symlink")), Chown(s("symlink"), OTHER), Times(s("symlink"), 79), Remount]);
    ops
}

/// Returns operations that follow others in the same mount.
pub fn held() -> Vec<(Vec<Op>, Op)> {
    let hold = |path: &str| Hold(s(path));
    let mut all = Vec::new();
    for path in FILES {
        all.push((vec![hold(path)], Unlink(s(path))));
        all.push((vec![hold(path)], WriteHeld(7)));
        all.push((vec![hold(path), WriteHeld(6)], Unlink(s(path))));
        all.push((vec![hold(path), Unlink(s(path))], WriteHeld(7)));
        all.push((vec![hold(path), WriteHeld(6), Unlink(s(path))], WriteHeld(7)));
        all.push((vec![hold(path), Chmod(s(path), 0o640)], Rename(s("own/file"), s(path), RenameMode::Replace)));
        all.push((vec![Write(s(path), 3, 9, 9), Append(s(path), 9, 9)], Remount));
    }
    all.retain(|(_, op)| !matches!(op, Rename(from, to, _) if from == to));
    all
}

/// The names of random sequences. They are few, so that operations meet.
pub const NAMES: [&str; 5] = ["a", "b", "c", "x", "y"];

fn path(random: &mut Random) -> String {
    let depth = [1, 1, 2, 2, 3][random.below(5)];
    let names: Vec<_> = (0..depth).map(|_| *random.one_of(&NAMES)).collect();
    names.join("/")
}

/// Makes random lower layers.
pub fn random_start(seed: u64, full: bool, in_chain: bool, abilities: Abilities) -> Start {
    let mut random = Random(seed);
    let mut lowers: Vec<Placed> = Vec::new();
    for layer in ["lower", "bottom"] {
        let mut files: Vec<String> = Vec::new();
        for _ in 0..2 + random.below(7) {
            let path = path(&mut random);
            // A path in a layer has one object.
            let is_taken = |other: &str| other == path || other.starts_with(&format!("{path}/"));
            let is_below = |other: &str| path.starts_with(&format!("{other}/"));
            let own = || lowers.iter().filter(|placed| placed.0 == layer);
            if own().any(|(_, other, item)| is_taken(other) || is_below(other) && !matches!(item, Item::Dir)) {
                continue;
            }
            let above = |path: &str| path.rsplit_once('/').map(|(above, _)| above.to_owned());
            let beside = files.iter().find(|file| above(file) == above(&path));
            let item = match random.below(10) {
                0..5 => Item::File,
                5 => Item::Large,
                6 => Item::Symlink,
                7..9 => match beside.and_then(|file| file.rsplit('/').next()) {
                    Some(name) => Item::Link(s(name)),
                    None => Item::Dir,
                },
                _ => Item::Dir,
            };
            if matches!(item, Item::File) {
                files.push(path.clone());
            }
            lowers.push((layer, path, item));
        }
    }
    let format = if full && abilities.exchange && abilities.xattrs && random.below(3) == 0 {
        Wanted::Kernel
    } else {
        Wanted::Oci
    };
    let mounting = Mounting { format, whole_copies: random.below(6) == 0, in_chain };
    Start { lowers, ops: Vec::new(), mounting, abilities }
}

/// Makes a random operation.
pub fn random_op(random: &mut Random, full: bool) -> Op {
    let byte = b'a' + random.below(26) as u8;
    let place = [0, 1, 5000, 70_000, LARGE - 3][random.below(5)];
    let mut p = || path(random);
    let (one, other) = (p(), p());
    match random.below(if full { 33 } else { 28 }) {
        0..2 => Create(one),
        2 => CreateAs(one, OTHER),
        3..6 => Mkdir(one),
        6 => Symlink(one),
        7 => Temp(one),
        8 => Link(one, other),
        9..12 => Unlink(one),
        12..14 => Rmdir(one),
        14..19 => Rename(one, other, RenameMode::Replace),
        19 => Rename(one, other, RenameMode::NoReplace),
        20..22 => Write(one, place, 1 + random.below(9000), byte),
        22 => Append(one, 1 + random.below(5000), byte),
        23 => Truncate(one, place),
        24 => [Chmod(one.clone(), 0o640), Chown(one.clone(), OTHER), Times(one, 55)][random.below(3)].clone(),
        25 => Sync(one),
        26 => [Hold(one.clone()), WriteHeld(byte), CopyRange(one, other)][random.below(3)].clone(),
        27 => [Remount, Crash][random.below(2)].clone(),
        28 => Rename(one, other, RenameMode::Exchange),
        29 => [SetXattr(one.clone(), byte), RemoveXattr(one)][random.below(2)].clone(),
        30 => Punch(one, place, 6000),
        31 => Rename(one, other, RenameMode::Whiteout),
        _ => Fifo(one),
    }
}

/// Makes a random sequence of operations, with snapshots if they are possible. `does` makes each
/// one and returns whether it succeeded. Most of them succeed.
pub fn random_ops(
    random: &mut Random,
    full: bool,
    in_chain: bool,
    count: usize,
    mut does: impl FnMut(&Op) -> bool,
) -> Vec<Op> {
    let mut ops = Vec::new();
    while ops.len() < count {
        let op = match in_chain && random.below(4) == 0 {
            true => [Snapshot, Snapshot, RollBack][random.below(3)].clone(),
            false => random_op(random, full),
        };
        if does(&op) || random.below(12) == 0 {
            ops.push(op);
        }
    }
    ops
}
