//! A merged tree as text, with everything that a program can see of it but times of access and of
//! change of status, and inode numbers.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use overlayfs::layer::{Kind, Layer, Stat};
use overlayfs::overlay::{Node, Overlay};

/// The objects of a tree, by path.
pub type Tree = BTreeMap<PathBuf, String>;

/// Returns the tree of an overlay.
pub fn tree<L: Layer>(overlay: &Overlay<L>) -> Tree {
    let (mut tree, mut links) = (Tree::new(), HashMap::new());
    let mut left = vec![(PathBuf::new(), overlay.root().clone())];
    while let Some((path, node)) = left.pop() {
        let stat = overlay.stat(&node).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut text = attributes(&stat);
        for name in overlay.xattrs(&node).unwrap_or_default() {
            let value = overlay.xattr(&node, &name).unwrap();
            write!(text, " {}={}", name.display(), value.escape_ascii()).unwrap();
        }
        match node.kind() {
            Kind::Dir => left.extend(entries(overlay, &node).map(|(name, child)| (path.join(name), child))),
            Kind::File => text += &content(overlay, &node, stat.size),
            Kind::Symlink => text += &format!(" -> {}", overlay.read_link(&node).unwrap().display()),
            _ => text += &format!(" device {:x}", stat.rdev),
        }
        if node.kind() != Kind::Dir && stat.nlink > 1 {
            links.entry(stat.ino).or_insert_with(Vec::new).push(path.clone());
        }
        tree.insert(path, text);
    }
    // The count of a lower file may include names that a layer above hides.
    for mut names in links.into_values().filter(|names| names.len() > 1) {
        names.sort();
        for name in &names {
            write!(tree.get_mut(name).unwrap(), " linked {names:?}").unwrap();
        }
    }
    tree
}

fn attributes(stat: &Stat) -> String {
    let Stat { kind, mode, uid, gid, mtime, .. } = *stat;
    let fixed = if stat.fixed.is_any() { " fixed" } else { "" };
    format!("{kind:?} {mode:o} {uid}:{gid} {}.{:09}{fixed}", mtime.sec, mtime.nsec)
}

fn entries<L: Layer>(
    overlay: &Overlay<L>,
    dir: &Arc<Node<L>>,
) -> impl Iterator<Item = (std::ffi::OsString, Arc<Node<L>>)> {
    let mut names = Vec::new();
    overlay
        .list(&overlay.open(dir), 0, &mut |entry| {
            names.push(entry.name.to_owned());
            true
        })
        .unwrap();
    names.sort_by(|one, other| other.as_bytes().cmp(one.as_bytes()));
    names.into_iter().map(move |name| {
        let node = overlay.lookup(dir, &name).unwrap();
        (name, node)
    })
}

/// The content with its holes.
fn content<L: Layer>(overlay: &Overlay<L>, node: &Arc<Node<L>>, size: u64) -> String {
    let handle = overlay.open(node);
    let mut bytes = vec![0; size as usize];
    let read = overlay.read_at(&handle, &mut bytes, 0).unwrap();
    let mut data = Vec::new();
    let mut at = 0;
    while let Some(range) = overlay.next_data(&handle, at).unwrap() {
        data.push((range.start, range.end));
        at = range.end;
    }
    let sum = bytes.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    format!(" {size} bytes, {read} read, #{sum:x}, data {data:?}")
}

/// Panics with the differences of two trees, if there are any.
pub fn assert_same(before: &Tree, after: &Tree, what: &str) {
    let mut said = String::new();
    for path in before.keys().chain(after.keys()) {
        let (one, other) = (before.get(path), after.get(path));
        if one != other && !said.contains(&format!("{path:?}:")) {
            let none = "nothing".to_owned();
            writeln!(said, "{path:?}:\n  {}\n  {}", one.unwrap_or(&none), other.unwrap_or(&none)).unwrap();
        }
    }
    assert!(said.is_empty(), "{what}:\n{said}");
}
