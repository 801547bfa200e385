//! The place of the benchmark: a filesystem in a file, the layers in it, and one mount at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::report::Measurement;
use crate::rows::{self, Row, Size};

/// The limit of the size of that file. The file takes only the space of written data.
const IMAGE: u64 = 24 << 30;
/// The limit of the time until a mount is visible.
const PATIENCE: Duration = Duration::from_secs(10);

/// A subject of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    Bare,
    Kernel,
    FuseOverlayfs,
    Ours,
}

impl Subject {
    pub const ALL: [Subject; 4] = [Subject::Bare, Subject::Kernel, Subject::FuseOverlayfs, Subject::Ours];

    pub fn name(self) -> &'static str {
        match self {
            Subject::Bare => "bare",
            Subject::Kernel => "kernel",
            Subject::FuseOverlayfs => "fuse-overlayfs",
            Subject::Ours => "ours",
        }
    }
}

pub struct Setup {
    /// The mount point of the filesystem.
    top: PathBuf,
    image: PathBuf,
    size: Size,
}

/// The directory that a row works on. The drop unmounts it.
struct View {
    path: PathBuf,
    mounted: bool,
    daemon: Option<Child>,
}

impl Setup {
    /// Makes the filesystem with the contents of the lower layers.
    pub fn new(size: Size) -> Result<Self, String> {
        let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (image, top) = (base.join("mounts.ext4"), base.join("mounts"));
        fs::create_dir_all(&top).map_err(|error| format!("{} cannot be made: {error}.", top.display()))?;
        let file = fs::File::create(&image).and_then(|file| file.set_len(IMAGE));
        file.map_err(|error| format!("{} cannot be made: {error}.", image.display()))?;
        let setup = Self { top, image, size };
        call(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0"]).arg(&setup.image))?;
        call(Command::new("mount").args(["-o", "loop"]).arg(&setup.image).arg(&setup.top))?;
        rows::make_lower(&setup.lower(), size).map_err(|error| format!("The lower layer cannot be made: {error}."))?;
        Ok(setup)
    }

    fn lower(&self) -> PathBuf {
        self.top.join("lower")
    }

    /// Runs a row once on new directories. Only the work itself is timed.
    pub fn measure(&self, subject: Subject, row: &Row) -> Result<Measurement, String> {
        let view = self.ready(subject, row)?;
        let start = Instant::now();
        (row.work)(&view.path, self.size).map_err(|error| failure(subject, row, error))?;
        let seconds = start.elapsed().as_secs_f64();
        Ok(Measurement { seconds, peak: view.peak() })
    }

    /// Runs a row once, and counts the system calls of the daemon. Returns None without a daemon.
    pub fn count(&self, subject: Subject, row: &Row) -> Result<Option<u64>, String> {
        let view = self.ready(subject, row)?;
        let Some(daemon) = &view.daemon else { return Ok(None) };
        let strace = Strace::attach(daemon.id(), &self.top.join("strace"))?;
        (row.work)(&view.path, self.size).map_err(|error| failure(subject, row, error))?;
        strace.finish().map(Some)
    }

    /// Returns a view with everything prepared for a row.
    fn ready(&self, subject: Subject, row: &Row) -> Result<View, String> {
        let work = self.top.join("work");
        if work.exists() {
            fs::remove_dir_all(&work).map_err(|error| format!("{} cannot be removed: {error}.", work.display()))?;
        }
        let lowers = self.lowers(row)?;
        for name in ["upper", "work", "view"] {
            let made = fs::create_dir_all(work.join(name));
            made.map_err(|error| format!("A directory for {} cannot be made: {error}.", row.name))?;
        }
        let failed = |error| failure(subject, row, error);
        // The bare filesystem has no layers, so all data are in the view.
        let upper = if subject == Subject::Bare { "view" } else { "upper" };
        if subject == Subject::Bare {
            for lower in &lowers {
                call(Command::new("cp").arg("-a").arg(lower.join(".")).arg(work.join(upper)))?;
            }
        }
        (row.upper)(&work.join(upper), self.size).map_err(failed)?;
        let mut view = self.view(subject, &lowers, &work)?;
        (row.before)(&view.path, self.size).map_err(failed)?;
        if row.cold {
            drop(view);
            view = self.view(subject, &lowers, &work)?;
        }
        rustix::fs::sync();
        if row.cold {
            fs::write("/proc/sys/vm/drop_caches", "3").map_err(failed)?;
        }
        Ok(view)
    }

    /// Returns the lower layers of a row: one, or one for each of its pieces.
    fn lowers(&self, row: &Row) -> Result<Vec<PathBuf>, String> {
        let part = self.lower().join(row.part);
        if !row.pieces {
            return Ok(vec![part]);
        }
        let names = fs::read_dir(&part).map_err(|error| format!("{} cannot be read: {error}.", part.display()))?;
        Ok(names.flatten().map(|entry| entry.path()).collect())
    }

    /// Mounts the layers. For the bare filesystem there is nothing to mount.
    fn view(&self, subject: Subject, lowers: &[PathBuf], work: &Path) -> Result<View, String> {
        let path = work.join("view");
        if subject == Subject::Bare {
            return Ok(View { path, mounted: false, daemon: None });
        }
        let list: Vec<_> = lowers.iter().map(|lower| lower.display().to_string()).collect();
        let work = work.display();
        let options = format!("lowerdir={},upperdir={work}/upper,workdir={work}/work", list.join(":"));
        let daemon = match subject {
            Subject::Kernel => {
                call(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&path))?;
                None
            }
            Subject::FuseOverlayfs => Some(start("fuse-overlayfs", &options, &path)?),
            _ => Some(start(env!("CARGO_BIN_EXE_overlayfs-fuse"), &options, &path)?),
        };
        let view = View { path, mounted: true, daemon };
        let start = Instant::now();
        while !is_mounted(&view.path) {
            if start.elapsed() > PATIENCE {
                return Err(format!("{} is not mounted in time.", subject.name()));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(view)
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(&self.top).status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.top.display());
        }
        if let Err(error) = fs::remove_file(&self.image) {
            eprintln!("{} is still there: {error}", self.image.display());
        }
    }
}

