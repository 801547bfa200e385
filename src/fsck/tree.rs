//! The walk through the upper layer, beside the same directories of the merged lower layers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::errno::{ENAMETOOLONG, ENOENT, ENOTDIR};

use super::repair::Step;
use super::{Checker, Damage, Finding, Repair, Report};
use crate::format::attribute::names;
use crate::format::kernel;
use crate::format::listing::{self, Hidden, LayerListing, Reading};
use crate::format::{self, DirMark, Meaning, PartOf, Redirect, WhiteoutMark};
use crate::layer::{Access, Kind, Layer, Object, Result, read_start};
use crate::overlay::Node;
use crate::overlay::on_disk::{LayerDir, map_len, map_means_something, origin_of};

/// A directory of the upper layer that the walk has not read yet.
struct Task<L: Layer> {
    dir: Arc<LayerDir<L>>,
    path: PathBuf,
    /// The target of its merge if it has no redirect and is not opaque.
    below: Below<L>,
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

impl LayerListing {
    pub(super) fn object(&self, name: &OsStr) -> Option<Kind> {
        self.objects.iter().find(|(object, ..)| object == name).map(|(_, kind, _)| *kind)
    }

    pub(super) fn hides(&self, name: &OsStr) -> bool {
        self.whiteouts.iter().any(|whiteout| whiteout.name == name)
    }
}

/// Orders partial copies, so that a report does not depend on the order of the layer's listing.
fn part_order((source, name): &PartOf) -> (Option<u128>, &OsStr) {
    (*source, name)
}

impl<L: Layer> Report<L> {
    /// Adds damage of the tree of the upper layer.
    fn add(&mut self, path: PathBuf, damage: Damage, repair: Option<Repair<L>>) {
        self.findings.push(Finding { path, in_work: false, damage, repair });
    }
}

/// A directory of the upper layer that the walk has read.
pub(super) struct Seen<'w, L: Layer> {
    pub dir: &'w Arc<LayerDir<L>>,
    pub path: &'w Path,
    pub listing: &'w LayerListing,
    /// The target of its merge if it had no marks.
    pub unmarked: &'w Below<L>,
    /// The target of its merge.
    pub below: &'w Below<L>,
}

/// A function for every directory of a walk.
type EachSeen<'f, L> = dyn FnMut(&Seen<'_, L>, &mut Report<L>) -> Result<()> + 'f;

impl<L: Layer> Checker<L> {
    pub(super) fn check_tree(&self, report: &mut Report<L>) -> Result<()> {
        self.walk(report, &mut |seen, report| {
            let (path, dir) = (seen.path, seen.dir);
            if let Below::Dir(_, target) = seen.below {
                report.merged.entry(target.clone()).or_default().push((path.to_owned(), dir.clone()));
            }
            self.check_whiteouts(seen, report)?;
            self.check_parts(seen, report)?;
            if !self.format.features().metacopies {
                return Ok(());
            }
            let files = seen.listing.objects.iter().filter(|(_, kind, _)| *kind == Kind::File);
            for (name, ..) in files {
                self.check_metacopy(dir, name, path.join(name), seen.below, report)?;
            }
            Ok(())
        })
    }

    /// Calls `each` for every directory of the upper layer, before those in it.
    pub(super) fn walk(&self, report: &mut Report<L>, each: &mut EachSeen<'_, L>) -> Result<()> {
        let below = Below::Dir(self.below.root().clone(), PathBuf::new());
        let mut tasks = vec![Task { dir: self.root.clone(), path: PathBuf::new(), below }];
        while let Some(task) = tasks.pop() {
            let listing = match self.read(&task, report) {
                // Another program has removed it meanwhile.
                Err(error) if self.in_use && matches!(error.errno, ENOENT | ENOTDIR) => continue,
                listing => listing?,
            };
            let below = self.narrow(&task, &listing, report)?;
            let Task { dir, path, below: unmarked } = &task;
            each(&Seen { dir, path, listing: &listing, unmarked, below: &below }, report)?;
            for (name, ..) in listing.objects.iter().filter(|(_, kind, _)| *kind == Kind::Dir) {
                let below = if listing.hides(name) { Below::Nothing } else { self.dir_below(&below, name)? };
                tasks.push(Task { dir: self.upper.child(dir, name), path: path.join(name), below });
            }
        }
        Ok(())
    }

