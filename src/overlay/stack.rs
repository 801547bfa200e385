//! The stack of layers, and where a directory is in one of them.
//!
//! A [`LayerDir`] is a place, not a descriptor: descriptors are opened when they are needed and
//! kept in a bounded cache, so that a tree of any size is walked with a bounded number of them.
//!
//! Locks: `LayerDir::place` and `Stack::open` are leaves; neither is held while another is taken or
//! a layer is called.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::errno::{EIO, Error};
use lru::LruCache;

use super::trust::Author;
use crate::layer::{Layer, Object, Result, Stat};
use crate::sync::Lock;

/// How many directory descriptors are kept open at most.
const OPEN_DIRS: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// How many of the directories above one that is opened are kept open: those nearest to it, and
/// some on the way. All of a deep path would push out those of other layers, which the next step
/// needs again.
const NEAR: usize = 8;
const ON_THE_WAY: usize = 16;

/// The layers, the topmost first.
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
    /// Never reused; the key of the descriptor cache.
    id: u64,
    /// Index into the stack; never changes.
    layer: usize,
    /// Who had it merged with what is above it, if his word is not trusted.
    author: Option<Author>,
    anchor: Anchor<L>,
}

enum Anchor<L: Layer> {
    /// Always open: a layer's root, or the work directory.
    Open(Arc<L::Dir>),
    /// An entry of another directory. It moves when a directory of the upper layer is renamed. None
    /// while it is dropped.
    Entry(Lock<Option<LayerPlace<L>>>),
}

/// A directory and a name in it.
pub type LayerPlace<L> = (Arc<LayerDir<L>>, OsString);

impl<L: Layer> Stack<L> {
    /// A stack of `layers`, topmost first, of which the first is the upper one if `has_upper`.
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

    /// The roots of the lower layers, the topmost first.
    pub fn lower_roots(&self) -> &[Arc<LayerDir<L>>] {
        &self.roots[usize::from(self.has_upper)..]
    }

    /// The roots of the layers below that of `dir`.
    pub fn roots_below(&self, dir: &LayerDir<L>) -> &[Arc<LayerDir<L>>] {
        &self.roots[dir.layer + 1..]
    }

    /// The top of the layer that `dir` is in.
    pub fn root(&self, dir: &LayerDir<L>) -> &Arc<LayerDir<L>> {
        &self.roots[dir.layer]
    }

    /// The layer that `dir` is in.
    pub fn layer(&self, dir: &LayerDir<L>) -> &L {
        &self.layers[dir.layer]
    }

    /// Attributes as [`Layer::stat`] answers them in the layer of `dir`, but for `dev`, which here
    /// tells layers apart too: layers may contain one another, and what shows at two places of the
    /// tree is two objects.
    pub fn mark(&self, dir: &LayerDir<L>, stat: Stat) -> Stat {
        Stat { dev: mark(dir.layer, stat.dev), ..stat }
    }

    /// What [`Stack::mark`] makes of the filesystem of each layer's root, the topmost first.
    pub fn marked_devices(&self) -> impl Iterator<Item = u64> {
        self.devices.iter().enumerate().map(|(layer, device)| mark(layer, *device))
    }

    /// What [`Stack::mark`] makes of the filesystem that `dir` is on.
    pub fn marked_device(&self, dir: &LayerDir<L>) -> u64 {
        mark(dir.layer, self.devices[dir.layer])
    }

    /// The filesystem that `dir` is on.
    pub fn device(&self, dir: &LayerDir<L>) -> u64 {
        self.devices[dir.layer]
    }

    /// Which layer `dir` is in, counted from the bottom.
    pub fn level(&self, dir: &LayerDir<L>) -> usize {
        self.layers.len() - 1 - dir.layer
    }

    /// The inode number of the root of the layer that `dir` is in.
    pub fn root_ino(&self, dir: &LayerDir<L>) -> u64 {
        self.root_inos[dir.layer]
    }

    /// The topmost layer.
    pub fn top(&self) -> &L {
        &self.layers[0]
    }

