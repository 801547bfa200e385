//! Several threads with random operations on few names at once, through any front end. One sequence
//! of operations must explain all their answers. In it, an operation never comes before one that
//! had ended when it began.
//!
//! A round is a few operations of each thread, which start at once. Then the threads rest, and the
//! test looks at the whole tree. The next round starts from the order found. After some rounds the
//! test checks the layers and mounts them again.
//!
//! The operations are the same in every run, but the way they overlap is not. A failure prints the
//! round.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
#[cfg(not(shuttle))]
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(shuttle))]
use std::thread::scope;
use std::time::Duration;

use linux_delegate::abi::Maker;
use overlayfs::errno::ESTALE;
use overlayfs::layer::Stat;
#[cfg(shuttle)]
use shuttle::{sync::Barrier, thread::scope};
use test_common::Random;

use crate::backing::Backing;
use crate::front_end::{At, FrontEnd};
use crate::history::{Answer, Event, Farthest, Op, Scene, Seen, State, explain};
use crate::layer::{self, Body, Dir, Meta, Object, Written};
use crate::mounted::Fate;
use crate::run::{Mount, Stacked};
use crate::tree::{Data, Id, Node, Place, Rules, Tree};
use crate::{Kind, Owner, RenameMode};

/// The amount of work.
#[derive(Clone, Copy)]
pub struct Size {
    pub threads: usize,
    /// The number of operations of a thread in a round.
    pub ops: usize,
    /// The number of rounds between two mounts.
    pub rounds: usize,
    /// The number of mounts of one stack of layers.
    pub mounts: usize,
    /// Whether renames can exchange.
    pub exchanges: bool,
    /// Whether one file of the lower layers is large, with operations far behind its start.
    pub large: bool,
    /// Whether ranges of files can be copied and reserved, files need no name, and renames can
    /// leave a device if the format has them.
    pub linux: bool,
    /// The format of the upper layer.
    pub written: Written,
    /// What happens beside the operations, which are then system calls on a mount, with pauses
    /// between them. No listing is one step there.
    pub mounted: Option<Fate>,
}

impl Size {
    fn devices(&self) -> bool {
        self.linux && self.written == Written::Native
    }
}

/// The number of open objects of each thread. The first are directories.
const HELD: usize = 6;
const HELD_DIRS: usize = 3;
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// The size of a large file, which gets a partial copy at a change.
const LARGE: usize = (1 << 20) + 5;

/// A directory whose names stay.
const KEPT: &str = "kept";

/// Makes two layers with names that merge, hide and link. With kills the large file keeps a name,
/// and no file has several: `docs/restart.md` has the reasons.
fn lowers(large: bool, kills: bool) -> Vec<Object> {
    let mut ids = 0;
    let mut object = |body| {
        ids += 1;
        let mode = if matches!(body, Body::Dir(_)) { 0o755 } else { 0o644 };
        Object { meta: Meta { mode, uid: 0, gid: 0, mtime: (1, 1) }, id: ids, body }
    };
    let dir = |entries: Vec<(&str, Object)>| {
        let entries: BTreeMap<_, _> = entries.into_iter().map(|(name, entry)| (name.into(), entry)).collect();
        Body::Dir(Dir { entries, ..Dir::default() })
    };
    let file = |text: &str| Body::File(text.into());
    let of_last = (0..if large { LARGE } else { 0 }).map(|at| (at % 251) as u8).collect();
    let linked = object(file("links"));
    let alone = if kills { object(file("alone")) } else { linked.clone() };
    let below = [("a", object(file("below"))), ("b", alone), ("e", object(dir(vec![])))];
    let below = object(dir(below.into()));
    let last = object(Body::File(of_last));
    let (kept, deep) = if kills { (vec![("c", last)], vec![]) } else { (vec![], vec![("c", last)]) };
    let deep = [vec![("a", object(file("deep")))], deep].concat();
    let (deep, kept) = (object(dir(deep)), object(dir(kept)));
    let bottom = [("a", object(file("bottom"))), ("b", linked), ("c", object(file("gone"))), ("d", below), ("e", deep)];
    let bottom = [Vec::from(bottom), if kills { vec![(KEPT, kept)] } else { vec![] }].concat();
    let bottom = object(dir(bottom));
    let above = [("a", object(file("above"))), ("d", object(dir(vec![])))];
    let above = object(dir(above.into()));
    let top = [("d", above), ("a", object(file("top")))];
    let mut top = object(dir(top.into()));
    if let Some(dir) = top.dir_mut() {
        dir.whiteouts.insert("c".into());
    }
    vec![top, bottom]
}

