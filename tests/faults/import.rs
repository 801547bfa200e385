//! An import that ends at any call of a layer, in which a call fails, or in which the power fails.
//! A directory that has the name of its digest is whole then. The next import goes on, and leaves
//! nothing else.
//!
//! The archive is an export of random work. The layers are in memory, with the abilities of several
//! filesystems.
//!
//! `cargo test -p test-faults --test import` tries a sample that is the same in every run.
//! `OVERLAYFS_FAULTS=full` tries all points.

#[expect(dead_code, reason = "the other tests of this package use the rest")]
mod memory;
#[path = "../layer_commit/tree.rs"]
mod tree;
#[path = "../layer_commit/work.rs"]
mod work;

use std::ffi::OsStr;
use std::path::Path;

use overlayfs::errno::EIO;
use overlayfs::layer::Layer;
use overlayfs::layer::counted::{Counted, Counts, Fault};
use overlayfs::layer_tools::export::{Holes, write_layer};
use overlayfs::layer_tools::import::{Imported, Wishes, import_layer};
use overlayfs::layer_tools::{Error, Views};
use overlayfs::overlay::{Layers, Overlay, Settings};
use test_common::Random;

use memory::{Abilities, Data, Disk, Loss, Memory, Order};
use tree::{Tree, assert_same, tree};
use work::work;

const INTO: &str = "images";
const UNFINISHED: &str = "unfinished";

/// A lower layer, the archive of changes to it, and the directory for imports.
struct Place {
    disk: Disk,
    counts: Counts,
    archive: Vec<u8>,
    /// The tree that the lower layer shows with the imported one.
    shown: Tree,
}

impl Place {
    fn random(seed: u64, abilities: Abilities) -> Self {
        let disk = Disk::new(abilities, &["lower", "upper", "work", INTO]);
        let open = |name: &str, for_writing| disk.layer(name, for_writing);
        let stack = |lowers: &[&str]| Layers {
            upper: None,
            work: None,
            lowers: lowers.iter().map(|name| open(name, false)).collect(),
        };
        let mut random = Random(seed);
        for (upper, lowers) in [("lower", vec![]), ("upper", vec!["lower"])] {
            let (upper, work_dir) = (Some(open(upper, true)), Some(open("work", true)));
            let layers = Layers { upper, work: work_dir, lowers: stack(&lowers).lowers };
            let overlay =
                Overlay::with_settings(layers, Settings { trusted: true, whole_copies: true, ..Settings::default() });
            let overlay = overlay.unwrap();
            work(&overlay, &mut random, 60);
            overlay.make_whole().unwrap();
        }
        let views = Views::new(stack(&["upper", "lower"]), stack(&["lower"])).unwrap();
        let mut shown = tree(views.above.as_ref().unwrap());
        // An archive has no sockets.
        shown.retain(|_, text| !text.starts_with("Socket"));
        let (archive, _) = write_layer(&views, Vec::new(), Path::new("layer.tar"), Holes::Kept, &()).unwrap();
        Place { disk, counts: Counts::default(), archive, shown }
    }

    /// Returns a copy of the directories, for the same import.
    fn copy(&self) -> Self {
        self.with(self.disk.copy())
    }

    fn with(&self, disk: Disk) -> Self {
        Place { disk, counts: Counts::default(), archive: self.archive.clone(), shown: self.shown.clone() }
    }

    fn import(&self) -> Result<Imported, Error> {
        let into = Counted::new(self.disk.layer(INTO, true), &self.counts);
        let wishes = Wishes { limit: Some(1 << 30), ..Wishes::default() };
        import_layer(&*self.archive, Path::new("layer.tar"), into, wishes, &())
    }

    /// Checks that an imported layer is whole, if there is one. Returns whether there is one.
    fn check(&self, what: &str) -> bool {
        let names = self.disk.names(INTO);
        let Some(name) = names.iter().find(|name| *name != UNFINISHED) else { return false };
        let into: Memory = self.disk.layer(INTO, false);
        let dir = into.open_dir(&into.root().unwrap(), OsStr::new(name)).unwrap();
        let imported = into.below(&dir, Path::new(name), false).unwrap();
        let lowers = vec![imported, self.disk.layer("lower", false)];
        let layers = Layers { upper: None, work: None, lowers };
        let overlay = Overlay::with_settings(layers, Settings { trusted: true, ..Settings::default() }).unwrap();
        assert_same(&self.shown, &tree(&overlay), what);
        true
    }

    /// Goes on with the import, and checks that it is all that is left.
    fn check_end(&self, what: &str) {
        self.import().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(self.check(what), "{what}: no layer is there");
        assert_eq!(self.disk.names(INTO).len(), 1, "{what}");
    }
}

/// Tries one of so many points.
fn try_points(seed: u64, abilities: Abilities, sampled: u64) {
    let place = Place::random(seed, abilities);
    let counted = place.copy();
    counted.import().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let calls = counted.counts.total();
    counted.check_end(&format!("seed {seed}, once more"));
    let is_full = std::env::var_os("OVERLAYFS_FAULTS").is_some_and(|value| value == "full");
    let step = if is_full { 1 } else { sampled };
    let mut random = Random(seed);
    let mut whole = 0;
    for point in (random.number() % step..calls).step_by(step as usize) {
        for fault in [Fault::Stop, Fault::Errno(EIO), Fault::ShortWrite] {
            let what = format!("seed {seed}, {fault:?} at call {point} of {calls}");
            let place = place.copy();
            place.counts.fault_after(point, fault);
            let imported = place.import();
            place.counts.stop_after(u64::MAX);
            assert!(imported.is_err() || place.check(&what), "{what}: no layer is there");
            whole += u64::from(place.check(&what));
            if fault == Fault::Stop {
                let (durable, changes) = (place.disk.durable(), place.disk.changes());
                let kept = durable + random.below(changes - durable + 1);
                let data = *random.one_of(&[Data::All, Data::None, Data::Some]);
                let loss = Loss { order: Order::Journaled, kept, data, seed: random.number() };
                let after = place.with(place.disk.after_loss(loss));
                after.check(&format!("{what}, after a power failure"));
                after.check_end(&format!("{what}, after a power failure and once more"));
            }
            place.check_end(&format!("{what}, once more"));
        }
    }
    assert!(whole > 0, "seed {seed}: no import was whole after a fault");
}

#[test]
fn an_import_goes_on_after_an_end_at_any_call() {
    for (index, abilities) in [Abilities::EXT4, Abilities::SHARING].into_iter().enumerate() {
        for seed in 0..3 {
            try_points(10 * index as u64 + seed, abilities, 20);
        }
    }
}
