//! The filesystems that are measured, each as a mount of the same layers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::call::call;

/// The limit of the time until a mount is visible.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A subject of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Bare,
    Kernel,
    /// The kernel's, with redirects, copies without content, and the index.
    KernelWithAll,
    FuseOverlayfs,
    Ours,
    /// Ours, with requests over io_uring.
    OverRing,
    /// A mount of an ordinary directory with the transport of ours, and nothing else.
    Floor,
    /// The floor, with requests over io_uring.
    FloorOverRing,
}

impl Subject {
    pub const ALL: [Subject; 8] = [
        Subject::Bare,
        Subject::Kernel,
        Subject::KernelWithAll,
        Subject::FuseOverlayfs,
        Subject::Ours,
        Subject::OverRing,
        Subject::Floor,
        Subject::FloorOverRing,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Subject::Bare => "bare",
            Subject::Kernel => "kernel",
            Subject::KernelWithAll => "kernel, all options",
            Subject::FuseOverlayfs => "fuse-overlayfs",
            Subject::Ours => "ours",
            Subject::OverRing => "ours over io_uring",
            Subject::Floor => "floor",
            Subject::FloorOverRing => "floor over io_uring",
        }
    }

    /// Whether it is a mount without layers.
    pub fn is_floor(self) -> bool {
        matches!(self, Subject::Floor | Subject::FloorOverRing)
    }

    /// Whether its requests come over io_uring.
    pub fn is_over_ring(self) -> bool {
        matches!(self, Subject::OverRing | Subject::FloorOverRing)
    }
}

/// The kernel's parameter that offers FUSE over io_uring to new mounts.
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

/// The parameter, set. The drop sets it back.
pub struct Offer(String);

impl Offer {
    /// Sets the parameter. None: this kernel has none.
    pub fn new() -> Option<Self> {
        let before = fs::read_to_string(PARAMETER).ok()?;
        fs::write(PARAMETER, "1").ok().map(|()| Self(before))
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if let Err(error) = fs::write(PARAMETER, &self.0) {
            eprintln!("{PARAMETER} stays set: {error}");
        }
    }
}

/// A directory that shows layers. The drop unmounts it.
pub struct View {
    pub path: PathBuf,
    mounted: bool,
    pub daemon: Option<Child>,
}

impl View {
    /// Mounts the layers at `work/view`, with `work/upper` and `work/work`. For the bare filesystem
    /// there is nothing to mount.
    pub fn new(subject: Subject, lowers: &[PathBuf], work: &Path) -> Result<Self, String> {
        let path = work.join("view");
        if subject == Subject::Bare {
            return Ok(Self { path, mounted: false, daemon: None });
        }
        let list: Vec<_> = lowers.iter().map(|lower| lower.display().to_string()).collect();
        let shown = work.display();
        let options = format!("lowerdir={},upperdir={shown}/upper,workdir={shown}/work", list.join(":"));
        let daemon = match subject {
            Subject::Kernel => mount_of_kernel(&options, &path)?,
            Subject::KernelWithAll => {
                mount_of_kernel(&format!("{options},redirect_dir=on,metacopy=on,index=on"), &path)?
            }
            Subject::FuseOverlayfs => Some(start("fuse-overlayfs", &options, &path)?),
            _ => {
                let io_uring = if subject.is_over_ring() { "on" } else { "off" };
                Some(match subject.is_floor() {
                    true => start_floor(&work.join("upper"), io_uring, &path)?,
                    false => start_ours(&options, io_uring, &path)?,
                })
            }
        };
        let view = Self { path, mounted: true, daemon };
        let start = Instant::now();
        while !is_mounted(&view.path) {
            if start.elapsed() > PATIENCE {
                return Err(format!("{} is not mounted in time.", subject.name()));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(view)
    }

    /// Returns the peak memory of the daemon in KiB, or 0 without a daemon.
    pub fn peak(&self) -> u64 {
        let Some(daemon) = &self.daemon else { return 0 };
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = call(Command::new("umount").arg(&self.path))
        {
            eprintln!("{error}");
        }
        if let Some(daemon) = &mut self.daemon
            && let Err(error) = daemon.wait()
        {
            eprintln!("A daemon cannot be waited for: {error}.");
        }
    }
}

/// Mounts the kernel's overlayfs, which has no daemon.
fn mount_of_kernel(options: &str, point: &Path) -> Result<Option<Child>, String> {
    call(Command::new("mount").args(["-t", "overlay", "overlay", "-o", options]).arg(point))?;
    Ok(None)
}

fn start_ours(options: &str, io_uring: &str, point: &Path) -> Result<Child, String> {
    start(env!("CARGO_BIN_EXE_overlayfs-fuse"), &format!("{options},io_uring={io_uring}"), point)
}

/// Starts this program as the floor.
fn start_floor(top: &Path, io_uring: &str, point: &Path) -> Result<Child, String> {
    let failed = |error| format!("The floor cannot be started: {error}.");
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command.args(["--floor", io_uring]).args([top, point]).stdin(Stdio::null()).spawn().map_err(failed)
}

fn start(program: &str, options: &str, point: &Path) -> Result<Child, String> {
    let mut command = Command::new(program);
    command.args(["-f", "-o", options]).arg(point).stdin(Stdio::null());
    command.spawn().map_err(|error| format!("{program} cannot be started: {error}."))
}

fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == point.to_str())
}
