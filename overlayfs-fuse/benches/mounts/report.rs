//! The results: medians and ratios, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::rows::Row;
use crate::subject::Subject;

/// The result of one row on one subject, in one round.
pub struct Measurement {
    pub seconds: f64,
    /// The peak memory of the daemon in KiB, or 0 without a daemon.
    pub peak: u64,
}

/// The results of one row.
pub struct Line {
    pub name: &'static str,
    pub goal: f64,
    /// One for each subject, in the order of [`Subject::ALL`].
    pub results: Vec<Summary>,
}

/// The results of one row on one subject.
pub struct Summary {
    pub subject: Subject,
    /// The median, the least and the most, in seconds.
    pub median: f64,
    pub least: f64,
    pub most: f64,
    /// The ratio of the median to that of the bare filesystem.
    pub ratio: f64,
    /// The peak memory in KiB.
    pub peak: u64,
    /// The system calls of the daemon for each operation, or None without a daemon.
    pub calls: Option<f64>,
}

pub struct Report {
    pub lines: Vec<Line>,
}

impl Report {
    pub fn new(
        rows: &[Row],
        times: &BTreeMap<(usize, Subject), Vec<f64>>,
        memory: &BTreeMap<(usize, Subject), u64>,
        calls: &BTreeMap<(usize, Subject), f64>,
    ) -> Self {
        let line = |(index, row): (usize, &Row)| {
            let of = |subject| {
                let mut sorted = times.get(&(index, subject)).cloned().unwrap_or_default();
                sorted.sort_by(f64::total_cmp);
                sorted
            };
            let bare = median(&of(Subject::Bare));
            let summary = |subject| {
                let sorted = of(subject);
                let median = median(&sorted);
                let (least, most) =
                    (sorted.first().copied().unwrap_or(f64::NAN), sorted.last().copied().unwrap_or(f64::NAN));
                let peak = memory.get(&(index, subject)).copied().unwrap_or_default();
                let calls = calls.get(&(index, subject)).copied();
                Summary { subject, median, least, most, ratio: median / bare, peak, calls }
            };
            Line { name: row.name, goal: row.goal, results: Subject::ALL.map(summary).into() }
        };
        Self { lines: rows.iter().enumerate().map(line).collect() }
    }

    /// Returns a table in Markdown.
    pub fn table(&self) -> String {
        let columns = [
            "work",
            "bare, ms",
            "kernel",
            "kernel, all options",
            "fuse-overlayfs",
            "ours",
            "spread",
            "io_uring",
            "spread",
            "floor",
            "floor, io_uring",
            "goal",
            "met",
            "calls, f.-o.",
            "calls, ours",
        ];
        let mut text = format!("| {} |\n|{}\n", columns.join(" | "), " --- |".repeat(columns.len()));
        for Line { name, goal, results } in &self.lines {
            let [bare, kernel, kernel_all, fuse, ours, ring, floor, floor_ring] = results.as_slice() else { continue };
            let spread = |of: &Summary| format!("{:.2}–{:.2}", of.least / bare.median, of.most / bare.median);
            let (spread, spread_ring) = (spread(ours), spread(ring));
            let met = if ours.ratio <= *goal { "yes" } else { "no" };
            let calls = |calls: Option<f64>| calls.map_or_else(String::new, |calls| format!("{calls:.2}"));
            let (calls_fuse, calls_ours) = (calls(fuse.calls), calls(ours.calls));
            let (bare, kernel, kernel_all) = (bare.median * 1e3, kernel.ratio, kernel_all.ratio);
            let (fuse, ours, ring) = (fuse.ratio, ours.ratio, ring.ratio);
            let (floor, floor_ring) = (floor.ratio, floor_ring.ratio);
            let _ = writeln!(
                text,
                "| {name} | {bare:.1} | {kernel:.2} | {kernel_all:.2} | {fuse:.2} | **{ours:.2}** | {spread} | **{ring:.2}** | {spread_ring} | {floor:.2} | {floor_ring:.2} | {goal} | {met} | {calls_fuse} | {calls_ours} |"
            );
        }
        let peak = |subject: Subject| {
            let all = self.lines.iter().flat_map(|line| &line.results);
            all.filter(|result| result.subject == subject).map(|result| result.peak).max().unwrap_or_default() as f64
                / 1024.0
        };
        let walk = |subject: Subject| {
            let line = self.lines.iter().find(|line| line.name.starts_with("walk"));
            let found = line.and_then(|line| line.results.iter().find(|result| result.subject == subject));
            found.map(|result| format!("{:.0} after the walk, ", result.peak as f64 / 1024.0)).unwrap_or_default()
        };
        for subject in [Subject::FuseOverlayfs, Subject::Ours] {
            let (walk, most) = (walk(subject), peak(subject));
            let _ = writeln!(text, "\nMemory of {}, MiB: {walk}{most:.0} at most.", subject.name());
        }
        text
    }

    /// Returns all numbers as JSON: seconds, ratios, and KiB.
    pub fn json(&self) -> String {
        let result = |result: &Summary| {
            let Summary { subject, median, least, most, ratio, peak, calls } = result;
            let calls = calls.map_or("null".to_owned(), |calls| calls.to_string());
            format!(
                r#"{{"subject": "{}", "median": {median}, "least": {least}, "most": {most}, "ratio": {ratio}, "peak_kib": {peak}, "calls": {calls}}}"#,
                subject.name()
            )
        };
        let line = |line: &Line| {
            let measured = line.results.iter().filter(|result| !result.median.is_nan());
            let results: Vec<_> = measured.map(result).collect();
            format!(r#"  {{"row": "{}", "goal": {}, "results": [{}]}}"#, line.name, line.goal, results.join(", "))
        };
        let lines: Vec<_> = self.lines.iter().map(line).collect();
        format!("[\n{}\n]\n", lines.join(",\n"))
    }
}

fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}
