//! `overlayfs-fuse` as the mount program of podman's storage. The tests import an image, build
//! another from it, and run a container, as root and as a user.
//!
//! Needs root, /dev/fuse, Debian's user games, and of its packages buildah, busybox-static,
//! fuse-overlayfs, podman, runc and uidmap; fails without them.

#[path = "suite/podman.rs"]
mod podman;
#[path = "suite/run.rs"]
mod run;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode};
use test_common::{Setup, mode, put};

use podman::{OPTIONS, PROGRAM, Podman};

/// Each step changes the result of the one before: it removes, renames and makes again files and
/// directories of lower layers.
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

/// Makes a root filesystem with a shell, as a tar file.
fn root_filesystem(setup: &Setup) -> PathBuf {
    let root = setup.dir("rootfs");
    for dir in ["bin", "dev", "etc/dir", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::write(root.join("etc/dir/below"), "from below\n").unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("the package busybox-static is installed");
    for name in [
        "sh", "ls", "cat", "echo", "mkdir", "rm", "mv", "cp", "touch", "test", "grep", "chmod", "printf", "sleep",
        "wc", "tail",
    ] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    let file = setup.path("rootfs.tar");
    assert!(run::finish(run::command("tar").arg("-C").arg(&root).arg("-cf").arg(&file).arg(".")).status.success());
    file
}

#[test]
fn a_container_is_built_and_run() {
    let podman = Podman { setup: Setup::new() };
    let tar = root_filesystem(&podman.setup);
    podman.run(&["import", tar.to_str().unwrap(), "base"]);
    fs::write(podman.setup.dir("context").join("Containerfile"), RECIPE).unwrap();
    let built = podman.run(&["build", "--isolation=chroot", OPTIONS[1], "-t", "built", "context"]);
    assert!(built.contains("built"), "{built}");
    for _ in 0..2 {
        assert_eq!(
            podman.in_container("localhost/built", &["sh", "-c", CHECKS]),
            "from below\nmore\n",
            "a container leaves nothing in the image"
        );
    }
}

/// Returns podman with the image `base`, which has a file that gets a partial copy.
fn with_base() -> Podman {
    let podman = Podman { setup: Setup::new() };
    put::file(&podman.setup.dir("rootfs"), "large", vec![b'l'; 4 << 20]);
    let tar = root_filesystem(&podman.setup);
    podman.run(&["import", tar.to_str().unwrap(), "base"]);
    podman
}

/// The upper layer is whole as soon as a container has ended: the next command reads it, or mounts
/// it again.
#[test]
fn a_container_is_whole_when_it_has_ended() {
    let podman = with_base();
    let create = |name: &str, script: &str| {
        let name = format!("--name={name}");
        podman.run(&[&["create", &name], &OPTIONS[..], &["localhost/base", "sh", "-c", script]].concat());
    };
    create("changed", "echo new > /new; rm /etc/dir/below; echo end >> /large");
    let turn = "echo turn >> /turns; echo end >> /large; cat /turns";
    create("turns", turn);
    for round in 1..=3 {
        podman.run(&["start", "-a", "changed"]);
        let diff = podman.run(&["diff", "changed"]);
        let mut lines: Vec<_> = diff.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["A /new", "C /etc", "C /etc/dir", "C /large", "D /etc/dir/below"], "round {round}");
        assert_eq!(podman.run(&["start", "-a", "turns"]), "turn\n".repeat(round));
    }
    create("stopped", &format!("{turn}; trap exit TERM; while :; do sleep .1; done"));
    for _ in 0..2 {
        podman.run(&["start", "stopped"]);
        podman.run(&[
            "exec",
            "stopped",
            "sh",
            "-c",
            "until grep -q turn /turns; do sleep .1; done; echo end >> /large",
        ]);
        podman.run(&["stop", "-t=20", "stopped"]);
    }
    let copied = podman.setup.path("copied");
    podman.run(&["cp", "stopped:/large", copied.to_str().unwrap()]);
    assert_eq!(fs::metadata(copied).unwrap().len(), (4 << 20) + 16);
}

#[test]
fn buildah_changes_an_image_through_a_mount() {
    let podman = with_base();
    for (from, image) in [("localhost/base", "once"), ("localhost/once", "twice")] {
        let container = podman.buildah(&["from", from]);
        let point = PathBuf::from(podman.buildah(&["mount", &container]));
        fs::write(point.join(image), image).unwrap();
        let mut large = File::options().append(true).open(point.join("large")).unwrap();
        large.write_all(b"end\n").unwrap();
        drop(large);
        // The second image does not have this directory.
        let _ = fs::remove_dir_all(point.join("etc/dir"));
        podman.buildah(&["umount", &container]);
        podman.buildah(&["commit", &container, image]);
    }
    let check = "cat /once /twice; ls /etc/dir 2>/dev/null; wc -c < /large; tail -c 8 /large";
    assert_eq!(
        podman.in_container("localhost/twice", &["sh", "-c", check]),
        format!("oncetwice{}\nend\nend\n", (4 << 20) + 8)
    );
}

