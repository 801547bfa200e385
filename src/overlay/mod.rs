//! The engine: one merged tree over a stack of layers.
//!
//! A front end walks the tree by [`Overlay::lookup`] and works on [`Node`]s and [`Handle`]s. The
//! engine checks no access, knows names but no paths, and follows no symlinks. The front end does
//! all that.
//!
//! | file | subject |
//! | --- | --- |
//! | `stack` | the layers and the directories in them |
//! | `node`, `names`, `inode` | objects, the names of a directory, inode numbers |
//! | `attr`, `freshness` | attributes, and how current the known ones are |
//! | `xattr`, `times`, `ctime` | extended attributes; times that the upper layer stores; ctime |
//! | `ownership` | the rules of owners and set-id bits, for front ends |
//! | `merge` | one directory from all its layers: whiteouts, opaque and redirected directories |
//! | `lookup`, `evict` | from a name to a node; eviction of cached ones |
//! | `file`, `readdir` | handles, reading and writing; listings |
//! | `changed` | changed files, which stay open until their first stat |
//! | `copy_up`, `copy_plan`, `partial` | from a lower layer to the upper one; its plan; large files in part |
//! | `progress`, `cancel` | log lines of long copies; cancelled requests |
//! | `create`, `remove`, `rename`, `link` | changes of names |
//! | `whiteout` | how deletions and marks are written to the upper layer |
//! | `trust` | the redirects and marks of metadata that count |
//! | `devices` | devices with the number 0: devices or deletions |
//! | `metacopy` | files that have only metadata of their own |
//! | `flags`, `fixed` | flags of chattr(1); immutable and append-only files |
//! | `room` | free space in the upper layer, and promises of it |
//! | `work`, `read_only` | the work directory; that of an upper layer that the mount only reads |
//! | `detect` | the format of the upper layer |
//! | `index` | facts about copies for the next mount: links and inode numbers |
//! | `holder`, `end` | the process that holds the upper layer; completion and sync in pauses and at the end |
//! | `on_disk` | the data that overlays leave in layers and work directories, for `fsck` and `layer_tools` |
//! | `record`, `features` | the lower layers and the features that an upper layer was written with |
//! | `whole`, `commit` | work on whole layers, and the journal of a commit, for the tools of layers |
//! | `volatile` | the mark of an upper layer that is not synced |
//! | `compare`, `survey` | for `layer_tools`: the parts of a directory; an upper layer, counted |
//!
//! # One visible step
//! Every operation is a sequence of steps on the upper layer. Exactly one of them changes the
//! merged tree. So a crash anywhere leaves the state before or after. If the operation fails, the
//! engine undoes the steps before that one. If a step after it fails, the engine logs that, and the
//! leftover does not show.
//!
//! # Locks, in the order in which a thread takes them
//! 1. `Node::content`: the content and the names of one object. Two only for a rename, the smaller
//!    id first.
//! 2. `Overlay::across`: a rename of a file from one directory to another. Neither directory need
//!    be in the other, so their locks have no order of their own.
//! 3. `Overlay::tree`: shared for each use of a name. Exclusive for the rename of a directory, and
//!    for eviction, which may take the locks of directories in any order. Never held while data is
//!    copied.
//! 4. `Node::dir`: the content of one directory. A parent's before its child's.
//! 5. `Node::state`: the place of one object. One at a time; a rename that holds the content of two
//!    objects takes two.
//! 6. `Work::record`: the record, while a feature is added to it.
//! 7. Leaves: `inode`, `index`, `ctime`, `stack`, `partial`, `room`, `evict`, `trust`, `devices`,
//!    `changed`. A thread calls nothing under them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crate::errno::{EROFS, Error};

use crate::format::{self, Format, Wanted};
use crate::layer::{Layer, Object, Result};

mod attr;
mod cancel;
mod changed;
mod commit;
#[cfg(feature = "layer-tools")]
mod compare;
mod copy_plan;
mod copy_up;
mod create;
mod ctime;
#[cfg(feature = "layer-tools")]
mod deref;
mod detect;
mod devices;
mod end;
mod evict;
mod features;
mod file;
mod fixed;
mod flags;
mod freshness;
mod holder;
mod index;
mod inode;
mod link;
mod lookup;
mod merge;
mod metacopy;
mod names;
mod node;
pub(crate) mod on_disk;
pub mod ownership;
mod partial;
mod progress;
mod read_only;
mod readdir;
mod record;
mod remove;
mod rename;
mod room;
mod stack;
#[cfg(feature = "layer-tools")]
mod survey;
mod thin;
mod times;
mod trust;
mod volatile;
mod whiteout;
mod whole;
mod work;
mod xattr;

