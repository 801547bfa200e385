//! The mount for other programs: the examples, what stays after each ending, and errors.
//!
//! Needs root and /dev/fuse; fails without them.

#[path = "../examples/commit.rs"]
mod commit;
#[path = "suite/run.rs"]
mod run;
#[path = "../examples/try_out.rs"]
mod try_out;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use overlayfs::layer_tools::commit::Choice;
use overlayfs_fuse::library::{Mount, UnmountError};
use overlayfs_fuse::{Builder, Overlay};
use test_common::{LowerGuard, Setup, names, put};

fn setup() -> Setup {
    let setup = Setup::new();
    put::file(&setup.dir("lower"), "old", "old");
    for name in ["upper", "work", "merged"] {
        setup.dir(name);
    }
    setup
}

fn layers(setup: &Setup) -> Builder {
    Overlay::builder().lower(setup.path("lower")).upper(setup.path("upper")).work(setup.path("work"))
}

fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == point.to_str())
}

#[test]
fn the_examples_run() {
    try_out::main().unwrap();
    commit::main().unwrap();
}

/// In a user namespace the caller has no right of the system's root.
#[test]
fn the_examples_run_in_a_user_namespace() {
    let test = std::env::current_exe().unwrap();
    let mut command = run::command("unshare");
    let output = run::finish(
        command.args(["--user", "--map-root-user", "--mount"]).arg(test).args(["--exact", "the_examples_run"]),
    );
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn changes_are_listed_and_preserved() {
    let setup = setup();
    let guard = LowerGuard::new([setup.path("lower")]);
    let mount = layers(&setup).option("volatile").mount(setup.path("merged")).unwrap();
    assert_eq!(mount.path(), setup.path("merged"));
    fs::write(mount.path().join("new"), "new").unwrap();
    fs::remove_file(mount.path().join("old")).unwrap();
    let paths = |changes: Vec<overlayfs_fuse::library::Changed>| -> Vec<_> {
        changes
            .into_iter()
            .map(|change| change.path.display().to_string())
            .filter(|path| !path.is_empty() && path != ".")
            .collect()
    };
    assert_eq!(paths(mount.changes().unwrap()), ["new", "old"]);
    let unmounted = mount.unmount().unwrap();
    assert!(!is_mounted(&setup.path("merged")));
    assert_eq!(paths(unmounted.changes().unwrap()), ["new", "old"]);
    let archive = unmounted.export(Vec::new()).unwrap();
    let has = |name: &[u8]| archive.windows(name.len()).any(|window| window == name);
    assert!(has(b"new") && has(b".wh.old"), "the archive names the changes");
    unmounted.preserve();
    assert_eq!(fs::read_to_string(setup.path("upper/new")).unwrap(), "new");
    let again = layers(&setup).mount(setup.path("merged")).unwrap();
    assert!(again.path().join("new").exists() && !again.path().join("old").exists());
    drop(again);
    drop(guard);
}

/// A mount in use is not unmounted, and can be used and unmounted later. The drop detaches it.
#[test]
fn a_mount_in_use() {
    let setup = setup();
    let mount = layers(&setup).mount(setup.path("merged")).unwrap();
    let file = File::create(mount.path().join("new")).unwrap();
    let error = mount.unmount().unwrap_err();
    assert!(error.to_string().starts_with(&format!("Cannot unmount {}: ", setup.path("merged").display())), "{error}");
    let UnmountError::Busy(busy) = error else { panic!("{error}") };
    let mount = busy.into_mount();
    assert!(is_mounted(mount.path()));
    drop(file);
    mount.unmount().unwrap().preserve();

    let mount = layers(&setup).mount(setup.path("merged")).unwrap();
    let file = File::create(mount.path().join("other")).unwrap();
    drop(mount);
    assert!(!is_mounted(&setup.path("merged")));
    file.sync_all().unwrap();
    drop(file);
}

/// The whole lower layer is exchanged, and the former one stays if the caller wants it.
#[test]
fn an_atomic_commit_exchanges_the_lower_layer() {
    let setup = setup();
    for round in ["first", "second"] {
        let mount = layers(&setup).mount(setup.path("merged")).unwrap();
        fs::write(mount.path().join(round), round).unwrap();
        let _ = fs::remove_file(mount.path().join("old"));
        let former = fs::metadata(setup.path("lower")).unwrap().ino();
        let keep_old = round == "first";
        mount.unmount().unwrap().commit(Choice { atomic: true, keep_old, ..Choice::default() }).unwrap();
        assert_eq!(fs::read_to_string(setup.path("lower").join(round)).unwrap(), round);
        assert!(!setup.path("lower/old").exists());
        assert_ne!(fs::metadata(setup.path("lower")).unwrap().ino(), former);
        assert_eq!(names(&setup.path("upper")), [""; 0]);
        assert_eq!(names(&setup.path("lower.old")), ["old"]);
        assert_eq!(names(setup.root()), ["lower", "lower.old", "merged", "upper", "work"]);
    }
}

/// An exchange that cannot be made is refused before anything is done for it.
#[test]
fn an_atomic_commit_to_a_mount_point_is_refused() {
    let setup = setup();
    let lower = setup.path("lower");
    let elsewhere = setup.dir("elsewhere");
    put::file(&elsewhere, "base", "base");
    rustix::mount::mount_bind(&elsewhere, &lower).unwrap();
    let mount = layers(&setup).mount(setup.path("merged")).unwrap();
    fs::write(mount.path().join("new"), "new").unwrap();
    let refused = mount.unmount().unwrap().commit(Choice { atomic: true, ..Choice::default() });
    let again = layers(&setup).mount(setup.path("merged")).map(Mount::unmount);
    let before = names(setup.root());
    rustix::mount::unmount(&lower, rustix::mount::UnmountFlags::DETACH).unwrap();
    let text = refused.unwrap_err().to_string();
    assert!(text.contains(&format!("{} is a mount point, and cannot be exchanged; ", lower.display())), "{text}");
    again.unwrap().unwrap().preserve();
    assert_eq!((names(&setup.path("upper")), names(&elsewhere)), (vec!["new".to_owned()], vec!["base".to_owned()]));
    assert_eq!(before, ["elsewhere", "lower", "merged", "upper", "work"]);
}

/// The layers need the umask 0, and a sandbox holds the threads of the mount. The rest of the
/// process stays as it is.
#[test]
fn the_process_stays_as_it_is() {
    let setup = setup();
    let status = || {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let kept = ["Umask:", "CapEff:", "Seccomp:", "NoNewPrivs:", "SigBlk:"];
        status
            .lines()
            .filter(|line| kept.iter().any(|kept| line.starts_with(kept)))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let before = status();
    let mount = layers(&setup).mount(setup.path("merged")).unwrap();
    assert_eq!(status(), before);
    mount.unmount().unwrap().discard().unwrap();
    assert_eq!(status(), before);
}

#[test]
fn errors_are_sentences_with_path_and_cause() {
    let setup = setup();
    let merged = setup.path("merged");
    let said = |builder: Builder, at: &Path| builder.mount(at).unwrap_err().to_string();
    let (missing, shown) = (setup.path("missing"), setup.path("missing").display().to_string());
    for (builder, at, expected) in [
        (Overlay::builder().upper(setup.path("upper")), &merged, "No lower directory is given"),
        (layers(&setup).option("volatil"), &merged, "There is no mount option volatil. Did you mean volatile?"),
        (layers(&setup).lower(&missing), &merged, &*format!("Cannot mount: cannot open the lower layer {shown}: ")),
        (layers(&setup), &missing, &*format!("Cannot mount at {shown}: ")),
    ] {
        let text = said(builder, at);
        assert!(text.starts_with(expected), "{text}");
    }
    let held = layers(&setup).mount(&merged).unwrap();
    let text = said(layers(&setup), &setup.path("work"));
    assert!(text.contains("the upper layer is in use by the overlay at "), "{text}");
    drop(held);
    // A read-only mount has nothing to discard.
    let reading = Overlay::builder().lower(setup.path("lower")).mount(&merged).unwrap().unmount().unwrap();
    let text = reading.discard().unwrap_err().to_string();
    assert!(!text.is_empty() && text.ends_with('.'), "{text}");
}
