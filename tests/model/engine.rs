//! The engine's own API as a [`FrontEnd`], over any backend. An overlay must leave no damage on
//! Linux.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use linux_delegate::abi::employ;
use overlayfs::control::fact::Value;
use overlayfs::errno::{EIO, EOPNOTSUPP, Error};
use overlayfs::format::Wanted;
use overlayfs::fsck::Checker;
use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::layer::linux::locks;
use overlayfs::layer::redox::RedoxLayer;
use overlayfs::layer::{Allocation, Layer, OsLayer, Owner, RenameMode, Stat, Time, XattrMode};
use overlayfs::mount::open_layers;
use overlayfs::options::Options;
use overlayfs::overlay::{Handle, Handover, Layers, Node, Overlay, Settings};
use syscall::flag::{O_CREAT, O_DIRECTORY};

use crate::Kind;
use crate::front_end::{At, FrontEnd, Listed, Part, Result};
use crate::layer::left_in;
use crate::run::{Checked, Stacked};

/// Clones lead to the same overlay.
pub struct Engine<L: Layer>(Arc<Overlay<L>>, Option<Restart<L>>);

/// How another overlay goes on in the place of this one, as in another process.
struct Restart<L: Layer> {
    stack: Arc<dyn Fn(bool) -> Overlay<L> + Send + Sync>,
    again: fn(&L::File) -> L::File,
}

impl<L: Layer> Clone for Engine<L> {
    fn clone(&self) -> Self {
        let restart = self.1.as_ref().map(|Restart { stack, again }| Restart { stack: stack.clone(), again: *again });
        Self(self.0.clone(), restart)
    }
}

impl<L: Layer> Engine<L> {
    pub fn new(overlay: Overlay<L>) -> Self {
        Self(Arc::new(overlay), None)
    }

