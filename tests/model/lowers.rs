//! Random stacks of lower layers: overlapping trees with whiteouts, opaque and redirected
//! directories, hard links, and objects of different kinds over one another.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;

use crate::Kind;
use crate::layer::{self, Body, Dir, Meta, Object};
use crate::run::Abilities;

/// One object for a layer. An item that does not fit the layer so far is left out, so every list of
/// items makes a layer.
#[derive(Clone, Debug)]
pub struct Item {
    path: Vec<OsString>,
    meta: Meta,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    File(Vec<u8>),
    Dir,
    Symlink(OsString),
    Node(Kind),
    /// Another name of a file of this layer.
    Link(Index),
    Whiteout,
    Opaque,
    /// The path is a directory that was moved here from a directory of the layers below.
    Redirect(Index),
}

/// Names. They are few, so that layers have the same ones. One is long with a whiteout of its own,
/// others are too long for that.
pub fn name() -> impl Strategy<Value = OsString> {
    prop_oneof![
        12 => "[a-d]".prop_map(OsString::from),
        1 => (251usize..=255).prop_map(|len| "x".repeat(len).into()),
        1 => Just(OsString::from("Käse")),
    ]
}

/// A name that is not UTF-8.
pub fn name_of_bytes() -> impl Strategy<Value = OsString> {
    Just(OsStr::from_bytes(b"\xff\xfe").to_owned())
}

/// The contents of a file: none, a few bytes, some blocks, or a hole between two blocks.
pub fn contents() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => Just(Vec::new()),
        6 => prop::collection::vec(any::<u8>(), 1..20),
        2 => (any::<u8>(), 4000usize..9000).prop_map(|(byte, len)| vec![byte; len]),
        1 => any::<u8>().prop_map(|byte| {
            let mut bytes = vec![byte; 4096];
            bytes.resize(40_960, 0);
            bytes.extend([byte; 10]);
            bytes
        }),
    ]
}

/// The target of a symlink: short, relative, often of an existing object.
pub fn target() -> impl Strategy<Value = OsString> {
    prop_oneof![
        4 => "[a-d]",
        2 => "[a-d]/[a-d]",
        2 => "\\.\\./[a-d]",
        1 => Just("../..".to_owned()),
        1 => Just(".".to_owned()),
        1 => Just("y".repeat(300)),
    ]
    .prop_map(OsString::from)
}

/// Permission bits, with set-id and sticky bits.
pub fn mode() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0o644), Just(0o755), Just(0o000), Just(0o4755), Just(0o2775), Just(0o1777), 0..=0o7777u32]
}

pub fn id() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(1000), Just(65_534)]
}

fn meta() -> impl Strategy<Value = Meta> {
    (mode(), id(), id(), 0..2_000_000_000i64, 0..1_000_000_000u32).prop_map(|(mode, uid, gid, sec, nsec)| Meta {
        mode,
        uid,
        gid,
        mtime: (sec, nsec),
    })
}

fn item() -> impl Strategy<Value = Item> {
    let what = prop_oneof![
        8 => contents().prop_map(What::File),
        6 => Just(What::Dir),
        2 => target().prop_map(What::Symlink),
        1 => prop_oneof![Just(Kind::Fifo), Just(Kind::Socket)].prop_map(What::Node),
        2 => any::<Index>().prop_map(What::Link),
        3 => Just(What::Whiteout),
        2 => Just(What::Opaque),
        2 => any::<Index>().prop_map(What::Redirect),
    ];
    (prop::collection::vec(name(), 1..=3), meta(), what).prop_map(|(path, meta, what)| Item { path, meta, what })
}

/// The items of one layer.
pub fn items() -> impl Strategy<Value = Vec<Item>> {
    prop::collection::vec(item(), 0..14)
}

/// The items of one to four layers, the top one first.
pub fn stack() -> impl Strategy<Value = Vec<Vec<Item>>> {
    prop::collection::vec(items(), 1..=4)
}

/// Makes the layers, the top one first, without objects that the filesystem cannot hold. `ids`
/// counts the objects.
pub fn build(stack: &[Vec<Item>], abilities: Abilities, ids: &mut u64) -> Vec<Object> {
    let mut layers: Vec<Object> = Vec::new();
    for items in stack.iter().rev() {
        layers.insert(0, build_layer(items, &layers, abilities, ids));
    }
    layers
}

