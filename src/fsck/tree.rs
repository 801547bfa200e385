//! The walk through the upper layer, beside the same directories of the merged lower layers.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::vec;

use crate::errno::{ENAMETOOLONG, ENOENT, ENOTDIR, Error};

use super::repair::Step as Repairing;
use super::{Checker, Damage, Finding, Repair, Report, Wanted};
use crate::format::attribute::names;
use crate::format::kernel;
use crate::format::listing::{self, Extent, Hidden, LayerListing, NAMES_AT_ONCE, Reading};
use crate::format::{self, DirMark, Meaning, PartOf, Redirect, WhiteoutMark};
use crate::layer::{Access, Kind, Layer, Object, Result, read_start};
use crate::overlay::on_disk::{LayerDir, map_len, map_means_something, origin_of};
use crate::overlay::{Handle, Node};

/// A directory of the upper layer that the walk has not read yet.
struct Task<L: Layer> {
    dir: Arc<LayerDir<L>>,
    path: PathBuf,
    /// The target of its merge if it has no redirect and is not opaque.
    below: Below<L>,
}

/// A directory on the way.
struct Frame<L: Layer> {
    dir: Arc<LayerDir<L>>,
    path: PathBuf,
    below: Below<L>,
    /// The directory below, open, so that it is not evicted and read again.
    _open: Option<Handle<L>>,
    /// The directories of this run of its names that are left, and whether each has a whiteout
    /// beside it.
    names: vec::IntoIter<(OsString, bool)>,
    /// The name at which the next run begins, if there may be more.
    next: Option<OsString>,
}

/// A walk through the directories of the upper layer, each before those in it, names in the order
/// of their bytes.
pub(super) struct Walk<'c, L: Layer> {
    checker: &'c Checker<L>,
    /// The directory to enter next.
    next: Option<Task<L>>,
    frames: Vec<Frame<L>>,
}

/// A step of a walk.
pub(super) enum Step<L: Layer> {
    /// Into a directory.
    Into(Box<Seen<L>>),
    /// To the next names of the directory that the walk is in.
    More(Box<Seen<L>>),
    /// Out of the directory that the walk is in.
    Out,
}

/// The lower directory that a directory of the upper layer merges with.
pub(super) enum Below<L: Layer> {
    Nothing,
    /// This directory of the merged lower layers, at this path.
    Dir(Arc<Node<L>>, PathBuf),
    /// Unknown: then it is also unknown which markers in it have an effect.
    Unknown,
}

impl<L: Layer> Clone for Below<L> {
    fn clone(&self) -> Self {
        match self {
            Below::Nothing => Below::Nothing,
            Below::Dir(node, path) => Below::Dir(node.clone(), path.clone()),
            Below::Unknown => Below::Unknown,
        }
    }
}

/// The object that the lower layers show under a name.
pub(super) enum Found<L: Layer> {
    Nothing,
    Object(Arc<Node<L>>),
    Unknown,
}

/// Questions about a listing that `Checker::read` has sorted.
impl LayerListing {
    pub(super) fn object(&self, name: &OsStr) -> Option<Kind> {
        let at = self.objects.binary_search_by(|(object, ..)| object.as_os_str().cmp(name)).ok()?;
        Some(self.objects[at].1)
    }

    pub(super) fn hides(&self, name: &OsStr) -> bool {
        self.whiteouts.binary_search_by(|whiteout| whiteout.name.as_os_str().cmp(name)).is_ok()
    }
}

/// Orders partial copies, so that a report does not depend on the order of the layer's listing.
fn part_order((source, name): &PartOf) -> (Option<u128>, &OsStr) {
    (*source, name)
}

impl<L: Layer> Report<L> {
    /// Adds damage of the tree of the upper layer.
    fn add(&mut self, path: PathBuf, damage: Damage, repair: Option<Repair<L>>) {
        self.note(Finding { path, in_work: false, damage, repair });
    }
}

