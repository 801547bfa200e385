//! One visible step: wherever a change is cut off, as by a crash, a fresh mount shows the tree as it was before or as it is after it. In
//! both formats of the upper layer; on directories of the host, after any call of a layer, and on redoxfs, after any request. So it is too if what
//! the crash left is repaired first, and nothing that is found then is a loss.
//!
//! Needs root, for attributes in the namespace `trusted`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use linux_delegate::redoxfs::{Disk, Request};
use overlayfs::format::Wanted;
use overlayfs::fsck::Checker;
use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::layer::redox::RedoxLayer;
use overlayfs::layer::{Kind, Layer, OsLayer, Owner, RenameMode, Result};
use overlayfs::overlay::{Layers, Node, Overlay, Settings};
use test_common::{Stage, put};

const OWN: Owner = Owner { uid: 0, gid: 0 };

type NodeRef<L> = Arc<Node<L>>;

/// Where layers lie, and what can be cut off there.
trait Ground {
    type Layer: Layer;
    /// FIFOs can be made and renames can exchange.
    const FULL: bool;

    fn new() -> Self;
    /// Makes a file that holds its path.
    fn put_file(&self, layer: &str, path: &str);
    fn put_dir(&self, layer: &str, path: &str);
    fn open(&self, name: &str, for_writing: bool) -> Self::Layer;
    fn open_pair(&self, name: &str, other: &str) -> (Self::Layer, Self::Layer);
    /// How many calls there were since the last time.
    fn take_calls(&self) -> u64;
    /// After so many more calls nothing is done any more.
    fn stop_after(&self, calls: u64);
}

/// Directories of the host, whose calls are those of the layers.
struct Host {
    stage: Stage,
    counts: Counts,
}

impl Ground for Host {
    type Layer = Counted<OsLayer>;
    const FULL: bool = true;

    fn new() -> Self {
        Host { stage: Stage::new(), counts: Counts::default() }
    }

    fn put_file(&self, layer: &str, path: &str) {
        put::file(&self.stage.dir(layer), path, path);
    }

    fn put_dir(&self, layer: &str, path: &str) {
        put::dir(&self.stage.dir(layer), path);
    }

    fn open(&self, name: &str, for_writing: bool) -> Self::Layer {
        Counted::new(OsLayer::open(&self.stage.dir(name), for_writing).unwrap(), &self.counts)
    }

    fn open_pair(&self, name: &str, other: &str) -> (Self::Layer, Self::Layer) {
        let (first, second) = OsLayer::open_pair(&self.stage.dir(name), &self.stage.dir(other)).unwrap();
        (Counted::new(first, &self.counts), Counted::new(second, &self.counts))
    }

    fn take_calls(&self) -> u64 {
        self.counts.take().total()
    }

    fn stop_after(&self, calls: u64) {
        self.counts.stop_after(calls);
    }
}

/// A redoxfs, whose calls are the requests that it answers.
struct Redoxfs(Disk);

impl Ground for Redoxfs {
    type Layer = RedoxLayer;
    const FULL: bool = false;

    fn new() -> Self {
        let disk = Disk::redoxfs();
        for name in ["upper", "work", "lower", "bottom"] {
            disk.tree().put_dir(name);
        }
        Redoxfs(disk)
    }

    fn put_file(&self, layer: &str, path: &str) {
        self.0.tree().put_file(&format!("{layer}/{path}"), path);
    }

    fn put_dir(&self, layer: &str, path: &str) {
        self.0.tree().put_dir(&format!("{layer}/{path}"));
    }

    fn open(&self, name: &str, for_writing: bool) -> Self::Layer {
        RedoxLayer::open(Path::new(&self.0.path(name)), for_writing).unwrap()
    }

    fn open_pair(&self, name: &str, other: &str) -> (Self::Layer, Self::Layer) {
        let [name, other] = [name, other].map(|name| self.0.path(name));
        RedoxLayer::open_pair(Path::new(&name), Path::new(&other)).unwrap()
    }

    fn take_calls(&self) -> u64 {
        let requests = self.0.take_requests();
        requests.total() - requests.of(Request::Close)
    }

    fn stop_after(&self, calls: u64) {
        self.0.stop_after(calls);
    }
}

/// An overlay of the directories there.
fn mount<G: Ground>(ground: &G, format: Wanted) -> Overlay<G::Layer> {
    ground.stop_after(u64::MAX);
    let (upper, work) = ground.open_pair("upper", "work");
    let lowers = ["lower", "bottom"].map(|name| ground.open(name, false));
    let layers = Layers { upper: Some(upper), work: Some(work), lowers: lowers.into() };
    let settings = Settings { format: Some(format), ..Settings::default() };
    let overlay = Overlay::with_settings(layers, settings).unwrap();
    ground.take_calls();
    overlay
}

