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
//! | `find` | from an inode number to a node, for file handles |
//! | `file`, `readdir` | handles, reading and writing; listings |
//! | `changed` | changed files, which stay open until their first stat |
//! | `copy_up`, `copy_plan`, `partial` | from a lower layer to the upper one; its plan; large files in part |
//! | `emptied` | copy-up of a file that is truncated: the copy is made at its place |
//! | `progress`, `cancel` | log lines of long copies; cancelled requests |
//! | `create`, `remove`, `rename`, `link` | changes of names |
//! | `whiteout` | how deletions and marks are written to the upper layer |
//! | `trust` | the redirects and marks of metadata that count |
//! | `devices` | devices with the number 0: devices or deletions |
//! | `metacopy` | files that have only metadata of their own |
//! | `flags`, `fixed` | flags of chattr(1); immutable and append-only files |
//! | `room` | free space in the upper layer, and promises of it |
//! | `work`, `frozen` | the work directory; those of upper layers that the overlay only reads |
//! | `chain`, `snapshot` | the layers of a chain of snapshots; snapshot and rollback |
//! | `detect` | the format of the upper layer |
//! | `index` | facts about copies for the next mount: links and inode numbers |
//! | `claims`, `compact` | the inode numbers of earlier mounts; maps of very many entries |
//! | `handover` | the objects in use, taken over by another overlay of the same tree |
//! | `holder`, `end` | the process that holds the upper layer; completion and sync in pauses and at the end |
//! | `removal` | the removal of a tree in a layer |
//! | `on_disk` | the data that overlays leave in layers and work directories, for `fsck` and `layer_tools` |
//! | `record`, `features` | the lower layers and the features that an upper layer was written with |
//! | `whole`, `commit` | work on whole layers, and the journal of a commit, for the tools of layers |
//! | `walk` | a walk through the merged tree |
//! | `volatile` | the mark of an upper layer that is not synced |
//! | `status` | the numbers that an overlay at work tells about itself |
//! | `compare`, `survey` | for `layer_tools`: the parts of a directory; an upper layer, counted |
//!
//! # One visible step
//! Every operation is a sequence of steps on the upper layer. Exactly one of them changes the
//! merged tree. So a crash anywhere leaves the state before or after. If the operation fails, the
//! engine undoes the steps before that one. If a step after it fails, the engine logs that, and the
//! leftover does not show.
//!
//! # Locks, in the order in which a thread takes them
//! 1. `find`: held during a walk of the tree.
//! 2. `Node::content`: the content and the names of one object. Two only for a rename, the smaller
//!    id first.
//! 3. `Overlay::across`: a rename of a file from one directory to another. Neither directory need
//!    be in the other, so their locks have no order of their own.
//! 4. `Overlay::tree`: shared for each use of a name. Exclusive for the rename of a directory, and
//!    for eviction, which may take the locks of directories in any order. Never held while data is
//!    copied.
//! 5. `Node::dir`: the content of one directory. A parent's before its child's.
//! 6. `Node::state`: the place of one object. One at a time; a rename that holds the content of two
//!    objects takes two.
//! 7. `Work::record`: the record, while a feature is added to it.
//! 8. Leaves: `inode`, `index`, `ctime`, `stack`, `partial`, `room`, `evict`, `trust`, `devices`,
//!    `changed`, `earlier`, the table of `find`. A thread calls nothing under them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crate::errno::{EIO, EROFS, Error};

use crate::format::listing::NAMES_AT_ONCE;
use crate::format::{Format, Wanted};
use crate::layer::{Layer, Object, Result};

mod attr;
mod cancel;
mod chain;
mod changed;
mod claims;
mod commit;
mod compact;
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
mod emptied;
mod end;
mod evict;
mod features;
mod file;
mod find;
mod fixed;
mod flags;
mod freshness;
mod frozen;
mod handover;
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
mod readdir;
mod record;
mod removal;
mod remove;
mod rename;
mod room;
mod snapshot;
mod stack;
mod status;
#[cfg(feature = "layer-tools")]
mod survey;
mod thin;
mod times;
mod trust;
mod volatile;
mod walk;
mod whiteout;
mod whole;
mod work;
mod xattr;

