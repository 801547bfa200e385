//! An object of the merged tree.
//!
//! Everything that was looked at has one of these, so what few objects have takes little room in
//! the others.
//!
//! A node is what a front end holds on to and what a handle follows: it stays the same object over
//! copy-up, rename and unlink, while the place where its bytes are changes. The order of its locks
//! is in [`super`].

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
use crate::layer::{Access, Kind, Layer, Result, Stat, Time};
use crate::sync::{Guard, Lock};

/// An object of the merged tree, always held by an [`Arc`].
pub struct Node<L: Layer> {
    /// Never changes.
    id: u64,
    /// Never changes.
    kind: Kind,
    /// Held while the content is copied up or changed and while a name of the object changes, so
    /// that none of these meets another.
    pub(super) content: Lock<()>,
    pub(super) state: Lock<State<L>>,
    /// Of a directory, what is in it. Never changes whether it is there.
    dir: Option<Box<Lock<Dir<L>>>>,
}

/// Where an object is and what is known of it.
pub(super) struct State<L: Layer> {
    /// The names that are known of it. None: the root, or an object that was unlinked. Directories
    /// have one.
    pub places: SmallVec<[ObjectName<L>; 1]>,
    /// Whether it is in the upper layer.
    pub upper: bool,
    /// Where else it is than under its names.
    pub stored: Stored<L>,
    /// See [`State::origin`].
    pub origin: Option<Box<Origin>>,
    /// The attributes as the layer has them, but for the inode number and the link count, which are
    /// the overlay's.
    pub attr: Option<Stat>,
    /// How much of `attr` the layer still says.
    pub freshness: Freshness,
    /// The time of last change of status to be shown, whatever the layer says when it is asked
    /// next. Changes in `ctime.rs` alone.
    pub ctime: Option<Time>,
    /// The inode number that callers see, once it is needed.
    pub ino: Option<u64>,
    /// How many links it has.
    pub links: LinkCount,
    /// Of a file of the upper layer, whether it is known to have data of its own. Asked for only
    /// where the format allows others.
    pub has_data: bool,
    /// Whether this mount made it, under the one name that it has.
    pub newborn: bool,
    /// The target of a symlink, once it was read; it never changes.
    pub target: Option<Box<OsStr>>,
    /// Of a directory, whether it hands down an ACL, once somebody asked.
    pub default_acl: Option<bool>,
    /// How many handles are open.
    pub handles: u32,
    /// How many of them have read or written.
    pub users: u32,
    /// The open file that all handles share, once one of them needed it.
    pub file: Option<Arc<OpenFile<L>>>,
}

/// Where a layer has an object.
pub(super) enum Stored<L: Layer> {
    /// At the top of the layers: the root.
    Top,
    /// Under its names. One that lost them is only in its open file.
    Named,
    /// Beside its name: a file of which not all data is in the upper layer.
    Partial(Arc<Partial<L>>),
    /// In the work directory under this name, which holds a copied-up file of several names
    /// together while not all of them are in the upper layer. It counts as one of the layer's
    /// links.
    Indexed(Arc<OsStr>),
    /// In the work directory under this name: a new file that has no name yet.
    Unnamed(Arc<OsStr>),
    /// Where it was in a lower layer, though no name of it is known any more; never a directory.
    Orphan(Box<LayerEntry<L>>),
}

impl<L: Layer> Stored<L> {
    /// Where an object is that had a name of a lower layer last, which is lost.
    pub fn orphan(lost: Option<ObjectName<L>>) -> Self {
        lost.map_or(Stored::Named, |place| Stored::Orphan(Box::new((place.dir, place.name))))
    }

    /// The name in the work directory.
    pub fn work_name(&self) -> Option<&Arc<OsStr>> {
        match self {
            Stored::Indexed(name) | Stored::Unnamed(name) => Some(name),
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

/// What the link count of an object means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkCount {
    /// It is as many as the layer says.
    OfLayer,
    /// A directory that merges several: it is 1, which says that nobody counted the directories in
    /// it.
    Merged,
    /// The layer counts names that are hidden, or does not count those of the copy: of a lower file
    /// with several names of which one was changed or removed. Or there is no name.
    Counted(u32),
}

impl LinkCount {
    pub const NONE: Self = LinkCount::Counted(0);

    /// The count, where the layer says `of_layer`.
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
    /// The directory of a layer whose entry `name` the object is.
    pub dir: Arc<LayerDir<L>>,
}

impl<L: Layer> Clone for ObjectName<L> {
    fn clone(&self) -> Self {
        ObjectName { parent: self.parent.clone(), name: self.name.clone(), dir: self.dir.clone() }
    }
}

/// A file of a layer that is open.
pub(super) struct OpenFile<L: Layer> {
    pub file: L::File,
    pub access: Access,
    /// The layer's directory that it was opened from, which tells the layer.
    pub dir: Arc<LayerDir<L>>,
    /// Of a partial copy, what it reads that it does not have.
    pub from_lower: Option<FromLower<L>>,
}

/// What is in a directory.
pub(super) struct Dir<L: Layer> {
    pub upper: Option<Arc<LayerDir<L>>>,
    /// The lower directories that merge, topmost first: candidates until `names` is there, since a
    /// marker inside one of them may hide those below.
    pub lowers: Vec<Arc<LayerDir<L>>>,
    /// Whether the upper directory has the opaque mark. Known once `names` is there.
    pub opaque: bool,
    /// The path in the merged lower layers that the upper directory names for itself. Known once
    /// `names` is there.
    pub redirect: Option<Way>,
    /// Whether the upper directory has reserved names that mean nothing to us. Known once `names`
    /// is there.
    pub foreign: bool,
    /// Whether marks or whiteouts were put into the upper directory that a step is going to rely
    /// on, and a crash may lose them yet.
    pub unsynced: bool,
    /// Every name, once the directory was read.
    pub names: Option<Names<L>>,
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

    /// A number that no other node of this mount ever has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What the object is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The content of a directory. ENOTDIR of anything else.
    pub(super) fn dir(&self) -> Result<Guard<'_, Dir<L>>> {
        self.dir.as_ref().map(|dir| dir.lock()).ok_or(Error::new(ENOTDIR))
    }
}

impl<L: Layer> State<L> {
    /// The state of an object that has one name.
    pub fn at(place: ObjectName<L>, upper: bool, attr: Option<Stat>) -> Self {
        State { places: smallvec![place], ..State::unplaced(upper, attr) }
    }

