//! The stack of layers, and the places of directories in them.
//!
//! A [`LayerDir`] is a place, not a descriptor. A bounded cache holds descriptors that the engine
//! needed. So the walk of a tree of any size needs a bounded number of them.
//!
//! Locks: `LayerDir::place` and `Stack::open` are leaves. A thread holds neither while it takes
//! another lock or calls a layer.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::errno::{EIO, Error};
use lru::LruCache;

use super::trust::Author;
use crate::layer::{Layer, Object, Result, Stat};
use crate::sync::Lock;

/// The maximum number of directory descriptors in the cache.
const OPEN_DIRS: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// The number of directories above an opened one that the cache keeps: the nearest, and some on the
/// way. All of a deep path would push out descriptors of other layers that the next step needs.
const NEAR: usize = 8;
const ON_THE_WAY: usize = 16;

/// The layers, topmost first.
pub struct Stack<L: Layer> {
    layers: Vec<L>,
    has_upper: bool,
    roots: Vec<Arc<LayerDir<L>>>,
    /// The filesystem of each layer, and the inode number of its root.
    devices: Vec<u64>,
    root_inos: Vec<u64>,
    open: Lock<LruCache<u64, Arc<L::Dir>>>,
    next_id: AtomicU64,
}

/// A directory of one layer.
pub struct LayerDir<L: Layer> {
    /// Never reused. The key of the descriptor cache.
    id: u64,
    /// The index of the layer in the stack. Never changes.
    layer: usize,
    /// The untrusted user that made the directory merge with those above it, if any.
    author: Option<Author>,
    anchor: Anchor<L>,
}

enum Anchor<L: Layer> {
    /// Always open: the root of a layer, or the work directory.
    Open(Arc<L::Dir>),
    /// An entry of another directory. The rename of a directory of the upper layer changes it. None
    /// during the drop.
    Entry(Lock<Option<LayerPlace<L>>>),
}

/// A directory and a name in it.
pub type LayerPlace<L> = (Arc<LayerDir<L>>, OsString);

impl<L: Layer> Stack<L> {
    /// Makes a stack of `layers`, topmost first. The first is the upper layer if `has_upper`.
    pub fn new(layers: Vec<L>, has_upper: bool) -> Result<Self> {
        let mut stack = Stack {
            layers,
            has_upper,
            roots: Vec::new(),
            devices: Vec::new(),
            root_inos: Vec::new(),
            open: Lock::new(LruCache::new(OPEN_DIRS)),
            next_id: AtomicU64::new(0),
        };
        for index in 0..stack.layers.len() {
            let root = stack.layers[index].root()?;
            let stat = stack.layers[index].stat(Object::Dir(&root))?;
            stack.devices.push(stat.dev);
            stack.root_inos.push(stat.ino);
            let root = stack.anchored(index, root);
            stack.roots.push(root);
        }
        Ok(stack)
    }

    /// The upper layer, if there is one.
    pub fn upper(&self) -> Option<&L> {
        if self.has_upper { self.layers.first() } else { None }
    }

    /// The root of the upper layer, if there is one.
    pub fn upper_root(&self) -> Option<&Arc<LayerDir<L>>> {
        if self.has_upper { self.roots.first() } else { None }
    }

    /// The roots of the lower layers, topmost first.
    pub fn lower_roots(&self) -> &[Arc<LayerDir<L>>] {
        &self.roots[usize::from(self.has_upper)..]
    }

    /// The roots of the layers below that of `dir`.
    pub fn roots_below(&self, dir: &LayerDir<L>) -> &[Arc<LayerDir<L>>] {
        &self.roots[dir.layer + 1..]
    }

    /// The root of the layer of `dir`.
    pub fn root(&self, dir: &LayerDir<L>) -> &Arc<LayerDir<L>> {
        &self.roots[dir.layer]
    }

    /// The number of layers.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// The root of the layer `level`, counted from the bottom.
    pub fn level_root(&self, level: usize) -> Option<&Arc<LayerDir<L>>> {
        self.roots.iter().rev().nth(level)
    }

    /// Opens a directory as a layer of its own, which is only read.
    pub fn again(&self, dir: &LayerDir<L>) -> Result<L> {
        self.layer(dir).below(&*self.open(dir)?, &self.path(dir), false)
    }

    /// The layer of `dir`.
    pub fn layer(&self, dir: &LayerDir<L>) -> &L {
        &self.layers[dir.layer]
    }

