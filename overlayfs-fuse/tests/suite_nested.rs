//! Overlays with layers on overlays: this one on itself, on the kernel's and on fuse-overlayfs, and
//! those on this one.
//!
//! Needs root, /dev/fuse and Debian's package fuse-overlayfs; fails without them.

#[path = "suite/changes.rs"]
mod changes;
#[path = "suite/child.rs"]
mod child;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;

use std::fs;
use std::path::Path;

use changes::{AGAIN, CHANGES, make_lower, mount_fuse_overlayfs, mount_kernel, shell, umount};
use child::as_another_user;
use mount::{Mount, eventually, is_mounted, program};
use test_common::{Detail, LowerGuard, Setup, Snapshot, mode, put};

/// Mounts an overlay that is not a child of the test program.
type Start = fn(&str, &Path);

fn ours(options: &str, point: &Path) {
    eventually("the mount before has ended", || {
        let done = run::finish(run::command(program()).args(["-o", options]).arg(point));
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() || said.contains("in use by another overlay"), "{options}: {said}");
        done.status.success()
    });
}

fn kernel_with_redirects(options: &str, point: &Path) {
    mount_kernel(&format!("{options},redirect_dir=on,metacopy=on"), point);
}

/// Runs scripts in an `inner` overlay with layers in the tree of `outer`, in two mounts. Compares
/// it with a directory in which the same scripts ran.
fn nest(outer: impl Fn(&str, &Path), more: &str, inner: Start, scripts: [&str; 2]) {
    let setup = Setup::new();
    mode(setup.root(), 0o755);
    let [lower, upper, work, point, inner_point, plain] =
        ["lower", "upper", "work", "mount", "inner", "plain"].map(|name| setup.dir(name));
    let inner_lower = lower.join("lower");
    make_lower(&inner_lower);
    make_lower(&plain);
    let guard = LowerGuard::new([&lower]);
    let outer_options =
        format!("lowerdir={},upperdir={},workdir={}{more}", lower.display(), upper.display(), work.display());
    let [inner_lower, inner_upper, inner_work] = ["lower", "upper", "work"].map(|name| point.join(name));
    let inner_options = format!(
        "lowerdir={},upperdir={},workdir={}",
        inner_lower.display(),
        inner_upper.display(),
        inner_work.display()
    );
    for script in scripts.into_iter().chain([":"]) {
        outer(&outer_options, &point);
        shell(&point, "mkdir -p upper work");
        inner(&inner_options, &inner_point);
        for dir in [&inner_point, &plain] {
            shell(dir, script);
        }
        let [found, expected] = [&inner_point, &plain].map(|dir| Snapshot::take(dir, Detail::Contents));
        expected.assert_same(&found, "the inner overlay");
        umount(&inner_point);
        inner(&inner_options, &inner_point);
        expected.assert_same(&Snapshot::take(&inner_point, Detail::Contents), "the inner overlay, after another mount");
        umount(&inner_point);
        umount(&point);
    }
    guard.check();
}

/// A layer that has no ACLs restricts no user who has rights by the modes.
#[test]
fn users_enter_a_layer_without_acls() {
    let setup = Setup::for_users(&["lower", "without", "upper", "mount"]);
    let path = |name: &str| setup.path(name);
    put::file(&path("lower"), "dir/file", "text");
    put::file(&path("lower"), "dir/secret", "text");
    mode(&path("lower/dir/secret"), 0o600);
    let without = Mount::new(&path("without"), &format!("lowerdir={},noacl", path("lower").display()));
    let options = format!("lowerdir={},upperdir={}", path("without").display(), path("upper").display());
    let mount = Mount::new(&path("mount"), &options);
    let dir = path("mount/dir");
    assert!(as_another_user(|| fs::read(dir.join("file")).is_ok()));
    assert!(as_another_user(|| fs::read(dir.join("secret")).is_err()));
    assert!(fs::write(dir.join("file"), "changed").is_ok() && as_another_user(|| fs::read(dir.join("file")).is_ok()));
    mount.unmount();
    without.unmount();
}

