//! A commit, a merged copy or a discard that ends at any call of a layer, or in a power failure
//! there. The layers show the state before or after then, or no mount takes them. The next call
//! goes on. After it the layers show the tree that the mount showed. Layers that do not change are
//! the same.
//!
//! The layers are in memory, with the abilities of several filesystems. Random work filled them.
//!
//! `cargo test -p test-faults --test commit` tries a sample that is the same in every run.
//! `OVERLAYFS_FAULTS=full` tries all points.

#[expect(dead_code, reason = "the other tests of this package use the rest")]
mod memory;
#[path = "../layer_commit/tree.rs"]
mod tree;
#[path = "../layer_commit/work.rs"]
mod work;

use overlayfs::format::Wanted;
use overlayfs::fsck::Checker;
use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::layer_tools::Error;
use overlayfs::layer_tools::around::Around;
use overlayfs::layer_tools::commit::{Choice, Filter, beside, commit, discard};
use overlayfs::layer_tools::open::{Opener, Part};
use overlayfs::overlay::{Layers, Overlay, Refused, Settings};
use test_common::Random;

use memory::{Abilities, Data, Disk, Loss, Memory, Order};
use tree::{Tree, assert_same, tree};
use work::work;

const LAYERS: [&str; 7] = ["upper", "work", "lower", "lower-work", "bottom", "bottom-work", "copy"];
/// The merged copy that is exchanged with the topmost lower layer.
const BESIDE: &str = ".lower.overlayfs-new";

/// The work that ends early.
#[derive(Clone, Debug)]
enum Job {
    /// A commit in place, of the changes that the globs choose.
    Commit(Filter),
    /// A commit by an exchange.
    Atomic { keep_old: bool },
    /// A merged copy of the upper layer and the topmost lower one.
    Into,
    /// A merged copy of the lower layers.
    Flatten,
}

impl Job {
    fn plain() -> Self {
        Job::Commit(Filter::default())
    }

    fn is_copy(&self) -> bool {
        matches!(self, Job::Into | Job::Flatten)
    }

    /// Returns the lower layers that stay below a copy.
    fn rest(&self) -> &'static [&'static str] {
        if matches!(self, Job::Flatten) { &[] } else { &["bottom"] }
    }
}

/// Layers in memory, with counted calls, and the work to do on them.
struct Place {
    disk: Disk,
    counts: Counts,
    kernel: bool,
    job: Job,
}

impl Place {
    fn of(disk: Disk, kernel: bool, job: &Job) -> Self {
        Place { disk, counts: Counts::default(), kernel, job: job.clone() }
    }

    /// Returns a copy of the layers, for the same work.
    fn copy(&self) -> Self {
        Self::of(self.disk.copy(), self.kernel, &self.job)
    }

    fn layer(&self, name: &str, for_writing: bool) -> Counted<Memory> {
        Counted::new(self.disk.layer(name, for_writing), &self.counts)
    }

    fn lowers(&self, names: &[&str]) -> Vec<Counted<Memory>> {
        names.iter().map(|name| self.layer(name, false)).collect()
    }

    fn stacked(&self, upper: &str, lowers: &[&str]) -> Layers<Counted<Memory>> {
        let work = format!("{upper}-work");
        let work = if upper == "upper" { "work" } else { &work };
        Layers { upper: Some(self.layer(upper, true)), work: Some(self.layer(work, true)), lowers: self.lowers(lowers) }
    }

    /// Makes random layers.
    fn random(seed: u64, abilities: Abilities, kernel: bool, job: &Job) -> Self {
        let place = Self::of(Disk::new(abilities, &LAYERS), kernel, job);
        let mut random = Random(seed);
        for (upper, lowers) in [("bottom", &[][..]), ("lower", &["bottom"]), ("upper", &["lower", "bottom"])] {
            work(&place.mount(upper, lowers).unwrap(), &mut random, 50);
        }
        place
    }

    fn mount(&self, upper: &str, lowers: &[&str]) -> Result<Overlay<Counted<Memory>>, Refused> {
        let format = Some(if self.kernel { Wanted::Kernel } else { Wanted::Oci });
        Overlay::with_settings(self.stacked(upper, lowers), Settings { format, trusted: true, ..Settings::default() })
    }

