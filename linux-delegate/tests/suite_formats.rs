//! Lower layers that others have made: the kernel's overlayfs, with either namespace of attributes, and fuse-overlayfs.
//!
//! Needs root, /dev/fuse and Debian's package fuse-overlayfs; fails without them.

#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;

use std::path::Path;
use std::process::Stdio;

use mount::{Mount, eventually, is_mounted};
use test_common::{Detail, LowerGuard, Snapshot, Stage, mode, put};

/// Deletions, directories made anew, renames into the same and into other directories, again and again.
const CHANGES: &str = "
rm a/gone; rm -r a/tree; mkdir a/tree; echo new > a/tree/new
echo changed >> a/file; mv a/file a/renamed; rm b/file
mv b/dir b/renamed; echo more > b/renamed/more; mv c/dir d/moved; rm d/moved/one
rm -r e; echo file > e; rm f; mkdir f; echo in > f/in
mkdir new; mv b/renamed/sub new/sub; echo x > new/sub/x; ln -s a link; mkfifo pipe
";

fn make_lower(dir: &Path) {
    for file in
        ["a/gone", "a/file", "a/tree/old", "a/tree/deep/old", "b/file", "b/dir/one", "b/dir/sub/two", "c/dir/one"]
    {
        put::file(dir, file, file);
    }
    for file in ["c/dir/two", "d/other", "e/file", "f"] {
        put::file(dir, file, file);
    }
}

fn shell(dir: &Path, script: &str) {
    let done = run::finish(run::command("sh").args(["-euc", script]).current_dir(dir));
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
}

fn umount(point: &Path) {
    eventually("it is unmounted", || {
        run::command("umount").arg(point).stderr(Stdio::null()).status().unwrap().success()
    });
}

/// Has another overlay make a layer over a lower one, twice, and compares what it shows of the three with what ours shows.
fn compare(start: impl Fn(&str, &Path)) {
    let stage = Stage::new();
    mode(stage.root(), 0o755);
    let [lower, first, second, point] = ["lower", "first", "second", "mount"].map(|name| stage.dir(name));
    make_lower(&lower);
    let mut below = lower.display().to_string();
    let again = "rm -r a/tree; mv d/moved d/again; rm b/renamed/more; mv new/sub b/back; rm f/in; echo y > new/y";
    for (upper, script) in [(&first, CHANGES), (&second, again)] {
        let work = stage.dir(&format!("work-{}", upper.file_name().unwrap().to_str().unwrap()));
        start(&format!("lowerdir={below},upperdir={},workdir={}", upper.display(), work.display()), &point);
        shell(&point, script);
        umount(&point);
        below = format!("{}:{below}", upper.display());
    }
    start(&format!("lowerdir={below}"), &point);
    let expected = Snapshot::take(&point, Detail::Times);
    umount(&point);

    // From here on nobody else reads them, which would change times of access.
    let guard = LowerGuard::new([&lower, &first, &second]);
    let mount = Mount::new(&point, &format!("lowerdir={below}"));
    expected.assert_same(&Snapshot::take(&point, Detail::Times), "what ours shows");
    mount.unmount();
    let upper = stage.dir("upper");
    let mount = Mount::new(&point, &format!("lowerdir={below},upperdir={}", upper.display()));
    shell(
        &point,
        "rm -r a b/renamed; mv d/again d/third; echo z >> d/third/two; mkdir a; test -z \"$(ls a)\"; test ! -e d/third/one",
    );
    mount.unmount();
    guard.check();
}

fn kernel(options: &str, point: &Path) {
    let options = format!("{options},redirect_dir=on,metacopy=off,index=off");
    let mut command = run::command("mount");
    let done = run::finish(command.args(["-t", "overlay", "overlay", "-o", &options]).arg(point));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn layers_of_the_kernels_overlayfs() {
    compare(kernel);
}

/// As of a user without the rights over `trusted` attributes, where renames of lower directories are not to be had.
#[test]
fn layers_with_the_attributes_of_a_user() {
    compare(|options, point| {
        let mut command = run::command("mount");
        let options = format!("{options},userxattr,metacopy=off,index=off");
        let done = run::finish(command.args(["-t", "overlay", "overlay", "-o", &options]).arg(point));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    });
}

#[test]
fn layers_of_fuse_overlayfs() {
    compare(|options, point| {
        let done = run::finish(run::command("fuse-overlayfs").args(["-o", options]).arg(point));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        eventually("it is mounted", || is_mounted(point));
    });
}
