//! Hostile layers: any bytes become the objects, the marks and the attributes of two lower layers
//! and an upper one. They may be right or wrong. Changes through the overlay follow. Needs root.
//!
//! The overlay shows the contents or refuses them. It shows nothing from outside the layers, does
//! not change the lower layers, and shows the same at the next mount.
//!
//! `overlayfs-fsck` comes to an end too, and its repairs do not change the merged tree.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use overlayfs::format::Wanted;
use overlayfs::fsck::Checker;
use overlayfs::layer::{Kind, OsLayer, Owner, RenameMode};
use overlayfs::overlay::{Layers, Node, Overlay, Refused, Settings};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};
use tempfile::TempDir;
use test_common::{Detail, Snapshot, put};

use crate::request::Bytes;

/// The content of a file beside the layers.
const SECRET: &[u8] = b"from outside of the layers";
/// The limit of objects and attributes that one input makes.
const MOST: u8 = 40;
/// The number of bytes of a file that are compared.
const START: usize = 4096;

/// The names of objects. They are few, so that objects of several layers have the same name.
const NAMES: [&str; 25] = [
    "a",
    "b",
    "d",
    "e",
    "a",
    "b",
    "d",
    ".wh.a",
    ".wh.b",
    ".wh.d",
    ".wh.e",
    ".wh..wh..opq",
    ".wh..wh.redirect",
    ".wh..wh.part.a",
    ".wh..wh.map.a",
    ".wh..wh.parts",
    ".wh..wh.work",
    ".wh..wh.part.d",
    ".wh.",
    ".wh..wh.plnk",
    ".wh..wh.long.00000000000000000000000000000000",
    "work",
    "numbers",
    "record",
    "incompat",
];
/// The contents of files, targets of symlinks, and values of attributes.
const VALUES: [&[u8]; 26] = [
    b"",
    b"y",
    b"x",
    b"/d",
    b"/d/e",
    b"/a",
    b"d",
    b"a",
    b"e",
    b"/",
    b"//",
    b".",
    b"..",
    b"../outside",
    b"/../outside",
    b"/d/../../outside",
    b"../outside/secret",
    b"/d/",
    b"/d\n",
    b"/.wh.a",
    b"/d/\0/e",
    b"/d/d/d/d/d/d",
    b"/\xff",
    b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff",
    b"/none",
    b"/b/d",
];
const ATTRIBUTES: [&str; 12] = [
    "overlay.opaque",
    "overlay.redirect",
    "overlay.metacopy",
    "overlay.opaque",
    "overlay.redirect",
    "overlay.whiteout",
    "overlay.origin",
    "overlay.impure",
    "overlay.format",
    "overlay.uuid",
    "overlay.nlink",
    "overlay.upper",
];

/// Makes layers in a new directory in `parent`. A filesystem in memory is the best parent. Then
/// checks an overlay of them.
pub fn run(parent: &Path, input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let dir = TempDir::with_prefix_in("overlayfs-found-", parent).unwrap();
    put::file(dir.path(), "outside/secret", SECRET);
    let layers = ["upper", "above", "below"].map(|name| dir.path().join(name));
    layers.iter().for_each(|layer| fs::create_dir(layer).unwrap());
    let bits = bytes.byte();
    let has = |bit: u8| bits & 1 << bit != 0;
    fill(&layers, &mut bytes);

    let format = [None, Some(Wanted::Oci), Some(Wanted::Kernel), None][usize::from(bits >> 6)];
    let settings = Settings {
        whole_copies: has(0),
        volatile: has(1),
        reuse_volatile: has(2),
        trusted: bits >> 6 == 3,
        no_redirects: has(4),
        format,
        ..Settings::default()
    };
    let work = has(3).then(|| dir.path().join("work"));
    work.iter().for_each(|work| fs::create_dir(work).unwrap());
    let open = |path: &Path, for_writing| OsLayer::open(path, for_writing).unwrap();
    let stacked = || Layers {
        upper: Some(open(&layers[0], true)),
        work: work.as_ref().map(|work| open(work, true)),
        lowers: layers[1..].iter().map(|lower| open(lower, false)).collect(),
    };
    let mount = || Overlay::with_settings(stacked(), settings);
    let [_, above, below] = &layers;
    let before = [above, below].map(|lower| Snapshot::take(lower, Detail::Xattrs));

    check(stacked(), has(4));
    let overlay = match mount() {
        Ok(overlay) => overlay,
        Err(refused) => return assert!(!refused.to_string().is_empty()),
    };
    let shown = Shown::by(&overlay);
    if has(5) {
        while !bytes.is_empty() {
            change(&overlay, &shown, &mut bytes);
        }
    }
    let shown = Shown::by(&overlay);
    drop(overlay);
    shown.assert_same(&mount(), "after the next mount");
    check(stacked(), true);
    shown.assert_same(&mount(), "after the repair");
    for (lower, before) in [above, below].into_iter().zip(before) {
        before.assert_same(&Snapshot::take(lower, Detail::Xattrs), "a lower layer");
    }
}

