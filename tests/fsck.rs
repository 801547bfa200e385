//! `overlayfs-fsck` and its library. Each test makes a kind of damage by hand, and checks that it
//! is found. It is repaired if the repair loses nothing.
//!
//! Needs root, for devices and attributes in the namespace `trusted`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use overlayfs::errno::EBUSY;
use overlayfs::format::{Wanted, fnv1a};
use overlayfs::fsck::{Checker, Damage, Finding};
use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::layer::{Layer, OsLayer, Owner, RenameMode};
use overlayfs::mount::{mount, open_layers};
use overlayfs::options::Options;
use overlayfs::overlay::{Feature, Features, Layers, Node, Overlay, VOLATILE_MARK};
use rustix::fs::{FileType, XattrFlags};
use test_common::{Detail, LowerGuard, Setup, Snapshot, partial_file, put};

const OWN: Owner = Owner { uid: 0, gid: 0 };
const WORK: &str = ".wh..wh.work";

/// Returns a name of the maximal length.
fn long() -> String {
    "l".repeat(255)
}

/// Makes lower layers, and an upper layer after the end of an overlay.
fn setup() -> Setup {
    // The first layer that is opened for writing sets the umask. The objects of one test must not
    // depend on another test.
    rustix::process::umask(rustix::fs::Mode::empty());
    let setup = Setup::new();
    let (lower, bottom) = (setup.dir("lower"), setup.dir("bottom"));
    for file in ["file", "file2", "d/x", "d/y", "e/z", "plain/low", "hard", &long()] {
        put::file(&lower, file, file);
    }
    put::link(&lower, "hard", "hard2");
    put::file(&bottom, "d/bottom", "bottom");
    put::file(&bottom, "big", vec![b'b'; 2 << 20]);
    setup.dir("upper");
    let overlay = mount(&options(&setup)).unwrap();
    let root = overlay.root();
    for name in ["file", "hard"] {
        let file = overlay.open(&overlay.lookup(root, OsStr::new(name)).unwrap());
        overlay.write_at(&file, b"UP", 0).unwrap();
    }
    let d = overlay.lookup(root, OsStr::new("d")).unwrap();
    overlay.unlink(&d, OsStr::new("x")).unwrap();
    overlay.rename(root, OsStr::new("e"), root, OsStr::new("moved"), RenameMode::Replace).unwrap();
    overlay.create_dir(root, OsStr::new("own"), 0o755, OWN).unwrap();
    drop((d, overlay));
    record_all(&setup.path("upper").join(WORK));
    setup
}

/// Makes the record name every feature, since the tests make marks by hand.
fn record_all(work: &Path) {
    let record = fs::read_to_string(work.join("record")).unwrap();
    let lowers = record.lines().filter(|line| line.starts_with("lower ")).map(|line| format!("{line}\n"));
    let named = ["redirects", "partial-copies", "links", "devices"].map(|name| format!("incompatible {name}\n"));
    let others = ["features\n", "read-only fixed-marks\n", "compatible numbers\n"].map(str::to_owned);
    let lines: String = named.into_iter().chain(others).chain(lowers).collect();
    let body = format!("overlayfs upper layer 1\n{lines}");
    put::file(work, "record", format!("{body}end {:032x}\n", fnv1a(body.as_bytes())));
}

fn options(setup: &Setup) -> Options {
    let lowers = ["lower", "bottom"].map(|name| setup.path(name)).into();
    Options { lowers, upper: Some(setup.path("upper")), ..Options::default() }
}

fn guard(setup: &Setup) -> LowerGuard {
    LowerGuard::new(["lower", "bottom"].map(|name| setup.path(name)))
}

fn checker(options: &Options, for_writing: bool) -> Checker<OsLayer> {
    Checker::new(open_layers(options, for_writing).unwrap()).unwrap()
}

fn said<L: Layer>(findings: &[Finding<L>]) -> Vec<(String, Damage, bool)> {
    let path = |finding: &Finding<L>| finding.path.to_str().unwrap().to_owned();
    findings.iter().map(|finding| (path(finding), finding.damage.clone(), finding.repair.is_some())).collect()
}

/// Returns the findings of a check without repair. Panics if it changes the upper layer.
fn look(options: &Options) -> Vec<(String, Damage, bool)> {
    let upper = options.upper.as_ref().unwrap();
    let before = Snapshot::take(upper, Detail::Everything);
    let found = said(&checker(options, false).check().unwrap());
    Snapshot::take(upper, Detail::Everything).assert_same(&before, "the upper layer that was looked at");
    found
}

fn repair<L: Layer>(checker: &Checker<L>) -> overlayfs::layer::Result<()> {
    let findings = checker.check()?;
    findings.iter().filter_map(|finding| finding.repair.as_ref()).try_for_each(|repair| checker.repair(repair))
}

