//! `commit` and the commands beside it: after random work in an overlay the layers show the tree
//! that the mount showed.
//!
//! Needs root.

mod case;
mod tree;
mod work;

use std::cell::Cell;
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use overlayfs::format::Wanted;
use overlayfs::layer::{RenameMode, Time};
use overlayfs::layer_tools::commit::{Choice, Filter, beside, commit, discard};
use overlayfs::layer_tools::open::Paths;
use overlayfs::layer_tools::{Error, Progress, Watch};
use overlayfs::mount::open_layers;
use overlayfs::options::Options;
use overlayfs::overlay::{Overlay, Refused, Settings};
use test_common::{Detail, Random, Setup, Snapshot, exists, names, put};

use case::{Case, mount, outcome, seeds};
use tree::{Tree, assert_same, tree};

const PROGRAM: &str = env!("CARGO_BIN_EXE_overlayfs-layer");

/// Makes layers by random work, the upper one in one of the formats too.
fn layers(seed: u64, lowers: usize, formats: &[Wanted]) -> Case {
    Case::new(seed, lowers, formats, *Random(seed).one_of(formats), 80)
}

impl Case {
    /// Returns what the lower layers alone show.
    fn below(&self) -> Tree {
        tree(&mount(&Options { lowers: self.lowers.clone(), trusted: true, ..Options::default() }))
    }

    /// Returns the number of objects in the upper layer.
    fn upper_count(&self) -> usize {
        numbers(&self.setup.dir("upper")).len()
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        self.lowers.iter().map(|lower| Snapshot::take(lower, Detail::Everything)).collect()
    }

    fn further_down(&self) -> Vec<Snapshot> {
        self.lowers[1..].iter().map(|lower| Snapshot::take(lower, Detail::Everything)).collect()
    }
}