pub use cancel::{Cancel, check as check_wanted};
pub use features::{Feature, Features, Need, Unknown};
pub use file::Handle;
pub use fixed::{FixedLook, Looked};
pub use holder::Holder;
pub use node::Node;
pub use readdir::DirEntry;
pub use room::FILLED;
pub use times::Times;
pub use volatile::MARK as VOLATILE_MARK;
pub use whole::Redirected;
pub use work::Refused;

use crate::sync::{Lock, Shared};
use changed::Changed;
use ctime::Ctimes;
use evict::KnownDirs;
use features::check_lowers;
use index::Index;
use inode::{Claims, Inodes};
use node::{Dir, State};
use partial::Partials;
use read_only::Facts;
use room::Room;
use stack::{LayerDir, Stack};
use work::Work;

/// The layers of an overlay.
pub struct Layers<L> {
    /// The layer that takes the changes. Without one the overlay is read-only.
    pub upper: Option<L>,
    /// A directory on the upper layer's filesystem, for this overlay alone. Without one the overlay
    /// uses a reserved name in the upper layer. With [`Settings::read_only_upper`] it is that of
    /// the topmost lower layer, and is only read.
    pub work: Option<L>,
    /// The layers that the overlay only reads, topmost first.
    pub lowers: Vec<L>,
}

/// The options of an overlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Sync nothing, also on request, until the overlay rests or is dropped. Meanwhile the work
    /// directory has a mark ([`VOLATILE_MARK`]).
    pub volatile: bool,
    /// Use an upper layer that still has the mark, and remove the mark.
    pub reuse_volatile: bool,
    /// Copy each file up whole before its first change, so that the upper layer always has all of
    /// it. Otherwise a large file is completed when it is synced, linked or renamed, and at the
    /// drop of the overlay. In the kernel's format copies are always whole.
    pub whole_copies: bool,
    /// Trust redirects and marks of metadata in the layers, whichever user wrote them.
    pub trusted: bool,
    /// Make no redirects, which other programs do not read. The rename of a directory that lower
    /// layers have is EXDEV then. Existing redirects count.
    pub no_redirects: bool,
    /// The topmost lower layer is an upper layer that the overlay only reads. Leftovers of a killed
    /// overlay in it count.
    pub read_only_upper: bool,
    /// The overlay belongs to a commit. So it may use layers of which the record says that a commit
    /// is not finished.
    pub commits: bool,
    /// The format of the upper layer. None: the format that it has; a new one becomes an OCI image
    /// layer.
    pub format: Option<Wanted>,
    /// The number of cached directories and names above which the engine evicts. None: the default.
    pub known_max: Option<usize>,
}

/// A merged tree.
pub struct Overlay<L: Layer> {
    stack: Stack<L>,
    work: Option<Work<L>>,
    /// Whether the topmost layer is an upper layer that the mount only reads.
    reads_upper: bool,
    /// The facts about copies in it.
    read_only: Option<Facts<L>>,
    trusted: bool,
    root: Arc<Node<L>>,
    inodes: Inodes<L>,
    /// The device number that every object of the tree shows.
    device: u64,
    /// The upper and the work directory. They show as empty where a lower layer contains them.
    hidden: HashSet<(u64, u64)>,
    /// The maximum length of a name.
    name_max: usize,
    /// The times that the upper layer can store. Without an upper layer, all.
    times: Times,
    ctimes: Ctimes,
    /// The nodes with a time of last change of status that `ctimes` lacks ([`State::ctime`]), by
    /// id. The lock is a leaf.
    undated: Lock<HashMap<u64, Weak<Node<L>>>>,
    changed: Changed<L>,
    /// Whether the front end keeps the times of regular files.
    dated_by_front_end: AtomicBool,
    across: Lock<()>,
    tree: Shared<()>,
    partials: Partials<L>,
    room: Room,
    /// Whether a directory may get a redirect.
    redirects: bool,
    next_id: AtomicU64,
    known: KnownDirs<L>,
    devices: devices::Marked,
    withheld: trust::Withheld,
    /// Whether the overlay has given its layers up.
    retired: AtomicBool,
}

impl<L: Layer> Overlay<L> {
    /// Stacks the layers, with the default settings. Holds the upper layer until the drop. Removes
    /// leftovers of an earlier mount from the work directory, but not the facts about copies.
    ///
    /// # Errors
    ///
    /// Each reason is a variant of [`Refused`].
    pub fn new(layers: Layers<L>) -> std::result::Result<Self, Refused> {
        Self::with_settings(layers, Settings::default())
    }

