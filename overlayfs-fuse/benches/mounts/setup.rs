//! The place of the benchmark: a filesystem, the layers in it, and one mount at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::call::call;
use crate::disk::Disk;
use crate::report::Measurement;
use crate::rows::{self, Row, Size};
use crate::subject::{PATIENCE, Subject, View};

/// The objects that the filesystem has room for.
const OBJECTS: u64 = 2_000_000;

pub struct Setup {
    disk: Disk,
    size: Size,
}

impl Setup {
    /// Makes the filesystem with the contents of the lower layers.
    pub fn new(size: Size) -> Result<Self, String> {
        let setup = Self { disk: Disk::new("mounts", OBJECTS)?, size };
        rows::make_lower(&setup.lower(), size).map_err(|error| format!("The lower layer cannot be made: {error}."))?;
        Ok(setup)
    }

    fn lower(&self) -> PathBuf {
        self.disk.top.join("lower")
    }

    /// Runs a row once on new directories. Only the work itself is timed.
    pub fn measure(&self, subject: Subject, row: &Row) -> Result<Measurement, String> {
        let view = self.ready(subject, row)?;
        let seconds = row.work.run(&view.path, self.size).map_err(|error| failure(subject, row, error))?;
        Ok(Measurement { seconds, peak: view.peak() })
    }

    /// Runs a row once, and counts the system calls of the daemon. Returns None without a daemon.
    pub fn count(&self, subject: Subject, row: &Row) -> Result<Option<u64>, String> {
        let view = self.ready(subject, row)?;
        let Some(daemon) = &view.daemon else { return Ok(None) };
        let strace = Strace::attach(daemon.id(), &self.disk.top.join("strace"))?;
        row.work.run(&view.path, self.size).map_err(|error| failure(subject, row, error))?;
        strace.finish().map(Some)
    }

    /// Returns a view with everything prepared for a row.
    fn ready(&self, subject: Subject, row: &Row) -> Result<View, String> {
        let work = self.disk.top.join("work");
        if work.exists() {
            fs::remove_dir_all(&work).map_err(|error| format!("{} cannot be removed: {error}.", work.display()))?;
        }
        let lowers = self.lowers(row)?;
        for name in ["upper", "work", "view"] {
            let made = fs::create_dir_all(work.join(name));
            made.map_err(|error| format!("A directory for {} cannot be made: {error}.", row.name))?;
        }
        let failed = |error| failure(subject, row, error);
        // The bare filesystem and the floor have no layers, so all data are in one directory.
        let upper = if subject == Subject::Bare { "view" } else { "upper" };
        if subject == Subject::Bare || subject.is_floor() {
            for lower in &lowers {
                call(Command::new("cp").arg("-a").arg(lower.join(".")).arg(work.join(upper)))?;
            }
        }
        (row.upper)(&work.join(upper), self.size).map_err(failed)?;
        let mut view = View::new(subject, &lowers, &work)?;
        (row.before)(&view.path, self.size).map_err(failed)?;
        if row.cold {
            drop(view);
            view = View::new(subject, &lowers, &work)?;
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
