//! How fast the mount is, beside the bare filesystem, the kernel's overlayfs and fuse-overlayfs.
//!
//! `cargo bench -p overlayfs-fuse --bench mounts -- [--quick] [--calls] [--rounds N] [--rows
//! WORD,WORD] [--json FILE] [--svg FILE]`
//!
//! Every round does every row on every subject, so that whatever else the machine does hits all of
//! them alike. Printed are the medians, as ratios to the bare filesystem; the files are written
//! anew after every round. With `--calls`, the system calls of the daemons are counted in a round
//! on small data before. All data are made in a new ext4 filesystem in a file below `target`, which
//! is removed at the end. Needs root, /dev/fuse, git, tar, e2fsprogs, strace and fuse-overlayfs;
//! `docs/performance.md` says what each row does.

mod chart;
mod report;
mod rows;
mod setup;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use report::{Measurement, Report};
use rows::{Row, Size};
use setup::{Setup, Subject};

/// What was asked for on the command line.
struct Arguments {
    rounds: usize,
    /// A part of everything: for a first look.
    quick: bool,
    /// System calls are counted.
    calls: bool,
    /// Only rows whose name has one of these words.
    only: Vec<String>,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
}

fn main() -> ExitCode {
    match parse().and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("mounts: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Arguments, String> {
    use lexopt::Arg::Long;

    let mut arguments = Arguments { rounds: 5, quick: false, calls: false, only: Vec::new(), json: None, svg: None };
    let mut parser = lexopt::Parser::from_env();
    let text = |value: std::ffi::OsString| value.into_string().map_err(|_| "A value is not UTF-8.".to_owned());
    while let Some(word) = parser.next().map_err(|error| format!("{error}."))? {
        let Long(name) = word else { return Err(format!("{}.", word.unexpected())) };
        let name = name.to_owned();
        let mut value = || parser.value().map_err(|error| format!("{error}."));
        match name.as_str() {
            // cargo gives it to every benchmark.
            "bench" => {}
            "quick" => (arguments.quick, arguments.rounds) = (true, 2),
            "calls" => arguments.calls = true,
            "rounds" => {
                arguments.rounds = text(value()?)?.parse().map_err(|_| "--rounds needs a number.".to_owned())?;
            }
            "rows" => arguments.only = text(value()?)?.split(',').map(str::to_owned).collect(),
            "json" => arguments.json = Some(value()?.into()),
            "svg" => arguments.svg = Some(value()?.into()),
            _ => return Err(format!("There is no option --{name}.")),
        }
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let size = if arguments.quick { Size::QUICK } else { Size::FULL };
    let calls = if arguments.calls { count_calls(arguments)? } else { BTreeMap::new() };
    let rows = wanted(arguments, size);
    let setup = Setup::new(size)?;
    let mut times: BTreeMap<(usize, Subject), Vec<f64>> = BTreeMap::new();
    let mut memory: BTreeMap<(usize, Subject), u64> = BTreeMap::new();
    for round in 1..=arguments.rounds {
        for (index, row) in rows.iter().enumerate() {
            eprintln!("round {round} of {}: {}", arguments.rounds, row.name);
            for subject in Subject::ALL {
                let Measurement { seconds, peak } = setup.measure(subject, row)?;
                times.entry((index, subject)).or_default().push(seconds);
                let known = memory.entry((index, subject)).or_default();
                *known = (*known).max(peak);
            }
        }
        let report = Report::new(&rows, &times, &memory, &calls);
        write(&arguments.json, report.json())?;
        write(&arguments.svg, chart::svg(&report))?;
    }
    print!("{}", Report::new(&rows, &times, &memory, &calls).table());
    Ok(())
}

fn write(path: &Option<PathBuf>, text: String) -> Result<(), String> {
    match path {
        Some(path) => fs::write(path, text).map_err(|error| format!("{} cannot be written: {error}.", path.display())),
        None => Ok(()),
    }
}

/// The rows that were asked for.
fn wanted(arguments: &Arguments, size: Size) -> Vec<Row> {
    let only = &arguments.only;
    let is_wanted = |row: &Row| only.is_empty() || only.iter().any(|word| row.name.contains(word.as_str()));
    rows::all(size).into_iter().filter(is_wanted).collect()
}

/// How many system calls the daemons make for each operation of each row. Counting takes long, so
/// it is done on small data.
fn count_calls(arguments: &Arguments) -> Result<BTreeMap<(usize, Subject), f64>, String> {
    let setup = Setup::new(Size::QUICK)?;
    let rows = wanted(arguments, Size::QUICK);
    let mut calls = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        eprintln!("counting calls: {}", row.name);
        for subject in [Subject::FuseOverlayfs, Subject::Ours] {
            if let Some(count) = setup.count(subject, row)? {
                calls.insert((index, subject), count as f64 / row.operations as f64);
            }
        }
    }
    Ok(calls)
}
