//! A question to the daemon of a mount, and its answer.
//!
//! A daemon may hang, and then a call to its mount cannot be killed. So a process of its own makes
//! the calls, and this one waits for it only as long as it wants. That process also takes the ids
//! of the user of the mount, since the kernel keeps even root away from some mounts of others.
//!
//! The daemon may belong to another user. So nothing in its answer is trusted: sizes have limits,
//! and no number decides what this process does.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use overlayfs::control::ask::{Refusal, ask};
use overlayfs::control::fact::Fact;
use overlayfs::control::frame;
use overlayfs::control::{Command, IOCTL};
use overlayfs::process::{Side, Streams, fork};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Mounted;
use crate::mount::Device;

/// How many milliseconds to wait for the end of the other process.
const MOST_WAITS: u32 = 500;

/// The calls that the other process makes.
const SEND: u8 = 0;
const WRITE_BACK: u8 = 1;

/// Why a daemon gave no answer, or the answer is a failure.
#[derive(Debug)]
pub enum Trouble {
    /// No overlay is mounted at the path.
    NoMount,
    /// The mount is dead: its daemon has ended without an unmount.
    Dead,
    /// The daemon did not answer in time.
    Silent,
    /// The caller is neither root nor the user that mounted the overlay.
    Denied,
    /// The daemon does not know the command or the version of the frame.
    Unknown,
    /// The answer is no frame, or too long.
    Malformed,
    /// The command failed, as this clause says.
    Failed(String),
    /// Another error of a system call.
    Call(io::Error),
}

impl Trouble {
    /// Returns a sentence about the mount at `point`, which cannot be `done`.
    pub fn sentence(&self, done: &str, point: &Path) -> String {
        format!("The overlay at {} cannot be {done}: {self}.", point.display())
    }

    /// Returns a word for programs.
    pub fn word(&self) -> &'static str {
        match self {
            Trouble::NoMount => "gone",
            Trouble::Dead => "dead",
            Trouble::Silent => "silent",
            Trouble::Denied => "denied",
            Trouble::Unknown => "unknown",
            Trouble::Malformed | Trouble::Failed(_) | Trouble::Call(_) => "failed",
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::NoMount => f.write_str("no overlay of overlayfs-fuse is mounted there"),
            Trouble::Dead => f.write_str("its program ended without an unmount"),
            Trouble::Silent => f.write_str("its program does not answer"),
            Trouble::Denied => f.write_str("only root and the user that mounted it may do that"),
            Trouble::Unknown => {
                f.write_str("its program does not know this command; it is of another version than overlayfs-fuse here")
            }
            Trouble::Malformed => f.write_str("the answer of its program makes no sense"),
            Trouble::Failed(clause) => f.write_str(clause),
            Trouble::Call(error) => write!(f, "{error}"),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOTTY | libc::ENOSYS) => Trouble::Unknown,
            Some(libc::EPERM | libc::EACCES) => Trouble::Denied,
            Some(libc::ENOTCONN | libc::ECONNABORTED) => Trouble::Dead,
            Some(libc::ENODEV) => Trouble::NoMount,
            _ if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Trouble::Silent,
            _ => Trouble::Call(error),
        }
    }
}

/// A channel to a daemon. The drop ends the other process. It waits for that for a moment, so that
/// the mount is not in use afterwards.
pub struct Channel {
    line: UnixStream,
    process: libc::pid_t,
    /// None: there is no limit.
    deadline: Option<Instant>,
}