/// Makes one layer above those `below`.
pub fn build_layer(items: &[Item], below: &[Object], abilities: Abilities, ids: &mut u64) -> Object {
    let holds = |item: &&Item| {
        let name_max = abilities.rules.name_max;
        item.path.iter().all(|name| name.len() <= name_max) && (abilities.full || !matches!(item.what, What::Node(_)))
    };
    let mut root = directory(Meta { mode: 0o755, uid: 0, gid: 0, mtime: (1, 1) }, ids);
    for item in items.iter().filter(holds) {
        let before = root.clone();
        if put(&mut root, item, below, ids).is_none() {
            root = before;
        }
    }
    root
}

fn directory(meta: Meta, ids: &mut u64) -> Object {
    *ids += 1;
    Object { meta, id: *ids, body: Body::Dir(Dir::default()) }
}

/// Returns the directory at `path`, and makes it if it is missing. Returns None if another object
/// is in the way.
fn directories<'a>(root: &'a mut Object, path: &[OsString], meta: &Meta, ids: &mut u64) -> Option<&'a mut Dir> {
    let root = path.iter().try_fold(root, |object, name| {
        let entries = &mut object.dir_mut()?.entries;
        Some(entries.entry(name.clone()).or_insert_with(|| directory(meta.clone(), ids)))
    })?;
    root.dir_mut()
}

/// Puts `item` into the layer `root` above `below`. Returns None if it does not fit.
fn put(root: &mut Object, item: &Item, below: &[Object], ids: &mut u64) -> Option<()> {
    let Item { path, meta, what } = item;
    let (name, parent) = path.split_last()?;
    let leaf = |body, ids: &mut u64| {
        *ids += 1;
        Object { meta: meta.clone(), id: *ids, body }
    };
    let object = match what {
        What::File(bytes) => leaf(Body::File(bytes.clone()), ids),
        What::Symlink(target) => leaf(Body::Symlink(target.clone()), ids),
        What::Node(kind) => leaf(Body::Node(*kind), ids),
        What::Link(which) => {
            let mut files = Vec::new();
            layer::walk(root, &mut |_, object| files.extend(Some(object).filter(|object| object.kind() == Kind::File)));
            (!files.is_empty()).then(|| (*which.get(&files)).clone())?
        }
        What::Dir => {
            directories(root, path, meta, ids)?;
            return Some(());
        }
        What::Opaque => {
            // A tenth of the opaque marks are in the root of the layer.
            let path = if meta.mtime.1 % 10 == 0 { &[] } else { &path[..] };
            let dir = directories(root, path, meta, ids)?;
            dir.opaque = true;
            return dir.redirect.is_none().then_some(());
        }
        What::Whiteout => {
            directories(root, parent, meta, ids)?.whiteouts.insert(name.clone());
            return Some(());
        }
        What::Redirect(which) => return redirect(root, path, meta, which, below, ids),
    };
    let parent = directories(root, parent, meta, ids)?;
    (!parent.entries.contains_key(name)).then(|| parent.entries.insert(name.clone(), object))?;
    Some(())
}

fn redirect(
    root: &mut Object,
    to: &[OsString],
    meta: &Meta,
    which: &Index,
    below: &[Object],
    ids: &mut u64,
) -> Option<()> {
    let merged = (!below.is_empty()).then(|| layer::merge(below))?;
    let mut dirs: Vec<PathBuf> = Vec::new();
    layer::walk(&merged, &mut |path, object| {
        dirs.extend(object.dir().filter(|_| path != Path::new("")).map(|_| path.to_owned()));
    });
    let from = (!dirs.is_empty()).then(|| which.get(&dirs))?;
    let dir = directories(root, to, meta, ids)?;
    if dir.opaque {
        return None;
    }
    dir.redirect = Some(from.clone());
    let (parent, name) = (from.parent()?, from.file_name()?.to_owned());
    let parent: Vec<_> = parent.iter().map(OsStr::to_owned).collect();
    let old = directories(root, &parent, meta, ids)?;
    old.entries.remove(&name);
    old.whiteouts.insert(name);
    // The removed directory may have been a part of the path of the new place.
    let to: PathBuf = to.iter().collect();
    layer::find(root, &to)?;
    let stack: Vec<_> = [root.clone()].into_iter().chain(below.iter().cloned()).collect();
    layer::is_a_tree(&stack).then_some(())
}