pub use cancel::{Cancel, check as check_wanted};
pub use chain::Snapshot;
pub use features::{Feature, Features, Need, Unknown};
pub use file::Handle;
pub use fixed::{FixedLook, Looked};
pub use handover::{Handover, NamelessNote, Note, Place, Plan, pack_notes};
pub use holder::Holder;
pub use node::Node;
pub use readdir::DirEntry;
pub use room::FILLED;
pub use snapshot::Unfrozen;
pub use times::Times;
pub use volatile::MARK as VOLATILE_MARK;
pub use walk::EachDir;
pub use whole::Redirected;
pub use work::Refused;

use crate::sync::{Lock, Shared};
use chain::{Chain, Level};
use changed::Changed;
use claims::Claims;
use ctime::Ctimes;
use evict::KnownDirs;
use features::check_lowers;
use find::Whereabouts;
use frozen::Facts;
use handover::Earlier;
use index::Index;
use inode::Inodes;
use node::{Dir, State};
use partial::Partials;
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
    /// The overlay takes the place of another one, in another process, that left its upper layer as
    /// it was. So files without a name in the work directory stay, and the mark of a volatile
    /// overlay is its own.
    pub succeeds: bool,
    /// Without an upper layer, show the inode numbers that the objects have below one. Else those
    /// of the topmost layer are unchanged.
    pub numbers_as_below: bool,
    /// What an overlay that only reads its upper layers takes from their work directories.
    pub copy_facts: CopyFacts,
    /// The format of the upper layer. None: the format that it has; a new one becomes an OCI image
    /// layer.
    pub format: Option<Wanted>,
    /// The number of cached directories and names above which the engine evicts. None: the default.
    pub known_max: Option<usize>,
    /// The number of names of a directory that the engine has in memory at once, about. None: all
    /// of them.
    pub names_at_once: Option<usize>,
}

/// The facts about copies in upper layers that an overlay takes from their work directories. They
/// take memory for each copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyFacts {
    /// All, so that the tree is as the mount showed it.
    #[default]
    All,
    /// All but inode numbers. A copy may show another number than its original.
    Names,
    /// None, for upper layers that are whole ([`Overlay::make_whole`]). An object in them may show
    /// another number of names.
    Nothing,
}

/// The number of cached directories and names above which an overlay for one walk evicts.
const KNOWN_MAX_OF_WALK: usize = 4096;

impl Settings {
    /// The default settings for an overlay that serves a walk through its tree. A walk uses each
    /// directory once, so the overlay keeps few. It should go through the names of a directory in
    /// the order of their bytes.
    pub fn for_walk() -> Self {
        Settings { known_max: Some(KNOWN_MAX_OF_WALK), names_at_once: Some(NAMES_AT_ONCE), ..Settings::default() }
    }
}

