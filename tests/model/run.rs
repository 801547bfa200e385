//! Random operations on the reference and through a front end, and the comparison of the two.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fmt::{Debug, Write as _};
use std::path::{Path, PathBuf};

use linux_delegate::abi::Maker;
use overlayfs::errno::{EINVAL, ENOENT};
use overlayfs::layer::{Owner, RenameMode, Time};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;

use crate::Kind;
use crate::backing::Backing;
use crate::front_end::{At, FrontEnd, Listed, Part};
use crate::layer::{self, MARKER, Meta, Object, Written};
use crate::lowers::{self, Item};
use crate::tree::{self, Id, Place, ROOT, Rules, Tree};

/// The place of an operation, chosen from the objects that exist when it runs.
#[derive(Clone, Debug)]
pub enum Sel {
    /// An existing object.
    Any(Index),
    /// A name in an existing directory.
    In(Index, OsString),
    /// Any path.
    Raw(Vec<OsString>),
    /// A name in an open directory, which may have been moved or removed.
    Held(Index, OsString),
}

/// The object that an operation reads or changes: an open one, or one that the operation opens.
#[derive(Clone, Debug)]
pub enum Whom {
    Held(Index),
    At(Sel),
}

#[derive(Clone, Debug)]
pub enum Op {
    Create(Sel, Kind, u32, (u32, u32), OsString),
    /// Makes a file without a name, and keeps it open.
    Temp(usize, Sel, u32, (u32, u32)),
    Link(Whom, Sel),
    Unlink(Sel),
    RemoveDir(Sel),
    /// `rm -r`.
    RemoveTree(Sel),
    Rename(Sel, Sel, RenameMode),
    Open(usize, Sel),
    Close(Index),
    Read(Whom, usize, usize),
    Write(Whom, Option<usize>, Vec<u8>),
    Truncate(Whom, usize),
    SetMode(Whom, u32),
    SetOwner(Whom, u32, u32),
    SetTimes(Whom, i64, u32),
    SetXattr(Whom, OsString, Vec<u8>),
    RemoveXattr(Whom, OsString),
    Sync(Whom),
    List(Whom, usize),
    /// Continues the listing of an open directory, or begins one.
    ListOn(Index, usize),
    /// Ends the overlay and mounts the same layers again.
    Remount,
    /// Completes and syncs everything.
    Settle,
    /// Freezes the upper layer and goes on.
    Snapshot,
    /// Lets another overlay go on with everything, as a new daemon does.
    Restart,
    /// Closes everything and goes back to the last snapshot.
    RollBack,
    /// Ends the overlay and mounts its upper layer as the top lower layer of a new one.
    Stack,
    /// Ends the overlay and mounts its upper layer over other lower layers.
    Change(Change),
    /// Ends the overlay and repairs the upper layer with one of the lower layers missing, and then
    /// with all.
    Forget(Index),
}

/// A change of the stack of lower layers.
#[derive(Clone, Debug)]
pub enum Change {
    /// Adds a layer on top.
    Add(Vec<Item>),
    Remove(Index),
    Swap(Index, Index),
}

/// The abilities of a front end.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    pub rules: Rules,
    /// Whether names may be other bytes than UTF-8.
    pub bytes: bool,
    /// Whether sockets and FIFOs can be made, and renames can exchange.
    pub full: bool,
    /// Whether files can be made without a name, renames can leave a device, and another process
    /// can go on with an overlay that has snapshots.
    pub linux: bool,
    /// The format of the upper layer, if there are layers to mount again.
    pub layers: Option<Written>,
    /// Repairs the upper layer over these lower ones.
    pub check: Option<fn(&[PathBuf], &Path) -> Checked>,
    /// Whether there are snapshots. Then the layers stay in their order.
    pub snapshots: bool,
}

/// The result of a check.
pub struct Checked {
    pub found: Vec<String>,
    /// Whether it reports that the lower layers are others.
    pub is_told: bool,
}

/// Lower layers, their place and mount, and the operations to run above them.
#[derive(Clone, Debug)]
pub struct Case {
    stack: Vec<Vec<Item>>,
    /// Whether they are in memory, and not on a disk.
    pub in_memory: bool,
    /// The limit of names in the cache, or None for the usual one.
    known_max: Option<usize>,
    ops: Vec<Op>,
    /// On Redox, the process that makes files of other users.
    maker: Maker,
}

/// The extended attributes that operations set. Some of them have a meaning for overlays.
const XATTRS: [&str; 5] =
    ["user.a", "trusted.b", "user.overlay.opaque", "trusted.overlay.redirect", "user.fuseoverlayfs.origin"];

/// From this inode number on, the number says nothing about the object.
const COUNTED: u64 = 1 << 63;

/// Chooses one of these by weight, or one of the operations that only some front ends have.
fn some<T: Debug + 'static>(
    all: impl Strategy<Value = T> + 'static,
    weight: u32,
    able: bool,
    more: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<T> {
    if able { prop_oneof![100 => all, weight => more].boxed() } else { all.boxed() }
}

fn name(abilities: Abilities) -> BoxedStrategy<OsString> {
    let name = some(lowers::name(), 8, abilities.bytes, lowers::name_of_bytes());
    let reserved = prop_oneof![Just(".wh.a"), Just(".wh..wh..opq"), Just(".wh.")].prop_map(OsString::from);
    let name = some(name, 2, abilities.rules.reserves, reserved);
    some(name, 2, true, Just("z".repeat(256).into()))
}

fn sel(abilities: Abilities) -> BoxedStrategy<Sel> {
    prop_oneof![
        10 => any::<Index>().prop_map(Sel::Any),
        10 => (any::<Index>(), name(abilities)).prop_map(|(dir, name)| Sel::In(dir, name)),
        2 => prop::collection::vec(name(abilities), 1..5).prop_map(Sel::Raw),
        2 => (any::<Index>(), name(abilities)).prop_map(|(dir, name)| Sel::Held(dir, name)),
    ]
    .boxed()
}

fn existing(abilities: Abilities) -> BoxedStrategy<Sel> {
    prop_oneof![
        10 => any::<Index>().prop_map(Sel::Any),
        1 => sel(abilities),
    ]
    .boxed()
}

fn whom(abilities: Abilities) -> BoxedStrategy<Whom> {
    prop_oneof![any::<Index>().prop_map(Whom::Held), existing(abilities).prop_map(Whom::At)].boxed()
}

