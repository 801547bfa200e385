//! Functions with which the tests of every layer look at its objects.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use overlayfs::layer::{Access, DirEntry, Error, Kind, Layer, Result};

pub fn n(name: &str) -> &OsStr {
    OsStr::new(name)
}

/// Panics unless the result is this errno.
#[track_caller]
pub fn fails<T>(result: Result<T>, errno: i32) {
    match result {
        Ok(_) => panic!("done, instead of {}", Error::new(errno)),
        Err(error) => assert_eq!(error, Error::new(errno)),
    }
}

/// Returns the contents of a directory. Panics if a name comes twice.
pub fn list<L: Layer>(layer: &L, dir: &L::Dir) -> BTreeMap<OsString, (Kind, u64)> {
    let mut found = BTreeMap::new();
    let mut add = |entry: DirEntry<'_>| {
        assert!(found.insert(entry.name.to_owned(), (entry.kind, entry.ino)).is_none(), "{:?} twice", entry.name);
    };
    layer.list(dir, &mut add).unwrap();
    found
}

/// Returns the names in a directory, in order.
pub fn names<L: Layer>(layer: &L, dir: &L::Dir) -> Vec<String> {
    list(layer, dir).into_keys().map(|name| name.into_string().unwrap()).collect()
}

/// Returns the first 1000 bytes of a file.
pub fn read<L: Layer>(layer: &L, dir: &L::Dir, name: &str) -> Vec<u8> {
    let file = layer.open_file(dir, n(name), Access::Read).unwrap();
    let mut buffer = vec![0; 1000];
    let count = layer.read_at(&file, &mut buffer, 0).unwrap();
    buffer.truncate(count);
    buffer
}