/// A merged tree.
pub struct Overlay<L: Layer> {
    stack: Stack<L>,
    work: Option<Work<L>>,
    /// The work directories of the upper layers, from the bottom.
    works: Vec<Arc<LayerDir<L>>>,
    /// Those of frozen layers that are layers of their own.
    _work_layers: Vec<L>,
    /// The number of upper layers that the overlay only reads. They are the topmost lower ones.
    frozen: usize,
    /// The format of all upper layers.
    format: Format,
    chain: Option<Chain<L>>,
    /// Whether another overlay has taken the place of this one, and holds the chain.
    is_succeeded: AtomicBool,
    settings: Settings,
    /// The index of an overlay that only reads upper layers.
    shown_index: Option<Index<L>>,
    /// Whether a copy in it shows under a name that only a lower layer has.
    #[cfg_attr(not(feature = "layer-tools"), expect(dead_code, reason = "only layer_tools ask for it"))]
    shows_below: bool,
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
    next_id: AtomicU64,
    known: KnownDirs<L>,
    devices: devices::Marked,
    withheld: trust::Withheld,
    /// The process that was signed last as the holder. The lock is a leaf.
    holder: Lock<Option<Holder>>,
    /// The objects that the front end knew in another overlay of the same tree.
    earlier: Earlier<L>,
    whereabouts: Whereabouts,
    counters: status::Counters,
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
        let (levels, lowers) = levels(layers, settings);
        if levels.is_empty() && lowers.is_empty() {
            return Err(Refused::NoLayer);
        }
        Self::stacked(levels, lowers, None, settings)
    }

    /// Does the same as [`Overlay::with_settings`], with a chain of snapshots in the directory
    /// `snapshots`. It begins with the upper layer of `layers`; the topmost layer of the chain
    /// takes the changes.
    ///
    /// # Errors
    ///
    /// Each reason is a variant of [`Refused`].
    pub fn with_snapshots(layers: Layers<L>, snapshots: L, settings: Settings) -> std::result::Result<Self, Refused> {
        let (mut levels, lowers) = levels(layers, settings);
        let base = levels.pop().ok_or(Refused::NoLayer)?;
        let (chain, levels) = Chain::open(snapshots, base, !settings.read_only_upper)?;
        Self::stacked(levels, lowers, Some(chain), settings)
    }

    /// Stacks the upper layers `levels`, from the bottom, on the lower ones. The topmost of them
    /// takes the changes, unless the settings say that it is only read.
    fn stacked(
        levels: Vec<Level<L>>,
        lowers: Vec<L>,
        chain: Option<Chain<L>>,
        settings: Settings,
    ) -> std::result::Result<Self, Refused> {
        let has_upper = !levels.is_empty() && !settings.read_only_upper;
        let (uppers, mut works): (Vec<_>, Vec<_>) = levels.into_iter().unzip();
        let count = uppers.len();
        let stack = Stack::new(uppers.into_iter().rev().chain(lowers).collect(), has_upper)?;
        let top_work = if has_upper { works.pop().flatten() } else { None };
        check_lowers(&stack, &works, settings.commits)?;
        let frozen = works.len();
        let Facts { dirs: mut work_dirs, known, ctimes, layers } = Facts::read(&stack, works, settings)?;
        let (mut work, mut shown_index, mut claims) = (None, None, Claims::default());
        if has_upper {
            let (prepared, met) = Work::prepare(&stack, top_work, settings, (known, &ctimes), chain.is_some())?;
            work_dirs.push(prepared.dir().clone());
            (work, claims) = (Some(prepared), met);
        } else if !work_dirs.is_empty() {
            let (index, met) = Index::of(known);
            (shown_index, claims) = (Some(index), met);
        }
        let hidden = hidden_dirs(&stack, count, &work_dirs, chain.as_ref())?;
        let space = stack.top().stat_fs()?;

        let format = detect::format_of(&stack, work.as_ref(), frozen)?;
        let times = work.as_ref().map_or_else(Times::default, Work::times);
        let partials = Partials::new(&stack, settings, format)?;
        let inodes = Inodes::new(&stack.marked_devices().collect::<Vec<_>>(), count, settings.numbers_as_below, claims);
        let (root, device) = root_of(&stack, &inodes, count)?;
        Ok(Overlay {
            stack,
            work,
            works: work_dirs,
            _work_layers: layers,
            frozen,
            format,
            chain,
            is_succeeded: AtomicBool::new(false),
            settings,
            shows_below: shown_index.as_ref().is_some_and(Index::shows_below),
            shown_index,
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
            next_id: AtomicU64::new(1),
            known: KnownDirs::new(settings.known_max),
            devices: devices::Marked::default(),
            withheld: trust::Withheld::default(),
            holder: Lock::default(),
            earlier: Earlier::default(),
            whereabouts: Whereabouts::default(),
            counters: status::Counters::default(),
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

    /// Returns the index. None if no layer is an upper one.
    fn copies(&self) -> Option<&Index<L>> {
        self.work.as_ref().map(Work::index).or(self.shown_index.as_ref())
    }

    /// Returns the work directory with this place in [`Overlay::works`].
    fn work_at(&self, at: usize) -> Result<&Arc<LayerDir<L>>> {
        self.works.get(at).ok_or(Error::new(EIO))
    }

    /// The number of upper layers that the overlay only reads.
    fn frozen_count(&self) -> usize {
        self.frozen
    }

    /// Whether `dir` is in one of these.
    fn is_frozen(&self, dir: &LayerDir<L>) -> bool {
        let first = usize::from(self.work.is_some());
        (first..first + self.frozen).contains(&dir.index())
    }

    /// Whether `dir` is in the upper layer, also in one that the mount only reads.
    fn is_in_upper_layer(&self, dir: &LayerDir<L>) -> bool {
        self.stack.is_upper(dir) || self.settings.read_only_upper && dir.index() == 0
    }

    /// The format of the upper layer, also of one that the overlay only reads.
    fn format(&self) -> Format {
        self.format
    }

    fn is_root(&self, node: &Arc<Node<L>>) -> bool {
        Arc::ptr_eq(node, &self.root)
    }

    fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

/// Returns the upper layers with their work directories, from the bottom, and the lower layers.
fn levels<L: Layer>(layers: Layers<L>, settings: Settings) -> (Vec<Level<L>>, Vec<L>) {
    let Layers { upper, work, mut lowers } = layers;
    let upper = match upper {
        None if settings.read_only_upper && !lowers.is_empty() => Some(lowers.remove(0)),
        upper => upper,
    };
    (upper.map(|upper| (upper, work)).into_iter().collect(), lowers)
}

/// Makes the node of the root of a stack with `count` upper layers. Also returns the device number
/// of its layer.
fn root_of<L: Layer>(
    stack: &Stack<L>,
    inodes: &Inodes<L>,
    count: usize,
) -> std::result::Result<(Arc<Node<L>>, u64), Refused> {
    let top = stack.upper_root().or(stack.lower_roots().first()).ok_or(Refused::NoLayer)?;
    let attr = stack.mark(top, stack.layer(top).stat(Object::Dir(&*stack.open(top)?))?);
    // The root keeps its number when a new layer is put on top.
    let first = stack.level_root(stack.len() - count.max(1)).unwrap_or(top);
    let ino = inodes.visible(stack.marked_device(first), stack.root_ino(first));
    let dir = Dir::unread(stack.upper_root().cloned(), stack.lower_roots().to_vec());
    let state = State::root(stack.upper().is_some(), attr, ino);
    Ok((Node::new(0, attr.kind, state, Some(dir)), stack.device(top)))
}

/// The `count` upper layers, their work directories, and the directory of the chain, by their
/// numbers. Only an overlay that writes hides them.
fn hidden_dirs<L: Layer>(
    stack: &Stack<L>,
    count: usize,
    works: &[Arc<LayerDir<L>>],
    chain: Option<&Chain<L>>,
) -> Result<HashSet<(u64, u64)>> {
    if stack.upper().is_none() {
        return Ok(HashSet::new());
    }
    let uppers = stack.upper_root().into_iter().chain(stack.lower_roots()).take(count);
    let number = |layer: &L, dir: &L::Dir| layer.stat(Object::Dir(dir)).map(|stat| (stat.dev, stat.ino));
    let dirs = uppers.chain(works).map(|dir| number(stack.layer(dir), &*stack.open(dir)?));
    dirs.chain(chain.map(|chain| number(&chain.dir, &chain.dir.root()?))).collect()
}