fn op(abilities: Abilities) -> BoxedStrategy<Op> {
    let (sel, existing, whom) = (|| sel(abilities), || existing(abilities), || whom(abilities));
    let full = prop_oneof![Just(RenameMode::NoReplace), Just(RenameMode::Exchange)];
    let rename = some(Just(RenameMode::Replace), 50, true, full);
    let rename = some(rename, 15, abilities.linux, Just(RenameMode::Whiteout));
    let kind = prop_oneof![4 => Just(Kind::File), 6 => Just(Kind::Dir), 1 => Just(Kind::Symlink)];
    let kind = some(kind, 15, true, prop_oneof![Just(Kind::Fifo), Just(Kind::Socket)]);
    let owner = (lowers::id(), lowers::id());
    let offset = prop::option::weighted(0.7, prop_oneof![0usize..20, 0usize..10_000, Just(1 << 20)]);
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..12),
        (any::<u8>(), 0usize..9000).prop_map(|(byte, len)| vec![byte; len])
    ];
    let op = prop_oneof![
        8 => (sel(), kind, lowers::mode(), owner, lowers::target())
            .prop_map(|(sel, kind, mode, owner, target)| Op::Create(sel, kind, mode, owner, target)),
        3 => (whom(), sel()).prop_map(|(whom, sel)| Op::Link(whom, sel)),
        5 => existing().prop_map(Op::Unlink),
        3 => existing().prop_map(Op::RemoveDir),
        3 => existing().prop_map(Op::RemoveTree),
        12 => (existing(), sel(), rename).prop_map(|(from, to, mode)| Op::Rename(from, to, mode)),
        6 => (0usize..6, existing()).prop_map(|(slot, sel)| Op::Open(slot, sel)),
        2 => any::<Index>().prop_map(Op::Close),
        3 => (whom(), 0usize..10_000, 0usize..10_000).prop_map(|(whom, offset, len)| Op::Read(whom, offset, len)),
        6 => (whom(), offset, bytes).prop_map(|(whom, offset, bytes)| Op::Write(whom, offset, bytes)),
        3 => (whom(), prop_oneof![Just(0usize), 0usize..10_000]).prop_map(|(whom, size)| Op::Truncate(whom, size)),
        3 => (whom(), lowers::mode()).prop_map(|(whom, mode)| Op::SetMode(whom, mode)),
        3 => (whom(), lowers::id(), lowers::id()).prop_map(|(whom, uid, gid)| Op::SetOwner(whom, uid, gid)),
        3 => (whom(), 0..2_000_000_000i64, 0..1_000_000_000u32)
            .prop_map(|(whom, sec, nsec)| Op::SetTimes(whom, sec, nsec)),
        1 => whom().prop_map(Op::Sync),
        2 => (whom(), 1usize..5).prop_map(|(whom, chunk)| Op::List(whom, chunk)),
        6 => (any::<Index>(), 1usize..4).prop_map(|(index, chunk)| Op::ListOn(index, chunk)),
    ];
    let temp = (
        0usize..6,
        prop_oneof![any::<Index>().prop_map(Sel::Any), sel()],
        lowers::mode(),
        (lowers::id(), lowers::id()),
    )
        .prop_map(|(slot, sel, mode, owner)| Op::Temp(slot, sel, mode, owner));
    let rights = prop::array::uniform5(0u8..8);
    let value = prop_oneof![prop::collection::vec(any::<u8>(), 0..9), any::<u8>().prop_map(|byte| vec![byte; 300])];
    let xattr = prop_oneof![
        1 => (prop::sample::select(&tree::ACLS[..]), rights).prop_map(|(name, rights)| (name.into(), tree::acl(rights))),
        2 => (prop::sample::select(&XATTRS[..]), value).prop_map(|(name, value)| (name.into(), value)),
    ];
    let names = [&XATTRS[..], &tree::ACLS].concat();
    let linux = prop_oneof![
        5 => temp,
        7 => (whom(), xattr).prop_map(|(whom, (name, value))| Op::SetXattr(whom, name, value)),
        3 => (whom(), prop::sample::select(names)).prop_map(|(whom, name)| Op::RemoveXattr(whom, name.into())),
    ];
    let op = some(op, 15, abilities.linux, linux);
    let change = prop_oneof![
        2 => lowers::items().prop_map(Change::Add),
        1 => any::<Index>().prop_map(Change::Remove),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(one, other)| Change::Swap(one, other)),
    ];
    let change = prop_oneof![2 => change.prop_map(Op::Change), 1 => any::<Index>().prop_map(Op::Forget)];
    if abilities.snapshots {
        let mounts = prop_oneof![
            2 => Just(Op::Remount),
            2 => Just(Op::Settle),
            5 => Just(Op::Snapshot),
            5 => Just(if abilities.linux { Op::Restart } else { Op::Snapshot }),
            2 => Just(Op::RollBack),
        ];
        return some(op, 12, true, mounts);
    }
    let mounts = prop_oneof![2 => Just(Op::Remount), 1 => Just(Op::Stack)];
    let mounts = some(mounts, 60, abilities.layers.is_some(), change);
    some(op, 6, abilities.layers.is_some(), mounts)
}

pub fn case(abilities: Abilities) -> impl Strategy<Value = Case> {
    let known_max = prop::option::of(0usize..12);
    let dies = (0usize..8, any::<bool>()).prop_map(|(after, makes_last)| Maker::Dies { after, makes_last });
    let maker = prop_oneof![Just(Maker::Lives), dies];
    (lowers::stack(), prop::bool::weighted(0.8), known_max, prop::collection::vec(op(abilities), 1..40), maker)
        .prop_map(|(stack, in_memory, known_max, ops, maker)| Case { stack, in_memory, known_max, ops, maker })
}

/// The layers to mount: the lower ones, top first, and the upper one. Without layers, the tree is
/// in `upper`.
pub struct Stacked<'a> {
    pub lowers: &'a [PathBuf],
    pub upper: &'a Path,
    pub known_max: Option<usize>,
    /// Whether the upper layer was mounted over other layers before, so that it may hide missing
    /// objects.
    pub changed: bool,
    pub maker: Maker,
}

/// Mounts layers.
pub type Mount<'a, D> = &'a dyn Fn(&Stacked<'_>) -> D;

type Check<T = ()> = Result<T, TestCaseError>;

/// The reference and the front end side by side.
struct Pair<'a, D: FrontEnd> {
    mount: Mount<'a, D>,
    abilities: Abilities,
    handles: BTreeMap<usize, D::Handle>,
    front_end: Option<D>,
    /// The place of the layers. It outlives the front end, which uses it.
    backing: Box<dyn Backing>,
    /// The lower layers, top first: their paths and contents.
    lowers: Vec<(PathBuf, Object)>,
    upper: PathBuf,
    /// The frozen layers below the topmost one, the first one first: their paths, contents, and the
    /// reference at that time.
    frozen: Vec<(PathBuf, Object, Tree)>,
    /// The topmost layer, if that is not `upper`.
    top: Option<PathBuf>,
    /// The number of objects of layers with an id.
    ids: u64,
    known_max: Option<usize>,
    maker: Maker,
    /// Whether the lower layers differ from those of the first mount of the upper one.
    changed: bool,
    tree: Tree,
    /// The unfinished listings, by the slot of the directory.
    listings: BTreeMap<usize, OpenListing>,
    seen: Seen,
    /// The contents of files with several names in a lower layer.
    linked: HashMap<Id, Vec<u8>>,
    log: RefCell<String>,
}

