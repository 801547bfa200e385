//! The tree that a scheme shows to root.

use std::collections::BTreeMap;

use linux_delegate::client::parse_dirents;
use overlayfs::layer::Layer;
use overlayfs::scheme::OverlayScheme;
use redox_scheme::scheme::SchemeSync;
use redox_scheme::{CallerCtx, OpenResult, Request, RequestKind};
use syscall::data::Stat;
use syscall::dirent::{DirentBuf, DirentHeader};
use syscall::error::{EBADF, Error};
use syscall::flag::{EventFlags, MODE_DIR, MODE_FILE, MODE_TYPE, O_DIRECTORY, O_NOFOLLOW, O_RDONLY, O_STAT, O_SYMLINK};

use crate::client::digest;

/// The number of bytes that are compared at each end of a file. A hole can make a file larger than
/// memory.
const ENDS: usize = 4096;

/// Every object by its path from the top.
#[derive(Debug, PartialEq, Eq)]
pub struct Tree(BTreeMap<String, Object>);

#[derive(Debug, PartialEq, Eq)]
pub struct Object {
    mode: u16,
    uid: u32,
    gid: u32,
    /// The size of a file.
    size: u64,
    /// The digest of the content: of a file's two ends, of a symlink's target, of a device's
    /// number. None for a directory.
    digest: u64,
}

impl Tree {
    pub fn of<L: Layer>(scheme: &mut OverlayScheme<L>) -> Self {
        let mut objects = BTreeMap::new();
        let root = scheme.scheme_root().unwrap();
        add(scheme, root, "", String::new(), &mut objects);
        scheme.on_close(root);
        Self(objects)
    }

    /// Returns the object at this path alone.
    pub fn object<L: Layer>(scheme: &mut OverlayScheme<L>, path: &str) -> Self {
        let mut objects = BTreeMap::new();
        let root = scheme.scheme_root().unwrap();
        add(scheme, root, path, path.to_owned(), &mut objects);
        scheme.on_close(root);
        Self(objects)
    }

    /// Panics if an object differs.
    pub fn assert_same(&self, other: &Self, what: &str) {
        for path in self.0.keys().chain(other.0.keys()) {
            assert_eq!(self.0.get(path), other.0.get(path), "{what}: {path}");
        }
    }
}

fn add<L: Layer>(
    scheme: &mut OverlayScheme<L>,
    dir: usize,
    name: &str,
    path: String,
    objects: &mut BTreeMap<String, Object>,
) {
    let mut stat = Stat::default();
    let named = open(scheme, dir, name, O_STAT | O_NOFOLLOW);
    scheme.fstat(named, &mut stat, &root()).unwrap();
    scheme.on_close(named);
    let kind = stat.st_mode & MODE_TYPE;
    let mut object = Object { mode: stat.st_mode, uid: stat.st_uid, gid: stat.st_gid, size: 0, digest: 0 };
    match kind {
        MODE_DIR => {
            let dir = open(scheme, dir, name, O_RDONLY | O_DIRECTORY);
            for name in names(scheme, dir) {
                let path = format!("{path}/{name}");
                add(scheme, dir, &name, path, objects);
            }
            scheme.on_close(dir);
        }
        MODE_FILE => {
            object.size = stat.st_size;
            let file = open(scheme, dir, name, O_RDONLY | O_NOFOLLOW);
            let ends = [0, stat.st_size.saturating_sub(ENDS as u64)].map(|start| read(scheme, file, start));
            object.digest = digest(&ends.concat());
            scheme.on_close(file);
        }
        // A FIFO or a socket has no content.
        _ => {
            if let Ok(OpenResult::ThisScheme { number, .. }) =
                scheme.openat(dir, name, O_RDONLY | O_SYMLINK, 0, &root())
            {
                object.digest = digest(&read(scheme, number, 0));
                scheme.on_close(number);
            }
        }
    }
    objects.insert(path, object);
}

fn open<L: Layer>(scheme: &mut OverlayScheme<L>, dir: usize, name: &str, flags: usize) -> usize {
    match scheme.openat(dir, name, flags, 0, &root()) {
        Ok(OpenResult::ThisScheme { number, .. }) => number,
        other => panic!("{name}: {other:?}"),
    }
}

fn read<L: Layer>(scheme: &mut OverlayScheme<L>, id: usize, start: u64) -> Vec<u8> {
    let mut bytes = vec![0; ENDS];
    let len = scheme.read(id, &mut bytes, start, 0, &root()).unwrap();
    bytes.truncate(len);
    bytes
}

fn names<L: Layer>(scheme: &mut OverlayScheme<L>, dir: usize) -> Vec<String> {
    let mut names = Vec::new();
    let mut after = 0;
    loop {
        let mut records = vec![0; ENDS];
        let buf = DirentBuf::new(&mut records[..], size_of::<DirentHeader>() as u16).unwrap();
        let len = scheme.getdents(dir, buf, after).unwrap().finalize();
        let entries = parse_dirents(&records[..len]).unwrap();
        let Some(last) = entries.last() else {
            return names;
        };
        after = last.next;
        names.extend(entries.into_iter().map(|entry| entry.name));
    }
}

/// Panics if a handle is left.
pub fn assert_all_closed<L: Layer>(scheme: &mut OverlayScheme<L>) {
    // Ids count up, so a new id bounds all earlier ones.
    let last = scheme.scheme_root().unwrap();
    for id in 1..last {
        let is_open = scheme.fevent(id, EventFlags::empty(), &root()) != Err(Error::new(EBADF));
        // A handle that creates its object at the first write is not open. A write still finds
        // it.
        let is_unborn = scheme.write(id, &[], 0, 0, &root()) != Err(Error::new(EBADF));
        assert!(!is_open && !is_unborn, "handle {id} was not closed");
    }
}

/// Root as a caller.
fn root() -> CallerCtx {
    match Request::default().kind() {
        RequestKind::Call(call) => call.caller(),
        _ => unreachable!("a request of zeros is a call"),
    }
}
