//! Eviction of cached directories and names.
//!
//! The engine caches every directory that it read or made, with all its names. Objects that were
//! looked up are nodes. The engine forgets an unused node when the front end says so
//! ([`Overlay::release`]). Directories stay cached, which saves reading them again. The engine
//! counts them and their names. Above a bound it evicts the oldest directories that are not in use.
//! It can read them from the layers again. The directory that was read last stays: a caller that
//! looks its names up would have it read anew for each, if it alone has more names than the bound.
//!
//! A file with several names is evicted one name at a time. While one of them has the node, or the
//! node is in use, the other names find it by its number in its layer (`inode.rs`). After the last
//! one, a lookup makes the node anew from the layers and the index.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use super::Overlay;
use super::names::Slot;
use super::node::{LinkCount, Node, ObjectName, Stored};
use super::work::discard;
use crate::layer::Layer;
use crate::sync::Lock;

/// The number of cached names and directories above which the engine evicts. It goes down to seven
/// eighths of this, so that it does not evict all the time.
const KNOWN_MAX: usize = 1 << 17;

/// The cached directories.
pub(super) struct KnownDirs<L: Layer> {
    /// The oldest first. Some entries are duplicates, or no longer cached.
    dirs: Lock<VecDeque<Weak<Node<L>>>>,
    /// An upper bound of the number of these and their names. Removals count only at the next
    /// eviction, which counts all anew.
    count: AtomicUsize,
    /// The number above which the next eviction starts.
    limit: AtomicUsize,
    /// The number that should stay cached.
    most: usize,
}

impl<L: Layer> KnownDirs<L> {
    /// Makes an empty cache for `most` names and directories; None stands for the default.
    pub fn new(most: Option<usize>) -> Self {
        let most = most.unwrap_or(KNOWN_MAX);
        KnownDirs { dirs: Lock::new(VecDeque::new()), count: AtomicUsize::new(0), limit: AtomicUsize::new(most), most }
    }

    /// Counts a directory that was just read or made, and its `names`.
    pub fn add_dir(&self, node: &Arc<Node<L>>, names: usize) {
        self.count.fetch_add(1 + names, Ordering::Relaxed);
        self.dirs.lock().push_back(Arc::downgrade(node));
    }

    /// Counts a new name in a cached directory.
    pub fn add_name(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns an upper bound of the number of cached directories and names.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn is_too_much(&self) -> bool {
        self.count() > self.limit.load(Ordering::Relaxed)
    }
}

/// Returns the number of cached entries of a directory: itself and its names. 0 if it was evicted.
fn size<L: Layer>(node: &Node<L>) -> usize {
    node.dir().ok().and_then(|dir| dir.names.as_ref().map(|names| 1 + names.len())).unwrap_or(0)
}

impl<L: Layer> Overlay<L> {
    /// Evicts directories that are not in use, the oldest first, if the cache is too large. Keeps
    /// the one that was read last.
    ///
    /// # Locks
    ///
    /// The caller must hold no lock.
    pub(super) fn forget_some(&self) {
        if !self.known.is_too_much() {
            return;
        }
        let _tree = self.tree.write();
        if !self.known.is_too_much() {
            // Lost a race: another thread has evicted enough.
            return;
        }
        let enough = self.known.most / 8 * 7;
        let mut met = HashSet::new();
        let dirs = std::mem::take(&mut *self.known.dirs.lock());
        let mut dirs: Vec<_> = dirs
            .into_iter()
            .rev()
            .filter(|dir| dir.upgrade().is_some_and(|node| size(&node) > 0 && met.insert(node.id())))
            .collect();
        dirs.reverse();
        let mut count: usize = dirs.iter().filter_map(Weak::upgrade).map(|node| size(&node)).sum();
        let last = dirs.pop();
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
        self.known.dirs.lock().extend(dirs.into_iter().chain(last));
        self.known.count.store(count, Ordering::Relaxed);
        // Directories in use are not tried again at every call, however many names they have.
        self.known.limit.store(self.known.most.max(count / 8 * 9), Ordering::Relaxed);
    }