/// The properties of objects that must stay the same in this stack of layers.
#[derive(Default)]
struct Seen {
    /// The inode numbers.
    inodes: BTreeMap<Id, u64>,
    /// The times of last change of status, each with the number of changes before it.
    ctimes: BTreeMap<Id, (u32, Time)>,
}

/// A listing in pieces.
struct OpenListing {
    after: u64,
    told: HashSet<OsString>,
    /// The names that existed all the time.
    stay: BTreeSet<OsString>,
}

/// Runs one case. The error describes the difference and the operations before it.
pub fn run<D: FrontEnd>(
    case: &Case,
    abilities: Abilities,
    mut backing: Box<dyn Backing>,
    mount: Mount<'_, D>,
) -> Check {
    let mut ids = 0;
    let layers = lowers::build(&case.stack, abilities, &mut ids);
    let mut lowers = Vec::new();
    for (number, layer) in layers.into_iter().enumerate() {
        let path = backing.layer(&format!("lower{number}"));
        layer::write(&*backing, &layer, &path);
        backing.guard(&path);
        lowers.push((path, layer));
    }
    let merged = merge(&lowers);
    let linked = match abilities.layers.is_some() {
        true => layer::linked(lowers.iter().map(|(_, layer)| layer)),
        false => layer::linked([&merged].into_iter()),
    };
    let tree = Tree::new(&merged, &linked, abilities.rules);
    let mut pair = Pair {
        mount,
        abilities,
        handles: BTreeMap::new(),
        front_end: None,
        backing,
        upper: PathBuf::new(),
        frozen: Vec::new(),
        top: None,
        lowers,
        ids,
        known_max: case.known_max,
        maker: case.maker,
        changed: false,
        listings: BTreeMap::new(),
        seen: Seen::default(),
        linked: linked_files(&tree),
        tree,
        log: RefCell::default(),
    };
    let result = pair.run(&case.ops);
    let log = pair.log.take();
    result.map_err(|error| match error {
        TestCaseError::Fail(reason) => TestCaseError::fail(format!("{reason}\nafter:\n{log}")),
        reject => reject,
    })
}

/// Returns the contents of files with several names in a lower layer.
fn linked_files(tree: &Tree) -> HashMap<Id, Vec<u8>> {
    let nodes = tree.nodes.iter().enumerate().filter(|(_, node)| node.linked_below);
    nodes.map(|(id, node)| (id, node.data.to_vec())).collect()
}

fn merge(lowers: &[(PathBuf, Object)]) -> Object {
    layer::merge(&lowers.iter().map(|(_, layer)| layer.clone()).collect::<Vec<_>>())
}