impl View {
    /// Returns the peak memory of the daemon in KiB, or 0 without a daemon.
    fn peak(&self) -> u64 {
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

/// A count of the system calls of a process and its threads.
struct Strace {
    child: Child,
    output: PathBuf,
}

impl Strace {
    fn attach(pid: u32, output: &Path) -> Result<Self, String> {
        let mut command = Command::new("strace");
        command.args(["-f", "-q", "-c", "-U", "calls,name", "-o"]).arg(output).args(["-p", &pid.to_string()]);
        let child = command.stderr(Stdio::null()).spawn();
        let child = child.map_err(|error| format!("strace, which counts system calls, cannot be started: {error}."))?;
        let is_traced = |task: fs::DirEntry| {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        };
        let start = Instant::now();
        while !fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.flatten().all(is_traced)) {
            if start.elapsed() > PATIENCE {
                return Err("strace does not attach to the daemon.".to_owned());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(Self { child, output: output.to_owned() })
    }

    /// Ends the count and returns the number of calls.
    fn finish(mut self) -> Result<u64, String> {
        let failed = |error| format!("The count of system calls cannot be had: {error}.");
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::INT)
            .map_err(|error| failed(error.into()))?;
        self.child.wait().map_err(failed)?;
        let text = fs::read_to_string(&self.output).map_err(failed)?;
        if text.is_empty() {
            return Ok(0);
        }
        let total = text.lines().rev().find_map(|line| line.trim().strip_suffix("total")?.trim().parse().ok());
        total.ok_or_else(|| "strace tells no total.".to_owned())
    }
}

fn failure(subject: Subject, row: &Row, error: std::io::Error) -> String {
    format!("{} fails on {}: {error}.", row.name, subject.name())
}

fn start(program: &str, options: &str, point: &Path) -> Result<Child, String> {
    let mut command = Command::new(program);
    command.args(["-f", "-o", options]).arg(point).stdin(Stdio::null());
    command.spawn().map_err(|error| format!("{program} cannot be started: {error}."))
}

/// Runs a program to its end.
fn call(command: &mut Command) -> Result<(), String> {
    match command.stdout(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?} fails: {status}.")),
        Err(error) => Err(format!("{command:?} cannot be run: {error}.")),
    }
}

fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == point.to_str())
}