/// Adds objects and attributes to the layers.
fn fill(layers: &[PathBuf], bytes: &mut Bytes) {
    let mut dirs: Vec<PathBuf> = layers.to_vec();
    let mut objects = dirs.clone();
    for _ in 0..bytes.byte() % MOST {
        let path = dirs[usize::from(bytes.byte()) % dirs.len()].join(bytes.choose(&NAMES));
        // An operation fails if the name exists, or if the object cannot exist.
        let made = match bytes.byte() % 16 {
            0..5 => fs::create_dir(&path).map(|()| dirs.push(path.clone())),
            5..9 => write_new(&path, value(bytes)),
            9 => write_new(&path, &vec![bytes.byte(); 3 << 20]),
            10 => std::os::unix::fs::symlink(OsStr::from_bytes(value(bytes)), &path),
            // A link stays in one layer: a write to a file of the upper layer changes all its
            // names.
            11 => match objects[usize::from(bytes.byte()) % objects.len()].clone() {
                object if layers.iter().any(|layer| path.starts_with(layer) && object.starts_with(layer)) => {
                    fs::hard_link(object, &path)
                }
                _ => continue,
            },
            12 => {
                let (kind, device) =
                    bytes.choose(&[(FileType::CharacterDevice, 0), (FileType::Fifo, 0), (FileType::BlockDevice, 5)]);
                mknodat(CWD, &path, kind, Mode::from_raw_mode(0o644), device).map_err(Into::into)
            }
            _ => {
                let space = bytes.choose(&["trusted", "user"]);
                let name = format!("{space}.{}", bytes.choose(&ATTRIBUTES));
                let object = &objects[usize::from(bytes.byte()) % objects.len()];
                lsetxattr(object, name, value(bytes), XattrFlags::empty()).map_err(Into::into)
            }
        };
        if made.is_ok() && path.symlink_metadata().is_ok() {
            objects.push(path);
        }
    }
}

/// Writes a new file only: an open of an existing FIFO would wait.
fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    File::create_new(path)?.write_all(content)
}

fn value<'a>(bytes: &mut Bytes<'a>) -> &'a [u8] {
    match bytes.byte() {
        few @ 0..200 => VALUES[usize::from(few) % VALUES.len()],
        length => bytes.take(usize::from(length - 200)),
    }
}

/// Checks the layers. With `repair`, also makes every repair.
fn check(layers: Layers<OsLayer>, repair: bool) {
    let checker = match Checker::new(layers) {
        Ok(checker) => checker,
        Err(Refused::Layer(_)) => return,
        Err(refused) => panic!("{refused}"),
    };
    let Ok(findings) = checker.check() else {
        return;
    };
    for finding in findings {
        assert!(!finding.damage.to_string().is_empty());
        if let (true, Some(step)) = (repair, &finding.repair) {
            checker.repair(step).unwrap_or_else(|error| panic!("{}: {step}: {error}", finding.path.display()));
        }
    }
    if repair {
        let left = checker.check().unwrap();
        if let Some((finding, step)) = left.iter().find_map(|finding| Some((finding, finding.repair.as_ref()?))) {
            panic!("{}: {} was not repaired: {step}", finding.path.display(), finding.damage);
        }
    }
}

