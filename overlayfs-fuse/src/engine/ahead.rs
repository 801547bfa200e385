//! Reads directories before a walk through the tree asks for them.
//!
//! A program that lists a directory, and then one in it, counts as on a walk. A walk mostly goes on
//! below that directory, and then to the next one beside it. So threads that have answered read
//! these directories from the layers while the program looks at its listing. They stay a few
//! directories ahead of the walk. So they read little in vain if the walk ends.
//!
//! The lock is a leaf.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use overlayfs::layer::Layer;
use overlayfs::overlay::Node;

/// How many recent listings the walk remembers.
const LISTED: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// How many directories may wait for their reading.
const WAITING: usize = 64;
/// How many directories threads read for each one that the program lists.
const AHEAD: usize = 8;
/// How many threads read at once: one may wait for the disk meanwhile.
const THREADS: usize = 2;

pub struct Ahead<L: Layer> {
    walk: Mutex<Walk<L>>,
    /// Whether [`Ahead::take`] has a directory to return.
    ready: AtomicBool,
}

struct Walk<L: Layer> {
    /// The listed directories by id. Each has the directories in it, until one of these is
    /// listed.
    listed: LruCache<u64, Vec<Arc<Node<L>>>>,
    /// The directories to read, the next one last.
    waiting: Vec<Arc<Node<L>>>,
    /// How many of them threads may read before the next listing of the program.
    credit: usize,
    /// How many threads read.
    busy: usize,
}

impl<L: Layer> Ahead<L> {
    pub fn new() -> Self {
        let walk = Walk { listed: LruCache::new(LISTED), waiting: Vec::new(), credit: 0, busy: 0 };
        Self { walk: Mutex::new(walk), ready: AtomicBool::new(false) }
    }

    fn walk(&self) -> MutexGuard<'_, Walk<L>> {
        self.walk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a program begins to list `dir`. `above` is its parent, and `found` are the
    /// directories in it.
    pub fn listed(&self, dir: &Arc<Node<L>>, above: Option<&Arc<Node<L>>>, mut found: Vec<Arc<Node<L>>>) {
        found.truncate(WAITING);
        found.reverse();
        let mut walk = self.walk();
        let beside = above.and_then(|above| walk.listed.get_mut(&above.id())).map(std::mem::take);
        let unread = match beside {
            Some(beside) => {
                walk.waiting.extend(beside);
                walk.waiting.extend(found);
                walk.waiting.retain(|waiting| !Arc::ptr_eq(waiting, dir));
                let too_many = walk.waiting.len().saturating_sub(WAITING);
                walk.waiting.drain(..too_many);
                walk.credit = AHEAD;
                Vec::new()
            }
            None => found,
        };
        let _forgotten = walk.listed.push(dir.id(), unread);
        self.ready.store(walk.credit > 0 && !walk.waiting.is_empty(), Ordering::Relaxed);
    }

    /// Whether [`Ahead::take`] may have a directory to return.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Takes the next directory to read, if a thread should read one. The thread calls
    /// [`Ahead::done`] when it has read it.
    pub fn take(&self) -> Option<Arc<Node<L>>> {
        if !self.is_ready() {
            return None;
        }
        let mut walk = self.walk();
        let next = if walk.busy < THREADS && walk.credit > 0 { walk.waiting.pop() } else { None };
        if next.is_some() {
            walk.busy += 1;
            walk.credit -= 1;
        }
        self.ready.store(walk.credit > 0 && !walk.waiting.is_empty(), Ordering::Relaxed);
        next
    }

    /// Ends a read that began with [`Ahead::take`].
    pub fn done(&self) {
        self.walk().busy -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;

    use overlayfs::layer::OsLayer;
    use overlayfs::overlay::{Layers, Overlay};

    use super::*;

    #[test]
    fn a_walk_is_known_by_its_second_step_and_read_ahead_of() {
        let setup = tempfile::tempdir().unwrap();
        for path in ["a/x", "a/y", "b", "c"] {
            fs::create_dir_all(setup.path().join(path)).unwrap();
        }
        let lower = OsLayer::open(setup.path(), false).unwrap();
        let overlay = Overlay::new(Layers { upper: None, work: None, lowers: vec![lower] }).unwrap();
        let root = overlay.root();
        let find = |dir: &Arc<Node<OsLayer>>, name: &str| overlay.lookup(dir, OsStr::new(name)).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| find(root, name));
        let [x, y] = ["x", "y"].map(|name| find(&a, name));

        let ahead = Ahead::new();
        ahead.listed(root, None, vec![a.clone(), b.clone(), c.clone()]);
        assert!(ahead.take().is_none(), "one listing is no walk");
        ahead.listed(&a, Some(root), vec![x.clone(), y.clone()]);
        let take = || ahead.take().map(|node| overlay.path(&node).unwrap().into_os_string().into_string().unwrap());
        assert_eq!(take().as_deref(), Some("a/x"));
        assert_eq!(take().as_deref(), Some("a/y"));
        assert_eq!(take(), None, "two are being read");
        ahead.done();
        ahead.listed(&b, Some(root), Vec::new());
        assert_eq!(take().as_deref(), Some("c"), "b was listed already");
        ahead.done();
        assert_eq!(take(), None);
    }

    #[test]
    fn no_more_is_read_than_a_few_steps_ahead() {
        let setup = tempfile::tempdir().unwrap();
        for index in 0..100 {
            fs::create_dir_all(setup.path().join(format!("dir/{index}"))).unwrap();
        }
        let lower = OsLayer::open(setup.path(), false).unwrap();
        let overlay = Overlay::new(Layers { upper: None, work: None, lowers: vec![lower] }).unwrap();
        let dir = overlay.lookup(overlay.root(), OsStr::new("dir")).unwrap();
        let found = (0..100).map(|index| overlay.lookup(&dir, OsStr::new(&index.to_string())).unwrap());

        let ahead = Ahead::new();
        ahead.listed(overlay.root(), None, vec![dir.clone()]);
        ahead.listed(&dir, Some(overlay.root()), found.collect());
        let mut read = 0;
        while ahead.take().is_some() {
            ahead.done();
            read += 1;
        }
        assert_eq!(read, AHEAD);
    }
}
