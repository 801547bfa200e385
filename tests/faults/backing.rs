//! The places of layers, and the faults that are possible there: a filesystem in memory,
//! directories of Linux, or a simulated redoxfs.

use std::ffi::OsStr;
use std::path::Path;

use linux_delegate::redoxfs;
use overlayfs::layer::counted::{Counted, Counts, Fault};
use overlayfs::layer::redox::RedoxLayer;
use overlayfs::layer::{Kind, Layer, Object, OsLayer, Result};
use overlayfs::overlay::Layers;
use rustix::fs::FileType;
use test_common::{Detail, Setup, Snapshot, names, put};

use crate::memory::{self, Abilities, Memory};
use crate::op::{Mounting, Op, Session, Source};

/// The size of a large file: no multiple of a chunk, and mostly holes.
pub const LARGE: u64 = (1 << 20) + 200_000;
/// The offsets of its data: starts of pages.
pub const LARGE_DATA: [u64; 5] = [0, 16 << 12, 17 << 12, 150 << 12, LARGE / 4096 * 4096];

/// An object for a lower layer.
#[derive(Clone, Debug)]
pub enum Item {
    /// A file with its path as its content.
    File,
    /// A file that gets a partial copy.
    Large,
    Dir,
    Symlink,
    Fifo,
    /// Another name of a file.
    Link(String),
}

