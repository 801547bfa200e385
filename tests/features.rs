//! The features that the record of an upper layer names: each is named before its first use, at
//! every crash. Layers of earlier versions get names at a mount. Unknown features are refused.
//!
//! Needs root, for devices and owners.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use overlayfs::errno::EIO;
use overlayfs::format::{Wanted, fnv1a};
use overlayfs::fsck::{Checker, Damage};
use overlayfs::layer::counted::{Counted, Counts, Fault};
use overlayfs::layer::{Kind, Layer, OsLayer, Owner, RenameMode};
use overlayfs::mount::{mount, open_layers};
use overlayfs::options::Options;
use overlayfs::overlay::{Feature, Layers, Node, Overlay};
use test_common::{Setup, put};

const OWN: Owner = Owner { uid: 0, gid: 0 };
const WORK: &str = ".wh..wh.work";

/// Makes lower layers with an object for each feature.
fn setup() -> Setup {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    put::file(&lower, "dir/file", "file");
    put::file(&lower, "big", vec![b'b'; 3 << 20]);
    put::file(&lower, "hard", "hard");
    put::link(&lower, "hard", "hard2");
    put::dir(&lower, "fixed");
    setup.dir("upper");
    setup
}

fn options(setup: &Setup) -> Options {
    Options { lowers: vec![setup.path("lower")], upper: Some(setup.path("upper")), ..Options::default() }
}

/// Returns the features that the record in a work directory names.
fn recorded(work: &Path) -> Vec<String> {
    let record = fs::read(work.join("record")).unwrap_or_default();
    let kinds = ["incompatible ", "read-only ", "compatible "];
    let lines = String::from_utf8_lossy(&record).into_owned();
    lines.lines().filter(|line| kinds.iter().any(|kind| line.starts_with(kind))).map(str::to_owned).collect()
}

fn write_record(work: &Path, lines: &str) {
    let body = format!("overlayfs upper layer 1\n{lines}");
    put::file(work, "record", format!("{body}end {:032x}\n", fnv1a(body.as_bytes())));
}

fn find<L: Layer>(overlay: &Overlay<L>, path: &str) -> Arc<Node<L>> {
    try_find(overlay, path).unwrap()
}

fn try_find<L: Layer>(overlay: &Overlay<L>, path: &str) -> overlayfs::layer::Result<Arc<Node<L>>> {
    path.split('/').try_fold(overlay.root().clone(), |dir, name| overlay.lookup(&dir, OsStr::new(name)))
}

/// Uses a feature for the first time in a layer.
fn use_it<L: Layer>(overlay: &Overlay<L>, feature: Feature) -> overlayfs::layer::Result<()> {
    let root = overlay.root().clone();
    let write = |path: &str| overlay.write_at(&overlay.open(&try_find(overlay, path)?), b"x", 0).map(drop);
    match feature {
        Feature::Redirects => overlay.rename(&root, OsStr::new("dir"), &root, OsStr::new("moved"), RenameMode::Replace),
        Feature::PartialCopies => write("big"),
        Feature::Links => write("hard"),
        Feature::Devices => overlay.create_node(&root, OsStr::new("zero"), Kind::CharDev, 0o600, 0, OWN).map(drop),
        Feature::FixedMarks => overlay.set_flags(&try_find(overlay, "fixed")?, 0x20),
        other => panic!("{other}"),
    }
}

const USED: [Feature; 5] =
    [Feature::Redirects, Feature::PartialCopies, Feature::Links, Feature::Devices, Feature::FixedMarks];

type Counting = Counted<OsLayer>;

fn counting(setup: &Setup, counts: &Counts) -> Overlay<Counting> {
    let layer = |path: PathBuf, writing| Counted::new(OsLayer::open(&path, writing).unwrap(), counts);
    let (upper, lower) = (layer(setup.path("upper"), true), layer(setup.path("lower"), false));
    Overlay::new(Layers { upper: Some(upper), work: None, lowers: vec![lower] }).unwrap()
}

/// Returns the features that the layer has and its record does not name.
fn unrecorded(setup: &Setup) -> Option<String> {
    let checker = Checker::new(open_layers(&options(setup), false).unwrap()).unwrap();
    let found = checker.check().unwrap();
    found.iter().find_map(|finding| match finding.damage {
        Damage::Unrecorded(features) => Some(features.to_string()),
        _ => None,
    })
}

