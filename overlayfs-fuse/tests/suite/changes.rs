//! Layers with files, and changes of all kinds to the tree of an overlay of them.

use std::path::Path;
use std::process::Stdio;

use test_common::put;

use crate::mount::eventually;
use crate::run;

/// Deletions, new directories in place of old ones, and renames within a directory and between
/// directories, several times.
pub const CHANGES: &str = "
rm a/gone; rm -r a/tree; mkdir a/tree; echo new > a/tree/new
echo changed >> a/file; mv a/file a/renamed; rm b/file
mv b/dir b/renamed; echo more > b/renamed/more; mv c/dir d/moved; rm d/moved/one
rm -r e; echo file > e; rm f; mkdir f; echo in > f/in
mkdir new; mv b/renamed/sub new/sub; echo x > new/sub/x; ln -s a link; mkfifo pipe
";

/// More changes, to the result of these.
pub const AGAIN: &str =
    "rm -r a/tree; mv d/moved d/again; rm b/renamed/more; mv new/sub b/back; rm f/in; echo y > new/y";

/// Fills a lower layer with the objects of the changes.
pub fn make_lower(dir: &Path) {
    for file in
        ["a/gone", "a/file", "a/tree/old", "a/tree/deep/old", "b/file", "b/dir/one", "b/dir/sub/two", "c/dir/one"]
    {
        put::file(dir, file, file);
    }
    for file in ["c/dir/two", "d/other", "e/file", "f"] {
        put::file(dir, file, file);
    }
}

/// Runs a script in a directory.
pub fn shell(dir: &Path, script: &str) {
    let done = run::finish(run::command("sh").args(["-euc", script]).current_dir(dir));
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
}

pub fn umount(point: &Path) {
    eventually("it is unmounted", || {
        run::command("umount").arg(point).stderr(Stdio::null()).status().unwrap().success()
    });
}

/// Mounts the kernel's overlayfs.
pub fn mount_kernel(options: &str, point: &Path) {
    let mut command = run::command("mount");
    let done = run::finish(command.args(["-t", "overlay", "overlay", "-o", options]).arg(point));
    assert!(done.status.success(), "{options}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Mounts fuse-overlayfs.
pub fn mount_fuse_overlayfs(options: &str, point: &Path) {
    let done = run::finish(run::command("fuse-overlayfs").args(["-o", options]).arg(point));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    eventually("it is mounted", || crate::mount::is_mounted(point));
}