/// Lets threads work on one stack of layers, each through a front end of its own, which `mount`
/// opens.
pub fn check<D: FrontEnd<Handle: Send> + Send>(
    seed: u64,
    size: Size,
    mut backing: Box<dyn Backing>,
    mount: Mount<'_, Vec<D>>,
) {
    let mut dice = Random(seed);
    let layers = lowers(size.large, size.mounted == Some(Fate::Kills));
    let mut paths = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let path = backing.layer(&format!("lower{number}"));
        layer::write(&*backing, layer, &path);
        backing.guard(&path);
        paths.push(path);
    }
    let upper = backing.layer("upper");
    backing.set_meta(&upper, &layers[0].meta);
    let merged = layer::merge(&layers);
    let rules = Rules { reserves: true, devices: size.devices(), follows: false, xattrs: false, name_max: 255 };
    let tree = Tree::new(&merged, &layer::linked(layers.iter()), rules);
    let mut state = State { tree, numbers: BTreeMap::new(), listings: BTreeMap::new(), mounted: size.mounted };
    for _ in 0..size.mounts {
        let known_max = (dice.below(2) == 0).then(|| dice.below(10));
        let maker = Maker::Lives;
        let front_ends = mount(&Stacked { lowers: &paths, upper: &upper, known_max, changed: false, maker });
        state = rounds(front_ends, state, size, &mut dice).unwrap_or_else(|said| panic!("seed {seed}: {said}"));
        check_layers(&*backing, &layers, &upper, &state.tree, size);
    }
    backing.check();
}

/// The parts of one thread: for a round, and for all of them.
struct Thread<D: FrontEnd> {
    handles: BTreeMap<usize, D::Handle>,
    front_end: D,
    events: Vec<Event>,
}

/// Runs all rounds and returns the state after them. The error describes a round without an
/// explanation.
fn rounds<D: FrontEnd<Handle: Send> + Send>(
    front_ends: Vec<D>,
    mut state: State,
    size: Size,
    dice: &mut Random,
) -> Result<State, String> {
    assert_eq!(front_ends.len(), size.threads);
    let mut threads: Vec<_> = front_ends
        .into_iter()
        .map(|front_end| Thread { handles: BTreeMap::new(), front_end, events: Vec::new() })
        .collect();
    for _ in 0..size.rounds {
        for (number, thread) in threads.iter_mut().enumerate() {
            hold(number, thread, &mut state, dice);
        }
        let frozen = (size.mounted == Some(Fate::Rollbacks)).then(|| freeze(&mut threads[0], &state)).flatten();
        let plans: Vec<_> = (0..size.threads).map(|number| plan(number, size, dice)).collect();
        let (barrier, clock) = (Barrier::new(size.threads), AtomicU64::new(0));
        let beside = threads[0].front_end.beside();
        scope(|scope| {
            for (thread, plan) in threads.iter_mut().zip(plans) {
                let (barrier, clock) = (&barrier, &clock);
                scope.spawn(move || {
                    barrier.wait();
                    thread.events = plan.into_iter().flat_map(|(pause, op)| thread.ask(pause, op, clock)).collect();
                });
            }
            if let Some(work) = beside {
                work();
            }
        });
        let events: Vec<_> = threads.iter_mut().map(|thread| std::mem::take(&mut thread.events)).collect();
        let end = look(&threads);
        state = explain(&state, &events, &end).map_err(|far| {
            let said = "no order of these operations explains the answers and the end; the longest has no marks";
            format!("{said}.\n{}", told(&state, &events, &far, &end))
        })?;
        forget(&mut state);
        if let Some(frozen) = frozen.filter(|_| dice.below(2) == 0) {
            let all = Farthest { events: vec![usize::MAX; size.threads], difference: None };
            let told = told(&frozen, &events, &all, &end);
            state = roll_back(&mut threads, state, frozen).map_err(|wrong| format!("{wrong}\n{told}"))?;
            if let Some(difference) = state.differs(&look(&threads)) {
                return Err(format!("after a rollback {difference}\n{told}"));
            }
        }
    }
    let difference = state.differs(&look(&threads));
    assert_eq!(difference, None, "the tree changes without an operation");
    state.tree.handles.clear();
    // Numbers from a counter last for one mount.
    state.numbers.retain(|_, number| *number < 1 << 63);
    Ok(state)
}

