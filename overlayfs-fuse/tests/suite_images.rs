//! Images that `overlayfs-layer` exports and imports, and the programs that use them. podman loads
//! and runs an export, skopeo, buildah and umoci read it, and an image that podman built becomes
//! lower layers. Each shows the tree that the mount shows.
//!
//! Needs root, /dev/fuse, and Debian's packages buildah, busybox-static, podman, runc, skopeo and
//! umoci; fails without them.

#[path = "suite/run.rs"]
mod run;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use overlayfs::layer_tools::options;
use test_common::{Setup, mode, owner, put, times};

const PROGRAM: &str = env!("CARGO_BIN_EXE_overlayfs-fuse");

/// The options of a container. Its limits are below those of the session, which it may not raise.
const CONTAINER: [&str; 4] = ["--rm", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"];

/// Lists what the test made: kind and mode, owner, names, size, time, name; then contents.
const LIST: &str = "\
cd /; find bin data -exec stat -c '%A %u:%g %h %s %Y %n' {} + | sed 's/^\\(d[^ ]* [^ ]*\\) [^ ]* [^ ]*/\\1/' | sort -k 5
find data -type f | sort | while read -r file; do md5sum \"$file\"; done; readlink data/symlink";

/// Each step changes the result of the one before.
const RECIPE: &str = "\
FROM localhost/latest
RUN rm /data/kept && mkdir /data/made && echo built > /data/made/file && mv /data/made /data/moved
RUN rm -r /data/moved && mkdir /data/moved && ln /data/new /data/moved/new && chmod 2711 /data/moved
";

/// Runs `overlayfs-layer`, and returns what it prints.
fn layer(words: &[&str]) -> String {
    let command = options::Command::parse(words.iter().map(OsString::from)).unwrap_or_else(|error| panic!("{error}"));
    let options::Command::Run { tool, .. } = command else { panic!("{words:?} is no command") };
    let mut out = Vec::new();
    tool.run(&mut out, &()).unwrap_or_else(|error| panic!("{words:?}: {error}"));
    String::from_utf8(out).unwrap()
}

/// Runs a command, and returns what it prints. Panics if it fails.
fn done(command: &mut Command) -> String {
    let output = run::finish(command);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} fails:\n{out}{err}");
    out.into_owned()
}

/// Layers, an image of them, and a storage for containers.
struct Images {
    setup: Setup,
}

impl Images {
    /// Makes a lower layer with a shell, and an upper layer that changes it.
    fn new() -> Self {
        let images = Images { setup: Setup::new() };
        let [lower, upper] = ["lower", "upper"].map(|name| images.setup.dir(name));
        for dir in ["bin", "dev", "etc", "proc", "sys", "tmp", "data/replaced", "data/gone"] {
            put::dir(&lower, dir);
        }
        fs::copy("/bin/busybox", lower.join("bin/busybox")).expect("the package busybox-static is installed");
        let applets =
            ["sh", "find", "stat", "sort", "sed", "md5sum", "readlink", "rm", "mkdir", "mv", "ln", "chmod", "echo"];
        for name in applets {
            symlink("busybox", lower.join("bin").join(name)).unwrap();
        }
        for file in ["kept", "old", "replaced/before", "gone/file"] {
            put::file(&lower, &format!("data/{file}"), file);
        }
        put::whiteout(&upper, "data", "old");
        put::whiteout(&upper, "data", "gone");
        put::opaque(&upper, "data/replaced");
        put::file(&upper, "data/replaced/after", "after");
        put::file(&upper, "data/new", vec![b'n'; 300_000]);
        put::link(&upper, "data/new", "data/replaced/link");
        put::symlink(&upper, "data/symlink", "new");
        fs::File::create(put::file(&upper, "data/holes", "")).unwrap().set_len(1 << 20).unwrap();
        let long = put::file(&upper, &format!("data/{}/{}", "d".repeat(90), "f".repeat(90)), "long");
        owner(&upper.join("data/replaced"), 7, 8);
        mode(&upper.join("data/replaced"), 0o1770);
        mode(&upper.join("data/new"), 0o4711);
        for path in [long.as_path(), &upper.join("data/replaced"), &upper.join("data/symlink"), &upper.join("data")] {
            times(path, (1, 0), (1_000_000_000, 0));
        }
        images
    }

    fn path(&self, name: &str) -> String {
        self.setup.path(name).to_str().unwrap().to_owned()
    }

    /// Exports the layers as the image `image:one`.
    fn export(&self) {
        let [lower, upper, image] = ["lower", "upper", "image:one"].map(|name| self.path(name));
        layer(&["export", "--lower", &lower, "--upper", &upper, "--oci-layout", &image]);
    }

    fn podman(&self, arguments: &[&str]) -> String {
        let mut command = self.stored("podman");
        command.arg("--tmpdir").arg(self.setup.dir("tmp")).args(["--cgroup-manager=cgroupfs", "--runtime=runc"]);
        done(command.args(arguments))
    }