    /// Reads a directory, and reports names with wrong objects. Sorts the listing by names.
    fn read(&self, task: &Task<L>, report: &mut Report<L>) -> Result<LayerListing> {
        let (layer, open) = (self.upper.layer(&task.dir), self.upper.open(&task.dir)?);
        let has_devices =
            || Ok(self.format.features().zero_devices && self.exists(&self.root, OsStr::new(format::DEVICES))?);
        let mut listing = listing::read(layer, &*open, self.reading(), has_devices)?;
        let is_top = task.path.as_os_str().is_empty();
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
                noted.push((marker.clone(), Damage::NamesNothing, Some(Repair::remove(&task.dir, marker, Kind::File))));
                false
            }
            _ => true,
        });
        listing.objects.sort_by(|one, other| one.0.cmp(&other.0));
        listing.whiteouts.sort_by(|one, other| one.marker.cmp(&other.marker));
        listing.parts.sort_by(|one, other| part_order(one).cmp(&part_order(other)));
        listing.maps.sort_by(|one, other| part_order(one).cmp(&part_order(other)));
        noted.sort_by(|one, other| one.0.cmp(&other.0));
        noted.into_iter().for_each(|(name, damage, repair)| report.add(task.path.join(name), damage, repair));
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

    fn check_whiteouts(&self, seen: &Seen<'_, L>, report: &mut Report<L>) -> Result<()> {
        let Seen { dir, path: above, listing, below, .. } = seen;
        for Hidden { marker: name, name: hidden, kind } in &listing.whiteouts {
            let removable = *kind != Kind::Dir;
            let path = above.join(name);
            let remove = Step::Remove(name.clone(), *kind);
            if let Some(object) = listing.object(hidden) {
                let needs_mark = object == Kind::Dir && self.needs_mark(dir, hidden, below)?;
                let opaque = needs_mark.then(|| Step::MakeOpaque(hidden.clone()));
                let steps = opaque.into_iter().chain([remove]).collect();
                let repair = removable.then(|| Repair { dir: (*dir).clone(), steps });
                report.add(path, Damage::BesideObject, repair);
            } else if let Found::Nothing = self.found(below, hidden)? {
                let repair = removable.then(|| Repair { dir: (*dir).clone(), steps: vec![remove] });
                report.add(path, Damage::HidesNothing, repair);
            } else if self.reading().meaning(name) == Meaning::LongWhiteout {
                let right = format::whiteout(hidden, self.name_max);
                let steps = match right.content.is_empty() {
                    _ if right.name == *name => continue,
                    true => vec![Step::Create(right.name), remove],
                    false => vec![Step::Rename(name.clone(), right.name)],
                };
                report.add(path, Damage::Misnamed, Some(Repair { dir: (*dir).clone(), steps }));
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
    fn check_parts(&self, seen: &Seen<'_, L>, report: &mut Report<L>) -> Result<()> {
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

    fn check_part(&self, seen: &Seen<'_, L>, of: &PartOf, report: &mut Report<L>) -> Result<()> {
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
            let map = has_map.then_some(Step::Remove(map, Kind::File));
            let steps = map.into_iter().chain([Step::Remove(part, Kind::File)]).collect();
            report.add(path, Damage::Outdone, Some(Repair { dir: (*dir).clone(), steps }));
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
    fn check_map(&self, seen: &Seen<'_, L>, map: &OsStr, size: u64, len: usize, report: &mut Report<L>) -> Result<()> {
        let content = self.prefix(seen.dir, map, len)?;
        let epoch = self.upper.layer(seen.dir).epoch();
        // An empty map was made and not written: it counts as no map.
        if !content.is_empty() && !map_means_something(&content, size, epoch) {
            let remove = Repair::remove(seen.dir, map, Kind::File);
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
                let steps = vec![Step::Create(name.to_owned())];
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
