//! Random changes through an overlay.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use overlayfs::errno::{ENOTEMPTY, Error};
use overlayfs::layer::{Kind, OsLayer, Owner, RenameMode, Time, XattrMode};
use overlayfs::overlay::{Node, Overlay};
use test_common::Random;

use crate::shown::entries;

type Object = Arc<Node<OsLayer>>;

/// An entry of a directory.
struct Entry {
    dir: Object,
    name: OsString,
    node: Object,
}

/// Makes this many random changes. Some of them fail, as a program's would.
pub fn change(random: &mut Random, overlay: &Overlay<OsLayer>, count: usize) {
    for _ in 0..count {
        let (dirs, all) = walk(overlay);
        // An error is a result too. What the overlay shows afterwards is what counts.
        let _ = one(random, overlay, &dirs, &all);
    }
}

fn walk(overlay: &Overlay<OsLayer>) -> (Vec<Object>, Vec<Entry>) {
    let (mut dirs, mut all) = (vec![overlay.root().clone()], Vec::new());
    let mut next = 0;
    while let Some(dir) = dirs.get(next).cloned() {
        for name in entries(overlay, &dir) {
            let node = overlay.lookup(&dir, &name).unwrap();
            if node.kind() == Kind::Dir {
                dirs.push(node.clone());
            }
            all.push(Entry { dir: dir.clone(), name, node });
        }
        next += 1;
    }
    (dirs, all)
}

fn name(random: &mut Random) -> OsString {
    let long = "n".repeat(120 + random.below(135));
    let odd = OsString::from_vec(b"line\nbreak \xff%=".to_vec());
    match random.below(12) {
        0 => OsString::from(long),
        1 => odd,
        _ => OsString::from(*random.one_of(&["a", "b", "c", "d", "e", "f", "g", "h"])),
    }
}

fn owner(random: &mut Random) -> Owner {
    let ids = [0, 1, 1000, 2_097_151, 2_097_152, 4_294_967_294];
    Owner { uid: *random.one_of(&ids), gid: *random.one_of(&ids) }
}

fn time(random: &mut Random) -> Time {
    let nsec = *random.one_of(&[0, 1, 500_000_000, 999_999_999]);
    Time { sec: *random.one_of(&[0, 1, -1, -1_000_000, 1_700_000_000, 8_589_934_592, 15_000_000_000]), nsec }
}

fn one(random: &mut Random, overlay: &Overlay<OsLayer>, dirs: &[Object], all: &[Entry]) -> Result<(), Error> {
    let (dir, new) = (random.one_of(dirs).clone(), name(random));
    let (mode, owner) = (*random.one_of(&[0o644, 0o600, 0o4755, 0o2711, 0o1777, 0o000]), owner(random));
    let choice = random.below(20);
    if choice < 3 {
        let file = overlay.create_file(&dir, &new, mode, owner)?;
        return write(random, overlay, file.node());
    }
    match choice {
        3 | 4 => return overlay.create_dir(&dir, &new, mode | 0o700, owner).map(drop),
        5 => return overlay.create_symlink(&dir, &new, &name(random), owner).map(drop),
        6 => {
            let (kind, rdev) =
                *random.one_of(&[(Kind::Fifo, 0), (Kind::CharDev, 0x103), (Kind::BlockDev, 0x0012_3456_7890)]);
            return overlay.create_node(&dir, &new, kind, mode, rdev, owner).map(drop);
        }
        _ if all.is_empty() => return Ok(()),
        _ => {}
    }
    let Entry { dir: at, name: old, node } = &all[random.below(all.len())];
    match choice {
        7 | 8 => remove(overlay, at, old, node),
        9 => {
            // A directory that is removed and made again hides what it had.
            remove(overlay, at, old, node)?;
            overlay.create_dir(at, old, 0o755, owner).map(drop)
        }
        10 | 11 => overlay.rename(at, old, &dir, &new, RenameMode::Replace),
        12 | 13 => overlay.link(node, &dir, &new),
        14 => overlay.set_mode(node, mode | if node.kind() == Kind::Dir { 0o700 } else { 0 }),
        15 => overlay.set_owner(node, owner),
        16 => overlay.set_times(node, time(random), time(random)),
        17 => {
            let (name, value) = *random.one_of(&[
                ("user.plain", &b"value"[..]),
                ("user.with=and%", b"line\nbreak\0\xff"),
                ("user.overlay.opaque", b"y"),
                ("trusted.overlay.redirect", b"/a"),
                ("security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
                ("system.posix_acl_access", ACL),
                ("system.posix_acl_default", ACL),
            ]);
            overlay.set_xattr(node, OsStr::new(name), value, XattrMode::Set)
        }
        _ if node.kind() == Kind::File => write(random, overlay, node),
        _ => Ok(()),
    }
}

/// `u::rwx,u:7:r--,g::r-x,m::r-x,o::r--`
const ACL: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x04\0\x07\0\0\0\x04\0\x05\0\xff\xff\xff\xff\
    \x10\0\x05\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";

/// Writes a piece somewhere, which may leave a hole before it, or changes the size.
fn write(random: &mut Random, overlay: &Overlay<OsLayer>, node: &Object) -> Result<(), Error> {
    match random.below(5) {
        0 => overlay.truncate(node, random.below(100_000) as u64),
        _ => {
            let piece = vec![b'a' + random.below(26) as u8; 1 + random.below(9000)];
            let at = *random.one_of(&[0, 0, 0, 511, 4096, 20_000, 1_200_000]);
            overlay.write_at(&overlay.open(node), &piece, at).map(drop)
        }
    }
}

/// Removes an object, a directory with all its content.
fn remove(overlay: &Overlay<OsLayer>, dir: &Object, name: &OsStr, node: &Object) -> Result<(), Error> {
    if node.kind() != Kind::Dir {
        return overlay.unlink(dir, name);
    }
    match overlay.remove_dir(dir, name) {
        Err(error) if error.errno == ENOTEMPTY => {}
        removed => return removed,
    }
    for entry in entries(overlay, node) {
        let child = overlay.lookup(node, &entry)?;
        remove(overlay, node, &entry, &child)?;
    }
    overlay.remove_dir(dir, name)
}