/// Commits the upper layer of a case, and checks everything.
fn check_commit(seed: u64, lowers: usize, formats: &[Wanted]) {
    let case = layers(seed, lowers, formats);
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
        let case = layers(seed, 1 + random.below(3), formats);
        let (before, below, further) = (case.shown(), case.below(), case.further_down());
        let filter = random_filter(&mut random);
        let what = format!("seed {seed}, {filter:?}");
        let count = case.upper_count();
        let choice = Choice { filter: filter.clone(), ..Choice::default() };
        commit(&Paths::new(&case.options()).unwrap(), &choice, &()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_same(&before, &case.shown(), &format!("{what}, the mount"));
        let of_layer = |dir: PathBuf| numbers(&dir).into_iter().collect::<HashSet<_>>();
        let (upper, lower) = (of_layer(case.setup.dir("upper")), of_layer(case.lowers[0].clone()));
        assert!(upper.is_disjoint(&lower), "{what}: a write to the upper layer would change the lower one");
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

/// Returns the inode numbers of all objects in a directory.
fn numbers(dir: &Path) -> Vec<u64> {
    let (mut numbers, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            numbers.push(entry.metadata().unwrap().ino());
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    numbers
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
        let mut command = Command::new(PROGRAM);
        command.arg("commit").args(extra).arg("--lower").arg(&lower).arg("--upper").arg(&upper);
        outcome(command)
    };
    let (code, listed, said) = run(&["--dry-run", "--exclude", "**/*.log"]);
    assert_eq!((code, &*said), (0, ""));
    let listed: Vec<_> = listed.lines().filter_map(|line| line.split(' ').next_back()).collect();
    assert_eq!(listed, [".", "dir", "dir/new", "gone"]);
    assert_eq!(names(&lower), ["gone", "gone.log"], "nothing was done");

    assert_eq!(run(&["--exclude", "**/*.log"]), (0, String::new(), String::new()));
    assert_eq!(names(&lower), ["dir", "gone.log"]);
    assert_eq!(names(&lower.join("dir")), ["new"]);
    assert_eq!(names(&upper.join("dir")), ["new.log"]);
    assert!(exists(&upper.join(".wh.gone.log")) && !exists(&upper.join(".wh.gone")));
    let (code, _, said) = run(&["--include", "[a"]);
    assert_eq!(code, 2);
    assert!(said.starts_with("overlayfs-layer: [a is no glob: "), "{said}");
    assert_eq!(run(&["--include", "dir"]), (0, String::new(), String::new()));
    assert_eq!(names(&lower.join("dir")), ["new", "new.log"]);
    assert!(!exists(&upper.join("dir")));
}

/// Commits the upper layer of a setup into its lower one.
fn commit_by(setup: &Setup, choice: &Choice) {
    let options = Options {
        upper: Some(setup.path("upper")),
        work: Some(setup.path("work")),
        lowers: vec![setup.path("lower")],
        trusted: true,
        ..Options::default()
    };
    let paths = Paths::new(&options).unwrap();
    commit(&paths, choice, &()).unwrap();
}

#[test]
fn a_file_of_the_upper_layer_moves_without_a_copy() {
    for (atomic, keep_old) in [(false, false), (true, false), (true, true)] {
        let setup = Setup::new();
        let [lower, upper, _] = ["lower", "upper", "work"].map(|name| setup.dir(name));
        for name in ["changed", "old-name", "same"] {
            put::file(&lower, name, name);
        }
        let moved = [put::file(&upper, "dir/new", "new"), put::file(&upper, "changed", "more")];
        put::link(&upper, "dir/new", "dir/other");
        let numbers = moved.map(|file| file.metadata().unwrap().ino());
        let marked = put::file(&upper, "marked", "");
        rustix::fs::setxattr(&marked, "user.overlay.overlay.redirect", b"x", rustix::fs::XattrFlags::CREATE).unwrap();
        let marked = marked.metadata().unwrap().ino();
        let options = Options {
            upper: Some(upper),
            work: Some(setup.path("work")),
            lowers: vec![lower.clone()],
            ..Options::default()
        };
        let overlay = mount(&options);
        let root = overlay.root();
        overlay.rename(root, "old-name".as_ref(), root, "new-name".as_ref(), RenameMode::Replace).unwrap();
        drop(overlay);
        let renamed = setup.path("upper/new-name").metadata().unwrap().ino();

        commit_by(&setup, &Choice { atomic, keep_old, ..Choice::default() });
        let number = |name: &str| lower.join(name).metadata().unwrap().ino();
        assert_eq!(["dir/new", "changed"].map(number), numbers, "{atomic} {keep_old}");
        assert_eq!((number("dir/other"), number("new-name")), (numbers[0], renamed));
        assert_ne!(number("marked"), marked, "a file whose attributes depend on the format of its layer");
        let links = |name: &str| lower.join(name).metadata().unwrap().nlink();
        assert_eq!(["dir/new", "changed", "new-name", "marked", "same"].map(links), [2, 1, 1, 1, 1]);
        assert_eq!(names(&setup.path("upper")), [""; 0]);
    }
}

#[test]
fn an_attribute_of_a_large_file_further_down_is_committed() {
    for atomic in [false, true] {
        let setup = Setup::new();
        let bottom = setup.dir("bottom");
        let large = put::file(&bottom, "large", vec![1; 3 << 20]);
        let lowers = vec![setup.dir("lower"), bottom];
        let options = Options {
            upper: Some(setup.dir("upper")),
            work: Some(setup.dir("work")),
            lowers: lowers.clone(),
            ..Options::default()
        };
        let overlay = mount(&options);
        let node = overlay.lookup(overlay.root(), "large".as_ref()).unwrap();
        let time = Time { sec: 1000, nsec: 1 };
        overlay.set_times(&node, time, time).unwrap();
        drop((node, overlay));
        let paths = Paths::new(&options).unwrap();
        commit(&paths, &Choice { atomic, ..Choice::default() }, &()).unwrap();
        let overlay = mount(&Options { lowers, ..Options::default() });
        let node = overlay.lookup(overlay.root(), "large".as_ref()).unwrap();
        assert_eq!(overlay.stat(&node).unwrap().mtime, time, "{atomic}");
        assert_eq!(overlay.stat(&node).unwrap().size, 3 << 20);
        assert_ne!(large.metadata().unwrap().mtime(), 1000);
    }
}

#[test]
fn a_commit_changes_a_directory_that_was_immutable() {
    for atomic in [false, true] {
        let setup = Setup::new();
        let [lower, upper, _] = ["lower", "upper", "work"].map(|name| setup.dir(name));
        put::file(&lower, "dir/gone", "");
        let immutable = |set: bool| {
            let dir = std::fs::File::open(lower.join("dir")).unwrap();
            let flags = if set { rustix::fs::IFlags::IMMUTABLE } else { rustix::fs::IFlags::empty() };
            rustix::fs::ioctl_setflags(&dir, flags).unwrap();
        };
        immutable(true);
        put::file(&upper, "dir/new", "");
        put::whiteout(&upper, "dir", "gone");
        commit_by(&setup, &Choice { atomic, ..Choice::default() });
        assert_eq!(names(&lower.join("dir")), ["new"], "{atomic}");
        immutable(false);
    }
}

#[test]
fn an_atomic_commit_does_the_same_by_an_exchange() {
    for seed in seeds(3000) {
        let case = layers(seed, 1 + seed as usize % 3, &[Wanted::Oci, Wanted::Kernel]);
        let (before, further) = (case.shown(), case.further_down());
        let keep_old = seed % 2 == 0;
        let old = Snapshot::take(&case.lowers[0], Detail::Xattrs);
        let paths = Paths::new(&case.options()).unwrap();
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
        let case = layers(seed, 1 + seed as usize % 3, &[Wanted::Oci, Wanted::Kernel]);
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
        let case = layers(seed, 1 + seed as usize % 3, &[Wanted::Oci, Wanted::Kernel]);
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

/// A watch that compares the work with what was expected.
#[derive(Default)]
struct Counting {
    all: Cell<Progress>,
    done: Cell<Progress>,
}

impl Watch for Counting {
    fn wants_total(&self) -> bool {
        true
    }

    fn expect(&self, all: Progress) {
        self.all.set(all);
    }

    fn advance(&self, more: Progress) {
        let Progress { objects, bytes } = self.done.get();
        self.done.set(Progress { objects: objects + more.objects, bytes: bytes + more.bytes });
    }
}

#[test]
fn a_commit_knows_how_much_work_there_is() {
    for how in ["commit", "atomic", "into"] {
        let setup = Setup::new();
        let [lower, upper, _] = ["lower", "upper", "work"].map(|name| setup.dir(name));
        for name in ["dir/same", "gone", "changed"] {
            put::file(&lower, name, name);
        }
        put::file(&upper, "dir/new", [7; 10_000]);
        put::link(&upper, "dir/new", "dir/other");
        put::file(&upper, "changed", "much more");
        put::symlink(&upper, "symlink", "target");
        put::whiteout(&upper, "", "gone");
        let options = Options { upper: Some(upper), lowers: vec![lower], ..Options::default() };
        let (paths, watch) = (Paths::new(&options).unwrap(), Counting::default());
        match how {
            "commit" => commit(&paths, &Choice::default(), &watch).unwrap(),
            "atomic" => {
                let choice = Choice { atomic: true, ..Choice::default() };
                commit(&paths, &choice, &watch).unwrap();
            }
            _ => beside::copy(&paths.with_copy(&setup.path("copy"), 1).unwrap(), &watch).unwrap(),
        }
        // The root, `dir` and what is in it, `changed` and `symlink`.
        let (objects, bytes) = if how == "commit" { (7, 10_009) } else { (7, 10_017) };
        assert_eq!(watch.all.get(), Progress { objects, bytes }, "{how}");
        assert_eq!(watch.done.get(), watch.all.get(), "{how}");
    }
}

/// Kills the program at some moment. Then a mount is refused, or the commit did not begin, or it
/// has ended. The next call ends it.
#[test]
fn a_killed_program_goes_on() {
    let mut random = Random(6000);
    let (mut refused, mut cases) = (0, 0);
    for seed in seeds(6000) {
        let case = layers(seed, 2, &[Wanted::Oci]);
        let (before, further) = (case.shown(), case.further_down());
        let run = |extra: &[&str]| {
            let mut command = case.command(PROGRAM, &[&["commit"], extra].concat());
            command.arg("--work").arg(case.setup.path("work"));
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
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

/// A lower layer takes a name that begins with `.wh.` for a mark. So a commit of one is refused
/// before it begins, and the upper layer stays usable. What is left out does not matter.
#[test]
fn a_name_that_would_be_a_mark_is_refused_and_nothing_is_lost() {
    for how in ["commit", "atomic", "into", "chosen"] {
        let setup = Setup::new();
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| setup.dir(name));
        put::file(&lower, "dir/file", "below");
        let options = Options {
            upper: Some(upper.clone()),
            work: Some(work),
            lowers: vec![lower.clone()],
            format: Some(Wanted::Kernel),
            trusted: true,
            ..Options::default()
        };
        let overlay = mount(&options);
        let dir = overlay.lookup(overlay.root(), "dir".as_ref()).unwrap();
        let owner = overlayfs::layer::Owner { uid: 0, gid: 0 };
        let file = overlay.create_file(&dir, ".wh.file".as_ref(), 0o644, owner).unwrap();
        overlay.write_at(&file, b"mine", 0).unwrap();
        drop(overlay.create_file(&dir, "other".as_ref(), 0o644, owner).unwrap());
        drop((file, dir, overlay));
        let before = tree(&mount(&options));
        let below = Snapshot::take(&lower, Detail::Xattrs);

        let mut choice = Choice { atomic: how == "atomic", ..Choice::default() };
        if how == "chosen" {
            choice.filter.exclude("**/.wh.*".as_ref()).unwrap();
        }
        let paths = Paths::new(&options).unwrap();
        let committed = match how {
            "into" => beside::copy(&paths.with_copy(&setup.path("copy"), 1).unwrap(), &()),
            _ => commit(&paths, &choice, &()),
        };
        match how {
            "chosen" => {
                committed.unwrap();
                assert_eq!(names(&lower.join("dir")), ["file", "other"]);
            }
            _ => {
                let said = committed.unwrap_err().to_string();
                let begin = "dir/.wh.file cannot get into a lower layer, where .wh. begins the name of a mark";
                assert!(said.starts_with(begin), "{how}: {said}");
                below.assert_same(&Snapshot::take(&lower, Detail::Xattrs), how);
                assert!(!names(setup.root()).iter().any(|name| name.contains("overlayfs-new")), "{how}");
            }
        }
        assert_same(&before, &tree(&mount(&options)), how);
    }
}

/// The flags of chattr arrive, also without another change.
#[test]
fn flags_arrive_in_the_lower_layer() {
    for format in [Wanted::Oci, Wanted::Kernel] {
        for atomic in [false, true] {
            let setup = Setup::new();
            let [lower, upper, work] = ["lower", "upper", "work"].map(|name| setup.dir(name));
            for name in ["fixed", "grows", "dir/file"] {
                put::file(&lower, name, name);
            }
            let options = Options {
                upper: Some(upper),
                work: Some(work),
                lowers: vec![lower],
                format: Some(format),
                trusted: true,
                ..Options::default()
            };
            let overlay = mount(&options);
            let find = |name: &str| overlay.lookup(overlay.root(), name.as_ref()).unwrap();
            let owner = overlayfs::layer::Owner { uid: 0, gid: 0 };
            overlay.create_file(overlay.root(), "new".as_ref(), 0o600, owner).unwrap();
            for (name, flags) in [("fixed", 0x10), ("grows", 0x20), ("dir", 0x10), ("new", 0x10)] {
                overlay.set_flags(&find(name), flags).unwrap();
            }
            drop(overlay);
            let flags_of = |options: &Options| {
                let overlay = mount(options);
                ["fixed", "grows", "dir", "new"].map(|name| {
                    let node = overlay.lookup(overlay.root(), name.as_ref()).unwrap();
                    overlay.stat(&node).unwrap().fixed.or(overlay.fixed(&node).unwrap())
                })
            };
            let wanted = flags_of(&options);
            assert!(wanted.iter().all(|fixed| fixed.is_any()));
            let below = Options { upper: None, work: None, format: None, ..options.clone() };
            commit(&Paths::new(&options).unwrap(), &Choice { atomic, ..Choice::default() }, &())
                .unwrap_or_else(|error| panic!("{format:?}, atomic {atomic}: {error}"));
            let found = flags_of(&below);
            // So that the directory can be removed.
            let overlay = mount(&options);
            for name in ["fixed", "grows", "dir", "new"] {
                overlay.set_flags(&overlay.lookup(overlay.root(), name.as_ref()).unwrap(), 0).unwrap();
            }
            drop(overlay);
            for name in ["lower/fixed", "lower/grows", "lower/new", "lower/dir"] {
                let file = std::fs::File::open(setup.path(name)).unwrap();
                rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::empty()).unwrap();
            }
            assert_eq!(found, wanted, "{format:?}, atomic {atomic}");
        }
    }
}

/// On other lower layers deletions would get lost. Nothing changes, also not by a second try. A
/// mount says that these are the right ones.
#[test]
fn lower_layers_that_the_upper_one_was_not_on_are_refused() {
    let setup = Setup::new();
    let [lower, other, upper, work] = ["lower", "other", "upper", "work"].map(|name| setup.dir(name));
    for layer in [&lower, &other] {
        put::file(layer, "gone", "");
    }
    let options =
        Options { upper: Some(upper), work: Some(work), lowers: vec![lower], trusted: true, ..Options::default() };
    let overlay = mount(&options);
    overlay.unlink(overlay.root(), "gone".as_ref()).unwrap();
    drop(overlay);
    let options = Options { lowers: vec![other.clone()], ..options };
    let atomic = Choice { atomic: true, ..Choice::default() };
    let paths = || Paths::new(&options).unwrap();
    for _ in 0..2 {
        for done in [
            commit(&paths(), &Choice::default(), &()),
            commit(&paths(), &atomic, &()),
            beside::copy(&paths().with_copy(&setup.path("copy"), 1).unwrap(), &()),
        ] {
            let said = done.unwrap_err().to_string();
            assert!(said.starts_with("the upper layer was mounted last on other lower layers: "), "{said}");
        }
    }
    assert_eq!(names(&other), ["gone"]);
    drop(mount(&options));
    commit(&paths(), &Choice::default(), &()).unwrap();
    assert_eq!(names(&other), [""; 0]);
}
