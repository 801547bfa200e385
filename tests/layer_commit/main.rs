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
use overlayfs::layer_tools::commit::{Choice, Filter, beside, commit, discard};
use overlayfs::layer_tools::open::Paths;
use overlayfs::layer_tools::{Error, Watch};
use overlayfs::mount::open_layers;
use overlayfs::options::Options;
use overlayfs::overlay::{Overlay, Refused, Settings};
use test_common::{Detail, Random, Setup, Snapshot, exists, names, put};

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

    /// Returns the number of objects in the upper layer.
    fn upper_count(&self) -> usize {
        let (mut count, mut dirs) = (0, vec![self.setup.dir("upper")]);
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).unwrap().map(Result::unwrap) {
                count += usize::from(entry.file_name() != ".wh..wh.work");
                if entry.file_type().unwrap().is_dir() && entry.file_name() != ".wh..wh.work" {
                    dirs.push(entry.path());
                }
            }
        }
        count
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
    commit(&Paths::new(&case.options()).unwrap(), &Choice::default(), &())
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

/// Returns random globs of names that the random work uses.
fn random_filter(random: &mut Random) -> Filter {
    const GLOBS: [&str; 10] = ["a", "*/b", "**/c", "**/[de]", "f", "*/*/a", "b/**", "**/{a,f}", "*/[c-f]", "nothing"];
    let mut filter = Filter::default();
    let which = random.below(3);
    for _ in 0..1 + random.below(3) {
        if which != 1 {
            filter.exclude(random.one_of(&GLOBS).as_ref()).unwrap();
        }
        if which != 0 {
            filter.include(random.one_of(&GLOBS).as_ref()).unwrap();
        }
    }
    filter
}

/// A chosen part is in the lower layer, the rest only in the upper one. Then the rest follows.
#[test]
fn a_commit_of_chosen_changes_keeps_the_tree_and_the_rest() {
    let mut random = Random(7000);
    let (mut partial, mut smaller) = (0, 0);
    for seed in seeds(7000) {
        let formats: &[Wanted] =
            [&[Wanted::Oci][..], &[Wanted::Kernel], &[Wanted::Oci, Wanted::Kernel]][seed as usize % 3];
        let case = Case::new(seed, 1 + random.below(3), formats);
        let (before, below, further) = (case.shown(), case.below(), case.further_down());
        let filter = random_filter(&mut random);
        let what = format!("seed {seed}, {filter:?}");
        let count = case.upper_count();
        let choice = Choice { filter: filter.clone(), ..Choice::default() };
        commit(&Paths::new(&case.options()).unwrap(), &choice, &()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_same(&before, &case.shown(), &format!("{what}, the mount"));
        let now = case.below();
        check_chosen(&below, &before, &now, &filter, &what);
        partial += u64::from(now != below && now != before);
        smaller += u64::from(case.upper_count() < count);
        for (before, lower) in further.iter().zip(&case.lowers[1..]) {
            before.assert_same(&Snapshot::take(lower, Detail::Everything), &what);
        }
        commit(&Paths::new(&case.options()).unwrap(), &Choice::default(), &())
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        check_committed(&case, &before, &further, &format!("{what}, the rest"));
    }
    assert!(partial > 0 && smaller > 0, "no filter chose a part");
    println!("{partial} commits of a part, {smaller} upper layers with less");
}

/// Checks that each path is as before the commit, if the globs leave it out, or else as above. The
/// names of a file with several may stay although they are chosen, and directories on the way to a
/// chosen change are.
fn check_chosen(below: &Tree, above: &Tree, now: &Tree, filter: &Filter, what: &str) {
    for path in below.keys().chain(above.keys()) {
        let (old, new, now) = (below.get(path), above.get(path), now.get(path));
        let is_linked = [old, new].iter().flatten().any(|text| text.contains(" linked "));
        let is_dir = |text: Option<&String>| text.is_some_and(|text| text.starts_with("Dir"));
        // The content of a directory that is gone goes with it.
        let goes = path.ancestors().skip(1).any(|dir| is_dir(below.get(dir)) && !is_dir(above.get(dir)));
        if is_linked || goes || path.as_os_str().is_empty() {
            continue;
        }
        if filter.chooses(path) {
            assert_eq!(now, new, "{what}: {} is chosen", path.display());
        } else if !is_dir(new) {
            assert_eq!(now, old, "{what}: {} is left out", path.display());
        }
    }
}

#[test]
fn the_program_commits_the_changes_that_its_globs_choose() {
    let setup = Setup::new();
    let (lower, upper) = (setup.dir("lower"), setup.dir("upper"));
    for (dir, name) in [(&lower, "gone.log"), (&lower, "gone"), (&upper, "dir/new"), (&upper, "dir/new.log")] {
        put::file(dir, name, name);
    }
    put::whiteout(&upper, "", "gone.log");
    put::whiteout(&upper, "", "gone");
    let run = |extra: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_overlayfs-layer"));
        command.arg("commit").args(extra).arg("--lower").arg(&lower).arg("--upper").arg(&upper);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, listed, said) = run(&["--dry-run", "--exclude", "**/*.log"]);
    assert_eq!((code, &*said), (Some(0), ""));
    let listed: Vec<_> = listed.lines().filter_map(|line| line.split(' ').next_back()).collect();
    assert_eq!(listed, [".", "dir", "dir/new", "gone"]);
    assert_eq!(names(&lower), ["gone", "gone.log"], "nothing was done");

    assert_eq!(run(&["--exclude", "**/*.log"]), (Some(0), String::new(), String::new()));
    assert_eq!(names(&lower), ["dir", "gone.log"]);
    assert_eq!(names(&lower.join("dir")), ["new"]);
    assert_eq!(names(&upper.join("dir")), ["new.log"]);
    assert!(exists(&upper.join(".wh.gone.log")) && !exists(&upper.join(".wh.gone")));
    let (code, _, said) = run(&["--include", "[a"]);
    assert_eq!(code, Some(2));
    assert!(said.starts_with("overlayfs-layer: [a is no glob: "), "{said}");
    assert_eq!(run(&["--include", "dir"]), (Some(0), String::new(), String::new()));
    assert_eq!(names(&lower.join("dir")), ["new", "new.log"]);
    assert!(!exists(&upper.join("dir")));
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
        commit(&paths, &choice, &()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
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