/// A directory of the upper layer of which the walk has read a run of the names.
pub(super) struct Seen<L: Layer> {
    pub dir: Arc<LayerDir<L>>,
    pub path: PathBuf,
    pub listing: LayerListing,
    /// The target of its merge if it had no marks.
    pub unmarked: Below<L>,
    /// The target of its merge.
    pub below: Below<L>,
}

impl<'c, L: Layer> Walk<'c, L> {
    pub fn new(checker: &'c Checker<L>) -> Self {
        let below = Below::Dir(checker.below.root().clone(), PathBuf::new());
        let top = Task { dir: checker.root.clone(), path: PathBuf::new(), below };
        Walk { checker, next: Some(top), frames: Vec::new() }
    }

    /// Makes the next step. Adds the damage of a directory's marks to `report`. Returns None at the
    /// end.
    pub fn step(&mut self, report: &mut Report<L>) -> Result<Option<Step<L>>> {
        loop {
            let task = match self.next.take() {
                Some(task) => task,
                None => match self.frames.last_mut() {
                    None => return Ok(None),
                    Some(frame) => match (frame.names.next(), frame.next.take()) {
                        (Some((name, is_hidden)), next) => {
                            frame.next = next;
                            self.checker.task(frame, &name, is_hidden)?
                        }
                        (None, Some(from)) => match self.checker.read(&frame.dir, &frame.path, &from, report) {
                            Err(error) if self.is_gone(error) => continue,
                            listing => return listing.map(|listing| self.go_on(listing)),
                        },
                        (None, None) => {
                            self.frames.pop();
                            return Ok(Some(Step::Out));
                        }
                    },
                },
            };
            match self.checker.read(&task.dir, &task.path, OsStr::new(""), report) {
                Err(error) if self.is_gone(error) => {}
                listing => return self.enter(task, listing?, report).map(Some),
            }
        }
    }

    /// Whether another program may have removed the directory that cannot be read.
    fn is_gone(&self, error: Error) -> bool {
        self.checker.in_use && matches!(error.errno, ENOENT | ENOTDIR)
    }

    /// Goes to the next names of the current directory.
    fn go_on(&mut self, mut listing: LayerListing) -> Option<Step<L>> {
        let frame = self.frames.last_mut()?;
        frame.names = dirs_of(&listing).into_iter();
        frame.next = listing.run.to.take();
        let (dir, path, below) = (frame.dir.clone(), frame.path.clone(), frame.below.clone());
        Some(Step::More(Box::new(Seen { dir, path, listing, unmarked: Below::Unknown, below })))
    }

    fn enter(&mut self, task: Task<L>, mut listing: LayerListing, report: &mut Report<L>) -> Result<Step<L>> {
        let below = self.checker.narrow(&task, &listing, report)?;
        let Task { dir, path, below: unmarked } = task;
        let (names, next) = (dirs_of(&listing).into_iter(), listing.run.to.take());
        let open = match &below {
            Below::Dir(node, _) => Some(self.checker.below.open(node)),
            Below::Nothing | Below::Unknown => None,
        };
        let below_it = below.clone();
        self.frames.push(Frame { dir: dir.clone(), path: path.clone(), below: below_it, _open: open, names, next });
        Ok(Step::Into(Box::new(Seen { dir, path, listing, unmarked, below })))
    }
}

/// Returns the directories of a listing, and whether each has a whiteout beside it.
fn dirs_of(listing: &LayerListing) -> Vec<(OsString, bool)> {
    let dirs = listing.objects.iter().filter(|(_, kind, _)| *kind == Kind::Dir);
    dirs.map(|(name, ..)| (name.clone(), listing.hides(name))).collect()
}

