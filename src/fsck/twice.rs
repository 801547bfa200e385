//! Redirects to a lower directory that shows at another place of the merged tree too.

use std::path::{Path, PathBuf};

use super::{Checker, Damage, Finding, Merging, Report};
use crate::layer::{Layer, Result};

impl<L: Layer> Checker<L> {
    /// Adds a finding for each such redirect. The walk must have read every directory of the upper
    /// layer.
    pub(super) fn check_redirects(&self, report: &mut Report<L>) -> Result<()> {
        for (path, target) in &report.redirects {
            let places = self.places(report, target)?;
            if let Some(other) = places.into_iter().find(|place| place != path) {
                report.findings.push(Finding {
                    path: path.clone(),
                    in_work: false,
                    damage: Damage::SeenTwice(other),
                    repair: None,
                });
            }
        }
        Ok(())
    }

    /// Returns the paths at which the merged tree shows an object of the lower layers. The walk
    /// must have read every directory of the upper layer.
    pub(super) fn places(&self, report: &Report<L>, target: &Path) -> Result<Vec<PathBuf>> {
        let mut places: Vec<_> = merging(report, target).map(|(path, _)| path.clone()).collect();
        for above in target.ancestors().skip(1) {
            let Ok(rest) = target.strip_prefix(above) else { continue };
            let Some(first) = rest.iter().next() else { continue };
            for (path, dir) in merging(report, above) {
                if !self.says_something(dir, first)? {
                    places.push(path.join(rest));
                }
            }
        }
        Ok(places)
    }
}

/// Returns the directories of the upper layer that merge with this path.
fn merging<'r, L: Layer>(report: &'r Report<L>, target: &Path) -> impl Iterator<Item = &'r Merging<L>> {
    report.merged.get(target).into_iter().flatten()
}
