//! An object of the merged tree.
//!
//! A node stays the same object over copy-up, rename and unlink, while its place in the layers
//! changes. Front ends and handles hold nodes. The order of a node's locks is in [`super`].
//!
//! Every object that was looked at has a node. So a fact that few objects have takes little space
//! in the others.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{ENOTDIR, Error};
use smallvec::{SmallVec, smallvec};

use super::freshness::Freshness;
use super::index::Origin;
use super::names::{Names, Slot};
use super::partial::{FromLower, Partial};
use super::stack::LayerDir;
use super::trust::Way;
use crate::layer::{Access, Fixed, Kind, Layer, Result, Stat, Time};
use crate::sync::{Guard, Lock};

/// An object of the merged tree, always in an [`Arc`].
pub struct Node<L: Layer> {
    /// Never changes.
    id: u64,
    /// Never changes.
    kind: Kind,
    /// Held while the content is copied up or changed, and while a name of the object changes. So
    /// each of these excludes the others.
    pub(super) content: Lock<()>,
    pub(super) state: Lock<State<L>>,
    /// The content of a directory. None for other objects; never changes between the two.
    dir: Option<Box<Lock<Dir<L>>>>,
}

/// The place and the known attributes of an object.
pub(super) struct State<L: Layer> {
    /// The known names. The root and an unlinked object have none. A directory has one.
    pub places: SmallVec<[ObjectName<L>; 1]>,
    /// Whether the object is in the upper layer.
    pub upper: bool,
    /// The object's place, if that is not under its names.
    pub stored: Stored<L>,
    /// See [`State::origin`].
    pub origin: Option<Box<Origin>>,
    /// The attributes that the layer has. Callers see another inode number and maybe another link
    /// count.
    pub attr: Option<Stat>,
    /// How current `attr` is.
    pub freshness: Freshness,
    /// The time of last change of status to show, whatever the layer returns next. Only `ctime.rs`
    /// changes it.
    pub ctime: Option<Time>,
    /// The inode number that callers see. None until it is needed.
    pub ino: Option<u64>,
    /// The meaning of the link count.
    pub links: LinkCount,
    /// Whether a file of the upper layer is known to have its own data. Asked only in formats that
    /// permit files without.
    pub has_data: bool,
    /// What a mark forbids of its changes. None until a request needs it.
    pub marked: Option<Fixed>,
    /// Whether this mount made the object, under its only name.
    pub newborn: bool,
    /// Whether the object is known to have no file capability.
    pub lacks_capability: bool,
    /// The target of a symlink that was read. It never changes.
    pub target: Option<Box<OsStr>>,
    /// Whether a directory has a default ACL. None until a request needs it.
    pub default_acl: Option<bool>,
    /// The number of open handles.
    pub handles: u32,
    /// The number of open handles that have read or written.
    pub users: u32,
    /// Whether the open file stays open for the next request for attributes (`changed`).
    pub is_changed: bool,
    /// The open file that all handles share. None until one of them needs it.
    pub file: Option<Arc<OpenFile<L>>>,
}

/// The place where a layer has an object.
pub(super) enum Stored<L: Layer> {
    /// The root of the topmost layer: the object is the root.
    Top,
    /// Under its names. After the last one is lost, only the open file is left.
    Named,
    /// Beside its name: a partial copy.
    Partial(Arc<Partial<L>>),
    /// In a work directory, under this name: the index entry of a copied file with several names.
    /// It counts as one of the layer's links.
    Indexed(Box<LayerEntry<L>>),
    /// In the work directory, under this name: a new file that has no name yet.
    Unnamed(Arc<OsStr>),
    /// At its place in a lower layer, after its last known name was lost.
    Orphan(Box<LayerEntry<L>>),
}

impl<L: Layer> Stored<L> {
    /// Keeps the place of an object that lost `lost`, its last name in a lower layer. A copy in a
    /// frozen layer stays in its index.
    pub fn lose_name(&mut self, lost: Option<ObjectName<L>>) {
        if !matches!(self, Stored::Indexed(_)) {
            *self = lost.map_or(Stored::Named, |place| Stored::Orphan(Box::new((place.dir, place.name))));
        }
    }

