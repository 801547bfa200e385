//! Objects of the upper layer that the lower layers show too, and marks that hide nothing. They are
//! no damage, but nothing needs them.

use std::ffi::OsStr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::vec;

use super::repair::Step as Repairing;
use super::tree::{Below, Found, Seen, Step, Walk};
use super::{Checker, Damage, Finding, Repair, Report, Wanted};
use crate::format::listing::{Hidden, LayerListing};
use crate::format::{self, kernel};
use crate::layer::{Kind, Layer, Object, Result};
use crate::overlay::Node;
use crate::overlay::on_disk::LayerDir;

/// Whether the merged tree shows the object at a path as the lower layers show this one.
pub type IsSame<'f, L> = dyn FnMut(&Path, &Arc<Node<L>>) -> Result<bool> + 'f;

/// Finds everything that can go from an upper layer without an effect on the merged tree, one by
/// one. Each may go as soon as it is found. This is right only for the lower layers of the checker.
///
/// A file with several names stays, since its names must be of one file.
pub struct Needless<'c, L: Layer> {
    checker: &'c Checker<L>,
    walk: Walk<'c, L>,
    report: Report<L>,
    /// The directories from the top to the current one.
    dirs: Vec<Looked<L>>,
    /// The paths in the lower layers that redirects lead to. Known once one is needed.
    targets: Option<Vec<PathBuf>>,
}

/// A directory of the upper layer on the way.
struct Looked<L: Layer> {
    dir: Arc<LayerDir<L>>,
    path: PathBuf,
    listing: LayerListing,
    /// The target of its merge.
    below: Below<L>,
    /// The directory that shows without this one.
    unmarked: Option<Arc<Node<L>>>,
    /// The entries that are left to look at, by their indices.
    objects: Range<usize>,
    whiteouts: Range<usize>,
    /// The steps that remove its opaque mark, if that hides nothing.
    opaque: vec::IntoIter<Repairing>,
    /// Whether an entry stays.
    stays: bool,
}

impl<L: Layer> Looked<L> {
    /// Goes on with the next names of the directory.
    fn go_on(&mut self, listing: LayerListing) {
        self.stays |= has_copies(&listing);
        (self.objects, self.whiteouts) = (0..listing.objects.len(), 0..listing.whiteouts.len());
        self.listing = listing;
    }

    fn finding(&self, path: PathBuf, damage: Damage, step: Repairing) -> Finding<L> {
        let repair = Some(Repair { dir: self.dir.clone(), steps: vec![step] });
        Finding { path, in_work: false, damage, repair }
    }
}

/// Whether a directory has partial copies.
fn has_copies(listing: &LayerListing) -> bool {
    !(listing.parts.is_empty() && listing.maps.is_empty())
}

impl<'c, L: Layer> Needless<'c, L> {
    /// Prepares to look through the upper layer of a checker.
    pub fn new(checker: &'c Checker<L>) -> Self {
        let (walk, report) = (Walk::new(checker), Report::new(Wanted::Losses));
        Needless { checker, walk, report, dirs: Vec::new(), targets: None }
    }

    /// Returns the next one, or None at the end.
    ///
    /// # Errors
    ///
    /// Those of `is_same`. Any errno of a layer that cannot be read.
    pub fn next(&mut self, is_same: &mut IsSame<'_, L>) -> Result<Option<Finding<L>>> {
        loop {
            if let Some(found) = self.next_here(is_same)? {
                return Ok(Some(found));
            }
            match self.walk.step(&mut self.report)? {
                None => return Ok(None),
                Some(Step::Into(seen)) => {
                    let looked = self.look(*seen)?;
                    self.dirs.push(looked);
                }
                Some(Step::More(seen)) => {
                    if let Some(here) = self.dirs.last_mut() {
                        here.go_on(seen.listing);
                    }
                }
                Some(Step::Out) => {
                    if let Some(found) = self.leave(is_same)? {
                        return Ok(Some(found));
                    }
                }
            }
        }
    }