impl<D: FrontEnd> Pair<'_, D> {
    fn run(&mut self, ops: &[Op]) -> Check {
        for (number, (path, layer)) in self.lowers.iter().enumerate() {
            let _ = writeln!(self.log.borrow_mut(), "layer {number} at {}:\n{}", path.display(), Shown(layer));
        }
        self.new_upper();
        self.enter();
        self.compare()?;
        for (step, op) in ops.iter().enumerate() {
            self.step(op)?;
            self.watch_listings();
            if step % 8 == 7 {
                self.compare()?;
            }
        }
        self.compare()?;
        self.leave()?;
        self.backing.check();
        Ok(())
    }

    fn say(&self, line: impl Into<String>) {
        let _ = writeln!(self.log.borrow_mut(), "{}", line.into());
    }

    /// Makes an empty upper layer. The root of the merged tree has its attributes.
    fn new_upper(&mut self) {
        self.ids += 1;
        self.upper = self.backing.layer(&format!("upper{}", self.ids));
        if self.abilities.layers.is_some() {
            let (mode, owner) = (0o750, Owner { uid: 1000, gid: 1001 });
            self.backing.set_meta(&self.upper, &Meta { mode, uid: owner.uid, gid: owner.gid, mtime: (1, 1) });
            let root = &mut self.tree.nodes[ROOT];
            // The mount makes the work directory in it, which changes its time.
            (root.mode, root.owner, root.mtime) = (mode, owner, None);
        }
    }

    /// Mounts the layers.
    fn enter(&mut self) {
        let paths: Vec<_> = self.lowers.iter().map(|(path, _)| path.clone()).collect();
        if self.abilities.layers.is_none() {
            layer::write(&*self.backing, &merge(&self.lowers), &self.upper);
        }
        let Self { known_max, changed, maker, .. } = *self;
        self.front_end = Some((self.mount)(&Stacked { lowers: &paths, upper: &self.upper, known_max, changed, maker }));
    }

    /// Ends the mount and checks the upper layer that it left. Returns that layer.
    fn leave(&mut self) -> Check<Option<Object>> {
        for handle in std::mem::take(&mut self.handles).into_values() {
            self.front_end().close(handle);
        }
        self.tree.handles.clear();
        self.listings.clear();
        // If the own number of an object was taken, it has one from a counter. Such numbers last
        // for one mount.
        // Over other lower layers the original of a copy may show again, and either has the number.
        let changed = self.changed;
        self.seen.inodes.retain(|_, number| *number < COUNTED && !changed);
        self.front_end = None;
        let Some(written) = self.abilities.layers else {
            return Ok(None);
        };
        let top = self.top.as_ref().unwrap_or(&self.upper);
        let upper = layer::read(&*self.backing, top, written, &mut self.ids);
        let frozen = self.frozen.iter().rev().map(|(_, layer, _)| layer);
        let lowers = self.lowers.iter().map(|(_, layer)| layer);
        let layers: Vec<_> = [&upper].into_iter().chain(frozen).chain(lowers).cloned().collect();
        self.compare_layers(&layer::merge(&layers))?;
        Ok(Some(upper))
    }

    /// Freezes the upper layer. Everything goes on, with the same numbers and times.
    fn snapshot(&mut self) -> Check {
        let Some(written) = self.abilities.layers else { return Ok(()) };
        let front_end = self.front_end.as_mut().expect("mounted");
        let number = front_end.snapshot(&mut self.handles).map_err(|errno| fail(Path::new("/"), "snapshot", errno))?;
        self.say(format!("snapshot {number}"));
        let path = self.top.replace(self.layer_of(number)).unwrap_or_else(|| self.upper.clone());
        let layer = layer::read(&*self.backing, &path, written, &mut self.ids);
        self.backing.guard(&path);
        self.frozen.push((path, layer, self.tree.clone()));
        // The layers alone do not tell that names of a frozen layer show a copy of a layer above.
        for node in &mut self.tree.nodes {
            node.linked_below |= node.kind != Kind::Dir && node.names > 1;
        }
        self.seen.inodes.retain(|_, number| *number < COUNTED);
        self.compare()
    }

    fn roll_back(&mut self) -> Check {
        let Some((_, _, tree)) = self.frozen.last() else { return Ok(()) };
        let tree = tree.clone();
        for handle in std::mem::take(&mut self.handles).into_values() {
            self.front_end().close(handle);
        }
        self.listings.clear();
        let front_end = self.front_end.as_mut().expect("mounted");
        let number = front_end.roll_back().map_err(|errno| fail(Path::new("/"), "rollback", errno))?;
        self.say(format!("rollback to layer {number}"));
        self.top = Some(self.layer_of(number));
        self.tree = tree;
        self.tree.handles.clear();
        for node in &mut self.tree.nodes {
            node.linked_below |= node.kind != Kind::Dir && node.names > 1;
        }
        let nodes = self.tree.nodes.len();
        self.seen.inodes.retain(|id, number| *number < COUNTED && *id < nodes);
        // The times are those of the snapshot.
        self.seen.ctimes.clear();
        self.compare()
    }

    /// Returns the path of a layer of the chain.
    fn layer_of(&self, number: u64) -> PathBuf {
        self.upper.with_added_extension("snapshots").join(number.to_string()).join("upper")
    }

    /// Compares the reference with the layers on disk, merged by the words of the format.
    fn compare_layers(&self, merged: &Object) -> Check {
        let mut expected: BTreeMap<_, _> = self.tree.paths().into_iter().collect();
        let mut result = Ok(());
        layer::walk(merged, &mut |path, object| {
            let id = expected.remove(path);
            if result.is_ok() {
                result = self.compare_object(path, object, id);
            }
        });
        result?;
        prop_assert!(expected.is_empty(), "missing in the layers on disk: {expected:?}");
        Ok(())
    }

    fn compare_object(&self, path: &Path, object: &Object, id: Option<Id>) -> Check {
        prop_assert!(id.is_some(), "the layers on disk show {path:?}, which should not exist");
        let node = self.tree.node(id.expect("just checked"));
        prop_assert_eq!(object.kind(), node.kind, "kind of {:?} in the layers on disk", path);
        if node.linked_below {
            return Ok(());
        }
        let meta = &object.meta;
        prop_assert_eq!((meta.uid, meta.gid), (node.owner.uid, node.owner.gid), "owner of {:?} on disk", path);
        match &object.body {
            layer::Body::Symlink(target) => prop_assert_eq!(target, &node.target, "target of {:?} on disk", path),
            _ => prop_assert_eq!(meta.mode, node.mode, "mode of {:?} on disk", path),
        }
        if let layer::Body::File(bytes) = &object.body {
            prop_assert!(*bytes == *node.data, "contents of {:?} in the layers on disk differ", path);
        }
        Ok(())
    }

    fn remount(&mut self) -> Check {
        self.leave()?;
        self.enter();
        self.compare()
    }

    /// Mounts the upper layer over other lower layers. The expected tree comes from the words of
    /// the format.
    fn change(&mut self, change: &Change) -> Check {
        let Some(upper) = self.leave()? else { return Ok(()) };
        let mut lowers = self.lowers.clone();
        match change {
            Change::Add(items) => {
                let below: Vec<_> = lowers.iter().map(|(_, layer)| layer.clone()).collect();
                let layer = lowers::build_layer(items, &below, self.abilities, &mut self.ids);
                let path = self.backing.layer(&format!("newer{}", self.ids));
                layer::write(&*self.backing, &layer, &path);
                self.backing.guard(&path);
                self.say(format!("with another layer on top, at {}:\n{}", path.display(), Shown(&layer)));
                lowers.insert(0, (path, layer));
            }
            Change::Remove(_) if lowers.len() == 1 => {}
            Change::Remove(index) => {
                let (path, _) = lowers.remove(index.index(lowers.len()));
                self.say(format!("without the layer {}", path.display()));
            }
            Change::Swap(one, other) => {
                let (one, other) = (one.index(lowers.len()), other.index(lowers.len()));
                self.say(format!("with the layers {one} and {other} in the place of each other"));
                lowers.swap(one, other);
            }
        }
        let all: Vec<_> = [&upper].into_iter().chain(lowers.iter().map(|(_, layer)| layer)).cloned().collect();
        if !layer::is_a_tree(&all) {
            self.say("which would show a directory twice");
            self.enter();
            return self.compare();
        }
        self.lowers = lowers;
        self.changed = true;
        self.seen = Seen::default();
        let before = std::mem::replace(
            &mut self.tree,
            Tree::new(&layer::merge(&all), &layer::linked(all.iter()), self.abilities.rules),
        );
        self.tree.nodes[ROOT].mtime = None;
        // A name of a file with several lower names may show a copy that was made under another
        // name.
        let linked = |id: &Id| before.node(*id).linked_below;
        let names: Vec<_> = before.paths().into_iter().filter(|(_, id)| linked(id)).map(|(path, _)| path).collect();
        let mut contents: Vec<_> =
            before.nodes.into_iter().filter(|node| node.linked_below).map(|node| node.data.to_vec()).collect();
        contents.extend(std::mem::take(&mut self.linked).into_values());
        for path in names {
            if let Some(node) = self.tree.at(&path).map(|now| &mut self.tree.nodes[now]) {
                node.linked_below |= node.kind != Kind::Dir;
            }
        }
        self.enter();
        self.learn_xattrs()?;
        self.relink(&|_, bytes| contents.iter().any(|data| data == bytes))?;
        self.compare()
    }

    /// Repairs the upper layer with a lower layer missing. The check must report the missing layer,
    /// and must not remove anything that is needed.
    fn repair_without(&mut self, index: &Index) -> Check {
        let Some(check) = self.abilities.check.filter(|_| self.lowers.len() > 1) else { return Ok(()) };
        self.leave()?;
        let mut paths: Vec<_> = self.lowers.iter().map(|(path, _)| path.clone()).collect();
        let forgotten = index.index(paths.len());
        self.say(format!("repaired without the layer {forgotten}"));
        let path = paths.remove(forgotten);
        prop_assert!(check(&paths, &self.upper).is_told, "a check does not say that a lower layer is missing");
        paths.insert(forgotten, path);
        let Checked { found, is_told } = check(&paths, &self.upper);
        prop_assert!(!is_told, "a check says that the lower layers are others");
        prop_assert!(found.is_empty() || self.changed, "after a repair with one layer forgotten: {:?}", found);
        // A repair changes directories of the upper layer.
        if !found.is_empty() {
            self.seen.ctimes.clear();
        }
        // The tree must be the same as before.
        self.enter();
        self.compare()
    }

    /// Mounts the upper layer as the top lower layer of a new one.
    fn stack(&mut self) -> Check {
        let Some(upper) = self.leave()? else { return Ok(()) };
        self.changed = false;
        self.seen = Seen::default();
        self.backing.guard(&self.upper);
        self.lowers.insert(0, (self.upper.clone(), upper));
        self.new_upper();
        for node in &mut self.tree.nodes {
            node.linked_below |= node.kind != Kind::Dir && node.names > 1;
        }
        let changed = std::mem::take(&mut self.linked);
        self.enter();
        self.relink(&|id, bytes| changed.get(&id).is_some_and(|old| *old == bytes))?;
        self.compare()
    }

    /// Takes the extended attributes that the merged layers show into the reference.
    fn learn_xattrs(&mut self) -> Check {
        let paths = if self.abilities.rules.xattrs { self.tree.paths() } else { Vec::new() };
        for (path, id) in paths {
            self.tree.nodes[id].xattrs = self.xattrs_at(&path)?;
        }
        Ok(())
    }

    fn xattrs_at(&self, path: &Path) -> Check<BTreeMap<OsString, Vec<u8>>> {
        let names: Vec<_> = path.iter().map(OsStr::to_owned).collect();
        let opened = self.front_end().open(&At { held: None, path: &names });
        opened.and_then(|handle| self.front_end().xattrs(&handle)).map_err(|errno| fail(path, "listxattr", errno))
    }

    /// Updates the reference after the upper layer has become a lower one, without its overlay's
    /// index. Names that were links in a lower layer may now be several files, each with the old or
    /// the new contents.
    fn relink(&mut self, is_old: &dyn Fn(Id, &[u8]) -> bool) -> Check {
        let mut files: HashMap<u64, Id> = HashMap::new();
        for (path, id) in self.tree.paths() {
            let node = self.tree.node(id).clone();
            if !node.linked_below {
                continue;
            }
            let front_end = self.front_end.as_ref().expect("mounted");
            let names: Vec<_> = path.iter().map(OsStr::to_owned).collect();
            let handle =
                front_end.open(&At { held: None, path: &names }).map_err(|errno| fail(&path, "open", errno))?;
            let stat = front_end.stat(&handle).map_err(|errno| fail(&path, "stat", errno))?;
            prop_assert_eq!(stat.kind, node.kind, "kind of {:?} after a remount", path);
            let mut real = tree::Node { names: 0, unseen: stat.nlink, mtime: None, ..node };
            if stat.kind == Kind::File {
                let bytes = front_end.read(&handle, 0, 8 << 20).map_err(|errno| fail(&path, "read", errno))?;
                prop_assert!(
                    is_old(id, &bytes) || bytes == *real.data,
                    "contents of {path:?} after a remount: neither old nor new"
                );
                real.data = bytes.into();
            }
            (real.mode, real.owner) = (stat.mode, Owner { uid: stat.uid, gid: stat.gid });
            if self.abilities.rules.xattrs {
                real.xattrs = self.xattrs_at(&path)?;
            }
            let new = *files.entry(stat.ino).or_insert_with(|| {
                self.tree.nodes.push(real);
                self.tree.nodes.len() - 1
            });
            self.tree.replace(&path, new);
        }
        for id in files.values() {
            let node = &mut self.tree.nodes[*id];
            node.unseen = node.unseen.saturating_sub(node.names);
        }
        self.linked = files.into_values().map(|id| (id, self.tree.node(id).data.to_vec())).collect();
        Ok(())
    }

    fn place(&self, sel: &Sel) -> Option<Place> {
        let path = |path: &Path| path.iter().map(OsStr::to_owned).collect();
        match sel {
            Sel::Any(index) => {
                let paths = self.tree.paths();
                let paths = (paths.len() > 1).then(|| &paths[1..])?;
                Some(Place { held: None, path: path(&index.get(paths).0) })
            }
            Sel::In(index, name) => {
                let mut paths = self.tree.paths();
                let kind = |id| self.tree.node(id).kind;
                let follows = self.abilities.rules.follows;
                paths.retain(|(_, id)| kind(*id) == Kind::Dir || (follows && kind(*id) == Kind::Symlink));
                Some(Place { held: None, path: path(&index.get(&paths).0.join(name)) })
            }
            Sel::Raw(names) => Some(Place { held: None, path: names.clone() }),
            Sel::Held(index, name) => {
                let is_dir = |id: &Id| self.tree.node(*id).kind == Kind::Dir;
                let dirs: Vec<_> = self.tree.handles.iter().filter(|(_, id)| is_dir(id)).collect();
                let (slot, _) = (!dirs.is_empty()).then(|| index.get(&dirs))?;
                Some(Place { held: Some(**slot), path: vec![name.clone()] })
            }
        }
    }

    fn at<'a>(&'a self, place: &'a Place) -> At<'a, D::Handle> {
        At { held: place.held.map(|slot| &self.handles[&slot]), path: &place.path }
    }

    /// Compares the answers of the reference and of the front end. Returns the first one if both
    /// succeeded.
    fn agree<T>(&self, what: String, model: tree::Result<T>, real: Result<impl Debug, i32>) -> Check<Option<T>> {
        self.say(format!(
            "{what}: {}",
            match &model {
                Ok(_) => "ok".to_owned(),
                Err(errnos) => format!("{:?}", errnos.iter().map(|errno| errno_name(*errno)).collect::<Vec<_>>()),
            }
        ));
        match (model, real) {
            (Ok(value), Ok(_)) => Ok(Some(value)),
            (Err(errnos), Err(errno)) if errnos.contains(&errno) => Ok(None),
            (Ok(_), Err(errno)) => {
                Err(TestCaseError::fail(format!("{what}: should work, answers {}", errno_name(errno))))
            }
            (Err(_), Ok(value)) => Err(TestCaseError::fail(format!("{what}: should fail, answers {value:?}"))),
            (Err(_), Err(errno)) => Err(TestCaseError::fail(format!("{what}: wrong error {}", errno_name(errno)))),
        }
    }

    /// Finds an object in the reference, opens it through the front end, and runs `act` on both.
    /// Does nothing without an object.
    fn on<T, R: Debug>(
        &mut self,
        what: &str,
        whom: &Whom,
        model: impl FnOnce(&mut Tree, Id) -> tree::Result<T>,
        real: impl FnOnce(&D, &D::Handle) -> Result<R, i32>,
    ) -> Check<Option<T>> {
        let (what, id, opened) = match whom {
            Whom::Held(index) => {
                let slots: Vec<_> = self.tree.handles.keys().copied().collect();
                if slots.is_empty() {
                    return Ok(None);
                }
                let slot = *index.get(&slots);
                (format!("{what} #{slot}"), self.tree.handles[&slot], Err(slot))
            }
            Whom::At(sel) => {
                let Some(place) = self.place(sel) else { return Ok(None) };
                let what = format!("{what} {}", show(&place));
                let found = self.tree.find(&place);
                let opened = self.front_end().open(&self.at(&place));
                let (handle, failed) = match opened {
                    Ok(handle) => (Some(handle), Ok(())),
                    Err(errno) => (None, Err(errno)),
                };
                let Some(id) = self.agree(format!("open for {what}"), found, failed)? else {
                    return Ok(None);
                };
                (what, id, Ok(handle.expect("opened")))
            }
        };
        let expected = model(&mut self.tree, id);
        let front_end = self.front_end();
        let answer = match &opened {
            Ok(handle) => real(front_end, handle),
            Err(slot) => real(front_end, &self.handles[slot]),
        };
        self.agree(what, expected, answer)
    }

    fn front_end(&self) -> &D {
        self.front_end.as_ref().expect("mounted")
    }

    /// Keeps an object open in a slot, in place of the former one.
    fn hold(&mut self, slot: usize, id: Id, handle: D::Handle) {
        self.listings.remove(&slot);
        self.tree.handles.insert(slot, id);
        if let Some(before) = self.handles.insert(slot, handle) {
            self.front_end().close(before);
        }
    }

    fn step(&mut self, op: &Op) -> Check {
        let special = |kind| !matches!(kind, Kind::File | Kind::Dir | Kind::Symlink);
        match op {
            Op::Create(_, kind, ..) if special(*kind) && !self.abilities.full => {}
            Op::Rename(.., RenameMode::Exchange) if !self.abilities.full => {}
            Op::Create(sel, kind, mode, owner, target) => {
                let Some(place) = self.place(sel) else { return Ok(()) };
                let owner = Owner { uid: owner.0, gid: owner.1 };
                let model = self.tree.create(&place, *kind, *mode, owner, target);
                let real = self.front_end().create(&self.at(&place), *kind, *mode, owner, target);
                let what = format!("create {} {kind:?} {mode:o} {}:{}", show(&place), owner.uid, owner.gid);
                self.agree(what, model, real)?;
            }
            Op::Temp(slot, sel, mode, owner) => {
                let Some(place) = self.place(sel) else { return Ok(()) };
                let owner = Owner { uid: owner.0, gid: owner.1 };
                let model = self.tree.create_temp(&place, *mode, owner);
                let (handle, real) = match self.front_end().create_temp(&self.at(&place), *mode, owner) {
                    Ok(handle) => (Some(handle), Ok(())),
                    Err(errno) => (None, Err(errno)),
                };
                let what = format!("create a file without a name in {} as #{slot}", show(&place));
                if let Some(id) = self.agree(what, model, real)? {
                    self.hold(*slot, id, handle.expect("opened"));
                }
            }
            Op::Link(whom, sel) => self.link(whom, sel)?,
            Op::Unlink(sel) => {
                let Some(place) = self.place(sel) else { return Ok(()) };
                let (model, real) = (self.tree.unlink(&place), self.front_end().unlink(&self.at(&place)));
                self.agree(format!("unlink {}", show(&place)), model, real)?;
            }
            Op::RemoveDir(sel) => {
                let Some(place) = self.place(sel) else { return Ok(()) };
                let (model, real) = (self.tree.remove_dir(&place), self.front_end().remove_dir(&self.at(&place)));
                self.agree(format!("rmdir {}", show(&place)), model, real)?;
            }
            Op::RemoveTree(sel) => {
                let Some(place) = self.place(sel) else { return Ok(()) };
                if let Ok(id) = self.tree.find(&place) {
                    self.remove_tree(&place, id)?;
                }
            }
            Op::Rename(from, to, mode) => {
                let (Some(from), Some(to)) = (self.place(from), self.place(to)) else {
                    return Ok(());
                };
                let model = self.tree.rename(&from, &to, *mode);
                let real = self.front_end().rename(&self.at(&from), &self.at(&to), *mode);
                self.agree(format!("rename {mode:?} {} {}", show(&from), show(&to)), model, real)?;
            }
            Op::Open(slot, sel) => {
                let Some(place) = self.place(sel) else { return Ok(()) };
                let model = self.tree.find(&place);
                let (handle, real) = match self.front_end().open(&self.at(&place)) {
                    Ok(handle) => (Some(handle), Ok(())),
                    Err(errno) => (None, Err(errno)),
                };
                if let Some(id) = self.agree(format!("open {} as #{slot}", show(&place)), model, real)? {
                    self.hold(*slot, id, handle.expect("opened"));
                }
            }
            Op::Close(index) => {
                let slots: Vec<_> = self.tree.handles.keys().copied().collect();
                if !slots.is_empty() {
                    let slot = index.get(&slots);
                    self.say(format!("close #{slot}"));
                    self.tree.handles.remove(slot);
                    self.listings.remove(slot);
                    let handle = self.handles.remove(slot).expect("held");
                    self.front_end().close(handle);
                }
            }
            Op::Read(whom, offset, len) => {
                let mut bytes = Vec::new();
                let expected = self.on(
                    &format!("read {len}@{offset}"),
                    whom,
                    |tree, id| tree.read(id, *offset, *len),
                    |front_end, handle| front_end.read(handle, *offset as u64, *len).map(|read| bytes = read),
                )?;
                prop_assert!(expected.is_none_or(|expected| expected == bytes), "the bytes read differ");
            }
            Op::Write(whom, offset, bytes) => {
                self.on(
                    &format!("write {}@{offset:?}", bytes.len()),
                    whom,
                    |tree, id| tree.write(id, *offset, bytes),
                    |front_end, handle| front_end.write(handle, offset.map(|offset| offset as u64), bytes),
                )?;
            }
            Op::Truncate(whom, size) => {
                let what = format!("truncate {size}");
                self.on(&what, whom, |t, id| t.truncate(id, *size), |d, handle| d.truncate(handle, *size as u64))?;
            }
            Op::SetMode(whom, mode) => {
                let what = format!("chmod {mode:o}");
                self.on(&what, whom, |t, id| t.set_mode(id, *mode), |d, handle| d.set_mode(handle, *mode))?;
            }
            Op::SetOwner(whom, uid, gid) => {
                let owner = Owner { uid: *uid, gid: *gid };
                let what = format!("chown {uid}:{gid}");
                let model = |tree: &mut Tree, id| {
                    tree.set_owner(id, owner);
                    Ok(())
                };
                self.on(&what, whom, model, |front_end, handle| front_end.set_owner(handle, owner))?;
            }
            Op::SetTimes(whom, sec, nsec) => {
                let (atime, mtime) = (Time { sec: 1, nsec: 1 }, Time { sec: *sec, nsec: *nsec });
                let model = |tree: &mut Tree, id| {
                    tree.set_mtime(id, (*sec, *nsec));
                    Ok(())
                };
                self.on("utimens", whom, model, |front_end, handle| front_end.set_times(handle, atime, mtime))?;
            }
            Op::SetXattr(whom, name, value) => {
                let what = format!("setxattr {}", name.display());
                let model = |tree: &mut Tree, id| tree.set_xattr(id, name, value);
                self.on(&what, whom, model, |front_end, handle| front_end.set_xattr(handle, name, value))?;
            }
            Op::RemoveXattr(whom, name) => {
                let what = format!("removexattr {}", name.display());
                let model = |tree: &mut Tree, id| tree.remove_xattr(id, name);
                self.on(&what, whom, model, |front_end, handle| front_end.remove_xattr(handle, name))?;
            }
            Op::Sync(whom) => {
                self.on("fsync", whom, |_, _| Ok(()), |front_end, handle| front_end.sync(handle))?;
            }
            Op::List(whom, chunk) => {
                let mut listed = Vec::new();
                let expected = self.on(
                    "list",
                    whom,
                    |tree, id| tree.list(id),
                    |front_end, handle| {
                        // A removed directory has no entries, so an empty listing is as right as
                        // ENOENT.
                        let removed =
                            |errno| errno == ENOENT && front_end.stat(handle).is_ok_and(|stat| stat.nlink == 0);
                        let answer = front_end.list(handle, *chunk);
                        let answer =
                            answer.or_else(|errno| if removed(errno) { Ok(Vec::new()) } else { Err(errno) })?;
                        listed = answer.into_iter().map(|entry| entry.name).collect();
                        Ok(())
                    },
                )?;
                listed.sort();
                prop_assert!(
                    expected.as_ref().is_none_or(|expected| *expected == listed),
                    "listing: {expected:?} {listed:?}"
                );
            }
            Op::ListOn(index, chunk) => self.list_on(index, *chunk)?,
            Op::Remount => {
                self.say("remount");
                self.remount()?;
            }
            Op::Settle => {
                self.say("sync of everything");
                prop_assert_eq!(self.front_end().settle(), Ok(0), "partial copies are left");
            }
            Op::Snapshot => self.snapshot()?,
            Op::Restart => {
                self.say("restart");
                let front_end = self.front_end.as_mut().expect("mounted");
                let done = front_end.restart(&mut self.handles);
                done.map_err(|errno| fail(Path::new("/"), "restart", errno))?;
                self.compare()?;
            }
            Op::RollBack => self.roll_back()?,
            Op::Stack => {
                self.say("remount with the upper layer as a lower one");
                self.stack()?;
            }
            Op::Change(change) => {
                self.say("remount");
                self.change(change)?;
            }
            Op::Forget(index) => self.repair_without(index)?,
        }
        Ok(())
    }

    fn list_on(&mut self, index: &Index, chunk: usize) -> Check {
        let tree = &self.tree;
        let slots: Vec<_> = tree.handles.iter().filter(|(_, id)| tree.node(**id).kind == Kind::Dir).collect();
        if slots.is_empty() {
            return Ok(());
        }
        let (slot, id) = *index.get(&slots);
        let (slot, there) = (*slot, &tree.node(*id).entries);
        let mut listing = self.listings.remove(&slot).unwrap_or_else(|| OpenListing {
            after: 0,
            told: HashSet::new(),
            stay: there.keys().cloned().collect(),
        });
        self.say(format!("list #{slot} from {} on", listing.after));
        let front_end = self.front_end.as_ref().expect("mounted");
        let part = match front_end.list_part(&self.handles[&slot], listing.after, chunk) {
            // A removed directory has no entries.
            Err(ENOENT) if tree.node(*id).names == 0 => Ok(Part { listed: Vec::new(), next: None }),
            part => part,
        };
        let part = part.map_err(|errno| fail(&PathBuf::from(format!("#{slot}")), "list", errno))?;
        for Listed { name, .. } in part.listed {
            prop_assert!(there.contains_key(&name), "{:?} is listed in #{}, and is not there", name, slot);
            let again = !listing.told.insert(name.clone());
            prop_assert!(!again || !listing.stay.contains(&name), "{:?} is listed twice in #{}", name, slot);
        }
        match part.next {
            Some(after) => {
                listing.after = after;
                self.listings.insert(slot, listing);
            }
            None => {
                let missing = listing.stay.iter().find(|name| !listing.told.contains(*name));
                prop_assert!(missing.is_none(), "{:?} is not listed in #{}", missing, slot);
            }
        }
        Ok(())
    }

    /// Removes the names that were missing for a time from the open listings.
    fn watch_listings(&mut self) {
        let Self { tree, listings, .. } = self;
        for (slot, listing) in listings {
            let there = &tree.node(tree.handles[slot]).entries;
            listing.stay.retain(|name| there.contains_key(name));
        }
    }

    fn link(&mut self, whom: &Whom, sel: &Sel) -> Check {
        let Some(to) = self.place(sel) else { return Ok(()) };
        let (id, source, handle) = match whom {
            Whom::Held(index) => {
                let slots: Vec<_> = self.tree.handles.keys().copied().collect();
                if slots.is_empty() {
                    return Ok(());
                }
                let slot = *index.get(&slots);
                (self.tree.handles[&slot], format!("#{slot}"), None)
            }
            Whom::At(sel) => {
                let Some(place) = self.place(sel) else { return Ok(()) };
                let Ok(id) = self.tree.find(&place) else { return Ok(()) };
                let opened = self.front_end().open(&self.at(&place));
                let handle = opened.map_err(|errno| fail(Path::new(&show(&place)), "open", errno))?;
                (id, show(&place), Some(handle))
            }
        };
        let node = self.tree.node(id);
        if node.unseen > 0 && node.names == 0 {
            // The lower layer has a name of it that never showed, and that counts as a remaining
            // name.
            return Ok(());
        }
        let model = self.tree.link(id, &to);
        let held = || self.handles.iter().find(|(slot, _)| format!("#{slot}") == source).map(|(_, handle)| handle);
        let handle = handle.as_ref().or_else(held).expect("opened");
        let real = self.front_end().link(handle, &self.at(&to));
        self.agree(format!("link {source} {}", show(&to)), model, real)?;
        Ok(())
    }

    fn remove_tree(&mut self, place: &Place, id: Id) -> Check {
        if self.tree.node(id).kind != Kind::Dir {
            let (model, real) = (self.tree.unlink(place), self.front_end().unlink(&self.at(place)));
            self.agree(format!("unlink {}", show(place)), model, real)?;
            return Ok(());
        }
        for (name, id) in self.tree.node(id).entries.clone() {
            let path = place.path.iter().cloned().chain([name]).collect();
            self.remove_tree(&Place { held: place.held, path }, id)?;
        }
        let (model, real) = (self.tree.remove_dir(place), self.front_end().remove_dir(&self.at(place)));
        self.agree(format!("rmdir {}", show(place)), model, real)?;
        Ok(())
    }

    /// Compares the whole tree, and all open objects.
    fn compare(&mut self) -> Check {
        let front_end = self.front_end.take().expect("mounted");
        let mut seen = HashMap::new();
        let root =
            front_end.open(&At { held: None, path: &[] }).map_err(|errno| fail(Path::new("/"), "open", errno))?;
        let mut result = self.compare_dir(&front_end, Path::new("/"), ROOT, &root, &mut seen);
        for (slot, handle) in &self.handles {
            let id = self.tree.handles[slot];
            let path = PathBuf::from(format!("#{slot}"));
            result = result
                .and_then(|()| compare_node(&front_end, &path, &self.tree, id, handle, &mut self.seen, &mut seen));
        }
        self.front_end = Some(front_end);
        result
    }

    fn compare_dir(
        &mut self,
        front_end: &D,
        path: &Path,
        id: Id,
        handle: &D::Handle,
        seen: &mut HashMap<u64, Id>,
    ) -> Check {
        compare_node(front_end, path, &self.tree, id, handle, &mut self.seen, seen)?;
        let chunk = 1 + id % 5;
        let listed = front_end.list(handle, chunk).map_err(|errno| fail(path, "list", errno))?;
        let mut names = HashSet::new();
        for entry in &listed {
            prop_assert!(names.insert(entry.name.clone()), "{:?} twice in the listing of {:?}", entry.name, path);
        }
        let expected: HashSet<_> = self.tree.node(id).entries.keys().cloned().collect();
        let reserved = names.iter().find(|name| self.abilities.rules.reserves && is_reserved(name));
        prop_assert!(reserved.is_none(), "{reserved:?} in the listing of {path:?}");
        prop_assert_eq!(&names, &expected, "listing of {:?} (left is the front end's)", path);
        for entry in listed {
            let path = path.join(&entry.name);
            let child = self.tree.node(id).entries[&entry.name];
            let name = [entry.name];
            let opened = front_end.open(&At { held: Some(handle), path: &name });
            let opened = opened.map_err(|errno| fail(&path, "open", errno))?;
            if self.tree.node(child).kind == Kind::Dir {
                self.compare_dir(front_end, &path, child, &opened, seen)?;
            } else {
                compare_node(front_end, &path, &self.tree, child, &opened, &mut self.seen, seen)?;
            }
            prop_assert_eq!(entry.kind, self.tree.node(child).kind, "kind in the listing of {:?}", path);
            prop_assert_eq!(entry.ino, self.seen.inodes[&child], "d_ino of {:?}", path);
        }
        Ok(())
    }
}