    fn shown(&self) -> Tree {
        tree(&self.mount("upper", &["lower", "bottom"]).unwrap())
    }

    /// Returns what these layers show, also if a commit has marked them. None if one is missing, in
    /// the middle of an exchange.
    fn shows(&self, lowers: &[&str], commits: bool) -> Option<Result<Tree, Refused>> {
        let top = self.disk.names("");
        if !lowers.iter().all(|name| top.iter().any(|found| found == name)) {
            return None;
        }
        let layers = Layers { upper: None, work: None, lowers: self.lowers(lowers) };
        let overlay = Overlay::with_settings(layers, Settings { trusted: true, commits, ..Settings::default() });
        Some(overlay.map(|overlay| tree(&overlay)))
    }

    fn below(&self) -> Tree {
        self.shows(&["lower", "bottom"], false).unwrap().unwrap()
    }

    /// Returns what the copy shows on the layers below it.
    fn copied(&self) -> Option<Result<Tree, Refused>> {
        self.shows(&[&["copy"], self.job.rest()].concat(), false)
    }

    /// Goes on with a commit that its journal describes, whatever its options were. Without a
    /// journal, does the work from its start.
    fn go_on(&self) -> Result<(), Error> {
        if let Job::Atomic { .. } = self.job {
            self.around()?.finish()?;
        }
        let resumed = match self.job.is_copy() {
            true => None,
            false => Some(commit(self, &Choice { resume: true, ..Choice::default() }, &())),
        };
        match resumed {
            None | Some(Err(Error::Refused(_))) => self.run(),
            Some(resumed) => resumed,
        }
    }

    /// Does the work, or goes on with it.
    fn run(&self) -> Result<(), Error> {
        match &self.job {
            Job::Commit(filter) => commit(self, &Choice { filter: filter.clone(), ..Choice::default() }, &()),
            Job::Atomic { keep_old } => {
                self.around()?.finish()?;
                commit(self, &Choice { atomic: true, keep_old: *keep_old, ..Choice::default() }, &())
            }
            Job::Into => beside::copy(self, &()),
            Job::Flatten => beside::flatten(self, &()),
        }
    }
}

impl Opener for Place {
    type Layer = Counted<Memory>;

    fn around(&self) -> Result<Around<Self::Layer>, Error> {
        let around = Around::new(self.layer("", true), "lower".into());
        around.map_err(|error| Error::at("open", "around", error))
    }

    fn open(&self, part: Part) -> Result<Layers<Self::Layer>, Error> {
        Ok(match part {
            Part::Above if matches!(self.job, Job::Flatten) => self.open(Part::Below)?,
            Part::Upper | Part::Above => self.stacked("upper", &["lower", "bottom"]),
            Part::Below => Layers { upper: None, work: None, lowers: self.lowers(&["lower", "bottom"]) },
            // A work directory inside, where the format permits it.
            Part::Target if !self.kernel => {
                Layers { upper: Some(self.layer("lower", true)), work: None, lowers: self.lowers(&["bottom"]) }
            }
            Part::Target => self.stacked("lower", &["bottom"]),
            Part::Rest => Layers { upper: None, work: None, lowers: self.lowers(self.job.rest()) },
            Part::Copy => {
                let copy = if self.job.is_copy() { "copy" } else { BESIDE };
                let upper = Some(self.layer(copy, true));
                Layers { upper, work: None, lowers: self.lowers(self.job.rest()) }
            }
        })
    }

    fn refused(&self, part: Part, cause: Refused) -> Error {
        Error::Refused(format!("{part:?}: {cause}"))
    }
}

/// Returns the divisor of the sample: one of so many points is tried.
fn one_of(sampled: u64) -> u64 {
    if std::env::var_os("OVERLAYFS_FAULTS").is_some_and(|value| value == "full") { 1 } else { sampled }
}