    /// Returns the attributes `stat` from the layer of `dir`, with a `dev` that also tells layers
    /// apart. Layers may contain one another, and an object that shows at two places of the tree is
    /// two objects.
    pub fn mark(&self, dir: &LayerDir<L>, stat: Stat) -> Stat {
        Stat { dev: mark(dir.layer, stat.dev), ..stat }
    }

    /// Returns the device number that [`Stack::mark`] gives each layer's root, topmost first.
    pub fn marked_devices(&self) -> impl Iterator<Item = u64> {
        self.devices.iter().enumerate().map(|(layer, device)| mark(layer, *device))
    }

    /// Returns the device number that [`Stack::mark`] gives objects in `dir`.
    pub fn marked_device(&self, dir: &LayerDir<L>) -> u64 {
        mark(dir.layer, self.devices[dir.layer])
    }

    /// Returns the filesystem of `dir`.
    pub fn device(&self, dir: &LayerDir<L>) -> u64 {
        self.devices[dir.layer]
    }

    /// Returns the number of the layer of `dir`, counted from the bottom.
    pub fn level(&self, dir: &LayerDir<L>) -> usize {
        self.layers.len() - 1 - dir.layer
    }

    /// Returns the inode number of the root of the layer of `dir`.
    pub fn root_ino(&self, dir: &LayerDir<L>) -> u64 {
        self.root_inos[dir.layer]
    }

    /// The topmost layer.
    pub fn top(&self) -> &L {
        &self.layers[0]
    }

    /// The layers, topmost first.
    pub fn layers(&self) -> impl Iterator<Item = &L> {
        self.layers.iter()
    }

    /// Makes a directory of layer `index` that stays open.
    pub fn anchored(&self, index: usize, dir: L::Dir) -> Arc<LayerDir<L>> {
        Arc::new(LayerDir { id: self.new_id(), layer: index, author: None, anchor: Anchor::Open(Arc::new(dir)) })
    }

    /// Makes the directory `name` of `parent`, without a call of the layer.
    pub fn child(&self, parent: &Arc<LayerDir<L>>, name: &OsStr) -> Arc<LayerDir<L>> {
        self.child_for(parent, name, None)
    }

    /// Does the same as [`Stack::child`], for a way to the directory that `author` also influenced.
    pub fn child_for(&self, parent: &Arc<LayerDir<L>>, name: &OsStr, author: Option<Author>) -> Arc<LayerDir<L>> {
        let author = Author::and(parent.author, author);
        let place = Lock::new(Some((parent.clone(), name.to_owned())));
        Arc::new(LayerDir { id: self.new_id(), layer: parent.layer, author, anchor: Anchor::Entry(place) })
    }

    /// Returns a descriptor of `dir`. That costs one backing call for each directory on the path
    /// that is not open, so often none.
    pub fn open(&self, dir: &LayerDir<L>) -> Result<Arc<L::Dir>> {
        if let Some(open) = self.cached(dir) {
            return Ok(open);
        }
        let (mut below, mut id, mut place) = (Vec::new(), dir.id, self.parent(dir));
        let mut open = loop {
            // A directory without a parent is always open.
            let (parent, name) = place.ok_or(Error::new(EIO))?;
            below.push((id, name));
            if let Some(open) = self.cached(&parent) {
                break open;
            }
            (id, place) = (parent.id, self.parent(&parent));
        };
        let layer = self.layer(dir);
        let far = below.len().div_ceil(ON_THE_WAY);
        for (above, (id, name)) in below.into_iter().enumerate().rev() {
            open = Arc::new(layer.open_dir(&open, &name)?);
            if above < NEAR || above % far == 0 {
                // The evicted descriptor is closed after the cache is unlocked.
                let _closed = self.open.lock().push(id, open.clone());
            }
        }
        Ok(open)
    }

    /// Returns the descriptor of `dir`, if it is open.
    fn cached(&self, dir: &LayerDir<L>) -> Option<Arc<L::Dir>> {
        match &dir.anchor {
            Anchor::Open(open) => Some(open.clone()),
            Anchor::Entry(_) => self.open.lock().get(&dir.id).cloned(),
        }
    }

    /// Whether `dir` is in the upper layer.
    pub fn is_upper(&self, dir: &LayerDir<L>) -> bool {
        self.has_upper && dir.layer == 0
    }

