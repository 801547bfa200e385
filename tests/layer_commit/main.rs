//! `commit` and the commands beside it: after random work in an overlay the layers show the tree
//! that the mount showed.
//!
//! Needs root.

mod tree;
mod work;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use overlayfs::format::Wanted;
use overlayfs::layer::OsLayer;
use overlayfs::layer_tools::commit::{Choice, beside, commit, discard};
use overlayfs::layer_tools::open::Paths;
use overlayfs::layer_tools::{Error, Watch};
use overlayfs::mount::open_layers;
use overlayfs::options::Options;
use overlayfs::overlay::{Overlay, Refused, Settings};
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

    fn snapshots(&self) -> Vec<Snapshot> {
        self.lowers.iter().map(|lower| Snapshot::take(lower, Detail::Everything)).collect()
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
    commit(&Paths::new(&case.options()).unwrap(), Choice::default(), &())
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    check_committed(&case, &before, &further, &format!("seed {seed}"));
}

/// Checks the layers after a commit.
fn check_committed(case: &Case, before: &Tree, further: &[Snapshot], what: &str) {
    assert_same(before, &case.below(), &format!("{what}, the lower layers alone"));
    for (before, lower) in further.iter().zip(&case.lowers[1..]) {
        before.assert_same(&Snapshot::take(lower, Detail::Everything), &format!("{what}, a lower layer further down"));
    }
    assert_eq!(names(&case.setup.dir("upper")), [""; 0], "{what}");
    assert_eq!(names(&case.setup.dir("work")), [""; 0], "{what}");
    assert!(!exists(&case.lowers[0].join(".wh..wh.work")), "{what}");
    assert_same(before, &case.shown(), &format!("{what}, the emptied upper layer"));
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

#[test]
fn an_atomic_commit_does_the_same_by_an_exchange() {
    for seed in seeds(3000) {
        let case = Case::new(seed, 1 + seed as usize % 3, &[Wanted::Oci, Wanted::Kernel]);
        let (before, further) = (case.shown(), case.further_down());
        let keep_old = seed % 2 == 0;
        let old = Snapshot::take(&case.lowers[0], Detail::Xattrs);
        let paths = Paths::new(&case.options()).unwrap().to_exchange(keep_old).unwrap();
        let choice = Choice { atomic: true, keep_old, ..Choice::default() };
        commit(&paths, choice, &()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        check_committed(&case, &before, &further, &format!("seed {seed}"));
        let kept = case.lowers[0].with_extension("old");
        assert_eq!(exists(&kept), keep_old, "seed {seed}");
        if keep_old {
            old.assert_same(&Snapshot::take(&kept, Detail::Xattrs), &format!("seed {seed}, the former layer"));
        }
        let left = names(case.setup.root());
        assert!(!left.iter().any(|name| name.contains("overlayfs")), "seed {seed}: {left:?}");
    }
}

#[test]
fn a_merged_copy_shows_the_tree_and_leaves_the_layers_alone() {
    for seed in seeds(4000) {
        let case = Case::new(seed, 1 + seed as usize % 3, &[Wanted::Oci, Wanted::Kernel]);
        let before = case.shown();
        let layers = case.snapshots();
        let copy = case.setup.path("copy");
        // An interrupted copy is begun anew.
        let paths = Paths::new(&case.options()).unwrap().with_copy(&copy, 1).unwrap();
        let stopped = beside::copy(&paths, &Stopped(3.into()));
        assert!(matches!(stopped, Err(Error::Stopped)), "seed {seed}: {stopped:?}");
        beside::copy(&paths, &()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let lowers = [&[copy][..], &case.lowers[1..]].concat();
        let shown = tree(&mount(&Options { lowers, trusted: true, ..Options::default() }));
        assert_same(&before, &shown, &format!("seed {seed}"));
        let flat = case.setup.path("flat");
        let paths = Paths::new(&case.options()).unwrap().with_copy(&flat, case.lowers.len()).unwrap();
        beside::copy(&paths, &()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let shown = tree(&mount(&Options { lowers: vec![flat.clone()], trusted: true, ..Options::default() }));
        assert_same(&before, &shown, &format!("seed {seed}, in one directory"));
        let below = case.below();
        let lowers = Options { lowers: case.lowers.clone(), trusted: true, ..Options::default() };
        let flat = case.setup.path("lowers");
        beside::flatten(&Paths::new(&lowers).unwrap().with_copy(&flat, case.lowers.len()).unwrap(), &()).unwrap();
        let shown = tree(&mount(&Options { lowers: vec![flat], trusted: true, ..Options::default() }));
        assert_same(&below, &shown, &format!("seed {seed}, the lower layers in one directory"));
        for (before, now) in layers.iter().zip(case.snapshots()) {
            before.assert_same(&now, &format!("seed {seed}, a layer"));
        }
        assert_same(&before, &case.shown(), &format!("seed {seed}, the same mount"));
    }
}

#[test]
fn a_discard_shows_the_lower_layers() {
    for seed in seeds(5000) {
        let case = Case::new(seed, 1 + seed as usize % 3, &[Wanted::Oci, Wanted::Kernel]);
        let (below, layers) = (case.below(), case.snapshots());
        discard(&Paths::new(&case.options()).unwrap(), &()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_same(&below, &case.shown(), &format!("seed {seed}"));
        for (before, now) in layers.iter().zip(case.snapshots()) {
            before.assert_same(&now, &format!("seed {seed}, a layer"));
        }
    }
}

/// A watch that stops the work after so many objects.
struct Stopped(std::sync::atomic::AtomicU64);

impl Watch for Stopped {
    fn wants_stop(&self) -> bool {
        use std::sync::atomic::Ordering::Relaxed;
        self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_err()
    }
}

/// Kills the program at some moment. Then a mount is refused, or the commit did not begin, or it
/// has ended. The next call ends it.
#[test]
fn a_killed_program_goes_on() {
    let mut random = Random(6000);
    let (mut refused, mut cases) = (0, 0);
    for seed in seeds(6000) {
        let case = Case::new(seed, 2, &[Wanted::Oci]);
        let (before, further) = (case.shown(), case.further_down());
        let run = |extra: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_overlayfs-layer"));
            command.arg("commit").args(extra).stdout(Stdio::null()).stderr(Stdio::piped());
            command.arg("--upper").arg(case.setup.dir("upper")).arg("--work").arg(case.setup.dir("work"));
            for lower in &case.lowers {
                command.arg("--lower").arg(lower);
            }
            command.spawn().unwrap()
        };
        let atomic: &[&str] = if seed % 2 == 0 { &[] } else { &["--atomic"] };
        for _ in 0..3 {
            let mut child = run(atomic);
            std::thread::sleep(Duration::from_micros(random.below(40_000) as u64));
            let _ = child.kill();
            child.wait().unwrap();
            let options = case.options();
            let layers = open_layers(&options, true).unwrap();
            match Overlay::with_settings(layers, Settings { trusted: true, ..Settings::default() }) {
                Ok(overlay) => assert_same(&before, &tree(&overlay), &format!("seed {seed}, after a kill")),
                Err(Refused::Commit(_)) => refused += 1,
                Err(other) => panic!("seed {seed}: {other}"),
            }
            cases += 1;
        }
        let ended = run(atomic).wait_with_output().unwrap();
        assert!(ended.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&ended.stderr));
        check_committed(&case, &before, &further, &format!("seed {seed}"));
    }
    println!("{refused} of {cases} kills left a commit to go on with");
}