    /// Stacks an overlay that can be restarted. The argument of `stack` says whether it goes on.
    fn restarting(stack: impl Fn(bool) -> Overlay<L> + Send + Sync + 'static) -> Self
    where
        L::File: AsFd + From<OwnedFd>,
    {
        let again = |file: &L::File| file.as_fd().try_clone_to_owned().unwrap().into();
        Self(Arc::new(stack(false)), Some(Restart { stack: Arc::new(stack), again }))
    }
}

/// An open object. After a snapshot it is found again at its next use. A front end knows an object
/// once, so all that have it open share what is found.
pub struct Open<L: Layer> {
    id: u64,
    handle: Found<L>,
}

type Found<L> = Arc<Mutex<Option<Arc<Handle<L>>>>>;

impl<L: Layer> Open<L> {
    fn new(handle: Handle<L>) -> Self {
        Self { id: handle.node().id(), handle: Arc::new(Mutex::new(Some(Arc::new(handle)))) }
    }
}

/// Mounts these layers, with snapshots of the upper one.
pub fn mount_in_chain(stacked: &Stacked<'_>) -> Engine<OsLayer> {
    let (options, known_max) = (options(stacked.lowers, stacked.upper), stacked.known_max);
    Engine::restarting(move |succeeds| in_chain(&options, known_max, succeeds))
}

/// Mounts as [`mount_in_chain`], in the kernel's format.
pub fn mount_kernel_in_chain(stacked: &Stacked<'_>) -> Engine<OsLayer> {
    let work = work(stacked.upper);
    let format = (!work.exists()).then_some(Wanted::Kernel);
    fs::create_dir_all(&work).unwrap();
    let (options, known_max) = (Options { format, ..options_kernel(stacked.lowers, stacked.upper) }, stacked.known_max);
    Engine::restarting(move |succeeds| in_chain(&options, known_max, succeeds))
}

fn in_chain(options: &Options, known_max: Option<usize>, succeeds: bool) -> Overlay<OsLayer> {
    let upper = options.upper.as_deref().expect("an upper layer");
    let chain = upper.with_added_extension("snapshots");
    fs::create_dir_all(&chain).unwrap();
    let paths: Vec<_> = [upper].into_iter().chain(options.work.as_deref()).chain([&*chain]).collect();
    let mut opened = OsLayer::open_together(&paths).unwrap();
    let chain = opened.pop().unwrap();
    let mut opened = opened.into_iter();
    let lowers = options.lowers.iter().map(|path| OsLayer::open(path, false).unwrap()).collect();
    let layers = Layers { upper: opened.next(), work: opened.next(), lowers };
    let settings = Settings { known_max, format: options.format, succeeds, ..Settings::default() };
    Overlay::with_snapshots(layers, chain, settings).unwrap_or_else(|refused| panic!("{refused}"))
}

/// Mounts these layers.
pub fn mount(stacked: &Stacked<'_>) -> Overlay<OsLayer> {
    stack(&options(stacked.lowers, stacked.upper), stacked, |layer| layer)
}

/// Mounts as [`mount`], with layers that do `before` before each call.
pub fn mount_slowed(stacked: &Stacked<'_>, before: impl Fn() + Send + Sync + 'static) -> Overlay<Counted<OsLayer>> {
    let counts = Counts::default();
    counts.interpose(move |_| {
        before();
        Ok(())
    });
    stack(&options(stacked.lowers, stacked.upper), stacked, |layer| Counted::new(layer, &counts))
}

/// Mounts these layers in the kernel's format, with a work directory beside the upper layer. Only
/// the first mount has the option for the format.
pub fn mount_kernel(stacked: &Stacked<'_>) -> Overlay<OsLayer> {
    let work = work(stacked.upper);
    let format = (!work.exists()).then_some(Wanted::Kernel);
    fs::create_dir_all(&work).unwrap();
    let left = left_in(fs::read_dir(&work).unwrap().map(|entry| entry.unwrap().file_name()).collect());
    assert!(left.is_empty(), "left in the work directory: {left:?}");
    stack(&Options { format, ..options_kernel(stacked.lowers, stacked.upper) }, stacked, |layer| layer)
}

fn options(lowers: &[PathBuf], upper: &Path) -> Options {
    Options { lowers: lowers.to_vec(), upper: Some(upper.to_owned()), ..Options::default() }
}

fn options_kernel(lowers: &[PathBuf], upper: &Path) -> Options {
    Options { work: Some(work(upper)), ..options(lowers, upper) }
}

/// Returns the path of the work directory in the kernel's format.
fn work(upper: &Path) -> PathBuf {
    upper.with_added_extension("work")
}

/// Stacks layers. An earlier mount must have left no damage in them.
fn stack<L: Layer>(options: &Options, stacked: &Stacked<'_>, wrap: impl Fn(OsLayer) -> L) -> Overlay<L> {
    if !stacked.changed {
        let Checked { found, .. } = check(options);
        assert!(found.is_empty(), "damage without a crash: {found:?}");
    }
    let Layers { upper, work, lowers } = open_layers(options, true).unwrap_or_else(|error| panic!("{error}"));
    let lowers = lowers.into_iter().map(&wrap).collect();
    let layers = Layers { upper: upper.map(&wrap), work: work.map(&wrap), lowers };
    let settings = Settings { known_max: stacked.known_max, format: options.format, ..Settings::default() };
    Overlay::with_settings(layers, settings).unwrap_or_else(|refused| panic!("{refused}"))
}

/// Repairs an upper layer over these lower ones, as `overlayfs-fsck -y` does, and returns the
/// findings.
pub fn check_layers(lowers: &[PathBuf], upper: &Path) -> Checked {
    check(&options(lowers, upper))
}

/// Checks as [`check_layers`], in the kernel's format.
pub fn check_layers_kernel(lowers: &[PathBuf], upper: &Path) -> Checked {
    check(&options_kernel(lowers, upper))
}

fn check(options: &Options) -> Checked {
    let layers = open_layers(options, true).unwrap_or_else(|error| panic!("{error}"));
    let checker = Checker::new(layers).unwrap_or_else(|refused| panic!("{refused}"));
    let mut found = Vec::new();
    for finding in checker.check().unwrap() {
        found.push(format!("{}: {}", finding.path.display(), finding.damage));
        if let Some(repair) = &finding.repair {
            checker.repair(repair).unwrap();
        }
    }
    Checked { found, is_told: checker.other_layers().is_some() }
}

/// Mounts these layers of a redoxfs.
pub fn mount_redoxfs(stacked: &Stacked<'_>) -> Overlay<RedoxLayer> {
    let (layers, settings) = open_redoxfs(stacked, || redoxfs_layers(stacked));
    Overlay::with_settings(layers, settings).unwrap_or_else(|error| panic!("{error}"))
}

/// Mounts these layers of a redoxfs, with snapshots of the upper one.
pub fn mount_redoxfs_in_chain(stacked: &Stacked<'_>) -> Overlay<RedoxLayer> {
    let chain = stacked.upper.with_added_extension("snapshots");
    let ((layers, chain), settings) = open_redoxfs(stacked, || {
        // It is there from the second mount on.
        let flags = (O_CREAT | O_DIRECTORY) as i32;
        drop(libredox::Fd::open(chain.to_str().unwrap(), flags, 0o755).unwrap());
        (redoxfs_layers(stacked), RedoxLayer::open(&chain, true).unwrap())
    });
    Overlay::with_snapshots(layers, chain, settings).unwrap_or_else(|error| panic!("{error}"))
}

/// Opens layers in another thread, because afterwards that is in the null namespace.
fn open_redoxfs<T: Send>(stacked: &Stacked<'_>, open: impl FnOnce() -> T + Send) -> (T, Settings) {
    libredox::call::setrens(0, 0).unwrap();
    employ(stacked.maker);
    let opened = std::thread::scope(|scope| scope.spawn(open).join().unwrap());
    (opened, Settings { known_max: stacked.known_max, ..Settings::default() })
}

fn redoxfs_layers(stacked: &Stacked<'_>) -> Layers<RedoxLayer> {
    let open = |path: &Path, for_writing| RedoxLayer::open(path, for_writing).unwrap();
    Layers {
        upper: Some(open(stacked.upper, true)),
        work: None,
        lowers: stacked.lowers.iter().map(|path| open(path, false)).collect(),
    }
}

fn errno(error: Error) -> i32 {
    error.errno
}

impl<L: Layer> Engine<L> {
    /// Returns the handle of an open object.
    fn handle(&self, open: &Open<L>) -> Result<Arc<Handle<L>>> {
        let mut handle = open.handle.lock().unwrap();
        match &*handle {
            Some(handle) => Ok(handle.clone()),
            None => Ok(handle.insert(Arc::new(self.0.find_again(open.id).map_err(errno)?)).clone()),
        }
    }

