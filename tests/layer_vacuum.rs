//! `vacuum`: what the lower layers show too goes from the upper layer, and nothing else.
//!
//! Needs root, for owners and for attributes in the namespace `trusted`.

#![cfg(target_os = "linux")]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use overlayfs::format::Wanted;
use overlayfs::fsck::Checker;
use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::layer::{OsLayer, Owner};
use overlayfs::layer_tools::check::check;
use overlayfs::layer_tools::vacuum::{find, remove};
use overlayfs::layer_tools::{Error, Views};
use overlayfs::mount::{mount, open_layers};
use overlayfs::options::Options;
use overlayfs::overlay::{Layers, Node, Overlay};
use test_common::{Detail, LowerGuard, Setup, Snapshot, exists, put};

const OWN: Owner = Owner { uid: 0, gid: 0 };

struct Case {
    setup: Setup,
    format: Wanted,
}

impl Case {
    fn new(format: Wanted) -> Self {
        rustix::process::umask(rustix::fs::Mode::empty());
        let setup = Setup::in_memory();
        let lower = setup.dir("lower");
        for file in ["same", "written", "touched", "moded", "dir/same", "dir/deep/same", "mixed/same", "mixed/new"] {
            put::file(&lower, file, file);
        }
        put::file(&lower, "hard", "hard");
        put::link(&lower, "hard", "hard2");
        put::symlink(&lower, "link", "target");
        for name in ["upper", "work"] {
            setup.dir(name);
        }
        let case = Case { setup, format };
        case.work();
        case
    }

    /// Copies everything up, and changes some of it.
    fn work(&self) {
        let overlay = mount(&Options { format: Some(self.format), ..self.options() }).unwrap();
        for path in ["same", "touched", "dir/same", "dir/deep/same", "mixed/same", "link", "hard", "written", "moded"] {
            copy_up(&overlay, path);
        }
        let file = overlay.open(&look_up(&overlay, "written"));
        overlay.write_at(&file, b"W", 0).unwrap();
        overlay.set_mode(&look_up(&overlay, "moded"), 0o600).unwrap();
        let touched = look_up(&overlay, "touched");
        let stat = overlay.stat(&touched).unwrap();
        overlay.set_times(&touched, stat.atime, overlayfs::layer::Time { sec: 1, nsec: 1 }).unwrap();
        let mixed = look_up(&overlay, "mixed");
        overlay.unlink(&mixed, OsStr::new("new")).unwrap();
        overlay.create_dir(overlay.root(), OsStr::new("own"), 0o755, OWN).unwrap();
    }

    fn options(&self) -> Options {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| self.setup.path(name));
        Options { lowers: vec![lower], upper: Some(upper), work: Some(work), ..Options::default() }
    }

    fn upper(&self, path: &str) -> PathBuf {
        self.setup.path("upper").join(path)
    }

    /// Returns the tree that a mount shows, with times, as a copy on the real filesystem.
    fn shown(&self) -> Vec<(PathBuf, String)> {
        let overlay = mount(&Options { read_only: true, ..self.options() }).unwrap();
        let (mut all, mut left) = (Vec::new(), vec![(PathBuf::new(), overlay.root().clone())]);
        while let Some((path, node)) = left.pop() {
            let stat = overlay.stat(&node).unwrap();
            let mut text = format!("{:?} {:o} {}:{} {:?}", stat.kind, stat.mode, stat.uid, stat.gid, stat.mtime);
            // Every look at a symlink changes its time of last access.
            if stat.kind != overlayfs::layer::Kind::Symlink {
                text += &format!(" {:?}", stat.atime);
            }
            let mut bytes = vec![0; stat.size as usize];
            match stat.kind {
                overlayfs::layer::Kind::File => {
                    overlay.read_at(&overlay.open(&node), &mut bytes, 0).unwrap();
                    text += &format!("{bytes:?}");
                }
                overlayfs::layer::Kind::Dir => {
                    let mut names = Vec::new();
                    overlay
                        .list(&overlay.open(&node), 0, &mut |entry| {
                            names.push(entry.name.to_owned());
                            true
                        })
                        .unwrap();
                    left.extend(names.iter().map(|name| (path.join(name), overlay.lookup(&node, name).unwrap())));
                }
                _ => {}
            }
            all.push((path, text));
        }
        all.sort();
        all
    }

    fn vacuum(&self, counts: &Counts, ignore_times: bool, stop_after: Option<u64>) -> Result<Vec<String>, Error> {
        let count = |layer| Counted::new(layer, counts);
        let Layers { upper, work, lowers } = open_layers(&self.options(), true).unwrap();
        let lowers = lowers.into_iter().map(count).collect();
        let checker = Checker::new(Layers { upper: upper.map(count), work: work.map(count), lowers }).unwrap();
        check(&checker, &self.setup.path("upper"))?;
        let Layers { upper, lowers, .. } = open_layers(&self.options(), false).unwrap();
        let above = Layers { upper: upper.map(count), work: None, lowers: lowers.into_iter().map(count).collect() };
        let views = Views::new(above, Layers { upper: None, work: None, lowers: Vec::new() }).unwrap();
        if let Some(calls) = stop_after {
            counts.stop_after(calls);
        }
        let removed = find(&checker, views.above.as_ref().unwrap(), ignore_times, &()).map(|finding| {
            let finding = finding?;
            remove(&checker, &finding)?;
            Ok(finding.path.display().to_string())
        });
        removed.collect()
    }
}