impl<L: Layer> Checker<L> {
    pub(super) fn check_tree(&self, report: &mut Report<L>) -> Result<()> {
        let mut walk = Walk::new(self);
        while let Some(step) = walk.step(report)? {
            let (seen, is_first) = match step {
                Step::Into(seen) => (seen, true),
                Step::More(seen) => (seen, false),
                Step::Out => continue,
            };
            let Seen { dir, path, listing, below, .. } = &*seen;
            if let (true, Below::Dir(_, target), Wanted::All) = (is_first, below, report.wanted) {
                report.merged.entry(target.clone()).or_default().push((path.clone(), dir.clone()));
            }
            self.check_whiteouts(&seen, report)?;
            self.check_parts(&seen, report)?;
            if !self.format.features().metacopies {
                continue;
            }
            for (name, ..) in listing.objects.iter().filter(|(_, kind, _)| *kind == Kind::File) {
                self.check_metacopy(dir, name, path.join(name), below, report)?;
            }
        }
        Ok(())
    }

    /// Returns the directory `name` of a frame.
    fn task(&self, frame: &Frame<L>, name: &OsStr, is_hidden: bool) -> Result<Task<L>> {
        let below = if is_hidden { Below::Nothing } else { self.dir_below(&frame.below, name)? };
        Ok(Task { dir: self.upper.child(&frame.dir, name), path: frame.path.join(name), below })
    }

    /// Reads a run of the names of a directory, and reports those with wrong objects. Sorts the
    /// listing by names.
    fn read(&self, dir: &Arc<LayerDir<L>>, path: &Path, from: &OsStr, report: &mut Report<L>) -> Result<LayerListing> {
        let (layer, open) = (self.upper.layer(dir), self.upper.open(dir)?);
        let extent = Extent { from, most: NAMES_AT_ONCE };
        let has_devices =
            || Ok(self.format.features().zero_devices && self.exists(&self.root, OsStr::new(format::DEVICES))?);
        let mut listing = listing::read(layer, &*open, self.reading(), extent, has_devices)?;
        let is_top = path.as_os_str().is_empty();
        let mut noted = Vec::new();
        for (name, kind) in &listing.odd {
            let means = self.reading().meaning(name);
            let right = match means {
                // fuse-overlayfs makes one beside its opaque mark.
                Meaning::Whiteout(_) if *kind == Kind::CharDev => continue,
                Meaning::Unknown if is_top && format::OF_AUFS.iter().any(|known| name == *known) => continue,
                Meaning::Unknown if is_top && name == format::WORK => Kind::Dir,
                Meaning::Unknown if is_top && (name == format::PARTS || name == format::DEVICES) => Kind::File,
                Meaning::Unknown | Meaning::Fixed if means == Meaning::Unknown || *kind == Kind::File => {
                    noted.push((name.clone(), Damage::Meaningless, None));
                    continue;
                }
                _ => Kind::File,
            };
            if *kind != right {
                noted.push((name.clone(), Damage::WrongKind, None));
            }
        }
        listing.whiteouts.retain(|Hidden { name, marker, kind }| match self.reading().meaning(marker) {
            Meaning::Whiteout(_) => *kind != Kind::CharDev,
            Meaning::LongWhiteout if *kind != Kind::File => false,
            Meaning::LongWhiteout if !self.is_name(name) => {
                noted.push((marker.clone(), Damage::NamesNothing, Some(Repair::remove(dir, marker, Kind::File))));
                false
            }
            _ => true,
        });
        listing.objects.sort_by(|one, other| one.0.cmp(&other.0));
        listing.whiteouts.sort_by(|one, other| (&one.name, &one.marker).cmp(&(&other.name, &other.marker)));
        listing.parts.sort_by(|one, other| part_order(one).cmp(&part_order(other)));
        listing.maps.sort_by(|one, other| part_order(one).cmp(&part_order(other)));
        noted.sort_by(|one, other| one.0.cmp(&other.0));
        noted.into_iter().for_each(|(name, damage, repair)| report.add(path.join(name), damage, repair));
        Ok(listing)
    }

    /// How the marks of the upper layer are read.
    pub(super) fn reading(&self) -> Reading {
        Reading::upper(self.format)
    }

    /// Whether an object can have this name.
    fn is_name(&self, name: &OsStr) -> bool {
        let bytes = name.as_bytes();
        !bytes.is_empty() && bytes.len() <= self.name_max && !bytes.contains(&b'/') && !bytes.contains(&0)
    }

