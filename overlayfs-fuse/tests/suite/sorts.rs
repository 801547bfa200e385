//! A tree with objects of all sorts, and changes of all sorts to it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use test_common::put;

/// What must stay of an object: its number, kind and mode, links, times and contents.
pub type Facts = (u64, u32, u64, [(i64, i64); 2], Vec<u8>);

/// The facts about each path of a tree.
pub type Tree = BTreeMap<PathBuf, Facts>;

pub fn tree(root: &Path) -> Tree {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let stat = path.symlink_metadata().unwrap();
            let content = if stat.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            if stat.is_dir() {
                dirs.push(path.clone());
            }
            let times = [(stat.mtime(), stat.mtime_nsec()), (stat.ctime(), stat.ctime_nsec())];
            let links = if stat.is_dir() { 0 } else { stat.nlink() };
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.insert(name, (stat.ino(), stat.mode(), links, times, content));
        }
    }
    found
}

/// Fills the lower layer with files of all sorts.
pub fn fill(lower: &Path) {
    put::file(lower, "dir/below", "below");
    put::file(lower, "dir/changed", "old");
    put::file(lower, "gone", "gone");
    put::file(lower, "large", vec![7; 3 << 20]);
    put::file(lower, "one", "both");
    fs::hard_link(lower.join("one"), lower.join("other")).unwrap();
    for index in 0..300 {
        put::file(lower, &format!("many/{index}"), "x");
    }
}

/// Makes changes of all sorts.
pub fn change(point: &Path) {
    fs::write(point.join("dir/changed"), "new").unwrap();
    fs::write(point.join("dir/made"), "made").unwrap();
    fs::remove_file(point.join("gone")).unwrap();
    fs::write(point.join("one"), "changed by one name").unwrap();
    File::options().write(true).open(point.join("large")).unwrap().write_all_at(b"x", 1 << 20).unwrap();
    fs::create_dir(point.join("own")).unwrap();
    fs::write(point.join("own/a"), "linked").unwrap();
    fs::hard_link(point.join("own/a"), point.join("own/b")).unwrap();
    fs::rename(point.join("dir"), point.join("moved")).unwrap();
}