type Found = std::sync::Arc<Node<OsLayer>>;

fn look_up(overlay: &Overlay<OsLayer>, path: &str) -> Found {
    path.split('/').fold(overlay.root().clone(), |dir, name| overlay.lookup(&dir, OsStr::new(name)).unwrap())
}

/// Copies an object up, by a change to the mode or owner that it has.
fn copy_up(overlay: &Overlay<OsLayer>, path: &str) {
    let node = look_up(overlay, path);
    let stat = overlay.stat(&node).unwrap();
    overlay.set_owner(&node, Owner { uid: 7, gid: 7 }).unwrap();
    overlay.set_owner(&node, Owner { uid: stat.uid, gid: stat.gid }).unwrap();
}

fn same(findings: &[String], expected: &[&str]) {
    let mut findings: Vec<_> = findings.iter().map(String::as_str).collect();
    findings.sort_unstable();
    assert_eq!(findings, expected);
}

const GONE: [&str; 6] = ["dir", "dir/deep", "dir/deep/same", "dir/same", "link", "mixed/same"];

#[test]
fn what_the_lower_layer_shows_too_goes() {
    for format in [Wanted::Oci, Wanted::Kernel] {
        let case = Case::new(format);
        let guard = LowerGuard::new(["lower"].map(|name| case.setup.path(name)));
        let before = case.shown();
        let removed = case.vacuum(&Counts::default(), false, None).unwrap();
        same(&removed, &[&GONE[..], &["same"]].concat());
        assert_eq!(case.shown(), before);
        assert!(!exists(&case.upper("dir")) && exists(&case.upper("mixed")) && exists(&case.upper("own")));
        // The names of a file with several stay together.
        assert!(exists(&case.upper("hard")));
        same(&case.vacuum(&Counts::default(), false, None).unwrap(), &[]);
        guard.check();
    }
}

#[test]
fn times_can_be_ignored() {
    let case = Case::new(Wanted::Oci);
    let removed = case.vacuum(&Counts::default(), true, None).unwrap();
    same(&removed, &[&GONE[..], &["same", "touched"]].concat());
}

#[test]
fn a_crash_at_any_call_shows_nothing() {
    for format in [Wanted::Oci, Wanted::Kernel] {
        // The time of a directory is set back in a step of its own.
        let contents =
            |case: &Case| case.shown().into_iter().filter(|(_, text)| !text.starts_with("Dir")).collect::<Vec<_>>();
        for calls in 0.. {
            let case = Case::new(format);
            let before = contents(&case);
            let done = case.vacuum(&Counts::default(), false, Some(calls)).is_ok();
            assert_eq!(contents(&case), before, "after {calls} calls");
            let left = Checker::new(open_layers(&case.options(), true).unwrap()).unwrap().check().unwrap();
            assert!(left.is_empty(), "after {calls} calls: {}", left[0].damage);
            if done {
                assert!(calls > 10, "a vacuum makes calls");
                break;
            }
        }
    }
}

#[test]
fn a_mark_that_hides_nothing_goes() {
    let case = Case::new(Wanted::Oci);
    fs::write(case.upper(".wh.nothing"), "").unwrap();
    fs::write(case.upper("own/.wh..wh..opq"), "").unwrap();
    let before = case.shown();
    let removed = case.vacuum(&Counts::default(), false, None).unwrap();
    assert!(removed.contains(&".wh.nothing".to_owned()) && removed.contains(&"own".to_owned()), "{removed:?}");
    assert!(exists(&case.upper("mixed/.wh.new")) && exists(&case.upper("own")));
    assert!(!exists(&case.upper("own/.wh..wh..opq")) && !exists(&case.upper(".wh.nothing")));
    let entries = |all: Vec<(PathBuf, String)>| all.into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    assert_eq!(entries(case.shown()), entries(before));
}

fn run(case: &Case, more: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_overlayfs-layer"));
    command.arg("vacuum");
    for name in ["lower", "upper", "work"] {
        command.arg(format!("--{name}")).arg(case.setup.path(name));
    }
    command.args(more).output().unwrap()
}

#[test]
fn the_program_lists_what_goes() {
    let case = Case::new(Wanted::Oci);
    let snapshot = |path: &Path| Snapshot::take(path, Detail::Everything);
    let before = snapshot(&case.setup.path("upper"));
    let listed = run(&case, &["--dry-run"]);
    assert_eq!(listed.status.code(), Some(0));
    snapshot(&case.setup.path("upper")).assert_same(&before, "the upper layer after a dry run");
    let removed = run(&case, &[]);
    assert_eq!((removed.status.code(), &removed.stdout), (Some(0), &listed.stdout));
    let text = String::from_utf8(removed.stdout).unwrap();
    assert!(text.contains("same dir/deep/same\n") && text.contains("same dir\n"), "{text}");
    assert_eq!(run(&case, &[]).stdout, b"");
}

#[test]
fn other_lower_layers_and_a_mounted_layer_are_refused() {
    let case = Case::new(Wanted::Oci);
    let overlay = mount(&case.options()).unwrap();
    let said = |output: std::process::Output| {
        assert_eq!(output.status.code(), Some(3));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(said(run(&case, &[])).contains("in use by another overlay"));
    drop(overlay);
    let other = case.setup.dir("other");
    let said = said(run(&case, &["--lower", other.to_str().unwrap()]));
    assert!(said.contains("mounted last on other lower layers"), "{said}");
}