/// Returns all that a mount shows, with the times of last change if `times` is set. It mounts a
/// copy of the upper layer, since a mount cleans up.
fn tree(setup: &Setup, times: bool) -> BTreeMap<PathBuf, String> {
    let copy = Setup::new();
    let upper = copy.path("upper");
    let copied = Command::new("cp").arg("-a").arg(setup.path("upper")).arg(&upper).status().unwrap();
    assert!(copied.success());
    let overlay = mount(&Options { upper: Some(upper), reuse_volatile: true, ..options(setup) }).unwrap();
    let mut all = BTreeMap::new();
    let mut nodes = vec![(PathBuf::new(), overlay.root().clone())];
    while let Some((path, node)) = nodes.pop() {
        let stat = overlay.stat(&node).unwrap();
        let mut said = format!("{:?} {:o} {}:{}", stat.kind, stat.mode, stat.uid, stat.gid);
        if times {
            said += &format!(" {:?}", stat.mtime);
        }
        match stat.kind {
            overlayfs::layer::Kind::File => {
                let mut bytes = vec![0; stat.size as usize];
                assert_eq!(overlay.read_at(&overlay.open(&node), &mut bytes, 0), Ok(bytes.len()));
                said += &format!(" {} {:x}", stat.size, fnv1a(&bytes));
            }
            overlayfs::layer::Kind::Dir => nodes.extend(children(&overlay, &node, &path)),
            _ => {}
        }
        all.insert(path, said);
    }
    all
}

type NodeRef = std::sync::Arc<Node<OsLayer>>;

fn children(overlay: &Overlay<OsLayer>, node: &NodeRef, path: &Path) -> Vec<(PathBuf, NodeRef)> {
    let mut names = Vec::new();
    let mut each = |entry: overlayfs::overlay::DirEntry<'_>| {
        names.push(entry.name.to_owned());
        true
    };
    overlay.list(&overlay.open(node), 0, &mut each).unwrap();
    names.iter().map(|name| (path.join(name), overlay.lookup(node, name).unwrap())).collect()
}

/// Makes damage, checks for it, and repairs it. Repeats the repair with a stop after each of its
/// calls.
fn damage(make: impl Fn(&Path), path: &str, damage: Damage, repairable: bool) {
    let expected = vec![(path.to_owned(), damage.clone(), repairable)];
    let damaged = || {
        let setup = setup();
        make(&setup.path("upper"));
        setup
    };
    let setup = damaged();
    let guard = guard(&setup);
    let options = options(&setup);
    assert_eq!(look(&options), expected);
    if !repairable {
        let before = Snapshot::take(&setup.path("upper"), Detail::Everything);
        repair(&checker(&options, true)).unwrap();
        Snapshot::take(&setup.path("upper"), Detail::Everything).assert_same(&before, "what cannot be repaired");
        return;
    }
    let (shown, shown_at) = (tree(&setup, false), tree(&setup, true));
    repair(&checker(&options, true)).unwrap();
    assert_eq!(look(&options), [], "after the repair of {damage:?}");
    assert_eq!(tree(&setup, true), shown_at, "the repair of {damage:?} changed the merged tree");
    guard.check();

    let mut cut = 0;
    for calls in 0.. {
        let setup = damaged();
        let counts = Counts::default();
        let done = {
            let checker = counted(&setup, &counts);
            let findings = checker.check().unwrap();
            counts.stop_after(calls);
            findings.iter().try_for_each(|finding| checker.repair(finding.repair.as_ref().unwrap())).is_ok()
        };
        assert_eq!(tree(&setup, false), shown, "the repair of {damage:?}, {calls} calls, changed the merged tree");
        let options = self::options(&setup);
        let left = look(&options);
        let worse = |found: &(String, Damage, bool)| !found.2 || found.1.is_loss() && found.1 != damage;
        assert!(!left.iter().any(worse), "the repair of {damage:?}, {calls} calls, left {left:?}");
        repair(&checker(&options, true)).unwrap();
        assert_eq!(look(&options), [], "after the second repair of {damage:?}, {calls} calls");
        if done {
            break;
        }
        cut += 1;
    }
    assert!(cut > 0, "a repair makes a call");
}

fn counted(setup: &Setup, counts: &Counts) -> Checker<Counted<OsLayer>> {
    let Layers { upper, work, lowers } = open_layers(&options(setup), true).unwrap();
    let count = |layer| Counted::new(layer, counts);
    let lowers = lowers.into_iter().map(count).collect();
    Checker::new(Layers { upper: upper.map(count), work: work.map(count), lowers }).unwrap()
}

#[test]
fn an_upper_layer_after_an_unmount_has_no_damage() {
    assert_eq!(look(&options(&setup())), []);
    // Before the first mount even the work directory is missing.
    let setup = Setup::new();
    for name in ["lower", "bottom", "upper"] {
        setup.dir(name);
    }
    assert_eq!(look(&options(&setup)), []);
}

#[test]
fn whiteouts_that_hide_nothing() {
    damage(|upper| drop(put::whiteout(upper, "", "nothing")), ".wh.nothing", Damage::HidesNothing, true);
    damage(|upper| drop(put::whiteout(upper, "d", "nothing")), "d/.wh.nothing", Damage::HidesNothing, true);
    damage(|upper| drop(put::whiteout(upper, "moved", "x")), "moved/.wh.x", Damage::HidesNothing, true);
    damage(|upper| drop(put::whiteout(upper, "own", "x")), "own/.wh.x", Damage::HidesNothing, true);
}

