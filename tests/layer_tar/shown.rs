//! The tree that an overlay shows: one line for each object, with all that an archive keeps.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt::Write;
use std::hash::Hasher;
use std::path::PathBuf;
use std::sync::Arc;

use overlayfs::layer::{Kind, OsLayer};
use overlayfs::overlay::{Node, Overlay};

/// A tree, by path.
#[derive(PartialEq, Eq)]
pub struct Tree(BTreeMap<PathBuf, String>);

impl Tree {
    /// Panics with the differences, if there are any.
    pub fn assert_same(&self, other: &Tree, what: &str) {
        let all = self.0.keys().chain(other.0.keys());
        let mut differences: Vec<_> = all
            .filter(|path| self.0.get(*path) != other.0.get(*path))
            .map(|path| format!("{}:\n  {:?}\n  {:?}", path.display(), self.0.get(path), other.0.get(path)))
            .collect();
        differences.dedup();
        assert!(differences.is_empty(), "{what}: {}", differences.join("\n"));
    }
}

/// Returns the tree that an overlay shows.
pub fn tree(overlay: &Overlay<OsLayer>) -> Tree {
    let (mut tree, mut names): (_, HashMap<u64, Vec<PathBuf>>) = (BTreeMap::new(), HashMap::new());
    let mut pending = vec![(PathBuf::new(), overlay.root().clone())];
    while let Some((path, node)) = pending.pop() {
        for name in entries(overlay, &node).into_iter().rev() {
            let child = overlay.lookup(&node, &name).unwrap();
            pending.push((path.join(name), child));
        }
        names.entry(overlay.stat(&node).unwrap().ino).or_default().push(path.clone());
        tree.insert(path, line(overlay, &node));
    }
    // The count of links may include names that the tree does not show.
    for names in names.values().filter(|names| names.len() > 1) {
        for name in names {
            let first = names[0].display();
            tree.entry(name.clone()).and_modify(|line: &mut String| write!(line, " = {first}").unwrap());
        }
    }
    Tree(tree)
}

/// Returns the names in a directory, sorted; none for another object.
pub fn entries(overlay: &Overlay<OsLayer>, node: &Arc<Node<OsLayer>>) -> Vec<OsString> {
    let mut names = Vec::new();
    if node.kind() == Kind::Dir {
        let each = &mut |entry: overlayfs::overlay::DirEntry<'_>| {
            names.push(entry.name.to_owned());
            true
        };
        overlay.list(&overlay.open(node), 0, each).unwrap();
        names.sort();
    }
    names
}

fn line(overlay: &Overlay<OsLayer>, node: &Arc<Node<OsLayer>>) -> String {
    let stat = overlay.stat(node).unwrap();
    let mut line = format!("{:?} {:o} {}:{}", stat.kind, stat.mode, stat.uid, stat.gid);
    write!(line, " {}.{:09}", stat.mtime.sec, stat.mtime.nsec).unwrap();
    match stat.kind {
        Kind::File => {
            let handle = overlay.open(node);
            let (mut at, mut holes) = (0, String::new());
            while let Some(data) = overlay.next_data(&handle, at).unwrap().filter(|data| data.start < stat.size) {
                write!(holes, "{}-{},", data.start, data.end.min(stat.size)).unwrap();
                at = data.end;
            }
            let mut bytes = vec![0; stat.size as usize];
            overlay.read_at(&handle, &mut bytes, 0).unwrap();
            let mut hasher = DefaultHasher::new();
            hasher.write(&bytes);
            write!(line, " {} bytes #{:x}, data at {holes}", stat.size, hasher.finish()).unwrap();
        }
        Kind::Symlink => write!(line, " -> {}", overlay.read_link(node).unwrap().display()).unwrap(),
        Kind::CharDev | Kind::BlockDev => write!(line, " {:#x}", stat.rdev).unwrap(),
        _ => {}
    }
    let mut xattrs = overlay.xattrs(node).unwrap();
    xattrs.sort();
    for name in xattrs {
        write!(line, " {}={}", name.display(), overlay.xattr(node, &name).unwrap().escape_ascii()).unwrap();
    }
    line
}
