//! A layer in memory, the merge of a stack of layers by the words of the format, and layers on
//! disk. A test writes a layer and mounts it, and reads back the upper layer that an overlay left.
//!
//! This file uses nothing of `overlayfs`, so it is independent of the engine. [`Backing`] decides
//! the place of the disk.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::Kind;
use crate::backing::{Backing, Found};

/// The start of every reserved name.
pub const MARKER: &str = ".wh.";
/// In a directory: hides all objects of the layers below in it.
const OPAQUE: &str = ".wh..wh..opq";
/// In a directory: the path that it merges with in place of its own, from the root of the layers
/// below.
const REDIRECT: &str = ".wh..wh.redirect";
/// The work directory in the root of an upper layer.
const WORK: &str = ".wh..wh.work";
/// In the root of an upper layer: character devices with the number 0 in it are devices, and no
/// whiteouts.
const DEVICES: &str = ".wh..wh.devices";
/// The start of the whiteout of a name that is too long for an ordinary one. A digest of the name
/// follows, and the content is the name.
const LONG: &str = ".wh..wh.long.";

/// The start of the attributes of the kernel's format, for root.
const ATTRIBUTE: &str = "trusted.overlay.";

/// The format of a layer on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// With reserved names (OCI).
    Native,
    /// With devices and attributes.
    Kernel,
}

/// The attributes of an object, independent of its place.
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
    /// Equal for the names of one file in a layer. Numbers are unique over all layers of a stack.
    pub id: u64,
    pub body: Body,
}

#[derive(Clone, Debug)]
pub enum Body {
    File(Vec<u8>),
    Symlink(OsString),
    /// A FIFO, a socket, or a device.
    Node(Kind),
    Dir(Dir),
}

#[derive(Clone, Debug, Default)]
pub struct Dir {
    pub entries: BTreeMap<OsString, Object>,
    pub whiteouts: BTreeSet<OsString>,
    pub opaque: bool,
    pub redirect: Option<PathBuf>,
    /// After a merge: the numbers of the lower directories that it also shows.
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

/// Merges the directory `top` with the merged directory `base`. `root` is the merged root of the
/// layers below.
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

/// Returns the object at `path` below `root`.
pub fn find<'a>(root: &'a Object, path: &Path) -> Option<&'a Object> {
    path.iter().try_fold(root, |object, name| object.dir()?.entries.get(name))
}

/// Calls `each` with the path of every object, parents first. The first is `root` itself ("").
pub fn walk<'a>(root: &'a Object, each: &mut dyn FnMut(&Path, &'a Object)) {
    fn go<'a>(path: &Path, object: &'a Object, each: &mut dyn FnMut(&Path, &'a Object)) {
        each(path, object);
        for (name, entry) in object.dir().into_iter().flat_map(|dir| &dir.entries) {
            go(&path.join(name), entry, each);
        }
    }
    go(Path::new(""), root, each);
}

/// Returns the numbers of files with several names in their layer, with the number of names.
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

/// Returns whether every directory of every layer shows at no more than one place. Only a stack
/// made by hand can fail this: a rename of a directory hides its old name.
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

/// Writes `layer` into the empty directory `path`, in the OCI format.
pub fn write(backing: &dyn Backing, layer: &Object, path: &Path) {
    let mut names = BTreeMap::new();
    write_object(backing, layer, path, &mut names);
}

fn write_object(backing: &dyn Backing, object: &Object, path: &Path, names: &mut BTreeMap<u64, PathBuf>) {
    if let Some(first) = names.get(&object.id) {
        return backing.make_link(first, path);
    }
    names.insert(object.id, path.to_owned());
    match &object.body {
        Body::File(bytes) => backing.make_file(path, bytes),
        Body::Symlink(target) => backing.make_symlink(path, target),
        Body::Node(kind) => backing.make_node(path, *kind),
        Body::Dir(dir) => {
            backing.make_dir(path);
            for (name, entry) in &dir.entries {
                write_object(backing, entry, &path.join(name), names);
            }
            for name in &dir.whiteouts {
                let (marker, content) = marker(name, backing.name_max());
                backing.make_file(&path.join(marker), content);
            }
            if dir.opaque {
                backing.make_file(&path.join(OPAQUE), &[]);
            }
            if let Some(to) = &dir.redirect {
                backing.make_file(&path.join(REDIRECT), Path::new("/").join(to).as_os_str().as_bytes());
            }
        }
    }
    backing.set_meta(path, &object.meta);
}

