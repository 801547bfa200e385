//! The handover: another overlay shows the same tree from now on, and the objects in use stay.
//!
//! A snapshot puts a new upper layer on the old one, and a new daemon stacks the same layers again.
//! In both cases the front end goes on with a new overlay. It knows objects by their ids, so an
//! object that is found again gets the id that it had.
//!
//! An object with a name is found by its names, at the latest when a request needs it. So the
//! handover costs no backing call for it. Until then the new overlay has its place in a table
//! ([`Earlier`]). Each removal of a name first looks the object of that name up. So no place in the
//! table becomes wrong. An object that has lost its last name is carried over at once, with its
//! open file.
//!
//! A new daemon is another process. It gets the objects as bytes, and open files as descriptors
//! (`packed`).
//!
//! The lock of the table is a leaf.

mod noted;
mod packed;

pub use noted::{NamelessNote, Note, Place, pack_notes};

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::errno::{EIO, ENOENT, ENOTDIR, ESTALE, Error};

use super::Overlay;
use super::file::Handle;
use super::index::Origin;
use super::node::{Dir, LayerEntry, LinkCount, Node, ObjectName, OpenFile, State, Stored};
use crate::layer::{Access, Kind, Layer, RenameMode, Result, Stat, Time};
use crate::sync::Lock;

/// The objects that a front end knows, taken from one overlay for another.
pub struct Handover<L: Layer> {
    named: Vec<Named>,
    nameless: Vec<Nameless<L>>,
    /// Whether other objects may have their places by now.
    moved: bool,
    /// The lowest id that no object has had.
    next_id: u64,
    /// The time of last change of status that the root shows.
    root_ctime: Option<Time>,
}

impl<L: Layer> Handover<L> {
    /// Lets other objects have the places of these. The layers tell how many names the objects
    /// without a known one have, and when their status changed.
    pub(super) fn after_rollback(self) -> Self {
        let as_stored = |nameless| Nameless { links: LinkCount::OfLayer, ctime: None, ..nameless };
        Handover { nameless: self.nameless.into_iter().map(as_stored).collect(), moved: true, ..self }
    }
}

/// A handover that only needs to be made.
pub struct Plan<L: Layer> {
    named: Vec<Named>,
    /// The objects without a name, and the inode numbers that they show.
    nameless: Vec<(Arc<Node<L>>, u64)>,
}

/// An object with a name.
struct Named {
    id: u64,
    /// The inode number that it shows.
    ino: u64,
    /// The id of the directory with the name. The root has 0.
    parent: u64,
    /// The name, or after a rollback the path from the root.
    path: PathBuf,
    /// Whether the front end knows it. Otherwise it is on the way to one that it knows.
    wanted: bool,
}

/// An object without a name.
struct Nameless<L: Layer> {
    id: u64,
    ino: u64,
    kind: Kind,
    upper: bool,
    attr: Option<Stat>,
    ctime: Option<Time>,
    links: LinkCount,
    target: Option<Box<OsStr>>,
    /// The origin of a lower file with names that no lookup has met, or of its copy in a frozen
    /// layer.
    origin: Option<Origin>,
    /// Its place in a lower layer: the layer, counted from the bottom, and the names.
    orphan: Option<(usize, Vec<OsString>)>,
    /// Its name in the work directory.
    work_name: Option<OsString>,
    file: Option<(L::File, Access)>,
}

/// The objects of the overlay before that this one has not found yet, and those that it has found
/// for the front end.
pub(super) struct Earlier<L: Layer> {
    /// Whether the table may have something. So an overlay without a handover takes no lock.
    any: AtomicBool,
    table: Lock<Table<L>>,
}