#[test]
fn whiteouts_beside_objects() {
    damage(|upper| drop(put::whiteout(upper, "", "file")), ".wh.file", Damage::BesideObject, true);
    damage(|upper| drop(put::whiteout(upper, "", "moved")), ".wh.moved", Damage::BesideObject, true);
    let plain = |upper: &Path| {
        put::file(upper, "plain/own", "own");
        put::whiteout(upper, "", "plain");
    };
    damage(plain, ".wh.plain", Damage::BesideObject, true);
}

#[test]
fn whiteouts_of_long_names() {
    let marker = ".wh..wh.long.0123";
    damage(|upper| drop(put::file(upper, marker, "")), marker, Damage::NamesNothing, true);
    damage(|upper| drop(put::file(upper, marker, "a/b")), marker, Damage::NamesNothing, true);
    damage(|upper| drop(put::file(upper, marker, long())), marker, Damage::Misnamed, true);
    damage(|upper| drop(put::file(upper, marker, "file2")), marker, Damage::Misnamed, true);
    damage(|upper| drop(put::file(upper, marker, "nothing")), marker, Damage::HidesNothing, true);
}

#[test]
fn reserved_names_of_other_kinds() {
    damage(|upper| drop(put::dir(upper, ".wh.file2")), ".wh.file2", Damage::WrongKind, false);
    damage(|upper| drop(put::file(upper, ".wh..wh.foo", "")), ".wh..wh.foo", Damage::Meaningless, false);
    damage(|upper| drop(put::dir(upper, "own/.wh..wh.work")), "own/.wh..wh.work", Damage::Meaningless, false);
    damage(|upper| drop(put::dir(upper, "own/.wh..wh..opq")), "own/.wh..wh..opq", Damage::WrongKind, false);
    damage(|upper| drop(put::dir(upper, "own/.wh..wh.fixed")), "own/.wh..wh.fixed", Damage::WrongKind, false);
    damage(|upper| drop(put::file(upper, "own/.wh..wh.fixed", "x")), "own/.wh..wh.fixed", Damage::Meaningless, false);
    damage(|upper| drop(put::dir(upper, ".wh..wh.long.1")), ".wh..wh.long.1", Damage::WrongKind, false);
    let redirect = |upper: &Path| {
        put::opaque(upper, "own");
        put::dir(upper, "own/.wh..wh.redirect");
    };
    damage(redirect, "own/.wh..wh.redirect", Damage::WrongKind, false);
}

#[test]
fn symlinks_are_not_followed() {
    let setup = setup();
    let (upper, guard) = (setup.path("upper"), guard(&setup));
    for name in [".wh.file2", "moved/.wh..wh.redirect", "own/.wh..wh.part.x", "own/.wh..wh.map.x", ".wh..wh.parts"] {
        let _ = fs::remove_file(upper.join(name));
        put::symlink(&upper, name, setup.path("lower/file2").to_str().unwrap());
    }
    put::symlink(&upper, "link", setup.path("lower").to_str().unwrap());
    put::symlink(&upper, &format!("{WORK}/tmp.1"), setup.path("lower").to_str().unwrap());
    let wrong = |path: &str| (path.to_owned(), Damage::WrongKind, false);
    let mut found = look(&options(&setup));
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        wrong(".wh..wh.parts"),
        wrong(".wh.file2"),
        wrong("moved/.wh..wh.redirect"),
        ("moved/.wh..wh.redirect".to_owned(), Damage::NoPath, false),
        wrong("own/.wh..wh.map.x"),
        wrong("own/.wh..wh.part.x"),
        ("tmp.1".to_owned(), Damage::Leftover, true),
    ];
    assert_eq!(found, expected);
    repair(&checker(&options(&setup), true)).unwrap();
    assert!(!test_common::exists(&upper.join(WORK).join("tmp.1")));
    guard.check();
}

#[test]
fn redirects() {
    let redirect = "moved/.wh..wh.redirect";
    for bad in ["", "e", "/../e", "/e/"] {
        damage(|upper| drop(put::file(upper, redirect, bad)), redirect, Damage::NoPath, false);
    }
    for gone in ["gone", "file", "d/y/z"] {
        let make = |upper: &Path| drop(put::file(upper, redirect, format!("/{gone}")));
        damage(make, redirect, Damage::Dangling(gone.into()), false);
    }
    damage(|upper| drop(put::opaque(upper, "moved")), redirect, Damage::RedirectInOpaque, true);
}

#[test]
fn lower_directories_that_are_seen_twice() {
    let unhide = |upper: &Path| fs::remove_file(upper.join(".wh.e")).unwrap();
    damage(unhide, "moved", Damage::SeenTwice("e".into()), false);
    let again = |upper: &Path| drop(put::file(upper, "again/.wh..wh.redirect", "/d"));
    damage(again, "again", Damage::SeenTwice("d".into()), false);
}