    /// Reads at most the first `len` bytes of a file.
    fn prefix(&self, dir: &LayerDir<L>, name: &OsStr, len: usize) -> Result<Vec<u8>> {
        let layer = self.upper.layer(dir);
        let file = layer.open_file(&*self.upper.open(dir)?, name, Access::Read)?;
        read_start(layer, &file, len)
    }

    /// Returns what a directory merges with, by its own marks or by `task`.
    fn narrow(&self, task: &Task<L>, listing: &LayerListing, report: &mut Report<L>) -> Result<Below<L>> {
        let marks = &listing.marks;
        let Some(redirect) = marks.redirect() else {
            return Ok(if marks.is_opaque() { Below::Nothing } else { task.below.clone() });
        };
        let file = match self.format.redirect(Path::new("")) {
            DirMark::File { name, .. } => Some(OsStr::new(name)),
            DirMark::Attribute { .. } => None,
        };
        let path = file.map_or_else(|| task.path.clone(), |file| task.path.join(file));
        if marks.is_opaque() {
            // The kernel ignores a redirect beside an opaque mark, and may leave both.
            if let Some(file) = file
                && marks.redirect_file.as_ref().is_some_and(|file| file.kind == Kind::File)
            {
                let remove = Repair::remove(&task.dir, file, Kind::File);
                report.add(path, Damage::RedirectInOpaque, Some(remove));
            }
            return Ok(Below::Nothing);
        }
        let target = match (redirect, &task.below) {
            (Redirect::Path(target), _) => target.to_owned(),
            (Redirect::Sibling(name), Below::Dir(_, own)) if own.parent().is_some() => own.with_file_name(name),
            (Redirect::Sibling(name), _) => task.path.with_file_name(name),
            (Redirect::Nothing, _) => {
                report.add(path, Damage::NoPath, None);
                return Ok(Below::Unknown);
            }
        };
        match self.find(&target)? {
            Some(node) if node.kind() == Kind::Dir => {
                report.redirects.push((task.path.clone(), target.clone()));
                Ok(Below::Dir(node, target))
            }
            _ => {
                report.add(path, Damage::Dangling(target), None);
                Ok(Below::Unknown)
            }
        }
    }

    fn check_whiteouts(&self, seen: &Seen<L>, report: &mut Report<L>) -> Result<()> {
        let Seen { dir, path: above, listing, below, .. } = seen;
        for Hidden { marker: name, name: hidden, kind } in &listing.whiteouts {
            let removable = *kind != Kind::Dir;
            let path = above.join(name);
            let remove = Repairing::Remove(name.clone(), *kind);
            if let Some(object) = listing.object(hidden) {
                let needs_mark = object == Kind::Dir && self.needs_mark(dir, hidden, below)?;
                let opaque = needs_mark.then(|| Repairing::MakeOpaque(hidden.clone()));
                let steps = opaque.into_iter().chain([remove]).collect();
                let repair = removable.then(|| Repair { dir: dir.clone(), steps });
                report.add(path, Damage::BesideObject, repair);
            } else if let Found::Nothing = self.found(below, hidden)? {
                let repair = removable.then(|| Repair { dir: dir.clone(), steps: vec![remove] });
                report.add(path, Damage::HidesNothing, repair);
            } else if self.reading().meaning(name) == Meaning::LongWhiteout {
                let right = format::whiteout(hidden, self.name_max);
                let steps = match right.content.is_empty() {
                    _ if right.name == *name => continue,
                    true => vec![Repairing::Create(right.name), remove],
                    false => vec![Repairing::Rename(name.clone(), right.name)],
                };
                report.add(path, Damage::Misnamed, Some(Repair { dir: dir.clone(), steps }));
            }
        }
        Ok(())
    }

    /// Whether a directory beside its own whiteout would merge with something after the removal of
    /// the whiteout.
    fn needs_mark(&self, dir: &Arc<LayerDir<L>>, name: &OsStr, below: &Below<L>) -> Result<bool> {
        let child = self.upper.child(dir, name);
        if self.exists(&child, OsStr::new(format::OPAQUE))? || self.exists(&child, OsStr::new(format::REDIRECT))? {
            return Ok(false);
        }
        Ok(!matches!(self.found(below, name)?, Found::Nothing))
    }