fn compare_node<D: FrontEnd>(
    front_end: &D,
    path: &Path,
    tree: &Tree,
    id: Id,
    handle: &D::Handle,
    known: &mut Seen,
    seen: &mut HashMap<u64, Id>,
) -> Check {
    let node = tree.node(id);
    let stat = front_end.stat(handle).map_err(|errno| fail(path, "stat", errno))?;
    prop_assert_eq!(stat.kind, node.kind, "kind of {:?}", path);
    prop_assert_eq!((stat.uid, stat.gid), (node.owner.uid, node.owner.gid), "owner of {:?}", path);
    if node.kind != Kind::Symlink {
        prop_assert_eq!(stat.mode, node.mode, "mode of {:?}: {:o} {:o}", path, stat.mode, node.mode);
    }
    if node.kind == Kind::Dir {
        prop_assert_eq!(stat.nlink == 0, node.names == 0, "nlink of {:?}", path);
    } else {
        prop_assert_eq!(stat.nlink, node.names + node.unseen, "nlink of {:?}", path);
    }
    if let Some((sec, nsec)) = node.mtime {
        prop_assert_eq!(stat.mtime, Time { sec, nsec }, "mtime of {:?}", path);
    }
    match known.ctimes.insert(id, (node.changes, stat.ctime)) {
        Some((changes, ctime)) if changes == node.changes => {
            prop_assert_eq!(stat.ctime, ctime, "ctime of {:?} has changed", path);
        }
        _ => {}
    }
    if tree.rules.xattrs {
        let xattrs = front_end.xattrs(handle).map_err(|errno| fail(path, "listxattr", errno))?;
        prop_assert_eq!(&xattrs, &node.xattrs, "extended attributes of {:?}", path);
    }
    if node.kind == Kind::Symlink {
        let target = front_end.read_link(handle).map_err(|errno| fail(path, "readlink", errno))?;
        prop_assert_eq!(&target, &node.target, "target of {:?}", path);
        prop_assert_eq!(stat.size, target.len() as u64, "size of {:?}", path);
    } else {
        prop_assert_eq!(front_end.read_link(handle), Err(EINVAL), "readlink of {:?}", path);
    }
    if node.kind == Kind::File {
        prop_assert_eq!(stat.size, node.data.len() as u64, "size of {:?}", path);
        let bytes = front_end.read(handle, 0, node.data.len() + 10).map_err(|errno| fail(path, "read", errno))?;
        let differs = bytes.iter().zip(node.data.iter()).position(|(real, expected)| real != expected);
        prop_assert!(bytes == *node.data, "contents of {path:?}: {} bytes, differ at {differs:?}", bytes.len());
    }
    let number = *known.inodes.entry(id).or_insert(stat.ino);
    prop_assert_eq!(stat.ino, number, "st_ino of {:?} has changed", path);
    let other = *seen.entry(stat.ino).or_insert(id);
    prop_assert_eq!(other, id, "{:?} has the st_ino of another object", path);
    Ok(())
}