/// Returns the name and content of the whiteout of `name`, where names have at most `name_max`
/// bytes.
fn marker(name: &OsStr, name_max: usize) -> (OsString, &[u8]) {
    if MARKER.len() + name.len() <= name_max {
        return ([MARKER.as_ref(), name].into_iter().collect(), &[]);
    }
    // FNV-1a, of 128 bits.
    let digest = name.as_bytes().iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58du128, |digest, byte| {
        (digest ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    (format!("{LONG}{digest:032x}").into(), name.as_bytes())
}

/// Reads the layer at `path`. `ids` counts the objects. Panics at an object that another reader of
/// the format would not understand:
/// - in an OCI layer, a mark that is not an empty file, an unknown reserved name, or a whiteout
///   beside its entry;
/// - in a layer of the kernel, an unknown mark.
pub fn read(backing: &dyn Backing, path: &Path, written: Written, ids: &mut u64) -> Object {
    let devices = written == Written::Native && backing.names(path).iter().any(|name| name == DEVICES);
    Reader { backing, written, devices, ids, names: BTreeMap::new() }.object(path, true)
}

struct Reader<'a> {
    backing: &'a dyn Backing,
    written: Written,
    /// Whether the layer has the mark for devices.
    devices: bool,
    ids: &'a mut u64,
    /// The numbers of the objects, by device and inode.
    names: BTreeMap<(u64, u64), u64>,
}

impl Reader<'_> {
    fn object(&mut self, path: &Path, is_root: bool) -> Object {
        let Found { meta, kind, number, device, content } = self.backing.look(path);
        let id = *self.names.entry(number).or_insert_with(|| {
            *self.ids += 1;
            *self.ids
        });
        let body = match kind {
            Kind::File => Body::File(content),
            Kind::Symlink => Body::Symlink(OsString::from_vec(content)),
            Kind::Fifo | Kind::Socket => Body::Node(kind),
            Kind::CharDev if self.devices && device == 0 => Body::Node(kind),
            Kind::Dir if self.written == Written::Kernel => Body::Dir(self.kernel_dir(path, is_root)),
            Kind::Dir => Body::Dir(self.dir(path, is_root)),
            Kind::CharDev | Kind::BlockDev => panic!("{}: {kind:?} in a layer", path.display()),
        };
        Object { meta, id, body }
    }

    fn kernel_dir(&mut self, path: &Path, is_root: bool) -> Dir {
        let mut dir = Dir::default();
        for name in self.backing.names(path) {
            let file = path.join(&name);
            let found = self.backing.look(&file);
            if found.kind == Kind::CharDev && found.device == 0 {
                dir.whiteouts.insert(name);
            } else {
                dir.entries.insert(name, self.object(&file, false));
            }
        }
        for (name, value) in self.backing.attributes(path) {
            match (name.strip_prefix(ATTRIBUTE), &*value) {
                (None, _) => {}
                // An escaped attribute, which the overlay shows without the second part of its
                // name.
                (Some(escaped), _) if escaped.starts_with("overlay.") => {}
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
        for name in self.backing.names(path) {
            let file = path.join(&name);
            if !name.as_bytes().starts_with(MARKER.as_bytes()) {
                dir.entries.insert(name, self.object(&file, false));
                continue;
            }
            if is_root && name == WORK {
                let left = left_in(self.backing.names(&file));
                assert!(left.is_empty(), "left in the work directory: {left:?}");
                continue;
            }
            let found = self.backing.look(&file);
            assert_eq!(found.kind, Kind::File, "{}: a marker is a file", file.display());
            let content = OsString::from_vec(found.content);
            if is_root && name == DEVICES {
                assert!(content.is_empty(), "{}: the mark is an empty file", file.display());
            } else if name == REDIRECT {
                let to = Path::new(&content).strip_prefix("/").expect("a redirect is an absolute path");
                dir.redirect = Some(to.to_owned());
            } else if name == OPAQUE {
                assert!(content.is_empty(), "{}: a marker is an empty file", file.display());
                dir.opaque = true;
            } else {
                let hidden = match name.as_bytes().starts_with(LONG.as_bytes()) {
                    true => content.clone(),
                    false => OsStr::from_bytes(&name.as_bytes()[MARKER.len()..]).to_owned(),
                };
                let (expected, expected_content) = marker(&hidden, self.backing.name_max());
                assert_eq!(name, expected, "{}: the marker of {hidden:?}", file.display());
                assert_eq!(content.as_bytes(), expected_content, "{}: what the marker contains", file.display());
                dir.whiteouts.insert(hidden);
            }
        }
        let beside = dir.whiteouts.iter().find(|name| dir.entries.contains_key(*name));
        assert!(beside.is_none(), "{}: {beside:?} has a marker beside it", path.display());
        dir
    }
}

/// Returns the names in a work directory that must not be there without a mount.
pub fn left_in(names: Vec<OsString>) -> Vec<OsString> {
    let is_kept = |name: &OsString| {
        name == "numbers" || name == "record" || name == "ctimes" || name.as_bytes().starts_with(b"link.")
    };
    names.into_iter().filter(|name| !is_kept(name)).collect()
}
