//! `convert` and `vacuum` after random work in an overlay: the mount shows the same, whatever the
//! format of the upper layer is, and wherever a crash ends the conversion.
//!
//! Needs root.

#[path = "../layer_commit/case.rs"]
mod case;
#[path = "../layer_commit/tree.rs"]
mod tree;
#[path = "../layer_commit/work.rs"]
mod work;

use std::ffi::OsStr;
use std::ops::Deref;
use std::path::PathBuf;

use overlayfs::format::Wanted;
use overlayfs::fsck::Checker;
use overlayfs::layer::OsLayer;
use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::layer_tools::convert::{Site, convert, settle};
use overlayfs::layer_tools::{Error, Views, vacuum};
use overlayfs::mount::open_layers;
use overlayfs::options::Options;
use overlayfs::overlay::{Layers, Overlay, Settings};
use test_common::{Detail, Random, Snapshot, exists, names, put};

use case::{Case, mount, outcome, seeds};
use tree::{Tree, assert_same, tree};
use work::work;

const FORMATS: [Wanted; 2] = [Wanted::Oci, Wanted::Kernel];

/// Layers, and the lower ones as they were before a conversion.
struct Layered {
    case: Case,
    before: Vec<Snapshot>,
}

impl Deref for Layered {
    type Target = Case;

    fn deref(&self) -> &Case {
        &self.case
    }
}

impl Layered {
    fn new(seed: u64, lowers: usize, format: Wanted, steps: usize) -> Self {
        let case = Case::new(seed, lowers, &FORMATS, format, steps);
        let before = case.lowers.iter().map(|lower| Snapshot::take(lower, Detail::Xattrs)).collect();
        Layered { case, before }
    }

    fn layers(&self, counts: &Counts) -> Layers<Counted<OsLayer>> {
        let Layers { upper, work, lowers } = open_layers(&self.options(), true).unwrap();
        let count = |layer| Counted::new(layer, counts);
        Layers { upper: upper.map(count), work: work.map(count), lowers: lowers.into_iter().map(count).collect() }
    }

    /// Converts with layers that count their calls. Each part may stop after some of its calls.
    fn convert(&self, to: Wanted, deref: bool, counts: &Counts, stop: [Option<u64>; 2]) -> Result<(), Error> {
        let stop_after = |calls: Option<u64>| counts.stop_after(calls.unwrap_or(u64::MAX));
        let settings = Settings { trusted: true, ..Settings::default() };
        let overlay = Overlay::with_settings(self.layers(counts), settings).unwrap();
        stop_after(stop[0]);
        let settled = settle(&overlay, deref, &());
        drop(overlay);
        stop_after(None);
        settled?;
        let Site { place, name, upper, work } = Site::open(&self.options())?;
        let count = |layer| Counted::new(layer, counts);
        let site = Site { place: count(place), name, upper: count(upper), work: count(work) };
        stop_after(stop[1]);
        let converted = convert(site, to, true, &());
        stop_after(None);
        converted
    }

    /// Checks that there is no damage, and that nothing of a conversion is left.
    fn check(&self, what: &str) {
        let checker = Checker::new(open_layers(&self.options(), true).unwrap()).unwrap();
        let found: Vec<_> =
            checker.check().unwrap().iter().map(|one| format!("{:?} {}", one.path, one.damage)).collect();
        assert_eq!(found, [""; 0], "{what}");
        for (lower, before) in self.lowers.iter().zip(&self.before) {
            Snapshot::take(lower, Detail::Xattrs).assert_same(before, what);
        }
    }

    /// Returns the paths of the upper layer at which there is a redirect.
    fn redirects(&self) -> Vec<PathBuf> {
        let found = mount(&self.options()).redirects().unwrap();
        found.into_iter().map(|redirected| redirected.at).collect()
    }
}

fn other(format: Wanted) -> Wanted {
    if format == Wanted::Oci { Wanted::Kernel } else { Wanted::Oci }
}

#[test]
fn a_converted_layer_shows_the_same_there_and_back() {
    for seed in seeds(0) {
        let format = FORMATS[seed as usize % 2];
        let case = Layered::new(seed, 1 + seed as usize % 3, format, 80);
        let before = case.shown();
        for to in [other(format), format] {
            let what = format!("seed {seed}, to {to:?}");
            case.convert(to, false, &Counts::default(), [None; 2]).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_same(&before, &case.shown(), &what);
            case.check(&what);
        }
    }
}

#[test]
fn a_layer_without_redirects_shows_the_same() {
    let mut resolved = 0;
    for seed in seeds(100) {
        let format = FORMATS[seed as usize % 2];
        let case = Layered::new(seed, 1 + seed as usize % 3, format, 80);
        let before = case.shown();
        resolved += case.redirects().len();
        let what = format!("seed {seed}");
        case.convert(format, true, &Counts::default(), [None; 2]).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_same(&before, &case.shown(), &what);
        assert_eq!(case.redirects(), Vec::<PathBuf>::new(), "{what}");
        case.check(&what);
    }
    assert!(resolved > 0, "no case has a redirect");
}

