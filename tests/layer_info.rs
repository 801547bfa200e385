//! `overlayfs-layer info` tells what an upper layer is. Needs root.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use overlayfs::format::Wanted;
use overlayfs::layer::{OsLayer, Owner, RenameMode};
use overlayfs::overlay::{Holder, Layers, Overlay, Settings};
use serde_json::{Value, json};
use test_common::{LowerGuard, Setup, put, times};

const ROOT: Owner = Owner { uid: 0, gid: 0 };

fn setup() -> Setup {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    put::file(&lower, "dir/file", "content");
    put::file(&lower, "gone", "content");
    put::file(&lower, "a", "linked");
    put::link(&lower, "a", "b");
    for name in ["upper", "work"] {
        setup.dir(name);
    }
    setup
}

fn mount(setup: &Setup, format: Option<Wanted>) -> Overlay<OsLayer> {
    let (upper, work) = OsLayer::open_pair(&setup.path("upper"), &setup.path("work")).unwrap();
    let lowers = vec![OsLayer::open(&setup.path("lower"), false).unwrap()];
    let layers = Layers { upper: Some(upper), work: Some(work), lowers };
    Overlay::with_settings(layers, Settings { format, ..Settings::default() }).unwrap()
}

/// Makes changes of several kinds.
fn change(overlay: &Overlay<OsLayer>) {
    let (root, name) = (overlay.root(), OsStr::new);
    overlay.rename(root, name("dir"), root, name("moved"), RenameMode::Replace).unwrap();
    overlay.unlink(root, name("gone")).unwrap();
    let file = overlay.create_file(root, name("new"), 0o600, ROOT).unwrap();
    overlay.write_at(&file, b"12345", 0).unwrap();
    overlay.link(file.node(), root, name("link")).unwrap();
    overlay.create_symlink(root, name("symlink"), name("new"), ROOT).unwrap();
    overlay.set_mode(&overlay.lookup(root, name("a")).unwrap(), 0o600).unwrap();
}

fn run(words: &[&str], setup: &Setup) -> String {
    let mut program = Command::new(env!("CARGO_BIN_EXE_overlayfs-layer"));
    program.arg("info").arg("--upper").arg(setup.path("upper")).arg("--work").arg(setup.path("work"));
    let output = program.args(words).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn info(setup: &Setup) -> Value {
    serde_json::from_str(&run(&["--json"], setup)).unwrap()
}

#[test]
fn info_tells_format_features_layers_and_counts() {
    for format in [None, Some(Wanted::Kernel)] {
        let setup = setup();
        let overlay = mount(&setup, format);
        change(&overlay);
        drop(overlay);
        let guard = LowerGuard::new(["upper", "work", "lower"].map(|name| setup.path(name)));
        let said = info(&setup);
        let expected = json!({
            "format": if format.is_some() { "kernel" } else { "oci" },
            "in_use": false,
            "holder": null,
            "difference": null,
            "directories": 1,
            "files": 3,
            "symlinks": 1,
            "others": 0,
            "bytes": 11,
            "deletions": 2,
            "opaque": 0,
            "redirects": 1,
            "partial_copies": 0,
            "unknown": 0,
            "leftovers": 0,
            "volatile": false,
        });
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(said[key], *value, "{key} in {said}");
        }
        assert_eq!(said["record"]["lowers"], json!([setup.path("lower")]), "{said}");
        assert_eq!(said["record"]["compatible"], json!(["numbers"]), "{said}");
        assert!(said["record"]["incompatible"].as_array().unwrap().contains(&"links".into()), "{said}");
        guard.check();
    }
}

#[test]
fn info_names_the_overlay_that_holds_the_layer() {
    let setup = setup();
    let overlay = mount(&setup, None);
    overlay.sign(&Holder::this("/the/mount".into())).unwrap();
    let said = info(&setup);
    let holder = json!({ "process": std::process::id(), "place": "/the/mount", "ending": false });
    assert_eq!((&said["in_use"], &said["holder"]), (&true.into(), &holder));
    let text = run(&[], &setup);
    let line = format!("in use:         by the overlay at /the/mount (process {})\n", std::process::id());
    assert!(text.contains(&line), "{text}");
    drop(overlay);
    assert_eq!(info(&setup)["in_use"], false);
    assert!(run(&[], &setup).contains("in use:         no\n"));
}

#[test]
fn info_tells_leftovers_and_other_lower_layers() {
    let setup = setup();
    drop(mount(&setup, None));
    put::file(&setup.path("work"), "tmp.7", "left by a crash");
    put::dir(&setup.path("work"), "work/incompat/volatile");
    let other = put::dir(setup.root(), "other");
    times(&other, (1, 2), (3, 4));
    let said = info(&setup);
    assert_eq!((&said["leftovers"], &said["volatile"]), (&1.into(), &true.into()), "{said}");
    let text = run(&["--lower", other.to_str().unwrap()], &setup);
    let differs = format!("{} is missing, {} is new", setup.path("lower").display(), other.display());
    assert!(text.contains(&differs), "{text}");
    assert!(text.contains("a volatile overlay did not end well"), "{text}");
}

#[test]
fn info_tells_a_commit_that_was_interrupted() {
    for (journal, kind, way_on) in [
        (Some("overlayfs commit 1\nphase apply\nstage .stage\n"), "commit", "commit --resume goes on"),
        (Some("of another version"), "commit", "commit --resume goes on"),
        (Some("overlayfs commit 1\nphase discard\nstage \n"), "discard", "discard goes on"),
        (None, "commit-into", "commit --resume of the upper one"),
    ] {
        let setup = setup();
        let overlay = mount(&setup, None);
        assert_eq!(info(&setup)["unfinished"], Value::Null);
        assert!(!run(&[], &setup).contains("unfinished"));
        let mut pieces = journal.map(|text| [text.as_bytes().to_vec()].into_iter());
        overlay.begin_commit(pieces.as_mut().map(|pieces| pieces as &mut dyn Iterator<Item = _>)).unwrap();
        assert!(run(&[], &setup).contains("unfinished:     a commit or discard, which goes on now\n"));
        drop(overlay);
        assert_eq!(info(&setup)["unfinished"], kind);
        let text = run(&[], &setup);
        assert!(text.contains("unfinished:     a ") && text.contains(way_on), "{text}");
    }
}

#[test]
fn info_of_a_directory_that_was_never_mounted_says_so() {
    let setup = setup();
    for name in [".wh.gone", ".wh..wh.parts", ".wh..wh.other"] {
        put::file(&setup.path("upper"), name, "");
    }
    put::dir(&setup.path("upper"), ".wh..wh.work");
    let text = run(&[], &setup);
    assert!(text.contains("unknown marks:  1\n"), "{text}");
    assert!(text.contains("features:       unknown: the layer has no record\n"), "{text}");
    assert!(text.contains("deletions:      1\n") && text.contains("format:         oci\n"), "{text}");
    let missing = Path::new("/missing/upper");
    let output = Command::new(env!("CARGO_BIN_EXE_overlayfs-layer")).args(["info", "--upper"]).arg(missing).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot open the upper layer /missing/upper"));
}

#[test]
fn the_examples_of_the_page_run() {
    let page = include_str!("../docs/layers.md");
    let blocks: String = page.split("\n```sh\n").skip(1).map(|block| block.split_once("```\n").unwrap().0).collect();
    let home = tempfile::tempdir().unwrap();
    let bin = Path::new(env!("CARGO_BIN_EXE_overlayfs-layer")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output =
        Command::new("sh").args(["-exc", &blocks]).env("HOME", home.path()).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
