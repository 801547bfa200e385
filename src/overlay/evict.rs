//! What is forgotten again when too much is known.
//!
//! A directory that was read, or made, is known with all its names, and those of its objects that
//! were looked up are nodes. An object that nobody holds any more is forgotten when the front end
//! says so ([`Overlay::release`]). Directories stay known, which spares reading them again; they
//! and their names are counted, and when they are too many, the oldest are forgotten that nobody
//! holds. What is forgotten can be learned again from the layers.
//!
//! An object of several names is forgotten one name at a time. As long as one of them knows it, or
//! somebody holds it, the others find it by its number in its layer (`inode.rs`). Once all have let
//! go, the next that is looked up makes it anew, from the layers and the index.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use super::Overlay;
use super::names::Slot;
use super::node::{LinkCount, Node, ObjectName, Stored};
use super::work::discard;
use crate::layer::Layer;
use crate::sync::Lock;

/// How many names and directories may be known before some are forgotten: until seven eighths are
/// left, so that it is not done all the time.
const KNOWN_MAX: usize = 1 << 17;

/// The directories that are known.
pub(super) struct KnownDirs<L: Layer> {
    /// The oldest first, some of them twice or gone.
    dirs: Lock<VecDeque<Weak<Node<L>>>>,
    /// How many they and their names are at most: what is removed is taken off only when all are
    /// counted again.
    count: AtomicUsize,
    /// How many there may be until then.
    limit: AtomicUsize,
    /// How many there should be.
    most: usize,
}

impl<L: Layer> KnownDirs<L> {
    /// Nothing yet, and `most` names and directories later, or as many as is usual.
    pub fn new(most: Option<usize>) -> Self {
        let most = most.unwrap_or(KNOWN_MAX);
        KnownDirs { dirs: Lock::new(VecDeque::new()), count: AtomicUsize::new(0), limit: AtomicUsize::new(most), most }
    }

    /// Counts a directory that has just been read or made, with so many names.
    pub fn add_dir(&self, node: &Arc<Node<L>>, names: usize) {
        self.count.fetch_add(1 + names, Ordering::Relaxed);
        self.dirs.lock().push_back(Arc::downgrade(node));
    }

    /// Counts a new name in a directory that is known.
    pub fn add_name(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn is_too_much(&self) -> bool {
        self.count.load(Ordering::Relaxed) > self.limit.load(Ordering::Relaxed)
    }
}

/// What is known with a directory: itself and its names. 0 if it is not known any more.
fn size<L: Layer>(node: &Node<L>) -> usize {
    node.dir().ok().and_then(|dir| dir.names.as_ref().map(|names| 1 + names.len())).unwrap_or(0)
}

impl<L: Layer> Overlay<L> {
    /// Forgets directories that nobody holds, the oldest first, if too much is known. The caller
    /// must hold no lock.
    pub(super) fn forget_some(&self) {
        if !self.known.is_too_much() {
            return;
        }
        let _tree = self.tree.write();
        if !self.known.is_too_much() {
            // Lost a race: another thread has forgotten enough.
            return;
        }
        let enough = self.known.most / 8 * 7;
        let mut met = HashSet::new();
        let dirs = std::mem::take(&mut *self.known.dirs.lock());
        let mut dirs: Vec<_> = dirs
            .into_iter()
            .filter(|dir| dir.upgrade().is_some_and(|node| size(&node) > 0 && met.insert(node.id())))
            .collect();
        let mut count: usize = dirs.iter().filter_map(Weak::upgrade).map(|node| size(&node)).sum();
        dirs.retain(|dir| {
            let Some(node) = dir.upgrade().filter(|_| count > enough) else { return true };
            let size = size(&node);
            let is_forgotten = self.forget(&node);
            if is_forgotten {
                count -= size;
                self.let_go(node);
            }
            !is_forgotten
        });
        self.known.dirs.lock().extend(dirs);
        self.known.count.store(count, Ordering::Relaxed);
        // What is held as a whole is not tried again at every call.
        let limit = if count > enough { self.known.most.max(2 * count) } else { self.known.most };
        self.known.limit.store(limit, Ordering::Relaxed);
    }