    /// Returns the directory that contains `dir`, and its name there. None for the root of a layer.
    pub fn parent(&self, dir: &LayerDir<L>) -> Option<LayerPlace<L>> {
        match &dir.anchor {
            Anchor::Open(_) => None,
            Anchor::Entry(place) => place.lock().clone(),
        }
    }

    /// Returns the path of `dir`, for messages.
    pub fn path(&self, dir: &LayerDir<L>) -> PathBuf {
        let mut names = Vec::new();
        let mut place = self.parent(dir);
        while let Some((above, name)) = place {
            names.push(name);
            place = self.parent(&above);
        }
        names.extend(self.layer(dir).path().map(Path::as_os_str).map(OsStr::to_owned));
        names.iter().rev().collect()
    }

    /// Returns the place of the entry `name` of `dir` in a form that does not depend on this stack:
    /// the layer, counted from the bottom, and the names from its root.
    pub fn names_of(&self, dir: &LayerDir<L>, name: &OsStr) -> (usize, Vec<OsString>) {
        let mut names = vec![name.to_owned()];
        let mut place = self.parent(dir);
        while let Some((above, name)) = place {
            names.push(name);
            place = self.parent(&above);
        }
        names.reverse();
        (self.level(dir), names)
    }

    /// Returns the entry with these names in the layer `level`, counted from the bottom. None if
    /// there is no such layer.
    pub fn entry_of(&self, level: usize, mut names: Vec<OsString>) -> Option<(Arc<LayerDir<L>>, Arc<OsStr>)> {
        let last = names.pop()?;
        let dir = names.iter().fold(self.level_root(level)?.clone(), |dir, name| self.child(&dir, name));
        Some((dir, last.as_os_str().into()))
    }

    /// Returns the attributes of the entry `name` of `dir`, marked.
    pub fn stat(&self, dir: &LayerDir<L>, name: &OsStr) -> Result<Stat> {
        let open = self.open(dir)?;
        Ok(self.mark(dir, self.layer(dir).stat(Object::Entry(&*open, name))?))
    }

    /// Records that a rename moved `dir` of the upper layer to the name `name` of `parent`.
    pub fn moved(&self, dir: &LayerDir<L>, parent: &Arc<LayerDir<L>>, name: &OsStr) {
        if let Anchor::Entry(place) = &dir.anchor {
            let _before = place.lock().replace((parent.clone(), name.to_owned()));
        }
        if !self.layer(dir).capabilities().dirs_follow_rename {
            self.close_dirs();
        }
    }

    /// Closes all descriptors in the cache.
    pub fn close_dirs(&self) {
        let mut all = LruCache::new(OPEN_DIRS);
        std::mem::swap(&mut *self.open.lock(), &mut all);
    }

    fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

impl<L: Layer> LayerDir<L> {
    /// The index of the layer in the stack; the topmost is 0.
    pub fn index(&self) -> usize {
        self.layer
    }

    /// The untrusted user that made this directory, or one above it, merge with those above, if
    /// any.
    pub fn author(&self) -> Option<Author> {
        self.author
    }

    /// Takes out the reference to the parent directory.
    fn leave(&mut self) -> Option<Arc<Self>> {
        match &self.anchor {
            Anchor::Open(_) => None,
            Anchor::Entry(place) => place.lock().take().map(|(above, _)| above),
        }
    }
}

impl<L: Layer> Drop for LayerDir<L> {
    /// Works without recursion, since a tree may be deep.
    fn drop(&mut self) {
        let mut above = self.leave();
        while let Some(mut dir) = above.and_then(Arc::into_inner) {
            above = dir.leave();
        }
    }
}

/// Combines layer and device number. Device numbers leave the high bits free.
fn mark(layer: usize, device: u64) -> u64 {
    (layer as u64) << 48 ^ device
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::OsLayer;

    #[test]
    fn a_path_has_the_layer_and_the_names() {
        let place = tempfile::tempdir().unwrap();
        let stack = Stack::new(vec![OsLayer::open(place.path(), true).unwrap()], true).unwrap();
        let root = stack.upper_root().unwrap();
        let dir = stack.child(root, OsStr::new("dir"));
        let below = stack.child(&dir, OsStr::new("below"));
        assert_eq!(stack.path(root), place.path());
        assert_eq!(stack.path(&below), place.path().join("dir/below"));
        stack.moved(&dir, root, OsStr::new("moved"));
        assert_eq!(stack.path(&below), place.path().join("moved/below"));
    }
}
