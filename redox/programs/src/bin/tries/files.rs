//! Commands on a full filesystem, large directories, odd names, and locks.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

use crate::{Answer, pattern};

/// Fills the filesystem, and returns the error at the end. The size of the file must equal the
/// number of bytes written.
pub fn fill(path: &str) -> Answer {
    let mut file = File::create(path)?;
    let mut written = 0;
    // redoxfs compresses, so repeated data would fill nothing.
    let error = loop {
        match file.write(&pattern::bytes(written, 64 << 10)) {
            Ok(0) => return Err("a write wrote nothing".into()),
            Ok(length) => written += length as u64,
            Err(error) => break error,
        }
    };
    let size = file.metadata()?.len();
    if size != written {
        return Err(format!("{written} bytes were written, and the file has {size}").into());
    }
    Ok(format!("full: {error}"))
}

pub fn many(dir: &str, count: usize) -> Answer {
    fs::create_dir_all(dir)?;
    let begin = Instant::now();
    for index in 0..count {
        fs::write(format!("{dir}/file-with-a-longer-name-{index:05}"), b"x")?;
    }
    let made = begin.elapsed();
    let begin = Instant::now();
    let listed = fs::read_dir(dir)?.count();
    let first = begin.elapsed();
    let begin = Instant::now();
    fs::read_dir(dir)?.count();
    Ok(format!(
        "{listed} entries, made in {} us, listed in {} us, again in {} us",
        made.as_micros(),
        first.as_micros(),
        begin.elapsed().as_micros()
    ))
}

/// Measures the creation and the removal of empty files: each alone, and one right after the other.
pub fn create(dir: &str, count: u32) -> Answer {
    let path = |index| format!("{dir}/created{index}");
    let make = |index| File::create(path(index)).map(drop);
    let remove = |index| fs::remove_file(path(index));
    let begin = Instant::now();
    (0..count).try_for_each(make)?;
    let made = begin.elapsed();
    (0..count).try_for_each(remove)?;
    let removed = begin.elapsed() - made;
    let begin = Instant::now();
    (0..count).try_for_each(|index| make(index).and_then(|()| remove(index)))?;
    let [both, made, removed] = [begin.elapsed(), made, removed].map(|time| time.as_micros() / u128::from(count));
    Ok(format!("{both} us for both at once, {made} us for a creation, {removed} us for a removal"))
}

/// Gives new contents to all files of a directory. In an overlay they are copied up without data.
pub fn overwrite(dir: &str) -> Answer {
    for_each_file(dir, |path| fs::write(path, b"overwritten"))
}

/// Changes the first bytes of all files of a directory. In an overlay they are copied up.
pub fn change(dir: &str) -> Answer {
    for_each_file(dir, |path| OpenOptions::new().write(true).open(path)?.write_all(b"changed"))
}

/// Measures `act` on all files of a directory.
fn for_each_file(dir: &str, act: impl Fn(&Path) -> std::io::Result<()>) -> Answer {
    let paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    let begin = Instant::now();
    for path in &paths {
        act(path)?;
    }
    Ok(format!("{} files, {} us each", paths.len(), begin.elapsed().as_micros() / paths.len() as u128))
}

/// Returns the results of create, read and remove for each name: a letter for a success, the errno
/// for a failure.
pub fn names(dir: &str) -> Answer {
    let names = [
        ("252", "n".repeat(252)),
        ("253", "n".repeat(253)),
        ("256", "n".repeat(256)),
        ("colon", "a:b".to_owned()),
        ("space", "a b".to_owned()),
        ("utf-8", "ü€".to_owned()),
        ("whiteout", ".wh.x".to_owned()),
        ("dots", "...".to_owned()),
    ];
    let said = names.map(|(kind, name)| {
        let path = format!("{dir}/{name}");
        let code = |result: std::io::Result<()>| match result {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.raw_os_error().map_or(error.to_string(), |code| code.to_string()),
        };
        let write = code(fs::write(&path, b"1"));
        let read = code(fs::read(&path).map(drop));
        format!("{kind} {write} {read} {}", code(fs::remove_file(&path)))
    });
    Ok(said.join(", "))
}

/// Takes the lock of a file through two descriptors. Only one of them can have it.
pub fn locks(path: &str) -> Answer {
    let open = || OpenOptions::new().read(true).write(true).open(path);
    let (one, other) = (open()?, open()?);
    let lock = |file: &File, operation| {
        // SAFETY: a plain call on a descriptor that is open.
        match unsafe { libc::flock(file.as_raw_fd(), operation) } {
            0 => "ok".to_owned(),
            _ => Error::last_os_error().to_string(),
        }
    };
    Ok(format!(
        "one {}, other {}, unlocked {}, other {}",
        lock(&one, libc::LOCK_EX),
        lock(&other, libc::LOCK_EX | libc::LOCK_NB),
        lock(&one, libc::LOCK_UN),
        lock(&other, libc::LOCK_EX | libc::LOCK_NB)
    ))
}