/// Returns a tree without the places of data in files. A power failure may leave a hole where zeros
/// were written, and a commit does not write equal content again.
fn without_holes(mut tree: Tree) -> Tree {
    for text in tree.values_mut() {
        if let Some((before, (_, after))) =
            text.split_once(", data [").map(|(before, rest)| (before, rest.split_once(']').unwrap()))
        {
            *text = format!("{before}{after}");
        }
    }
    tree
}

/// Returns the tree of a copy without its top. The step that makes a copy whole changes the time of
/// the top, and the next one sets it back.
fn without_top(tree: &Tree) -> Tree {
    tree.iter()
        .filter(|(path, _)| !path.as_os_str().is_empty())
        .map(|(path, text)| (path.clone(), text.clone()))
        .collect()
}

/// The layers before the work.
struct Before {
    shown: Tree,
    below: Tree,
    /// What the lower layers show after the work. A commit of chosen changes makes a part of them.
    after: Tree,
}

impl Before {
    /// Checks that the layers show the state before or after the work, unless a mark refuses them.
    fn check_in_between(&self, place: &Place, what: &str) {
        if let Some(Ok(copied)) = place.copied().filter(|_| place.job.is_copy()) {
            let is_empty = place.disk.names("copy").iter().all(|name| name == ".wh..wh.work");
            assert!(without_top(&copied) == without_top(&self.after) || is_empty, "{what}: a mixture in the copy");
        }
        let Some(below) = place.shows(&["lower", "bottom"], true) else {
            assert!(matches!(place.job, Job::Atomic { .. }), "{what}: the lower layer is gone");
            return;
        };
        if !matches!(place.job, Job::Commit(_)) {
            let below = below.unwrap_or_else(|error| panic!("{what}: {error}"));
            if below != self.below {
                assert_same(&self.after, &below, &format!("{what}, the lower layer in between"));
            }
        }
        match Checker::new(place.stacked("upper", &["lower", "bottom"])) {
            Ok(checker) => {
                for finding in checker.check().unwrap() {
                    assert!(!finding.damage.is_loss(), "{what}: {} {}", finding.path.display(), finding.damage);
                }
            }
            Err(Refused::Commit(_)) => {}
            Err(other) => panic!("{what}: {other}"),
        }
        match place.mount("upper", &["lower", "bottom"]) {
            Ok(overlay) => assert_same(&self.shown, &tree(&overlay), &format!("{what}, a mount in between")),
            Err(Refused::Commit(_)) => {}
            Err(other) => panic!("{what}: {other}"),
        }
    }

    /// Checks the layers after the end of the work. `see` leaves out what a power failure may
    /// change.
    fn check_end(&self, place: &Place, see: impl Fn(&Tree) -> Tree, what: &str) {
        let same = |before: &Tree, after: &Tree, what: &str| assert_same(&see(before), &see(after), what);
        same(&self.shown, &place.shown(), &format!("{what}, the mount"));
        if place.job.is_copy() {
            same(&self.below, &place.below(), &format!("{what}, the lower layers"));
            same(&self.after, &place.copied().unwrap().unwrap(), &format!("{what}, the copy"));
            return;
        }
        same(&self.after, &place.below(), &format!("{what}, the lower layers"));
        let mut left = place.disk.names("");
        left.retain(|name| !LAYERS.contains(&name.as_str()));
        if let Job::Atomic { keep_old: true } = place.job {
            assert_eq!(left, ["lower.old"], "{what}");
            let kept = place.shows(&["lower.old", "bottom"], false).unwrap().unwrap();
            same(&self.below, &kept, &format!("{what}, the former layer"));
        } else {
            assert_eq!(left, [""; 0], "{what}");
        }
        assert!(!place.disk.names("lower").contains(&".wh..wh.work".to_owned()), "{what}");
        if !matches!(&place.job, Job::Commit(filter) if !filter.is_empty()) {
            assert_eq!(place.disk.names("upper"), [""; 0], "{what}");
        }
    }
}

/// The filesystem and the format of a case.
#[derive(Clone, Copy)]
struct On {
    abilities: Abilities,
    kernel: bool,
    /// Whether the power fails at the end, too.
    outage: bool,
}

impl On {
    const fn new(abilities: Abilities, kernel: bool) -> Self {
        On { abilities, kernel, outage: false }
    }