/// Takes a snapshot. Returns what it has, if the front end makes one.
fn freeze<D: FrontEnd>(thread: &mut Thread<D>, state: &State) -> Option<State> {
    thread.front_end.snapshot(&mut thread.handles).ok().map(|_| state.clone())
}

/// Goes back to a snapshot. The error names an open object that is lost or stays against the rules.
fn roll_back<D: FrontEnd>(threads: &mut [Thread<D>], present: State, frozen: State) -> Result<State, String> {
    threads[0].front_end.roll_back().unwrap_or_else(|errno| panic!("rollback: {errno}"));
    let (mut state, before) =
        (State { tree: Tree { handles: BTreeMap::new(), ..frozen.tree }, ..frozen }, present.tree);
    for thread in threads {
        let mut wrong: Option<String> = None;
        thread.handles.retain(|slot, handle| {
            let id = before.handles[slot];
            let stays = !is_lost(&thread.front_end, handle);
            if stays_in(&state.tree, &before, id).is_some_and(|expected| stays != expected) {
                wrong.get_or_insert(format!("object {id}, held as {slot}, stays in a rollback: {stays}"));
            }
            if stays {
                state.tree.handles.insert(*slot, id);
            }
            stays
        });
        wrong.map_or(Ok(()), Err)?;
    }
    Ok(state)
}

/// Whether an open object stays in a rollback. It does if the snapshot has it, and it has not been
/// removed since. A file must not have changed, except that it lost a name. None: both are right.
fn stays_in(frozen: &Tree, present: &Tree, id: Id) -> Option<bool> {
    let Some(then) = frozen.nodes.get(id) else { return Some(false) };
    let now = present.node(id);
    let has_names = |node: &Node| node.names + node.unseen > 0;
    let is_same = then.kind == Kind::Dir || then.changes + then.names == now.changes + now.names;
    let stays = has_names(then) && has_names(now) && is_same;
    (!stays || then.empty_copies == now.empty_copies).then_some(stays)
}

/// Whether an open object was left aside by a rollback.
fn is_lost<D: FrontEnd>(front_end: &D, handle: &D::Handle) -> bool {
    match front_end.stat(handle) {
        Ok(stat) if stat.kind == Kind::File => front_end.read(handle, 0, 1).is_err_and(|errno| errno == ESTALE),
        Ok(_) => false,
        Err(errno) => errno == ESTALE,
    }
}

/// Opens the objects of a thread for the next round.
fn hold<D: FrontEnd>(number: usize, thread: &mut Thread<D>, state: &mut State, dice: &mut Random) {
    let paths = state.tree.paths();
    for index in 0..HELD {
        let wants_dir = index < HELD_DIRS;
        // Some objects stay open from the round before, and may have been moved or removed since.
        if thread.handles.contains_key(&slot(number, index)) && dice.below(3) == 0 {
            continue;
        }
        let fit: Vec<_> = paths
            .iter()
            .filter(|(path, id)| (state.tree.node(*id).kind == Kind::Dir) == wants_dir && path != Path::new(KEPT))
            .collect();
        let (path, id) = if fit.is_empty() { &paths[0] } else { *dice.one_of(&fit) };
        let names: Vec<_> = path.iter().map(OsStr::to_owned).collect();
        let handle = thread.front_end.open(&At { held: None, path: &names });
        let handle = handle.unwrap_or_else(|errno| panic!("{}: {errno}", path.display()));
        thread.handles.insert(slot(number, index), handle);
        state.tree.handles.insert(slot(number, index), *id);
    }
}

/// Returns the slot of an open object of a thread.
fn slot(thread: usize, index: usize) -> usize {
    thread * HELD + index
}

