//! Snapshots of an overlay while this program has files of it open.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::Answer;
use crate::mapping::{Mapping, open};

/// The faults that a check has found.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn check(&mut self, what: &str, right: bool) {
        if !right {
            self.0.push(what.to_owned());
        }
    }

    fn answer(self) -> Answer {
        Ok(if self.0.is_empty() { "right".to_owned() } else { format!("not so: {}", self.0.join("; ")) })
    }
}

/// Runs a command of `overlayfs`, which must print this line.
fn overlayfs(words: &[&str], expected: &str) -> Result<(), String> {
    let mut command = Command::new("/scheme/initfs/bin/overlayfs");
    let ended = command.args(words).stdin(Stdio::inherit()).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).trim().to_owned();
    if ended.status.success() && said == expected { Ok(()) } else { Err(format!("{words:?}: {said}")) }
}

/// Returns the start of a file.
fn start(file: &File) -> std::io::Result<String> {
    let mut bytes = [0; 20];
    let length = file.read_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

/// Makes a snapshot of the overlay `name`, with files in its directory `dir` open.
pub fn held(dir: &str, name: &str) -> Answer {
    let path = |name: &str| format!("{dir}/{name}");
    for name in ["held", "mapped", "gone"] {
        fs::write(path(name), "before")?;
    }
    let [held, mapped, gone] = ["held", "mapped", "gone"].map(|name| open(&path(name)));
    let (held, mapped, gone) = (held?, mapped?, gone?);
    let mut log = OpenOptions::new().append(true).create(true).open(path("log"))?;
    log.write_all(b"one ")?;
    fs::remove_file(path("gone"))?;
    let mapping = Mapping::new(&mapped)?;
    mapping.set(0, b'B');
    let numbers = || -> std::io::Result<[u64; 3]> {
        Ok([held.metadata()?.ino(), mapped.metadata()?.ino(), gone.metadata()?.ino()])
    };
    let before = numbers()?;
    overlayfs(&["snapshot", "--name", "held", name], "held")?;

    let mut wrong = Wrong::default();
    wrong.check("inode numbers stay", numbers()? == before);
    wrong.check("an open file reads", start(&held)? == "before");
    wrong.check("a file without a name reads", start(&gone)? == "before");
    wrong.check("a mapping stays", mapping.get(0) == b'B' && mapping.get(1) == b'e');
    held.write_all_at(b"AFTER", 0)?;
    gone.write_all_at(b"AFTER", 0)?;
    log.write_all(b"two")?;
    mapping.set(1, b'A');
    wrong.check("a file without a name is written", start(&gone)? == "AFTERe");
    wrong.check("a read sees the store", start(&mapped)? == "BAfore");
    drop((held, mapped, gone, log, mapping));
    for (name, expected) in [("held", "AFTERe"), ("mapped", "BAfore"), ("log", "one two")] {
        wrong.check(name, fs::read_to_string(path(name))? == expected);
    }
    wrong.answer()
}

/// Rolls the overlay `name` back, with files open that `held` has made.
pub fn rolled_back(dir: &str, name: &str) -> Answer {
    let path = |name: &str| format!("{dir}/{name}");
    let changed = open(&path("held"))?;
    changed.write_all_at(b"LOST!", 0)?;
    let new = OpenOptions::new().read(true).write(true).create_new(true).open(path("new"))?;
    let kept = open(&path("kept"))?;
    overlayfs(&["rollback", name], "held")?;

    let mut wrong = Wrong::default();
    for (what, file) in [("a changed file", &changed), ("a new file", &new)] {
        let found = start(file).err().as_ref().and_then(Error::raw_os_error);
        wrong.check(&format!("{what} is ESTALE, not {found:?}"), found == Some(libc::ESTALE));
    }
    wrong.check("a file that stays reads", start(&kept)? == "kept");
    kept.write_all_at(b"K", 0)?;
    wrong.check("a file that stays is written", fs::read_to_string(path("kept"))? == "Kept");
    wrong.check("the new file is gone", fs::metadata(path("new")).is_err());
    wrong.check("the frozen content is back", fs::read_to_string(path("held"))? == "before");
    drop((changed, new));
    wrong.answer()
}

/// Makes snapshots, with a pause before each.
pub fn many(name: &str, count: u64, pause_ms: u64) -> Answer {
    for number in 1..=count {
        sleep(Duration::from_millis(pause_ms));
        let snapshot = format!("s{number}");
        overlayfs(&["snapshot", "--name", &snapshot, name], &snapshot)?;
    }
    Ok(format!("{count} snapshots"))
}
