//! The work directory: leftovers of a crash, and the index.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use super::repair::Step;
use super::{Checker, Damage, Finding, Repair, Report, Wanted};
use crate::format;
use crate::layer::{Kind, Layer, Result, entries};
use crate::overlay::VOLATILE_MARK;
use crate::overlay::on_disk::{
    Features, HOLDER, IndexEntry, LayerDir, NUMBERS, RECORD, Record, entries_but_links, found_features, is_kept,
    is_link, is_marked_volatile, is_ours, origin, origin_of, review, stack_of,
};

/// The directories of the kernel's overlayfs in a work directory.
const KERNEL: [&str; 2] = ["work", "index"];

impl<L: Layer> Checker<L> {
    /// Checks the work directory, which no mount may hold.
    pub(super) fn check_work(&self, report: &mut Report<L>) -> Result<()> {
        let Some(dir) = &self.work else { return Ok(()) };
        let (layer, open) = (self.upper.layer(dir), self.upper.open(dir)?);
        let mut add = |path: PathBuf, damage, repair| report.note(Finding { path, in_work: true, damage, repair });
        let is_volatile = is_marked_volatile(layer, &open)?;
        if is_volatile {
            add(VOLATILE_MARK.into(), Damage::Volatile, None);
        }
        let mut entries = entries_but_links(layer, &open)?;
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, kind) in &entries {
            let is_kernels = *kind == Kind::Dir && KERNEL.iter().any(|known| name == *known);
            if !is_ours(name, *kind) {
                add(name.into(), Damage::Foreign, None);
            } else if is_kernels && (self.format.features().is_kernels || is_volatile && name == KERNEL[0]) {
                // The kernel needs the content of both, and the mark of `volatile` is in the first.
            } else if !is_kept(name, *kind) && name != HOLDER {
                add(name.into(), Damage::Leftover, Some(Repair::remove(dir, name, *kind)));
            }
        }
        let review = review(layer, &open)?;
        if !review.whole {
            let rewrite = Repair { dir: dir.clone(), steps: vec![Step::RewriteNumbers] };
            add(NUMBERS.into(), Damage::BadNumbers, Some(rewrite));
        }
        let mut lone = self.nameless_copies(dir, review.links)?;
        self.drop_shown(&mut lone)?;
        for copy in lone {
            add(copy.name().into(), Damage::LoneCopy, None);
        }
        Ok(())
    }

    /// Checks that the record names the features of the layer. A record of an earlier version,
    /// which named none, is no damage: the next mount names them.
    pub(super) fn check_record(&self, report: &mut Report<L>) -> Result<()> {
        let Some(dir) = &self.work else { return Ok(()) };
        let (layer, open) = (self.upper.layer(dir), self.upper.open(dir)?);
        // A repair may have changed it.
        let Some(record) = Record::read(layer, &open)? else { return Ok(()) };
        let mut links = false;
        layer.list(&open, &mut |entry| links |= is_link(entry.name))?;
        let missing = found_features(&self.upper, self.format, links)?.beyond(record.features);
        if record.is_complete && missing != Features::default() {
            let repair = Some(Repair { dir: dir.clone(), steps: vec![Step::Record(missing)] });
            report.note(Finding { path: RECORD.into(), in_work: true, damage: Damage::Unrecorded(missing), repair });
        }
        Ok(())
    }

    /// Returns the index entries that no name shows any more. Returns none if that depends on
    /// unknown facts: the lower layers of the last mount, or the target of a directory.
    pub(super) fn find_unused(&self) -> Result<Vec<Finding<L>>> {
        let Some(dir) = &self.work else { return Ok(Vec::new()) };
        let review = review(self.upper.layer(dir), &*self.upper.open(dir)?)?;
        let mut copies = self.nameless_copies(dir, review.links)?;
        // Most layers have no such entry, and need no walk.
        if copies.is_empty() {
            return Ok(Vec::new());
        }
        let mut lone = copies.clone();
        self.drop_shown(&mut lone)?;
        let mut report = Report::new(Wanted::All);
        self.check_tree(&mut report)?;
        let is_known = |finding: &Finding<L>| finding.damage != Damage::NoPath && !finding.damage.is_missing_below();
        if !lone.is_empty() || !report.findings.iter().all(is_known) {
            return Ok(Vec::new());
        }
        self.drop_named(&report, &mut copies)?;
        let finding = |copy: &IndexEntry| {
            let name = copy.name();
            let kind = self.upper.stat(dir, &name)?.kind;
            let repair = Some(Repair::remove(dir, &name, kind));
            Ok(Finding { path: name.into(), in_work: true, damage: Damage::UnusedCopy, repair })
        };
        copies.iter().map(finding).collect()
    }

    /// Returns those of these index entries that have no name outside the work directory.
    fn nameless_copies(&self, dir: &LayerDir<L>, copies: Vec<IndexEntry>) -> Result<Vec<IndexEntry>> {
        let mut nameless = Vec::new();
        for copy in copies {
            if self.upper.stat(dir, &copy.name())?.nlink <= 1 {
                nameless.push(copy);
            }
        }
        Ok(nameless)
    }

    /// Removes from `copies` those that a name of the merged tree shows. The walk must have read
    /// every directory of the upper layer.
    fn drop_named(&self, report: &Report<L>, copies: &mut Vec<IndexEntry>) -> Result<()> {
        let mut dirs = vec![(PathBuf::new(), self.below.root().clone())];
        while let Some((path, dir)) = dirs.pop() {
            if copies.is_empty() {
                return Ok(());
            }
            let mut names = Vec::new();
            self.below.list(&self.below.open(&dir), 0, &mut |entry| {
                names.push(entry.name.to_owned());
                true
            })?;
            for name in names {
                let Some(node) = self.lookup(&dir, &name)? else { continue };
                let path = path.join(name);
                if node.kind() == Kind::Dir {
                    dirs.push((path, node));
                    continue;
                }
                let origin = origin_of(&self.below, &node)?;
                if copies.iter().any(|copy| Some(copy.origin) == origin) && !self.places(report, &path)?.is_empty() {
                    copies.retain(|copy| Some(copy.origin) != origin);
                }
            }
        }
        Ok(())
    }

    /// Removes from `copies` those of a file that a lower layer has: its names show them.
    fn drop_shown(&self, copies: &mut Vec<IndexEntry>) -> Result<()> {
        let stack = stack_of(&self.below);
        let mut dirs: Vec<Arc<LayerDir<L>>> = stack.lower_roots().to_vec();
        while let Some(dir) = dirs.pop() {
            if copies.is_empty() {
                return Ok(());
            }
            for (name, kind) in entries(stack.layer(&dir), &*stack.open(&dir)?)? {
                if kind == Kind::Dir {
                    if !format::is_reserved(OsStr::new(&name)) {
                        dirs.push(stack.child(&dir, &name));
                    }
                    continue;
                }
                let of = origin(stack, &dir, &stack.stat(&dir, &name)?);
                copies.retain(|copy| copy.origin != of);
            }
        }
        Ok(())
    }
}