    /// Returns a command of podman or buildah with the storage of this test.
    fn stored(&self, name: &str) -> Command {
        let mut command = run::command(name);
        for (option, name) in [("--root", "root"), ("--runroot", "run")] {
            command.arg(option).arg(self.setup.dir(name));
        }
        command.args(["--storage-driver=overlay", &format!("--storage-opt=overlay.mount_program={PROGRAM}")]);
        command.current_dir(self.setup.root());
        command
    }

    /// Returns the listing of a container of an image.
    fn in_container(&self, image: &str) -> String {
        self.podman(&[&["run"], &CONTAINER[..], &[image, "sh", "-c", LIST]].concat())
    }

    /// Returns the listing of a mount of the layers that the options name.
    fn mounted(&self, layers: &str) -> String {
        let merged = self.setup.dir("merged");
        done(run::command(PROGRAM).args(["-o", layers]).arg(&merged));
        let listing = listed(&merged);
        done(run::command("umount").arg(&merged));
        listing
    }

    /// Returns the listing of the layers that were exported.
    fn expected(&self) -> String {
        let listing = self.mounted(&format!("ro,lowerdir={}:{}", self.path("upper"), self.path("lower")));
        assert!(listing.contains(" data/replaced/after") && !listing.contains(" data/old"), "{listing}");
        listing
    }
}

/// Returns the listing of a root directory.
fn listed(root: &Path) -> String {
    done(run::command("chroot").arg(root).args(["/bin/sh", "-c", LIST]))
}

impl Drop for Images {
    /// podman leaves its storage mounted on itself.
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below =
            |line: &&str| line.split(' ').nth(1).is_some_and(|point| Path::new(point).starts_with(self.setup.root()));
        for line in mounts.lines().filter(below).collect::<Vec<_>>().into_iter().rev() {
            run::finish(run::command("umount").arg("-l").args(line.split(' ').nth(1)));
        }
    }
}

#[test]
fn podman_loads_and_runs_an_export() {
    let images = Images::new();
    images.export();
    let expected = images.expected();
    // podman calls the image after its path, which must not have capitals.
    images.podman(&["load", "-i", "image"]);
    assert_eq!(images.in_container("localhost/image"), expected);
    // podman writes the layers anew, with the same digests.
    images.podman(&["save", "--format=oci-dir", "-o", &images.path("saved"), "localhost/image"]);
    let [first, saved] =
        ["image:one", "saved"].map(|image| layer(&["import", &images.path(image), &images.path("into")]));
    assert_eq!(first, saved);
    assert_eq!(images.mounted(&format!("ro,{}", saved.lines().last().unwrap())), expected);
}

#[test]
fn skopeo_buildah_and_umoci_read_an_export() {
    let images = Images::new();
    images.export();
    let expected = images.expected();
    let image = images.path("image:one");
    done(run::command("umoci").args(["unpack", "--image", &image, &images.path("bundle")]));
    assert_eq!(listed(&images.setup.path("bundle/rootfs")), expected, "umoci");
    done(run::command("skopeo").args(["copy", &format!("oci:{image}"), &format!("dir:{}", images.path("copied"))]));

    let container = done(images.stored("buildah").args(["from", "oci:image:one"]));
    let mounted = done(images.stored("buildah").args(["mount", container.trim()]));
    assert_eq!(listed(Path::new(mounted.trim())), expected, "buildah");
    done(images.stored("buildah").args(["rm", container.trim()]));
}

/// An image that podman built on an export becomes lower layers, and an upper layer on them a
/// further layer of the image.
#[test]
fn an_image_of_podman_becomes_layers_and_an_image_again() {
    let images = Images::new();
    images.export();
    images.podman(&["load", "-i", "image"]);
    images.podman(&["tag", "localhost/image", "localhost/latest"]);
    fs::write(images.setup.dir("context").join("Containerfile"), RECIPE).unwrap();
    images.podman(&["build", "--isolation=chroot", CONTAINER[2], "--layers", "-t", "built", "context"]);
    let expected = images.in_container("localhost/built");
    assert!(expected.contains("data/moved/new") && !expected.contains("data/kept"), "{expected}");
    images.podman(&["save", "--format=oci-dir", "-o", &images.path("saved"), "localhost/built"]);
    let imported = layer(&["import", &images.path("saved"), &images.path("into")]);
    let lowers = imported.lines().last().unwrap();
    assert_eq!(images.mounted(&format!("ro,{lowers}")), expected);

    // A change of the mount goes on top of the image.
    let changes: PathBuf = images.setup.dir("changes");
    put::whiteout(&changes, "data", "moved");
    put::file(&changes, "data/last", "last");
    let (upper, saved, again) = (images.path("changes"), images.path("saved"), images.path("again:two"));
    layer(&["export", "-o", lowers, "--upper", &upper, "--oci-layout", &again, "--base", &saved]);
    let expected = images.mounted(&format!("ro,lowerdir={upper}:{}", lowers.strip_prefix("lowerdir=").unwrap()));
    let container = done(images.stored("buildah").args(["from", "oci:again:two"]));
    let mounted = done(images.stored("buildah").args(["mount", container.trim()]));
    assert_eq!(listed(Path::new(mounted.trim())), expected);
}