struct Table<L: Layer> {
    /// Whether another object may have the place of one by now, as after a rollback. Then only the
    /// inode number tells which object it is.
    moved: bool,
    /// The objects that are not found yet, by id.
    places: HashMap<u64, EarlierPlace>,
    /// Their ids, by the id of the parent and the name.
    ids: HashMap<u64, HashMap<OsString, u64>>,
    /// Their ids, by inode number, since an object may be found by another of its names.
    numbers: HashMap<u64, u64>,
    /// The objects that are found, by id. A directory stays while the table has places, since it is
    /// on the way to them. Other objects stay until the front end takes them.
    found: HashMap<u64, Found<L>>,
}

struct EarlierPlace {
    parent: u64,
    path: PathBuf,
    ino: u64,
    wanted: bool,
}

struct Found<L: Layer> {
    handle: Handle<L>,
    wanted: bool,
}

impl<L: Layer> Default for Earlier<L> {
    fn default() -> Self {
        let (places, ids, numbers, found) = (HashMap::new(), HashMap::new(), HashMap::new(), HashMap::new());
        let table = Table { moved: false, places, ids, numbers, found };
        Earlier { any: AtomicBool::new(false), table: Lock::new(table) }
    }
}

impl<L: Layer> Table<L> {
    /// Returns the id of the object with this place and this inode number.
    fn id(&self, place: &ObjectName<L>, ino: Option<u64>) -> Option<u64> {
        let by_name = self.ids.get(&place.parent.id()).and_then(|names| names.get(&*place.name)).copied();
        by_name.or_else(|| self.numbers.get(&ino?).copied())
    }

    fn add(&mut self, Named { id, ino, parent, path, wanted }: Named) {
        if !self.moved {
            self.ids.entry(parent).or_default().insert(path.clone().into_os_string(), id);
        }
        self.numbers.insert(ino, id);
        self.places.insert(id, EarlierPlace { parent, path, ino, wanted });
    }

    /// Takes out the place of an object that is found now.
    fn remove(&mut self, id: u64) -> Option<EarlierPlace> {
        let place = self.places.remove(&id)?;
        self.numbers.remove(&place.ino);
        if let Some(names) = self.ids.get_mut(&place.parent) {
            names.remove(place.path.as_os_str());
            if names.is_empty() {
                self.ids.remove(&place.parent);
            }
        }
        Some(place)
    }

    /// Takes out the handles that have no use any more. The caller drops them without the lock.
    fn useless(&mut self) -> Vec<Handle<L>> {
        if !self.places.is_empty() {
            return Vec::new();
        }
        let unwanted: Vec<_> = self.found.iter().filter(|(_, found)| !found.wanted).map(|(id, _)| *id).collect();
        unwanted.iter().filter_map(|id| self.found.remove(id)).map(|found| found.handle).collect()
    }
}

/// Whether an object without a known name has others, which no lookup has met.
fn has_names(kind: Kind, links: LinkCount, attr: Option<Stat>) -> bool {
    kind != Kind::Dir && attr.is_some_and(|attr| links.count(attr.nlink) > 0)
}

impl<L: Layer> Plan<L> {
    /// Whether an object of the upper layer has names, none of which is known. In a frozen layer
    /// only its open file would lead to it, and nothing would lead from its names to a copy.
    pub(super) fn has_unmet_names(&self) -> bool {
        self.nameless.iter().any(|(node, _)| {
            let state = node.state.lock();
            state.upper && state.origin().is_none() && has_names(node.kind(), state.links, state.attr)
        })
    }
}

impl<L: Layer> Overlay<L> {
    /// Prepares to hand the objects `nodes`, which the front end knows, over to another overlay of
    /// the same tree. The front end makes no other request meanwhile, nor before
    /// [`Overlay::hand_over`].
    ///
    /// # Errors
    ///
    /// Those of the layers, if an object has no number yet, or the rest of a partial copy without a
    /// name cannot be copied.
    pub fn plan_handover(&self, nodes: &[Arc<Node<L>>]) -> Result<Plan<L>> {
        let (mut named, mut nameless, mut met) = (Vec::new(), Vec::new(), HashMap::new());
        for node in self.each_once(nodes) {
            match self.parent(node) {
                None => {
                    self.complete_nameless(node)?;
                    nameless.push((node.clone(), self.known_ino(node)?));
                }
                Some(place) => self.name_all(node, place, &mut met, &mut named)?,
            }
        }
        Ok(Plan { named, nameless })
    }