/// An object of a lower layer: the layer, the path, and the object.
pub type Placed = (&'static str, String, Item);

/// The start of a case.
#[derive(Clone, Debug)]
pub struct Start {
    pub lowers: Vec<Placed>,
    /// The operations before the case.
    pub ops: Vec<Op>,
    pub mounting: Mounting,
    pub abilities: Abilities,
}

pub trait Backing: Source + Sized {
    /// The contents of the lower layers at one time.
    type Lowers;
    /// The name in the report.
    const NAME: &str;
    /// Whether there are FIFOs, extended attributes and renames that exchange.
    const FULL: bool;
    /// Whether the same operations lead to the same times.
    const TIMED: bool;

    fn new(abilities: Abilities) -> Self;
    /// Returns a copy of this backing, if that is cheaper than to make it again.
    fn copy(&self) -> Option<Self>;
    fn put(&self, placed: &Placed);
    /// Makes the call after `calls` further ones fail with this fault. With `u64::MAX` no call
    /// fails.
    fn fault_after(&self, calls: u64, fault: Fault);
    /// Returns the call that failed since then.
    fn struck(&self) -> Option<&'static str>;
    /// Returns the number of calls since the last time.
    fn take_calls(&self) -> u64;
    fn lowers(&self) -> Self::Lowers;
    /// Panics if the lower layers have changed.
    fn check_lowers(&self, before: &Self::Lowers);
    /// Returns the names in the work directory.
    fn work(&self) -> Vec<String>;
    /// Returns the number of open files, and of other open resources of the system.
    fn open(&self) -> (usize, usize);

    fn make(start: &Start) -> Self {
        let backing = Self::new(start.abilities);
        start.lowers.iter().for_each(|placed| backing.put(placed));
        let mut session = Session::new(&backing, start.mounting).unwrap();
        for op in &start.ops {
            session.apply(op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
        }
        // The crash keeps partial copies as they are.
        session.crash();
        backing
    }
}

/// Returns the layers that two functions open.
fn layers<L: Layer>(pair: (L, L), lower: impl Fn(&str) -> Result<L>) -> Result<Layers<L>> {
    Ok(Layers { upper: Some(pair.0), work: Some(pair.1), lowers: vec![lower("lower")?, lower("bottom")?] })
}

const LAYERS: [&str; 5] = ["upper", "work", "lower", "bottom", "snapshots"];

/// A backing in memory. Its calls are the calls of the layers.
pub struct InMemory {
    pub disk: memory::Disk,
    pub counts: Counts,
}

impl InMemory {
    pub fn with(disk: memory::Disk) -> Self {
        InMemory { disk, counts: Counts::default() }
    }
}

impl Source for InMemory {
    type Layer = Counted<Memory>;

    fn layers(&self) -> Result<Layers<Self::Layer>> {
        let open = |name: &str, for_writing| Counted::new(self.disk.layer(name, for_writing), &self.counts);
        layers((open("upper", true), open("work", true)), |name| Ok(open(name, false)))
    }

    fn snapshots(&self) -> Result<Self::Layer> {
        Ok(Counted::new(self.disk.layer("snapshots", true), &self.counts))
    }

    fn stop(&self, stopped: bool) {
        self.counts.stop_after(if stopped { 0 } else { u64::MAX });
    }
}

impl Backing for InMemory {
    type Lowers = [memory::Snapshot; 2];
    const NAME: &str = "memory";
    const FULL: bool = true;
    const TIMED: bool = true;

    fn new(abilities: Abilities) -> Self {
        InMemory::with(memory::Disk::new(abilities, &LAYERS))
    }

    fn copy(&self) -> Option<Self> {
        Some(InMemory::with(self.disk.copy()))
    }

    fn put(&self, (layer, path, item): &Placed) {
        let layer = self.disk.layer(layer, true);
        let own = layer.identity();
        let mut dir = layer.root().unwrap();
        let names: Vec<_> = path.split('/').map(OsStr::new).collect();
        let (name, parents) = names.split_last().unwrap();
        for parent in parents {
            let _ = layer.create_dir(&dir, parent, 0o755, own);
            dir = layer.open_dir(&dir, parent).unwrap();
        }
        match item {
            Item::File => {
                let file = layer.create_file(&dir, name, 0o644, own).unwrap();
                layer.write_at(&file, path.as_bytes(), 0).unwrap();
            }
            Item::Large => {
                let file = layer.create_file(&dir, name, 0o644, own).unwrap();
                layer.truncate(&file, LARGE).unwrap();
                for at in LARGE_DATA {
                    layer.write_at(&file, &vec![b'L'; 4096.min(LARGE - at) as usize], at).unwrap();
                }
            }
            Item::Dir => drop(layer.create_dir(&dir, name, 0o755, own)),
            Item::Symlink => drop(layer.create_symlink(&dir, name, OsStr::new("target"), own).unwrap()),
            Item::Fifo => drop(layer.create_node(&dir, name, Kind::Fifo, 0o644, 0, own).unwrap()),
            Item::Link(old) => layer.link(Object::Entry(&dir, OsStr::new(old)), &dir, name).unwrap(),
        }
    }

    fn fault_after(&self, calls: u64, fault: Fault) {
        self.counts.fault_after(calls, fault);
    }

    fn struck(&self) -> Option<&'static str> {
        self.counts.struck().map(|method| method.name())
    }

    fn take_calls(&self) -> u64 {
        self.counts.take().total()
    }

    fn lowers(&self) -> Self::Lowers {
        ["lower", "bottom"].map(|name| self.disk.snapshot(name))
    }

    fn check_lowers(&self, before: &Self::Lowers) {
        before.iter().for_each(|lower| self.disk.assert_same(lower));
    }

    fn work(&self) -> Vec<String> {
        self.disk.names("work")
    }

    fn open(&self) -> (usize, usize) {
        let (dirs, files) = self.disk.open();
        (files, dirs)
    }
}

/// Directories of Linux. The calls are the calls of the layers.
pub struct Host {
    setup: Setup,
    counts: Counts,
}

impl Source for Host {
    type Layer = Counted<OsLayer>;

    fn layers(&self) -> Result<Layers<Self::Layer>> {
        let (upper, work) = OsLayer::open_pair(&self.setup.dir("upper"), &self.setup.dir("work"))?;
        let pair = (Counted::new(upper, &self.counts), Counted::new(work, &self.counts));
        layers(pair, |name| Ok(Counted::new(OsLayer::open(&self.setup.dir(name), false)?, &self.counts)))
    }

    fn stop(&self, stopped: bool) {
        self.counts.stop_after(if stopped { 0 } else { u64::MAX });
    }
}

impl Backing for Host {
    type Lowers = [Snapshot; 2];
    const NAME: &str = "host";
    const FULL: bool = true;
    const TIMED: bool = false;

    fn new(_: Abilities) -> Self {
        let setup = Setup::new();
        LAYERS.iter().for_each(|name| drop(setup.dir(name)));
        Host { setup, counts: Counts::default() }
    }

    fn copy(&self) -> Option<Self> {
        None
    }

    fn put(&self, (layer, path, item): &Placed) {
        let dir = &self.setup.dir(layer);
        match item {
            Item::File => drop(put::file(dir, path, path)),
            Item::Large => {
                let file = std::fs::File::create(put::file(dir, path, "")).unwrap();
                file.set_len(LARGE).unwrap();
                for at in LARGE_DATA {
                    let bytes = vec![b'L'; 4096.min(LARGE - at) as usize];
                    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, at).unwrap();
                }
            }
            Item::Dir => drop(put::dir(dir, path)),
            Item::Symlink => drop(put::symlink(dir, path, "target")),
            Item::Fifo => drop(put::node(dir, path, FileType::Fifo, 0o644, 0)),
            Item::Link(old) => {
                let above = Path::new(path).parent().unwrap();
                drop(put::link(dir, above.join(old).to_str().unwrap(), path));
            }
        }
    }

    fn fault_after(&self, calls: u64, fault: Fault) {
        self.counts.fault_after(calls, fault);
    }

    fn struck(&self) -> Option<&'static str> {
        self.counts.struck().map(|method| method.name())
    }

    fn take_calls(&self) -> u64 {
        self.counts.take().total()
    }

    fn lowers(&self) -> Self::Lowers {
        ["lower", "bottom"].map(|name| Snapshot::take(&self.setup.dir(name), Detail::Everything))
    }

    fn check_lowers(&self, before: &Self::Lowers) {
        before.iter().zip(self.lowers()).for_each(|(before, now)| before.assert_same(&now, "a lower layer"));
    }

    fn work(&self) -> Vec<String> {
        names(&self.setup.dir("work"))
    }

    fn open(&self) -> (usize, usize) {
        (0, std::fs::read_dir("/proc/self/fd").unwrap().count())
    }
}

