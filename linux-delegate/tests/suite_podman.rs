//! `overlayfs-fuse` as the mount program of podman's storage: an image is imported, another is built from it, and a container runs, all
//! started by root, and by a user.
//!
//! Needs root, /dev/fuse, Debian's user games, and of its packages busybox-static, podman, runc and uidmap; fails without them.

#[path = "suite/run.rs"]
mod run;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};
use test_common::{Stage, mode, put};

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

/// More files than the kernel may know at once, and how many of them are in one directory.
const MANY: usize = 140_000;
const IN_ONE: usize = 500;

/// Looks at all of them, and then writes to the volumes.
const LOOK: &str = "\
set -e
find /many -type f -size -1 | grep -c .
echo more > /volumes/dir/new; echo more > /volumes/file; echo more > /volumes/a/b/c/deep
cat /volumes/dir/new
";

#[test]
fn volumes_stay_while_a_container_looks_at_more_than_is_remembered() {
    let podman = Podman { stage: Stage::new() };
    root_filesystem(&podman.stage);
    let rootfs = podman.stage.path("rootfs");
    symlink("busybox", rootfs.join("bin/find")).unwrap();
    for dir in 0..MANY / IN_ONE {
        let dir = put::dir(&rootfs, &format!("many/{dir}"));
        for file in 0..IN_ONE {
            let path = dir.join(file.to_string());
            rustix::fs::mknodat(CWD, path, FileType::RegularFile, Mode::RUSR, 0).unwrap();
        }
    }
    let volumes = podman.stage.dir("volumes");
    put::dir(&volumes, "dir");
    let mounts = ["file", "deep"].map(|name| put::file(&volumes, name, "")).into_iter().chain([volumes.join("dir")]);
    let volumes: Vec<_> = mounts.zip(["file", "a/b/c/deep", "dir"]).collect();
    let named = volumes.iter().map(|(from, to)| format!("-v={}:/volumes/{to}", from.display()));
    let named: Vec<_> = named.collect();
    let mut run = vec!["run", "--rm", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"];
    run.extend(named.iter().map(String::as_str));
    run.push("--rootfs");
    let rootfs = format!("{}:O", rootfs.display());
    run.extend([rootfs.as_str(), "sh", "-c", LOOK]);
    assert_eq!(podman.run(&run), format!("{MANY}\nmore\n"));
    for file in ["dir/new", "file", "deep"] {
        assert_eq!(fs::read_to_string(podman.stage.path("volumes").join(file)).unwrap(), "more\n", "{file}");
    }
}

/// Prepares what a user finds on other systems: a device that he may open, ids for his containers, and places that he may enter. What
/// podman leaves running ends with the namespace. The arguments are the stage and the program.
const AS_A_USER: &str = r#"
stage=$1 program=$2
mount --make-rshared /
mknod -m 666 "$stage/fuse" c 10 229
mount --bind "$stage/fuse" /dev/fuse
echo games:100000:65536 > "$stage/ids"
mount --bind "$stage/ids" /etc/subuid
mount --bind "$stage/ids" /etc/subgid
cp "$program" "$stage/overlayfs-fuse"
export HOME="$stage/home" XDG_RUNTIME_DIR="$stage/home/run"
install -d -o games "$HOME" "$XDG_RUNTIME_DIR"
cd "$HOME"
exec setpriv --reuid games --regid games --init-groups bash -euc '
    podman() {
        command podman --root "$HOME/root" --runroot "$HOME/runroot" --tmpdir "$HOME/tmp" --storage-driver=overlay --runtime=runc \
            --cgroup-manager=cgroupfs --storage-opt=overlay.mount_program="$1/overlayfs-fuse" "${@:2}"
    }
    podman "$1" import "$1/rootfs.tar" base >&2
    podman "$1" build --isolation=chroot --ulimit=nofile=1024:1024 -t built "$1/context" >&2
    for turn in 1 2; do
        podman "$1" run --rm --network=none --ulimit=nofile=1024:1024 --ulimit=nproc=1000:1000 localhost/built sh -c "$2"
    done
' bash "$stage" "$3"
"#;

/// The daemon runs in the user's namespace, where he is root of some ids.
#[test]
fn a_user_builds_and_runs_a_container() {
    let stage = Stage::new();
    mode(stage.root(), 0o755);
    root_filesystem(&stage);
    fs::write(stage.dir("context").join("Containerfile"), RECIPE).unwrap();
    let mut command = run::command("unshare");
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-euc", AS_A_USER, "bash"]);
    let output = run::finish(command.arg(stage.root()).args([PROGRAM, CHECKS]));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}{out}");
    assert_eq!(out, "from below\nmore\n".repeat(2));
}
