//! The facts about the layers of an overlay.

use super::fact::Fact;
use crate::options::Options;

/// Returns the layers, the topmost lower one first. Their paths should be absolute.
pub fn layers(options: &Options) -> Vec<Fact> {
    let lowers = options.lowers.iter().map(|path| Fact::path("lower", path));
    let upper = options.upper.iter().map(|path| Fact::path("upper", path));
    let work = options.work.iter().map(|path| Fact::path("work", path));
    let snapshots = options.snapshots.iter().map(|path| Fact::path("snapshots", path));
    lowers.chain(upper).chain(work).chain(snapshots).collect()
}