impl Channel {
    /// Opens the channel to the daemon of a mount. The process must have one thread. The errors of
    /// the mount come with the first call.
    ///
    /// # Errors
    ///
    /// - EAGAIN, EMFILE: the system has no more processes or descriptors for the user.
    pub fn open(mounted: &Mounted) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        // SAFETY: there is no other thread, as the documentation demands.
        match unsafe { fork()? } {
            Side::Child => {
                drop(ours);
                make_calls(mounted, theirs);
                // SAFETY: takes a number and does not return. The parent's work at its end is not
                // this child's.
                unsafe { libc::_exit(0) }
            }
            Side::Parent(process) => Ok(Self { line: ours, process, deadline: None }),
        }
    }

    /// Waits for answers from now on only until this moment.
    pub fn wait_until(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// Makes the kernel write back the data that it holds for the mount.
    ///
    /// # Errors
    ///
    /// Those of syncfs(2), and [`Trouble::Silent`].
    pub fn write_back(&self) -> Result<(), Trouble> {
        self.call(WRITE_BACK, &[])
    }

    /// Sends a command with its arguments, and returns all pages of the answer.
    ///
    /// # Errors
    ///
    /// Each variant of [`Trouble`].
    pub fn ask(&self, command: Command, arguments: &[Fact]) -> Result<Vec<Fact>, Trouble> {
        let send = |frame: &mut [u8]| -> Result<(), Trouble> {
            self.call(SEND, frame)?;
            frame.copy_from_slice(&self.read::<{ frame::SIZE }>()?);
            Ok(())
        };
        ask(command, arguments, send).map_err(|refusal| match refusal {
            Refusal::Call(trouble) => trouble,
            Refusal::Malformed => Trouble::Malformed,
            Refusal::Failed { clause, .. } => Trouble::Failed(clause),
        })
    }

    /// Has the other process make a call, and waits for its end.
    fn call(&self, call: u8, bytes: &[u8]) -> Result<(), Trouble> {
        (&self.line).write_all(&[&[call], bytes].concat())?;
        match i32::from_ne_bytes(self.read()?) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno).into()),
        }
    }

    fn read<const N: usize>(&self) -> Result<[u8; N], Trouble> {
        // The least time is not 0, which would be no limit.
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.line.set_read_timeout(self.deadline.map(left))?;
        let mut bytes = [0; N];
        (&self.line).read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: takes numbers. No code has waited for the process, which is a child.
        unsafe { libc::kill(self.process, libc::SIGKILL) };
        // One that cannot end, since the daemon hangs, belongs to init later.
        for _ in 0..MOST_WAITS {
            // SAFETY: takes numbers. The number is that of a child until the call returns it.
            if unsafe { libc::waitpid(self.process, std::ptr::null_mut(), libc::WNOHANG) } != 0 {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Makes the calls that the other process asks for, until it is gone. Each answer begins with an
/// errno, 0 for success.
fn make_calls(mounted: &Mounted, mut line: UnixStream) {
    // A reader of the output must not wait for this process. If that fails, the streams stay.
    let _ = Streams::open().and_then(Streams::put_in_place);
    let root = become_user(mounted).and_then(|()| open_root(mounted));
    let mut call = [0];
    let mut frame = vec![0; frame::SIZE];
    while line.read_exact(&mut call).is_ok() {
        let sends = call == [SEND];
        if sends && line.read_exact(&mut frame).is_err() {
            return;
        }
        let done = match &root {
            Ok(root) if sends => exchange(root, &mut frame),
            Ok(root) => rustix::fs::syncfs(root).map_err(io::Error::from),
            Err(error) => Err(io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO))),
        };
        let errno = done.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        let answer = if sends && errno == 0 { &frame[..] } else { &[] };
        if line.write_all(&[&errno.to_ne_bytes(), answer].concat()).is_err() {
            return;
        }
    }
}

/// Enters the namespaces of the mount. Takes the ids of its user, if this process is root.
fn become_user(mounted: &Mounted) -> io::Result<()> {
    if let Some(process) = mounted.seen_by {
        let space = |name| format!("/proc/{process}/ns/{name}");
        let [user, mount] = ["user", "mnt"].map(|name| File::open(space(name)));
        let (user, mount) = (user?, mount?);
        if std::fs::read_link(space("user"))? != std::fs::read_link("/proc/self/ns/user")? {
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&user), Some(LinkNameSpaceType::User))?;
        }
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&mount), Some(LinkNameSpaceType::Mount))?;
    }
    let (uid, gid) = mounted.user;
    let is_other = (uid, gid) != (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // In a user namespace that was entered, this user has its rights, but not yet its number.
    if is_other && (rustix::process::geteuid().is_root() || mounted.seen_by.is_some()) {
        // SAFETY: takes numbers only. This process has one thread.
        let set = unsafe {
            // Some namespaces forbid to change the other groups. They give no right here.
            libc::setgroups(0, std::ptr::null());
            libc::setresgid(gid, gid, gid) == 0 && libc::setresuid(uid, uid, uid) == 0
        };
        if !set {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Opens the root of the mount.
///
/// # Errors
///
/// - ENODEV: another mount is there now.
/// - Those of open(2).
fn open_root(mounted: &Mounted) -> io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let root = File::options().read(true).custom_flags(flags).open(&mounted.point)?;
    match Device::of(&root)?.to_string() == mounted.device {
        true => Ok(root),
        false => Err(io::Error::from_raw_os_error(libc::ENODEV)),
    }
}

/// Sends a frame, which the answer replaces.
fn exchange(root: &File, bytes: &mut [u8]) -> io::Result<()> {
    debug_assert_eq!(bytes.len(), frame::SIZE);
    // SAFETY: the call reads and writes as many bytes as its number says, and these are there.
    match unsafe { libc::ioctl(root.as_raw_fd(), IOCTL as libc::Ioctl, bytes.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
