//! The rows that fio measures: reads and writes of files in the upper layer.

use std::fs;
use std::io::{Error, Result};
use std::path::Path;
use std::process::Command;

use crate::rows::Size;

/// The most jobs of a row. Each has a file of its own.
const JOBS: u64 = 8;
/// The size of a file in MiB.
const FILE: u64 = 8;

/// A job of fio.
#[derive(Clone, Copy)]
pub struct Job {
    /// The pattern, as fio names it.
    pub kind: &'static str,
    /// The size of a request, as fio writes it.
    pub piece: &'static str,
    /// How many threads do it at once.
    pub jobs: u64,
}

impl Job {
    /// Returns the number of requests for this many MiB.
    pub const fn operations(self, size: u64) -> usize {
        let piece = if self.piece.len() == 2 { 4 << 10 } else { 128 << 10 };
        ((size << 20) / piece) as usize
    }

    /// Reads or writes this many MiB in all. Returns the time of the slowest thread in seconds.
    pub fn run(self, view: &Path, size: u64) -> Result<f64> {
        let Self { kind, piece, jobs } = self;
        let mut command = Command::new("fio");
        command.args(["--name=row", "--ioengine=psync", "--thread", "--invalidate=0", "--randrepeat=1"]);
        command.args(["--filename_format=file-$jobnum", "--output-format=json", "--group_reporting"]);
        command.arg(format!("--directory={}", view.display()));
        command.args([format!("--rw={kind}"), format!("--bs={piece}"), format!("--numjobs={jobs}")]);
        command.args([format!("--size={FILE}m"), format!("--io_size={}m", size / jobs)]);
        let output = command.output()?;
        let said: serde_json::Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| Error::other(format!("fio {kind} says no result ({}): {error}", output.status)))?;
        let work = if kind.ends_with("read") { "read" } else { "write" };
        let time = said["jobs"][0][work]["runtime"].as_f64().filter(|time| *time > 0.0 && output.status.success());
        time.map(|time| time / 1e3).ok_or_else(|| Error::other(format!("fio {kind} fails: {}", output.status)))
    }
}

/// Writes the files in the mount.
pub fn make_files(view: &Path, _: Size) -> Result<()> {
    (0..JOBS).try_for_each(|index| fs::write(view.join(format!("file-{index}")), vec![7; (FILE as usize) << 20]))
}
