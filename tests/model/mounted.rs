//! A mount of `overlayfs-fuse`, whose owner takes snapshots, restarts it, and kills its process
//! while programs use it.
//!
//! The variable OVERLAYFS_FUSE, which `scripts/suites` sets, names the program. Without it the
//! program is built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::layer::Written;
use crate::run::Stacked;

/// The timeout for the start and the end of a mount.
const PATIENCE: Duration = Duration::from_secs(120);

/// What happens to a mount while programs use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Snapshots and restarts, in turn. Over io_uring there are no restarts.
    Snapshots,
    /// Kills, after which the mount comes back, and some snapshots.
    Kills,
    /// Restarts, but none over io_uring. While no program does anything there are snapshots and
    /// rollbacks.
    Rollbacks,
}

/// A mount. The drop unmounts, and panics if the program has failed.
pub struct Mounted {
    point: PathBuf,
    /// The directory for snapshots.
    chain: PathBuf,
    fate: Fate,
    /// Whether requests come over io_uring.
    is_ring: bool,
    daemon: Child,
    /// The number of disturbances, and the process that serves now.
    disturbed: Mutex<(u32, i32)>,
}

impl Mounted {
    /// Mounts layers, with snapshots of the upper one.
    pub fn new(stacked: &Stacked<'_>, written: Written, fate: Fate) -> Self {
        let (point, chain) = (stacked.upper.with_file_name("mount"), stacked.upper.with_added_extension("snapshots"));
        let work = stacked.upper.with_added_extension("work");
        for dir in [&point, &chain, &work] {
            fs::create_dir_all(dir).unwrap();
        }
        let lowers: Vec<_> = stacked.lowers.iter().map(|path| path.to_str().unwrap()).collect();
        let (lowers, upper) = (lowers.join(":"), stacked.upper.display());
        let mut options = format!("lowerdir={lowers},upperdir={upper},snapshots={}", chain.display());
        if written == Written::Kernel {
            options += &format!(",workdir={},format=kernel", work.display());
        }
        // Over io_uring no other process can take the mount over.
        let is_ring = fate != Fate::Kills && fs::read_to_string(RING).is_ok_and(|offer| offer.trim() == "Y");
        options += if is_ring { ",io_uring=on" } else { ",io_uring=off" };
        options += if fate == Fate::Kills { ",comeback" } else { "" };
        let mut command = Command::new(program());
        let daemon = command.args(["-f", "-o", &options]).arg(&point).stdin(Stdio::null()).spawn().unwrap();
        let disturbed = Mutex::new((0, daemon.id() as i32));
        let mut mounted = Self { point, chain, fate, is_ring, daemon, disturbed };
        wait("the mount is there", || {
            assert_eq!(mounted.daemon.try_wait().unwrap(), None, "overlayfs-fuse -o {options} ended at once");
            rustix::fs::statfs(&mounted.point).unwrap().f_type == FUSE_SUPER_MAGIC
        });
        mounted
    }

    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Does what programs must not notice.
    pub fn disturb(&self) {
        let mut disturbed = self.disturbed.lock().unwrap();
        let (count, process) = &mut *disturbed;
        *count += 1;
        match (self.fate, *count % 4) {
            (Fate::Snapshots, 0 | 2) if !self.is_ring => self.restart(),
            (Fate::Snapshots, _) => drop(self.snapshot()),
            (Fate::Rollbacks, _) if self.is_ring => {}
            (Fate::Rollbacks, _) => self.restart(),
            (Fate::Kills, 0) => {
                // A mount does not come back from a snapshot, but from a restart after it.
                self.snapshot();
                self.restart();
                *process = self.process();
            }
            (Fate::Kills, _) => {
                thread::sleep(Duration::from_millis(u64::from(*count * 13 % 60)));
                let killed = Pid::from_raw(*process).unwrap();
                rustix::process::kill_process(killed, Signal::KILL).unwrap();
                *process = self.process();
            }
        }
    }

    /// Takes a snapshot. Returns whether there is one: it may be refused for the sake of a file.
    pub fn snapshot(&self) -> bool {
        let (succeeded, said) = self.command("snapshot");
        assert!(succeeded || said.contains("has another name"), "overlayfs-fuse snapshot: {said}");
        succeeded
    }

    fn restart(&self) {
        let (succeeded, said) = self.command("restart");
        assert!(succeeded, "overlayfs-fuse restart: {said}");
    }

    /// Goes back to the last snapshot, and removes the layer with the changes since then.
    pub fn roll_back(&self) {
        let left = self.topmost();
        let (succeeded, said) = self.command("rollback");
        assert!(succeeded, "overlayfs-fuse rollback: {said}");
        fs::remove_dir_all(self.chain.join(left.to_string())).unwrap();
    }

    /// Returns the number of the topmost layer.
    pub fn topmost(&self) -> u64 {
        let names = fs::read_dir(&self.chain).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter_map(|name| name.to_str()?.parse().ok()).max().unwrap_or_default()
    }

    /// Returns the process that serves.
    fn process(&self) -> i32 {
        let (succeeded, said) = self.command("status");
        let line = said.lines().find_map(|line| line.strip_prefix("pid")).filter(|_| succeeded);
        line.unwrap_or_else(|| panic!("overlayfs-fuse status: {said}")).trim().parse().unwrap()
    }

    /// Runs a command. Returns whether it succeeded, and what it printed.
    fn command(&self, word: &str) -> (bool, String) {
        let output = Command::new(program()).arg(word).arg(&self.point).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
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
        let is_killed = self.fate == Fate::Kills;
        assert!(is_killed || ended.is_some_and(|status| status.success()), "overlayfs-fuse: {ended:?}");
    }
}

/// The kernel's parameter that offers FUSE over io_uring to new mounts.
const RING: &str = "/sys/module/fuse/parameters/enable_uring";
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