    /// Does the same as [`Overlay::new`], with these settings.
    ///
    /// # Errors
    ///
    /// Each reason is a variant of [`Refused`].
    pub fn with_settings(layers: Layers<L>, settings: Settings) -> std::result::Result<Self, Refused> {
        let has_upper = layers.upper.is_some();
        let stack = Stack::new(layers.upper.into_iter().chain(layers.lowers).collect(), has_upper)?;
        let read_work = layers.work.as_ref().filter(|_| settings.read_only_upper && !has_upper);
        check_lowers(&stack, read_work, settings.commits)?;
        let (mut work, mut read_only, mut claims, mut ctimes) = (None, None, Claims::new(), Ctimes::default());
        if has_upper {
            let (prepared, known, shown) = Work::prepare(&stack, layers.work, settings)?;
            (work, claims, ctimes) = (Some(prepared), known, shown);
        } else if settings.read_only_upper
            && let Some((facts, known)) = Facts::read(&stack, layers.work)
        {
            (read_only, claims) = (Some(facts), known);
        }
        let hidden = hidden_dirs(&stack, work.as_ref())?;
        let top = stack.upper_root().or(stack.lower_roots().first()).ok_or(Refused::NoLayer)?;
        let device = stack.device(top);
        let attr = stack.mark(top, stack.layer(top).stat(Object::Dir(&*stack.open(top)?))?);
        let space = stack.top().stat_fs()?;

        let format = work.as_ref().map_or(format::OCI, Work::format);
        let times = work.as_ref().map_or_else(Times::default, Work::times);
        let partials = Partials::new(&stack, settings, format)?;
        let has_copies = has_upper || read_only.is_some();
        let inodes = Inodes::new(&stack.marked_devices().collect::<Vec<_>>(), has_copies, claims);
        let dir = Dir::unread(stack.upper_root().cloned(), stack.lower_roots().to_vec());
        let state = State::root(has_upper, attr, inodes.visible(attr.dev, attr.ino));
        let root = Node::new(0, attr.kind, state, Some(dir));
        Ok(Overlay {
            stack,
            work,
            reads_upper: settings.read_only_upper && !has_upper,
            read_only,
            trusted: settings.trusted,
            root,
            inodes,
            device,
            hidden,
            name_max: space.name_max as usize,
            times,
            ctimes,
            undated: Lock::default(),
            changed: Changed::default(),
            dated_by_front_end: AtomicBool::new(false),
            across: Lock::new(()),
            tree: Shared::new(()),
            partials,
            room: Room::new(&space),
            redirects: !settings.no_redirects,
            next_id: AtomicU64::new(1),
            known: KnownDirs::new(settings.known_max),
            devices: devices::Marked::default(),
            withheld: trust::Withheld::default(),
            retired: AtomicBool::new(false),
        })
    }

    /// The root of the merged tree.
    pub fn root(&self) -> &Arc<Node<L>> {
        &self.root
    }

    /// Whether there is no upper layer, so that every change returns EROFS.
    pub fn is_read_only(&self) -> bool {
        self.work.is_none()
    }

    /// The times that can be set, and are shown.
    pub fn times(&self) -> Times {
        self.times
    }

    /// Closes the cached directories of layers, for a process that has run out of descriptors.
    pub fn close_dirs(&self) {
        self.stack.close_dirs();
    }

    /// Returns the upper layer and the work directory.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    fn upper(&self) -> Result<(&L, &Work<L>)> {
        match (self.stack.upper(), &self.work) {
            (Some(upper), Some(work)) => Ok((upper, work)),
            _ => Err(Error::new(EROFS)),
        }
    }

    /// Returns the directory with the index entries, and the index. None if no layer is an upper
    /// one.
    fn copies(&self) -> Option<(&Arc<LayerDir<L>>, &Index<L>)> {
        let written = self.work.as_ref().map(|work| (work.dir(), work.index()));
        written.or_else(|| self.read_only.as_ref().map(|facts| (&facts.dir, &facts.index)))
    }

    /// Whether `dir` is in the upper layer, also in one that the mount only reads.
    fn is_in_upper_layer(&self, dir: &LayerDir<L>) -> bool {
        self.stack.is_upper(dir) || self.reads_upper && dir.index() == 0
    }

    /// The format of the upper layer.
    fn format(&self) -> Format {
        self.work.as_ref().map_or(format::OCI, Work::format)
    }

    fn is_root(&self, node: &Arc<Node<L>>) -> bool {
        Arc::ptr_eq(node, &self.root)
    }

    fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

/// The upper and the work directory, by their numbers.
fn hidden_dirs<L: Layer>(stack: &Stack<L>, work: Option<&Work<L>>) -> Result<HashSet<(u64, u64)>> {
    let dirs = stack.upper_root().into_iter().chain(work.map(Work::dir));
    let number = |dir: &Arc<LayerDir<L>>| {
        let stat = stack.layer(dir).stat(Object::Dir(&*stack.open(dir)?))?;
        Ok((stat.dev, stat.ino))
    };
    dirs.map(number).collect()
}
