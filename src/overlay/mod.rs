//! The engine: one merged tree over a stack of layers.
//!
//! A front end (the scheme, or a mount) walks the tree by [`Overlay::lookup`] and works on
//! [`Node`]s and [`Handle`]s. The engine never checks access, knows no paths but names, and follows
//! no symlinks: that is the front end's.
//!
//! | file | subject |
//! | --- | --- |
//! | `stack` | the layers and the directories in them |
//! | `node`, `names`, `inode` | objects, the names of a directory, inode numbers |
//! | `freshness`, `ctime`, `times` | how old known attributes are; times of last change of status; the times that the upper layer keeps |
//! | `merge` | one directory read from all its layers: whiteouts, opaque and redirected directories |
//! | `lookup`, `evict` | from a name to a node; what is forgotten again |
//! | `attr`, `xattr`, `file`, `readdir` | attributes; extended ones; handles, reading and writing; listings |
//! | `ownership` | the rules of owners and set-id bits, for the front ends |
//! | `copy_up`, `copy_plan`, `partial`, `progress` | from a lower layer to the upper one; of a large file, at first only in part; what is decided before; what is said if that takes long |
//! | `create`, `remove`, `rename`, `link` | changes of names |
//! | `whiteout` | how deletions and marks are written to the upper layer |
//! | `trust` | whose redirects and marks of metadata count |
//! | `devices` | devices with the number 0: whether they are devices or deletions |
//! | `metacopy` | files that have only metadata of their own |
//! | `flags`, `fixed` | flags of chattr(1), what is immutable or append-only; whether the upper layer has such files |
//! | `room` | what the upper layer has room for, and for whom it is kept free |
//! | `work`, `detect` | the work directory, where things are built before they appear; in which format the upper layer is written |
//! | `index` | what the next mount has to know of copies: their links and inode numbers |
//! | `holder`, `end` | who holds the upper layer; what is completed and synced in pauses and at the end |
//! | `record` | what the upper layer was stacked on, and which features it needs |
//! | `volatile` | the mark of an upper layer to which nothing is synced |
//!
//! # One visible step
//! Every operation is a sequence of steps on the upper layer of which exactly one changes the
//! merged tree, so that a crash anywhere leaves the state before or after. Steps before it are
//! undone if it fails; a step after it that fails is logged and leaves what nobody sees.
//!
//! # Locks, in the order in which they are taken
//! 1. `Node::content`: the content and the names of one object. Two only for a rename, the smaller
//!    id first.
//! 2. `Overlay::across`: by who locks two directories of which neither need be in the other, to
//!    rename a file from one to the other.
//! 3. `Overlay::tree`: shared by whatever uses a name; exclusive for a rename of a directory and
//!    for forgetting nodes, which then may take the locks of directories in any order. Never held
//!    while data is copied.
//! 4. `Node::dir`: what is in one directory. A parent's before its child's.
//! 5. `Node::state`: where one object is. One at a time, but for a rename, which has the content of
//!    both.
//! 6. Leaves, under which nothing is called: `inode`, `index`, `ctime`, `stack`, `partial`, `room`,
//!    `evict`.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crate::errno::{EROFS, Error};

use crate::format::{self, Format, Wanted};
use crate::layer::{Layer, Object, Result};

mod attr;
mod cancel;
mod copy_plan;
mod copy_up;
mod create;
mod ctime;
mod detect;
mod devices;
mod end;
mod evict;
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
pub mod ownership;
mod partial;
mod progress;
mod readdir;
mod record;
mod remove;
mod rename;
mod room;
mod stack;
mod times;
mod trust;
mod volatile;
mod whiteout;
mod work;
mod xattr;

pub use cancel::{Cancel, check as check_wanted};
pub use file::Handle;
pub use fixed::{FixedLook, Looked};
pub use holder::Holder;
pub use node::Node;
pub use readdir::DirEntry;
pub use room::FILLED;
pub use times::Times;
pub use volatile::MARK as VOLATILE_MARK;
pub use work::Refused;

use crate::sync::{Lock, Shared};
use ctime::Ctimes;
use evict::KnownDirs;
use inode::{Claims, Inodes};
use node::{Dir, State};
use partial::Partials;
use room::Room;
use stack::Stack;
use work::Work;

/// What overlays leave in layers and in work directories, for `fsck`. Beside the public interface
/// this is all that `fsck` uses of the engine, with [`Overlay::stack`] and [`Overlay::digest`].
pub(crate) mod on_disk {
    pub(crate) use super::detect::namespace;
    pub(crate) use super::holder::{RECORD as HOLDER, hold};
    pub(crate) use super::index::{NUMBERS, Origin, origin, review, rewrite};
    pub(crate) use super::partial::{map_len, means_something as map_means_something};
    pub(crate) use super::record::Record;
    pub(crate) use super::stack::{LayerDir, Stack};
    pub(crate) use super::volatile::is_marked as is_marked_volatile;
    pub(crate) use super::work::{is_kept, is_ours};
}

/// What an overlay is made of.
pub struct Layers<L> {
    /// The layer that takes the changes. Without one the overlay is read-only.
    pub upper: Option<L>,
    /// A directory on the upper layer's filesystem, for ourselves alone. Without one a reserved
    /// name in the upper layer is used.
    pub work: Option<L>,
    /// The layers that are only read, the topmost first.
    pub lowers: Vec<L>,
}

