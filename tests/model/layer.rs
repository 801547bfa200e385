//! A layer in memory, the merge of a stack of them by the plain words of the format, and layers on disk: written for a test to mount,
//! and read back to see what an overlay left in its upper layer. Independent of the engine: nothing of `overlayfs` is used here.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};

use crate::Kind;

/// What begins every reserved name.
pub const MARKER: &str = ".wh.";
/// In a directory: hides all that the layers below have there.
const OPAQUE: &str = ".wh..wh..opq";
/// In a directory: the path, from the root of the layers below, that it merges with in place of its own.
const REDIRECT: &str = ".wh..wh.redirect";
/// The work directory in the root of an upper layer.
const WORK: &str = ".wh..wh.work";
/// What begins the marker of a name that is too long for one of its own; the name is its content, and a digest of it follows.
const LONG: &str = ".wh..wh.long.";

/// What begins the attributes of the kernel's format, with root.
const ATTRIBUTE: &str = "trusted.overlay.";

/// How a layer on disk is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// With reserved names.
    Native,
    /// With devices and attributes.
    Kernel,
}

/// What an object is apart from its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
}

#[derive(Clone, Debug)]
pub struct Object {
    pub meta: Meta,
    /// Objects of one layer with the same number are names of one file. Numbers are unique over all layers of a stack.
    pub id: u64,
    pub body: Body,
}

#[derive(Clone, Debug)]
pub enum Body {
    File(Vec<u8>),
    Symlink(OsString),
    /// A FIFO or a socket.
    Node(Kind),
    Dir(Dir),
}

#[derive(Clone, Debug, Default)]
pub struct Dir {
    pub entries: BTreeMap<OsString, Object>,
    pub whiteouts: BTreeSet<OsString>,
    pub opaque: bool,
    pub redirect: Option<PathBuf>,
    /// After a merge: the numbers of the directories of lower layers that it shows as well.
    pub below: Vec<u64>,
}

impl Object {
    pub fn kind(&self) -> Kind {
        match &self.body {
            Body::File(_) => Kind::File,
            Body::Symlink(_) => Kind::Symlink,
            Body::Node(kind) => *kind,
            Body::Dir(_) => Kind::Dir,
        }
    }

    pub fn dir(&self) -> Option<&Dir> {
        match &self.body {
            Body::Dir(dir) => Some(dir),
            _ => None,
        }
    }

    pub fn dir_mut(&mut self) -> Option<&mut Dir> {
        match &mut self.body {
            Body::Dir(dir) => Some(dir),
            _ => None,
        }
    }
}

/// Stacks `layers`, the top one first, into one tree without whiteouts, opaque marks and redirects.
pub fn merge(layers: &[Object]) -> Object {
    let (bottom, above) = layers.split_last().expect("a stack has a layer");
    let nothing = Object { body: Body::Dir(Dir::default()), ..bottom.clone() };
    let bottom = over(bottom, None, &nothing);
    above.iter().rev().fold(bottom, |below, layer| over(layer, Some(&below), &below))
}

/// The directory `top` over the merged directory `base`, where `root` is the merged root of the layers below.
fn over(top: &Object, base: Option<&Object>, root: &Object) -> Object {
    let own = top.dir().expect("only directories merge");
    let mut merged = Dir::default();
    if let Some((base, id)) = base.filter(|_| !own.opaque).and_then(|base| Some((base.dir()?, base.id))) {
        merged.below.push(id);
        merged.below.extend(&base.below);
        let visible = base.entries.iter().filter(|(name, _)| !own.whiteouts.contains(*name));
        merged.entries.extend(visible.map(|(name, object)| (name.clone(), object.clone())));
    }
    for (name, object) in &own.entries {
        let object = match object.dir() {
            None => object.clone(),
            Some(dir) => {
                let below = match &dir.redirect {
                    Some(path) => find(root, path),
                    None => merged.entries.get(name),
                };
                over(object, below, root)
            }
        };
        merged.entries.insert(name.clone(), object);
    }
    Object { meta: top.meta.clone(), id: top.id, body: Body::Dir(merged) }
}

/// The object at `path` below `root`.
pub fn find<'a>(root: &'a Object, path: &Path) -> Option<&'a Object> {
    path.iter().try_fold(root, |object, name| object.dir()?.entries.get(name))
}

