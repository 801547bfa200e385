//! `overlayfs-layer export` and `import`: what an upper layer changes becomes an archive that other
//! programs read, and archives become lower layers. Needs root, and Debian's packages acl, attr,
//! libcap2-bin, python3, tar and zstd.

#[path = "layer_tar/shown.rs"]
mod shown;
#[path = "layer_tar/work.rs"]
mod work;

#[path = "layer_tar/bundles.rs"]
mod bundles;
#[path = "layer_tar/hostile.rs"]
mod hostile;
#[path = "layer_tar/others.rs"]
mod others;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use overlayfs::format::Wanted;
use overlayfs::layer::OsLayer;
use overlayfs::overlay::{Layers, Overlay, Settings};
use test_common::{Random, Setup, names};

/// Runs the program, without progress.
fn tool(arguments: &[&dyn AsRef<OsStr>]) -> Output {
    let arguments = arguments.iter().map(|argument| (*argument).as_ref());
    Command::new(env!("CARGO_BIN_EXE_overlayfs-layer")).args(arguments).arg("--quiet").output().unwrap()
}

/// Runs the program, and returns what it prints. Panics if it fails.
fn done(arguments: &[&dyn AsRef<OsStr>]) -> String {
    let output = tool(arguments);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the program, and returns the sentence with which it fails.
fn refused(arguments: &[&dyn AsRef<OsStr>]) -> String {
    let output = tool(arguments);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stdout));
    let said = String::from_utf8(output.stderr).unwrap();
    let sentence = said.trim_end().strip_prefix("overlayfs-layer: ").and_then(|said| said.strip_suffix('.'));
    sentence.unwrap_or_else(|| panic!("this is no sentence: {said}")).to_owned()
}

/// Imports an archive or an image, and returns the directories, the topmost first.
fn import(source: &dyn AsRef<OsStr>, into: &Path) -> Vec<PathBuf> {
    let said = done(&[&"import", source, &into]);
    let (last, dirs) =
        said.lines().collect::<Vec<_>>().split_last().map(|(last, dirs)| (*last, dirs.to_vec())).unwrap();
    assert_eq!(last, format!("lowerdir={}", dirs.join(":")));
    dirs.iter().map(PathBuf::from).collect()
}

/// Runs another program. Panics if it fails.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn layers(upper: Option<&Path>, work: Option<&Path>, lowers: &[PathBuf]) -> Layers<OsLayer> {
    let (upper, work) = match (upper, work) {
        (Some(upper), Some(work)) => {
            let (upper, work) = OsLayer::open_pair(upper, work).unwrap();
            (Some(upper), Some(work))
        }
        _ => (None, None),
    };
    Layers { upper, work, lowers: lowers.iter().map(|lower| OsLayer::open(lower, false).unwrap()).collect() }
}

/// Opens an overlay without an upper layer.
fn below(lowers: &[PathBuf]) -> Overlay<OsLayer> {
    Overlay::with_settings(layers(None, None, lowers), Settings { trusted: true, ..Settings::default() }).unwrap()
}

/// Random work on two lower layers; its export; its import; the same tree.
#[test]
fn a_random_tree_survives_export_and_import() {
    let start = std::env::var("SEED").map_or(1, |seed| seed.parse().unwrap());
    for seed in start..start + 12 {
        for format in [Wanted::Oci, Wanted::Kernel] {
            survives(seed, format);
        }
    }
}

fn survives(seed: u64, format: Wanted) {
    let setup = Setup::new();
    let mut random = Random(seed);
    let [upper, work, bottom, middle] = ["upper", "work", "bottom", "middle"].map(|name| setup.dir(name));
    let what = format!("seed {seed}, {format:?}");

    // The lower layers are what earlier overlays left.
    let mut lowers: Vec<PathBuf> = Vec::new();
    for layer in [&bottom, &middle, &upper] {
        fs::remove_dir_all(&work).unwrap();
        fs::create_dir(&work).unwrap();
        let base = setup.dir("empty");
        let stack = if lowers.is_empty() { vec![base] } else { lowers.clone() };
        let settings = Settings { format: Some(format), trusted: true, ..Settings::default() };
        let overlay = Overlay::with_settings(layers(Some(layer), Some(&work), &stack), settings).unwrap();
        work::change(&mut random, &overlay, 60);
        overlay.complete_and_sync().unwrap();
        if layer == &upper {
            let shown = shown::tree(&overlay);
            drop(overlay);
            comes_back(&setup, &lowers, &upper, &work, &shown, &what);
        } else {
            lowers.insert(0, layer.clone());
        }
    }
}

/// Exports the upper layer in each form, imports it, and compares the tree. An export of the import
/// has the same bytes.
fn comes_back(setup: &Setup, lowers: &[PathBuf], upper: &Path, work: &Path, shown: &shown::Tree, what: &str) {
    let named: Vec<&OsStr> = lowers.iter().flat_map(|lower| [OsStr::new("--lower"), lower.as_os_str()]).collect();
    let export = |upper: &Path, work: Option<&Path>, file: &Path| {
        let mut arguments: Vec<&dyn AsRef<OsStr>> = vec![&"export"];
        arguments.extend(named.iter().map(|word| word as &dyn AsRef<OsStr>));
        let (upper, file) = (upper, file);
        arguments.extend([&"--upper" as &dyn AsRef<OsStr>, &upper, &file]);
        let work = work.map(Path::as_os_str);
        if let Some(work) = &work {
            arguments.extend([&"--work" as &dyn AsRef<OsStr>, work]);
        }
        done(&arguments);
    };
    let mut archives = Vec::new();
    for name in ["layer.tar", "again.tar", "layer.tar.gz", "layer.tar.zst"] {
        let file = setup.path(name);
        export(upper, Some(work), &file);
        archives.push(file);
    }
    assert!(fs::read(&archives[0]).unwrap() == fs::read(&archives[1]).unwrap(), "{what}: two exports differ");
    let into = setup.path("imported");
    for archive in &archives {
        let dirs = import(archive, &into);
        assert_eq!(names(&into).len(), 1, "{what}: each form has the same digest");
        let stack: Vec<_> = dirs.iter().chain(lowers).cloned().collect();
        shown.assert_same(&shown::tree(&below(&stack)), what);
    }
    let imported = into.join(&names(&into)[0]);
    let again = setup.path("reexport.tar");
    export(&imported, None, &again);
    assert!(fs::read(&archives[0]).unwrap() == fs::read(&again).unwrap(), "{what}: the export of the import differs");
}