    /// Reports partial copies that cannot be completed, or have no effect, and their maps.
    fn check_parts(&self, seen: &Seen<L>, report: &mut Report<L>) -> Result<()> {
        let Seen { dir, path, listing, .. } = seen;
        for part in &listing.parts {
            self.check_part(seen, part, report)?;
        }
        for of @ (source, name) in &listing.maps {
            if listing.parts.contains(of) {
                continue;
            }
            if let Some((_, map)) = format::part_names(name, *source, self.name_max) {
                let remove = Repair::remove(dir, &map, Kind::File);
                report.add(path.join(&map), Damage::OrphanMap, Some(remove));
            }
        }
        Ok(())
    }

    fn check_part(&self, seen: &Seen<L>, of: &PartOf, report: &mut Report<L>) -> Result<()> {
        let Seen { dir, path: above, listing, below, .. } = seen;
        let (source, name) = of;
        let Some((part, map)) = format::part_names(name, *source, self.name_max) else { return Ok(()) };
        let has_map = listing.maps.contains(of);
        let path = above.join(&part);
        let is_whole = self.upper.stat(dir, &part)?.nlink > 1;
        let lower_file = match self.found(below, name)? {
            Found::Object(node) if node.kind() == Kind::File => Some(node),
            Found::Unknown => {
                report.partial = true;
                return Ok(());
            }
            _ => None,
        };
        let is_other = match (source, &lower_file) {
            (Some(source), Some(node)) => origin_of(&self.below, node)? != Some(*source),
            (Some(_), None) => true,
            (None, _) => false,
        };
        let is_outdone = listing.object(name).is_some() || listing.hides(name);
        if is_whole || is_outdone && !is_other {
            let map = has_map.then_some(Repairing::Remove(map, Kind::File));
            let steps = map.into_iter().chain([Repairing::Remove(part, Kind::File)]).collect();
            report.add(path, Damage::Outdone, Some(Repair { dir: dir.clone(), steps }));
            return Ok(());
        }
        report.partial = true;
        let size = match &lower_file {
            Some(node) if !is_other => self.below.stat(node)?.size,
            Some(_) => {
                report.add(path, Damage::OtherSource, None);
                return Ok(());
            }
            None => {
                report.add(path, Damage::NoSource, None);
                return Ok(());
            }
        };
        match map_len(size) {
            Some(len) if has_map => self.check_map(seen, &map, size, len, report)?,
            Some(_) => {}
            None => report.add(path, Damage::NoSource, None),
        }
        Ok(())
    }

    /// Reports the map of a partial copy of a file with `size` bytes if it has no meaning. It
    /// should have `len` bytes.
    fn check_map(&self, seen: &Seen<L>, map: &OsStr, size: u64, len: usize, report: &mut Report<L>) -> Result<()> {
        let content = self.prefix(&seen.dir, map, len)?;
        let epoch = self.upper.layer(&seen.dir).epoch();
        // An empty map was made and not written: it counts as no map.
        if !content.is_empty() && !map_means_something(&content, size, epoch) {
            let remove = Repair::remove(&seen.dir, map, Kind::File);
            report.add(seen.path.join(map), Damage::MapMeansNothing, Some(remove));
        }
        Ok(())
    }

    /// Reports a mark of partial copies at the top that contradicts the walk.
    pub(super) fn check_partial_mark(&self, report: &mut Report<L>) -> Result<()> {
        if !self.format.features().partial_copies {
            return Ok(());
        }
        let name = OsStr::new(format::PARTS);
        let (layer, open) = (self.upper.layer(&self.root), self.upper.open(&self.root)?);
        let mark = match layer.stat(Object::Entry(&*open, name)) {
            Err(error) if error.errno == ENOENT => None,
            stat => Some(stat?.kind),
        };
        match (mark, report.partial) {
            (Some(Kind::File), false) => {
                let remove = Repair::remove(&self.root, name, Kind::File);
                report.add(name.into(), Damage::MarkWithoutParts, Some(remove));
            }
            (None, true) => {
                let steps = vec![Repairing::Create(name.to_owned())];
                report.add(name.into(), Damage::PartsWithoutMark, Some(Repair { dir: self.root.clone(), steps }));
            }
            _ => {}
        }
        Ok(())
    }