    /// Returns each object once, but for the root. The file of a nameless one can be taken only
    /// once.
    fn each_once<'n>(&self, nodes: &'n [Arc<Node<L>>]) -> impl Iterator<Item = &'n Arc<Node<L>>> {
        let mut met = HashSet::from([self.root.id()]);
        nodes.iter().filter(move |node| met.insert(node.id()))
    }

    /// Prepares to hand the objects over to an overlay that shows the lower layers alone. Takes
    /// directories that these have, and other objects that the upper layer has not changed. Each
    /// must have a name now.
    ///
    /// # Errors
    ///
    /// Those of the layers, if an object has no number yet.
    pub(super) fn plan_rollback(&self, nodes: &[Arc<Node<L>>]) -> Result<Plan<L>> {
        let _tree = self.tree.read();
        let (mut named, mut nameless) = (Vec::new(), Vec::new());
        for node in self.each_once(nodes) {
            let ino = self.ino(node)?;
            match self.way_in_lowers(node) {
                Ok(Some(path)) => named.push(Named { id: node.id(), ino, parent: self.root.id(), path, wanted: true }),
                Ok(None) if self.is_lower_with_unmet_names(node) => nameless.push((node.clone(), ino)),
                Ok(None) => {}
                Err(error) => log::warn!("an open directory is lost to the programs that use it: {error}"),
            }
        }
        Ok(Plan { named, nameless })
    }

    /// Whether an object is an unchanged one of the lower layers that has names, of which none is
    /// known.
    fn is_lower_with_unmet_names(&self, node: &Node<L>) -> bool {
        let state = node.state.lock();
        let is_lower = !state.upper && state.places.is_empty() && state.origin.is_some();
        is_lower && has_names(node.kind(), state.links, state.attr)
    }

    /// Takes the objects of a plan out of this overlay. From now on it serves nothing but its own
    /// end.
    pub fn hand_over(&self, plan: Plan<L>) -> Handover<L> {
        let nameless = plan.nameless.iter().map(|(node, ino)| self.take_nameless(node, *ino)).collect();
        let root_ctime = self.shown_ctime(&self.root.state.lock());
        Handover {
            named: plan.named,
            nameless,
            moved: false,
            next_id: self.next_id.load(Ordering::Relaxed),
            root_ctime,
        }
    }

    pub(super) fn known_ino(&self, node: &Arc<Node<L>>) -> Result<u64> {
        let _tree = self.tree.read();
        self.ino(node)
    }

    /// Adds the place of a known object, and those of the directories above it.
    fn name_all(
        &self,
        node: &Arc<Node<L>>,
        place: (Arc<Node<L>>, Arc<OsStr>),
        met: &mut HashMap<u64, usize>,
        named: &mut Vec<Named>,
    ) -> Result<()> {
        if let Some(index) = met.get(&node.id()) {
            named[*index].wanted = true;
            return Ok(());
        }
        let (mut node, mut place, mut wanted) = (node.clone(), Some(place), true);
        while let Some((parent, name)) = place {
            if met.contains_key(&node.id()) {
                break;
            }
            met.insert(node.id(), named.len());
            let ino = self.known_ino(&node)?;
            named.push(Named { id: node.id(), ino, parent: parent.id(), path: PathBuf::from(&*name), wanted });
            (place, wanted) = (self.parent(&parent), false);
            node = parent;
        }
        Ok(())
    }

    /// Copies the rest of a partial copy that has lost its name.
    fn complete_nameless(&self, node: &Arc<Node<L>>) -> Result<()> {
        let open = {
            let state = node.state.lock();
            state.file.clone().filter(|open| state.places.is_empty() && open.from_lower.is_some())
        };
        let Some(open) = open else { return Ok(()) };
        let _content = node.content.lock();
        self.ensure_chunks_copied(node, &open, 0..u64::MAX)
    }

    fn take_nameless(&self, node: &Arc<Node<L>>, ino: u64) -> Nameless<L> {
        let mut state = node.state.lock();
        let nameless = self.nameless(node, &state, ino);
        // No other thread uses the overlay, so the state has the only reference.
        let file = state.file.take().and_then(Arc::into_inner).map(|open| (open.file, open.access));
        Nameless { file, ..nameless }
    }

    /// Describes an object without a name, but for its open file.
    fn nameless(&self, node: &Arc<Node<L>>, state: &State<L>, ino: u64) -> Nameless<L> {
        let is_indexed_below = !state.upper && matches!(state.stored, Stored::Indexed(_));
        let orphan = match &state.stored {
            Stored::Orphan(entry) => Some(self.stack.names_of(&entry.0, &entry.1)),
            _ => None,
        };
        Nameless {
            id: node.id(),
            ino,
            kind: node.kind(),
            upper: state.upper,
            attr: state.attr,
            ctime: self.shown_ctime(state),
            links: state.links,
            target: state.target.clone(),
            origin: state.origin().filter(|_| is_indexed_below || has_names(node.kind(), state.links, state.attr)),
            orphan,
            work_name: state.stored.work_name().filter(|_| !is_indexed_below).map(|name| name.to_os_string()),
            file: None,
        }
    }

    /// Takes over the objects that the front end knew in the overlay before. The caller calls this
    /// before any other thread uses this overlay. `before` is the overlay of the handover, if it is
    /// in this process and has another work directory.
    pub fn succeed(&self, handover: Handover<L>, before: Option<&Self>) {
        self.next_id.fetch_max(handover.next_id, Ordering::Relaxed);
        if let Some(ctime) = handover.root_ctime {
            self.set_ctime(&self.root, ctime);
        }
        for nameless in handover.nameless {
            let id = nameless.id;
            match self.carry(nameless, before) {
                Ok(node) => {
                    let found = Found { handle: self.open(&node), wanted: true };
                    self.earlier.table.lock().found.insert(id, found);
                }
                Err(error) => log::warn!("an open file without a name is lost to the programs that use it: {error}"),
            }
        }
        let mut table = self.earlier.table.lock();
        table.moved = handover.moved;
        handover.named.into_iter().for_each(|named| table.add(named));
        drop(table);
        self.earlier.any.store(true, Ordering::Release);
    }

    /// Makes the node of an object without a name.
    fn carry(&self, nameless: Nameless<L>, before: Option<&Self>) -> Result<Arc<Node<L>>> {
        let Nameless { id, ino, kind, upper, attr, ctime, links, target, origin, orphan, work_name, file } = nameless;
        let orphan = orphan.map(|(level, names)| self.stack.entry_of(level, names).ok_or(Error::new(EIO)));
        let orphan = orphan.transpose()?;
        if let Some(origin) = origin {
            return self.carry_linked((id, kind), origin, orphan, (links, ctime));
        }
        let top = self.stack.upper_root().filter(|_| upper);
        let dir = match (&orphan, top) {
            (Some((dir, _)), _) => dir.clone(),
            (None, Some(top)) => top.clone(),
            (None, None) => self.stack.lower_roots().first().cloned().ok_or(Error::new(EIO))?,
        };
        let stored = match (orphan, work_name) {
            (Some(entry), _) => Stored::Orphan(Box::new(entry)),
            (None, Some(name)) => match self.move_unnamed(&name, before) {
                Ok(name) => Stored::Unnamed(name.as_os_str().into()),
                Err(error) if file.is_some() => {
                    log::warn!("an open file without a name can get none any more: {error}");
                    Stored::Named
                }
                Err(error) => return Err(error),
            },
            (None, None) => Stored::Named,
        };
        let attr = attr.map(|attr| Stat { dev: self.stack.marked_device(&dir), ..attr });
        let file = file.map(|(file, access)| Arc::new(OpenFile { file, access, dir: dir.clone(), from_lower: None }));
        let state = State { target, ..State::carried(upper, attr, stored, links, (ino, ctime), file) };
        let content = (kind == Kind::Dir).then(Dir::gone);
        let node = Node::new(id, kind, state, content);
        match attr.filter(|_| has_names(kind, links, attr)) {
            Some(attr) => self.inodes.link(attr.dev, attr.ino, &node),
            None => self.inodes.unlinked(&node, ino),
        }
        Ok(node)
    }

    /// Makes the node of a lower file, or of its copy, with names that no lookup has met. They lead
    /// to it. `orphan` is its place in a lower layer, unless the index has a copy. With `OfLayer`
    /// the layers tell how many names it has.
    fn carry_linked(
        &self,
        (id, kind): (u64, Kind),
        origin: Origin,
        orphan: Option<LayerEntry<L>>,
        (links, ctime): (LinkCount, Option<Time>),
    ) -> Result<Arc<Node<L>>> {
        let indexed = self.index_entry(origin)?;
        let is_indexed = indexed.is_some();
        let (dir, name) = indexed.or(orphan).ok_or(Error::new(EIO))?;
        let attr = self.stack.stat(&dir, &name)?;
        self.resolve_claim(&dir, &name, &attr)?;
        let (upper, ino) = (self.stack.is_upper(&dir), self.number(&attr));
        let links = if links == LinkCount::OfLayer { self.linked(&dir, attr)?.links } else { links };
        let entry = Box::new((dir, name));
        let stored = if is_indexed { Stored::Indexed(entry) } else { Stored::Orphan(entry) };
        let state = State::carried(upper, Some(attr), stored, links, (ino, ctime), None);
        let state = State { origin: Some(Box::new(origin)), has_data: false, ..state };
        let node = Node::new(id, kind, state, None);
        self.inodes.link(attr.dev, attr.ino, &node);
        Ok(node)
    }

    /// Moves a file without a name to this overlay's work directory. Returns its name there.
    fn move_unnamed(&self, name: &OsStr, before: Option<&Self>) -> Result<OsString> {
        let (upper, work) = self.upper()?;
        let Some((_, from)) = before.and_then(|before| before.upper().ok()) else { return Ok(name.to_owned()) };
        let before = before.ok_or(Error::new(EIO))?;
        let (from, to) = (before.stack.open(from.dir())?, self.stack.open(work.dir())?);
        let new = work.name();
        upper.rename(&from, name, &to, &new, RenameMode::Replace)?;
        Ok(new)
    }

    /// Returns the object that had the id `id` in the overlay before. It is usable until the caller
    /// has opened it: no other thread may call this for the same id meanwhile.
    ///
    /// # Errors
    ///
    /// - ESTALE: the tree has no such object.
    ///
    /// Others as [`Overlay::lookup`].
    pub fn find_again(&self, id: u64) -> Result<Handle<L>> {
        let node = self.find_by_names(id).map_err(|error| match error.errno {
            ENOENT | ENOTDIR => Error::new(ESTALE),
            _ => error,
        })?;
        let handle = self.open(&node);
        self.forget_earlier(id);
        Ok(handle)
    }

    fn find_by_names(&self, id: u64) -> Result<Arc<Node<L>>> {
        let mut before = None;
        loop {
            let (start, names) = self.names_to(id)?;
            let found = names.iter().rev().try_fold(start.clone(), |dir, name| self.lookup(&dir, name));
            match found {
                Ok(node) if node.id() == id => return Ok(node),
                // Lost a race: another thread met an object on the way, and changed its name. Retry.
                _ if before.is_none_or(|way| way != (start.id(), names.len())) => {
                    before = Some((start.id(), names.len()));
                }
                found => return found.and(Err(Error::new(ESTALE))),
            }
        }
    }

    /// Returns the last object on the way to an object that is found, and the names from there,
    /// the last one first.
    fn names_to(&self, id: u64) -> Result<(Arc<Node<L>>, Vec<OsString>)> {
        let table = self.earlier.table.lock();
        let (mut names, mut at) = (Vec::new(), id);
        while at != 0 {
            if let Some(found) = table.found.get(&at) {
                return Ok((found.handle.node().clone(), names));
            }
            let place = table.places.get(&at).ok_or(Error::new(ESTALE))?;
            names.extend(place.path.iter().rev().map(OsStr::to_owned));
            at = place.parent;
        }
        Ok((self.root.clone(), names))
    }

    /// Finds all objects again that the tree still has, and forgets the others.
    pub(super) fn find_all_again(&self) {
        let ids: Vec<_> = self.earlier.table.lock().places.keys().copied().collect();
        let handles: Vec<_> = ids.iter().map(|id| self.find_wanted(*id)).collect();
        let mut table = self.earlier.table.lock();
        table.places.clear();
        table.ids.clear();
        table.numbers.clear();
        let closed = table.useless();
        drop(table);
        drop((closed, handles));
    }

    /// Finds an object again, and leaves it for the front end.
    fn find_wanted(&self, id: u64) -> Option<Arc<Node<L>>> {
        self.find_by_names(id).inspect_err(|error| log::debug!("object {id} is not found again: {error}")).ok()
    }

    /// Tells the overlay that the front end has opened an object of the overlay before, or that it
    /// does not need it any more.
    pub fn forget_earlier(&self, id: u64) {
        if !self.has_earlier() {
            return;
        }
        let mut table = self.earlier.table.lock();
        if let Some(place) = table.places.get_mut(&id) {
            place.wanted = false;
        }
        let mut closed = Vec::new();
        if let Some(found) = table.found.get_mut(&id) {
            found.wanted = false;
            if found.handle.node().kind() != Kind::Dir {
                closed.extend(table.found.remove(&id).map(|found| found.handle));
            }
        }
        closed.extend(table.useless());
        if table.places.is_empty() && table.found.is_empty() {
            self.earlier.any.store(false, Ordering::Release);
        }
        drop(table);
        drop(closed);
    }

    /// Whether objects of the overlay before are left that the front end has not opened.
    pub fn has_earlier(&self) -> bool {
        self.earlier.any.load(Ordering::Acquire)
    }

    /// Returns the id of an object that the engine meets: that of the overlay before, or a new one.
    pub(super) fn id_at(&self, place: &ObjectName<L>, ino: Option<u64>) -> u64 {
        if !self.has_earlier() {
            return self.new_id();
        }
        let table = self.earlier.table.lock();
        let known = table.id(place, ino);
        drop(table);
        known.unwrap_or_else(|| self.new_id())
    }

    /// Records that an object with an id from [`Overlay::id_at`] is in the tree.
    pub(super) fn met(&self, node: &Arc<Node<L>>) {
        if !self.has_earlier() || !self.earlier.table.lock().places.contains_key(&node.id()) {
            return;
        }
        let handle = self.open(node);
        let mut table = self.earlier.table.lock();
        let mut closed = Vec::new();
        match table.remove(node.id()) {
            Some(EarlierPlace { wanted, .. }) if wanted || node.kind() == Kind::Dir => {
                closed.extend(table.found.insert(node.id(), Found { handle, wanted }).map(|found| found.handle));
            }
            _ => closed.push(handle),
        }
        closed.extend(table.useless());
        drop(table);
        drop(closed);
    }
}