    /// Returns the name in a work directory.
    pub fn work_name(&self) -> Option<&Arc<OsStr>> {
        match self {
            Stored::Indexed(entry) => Some(&entry.1),
            Stored::Unnamed(name) => Some(name),
            _ => None,
        }
    }

    pub fn partial(&self) -> Option<&Arc<Partial<L>>> {
        match self {
            Stored::Partial(partial) => Some(partial),
            _ => None,
        }
    }
}

/// The meaning of an object's link count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkCount {
    /// The layer's count is right.
    OfLayer,
    /// A directory that merges several. Its count is 1: the engine does not count the directories
    /// in it.
    Merged,
    /// The layer's count is wrong: it counts hidden names, or misses those of the copy. So it is
    /// for a lower file with several names that was changed or removed under one of them. Or the
    /// object has no name.
    Counted(u32),
}

impl LinkCount {
    pub const NONE: Self = LinkCount::Counted(0);

    /// Returns the count to show if the layer has `of_layer`.
    pub fn count(self, of_layer: u32) -> u32 {
        match self {
            LinkCount::OfLayer => of_layer,
            LinkCount::Merged => 1,
            LinkCount::Counted(count) => count,
        }
    }
}

/// A directory of a layer and a name in it.
pub(super) type LayerEntry<L> = (Arc<LayerDir<L>>, Arc<OsStr>);

/// One name of an object.
pub(super) struct ObjectName<L: Layer> {
    pub parent: Arc<Node<L>>,
    pub name: Arc<OsStr>,
    /// The directory of a layer that has the object as its entry `name`.
    pub dir: Arc<LayerDir<L>>,
}

impl<L: Layer> Clone for ObjectName<L> {
    fn clone(&self) -> Self {
        ObjectName { parent: self.parent.clone(), name: self.name.clone(), dir: self.dir.clone() }
    }
}

/// An open file of a layer.
pub(super) struct OpenFile<L: Layer> {
    pub file: L::File,
    pub access: Access,
    /// The directory from which the file was opened. It tells the layer.
    pub dir: Arc<LayerDir<L>>,
    /// The source of a partial copy, for the data that the copy lacks.
    pub from_lower: Option<FromLower<L>>,
}

/// The state of a node, locked.
pub(super) type StateGuard<'n, L> = Guard<'n, State<L>>;

/// The content of a directory.
pub(super) struct Dir<L: Layer> {
    pub upper: Option<Arc<LayerDir<L>>>,
    /// The lower directories that merge, topmost first. Candidates until `names` is known, since a
    /// mark in one of them may hide those below.
    pub lowers: Vec<Arc<LayerDir<L>>>,
    /// Whether the upper directory has the opaque mark. Valid once `names` is known.
    pub opaque: bool,
    /// The path in the merged lower layers that the upper directory merges with. Valid once `names`
    /// is known.
    pub redirect: Option<Way>,
    /// Whether the upper directory has reserved names that the engine does not understand. Valid
    /// once `names` is known.
    pub foreign: bool,
    /// Whether the upper directory got marks or whiteouts that the next step relies on, and that a
    /// crash may still lose.
    pub unsynced: bool,
    /// Every name, once the directory was read; in an overlay for a walk, a run of them.
    pub names: Option<Names<L>>,
    /// How often a walk came back to names before those that are known.
    pub returns: u32,
    /// Whether the directory was removed.
    pub removed: bool,
}

impl<L: Layer> Node<L> {
    pub(super) fn new(id: u64, kind: Kind, state: State<L>, dir: Option<Dir<L>>) -> Arc<Self> {
        Arc::new(Node {
            id,
            kind,
            content: Lock::new(()),
            state: Lock::new(state),
            dir: dir.map(|dir| Box::new(Lock::new(dir))),
        })
    }