    /// Forgets what is in a directory, but for what is held. Answers whether nothing is left. The
    /// tree must be locked exclusively.
    fn forget(&self, node: &Arc<Node<L>>) -> bool {
        let Ok(mut dir) = node.dir() else {
            return true;
        };
        let mut left = node.state.lock().handles > 0 || dir.removed;
        let Some(names) = &mut dir.names else {
            return true;
        };
        for slot in names.slots_mut() {
            let Some(child) = slot.child.clone() else { continue };
            left |= !self.forget_name(node, slot, &child);
        }
        if !left {
            dir.names = None;
        }
        !left
    }

    /// Says that a front end has no more use for an object: unless somebody else has, what the
    /// layers can tell again is forgotten.
    pub fn release(&self, node: Arc<Node<L>>) {
        let _tree = self.tree.read();
        self.let_go(node);
    }

    /// Takes the node from the name `slot` of `parent`, which keeps the number. False, and nothing
    /// is done, if the number cannot be learned, or if anybody has the node but its names and the
    /// caller, who has one reference. The directory must be locked.
    fn forget_name(&self, parent: &Arc<Node<L>>, slot: &mut Slot<L>, node: &Arc<Node<L>>) -> bool {
        if node.dir().is_ok_and(|dir| dir.names.is_some()) {
            return false;
        }
        let mut state = node.state.lock();
        if state.handles > 0 || Arc::strong_count(node) > state.places.len() + 1 {
            return false;
        }
        let is_this = |place: &ObjectName<L>| Arc::ptr_eq(&place.parent, parent) && place.name == slot.name;
        let Some(place) = state.places.iter().position(is_this) else { return false };
        // What was made, and of which nobody has asked anything since, has no number yet. And what
        // was changed unseen is to show what it showed.
        let attr = match state.attr {
            Some(attr) if state.ctime.is_none() => attr,
            _ => match self.refresh(node, &mut state) {
                Ok(attr) => attr,
                Err(_) => return false,
            },
        };
        slot.forget_child(attr.ino);
        state.places.remove(place);
        if state.places.is_empty() {
            self.inodes.forget_unused(attr.dev, attr.ino, node);
        }
        true
    }

    /// As [`Overlay::release`], where the tree is locked already.
    fn let_go(&self, node: Arc<Node<L>>) {
        let mut place = self.parent(&node);
        if place.is_none() {
            self.discard_home(&node);
        }
        while let Some((parent, name)) = place {
            let Ok(mut dir) = parent.dir() else { return };
            let is_there =
                self.parent(&node).is_some_and(|(now, now_name)| Arc::ptr_eq(&now, &parent) && now_name == name);
            // Otherwise lost a race: another thread has changed the name.
            if is_there {
                let slot = dir.names.as_mut().and_then(|names| names.get_mut(&name));
                let slot = slot.filter(|slot| slot.child.as_ref().is_some_and(|child| Arc::ptr_eq(child, &node)));
                if slot.is_none_or(|slot| !self.forget_name(&parent, slot, &node)) {
                    return;
                }
            }
            drop(dir);
            place = self.parent(&node);
        }
    }

