//! Random changes of files on a disk that is full from time to time. The daemon has an inherited
//! limit of file sizes. A successful open(2), write(2), ftruncate(2), close(2) or fsync(2) has its
//! effect, in the mount and in the next one. A refused one changes nothing.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, RenameFlags};
use test_common::{LowerGuard, Random, put};

use crate::mount::Mount;
use crate::{Fixture, KIB, MIB, fill};

/// The names of files. Those of `LOWER` are in the lower layer. The large ones get partial copies.
const NAMES: [&str; 9] = ["small", "large", "larger", "more", "most", "a", "b", "c", "d"];
const LOWER: [&str; 5] = ["small", "large", "larger", "more", "most"];

/// The limit of the size of a file that the daemon may write.
const LIMIT: u64 = 3 * MIB;

/// The size from which files get partial copies.
const LARGE: usize = 1 << 20;

/// The number of mounts, and of changes in each.
const MOUNTS: u64 = 3;
const STEPS: u64 = 80;

/// A mount, and the expected contents of its files.
struct World {
    fixture: Fixture,
    files: BTreeMap<&'static str, Vec<u8>>,
    random: Random,
    /// The number of refused changes.
    refused: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let fixture = Fixture::new(24 * MIB);
        let mut files = BTreeMap::from(LOWER.map(|name| (name, vec![b'l'; 2 * LARGE])));
        files.insert("small", b"lower".to_vec());
        for (name, content) in &files {
            put::file(&fixture.path("lower"), name, content);
        }
        Self { fixture, files, random: Random(seed), refused: 0 }
    }

    fn mount(&self, more: &str) -> Mount {
        let mut daemon = Command::new("bash");
        daemon.args(["-c", &format!("ulimit -f {}; exec \"$@\"", LIMIT / KIB), "bash"]);
        self.fixture.mount_by(daemon, more)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.fixture.mounted(name)
    }

    /// Makes one change in the mount. If it succeeds, makes it in the expected contents too.
    fn step(&mut self) {
        let name = *self.random.one_of(&NAMES);
        match self.random.below(13) {
            0..6 => self.write(name),
            6 => self.truncate(name),
            7 => self.remove(name),
            8 => self.rename(name),
            9 => self.sync(name),
            12 => self.temp(name),
            // Another program takes space only while no write is pending: successful writes stay
            // true.
            10 => {
                self.sync_all();
                fill(&self.fixture.path("filler"));
            }
            _ => self.free(),
        }
    }

    /// Writes once, at any offset or at the end. Makes the file if it is missing.
    fn write(&mut self, name: &'static str) {
        let append = self.random.below(2) == 0;
        let was = self.files.get(name).map_or(0, Vec::len);
        let at = if append { was } else { self.random.below(was + 8192) };
        let length = *self.random.one_of(&[1, 100, 4096, 20_000, 400_000]);
        let bytes = vec![b'a' + u8::try_from(self.random.below(26)).unwrap(); length];
        let mut options = OpenOptions::new();
        let flags = if append { libc::O_APPEND } else { 0 };
        let file = match options.write(true).create(true).custom_flags(flags).open(self.path(name)) {
            Ok(file) => file,
            Err(error) => return self.refuse(&error),
        };
        let content = self.files.entry(name).or_default();
        match file.write_at(&bytes, at as u64) {
            Ok(count) => {
                content.resize(content.len().max(at + count), 0);
                content[at..at + count].copy_from_slice(&bytes[..count]);
            }
            Err(error) => self.refuse(&error),
        }
        close(file).unwrap_or_else(|error| panic!("close of {name}: {error}"));
    }

    fn truncate(&mut self, name: &'static str) {
        let Some(content) = self.files.get_mut(name) else { return };
        let size = self.random.below(content.len() + 100_000);
        match OpenOptions::new().write(true).open(self.fixture.mounted(name)).and_then(|file| file.set_len(size as u64))
        {
            Ok(()) => content.resize(size, 0),
            Err(error) => self.refuse(&error),
        }
    }

    fn remove(&mut self, name: &str) {
        match fs::remove_file(self.path(name)) {
            Ok(()) => assert!(self.files.remove(name).is_some(), "{name} was not there"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => assert!(!self.files.contains_key(name), "{name}"),
            Err(error) => self.refuse(&error),
        }
    }

    /// Renames a file, or exchanges the names of two.
    fn rename(&mut self, from: &'static str) {
        let to = *self.random.one_of(&NAMES);
        let flags = *self.random.one_of(&[RenameFlags::empty(), RenameFlags::EXCHANGE]);
        let there = |name| self.files.contains_key(name);
        let can = there(from) && (flags.is_empty() || there(to));
        match rustix::fs::renameat_with(CWD, self.path(from), CWD, self.path(to), flags).map_err(io::Error::from) {
            Ok(()) => {
                let (content, other) = (self.files.remove(from).expect("it was there"), self.files.remove(to));
                self.files.extend(other.filter(|_| !flags.is_empty()).map(|other| (from, other)));
                self.files.insert(to, content);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => assert!(!can, "{from}, {to}"),
            Err(error) => self.refuse(&error),
        }
    }

    /// Writes to a file without a name, and gives it one.
    fn temp(&mut self, name: &'static str) {
        let mut bytes = vec![b't'; *self.random.one_of(&[1, 4096, 400_000])];
        let flags = libc::O_TMPFILE;
        let file = match OpenOptions::new().write(true).custom_flags(flags).open(self.path(".")) {
            Ok(file) => file,
            Err(error) => return self.refuse(&error),
        };
        match file.write_at(&bytes, 0) {
            Ok(count) => bytes.truncate(count),
            Err(error) => {
                self.refuse(&error);
                bytes.clear();
            }
        }
        let by_proc = format!("/proc/self/fd/{}", file.as_raw_fd());
        match rustix::fs::linkat(CWD, by_proc, CWD, self.path(name), AtFlags::SYMLINK_FOLLOW).map_err(io::Error::from) {
            Ok(()) => assert!(self.files.insert(name, bytes).is_none(), "{name} was there"),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => assert!(self.files.contains_key(name)),
            Err(error) => self.refuse(&error),
        }
        close(file).unwrap_or_else(|error| panic!("close of {name}: {error}"));
    }

    /// Syncs a file. This must succeed for accepted changes, also for a large lower file with a
    /// partial copy.
    fn sync(&self, name: &str) {
        if self.files.contains_key(name) {
            let synced = File::open(self.path(name)).unwrap().sync_all();
            synced.unwrap_or_else(|error| panic!("fsync of {name}: {error}"));
        }
    }

    fn sync_all(&self) {
        self.files.keys().for_each(|name| self.sync(name));
    }

    /// Frees the space that another program took.
    fn free(&self) {
        let _ = fs::remove_file(self.fixture.path("filler"));
    }

    #[track_caller]
    fn refuse(&mut self, error: &io::Error) {
        assert!(matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EFBIG)), "{error}");
        self.refused += 1;
    }

    /// Compares the mount with the expected contents.
    fn check(&self, when: &str) {
        for name in NAMES {
            let mut found = Vec::new();
            let there = File::open(self.path(name)).and_then(|mut file| file.read_to_end(&mut found)).is_ok();
            let wanted = self.files.get(name);
            assert_eq!(there, wanted.is_some(), "{when}: whether {name} is there");
            let Some(wanted) = wanted else { continue };
            assert_eq!(found.len(), wanted.len(), "{when}: the size of {name}");
            let differs = found.iter().zip(wanted).position(|(found, wanted)| found != wanted);
            assert_eq!(differs, None, "{when}: where {name} differs");
        }
    }
}

/// Closes a file, and returns the result of close(2).
fn close(file: File) -> io::Result<()> {
    // SAFETY: only the file had the descriptor, and no other code closes it.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes random changes with these options of the mount.
pub fn changes(seed: u64, more: &str) {
    let mut world = World::new(seed);
    let guard = LowerGuard::new([world.fixture.path("lower")]);
    for round in 0..MOUNTS {
        let mount = world.mount(more);
        world.check(&format!("seed {seed}, after mount {round}"));
        for step in 0..STEPS {
            world.step();
            if step % 16 == 0 {
                world.check(&format!("seed {seed}, mount {round}, step {step}"));
            }
        }
        mount.unmount();
    }
    let mount = world.mount(more);
    world.check(&format!("seed {seed}, at the end"));
    mount.unmount();
    guard.check();
    assert!(world.refused > 0, "seed {seed}: nothing was refused");
}
