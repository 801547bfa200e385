//! What unfinished requests have done: a look at the layers as the dead daemon left them.
//!
//! Each operation of the engine becomes visible in one step. So a request is performed or not, and
//! the object that it moves is at its old place or at its new one. The inode number tells whether
//! an object is the one of the ledger.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use overlayfs::layer::{Access, OsLayer};
use overlayfs::mount::Roots;
use overlayfs::options::Options;
use overlayfs::overlay::{Node, Note, Overlay, Place};
use rustix::fs::{Dir, FileType, Mode, OFlags};

use super::ledger::{Begun, Sum};

/// The tree of the dead daemon.
struct Look<'a> {
    overlay: Overlay<OsLayer>,
    notes: &'a HashMap<u64, Note>,
    /// The places that objects may have, beside those of their notes.
    others: HashMap<u64, Vec<&'a Place>>,
    /// The objects that were looked for. None: there is no such object, or the search goes on.
    found: HashMap<u64, Option<Found<'a>>>,
}

/// An object, and the place where it is.
type Found<'a> = (Arc<Node<OsLayer>>, &'a Place);

/// Corrects the notes of a ledger by what the requests that were under way have done, and adds
/// those that were performed. The error is a clause.
pub fn correct(sum: &mut Sum, roots: &Roots, layers: &Options) -> Result<(), String> {
    let begun = sum.begun();
    if begun.is_empty() {
        return Ok(());
    }
    let overlay = only_read(roots, layers).map_err(|error| format!("the layers cannot be looked at: {error}"))?;
    let mut others: HashMap<u64, Vec<&Place>> = HashMap::new();
    for place in begun.iter().flat_map(|begun| &begun.moves) {
        others.entry(place.id).or_default().push(place);
    }
    let mut look = Look { overlay, notes: &sum.notes, others, found: HashMap::new() };
    let (mut right, mut performed) = (Vec::new(), Vec::new());
    for Begun { request, moves, losing, .. } in &begun {
        for place in moves {
            right.extend(look.place(place.id).map(|place| Note::Place(place.clone())));
        }
        // The object may have other names too, so this one counts.
        if moves.first().is_some_and(|place| look.is_at(place)) {
            performed.push(*request);
        }
        if let Some(losing) = losing
            && let Some(Note::Place(_)) = sum.notes.get(&losing.id())
            && look.place(losing.id()).is_none()
        {
            right.push(losing.clone());
        }
    }
    drop(look);
    right.into_iter().for_each(|note| drop(sum.notes.insert(note.id(), note)));
    sum.performed.extend(performed);
    Ok(())
}

/// Stacks the layers for a look: the upper one is only read.
fn only_read(roots: &Roots, layers: &Options) -> Result<Overlay<OsLayer>, Box<dyn std::error::Error>> {
    let options = Options { read_only: true, reuse_volatile: true, ..layers.clone() };
    Ok(roots.only_read()?.open(&options)?.stack(&options, false)?)
}

/// Searches a directory and those below it for a file with an inode number, and opens that.
///
/// # Errors
///
/// - EACCES: the daemon may not read a directory.
/// - EMFILE: too many files are open.
pub fn with_number(top: BorrowedFd<'_>, number: u64) -> io::Result<Option<(OwnedFd, Access)>> {
    let open = |dir: BorrowedFd<'_>, name: &CStr, how| {
        rustix::fs::openat(dir, name, how | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    };
    let list = |dir: BorrowedFd<'_>, name: &CStr| Dir::new(open(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)?);
    let mut dirs = vec![list(top, c".")?];
    while let Some(dir) = dirs.last_mut() {
        let Some(entry) = dir.next().transpose()? else {
            dirs.pop();
            continue;
        };
        let (name, dir) = (entry.file_name(), dir.fd()?);
        match entry.file_type() {
            FileType::Directory if ![c".", c".."].contains(&name) => {
                let below = list(dir, name)?;
                dirs.push(below);
            }
            FileType::RegularFile if entry.ino() == number => {
                return Ok(Some(match open(dir, name, OFlags::RDWR) {
                    Ok(file) => (file, Access::ReadWrite),
                    Err(_) => (open(dir, name, OFlags::RDONLY)?, Access::Read),
                }));
            }
            _ => {}
        }
    }
    Ok(None)
}

impl<'a> Look<'a> {
    /// Returns the place where an object is.
    fn place(&mut self, id: u64) -> Option<&'a Place> {
        self.find(id);
        self.found.get(&id)?.as_ref().map(|(_, place)| *place)
    }

    /// Whether the object of a place is there.
    fn is_at(&mut self, place: &Place) -> bool {
        self.at(place).is_some()
    }

    fn at(&mut self, place: &Place) -> Option<Arc<Node<OsLayer>>> {
        let parent = self.find(place.parent)?;
        let node = self.overlay.lookup(&parent, &place.name).ok()?;
        let is_it = place.ino == 0 || self.overlay.stat(&node).is_ok_and(|stat| stat.ino == place.ino);
        is_it.then_some(node)
    }

    fn find(&mut self, id: u64) -> Option<Arc<Node<OsLayer>>> {
        if id == self.overlay.root().id() {
            return Some(self.overlay.root().clone());
        }
        if let Some(found) = self.found.get(&id) {
            return found.as_ref().map(|(node, _)| node.clone());
        }
        self.found.insert(id, None);
        let noted = self.notes.get(&id).and_then(|note| if let Note::Place(place) = note { Some(place) } else { None });
        let others = self.others.get(&id).into_iter().flatten().copied();
        let places: Vec<_> = noted.into_iter().chain(others).collect();
        let found = places.into_iter().find_map(|place| Some((self.at(place)?, place)));
        let node = found.as_ref().map(|(node, _)| node.clone());
        self.found.insert(id, found);
        node
    }
}