    /// Returns the next one in the current directory.
    fn next_here(&mut self, is_same: &mut IsSame<'_, L>) -> Result<Option<Finding<L>>> {
        let Some(here) = self.dirs.last_mut() else { return Ok(None) };
        while let Some(at) = here.objects.next() {
            let (name, kind, _) = &here.listing.objects[at];
            if *kind == Kind::Dir {
                continue;
            }
            let path = here.path.join(name);
            let is_alone = self.checker.upper.stat(&here.dir, name)?.nlink == 1 && !here.listing.hides(name);
            let is_needless = match self.checker.found(&here.below, name)? {
                Found::Object(node) => {
                    let is_needless = is_alone && is_same(&path, &node)?;
                    self.checker.below.release(node);
                    is_needless
                }
                Found::Nothing | Found::Unknown => false,
            };
            if is_needless {
                return Ok(Some(here.finding(path, Damage::SameBelow, Repairing::Remove(name.clone(), *kind))));
            }
            here.stays = true;
        }
        while let Some(at) = here.whiteouts.next() {
            let Hidden { name, marker, kind } = &here.listing.whiteouts[at];
            let is_alone = *kind != Kind::Dir && here.listing.object(name).is_none();
            match self.checker.found(&here.below, name)? {
                Found::Nothing if is_alone => {
                    let step = Repairing::Remove(marker.clone(), *kind);
                    return Ok(Some(here.finding(here.path.join(marker), Damage::HidesNothing, step)));
                }
                Found::Object(node) => self.checker.below.release(node),
                Found::Nothing | Found::Unknown => {}
            }
            here.stays = true;
        }
        let step = here.opaque.next();
        Ok(step.map(|step| here.finding(here.path.clone(), Damage::OpaqueOfNothing, step)))
    }

    /// Leaves the current directory. Returns it if it can go too.
    fn leave(&mut self, is_same: &mut IsSame<'_, L>) -> Result<Option<Finding<L>>> {
        let Some(Looked { dir, path, unmarked, stays, .. }) = self.dirs.pop() else { return Ok(None) };
        let Some((above, name)) = self.checker.upper.parent(&dir) else { return Ok(None) };
        if let Some(below) = unmarked.filter(|_| !stays)
            && is_same(&path, &below)?
        {
            let repair = Some(Repair { dir: above, steps: vec![Repairing::RemoveEmpty(name)] });
            return Ok(Some(Finding { path, in_work: false, damage: Damage::SameBelow, repair }));
        }
        if let Some(above) = self.dirs.last_mut() {
            above.stays = true;
        }
        Ok(None)
    }

    /// Looks at a directory that the walk enters.
    fn look(&mut self, seen: Seen<L>) -> Result<Looked<L>> {
        let Seen { dir, path, listing, unmarked, below } = seen;
        let marks = &listing.marks;
        let mut stays = has_copies(&listing) || !listing.odd.is_empty();
        stays |= marks.redirect().is_some() || marks.fixed().is_any();
        let mut opaque = Vec::new();
        if marks.is_opaque() && marks.redirect().is_none() && self.checker.is_empty(&unmarked)? {
            opaque = self.checker.opaque_marks(&dir)?;
        } else {
            stays |= marks.is_opaque();
        }
        if let Below::Dir(_, lower) = &unmarked
            && !opaque.is_empty()
            && self.shows_elsewhere(lower)?
        {
            opaque.clear();
            stays = true;
        }
        let unmarked = match unmarked {
            Below::Dir(node, _) => Some(node),
            Below::Nothing | Below::Unknown => None,
        };
        let (objects, whiteouts) = (0..listing.objects.len(), 0..listing.whiteouts.len());
        let opaque = opaque.into_iter();
        Ok(Looked { dir, path, listing, below, unmarked, objects, whiteouts, opaque, stays })
    }

    /// Whether a redirect may show a directory of the lower layers at another place. One must not
    /// show at two, even if it is empty.
    fn shows_elsewhere(&mut self, lower: &Path) -> Result<bool> {
        let targets = match self.targets.take() {
            Some(targets) => targets,
            None => {
                let (mut walk, mut report) = (Walk::new(self.checker), Report::new(Wanted::Losses));
                while walk.step(&mut report)?.is_some() {}
                report.redirects.into_iter().map(|(_, target)| target).collect()
            }
        };
        let targets = self.targets.insert(targets);
        Ok(targets.iter().any(|target| target.starts_with(lower) || lower.starts_with(target)))
    }
}

impl<L: Layer> Checker<L> {
    /// Whether it is sure that no entry would show without a mark.
    fn is_empty(&self, below: &Below<L>) -> Result<bool> {
        Ok(match below {
            Below::Nothing => true,
            Below::Unknown => false,
            Below::Dir(node, _) => {
                let (shown, next) = self.below.shown_from(node, OsStr::new(""))?;
                shown.is_empty() && next.is_none()
            }
        })
    }

    /// Returns the steps that remove the opaque mark of a directory in each of its forms.
    fn opaque_marks(&self, dir: &Arc<LayerDir<L>>) -> Result<Vec<Repairing>> {
        let (layer, open) = (self.upper.layer(dir), self.upper.open(dir)?);
        let mut steps = Vec::new();
        if self.format.features().reserved_names {
            steps.push(Repairing::Remove(format::OPAQUE.into(), Kind::File));
        }
        let names = self.reading().attributes(layer, Object::Dir(&*open))?;
        steps.extend(names.into_iter().filter(|name| kernel::is_opaque_mark(name)).map(Repairing::RemoveXattr));
        Ok(steps)
    }
}