/// The objects that an overlay shows, by path, parents first.
struct Shown(BTreeMap<PathBuf, Object>);

#[derive(Debug, PartialEq, Eq)]
struct Object {
    kind: Kind,
    mode: u32,
    size: u64,
    /// The start of a file, the target of a symlink, or the errno of the attempt to read it.
    content: Result<Vec<u8>, i32>,
}

impl Shown {
    fn by(overlay: &Overlay<OsLayer>) -> Self {
        let mut shown = Self(BTreeMap::new());
        shown.add(overlay, overlay.root(), PathBuf::new());
        shown
    }

    fn add(&mut self, overlay: &Overlay<OsLayer>, node: &Arc<Node<OsLayer>>, path: PathBuf) {
        let stat = overlay.stat(node).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let handle = overlay.open(node);
        let content = match node.kind() {
            Kind::File => {
                let mut start = vec![0; START];
                overlay.read_at(&handle, &mut start, 0).map(|length| {
                    start.truncate(length);
                    start
                })
            }
            Kind::Symlink => overlay.read_link(node).map(OsString::into_encoded_bytes),
            _ => Ok(Vec::new()),
        };
        let content = content.map_err(|error| error.errno);
        assert!(!content.as_ref().is_ok_and(|content| content == SECRET), "{} is from outside", path.display());
        let size = if node.kind() == Kind::Dir { 0 } else { stat.size };
        self.0.insert(path.clone(), Object { kind: node.kind(), mode: stat.mode, size, content });
        if node.kind() != Kind::Dir {
            return;
        }
        let mut names = Vec::new();
        let listed = overlay.list(&handle, 0, &mut |entry| {
            names.push(entry.name.to_owned());
            true
        });
        listed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for name in names {
            let path = path.join(&name);
            let node = overlay.lookup(node, &name).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            self.add(overlay, &node, path);
        }
    }

    /// Panics if another mount shows a different tree.
    fn assert_same(&self, overlay: &Result<Overlay<OsLayer>, Refused>, what: &str) {
        let other = match overlay {
            Ok(overlay) => Self::by(overlay),
            Err(refused) => panic!("{what}: {refused}"),
        };
        for path in self.0.keys().chain(other.0.keys()) {
            assert_eq!(self.0.get(path), other.0.get(path), "{what}: {}", path.display());
        }
    }

    fn choose(&self, bytes: &mut Bytes) -> &Path {
        let number = usize::from(bytes.byte()) % self.0.len();
        self.0.keys().nth(number).map_or(Path::new(""), |path| path)
    }
}

/// Changes an object that the overlay showed. The object may be gone, or the change may be
/// impossible. The call must return an answer.
fn change(overlay: &Overlay<OsLayer>, shown: &Shown, bytes: &mut Bytes) {
    let path = shown.choose(bytes).to_owned();
    let find = |path: &Path| path.iter().try_fold(overlay.root().clone(), |node, name| overlay.lookup(&node, name));
    let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or(OsStr::new("a")));
    let (Ok(node), Ok(parent)) = (find(&path), find(parent)) else {
        return;
    };
    let owner = Owner { uid: 0, gid: 0 };
    let new = OsStr::new(bytes.choose(&NAMES));
    let _answer = match bytes.byte() % 10 {
        0 => overlay.unlink(&parent, name),
        1 => overlay.remove_dir(&parent, name),
        2 => overlay.set_mode(&node, 0o750),
        3 => overlay.write_at(&overlay.open(&node), b"changed", bytes.byte().into()).map(drop),
        4 => overlay.truncate(&node, bytes.byte().into()),
        5 => overlay.create_dir(&node, new, 0o755, owner).map(drop),
        6 => overlay.create_file(&node, new, 0o644, owner).map(drop),
        7 => find(shown.choose(bytes)).and_then(|dir| overlay.link(&node, &dir, new)),
        8 => find(shown.choose(bytes)).and_then(|dir| overlay.rename(&parent, name, &dir, new, RenameMode::Replace)),
        _ => overlay.sync(&overlay.open(&node)),
    };
}
