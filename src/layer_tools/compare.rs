//! The comparison of one object in two merged trees.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::num::NonZeroU64;
use std::sync::Arc;

use super::changes::Aspects;
use super::tree::{fixed, xattrs};
use crate::errno::Result;
use crate::layer::{Kind, Layer, Stat};
use crate::overlay::on_disk::CompactMap;
use crate::overlay::{Node, Overlay};

/// The size of a piece of content that is read at once.
const PIECE: usize = 128 << 10;

/// An object, its merged tree and its attributes.
pub struct Side<'o, L: Layer> {
    pub overlay: &'o Overlay<L>,
    pub node: &'o Arc<Node<L>>,
    pub stat: Stat,
}

impl<'o, L: Layer> Side<'o, L> {
    pub fn new(overlay: &'o Overlay<L>, node: &'o Arc<Node<L>>) -> Result<Self> {
        Ok(Side { overlay, node, stat: overlay.stat(node)? })
    }

    /// Returns the extended attributes with their values; none on a layer without any.
    fn xattrs(&self) -> Result<BTreeMap<OsString, Vec<u8>>> {
        let names = xattrs(self.overlay, self.node)?;
        names.into_iter().map(|name| Ok((name.clone(), self.overlay.xattr(self.node, &name)?))).collect()
    }
}

/// Returns what differs between the object before and the object now. `links` are left out.
///
/// # Errors
///
/// Those of the layers.
pub fn aspects<L: Layer>(old: &Side<'_, L>, new: &Side<'_, L>) -> Result<Aspects> {
    let (before, now) = (&old.stat, &new.stat);
    let kind = before.kind != now.kind;
    Ok(Aspects {
        content: !kind && differs_in_content(old, new)?,
        kind,
        // A symlink has no mode of its own.
        mode: before.mode != now.mode && now.kind != Kind::Symlink,
        owner: (before.uid, before.gid) != (now.uid, now.gid),
        times: before.mtime != now.mtime,
        xattrs: old.xattrs()? != new.xattrs()?,
        flags: fixed(old.overlay, old.node)? != fixed(new.overlay, new.node)?,
        links: false,
    })
}

/// Returns the names of the extended attributes that only one of the two has, or that have another
/// value.
///
/// # Errors
///
/// Those of the layers.
pub fn changed_xattrs<L: Layer>(old: &Side<'_, L>, new: &Side<'_, L>) -> Result<BTreeSet<OsString>> {
    let (before, now) = (old.xattrs()?, new.xattrs()?);
    let names = before.keys().chain(now.keys());
    Ok(names.filter(|&name| before.get(name) != now.get(name)).cloned().collect())
}

fn differs_in_content<L: Layer>(old: &Side<'_, L>, new: &Side<'_, L>) -> Result<bool> {
    Ok(match new.stat.kind {
        Kind::File if old.stat.size != new.stat.size => true,
        Kind::File => differs_in_data(old, new)?,
        Kind::Symlink => old.overlay.read_link(old.node)? != new.overlay.read_link(new.node)?,
        Kind::CharDev | Kind::BlockDev => old.stat.rdev != new.stat.rdev,
        Kind::Dir | Kind::Fifo | Kind::Socket => false,
    })
}

/// Compares the data of two files of equal size, byte by byte. Reads only what they do not share: a
/// commit that goes on finds files that it has linked, and a partial copy has a part of the data.
fn differs_in_data<L: Layer>(old: &Side<'_, L>, new: &Side<'_, L>) -> Result<bool> {
    let (before, now) = (old.overlay.open(old.node), new.overlay.open(new.node));
    let (mut one, mut other) = (vec![0; PIECE], vec![0; PIECE]);
    for range in new.overlay.unshared(new.node, (old.overlay, old.node), new.stat.size)? {
        let mut at = range.start;
        while at < range.end {
            let most = PIECE.min((range.end - at) as usize);
            let length = old.overlay.read_at(&before, &mut one[..most], at)?;
            if length != new.overlay.read_at(&now, &mut other[..most], at)? || one[..length] != other[..length] {
                return Ok(true);
            }
            if length == 0 {
                break;
            }
            at += length as u64;
        }
    }
    Ok(false)
}

/// Whether an object has several names.
pub fn is_linked(stat: &Stat) -> bool {
    stat.kind != Kind::Dir && stat.nlink > 1
}