    /// The number of the node, unique in this mount for all time.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The kind of the object.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Locks the content of a directory.
    ///
    /// # Errors
    ///
    /// - ENOTDIR: the object is no directory.
    pub(super) fn dir(&self) -> Result<Guard<'_, Dir<L>>> {
        self.dir.as_ref().map(|dir| dir.lock()).ok_or(Error::new(ENOTDIR))
    }
}

impl<L: Layer> State<L> {
    /// Makes the state of an object with one name.
    pub fn at(place: ObjectName<L>, upper: bool, attr: Option<Stat>) -> Self {
        State { places: smallvec![place], ..State::unplaced(upper, attr) }
    }

    /// Makes the state of a file of the upper layer without a name. It is in the work directory as
    /// `index_entry`.
    pub fn nameless(index_entry: &OsStr, attr: Stat) -> Self {
        State {
            stored: Stored::Unnamed(index_entry.into()),
            links: LinkCount::NONE,
            has_data: true,
            ..State::unplaced(true, Some(attr))
        }
    }

    /// Makes the state of the root, which has no name.
    pub fn root(upper: bool, attr: Stat, ino: u64) -> Self {
        let (ino, links, stored) = (Some(ino), LinkCount::Merged, Stored::Top);
        State { ino, links, stored, ..State::unplaced(upper, Some(attr)) }
    }

    /// Makes the state of an object that had no name in the overlay before. It shows the number and
    /// time of `shown`.
    pub fn carried(
        upper: bool,
        attr: Option<Stat>,
        stored: Stored<L>,
        links: LinkCount,
        shown: (u64, Option<Time>),
        file: Option<Arc<OpenFile<L>>>,
    ) -> Self {
        let (ino, ctime) = shown;
        let (ino, freshness) = (Some(ino), Freshness::Stale);
        State { stored, links, ino, ctime, freshness, file, has_data: upper, ..State::unplaced(upper, attr) }
    }

    fn unplaced(upper: bool, attr: Option<Stat>) -> Self {
        State {
            places: SmallVec::new(),
            upper,
            stored: Stored::Named,
            origin: None,
            attr,
            freshness: Freshness::Fresh,
            ctime: None,
            ino: None,
            links: LinkCount::OfLayer,
            has_data: false,
            marked: None,
            newborn: false,
            lacks_capability: false,
            target: None,
            default_acl: None,
            handles: 0,
            users: 0,
            is_changed: false,
            file: None,
        }
    }

    /// The origin of the object if that is a lower file with several names.
    pub fn origin(&self) -> Option<Origin> {
        self.origin.as_deref().copied()
    }

    /// Returns the attributes if they are current.
    pub fn fresh_attr(&self) -> Option<Stat> {
        self.attr.filter(|_| self.freshness == Freshness::Fresh)
    }

    /// Returns the attributes if they are current, except maybe a time of last change of status
    /// that does not show.
    pub fn fresh_attr_to_show(&self) -> Option<Stat> {
        let is_redated = self.freshness == Freshness::Redated && self.ctime.is_some();
        self.attr.filter(|_| is_redated || self.freshness == Freshness::Fresh)
    }

    /// Returns the attributes if their atime and mtime are current.
    pub fn attr_of_fresh_times(&self) -> Option<Stat> {
        self.attr.filter(|_| matches!(self.freshness, Freshness::Fresh | Freshness::Redated | Freshness::FreshTimes))
    }

    /// Takes over the attributes `said` that the layer just returned. Returns those to show.
    pub fn refresh(&mut self, said: Stat) -> Stat {
        let (atime, mtime) = self.freshness.refresh().unwrap_or((said.atime, said.mtime));
        *self.attr.insert(Stat { atime, mtime, ..said })
    }

    /// Whether this mount made the object, and no caller has asked about it yet. So no caller knows
    /// its number.
    pub fn is_unasked(&self) -> bool {
        self.newborn && self.ino.is_none()
    }