/// Calls `each` with the path of every object below `root`, parents first, the root itself ("") included.
pub fn walk<'a>(root: &'a Object, each: &mut dyn FnMut(&Path, &'a Object)) {
    fn go<'a>(path: &Path, object: &'a Object, each: &mut dyn FnMut(&Path, &'a Object)) {
        each(path, object);
        for (name, entry) in object.dir().into_iter().flat_map(|dir| &dir.entries) {
            go(&path.join(name), entry, each);
        }
    }
    go(Path::new(""), root, each);
}

/// The numbers of the files that have several names in their layer, and how many.
pub fn linked<'a>(layers: impl Iterator<Item = &'a Object>) -> HashMap<u64, u32> {
    let mut names = HashMap::new();
    for layer in layers {
        walk(layer, &mut |_, object| {
            if object.dir().is_none() {
                *names.entry(object.id).or_default() += 1;
            }
        });
    }
    names.retain(|_, names| *names > 1);
    names
}

/// Whether every directory of every layer is visible at one place at most. Only a stack made by hand can fail this: who renames a
/// directory hides its old name.
pub fn is_a_tree(layers: &[Object]) -> bool {
    let mut seen = HashSet::new();
    let mut once = true;
    walk(&merge(layers), &mut |_, object| {
        if let Some(dir) = object.dir() {
            once &= seen.insert(object.id) && dir.below.iter().all(|id| seen.insert(*id));
        }
    });
    once
}

/// Writes `layer` into the empty directory `path`, in the native format.
pub fn write(layer: &Object, path: &Path) {
    let mut names = BTreeMap::new();
    write_object(layer, path, &mut names);
}

fn write_object(object: &Object, path: &Path, names: &mut BTreeMap<u64, PathBuf>) {
    if let Some(first) = names.get(&object.id) {
        return fs::hard_link(first, path).unwrap();
    }
    names.insert(object.id, path.to_owned());
    match &object.body {
        Body::File(bytes) => write_sparse(path, bytes),
        Body::Symlink(target) => std::os::unix::fs::symlink(target, path).unwrap(),
        Body::Node(kind) => {
            let kind = if *kind == Kind::Fifo { FileType::Fifo } else { FileType::Socket };
            rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), 0).unwrap();
        }
        Body::Dir(dir) => {
            if !path.is_dir() {
                fs::create_dir(path).unwrap();
            }
            for (name, entry) in &dir.entries {
                write_object(entry, &path.join(name), names);
            }
            for name in &dir.whiteouts {
                let (marker, content) = marker(name);
                fs::write(path.join(marker), content).unwrap();
            }
            if dir.opaque {
                fs::write(path.join(OPAQUE), "").unwrap();
            }
            if let Some(to) = &dir.redirect {
                fs::write(path.join(REDIRECT), Path::new("/").join(to).as_os_str().as_bytes()).unwrap();
            }
        }
    }
    test_common::owner(path, object.meta.uid, object.meta.gid);
    if object.kind() != Kind::Symlink {
        test_common::mode(path, object.meta.mode);
    }
    let mtime = (object.meta.mtime.0, object.meta.mtime.1.into());
    test_common::times(path, (1, 1), mtime);
}

/// A file with holes where the bytes are zero for a while, so that copying it up meets holes.
fn write_sparse(path: &Path, bytes: &[u8]) {
    let file = fs::File::create_new(path).unwrap();
    for (block, chunk) in bytes.chunks(4096).enumerate().filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0)) {
        file.write_all_at(chunk, block as u64 * 4096).unwrap();
    }
    file.set_len(bytes.len() as u64).unwrap();
}

