//! A real distribution as an image. mmdebstrap makes a small Debian; it is imported, changed by its
//! own package manager in a mount, exported, and imported again. podman loads and runs it. Each
//! shows the same tree.
//!
//! Needs root, /dev/fuse, the archive of Debian in the network, and Debian's packages mmdebstrap,
//! podman and runc; fails without them.

#[path = "suite/layer.rs"]
mod layer;
#[expect(dead_code, reason = "the other suite with podman uses the rest")]
#[path = "suite/podman.rs"]
mod podman;
#[path = "suite/run.rs"]
mod run;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use test_common::Setup;

use layer::layer;
use podman::{PROGRAM, Podman, finish};

/// A package manager with what it needs, and packages to remove and to divert files of. Without
/// documentation the archive has 31 MB.
const PACKAGES: &str =
    "base-files,base-passwd,coreutils,dash,diffutils,dpkg,grep,gzip,iputils-ping,libc-bin,libcap2-bin,sed,tar";

/// The work in the mount.
const WORK: &str = "\
set -e
dpkg --purge iputils-ping
dpkg-divert --rename --divert /usr/bin/sort.real --add /usr/bin/sort
ln -s sort.real /usr/bin/sort
mv /usr/share/base-files /usr/share/renamed
echo changed >> /etc/profile
chown 7:8 /usr/bin/tac
chmod 4711 /usr/bin/tac
setcap cap_net_raw+ep /usr/bin/tee
ln /usr/bin/cut /usr/bin/cut2
";

/// Lists a tree: kind, mode, owner, size, names and time of each object, contents, capabilities.
fn listed(root: &Path) -> String {
    let script = "\
cd \"$1\"
find . -mindepth 1 ! -type d -printf '%P %y %m %U:%G %s %n %Ts %l\\n' -o -printf '%P %y %m %U:%G %Ts\\n' | sort
find . -type f -exec md5sum {} + | sort -k 2
getcap -r . | sort";
    finish(run::command("sh").args(["-c", script, "sh"]).arg(root))
}

/// Mounts layers, calls `look` with the mount, and unmounts it.
fn mounted<T>(setup: &Setup, layers: &str, look: impl FnOnce(&Path) -> T) -> T {
    let merged = setup.dir("merged");
    finish(run::command(PROGRAM).args(["-o", layers]).arg(&merged));
    let seen = look(&merged);
    finish(run::command("umount").arg(&merged));
    seen
}

/// Returns the paths that a listing of changes says are gone, as podman writes them. A path that a
/// rename has left may have another object.
fn removed(changes: &str) -> BTreeSet<String> {
    let (mut gone, mut there) = (BTreeSet::new(), BTreeSet::new());
    for line in changes.lines() {
        let change: serde_json::Value = serde_json::from_str(line).unwrap();
        let path = |key: &str| change[key].as_str().map(|path| format!("/{path}"));
        match change["change"].as_str() {
            Some("removed") => gone.extend(path("path")),
            _ => there.extend(path("path")),
        }
        gone.extend(path("from"));
    }
    gone.difference(&there).cloned().collect()
}

#[test]
fn a_debian_goes_through_import_mount_export_and_podman() {
    let podman = Podman { setup: Setup::new() };
    let setup = &podman.setup;
    let path = |name: &str| setup.path(name).to_str().unwrap().to_owned();
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).expect("this system is Debian");
    let base = path("base.tar");
    let mut bootstrap = run::command("mmdebstrap");
    bootstrap.args(["--quiet", "--variant=custom", "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]);
    for folder in ["doc", "locale", "man"] {
        bootstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{folder}/*"));
    }
    finish(bootstrap.arg(format!("--include={PACKAGES}")).args([suite, &base]));

    let imported = layer(&["import", &base, &path("layers")]);
    let lower = imported.lines().next().unwrap();
    let [upper, image] = ["upper", "image"].map(path);
    setup.dir("upper");
    let layers = format!("lowerdir={lower},upperdir={upper}");
    let expected = mounted(setup, &layers, |merged| {
        finish(run::command("chroot").arg(merged).args(["/bin/sh", "-c", WORK]));
        listed(merged)
    });
    assert!(expected.contains("usr/bin/tee cap_net_raw=ep"));

    let named = ["--lower", lower, "--upper", &upper];
    layer(&[&["export"], &named[..], &["--oci-layout", &image]].concat());
    let again = layer(&["import", &image, &path("again")]);
    let again = format!("ro,{}", again.lines().last().unwrap());
    assert_eq!(mounted(setup, &again, listed), expected);

    podman.run(&["load", "-i", "image"]);
    let shown = podman.run(&["image", "mount", "localhost/image"]);
    assert_eq!(listed(Path::new(shown.trim())), expected);
    podman.run(&["image", "unmount", "localhost/image"]);
    let verify = ["sh", "-c", "dpkg --verify; dpkg --list | grep -c ^ii; sort --version | head -n 1"];
    let said = podman.in_container("localhost/image", &verify);
    assert!(said.contains("missing     /usr/share/base-files") && said.contains("coreutils"), "{said}");
    assert!(!said.contains("iputils"), "{said}");
    let told: BTreeSet<_> = podman
        .run(&["image", "diff", "localhost/image"])
        .lines()
        .filter_map(|line| line.strip_prefix("D ").map(str::to_owned))
        .collect();
    let changes = layer(&[&["diff", "--json"], &named[..]].concat());
    assert_eq!(told, removed(&changes), "{changes}");
}
