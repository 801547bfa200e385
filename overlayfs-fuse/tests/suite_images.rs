//! Images that `overlayfs-layer` exports and imports, and the programs that use them. podman loads
//! and runs an export, skopeo, buildah and umoci read it, and an image that podman built becomes
//! lower layers. Each shows the tree that the mount shows.
//!
//! Needs root, /dev/fuse, and Debian's packages buildah, busybox-static, podman, runc, skopeo and
//! umoci; fails without them.

#[path = "suite/layer.rs"]
mod layer;
#[path = "suite/podman.rs"]
mod podman;
#[path = "suite/run.rs"]
mod run;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use test_common::{Setup, mode, owner, put, times};

use layer::layer;
use podman::{OPTIONS, PROGRAM, Podman, finish};

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

/// Layers, an image of them, and a storage for containers.
struct Images {
    podman: Podman,
}

impl Images {
    /// Makes a lower layer with a shell, and an upper layer that changes it.
    fn new() -> Self {
        let images = Images { podman: Podman { setup: Setup::new() } };
        let [lower, upper] = ["lower", "upper"].map(|name| images.podman.setup.dir(name));
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
        self.podman.setup.path(name).to_str().unwrap().to_owned()
    }

    /// Exports the layers as the image `image:one`.
    fn export(&self) {
        let [lower, upper, image] = ["lower", "upper", "image:one"].map(|name| self.path(name));
        layer(&["export", "--lower", &lower, "--upper", &upper, "--oci-layout", &image]);
    }

    /// Returns the listing of a container of an image.
    fn in_container(&self, image: &str) -> String {
        self.podman.in_container(image, &["sh", "-c", LIST])
    }

    /// Returns the listing of a mount of the layers that the options name.
    fn mounted(&self, layers: &str) -> String {
        let merged = self.podman.setup.dir("merged");
        finish(run::command(PROGRAM).args(["-o", layers]).arg(&merged));
        let listing = listed(&merged);
        finish(run::command("umount").arg(&merged));
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
    finish(run::command("chroot").arg(root).args(["/bin/sh", "-c", LIST]))
}

#[test]
fn podman_loads_and_runs_an_export() {
    let images = Images::new();
    images.export();
    let expected = images.expected();
    // podman calls the image after its path, which must not have capitals.
    images.podman.run(&["load", "-i", "image"]);
    assert_eq!(images.in_container("localhost/image"), expected);
    // podman writes the layers anew, with the same digests.
    images.podman.run(&["save", "--format=oci-dir", "-o", &images.path("saved"), "localhost/image"]);
    let [first, saved] =
        ["image:one", "saved"].map(|image| layer(&["import", &images.path(image), &images.path("into")]));
    assert_eq!(first, saved);
    for format in ["docker-archive", "oci-archive"] {
        let file = images.path(format);
        images.podman.run(&["save", &format!("--format={format}"), "-o", &file, "localhost/image"]);
        let again = layer(&["import", &file, &images.path(&format!("into-{format}"))]);
        assert_eq!(again.replace(&format!("into-{format}"), "into"), saved, "{format}");
    }
    assert_eq!(images.mounted(&format!("ro,{}", saved.lines().last().unwrap())), expected);
}

#[test]
fn skopeo_buildah_and_umoci_read_an_export() {
    let images = Images::new();
    images.export();
    let expected = images.expected();
    let image = images.path("image:one");
    finish(run::command("umoci").args(["unpack", "--image", &image, &images.path("bundle")]));
    assert_eq!(listed(&images.podman.setup.path("bundle/rootfs")), expected, "umoci");
    finish(run::command("skopeo").args(["copy", &format!("oci:{image}"), &format!("dir:{}", images.path("copied"))]));

    let container = images.podman.buildah(&["from", "oci:image:one"]);
    let mounted = images.podman.buildah(&["mount", &container]);
    assert_eq!(listed(Path::new(&mounted)), expected, "buildah");
    images.podman.buildah(&["rm", &container]);
}

/// An image that podman built on an export becomes lower layers, and an upper layer on them a
/// further layer of the image.
#[test]
fn an_image_of_podman_becomes_layers_and_an_image_again() {
    let images = Images::new();
    images.export();
    images.podman.run(&["load", "-i", "image"]);
    images.podman.run(&["tag", "localhost/image", "localhost/latest"]);
    fs::write(images.podman.setup.dir("context").join("Containerfile"), RECIPE).unwrap();
    images.podman.run(&["build", "--isolation=chroot", OPTIONS[1], "--layers", "-t", "built", "context"]);
    let expected = images.in_container("localhost/built");
    assert!(expected.contains("data/moved/new") && !expected.contains("data/kept"), "{expected}");
    images.podman.run(&["save", "--format=oci-dir", "-o", &images.path("saved"), "localhost/built"]);
    let imported = layer(&["import", &images.path("saved"), &images.path("into")]);
    let lowers = imported.lines().last().unwrap();
    assert_eq!(images.mounted(&format!("ro,{lowers}")), expected);

    // A change of the mount goes on top of the image.
    let changes: PathBuf = images.podman.setup.dir("changes");
    put::whiteout(&changes, "data", "moved");
    put::file(&changes, "data/last", "last");
    let (upper, saved, again) = (images.path("changes"), images.path("saved"), images.path("again:two"));
    layer(&["export", "-o", lowers, "--upper", &upper, "--oci-layout", &again, "--base", &saved]);
    let expected = images.mounted(&format!("ro,lowerdir={upper}:{}", lowers.strip_prefix("lowerdir=").unwrap()));
    let container = images.podman.buildah(&["from", "oci:again:two"]);
    let mounted = images.podman.buildah(&["mount", &container]);
    assert_eq!(listed(Path::new(&mounted)), expected);
}