#[test]
fn a_vacuum_after_random_work_shows_the_same() {
    for seed in seeds(200) {
        let case = Layered::new(seed, 1 + seed as usize % 3, FORMATS[seed as usize % 2], 80);
        let before = case.shown();
        {
            let checker = Checker::new(open_layers(&case.options(), true).unwrap()).unwrap();
            let views = Views::open(&case.options(), None).unwrap();
            for finding in vacuum::find(&checker, views.above.as_ref().unwrap(), false, &()) {
                vacuum::remove(&checker, &finding.unwrap()).unwrap();
            }
        }
        assert_same(&before, &case.shown(), &format!("seed {seed}"));
        case.check(&format!("seed {seed}"));
    }
}

/// Returns a tree without the times of directories: each is set back in a step of its own.
fn without_times(tree: &Tree) -> Tree {
    let text = |text: &String| match text.strip_prefix("Dir ") {
        Some(rest) => rest.split(' ').enumerate().filter(|(at, _)| *at != 2).map(|(_, word)| word).collect(),
        None => text.clone(),
    };
    tree.iter().map(|(path, found)| (path.clone(), text(found))).collect()
}

/// Ends a conversion after each of its calls: those of one part.
fn crash(part: usize, deref: bool, format: Wanted, seed: u64) {
    for calls in 0.. {
        let case = Layered::new(seed, 2, format, 40);
        let before = without_times(&case.shown());
        let mut stop = [None; 2];
        stop[part] = Some(calls);
        let done = case.convert(other(format), deref, &Counts::default(), stop).is_ok();
        let what = format!("{format:?}, seed {seed}, part {part}, {calls} calls");
        let left = Checker::new(open_layers(&case.options(), true).unwrap()).unwrap().check().unwrap();
        let bad: Vec<_> = left.iter().filter(|one| one.repair.is_none() || one.damage.is_loss()).collect();
        assert!(bad.is_empty(), "{what}: {}", bad[0].damage);
        assert_same(&before, &without_times(&case.shown()), &what);
        assert!(!exists(&case.setup.path("work/tmp.convert")), "{what}");
        case.convert(other(format), deref, &Counts::default(), [None; 2]).unwrap();
        assert_same(&before, &without_times(&case.shown()), &format!("{what}, after another conversion"));
        case.check(&what);
        if done {
            assert!(calls > 20, "a conversion makes calls");
            break;
        }
    }
}

#[test]
fn a_crash_leaves_the_layer_before_or_after_the_conversion() {
    for format in FORMATS {
        crash(1, false, format, 300);
    }
}

#[test]
fn a_crash_while_redirects_are_resolved_shows_nothing() {
    for format in FORMATS {
        crash(0, true, format, 301);
    }
}

fn run(case: &Case, more: &[&str]) -> (i32, String) {
    let words = [&["convert"], more].concat();
    let (code, _, said) = outcome(case.command(env!("CARGO_BIN_EXE_overlayfs-layer"), &words));
    (code, said)
}

#[test]
fn the_program_converts_a_layer_with_its_work_directory_inside() {
    let case = Layered::new(400, 1, Wanted::Oci, 0);
    let inside = Options { work: None, ..case.options() };
    let overlay = mount(&inside);
    work(&overlay, &mut Random(401), 100);
    drop(overlay);
    let before = tree(&mount(&inside));
    let work = case.setup.dir("work");
    for name in names(&work) {
        std::fs::remove_file(work.join(name)).unwrap();
    }
    let to = ["--to", "kernel"];
    let (code, said) = run(&case, &to);
    assert!(code == 3 && said.contains("name it with --work"), "{said}");
    let to = ["--to", "kernel", "--work", work.to_str().unwrap()];
    assert_eq!(run(&case, &to), (0, String::new()));
    assert_same(&before, &case.shown(), "the converted layer");
    assert!(!exists(&case.setup.path("upper/.wh..wh.work")));
    // Once more changes nothing.
    assert_eq!(run(&case, &to), (0, String::new()));
    let overlay = mount(&case.options());
    let (code, said) = run(&case, &to);
    assert!(code == 3 && said.contains("in use"), "{said}");
    drop(overlay);
}

#[test]
fn a_name_that_the_other_format_cannot_have_is_refused() {
    let case = Layered::new(500, 1, Wanted::Kernel, 20);
    put::file(&case.setup.path("upper"), ".wh.name", "");
    let work = case.setup.path("work");
    let before = Snapshot::take(&case.setup.path("upper"), Detail::Xattrs);
    let (code, said) = run(&case, &["--to", "oci", "--work", work.to_str().unwrap()]);
    assert!(code == 3 && said.contains(".wh.name cannot have that name in an OCI layer"), "{said}");
    Snapshot::take(&case.setup.path("upper"), Detail::Xattrs).assert_same(&before, "the refused layer");
    assert!(!names(&work).contains(&"tmp.convert".to_owned()));
}

#[test]
fn deletions_of_fuse_overlayfs_become_whiteouts() {
    let case = Layered::new(600, 1, Wanted::Oci, 0);
    let upper = case.setup.dir("upper");
    put::file(&case.lowers[0], "gone", "");
    put::node(&upper, "gone", rustix::fs::FileType::CharacterDevice, 0, 0);
    let work = case.setup.path("work");
    for (to, mark) in [("oci", ".wh.gone"), ("kernel", "gone")] {
        assert_eq!(run(&case, &["--to", to, "--work", work.to_str().unwrap()]), (0, String::new()));
        assert!(exists(&upper.join(mark)), "{mark} in {:?}", names(&upper));
        let overlay = mount(&case.options());
        assert!(overlay.lookup(overlay.root(), OsStr::new("gone")).is_err());
    }
}