    const fn with_outage(self) -> Self {
        On { outage: true, ..self }
    }
}

/// Ends the work after every call, then goes on. One of `sampled` points is tried.
fn try_points(seed: u64, on: On, job: &Job, sampled: u64) {
    let place = Place::random(seed, on.abilities, on.kernel, job);
    // Whoever gives a copy its other names can end between two calls, and change the time of a
    // directory. That is no matter of the work.
    let prepared = place.mount("upper", &["lower", "bottom"]).unwrap();
    let chosen = matches!(job, Job::Commit(filter) if !filter.is_empty());
    if chosen {
        prepared.dereference(&mut || Ok(())).unwrap();
    }
    prepared.make_whole().unwrap();
    drop(prepared);
    let counted = place.copy();
    counted.run().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let calls = counted.counts.total();
    let after = if job.is_copy() { counted.copied().unwrap().unwrap() } else { counted.below() };
    let before = Before { shown: place.shown(), below: place.below(), after };
    if !chosen {
        let merged = if matches!(job, Job::Flatten) { &before.below } else { &before.shown };
        assert_same(merged, &before.after, &format!("seed {seed}, without an end"));
    }
    before.check_end(&counted, Tree::clone, &format!("seed {seed}, without an end"));
    let mut random = Random(seed);
    let step = one_of(sampled);
    for point in (random.number() % step..calls).step_by(step as usize) {
        let what = format!("seed {seed}, {job:?}, call {point} of {calls}");
        let mut place = place.copy();
        let [lower, bottom] = ["lower", "bottom"].map(|name| place.disk.snapshot(name));
        place.counts.stop_after(point);
        // The last calls are those of the end of the overlay, which reports nothing.
        let _ = place.run();
        if random.below(3) == 0 {
            // The next call ends early too.
            place.counts.stop_after(random.number() % calls);
            let _ = place.run();
        }
        place.counts.stop_after(u64::MAX);
        if on.outage {
            let (durable, changes) = (place.disk.durable(), place.disk.changes());
            let kept = durable + random.below(changes - durable + 1);
            let data = *random.one_of(&[Data::All, Data::None, Data::Some]);
            let loss = Loss { order: Order::Journaled, kept, data, seed: random.number() };
            place = Place::of(place.disk.after_loss(loss), on.kernel, job);
        } else {
            before.check_in_between(&place, &what);
        }
        let had_ended = match place.go_on() {
            Err(Error::Refused(_)) if job.is_copy() || place.disk.names("").contains(&"lower.old".to_owned()) => true,
            ended => ended.map(|()| false).unwrap_or_else(|error| panic!("{what}: {error}")),
        };
        let see = |tree: &Tree| {
            let seen = if on.outage { without_holes(tree.clone()) } else { tree.clone() };
            if had_ended && job.is_copy() { without_top(&seen) } else { seen }
        };
        before.check_end(&place, see, &what);
        if !on.outage {
            place.disk.assert_same(&bottom);
            if job.is_copy() {
                place.disk.assert_same(&lower);
            }
        }
    }
}

const EXT4: On = On::new(Abilities::EXT4, false);
const KERNELS: On = On::new(Abilities::SHARING, true);
/// No rename exchanges two directories.
const FEW: On = On::new(Abilities::FEW, false);

#[test]
fn a_commit_goes_on_after_an_end_at_any_call() {
    for seed in 0..6 {
        try_points(seed, EXT4, &Job::plain(), 40);
        try_points(seed + 100, KERNELS, &Job::plain(), 40);
        try_points(seed + 200, FEW, &Job::plain(), 40);
    }
}

#[test]
fn a_commit_goes_on_after_a_power_failure_at_any_call() {
    for seed in 300..304 {
        try_points(seed, EXT4.with_outage(), &Job::plain(), 40);
        try_points(seed + 100, On::new(Abilities::EXT4, true).with_outage(), &Job::plain(), 40);
    }
}

#[test]
fn a_commit_by_an_exchange_leaves_the_layer_before_or_after_at_any_call() {
    for seed in 700..703 {
        for (index, on) in [EXT4, KERNELS, FEW].into_iter().enumerate() {
            for keep_old in [false, true] {
                let seed = seed + 10 * index as u64 + 100 * u64::from(keep_old);
                try_points(seed, on, &Job::Atomic { keep_old }, 40);
            }
        }
    }
}

