//! Objects of the upper layer that the lower layers show too, and marks that hide nothing. They are
//! no damage, but nothing needs them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::repair::Step;
use super::tree::{Below, Found, Seen};
use super::{Checker, Damage, Finding, Repair, Report};
use crate::format::{self, kernel};
use crate::layer::{Kind, Layer, Object, Result};
use crate::overlay::Node;
use crate::overlay::on_disk::LayerDir;

/// Whether the merged tree shows the object at a path as the lower layers show this one.
pub type IsSame<'f, L> = dyn FnMut(&Path, &Arc<Node<L>>) -> Result<bool> + 'f;

/// A directory of the upper layer, and what is needless in it.
struct Looked<L: Layer> {
    dir: Arc<LayerDir<L>>,
    path: PathBuf,
    /// The directory that shows without this one, and its path.
    below: Option<(Arc<Node<L>>, PathBuf)>,
    /// Needless entries other than directories.
    needless: Vec<Finding<L>>,
    /// The opaque mark, if it hides nothing.
    opaque: Vec<Finding<L>>,
    /// Whether an entry stays. Those of directories in it are not counted yet.
    stays: bool,
}

impl<L: Layer> Checker<L> {
    /// Returns everything that can go from the upper layer without an effect on the merged tree, in
    /// an order in which the repairs can be made. They are right only for these lower layers.
    ///
    /// A file with several names stays, since its names must be of one file.
    ///
    /// # Errors
    ///
    /// Those of `is_same`. Any errno of a layer that cannot be read.
    pub fn needless(&self, is_same: &mut IsSame<'_, L>) -> Result<Vec<Finding<L>>> {
        let (mut report, mut dirs) = (Report::new(), Vec::new());
        self.walk(&mut report, &mut |seen, _| {
            dirs.push(self.look(seen, is_same)?);
            Ok(())
        })?;
        let (mut findings, mut staying) = (Vec::new(), HashSet::new());
        // The content of a directory comes behind it in `dirs`, so backwards it comes first.
        while let Some(Looked { dir, path, below, needless, opaque, mut stays }) = dirs.pop() {
            findings.extend(needless);
            // A lower directory must not show at two places, even if it is empty.
            let shows_elsewhere = below.as_ref().is_some_and(|(_, lower)| {
                report.redirects.iter().any(|(_, target)| target.starts_with(lower) || lower.starts_with(target))
            });
            if shows_elsewhere {
                stays |= !opaque.is_empty();
            } else {
                findings.extend(opaque);
            }
            let Some((above, name)) = self.upper.parent(&dir) else { continue };
            let goes = match below {
                Some((below, _)) if !stays && !staying.remove(&path) => is_same(&path, &below)?,
                _ => false,
            };
            if goes {
                let repair = Some(Repair { dir: above, steps: vec![Step::RemoveEmpty(name)] });
                findings.push(Finding { path, in_work: false, damage: Damage::SameBelow, repair });
            } else {
                staying.extend(path.parent().map(Path::to_owned));
            }
        }
        Ok(findings)
    }

    /// Looks through a directory.
    fn look(&self, seen: &Seen<'_, L>, is_same: &mut IsSame<'_, L>) -> Result<Looked<L>> {
        let Seen { dir, path, listing, unmarked, below } = *seen;
        let (mut needless, mut opaque, mut stays) = (Vec::new(), Vec::new(), false);
        let finding = |path: PathBuf, damage, step| {
            let repair = Some(Repair { dir: dir.clone(), steps: vec![step] });
            Finding { path, in_work: false, damage, repair }
        };
        for (name, kind, _) in listing.objects.iter().filter(|(_, kind, _)| *kind != Kind::Dir) {
            let path = path.join(name);
            let is_alone = self.upper.stat(dir, name)?.nlink == 1 && !listing.hides(name);
            match self.found(below, name)? {
                Found::Object(node) if is_alone && is_same(&path, &node)? => {
                    needless.push(finding(path, Damage::SameBelow, Step::Remove(name.clone(), *kind)));
                }
                _ => stays = true,
            }
        }
        for whiteout in &listing.whiteouts {
            let is_alone = whiteout.kind != Kind::Dir && listing.object(&whiteout.name).is_none();
            match self.found(below, &whiteout.name)? {
                Found::Nothing if is_alone => {
                    let step = Step::Remove(whiteout.marker.clone(), whiteout.kind);
                    needless.push(finding(path.join(&whiteout.marker), Damage::HidesNothing, step));
                }
                _ => stays = true,
            }
        }
        let marks = &listing.marks;
        stays |= !(listing.parts.is_empty() && listing.maps.is_empty() && listing.odd.is_empty());
        stays |= marks.redirect().is_some() || marks.fixed().is_any();
        if marks.is_opaque() && marks.redirect().is_none() && self.is_empty(unmarked)? {
            for step in self.opaque_marks(dir)? {
                opaque.push(finding(path.to_owned(), Damage::OpaqueOfNothing, step));
            }
        } else {
            stays |= marks.is_opaque();
        }
        let below = match unmarked {
            Below::Dir(node, path) => Some((node.clone(), path.clone())),
            Below::Nothing | Below::Unknown => None,
        };
        Ok(Looked { dir: dir.clone(), path: path.to_owned(), below, needless, opaque, stays })
    }

    /// Whether it is sure that no entry would show without a mark.
    fn is_empty(&self, below: &Below<L>) -> Result<bool> {
        let mut is_empty = true;
        match below {
            Below::Nothing => {}
            Below::Unknown => is_empty = false,
            Below::Dir(node, _) => self.below.list(&self.below.open(node), 0, &mut |_| {
                is_empty = false;
                false
            })?,
        }
        Ok(is_empty)
    }

    /// Returns the steps that remove the opaque mark of a directory in each of its forms.
    fn opaque_marks(&self, dir: &Arc<LayerDir<L>>) -> Result<Vec<Step>> {
        let (layer, open) = (self.upper.layer(dir), self.upper.open(dir)?);
        let mut steps = Vec::new();
        if self.format.features().reserved_names {
            steps.push(Step::Remove(format::OPAQUE.into(), Kind::File));
        }
        let names = self.reading().attributes(layer, Object::Dir(&*open))?;
        steps.extend(names.into_iter().filter(|name| kernel::is_opaque_mark(name)).map(Step::RemoveXattr));
        Ok(steps)
    }
}