    fn walk(&self, at: &At<Open<L>>, path: &[OsString]) -> Result<Arc<Node<L>>> {
        let start = match at.held {
            Some(open) => self.handle(open)?.node().clone(),
            None => self.0.root().clone(),
        };
        path.iter().try_fold(start, |dir, name| self.0.lookup(&dir, name)).map_err(errno)
    }

    fn entry<'a>(&self, at: &At<'a, Open<L>>) -> Result<(Arc<Node<L>>, &'a OsStr)> {
        let (name, parents) = at.path.split_last().expect("an entry has a name");
        Ok((self.walk(at, parents)?, name))
    }
}

impl<L: Layer> Engine<L> {
    /// Returns the number of the new overlay's upper layer.
    fn go_on_with(&mut self, next: Overlay<L>) -> u64 {
        self.0 = Arc::new(next);
        self.0.snapshots().last().expect("a snapshot").number
    }
}

impl<L: Layer> FrontEnd for Engine<L> {
    type Handle = Open<L>;

    fn open(&self, at: &At<Self::Handle>) -> Result<Self::Handle> {
        Ok(Open::new(self.0.open(&self.walk(at, at.path)?)))
    }

    fn create(&self, at: &At<Self::Handle>, kind: Kind, mode: u32, owner: Owner, target: &OsStr) -> Result<()> {
        let (dir, name) = self.entry(at)?;
        match kind {
            Kind::File => self.0.create_file(&dir, name, mode, owner).map(|handle| handle.node().clone()),
            Kind::Dir => self.0.create_dir(&dir, name, mode, owner),
            Kind::Symlink => self.0.create_symlink(&dir, name, target, owner),
            _ => self.0.create_node(&dir, name, kind, mode, 0, owner),
        }
        .map(drop)
        .map_err(errno)
    }

