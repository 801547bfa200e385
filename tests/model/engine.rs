//! The engine's own API as a [`FrontEnd`], over any backend. An overlay must leave no damage on
//! Linux.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use overlayfs::errno::{EIO, Error};
use overlayfs::format::Wanted;
use overlayfs::fsck::Checker;
use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::layer::redox::RedoxLayer;
use overlayfs::layer::{Allocation, Layer, OsLayer, Owner, RenameMode, Stat, Time, XattrMode};
use overlayfs::mount::open_layers;
use overlayfs::options::Options;
use overlayfs::overlay::{Handle, Layers, Node, Overlay, Settings};

use crate::Kind;
use crate::front_end::{At, FrontEnd, Listed, Part, Result};
use crate::layer::left_in;
use crate::run::{Checked, Stacked};

/// Clones lead to the same overlay.
pub struct Engine<L: Layer>(Arc<Overlay<L>>);

impl<L: Layer> Clone for Engine<L> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<L: Layer> Engine<L> {
    pub fn new(overlay: Overlay<L>) -> Self {
        Self(Arc::new(overlay))
    }
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

/// Mounts these layers of a redoxfs. Another thread opens them, because afterwards it is in the
/// null namespace.
pub fn mount_redoxfs(stacked: &Stacked<'_>) -> Overlay<RedoxLayer> {
    libredox::call::setrens(0, 0).unwrap();
    let open = |path: &Path, for_writing| RedoxLayer::open(path, for_writing).unwrap();
    let layers = std::thread::scope(|scope| {
        let layers = scope.spawn(|| Layers {
            upper: Some(open(stacked.upper, true)),
            work: None,
            lowers: stacked.lowers.iter().map(|path| open(path, false)).collect(),
        });
        layers.join().unwrap()
    });
    let settings = Settings { known_max: stacked.known_max, ..Settings::default() };
    Overlay::with_settings(layers, settings).unwrap_or_else(|error| panic!("{error}"))
}

fn errno(error: Error) -> i32 {
    error.errno
}

impl<L: Layer> Engine<L> {
    fn walk(&self, at: &At<Handle<L>>, path: &[OsString]) -> Result<Arc<Node<L>>> {
        let start = at.held.map_or(self.0.root(), |handle| handle.node());
        path.iter().try_fold(start.clone(), |dir, name| self.0.lookup(&dir, name)).map_err(errno)
    }

    fn entry<'a>(&self, at: &At<'a, Handle<L>>) -> Result<(Arc<Node<L>>, &'a OsStr)> {
        let (name, parents) = at.path.split_last().expect("an entry has a name");
        Ok((self.walk(at, parents)?, name))
    }
}

impl<L: Layer> FrontEnd for Engine<L> {
    type Handle = Handle<L>;

    fn open(&self, at: &At<Self::Handle>) -> Result<Self::Handle> {
        Ok(self.0.open(&self.walk(at, at.path)?))
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
        self.0.create_temp(&self.walk(dir, dir.path)?, mode, owner).map_err(errno)
    }

    fn close(&self, handle: Self::Handle) {
        let node = handle.node().clone();
        drop(handle);
        self.0.release(node);
    }

    fn link(&self, handle: &Self::Handle, to: &At<Self::Handle>) -> Result<()> {
        let (dir, name) = self.entry(to)?;
        self.0.link(handle.node(), &dir, name).map_err(errno)
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
        self.0.stat(handle.node()).map_err(errno)
    }

    fn read_link(&self, handle: &Self::Handle) -> Result<OsString> {
        self.0.read_link(handle.node()).map_err(errno)
    }

    fn read(&self, handle: &Self::Handle, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let read = self.0.read_at(handle, &mut bytes, offset).map_err(errno)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn write(&self, handle: &Self::Handle, offset: Option<u64>, bytes: &[u8]) -> Result<()> {
        let written = match offset {
            Some(offset) => self.0.write_at(handle, bytes, offset),
            None => self.0.append(handle, bytes),
        };
        // A short write would be correct in general, but not for these few bytes on a disk with
        // space.
        if written.map_err(errno)? == bytes.len() { Ok(()) } else { Err(EIO) }
    }

    fn truncate(&self, handle: &Self::Handle, size: u64) -> Result<()> {
        self.0.truncate(handle.node(), size).map_err(errno)
    }

    fn set_mode(&self, handle: &Self::Handle, mode: u32) -> Result<()> {
        self.0.set_mode(handle.node(), mode).map_err(errno)
    }

    fn set_owner(&self, handle: &Self::Handle, owner: Owner) -> Result<()> {
        self.0.set_owner(handle.node(), owner).map_err(errno)
    }

    fn set_times(&self, handle: &Self::Handle, atime: Time, mtime: Time) -> Result<()> {
        self.0.set_times(handle.node(), atime, mtime).map_err(errno)
    }

    fn xattrs(&self, handle: &Self::Handle) -> Result<BTreeMap<OsString, Vec<u8>>> {
        let node = handle.node();
        let names = self.0.xattrs(node).map_err(errno)?;
        let with_value = |name: OsString| {
            let value = self.0.xattr(node, &name).map_err(errno)?;
            Ok((name, value))
        };
        names.into_iter().map(with_value).collect()
    }

    fn set_xattr(&self, handle: &Self::Handle, name: &OsStr, value: &[u8]) -> Result<()> {
        self.0.set_xattr(handle.node(), name, value, XattrMode::Set).map_err(errno)
    }

    fn remove_xattr(&self, handle: &Self::Handle, name: &OsStr) -> Result<()> {
        self.0.remove_xattr(handle.node(), name).map_err(errno)
    }

    fn sync(&self, handle: &Self::Handle) -> Result<()> {
        self.0.sync(handle).map_err(errno)
    }

    fn copy_byte(&self, from: &Self::Handle, from_offset: u64, to: &Self::Handle, to_offset: u64) -> Result<()> {
        self.0.copy_range(from, from_offset..from_offset + 1, to, to_offset).map(drop).map_err(errno)
    }

    fn reserve(&self, handle: &Self::Handle, size: u64) -> Result<()> {
        self.0.allocate(handle, Allocation::Reserve { keep_size: false }, 0..size).map_err(errno)
    }

    fn list_part(&self, handle: &Self::Handle, after: u64, chunk: usize) -> Result<Part> {
        let (mut listed, mut last, mut is_end) = (Vec::new(), after, true);
        let result = self.0.list(handle, after, &mut |entry| {
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