#[test]
fn with_other_lower_layers_nothing_is_useless() {
    let setup = setup();
    let upper = setup.path("upper");
    put::whiteout(&upper, "", "nothing");
    put::file(&upper, "moved/.wh..wh.redirect", "/gone");
    let found = look(&options(&setup));
    assert!(found.contains(&(".wh.nothing".to_owned(), Damage::HidesNothing, false)), "{found:?}");
}

#[test]
fn without_one_lower_layer_nothing_that_depends_on_it_is_repaired() {
    let setup = setup();
    let (upper, complete) = (setup.path("upper"), options(&setup));
    put::dir(&setup.path("bottom"), "gone");
    put::file(&setup.path("bottom"), "also/gone", "");
    let overlay = mount(&complete).unwrap();
    let root = overlay.root();
    overlay.remove_dir(root, OsStr::new("gone")).unwrap();
    overlay.unlink(root, OsStr::new("big")).unwrap();
    drop(overlay);
    // A whiteout beside a directory marks it opaque. Without the mark this directory would merge
    // with the one of the missing layer.
    put::dir(&upper, "also");
    put::whiteout(&upper, "", "also");
    put::file(&upper.join(WORK), "tmp.1", "");
    let shown = tree(&setup, false);

    let lower = setup.path("lower");
    let forgotten = Options { lowers: vec![lower.clone()], ..complete.clone() };
    let checker = checker(&forgotten, true);
    assert_eq!(checker.other_layers().unwrap(), format!("{} is missing", setup.path("bottom").display()));
    let found = said(&checker.check().unwrap());
    for name in [".wh.gone", ".wh.big"] {
        assert!(found.contains(&(name.to_owned(), Damage::HidesNothing, false)), "{found:?}");
    }
    drop(checker);
    let program = Command::new(env!("CARGO_BIN_EXE_overlayfs-fsck"))
        .args([OsStr::new("--lower"), lower.as_ref(), OsStr::new("--upper"), upper.as_ref(), OsStr::new("-y")])
        .output()
        .unwrap();
    let text = String::from_utf8(program.stdout).unwrap();
    assert!(text.contains("was mounted last on other lower layers: "), "{text}");
    assert_eq!(program.status.code(), Some(5), "{text}");
    assert_eq!(tree(&setup, false), shown);
    assert!(!upper.join(WORK).join("tmp.1").exists(), "what depends on nothing is repaired");

    // A mount records the layers again.
    fs::remove_dir(setup.path("upper/also")).unwrap();
    fs::remove_file(setup.path("upper/.wh.also")).unwrap();
    setup.dir("newest");
    let newer = Options { lowers: vec![setup.path("newest"), lower, setup.path("bottom")], ..complete.clone() };
    assert_eq!(look(&complete), []);
    drop(mount(&newer).unwrap());
    assert_eq!(self::checker(&newer, false).other_layers(), None);
    assert_eq!(
        self::checker(&complete, false).other_layers().unwrap(),
        format!("{} is missing", setup.path("newest").display())
    );
}

#[test]
fn an_unknown_feature_is_refused_by_its_name() {
    let setup = setup();
    let lines = "overlayfs upper layer 1\nincompatible folding\n";
    let record = format!("{lines}end {:032x}\n", fnv1a(lines.as_bytes()));
    put::file(&setup.path("upper").join(WORK), "record", &record);
    let before = Snapshot::take(&setup.path("upper"), Detail::Everything);
    let refused = mount(&options(&setup)).err().unwrap().to_string();
    assert!(
        refused.starts_with("another version of overlayfs wrote the upper layer, which needs the feature folding"),
        "{refused}"
    );
    let refused = Checker::new(open_layers(&options(&setup), false).unwrap()).err().unwrap().to_string();
    assert!(refused.ends_with("which needs the feature folding"), "{refused}");
    Snapshot::take(&setup.path("upper"), Detail::Everything).assert_same(&before, "the refused upper layer");
}

/// A mark that was made by hand is in no record, for versions that do not know it.
#[test]
fn a_feature_that_is_not_recorded_is_recorded() {
    let setup = setup();
    let record = setup.path("upper").join(WORK).join("record");
    let text = fs::read_to_string(&record).unwrap();
    let (body, _) = text.split_once("end ").unwrap();
    let without = body.replace("incompatible redirects\n", "");
    put::file(record.parent().unwrap(), "record", format!("{without}end {:032x}\n", fnv1a(without.as_bytes())));
    let features = Features::default().with(Feature::Redirects);
    assert_eq!(look(&options(&setup)), [("record".to_owned(), Damage::Unrecorded(features), true)]);
    let checker = checker(&options(&setup), true);
    repair(&checker).unwrap();
    assert!(checker.check().unwrap().is_empty(), "the same checker sees the repair");
    assert!(fs::read_to_string(&record).unwrap().contains("incompatible redirects\n"));
}

const PART: &str = ".wh..wh.part.big";
const MAP: &str = ".wh..wh.map.big";
const MARK: &str = ".wh..wh.parts";

/// Makes a partial copy of `name` of this size, without any copied chunk.
fn part(upper: &Path, name: &str, size: u64) {
    let path = put::file(upper, name, "");
    fs::File::options().write(true).open(path).unwrap().set_len(size).unwrap();
}