    /// Evicts the names in a directory that are not in use. Returns whether none is left.
    ///
    /// # Locks
    ///
    /// The caller must hold the tree exclusively.
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

    /// Tells the engine that a front end no longer uses an object. Forgets it, unless it is still
    /// in use or the layers cannot tell it again.
    pub fn release(&self, node: Arc<Node<L>>) {
        let _tree = self.tree.read();
        self.let_go(node);
    }

    /// Takes the node from the name `slot` of `parent`; the slot keeps the inode number. The caller
    /// holds the directory's lock and one reference to the node.
    ///
    /// Returns false and does nothing if the number cannot be found out. The same holds if there
    /// are other references than the caller's and those of names.
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
        // A node that was made, and not asked since, has no number yet. A node that changed unseen
        // must go on showing its old time.
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

    /// Does the same as [`Overlay::release`] if the caller holds the tree.
    fn let_go(&self, node: Arc<Node<L>>) {
        let mut place = self.parent(&node);
        if place.is_none() {
            self.discard_unnamed(&node);
        }
        while let Some((parent, name)) = place {
            let Ok(mut dir) = parent.dir() else { return };
            let is_there =
                self.parent(&node).is_some_and(|(now, now_name)| Arc::ptr_eq(&now, &parent) && now_name == name);
            // Else lost a race: another thread changed the name. Retry.
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

    /// Removes the file in the work directory of an object that never got a name and is no longer
    /// open.
    fn discard_unnamed(&self, node: &Arc<Node<L>>) {
        let mut state = node.state.lock();
        let unused = state.handles == 0 && state.places.is_empty() && state.links == LinkCount::NONE && state.upper;
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
    use crate::errno::ENOENT;
    use crate::layer::counted::Method;
    use crate::layer::{OsLayer, Owner};
    use crate::overlay::{DirEntry, Layers, Settings};

    /// Mounts an overlay that should cache at most a hundred names.
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
    fn directories_that_were_made_are_evicted() {
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

    /// No handle is open on the directory, and each of its names is released at once.
    #[test]
    fn a_directory_with_more_names_than_the_bound_is_read_once() {
        const NAMES: usize = 300;
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("large")).unwrap();
        for number in 0..NAMES {
            std::fs::write(place.path().join(format!("large/{number}")), "").unwrap();
        }
        let overlay = mount(&place);
        let before = overlay.stack.top().calls().unwrap().of(Method::List);
        for number in 0..2 * NAMES {
            let large = overlay.lookup(overlay.root(), OsStr::new("large")).unwrap();
            match overlay.lookup(&large, OsStr::new(&number.to_string())) {
                Ok(node) => overlay.release(node),
                Err(error) => assert!(error.errno == ENOENT && number >= NAMES, "{error}"),
            }
        }
        let calls = overlay.stack.top().calls().unwrap().of(Method::List) - before;
        assert!(calls <= 3, "{calls} listings");
        // Another directory takes its place.
        drop(make(&overlay, "other"));
        assert!(overlay.known.count() > NAMES);
        let other = overlay.lookup(overlay.root(), OsStr::new("other")).unwrap();
        overlay.known.limit.store(0, Ordering::Relaxed);
        assert!(overlay.lookup(&other, OsStr::new("missing")).is_err());
        assert!(overlay.known.count() < NAMES);
    }

    #[test]
    fn removed_directories_do_not_count_forever() {
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

    /// A directory that is listed in pieces is evicted between two of them.
    #[test]
    fn a_listing_goes_on_in_a_directory_that_was_evicted() {
        let place = tempfile::tempdir().unwrap();
        let mut overlay = mount(&place);
        overlay.known.most = 8;
        let [dir, other] = ["dir", "other"].map(|name| make(&overlay, name).upgrade().unwrap());
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
            // The directory that was read last would stay.
            overlay.list(&overlay.open(&other), 0, &mut |_| true).unwrap();
            other.dir().unwrap().names = None;
            overlay.list(&overlay.open(&other), 0, &mut |_| true).unwrap();
            // The first round evicts the names in it.
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
