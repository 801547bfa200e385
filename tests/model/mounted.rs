//! A mount of `overlayfs-fuse`, whose owner takes snapshots and restarts it while programs use it.
//!
//! The variable OVERLAYFS_FUSE, which `scripts/suites` sets, names the program. Without it the
//! program is built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::run::Stacked;

/// The timeout for the start and the end of a mount.
const PATIENCE: Duration = Duration::from_secs(120);

/// A mount. The drop unmounts, and panics if the program has failed.
pub struct Mounted {
    point: PathBuf,
    daemon: Child,
    disturbed: AtomicUsize,
}

impl Mounted {
    /// Mounts layers, with snapshots of the upper one.
    pub fn new(stacked: &Stacked<'_>) -> Self {
        let (point, chain) = (stacked.upper.with_file_name("mount"), stacked.upper.with_added_extension("snapshots"));
        for dir in [&point, &chain] {
            fs::create_dir_all(dir).unwrap();
        }
        let lowers: Vec<_> = stacked.lowers.iter().map(|path| path.to_str().unwrap()).collect();
        let (lowers, upper, chain) = (lowers.join(":"), stacked.upper.display(), chain.display());
        // A mount over io_uring cannot be restarted.
        let options = format!("lowerdir={lowers},upperdir={upper},snapshots={chain},io_uring=off");
        let mut command = Command::new(program());
        let daemon = command.args(["-f", "-o", &options]).arg(&point).stdin(Stdio::null()).spawn().unwrap();
        let mut mounted = Self { point, daemon, disturbed: AtomicUsize::new(0) };
        wait("the mount is there", || {
            assert_eq!(mounted.daemon.try_wait().unwrap(), None, "overlayfs-fuse -o {options} ended at once");
            rustix::fs::statfs(&mounted.point).unwrap().f_type == FUSE_SUPER_MAGIC
        });
        mounted
    }

    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Takes a snapshot or restarts the mount, in turn. A snapshot may be refused for the sake of a
    /// file.
    pub fn disturb(&self) {
        let command = ["snapshot", "restart"][self.disturbed.fetch_add(1, Ordering::Relaxed) % 2];
        let output = Command::new(program()).arg(command).arg(&self.point).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("has another name"), "overlayfs-fuse {command}: {said}");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = || Command::new("umount").arg(&self.point).stderr(Stdio::null()).status().unwrap().success();
        // A program that another test starts inherits descriptors of this process for a moment.
        wait("it is unmounted", unmounted);
        let mut ended = None;
        wait("the program ends", || {
            ended = self.daemon.try_wait().unwrap();
            ended.is_some()
        });
        assert!(ended.is_some_and(|status| status.success()), "overlayfs-fuse: {ended:?}");
    }
}

/// The type of a FUSE filesystem for statfs(2) (`include/uapi/linux/magic.h`).
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn program() -> &'static str {
    static PROGRAM: LazyLock<String> = LazyLock::new(|| std::env::var("OVERLAYFS_FUSE").unwrap_or_else(|_| build()));
    &PROGRAM
}

/// Builds the program in the folder of this test.
fn build() -> String {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap();
    let profile = if folder.ends_with("debug") { "dev" } else { "release" };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--package", "overlayfs-fuse", "--bins", "--profile", profile]);
    cargo.arg("--target-dir").arg(folder.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(cargo.status().unwrap().success(), "overlayfs-fuse cannot be built");
    folder.join("overlayfs-fuse").into_os_string().into_string().unwrap()
}