/// Each turn removes the objects of the turn before from a lower directory, and makes a directory
/// again.
const TURN: &str = "\
set -e
echo turn >> /turns; echo end >> /large
rm -r /etc/dir; mkdir /etc/dir; echo > /etc/dir/$(grep -c . /turns)
rm -f /bin/cp; test ! -e /bin/cp
ls /etc/dir; wc -c < /large
";

/// A container starts with one mount program and goes on with another.
#[test]
fn storage_moves_from_one_mount_program_to_another() {
    const OTHER: &str = "/usr/bin/fuse-overlayfs";
    for programs in [[OTHER, PROGRAM, OTHER, PROGRAM], ["", PROGRAM, PROGRAM, PROGRAM]] {
        let podman = Podman { setup: Setup::new() };
        put::file(&podman.setup.dir("rootfs"), "large", vec![b'l'; 4 << 20]);
        let tar = root_filesystem(&podman.setup);
        podman.run_with(programs[0], &["import", tar.to_str().unwrap(), "base"]);
        let create = [&["create", "--name=one"], &OPTIONS[..], &["localhost/base", "sh", "-c", TURN]].concat();
        podman.run_with(programs[0], &create);
        for (turn, program) in (1..).zip(programs) {
            let said = podman.run_with(program, &["start", "-a", "one"]);
            assert_eq!(said, format!("{turn}\n{}\n", (4 << 20) + 4 * turn), "{programs:?}, turn {turn}");
        }
    }
}

/// More files than the limit of the kernel's knowledge, and the number of them in one directory.
const MANY: usize = 140_000;
const IN_ONE: usize = 500;

/// Looks at all files, and then writes to the volumes.
const LOOK: &str = "\
set -e
find /many -type f -size -1 | grep -c .
echo more > /volumes/dir/new; echo more > /volumes/file; echo more > /volumes/a/b/c/deep
cat /volumes/dir/new
";

#[test]
fn volumes_stay_while_a_container_overflows_the_cache() {
    let podman = Podman { setup: Setup::new() };
    root_filesystem(&podman.setup);
    let rootfs = podman.setup.path("rootfs");
    symlink("busybox", rootfs.join("bin/find")).unwrap();
    for dir in 0..MANY / IN_ONE {
        let dir = put::dir(&rootfs, &format!("many/{dir}"));
        for file in 0..IN_ONE {
            let path = dir.join(file.to_string());
            rustix::fs::mknodat(CWD, path, FileType::RegularFile, Mode::RUSR, 0).unwrap();
        }
    }
    let volumes = podman.setup.dir("volumes");
    put::dir(&volumes, "dir");
    let mounts = ["file", "deep"].map(|name| put::file(&volumes, name, "")).into_iter().chain([volumes.join("dir")]);
    let volumes: Vec<_> = mounts.zip(["file", "a/b/c/deep", "dir"]).collect();
    let named = volumes.iter().map(|(from, to)| format!("-v={}:/volumes/{to}", from.display()));
    let named: Vec<_> = named.collect();
    let mut run = [&["run", "--rm"], &OPTIONS[..]].concat();
    run.extend(named.iter().map(String::as_str));
    run.push("--rootfs");
    let rootfs = format!("{}:O", rootfs.display());
    run.extend([rootfs.as_str(), "sh", "-c", LOOK]);
    assert_eq!(podman.run(&run), format!("{MANY}\nmore\n"));
    for file in ["dir/new", "file", "deep"] {
        assert_eq!(fs::read_to_string(podman.setup.path("volumes").join(file)).unwrap(), "more\n", "{file}");
    }
}

/// Prepares a system as a user finds it: a device that the user may open, ids for containers, and
/// places that the user may enter. Processes that podman leaves end with the namespace. The
/// arguments are the setup and the program.
const AS_A_USER: &str = r#"
setup=$1 program=$2
mount --make-rshared /
mknod -m 666 "$setup/fuse" c 10 229
mount --bind "$setup/fuse" /dev/fuse
echo games:100000:65536 > "$setup/ids"
mount --bind "$setup/ids" /etc/subuid
mount --bind "$setup/ids" /etc/subgid
cp "$program" "$setup/overlayfs-fuse"
export HOME="$setup/home" XDG_RUNTIME_DIR="$setup/home/run"
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
' bash "$setup" "$3"
"#;

/// The daemon runs in the user's namespace, where the user is root of some ids.
#[test]
fn a_user_builds_and_runs_a_container() {
    let setup = Setup::new();
    mode(setup.root(), 0o755);
    root_filesystem(&setup);
    fs::write(setup.dir("context").join("Containerfile"), RECIPE).unwrap();
    let mut command = run::command("unshare");
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-euc", AS_A_USER, "bash"]);
    let output = run::finish(command.arg(setup.root()).args([PROGRAM, CHECKS]));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}{out}");
    assert_eq!(out, "from below\nmore\n".repeat(2));
}