#[test]
fn partial_copies() {
    damage(|upper| part(upper, ".wh..wh.part.file", 10), ".wh..wh.part.file", Damage::Outdone, true);
    let deleted = |upper: &Path| {
        part(upper, PART, 2 << 20);
        put::file(upper, MAP, "map");
        put::whiteout(upper, "", "big");
    };
    damage(deleted, PART, Damage::Outdone, true);
    let completed = |upper: &Path| {
        part(upper, PART, 2 << 20);
        put::link(upper, PART, "whole");
    };
    damage(completed, PART, Damage::Outdone, true);
    damage(|upper| drop(put::file(upper, MAP, "map")), MAP, Damage::OrphanMap, true);
    let no_source = |upper: &Path| {
        part(upper, "own/.wh..wh.part.x", 2 << 20);
        put::file(upper, MARK, "");
    };
    damage(no_source, "own/.wh..wh.part.x", Damage::NoSource, false);
    damage(|upper| drop(put::file(upper, MARK, "")), MARK, Damage::MarkWithoutParts, true);
    damage(|upper| part(upper, PART, 2 << 20), MARK, Damage::PartsWithoutMark, true);
    for map in [vec![0; 3], vec![0; 36], vec![0x0f; 36]] {
        let useless = |upper: &Path| {
            part(upper, PART, 2 << 20);
            put::file(upper, MAP, &map);
            put::file(upper, MARK, "");
        };
        damage(useless, MAP, Damage::MapMeansNothing, true);
    }
}

#[test]
fn a_partial_copy_that_is_good_is_no_damage() {
    let setup = setup();
    let upper = setup.path("upper");
    let overlay = mount(&options(&setup)).unwrap();
    let file = overlay.open(&overlay.lookup(overlay.root(), OsStr::new("big")).unwrap());
    overlay.write_at(&file, b"UP", 70_000).unwrap();
    // As after a kill of the daemon.
    let killed = Setup::new();
    let copied = Command::new("cp").arg("-a").arg(&upper).arg(killed.path("upper")).status().unwrap();
    assert!(copied.success());
    let left = killed.path("upper");
    let part = partial_file(&left, "part", "big");
    assert!(part.exists() && partial_file(&left, "map", "big").exists(), "the file was copied whole");
    // A newer layer on top has another file.
    put::file(&setup.dir("newer"), "big", vec![b'b'; 2 << 20]);
    let lowers = ["newer", "lower", "bottom"].map(|name| setup.path(name)).into();
    let found = look(&Options { upper: Some(left.clone()), lowers, ..options(&setup) });
    let name = part.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(found.contains(&(name, Damage::OtherSource, false)), "{found:?}");
    let found = look(&Options { upper: Some(left), ..options(&setup) });
    assert!(!found.iter().any(|(_, damage, _)| damage.is_loss()), "{found:?}");
    // `left` is a copy, so its record of inode numbers names other files and another directory.
    assert_eq!(found, [("numbers".to_owned(), Damage::BadNumbers, true)]);
}

#[test]
fn leftovers_in_the_work_directory() {
    damage(|upper| drop(put::file(upper, &format!("{WORK}/tmp.5"), "x")), "tmp.5", Damage::Leftover, true);
    damage(|upper| drop(put::opaque(upper, &format!("{WORK}/tmp.d"))), "tmp.d", Damage::Leftover, true);
    damage(|upper| drop(put::file(upper, &format!("{WORK}/link.5"), "x")), "link.5", Damage::Leftover, true);
    damage(|upper| drop(put::file(upper, &format!("{WORK}/mine"), "x")), "mine", Damage::Foreign, false);
}

#[test]
fn the_mark_of_volatile() {
    let mark = |upper: &Path| drop(put::dir(upper, &format!("{WORK}/{VOLATILE_MARK}")));
    damage(mark, VOLATILE_MARK, Damage::Volatile, false);
}

#[test]
fn the_index() {
    let foreign = |upper: &Path| {
        let numbers = upper.join(WORK).join("numbers");
        fs::File::options().append(true).open(numbers).unwrap().write_all(&[7; 48]).unwrap();
    };
    damage(foreign, "numbers", Damage::BadNumbers, true);
    let changed = |upper: &Path| {
        let numbers = upper.join(WORK).join("numbers");
        let file = fs::File::options().write(true).open(numbers).unwrap();
        file.write_all_at(&[7; 8], 48).unwrap();
    };
    damage(changed, "numbers", Damage::BadNumbers, true);
    let name = format!("link.5.{:032x}.2", 5);
    damage(|upper| drop(put::file(upper, &format!("{WORK}/{name}"), "x")), &name, Damage::LoneCopy, false);
}

#[test]
fn numbers_lost_in_a_power_failure_are_no_damage() {
    let failures: [&dyn Fn(&fs::File); 4] = [
        &|numbers| numbers.set_len(0).unwrap(),
        &|numbers| numbers.set_len(100).unwrap(),
        &|numbers| numbers.set_len(4096).unwrap(),
        &|numbers| {
            numbers.set_len(0).unwrap();
            numbers.set_len(960).unwrap();
        },
    ];
    for fail in failures {
        let setup = setup();
        let work = setup.path("upper").join(WORK);
        fail(&fs::File::options().write(true).open(work.join("numbers")).unwrap());
        assert_eq!(look(&options(&setup)), []);
        drop(mount(&options(&setup)).unwrap());
        assert_eq!(look(&options(&setup)), []);
    }
}

