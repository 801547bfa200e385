//! Volatile overlays, the mark that they leave without a clean end, and read-only overlays.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use overlayfs::errno::EROFS;
use overlayfs::layer::counted::{Counted, Counts, Method};
use overlayfs::layer::{Layer, OsLayer, Owner, RenameMode};
use overlayfs::mount::mount;
use overlayfs::options::Options;
use overlayfs::overlay::{Layers, Overlay, Settings, VOLATILE_MARK};
use test_common::{Detail, Setup, Snapshot, names, put};

const OWN: Owner = Owner { uid: 0, gid: 0 };

/// The work directory inside an upper layer.
const WORK: &str = "upper/.wh..wh.work";

/// Makes a lower layer with a file and a directory, and an empty upper layer.
fn setup() -> Setup {
    let setup = Setup::new();
    put::file(&setup.dir("lower"), "file", "lower");
    put::file(&setup.dir("lower"), "dir/inside", "lower");
    setup.dir("upper");
    setup
}

fn options(setup: &Setup) -> Options {
    Options { lowers: vec![setup.path("lower")], upper: Some(setup.path("upper")), ..Options::default() }
}

/// Makes a copy-up and a redirect, and syncs.
fn change<L: Layer>(overlay: &Overlay<L>) {
    let root = overlay.root();
    let file = overlay.open(&overlay.lookup(root, OsStr::new("file")).unwrap());
    overlay.write_at(&file, b"upper", 0).unwrap();
    overlay.sync(&file).unwrap();
    overlay.rename(root, OsStr::new("dir"), root, OsStr::new("moved"), RenameMode::Replace).unwrap();
    overlay.sync(&overlay.open(root)).unwrap();
}

/// Returns the numbers of calls that sync files, directories and the whole filesystem: for some
/// changes, and for the end after them.
fn syncs(settings: Settings) -> ([u64; 3], [u64; 3]) {
    let (setup, counts) = (setup(), Counts::default());
    let open = |name: &str, for_writing| Counted::new(OsLayer::open(&setup.path(name), for_writing).unwrap(), &counts);
    let layers = Layers { upper: Some(open("upper", true)), work: None, lowers: vec![open("lower", false)] };
    let overlay = Overlay::with_settings(layers, settings).unwrap();
    let count = || {
        let calls = counts.take();
        [Method::Sync, Method::SyncDir, Method::SyncAll].map(|method| calls.of(method))
    };
    count();
    change(&overlay);
    let changing = count();
    drop(overlay);
    (changing, count())
}

fn refusal(options: &Options) -> String {
    match mount(options) {
        Ok(_) => panic!("{options:?} was mounted"),
        Err(error) => error.to_string(),
    }
}

/// Leaves the mark of a volatile overlay without a clean end.
fn leave_mark(work: &Path) {
    fs::create_dir_all(work.join(VOLATILE_MARK)).unwrap();
}

#[test]
fn nothing_is_synced_before_the_end() {
    let (changing, ending) = syncs(Settings { volatile: true, ..Settings::default() });
    assert_eq!(changing, [0, 0, 0]);
    assert_eq!(ending, [0, 0, 1]);
    let (changing, ending) = syncs(Settings::default());
    // A filesystem that does not keep the order of changes needs a sync of the record, of the
    // redirect and of the mark before their step.
    let ordered = OsLayer::open(&std::env::temp_dir(), true).unwrap().capabilities().ordered;
    let dirs = if ordered { 0 } else { 3 };
    assert_eq!(
        changing,
        [5, dirs, 1],
        "the copy, the caller's file and its number, the record, the redirect; the root, at the caller's request"
    );
    assert_eq!(ending, [0, 0, 0]);
}

#[test]
fn the_mark_is_there_until_the_overlay_ends() {
    let setup = setup();
    let work = setup.dir("work");
    for work in [None, Some(work)] {
        let inside = work.clone().unwrap_or_else(|| setup.path(WORK));
        let options = Options { work, volatile: true, ..options(&setup) };
        let overlay = mount(&options).unwrap();
        assert!(inside.join(VOLATILE_MARK).is_dir());
        overlay.create_file(overlay.root(), OsStr::new("new"), 0o600, OWN).unwrap();
        drop(overlay);
        assert_eq!(names(&inside), ["record"]);
        let overlay = mount(&options).unwrap();
        overlay.unlink(overlay.root(), OsStr::new("new")).unwrap();
    }
}

#[test]
fn a_marked_upper_layer_is_refused() {
    let setup = setup();
    leave_mark(&setup.path(WORK));
    let (upper, work) = (setup.path("upper"), setup.path(WORK));
    let expected = format!(
        "an overlay with the option volatile has left its mark, so the upper layer may be damaged. \
         To use the layer all the same, mount with reuse_volatile, or remove the directory {}/work/incompat/volatile \
         (upper layer {})",
        work.display(),
        upper.display(),
    );
    assert_eq!(refusal(&options(&setup)), expected);
    assert_eq!(refusal(&Options { volatile: true, ..options(&setup) }), expected);
    assert!(work.join(VOLATILE_MARK).is_dir(), "a refusal changes nothing");

    let work = setup.dir("work");
    leave_mark(&work);
    let with_work = Options { work: Some(work.clone()), ..options(&setup) };
    let sentence = refusal(&with_work);
    assert!(sentence.contains(&format!("directory {}/work/incompat/volatile (", work.display())), "{sentence}");
    fs::remove_dir(work.join(VOLATILE_MARK)).unwrap();
    mount(&with_work).unwrap();
}

#[test]
fn a_marked_upper_layer_is_used_with_reuse_volatile() {
    for volatile in [false, true] {
        let setup = setup();
        leave_mark(&setup.path(WORK));
        let overlay = mount(&Options { reuse_volatile: true, volatile, ..options(&setup) }).unwrap();
        assert_eq!(setup.path(WORK).join(VOLATILE_MARK).exists(), volatile);
        drop(overlay);
        mount(&options(&setup)).unwrap();
    }
}

#[test]
fn a_read_only_overlay_shows_the_upper_layer_unchanged() {
    let setup = setup();
    change(&mount(&options(&setup)).unwrap());
    leave_mark(&setup.path(WORK));
    let before = Snapshot::take(&setup.path("upper"), Detail::Everything);
    let overlay = mount(&Options { read_only: true, work: Some(setup.dir("work")), ..options(&setup) }).unwrap();
    assert!(overlay.is_read_only());
    let root = overlay.root();
    let mut text = [0; 5];
    let file = overlay.open(&overlay.lookup(root, OsStr::new("file")).unwrap());
    assert_eq!(overlay.read_at(&file, &mut text, 0), Ok(5));
    assert_eq!(&text, b"upper");
    overlay.lookup(&overlay.lookup(root, OsStr::new("moved")).unwrap(), OsStr::new("inside")).unwrap();
    assert!(overlay.lookup(root, OsStr::new("dir")).is_err(), "what the upper layer deletes is deleted");
    assert_eq!(overlay.unlink(root, OsStr::new("file")).unwrap_err().errno, EROFS);
    drop(overlay);
    Snapshot::take(&setup.path("upper"), Detail::Everything).assert_same(&before, "the upper layer");
    assert_eq!(names(&setup.path("work")), Vec::<String>::new());
}
