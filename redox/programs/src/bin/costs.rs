//! costs DIR COUNT [kept]: prints how many microseconds operations take in a directory. With a
//! clock that counts instructions the numbers of two runs differ by a few percent.
//!
//! With `kept` it makes no names, except for its files if they are missing, and keeps these. So two
//! runs can use the same files through different schemes. redoxfs takes a different time for each.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Result, Seek, Write};
use std::time::{Duration, Instant};

const SIZE: usize = 4096;
const FILES: usize = 50;
/// The number of files that are made before the first is asked about.
const AT_ONCE: usize = 25;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (dir, count, is_kept) = match words.as_slice() {
        [dir, count] => (dir, count, false),
        [dir, count, kept] if kept == "kept" => (dir, count, true),
        _ => return Err("Usage: costs DIR COUNT [kept]".into()),
    };
    measure(dir, count.parse()?, is_kept).map_err(|error| format!("{dir}: {error}").into())
}

fn measure(dir: &str, count: usize, is_kept: bool) -> Result<()> {
    let dir = format!("{dir}/costs");
    let name = |index: usize| format!("{dir}/file{}", index % FILES);
    if !(is_kept && fs::exists(&dir)?) {
        fs::create_dir(&dir)?;
        for index in 0..FILES {
            fs::write(name(index), [b'a'; SIZE])?;
        }
    }
    // The overlay asks the filesystem below at the first access only. These calls make that access.
    for index in 0..FILES {
        fs::metadata(name(index))?;
        File::open(name(index))?;
        miss(&dir, index)?;
    }
    ask(&dir, count, name)?;
    transfer(count, name)?;
    if is_kept {
        return Ok(());
    }
    change(&dir, count, name)?;
    fs::remove_dir_all(&dir)
}

fn miss(dir: &str, index: usize) -> Result<()> {
    match fs::exists(format!("{dir}/missing{index}"))? {
        true => Err(ErrorKind::AlreadyExists.into()),
        false => Ok(()),
    }
}

fn ask(dir: &str, count: usize, name: impl Fn(usize) -> String) -> Result<()> {
    time("stat", count, |index| fs::metadata(name(index)).map(drop))?;
    time("missing", count, |index| miss(dir, index % FILES))?;
    time("open", count, |index| File::open(name(index)).map(drop))?;
    time("readdir", count / 10, |_| {
        assert_eq!(fs::read_dir(dir)?.count(), FILES);
        Ok(())
    })
}

/// Reads and writes all files in turn: redoxfs takes a different time for each.
fn transfer(count: usize, name: impl Fn(usize) -> String) -> Result<()> {
    let open = |index| OpenOptions::new().read(true).write(true).open(name(index));
    let mut files = (0..FILES).map(open).collect::<Result<Vec<_>>>()?;
    let mut block = vec![0; SIZE];
    time("fstat", count, |index| files[index % FILES].metadata().map(drop))?;
    time("read", count, |index| {
        let file = &mut files[index % FILES];
        file.rewind()?;
        file.read_exact(&mut block)
    })?;
    time("write", count, |index| {
        let file = &mut files[index % FILES];
        file.rewind()?;
        file.write_all(&block)
    })
}

fn change(dir: &str, count: usize, name: impl Fn(usize) -> String) -> Result<()> {
    time("create", count / 4, |index| {
        let path = format!("{dir}/new{index}");
        File::create(&path)?;
        fs::remove_file(&path)
    })?;
    let new = |index| format!("{dir}/made{index}");
    let (mut index, mut made, mut asked) = (0, Duration::ZERO, Duration::ZERO);
    while index < count / 4 {
        let batch = index..index + AT_ONCE;
        let begin = Instant::now();
        batch.clone().try_for_each(|index| fs::write(new(index), "new"))?;
        made += begin.elapsed();
        let begin = Instant::now();
        batch.clone().try_for_each(|index| fs::metadata(new(index)).map(drop))?;
        asked += begin.elapsed();
        batch.clone().try_for_each(|index| fs::remove_file(new(index)))?;
        index = batch.end;
    }
    print("make", index, made);
    print("first", index, asked);
    time("rename", count / 4, |index| {
        let (old, new) = (name(1 + index % 2), format!("{dir}/renamed"));
        fs::rename(&old, &new)?;
        fs::rename(&new, &old)
    })
}

/// Prints the time of one call, from `count` calls. The first call meets empty caches and is not
/// counted.
fn time(what: &str, count: usize, mut call: impl FnMut(usize) -> Result<()>) -> Result<()> {
    call(0)?;
    let begin = Instant::now();
    for index in 0..count {
        call(index)?;
    }
    print(what, count, begin.elapsed());
    Ok(())
}

fn print(what: &str, count: usize, time: Duration) {
    println!("cost {what} {:.1}", time.as_secs_f64() * 1e6 / count as f64);
}
