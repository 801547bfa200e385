//! A commit that ends at any call of a layer, or in a power failure there. The next commit goes on
//! with it. Then the lower layers show the tree that the mount showed, and the upper layer is
//! empty. The lower layers further down are unchanged.
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
use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::layer_tools::Error;
use overlayfs::layer_tools::commit::{Choice, Filter, commit, discard};
use overlayfs::layer_tools::open::{Opener, Part};
use overlayfs::overlay::{Layers, Overlay, Refused, Settings};
use test_common::Random;

use memory::{Abilities, Data, Disk, Loss, Memory, Order};
use tree::{Tree, assert_same, tree};
use work::work;

const LAYERS: [&str; 6] = ["upper", "work", "lower", "lower-work", "bottom", "bottom-work"];

/// Layers in memory, with counted calls.
struct Place {
    disk: Disk,
    counts: Counts,
    kernel: bool,
}

impl Place {
    fn of(disk: Disk, kernel: bool) -> Self {
        Place { disk, counts: Counts::default(), kernel }
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
    fn random(seed: u64, abilities: Abilities, kernel: bool) -> Self {
        let place = Self::of(Disk::new(abilities, &LAYERS), kernel);
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

    fn below(&self) -> Tree {
        let layers = Layers { upper: None, work: None, lowers: self.lowers(&["lower", "bottom"]) };
        tree(&Overlay::with_settings(layers, Settings { trusted: true, ..Settings::default() }).unwrap())
    }

    fn commit_chosen(&self, filter: &Filter) -> Result<(), Error> {
        commit(self, &Choice { filter: filter.clone(), ..Choice::default() }, &())
    }

    fn commit(&self) -> Result<(), Error> {
        commit(self, &Choice::default(), &())
    }
}

impl Opener for Place {
    type Layer = Counted<Memory>;

    fn exchange(&self) -> Result<(), Error> {
        Err(Error::Refused("no test exchanges layers in memory".to_owned()))
    }

    fn open(&self, part: Part) -> Result<Layers<Self::Layer>, Error> {
        Ok(match part {
            Part::Upper | Part::Above => self.stacked("upper", &["lower", "bottom"]),
            Part::Below => Layers { upper: None, work: None, lowers: self.lowers(&["lower", "bottom"]) },
            // A work directory inside, where the format permits it.
            Part::Target if !self.kernel => {
                Layers { upper: Some(self.layer("lower", true)), work: None, lowers: self.lowers(&["bottom"]) }
            }
            Part::Target => self.stacked("lower", &["bottom"]),
            Part::Rest | Part::Copy => return Err(Error::Refused("no test copies layers in memory".to_owned())),
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

/// Ends a commit after every call, then goes on; `outage` says whether the power fails too.
fn try_points(seed: u64, abilities: Abilities, kernel: bool, sampled: u64, outage: bool) {
    let place = Place::random(seed, abilities, kernel);
    // Whoever gives a copy its other names can end between two calls, and change the time of a
    // directory. That is no matter of a commit.
    place.mount("upper", &["lower", "bottom"]).unwrap().make_whole().unwrap();
    let before = place.shown();
    let counted = Place::of(place.disk.copy(), kernel);
    counted.commit().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let calls = counted.counts.total();
    let mut random = Random(seed);
    let step = one_of(sampled);
    for point in (random.number() % step..calls).step_by(step as usize) {
        let what = format!("seed {seed}, call {point} of {calls}");
        let mut place = Place::of(place.disk.copy(), kernel);
        let bottom = place.disk.snapshot("bottom");
        place.counts.stop_after(point);
        assert!(place.commit().is_err(), "{what}");
        if random.below(3) == 0 {
            // The next call ends early too.
            place.counts.stop_after(random.number() % calls);
            let _ = place.commit();
        }
        place.counts.stop_after(u64::MAX);
        if outage {
            let (durable, changes) = (place.disk.durable(), place.disk.changes());
            let kept = durable + random.below(changes - durable + 1);
            let data = *random.one_of(&[Data::All, Data::None, Data::Some]);
            let loss = Loss { order: Order::Journaled, kept, data, seed: random.number() };
            place = Place::of(place.disk.after_loss(loss), kernel);
        }
        place.commit().unwrap_or_else(|error| panic!("{what}: {error}"));
        let seen = |tree: Tree| if outage { without_holes(tree) } else { tree };
        assert_same(&seen(before.clone()), &seen(place.below()), &what);
        assert_same(&seen(before.clone()), &seen(place.shown()), &what);
        if !outage {
            place.disk.assert_same(&bottom);
        }
        assert_eq!(place.disk.names("upper"), [""; 0], "{what}");
        assert!(!place.disk.names("lower").contains(&".wh..wh.work".to_owned()), "{what}");
    }
}

#[test]
fn a_commit_goes_on_after_an_end_at_any_call() {
    for seed in 0..6 {
        try_points(seed, Abilities::EXT4, false, 40, false);
        try_points(seed + 100, Abilities::SHARING, true, 40, false);
        try_points(seed + 200, Abilities::FEW, false, 40, false);
    }
}

#[test]
fn a_commit_goes_on_after_a_power_failure_at_any_call() {
    for seed in 300..304 {
        try_points(seed, Abilities::EXT4, false, 40, true);
        try_points(seed + 100, Abilities::EXT4, true, 40, true);
    }
}

/// A discard ends at any call. Either it has not begun, or the next one goes on with it.
#[test]
fn a_discard_goes_on_after_an_end_at_any_call() {
    for (seed, kernel) in [(600, false), (601, true)] {
        let place = Place::random(seed, Abilities::EXT4, kernel);
        let below = place.below();
        let counted = Place::of(place.disk.copy(), kernel);
        discard(&counted, &()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let calls = counted.counts.total();
        let step = one_of(10);
        let mut begun = 0;
        for point in (Random(seed).number() % step..calls).step_by(step as usize) {
            let what = format!("seed {seed}, call {point} of {calls}");
            let place = Place::of(place.disk.copy(), kernel);
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

/// Ends a commit of chosen changes after a call. The next one goes on with the same choice, also
/// without globs. The layers show what they show after a commit in one go.
#[test]
fn a_commit_of_chosen_changes_goes_on_with_its_choice() {
    for (index, glob) in ["**/[ab]", "**/c", "*/d", "e"].into_iter().enumerate() {
        for kernel in [false, true] {
            let seed = 500 + 10 * index as u64 + u64::from(kernel);
            let mut filter = Filter::default();
            if index % 2 == 0 { filter.exclude(glob.as_ref()) } else { filter.include(glob.as_ref()) }.unwrap();
            try_chosen(seed, kernel, &filter);
        }
    }
}

fn try_chosen(seed: u64, kernel: bool, filter: &Filter) {
    let place = Place::random(seed, Abilities::EXT4, kernel);
    // No end in between matters before the journal is there.
    let prepared = place.mount("upper", &["lower", "bottom"]).unwrap();
    prepared.dereference(&mut || Ok(())).and_then(|()| prepared.make_whole()).unwrap();
    drop(prepared);
    let before = place.shown();
    let whole = Place::of(place.disk.copy(), kernel);
    whole.commit_chosen(filter).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let calls = whole.counts.total();
    assert_same(&before, &whole.shown(), &format!("seed {seed}"));
    let chosen = whole.below();
    let step = one_of(40);
    for point in (Random(seed).number() % step..calls).step_by(step as usize) {
        let what = format!("seed {seed}, {filter:?}, call {point} of {calls}");
        let place = Place::of(place.disk.copy(), kernel);
        place.counts.stop_after(point);
        // The last calls are those of the end of the overlay, which reports nothing.
        let _ = place.commit_chosen(filter);
        place.counts.stop_after(u64::MAX);
        place.commit_chosen(filter).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_same(&chosen, &place.below(), &format!("{what}, the lower layers"));
        assert_same(&before, &place.shown(), &what);
    }
}