/// The marker that hides `name`, and what is in it.
fn marker(name: &OsStr) -> (OsString, &[u8]) {
    if MARKER.len() + name.len() <= 255 {
        return ([MARKER.as_ref(), name].into_iter().collect(), &[]);
    }
    // FNV-1a, of 128 bits.
    let digest = name.as_bytes().iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58du128, |digest, byte| {
        (digest ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    (format!("{LONG}{digest:032x}").into(), name.as_bytes())
}

/// Reads the layer at `path`. Panics about anything that another reader of the format would stumble over: of OCI layers, a marker that is
/// not an empty file, a marker beside the entry that it names, a reserved name that means nothing; of the kernel's, a mark that means
/// nothing. `ids` counts the objects.
pub fn read(path: &Path, written: Written, ids: &mut u64) -> Object {
    Reader { written, ids, names: BTreeMap::new() }.object(path, true)
}

struct Reader<'a> {
    written: Written,
    ids: &'a mut u64,
    /// The numbers of the objects, by device and inode.
    names: BTreeMap<(u64, u64), u64>,
}

impl Reader<'_> {
    fn object(&mut self, path: &Path, is_root: bool) -> Object {
        let stat = fs::symlink_metadata(path).unwrap();
        let meta = Meta {
            mode: stat.mode() & 0o7777,
            uid: stat.uid(),
            gid: stat.gid(),
            mtime: (stat.mtime(), stat.mtime_nsec() as u32),
        };
        let id = *self.names.entry((stat.dev(), stat.ino())).or_insert_with(|| {
            *self.ids += 1;
            *self.ids
        });
        let body = match FileType::from_raw_mode(stat.mode()) {
            FileType::RegularFile => Body::File(fs::read(path).unwrap()),
            FileType::Symlink => Body::Symlink(fs::read_link(path).unwrap().into_os_string()),
            FileType::Fifo => Body::Node(Kind::Fifo),
            FileType::Socket => Body::Node(Kind::Socket),
            FileType::Directory if self.written == Written::Kernel => Body::Dir(self.kernel_dir(path, is_root)),
            FileType::Directory => Body::Dir(self.dir(path, is_root)),
            other => panic!("{}: {other:?} in a layer", path.display()),
        };
        Object { meta, id, body }
    }

    fn kernel_dir(&mut self, path: &Path, is_root: bool) -> Dir {
        let mut dir = Dir::default();
        for entry in fs::read_dir(path).unwrap() {
            let name = entry.unwrap().file_name();
            let file = path.join(&name);
            let stat = fs::symlink_metadata(&file).unwrap();
            if FileType::from_raw_mode(stat.mode()) == FileType::CharacterDevice && stat.rdev() == 0 {
                dir.whiteouts.insert(name);
            } else {
                dir.entries.insert(name, self.object(&file, false));
            }
        }
        for (name, value) in attributes(path) {
            match (name.strip_prefix(ATTRIBUTE), &*value) {
                (Some("opaque"), b"y") => dir.opaque = true,
                (Some("redirect"), [b'/', to @ ..]) => dir.redirect = Some(PathBuf::from(OsStr::from_bytes(to))),
                (Some("format"), b"kernel") if is_root => {}
                _ => panic!("{}: {name}={value:?}", path.display()),
            }
        }
        dir
    }

    fn dir(&mut self, path: &Path, is_root: bool) -> Dir {
        let mut dir = Dir::default();
        for entry in fs::read_dir(path).unwrap() {
            let name = entry.unwrap().file_name();
            let file = path.join(&name);
            if !name.as_bytes().starts_with(MARKER.as_bytes()) {
                dir.entries.insert(name, self.object(&file, false));
                continue;
            }
            if is_root && name == WORK {
                let left = left_in(&file);
                assert!(left.is_empty(), "left in the work directory: {left:?}");
                continue;
            }
            assert!(fs::symlink_metadata(&file).unwrap().is_file(), "{}: a marker is a file", file.display());
            let content = OsString::from_vec(fs::read(&file).unwrap());
            if name == REDIRECT {
                let to = Path::new(&content).strip_prefix("/").expect("a redirect is an absolute path");
                dir.redirect = Some(to.to_owned());
            } else if name == OPAQUE {
                assert!(content.is_empty(), "{}: a marker is an empty file", file.display());
                dir.opaque = true;
            } else {
                let hidden = match name.as_bytes().starts_with(LONG.as_bytes()) {
                    true => content,
                    false => OsStr::from_bytes(&name.as_bytes()[MARKER.len()..]).to_owned(),
                };
                let (expected, content) = marker(&hidden);
                assert_eq!(name, expected, "{}: the marker of {hidden:?}", file.display());
                assert_eq!(fs::read(&file).unwrap(), content, "{}: what the marker contains", file.display());
                dir.whiteouts.insert(hidden);
            }
        }
        let beside = dir.whiteouts.iter().find(|name| dir.entries.contains_key(*name));
        assert!(beside.is_none(), "{}: {beside:?} has a marker beside it", path.display());
        dir
    }
}

/// What is in a work directory that has no business there when nothing is mounted.
pub fn left_in(work: &Path) -> Vec<String> {
    let names = fs::read_dir(work).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "numbers" && !name.starts_with("link.")).collect()
}

/// The extended attributes of a directory that begin with the overlay's names.
fn attributes(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::listxattr(path, &mut names[..]).unwrap();
    let names = names[..len].split(|byte| *byte == 0).filter(|name| name.starts_with(ATTRIBUTE.as_bytes()));
    let value = |name: &str| {
        let mut value = vec![0; 4096];
        let len = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
        value.truncate(len);
        value
    };
    names.map(|name| str::from_utf8(name).unwrap()).map(|name| (name.to_owned(), value(name))).collect()
}
