//! An overlay goes on in the place of another one, as a new daemon does: the objects in use come as
//! bytes, and all else from the layers. Also with a failure at each call of a layer.
//!
//! Needs root.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::AsFd;
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::thread;

use overlayfs::errno::{EINVAL, EIO, ESTALE};
use overlayfs::layer::counted::{Counted, Counts, Fault};
use overlayfs::layer::linux::{self, locks};
use overlayfs::layer::{Kind, OsLayer, Owner, RenameMode};
use overlayfs::overlay::{DirEntry, Handle, Handover, Layers, Node, Overlay, Refused, Settings};
use test_common::{Setup, put};

type Counting = Counted<OsLayer>;
type Engine = Overlay<Counting>;

const OWN: Owner = Owner { uid: 0, gid: 0 };

/// The locks of layers that a process passes on are those of all its overlays. So only one test
/// has overlays at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn setup() -> Setup {
    let setup = Setup::in_memory();
    let lower = setup.dir("lower");
    put::file(&lower, "dir/file", "old");
    put::file(&lower, "dir/below", "below");
    put::file(&lower, "large", vec![7; 3 << 20]);
    put::file(&lower, "one", "both");
    fs::hard_link(lower.join("one"), lower.join("other")).unwrap();
    ["upper", "work"].iter().for_each(|name| drop(setup.dir(name)));
    setup
}

fn mount(setup: &Setup, counts: &Counts, succeeds: bool) -> Result<Engine, Refused> {
    let (upper, work) = OsLayer::open_pair(&setup.path("upper"), &setup.path("work")).unwrap();
    let [upper, work] = [upper, work].map(|layer| Counted::new(layer, counts));
    let lowers = vec![Counted::new(OsLayer::open(&setup.path("lower"), false).unwrap(), counts)];
    let layers = Layers { upper: Some(upper), work: Some(work), lowers };
    Overlay::with_settings(layers, Settings { succeeds, ..Settings::default() })
}

fn find(overlay: &Engine, path: &str) -> Arc<Node<Counting>> {
    path.split('/').fold(overlay.root().clone(), |dir, name| overlay.lookup(&dir, OsStr::new(name)).unwrap())
}

fn read(overlay: &Engine, handle: &Handle<Counting>) -> Vec<u8> {
    let mut bytes = vec![0; 100];
    let read = overlay.read_at(handle, &mut bytes, 0).unwrap();
    bytes.truncate(read);
    bytes
}

fn write(overlay: &Engine, path: &str, text: &str) {
    let handle = overlay.open(&find(overlay, path));
    overlay.truncate(handle.node(), 0).unwrap();
    overlay.write_at(&handle, text.as_bytes(), 0).unwrap();
}

/// Returns number, links, times of change and content of each path.
fn tree(overlay: &Engine) -> BTreeMap<String, (u64, u32, [i64; 4], Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![(overlay.root().clone(), String::new())];
    while let Some((dir, path)) = dirs.pop() {
        let mut names = Vec::new();
        let add = &mut |entry: DirEntry<'_>| {
            names.push(entry.name.to_owned());
            true
        };
        overlay.list(&overlay.open(&dir), 0, add).unwrap();
        for name in names {
            let node = overlay.lookup(&dir, &name).unwrap();
            let stat = overlay.stat(&node).unwrap();
            let path = format!("{path}/{}", name.display());
            let content = if stat.kind == Kind::File { read(overlay, &overlay.open(&node)) } else { Vec::new() };
            let times = [stat.mtime.sec, stat.mtime.nsec.into(), stat.ctime.sec, stat.ctime.nsec.into()];
            let links = if stat.kind == Kind::Dir { 0 } else { stat.nlink };
            found.insert(path.clone(), (stat.ino, links, times, content));
            if stat.kind == Kind::Dir {
                dirs.push((node, path));
            }
        }
    }
    found
}

/// The objects that a front end has open: with a name, without one, not named yet, removed from a
/// lower layer, and a removed directory.
struct Held([Handle<Counting>; 5]);

impl Held {
    fn nodes(&self) -> Vec<Arc<Node<Counting>>> {
        self.0.iter().map(|handle| handle.node().clone()).collect()
    }

    fn ids(&self) -> [u64; 5] {
        self.0.each_ref().map(|handle| handle.node().id())
    }
}

