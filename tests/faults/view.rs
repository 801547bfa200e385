//! The tree that a mount shows.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

use overlayfs::errno::EOPNOTSUPP;
use overlayfs::layer::{Kind, Layer, Stat, Time};
use overlayfs::overlay::{DirEntry, Handle, Overlay};

use crate::memory::PAGE;
use crate::op::{Session, Source};

/// The objects of a tree by path. The top is "".
pub type View = BTreeMap<String, Seen>;

/// The visible properties of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub kind: Kind,
    /// Kind, owner, target of a symlink, and extended attributes, as text.
    pub said: String,
    pub mode: u32,
    pub content: Option<Content>,
    /// The inode number: equal for the names of one object.
    pub ino: u64,
    pub nlink: u32,
    pub mtime: Time,
}

/// The content of a file: its pages that are not zero.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    pub size: u64,
    pub pages: BTreeMap<u64, Arc<Vec<u8>>>,
}

impl Content {
    pub fn byte(&self, at: u64) -> u8 {
        self.pages.get(&(at / PAGE)).and_then(|page| page.get((at % PAGE) as usize)).copied().unwrap_or(0)
    }
}

/// Returns the tree that the mount shows, and its open objects by number.
pub fn view<S: Source>(session: &Session<'_, S>) -> View {
    let overlay = session.overlay();
    let mut all = View::new();
    let mut nodes = vec![(String::new(), overlay.open(overlay.root()))];
    while let Some((path, handle)) = nodes.pop() {
        if handle.node().kind() == Kind::Dir {
            let mut names: Vec<OsString> = Vec::new();
            let mut each = |entry: DirEntry<'_>| {
                names.push(entry.name.to_owned());
                true
            };
            overlay.list(&handle, 0, &mut each).unwrap();
            for name in names {
                let child = overlay.lookup(handle.node(), &name).unwrap();
                let name = name.to_string_lossy();
                let path = if path.is_empty() { name.into_owned() } else { format!("{path}/{name}") };
                nodes.push((path, overlay.open(&child)));
            }
        }
        let seen = see(overlay, &handle, &path);
        all.insert(path, seen);
    }
    for (number, handle) in session.held.iter().enumerate() {
        let mut seen = see(overlay, handle, "what is held");
        seen.said += if overlay.stat(handle.node()).unwrap().nlink == 0 { " unlinked" } else { "" };
        all.insert(format!("//{number}"), seen);
    }
    all
}

/// Returns the view without open objects, as another mount shows it.
pub fn without_held(view: &View) -> View {
    view.iter().filter(|(path, _)| !path.starts_with("//")).map(|(path, seen)| (path.clone(), seen.clone())).collect()
}

/// Returns the view without set-id bits, which a change of the owner may clear.
pub fn without_set_id(mut view: View) -> View {
    view.values_mut().for_each(|seen| seen.mode &= !0o6000);
    view
}

fn see<L: Layer>(overlay: &Overlay<L>, handle: &Handle<L>, path: &str) -> Seen {
    let node = handle.node();
    let Stat { kind, mode, uid, gid, size, ino, nlink, mtime, .. } =
        overlay.stat(node).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut said = format!("{kind:?} {uid}:{gid}");
    match overlay.xattrs(node) {
        Err(error) if error.errno == EOPNOTSUPP => {}
        names => {
            for name in names.unwrap() {
                said += &format!(" {name:?}={:?}", overlay.xattr(node, &name).unwrap());
            }
        }
    }
    let content = match kind {
        Kind::File => Some(content(overlay, handle, size)),
        Kind::Symlink => {
            said += &format!(" to {:?}", overlay.read_link(node).unwrap());
            None
        }
        _ => None,
    };
    Seen { kind, said, mode, content, ino, nlink, mtime }
}

fn content<L: Layer>(overlay: &Overlay<L>, handle: &Handle<L>, size: u64) -> Content {
    let mut pages = BTreeMap::new();
    let mut at = 0;
    while at < size
        && let Some(data) = overlay.next_data(handle, at).unwrap()
    {
        let mut page = data.start / PAGE;
        while page * PAGE < data.end.min(size) {
            let mut bytes = vec![0; PAGE as usize];
            let read = overlay.read_at(handle, &mut bytes, page * PAGE).unwrap();
            assert_eq!(read as u64, PAGE.min(size - page * PAGE), "a file is as long as it says");
            if bytes != ZEROS {
                pages.insert(page, Arc::new(bytes));
            }
            page += 1;
        }
        at = page * PAGE;
    }
    Content { size, pages }
}

const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// Describes the difference of two views. Inode numbers do not count, nor the times of objects for
/// which `times` returns false.
pub fn difference(expected: &View, found: &View, times: impl Fn(&str, &Seen) -> bool) -> Option<String> {
    for (path, one) in expected {
        let Some(other) = found.get(path) else { return Some(format!("{path} is missing")) };
        if (&one.said, one.mode) != (&other.said, other.mode) {
            return Some(format!("{path}: {} {:o} instead of {} {:o}", other.said, other.mode, one.said, one.mode));
        }
        if one.content != other.content {
            return Some(format!("{path} has {} instead of {}", brief(&other.content), brief(&one.content)));
        }
        if times(path, one) && one.mtime != other.mtime {
            return Some(format!("{path} was last changed {:?} instead of {:?}", other.mtime, one.mtime));
        }
    }
    if let Some(path) = found.keys().find(|path| !expected.contains_key(*path)) {
        return Some(format!("{path} should not be there"));
    }
    // The groups of names that share an object must be equal.
    let names = |view: &View| {
        let mut groups: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        view.iter().for_each(|(path, seen)| groups.entry(seen.ino).or_default().push(path.clone()));
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort();
        groups
    };
    let (one, other) = (names(expected), names(found));
    (one != other).then(|| {
        let differing = |a: &[Vec<String>], b: &[Vec<String>]| {
            a.iter().filter(|group| !b.contains(group)).cloned().collect::<Vec<_>>()
        };
        format!("links are {:?} instead of {:?}", differing(&other, &one), differing(&one, &other))
    })
}

fn brief(content: &Option<Content>) -> String {
    content.as_ref().map_or("nothing".into(), |content| {
        let first: Vec<_> = content.pages.iter().map(|(page, bytes)| (page, bytes[0])).take(8).collect();
        format!("{} bytes, pages {first:?}", content.size)
    })
}