/// Returns the operations of a thread, each with the pause before it.
fn plan(number: usize, size: Size, dice: &mut Random) -> Vec<(Duration, Op)> {
    let place = |dice: &mut Random| {
        let held = Some(slot(number, dice.below(HELD_DIRS)));
        Place { held, path: vec![OsString::from(*dice.one_of(&NAMES))] }
    };
    let file = |dice: &mut Random| slot(number, HELD_DIRS + dice.below(HELD - HELD_DIRS));
    let any = |dice: &mut Random| slot(number, dice.below(HELD));
    let offset = |dice: &mut Random| {
        let far = size.large && dice.below(6) == 0;
        dice.below(8) + if far { *dice.one_of(&[100_000, LARGE - 5]) } else { 0 }
    };
    let op = |dice: &mut Random| match dice.below(if size.linux { 30 } else { 25 }) {
        0..4 => Op::Open(file(dice), place(dice)),
        4..6 => {
            Op::Create(place(dice), *dice.one_of(&[Kind::File, Kind::File, Kind::Dir]), 0o600 + dice.below(8) as u32)
        }
        6 => Op::Link(file(dice), place(dice)),
        7..9 => Op::Unlink(place(dice)),
        9 => Op::RemoveDir(place(dice)),
        10..14 => {
            let modes = [RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
            let modes = if size.exchanges { &modes[..] } else { &modes[..3] };
            let leaves = size.devices() && dice.below(5) == 0;
            let mode = if leaves { RenameMode::Whiteout } else { *dice.one_of(modes) };
            Op::Rename(place(dice), place(dice), mode)
        }
        14..17 => Op::Stat(any(dice)),
        17..19 => Op::Read(file(dice), offset(dice)),
        19 => Op::Write(file(dice), Some(offset(dice)), b'0' + number as u8),
        20 => Op::Write(file(dice), None, b'0' + number as u8),
        21 => Op::Truncate(file(dice), offset(dice)),
        22 => Op::SetMode(any(dice), 0o700 + dice.below(8) as u32),
        23 => Op::Sync(any(dice)),
        24 if size.mounted.is_some() => Op::EndList(slot(number, dice.below(HELD_DIRS))),
        24 => Op::List(slot(number, dice.below(HELD_DIRS))),
        25..27 => Op::CopyByte((file(dice), offset(dice)), (file(dice), offset(dice))),
        27 => Op::Reserve(file(dice), 1 + offset(dice)),
        _ => Op::Temp(file(dice), slot(number, dice.below(HELD_DIRS)), 0o600 + dice.below(8) as u32),
    };
    let pause = |dice: &mut Random| if size.mounted.is_some() { dice.below(30) } else { 0 };
    (0..size.ops).map(|_| (Duration::from_millis(pause(dice) as u64), op(dice))).collect()
}

impl<D: FrontEnd> Thread<D> {
    fn at<'a>(&'a self, place: &'a Place) -> At<'a, D::Handle> {
        At { held: place.held.map(|slot| &self.handles[&slot]), path: &place.path }
    }

    /// Makes an operation. Its events are one, or the start and the end.
    fn ask(&mut self, pause: Duration, op: Op, clock: &AtomicU64) -> Vec<Event> {
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        let asked = clock.fetch_add(1, Ordering::SeqCst);
        let mut opened = None;
        let answer = self.answer(&op, &mut opened).unwrap_or_else(Answer::Failed);
        let answered = clock.fetch_add(1, Ordering::SeqCst);
        if let (Op::Open(slot, _) | Op::Temp(slot, ..), Some(handle)) = (&op, opened) {
            self.handles.insert(*slot, handle);
        }
        let event = |op, answer| Event { op, answer, asked, answered };
        match op {
            Op::EndList(slot) => vec![event(Op::BeginList(slot), Answer::Done), event(op, answer)],
            op => vec![event(op, answer)],
        }
    }

    fn answer(&self, op: &Op, opened: &mut Option<D::Handle>) -> crate::front_end::Result<Answer> {
        let Thread { front_end, handles, .. } = self;
        match op {
            Op::Open(_, place) => *opened = Some(front_end.open(&self.at(place))?),
            Op::Create(place, kind, mode) => {
                front_end.create(&self.at(place), *kind, *mode, Owner { uid: 0, gid: 0 }, OsStr::new(""))?;
            }
            Op::Temp(_, dir, mode) => {
                let dir = At { held: Some(&handles[dir]), path: &[] };
                *opened = Some(front_end.create_temp(&dir, *mode, Owner { uid: 0, gid: 0 })?);
            }
            Op::Link(slot, place) => front_end.link(&handles[slot], &self.at(place))?,
            Op::Unlink(place) => front_end.unlink(&self.at(place))?,
            Op::RemoveDir(place) => front_end.remove_dir(&self.at(place))?,
            Op::Rename(from, to, mode) => front_end.rename(&self.at(from), &self.at(to), *mode)?,
            Op::Stat(slot) => return front_end.stat(&handles[slot]).map(Answer::Stat),
            Op::Read(slot, offset) => return front_end.read(&handles[slot], *offset as u64, 1).map(Answer::Bytes),
            Op::Write(slot, offset, byte) => front_end.write(&handles[slot], offset.map(|at| at as u64), &[*byte])?,
            Op::Truncate(slot, size) => front_end.truncate(&handles[slot], *size as u64)?,
            Op::CopyByte((from, start), (to, end)) => {
                front_end.copy_byte(&handles[from], *start as u64, &handles[to], *end as u64)?;
            }
            Op::Reserve(slot, size) => front_end.reserve(&handles[slot], *size as u64)?,
            Op::SetMode(slot, mode) => front_end.set_mode(&handles[slot], *mode)?,
            Op::Sync(slot) => front_end.sync(&handles[slot])?,
            Op::List(slot) | Op::EndList(slot) => {
                let mut names = front_end.names(&handles[slot])?;
                names.sort();
                return Ok(Answer::Names(names));
            }
            Op::BeginList(_) => unreachable!("the end of a listing asks for all of it"),
        }
        Ok(Answer::Done)
    }
}

/// Looks at every object that has a name or is open.
fn look<D: FrontEnd>(threads: &[Thread<D>]) -> Scene {
    let stat = |thread: &Thread<D>, slot, handle| {
        let failed = |errno: i32| -> ! { panic!("stat of {slot}: {errno}") };
        let mut stat = thread.front_end.stat(handle).unwrap_or_else(|errno| failed(errno));
        stat.nlink = thread.front_end.links(handle).unwrap_or_else(|errno| failed(errno));
        let data = match stat.kind {
            Kind::Dir | Kind::CharDev => Vec::new(),
            _ => thread.front_end.read(handle, 0, 2 * LARGE).unwrap_or_else(|errno| panic!("read: {errno}")),
        };
        (stat, data)
    };
    let held = threads
        .iter()
        .flat_map(|thread| thread.handles.iter().map(move |(slot, held)| (*slot, stat(thread, *slot, held))));
    let (held, front_end) = (held.collect(), &threads[0].front_end);
    let mut seen = Vec::new();
    let mut paths = vec![Vec::new()];
    while let Some(path) = paths.pop() {
        let failed = |errno: i32| -> ! { panic!("{path:?}: {errno}") };
        let handle = front_end.open(&At { held: None, path: &path }).unwrap_or_else(|errno| failed(errno));
        let stat = front_end.stat(&handle).unwrap_or_else(|errno| failed(errno));
        let mut data = Vec::new();
        match stat.kind {
            Kind::Dir => {
                let listed = front_end.list(&handle, 7).unwrap_or_else(|errno| failed(errno));
                paths.extend(listed.into_iter().map(|entry| [&path[..], &[entry.name]].concat()));
            }
            Kind::CharDev => {}
            _ => data = front_end.read(&handle, 0, 2 * LARGE).unwrap_or_else(|errno| failed(errno)),
        }
        let links = front_end.links(&handle).unwrap_or_else(|errno| failed(errno));
        let path: PathBuf = path.iter().collect();
        seen.push(Seen { path, kind: stat.kind, mode: stat.mode, links, number: stat.ino, data });
    }
    seen.sort_by(|one, other| one.path.cmp(&other.path));
    Scene { seen, held }
}

/// Drops the numbers of removed objects.
fn forget(state: &mut State) {
    let tree = &state.tree;
    state.numbers.retain(|id, _| tree.node(*id).names > 0 || tree.handles.values().any(|held| held == id));
}

/// Panics unless the layers on disk, merged by the words of the format, match the reference. There
/// may be snapshots. Then names of a frozen layer show a copy of a layer above, which the layers
/// alone do not tell.
fn check_layers(backing: &dyn Backing, lowers: &[Object], upper: &Path, tree: &Tree, size: Size) {
    let snapshots = size.mounted.is_some();
    let chain = upper.with_added_extension("snapshots");
    let mut numbers: Vec<u64> = match snapshots {
        true => backing.names(&chain).iter().filter_map(|name| name.to_str()?.parse().ok()).collect(),
        false => Vec::new(),
    };
    numbers.sort_unstable();
    let frozen = numbers.iter().rev().map(|number| chain.join(number.to_string()).join("upper"));
    let mut ids = 1 << 32;
    let uppers = frozen.chain([upper.to_owned()]).map(|path| layer::read(backing, &path, size.written, &mut ids));
    let layers: Vec<_> = uppers.chain(lowers.iter().cloned()).collect();
    let mut expected: BTreeMap<_, _> = tree.paths().into_iter().collect();
    let merged = layer::merge(&layers);
    layer::walk(&merged, &mut |path, object| {
        let id = expected.remove(path).unwrap_or_else(|| panic!("the layers show {path:?}"));
        let node = tree.node(id);
        assert_eq!(object.kind(), node.kind, "{path:?} in the layers");
        if !node.linked_below && !(snapshots && node.linked) {
            assert_eq!(object.meta.mode, node.mode, "{path:?} in the layers");
            assert!(
                !matches!(&object.body, Body::File(bytes) if *bytes != *node.data),
                "contents of {path:?} in the layers"
            );
        }
    });
    assert!(expected.is_empty(), "the layers lack {expected:?}");
}

/// Describes a round. The events that are not among the farthest have a mark.
fn told(state: &State, threads: &[Vec<Event>], far: &Farthest, end: &Scene) -> String {
    let mut said = "before:\n".to_owned();
    let unlinked = state.tree.handles.values().filter(|id| state.tree.node(**id).names == 0);
    for (path, id) in state.tree.paths().into_iter().chain(unlinked.map(|id| (PathBuf::from("(unlinked)"), *id))) {
        let node = state.tree.node(id);
        let held: Vec<_> = state.tree.handles.iter().filter(|(_, held)| **held == id).map(|(slot, _)| slot).collect();
        let (text, number) = (&node.data, state.numbers.get(&id).copied().unwrap_or_default());
        let _ = writeln!(
            said,
            "  /{} {:?} {:o} ×{} {text:?} object {id}, number {number:x}, held as {held:?}",
            path.display(),
            node.kind,
            node.mode,
            node.names + node.unseen
        );
    }
    let of_thread = |(thread, all)| std::iter::repeat(thread).zip(all).enumerate();
    let mut events: Vec<_> = threads.iter().enumerate().flat_map(of_thread).collect();
    events.sort_by_key(|(_, (_, event))| event.asked);
    for (index, (thread, Event { op, answer, asked, answered })) in events {
        let mark = if index < far.events[thread] { ' ' } else { '!' };
        let answer = match answer {
            Answer::Stat(Stat { kind, mode, size, nlink, ino, .. }) => {
                format!("{kind:?} {mode:o} {size} bytes ×{nlink} number {ino:x}")
            }
            answer => format!("{answer:?}"),
        };
        let _ = writeln!(said, "{mark} {asked:3}-{answered:3} thread {thread}: {op:?} -> {answer}");
    }
    let _ = writeln!(said, "after:");
    for Seen { path, kind, mode, links, number, data } in &end.seen {
        let _ = writeln!(
            said,
            "  /{} {kind:?} {mode:o} ×{links} {:?} number {number:x}",
            path.display(),
            Data::from(data.clone())
        );
    }
    if let Some(difference) = &far.difference {
        let _ = writeln!(said, "At the end of one order that explains all answers: {difference}");
    }
    said
}
