//! The work directory: what a crash left in it, and the index.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;

use super::repair::Step;
use super::{Checker, Damage, Finding, Repair, Report};
use crate::format::{self, Format};
use crate::layer::{Kind, Layer, Object, Result};
use crate::overlay::stack::LayerDir;
use crate::overlay::{HOLDER, VOLATILE_MARK, index, is_marked_volatile, work};

/// The directories that the kernel's overlayfs keeps in a work directory.
const KERNEL: [&str; 2] = ["work", "index"];

impl<L: Layer> Checker<L> {
    /// Looks through the work directory, which nobody must be using.
    pub(super) fn check_work(&self, report: &mut Report<L>) -> Result<()> {
        let Some(dir) = &self.work else { return Ok(()) };
        let (layer, open) = (self.upper.layer(dir), self.upper.open(dir)?);
        let mut add = |path: PathBuf, damage, repair| {
            report.findings.push(Finding { path, in_work: true, damage, repair });
        };
        let is_volatile = is_marked_volatile(layer, &open)?;
        if is_volatile {
            add(VOLATILE_MARK.into(), Damage::Volatile, None);
        }
        let mut entries = work::entries(layer, &open)?;
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, kind) in &entries {
            let is_kernels = *kind == Kind::Dir && KERNEL.iter().any(|known| name == *known);
            if !work::is_ours(name, *kind) {
                add(name.into(), Damage::Foreign, None);
            } else if is_kernels && (self.format != Format::Oci || is_volatile && name == KERNEL[0]) {
                // The kernel needs what it has in them, and the mark of volatile is in the first.
            } else if !work::is_kept(name, *kind) && name != HOLDER {
                add(name.into(), Damage::Leftover, Some(Repair::remove(dir, name, *kind)));
            }
        }
        let review = index::review(layer, &open)?;
        if !review.whole {
            let rewrite = Repair { dir: dir.clone(), steps: vec![Step::RewriteNumbers] };
            add(index::NUMBERS.into(), Damage::BadNumbers, Some(rewrite));
        }
        let mut lone = Vec::new();
        for (name, origin) in review.links {
            if layer.stat(Object::Entry(&*open, &name))?.nlink <= 1 {
                lone.push((name, origin));
            }
        }
        self.drop_shown(&mut lone)?;
        for (name, _) in lone {
            add(name.into(), Damage::LoneCopy, None);
        }
        Ok(())
    }

    /// Takes out of `copies` those of a file that a lower layer has, whose names show them.
    fn drop_shown(&self, copies: &mut Vec<(OsString, index::Origin)>) -> Result<()> {
        let stack = self.below.stack();
        let mut dirs: Vec<Arc<LayerDir<L>>> = stack.lower_roots().to_vec();
        while let Some(dir) = dirs.pop() {
            if copies.is_empty() {
                return Ok(());
            }
            for (name, kind) in work::entries(stack.layer(&dir), &*stack.open(&dir)?)? {
                if kind == Kind::Dir {
                    if !format::is_reserved(OsStr::new(&name)) {
                        dirs.push(stack.child(&dir, &name));
                    }
                    continue;
                }
                let origin = index::origin(stack, &dir, &stack.stat(&dir, &name)?);
                copies.retain(|(_, of)| *of != origin);
            }
        }
        Ok(())
    }
}