#[test]
fn a_copy_that_only_lower_names_show_is_no_damage() {
    let setup = setup();
    // The copy of `hard` in the work directory loses its name in the upper layer.
    let upper = setup.path("upper");
    assert_eq!(fs::metadata(upper.join("hard")).unwrap().nlink(), 2, "one in the work directory");
    fs::remove_file(upper.join("hard")).unwrap();
    assert_eq!(look(&options(&setup)), []);
    let tree = tree(&setup, false);
    assert_eq!(tree[Path::new("hard")], tree[Path::new("hard2")]);
}

/// Makes an upper layer with a changed file that has a name outside of its lower layer. The work
/// directory has a copy of it.
fn setup_with_a_name_outside() -> Setup {
    let setup = setup();
    put::file(&setup.path("lower"), "two/a", "old");
    put::link(&setup.path("lower"), "two/a", "two/deep/b");
    fs::hard_link(setup.path("lower/two/a"), setup.path("outside")).unwrap();
    setup
}

fn unused(options: &Options) -> Vec<(String, Damage, bool)> {
    assert_eq!(look(options), [], "it is no damage");
    said(&checker(options, false).unused().unwrap())
}

#[test]
fn copies_that_lost_all_names_of_the_tree_are_removed() {
    let setup = setup_with_a_name_outside();
    let guard = guard(&setup);
    let options = options(&setup);
    let change = |work: &dyn Fn(&Overlay<OsLayer>, &NodeRef)| {
        let overlay = mount(&options).unwrap();
        let two = overlay.lookup(overlay.root(), OsStr::new("two")).unwrap();
        work(&overlay, &two);
    };
    change(&|overlay, two| {
        let file = overlay.open(&overlay.lookup(two, OsStr::new("a")).unwrap());
        overlay.write_at(&file, b"new", 0).unwrap();
        overlay.unlink(two, OsStr::new("a")).unwrap();
    });
    assert_eq!(unused(&options), [], "a lower name shows it");
    change(&|overlay, two| {
        overlay.rename(two, OsStr::new("deep"), overlay.root(), OsStr::new("far"), RenameMode::Replace).unwrap();
    });
    assert_eq!(unused(&options), [], "a lower name in a directory that was renamed");
    change(&|overlay, _| {
        let far = overlay.lookup(overlay.root(), OsStr::new("far")).unwrap();
        overlay.unlink(&far, OsStr::new("b")).unwrap();
    });
    let found = unused(&options);
    let [(copy, Damage::UnusedCopy, true)] = &found[..] else { panic!("{found:?}") };
    assert!(copy.starts_with("link."), "{copy}");

    // Without the record of these lower layers, or with others, nothing is removed.
    let record = setup.path("upper").join(WORK).join("record");
    let text = fs::read(&record).unwrap();
    fs::remove_file(&record).unwrap();
    assert_eq!(unused(&options), []);
    fs::write(&record, text).unwrap();
    let other = Options { lowers: vec![setup.path("lower")], ..options.clone() };
    assert_eq!(said(&checker(&other, false).unused().unwrap()), []);

    let before = tree(&setup, true);
    let upper = setup.path("upper");
    let (lower, bottom) = (setup.path("lower"), setup.path("bottom"));
    let words = words(lower.to_str().unwrap(), upper.to_str().unwrap(), bottom.to_str().unwrap());
    let (code, output, _) = program(&words);
    assert!(
        code == 0
            && output.contains(&format!(
                "{copy}: is the changed copy of a file that has no name any more. With -y: remove {copy}."
            )),
        "{output}"
    );
    let (code, output, _) = program(&[&["-y"], &words[..]].concat());
    assert!(code == 0 && output.contains(&format!("Repair: remove {copy}.")), "{output}");
    assert!(!upper.join(WORK).join(copy).exists());
    assert_eq!(unused(&options), []);
    assert_eq!(tree(&setup, true), before);
    guard.check();
}

/// The changes of the file are in no other place.
#[test]
fn a_copy_whose_original_is_missing_is_kept() {
    let setup = setup_with_a_name_outside();
    let options = options(&setup);
    let overlay = mount(&options).unwrap();
    let two = overlay.lookup(overlay.root(), OsStr::new("two")).unwrap();
    let file = overlay.open(&overlay.lookup(&two, OsStr::new("a")).unwrap());
    overlay.write_at(&file, b"new", 0).unwrap();
    overlay.unlink(&two, OsStr::new("a")).unwrap();
    drop((file, two, overlay));
    fs::rename(setup.path("lower/two/deep"), setup.path("elsewhere")).unwrap();
    fs::remove_file(setup.path("lower/two/a")).unwrap();
    let checker = checker(&options, true);
    assert!(
        checker.check().unwrap().iter().any(|finding| finding.damage == Damage::LoneCopy && finding.repair.is_none())
    );
    assert_eq!(said(&checker.unused().unwrap()), []);
}

