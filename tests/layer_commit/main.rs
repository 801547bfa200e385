//! `commit` and the commands beside it: after random work in an overlay the layers show the tree
//! that the mount showed.
//!
//! Needs root.

mod tree;
mod work;

use std::path::PathBuf;

use overlayfs::format::Wanted;
use overlayfs::layer::OsLayer;
use overlayfs::layer_tools::commit::{Choice, commit};
use overlayfs::layer_tools::open::Paths;
use overlayfs::mount::open_layers;
use overlayfs::options::Options;
use overlayfs::overlay::{Overlay, Settings};
use test_common::{Detail, Random, Setup, Snapshot, exists, names};

use tree::{Tree, assert_same, tree};
use work::work;

/// The layers of a case: an upper one on some lower ones, which other overlays wrote.
struct Case {
    setup: Setup,
    lowers: Vec<PathBuf>,
    format: Wanted,
}

impl Case {
    /// Makes the lower layers and the upper one by random work.
    fn new(seed: u64, lowers: usize, formats: &[Wanted]) -> Self {
        let setup = Setup::in_memory();
        let mut random = Random(seed);
        let mut case = Case { setup, lowers: Vec::new(), format: Wanted::Oci };
        for layer in 0..lowers {
            let upper = case.setup.dir(&format!("lower{layer}"));
            let format = formats[layer % formats.len()];
            let options = Options {
                upper: Some(upper.clone()),
                work: Some(case.setup.dir(&format!("lower{layer}.work"))),
                lowers: case.lowers.clone(),
                format: Some(format),
                ..Options::default()
            };
            work(&mount(&options), &mut random, 120);
            case.lowers.insert(0, upper);
        }
        case.format = *random.one_of(formats);
        work(&mount(&case.options()), &mut random, 100);
        case
    }

    fn options(&self) -> Options {
        Options {
            upper: Some(self.setup.dir("upper")),
            work: Some(self.setup.dir("work")),
            lowers: self.lowers.clone(),
            format: Some(self.format),
            trusted: true,
            ..Options::default()
        }
    }

    /// Returns what a mount shows.
    fn shown(&self) -> Tree {
        tree(&mount(&self.options()))
    }

    /// Returns what the lower layers alone show.
    fn below(&self) -> Tree {
        tree(&mount(&Options { lowers: self.lowers.clone(), trusted: true, ..Options::default() }))
    }

    fn further_down(&self) -> Vec<Snapshot> {
        self.lowers[1..].iter().map(|lower| Snapshot::take(lower, Detail::Everything)).collect()
    }
}

fn mount(options: &Options) -> Overlay<OsLayer> {
    let layers = open_layers(options, true).unwrap();
    let Options { trusted, format, .. } = *options;
    let format = format.filter(|_| options.upper.is_some());
    Overlay::with_settings(layers, Settings { trusted, format, ..Settings::default() }).unwrap()
}

/// Returns the seeds of the cases of a test. The variable OVERLAYFS_CASES sets their number.
fn seeds(first: u64) -> std::ops::Range<u64> {
    let count = std::env::var("OVERLAYFS_CASES").ok().and_then(|count| count.parse().ok());
    first..first + count.unwrap_or(20)
}

/// Commits the upper layer of a case, and checks everything.
fn check_commit(seed: u64, lowers: usize, formats: &[Wanted]) {
    let case = Case::new(seed, lowers, formats);
    let (before, further) = (case.shown(), case.further_down());
    commit(&Paths::new(&case.options()).unwrap(), &Choice::default(), &())
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let what = format!("seed {seed}");
    assert_same(&before, &case.below(), &format!("{what}, the lower layers alone"));
    for (before, lower) in further.iter().zip(&case.lowers[1..]) {
        before.assert_same(&Snapshot::take(lower, Detail::Everything), &format!("{what}, a lower layer further down"));
    }
    assert_eq!(names(&case.setup.dir("upper")), [""; 0], "{what}");
    assert_eq!(names(&case.setup.dir("work")), [""; 0], "{what}");
    assert!(!exists(&case.lowers[0].join(".wh..wh.work")), "{what}");
    assert_same(&before, &case.shown(), &format!("{what}, the emptied upper layer"));
}

#[test]
fn a_commit_leaves_what_the_mount_showed() {
    for seed in seeds(0) {
        check_commit(seed, 1 + seed as usize % 3, &[Wanted::Oci]);
    }
}

#[test]
fn a_commit_works_in_the_kernels_format() {
    for seed in seeds(1000) {
        check_commit(seed, 1 + seed as usize % 3, &[Wanted::Kernel]);
    }
}

#[test]
fn a_commit_works_over_layers_of_both_formats() {
    for seed in seeds(2000) {
        check_commit(seed, 1 + seed as usize % 3, &[Wanted::Oci, Wanted::Kernel]);
    }
}