/// The daemon is killed at each backing call of the first use of each feature, or the call fails.
#[test]
fn a_feature_is_recorded_before_its_first_use() {
    for feature in USED {
        for fault in [Fault::Stop, Fault::Errno(EIO)] {
            let mut was_named = false;
            for calls in 0.. {
                let (setup, counts) = (setup(), Counts::default());
                let overlay = counting(&setup, &counts);
                counts.fault_after(calls, fault);
                let used = use_it(&overlay, feature);
                let struck = counts.struck();
                if fault != Fault::Stop {
                    counts.fault_after(u64::MAX, Fault::Stop);
                }
                // A stopped layer takes no call of the drop.
                drop(overlay);
                assert_eq!(unrecorded(&setup), None, "{feature}: {fault:?} after {calls} calls");
                was_named |=
                    recorded(&setup.path("upper").join(WORK)).iter().any(|line| line.ends_with(feature.name()));
                if struck.is_none() {
                    used.unwrap();
                    break;
                }
            }
            assert!(was_named || fault != Fault::Stop, "{feature}");
        }
    }
}

/// A second use of a feature, in this mount and in the next, costs no call for the record.
#[test]
fn a_recorded_feature_costs_nothing() {
    let (setup, counts) = (setup(), Counts::default());
    put::file(&setup.path("lower"), "dir2/file", "file");
    let rename = |overlay: &Overlay<Counting>, name: &str| {
        let root = overlay.root().clone();
        let new = format!("{name}.moved");
        overlay.lookup(&root, OsStr::new(name)).unwrap();
        counts.take();
        overlay.rename(&root, OsStr::new(name), &root, OsStr::new(&new), RenameMode::Replace).unwrap();
        counts.take().total()
    };
    put::file(&setup.path("lower"), "dir3/file", "file");
    let overlay = counting(&setup, &counts);
    find(&overlay, "dir/file");
    find(&overlay, "dir2/file");
    let (first, second) = (rename(&overlay, "dir"), rename(&overlay, "dir2"));
    assert!(second < first, "{first} calls, then {second}");
    drop(overlay);
    let inode = fs::metadata(setup.path("upper").join(WORK).join("record")).unwrap();
    let overlay = counting(&setup, &counts);
    find(&overlay, "dir3/file");
    let third = rename(&overlay, "dir3");
    assert!(third < first, "{first} calls, then {third} in the next mount");
    drop(overlay);
    let after = fs::metadata(setup.path("upper").join(WORK).join("record")).unwrap();
    assert_eq!(inode.ino(), after.ino());
}

/// The features of the work directory and of partial copies leave the record at the mount after the
/// last of them.
#[test]
fn features_that_are_gone_leave_the_record() {
    let setup = setup();
    let work = setup.path("upper").join(WORK);
    let overlay = mount(&options(&setup)).unwrap();
    for feature in USED {
        use_it(&overlay, feature).unwrap();
    }
    let all = [
        "incompatible redirects",
        "incompatible partial-copies",
        "incompatible links",
        "incompatible devices",
        "read-only fixed-marks",
        "compatible numbers",
    ];
    assert_eq!(recorded(&work), all);
    drop(overlay);
    let without = |gone: &[usize]| -> Vec<&str> {
        all.iter().enumerate().filter(|(index, _)| !gone.contains(index)).map(|(_, line)| *line).collect()
    };
    assert_eq!(recorded(&work), all, "the end of a mount changes nothing");
    let overlay = mount(&options(&setup)).unwrap();
    assert_eq!(recorded(&work), without(&[1]));
    overlay.unlink(overlay.root(), OsStr::new("hard")).unwrap();
    overlay.unlink(overlay.root(), OsStr::new("hard2")).unwrap();
    drop(overlay);
    drop(mount(&options(&setup)).unwrap());
    assert_eq!(recorded(&work), without(&[1, 2]));
    assert_eq!(unrecorded(&setup), None);
}