#[test]
fn the_kernels_format() {
    let setup = Setup::new();
    for file in ["file", "d/f", "e/f", "meta", "gone"] {
        put::file(&setup.dir("lower"), file, file);
    }
    setup.dir("bottom");
    let (upper, work) = (setup.dir("upper"), setup.dir("work"));
    let options = || Options { work: Some(work.clone()), format: Some(Wanted::Kernel), ..self::options(&setup) };
    let overlay = mount(&options()).unwrap();
    let root = overlay.root();
    overlay.unlink(root, OsStr::new("gone")).unwrap();
    overlay.rename(root, OsStr::new("d"), root, OsStr::new("moved"), RenameMode::Replace).unwrap();
    drop(overlay);
    assert_eq!(look(&options()), []);

    put::node(&upper, "nothing", FileType::CharacterDevice, 0, 0);
    assert_eq!(look(&options()), [("nothing".to_owned(), Damage::HidesNothing, true)]);
    repair(&checker(&options(), true)).unwrap();
    assert_eq!(look(&options()), []);
    assert!(!test_common::exists(&upper.join("nothing")) && test_common::exists(&upper.join("gone")));

    put::file(&upper, "meta", "");
    put::file(&upper, "no-data", "");
    for name in ["meta", "no-data"] {
        rustix::fs::setxattr(upper.join(name), "trusted.overlay.metacopy", b"", XattrFlags::empty()).unwrap();
    }
    put::dir(&upper, "dangling");
    put::dir(&upper, "twice");
    let redirect = |name: &str, to: &[u8]| {
        rustix::fs::setxattr(upper.join(name), "trusted.overlay.redirect", to, XattrFlags::empty()).unwrap();
    };
    redirect("dangling", b"/nowhere");
    redirect("twice", b"e");
    let mut found = look(&options());
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        ("dangling".to_owned(), Damage::Dangling("nowhere".into()), false),
        ("no-data".to_owned(), Damage::NoData, false),
        ("twice".to_owned(), Damage::SeenTwice("e".into()), false),
    ];
    assert_eq!(found, expected);
}

/// Runs the program.
fn program(words: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_overlayfs-fsck")).args(words).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn words<'w>(lower: &'w str, upper: &'w str, bottom: &'w str) -> Vec<&'w str> {
    vec!["--lower", lower, "--lower", bottom, "--upper", upper]
}

#[test]
fn exit_codes_are_those_of_fsck() {
    let setup = setup();
    let path = |name: &str| setup.path(name).to_str().unwrap().to_owned();
    let (lower, upper, bottom) = (path("lower"), path("upper"), path("bottom"));
    let list = format!("lowerdir={lower}:{bottom},upperdir={upper},volatile");
    let run = |option: &str| {
        let code = program(&[&words(&lower, &upper, &bottom)[..], &[option]].concat());
        assert_eq!(program(&["-o", &list, "-n"]).0, if program(&["-o", &list]).0 == 0 { 0 } else { 4 });
        code
    };
    let (code, said, _) = run("-n");
    assert_eq!((code, said), (0, format!("{upper} has no damage.\n")));
    assert_eq!(run("-y").0, 0);

    put::whiteout(&setup.path("upper"), "", "nothing");
    let (code, said, _) = run("-n");
    let expected = format!(
        "{upper}/.wh.nothing: hides a name that the lower layers do not have. With -y: remove .wh.nothing.\n{upper} has damage: 1 finding.\n"
    );
    assert_eq!((code, said), (4, expected));
    assert_eq!(run("-y").0, 1);
    assert_eq!(run("-n").0, 0);

    put::whiteout(&setup.path("upper"), "", "nothing");
    put::file(&setup.path("upper"), &format!("{WORK}/mine"), "x");
    let (code, said, _) = run("-y");
    assert_eq!(code, 5);
    assert!(said.contains(&format!("{upper}/{WORK}/mine: is in the work directory, but no overlay made it")), "{said}");
    assert_eq!(run("-y").0, 4);

    assert_eq!(run("--help").0, 0);
    for bad in [&["--upper", &upper][..], &["--lower", &lower], &["--lower", &lower, "--upper", &upper, "-x"]] {
        assert_eq!(program(bad).0, 16, "{bad:?}");
    }
    let both = program(&[&words(&lower, &upper, &bottom)[..], &["-y", "-n"]].concat());
    assert_eq!(both.0, 16);
    let (code, _, said) = program(&words("/nonexistent", &upper, &bottom));
    assert_eq!(code, 8);
    assert!(said.contains("cannot open the lower layer /nonexistent"), "{said}");
}