fn find<L: Layer>(overlay: &Overlay<L>, path: &str) -> Result<NodeRef<L>> {
    let mut names = path.split('/').filter(|name| !name.is_empty());
    names.try_fold(overlay.root().clone(), |dir, name| overlay.lookup(&dir, OsStr::new(name)))
}

/// The directory that an object is or is to be in, and its name.
fn entry<'p, L: Layer>(overlay: &Overlay<L>, path: &'p str) -> Result<(NodeRef<L>, &'p OsStr)> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((find(overlay, dir)?, OsStr::new(name)))
}

/// All that there is in the tree, by path: kinds, modes, owners, contents and targets.
fn tree<L: Layer>(overlay: &Overlay<L>) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut nodes = vec![(PathBuf::new(), overlay.root().clone())];
    while let Some((path, node)) = nodes.pop() {
        let stat = overlay.stat(&node).unwrap();
        let mut said = format!("{:?} {:o} {}:{}", stat.kind, stat.mode, stat.uid, stat.gid);
        match stat.kind {
            Kind::File => {
                let mut bytes = vec![0; 100];
                let read = overlay.read_at(&overlay.open(&node), &mut bytes, 0).unwrap();
                said += &format!(" {} {}", stat.size, String::from_utf8_lossy(&bytes[..read]));
            }
            Kind::Symlink => said += &format!(" to {:?}", overlay.read_link(&node).unwrap()),
            Kind::Dir => {
                let mut names = Vec::new();
                let mut each = |entry: overlayfs::overlay::DirEntry<'_>| {
                    names.push(entry.name.to_owned());
                    true
                };
                overlay.list(&overlay.open(&node), 0, &mut each).unwrap();
                for name in names {
                    nodes.push((path.join(&name), overlay.lookup(&node, &name).unwrap()));
                }
            }
            _ => {}
        }
        all.insert(path, said);
    }
    all
}

