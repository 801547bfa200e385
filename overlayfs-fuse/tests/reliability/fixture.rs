//! The layers of one overlay, its mount options, and the conditions after its unmount.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use overlayfs::fsck::Checker;
use overlayfs::fsck::options::Command;
use overlayfs::mount::open_layers;
use test_common::{LowerGuard, Setup, names, put};

use crate::mount::Mount;
use crate::worker::Worker;

pub struct Fixture {
    pub point: PathBuf,
    lowers: [PathBuf; 2],
    guard: LowerGuard,
    upper: PathBuf,
    work: PathBuf,
}

impl Fixture {
    /// Makes lower layers with the files of `workers` programs and of `furnish`, and an empty upper
    /// layer below `changes`.
    pub fn new(setup: &Setup, changes: &Path, workers: usize, furnish: impl FnOnce(&Path)) -> Self {
        let lowers = ["top", "bottom"].map(|name| setup.dir(name));
        for number in 0..workers {
            Worker::furnish(number, &lowers[0], &lowers[1]);
        }
        furnish(&lowers[1]);
        let guard = LowerGuard::new(&lowers);
        let [upper, work] = ["upper", "work"].map(|name| put::dir(changes, name));
        Self { point: setup.dir("mount"), lowers, guard, upper, work }
    }

    /// Replaces the upper layer by an empty one.
    pub fn clear(&self) {
        for dir in [&self.upper, &self.work] {
            std::fs::remove_dir_all(dir).unwrap();
            std::fs::create_dir(dir).unwrap();
        }
    }

    fn layers(&self) -> String {
        let [top, bottom] = self.lowers.each_ref().map(|lower| lower.display());
        format!("lowerdir={top}:{bottom},upperdir={},workdir={}", self.upper.display(), self.work.display())
    }

    /// Mounts the layers with these options. Each has a comma before it.
    pub fn mount(&self, way: &str) -> Mount {
        Mount::new(&self.point, &self.options(way))
    }

    /// Returns the list behind `-o`.
    pub fn options(&self, way: &str) -> String {
        self.layers() + way
    }

    /// Whether no overlay holds the layers.
    pub fn is_free(&self) -> bool {
        let words = ["-o".to_owned(), self.layers()].map(OsString::from);
        let Ok(Command::Check { options, .. }) = Command::parse(words) else {
            panic!("options that fsck does not take")
        };
        let checker = Checker::new(open_layers(&options, false).unwrap());
        !checker.unwrap_or_else(|refused| panic!("{refused}")).is_in_use()
    }

    /// Returns the losses that `overlayfs-fsck` finds, as sentences. With `repair`, also makes its
    /// repairs.
    pub fn losses(&self, repair: bool) -> Vec<String> {
        let words = ["-o".to_owned(), self.layers()].map(OsString::from);
        let Ok(Command::Check { options, .. }) = Command::parse(words) else {
            panic!("options that fsck does not take")
        };
        let checker =
            Checker::new(open_layers(&options, repair).unwrap()).unwrap_or_else(|refused| panic!("{refused}"));
        assert!(!checker.is_in_use(), "an overlay that is not mounted is in use");
        let findings = checker.check().unwrap();
        for finding in findings.iter().filter(|_| repair) {
            if let Some(repair) = &finding.repair {
                checker.repair(repair).unwrap();
            }
        }
        let lost = findings.iter().filter(|finding| finding.damage.is_loss());
        lost.map(|finding| format!("{}: {}", finding.path.display(), finding.damage)).collect()
    }

    /// Panics if the work directory has other files than those for the next mount and the record of
    /// the holder.
    pub fn check_work(&self) {
        let kept = |name: &String| {
            let kept = ["numbers", "record", "ctimes", "tmp.holder", "work", "index"];
            name.starts_with("link.") || kept.contains(&name.as_str())
        };
        let left: Vec<_> = names(&self.work).into_iter().filter(|name| !kept(name)).collect();
        assert!(left.is_empty(), "left in the work directory of a fresh mount: {left:?}");
    }

    /// Panics if the unmounted upper layer needs a repair or has a partial copy.
    pub fn check_at_rest(&self) {
        assert_eq!(self.losses(false), [""; 0], "lost in an overlay that was unmounted");
        let parts: Vec<_> = paths(&self.upper).into_iter().filter(|path| path.contains("/.wh..wh.part")).collect();
        assert!(parts.is_empty(), "partial copies in an upper layer at rest: {parts:?}");
    }

    /// Panics if a lower layer has changed.
    pub fn check_lowers(&self) {
        self.guard.check();
    }
}

/// Returns all paths below a directory.
fn paths(dir: &Path) -> Vec<String> {
    let below = |name: String| {
        let path = dir.join(name);
        let deeper = if path.is_dir() && !path.is_symlink() { paths(&path) } else { Vec::new() };
        deeper.into_iter().chain([path.to_str().unwrap().to_owned()])
    };
    names(dir).into_iter().flat_map(below).collect()
}