#[test]
fn a_commit_by_an_exchange_goes_on_after_a_power_failure_at_any_call() {
    for seed in 900..903 {
        for (index, on) in [EXT4, KERNELS, FEW].into_iter().enumerate() {
            let job = Job::Atomic { keep_old: seed % 2 == 0 };
            try_points(seed + 10 * index as u64, on.with_outage(), &job, 40);
        }
    }
}

#[test]
fn a_merged_copy_is_whole_or_refused_after_an_end_at_any_call() {
    for seed in 1000..1003 {
        for (index, on) in [EXT4, KERNELS, FEW].into_iter().enumerate() {
            for (job, more) in [(Job::Into, 0), (Job::Flatten, 100)] {
                let seed = seed + 10 * index as u64 + more;
                try_points(seed, on, &job, 80);
                try_points(seed + 200, on.with_outage(), &job, 160);
            }
        }
    }
}

/// A discard ends at any call. Either it has not begun, or the next one goes on with it.
#[test]
fn a_discard_goes_on_after_an_end_at_any_call() {
    for (seed, kernel) in [(600, false), (601, true)] {
        let place = Place::random(seed, Abilities::EXT4, kernel, &Job::plain());
        let below = place.below();
        let counted = place.copy();
        discard(&counted, &()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let calls = counted.counts.total();
        let step = one_of(10);
        let mut begun = 0;
        for point in (Random(seed).number() % step..calls).step_by(step as usize) {
            let what = format!("seed {seed}, call {point} of {calls}");
            let place = place.copy();
            place.counts.stop_after(point);
            assert!(discard(&place, &()).is_err(), "{what}");
            place.counts.stop_after(u64::MAX);
            begun += u64::from(matches!(place.mount("upper", &["lower", "bottom"]), Err(Refused::Commit(_))));
            discard(&place, &()).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_same(&below, &place.shown(), &what);
            assert_eq!(place.disk.names("upper"), [""; 0], "{what}");
        }
        assert!(begun > 0, "seed {seed}: no discard ended in the middle");
    }
}

/// Ends a commit of chosen changes after a call, in an outage too. The next one goes on with the
/// same choice. The layers show what they show after a commit in one go.
#[test]
fn a_commit_of_chosen_changes_goes_on_with_its_choice() {
    for (index, glob) in ["**/[ab]", "**/c", "*/d", "e"].into_iter().enumerate() {
        for kernel in [false, true] {
            let seed = 500 + 10 * index as u64 + u64::from(kernel);
            let mut filter = Filter::default();
            if index % 2 == 0 { filter.exclude(glob.as_ref()) } else { filter.include(glob.as_ref()) }.unwrap();
            let on = On::new(Abilities::EXT4, kernel);
            try_points(seed, on, &Job::Commit(filter.clone()), 40);
            try_points(seed + 50, on.with_outage(), &Job::Commit(filter), 40);
        }
    }
}

/// A commit that began without `keep_old` has links to files of the former layer, so it must not
/// keep that.
#[test]
fn a_commit_that_removes_the_former_layer_does_not_keep_it_later() {
    let place = Place::random(1300, Abilities::EXT4, false, &Job::Atomic { keep_old: false });
    let counted = place.copy();
    counted.run().unwrap();
    let calls = counted.counts.total();
    let late = Place { job: Job::Atomic { keep_old: true }, ..place.copy() };
    for point in (0..calls).rev() {
        let began = place.copy();
        began.counts.stop_after(point);
        let _ = began.run();
        began.counts.stop_after(u64::MAX);
        let later = Place { disk: began.disk.clone(), counts: Counts::default(), ..late.copy() };
        let Err(refused) = later.run() else { continue };
        if refused.to_string().contains("--keep-old comes too late") {
            later.go_on().unwrap();
            assert!(!later.disk.names("").contains(&"lower.old".to_owned()));
            return;
        }
    }
    panic!("no end leaves a journal");
}