    /// Reports a metacopy of the kernel's format if its data do not exist.
    fn check_metacopy(
        &self,
        dir: &Arc<LayerDir<L>>,
        name: &OsStr,
        path: PathBuf,
        below: &Below<L>,
        report: &mut Report<L>,
    ) -> Result<()> {
        let (layer, open) = (self.upper.layer(dir), self.upper.open(dir)?);
        let object = Object::Entry(&*open, name);
        let names = names(layer, object)?;
        if !names.iter().any(|name| kernel::is_metacopy_mark(name)) {
            return Ok(());
        }
        let data = match kernel::marks(layer, object, &names)?.redirect {
            Some(Redirect::Path(path)) => self.find(&path)?.map_or(Found::Nothing, Found::Object),
            Some(Redirect::Sibling(sibling)) => self.found(below, &sibling)?,
            Some(Redirect::Nothing) => Found::Nothing,
            None => self.found(below, name)?,
        };
        let is_found = match data {
            Found::Object(node) => node.kind() == Kind::File,
            Found::Nothing => false,
            Found::Unknown => true,
        };
        if !is_found {
            report.add(path, Damage::NoData, None);
        }
        Ok(())
    }

    /// Returns the object that the layers below show under a name of a directory.
    pub(super) fn found(&self, below: &Below<L>, name: &OsStr) -> Result<Found<L>> {
        let dir = match below {
            Below::Nothing => return Ok(Found::Nothing),
            Below::Unknown => return Ok(Found::Unknown),
            Below::Dir(dir, _) => dir,
        };
        Ok(self.lookup(dir, name)?.map_or(Found::Nothing, Found::Object))
    }

    /// Returns what the child `name` merges with if it has no marks itself. Its parent merges with
    /// `below`.
    fn dir_below(&self, below: &Below<L>, name: &OsStr) -> Result<Below<L>> {
        Ok(match (self.found(below, name)?, below) {
            (Found::Object(node), Below::Dir(_, path)) if node.kind() == Kind::Dir => Below::Dir(node, path.join(name)),
            (Found::Unknown, _) => Below::Unknown,
            _ => Below::Nothing,
        })
    }

    /// Returns the object at a path of the merged lower layers.
    fn find(&self, path: &Path) -> Result<Option<Arc<Node<L>>>> {
        let mut node = self.below.root().clone();
        for name in path {
            match self.lookup(&node, name)? {
                Some(child) => node = child,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// Returns the object `name` of a directory of the merged lower layers.
    pub(super) fn lookup(&self, dir: &Arc<Node<L>>, name: &OsStr) -> Result<Option<Arc<Node<L>>>> {
        match self.below.lookup(dir, name) {
            Err(error) if matches!(error.errno, ENOENT | ENOTDIR | ENAMETOOLONG) => Ok(None),
            node => node.map(Some),
        }
    }

    /// Whether a directory of the upper layer has an object or a whiteout of a name.
    pub(super) fn says_something(&self, dir: &LayerDir<L>, name: &OsStr) -> Result<bool> {
        Ok(self.exists(dir, name)?
            || match self.format.whiteout(name, self.name_max) {
                WhiteoutMark::Beside(marker) => self.exists(dir, &marker.name)?,
                WhiteoutMark::InPlace => false,
            })
    }

    fn exists(&self, dir: &LayerDir<L>, name: &OsStr) -> Result<bool> {
        match self.upper.stat(dir, name) {
            Err(error) if error.errno == ENOENT => Ok(false),
            stat => stat.map(|_| true),
        }
    }
}