/// The objects with several names that a walk met, in the two trees.
#[derive(Default)]
pub struct Links {
    now: Names,
    before: Names,
    /// The count of the names to come of objects that the two tables would have alike: all names so
    /// far are of one object with one number in both trees. Most copies are such objects.
    alike: CompactMap<u64, u32>,
}

impl Links {
    /// Whether the names of the object changed: their count, or the names that share it. The walk
    /// calls this once for each name.
    pub fn differ(&mut self, old: Option<&Stat>, new: &Stat) -> bool {
        if !is_linked(new) && !old.is_some_and(is_linked) {
            return false;
        }
        if let Some(old) = old.filter(|old| (old.ino, old.nlink) == (new.ino, new.nlink))
            && self.meet_alike(old)
        {
            return false;
        }
        self.part(new.ino);
        if let Some(old) = old {
            self.part(old.ino);
        }
        let number = |stat: &Stat| NonZeroU64::new(stat.ino);
        let now = self.now.meet(new, old.and_then(number));
        let before = old.and_then(|old| self.before.meet(old, number(new)));
        old.is_none_or(|old| old.nlink != new.nlink) || now != old.and_then(number) || before != number(new)
    }

    /// Counts a name of an object that is alike in both trees. Returns whether all of its names so
    /// far are such names.
    fn meet_alike(&mut self, stat: &Stat) -> bool {
        let ino = stat.ino;
        let left = match self.alike.get(ino) {
            None if ino == 0 || self.now.0.contains(ino) || self.before.0.contains(ino) => return false,
            met => met.unwrap_or(stat.nlink),
        };
        count_down(&mut self.alike, ino, left, |left| left);
        true
    }

    /// Moves an object to the two tables, as a name follows that is not alike.
    fn part(&mut self, ino: u64) {
        if let Some(left) = self.alike.remove(ino) {
            let met = Met { other: NonZeroU64::new(ino), left };
            self.now.0.insert(ino, met);
            self.before.0.insert(ino, met);
        }
    }
}

/// Objects with names to come, by their inode numbers.
#[derive(Default)]
struct Names(CompactMap<u64, Met>);

/// The facts about an object that a walk met.
#[derive(Clone, Copy)]
#[repr(Rust, packed(4))]
struct Met {
    /// The object that the other tree has at its first name.
    other: Option<NonZeroU64>,
    /// The count of the names to come.
    left: u32,
}

impl Names {
    /// Returns what the other tree has at the first name. `other` is what it has at this one.
    fn meet(&mut self, stat: &Stat, other: Option<NonZeroU64>) -> Option<NonZeroU64> {
        let Met { other, left } = self.0.get(stat.ino).unwrap_or(Met { other, left: stat.nlink });
        count_down(&mut self.0, stat.ino, left, |left| Met { other, left });
        other
    }
}

/// Counts one of the names that were to come. Drops an object without any.
fn count_down<V: Copy>(objects: &mut CompactMap<u64, V>, ino: u64, left: u32, value: impl Fn(u32) -> V) {
    match left {
        ..=1 => objects.remove(ino),
        _ => objects.insert(ino, value(left - 1)),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An inode number, and its count of names.
    type Object = (u64, u32);

    /// Returns what [`Links`] says at each name, which has an object in each tree.
    fn differ(names: &[(Object, Object)]) -> Vec<bool> {
        let stat = |(ino, nlink)| Stat { ino, nlink, ..Stat::example(Kind::File, 0o600, 0, 0) };
        let mut links = Links::default();
        let differs = names.iter().map(|(old, new)| links.differ(Some(&stat(*old)), &stat(*new))).collect();
        assert_eq!([links.alike.len(), links.now.0.len(), links.before.0.len()], [0; 3], "all names were met");
        differs
    }

    #[test]
    fn objects_that_are_alike_do_not_differ() {
        assert_eq!(differ(&[((7, 2), (7, 2)), ((8, 1), (8, 1)), ((7, 2), (7, 2))]), [false; 3]);
    }

    #[test]
    fn other_numbers_of_the_same_names_do_not_differ() {
        assert_eq!(differ(&[((7, 2), (9, 2)), ((7, 2), (9, 2))]), [false; 2]);
    }

    #[test]
    fn a_name_that_is_of_another_object_differs() {
        // The second names of 7 and 8 were exchanged.
        let names = [((7, 2), (7, 2)), ((8, 2), (8, 2)), ((7, 2), (8, 2)), ((8, 2), (7, 2))];
        assert_eq!(differ(&names), [false, false, true, true]);
    }
}
