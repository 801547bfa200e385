//! The speed of the mount, beside the bare filesystem, the kernel's overlayfs and fuse-overlayfs.
//!
//! `cargo bench -p overlayfs-fuse --bench mounts -- [--quick] [--calls] [--rounds N] [--rows
//! WORD,WORD] [--json FILE] [--svg FILE] [--compare FILE]`
//!
//! Every round runs every row on every subject, so other load on the machine slows all of them
//! alike. The benchmark prints medians, as ratios to the bare filesystem. It writes the files again
//! after every round.
//!
//! Where the kernel has FUSE over io_uring, ours is measured with it too. The floor is what FUSE
//! takes alone (`floor`): this program serves it, in a process of its own.
//!
//! With `--compare`, it also prints what moved since the run that wrote this JSON file. It fails if
//! a row takes longer by more than the spread of both runs.
//!
//! With `--calls`, a round on small data first counts the system calls of the daemons.
//!
//! All data are in a new ext4 filesystem, in a file below `target` that is removed at the end. The
//! benchmark needs root, /dev/fuse, git, tar, e2fsprogs, strace, fio, dpkg,
//! npm and fuse-overlayfs.
//! `docs/performance.md` describes each row.

#[path = "../shared/call.rs"]
mod call;
mod chart;
mod compare;
#[path = "../shared/disk.rs"]
mod disk;
mod fio;
mod floor;
mod programs;
mod report;
mod rows;
mod setup;
#[path = "../shared/subject.rs"]
mod subject;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use compare::Earlier;
use report::{Measurement, Report};
use rows::{Row, Size};
use setup::Setup;
use subject::{Offer, Subject};

/// The arguments of the command line.
#[derive(Default)]
struct Arguments {
    rounds: usize,
    /// Whether to measure only a part of the data, for a quick result.
    quick: bool,
    /// Whether to count system calls.
    calls: bool,
    /// Measures only rows with one of these words in the name.
    only: Vec<String>,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
    /// The results to compare with.
    compare: Option<PathBuf>,
    /// The floor that this process serves: `on` or `off` for io_uring, the directory, and the mount
    /// point.
    floor: Option<(String, PathBuf, PathBuf)>,
}

fn main() -> ExitCode {
    let done = parse().and_then(|arguments| match &arguments.floor {
        Some((io_uring, top, point)) => floor::serve(io_uring == "on", top, point),
        None => run(&arguments),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("mounts: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Arguments, String> {
    use lexopt::Arg::Long;

    let mut arguments = Arguments { rounds: 3, ..Arguments::default() };
    let mut parser = lexopt::Parser::from_env();
    let text = |value: std::ffi::OsString| value.into_string().map_err(|_| "A value is not UTF-8.".to_owned());
    while let Some(word) = parser.next().map_err(|error| format!("{error}."))? {
        let Long(name) = word else { return Err(format!("{}.", word.unexpected())) };
        let name = name.to_owned();
        let mut value = || parser.value().map_err(|error| format!("{error}."));
        match name.as_str() {
            // cargo passes this argument to every benchmark.
            "bench" => {}
            "quick" => (arguments.quick, arguments.rounds) = (true, 2),
            "calls" => arguments.calls = true,
            "rounds" => {
                arguments.rounds = text(value()?)?.parse().map_err(|_| "--rounds needs a number.".to_owned())?;
            }
            "rows" => arguments.only = text(value()?)?.split(',').map(str::to_owned).collect(),
            "json" => arguments.json = Some(value()?.into()),
            "compare" => arguments.compare = Some(value()?.into()),
            "floor" => arguments.floor = Some((text(value()?)?, value()?.into(), value()?.into())),
            "svg" => arguments.svg = Some(value()?.into()),
            _ => return Err(format!("There is no option --{name}.")),
        }
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let earlier = arguments.compare.as_deref().map(Earlier::read).transpose()?;
    println!("{}\n", machine());
    let size = if arguments.quick { Size::QUICK } else { Size::FULL };
    let calls = if arguments.calls { count_calls(arguments)? } else { BTreeMap::new() };
    let rows = wanted(arguments, size);
    let setup = Setup::new(size)?;
    let offer = Offer::new();
    if offer.is_none() {
        eprintln!("mounts: this kernel has no FUSE over io_uring that could be measured");
    }
    let is_there = |subject: &Subject| !subject.is_over_ring() || offer.is_some();
    let mut times: BTreeMap<(usize, Subject), Vec<f64>> = BTreeMap::new();
    let mut memory: BTreeMap<(usize, Subject), u64> = BTreeMap::new();
    for round in 1..=arguments.rounds {
        for (index, row) in rows.iter().enumerate() {
            eprintln!("round {round} of {}: {}", arguments.rounds, row.name);
            for subject in Subject::ALL.into_iter().filter(is_there) {
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
    let report = Report::new(&rows, &times, &memory, &calls);
    println!("{}\nLoad at the end: {}.", report.table(), load());
    let Some(earlier) = earlier else { return Ok(()) };
    let (moved, worse) = earlier.compare(&report);
    println!("\nMoved by more than the spread of both runs:\n\n{moved}");
    if worse.is_empty() { Ok(()) } else { Err(format!("These rows take longer: {}.", worse.join("; "))) }
}

/// Returns a line about the machine.
fn machine() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unknown processor", |(_, model)| model);
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = rustix::system::uname();
    let kernel = kernel.release().to_string_lossy().into_owned();
    format!("{processors} × {model}, Linux {kernel}. Load at the start: {}.", load())
}

fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn write(path: &Option<PathBuf>, text: String) -> Result<(), String> {
    match path {
        Some(path) => fs::write(path, text).map_err(|error| format!("{} cannot be written: {error}.", path.display())),
        None => Ok(()),
    }
}

/// Returns the rows that the arguments select.
fn wanted(arguments: &Arguments, size: Size) -> Vec<Row> {
    let only = &arguments.only;
    let is_wanted = |row: &Row| only.is_empty() || only.iter().any(|word| row.name.contains(word.as_str()));
    rows::all(size).into_iter().filter(is_wanted).collect()
}

/// Returns the number of system calls of the daemon for each operation of each row. Counting is
/// slow, so the data are small.
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