/// A layer of a version that recorded no features gets their names at the next mount.
#[test]
fn an_older_layer_is_upgraded_at_mount() {
    for has_record in [false, true] {
        let setup = setup();
        let work = setup.path("upper").join(WORK);
        let overlay = mount(&options(&setup)).unwrap();
        for feature in USED.into_iter().filter(|feature| *feature != Feature::PartialCopies) {
            use_it(&overlay, feature).unwrap();
        }
        drop(overlay);
        put::file(&setup.path("upper"), ".wh..wh.parts", "");
        let named = fs::read_to_string(work.join("record")).unwrap();
        let lowers: String =
            named.lines().filter(|line| line.starts_with("lower ")).map(|line| format!("{line}\n")).collect();
        match has_record {
            true => write_record(&work, &lowers),
            false => fs::remove_file(work.join("record")).unwrap(),
        }
        assert_eq!(unrecorded(&setup), None, "an older record is no damage");
        let _mounted = mount(&options(&setup)).unwrap();
        let expected = [
            "incompatible redirects",
            "incompatible partial-copies",
            "incompatible links",
            "incompatible devices",
            "read-only fixed-marks",
            "compatible numbers",
        ];
        assert_eq!(recorded(&work), expected, "record: {has_record}");
        assert!(fs::read_to_string(work.join("record")).unwrap().contains("\nfeatures\n"));
    }
}

/// In the kernel's format the record is in the work directory, and names no marks of the kernel.
#[test]
fn the_marks_of_the_kernel_need_no_record() {
    let setup = setup();
    let options = Options { work: Some(setup.dir("work")), format: Some(Wanted::Kernel), ..options(&setup) };
    let overlay = mount(&options).unwrap();
    for feature in [Feature::Redirects, Feature::Links] {
        use_it(&overlay, feature).unwrap();
    }
    drop(overlay);
    assert_eq!(recorded(&setup.path("work")), ["incompatible links", "compatible numbers"]);
    fs::remove_file(setup.path("work/record")).unwrap();
    drop(mount(&options).unwrap());
    assert_eq!(recorded(&setup.path("work")), ["incompatible links", "compatible numbers"]);
}

/// Mount and fsck name the feature that they do not know. A read-only one refuses only writers.
#[test]
fn unknown_features_are_refused_by_their_names() {
    let setup = setup();
    let work = setup.path("upper").join(WORK);
    drop(mount(&options(&setup)).unwrap());
    let reading = Options { read_only: true, ..options(&setup) };
    let below = Options { lowers: vec![setup.path("upper"), setup.path("lower")], upper: None, ..Options::default() };
    let said = |options: &Options| mount(options).err().map(|error| error.to_string()).unwrap_or_default();
    let fsck = || {
        let program = Command::new(env!("CARGO_BIN_EXE_overlayfs-fsck"))
            .args([OsStr::new("--lower"), setup.path("lower").as_ref()])
            .args([OsStr::new("--upper"), setup.path("upper").as_ref()])
            .output()
            .unwrap();
        (program.status.code(), String::from_utf8(program.stderr).unwrap())
    };

    write_record(&work, "features\nincompatible folding\n");
    for options in [&options(&setup), &reading, &below] {
        assert!(said(options).contains("needs the feature folding"), "{}", said(options));
    }
    assert!(said(&below).contains(&format!("the lower layer {}", setup.path("upper").display())), "{}", said(&below));
    let (code, text) = fsck();
    assert!(code == Some(8) && text.contains("needs the feature folding"), "{code:?}: {text}");

    write_record(&work, "features\nread-only colours\ncompatible sounds\n");
    assert!(said(&options(&setup)).contains("without its feature colours"), "{}", said(&options(&setup)));
    assert_eq!((said(&reading), said(&below)), (String::new(), String::new()));
    let (code, text) = fsck();
    assert!(code == Some(8) && text.contains("feature colours"), "{code:?}: {text}");

    write_record(&work, "features\ncompatible sounds\n");
    drop(mount(&options(&setup)).unwrap());
    assert!(recorded(&work).contains(&"compatible sounds".to_owned()), "a mount keeps the line");

    // With a work directory beside the layer, a read-only mount looks there.
    let outside = setup.dir("work");
    write_record(&outside, "features\nincompatible folding\n");
    assert!(said(&Options { work: Some(outside), ..reading }).contains("needs the feature folding"));
}

/// A commit that is not finished keeps mounts away, from both layers.
#[test]
fn an_unfinished_commit_is_refused() {
    let setup = setup();
    drop(mount(&options(&setup)).unwrap());
    write_record(&setup.path("upper").join(WORK), "features\nincompatible commit\n");
    let refused = mount(&options(&setup)).err().unwrap().to_string();
    assert!(
        refused.starts_with("a commit of the upper layer was interrupted; overlayfs-layer commit --resume"),
        "{refused}"
    );
    let below = Options { lowers: vec![setup.path("upper")], upper: Some(setup.dir("other")), ..Options::default() };
    let refused = mount(&below).err().unwrap().to_string();
    assert!(refused.starts_with("a commit to the lower layer"), "{refused}");
}
