//! `overlayfs-fuse` as the mount program of podman's storage: an image is imported, another is built from it, and a container runs.
//!
//! Needs root, /dev/fuse, and of Debian's packages podman, runc and busybox-static; fails without them.

#[path = "suite/run.rs"]
mod run;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use test_common::Stage;

const PROGRAM: &str = env!("CARGO_BIN_EXE_overlayfs-fuse");

/// Each step changes what the one before has left: files and directories of lower layers are removed, renamed and made anew.
const RECIPE: &str = "\
FROM localhost/base
RUN mkdir /made && echo built > /made/file && rm /bin/cp && mv /made /moved && mv /etc/dir /etc/renamed
RUN cat /moved/file && rm -r /moved && mkdir /moved && touch /etc/renamed/new && chmod 700 /bin
";

const CHECKS: &str = "\
set -e
test ! -e /bin/cp; test ! -e /etc/dir; test ! -e /made; test -z \"$(ls -A /moved)\"
test \"$(ls /etc/renamed)\" = \"$(printf 'below\\nnew')\"
grep -q ' / fuse.overlayfs-fuse ' /proc/mounts
echo more >> /etc/renamed/below; cat /etc/renamed/below
";

/// podman with storage of its own.
struct Podman {
    stage: Stage,
}

impl Podman {
    fn run(&self, arguments: &[&str]) -> String {
        let mut command = run::command("podman");
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(self.stage.dir(name));
        }
        command.args(["--storage-driver=overlay", "--cgroup-manager=cgroupfs", "--runtime=runc"]);
        command.arg(format!("--storage-opt=overlay.mount_program={PROGRAM}"));
        let output = run::finish(command.args(arguments).current_dir(self.stage.root()));
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "podman {arguments:?} fails:\n{out}{err}");
        out.into_owned()
    }
}

impl Drop for Podman {
    /// podman leaves its storage mounted on itself.
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below =
            |line: &&str| line.split(' ').nth(1).is_some_and(|point| Path::new(point).starts_with(self.stage.root()));
        for line in mounts.lines().filter(below).collect::<Vec<_>>().into_iter().rev() {
            run::finish(run::command("umount").arg("-l").args(line.split(' ').nth(1)));
        }
    }
}

/// A root with a shell in it, as a tar file.
fn root_filesystem(stage: &Stage) -> PathBuf {
    let root = stage.dir("rootfs");
    for dir in ["bin", "dev", "etc/dir", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::write(root.join("etc/dir/below"), "from below\n").unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("the package busybox-static is installed");
    for name in ["sh", "ls", "cat", "echo", "mkdir", "rm", "mv", "cp", "touch", "test", "grep", "chmod", "printf"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    let file = stage.path("rootfs.tar");
    assert!(run::finish(run::command("tar").arg("-C").arg(&root).arg("-cf").arg(&file).arg(".")).status.success());
    file
}

#[test]
fn a_container_is_built_and_run() {
    let podman = Podman { stage: Stage::new() };
    let tar = root_filesystem(&podman.stage);
    podman.run(&["import", tar.to_str().unwrap(), "base"]);
    fs::write(podman.stage.dir("context").join("Containerfile"), RECIPE).unwrap();
    // The limits are below those of the session, which a container may not raise.
    let limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"];
    let built = podman.run(&["build", "--isolation=chroot", limits[0], "-t", "built", "context"]);
    assert!(built.contains("built"), "{built}");
    let run = ["run", "--rm", "--network=none", limits[0], limits[1], "localhost/built", "sh", "-c", CHECKS];
    for _ in 0..2 {
        assert_eq!(podman.run(&run), "from below\nmore\n", "a container leaves nothing in the image");
    }
}