    fn create_temp(&self, dir: &At<Self::Handle>, mode: u32, owner: Owner) -> Result<Self::Handle> {
        self.0.create_temp(&self.walk(dir, dir.path)?, mode, owner).map(Open::new).map_err(errno)
    }

    fn close(&self, open: Self::Handle) {
        let Some(handle) = Arc::into_inner(open.handle) else { return };
        let Some(handle) = handle.into_inner().unwrap() else { return self.0.forget_earlier(open.id) };
        let node = handle.node().clone();
        drop(handle);
        self.0.release(node);
    }

    fn link(&self, handle: &Self::Handle, to: &At<Self::Handle>) -> Result<()> {
        let (dir, name) = self.entry(to)?;
        self.0.link(self.handle(handle)?.node(), &dir, name).map_err(errno)
    }

    fn unlink(&self, at: &At<Self::Handle>) -> Result<()> {
        let (dir, name) = self.entry(at)?;
        self.0.unlink(&dir, name).map_err(errno)
    }

    fn remove_dir(&self, at: &At<Self::Handle>) -> Result<()> {
        let (dir, name) = self.entry(at)?;
        self.0.remove_dir(&dir, name).map_err(errno)
    }

    fn rename(&self, from: &At<Self::Handle>, to: &At<Self::Handle>, mode: RenameMode) -> Result<()> {
        let (dir, name) = self.entry(from)?;
        let (new_dir, new_name) = self.entry(to)?;
        self.0.rename(&dir, name, &new_dir, new_name, mode).map_err(errno)
    }

    fn stat(&self, handle: &Self::Handle) -> Result<Stat> {
        self.0.stat(self.handle(handle)?.node()).map_err(errno)
    }

    fn read_link(&self, handle: &Self::Handle) -> Result<OsString> {
        self.0.read_link(self.handle(handle)?.node()).map_err(errno)
    }