    /// The state of a file of the upper layer that has no name yet, built in the work directory
    /// under the name `index_entry`.
    pub fn nameless(index_entry: &OsStr, attr: Stat) -> Self {
        State {
            stored: Stored::Unnamed(index_entry.into()),
            links: LinkCount::NONE,
            has_data: true,
            ..State::unplaced(true, Some(attr))
        }
    }

    /// The state of the root, which has no name.
    pub fn root(upper: bool, attr: Stat, ino: u64) -> Self {
        let (ino, links, stored) = (Some(ino), LinkCount::Merged, Stored::Top);
        State { ino, links, stored, ..State::unplaced(upper, Some(attr)) }
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
            newborn: false,
            target: None,
            default_acl: None,
            handles: 0,
            users: 0,
            file: None,
        }
    }

    /// The file of a lower layer that it is or was copied from, where that has several names.
    pub fn origin(&self) -> Option<Origin> {
        self.origin.as_deref().copied()
    }

    /// The attributes, if the layer says the same.
    pub fn fresh_attr(&self) -> Option<Stat> {
        self.attr.filter(|_| matches!(self.freshness, Freshness::Fresh))
    }

    /// The attributes, if the layer says the same times of last access and last change.
    pub fn attr_of_fresh_times(&self) -> Option<Stat> {
        self.attr.filter(|_| matches!(self.freshness, Freshness::Fresh | Freshness::FreshTimes))
    }

    /// Remembers what the layer said just now. Returns it as callers see it.
    pub fn refresh(&mut self, said: Stat) -> Stat {
        let (atime, mtime) = self.freshness.refresh().unwrap_or((said.atime, said.mtime));
        *self.attr.insert(Stat { atime, mtime, ..said })
    }

    /// The open file, if it allows `access`.
    pub fn opened(&self, access: Access) -> Option<Arc<OpenFile<L>>> {
        self.file.as_ref().filter(|open| open.access.allows(access)).cloned()
    }

    /// Whether an open file is the object itself in the directory `dir` of a layer, and not what
    /// has the data of one that has none.
    pub fn is_open(&self, open: &OpenFile<L>, dir: &Arc<LayerDir<L>>) -> bool {
        self.stored.work_name().is_none() && self.stored.partial().is_none() && Arc::ptr_eq(&open.dir, dir)
    }

    /// The place of the name `name` in `parent`, if it is one of this object.
    pub fn place_mut(&mut self, parent: &Arc<Node<L>>, name: &OsStr) -> Option<&mut ObjectName<L>> {
        self.places.iter_mut().find(|place| Arc::ptr_eq(&place.parent, parent) && *place.name == *name)
    }
}

impl<L: Layer> Dir<L> {
    /// A directory that was not read yet.
    pub fn unread(upper: Option<Arc<LayerDir<L>>>, lowers: Vec<Arc<LayerDir<L>>>) -> Self {
        Dir {
            upper,
            lowers,
            opaque: false,
            redirect: None,
            foreign: false,
            unsynced: false,
            names: None,
            removed: false,
        }
    }

    /// A directory that is empty in every layer.
    pub fn empty(upper: Option<Arc<LayerDir<L>>>) -> Self {
        Dir { names: Some(Names::new()), ..Dir::unread(upper, Vec::new()) }
    }

    /// The layer's directory whose entry a visible name shows.
    pub fn shown(&self, slot: &Slot<L>) -> Option<&Arc<LayerDir<L>>> {
        match (&slot.upper, &slot.lower) {
            (Some(_), _) => self.upper.as_ref(),
            (None, Some(lower)) => self.lowers.get(lower.dir as usize),
            (None, None) => None,
        }
    }
}
