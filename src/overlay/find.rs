//! From an inode number to an object, for file handles. A handle outlives the knowledge of the
//! engine: an eviction, and the mount.
//!
//! No layer finds an object by its number. So the first search walks the tree, and writes down for
//! each number which directory has it ([`Whereabouts`]). From then on the front end tells the
//! engine about each object that it no longer needs ([`Overlay::note_place`]). All changes of names
//! are of objects that it needs. So the table stays right, and an object that it lacks is gone.
//!
//! An overlay in which no object is searched has no table.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::errno::{EACCES, ENOENT, ENOTDIR, ESTALE, Error};

use super::Overlay;
use super::compact::CompactMap;
use super::file::Handle;
use super::node::Node;
use super::readdir::DirEntry;
use crate::layer::{Kind, Layer, Result};
use crate::sync::Lock;

/// How often a search follows the table while other threads move directories.
const TRIES: usize = 3;
/// How often the tree is walked while other threads move directories.
const WALKS: usize = 3;
/// The most directories on the way to an object.
const DEPTH_MAX: usize = 1 << 15;
/// The directory of an object that has names, of which none is known.
const SOMEWHERE: u64 = 0;

/// The places of objects by inode number.
#[derive(Default)]
pub(super) struct Whereabouts {
    /// Whether the table may have something. So an overlay without a search takes no lock.
    any: AtomicBool,
    table: Lock<Table>,
    walking: Lock<()>,
    /// How many directories have moved.
    moves: AtomicU64,
}

#[derive(Default)]
struct Table {
    places: CompactMap<u64, Place>,
    /// Whether it has all objects of the tree that the front end does not know.
    is_complete: bool,
}

#[derive(Clone, Copy)]
struct Place {
    /// The inode number of the directory.
    dir: u64,
    /// The number of the name in it ([`super::names`]), or 0.
    name: u64,
}

impl Whereabouts {
    /// Records that a directory has another place.
    pub fn dir_moved(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }

    fn is_gone(&self, number: u64) -> bool {
        let table = self.table.lock();
        table.is_complete && !table.places.contains(number)
    }
}

impl<L: Layer> Overlay<L> {
    /// Returns the generation of an object. It tells objects apart that have the same inode number
    /// one after the other, in later mounts too. None: the layers do not tell it, or the number is
    /// not known yet.
    pub fn generation(&self, node: &Arc<Node<L>>) -> Option<u32> {
        let (ino, attr) = {
            let state = node.state.lock();
            (state.ino?, state.attr?)
        };
        self.inodes.generation(ino, &attr)
    }

    /// Returns the inode number of an object, if a request has asked for it.
    pub fn asked_number(&self, node: &Arc<Node<L>>) -> Option<u64> {
        node.state.lock().ino
    }

    /// Returns the object with an inode number. The first search walks the whole tree. `known`
    /// returns the objects that the front end knows.
    ///
    /// # Errors
    ///
    /// - ESTALE: the tree has no such object.
    ///
    /// Others as [`Overlay::list`].
    pub fn find_by_number(&self, number: u64, known: &dyn Fn(u64) -> Option<Arc<Node<L>>>) -> Result<Handle<L>> {
        let gone = Error::new(ESTALE);
        self.whereabouts.any.store(true, Ordering::Release);
        if let Some(found) = self.follow(number, known)? {
            return Ok(found);
        }
        if self.whereabouts.is_gone(number) {
            return Err(gone);
        }
        let _walking = self.whereabouts.walking.lock();
        // Another thread may have walked meanwhile.
        if let Some(found) = self.follow(number, known)? {
            return Ok(found);
        }
        if self.whereabouts.is_gone(number) {
            return Err(gone);
        }
        self.walk()?;
        let found = self.follow(number, known)?;
        if found.is_none() {
            self.whereabouts.table.lock().places.remove(number);
        }
        found.ok_or(gone)
    }

    /// Whether [`Overlay::note_place`] does anything.
    pub fn notes_places(&self) -> bool {
        self.whereabouts.any.load(Ordering::Acquire)
    }

    /// Tells the engine that the front end does not need an object any more, before it forgets it.
    pub fn note_place(&self, node: &Arc<Node<L>>) {
        if !self.notes_places() || self.is_root(node) {
            return;
        }
        let Ok(number) = self.known_ino(node) else { return };
        let place = self.parent(node).and_then(|(parent, name)| {
            let at = parent.dir().ok()?.names.as_ref().and_then(|names| names.number(&name));
            Some(Place { dir: self.known_ino(&parent).ok()?, name: at.unwrap_or(0) })
        });
        let has_names = place.is_some() || self.stat(node).is_ok_and(|attr| attr.nlink > 0);
        let mut table = self.whereabouts.table.lock();
        match has_names {
            true => drop(table.places.insert(number, place.unwrap_or(Place { dir: SOMEWHERE, name: 0 }))),
            false => drop(table.places.remove(number)),
        }
    }