    /// Whether a layer has the object under a name. Otherwise only its open file has it.
    pub fn is_reopenable(&self) -> bool {
        !self.places.is_empty() || matches!(self.stored, Stored::Indexed(_) | Stored::Unnamed(_) | Stored::Orphan(_))
    }

    /// Whether its open file stays open: a handle uses the file, the next request for attributes
    /// does, or it cannot be opened again. In the last case another thread may be about to use it.
    pub fn keeps_file(&self) -> bool {
        self.users > 0 || self.is_changed || !self.is_reopenable()
    }

    /// Takes the open file if it does not stay open. The caller closes it.
    pub fn take_unused_file(&mut self) -> Option<Arc<OpenFile<L>>> {
        if self.keeps_file() { None } else { self.file.take() }
    }

    /// Takes the open file if it stays open for nothing but a request for attributes.
    pub fn take_changed(&mut self) -> Option<Arc<OpenFile<L>>> {
        self.is_changed = false;
        self.take_unused_file()
    }

    /// Returns the open file if it has `access`.
    pub fn opened(&self, access: Access) -> Option<Arc<OpenFile<L>>> {
        self.file.as_ref().filter(|open| open.access.allows(access)).cloned()
    }

    /// Whether an open file is the object itself, in the directory `dir` of a layer. It may also be
    /// the file with the data of an index entry or of a partial copy.
    pub fn is_open(&self, open: &OpenFile<L>, dir: &Arc<LayerDir<L>>) -> bool {
        self.stored.work_name().is_none() && self.stored.partial().is_none() && Arc::ptr_eq(&open.dir, dir)
    }

    /// Counts one link less. Returns the number of those that are left.
    pub fn lose_link(&mut self, kind: Kind) -> u32 {
        let of_layer = if kind == Kind::Dir { 0 } else { self.attr.map_or(0, |attr| attr.nlink.saturating_sub(1)) };
        let (links, left) = match self.links {
            _ if kind == Kind::Dir => (LinkCount::NONE, 0),
            LinkCount::Counted(count) => (LinkCount::Counted(count.saturating_sub(1)), count.saturating_sub(1)),
            // The lower layer still counts the hidden name.
            _ if !self.upper && of_layer > 0 => (LinkCount::Counted(of_layer), of_layer),
            links => (links, of_layer),
        };
        if let Some(attr) = &mut self.attr
            && (self.upper || kind == Kind::Dir)
        {
            attr.nlink = of_layer;
        }
        self.links = links;
        left
    }

    /// Returns the place of the name `name` in `parent`, if this object has it.
    pub fn place_mut(&mut self, parent: &Arc<Node<L>>, name: &OsStr) -> Option<&mut ObjectName<L>> {
        self.places.iter_mut().find(|place| Arc::ptr_eq(&place.parent, parent) && *place.name == *name)
    }
}

impl<L: Layer> Dir<L> {
    /// Makes the content of a directory that is not read yet.
    pub fn unread(upper: Option<Arc<LayerDir<L>>>, lowers: Vec<Arc<LayerDir<L>>>) -> Self {
        Dir {
            upper,
            lowers,
            opaque: false,
            redirect: None,
            foreign: false,
            unsynced: false,
            names: None,
            returns: 0,
            removed: false,
        }
    }

    /// Makes the content of a directory that is empty in every layer.
    pub fn empty(upper: Option<Arc<LayerDir<L>>>) -> Self {
        Dir { names: Some(Names::new()), ..Dir::unread(upper, Vec::new()) }
    }

    /// Makes the content of a removed directory.
    pub fn gone() -> Self {
        Dir { removed: true, ..Dir::empty(None) }
    }

    /// Returns the layer's directory that has the entry which a visible name shows.
    pub fn shown(&self, slot: &Slot<L>) -> Option<&Arc<LayerDir<L>>> {
        match (&slot.upper, &slot.lower) {
            (Some(_), _) => self.upper.as_ref(),
            (None, Some(lower)) => self.lowers.get(lower.dir as usize),
            (None, None) => None,
        }
    }
}
