//! How time and memory grow: with layers, entries, objects, depth, clients and mounts.
//!
//! `cargo bench -p overlayfs-fuse --bench scale -- [--quick] [--huge] [--curves WORD,WORD]`
//!
//! Each curve measures the subjects of the benchmark `mounts` at each of its points, on a new
//! mount. It prints the time and the peak memory of the daemon. The exponent tells how the time
//! grows with the point: 1 is linear.
//!
//! `--quick` leaves the large points out. `--huge` adds a tree of ten million files.
//!
//! All data are in a new ext4 filesystem, in a file below `target` that is removed at the end. The
//! benchmark needs root, /dev/fuse, e2fsprogs and fuse-overlayfs.

#[path = "../shared/call.rs"]
mod call;
mod curves;
#[path = "../shared/disk.rs"]
mod disk;
mod mounts;
#[path = "../shared/subject.rs"]
mod subject;

use std::process::ExitCode;

use curves::{Curve, Place};
use subject::{Offer, Subject};

/// The arguments of the command line.
#[derive(Default)]
struct Arguments {
    quick: bool,
    huge: bool,
    /// Measures only curves with one of these words in the name.
    only: Vec<String>,
}

fn main() -> ExitCode {
    match parse().and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("scale: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Arguments, String> {
    use lexopt::Arg::Long;

    let mut arguments = Arguments::default();
    let mut parser = lexopt::Parser::from_env();
    while let Some(word) = parser.next().map_err(|error| format!("{error}."))? {
        match word {
            // cargo passes this argument to every benchmark.
            Long("bench") => {}
            Long("quick") => arguments.quick = true,
            Long("huge") => arguments.huge = true,
            Long("curves") => {
                let value = parser.value().map_err(|error| format!("{error}."))?;
                arguments.only = value.to_string_lossy().split(',').map(str::to_owned).collect();
            }
            word => return Err(format!("{}.", word.unexpected())),
        }
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let Arguments { quick, huge, only } = arguments;
    let is_wanted = |name: &str| only.is_empty() || only.iter().any(|word| name.contains(word.as_str()));
    let offer = Offer::new();
    let is_there = |subject: &Subject| !subject.is_floor() && (!subject.is_over_ring() || offer.is_some());
    let subjects: Vec<_> = Subject::ALL.into_iter().filter(is_there).collect();
    let place = Place::new(if *huge { 32_000_000 } else { 6_000_000 })?;
    for curve in curves::all(*quick, *huge).iter().filter(|curve| is_wanted(curve.name)) {
        print(&place, curve, &subjects)?;
    }
    if is_wanted("start") {
        mounts::start(&place, *quick)?;
    }
    if is_wanted("mounts") {
        mounts::at_rest(&place, *quick)?;
    }
    Ok(())
}

/// Measures a curve, and prints it as a table in Markdown.
fn print(place: &Place, curve: &Curve, subjects: &[Subject]) -> Result<(), String> {
    let names: Vec<_> = subjects.iter().map(|subject| subject.name()).collect();
    println!("\n### {}\n\n| {} | {} |", curve.name, curve.unit, names.join(" | "));
    println!("|{}", " --- |".repeat(subjects.len() + 1));
    let mut all: Vec<Vec<(usize, f64)>> = vec![Vec::new(); subjects.len()];
    for &point in &curve.points {
        let mut cells = Vec::new();
        for (&subject, times) in subjects.iter().zip(&mut all) {
            let (seconds, peak) = place.measure(curve, subject, point)?;
            times.push((point, seconds));
            let memory = if peak == 0 { String::new() } else { format!(", {:.0} MiB", peak as f64 / 1024.0) };
            cells.push(format!("{:.1} ms{memory}", seconds * 1e3));
        }
        println!("| {point} | {} |", cells.join(" | "));
    }
    let exponents: Vec<_> = all.iter().map(|times| exponent(times)).collect();
    println!("| exponent | {} |", exponents.join(" | "));
    Ok(())
}

/// Returns the power of the point with which the time grows, from the first to the last one.
fn exponent(times: &[(usize, f64)]) -> String {
    match times {
        [(first, least), .., (last, most)] => {
            format!("{:.2}", (most / least).ln() / (*last as f64 / *first as f64).ln())
        }
        _ => String::new(),
    }
}