    fn read(&self, handle: &Self::Handle, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let read = self.0.read_at(&*self.handle(handle)?, &mut bytes, offset).map_err(errno)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn write(&self, handle: &Self::Handle, offset: Option<u64>, bytes: &[u8]) -> Result<()> {
        let handle = self.handle(handle)?;
        let written = match offset {
            Some(offset) => self.0.write_at(&handle, bytes, offset),
            None => self.0.append(&handle, bytes),
        };
        // A short write would be correct in general, but not for these few bytes on a disk with
        // space.
        if written.map_err(errno)? == bytes.len() { Ok(()) } else { Err(EIO) }
    }

    fn truncate(&self, handle: &Self::Handle, size: u64) -> Result<()> {
        self.0.truncate(self.handle(handle)?.node(), size).map_err(errno)
    }

    fn set_mode(&self, handle: &Self::Handle, mode: u32) -> Result<()> {
        self.0.set_mode(self.handle(handle)?.node(), mode).map_err(errno)
    }

    fn set_owner(&self, handle: &Self::Handle, owner: Owner) -> Result<()> {
        self.0.set_owner(self.handle(handle)?.node(), owner).map_err(errno)
    }

    fn set_times(&self, handle: &Self::Handle, atime: Time, mtime: Time) -> Result<()> {
        self.0.set_times(self.handle(handle)?.node(), atime, mtime).map_err(errno)
    }

    fn xattrs(&self, handle: &Self::Handle) -> Result<BTreeMap<OsString, Vec<u8>>> {
        let handle = self.handle(handle)?;
        let node = handle.node();
        let names = self.0.xattrs(node).map_err(errno)?;
        let with_value = |name: OsString| {
            let value = self.0.xattr(node, &name).map_err(errno)?;
            Ok((name, value))
        };
        names.into_iter().map(with_value).collect()
    }

    fn set_xattr(&self, handle: &Self::Handle, name: &OsStr, value: &[u8]) -> Result<()> {
        self.0.set_xattr(self.handle(handle)?.node(), name, value, XattrMode::Set).map_err(errno)
    }

    fn remove_xattr(&self, handle: &Self::Handle, name: &OsStr) -> Result<()> {
        self.0.remove_xattr(self.handle(handle)?.node(), name).map_err(errno)
    }

    fn sync(&self, handle: &Self::Handle) -> Result<()> {
        self.0.sync(&*self.handle(handle)?).map_err(errno)
    }

    fn copy_byte(&self, from: &Self::Handle, from_offset: u64, to: &Self::Handle, to_offset: u64) -> Result<()> {
        self.0
            .copy_range(&*self.handle(from)?, from_offset..from_offset + 1, &*self.handle(to)?, to_offset)
            .map(drop)
            .map_err(errno)
    }

    fn reserve(&self, handle: &Self::Handle, size: u64) -> Result<()> {
        self.0.allocate(&*self.handle(handle)?, Allocation::Reserve { keep_size: false }, 0..size).map_err(errno)
    }

    fn settle(&self) -> Result<u64> {
        self.0.complete_and_sync().and_then(|()| self.0.sync_completed()).map_err(errno)?;
        let told = self.0.status().into_iter().find(|fact| fact.name == "partial_copies").expect("a number");
        let Value::Numbers(left) = told.value else { panic!("{told:?} has no number") };
        Ok(left[0])
    }

    fn snapshot(&mut self, handles: &mut BTreeMap<usize, Self::Handle>) -> Result<u64> {
        self.0.complete_and_sync().map_err(errno)?;
        let open: Vec<_> = handles.values().map(|open| self.handle(open)).collect::<Result<_>>()?;
        let nodes: Vec<_> = open.iter().map(|handle| handle.node().clone()).collect();
        let next = self.0.snapshot(None, &nodes).unwrap_or_else(|error| panic!("{error}"));
        let mut found: BTreeMap<u64, Found<L>> = BTreeMap::new();
        for open in handles.values_mut() {
            open.handle = found.entry(open.id).or_default().clone();
        }
        Ok(self.go_on_with(next))
    }

    fn restart(&mut self, handles: &mut BTreeMap<usize, Self::Handle>) -> Result<()> {
        // The inherited locks are those of the process.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let Some(Restart { stack, again }) = &self.1 else { return Err(EOPNOTSUPP) };
        let open: Vec<_> = handles.values().map(|open| self.handle(open)).collect::<Result<_>>()?;
        let nodes: Vec<_> = open.iter().map(|handle| handle.node().clone()).collect();
        self.0.write_facts().map_err(errno)?;
        let plan = self.0.plan_handover(&nodes).map_err(errno)?;
        let mut kept = Vec::new();
        let bytes = self.0.pack(&plan, &mut |file| {
            kept.push(Some(again(file)));
            Ok(kept.len() as u64 - 1)
        });
        let one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        locks::inherit(locks::held().map_err(errno)?);
        let next = stack(true);
        locks::inherit(Vec::new());
        drop(one);
        let take = &mut |number: u64| kept.get_mut(number as usize)?.take();
        next.succeed(Handover::unpack(&bytes.map_err(errno)?, take).map_err(errno)?, None);
        drop((open, nodes, plan));
        let mut found: BTreeMap<u64, Found<L>> = BTreeMap::new();
        for open in handles.values_mut() {
            open.handle = found.entry(open.id).or_default().clone();
        }
        self.0.give_up();
        self.0 = Arc::new(next);
        Ok(())
    }

    fn roll_back(&mut self) -> Result<u64> {
        self.0.complete_and_sync().map_err(errno)?;
        let next = self.0.roll_back(&[]).unwrap_or_else(|error| panic!("{error}"));
        Ok(self.go_on_with(next))
    }

    fn list_part(&self, handle: &Self::Handle, after: u64, chunk: usize) -> Result<Part> {
        let (mut listed, mut last, mut is_end) = (Vec::new(), after, true);
        let handle = self.handle(handle)?;
        let result = self.0.list(&handle, after, &mut |entry| {
            // The next part must begin with the refused entry.
            if listed.len() == chunk {
                is_end = false;
                return false;
            }
            listed.push(Listed { name: entry.name.to_owned(), ino: entry.ino, kind: entry.kind });
            assert!(entry.offset > last && entry.offset >= 3, "the offset {} after {last}", entry.offset);
            last = entry.offset;
            true
        });
        result.map_err(errno)?;
        Ok(Part { listed, next: (!is_end).then_some(last) })
    }
}