    /// A directory of layer `index` that stays open.
    pub fn anchored(&self, index: usize, dir: L::Dir) -> Arc<LayerDir<L>> {
        Arc::new(LayerDir { id: self.new_id(), layer: index, author: None, anchor: Anchor::Open(Arc::new(dir)) })
    }

    /// The directory `name` of `parent`. Nothing is asked of the layer.
    pub fn child(&self, parent: &Arc<LayerDir<L>>, name: &OsStr) -> Arc<LayerDir<L>> {
        self.child_for(parent, name, None)
    }

    /// As [`Stack::child`], where it also is on the word of `author` that the directory is looked
    /// for there.
    pub fn child_for(&self, parent: &Arc<LayerDir<L>>, name: &OsStr, author: Option<Author>) -> Arc<LayerDir<L>> {
        let author = Author::and(parent.author, author);
        let place = Lock::new(Some((parent.clone(), name.to_owned())));
        Arc::new(LayerDir { id: self.new_id(), layer: parent.layer, author, anchor: Anchor::Entry(place) })
    }

    /// A descriptor of `dir`: none, one, or as many backing calls as there are directories above it
    /// whose descriptor is not open.
    pub fn open(&self, dir: &LayerDir<L>) -> Result<Arc<L::Dir>> {
        if let Some(open) = self.cached(dir) {
            return Ok(open);
        }
        let (mut below, mut id, mut place) = (Vec::new(), dir.id, self.parent(dir));
        let mut open = loop {
            // What is in no directory is always open.
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
                // What is pushed out is closed after the cache is free again.
                let _closed = self.open.lock().push(id, open.clone());
            }
        }
        Ok(open)
    }

    /// The descriptor of `dir`, if it is open.
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

    /// The directory that `dir` is in, and its name there. None: the top of a layer.
    pub fn parent(&self, dir: &LayerDir<L>) -> Option<LayerPlace<L>> {
        match &dir.anchor {
            Anchor::Open(_) => None,
            Anchor::Entry(place) => place.lock().clone(),
        }
    }

    /// Attributes of the entry `name` of `dir`, marked.
    pub fn stat(&self, dir: &LayerDir<L>, name: &OsStr) -> Result<Stat> {
        let open = self.open(dir)?;
        Ok(self.mark(dir, self.layer(dir).stat(Object::Entry(&*open, name))?))
    }

    /// Says that `dir` of the upper layer, moved by a rename, is now the entry `name` of `parent`.
    pub fn moved(&self, dir: &LayerDir<L>, parent: &Arc<LayerDir<L>>, name: &OsStr) {
        if let Anchor::Entry(place) = &dir.anchor {
            let _before = place.lock().replace((parent.clone(), name.to_owned()));
        }
        if !self.layer(dir).capabilities().dirs_follow_rename {
            self.close_dirs();
        }
    }

    /// Closes the descriptors that are kept.
    pub fn close_dirs(&self) {
        let mut all = LruCache::new(OPEN_DIRS);
        std::mem::swap(&mut *self.open.lock(), &mut all);
    }

    fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

impl<L: Layer> LayerDir<L> {
    /// Which layer of the stack this is, the topmost being 0.
    pub fn index(&self) -> usize {
        self.layer
    }

    /// Who had this directory, or one above it, merged with what is above it, if his word is not
    /// trusted.
    pub fn author(&self) -> Option<Author> {
        self.author
    }

    /// Lets go of the directory that it is in.
    fn leave(&mut self) -> Option<Arc<Self>> {
        match &self.anchor {
            Anchor::Open(_) => None,
            Anchor::Entry(place) => place.lock().take().map(|(above, _)| above),
        }
    }
}

impl<L: Layer> Drop for LayerDir<L> {
    /// Without recursion, since a tree may be deep.
    fn drop(&mut self) {
        let mut above = self.leave();
        while let Some(mut dir) = above.and_then(Arc::into_inner) {
            above = dir.leave();
        }
    }
}

/// Numbers of devices leave the high bits free.
fn mark(layer: usize, device: u64) -> u64 {
    (layer as u64) << 48 ^ device
}
