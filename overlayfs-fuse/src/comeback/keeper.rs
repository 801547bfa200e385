//! The process that waits for the death of the daemon, and then gives the mount to the next one.
//!
//! It is a copy of the daemon from before the sandbox, and has the same table of descriptors. So it
//! may close nothing, and ends without a destructor: that of a lock would unlock the layer.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use overlayfs::control::Failure;
use overlayfs::layer::Access;
use overlayfs::mount::Roots;
use overlayfs::overlay::{Note, pack_notes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use super::ledger::{Hold, Ledger, Sum};
use super::look;
use crate::dispatch::Agreed;
use crate::engine::{CountedObject, FrontEndLegacy};
use crate::line::Line;
use crate::logger;
use crate::mount::Device;
use crate::succession::{Estate, Heir, Identities, Passed, Terms};

/// How many comebacks there may be within [`WITHIN`]. A daemon that dies of the same request again
/// and again should not come back for ever.
const MOST: usize = 10;
const WITHIN: Duration = Duration::from_secs(10);
/// How many daemons the keeper starts, if one dies before it serves.
const TRIES: usize = 3;
/// How often to look whether the last thread has ended.
const EVERY: Duration = Duration::from_millis(1);
/// How often to look at the first thread itself.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

/// The messages to the keeper: from now on a comeback is possible; it is not any more. The first
/// one comes only from the daemon that made the mount. The others are given it, and the line to the
/// process before them tells when.
const BEGUN: u8 = b'b';
const ENDED: u8 = b'e';

/// The daemon's way to its keeper. The drop ends it.
pub struct Kept(Line);

impl Kept {
    /// Says that this process, which made the mount, serves it.
    pub fn begin(&self) {
        self.say(&[BEGUN]);
    }

    /// Says that there is nothing to come back to. The layers may be unlocked from now on.
    pub fn end(&self) {
        self.say(&[ENDED]);
    }

    fn say(&self, message: &[u8]) {
        if let Err(error) = self.0.send(message, None) {
            log::debug!("the process that waits for the death of this one does not listen: {error}");
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.end();
    }
}

/// The mount that a keeper waits for.
pub struct Mounted {
    pub estate: Arc<Estate>,
    pub layers: Identities,
    pub ledger: Arc<Ledger>,
    /// The device of the mount.
    pub device: Arc<File>,
    pub agreed: Agreed,
    /// The device number of the mount. None: the mount is read-only.
    pub filesystem: Option<Device>,
    /// The way to the process that served before. None: this one has made the mount.
    pub heir: Option<Arc<Heir>>,
}

/// The end of the daemon, and the end of its talk.
struct Watched {
    line: Line,
    /// The daemon.
    process: OwnedFd,
    /// Its first thread, which waits for nothing that only the daemon could answer.
    first: OwnedFd,
    pid: Pid,
}

impl Mounted {
    /// Starts the keeper of this process.
    ///
    /// # Errors
    ///
    /// - EAGAIN: the system has no more processes for the user.
    /// - EMFILE: there is no descriptor for the line, or for this process.
    /// - EINVAL: the kernel has no descriptors of threads.
    ///
    /// # Safety
    ///
    /// The process must have one thread.
    pub unsafe fn keep(self) -> io::Result<Kept> {
        let (ours, line) = Line::pair()?;
        let pid = getpid();
        // This process may be dead before the keeper runs.
        let (process, first) = (pidfd_open(pid, PidfdFlags::empty())?, pidfd_open(pid, OF_THREAD)?);
        // Descriptors belong to both processes, so each leaves those of the other open.
        let (ours, watched) = (ManuallyDrop::new(ours), ManuallyDrop::new(Watched { line, process, first, pid }));
        let flags = (libc::CLONE_FILES | libc::SIGCHLD) as libc::c_ulong;
        // SAFETY: without a stack and without shared memory, this is a fork: the child has a copy of
        // all. The process has one thread, as the caller promises. The child starts no thread.
        match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                if catch_unwind(AssertUnwindSafe(|| self.wait_and_bring_back(&watched))).is_err() {
                    log::error!("the process that should bring the mount back has panicked");
                }
                // SAFETY: takes a number and does not return. No destructor runs.
                unsafe { libc::_exit(0) }
            }
            _ => Ok(Kept(ManuallyDrop::into_inner(ours))),
        }
    }

    fn wait_and_bring_back(&self, watched: &Watched) {
        // So a search for the daemon by its name finds only the daemon.
        let _ = rustix::thread::set_name(c"keeper");
        if !self.estate.is_foreground {
            logger::leave_terminal();
        }
        if !matches!(watched.is_killed(&self.ledger, self.heir.as_deref()), Ok(true)) {
            return;
        }
        let point = self.estate.mount_point.display();
        log::warn!("the process that served {point} was killed");
        let brought = self.sum().and_then(|sum| {
            let first = self.bring_back(&sum);
            (1..TRIES).fold(first, |brought, _| brought.or_else(|_| self.bring_back(&sum)))
        });
        if let Err(failure) = brought {
            log::error!("the mount at {point} does not go on: {}", failure.clause);
        }
    }

    /// Returns what the dead daemon knew.
    fn sum(&self) -> Result<Sum, Failure> {
        let why = match self.ledger.held() {
            Hold::None => None,
            Hold::Restart => Some("another process was about to take it over"),
            Hold::Snapshot => Some("a snapshot was made since its start"),
            Hold::Broken => Some("the ledger is incomplete"),
        };
        let now = milliseconds();
        let window = WITHIN.as_millis() as u64;
        let lately = self.estate.comebacks.iter().filter(|time| now.saturating_sub(**time) < window).count();
        let why = why.or_else(|| (lately >= MOST).then_some("its process was killed too often"));
        if let Some(why) = why {
            return Err(refused(why.to_owned()));
        }
        // An attacker in the daemon may have put other descriptors in their place.
        if !self.layers.are(&self.estate.roots) {
            return Err(refused("its layers are not those of the start".to_owned()));
        }
        let mut sum = self.ledger.read()?;
        look::correct(&mut sum, &self.estate.roots, &self.estate.layers).map_err(refused)?;
        Ok(sum)
    }

    /// Gives the mount to the next daemon.
    fn bring_back(&self, sum: &Sum) -> Result<(), Failure> {
        let mut passed = Passed::default();
        let front_end = self.front_end(sum, &mut passed)?;
        let next = self.estate.start()?;
        // Numbers of waits that the dead daemon cannot have used.
        let asked = (self.estate.comebacks.len() as u32 + 1) << 20;
        let (device, agreed, filesystem) = (&*self.device, self.agreed, self.filesystem);
        next.inherit(&Terms { device, agreed, asked, filesystem, comeback: Some(milliseconds()) }, front_end, passed)
    }

    /// Returns what the front end of the dead daemon would have packed.
    fn front_end(&self, sum: &Sum, passed: &mut Passed) -> Result<Vec<u8>, Failure> {
        let counted = sum.counted();
        let known: HashSet<_> = counted.iter().map(|counted| counted.id).collect();
        let (mut named, mut nameless, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for note in sum.notes.values() {
            match note {
                Note::Place(place) => named.push((place, known.contains(&place.id))),
                Note::Nameless(note) if known.contains(&note.id) => left.push(note),
                Note::Unknown { id } if known.contains(id) => {
                    return Err(refused("a file that was copied up in part is open without a name".to_owned()));
                }
                Note::Nameless(_) | Note::Unknown { .. } => {}
            }
        }
        let open = if left.is_empty() {
            HashMap::new()
        } else {
            self.open_files().map_err(|error| refused(format!("its open files cannot be found: {error}")))?
        };
        for note in left {
            let mut keep = |file: BorrowedFd<'_>, access| passed.keep(file).map(|file| Some((file, access)));
            let file = match note.open.map(|number| (number, open.get(&number))) {
                Some((_, Some((file, access)))) => keep(borrow(*file), *access)?,
                Some((number, None)) if note.is_file => {
                    let (file, access) = self.named_again(number)?;
                    keep(file.as_fd(), access)?
                }
                _ => None,
            };
            nameless.push((note, file));
        }
        let objects = pack_notes(sum.next_id, named.into_iter(), nameless.into_iter());
        let unannounced = counted.iter().map(|CountedObject { number, .. }| *number).collect();
        let performed = sum.performed.clone();
        let legacy =
            FrontEndLegacy { counted, told: Vec::new(), unannounced, announced: Vec::new(), performed, objects };
        Ok(legacy.pack())
    }

    /// Opens a file of the upper layer that had no known name when the daemon wrote that down. It
    /// is not open, so a lookup has met a name since. The upper layer may be one of a chain.
    fn named_again(&self, number: u64) -> Result<(OwnedFd, Access), Failure> {
        for root in self.estate.roots.all().iter().take(Roots::LOWER).flatten() {
            let found = look::with_number(root.directory.as_fd(), number);
            let found = found.map_err(|error| refused(format!("the upper layer cannot be searched: {error}")))?;
            if let Some(found) = found {
                return Ok(found);
            }
        }
        Err(refused("a file without a name is lost".to_owned()))
    }

    /// Returns the open files of the upper layer, by their inode number.
    fn open_files(&self) -> io::Result<HashMap<u64, (RawFd, Access)>> {
        let mut found = HashMap::new();
        let Some(Some(upper)) = self.estate.roots.all().first() else { return Ok(found) };
        let device = rustix::fs::fstat(&upper.directory)?.st_dev;
        for entry in std::fs::read_dir("/proc/self/fd")? {
            let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(stat) = rustix::fs::fstat(borrow(number)) else { continue };
            if stat.st_dev != device {
                continue;
            }
            let Ok(flags) = rustix::fs::fcntl_getfl(borrow(number)) else { continue };
            let access = match flags {
                flags if flags.contains(OFlags::PATH) => Access::Attributes,
                flags if flags.contains(OFlags::APPEND) => Access::Append,
                flags if flags.contains(OFlags::RDWR) => Access::ReadWrite,
                _ => Access::Read,
            };
            let known = found.entry(stat.st_ino).or_insert((number, access));
            if access.allows(known.1) {
                *known = (number, access);
            }
        }
        Ok(found)
    }
}

impl Watched {
    /// Waits for the end of the daemon. Returns whether it was killed while the mount was its own.
    /// Then no thread of it changes anything any more.
    fn is_killed(&self, ledger: &Ledger, heir: Option<&Heir>) -> io::Result<bool> {
        let mut has_begun = false;
        loop {
            let mut ready = [PollFd::new(&self.line, PollFlags::IN), PollFd::new(&self.first, PollFlags::IN)];
            match poll(&mut ready, Some(&LOOK)) {
                // While another thread cannot end, the end of the first one wakes no one.
                Ok(0) if !has_ended(&format!("/proc/{}", self.pid.as_raw_nonzero())) => continue,
                Err(rustix::io::Errno::INTR) => continue,
                polled => polled?,
            };
            // What it has said counts, even if it is dead.
            if !ready[0].revents().is_empty() {
                let message = self.line.receive()?.map(|message| message.bytes).unwrap_or_default();
                match message.split_first() {
                    Some((&BEGUN, _)) => has_begun = true,
                    _ => return Ok(false),
                }
                continue;
            }
            self.await_threads(ledger);
            if self.line.has_news() {
                continue;
            }
            return Ok(heir.map_or(has_begun, Heir::was_given_the_mount));
        }
    }

    /// Waits until no thread of the dying daemon changes anything. A thread that waits for answers
    /// of its successor ends only then. It is in a call to the kernel, and does nothing after it.
    fn await_threads(&self, ledger: &Ledger) {
        loop {
            let ended = poll(&mut [PollFd::new(&self.process, PollFlags::IN)], Some(&Timespec::default()));
            if ended.is_ok_and(|ended| ended > 0) {
                return;
            }
            let waiting = ledger.waiting();
            let threads = threads(self.pid).unwrap_or_default();
            if threads.iter().all(|thread| waiting.contains(thread)) {
                return;
            }
            thread::sleep(EVERY);
        }
    }
}

/// The pidfd of a thread (`PIDFD_THREAD`).
const OF_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(OFlags::EXCL.bits());

/// Returns the threads of a process that still live.
fn threads(process: Pid) -> io::Result<Vec<u32>> {
    let mut threads = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero()))? {
        let entry = entry?;
        let is_alive = !has_ended(&entry.path().display().to_string());
        threads.extend(entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()).filter(|_| is_alive));
    }
    Ok(threads)
}

/// Whether the thread with this directory of `/proc` has ended.
fn has_ended(directory: &str) -> bool {
    // The state follows the name, which is in parentheses.
    let Ok(stat) = std::fs::read_to_string(format!("{directory}/stat")) else { return true };
    stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with(['Z', 'X']))
}

/// Returns a descriptor that a list of all descriptors names.
fn borrow(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: this process alone has the table, has one thread, and closes nothing until its end.
    // That of the list itself may be closed: then a call returns an error.
    unsafe { BorrowedFd::borrow_raw(number) }
}

fn milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

fn refused(clause: String) -> Failure {
    Failure { error: overlayfs::errno::Error::new(overlayfs::errno::EIO), clause }
}