#[test]
fn a_layer_in_use_is_not_repaired() {
    let setup = setup();
    let overlay = mount(&options(&setup)).unwrap();
    put::whiteout(&setup.path("upper"), "", "nothing");
    put::file(&setup.path("upper"), &format!("{WORK}/tmp.77"), "being built");
    let before = Snapshot::take(&setup.path("upper"), Detail::Everything);
    let checker = checker(&options(&setup), true);
    assert!(checker.is_in_use());
    let findings = checker.check().unwrap();
    assert_eq!(said(&findings), [(".wh.nothing".to_owned(), Damage::HidesNothing, true)]);
    assert_eq!(checker.repair(findings[0].repair.as_ref().unwrap()).unwrap_err().errno, EBUSY);
    drop(checker);

    let path = |name: &str| setup.path(name).to_str().unwrap().to_owned();
    let (lower, upper, bottom) = (path("lower"), path("upper"), path("bottom"));
    let (code, said, _) = program(&words(&lower, &upper, &bottom));
    assert_eq!(code, 4);
    assert!(said.starts_with(&format!("{upper} is mounted: ")), "{said}");
    let (code, _, said) = program(&[&words(&lower, &upper, &bottom)[..], &["-y"]].concat());
    assert_eq!(code, 8);
    assert!(said.contains("is in use by another overlay"), "{said}");
    Snapshot::take(&setup.path("upper"), Detail::Everything).assert_same(&before, "the upper layer in use");
    drop(overlay);
}

#[test]
fn nothing_is_mounted_while_it_is_checked() {
    let setup = setup();
    let checker = checker(&options(&setup), false);
    assert!(mount(&options(&setup)).is_err());
    drop(checker);
    mount(&options(&setup)).unwrap();
}

/// The upper layer of fuse-overlayfs: devices are whiteouts, one of them beside its opaque mark. In
/// a layer where a user made such a device, no device is a whiteout.
#[test]
fn a_layer_of_fuse_overlayfs_is_not_damaged() {
    let setup = setup();
    let upper = setup.path("upper");
    for name in ["file2", "d/y", "own/.wh..opq", "nothing"] {
        put::node(&upper, name, FileType::CharacterDevice, 0o600, 0);
    }
    put::file(&upper, "own/.wh..wh..opq", "");
    let options = options(&setup);
    assert_eq!(look(&options), [("nothing".to_owned(), Damage::HidesNothing, true)]);
    put::file(&upper, ".wh..wh.devices", "");
    assert_eq!(look(&options), []);
    fs::remove_file(upper.join(".wh..wh.devices")).unwrap();
    repair(&checker(&options, true)).unwrap();
    assert_eq!(look(&options), []);
    assert!(!test_common::exists(&upper.join("nothing")) && test_common::exists(&upper.join("file2")));
}

/// Returns what the program says of these layers, and its exit status.
fn said_of(setup: &Setup, option: &str) -> (i32, String) {
    let path = |name: &str| setup.path(name).to_str().unwrap().to_owned();
    let (code, out, errors) =
        program(&[&words(&path("lower"), &path("upper"), &path("bottom"))[..], &[option]].concat());
    (code, out + &errors)
}

#[test]
fn what_a_commit_left_beside_a_lower_layer_is_told() {
    let setup = setup();
    let lower = LowerGuard::new(&[setup.path("lower")]);
    let [new, work, old] = ["new", "work", "old"].map(|what| setup.path(&format!(".lower.overlayfs-{what}")));
    assert_eq!(said_of(&setup, "-n").0, 0);

    // A copy that is not complete is needless, also if nothing is in it yet. A commit may be at work on
    // it.
    for inside in [None, Some(".wh..wh.work/tmp.1")] {
        fs::create_dir(&new).unwrap();
        if let Some(inside) = inside {
            fs::create_dir_all(new.join(inside)).unwrap();
            put::file(&new, "file", "x");
        }
        let held = OsLayer::open(&new, true).unwrap();
        held.hold().unwrap();
        assert_eq!(said_of(&setup, "-y").0, 0, "it is in use");
        drop(held);
        let (code, said) = said_of(&setup, "-n");
        let wanted = format!(
            "{}: is a merged copy for {} that commit --atomic did not complete. With -y: remove it.",
            new.display(),
            setup.path("lower").display()
        );
        assert!(code == 4 && said.contains(&wanted), "{code} {said}");
        assert_eq!(said_of(&setup, "-y").0, 1);
        assert!(!new.exists());
    }

    // What a commit may still need is left alone. The sentence names the command.
    fs::create_dir(&work).unwrap();
    put::file(&work, "record", "");
    for left in [&new, &old] {
        put::file(left, "file", "x");
    }
    let (code, said) = said_of(&setup, "-y");
    assert_eq!(code, 4, "{said}");
    for left in [&new, &work, &old] {
        let line = said.lines().find(|line| line.starts_with(left.to_str().unwrap())).unwrap();
        assert!(line.contains("overlayfs-layer commit --resume") && line.ends_with("Left alone."), "{line}");
        assert!(left.exists());
    }
    fs::remove_file(work.join("record")).unwrap();
    assert_eq!(said_of(&setup, "-y").0, 4 | 1);
    assert!(!work.exists());
    drop(lower);

    // In the middle of an exchange the layer is missing.
    fs::remove_dir_all(&old).unwrap();
    fs::rename(setup.path("lower"), &old).unwrap();
    let (code, said) = said_of(&setup, "-n");
    assert_eq!(code, 8, "{said}");
    assert!(said.contains("is missing, since commit --atomic was interrupted"), "{said}");
}
