//! costs DIR COUNT: prints how many microseconds operations take in a directory. With a clock that
//! counts instructions the numbers of two runs differ by a few percent.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Result, Seek, Write};
use std::time::Instant;

const SIZE: usize = 4096;
const FILES: usize = 50;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [dir, count] = words.as_slice() else { return Err("Usage: costs DIR COUNT".into()) };
    measure(dir, count.parse()?).map_err(|error| format!("{dir}: {error}").into())
}

fn measure(dir: &str, count: usize) -> Result<()> {
    let dir = format!("{dir}/costs");
    fs::create_dir(&dir)?;
    let name = |index: usize| format!("{dir}/file{}", index % FILES);
    for index in 0..FILES {
        fs::write(name(index), [b'a'; SIZE])?;
    }
    // The overlay asks the filesystem below at the first access only. These calls make that access.
    for index in 0..FILES {
        fs::metadata(name(index))?;
    }
    time("stat", count, |index| fs::metadata(name(index)).map(drop))?;
    time("missing", count, |index| {
        fs::metadata(format!("{dir}/missing{index}")).expect_err("it should not be there");
        Ok(())
    })?;
    time("open", count, |index| File::open(name(index)).map(drop))?;
    let mut file = OpenOptions::new().read(true).write(true).open(name(0))?;
    let mut block = vec![0; SIZE];
    time("read", count, |_| {
        file.rewind()?;
        file.read_exact(&mut block)
    })?;
    time("write", count, |_| {
        file.rewind()?;
        file.write_all(&block)
    })?;
    time("readdir", count / 10 + 1, |_| {
        assert_eq!(fs::read_dir(&dir)?.count(), FILES);
        Ok(())
    })?;
    time("create", count / 4 + 1, |index| {
        let path = format!("{dir}/new{index}");
        File::create(&path)?;
        fs::remove_file(&path)
    })?;
    time("rename", count / 4 + 1, |index| {
        let (old, new) = (name(1 + index % 2), format!("{dir}/renamed"));
        fs::rename(&old, &new)?;
        fs::rename(&new, &old)
    })?;
    fs::remove_dir_all(&dir)
}

/// Prints the time of one call, from `count` calls. The first call meets empty caches and is not
/// counted.
fn time(what: &str, count: usize, mut call: impl FnMut(usize) -> Result<()>) -> Result<()> {
    call(0)?;
    let begin = Instant::now();
    for index in 0..count {
        call(index)?;
    }
    println!("cost {what} {:.1}", begin.elapsed().as_secs_f64() * 1e6 / count as f64);
    Ok(())
}