#[test]
fn ours_on_ours() {
    for more in ["", ",format=kernel"] {
        nest(ours, more, ours, [CHANGES, AGAIN]);
    }
}

/// At a rename of a directory fuse-overlayfs makes names that begin with `.wh.`. For them the outer
/// overlay needs the kernel's format.
#[test]
fn fuse_overlayfs_on_ours() {
    nest(ours, ",format=kernel", mount_fuse_overlayfs, [CHANGES, AGAIN]);
    let scripts = [
        "rm a/gone; rm -r a/tree; mkdir a/tree; echo new > a/tree/new; echo more >> b/file; mv b/file b/renamed; rm -r e; echo x > e",
        "rm -r a b/dir; mkdir b/dir; rm e; mkdir -p e/e; mv d/other d/new",
    ];
    nest(ours, "", mount_fuse_overlayfs, scripts);
}

#[test]
fn ours_on_the_kernels_overlayfs() {
    nest(mount_kernel, ",redirect_dir=on,index=off", ours, [CHANGES, AGAIN]);
}

/// fuse-overlayfs refuses names that begin with `.wh.`, and does not return the attributes that it
/// accepts.
#[test]
fn ours_on_fuse_overlayfs_is_refused() {
    let setup = Setup::new();
    let [lower, upper, work, outer, point] = ["lower", "upper", "work", "outer", "mount"].map(|name| setup.dir(name));
    make_lower(&lower);
    let options = |dir: &Path, work: &Path| {
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), dir.display(), work.display())
    };
    mount_fuse_overlayfs(&options(&upper, &work), &outer);
    shell(&outer, "mkdir upper work");
    let inner = options(&outer.join("upper"), &outer.join("work"));
    for more in ["", ",format=oci", ",format=kernel"] {
        let done = run::finish(run::command(program()).args(["-o", &format!("{inner}{more}")]).arg(&point));
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && said.contains(&format!("{}", outer.join("upper").display())), "{said}");
        assert!(
            said.contains("the upper layer refuses names that begin with .wh.") == (more != ",format=kernel"),
            "{said}"
        );
        assert!(!is_mounted(&point));
        shell(&outer, "rm -r upper work; mkdir upper work");
    }
    let mount = Mount::new(&point, &format!("lowerdir={}", outer.display()));
    let [found, expected] = [&point, &outer].map(|dir| Snapshot::take(dir, Detail::Contents));
    expected.assert_same(&found, "fuse-overlayfs as a lower layer");
    mount.unmount();
    umount(&outer);
}

/// Layers of the kernel's overlayfs are copied into the tree of this overlay. They keep their
/// devices and attributes there, and stay valid layers.
#[test]
fn the_kernels_overlayfs_on_ours() {
    let setup = Setup::new();
    mode(setup.root(), 0o755);
    let [lower, first, work, point, upper, outer_work, outer] =
        ["lower", "first", "work", "mount", "upper", "outer-work", "outer"].map(|name| setup.dir(name));
    make_lower(&lower);
    let (own, below) = (first.display(), lower.display());
    let options = format!("lowerdir={below},upperdir={own},workdir={}", work.display());
    mount_kernel(&format!("{options},redirect_dir=on,metacopy=on,index=off"), &point);
    shell(&point, &format!("{CHANGES} chmod 600 d/other"));
    let expected = Snapshot::take(&point, Detail::Xattrs);
    umount(&point);

    let empty = setup.dir("empty");
    let options = format!("lowerdir={},upperdir={},workdir={}", empty.display(), upper.display(), outer_work.display());
    let mount = Mount::new(&outer, &options);
    shell(&outer, &format!("cp -a {below} {own} ."));
    mount.unmount();
    let mount = Mount::new(&outer, &options);
    for start in [kernel_with_redirects as Start, ours] {
        start(&format!("lowerdir={0}/first:{0}/lower", outer.display()), &point);
        expected.assert_same(&Snapshot::take(&point, Detail::Xattrs), "over layers in ours");
        umount(&point);
    }
    mount.unmount();
}