fn work(overlay: &Engine) -> Held {
    write(overlay, "one", "by one name");
    write(overlay, "dir/file", "new");
    // A partial copy.
    overlay.write_at(&overlay.open(&find(overlay, "large")), b"new", 1 << 20).unwrap();
    let unlinked = overlay.create_file(overlay.root(), OsStr::new("gone"), 0o640, OWN).unwrap();
    overlay.write_at(&unlinked, b"nameless", 0).unwrap();
    overlay.unlink(overlay.root(), OsStr::new("gone")).unwrap();
    let temporary = overlay.create_temp(overlay.root(), 0o600, OWN).unwrap();
    overlay.write_at(&temporary, b"unnamed", 0).unwrap();
    let orphan = overlay.open(&find(overlay, "dir/below"));
    overlay.unlink(&find(overlay, "dir"), OsStr::new("below")).unwrap();
    let removed = overlay.open(&overlay.create_dir(overlay.root(), OsStr::new("removed"), 0o755, OWN).unwrap());
    overlay.remove_dir(overlay.root(), OsStr::new("removed")).unwrap();
    let dir = find(overlay, "dir");
    overlay
        .rename(overlay.root(), OsStr::new("dir"), overlay.root(), OsStr::new("moved"), RenameMode::Replace)
        .unwrap();
    Held([overlay.open(&overlay.lookup(&dir, OsStr::new("file")).unwrap()), unlinked, temporary, orphan, removed])
}

/// Makes the overlay that goes on with the objects of another one.
fn succeed(setup: &Setup, counts: &Counts, before: &Engine, held: &[Arc<Node<Counting>>]) -> Result<Engine, Refused> {
    before.write_facts()?;
    let plan = before.plan_handover(held)?;
    let mut kept = Vec::new();
    let bytes = before.pack(&plan, &mut |file| {
        kept.push(file.as_fd().try_clone_to_owned().unwrap());
        Ok(kept.len() as u64 - 1)
    })?;
    locks::inherit(locks::held()?);
    let next = mount(setup, counts, true);
    locks::inherit(Vec::new());
    let next = next.inspect_err(|_| locks::lock_again().unwrap())?;
    let mut kept: Vec<_> = kept.into_iter().map(Some).collect();
    let take = &mut |number: u64| kept.get_mut(number as usize)?.take().map(linux::File::from);
    next.succeed(Handover::unpack(&bytes, take)?, None);
    Ok(next)
}

/// Leaves an overlay to its successor, as a process that ends does.
fn leave(overlay: Engine) {
    overlay.give_up();
    drop(overlay);
    // The drop has unlocked what both have locked.
    locks::lock_again().unwrap();
}

/// Checks that the objects with these ids go on.
fn go_on(overlay: &Engine, ids: [u64; 5]) {
    let [named, unlinked, temporary, orphan, removed] = ids.map(|id| overlay.find_again(id).unwrap());
    assert_eq!(named.node().id(), find(overlay, "moved/file").id());
    assert_eq!(read(overlay, &named), b"new");
    overlay.write_at(&unlinked, b"NAME", 0).unwrap();
    assert_eq!(read(overlay, &unlinked), b"NAMEless");
    assert_eq!(read(overlay, &orphan), b"below");
    assert_eq!(overlay.stat(removed.node()).unwrap().nlink, 0);
    let other = overlay.create_temp(overlay.root(), 0o600, OWN).unwrap();
    overlay.link(temporary.node(), overlay.root(), OsStr::new("named")).unwrap();
    drop(other);
    assert_eq!(read(overlay, &overlay.open(&find(overlay, "named"))), b"unnamed");
    write(overlay, "other", "by the other name");
    assert_eq!(read(overlay, &overlay.open(&find(overlay, "one"))), b"by the other name");
    assert_eq!(overlay.find_again(u64::MAX).err().map(|error| error.errno), Some(ESTALE));
}

#[test]
fn all_goes_on_after_bytes() {
    let _alone = alone();
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts, false).unwrap();
    let held = work(&overlay);
    let (expected, ids) = (tree(&overlay), held.ids());
    let next = succeed(&setup, &counts, &overlay, &held.nodes()).unwrap();
    drop(held);
    leave(overlay);
    assert!(matches!(mount(&setup, &counts, false), Err(Refused::Held(_))), "the layers are not locked");
    assert_eq!(tree(&next), expected);
    go_on(&next, ids);
    let after = tree(&next);
    drop(next);
    assert_eq!(tree(&mount(&setup, &counts, false).unwrap()), after);
    assert!(
        fs::read_dir(setup.path("work"))
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_str().unwrap().starts_with("tmp.") })
    );
}

#[test]
fn a_name_that_no_lookup_has_met_leads_to_its_object() {
    let _alone = alone();
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts, false).unwrap();
    write(&overlay, "one", "by one name");
    let held = overlay.open(&find(&overlay, "one"));
    overlay.unlink(overlay.root(), OsStr::new("one")).unwrap();
    let before = overlay.stat(held.node()).unwrap();
    let id = held.node().id();
    let mut next = succeed(&setup, &counts, &overlay, &[held.node().clone()]).unwrap();
    drop(held);
    leave(overlay);
    for _ in 0..2 {
        let other = find(&next, "other");
        assert_eq!((other.id(), next.stat(&other).unwrap()), (id, before));
        let after = succeed(&setup, &counts, &next, std::slice::from_ref(&other)).unwrap();
        drop(other);
        leave(std::mem::replace(&mut next, after));
    }
}