/// A redoxfs. Its calls are the requests that it answers.
pub struct Redoxfs(redoxfs::Disk);

impl Source for Redoxfs {
    type Layer = RedoxLayer;

    fn layers(&self) -> Result<Layers<RedoxLayer>> {
        let [upper, work] = ["upper", "work"].map(|name| self.0.path(name));
        let pair = RedoxLayer::open_pair(Path::new(&upper), Path::new(&work))?;
        layers(pair, |name| RedoxLayer::open(Path::new(&self.0.path(name)), false))
    }

    fn stop(&self, stopped: bool) {
        self.0.stop_after(if stopped { 0 } else { u64::MAX });
    }
}

impl Backing for Redoxfs {
    type Lowers = [redoxfs::Snapshot; 2];
    const NAME: &str = "redoxfs";
    const FULL: bool = false;
    const TIMED: bool = false;

    fn new(_: Abilities) -> Self {
        let disk = redoxfs::Disk::redoxfs();
        LAYERS.iter().for_each(|name| {
            disk.tree().put_dir(name);
        });
        Redoxfs(disk)
    }

    fn copy(&self) -> Option<Self> {
        let disk = redoxfs::Disk::redoxfs();
        disk.copy_from(&self.0);
        Some(Redoxfs(disk))
    }

    fn put(&self, (layer, path, item): &Placed) {
        let mut tree = self.0.tree();
        let full = format!("{layer}/{path}");
        match item {
            Item::File => drop(tree.put_file(&full, path.as_str())),
            Item::Large => {
                let mut bytes = vec![0; LARGE as usize];
                for at in LARGE_DATA {
                    bytes[at as usize..(at + 4096).min(LARGE) as usize].fill(b'L');
                }
                tree.put_file(&full, bytes);
            }
            Item::Dir => drop(tree.put_dir(&full)),
            Item::Symlink => drop(tree.put_symlink(&full, "target")),
            Item::Fifo => {}
            Item::Link(old) => {
                let (above, _) = full.rsplit_once('/').unwrap();
                tree.put_link(&format!("{above}/{old}"), &full);
            }
        }
    }

    fn fault_after(&self, calls: u64, fault: Fault) {
        self.0.fault_after(calls, fault);
    }

    fn struck(&self) -> Option<&'static str> {
        self.0.struck().map(|request| request.name())
    }

    fn take_calls(&self) -> u64 {
        let requests = self.0.take_requests();
        requests.total() - requests.of(redoxfs::Request::Close)
    }

    fn lowers(&self) -> Self::Lowers {
        ["lower", "bottom"].map(|name| self.0.snapshot(name))
    }

    fn check_lowers(&self, before: &Self::Lowers) {
        before.iter().for_each(|lower| self.0.assert_same(lower));
    }

    fn work(&self) -> Vec<String> {
        self.0.tree().names("work")
    }

    fn open(&self) -> (usize, usize) {
        // All earlier closes have arrived when this returns.
        self.0.take_requests();
        (0, self.0.open())
    }
}