    /// Removes what is left in the work directory of a file that never got a name and that nobody
    /// has open.
    fn discard_home(&self, node: &Arc<Node<L>>) {
        let mut state = node.state.lock();
        let unused = state.handles == 0 && state.places.is_empty() && state.links == LinkCount::NONE;
        let index_entry = state.stored.work_name().filter(|_| unused).cloned();
        if index_entry.is_some() {
            state.stored = Stored::Named;
        }
        drop(state);
        if let (Some(index_entry), Ok((upper, work))) = (index_entry, self.upper())
            && let Ok(open) = self.stack.open(work.dir())
        {
            discard(upper, &open, &index_entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;
    use crate::layer::{OsLayer, Owner};
    use crate::overlay::{DirEntry, Layers, Settings};

    /// An overlay that should know no more than a hundred names.
    fn mount(place: &tempfile::TempDir) -> Overlay<OsLayer> {
        let upper = Some(OsLayer::open(place.path(), true).unwrap());
        let settings = Settings { known_max: Some(100), ..Settings::default() };
        Overlay::with_settings(Layers { upper, work: None, lowers: Vec::new() }, settings).unwrap()
    }

    fn make(overlay: &Overlay<OsLayer>, name: &str) -> Weak<Node<OsLayer>> {
        Arc::downgrade(&overlay.create_dir(overlay.root(), OsStr::new(name), 0o700, owner()).unwrap())
    }

    fn owner() -> Owner {
        Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    #[test]
    fn directories_that_were_made_are_forgotten() {
        let place = tempfile::tempdir().unwrap();
        let overlay = mount(&place);
        let made: Vec<_> = (0..1000).map(|number| make(&overlay, &format!("{number}"))).collect();
        overlay.lookup(overlay.root(), OsStr::new("0")).unwrap();
        let known = made.iter().filter(|node| node.upgrade().is_some()).count();
        assert!(known < 300, "{known} of 1000 are known");
        let mut entries = Vec::new();
        overlay
            .list(&overlay.open(overlay.root()), 0, &mut |entry| {
                entries.push((entry.name.to_owned(), entry.ino));
                true
            })
            .unwrap();
        assert_eq!(entries.len(), 1000);
        for (name, ino) in entries {
            let node = overlay.lookup(overlay.root(), &name).unwrap();
            assert_eq!(overlay.stat(&node).unwrap().ino, ino, "{name:?}");
        }
    }

    #[test]
    fn directories_that_are_gone_are_not_counted_for_ever() {
        let place = tempfile::tempdir().unwrap();
        let overlay = mount(&place);
        for number in 0..1000 {
            let name = format!("{number}");
            make(&overlay, &name);
            overlay.remove_dir(overlay.root(), OsStr::new(&name)).unwrap();
        }
        let counted = overlay.known.dirs.lock().len();
        assert!(counted <= 101, "{counted} are counted");
    }

    /// A directory that is listed in pieces is forgotten between two of them.
    #[test]
    fn a_listing_goes_on_in_a_directory_that_was_forgotten() {
        let place = tempfile::tempdir().unwrap();
        let mut overlay = mount(&place);
        overlay.known.most = 8;
        let dir = make(&overlay, "dir").upgrade().unwrap();
        let create = |name: &str| drop(overlay.create_dir(&dir, OsStr::new(name), 0o700, owner()).unwrap());
        (0..50).for_each(|number| create(&format!("stays{number}")));
        drop(dir);
        let (mut met, mut after) = (Vec::new(), 0);
        for round in 0.. {
            let dir = overlay.lookup(overlay.root(), OsStr::new("dir")).unwrap();
            let from = after;
            let mut piece = 0;
            let each = &mut |entry: DirEntry<'_>| {
                met.push(entry.name.to_owned());
                (after, piece) = (entry.offset, piece + 1);
                piece < 7
            };
            overlay.list(&overlay.open(&dir), from, each).unwrap();
            if piece == 0 {
                break;
            }
            overlay.create_dir(&dir, OsStr::new(&format!("comes{round}")), 0o700, owner()).unwrap();
            let (dir, held) = (Arc::downgrade(&dir), dir);
            drop(held);
            // What is in it is forgotten first.
            for _ in 0..3 {
                overlay.known.limit.store(0, Ordering::Relaxed);
                assert!(overlay.lookup(overlay.root(), OsStr::new("missing")).is_err());
            }
            assert!(dir.upgrade().is_none_or(|dir| dir.dir().unwrap().names.is_none()), "the directory is known");
        }
        let mut stayed: Vec<_> = met.iter().filter(|name| name.as_encoded_bytes().starts_with(b"stays")).collect();
        assert_eq!(stayed.len(), 50);
        stayed.sort();
        stayed.dedup();
        assert_eq!(stayed.len(), 50);
    }
}