    /// Searches the object where the table has it.
    fn follow(&self, number: u64, known: &dyn Fn(u64) -> Option<Arc<Node<L>>>) -> Result<Option<Handle<L>>> {
        for _ in 0..TRIES {
            let Some((mut node, way)) = self.way_to(number, known)? else { return Ok(None) };
            let mut is_there = true;
            for (number, name) in way.into_iter().rev() {
                match self.entry_with(&node, number, name) {
                    Ok(Some(found)) => node = found,
                    Ok(None) => is_there = false,
                    Err(error) if is_absence(error) => is_there = false,
                    Err(error) => return Err(error),
                }
                if !is_there {
                    break;
                }
            }
            if is_there {
                return Ok(Some(self.open(&node)));
            }
        }
        Ok(None)
    }

    /// Returns the known directory from which the table leads to an object, and the steps from
    /// there, the last one first: the inode number, and the number of the name.
    #[expect(clippy::type_complexity, reason = "a pair of pairs")]
    fn way_to(
        &self,
        number: u64,
        known: &dyn Fn(u64) -> Option<Arc<Node<L>>>,
    ) -> Result<Option<(Arc<Node<L>>, Vec<(u64, u64)>)>> {
        let root = self.known_ino(&self.root)?;
        let (mut at, mut way) = (number, Vec::new());
        loop {
            if at == root {
                return Ok(Some((self.root.clone(), way)));
            }
            if at != number
                && let Some(node) = known(at)
            {
                return Ok(Some((node, way)));
            }
            let place = self.whereabouts.table.lock().places.get(at);
            let Some(place) = place.filter(|place| place.dir != SOMEWHERE && way.len() < DEPTH_MAX) else {
                return Ok(None);
            };
            way.push((at, place.name));
            at = place.dir;
        }
    }

    /// Returns the entry of a directory with an inode number. `name` is the number of its name, as
    /// far as known.
    fn entry_with(&self, dir: &Arc<Node<L>>, number: u64, name: u64) -> Result<Option<Arc<Node<L>>>> {
        let handle = self.open(dir);
        let mut found: Option<OsString> = None;
        let mut look = |entry: &DirEntry<'_>| {
            if entry.ino == number {
                found = Some(entry.name.to_owned());
            }
            found.is_none()
        };
        let mut goes_on = true;
        if name > 0 {
            self.list(&handle, name - 1, &mut |entry| {
                goes_on = look(&entry);
                false
            })?;
        }
        if goes_on {
            self.list(&handle, 0, &mut |entry| look(&entry))?;
        }
        let Some(name) = found else { return Ok(None) };
        let node = self.lookup(dir, &name)?;
        Ok((self.known_ino(&node)? == number).then_some(node))
    }

    /// Writes the places of all objects down.
    fn walk(&self) -> Result<()> {
        for _ in 0..WALKS {
            let before = self.whereabouts.moves.load(Ordering::Relaxed);
            self.walk_once()?;
            // A directory that moved from a part of the tree that was still to come to one that was
            // done was left out.
            if self.whereabouts.moves.load(Ordering::Relaxed) == before {
                self.whereabouts.table.lock().is_complete = true;
                return Ok(());
            }
        }
        Ok(())
    }

    fn walk_once(&self) -> Result<()> {
        let mut pending = vec![(self.root.clone(), self.note_entries(&self.root)?)];
        while let Some((dir, names)) = pending.last_mut() {
            let Some(name) = names.pop() else {
                pending.pop();
                continue;
            };
            let below = self.lookup(dir, &name).and_then(|node| {
                let names = self.note_entries(&node)?;
                Ok((node, names))
            });
            match below {
                Ok(below) => pending.push(below),
                Err(error) if is_absence(error) => {}
                // The daemon may not list it, so no other search could.
                Err(error) if error.errno == EACCES => log::debug!("a directory cannot be searched: {error}"),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes the places of the entries of a directory down. Returns the names of the directories
    /// among them.
    fn note_entries(&self, dir: &Arc<Node<L>>) -> Result<Vec<OsString>> {
        let number = self.known_ino(dir)?;
        let (mut places, mut names) = (Vec::new(), Vec::new());
        self.list(&self.open(dir), 0, &mut |entry| {
            places.push((entry.ino, Place { dir: number, name: entry.offset }));
            if entry.kind == Kind::Dir {
                names.push(OsStr::to_owned(entry.name));
            }
            true
        })?;
        let mut table = self.whereabouts.table.lock();
        for (number, place) in places {
            table.places.insert(number, place);
        }
        Ok(names)
    }
}

/// Whether an error says that there is no such name, or no longer.
fn is_absence(error: Error) -> bool {
    matches!(error.errno, ENOENT | ENOTDIR | ESTALE)
}