/// What an overlay does beside stacking its layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Nothing is synced, also if a caller asks for it, until the overlay rests or is dropped.
    /// Until then the upper layer is marked ([`VOLATILE_MARK`] in the work directory).
    pub volatile: bool,
    /// An upper layer that was left marked is used, and the mark taken away.
    pub reuse_volatile: bool,
    /// A file is copied up whole before its first change, however large, so that the upper layer
    /// always has all of it. Otherwise a large file is completed when it is synced, linked or
    /// renamed, and when the overlay is dropped. In the kernel's format copies are always whole.
    pub whole_copies: bool,
    /// What redirects and marks of metadata in the layers say counts, whoever may have written it.
    pub trusted: bool,
    /// A directory that lower layers have cannot be renamed (EXDEV), so that the upper layer gets
    /// no redirects, which other programs that read it do not know. Those that are there are
    /// followed.
    pub no_redirects: bool,
    /// The topmost of the lower layers is an upper layer that is only read: what an overlay that
    /// was killed left in it counts.
    pub read_only_upper: bool,
    /// How the upper layer is to be written. None: as it is written already, a new one as an OCI
    /// image layer.
    pub format: Option<Wanted>,
    /// How many directories and names in them are remembered before some are forgotten. None: as
    /// many as is usual.
    pub known_max: Option<usize>,
}

/// A merged tree.
pub struct Overlay<L: Layer> {
    stack: Stack<L>,
    work: Option<Work<L>>,
    trusted: bool,
    root: Arc<Node<L>>,
    inodes: Inodes<L>,
    /// The device number that every object of the tree shows.
    device: u64,
    /// The upper and the work directory, which are shown empty where a lower layer contains them.
    hidden: HashSet<(u64, u64)>,
    /// The longest name that an entry can have.
    name_max: usize,
    /// The times that the upper layer keeps; without one, all.
    times: Times,
    ctimes: Ctimes,
    /// What has a time of last change of status that `ctimes` has not ([`State::ctime`]), by the
    /// node's id. The lock is a leaf.
    undated: Lock<HashMap<u64, Weak<Node<L>>>>,
    /// The front end keeps the times of regular files.
    dated_by_front_end: AtomicBool,
    across: Lock<()>,
    tree: Shared<()>,
    partials: Partials<L>,
    room: Room,
    /// A directory may get a redirect.
    redirects: bool,
    next_id: AtomicU64,
    known: KnownDirs<L>,
    devices: devices::Marked,
    withheld: trust::Withheld,
    /// Nothing in the layers is this overlay's any more.
    retired: AtomicBool,
}

impl<L: Layer> Overlay<L> {
    /// Stacks the layers. The upper layer is held until the overlay is dropped, and what an earlier
    /// mount left in the work directory is removed, but for what is known of copies.
    pub fn new(layers: Layers<L>) -> std::result::Result<Self, Refused> {
        Self::with_settings(layers, Settings::default())
    }

    /// As [`Overlay::new`], with these settings instead of the usual ones.
    pub fn with_settings(layers: Layers<L>, settings: Settings) -> std::result::Result<Self, Refused> {
        let has_upper = layers.upper.is_some();
        let stack = Stack::new(layers.upper.into_iter().chain(layers.lowers).collect(), has_upper)?;
        let (work, claims, ctimes) = match has_upper {
            true => {
                let (work, claims, ctimes) = Work::prepare(&stack, layers.work, settings)?;
                (Some(work), claims, ctimes)
            }
            false => (None, Claims::new(), Ctimes::default()),
        };
        let mut hidden = HashSet::new();
        if let (Some(upper), Some(work)) = (stack.upper_root(), &work) {
            for dir in [upper, work.dir()] {
                let stat = stack.layer(dir).stat(Object::Dir(&*stack.open(dir)?))?;
                hidden.insert((stat.dev, stat.ino));
            }
        }
        let top = stack.upper_root().or(stack.lower_roots().first()).ok_or(Refused::NoLayer)?;
        let device = stack.device(top);
        let attr = stack.mark(top, stack.layer(top).stat(Object::Dir(&*stack.open(top)?))?);
        let space = stack.top().stat_fs()?;

        let format = work.as_ref().map_or(format::OCI, Work::format);
        let times = work.as_ref().map_or_else(Times::default, Work::times);
        let partials = Partials::new(&stack, settings, format)?;
        let inodes = Inodes::new(&stack.marked_devices().collect::<Vec<_>>(), has_upper, claims);
        let dir = Dir::unread(stack.upper_root().cloned(), stack.lower_roots().to_vec());
        let state = State::root(has_upper, attr, inodes.visible(attr.dev, attr.ino));
        let root = Node::new(0, attr.kind, state, Some(dir));
        Ok(Overlay {
            stack,
            work,
            trusted: settings.trusted,
            root,
            inodes,
            device,
            hidden,
            name_max: space.name_max as usize,
            times,
            ctimes,
            undated: Lock::default(),
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

    /// The top of the merged tree.
    pub fn root(&self) -> &Arc<Node<L>> {
        &self.root
    }

    /// Whether there is no upper layer, so that every change answers EROFS.
    pub fn is_read_only(&self) -> bool {
        self.work.is_none()
    }

    /// The times that can be set, and are shown.
    pub fn times(&self) -> Times {
        self.times
    }

    /// Closes the directories of layers that are kept open for speed alone: for who has run out of
    /// descriptors.
    pub fn close_dirs(&self) {
        self.stack.close_dirs();
    }

    /// The layers themselves, for `fsck`.
    pub(crate) fn stack(&self) -> &Stack<L> {
        &self.stack
    }

    /// The upper layer and the work directory. EROFS without.
    fn upper(&self) -> Result<(&L, &Work<L>)> {
        match (self.stack.upper(), &self.work) {
            (Some(upper), Some(work)) => Ok((upper, work)),
            _ => Err(Error::new(EROFS)),
        }
    }

    /// How the upper layer is written.
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
