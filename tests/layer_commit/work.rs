//! Random work in a merged tree.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use overlayfs::layer::{Kind, Layer, Owner, RenameMode, Time, XattrMode, acl};
use overlayfs::overlay::{Node, Overlay};
use test_common::Random;

const ROOT: Owner = Owner { uid: 0, gid: 0 };

/// An access ACL that gives the user 1000 more than the group.
pub const ACL: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x06\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\
    \x10\0\x06\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

/// Makes `steps` random changes. Some of them fail, as those of a program may.
pub fn work<L: Layer>(overlay: &Overlay<L>, random: &mut Random, steps: usize) {
    for _ in 0..steps {
        let _ = step(overlay, random);
    }
}

/// A name of a directory and its object, if there is one.
type Place<L> = (Arc<Node<L>>, OsString, Option<Arc<Node<L>>>);

/// Walks down from the root for a while.
fn place<L: Layer>(overlay: &Overlay<L>, random: &mut Random) -> Place<L> {
    let mut dir = overlay.root().clone();
    loop {
        let mut names = Vec::new();
        overlay
            .list(&overlay.open(&dir), 0, &mut |entry| {
                names.push(entry.name.to_owned());
                true
            })
            .unwrap();
        names.sort();
        if names.is_empty() || random.below(4) == 0 {
            let name = OsString::from(*random.one_of(&["a", "b", "c", "d", "e", "f"]));
            let node = overlay.lookup(&dir, &name).ok();
            return (dir, name, node);
        }
        let name = random.one_of(&names).clone();
        let node = overlay.lookup(&dir, &name).unwrap();
        if node.kind() != Kind::Dir || random.below(3) == 0 {
            return (dir, name, Some(node));
        }
        dir = node;
    }
}

fn step<L: Layer>(overlay: &Overlay<L>, random: &mut Random) -> overlayfs::errno::Result<()> {
    let (dir, name, node) = place(overlay, random);
    let choice = random.below(25);
    let Some(node) = node else {
        let owner = *random.one_of(&[ROOT, Owner { uid: 1000, gid: 1001 }]);
        let mode = *random.one_of(&[0o644, 0o600, 0o755, 0o4755, 0o2755]);
        return match choice {
            0..8 => overlay.create_dir(&dir, &name, *random.one_of(&[0o755, 0o700, 0o1777, 0o2775]), owner).map(drop),
            8..10 => overlay.create_symlink(&dir, &name, OsStr::new("some/where"), owner).map(drop),
            10 => overlay.create_node(&dir, &name, Kind::Fifo, mode, 0, owner).map(drop),
            11 => overlay.create_node(&dir, &name, Kind::Socket, mode, 0, owner).map(drop),
            12 => overlay.create_node(&dir, &name, Kind::CharDev, mode, 0x103, owner).map(drop),
            13..15 => {
                let (_, _, other) = place(overlay, random);
                other.map_or(Ok(()), |other| overlay.link(&other, &dir, &name))
            }
            _ => {
                let handle = overlay.create_file(&dir, &name, mode, owner)?;
                write(overlay, &handle, random)
            }
        };
    };
    match choice {
        0..5 => {
            let (new_dir, new_name, _) = place(overlay, random);
            let mode = *random.one_of(&[RenameMode::Replace, RenameMode::Replace, RenameMode::Exchange]);
            overlay.rename(&dir, &name, &new_dir, &new_name, mode)
        }
        5..8 => remove(overlay, &dir, &name, random.below(3) > 0),
        8..11 if node.kind() == Kind::File => write(overlay, &overlay.open(&node), random),
        11 if node.kind() == Kind::File => overlay.truncate(&node, random.below(200_000) as u64),
        12..14 => {
            let time = Time { sec: random.below(1 << 30) as i64, nsec: random.below(1_000_000_000) as u32 };
            overlay.set_times(&node, time, time)
        }
        14 => overlay.set_mode(&node, *random.one_of(&[0o600, 0o755, 0o4711, 0o2755, 0o1777])),
        15 => overlay.set_owner(&node, *random.one_of(&[ROOT, Owner { uid: 1000, gid: 1001 }])),
        16 => overlay.set_xattr(&node, OsStr::new("trusted.note"), &[random.below(256) as u8], XattrMode::Set),
        17 => overlay.remove_xattr(&node, OsStr::new("trusted.note")),
        18 => overlay.set_xattr(&node, OsStr::new(acl::ACCESS), ACL, XattrMode::Set),
        19 => overlay.set_xattr(&node, OsStr::new(acl::DEFAULT), ACL, XattrMode::Set),
        20 => overlay.set_xattr(&node, OsStr::new("trusted.overlay.opaque"), b"y", XattrMode::Set),
        _ => {
            let (new_dir, new_name, there) = place(overlay, random);
            if there.is_some() { Ok(()) } else { overlay.link(&node, &new_dir, &new_name) }
        }
    }
}

fn write<L: Layer>(
    overlay: &Overlay<L>,
    handle: &overlayfs::overlay::Handle<L>,
    random: &mut Random,
) -> overlayfs::errno::Result<()> {
    let bytes = vec![random.below(256) as u8; 1 + random.below(9000)];
    overlay.write_at(handle, &bytes, *random.one_of(&[0, 0, 1, 4096, 70_000, 1 << 20]))?;
    Ok(())
}

/// Removes an object, with its content if `all`.
fn remove<L: Layer>(overlay: &Overlay<L>, dir: &Arc<Node<L>>, name: &OsStr, all: bool) -> overlayfs::errno::Result<()> {
    let node = overlay.lookup(dir, name)?;
    if node.kind() != Kind::Dir {
        return overlay.unlink(dir, name);
    }
    let mut names = Vec::new();
    overlay.list(&overlay.open(&node), 0, &mut |entry| {
        names.push(entry.name.to_owned());
        true
    })?;
    if all {
        names.iter().try_for_each(|name| remove(overlay, &node, name, true))?;
    }
    overlay.remove_dir(dir, name)
}