type Change<L> = (&'static str, fn(&Overlay<L>) -> Result<()>);

fn rename<L: Layer>(overlay: &Overlay<L>, from: &str, to: &str, mode: RenameMode) -> Result<()> {
    let ((dir, name), (new_dir, new_name)) = (entry(overlay, from)?, entry(overlay, to)?);
    overlay.rename(&dir, name, &new_dir, new_name, mode)
}

fn unlink<L: Layer>(overlay: &Overlay<L>, path: &str) -> Result<()> {
    let (dir, name) = entry(overlay, path)?;
    overlay.unlink(&dir, name)
}

fn write<L: Layer>(overlay: &Overlay<L>, path: &str) -> Result<()> {
    overlay.write_at(&overlay.open(&find(overlay, path)?), b"UP", 0).map(drop)
}

/// What is in the upper layer before the change that is cut off: names in all the states that a name can be in.
fn before<L: Layer>() -> [Change<L>; 10] {
    [
        ("whiteouts", |overlay| ["gone", "gone-too", "d/gone"].iter().try_for_each(|path| unlink(overlay, path))),
        ("copies", |overlay| ["both", "d/both"].iter().try_for_each(|path| write(overlay, path))),
        ("a directory gone", |overlay| {
            unlink(overlay, "dirgone/f")?;
            overlay.remove_dir(overlay.root(), OsStr::new("dirgone"))
        }),
        ("a directory that looks empty", |overlay| unlink(overlay, "looks-empty/f")),
        ("another, with a redirect", |overlay| {
            unlink(overlay, "emptied/f")?;
            rename(overlay, "emptied", "looks-empty-too", RenameMode::Replace)
        }),
        ("own objects", |overlay| {
            overlay.create_dir(overlay.root(), OsStr::new("own"), 0o755, OWN)?;
            overlay.create_file(&find(overlay, "own")?, OsStr::new("file"), 0o644, OWN).map(drop)
        }),
        ("a redirected directory", |overlay| rename(overlay, "r", "redirected", RenameMode::Replace)),
        ("an opaque directory", |overlay| {
            unlink(overlay, "o/f")?;
            overlay.remove_dir(overlay.root(), OsStr::new("o"))?;
            overlay.create_dir(overlay.root(), OsStr::new("o"), 0o755, OWN).map(drop)
        }),
        ("a file in it", |overlay| overlay.create_file(&find(overlay, "o")?, OsStr::new("new"), 0o644, OWN).map(drop)),
        ("a link", |overlay| overlay.link(&find(overlay, "own/file")?, overlay.root(), OsStr::new("linked"))),
    ]
}

/// The changes that can be made everywhere.
fn changes<L: Layer>() -> [Change<L>; 29] {
    [
        ("unlink lower", |overlay| unlink(overlay, "file")),
        ("unlink both", |overlay| unlink(overlay, "both")),
        ("unlink upper", |overlay| unlink(overlay, "own/file")),
        ("unlink in a directory that is not copied up", |overlay| unlink(overlay, "e/f")),
        ("create", |overlay| overlay.create_file(overlay.root(), OsStr::new("new"), 0o640, OWN).map(drop)),
        ("create over a whiteout", |overlay| {
            overlay.create_file(overlay.root(), OsStr::new("gone"), 0o640, OWN).map(drop)
        }),
        ("create over a whiteout as another", |overlay| {
            let owner = Owner { uid: 1000, gid: 1001 };
            overlay.create_file(overlay.root(), OsStr::new("gone"), 0o4640, owner).map(drop)
        }),
        ("symlink over a whiteout", |overlay| {
            overlay.create_symlink(overlay.root(), OsStr::new("gone"), OsStr::new("x"), OWN).map(drop)
        }),
        ("mkdir over the whiteout of a directory", |overlay| {
            overlay.create_dir(overlay.root(), OsStr::new("dirgone"), 0o751, OWN).map(drop)
        }),
        ("mkdir over the whiteout of a file", |overlay| {
            overlay.create_dir(overlay.root(), OsStr::new("gone"), 0o751, OWN).map(drop)
        }),
        ("link", |overlay| overlay.link(&find(overlay, "file")?, overlay.root(), OsStr::new("second"))),
        ("link over a whiteout", |overlay| overlay.link(&find(overlay, "both")?, overlay.root(), OsStr::new("gone"))),
        ("rmdir of a directory that looks empty", |overlay| {
            overlay.remove_dir(overlay.root(), OsStr::new("looks-empty"))
        }),
        ("rmdir of one with a redirect", |overlay| overlay.remove_dir(overlay.root(), OsStr::new("looks-empty-too"))),
        ("rmdir of an empty lower one", |overlay| overlay.remove_dir(overlay.root(), OsStr::new("empty"))),
        ("rename of a lower file", |overlay| rename(overlay, "file", "d/new", RenameMode::Replace)),
        ("rename of a lower file over another", |overlay| rename(overlay, "file", "both", RenameMode::Replace)),
        ("rename of a lower file to a whiteout", |overlay| rename(overlay, "file", "gone", RenameMode::Replace)),
        ("rename of an own file to a whiteout", |overlay| rename(overlay, "own/file", "d/gone", RenameMode::Replace)),
        ("rename of a lower directory", |overlay| rename(overlay, "d", "moved", RenameMode::Replace)),
        ("rename of a lower directory to a whiteout", |overlay| rename(overlay, "d", "dirgone", RenameMode::Replace)),
        ("rename of an own directory to a whiteout", |overlay| rename(overlay, "own", "dirgone", RenameMode::Replace)),
        ("rename of a redirected directory to a whiteout", |overlay| {
            rename(overlay, "redirected", "gone-too", RenameMode::Replace)
        }),
        ("rename of a redirected directory back", |overlay| rename(overlay, "redirected", "r", RenameMode::Replace)),
        ("rename of a lower directory over one that looks empty", |overlay| {
            rename(overlay, "d", "looks-empty", RenameMode::Replace)
        }),
        ("rename of an own directory over one that looks empty", |overlay| {
            rename(overlay, "own", "looks-empty", RenameMode::Replace)
        }),
        ("rename of an own directory over an empty lower one", |overlay| {
            rename(overlay, "own", "empty", RenameMode::Replace)
        }),
        ("rename of an opaque directory over one with a redirect", |overlay| {
            rename(overlay, "o", "looks-empty-too", RenameMode::Replace)
        }),
        ("chmod", |overlay| overlay.set_mode(&find(overlay, "d/both")?, 0o600)),
    ]
}

/// Those that can be made on the host only.
fn full_changes<L: Layer>() -> [Change<L>; 3] {
    [
        ("FIFO over a whiteout", |overlay| {
            overlay.create_node(overlay.root(), OsStr::new("gone"), Kind::Fifo, 0o600, 0, OWN).map(drop)
        }),
        ("exchange of a directory and a file", |overlay| rename(overlay, "d", "own/file", RenameMode::Exchange)),
        ("exchange of a lower and an own directory", |overlay| rename(overlay, "d", "own", RenameMode::Exchange)),
    ]
}

fn stage<G: Ground>(format: Wanted) -> G {
    let ground = G::new();
    for file in ["file", "both", "gone", "gone-too", "d/gone", "d/both", "d/deep/f", "dirgone/f", "r/f", "o/f", "e/f"] {
        ground.put_file("lower", file);
    }
    for file in ["d/bottom", "looks-empty/f", "emptied/f", "dirgone/bottom/f"] {
        ground.put_file("bottom", file);
    }
    ground.put_dir("bottom", "empty");
    let overlay = mount(&ground, format);
    // So that a deletion is in the way of what is below two layers.
    unlink(&overlay, "dirgone/bottom/f").unwrap();
    overlay.remove_dir(&find(&overlay, "dirgone").unwrap(), OsStr::new("bottom")).unwrap();
    for (what, change) in before() {
        change(&overlay).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    drop(overlay);
    ground
}

/// What is looked through and repaired. Answers how much was found.
fn repair<G: Ground>(ground: &G, when: &str) -> usize {
    ground.stop_after(u64::MAX);
    let (upper, work) = ground.open_pair("upper", "work");
    let lowers = ["lower", "bottom"].map(|name| ground.open(name, false));
    let layers = Layers { upper: Some(upper), work: Some(work), lowers: lowers.into() };
    let checker = Checker::new(layers).unwrap_or_else(|refused| panic!("{when}: {refused}"));
    let findings = checker.check().unwrap_or_else(|error| panic!("{when}: {error}"));
    for finding in &findings {
        let (path, damage) = (finding.path.display(), &finding.damage);
        let repair = finding.repair.as_ref().filter(|_| !damage.is_loss());
        let repair = repair.unwrap_or_else(|| panic!("{when}: {path} {damage}"));
        checker.repair(repair).unwrap_or_else(|error| panic!("{when}: {path} {damage}: {error}"));
    }
    let left = checker.check().unwrap_or_else(|error| panic!("{when}: {error}"));
    assert!(left.is_empty(), "{when}: repaired, but {} {}", left[0].path.display(), left[0].damage);
    findings.len()
}

/// Cuts off every change after every call. What is left is mounted, or repaired before that.
fn check<G: Ground>(format: Wanted, repairs: bool) {
    let mut found = 0;
    // As an overlay has it from the first mount on: what is made in layers is the same before and after that.
    rustix::process::umask(rustix::fs::Mode::empty());
    let full = full_changes().into_iter().filter(|_| G::FULL);
    for (what, change) in changes().into_iter().chain(full) {
        let untouched = stage::<G>(format);
        let before = tree(&mount(&untouched, format));
        let overlay = mount(&untouched, format);
        change(&overlay).unwrap_or_else(|error| panic!("{what}: {error}"));
        let calls = untouched.take_calls();
        drop(overlay);
        let after = tree(&mount(&untouched, format));
        assert_ne!(before, after, "{what}");
        assert_eq!(repair(&untouched, what), 0, "{what}: damage without a crash");
        let mut seen_after = false;
        for made in 0..=calls {
            let ground = stage::<G>(format);
            let overlay = mount(&ground, format);
            ground.stop_after(made);
            let result = change(&overlay);
            drop(overlay);
            if repairs {
                found += repair(&ground, &format!("{what}, {made} calls"));
            }
            let now = tree(&mount(&ground, format));
            assert!(now == before || now == after, "{what}, {made} calls: {now:#?} is neither before nor after");
            assert!(now == after || !seen_after, "{what}: undone by call {made}");
            assert!(now == after || result.is_err(), "{what}, {made} calls: said to be done");
            seen_after = now == after;
            assert!(made < calls || result.is_ok() && seen_after, "{what}: not done after {calls} calls");
        }
    }
    assert!(found > 0 || !repairs, "no crash left anything");
}

#[test]
fn changes_of_an_image_layer_are_seen_in_one_step() {
    check::<Host>(Wanted::Oci, false);
}

#[test]
fn changes_in_the_kernels_format_are_seen_in_one_step() {
    check::<Host>(Wanted::Kernel, false);
}

#[test]
fn changes_on_redoxfs_are_seen_in_one_step() {
    check::<Redoxfs>(Wanted::Oci, false);
}

#[test]
fn what_a_crash_leaves_of_an_image_layer_is_repaired() {
    check::<Host>(Wanted::Oci, true);
}

#[test]
fn what_a_crash_leaves_in_the_kernels_format_is_repaired() {
    check::<Host>(Wanted::Kernel, true);
}

#[test]
fn what_a_crash_leaves_on_redoxfs_is_repaired() {
    check::<Redoxfs>(Wanted::Oci, true);
}