fn is_reserved(name: &OsStr) -> bool {
    use std::os::unix::ffi::OsStrExt;
    name.as_bytes().starts_with(MARKER.as_bytes())
}

fn fail(path: &Path, what: &str, errno: i32) -> TestCaseError {
    TestCaseError::fail(format!("{what} of {path:?} answers {}", errno_name(errno)))
}

fn errno_name(errno: i32) -> String {
    let text = overlayfs::errno::Error::new(errno).to_string();
    format!("{errno} ({text})")
}

fn show(place: &Place) -> String {
    let path: PathBuf = place.path.iter().collect();
    match place.held {
        Some(slot) => format!("#{slot}:{}", path.display()),
        None => path.display().to_string(),
    }
}

/// Formats a layer, one line for each object in it.
struct Shown<'a>(&'a Object);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut result = Ok(());
        layer::walk(self.0, &mut |path, object| {
            let what = match &object.body {
                layer::Body::File(bytes) => format!("file of {} bytes, number {}", bytes.len(), object.id),
                layer::Body::Symlink(target) => format!("symlink to {}", target.display()),
                layer::Body::Node(kind) => format!("{kind:?}"),
                layer::Body::Dir(dir) => {
                    let opaque = if dir.opaque { ", opaque" } else { "" };
                    let redirect = dir.redirect.as_ref().map(|to| format!(", redirect to {}", to.display()));
                    format!("dir, whiteouts {:?}{opaque}{}", dir.whiteouts, redirect.unwrap_or_default())
                }
            };
            if result.is_ok() {
                result = writeln!(f, "  /{} {what}", path.display());
            }
        });
        result
    }
}