/// One thread finds an object again while another one renames or removes it.
#[test]
fn an_object_is_found_while_it_loses_its_name() {
    let _alone = alone();
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts, false).unwrap();
    let dirs: Vec<_> = (0..400).map(|number| OsString::from(format!("dir {number}"))).collect();
    let file = OsStr::new("file");
    let make = |name: &OsString| {
        let dir = overlay.create_dir(overlay.root(), name, 0o700, OWN).unwrap();
        overlay.create_file(&dir, file, 0o600, OWN).unwrap()
    };
    let held: Vec<_> = dirs.iter().map(make).collect();
    let nodes: Vec<_> = held.iter().map(|handle| handle.node().clone()).collect();
    let next = succeed(&setup, &counts, &overlay, &nodes).unwrap();
    let ids: Vec<_> = nodes.iter().map(|node| node.id()).collect();
    drop((held, nodes));
    leave(overlay);
    let (root, together) = (next.root(), Barrier::new(2));
    let change = |(index, dir): (usize, &OsString)| {
        together.wait();
        let dir = next.lookup(root, dir)?;
        match index % 2 {
            0 => next.unlink(&dir, file),
            _ => next.rename(&dir, file, &dir, OsStr::new("new"), RenameMode::Replace),
        }
    };
    let find = |id: &u64| {
        together.wait();
        next.find_again(*id).map(|handle| handle.node().id())
    };
    let found: Vec<_> = thread::scope(|scope| {
        let changing = scope.spawn(|| dirs.iter().enumerate().map(change).collect::<Vec<_>>());
        let found = ids.iter().map(find).collect();
        assert!(changing.join().unwrap().iter().all(|changed| *changed == Ok(())));
        found
    });
    assert_eq!(found, ids.iter().map(|id| Ok(*id)).collect::<Vec<_>>());
}

/// Each name in the lower layer is gone, so the next mount has no use for the index entry. But
/// nothing else leads to the open object.
#[test]
fn an_open_object_keeps_its_index_entry() {
    let _alone = alone();
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts, false).unwrap();
    write(&overlay, "one", "by one name");
    overlay.link(&find(&overlay, "one"), overlay.root(), OsStr::new("new")).unwrap();
    overlay.unlink(overlay.root(), OsStr::new("one")).unwrap();
    drop(overlay);
    let overlay = mount(&setup, &counts, false).unwrap();
    let held = overlay.open(&find(&overlay, "other"));
    overlay.unlink(overlay.root(), OsStr::new("other")).unwrap();
    let (before, id) = (overlay.stat(held.node()).unwrap(), held.node().id());
    assert_eq!(before.nlink, 1);
    let next = succeed(&setup, &counts, &overlay, &[held.node().clone()]).unwrap();
    drop(held);
    leave(overlay);
    let again = next.find_again(id).unwrap();
    assert_eq!((read(&next, &again), next.stat(again.node()).unwrap()), (b"by one name".to_vec(), before));
    assert_eq!(find(&next, "new").id(), id);
}

#[test]
fn the_overlay_goes_on_after_a_failure_at_any_call() {
    let _alone = alone();
    for calls in 0.. {
        let (setup, counts) = (setup(), Counts::default());
        let overlay = mount(&setup, &counts, false).unwrap();
        let held = work(&overlay);
        let (expected, ids) = (tree(&overlay), held.ids());
        counts.fault_after(calls, Fault::Errno(EIO));
        let made = succeed(&setup, &counts, &overlay, &held.nodes());
        let is_struck = counts.struck().is_some();
        counts.fault_after(u64::MAX, Fault::Stop);
        match made {
            Ok(next) => {
                drop(held);
                leave(overlay);
                go_on(&next, ids);
            }
            Err(_) => {
                assert_eq!(tree(&overlay), expected, "after a failure of call {calls}");
                assert_eq!(read(&overlay, &held.0[1]), b"nameless");
                assert!(matches!(mount(&setup, &counts, false), Err(Refused::Held(_))), "the layers are not locked");
                let next = succeed(&setup, &counts, &overlay, &held.nodes())
                    .unwrap_or_else(|error| panic!("{calls}: {error}"));
                drop(held);
                leave(overlay);
                assert_eq!(tree(&next), expected, "after a failure of call {calls}");
                go_on(&next, ids);
            }
        }
        if !is_struck {
            return;
        }
    }
}

#[test]
fn damaged_bytes_are_errors() {
    let _alone = alone();
    let (setup, counts) = (setup(), Counts::default());
    let overlay = mount(&setup, &counts, false).unwrap();
    let held = work(&overlay);
    let plan = overlay.plan_handover(&held.nodes()).unwrap();
    let bytes = overlay.pack(&plan, &mut |_| Ok(0)).unwrap();
    let unpack = |bytes: &[u8]| Handover::<Counting>::unpack(bytes, &mut |_| None).err().map(|error| error.errno);
    for length in 0..=bytes.len() {
        assert_eq!(unpack(&bytes[..length]), Some(EINVAL), "{length} bytes");
    }
    for index in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[index] ^= 0x80;
        let _may_be_other_values = unpack(&damaged);
    }
}
