//! The start of a mount with many layers and a large upper layer, and many mounts at rest.

use std::fs::{self, File};
use std::time::{Duration, Instant};
use std::{io, thread};

use crate::curves::Place;
use crate::subject::{Subject, View};

/// Starts a mount of 500 layers with a million entries in the upper one, and prints how long it
/// takes until the mount is there.
pub fn start(place: &Place, quick: bool) -> Result<(), String> {
    let (layers, entries) = if quick { (50, 10_000) } else { (500, 1_000_000) };
    let failed = |error: io::Error| format!("The layers cannot be made: {error}.");
    let dir = place.dir("l")?;
    let lowers: Vec<_> = (0..layers).map(|index| dir.join(index.to_string())).collect();
    for lower in &lowers {
        fs::create_dir(lower).and_then(|()| File::create(lower.join("file"))).map_err(failed)?;
    }
    println!("\n### start with {layers} layers and {entries} entries in the upper one\n");
    for subject in [Subject::FuseOverlayfs, Subject::Ours] {
        let work = place.dir("start")?;
        for name in ["upper", "work", "view"] {
            fs::create_dir(work.join(name)).map_err(failed)?;
        }
        for index in 0..entries {
            let dir = work.join(format!("upper/{}", index / 1000));
            if index % 1000 == 0 {
                fs::create_dir(&dir).map_err(failed)?;
            }
            File::create(dir.join(index.to_string())).map_err(failed)?;
        }
        // The first mount records what it found. The second one is measured.
        let mut times = Vec::new();
        for _ in 0..5 {
            let start = Instant::now();
            match View::new(subject, &lowers, &work) {
                Ok(_view) => times.push(start.elapsed().as_secs_f64() * 1e3),
                Err(sentence) => println!("{}: {sentence}", subject.name()),
            }
        }
        times.sort_by(f64::total_cmp);
        if let [least, _, median, _, most] = times.as_slice() {
            println!("- {}: {median:.0} ms ({least:.0} to {most:.0})", subject.name());
        }
    }
    Ok(())
}

/// Mounts one lower layer 1,000 times, and prints what a mount at rest takes.
pub fn at_rest(place: &Place, quick: bool) -> Result<(), String> {
    let count = if quick { 50 } else { 1000 };
    let lower = place.dir("lower")?;
    fs::write(lower.join("file"), "content").map_err(|error| format!("The layer cannot be made: {error}."))?;
    println!("\n### {count} mounts at rest\n\n| subject | KiB for each (PSS) | processes | threads |");
    println!("| --- | --- | --- | --- |");
    for subject in [Subject::FuseOverlayfs, Subject::Ours] {
        let top = place.dir("mounts")?;
        let mut views = Vec::new();
        for index in 0..count {
            let work = top.join(index.to_string());
            for name in ["upper", "work", "view"] {
                let made = fs::create_dir_all(work.join(name));
                made.map_err(|error| format!("A directory cannot be made: {error}."))?;
            }
            views.push(View::new(subject, std::slice::from_ref(&lower), &work)?);
        }
        thread::sleep(Duration::from_secs(5));
        let all: Vec<_> = views.iter().filter_map(|view| view.daemon.as_ref()).map(|daemon| daemon.id()).collect();
        let all: Vec<_> = all.iter().flat_map(|&pid| family(pid)).collect();
        let memory: u64 = all.iter().map(|&pid| pss(pid)).sum();
        let threads: u64 = all.iter().map(|&pid| tasks(pid)).sum();
        let each = |number: u64| number as f64 / f64::from(count);
        let (processes, threads) = (each(all.len() as u64), each(threads));
        println!("| {} | {:.0} | {processes:.1} | {threads:.1} |", subject.name(), each(memory));
    }
    Ok(())
}

/// Returns a process and all that come from it.
fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(children.flat_map(family)).collect()
}

/// Returns the KiB of a process, with its part of what it shares.
fn pss(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

fn tasks(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, |tasks| tasks.count() as u64)
}
