//! Measures how long clients wait.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Answer;

/// The time between two measured requests.
const PAUSE: Duration = Duration::from_millis(2);

/// Measures stat and read of one file, while a change of another file makes its copy-up and sync.
pub fn beside(big: &str, small: &str) -> Answer {
    let alone = (0..50).map(|_| stat(small)).collect::<Result<_, _>>()?;
    let done = AtomicBool::new(false);
    let (copied, stats, reads) = std::thread::scope(|scope| {
        let copier = scope.spawn(|| -> std::io::Result<Duration> {
            let begin = Instant::now();
            let changed = OpenOptions::new().read(true).write(true).open(big).and_then(|file| {
                file.write_all_at(b"x", 0)?;
                file.sync_all()
            });
            done.store(true, Ordering::Relaxed);
            changed.map(|()| begin.elapsed())
        });
        let (mut stats, mut reads) = (Vec::new(), Vec::new());
        while !done.load(Ordering::Relaxed) {
            stats.push(stat(small)?);
            let begin = Instant::now();
            let _ = File::open(small)?.read(&mut [0; 16])?;
            reads.push(begin.elapsed());
            std::thread::sleep(PAUSE);
        }
        Ok::<_, Box<dyn std::error::Error>>((copier.join().map_err(|_| "panicked")??, stats, reads))
    })?;
    Ok(format!(
        "copied in {} us; stat alone {}; stat {}; open and read {}",
        copied.as_micros(),
        summary(alone),
        summary(stats),
        summary(reads)
    ))
}

pub fn stat_for(path: &str, ms: u64) -> Answer {
    let end = Instant::now() + Duration::from_millis(ms);
    let mut times = Vec::new();
    while Instant::now() < end {
        times.push(stat(path)?);
        std::thread::sleep(PAUSE);
    }
    Ok(summary(times))
}

/// Opens a path without a wait for the daemon to be ready, so the first requests come as soon as
/// the name exists.
pub fn spin(path: &str, seconds: u64) -> Answer {
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut refused, mut opened) = (0_u64, 0);
    while Instant::now() < end && opened < 100 {
        match fs::metadata(path) {
            Ok(_) => opened += 1,
            Err(_) => refused += 1,
        }
    }
    if opened < 100 {
        return Err(format!("{opened} times opened, {refused} times refused").into());
    }
    Ok("opened".to_owned())
}

fn stat(path: &str) -> std::io::Result<Duration> {
    let begin = Instant::now();
    fs::metadata(path)?;
    Ok(begin.elapsed())
}

fn summary(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |percent| times.get(times.len() * percent / 100).or(times.last()).map_or(0, Duration::as_micros);
    format!("{} times {}/{}/{} us", times.len(), at(50), at(95), at(100))
}
